"""GET /livez, /readyz, /metrics."""

import pytest

from app.db import Database
from tests.api.world import World


async def test_a_process_that_answers_is_live(world: World) -> None:
    response = await world.http.get("/livez")
    assert (response.status_code, response.text) == (200, "ok\n")


async def test_database_and_engine_make_it_ready(world: World) -> None:
    response = await world.http.get("/readyz")
    assert response.status_code == 200
    assert response.json() == {
        "status": "ready",
        "checks": {"database": "ok", "engine": "ok"},
        "broken_models": [],
    }


async def test_without_a_database_it_lives_but_is_not_ready(world: World) -> None:
    await world.app.state.database.aclose()
    world.app.state.database = Database.connect("postgresql://nobody@127.0.0.1:9/none", timeout_s=1)
    response = await world.http.get("/readyz")
    assert response.status_code == 503
    assert response.json()["checks"] == {"database": "database_unavailable", "engine": "ok"}
    assert (await world.http.get("/livez")).status_code == 200


async def test_a_database_without_our_tables_is_not_ready(world: World, empty_database_url: str) -> None:
    await world.app.state.database.aclose()
    world.app.state.database = Database.connect(empty_database_url)
    assert (await world.http.get("/readyz")).json()["checks"]["database"] == "database_unavailable"


async def test_a_loading_a_draining_and_a_dead_engine_are_told_apart(world: World) -> None:
    async def engine_check() -> str:
        return str((await world.http.get("/readyz")).json()["checks"]["engine"])

    world.engine.states["more"] = "loading"
    assert await engine_check() == "loading"
    world.engine.is_draining = True
    assert await engine_check() == "draining"
    await world.stop_engine()
    assert await engine_check() == "engine_unavailable"


async def test_a_broken_model_is_named_and_takes_nobody_else_down(world: World) -> None:
    world.engine.states["damaged"] = "broken"
    response = await world.http.get("/readyz")
    assert response.status_code == 200
    assert response.json()["broken_models"] == ["damaged"]


@pytest.mark.parametrize("states", [{}, {"bytes": "broken"}])
async def test_without_a_model_that_answers_it_is_not_ready(world: World, states: dict[str, str]) -> None:
    world.engine.states = states
    response = await world.http.get("/readyz")
    assert response.status_code == 503
    assert response.json() == {
        "status": "not_ready",
        "checks": {"database": "ok", "engine": "no_model_ready"},
        "broken_models": [*states],
    }


async def test_metrics_count_requests_by_route_and_never_by_path(world: World) -> None:
    await world.http.get("/v1/models/secret-name", headers=world.auth())
    await world.http.get("/no/such/place")
    text = (await world.http.get("/metrics")).text
    assert 'route="/v1/models/{model_id}"' in text
    assert "secret-name" not in text
    assert "/no/such/place" not in text
