import json
import logging
import socket
import subprocess
import sys
from pathlib import Path
from typing import Literal

import httpx
import pytest

from app.auth import generate_key
from app.config import Settings
from app.telemetry import TOKENS, configure_logging, get_logger, render_metrics, request_id, serving_metrics

COUNT_IN_A_PROCESS = "from app.telemetry import TOKENS; TOKENS.labels('m', 'output').inc(2)"
RENDER = "import sys; from app.telemetry import render_metrics; sys.stdout.buffer.write(render_metrics())"


def test_a_json_line_has_the_event_its_fields_and_the_request(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(Settings(log_format="json"))
    token = request_id.set("r-1")
    get_logger("test").info("request.finished", queue_s=0.5)
    request_id.reset(token)
    line = json.loads(capsys.readouterr().err)
    assert {"event": "request.finished", "queue_s": 0.5, "request_id": "r-1", "level": "info"}.items() <= line.items()


def test_a_process_without_http_shows_its_metrics_while_it_runs() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with serving_metrics("127.0.0.1", port):
        assert b"tollgate_job_last_success_seconds" in httpx.get(f"http://127.0.0.1:{port}/metrics").content
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"http://127.0.0.1:{port}/metrics")


def test_it_shows_them_nowhere_where_no_port_is_set() -> None:
    with serving_metrics("nowhere.invalid", 0):
        pass


def test_lines_of_libraries_have_the_same_form(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(Settings(log_format="json"))
    logging.getLogger("some.package").warning("careful with %s", "this")
    line = json.loads(capsys.readouterr().err)
    assert (line["event"], line["logger"]) == ("careful with this", "some.package")


def test_a_stack_is_part_of_the_line(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(Settings(log_format="json"))
    try:
        raise LookupError("nothing there")
    except LookupError:
        get_logger("test").exception("job.failed")
    assert "LookupError: nothing there" in json.loads(capsys.readouterr().err)["exception"]


@pytest.mark.parametrize("log_format", ["console", "json"])
def test_a_stack_shows_neither_a_variable_nor_a_key(
    log_format: Literal["console", "json"], capsys: pytest.CaptureFixture[str]
) -> None:
    configure_logging(Settings(log_format=log_format))
    key, prompt = generate_key(), " ".join(["the", "secret", "of", "the", "prompt"])

    def fail(prompt: str) -> None:
        raise LookupError(f"nothing for {key} among {len(prompt)}")

    try:
        fail(prompt)
    except LookupError:
        get_logger("test").exception("request.failed")
        logging.getLogger("some.package").exception("failed")
    lines = capsys.readouterr().err
    assert lines.count("LookupError: nothing for tg_live_… among 24") == 2
    assert prompt not in lines
    assert key[-36:] not in lines


@pytest.mark.parametrize("prefix", ["sk_live_", "sk_test_", "rk_live_", "whsec_"])
def test_a_secret_is_blotted_out(prefix: str, capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(Settings(log_format="json"))
    get_logger("test").warning("somebody.said", message=f"Invalid key: {prefix}0aB1cD2eF3+gH4/iJ5=.")
    line = capsys.readouterr().err
    assert f"Invalid key: {prefix}…." in line


@pytest.mark.parametrize("library", ["stripe", "httpx"])
def test_what_a_library_says_of_its_requests_is_not_logged(library: str, capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(Settings(log_level="debug"))
    logging.getLogger(library).info("email=someone@acme.example")
    assert capsys.readouterr().err == ""


def test_the_console_has_no_colour_where_nobody_sees_it(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(Settings(log_format="console"))
    get_logger("test").warning("engine.slow", model="m")
    line = capsys.readouterr().err
    assert "engine.slow" in line
    assert "\x1b" not in line


def test_lines_below_the_level_are_dropped(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(Settings(log_level="warning"))
    get_logger("test").info("too.small")
    assert capsys.readouterr().err == ""


def test_metrics_are_rendered_for_prometheus() -> None:
    TOKENS.labels("test-model", "output").inc(3)
    assert b'tollgate_tokens_total{direction="output",model="test-model"}' in render_metrics()


def test_metrics_of_several_processes_are_added(tmp_path: Path) -> None:
    environment = {"PROMETHEUS_MULTIPROC_DIR": str(tmp_path), "PATH": "/usr/bin:/bin"}
    for _ in range(2):
        subprocess.run([sys.executable, "-c", COUNT_IN_A_PROCESS], env=environment, check=True)
    rendered = subprocess.run([sys.executable, "-c", RENDER], env=environment, check=True, stdout=subprocess.PIPE)
    assert b'tollgate_tokens_total{direction="output",model="m"} 4.0' in rendered.stdout
