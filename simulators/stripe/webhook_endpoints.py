"""Where events go: webhook endpoints of the API, and the one that the simulator is started with."""

from collections.abc import Mapping
from typing import Any

from simulators.stripe.changes import merge_metadata
from simulators.stripe.errors import invalid
from simulators.stripe.ids import new_id
from simulators.stripe.operations import Params, operation
from simulators.stripe.world import Object, World

ENDPOINT = "webhook_endpoint"
_MAX_ENDPOINTS = 16


def start_with(world: World, url: str, secret: str) -> Object:
    """The endpoint of the command line, which gets every event, thin ones too.

    After a restart it is the one from before at its new address, so that what it has not taken yet goes there.

    Args:
        world: The account.
        url: Where the events are posted.
        secret: To sign them with.
    """
    fields = {"url": url, "_secret": secret, "status": "enabled"}
    for endpoint in world.all(ENDPOINT):
        if endpoint.get("_is_given"):
            endpoint.update(fields)
            return endpoint
    return _new(world, {**fields, "enabled_events": ["*"], "_is_given": True, "_takes_thin": True})


def wants(endpoint: Mapping[str, Any], type: str) -> bool:
    """Whether an endpoint is enabled for this type of snapshot event."""
    names = endpoint["enabled_events"]
    return endpoint["status"] == "enabled" and ("*" in names or type in names)


@operation("POST", "/v1/webhook_endpoints")
def create(world: World, params: Params) -> Object:
    """A new endpoint; only this answer tells its secret."""
    _check_url(params["url"])
    if len(world.all(ENDPOINT)) >= _MAX_ENDPOINTS:
        raise invalid("url", f"You have reached the maximum of {_MAX_ENDPOINTS} test webhook endpoints.")
    secret = new_id("whsec", 32)
    made = _new(
        world,
        {
            "url": params["url"],
            "enabled_events": params["enabled_events"],
            "api_version": params.get("api_version"),
            "description": params.get("description") or None,
            "_secret": secret,
        },
    )
    merge_metadata(made, params)
    return {**made, "secret": secret}


@operation("GET", "/v1/webhook_endpoints")
def list_endpoints(world: World, params: Params) -> list[Object]:
    """Every endpoint."""
    return world.all(ENDPOINT)


@operation("GET", "/v1/webhook_endpoints/{webhook_endpoint}")
def retrieve(world: World, params: Params, webhook_endpoint: str) -> Object:
    """One endpoint, without its secret."""
    return world.get(ENDPOINT, webhook_endpoint, "webhook_endpoint")


@operation("POST", "/v1/webhook_endpoints/{webhook_endpoint}")
def update(world: World, params: Params, webhook_endpoint: str) -> Object:
    """Move it, choose other events, or disable it: what is under way to it is given up then."""
    endpoint = retrieve(world, params, webhook_endpoint)
    if "url" in params:
        _check_url(params["url"])
    for name in ("url", "enabled_events", "description"):
        if name in params:
            endpoint[name] = params[name] or None
    if "disabled" in params:
        endpoint["status"] = "disabled" if params["disabled"] else "enabled"
    merge_metadata(endpoint, params)
    return endpoint


@operation("DELETE", "/v1/webhook_endpoints/{webhook_endpoint}")
def delete(world: World, params: Params, webhook_endpoint: str) -> Object:
    """Remove it; what is under way to it is given up."""
    retrieve(world, params, webhook_endpoint)
    world.delete(ENDPOINT, webhook_endpoint)
    return {"id": webhook_endpoint, "object": ENDPOINT, "deleted": True}


def _new(world: World, fields: Mapping[str, Any]) -> Object:
    none = {"api_version": None, "application": None, "description": None}
    return world.new(ENDPOINT, "we", {**none, "metadata": {}, "status": "enabled", **fields})


def _check_url(url: str) -> None:
    if not url.startswith(("http://", "https://")):
        raise invalid("url", "Invalid URL: An explicit scheme (such as https) must be provided.", "url_invalid")
