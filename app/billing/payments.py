"""Payments: what was charged, given back and disputed, and the prepaid credit that was bought with it.

A payment is read whole (its charge, refunds, disputes, what it was for) and written down
as it is, so that the order in which these happened to be told does not matter. Credit that
was paid for is a movement of the ledger with the payment as its cause, and so is each
refund of it: once each, however often they are seen.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from app.billing import catalog, credits
from app.billing.gateway import Gateway, Object
from app.billing.subscriptions import lock_owner, moment
from app.tables import Payment

PICO_USD_PER_CENT = 10**10
CREDIT = "credit"
# The worst of several counts.
_GRAVITY = ("won", "prevented", "warning_closed", "warning_under_review", "warning_needs_response", "lost")
_GIVEN_BACK = ("succeeded", "pending", "requires_action")
_REFUNDED = text(
    "SELECT ref_id, amount FROM credit_ledger"
    " WHERE kind = 'refund' AND ref_type = 'stripe_refund' AND ref_id = ANY(:ids)"
)


@dataclass(frozen=True, slots=True)
class Charged:
    """A payment as Stripe has it.

    Attributes:
        charge: That succeeded.
        invoice_id: That it was for, if any.
        credit_cents: Prepaid credit that it bought, without tax; 0: none.
        refunds: Of credit only.
    """

    charge: Object
    invoice_id: str | None
    credit_cents: int
    refunds: Sequence[Object]
    disputes: Sequence[Object]


async def read(gateway: Gateway, payment_intent: str) -> Charged | None:
    """A payment with all that belongs to it; None: nothing has been paid.

    Raises:
        StripeUnavailable: As every call; likewise ``StripeRefused``.
    """
    attempts = await gateway.list_charges(payment_intent)
    charge = next((attempt for attempt in attempts if attempt["status"] == "succeeded"), None)
    if charge is None:
        return None
    disputes = await gateway.list_disputes(payment_intent) if charge["disputed"] else []
    if charge["metadata"].get("purpose") != CREDIT:
        found = await gateway.list_invoice_payments(payment_intent)
        return Charged(charge, found[0]["invoice"] if found else None, 0, (), disputes)
    sessions = await gateway.list_checkouts_of(payment_intent)
    cents = sum(int(session["amount_subtotal"] or 0) for session in sessions) or int(charge["amount"])
    return Charged(charge, None, cents, await gateway.list_refunds(payment_intent), disputes)


async def project(connection: AsyncConnection, payment: Charged, synced_at: datetime) -> UUID | None:
    """Writes a payment down, and moves the credit that it bought or that was taken back.

    Locks the organisation's row until the transaction ends.

    Args:
        connection: An open transaction.
        payment: As ``read`` has it.
        synced_at: By the database's clock, before it was read.

    Returns:
        The organisation; None: it is nobody's here.
    """
    charge = payment.charge
    org_id = await lock_owner(connection, charge["customer"], charge["metadata"])
    if org_id is None:
        return None
    values = {
        "org_id": org_id,
        "purpose": CREDIT if payment.credit_cents else "invoice",
        "invoice_id": payment.invoice_id,
        "payment_intent_id": charge["payment_intent"],
        "amount": charge["amount"],
        "amount_refunded": charge["amount_refunded"],
        "dispute_status": _gravest([dispute["status"] for dispute in payment.disputes]),
        "created": moment(charge["created"]),
        "synced_at": synced_at,
    }
    statement = insert(Payment).values(id=charge["id"], **values)
    upsert = statement.on_conflict_do_update(
        index_elements=[Payment.id],
        set_={name: statement.excluded[name] for name in values},
        where=Payment.synced_at <= statement.excluded.synced_at,
    )
    if (await connection.execute(upsert)).rowcount and payment.credit_cents:
        await _move_credit(connection, org_id, payment)
    return org_id


async def _move_credit(connection: AsyncConnection, org_id: UUID, payment: Charged) -> None:
    charge, credit = payment.charge, payment.credit_cents * PICO_USD_PER_CENT
    bought_at = moment(charge["created"])
    assert bought_at is not None
    expires_at = bought_at + timedelta(days=catalog.CREDIT_VALID_DAYS)
    await credits.add(connection, org_id, "purchase", credit, "stripe_charge", charge["id"], expires_at=expires_at)
    ids = [refund["id"] for refund in payment.refunds]
    taken = {row.ref_id: row.amount for row in await connection.execute(_REFUNDED, {"ids": ids})}
    given_back = 0
    for refund in sorted(payment.refunds, key=lambda one: (one["created"], one["id"])):
        if refund["status"] in _GIVEN_BACK:
            part = _part(payment, given_back, int(refund["amount"]))
            await credits.add(connection, org_id, "refund", -part, "stripe_refund", refund["id"])
            given_back += int(refund["amount"])
        elif refund["id"] in taken:
            # The bank did not take it: it is the customer's again, as credit.
            amount, note = -taken[refund["id"]], "refund failed"
            await credits.add(connection, org_id, "adjust", amount, "stripe_refund", refund["id"], note=note)
    for dispute in payment.disputes:
        if dispute["status"] == "lost":
            part = _part(payment, given_back, int(dispute["amount"]))
            await credits.add(connection, org_id, "refund", -part, "stripe_dispute", dispute["id"])
            given_back += int(dispute["amount"])


def _part(payment: Charged, before: int, cents: int) -> int:
    """What of the credit goes with so many cents that are given back, tax in proportion, in 10^-12 USD.

    Parts are differences of shares that are rounded down, so those of the whole payment are the whole credit.

    Args:
        payment: Of credit.
        before: Cents that were given back earlier.
        cents: Those that are.
    """
    credit, charged = payment.credit_cents * PICO_USD_PER_CENT, int(payment.charge["amount"])
    return credit * (before + cents) // charged - credit * before // charged


def _gravest(statuses: Sequence[str]) -> str | None:
    """The one that weighs most; one that we do not know, or that is open, most of all."""
    return max(
        statuses, key=lambda status: _GRAVITY.index(status) if status in _GRAVITY else len(_GRAVITY), default=None
    )
