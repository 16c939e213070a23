"""Cards as payment methods: Stripe's test cards, by number, by token, or by their ready-made ids.

A ready-made id such as `pm_card_visa` stands for a card that nobody has yet: each use of it makes a payment method of
its own. The number decides what the card does (`cards`).
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from simulators.stripe import cards
from simulators.stripe.changes import merge_metadata, recorded
from simulators.stripe.errors import StripeError, declined, invalid, missing
from simulators.stripe.ids import random_text
from simulators.stripe.operations import Params, matching, operation
from simulators.stripe.world import Object, World

METHOD = "payment_method"

# Stripe's names for its test cards; the same words follow `tok_`.
_NUMBERS = MappingProxyType(
    {
        "visa": "4242424242424242",
        "visa_debit": "4000056655665556",
        "mastercard": "5555555555554444",
        "amex": "378282246310005",
        "visa_chargeDeclined": "4000000000000002",
        "chargeDeclined": "4000000000000002",
        "visa_chargeDeclinedInsufficientFunds": "4000000000009995",
        "chargeDeclinedInsufficientFunds": "4000000000009995",
        "chargeDeclinedLostCard": "4000000000009987",
        "chargeDeclinedStolenCard": "4000000000009979",
        "chargeDeclinedExpiredCard": "4000000000000069",
        "chargeDeclinedIncorrectCvc": "4000000000000127",
        "chargeDeclinedProcessingError": "4000000000000119",
        "chargeCustomerFail": "4000000000000341",
        "threeDSecure2Required": "4000000000003220",
        "authenticationRequired": "4000002760003184",
        "authenticationRequiredOnSetup": "4000002500003155",
        "createDispute": "4000000000000259",
        "createDisputeProductNotReceived": "4000000000002685",
        "createDisputeInquiry": "4000000000001976",
    }
)
_BRANDS = (("4", "visa"), ("5", "mastercard"), ("3", "amex"))
_MIN_DIGITS = 12
_EXPIRES = {"exp_month": 12, "exp_year": 2034}


def resolve(world: World, id: str, param: str = "payment_method") -> Object:
    """The payment method of this id; a new one for a ready-made id.

    Raises:
        StripeError: 404 resource_missing.
    """
    name = id.removeprefix("pm_card_")
    if name != id and name in _NUMBERS:
        return make(world, _NUMBERS[name])
    return world.get(METHOD, id, param)


def make(world: World, number: str, details: Mapping[str, Any] | None = None) -> Object:
    """A payment method for a card; nobody's yet.

    Args:
        world: The account.
        number: Digits of the card, of which the last four are kept.
        details: `exp_month`, `exp_year`.
    """
    brand = next((brand for digit, brand in _BRANDS if number.startswith(digit)), "unknown")
    card = {
        "brand": brand,
        "checks": {"address_line1_check": None, "address_postal_code_check": None, "cvc_check": "pass"},
        "country": "US",
        "display_brand": brand,
        "fingerprint": random_text(16),
        "funding": "credit",
        "last4": number[-4:],
        "networks": {"available": [brand], "preferred": None},
        "three_d_secure_usage": {"supported": True},
        **_EXPIRES,
        **{name: value for name, value in (details or {}).items() if name in _EXPIRES},
    }
    billing: Object = {"address": {}, "email": None, "name": None, "phone": None, "tax_id": None}
    fields = {"allow_redisplay": "unspecified", "billing_details": billing, "card": card}
    return world.new(METHOD, "pm", {**fields, "customer": None, "metadata": {}, "type": "card", "created": world.now()})


def checked(number: str) -> str:
    """A card's number without blanks.

    Raises:
        StripeError: 402 incorrect_number for what cannot be one.
    """
    digits = number.replace(" ", "")
    if not digits.isdecimal() or len(digits) < _MIN_DIGITS or not _passes_luhn(digits):
        raise StripeError(
            "Your card number is incorrect.", status=402, type="card_error", code="incorrect_number", param="number"
        )
    return digits


def attach(world: World, method: Object, customer: Object) -> Object:
    """Save a card with a customer.

    Raises:
        StripeError: 402 for a card that its bank does not let be saved, 400 for one that is another customer's.
    """
    if method["customer"] == customer["id"]:
        return method
    if method["customer"] is not None:
        raise StripeError("The payment method you provided has already been attached to a customer.")
    refusal = cards.refusal_of_attaching(method["card"]["last4"])
    if refusal is not None:
        raise declined(refusal.message, refusal.decline_code, refusal.code)
    method["customer"] = customer["id"]
    world.emit("payment_method.attached", method)
    return method


@operation("POST", "/v1/payment_methods")
def create(world: World, params: Params) -> Object:
    """A payment method for a card, by its number or a token."""
    if params.get("type") != "card" or "card" not in params:
        raise invalid("type", "The simulator knows payment methods of the type card only.")
    given = params["card"]
    number = given.get("number") or _NUMBERS.get(given.get("token", "").removeprefix("tok_"))
    if number is None:
        raise missing("token", given.get("token", ""), "card[token]")
    made = make(world, checked(number), given)
    _describe(made, params)
    merge_metadata(made, params)
    return made


@operation("GET", "/v1/payment_methods")
def list_methods(world: World, params: Params) -> list[Object]:
    """Those of a customer."""
    if "customer" not in params:
        return []
    world.get("customer", params["customer"], "customer")
    return matching(world.all(METHOD), params, "customer", "type", "allow_redisplay")


@operation("GET", "/v1/payment_methods/{payment_method}")
def retrieve(world: World, params: Params, payment_method: str) -> Object:
    """One payment method."""
    return resolve(world, payment_method)


@operation("POST", "/v1/payment_methods/{payment_method}")
def update(world: World, params: Params, payment_method: str) -> Object:
    """Change what is written on it; a number never changes."""
    method = world.get(METHOD, payment_method, "payment_method")
    with recorded(world, method, "payment_method.updated"):
        _describe(method, params)
        method["card"].update({name: params["card"][name] for name in _EXPIRES if name in params.get("card", {})})
        merge_metadata(method, params)
    return method


@operation("POST", "/v1/payment_methods/{payment_method}/attach")
def attach_to(world: World, params: Params, payment_method: str) -> Object:
    """Save it with a customer."""
    if "customer" not in params:
        raise invalid("customer", "Missing required param: customer.", "parameter_missing")
    customer = world.get("customer", params["customer"], "customer")
    return attach(world, resolve(world, payment_method), customer)


@operation("POST", "/v1/payment_methods/{payment_method}/detach")
def detach(world: World, params: Params, payment_method: str) -> Object:
    """Take it away from its customer; nobody can use it again."""
    method = world.get(METHOD, payment_method, "payment_method")
    if method["customer"] is None:
        raise StripeError("The payment method you provided is not attached to a customer so detachment is impossible.")
    customer = world.get("customer", method["customer"])
    method["customer"] = None
    world.emit("payment_method.detached", method, {"customer": customer["id"]})
    if customer["invoice_settings"]["default_payment_method"] == payment_method:
        with recorded(world, customer, "customer.updated"):
            customer["invoice_settings"]["default_payment_method"] = None
    return method


@operation("GET", "/v1/customers/{customer}/payment_methods")
def list_of_customer(world: World, params: Params, customer: str) -> list[Object]:
    """Those of a customer, named in the path."""
    return list_methods(world, {**params, "customer": customer})


@operation("GET", "/v1/customers/{customer}/payment_methods/{payment_method}")
def retrieve_of_customer(world: World, params: Params, customer: str, payment_method: str) -> Object:
    """One of a customer's."""
    method = world.get(METHOD, payment_method, "payment_method")
    if method["customer"] != customer:
        raise missing(METHOD, payment_method, "payment_method")
    return method


def _describe(method: Object, params: Params) -> None:
    if "allow_redisplay" in params:
        method["allow_redisplay"] = params["allow_redisplay"]
    for name, value in params.get("billing_details", {}).items():
        method["billing_details"][name] = ({} if name == "address" else None) if value == "" else value


def _passes_luhn(number: str) -> bool:
    doubled = [int(digit) * (1 + index % 2) for index, digit in enumerate(reversed(number))]
    return sum(digit - 9 if digit > 9 else digit for digit in doubled) % 10 == 0
