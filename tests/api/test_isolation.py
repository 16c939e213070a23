"""Nothing of organisation B is readable or mutable with A's key or session, on any route.

Routes, parameters and body fields come from the application itself: each place of each
route is tried with each of B's ids. A route that is not named in ``ROUTES`` fails the
test until somebody has thought about what of B it could reach. The portal's pages are walked in
``tests/portal/test_isolation.py``.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import httpx
import pytest
from fastapi.routing import APIRoute
from sqlalchemy import text
from starlette.routing import BaseRoute

from app import keys
from app.accounts.sessions import SESSION_COOKIE, open_session
from app.db import Database
from app.tables import Base
from tests.api.world import World
from tests.factories import make_key, make_org, make_user

# Which places of a route take an id of a customer, in words of its own; "" where none does.
ROUTES = {
    "POST /v1/completions": "",
    "POST /v1/chat/completions": "",
    "POST /v1/classifications": "",
    "POST /v1/embeddings": "",
    "GET /v1/models": "",
    "GET /v1/models/{model_id}": "",
    "GET /v1/usage": "the cursor holds a key's id",
    "GET /v1/usage/requests/{request_id}": "a request",
    "GET /v1/keys": "the page follows a key",
    "POST /v1/keys": "",
    "GET /v1/keys/{key_id}": "a key",
    "PATCH /v1/keys/{key_id}": "a key",
    "DELETE /v1/keys/{key_id}": "a key",
    "POST /v1/keys/{key_id}/rotate": "a key",
    "POST /v1/leaked-keys": "a whole key, which is its own permission; never an id",
    "GET /livez": "",
    "GET /readyz": "",
    "GET /metrics": "",
    "POST /webhooks/stripe": "what Stripe has signed; a customer cannot",
    "GET /docs": "",
    "POST /playground/completions": "",
    "POST /playground/chat/completions": "",
    "POST /playground/classifications": "",
}
# What a page for people might be given, were it to take an organisation from outside.
GUESSES = ("org", "org_id", "organisation", "user", "user_id", "key", "key_id", "id", "request_id", "after")
# What A writes may name B's ids, in a list of models for instance: it is A's row.
ANY_ROW = (
    "SELECT row_to_json(t)::text FROM {table} t WHERE row_to_json(t)::text LIKE ANY(:patterns)"
    " AND (to_jsonb(t) ->> 'org_id') IS DISTINCT FROM :attacker ORDER BY 1"
)


@dataclass(frozen=True)
class Victim:
    """Organisation B: what an answer to A must not hold, and the ids that A might come by."""

    org_id: UUID
    user_id: UUID
    key_ids: tuple[UUID, ...]
    request_id: UUID
    secrets: tuple[str, ...]
    cursor: str

    @property
    def ids(self) -> tuple[str, ...]:
        """What A puts wherever something can be put."""
        ids = (self.org_id, self.user_id, *self.key_ids, self.request_id)
        return (*map(str, ids), f"cmpl-{self.request_id}", self.cursor)

    @property
    def marks(self) -> tuple[str, ...]:
        """What belongs to B and nobody else."""
        named = ("Victims Ltd", "victim@b.example", "key of the victim")
        return (*map(str, (self.org_id, self.user_id, *self.key_ids, self.request_id)), *self.secrets, *named)


@dataclass(frozen=True)
class Attacker:
    """Organisation A: its key, which may do everything, and the cookie of its owner."""

    org_id: UUID
    headers: httpx.Headers


@pytest.fixture
async def victim(world: World) -> Victim:
    """B has a person, a key that was rotated, and usage by both keys."""
    database, settings = world.database, world.settings
    org_id = await make_org(database, "Victims Ltd")
    user_id = await make_user(database, org_id, "victim@b.example")
    first = await make_key(database, settings, org_id, name="key of the victim")
    answer = await world.post("/v1/completions", {"model": "bytes", "prompt": "a"}, first)
    listed = (await world.get("/v1/keys", first)).json()["data"]
    second = (await world.post(f"/v1/keys/{listed[0]['id']}/rotate", {}, first)).json()
    await world.post("/v1/completions", {"model": "bytes", "prompt": "a"}, second["key"])
    page = (await world.get("/v1/usage", first, group_by="key,model,kind", limit=1)).json()
    return Victim(
        org_id,
        user_id,
        (UUID(listed[0]["id"]), UUID(second["id"])),
        UUID(answer.headers["x-request-id"]),
        (first, second["key"]),
        page["next"],
    )


@pytest.fixture
async def attacker(world: World) -> Attacker:
    """A's key, which may do everything, and the cookie of A's owner."""
    org_id = await make_org(world.database, "Attackers Ltd")
    user_id = await make_user(world.database, org_id, "owner@a.example")
    key = await make_key(world.database, world.settings, org_id)
    async with world.database.begin() as connection:
        created_at = (await connection.execute(text("SELECT now()"))).scalar_one()
        session = await open_session(connection, user_id, created_at)
    headers = httpx.Headers({"authorization": f"Bearer {key}", "cookie": f"{SESSION_COOKIE}={session}"})
    return Attacker(org_id, headers)


async def rows_of(database: Database, victim: Victim, attacker_org: UUID | None = None) -> list[tuple[str, str]]:
    """Every row of every table that has to do with B and is not A's own."""
    patterns = [f"%{mark}%" for mark in (victim.org_id, victim.user_id, *victim.key_ids, victim.request_id)]
    bind = {"patterns": patterns, "attacker": str(attacker_org or "")}
    found = []
    async with database.begin() as connection:
        for table in Base.metadata.sorted_tables:
            statement = text(ANY_ROW.format(table=table.name))
            rows = (await connection.execute(statement, bind)).scalars()
            found += [(table.name, row) for row in rows]
    return found


def operations(world: World) -> dict[str, dict[str, Any]]:
    """Every route of the document, and every other one that the application answers."""
    found: dict[str, dict[str, Any]] = {}
    for route in _routes(world.app.routes):
        if route.endpoint.__module__.startswith("app.portal."):
            continue
        for method in sorted(route.methods or ()):
            found[f"{method} {route.path}"] = {}
    for path, methods in world.app.openapi()["paths"].items():
        for method, operation in methods.items():
            found[f"{method.upper()} {path}"] = operation
    return found


def _routes(routes: list[BaseRoute]) -> Iterator[APIRoute]:
    for route in routes:
        if isinstance(route, APIRoute):
            yield route
        # An included router keeps its own list.
        inner = getattr(route, "original_router", None)
        if inner is not None:
            yield from _routes(inner.routes)


def requests_to(world: World, route: str, victim: Victim) -> Iterator[dict[str, Any]]:
    """Every way to put one of B's ids into one place of the route, the rest being as in its examples."""
    operation = operations(world)[route]
    method, path = route.split(" ")
    body, fields = example_of(world, operation)
    own = {"method": method, "url": path.replace("{model_id}", "bytes"), "json": body}
    parameters = [p["name"] for p in operation.get("parameters", ()) if p["in"] == "query"]
    for value in victim.ids:
        filled = path
        while "{" in filled:
            filled = filled[: filled.index("{")] + value + filled[filled.index("}") + 1 :]
        yield own | {"url": filled}
        for name in parameters or (() if operation else GUESSES):
            grouped = {"group_by": "key,model,kind"} if "group_by" in parameters else {}
            yield own | {"url": filled, "params": {**grouped, name: value}}
        if body is None and method == "POST":
            yield own | {"url": filled, "json": None, "data": dict.fromkeys(GUESSES, value)}
    for field in fields:
        for value in victim.ids[:4]:
            for shape in (value, [value]):
                yield own | {"url": own["url"].replace("{key_id}", victim.ids[2]), "json": {**body, field: shape}}


def example_of(world: World, operation: dict[str, Any]) -> tuple[Any, list[str]]:
    """A body that is right but for one field, and the names of its fields."""
    if "requestBody" not in operation:
        return None, []
    name = operation["requestBody"]["content"]["application/json"]["schema"]["$ref"].rpartition("/")[2]
    schema = world.app.openapi()["components"]["schemas"][name]
    example = dict(schema["examples"][0])
    if "model" in example:
        example["model"] = {"ClassificationBody": "labels", "EmbeddingBody": "vectors"}.get(name, "bytes")
    return example, list(schema["properties"])


async def attack(world: World, route: str, victim: Victim, attacker: Attacker) -> None:
    """Fails if anything of B comes out or changes."""
    before = await rows_of(world.database, victim, attacker.org_id)
    for request in requests_to(world, route, victim):
        answer = await world.http.request(**request, headers=attacker.headers)
        sent = str(request)
        seen = [mark for mark in victim.marks if mark in answer.text + str(answer.headers) and mark not in sent]
        assert not seen, f"{request} shows {seen}"
        if "{" in route and "{model_id}" not in route:
            assert answer.status_code in {400, 404}, f"{request} is answered with {answer.status_code}"
    assert await rows_of(world.database, victim, attacker.org_id) == before, f"{route} changes rows"


async def test_every_route_has_been_thought_about(world: World) -> None:
    assert set(operations(world)) == set(ROUTES)
    assert {route for route in ROUTES if "_id}" in route} >= {"GET /v1/keys/{key_id}"}


@pytest.mark.parametrize("route", ROUTES)
async def test_nothing_of_another_organisation_is_read_or_changed(
    world: World, victim: Victim, attacker: Attacker, route: str
) -> None:
    await attack(world, route, victim, attacker)


async def test_its_owner_sees_what_the_attacker_must_not(world: World, victim: Victim) -> None:
    """Or the marks would be found in no answer whatever."""
    key = victim.secrets[0]
    listed = (await world.get("/v1/keys", key)).text
    assert all(str(key_id) in listed for key_id in victim.key_ids)
    assert "key of the victim" in listed
    assert str(victim.key_ids[0]) in (await world.get("/v1/usage", key, group_by="key")).text
    assert (await world.get(f"/v1/usage/requests/{victim.request_id}", key)).status_code == 200
    tables = {table for table, _ in await rows_of(world.database, victim)}
    assert tables >= {"orgs", "users", "memberships", "api_keys", "rate_buckets", "usage_events"}


@pytest.mark.parametrize("route", ["GET /v1/keys/{key_id}", "PATCH /v1/keys/{key_id}", "DELETE /v1/keys/{key_id}"])
async def test_a_hole_would_be_found(
    world: World, victim: Victim, attacker: Attacker, route: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keys, "_owned_by", lambda _: [])
    with pytest.raises(AssertionError):
        await attack(world, route, victim, attacker)


async def test_a_route_that_nobody_has_thought_about_is_found(world: World) -> None:
    async def forgotten() -> None:
        """Gives everything away."""

    world.app.get("/v1/forgotten")(forgotten)
    world.app.openapi_schema = None
    assert set(operations(world)) - set(ROUTES) == {"GET /v1/forgotten"}
