import json
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from app.bench.answers import read
from app.bench.http import Exchange
from app.bench.soak import Plan, Tally, judge, num_carried, soak
from app.bench.soak_report import Book, Memory, ModelState, SoakReport
from app.bench.traffic import HALFWAY, SHARES, Ask, asks
from app.errors import ConfigError
from tests.fakes import make_card

WRITER, READER = make_card(), replace(make_card("reads", "classification"), labels=("a", "b"))
IDLE = ModelState("sums", 4, 4, 0, 0, "ready")
GOOD = SoakReport(
    wall_s=10.0,
    outcomes={("stream", "complete"): 9, ("aborted", "left"): 1},
    latencies_s={"stream": [0.1, 0.2]},
    failures={},
    models=[IDLE],
    memory={"api": Memory(100.0, 101.0, 0.1, 1.0)},
    counted={"sums": Book(9, 90, 900)},
    billed={"sums": Book(9, 90, 900)},
    num_halfway=3,
    num_halfway_billed=2,
)


def exchange(body: Any, status: int = 200) -> Exchange:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return Exchange(due_at=0.0, parts=[(1.0, raw)], status=status, ended_at=1.0)


def verdict(ask: Ask, given: Exchange) -> tuple[str, str]:
    return judge(ask, given, read(given))


def test_every_sort_of_request_comes_and_the_same_seed_gives_the_same() -> None:
    drawn = [*islice(asks(3, [WRITER, READER]), 400)]
    assert drawn == [*islice(asks(3, [WRITER, READER]), 400)]
    assert {ask.sort for ask in drawn} == set(SHARES)
    assert {ask.status for ask in drawn if ask.sort == "refused"} == {400, 404}
    assert all((ask.leave_after_s is not None) == (ask.sort == "aborted") for ask in drawn)


def test_prompts_and_answers_fit_into_the_context() -> None:
    for ask in islice(asks(3, [WRITER]), 300):
        if ask.status == 200 and ask.route == "/completions":
            body = json.loads(ask.body)
            assert 1 <= len(body["prompt"]) + body["max_tokens"] <= WRITER.context_length
            assert max(body["prompt"]) < WRITER.vocab_size


def test_without_a_classifier_nothing_is_classified() -> None:
    assert "/classifications" not in {ask.route for ask in islice(asks(1, [WRITER]), 300)}


WHOLE = Ask("whole", "sums", "/completions", b"")
USAGE = {"prompt_tokens": 3, "completion_tokens": 2}
ERROR = {"error": {"code": "deadline_exceeded"}}


@pytest.mark.parametrize(
    ("ask", "given", "outcome", "is_fine"),
    [
        (WHOLE, exchange({"choices": [{"text": "a"}], "usage": USAGE}), "complete", True),
        (WHOLE, exchange({"choices": [{"text": "a"}]}), "complete", False),
        (WHOLE, exchange(ERROR, 504), "failed", False),
        (replace(WHOLE, sort="deadline"), exchange(ERROR, 504), "late", True),
        (replace(WHOLE, sort="refused", status=400), exchange(ERROR, 400), "refused", True),
        (replace(WHOLE, sort="refused", status=400), exchange({"usage": USAGE}), "failed", False),
        (replace(WHOLE, num_texts=2), exchange({"data": [1, 2], "usage": USAGE}), "complete", True),
        (replace(WHOLE, num_texts=2), exchange({"data": [1], "usage": USAGE}), "complete", False),
    ],
)
def test_an_answer_is_judged_by_what_had_to_come(ask: Ask, given: Exchange, outcome: str, is_fine: bool) -> None:
    found, problem = verdict(ask, given)
    assert found == outcome
    assert (problem == "") == is_fine


def test_a_stream_carries_as_many_tokens_as_it_claims() -> None:
    event = {"choices": [{"text": "a", "logprobs": {"tokens": ["a", "b"]}}]}
    lines = [json.dumps(event), json.dumps({"choices": [], "usage": USAGE}), "[DONE]"]
    stream = exchange("".join(f"data: {line}\n\n" for line in lines).encode())
    asked = replace(WHOLE, sort="stream", has_logprobs=True)
    assert num_carried(stream) == 2
    assert verdict(asked, stream) == ("complete", "")
    short = replace(read(stream), output_tokens=3)
    assert judge(asked, stream, short)[1] == "a stream carried 2 tokens and claims 3"


def test_only_complete_answers_of_the_exact_organisation_are_counted() -> None:
    tally, answer = Tally(), read(exchange({"choices": [{"text": "a"}], "usage": USAGE}))
    tally.add(WHOLE, answer, "complete", "")
    tally.add(replace(WHOLE, sort=HALFWAY[0]), answer, "complete", "")
    tally.add(WHOLE, answer, "failed", "overloaded")
    tally.add(replace(WHOLE, sort="aborted"), None, "left", "")
    assert tally.books == {"sums": Book(1, 3, 2)}
    assert tally.failures == {"whole sums: overloaded": 1}
    assert tally.outcomes.total() == 4


def test_a_report_of_nothing_left_has_no_problem() -> None:
    assert GOOD.problems == []
    assert GOOD.as_text().endswith("ok")
    assert json.loads(json.dumps(GOOD.as_json(), allow_nan=False))["ok"] is True


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"models": [replace(IDLE, free_slots=3)]}, "3 of 4 slots free"),
        ({"models": [replace(IDLE, queue_depth=1)]}, "1 wait"),
        ({"models": [replace(IDLE, compilations=2)]}, "2 compilations"),
        ({"models": []}, "nothing of its models"),
        ({"memory": {"engine": Memory(900.0, 999.0, 5.0, 99.0)}}, "engine: memory grew by 99.0 MiB"),
        ({"billed": {"sums": Book(8, 90, 900)}}, "sums: counted"),
        ({"billed": {**GOOD.billed, "other": Book(1, 1, 1)}}, "other: counted None"),
        ({"num_halfway_billed": 4}, "4 rows for 3 requests"),
        ({"failures": {"chat sums: 500": 2}}, "x2 chat sums: 500"),
        ({"counted": {}, "billed": {}}, "no answer was complete"),
    ],
)
def test_whatever_is_left_is_a_problem(change: dict[str, Any], problem: str) -> None:
    report = replace(GOOD, **change)
    assert any(problem in found for found in report.problems)
    assert "PROBLEM" in report.as_text()


def samples(*mib: float) -> list[tuple[float, dict[str, float]]]:
    return [(60.0 * i, {"api": value}) for i, value in enumerate(mib)]


def test_memory_is_judged_after_the_warm_up() -> None:
    level = Memory.of(samples(10, 200, 200, 200, 200, 200, 200, 200, 200), "api")
    assert level.is_level
    assert level.per_minute == pytest.approx(0)


def test_memory_that_rises_all_the_time_is_a_leak() -> None:
    leak = Memory.of(samples(*range(100, 190, 10)), "api")
    assert leak.per_minute == pytest.approx(10)
    assert not leak.is_level


def test_a_few_samples_are_no_leak() -> None:
    assert Memory.of(samples(100, 200), "api").is_level


def test_a_folder_without_a_model_that_generates_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="generates"):
        soak(Plan(tmp_path))


@pytest.mark.parametrize(("reason", "is_fine"), [("stop", True), ("length", False)])
def test_only_an_answer_that_ended_by_itself_may_have_no_tokens(reason: str, is_fine: bool) -> None:
    usage = {"prompt_tokens": 3, "completion_tokens": 0}
    answer = exchange({"choices": [{"text": "", "finish_reason": reason}], "usage": usage})
    assert (verdict(WHOLE, answer)[1] == "") == is_fine
