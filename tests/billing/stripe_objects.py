"""Objects as Stripe shows them, as far as we read them; the smallest that say what a test is about."""

from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from sqlalchemy import insert, update

from app.billing import catalog
from app.billing.catalog import Interval
from app.db import Database
from app.tables import CatalogPrice, Org, OrgBudget
from tests.factories import make_org

START = datetime(2027, 1, 31, 12, tzinfo=UTC)
MID = datetime(2027, 2, 14, 12, tzinfo=UTC)
END = datetime(2027, 2, 28, 12, tzinfo=UTC)
NEXT = datetime(2027, 3, 31, 12, tzinfo=UTC)
CUSTOMER = "cus_acme"

Object = dict[str, Any]


def unix(at: datetime) -> int:
    """As Stripe counts time."""
    return int(at.timestamp())


async def make_customer(database: Database, customer: str | None = CUSTOMER, plan: str = "free") -> UUID:
    """An organisation that Stripe knows, and the catalogue's prices under the ids ``price_<lookup key>``."""
    org_id = await make_org(database)
    async with database.begin() as connection:
        await connection.execute(update(Org).where(Org.id == org_id).values(stripe_customer_id=customer))
        await connection.execute(update(OrgBudget).where(OrgBudget.org_id == org_id).values(plan=plan))
    await add_catalog(database)
    return org_id


async def add_catalog(database: Database) -> None:
    """The catalogue's prices, as a push leaves them."""
    rows = [
        {
            "lookup_key": price.lookup_key,
            "stripe_price_id": f"price_{price.lookup_key}",
            "stripe_product_id": price.product,
            "fingerprint": b"",
            "synced_at": START,
        }
        for price in catalog.prices("mtr_1")
    ]
    async with database.begin() as connection:
        await connection.exec_driver_sql("TRUNCATE catalog_prices")
        await connection.execute(insert(CatalogPrice), rows)


def price_id(plan: str, part: catalog.Part, interval: Interval) -> str:
    """Of the prices that ``add_catalog`` makes."""
    return f"price_{catalog.lookup_key(catalog.plan(plan), part, interval)}"


def subscription(
    id: str = "sub_1",
    *,
    plan: str = "starter",
    interval: Interval = "month",
    start: datetime = START,
    end: datetime = END,
    metered: tuple[datetime, datetime] | None = None,
    **fields: Any,
) -> Object:
    """A subscription with its two items; ``metered``: the period of the second, where it is not that of the first."""
    usage_start, usage_end = metered or (start, end)
    return {
        "id": id,
        "object": "subscription",
        "customer": CUSTOMER,
        "status": "active",
        "metadata": {},
        "start_date": unix(start),
        "trial_start": None,
        "trial_end": None,
        "cancel_at_period_end": False,
        "cancel_at": None,
        "ended_at": None,
        "schedule": None,
        "items": {
            "data": [
                _item(f"si_flat_{id}", catalog.lookup_key(catalog.plan(plan), "flat", interval), start, end),
                _item(
                    f"si_usage_{id}", catalog.lookup_key(catalog.plan(plan), "usage", "month"), usage_start, usage_end
                ),
            ]
        },
        **fields,
    }


def _item(id: str, lookup_key: str, start: datetime, end: datetime) -> Object:
    return {
        "id": id,
        "price": {"id": f"price_{lookup_key}", "lookup_key": lookup_key},
        "current_period_start": unix(start),
        "current_period_end": unix(end),
    }


def line(
    price: str, quantity: int | None = 1, *, start: datetime = START, end: datetime = END, amount: int = 0
) -> Object:
    """A line of an invoice."""
    return {
        "id": f"il_{price}_{unix(start)}",
        "description": "Something",
        "amount": amount,
        "quantity": quantity,
        "period": {"start": unix(start), "end": unix(end)},
        "pricing": {"price_details": {"price": price, "product": "prod_1"}, "unit_amount_decimal": "0.0000001"},
    }


def invoice(id: str = "in_1", lines: list[Object] | None = None, *, created: datetime = END, **fields: Any) -> Object:
    """An invoice of ``sub_1`` that is paid."""
    return {
        "id": id,
        "customer": CUSTOMER,
        "number": "ACME-0001",
        "status": "paid",
        "subtotal": 1900,
        "total": 1900,
        "amount_due": 1900,
        "amount_paid": 1900,
        "period_start": unix(START),
        "period_end": unix(END),
        "created": unix(created),
        "status_transitions": {"finalized_at": unix(created)},
        "hosted_invoice_url": "https://invoice.example/1",
        "invoice_pdf": "https://invoice.example/1.pdf",
        "parent": {"subscription_details": {"subscription": "sub_1", "metadata": {}}},
        "lines": {"data": lines or [], "has_more": False},
        **fields,
    }


def charge(id: str = "ch_1", *, created: datetime = START, **fields: Any) -> Object:
    """A charge that succeeded."""
    return {
        "id": id,
        "customer": CUSTOMER,
        "payment_intent": f"pi_{id}",
        "amount": 2500,
        "amount_refunded": 0,
        "status": "succeeded",
        "disputed": False,
        "metadata": {},
        "created": unix(created),
        **fields,
    }
