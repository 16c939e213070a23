"""Webhook endpoints of the API."""

import pytest
import stripe

from tests.simulators.stripe.simulator import Simulator


def test_secret_is_told_once(simulator: Simulator) -> None:
    endpoints = simulator.v1.webhook_endpoints
    params = {"url": "https://acme.example/hook", "enabled_events": ["invoice.paid"], "metadata": {"a": "1"}}
    made = endpoints.create(params)
    assert made.secret.startswith("whsec_")
    assert endpoints.retrieve(made.id).secret is None
    changed = endpoints.update(made.id, {"description": "billing", "enabled_events": ["*"], "metadata": {"b": "2"}})
    assert (changed.description, changed.enabled_events) == ("billing", ["*"])
    assert changed.metadata.to_dict() == {"a": "1", "b": "2"}
    assert made.id in [found.id for found in endpoints.list().data]


def test_there_are_at_most_sixteen(simulator: Simulator) -> None:
    params = {"url": "https://acme.example/hook", "enabled_events": ["*"]}
    for _ in range(15):
        simulator.v1.webhook_endpoints.create(params)
    with pytest.raises(stripe.InvalidRequestError, match="maximum of 16"):
        simulator.v1.webhook_endpoints.create(params)
