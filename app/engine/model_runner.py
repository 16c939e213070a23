"""A decoder on a TensorFlow device: owns its arrays and its compiled functions.

`decode`, which runs for every token, is compiled by XLA for a fixed number of
rows and a few lengths of context. A prompt is read by one plain TensorFlow graph
for any length: it needs no padding and takes nothing from start-up, and is a tenth
(long prompts) to three quarters (16 tokens) slower than XLA's code on a CPU.

Everything is traced in the constructor and compiled in `warm_up`; TensorFlow numbers
functions as they are traced, and XLA's cache on disk knows them by that number, so
build the models of a process one after the other and in the same order each time.
Warm them up side by side.

What comes back from a step is one packed array, one copy to the host.

Letters: `B` rows, `T` tokens of a chunk, `D` width, `V` vocabulary.
"""

import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import tensorflow as tf

from app.engine import sampler
from app.engine.bias import Bias
from app.engine.device import align_function_numbers, losses_translated
from app.engine.grammar import Grammars
from app.engine.runner import NO_GRAMMARS, Result
from app.engine.scheduler import Decode, Prefill, Step
from app.engine.sequence import Grammar, Token
from app.errors import BadRequest
from app.modeling import decoder
from app.modeling.decoder_config import DecoderConfig

# A row's answer may differ in its last bits between two lengths of context, so a
# model of up to this many positions has one only.
SMALLEST_CONTEXT = 512


class DecoderRunner:
    """Runs the steps of one generation model.

    Args:
        config: sizes.
        weights: arrays by Hugging Face name, float32.
        num_slots: rows of the batch.
        grammars: of the model's tokenizer; None refuses them all.
    """

    def __init__(
        self,
        config: DecoderConfig,
        weights: Mapping[str, np.ndarray],
        num_slots: int,
        grammars: Grammars | None = None,
    ) -> None:
        self.num_slots = num_slots
        self.vocab_size = config.vocab_size
        self.context_length = config.context_length
        self._config = config
        self._weights = {name: tf.constant(array) for name, array in weights.items()}
        self._cache = decoder.init_cache(config, num_slots, config.context_length)
        self._grammars = grammars
        self._bias = Bias(num_slots, config.vocab_size, grammars)
        self._no_bias = tf.zeros((num_slots, config.vocab_size))
        # Where a row without a live token may write: its prompt overwrites it next.
        self._next_write = np.zeros(num_slots, np.int32)
        self._traces_at_warm_up = 0
        state = (1, None, config.hidden_size)
        self._states = _function(self._states_graph, _ints(1, None), _ints(), _ints())
        self._first = _function(self._first_graph, _floats(*state), *_row_specs(1, config.vocab_size))
        self._score = _function(self._score_graph, _floats(*state), _ints(None))
        self._decodes = {
            context: _function(
                partial(self._decode_graph, context), *_row_specs(num_slots, config.vocab_size), jit_compile=True
            )
            for context in context_buckets(config.context_length)
        }
        for function in self._functions:
            align_function_numbers()
            function.get_concrete_function()

    @property
    def compilations(self) -> int:
        """Functions traced since `warm_up` ended."""
        return self._num_traces - self._traces_at_warm_up

    def warm_up(self) -> None:
        """Compile all that `run` may need, and run it once."""
        states = self._read_chunk(tf.zeros((1, 1), tf.int32), 0, 0)
        self._first(states, *_idle_rows(1), self._no_bias[:1])
        self._score_chunk(states, (0,))
        for function in self._decodes.values():
            function(*_idle_rows(self.num_slots), self._no_bias)
        self._traces_at_warm_up = self._num_traces

    def prepare(self, grammar: Grammar) -> None:
        """Compile a grammar; blocks, but not the device."""
        if self._grammars is None:
            raise BadRequest(NO_GRAMMARS, param="grammar")
        self._grammars.prepare(grammar)

    def run(self, step: Step) -> Result:
        """Do one step; blocks until its result is on the host."""
        started = time.perf_counter()
        with losses_translated():
            result = self._prefill(step) if isinstance(step, Prefill) else self._decode(step)
        return Result(*result, device_s=time.perf_counter() - started)

    @property
    def _functions(self) -> tuple[Any, ...]:
        return (self._states, self._first, self._score, *self._decodes.values())

    @property
    def _num_traces(self) -> int:
        return sum(function.experimental_get_tracing_count() for function in self._functions)

    def _prefill(self, step: Prefill) -> tuple[tuple[Token, ...], tuple[Token, ...]]:
        request = step.sequence.request
        chunk = tf.constant([request.prompt[step.start : step.end]], tf.int32)
        states = self._read_chunk(chunk, step.slot, step.start)
        self._next_write[step.slot] = step.end
        scored: tuple[Token, ...] = ()
        if request.prompt_logprobs:
            targets = request.prompt[step.start + 1 : step.end + 1]
            packed = self._score_chunk(states, targets)
            scored = tuple(sampler.unpack(packed, i, request.logprobs) for i in range(len(targets)))
        if not step.is_last:
            return (), scored
        self._bias.assign(step.slot, request)
        ints, floats = _idle_rows(1)
        floats[0], ints[0, 2:] = sampler.row_parameters(request.sampling, request.logprobs)
        ints[0, 1] = step.end - 1
        packed = self._first(states, ints, floats, self._bias.rows[step.slot : step.slot + 1]).numpy()
        return (self._bias.advance(step.slot, sampler.unpack(packed, 0, request.logprobs)),), scored

    def _decode(self, step: Decode) -> tuple[tuple[Token, ...], tuple[Token, ...]]:
        ints, floats = _idle_rows(self.num_slots)
        ints[:, 1] = self._next_write
        self._bias.keep({row.slot for row in step.rows})
        for row in step.rows:
            request = row.sequence.request
            self._bias.observe(row.slot, row.token, row.position + 1 - len(request.prompt))
            ints[row.slot, :2] = row.token, row.position
            floats[row.slot], ints[row.slot, 2:] = sampler.row_parameters(request.sampling, request.logprobs)
            self._next_write[row.slot] = row.position + 1
        longest = max(row.position for row in step.rows)
        decode = next(function for context, function in self._decodes.items() if context > longest)
        bias = self._no_bias if self._bias.is_zero else tf.constant(self._bias.rows)
        packed = decode(ints, floats, bias).numpy()
        drawn = ((row.slot, sampler.unpack(packed, row.slot, row.sequence.request.logprobs)) for row in step.rows)
        return tuple(self._bias.advance(slot, token) for slot, token in drawn), ()

    def _read_chunk(self, tokens: tf.Tensor, slot: int, start: int) -> tf.Tensor:
        return self._states(tokens, tf.constant(slot), tf.constant(start))

    def _score_chunk(self, states: tf.Tensor, targets: tuple[int, ...]) -> np.ndarray:
        """Pack the given tokens, each as the successor of the state at its place."""
        packed: np.ndarray = self._score(states[:, : len(targets)], tf.constant(targets, tf.int32)).numpy()
        return packed

    def _states_graph(self, tokens: tf.Tensor, slot: tf.Tensor, start: tf.Tensor) -> tf.Tensor:
        context = start + tf.shape(tokens)[1]
        return decoder.prefill_states(self._config, self._weights, self._cache, tokens, slot, start, context)

    def _first_graph(self, states: tf.Tensor, ints: tf.Tensor, floats: tf.Tensor, bias: tf.Tensor) -> tf.Tensor:
        logits = decoder.head(self._config, self._weights, states[:, -1:])[:, 0]  # [1, V]
        return sampler.sample(logits, bias, sampler.Rows(floats, ints[:, 2:], ints[:, 1] + 1))

    def _score_graph(self, states: tf.Tensor, targets: tf.Tensor) -> tf.Tensor:
        return sampler.score(decoder.head(self._config, self._weights, states)[0], targets)

    def _decode_graph(self, context: int, ints: tf.Tensor, floats: tf.Tensor, bias: tf.Tensor) -> tf.Tensor:
        tokens, positions = ints[:, 0], ints[:, 1]
        logits = decoder.decode(self._config, self._weights, self._cache, tokens, positions, context)  # [B, V]
        return sampler.sample(logits, bias, sampler.Rows(floats, ints[:, 2:], positions + 1))


def context_buckets(context_length: int) -> tuple[int, ...]:
    """Lengths of cache that a decode step may read: doubling up to the whole context."""
    buckets = []
    length = SMALLEST_CONTEXT
    while length < context_length:
        buckets.append(length)
        length *= 2
    return (*buckets, context_length)


def _idle_rows(count: int) -> tuple[np.ndarray, np.ndarray]:
    """What a row carries to the device, as if nobody used it.

    Returns:
        `[B, 2 + 4]` int32, token, position and `Rows.ints`; `[B, 3]` float32, `Rows.floats`.
    """
    return np.zeros((count, 2 + sampler.NUM_INTS), np.int32), np.zeros((count, sampler.NUM_FLOATS), np.float32)


def _row_specs(count: int, vocab_size: int) -> tuple[tf.TensorSpec, ...]:
    return _ints(count, 2 + sampler.NUM_INTS), _floats(count, sampler.NUM_FLOATS), _floats(count, vocab_size)


def _ints(*shape: int | None) -> tf.TensorSpec:
    return tf.TensorSpec(shape, tf.int32)


def _floats(*shape: int | None) -> tf.TensorSpec:
    return tf.TensorSpec(shape, tf.float32)


def _function(graph: Callable[..., tf.Tensor], *signature: tf.TensorSpec, jit_compile: bool = False) -> Any:  # noqa: ANN401 - TensorFlow has no types
    return tf.function(graph, input_signature=signature, autograph=False, jit_compile=jit_compile)
