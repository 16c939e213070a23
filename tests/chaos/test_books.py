"""The comparison itself: what it must find, and what it must let pass."""

from dataclasses import replace
from typing import Any
from uuid import UUID

import pytest

from tests.chaos.books import Billed, compare, is_billed_unseen
from tests.chaos.callers import Ask, Ending, Seen, asks, mark_of
from tests.fakes import make_card

ID = UUID("01900000-0000-7000-8000-000000000001")
STREAM = Ask(7, "/completions", {"stream": True}, input_tokens=5, max_output=20)
WHOLE = Ask(7, "/completions", {}, input_tokens=5, max_output=20)
ROW = Billed(ID, 5, 9, "length")


def seen(ask: Ask, ending: Ending, *chunks: int, **more: Any) -> Seen:
    return Seen(ask, ending, str(ID), 200, chunks=list(chunks), **more)


def stream(ending: Ending = "whole", *chunks: int) -> Seen:
    usage = (5, sum(chunks)) if ending == "whole" else None
    return seen(STREAM, ending, *chunks, usage=usage, finish_reason="length" if usage else None)


def problems(one: Seen, *rows: Billed, may_break: bool = True) -> list[str]:
    return [line.partition(":")[0] for line in compare([one], {7: rows}, may_break=may_break)]


def test_an_answer_that_was_seen_whole_has_exactly_its_row() -> None:
    complete = stream("whole", 4, 4, 1)
    assert problems(complete, ROW) == []
    assert problems(complete) == ["not billed"]
    assert problems(complete, ROW, replace(ROW, state="recovered")) == ["billed twice"]
    assert problems(complete, replace(ROW, output_tokens=8))[0] == "billed for 8 tokens of output"
    assert problems(complete, replace(ROW, finish_reason="error")) == ["billed as error"]
    assert problems(complete, replace(ROW, input_tokens=6))[0].startswith("billed for an input of 6")
    assert problems(complete, replace(ROW, id=UUID(int=1))) == ["billed under another id"]
    whole = seen(WHOLE, "whole", usage=(5, 9), finish_reason="length")
    assert problems(whole, ROW) == []
    assert problems(whole, replace(ROW, output_tokens=8)) == ["billed unlike the answer's own usage"]
    assert problems(whole) == ["not billed"]


@pytest.mark.parametrize(("billed", "is_right"), [(10, False), (9, True), (8, True), (7, True), (6, False)])
def test_a_stream_that_a_kill_broke_off_may_lack_its_last_chunk(billed: int, is_right: bool) -> None:
    broken = stream("broken", 4, 3, 2)
    row = replace(ROW, output_tokens=billed, finish_reason="error", state="recovered")
    assert (problems(broken, row) == []) is is_right


def test_a_stream_of_one_chunk_that_a_kill_broke_off_may_cost_nothing() -> None:
    assert problems(stream("broken", 4)) == []
    assert problems(stream("broken", 4, 3)) == ["not billed"]
    assert problems(stream("broken")) == []


def test_no_connection_breaks_unless_its_process_is_killed() -> None:
    found = problems(stream("broken", 4, 3), replace(ROW, output_tokens=7), may_break=False)
    assert found == ["the connection broke, and no process that holds one was killed"]


def test_a_stream_that_ended_with_an_error_costs_what_was_sent() -> None:
    assert problems(stream("error", 4, 5), replace(ROW, finish_reason="error")) == []
    assert problems(stream("error", 4, 5)) == ["not billed"]
    assert problems(stream("error", 4, 4), ROW) == ["billed for 9 tokens of output"]


def test_who_leaves_pays_at_least_for_what_came() -> None:
    assert problems(stream("left", 4, 5), replace(ROW, output_tokens=12), may_break=False) == []
    assert problems(stream("left", 4, 5), replace(ROW, output_tokens=8), may_break=False) != []
    assert problems(stream("left", 4, 5), replace(ROW, output_tokens=21), may_break=False) != []
    assert problems(stream("left"), may_break=False) == []


def test_what_was_refused_costs_nothing() -> None:
    refused = Seen(STREAM, "refused", str(ID), 503, "overloaded")
    assert problems(refused) == []
    assert problems(refused, ROW) == ["billed though it was refused"]


def test_silence_is_wrong_whatever_is_billed() -> None:
    assert problems(seen(WHOLE, "hung")) == ["neither an answer nor an error"]
    assert problems(seen(STREAM, "cut short", 9), ROW) == ["neither an answer nor an error"]


def test_a_row_that_nobody_asked_for_is_found() -> None:
    found = list(compare([], {7: [ROW]}, may_break=True))
    assert found[0].startswith("nobody sent what is billed")


def test_a_whole_answer_billed_in_the_moment_of_the_kill_is_counted() -> None:
    assert is_billed_unseen(seen(WHOLE, "broken"), {7: [ROW]})
    assert problems(seen(WHOLE, "broken"), ROW) == []
    assert not is_billed_unseen(stream("broken", 9), {7: [ROW]})


def test_every_request_has_a_mark_that_its_row_keeps() -> None:
    cards = [make_card(), replace(make_card("reads", "classification"), labels=("a", "b"))]
    drawn = [ask for caller in (0, 63) for ask, _ in zip(asks(3, caller, cards), range(100), strict=False)]
    assert len({ask.mark for ask in drawn}) == 200
    assert {mark_of(ask.body) == ask.mark for ask in drawn} == {True}
    assert {ask.route for ask in drawn} == {"/completions", "/chat/completions", "/classifications"}


def test_a_failure_says_what_was_seen_and_what_is_billed() -> None:
    (line,) = compare([stream("whole", 4, 4, 1)], {}, may_break=True)
    assert str(ID) in line
    assert "received 9 tokens in 3 chunks" in line
    assert line.endswith("the ledger has no row")
