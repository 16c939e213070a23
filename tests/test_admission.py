"""One guarded statement decides, exactly, under any concurrency."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from app import auth, keys
from app.admission import Admission, Limits, Permit, Work, peek
from app.auth import Key
from app.billing.check import examine
from app.billing.doctor import CHECKS
from app.config import Settings
from app.db import Database
from app.errors import (
    AppError,
    AuthenticationFailed,
    DatabaseUnavailable,
    PaymentRequired,
    PermissionDenied,
    QuotaExceeded,
    RateLimited,
)
from app.journal import Journal
from app.metering import Ledger, Meter
from app.settlements import Price
from app.tables import new_id
from tests.conftest import PEPPER
from tests.factories import cut_waiting, make_key

NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)
LIMITS = Limits(requests_per_minute=60, tokens_per_minute=600)
WIDE = Limits(requests_per_minute=1_000_000, tokens_per_minute=1_000_000_000)
PRICE = Price(input=10, cached=5, output=20)
# 4 x 10 + 3 x 20
WORK = Work(input_tokens=4, output_tokens=3, least_output=1, price=PRICE, timeout_s=30)
COST = 100


class Door:
    """An admission and its ledger, with short ways to both."""

    def __init__(self, database: Database, journals: Path, key: Key) -> None:
        self.ledger = Ledger(database, Journal(journals))
        self.admission = Admission(database, self.ledger, billing_url="https://pay.example/billing")
        self.key = key

    async def draw(self, tokens: int, now: datetime | None = NOW, requested: str = "") -> Permit:
        """Tokens of the rate and nothing else."""
        free = Work(0, 0, 0, Price(0, 0, 0), 30)
        return await self.admission.reserve(new_id(), self.key, LIMITS, tokens, free, requested=requested, now=now)

    async def reserve(self, work: Work = WORK, limits: Limits = WIDE, now: datetime | None = None) -> Meter:
        """A meter of what was admitted."""
        request_id = new_id()
        self.permit = await self.admission.reserve(request_id, self.key, limits, 0, work, now=now)
        return Meter(
            self.ledger,
            request_id,
            self.key,
            kind="generation",
            model="m",
            model_digest="d",
            input_tokens=work.input_tokens,
            price=work.price,
            price_version=1,
            started_at=datetime.now(UTC),
        )

    async def aclose(self) -> None:
        await self.admission.aclose()
        await self.ledger.aclose()


@pytest.fixture
async def key(database: Database, settings: Settings) -> Key:
    """A key whose buckets are full."""
    secret = await make_key(database, settings)
    async with database.begin() as connection:
        return await auth.find_key(connection, secret, PEPPER)


@pytest.fixture
async def door(database: Database, key: Key, tmp_path: Path) -> AsyncIterator[Door]:
    """A process' admission."""
    door = Door(database, tmp_path / "journals", key)
    yield door
    await door.aclose()


async def test_a_rotated_key_and_its_successor_have_one_cap_and_one_rate(
    database: Database, door: Door, settings: Settings, tmp_path: Path
) -> None:
    await change(database, f"UPDATE api_keys SET monthly_cap = {2 * COST}")
    async with database.begin() as connection:
        new = await keys.rotate_key(
            connection, settings, door.key.id, old_ends_at=datetime.now(UTC) + timedelta(hours=1)
        )
        successor = await auth.find_key(connection, new.key, PEPPER)
    other = Door(database, tmp_path / "others", successor)
    few = Limits(2, 1_000)
    first, second = await door.reserve(limits=few), await other.reserve(limits=few)
    for either in (door, other):
        with pytest.raises(RateLimited):
            await either.reserve(limits=few)
        with pytest.raises(QuotaExceeded):
            await either.reserve()
    await first.settle("stop")
    await second.release()
    await other.aclose()
    async with database.begin() as connection:
        used = {row.id: row.last_used_at for row in await keys.list_keys(connection, door.key.org_id)}
        await keys.touch_used_keys(connection)
        now_used = {row.id: row.last_used_at for row in await keys.list_keys(connection, door.key.org_id)}
    assert set(used.values()) == {None}
    assert None not in now_used.values()
    [held] = await examine(database, [check for check in CHECKS if check.name == "holds are reservations"])
    assert held.is_kept


async def test_several_processes_together_never_go_beyond_a_credit(
    database: Database, key: Key, tmp_path: Path
) -> None:
    await change(database, f"UPDATE org_budgets SET credit = {10 * COST}")
    doors = [Door(database, tmp_path / str(number), key) for number in range(3)]
    outcomes = await asyncio.gather(*(doors[n % 3].reserve() for n in range(90)), return_exceptions=True)
    meters = [outcome for outcome in outcomes if isinstance(outcome, Meter)]
    assert len(meters) == 10
    assert all(isinstance(outcome, Meter | PaymentRequired) for outcome in outcomes)
    await asyncio.gather(*(meter.release() for meter in meters))
    assert await budget(database, "credit, cost_held, num_running") == (10 * COST, 0, 0)
    for door in doors:
        await door.aclose()


async def change(database: Database, statement: str) -> None:
    async with database.begin() as connection:
        await connection.execute(text(statement))


async def budget(
    database: Database, columns: str = "cost_used, cost_held, tokens_used, tokens_held"
) -> tuple[Any, ...]:
    async with database.begin() as connection:
        return tuple((await connection.execute(text(f"SELECT {columns} FROM org_budgets"))).one())


async def of_key(database: Database) -> tuple[Any, ...]:
    async with database.begin() as connection:
        return tuple((await connection.execute(text("SELECT cost_used, cost_held FROM rate_buckets"))).one())


async def num_reservations(database: Database) -> int:
    async with database.begin() as connection:
        return int((await connection.execute(text("SELECT count(*) FROM reservations"))).scalar_one())


async def test_a_full_bucket_gives_and_says_what_is_left(door: Door) -> None:
    permit = await door.draw(100)
    assert permit.headers == {
        "x-ratelimit-limit-requests": "60",
        "x-ratelimit-remaining-requests": "59",
        "x-ratelimit-reset-requests": "1s",
        "x-ratelimit-limit-tokens": "600",
        "x-ratelimit-remaining-tokens": "500",
        "x-ratelimit-reset-tokens": "10s",
    }


async def test_the_request_after_the_last_is_refused_and_says_when_to_come_back(door: Door) -> None:
    for _ in range(60):
        await door.draw(0)
    with pytest.raises(RateLimited) as refusal:
        await door.draw(0, requested="bytes")
    assert refusal.value.status == 429
    assert refusal.value.headers["retry-after-ms"] == "1000"
    assert refusal.value.headers["x-ratelimit-remaining-requests"] == "0"
    assert "for bytes" in refusal.value.message
    assert "60 requests per minute" in refusal.value.message


async def test_the_announced_wait_is_enough_and_no_longer_than_needed(door: Door) -> None:
    await door.draw(600)
    with pytest.raises(RateLimited) as refusal:
        await door.draw(50)
    assert "600 tokens per minute" in refusal.value.message
    assert refusal.value.retry_after_s == pytest.approx(5)
    with pytest.raises(RateLimited):
        await door.draw(50, NOW + timedelta(seconds=4.99))
    await door.draw(50, NOW + timedelta(seconds=5.01))


async def test_a_refusal_draws_nothing(door: Door) -> None:
    await door.draw(590)
    with pytest.raises(RateLimited):
        await door.draw(20)
    permit = await door.draw(10)
    assert (permit.requests_left, permit.tokens_left) == (58, 0)


async def test_what_never_fits_is_not_to_be_tried_again(door: Door) -> None:
    with pytest.raises(RateLimited) as refusal:
        await door.draw(601)
    assert refusal.value.headers["x-should-retry"] == "false"
    assert "too large" in refusal.value.message


async def test_a_bucket_never_holds_more_than_its_limit(door: Door) -> None:
    await door.draw(0)
    permit = await door.draw(0, NOW + timedelta(days=1))
    assert permit.requests_left == 59


async def test_an_older_clock_gives_nothing_back(door: Door) -> None:
    await door.draw(600)
    with pytest.raises(RateLimited):
        await door.draw(1, NOW - timedelta(hours=1))


async def test_concurrent_requests_never_draw_more_than_there_is(door: Door) -> None:
    async def attempt() -> bool:
        try:
            await door.draw(60)
        except RateLimited:
            return False
        return True

    admitted = await asyncio.gather(*(attempt() for _ in range(40)))
    assert sum(admitted) == 10


async def test_the_databases_clock_refills(door: Door) -> None:
    permit = await door.draw(0, None)
    assert permit.requests_left == 59


@pytest.mark.parametrize(
    ("statement", "expected"),
    [
        ("UPDATE api_keys SET revoked_at = now()", AuthenticationFailed),
        ("UPDATE api_keys SET expires_at = now() - interval '1 second'", AuthenticationFailed),
        ("UPDATE orgs SET status = 'suspended'", PermissionDenied),
        ("DELETE FROM api_keys", AuthenticationFailed),
        ("DELETE FROM org_budgets", AuthenticationFailed),
    ],
)
async def test_a_key_that_ended_after_it_was_looked_up_is_refused(
    database: Database, door: Door, statement: str, expected: type[AppError]
) -> None:
    await change(database, statement)
    with pytest.raises(expected):
        await door.admission.draw(new_id(), door.key, LIMITS)
    with pytest.raises(expected):
        await door.reserve()
    assert await num_reservations(database) == 0


async def test_peeking_shows_what_a_request_would_find(database: Database, settings: Settings, door: Door) -> None:
    assert peek(door.key, LIMITS) == Permit(LIMITS, 60, 600)
    await door.draw(300)
    secret = await make_key(database, settings, door.key.org_id)
    async with database.begin() as connection:
        await connection.execute(
            text(
                "UPDATE rate_buckets t SET requests_level = f.requests_level, tokens_level = f.tokens_level,"
                " updated_at = f.updated_at FROM rate_buckets f WHERE f.key_id = :key_id"
            ),
            {"key_id": door.key.id},
        )
        key = await auth.find_key(connection, secret, PEPPER)
    assert peek(key, LIMITS, NOW) == Permit(LIMITS, 59, 300)
    assert peek(key, LIMITS, NOW + timedelta(seconds=6)).tokens_left == pytest.approx(360)


async def test_what_runs_is_held_and_what_was_used_takes_its_place(database: Database, door: Door) -> None:
    meter = await door.reserve()
    assert await budget(database, "cost_used, cost_held, tokens_used, tokens_held, num_running") == (0, COST, 0, 7, 1)
    assert await of_key(database) == (0, COST)
    meter.report(2, 1.0)
    meter.deliver(1)
    await meter.settle("stop")
    # 2 x 10 + 2 x 5 + 1 x 20
    assert await budget(database, "cost_used, cost_held, tokens_used, tokens_held, num_running") == (50, 0, 5, 0, 0)
    assert await of_key(database) == (50, 0)
    assert await num_reservations(database) == 0


async def test_what_cost_nothing_leaves_no_trace_in_the_budget(database: Database, door: Door) -> None:
    meter = await door.reserve()
    await meter.release()
    await meter.release()
    assert await budget(database, "cost_used, cost_held, tokens_used, tokens_held, num_running") == (0, 0, 0, 0, 0)
    assert await num_reservations(database) == 0


async def test_an_answer_that_costs_nothing_draws_a_request_and_holds_nothing(database: Database, door: Door) -> None:
    await change(database, "UPDATE org_budgets SET spend_cap = 0, monthly_token_limit = 0, status = 'restricted'")
    permit = await door.admission.draw(new_id(), door.key, LIMITS, now=NOW)
    assert permit.requests_left == 59
    assert await num_reservations(database) == 0
    assert await budget(database, "num_running") == (0,)


LIMITED = pytest.mark.parametrize(
    ("statement", "expected", "said"),
    [
        (f"UPDATE org_budgets SET spend_cap = {COST}", QuotaExceeded, "spend cap"),
        (f"UPDATE org_budgets SET own_spend_cap = {COST}", QuotaExceeded, "spend cap"),
        (f"UPDATE org_budgets SET credit = {COST}", PaymentRequired, "credit"),
        (f"UPDATE api_keys SET monthly_cap = {COST}", QuotaExceeded, "this API key's"),
        ("UPDATE org_budgets SET monthly_token_limit = 7", QuotaExceeded, "tokens of this month"),
    ],
    ids=["operator's cap", "organisation's own cap", "credit", "cap of the key", "tokens of the month"],
)


@LIMITED
async def test_a_limit_pays_for_what_it_pays_for_and_then_refuses_without_a_retry(
    database: Database, door: Door, statement: str, expected: type[AppError], said: str
) -> None:
    await change(database, statement)
    meter = await door.reserve()
    with pytest.raises(expected, match=said) as refusal:
        await door.reserve()
    assert refusal.value.headers["x-should-retry"] == "false"
    assert refusal.value.code == "insufficient_quota"
    # What was held and not used is free again.
    await meter.release()
    meter = await door.reserve()
    meter.deliver(3)
    await meter.settle("length")
    with pytest.raises(expected):
        await door.reserve()
    assert (await budget(database))[1] == 0


@LIMITED
async def test_many_at_once_get_what_there_is_and_no_more(
    database: Database, door: Door, statement: str, expected: type[AppError], said: str
) -> None:
    await change(database, statement.replace(str(COST), str(10 * COST)).replace("= 7", "= 70"))
    outcomes = await asyncio.gather(*(door.reserve() for _ in range(60)), return_exceptions=True)
    meters = [outcome for outcome in outcomes if isinstance(outcome, Meter)]
    assert len(meters) == 10
    assert all(isinstance(outcome, expected) for outcome in outcomes if not isinstance(outcome, Meter))
    for meter in meters:
        meter.deliver(3)
    await asyncio.gather(*(meter.settle("length") for meter in meters))
    assert await budget(database) == (10 * COST, 0, 70, 0)


@pytest.mark.parametrize(("left", "granted"), [(99, 2), (80, 2), (79, 1), (60, 1)])
async def test_what_is_left_pays_for_a_part_of_the_output(
    database: Database, door: Door, left: int, granted: int
) -> None:
    await change(database, f"UPDATE org_budgets SET spend_cap = {left}")
    await door.reserve()
    assert door.permit.output_tokens == granted
    assert (await budget(database))[1] == 40 + 20 * granted


@pytest.mark.parametrize(("operator_s", "own"), [(60, 99), (99, 60)])
async def test_the_lower_of_both_caps_counts(database: Database, door: Door, operator_s: int, own: int) -> None:
    await change(database, f"UPDATE org_budgets SET spend_cap = {operator_s}, own_spend_cap = {own}")
    await door.reserve()
    assert (await budget(database))[1] == 60


async def test_less_than_the_least_output_is_refused(database: Database, door: Door) -> None:
    await change(database, "UPDATE org_budgets SET spend_cap = 79")
    with pytest.raises(QuotaExceeded):
        await door.reserve(replace(WORK, least_output=2))
    assert await budget(database) == (0, 0, 0, 0)


async def test_an_input_without_output_is_paid_in_full_or_refused(database: Database, door: Door) -> None:
    work = Work(4, 0, 0, Price(10, 10, 0), 30)
    await change(database, "UPDATE org_budgets SET spend_cap = 79")
    await door.reserve(work)
    with pytest.raises(QuotaExceeded):
        await door.reserve(work)


@pytest.mark.parametrize(
    ("restriction", "said"),
    [("NULL", "no plan in force"), ("'past_due'", "payment .* has failed"), ("'disputed'", "is disputed")],
)
async def test_a_restricted_organisation_is_told_why_and_where_to_go_and_not_to_retry(
    database: Database, door: Door, restriction: str, said: str
) -> None:
    await change(database, f"UPDATE org_budgets SET status = 'restricted', restriction = {restriction}")
    with pytest.raises(QuotaExceeded, match=said) as refusal:
        await door.reserve()
    assert refusal.value.message.endswith("See https://pay.example/billing.")
    assert refusal.value.headers["x-should-retry"] == "false"


async def test_without_credit_the_way_to_more_is_shown(database: Database, door: Door) -> None:
    await change(database, "UPDATE org_budgets SET credit = 0")
    with pytest.raises(PaymentRequired, match=r"https://pay\.example/billing"):
        await door.reserve()


@pytest.mark.parametrize(
    ("own", "plans", "admitted"),
    [(None, 14, 2), (7, 14, 1), (21, 14, 3), (None, None, 4), (0, 14, 0), (None, 0, 0)],
)
async def test_the_tokens_of_a_month_are_the_plans_unless_the_organisation_has_a_number_of_its_own(
    database: Database, door: Door, own: int | None, plans: int | None, admitted: int
) -> None:
    await change(database, f"UPDATE org_budgets SET monthly_token_limit = {'NULL' if own is None else own}")
    limits = replace(WIDE, monthly_token_limit=plans)
    outcomes = await asyncio.gather(*(door.reserve(limits=limits) for _ in range(4)), return_exceptions=True)
    assert sum(isinstance(outcome, Meter) for outcome in outcomes) == admitted
    assert all(isinstance(outcome, Meter | QuotaExceeded) for outcome in outcomes)


async def test_what_is_left_of_the_plans_tokens_pays_for_a_part_of_the_output(database: Database, door: Door) -> None:
    await door.reserve(limits=replace(WIDE, monthly_token_limit=6))
    assert door.permit.output_tokens == 2


@pytest.mark.parametrize(("own", "plans"), [(2, 9), (None, 2)])
async def test_so_many_run_at_once(database: Database, door: Door, own: int | None, plans: int) -> None:
    await change(database, f"UPDATE org_budgets SET max_concurrent = {own or 'NULL'}")
    limits = replace(WIDE, max_concurrent=plans)
    first = await door.reserve(limits=limits)
    await door.reserve(limits=limits)
    with pytest.raises(RateLimited, match="2 requests at once") as refusal:
        await door.reserve(limits=limits)
    assert refusal.value.headers["retry-after"] == "1"
    await first.settle("stop")
    await door.reserve(limits=limits)


async def test_a_new_month_begins_with_nothing_used_and_keeps_what_is_held(database: Database, door: Door) -> None:
    await change(database, f"UPDATE org_budgets SET spend_cap = {2 * COST}")
    await change(database, f"UPDATE api_keys SET monthly_cap = {2 * COST}")
    spent = f"month = date_trunc('month', now()) - interval '1 month', cost_used = {2 * COST}"
    await change(database, f"UPDATE org_budgets SET {spent}, cost_held = {COST}, tokens_used = 70")
    await change(database, f"UPDATE rate_buckets SET {spent}, cost_held = {COST}")
    meter = await door.reserve()
    assert await budget(database) == (0, 2 * COST, 0, 7)
    with pytest.raises(QuotaExceeded):
        await door.reserve()
    await meter.settle("stop")
    assert await budget(database) == (40, COST, 4, 0)
    assert await of_key(database) == (40, COST)


async def test_a_settlement_may_begin_the_month(database: Database, door: Door) -> None:
    meter = await door.reserve()
    last = "month = date_trunc('month', now()) - interval '1 month', cost_used = 777"
    await change(database, f"UPDATE org_budgets SET {last}, tokens_used = 777")
    await change(database, f"UPDATE rate_buckets SET {last}")
    await meter.settle("stop")
    assert await budget(database) == (40, 0, 4, 0)
    assert await of_key(database) == (40, 0)


async def test_a_key_is_not_admitted_for_another_organisation(door: Door) -> None:
    door.key = replace(door.key, org_id=new_id())
    with pytest.raises(AuthenticationFailed):
        await door.reserve()


async def test_an_admission_whose_connection_breaks_is_503_and_holds_nothing(
    database: Database, door: Door, database_url: str
) -> None:
    """The row of the key is locked, so the statement is under way when its connection is cut."""
    async with database.begin() as connection:
        await connection.execute(text("SELECT 1 FROM rate_buckets FOR UPDATE"))
        attempt = asyncio.create_task(door.reserve())
        await cut_waiting(database, "tollgate admission")
        with pytest.raises(DatabaseUnavailable) as refusal:
            await attempt
    assert refusal.value.headers["retry-after"] == "1"
    await door.ledger.caught_up()
    assert await budget(database) == (0, 0, 0, 0)
    await door.reserve()


@pytest.mark.parametrize(
    ("left", "reset"), [(60, "0ms"), (59.98, "20ms"), (58.5, "1.5s"), (0, "1m0s"), (-30.2, "1m31s")]
)
def test_durations_are_spelled_as_openai_does(left: float, reset: str) -> None:
    headers = Permit(LIMITS, left, 0).headers
    assert headers["x-ratelimit-reset-requests"] == reset
    assert int(headers["x-ratelimit-remaining-requests"]) >= 0
