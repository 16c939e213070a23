"""A small served world: byte-level models, a scripted engine behind real gRPC, a real uvicorn.

Token id = byte, so a test reads an answer's tokens off its text.
"""

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import httpx
import uvicorn
from fastapi import FastAPI
from openai import AsyncOpenAI
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from app.config import Settings
from app.db import Database
from app.main import create_app
from app.modeling.tokenizer import BYTE_OF_CHARACTER
from app.modeling.tokenizer import Tokenizer as ServedTokenizer
from app.rpc import engine_pb2 as pb
from app.rpc import engine_pb2_grpc
from tests.serving import Server

CONTEXT = 128
BOS = 256
LABELS = ("card", "cash", "loan")
THRESHOLDS = {"card": 0.2, "cash": 0.6}  # and 0.5 for the loan
MS_A_TOKEN = 0.25


def write_model(
    models_dir: Path,
    name: str = "bytes",
    *,
    labels: tuple[str, ...] = (),
    thresholds: dict[str, float] | None = None,
    embedding_size: int = 0,
    **tokenizer_config: Any,
) -> None:
    """A model directory whose tokenizer has one token per byte."""
    folder = models_dir / name
    folder.mkdir(parents=True)
    raw_byte_tokenizer().save(str(folder / "tokenizer.json"))
    architecture = "BertForSequenceClassification" if labels else "LlamaForCausalLM"
    config: dict[str, Any] = {
        "architectures": [architecture],
        "max_position_embeddings": CONTEXT,
        "vocab_size": 257,
        "bos_token_id": BOS,
        "eos_token_id": BOS,
    }
    if embedding_size:
        config |= {"architectures": ["BertModel"], "hidden_size": embedding_size, "matryoshka_dimensions": [2]}
    if thresholds is not None:
        config |= {"problem_type": "multi_label_classification", "label_thresholds": thresholds}
    if labels:
        config["id2label"] = {str(index): label for index, label in enumerate(labels)}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer_config))


def byte_tokenizer() -> ServedTokenizer:
    """The same tokenizer as the API has it."""
    return ServedTokenizer(raw_byte_tokenizer(), {}, None)


def raw_byte_tokenizer() -> Tokenizer:
    """The same as the library has it."""
    tokenizer = Tokenizer(models.BPE(vocab={**BYTE_OF_CHARACTER} | {"<bos>": BOS}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<bos>"])
    return tokenizer


Generate = Callable[[pb.GenerateRequest], AsyncIterator[pb.GenerateChunk]]


async def say(text: str | bytes, size: int = 1, finish: str = "stop") -> AsyncIterator[pb.GenerateChunk]:
    """Streams the bytes of ``text``, ``size`` tokens a chunk, at a quarter of a millisecond each."""
    data = text.encode() if isinstance(text, str) else text
    for at in range(0, len(data), size):
        part = data[at : at + size]
        spent_ms = (at + len(part)) * MS_A_TOKEN
        logprobs = [score(byte) for byte in part]
        yield pb.GenerateChunk(index=at, tokens=part, logprobs=logprobs, accelerator_ms=spent_ms)
    yield pb.GenerateChunk(index=len(data), finish_reason=finish, accelerator_ms=len(data) * MS_A_TOKEN)


def score(token: int) -> pb.TokenLogprob:
    """Log-probability -1 for every token, and itself and ``!`` as alternatives."""
    return pb.TokenLogprob(token=token, logprob=-1.0, top_tokens=[token, ord("!")], top_logprobs=[-1.0, -2.0])


@dataclass
class ScriptedEngine(engine_pb2_grpc.EngineServicer):
    """Answers as the test says; remembers what it was asked and what was cancelled."""

    answer: Generate = field(default=lambda request: say("Hello", finish="length"))
    classify: Callable[[pb.ClassifyRequest], Awaitable[pb.ClassifyResponse]] | None = None
    embed: Callable[[pb.EmbedRequest], Awaitable[pb.EmbedResponse]] | None = None
    requests: list[pb.GenerateRequest] = field(default_factory=list)
    cancelled: asyncio.Event = field(default_factory=asyncio.Event)
    started: asyncio.Event = field(default_factory=asyncio.Event)
    states: dict[str, str] = field(default_factory=lambda: {"bytes": "ready"})
    is_draining: bool = False

    async def Describe(self, request: pb.DescribeRequest, context: Any) -> pb.DescribeResponse:  # noqa: N802
        models = [
            pb.ModelStatus(name=name, kind="generation", ready=state == "ready", state=state)
            for name, state in self.states.items()
        ]
        return pb.DescribeResponse(version="0", device="script", draining=self.is_draining, models=models)

    async def Generate(self, request: pb.GenerateRequest, context: Any) -> AsyncIterator[pb.GenerateChunk]:  # noqa: N802
        self.requests.append(request)
        self.started.set()
        is_whole = False
        try:
            async for chunk in self.answer(request):
                yield chunk
                is_whole = bool(chunk.finish_reason)
        except Refusal as refusal:
            blamed = (("tollgate-param", refusal.param),) if refusal.param else ()
            await context.abort(refusal.status, refusal.message, (("tollgate-code", "refused"), *blamed))
        finally:
            # Cancelled while it waited, or closed at a yield.
            if not is_whole:
                self.cancelled.set()

    async def Classify(self, request: pb.ClassifyRequest, context: Any) -> pb.ClassifyResponse:  # noqa: N802
        self.started.set()
        try:
            if self.classify is not None:
                return await self.classify(request)
        except Refusal as refusal:
            await context.abort(refusal.status, refusal.message, (("tollgate-code", "refused"),))
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        results = [pb.LabelScores(scores=[0.25, 0.5, 0.25]) for _ in request.inputs]
        return pb.ClassifyResponse(results=results, accelerator_ms=2.0)

    async def Embed(self, request: pb.EmbedRequest, context: Any) -> pb.EmbedResponse:  # noqa: N802
        self.started.set()
        try:
            if self.embed is not None:
                return await self.embed(request)
        except Refusal as refusal:
            await context.abort(refusal.status, refusal.message, (("tollgate-code", "refused"),))
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        results = [pb.Embedding(values=[0.5, len(text.ids), -0.25]) for text in request.inputs]
        return pb.EmbedResponse(results=results, accelerator_ms=2.0)


class Refusal(Exception):
    """What the scripted engine refuses with."""

    def __init__(self, status: grpc.StatusCode, message: str = "refused", param: str | None = None) -> None:
        super().__init__(message)
        self.param = param
        self.status = status
        self.message = message


@dataclass
class World:
    """Everything a test of the interface talks to."""

    url: str
    app: FastAPI
    settings: Settings
    database: Database
    engine: ScriptedEngine
    http: httpx.AsyncClient
    server: grpc.aio.Server
    key: str = ""
    clients: list[AsyncOpenAI] = field(default_factory=list)

    def openai(self, key: str | None = None, **options: Any) -> AsyncOpenAI:
        """The official client."""
        options = {"max_retries": 0, **options}
        client = AsyncOpenAI(api_key=key or self.key, base_url=f"{self.url}/v1", **options)
        self.clients.append(client)
        return client

    async def post(self, path: str, body: Any, key: str | None = None, **headers: str) -> httpx.Response:
        """A POST with the key."""
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        return await self.http.post(path, content=raw, headers={**self.auth(key), **headers})

    async def get(self, path: str, key: str | None = None, **params: Any) -> httpx.Response:
        """A GET with the key."""
        return await self.http.get(path, params=params, headers=self.auth(key))

    def auth(self, key: str | None = None) -> dict[str, str]:
        """The header of the key."""
        return {"authorization": f"Bearer {key or self.key}", "content-type": "application/json"}

    async def stop_engine(self) -> None:
        """The engine goes away for good."""
        await self.server.stop(None)

    async def usage_rows(self) -> list[Any]:
        """All usage rows, oldest first."""
        async with self.database.begin() as connection:
            result = await connection.exec_driver_sql("SELECT * FROM usage_events ORDER BY started_at, id")
            return list(result.all())


def error_of(response: httpx.Response) -> tuple[int, str, str | None]:
    """Status, code and param of an error answer, whose body must have exactly OpenAI's shape."""
    body = response.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert body["error"]["message"]
    return response.status_code, body["error"]["code"], body["error"]["param"]


async def start_engine(engine: ScriptedEngine) -> tuple[grpc.aio.Server, str]:
    """Serves the scripted engine on a free port; returns its address."""
    # The client pings every two seconds; by default a server takes that for an attack.
    options = [("grpc.http2.min_ping_interval_without_data_ms", 500), ("grpc.http2.max_ping_strikes", 0)]
    server = grpc.aio.server(options=options)
    engine_pb2_grpc.add_EngineServicer_to_server(engine, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    return server, f"127.0.0.1:{port}"


@asynccontextmanager
async def serving(settings: Settings, database: Database, **overrides: Any) -> AsyncIterator[World]:
    """The world, running; ends with every connection closed."""
    engine = ScriptedEngine()
    server, target = await start_engine(engine)
    settings = settings.model_copy(update={"engine_url": target, **overrides})
    listener = socket.create_server(("127.0.0.1", 0))
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    app = create_app(settings)
    config = uvicorn.Config(app, log_config=None, access_log=False, ws="none", timeout_graceful_shutdown=5)
    web = Server(config)
    task = asyncio.create_task(web.serve(sockets=[listener]))
    await web.ready.wait()
    try:
        async with httpx.AsyncClient(base_url=url, timeout=30) as http:
            # gRPC connects at the first call; on a busy machine that may take a moment.
            while (await http.get("/readyz")).status_code != 200:
                pass
            world = World(url, app, settings, database, engine, http, server)
            yield world
            for client in world.clients:
                await client.close()
    finally:
        web.end()
        await task
        await server.stop(None)
