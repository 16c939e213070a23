"""Parameters checked and converted."""

from typing import Any

import pytest

from simulators.stripe import schema
from simulators.stripe.errors import StripeError
from simulators.stripe.forms import decode
from simulators.stripe.parameters import convert


def parse(sent: str, verb: str = "POST", path: str = "/v1/prices") -> dict[str, Any]:
    return convert(schema.call(verb, path).parameters, decode(sent))


def refused(sent: str, verb: str = "POST", path: str = "/v1/prices") -> StripeError:
    with pytest.raises(StripeError) as caught:
        parse(sent, verb, path)
    assert caught.value.status == 400
    return caught.value


def test_text_becomes_typed() -> None:
    sent = "currency=usd&active=true&tiers[0][up_to]=10&tiers[0][unit_amount_decimal]=0.5&tiers[1][up_to]=inf"
    assert parse(sent) == {
        "currency": "usd",
        "active": True,
        "tiers": [{"up_to": 10, "unit_amount_decimal": "0.5"}, {"up_to": "inf"}],
    }


def test_unknown_parameter_is_named() -> None:
    error = refused("currency=usd&recurring[interval]=month&recurring[frequency]=2")
    assert (error.code, error.param) == ("parameter_unknown", "recurring[frequency]")


def test_missing_parameter_is_named() -> None:
    error = refused("active=true")
    assert (error.code, error.param) == ("parameter_missing", "currency")
    assert refused("currency=usd&tiers[0][unit_amount]=1").param == "tiers[0][up_to]"


@pytest.mark.parametrize(
    ("sent", "param"),
    [
        ("currency=usd&unit_amount=1.5", "unit_amount"),
        ("currency=usd&unit_amount=ten", "unit_amount"),
        ("currency=usd&active=yes", "active"),
        ("currency=usd&unit_amount_decimal=NaN", "unit_amount_decimal"),
        ("currency=usd&recurring=monthly", "recurring"),
        ("currency=usd&tiers[a][up_to]=1", "tiers"),
        ("currency[a]=usd", "currency"),
        ("currency=usd&recurring[interval]=fortnight", "recurring[interval]"),
        ("currency=usd&tiers[0][up_to]=many", "tiers[0][up_to]"),
    ],
)
def test_mistyped_parameter_is_named(sent: str, param: str) -> None:
    assert refused(sent).param == param


def test_empty_text_unsets_only_what_can_be_unset() -> None:
    assert parse("description=", path="/v1/products/{id}") == {"description": ""}
    error = refused("name=", path="/v1/products/{id}")
    assert (error.code, error.param) == ("parameter_invalid_empty", "name")


def test_metadata_keys_can_be_emptied() -> None:
    assert parse("metadata[a]=&metadata[b]=1", path="/v1/products/{id}") == {"metadata": {"a": "", "b": "1"}}


def test_alternatives_are_listed() -> None:
    message = refused("currency=usd&recurring[interval]=eon").message
    assert message == "Invalid recurring[interval]: must be one of day, month, week, or year"


def test_json_arrives_typed() -> None:
    destination = schema.call("POST", "/v2/core/event_destinations").parameters
    sent = {"enabled_events": ["a"], "event_payload": "thin", "name": "n", "type": "webhook_endpoint"}
    assert convert(destination, sent) == sent
    with pytest.raises(StripeError) as caught:
        convert(destination, {**sent, "name": 7})
    assert caught.value.param == "name"


def test_percentage_is_a_number_and_price_is_text() -> None:
    sent = "display_name=VAT&inclusive=false&percentage=8.25"
    assert parse(sent, path="/v1/tax_rates")["percentage"] == 8.25
    assert parse("currency=usd&unit_amount_decimal=0.0001")["unit_amount_decimal"] == "0.0001"
