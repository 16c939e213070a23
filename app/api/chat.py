"""POST /v1/chat/completions: a conversation is continued by the assistant.

The conversation becomes a prompt through the model's own chat template. A model
without one gets the plain template of ``app.modeling.tokenizer``: each turn as
``role: content`` and a blank line, then ``assistant:``.
"""

from collections.abc import Iterable, Sequence

from fastapi import APIRouter, Response

from app.api.answers import Choice, StreamedAnswer, WholeAnswer, Work
from app.api.call import Call, RequiredCall
from app.api.chat_schemas import (
    AssistantMessage,
    ChatBody,
    ChatChoice,
    ChatChunk,
    ChatChunkChoice,
    ChatCompletion,
    ChatDelta,
    ChatLogprobs,
    TokenLogprob,
    TopLogprob,
)
from app.api.generation import (
    Delta,
    Generation,
    SequenceSpec,
    draw_seed,
    engine_request,
    fit_output,
    seeds,
    within_budget,
)
from app.api.generation_schemas import Usage
from app.api.logprobs import finite
from app.api.openapi import body_of, responses
from app.api.parameters import replayable
from app.api.served import ServedModel
from app.api.stops import Token

router = APIRouter(tags=["generation"])


@router.post("/v1/chat/completions", **body_of(ChatBody), **responses(ChatCompletion, streams=True))
async def create_chat_completion(call: RequiredCall) -> Response:
    """Answers a conversation; streamed with `"stream": true`."""
    call.key.require("generation")
    body = await call.body(ChatBody)
    served = await call.model(body.model, "generation")
    prompt = await served.encode_chat(_messages(body))
    seed = draw_seed() if body.seed is None else body.seed
    specs = _specs(call, body, served, prompt, seed)
    specs, budget = await within_budget(call, served, len(prompt), specs)
    work = Work(
        generation=Generation(call.services.engine, specs, call.timeout_s),
        renderer=ChatRenderer(call, body, served),
        meter=call.meter(served, "generation", len(prompt), replayable(body, seed)),
        budget=budget,
        num_prompts=1,
        num_choices=body.num_choices,
        num_candidates=body.num_choices,
    )
    if body.stream:
        return StreamedAnswer(work, call.services.settings.stream_keepalive_s)
    return WholeAnswer(work)


class ChatRenderer:
    """Chat completions on the wire."""

    def __init__(self, call: Call, body: ChatBody, served: ServedModel) -> None:
        self._id = f"chatcmpl-{call.id.hex}"
        self._created = int(call.started_at.timestamp())
        self._body = body
        self._served = served

    def whole(self, choices: Sequence[Choice], usage: Usage) -> ChatCompletion:
        """The JSON answer."""
        rendered = [
            ChatChoice(
                index=choice.index,
                message=AssistantMessage(role="assistant", content=choice.text, refusal=None),
                logprobs=self._logprobs(choice.tokens),
                finish_reason=choice.finish_reason,
            )
            for choice in choices
        ]
        return ChatCompletion(
            id=self._id,
            object="chat.completion",
            created=self._created,
            model=self._served.card.name,
            system_fingerprint=self._served.fingerprint,
            choices=rendered,
            usage=usage,
        )

    def opening(self) -> Iterable[ChatChunk]:
        """One chunk per choice that names the role."""
        delta = ChatDelta(role="assistant", content="", refusal=None)
        for index in range(self._body.num_choices):
            yield self._text_chunk(ChatChunkChoice(index=index, delta=delta, logprobs=None, finish_reason=None))

    def chunk(self, delta: Delta) -> ChatChunk:
        """The event of a delta."""
        piece = delta.piece
        return self._text_chunk(
            ChatChunkChoice(
                index=delta.choice,
                delta=ChatDelta(content=piece.text) if piece.text or piece.tokens else ChatDelta(),
                logprobs=self._logprobs(piece.tokens),
                finish_reason=delta.finish_reason,
            )
        )

    def closing(self, usage: Usage) -> ChatChunk | None:
        """The chunk of usage."""
        return self._chunk([], usage=usage) if self._body.wants_usage_chunk else None

    def _text_chunk(self, choice: ChatChunkChoice) -> ChatChunk:
        # With a chunk of usage to come, every other chunk says `"usage": null`.
        return self._chunk([choice], usage=None) if self._body.wants_usage_chunk else self._chunk([choice])

    def _chunk(self, choices: list[ChatChunkChoice], **usage: Usage | None) -> ChatChunk:
        return ChatChunk(
            id=self._id,
            object="chat.completion.chunk",
            created=self._created,
            model=self._served.card.name,
            system_fingerprint=self._served.fingerprint,
            choices=choices,
            **usage,
        )

    def _logprobs(self, tokens: Sequence[Token]) -> ChatLogprobs | None:
        if not self._body.logprobs:
            return None
        return ChatLogprobs(content=[self._token(token) for token in tokens], refusal=None)

    def _token(self, token: Token) -> TokenLogprob:
        score = token.score
        assert score is not None  # asked for whenever it is shown
        tops = zip(score.top_tokens, score.top_logprobs, strict=True)
        best = self._top(token.id, score.logprob)
        return TokenLogprob(
            token=best.token,
            bytes=best.bytes,
            logprob=best.logprob,
            top_logprobs=[self._top(token_id, logprob) for token_id, logprob in tops],
        )

    def _top(self, token_id: int, logprob: float) -> TopLogprob:
        raw = self._served.tokenizer.token_bytes(token_id)
        return TopLogprob(token=raw.decode("utf-8", "replace"), bytes=list(raw), logprob=finite(logprob))


def _messages(body: ChatBody) -> list[dict[str, str]]:
    """The turns as chat templates expect them."""
    messages = []
    for message in body.messages:
        role = "system" if message.role == "developer" else message.role
        turn = {"role": role, "content": message.text}
        messages.append(turn if message.name is None else turn | {"name": message.name})
    return messages


def _specs(call: Call, body: ChatBody, served: ServedModel, prompt: list[int], seed: int) -> list[SequenceSpec]:
    max_tokens = fit_output(served, len(prompt), body.max_output, None, "messages")
    grammar_param = next(iter(body.grammar_params), None)
    specs = list[SequenceSpec]()
    for choice, choice_seed in enumerate(seeds(seed, body.num_choices)):
        request = engine_request(call, body, served, prompt, max_tokens, choice_seed)
        if body.logprobs:
            request.logprobs = body.top_logprobs or 0
        specs.append(SequenceSpec(choice, served, request, body.stops, max_tokens, grammar_param))
    return specs
