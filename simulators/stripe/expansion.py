"""Replaces ids by the objects that they name, where a call asks for it, and leaves out what only a call asks for.

`expand=["data.latest_invoice.payments"]` is the tree `{"data": {"latest_invoice": {"payments": {}}}}`; an object is
walked along that tree and along the types of its fields, which say what kind of object an id belongs to.
"""

from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias

from simulators.stripe.errors import StripeError, invalid, missing
from simulators.stripe.operations import INCLUDED
from simulators.stripe.schema import (
    ANY,
    NOTHING,
    Array,
    Field,
    Listing,
    Map,
    Record,
    Reference,
    Type,
    Union,
    object_type,
)
from simulators.stripe.world import Object, World

Tree: TypeAlias = dict[str, "Tree"]

_MAX_DEPTH = 4


def expanded(world: World, object: Object, expand: Iterable[str] = ()) -> Object:
    """A copy without notes, with the fields at these paths replaced by the objects whose ids they hold.

    Args:
        world: Where the objects are.
        object: As it is stored, or as a handler made it up.
        expand: Paths of fields, such as `latest_invoice.payments`.

    Raises:
        StripeError: 400 for a path that is too deep, or leads to what cannot be expanded.
    """
    shown: Object = _shown(world, world.snapshot(object), ANY, _tree(expand), "")
    return shown


def _tree(paths: Iterable[str]) -> Tree:
    root: Tree = {}
    for path in paths:
        parts = path.split(".")
        if len([part for part in parts if part != "data"]) > _MAX_DEPTH:
            raise invalid("expand", f"You cannot expand more than {_MAX_DEPTH} levels of a property: {path}")
        node = root
        for part in parts:
            node = node.setdefault(part, {})
    return root


def _shown(world: World, value: Any, type: Type, wanted: Tree | None, name: str) -> Any:  # noqa: ANN401 - any JSON
    """`value` as it is shown; `wanted` is None where nobody asked for this field."""
    if isinstance(value, list):
        item = next((option.item for option in _options(type) if isinstance(option, Array)), ANY)
        return [_shown(world, inner, item, wanted, name) for inner in value]
    if isinstance(value, str) and wanted is not None:
        value = world.snapshot(_named(world, type, value, name))
    if not isinstance(value, dict):
        return value
    fields = _fields(value, type)
    shown = _with_included(world, value, wanted or {})
    for asked in wanted or {}:
        if asked not in shown and asked not in fields:
            raise _not_expandable(asked)
    return {
        field: _shown(world, inner, fields[field].type if field in fields else ANY, (wanted or {}).get(field), field)
        for field, inner in shown.items()
    }


def _with_included(world: World, shown: Object, wanted: Tree) -> Object:
    kind = shown.get("object")
    result = dict(shown)
    for (owner, field), compute in INCLUDED.items():
        if owner == kind and field not in wanted:
            result.pop(field, None)
        elif owner == kind and compute is not None:
            stored = world.find(owner, shown.get("id")) or shown
            result[field] = world.snapshot(compute(world, stored))
    return result


def _fields(value: Object, type: Type) -> Mapping[str, Field]:
    """The types of a dictionary's fields: it says itself what kind it is, or its place says so."""
    kind = value.get("object")
    options = _options(type)
    if kind == "list":
        item = next((option.item for option in options if isinstance(option, Listing)), ANY)
        return {"data": Field(Array(item), is_required=True)}
    if isinstance(kind, str):
        return object_type(kind).fields
    if any(isinstance(option, Map) for option in options):
        return NOTHING.fields
    return next((option.fields for option in options if isinstance(option, Record)), NOTHING.fields)


def _named(world: World, type: Type, id: str, name: str) -> Object:
    kinds = [option.kind for option in _options(type) if isinstance(option, Reference) and option.is_expandable]
    if not kinds:
        raise _not_expandable(name)
    found = next((found for kind in kinds if (found := world.find(kind, id)) is not None), None)
    if found is None:
        raise missing(kinds[0], id, "expand")
    return found


def _options(type: Type) -> tuple[Type, ...]:
    return type.options if isinstance(type, Union) else (type,)


def _not_expandable(name: str) -> StripeError:
    return invalid("expand", f"This property cannot be expanded ({name}).")
