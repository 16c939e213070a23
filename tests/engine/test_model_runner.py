"""The runner on a tiny random checkpoint: what it computes must be what the uncached model computes."""

import re
from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import pytest
import tensorflow as tf

from app.engine import model_runner
from app.engine.model_runner import DecoderRunner
from app.engine.scheduler import Scheduler
from app.engine.sequence import Request, Sampling, Sequence
from app.engine.widths import agreeing_widths
from app.kernels import ops
from app.modeling import decoder, gru
from app.modeling.decoder_config import DecoderConfig
from app.modeling.gru import GruConfig
from app.modeling.quantize import product_names, quantize
from tests.kernels.started import started
from tests.modeling.checkpoints import decoder_config, gru_config, random_weights

CONFIG = decoder_config()
WEIGHTS = random_weights(CONFIG.shapes, seed=4)
PROMPT = tuple(range(5, 26))


LONG = decoder_config(context_length=300)
# What is compiled is kept by each worker: one does it all.
pytestmark = pytest.mark.xdist_group("model_runner")


@pytest.fixture(scope="module", params=["xla", "kernels"])
def kernels(request: pytest.FixtureRequest) -> ops.Started | None:
    """Whose products and attention; both compute the same."""
    return started() if request.param == "kernels" else None


@pytest.fixture(scope="module")
def runner(kernels: ops.Started | None) -> DecoderRunner:
    runner = DecoderRunner(CONFIG, WEIGHTS, num_slots=4, cache_bytes=2**20, kernels=kernels)
    runner.warm_up()
    return runner


@pytest.fixture(scope="module")
def wide(kernels: ops.Started | None) -> DecoderRunner:
    """With every size of call that a large model has."""
    weights = decoder.joined(CONFIG, WEIGHTS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model_runner, "SMALL_BYTES", 0)
        runner = DecoderRunner(CONFIG, weights, 24, widths=widths_of(CONFIG, weights, 24, kernels), kernels=kernels)
    runner.warm_up()
    return runner


@pytest.fixture(scope="module")
def long(kernels: ops.Started | None) -> DecoderRunner:
    """With several contexts, where calls have one."""
    weights, size = decoder.joined(LONG, WEIGHTS), 2**20
    widths = widths_of(LONG, weights, 12, kernels)
    runner = DecoderRunner(LONG, weights, 12, widths=widths, cache_bytes=size, kernels=kernels)
    runner.warm_up()
    return runner


@pytest.fixture(scope="module", params=["xla-64", "kernels-32", "kernels-80"])
def lengthy(request: pytest.FixtureRequest) -> DecoderRunner:
    """Whose prompts may be read in parts of more than a chunk; for XLA by weights so large that those agree."""
    whose, head_dim = request.param.split("-")
    kernels = started() if whose == "kernels" else None
    config = replace(LONG, hidden_size=256, intermediate_size=128, head_dim=int(head_dim))
    weights = decoder.joined(config, random_weights(config.shapes, seed=4))
    widths = widths_of(config, weights, 2, kernels)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model_runner, "SMALL_BYTES", 0)
        runner = DecoderRunner(config, weights, 2, widths=widths, cache_bytes=2**22, kernels=kernels)
    runner.warm_up()
    if kernels is None and runner.shapes.longest == runner.shapes.chunk:
        pytest.skip("no number of columns beyond a chunk agrees with it on this processor")
    assert runner.shapes.longest > runner.shapes.chunk
    return runner


def widths_of(
    config: DecoderConfig | GruConfig,
    weights: dict[str, np.ndarray],
    at_least: int,
    kernels: ops.Started | None = None,
) -> tuple[int, ...]:
    if kernels is not None:
        return ()
    products = [weights[name] for name in product_names(config, weights)]
    return agreeing_widths({(w.shape[0], w.shape[1]) for w in products}, at_least)


def complete(
    runner: DecoderRunner, *requests: Request, scheduler: Scheduler | None = None, max_steps: int = 8
) -> list[Sequence]:
    """Run these requests side by side to their ends."""
    scheduler = scheduler or Scheduler(runner.shapes, 100)
    sequences = [Sequence(request) for request in requests]
    for sequence in sequences:
        scheduler.enqueue(sequence)
    while (step := scheduler.next_step(max_steps)) is not None:
        result = runner.run(step)
        step.sequences[0].prompt_tokens += result.prompt_tokens
        scheduler.advance(step, result.tokens)
    return sequences


def _some(num_tokens: int, seed: int) -> tuple[int, ...]:
    return tuple(int(t) for t in np.random.default_rng(seed).integers(0, CONFIG.vocab_size, num_tokens))


def ids(sequence: Sequence) -> list[int]:
    return [token.id for token in sequence.output]


def logits_of(tokens: Iterable[int]) -> np.ndarray:
    """The uncached model's logits at every position, `[T, V]`."""
    weights = {name: tf.constant(array) for name, array in WEIGHTS.items()}
    logits: np.ndarray = decoder.forward(CONFIG, weights, tf.constant([list(tokens)], tf.int32))[0].numpy()
    return logits


def logprobs_of(tokens: Iterable[int]) -> np.ndarray:
    logits = logits_of(tokens)
    shifted = logits - logits.max(-1, keepdims=True)
    logprobs: np.ndarray = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return logprobs


def test_greedy_answer_is_that_of_the_uncached_model(runner: DecoderRunner) -> None:
    [sequence] = complete(runner, Request("r", PROMPT, 30, logprobs=5))
    known = [*PROMPT, *ids(sequence)]
    logprobs = logprobs_of(known)
    for token, row in zip(sequence.output, logprobs[len(PROMPT) - 1 : -1], strict=True):
        assert token.id == row.argmax()
        assert token.logprob == pytest.approx(row[token.id], abs=2e-4)
        assert [p for _, p in token.alternatives] == pytest.approx(np.sort(row)[::-1][:5].tolist(), abs=2e-4)


def test_greedy_answer_is_the_same_bit_for_bit_in_any_company(runner: DecoderRunner) -> None:
    asked = Request("r", PROMPT, 20, logprobs=20)
    [alone] = complete(runner, asked)
    mates = [
        Request("m", (9,) * 40, 20, Sampling(1.0, top_p=0.5, seed=3)),
        Request("m", (1, 2), 50, Sampling(0.7, presence_penalty=1.0, logit_bias={4: 2.0})),
        Request("m", (7,) * 11, 5),
    ]
    for place in range(4):
        crowd = complete(runner, *mates[:place], asked, *mates[place:], asked)
        assert crowd[place].output == alone.output
        assert crowd[-1].output == alone.output


def test_answers_are_the_same_bit_for_bit_in_calls_of_any_size(wide: DecoderRunner) -> None:
    asked = Request("r", PROMPT, 12, logprobs=20)
    drawn = Request("r", PROMPT, 12, Sampling(0.8, top_p=0.9, top_k=40, seed=7), logprobs=2)
    [alone], [alone_drawn] = complete(wide, asked), complete(wide, drawn, max_steps=1)
    for num_mates in (1, 5, 20):
        mates = [Request("m", (3 * i,) * (1 + 2 * i), 20 - i, Sampling(1.0, seed=i)) for i in range(num_mates)]
        crowd = complete(wide, *mates, asked, drawn)
        assert crowd[-2].output == alone.output
        assert crowd[-1].output == alone_drawn.output
    assert wide.compilations == 0


def test_answers_are_the_same_bit_for_bit_beside_longer_ones(long: DecoderRunner) -> None:
    asked = Request("r", PROMPT, 30, logprobs=20)
    [alone] = complete(long, asked)
    crowd = complete(long, Request("m", (7,) * 250, 45, Sampling(1.0, seed=1)), asked)
    assert crowd[-1].output == alone.output
    assert long.compilations == 0


@pytest.mark.parametrize("num_tokens", [30, 72, 130, 290])
def test_answers_are_the_same_bit_for_bit_wherever_a_prompt_was_cut(lengthy: DecoderRunner, num_tokens: int) -> None:
    shapes = lengthy.shapes
    asked = Request("r", _some(num_tokens, seed=3), 10, logprobs=20)
    by_chunks = Scheduler(replace(shapes, lengths=(shapes.chunk,)), 100)
    [expected] = complete(lengthy, asked, scheduler=by_chunks)
    [alone] = complete(lengthy, asked)
    crowd = complete(lengthy, Request("m", _some(250, seed=1), 2), asked)
    assert alone.output == crowd[-1].output == expected.output
    scheduler, salted = Scheduler(shapes, 100), replace(asked, cache_salt="a")
    [kept], [again] = (complete(lengthy, salted, scheduler=scheduler) for _ in range(2))
    assert (kept.cached_tokens, again.cached_tokens) == (0, (num_tokens - 1) // shapes.chunk * shapes.chunk)
    assert kept.output == again.output == expected.output
    assert lengthy.compilations == 0


def test_lengths_that_disagree_are_not_used(lengthy: DecoderRunner, monkeypatch: pytest.MonkeyPatch) -> None:
    shapes, probe, odd = lengthy.shapes, lengthy._read_probe, set[int | None]()

    def read(parts: int, start: int, length: int, padded: int | None = None) -> np.ndarray:
        state: np.ndarray = probe(parts, start, length, padded) + (padded in odd)
        return state

    monkeypatch.setattr(lengthy, "_read_probe", read)
    assert lengthy._agreeing(shapes) == shapes
    odd |= {shapes.lengths[0], shapes.longest}
    left = shapes.lengths[1:-1]
    short = tuple(length for length in shapes.lengths if length <= shapes.chunk)
    assert lengthy._agreeing(shapes).lengths == (left if left[-1] > shapes.chunk else short)
    odd |= {length for length in shapes.lengths if length > shapes.chunk}  # cut in the same places then
    assert lengthy._agreeing(shapes).lengths == short


def test_no_call_is_compiled_for_a_value(runner: DecoderRunner) -> None:
    """XLA compiles anew for each value of what it takes for a constant, which is then no parameter of its program."""
    tokens, places = np.zeros((1, runner.shapes.chunk), np.int32), np.zeros((1, 3), np.int32)
    [prefill] = {runner._prefills[1, runner.shapes.chunk, context] for context in runner._plan.contexts}
    rows = runner.shapes.rows[0]
    decode = runner._decodes[rows, runner._plan.contexts[0]]
    idle = (*runner._idle_call(rows), runner._store.rows(rows, ()))
    for call, arguments in ((prefill, (tokens, places)), (decode, idle)):
        program = call.experimental_get_compiler_ir(*arguments)(stage="hlo")
        [entry] = re.findall(r"entry_computation_layout=\{\((.*?)\)->", program)
        for argument in map(tf.convert_to_tensor, arguments):
            kind = {"int32": "s32", "float32": "f32"}[argument.dtype.name]
            assert f"{kind}[{','.join(map(str, argument.shape))}]" in entry


def test_an_answer_does_not_depend_on_the_steps_of_a_call(runner: DecoderRunner) -> None:
    asked = Request("r", PROMPT, 21, Sampling(0.9, seed=3), logprobs=1)
    [one], [many] = (complete(runner, asked, max_steps=steps) for steps in (1, 8))
    assert one.output == many.output


def test_rows_that_moved_up_go_on_as_if_they_had_not(long: DecoderRunner) -> None:
    asked = Request("r", PROMPT, 60, Sampling(logit_bias={3: -1.0}), logprobs=1)
    [alone] = complete(long, asked)
    crowd = complete(long, *(Request("m", (1, 2), 3) for _ in range(11)), asked)
    assert crowd[-1].output == alone.output


def test_a_restored_beginning_gives_the_same_bits(long: DecoderRunner) -> None:
    prompt = _some(100, seed=2)
    scheduler = Scheduler(long.shapes, 100)
    asked = Request("r", prompt, 8, logprobs=20, cache_salt="a")
    [first] = complete(long, asked, scheduler=scheduler)
    complete(long, *(Request("m", (7,) * 90, 2) for _ in range(12)), scheduler=scheduler)
    [second] = complete(long, asked, scheduler=scheduler)
    other = Request("r", (*prompt[:60], 1, 2, 3), 8, logprobs=20, cache_salt="a")
    [branch] = complete(long, other, scheduler=scheduler)
    [fresh] = complete(long, replace(other, cache_salt=""))
    assert (first.cached_tokens, second.cached_tokens) == (0, 99 // long.shapes.chunk * long.shapes.chunk)
    assert second.output == first.output
    assert branch.cached_tokens == 60 // long.shapes.chunk * long.shapes.chunk
    assert branch.output == fresh.output


def test_a_call_that_disagrees_is_not_used() -> None:
    class Odd(DecoderRunner):
        def _decode_probe(self, rows: int, position: int) -> np.ndarray:
            return np.array([rows == 4])

    runner = Odd(CONFIG, WEIGHTS, 8, widths=(4, 8))
    offered = runner.shapes.rows
    runner.warm_up()
    assert (offered, runner.shapes.rows) == ((4, 8), (8,))


def test_a_recurrent_model_is_served_alike_and_bit_for_bit_in_calls_of_any_size(kernels: ops.Started | None) -> None:
    config = gru_config()
    weights = random_weights(config.shapes, seed=4)
    widths = widths_of(config, weights, 6, kernels)
    runner = DecoderRunner(config, weights, 6, widths=widths, cache_bytes=2**20, kernels=kernels)
    runner.warm_up()
    prompt = tuple(range(1, 40))[: config.context_length - 15]
    asked = Request("r", prompt, 12, logprobs=20, cache_salt="a")
    [alone] = complete(runner, asked)
    known = [*prompt, *ids(alone)]
    logits = gru.forward(config, {name: tf.constant(array) for name, array in weights.items()}, tf.constant([known]))
    assert ids(alone) == logits[0].numpy().argmax(-1)[len(prompt) - 1 : -1].tolist()
    crowd = complete(runner, *(Request("m", (i + 1,) * (1 + 3 * i), 2 + i) for i in range(5)), asked)
    assert crowd[-1].output == alone.output
    assert runner.compilations == 0


@pytest.mark.parametrize(("tied", "has_kernels"), [(True, False), (False, False), (True, True), (False, True)])
def test_int8_is_close_and_the_same_bit_for_bit_in_any_company(
    tied: bool, has_kernels: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_runner, "SMALL_BYTES", 0)
    config = decoder_config(tied=tied)
    weights = random_weights(config.shapes, seed=4)
    kernels = started() if has_kernels else None
    runner = DecoderRunner(config, quantize(config, weights), 5, widths=(4, 8, 24), kernels=kernels)
    runner.warm_up()
    if not has_kernels:
        assert runner.shapes.rows[0] == 1  # whose products are computed otherwise
    asked = Request("r", PROMPT, 10, logprobs=20)
    [alone] = complete(runner, asked)
    crowd = complete(runner, *(Request("m", (i + 1,) * (3 + i), 20) for i in range(4)), asked)
    assert crowd[-1].output == alone.output
    exact = decoder.forward(config, {n: tf.constant(w) for n, w in weights.items()}, tf.constant([PROMPT]))[0, -1]
    shifted = tf.nn.log_softmax(exact).numpy()
    got = dict(alone.output[0].alternatives)
    assert np.abs([got[token] - shifted[token] for token in got]).mean() < 0.3


def test_seeded_answer_is_the_same_in_any_company(runner: DecoderRunner) -> None:
    asked = Request("r", PROMPT, 20, Sampling(1.0, top_p=0.95, seed=2**40 + 1))
    [alone] = complete(runner, asked)
    crowd = complete(runner, Request("m", (1,), 40), asked, Request("m", (2,), 9, Sampling(2.0, seed=8)))
    assert ids(crowd[1]) == ids(alone)
    [other] = complete(runner, Request("r", PROMPT, 20, Sampling(1.0, top_p=0.95, seed=1)))
    assert ids(other) != ids(alone)


def test_prompt_logprobs_are_those_of_the_uncached_model(runner: DecoderRunner) -> None:
    [sequence] = complete(runner, Request("r", PROMPT, 0, logprobs=1, prompt_logprobs=True))
    expected = logprobs_of(PROMPT)[np.arange(len(PROMPT) - 1), PROMPT[1:]]
    assert [token.id for token in sequence.prompt_tokens] == list(PROMPT[1:])
    assert [token.logprob for token in sequence.prompt_tokens] == pytest.approx(expected.tolist(), abs=2e-4)


def test_logit_bias_forces_and_penalties_end_a_repetition(runner: DecoderRunner) -> None:
    [forced] = complete(runner, Request("r", PROMPT, 4, Sampling(logit_bias={11: 100.0})))
    [penalised] = complete(runner, Request("r", PROMPT, 8, Sampling(logit_bias={11: 30.0}, frequency_penalty=2.0)))
    assert ids(forced) == [11] * 4
    [plain] = complete(runner, Request("r", PROMPT, 4))
    assert ids(plain) != ids(forced)
    assert ids(penalised)[0] == 11


def test_no_end_token_before_min_tokens(runner: DecoderRunner) -> None:
    [free] = complete(runner, Request("r", PROMPT, 12))
    ends = frozenset(ids(free)[:3])
    [ended] = complete(runner, Request("r", PROMPT, 12, end_token_ids=ends))
    [held] = complete(runner, Request("r", PROMPT, 12, end_token_ids=ends, min_tokens=6))
    assert ids(ended) == []
    assert len(held.output) >= 6
    assert not ends & set(ids(held)[:6])


def test_slot_holds_nothing_of_its_last_owner(runner: DecoderRunner) -> None:
    asked = Request("r", (3, 1, 4), 12, logprobs=20)
    [fresh] = complete(runner, asked)
    complete(runner, *(Request("m", (8,) * 50, 13, Sampling(1.0, seed=i)) for i in range(4)))
    [reused] = complete(runner, asked)
    assert reused.output == fresh.output


def test_the_whole_context_can_be_used(runner: DecoderRunner) -> None:
    [sequence] = complete(runner, Request("r", PROMPT, CONFIG.context_length - len(PROMPT)))
    assert len(sequence.output) == CONFIG.context_length - len(PROMPT)
    assert logits_of([*PROMPT, *ids(sequence)])[-2].argmax() == ids(sequence)[-1]


def test_nothing_is_compiled_after_warm_up(runner: DecoderRunner) -> None:
    complete(
        runner,
        Request("r", (1,), 3),
        Request("r", PROMPT, 3, Sampling(1.0, top_k=3, top_p=0.5, min_p=0.1, seed=1), logprobs=3, prompt_logprobs=True),
        Request("r", PROMPT[:9], 30, Sampling(0.5, logit_bias={3: 1.0}, presence_penalty=1.0)),
    )
    assert runner.compilations == 0
