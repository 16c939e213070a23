"""A customer whose usage is metered, and what was used: the smallest world of claims and outbox."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import insert, text

from app.db import Database
from app.tables import MeteringPeriod, Subscription, UsageEvent, new_id
from tests.billing.test_rollups import event
from tests.factories import make_org

START = datetime(2031, 3, 1, tzinfo=UTC)
"""Of the first period; far from the real present."""
MONTH = timedelta(days=30)
MINUTE = timedelta(minutes=1)
SECOND = timedelta(seconds=1)
MICROSECOND = timedelta(microseconds=1)
TOKEN_VALUE = 150
"""Of a token of input, in 10^-9 USD."""


@dataclass(frozen=True, slots=True)
class Customer:
    """An organisation with a subscription."""

    org_id: UUID
    subscription_id: UUID
    stripe_id: str


async def make_subscription(
    database: Database, org_id: UUID, start: datetime = START, *, is_current: bool = True, status: str = "active"
) -> UUID:
    """A subscription without periods."""
    subscription_id = new_id()
    async with database.begin() as connection:
        await connection.execute(
            insert(Subscription).values(
                id=subscription_id,
                org_id=org_id,
                stripe_subscription_id=f"sub_{subscription_id}",
                plan="starter",
                plan_version=1,
                billing_interval="month",
                status=status,
                started_at=start,
                period_start=start,
                period_end=start + MONTH,
                cancel_at_period_end=False,
                is_current=is_current,
                snapshot={},
                synced_at=start,
            )
        )
    return subscription_id


async def make_period(
    database: Database, subscription_id: UUID, start: datetime, end: datetime, *, is_trial: bool = False
) -> None:
    """A period of which nothing is claimed."""
    async with database.begin() as connection:
        await connection.execute(
            insert(MeteringPeriod).values(
                subscription_id=subscription_id,
                period_start=start,
                period_end=end,
                is_trial=is_trial,
                claimed_until=start,
            )
        )


async def make_customer(
    database: Database, start: datetime = START, end: datetime = START + MONTH, stripe_id: str | None = None
) -> Customer:
    """A customer in a first period."""
    org_id = await make_org(database, f"Org {new_id()}")
    stripe_id = stripe_id or f"cus_{org_id.hex}"
    async with database.begin() as connection:
        await connection.execute(
            text("UPDATE orgs SET stripe_customer_id = :customer WHERE id = :id"), {"customer": stripe_id, "id": org_id}
        )
    subscription_id = await make_subscription(database, org_id, start)
    await make_period(database, subscription_id, start, end)
    return Customer(org_id, subscription_id, stripe_id)


async def use(database: Database, org_id: UUID, *moments: datetime, tokens: int = 1, **values: Any) -> None:
    """A request of so many tokens of input, billed at each of these moments."""
    terms: dict[str, Any] = {"org_id": org_id, "input_tokens": tokens, "cached_tokens": 0, "output_tokens": 0, **values}
    async with database.begin() as connection:
        await connection.execute(insert(UsageEvent), [event(at, **terms) for at in moments])


async def rows_of(database: Database, table: str, org_id: UUID, order: str = "1") -> Sequence[Any]:
    """Everything that a table has of an organisation."""
    async with database.begin() as connection:
        found = await connection.execute(
            text(f"SELECT * FROM {table} WHERE org_id = :org_id ORDER BY {order}"), {"org_id": org_id}
        )
        return found.all()


async def outbox_of(database: Database, org_id: UUID) -> Sequence[Any]:
    """Its meter events, in the order of their time."""
    return await rows_of(database, "stripe_meter_outbox", org_id, "event_ts, seq")


async def periods_of(database: Database, customer: Customer) -> Sequence[Any]:
    """Its metering periods, oldest first."""
    async with database.begin() as connection:
        found = await connection.execute(
            text("SELECT * FROM metering_periods WHERE subscription_id = :id ORDER BY period_start"),
            {"id": customer.subscription_id},
        )
        return found.all()
