"""Everything that we hold of an organisation, as one ZIP file of CSV tables.

Made while it is sent, a page of rows at a time in transactions of their own, so that years
of usage need neither memory nor a transaction that lasts, and in small pieces, between which
others are served. Each row is as it was when its page was read. Secrets are not part of it: no hash
of a password, key or token.
"""

import csv
import io
import zipfile
from collections.abc import AsyncIterator, Iterator, Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import ColumnElement, Table, select, tuple_

from app.db import Database
from app.tables import Base, Membership, Org, RateBucket, StoredRequest, User

PAGE = 500
"""Rows that are read at once; of ``stored_requests`` fewer, which may have 8 MiB each."""
PAGE_OF_REQUESTS = 8
PIECE_BYTES = 2**16
NOT_EXPORTED = frozenset(
    {
        # Of the moment: what is held, answered or on its way.
        "reservations",
        "idempotency_keys",
        # Sums of usage_events, which are exported.
        "usage_rollup_hour",
        # A person's login, not the organisation's.
        "portal_sessions",
    }
)
"""Tables with an ``org_id`` that are left out."""
# What a page is found by, where an index begins with the organisation; else by the primary key.
_ORDER = {
    "usage_events": ("billed_at", "id"),
    "stripe_meter_outbox": ("meter", "window_start", "seq"),
    "credit_ledger": ("created_at", "id"),
    "stored_requests": ("started_at", "request_id"),
    "notifications": ("created_at", "id"),
    "invoices": ("created", "id"),
    "payments": ("created", "id"),
}
SECRETS = frozenset({"key_hash", "token_hash", "previous_hash", "hash"})
"""Columns that are left out."""

_README = """Everything that is kept of the organisation {name} ({id}), exported {now}.

One CSV file a table, the first line has the names of the columns. Times are UTC. Amounts in
org_budgets, credit_ledger and rate_buckets are 10^-12 USD, in invoices and payments cents,
in stripe_meter_outbox 10^-9 USD. Of stored_requests, request and answer are hexadecimal.
Left out are secrets and what lasts moments only.
"""


async def export(database: Database, org_id: UUID, now: datetime) -> AsyncIterator[bytes]:
    """The file, in pieces.

    Args:
        database: With everything.
        org_id: The organisation; somebody has made sure that the caller may see all of it.
        now: Dates the file.
    """
    async with database.begin() as connection:
        name = (await connection.execute(select(Org.name).where(Org.id == org_id))).scalar_one()
    buffer = _Pipe()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("README.txt", _README.format(name=name, id=org_id, now=now.isoformat(timespec="seconds")))
        for table in exported_tables():
            with archive.open(f"{table.name}.csv", "w", force_zip64=True) as file:
                async for rows in _pages(database, table, org_id):
                    for piece in _csv(rows):
                        file.write(piece)
                        # Whoever sends it lets others work meanwhile.
                        yield buffer.take()
    yield buffer.take()


def exported_tables() -> list[Table]:
    """Every table that says which organisation a row is of, and those that say it through another."""
    tables = [table for table in Base.metadata.sorted_tables if "org_id" in table.columns]
    chosen = [table for table in tables if table.name not in NOT_EXPORTED]
    return [_table(Org), _table(User), *chosen, _table(RateBucket), Base.metadata.tables["metering_periods"]]


class _Pipe(io.RawIOBase):
    """What the archive writes, until it is taken; cannot be sought, so nothing is written back over."""

    def __init__(self) -> None:
        self._written = bytearray()

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:  # noqa: ANN401 - any buffer
        self._written += data
        return len(data)

    def take(self) -> bytes:
        """What was written since the last time."""
        taken = bytes(self._written)
        self._written.clear()
        return taken


async def _pages(database: Database, table: Table, org_id: UUID) -> AsyncIterator[Sequence[Sequence[object]]]:
    """The rows, a page at a time in one order; before the first the names of the columns."""
    columns = [column for column in table.columns if column.name not in SECRETS and "password" not in column.name]
    yield [[column.name for column in columns]]
    keys = [table.c[name] for name in _ORDER.get(table.name, table.primary_key.columns.keys())]
    page = PAGE_OF_REQUESTS if table is _table(StoredRequest) else PAGE
    after: Sequence[object] | None = None
    while True:
        statement = select(*columns, *keys).where(_is_of(table, org_id)).order_by(*keys).limit(page)
        if after is not None:
            statement = statement.where(tuple_(*keys) > tuple_(*after))
        async with database.begin() as connection:
            rows = (await connection.execute(statement)).all()
        if rows:
            yield [row[: len(columns)] for row in rows]
        if len(rows) < page:
            return
        after = rows[-1][len(columns) :]


def _is_of(table: Table, org_id: UUID) -> ColumnElement[bool]:
    """Which rows belong to the organisation."""
    tables = Base.metadata.tables
    if table is _table(Org):
        return table.c.id == org_id
    if table is _table(User):
        return table.c.id.in_(select(Membership.user_id).where(Membership.org_id == org_id))
    if table is _table(RateBucket):
        return table.c.key_id.in_(select(tables["api_keys"].c.id).where(tables["api_keys"].c.org_id == org_id))
    if "org_id" not in table.columns:
        of_org = tables["subscriptions"].c.org_id == org_id
        return table.c.subscription_id.in_(select(tables["subscriptions"].c.id).where(of_org))
    return table.c.org_id == org_id


def _table(mapped: type[Base]) -> Table:
    table = mapped.__table__
    assert isinstance(table, Table)
    return table


def _csv(rows: Sequence[Sequence[object]]) -> Iterator[bytes]:
    """The lines of a page in pieces: together as many bytes as are compressed in some milliseconds."""
    waiting = bytearray()
    for row in rows:
        line = io.StringIO()
        csv.writer(line).writerow([_plain(value) for value in row])
        waiting += line.getvalue().encode()
        while len(waiting) >= PIECE_BYTES:
            yield bytes(waiting[:PIECE_BYTES])
            del waiting[:PIECE_BYTES]
    yield bytes(waiting)


def _plain(value: object) -> object:
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, bytes):
        return value.hex()
    return value
