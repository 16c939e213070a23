"""Setup intents: a card is saved with a customer without paying anything."""

from collections.abc import Mapping
from typing import Any

from simulators.stripe import cards, payment_methods
from simulators.stripe.changes import merge_metadata
from simulators.stripe.errors import StripeError, invalid
from simulators.stripe.ids import new_id, random_text
from simulators.stripe.operations import Params, matching, operation
from simulators.stripe.world import Object, World

INTENT = "setup_intent"

_OPEN = ("requires_payment_method", "requires_confirmation", "requires_action")


def make(world: World, customer: str | None, fields: Mapping[str, Any] | None = None) -> Object:
    """A setup intent that waits for a card."""
    id = new_id("seti")
    made = world.new(
        INTENT,
        "seti",
        {
            "id": id,
            "client_secret": f"{id}_secret_{random_text(25)}",
            "customer": customer,
            "description": None,
            "flow_directions": None,
            "last_setup_error": None,
            "latest_attempt": None,
            "metadata": {},
            "next_action": None,
            "payment_method": None,
            "payment_method_options": {"card": {"request_three_d_secure": "automatic"}},
            "payment_method_types": ["card"],
            "status": "requires_payment_method",
            "usage": "off_session",
            **(fields or {}),
        },
    )
    world.emit("setup_intent.created", made)
    return made


def succeed(world: World, intent: Object, method: Object) -> None:
    """Save the card that an intent was made for.

    Raises:
        StripeError: 402 for a card that cannot be saved; the intent then waits for another.
    """
    refusal = cards.refusal_of_attaching(method["card"]["last4"])
    if refusal is not None:
        problem = {"code": refusal.code, "decline_code": refusal.decline_code, "message": refusal.message}
        intent.update(status="requires_payment_method", last_setup_error={**problem, "type": "card_error"})
        world.emit("setup_intent.setup_failed", intent)
        extra = {"decline_code": refusal.decline_code, "setup_intent": world.present(intent)}
        raise StripeError(refusal.message, status=402, type="card_error", code=refusal.code, extra=extra)
    if intent["customer"] is not None:
        payment_methods.attach(world, method, world.get("customer", intent["customer"]))
    intent.update(status="succeeded", payment_method=method["id"], last_setup_error=None)
    world.emit("setup_intent.succeeded", intent)


@operation("POST", "/v1/setup_intents")
def create(world: World, params: Params) -> Object:
    """An intent, confirmed at once with `confirm` and a payment method."""
    customer = world.get("customer", params["customer"], "customer")["id"] if "customer" in params else None
    fields = {"usage": params.get("usage", "off_session"), "description": params.get("description")}
    method = payment_methods.resolve(world, params["payment_method"]) if "payment_method" in params else None
    if params.get("confirm") and method is None:
        raise invalid("payment_method", "Missing required param: payment_method.", "parameter_missing")
    made = make(world, customer, fields)
    merge_metadata(made, params)
    if method is not None:
        made.update(payment_method=method["id"], status="requires_confirmation")
        if params.get("confirm"):
            succeed(world, made, method)
    return made


@operation("GET", "/v1/setup_intents")
def list_intents(world: World, params: Params) -> list[Object]:
    """Intents by customer or card."""
    return matching(world.all(INTENT), params, "customer", "payment_method")


@operation("GET", "/v1/setup_intents/{intent}")
def retrieve(world: World, params: Params, intent: str) -> Object:
    """One intent."""
    return world.get(INTENT, intent, "intent")


@operation("POST", "/v1/setup_intents/{intent}/confirm")
def confirm(world: World, params: Params, intent: str) -> Object:
    """Save the card."""
    found = _open(world, intent, "confirmed")
    id = params.get("payment_method", found["payment_method"])
    if id is None:
        raise invalid("payment_method", "Missing required param: payment_method.", "parameter_missing")
    succeed(world, found, payment_methods.resolve(world, id))
    return found


@operation("POST", "/v1/setup_intents/{intent}/cancel")
def cancel(world: World, params: Params, intent: str) -> Object:
    """Give an intent up."""
    found = _open(world, intent, "canceled")
    found.update(status="canceled", cancellation_reason=params.get("cancellation_reason"))
    world.emit("setup_intent.canceled", found)
    return found


def _open(world: World, intent: str, verb: str) -> Object:
    found = world.get(INTENT, intent, "intent")
    if found["status"] not in _OPEN:
        raise StripeError(
            f"This SetupIntent cannot be {verb} because it has a status of {found['status']}.",
            code="setup_intent_unexpected_state",
            extra={"setup_intent": world.present(found)},
        )
    return found
