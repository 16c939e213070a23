import json
import math
from dataclasses import replace
from typing import Any

import pytest

from app.bench.answers import read
from app.bench.http import Exchange, HttpClient
from app.bench.load import Load, Measured, run
from app.bench.serve_report import ServeReport
from app.bench.workload import Lengths
from app.errors import ConfigError
from tests.bench.fake_server import Answer, FakeServer, chunked, fake_server, response, stream, whole

LOAD = Load("m", Lengths(3, 9), Lengths(2, 6), concurrency=3, num_requests=20, num_warm_up=2)


async def loaded(load: Load, answer: Answer = stream) -> tuple[Measured, FakeServer]:
    async with fake_server(answer) as server:
        client = HttpClient(server.url, "a-key", timeout_s=20)
        try:
            return await run(client, load), server
        finally:
            await client.aclose()


async def test_a_closed_loop_sends_each_request_once_with_the_key_over_one_connection_a_caller() -> None:
    measured, server = await loaded(LOAD)
    assert len(measured.answers) == 20
    assert len(server.bodies) == 22
    assert set(server.keys) == {"Bearer a-key"}
    assert server.num_connections <= 3
    assert all(body["temperature"] == 0 and body["stream"] for body in server.bodies)


async def test_tokens_are_those_that_the_server_counted_without_the_warm_up() -> None:
    measured, server = await loaded(LOAD)
    report = ServeReport.of(measured)
    assert report.input_tokens == sum(len(body["prompt"]) for body in server.bodies[2:])
    assert report.output_tokens == sum(body["max_tokens"] for body in server.bodies[2:])
    assert report.inter_token_ms.count == report.output_tokens - 20
    assert report.first_token_ms.count == report.per_token_ms.count == 20


async def test_whole_answers_have_an_end_but_no_first_token() -> None:
    measured, server = await loaded(replace(LOAD, is_streamed=False), whole)
    report = ServeReport.of(measured)
    assert "stream" not in server.bodies[0]
    assert report.latency_ms.count == 20
    assert report.first_token_ms.count == 0
    assert report.output_tokens == sum(body["max_tokens"] for body in server.bodies[2:])


async def test_an_open_loop_sends_all_that_are_due_within_the_duration() -> None:
    measured, _ = await loaded(replace(LOAD, rate=2000.0, num_requests=None, duration_s=0.05))
    assert len(measured.answers) > 20
    assert not any(answer.error for answer in measured.answers)


async def test_errors_are_counted_by_code_and_left_out_of_the_latencies() -> None:
    def refuse_some(body: dict[str, Any]) -> bytes:
        if body["max_tokens"] % 2:
            error = {"error": {"message": "no", "type": "t", "param": None, "code": "overloaded"}}
            return response(json.dumps(error).encode(), "503 Service Unavailable", "Connection: close\r\n")
        return stream(body)

    measured, server = await loaded(LOAD, refuse_some)
    report = ServeReport.of(measured)
    refused = sum(body["max_tokens"] % 2 for body in server.bodies[2:])
    assert report.errors == {"overloaded": refused}
    assert report.latency_ms.count == report.num_ok == 20 - refused
    assert f"ERROR x{refused}: overloaded" in report.as_text()


@pytest.mark.parametrize(
    ("raw", "error"),
    [
        (chunked(b'data: {"choices": [{"text": "a"}]}\n\n'), "broke off"),
        (chunked(b'data: {"choices": [{"text": "a"}]}\n\n', b'data: {"error": {"code": "gone"}}\n\n'), "gone"),
        (response(b"<html>", "200 OK", "Connection: close\r\n"), "no JSON"),
        (response(b"<html>", "502 Bad Gateway", "Connection: close\r\n"), "502"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\nConnection: close\r\n\r\nabc", "connection closed"),
        (b"nonsense\r\n\r\n", "HttpParserError"),
    ],
)
async def test_what_is_no_whole_answer_is_an_error(raw: bytes, error: str) -> None:
    async with fake_server(lambda _: raw) as server:
        exchange = await HttpClient(server.url, timeout_s=20).post("/completions", b"{}")
    assert read(exchange).error == error


async def test_nobody_listening_is_an_error_and_not_an_exception() -> None:
    async with fake_server(stream) as server:
        pass
    assert read(await HttpClient(server.url).post("/completions", b"{}")).error == "ConnectionRefusedError"


def test_latencies_of_a_stream_are_those_of_its_text() -> None:
    def event(text: str) -> bytes:
        return b'data: {"choices": [{"text": "%s"}]}\n\n' % text.encode()

    last = b'data: {"choices": [], "usage": {"prompt_tokens": 4, "completion_tokens": 3}}\n\ndata: [DONE]\n\n'
    parts = [(10.5, event("")), (11.0, event("a")[:9]), (12.0, event("a")[9:]), (12.25, b": keep-alive\n\n")]
    parts += [(13.0, event("bc")), (13.5, last)]
    answer = read(Exchange(due_at=10.0, parts=parts, status=200, ended_at=13.6))
    assert (answer.first_s, answer.gaps_s, answer.text) == (2.0, (1.0,), "abc")
    assert answer.per_token_s == 0.5
    assert answer.latency_s == pytest.approx(3.6)


def test_the_json_report_has_no_nan_and_the_table_every_latency() -> None:
    report = ServeReport.of(Measured(LOAD, (), 0.0, 0.0))
    assert json.loads(json.dumps(report.as_json(), allow_nan=False))["requests"] == 0
    assert all(name in report.as_text() for name in report.latencies)


@pytest.mark.parametrize(
    "wrong", [{"num_requests": None}, {"rate": 0.0}, {"rate": math.nan}, {"duration_s": math.nan}, {"duration_s": -1.0}]
)
def test_a_load_without_an_end_or_without_arrivals_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        replace(LOAD, **wrong)


@pytest.mark.parametrize("url", ["ftp://x/v1", "localhost:8000", "http://"])
def test_an_address_that_is_not_of_http_is_refused(url: str) -> None:
    with pytest.raises(ConfigError):
        HttpClient(url)
