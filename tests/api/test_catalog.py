"""GET /v1/models."""

import json
from pathlib import Path

import pytest

from app.api.served import ServedModels
from app.errors import NotFound
from app.modeling.registry import set_enabled
from tests.api.world import LABELS, World, error_of, write_model


async def test_models_are_listed_with_what_they_do(world: World) -> None:
    listed = {model.id: model async for model in await world.openai().models.list()}
    assert set(listed) == {"bytes", "labels", "topics", "vectors"}
    raw = (await world.get("/v1/models")).json()["data"]
    assert [(model["id"], model["kind"], model["labels"]) for model in raw] == [
        ("bytes", "generation", None),
        ("labels", "classification", list(LABELS)),
        ("topics", "classification", list(LABELS)),
        ("vectors", "embedding", None),
    ]


async def test_one_model_is_found_by_its_id(world: World) -> None:
    model = await world.openai().models.retrieve("bytes")
    assert (model.id, model.object, model.owned_by) == ("bytes", "model", "tollgate")


async def test_an_unknown_model_is_not_found(world: World) -> None:
    assert error_of(await world.get("/v1/models/gpt-5")) == (404, "model_not_found", "model")


async def test_reading_the_list_is_not_billed(world: World) -> None:
    response = await world.get("/v1/models")
    assert response.headers["x-ratelimit-remaining-requests"] == "11999"
    assert await world.usage_rows() == []


class Clock:
    """Seconds that pass when told."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


async def test_a_new_or_switched_off_model_is_seen_within_ten_seconds(tmp_path: Path) -> None:
    clock = Clock()
    write_model(tmp_path, "one")
    served = ServedModels(tmp_path, clock)
    write_model(tmp_path, "two")
    set_enabled(tmp_path / "one", enabled=False)
    assert [card.name for card in await served.list()] == ["one"]
    clock.now = 10.0
    assert [card.name for card in await served.list()] == ["two"]
    with pytest.raises(NotFound):
        await served.card("one")


async def test_a_tokenizer_is_loaded_once_per_version(tmp_path: Path) -> None:
    clock = Clock()
    write_model(tmp_path, "one")
    served = ServedModels(tmp_path, clock)
    first = await served.get("one", "generation")
    assert (await served.get("one", "generation")).tokenizer is first.tokenizer
    config = json.loads((tmp_path / "one" / "config.json").read_text())
    (tmp_path / "one" / "config.json").write_text(json.dumps(config | {"note": "changed"}))
    clock.now = 10.0
    second = await served.get("one", "generation")
    assert second.tokenizer is not first.tokenizer
    assert second.fingerprint != first.fingerprint
