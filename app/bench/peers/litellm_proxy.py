"""The LiteLLM proxy, one worker, in front of an upstream of our own that answers at once.

First line: {"model": name, "prompt_tokens": number}; once both listen it prints {"url":
address, "upstream": address, "pid": of the proxy}. No database, no key, no callbacks and
no retries: the least that the proxy can do. The upstream runs in this process, so that
its processor time is not the proxy's.
"""

import asyncio
import ctypes
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

START_TIMEOUT_S = 120.0
POLL_S = 0.1
PR_SET_PDEATHSIG = 1  # linux/prctl.h
# All of its environment: an address of a database in ours must not reach it.
SETTINGS = {
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "LITELLM_LOG": "ERROR",
    "LITELLM_MODE": "PRODUCTION",
    "LITELLM_TELEMETRY": "False",
    "LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY": "true",
}
# As our own engine's stub sends them: the first token alone, then eight a piece.
TOKENS_PER_PIECE = 8

Message = dict[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


class Upstream:
    """An ASGI application that answers every chat completion with as many words as it asks for.

    Args:
        model: Name in its answers.
        prompt_tokens: That it says it has read.
    """

    def __init__(self, model: str, prompt_tokens: int) -> None:
        self._head = {"id": "chatcmpl-0", "created": 0, "model": model}
        self._prompt_tokens = prompt_tokens

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            return
        body = b""
        is_more = True
        while is_more:
            message = await receive()
            body += message.get("body", b"")
            is_more = message.get("more_body", False)
        asked = json.loads(body)
        if asked.get("stream"):
            await self._stream(asked["max_tokens"], send)
        else:
            await _start(send, b"application/json")
            await send({"type": "http.response.body", "body": self._whole(asked["max_tokens"])})

    def _whole(self, num_tokens: int) -> bytes:
        message = {"role": "assistant", "content": "t0 " * num_tokens}
        usage = {
            "prompt_tokens": self._prompt_tokens,
            "completion_tokens": num_tokens,
            "total_tokens": self._prompt_tokens + num_tokens,
        }
        choices = [{"index": 0, "message": message, "logprobs": None, "finish_reason": "length"}]
        return json.dumps({**self._head, "object": "chat.completion", "choices": choices, "usage": usage}).encode()

    async def _stream(self, num_tokens: int, send: Send) -> None:
        await _start(send, b"text/event-stream")
        await self._event(send, {"role": "assistant", "content": ""}, None)
        for size, is_last in pieces(num_tokens):
            await asyncio.sleep(0)  # each piece is a write of its own
            await self._event(send, {"content": "t0 " * size}, "length" if is_last else None)
        await send({"type": "http.response.body", "body": b"data: [DONE]\n\n"})

    async def _event(self, send: Send, delta: Message, finish_reason: str | None) -> None:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        event = {**self._head, "object": "chat.completion.chunk", "choices": [choice]}
        body = b"data: " + json.dumps(event).encode() + b"\n\n"
        await send({"type": "http.response.body", "body": body, "more_body": True})


async def _start(send: Send, content_type: bytes) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", content_type)]})


def pieces(num_tokens: int) -> Iterator[tuple[int, bool]]:
    """How many tokens come together, and whether they are the last."""
    sent = 0
    while sent < num_tokens:
        size = min(TOKENS_PER_PIECE if sent else 1, num_tokens - sent)
        sent += size
        yield size, sent == num_tokens


def proxy(folder: Path, port: int, model: str, upstream: str) -> "subprocess.Popen[bytes]":
    """The proxy's process, which ends with this one."""
    parameters = {
        "model": f"openai/{model}",
        "api_base": upstream,
        "api_key": "none",
        "input_cost_per_token": 0,
        "output_cost_per_token": 0,
    }
    config = {
        "model_list": [{"model_name": model, "litellm_params": parameters}],
        "router_settings": {"num_retries": 0, "disable_cooldowns": True},
    }
    path = folder / "config.yaml"
    path.write_text(json.dumps(config))  # JSON is YAML
    command = [str(Path(sys.executable).parent / "litellm"), "--config", str(path), "--host", "127.0.0.1"]
    return subprocess.Popen(
        [*command, "--port", str(port), "--num_workers", "1"],
        env=SETTINGS,
        stdin=subprocess.DEVNULL,
        stdout=2,
        preexec_fn=lambda: ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL),
    )


async def wait_for(process: "subprocess.Popen[bytes]", url: str) -> None:
    """Returns when the proxy answers; ends this process with the proxy."""
    started = time.monotonic()
    while time.monotonic() - started < START_TIMEOUT_S:
        if process.poll() is not None:
            raise SystemExit(f"the proxy ended with status {process.returncode}")
        try:
            await asyncio.to_thread(urllib.request.urlopen, url, timeout=5)
        except OSError:
            await asyncio.sleep(POLL_S)
        else:
            return
    raise SystemExit(f"the proxy did not answer within {START_TIMEOUT_S:g} s")


async def main() -> None:
    """Serve until the process is ended."""
    import uvicorn

    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    setup = json.loads(sys.stdin.readline())
    listener, port = socket.create_server(("127.0.0.1", 0), backlog=256), free_port()
    upstream = f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
    application = Upstream(setup["model"], setup["prompt_tokens"])
    server = uvicorn.Server(uvicorn.Config(application, lifespan="off", log_level="warning", access_log=False))
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    with tempfile.TemporaryDirectory() as folder:
        process = proxy(Path(folder), port, setup["model"], upstream)
        await wait_for(process, f"http://127.0.0.1:{port}/health/liveliness")
        ready = {"url": f"http://127.0.0.1:{port}/v1", "upstream": upstream, "pid": process.pid}
        answers.write(json.dumps(ready) + "\n")
        answers.flush()
        await serving


def free_port() -> int:
    """One that nobody listens on now: the proxy takes no socket."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
    return port


if __name__ == "__main__":
    import uvloop

    # asyncio itself leaves Nagle's algorithm on where a socket is handed in.
    uvloop.run(main())
