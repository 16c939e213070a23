"""What an event leads to: which objects to read again, and what to write down of them.

An event of any type names objects, never what became of them. Each object is read as it is
now and projected; whoever is entitled by it is decided upon anew in the same transaction.
Nothing here depends on the order of events, or on how often one comes.
"""

from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from types import MappingProxyType
from typing import Any, Literal
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from app.billing import checkout, entitlement, invoices, outbox, payments, subscriptions, sync
from app.billing.gateway import Gateway, Object
from app.db import Database
from app.errors import StripeRefused
from app.telemetry import get_logger

log = get_logger(__name__)

Kind = Literal["subscription", "invoice", "payment", "customer", "catalog", "meter"]

_MISSING = 404
_READ_AT = text(
    "SELECT 'subscription' AS kind, stripe_subscription_id AS id, synced_at FROM subscriptions"
    " WHERE stripe_subscription_id = ANY(:ids)"
    " UNION ALL SELECT 'invoice', id, synced_at FROM invoices WHERE id = ANY(:ids)"
    " UNION ALL SELECT 'payment', payment_intent_id, synced_at FROM payments WHERE payment_intent_id = ANY(:ids)"
)
_FORGET_CUSTOMER = text("UPDATE orgs SET stripe_customer_id = NULL WHERE stripe_customer_id = :id")


@dataclass(frozen=True, slots=True, order=True)
class Ref:
    """Something that is to be brought up to date.

    Attributes:
        id: Stripe's; of a payment that of its intent, of a meter's complaint that of the
            event. The catalogue has none.
    """

    kind: Kind
    id: str


@dataclass(frozen=True, slots=True)
class Work:
    """What is needed to bring something up to date.

    Attributes:
        synced_at: By the database's clock, after all that is to be learnt had happened
            and before anything is read.
        now: Decides what organisations are entitled to.
        grace: How long they are served on after a payment has failed.
    """

    database: Database
    gateway: Gateway
    synced_at: datetime
    now: datetime
    grace: timedelta


def _named(kind: Kind, field: str) -> Callable[[Object], list[Ref]]:
    """Of an object that has the id in a field of its own."""

    def refs(object: Object) -> list[Ref]:
        id = _id(object.get(field))
        return [] if id is None else [Ref(kind, id)]

    return refs


def _of_invoice(invoice: Object) -> list[Ref]:
    details = (invoice.get("parent") or {}).get("subscription_details") or {}
    return _named("invoice", "id")(invoice) + _named("subscription", "subscription")(details)


def _of_schedule(schedule: Object) -> list[Ref]:
    # A schedule that lets go of its subscription remembers it elsewhere.
    released = _named("subscription", "released_subscription")
    return _named("subscription", "subscription")(schedule) or released(schedule)


def _of_checkout(session: Object) -> list[Ref]:
    return _named("subscription", "subscription")(session) + _named("payment", "payment_intent")(session)


def _of_catalog(_: Object) -> list[Ref]:
    return [Ref("catalog", "")]


SUBJECTS: Mapping[str, Callable[[Object], list[Ref]]] = MappingProxyType(
    dict.fromkeys(
        (
            "customer.subscription.created",
            "customer.subscription.deleted",
            "customer.subscription.paused",
            "customer.subscription.pending_update_applied",
            "customer.subscription.pending_update_expired",
            "customer.subscription.resumed",
            "customer.subscription.trial_will_end",
            "customer.subscription.updated",
        ),
        _named("subscription", "id"),
    )
    | dict.fromkeys(
        (
            "subscription_schedule.aborted",
            "subscription_schedule.canceled",
            "subscription_schedule.completed",
            "subscription_schedule.created",
            "subscription_schedule.released",
            "subscription_schedule.updated",
        ),
        _of_schedule,
    )
    | dict.fromkeys(
        (
            "invoice.created",
            "invoice.deleted",
            "invoice.finalization_failed",
            "invoice.finalized",
            "invoice.marked_uncollectible",
            "invoice.overdue",
            "invoice.paid",
            "invoice.payment_action_required",
            "invoice.payment_failed",
            "invoice.updated",
            "invoice.voided",
        ),
        _of_invoice,
    )
    | dict.fromkeys(
        (
            "charge.dispute.closed",
            "charge.dispute.created",
            "charge.dispute.funds_reinstated",
            "charge.dispute.funds_withdrawn",
            "charge.dispute.updated",
            "charge.refunded",
            "charge.succeeded",
            "refund.created",
            "refund.failed",
            "refund.updated",
        ),
        _named("payment", "payment_intent"),
    )
    | dict.fromkeys(
        (
            "checkout.session.async_payment_failed",
            "checkout.session.async_payment_succeeded",
            "checkout.session.completed",
        ),
        _of_checkout,
    )
    | dict.fromkeys(
        (
            "billing.meter.deactivated",
            "billing.meter.reactivated",
            "billing.meter.updated",
            "price.deleted",
            "price.updated",
        ),
        _of_catalog,
    )
    | {"customer.deleted": _named("customer", "id")}
)
"""The events to send to us, and what each is about; of others nothing follows."""

THIN_TYPES = ("v1.billing.meter.error_report_triggered", "v1.billing.meter.no_meter_found")
"""Likewise, of the thin ones."""


def refs_of(event: Mapping[str, Any]) -> tuple[Ref, ...]:
    """What is to be brought up to date because of an event; nothing for one that does not concern us."""
    if event["type"] in THIN_TYPES:
        return (Ref("meter", event["id"]),)
    subject = SUBJECTS.get(event["type"])
    return () if subject is None else tuple(subject(event["data"]["object"]))


async def last_readings(connection: AsyncConnection, refs: Iterable[Ref]) -> dict[Ref, datetime]:
    """When what is written of each of these began to be read, by the database's clock; none where nothing is."""
    rows = (await connection.execute(_READ_AT, {"ids": [ref.id for ref in refs]})).all()
    return {Ref(row.kind, row.id): row.synced_at for row in rows}


async def bring_up_to_date(work: Work, ref: Ref) -> None:
    """Reads from Stripe what an event was about and writes it down; may run twice, and beside itself.

    Raises:
        StripeUnavailable: It cannot be read now.
        StripeRefused: Stripe does not show it.
        Conflict: It is not of the catalogue.
    """
    await _EFFECTS[ref.kind](work, ref.id)


async def refresh(database: Database, gateway: Gateway, subscription_id: str, now: datetime, grace: timedelta) -> None:
    """Reads a subscription from Stripe and writes it down, for whoever has just changed it.

    Raises:
        StripeUnavailable: It cannot be read now; its webhook will say the same later.
        StripeRefused: There is none.
    """
    work = Work(database, gateway, await subscriptions.clock(database), now, grace)
    await _subscription(work, subscription_id)


async def _subscription(work: Work, id: str) -> None:
    snapshot, open_since = await subscriptions.read(work.gateway, id)
    refusal = None
    try:
        if await checkout.complete_items(work.database, work.gateway, snapshot, work.now):
            snapshot, open_since = await subscriptions.read(work.gateway, id)
    except StripeRefused as error:
        # Somebody has to look, but what was bought counts meanwhile.
        refusal = error
    async with work.database.begin() as connection:
        org_id = await subscriptions.project(connection, snapshot, work.synced_at, open_since=open_since)
        await _entitle(connection, work, org_id, "subscription", id)
    if refusal is not None:
        raise refusal


async def _invoice(work: Work, id: str) -> None:
    try:
        snapshot = await work.gateway.retrieve_invoice(id)
    except StripeRefused as error:
        if error.stripe_status != _MISSING:
            raise
        # Only a draft can be deleted.
        async with work.database.begin() as connection:
            await invoices.forget(connection, id)
        return
    async with work.database.begin() as connection:
        org_id = await invoices.project(connection, snapshot, work.synced_at)
        _note_foreign(org_id, "invoice", id)


async def _payment(work: Work, id: str) -> None:
    payment = await payments.read(work.gateway, id)
    if payment is None:
        return
    async with work.database.begin() as connection:
        org_id = await payments.project(connection, payment, work.synced_at)
        await _entitle(connection, work, org_id, "payment", id)


async def _customer(work: Work, id: str) -> None:
    customer = await work.gateway.retrieve_customer(id)
    if customer.get("deleted"):
        # Its subscriptions end with it, which their own events tell.
        async with work.database.begin() as connection:
            await connection.execute(_FORGET_CUSTOMER, {"id": id})


async def _catalog(work: Work, _: str) -> None:
    drift = await sync.check(work.database, work.gateway, work.now)
    if drift:
        log.warning("catalog.drift", drift=drift)


async def _meter(work: Work, event_id: str) -> None:
    await outbox.on_error_report(work.database, work.gateway, event_id, work.now)


_EFFECTS: Mapping[Kind, Callable[[Work, str], Awaitable[None]]] = MappingProxyType(
    {
        "subscription": _subscription,
        "invoice": _invoice,
        "payment": _payment,
        "customer": _customer,
        "catalog": _catalog,
        "meter": _meter,
    }
)


async def _entitle(connection: AsyncConnection, work: Work, org_id: UUID | None, kind: str, id: str) -> None:
    _note_foreign(org_id, kind, id)
    if org_id is not None:
        await entitlement.apply(connection, org_id, work.now, work.grace)


def _note_foreign(org_id: UUID | None, kind: str, id: str) -> None:
    if org_id is None:
        # The account sells other things as well.
        log.info("stripe.not_ours", kind=kind, ref=id)


def _id(value: Any) -> str | None:  # noqa: ANN401 - an id, or the object itself
    id = value["id"] if isinstance(value, Mapping) else value
    if id is None or isinstance(id, str):
        return id
    raise TypeError("an id is a text")
