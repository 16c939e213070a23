"""Grammars on the way from a message to the device: who refuses, who ends, and that mates notice nothing."""

import asyncio
import gc
import json
import threading
import weakref
from dataclasses import replace

import pytest

from app.engine.model_runner import DecoderRunner
from app.engine.scheduler import Scheduler
from app.engine.sequence import Grammar, Request, Sampling, Sequence
from app.engine.stub import StubRunner
from app.errors import BadRequest, DeadlineExceeded
from app.rpc import engine_pb2 as pb
from tests.engine.grammars import TOKENS, RandomRunner, grammar_of, grammars
from tests.fakes import HELD_S, running, serving
from tests.modeling.checkpoints import decoder_config, random_weights

CONFIG = decoder_config()
# As many as the model has; the last ones stand for no text.
MODEL_TOKENS = [*TOKENS, *[None] * (CONFIG.vocab_size - len(TOKENS))]
END = CONFIG.vocab_size - 1


@pytest.fixture(scope="module")
def runner() -> DecoderRunner:
    weights = random_weights(CONFIG.shapes, seed=4)
    runner = DecoderRunner(CONFIG, weights, num_slots=3, grammars=grammars(MODEL_TOKENS))
    runner.warm_up()
    return runner


def complete(runner: DecoderRunner, *requests: Request) -> list[Sequence]:
    scheduler = Scheduler(runner.shapes, 100)
    sequences = [Sequence(request) for request in requests]
    for sequence in sequences:
        scheduler.enqueue(sequence)
    while (step := scheduler.next_step()) is not None:
        scheduler.advance(step, runner.run(step).tokens)
    return sequences


def test_rows_with_and_without_a_grammar_share_a_batch_and_nothing_else(runner: DecoderRunner) -> None:
    free = Request("r", (9, 8, 7), 20, Sampling(0.9, top_p=0.9, seed=5), logprobs=3)
    [alone] = complete(runner, free)
    choice = Request("r", (1, 2), 20, end_token_ids=frozenset({END}), grammar=grammar_of("choice", "yes", "no"))
    phone = Request("r", (3,), 30, Sampling(1.0, seed=2), grammar=grammar_of("regex", r"\+\d{3}-\d{4}"))
    mates = complete(runner, choice, free, phone)
    assert mates[1].output == alone.output
    texts = [b"".join(TOKENS[token.id] or b"" for token in mates[at].output).decode() for at in (0, 2)]
    assert texts[0] in ("yes", "no")
    assert texts[1][0] == "+"
    assert texts[1][1:].replace("-", "").isdigit()
    assert [sequence.finish_reason for sequence in mates] == ["stop", "length", "stop"]
    assert runner.compilations == 0


def test_the_same_seed_gives_the_same_structured_answer_in_any_company(runner: DecoderRunner) -> None:
    schema = json.dumps({"type": "array", "items": {"enum": ["red", "green", "blue"]}, "minItems": 2, "maxItems": 3})
    asked = Request("r", (5,), 40, Sampling(1.0, seed=11), grammar=grammar_of("json_schema", schema))
    [alone] = complete(runner, asked)
    crowd = complete(runner, Request("m", (1,), 30), asked, Request("m", (2,), 9, Sampling(1.0, seed=3)))
    assert crowd[1].output == alone.output
    assert alone.finish_reason == "stop"


def test_a_runner_without_tokens_follows_no_grammar() -> None:
    bare = DecoderRunner(CONFIG, random_weights(CONFIG.shapes, seed=4), num_slots=1)
    with pytest.raises(BadRequest):
        bare.prepare(grammar_of("regex", "a"))


async def test_a_wrong_grammar_is_refused_before_the_first_chunk_with_the_field_to_blame() -> None:
    async with serving(lambda _: RandomRunner(0)) as (client, _, host):
        request = pb.GenerateRequest(model="sums", prompt_tokens=[1], max_tokens=5, grammar=pb.Grammar(regex="(a"))
        with pytest.raises(BadRequest, match="unclosed group") as refused:
            await anext(aiter(client.generate(request)))
        assert refused.value.param == "grammar"
        assert host.models["sums"].engine.scheduler.slots.num_free == 4  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("grammar", "accepted"),
    [
        (pb.Grammar(regex="[0-3]"), {"0", "1", "2", "3"}),
        (pb.Grammar(choice=pb.Choice(texts=["left", "right"])), {"left", "right"}),
        (pb.Grammar(json_schema='{"enum": [1, "x"]}'), {"1", '"x"'}),
    ],
)
async def test_each_form_of_the_message_is_followed(grammar: pb.Grammar, accepted: set[str]) -> None:
    async with serving(lambda _: RandomRunner(0)) as (client, _, _):
        request = pb.GenerateRequest(model="sums", prompt_tokens=[1], max_tokens=30, grammar=grammar)
        chunks = [chunk async for chunk in client.generate(request)]
    text = b"".join(TOKENS[token] or b"" for chunk in chunks for token in chunk.tokens)
    assert text.decode() in accepted
    assert chunks[-1].finish_reason == "stop"


async def test_json_object_means_any_object() -> None:
    async with serving(lambda _: RandomRunner(0, closing=4)) as (client, _, _):
        request = pb.GenerateRequest(
            model="sums", prompt_tokens=[1], max_tokens=500, grammar=pb.Grammar(json_object=True)
        )
        chunks = [chunk async for chunk in client.generate(request)]
    text = b"".join(TOKENS[token] or b"" for chunk in chunks for token in chunk.tokens)
    assert chunks[-1].finish_reason == "stop"
    assert isinstance(json.loads(text), dict)


async def test_a_stub_refuses_grammars() -> None:
    async with running(StubRunner()) as engine:
        with pytest.raises(BadRequest):
            await anext(engine.generate(Request("r", (1,), 5, grammar=grammar_of("regex", "a")), 60))


async def test_compiling_holds_up_nobody_else_and_has_the_requests_deadline() -> None:
    class Slow(RandomRunner):
        is_released = threading.Event()

        def prepare(self, grammar: Grammar) -> object:
            return self.is_released.wait(HELD_S)

    runner = Slow(0)
    async with running(runner) as engine:
        with pytest.raises(DeadlineExceeded):
            await anext(engine.generate(Request("r", (1,), 5, grammar=grammar_of("regex", "a")), 0.01))
        chunks = [chunk async for chunk in engine.generate(Request("r", (1,), 5), 60)]
        assert chunks[-1].finish_reason == "length"
        runner.is_released.set()


async def test_a_grammar_that_is_ready_waits_for_no_other() -> None:
    class Slow(RandomRunner):
        is_released = threading.Event()

        def prepare(self, grammar: Grammar) -> object:
            if grammar != known.grammar:
                self.is_released.wait(HELD_S)
            return super().prepare(grammar)

    known = Request("r", (1,), 5, grammar=grammar_of("regex", "a"))
    strange = [replace(known, grammar=grammar_of("regex", f"b{number}")) for number in range(40)]
    runner = Slow(0)
    async with running(runner, queue_capacity=len(strange)) as engine:

        async def answered(request: Request) -> str:
            return [chunk async for chunk in engine.generate(request, 60)][-1].finish_reason

        assert await answered(known) == "stop"
        # More than there are threads to wait for them.
        crowd = [asyncio.create_task(answered(request)) for request in strange]
        await asyncio.sleep(0)
        assert await answered(known) == "stop"
        assert not any(task.done() for task in crowd)
        runner.is_released.set()
        assert {*await asyncio.gather(*crowd)} == {"stop"}


async def test_what_was_made_ready_is_kept_until_the_answer_ends() -> None:
    class Ready:
        """What `prepare` made."""

    made: list[weakref.ref[Ready]] = []

    class Preparing(StubRunner):
        def prepare(self, grammar: Grammar) -> Ready:
            ready = Ready()
            made.append(weakref.ref(ready))
            return ready

    async with running(Preparing()) as engine:
        stream = engine.generate(Request("r", (1,), 50, grammar=grammar_of("regex", "a")), 60)
        assert (await anext(stream)).tokens
        gc.collect()
        assert made[0]() is not None
        await stream.aclose()
        gc.collect()
        assert made[0]() is None
