"""Types read from the client library."""

import pytest

from simulators.stripe import handlers, schema
from simulators.stripe.operations import OPERATIONS
from simulators.stripe.schema import Array, Choice, Listing, Map, Record, Reference, Scalar, Union


def test_every_registered_operation_is_one_of_the_library() -> None:
    handlers.load()
    assert len(OPERATIONS) > 100
    for verb, path in OPERATIONS:
        assert schema.call(verb, path).parameters is not None


def test_every_call_and_object_of_the_library_can_be_read() -> None:
    assert sum(isinstance(schema.call(*place).parameters, Record) for place in schema._services()) > 500
    for kind in schema.kinds():
        assert isinstance(schema.object_type(kind), Record)


def test_call_tells_parameters_and_answer() -> None:
    call = schema.call("GET", "/v1/billing/meters/{id}/event_summaries")
    assert call.returns == "billing.meter_event_summary"
    assert call.is_list
    assert call.parameters.fields["customer"].is_required
    assert not call.parameters.fields["limit"].is_required
    assert call.parameters.fields["value_grouping_window"].type == Choice(("day", "hour"))


def test_unknown_call_is_a_key_error() -> None:
    with pytest.raises(KeyError):
        schema.call("POST", "/v1/nonsense")


def test_enumeration_is_closed_but_text_beside_nothing_is_not() -> None:
    fields = schema.call("POST", "/v1/prices").parameters.fields
    assert fields["billing_scheme"].type == Choice(("per_unit", "tiered"))
    description = schema.call("POST", "/v1/products/{id}").parameters.fields["description"].type
    assert description == Union((Choice(("",)), Scalar("string")))


def test_object_tells_references_lists_and_maps() -> None:
    fields = schema.object_type("subscription").fields
    assert fields["customer"].type == Reference("customer", is_expandable=True)
    assert fields["items"].type == Listing(Reference("subscription_item"))
    assert fields["metadata"].type == Map(Scalar("string"))
    discounts = schema.object_type("invoice").fields["discounts"].type
    assert discounts == Array(Reference("discount", is_expandable=True))


def test_thin_event_has_data_of_its_own() -> None:
    fields = schema.thin_event_type("v1.billing.meter.error_report_triggered").fields
    assert {"id", "created", "data", "related_object"} <= set(fields)
    with pytest.raises(KeyError):
        schema.thin_event_type("v1.nonsense")
