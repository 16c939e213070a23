"""The page of an invoice: what it is for, and a form that pays it while it is open."""

from collections.abc import Mapping

from starlette.responses import RedirectResponse, Response

from simulators.stripe import collection, invoices, payment_methods, payments
from simulators.stripe.cards import OFFERED
from simulators.stripe.errors import StripeError
from simulators.stripe.operations import page
from simulators.stripe.pages import render
from simulators.stripe.world import Object, World

_PAGE = "/invoices/{invoice}"


@page("GET", _PAGE)
def show(world: World, form: Mapping[str, str], invoice: str) -> Response:
    """An invoice that is finalised."""
    return _shown(world, _finalised(world, invoice))


@page("GET", _PAGE + "/pdf")
def show_document(world: World, form: Mapping[str, str], invoice: str) -> Response:
    """The same page, in place of a PDF."""
    return _shown(world, _finalised(world, invoice))


@page("POST", _PAGE)
def submit(world: World, form: Mapping[str, str], invoice: str) -> Response:
    """Pay an open invoice with a card, whose holder is there."""
    found = _finalised(world, invoice)
    try:
        if found["status"] not in ("open", "uncollectible"):
            raise StripeError(f"This invoice is {found['status']}.")
        customer = world.get("customer", found["customer"])
        method = payment_methods.make(world, payment_methods.checked(form.get("number", "")))
        _pay(world, found, payment_methods.attach(world, method, customer))
    except StripeError as error:
        return _shown(world, found, problem=error)
    return RedirectResponse(f"{world.base_url}{_PAGE.format(invoice=invoice)}", status_code=303)


def _pay(world: World, invoice: Object, method: Object) -> None:
    error = collection.charge(world, invoice, method, off_session=False)
    if error is not None:
        raise error
    intent = invoices.intent_of(world, invoice)
    if intent is not None and intent["status"] == "requires_action":
        # The cardholder is there, and agrees to what the bank asks.
        payments.succeed(world, intent, method)


def _finalised(world: World, id: str) -> Object:
    invoice = world.get(invoices.KIND, id, "invoice")
    if invoice["status"] == "draft":
        raise StripeError("This invoice is a draft still.", status=404)
    return invoice


def _shown(world: World, invoice: Object, problem: StripeError | None = None) -> Response:
    return render(
        "invoice.html",
        status=problem.status if problem else 200,
        invoice=invoice,
        cards=OFFERED,
        problem=problem.message if problem else None,
    )
