"""POST /v1/completions: a prompt is continued."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from fastapi import APIRouter, Response

from app.api.answers import Choice, StreamedAnswer, WholeAnswer, Work
from app.api.call import Call, RequiredCall
from app.api.completion_schemas import Completion, CompletionBody, CompletionChoice, CompletionLogprobs
from app.api.generation import (
    Delta,
    FinishReason,
    Generation,
    SequenceSpec,
    draw_seed,
    engine_request,
    fit_output,
    seeds,
    within_budget,
)
from app.api.generation_schemas import MAX_SEQUENCES, Usage
from app.api.logprobs import completion_logprobs, scored_prompt
from app.api.openapi import body_of, responses
from app.api.parameters import replayable
from app.api.served import ServedModel
from app.api.stops import Token
from app.errors import BadRequest
from app.rpc import engine_pb2 as pb

DEFAULT_MAX_TOKENS = 16
"""OpenAI's default for text completions."""

router = APIRouter(tags=["generation"])


@dataclass(frozen=True, slots=True)
class Prompt:
    """One prompt as ids, and as the text that ``echo`` shows."""

    ids: list[int]
    text: str


@router.post("/v1/completions", **body_of(CompletionBody), **responses(Completion, streams=True))
async def create_completion(call: RequiredCall) -> Response:
    """Continues one or several prompts; streamed with `"stream": true`."""
    call.key.require("generation")
    body = await call.body(CompletionBody)
    served = await call.model(body.model, "generation")
    prompts = await _prompts(body, served)
    seed = draw_seed() if body.seed is None else body.seed
    specs = _specs(call, body, served, prompts, seed)
    num_input = sum(len(prompt.ids) for prompt in prompts)
    specs, budget = await within_budget(call, served, num_input, specs)
    work = Work(
        generation=Generation(call.services.engine, specs, call.timeout_s),
        renderer=CompletionRenderer(call, body, served, prompts),
        meter=call.meter(served, "generation", num_input, replayable(body, seed)),
        budget=budget,
        num_prompts=len(prompts),
        num_choices=body.num_choices,
        num_candidates=body.num_candidates,
        has_grammar=bool(body.grammar_params),
    )
    if body.stream:
        return StreamedAnswer(work, call.services.settings.stream_keepalive_s)
    return WholeAnswer(work)


class CompletionRenderer:
    """Text completions on the wire; with ``echo`` each choice begins with its prompt."""

    def __init__(self, call: Call, body: CompletionBody, served: ServedModel, prompts: Sequence[Prompt]) -> None:
        self._id = f"cmpl-{call.id.hex}"
        self._created = int(call.started_at.timestamp())
        self._body = body
        self._served = served
        self._prompts = prompts
        self._echoed: set[int] = set()

    def whole(self, choices: Sequence[Choice], usage: Usage) -> Completion:
        """The JSON answer."""
        rendered = [
            self._choice(c.index, c.text, c.tokens, c.prompt_scores, c.finish_reason, is_first=True) for c in choices
        ]
        return self._completion(rendered, usage=usage)

    def opening(self) -> Iterable[Completion]:
        """Nothing: the first text opens the stream."""
        return ()

    def chunk(self, delta: Delta) -> Completion:
        """The event of a delta."""
        is_first = delta.choice not in self._echoed
        self._echoed.add(delta.choice)
        piece = delta.piece
        choice = self._choice(
            delta.choice, piece.text, piece.tokens, delta.prompt_scores, delta.finish_reason, is_first=is_first
        )
        if self._body.wants_usage_chunk:
            return self._completion([choice], usage=None)
        return self._completion([choice])

    def closing(self, usage: Usage) -> Completion | None:
        """The chunk of usage."""
        return self._completion([], usage=usage) if self._body.wants_usage_chunk else None

    def _completion(self, choices: list[CompletionChoice], **usage: Usage | None) -> Completion:
        return Completion(
            id=self._id,
            object="text_completion",
            created=self._created,
            model=self._served.card.name,
            system_fingerprint=self._served.fingerprint,
            choices=choices,
            **usage,
        )

    def _choice(
        self,
        index: int,
        text: str,
        tokens: Sequence[Token],
        prompt_scores: Sequence[pb.TokenLogprob],
        finish_reason: FinishReason | None,
        *,
        is_first: bool,
    ) -> CompletionChoice:
        prompt = self._prompts[index // self._body.num_choices]
        echo = prompt if self._body.echo else None
        logprobs = None
        if self._body.logprobs is not None:
            logprobs = self._logprobs(tokens, echo, prompt_scores, is_first=is_first)
        return CompletionChoice(
            text=(echo.text if echo and is_first else "") + text,
            index=index,
            logprobs=logprobs,
            finish_reason=finish_reason,
        )

    def _logprobs(
        self, tokens: Sequence[Token], echo: Prompt | None, prompt_scores: Sequence[pb.TokenLogprob], *, is_first: bool
    ) -> CompletionLogprobs:
        tokenizer, shift = self._served.tokenizer, len(echo.text) if echo else 0
        scored = scored_prompt(tokenizer, echo.ids, prompt_scores) if echo and is_first else []
        return completion_logprobs(tokenizer, [*scored, *(replace(t, offset=shift + t.offset) for t in tokens)])


async def _prompts(body: CompletionBody, served: ServedModel) -> list[Prompt]:
    """The request's prompts, from text or from ids."""
    given = body.prompt
    if isinstance(given, str):
        return [Prompt(await served.encode(given, "prompt"), given)]
    prompts = []
    ids: list[int] = []
    for part in given:
        if isinstance(part, int):
            ids.append(part)
        elif isinstance(part, str):
            prompts.append(Prompt(await served.encode(part, "prompt"), part))
        else:
            prompts.append(Prompt(part, served.tokenizer.decode(part) if body.echo else ""))
    if ids:
        return [Prompt(ids, served.tokenizer.decode(ids) if body.echo else "")]
    return prompts


def _specs(
    call: Call, body: CompletionBody, served: ServedModel, prompts: Sequence[Prompt], seed: int
) -> list[SequenceSpec]:
    if len(prompts) * body.num_candidates > MAX_SEQUENCES:
        raise BadRequest(f"A request may ask for at most {MAX_SEQUENCES} sequences (prompts x choices).", param="n")
    specs = list[SequenceSpec]()
    # A prompt that is sent twice wants two answers.
    own_seeds = iter(seeds(seed, len(prompts) * body.num_candidates))
    grammar_param = next(iter(body.grammar_params), None)
    for prompt in prompts:
        max_tokens = fit_output(served, len(prompt.ids), body.max_tokens, DEFAULT_MAX_TOKENS, "prompt")
        for _ in range(body.num_candidates):
            request = engine_request(call, body, served, prompt.ids, max_tokens, next(own_seeds))
            _ask_for_scores(request, body)
            specs.append(SequenceSpec(len(specs), served, request, body.stops, max_tokens, grammar_param))
    return specs


def _ask_for_scores(request: pb.GenerateRequest, body: CompletionBody) -> None:
    if body.logprobs is not None:
        request.logprobs = body.logprobs
        request.prompt_logprobs = bool(body.echo)
    elif body.num_candidates > body.num_choices:
        request.logprobs = 0  # to rank the candidates
