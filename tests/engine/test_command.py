"""The serving process around host and server; its signals and its children are tested with the client."""

import asyncio
import signal
from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from app.config import Settings
from app.engine.command import _serve
from app.engine.runner import Encoder, Runner
from app.errors import EngineUnavailable, ModelFormatError
from app.modeling.registry import ModelCard
from app.rpc.client import EngineClient
from tests.fakes import until
from tests.modeling.checkpoints import write_decoder


async def test_engine_without_a_model_stays_to_say_which_are_broken_and_takes_no_work(tmp_path: Path) -> None:
    def load(card: ModelCard) -> Runner | Encoder:
        raise ModelFormatError(f"{card.name} has no weights")

    async def is_loaded() -> bool:
        try:
            return (await client.describe()).device == "abacus"
        except EngineUnavailable:
            return False

    settings = Settings(data_dir=tmp_path, models_dir=tmp_path / "models")
    write_decoder(settings.models_dir / "tiny")
    serving = asyncio.create_task(_serve(settings, load, lambda: "abacus"))
    client = EngineClient(settings.engine_target)
    await until(is_loaded)
    assert [(model.name, model.state) for model in (await client.describe()).models] == [("tiny", "broken")]
    async with grpc.aio.insecure_channel(settings.engine_target) as channel:
        answer = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
    assert answer.status == health_pb2.HealthCheckResponse.NOT_SERVING
    await client.aclose()
    signal.raise_signal(signal.SIGTERM)
    assert await serving
