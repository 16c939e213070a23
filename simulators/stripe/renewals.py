"""What a subscription bills as time passes: its first invoice, each new cycle, the end of a trial, and its end.

The metered items of a cycle are billed for the period that ended, the licensed ones for the period that begins. An
invoice of a cycle has a line for each metered item, of nothing too; a first invoice has none for them.
"""

from simulators.stripe import discounts, invoice_items, invoices, items, lines, prorations, standing, usage
from simulators.stripe.changes import recorded
from simulators.stripe.collection import attempt, default_method
from simulators.stripe.invoices import Draft
from simulators.stripe.periods import Period
from simulators.stripe.world import Object, World

UPDATED = "customer.subscription.updated"


def bill(
    world: World,
    subscription: Object,
    reason: str,
    made: list[Object],
    *,
    period: Period | None = None,
    finalizes_in_s: int | None = None,
) -> Object | None:
    """Make a draft for a subscription and keep it as the latest invoice; None where nothing is on it."""
    now = world.now(subscription)
    wanted = Draft(
        customer=subscription["customer"],
        currency=subscription["currency"],
        reason=reason,
        period=period or Period(now, now),
        subscription=subscription,
        lines=made,
        discounts=list(subscription["discounts"]),
        finalizes_in_s=finalizes_in_s,
    )
    if not made and not has_pending(world, subscription):
        return None
    invoice = invoices.draft(world, wanted)
    subscription["latest_invoice"] = invoice["id"]
    subscription["discounts"] = discounts.lasting(world, subscription["discounts"])
    return invoice


def has_pending(world: World, subscription: Object) -> bool:
    """Whether invoice items wait for the subscription's next invoice."""
    owner = subscription["customer"], subscription["currency"], subscription["id"]
    return bool(invoice_items.pending(world, *owner))


def bill_now(world: World, subscription: Object, reason: str, made: list[Object]) -> Object | None:
    """Bill at once: a draft that is finalised and, if something is due, charged."""
    invoice = bill(world, subscription, reason, made)
    if invoice is None:
        return None
    invoices.finalize(world, invoice)
    if invoice["status"] == "open" and invoice["collection_method"] == "charge_automatically":
        attempt(world, invoice)
    return invoice


def first_lines(world: World, subscription: Object) -> list[Object]:
    """What a new cycle of all licensed items costs from now on."""
    made = []
    for item in subscription["items"]["data"]:
        if usage.is_metered(item["price"]):
            continue
        period = items.period_of(item)
        if _is_trial(subscription, period):
            made.append(lines.of_trial(world, subscription, item, period))
        else:
            whole = items.cycle_of(subscription, item, period.start)
            made += lines.of_item(world, subscription, item, period, whole)
    return made


def renew(world: World, subscription: Object) -> None:
    """Begin the next period of every item whose period has ended, and draft the invoice for it."""
    now = world.now(subscription)
    if _ends_without_card(world, subscription):
        return
    with recorded(world, subscription, UPDATED):
        period = items.period_of_subscription(subscription)
        made = [line for item in _due(subscription, now) for line in _ended(world, subscription, item)]
        if subscription["status"] == "trialing":
            subscription["status"] = "active"
        for item in _due(subscription, now):
            _begin(subscription, item, now)
            made += _begun(world, subscription, item)
        subscription.pop("_upcoming_told", None)
        if subscription["cancel_at_period_end"]:
            subscription["cancel_at"] = items.period_of_subscription(subscription).end
        _bill_cycle(world, subscription, made, period)


def end(world: World, subscription: Object) -> None:
    """Cancel at the moment that was set for it; the last usage goes onto a last invoice.

    Time of licensed items that was paid for beyond this moment is credited, unless prorations were turned off when the
    cancellation was set. (Stripe computes that credit when it is set.)
    """
    now = world.now(subscription)
    period = items.period_of_subscription(subscription)
    made = []
    for item in subscription["items"]["data"]:
        if usage.is_metered(item["price"]):
            is_free = _is_trial(subscription, items.period_of(item))
            ended = Period(item["current_period_start"], now)
            owed = usage.outstanding(item, ended, is_free=is_free)
            if usage.quantity_of(world, subscription["customer"], owed):
                made += lines.of_usage(world, subscription, item, owed)
        elif subscription.get("_cancel_prorates"):
            prorations.credit_unused(world, subscription, item, now)
    bill(world, subscription, "subscription_cycle", made, period=period, finalizes_in_s=invoices.DRAFT_S)
    standing.finish(world, subscription)


def _due(subscription: Object, now: int) -> list[Object]:
    return [item for item in subscription["items"]["data"] if item["current_period_end"] <= now]


def _ended(world: World, subscription: Object, item: Object) -> list[Object]:
    if not usage.is_metered(item["price"]):
        return []
    period = items.period_of(item)
    if not period.length_s:
        # It was added at this very moment, by a schedule's new phase.
        return []
    owed = usage.outstanding(item, period, is_free=_is_trial(subscription, period))
    return lines.of_usage(world, subscription, item, owed)


def _begin(subscription: Object, item: Object, now: int) -> None:
    whole = items.cycle_of(subscription, item, now)
    stop = subscription["cancel_at"]
    end = whole.end if stop is None or subscription["cancel_at_period_end"] else min(whole.end, max(stop, now))
    items.set_period(item, Period(now, end))
    item.pop("_ended_price", None)


def _begun(world: World, subscription: Object, item: Object) -> list[Object]:
    if usage.is_metered(item["price"]):
        return []
    period = items.period_of(item)
    whole = items.cycle_of(subscription, item, period.start)
    return lines.of_item(world, subscription, item, period, whole)


def _bill_cycle(world: World, subscription: Object, made: list[Object], period: Period) -> None:
    """Draft a cycle's invoice; it stays a draft where the subscription is unpaid or its collection is paused."""
    pause = (subscription["pause_collection"] or {}).get("behavior")
    is_kept = pause == "keep_as_draft" or subscription["status"] == "unpaid"
    finalizes_in_s = None if is_kept else invoices.DRAFT_S
    invoice = bill(world, subscription, "subscription_cycle", made, period=period, finalizes_in_s=finalizes_in_s)
    if invoice is None or pause in (None, "keep_as_draft"):
        return
    invoices.finalize(world, invoice)
    if invoice["status"] == "open":
        close = invoices.void if pause == "void" else invoices.mark_uncollectible
        close(world, invoice)


def _ends_without_card(world: World, subscription: Object) -> bool:
    """Pause or cancel where a trial ends, no card is there, and the trial's settings say so."""
    behavior = subscription["trial_settings"]["end_behavior"]["missing_payment_method"]
    customer = world.get("customer", subscription["customer"])
    is_missing = default_method(world, customer, None, subscription) is None
    if subscription["status"] != "trialing" or behavior == "create_invoice" or not is_missing:
        return False
    if behavior == "cancel":
        standing.finish(world, subscription)
        return True
    with recorded(world, subscription, UPDATED):
        subscription["status"] = "paused"
    world.emit("customer.subscription.paused", subscription)
    return True


def _is_trial(subscription: Object, period: Period) -> bool:
    """Whether a period lies in the subscription's trial."""
    return subscription["trial_end"] is not None and period.end <= subscription["trial_end"]
