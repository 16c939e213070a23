"""Stripe's sums by the hour say what was counted; what was not is sent again, and nothing twice."""

from collections.abc import AsyncIterator
from contextlib import suppress
from datetime import datetime, timedelta
from itertools import combinations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app.billing import claims, outbox, reconcile
from app.billing.gateway import Gateway
from app.billing.outbox import LAG
from app.billing.reconcile import Difference, Event, uncounted
from app.billing.turns import Turns
from app.errors import StripeRefused, StripeUnavailable
from app.tables import new_id
from app.telemetry import METER_DRIFT, METER_EVENTS, METER_OUTBOX_ROWS, METER_WAITING_SECONDS
from tests.billing.metered import MINUTE, MONTH, TOKEN_VALUE
from tests.billing.stripe_world import START, StripeWorld
from tests.billing.test_outbox import EVENTS, HOUR, Shop, open_shop
from tests.simulators.stripe.simulator import API_KEY, Simulator


@pytest.fixture
async def impatient(simulator: Simulator) -> AsyncIterator[Gateway]:
    """A border that does not try again by itself."""
    gateway = Gateway(API_KEY, api_base=simulator.url, retries=0, timeout_s=10)
    yield gateway
    await gateway.aclose()


@pytest.fixture
async def shop(stripe_world: StripeWorld, impatient: Gateway) -> Shop:
    return await open_shop(stripe_world, impatient)


async def compare(shop: Shop) -> list[Difference]:
    now = shop.world.now
    return await reconcile.compare(shop.world.database, shop.gateway, START, now, now, Turns("compare.failed"))


async def drift(shop: Shop) -> float:
    await reconcile.watch(shop.world.database, shop.gateway, shop.world.now)
    return float(METER_DRIFT._value.get())


async def lose(shop: Shop, index: int = 0) -> None:
    """Stripe forgets an event that it had counted, and tells nobody."""
    (row,) = [row for row in shop.simulator.world.all("_usage") if row["customer"] == shop.customer]
    row["events"].pop(index)


def events(doubted: list[int], taken: list[int]) -> list[Event]:
    return [Event(new_id(), value, True) for value in doubted] + [Event(new_id(), value, False) for value in taken]


@given(st.lists(st.integers(1, 50), max_size=7), st.lists(st.integers(1, 50), max_size=4), st.data())
def test_what_is_said_to_be_lost_adds_up(doubted: list[int], taken: list[int], data: st.DataObject) -> None:
    lost = data.draw(st.lists(st.sampled_from(range(len(doubted))), unique=True)) if doubted else []
    known = events(doubted, taken)
    counted = sum(doubted) + sum(taken) - sum(doubted[index] for index in lost)
    found = uncounted(known, counted)
    assert found is not None
    values = {one.id: one.value for one in known if one.is_doubted}
    assert sum(values[one] for one in found) == sum(doubted[index] for index in lost)


@given(st.lists(st.integers(1, 50), max_size=6), st.integers(1, 300))
def test_what_no_selection_explains_is_not_explained(doubted: list[int], shortfall: int) -> None:
    sums = {sum(some) for size in range(len(doubted) + 1) for some in combinations(doubted, size)}
    found = uncounted(events(doubted, [1000]), sum(doubted) + 1000 - shortfall)
    assert (found is None) is (shortfall not in sums)


def test_more_than_we_know_of_says_that_all_is_counted() -> None:
    assert uncounted(events([5], [7]), 20) == []


def test_too_many_selections_are_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reconcile, "MAX_SELECTIONS", 100)
    many = events([2**number for number in range(20)], [])
    assert uncounted(many, 1) is None
    assert uncounted(many, 0) == [one.id for one in many]


async def test_what_is_counted_shows_no_difference(shop: Shop) -> None:
    await shop.use(*(START + number * 20 * MINUTE for number in range(9)))
    await shop.go(START + 3 * HOUR + 20 * MINUTE)
    assert await compare(shop) == []
    assert await drift(shop) == 0


async def test_a_loss_that_nobody_told_of_is_shown_and_left_to_a_person(shop: Shop) -> None:
    await shop.use(START, START + 2 * HOUR, tokens=4000)
    await shop.go(START + 3 * HOUR)
    await lose(shop)
    await shop.go(START + 5 * HOUR)
    (one,) = await compare(shop)
    assert (one.taken, one.counted, one.hour.start) == (4000 * TOKEN_VALUE, 0, START)
    assert await drift(shop) == 600
    assert (await shop.states(), shop.total) == (["acked", "acked"], 4000)
    assert await reconcile.doubt(shop.world.database, [one], shop.world.now) == 1
    await shop.go(START + 5 * HOUR + MINUTE)
    assert (await shop.states(), shop.total) == (["replaced", "acked", "acked"], 8000)
    await shop.go(START + 8 * HOUR)
    assert await drift(shop) == 0


async def test_usage_that_is_not_ours_is_shown_and_not_doubted(shop: Shop) -> None:
    await shop.use(START + HOUR)
    await shop.go(START + 2 * HOUR)
    await shop.gateway.send_meter_event("tollgate_usage", shop.customer, 3000, START, "theirs", idempotency_key="x")
    await shop.go(START + 4 * HOUR)
    (one,) = await compare(shop)
    assert (one.taken, one.counted) == (0, 3000)
    assert await drift(shop) == 3
    assert await reconcile.doubt(shop.world.database, [one], shop.world.now) == 0


async def test_an_hour_that_still_moves_is_left_out(shop: Shop) -> None:
    await shop.use(START)
    await shop.go(START + 17 * MINUTE)
    await lose(shop)
    shop.world.go(START + 70 * MINUTE)
    assert await compare(shop) == []
    shop.world.go(START + 17 * MINUTE + LAG)
    assert len(await compare(shop)) == 1


async def test_one_organisation_can_be_compared(stripe_world: StripeWorld, impatient: Gateway) -> None:
    one, other = [await open_shop(stripe_world, impatient) for _ in range(2)]
    for shop in (one, other):
        await shop.use(START)
    await one.go(START + 17 * MINUTE)
    for shop in (one, other):
        await lose(shop)
    await one.go(START + 3 * HOUR)
    now = one.world.now
    turns = Turns("compare.failed")
    found = await reconcile.compare(one.world.database, impatient, START, now, now, turns, org_id=other.org_id)
    assert [difference.hour.customer for difference in found] == [other.customer]


async def test_a_customer_that_stripe_knows_no_more_keeps_nobody_from_being_compared(
    stripe_world: StripeWorld, impatient: Gateway
) -> None:
    gone, other = await two_shops_with_a_loss(stripe_world, impatient)
    await gone.go(START + 3 * HOUR)
    stripe_world.v1.customers.delete(gone.customer)
    now, database = stripe_world.now, stripe_world.database
    with pytest.raises(StripeRefused):
        await reconcile.watch(database, impatient, now)
    assert METER_DRIFT._value.get() == 600
    assert [difference.hour.customer for difference in await compare(other)] == [other.customer]


async def test_a_customer_that_stripe_knows_no_more_keeps_nobody_in_doubt(
    stripe_world: StripeWorld, impatient: Gateway
) -> None:
    gone, other = await two_shops_with_a_loss(stripe_world, impatient)
    await stripe_world.run("UPDATE stripe_meter_outbox SET state = 'reconcile', due_at = :at", at=stripe_world.now)
    stripe_world.v1.customers.delete(gone.customer)
    await other.settle_doubts()
    assert (await gone.states(), await other.states()) == (["rejected"], ["replaced", "pending"])
    (row,) = await gone.events()
    assert gone.customer in row.last_error


async def test_a_customer_whose_sums_are_refused_keeps_nobody_in_doubt(
    stripe_world: StripeWorld, impatient: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused, other = await two_shops_with_a_loss(stripe_world, impatient)
    await stripe_world.run("UPDATE stripe_meter_outbox SET state = 'reconcile', due_at = :at", at=stripe_world.now)
    asked = impatient.meter_sums

    async def refuse(meter_id: str, customer: str, *span: datetime) -> dict[datetime, int]:
        if customer == refused.customer:
            raise StripeRefused("This key may not read meters.", stripe_status=403)
        return await asked(meter_id, customer, *span)

    monkeypatch.setattr(impatient, "meter_sums", refuse)
    with pytest.raises(StripeRefused):
        await other.settle_doubts()
    assert (await refused.states(), await other.states()) == (["reconcile"], ["replaced", "pending"])


async def two_shops_with_a_loss(world: StripeWorld, gateway: Gateway) -> tuple[Shop, Shop]:
    """Of each an event that Stripe has forgotten; the customer of the first is the first of all."""
    shops = [await open_shop(world, gateway) for _ in range(2)]
    for shop in shops:
        await shop.use(START, tokens=4000)
    await shops[0].go(START + 17 * MINUTE)
    for shop in shops:
        await lose(shop)
    first, second = sorted(shops, key=lambda shop: shop.customer)
    return first, second


async def test_many_days_are_compared_page_by_page(shop: Shop) -> None:
    last = START + timedelta(days=9)
    await shop.use(START, last)
    await shop.go(last + 20 * MINUTE)
    await shop.go(last + 3 * HOUR)
    assert await compare(shop) == []


async def test_sums_that_lag_charge_nothing_twice(shop: Shop) -> None:
    """A doubted event was counted; the sum does not have it for fifty minutes."""
    await shop.use(START, tokens=5)
    shop.simulator.hazard("error_500_after_commit", times=1, path=EVENTS)
    shop.simulator.hazard("summaries_lag", seconds=3000)
    await shop.go(START + 17 * MINUTE)
    await shop.world.run("UPDATE stripe_meter_outbox SET state = 'reconcile', due_at = :at", at=shop.world.now + LAG)
    for minutes in (20, 40, 70, 80):
        await shop.go(START + minutes * MINUTE)
    assert (await shop.states(), shop.total) == (["acked"], 5)


async def test_an_hour_with_events_under_way_is_looked_at_later(shop: Shop) -> None:
    await shop.use(START, tokens=5)
    await shop.use(START + 20 * MINUTE, tokens=7)
    shop.simulator.hazard("meter_event_rejected", times=1)
    await shop.go(START + 40 * MINUTE)
    await shop.world.settle()
    await shop.world.run(
        "UPDATE stripe_meter_outbox SET state = 'sending', due_at = :at WHERE state = 'acked'", at=START + MONTH
    )
    await shop.go(START + 3 * HOUR)
    assert await shop.states() == ["reconcile", "sending"]
    await shop.world.run("UPDATE stripe_meter_outbox SET due_at = :at WHERE state = 'sending'", at=START)
    await shop.go(START + 4 * HOUR)
    await shop.go(START + 5 * HOUR + MINUTE)
    assert (sorted(await shop.states()), shop.total) == (["acked", "acked", "replaced"], 12)


async def test_what_no_selection_explains_is_left_to_a_person(shop: Shop) -> None:
    await shop.use(START, tokens=5)
    await shop.use(START + 20 * MINUTE, tokens=7)
    shop.simulator.hazard("meter_event_rejected", times=1)
    await shop.go(START + 40 * MINUTE)
    await shop.world.settle()
    await lose(shop)
    before = METER_EVENTS.labels("unexplained")._value.get()
    await shop.go(START + 3 * HOUR)
    assert METER_EVENTS.labels("unexplained")._value.get() == before + 1
    rows = await shop.events()
    assert [row.state for row in rows] == ["reconcile", "acked"]
    assert rows[0].last_error == "Stripe's sum of its hour fits no selection of events"
    # A person doubts the rest as well.
    assert await compare(shop) == []  # it still moves
    await shop.world.run("UPDATE stripe_meter_outbox SET state = 'reconcile', due_at = :at", at=shop.world.now)
    await shop.go(START + 3 * HOUR + MINUTE)
    assert shop.total == 12


async def test_what_changes_meanwhile_is_looked_at_again(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another worker settles the hour while this one asks Stripe."""
    await shop.use(START, tokens=5)
    shop.simulator.hazard("meter_event_rejected", times=1)
    await shop.go(START + 17 * MINUTE)
    await shop.world.settle()
    shop.world.go(START + 2 * HOUR)
    asked = shop.gateway.meter_sums

    async def settle_first(*arguments: object) -> object:
        monkeypatch.setattr(shop.gateway, "meter_sums", asked)
        await shop.settle_doubts()
        return await asked(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(shop.gateway, "meter_sums", settle_first)
    await shop.settle_doubts()
    assert await shop.states() == ["replaced", "pending"]


async def test_what_waits_for_the_renewal_is_kept_in_doubt(shop: Shop) -> None:
    end = START + timedelta(days=28)
    await shop.use(end - 20 * MINUTE, tokens=5)
    shop.simulator.hazard("meter_event_rejected", times=1)
    await shop.go(end - 3 * MINUTE)
    await shop.world.settle()
    # Nobody hears of the renewal.
    shop.world.go(end + 2 * HOUR)
    await shop.settle_doubts()
    assert await shop.states() == ["reconcile"]
    await shop.world.settle()
    shop.world.go(end + 3 * HOUR)
    await shop.settle_doubts()
    await shop.drain()
    assert (await shop.states(), shop.total) == (["replaced", "acked"], 5)


async def test_doubts_wait_while_stripe_is_away(shop: Shop) -> None:
    await shop.use(START, tokens=5)
    shop.simulator.hazard("meter_event_rejected", times=1)
    await shop.go(START + 17 * MINUTE)
    await shop.world.settle()
    shop.world.go(START + 2 * HOUR)
    shop.simulator.hazard("outage", times=1)
    with pytest.raises(StripeUnavailable):
        await shop.settle_doubts()
    await shop.go(START + 2 * HOUR + MINUTE)
    assert shop.total == 5


async def test_an_unknown_report_is_refused(shop: Shop) -> None:
    with pytest.raises(StripeRefused):
        await outbox.on_error_report(shop.world.database, shop.gateway, "evt_nothing", shop.world.now)


async def test_what_waits_is_measured(shop: Shop) -> None:
    async def measured() -> tuple[float, list[float]]:
        await reconcile.measure(shop.world.database, shop.world.now)
        states = [METER_OUTBOX_ROWS.labels(state)._value.get() for state in ("pending", "reconcile", "rejected")]
        return METER_WAITING_SECONDS._value.get(), states

    assert await measured() == (0, [0, 0, 0])
    await shop.use(START)
    shop.world.go(START + 14 * MINUTE)
    assert await measured() == (14 * 60, [0, 0, 0])
    shop.simulator.hazard("outage", path=EVENTS)
    await shop.go(START + 16 * MINUTE)
    assert await measured() == (61, [1, 0, 0])
    await shop.world.run("UPDATE stripe_meter_outbox SET state = 'sending'")
    assert await measured() == (61, [0, 0, 0])
    await shop.world.run("UPDATE stripe_meter_outbox SET state = 'rejected'")
    assert await measured() == (60, [0, 0, 1])
    await shop.world.run("DELETE FROM metering_periods")
    assert await measured() == (0, [0, 0, 1])


# Any order of what can go wrong.

ON_CALLS = ("response_lost", "error_500", "error_500_after_commit", "conflict_409", "rate_limit_429", "outage")
STEPS = st.one_of(
    st.tuples(st.just("use"), st.integers(1, 9)),
    st.tuples(st.just("wait"), st.sampled_from([1, 6, 15, 31, 65, 240, 1500])),
    st.tuples(st.just("wait"), st.sampled_from([15, 31])),
    st.tuples(st.just("flush"), st.none()),
    st.tuples(st.just("hazard"), st.sampled_from(ON_CALLS)),
    st.tuples(st.just("hazard"), st.sampled_from(["duplicate_identifier", "meter_event_rejected"])),
    st.tuples(st.just("calm"), st.none()),
)


class Trouble:
    """A customer, and what goes wrong with Stripe."""

    def __init__(self, shop: Shop) -> None:
        self.shop = shop
        self.used = 0
        self.read = {report["id"] for report in shop.simulator.world.all("v2.core.event")}

    async def do(self, step: str, argument: int | str | None) -> None:
        world = self.shop.world
        match step, argument:
            case "use", int(tokens):
                self.used += tokens
                await self.shop.use(world.now, tokens=tokens)
            case "wait", int(minutes):
                await self.go(minutes)
            case "flush", _:
                await claims.flush(world.database, self.shop.org_id, world.now)
            case "hazard", str(name):
                self.shop.simulator.hazard(name, times=2, path="/v1/billing/meter")
            case _:
                self.shop.simulator.control("DELETE", "/hazards")

    async def go(self, minutes: int) -> None:
        """Time passes, and each job has its turn; one that fails while Stripe is away has another."""
        shop = self.shop
        shop.world.go(shop.world.now + minutes * MINUTE)
        for job in (self.read_reports, shop.claim, shop.drain, shop.settle_doubts, shop.drain):
            with suppress(StripeUnavailable):
                await job()

    async def read_reports(self) -> None:
        for report in self.shop.simulator.world.all("v2.core.event"):
            if report["id"] not in self.read:
                await outbox.on_error_report(
                    self.shop.world.database, self.shop.gateway, report["id"], self.shop.world.now
                )
                self.read.add(report["id"])

    async def end(self) -> None:
        self.shop.simulator.control("DELETE", "/hazards")
        for _ in range(3):
            await self.go(15)
            await self.go(25 * 60)
            await self.go(70)


@pytest.mark.slow
@given(st.lists(STEPS, min_size=3, max_size=14))
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_whatever_goes_wrong_all_usage_counts_once(
    stripe_world: StripeWorld, impatient: Gateway, steps: list[tuple[str, int | str | None]]
) -> None:
    # A clock takes three customers only.
    stripe_world.restart()
    trouble = Trouble(await open_shop(stripe_world, impatient))
    for step, argument in steps:
        await trouble.do(step, argument)
    await trouble.end()
    rows = await trouble.shop.events()
    assert {row.state for row in rows} <= {"acked", "replaced"}
    acked = sum(row.value for row in rows if row.state == "acked") // TOKEN_VALUE
    assert (trouble.shop.total, acked) == (trouble.used, trouble.used)
