"""The inbox: kept once, worked off once in effect, tried again, given up in the end, and never lost."""

import asyncio
import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from structlog.testing import capture_logs

from app.billing import effects, inbox
from app.billing.effects import Ref, Work
from app.billing.gateway import Gateway
from app.db import Database
from app.errors import BadRequest, Conflict, StripeUnavailable
from app.telemetry import STRIPE_EVENTS, STRIPE_INBOX, STRIPE_INBOX_SECONDS
from tests.billing.stripe_world import GRACE, START, StripeWorld

HOUR = timedelta(hours=1)

CREATED = datetime(2026, 11, 27, 6, tzinfo=UTC)


def body(id: str = "evt_1", type: str = "customer.subscription.updated", object: Any = None, **fields: Any) -> bytes:
    """An event about ``sub_1``."""
    named = {"id": "sub_1"} if object is None else object
    event = {"id": id, "type": type, "created": int(CREATED.timestamp()), "data": {"object": named}}
    return json.dumps(event | fields).encode()


@pytest.fixture
async def nowhere() -> Any:
    """A border that nothing crosses: what is read is played by the test."""
    gateway = Gateway("sk_test_none", api_base="http://127.0.0.1:1")
    yield gateway
    await gateway.aclose()


class Effects:
    """Stands where objects are read and written: notes what is asked for, and fails as it is told."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked: list[Ref] = []
        self.at: list[datetime] = []
        self.errors: dict[str, Exception] = {}
        monkeypatch.setattr(effects, "bring_up_to_date", self)

    async def __call__(self, work: Work, ref: Ref) -> None:
        self.asked.append(ref)
        self.at.append(work.synced_at)
        if ref.id in self.errors:
            raise self.errors[ref.id]


@pytest.fixture
def played(monkeypatch: pytest.MonkeyPatch) -> Effects:
    """Effects that are only noted."""
    return Effects(monkeypatch)


async def keep(database: Database, *bodies: bytes) -> list[bool]:
    kept = []
    for one in bodies:
        async with database.begin() as connection:
            kept.append(await inbox.store(connection, one))
    return kept


async def row(database: Database, id: str = "evt_1") -> Any:
    async with database.begin() as connection:
        statement = f"SELECT *, due_at - now() AS wait FROM stripe_events WHERE id = '{id}'"
        return (await connection.exec_driver_sql(statement)).one()


async def make_due(database: Database) -> None:
    async with database.begin() as connection:
        await connection.exec_driver_sql("UPDATE stripe_events SET due_at = now()")


async def work_off(database: Database, gateway: Gateway) -> int:
    return await inbox.work_off(database, gateway, START, GRACE)


async def test_an_event_is_kept_byte_for_byte_and_once(database: Database) -> None:
    raw = body().replace(b": ", b" :  ")
    assert await keep(database, raw, raw, body()) == [True, False, False]
    kept = await row(database)
    assert (bytes(kept.body), kept.type, kept.created) == (raw, "customer.subscription.updated", CREATED)
    assert (kept.processed_at, kept.attempts, kept.is_dead, kept.last_error) == (None, 0, False, None)


async def test_a_thin_event_writes_its_time_out(database: Database) -> None:
    await keep(
        database, body("evt_1", created="2026-11-27T06:00:00.123Z"), body("evt_2", created="2026-11-27T06:00:00")
    )
    assert (await row(database)).created == CREATED + timedelta(milliseconds=123)
    assert (await row(database, "evt_2")).created == CREATED


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"no JSON",
        b"\xff\xfe",
        b"[]",
        b"7",
        b"{}",
        b'{"id": "evt_1"}',
        body(id=""),
        body(id="a" * 256),
        body(id="with a blank"),
        body(id="\0"),
        body(id=7),  # type: ignore[arg-type]
        body(type="x\n"),
        body(created="yesterday"),
        body(created=None),
        body(created=10**30),
        b"[" * 100_000,
    ],
)
async def test_what_is_no_event_is_refused_and_makes_no_row(database: Database, raw: bytes) -> None:
    with pytest.raises(BadRequest) as refused:
        await keep(database, raw)
    assert refused.value.code == "invalid_event"
    async with database.begin() as connection:
        assert (await connection.exec_driver_sql("SELECT count(*) FROM stripe_events")).scalar_one() == 0


async def test_a_hundred_deliveries_at_once_are_one_row(database: Database) -> None:
    kept = await asyncio.gather(*(keep(database, body()) for _ in range(100)))
    assert sorted(kept) == [[False]] * 99 + [[True]]


async def test_a_hundred_workers_at_once_do_it_once_in_effect(stripe_world: StripeWorld) -> None:
    world = stripe_world
    org_id, customer = await world.customer()
    world.subscribe(customer, "growth")
    bodies = world.bodies()
    for one in bodies:
        await asyncio.gather(*(world.take_in([one]) for _ in range(100)))
    await asyncio.gather(*(world.work_off() for _ in range(10)))
    assert await world.budget(org_id) == ("growth", "active", None)
    changes = await world.rows("SELECT 1 FROM audit_log WHERE action = 'entitlement.change'")
    assert len(changes) == 1
    assert len(await world.rows("SELECT 1 FROM subscriptions")) == 1
    assert len(await world.rows("SELECT 1 FROM stripe_events WHERE processed_at IS NOT NULL")) == len(bodies)


async def test_events_about_the_same_object_cost_one_reading(
    database: Database, nowhere: Gateway, played: Effects
) -> None:
    await keep(database, *(body(f"evt_{n}") for n in range(50)), body("evt_x", object={"id": "sub_2"}))
    assert await work_off(database, nowhere) == 51
    assert played.asked == [Ref("subscription", "sub_1"), Ref("subscription", "sub_2")]
    assert (await row(database, "evt_7")).processed_at is not None
    assert await work_off(database, nowhere) == 0


async def test_more_than_a_batch_is_worked_off_in_one_go(
    database: Database, nowhere: Gateway, played: Effects, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inbox, "BATCH", 10)
    await keep(database, *(body(f"evt_{n}") for n in range(25)))
    assert await work_off(database, nowhere) == 25
    assert len(played.asked) == 3


async def test_what_was_read_after_an_event_came_in_is_not_read_again(stripe_world: StripeWorld) -> None:
    """All of a subscription's events in batches of one: its objects are read once each."""
    world = stripe_world
    org_id, customer = await world.customer()
    world.subscribe(customer, "growth")
    await world.take_in()
    read: list[Ref] = []
    original = effects.bring_up_to_date

    async def note(work: Work, ref: Ref) -> None:
        read.append(ref)
        await original(work, ref)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(effects, "bring_up_to_date", note)
        patch.setattr(inbox, "BATCH", 1)
        await world.work_off()
        assert sorted(ref.kind for ref in read) == ["invoice", "payment", "subscription"]
        assert await world.budget(org_id) == ("growth", "active", None)
        # What is told later, or tried again by hand, is read again.
        await world.run("UPDATE stripe_events SET processed_at = NULL, due_at = now() WHERE type = 'invoice.paid'")
        await world.work_off()
        assert sorted(ref.kind for ref in read[3:]) == ["invoice", "subscription"]
        await world.take_in([body("evt_later", object={"id": read[-1].id})])
        await world.work_off()
        assert [ref.kind for ref in read[5:]] == ["subscription"]


async def test_what_is_read_is_dated_after_the_event_was_kept(
    database: Database, nowhere: Gateway, played: Effects
) -> None:
    await keep(database, body())
    received_at = (await row(database)).received_at
    await work_off(database, nowhere)
    assert received_at < played.at[0] < (await row(database)).processed_at


async def test_an_event_that_does_not_concern_us_is_done_with(
    database: Database, nowhere: Gateway, played: Effects
) -> None:
    await keep(database, body(type="customer.updated"))
    assert await work_off(database, nowhere) == 1
    assert played.asked == []


async def test_an_event_that_fails_is_tried_again_later_each_time_and_given_up_in_the_end(
    database: Database, nowhere: Gateway, played: Effects
) -> None:
    played.errors["sub_1"] = Conflict("Subscription sub_1 has no price of the catalogue.")
    await keep(database, body(), body("evt_2", object={"id": "sub_2"}))
    waits = []
    for attempt in range(inbox.MAX_ATTEMPTS):
        assert await work_off(database, nowhere) == (1 if attempt == 0 else 0), "the other one is done with"
        found = await row(database)
        assert found.attempts == attempt + 1
        assert found.last_error == "Subscription sub_1 has no price of the catalogue."
        waits.append(round(found.wait.total_seconds()))
        assert found.is_dead == (attempt == inbox.MAX_ATTEMPTS - 1)
        await make_due(database)
    assert waits == [5, 10, 20, 40, 80, 160, 320, 640, 1280, 2560, 3600, 3600]
    asked = len(played.asked)
    assert await work_off(database, nowhere) == 0
    assert len(played.asked) == asked, "what was given up is left alone"
    assert STRIPE_INBOX.labels("dead")._value.get() == 1
    assert STRIPE_INBOX.labels("waiting")._value.get() == 0


async def test_one_that_was_given_up_can_be_tried_again(database: Database, nowhere: Gateway, played: Effects) -> None:
    await keep(database, body("evt_1"), body("evt_2"), body("evt_3"), body("evt_4"))
    async with database.begin() as connection:
        await connection.exec_driver_sql(
            "UPDATE stripe_events SET is_dead = id < 'evt_4', attempts = 12, due_at = now() + interval '1 hour'"
        )
        assert [one.id for one in await inbox.list_waiting(connection, dead_only=True, limit=2)] == ["evt_1", "evt_2"]
        assert len(await inbox.list_waiting(connection, dead_only=False, limit=9)) == 4
        assert await inbox.retry(connection, ["evt_2", "evt_unknown"]) == 1
    assert await work_off(database, nowhere) == 1
    assert (await row(database, "evt_2")).attempts == 1
    async with database.begin() as connection:
        assert await inbox.retry(connection, ["evt_2"]) == 0, "it is done with"
        assert await inbox.retry(connection, [], all_dead=True) == 2
    assert await work_off(database, nowhere) == 2
    assert (await row(database, "evt_4")).processed_at is None


async def test_an_unexpected_failure_is_logged_with_its_stack_and_stops_no_other(
    database: Database, nowhere: Gateway, played: Effects
) -> None:
    played.errors["sub_1"] = RuntimeError("broken \0 " + "x" * 1000)
    await keep(database, body(), body("evt_2", object={"id": "sub_2"}))
    with capture_logs() as logs:
        assert await work_off(database, nowhere) == 1
    assert any(entry["event"] == "stripe.event_failed" and entry.get("exc_info") for entry in logs)
    found = await row(database)
    assert found.last_error.startswith("RuntimeError: broken  xxx")
    assert len(found.last_error) <= 500


@pytest.mark.parametrize("broken", [{"object": 7}, {"data": None}, {"data": {}}, {"data": {"object": {"id": 7}}}])
async def test_an_event_that_is_not_built_as_expected_stops_no_other(
    database: Database, nowhere: Gateway, played: Effects, broken: dict[str, Any]
) -> None:
    odd = json.loads(body()) | broken if "data" in broken else json.loads(body(object=7))
    await keep(database, json.dumps(odd).encode(), body("evt_2", object={"id": "sub_2"}))
    await work_off(database, nowhere)
    assert (await row(database, "evt_2")).processed_at is not None


async def test_that_stripe_is_away_is_not_held_against_an_event(
    database: Database, nowhere: Gateway, played: Effects
) -> None:
    played.errors["sub_1"] = StripeUnavailable("Stripe is not reachable.")
    await keep(database, body())
    for _ in range(3 * inbox.MAX_ATTEMPTS):
        assert await work_off(database, nowhere) == 0
        await make_due(database)
    found = await row(database)
    assert (found.attempts, found.is_dead, found.last_error) == (0, False, "Stripe is not reachable.")
    assert STRIPE_INBOX.labels("waiting")._value.get() == 1
    assert STRIPE_INBOX_SECONDS._value.get() > 0
    played.errors.clear()
    assert await work_off(database, nowhere) == 1
    found = await row(database)
    assert (found.last_error, found.attempts) == (None, 1)
    assert STRIPE_INBOX_SECONDS._value.get() == 0


async def test_the_last_attempt_is_not_spent_on_a_stripe_that_is_away(
    database: Database, nowhere: Gateway, played: Effects
) -> None:
    played.errors["sub_1"] = StripeUnavailable("away")
    await keep(database, body())
    async with database.begin() as connection:
        await connection.exec_driver_sql(f"UPDATE stripe_events SET attempts = {inbox.MAX_ATTEMPTS - 1}")
    await work_off(database, nowhere)
    found = await row(database)
    assert (found.attempts, found.is_dead) == (inbox.MAX_ATTEMPTS - 1, False)


async def test_stripe_is_left_alone_after_a_few_calls_without_an_answer(
    database: Database, nowhere: Gateway, played: Effects, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inbox, "BATCH", 50)
    played.errors |= {f"sub_{n}": StripeUnavailable("away") for n in range(120)}
    await keep(database, *(body(f"evt_{n}", object={"id": f"sub_{n}"}) for n in range(120)))
    assert await work_off(database, nowhere) == 0
    assert len(played.asked) <= inbox.MAX_UNANSWERED + inbox.READERS
    async with database.begin() as connection:
        untouched = "SELECT count(*) FROM stripe_events WHERE last_error IS NULL"
        assert (await connection.exec_driver_sql(untouched)).scalar_one() == 70


async def test_one_call_without_an_answer_does_not_stop_the_rest(
    database: Database, nowhere: Gateway, played: Effects, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inbox, "BATCH", 10)
    played.errors["sub_3"] = StripeUnavailable("a hiccup")
    await keep(database, *(body(f"evt_{n}", object={"id": f"sub_{n}"}) for n in range(30)))
    assert await work_off(database, nowhere) == 29


async def test_an_event_about_several_objects_is_done_when_all_of_them_are(
    database: Database, nowhere: Gateway, played: Effects
) -> None:
    invoice = {"id": "in_1", "parent": {"subscription_details": {"subscription": "sub_1"}}}
    await keep(database, body(type="invoice.paid", object=invoice))
    played.errors["sub_1"] = Conflict("not now")
    assert await work_off(database, nowhere) == 0
    assert (await row(database)).last_error == "not now"
    played.errors.clear()
    await make_due(database)
    assert await work_off(database, nowhere) == 1


async def test_a_worker_that_dies_leaves_its_batch_to_the_next_one(
    database: Database, nowhere: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed between the commit of the claim and the processing."""

    class KilledError(BaseException):
        pass

    async def die(work: Work, ref: Ref) -> None:
        raise KilledError

    monkeypatch.setattr(effects, "bring_up_to_date", die)
    await keep(database, body())
    with pytest.raises(KilledError):
        await work_off(database, nowhere)
    found = await row(database)
    assert (found.processed_at, found.attempts) == (None, 1)
    assert timedelta(0) < found.wait <= timedelta(seconds=inbox.LEASE_S)
    played = Effects(monkeypatch)
    assert await work_off(database, nowhere) == 0, "its lease runs"
    await make_due(database)
    assert await work_off(database, nowhere) == 1
    assert len(played.asked) == 1


async def test_workers_share_the_work(
    database: Database, nowhere: Gateway, played: Effects, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inbox, "BATCH", 5)
    await keep(database, *(body(f"evt_{n}", object={"id": f"sub_{n}"}) for n in range(60)))
    done = await asyncio.gather(*(work_off(database, nowhere) for _ in range(4)))
    assert sum(done) == 60
    assert len(played.asked) == len(set(played.asked)) == 60


async def test_what_becomes_of_events_is_counted(database: Database, nowhere: Gateway, played: Effects) -> None:
    counts = {name: STRIPE_EVENTS.labels(name)._value.get() for name in ("processed", "failed", "dead")}
    played.errors["sub_2"] = Conflict("no")
    await keep(database, body(), body("evt_2", object={"id": "sub_2"}))
    await work_off(database, nowhere)
    async with database.begin() as connection:
        await connection.exec_driver_sql(
            f"UPDATE stripe_events SET attempts = {inbox.MAX_ATTEMPTS - 1}, due_at = now()"
        )
    with capture_logs() as logs:
        await work_off(database, nowhere)
    assert [entry["event_id"] for entry in logs if entry["event"] == "stripe.event_given_up"] == ["evt_2"]
    now = {name: STRIPE_EVENTS.labels(name)._value.get() for name in counts}
    assert {name: now[name] - counts[name] for name in counts} == {"processed": 1, "failed": 1, "dead": 1}


async def test_events_are_deleted_when_they_have_been_done_with_for_long(database: Database) -> None:
    """One that waits stays, however old."""
    await keep(database, body("evt_old"), body("evt_new"), body("evt_waits"))
    async with database.begin() as connection:
        for id, days in (("evt_old", 91), ("evt_new", 89)):
            await connection.exec_driver_sql(
                f"UPDATE stripe_events SET processed_at = now() - interval '{days} days' WHERE id = '{id}'"
            )
        await connection.exec_driver_sql("UPDATE stripe_events SET received_at = now() - interval '1 year'")
        assert await inbox.delete_old(connection) == 1
        left = await connection.exec_driver_sql("SELECT id FROM stripe_events ORDER BY id")
        assert left.scalars().all() == ["evt_new", "evt_waits"]


async def test_a_sweep_goes_back_to_before_the_last_one(stripe_world: StripeWorld) -> None:
    """And not to the beginning of time: what came before was looked for."""
    world = stripe_world
    asked: list[int] = []
    listed = world.gateway.list_events

    async def note(since: int, types: Any) -> Any:
        asked.append(since)
        return await listed(since, types)

    world.gateway.list_events = note  # type: ignore[method-assign]
    now = START + timedelta(days=40)
    # The last goes by a clock that was put back.
    for at in (now, now + HOUR, now + timedelta(days=50), now):
        await inbox.sweep(world.database, world.gateway, at)
    overlap, oldest = inbox.SWEEP_OVERLAP, inbox.STRIPE_REMEMBERS
    expected = [now - oldest, now - overlap, now + timedelta(days=50) - oldest, now - overlap]
    assert [datetime.fromtimestamp(at, UTC) for at in asked] == expected


async def test_what_was_missed_is_found_though_something_newer_has_come_in(stripe_world: StripeWorld) -> None:
    """All of it was down for five hours, and the first webhook after that is new."""
    world = stripe_world
    await inbox.sweep(world.database, world.gateway, START)
    _, customer = await world.customer()
    world.go(START + HOUR)
    world.subscribe(customer)
    world.go(START + 6 * HOUR)
    await keep(world.database, body(created=int(world.now.timestamp())))
    assert await inbox.sweep(world.database, world.gateway, world.now) > 0


async def test_a_sweep_that_stripe_did_not_answer_is_made_up_for(stripe_world: StripeWorld) -> None:
    world = stripe_world
    await inbox.sweep(world.database, world.gateway, START)
    world.simulator.hazard("outage", path="/v1/events")
    with pytest.raises(StripeUnavailable):
        await inbox.sweep(world.database, world.gateway, START + HOUR)
    async with world.database.begin() as connection:
        assert await connection.scalar(inbox._SWEPT) == START
