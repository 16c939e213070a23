"""Sums of an invoice: discounts, billing credits, taxes and the total, in that order.

Billing credits come off after discounts and before tax; tax is rounded at each line. An inclusive tax is a part of the
line's amount, an exclusive one comes on top.
"""

from collections.abc import Iterable
from decimal import Decimal
from typing import Any

from simulators.stripe import discounts
from simulators.stripe.rating import cents
from simulators.stripe.world import Object, World


def add_up(world: World, invoice: Object) -> None:
    """Set every amount of a draft that follows from its lines, discounts, credits and tax rates."""
    lines = invoice["lines"]["data"]
    discounts.apply(world, lines, invoice["discounts"])
    default_rates = [rate["id"] for rate in invoice["default_tax_rates"]]
    for line in lines:
        line["invoice"] = invoice["id"]
        line["subtotal"] = line["amount"]
        line["pretax_credit_amounts"] = _pretax(line)
        line["taxes"] = _taxes(world, line, line["_tax_rates"] or default_rates)
    invoice["subtotal"] = sum(line["amount"] for line in lines)
    invoice["total_discount_amounts"] = _summed((line["discount_amounts"] for line in lines), "discount")
    invoice["total_pretax_credit_amounts"] = _summed_credits(lines)
    invoice["total_taxes"] = _summed_taxes(lines)
    inclusive = sum(tax["amount"] for tax in invoice["total_taxes"] if tax["tax_behavior"] == "inclusive")
    exclusive = sum(tax["amount"] for tax in invoice["total_taxes"] if tax["tax_behavior"] == "exclusive")
    invoice["subtotal_excluding_tax"] = invoice["subtotal"] - inclusive
    invoice["total"] = sum(taxable(line) for line in lines) + exclusive
    invoice["total_excluding_tax"] = invoice["total"] - inclusive - exclusive
    _settle(world, invoice)


def taxable(line: Object) -> int:
    """A line's cents after discounts and billing credits."""
    return discounts.net(line) - sum(int(credit["amount"]) for credit in line.get("_credits", ()))


def minimum_charge(currency: str) -> int:
    """The least that can be charged, in the currency's minor unit: 0.50 of most currencies."""
    return {"gbp": 30, "jpy": 50, "mxn": 1000}.get(currency, 50)


def _settle(world: World, invoice: Object) -> None:
    """What is due now: what the customer's balance does not cover, and nothing where it is too little to charge.

    A negative total, and an amount below the minimum, go to the customer's balance when the invoice is finalised.
    """
    customer = world.find("customer", invoice["customer"]) or {}
    balance = int(customer.get("balance") or 0)
    # At Stripe a negative balance is the customer's credit, a positive one a debt added to the next invoice.
    owed = invoice["total"] + balance
    is_chargeable = owed >= minimum_charge(invoice["currency"])
    invoice["starting_balance"] = balance
    invoice["amount_due"] = owed if is_chargeable else 0
    invoice["amount_remaining"] = invoice["amount_due"] - invoice["amount_paid"]
    invoice["_ending_balance"] = 0 if is_chargeable else owed


def _pretax(line: Object) -> list[Object]:
    taken = [
        {"amount": part["amount"], "credit_balance_transaction": None, "discount": part["discount"], "type": "discount"}
        for part in line["discount_amounts"]
    ]
    return taken + [{**credit, "discount": None} for credit in line.get("_credits", ())]


def _taxes(world: World, line: Object, rates: Iterable[str]) -> list[Object]:
    base = taxable(line)
    found = [world.get("tax_rate", rate) for rate in rates]
    inclusive = sum(Decimal(str(rate["percentage"])) for rate in found if rate["inclusive"])
    without = Decimal(base) / (1 + Decimal(inclusive) / 100)
    return [
        {
            "amount": cents(without * Decimal(str(rate["percentage"])) / 100),
            "tax_behavior": "inclusive" if rate["inclusive"] else "exclusive",
            "tax_rate_details": {"tax_rate": rate["id"]},
            "taxability_reason": "not_available",
            "taxable_amount": cents(without),
            "type": "tax_rate_details",
        }
        for rate in found
    ]


def _summed(groups: Iterable[list[Object]], by: str) -> list[Object]:
    sums: dict[Any, int] = {}
    for group in groups:
        for part in group:
            sums[part[by]] = sums.get(part[by], 0) + part["amount"]
    return [{"amount": amount, by: key} for key, amount in sums.items()]


def _summed_credits(lines: Iterable[Object]) -> list[Object]:
    sums: dict[tuple[Any, Any, str], int] = {}
    for line in lines:
        for part in line["pretax_credit_amounts"]:
            key = (part["credit_balance_transaction"], part["discount"], part["type"])
            sums[key] = sums.get(key, 0) + part["amount"]
    return [
        {"amount": amount, "credit_balance_transaction": transaction, "discount": discount, "type": type}
        for (transaction, discount, type), amount in sums.items()
    ]


def _summed_taxes(lines: Iterable[Object]) -> list[Object]:
    sums: dict[str, Object] = {}
    for line in lines:
        for tax in line["taxes"]:
            entry = sums.setdefault(tax["tax_rate_details"]["tax_rate"], {**tax, "amount": 0, "taxable_amount": 0})
            entry["amount"] += tax["amount"]
            entry["taxable_amount"] += tax["taxable_amount"]
    return list(sums.values())
