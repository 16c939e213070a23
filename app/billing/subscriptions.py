"""Subscriptions as Stripe last told them, and the periods that their usage is metered in.

Whatever is written here was read from Stripe at ``synced_at``; what was read earlier never
replaces it, so snapshots may come twice, late and in any order. Reading is somebody else's
(``app.billing.effects``): nothing here waits for Stripe while a transaction is open.

Of several subscriptions that live the newest is current; that there are several is a fault
that ``app.billing.duplicates`` mends. A period that nobody told us of is not made up: usage
in it is claimed with the next one that is known.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from sqlalchemy import ColumnElement, case, func, select, text
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from app.billing import catalog
from app.billing.catalog import Interval, Part, Plan
from app.billing.gateway import Gateway, Object
from app.db import Database
from app.errors import Conflict
from app.tables import CatalogPrice, Subscription, new_id

LIVE = ("trialing", "active", "past_due", "unpaid")
"""A subscription in one of these states decides what its organisation may do."""
OVERDUE = ("past_due", "unpaid")

Prices = Mapping[str, tuple[Plan, Part, Interval]]
"""What Stripe's prices are to us, by their ids."""

_NOTHING: tuple[Any, None, None] = (None, None, None)

_CLOCK = text("SELECT clock_timestamp()")
# Whoever projects something of an organisation waits here for others that do.
_LOCK_BY_CUSTOMER = text("SELECT id FROM orgs WHERE stripe_customer_id = :customer FOR NO KEY UPDATE")
_LOCK_BY_ID = text("SELECT id FROM orgs WHERE id = :org_id FOR NO KEY UPDATE")
_ADOPT = text("UPDATE orgs SET stripe_customer_id = :customer WHERE id = :org_id AND stripe_customer_id IS NULL")
_NEWEST = (
    "SELECT id FROM subscriptions WHERE org_id = :org_id AND status IN ('trialing', 'active', 'past_due', 'unpaid')"
    " ORDER BY started_at DESC, stripe_subscription_id DESC LIMIT 1"
)
# Two statements: the index that allows one current subscription looks at each row by itself.
_UNSET_CURRENT = text(
    "UPDATE subscriptions SET is_current = false WHERE org_id = :org_id AND is_current"  # noqa: S608 - constants
    f" AND id IS DISTINCT FROM ({_NEWEST})"
)
_SET_CURRENT = text(
    f"UPDATE subscriptions SET is_current = true WHERE NOT is_current AND id = ({_NEWEST})"  # noqa: S608 - constants
)
# What was claimed stays inside its period, whatever we are told later.
_CUT = text(
    "UPDATE metering_periods SET period_end = GREATEST(:moment, claimed_until)"
    " WHERE subscription_id = :id AND period_start < :moment AND period_end > :moment"
)
_ADD_PERIOD = text(
    "INSERT INTO metering_periods (subscription_id, period_start, period_end, is_trial, claimed_until)"
    " VALUES (:id, :start, :end, :is_trial, LEAST(:end, GREATEST(:start, (SELECT max(claimed_until)"
    " FROM metering_periods WHERE subscription_id = :id AND period_start < :start))))"
    " ON CONFLICT (subscription_id, period_start) DO UPDATE SET is_trial = excluded.is_trial,"
    " period_end = GREATEST(excluded.period_end, metering_periods.claimed_until)"
)


@dataclass(frozen=True, slots=True)
class _Sold:
    """What a subscription was sold as."""

    plan: str
    plan_version: int
    billing_interval: str


async def project(
    connection: AsyncConnection, snapshot: Mapping[str, Any], synced_at: datetime, *, open_since: datetime | None = None
) -> UUID | None:
    """Writes what Stripe's subscription says: its row, its metering period, which of several is current.

    Locks the organisation's row until the transaction ends.

    Args:
        connection: An open transaction.
        snapshot: Stripe's subscription, as ``Gateway.retrieve_subscription`` reads it.
        synced_at: By the database's clock, before it was read.
        open_since: Since when an invoice of it is open that could not be paid, the oldest; None: not known.

    Returns:
        The organisation; None: it is nobody's here.

    Raises:
        Conflict: Its prices are not of the catalogue, and it is new to us.
    """
    org_id = await lock_owner(connection, snapshot["customer"], snapshot["metadata"])
    if org_id is None:
        return None
    prices = await known_prices(connection, snapshot)
    id = await _upsert(connection, org_id, snapshot, prices, synced_at, open_since)
    if id is None:  # a later reading is there already
        return org_id
    await connection.execute(_UNSET_CURRENT, {"org_id": org_id})
    await connection.execute(_SET_CURRENT, {"org_id": org_id})
    await _project_period(connection, id, snapshot, prices)
    return org_id


async def read(gateway: Gateway, subscription_id: str) -> tuple[Object, datetime | None]:
    """A subscription, and since when the oldest invoice of it is open that could not be paid, if one is.

    Raises:
        StripeUnavailable: As every call; likewise ``StripeRefused``.
    """
    snapshot = await gateway.retrieve_subscription(subscription_id)
    if snapshot["status"] not in OVERDUE:
        return snapshot, None
    unpaid = (invoice for invoice in await gateway.list_open_invoices(subscription_id) if invoice["attempted"])
    # It was tried at once when it became final.
    finalized = (invoice["status_transitions"]["finalized_at"] for invoice in unpaid)
    return snapshot, moment(min((at for at in finalized if at is not None), default=None))


async def clock(database: Database) -> datetime:
    """The database's present, by which readings are ordered."""
    async with database.begin() as connection:
        now: datetime = (await connection.execute(_CLOCK)).scalar_one()
    return now


async def lock_owner(
    connection: AsyncConnection, customer: str | Mapping[str, Any] | None, metadata: Mapping[str, str] | None
) -> UUID | None:
    """The organisation that something at Stripe belongs to, its row locked; None: it is nobody's here.

    Its customer decides. Where we know no such customer, the ``org_id`` that was written
    into the object when it was made does, and the customer becomes the organisation's.

    Args:
        connection: An open transaction.
        customer: Of the object, or its id.
        metadata: Of the object.
    """
    customer_id = customer["id"] if isinstance(customer, Mapping) else customer
    found: UUID | None = await connection.scalar(_LOCK_BY_CUSTOMER, {"customer": customer_id})
    named = (metadata or {}).get("org_id")
    if found is not None or not named:
        return found
    found = await connection.scalar(_LOCK_BY_ID, {"org_id": _uuid(named)})
    if found is not None and customer_id is not None:
        await connection.execute(_ADOPT, {"customer": customer_id, "org_id": found})
    return found


async def known_prices(connection: AsyncConnection, snapshot: Mapping[str, Any]) -> Prices:
    """The prices of the catalogue that a subscription has or will have.

    A price is known by its lookup key, and by its id where Stripe says no more than that
    or has given the key to another price since.
    """
    rows = (await connection.execute(select(CatalogPrice.stripe_price_id, CatalogPrice.lookup_key))).all()
    keys = {row.stripe_price_id: row.lookup_key for row in rows}
    keys |= {
        item["price"]["id"]: item["price"]["lookup_key"]
        for item in snapshot["items"]["data"]
        if item["price"].get("lookup_key")
    }
    named = ((price_id, catalog.plan_of_lookup_key(key)) for price_id, key in keys.items())
    return {price_id: price for price_id, price in named if price is not None}


def moment(seconds: int | None) -> datetime | None:
    """A time of Stripe's; it counts unix seconds."""
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC)


async def _upsert(
    connection: AsyncConnection,
    org_id: UUID,
    snapshot: Mapping[str, Any],
    prices: Prices,
    synced_at: datetime,
    open_since: datetime | None,
) -> UUID | None:
    sold = await _sold(connection, snapshot, prices)
    values = _row(snapshot, sold, prices) | {
        "org_id": org_id,
        "past_due_since": (open_since or synced_at) if snapshot["status"] in OVERDUE else None,
        "snapshot": dict(snapshot),
        "synced_at": synced_at,
    }
    statement = insert(Subscription).values(
        id=new_id(), stripe_subscription_id=snapshot["id"], is_current=False, **values
    )
    new = statement.excluded
    changes: dict[str, ColumnElement[Any]] = {name: new[name] for name in values}
    if open_since is None:
        # Nobody looked since when it is due: what we knew is better than the present.
        known = func.coalesce(Subscription.past_due_since, new.past_due_since)
        changes["past_due_since"] = case((new.past_due_since.is_not(None), known))
    upsert = statement.on_conflict_do_update(
        index_elements=[Subscription.stripe_subscription_id],
        set_=changes,
        where=Subscription.synced_at <= new.synced_at,
    )
    id: UUID | None = await connection.scalar(upsert.returning(Subscription.id))
    return id


async def _sold(connection: AsyncConnection, snapshot: Mapping[str, Any], prices: Prices) -> _Sold:
    item = _item(snapshot, prices, "flat")
    if item is not None:
        plan, _, interval = prices[item["price"]["id"]]
        return _Sold(plan.name, plan.version, interval)
    columns = (Subscription.plan, Subscription.plan_version, Subscription.billing_interval)
    statement = select(*columns).where(Subscription.stripe_subscription_id == snapshot["id"])
    row = (await connection.execute(statement)).one_or_none()
    if row is None:
        raise Conflict(f"Subscription {snapshot['id']} has no price of the catalogue.", code="unknown_price")
    # Somebody changed its prices at Stripe by hand: it goes on as what it was sold as.
    return _Sold(*row)


def _row(snapshot: Mapping[str, Any], sold: _Sold, prices: Prices) -> dict[str, Any]:
    period = _item(snapshot, prices, "flat") or snapshot["items"]["data"][0]
    schedule = snapshot["schedule"]
    return {
        "stripe_schedule_id": schedule["id"] if isinstance(schedule, Mapping) else schedule,
        "plan": sold.plan,
        "plan_version": sold.plan_version,
        "billing_interval": sold.billing_interval,
        "status": snapshot["status"],
        "started_at": moment(snapshot["start_date"]),
        "trial_end": moment(snapshot["trial_end"]),
        "period_start": moment(period["current_period_start"]),
        "period_end": moment(period["current_period_end"]),
        "cancel_at_period_end": snapshot["cancel_at_period_end"],
        "cancel_at": moment(snapshot["cancel_at"]),
        "ended_at": moment(snapshot["ended_at"]),
        "pending_plan": _pending_plan(snapshot, sold, prices),
    }


def _pending_plan(snapshot: Mapping[str, Any], sold: _Sold, prices: Prices) -> str | None:
    """The plan of the next phase of its schedule, if that is another one, another version, or paid otherwise."""
    schedule = snapshot["schedule"]
    if not isinstance(schedule, Mapping) or schedule["status"] not in ("active", "not_started"):
        return None
    begun = (schedule["current_phase"] or {}).get("start_date", 0)
    coming = (item for phase in schedule["phases"] if phase["start_date"] > begun for item in phase["items"])
    for item in coming:
        price = item["price"]
        plan, part, interval = prices.get(price["id"] if isinstance(price, Mapping) else price, _NOTHING)
        is_flat = part == "flat"
        if is_flat and (plan.name, plan.version, interval) != (sold.plan, sold.plan_version, sold.billing_interval):
            return plan.name
    return None


async def _project_period(connection: AsyncConnection, id: UUID, snapshot: Mapping[str, Any], prices: Prices) -> None:
    """Writes the period that the metered price is in, and ends those that it, or the end of it all, cuts short."""
    item = _item(snapshot, prices, "usage")
    if item is not None and snapshot["status"] in LIVE:
        start = item["current_period_start"]
        trial_start, trial_end = snapshot["trial_start"], snapshot["trial_end"]
        bind = {
            "id": id,
            "start": moment(start),
            "end": moment(item["current_period_end"]),
            "is_trial": trial_end is not None and trial_start <= start < trial_end,
        }
        await connection.execute(_CUT, {"id": id, "moment": moment(start)})
        await connection.execute(_ADD_PERIOD, bind)
    if snapshot["ended_at"] is not None:
        await connection.execute(_CUT, {"id": id, "moment": moment(snapshot["ended_at"])})


def _item(snapshot: Mapping[str, Any], prices: Prices, part: Part) -> Mapping[str, Any] | None:
    items = snapshot["items"]["data"]
    return next((item for item in items if prices.get(item["price"]["id"], _NOTHING)[1] == part), None)


def _uuid(word: str) -> UUID | None:
    try:
        return UUID(word)
    except ValueError:
        return None
