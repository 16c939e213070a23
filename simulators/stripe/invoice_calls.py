"""The calls of the API about invoices and what is on them."""

from simulators.stripe import collection, discounts, invoices, payment_methods, standing, totals
from simulators.stripe.changes import merge_metadata, recorded
from simulators.stripe.errors import StripeError, invalid
from simulators.stripe.invoices import KIND, PAYMENT, Draft
from simulators.stripe.operations import Params, matching, operation
from simulators.stripe.periods import Period
from simulators.stripe.world import Object, World


@operation("POST", "/v1/invoices")
def create(world: World, params: Params) -> Object:
    """A draft outside of the cycle; it finalises by itself only with `auto_advance`."""
    if "customer" not in params:
        raise invalid("customer", "Missing required param: customer.", "parameter_missing")
    customer = world.get("customer", params["customer"], "customer")
    subscription = (
        world.get(standing.KIND, params["subscription"], "subscription") if "subscription" in params else None
    )
    now = world.now(customer)
    behavior = params.get("pending_invoice_items_behavior", "include" if subscription else "exclude")
    wanted = Draft(
        customer=customer["id"],
        currency=params.get("currency") or (subscription or {}).get("currency") or customer.get("currency") or "usd",
        reason="manual",
        period=Period(now, now),
        subscription=subscription,
        discounts=discounts.redeem(world, params.get("discounts"), "discounts", customer=customer["id"]),
        finalizes_in_s=invoices.DRAFT_S if params.get("auto_advance") else None,
        takes_pending=behavior == "include",
    )
    invoice = invoices.draft(world, wanted)
    _set(world, invoice, params)
    return invoice


@operation("GET", "/v1/invoices/{invoice}")
def retrieve(world: World, params: Params, invoice: str) -> Object:
    """One invoice; a draft's usage is counted as of now."""
    found = world.get(KIND, invoice, "invoice")
    invoices.recount(world, found)
    return found


@operation("GET", "/v1/invoices")
def list_all(world: World, params: Params) -> list[Object]:
    """Invoices by customer, subscription, status or collection method."""
    found = matching(world.all(KIND), params, "customer", "status", "collection_method")
    if "subscription" in params:
        found = [invoice for invoice in found if invoices.subscription_of(invoice) == params["subscription"]]
    for invoice in found:
        invoices.recount(world, invoice)
    return found


@operation("GET", "/v1/invoices/{invoice}/lines", is_oldest_first=True)
def list_lines(world: World, params: Params, invoice: str) -> list[Object]:
    """An invoice's lines, in their order."""
    lines: list[Object] = retrieve(world, params, invoice)["lines"]["data"]
    return lines


@operation("POST", "/v1/invoices/{invoice}")
def update(world: World, params: Params, invoice: str) -> Object:
    """Change a draft, or what may be changed of a finalised one."""
    found = world.get(KIND, invoice, "invoice")
    if found["status"] != "draft" and not params.keys() <= {
        "metadata",
        "auto_advance",
        "default_payment_method",
        "expand",
    }:
        raise StripeError("Finalized invoices can't be updated in this way", code="invoice_not_editable")
    with recorded(world, found, "invoice.updated"):
        if "discounts" in params:
            given = params["discounts"]
            found["discounts"] = discounts.redeem(world, given, "discounts", customer=found["customer"])
        _set(world, found, params)
    return found


@operation("DELETE", "/v1/invoices/{invoice}")
def delete(world: World, params: Params, invoice: str) -> Object:
    """Forget a draft; its invoice items wait again."""
    found = world.get(KIND, invoice, "invoice")
    if found["status"] != "draft" or invoices.subscription_of(found):
        raise StripeError("You can only delete draft invoices that are not for a subscription.")
    for item in world.all("invoiceitem"):
        if item["invoice"] == invoice:
            item["invoice"] = None
    world.delete(KIND, invoice)
    world.emit("invoice.deleted", found)
    return {"id": invoice, "object": KIND, "deleted": True}


@operation("POST", "/v1/invoices/{invoice}/finalize")
def finalize(world: World, params: Params, invoice: str) -> Object:
    """Finalise a draft now; with `auto_advance` it is collected within the hour, here at once."""
    found = world.get(KIND, invoice, "invoice")
    is_auto = bool(params.get("auto_advance", found["auto_advance"]))
    invoices.finalize(world, found, is_auto=is_auto)
    if is_auto and found["status"] == "open":
        # Tried when the account's or the clock's time next moves on.
        found["next_payment_attempt"] = world.now(found)
    return found


@operation("POST", "/v1/invoices/{invoice}/pay")
def pay(world: World, params: Params, invoice: str) -> Object:
    """Collect an invoice now; a draft is finalised first.

    Raises:
        StripeError: 402 for a declined card; 400 for an invoice that is paid or void, or without a card.
    """
    found = world.get(KIND, invoice, "invoice")
    if found["status"] == "draft":
        invoices.finalize(world, found)
    elif found["status"] not in ("open", "uncollectible"):
        raise StripeError(f"Invoice is already {found['status']}", code="invoice_already_" + found["status"])
    if found["status"] == "paid":
        return found
    if params.get("paid_out_of_band"):
        collection.paid(world, found, is_out_of_band=True)
        return found
    error = _attempt(world, found, params)
    if error is not None:
        raise error
    return found


@operation("POST", "/v1/invoices/{invoice}/void")
def void(world: World, params: Params, invoice: str) -> Object:
    """Make an invoice void; a subscription that waits for it is told as if it were paid."""
    found = world.get(KIND, invoice, "invoice")
    invoices.void(world, found)
    _release(world, found)
    return found


@operation("POST", "/v1/invoices/{invoice}/mark_uncollectible")
def mark_uncollectible(world: World, params: Params, invoice: str) -> Object:
    """Write an invoice off."""
    found = world.get(KIND, invoice, "invoice")
    invoices.mark_uncollectible(world, found)
    _release(world, found)
    return found


@operation("POST", "/v1/invoices/{invoice}/send")
def send(world: World, params: Params, invoice: str) -> Object:
    """Finalise where needed, and pretend to send it by e-mail."""
    found = world.get(KIND, invoice, "invoice")
    if found["status"] == "draft":
        invoices.finalize(world, found)
    world.emit("invoice.sent", found)
    return found


@operation("GET", "/v1/invoice_payments")
def list_payments(world: World, params: Params) -> list[Object]:
    """Payments of invoices, by invoice, intent or status."""
    found = matching(world.all(PAYMENT), params, "invoice", "status")
    intent = (params.get("payment") or {}).get("payment_intent")
    return [payment for payment in found if intent in (None, payment["payment"]["payment_intent"])]


@operation("GET", "/v1/invoice_payments/{invoice_payment}")
def retrieve_payment(world: World, params: Params, invoice_payment: str) -> Object:
    """One payment of an invoice."""
    return world.get(PAYMENT, invoice_payment)


def _set(world: World, invoice: Object, params: Params) -> None:
    for name in ("auto_advance", "collection_method", "description", "footer", "due_date", "default_payment_method"):
        if name in params:
            invoice[name] = params[name] if params[name] != "" else None
    if params.get("days_until_due"):
        invoice["due_date"] = world.now(invoice) + params["days_until_due"] * 86_400
    if "default_tax_rates" in params:
        rates = params["default_tax_rates"] or ()
        invoice["default_tax_rates"] = [world.get("tax_rate", rate, "default_tax_rates") for rate in rates]
    merge_metadata(invoice, params)
    if invoice["status"] == "draft":
        totals.add_up(world, invoice)
        if "auto_advance" in params:
            at = world.now(invoice) + invoices.DRAFT_S if params["auto_advance"] else None
            invoice["automatically_finalizes_at"] = at


def _attempt(world: World, invoice: Object, params: Params) -> StripeError | None:
    if "payment_method" not in params:
        return collection.attempt(world, invoice, is_automatic=False)
    method = payment_methods.resolve(world, params["payment_method"])
    if method["customer"] != invoice["customer"]:
        raise invalid("payment_method", "The payment method must be attached to the invoice's customer.")
    return collection.charge(world, invoice, method, off_session=params.get("off_session", True))


def _release(world: World, invoice: Object) -> None:
    subscription = world.find(standing.KIND, invoices.subscription_of(invoice))
    if subscription is None:
        return
    if subscription["status"] == "incomplete":
        standing.expire(world, subscription)
    else:
        standing.paid(world, subscription, invoice)
