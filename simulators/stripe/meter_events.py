"""Meter events: what is reported to be counted.

What an event says of itself is checked at once and refused with a 400: its value (a whole number of at most 15 digits),
its time (35 days back, 5 minutes ahead), its identifier (at most 100 characters, unique for 24 hours). What it refers
to is looked at afterwards, as Stripe does it: an event for no meter, for an inactive one, or for no customer is
accepted, never counted, and reported by a thin event. The clock of the customer counts for all of it.
"""

import re
from collections.abc import Mapping
from typing import Any

from simulators.stripe import v2
from simulators.stripe.errors import StripeError, invalid, missing
from simulators.stripe.ids import new_id
from simulators.stripe.meters import METER, USAGE, named
from simulators.stripe.operations import Params, operation
from simulators.stripe.world import Object, World

_EVENT = "billing.meter_event"
_ADJUSTMENT = "billing.meter_event_adjustment"
IDENTIFIER = "_meter_event_identifier"
_PATH = "/v1/billing/meter_events"

_PAST_S = 35 * 24 * 3600
_AHEAD_S = 5 * 60
_UNIQUE_S = 24 * 3600
_MAX_IDENTIFIER = 100
_MAX_DIGITS = 15
_VALUE = re.compile(r"\+?\d+")


def customer_of(world: World, params: Mapping[str, Any]) -> str | None:
    """The customer whom a meter event names, by the key that its meter wants; None if it names none."""
    meter = named(world, params["event_name"])
    key = meter["customer_mapping"]["event_payload_key"] if meter is not None else "stripe_customer_id"
    customer: str | None = params["payload"].get(key)
    return customer


@operation("POST", "/v1/billing/meter_events")
def create_event(world: World, params: Params) -> Object:
    """Accept an event; a 2xx says that it was well formed, not that it was counted."""
    customer = world.find("customer", customer_of(world, params))
    now = world.now(customer)
    at = params.get("timestamp", now)
    value = _value(world, params)
    _check_time(at, now)
    identifier = _claimed(world, params, now)
    accepted: Object = {
        "object": _EVENT,
        "created": now,
        "event_name": params["event_name"],
        "identifier": identifier,
        "livemode": False,
        "payload": params["payload"],
        "timestamp": at,
    }
    _count(world, accepted, value, now)
    if world.hazards.strike("duplicate_identifier", _PATH):
        raise _duplicate(identifier)
    return accepted


@operation("POST", "/v1/billing/meter_event_adjustments")
def create_adjustment(world: World, params: Params) -> Object:
    """Cancel an event within 24 hours of its arrival, by its identifier."""
    identifier = params.get("cancel", {}).get("identifier")
    if identifier is None:
        raise invalid("cancel[identifier]", "Missing required param: cancel[identifier].", "parameter_missing")
    usage = _usage_with(world, identifier)
    if usage is None:
        raise missing("meter event", identifier, "cancel[identifier]")
    event = next(event for event in usage["events"] if event["identifier"] == identifier)
    if event["received"] + _UNIQUE_S < world.now(world.find("customer", usage["customer"])):
        raise invalid("cancel[identifier]", f"The meter event {identifier} is older than 24 hours.")
    event["is_cancelled"] = True
    return {
        "object": _ADJUSTMENT,
        "cancel": {"identifier": identifier},
        "event_name": params["event_name"],
        "livemode": False,
        "status": "complete",
        "type": "cancel",
    }


def _value(world: World, params: Params) -> int:
    """The value that an event carries, by the key that its meter wants.

    Raises:
        StripeError: 400 for one that is no whole number, or has too many digits. A meter that counts needs none.
    """
    meter = named(world, params["event_name"])
    key = meter["value_settings"]["event_payload_key"] if meter is not None else "value"
    sent = params["payload"].get(key)
    if sent is None:
        if meter is not None and meter["default_aggregation"]["formula"] == "count":
            return 1
        raise invalid(f"payload[{key}]", f"Missing required param: payload[{key}].", "parameter_missing")
    if not _VALUE.fullmatch(sent):
        raise invalid(f"payload[{key}]", f"Invalid value {sent}: must be a whole number.")
    if len(sent.lstrip("+").lstrip("0")) > _MAX_DIGITS:
        raise invalid(
            f"payload[{key}]",
            f"Invalid value {sent}: must have at most {_MAX_DIGITS} digits.",
        )
    return int(sent)


def _check_time(at: int, now: int) -> None:
    if at < now - _PAST_S:
        raise invalid("timestamp", "The timestamp must be within the past 35 calendar days.")
    if at > now + _AHEAD_S:
        raise invalid("timestamp", "The timestamp must be at most 5 minutes in the future.")


def _claimed(world: World, params: Params, now: int) -> str:
    """The event's identifier, which is no other event's for the next 24 hours.

    Raises:
        StripeError: 400 for one that was seen before, or is too long.
    """
    identifier: str = params.get("identifier") or new_id("mtr_event", 32)
    if len(identifier) > _MAX_IDENTIFIER:
        raise invalid("identifier", f"Invalid identifier: must be at most {_MAX_IDENTIFIER} characters.")
    seen = world.find(IDENTIFIER, identifier)
    is_seen = seen is not None and now < seen["at"] + _UNIQUE_S
    if is_seen and not world.hazards.strike("identifier_forgotten", _PATH):
        raise _duplicate(identifier)
    if seen is not None:
        world.delete(IDENTIFIER, identifier)
    world.put({"id": identifier, "object": IDENTIFIER, "at": now, "_made": world.now()})
    return identifier


def _duplicate(identifier: str) -> StripeError:
    return invalid("identifier", f"An event already exists with identifier {identifier}.")


def _count(world: World, accepted: Object, value: int, now: int) -> None:
    """Count an accepted event, or report why it is not counted."""
    meter = named(world, accepted["event_name"])
    customer = customer_of(world, accepted)
    problem = _problem(world, accepted, meter, customer)
    if problem is not None:
        code, message = problem
        v2.report(world, meter or _archived(world, accepted["event_name"]), code, message, accepted["identifier"], now)
        return
    assert meter is not None
    assert customer is not None
    id = f"{meter['id']}/{customer}"
    row = world.find(USAGE, id) or world.put({"id": id, "object": USAGE, "customer": customer, "events": []})
    row["events"].append(
        {
            "identifier": accepted["identifier"],
            "timestamp": accepted["timestamp"],
            "value": value,
            "received": now,
            "is_cancelled": False,
        }
    )


def _problem(world: World, accepted: Object, meter: Object | None, customer: str | None) -> tuple[str, str] | None:
    """Code and message of why an event will not be counted; None if it will."""
    name = accepted["event_name"]
    if hazard := world.hazards.strike("meter_event_rejected", _PATH):
        return hazard.code or "meter_event_invalid_value", "The event was rejected."
    if meter is None:
        archived = _archived(world, name) is not None
        return ("archived_meter" if archived else "no_meter"), f"No active meter found for the event name {name}."
    if customer is None:
        return "meter_event_no_customer_defined", "The event names no customer."
    if world.find("customer", customer) is None:
        return "meter_event_customer_not_found", f"No such customer: '{customer}'"
    return None


def _usage_with(world: World, identifier: str) -> Object | None:
    for row in world.all(USAGE):
        if any(event["identifier"] == identifier for event in row["events"]):
            return row
    return None


def _archived(world: World, event_name: str) -> Object | None:
    return next((meter for meter in world.all(METER) if meter["event_name"] == event_name), None)
