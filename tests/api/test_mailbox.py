import asyncio

import pytest

from app.api.mailbox import Mailbox


async def test_things_come_out_in_the_order_in_which_they_were_put() -> None:
    mailbox = Mailbox[int](3)
    for number in (1, 2, 3):
        mailbox.put(number)
    assert len(mailbox) == 3
    assert [await mailbox.take() for _ in range(3)] == [1, 2, 3]
    assert not mailbox


async def test_who_waits_gets_what_is_put_later() -> None:
    mailbox = Mailbox[int](2)
    taking = asyncio.create_task(mailbox.take())
    await asyncio.sleep(0)
    mailbox.put(1)
    mailbox.put(2)
    assert await taking == 1
    assert await mailbox.take() == 2


async def test_a_taker_that_gives_up_leaves_everything_to_the_next() -> None:
    mailbox = Mailbox[int](1)
    taking = asyncio.create_task(mailbox.take())
    await asyncio.sleep(0)
    taking.cancel()
    mailbox.put(1)
    with pytest.raises(asyncio.CancelledError):
        await taking
    assert await mailbox.take() == 1
