"""Coupons at work: what a discount takes off each line of an invoice.

A percentage is taken from each line and rounded there; an amount is shared out over the lines in proportion, so that
the parts add up to it exactly. Discounts apply one after the other, in the order in which they were given.
"""

from collections.abc import Iterable, Mapping
from decimal import Decimal
from typing import Any

from simulators.stripe.errors import invalid
from simulators.stripe.ids import new_id
from simulators.stripe.periods import add_months
from simulators.stripe.rating import cents
from simulators.stripe.world import Object, World


def redeem(
    world: World,
    given: Any,  # noqa: ANN401 - a parameter
    param: str,
    *,
    currency: str | None = None,
    **belongs_to: str,
) -> list[str]:
    """Make discounts of a parameter `discounts`; returns their ids.

    Args:
        world: The account.
        given: A list of coupons, promotion codes and existing discounts; `""` for none.
        param: The parameter's name, for errors.
        currency: What an amount is taken off; None where that is not known yet.
        belongs_to: `customer` and one of `subscription`, `subscription_item`, `invoice`, `invoice_item`.

    Raises:
        StripeError: As `resolve`, with nothing redeemed.
    """
    customer = world.find("customer", belongs_to.get("customer"))
    found: list[Object | tuple[Object, Object | None]] = []
    for index, entry in enumerate(given or ()):
        place = f"{param}[{index}]"
        if entry.get("discount"):
            found.append(world.get("discount", entry["discount"], f"{place}[discount]"))
        else:
            found.append(resolve(world, entry, place, customer, currency=currency))
    return [one["id"] if isinstance(one, dict) else _discount(world, *one, belongs_to)["id"] for one in found]


def resolve(
    world: World,
    entry: Mapping[str, Any],
    place: str,
    customer: Object | None,
    *,
    currency: str | None = None,
    subtotal: int | None = None,
) -> tuple[Object, Object | None]:
    """The coupon that an entry of `discounts` names, and the promotion code if it names one; nothing is redeemed.

    Args:
        world: The account.
        entry: With `coupon` or `promotion_code`.
        place: The entry's name, for errors.
        customer: Who would redeem it; None for one who is not known yet.
        currency: What an amount is taken off; None where that is not known yet.
        subtotal: Cents of what is bought; likewise.

    Raises:
        StripeError: `resource_missing` for what there is not, 400 for what is not valid, or not for this customer, this
            amount or this currency.
    """
    code = None
    if entry.get("promotion_code"):
        code = world.get("promotion_code", entry["promotion_code"], f"{place}[promotion_code]")
        _check_code(world, code, f"{place}[promotion_code]", customer, subtotal)
    coupon = world.get("coupon", code["promotion"]["coupon"] if code else entry.get("coupon", ""), f"{place}[coupon]")
    if not coupon["valid"]:
        raise invalid(f"{place}[coupon]", f"Coupon expired: {coupon['id']}", "coupon_expired")
    if coupon["amount_off"] is not None and currency not in (None, coupon["currency"]):
        raise invalid(f"{place}[coupon]", f"The coupon {coupon['id']} is in {coupon['currency']}, not in {currency}.")
    return coupon, code


def coupon_of(world: World, discount: str) -> Object:
    """The coupon behind a discount."""
    return world.get("coupon", world.get("discount", discount)["source"]["coupon"])


def running(world: World, discounts: Iterable[str], moment: int) -> list[str]:
    """Those that have not ended by a moment."""
    found = [world.get("discount", discount) for discount in discounts]
    return [discount["id"] for discount in found if discount["end"] is None or moment < discount["end"]]


def lasting(world: World, discounts: Iterable[str]) -> list[str]:
    """Those that outlive the invoice they were just applied to: all but those that apply once."""
    return [discount for discount in discounts if coupon_of(world, discount)["duration"] != "once"]


def apply(world: World, lines: list[Object], discounts: Iterable[str]) -> None:
    """Set each line's `discount_amounts`, first its own discounts and then these."""
    for line in lines:
        line["discount_amounts"] = []
        for discount in line["discounts"]:
            _apply(world, [line], discount)
    for discount in discounts:
        _apply(world, lines, discount)


def net(line: Mapping[str, Any]) -> int:
    """A line's cents after its discounts, before credits and tax."""
    return int(line["amount"]) - sum(int(taken["amount"]) for taken in line["discount_amounts"] or ())


def _check_code(world: World, code: Object, place: str, customer: Object | None, subtotal: int | None) -> None:
    if not code["active"]:
        raise invalid(place, "This promotion code is not active.", "promotion_code_inactive")
    if code["customer"] is not None and (customer is None or customer["id"] != code["customer"]):
        raise invalid(place, "This promotion code is for another customer.")
    restrictions = code["restrictions"]
    if restrictions["first_time_transaction"] and customer is not None and _has_paid(world, customer):
        message = "This promotion code cannot be redeemed because the associated customer has prior transactions."
        raise invalid(place, message)
    if subtotal is not None and subtotal < (restrictions["minimum_amount"] or 0):
        raise invalid(place, "This promotion code cannot be redeemed for so small an amount.")


def _has_paid(world: World, customer: Object) -> bool:
    return any(charge["paid"] and charge["customer"] == customer["id"] for charge in world.all("charge"))


def _discount(world: World, coupon: Object, code: Object | None, belongs_to: Mapping[str, Any]) -> Object:
    customer = world.find("customer", belongs_to.get("customer"))
    start = world.now(customer)
    months = coupon["duration_in_months"]
    fields = {
        **belongs_to,
        "id": new_id("di"),
        "object": "discount",
        "end": add_months(start, int(months)) if months else None,
        "promotion_code": code["id"] if code else None,
        "source": {"coupon": coupon["id"], "type": "coupon"},
        "start": start,
    }
    for redeemed in filter(None, (coupon, code)):
        redeemed["times_redeemed"] += 1
        limit = redeemed.get("max_redemptions")
        if limit is not None and redeemed["times_redeemed"] >= limit:
            redeemed["valid" if redeemed is coupon else "active"] = False
    return world.put(fields)


def _apply(world: World, lines: list[Object], discount: str) -> None:
    coupon = coupon_of(world, discount)
    eligible = [line for line in lines if _is_eligible(world, coupon, line)]
    amounts = _amounts(coupon, [net(line) for line in eligible])
    for line, amount in zip(eligible, amounts, strict=True):
        if amount:
            line["discount_amounts"].append({"amount": amount, "discount": discount})


def _is_eligible(world: World, coupon: Object, line: Object) -> bool:
    if not line["discountable"] or net(line) <= 0:
        return False
    products = (coupon.get("applies_to") or {}).get("products")
    if not products:
        return True
    details = (line["pricing"] or {}).get("price_details") or {}
    return details.get("product") in products


def _amounts(coupon: Object, nets: list[int]) -> list[int]:
    if coupon["percent_off"] is not None:
        return [cents(Decimal(amount) * Decimal(str(coupon["percent_off"])) / 100) for amount in nets]
    return shared_out(min(int(coupon["amount_off"]), sum(nets)), nets)


def shared_out(amount: int, weights: list[int]) -> list[int]:
    """Whole cents in proportion to weights; they add up to the amount."""
    left, weight_left = amount, sum(weights)
    parts = []
    for weight in weights:
        part = cents(Decimal(left) * weight / weight_left) if weight_left else 0
        parts.append(part)
        left, weight_left = left - part, weight_left - weight
    return parts
