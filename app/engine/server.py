"""The gRPC service in front of a host: translates messages, nothing more.

Errors that Tollgate raises on purpose cross with their own words and code; any
other is logged here and crosses as "internal error". On SIGTERM the server says
NOT_SERVING, refuses new calls and lets those in flight finish.
"""

import asyncio
import importlib.metadata
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from types import MappingProxyType
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from app.engine.batcher import Encoded
from app.engine.engine import Chunk, GenerationEngine
from app.engine.host import Host, Model
from app.engine.sequence import Grammar, Request, Sampling, Token
from app.errors import AppError, BadRequest, ConfigError, DeadlineExceeded, EngineUnavailable, NotFound, Overloaded
from app.rpc import engine_pb2 as pb
from app.rpc import engine_pb2_grpc
from app.rpc.client import CODE_KEY, MAX_REQUEST_BYTES, PARAM_KEY, RETRY_AFTER_KEY
from app.telemetry import get_logger

log = get_logger(__name__)

SERVICE = "tollgate.engine.v1.Engine"
ANY_OBJECT = '{"type": "object"}'
# gRPC refuses trailers of more than 8 KiB, in which a character may take twelve bytes. Messages
# that quote a grammar are long in the middle: first comes what is wrong, last where.
MAX_MESSAGE_CHARACTERS = 500
SERVER_OPTIONS = (
    ("grpc.max_receive_message_length", MAX_REQUEST_BYTES),
    # Two engines on one address would each get some of the calls.
    ("grpc.so_reuseport", 0),
    # Clients ping every two seconds, and gRPC's default would hang up on them.
    ("grpc.http2.min_ping_interval_without_data_ms", 1000),
    ("grpc.http2.max_ping_strikes", 0),
)

_STATUS: MappingProxyType[type[AppError], grpc.StatusCode] = MappingProxyType(
    {
        NotFound: grpc.StatusCode.NOT_FOUND,
        BadRequest: grpc.StatusCode.INVALID_ARGUMENT,
        Overloaded: grpc.StatusCode.RESOURCE_EXHAUSTED,
        EngineUnavailable: grpc.StatusCode.UNAVAILABLE,
        DeadlineExceeded: grpc.StatusCode.DEADLINE_EXCEEDED,
    }
)

Read = Callable[[str, list[tuple[int, ...]], float], Awaitable[Encoded]]
Context = Any  # grpc.aio.ServicerContext is generic for type checkers only


class EngineService(engine_pb2_grpc.EngineServicer):
    """Serves `engine.proto` out of a host."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._version = importlib.metadata.version("tollgate")  # reads files: not at every poll

    async def Describe(self, request: pb.DescribeRequest, context: Context) -> pb.DescribeResponse:  # noqa: N802
        """What is loaded and how busy it is."""
        return pb.DescribeResponse(
            version=self._version,
            device=self._host.device,
            draining=self._host.is_draining,
            models=[_status(model) for model in self._host.models.values()],
        )

    async def Generate(  # type: ignore[override]  # noqa: N802 - a writer; the generated base knows generators only
        self, request: pb.GenerateRequest, context: Context
    ) -> None:
        """Stream the tokens of one sequence."""
        try:
            asked = _request(request, self._host.eos_token_ids(request.model))
            chunks = self._host.generate(request.model, asked, request.deadline_ms / 1000)
            # Written by hand, not yielded: a call that is cancelled while it sends
            # must close the engine's generator at once, not when it is collected.
            async with aclosing(chunks):
                async for chunk in chunks:
                    await context.write(_chunk(chunk))
        except AppError as error:
            await _refuse(context, error)
        except Exception:
            log.exception("engine.request_failed", request_id=request.request_id)
            await context.abort(grpc.StatusCode.INTERNAL, "internal error")

    async def Classify(self, request: pb.ClassifyRequest, context: Context) -> pb.ClassifyResponse:  # noqa: N802
        """Score every label of each text."""
        read = await self._read(self._host.classify, request, context)
        return pb.ClassifyResponse(
            results=[pb.LabelScores(scores=row) for row in read.rows], accelerator_ms=read.accelerator_ms
        )

    async def Embed(self, request: pb.EmbedRequest, context: Context) -> pb.EmbedResponse:  # noqa: N802
        """A vector for each text."""
        read = await self._read(self._host.embed, request, context)
        return pb.EmbedResponse(
            results=[pb.Embedding(values=row) for row in read.rows], accelerator_ms=read.accelerator_ms
        )

    async def _read(self, read: Read, request: pb.ClassifyRequest | pb.EmbedRequest, context: Context) -> Encoded:
        try:
            texts = [tuple(text.ids) for text in request.inputs]
            return await read(request.model, texts, request.deadline_ms / 1000)
        except AppError as error:
            await _refuse(context, error)
        except Exception:
            log.exception("engine.request_failed", request_id=request.request_id)
            await context.abort(grpc.StatusCode.INTERNAL, "internal error")
        raise AssertionError("abort raises")


class EngineServer:
    """A listening server around a host.

    Args:
        host: whose models are served.
        address: `unix:/path` or `host:port`.

    Raises:
        ConfigError: nobody can listen there.
    """

    def __init__(self, host: Host, address: str) -> None:
        self._host = host
        self._health = health.aio.HealthServicer()
        self._server = grpc.aio.server(options=SERVER_OPTIONS)
        engine_pb2_grpc.add_EngineServicer_to_server(EngineService(host), self._server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        reflection.enable_server_reflection((SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME), self._server)
        port = _listen(self._server, address)
        if port is None:
            del self._server  # it ends in the running loop, and the error may outlive that
            raise ConfigError(f"the engine cannot listen on {address}: it is in use, or no address of this machine")
        self.port = port

    async def start(self) -> None:
        """Listen; models may still be loading."""
        await self._set_health(health_pb2.HealthCheckResponse.NOT_SERVING)
        await self._server.start()

    async def set_ready(self) -> None:
        """Tell health checks that work is taken."""
        await self._set_health(health_pb2.HealthCheckResponse.SERVING)

    async def drain(self, timeout_s: float) -> None:
        """Take nothing new, let calls in flight finish for so long, then stop."""
        self._host.is_draining = True
        await self._set_health(health_pb2.HealthCheckResponse.NOT_SERVING)
        await self._server.stop(timeout_s)
        await self._host.aclose()

    async def _set_health(self, status: int) -> None:
        await asyncio.gather(*(self._health.set(name, status) for name in ("", SERVICE)))


def _listen(server: grpc.aio.Server, address: str) -> int | None:
    """The port, 1 for a unix socket; None where nobody can listen."""
    try:
        return server.add_insecure_port(address)
    except RuntimeError:
        return None


async def _refuse(context: Context, error: AppError) -> None:
    """End the call with an error that was raised on purpose."""
    status = next((s for kind, s in _STATUS.items() if isinstance(error, kind)), grpc.StatusCode.INTERNAL)
    trailers = [(CODE_KEY, error.code)]
    if error.param is not None:
        trailers.append((PARAM_KEY, error.param))
    if "retry-after-ms" in error.headers:
        trailers.append((RETRY_AFTER_KEY, error.headers["retry-after-ms"]))
    await context.abort(status, _shortened(error.message), tuple(trailers))


def _shortened(message: str) -> str:
    """Without the middle of a message that is too long to cross."""
    half = MAX_MESSAGE_CHARACTERS // 2
    return message if len(message) <= MAX_MESSAGE_CHARACTERS else f"{message[:half]} … {message[-half:]}"


def _request(message: pb.GenerateRequest, eos_token_ids: tuple[int, ...]) -> Request:
    ends = frozenset(message.stop_token_ids) | frozenset(() if message.ignore_eos else eos_token_ids)
    sampling = message.sampling
    return Request(
        request_id=message.request_id,
        prompt=tuple(message.prompt_tokens),
        max_tokens=message.max_tokens,
        sampling=Sampling(
            temperature=sampling.temperature,
            # proto3 cannot tell unset from 0, and 0 would keep nothing.
            top_p=sampling.top_p or 1.0,
            top_k=sampling.top_k,
            min_p=sampling.min_p,
            presence_penalty=sampling.presence_penalty,
            frequency_penalty=sampling.frequency_penalty,
            logit_bias=dict(sampling.logit_bias),
            seed=sampling.seed,
        ),
        end_token_ids=ends,
        min_tokens=message.min_tokens,
        logprobs=message.logprobs if message.HasField("logprobs") else None,
        prompt_logprobs=message.prompt_logprobs,
        start_index=message.start_index,
        grammar=_grammar(message.grammar),
        cache_salt=message.cache_salt,
        is_whole=message.whole,
    )


def _grammar(message: pb.Grammar) -> Grammar | None:
    form = message.WhichOneof("form")
    if form is None:
        return None
    if form == "json_object":
        return Grammar("json_schema", (ANY_OBJECT,)) if message.json_object else None
    if form == "choice":
        return Grammar("choice", tuple(message.choice.texts))
    return Grammar(form, (getattr(message, form),))


def _chunk(chunk: Chunk) -> pb.GenerateChunk:
    return pb.GenerateChunk(
        index=chunk.index,
        tokens=[token.id for token in chunk.tokens],
        logprobs=[_logprob(token) for token in chunk.tokens if token.logprob is not None],
        prompt_logprobs=[_logprob(token) for token in chunk.prompt_tokens],
        finish_reason=chunk.finish_reason,
        cached_tokens=chunk.cached_tokens,
        accelerator_ms=chunk.accelerator_ms,
        queue_ms=chunk.queue_ms,
    )


def _logprob(token: Token) -> pb.TokenLogprob:
    return pb.TokenLogprob(
        token=token.id,
        logprob=token.logprob or 0.0,
        top_tokens=[id for id, _ in token.alternatives],
        top_logprobs=[logprob for _, logprob in token.alternatives],
    )


def _status(model: Model) -> pb.ModelStatus:
    status = pb.ModelStatus(
        name=model.card.name,
        kind=model.card.kind,
        digest=model.card.digest,
        ready=model.is_ready,
        state=model.state,
        context_length=model.card.context_length,
    )
    if isinstance(model.engine, GenerationEngine):
        scheduler = model.engine.scheduler
        status.num_slots, status.free_slots = len(scheduler.slots), scheduler.slots.num_free
        status.queue_depth, status.queue_capacity = scheduler.queue_depth, scheduler.queue_capacity
        status.compilations_after_warm_up = model.engine.runner.compilations
        status.cached_tokens = scheduler.cached_tokens
    elif model.engine is not None:
        status.queue_depth, status.queue_capacity = model.engine.queue_depth, model.engine.queue_capacity
        status.compilations_after_warm_up = model.engine.encoder.compilations
    if model.engine is not None:
        status.accelerator_seconds = model.engine.accelerator_s
    return status
