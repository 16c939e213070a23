import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from app.bench import classify
from app.bench.classify import TextServer
from app.bench.scenarios import Rounds
from app.bench.sides import PeerFailed
from tests.bench.fake_server import response
from tests.bench.threaded_server import threaded_server

TEXTS = classify.texts_of(1, 5, 100, [4, 6])


def ours(body: dict[str, Any]) -> bytes:
    scores = [{"label": "L1", "score": 0.7}, {"label": "L0", "score": 0.3}]
    return response(json.dumps({"data": [{"scores": scores}]}).encode())


def theirs(body: dict[str, Any]) -> bytes:
    return response(json.dumps({"label": "L1", "scores": {"L0": 0.3, "L1": 0.70001}}).encode())


def broken(body: dict[str, Any]) -> bytes:
    return response(b"{}", "500 Internal Server Error", "Connection: close\r\n")


@contextmanager
def sides(answer: Any = theirs) -> Iterator[tuple[TextServer, TextServer]]:
    with threaded_server(ours) as mine, threaded_server(answer) as other:
        we = TextServer("we", mine.url, "/c", classify.our_scores, key="k", fields={"model": "m"})
        they = TextServer("they", other.url, "/c", classify.peer_scores, failure=PeerFailed)
        try:
            yield we, they
        finally:
            we.close()
            they.close()
        assert all(body["model"] == "m" for body in mine.bodies)
        assert set(mine.keys) <= {"Bearer k"}


def test_texts_have_two_words_less_than_tokens() -> None:
    assert [len(text.split()) for text in TEXTS] == [2, 4, 2, 4, 2]
    assert classify.texts_of(1, 5, 100, [4, 6]) == TEXTS


def test_scores_are_compared_label_by_label() -> None:
    with sides() as (we, they):
        (finding,) = classify.agreement(we, they, TEXTS)
    assert finding.figure == pytest.approx(1e-5)
    assert finding.verdict == "met"


def test_of_one_caller_latencies_are_compared_and_of_more_requests_a_second() -> None:
    with sides() as (we, they):
        (latency,) = classify.speeds(we, [they], TEXTS, 1, Rounds(1), 0.2)
        (rate,) = classify.speeds(we, [they], TEXTS, 32, Rounds(2), 0.2)
    assert (latency.unit, latency.bound, latency.target) == ("ms", "at most", 1.1)
    assert latency.figure == pytest.approx(latency.ours / latency.other)
    assert (rate.unit, rate.bound, rate.target) == ("requests/s", "at least", 1.2)
    assert rate.figure == pytest.approx(rate.ours / rate.other)


def test_a_peer_that_answers_with_an_error_fails_alone() -> None:
    with sides(broken) as (we, they):
        (scores,) = classify.agreement(we, they, TEXTS)
        (speed,) = classify.speeds(we, [they], TEXTS, 2, Rounds(2), 0.2)
    assert scores.failure == speed.failure == "they answered 500"


def test_a_round_too_short_for_a_request_is_no_measurement() -> None:
    with sides() as (we, they):
        (finding,) = classify.speeds(we, [they], TEXTS, 2, Rounds(1), 0.2)
        assert not finding.failure
        with pytest.raises(PeerFailed, match="before a request"):
            they.speed(TEXTS, 1, -1.0)
