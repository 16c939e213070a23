import asyncio
import os
import signal
import subprocess
import sys
import threading
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager, suppress
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from app.config import Settings
from app.engine.host import Host
from app.engine.runner import Encoder, Runner
from app.engine.sequence import Grammar, Request
from app.engine.server import SERVICE
from app.engine.stub import StubEncoder, StubRunner
from app.errors import (
    BadRequest,
    ContextLengthExceeded,
    DeadlineExceeded,
    EngineUnavailable,
    ModelFormatError,
    NotFound,
    Overloaded,
)
from app.modeling.registry import ModelCard
from app.rpc import engine_pb2 as pb
from app.rpc import engine_pb2_grpc
from app.rpc.client import EngineClient
from tests.fakes import HELD_S, FaultyRunner, HeldRunner, make_card, serving, until
from tests.modeling.checkpoints import write_decoder


def ask(
    model: str = "sums", prompt: tuple[int, ...] = (3, 4), max_tokens: int = 3, **fields: object
) -> pb.GenerateRequest:
    return pb.GenerateRequest(
        request_id="r",
        model=model,
        prompt_tokens=prompt,
        max_tokens=max_tokens,
        **fields,  # type: ignore[arg-type]
    )


async def collect(client: EngineClient, request: pb.GenerateRequest) -> list[pb.GenerateChunk]:
    return [chunk async for chunk in client.generate(request)]


def tokens(chunks: list[pb.GenerateChunk]) -> list[int]:
    return [token for chunk in chunks for token in chunk.tokens]


async def test_answer_crosses_with_its_figures() -> None:
    async with serving(lambda _: StubRunner(step_s=0.001)) as (client, _, _):
        chunks = await collect(client, ask(max_tokens=5, logprobs=2))
    assert tokens(chunks) == [7, 14, 28, 56, 112]
    assert chunks[-1].finish_reason == "length"
    assert chunks[-1].accelerator_ms == pytest.approx(5, rel=0.01)
    assert [len(logprob.top_tokens) for chunk in chunks for logprob in chunk.logprobs] == [2] * 5


async def test_end_tokens_of_the_model_and_of_the_request_both_end() -> None:
    async with serving(lambda _: StubRunner(), make_card(eos_token_ids=(56,))) as (client, _, _):
        by_model = await collect(client, ask(max_tokens=9))
        by_request = await collect(client, ask(max_tokens=9, stop_token_ids=[14]))
        ignoring = await collect(client, ask(max_tokens=9, ignore_eos=True))
    assert (tokens(by_model), by_model[-1].finish_reason) == ([7, 14, 28], "stop")
    assert tokens(by_request) == [7]
    assert len(tokens(ignoring)) == 9


async def test_classification_keeps_the_order_of_the_inputs() -> None:
    async with serving(lambda _: StubEncoder(), make_card("c", "classification")) as (client, _, _):
        inputs = [pb.TokenIds(ids=[i]) for i in range(1, 80)]
        answer = await client.classify(pb.ClassifyRequest(model="c", inputs=inputs))
    winners = [max(range(3), key=list(result.scores).__getitem__) for result in answer.results]
    assert winners == [i % 3 for i in range(1, 80)]


async def test_describe_says_what_is_free() -> None:
    runner = HeldRunner(num_slots=2)
    async with serving(lambda _: runner) as (client, _, _):
        async with aclosing(client.generate(ask(max_tokens=50))) as stream:
            runner.let()
            await anext(stream)
            model = (await client.describe()).models[0]
            assert (model.name, model.ready, model.num_slots, model.free_slots) == ("sums", True, 2, 1)
        runner.open()


@pytest.mark.parametrize(
    ("request_", "error"),
    [
        (ask(model="other"), NotFound),
        (ask(prompt=()), BadRequest),
        (ask(prompt=(256,)), BadRequest),
        (ask(max_tokens=4095), ContextLengthExceeded),
        (ask(sampling=pb.Sampling(temperature=float("nan"))), BadRequest),
    ],
)
async def test_refusals_arrive_as_their_own_errors(request_: pb.GenerateRequest, error: type[Exception]) -> None:
    async with serving(lambda _: StubRunner()) as (client, _, _):
        with pytest.raises(error) as refused:
            await collect(client, request_)
    assert type(refused.value) is error


async def test_a_refusal_too_long_to_cross_loses_its_middle() -> None:
    class Pedant(StubRunner):
        def prepare(self, grammar: Grammar) -> None:
            raise BadRequest("wrong: " + 20_000 * "\N{OGHAM SPACE MARK}" + " here", param="grammar")

    async with serving(lambda _: Pedant()) as (client, _, _):
        with pytest.raises(BadRequest) as refused:
            await collect(client, ask(grammar=pb.Grammar(regex="a")))
    assert refused.value.message.startswith("wrong: ")
    assert refused.value.message.endswith(" here")
    assert refused.value.param == "grammar"


async def test_scores_of_a_long_prompt_cross_in_one_piece() -> None:
    prompt = (1,) * 40_000  # at 114 bytes each more than gRPC's own limit of 4 MiB
    async with serving(lambda _: StubRunner(context_length=len(prompt) + 1)) as (client, _, _):
        request = ask(prompt=prompt, max_tokens=1, logprobs=20, prompt_logprobs=True)
        [chunk] = await collect(client, request)
    assert len(chunk.prompt_logprobs) == len(prompt) - 1


async def test_unknown_fault_crosses_without_its_text() -> None:
    runner = FaultyRunner()
    runner.fault = ValueError("secret detail")
    async with serving(lambda _: runner) as (client, _, _):
        with pytest.raises(EngineUnavailable) as failed:
            await collect(client, ask())
    assert "secret" not in str(failed.value)


async def test_full_queue_is_overloaded_with_a_time_to_come_back() -> None:
    runner = HeldRunner(num_slots=1)
    async with serving(lambda _: runner, queue_capacity=1) as (client, _, _):
        first = asyncio.create_task(collect(client, ask()))
        await runner.entered()
        second = asyncio.create_task(collect(client, ask()))
        await until(lambda: is_queued(client))
        with pytest.raises(Overloaded) as refused:
            await collect(client, ask())
        assert refused.value.retry_after_s > 0
        runner.open()
        assert tokens(await first) == tokens(await second) == [7, 14, 28]


async def test_deadline_passes_as_such() -> None:
    runner = HeldRunner()
    async with serving(lambda _: runner) as (client, _, _):
        with pytest.raises(DeadlineExceeded):
            await collect(client, ask(deadline_ms=20))
        runner.open()


async def test_client_that_leaves_frees_the_slot() -> None:
    runner = HeldRunner(num_slots=1)
    async with serving(lambda _: runner) as (client, _, _):
        async with aclosing(client.generate(ask(max_tokens=1000))) as stream:
            runner.let()
            await anext(stream)
        await until(lambda: has_free_slot(client))
        runner.open()
        assert tokens(await collect(client, ask())) == [7, 14, 28]
    assert len(runner.steps) < 10


async def test_silent_engine_counts_as_dead() -> None:
    runner = HeldRunner()
    async with serving(lambda _: runner) as (_, server, _):
        impatient = EngineClient(f"127.0.0.1:{server.port}", stall_s=0.05)
        with pytest.raises(EngineUnavailable):
            await collect(impatient, ask())
        await impatient.aclose()
        runner.open()


async def test_who_waits_behind_others_is_not_taken_for_dead(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many chunks of nothing, and the caller sees the answer only."""
    monkeypatch.setattr("app.engine.engine.BEAT_S", 0.0)
    async with serving(lambda _: FaultyRunner(num_slots=1)) as (client, _, _):
        first, second = await asyncio.gather(collect(client, ask(max_tokens=100)), collect(client, ask()))
    assert all(chunk.tokens or chunk.finish_reason for chunk in first + second)


async def test_our_own_cancellation_stays_one() -> None:
    runner = HeldRunner()
    async with serving(lambda _: runner) as (client, _, _):
        task = asyncio.create_task(collect(client, ask()))
        await runner.entered()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        runner.open()


async def test_nobody_listening_is_unavailable(tmp_path: Path) -> None:
    client = EngineClient(f"unix:{tmp_path}/none.sock")
    with pytest.raises(EngineUnavailable):
        await client.describe()
    with pytest.raises(EngineUnavailable):
        await collect(client, ask())
    await client.aclose()


async def test_engine_that_greets_late_is_waited_for() -> None:
    async with serving(lambda _: StubRunner()) as (_, server, _), late_greeter(server.port) as port:
        client = EngineClient(f"127.0.0.1:{port}")
        assert tokens(await collect(client, ask())) == [7, 14, 28]
        await client.aclose()


async def test_engine_that_comes_back_is_found_by_the_same_client(tmp_path: Path) -> None:
    runner = HeldRunner()
    address = f"unix:{tmp_path}/engine.sock"
    client = EngineClient(address)
    async with serving(lambda _: runner, address=address):
        async with aclosing(client.generate(ask(max_tokens=50))) as stream:
            runner.let()
            await anext(stream)
        runner.open()
    with pytest.raises(EngineUnavailable):
        await client.describe()
    async with serving(lambda _: StubRunner(), address=address):
        await until(lambda: is_ready(client))
        assert tokens(await collect(client, ask())) == [7, 14, 28]
    await client.aclose()


async def test_engine_too_frozen_to_describe_itself_is_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    class Frozen(engine_pb2_grpc.EngineServicer):
        async def Describe(self, request: pb.DescribeRequest, context: object) -> pb.DescribeResponse:  # noqa: N802
            await asyncio.Event().wait()
            raise AssertionError("unreachable")

    monkeypatch.setattr("app.rpc.client.DESCRIBE_TIMEOUT_S", 0.05)
    server = grpc.aio.server()
    engine_pb2_grpc.add_EngineServicer_to_server(Frozen(), server)  # type: ignore[abstract]
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    client = EngineClient(f"127.0.0.1:{port}")
    with pytest.raises(EngineUnavailable):
        await client.describe()
    await client.aclose()
    await server.stop(None)


async def test_stream_that_ends_without_a_finish_reason_has_failed() -> None:
    class Broken(engine_pb2_grpc.EngineServicer):
        async def Generate(  # noqa: N802
            self, request: pb.GenerateRequest, context: object
        ) -> AsyncIterator[pb.GenerateChunk]:
            yield pb.GenerateChunk(index=0, tokens=[1])

    server = grpc.aio.server()
    engine_pb2_grpc.add_EngineServicer_to_server(Broken(), server)  # type: ignore[abstract]
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    client = EngineClient(f"127.0.0.1:{port}")
    with pytest.raises(EngineUnavailable):
        await collect(client, ask())
    await client.aclose()
    await server.stop(None)


async def test_drain_lets_the_running_answer_finish_and_refuses_new_ones() -> None:
    runner = HeldRunner()
    async with serving(lambda _: runner) as (client, server, _):
        running = asyncio.create_task(collect(client, ask()))
        await runner.entered()
        draining = asyncio.create_task(server.drain(30))
        await asyncio.sleep(0)  # the drain has begun
        late = EngineClient(f"127.0.0.1:{server.port}")
        with pytest.raises(EngineUnavailable):
            await collect(late, ask())
        runner.open()
        assert tokens(await running) == [7, 14, 28]
        await draining
        await late.aclose()


async def test_broken_model_leaves_the_others_served() -> None:
    def load(card: ModelCard) -> Runner | Encoder:
        if card.name == "broken":
            raise ModelFormatError("model.safetensors lacks model.norm.weight")
        return StubRunner()

    async with serving(load, make_card("broken"), make_card()) as (client, _, _):
        assert tokens(await collect(client, ask())) == [7, 14, 28]
        with pytest.raises(EngineUnavailable):
            await collect(client, ask(model="broken"))
        models = (await client.describe()).models
    assert [(model.name, model.kind, model.state, model.ready) for model in models] == [
        ("broken", "generation", "broken", False),
        ("sums", "generation", "ready", True),
    ]


async def test_model_that_fails_in_warm_up_is_broken_and_one_under_way_is_loading() -> None:
    is_asked = threading.Event()

    class Unfit(StubRunner):
        def warm_up(self) -> None:
            raise ValueError("not on this device")

    class Slow(StubRunner):
        def warm_up(self) -> None:
            is_asked.wait(HELD_S)

    runners = {"unfit": Unfit(), "slow": Slow()}
    host = Host(lambda card: runners[card.name], [make_card("unfit"), make_card("slow")])
    assert states(host) == {"unfit": "loading", "slow": "loading"}
    starting = asyncio.create_task(host.start())
    await until(lambda: has_states(host, {"unfit": "broken", "slow": "loading"}))
    is_asked.set()
    await starting
    assert states(host) == {"unfit": "broken", "slow": "ready"}
    await host.aclose()


async def test_models_warm_up_side_by_side() -> None:
    """Each waits until the other has begun."""
    both = threading.Barrier(2)

    class Companion(StubRunner):
        def warm_up(self) -> None:
            both.wait(HELD_S)

    async with serving(lambda _: Companion(), make_card("one"), make_card("two")) as (_, _, host):
        assert states(host) == {"one": "ready", "two": "ready"}


async def test_start_that_is_given_up_leaves_the_ready_models_answering() -> None:
    is_answered, is_warm = threading.Event(), threading.Event()

    class Slow(StubRunner):
        def warm_up(self) -> None:
            is_answered.wait(HELD_S)
            is_warm.set()

    host = Host(lambda card: Slow() if card.name == "slow" else StubRunner(), [make_card(), make_card("slow")])
    starting = asyncio.create_task(host.start())
    await until(lambda: has_states(host, {"sums": "ready", "slow": "loading"}))
    starting.cancel()
    await asyncio.wait([starting])
    answer = [chunk async for chunk in host.generate("sums", Request("r", (3, 4), 2), HELD_S)]
    assert answer[-1].finish_reason == "length"
    assert not is_warm.is_set()
    is_answered.set()
    await host.aclose()


async def test_health_and_reflection_are_registered() -> None:
    async with (
        serving(lambda _: StubRunner()) as (_, server, _),
        grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel,
    ):
        health = health_pb2_grpc.HealthStub(channel)
        check = await health.Check(health_pb2.HealthCheckRequest(service=SERVICE))
        assert check.status == health_pb2.HealthCheckResponse.SERVING
        ask_names = reflection_pb2.ServerReflectionRequest(list_services="")
        reflection = reflection_pb2_grpc.ServerReflectionStub(channel)
        async for answer in reflection.ServerReflectionInfo(iter([ask_names])):
            assert SERVICE in {service.name for service in answer.list_services_response.service}


SERVE = """
import sys
from pathlib import Path
from app.config import Settings
from app.engine.command import serve
serve(Settings(data_dir=Path(sys.argv[1]), models_dir=Path(sys.argv[2])), stub=True, step_ms=float(sys.argv[3]))
"""


def start_engine(folder: Path, step_ms: float) -> tuple[subprocess.Popen[bytes], EngineClient]:
    """A stub engine in a process of its own, with the model "tiny", and a client of it."""
    write_decoder(folder / "models/tiny")
    arguments = [str(folder), str(folder / "models"), str(step_ms)]
    process = subprocess.Popen([sys.executable, "-c", SERVE, *arguments], cwd=Path(__file__).parents[2])
    target = Settings(data_dir=folder, models_dir=folder / "models").engine_target
    return process, EngineClient(target)


@asynccontextmanager
async def engine_process(folder: Path, step_ms: float) -> AsyncIterator[tuple[subprocess.Popen[bytes], EngineClient]]:
    process, client = start_engine(folder, step_ms)
    try:
        await until(lambda: is_ready(client))
        yield process, client
    finally:
        await client.aclose()
        process.kill()
        process.wait()


@asynccontextmanager
async def late_greeter(port: int) -> AsyncIterator[int]:
    """A port that accepts at once and passes everything on to `port`, but only half a second later."""

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        awake = asyncio.Event()
        asyncio.get_running_loop().call_later(0.5, awake.set)
        await awake.wait()
        upstream_reader, upstream_writer = await asyncio.open_connection("127.0.0.1", port)
        await asyncio.gather(pump(reader, upstream_writer), pump(upstream_reader, writer))

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await reader.read(2**16):
                writer.write(data)
        writer.close()

    async with await asyncio.start_server(relay, "127.0.0.1", 0) as listener:
        yield listener.sockets[0].getsockname()[1]


async def is_queued(client: EngineClient) -> bool:
    return (await client.describe()).models[0].queue_depth > 0


def states(host: Host) -> dict[str, str]:
    return {name: model.state for name, model in host.models.items()}


async def has_states(host: Host, expected: dict[str, str]) -> bool:
    return states(host) == expected


async def has_free_slot(client: EngineClient) -> bool:
    return (await client.describe()).models[0].free_slots > 0


async def is_ready(client: EngineClient) -> bool:
    try:
        models = (await client.describe()).models
    except EngineUnavailable:
        return False
    return bool(models) and all(model.ready for model in models)


async def test_killed_engine_is_an_error_within_a_moment(tmp_path: Path) -> None:
    async with (
        engine_process(tmp_path, step_ms=20) as (process, client),
        aclosing(client.generate(ask("tiny", (3,), 60, ignore_eos=True))) as stream,
    ):
        await anext(stream)
        os.kill(process.pid, signal.SIGKILL)
        async with asyncio.timeout(10):
            with pytest.raises(EngineUnavailable):
                async for _ in stream:
                    pass


async def test_sigterm_drains_and_ends_cleanly(tmp_path: Path) -> None:
    async with engine_process(tmp_path, step_ms=20) as (process, client):
        async with aclosing(client.generate(ask("tiny", (3,), 20, ignore_eos=True))) as stream:
            await anext(stream)
            process.terminate()
            rest = [chunk async for chunk in stream]
        assert rest[-1].finish_reason == "length"
        assert await asyncio.to_thread(process.wait, 30) == 0


async def test_embedding_keeps_the_order_of_the_inputs() -> None:
    async with serving(lambda _: StubEncoder(), make_card("e", "embedding")) as (client, _, _):
        inputs = [pb.TokenIds(ids=[2]), pb.TokenIds(ids=[0, 0]), pb.TokenIds(ids=[1])]
        answer = await client.embed(pb.EmbedRequest(model="e", inputs=inputs))
    assert [list(row.values).index(max(row.values)) for row in answer.results] == [2, 0, 1]


async def test_classifier_does_not_embed_and_an_embedding_model_does_not_classify() -> None:
    cards = [make_card("c", "classification"), make_card("e", "embedding")]
    async with serving(lambda _: StubEncoder(), *cards) as (client, _, _):
        inputs = [pb.TokenIds(ids=[1])]
        with pytest.raises(NotFound):
            await client.embed(pb.EmbedRequest(model="c", inputs=inputs))
        with pytest.raises(NotFound):
            await client.classify(pb.ClassifyRequest(model="e", inputs=inputs))
