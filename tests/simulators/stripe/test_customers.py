"""Customers, and what happens to what is theirs."""

import pytest
import stripe

from tests.simulators.stripe.simulator import Simulator


def test_customer_is_made_found_changed_and_listed(simulator: Simulator) -> None:
    made = simulator.v1.customers.create({"email": "a@acme.example", "metadata": {"org": "o1", "x": "1"}})
    assert made.id.startswith("cus_")
    changed = simulator.v1.customers.update(made.id, {"name": "Acme", "metadata": {"x": "", "y": "2"}})
    assert changed.name == "Acme"
    assert changed.metadata.to_dict() == {"org": "o1", "y": "2"}
    assert simulator.v1.customers.retrieve(made.id).name == "Acme"
    assert [found.id for found in simulator.v1.customers.list({"email": "a@acme.example"}).data] == [made.id]
    assert simulator.v1.customers.list({"email": "b@acme.example"}).data == []


def test_deleted_customer_is_only_a_mark(simulator: Simulator) -> None:
    made = simulator.v1.customers.create({"email": "a@acme.example"})
    assert simulator.v1.customers.delete(made.id).deleted
    assert simulator.v1.customers.retrieve(made.id).deleted
    assert simulator.v1.customers.list().data == []
    with pytest.raises(stripe.InvalidRequestError, match="No such customer") as caught:
        simulator.v1.customers.update(made.id, {"name": "Acme"})
    assert caught.value.code == "resource_missing"
    assert caught.value.http_status == 404
