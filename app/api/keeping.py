"""Notes an answer while it is sent, for organisations that let their requests be kept."""

from datetime import timedelta
from http import HTTPStatus

from starlette.types import Message, Send

from app.api.call import Call
from app.privacy.prompts import Kept, PromptStore

MAX_ANSWER_BYTES = 4 * 2**20
"""A longer answer is not kept at all: a part of one would be taken for the whole."""


def keeping(send: Send, call: Call, days: int, store: PromptStore) -> Send:
    """Sends on, and hands a whole, good answer to ``store`` once its last byte is sent.

    Args:
        send: To the client.
        call: What is answered; its body has been read by then.
        days: For so long.
        store: Takes it.
    """
    parts: list[bytes] = []
    num_bytes, is_good = 0, True

    async def keep(message: Message) -> None:
        nonlocal num_bytes, is_good
        await send(message)
        if message["type"] == "http.response.start":
            is_good = message["status"] == HTTPStatus.OK
        if not is_good or message["type"] != "http.response.body":
            return
        parts.append(message.get("body", b""))
        num_bytes += len(parts[-1])
        is_good = num_bytes <= MAX_ANSWER_BYTES
        if is_good and not message.get("more_body", False):
            store.keep(await _kept(call, b"".join(parts), days))

    return keep


async def _kept(call: Call, answer: bytes, days: int) -> Kept:
    return Kept(
        call.id,
        call.key.org_id,
        call.started_at,
        call.request.url.path,
        await call.request.body(),
        answer,
        call.started_at + timedelta(days=days),
    )
