"""An organisation can be deleted with everything that is its, and nothing of anybody else."""

import asyncio
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest
from sqlalchemy import insert, text
from sqlalchemy.exc import IntegrityError

from app.config import Settings
from app.db import Database
from app.errors import Conflict, NotFound
from app.privacy import deletion
from app.tables import Base, Membership, Subscription, UsageEvent, new_id
from tests.factories import make_key, make_org, make_user, someone_waits

NOW = datetime.now(UTC)
LATER = NOW + deletion.DELAY
KEPT = {"audit_log", "credit_ledger"}


async def rows_of(database: Database, org_id: UUID) -> dict[str, int]:
    """How many rows of each table are an organisation's."""
    found = {}
    async with database.begin() as connection:
        for table in Base.metadata.sorted_tables:
            if "org_id" in table.columns:
                count = text(f"SELECT count(*) FROM {table.name} WHERE org_id = :org_id")
                found[table.name] = (await connection.execute(count, {"org_id": org_id})).scalar_one()
    return {name: count for name, count in found.items() if count}


async def people(database: Database) -> list[str]:
    async with database.begin() as connection:
        return list((await connection.execute(text("SELECT email FROM users ORDER BY email"))).scalars())


async def use(database: Database, org_id: UUID) -> None:
    row = {"org_id": org_id, "key_id": new_id(), "model": "m", "model_digest": "d", "kind": "generation"}
    async with database.begin() as connection:
        values = row | {"id": new_id(), "started_at": NOW, "input_tokens": 1, "output_tokens": 1}
        await connection.execute(insert(UsageEvent).values(values))


def subscription(org_id: UUID, status: str) -> dict[str, object]:
    return {
        "org_id": org_id,
        "id": new_id(),
        "stripe_subscription_id": "sub_1",
        "plan": "starter",
        "plan_version": 1,
        "billing_interval": "month",
        "status": status,
        "started_at": NOW,
        "period_start": NOW,
        "period_end": LATER,
        "cancel_at_period_end": False,
        "is_current": False,
        "snapshot": {},
        "synced_at": NOW,
    }


async def ask(database: Database, org_id: UUID) -> datetime:
    async with database.begin() as connection:
        return await deletion.request_deletion(connection, org_id, NOW)


async def test_everything_of_it_goes_after_a_day_and_nothing_of_others(database: Database, settings: Settings) -> None:
    own, other = await make_org(database), await make_org(database, "Other")
    both = await make_user(database, own, "both@acme.example")
    await make_user(database, own, "own@acme.example", "developer")
    for org_id in (own, other):
        await make_key(database, settings, org_id)
        await use(database, org_id)
    async with database.begin() as connection:
        await connection.execute(insert(Membership).values(org_id=other, user_id=both, role="owner"))
    before = await rows_of(database, other)
    assert await ask(database, own) == LATER
    assert await deletion.delete_due(database, LATER - timedelta(seconds=1)) == 0
    assert await deletion.delete_due(database, LATER) == 1
    assert await rows_of(database, own) == {}
    assert await rows_of(database, other) == before
    assert await people(database) == ["both@acme.example"]


async def test_access_ends_at_once(database: Database, settings: Settings) -> None:
    org_id = await make_org(database)
    await make_key(database, settings, org_id)
    await ask(database, org_id)
    async with database.begin() as connection:
        state = "SELECT status, revoked_at IS NOT NULL AS is_revoked FROM orgs o JOIN api_keys k ON k.org_id = o.id"
        assert tuple((await connection.execute(text(state))).one()) == ("suspended", True)


async def test_it_can_be_called_off_until_then(database: Database) -> None:
    org_id = await make_org(database)
    await ask(database, org_id)
    async with database.begin() as connection:
        await deletion.call_off(connection, org_id)
        with pytest.raises(NotFound):
            await deletion.call_off(connection, org_id)
    assert await deletion.delete_due(database, LATER) == 0


async def test_a_request_that_still_runs_is_waited_for(database: Database) -> None:
    org_id = await make_org(database)
    await ask(database, org_id)
    async with database.begin() as connection:
        await connection.execute(
            text(
                "INSERT INTO reservations (request_id, org_id, key_id, holder, cost, tokens, expires_at)"
                " VALUES (gen_random_uuid(), :org_id, gen_random_uuid(), gen_random_uuid(), 1, 1, now())"
            ),
            {"org_id": org_id},
        )
    assert await deletion.delete_due(database, LATER) == 0
    async with database.begin() as connection:
        await connection.execute(text("DELETE FROM reservations"))
    assert await deletion.delete_due(database, LATER) == 1


@pytest.mark.parametrize(("status", "is_refused"), [("active", True), ("past_due", True), ("canceled", False)])
async def test_a_subscription_has_to_be_over(database: Database, status: str, is_refused: bool) -> None:
    org_id = await make_org(database)
    async with database.begin() as connection:
        await connection.execute(insert(Subscription).values(subscription(org_id, status)))
    if is_refused:
        with pytest.raises(Conflict):
            await ask(database, org_id)
    else:
        assert await ask(database, org_id) == LATER


def test_every_table_of_an_organisation_is_emptied_or_kept_for_a_reason() -> None:
    """Rows that nothing names would stay behind."""
    # Requests that run are waited for; a login is the person's.
    elsewhere = {"reservations", "portal_sessions"}
    for table in Base.metadata.sorted_tables:
        if "org_id" not in table.columns or table.name in {*KEPT, *deletion._LOOSE, *elsewhere}:
            continue
        (key,) = table.c.org_id.foreign_keys
        assert (key.column.table.name, key.ondelete) == ("orgs", "CASCADE"), table.name


async def test_who_calls_it_off_at_the_last_moment_is_heard(database: Database) -> None:
    org_id = await make_org(database)
    await use(database, org_id)
    await ask(database, org_id)
    async with database.begin() as connection:
        await deletion.call_off(connection, org_id)
        deleting = asyncio.create_task(deletion.delete_due(database, LATER))
        await someone_waits(database, deleting)
    assert await deleting == 0
    assert (await rows_of(database, org_id))["usage_events"] == 1


async def test_a_subscription_that_began_meanwhile_is_waited_for(database: Database) -> None:
    org_id = await make_org(database)
    await ask(database, org_id)
    async with database.begin() as connection:
        await connection.execute(insert(Subscription).values(subscription(org_id, "active")))
    assert await deletion.delete_due(database, LATER) == 0
    async with database.begin() as connection:
        await connection.execute(text("UPDATE subscriptions SET status = 'canceled'"))
    assert await deletion.delete_due(database, LATER) == 1


async def test_one_that_cannot_be_deleted_keeps_nobody_else(database: Database) -> None:
    stuck, other = await make_org(database), await make_org(database, "Other")
    for org_id in (stuck, other):
        await ask(database, org_id)
    async with database.begin() as connection:
        await connection.execute(text("CREATE TABLE held (org_id uuid REFERENCES orgs)"))
        await connection.execute(text("INSERT INTO held VALUES (:org_id)"), {"org_id": stuck})
    try:
        with pytest.raises(IntegrityError, match="held"):
            await deletion.delete_due(database, LATER)
        assert (await rows_of(database, stuck), await rows_of(database, other)) == ({"org_budgets": 1}, {})
    finally:
        async with database.begin() as connection:
            await connection.execute(text("DROP TABLE held"))


async def test_nobody_cannot_be_deleted(database: Database) -> None:
    with pytest.raises(NotFound):
        await ask(database, new_id())
