"""Subscription schedules."""

from typing import Any

import pytest
import stripe

from tests.simulators.stripe.shop import Shop, at, item_of, lines
from tests.simulators.stripe.simulator import Simulator


def scheduled(shop: Shop, subscription: Any, *prices: str, end: str | None = None, **phase: Any) -> Any:
    """A schedule that replaces a subscription's prices when its present period ends."""
    schedules = shop.v1.subscription_schedules
    made = schedules.create({"from_subscription": subscription.id})
    now = made.phases[0]
    present = {
        "items": [{"price": entry.price} for entry in now["items"]],
        "start_date": now.start_date,
        "end_date": at(end) if end else now.end_date,
    }
    following = {"items": [{"price": price} for price in prices], "duration": {"interval": "month"}, **phase}
    return schedules.update(made.id, {"phases": [present, following]})


def test_schedule_of_a_subscription_begins_as_it_is(simulator: Simulator) -> None:
    shop = Shop(simulator)
    made = shop.subscribe()
    schedule = shop.v1.subscription_schedules.create({"from_subscription": made.id})
    assert (schedule.status, schedule.subscription, schedule.end_behavior) == ("active", made.id, "release")
    assert (schedule.current_phase.start_date, schedule.current_phase.end_date) == (at("2026-01-15"), at("2026-02-15"))
    assert [(entry.price, entry.quantity) for entry in schedule.phases[0]["items"]] == [
        (shop.month, 1),
        (shop.metered, None),
    ]
    assert shop.subscription(made.id).schedule == schedule.id
    with pytest.raises(stripe.InvalidRequestError, match="already managed"):
        shop.v1.subscription_schedules.create({"from_subscription": made.id})
    with pytest.raises(stripe.InvalidRequestError, match="managed by the subscription schedule"):
        shop.v1.subscriptions.update(made.id, {"cancel_at_period_end": True})


def test_downgrade_at_the_end_of_the_period_bills_each_period_at_its_own_prices(simulator: Simulator) -> None:
    shop = Shop(simulator)
    made = shop.subscribe()
    lower, dearer = shop.flat(1_000, "month"), shop.per_unit("0.02")
    schedule = scheduled(shop, made, lower, dearer)
    shop.use(100_000, "2026-01-15")
    shop.go("2026-02-15 00:30")
    [_, invoice] = shop.invoices()
    assert sorted((amount, quantity) for quantity, amount, _ in lines(invoice)) == [(1_000, 1), (1_000, 100_000)]
    # What comes in while the invoice is a draft is of the period that has ended, and so is its price.
    shop.use(5_000, "2026-02-14 23:59")
    shop.go("2026-02-15 02:00")
    assert (1_050, 105_000) in [(amount, quantity) for quantity, amount, _ in lines(shop.invoices()[-1])]
    assert [item.price.id for item in shop.subscription(made.id)["items"].data] == [lower, dearer]
    assert [item.id for item in shop.subscription(made.id)["items"].data] == [item.id for item in made["items"].data]
    shop.use(50_000, "2026-02-15")
    shop.go("2026-03-15 00:30")
    assert sorted((amount, quantity) for quantity, amount, _ in lines(shop.invoices()[-1])) == [
        (1_000, 1),
        (1_000, 50_000),
    ]
    ended = shop.v1.subscription_schedules.retrieve(schedule.id)
    assert (ended.status, ended.released_subscription) == ("released", made.id)
    assert shop.subscription(made.id).schedule is None


def test_phase_without_proration_still_bills_the_period_that_ends(simulator: Simulator) -> None:
    shop = Shop(simulator)
    made = shop.subscribe()
    scheduled(shop, made, shop.month, shop.per_unit("0.02"), proration_behavior="none")
    shop.use(100_000, "2026-01-15")
    shop.go("2026-02-15")
    assert (1_000, 100_000) in [(amount, quantity) for quantity, amount, _ in lines(shop.invoices()[-1])]


def test_year_becomes_month_at_the_anniversary(simulator: Simulator) -> None:
    shop = Shop(simulator)
    made = shop.subscribe(shop.year, shop.metered)
    scheduled(shop, made, shop.month, shop.metered, end="2027-01-15")
    shop.go("2027-01-15 00:30")
    assert [amount for _, amount, _ in lines(shop.invoices()[-1])] == [0, 2_000]
    after = shop.subscription(made.id)
    assert item_of(after, shop.month).current_period_end == at("2027-02-15")


def test_phase_in_mid_period_prorates(simulator: Simulator) -> None:
    shop = Shop(simulator, "2026-01-01")
    made = shop.subscribe(shop.month)
    scheduled(shop, made, shop.flat(6_000, "month"), end="2026-01-16 12:00", proration_behavior="always_invoice")
    shop.go("2026-01-17")
    assert [amount for _, amount, _ in lines(shop.invoices()[-1])] == [-1_000, 3_000]


def test_item_that_a_phase_adds_is_billed_with_the_renewal(simulator: Simulator) -> None:
    shop = Shop(simulator)
    made = shop.subscribe(shop.month)
    extra = shop.flat(700, "month")
    scheduled(shop, made, shop.month, extra, shop.metered)
    shop.go("2026-02-15")
    assert sorted(amount for _, amount, _ in lines(shop.invoices()[-1])) == [700, 2_000]
    shop.use(100_000, "2026-02-15")
    shop.go("2026-03-15")
    assert sorted(amount for _, amount, _ in lines(shop.invoices()[-1])) == [700, 1_000, 2_000]


def test_item_that_a_phase_drops_is_gone_after_its_last_usage(simulator: Simulator) -> None:
    shop = Shop(simulator)
    made = shop.subscribe()
    shop.use(100_000, "2026-01-15")
    scheduled(shop, made, shop.month)
    shop.go("2026-02-15")
    assert sorted(amount for _, amount, _ in lines(shop.invoices()[-1])) == [1_000, 2_000]
    assert [item.price.id for item in shop.subscription(made.id)["items"].data] == [shop.month]


def test_schedule_can_end_the_subscription(simulator: Simulator) -> None:
    shop = Shop(simulator)
    made = shop.subscribe()
    schedule = shop.v1.subscription_schedules.create({"from_subscription": made.id})
    shop.v1.subscription_schedules.update(schedule.id, {"end_behavior": "cancel"})
    shop.use(100_000, "2026-01-15")
    shop.go("2026-02-15 02:00")
    assert shop.subscription(made.id).status == "canceled"
    assert shop.v1.subscription_schedules.retrieve(schedule.id).status == "completed"
    assert (shop.invoices()[-1].total, shop.invoices()[-1].status) == (1_000, "paid")


def test_released_subscription_goes_on_as_it_is(simulator: Simulator) -> None:
    shop = Shop(simulator)
    made = shop.subscribe()
    schedule = scheduled(shop, made, shop.flat(6_000, "month"))
    released = shop.v1.subscription_schedules.release(schedule.id)
    assert (released.status, released.subscription, released.released_subscription) == ("released", None, made.id)
    shop.go("2026-02-15")
    assert [item.price.id for item in shop.subscription(made.id)["items"].data] == [shop.month, shop.metered]
    with pytest.raises(stripe.InvalidRequestError, match="currently in the `released` status"):
        shop.v1.subscription_schedules.release(schedule.id)


def test_cancelled_schedule_cancels_and_settles_the_subscription(simulator: Simulator) -> None:
    shop = Shop(simulator, "2026-01-01")
    made = shop.subscribe()
    schedule = shop.v1.subscription_schedules.create({"from_subscription": made.id})
    shop.go("2026-01-16 12:00")
    cancelled = shop.v1.subscription_schedules.cancel(schedule.id)
    assert cancelled.status == "canceled"
    assert shop.subscription(made.id).status == "canceled"
    assert shop.invoices()[-1].total == -1_000
    assert shop.events("subscription_schedule.canceled") == ["subscription_schedule.canceled"]


def test_schedule_ends_with_a_subscription_that_is_cancelled(simulator: Simulator) -> None:
    shop = Shop(simulator)
    made = shop.subscribe()
    schedule = shop.v1.subscription_schedules.create({"from_subscription": made.id})
    shop.v1.subscriptions.cancel(made.id)
    assert shop.v1.subscription_schedules.retrieve(schedule.id).status == "canceled"


def test_schedule_can_start_a_subscription_later(simulator: Simulator) -> None:
    shop = Shop(simulator)
    phases = [{"items": [{"price": shop.month, "quantity": 2}], "duration": {"interval": "month", "interval_count": 3}}]
    schedule = shop.v1.subscription_schedules.create(
        {"customer": shop.customer, "start_date": at("2026-02-01"), "phases": phases}
    )
    assert (schedule.status, schedule.subscription) == ("not_started", None)
    assert [found.id for found in shop.v1.subscription_schedules.list({"scheduled": True}).data] == [schedule.id]
    shop.go("2026-02-01")
    started = shop.v1.subscription_schedules.retrieve(schedule.id)
    assert (started.status, started.current_phase.end_date) == ("active", at("2026-05-01"))
    assert shop.subscription(started.subscription).schedule == schedule.id
    assert shop.invoices()[0].total == 4_000


def test_change_of_the_running_phase_changes_the_subscription_now(simulator: Simulator) -> None:
    shop = Shop(simulator, "2026-01-01")
    made = shop.subscribe(shop.month)
    schedule = shop.v1.subscription_schedules.create({"from_subscription": made.id})
    shop.go("2026-01-16 12:00")
    phase = {"items": [{"price": shop.month, "quantity": 3}], "end_date": at("2026-02-01")}
    shop.v1.subscription_schedules.update(
        schedule.id, {"phases": [phase], "proration_behavior": "always_invoice", "metadata": {"a": "b"}}
    )
    assert shop.subscription(made.id)["items"].data[0].quantity == 3
    assert [amount for _, amount, _ in lines(shop.invoices()[-1])] == [-1_000, 3_000]


@pytest.mark.parametrize(
    ("phases", "message"),
    [
        ([{"end_date": at("2026-01-14")}], "end after it starts"),
        ([{}], "needs an `end_date`"),
    ],
)
def test_phases_must_fit_together(simulator: Simulator, phases: list[dict[str, Any]], message: str) -> None:
    shop = Shop(simulator)
    given = [{"items": [{"price": shop.month}], **phase} for phase in phases]
    with pytest.raises(stripe.InvalidRequestError, match=message):
        shop.v1.subscription_schedules.create({"customer": shop.customer, "start_date": "now", "phases": given})


def test_phases_leave_no_gap(simulator: Simulator) -> None:
    shop = Shop(simulator)
    made = shop.v1.subscription_schedules.create({"from_subscription": shop.subscribe(shop.month).id})
    items = [{"price": shop.month}]
    phases = [
        {"items": items, "start_date": at("2026-01-15"), "end_date": at("2026-02-15")},
        {"items": items, "start_date": at("2026-03-01"), "end_date": at("2026-04-01")},
    ]
    with pytest.raises(stripe.InvalidRequestError, match="without a gap"):
        shop.v1.subscription_schedules.update(made.id, {"phases": phases})


def test_what_does_not_go_together_is_refused(simulator: Simulator) -> None:
    shop = Shop(simulator)
    made = shop.subscribe()
    create = shop.v1.subscription_schedules.create
    with pytest.raises(stripe.InvalidRequestError, match="other parameters"):
        create({"from_subscription": made.id, "end_behavior": "cancel"})
    with pytest.raises(stripe.InvalidRequestError, match="phases"):
        create({"customer": shop.customer})
    with pytest.raises(stripe.InvalidRequestError, match="customer"):
        create({"phases": []})
