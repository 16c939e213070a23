"""A small HTTP/1.1 client that keeps what came and when, and looks at none of it meanwhile.

The load generator shares the machine with the server it measures, so an answer's
parts are only dated and kept; `answers.py` reads them when the measurement is over.
One connection carries one request at a time and is used again. No redirects, no
cookies, no proxies.
"""

import asyncio
import ssl
import time
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import httptools

from app.errors import ConfigError


@dataclass(slots=True, eq=False)
class Exchange:
    """One request and all that came back; times are ``time.perf_counter()``, seconds.

    Attributes:
        due_at: When it should have been sent; waiting for that counts as latency.
        parts: Pieces of the body with their arrival.
        status: Of HTTP; 0 where no answer came.
        ended_at: When the last byte came, or it failed.
        failure: Why there is no whole answer; empty where there is.
    """

    due_at: float
    parts: list[tuple[float, bytes]] = field(default_factory=list)
    status: int = 0
    ended_at: float = 0.0
    failure: str = ""


class HttpClient:
    """Connections to one server, as many as are in use at once.

    Args:
        base_url: With the path that routes are below, for example ``http://127.0.0.1:8000/v1``.
        api_key: Sent as a bearer token; empty: none.
        timeout_s: Of a whole exchange.

    Raises:
        ConfigError: The address is not one of HTTP.
    """

    def __init__(self, base_url: str, api_key: str = "", timeout_s: float = 600.0) -> None:
        parts = urlsplit(base_url)
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise ConfigError(f"the base URL must begin with http:// or https://, not {base_url!r}")
        self._host, self._tls = parts.hostname, parts.scheme == "https"
        self._port = parts.port or (443 if self._tls else 80)
        self._path = parts.path.rstrip("/")
        self._timeout_s = timeout_s
        self._idle: list[_Connection] = []
        credentials = f"Authorization: Bearer {api_key}\r\n" if api_key else ""
        self._headers = f"Host: {parts.netloc}\r\n{credentials}Accept: */*\r\n"

    async def post(self, path: str, body: bytes, due_at: float | None = None, headers: str = "") -> Exchange:
        """Send JSON and wait for the whole answer; what goes wrong is in the ``Exchange``."""
        lines = f"POST {self._path}{path} HTTP/1.1\r\n{self._headers}{headers}Content-Type: application/json\r\n"
        return await self._exchange(f"{lines}Content-Length: {len(body)}\r\n\r\n".encode() + body, due_at)

    async def get(self, path: str) -> Exchange:
        """Fetch, as ``post``."""
        return await self._exchange(f"GET {self._path}{path} HTTP/1.1\r\n{self._headers}\r\n".encode(), None)

    async def _exchange(self, message: bytes, due_at: float | None) -> Exchange:
        exchange = Exchange(time.perf_counter() if due_at is None else due_at)
        connection = None
        try:
            async with asyncio.timeout(self._timeout_s):
                connection = await self._connection()
                await connection.send(message, exchange)
        except TimeoutError:
            exchange.failure = "timeout"
        except OSError as error:
            exchange.failure = type(error).__name__
        finally:
            exchange.ended_at = exchange.ended_at or time.perf_counter()
            if connection is not None:
                self._keep(connection)
        return exchange

    async def aclose(self) -> None:
        """Close every idle connection."""
        for connection in self._idle:
            connection.close()
        self._idle.clear()

    async def _connection(self) -> "_Connection":
        while self._idle:
            connection = self._idle.pop()
            if connection.is_usable:
                return connection
        context = ssl.create_default_context() if self._tls else None
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(_Connection, self._host, self._port, ssl=context)
        return connection

    def _keep(self, connection: "_Connection") -> None:
        # One that was left in mid-answer would give its rest to the next request.
        if connection.is_usable:
            self._idle.append(connection)
        else:
            connection.close()


class _Connection(asyncio.Protocol):
    """One keep-alive connection; httptools calls back with pieces of the answer."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._exchange: Exchange | None = None
        self._done: asyncio.Future[None] | None = None

    @property
    def is_usable(self) -> bool:
        return self._exchange is None and self._transport is not None and not self._transport.is_closing()

    async def send(self, message: bytes, exchange: Exchange) -> None:
        assert self._transport is not None
        self._parser = httptools.HttpResponseParser(self)
        self._exchange = exchange
        self._done = asyncio.get_running_loop().create_future()
        self._transport.write(message)
        await self._done

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        if self._exchange is None:  # nobody asked
            self.close()
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._finish(type(error).__name__)
            self.close()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._exchange is not None:
            self._finish("connection closed")

    def on_body(self, body: bytes) -> None:
        if self._exchange is not None:
            self._exchange.parts.append((time.perf_counter(), body))

    def on_message_complete(self) -> None:
        if not self._parser.should_keep_alive():
            self.close()
        self._finish("")

    def _finish(self, failure: str) -> None:
        exchange, self._exchange = self._exchange, None
        if exchange is None:
            return
        exchange.ended_at = time.perf_counter()
        exchange.failure = failure
        if not failure:
            exchange.status = self._parser.get_status_code()
        if self._done is not None and not self._done.done():
            self._done.set_result(None)
