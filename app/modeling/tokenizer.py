"""Text to token ids and back, from a Hugging Face directory; no TensorFlow here.

Wraps the `tokenizers` library and adds what serving needs: text that appears
token by token without ever showing half a character, the bytes behind a token,
and the model's chat template, or a plain one where it has none.
"""

import json
import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from itertools import takewhile
from pathlib import Path
from typing import Any

import tokenizers
from jinja2 import Template

from app.errors import ModelFormatError
from app.modeling import chat_template as chat_templates

REPLACEMENT = "\ufffd"  # what decoding yields for an unfinished UTF-8 character
BYTE_TOKEN = re.compile(r"<0x([0-9A-F]{2})>")  # SentencePiece's byte fallback
# What may be the beginning of a character is held back, and decoded anew with each token. No
# character takes so many: these are broken, and without an end would take ever longer.
MAX_HELD = 16
# Enough context for decoders that treat the first token of a text specially.
DETOKENIZER_CONTEXT = 6


class Tokenizer:
    """The tokenizer of one model; safe to share between threads."""

    def __init__(self, tokenizer: tokenizers.Tokenizer, config: Mapping[str, Any], chat_template: str | None) -> None:
        self._tokenizer = tokenizer
        self._config = config
        self.chat_template = chat_template

    @classmethod
    def load(cls, directory: Path) -> "Tokenizer":
        """Read `tokenizer.json`, and `tokenizer_config.json` where there is one.

        Raises:
            ModelFormatError: a file is missing or not readable.
        """
        tokenizer = read_tokenizer(directory)
        return cls(tokenizer, read_json(directory / "tokenizer_config.json"), read_chat_template(directory))

    @cached_property
    def vocab_size(self) -> int:
        """What all token ids lie below, those of added tokens included; some below it may be left out."""
        return max(self._tokenizer.get_vocab(with_added_tokens=True).values(), default=-1) + 1

    def encode(self, text: str) -> list[int]:
        """Token ids of `text` with the special tokens (BOS, CLS …) that the model expects around it."""
        ids: list[int] = self._tokenizer.encode(text).ids
        bos = self._missing_bos
        return ids if bos is None or ids[:1] == [bos] else [bos, *ids]

    def encode_chat(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """Token ids of a conversation, ready for the assistant's turn."""
        text = self.apply_chat_template(messages)
        if self.chat_template is None:
            return self.encode(text)
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def apply_chat_template(self, messages: Sequence[Mapping[str, str]]) -> str:
        """Render the conversation with the model's template, or the plain one.

        Raises:
            BadRequest: the template refuses the messages, for example their order.
        """
        return chat_templates.render(self._template, messages, self._special_tokens)

    def check_chat_template(self) -> None:
        """Find out now what else the first conversation would.

        Raises:
            ModelFormatError: the template is no template.
        """
        _ = self._template  # made here, and kept

    def decode(self, ids: Sequence[int]) -> str:
        """Text of token ids; special tokens are left out, broken characters become U+FFFD."""
        text: str = self._tokenizer.decode(list(ids), skip_special_tokens=True)
        return text

    def detokenizer(self, prompt_ids: Sequence[int] = ()) -> "Detokenizer":
        """A decoder for a continuation of `prompt_ids`."""
        return Detokenizer(self, prompt_ids)

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes that one token stands for; none of a number that the vocabulary leaves out.

        Networks are often wider than their vocabulary, so such numbers do come.
        """
        token = self._tokenizer.id_to_token(token_id)
        if token is None:
            return b""
        if token_id in self._added_tokens:  # written as they are, whatever the others are made of
            return str(token).encode()
        if self.is_byte_level:
            return bytes(BYTE_OF_CHARACTER[character] for character in token)
        if byte := BYTE_TOKEN.fullmatch(token):
            return bytes([int(byte[1], 16)])
        return str(token).replace("▁", " ").encode()

    @cached_property
    def special_token_ids(self) -> frozenset[int]:
        """Tokens that stand for no text."""
        return frozenset(i for i, token in self._added_tokens.items() if token.special)

    @cached_property
    def is_byte_level(self) -> bool:
        """Whether tokens are bytes, so that a text does not depend on how many are decoded together.

        Where bytes are only a fallback it does: a broken one takes its neighbours with it.
        """
        return '"ByteLevel"' in json.dumps(json.loads(self._tokenizer.to_str()).get("decoder"))

    @cached_property
    def _added_tokens(self) -> dict[int, tokenizers.AddedToken]:
        added: dict[int, tokenizers.AddedToken] = self._tokenizer.get_added_tokens_decoder()
        return added

    @cached_property
    def _special_tokens(self) -> dict[str, str]:
        """By the names that chat templates know them by."""
        named = {name: value for name, value in self._config.items() if name.endswith("_token")}
        given = {name: _token_string(value) for name, value in named.items() if isinstance(value, str | Mapping)}
        return {"bos_token": "", "eos_token": ""} | given

    @cached_property
    def _missing_bos(self) -> int | None:
        """BOS where the configuration asks for it and the tokenizer file may not add it."""
        if not self._config.get("add_bos_token"):
            return None
        bos: int | None = self._tokenizer.token_to_id(_token_string(self._config.get("bos_token")))
        return bos

    @cached_property
    def _template(self) -> Template:
        return chat_templates.compile_template(self.chat_template or chat_templates.PLAIN)


class Detokenizer:
    """Turns a continuation into text, token by token.

    Decoding a token alone loses spaces and splits characters, so each step
    decodes a short window twice, without and with the new token, and emits the
    difference once it ends in a whole character. A character that the prompt has
    begun is the answer's as soon as it is whole.
    """

    def __init__(self, tokenizer: Tokenizer, prompt_ids: Sequence[int]) -> None:
        self._tokenizer = tokenizer
        self._ids = list(prompt_ids[-DETOKENIZER_CONTEXT:])
        self._window_start = 0
        self._num_shown = len(self._ids)

    def push(self, token_id: int) -> str:
        """Text that became certain with this token; empty while a character is unfinished."""
        self._ids.append(token_id)
        whole = self._tokenizer.decode(self._ids[self._window_start :])
        if whole.endswith(REPLACEMENT) and len(self._ids) - self._num_shown <= MAX_HELD:
            return ""
        text = _new_text(self._shown(), whole)
        self._mark_shown()
        return text

    def push_all(self, token_ids: Sequence[int]) -> str:
        """Text that became certain with the last of these tokens, all of theirs.

        Empty, and none of them is added, where the last one has no text of its own or
        a character is unfinished or broken: some of them would have to wait then. Always
        empty where they might give another text one by one.
        """
        if not self._tokenizer.is_byte_level:
            return ""
        window = self._ids[self._window_start :]
        text = self._tokenizer.decode([*window, *token_ids])
        if REPLACEMENT in text or len(text) <= len(self._tokenizer.decode([*window, *token_ids[:-1]])):
            return ""
        text = _new_text(self._shown(), text)
        self._ids += token_ids
        self._mark_shown()
        return text

    def flush(self) -> str:
        """What was held back, at the end of the answer; an unfinished character shows as U+FFFD."""
        if self._num_shown == len(self._ids):
            return ""
        text = _new_text(self._shown(), self._tokenizer.decode(self._ids[self._window_start :]))
        self._mark_shown()
        return text

    def _shown(self) -> str:
        return self._tokenizer.decode(self._ids[self._window_start : self._num_shown])

    def _mark_shown(self) -> None:
        self._window_start, self._num_shown = self._num_shown, len(self._ids)
        if self._window_start == self._num_shown:
            self._window_start = max(0, self._num_shown - DETOKENIZER_CONTEXT)


def read_tokenizer(directory: Path) -> tokenizers.Tokenizer:
    """What `tokenizer.json` says, neither cutting nor padding, as files written for training may.

    Raises:
        ModelFormatError: the file is missing or not readable.
    """
    path = directory / "tokenizer.json"
    if not path.is_file():
        raise ModelFormatError(f"{directory} has no tokenizer.json")
    try:
        tokenizer = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # noqa: BLE001 - the library raises bare Exception
        raise ModelFormatError(f"{path} is not a tokenizer: {error}") from None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file, empty where there is no such file.

    Raises:
        ModelFormatError: the file does not hold a JSON object.
    """
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise ModelFormatError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise ModelFormatError(f"{path} does not hold a JSON object")
    return value


def read_json_list(path: Path) -> list[dict[str, Any]]:
    """The list of objects in a JSON file, empty where there is no such file.

    Raises:
        ModelFormatError: the file does not hold one.
    """
    if not path.is_file():
        return []
    try:
        value = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise ModelFormatError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise ModelFormatError(f"{path} does not hold a list of JSON objects")
    return value


def read_chat_template(directory: Path) -> str | None:
    """The model's template: `chat_template.jinja`, or the field of `tokenizer_config.json`."""
    path = directory / "chat_template.jinja"
    if path.is_file():
        return path.read_text("utf-8")
    template = read_json(directory / "tokenizer_config.json").get("chat_template")
    if isinstance(template, list):  # several, by name
        template = next((t["template"] for t in template if t.get("name") == "default"), None)
    return template


def _new_text(shown: str, whole: str) -> str:
    if whole.startswith(shown):
        return whole[len(shown) :]
    # What was shown ended inside a character, which has become another text.
    same = takewhile(lambda pair: pair[0] == pair[1], zip(shown, whole, strict=False))
    return whole[len([*same]) :]


def _token_string(token: str | Mapping[str, Any] | None) -> str:
    if token is None:
        return ""
    return token if isinstance(token, str) else str(token["content"])


def _byte_of_character() -> dict[str, int]:
    """GPT-2's printable stand-ins for bytes (Radford et al. 2019, sec. 2.2), inverted."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = [byte for byte in range(0x100) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + i): byte for i, byte in enumerate(rest)}


BYTE_OF_CHARACTER = _byte_of_character()
