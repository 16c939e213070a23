import json
from typing import Any

import pytest

from tests.bench.fake_server import response, stream, whole
from tests.bench.threaded_server import threaded_server
from tests.cli.test_models import run

SERVE = ("bench", "serve", "--model", "m", "--input-len", "3:9", "--output-len", "2:6", "--warm-up", "0")


def test_a_closed_loop_is_reported_as_json(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with threaded_server(stream) as server:
        words = ("--base-url", server.url, "--api-key", "a-key", "--concurrency", "3", "--requests", "20", "--json")
        code = run(monkeypatch, *SERVE, *words)
        asked = len(server.bodies)

    report = json.loads(capsys.readouterr().out)
    assert (code, asked, report["requests"], report["succeeded"], report["errors"]) == (0, 20, 20, 20, {})
    for latency in ("time_to_first_token_ms", "inter_token_latency_ms", "time_per_output_token_ms"):
        assert report[latency].keys() == {"count", "mean", "p50", "p90", "p95", "p99", "max"}
    assert report["output_tokens_per_s"] > 0
    assert set(server.keys) == {"Bearer a-key"}


def test_an_open_loop_is_reported_as_a_table(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with threaded_server(whole) as server:
        words = ("--base-url", server.url, "--rate", "500", "--requests", "10", "--no-stream", "--min-tokens")
        code = run(monkeypatch, *SERVE, *words)
        bodies = [*server.bodies]

    shown = capsys.readouterr().out
    assert (code, len(bodies)) == (0, 10)
    assert "10 of 10 requests" in shown
    [first] = [line for line in shown.splitlines() if line.startswith("time to first token")]
    assert set(first.removeprefix("time to first token").split()) == {"-"}
    assert all(body["min_tokens"] == body["max_tokens"] and "stream" not in body for body in bodies)


def test_a_load_with_errors_ends_with_one(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def refuse(body: dict[str, Any]) -> bytes:
        return response(b'{"error": {"code": "overloaded"}}', "503 Service Unavailable", "Connection: close\r\n")

    with threaded_server(refuse) as server:
        code = run(monkeypatch, *SERVE, "--base-url", server.url, "--requests", "2")

    assert code == 1
    assert "ERROR x2: overloaded" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("--rate", "0"), 1, "--rate must be above 0"),
        (("--input-len", "9:3"), 1, "must rise"),
        (("--concurrency", "0"), 2, "--concurrency"),
        (("--base-url", "localhost:8000"), 1, "must begin with http://"),
    ],
)
def test_a_load_that_makes_no_sense_is_refused_in_a_line(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: tuple[str, str],
    code: int,
    message: str,
) -> None:
    assert run(monkeypatch, *SERVE, *words) == code
    assert message in capsys.readouterr().err
