"""Invoice items: amounts that wait for the customer's next invoice.

Prorations and usage billed at a change of price are invoice items too. All that is pending goes onto the next invoice:
a subscription's items onto that subscription's, items without a subscription onto whichever invoice comes first.
"""

from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from simulators.stripe import discounts
from simulators.stripe.changes import merge_metadata
from simulators.stripe.errors import StripeError, invalid
from simulators.stripe.lines import of_invoice_item, pricing, product_name
from simulators.stripe.operations import Params, matching, operation
from simulators.stripe.rating import cents, plain
from simulators.stripe.totals import add_up
from simulators.stripe.world import Object, World

KIND = "invoiceitem"


def make(world: World, customer: str, currency: str, amount: int, fields: Mapping[str, Any]) -> Object:
    """Store a pending invoice item and tell of it.

    Args:
        world: The account.
        customer: Who owes it, or (below zero) is owed it.
        currency: Three letters.
        amount: Whole cents.
        fields: Whatever else differs from a plain item.
    """
    now = world.now(world.get("customer", customer))
    item = {
        "amount": amount,
        "currency": currency,
        "customer": customer,
        "date": now,
        "description": None,
        "discountable": amount >= 0,
        "discounts": [],
        "invoice": None,
        "metadata": {},
        "net_amount": amount,
        "parent": None,
        "period": {"start": now, "end": now},
        "pricing": {"price_details": None, "type": "price_details", "unit_amount_decimal": str(amount)},
        "proration": False,
        "proration_details": None,
        "quantity": 1,
        "quantity_decimal": "1",
        "tax_rates": [],
        "test_clock": world.get("customer", customer).get("test_clock"),
        **fields,
    }
    made = world.new(KIND, "ii", item)
    # An invoice item tells its time as `date`, and has no `created`.
    del made["created"]
    world.emit("invoiceitem.created", made)
    return made


def pending(world: World, customer: str, currency: str, subscription: str | None) -> list[Object]:
    """What waits for the next invoice of a subscription, or of the customer alone."""
    found = []
    for item in world.all(KIND):
        parent = ((item["parent"] or {}).get("subscription_details") or {}).get("subscription")
        is_ours = item["customer"] == customer and item["currency"] == currency and item["invoice"] is None
        if is_ours and parent in (None, subscription):
            found.append(item)
    return found


def forget_prorations(world: World, subscription: Object) -> None:
    """Delete the prorations of a subscription that no invoice has taken up."""
    for item in pending(world, subscription["customer"], subscription["currency"], subscription["id"]):
        if item["proration"] and item["parent"] is not None:
            world.delete(KIND, item["id"])
            world.emit("invoiceitem.deleted", item)


def of_subscription(subscription: Object, item: Object | None = None) -> Object:
    """The `parent` of an invoice item that belongs to a subscription."""
    details = {"subscription": subscription["id"], "subscription_item": item["id"] if item else None}
    return {"subscription_details": details, "type": "subscription_details"}


@operation("POST", "/v1/invoiceitems")
def create(world: World, params: Params) -> Object:
    """An amount of the caller's choosing, or a price times a quantity."""
    if "customer" not in params:
        raise invalid("customer", "Missing required param: customer.", "parameter_missing")
    customer = world.get("customer", params["customer"], "customer")
    amount, fields = _amount(world, params)
    if params.get("subscription"):
        subscription = world.get("subscription", params["subscription"], "subscription")
        fields["parent"] = of_subscription(subscription)
    if params.get("invoice"):
        _require_draft(world, params["invoice"])
        fields["invoice"] = params["invoice"]
    for name in ("description", "discountable", "metadata", "period"):
        if name in params:
            fields[name] = params[name] or ({} if name == "metadata" else params[name])
    fields["tax_rates"] = [world.get("tax_rate", rate, "tax_rates") for rate in params.get("tax_rates") or ()]
    fields["discounts"] = discounts.redeem(world, params.get("discounts"), "discounts", customer=customer["id"])
    made = make(world, customer["id"], fields.pop("currency"), amount, fields)
    if made["invoice"] is not None:
        draft = world.get("invoice", made["invoice"])
        draft["lines"]["data"].append(of_invoice_item(world, made))
        add_up(world, draft)
    return made


@operation("GET", "/v1/invoiceitems/{invoiceitem}")
def retrieve(world: World, params: Params, invoiceitem: str) -> Object:
    """One item, pending or invoiced."""
    return world.get(KIND, invoiceitem)


@operation("GET", "/v1/invoiceitems")
def list_all(world: World, params: Params) -> list[Object]:
    """All items, or those of a customer, of an invoice, or pending."""
    found = matching(world.all(KIND), params, "customer", "invoice")
    if "pending" in params:
        found = [item for item in found if (item["invoice"] is None) == params["pending"]]
    return found


@operation("POST", "/v1/invoiceitems/{invoiceitem}")
def update(world: World, params: Params, invoiceitem: str) -> Object:
    """Change a pending item's amount, description or metadata."""
    item = world.get(KIND, invoiceitem)
    _require_pending(item)
    if "amount" in params:
        item["amount"] = item["net_amount"] = params["amount"]
    if "description" in params:
        item["description"] = params["description"]
    merge_metadata(item, params)
    return item


@operation("DELETE", "/v1/invoiceitems/{invoiceitem}")
def delete(world: World, params: Params, invoiceitem: str) -> Object:
    """Forget a pending item."""
    item = world.get(KIND, invoiceitem)
    _require_pending(item)
    world.delete(KIND, invoiceitem)
    world.emit("invoiceitem.deleted", item)
    return {"id": invoiceitem, "object": KIND, "deleted": True}


def _amount(world: World, params: Params) -> tuple[int, dict[str, Any]]:
    price_id = (params.get("pricing") or {}).get("price")
    if price_id is None:
        if "amount" not in params:
            raise invalid("amount", "You must pass either `amount` or `pricing`.", "parameter_missing")
        if "currency" not in params:
            raise invalid("currency", "Missing required param: currency.", "parameter_missing")
        return params["amount"], {"currency": params["currency"]}
    price = world.get("price", price_id, "pricing[price]")
    if price["type"] != "one_time":
        raise invalid("pricing[price]", f"The price {price_id} must be one_time for an invoice item.")
    quantity = params.get("quantity", 1)
    unit = Decimal(price["unit_amount_decimal"])
    fields = {
        "currency": price["currency"],
        "description": product_name(world, price),
        "pricing": pricing(price, unit),
        "quantity": quantity,
        "quantity_decimal": plain(Decimal(quantity)),
    }
    return cents(unit * quantity), fields


def _require_draft(world: World, invoice: str) -> None:
    if world.get("invoice", invoice, "invoice")["status"] != "draft":
        raise invalid("invoice", "Invoice items can only be added to draft invoices.", "invoice_not_editable")


def _require_pending(item: Object) -> None:
    if item["invoice"] is not None:
        raise StripeError("This invoice item is already on an invoice and can no longer be changed.", param="id")
