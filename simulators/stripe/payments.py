"""Payment intents and the charges that they make.

A card decides by its number, as Stripe's test cards do (`cards.py`): it pays, it declines, or it asks for the
cardholder. What a decline leaves behind stays: the failed charge, and the intent that can be confirmed again.
"""

from collections.abc import Callable, Mapping
from typing import Any

from simulators.stripe import cards, disputes, payment_methods
from simulators.stripe.changes import merge_metadata
from simulators.stripe.errors import StripeError, declined, invalid
from simulators.stripe.ids import new_id, random_text
from simulators.stripe.operations import Params, matching, operation
from simulators.stripe.totals import minimum_charge
from simulators.stripe.world import Object, World

INTENT = "payment_intent"
CHARGE = "charge"

Listener = Callable[[World, Object, bool], None]

_listeners: list[Listener] = []
_CONFIRMABLE = ("requires_payment_method", "requires_confirmation", "requires_action")


def on_result(listener: Listener) -> Listener:
    """Register who is told that an intent was paid (True) or that an attempt failed."""
    _listeners.append(listener)
    return listener


def intend(world: World, customer: str | None, amount: int, currency: str, fields: Mapping[str, Any]) -> Object:
    """A payment intent that nobody has tried to pay yet."""
    id = new_id("pi")
    intent = {
        "id": id,
        "amount": amount,
        "amount_capturable": 0,
        "amount_details": {"tip": {}},
        "amount_received": 0,
        "automatic_payment_methods": None,
        "canceled_at": None,
        "cancellation_reason": None,
        "capture_method": "automatic",
        "client_secret": f"{id}_secret_{random_text(25)}",
        "confirmation_method": "automatic",
        "currency": currency,
        "customer": customer,
        "description": None,
        "last_payment_error": None,
        "latest_charge": None,
        "metadata": {},
        "next_action": None,
        "payment_method": None,
        "payment_method_options": {"card": {"request_three_d_secure": "automatic"}},
        "payment_method_types": ["card"],
        "setup_future_usage": None,
        "status": "requires_payment_method",
        **fields,
    }
    made = world.new(INTENT, "pi", intent)
    world.emit("payment_intent.created", made)
    return made


def pay(world: World, intent: Object, payment_method: Object, *, off_session: bool) -> None:
    """Charge an intent to a card.

    Raises:
        StripeError: 402 card_error: the card declined, or asks for the cardholder, who is not there. A failed charge
            and the intent's `last_payment_error` stay.
    """
    intent["payment_method"] = payment_method["id"]
    refusal = cards.refusal_of_charge(payment_method)
    if cards.asks_for_cardholder(payment_method):
        if not off_session:
            _ask(world, intent)
            return
        refusal = cards.UNATTENDED
    if refusal is not None:
        raise _fail(world, intent, payment_method, refusal)
    succeed(world, intent, payment_method)


def succeed(world: World, intent: Object, payment_method: Object) -> None:
    """The bank paid."""
    charge = _charge(world, intent, payment_method, "succeeded")
    intent.update(
        amount_received=intent["amount"],
        last_payment_error=None,
        latest_charge=charge["id"],
        next_action=None,
        status="succeeded",
    )
    world.emit("charge.succeeded", charge)
    world.emit("payment_intent.succeeded", intent)
    _tell(world, intent, is_paid=True)
    reason = cards.dispute_reason(payment_method)
    if reason is not None:
        disputes.open_dispute(world, charge, reason)


def cancel_intent(world: World, intent: Object, reason: str) -> None:
    """Nobody will pay it any more."""
    intent.update(status="canceled", cancellation_reason=reason, canceled_at=world.now(intent), next_action=None)
    world.emit("payment_intent.canceled", intent)


@operation("POST", "/v1/payment_intents")
def create(world: World, params: Params) -> Object:
    """A payment outside of invoices."""
    if params["amount"] < minimum_charge(params["currency"]):
        raise invalid("amount", "Amount must be at least $0.50 usd", "amount_too_small")
    customer = params.get("customer")
    if customer is not None:
        world.get("customer", customer, "customer")
    kept = ("description", "metadata", "receipt_email", "setup_future_usage")
    fields = {name: params[name] for name in kept if name in params}
    intent = intend(world, customer, params["amount"], params["currency"], fields)
    if params.get("payment_method"):
        method = payment_methods.resolve(world, params["payment_method"])
        intent.update(payment_method=method["id"], status="requires_confirmation")
    if params.get("confirm"):
        return confirm(world, {"off_session": params.get("off_session")}, intent["id"])
    return intent


@operation("GET", "/v1/payment_intents/{intent}")
def retrieve(world: World, params: Params, intent: str) -> Object:
    """One payment intent."""
    return world.get(INTENT, intent, "intent")


@operation("GET", "/v1/payment_intents")
def list_intents(world: World, params: Params) -> list[Object]:
    """All payment intents, or a customer's."""
    return matching(world.all(INTENT), params, "customer")


@operation("POST", "/v1/payment_intents/{intent}")
def update(world: World, params: Params, intent: str) -> Object:
    """Change what an unpaid intent says of itself."""
    found = world.get(INTENT, intent, "intent")
    for name in ("description", "receipt_email", "payment_method"):
        if name in params:
            found[name] = params[name]
    merge_metadata(found, params)
    return found


@operation("POST", "/v1/payment_intents/{intent}/confirm")
def confirm(world: World, params: Params, intent: str) -> Object:
    """Try to pay.

    Raises:
        StripeError: 402 for a declined card; 400 where there is nothing to confirm, or no card.
    """
    found = world.get(INTENT, intent, "intent")
    if found["status"] not in _CONFIRMABLE:
        raise StripeError(
            f"You cannot confirm this PaymentIntent because it has a status of {found['status']}.",
            code="payment_intent_unexpected_state",
            extra={"payment_intent": world.snapshot(found)},
        )
    method = params.get("payment_method") or found["payment_method"]
    if method is None:
        raise invalid("payment_method", "You cannot confirm this PaymentIntent without a payment method.")
    card = payment_methods.resolve(world, method)
    pay(world, found, card, off_session=bool(params.get("off_session")))
    return found


@operation("POST", "/v1/payment_intents/{intent}/cancel")
def cancel(world: World, params: Params, intent: str) -> Object:
    """Give an unpaid intent up."""
    found = world.get(INTENT, intent, "intent")
    if found["status"] in ("succeeded", "canceled"):
        raise StripeError(
            f"You cannot cancel this PaymentIntent because it has a status of {found['status']}.",
            code="payment_intent_unexpected_state",
        )
    cancel_intent(world, found, params.get("cancellation_reason", "requested_by_customer"))
    return found


@operation("GET", "/v1/charges/{charge}")
def retrieve_charge(world: World, params: Params, charge: str) -> Object:
    """One charge."""
    return world.get(CHARGE, charge, "charge")


@operation("GET", "/v1/charges")
def list_charges(world: World, params: Params) -> list[Object]:
    """All charges, or those of a customer or an intent."""
    return matching(world.all(CHARGE), params, "customer", "payment_intent")


@operation("POST", "/v1/charges/{charge}")
def update_charge(world: World, params: Params, charge: str) -> Object:
    """Change a charge's description or metadata."""
    found = world.get(CHARGE, charge, "charge")
    if "description" in params:
        found["description"] = params["description"]
    merge_metadata(found, params)
    world.emit("charge.updated", found, {})
    return found


def _charge(world: World, intent: Object, payment_method: Object, status: str) -> Object:
    is_paid = status == "succeeded"
    charge = {
        "amount": intent["amount"],
        "amount_captured": intent["amount"] if is_paid else 0,
        "amount_refunded": 0,
        "billing_details": payment_method["billing_details"],
        "captured": is_paid,
        "currency": intent["currency"],
        "customer": intent["customer"],
        "description": intent["description"],
        "disputed": False,
        "failure_code": None,
        "failure_message": None,
        "fraud_details": {},
        "metadata": dict(intent["metadata"]),
        "outcome": _outcome(None),
        "paid": is_paid,
        "payment_intent": intent["id"],
        "payment_method": payment_method["id"],
        "payment_method_details": _details(payment_method),
        "refunded": False,
        "status": status,
    }
    return world.new(CHARGE, "ch", charge)


def _fail(world: World, intent: Object, payment_method: Object, refusal: cards.Refusal) -> StripeError:
    charge = _charge(world, intent, payment_method, "failed")
    charge.update(failure_code=refusal.code, failure_message=refusal.message, outcome=_outcome(refusal))
    error = declined(
        refusal.message,
        refusal.decline_code,
        refusal.code,
        charge=charge["id"],
        payment_method=world.snapshot(payment_method),
    )
    intent.update(
        last_payment_error={"message": error.message, "type": "card_error", "code": error.code, **error.extra},
        latest_charge=charge["id"],
        payment_method=None,
        status="requires_payment_method",
    )
    world.emit("charge.failed", charge)
    world.emit("payment_intent.payment_failed", intent)
    error.extra["payment_intent"] = world.snapshot(intent)
    _tell(world, intent, is_paid=False)
    return error


def _tell(world: World, intent: Object, *, is_paid: bool) -> None:
    for listener in _listeners:
        listener(world, intent, is_paid)


def _ask(world: World, intent: Object) -> None:
    """3-D Secure: the intent waits until the cardholder has agreed in a browser, which this simulator leaves out."""
    intent.update(status="requires_action", next_action={"type": "use_stripe_sdk", "use_stripe_sdk": {}})
    world.emit("payment_intent.requires_action", intent)


def _outcome(refusal: cards.Refusal | None) -> Object:
    if refusal is None:
        return {
            "network_status": "approved_by_network",
            "reason": None,
            "risk_level": "normal",
            "seller_message": "Payment complete.",
            "type": "authorized",
        }
    return {
        "network_status": "declined_by_network",
        "reason": refusal.decline_code,
        "risk_level": "normal",
        "seller_message": refusal.message,
        "type": "issuer_declined",
    }


def _details(payment_method: Object) -> Object:
    card = payment_method["card"]
    shown = ("brand", "country", "exp_month", "exp_year", "fingerprint", "funding", "last4")
    return {"card": {name: card.get(name) for name in shown} | {"network": card["brand"]}, "type": "card"}
