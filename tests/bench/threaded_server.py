"""The fake server on a loop of its own thread, for what has a loop of its own."""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from tests.bench.fake_server import Answer, FakeServer, fake_server


@contextmanager
def threaded_server(answer: Answer) -> Iterator[FakeServer]:
    """Runs while it is entered."""
    started, stop = threading.Event(), asyncio.Event()
    found: list[FakeServer] = []
    loop = asyncio.new_event_loop()

    async def serve() -> None:
        async with fake_server(answer) as server:
            found.append(server)
            started.set()
            await stop.wait()

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),))
    thread.start()
    started.wait()
    try:
        yield found[0]
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()
        loop.close()
