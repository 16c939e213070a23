"""What a subscription's invoices make of its status, and how it ends.

The latest invoice decides: paid, it makes a subscription active; failed, past due; given up, whatever the account's
settings say. Ending a subscription bills nothing by itself.
"""

from simulators.stripe.changes import recorded
from simulators.stripe.world import Object, World

KIND = "subscription"
ENDED = ("canceled", "incomplete_expired")

_UPDATED = "customer.subscription.updated"
_SETTINGS = "_dunning"
_RETRY_DAYS = (3, 5, 7)


def retry_days(world: World) -> list[int]:
    """Days from one failed attempt to the next; a failure after the last one is given up."""
    settings = world.find(_SETTINGS, _SETTINGS)
    return list(settings["retry_days"]) if settings else list(_RETRY_DAYS)


def set_dunning(world: World, days: list[int], end: str) -> None:
    """Say how failed payments are retried, and what becomes of the subscription: `canceled`, `unpaid` or `past_due`."""
    world.put({"object": _SETTINGS, "id": _SETTINGS, "retry_days": days, "end": end})


def paid(world: World, subscription: Object, invoice: Object) -> None:
    """An invoice of the subscription is paid."""
    if subscription["latest_invoice"] != invoice["id"] or subscription["status"] in (*ENDED, "paused"):
        return
    with recorded(world, subscription, _UPDATED):
        is_trial = subscription["trial_end"] is not None and world.now(subscription) < subscription["trial_end"]
        subscription["status"] = "trialing" if is_trial else "active"


def failed(world: World, subscription: Object) -> None:
    """A payment failed, or is overdue; a first invoice that fails leaves the subscription incomplete."""
    if subscription["status"] in ("active", "trialing"):
        with recorded(world, subscription, _UPDATED):
            subscription["status"] = "past_due"


def given_up(world: World, subscription: Object) -> None:
    """The last retry failed."""
    settings = world.find(_SETTINGS, _SETTINGS)
    end = settings["end"] if settings else "canceled"
    if subscription["status"] not in ("past_due", "active"):
        return
    if end == "canceled":
        finish(world, subscription, "payment_failed")
        return
    with recorded(world, subscription, _UPDATED):
        subscription["status"] = end


def finish(world: World, subscription: Object, reason: str | None = None) -> None:
    """Cancel now. Open invoices stay as they are, but nobody tries to collect them any more.

    Args:
        world: The account.
        subscription: Not ended yet.
        reason: Of `cancellation_details`; None keeps what is there.
    """
    now = world.now(subscription)
    subscription.update(status="canceled", ended_at=now)
    subscription["canceled_at"] = subscription["canceled_at"] or now
    if reason is not None:
        subscription["cancellation_details"]["reason"] = reason
    _stop_collecting(world, subscription)
    world.emit("customer.subscription.deleted", subscription)
    schedule = world.find("subscription_schedule", subscription["schedule"])
    if schedule is not None and schedule["status"] == "active":
        schedule.update(status="canceled", canceled_at=now, current_phase=None)
        world.emit("subscription_schedule.canceled", schedule)


def expire(world: World, subscription: Object) -> None:
    """The first invoice was not paid in time."""
    with recorded(world, subscription, _UPDATED):
        subscription.update(status="incomplete_expired", ended_at=world.now(subscription))


def _stop_collecting(world: World, subscription: Object) -> None:
    for invoice in world.all("invoice"):
        details = (invoice.get("parent") or {}).get("subscription_details") or {}
        if details.get("subscription") == subscription["id"] and invoice["status"] == "open":
            invoice.update(auto_advance=False, next_payment_attempt=None)
