"""Checkout sessions, and the page on which a customer pays.

The page takes a card number and pretends that the cardholder agreed to whatever the bank asks. A card that declines
leaves the session open, with nothing made. Checkout cannot sell a subscription of mixed intervals, as Stripe documents:
sell the licensed price here and add the metered one by the API.
"""

from collections.abc import Mapping

from starlette.responses import RedirectResponse, Response

from simulators.stripe import checkout_items as sold
from simulators.stripe import customers, invoices, payment_methods, payments, setup_intents, subscriptions
from simulators.stripe.cards import OFFERED, Refusal, refusal_of_attaching, refusal_of_charge
from simulators.stripe.changes import merge_metadata
from simulators.stripe.errors import StripeError, declined, invalid
from simulators.stripe.ids import new_id
from simulators.stripe.operations import Params, included, listing, matching, operation, page
from simulators.stripe.pages import render
from simulators.stripe.world import Object, World

KIND = "checkout.session"

_DAY_S = 24 * 3600
_LEAST_S = 30 * 60
_PAGE = "/checkout/{session}"
_KEPT = (
    "allow_promotion_codes",
    "billing_address_collection",
    "cancel_url",
    "client_reference_id",
    "customer_email",
    "customer_creation",
    "invoice_creation",
    "locale",
    "payment_method_collection",
    "return_url",
    "submit_type",
    "success_url",
)


@operation("POST", "/v1/checkout/sessions")
def create(world: World, params: Params) -> Object:
    """A session with the address of its page.

    Raises:
        StripeError: 400 for parameters that do not go together, and for prices that cannot be sold together.
    """
    mode = params.get("mode")
    _check(world, params)
    lines = [] if mode == "setup" else sold.of_params(world, params)
    customer = world.find("customer", params.get("customer"))
    id = new_id("cs_test", 58)
    now = world.now(customer)
    session = world.new(KIND, "cs_test", {"id": id, **_fields(params, now), **sold.totals(world, lines, params)})
    session["url"] = world.base_url + _PAGE.format(session=id)
    session["_items"] = lines
    session["_params"] = {
        name: params[name]
        for name in ("discounts", "payment_intent_data", "setup_intent_data", "subscription_data")
        if name in params
    }
    return session


@operation("GET", "/v1/checkout/sessions/{session}")
def retrieve(world: World, params: Params, session: str) -> Object:
    """One session."""
    return world.get(KIND, session, "session")


@operation("GET", "/v1/checkout/sessions")
def list_all(world: World, params: Params) -> list[Object]:
    """Sessions by customer, status, subscription or payment intent."""
    return matching(world.all(KIND), params, "customer", "payment_intent", "status", "subscription")


@operation("POST", "/v1/checkout/sessions/{session}")
def update(world: World, params: Params, session: str) -> Object:
    """Change a session's metadata."""
    found = world.get(KIND, session, "session")
    merge_metadata(found, params)
    return found


@operation("GET", "/v1/checkout/sessions/{session}/line_items", is_oldest_first=True)
def list_lines(world: World, params: Params, session: str) -> list[Object]:
    """What a session sells."""
    lines: list[Object] = world.get(KIND, session, "session")["_items"]
    return lines


@operation("POST", "/v1/checkout/sessions/{session}/expire")
def expire_now(world: World, params: Params, session: str) -> Object:
    """Close an open session."""
    found = world.get(KIND, session, "session")
    _require_open(found)
    expire(world, found)
    return found


def expire(world: World, session: Object) -> None:
    """Nobody can pay any more."""
    session.update(status="expired", url=None)
    world.emit("checkout.session.expired", session)


def complete(world: World, session: Object, form: Mapping[str, str]) -> Object:
    """Pay as a customer does on the page.

    Args:
        world: The account.
        session: Open.
        form: `number` of a card, and `email` and `name` of a customer who is not known yet; `promotion_code`, where
            the session allows for one.

    Raises:
        StripeError: 402 for a card that declines; 400 for a session that is not open, or a code that there is not.
    """
    _require_open(session)
    number = payment_methods.checked(form.get("number", ""))
    promotions = _promotions(world, session, form)
    refusal = _refusal(session, number)
    if refusal is not None:
        raise declined(refusal.message, refusal.decline_code, refusal.code)
    customer = _customer(world, session, form)
    method = payment_methods.make(world, number)
    method["billing_details"].update(email=customer["email"], name=customer["name"])
    payment_methods.attach(world, method, customer)
    pay = {"payment": _pay, "setup": _save, "subscription": _subscribe}[session["mode"]]
    pay(world, session, customer, method, promotions)
    session.update(
        customer=customer["id"],
        customer_details=_details(customer),
        status="complete",
        url=None,
    )
    world.emit("checkout.session.completed", session)
    return session


@included(KIND, "line_items")
def lines_of(world: World, session: Object) -> Object:
    """What a session sells."""
    return listing(f"/v1/checkout/sessions/{session['id']}/line_items", session["_items"])


@page("GET", _PAGE)
def show(world: World, form: Mapping[str, str], session: str) -> Response:
    """The page of a session: what is bought, and a form for the card."""
    return _shown(world, world.get(KIND, session, "session"), form)


@page("POST", _PAGE)
def submit(world: World, form: Mapping[str, str], session: str) -> Response:
    """Pay, and go where the session says; a decline shows the page again."""
    found = world.get(KIND, session, "session")
    try:
        complete(world, found, form)
    except StripeError as error:
        if found["status"] == "open":
            return _shown(world, found, form, problem=error)
        if found["status"] != "complete":
            return _shown(world, found, form)
        # Pressed twice: the browser waits for the second answer only, and is to come back all the same.
    target = str(found["success_url"] or found["return_url"] or "")
    if not target:
        return _shown(world, found, form)
    return RedirectResponse(target.replace("{CHECKOUT_SESSION_ID}", found["id"]), status_code=303)


def _shown(world: World, session: Object, form: Mapping[str, str], problem: StripeError | None = None) -> Response:
    customer = world.find("customer", session["customer"])
    return render(
        "checkout.html",
        status=problem.status if problem else 200,
        session=session,
        lines=session["_items"],
        cards=OFFERED,
        customer=customer,
        form=form,
        problem=problem.message if problem else None,
    )


def _check(world: World, params: Params) -> None:
    mode = params.get("mode")
    if mode is None:
        raise invalid("mode", "Missing required param: mode.", "parameter_missing")
    if params.get("ui_mode", "hosted_page") == "hosted_page" and "success_url" not in params:
        raise invalid("success_url", "Missing required param: success_url.", "parameter_missing")
    if "customer" in params:
        world.get("customer", params["customer"], "customer")
        if "customer_email" in params:
            raise invalid("customer_email", "You may only specify one of these parameters: customer, customer_email.")
    if mode != "setup" and not params.get("line_items"):
        raise invalid("line_items", "Missing required param: line_items.", "parameter_missing")
    if mode != "subscription" and "subscription_data" in params:
        raise invalid("subscription_data", "You can not pass `subscription_data` in this mode.")
    if mode != "payment" and "payment_intent_data" in params:
        raise invalid("payment_intent_data", "You can not pass `payment_intent_data` in this mode.")
    if params.get("discounts") and params.get("allow_promotion_codes"):
        message = "You may only specify one of these parameters: allow_promotion_codes, discounts."
        raise invalid("allow_promotion_codes", message)
    now = world.now(world.find("customer", params.get("customer")))
    if not now + _LEAST_S <= params.get("expires_at", now + _DAY_S) <= now + _DAY_S:
        raise invalid("expires_at", "The `expires_at` timestamp must be between 30 minutes and 24 hours from now.")


def _fields(params: Params, now: int) -> Object:
    kept = {name: params[name] for name in _KEPT if name in params}
    if "invoice_creation" in kept:
        kept["invoice_creation"] = {"enabled": params["invoice_creation"]["enabled"], "invoice_data": {}}
    is_free = params["mode"] == "setup"
    return {
        **kept,
        "automatic_tax": {"enabled": False, "liability": None, "status": None, **params.get("automatic_tax", {})},
        "created": now,
        "custom_fields": [],
        "custom_text": {},
        "customer": params.get("customer"),
        "expires_at": params.get("expires_at", now + _DAY_S),
        "invoice": None,
        "metadata": dict(params.get("metadata") or {}),
        "mode": params["mode"],
        "payment_intent": None,
        "payment_method_types": ["card"],
        "payment_status": "no_payment_required" if is_free else "unpaid",
        "setup_intent": None,
        "shipping_options": [],
        "status": "open",
        "subscription": None,
        "success_url": params.get("success_url"),
        "return_url": params.get("return_url"),
        "ui_mode": params.get("ui_mode", "hosted_page"),
    }


def _require_open(session: Object) -> None:
    if session["status"] != "open":
        raise StripeError(f"This Session is already {session['status']}; only open ones can be paid or expired.")


def _refusal(session: Object, number: str) -> Refusal | None:
    """Why the card will not do, before anything is made."""
    if not session["amount_total"]:
        return refusal_of_attaching(number[-4:])
    return refusal_of_charge({"card": {"last4": number[-4:]}})


def _promotions(world: World, session: Object, form: Mapping[str, str]) -> list[Object]:
    given: list[Object] = session["_params"].get("discounts") or []
    text = form.get("promotion_code", "").strip()
    if not text or not session.get("allow_promotion_codes") or session["mode"] == "setup":
        return given
    for code in world.all("promotion_code"):
        if code["active"] and code["code"].lower() == text.lower():
            promotions = [*given, {"promotion_code": code["id"]}]
            # Refused before anything is made.
            sold.discounted(world, session, promotions)
            return promotions
    raise invalid("promotion_code", "This code is invalid.", "resource_missing")


def _customer(world: World, session: Object, form: Mapping[str, str]) -> Object:
    if session["customer"] is not None:
        return world.get("customer", session["customer"])
    email = session.get("customer_email") or form.get("email") or "customer@example.com"
    return customers.create(world, {"email": email, "name": form.get("name") or email.partition("@")[0]})


def _details(customer: Object) -> Object:
    return {
        "address": customer.get("address"),
        "email": customer["email"],
        "name": customer["name"],
        "phone": customer.get("phone"),
        "tax_exempt": customer.get("tax_exempt") or "none",
        "tax_ids": [],
    }


def _subscribe(world: World, session: Object, customer: Object, method: Object, promotions: list[Object]) -> None:
    data = dict(session["_params"].get("subscription_data") or {})
    wanted = {
        **data,
        "customer": customer["id"],
        "default_payment_method": method["id"],
        "discounts": promotions,
        "items": sold.subscription_items(session["_items"]),
        "payment_behavior": "default_incomplete",
    }
    subscription = subscriptions.start(world, wanted)
    invoice = world.find(invoices.KIND, subscription["latest_invoice"])
    session.update(subscription=subscription["id"], invoice=subscription["latest_invoice"])
    if invoice is not None:
        if invoice["status"] == "open":
            _charge(world, invoice, method)
        session.update(sold.totals_of_invoice(invoice))
    session["payment_status"] = "paid" if session["amount_total"] else "no_payment_required"


def _pay(world: World, session: Object, customer: Object, method: Object, promotions: list[Object]) -> None:
    data = session["_params"].get("payment_intent_data") or {}
    if (session.get("invoice_creation") or {}).get("enabled"):
        invoice = sold.invoice_of(world, session, customer, promotions)
        session["invoice"] = invoice["id"]
        if invoice["status"] == "open":
            session["payment_intent"] = _charge(world, invoice, method)["id"]
        session.update(sold.totals_of_invoice(invoice), payment_status="paid")
        return
    kept = ("description", "metadata", "receipt_email", "setup_future_usage")
    fields = {name: data[name] for name in kept if name in data}
    session.update(sold.discounted(world, session, promotions))
    intent = payments.intend(world, customer["id"], session["amount_total"], session["currency"], fields)
    intent["payment_method"] = method["id"]
    payments.succeed(world, intent, method)
    session.update(payment_intent=intent["id"], payment_status="paid")


def _save(world: World, session: Object, customer: Object, method: Object, _: list[Object]) -> None:
    data = session["_params"].get("setup_intent_data") or {}
    fields = {name: data[name] for name in ("description", "metadata") if name in data}
    intent = setup_intents.make(world, customer["id"], fields)
    setup_intents.succeed(world, intent, method)
    session["setup_intent"] = intent["id"]


def _charge(world: World, invoice: Object, method: Object) -> Object:
    """Pay an open invoice with the cardholder present."""
    intent = invoices.intent_of(world, invoice)
    assert intent is not None, "an open invoice has something due"
    intent["payment_method"] = method["id"]
    payments.succeed(world, intent, method)
    return intent
