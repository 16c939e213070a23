"""Usage that is not metered, or not reported, is found."""

from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest
from sqlalchemy import insert, text

from app.billing import burns, claims, metering_checks, reissues
from app.billing.invoices import AUDITED_FOR
from app.db import Database
from app.partitions import ensure_partitions
from app.privacy import deletion
from app.tables import Invoice
from tests.billing.metered import MINUTE, MONTH, Customer, make_customer, make_period, make_subscription, use
from tests.billing.test_burns import make_prepaid, spend

NOW = datetime.now(UTC).replace(minute=30, second=0, microsecond=0)
START = NOW - timedelta(days=10)
HOUR = timedelta(hours=1)


@pytest.fixture
async def customer(database: Database) -> Customer:
    """One with usage in two windows, and somebody who pays from credit; all of it claimed."""
    customer = await make_customer(database, START, START + MONTH)
    async with database.begin() as connection:
        await ensure_partitions(connection, (START - MONTH).date(), 2)
    # The month of the first row is compared from its third hour on.
    await use(database, customer.org_id, START - MONTH, started_at=(START - MONTH).replace(day=1))
    await use(database, customer.org_id, START + HOUR, START + 2 * HOUR, tokens=5)
    await spend(database, await make_prepaid(database), START + HOUR, tokens=7)
    await claims.claim_due(database, NOW)
    await burns.burn_due(database, NOW)
    return customer


async def problems(database: Database) -> list[int]:
    return [len(await check.find(database)) for check in metering_checks.METERING_CHECKS]


async def run(database: Database, *statements: str, **bind: object) -> None:
    async with database.begin() as connection:
        for statement in statements:
            await connection.execute(text(statement), bind)


async def test_healthy_books_have_no_problems(database: Database, customer: Customer) -> None:
    assert await problems(database) == [0, 0, 0, 0]


@pytest.mark.parametrize(
    ("fault", "found"),
    [
        ("UPDATE usage_events SET input_tokens = 6 WHERE input_tokens = 5", 2),
        ("UPDATE usage_events SET input_tokens = 6 WHERE is_prepaid", 1),
        ("UPDATE usage_events SET claim_id = gen_random_uuid() WHERE is_prepaid", 2),
        (
            "UPDATE usage_events SET claim_id = (SELECT min(claim_id::text)::uuid FROM usage_events)"
            " WHERE input_tokens = 5",
            2,
        ),
        ("DELETE FROM stripe_meter_outbox", 2),
        ("UPDATE stripe_meter_outbox SET state = 'replaced'", 2),
    ],
)
async def test_claims_that_are_not_their_rows_are_found(
    database: Database, customer: Customer, fault: str, found: int
) -> None:
    await run(database, fault)
    assert (await problems(database))[0] == found


async def test_an_event_that_took_the_place_of_another_is_no_claim(database: Database, customer: Customer) -> None:
    async with database.begin() as connection:
        ids = (await connection.execute(text("SELECT id FROM stripe_meter_outbox"))).scalars().all()
        assert await reissues.reissue(connection, ids[0], NOW)
    assert await problems(database) == [0, 0, 0, 0]
    await run(database, "UPDATE stripe_meter_outbox SET state = 'acked' WHERE id = :id", id=ids[0])
    assert await problems(database) == [1, 0, 0, 0]


async def test_claims_whose_rows_were_dropped_with_their_month_are_healthy(
    database: Database, customer: Customer
) -> None:
    await run(
        database,
        "INSERT INTO stripe_meter_outbox (id, org_id, subscription_id, stripe_customer_id, meter, window_start,"
        " window_end, value, event_ts, identifier, state) VALUES (gen_random_uuid(), gen_random_uuid(),"
        " gen_random_uuid(), 'cus', 'm', '2020-01-01', '2020-01-02', 1, '2020-01-01', gen_random_uuid(), 'acked')",
    )
    assert await problems(database) == [0, 0, 0, 0]


@pytest.mark.parametrize(
    ("fault", "found"),
    [
        ("UPDATE stripe_meter_outbox SET state = 'rejected'", 2),
        ("UPDATE stripe_meter_outbox SET created_at = now() - interval '119 minutes'", 0),
        ("UPDATE stripe_meter_outbox SET created_at = now() - interval '121 minutes'", 2),
        ("UPDATE stripe_meter_outbox SET created_at = now() - interval '2 days', state = 'reconcile'", 0),
        ("UPDATE stripe_meter_outbox SET created_at = now() - interval '4 days', state = 'reconcile'", 2),
        ("UPDATE stripe_meter_outbox SET created_at = now() - interval '4 days', state = 'acked'", 0),
    ],
)
async def test_events_that_wait_for_ever_are_found(
    database: Database, customer: Customer, fault: str, found: int
) -> None:
    await run(database, fault)
    assert (await problems(database))[1] == found


async def test_a_late_row_that_a_window_will_take_is_no_problem(database: Database, customer: Customer) -> None:
    await use(database, customer.org_id, START + MINUTE)
    assert await problems(database) == [0, 0, 0, 0]


async def test_a_late_row_that_no_window_will_take_is_found(database: Database, customer: Customer) -> None:
    await run(database, "UPDATE metering_periods SET period_end = claimed_until")
    await use(database, customer.org_id, START + MINUTE, START + 2 * MINUTE)
    (problem,) = await metering_checks.find_unclaimed_usage(database)
    assert problem.startswith(f"2 rows of organisation {customer.org_id}")


async def test_late_rows_of_a_subscription_that_has_ended_are_found_beside_a_new_one(
    database: Database, customer: Customer
) -> None:
    """The new one meters what was used since it began."""
    await run(
        database,
        "UPDATE metering_periods SET period_end = claimed_until",
        "UPDATE subscriptions SET is_current = false",
    )
    second = await make_subscription(database, customer.org_id, NOW - HOUR)
    await make_period(database, second, NOW - HOUR, NOW + MONTH)
    await use(database, customer.org_id, START + MINUTE)
    (problem,) = await metering_checks.find_unclaimed_usage(database)
    assert problem.startswith(f"1 rows of organisation {customer.org_id}")


async def test_rows_that_the_newer_of_two_subscriptions_will_take_are_no_problem(
    database: Database, customer: Customer
) -> None:
    await run(database, "UPDATE subscriptions SET is_current = false")
    second = await make_subscription(database, customer.org_id, START + HOUR)
    await make_period(database, second, START + HOUR, NOW + MONTH)
    await run(
        database,
        "UPDATE metering_periods SET period_end = claimed_until WHERE subscription_id <> :id",
        "UPDATE metering_periods SET claimed_until = now() WHERE subscription_id = :id",
        id=second,
    )
    await use(database, customer.org_id, START + HOUR)
    assert await problems(database) == [0, 0, 0, 0]


async def test_books_are_healthy_when_an_organisation_is_gone(database: Database, customer: Customer) -> None:
    """Its burns stay in a ledger from which nobody can delete."""
    await run(database, "UPDATE subscriptions SET status = 'canceled'", "UPDATE metering_periods SET is_trial = true")
    async with database.begin() as connection:
        for org_id in (await connection.execute(text("SELECT id FROM orgs"))).scalars().all():
            await deletion.request_deletion(connection, org_id, NOW)
    assert await deletion.delete_due(database, NOW + deletion.DELAY) == 2
    await use(database, customer.org_id, START - MONTH, started_at=(START - MONTH).replace(day=1), is_prepaid=True)
    assert await problems(database) == [0, 0, 0, 0]


async def test_windows_that_nobody_closes_are_found(database: Database, customer: Customer) -> None:
    await run(database, "UPDATE metering_periods SET claimed_until = now() - interval '119 minutes'")
    assert (await problems(database))[2] == 0
    await run(database, "UPDATE metering_periods SET claimed_until = now() - interval '121 minutes'")
    assert (await problems(database))[2] == 1
    await run(database, "UPDATE subscriptions SET status = 'incomplete'")
    assert (await problems(database))[2] == 0


@pytest.mark.parametrize(
    ("values", "found"),
    [
        ({}, 1),
        ({"ledger_value": 750}, 0),
        ({"ledger_value": None}, 0),
        ({"metered_value": None}, 0),
        ({"status": "draft"}, 0),
        ({"created": NOW - AUDITED_FOR - HOUR}, 0),
    ],
)
async def test_an_invoice_that_is_not_what_was_claimed_is_found(
    database: Database, customer: Customer, values: dict[str, object], found: int
) -> None:
    """Long after it was made somebody has seen to it by hand."""
    amounts = dict.fromkeys(("subtotal", "total", "amount_due", "amount_paid"), 0)
    times = dict.fromkeys(("period_start", "period_end", "created", "synced_at"), NOW)
    row = {"id": "in_1", "org_id": customer.org_id, "status": "paid", "metered_value": 750, "ledger_value": 600}
    async with database.begin() as connection:
        await connection.execute(insert(Invoice).values(lines=[], **amounts | times | row | values))
    assert await problems(database) == [0, 0, 0, found]


async def test_usage_of_a_trial_is_not_due(database: Database) -> None:
    customer = await make_customer(database, START, START + MONTH)
    await run(database, "UPDATE metering_periods SET is_trial = true, claimed_until = :now", now=NOW)
    await use(database, customer.org_id, START + HOUR)
    assert await problems(database) == [0, 0, 0, 0]
    assert isinstance(customer.org_id, UUID)
