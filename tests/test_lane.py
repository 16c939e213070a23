"""Many callers, one connection, one statement."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import pytest
from sqlalchemy import text

from app import lane
from app.db import Database
from app.errors import DatabaseUnavailable, Overloaded
from app.lane import BrokenOff, Lane

ORDER = (b"", b"")
# One row each: the argument's inverse, in which transaction, and by which backend.
STATEMENT = "SELECT 12 / $1::int AS quotient, pg_current_xact_id()::text AS xact, pg_backend_pid() AS backend"


@pytest.fixture
async def divide(database: Database) -> AsyncIterator[Lane]:
    """A lane that fails where it is asked to divide by zero."""
    divide = Lane(database.url, STATEMENT)
    yield divide
    await divide.aclose()


async def test_each_caller_gets_its_own_row(divide: Lane) -> None:
    rows = await asyncio.gather(*(divide.ask(ORDER, (number,)) for number in (1, 2, 3, 4)))
    assert [row["quotient"] for row in rows] == [12, 6, 4, 3]


async def test_callers_that_come_together_share_a_transaction(divide: Lane) -> None:
    first = await divide.ask(ORDER, (1,))
    rows = await asyncio.gather(*(divide.ask(ORDER, (1,)) for _ in range(5)))
    assert len({row["xact"] for row in rows}) == 1
    assert first["xact"] != rows[0]["xact"]


async def test_more_than_a_batch_takes_several(divide: Lane, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lane, "_MAX_BATCH", 2)
    rows = await asyncio.gather(*(divide.ask(ORDER, (1,)) for _ in range(5)))
    assert len({row["xact"] for row in rows}) == 3


async def test_a_failure_is_its_callers_alone(divide: Lane) -> None:
    outcomes = await asyncio.gather(*(divide.ask(ORDER, (number,)) for number in (1, 0, 2)), return_exceptions=True)
    assert isinstance(outcomes[1], asyncpg.DivisionByZeroError)
    assert [outcomes[0]["quotient"], outcomes[2]["quotient"]] == [12, 6]  # type: ignore[index]


async def test_what_cannot_be_bound_fails_and_the_lane_goes_on(divide: Lane) -> None:
    with pytest.raises(asyncpg.DataError):
        await divide.ask(ORDER, ("one",))
    assert (await divide.ask(ORDER, (1,)))["quotient"] == 12


async def test_a_batch_runs_in_the_order_of_its_callers(database: Database) -> None:
    async with database.begin() as connection:
        await connection.execute(text("CREATE SEQUENCE IF NOT EXISTS turns"))
    turns = Lane(database.url, "SELECT nextval('turns') AS turn, $1::int AS number")
    rows = await asyncio.gather(*(turns.ask((bytes([order]), b""), (order,)) for order in (3, 1, 2)))
    assert [row["number"] for row in sorted(rows, key=lambda row: int(row["turn"]))] == [1, 2, 3]
    await turns.aclose()


async def test_a_caller_that_gives_up_holds_up_nobody(divide: Lane) -> None:
    given_up = asyncio.create_task(divide.ask(ORDER, (1,)))
    other = asyncio.create_task(divide.ask(ORDER, (2,)))
    await asyncio.sleep(0)
    given_up.cancel()
    assert (await other)["quotient"] == 6
    assert given_up.cancelled()


async def test_a_full_lane_says_so_at_once(divide: Lane, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lane, "_MAX_WAITING", 2)
    outcomes = await asyncio.gather(*(divide.ask(ORDER, (1,)) for _ in range(3)), return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [asyncpg.Record, asyncpg.Record, Overloaded]


async def test_a_server_that_is_away_is_unavailable_and_nothing_has_run() -> None:
    away = Lane("postgresql://nobody@127.0.0.1:9/none", STATEMENT, timeout_s=1)
    with pytest.raises(DatabaseUnavailable) as refusal:
        await away.ask(ORDER, (1,))
    assert not isinstance(refusal.value, BrokenOff)
    await away.aclose()


async def test_tables_that_are_not_there_are_said_by_their_remedy(database: Database) -> None:
    missing = Lane(database.url, "SELECT 1 FROM no_such_table")
    with pytest.raises(DatabaseUnavailable, match="tollgate db migrate"):
        await missing.ask(ORDER, ())
    await missing.aclose()


async def test_after_a_cut_the_next_caller_gets_a_fresh_connection(database: Database, divide: Lane) -> None:
    first = await divide.ask(ORDER, (1,))
    async with database.begin() as connection:
        await connection.execute(text("SELECT pg_terminate_backend(:pid, 5000)"), {"pid": first["backend"]})
    # The lane may hear of the cut only when it writes.
    try:
        second = await divide.ask(ORDER, (1,))
    except BrokenOff:
        second = await divide.ask(ORDER, (1,))
    assert second["backend"] != first["backend"]


async def test_a_statement_that_takes_too_long_is_broken_off(database: Database) -> None:
    slow = Lane(database.url, "SELECT pg_sleep(60), $1::int", timeout_s=0.2)
    with pytest.raises(BrokenOff):
        await slow.ask(ORDER, (1,))
    await slow.aclose()


async def test_closing_waits_for_those_who_wait(divide: Lane) -> None:
    asked = asyncio.create_task(divide.ask(ORDER, (1,)))
    await asyncio.sleep(0)
    await divide.aclose()
    assert asked.done()
    assert (await asked)["quotient"] == 12


async def test_a_sender_that_is_cancelled_before_its_first_step_leaves_nobody_waiting(divide: Lane) -> None:
    asked = asyncio.create_task(divide.ask(ORDER, (1,)))
    await asyncio.sleep(0)
    cancel_sender_of(divide)
    with pytest.raises(DatabaseUnavailable) as refusal:
        await asyncio.wait_for(asked, 10)
    assert not isinstance(refusal.value, BrokenOff)
    assert (await divide.ask(ORDER, (3,)))["quotient"] == 4


async def test_a_sender_that_is_cancelled_under_way_leaves_nobody_waiting(database: Database) -> None:
    slow = Lane(database.url, "SELECT pg_sleep(60), $1::int")
    first = asyncio.create_task(slow.ask(ORDER, (1,)))
    while not await is_asleep(database):
        pass
    second = asyncio.create_task(slow.ask(ORDER, (2,)))
    await asyncio.sleep(0)
    cancel_sender_of(slow)
    outcomes = await asyncio.wait_for(asyncio.gather(first, second, return_exceptions=True), 10)
    # The first may have run, the second has not.
    assert [type(outcome) for outcome in outcomes] == [BrokenOff, DatabaseUnavailable]
    await slow.aclose()


async def test_a_fault_of_one_batch_does_not_hold_up_the_next(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lane, "_MAX_BATCH", 1)
    faulty = Lane(database.url, STATEMENT)

    async def broken() -> Any:
        raise TypeError

    monkeypatch.setattr(faulty, "_connected", broken)
    asked = asyncio.gather(faulty.ask(ORDER, (1,)), faulty.ask(ORDER, (2,)), return_exceptions=True)
    assert [type(outcome) for outcome in await asyncio.wait_for(asked, 10)] == [TypeError, TypeError]
    await faulty.aclose()


async def test_a_database_that_refuses_us_is_unavailable(database: Database) -> None:
    nowhere = Lane(database.url.replace("/test_", "/none_"), STATEMENT)
    with pytest.raises(DatabaseUnavailable):
        await nowhere.ask(ORDER, (1,))
    await nowhere.aclose()


async def test_what_nobody_waits_for_any_more_is_not_sent_where_that_is_wanted(database: Database) -> None:
    async with database.begin() as connection:
        await connection.execute(text("CREATE SEQUENCE runs"))
    try:
        lane = Lane(database.url, "SELECT nextval('runs') AS run, $1::int AS asked", runs_abandoned=False)
        gone = asyncio.create_task(lane.ask(ORDER, (1,)))
        await asyncio.sleep(0)
        gone.cancel()
        assert (await lane.ask(ORDER, (2,)))["run"] == 1
        assert gone.cancelled()
        await lane.aclose()
    finally:
        async with database.begin() as connection:
            await connection.execute(text("DROP SEQUENCE runs"))


def cancel_sender_of(lane: Lane) -> None:
    """As the end of an event loop does, which cancels every task."""
    sending = next(task for task in asyncio.all_tasks() if task.get_coro() is not None and "Lane._send" in repr(task))
    sending.cancel()


async def is_asleep(database: Database) -> bool:
    async with database.begin() as connection:
        statement = text(
            "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep' AND datname = current_database()"
        )
        return bool((await connection.execute(statement)).scalar_one())
