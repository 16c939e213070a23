"""Changes of a subscription that its owner asks for: another plan, the end, and back.

What costs more begins at once and is paid at once, less what was paid for and not
used; a trial ends with it, unless the dearer plan has one itself. What costs less, or binds
for a shorter time, waits for the end of what is paid: nothing is ever paid back. Stripe
bills usage up to a change at the old price, as far as it has been reported by then, so
everything is reported first.

Each function changes Stripe and then reads back what became of it, so that the page that
follows shows it; the webhooks that come of it say the same.
"""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import select

from app.billing import catalog, claims, effects, outbox
from app.billing.catalog import Interval, Plan
from app.billing.checkout import lookup_keys, price_ids, sold
from app.billing.gateway import Gateway, Object
from app.billing.subscriptions import LIVE
from app.db import Database
from app.errors import BadRequest, Conflict, NotFound, StripeRefused, StripeUnavailable
from app.tables import Subscription

# By Stripe's documentation, `cancel_at_period_end` would mean the earliest end of any
# price: for a plan paid by the year, that of the month of usage.
_AT_THE_END = "max_period_end"


@dataclass(frozen=True, slots=True)
class Desk:
    """Whose subscription is looked at or changed, and with what.

    Attributes:
        database: Not open while Stripe is awaited.
        now: By Stripe's clock.
        grace: How long the organisation is served on after a payment has failed.
    """

    database: Database
    gateway: Gateway
    org_id: UUID
    now: datetime
    grace: timedelta


@dataclass(frozen=True, slots=True)
class Change:
    """Another plan for a subscription.

    Attributes:
        plan: That it becomes.
        interval: Of its flat price.
        at: When; None: at once.
    """

    plan: Plan
    interval: Interval
    at: datetime | None


@dataclass(frozen=True, slots=True)
class Preview:
    """What a change costs now, by Stripe's own computation.

    Attributes:
        lines: Description and cents of each, in Stripe's order; none for a change that waits.
        total: Cents, after discounts and with tax.
        cents: To be paid at once: the total less what the customer has as credit at Stripe; below 0 it
            stays there for later invoices.
    """

    change: Change
    lines: tuple[tuple[str, int], ...]
    total: int
    cents: int


async def preview(desk: Desk, plan_name: str, interval: str) -> Preview:
    """What changing the plan would cost; changes nothing.

    Usage that has not been reported yet is not in it.

    Raises:
        BadRequest: No such plan, or it is the present one.
        Conflict: An invoice is unpaid.
        NotFound: There is no subscription.
        StripeUnavailable: As every call; likewise ``StripeRefused``.
    """
    subscription = await _read(desk)
    change = _decide(subscription, plan_name, interval)
    if change.at is not None:
        return Preview(change, (), 0, 0)
    items = await _items(desk.database, subscription, change)
    details = {**_at_once(subscription, change, items), "proration_date": int(desk.now.timestamp())}
    invoice = await desk.gateway.preview_invoice({"subscription": subscription["id"], "subscription_details": details})
    lines = tuple((str(line["description"]), int(line["amount"])) for line in invoice["lines"]["data"])
    total = int(invoice["total"])
    return Preview(change, lines, total, total if total < 0 else int(invoice["amount_due"]))


async def change_plan(desk: Desk, plan_name: str, interval: str) -> Change:
    """Changes the plan, at once or at the end of what is paid.

    A change or an end that was planned before is withdrawn. Where a card is declined
    everything stays as it is, what was planned too.

    Raises:
        BadRequest: No such plan, or it is the present one.
        Conflict: An invoice is unpaid.
        NotFound: There is no subscription.
        StripeUnavailable: Stripe does not answer, or does not take what was used so far.
        StripeRefused: Stripe does not do it; status 402: the card was declined.
    """
    subscription = await _read(desk)
    change = _decide(subscription, plan_name, interval)
    items = await _items(desk.database, subscription, change)
    if change.at is None:
        await _change_now(desk, subscription, _at_once(subscription, change, items))
    else:
        await change_later(desk.gateway, subscription, items, change.at)
    await _read_back(desk, subscription["id"])
    return change


async def cancel(desk: Desk) -> None:
    """Lets the subscription end when what is paid for ends.

    Raises:
        NotFound: There is no subscription.
        StripeUnavailable: As every call; likewise ``StripeRefused``.
    """
    subscription = await _read(desk)
    await _withdraw_schedule(desk.gateway, subscription)
    if not _is_ending(subscription):
        await desk.gateway.update_subscription(subscription["id"], {"cancel_at": _AT_THE_END})
    await _read_back(desk, subscription["id"])


async def resume(desk: Desk) -> None:
    """Withdraws the planned end or change: the subscription goes on as it is.

    Raises:
        NotFound: There is no subscription.
        StripeUnavailable: As every call; likewise ``StripeRefused``.
    """
    subscription = await _read(desk)
    await _withdraw_schedule(desk.gateway, subscription)
    if _is_ending(subscription):
        await desk.gateway.update_subscription(subscription["id"], _unending(subscription))
    await _read_back(desk, subscription["id"])


async def change_later(gateway: Gateway, subscription: Mapping[str, Any], items: list[Object], at: datetime) -> None:
    """Plans other prices for a subscription, by a schedule that lets go of it then.

    Args:
        gateway: To Stripe.
        subscription: Stripe's object, with its schedule, if it is under one.
        items: Their prices, and of the flat one the quantity.
        at: When what is paid for ends.

    Raises:
        StripeUnavailable: As every call; likewise ``StripeRefused``.
    """
    if _is_ending(subscription):
        await gateway.update_subscription(subscription["id"], _unending(subscription))
    schedule = subscription["schedule"] or await gateway.create_schedule({"from_subscription": subscription["id"]})
    began = schedule["current_phase"]["start_date"]
    now = next(phase for phase in schedule["phases"] if phase["start_date"] == began)
    discounts = [{"discount": one["discount"]} for one in now["discounts"] if one.get("discount")]
    kept: Object = {"discounts": discounts} if discounts else {}
    if now["trial_end"] is not None:
        kept["trial_end"] = now["trial_end"]
    present = {
        "items": [_phase_item(item) for item in subscription["items"]["data"]],
        "start_date": now["start_date"],
        "end_date": int(at.timestamp()),
        "proration_behavior": "none",
        **kept,
    }
    kept.pop("trial_end", None)
    then = {
        "items": [{name: item[name] for name in ("price", "quantity") if name in item} for item in items],
        "duration": {"interval": "month", "interval_count": 1},
        "proration_behavior": "none",
        **kept,
    }
    await gateway.update_schedule(schedule["id"], {"phases": [present, then], "end_behavior": "release"})


async def _read(desk: Desk) -> Object:
    """The current subscription as Stripe has it now."""
    async with desk.database.begin() as connection:
        subscription_id = await connection.scalar(
            select(Subscription.stripe_subscription_id).where(
                Subscription.org_id == desk.org_id, Subscription.is_current, Subscription.status.in_(LIVE)
            )
        )
    if subscription_id is None:
        raise NotFound("There is no subscription.", code="subscription_not_found")
    return await desk.gateway.retrieve_subscription(subscription_id)


def _decide(subscription: Mapping[str, Any], plan_name: str, interval: str) -> Change:
    plan, by = sold(plan_name, interval)
    if subscription["status"] not in ("trialing", "active"):
        raise Conflict(
            "The last invoice is not paid yet. Please pay it first; another plan can be chosen then.",
            code="invoice_unpaid",
        )
    flat = _flat_item(subscription)
    named = catalog.plan_of_lookup_key(flat["price"]["lookup_key"])
    assert named is not None  # _flat_item found it by that
    present, _, present_by = named
    if (plan, by) == (present, present_by):
        raise BadRequest("This is the present plan.", param="plan")
    is_shorter = (present_by, by) == ("year", "month")
    if plan.month_cents < present.month_cents or is_shorter:
        return Change(plan, by, datetime.fromtimestamp(flat["current_period_end"], UTC))
    return Change(plan, by, None)


async def _items(database: Database, subscription: Mapping[str, Any], change: Change) -> list[Object]:
    """Both items with their new prices, in the words of a subscription's update."""
    flat_key, usage_key = lookup_keys(change.plan, change.interval)
    async with database.begin() as connection:
        prices = await price_ids(connection, [flat_key, usage_key])
    flat = _flat_item(subscription)
    items: list[Object] = [{"id": flat["id"], "price": prices[flat_key], "quantity": 1}]
    others = (item for item in subscription["items"]["data"] if item["id"] != flat["id"])
    return items + [{"id": item["id"], "price": prices[usage_key]} for item in others]


def _at_once(subscription: Mapping[str, Any], change: Change, items: list[Object]) -> Object:
    """A change that begins now, in words that a subscription's update and a preview have in common."""
    terms: Object = {"items": items, "proration_behavior": "always_invoice"}
    if subscription["status"] == "trialing" and not change.plan.trial_days:
        # Stripe would let the trial of the cheaper plan go on, in which nothing is metered.
        terms["trial_end"] = "now"
    return terms


async def _change_now(desk: Desk, subscription: Object, terms: Object) -> None:
    await claims.flush(desk.database, desk.org_id, desk.now)
    await outbox.drain(desk.database, desk.gateway, org_id=desk.org_id, now=desk.now)
    planned = _planned(subscription)
    await _withdraw_schedule(desk.gateway, subscription)
    if _is_ending(subscription):
        terms = {**terms, **_unending(subscription)}
    terms = {**terms, "payment_behavior": "error_if_incomplete"}
    try:
        await desk.gateway.update_subscription(subscription["id"], terms)
    except StripeRefused:
        if planned is not None:
            await change_later(desk.gateway, {**subscription, "schedule": None}, *planned)
        raise


def _planned(subscription: Mapping[str, Any]) -> tuple[list[Object], datetime] | None:
    """The items that a subscription's schedule has in store, and from when on; None: it plans nothing."""
    schedule = subscription["schedule"]
    if schedule is None:
        return None
    began = schedule["current_phase"]["start_date"]
    for phase in schedule["phases"]:
        if phase["start_date"] > began:
            items = [{name: item[name] for name in ("price", "quantity") if item.get(name)} for item in phase["items"]]
            return items, datetime.fromtimestamp(phase["start_date"], UTC)
    return None


async def _read_back(desk: Desk, subscription_id: str) -> None:
    # What was asked for is done; where this fails, the webhook brings it.
    with suppress(StripeUnavailable):
        await effects.refresh(desk.database, desk.gateway, subscription_id, desk.now, desk.grace)


async def _withdraw_schedule(gateway: Gateway, subscription: Mapping[str, Any]) -> None:
    if subscription["schedule"] is not None:
        await gateway.release_schedule(subscription["schedule"]["id"])


def _flat_item(subscription: Mapping[str, Any]) -> Object:
    for item in subscription["items"]["data"]:
        named = catalog.plan_of_lookup_key(item["price"]["lookup_key"])
        if named is not None and named[1] == "flat":
            return dict(item)
    raise Conflict("This subscription was not made here; please write to us to have it changed.")


def _phase_item(item: Mapping[str, Any]) -> Object:
    is_flat = item["price"]["recurring"]["usage_type"] == "licensed"
    return {"price": item["price"]["id"], **({"quantity": item["quantity"]} if is_flat else {})}


def _is_ending(subscription: Mapping[str, Any]) -> bool:
    return bool(subscription["cancel_at_period_end"] or subscription["cancel_at"])


def _unending(subscription: Mapping[str, Any]) -> Object:
    return {"cancel_at_period_end": False} if subscription["cancel_at_period_end"] else {"cancel_at": ""}
