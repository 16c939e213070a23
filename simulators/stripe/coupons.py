"""Coupons, and the promotion codes that stand for them. What they take off an invoice is in `discounts`."""

import re

from simulators.stripe.changes import merge_metadata, recorded
from simulators.stripe.errors import StripeError, invalid, missing
from simulators.stripe.ids import random_text
from simulators.stripe.operations import INCLUDED, Params, matching, operation
from simulators.stripe.world import Object, World

COUPON = "coupon"
CODE = "promotion_code"

_CODE_TEXT = re.compile(r"[A-Za-z0-9-]+")

INCLUDED[COUPON, "applies_to"] = None
INCLUDED[COUPON, "currency_options"] = None
INCLUDED[CODE, "currency_options"] = None


@operation("POST", "/v1/coupons")
def create(world: World, params: Params) -> Object:
    """A coupon: a percentage or an amount, once, for some months or forever.

    Raises:
        StripeError: 400 for what does not go together, or an id that is taken.
    """
    _check_terms(params)
    if "redeem_by" in params and params["redeem_by"] <= world.now():
        raise invalid("redeem_by", "Invalid timestamp: `redeem_by` must be in the future.")
    if world.find(COUPON, params.get("id")) is not None:
        raise invalid("id", "Coupon already exists.", "resource_already_exists")
    made = world.new(
        COUPON,
        "coupon",
        {
            "id": params.get("id") or random_text(8),
            "amount_off": params.get("amount_off"),
            "created": world.now(),
            "currency": params.get("currency"),
            "duration": params.get("duration", "once"),
            "duration_in_months": params.get("duration_in_months"),
            "max_redemptions": params.get("max_redemptions"),
            "metadata": {},
            "name": params.get("name"),
            "percent_off": params.get("percent_off"),
            "redeem_by": params.get("redeem_by"),
            "times_redeemed": 0,
            "valid": True,
        },
    )
    if "applies_to" in params:
        made["applies_to"] = {"products": params["applies_to"].get("products", [])}
    merge_metadata(made, params)
    world.emit("coupon.created", made)
    return made


@operation("GET", "/v1/coupons")
def list_coupons(world: World, params: Params) -> list[Object]:
    """Every coupon that was not deleted."""
    return [coupon for coupon in world.all(COUPON) if not coupon.get("_is_deleted")]


@operation("GET", "/v1/coupons/{coupon}")
def retrieve(world: World, params: Params, coupon: str) -> Object:
    """One coupon."""
    found = world.get(COUPON, coupon, "coupon")
    if found.get("_is_deleted"):
        raise missing(COUPON, coupon, "coupon")
    return found


@operation("POST", "/v1/coupons/{coupon}")
def update(world: World, params: Params, coupon: str) -> Object:
    """Rename a coupon; its terms stay."""
    found = retrieve(world, params, coupon)
    with recorded(world, found, "coupon.updated"):
        if "name" in params:
            found["name"] = params["name"]
        merge_metadata(found, params)
    return found


@operation("DELETE", "/v1/coupons/{coupon}")
def delete(world: World, params: Params, coupon: str) -> Object:
    """Let nobody redeem it any more; discounts that were made of it go on."""
    found = retrieve(world, params, coupon)
    # Running discounts still look their terms up, so it is only closed.
    found.update(valid=False, _is_deleted=True)
    world.emit("coupon.deleted", found)
    return {"id": coupon, "object": COUPON, "deleted": True}


@operation("POST", "/v1/promotion_codes")
def create_code(world: World, params: Params) -> Object:
    """A code for a coupon; no two active ones read the same, in whatever case.

    Raises:
        StripeError: 400 for a code that is taken or has other characters than letters, digits and dashes.
    """
    coupon_id = params["promotion"].get("coupon")
    if coupon_id is None:
        raise invalid("promotion[coupon]", "Missing required param: promotion[coupon].", "parameter_missing")
    coupon = retrieve(world, {}, coupon_id)
    code = params.get("code") or random_text(8).upper()
    if not _CODE_TEXT.fullmatch(code):
        raise invalid("code", "Promotion codes may only contain letters, digits and dashes.")
    _require_free_code(world, code)
    if "expires_at" in params and params["expires_at"] <= world.now():
        raise invalid("expires_at", "Invalid timestamp: `expires_at` must be in the future.")
    restrictions = params.get("restrictions", {})
    made = world.new(
        CODE,
        "promo",
        {
            "active": params.get("active", True) and coupon["valid"],
            "code": code,
            "created": world.now(),
            "customer": world.get("customer", params["customer"], "customer")["id"] if "customer" in params else None,
            "expires_at": params.get("expires_at"),
            "max_redemptions": params.get("max_redemptions"),
            "metadata": {},
            "promotion": {"coupon": coupon["id"], "type": "coupon"},
            "restrictions": {
                "first_time_transaction": restrictions.get("first_time_transaction", False),
                "minimum_amount": restrictions.get("minimum_amount"),
                "minimum_amount_currency": restrictions.get("minimum_amount_currency"),
            },
            "times_redeemed": 0,
        },
    )
    merge_metadata(made, params)
    world.emit("promotion_code.created", made)
    return made


@operation("GET", "/v1/promotion_codes")
def list_codes(world: World, params: Params) -> list[Object]:
    """Codes by text (in whatever case), coupon, customer or state."""
    found = matching(world.all(CODE), params, "active", "customer")
    if "code" in params:
        found = [code for code in found if code["code"].lower() == params["code"].lower()]
    if "coupon" in params:
        found = [code for code in found if code["promotion"]["coupon"] == params["coupon"]]
    return found


@operation("GET", "/v1/promotion_codes/{promotion_code}")
def retrieve_code(world: World, params: Params, promotion_code: str) -> Object:
    """One code."""
    return world.get(CODE, promotion_code, "promotion_code")


@operation("POST", "/v1/promotion_codes/{promotion_code}")
def update_code(world: World, params: Params, promotion_code: str) -> Object:
    """Close a code, or open it again if its text is still free and its coupon valid."""
    found = retrieve_code(world, params, promotion_code)
    if params.get("active") and not found["active"]:
        _require_free_code(world, found["code"])
        if not world.get(COUPON, found["promotion"]["coupon"])["valid"]:
            raise invalid("active", "This promotion code cannot be activated because its coupon is not valid.")
    with recorded(world, found, "promotion_code.updated"):
        if "active" in params:
            found["active"] = params["active"]
        merge_metadata(found, params)
    return found


def end_of(found: Object) -> int | None:
    """When a coupon or a code ends by itself that is still good; None if it does not."""
    is_coupon = found["object"] == COUPON
    moment: int | None = found["redeem_by" if is_coupon else "expires_at"]
    return moment if found["valid" if is_coupon else "active"] else None


def end(world: World, found: Object) -> None:
    """Let nobody redeem a coupon or a code any more, whose time is over."""
    with recorded(world, found, f"{found['object']}.updated"):
        found["valid" if found["object"] == COUPON else "active"] = False


def _check_terms(params: Params) -> None:
    if ("percent_off" in params) == ("amount_off" in params):
        raise StripeError("You must specify either `percent_off` or `amount_off`, and not both.", param="percent_off")
    if "percent_off" in params and not 0 < params["percent_off"] <= 100:
        raise invalid("percent_off", "Invalid percent_off: must be greater than 0 and at most 100.")
    if "amount_off" in params and (params["amount_off"] < 1 or "currency" not in params):
        raise invalid("amount_off", "`amount_off` must be positive and needs a `currency`.")
    if params.get("duration_in_months", 1) < 1:
        raise invalid("duration_in_months", "Invalid positive integer", "parameter_invalid_integer")
    if (params.get("duration") == "repeating") != ("duration_in_months" in params):
        raise invalid("duration_in_months", "`duration=repeating`, and it alone, needs `duration_in_months`.")


def _require_free_code(world: World, code: str) -> None:
    if any(found["active"] and found["code"].lower() == code.lower() for found in world.all(CODE)):
        raise invalid("code", "An active promotion code with that code already exists.", "resource_already_exists")
