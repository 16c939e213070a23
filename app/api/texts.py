"""What classifications and embeddings share: inputs become token ids, and the engine reads them.

A text is refused, never cut; work for a client that leaves is given up.
"""

import asyncio
from collections.abc import Awaitable, Sequence
from typing import TypeVar

from starlette.types import Receive

from app.api.call import Call
from app.api.served import ServedModel
from app.errors import BadRequest, ContextLengthExceeded

T = TypeVar("T")

FINISHED = "stop"


async def token_ids(served: ServedModel, inputs: Sequence[str | list[int]], *, is_list: bool) -> list[list[int]]:
    """Token ids of each input.

    Args:
        served: whose tokenizer and limits.
        inputs: texts, or token ids already.
        is_list: whether the caller sent a list of them, for the name of a bad one.

    Raises:
        BadRequest: An input holds no tokens, or one that does not exist.
        ContextLengthExceeded: An input is longer than the model reads.
    """
    return [await _ids(served, one, f"input[{i}]" if is_list else "input") for i, one in enumerate(inputs)]


async def unless_gone(call: Call, work: Awaitable[T]) -> T | None:
    """What the engine answers; None if the client left before it was there."""
    working = asyncio.ensure_future(work)
    gone = asyncio.create_task(_client_gone(call.request.receive))
    try:
        await asyncio.wait({working, gone}, return_when=asyncio.FIRST_COMPLETED)
        return working.result() if working.done() else None
    finally:
        for task in (working, gone):
            task.cancel()
        await asyncio.gather(working, gone, return_exceptions=True)


async def _ids(served: ServedModel, given: str | list[int], param: str) -> list[int]:
    ids = await served.encode(given, param) if isinstance(given, str) else given
    if not ids or (isinstance(given, str) and not given.strip()):
        raise BadRequest("The input is empty.", param=param)
    if max(ids) >= served.card.vocab_size:
        raise BadRequest(f"The model has no token {max(ids)}; ids are below {served.card.vocab_size}.", param=param)
    longest = served.card.context_length
    if len(ids) > longest:
        raise ContextLengthExceeded(
            f"This model reads at most {longest} tokens, but the input has {len(ids)}. Please shorten it.",
            param=param,
        )
    return ids


async def _client_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
