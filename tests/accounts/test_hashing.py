"""Passwords at work beside the event loop."""

import asyncio

import pytest

from app.accounts.hashing import Hashing
from app.errors import BadRequest, Overloaded
from tests.factories import PASSWORD


async def test_what_is_hashed_fits() -> None:
    hashing = Hashing()
    password_hash = await hashing.hash(PASSWORD)
    assert await hashing.fits(password_hash, PASSWORD)
    assert not await hashing.fits(password_hash, "another password")
    assert not await hashing.fits(None, PASSWORD)
    hashing.close()


async def test_a_flood_is_turned_away_at_once() -> None:
    hashing = Hashing(num_threads=1, max_waiting=2)
    results = await asyncio.gather(*(hashing.fits(None, PASSWORD) for _ in range(5)), return_exceptions=True)
    assert [type(result) for result in results] == [bool, bool, bool, Overloaded, Overloaded]
    assert await hashing.fits(None, PASSWORD) is False  # there is room again
    hashing.close()


async def test_whoever_gives_up_leaves_room() -> None:
    hashing = Hashing(num_threads=1, max_waiting=0)
    task = asyncio.create_task(hashing.fits(None, PASSWORD))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await hashing.fits(None, PASSWORD) is False
    hashing.close()


async def test_what_nobody_may_choose_takes_no_time() -> None:
    hashing = Hashing(num_threads=1, max_waiting=-1)
    for password in ("short", "password123"):
        with pytest.raises(BadRequest):
            await hashing.hash(password)
    with pytest.raises(BadRequest):
        await hashing.hash("Jane.Roe-2026", "jane.roe@acme.example")
    hashing.close()
