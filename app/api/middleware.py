"""What surrounds every request: its id, its clock, its body limit, its headers, its log line.

Plain ASGI, so streams pass through untouched and context variables hold. This is
the request edge: the one place where an unexpected exception is caught, logged with
its stack and answered with a 500 that tells nothing. How a failure is answered, as JSON
or as a page, says who puts the application together.
"""

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Protocol
from uuid import UUID

from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.api.failures import unexpected
from app.api.running import RunningRequests
from app.errors import AppError, BadRequest, Overloaded, PayloadTooLarge
from app.tables import new_id
from app.telemetry import HTTP_IN_FLIGHT, HTTP_REQUESTS, HTTP_SECONDS, get_logger, labelled, request_id

log = get_logger(__name__)

MAX_BODY_BYTES = 4 * 2**20
_RECORD = "tollgate.record"
_QUIET_ROUTES = frozenset({"/livez", "/readyz", "/metrics"})
_MAX_LOGGED_ID = 128
_RETRY_ELSEWHERE_S = 1.0


class Rates(Protocol):
    """What a key has left of its rates; written down only when the answer begins."""

    @property
    def headers(self) -> Mapping[str, str]:
        """By name, in lower case."""
        ...


@dataclass(slots=True)
class RequestRecord:
    """One request from its first byte to its last.

    Attributes:
        id: UUID version 7; also the id of its usage row.
        started_at: Aware; for rows.
        started_s: Monotonic seconds; for durations.
        headers: Added to the answer, whatever it will be.
        rates: What the key has left; its headers are added as well.
        status: Of the answer, once its first byte left.
        is_secret: The answer holds what is shown once and kept nowhere.
        route: For the log and metrics, where no route was asked.
    """

    id: UUID = field(default_factory=new_id)
    started_at: datetime = field(default_factory=lambda: datetime.now(UTC))
    started_s: float = field(default_factory=time.perf_counter)
    headers: dict[str, str] = field(default_factory=dict)
    rates: Rates | None = None
    status: int | None = None
    is_secret: bool = False
    route: str = "unmatched"

    def adopt(self, id: UUID) -> None:
        """Goes on as the request of this id, in the log too."""
        self.id = id
        request_id.set(str(id))

    @property
    def elapsed_ms(self) -> float:
        """Milliseconds since the request came in."""
        return (time.perf_counter() - self.started_s) * 1000


def record_of(scope: Scope) -> RequestRecord:
    """The record that the middleware keeps for this request."""
    record: RequestRecord = scope[_RECORD]
    return record


class RequestMiddleware:
    """Layer around the application; see the module's docstring.

    Args:
        app: The layer below.
        requests: Sees every request through to its end, also when the server stops.
        failed: The answer to a request that failed.
    """

    def __init__(
        self, app: ASGIApp, requests: RunningRequests, failed: Callable[[Request, AppError], Response]
    ) -> None:
        self.app = app
        self._requests = requests
        self._failed = failed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request; other ASGI events pass."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        record = RequestRecord()
        scope[_RECORD] = record
        token = request_id.set(str(record.id))
        HTTP_IN_FLIGHT.inc()
        try:
            answer = self._answer(scope, _limited(receive, scope), _with_headers(send, scope, record), record)
            await self._requests.run(answer)
        finally:
            HTTP_IN_FLIGHT.dec()
            _finish(scope, record)
            request_id.reset(token)

    async def _answer(self, scope: Scope, receive: Receive, send: Send, record: RequestRecord) -> None:
        try:
            _check_length(scope)
            await self.app(scope, receive, send)
        except AppError as error:
            # Raised by this layer or by one below that is none of the framework's.
            await self._fail(error, scope, receive, send, record)
        except ClientDisconnect:
            # In the middle of its body: nobody is there to be answered.
            return
        except asyncio.CancelledError:
            # The time to drain is over. Another process may answer at once.
            stopping = Overloaded("The server is stopping; please retry.", retry_after_s=_RETRY_ELSEWHERE_S)
            await self._fail(stopping, scope, receive, send, record)
            raise
        except Exception:
            log.exception("request.failed", path=scope["path"])
            await self._fail(unexpected(), scope, receive, send, record)

    async def _fail(self, error: AppError, scope: Scope, receive: Receive, send: Send, record: RequestRecord) -> None:
        if record.status is not None:
            # Half an answer has left: the connection closes without the end of the
            # body, which every client recognises as a failure.
            log.warning("request.broken_off", code=error.code)
            return
        await self._failed(Request(scope), error)(scope, receive, send)


def _check_length(scope: Scope) -> None:
    length = Headers(scope=scope).get("content-length", "0")
    if not (length.isascii() and length.isdigit()):
        raise BadRequest("The Content-Length header is not a number.")
    if int(length) > MAX_BODY_BYTES:
        raise _too_large()


def _limited(receive: Receive, scope: Scope) -> Receive:
    """Counts the body while it is read, so that a chunked one is bounded as well."""
    num_bytes = 0

    async def limited() -> Message:
        nonlocal num_bytes
        message = await receive()
        if message["type"] == "http.request":
            num_bytes += len(message.get("body", b""))
            if num_bytes > MAX_BODY_BYTES:
                raise _too_large()
        return message

    return limited


def _with_headers(send: Send, scope: Scope, record: RequestRecord) -> Send:
    is_api = scope["path"].startswith("/v1/")

    async def with_headers(message: Message) -> None:
        if message["type"] == "http.response.start":
            record.status = message["status"]
            added = {"x-request-id": str(record.id)}
            if is_api:
                rates = {} if record.rates is None else record.rates.headers
                processing = {"openai-processing-ms": str(round(record.elapsed_ms))}
                added |= {**rates, **record.headers, **processing}
            _add_headers(message, added)
        await send(message)

    return with_headers


def _add_headers(message: Message, added: Mapping[str, str]) -> None:
    """Those that the answer does not have by itself; names are in lower case."""
    headers = [*message["headers"]]
    present = {name for name, _ in headers}
    encoded = ((name.encode("latin-1"), value.encode("latin-1")) for name, value in added.items())
    message["headers"] = headers + [(name, value) for name, value in encoded if name not in present]


def _finish(scope: Scope, record: RequestRecord) -> None:
    route = getattr(scope.get("route"), "path", record.route)
    # No status: the client left before there was an answer.
    status = record.status or 499
    labelled(HTTP_REQUESTS, route, scope["method"] if route != "unmatched" else "", str(status)).inc()
    labelled(HTTP_SECONDS, route).observe(record.elapsed_ms / 1000)
    write = log.debug if route in _QUIET_ROUTES else log.info
    write(
        "request.finished",
        route=route,
        method=scope["method"],
        status=status,
        duration_ms=round(record.elapsed_ms, 1),
        client_request_id=_callers_own_id(scope),
    )


def _callers_own_id(scope: Scope) -> str | None:
    """Logged so that a customer's id finds the request; never adopted as ours."""
    own = Headers(scope=scope).get("x-request-id")
    return own[:_MAX_LOGGED_ID] if own and own.isprintable() else None


def _too_large() -> PayloadTooLarge:
    return PayloadTooLarge(f"The request body is larger than {MAX_BODY_BYTES // 2**20} MiB.")
