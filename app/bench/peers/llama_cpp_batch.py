"""llama.cpp through llama-cpp-python's low-level interface: one batch of several sequences a step, greedy.

First line: {"model": GGUF file, "threads": number, "flash_attention": true, false or
absent for llama.cpp's own choice}. A job with "exact": true keeps keys and values in
float32 instead of llama.cpp's own choice, float16, and attends plainly: flash attention
rounds enough to turn a near tie. Making a context is not timed.
"""

from typing import Any

from protocol import Prepare, Run, serve

TOKENS_A_CALL = 512
BLOCK = 256  # llama.cpp rounds a row's positions up to it


def load(setup: dict[str, Any]) -> Prepare:
    """Read the model."""
    from llama_cpp import llama_cpp as api

    api.llama_backend_init()
    model = api.llama_model_load_from_file(setup["model"].encode(), api.llama_model_default_params())
    if not model:
        raise SystemExit(f"llama.cpp cannot read {setup['model']}")

    contexts: list[Any] = []

    def prepare(prompts: list[list[int]], outputs: list[int], job: dict[str, Any]) -> Run:
        longest = max(len(prompt) + count for prompt, count in zip(prompts, outputs, strict=True))
        parameters = api.llama_context_default_params()
        parameters.n_seq_max = len(prompts)
        parameters.n_ctx = len(prompts) * -(-longest // BLOCK) * BLOCK  # an equal part for each row
        parameters.n_batch = parameters.n_ubatch = TOKENS_A_CALL
        parameters.n_threads = parameters.n_threads_batch = setup["threads"]
        if setup.get("flash_attention") is not None:
            parameters.flash_attn_type = int(setup["flash_attention"])
        if job.get("exact"):
            parameters.type_k = parameters.type_v = 0  # GGML_TYPE_F32
            parameters.flash_attn_type = api.LLAMA_FLASH_ATTN_TYPE_DISABLED
        if contexts:
            api.llama_free(contexts.pop())
        context = api.llama_init_from_model(model, parameters)
        if not context:
            raise SystemExit("llama.cpp made no context")
        contexts.append(context)
        batch = Batch(api, context, api.llama_vocab_n_tokens(api.llama_model_get_vocab(model)))
        return lambda: batch.generate(prompts, outputs)

    return prepare


class Batch:
    """The rows of one context."""

    def __init__(self, api: Any, context: Any, vocab_size: int) -> None:  # noqa: ANN401 - foreign
        self._api = api
        self._context = context
        self._vocab_size = vocab_size
        self._batch = api.llama_batch_init(TOKENS_A_CALL, 0, 1)

    def generate(self, prompts: list[list[int]], outputs: list[int]) -> list[list[int]]:
        """Read every prompt, then take steps of all rows that still want tokens."""
        answers = self._read(prompts)
        while rows := [row for row, answer in enumerate(answers) if len(answer) < outputs[row]]:
            for row in rows:
                self._add(answers[row][-1], len(prompts[row]) + len(answers[row]) - 1, row, wants_logits=True)
            for place, token in enumerate(self._decode(range(len(rows)))):
                answers[rows[place]].append(token)
        self._api.llama_batch_free(self._batch)
        return answers

    def _read(self, prompts: list[list[int]]) -> list[list[int]]:
        answers: list[list[int]] = [[] for _ in prompts]
        ends: dict[int, int] = {}
        for row, prompt in enumerate(prompts):
            for position, token in enumerate(prompt):
                is_last = position == len(prompt) - 1
                if is_last:
                    ends[self._batch.n_tokens] = row
                self._add(token, position, row, wants_logits=is_last)
                if self._batch.n_tokens == TOKENS_A_CALL or (is_last and row == len(prompts) - 1):
                    for end, first in zip(ends.values(), self._decode(ends), strict=True):
                        answers[end].append(first)
                    ends = {}
        return answers

    def _add(self, token: int, position: int, row: int, *, wants_logits: bool) -> None:
        batch, place = self._batch, self._batch.n_tokens
        batch.token[place], batch.pos[place] = token, position
        batch.n_seq_id[place], batch.seq_id[place][0] = 1, row
        batch.logits[place] = wants_logits
        batch.n_tokens = place + 1

    def _decode(self, places: Any) -> list[int]:  # noqa: ANN401 - any iterable of numbers
        """The likeliest token after each of these places of the batch."""
        import numpy as np

        if self._api.llama_decode(self._context, self._batch) != 0:
            raise SystemExit("llama_decode failed")
        self._batch.n_tokens = 0
        shape = (self._vocab_size,)
        logits = (self._api.llama_get_logits_ith(self._context, place) for place in places)
        return [int(np.argmax(np.ctypeslib.as_array(row, shape))) for row in logits]


serve(load)
