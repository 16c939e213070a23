"""Pages of lists: filtered by `created`, newest first, cut by cursor."""

from collections.abc import Mapping, Sequence
from typing import Any

from simulators.stripe.errors import StripeError, invalid, missing
from simulators.stripe.operations import listing
from simulators.stripe.world import Object

_DEFAULT_LIMIT = 10
_MAX_LIMIT = 100
_COMPARISONS = {
    "gt": lambda created, bound: created > bound,
    "gte": lambda created, bound: created >= bound,
    "lt": lambda created, bound: created < bound,
    "lte": lambda created, bound: created <= bound,
}


def page_of(objects: Sequence[Object], params: Mapping[str, Any], url: str, *, is_oldest_first: bool = False) -> Object:
    """The page of a list that the parameters `limit`, `starting_after`, `ending_before` and `created` ask for.

    Args:
        objects: Oldest first.
        params: Of the call, converted.
        url: The list's own path.
        is_oldest_first: Show them in the order in which they are given.

    Raises:
        StripeError: 400 for a limit outside 1 to 100 or two cursors, 404 for a cursor that is not in the list.
    """
    limit = params.get("limit", _DEFAULT_LIMIT)
    if not 1 <= limit <= _MAX_LIMIT:
        raise invalid("limit", f"Invalid limit: must be between 1 and {_MAX_LIMIT}", "parameter_invalid_integer")
    if "starting_after" in params and "ending_before" in params:
        raise StripeError("You may only specify one of these parameters: ending_before, starting_after.")
    found = [made for made in objects if _is_created_within(made, params.get("created"))]
    if not is_oldest_first:
        found.reverse()
    if "ending_before" in params:
        before = found[: _position(found, params["ending_before"], "ending_before")]
        return listing(url, before[-limit:], has_more=len(before) > limit)
    if "starting_after" in params:
        found = found[_position(found, params["starting_after"], "starting_after") + 1 :]
    return listing(url, found[:limit], has_more=len(found) > limit)


def _position(objects: Sequence[Object], id: str, param: str) -> int:
    for position, found in enumerate(objects):
        if found["id"] == id:
            return position
    kind = objects[0]["object"] if objects else "object"
    raise missing(kind, id, param)


def _is_created_within(made: Object, bounds: Any) -> bool:  # noqa: ANN401 - a moment, or a dictionary of bounds
    if bounds is None:
        return True
    if isinstance(bounds, int):
        return bool(made["created"] == bounds)
    return all(_COMPARISONS[name](made["created"], bound) for name, bound in bounds.items())
