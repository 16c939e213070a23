"""Configurations of the billing portal: what a customer may do there."""

import copy
from typing import Any

from simulators.stripe.changes import merge_metadata, recorded
from simulators.stripe.operations import Params, matching, operation
from simulators.stripe.world import Object, World

KIND = "billing_portal.configuration"

_FEATURES: dict[str, dict[str, Any]] = {
    "customer_update": {"allowed_updates": [], "enabled": False},
    "invoice_history": {"enabled": False},
    "payment_method_update": {"enabled": False, "payment_method_configuration": None},
    "subscription_cancel": {
        "cancellation_reason": {"enabled": False, "options": []},
        "enabled": False,
        "mode": "at_period_end",
        "proration_behavior": "none",
    },
    "subscription_pause": {"duration": {"interval_options": [], "type": "indefinite"}, "enabled": False},
    "subscription_update": {
        "default_allowed_updates": [],
        "enabled": False,
        "products": None,
        "proration_behavior": "none",
        "schedule_at_period_end": {"conditions": []},
        "trial_update_behavior": "end_trial",
    },
}
_DEFAULTS = ("customer_update", "invoice_history", "payment_method_update", "subscription_cancel")


def default(world: World) -> Object:
    """The configuration of sessions that name none; made as if it had been saved in the Dashboard."""
    for found in world.all(KIND):
        if found["is_default"]:
            return found
    features = {name: {"enabled": True} for name in _DEFAULTS}
    return _made(world, {"features": features}, is_default=True)


@operation("POST", "/v1/billing_portal/configurations")
def create(world: World, params: Params) -> Object:
    """A configuration; features that are not named are off."""
    return _made(world, params, is_default=False)


@operation("GET", "/v1/billing_portal/configurations/{configuration}")
def retrieve(world: World, params: Params, configuration: str) -> Object:
    """One configuration."""
    return world.get(KIND, configuration, "configuration")


@operation("GET", "/v1/billing_portal/configurations")
def list_all(world: World, params: Params) -> list[Object]:
    """All configurations, or the active or default ones."""
    return matching(world.all(KIND), params, "active", "is_default")


@operation("POST", "/v1/billing_portal/configurations/{configuration}")
def update(world: World, params: Params, configuration: str) -> Object:
    """Change what is given."""
    found = world.get(KIND, configuration, "configuration")
    with recorded(world, found, "billing_portal.configuration.updated"):
        _set(found, params)
        found["updated"] = world.now()
    return found


def _made(world: World, params: Params, *, is_default: bool) -> Object:
    made = world.new(
        KIND,
        "bpc",
        {
            "active": True,
            "business_profile": {"headline": None},
            "default_return_url": None,
            "features": copy.deepcopy(_FEATURES),
            "is_default": is_default,
            "login_page": {"enabled": False, "url": None},
            "metadata": {},
            "name": None,
            "updated": world.now(),
        },
    )
    _set(made, params)
    world.emit("billing_portal.configuration.created", made)
    return made


def _set(found: Object, params: Params) -> None:
    for name in ("active", "default_return_url", "name"):
        if name in params:
            found[name] = params[name] if params[name] != "" else None
    found["business_profile"].update(params.get("business_profile") or {})
    for name, feature in (params.get("features") or {}).items():
        # An empty text unsets a list.
        given = {part: [] if value == "" else value for part, value in feature.items()}
        found["features"][name].update(given)
    merge_metadata(found, params)
