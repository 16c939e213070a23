"""Which tokens may come next, so that an answer follows its grammar.

A grammar is compiled once for a model's tokens and kept while a request has it, and a
few of them longer; each sequence walks along a copy of it. The work is llguidance's (an
Earley parser over lexemes, in Rust); this file gives it the model's tokens as bytes,
bounds what it may spend, and turns what it says into a row of the vocabulary.

Compiling takes a millisecond, at worst half a second, without Python's lock: call
`Grammars.prepare` off the event loop and off the device's thread. A mask takes
microseconds to some milliseconds, by the size of the vocabulary, so the device's thread
computes it between two steps. Work is counted, not timed: the limits below end a
hostile grammar at the same point on any machine.

The end has an id of its own just behind the vocabulary: which tokens end a sequence
is the request's affair, and some models have none.

Letters: `V` vocabulary.
"""

import json
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

import llguidance
import numpy as np

from app.engine.sequence import Grammar
from app.errors import BadRequest
from app.modeling.registry import ModelCard
from app.modeling.tokenizer import Tokenizer

if TYPE_CHECKING:
    from llguidance._lib import JsonCompileOptions

# Kept beside those of requests under way.
MAX_COMPILED = 32
MAX_GRAMMAR_CHARACTERS = 65_536
MAX_REGEX_CHARACTERS = 4_096
MAX_CHOICES = 256
# The library's own, or tighter: a lexer state is 1 to 2 KB, and a step's fuel 5 to 10 ms.
LIMITS = llguidance.LLParserLimits(
    initial_lexer_fuel=1_000_000,
    step_lexer_fuel=100_000,
    step_max_items=20_000,
    max_lexer_states=20_000,
    max_grammar_size=100_000,
    verbose_errors=False,
)
# All of them, so that nothing that a schema says (`x-guidance`) changes any. One space at
# most between two lexemes: a small model left free writes spaces up to its budget.
JSON_OPTIONS: "JsonCompileOptions" = {
    "item_separator": ",",
    "key_separator": ":",
    "whitespace_pattern": " ?",
    "coerce_one_of": False,
    "lenient": False,
}
# Which param of the request is to blame; the API puts its own name in its place.
PARAM = "grammar"
# What the library tells its user, and what ours can do.
ONE_OF_ADVICE = (
    "oneOf constraints are not supported. Enable 'coerce_one_of' option to approximate oneOf with anyOf",
    "oneOf is followed where no two of its alternatives can both fit; otherwise use anyOf",
)
# How many tokens are joined in pairs to see that text is the tokens' bytes and no more.
NUM_JOINED = 8


class Matcher:
    """One sequence's way through its grammar; for one thread at a time."""

    def __init__(self, matcher: llguidance.LLMatcher, vocab_size: int) -> None:
        self._matcher = matcher
        self._allowed = np.zeros(vocab_size + 1, np.bool_)  # the last is the end
        self._look()

    @property
    def allowed(self) -> np.ndarray:
        """`[V]` bool: what may come next; changes with the next call."""
        return self._allowed[:-1]

    @property
    def is_complete(self) -> bool:
        """Whether the answer may end here."""
        return bool(self._allowed[-1])

    @property
    def is_over(self) -> bool:
        """Whether nothing can follow: the whole sentence is there, unless it `is_lost`."""
        return not self._allowed[:-1].any()

    @property
    def is_lost(self) -> bool:
        """Whether no way leads to a whole sentence; so it is, too, where a limit was hit."""
        return self.is_over and not self.is_complete

    def take(self, token: int) -> None:
        """Go on by one token."""
        self._matcher.consume_token(token)
        self._look()

    def _look(self) -> None:
        if self._matcher.is_stopped():
            self._allowed[:] = False
        else:
            bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
            self._allowed[:] = np.unpackbits(bits, count=len(self._allowed), bitorder="little")
        # Asked last, as an error shows with the mask only.
        is_lost = self._matcher.is_error()
        self._allowed[:-1] &= not is_lost
        self._allowed[-1] = not is_lost and self._matcher.is_accepting()


@dataclass(frozen=True, slots=True, weakref_slot=True, eq=False)
class Compiled:
    """A grammar that is ready to be followed, at its beginning."""

    start: llguidance.LLMatcher


class Grammars:
    """The compiled grammars of one model; safe to share between threads.

    Args:
        tokens: makes the bytes of each token; None where one stands for no text.
            Called once, with the first grammar.
    """

    def __init__(self, tokens: Callable[[], Sequence[bytes | None]]) -> None:
        self._make_tokens = tokens
        self._compiled: WeakValueDictionary[Grammar, Compiled] = WeakValueDictionary()
        self._newest: OrderedDict[Grammar, Compiled] = OrderedDict()
        self._lock = threading.Lock()
        self._compiling = threading.Lock()

    @classmethod
    def of(cls, card: ModelCard) -> "Grammars":
        """Those of a model's directory."""
        return cls(lambda: read_tokens(card))

    def prepare(self, grammar: Grammar) -> Compiled:
        """Compile a grammar unless it is there; blocks.

        Whoever keeps what this returns finds it ready in `matcher`, however many others come meanwhile.

        Raises:
            BadRequest: it is wrong, too large, or nothing that this model can write.
        """
        compiled = self._known(grammar)
        if compiled is None:
            # One at a time; nobody whose grammar is known waits for it.
            with self._compiling:
                compiled = self._known(grammar) or self._keep(grammar, self._compile(grammar))
        return compiled

    def matcher(self, grammar: Grammar) -> Matcher:
        """The beginning of a sentence.

        Raises:
            BadRequest: as `prepare`.
        """
        return Matcher(self.prepare(grammar).start.deep_copy(), self._vocabulary.size)

    def _known(self, grammar: Grammar) -> Compiled | None:
        with self._lock:
            compiled = self._compiled.get(grammar)
            return compiled and self._remember(grammar, compiled)

    def _keep(self, grammar: Grammar, compiled: Compiled) -> Compiled:
        with self._lock:
            return self._remember(grammar, compiled)

    def _remember(self, grammar: Grammar, compiled: Compiled) -> Compiled:
        """As the newest; with the lock."""
        self._compiled[grammar] = self._newest[grammar] = compiled
        self._newest.move_to_end(grammar)
        if len(self._newest) > MAX_COMPILED:
            self._newest.popitem(last=False)
        return compiled

    @cached_property
    def _vocabulary(self) -> "_Vocabulary":
        return _Vocabulary(self._make_tokens())

    @cached_property
    def _tokenizer(self) -> llguidance.LLTokenizer:
        return llguidance.LLTokenizer(llguidance.TokenizerWrapper(self._vocabulary))

    def _compile(self, grammar: Grammar) -> Compiled:
        _check_size(grammar)
        try:
            source = _SOURCES[grammar.kind](grammar)
        except ValueError as error:
            raise _refused(str(error)) from None
        compiled = llguidance.LLMatcher(self._tokenizer, source, log_level=0, limits=LIMITS)
        if compiled.is_error():
            raise _refused(compiled.get_error())
        start = Matcher(compiled.deep_copy(), self._vocabulary.size)
        if start.is_over:
            raise _refused("it allows no answer that this model can write")
        return Compiled(compiled)


class _Vocabulary:
    """A model's tokens the way llguidance asks for them."""

    bos_token_id = None

    def __init__(self, tokens: Sequence[bytes | None]) -> None:
        self.size = self.eos_token_id = len(tokens)
        self.tokens = [*(token or b"" for token in tokens), b""]
        self.special_token_ids = [i for i, token in enumerate(self.tokens) if not token]
        self._ids = {token: i for i, token in reversed([*enumerate(self.tokens)]) if token}
        self._longest = max(map(len, self._ids), default=0)

    def __call__(self, text: bytes | str) -> list[int]:
        """Tokens of a text that is the only one possible: always the longest that fits."""
        data = text.encode() if isinstance(text, str) else text
        ids = []
        at = 0
        while at < len(data):
            ends = range(min(len(data), at + self._longest), at, -1)
            token = next((data[at:end] for end in ends if data[at:end] in self._ids), None)
            if token is None:
                break
            ids.append(self._ids[token])
            at += len(token)
        return ids


def read_tokens(card: ModelCard) -> list[bytes | None]:
    """The bytes of each token of a model.

    Raises:
        BadRequest: its texts are not the bytes of their tokens one after the other.
    """
    tokenizer = Tokenizer.load(card.path)
    silent = tokenizer.special_token_ids.union(card.eos_token_ids)
    tokens = [None if i in silent else tokenizer.token_bytes(i) or None for i in range(card.vocab_size)]
    plain = [(i, token) for i, token in enumerate(tokens) if token and token.isalnum()][:NUM_JOINED]
    for (i, first), (j, second) in product(plain, plain):
        if not tokenizer.decode([i, i, j]).encode().endswith(first + second):
            raise BadRequest("This model's tokens do not join to texts plainly; it follows no grammar.", param=PARAM)
    return tokens


def _check_size(grammar: Grammar) -> None:
    longest = MAX_REGEX_CHARACTERS if grammar.kind == "regex" else MAX_GRAMMAR_CHARACTERS
    if sum(map(len, grammar.texts)) > longest:
        raise _refused(f"it is longer than {longest:,} characters")
    if not 1 <= len(grammar.texts) <= MAX_CHOICES:
        raise _refused(f"there must be 1 to {MAX_CHOICES} choices")


def _json_schema(grammar: Grammar) -> str:
    return llguidance.LLMatcher.grammar_from_json_schema(grammar.texts[0], overrides=JSON_OPTIONS)


def _regex(grammar: Grammar) -> str:
    return llguidance.LLMatcher.grammar_from_regex(grammar.texts[0])


def _choice(grammar: Grammar) -> str:
    # A Lark literal is written as a JSON string is, and takes no raw DEL.
    choices = " | ".join(json.dumps(text, ensure_ascii=False).replace("\x7f", r"\u007f") for text in grammar.texts)
    return llguidance.LLMatcher.grammar_from_lark(f"start: {choices}")


_SOURCES: dict[str, Callable[[Grammar], str]] = {"json_schema": _json_schema, "regex": _regex, "choice": _choice}


def _refused(reason: str) -> BadRequest:
    """The library's reason on one line, without the excerpt of our own wrapping that it may end in."""
    words = " ".join(reason.split("\n   1 |")[0].split()).replace(*ONE_OF_ADVICE)
    return BadRequest(f"The grammar cannot be used: {words.removesuffix('<non-verbose/>').strip()}.", param=PARAM)
