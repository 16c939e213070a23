"""What a usage row keeps is enough to have a request's answer once more, from a real model and in any company."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from app.config import Settings
from app.db import Database
from app.engine.grammar import Grammars
from app.engine.model_runner import DecoderRunner
from app.modeling import checkpoint
from app.modeling.decoder_config import DecoderConfig
from app.modeling.registry import ModelCard, Registry
from tests import fakes
from tests.api.world import World, serving
from tests.factories import make_key
from tests.modeling.checkpoints import write_decoder

PROMPT = "the quick brown"
COMPLETIONS: list[dict[str, Any]] = [
    {"prompt": PROMPT},
    {"prompt": [PROMPT, PROMPT], "n": 2, "max_tokens": 8, "top_p": 0.9, "top_k": 40},
    {"prompt": PROMPT, "n": 1, "best_of": 3, "temperature": 1.5, "seed": -5},
    {"prompt": [5, 6, 7], "presence_penalty": 1.5, "frequency_penalty": 0.5, "min_tokens": 4, "ignore_eos": True},
    {"prompt": PROMPT, "stop": ["a", "e"], "max_tokens": 20},
    {"prompt": PROMPT, "response_format": {"type": "json_object"}, "max_tokens": 12},
]


@pytest.fixture
async def real(settings: Settings, database: Database) -> AsyncIterator[World]:
    """A world whose engine runs a tiny random decoder."""
    write_decoder(settings.models_dir / "tiny")
    async with (
        fakes.serving(load, Registry(settings.models_dir).get("tiny")) as (_, server, _),
        serving(settings, database, engine_url=f"127.0.0.1:{server.port}") as world,
    ):
        world.key = await make_key(database, settings)
        yield world


def load(card: ModelCard) -> DecoderRunner:
    loaded = checkpoint.load(card.path)
    assert isinstance(loaded.config, DecoderConfig)
    return DecoderRunner(loaded.config, loaded.weights, num_slots=4, grammars=Grammars.of(card))


async def test_a_row_replays_the_answer_of_the_version_that_it_names(real: World) -> None:
    card, differs = Registry(real.settings.models_dir).get("tiny"), []
    for sent in COMPLETIONS:
        first = await real.post("/v1/completions", {"model": "tiny", **sent})
        row = (await real.get(f"/v1/usage/requests/{first.headers['x-request-id']}")).json()
        assert row["model_digest"] == card.digest
        body = {"model": "tiny", "prompt": sent["prompt"], **row["parameters"]}
        others = [real.post("/v1/completions", {"model": "tiny", "prompt": word, "max_tokens": 30}) for word in "abc"]
        again, *_ = await asyncio.gather(real.post("/v1/completions", body), *others)
        assert texts(again) == texts(first)
        another = await real.post("/v1/completions", {**body, "seed": row["parameters"]["seed"] + 1})
        differs.append(texts(another) != texts(first))
    assert any(differs)  # two seeds may well agree on an answer as short as "{}", but not on all


def texts(answer: httpx.Response) -> list[tuple[str, str]]:
    """What was said in each choice, and how it ended."""
    return [(choice["text"], choice["finish_reason"]) for choice in answer.json()["choices"]]
