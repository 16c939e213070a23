"""Each invariant of the ledger holds in a healthy world and is found broken once it is broken."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import insert, text

from app import auth
from app.admission import Admission, Limits, Work
from app.billing import account_checks, doctor, entitlement
from app.billing.budgets import Change, set_budget
from app.billing.check import Check, Finding, examine, snapshot
from app.billing.doctor import CHECKS
from app.billing.prices import PRICE_VERSION, PRICES
from app.config import Settings
from app.db import Database
from app.journal import Journal
from app.metering import Ledger, Meter
from app.partitions import ensure_partitions
from app.tables import UsageEvent, new_id
from tests.billing.test_rollups import ORG, START, event, roll, some_events
from tests.conftest import PEPPER
from tests.factories import make_key, make_org

WHOLE_KEY = auth.generate_key()
SUBSCRIBE = (
    "INSERT INTO subscriptions (id, org_id, stripe_subscription_id, plan, plan_version, billing_interval, status,"
    " started_at, period_start, period_end, cancel_at_period_end, is_current, snapshot, synced_at)"
    " SELECT gen_random_uuid(), org_id, gen_random_uuid(), 'growth', 1, 'month', 'active', now(), now(), now(), false,"
    " NOT EXISTS (SELECT FROM subscriptions), '{{}}', now() FROM api_keys WHERE name = 'foreign'"
)
FAULTS = {
    "one row a request": [
        "UPDATE usage_events SET id = (SELECT id FROM usage_events LIMIT 1),"
        " started_at = started_at + interval '1 second' WHERE id = (SELECT max(id::text)::uuid FROM usage_events)"
    ],
    "every row has a price": [
        "UPDATE usage_events SET price_version = 99 WHERE id = (SELECT max(id::text)::uuid FROM usage_events)"
    ],
    "billed after the start": [
        "UPDATE usage_events SET billed_at = started_at - interval '6 minutes'"
        " WHERE id = (SELECT max(id::text)::uuid FROM usage_events)"
    ],
    "statements are the rows": [
        "UPDATE usage_rollup_hour SET output_tokens = output_tokens + 1"
        " WHERE hour = (SELECT min(hour) FROM usage_rollup_hour WHERE org_id = '{org}') AND org_id = '{org}'"
    ],
    "sums are the rows": [
        "DELETE FROM usage_rollup_hour WHERE hour = (SELECT max(hour) FROM usage_rollup_hour)",
    ],
    "no key in full": ["UPDATE api_keys SET name = 'mine: {key}'"],
    "keys belong together": [
        "UPDATE api_keys SET replaced_by = (SELECT id FROM api_keys WHERE name = 'foreign') WHERE name = 'own'"
    ],
    "holds are reservations": ["DELETE FROM reservations"],
    "nothing is held for ever": ["UPDATE reservations SET expires_at = now() - interval '6 minutes'"],
    "budgets are the rows": [
        "DELETE FROM usage_events WHERE org_id = (SELECT org_id FROM api_keys WHERE name = 'own')",
    ],
    "credit is the ledger": ["UPDATE usage_events SET is_prepaid = false WHERE is_prepaid"],
    "plans are the catalogue's": ["UPDATE org_budgets SET plan = 'galaxy' WHERE credit IS NULL"],
    "budgets are entitlements": [
        "UPDATE org_budgets SET restriction = 'past_due', status = 'restricted' WHERE credit > 0"
    ],
    "one subscription": [SUBSCRIBE, SUBSCRIBE],
    "the audit log is whole": [
        "ALTER TABLE audit_log DISABLE TRIGGER refuse_change",
        "UPDATE audit_log SET actor = 'nobody'",
        "ALTER TABLE audit_log ENABLE TRIGGER refuse_change",
    ],
    "claims are the rows": ["UPDATE usage_events SET claim_id = gen_random_uuid()"],
    "usage reaches Stripe": [
        "INSERT INTO stripe_meter_outbox (id, org_id, subscription_id, stripe_customer_id, meter, window_start,"
        " window_end, value, event_ts, identifier, state) VALUES (gen_random_uuid(), gen_random_uuid(),"
        " gen_random_uuid(), 'cus', 'm', now(), now(), 1, now(), gen_random_uuid(), 'rejected')"
    ],
    "due usage is claimed": [
        SUBSCRIBE,
        "INSERT INTO metering_periods (subscription_id, period_start, period_end, is_trial, claimed_until)"
        " SELECT id, now() - interval '1 day', now(), false, now() - interval '1 day' FROM subscriptions",
    ],
    "invoices are the ledger": [
        "INSERT INTO invoices (id, org_id, status, subtotal, total, amount_due, amount_paid, period_start, period_end,"
        " created, lines, metered_value, ledger_value, synced_at) SELECT 'in_1', org_id, 'paid', 0, 0, 0, 0, now(),"
        " now(), now(), '[]', 2, 1, now() FROM api_keys WHERE name = 'foreign'"
    ],
}
EVERY = pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.name.replace(" ", "-"))


@pytest.fixture
async def books(database: Database, settings: Settings, tmp_path: Path) -> Database:
    """Two organisations with keys, one request that was billed, one that runs, and 120 rows over 30 hours, summed.

    The first one pays from credit, the other one is on the free plan.
    """
    own, other = await make_org(database), await make_org(database, "Other", plan="free")
    key = await make_key(database, settings, own, name="own")
    async with database.begin() as connection:
        await set_budget(connection, own, Change(credit=3 * 10**12))
        await entitlement.apply(connection, own, datetime.now(UTC), timedelta(0))
    await use(database, key, tmp_path)
    await make_key(database, settings, other, name="foreign")
    async with database.begin() as connection:
        await ensure_partitions(connection, START.date())
        rows = [row | {"started_at": row["billed_at"]} for row in some_events(120)]
        await connection.execute(insert(UsageEvent), rows)
    await roll(database)
    return database


async def use(database: Database, key: str, journals: Path) -> None:
    """One request from its admission to its settlement, and one that still runs."""
    ledger = Ledger(database, Journal(journals))
    admission = Admission(database, ledger)
    async with database.begin() as connection:
        caller = await auth.find_key(connection, key, PEPPER)
    price, limits = PRICES[PRICE_VERSION, "generation"], Limits(100, 100_000)
    work = Work(input_tokens=5, output_tokens=9, least_output=1, price=price, timeout_s=30)
    await admission.reserve(new_id(), caller, limits, 14, work)
    request_id = new_id()
    await admission.reserve(request_id, caller, limits, 14, work)
    meter = Meter(
        ledger,
        request_id,
        caller,
        kind="generation",
        model="m",
        model_digest="d",
        input_tokens=5,
        price=price,
        price_version=PRICE_VERSION,
        started_at=datetime.now(UTC),
    )
    meter.deliver(7)
    await meter.settle("stop")
    await admission.aclose()
    await ledger.aclose()


async def ask(database: Database, *checks: Check) -> list[Finding]:
    return await examine(database, checks or CHECKS)


async def run(database: Database, *statements: str) -> None:
    async with database.begin() as connection:
        for statement in statements:
            await connection.exec_driver_sql(statement.format(org=ORG, key=WHOLE_KEY))


async def test_healthy_books_keep_every_promise(books: Database) -> None:
    assert {finding.check.name: list(finding.problems) for finding in await ask(books)} == {
        check.name: [] for check in CHECKS
    }


async def test_statements_of_many_lines_are_compared_page_by_page(
    books: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "_PAGE", 7)
    (check,) = (check for check in CHECKS if check.name == "statements are the rows")
    assert [list(finding.problems) for finding in await ask(books, check)] == [[]]


async def test_empty_books_are_healthy(database: Database) -> None:
    assert all(finding.is_kept for finding in await ask(database))


def test_every_check_has_a_fault_that_it_must_find() -> None:
    assert [check.name for check in CHECKS] == list(FAULTS)


@EVERY
async def test_a_broken_promise_is_found(books: Database, check: Check) -> None:
    await run(books, *FAULTS[check.name])
    # All are asked: a fault must not keep the others from answering.
    problems = {finding.check.name: finding.problems for finding in await ask(books)}
    assert problems[check.name]


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("usage_events SET parameters", """'{{"stop": ["{key}"]}}'"""),
        ("usage_events SET finish_reason", "'{key}'"),
        ("api_keys SET allowed_models", """'{{"{key}"}}'"""),
        ("stripe_events SET body", "'{key}'"),
    ],
)
async def test_a_key_is_found_in_any_kind_of_column(books: Database, column: str, value: str) -> None:
    await run(
        books,
        "INSERT INTO stripe_events (id, type, created, body) VALUES ('evt_1', 'any', now(), '')",
        f"UPDATE {column} = {value}",
    )
    check = next(check for check in CHECKS if check.find is doctor.find_keys_in_full)
    (finding,) = await ask(books, check)
    assert len(finding.problems) == 1
    assert WHOLE_KEY not in finding.problems[0]


async def test_a_key_without_rates_is_found(books: Database) -> None:
    await run(books, "DELETE FROM rate_buckets")
    check = next(check for check in CHECKS if check.find is doctor.find_lost_keys)
    (finding,) = await ask(books, check)
    assert len(finding.problems) == 2


async def test_the_edges_of_a_month_belong_to_one_statement_each(books: Database) -> None:
    """A row in the last microsecond of a month and one in the first of the next."""
    month = START.replace(year=2025, month=3, day=1, hour=0)
    edges = [month, month.replace(month=2, day=28, hour=23, minute=59, second=59, microsecond=999_999)]
    async with books.begin() as connection:
        await ensure_partitions(connection, edges[1].date(), 1)
        await connection.execute(insert(UsageEvent), [event(at, started_at=at, id=new_id()) for at in edges])
    for is_summed in (False, True):
        if is_summed:
            await roll(books)
        assert all(finding.is_kept for finding in await ask(books))
    # Were the hour of the first row counted for the month before, it would be noticed.
    await run(
        books,
        "UPDATE usage_rollup_hour SET hour = hour - interval '1 hour', model = 'moved'"
        f" WHERE hour = '{month.isoformat()}'",
    )
    check = next(check for check in CHECKS if check.find is doctor.find_unlike_statements)
    (finding,) = await ask(books, check)
    assert len(finding.problems) == 6  # two months in three buckets


async def test_looking_changes_nothing(books: Database) -> None:
    async def write(database: Database) -> list[str]:
        async with snapshot(database) as connection:
            await connection.execute(text("DELETE FROM usage_events"))
        return []

    with pytest.raises(Exception, match="read-only transaction"):
        await ask(books, Check("writes", "Never.", write))


async def test_usage_on_credit_under_a_price_that_there_is_not_costs_nothing(books: Database) -> None:
    """It is reported once: as usage without a price."""
    await run(books, "UPDATE usage_events SET price_version = 99 WHERE is_prepaid")
    assert len(await account_checks.find_unlike_credits(books)) == 1


async def test_a_budget_that_pays_from_credit_against_its_plan_is_found(books: Database) -> None:
    await run(books, "UPDATE org_budgets SET plan = 'free' WHERE credit > 0")
    (problem,) = await account_checks.find_unlike_plans(books)
    assert "pays from credit, or not, against its plan free" in problem


async def test_a_subscription_that_does_not_count_is_found(books: Database) -> None:
    await run(books, SUBSCRIBE, "UPDATE org_budgets SET plan = 'growth' WHERE credit IS NULL")
    assert await account_checks.find_subscriptions_in_excess(books) == []
    assert await account_checks.find_unlike_entitlements(books) == []
    await run(books, "UPDATE subscriptions SET is_current = false")
    (problem,) = await account_checks.find_subscriptions_in_excess(books)
    assert "has 1 subscriptions that live, of which 0 entitle it" in problem
    await run(books, "UPDATE subscriptions SET status = 'canceled', ended_at = now()")
    assert await account_checks.find_subscriptions_in_excess(books) == []


async def test_a_budget_is_right_under_any_grace_that_can_be_set(books: Database) -> None:
    overdue = "UPDATE subscriptions SET status = 'past_due', past_due_since = now() - interval '3 days'"
    await run(books, SUBSCRIBE, "UPDATE org_budgets SET plan = 'growth' WHERE credit IS NULL", overdue)
    assert await account_checks.find_unlike_entitlements(books) == []
    restricted = "UPDATE org_budgets SET restriction = 'past_due', status = 'restricted' WHERE credit IS NULL"
    await run(books, restricted)
    assert await account_checks.find_unlike_entitlements(books) == []
    await run(books, "UPDATE subscriptions SET past_due_since = NULL, status = 'active'")
    assert len(await account_checks.find_unlike_entitlements(books)) == 1
