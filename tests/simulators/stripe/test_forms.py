"""Nested form fields."""

import pytest

from simulators.stripe.errors import StripeError
from simulators.stripe.forms import decode


def test_brackets_nest() -> None:
    sent = "items[0][price]=p1&items[1][price]=p2&metadata[a]=1&name=x%26y"
    assert decode(sent) == {
        "items": {"0": {"price": "p1"}, "1": {"price": "p2"}},
        "metadata": {"a": "1"},
        "name": "x&y",
    }


def test_empty_brackets_count_on() -> None:
    assert decode("expand[]=a&expand[]=b") == {"expand": {"0": "a", "1": "b"}}


def test_empty_value_is_kept() -> None:
    assert decode("name=") == {"name": ""}


@pytest.mark.parametrize("sent", ["a=1&a[b]=2", "a[b]=2&a=1", "[a]=1", "a[b=1"])
def test_contradiction_is_refused(sent: str) -> None:
    with pytest.raises(StripeError):
        decode(sent)
