"""The models behind the names: cards and tokenizers of the models directory.

The directory is read again at most every ten seconds, aside and swapped in whole,
so a published or switched-off model is seen without a restart and no request ever
meets half a list. A tokenizer is loaded once per version of its model.
"""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from app.errors import BadRequest, ContextLengthExceeded
from app.modeling.registry import ModelCard, Registry
from app.modeling.tokenizer import Tokenizer
from app.settlements import Kind

_MAX_AGE_S = 10.0
# Below this, encoding takes less than a hand-over to a thread.
_INLINE_CHARACTERS = 4_000
# No vocabulary that is known has longer ones. What cannot fit is refused unread: reading four
# megabytes takes seconds, and a refusal costs its caller nothing.
_LONGEST_TOKEN_CHARACTERS = 128
_KINDS: dict[str, Kind] = {
    "generation": "generation",
    "classification": "classification",
    "embedding": "embedding",
}
_ROUTES: dict[str, str] = {
    "generation": "/v1/completions or /v1/chat/completions",
    "classification": "/v1/classifications",
    "embedding": "/v1/embeddings",
}


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A model that may be called, with the tokenizer of exactly its version."""

    card: ModelCard
    tokenizer: Tokenizer

    @property
    def fingerprint(self) -> str:
        """OpenAI's ``system_fingerprint``: changes when the model does."""
        return f"fp_{self.card.digest[:12]}"

    async def encode(self, text: str, param: str) -> list[int]:
        """Token ids of ``text``; a long one does not hold up other requests.

        Args:
            text: Of the caller.
            param: Its name, for errors.

        Raises:
            ContextLengthExceeded: It is too long for the model whatever its tokens are.
        """
        self._require_room(len(text), param)
        if len(text) <= _INLINE_CHARACTERS:
            return self.tokenizer.encode(text)
        return await asyncio.to_thread(self.tokenizer.encode, text)

    async def encode_chat(self, messages: list[dict[str, str]]) -> list[int]:
        """Token ids of a conversation, ready for the assistant's turn.

        Raises:
            BadRequest: The model's template refuses the conversation.
            ContextLengthExceeded: It is too long for the model whatever its tokens are.
        """
        num_characters = sum(len(message["content"]) for message in messages)
        self._require_room(num_characters, "messages")
        if num_characters <= _INLINE_CHARACTERS:
            return self.tokenizer.encode_chat(messages)
        return await asyncio.to_thread(self.tokenizer.encode_chat, messages)

    def _require_room(self, num_characters: int, param: str) -> None:
        longest = self.card.context_length * _LONGEST_TOKEN_CHARACTERS
        if num_characters > longest:
            raise ContextLengthExceeded(
                f"This model's maximum context length is {self.card.context_length} tokens, which"
                f" {num_characters:,} characters cannot fit. Please shorten the request.",
                param=param,
            )


def kind_of(card: ModelCard) -> Kind:
    """What the model does, as usage rows and prices name it."""
    return _KINDS[card.kind]


class ServedModels:
    """The models directory as the API sees it.

    Args:
        models_dir: Hugging Face directories.
        clock: Monotonic seconds.
    """

    def __init__(self, models_dir: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._models_dir = models_dir
        self._clock = clock
        self._registry = Registry(models_dir)
        self._read_at = clock()
        self._reading = asyncio.Lock()
        self._tokenizers: dict[str, Tokenizer] = {}

    async def list(self) -> list[ModelCard]:
        """Every model that is switched on, by name."""
        await self._refresh()
        return [card for card in self._registry.list() if card.enabled]

    async def card(self, name: str) -> ModelCard:
        """One model that is switched on.

        Raises:
            NotFound: There is none of this name.
        """
        await self._refresh()
        return self._registry.get(name)

    async def get(self, name: str, kind: Kind) -> ServedModel:
        """A model for work of ``kind``.

        Raises:
            NotFound: There is none of this name.
            BadRequest: It does other work.
        """
        card = await self.card(name)
        if kind_of(card) != kind:
            raise BadRequest(
                f"'{name}' is for {card.kind}; use it with {_ROUTES[card.kind]}.",
                param="model",
                code="wrong_model_kind",
            )
        tokenizer = self._tokenizers.get(card.digest)
        if tokenizer is None:
            tokenizer = await asyncio.to_thread(Tokenizer.load, card.path)
            self._tokenizers[card.digest] = tokenizer
        return ServedModel(card, tokenizer)

    async def _refresh(self) -> None:
        if self._clock() - self._read_at < _MAX_AGE_S:
            return
        async with self._reading:
            if self._clock() - self._read_at < _MAX_AGE_S:
                return
            self._registry = await asyncio.to_thread(Registry, self._models_dir)
            self._read_at = self._clock()
            digests = {card.digest for card in self._registry.list()}
            self._tokenizers = {d: tokenizer for d, tokenizer in self._tokenizers.items() if d in digests}
