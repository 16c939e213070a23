import asyncio

import pytest

from app.api.running import RunningRequests


class Request:
    """Work that can be held up, and that has something to do at its end."""

    def __init__(self) -> None:
        self.started = asyncio.Event()
        self.closing = asyncio.Event()
        self.may_close = asyncio.Event()
        self.is_settled = False
        self.task: asyncio.Task[None] | None = None

    async def run(self) -> None:
        try:
            self.started.set()
            await asyncio.Event().wait()
        finally:
            self.closing.set()
            await self.may_close.wait()
            self.is_settled = True


async def test_an_error_reaches_the_server() -> None:
    async def fail() -> None:
        raise LookupError

    requests = RunningRequests()
    with pytest.raises(LookupError):
        await requests.run(fail())
    await requests.finish()


async def test_cancelled_twice_a_request_still_comes_to_its_end() -> None:
    requests, request = RunningRequests(), Request()
    task = asyncio.create_task(requests.run(request.run()))
    await request.started.wait()
    task.cancel()
    await request.closing.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not request.is_settled
    request.may_close.set()
    await requests.finish()
    assert request.is_settled


def test_the_end_of_the_loop_cancels_a_request_once() -> None:
    requests, request = RunningRequests(), Request()
    request.may_close.set()

    async def serve() -> None:
        # Like a second Ctrl-C: the loop ends and cancels whatever runs.
        request.task = asyncio.create_task(requests.run(request.run()))
        await request.started.wait()

    asyncio.run(serve())
    assert request.is_settled
