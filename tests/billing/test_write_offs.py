"""What a person charges nobody for is waited for no more, and the log has it."""

from datetime import timedelta
from uuid import UUID

import pytest
from sqlalchemy import text

from app import audit
from app.billing import account, claims, write_offs
from app.billing.doctor import CHECKS
from app.billing.metering_checks import find_unclaimed_usage, find_unlike_claims
from app.db import Database
from app.errors import Conflict
from app.tables import new_id
from tests.billing.metered import (
    MINUTE,
    MONTH,
    START,
    TOKEN_VALUE,
    Customer,
    make_customer,
    make_period,
    make_subscription,
    outbox_of,
    use,
)


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


async def end_subscription(database: Database, customer: Customer) -> None:
    """All of it was claimed, and nothing follows."""
    await claims.claim_due(database, START + MONTH + 20 * MINUTE)
    async with database.begin() as connection:
        await connection.execute(
            text("UPDATE subscriptions SET status = 'canceled', ended_at = :at, is_current = false WHERE id = :id"),
            {"at": START + MONTH, "id": customer.subscription_id},
        )


async def write_off_usage(database: Database, customer: Customer) -> int:
    async with database.begin() as connection:
        return await write_offs.write_off_usage(connection, customer.org_id, "two cents")


async def test_what_came_too_late_for_the_last_invoice_is_written_off(database: Database) -> None:
    customer = await make_customer(database)
    await use(database, customer.org_id, START)
    await end_subscription(database, customer)
    await use(database, customer.org_id, START + MINUTE, START + 2 * MINUTE, tokens=5)
    await use(database, customer.org_id, START + MONTH)  # on the free plan
    assert len(await find_unclaimed_usage(database)) == 1
    assert await write_off_usage(database, customer) == 10 * TOKEN_VALUE
    sent, written_off = await outbox_of(database, customer.org_id)
    assert (sent.state, written_off.state, written_off.value) == ("pending", "written_off", 10 * TOKEN_VALUE)
    assert await find_unclaimed_usage(database) == []
    assert await find_unlike_claims(database) == []
    async with database.begin() as connection:
        value = await claims.value_between(connection, customer.subscription_id, START, START + MONTH)
        used = await account.read_used(connection, customer.org_id, START, START + MONTH)
        (entry,) = await audit.list_entries(connection, customer.org_id, before=None, limit=10)
    assert (value, sum(one.requests for one in used)) == (TOKEN_VALUE, 1)
    assert (entry.action, entry.after) == ("usage.write_off", {"value": 10 * TOKEN_VALUE, "note": "two cents"})
    with pytest.raises(Conflict):
        await write_off_usage(database, customer)


async def test_more_than_an_event_can_say_is_written_off_in_several(database: Database) -> None:
    customer = await make_customer(database)
    await end_subscription(database, customer)
    most = claims.MAX_VALUE // TOKEN_VALUE
    await use(database, customer.org_id, START, START + MINUTE, tokens=most)
    assert await write_off_usage(database, customer) == 2 * most * TOKEN_VALUE
    assert [row.state for row in await outbox_of(database, customer.org_id)] == ["written_off"] * 2


async def test_what_will_be_on_an_invoice_is_not_written_off(database: Database) -> None:
    """Of a subscription that goes on, and of a newer one that took over."""
    going_on, customer = await make_customer(database), await make_customer(database)
    await end_subscription(database, customer)
    # Of the one that goes on, nobody has heard of the renewal yet.
    await use(database, going_on.org_id, START)
    with pytest.raises(Conflict):
        await write_off_usage(database, going_on)
    second = await make_subscription(database, customer.org_id, START + MINUTE)
    await make_period(database, second, START + MINUTE, START + 2 * MONTH)
    await use(database, customer.org_id, START, START + MINUTE)
    assert await write_off_usage(database, customer) == TOKEN_VALUE
