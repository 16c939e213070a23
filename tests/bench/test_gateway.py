import asyncio
import json
import sys
from pathlib import Path

import pytest

from app.bench.answers import read
from app.bench.gateway import DONE, ROUTE, Figures, Gateway, Question, findings
from app.bench.http import Exchange, HttpClient
from app.bench.sides import Peer, PeerFailed
from app.bench.workload import Prompt

SCRIPT = str(Path(__file__).parent / "gateway_peer.py")
OURS = Figures(plain_ms=1.5, stream_ms=5.0, requests_per_s=100.0, p50_ms=3.0, p99_ms=11.0)
THEIRS = Figures(plain_ms=12.0, stream_ms=30.0, requests_per_s=20.0, p50_ms=9.0, p99_ms=40.0)


async def nothing(_: Question) -> None:
    pass


def gateway(client: HttpClient) -> Gateway:
    return Gateway("g", client, nothing, lambda: 0.0, PeerFailed)


def test_what_a_gateway_costs_is_held_against_its_own_bars_and_an_eighth_of_the_other() -> None:
    verdicts = {finding.case: (finding.figure, finding.verdict) for finding in findings(OURS, THEIRS)}
    assert verdicts == {
        "processor time, plain": (1.5, "met"),
        "processor time, stream of 20 chunks": (5.0, "missed"),
        "latency added at half load, p50": (3.0, "met"),
        "latency added at half load, p99": (11.0, "missed"),
        "processor time, plain, theirs / ours": (8.0, "met"),
        "processor time, stream, theirs / ours": (6.0, "missed"),
        "most requests a second, ours / theirs": (5.0, ""),
    }


def test_alone_it_is_held_against_its_own_bars() -> None:
    assert [finding.figure for finding in findings(OURS, None)] == [1.5, 5.0, 3.0, 11.0]


def test_the_best_round_counts_of_what_noise_only_adds_to_and_the_median_of_differences() -> None:
    rounds = [Figures(1, 5, 50, 2, -9), Figures(2, 4, 60, 3, 8), Figures(3, 6, 40, -1, 9)]
    assert Figures.of(rounds) == Figures(1, 4, 60, 2, 8)


def test_both_sides_get_the_same_conversation() -> None:
    question = Question.of(Prompt((1, 2), 16), is_streamed=True)
    body = json.loads(question.body)
    assert body["messages"] == [{"role": "user", "content": "t1 t2"}]
    assert (body["max_tokens"], body["stream"]) == (16, True)


@pytest.mark.parametrize("body", [b'data: {"choices": []}\n\n', b'{"error": {}}'])
def test_an_answer_that_is_none_is_no_measurement(body: bytes) -> None:
    status = 200 if body.startswith(b"data") else 500
    exchange = Exchange(0.0, [(0.0, body)], status)
    with pytest.raises(PeerFailed, match="g: "):
        gateway(HttpClient("http://127.0.0.1:1")).check(exchange)


def test_the_upstream_answers_as_the_stub_engine_does() -> None:
    async def ask(url: str) -> tuple[Exchange, Exchange]:
        client = HttpClient(url)
        try:
            questions = [Question.of(Prompt((1,), 153), is_streamed=is_streamed) for is_streamed in (False, True)]
            return await client.post(ROUTE, questions[0].body), await client.post(ROUTE, questions[1].body)
        finally:
            await client.aclose()

    with Peer("upstream", Path(sys.executable), SCRIPT, {}) as peer:
        whole, stream = asyncio.run(ask(peer.ready["url"]))
    assert read(whole).output_tokens == 153
    body = b"".join(part for _, part in stream.parts)
    # A role, 20 pieces, and the end.
    assert body.count(b"data: ") == 22
    assert body.count(b"t0 ") == 153
    assert body.endswith(DONE)
