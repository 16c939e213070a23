"""Customers.

A deleted customer is still found by its id, as `deleted`, and by nothing else. What the simulator has no use for is
refused and not passed over: tax ids, sources, cash balances.
"""

from simulators.stripe import payment_methods, standing
from simulators.stripe.balances import move_balance
from simulators.stripe.changes import merge_metadata, recorded
from simulators.stripe.errors import invalid
from simulators.stripe.ids import random_text
from simulators.stripe.operations import INCLUDED, Params, included, listing, matching, operation
from simulators.stripe.world import CLOCK, Object, World

CUSTOMER = "customer"
_DELETED = "_deleted_customer"

_MAX_UNDER_CLOCK = 3
_UNKNOWN = ("cash_balance", "default_source", "source", "tax_id_data")
_PLAIN = (
    "address",
    "business_name",
    "description",
    "email",
    "individual_name",
    "name",
    "phone",
    "preferred_locales",
    "shipping",
    "tax_exempt",
)

INCLUDED[CUSTOMER, "cash_balance"] = None
INCLUDED[CUSTOMER, "invoice_credit_balance"] = None
INCLUDED[CUSTOMER, "tax"] = None


@included(CUSTOMER, "subscriptions")
def subscriptions_of(world: World, customer: Object) -> Object:
    """A customer's subscriptions that have not ended."""
    mine = matching(world.all("subscription"), {"customer": customer["id"]}, "customer")
    live = [found for found in reversed(mine) if found["status"] not in standing.ENDED]
    return listing(f"/v1/customers/{customer['id']}/subscriptions", live)


@included(CUSTOMER, "sources")
def sources_of(world: World, customer: Object) -> Object:
    """None: cards are payment methods."""
    return listing(f"/v1/customers/{customer['id']}/sources", [])


@included(CUSTOMER, "tax_ids")
def tax_ids_of(world: World, customer: Object) -> Object:
    """None: the simulator has no tax ids."""
    return listing(f"/v1/customers/{customer['id']}/tax_ids", [])


@operation("POST", "/v1/customers")
def create(world: World, params: Params) -> Object:
    """A customer, under a test clock if one is named.

    Raises:
        StripeError: 400 for the fourth customer under a clock, 402 for a card that cannot be saved.
    """
    _refuse_unknown(params)
    _check_clock(world, params)
    made = world.new(
        CUSTOMER,
        "cus",
        {
            "balance": 0,
            "currency": None,
            "default_source": None,
            "delinquent": False,
            "discount": None,
            "invoice_prefix": params.get("invoice_prefix", random_text(8).upper()),
            "invoice_settings": {
                "custom_fields": None,
                "default_payment_method": None,
                "footer": None,
                "rendering_options": None,
            },
            "metadata": {},
            "next_invoice_sequence": params.get("next_invoice_sequence", 1),
            "test_clock": params.get("test_clock"),
            **{name: params.get(name) or None for name in _PLAIN},
            "preferred_locales": params.get("preferred_locales", []),
            "tax_exempt": params.get("tax_exempt") or "none",
        },
    )
    settings = dict(params.get("invoice_settings", {}))
    if "payment_method" in params:
        attached = _attach_first(world, made, params["payment_method"])
        # A ready-made id, given twice, means one card.
        if settings.get("default_payment_method") == params["payment_method"]:
            settings["default_payment_method"] = attached["id"]
    _set_invoice_settings(world, made, settings)
    merge_metadata(made, params)
    if params.get("balance"):
        move_balance(world, made, params["balance"], "usd", type="adjustment")
    world.emit("customer.created", made)
    return made


@operation("GET", "/v1/customers")
def list_customers(world: World, params: Params) -> list[Object]:
    """Customers by e-mail, those under a test clock only if it is named."""
    found = matching(world.all(CUSTOMER), params, "email")
    return [customer for customer in found if customer["test_clock"] == params.get("test_clock")]


@operation("GET", "/v1/customers/{customer}")
def retrieve(world: World, params: Params, customer: str) -> Object:
    """One customer, or the mark that it was deleted."""
    if world.find(_DELETED, customer) is not None:
        return {"id": customer, "object": CUSTOMER, "deleted": True}
    return world.get(CUSTOMER, customer, "customer")


@operation("POST", "/v1/customers/{customer}")
def update(world: World, params: Params, customer: str) -> Object:
    """Change a customer; the default payment method must be the customer's own."""
    _refuse_unknown(params)
    found = world.get(CUSTOMER, customer, "customer")
    with recorded(world, found, "customer.updated"):
        for name in (*_PLAIN, "invoice_prefix", "next_invoice_sequence"):
            if name in params:
                found[name] = None if params[name] == "" else params[name]
        found["tax_exempt"] = found["tax_exempt"] or "none"
        _set_invoice_settings(world, found, params.get("invoice_settings", {}))
        merge_metadata(found, params)
        if "balance" in params and params["balance"] != found["balance"]:
            moved = params["balance"] - found["balance"]
            move_balance(world, found, moved, found["currency"] or "usd", type="adjustment")
    return found


@operation("DELETE", "/v1/customers/{customer}")
def delete(world: World, params: Params, customer: str) -> Object:
    """Delete a customer and end what runs for them at once; nothing more is billed, finalised or collected."""
    found = world.get(CUSTOMER, customer, "customer")
    for subscription in matching(world.all("subscription"), {"customer": customer}, "customer"):
        if subscription["status"] not in standing.ENDED:
            standing.finish(world, subscription)
    _stop_billing(world, found)
    for method in matching(world.all(payment_methods.METHOD), {"customer": customer}, "customer"):
        method["customer"] = None
    world.emit("customer.deleted", found)
    world.delete(CUSTOMER, customer)
    world.put({"id": customer, "object": _DELETED})
    return {"id": customer, "object": CUSTOMER, "deleted": True}


def _stop_billing(world: World, customer: Object) -> None:
    """Let nothing come due for a customer that there is no more."""
    for invoice in matching(world.all("invoice"), {"customer": customer["id"]}, "customer"):
        if invoice["status"] in ("draft", "open"):
            invoice.update(auto_advance=False, automatically_finalizes_at=None, next_payment_attempt=None)
    for schedule in matching(world.all("subscription_schedule"), {"customer": customer["id"]}, "customer"):
        if schedule["status"] == "not_started":
            schedule.update(status="canceled", canceled_at=world.now(schedule))
            world.emit("subscription_schedule.canceled", schedule)


def _refuse_unknown(params: Params) -> None:
    for name in _UNKNOWN:
        if name in params:
            raise invalid(name, f"The simulator does not know {name}.")


def _check_clock(world: World, params: Params) -> None:
    if "test_clock" not in params:
        return
    clock = world.get(CLOCK, params["test_clock"], "test_clock")
    under = [found for found in world.all(CUSTOMER) if found["test_clock"] == clock["id"]]
    if len(under) >= _MAX_UNDER_CLOCK:
        raise invalid("test_clock", f"A test clock can have at most {_MAX_UNDER_CLOCK} customers.")


def _attach_first(world: World, customer: Object, id: str) -> Object:
    try:
        return payment_methods.attach(world, payment_methods.resolve(world, id), customer)
    except Exception:
        # As at Stripe, a customer whose card is refused is not made.
        world.delete(CUSTOMER, customer["id"])
        raise


def _set_invoice_settings(world: World, customer: Object, given: Params) -> None:
    id = given.get("default_payment_method")
    if id is not None:
        place = "invoice_settings[default_payment_method]"
        method = payment_methods.resolve(world, id, place)
        if method["customer"] != customer["id"]:
            raise invalid(
                place,
                "The customer does not have a payment method with the ID "
                f"{id}. The payment method must be attached to the customer.",
                "resource_missing",
            )
    for name, value in given.items():
        customer["invoice_settings"][name] = None if value == "" else value
