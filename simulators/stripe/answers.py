"""Checks an object against its type before it is shown, and completes it.

The check is of the simulator, not of the caller: a field that is missing, unknown, or of another type is a defect of a
handler, and answered with a 500 that names it. Fields that may be null and were not given are shown as null, which
Stripe does for most and not for all of them; a part that is named after one of the values of its sibling `type`, such
as a payment method's `card`, is left out instead, and so is what is shown only if `expand` asks for it.
"""

from collections.abc import Callable
from decimal import Decimal, InvalidOperation
from typing import Any

from simulators.stripe.operations import INCLUDED
from simulators.stripe.schema import (
    Array,
    Choice,
    Listing,
    Map,
    Record,
    Reference,
    Scalar,
    Type,
    Union,
    object_type,
    thin_event_type,
)
from simulators.stripe.world import Object

_JSON_TYPES: dict[str, Callable[[Any], bool]] = {
    "string": lambda value: isinstance(value, str),
    "integer": lambda value: isinstance(value, int) and not isinstance(value, bool),
    "boolean": lambda value: isinstance(value, bool),
    "number": lambda value: isinstance(value, int | float) and not isinstance(value, bool),
    "decimal": lambda value: isinstance(value, str) and _is_decimal(value),
    "null": lambda value: value is None,
    "any": lambda _: True,
}


class MismatchError(Exception):
    """A field of an answer is not as the type of its object has it: a defect of the simulator."""


def complete(shown: Object) -> Object:
    """A copy in which every field that may be null is there, and every field is of its type.

    Raises:
        MismatchError: Naming the field, and what is wrong with it.
    """
    kind = shown["object"]
    if shown.get("deleted") is True:
        return shown
    if kind == "invoice" and "id" not in shown:
        # That of `invoice.upcoming` does not exist yet.
        return {name: value for name, value in complete({**shown, "id": ""}).items() if name != "id"}
    try:
        type = thin_event_type(shown["type"]) if kind == "v2.core.event" else object_type(kind)
    except KeyError:
        raise MismatchError(f"there is no kind of object called {kind}") from None
    completed: Object = _fitted(type, shown, kind)
    return {name: value for name, value in completed.items() if name in shown or (kind, name) not in INCLUDED}


def _fitted(type: Type, value: Any, path: str) -> Any:  # noqa: ANN401 - one branch for each kind of type
    match type:
        case Union():
            return _fitted_union(type, value, path)
        case Record():
            return _fitted_record(type, value, path)
        case Map():
            _require(isinstance(value, dict), path, value, "an object")
            return {name: _fitted(type.value, inner, f"{path}.{name}") for name, inner in value.items()}
        case Array():
            _require(isinstance(value, list), path, value, "an array")
            return [_fitted(type.item, inner, f"{path}[{index}]") for index, inner in enumerate(value)]
        case Listing():
            _require(isinstance(value, dict) and value.get("object") == "list", path, value, "a list object")
            data = [_fitted(type.item, inner, f"{path}.data[{index}]") for index, inner in enumerate(value["data"])]
            return {**value, "data": data}
        case Reference():
            if type.is_expandable and isinstance(value, str):
                return value
            _require(isinstance(value, dict) and value.get("object") == type.kind, path, value, f"a {type.kind}")
            return complete(value)
        case Choice():
            _require(value in type.values, path, value, f"one of {type.values}")
            return value
        case Scalar():
            _require(_JSON_TYPES[type.name](value), path, value, f"of type {type.name}")
            return value
    raise TypeError(type)


def _fitted_record(record: Record, value: Any, path: str) -> Any:  # noqa: ANN401 - any JSON
    _require(isinstance(value, dict), path, value, "an object")
    for name in value:
        if name not in record.fields:
            raise MismatchError(f"{path}.{name} is not a field that there is")
    fitted = {}
    for name, field in record.fields.items():
        if name in value:
            fitted[name] = _fitted(field.type, value[name], f"{path}.{name}")
        elif field.is_required:
            raise MismatchError(f"{path}.{name} is missing")
        elif name != "deleted" and not _is_part_for_type(record, name) and not _holds_map(field.type):
            fitted[name] = None
    return fitted


def _is_part_for_type(record: Record, name: str) -> bool:
    kind = record.fields.get("type")
    return kind is not None and isinstance(kind.type, Choice) and name in kind.type.values


def _holds_map(type: Type) -> bool:
    """Stripe leaves out a map that was not asked for, such as `currency_options`; the library fails on null."""
    return isinstance(type, Map) or (isinstance(type, Union) and any(isinstance(one, Map) for one in type.options))


def _fitted_union(type: Union, value: Any, path: str) -> Any:  # noqa: ANN401 - any JSON
    problem = MismatchError(f"{path} fits none of its types")
    for option in type.options:
        try:
            return _fitted(option, value, path)
        except MismatchError as error:
            # A null option says only that the value is not null; what the others say is worth more.
            problem = problem if isinstance(option, Scalar) and option.name == "null" else error
    raise problem


def _require(is_fit: bool, path: str, value: Any, wanted: str) -> None:  # noqa: ANN401 - any JSON
    if not is_fit:
        raise MismatchError(f"{path} must be {wanted}, and is {value!r:.80}")


def _is_decimal(text: str) -> bool:
    try:
        return Decimal(text).is_finite()
    except InvalidOperation:
        return False
