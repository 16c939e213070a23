"""What is added to the logits of each row: logit bias, penalties, and what must not come next.

End tokens are forbidden before `min_tokens`, and whatever would leave a grammar at
any time. Kept on the host, as few requests use any of it: while no row does, the
device adds one constant array of zeros. Letters: `B` rows, `V` vocabulary.
"""

from dataclasses import dataclass, field, replace

import numpy as np

from app.engine.grammar import Grammars, Matcher
from app.engine.sequence import Request, Token
from app.telemetry import get_logger

log = get_logger(__name__)

# As the sampler's: below every finite logit, and finite itself.
FORBIDDEN = np.float32(-1e30)


@dataclass(slots=True)
class _Row:
    """One biased row.

    Attributes:
        plain: `[V]` float32, logit bias and penalties: the row without what is forbidden.
        ends: token ids that end the sequence.
        is_end_banned: fewer tokens than `min_tokens` are there.
    """

    request: Request
    plain: np.ndarray
    ends: list[int]
    matcher: Matcher | None
    is_end_banned: bool
    seen: set[int] = field(default_factory=set)


class Bias:
    """The additive rows `[B, V]` float32 of a batch, by slot.

    Args:
        num_slots: `B`.
        vocab_size: `V`.
        grammars: of the model; without it no request may have one.
    """

    def __init__(self, num_slots: int, vocab_size: int, grammars: Grammars | None = None) -> None:
        self._rows = np.zeros((num_slots, vocab_size), np.float32)
        self._biased: dict[int, _Row] = {}
        self._grammars = grammars

    @property
    def is_zero(self) -> bool:
        """Whether no row has any."""
        return not self._biased

    @property
    def rows(self) -> np.ndarray:
        """`[B, V]` float32; changes with the next call."""
        return self._rows

    def assign(self, slot: int, request: Request) -> None:
        """Set a slot's row for the first token of a new request."""
        self.clear(slot)
        sampling = request.sampling
        has_ban = request.min_tokens > 0 and bool(request.end_token_ids)
        if not (sampling.logit_bias or sampling.has_penalties or has_ban or request.grammar):
            return
        plain = np.zeros_like(self._rows[slot])
        for token, value in sampling.logit_bias.items():
            plain[token] = value
        matcher = None
        if request.grammar is not None:
            assert self._grammars is not None  # `Runner.prepare` refused it otherwise
            matcher = self._grammars.matcher(request.grammar)
        self._biased[slot] = _Row(request, plain, sorted(request.end_token_ids), matcher, has_ban)
        self._write(slot)

    def advance(self, slot: int, token: Token) -> Token:
        """Follow a slot's grammar by the token just drawn, and say so where the answer ends with it."""
        row = self._biased.get(slot)
        if row is None or row.matcher is None:
            return token
        if token.id in row.request.end_token_ids:
            return replace(token, finish_reason="stop" if row.matcher.is_complete else "length")
        row.matcher.take(token.id)
        if row.matcher.is_lost:
            # A vocabulary without the only character that could follow, or a limit.
            log.warning("grammar.lost", request_id=row.request.request_id)
            return replace(token, finish_reason="length")
        return replace(token, finish_reason="stop") if row.matcher.is_over else token

    def observe(self, slot: int, token: int, num_tokens: int) -> None:
        """Take in the newest of `num_tokens` generated tokens, before the next is drawn."""
        row = self._biased.get(slot)
        if row is None:
            return
        sampling = row.request.sampling
        if sampling.has_penalties:
            is_new = token not in row.seen
            row.seen.add(token)
            row.plain[token] -= sampling.frequency_penalty + is_new * sampling.presence_penalty
        is_ban_over = row.is_end_banned and num_tokens >= row.request.min_tokens
        row.is_end_banned &= not is_ban_over
        if sampling.has_penalties or is_ban_over or row.matcher is not None:
            self._write(slot)

    def move(self, source: int, target: int) -> None:
        """Follow a sequence to another slot."""
        self.clear(target)
        row = self._biased.pop(source, None)
        if row is not None:
            self._biased[target] = row
            self._rows[target], self._rows[source] = self._rows[source], 0

    def keep(self, slots: set[int]) -> None:
        """Clear every row but these: their sequences ended."""
        for slot in self._biased.keys() - slots:
            self.clear(slot)

    def clear(self, slot: int) -> None:
        """Make a slot's row zero."""
        if self._biased.pop(slot, None) is not None:
            self._rows[slot] = 0

    def _write(self, slot: int) -> None:
        row = self._biased[slot]
        if row.matcher is None:
            self._rows[slot] = row.plain
            if row.is_end_banned:
                self._rows[slot, row.ends] = FORBIDDEN
        else:
            self._rows[slot] = np.where(_allowed(row, row.matcher), row.plain, FORBIDDEN)


def _allowed(row: _Row, matcher: Matcher) -> np.ndarray:
    """`[V]` bool: what may come next of a grammar, and where it may end the ends."""
    allowed = matcher.allowed.copy()
    # One that is text as well may come as either.
    allowed[row.ends] |= matcher.is_complete
    if row.is_end_banned:
        without_ends = allowed.copy()
        without_ends[row.ends] = False
        # Where nothing else can follow, an end is better than what leaves the grammar.
        return without_ends if without_ends.any() else allowed
    return allowed
