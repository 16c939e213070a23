"""What was claimed reaches Stripe, and counts there once, whatever happens to a call."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import insert, text

from app.billing import claims, outbox, reconcile
from app.billing.gateway import Gateway
from app.billing.outbox import LAG, LEASE, UNIQUE_FOR
from app.errors import StripeUnavailable
from app.tables import Invoice
from tests.billing.metered import MINUTE, SECOND, TOKEN_VALUE, outbox_of, rows_of, use
from tests.billing.stripe_world import START, StripeWorld
from tests.simulators.stripe.simulator import API_KEY, Simulator

END = datetime(2027, 2, 28, 12, tzinfo=START.tzinfo)
"""Of the first period."""
HOUR = timedelta(hours=1)
EVENTS = "/v1/billing/meter_events"
NO_INVOICE = "Stripe has not counted it, and there is no invoice any more that it could be on"


@dataclass(slots=True)
class Shop:
    """A customer of a simulated Stripe, whose usage is claimed and sent as time passes."""

    world: StripeWorld
    gateway: Gateway
    org_id: UUID
    customer: str

    @property
    def simulator(self) -> Simulator:
        return self.world.simulator

    async def use(self, *moments: datetime, tokens: int = 1) -> None:
        await use(self.world.database, self.org_id, *moments, tokens=tokens)

    async def claim(self) -> None:
        await claims.claim_due(self.world.database, self.world.now)

    async def drain(self) -> None:
        await outbox.drain(self.world.database, self.gateway, now=self.world.now)

    async def settle_doubts(self) -> None:
        await reconcile.settle_doubts(self.world.database, self.gateway, self.world.now)

    async def go(self, moment: datetime) -> None:
        """Time passes, Stripe tells what happens, and the worker does what it does every minute."""
        self.world.go(moment)
        await self.world.settle()
        await self.claim()
        await self.drain()
        await self.settle_doubts()
        await self.drain()

    async def events(self) -> list[Any]:
        return list(await outbox_of(self.world.database, self.org_id))

    async def states(self) -> list[str]:
        return [row.state for row in await self.events()]

    def counted(self) -> list[tuple[int, int]]:
        """Tokens and unix time of each event that Stripe counts."""
        rows = [row for row in self.simulator.world.all("_usage") if row["customer"] == self.customer]
        return [(event["value"] // TOKEN_VALUE, event["timestamp"]) for row in rows for event in row["events"]]

    @property
    def total(self) -> int:
        return sum(tokens for tokens, _ in self.counted())


async def open_shop(world: StripeWorld, gateway: Gateway) -> Shop:
    org_id, customer = await world.customer()
    world.subscribe(customer)
    await world.settle()
    return Shop(world, gateway, org_id, customer)


@pytest.fixture
async def impatient(simulator: Simulator) -> AsyncIterator[Gateway]:
    """A border that does not try again by itself."""
    gateway = Gateway(API_KEY, api_base=simulator.url, retries=0, timeout_s=10)
    yield gateway
    await gateway.aclose()


@pytest.fixture
async def shop(stripe_world: StripeWorld, impatient: Gateway) -> Shop:
    return await open_shop(stripe_world, impatient)


async def test_a_window_is_counted(shop: Shop) -> None:
    await shop.use(START, START + MINUTE, tokens=5)
    await shop.go(START + 17 * MINUTE)
    (row,) = await shop.events()
    assert (row.state, row.acked_at, row.attempts, row.last_error) == ("acked", shop.world.now, 1, None)
    assert shop.counted() == [(10, int(row.event_ts.timestamp()))]
    await shop.go(START + 18 * MINUTE)
    assert shop.total == 10


@pytest.mark.parametrize(
    ("hazard", "attempts"),
    [
        ("response_lost", 2),
        ("error_500", 2),
        ("error_500_after_commit", 2),
        ("conflict_409", 2),
        ("rate_limit_429", 2),
        ("outage", 2),
        ("duplicate_identifier", 1),
    ],
)
async def test_a_call_that_fails_is_repeated_and_counts_once(shop: Shop, hazard: str, attempts: int) -> None:
    await shop.use(START, tokens=5)
    shop.simulator.hazard(hazard, times=1, path=EVENTS)
    await shop.go(START + 17 * MINUTE)
    if attempts > 1:
        (row,) = await shop.events()
        assert row.state == "pending"
        # Not before a moment has passed.
        await shop.go(shop.world.now + outbox.backoff(1) - SECOND)
        assert (await shop.events())[0].attempts == 1
    await shop.go(shop.world.now + 5 * MINUTE)
    (row,) = await shop.events()
    assert (row.state, row.attempts, row.last_error) == ("acked", attempts, None)
    assert shop.simulator.strikes(hazard) == 1
    assert shop.counted() == [(5, int(row.event_ts.timestamp()))]


async def test_the_library_may_repeat_a_call_itself(stripe_world: StripeWorld, gateway: Gateway) -> None:
    shop = await open_shop(stripe_world, gateway)
    await shop.use(START, tokens=5)
    shop.simulator.hazard("response_lost", times=1, path=EVENTS)
    await shop.go(START + 17 * MINUTE)
    assert (await shop.states(), shop.total) == (["acked"], 5)


async def test_an_hour_of_errors_ends(shop: Shop) -> None:
    """An answer of 500 is remembered with its idempotency key; each attempt has another."""
    await shop.use(START, tokens=5)
    shop.simulator.hazard("error_500", path=EVENTS)
    for minutes in range(17, 80, 5):
        await shop.go(START + minutes * MINUTE)
    shop.simulator.control("DELETE", "/hazards")
    await shop.go(START + 90 * MINUTE)
    assert (await shop.states(), shop.total) == (["acked"], 5)


async def test_a_customers_events_are_sent_one_at_a_time_and_in_order(shop: Shop) -> None:
    moments = [START + number * 15 * MINUTE for number in range(8)]
    for tokens, moment in enumerate(moments, 1):
        await shop.use(moment, tokens=tokens)
    shop.simulator.hazard("one_call_at_a_time", seconds=0.02)
    await shop.go(START + 3 * HOUR)
    assert await shop.states() == ["acked"] * 8
    assert [row.attempts for row in await shop.events()] == [1] * 8
    assert [tokens for tokens, _ in shop.counted()] == [1, 2, 3, 4, 5, 6, 7, 8]


async def test_a_turn_ends_and_the_next_goes_on(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox, "MAX_TURN_S", 0.0)
    await shop.use(*(START + number * 15 * MINUTE for number in range(3)))
    shop.world.go(START + HOUR)
    await shop.claim()
    await shop.drain()
    assert await shop.states() == ["acked", "pending", "pending"]
    with pytest.raises(StripeUnavailable):
        await outbox.drain(shop.world.database, shop.gateway, now=shop.world.now, org_id=shop.org_id)
    await shop.drain()
    assert await shop.states() == ["acked"] * 3


async def test_two_workers_count_once(shop: Shop) -> None:
    for number in range(6):
        await shop.use(START + number * 15 * MINUTE)
    shop.simulator.hazard("one_call_at_a_time", seconds=0.02)
    shop.world.go(START + 2 * HOUR)
    await shop.claim()
    await asyncio.gather(*(shop.drain() for _ in range(4)))
    await shop.go(START + 2 * HOUR + 10 * MINUTE)
    assert await shop.states() == ["acked"] * 6
    assert shop.total == 6


async def test_a_customer_who_fails_holds_up_nobody_else(stripe_world: StripeWorld, impatient: Gateway) -> None:
    shops = [await open_shop(stripe_world, impatient) for _ in range(3)]
    for shop in shops:
        await shop.use(START, START + 20 * MINUTE)
    shops[0].simulator.hazard("rate_limit_429", times=1, path=EVENTS)
    await shops[0].go(START + 40 * MINUTE)
    states = [await shop.states() for shop in shops]
    assert sorted(states) == [["acked", "acked"], ["acked", "acked"], ["pending", "pending"]]


async def test_while_stripe_is_away_few_calls_are_made(stripe_world: StripeWorld, impatient: Gateway) -> None:
    shops = [await open_shop(stripe_world, impatient) for _ in range(3)]
    for shop in shops:
        await shop.use(*(START + number * 15 * MINUTE for number in range(4)))
    shops[0].simulator.hazard("outage", path=EVENTS)
    await shops[0].go(START + 2 * HOUR)
    await shops[0].drain()
    assert shops[0].simulator.strikes("outage") == 3


async def test_what_was_under_way_when_the_worker_was_killed_is_sent_again(shop: Shop) -> None:
    await shop.use(START)
    shop.world.go(START + 17 * MINUTE)
    await shop.claim()
    async with shop.world.database.begin() as connection:
        (event,) = await outbox._take(connection, shop.world.now, None)
    await outbox._attempt(shop.gateway, event)  # and killed before its outcome was written
    await shop.drain()
    assert await shop.states() == ["sending"]
    await shop.go(shop.world.now + LEASE)
    assert (await shop.states(), shop.total) == (["acked"], 1)


async def test_what_stripe_does_not_take_is_left_to_a_person(shop: Shop) -> None:
    await shop.use(START)
    shop.world.go(START + 17 * MINUTE)
    await shop.claim()
    # A clock that runs wrong: the event is from a future that Stripe does not take.
    await shop.world.run("ALTER TABLE stripe_meter_outbox DISABLE TRIGGER refuse_other_event")
    await shop.world.run("UPDATE stripe_meter_outbox SET event_ts = event_ts + interval '1 day'")
    await shop.world.run("ALTER TABLE stripe_meter_outbox ENABLE TRIGGER refuse_other_event")
    await shop.drain()
    (row,) = await shop.events()
    assert row.state == "rejected"
    assert "5 minutes in the future" in row.last_error
    await shop.go(START + 2 * HOUR)
    assert (await shop.events())[0].attempts == 1


async def test_what_may_be_forgotten_is_not_sent_again(shop: Shop) -> None:
    """It was counted, and Stripe no longer knows its identifier."""
    await shop.use(START, tokens=5)
    shop.simulator.hazard("error_500_after_commit", times=1, path=EVENTS)
    await shop.go(START + 17 * MINUTE)
    shop.simulator.hazard("outage", path=EVENTS)
    await shop.go(START + 17 * MINUTE + UNIQUE_FOR - SECOND)
    assert await shop.states() == ["pending"]
    shop.simulator.control("DELETE", "/hazards")
    shop.world.go(START + 17 * MINUTE + timedelta(hours=25))
    await shop.drain()
    assert await shop.states() == ["reconcile"]
    await shop.go(shop.world.now + LAG + SECOND)
    assert (await shop.states(), shop.total) == (["acked"], 5)


async def test_what_never_arrived_is_sent_as_another_event(shop: Shop) -> None:
    """A day of outage."""
    await shop.use(START, tokens=5)
    shop.simulator.hazard("error_500", path=EVENTS)
    await shop.go(START + 17 * MINUTE)
    shop.simulator.control("DELETE", "/hazards")
    await shop.go(START + timedelta(hours=25))
    assert await shop.states() == ["reconcile"]
    await shop.go(shop.world.now + LAG + SECOND)
    old, new = await shop.events()
    assert (old.state, new.state, new.replaces, new.seq) == ("replaced", "acked", old.id, 1)
    assert (new.value, new.event_ts) == (old.value, shop.world.now)
    assert shop.counted() == [(5, int(shop.world.now.timestamp()))]


async def test_what_misses_its_invoice_goes_on_the_next(shop: Shop) -> None:
    """Stripe was away around the end of a period, and nothing had been sent."""
    await shop.use(END - 5 * MINUTE, tokens=5)
    shop.world.go(END + 2 * MINUTE)
    await shop.world.settle()
    await shop.claim()
    await shop.go(END + 56 * MINUTE)
    old, new = await shop.events()
    assert (old.state, new.state, new.replaces) == ("replaced", "acked", old.id)
    assert shop.counted() == [(5, int((END + 56 * MINUTE).timestamp()))]


async def test_what_may_have_missed_its_invoice_is_looked_up(shop: Shop) -> None:
    await shop.use(END - 5 * MINUTE, tokens=5)
    shop.simulator.hazard("outage", path=EVENTS)
    await shop.go(END + 2 * MINUTE)
    shop.simulator.control("DELETE", "/hazards")
    await shop.go(END + 56 * MINUTE)
    assert (await shop.states(), shop.total) == (["reconcile"], 0)
    await shop.go(END + 56 * MINUTE + LAG)
    assert (await shop.states(), shop.total) == (["replaced", "acked"], 5)


async def test_what_was_invoiced_early_goes_on_the_next(shop: Shop) -> None:
    await shop.use(END - 5 * MINUTE, tokens=5)
    shop.world.go(END + 2 * MINUTE)
    await shop.world.settle()
    await shop.claim()
    await invoiced_at(shop, END)
    await shop.drain()
    assert await shop.states() == ["replaced", "acked"]


async def test_what_stripe_has_invoiced_ahead_of_our_time_waits(shop: Shop) -> None:
    """A simulated clock was set forward: the period that runs here is over there, also for what would replace it."""
    await shop.use(START + MINUTE)
    shop.world.go(START + 17 * MINUTE)
    await shop.claim()
    await invoiced_at(shop, END)
    await shop.drain()
    (row,) = await shop.events()
    assert (row.state, row.last_error) == ("pending", "no period's invoice can take it")


async def invoiced_at(shop: Shop, moment: datetime) -> None:
    """The subscription's period has an invoice that is final."""
    async with shop.world.database.begin() as connection:
        amounts = dict.fromkeys(("subtotal", "total", "amount_due", "amount_paid"), 0)
        times = dict.fromkeys(("period_start", "period_end", "created", "finalized_at", "synced_at"), moment)
        found = await connection.execute(text("SELECT stripe_subscription_id FROM subscriptions"))
        row = {"id": "in_1", "org_id": shop.org_id, "stripe_subscription_id": found.scalar_one(), "status": "open"}
        await connection.execute(insert(Invoice).values(**row, **amounts, **times, lines=[]))


async def test_what_no_period_can_take_yet_waits(shop: Shop) -> None:
    """Nobody has heard of the renewal, and the invoice takes no more."""
    await shop.use(END - 5 * MINUTE)
    shop.world.go(END + 2 * MINUTE)
    await shop.claim()
    shop.world.go(END + 56 * MINUTE)
    await shop.drain()
    await shop.drain()
    assert await shop.states() == ["pending"]
    with pytest.raises(StripeUnavailable):
        await outbox.drain(shop.world.database, shop.gateway, org_id=shop.org_id, now=shop.world.now)
    await shop.world.settle()
    await shop.go(END + 72 * MINUTE)
    assert (await shop.states(), shop.total) == (["replaced", "acked"], 1)


async def test_what_no_period_will_take_is_left_to_a_person(shop: Shop) -> None:
    """Stripe was away until the last invoice was closed, and nothing had been sent."""
    await shop.use(START + MINUTE)
    shop.world.go(START + 17 * MINUTE)
    await shop.claim()
    (subscription,) = shop.world.v1.subscriptions.list({"customer": shop.customer}).data
    shop.world.v1.subscriptions.cancel(subscription.id)
    await shop.go(START + 80 * MINUTE)
    (row,) = await shop.events()
    assert (row.state, row.last_error, shop.total) == ("rejected", NO_INVOICE, 0)
    # Until there is another subscription.
    shop.world.subscribe(shop.customer)
    await shop.world.settle()
    assert await outbox.retry_rejected(shop.world.database) == 1
    await shop.go(START + 90 * MINUTE)
    assert (await shop.states(), shop.total) == (["replaced", "acked"], 1)


async def test_what_is_doubted_while_it_is_taken_is_not_sent(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was taken by Stripe before, without an answer, and reported as not counted just now."""
    await shop.use(START)
    shop.world.go(START + 17 * MINUTE)
    await shop.claim()
    looked_at = outbox._diverted

    async def told_meanwhile(*arguments: Any) -> bool:
        await shop.world.run("UPDATE stripe_meter_outbox SET state = 'reconcile'")
        return await looked_at(*arguments)

    monkeypatch.setattr(outbox, "_diverted", told_meanwhile)
    await shop.drain()
    assert (await shop.states(), shop.total) == (["reconcile"], 0)


async def test_whoever_waits_for_it_is_not_held_back_by_a_failure(shop: Shop) -> None:
    await shop.use(START, tokens=5)
    shop.simulator.hazard("outage", times=2, path=EVENTS)
    await shop.go(START + 17 * MINUTE)
    await shop.use(START + 20 * MINUTE, tokens=2)
    shop.world.go(START + 25 * MINUTE)
    await claims.flush(shop.world.database, shop.org_id, shop.world.now)
    with pytest.raises(StripeUnavailable, match="could not be reported"):
        await outbox.drain(shop.world.database, shop.gateway, org_id=shop.org_id, now=shop.world.now)
    await outbox.drain(shop.world.database, shop.gateway, org_id=shop.org_id, now=shop.world.now)
    assert (await shop.states(), shop.total) == (["acked", "acked"], 7)


async def test_whoever_waits_for_it_sends_nobody_elses(stripe_world: StripeWorld, impatient: Gateway) -> None:
    one, other = [await open_shop(stripe_world, impatient) for _ in range(2)]
    for shop in (one, other):
        await shop.use(START)
    one.world.go(START + 17 * MINUTE)
    await one.claim()
    await outbox.drain(one.world.database, impatient, org_id=one.org_id, now=one.world.now)
    assert (one.total, other.total) == (1, 0)


async def test_an_event_that_was_not_counted_after_all_is_replaced(shop: Shop) -> None:
    """Stripe took it, and told later that it was wrong."""
    await shop.use(START, tokens=5)
    await shop.use(START + 20 * MINUTE, tokens=7)
    shop.simulator.hazard("meter_event_rejected", times=1)
    await shop.go(START + 40 * MINUTE)
    assert (await shop.states(), shop.total) == (["acked", "acked"], 7)
    await shop.world.settle()
    await shop.world.settle()
    assert await shop.states() == ["reconcile", "acked"]
    assert (await shop.events())[0].last_error == "meter_event_invalid_value"
    await shop.go(START + 40 * MINUTE + LAG + SECOND)
    assert sorted(await shop.states()) == ["acked", "acked", "replaced"]
    assert sorted(tokens for tokens, _ in shop.counted()) == [5, 7]


async def test_a_report_that_names_only_samples_doubts_all_that_was_taken_then(shop: Shop) -> None:
    await shop.use(START, tokens=5)
    await shop.use(START + 20 * MINUTE, tokens=7)
    shop.simulator.hazard("meter_event_rejected", times=1)
    await shop.go(START + 40 * MINUTE)
    shop.simulator.flush()
    (report,) = shop.simulator.world.all("v2.core.event")
    report["data"]["reason"].update(error_count=2)
    # Nobody's: another program reports usage to the same account.
    report["data"]["reason"]["error_types"][0]["sample_errors"][0]["request"]["identifier"] = "req_1"
    for _ in range(2):
        await outbox.on_error_report(shop.world.database, shop.gateway, report["id"], shop.world.now)
    assert await shop.states() == ["reconcile", "reconcile"]
    await shop.go(START + 40 * MINUTE + LAG + SECOND)
    assert (await shop.states(), shop.total) == (["replaced", "acked", "acked"], 12)


async def test_a_report_about_somebody_elses_meter_doubts_nothing(shop: Shop) -> None:
    await shop.use(START, tokens=5)
    shop.simulator.hazard("meter_event_rejected", times=1)
    await shop.go(START + 17 * MINUTE)
    shop.simulator.flush()
    theirs = {"display_name": "Theirs", "event_name": "theirs", "default_aggregation": {"formula": "sum"}}
    (report,) = shop.simulator.world.all("v2.core.event")
    report["related_object"]["id"] = shop.world.v1.billing.meters.create(theirs).id
    report["data"]["reason"].update(error_count=2)
    report["data"]["reason"]["error_types"][0]["sample_errors"][0]["request"]["identifier"] = "req_1"
    await outbox.on_error_report(shop.world.database, shop.gateway, report["id"], shop.world.now)
    assert await shop.states() == ["acked"]


async def test_a_report_of_what_is_settled_changes_nothing(shop: Shop) -> None:
    await shop.use(START, tokens=5)
    shop.simulator.hazard("meter_event_rejected", times=1)
    await shop.go(START + 17 * MINUTE)
    await shop.world.settle()
    await shop.go(START + 17 * MINUTE + LAG + SECOND)
    assert await shop.states() == ["replaced", "acked"]
    (report,) = shop.simulator.world.all("v2.core.event")
    await outbox.on_error_report(shop.world.database, shop.gateway, report["id"], shop.world.now)
    assert await shop.states() == ["replaced", "acked"]


async def test_a_meter_that_is_missing_is_noticed_and_made_good(shop: Shop) -> None:
    """Somebody archived it by hand."""
    await shop.use(START, tokens=5)
    meter = await shop.gateway.meter_id("tollgate_usage")
    shop.world.v1.billing.meters.deactivate(meter)
    await shop.go(START + 17 * MINUTE)
    assert (await shop.states(), shop.total) == (["acked"], 0)
    shop.world.v1.billing.meters.reactivate(meter)
    await shop.world.settle()
    assert await shop.states() == ["reconcile"]
    await shop.go(START + 17 * MINUTE + LAG + SECOND)
    assert (await shop.states(), shop.total) == (["replaced", "acked"], 5)


async def test_what_is_left_of_an_ended_subscription_is_left_to_a_person(shop: Shop) -> None:
    await shop.use(START, tokens=5)
    shop.simulator.hazard("meter_event_rejected", times=1)
    await shop.go(START + 17 * MINUTE)
    await shop.world.settle()
    (row,) = await shop.world.rows("SELECT stripe_subscription_id AS id FROM subscriptions")
    shop.world.v1.subscriptions.cancel(row.id)
    await shop.world.settle()
    await shop.go(START + 17 * MINUTE + LAG + SECOND)
    (row,) = await shop.events()
    assert row.state == "rejected"
    assert "no invoice" in row.last_error


async def test_the_newer_subscription_takes_what_the_older_could_not(shop: Shop) -> None:
    await shop.use(START, tokens=5)
    shop.simulator.hazard("meter_event_rejected", times=1)
    await shop.go(START + 17 * MINUTE)
    await shop.world.settle()
    (row,) = await shop.world.rows("SELECT stripe_subscription_id AS id FROM subscriptions")
    shop.world.v1.subscriptions.cancel(row.id)
    second = shop.world.subscribe(shop.customer, "growth")
    await shop.world.settle()
    await shop.go(START + 17 * MINUTE + LAG + SECOND)
    _, new = await shop.events()
    subscriptions = await rows_of(shop.world.database, "subscriptions", shop.org_id)
    assert {one.id: one.stripe_subscription_id for one in subscriptions}[new.subscription_id] == second
    assert (new.state, shop.total) == ("acked", 5)


async def test_what_was_refused_can_be_sent_once_more(shop: Shop) -> None:
    """The customer was deleted by mistake, say, and somebody has seen to it."""
    await shop.use(START, tokens=5)
    await shop.go(START + 17 * MINUTE)
    await shop.world.run("UPDATE stripe_meter_outbox SET state = 'rejected', due_at = now() + interval '1 year'")
    assert await outbox.retry_rejected(shop.world.database) == 1
    await shop.drain()
    assert (await shop.states(), shop.total) == (["acked"], 5)


@pytest.mark.parametrize(("attempts", "seconds"), [(1, 5), (2, 10), (6, 160), (7, 300), (10_000, 300)])
def test_failures_are_repeated_ever_more_rarely(attempts: int, seconds: int) -> None:
    assert outbox.backoff(attempts) == timedelta(seconds=seconds)
