"""Nested values out of a form or a query string: `items[0][price]=p` is `{"items": {"0": {"price": "p"}}}`.

Whether digits number the elements of a list or are keys that the caller chose is for the type of the parameter to say,
so this leaves every level a dictionary.
"""

import re
from typing import Any
from urllib.parse import parse_qsl

from simulators.stripe.errors import invalid

_KEY = re.compile(r"([^\[\]]+)((?:\[[^\[\]]*\])*)")
_PART = re.compile(r"\[([^\[\]]*)\]")


def decode(text: str) -> dict[str, Any]:
    """The values of a form or query string; `a[]=x` counts on from the elements that `a` has.

    Raises:
        StripeError: A key that is not of the form `a[b][c]`, or that is a value in one place and has parts in another.
    """
    decoded: dict[str, Any] = {}
    for key, value in parse_qsl(text, keep_blank_values=True):
        matched = _KEY.fullmatch(key)
        if matched is None:
            raise invalid(key, f"Invalid parameter name: {key}")
        _put(decoded, [matched[1], *_PART.findall(matched[2])], value, key)
    return decoded


def _put(into: dict[str, Any], path: list[str], value: str, key: str) -> None:
    for part in path[:-1]:
        into = into.setdefault(part or str(len(into)), {})
        if not isinstance(into, dict):
            raise invalid(key, f"Invalid parameter: {key} is given both as a value and with parts")
    last = path[-1] or str(len(into))
    if isinstance(into.get(last), dict):
        raise invalid(key, f"Invalid parameter: {key} is given both as a value and with parts")
    into[last] = value
