"""What happens by itself as time passes, each at its own moment and in order.

Everything that is due under a test clock, or in the account's own time, is looked up anew after each step, because a
step makes new things due. Reminders come three days ahead: of a trial's end, as Stripe documents, and of a renewal,
which at Stripe is a setting.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from simulators.stripe import checkout, collection, coupons, invoices, items, previews, renewals, schedules, standing
from simulators.stripe.changes import recorded
from simulators.stripe.periods import SECONDS_PER_DAY
from simulators.stripe.world import Object, World

REMINDER_S = 3 * SECONDS_PER_DAY
FIRST_PAYMENT_S = 23 * 3600
"""How long a first invoice may be paid."""

_RUNNING = ("trialing", "active", "past_due", "unpaid")


@dataclass(frozen=True, slots=True)
class Due:
    """Something that happens at a moment; of what is due at the same one, the lower rank comes first."""

    at: int
    rank: int
    act: Callable[[], None]


def advance(world: World, clock: Object | None, until: int) -> None:
    """Let everything happen that is due up to and at a moment; it is left standing at the last of these.

    Args:
        world: The account.
        clock: The test clock whose time passes; None for what lies under none.
        until: Unix seconds.
    """
    while True:
        pending = [due for due in _everything(world, clock) if due.at <= until]
        if not pending:
            return
        first = min(pending, key=lambda due: (due.at, due.rank))
        # What was due before now, because the simulator was not running, happens now.
        moment = max(first.at, clock["frozen_time"]) if clock is not None else first.at
        with world.standing_at(clock, moment):
            first.act()


def _everything(world: World, clock: Object | None) -> Iterator[Due]:
    for subscription in _under(world, clock, standing.KIND):
        yield from _of_subscription(world, subscription)
    for invoice in _under(world, clock, invoices.KIND):
        yield from _of_invoice(world, invoice)
    for schedule in _under(world, clock, schedules.KIND):
        due = schedules.next_step(world, schedule)
        if due is not None:
            # A phase begins before the renewal at the same moment, which then bills the new phase's prices.
            yield Due(due, 1, lambda schedule=schedule: schedules.step(world, schedule))  # type: ignore[misc]
    if clock is None:
        yield from _of_promotions(world)
    for session in _under(world, clock, checkout.KIND):
        if session["status"] == "open":
            yield Due(session["expires_at"], 5, lambda session=session: checkout.expire(world, session))  # type: ignore[misc]


def _of_promotions(world: World) -> Iterator[Due]:
    for found in (*world.all(coupons.COUPON), *world.all(coupons.CODE)):
        at = coupons.end_of(found)
        if at is not None:
            yield Due(at, 5, lambda found=found: coupons.end(world, found))  # type: ignore[misc]


def _under(world: World, clock: Object | None, kind: str) -> list[Object]:
    return [found for found in world.all(kind) if world.clock_of(found) is clock]


def _of_subscription(world: World, subscription: Object) -> Iterator[Due]:
    if subscription["status"] == "incomplete":
        yield Due(subscription["created"] + FIRST_PAYMENT_S, 4, lambda: _expire(world, subscription))
    if subscription["status"] not in _RUNNING:
        return
    resumes_at = (subscription["pause_collection"] or {}).get("resumes_at")
    if resumes_at:
        yield Due(resumes_at, 0, lambda: _resume_collection(world, subscription))
    end = items.period_of_subscription(subscription).end
    stop = subscription["cancel_at"]
    if stop is not None and stop <= end:
        yield Due(stop, 2, lambda: renewals.end(world, subscription))
    else:
        yield Due(end, 3, lambda: renewals.renew(world, subscription))
        if not subscription.get("_upcoming_told") and subscription["status"] != "trialing":
            yield Due(end - REMINDER_S, 0, lambda: _tell_upcoming(world, subscription))
    if subscription["status"] == "trialing" and not subscription.get("_trial_end_told"):
        yield Due(subscription["trial_end"] - REMINDER_S, 0, lambda: _tell_trial_end(world, subscription))


def _of_invoice(world: World, invoice: Object) -> Iterator[Due]:
    if invoice["status"] == "draft" and invoice["auto_advance"] and invoice["automatically_finalizes_at"]:
        yield Due(invoice["automatically_finalizes_at"], 4, lambda: collection.advance(world, invoice))
    if invoice["status"] != "open":
        return
    if invoice["collection_method"] == "send_invoice":
        if invoice["due_date"] and not invoice.get("_overdue_told"):
            yield Due(invoice["due_date"], 4, lambda: _tell_overdue(world, invoice))
    elif invoice["next_payment_attempt"] and invoice["auto_advance"]:
        yield Due(invoice["next_payment_attempt"], 4, lambda: _retry(world, invoice))


def _resume_collection(world: World, subscription: Object) -> None:
    with recorded(world, subscription, renewals.UPDATED):
        subscription["pause_collection"] = None


def _retry(world: World, invoice: Object) -> None:
    collection.attempt(world, invoice)


def _expire(world: World, subscription: Object) -> None:
    """The first invoice was not paid in time: it becomes void, and the subscription is over."""
    standing.expire(world, subscription)
    invoice = world.find(invoices.KIND, subscription["latest_invoice"])
    if invoice is not None and invoice["status"] == "open":
        invoices.void(world, invoice)


def _tell_upcoming(world: World, subscription: Object) -> None:
    subscription["_upcoming_told"] = True
    upcoming = previews.upcoming(world, subscription)
    if upcoming is not None:
        # This event's invoice does not exist yet, so it has no id.
        del upcoming["id"]
        world.emit("invoice.upcoming", upcoming)


def _tell_trial_end(world: World, subscription: Object) -> None:
    subscription["_trial_end_told"] = True
    world.emit("customer.subscription.trial_will_end", subscription)


def _tell_overdue(world: World, invoice: Object) -> None:
    invoice["_overdue_told"] = True
    world.emit("invoice.overdue", invoice)
    subscription = world.find(standing.KIND, invoices.subscription_of(invoice))
    if subscription is not None:
        standing.failed(world, subscription)
