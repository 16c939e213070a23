"""What is added to the logits of each row: logit bias, penalties, forbidden end tokens.

Kept on the host, as few requests use any of it: while no row does, the device
adds one constant array of zeros. Letters: `B` rows, `V` vocabulary.
"""

import numpy as np

from app.engine.sequence import Request

# As the sampler's: below every finite logit, and finite itself.
FORBIDDEN = np.float32(-1e30)


class Bias:
    """The additive rows `[B, V]` float32 of a batch, by slot."""

    def __init__(self, num_slots: int, vocab_size: int) -> None:
        self._rows = np.zeros((num_slots, vocab_size), np.float32)
        self._biased: dict[int, Request] = {}
        self._seen: dict[int, set[int]] = {}
        self._banned: dict[int, np.ndarray] = {}

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
        has_ban = request.min_tokens > 0 and request.end_token_ids
        if not (sampling.logit_bias or sampling.has_penalties or has_ban):
            return
        self._biased[slot], self._seen[slot] = request, set()
        row = self._rows[slot]
        for token, value in sampling.logit_bias.items():
            row[token] = value
        if has_ban:
            banned = sorted(request.end_token_ids)
            self._banned[slot] = row[banned].copy()
            row[banned] = FORBIDDEN

    def observe(self, slot: int, token: int, num_tokens: int) -> None:
        """Take in the newest of `num_tokens` generated tokens, before the next is drawn."""
        request = self._biased.get(slot)
        if request is None:
            return
        if request.sampling.has_penalties:
            is_new = token not in self._seen[slot]
            self._seen[slot].add(token)
            self._rows[slot, token] -= request.sampling.frequency_penalty + is_new * request.sampling.presence_penalty
        if num_tokens >= request.min_tokens and slot in self._banned:
            self._rows[slot, sorted(request.end_token_ids)] = self._banned.pop(slot)

    def keep(self, slots: set[int]) -> None:
        """Clear every row but these: their sequences ended."""
        for slot in self._biased.keys() - slots:
            self.clear(slot)

    def clear(self, slot: int) -> None:
        """Make a slot's row zero."""
        if self._biased.pop(slot, None) is not None:
            self._rows[slot] = 0
            self._banned.pop(slot, None)
