"""PostgreSQL goes away under load and comes back: nothing is lost, and nobody has to restart anything."""

import asyncio
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from app import migrate, postgres
from app.config import Settings
from app.db import Database
from app.rpc import engine_pb2 as pb
from tests.api.world import World, error_of, serving, write_model
from tests.factories import make_key

pytestmark = pytest.mark.slow


class Outage:
    """A PostgreSQL of the test's own that it stops and starts."""

    def __init__(self, folder: Path) -> None:
        self.cluster = postgres.locate(folder / "data", durable=False)
        self.server: postgres.Server | None = postgres.start(self.cluster)

    def begin(self) -> None:
        assert self.server is not None
        self.server.stop()
        self.server = None

    def end(self) -> None:
        self.server = postgres.start(self.cluster)


@pytest.fixture
def outage() -> Iterator[Outage]:
    """The server runs."""
    with tempfile.TemporaryDirectory(prefix="tollgate-outage-") as name:
        folder = Path(name)
        folder.chmod(0o711)  # as root, the server runs as another user, who has to pass through
        outage = Outage(folder)
        yield outage
        if outage.server is not None:
            outage.begin()


@pytest.fixture
async def world(outage: Outage, settings: Settings) -> AsyncIterator[World]:
    """A generation model on that server."""
    await migrate.upgrade(outage.cluster.url)
    write_model(settings.models_dir)
    database = Database.connect(outage.cluster.url)
    settings = settings.model_copy(update={"database_url": outage.cluster.url})
    async with serving(settings, database) as running:
        running.key = await make_key(database, settings)
        yield running
    await database.aclose()


async def test_streams_end_whole_new_requests_get_503_and_the_books_are_complete_afterwards(
    world: World, outage: Outage
) -> None:
    goes_on = asyncio.Event()

    async def slow(_: pb.GenerateRequest) -> AsyncIterator[pb.GenerateChunk]:
        yield pb.GenerateChunk(tokens=b"a", accelerator_ms=1.0)
        await goes_on.wait()
        yield pb.GenerateChunk(index=1, tokens=b"bc", finish_reason="stop", accelerator_ms=2.0)

    world.engine.answer = slow
    streams = [asyncio.create_task(world.post("/v1/completions", body(stream=True))) for _ in range(8)]
    plain = [asyncio.create_task(world.post("/v1/completions", body())) for _ in range(8)]
    while len(world.engine.requests) < 16:
        await world.get("/livez")
    outage.begin()
    refused = await world.post("/v1/completions", body())
    assert error_of(refused) == (503, "database_unavailable", None)
    assert refused.headers["retry-after"] == "1"
    goes_on.set()
    for answer in await asyncio.gather(*streams):
        assert answer.text.endswith("data: [DONE]\n\n")
    for answer in await asyncio.gather(*plain):
        assert answer.json()["choices"][0]["text"] == "abc"
    ledger = world.app.state.ledger
    assert ledger.num_late == 16
    outage.end()
    await ledger.caught_up()
    rows = [(row.output_tokens, row.finish_reason, row.state) for row in await world.usage_rows()]
    assert rows == [(3, "stop", "final")] * 16
    assert await held(world) == (0, 0, 0)
    assert (await world.post("/v1/completions", body())).status_code == 200


async def test_a_restart_between_two_requests_is_seen_by_nobody(world: World, outage: Outage) -> None:
    assert (await world.post("/v1/completions", body())).status_code == 200
    outage.begin()
    outage.end()
    for _ in range(3):
        assert (await world.post("/v1/completions", body())).status_code == 200
    assert len(await world.usage_rows()) == 4
    assert await held(world) == (0, 0, 0)


def body(**more: Any) -> dict[str, Any]:
    return {"model": "bytes", "prompt": "a", **more}


async def held(world: World) -> tuple[int, ...]:
    """Money, places and reservations."""
    async with world.database.begin() as connection:
        statement = "SELECT cost_held, num_running, (SELECT count(*) FROM reservations) FROM org_budgets"
        return tuple((await connection.exec_driver_sql(statement)).one())
