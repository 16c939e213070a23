"""Invoices: made as a draft, finalised, then paid, void or uncollectible.

While an invoice is a draft its lines of usage follow the meter: an event that arrives late, with a timestamp inside the
period, still counts. Finalising fixes them, applies billing credits and the customer's balance, and makes the payment
intent. Collecting is `collection.py`.
"""

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from simulators.stripe import credits, discounts, invoice_items, lines, payments, totals
from simulators.stripe.errors import StripeError
from simulators.stripe.operations import included, listing
from simulators.stripe.periods import SECONDS_PER_DAY, Period
from simulators.stripe.usage import is_metered
from simulators.stripe.world import Object, World

KIND = "invoice"
PAYMENT = "invoice_payment"
DRAFT_S = 3600
"""How long a renewal's invoice stays a draft."""

_UNSETTLED = ("open", "uncollectible")
_BLANK: Object = {
    "account_country": "US",
    "account_name": "Simulated account",
    "amount_overpaid": 0,
    "amount_paid": 0,
    "amount_shipping": 0,
    "attempt_count": 0,
    "attempted": False,
    "customer_tax_ids": [],
    "default_payment_method": None,
    "issuer": {"type": "self"},
    "metadata": {},
    "post_payment_credit_notes_amount": 0,
    "pre_payment_credit_notes_amount": 0,
    "status": "draft",
    "payment_settings": {"default_mandate": None, "payment_method_options": None, "payment_method_types": None},
    "status_transitions": dict.fromkeys(("finalized_at", "marked_uncollectible_at", "paid_at", "voided_at")),
}


@dataclass(frozen=True, slots=True)
class Draft:
    """What an invoice is made of.

    Attributes:
        reason: Stripe's `billing_reason`.
        period: Of usage: the one that ended; a moment for the first invoice.
        lines: Besides the pending invoice items, which are always taken up.
        finalizes_in_s: When Stripe finalises it by itself; None leaves that to the caller.
        takes_pending: Whether pending invoice items are taken up.
    """

    customer: str
    currency: str
    reason: str
    period: Period
    subscription: Object | None = None
    lines: list[Object] = field(default_factory=list)
    discounts: list[str] = field(default_factory=list)
    finalizes_in_s: int | None = DRAFT_S
    takes_pending: bool = True


def draft(world: World, wanted: Draft) -> Object:
    """Make a draft, take up what is pending, and tell of it."""
    customer = world.get("customer", wanted.customer)
    invoice = world.new(KIND, "in", _fields(world, wanted, customer), owner=customer)
    invoice["lines"] = listing(f"/v1/invoices/{invoice['id']}/lines", wanted.lines)
    if wanted.takes_pending:
        _take_up(world, invoice, wanted.subscription)
    totals.add_up(world, invoice)
    world.emit("invoice.created", invoice)
    return invoice


def recount(world: World, invoice: Object) -> None:
    """Count a draft's usage anew; an invoice that is no draft stays as it is. Lines keep their ids."""
    if invoice["status"] != "draft":
        return
    usages = [line for line in invoice["lines"]["data"] if "_usage" in line]
    if not usages:
        return
    found: list[Object] = []
    done: list[Mapping[str, object]] = []
    for line in invoice["lines"]["data"]:
        usage = line.get("_usage")
        if usage is None:
            found.append(line)
        elif usage not in done:
            done.append(usage)
            found += _recounted(world, line, [old for old in usages if old["_usage"] == usage])
    invoice["lines"]["data"] = found
    totals.add_up(world, invoice)


def finalize(world: World, invoice: Object, *, is_auto: bool = True) -> None:
    """Fix a draft's amounts, number it and open it; one with nothing due is paid at once.

    Raises:
        StripeError: 400 unless it is a draft.
    """
    if invoice["status"] != "draft":
        raise StripeError("This invoice is already finalized, you can't re-finalize a non-draft invoice.")
    recount(world, invoice)
    _apply_credits(world, invoice)
    totals.add_up(world, invoice)
    _apply_balance(world, invoice)
    customer = world.get("customer", invoice["customer"])
    now = world.now(invoice)
    page = f"{world.base_url}/invoices/{invoice['id']}"
    invoice.update(
        auto_advance=is_auto,
        automatically_finalizes_at=None,
        effective_at=now,
        hosted_invoice_url=page,
        invoice_pdf=f"{page}/pdf",
        number=_number(customer),
        status="open",
    )
    invoice["status_transitions"]["finalized_at"] = now
    if invoice["amount_due"] > 0:
        _intend(world, invoice)
    world.emit("invoice.finalized", invoice)
    if invoice["amount_due"] == 0:
        mark_paid(world, invoice)


def mark_paid(world: World, invoice: Object, *, is_out_of_band: bool = False) -> None:
    """Nothing is owed any more."""
    now = world.now(invoice)
    payment = _payment(world, invoice)
    if payment is not None:
        payment.update(amount_paid=0 if is_out_of_band else invoice["amount_due"])
        payment.update(status="canceled" if is_out_of_band else "paid")
        payment["status_transitions"]["canceled_at" if is_out_of_band else "paid_at"] = now
    invoice.update(
        amount_paid=invoice["amount_due"],
        amount_remaining=0,
        attempted=True,
        next_payment_attempt=None,
        status="paid",
    )
    invoice["status_transitions"]["paid_at"] = now
    if payment is not None and not is_out_of_band:
        world.emit("invoice_payment.paid", payment)
    world.emit("invoice.paid", invoice)
    world.emit("invoice.payment_succeeded", invoice)


def void(world: World, invoice: Object) -> None:
    """Nobody has to pay it, as if it had never been; its credits are given back.

    Raises:
        StripeError: 400 for a draft, and for one that is paid or void.
    """
    _require_unsettled(invoice, "void")
    credits.give_back(world, invoice)
    _return_balance(world, invoice)
    _close(world, invoice, "void", "voided_at")
    world.emit("invoice.voided", invoice)


def mark_uncollectible(world: World, invoice: Object) -> None:
    """Nobody expects it to be paid; it still can be.

    Raises:
        StripeError: 400 unless it is open.
    """
    if invoice["status"] != "open":
        raise StripeError(f"Only open invoices can be marked uncollectible; this one is {invoice['status']}.")
    invoice.update(status="uncollectible", next_payment_attempt=None)
    invoice["status_transitions"]["marked_uncollectible_at"] = world.now(invoice)
    world.emit("invoice.marked_uncollectible", invoice)


def intent_of(world: World, invoice: Object) -> Object | None:
    """The payment intent of an invoice that was finalised with something due."""
    payment = _payment(world, invoice)
    return world.get("payment_intent", payment["payment"]["payment_intent"]) if payment else None


def subscription_of(invoice: Mapping[str, object]) -> str | None:
    """The id of the subscription that an invoice is for."""
    parent = invoice.get("parent")
    details = parent.get("subscription_details") if isinstance(parent, Mapping) else None
    return str(details["subscription"]) if details else None


@included(KIND, "payments")
def payments_of(world: World, invoice: Object) -> Object:
    """An invoice's payments."""
    mine = [found for found in world.all(PAYMENT) if found["invoice"] == invoice["id"]]
    return listing(f"/v1/invoice_payments?invoice={invoice['id']}", mine)


@included(KIND, "confirmation_secret")
def confirmation_secret_of(world: World, invoice: Object) -> Object | None:
    """What a browser needs to pay an open invoice."""
    intent = intent_of(world, invoice)
    return {"client_secret": intent["client_secret"], "type": "payment_intent"} if intent else None


def _fields(world: World, wanted: Draft, customer: Object) -> Object:
    subscription = wanted.subscription
    now = world.now(customer)
    automatic_tax = subscription["automatic_tax"] if subscription else {"enabled": False, "liability": None}
    days_until_due = subscription["days_until_due"] if subscription else None
    finalizes_at = None if wanted.finalizes_in_s is None else now + wanted.finalizes_in_s
    return {
        **copy.deepcopy(_BLANK),
        "auto_advance": wanted.finalizes_in_s is not None,
        "automatic_tax": {**automatic_tax, "provider": None, "status": None},
        "automatically_finalizes_at": finalizes_at,
        "billing_reason": wanted.reason,
        "collection_method": subscription["collection_method"] if subscription else "charge_automatically",
        "currency": wanted.currency,
        "customer": customer["id"],
        "customer_address": customer.get("address"),
        "customer_email": customer.get("email"),
        "customer_name": customer.get("name"),
        "customer_tax_exempt": customer.get("tax_exempt") or "none",
        "default_tax_rates": copy.deepcopy(subscription["default_tax_rates"]) if subscription else [],
        "description": subscription["description"] if subscription else None,
        "discounts": discounts.running(world, wanted.discounts, now),
        "due_date": now + days_until_due * SECONDS_PER_DAY if days_until_due else None,
        "next_payment_attempt": finalizes_at,
        "parent": _parent(subscription),
        "period_end": wanted.period.end,
        "period_start": wanted.period.start,
        "test_clock": customer.get("test_clock"),
    }


def _parent(subscription: Object | None) -> Object | None:
    if subscription is None:
        return None
    details = {"metadata": dict(subscription["metadata"]), "subscription": subscription["id"]}
    return {"subscription_details": details, "type": "subscription_details"}


def _take_up(world: World, invoice: Object, subscription: Object | None) -> None:
    owner = subscription["id"] if subscription else None
    for item in invoice_items.pending(world, invoice["customer"], invoice["currency"], owner):
        item["invoice"] = invoice["id"]
        invoice["lines"]["data"].append(lines.of_invoice_item(world, item))


def _recounted(world: World, line: Object, former: Iterable[Object]) -> list[Object]:
    """The lines of one item's usage as it is now, with the ids of the former ones as far as there are any."""
    details = line["parent"]["subscription_item_details"]
    subscription = world.get("subscription", details["subscription"])
    item = {"id": details["subscription_item"], "price": world.get("price", line["_usage"]["price"])}
    item |= {"discounts": line["discounts"], "metadata": {}}
    item["tax_rates"] = [world.get("tax_rate", rate) for rate in line["_tax_rates"]]
    made = lines.of_usage(world, subscription, item, line["_usage"])
    for new, old in zip(made, former, strict=False):
        new.update(id=old["id"], metadata=old["metadata"])
    return made


def _apply_credits(world: World, invoice: Object) -> None:
    """Let billing credits pay for lines of metered prices, as far as they reach."""
    for line in invoice["lines"]["data"]:
        details = (line["pricing"] or {}).get("price_details")
        if details and is_metered(world.get("price", details["price"])) and discounts.net(line) > 0:
            line["_credits"] = credits.spend(world, invoice, line, details["price"], discounts.net(line))


def _apply_balance(world: World, invoice: Object) -> None:
    """Settle with the customer's balance, where a negative amount is the customer's credit."""
    customer = world.get("customer", invoice["customer"])
    invoice["ending_balance"] = invoice.pop("_ending_balance")
    moved = invoice["ending_balance"] - invoice["starting_balance"]
    if moved:
        credits.move_balance(world, customer, moved, invoice["currency"], invoice["id"])


def _return_balance(world: World, invoice: Object) -> None:
    moved = (invoice["ending_balance"] or 0) - invoice["starting_balance"]
    if moved:
        customer = world.get("customer", invoice["customer"])
        credits.move_balance(world, customer, -moved, invoice["currency"], invoice["id"])


def _number(customer: Object) -> str:
    sequence = customer.get("next_invoice_sequence") or 1
    customer["next_invoice_sequence"] = sequence + 1
    return f"{customer.get('invoice_prefix') or 'SIM'}-{sequence:04d}"


def _intend(world: World, invoice: Object) -> None:
    description = {"subscription_create": "Subscription creation", "manual": "Payment for Invoice"}
    fields = {
        "description": description.get(invoice["billing_reason"], "Subscription update"),
        "setup_future_usage": "off_session" if subscription_of(invoice) else None,
        "_invoice": invoice["id"],
    }
    intent = payments.intend(world, invoice["customer"], invoice["amount_due"], invoice["currency"], fields)
    payment = {
        "amount_paid": None,
        "amount_requested": invoice["amount_due"],
        "currency": invoice["currency"],
        "invoice": invoice["id"],
        "is_default": True,
        "payment": {"payment_intent": intent["id"], "type": "payment_intent"},
        "status": "open",
        "status_transitions": {"canceled_at": None, "paid_at": None},
    }
    invoice["_payment"] = world.new(PAYMENT, "inpay", payment, owner=invoice)["id"]


def _payment(world: World, invoice: Object) -> Object | None:
    return world.find(PAYMENT, invoice.get("_payment"))


def _close(world: World, invoice: Object, status: str, transition: str) -> None:
    now = world.now(invoice)
    invoice.update(status=status, next_payment_attempt=None, amount_remaining=0)
    invoice["status_transitions"][transition] = now
    intent, payment = intent_of(world, invoice), _payment(world, invoice)
    if intent is not None and payment is not None:
        payment["status"] = "canceled"
        payment["status_transitions"]["canceled_at"] = now
        payments.cancel_intent(world, intent, "void_invoice")


def _require_unsettled(invoice: Object, verb: str) -> None:
    if invoice["status"] not in _UNSETTLED:
        raise StripeError(f"You can only {verb} open or uncollectible invoices; this one is {invoice['status']}.")
