"""What is asked, and when: prompts and lengths drawn from a seed, and the arrivals of an open loop.

Prompts are token ids, so that lengths are exact whatever the tokenizer. No two are
alike within a seed, so a cache of prefixes gains nothing unless one is asked for.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass

from app.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Lengths:
    """A length in tokens, fixed or uniform between two bounds, both included."""

    low: int
    high: int

    @classmethod
    def parse(cls, text: str, smallest: int = 1) -> "Lengths":
        """``128``, or ``16:512``.

        Raises:
            ConfigError: It is neither, or is below ``smallest``.
        """
        low, _, high = text.partition(":")
        if not (low.isascii() and low.isdigit() and (not high or (high.isascii() and high.isdigit()))):
            raise ConfigError(f"a length is a number of tokens, or two with a colon between them, not {text!r}")
        lengths = cls(int(low), int(high or low))
        if not smallest <= lengths.low <= lengths.high:
            raise ConfigError(f"lengths {text!r} must rise and begin at {smallest} or above")
        return lengths

    @classmethod
    def of(cls, length: int) -> "Lengths":
        """Always the same."""
        return cls(length, length)

    def draw(self, rng: random.Random) -> int:
        """One length."""
        return rng.randint(self.low, self.high)


@dataclass(frozen=True, slots=True)
class Prompt:
    """One request to be: token ids, and how many tokens it asks for."""

    tokens: tuple[int, ...]
    max_tokens: int


def prompts(
    seed: int, input_len: Lengths, output_len: Lengths, vocab_size: int, shared_prefix: int = 0
) -> Iterator[Prompt]:
    """Requests without end; the same seed gives the same.

    Args:
        seed: Of everything drawn.
        input_len: Of prompts.
        output_len: Of answers.
        vocab_size: Token ids lie below it.
        shared_prefix: So many first tokens are the same in every prompt.
    """
    rng = random.Random(seed)  # noqa: S311 - a workload, not a secret
    prefix = [rng.randrange(vocab_size) for _ in range(shared_prefix)]
    while True:
        length = input_len.draw(rng)
        tokens = (prefix + [rng.randrange(vocab_size) for _ in range(length - len(prefix))])[:length]
        yield Prompt(tuple(tokens), output_len.draw(rng))


def poisson_arrivals(seed: int, rate: float) -> Iterator[float]:
    """When requests come that know nothing of each other: seconds from the start, rising, without end.

    Args:
        seed: Of the gaps.
        rate: Mean arrivals a second.
    """
    rng = random.Random(seed)  # noqa: S311 - a workload, not a secret
    at_s = 0.0
    while True:
        at_s += rng.expovariate(rate)
        yield at_s
