"""Which function answers which call.

A handler is registered by verb and path exactly as the client library writes them, with the names of the path's
parameters. It gets parameters that are already checked against the library's types and converted: integers, booleans,
decimals as the text that was sent, `""` where Stripe lets a field be unset. It returns one of

- a stored object: shown as it is, but for its notes (`_...`) and what only `expand` shows, and with null for each
  field that its type lets be null and that it has not;
- a list of objects, oldest first, which is filtered by `created`, turned to newest first, and paged by cursor;
- a dictionary of its own making, such as a preview or `{"id": ..., "object": ..., "deleted": True}`.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from starlette.responses import Response

from simulators.stripe.world import Object, World

Params = dict[str, Any]
Handler = TypeVar("Handler", bound=Callable[..., Object | list[Object]])
Compute = Callable[[World, Object], Any]
Form = dict[str, str]
Page = TypeVar("Page", bound=Callable[..., Response])


@dataclass(frozen=True, slots=True)
class Operation:
    """A handler and what it answers."""

    verb: str
    path: str
    handler: Callable[..., Object | list[Object]]
    is_oldest_first: bool


OPERATIONS: dict[tuple[str, str], Operation] = {}
# Fields by kind that an answer holds only when `expand` asks for them; None means that they are stored with the object.
INCLUDED: dict[tuple[str, str], Compute | None] = {}
# Verb, path and handler of each page for a browser.
PAGES: list[tuple[str, str, Callable[..., Response]]] = []


def operation(verb: str, path: str, *, is_oldest_first: bool = False) -> Callable[[Handler], Handler]:
    """Register the handler of a call, such as `@operation("POST", "/v1/subscriptions")`.

    Args:
        verb: Upper case.
        path: With the library's parameter names: `/v1/subscriptions/{subscription_exposed_id}`.
        is_oldest_first: A list is shown in the order in which the handler gives it.
    """

    def register(handler: Handler) -> Handler:
        OPERATIONS[verb, path] = Operation(verb, path, handler, is_oldest_first)
        return handler

    return register


def included(kind: str, field: str) -> Callable[[Compute], Compute]:
    """Register how a field is computed that is shown only when `expand` asks for it.

    For a field that is stored but shown on demand only, set `INCLUDED[kind, field] = None`.
    """

    def register(compute: Compute) -> Compute:
        INCLUDED[kind, field] = compute
        return compute

    return register


def page(verb: str, path: str) -> Callable[[Page], Page]:
    """Register what answers a browser: `(world, form, **path) -> Response`, with the fields of a form or a query.

    Args:
        verb: `GET` or `POST`.
        path: As Starlette writes it: `/checkout/{session}`; `World.base_url` stands before it in links.
    """

    def register(handler: Page) -> Page:
        PAGES.append((verb, path, handler))
        return handler

    return register


def listing(url: str, data: Iterable[Object], *, has_more: bool = False) -> Object:
    """A list object as it stands inside another one: an invoice's `lines`, a subscription's `items`."""
    return {"object": "list", "data": list(data), "has_more": has_more, "url": url}


def matching(objects: Iterable[Object], params: Mapping[str, Any], *fields: str) -> list[Object]:
    """The objects whose fields equal the parameters of the same names, where those are given."""
    wanted = {field: params[field] for field in fields if field in params}
    return [found for found in objects if all(found.get(field) == value for field, value in wanted.items())]
