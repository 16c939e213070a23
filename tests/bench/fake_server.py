"""An OpenAI-compatible server of a few lines: answers as the test says, at once."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

Answer = Callable[[dict[str, Any]], bytes]


@dataclass
class FakeServer:
    """Remembers what it was asked."""

    answer: Answer
    url: str = ""
    bodies: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)
    num_connections: int = 0
    _open: dict[asyncio.Task[None] | None, asyncio.StreamWriter] = field(default_factory=dict)

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.num_connections += 1
        self._open[asyncio.current_task()] = writer
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                fields = dict(line.split(": ", 1) for line in head.decode().split("\r\n")[1:] if line)
                body = json.loads(await reader.readexactly(int(fields.get("Content-Length", 0))))
                self.bodies.append(body)
                self.keys.append(fields.get("Authorization", ""))
                raw = self.answer(body)
                writer.write(raw)
                if not raw.startswith(b"HTTP/1.1 200") or b"Connection: close" in raw:
                    return
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            return
        finally:
            writer.close()
            with suppress(ConnectionError):
                await writer.wait_closed()

    async def aclose(self) -> None:
        """Ends every connection; a loop that ended before them would leave their sockets open."""
        for writer in self._open.values():
            writer.close()
        await asyncio.gather(*filter(None, self._open))


@asynccontextmanager
async def fake_server(answer: Answer) -> AsyncIterator[FakeServer]:
    """The server, listening."""
    fake = FakeServer(answer)
    server = await asyncio.start_server(fake.handle, "127.0.0.1", 0)
    fake.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
    try:
        async with server:
            yield fake
    finally:
        await fake.aclose()


def whole(body: dict[str, Any]) -> bytes:
    """One JSON answer as long as was asked for."""
    return response(json.dumps(completion("a" * body["max_tokens"], body, reason="length")).encode())


def stream(body: dict[str, Any]) -> bytes:
    """One event a token, usage at the end."""
    events = [completion("a") for _ in range(body["max_tokens"])]
    events += [completion("", reason="length"), {"choices": [], "usage": usage(body)}]
    return chunked(*(b"data: " + json.dumps(event).encode() + b"\n\n" for event in events), b"data: [DONE]\n\n")


def completion(text: str, body: dict[str, Any] | None = None, reason: str | None = None) -> dict[str, Any]:
    answer: dict[str, Any] = {"choices": [{"index": 0, "text": text, "finish_reason": reason}]}
    return answer | ({"usage": usage(body)} if body else {})


def usage(body: dict[str, Any]) -> dict[str, int]:
    return {"prompt_tokens": len(body["prompt"]), "completion_tokens": body["max_tokens"]}


def response(body: bytes, status: str = "200 OK", more: str = "") -> bytes:
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n{more}\r\n".encode() + body


def chunked(*parts: bytes) -> bytes:
    chunks = b"".join(f"{len(part):x}\r\n".encode() + part + b"\r\n" for part in parts)
    return b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks + b"0\r\n\r\n"
