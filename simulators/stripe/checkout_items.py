"""What a checkout session sells, and for how much."""

from collections.abc import Iterable
from decimal import Decimal
from typing import Any

from simulators.stripe import discounts, invoice_items, invoices, items, prices, products, usage
from simulators.stripe.errors import invalid
from simulators.stripe.ids import new_id
from simulators.stripe.invoices import Draft
from simulators.stripe.lines import pricing, product_name
from simulators.stripe.operations import Params
from simulators.stripe.periods import Period
from simulators.stripe.rating import cents, plain, total
from simulators.stripe.world import Object, World


def of_params(world: World, params: Params) -> list[Object]:
    """The line items of a new session.

    Raises:
        StripeError: 400 for a price that does not fit the mode, and for intervals that differ.
    """
    made = []
    for index, entry in enumerate(params["line_items"]):
        price = _price(world, entry, f"line_items[{index}]")
        made.append(_line(world, params["mode"], entry, price, f"line_items[{index}]"))
    recurring = [line["price"] for line in made if line["price"]["recurring"]]
    if not items.are_alike(recurring):
        message = "Checkout does not support multiple prices with different billing intervals."
        raise invalid("line_items", message, "checkout_mixed_intervals")
    if params["mode"] == "subscription" and not recurring:
        raise invalid("mode", "You must provide at least one recurring price in `subscription` mode.")
    return made


def totals(world: World, lines: list[Object], params: Params) -> Object:
    """The amounts of a new session: nothing for a trial, and for usage, which is billed afterwards."""
    if not lines:
        return {
            "amount_subtotal": None,
            "amount_total": None,
            "currency": params.get("currency"),
            "total_details": None,
        }
    data = params.get("subscription_data") or {}
    is_trial = bool(data.get("trial_period_days") or data.get("trial_end"))
    due = [line for line in lines if not (is_trial and line["price"]["recurring"])]
    subtotal = sum(line["amount_subtotal"] for line in due)
    currency = lines[0]["currency"]
    # Codes are looked at here already, so that one that is not valid is refused before anyone pays.
    customer = world.find("customer", params.get("customer"))
    amount = discount_of(world, subtotal, params.get("discounts") or (), customer, currency)
    return {**_amounts(subtotal, amount), "currency": currency}


def discounted(world: World, session: Object, promotions: Iterable[Object]) -> Object:
    """A session's amounts with what its customer brings.

    Raises:
        StripeError: 400 for a coupon or a code that is not for this purchase.
    """
    customer = world.find("customer", session["customer"])
    subtotal = session["amount_subtotal"]
    return _amounts(subtotal, discount_of(world, subtotal, promotions, customer, session["currency"]))


def totals_of_invoice(invoice: Object) -> Object:
    """A session's amounts, as the invoice that it made has them."""
    taken = sum(part["amount"] for part in invoice["total_discount_amounts"])
    tax = sum(part["amount"] for part in invoice["total_taxes"])
    details = {"amount_discount": taken, "amount_shipping": 0, "amount_tax": tax}
    return {"amount_subtotal": invoice["subtotal"], "amount_total": invoice["total"], "total_details": details}


def discount_of(
    world: World, subtotal: int, promotions: Iterable[Object], customer: Object | None, currency: str
) -> int:
    """What coupons and codes take off an amount, without being redeemed."""
    left = subtotal
    for index, entry in enumerate(promotions):
        place = f"discounts[{index}]"
        coupon, _ = discounts.resolve(world, entry, place, customer, currency=currency, subtotal=subtotal)
        if coupon["percent_off"] is not None:
            left -= cents(Decimal(left) * Decimal(str(coupon["percent_off"])) / 100)
        else:
            left -= min(left, int(coupon["amount_off"]))
    return subtotal - left


def subscription_items(lines: Iterable[Object]) -> list[Object]:
    """The items of the subscription that a session makes."""
    found = []
    for line in lines:
        quantity = {} if usage.is_metered(line["price"]) else {"quantity": line["quantity"]}
        rates = {"tax_rates": line["_tax_rates"]} if line["_tax_rates"] else {}
        if line["price"]["recurring"]:
            found.append({"price": line["price"]["id"], **quantity, **rates})
    return found


def invoice_of(world: World, session: Object, customer: Object, promotions: list[Object]) -> Object:
    """The invoice of a single payment, finalised."""
    for line in session["_items"]:
        unit = Decimal(line["price"]["unit_amount_decimal"])
        fields = {
            "description": line["description"],
            "pricing": pricing(line["price"], unit),
            "quantity": line["quantity"],
            "quantity_decimal": plain(Decimal(line["quantity"])),
        }
        invoice_items.make(world, customer["id"], line["currency"], line["amount_subtotal"], fields)
    now = world.now(customer)
    wanted = Draft(
        customer=customer["id"],
        currency=session["currency"],
        reason="manual",
        period=Period(now, now),
        discounts=discounts.redeem(world, promotions, "discounts", customer=customer["id"]),
        finalizes_in_s=None,
    )
    invoice = invoices.draft(world, wanted)
    invoices.finalize(world, invoice)
    return invoice


def _price(world: World, entry: Params, param: str) -> Object:
    if "price" in entry:
        price = world.get("price", entry["price"], f"{param}[price]")
        if not price["active"]:
            raise invalid(f"{param}[price]", f"The price specified is inactive: {price['id']}")
        return price
    if "price_data" not in entry:
        raise invalid(param, "You must specify either `price` or `price_data`.", "parameter_missing")
    given = dict(entry["price_data"])
    if "product_data" in given:
        given["product"] = products.make(world, given.pop("product_data"))["id"]
    return prices.make(world, given, f"{param}[price_data]")


def _line(world: World, mode: str, entry: Params, price: Object, param: str) -> Object:
    is_usage = bool(price["recurring"]) and usage.is_metered(price)
    if mode == "payment" and price["recurring"]:
        raise invalid(f"{param}[price]", "You specified `payment` mode but passed a recurring price.")
    if is_usage and "quantity" in entry:
        raise invalid(f"{param}[quantity]", "Quantity should not be specified where usage_type is `metered`.")
    if not is_usage and entry.get("quantity", 0) < 1:
        raise invalid(f"{param}[quantity]", "Quantity is required.", "parameter_missing")
    quantity = None if is_usage else entry["quantity"]
    subtotal = 0 if quantity is None else cents(total(price, quantity))
    for rate in entry.get("tax_rates") or ():
        world.get("tax_rate", rate, f"{param}[tax_rates]")
    return {
        "id": new_id("li"),
        "object": "item",
        "amount_discount": 0,
        "amount_subtotal": subtotal,
        "amount_tax": 0,
        "amount_total": subtotal,
        "currency": price["currency"],
        "description": product_name(world, price),
        "metadata": dict(entry.get("metadata") or {}),
        "price": price,
        "quantity": quantity,
        "_tax_rates": list(entry.get("tax_rates") or ()),
    }


def _amounts(subtotal: int, discount: int) -> dict[str, Any]:
    details = {"amount_discount": discount, "amount_shipping": 0, "amount_tax": 0}
    return {"amount_subtotal": subtotal, "amount_total": subtotal - discount, "total_details": details}
