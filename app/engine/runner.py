"""What the engine asks of a device: two small protocols, and the results.

Whoever implements them owns the arrays; the TensorFlow runners do, and so does
the hand-computable one of `stub`. Calls block, and arrive one at a time on the
device's own thread.
"""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from app.engine.scheduler import Step
from app.engine.sequence import Grammar, Token
from app.engine.shapes import Shapes

# What callers are told then, and after any other end of an engine's loop.
LOST = "The accelerator failed; the engine restarts."
CLOSED = "The engine is shutting down."
# A call that takes longer never ends, as far as anybody can tell. Several times what the largest
# takes on a slow machine, other models' turns before it and a pause of the process included.
LOST_AFTER_S = 300.0
NO_GRAMMARS = "This model follows no grammar."


class DeviceLost(Exception):
    """The accelerator cannot be used any more by this process."""


@dataclass(frozen=True, slots=True)
class Result:
    """What a step gave.

    Attributes:
        tokens: for each sequence of the step those that were sampled, none after an inner
            prompt chunk.
        prompt_tokens: of a part whose sequence asked for it: the tokens
            `prompt[start + 1 : end + 1]` with their log-probabilities.
        device_s: seconds that the device was busy with it.
    """

    tokens: tuple[tuple[Token, ...], ...] = ()
    prompt_tokens: tuple[Token, ...] = ()
    device_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Vectors:
    """What an encoder says of each text, scores of the labels or an embedding `[B][F]`, and the seconds it took."""

    rows: tuple[tuple[float, ...], ...]
    device_s: float = 0.0


class Runner(Protocol):
    """A generation model on a device."""

    vocab_size: int
    context_length: int

    @property
    def shapes(self) -> Shapes:
        """Of its calls; may narrow while it warms up."""
        ...

    @property
    def compilations(self) -> int:
        """Compilations since `warm_up` ended; anything but 0 is a fault."""
        ...

    def warm_up(self) -> None:
        """Compile every shape that will ever be asked for."""
        ...

    def prepare(self, grammar: Grammar) -> object:
        """Make a grammar ready for the requests that have it; called on any thread but the device's.

        It stays ready for as long as what is returned, which can be referred to weakly, is kept.

        Raises:
            BadRequest: it is wrong, or this model follows none.
        """
        ...

    def run(self, step: Step) -> Result:
        """Do one step.

        Raises:
            DeviceLost: this process cannot go on.
        """
        ...


@runtime_checkable
class Encoder(Protocol):
    """A model that reads a text in one pass, to classify or to embed it, on a device."""

    max_length: int
    vocab_size: int

    @property
    def compilations(self) -> int:
        """Compilations since `warm_up` ended; anything but 0 is a fault."""
        ...

    def warm_up(self) -> None:
        """Compile every shape that will ever be asked for."""
        ...

    def bucket(self, length: int) -> int:
        """Which texts go together: those of one bucket."""
        ...

    def num_to_take(self, bucket: int, num_waiting: int) -> int:
        """How many of at least one waiting texts of a bucket go next."""
        ...

    def encode(self, texts: list[tuple[int, ...]]) -> Vectors:
        """Read texts of 1 to `max_length` tokens, of one bucket, as many as `num_to_take` said.

        Raises:
            DeviceLost: this process cannot go on.
        """
        ...
