"""Every endpoint: without a key, with a bad one, without the scope, over the rate."""

from uuid import UUID

import pytest

from app.admission import Admission
from app.db import Database
from tests.api.world import World, error_of
from tests.factories import make_key

NO_REQUEST = UUID(int=7)
NO_KEY = UUID(int=8)
CALLS = {
    ("POST", "/v1/completions"): {"model": "bytes", "prompt": "a"},
    ("POST", "/v1/chat/completions"): {"model": "bytes", "messages": [{"role": "user", "content": "a"}]},
    ("POST", "/v1/classifications"): {"model": "labels", "input": "a"},
    ("POST", "/v1/embeddings"): {"model": "vectors", "input": "a"},
    ("GET", "/v1/models"): None,
    ("GET", "/v1/models/bytes"): None,
    ("GET", "/v1/usage"): None,
    ("GET", f"/v1/usage/requests/{NO_REQUEST}"): None,
    ("GET", "/v1/keys"): None,
    ("POST", "/v1/keys"): {"name": "new"},
    ("GET", f"/v1/keys/{NO_KEY}"): None,
    ("PATCH", f"/v1/keys/{NO_KEY}"): {"name": "new"},
    ("DELETE", f"/v1/keys/{NO_KEY}"): None,
    ("POST", f"/v1/keys/{NO_KEY}/rotate"): {},
}
EVERY = pytest.mark.parametrize(("method", "path"), list(CALLS))


async def call(world: World, method: str, path: str, headers: dict[str, str]) -> tuple[int, str, str | None]:
    response = await world.http.request(method, path, json=CALLS[method, path], headers=headers)
    assert response.headers["x-request-id"]
    assert "openai-processing-ms" in response.headers
    return error_of(response)


@EVERY
@pytest.mark.parametrize("header", [None, "", "Bearer", "Bearer sk-something", "Basic abc", "tg_live_x"])
async def test_strangers_are_refused(world: World, method: str, path: str, header: str | None) -> None:
    headers = {} if header is None else {"authorization": header}
    assert await call(world, method, path, headers) == (401, "invalid_api_key", None)
    assert world.engine.requests == []


@EVERY
async def test_a_revoked_key_is_refused_by_the_next_request(world: World, method: str, path: str) -> None:
    async with world.database.begin() as connection:
        await connection.exec_driver_sql("UPDATE api_keys SET revoked_at = now()")
    assert await call(world, method, path, world.auth()) == (401, "invalid_api_key", None)


@EVERY
async def test_an_expired_key_is_refused(world: World, method: str, path: str) -> None:
    async with world.database.begin() as connection:
        await connection.exec_driver_sql("UPDATE api_keys SET expires_at = now() - interval '1 second'")
    assert await call(world, method, path, world.auth()) == (401, "invalid_api_key", None)


@EVERY
async def test_a_suspended_organisation_is_refused(world: World, method: str, path: str) -> None:
    async with world.database.begin() as connection:
        await connection.exec_driver_sql("UPDATE orgs SET status = 'suspended'")
    assert await call(world, method, path, world.auth()) == (403, "organization_suspended", None)


@EVERY
async def test_over_the_rate_the_answer_says_when_to_come_back(world: World, method: str, path: str) -> None:
    key = await make_key(world.database, world.settings, requests_per_minute=1)
    headers = world.auth(key)
    first = await world.http.request(method, path, json=CALLS[method, path], headers=headers)
    assert first.status_code == (404 if str(NO_REQUEST) in path or str(NO_KEY) in path else 200)
    response = await world.http.request(method, path, json=CALLS[method, path], headers=headers)
    assert error_of(response) == (429, "rate_limit_exceeded", None)
    assert 0 < int(response.headers["retry-after-ms"]) <= 60_000
    assert int(response.headers["retry-after"]) <= 60
    assert response.headers["x-ratelimit-remaining-requests"] == "0"


@pytest.mark.parametrize(
    ("method", "path", "scope"),
    [
        ("POST", "/v1/completions", "classification"),
        ("POST", "/v1/chat/completions", "usage"),
        ("POST", "/v1/classifications", "generation"),
        ("GET", "/v1/usage", "generation"),
        ("GET", f"/v1/usage/requests/{NO_REQUEST}", "generation"),
        ("GET", "/v1/keys", "usage"),
        ("POST", "/v1/keys", "usage"),
        ("GET", f"/v1/keys/{NO_KEY}", "usage"),
        ("PATCH", f"/v1/keys/{NO_KEY}", "usage"),
        ("DELETE", f"/v1/keys/{NO_KEY}", "usage"),
        ("POST", f"/v1/keys/{NO_KEY}/rotate", "usage"),
    ],
)
async def test_a_key_without_the_scope_is_refused(world: World, method: str, path: str, scope: str) -> None:
    key = await make_key(world.database, world.settings, scopes=(scope,))
    assert await call(world, method, path, world.auth(key)) == (403, "permission_denied", None)


async def test_more_tokens_than_the_rate_ever_allows_are_not_retried(world: World) -> None:
    key = await make_key(world.database, world.settings, tokens_per_minute=10)
    response = await world.post("/v1/completions", {"model": "bytes", "prompt": "a", "max_tokens": 20}, key)
    assert error_of(response) == (429, "rate_limit_exceeded", None)
    assert response.headers["x-should-retry"] == "false"


@EVERY
async def test_a_database_that_is_away_is_503_and_never_401(
    world: World, method: str, path: str, unreachable: None
) -> None:
    assert await call(world, method, path, world.auth()) == (503, "database_unavailable", None)


async def test_a_mistyped_key_is_refused_without_asking_the_database(world: World, unreachable: None) -> None:
    assert await call(world, "GET", "/v1/models", world.auth("tg_live_x")) == (401, "invalid_api_key", None)


@pytest.fixture
async def unreachable(world: World) -> None:
    """The API's database is at an address where nobody listens."""
    state = world.app.state
    await state.database.aclose()
    await state.admission.aclose()
    state.database = Database.connect("postgresql://nobody@127.0.0.1:9/none", timeout_s=1)
    state.admission = Admission(state.database, state.ledger)
