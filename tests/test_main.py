"""The API as processes: several on one socket, draining, and ending with their parent."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from app.billing.prices import PRICES
from app.config import Settings, child_environment
from app.db import Database
from app.errors import ConfigError
from app.main import create_app, serve
from app.rpc import engine_pb2 as pb
from tests.api.world import ScriptedEngine, error_of, say, start_engine, write_model
from tests.factories import make_key

pytestmark = pytest.mark.slow


@pytest.fixture
async def engine() -> AsyncIterator[tuple[ScriptedEngine, str]]:
    """A scripted engine and its address."""
    scripted = ScriptedEngine()
    server, target = await start_engine(scripted)
    yield scripted, target
    await server.stop(None)


@contextmanager
def api_process(settings: Settings, workers: int, metrics: Path) -> Iterator[tuple["subprocess.Popen[bytes]", str]]:
    """``tollgate api`` on a socket that listens already, so that no request comes too early."""
    metrics.mkdir()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        process = subprocess.Popen(
            [sys.executable, "-m", "app.cli", "api", "--workers", str(workers), "--fd", str(listener.fileno())],
            env=child_environment(settings, PROMETHEUS_MULTIPROC_DIR=str(metrics)),
            pass_fds=[listener.fileno()],
        )
    try:
        yield process, url
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("workers", [1, 2])
async def test_on_sigterm_a_running_stream_ends_whole_and_nobody_new_gets_in(
    database: Database, settings: Settings, engine: tuple[ScriptedEngine, str], tmp_path: Path, workers: int
) -> None:
    scripted, target = engine
    goes_on = asyncio.Event()

    async def slow(_: pb.GenerateRequest) -> AsyncIterator[pb.GenerateChunk]:
        yield pb.GenerateChunk(tokens=b"a")
        await goes_on.wait()
        yield pb.GenerateChunk(index=1, finish_reason="stop")

    scripted.answer = slow
    write_model(settings.models_dir)
    key = await make_key(database, settings)
    settings = settings.model_copy(update={"engine_url": target})
    with api_process(settings, workers, tmp_path / "metrics") as (process, url):
        async with httpx.AsyncClient(base_url=url, timeout=60) as client:
            while (await client.get("/readyz")).status_code != 200:
                pass
            body = {"model": "bytes", "prompt": "a", "stream": True}
            headers = {"authorization": f"Bearer {key}"}
            async with client.stream("POST", "/v1/completions", json=body, headers=headers) as response:
                lines = response.aiter_lines()
                first = await anext(lines)
                process.send_signal(signal.SIGTERM)
                await refused(url)
                goes_on.set()
                rest = [line async for line in lines if line]
        assert '"text":"a"' in first
        assert rest[-1] == "data: [DONE]"
        await asyncio.to_thread(process.wait)
    async with database.begin() as connection:
        rows = (await connection.exec_driver_sql("SELECT output_tokens, finish_reason FROM usage_events")).all()
    assert [tuple(row) for row in rows] == [(1, "stop")]


async def test_what_does_not_end_in_time_is_cut_off_and_settled(
    database: Database, settings: Settings, engine: tuple[ScriptedEngine, str], tmp_path: Path
) -> None:
    scripted, target = engine

    async def stuck(request: pb.GenerateRequest) -> AsyncIterator[pb.GenerateChunk]:
        if request.prompt_tokens[0] == ord("s"):
            yield pb.GenerateChunk(tokens=b"abc")
        await asyncio.Event().wait()

    scripted.answer = stuck
    write_model(settings.models_dir)
    key = await make_key(database, settings)
    settings = settings.model_copy(update={"engine_url": target, "drain_timeout_s": 1.0})
    with api_process(settings, 1, tmp_path / "metrics") as (process, url):
        async with httpx.AsyncClient(base_url=url, headers={"authorization": f"Bearer {key}"}, timeout=60) as client:
            while (await client.get("/readyz")).status_code != 200:
                pass
            whole = asyncio.create_task(client.post("/v1/completions", json={"model": "bytes", "prompt": "whole"}))
            body = {"model": "bytes", "prompt": "stream", "stream": True}
            async with client.stream("POST", "/v1/completions", json=body) as response:
                lines = response.aiter_lines()
                await anext(lines)
                while len(scripted.requests) < 2:
                    await client.get("/livez")
                process.send_signal(signal.SIGTERM)
                with pytest.raises(httpx.RemoteProtocolError):
                    [line async for line in lines]
            refusal = await whole
        await asyncio.to_thread(process.wait)
    # Cut off in the middle, a stream costs what was sent; a whole answer costs nothing.
    assert error_of(refusal) == (503, "overloaded", None)
    async with database.begin() as connection:
        rows = (
            await connection.exec_driver_sql("SELECT input_tokens, output_tokens, finish_reason FROM usage_events")
        ).all()
    assert [tuple(row) for row in rows] == [(6, 3, "error")]


async def test_a_killed_process_is_billed_by_the_next_for_what_it_had_sent(
    database: Database, settings: Settings, engine: tuple[ScriptedEngine, str], tmp_path: Path
) -> None:
    scripted, target = engine

    async def stuck(request: pb.GenerateRequest) -> AsyncIterator[pb.GenerateChunk]:
        if request.prompt_tokens[0] == ord("s"):
            yield pb.GenerateChunk(tokens=b"abc")
            yield pb.GenerateChunk(index=3, tokens=b"de")
        await asyncio.Event().wait()

    scripted.answer = stuck
    write_model(settings.models_dir)
    headers = {"authorization": f"Bearer {await make_key(database, settings)}"}
    settings = settings.model_copy(update={"engine_url": target})
    with api_process(settings, 1, tmp_path / "metrics") as (process, url):
        async with httpx.AsyncClient(base_url=url, headers=headers, timeout=60) as client:
            while (await client.get("/readyz")).status_code != 200:
                pass
            whole = asyncio.create_task(client.post("/v1/completions", json={"model": "bytes", "prompt": "whole"}))
            body = {"model": "bytes", "prompt": "stream", "stream": True}
            async with client.stream("POST", "/v1/completions", json=body) as response:
                lines = response.aiter_lines()
                received = [line async for line in head(lines, 2)]
                while len(scripted.requests) < 2:
                    await client.get("/livez")
                process.kill()
                with pytest.raises(httpx.RemoteProtocolError):
                    [line async for line in lines]
            with pytest.raises(httpx.RemoteProtocolError):
                await whole
    assert [json.loads(line)["choices"][0]["text"] for line in received] == ["abc", "de"]
    assert await held(database) == (2, 2)
    with api_process(settings, 1, tmp_path / "more-metrics"):
        while await held(database) != (0, 0):
            pass
    async with database.begin() as connection:
        statement = "SELECT input_tokens, output_tokens, finish_reason, state FROM usage_events"
        rows = (await connection.exec_driver_sql(statement)).all()
    # Of the last chunk, the client may have had it before the journal did.
    assert [tuple(row) for row in rows] in ([(6, 5, "error", "recovered")], [(6, 3, "error", "recovered")])


async def test_three_processes_answer_no_more_than_the_balance_pays_for(
    database: Database, settings: Settings, engine: tuple[ScriptedEngine, str], tmp_path: Path
) -> None:
    scripted, target = engine
    scripted.answer = lambda request: say(b"x" * request.max_tokens, finish="length")
    write_model(settings.models_dir)
    headers = {"authorization": f"Bearer {await make_key(database, settings)}"}
    # Ten answers of three tokens in and five out.
    credit = 10 * PRICES[1, "generation"].cost(3, 0, 5)
    async with database.begin() as connection:
        await connection.exec_driver_sql(f"UPDATE org_budgets SET credit = {credit}")
    settings = settings.model_copy(update={"engine_url": target})
    with api_process(settings, 3, tmp_path / "metrics") as (_, url):
        limits = httpx.Limits(max_connections=200)
        async with httpx.AsyncClient(base_url=url, headers=headers, timeout=60, limits=limits) as client:
            while (await client.get("/readyz")).status_code != 200:
                pass
            body = {"model": "bytes", "prompt": "abc", "max_tokens": 5}
            sent = (client.post("/v1/completions", json=body) for _ in range(200))
            statuses = [answer.status_code for answer in await asyncio.gather(*sent)]
    assert sorted(statuses) == [200] * 10 + [402] * 190
    assert await held(database) == (0, 0)
    async with database.begin() as connection:
        budget = (await connection.exec_driver_sql("SELECT credit, cost_used, cost_held FROM org_budgets")).one()
        num_rows = (await connection.exec_driver_sql("SELECT count(*) FROM usage_events")).scalar_one()
    assert tuple(budget) == (0, credit, 0)
    assert num_rows == 10


async def head(lines: AsyncIterator[str], count: int) -> AsyncIterator[str]:
    """The data of the first events of a stream."""
    while count:
        line = await anext(lines)
        if line.startswith("data: "):
            count -= 1
            yield line.removeprefix("data: ")


async def held(database: Database) -> tuple[int, int]:
    """Requests that run, by the budgets and by the reservations."""
    async with database.begin() as connection:
        running = (await connection.exec_driver_sql("SELECT sum(num_running)::int FROM org_budgets")).scalar_one()
        reserved = (await connection.exec_driver_sql("SELECT count(*)::int FROM reservations")).scalar_one()
    return int(running), int(reserved)


async def test_workers_end_when_their_parent_is_killed(
    database: Database, settings: Settings, engine: tuple[ScriptedEngine, str], tmp_path: Path
) -> None:
    settings = settings.model_copy(update={"engine_url": engine[1]})
    with api_process(settings, 2, tmp_path / "metrics") as (process, url):
        async with httpx.AsyncClient(base_url=url, timeout=60) as client:
            while (await client.get("/readyz")).status_code != 200:
                pass
            # Merged over the workers, whichever of them answers.
            assert "tollgate_http_requests_total" in (await client.get("/metrics")).text
        os.kill(process.pid, signal.SIGKILL)
        await refused(url)


async def refused(url: str) -> None:
    """Returns once nobody accepts connections any more; the test's time limit bounds the wait."""
    host, port = url.removeprefix("http://").split(":")
    while True:
        try:
            _, writer = await asyncio.open_connection(host, int(port))
        except ConnectionRefusedError:
            return
        except ConnectionResetError:  # it closed between the handshake and now
            continue
        writer.close()


def test_without_a_database_there_is_no_application() -> None:
    with pytest.raises(ConfigError):
        create_app(Settings(database_url=None))


def test_an_address_in_use_is_one_clear_line(settings: Settings) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"cannot listen on 127.0.0.1:{port}"):
            serve(settings.model_copy(update={"port": port}))
