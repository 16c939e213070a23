"""The serving process around host and server; its signals and its children are tested with the client."""

import asyncio
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from app.config import Settings
from app.engine.command import Ending, _serve
from app.engine.runner import Encoder, Runner
from app.engine.stub import StubRunner
from app.errors import ConfigError, EngineUnavailable, ModelFormatError
from app.modeling.registry import ModelCard
from app.rpc import engine_pb2 as pb
from app.rpc.client import EngineClient
from tests.fakes import until
from tests.modeling.checkpoints import write_decoder


async def test_engine_without_a_model_stays_to_say_which_are_broken_and_takes_no_work(tmp_path: Path) -> None:
    def load(card: ModelCard) -> Runner | Encoder:
        raise ModelFormatError(f"{card.name} has no weights")

    settings = Settings(data_dir=tmp_path, models_dir=tmp_path / "models")
    write_decoder(settings.models_dir / "tiny")
    serving = asyncio.create_task(_serve(settings, load, lambda: "abacus"))
    client = EngineClient(settings.engine_target)
    await until(lambda: is_device(client, "abacus"))
    assert [(model.name, model.state) for model in (await client.describe()).models] == [("tiny", "broken")]
    async with grpc.aio.insecure_channel(settings.engine_target) as channel:
        answer = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
    assert answer.status == health_pb2.HealthCheckResponse.NOT_SERVING
    await client.aclose()
    signal.raise_signal(signal.SIGTERM)
    assert await serving == Ending(is_wanted=True, is_loading=False)


async def test_second_engine_at_one_address_is_refused_and_takes_nothing_from_the_first(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path, models_dir=tmp_path / "models")
    write_decoder(settings.models_dir / "tiny")
    serving = asyncio.create_task(_serve(settings, lambda _: StubRunner(), lambda: "abacus"))
    client = EngineClient(settings.engine_target)
    await until(lambda: is_device(client, "abacus"))
    with pytest.raises(ConfigError, match="another engine"):
        await _serve(settings, lambda _: StubRunner(), lambda: "second")
    await client.aclose()
    client = EngineClient(settings.engine_target)
    assert (await client.describe()).device == "abacus"
    await client.aclose()
    signal.raise_signal(signal.SIGTERM)
    assert (await serving).is_wanted


async def test_address_that_is_in_use_or_not_ours_is_told_in_one_line(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        with pytest.raises(ConfigError, match=address):
            await _serve(Settings(data_dir=tmp_path, engine_bind=address), lambda _: StubRunner(), lambda: "")


HELD_SERVER = """
import sys, threading
from pathlib import Path
from app.config import Settings
from app.engine import command, engine
from app.engine.stub import StubRunner
class Hung(StubRunner):
    def run(self, step):
        threading.Event().wait()
def load(settings, card, step_s):
    return Hung() if sys.argv[3] == "hang" else threading.Event().wait()
engine.LOST_AFTER_S = 0.1
command.load_stub = load
command.serve(Settings(data_dir=Path(sys.argv[1]), models_dir=Path(sys.argv[2])), stub=True)
"""


async def test_engine_that_is_told_to_stop_does_not_wait_for_what_it_loads(tmp_path: Path) -> None:
    async with held_server(tmp_path, "load") as (process, client):
        await until(lambda: is_device(client, ""))
        process.terminate()
        assert await process.wait() == 0


async def test_engine_whose_device_does_not_come_back_ends_with_an_error(tmp_path: Path) -> None:
    async with held_server(tmp_path, "hang") as (process, client):
        await until(lambda: is_device(client, "stub"))
        with pytest.raises(EngineUnavailable):
            await anext(client.generate(pb.GenerateRequest(model="tiny", prompt_tokens=[1], max_tokens=1)))
        assert await process.wait() == 1


@asynccontextmanager
async def held_server(folder: Path, what: str) -> AsyncIterator[tuple[asyncio.subprocess.Process, EngineClient]]:
    """An engine in a process of its own, in which a thread hangs for good."""
    settings = Settings(data_dir=folder, models_dir=folder / "models")
    write_decoder(settings.models_dir / "tiny")
    command = [sys.executable, "-c", HELD_SERVER, str(folder), str(settings.models_dir), what]
    process = await asyncio.create_subprocess_exec(*command, cwd=Path(__file__).parents[2])
    client = EngineClient(settings.engine_target)
    try:
        async with asyncio.timeout(60):
            yield process, client
    finally:
        await client.aclose()
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def is_device(client: EngineClient, name: str) -> bool:
    try:
        return (await client.describe()).device == name
    except EngineUnavailable:
        return False
