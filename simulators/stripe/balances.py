"""The balance of a customer: a negative one is the customer's credit, a positive one is added to the next invoice."""

from typing import Literal

from simulators.stripe.changes import merge_metadata
from simulators.stripe.errors import invalid
from simulators.stripe.operations import Params, matching, operation
from simulators.stripe.world import Object, World

TRANSACTION = "customer_balance_transaction"


def move_balance(
    world: World,
    customer: Object,
    amount: int,
    currency: str,
    invoice: str | None = None,
    type: Literal["adjustment", "applied_to_invoice"] = "applied_to_invoice",
) -> Object:
    """Add cents to a customer's balance, and keep a record of it.

    Raises:
        StripeError: 400 for another currency than the customer's.
    """
    if customer["currency"] not in (None, currency):
        raise invalid("currency", f"The customer's balance is in {customer['currency']}, not in {currency}.")
    customer["currency"] = currency
    customer["balance"] += amount
    return world.new(
        TRANSACTION,
        "cbtxn",
        {
            "amount": amount,
            "currency": currency,
            "customer": customer["id"],
            "description": None,
            "ending_balance": customer["balance"],
            "invoice": invoice,
            "metadata": {},
            "type": type,
        },
    )


@operation("POST", "/v1/customers/{customer}/balance_transactions")
def create(world: World, params: Params, customer: str) -> Object:
    """Adjust a balance by hand."""
    found = world.get("customer", customer, "customer")
    made = move_balance(world, found, params["amount"], params["currency"], type="adjustment")
    made["description"] = params.get("description")
    merge_metadata(made, params)
    world.emit("customer.updated", found, {"balance": found["balance"] - params["amount"]})
    return made


@operation("GET", "/v1/customers/{customer}/balance_transactions")
def list_transactions(world: World, params: Params, customer: str) -> list[Object]:
    """What moved a customer's balance."""
    world.get("customer", customer, "customer")
    return matching(world.all(TRANSACTION), {**params, "customer": customer}, "customer", "invoice")


@operation("GET", "/v1/customers/{customer}/balance_transactions/{transaction}")
def retrieve(world: World, params: Params, customer: str, transaction: str) -> Object:
    """One movement of a customer's balance."""
    return world.get(TRANSACTION, transaction, "transaction")
