"""A decoder of any family on a TensorFlow device: owns its arrays and its compiled functions.

XLA compiles one function for each shape of a call (`plan.py`): parts of prompts by
their number, padded length and context, decode steps by rows and context. A decode
call takes several steps in a loop on the device. What is known of prompts' beginnings
is copied. Where sequences are remembered is `stores.py`'s affair.

Everything is traced in the constructor and compiled in `warm_up`; TensorFlow numbers
functions as they are traced, and XLA's cache on disk knows them by that number, so
build the models of a process one after the other and in the same order each time.
Warm them up side by side.

A row's answer is the same, bit for bit, in calls of any number of rows, and after a prompt
that was read in parts of any length: the kernels' products agree for any number of columns,
XLA's for some (`widths.py`), and `warm_up` compares the calls and uses none that does not.

What comes back from a step is one packed array, one copy to the host.

Letters: `B` rows, `P` parts, `T` tokens of a part, `D` width, `V` vocabulary.
"""

import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.compiler.tf2xla.ops import gen_xla_ops

from app.engine import sampler
from app.engine.bias import Bias
from app.engine.device import align_function_numbers, is_accelerated, losses_translated
from app.engine.grammar import Grammars
from app.engine.plan import make_plan
from app.engine.runner import NO_GRAMMARS, Result
from app.engine.scheduler import MOST_STEPS, Decode, Part, Prefill, Restore, Step
from app.engine.sequence import Grammar, Sampling, Token
from app.engine.shapes import Shapes
from app.engine.stores import MemoryStore, Store, VariableStore
from app.errors import BadRequest
from app.kernels import ops
from app.modeling.decoder_config import DecoderConfig
from app.modeling.family import family_of
from app.modeling.gru import GruConfig
from app.modeling.quantize import product_names
from app.telemetry import get_logger

log = get_logger(__name__)

COMPILE_THREADS = 4
SMALL_BYTES = 64 * 2**20
# Any tokens will do to compare calls: the multiples of a prime.
PROBED = 7919
# Prompts that are under way before one has to give way to another.
NUM_LANES = 3


class DecoderRunner:
    """Runs the steps of one generation model.

    Args:
        config: sizes.
        weights: arrays by Hugging Face name, as `quantize` leaves them where it was used.
        num_slots: rows of the batch.
        grammars: of the model's tokenizer; None refuses them all.
        widths: numbers of columns of which XLA's products agree; none: every call has all rows.
        cache_bytes: device memory for the beginnings of prompts.
        kernels: for products and attention, where there are some.
    """

    def __init__(
        self,
        config: DecoderConfig | GruConfig,
        weights: Mapping[str, np.ndarray],
        num_slots: int,
        grammars: Grammars | None = None,
        *,
        widths: tuple[int, ...] = (),
        cache_bytes: int = 0,
        kernels: ops.Started | None = None,
    ) -> None:
        self.vocab_size = config.vocab_size
        self.context_length = config.context_length
        self._config = config
        if isinstance(config, DecoderConfig) and config.head_dim % 2:
            kernels = None  # attention's takes numbers by pairs
        self._weights = _placed(config, weights, kernels)
        self._family = family_of(config)
        self._plan = make_plan(
            num_slots,
            config.context_length,
            widths,
            is_small=sum(array.nbytes for array in weights.values()) < SMALL_BYTES,
            is_recurrent=isinstance(config, GruConfig),
            is_accelerator=is_accelerated(),
            has_kernels=kernels is not None,
        )
        self._store = self._make_store(kernels, cache_bytes)
        self.shapes = replace(self._plan.shapes, num_blocks=self._store.num_blocks)
        self._grammars = grammars
        self._bias = Bias(num_slots, config.vocab_size, grammars)
        self._no_bias = {size: tf.zeros((size, config.vocab_size)) for size in {*self.shapes.rows, *self.shapes.parts}}
        # Where a row without a live token may write: its prompt overwrites it next.
        self._next_write = np.zeros(num_slots, np.int32)
        self._traces_at_warm_up = 0
        self._make_functions()

    @property
    def compilations(self) -> int:
        """Functions traced since `warm_up` ended."""
        return self._num_traces - self._traces_at_warm_up

    def warm_up(self) -> None:
        """Compile all that `run` may need, and leave out what does not agree with the rest."""
        with ThreadPoolExecutor(COMPILE_THREADS, "compile") as threads:
            for _ in threads.map(lambda run: run(), self._trials()):
                pass
        self.shapes = self._agreeing(self.shapes)
        self._traces_at_warm_up = self._num_traces

    def prepare(self, grammar: Grammar) -> object:
        """Compile a grammar; blocks, but not the device."""
        if self._grammars is None:
            raise BadRequest(NO_GRAMMARS, param="grammar")
        return self._grammars.prepare(grammar)

    def run(self, step: Step) -> Result:
        """Do one step; blocks until its result is on the host."""
        started = time.perf_counter()
        scored: tuple[Token, ...] = ()
        with losses_translated():
            if isinstance(step, Restore):
                tokens = self._restore(step)
            elif isinstance(step, Prefill):
                tokens, scored = self._prefill(step)
            else:
                tokens = self._decode(step)
        return Result(tokens, scored, device_s=time.perf_counter() - started)

    def _restore(self, step: Restore) -> tuple[tuple[Token, ...], ...]:
        [lane] = self._store.enter([step.slot], [0], [step.end])
        self._store.restore(lane, step.places)
        self._next_write[step.slot] = step.end
        return ((),)

    def _prefill(self, step: Prefill) -> tuple[tuple[tuple[Token, ...], ...], tuple[Token, ...]]:
        parts = step.parts
        length = self.shapes.length_bucket(max(part.end - part.start for part in parts))
        tokens = np.zeros((len(parts), length), np.int32)
        for row, part in enumerate(parts):
            tokens[row, : part.end - part.start] = part.sequence.request.prompt[part.start : part.end]
            self._next_write[part.slot] = part.end
        slots, starts, ends = zip(*((part.slot, part.start, part.end) for part in parts), strict=True)
        lanes = self._store.enter(slots, starts, ends)
        places = np.array([lanes, starts, np.subtract(ends, starts)], np.int32).T
        context = self._plan.context(max(part.end for part in parts))
        last, states = self._prefills[len(parts), length, context](tokens, places)
        for part, lane in zip(parts, lanes, strict=True):
            if part.kept:
                self._store.keep(lane, part.first_kept, part.kept)
            if part.is_last:
                self._store.complete(part.slot)
        return self._sample_first(parts, last), self._score(parts[0], states)

    def _sample_first(self, parts: tuple[Part, ...], last: tf.Tensor) -> tuple[tuple[Token, ...], ...]:
        """The first token of each part that ends its prompt."""
        if not any(part.is_last for part in parts):
            return ((),) * len(parts)
        ints, floats = _idle_rows(len(parts))
        bias = np.zeros((len(parts), self.vocab_size), np.float32)
        for row, part in enumerate(parts):
            request = part.sequence.request
            if part.is_last:
                self._bias.assign(part.slot, request)
                bias[row] = self._bias.rows[part.slot]
            floats[row], ints[row, 2:] = sampler.row_parameters(request.sampling, request.logprobs)
            ints[row, 1] = part.end - 1
        packed = self._firsts[len(parts)](last, ints, floats, bias).numpy()
        return tuple(
            (self._bias.advance(part.slot, sampler.unpack(packed, row, part.sequence.request.logprobs)),)
            if part.is_last
            else ()
            for row, part in enumerate(parts)
        )

    def _score(self, part: Part, states: tf.Tensor) -> tuple[Token, ...]:
        """What the prompt's own tokens scored, each as the successor of the one before, where asked for."""
        request = part.sequence.request
        if not request.prompt_logprobs:
            return ()
        wanted = request.prompt[part.start + 1 : part.end + 1]
        targets = np.zeros(self.shapes.chunk, np.int32)
        targets[: len(wanted)] = wanted
        padding = [[0, 0], [0, self.shapes.chunk - states.shape[1]]]
        packed = self._scores(tf.pad(states, padding), targets).numpy()
        return tuple(sampler.unpack(packed, i, request.logprobs) for i in range(len(wanted)))

    def _decode(self, step: Decode) -> tuple[tuple[Token, ...], ...]:
        positions = {row.slot: row.position for row in step.rows}
        for source, target in step.moves:
            self._store.move(source, target, positions[target])
            self._bias.move(source, target)
        size = self.shapes.row_bucket(1 + max(row.slot for row in step.rows))
        ints, floats = _idle_rows(size)
        ints[:, 1] = self._next_write[:size]
        self._bias.keep({row.slot for row in step.rows})
        for row in step.rows:
            request = row.sequence.request
            self._bias.observe(row.slot, row.token, row.position + 1 - len(request.prompt))
            ints[row.slot, :2] = row.token, row.position
            floats[row.slot], ints[row.slot, 2:] = sampler.row_parameters(request.sampling, request.logprobs)
            self._next_write[row.slot] = row.position + step.num_steps
        context = self._plan.context(max(row.position for row in step.rows) + step.num_steps)
        bias = self._no_bias[size] if self._bias.is_zero else tf.constant(self._bias.rows[:size])
        slots = self._store.rows(size, positions)
        packed = self._decodes[size, context](ints, floats, bias, np.int32(step.num_steps), slots).numpy()
        return tuple(
            tuple(
                self._bias.advance(row.slot, sampler.unpack(packed[i], row.slot, row.sequence.request.logprobs))
                for i in range(step.num_steps)
            )
            for row in step.rows
        )

    def _make_store(self, kernels: ops.Started | None, cache_bytes: int) -> Store:
        config, plan = self._config, self._plan
        chunk = plan.shapes.chunk
        if kernels is not None and isinstance(config, DecoderConfig):
            heads, num_slots = (config.num_kv_heads, config.head_dim), plan.shapes.num_slots
            memory = ops.Memory(kernels, config.num_layers, *heads, num_slots, config.context_length)
            return MemoryStore(memory, chunk, cache_bytes)
        answers = self._family.init_cache(config, plan.groups, plan.contexts)
        num_lanes = 1 + max(NUM_LANES, *plan.shapes.parts)
        prompts = self._family.init_cache(config, (num_lanes,), plan.contexts)
        # A recurrent state has no parts that could be kept.
        return VariableStore(answers, prompts, chunk, 0 if isinstance(config, GruConfig) else cache_bytes)

    def _make_functions(self) -> None:
        shapes, contexts, vocab_size = self.shapes, self._plan.contexts, self.vocab_size
        width = self._config.hidden_size
        self._prefills = {
            (parts, length, context): _compiled(
                partial(self._prefill_graph, context), _ints(parts, length), _ints(parts, 3)
            )
            for parts, length in shapes.prefills
            for context in contexts
            if context >= min(length, contexts[-1])
        }
        self._firsts = {
            parts: _compiled(self._first_graph, _floats(width, parts), *_row_specs(parts, vocab_size))
            for parts in shapes.parts
        }
        self._scores = _compiled(self._score_graph, _floats(width, shapes.chunk), _ints(shapes.chunk))
        self._decodes = {
            (rows, context): _compiled(
                partial(self._decode_graph, context), *_row_specs(rows, vocab_size), _ints(), _ints(rows)
            )
            for rows in shapes.rows
            for context in contexts
        }
        for function in self._compiled_functions:
            align_function_numbers()
            function.get_concrete_function()

    @property
    def _compiled_functions(self) -> tuple[Any, ...]:
        groups = (self._prefills, self._firsts, self._decodes)
        return (self._scores, *(function for group in groups for function in group.values()))

    @property
    def _num_traces(self) -> int:
        compiled: int = sum(function.experimental_get_tracing_count() for function in self._compiled_functions)
        return self._store.num_traces + compiled

    def _trials(self) -> list[Callable[[], Any]]:
        """A call of each function, on slots that nobody owns yet; the largest first, so that none waits at the end."""
        trials: list[Callable[[], Any]] = [
            partial(function, *self._idle_call(rows), self._store.rows(rows, ()))
            for (rows, _), function in self._decodes.items()
        ]
        for (parts, length, _), function in self._prefills.items():
            trials.append(partial(function, np.zeros((parts, length), np.int32), _first_lanes(parts)))
        width = self._config.hidden_size
        for parts, function in self._firsts.items():
            trials.append(partial(function, np.zeros((width, parts), np.float32), *self._idle_call(parts)[:3]))
        chunk = self.shapes.chunk
        trials.append(partial(self._scores, np.zeros((width, chunk), np.float32), np.zeros(chunk, np.int32)))
        trials.append(self._store.warm_up)
        return trials

    def _idle_call(self, size: int) -> tuple[Any, ...]:
        return (*_idle_rows(size), self._no_bias[size], np.int32(1))

    def _agreeing(self, shapes: Shapes) -> Shapes:
        """Without the calls in which the first slot comes out otherwise than alone, or than in the call of all rows."""
        lengths = self._agreeing_lengths(shapes)
        length = min(shapes.chunk, (self.context_length - 1) // 2)
        for start in (0, length):
            states = {parts: self._read_probe(parts, start, length) for parts in shapes.parts}
        self._store.complete(0)
        answers = {rows: self._decode_probe(rows, 2 * length) for rows in shapes.rows}
        rows = tuple(rows for rows in shapes.rows if np.array_equal(answers[rows], answers[shapes.num_slots]))
        parts = tuple(parts for parts in shapes.parts if np.array_equal(states[parts], states[1]))
        if (rows, parts, lengths) != (shapes.rows, shapes.parts, shapes.lengths):
            log.warning("runner.calls_disagree", rows=rows, parts=parts, lengths=lengths)
        return replace(shapes, rows=rows, parts=parts, lengths=lengths)

    def _agreeing_lengths(self, shapes: Shapes) -> tuple[int, ...]:
        """Those with which a prompt's beginning ends as if it had been read by chunks.

        Where none longer than a chunk does, prompts are cut in the same places each time, and the shorter ones stay.
        """
        up_to_chunk = tuple(length for length in shapes.lengths if length <= shapes.chunk)
        if up_to_chunk == shapes.lengths:
            return up_to_chunk
        agree = tuple(length for length in shapes.lengths if self._agrees(length))
        return agree if agree[-1] > shapes.chunk else up_to_chunk

    def _agrees(self, length: int) -> bool:
        chunk = self.shapes.chunk
        end = max(1, length // chunk) * chunk
        return np.array_equal(self._read_by(length, end), self._read_by(chunk, end))

    def _read_by(self, length: int, end: int) -> np.ndarray:
        """The first slot's state after so many tokens, read in parts of this length."""
        for start in range(0, end, length):
            state = self._read_probe(1, start, min(length, end - start), length)
        return state

    def _read_probe(self, parts: int, start: int, length: int, padded: int | None = None) -> np.ndarray:
        """The first slot's state after a part of a prompt, padded to a chunk or so far, beside others of no meaning."""
        padded = padded or self.shapes.chunk
        tokens, places = np.zeros((parts, padded), np.int32), _first_lanes(parts)
        tokens[0, :length] = PROBED * np.arange(start + 1, start + 1 + length) % self.vocab_size
        places[0, 1:] = start, length
        places[:, 0] = self._store.enter(range(parts), places[:, 1].tolist(), places[:, 1:].sum(1).tolist())
        context = self._plan.context(max(padded, start + length))
        last, _ = self._prefills[parts, padded, context](tokens, places)
        state: np.ndarray = last.numpy()[:, 0]
        return state

    def _decode_probe(self, rows: int, position: int) -> np.ndarray:
        """What one step of the first slot samples, with the log-probabilities of the likeliest."""
        ints, floats = _idle_rows(rows)
        floats[0], ints[0, 2:] = sampler.row_parameters(Sampling(temperature=1.0, top_p=0.9), logprobs=1)
        ints[0, :2] = PROBED % self.vocab_size, position
        call = (ints, floats, self._no_bias[rows], np.int32(1), self._store.rows(rows, (0,)))
        answer: np.ndarray = self._decodes[rows, self._plan.contexts[0]](*call).numpy()[0, 0]
        return answer

    def _prefill_graph(self, context: int, tokens: tf.Tensor, places: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """The states after each part's last real token `[D, P]`, and all of them `[D, P * T]`."""
        lanes, starts, lengths = tf.unstack(places, axis=1)
        states = self._family.prefill(
            self._config, self._weights, self._store.prompts, tokens, lanes, starts, lengths, context
        )
        num_parts, length = tokens.shape
        return tf.gather(states, tf.range(num_parts) * length + lengths - 1, axis=1), states

    def _first_graph(self, last: tf.Tensor, ints: tf.Tensor, floats: tf.Tensor, bias: tf.Tensor) -> tf.Tensor:
        num_parts = last.shape[1]
        columns = tf.pad(last, [[0, 0], [0, self._plan.padded(num_parts) - num_parts]])
        logits = _turned(self._family.head(self._config, self._weights, columns))[:num_parts]  # [P, V]
        return sampler.sample(logits, bias, sampler.Rows(floats, ints[:, 2:], ints[:, 1] + 1))

    def _score_graph(self, states: tf.Tensor, targets: tf.Tensor) -> tf.Tensor:
        return sampler.score(_turned(self._family.head(self._config, self._weights, states)), targets)

    def _decode_graph(
        self,
        context: int,
        ints: tf.Tensor,
        floats: tf.Tensor,
        bias: tf.Tensor,
        num_steps: tf.Tensor,
        slots: tf.Tensor,
    ) -> tf.Tensor:
        """`num_steps` tokens of each row, packed, `[MOST_STEPS, B, …]`; what lies behind them means nothing."""
        num_rows = ints.shape[0]

        def take_step(
            i: tf.Tensor, tokens: tf.Tensor, positions: tf.Tensor, taken: tf.Tensor
        ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor]:
            cache, num_columns = self._store.answers, self._plan.columns[num_rows]
            columns = self._family.decode(
                self._config, self._weights, cache, tokens, positions, context, num_columns, slots
            )  # [V, B]
            packed = sampler.sample(_turned(columns), bias, sampler.Rows(floats, ints[:, 2:], positions + 1))
            taken = tf.tensor_scatter_nd_update(taken, [[i]], packed[tf.newaxis])
            return i + 1, packed[:, 0], positions + 1, taken

        nothing = tf.zeros((MOST_STEPS, num_rows, sampler.packed_size(self.vocab_size)), tf.int32)
        start = (tf.constant(0), ints[:, 0], ints[:, 1], nothing)
        return tf.while_loop(lambda i, *_: i < num_steps, take_step, start)[3]


def _placed(
    config: DecoderConfig | GruConfig, weights: Mapping[str, np.ndarray], kernels: ops.Started | None
) -> dict[str, tf.Tensor | ops.Packed]:
    """The weights on the device, those of products as their kernels read them."""
    packed = dict[str, ops.Packed | None]()
    if kernels is not None:
        for name in product_names(config, weights):
            packed[name] = ops.pack(kernels, weights[name], weights.get(name.removesuffix("weight") + "scale"))
    return {name: tf.constant(array) if packed.get(name) is None else packed[name] for name, array in weights.items()}


def _turned(logits: tf.Tensor) -> tf.Tensor:
    """`[V, M]` to `[M, V]`; without the barrier XLA computes a product of rows instead, slower and of other bits."""
    return tf.transpose(gen_xla_ops.xla_optimization_barrier([logits])[0])


def _idle_rows(count: int) -> tuple[np.ndarray, np.ndarray]:
    """What a row carries to the device, as if nobody used it.

    Returns:
        `[B, 2 + 4]` int32, token, position and `Rows.ints`; `[B, 3]` float32, `Rows.floats`.
    """
    return np.zeros((count, 2 + sampler.NUM_INTS), np.int32), np.zeros((count, sampler.NUM_FLOATS), np.float32)


def _first_lanes(count: int) -> np.ndarray:
    """Places of parts of one token at the beginning of the first lanes, `[P, 3]`."""
    return np.array([(lane, 0, 1) for lane in range(count)], np.int32)


def _row_specs(count: int, vocab_size: int) -> tuple[tf.TensorSpec, ...]:
    return _ints(count, 2 + sampler.NUM_INTS), _floats(count, sampler.NUM_FLOATS), _floats(count, vocab_size)


def _ints(*shape: int | None) -> tf.TensorSpec:
    return tf.TensorSpec(shape, tf.int32)


def _floats(*shape: int | None) -> tf.TensorSpec:
    return tf.TensorSpec(shape, tf.float32)


def _compiled(graph: Callable[..., Any], *signature: tf.TensorSpec) -> Any:  # noqa: ANN401 - TensorFlow has no types
    return tf.function(graph, input_signature=signature, autograph=False, jit_compile=True)
