"""What a person charges nobody for is waited for no more, and the log has it."""

from datetime import timedelta
from uuid import UUID

import pytest
from sqlalchemy import text

from app import audit
from app.billing import claims, write_offs
from app.billing.doctor import CHECKS
from app.db import Database
from app.errors import Conflict
from app.tables import new_id
from tests.billing.metered import MINUTE, MONTH, START, TOKEN_VALUE, Customer, make_customer, outbox_of, use


async def refuse(database: Database, customer: Customer, state: str = "rejected") -> UUID:
    """Its first meter event, which did not get to Stripe."""
    await use(database, customer.org_id, START)
    await claims.claim_due(database, START + 20 * MINUTE)
    async with database.begin() as connection:
        change = text("UPDATE stripe_meter_outbox SET state = :state, last_error = 'no such customer'")
        await connection.execute(change, {"state": state})
    (row,) = await outbox_of(database, customer.org_id)
    return UUID(str(row.id))


async def write_off(database: Database, outbox_id: UUID) -> int:
    async with database.begin() as connection:
        return await write_offs.write_off(connection, outbox_id, "deleted by mistake")


@pytest.mark.parametrize("state", ["rejected", "reconcile"])
async def test_an_event_that_is_written_off_is_on_no_invoice(database: Database, state: str) -> None:
    customer = await make_customer(database)
    outbox_id = await refuse(database, customer, state)
    assert await write_off(database, outbox_id) == TOKEN_VALUE
    async with database.begin() as connection:
        assert await claims.value_between(connection, customer.subscription_id, START, START + MONTH) == 0
        assert await write_offs.list_open(connection, with_waiting=True, limit=10) == []
        (entry,) = await audit.list_entries(connection, customer.org_id, before=None, limit=10)
    assert (entry.action, entry.actor, entry.target) == (
        "meter_event.write_off",
        audit.OPERATOR,
        f"meter_event:{outbox_id}",
    )
    assert entry.after == {"value": TOKEN_VALUE, "error": "no such customer", "note": "deleted by mistake"}


async def test_nobody_looks_for_it_any_more(database: Database) -> None:
    await write_off(database, await refuse(database, await make_customer(database)))
    found = {check.name: await check.find(database) for check in CHECKS}
    assert (found["claims are the rows"], found["usage reaches Stripe"]) == ([], [])


@pytest.mark.parametrize("state", ["pending", "sending", "acked", "replaced", "written_off"])
async def test_an_event_that_is_on_its_way_or_there_is_not_written_off(database: Database, state: str) -> None:
    customer = await make_customer(database)
    outbox_id = await refuse(database, customer, state)
    with pytest.raises(Conflict):
        await write_off(database, outbox_id)
    assert [row.state for row in await outbox_of(database, customer.org_id)] == [state]


async def test_an_event_that_there_is_not_is_not_written_off(database: Database) -> None:
    with pytest.raises(Conflict):
        await write_off(database, new_id())


async def test_what_waits_is_listed_where_it_is_asked_for(database: Database) -> None:
    customer = await make_customer(database)
    refused = await refuse(database, customer)
    await use(database, customer.org_id, START + timedelta(hours=1))
    await claims.claim_due(database, START + timedelta(hours=2))
    async with database.begin() as connection:
        assert [row.id for row in await write_offs.list_open(connection, with_waiting=False, limit=10)] == [refused]
        listed = await write_offs.list_open(connection, with_waiting=True, limit=10)
        assert [row.state for row in listed] == ["rejected", "pending"]
        assert len(await write_offs.list_open(connection, with_waiting=True, limit=1)) == 1
