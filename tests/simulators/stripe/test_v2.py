"""Destinations of thin events."""

from typing import Any

import pytest
import stripe

from tests.simulators.stripe.simulator import Simulator


def destination(simulator: Simulator, **changes: Any) -> dict[str, Any]:
    return {
        "name": "Errors",
        "type": "webhook_endpoint",
        "event_payload": "thin",
        "enabled_events": ["v1.billing.meter.no_meter_found"],
        "webhook_endpoint": {"url": simulator.receiver.url},
        "include": ["webhook_endpoint.signing_secret", "webhook_endpoint.url"],
        **changes,
    }


def test_destination_gets_thin_events_signed_with_its_secret(simulator: Simulator) -> None:
    given = simulator.v1.webhook_endpoints.list().data[0]
    simulator.v1.webhook_endpoints.delete(given.id)
    made = simulator.client.v2.core.event_destinations.create(destination(simulator))
    assert made.webhook_endpoint.url == simulator.receiver.url
    simulator.v1.billing.meter_events.create({"event_name": "none", "payload": {"value": "1"}})
    simulator.v1.customers.create({"name": "no thin event"})
    simulator.flush()
    ((body, header),) = simulator.receiver.received
    notification = simulator.client.parse_event_notification(body, header, made.webhook_endpoint.signing_secret)
    assert notification.type == "v1.billing.meter.no_meter_found"
    assert "data" not in simulator.receiver.events[0]


def test_destination_tells_its_secret_only_when_asked(simulator: Simulator) -> None:
    destinations = simulator.client.v2.core.event_destinations
    made = destinations.create(destination(simulator, include=[]))
    assert made.webhook_endpoint is None
    listed = destinations.list({"include": ["webhook_endpoint.url"]}).data[0].webhook_endpoint
    assert listed.url == simulator.receiver.url
    destinations.delete(made.id)
    with pytest.raises(stripe.InvalidRequestError):
        destinations.retrieve(made.id)


@pytest.mark.parametrize(
    "changes", [{"event_payload": "snapshot"}, {"type": "amazon_eventbridge"}, {"webhook_endpoint": {}}]
)
def test_other_destinations_are_refused(simulator: Simulator, changes: dict[str, Any]) -> None:
    with pytest.raises(stripe.InvalidRequestError):
        simulator.client.v2.core.event_destinations.create(destination(simulator, **changes))


def test_thin_event_that_there_is_not_gets_404(simulator: Simulator) -> None:
    with pytest.raises(stripe.InvalidRequestError) as caught:
        simulator.client.v2.core.events.retrieve("evt_none")
    assert caught.value.http_status == 404
