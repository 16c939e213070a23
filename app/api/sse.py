"""Server-sent events: how a stream is framed, byte for byte.

Each event is one ``data:`` line and an empty line; JSON has no raw line breaks, so
one line always suffices. A comment line keeps proxies from closing a silent stream.
"""

from pydantic import BaseModel
from pydantic_core import to_json

from app.errors import AppError

DONE = b"data: [DONE]\n\n"
KEEP_ALIVE = b": keep-alive\n\n"
HEADERS = {
    "content-type": "text/event-stream; charset=utf-8",
    "cache-control": "no-cache",
    # nginx would otherwise collect the events.
    "x-accel-buffering": "no",
}


def event(body: BaseModel) -> bytes:
    """One event with the fields of ``body`` that were set, in UTF-8."""
    return b"data: " + body.__pydantic_serializer__.to_json(body, exclude_unset=True) + b"\n\n"


def error_event(error: AppError) -> bytes:
    """The event that ends a stream which broke off; no ``[DONE]`` follows it."""
    return b"data: " + to_json(error.body()) + b"\n\n"
