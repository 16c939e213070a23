"""Collecting invoices: attempts to charge, their schedule, and what follows from success and failure.

The card is the invoice's own, else the subscription's, else the customer's default. A renewal that fails is tried again
after 3, 5 and 7 days, each counted from the attempt before (a stand-in for Stripe's smart retries, whose times are not
published); a first invoice is not tried again. Only automatic attempts, and the first one, count.
"""

from simulators.stripe import cards, invoices, payments, standing
from simulators.stripe.changes import recorded
from simulators.stripe.errors import StripeError
from simulators.stripe.periods import SECONDS_PER_DAY
from simulators.stripe.world import Object, World


def advance(world: World, invoice: Object) -> None:
    """Finalise a draft whose time has come, and collect it."""
    invoices.finalize(world, invoice)
    if invoice["status"] == "open" and invoice["collection_method"] == "charge_automatically":
        attempt(world, invoice)
    elif invoice["status"] == "open":
        world.emit("invoice.sent", invoice)


def attempt(world: World, invoice: Object, *, is_automatic: bool = True) -> StripeError | None:
    """Charge an open invoice; returns why that failed, or None where it is paid or waits for the cardholder."""
    invoice["_is_automatic"] = is_automatic
    method = method_for(world, invoice)
    if method is None:
        _failed(world, invoice)
        return StripeError(
            "There is no `default_payment_method` set on this Customer or Invoice. "
            "Please set a default payment method or pass one with the request.",
            code="invoice_no_payment_method_types" if not is_automatic else None,
        )
    return charge(world, invoice, method, off_session=True, is_automatic=is_automatic)


def charge(
    world: World, invoice: Object, method: Object, *, off_session: bool, is_automatic: bool = False
) -> StripeError | None:
    """Charge an open invoice to a card; returns why that failed."""
    intent = invoices.intent_of(world, invoice)
    assert intent is not None, "an open invoice has something due"
    invoice["_is_automatic"] = is_automatic
    try:
        payments.pay(world, intent, method, off_session=off_session)
    except StripeError as error:
        return error
    if intent["status"] == "requires_action":
        world.emit("invoice.payment_action_required", invoice)
    return None


def method_for(world: World, invoice: Object) -> Object | None:
    """The card that pays an invoice by itself; None where there is none."""
    subscription = world.find(standing.KIND, invoices.subscription_of(invoice))
    customer = world.get("customer", invoice["customer"])
    return default_method(world, customer, invoice["default_payment_method"], subscription)


def default_method(
    world: World, customer: Object, own: str | None = None, subscription: Object | None = None
) -> Object | None:
    """The card of an invoice, a subscription or a customer, whichever comes first and is still there."""
    settings = customer.get("invoice_settings") or {}
    named = (own, (subscription or {}).get("default_payment_method"), settings.get("default_payment_method"))
    for id in named:
        method = world.find("payment_method", id)
        if method is not None and method["customer"] == customer["id"]:
            return method
    return None


@payments.on_result
def settled(world: World, intent: Object, is_paid: bool) -> None:
    """A payment intent of an invoice was paid or failed, by whomever."""
    invoice = world.find(invoices.KIND, intent.get("_invoice"))
    if invoice is None:
        return
    if not is_paid:
        _failed(world, invoice)
        return
    invoice["attempt_count"] = invoice["attempt_count"] or 1
    paid(world, invoice)


def paid(world: World, invoice: Object, *, is_out_of_band: bool = False) -> None:
    """Mark an invoice as paid, and tell its subscription."""
    invoices.mark_paid(world, invoice, is_out_of_band=is_out_of_band)
    subscription = world.find(standing.KIND, invoices.subscription_of(invoice))
    if subscription is None:
        return
    _keep_card(world, subscription, invoice)
    standing.paid(world, subscription, invoice)


def _keep_card(world: World, subscription: Object, invoice: Object) -> None:
    """Let the card that paid pay from now on, where the subscription asks for that."""
    intent = invoices.intent_of(world, invoice)
    if intent is not None and subscription["payment_settings"].get("save_default_payment_method") == "on_subscription":
        subscription["default_payment_method"] = intent["payment_method"] or subscription["default_payment_method"]


def _failed(world: World, invoice: Object) -> None:
    subscription = world.find(standing.KIND, invoices.subscription_of(invoice))
    is_retried = invoice["auto_advance"] and not (subscription and subscription["status"] == "incomplete")
    is_counted = invoice.pop("_is_automatic", False) or invoice["attempt_count"] == 0
    with recorded(world, invoice, "invoice.updated"):
        invoice["attempted"] = True
        if is_counted:
            invoice["attempt_count"] += 1
            invoice["next_payment_attempt"] = _next_attempt(world, invoice) if is_retried else None
    world.emit("invoice.payment_failed", invoice)
    if _wants_cardholder(world, invoice):
        world.emit("invoice.payment_action_required", invoice)
    if subscription is None:
        return
    standing.failed(world, subscription)
    if is_counted and is_retried and invoice["next_payment_attempt"] is None:
        standing.given_up(world, subscription)


def _wants_cardholder(world: World, invoice: Object) -> bool:
    """Whether the last attempt failed because the cardholder was not there to agree."""
    intent = invoices.intent_of(world, invoice)
    error = intent["last_payment_error"] if intent is not None else None
    return error is not None and error["code"] == cards.UNATTENDED.code


def _next_attempt(world: World, invoice: Object) -> int | None:
    days = standing.retry_days(world)
    number = invoice["attempt_count"] - 1
    return world.now(invoice) + days[number] * SECONDS_PER_DAY if number < len(days) else None
