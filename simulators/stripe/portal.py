"""The billing portal: a page on which a customer changes the card, cancels, resumes, and sees invoices.

A cancellation sets `cancel_at` to the latest end of the items' periods, as Stripe's portal does under flexible billing.
A new card becomes the customer's default, and that of each subscription that had a card of its own.
"""

from collections.abc import Callable, Mapping

from starlette.responses import RedirectResponse, Response

from simulators.stripe import payment_methods, portal_configurations, standing, subscription_changes, subscriptions
from simulators.stripe.cards import OFFERED
from simulators.stripe.changes import recorded
from simulators.stripe.errors import StripeError, invalid
from simulators.stripe.ids import random_text
from simulators.stripe.operations import Params, matching, operation, page
from simulators.stripe.pages import render
from simulators.stripe.world import Object, World

KIND = "billing_portal.session"

_PAGE = "/portal/{session}"


@operation("POST", "/v1/billing_portal/sessions")
def create(world: World, params: Params) -> Object:
    """A session for a customer, with the address of its page."""
    if "customer" not in params:
        raise invalid("customer", "Missing required param: customer.", "parameter_missing")
    customer = world.get("customer", params["customer"], "customer")
    configuration = portal_configurations.default(world)
    if "configuration" in params:
        configuration = world.get(portal_configurations.KIND, params["configuration"], "configuration")
    session = world.new(
        KIND,
        "bps",
        {
            "configuration": configuration["id"],
            "customer": customer["id"],
            "flow": _flow(world, params, customer),
            "locale": params.get("locale"),
            "on_behalf_of": None,
            "return_url": params.get("return_url") or configuration["default_return_url"],
        },
        owner=customer,
    )
    session["_secret"] = random_text(40)
    session["url"] = world.base_url + _PAGE.format(session=session["_secret"])
    return session


@page("GET", _PAGE)
def show(world: World, form: Mapping[str, str], session: str) -> Response:
    """The page of a session."""
    return _shown(world, _session(world, session))


@page("POST", _PAGE)
def submit(world: World, form: Mapping[str, str], session: str) -> Response:
    """Do what a button says: `action` is `card`, `cancel` or `resume`."""
    found = _session(world, session)
    act = _ACTIONS.get(form.get("action", ""))
    if act is None:
        raise invalid("action", "There is no such button.")
    try:
        act(world, found, form)
    except StripeError as error:
        return _shown(world, found, problem=error)
    target = _after(found)
    return RedirectResponse(target or found["url"], status_code=303)


def _flow(world: World, params: Params, customer: Object) -> Object | None:
    flow = params.get("flow_data")
    if flow is None:
        return None
    details = flow.get(flow["type"]) or {}
    if "subscription" in details:
        place = f"flow_data[{flow['type']}][subscription]"
        subscription = world.get(standing.KIND, details["subscription"], place)
        if subscription["customer"] != customer["id"]:
            raise invalid(place, "The subscription belongs to another customer.")
    return {"after_completion": {"type": "portal_homepage"}, **flow}


def _session(world: World, secret: str) -> Object:
    for session in world.all(KIND):
        if session["_secret"] == secret:
            return session
    raise StripeError("There is no such page.", status=404, code="resource_missing")


def _shown(world: World, session: Object, problem: StripeError | None = None) -> Response:
    customer = world.get("customer", session["customer"])
    configuration = world.get(portal_configurations.KIND, session["configuration"])
    default = (customer.get("invoice_settings") or {}).get("default_payment_method")
    live = [
        subscription
        for subscription in matching(world.all(standing.KIND), {"customer": customer["id"]}, "customer")
        if subscription["status"] not in standing.ENDED
    ]
    return render(
        "portal.html",
        status=problem.status if problem else 200,
        session=session,
        customer=customer,
        features=configuration["features"],
        flow=(session["flow"] or {}).get("type"),
        headline=configuration["business_profile"].get("headline"),
        subscriptions=live,
        names={found["id"]: found["name"] for found in world.all("product")},
        invoices=_invoices(world, customer),
        card=world.find("payment_method", default or _own_card(live)),
        cards=OFFERED,
        problem=problem.message if problem else None,
    )


def _invoices(world: World, customer: Object) -> list[Object]:
    found = matching(world.all("invoice"), {"customer": customer["id"]}, "customer")
    return [invoice for invoice in reversed(found) if invoice["status"] != "draft"]


def _own_card(live: list[Object]) -> str | None:
    return next((found["default_payment_method"] for found in live if found["default_payment_method"]), None)


def _change_card(world: World, session: Object, form: Mapping[str, str]) -> None:
    _require(world, session, "payment_method_update")
    number = payment_methods.checked(form.get("number", ""))
    customer = world.get("customer", session["customer"])
    method = payment_methods.attach(world, payment_methods.make(world, number), customer)
    with recorded(world, customer, "customer.updated"):
        customer["invoice_settings"]["default_payment_method"] = method["id"]
    for subscription in matching(world.all(standing.KIND), {"customer": customer["id"]}, "customer"):
        if subscription["default_payment_method"] and subscription["status"] not in standing.ENDED:
            subscription_changes.change(world, subscription, {"default_payment_method": method["id"]})


def _cancel(world: World, session: Object, form: Mapping[str, str]) -> None:
    feature = _require(world, session, "subscription_cancel")
    subscription = _own(world, session, form)
    if feature["mode"] == "immediately":
        is_prorated = feature["proration_behavior"] != "none"
        subscriptions.cancel(world, {"invoice_now": is_prorated, "prorate": is_prorated}, subscription["id"])
        return
    is_flexible = subscription["billing_mode"]["type"] == "flexible"
    how: Object = {"cancel_at": "max_period_end"} if is_flexible else {"cancel_at_period_end": True}
    subscription_changes.change(world, subscription, {**how, "proration_behavior": "none"})


def _resume(world: World, session: Object, form: Mapping[str, str]) -> None:
    _require(world, session, "subscription_cancel")
    subscription = _own(world, session, form)
    subscription_changes.change(world, subscription, {"cancel_at": "", "proration_behavior": "none"})


def _require(world: World, session: Object, feature: str) -> Object:
    features = world.get(portal_configurations.KIND, session["configuration"])["features"]
    found: Object = features[feature]
    if not found["enabled"]:
        raise StripeError("The portal's configuration does not allow that.", status=403)
    return found


def _own(world: World, session: Object, form: Mapping[str, str]) -> Object:
    subscription = world.get(standing.KIND, form.get("subscription", ""), "subscription")
    if subscription["customer"] != session["customer"]:
        raise StripeError("There is no such subscription.", status=404, code="resource_missing")
    return subscription


def _after(session: Object) -> str | None:
    """Where a flow leads when it is completed."""
    completion = (session["flow"] or {}).get("after_completion") or {}
    return completion["redirect"]["return_url"] if completion.get("type") == "redirect" else None


_ACTIONS: Mapping[str, Callable[[World, Object, Mapping[str, str]], None]] = {
    "card": _change_card,
    "cancel": _cancel,
    "resume": _resume,
}
