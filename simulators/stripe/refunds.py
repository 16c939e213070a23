"""Refunds of charges, in whole or in part. They succeed at once; an invoice that was paid stays paid, as at Stripe."""

from simulators.stripe.changes import merge_metadata, recorded
from simulators.stripe.errors import StripeError, invalid
from simulators.stripe.operations import Params, included, listing, matching, operation
from simulators.stripe.world import Object, World

KIND = "refund"


def refund(world: World, charge: Object, amount: int, reason: str | None, metadata: dict[str, str]) -> Object:
    """Give part of a charge back; the caller has checked that so much of it is left."""
    made = world.new(
        KIND,
        "re",
        {
            "amount": amount,
            "charge": charge["id"],
            "currency": charge["currency"],
            "destination_details": {"card": {"reference_status": "pending", "type": "refund"}, "type": "card"},
            "metadata": metadata,
            "payment_intent": charge["payment_intent"],
            "reason": reason,
            "status": "succeeded",
        },
        owner=charge,
    )
    del made["livemode"]
    world.emit("refund.created", made)
    with recorded(world, charge, "charge.refunded"):
        charge["amount_refunded"] += amount
        charge["refunded"] = charge["amount_refunded"] == charge["amount"]
    return made


def refundable(charge: Object) -> int:
    """What of a charge can still be given back, in cents."""
    return int(charge["amount_captured"]) - int(charge["amount_refunded"])


@operation("POST", "/v1/refunds")
def create(world: World, params: Params) -> Object:
    """Refund a charge, named itself or by its payment intent.

    Raises:
        StripeError: 400 where nothing, or less than the amount, is left to refund, and for a disputed charge.
    """
    charge = _charge(world, params)
    left = refundable(charge)
    if left == 0:
        raise StripeError(f"Charge {charge['id']} has already been refunded.", code="charge_already_refunded")
    if charge["disputed"]:
        message = f"Charge {charge['id']} has been charged back; cannot issue a refund."
        raise StripeError(message, code="charge_disputed")
    amount = params.get("amount", left)
    if amount < 1:
        raise invalid("amount", "Invalid positive integer", "parameter_invalid_integer")
    if amount > left:
        message = f"Refund amount (${amount / 100:.2f}) is greater than unrefunded amount on charge (${left / 100:.2f})"
        raise invalid("amount", message)
    return refund(world, charge, amount, params.get("reason"), params.get("metadata") or {})


@operation("GET", "/v1/refunds/{refund}")
def retrieve(world: World, params: Params, refund: str) -> Object:
    """One refund."""
    return world.get(KIND, refund)


@operation("GET", "/v1/refunds")
def list_all(world: World, params: Params) -> list[Object]:
    """All refunds, or those of a charge or an intent."""
    return matching(world.all(KIND), params, "charge", "payment_intent")


@operation("POST", "/v1/refunds/{refund}")
def update(world: World, params: Params, refund: str) -> Object:
    """Change a refund's metadata."""
    found = world.get(KIND, refund)
    merge_metadata(found, params)
    return found


@included("charge", "refunds")
def refunds_of(world: World, charge: Object) -> Object:
    """A charge's refunds, newest first."""
    mine = [found for found in world.all(KIND) if found["charge"] == charge["id"]]
    return listing(f"/v1/charges/{charge['id']}/refunds", reversed(mine))


def _charge(world: World, params: Params) -> Object:
    if "charge" in params:
        charge = world.get("charge", params["charge"], "charge")
    elif "payment_intent" in params:
        intent = world.get("payment_intent", params["payment_intent"], "payment_intent")
        if intent["status"] != "succeeded":
            message = f"This PaymentIntent ({intent['id']}) does not have a successful charge to refund."
            raise invalid("payment_intent", message)
        charge = world.get("charge", intent["latest_charge"])
    else:
        raise invalid("charge", "One of the following params should be provided: payment_intent or charge.")
    if charge["status"] != "succeeded":
        raise invalid("charge", f"Charge {charge['id']} has failed and cannot be refunded.")
    return charge
