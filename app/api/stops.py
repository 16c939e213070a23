"""Text of a growing answer, released only once it is certain.

``StopMatcher`` works on text: it holds back what may still become a stop string.
``TextAssembler`` feeds it token by token and pairs each piece of released text with
the tokens that it completes, so that exactly what was shown is counted.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from app.rpc import engine_pb2 as pb


class Detokenizer(Protocol):
    """Turns token ids into whole characters."""

    def push(self, token_id: int) -> str:
        """Text that became certain with this token."""
        ...

    def push_all(self, token_ids: Sequence[int]) -> str:
        """Text of several tokens; empty, and none is added, unless the last of them makes all certain."""
        ...

    def flush(self) -> str:
        """What is left at the end."""
        ...


@dataclass(frozen=True, slots=True)
class Token:
    """One token of an answer.

    Attributes:
        offset: Where its text starts, in characters of the answer.
        score: Its log-probability and alternatives, if asked for.
    """

    id: int
    offset: int
    score: pb.TokenLogprob | None


@dataclass(frozen=True, slots=True)
class Piece:
    """Text that is certain, and the tokens that it completes."""

    text: str
    tokens: tuple[Token, ...]


class StopMatcher:
    """Finds the stop string that ends first, however the text is cut into pieces."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._beginnings = frozenset(stop[:1] for stop in stops)
        self._held = ""
        self.is_stopped = False

    @property
    def can_stop(self) -> bool:
        """Whether there are stop strings at all."""
        return bool(self._stops)

    def push(self, text: str) -> str:
        """Adds text; returns what is certain to stay in the answer.

        Sets ``is_stopped`` when a stop string is complete; the text before it is
        returned, it and what follows is dropped.
        """
        if not self._held and self._beginnings.isdisjoint(text):
            return text  # by far the most: nothing here can begin a stop string
        self._held += text
        ends = [(at + len(stop), at) for stop in self._stops if (at := self._held.find(stop)) >= 0]
        if ends:
            # The one that ends first would have ended the answer at that character,
            # whatever came after; of two that end together the longer one started it.
            self.is_stopped = True
            return self._release(min(ends)[1], drop_rest=True)
        return self._release(len(self._held) - self._num_undecided())

    def flush(self) -> str:
        """The text held back, at the end of an answer without a stop string."""
        return self._release(len(self._held))

    def _release(self, end: int, *, drop_rest: bool = False) -> str:
        certain, self._held = self._held[:end], "" if drop_rest else self._held[end:]
        return certain

    def _num_undecided(self) -> int:
        """Length of the longest end of the held text that begins a stop string."""
        longest = min(len(self._held), max((len(stop) for stop in self._stops), default=1) - 1)
        for length in range(longest, 0, -1):
            if any(stop.startswith(self._held[-length:]) for stop in self._stops):
                return length
        return 0


class TextAssembler:
    """Tokens in, certain text out, for one answer.

    Args:
        detokenizer: Of the answer.
        stops: Strings that end it.
        min_tokens: The text of so many tokens is certain whatever it says.
    """

    def __init__(self, detokenizer: Detokenizer, stops: Sequence[str], min_tokens: int = 0) -> None:
        self._detokenizer = detokenizer
        self._matcher = StopMatcher(stops)
        self._num_exempt = min_tokens
        self._num_characters = 0
        self._num_released = 0
        # Tokens not shown yet, each with the end of its text.
        self._waiting: deque[tuple[int, Token]] = deque()

    @property
    def is_stopped(self) -> bool:
        """Whether a stop string ended the answer."""
        return self._matcher.is_stopped

    def push_all(
        self, token_ids: Sequence[int], scores: Sequence[pb.TokenLogprob] = (), *, is_last: bool = False
    ) -> Piece:
        """Adds tokens that came together; the same as one after the other, and sooner done.

        Tokens behind a complete stop string are dropped.

        Args:
            token_ids: In order.
            scores: One for each, or none at all; without them tokens have no offsets of their own.
            is_last: The engine's output ends here, so the rest is certain as well.
        """
        pieces = [*self._pieces(token_ids, scores, is_last=is_last)]
        if len(pieces) == 1:
            return pieces[0]
        return Piece(
            "".join(piece.text for piece in pieces), tuple(token for piece in pieces for token in piece.tokens)
        )

    def push(self, token_id: int, score: pb.TokenLogprob | None = None) -> Piece:
        """Adds a token; the piece may be empty.

        The token that completes a stop string is part of the last piece, with all
        before it: they were needed to know that the answer ends here.
        """
        text = self._detokenizer.push(token_id)
        offset = self._num_characters
        self._num_characters += len(text)
        # Without text of its own it is part of a character that is not whole yet.
        end = self._num_characters if text else self._num_characters + 1
        self._waiting.append((end, Token(token_id, offset, score)))
        if self._num_exempt:
            self._num_exempt -= 1
            return self._piece(text, is_last=False)
        return self._piece(self._matcher.push(text), is_last=self.is_stopped)

    def flush(self) -> Piece:
        """The rest, at the end of the engine's output."""
        text = self._matcher.push(self._detokenizer.flush())
        if not self.is_stopped:
            text += self._matcher.flush()
        return self._piece(text, is_last=True)

    def _pieces(self, token_ids: Sequence[int], scores: Sequence[pb.TokenLogprob], *, is_last: bool) -> Iterator[Piece]:
        at_once = None if scores else self._at_once(token_ids)
        if at_once is not None:
            yield at_once
        else:
            for at, token_id in enumerate(token_ids):
                yield self.push(token_id, scores[at] if scores else None)
                if self.is_stopped:
                    return
        if is_last:
            yield self.flush()

    def _at_once(self, token_ids: Sequence[int]) -> Piece | None:
        """All of the tokens in one piece, where nothing of them has to be held back."""
        if len(token_ids) < 2 or self._matcher.can_stop:
            return None
        text = self._detokenizer.push_all(token_ids)
        if not text:
            return None
        shown = [token for _, token in self._waiting]
        shown += [Token(token_id, self._num_characters, None) for token_id in token_ids]
        self._waiting.clear()
        self._num_characters += len(text)
        self._num_released += len(text)
        return Piece(text, tuple(shown))

    def _piece(self, text: str, *, is_last: bool) -> Piece:
        self._num_released += len(text)
        shown = []
        while self._waiting and (is_last or self._waiting[0][0] <= self._num_released):
            shown.append(self._waiting.popleft()[1])
        return Piece(text, tuple(shown))
