import json
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import decoders, models

from app.errors import BadRequest, ModelFormatError
from app.modeling.tokenizer import MAX_HELD, REPLACEMENT, Tokenizer
from app.training.vocabulary import END_OF_TEXT, train_generation_tokenizer
from tests.modeling.checkpoints import TEXTS
from tests.oracles import oracle

BYTE_LEVEL = Tokenizer(train_generation_tokenizer(TEXTS, 300), {}, None)


def byte_fallback() -> Tokenizer:
    """As Llama 2 has it: words with their space, and bytes for what is in no word."""
    words = ("▁", "▁a", "b", "é", "▁,")
    vocabulary = {f"<0x{byte:02X}>": byte for byte in range(256)} | {word: 256 + i for i, word in enumerate(words)}
    tokenizer = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=[], byte_fallback=True))
    parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(parts)
    return Tokenizer(tokenizer, {}, None)


BYTE_FALLBACK = byte_fallback()
# Bytes of one character among whole ones, in any order: most of them are broken.
SOME_IDS = st.lists(st.sampled_from([*"é漢a".encode(), *range(256, 261)]), max_size=5)


def write(directory: Path, config: dict[str, Any] | None = None, template: str | None = None) -> Path:
    train_generation_tokenizer(TEXTS, 300).save(str(directory / "tokenizer.json"))
    if config is not None:
        (directory / "tokenizer_config.json").write_text(json.dumps(config))
    if template is not None:
        (directory / "chat_template.jinja").write_text(template)
    return directory


@given(st.text())
def test_text_survives_encoding(text: str) -> None:
    if END_OF_TEXT not in text:
        assert BYTE_LEVEL.decode(BYTE_LEVEL.encode(text)) == text


@given(st.text(), st.text())
def test_streamed_pieces_join_to_the_whole_text_and_never_show_half_a_character(prompt: str, text: str) -> None:
    if REPLACEMENT in text + prompt:
        return
    prompt_ids, ids = BYTE_LEVEL.encode(prompt), BYTE_LEVEL.encode(text)[1:]
    detokenizer = BYTE_LEVEL.detokenizer(prompt_ids)

    pieces = [detokenizer.push(token) for token in ids]

    assert not any(REPLACEMENT in piece for piece in pieces)
    assert "".join(pieces) + detokenizer.flush() == text


@pytest.mark.parametrize("tokenizer", [BYTE_LEVEL, BYTE_FALLBACK], ids=["bytes", "fallback"])
@given(prompt=SOME_IDS, chunks=st.lists(SOME_IDS, max_size=4))
@example(prompt=[], chunks=[[195, 169, 97], [188, 259, 260, 188]])
@example(prompt=[256, 195], chunks=[[169, 97]])
@example(prompt=[169], chunks=[[230, 230, 195]])
def test_text_does_not_depend_on_how_tokens_come_together(
    tokenizer: Tokenizer, prompt: list[int], chunks: list[list[int]]
) -> None:
    together, alone = tokenizer.detokenizer(prompt), tokenizer.detokenizer(prompt)
    shown, expected = "", ""
    for chunk in chunks:
        shown += together.push_all(chunk) or "".join(map(together.push, chunk))
        expected += "".join(map(alone.push, chunk))
    assert shown + together.flush() == expected + alone.flush()


@pytest.mark.parametrize("tokenizer", [BYTE_LEVEL, BYTE_FALLBACK], ids=["bytes", "fallback"])
def test_a_character_that_the_prompt_has_begun_is_shown_when_it_is_whole(tokenizer: Tokenizer) -> None:
    begun, *rest = [token for token in tokenizer.encode("☃") if len(tokenizer.token_bytes(token) or b"") == 1]
    detokenizer = tokenizer.detokenizer([begun])

    assert [detokenizer.push(token) for token in rest] == ["", "☃"]


def test_answer_that_ends_inside_a_character_shows_the_replacement_at_its_end() -> None:
    detokenizer = BYTE_LEVEL.detokenizer()
    first_byte_of_a_snowman = BYTE_LEVEL.encode("☃")[1]

    assert detokenizer.push(first_byte_of_a_snowman) == ""
    assert detokenizer.flush() == REPLACEMENT
    assert detokenizer.flush() == ""


def test_broken_characters_are_shown_in_time_and_once() -> None:
    detokenizer = BYTE_LEVEL.detokenizer()
    last_byte_of_a_snowman = BYTE_LEVEL.encode("☃")[-1]

    pieces = [detokenizer.push(last_byte_of_a_snowman) for _ in range(100)]
    assert max(map(len, pieces)) == MAX_HELD + 1
    assert "".join([*pieces, detokenizer.flush()]) == REPLACEMENT * 100


@given(st.text())
def test_bytes_of_the_tokens_join_to_the_text(text: str) -> None:
    if END_OF_TEXT not in text:
        assert b"".join(BYTE_LEVEL.token_bytes(token) for token in BYTE_LEVEL.encode(text)[1:]) == text.encode()


def test_special_token_is_shown_by_name() -> None:
    assert BYTE_LEVEL.token_bytes(0) == END_OF_TEXT.encode()


def test_number_that_the_vocabulary_leaves_out_stands_for_nothing() -> None:
    assert BYTE_LEVEL.token_bytes(5000) == b""
    assert BYTE_LEVEL.decode([5000]) == ""


def test_added_token_stands_for_itself_though_the_others_are_bytes(tmp_path: Path) -> None:
    tokenizer = train_generation_tokenizer(TEXTS, 300)
    tokenizer.add_tokens([tokenizers.AddedToken("  \n床", special=False, normalized=False)])

    assert Tokenizer(tokenizer, {}, None).token_bytes(300) == "  \n床".encode()


def test_published_tokenizer_begins_a_prompt_with_the_end_of_text() -> None:
    assert BYTE_LEVEL.encode("") == [0]


def test_chat_without_a_template_is_role_and_content(tmp_path: Path) -> None:
    tokenizer = Tokenizer.load(write(tmp_path))

    text = tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}])

    assert text == "user: Hi\n\nassistant:"
    assert tokenizer.encode_chat([{"role": "user", "content": "Hi"}]) == tokenizer.encode(text)


def test_chat_template_of_the_model_is_used_and_adds_its_own_special_tokens(tmp_path: Path) -> None:
    template = "{{ bos_token }}{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
    tokenizer = Tokenizer.load(write(tmp_path, {"bos_token": {"content": END_OF_TEXT}}, template))

    ids = tokenizer.encode_chat([{"role": "user", "content": "fox"}])

    assert ids[0] == 0
    assert 0 not in ids[1:]
    assert tokenizer.decode(ids) == "[user]fox"


def test_template_of_the_configuration_may_be_one_of_several(tmp_path: Path) -> None:
    config = {"chat_template": [{"name": "tools", "template": "no"}, {"name": "default", "template": "yes"}]}

    assert Tokenizer.load(write(tmp_path, config)).apply_chat_template([]) == "yes"


def test_template_that_refuses_the_messages_is_the_callers_error(tmp_path: Path) -> None:
    tokenizer = Tokenizer.load(write(tmp_path, template="{{ raise_exception('roles must alternate') }}"))

    with pytest.raises(BadRequest, match="roles must alternate") as error:
        tokenizer.apply_chat_template([])

    assert error.value.param == "messages"


def test_template_cannot_reach_python(tmp_path: Path) -> None:
    tokenizer = Tokenizer.load(write(tmp_path, template="{{ messages.__class__.__mro__ }}"))

    with pytest.raises(BadRequest):
        tokenizer.apply_chat_template([])


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("{{ messages | tojson }}", '[{"role": "user", "content": "<é>"}]'),
        ("{{ strftime_now('%Y') | length }}", "4"),
        ("{% for m in messages * 3 %}{% if loop.index == 2 %}{% break %}{% endif %}{{ m.role }}{% endfor %}", "user"),
        ("{% generation %}{{ messages[0].content }}{% endgeneration %}!", "<é>!"),
        ("{{ tools is none and documents is none }}", "True"),
        ("{{ unk_token }}{{ bos_token }}{{ add_bos_token }}", "<unk>"),
    ],
)
def test_template_has_what_published_ones_ask_for(tmp_path: Path, template: str, text: str) -> None:
    config = {"unk_token": {"content": "<unk>"}, "add_bos_token": True}
    tokenizer = Tokenizer.load(write(tmp_path, config, template))

    assert tokenizer.apply_chat_template([{"role": "user", "content": "<é>"}]) == text


@pytest.mark.parametrize("template", ["{{ 'a' + 1 }}", "{{ 1 // 0 }}", "{{ range(10 ** 9) }}", "{{ 'a'.index('b') }}"])
def test_template_that_fails_on_the_messages_is_the_callers_error(tmp_path: Path, template: str) -> None:
    with pytest.raises(BadRequest, match="refuses these messages"):
        Tokenizer.load(write(tmp_path, template=template)).apply_chat_template([])


def test_broken_template_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelFormatError, match="chat template"):
        Tokenizer.load(write(tmp_path, template="{% for %}")).apply_chat_template([])


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("tokenizer.json", None, "no tokenizer.json"),
        ("tokenizer.json", "{}", "not a tokenizer"),
        ("tokenizer_config.json", "{", "not valid JSON"),
        ("tokenizer_config.json", "[]", "JSON object"),
    ],
)
def test_unreadable_file_is_named(tmp_path: Path, file: str, content: str | None, message: str) -> None:
    write(tmp_path)
    if content is None:
        (tmp_path / file).unlink()
    else:
        (tmp_path / file).write_text(content)

    with pytest.raises(ModelFormatError, match=message):
        Tokenizer.load(tmp_path)


def test_bos_is_added_where_only_the_configuration_asks_for_it(tmp_path: Path) -> None:
    write(tmp_path, {"add_bos_token": True, "bos_token": END_OF_TEXT})
    raw = json.loads((tmp_path / "tokenizer.json").read_text()) | {"post_processor": None}
    (tmp_path / "tokenizer.json").write_text(json.dumps(raw))

    tokenizer = Tokenizer.load(tmp_path)

    assert tokenizer.encode("fox") == BYTE_LEVEL.encode("fox")


@pytest.mark.parametrize(
    ("name", "file"),
    [("gpt2", "expected_gpt2_encoded_tokens.json"), ("bert-base-uncased", "expected_bert_uncased_encoded.json")],
)
def test_tokenizers_of_other_makers_encode_as_published(name: str, file: str) -> None:
    directory = oracle(f"tokenizers/{name}")
    expected = json.loads((directory / file).read_text())
    ids = next(value for value in expected.values() if isinstance(value, list) and isinstance(value[0], int))

    assert Tokenizer.load(directory).encode(expected["text"]) == ids


def test_sentencepiece_tokens_stream_with_their_spaces() -> None:
    tokenizer = Tokenizer.load(oracle("stories260K"))
    prompt, text = tokenizer.encode("Once upon"), "Once upon a time there was ☃."
    ids = tokenizer.encode(text)
    detokenizer = tokenizer.detokenizer(prompt)

    streamed = "".join(detokenizer.push(token) for token in ids[len(prompt) :]) + detokenizer.flush()

    assert "Once upon" + streamed == text
    assert tokenizer.token_bytes(ids[-2])[:1] != b"<"
