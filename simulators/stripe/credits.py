"""Billing credits: grants of money that pay for metered lines when an invoice is finalised.

A grant applies to metered prices, all or those it names, from its effective time until it expires or is voided. Of
several, the one of the smallest priority number is spent first, then the one that expires first, then promotional ones
before paid ones, then the oldest. Every movement is a transaction, and a grant's balance is their sum.
"""

from collections.abc import Mapping
from typing import Any

from simulators.stripe.balances import move_balance
from simulators.stripe.changes import merge_metadata, recorded
from simulators.stripe.errors import StripeError, invalid
from simulators.stripe.operations import Params, matching, operation
from simulators.stripe.world import Object, World

GRANT = "billing.credit_grant"
TRANSACTION = "billing.credit_balance_transaction"
_SUMMARY = "billing.credit_balance_summary"

_DEFAULT_PRIORITY = 50
_MAX_PRIORITY = 100

__all__ = ["GRANT", "TRANSACTION", "balance_of", "give_back", "move_balance", "spend"]


def spend(world: World, invoice: Object, line: Object, price: str, amount: int) -> list[Object]:
    """Pay for up to so many cents of an invoice's line.

    Args:
        world: The account.
        invoice: That is being finalised.
        line: Of it, with a metered price.
        price: Id of that price.
        amount: Cents that are to be paid.

    Returns:
        The parts that credits paid, as `pretax_credit_amounts` holds them.
    """
    paid = []
    now = world.now(invoice)
    for grant in sorted(_grants_for(world, invoice, price, now), key=_turn):
        taken = min(amount, balance_of(world, grant))
        if taken <= 0:
            continue
        applied = {"invoice": invoice["id"], "invoice_line_item": line["id"]}
        made = _transact(world, grant, "debit", "credits_applied", taken, credits_applied=applied)
        paid.append({"amount": taken, "credit_balance_transaction": made["id"], "type": "credit_balance_transaction"})
        amount -= taken
    return paid


def give_back(world: World, invoice: Object) -> None:
    """Return what credits had paid of an invoice that is voided."""
    for spent in world.all(TRANSACTION):
        applied = (spent["debit"] or {}).get("credits_applied")
        if applied and applied["invoice"] == invoice["id"]:
            grant = world.get(GRANT, spent["credit_grant"])
            amount = spent["debit"]["amount"]["monetary"]["value"]
            kind = "credits_application_invoice_voided"
            _transact(world, grant, "credit", kind, amount, credits_application_invoice_voided=dict(applied))


def balance_of(world: World, grant: Object) -> int:
    """Cents that are left of a grant, whether or not it may be spent now."""
    mine = [found for found in world.all(TRANSACTION) if found["credit_grant"] == grant["id"]]
    return sum(_signed(transaction) for transaction in mine)


@operation("POST", "/v1/billing/credit_grants")
def create(world: World, params: Params) -> Object:
    """Grant credit to a customer.

    Raises:
        StripeError: 400 for an amount that is not positive, a scope that names nothing, or a time that is over.
    """
    customer = world.get("customer", params.get("customer", ""), "customer")
    now = world.now(customer)
    _check(world, params, now)
    made = world.new(
        GRANT,
        "credgr_test",
        {
            "amount": params["amount"],
            "applicability_config": {"scope": _scope(params)},
            "category": params.get("category", "paid"),
            "customer": customer["id"],
            "effective_at": params.get("effective_at", now),
            "expires_at": params.get("expires_at"),
            "metadata": {},
            "name": params.get("name"),
            "priority": params.get("priority", _DEFAULT_PRIORITY),
            "test_clock": customer["test_clock"],
            "updated": now,
            "voided_at": None,
        },
    )
    merge_metadata(made, params)
    world.emit("billing.credit_grant.created", made)
    _transact(world, made, "credit", "credits_granted", params["amount"]["monetary"]["value"])
    return made


@operation("GET", "/v1/billing/credit_grants")
def list_grants(world: World, params: Params) -> list[Object]:
    """Grants of a customer, or all."""
    return matching(world.all(GRANT), params, "customer")


@operation("GET", "/v1/billing/credit_grants/{id}")
def retrieve(world: World, params: Params, id: str) -> Object:
    """One grant."""
    return world.get(GRANT, id)


@operation("POST", "/v1/billing/credit_grants/{id}")
def update(world: World, params: Params, id: str) -> Object:
    """Change when a grant expires; with an empty value it does not."""
    grant = world.get(GRANT, id)
    with recorded(world, grant, "billing.credit_grant.updated"):
        if "expires_at" in params:
            grant["expires_at"] = params["expires_at"] or None
        merge_metadata(grant, params)
        grant["updated"] = world.now(grant)
    return grant


@operation("POST", "/v1/billing/credit_grants/{id}/expire")
def expire(world: World, params: Params, id: str) -> Object:
    """End a grant now; what is left of it is gone."""
    return _end(world, id, "expires_at", "credits_expired")


@operation("POST", "/v1/billing/credit_grants/{id}/void")
def void(world: World, params: Params, id: str) -> Object:
    """Take a grant back of which nothing was spent."""
    grant = world.get(GRANT, id)
    if balance_of(world, grant) != grant["amount"]["monetary"]["value"]:
        raise invalid("id", "A credit grant that has been applied to an invoice cannot be voided.")
    return _end(world, id, "voided_at", "credits_voided")


@operation("GET", "/v1/billing/credit_balance_summary")
def summarise(world: World, params: Params) -> Object:
    """What a customer has left, by currency: of one grant, or of those that apply to metered prices."""
    customer = world.get("customer", params.get("customer", ""), "customer")
    now = world.now(customer)
    sums: dict[str, tuple[int, int]] = {}
    for grant in _filtered(world, customer, params["filter"]):
        left = balance_of(world, grant)
        available, ledger = sums.get(grant["amount"]["monetary"]["currency"], (0, 0))
        spendable = left if _is_in_force(grant, now) else 0
        is_over = grant["expires_at"] is not None and grant["expires_at"] <= now
        sums[grant["amount"]["monetary"]["currency"]] = available + spendable, ledger + (0 if is_over else left)
    balances = [
        {"available_balance": _money(available, currency), "ledger_balance": _money(ledger, currency)}
        for currency, (available, ledger) in sums.items()
    ]
    return {"object": _SUMMARY, "balances": balances, "customer": customer["id"], "livemode": False}


@operation("GET", "/v1/billing/credit_balance_transactions")
def list_transactions(world: World, params: Params) -> list[Object]:
    """Movements of a customer's credit, or of one grant."""
    found = matching(world.all(TRANSACTION), params, "credit_grant")
    if "customer" in params:
        found = [made for made in found if world.get(GRANT, made["credit_grant"])["customer"] == params["customer"]]
    return found


@operation("GET", "/v1/billing/credit_balance_transactions/{id}")
def retrieve_transaction(world: World, params: Params, id: str) -> Object:
    """One movement."""
    return world.get(TRANSACTION, id)


def _check(world: World, params: Params, now: int) -> None:
    money = params["amount"].get("monetary")
    if money is None or money["value"] < 1:
        raise invalid("amount[monetary][value]", "Invalid amount: must be greater than 0.")
    scope = params["applicability_config"]["scope"]
    if ("price_type" in scope) == bool(scope.get("prices")):
        raise invalid("applicability_config[scope]", "A scope names either a `price_type` or `prices`.")
    for index, named in enumerate(scope.get("prices", [])):
        place = f"applicability_config[scope][prices][{index}][id]"
        price = world.get("price", named["id"], place)
        if (price["recurring"] or {}).get("usage_type") != "metered":
            raise invalid(place, "Billing credits apply to metered prices only.")
    if "expires_at" in params and params["expires_at"] <= max(now, params.get("effective_at", now)):
        raise invalid("expires_at", "Invalid expires_at: must be in the future, and after effective_at.")
    if not 0 <= params.get("priority", 0) <= _MAX_PRIORITY:
        raise invalid("priority", f"Invalid priority: must be between 0 and {_MAX_PRIORITY}.")


def _scope(params: Params) -> Object:
    scope = params["applicability_config"]["scope"]
    prices = [{"id": named["id"]} for named in scope.get("prices", [])]
    return {"price_type": scope.get("price_type"), **({"prices": prices} if prices else {})}


def _grants_for(world: World, invoice: Object, price: str, now: int) -> list[Object]:
    mine = matching(world.all(GRANT), invoice, "customer")
    return [
        grant
        for grant in mine
        if grant["amount"]["monetary"]["currency"] == invoice["currency"]
        and _is_in_force(grant, now)
        and _applies_to(grant, price)
    ]


def _applies_to(grant: Object, price: str) -> bool:
    scope = grant["applicability_config"]["scope"]
    return scope["price_type"] == "metered" or any(named["id"] == price for named in scope.get("prices", []))


def _is_in_force(grant: Object, now: int) -> bool:
    is_over = grant["expires_at"] is not None and grant["expires_at"] <= now
    return grant["voided_at"] is None and not is_over and int(grant["effective_at"]) <= now


def _turn(grant: Object) -> tuple[int, bool, int, bool, int, int]:
    expires = grant["expires_at"]
    is_paid = grant["category"] == "paid"
    return grant["priority"], expires is None, expires or 0, is_paid, grant["effective_at"], grant["created"]


def _filtered(world: World, customer: Object, wanted: Mapping[str, Any]) -> list[Object]:
    mine = [grant for grant in world.all(GRANT) if grant["customer"] == customer["id"]]
    if wanted["type"] == "credit_grant":
        grant = world.get(GRANT, wanted.get("credit_grant", ""), "filter[credit_grant]")
        return [found for found in mine if found is grant]
    scope = wanted.get("applicability_scope", {})
    named = {price["id"] for price in scope.get("prices", [])}
    return [
        grant
        for grant in mine
        if (scope.get("price_type") and grant["applicability_config"]["scope"]["price_type"] == "metered")
        or any(_applies_to(grant, price) for price in named)
    ]


def _end(world: World, id: str, moment: str, kind: str) -> Object:
    grant = world.get(GRANT, id)
    now = world.now(grant)
    is_over = grant["expires_at"] is not None and grant["expires_at"] <= now
    if is_over or grant["voided_at"] is not None:
        raise StripeError("The credit grant has already expired or been voided.", param="id")
    left = balance_of(world, grant)
    with recorded(world, grant, "billing.credit_grant.updated"):
        grant[moment] = now
        grant["updated"] = now
    if left:
        _transact(world, grant, "debit", kind, left)
    return grant


def _transact(world: World, grant: Object, side: str, kind: str, amount: int, **details: Object) -> Object:
    movement = {"amount": _money(amount, grant["amount"]["monetary"]["currency"]), "type": kind, **details}
    made = world.new(
        TRANSACTION,
        "cbtxn_test",
        {
            "credit": movement if side == "credit" else None,
            "credit_grant": grant["id"],
            "debit": movement if side == "debit" else None,
            "effective_at": max(world.now(grant), grant["effective_at"]) if side == "credit" else world.now(grant),
            "test_clock": grant["test_clock"],
            "type": side,
        },
        owner=grant,
    )
    world.emit("billing.credit_balance_transaction.created", made)
    return made


def _signed(transaction: Object) -> int:
    if transaction["credit"] is not None:
        return int(transaction["credit"]["amount"]["monetary"]["value"])
    return -int(transaction["debit"]["amount"]["monetary"]["value"])


def _money(amount: int, currency: str) -> Object:
    return {"monetary": {"currency": currency, "value": amount}, "type": "monetary"}
