"""One request, one row."""

import asyncio
import os
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, date, datetime
from pathlib import Path
from typing import cast
from uuid import UUID

import pytest
from sqlalchemy import select, text
from sqlalchemy.ext.asyncio import AsyncConnection

from app import auth, recovery
from app import lane as lanes
from app.auth import Key
from app.config import Settings
from app.db import Database
from app.errors import DatabaseUnavailable, DataError
from app.journal import Journal
from app.lane import Lane
from app.metering import Ledger, Meter
from app.partitions import ensure_partitions
from app.recovery import release_expired, replay
from app.settlements import Price, settlement_lane
from app.tables import UsageEvent, new_id
from tests.conftest import PEPPER
from tests.factories import cut_waiting, make_key, make_org

ORG, KEY = new_id(), new_id()


PRICE = Price(input=10, cached=5, output=20)


@pytest.fixture
async def ledger(database: Database, tmp_path: Path) -> AsyncIterator[Ledger]:
    """A ledger with a journal of its own."""
    ledger = Ledger(database, Journal(tmp_path / "journals"))
    yield ledger
    await ledger.aclose()


def make_meter(
    ledger: Ledger,
    request_id: UUID | None = None,
    started_at: datetime | None = None,
    parameters: dict[str, object] | None = None,
    org_id: UUID = ORG,
) -> Meter:
    now = datetime.now(UTC)
    key = Key(KEY, org_id, "internal", frozenset(), None, None, 0, 0, now)
    return Meter(
        ledger,
        request_id or new_id(),
        key,
        kind="generation",
        model="m",
        model_digest="d",
        input_tokens=5,
        price=PRICE,
        price_version=1,
        started_at=started_at or now,
        parameters=parameters,
    )


async def rows(database: Database) -> list[tuple[object, ...]]:
    async with database.begin() as connection:
        result = await connection.exec_driver_sql(
            "SELECT id, org_id, key_id, input_tokens, cached_tokens, output_tokens, finish_reason, engine_ms"
            " FROM usage_events"
        )
        return [tuple(row) for row in result]


async def test_the_row_holds_what_was_delivered(database: Database, ledger: Ledger) -> None:
    meter = make_meter(ledger)
    meter.deliver(3)
    meter.deliver(4)
    meter.report(2, 1.5)
    await meter.settle("stop")
    assert await rows(database) == [(meter.request_id, ORG, KEY, 5, 2, 7, "stop", 1.5)]


@pytest.mark.parametrize("parameters", [None, {"seed": 2**64 - 1, "temperature": 0.7, "stop": ["\n"]}])
async def test_the_row_holds_the_parameters_as_they_are(
    database: Database, ledger: Ledger, parameters: dict[str, object]
) -> None:
    await make_meter(ledger, parameters=parameters).settle("stop")
    async with database.begin() as connection:
        row = (await connection.execute(select(UsageEvent.parameters, UsageEvent.parameters.is_(None)))).one()
    # Unknown is NULL, not JSON's null.
    assert tuple(row) == (parameters, parameters is None)


async def test_a_later_report_replaces_the_one_before(database: Database, ledger: Ledger) -> None:
    meter = make_meter(ledger)
    meter.report(0, 1.5)
    meter.report(2, 2.0)
    await meter.settle("aborted")
    assert (await rows(database))[0][4:] == (2, 0, "aborted", 2.0)


async def test_more_cannot_be_cached_than_was_sent(database: Database, ledger: Ledger) -> None:
    meter = make_meter(ledger)
    meter.report(50, 0.0)
    await meter.settle("stop")
    assert (await rows(database))[0][4] == 5


async def test_settling_twice_writes_one_row_and_keeps_the_first(database: Database, ledger: Ledger) -> None:
    meter = make_meter(ledger)
    await meter.settle("stop")
    meter.deliver(9)
    await meter.settle("aborted")
    (row,) = await rows(database)
    assert row[5:7] == (0, "stop")


async def test_the_same_request_settled_from_two_places_has_one_row(database: Database, ledger: Ledger) -> None:
    first = make_meter(ledger)
    meters = [first, *(make_meter(ledger, first.request_id, first.started_at) for _ in range(9))]
    await asyncio.gather(*(meter.settle("stop") for meter in meters))
    assert len(await rows(database)) == 1


async def lock(connection: AsyncConnection, table: str) -> None:
    await connection.execute(text(f"SELECT 1 FROM {table} FOR UPDATE"))


async def is_waiting(database: Database) -> None:
    """Returns once a settlement waits for a lock; each look is a transaction, or it would see the same again."""
    statement = text(
        "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'tollgate ledger'"
        " AND datname = current_database() AND wait_event_type = 'Lock'"
    )
    count = 0
    while not count:
        async with database.begin() as connection:
            count = (await connection.execute(statement)).scalar_one()


async def test_a_release_of_nothing_waits_for_the_organisation_without_holding_the_key(
    database: Database, settings: Settings, ledger: Ledger
) -> None:
    secret = await make_key(database, settings)
    async with database.begin() as connection:
        key = await auth.find_key(connection, secret, PEPPER)
    async with database.begin() as organisation:
        await lock(organisation, "org_budgets")
        releasing = asyncio.create_task(ledger.release(new_id(), key))
        await is_waiting(database)
        async with database.begin() as another:
            await another.execute(text("SELECT 1 FROM rate_buckets FOR UPDATE NOWAIT"))
    await releasing
    assert ledger.num_late == 0


async def test_a_request_that_is_cancelled_while_it_settles_goes_on(
    database: Database, settings: Settings, ledger: Ledger
) -> None:
    org_id = await make_org(database)
    meter = make_meter(ledger, org_id=org_id)
    async with database.begin() as connection:
        await lock(connection, "org_budgets")
        settling = asyncio.create_task(meter.settle("stop"))
        await is_waiting(database)
        settling.cancel()
    await settling
    assert len(await rows(database)) == 1


async def test_what_is_billed_at_the_end_of_a_month_does_not_count_in_the_next(
    database: Database, ledger: Ledger
) -> None:
    """Its transaction began before the month that somebody else has begun meanwhile."""
    org_id = await make_org(database)
    async with database.begin() as connection:
        await connection.exec_driver_sql(
            "UPDATE org_budgets SET month = month + interval '1 month', cost_used = 5, tokens_used = 5, credit = 1000"
        )
    await make_meter(ledger, org_id=org_id).settle("stop")
    assert len(await rows(database)) == 1
    async with database.begin() as connection:
        found = (await connection.exec_driver_sql("SELECT cost_used, tokens_used, credit FROM org_budgets")).one()
    assert (found.cost_used, found.tokens_used) == (5, 5)
    assert found.credit < 1000


@pytest.mark.parametrize(("credit", "is_prepaid"), [("1000", True), ("0", True), ("-5", True), ("NULL", False)])
async def test_a_row_says_whether_it_was_paid_from_credit(
    database: Database, ledger: Ledger, credit: str, is_prepaid: bool
) -> None:
    org_id = await make_org(database)
    async with database.begin() as connection:
        await connection.exec_driver_sql(f"UPDATE org_budgets SET credit = {credit}")
    meter = make_meter(ledger, org_id=org_id)
    await meter.settle("stop")
    await meter.settle("stop")
    async with database.begin() as connection:
        (found,) = (await connection.exec_driver_sql("SELECT is_prepaid FROM usage_events")).scalars()
        left = (await connection.exec_driver_sql("SELECT credit FROM org_budgets")).scalar_one()
    assert found is is_prepaid
    assert left == (int(credit) - 50 if is_prepaid else None)


async def test_a_row_of_an_organisation_that_is_gone_was_paid_by_nobody(database: Database, ledger: Ledger) -> None:
    await make_meter(ledger).settle("stop")
    async with database.begin() as connection:
        assert (await connection.exec_driver_sql("SELECT is_prepaid FROM usage_events")).scalar_one() is False


async def test_partitions_exist_for_this_month_and_those_ahead(database: Database, ledger: Ledger) -> None:
    async with database.begin() as connection:
        names = await ensure_partitions(connection, date(2031, 11, 30), 2)
        again = await ensure_partitions(connection, date(2031, 11, 30), 2)
    assert names == again == ["usage_events_y2031m11", "usage_events_y2031m12", "usage_events_y2032m01"]


async def test_a_month_ends_where_the_next_begins(database: Database, ledger: Ledger) -> None:
    async with database.begin() as connection:
        await ensure_partitions(connection, date(2033, 1, 1), 1)
    edge = datetime(2033, 2, 1, tzinfo=UTC)
    await make_meter(ledger, started_at=edge).settle("stop")
    await make_meter(ledger, started_at=edge.replace(month=1, day=31, hour=23, minute=59)).settle("stop")
    async with database.begin() as connection:
        for name in ("usage_events_y2033m01", "usage_events_y2033m02"):
            count = (await connection.exec_driver_sql(f"SELECT count(*) FROM {name}")).scalar_one()
            assert count == 1


async def test_a_row_without_a_partition_is_written_as_soon_as_there_is_one(database: Database, ledger: Ledger) -> None:
    meter = make_meter(ledger, started_at=datetime(2040, 1, 1, tzinfo=UTC))
    others = [make_meter(ledger) for _ in range(3)]
    await asyncio.gather(*(each.settle("stop") for each in (meter, *others)))
    assert len(await rows(database)) == 3  # nobody else suffers
    assert ledger.num_late == 1
    async with database.begin() as connection:
        await ensure_partitions(connection, date(2040, 1, 1), 0)
    await ledger.caught_up()
    assert len(await rows(database)) == 4


async def test_two_processes_may_make_the_same_partitions_at_once(database: Database, ledger: Ledger) -> None:
    async def make() -> None:
        async with database.begin() as connection:
            await ensure_partitions(connection, date(2050, 1, 1), 3)

    await asyncio.gather(*(make() for _ in range(5)))


async def test_a_lost_database_keeps_the_row_on_disk_until_it_is_back(
    database: Database, ledger: Ledger, tmp_path: Path
) -> None:
    """The tables are locked away for a moment, so that a settlement breaks off."""
    meter = make_meter(ledger)
    meter.begin_stream()
    meter.deliver(3)
    async with database.begin() as connection:
        await connection.exec_driver_sql("LOCK TABLE usage_events IN ACCESS EXCLUSIVE MODE")
        settling = asyncio.create_task(meter.settle("stop"))
        await cut_waiting(database, "tollgate ledger")
        await settling
        assert ledger.num_late == 1
    assert b'"output_tokens":3' in next((tmp_path / "journals").glob("*.journal")).read_bytes()
    await ledger.caught_up()
    assert ledger.num_late == 0
    assert ledger.journal._file is not None
    assert ledger.journal._file.num_open == 0
    assert [row[5:7] for row in await rows(database)] == [(3, "stop")]


async def test_a_process_that_was_killed_is_billed_for_what_it_had_delivered(
    database: Database, tmp_path: Path
) -> None:
    org_id, holder = await budget_with_reservation(database, cost=200)
    journal = Journal(tmp_path / "journals", holder=holder)
    dead = Ledger(database, journal)
    delivered, silent, whole = (make_meter(dead, org_id=org_id) for _ in range(3))
    delivered.begin_stream()
    delivered.report(2, 1.5)
    delivered.deliver(3)
    delivered.deliver(4)
    silent.begin_stream()
    journal.keep(whole.request_id, replace(whole._row, finish_reason="length", output_tokens=1, cost=70).record)
    os.close(journal._lock)
    for _ in range(2):  # what is replayed twice is billed once
        next_one = Ledger(database, Journal(tmp_path / "journals"))
        next_one.start()
        await next_one.caught_up()
        await next_one.aclose()
    found = {(row[0], *row[3:]) for row in await rows(database)}
    assert found == {
        (delivered.request_id, 5, 2, 7, "error", 1.5),
        (whole.request_id, 5, 0, 1, "length", 0.0),
    }
    async with database.begin() as connection:
        states = (await connection.exec_driver_sql("SELECT DISTINCT state FROM usage_events")).scalars().all()
        budget = (await connection.exec_driver_sql("SELECT cost_used, cost_held, num_running FROM org_budgets")).one()
    assert states == ["recovered"]
    # 3 x 10 + 2 x 5 + 7 x 20, and what was kept; what the dead one held is free.
    assert tuple(budget) == (180 + 70, 0, 0)
    assert list((tmp_path / "journals").iterdir()) == []
    await dead._lane.aclose()


async def test_a_row_that_is_there_stays_as_it_is_whatever_a_journal_says(database: Database, tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journals")
    dead = Ledger(database, journal)
    meter = make_meter(dead)
    meter.begin_stream()
    meter.deliver(1)
    await dead.settle(replace(meter._row, finish_reason="stop", output_tokens=2))  # killed before it closed the entry
    os.close(journal._lock)
    lane = settlement_lane(database)
    assert await replay(database, lane, tmp_path / "journals") == 1
    await lane.aclose()
    await dead._lane.aclose()
    assert [row[5:7] for row in await rows(database)] == [(2, "stop")]


async def test_a_journal_that_cannot_be_billed_now_is_replayed_later(database: Database, tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journals")
    dead = Ledger(database, journal)
    meter = make_meter(dead)
    meter.begin_stream()
    meter.deliver(1)
    os.close(journal._lock)
    turns = asyncio.Queue[float]()
    away = Database.connect("postgresql://nobody@127.0.0.1:9/none", timeout_s=1)
    first = Ledger(away, Journal(tmp_path / "journals"), pause=turns.put)
    first.start()
    await turns.get()
    await first.aclose()
    await away.aclose()
    assert await rows(database) == []
    second = Ledger(database, Journal(tmp_path / "journals"))
    second.start()
    await second.caught_up()
    await second.aclose()
    await dead._lane.aclose()
    assert len(await rows(database)) == 1


async def test_a_journal_of_another_version_keeps_nobody_from_the_others(database: Database, tmp_path: Path) -> None:
    strange, known = Journal(tmp_path / "journals"), Journal(tmp_path / "journals")
    strange.open(new_id(), {"price": {"by_the_hour": 1}}).deliver(1, 0, 0.0)
    dead = Ledger(database, known)
    meter = make_meter(dead)
    meter.begin_stream()
    meter.deliver(1)
    for journal in (strange, known):
        os.close(journal._lock)
    lane = settlement_lane(database)
    with pytest.raises(DataError, match="another version"):
        await replay(database, lane, tmp_path / "journals")
    await lane.aclose()
    await dead._lane.aclose()
    assert len(await rows(database)) == 1
    # For whoever can read it.
    assert [path.stem for path in (tmp_path / "journals").glob("*.lock")] == [strange.holder.hex]


async def test_more_is_replayed_than_a_lane_lets_wait(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lanes, "_MAX_WAITING", 2)
    monkeypatch.setattr(recovery, "_MOST_AT_ONCE", 2)
    journal = Journal(tmp_path / "journals")
    dead = Ledger(database, journal)
    for _ in range(5):
        meter = make_meter(dead)
        meter.begin_stream()
        meter.deliver(1)
    os.close(journal._lock)
    lane = settlement_lane(database)
    assert await replay(database, lane, tmp_path / "journals") == 5
    await lane.aclose()
    await dead._lane.aclose()
    assert len(await rows(database)) == 5


class Gate:
    """A settlement lane that answers when it is told to."""

    def __init__(self) -> None:
        self.asked: asyncio.Queue[asyncio.Future[dict[str, int]]] = asyncio.Queue()

    async def ask(self, *_: object) -> dict[str, int]:
        answer: asyncio.Future[dict[str, int]] = asyncio.get_running_loop().create_future()
        self.asked.put_nowait(answer)
        return await answer

    async def aclose(self) -> None:
        """Nothing to close."""


async def test_what_comes_late_while_a_late_one_of_its_request_is_written_is_written_too(
    database: Database, tmp_path: Path
) -> None:
    ledger, gate = Ledger(database, Journal(tmp_path / "journals"), pause=lambda _: asyncio.sleep(0)), Gate()
    ledger._lane = cast("Lane", gate)
    meter = make_meter(ledger)
    away = DatabaseUnavailable("gone")
    freeing = asyncio.create_task(ledger.settle(replace(meter._row, bills=False)))
    (await gate.asked.get()).set_exception(away)
    await freeing
    again = await gate.asked.get()
    billing = asyncio.create_task(meter.settle("stop"))
    (await gate.asked.get()).set_exception(away)
    await billing
    again.set_result({"num_billed": 0})
    (await gate.asked.get()).set_result({"num_billed": 1})
    await ledger.caught_up()
    assert (ledger.num_late, gate.asked.qsize()) == (0, 0)
    await ledger.aclose()


async def test_a_settlement_that_ends_with_its_process_says_so(database: Database, tmp_path: Path) -> None:
    class Ending(Ledger):
        async def settle(self, *_: object) -> None:
            raise asyncio.CancelledError

    ledger = Ending(database, Journal(tmp_path / "journals"))
    meter = make_meter(ledger)
    with pytest.raises(asyncio.CancelledError):
        await meter.settle("stop")
    await ledger.aclose()


async def test_what_ends_while_the_database_is_away_is_left_to_the_next_process(
    database: Database, tmp_path: Path
) -> None:
    away = Database.connect("postgresql://nobody@127.0.0.1:9/none", timeout_s=1)
    first = Ledger(away, Journal(tmp_path / "journals"))
    meter = make_meter(first)
    meter.begin_stream()
    meter.deliver(6)
    await meter.settle("stop")
    await first.aclose()
    await away.aclose()
    second = Ledger(database, Journal(tmp_path / "journals"))
    second.start()
    await second.caught_up()
    await second.aclose()
    assert [row[5:7] for row in await rows(database)] == [(6, "stop")]


async def test_reservations_whose_time_is_over_are_freed(database: Database, ledger: Ledger) -> None:
    org_id, _ = await budget_with_reservation(database, cost=200, expires="now()")
    assert await release_expired(database) == 1
    assert await release_expired(database) == 0
    async with database.begin() as connection:
        budget = (await connection.exec_driver_sql("SELECT cost_used, cost_held, num_running FROM org_budgets")).one()
    assert tuple(budget) == (0, 0, 0)
    # Its request lived on after all: it is billed, and nothing is freed twice.
    meter = make_meter(ledger, org_id=org_id)
    await meter.settle("stop")
    async with database.begin() as connection:
        budget = (await connection.exec_driver_sql("SELECT cost_used, cost_held, num_running FROM org_budgets")).one()
    assert tuple(budget) == (50, 0, 0)


async def test_reservations_of_requests_that_run_are_left_alone(database: Database) -> None:
    await budget_with_reservation(database, cost=200)
    assert await release_expired(database) == 0


async def budget_with_reservation(
    database: Database, cost: int, expires: str = "now() + interval '1 minute'"
) -> tuple[UUID, UUID]:
    """An organisation one of whose requests runs; its id, and that of who runs it."""
    org_id, holder = await make_org(database), new_id()
    async with database.begin() as connection:
        await connection.exec_driver_sql(
            "INSERT INTO reservations (request_id, org_id, key_id, holder, cost, tokens, expires_at)"
            f" VALUES ('{new_id()}', '{org_id}', '{KEY}', '{holder}', {cost}, 9, {expires})"
        )
        await connection.exec_driver_sql(f"UPDATE org_budgets SET cost_held = {cost}, tokens_held = 9, num_running = 1")
    return org_id, holder
