"""The audit log: what is recorded stays, and a change is found."""

import asyncio
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest
from sqlalchemy.exc import DBAPIError

from app import audit
from app.db import Database
from app.tables import new_id

ORG, REQUEST = new_id(), new_id()


async def write(database: Database, number: int = 0, **fields: Any) -> None:
    entry: dict[str, Any] = {
        "org_id": ORG,
        "actor": audit.OPERATOR,
        "action": "org.change",
        "target": f"org:{number}",
    } | fields
    async with database.begin() as connection:
        await audit.record(connection, **entry)


async def broken(database: Database) -> list[str]:
    async with database.begin() as connection:
        return await audit.find_broken(connection, 5)


async def tamper(database: Database, statement: str) -> None:
    """As whoever owns the table could."""
    async with database.begin() as connection:
        await connection.exec_driver_sql("ALTER TABLE audit_log DISABLE TRIGGER refuse_change")
        await connection.exec_driver_sql(statement)
        await connection.exec_driver_sql("ALTER TABLE audit_log ENABLE TRIGGER refuse_change")


async def test_an_entry_is_kept_as_it_was_given(database: Database) -> None:
    before = {"spend_cap": None, "plan": "free"}
    after = {"spend_cap": 10**18, "plan": "growth", "at": datetime(2030, 1, 1, tzinfo=UTC), "usd": Decimal("0.5")}
    await write(database, before=before, after=after, ip="2001:db8::7", request_id=REQUEST)
    async with database.begin() as connection:
        statement = 'SELECT org_id, actor, action, target, "before", "after", host(ip) AS ip, request_id FROM audit_log'
        row = (await connection.exec_driver_sql(statement)).one()
    kept = {**after, "at": "2030-01-01 00:00:00+00:00", "usd": "0.5"}
    assert tuple(row) == (ORG, "operator", "org.change", "org:0", before, kept, "2001:db8::7", REQUEST)
    assert await broken(database) == []


async def test_an_entry_that_is_not_committed_is_none(database: Database) -> None:
    async with database.engine.connect() as connection:
        await audit.record(connection, org_id=None, actor=audit.STRIPE, action="a.b", target="c:d")
        await connection.rollback()
    await write(database)
    assert await broken(database) == []


async def test_entries_that_are_written_at_once_make_one_chain(database: Database) -> None:
    await asyncio.gather(*(write(database, number) for number in range(20)))
    async with database.begin() as connection:
        rows = (await connection.exec_driver_sql("SELECT previous_hash, hash FROM audit_log ORDER BY id")).all()
    assert rows[0].previous_hash == bytes(32)
    assert [row.previous_hash for row in rows[1:]] == [row.hash for row in rows[:-1]]
    assert await broken(database) == []


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE audit_log SET actor = 'user:somebody' WHERE target = 'org:2'",
        "UPDATE audit_log SET at = at + interval '1 microsecond' WHERE target = 'org:2'",
        "UPDATE audit_log SET org_id = NULL WHERE target = 'org:2'",
        "UPDATE audit_log SET action = 'org.other' WHERE target = 'org:2'",
        "UPDATE audit_log SET target = 'org:9' WHERE target = 'org:2'",
        """UPDATE audit_log SET "before" = '{"a": 2}' WHERE target = 'org:2'""",
        """UPDATE audit_log SET "after" = NULL WHERE target = 'org:2'""",
        "UPDATE audit_log SET ip = '192.0.2.9' WHERE target = 'org:2'",
        "UPDATE audit_log SET request_id = gen_random_uuid() WHERE target = 'org:2'",
        "DELETE FROM audit_log WHERE target = 'org:2'",
        "DELETE FROM audit_log WHERE target = 'org:0'",
        # Sealed anew by itself, but not where the next one holds on to it.
        "UPDATE audit_log SET previous_hash = decode(repeat('00', 32), 'hex') WHERE target = 'org:2'",
        "INSERT INTO audit_log (at, actor, action, target, previous_hash, hash)"
        " SELECT at, actor, action, target, hash, sha256(hash) FROM audit_log WHERE target = 'org:4'",
    ],
)
async def test_a_change_breaks_the_chain(database: Database, change: str) -> None:
    for number in range(5):
        await write(database, number, before={"a": 1}, after={"b": [1, "ü"]}, ip="192.0.2.1", request_id=REQUEST)
    assert await broken(database) == []
    await tamper(database, change)
    assert len(await broken(database)) >= 1


@pytest.mark.parametrize("change", ["UPDATE audit_log SET actor = 'nobody'", "DELETE FROM audit_log"])
async def test_the_database_refuses_changes(database: Database, change: str) -> None:
    await write(database)
    with pytest.raises(DBAPIError, match="append-only"):
        async with database.begin() as connection:
            await connection.exec_driver_sql(change)


async def test_findings_are_limited(database: Database) -> None:
    for number in range(8):
        await write(database, number)
    await tamper(database, "UPDATE audit_log SET actor = 'nobody'")
    found = await broken(database)
    assert len(found) == 5
    assert "org.change org:0 by nobody" in found[0]
