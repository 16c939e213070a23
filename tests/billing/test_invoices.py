"""Invoices as Stripe last told them, and whether they say what our ledger says."""

from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import insert, select, text

from app.billing import invoices, subscriptions
from app.db import Database
from app.tables import MeterOutbox, Subscription, new_id
from app.telemetry import BILLING_DRIFT
from tests.billing.stripe_objects import (
    END,
    MID,
    NEXT,
    START,
    Object,
    invoice,
    line,
    make_customer,
    price_id,
    subscription,
)
from tests.billing.test_gateway import facing, listing

LATER = END + timedelta(minutes=1)
USAGE = price_id("starter", "usage", "month")
NEW_USAGE = price_id("growth", "usage", "month")
FLAT = price_id("starter", "flat", "month")


async def write(database: Database, snapshot: Object, at: datetime = END) -> UUID | None:
    async with database.begin() as connection:
        return await invoices.project(connection, snapshot, at)


async def row(database: Database, id: str = "in_1") -> Any:
    async with database.begin() as connection:
        return (await connection.execute(text("SELECT * FROM invoices WHERE id = :id"), {"id": id})).one_or_none()


async def subscribe(database: Database) -> None:
    async with database.begin() as connection:
        await subscriptions.project(connection, subscription(), START)


async def report(database: Database, at: datetime, value: int, state: str = "acked") -> None:
    """A meter event that stands for usage rows."""
    async with database.begin() as connection:
        found = (await connection.execute(select(Subscription.id, Subscription.org_id))).one()
        values = {
            "org_id": found.org_id,
            "subscription_id": found.id,
            "stripe_customer_id": "cus_acme",
            "meter": "tollgate_usage",
            "window_start": at,
            "window_end": at + timedelta(minutes=15),
            "value": value,
            "event_ts": at,
            "identifier": new_id(),
            "state": state,
        }
        await connection.execute(insert(MeterOutbox).values(values))


async def test_an_invoice_is_written_as_stripe_has_it(database: Database) -> None:
    org_id = await make_customer(database)
    lines = [line(FLAT, amount=1900), line(USAGE, 70, amount=3), line(USAGE, 5), line("price_other", None)]
    assert await write(database, invoice(lines=lines, amount_paid=0, status="open")) == org_id
    found = await row(database)
    assert (found.org_id, found.stripe_subscription_id, found.number, found.status) == (
        org_id,
        "sub_1",
        "ACME-0001",
        "open",
    )
    assert (found.subtotal, found.total, found.amount_due, found.amount_paid) == (1900, 1900, 1900, 0)
    assert (found.period_start, found.period_end, found.created, found.finalized_at) == (START, END, END, END)
    assert (found.hosted_invoice_url, found.invoice_pdf) == (
        "https://invoice.example/1",
        "https://invoice.example/1.pdf",
    )
    assert (found.metered_value, found.ledger_value, found.audited_at) == (75, None, None)
    assert [one["is_metered"] for one in found.lines] == [False, True, True, False]
    assert found.lines[1] == {
        "id": f"il_{USAGE}_{int(START.timestamp())}",
        "description": "Something",
        "amount": 3,
        "quantity": 70,
        "price": USAGE,
        "unit_amount": "0.0000001",
        "period": {"start": int(START.timestamp()), "end": int(END.timestamp())},
        "is_metered": True,
    }


async def test_an_invoice_is_read_with_all_of_its_lines() -> None:
    """Stripe shows the first few with the invoice and the rest page by page."""
    first = {"id": "in_1", "object": "invoice", "lines": listing({"id": "a"}, {"id": "b"}, has_more=True)[1]}
    pages = [listing({"id": "c"}, has_more=True), listing({"id": "d"})]
    async with facing((200, first), *pages) as (gateway, counterpart):
        read = await gateway.retrieve_invoice("in_1")
    assert [one["id"] for one in read["lines"]["data"]] == ["a", "b", "c", "d"]
    assert [request for request, _, _ in counterpart.asked] == [
        "GET /v1/invoices/in_1",
        "GET /v1/invoices/in_1/lines?limit=100&starting_after=b",
        "GET /v1/invoices/in_1/lines?limit=100&starting_after=c",
    ]


async def test_an_invoice_without_a_subscription_or_prices_is_written_too(database: Database) -> None:
    await make_customer(database)
    bare = line(FLAT) | {"pricing": None}
    expanded = line(FLAT) | {"pricing": {"price_details": {"price": {"id": FLAT}}}}
    await write(database, invoice(parent=None, lines=[bare, expanded]))
    found = await row(database)
    assert (found.stripe_subscription_id, found.metered_value) == (None, None)
    assert [one["price"] for one in found.lines] == [None, FLAT]


async def test_an_older_reading_never_replaces_a_newer_one(database: Database) -> None:
    await make_customer(database)
    await write(database, invoice(), LATER)
    await write(database, invoice(status="open"), END)
    assert (await row(database)).status == "paid"
    await write(database, invoice(status="void"), LATER)
    assert (await row(database)).status == "void"


async def test_what_belongs_to_nobody_here_is_left_alone(database: Database) -> None:
    await make_customer(database, "cus_other")
    assert await write(database, invoice()) is None
    assert await row(database) is None


async def test_a_draft_that_was_deleted_is_forgotten_and_a_final_one_never(database: Database) -> None:
    await make_customer(database)
    await write(database, invoice("in_1", status="draft"))
    await write(database, invoice("in_2"))
    async with database.begin() as connection:
        for id in ("in_1", "in_2"):
            await invoices.forget(connection, id)
    assert await row(database, "in_1") is None
    assert await row(database, "in_2") is not None


async def test_an_invoice_that_counts_what_was_claimed_has_no_drift(database: Database) -> None:
    await make_customer(database)
    await subscribe(database)
    await report(database, START, 70)
    await report(database, END - timedelta(seconds=1), 5)
    await report(database, END, 11)  # of the next period
    await write(database, invoice(lines=[line(FLAT, start=END, end=NEXT), line(USAGE, 70), line(USAGE, 5)]))
    assert await invoices.audit_recent(database, LATER) == 0
    found = await row(database)
    assert (found.metered_value, found.ledger_value, found.audited_at) == (75, 75, LATER)
    assert BILLING_DRIFT._value.get() == 0


@pytest.mark.parametrize(("counted", "drift"), [(75_000, 5_000), (69_000, 1_000)])
async def test_drift_is_measured_whichever_way_it_goes(database: Database, counted: int, drift: int) -> None:
    await make_customer(database)
    await subscribe(database)
    await report(database, START, 70_000)
    await write(database, invoice(lines=[line(USAGE, counted)]))
    assert await invoices.audit_recent(database, LATER) == drift
    assert BILLING_DRIFT._value.get() == drift / 1_000
    assert (await row(database)).ledger_value == 70_000


@pytest.mark.parametrize("rest_from", [START, MID])
async def test_a_change_of_plan_bills_a_part_early_and_the_rest_at_the_end(
    database: Database, rest_from: datetime
) -> None:
    """The last invoice may name the whole period or the rest of it; it counts the rest."""
    await make_customer(database)
    await subscribe(database)
    await report(database, START, 40)
    await report(database, MID, 35)
    await write(database, invoice("in_1", [line(USAGE, 40, end=MID)], created=MID))
    await write(database, invoice("in_2", [line(NEW_USAGE, 35, start=rest_from)]))
    await write(database, invoice("in_3", [line(USAGE, 40, end=MID)], created=MID, status="void"))
    assert await invoices.audit_recent(database, LATER) == 0
    assert [(await row(database, id)).ledger_value for id in ("in_1", "in_2", "in_3")] == [40, 35, None]


async def test_two_invoices_of_one_second_are_compared_in_an_order(database: Database) -> None:
    await make_customer(database)
    await subscribe(database)
    await report(database, START, 40)
    for id in ("in_1", "in_2"):
        await write(database, invoice(id, [line(USAGE, 40)]))
    assert await invoices.audit_recent(database, LATER) == 40
    assert [(await row(database, id)).ledger_value for id in ("in_1", "in_2")] == [40, 0]


async def test_drafts_and_what_is_long_past_are_not_compared(database: Database) -> None:
    await make_customer(database)
    await subscribe(database)
    await write(database, invoice("in_1", [line(USAGE, 1)], status="draft"))
    await write(database, invoice("in_2", [line(USAGE, 1)], created=END - invoices.AUDITED_FOR))
    await write(database, invoice("in_3", [line(FLAT)]))
    assert await invoices.audit_recent(database, END) == 0
    assert [(await row(database, f"in_{n}")).audited_at for n in (1, 2, 3)] == [None] * 3


async def test_an_invoice_of_a_subscription_that_we_never_saw_is_all_drift(database: Database) -> None:
    await make_customer(database)
    await write(database, invoice(lines=[line(USAGE, 9)]))
    assert await invoices.audit_recent(database, LATER) == 9
