"""Are the books right? Every invariant of the ledger as a question to the database.

A check is a function that returns what it found wrong, in one line each; nothing wrong
is an empty list. ``CHECKS`` is the register: whoever adds an invariant adds a check and
a test that breaks it. Checks only read, in one snapshot, and take as long as the ledger
is large: this is for a person or a nightly job, not for a request.
"""

from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import Row, text
from sqlalchemy.ext.asyncio import AsyncConnection

from app.billing.plans import PRICES
from app.billing.rollups import HOUR, SUMS
from app.billing.statement import Line, Query, read_lines
from app.db import Database

MAX_FINDINGS = 5
"""Shown of one check; the rest is counted."""
_ALL_LINES = 10**6
# A row is dated by the API's clock when it starts and by the database's when it is billed.
_CLOCK_TOLERANCE = timedelta(minutes=5)

_DUPLICATES = text(
    "SELECT id, count(*) AS rows FROM usage_events GROUP BY id HAVING count(*) > 1 ORDER BY id LIMIT :limit"
)
_PRICES_USED = text("SELECT price_version, kind, count(*) AS rows FROM usage_events GROUP BY 1, 2 ORDER BY 1, 2")
_BILLED_EARLY = text(
    "SELECT id, started_at, billed_at FROM usage_events WHERE billed_at < started_at - CAST(:tolerance AS interval)"
    " ORDER BY id LIMIT :limit"
)
_BORDERS = text(
    "SELECT org_id, date_trunc('month', min(billed_at), 'UTC') AS first, max(billed_at) AS last FROM usage_events"
    " GROUP BY org_id ORDER BY org_id"
)
_ROWS_OF_MONTH = text(
    "SELECT model, key_id, kind, price_version, count(*) AS requests, sum(input_tokens) AS input_tokens,"
    " sum(cached_tokens) AS cached_tokens, sum(output_tokens) AS output_tokens FROM usage_events"
    " WHERE org_id = :org_id AND billed_at >= :start AND billed_at < :end GROUP BY 1, 2, 3, 4"
)
_SPANS_OF_SUMS = text("SELECT min(hour) AS first, max(hour) AS last FROM rolled_hours WHERE is_current")
_KEPT = (
    "SELECT org_id, hour, model, key_id, kind, price_version, requests, input_tokens, cached_tokens, output_tokens"
    " FROM usage_rollup_hour JOIN rolled_hours USING (hour) WHERE is_current AND hour >= :start AND hour < :end"
)
_MADE = f"SELECT made.* FROM ({SUMS}) AS made JOIN rolled_hours USING (hour) WHERE is_current"  # noqa: S608 - constants
_UNLIKE = text(
    f"(SELECT 'is not what its rows add up to' AS problem, a.* FROM ({_KEPT} EXCEPT {_MADE}) AS a)"  # noqa: S608
    f" UNION ALL (SELECT 'is missing', b.* FROM ({_MADE} EXCEPT {_KEPT}) AS b) LIMIT :limit"
)
_COLUMNS = text(
    "SELECT c.table_name, c.column_name, c.data_type FROM information_schema.columns c"
    " JOIN information_schema.tables t USING (table_schema, table_name)"
    " WHERE c.table_schema = 'public' AND t.table_type = 'BASE TABLE'"
    " AND c.table_name NOT LIKE 'usage\\_events\\_y%'"
    " AND c.data_type IN ('text', 'character varying', 'json', 'jsonb', 'ARRAY', 'bytea')"
    " ORDER BY c.table_name, c.ordinal_position"
)
# The worker looks for expired reservations every half minute.
_SWEEP_TOLERANCE = timedelta(minutes=5)
# As app.auth makes them.
_KEY_PATTERN = "tg_live_[0-9A-Za-z]{36}"
_FOREIGN_SUCCESSORS = text(
    "SELECT old.id FROM api_keys old JOIN api_keys successor ON successor.id = old.replaced_by"
    " WHERE successor.org_id <> old.org_id ORDER BY old.id LIMIT :limit"
)
_WITHOUT_BUCKET = text(
    "SELECT k.id FROM api_keys k LEFT JOIN rate_buckets b ON b.key_id = k.id WHERE b.key_id IS NULL"
    " ORDER BY k.id LIMIT :limit"
)
# A key's row shows costs only; an organisation's tokens and running requests as well.
_UNLIKE_HOLDS = text(
    "WITH held AS (SELECT org_id, key_id, cost, tokens FROM reservations)"
    " SELECT 'organisation' AS whose, b.org_id AS id, b.cost_held, b.tokens_held, b.num_running,"
    " COALESCE(sum(h.cost), 0) AS cost, COALESCE(sum(h.tokens), 0) AS tokens, count(h.org_id) AS requests"
    " FROM org_budgets b LEFT JOIN held h ON h.org_id = b.org_id GROUP BY b.org_id"
    " HAVING (b.cost_held, b.tokens_held, b.num_running)"
    " <> (COALESCE(sum(h.cost), 0), COALESCE(sum(h.tokens), 0), count(h.org_id))"
    " UNION ALL SELECT 'key', b.key_id, b.cost_held, 0, 0, COALESCE(sum(h.cost), 0), 0, 0"
    " FROM rate_buckets b LEFT JOIN held h ON h.key_id = b.key_id GROUP BY b.key_id"
    " HAVING b.cost_held <> COALESCE(sum(h.cost), 0) ORDER BY 1, 2 LIMIT :limit"
)
_HELD_TOO_LONG = text(
    "SELECT request_id, org_id, expires_at FROM reservations WHERE expires_at < now() - CAST(:tolerance AS interval)"
    " ORDER BY expires_at LIMIT :limit"
)
# A successor begins with what its predecessor had spent, so its rows may be less.
_USED = text(
    "SELECT 'organisation' AS whose, org_id AS id, false AS is_successor,"
    " CASE WHEN month = :month THEN cost_used ELSE 0 END AS cost_used,"
    " CASE WHEN month = :month THEN tokens_used ELSE 0 END AS tokens_used FROM org_budgets"
    " UNION ALL SELECT 'key', key_id, EXISTS (SELECT FROM api_keys k WHERE k.replaced_by = key_id),"
    " CASE WHEN month = :month THEN cost_used ELSE 0 END, NULL FROM rate_buckets ORDER BY 1, 2"
)
_MONTH = text("SELECT date_trunc('month', now() AT TIME ZONE 'UTC')::date")
_ROWS_OF_EVERYBODY = text(
    "SELECT org_id, key_id, kind, price_version, sum(input_tokens) AS input_tokens,"
    " sum(cached_tokens) AS cached_tokens, sum(output_tokens) AS output_tokens FROM usage_events"
    " WHERE billed_at >= date_trunc('month', now(), 'UTC') GROUP BY 1, 2, 3, 4"
)
_COUNTS = ("requests", "input_tokens", "cached_tokens", "output_tokens")
_LIMIT = {"limit": MAX_FINDINGS + 1}


@dataclass(frozen=True, slots=True)
class Check:
    """One invariant: its name, what is promised, and the question."""

    name: str
    promise: str
    find: Callable[[AsyncConnection], Awaitable[list[str]]]


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check says; ``problems`` is empty where the promise holds."""

    check: Check
    problems: Sequence[str]

    @property
    def is_kept(self) -> bool:
        """Whether the promise holds."""
        return not self.problems


async def examine(database: Database, checks: Sequence[Check]) -> list[Finding]:
    """Asks every check in one snapshot, so that what is billed meanwhile disturbs none."""
    async with database.begin() as connection:
        await connection.execute(text("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY"))
        return [Finding(check, await check.find(connection)) for check in checks]


async def find_duplicates(connection: AsyncConnection) -> list[str]:
    """Requests with more than one row, which the table's key allows if they started at two times."""
    rows = await connection.execute(_DUPLICATES, _LIMIT)
    return [f"request {row.id} has {row.rows} rows" for row in rows]


async def find_unpriced(connection: AsyncConnection) -> list[str]:
    """Rows under a price that the list does not have: they would vanish from every statement."""
    rows = await connection.execute(_PRICES_USED)
    return [
        f"{row.rows} rows of {row.kind} have price version {row.price_version}, which is not in the list"
        for row in rows
        if (row.price_version, row.kind) not in PRICES
    ]


async def find_billed_early(connection: AsyncConnection) -> list[str]:
    """Rows that were billed before they started: they may lie in the wrong period."""
    rows = await connection.execute(_BILLED_EARLY, {**_LIMIT, "tolerance": _CLOCK_TOLERANCE})
    return [f"request {row.id} started at {row.started_at} and was billed at {row.billed_at}" for row in rows]


async def find_unlike_statements(connection: AsyncConnection) -> list[str]:
    """Months whose statement, as the API shows it in any bucket, is not the sum of its rows."""
    problems = []
    for row in (await connection.execute(_BORDERS)).all():
        month: datetime = row.first
        while month <= row.last:
            following = (month + timedelta(days=32)).replace(day=1)
            problems += await _compare_month(connection, row.org_id, month, following)
            month = following
    return problems


async def find_unlike_sums(connection: AsyncConnection) -> list[str]:
    """Sums by the hour that are not what making them anew would give."""
    extent = (await connection.execute(_SPANS_OF_SUMS)).one()
    if extent.first is None:
        return []
    bind = {**_LIMIT, "start": extent.first, "end": extent.last + HOUR}
    rows = await connection.execute(_UNLIKE, bind)
    return [f"{row.hour}: {row.kind} by {row.model} with key {row.key_id} {row.problem}" for row in rows]


async def find_keys_in_full(connection: AsyncConnection) -> list[str]:
    """Columns, of any table, that hold something in the form of a whole key."""
    problems = []
    for table, column, kind in (await connection.execute(_COLUMNS)).all():
        value = f"encode(\"{column}\", 'escape')" if kind == "bytea" else f'"{column}"::text'
        # Names come from the catalogue of the database itself.
        statement = text(f'SELECT count(*) FROM "{table}" WHERE {value} ~ :pattern')  # noqa: S608
        found = (await connection.execute(statement, {"pattern": _KEY_PATTERN})).scalar_one()
        if found:
            problems.append(f"{found} rows of {table}.{column} hold a key in full")
    return problems


async def find_lost_keys(connection: AsyncConnection) -> list[str]:
    """Keys that were replaced by another organisation's, or have no rates to draw from."""
    foreign = (await connection.execute(_FOREIGN_SUCCESSORS, _LIMIT)).scalars()
    problems = [f"key {key_id} was replaced by a key of another organisation" for key_id in foreign]
    without = (await connection.execute(_WITHOUT_BUCKET, _LIMIT)).scalars()
    return problems + [f"key {key_id} has no rate bucket and is refused" for key_id in without]


async def find_unlike_holds(connection: AsyncConnection) -> list[str]:
    """Organisations and keys that hold something else than their running requests."""
    rows = await connection.execute(_UNLIKE_HOLDS, _LIMIT)
    return [
        f"{row.whose} {row.id} holds {row.cost_held} (10^-12 USD), {row.tokens_held} tokens, {row.num_running}"
        f" requests; its reservations {row.cost}, {row.tokens}, {row.requests}"
        for row in rows
    ]


async def find_held_too_long(connection: AsyncConnection) -> list[str]:
    """Reservations that nobody frees."""
    rows = await connection.execute(_HELD_TOO_LONG, {**_LIMIT, "tolerance": _SWEEP_TOLERANCE})
    return [f"request {row.request_id} of organisation {row.org_id} was to be free at {row.expires_at}" for row in rows]


async def find_unlike_budgets(connection: AsyncConnection) -> list[str]:
    """Budgets whose used part of this month is not the sum of its usage rows."""
    used: Counter[UUID] = Counter()
    tokens_used: Counter[UUID] = Counter()
    for row in await connection.execute(_ROWS_OF_EVERYBODY):
        for owner in (row.org_id, row.key_id):
            used[owner] += _cost_of(row)
            tokens_used[owner] += int(row.input_tokens + row.output_tokens)
    month = (await connection.execute(_MONTH)).scalar_one()
    problems = []
    for row in await connection.execute(_USED, {"month": month}):
        cost, tokens = used[row.id], tokens_used[row.id]
        is_right = row.cost_used >= cost if row.is_successor else row.cost_used == cost
        if not is_right or row.tokens_used not in (None, tokens):
            in_tokens = "" if row.tokens_used is None else f" and {row.tokens_used} tokens"
            problems.append(
                f"{row.whose} {row.id} has used {row.cost_used} (10^-12 USD){in_tokens}; its rows {cost} and {tokens}"
            )
    return problems


CHECKS = (
    Check("one row a request", "A request is billed once.", find_duplicates),
    Check("every row has a price", "No usage is missing from the statements.", find_unpriced),
    Check("billed after the start", "A row lies in the period in which it was billed.", find_billed_early),
    Check(
        "statements are the rows", "Months, days and hours as shown are the sum of their rows.", find_unlike_statements
    ),
    Check("sums are the rows", "Sums by the hour, made anew, are identical.", find_unlike_sums),
    Check("no key in full", "The database holds no key that could be used.", find_keys_in_full),
    Check("keys belong together", "A key's successor is its organisation's; each has rates.", find_lost_keys),
    Check("holds are reservations", "What is held is what the running requests may cost.", find_unlike_holds),
    Check("nothing is held for ever", "A reservation ends with its request or soon after.", find_held_too_long),
    Check("budgets are the rows", "What a month's limits count is what is billed.", find_unlike_budgets),
)
"""The register: add here, with a test that breaks the promise."""


async def _compare_month(connection: AsyncConnection, org_id: UUID, start: datetime, end: datetime) -> list[str]:
    rows = (await connection.execute(_ROWS_OF_MONTH, {"org_id": org_id, "start": start, "end": end})).all()
    expected = _total_of_rows(rows)
    query = Query(org_id, start, end, "month", ("model", "key", "kind"), _ALL_LINES)
    problems = []
    for bucket in ("month", "day", "hour"):
        lines, _ = await read_lines(connection, replace(query, bucket=bucket))
        shown = _total_of_lines(lines)
        if shown != expected:
            problems.append(f"{start:%Y-%m} of organisation {org_id} by {bucket}: shown {shown}, rows {expected}")
    return problems


def _total_of_rows(rows: Sequence[Row[Any]]) -> tuple[int, ...]:
    """Requests, tokens in, cached, out, and 10^-12 USD; a row without a price costs nothing here."""
    counts = (sum(int(getattr(row, name)) for row in rows) for name in _COUNTS)
    return (*counts, sum(map(_cost_of, rows)))


def _cost_of(row: Row[Any]) -> int:
    price = PRICES.get((row.price_version, row.kind))
    if price is None:
        return 0
    return price.cost(int(row.input_tokens), int(row.cached_tokens), int(row.output_tokens))


def _total_of_lines(lines: Sequence[Line]) -> tuple[int, ...]:
    counts = (sum(getattr(line, name) for line in lines) for name in _COUNTS)
    return (*counts, sum(int(line.cost) for line in lines))
