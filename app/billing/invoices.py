"""Invoices as Stripe last told them, and whether their metered lines say what our ledger says.

A metered line counts the usage of a period that Stripe has taken in. Of an invoice that is
final this is compared with what was claimed for the same periods; what two invoices share
(a change of plan bills a part of a period early) counts on the first. The difference is the
drift, which must be 0 and raises an alert when it is not.
"""

from collections.abc import Container, Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import delete, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from app.billing import catalog, claims
from app.billing.subscriptions import lock_owner, moment
from app.db import Database
from app.tables import CatalogPrice, Invoice, Subscription
from app.telemetry import BILLING_DRIFT, get_logger

log = get_logger(__name__)

AUDITED_FOR = timedelta(days=45)
"""How long after it was made an invoice is compared again: rows that were in doubt may move until then."""
NANO_USD_PER_MICRO_USD = 1_000

_FINAL = ("open", "paid", "uncollectible")


async def project(connection: AsyncConnection, snapshot: Mapping[str, Any], synced_at: datetime) -> UUID | None:
    """Writes an invoice down.

    Locks the organisation's row until the transaction ends.

    Args:
        connection: An open transaction.
        snapshot: Stripe's invoice with all of its lines.
        synced_at: By the database's clock, before it was read.

    Returns:
        The organisation; None: it is nobody's here.
    """
    details = (snapshot["parent"] or {}).get("subscription_details") or {}
    org_id = await lock_owner(connection, snapshot["customer"], details.get("metadata"))
    if org_id is None:
        return None
    metered = await _metered_prices(connection)
    values = {"org_id": org_id, "synced_at": synced_at, **_row(snapshot, details.get("subscription"), metered)}
    statement = insert(Invoice).values(id=snapshot["id"], **values)
    upsert = statement.on_conflict_do_update(
        index_elements=[Invoice.id],
        set_={name: statement.excluded[name] for name in values},
        where=Invoice.synced_at <= statement.excluded.synced_at,
    )
    await connection.execute(upsert)
    return org_id


async def forget(connection: AsyncConnection, invoice_id: str) -> None:
    """Removes a draft that was deleted at Stripe."""
    await connection.execute(delete(Invoice).where(Invoice.id == invoice_id, Invoice.status == "draft"))


async def audit_recent(database: Database, now: datetime) -> int:
    """Compares the metered lines of recent final invoices with the ledger, a transaction each.

    Sets the metric of drift.

    Returns:
        The drift of all of them, in 10^-9 USD, >= 0.
    """
    statement = (
        select(Invoice.id)
        .where(Invoice.metered_value.is_not(None), Invoice.status.in_(_FINAL), Invoice.created > now - AUDITED_FOR)
        .order_by(Invoice.created, Invoice.id)
    )
    async with database.begin() as connection:
        invoice_ids = (await connection.execute(statement)).scalars().all()
    drift = 0
    for invoice_id in invoice_ids:
        async with database.begin() as connection:
            drift += abs(await audit(connection, invoice_id, now))
    BILLING_DRIFT.set(drift / NANO_USD_PER_MICRO_USD)
    return drift


async def audit(connection: AsyncConnection, invoice_id: str, now: datetime) -> int:
    """Compares the metered lines of an invoice with the ledger and notes the outcome in its row.

    Args:
        connection: An open transaction.
        invoice_id: Stripe's, of a row with a ``metered_value``.
        now: Becomes ``audited_at``.

    Returns:
        What Stripe counts too much, in 10^-9 USD; below 0 too little.
    """
    columns = (Invoice.stripe_subscription_id, Invoice.created, Invoice.lines, Invoice.metered_value)
    row = (await connection.execute(select(*columns).where(Invoice.id == invoice_id))).one()
    spans = _spans(row.lines)
    statement = select(Subscription.id).where(Subscription.stripe_subscription_id == row.stripe_subscription_id)
    subscription_id = await connection.scalar(statement)
    ledger_value = 0
    if subscription_id is not None:
        for start, end in spans:
            ledger_value += await claims.value_between(connection, subscription_id, _at(start), _at(end))
    earlier = select(Invoice.lines).where(
        Invoice.stripe_subscription_id == row.stripe_subscription_id,
        Invoice.status.in_(_FINAL),
        (Invoice.created < row.created) | ((Invoice.created == row.created) & (Invoice.id < invoice_id)),
    )
    for lines in (await connection.execute(earlier)).scalars():
        ledger_value -= _counted_within(lines, spans)
    await connection.execute(
        update(Invoice).where(Invoice.id == invoice_id).values(ledger_value=ledger_value, audited_at=now)
    )
    drift = int(row.metered_value) - ledger_value
    if drift:
        log.error("invoice.drift", invoice=invoice_id, metered=row.metered_value, ledger=ledger_value)
    return drift


def _spans(lines: Iterable[Mapping[str, Any]]) -> list[tuple[int, int]]:
    """The periods of metered lines in unix seconds, those that touch or overlap as one."""
    spans: list[tuple[int, int]] = []
    for start, end in sorted((line["period"]["start"], line["period"]["end"]) for line in lines if line["is_metered"]):
        if spans and start <= spans[-1][1]:
            spans[-1] = (spans[-1][0], max(end, spans[-1][1]))
        else:
            spans.append((start, end))
    return spans


def _counted_within(lines: Iterable[Mapping[str, Any]], spans: Sequence[tuple[int, int]]) -> int:
    """What metered lines count of usage that lies within these periods."""
    return sum(
        line["quantity"] or 0
        for line in lines
        if line["is_metered"]
        and any(start <= line["period"]["start"] and line["period"]["end"] <= end for start, end in spans)
    )


def _at(seconds: int) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


async def _metered_prices(connection: AsyncConnection) -> set[str]:
    rows = await connection.execute(select(CatalogPrice.stripe_price_id, CatalogPrice.lookup_key))
    found = ((row.stripe_price_id, catalog.plan_of_lookup_key(row.lookup_key)) for row in rows)
    return {price_id for price_id, named in found if named is not None and named[1] == "usage"}


def _row(snapshot: Mapping[str, Any], subscription_id: str | None, metered: Container[str]) -> dict[str, Any]:
    """What the invoice itself says, by column."""
    lines = [_line(line, metered) for line in snapshot["lines"]["data"]]
    counted = [line["quantity"] or 0 for line in lines if line["is_metered"]]
    as_they_are = (
        "number",
        "status",
        "subtotal",
        "total",
        "amount_due",
        "amount_paid",
        "hosted_invoice_url",
        "invoice_pdf",
    )
    times = ("period_start", "period_end", "created")
    return {
        "stripe_subscription_id": subscription_id,
        **{name: snapshot[name] for name in as_they_are},
        **{name: moment(snapshot[name]) for name in times},
        "finalized_at": moment(snapshot["status_transitions"]["finalized_at"]),
        "lines": lines,
        "metered_value": sum(counted) if counted else None,
    }


def _line(line: Mapping[str, Any], metered: Container[str]) -> dict[str, Any]:
    """Of a line of Stripe's what is shown to customers and compared with the ledger."""
    pricing = line["pricing"] or {}
    price = (pricing.get("price_details") or {}).get("price")
    price_id = price["id"] if isinstance(price, Mapping) else price
    return {
        "id": line["id"],
        "description": line["description"],
        "amount": line["amount"],
        "quantity": line["quantity"],
        "price": price_id,
        "unit_amount": pricing.get("unit_amount_decimal"),
        "period": {"start": line["period"]["start"], "end": line["period"]["end"]},
        "is_metered": price_id in metered,
    }
