"""Payments, refunds, disputes, and the prepaid credit that they give and take."""

import itertools
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import text

from app.billing.payments import PICO_USD_PER_CENT, Charged, project
from app.db import Database
from tests.billing.stripe_objects import CUSTOMER, START, Object, charge, make_customer, unix

LATER = START + timedelta(minutes=1)
CENTS = 2500
CREDIT = CENTS * PICO_USD_PER_CENT


def bought(**terms: Any) -> Charged:
    """Credit, paid for without tax."""
    fields: dict[str, Any] = {
        "charge": charge(),
        "invoice_id": None,
        "credit_cents": CENTS,
        "refunds": (),
        "disputes": (),
    }
    return Charged(**fields | terms)


def refund(id: str, amount: int, status: str = "succeeded", created: datetime = START) -> Object:
    return {"id": id, "amount": amount, "status": status, "created": unix(created)}


def dispute(status: str, id: str = "du_1", amount: int = CENTS) -> Object:
    return {"id": id, "amount": amount, "status": status}


async def write(database: Database, payment: Charged, at: Any = START) -> UUID | None:
    async with database.begin() as connection:
        return await project(connection, payment, at)


async def rows(database: Database, statement: str) -> list[Any]:
    async with database.begin() as connection:
        return [tuple(row) for row in (await connection.execute(text(statement))).all()]


async def movements(database: Database) -> list[tuple[str, int, str]]:
    return await rows(database, "SELECT kind, amount, ref_id FROM credit_ledger ORDER BY kind, ref_id")


async def test_a_paid_invoice_is_a_payment_and_moves_no_credit(database: Database) -> None:
    org_id = await make_customer(database)
    paid = bought(invoice_id="in_1", credit_cents=0, charge=charge(amount_refunded=100))
    assert await write(database, paid) == org_id
    columns = "id, org_id, purpose, invoice_id, payment_intent_id, amount, amount_refunded, dispute_status, created"
    assert await rows(database, f"SELECT {columns} FROM payments") == [
        ("ch_1", org_id, "invoice", "in_1", "pi_ch_1", 2500, 100, None, START)
    ]
    assert await movements(database) == []


async def test_credit_is_bought_once_however_often_it_is_told(database: Database) -> None:
    await make_customer(database)
    for _ in range(3):
        await write(database, bought())
    assert await movements(database) == [("purchase", CREDIT, "ch_1")]
    assert await rows(database, "SELECT expires_at, ref_type FROM credit_ledger") == [
        (START + timedelta(days=365), "stripe_charge")
    ]
    assert await rows(database, "SELECT purpose FROM payments") == [("credit",)]


async def test_tax_is_no_credit_and_is_given_back_in_proportion(database: Database) -> None:
    await make_customer(database)
    with_tax = charge(amount=2975, amount_refunded=2975)
    await write(database, bought(charge=with_tax, refunds=[refund("re_1", 2975)]))
    assert sum(amount for _, amount, _ in await movements(database)) == 0
    other = charge("ch_2", amount=2975, amount_refunded=1000)
    await write(database, bought(charge=other, refunds=[refund("re_2", 1000)]))
    # 10 of 29.75 dollars: what is not whole stays the customer's, less than 10^-12 dollars.
    assert ("refund", -(CREDIT * 1000 // 2975), "re_2") in await movements(database)


async def test_what_is_given_back_in_parts_is_all_of_the_credit(database: Database) -> None:
    await make_customer(database)
    # With tax no part of it is whole; Stripe lists the newest first.
    refunds: list[Object] = []
    for number, amount in enumerate((1000, 999, 975, 1)):
        at = START + timedelta(minutes=number)
        refunds.insert(0, refund(f"re_{number}", amount, created=at))
        given_back = sum(one["amount"] for one in refunds)
        await write(database, bought(charge=charge(amount=2975, amount_refunded=given_back), refunds=refunds), at)
    assert sum(amount for _, amount, _ in await movements(database)) == 0


async def test_a_part_that_the_bank_returns_is_the_part_that_was_taken(database: Database) -> None:
    await make_customer(database)
    first, second = refund("re_1", 1000), refund("re_2", 1975, created=LATER)
    with_tax = charge(amount=2975)
    await write(database, bought(charge=with_tax, refunds=[second, first]))
    failed = [{**second, "status": "failed"}, {**first, "status": "failed"}]
    await write(database, bought(charge=with_tax, refunds=failed), LATER)
    assert sum(amount for _, amount, _ in await movements(database)) == CREDIT


async def test_a_dispute_over_the_rest_takes_the_rest(database: Database) -> None:
    await make_customer(database)
    disputed = charge(amount=2975, amount_refunded=1000, disputed=True)
    lost = dispute("lost", amount=1975)
    await write(database, bought(charge=disputed, refunds=[refund("re_1", 1000)], disputes=[lost]))
    assert sum(amount for _, amount, _ in await movements(database)) == 0


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
async def test_refunds_in_any_order_take_back_what_was_given_back(database: Database, order: tuple[int, ...]) -> None:
    await make_customer(database)
    life = [
        bought(),
        bought(charge=charge(amount_refunded=500), refunds=[refund("re_1", 500)]),
        bought(charge=charge(amount_refunded=1200), refunds=[refund("re_1", 500), refund("re_2", 700)]),
    ]
    for position in order:
        for _ in range(2):
            await write(database, life[position], START + timedelta(seconds=position))
    assert await rows(database, "SELECT amount_refunded FROM payments") == [(1200,)]
    assert await movements(database) == [
        ("purchase", CREDIT, "ch_1"),
        ("refund", -500 * PICO_USD_PER_CENT, "re_1"),
        ("refund", -700 * PICO_USD_PER_CENT, "re_2"),
    ]


async def test_a_refund_that_fails_gives_the_credit_back_once(database: Database) -> None:
    await make_customer(database)
    await write(database, bought(refunds=[refund("re_1", 500, "pending")]))
    for seconds in (1, 2):
        failed = bought(refunds=[refund("re_1", 500, "failed")])
        await write(database, failed, START + timedelta(seconds=seconds))
    assert await movements(database) == [
        ("adjust", 500 * PICO_USD_PER_CENT, "re_1"),
        ("purchase", CREDIT, "ch_1"),
        ("refund", -500 * PICO_USD_PER_CENT, "re_1"),
    ]


async def test_a_refund_that_failed_before_we_heard_of_it_changes_nothing(database: Database) -> None:
    await make_customer(database)
    await write(database, bought(refunds=[refund("re_1", 500, "failed")]))
    assert await movements(database) == [("purchase", CREDIT, "ch_1")]


async def test_a_dispute_takes_the_credit_when_it_is_lost(database: Database) -> None:
    await make_customer(database)
    for seconds, status in enumerate(("needs_response", "under_review", "lost", "lost")):
        disputed = bought(charge=charge(disputed=True), disputes=[dispute(status)])
        await write(database, disputed, START + timedelta(seconds=seconds))
        assert await rows(database, "SELECT dispute_status FROM payments") == [(status,)]
    assert await movements(database) == [("purchase", CREDIT, "ch_1"), ("refund", -CREDIT, "du_1")]


async def test_a_dispute_that_is_won_takes_nothing(database: Database) -> None:
    await make_customer(database)
    await write(database, bought(disputes=[dispute("won")]))
    assert await movements(database) == [("purchase", CREDIT, "ch_1")]


@pytest.mark.parametrize(
    ("statuses", "expected"),
    [
        (["won", "lost"], "lost"),
        (["lost", "needs_response"], "needs_response"),
        (["warning_closed", "won"], "warning_closed"),
        (["lost", "a word of the future"], "a word of the future"),
    ],
)
async def test_of_several_disputes_the_worst_counts(database: Database, statuses: list[str], expected: str) -> None:
    await make_customer(database)
    for order in (statuses, statuses[::-1]):
        disputes = [dispute(status, f"du_{status}", 1) for status in order]
        await write(database, bought(credit_cents=0, disputes=disputes))
        assert await rows(database, "SELECT dispute_status FROM payments") == [(expected,)]


async def test_an_older_reading_never_replaces_a_newer_one(database: Database) -> None:
    await make_customer(database)
    await write(database, bought(charge=charge(amount_refunded=2500), refunds=[refund("re_1", 2500)]), LATER)
    await write(database, bought())
    assert await rows(database, "SELECT amount_refunded, synced_at FROM payments") == [(2500, LATER)]
    assert await movements(database) == [("purchase", CREDIT, "ch_1"), ("refund", -CREDIT, "re_1")]


async def test_what_was_paid_by_nobody_here_is_left_alone(database: Database) -> None:
    await make_customer(database, "cus_other")
    assert await write(database, bought()) is None
    assert await rows(database, "SELECT id FROM payments") == []


async def test_the_metadata_says_whose_it_is_before_the_customer_is_known(database: Database) -> None:
    org_id = await make_customer(database, None)
    paid = bought(charge=charge(metadata={"org_id": str(org_id), "purpose": "credit"}, created=START))
    assert await write(database, paid) == org_id
    assert await rows(database, "SELECT stripe_customer_id FROM orgs") == [(CUSTOMER,)]
    assert unix(START) == paid.charge["created"]
