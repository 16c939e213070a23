"""After a kill: what journals hold is billed, what nobody will settle is freed.

A process that has ended leaves its journal (``app.journal``) and its reservations. The next
one bills what had been delivered and frees what was held; if there is no next one, the
worker frees reservations once they expire.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import asyncpg
from sqlalchemy import Row, text

from app.db import Database
from app.errors import DataError, TollgateError
from app.journal import Orphan, Remnant, orphans
from app.lane import Lane
from app.settlements import BROKEN_OFF, Price, Settlement, filled, settlement_lane, write
from app.telemetry import USAGE_ROWS, get_logger, labelled

log = get_logger(__name__)

_RESERVED = "SELECT request_id, org_id, key_id FROM reservations"
_MOST_AT_ONCE = 500
"""Settlements: a lane refuses who comes when thousands wait."""
_SOME = f"ORDER BY org_id, key_id LIMIT {_MOST_AT_ONCE}"


async def replay(database: Database, lane: Lane, folder: Path) -> int:
    """Bills what journals of processes that have ended hold, and frees what those had reserved.

    Args:
        database: To find their reservations.
        lane: For settlements.
        folder: Of the journals.

    Returns:
        Number of usage rows that the journals called for; those that were there already stay as they are.

    Raises:
        DatabaseUnavailable: The journals that are left can be replayed later.
        DataError: One holds what no request has; the others are replayed.
        OSError: A journal cannot be read.
    """
    num_rows, failure = 0, None
    for orphan in orphans(folder):
        try:
            rows = [row for remnant in orphan.remnants().values() if (row := _row_of(remnant)) is not None]
            for start in range(0, len(rows), _MOST_AT_ONCE):
                await asyncio.gather(*(write(lane, row) for row in rows[start : start + _MOST_AT_ONCE]))
            await _release_of(database, lane, orphan)
        except (TollgateError, asyncpg.PostgresError) as error:
            # One that cannot be replayed keeps nobody from the others.
            orphan.leave()
            failure = failure or error
            continue
        except BaseException:
            orphan.leave()
            raise
        orphan.delete()
        num_rows += len(rows)
        for row in rows:
            labelled(USAGE_ROWS, row.kind, row.state).inc()
        log.info("journal.replayed", holder=str(orphan.holder), num_rows=len(rows))
    if failure is not None:
        raise failure
    return num_rows


async def release_expired(database: Database) -> int:
    """Frees reservations whose time is over; returns how many.

    Their requests have ended without a word: the process was killed, and no other has
    replayed its journal since.
    """
    num_freed, lane = 0, settlement_lane(database)
    try:
        while True:
            async with database.begin() as connection:
                found = (await connection.execute(text(f"{_RESERVED} WHERE expires_at <= now() {_SOME}"))).all()
            if not found:
                return num_freed
            await _release(lane, found)
            num_freed += len(found)
    finally:
        await lane.aclose()


async def _release(lane: Lane, reserved: Sequence[Row[Any]]) -> None:
    now = datetime.now(UTC)
    freed = (Settlement(row.request_id, row.org_id, row.key_id, now, bills=False) for row in reserved)
    await asyncio.gather(*(write(lane, settlement) for settlement in freed))


async def _release_of(database: Database, lane: Lane, orphan: Orphan) -> None:
    while True:
        async with database.begin() as connection:
            statement = text(f"{_RESERVED} WHERE holder = :holder {_SOME}")
            found = (await connection.execute(statement, {"holder": orphan.holder})).all()
        if not found:
            return
        await _release(lane, found)


def _row_of(remnant: Remnant) -> Settlement | None:
    """What a journal calls for; None: nothing was delivered, which costs nothing.

    Raises:
        DataError: It was written by a version that this one does not understand.
    """
    try:
        price = Price(**remnant.opening.get("price", {"input": 0, "cached": 0, "output": 0}))
        row = Settlement.parse({name: value for name, value in remnant.opening.items() if name != "price"})
    except (TypeError, ValueError, KeyError):
        raise DataError("a line of the journal is of another version") from None
    if remnant.is_whole:
        return replace(row, state="recovered")
    if not remnant.output_tokens:
        return None
    row = filled(row, price, remnant.output_tokens, remnant.cached_tokens, remnant.engine_ms, finish_reason=BROKEN_OFF)
    return replace(row, state="recovered")
