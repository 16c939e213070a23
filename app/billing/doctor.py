"""Are the books right? Every invariant of usage and budgets as a check, and the register of all checks.

``CHECKS`` is that register: whoever adds an invariant adds a check (``app.billing.check``)
and a test that breaks it.
"""

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import Row, text
from sqlalchemy.ext.asyncio import AsyncConnection

from app.billing.account_checks import ACCOUNT_CHECKS
from app.billing.check import LIMIT, MAX_FINDINGS, Check, cost_of, read, snapshot
from app.billing.metering_checks import METERING_CHECKS
from app.billing.prices import PRICES
from app.billing.rollups import CHUNK, HOUR, SUMS
from app.billing.statement import Line, Query, read_lines
from app.db import Database

_PAGE = 100_000
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
    "WITH held AS (SELECT r.org_id, COALESCE(k.bucket_id, r.key_id) AS bucket_id, r.cost, r.tokens"
    " FROM reservations r LEFT JOIN api_keys k ON k.id = r.key_id)"
    " SELECT 'organisation' AS whose, b.org_id AS id, b.cost_held, b.tokens_held, b.num_running,"
    " COALESCE(sum(h.cost), 0) AS cost, COALESCE(sum(h.tokens), 0) AS tokens, count(h.org_id) AS requests"
    " FROM org_budgets b LEFT JOIN held h ON h.org_id = b.org_id GROUP BY b.org_id"
    " HAVING (b.cost_held, b.tokens_held, b.num_running)"
    " <> (COALESCE(sum(h.cost), 0), COALESCE(sum(h.tokens), 0), count(h.org_id))"
    " UNION ALL SELECT 'key', b.key_id, b.cost_held, 0, 0, COALESCE(sum(h.cost), 0), 0, 0"
    " FROM rate_buckets b LEFT JOIN held h ON h.bucket_id = b.key_id GROUP BY b.key_id"
    " HAVING b.cost_held <> COALESCE(sum(h.cost), 0) ORDER BY 1, 2 LIMIT :limit"
)
_HELD_TOO_LONG = text(
    "SELECT request_id, org_id, expires_at FROM reservations WHERE expires_at < now() - CAST(:tolerance AS interval)"
    " ORDER BY expires_at LIMIT :limit"
)
_ORGS = text("SELECT id FROM orgs ORDER BY id")
_THIS_MONTH = "date_trunc('month', now() AT TIME ZONE 'UTC')::date"
_USED_BY_ORG = text(
    f"SELECT CASE WHEN month = {_THIS_MONTH} THEN cost_used ELSE 0 END AS cost_used,"  # noqa: S608 - a constant
    f" CASE WHEN month = {_THIS_MONTH} THEN tokens_used ELSE 0 END AS tokens_used"
    " FROM org_budgets WHERE org_id = :org_id"
)
_USED_BY_KEYS = text(
    f"SELECT b.key_id, CASE WHEN b.month = {_THIS_MONTH} THEN b.cost_used ELSE 0 END AS cost_used"  # noqa: S608
    " FROM rate_buckets b JOIN api_keys k ON k.id = b.key_id WHERE k.org_id = :org_id ORDER BY 1"
)
# A key that was rotated and its successor draw from one bucket.
_BILLED_THIS_MONTH = text(
    "SELECT COALESCE(k.bucket_id, u.key_id) AS bucket_id, u.kind, u.price_version, sum(u.input_tokens) AS input_tokens,"
    " sum(u.cached_tokens) AS cached_tokens, sum(u.output_tokens) AS output_tokens FROM usage_events u"
    " LEFT JOIN api_keys k ON k.id = u.key_id WHERE u.org_id = :org_id"
    " AND u.billed_at >= date_trunc('month', now(), 'UTC') GROUP BY 1, 2, 3"
)
_WITHOUT_BUDGET = text(
    "SELECT o.id FROM orgs o LEFT JOIN org_budgets b ON b.org_id = o.id WHERE b.org_id IS NULL"
    " ORDER BY o.id LIMIT :limit"
)
_COUNTS = ("requests", "input_tokens", "cached_tokens", "output_tokens")


async def find_duplicates(database: Database) -> list[str]:
    """Requests with more than one row, which the table's key allows if they started at two times."""
    rows = await read(database, _DUPLICATES, LIMIT)
    return [f"request {row.id} has {row.rows} rows" for row in rows]


async def find_unpriced(database: Database) -> list[str]:
    """Rows under a price that the list does not have: they would vanish from every statement."""
    rows = await read(database, _PRICES_USED)
    return [
        f"{row.rows} rows of {row.kind} have price version {row.price_version}, which is not in the list"
        for row in rows
        if (row.price_version, row.kind) not in PRICES
    ]


async def find_billed_early(database: Database) -> list[str]:
    """Rows that were billed before they started: they may lie in the wrong period."""
    rows = await read(database, _BILLED_EARLY, {**LIMIT, "tolerance": _CLOCK_TOLERANCE})
    return [f"request {row.id} started at {row.started_at} and was billed at {row.billed_at}" for row in rows]


async def find_unlike_statements(database: Database) -> list[str]:
    """Months whose statement, as the API shows it in any bucket, is not the sum of its rows."""
    problems = []
    for row in await read(database, _BORDERS):
        month: datetime = row.first
        while month <= row.last:
            following = (month + timedelta(days=32)).replace(day=1)
            async with snapshot(database) as connection:
                problems += await _compare_month(connection, row.org_id, month, following)
            month = following
    return problems


async def find_unlike_sums(database: Database) -> list[str]:
    """Sums by the hour that are not what making them anew would give."""
    [extent] = await read(database, _SPANS_OF_SUMS)
    problems: list[str] = []
    if extent.first is None:
        return problems
    start, end = extent.first, extent.last + HOUR
    while start < end and len(problems) <= MAX_FINDINGS:
        bind = {**LIMIT, "start": start, "end": min(end, start + CHUNK)}
        rows = await read(database, _UNLIKE, bind)
        problems += [f"{row.hour}: {row.kind} by {row.model} with key {row.key_id} {row.problem}" for row in rows]
        start += CHUNK
    return problems


async def find_keys_in_full(database: Database) -> list[str]:
    """Columns, of any table, that hold something in the form of a whole key."""
    problems = []
    for table, column, kind in await read(database, _COLUMNS):
        value = f"encode(\"{column}\", 'escape')" if kind == "bytea" else f'"{column}"::text'
        # Names come from the catalogue of the database itself.
        statement = text(f'SELECT count(*) AS count FROM "{table}" WHERE {value} ~ :pattern')  # noqa: S608
        [found] = await read(database, statement, {"pattern": _KEY_PATTERN})
        if found.count:
            problems.append(f"{found.count} rows of {table}.{column} hold a key in full")
    return problems


async def find_lost_keys(database: Database) -> list[str]:
    """Keys that were replaced by another organisation's, or have no rates to draw from."""
    foreign = await read(database, _FOREIGN_SUCCESSORS, LIMIT)
    problems = [f"key {row.id} was replaced by a key of another organisation" for row in foreign]
    without = await read(database, _WITHOUT_BUCKET, LIMIT)
    problems += [f"key {row.id} has no rate bucket and is refused" for row in without]
    poor = await read(database, _WITHOUT_BUDGET, LIMIT)
    return problems + [f"organisation {row.id} has no budget and its keys are refused" for row in poor]


async def find_unlike_holds(database: Database) -> list[str]:
    """Organisations and keys that hold something else than their running requests."""
    rows = await read(database, _UNLIKE_HOLDS, LIMIT)
    return [
        f"{row.whose} {row.id} holds {row.cost_held} (10^-12 USD), {row.tokens_held} tokens, {row.num_running}"
        f" requests; its reservations {row.cost}, {row.tokens}, {row.requests}"
        for row in rows
    ]


async def find_held_too_long(database: Database) -> list[str]:
    """Reservations that nobody frees."""
    rows = await read(database, _HELD_TOO_LONG, {**LIMIT, "tolerance": _SWEEP_TOLERANCE})
    return [f"request {row.request_id} of organisation {row.org_id} was to be free at {row.expires_at}" for row in rows]


async def find_unlike_budgets(database: Database) -> list[str]:
    """Budgets whose used part of this month is not the sum of its usage rows."""
    problems = []
    for org in await read(database, _ORGS):
        bind = {"org_id": org.id}
        async with snapshot(database) as connection:
            billed = (await connection.execute(_BILLED_THIS_MONTH, bind)).all()
            budget = (await connection.execute(_USED_BY_ORG, bind)).one_or_none()
            buckets = (await connection.execute(_USED_BY_KEYS, bind)).all()
        cost, tokens = sum(map(cost_of, billed)), sum(int(row.input_tokens + row.output_tokens) for row in billed)
        if budget is not None and (budget.cost_used, budget.tokens_used) != (cost, tokens):
            problems.append(
                f"organisation {org.id} has used {budget.cost_used} (10^-12 USD) and {budget.tokens_used} tokens;"
                f" its rows {cost} and {tokens}"
            )
        for bucket in buckets:
            cost = sum(cost_of(row) for row in billed if row.bucket_id == bucket.key_id)
            if bucket.cost_used != cost:
                problems.append(f"key {bucket.key_id} has used {bucket.cost_used} (10^-12 USD); its rows {cost}")
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
    *ACCOUNT_CHECKS,
    *METERING_CHECKS,
)
"""The register: add here, with a test that breaks the promise."""


async def _compare_month(connection: AsyncConnection, org_id: UUID, start: datetime, end: datetime) -> list[str]:
    rows = (await connection.execute(_ROWS_OF_MONTH, {"org_id": org_id, "start": start, "end": end})).all()
    expected = _total_of_rows(rows)
    query = Query(org_id, start, end, "month", ("model", "key", "kind"), _PAGE)
    problems = []
    for bucket in ("month", "day", "hour"):
        shown = _total_of_lines(await _all_lines(connection, replace(query, bucket=bucket)))
        if shown != expected:
            problems.append(f"{start:%Y-%m} of organisation {org_id} by {bucket}: shown {shown}, rows {expected}")
    return problems


async def _all_lines(connection: AsyncConnection, query: Query) -> list[Line]:
    lines, has_more = await read_lines(connection, query)
    while has_more:
        page, has_more = await read_lines(connection, replace(query, after=lines[-1].cursor))
        lines += page
    return lines


def _total_of_rows(rows: Sequence[Row[Any]]) -> tuple[int, ...]:
    """Requests, tokens in, cached, out, and 10^-12 USD; a row without a price costs nothing here."""
    counts = (sum(int(getattr(row, name)) for row in rows) for name in _COUNTS)
    return (*counts, sum(map(cost_of, rows)))


def _total_of_lines(lines: Sequence[Line]) -> tuple[int, ...]:
    counts = (sum(getattr(line, name) for line in lines) for name in _COUNTS)
    return (*counts, sum(int(line.cost) for line in lines))
