"""What changed in an object, as an event tells it.

An event `*.updated` carries the former values of the fields that changed: of a dictionary only the parts that did,
of a list the whole list, and null for what was not there.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from simulators.stripe.world import Object, World


@contextmanager
def recorded(world: World, object: Object, type: str) -> Iterator[None]:
    """Emit one event for all that the block changes in an object; none if it changes nothing.

    A block that raises emits nothing.
    """
    before = world.snapshot(object)
    yield
    previous = difference(before, world.snapshot(object))
    if previous:
        world.emit(type, object, previous)


def difference(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    """The former values of what is not the same any more."""
    found: dict[str, Any] = {name: None for name in after if name not in before}
    for name, was in before.items():
        now = after.get(name)
        if was == now:
            continue
        if isinstance(was, Mapping) and isinstance(now, Mapping):
            found[name] = difference(was, now)
        else:
            found[name] = was
    return found


def merge_metadata(object: Object, params: Mapping[str, Any]) -> None:
    """Set, change and (with an empty value) remove keys; an empty text removes all of them."""
    if "metadata" not in params:
        return
    given = params["metadata"]
    merged = {} if given == "" else {**(object.get("metadata") or {}), **given}
    object["metadata"] = {name: value for name, value in merged.items() if value != ""}
