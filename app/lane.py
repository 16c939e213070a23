"""A lane: one connection, one prepared statement, and every caller of the process in it.

Callers that come while a round trip is under way share the next one: their statements
run one after the other in one transaction, each as exact as alone, and commit once. So
the commit under way is the window of the group, and a lone caller waits for nobody.

The statement returns exactly one row. Rows it locks are locked in the order of the
callers' ``order``, which therefore has to be the same in every lane of every process.
It may run although its caller was told that the database is unavailable; what it does
has to bear that.
"""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import asyncpg

from app.db import WITHOUT_OUR_TABLES, driver_url, not_migrated, unavailable
from app.errors import DatabaseUnavailable, Overloaded

Order = tuple[bytes, bytes]


class BrokenOff(DatabaseUnavailable):
    """The connection broke under way: the statement may have run."""


_STOPPING = "The server is stopping; please retry."
_MAX_BATCH = 128
_MAX_WAITING = 4096
# The server ends or refuses connections (class 57, 53300) and what asyncpg itself notices.
# Between the server's own time-out of a statement and ours: it says that nothing has run.
_MARGIN_S = 1.0
_LOST = (
    OSError,
    TimeoutError,
    asyncpg.PostgresConnectionError,
    asyncpg.OperatorInterventionError,
    asyncpg.TooManyConnectionsError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
)


@dataclass(frozen=True, slots=True)
class _Asked:
    order: Order
    arguments: Sequence[Any]
    answer: "asyncio.Future[asyncpg.Record]"


class Lane:
    """Runs one statement for many; create it inside the event loop that uses it.

    Args:
        url: Address of the database.
        statement: With ``$1`` …; returns one row whatever its arguments are.
        timeout_s: Longest round trip, and longest attempt to connect.
        server_settings: Of its connection.
        runs_abandoned: Also those whose caller has gone before they were sent.
    """

    def __init__(
        self,
        url: str,
        statement: str,
        *,
        timeout_s: float = 5.0,
        server_settings: Mapping[str, str] | None = None,
        runs_abandoned: bool = True,
    ) -> None:
        self._url = driver_url(url)
        self._statement = statement
        self._timeout_s = timeout_s
        limit = f"{max(1, round(timeout_s * 1000))}ms"
        # A statement that we gave up must not run to its end later, behind a lock.
        self._server_settings = {"statement_timeout": limit, **(server_settings or {})}
        self._runs_abandoned = runs_abandoned
        self._waiting: list[_Asked] = []
        self._sending: asyncio.Task[None] | None = None
        self._connection: asyncpg.Connection[asyncpg.Record] | None = None

    async def ask(self, order: Order, arguments: Sequence[Any]) -> asyncpg.Record:
        """The statement's row for ``arguments``, committed.

        Raises:
            DatabaseUnavailable: No connection; nothing has run.
            BrokenOff: It broke, or took too long; the statement may have run all the same.
            Overloaded: Too many wait already.
            asyncpg.PostgresError: The statement itself failed for these arguments; nothing of it is left.
        """
        if len(self._waiting) >= _MAX_WAITING:
            raise Overloaded("Too many requests wait for the database; please retry.")
        answer: asyncio.Future[asyncpg.Record] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Asked(order, arguments, answer))
        if self._sending is None:
            self._start()
        return await answer

    async def aclose(self) -> None:
        """Closes the connection once nobody waits any more."""
        while self._sending is not None:
            await asyncio.wait({self._sending})
        if self._connection is not None and not self._connection.is_closed():
            await self._connection.close()

    def _start(self) -> None:
        self._sending = asyncio.create_task(self._send())
        self._sending.add_done_callback(self._ended)

    def _ended(self, sending: "asyncio.Task[None]") -> None:
        # Not in _send itself: a task that is cancelled before its first step runs no line of it.
        self._sending = None
        if sending.cancelled():
            waiting, self._waiting = self._waiting, []
            _fail(waiting, DatabaseUnavailable(_STOPPING))
        elif self._waiting:
            self._start()

    async def _send(self) -> None:
        while self._waiting:
            batch = self._waiting[:_MAX_BATCH]
            del self._waiting[:_MAX_BATCH]
            if not self._runs_abandoned:
                batch = [asked for asked in batch if not asked.answer.done()]
            batch.sort(key=_order)
            if batch:
                await self._run(batch)

    async def _run(self, batch: list[_Asked]) -> None:
        is_under_way = False
        try:
            connection = await self._connected()
            is_under_way = True
            rows = await connection.fetchmany(
                self._statement, [asked.arguments for asked in batch], timeout=self._timeout_s + _MARGIN_S
            )
        except _LOST as error:
            self._disconnect()
            failure = unavailable(error)
            _fail(batch, BrokenOff(failure.message) if is_under_way else failure)
        except asyncpg.PostgresError as error:
            await self._blame(batch, error)
        except asyncio.CancelledError:
            # The loop ends. Whoever settles keeps it for the next process.
            self._disconnect()
            _fail(batch, BrokenOff(_STOPPING))
            raise
        except Exception as error:
            # A fault of ours: nobody is left waiting.
            _fail(batch, error)
            raise
        else:
            for asked, row in zip(batch, rows, strict=True):
                if not asked.answer.done():
                    asked.answer.set_result(row)

    async def _blame(self, batch: list[_Asked], error: asyncpg.PostgresError) -> None:
        """One statement's failure undid all of them: each runs again alone, so that only its own caller hears of it."""
        if len(batch) > 1:
            for asked in batch:
                await self._run([asked])
        elif error.sqlstate in WITHOUT_OUR_TABLES:
            _fail(batch, not_migrated())
        else:
            _fail(batch, error)

    async def _connected(self) -> "asyncpg.Connection[asyncpg.Record]":
        # The loop has seen the socket close when the server restarted.
        if self._connection is None or self._connection.is_closed():
            try:
                self._connection = await asyncpg.connect(
                    self._url,
                    timeout=self._timeout_s,
                    max_cached_statement_lifetime=0,
                    server_settings=self._server_settings,
                )
            except asyncpg.PostgresError as error:  # another password or name: no statement is to blame
                raise ConnectionError(type(error).__name__) from error
        return self._connection

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.terminate()
            self._connection = None


def _order(asked: _Asked) -> Order:
    return asked.order


def _fail(batch: Sequence[_Asked], error: BaseException) -> None:
    for asked in batch:
        if not asked.answer.done():
            asked.answer.set_exception(error)
