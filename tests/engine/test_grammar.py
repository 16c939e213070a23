"""Grammars: what they allow, what ends an answer, and what is refused with which reason."""

import json
import re
import string
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app.engine import grammar as grammars_module
from app.engine.bias import FORBIDDEN, Bias
from app.engine.grammar import MAX_COMPILED, Grammars, read_tokens
from app.engine.sequence import Grammar, Request, Sampling
from app.errors import BadRequest
from app.modeling.registry import Registry
from tests.api.world import write_model
from tests.engine.grammars import END, TOKENS, RandomRunner, answers, grammar_of, grammars

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 2, "maxLength": 5},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "maxItems": 2},
    },
    "required": ["name", "age", "tags"],
    "additionalProperties": False,
}


def request_of(kind: str, *texts: str, max_tokens: int = 200, **more: Any) -> Request:
    ends = more.pop("ends", {END})
    return Request("r", (1,), max_tokens, end_token_ids=frozenset(ends), grammar=grammar_of(kind, *texts), **more)


def follow(kind: str, *texts: str, said: bytes = b"") -> tuple[set[bytes], bool]:
    """What may follow `said` byte by byte, and whether the answer may end there."""
    matcher = grammars().matcher(grammar_of(kind, *texts))
    for byte in said:
        matcher.take(byte)
    return {TOKENS[i] or b"<end>" for i in np.flatnonzero(matcher.allowed)}, matcher.is_complete


@pytest.mark.parametrize(
    ("kind", "text", "said", "expected"),
    [
        ("choice", "no", b"n", {b"o"}),
        ("regex", "[ab]+c", b"", {b"a", b"b", b"ab"}),
        ("regex", "^a[bé]$", b"a", {b"b", "é".encode()[:1], "é".encode()}),
        ("json_schema", '{"type": "boolean"}', b"", {b"t", b"f", b"true"}),
        ("json_schema", '{"const": 12}', b"1", {b"2"}),
    ],
)
def test_only_what_fits_may_follow(kind: str, text: str, said: bytes, expected: set[bytes]) -> None:
    assert follow(kind, text, said=said) == (expected, False)


def test_one_choice_may_be_the_beginning_of_another() -> None:
    assert follow("choice", "yes", "yes, sir", said=b"yes") == ({b","}, True)


@pytest.mark.parametrize("text", ['"quoted"', "back\\slash", "two\nlines", "a/b|c", "日本語", "\x01", "\x7f", " "])
def test_a_choice_is_taken_word_for_word(text: str) -> None:
    [(reason, answer)] = answers(RandomRunner(0), request_of("choice", text))
    assert (reason, answer.decode()) == ("stop", text)


def test_an_answer_that_can_take_nothing_more_ends_without_an_end_token() -> None:
    [(reason, answer)] = answers(RandomRunner(0), request_of("json_schema", json.dumps(PERSON), ends=()))
    assert reason == "stop"
    assert set(json.loads(answer)) == {"name", "age", "tags"}


def test_the_end_comes_only_where_the_answer_is_complete() -> None:
    requests = [request_of("regex", "(ab)+", max_tokens=400) for _ in range(40)]
    found = answers(RandomRunner(1, closing=2), *requests)
    assert {reason for reason, _ in found} == {"stop"}
    assert all(re.fullmatch(b"(ab)+", answer) for _, answer in found)
    assert len({answer for _, answer in found}) > 1


def test_without_an_end_token_an_answer_that_could_go_on_goes_on_to_its_budget() -> None:
    [(reason, answer)] = answers(RandomRunner(0), request_of("regex", "a+", ends=(), max_tokens=7))
    assert (reason, answer) == ("length", b"a" * 7)


def test_a_budget_that_is_too_small_is_no_stop() -> None:
    [(reason, _)] = answers(RandomRunner(0), request_of("json_schema", json.dumps(PERSON), max_tokens=5))
    assert reason == "length"


def test_an_answer_that_is_whole_with_the_last_token_of_its_budget_has_stopped() -> None:
    assert answers(RandomRunner(0), request_of("choice", "\x01\x02", max_tokens=2)) == [("stop", b"\x01\x02")]


def test_a_stop_token_that_is_text_too_ends_the_answer_but_not_as_a_whole_one() -> None:
    [(reason, answer)] = answers(RandomRunner(0), request_of("regex", "xyz", ends=(ord("y"), END)))
    assert (reason, answer) == ("length", b"x")


def test_a_stop_token_that_alone_can_follow_ends_the_answer_before_its_least() -> None:
    ends = (ord("y"), END)
    assert answers(RandomRunner(0), request_of("regex", "xyz", ends=ends, min_tokens=5)) == [("length", b"x")]
    assert answers(RandomRunner(0), request_of("regex", "x[ya]z", ends=ends, min_tokens=3)) == [("stop", b"xaz")]


def test_min_tokens_holds_the_end_back() -> None:
    requests = [request_of("regex", "a+", min_tokens=9, max_tokens=60) for _ in range(10)]
    assert all(len(answer) >= 9 for _, answer in answers(RandomRunner(3, closing=9), *requests))


def test_penalties_and_bias_work_below_the_grammar() -> None:
    bias = Bias(1, len(TOKENS), grammars())
    sampling = Sampling(logit_bias={ord("a"): 5.0, ord("z"): 100.0}, presence_penalty=1.0)
    bias.assign(0, request_of("regex", "[ab]+", sampling=sampling))
    assert bias.rows[0, [ord("a"), ord("b"), ord("z"), END]].tolist() == [5.0, 0.0, FORBIDDEN, FORBIDDEN]
    bias.observe(0, ord("a"), 1)
    assert bias.rows[0, [ord("a"), ord("b"), ord("z")]].tolist() == [4.0, 0.0, FORBIDDEN]


def test_mates_of_one_batch_follow_each_its_own() -> None:
    requests = [
        request_of("choice", "yes", "no"),
        request_of("json_schema", json.dumps(PERSON)),
        Request("r", (1,), 3),
        request_of("regex", r"\d{4}-\d\d"),
        request_of("choice", "left", "right"),
    ]
    found = answers(RandomRunner(5, num_slots=3), *requests)
    assert found[0][1] in (b"yes", b"no")
    assert json.loads(found[1][1]).keys() == PERSON["properties"].keys()  # type: ignore[attr-defined]
    assert found[2][0] == "length"
    assert re.fullmatch(rb"\d{4}-\d\d", found[3][1])
    assert found[4][1] in (b"left", b"right")


@pytest.mark.parametrize(
    ("kind", "text", "reason"),
    [
        ("json_schema", '{"type": "strin"}', "Invalid type: strin"),
        ("json_schema", "3", "object schema"),
        ("json_schema", '{"not": {"type": "string"}}', 'Unimplemented keys: ["not"]'),
        ("json_schema", '{"type": "array", "uniqueItems": true, "x-guidance": {"lenient": true}}', "uniqueItems"),
        ("json_schema", '{"$ref": "http://127.0.0.1/x.json"}', "http://127.0.0.1/x.json"),
        ("json_schema", '{"$ref": "#/$defs/none"}', "$defs/none"),
        ("json_schema", '{"$ref": "#"}', "no answer"),
        ("json_schema", '{"type": "integer", "minimum": 5, "maximum": 3}', "minimum (5)"),
        ("json_schema", '{"oneOf": [{"type": "integer"}, {"type": "integer", "maximum": 5}]}', "otherwise use anyOf"),
        ("json_schema", '{"anyOf": [' * 200 + "{}" + "]}" * 200, "recursion"),
        ("json_schema", f'{{"description": "{"x" * 70_000}"}}', "65,536"),
        ("regex", "(a", "unclosed group"),
        ("regex", r"(a)\1", "backreferences"),
        ("regex", "(?=a)b", "look-around"),
        ("regex", "a" * 5_000, "4,096"),
        ("regex", "", "no answer"),
        ("regex", r"[^\s\S]", "no answer"),
    ],
)
def test_what_cannot_be_followed_is_refused_with_its_reason(kind: str, text: str, reason: str) -> None:
    with pytest.raises(BadRequest, match=re.escape(reason)) as refused:
        grammars().prepare(grammar_of(kind, text))
    assert refused.value.param == "grammar"
    assert "\n" not in refused.value.message


def test_too_many_choices_are_refused() -> None:
    with pytest.raises(BadRequest, match="1 to 256 choices"):
        grammars().prepare(grammar_of("choice", *(str(i) for i in range(257))))


def test_a_vocabulary_that_cannot_write_the_answer_is_found_at_once_or_ends_it_as_cut() -> None:
    letters = [bytes([byte]) for byte in string.ascii_lowercase.encode()]
    with pytest.raises(BadRequest, match="this model can write"):
        grammars(letters).prepare(grammar_of("json_schema", '{"type": "object"}'))
    matcher = grammars(letters).matcher(grammar_of("regex", "a[bc]-"))
    matcher.take(0)
    assert not matcher.is_over
    matcher.take(1)
    assert matcher.is_lost
    lost = RandomRunner(0, [*letters, None])
    assert answers(lost, request_of("regex", "a[bc]-", ends=(len(letters),)))[0][0] == "length"


def test_a_grammar_is_compiled_once_and_the_oldest_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[str] = []
    known = grammars()
    compile_regex = grammars_module._SOURCES["regex"]

    def count(grammar: Grammar) -> str:
        compiled.append(grammar.texts[0])
        return compile_regex(grammar)

    monkeypatch.setitem(grammars_module._SOURCES, "regex", count)
    for _ in range(2):
        known.prepare(grammar_of("regex", "a"))
    for number in range(MAX_COMPILED):
        known.prepare(grammar_of("regex", f"b{number}"))
    known.prepare(grammar_of("regex", f"b{MAX_COMPILED - 1}"))
    assert compiled == ["a", *(f"b{number}" for number in range(MAX_COMPILED))]
    kept = known.prepare(grammar_of("regex", "a"))
    assert compiled[-1] == "a"
    # Whoever still waits for its turn finds it ready, whatever came after it.
    num_compiled = len(compiled) + MAX_COMPILED
    for number in range(MAX_COMPILED):
        known.prepare(grammar_of("regex", f"c{number}"))
    known.matcher(grammar_of("regex", "a"))
    assert len(compiled) == num_compiled
    del kept
    for number in range(MAX_COMPILED):
        known.prepare(grammar_of("regex", f"d{number}"))
    known.matcher(grammar_of("regex", "a"))
    assert compiled[-1] == "a"


def test_tokens_are_read_from_a_models_directory(tmp_path: Path) -> None:
    write_model(tmp_path)
    tokens = read_tokens(Registry(tmp_path).get("bytes"))
    assert sorted(token for token in tokens if token) == [bytes([byte]) for byte in range(256)]
    assert tokens[256] is None


def test_a_tokenizer_that_puts_spaces_between_its_tokens_is_refused(tmp_path: Path) -> None:
    write_model(tmp_path)
    path = tmp_path / "bytes" / "tokenizer.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"decoder": None}))
    with pytest.raises(BadRequest, match="do not join"):
        Grammars.of(Registry(tmp_path).get("bytes")).prepare(grammar_of("regex", "a"))


LEAVES = st.one_of(
    st.just({"type": "boolean"}),
    st.just({"type": "null"}),
    st.just({"type": "number"}),
    st.just({"type": "string"}),
    st.builds(
        lambda a, n: {"type": "string", "minLength": a, "maxLength": a + n}, st.integers(0, 3), st.integers(0, 4)
    ),
    st.just({"type": "string", "pattern": "^[A-C]{2}-[0-9]+$"}),
    st.builds(
        lambda a, n: {"type": "integer", "minimum": a, "maximum": a + n}, st.integers(-99, 99), st.integers(0, 99)
    ),
    st.builds(
        lambda values: {"enum": values},
        st.lists(st.one_of(st.text(max_size=3), st.integers(-9, 99), st.booleans(), st.none()), min_size=1, max_size=4),
    ),
)
KEYS = st.text(alphabet='abé" \\', max_size=3)


def _object(properties: dict[str, Any], num_required: int, extra: Any) -> dict[str, Any]:
    required = list(properties)[:num_required]
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": extra}


SCHEMAS = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.builds(
            lambda items, a, n: {"type": "array", "items": items, "minItems": a, "maxItems": a + n},
            inner,
            st.integers(0, 2),
            st.integers(0, 2),
        ),
        st.builds(
            _object, st.dictionaries(KEYS, inner, max_size=4), st.integers(0, 4), st.one_of(st.just(False), inner)
        ),
        st.builds(lambda options: {"anyOf": options}, st.lists(inner, min_size=1, max_size=3)),
    ),
    max_leaves=6,
)


def is_valid(value: Any, schema: dict[str, Any]) -> bool:
    """Whether a value fits one of the schemas above."""
    if "anyOf" in schema:
        return any(is_valid(value, option) for option in schema["anyOf"])
    if "enum" in schema:
        return any(value == option and type(value) is type(option) for option in schema["enum"])
    match schema["type"]:
        case "object":
            extra = schema["additionalProperties"]
            return (
                isinstance(value, dict)
                and set(schema["required"]) <= value.keys()
                and all(
                    is_valid(item, schema["properties"][key])
                    if key in schema["properties"]
                    else extra is not False and is_valid(item, extra)
                    for key, item in value.items()
                )
            )
        case "array":
            return (
                isinstance(value, list)
                and schema["minItems"] <= len(value) <= schema["maxItems"]
                and all(is_valid(item, schema["items"]) for item in value)
            )
        case "string":
            return (
                isinstance(value, str)
                and schema.get("minLength", 0) <= len(value) <= schema.get("maxLength", 10**6)
                and re.search(schema.get("pattern", ""), value) is not None
            )
        case "integer":
            return type(value) is int and schema["minimum"] <= value <= schema["maximum"]
        case "number":
            return type(value) in (int, float)
        case "boolean":
            return type(value) is bool
    return value is None


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(SCHEMAS, st.integers(0, 2**32 - 1))
def test_an_answer_that_stops_fits_its_schema_whatever_the_model_prefers(schema: dict[str, Any], seed: int) -> None:
    runner = RandomRunner(seed, closing=2)
    requests = [request_of("json_schema", json.dumps(schema), max_tokens=300) for _ in range(3)]
    for reason, answer in answers(runner, *requests):
        assert reason in ("stop", "length")
        if reason == "stop":
            assert is_valid(json.loads(answer), schema), (answer, schema)
