"""uvicorn for tests: says when it listens, and ends as soon as it is told.

Its own loops look ten times a second whether they shall end, and whether connections have
closed: together a seventh of a second for each of a thousand servers, in which nobody works.
"""

import asyncio
import socket
from concurrent.futures import Future
from types import FrameType

import uvicorn


class Server(uvicorn.Server):
    """A server in a task or a thread; ``end`` may be called from any other.

    Attributes:
        ready: Set once it listens.
    """

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.ready = asyncio.Event()
        self._ending: Future[None] = Future()

    def end(self) -> None:
        """Lets requests finish, then closes."""
        self.should_exit = True
        if not self._ending.done():
            self._ending.set_result(None)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """A signal ends it as well."""
        super().handle_exit(sig, frame)
        self.end()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listens."""
        await super().startup(sockets)
        self.ready.set()

    async def main_loop(self) -> None:
        """Waits for the end; no clock runs, so answers are dated when it began."""
        await self.on_tick(0)
        await asyncio.wrap_future(self._ending)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """As uvicorn's, without a pause for connections that are already closed."""
        for server in self.servers:
            server.close()
        for listener in sockets or []:
            listener.close()
        for connection in list(self.server_state.connections):
            connection.shutdown()
        # A connection that was closed is forgotten in the next round of the loop.
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        try:
            async with asyncio.timeout(self.config.timeout_graceful_shutdown):
                await self._wait_tasks_to_complete()
        except TimeoutError:
            for task in self.server_state.tasks:
                task.cancel()
        await self.lifespan.shutdown()
