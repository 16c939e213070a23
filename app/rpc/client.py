"""The API's only view of the engine: calls over gRPC, errors as `AppError`.

Every call carries a deadline, a stream is cancelled however it is left, and a
stream that falls silent or ends without a finish reason is a failure. A dead
connection shows as UNAVAILABLE, INTERNAL or a CANCELLED that is not ours; all of
them become `EngineUnavailable`. It never retries: only its caller knows whether
a token was shown.

Trade-off: reconnect and keepalive are far more eager than gRPC's defaults, which
suits an engine on the same machine or network and costs one ping every two
seconds while calls are in flight.
"""

import asyncio
from collections.abc import AsyncGenerator, Awaitable
from dataclasses import dataclass
from types import MappingProxyType
from typing import NoReturn, TypeVar

import grpc

from app.errors import (
    AppError,
    BadRequest,
    ContextLengthExceeded,
    DeadlineExceeded,
    EngineUnavailable,
    NotFound,
    Overloaded,
)
from app.rpc import engine_pb2 as pb
from app.rpc import engine_pb2_grpc
from app.silence import Silence

# Trailing metadata beside the status: our own error code, the field to blame, and when to come back.
CODE_KEY = "tollgate-code"
PARAM_KEY = "tollgate-param"
RETRY_AFTER_KEY = "retry-after-ms"
# How the engine names a request's grammar where that is to blame; callers have other names for it.
GRAMMAR_PARAM = "grammar"

# Of a request: a context of half a million tokens.
MAX_REQUEST_BYTES = 4 * 2**20
# Of an answer. The scores of a prompt come in one piece, some 150 bytes a token with all alternatives.
MAX_ANSWER_BYTES = 64 * 2**20
DESCRIBE_TIMEOUT_S = 5.0
DEFAULT_TIMEOUT_S = 600.0
# The engine keeps the deadline itself; gRPC's, a little later, covers an engine that cannot.
DEADLINE_MARGIN_S = 2.0
# How long an engine may take to greet a new connection before it counts as gone. Shorter
# than DESCRIBE_TIMEOUT_S, so that one that accepts and says nothing shows as unavailable.
CONNECT_TIMEOUT_S = 3.0

T = TypeVar("T")

_SILENT = "The inference engine stopped answering."
_GONE = "The inference engine is not reachable; try again in a moment."


@dataclass(frozen=True, slots=True)
class Tls:
    """PEM texts of a connection across machines.

    Attributes:
        root_certificates: whom to believe; None: the system's authorities.
        private_key: with `certificate_chain`, our own identity (mutual TLS).
        server_name: the name in the engine's certificate, where it is not the
            one in the address.
    """

    root_certificates: bytes | None = None
    private_key: bytes | None = None
    certificate_chain: bytes | None = None
    server_name: str | None = None


class EngineClient:
    """One channel to one engine; safe to share between the tasks of one event loop.

    Args:
        target: `unix:/path` or `host:port`.
        tls: credentials for TCP across machines; None: plain text.
        stall_s: a stream without a chunk for so long counts as a dead engine.
        keepalive_s: interval of pings while calls are in flight.
    """

    def __init__(self, target: str, *, tls: Tls | None = None, stall_s: float = 60.0, keepalive_s: float = 2.0) -> None:
        self._stall_s = stall_s
        self._channel = _open(target, tls, keepalive_s)
        self._stub = engine_pb2_grpc.EngineStub(self._channel)

    async def describe(self) -> pb.DescribeResponse:
        """What is loaded and how busy it is.

        Raises:
            EngineUnavailable: nobody answers.
        """
        try:
            return await _translated(self._stub.Describe(pb.DescribeRequest(), timeout=DESCRIBE_TIMEOUT_S))
        except DeadlineExceeded:  # no caller set this one
            raise EngineUnavailable(_GONE) from None

    async def generate(self, request: pb.GenerateRequest) -> AsyncGenerator[pb.GenerateChunk, None]:
        """Stream one sequence; the last chunk, and only it, has a finish reason.

        Leaving the iterator early (`aclose`, cancellation) stops the engine's work
        within one step.

        Raises:
            NotFound: unknown model.
            BadRequest: the engine refused a parameter or the prompt's length.
            Overloaded: its queue is full; only before the first chunk.
            DeadlineExceeded: `deadline_ms` passed.
            EngineUnavailable: it is away, draining, silent, or broke off.
        """
        call = self._stub.Generate(request, timeout=_timeout_s(request.deadline_ms))
        reading = _Reading(call, self._stall_s)
        try:
            while True:
                chunk = await reading.next()
                if not (chunk.tokens or chunk.prompt_logprobs or chunk.finish_reason):
                    continue  # the engine lives, and works for others
                yield chunk
                if chunk.finish_reason:
                    return
        finally:
            reading.close()
            # Dropping the call object alone would leave the stream running.
            call.cancel()

    async def classify(self, request: pb.ClassifyRequest) -> pb.ClassifyResponse:
        """Score every label for each input.

        Raises:
            NotFound, BadRequest, Overloaded, DeadlineExceeded, EngineUnavailable:
                as for `generate`.
        """
        return await _translated(self._stub.Classify(request, timeout=_timeout_s(request.deadline_ms)))

    async def embed(self, request: pb.EmbedRequest) -> pb.EmbedResponse:
        """A vector for each input.

        Raises:
            NotFound, BadRequest, Overloaded, DeadlineExceeded, EngineUnavailable:
                as for `generate`.
        """
        return await _translated(self._stub.Embed(request, timeout=_timeout_s(request.deadline_ms)))

    async def aclose(self) -> None:
        """Close the channel; calls in flight end with `EngineUnavailable`."""
        await self._channel.close()


class _Reading:
    """The chunks of one stream; one that falls silent while it is read is given up."""

    def __init__(self, call: "grpc.aio.UnaryStreamCall[pb.GenerateRequest, pb.GenerateChunk]", stall_s: float) -> None:
        self._call = call
        self._is_waiting = False
        self._is_stalled = False
        self._silence = Silence(stall_s, self._give_up)

    async def next(self) -> pb.GenerateChunk:
        self._silence.hear()
        self._is_waiting = True
        try:
            chunk = await self._call.read()
        except grpc.aio.AioRpcError as error:
            _raise_translated(error)
        except asyncio.CancelledError:
            _raise_unless_ours(_SILENT if self._is_stalled else _GONE)
        finally:
            self._is_waiting = False
        if not isinstance(chunk, pb.GenerateChunk):  # EOF: the stream ended cleanly, but too early
            raise EngineUnavailable("The inference engine broke off in mid-answer.")
        return chunk

    def close(self) -> None:
        self._silence.close()

    def _give_up(self) -> None:
        if self._is_waiting:  # not while what came is worked on
            self._is_stalled = True
            self._call.cancel()


async def _translated(call: Awaitable[T]) -> T:
    try:
        return await call
    except grpc.aio.AioRpcError as error:
        _raise_translated(error)
    except asyncio.CancelledError:
        _raise_unless_ours()


def _raise_unless_ours(message: str = _GONE) -> NoReturn:
    """Tell our own cancellation from a call that gRPC cancelled because its channel closed."""
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError
    raise EngineUnavailable(message) from None


def _raise_translated(error: grpc.aio.AioRpcError) -> NoReturn:
    trailers = {key: value for key, value in error.trailing_metadata() or () if isinstance(value, str)}
    raise _app_error(error.code(), error.details() or "", trailers) from None


def _app_error(status: grpc.StatusCode, message: str, trailers: dict[str, str]) -> AppError:
    code = trailers.get(CODE_KEY)
    if status is grpc.StatusCode.RESOURCE_EXHAUSTED and code is not None:
        return Overloaded(message, retry_after_s=float(trailers.get(RETRY_AFTER_KEY, 1000)) / 1000)
    if status is grpc.StatusCode.INVALID_ARGUMENT and code == ContextLengthExceeded.default_code:
        return ContextLengthExceeded(message)
    if status is grpc.StatusCode.INVALID_ARGUMENT:
        return BadRequest(message, param=trailers.get(PARAM_KEY))
    refusal = _REFUSALS.get(status)
    return EngineUnavailable(_GONE) if refusal is None else refusal(message)


# Only what the engine itself says; every other status means that it is gone or ill.
_REFUSALS: MappingProxyType[grpc.StatusCode, type[AppError]] = MappingProxyType(
    {
        grpc.StatusCode.NOT_FOUND: NotFound,
        grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceeded,
    }
)


def _timeout_s(deadline_ms: int) -> float:
    return (deadline_ms / 1000 if deadline_ms else DEFAULT_TIMEOUT_S) + DEADLINE_MARGIN_S


def _open(target: str, tls: Tls | None, keepalive_s: float) -> grpc.aio.Channel:
    options: list[tuple[str, int | str]] = [
        # An engine that restarts is found again within a moment, not after gRPC's 1 to 120 s.
        ("grpc.initial_reconnect_backoff_ms", 50),
        ("grpc.max_reconnect_backoff_ms", 1000),
        # Despite its name not a pause: gRPC takes it as the least time that an attempt to
        # connect is given (MIN_CONNECT_TIMEOUT of its back-off protocol; refused at once
        # is still refused at once). With 50 here a busy engine, whose greeting took more
        # than 0.1 s, was unavailable for as long as it was busy.
        ("grpc.min_reconnect_backoff_ms", int(CONNECT_TIMEOUT_S * 1000)),
        # A subchannel shared with another client would bring that one's back-off along.
        ("grpc.use_local_subchannel_pool", 1),
        # A frozen peer is found in about twice this time instead of never.
        ("grpc.keepalive_time_ms", int(keepalive_s * 1000)),
        ("grpc.keepalive_timeout_ms", int(keepalive_s * 1000)),
        ("grpc.http2.ping_timeout_ms", int(keepalive_s * 1000)),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.max_receive_message_length", MAX_ANSWER_BYTES),
        ("grpc.enable_retries", 0),
    ]
    if tls is None:
        return grpc.aio.insecure_channel(target, options=options)
    if tls.server_name is not None:
        options.append(("grpc.ssl_target_name_override", tls.server_name))
    credentials = grpc.ssl_channel_credentials(tls.root_certificates, tls.private_key, tls.certificate_chain)
    return grpc.aio.secure_channel(target, credentials, options=options)
