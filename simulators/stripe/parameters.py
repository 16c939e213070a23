"""Checks what a call holds against its type, and converts it: the text of a form to integers, booleans and lists.

Bodies of `/v2` are JSON and arrive with types; the same rules hold for them. Messages and codes are Stripe's where
those are documented. A parameter's name is given as the caller wrote it: `items[0][price]`.
"""

import re
from collections.abc import Iterable
from decimal import Decimal, InvalidOperation
from typing import Any

from simulators.stripe.errors import StripeError, invalid
from simulators.stripe.schema import STRING, Array, Choice, Map, Record, Scalar, Type, Union

_INTEGER = re.compile(r"-?\d{1,18}")


def convert(record: Record, sent: dict[str, Any]) -> dict[str, Any]:
    """The parameters of a call, checked and typed; only those that were sent.

    Raises:
        StripeError: 400 that names the first parameter that is unknown, missing or of another type.
    """
    return _record(record, sent, "")


def _record(record: Record, sent: dict[str, Any], param: str) -> dict[str, Any]:
    for name in sent:
        if name not in record.fields:
            raise invalid(_join(param, name), f"Received unknown parameter: {_join(param, name)}", "parameter_unknown")
    for name, field in record.fields.items():
        if field.is_required and name not in sent:
            raise invalid(_join(param, name), f"Missing required param: {_join(param, name)}.", "parameter_missing")
    return {name: _value(record.fields[name].type, value, _join(param, name)) for name, value in sent.items()}


def _value(type: Type, sent: Any, param: str) -> Any:  # noqa: ANN401 - any JSON
    match type:
        case Union():
            return _one_of(type, sent, param)
        case Record():
            return _record(type, _dictionary(sent, param), param)
        case Map():
            return {
                name: "" if value == "" else _value(type.value, value, _join(param, name))
                for name, value in _dictionary(sent, param).items()
            }
        case Array():
            return [_value(type.item, item, _join(param, str(index))) for index, item in enumerate(_list(sent, param))]
        case Choice():
            return _choice(type, sent, param)
        case Scalar():
            return _scalar(type, sent, param)
    raise TypeError(type)


def _one_of(type: Union, sent: Any, param: str) -> Any:  # noqa: ANN401 - any JSON
    """The first option that fits; the last one's complaint if none does, which is the least special one."""
    has_parts = isinstance(sent, dict | list)
    options = [option for option in type.options if isinstance(option, Record | Map | Array) == has_parts]
    problem = invalid(param, f"Invalid {'object' if not has_parts else 'string'}")
    for option in options:
        try:
            return _value(option, sent, param)
        except StripeError as error:
            problem = error
    raise problem


def _scalar(type: Scalar, sent: Any, param: str) -> Any:  # noqa: ANN401 - one branch for each name of a type
    if type.name == "any":
        return sent
    if isinstance(sent, dict | list) or sent is None:
        raise invalid(param, f"Invalid {type.name}")
    if sent == "":
        raise invalid(
            param,
            f"You passed an empty string for '{param}'. We assume empty values are an attempt to unset a field; "
            f"however '{param}' cannot be unset. You should remove '{param}' from your request or supply a "
            "non-empty value.",
            "parameter_invalid_empty",
        )
    if type.name == "integer" and not isinstance(sent, bool) and _INTEGER.fullmatch(str(sent)):
        return int(sent)
    if type.name == "boolean" and str(sent).lower() in ("true", "false"):
        return str(sent).lower() == "true"
    if type.name in ("decimal", "number") and (number := _decimal(sent)) is not None:
        return str(sent) if type.name == "decimal" else _json_number(number)
    if type.name == "string" and isinstance(sent, str):
        return sent
    code = "parameter_invalid_integer" if type.name == "integer" else None
    raise invalid(param, f"Invalid {type.name}: {sent}", code)


def _choice(type: Choice, sent: Any, param: str) -> Any:  # noqa: ANN401 - a literal of any type
    for value in type.values:
        if sent == value or (isinstance(sent, str) and sent == _text(value)):
            return value
    if sent == "":
        return _scalar(STRING, sent, param)
    raise invalid(param, f"Invalid {param}: must be {_alternatives(_text(value) for value in type.values)}")


def _dictionary(sent: Any, param: str) -> dict[str, Any]:  # noqa: ANN401 - any JSON
    if not isinstance(sent, dict):
        raise invalid(param, "Invalid object")
    return sent


def _list(sent: Any, param: str) -> list[Any]:  # noqa: ANN401 - any JSON
    if isinstance(sent, list):
        return sent
    if not isinstance(sent, dict) or not all(key.isdecimal() for key in sent):
        raise invalid(param, "Invalid array")
    return [sent[key] for key in sorted(sent, key=int)]


def _decimal(sent: Any) -> Decimal | None:  # noqa: ANN401 - text or a JSON number
    try:
        number = Decimal(str(sent))
    except InvalidOperation:
        return None
    return number if number.is_finite() and not isinstance(sent, bool) else None


def _json_number(number: Decimal) -> int | float:
    # Only percentages travel as JSON numbers; money is an integer or decimal text.
    return int(number) if number == number.to_integral_value() else float(number)


def _text(value: str | bool | int) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _alternatives(values: Iterable[str]) -> str:
    named = [value for value in values if value] or ["empty"]
    return named[0] if len(named) == 1 else f"one of {', '.join(named[:-1])}, or {named[-1]}"


def _join(param: str, name: str) -> str:
    return f"{param}[{name}]" if param else name
