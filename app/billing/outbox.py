"""Meter events on their way to Stripe: sent until it says that it has them, counted once.

Each row of the outbox is one meter event under an identifier of its own. Whatever happens to
a call, the same identifier is sent again, which Stripe refuses as a duplicate if it had it:
that counts as taken. Its memory of identifiers is short, though, so what was sent and not
confirmed for 23 hours is not sent again but doubted: ``app.billing.reconcile`` looks at
what Stripe has counted. The same for what Stripe reports later as not counted after all.

A period's invoice takes events for an hour after its end. What has not been sent by then
goes out under a new identifier, with the present as its time.

Rows are taken under a lease and sent without a transaction; two senders at once do no harm.
"""

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, Literal
from uuid import UUID

from sqlalchemy import Row, TextClause, text
from sqlalchemy.ext.asyncio import AsyncConnection

from app.billing import reissues
from app.billing.catalog import METER
from app.billing.claims import DRAFT
from app.billing.gateway import Gateway
from app.db import Database
from app.errors import StripeRefused, StripeUnavailable
from app.telemetry import METER_EVENTS, get_logger

log = get_logger(__name__)

Outcome = Literal["acked", "duplicate", "unavailable", "rejected"]

MAX_AT_ONCE = 16
"""Customers whose events are sent together; one event of each."""
MAX_TURN_S = 60.0
"""After which a turn ends: its present shall not be older than a lease."""
UNIQUE_FOR = timedelta(hours=23)
"""For which Stripe is trusted to know an identifier: an hour less than it promises."""
LEASE = timedelta(minutes=2)
"""Longer than any call takes."""
LAG = timedelta(hours=1)
"""After which Stripe's sums are trusted to hold what it has counted."""

_BACKOFF = timedelta(seconds=5)
_MAX_BACKOFF = timedelta(minutes=5)
_UNPLACED = timedelta(minutes=15)
_DUPLICATE = "already exists with identifier"

_LOCK = text("SELECT pg_advisory_xact_lock(hashtext('meter_outbox'))")
# The oldest of each customer, one at a time. Whatever of a customer's is under way, or has just failed, holds the rest
# back, unless somebody waits for it.
_DUE = (
    "SELECT d.*, EXISTS (SELECT 1 FROM metering_periods p JOIN subscriptions s ON s.id = p.subscription_id"
    " WHERE p.subscription_id = d.subscription_id AND p.period_start <= d.event_ts AND p.period_end > d.event_ts"
    " AND (p.period_end + CAST(:draft AS interval) <= :now OR EXISTS (SELECT 1 FROM invoices i"
    " WHERE i.stripe_subscription_id = s.stripe_subscription_id AND i.finalized_at IS NOT NULL"
    " AND i.created >= p.period_end))) AS is_invoiced FROM ("
    " SELECT DISTINCT ON (o.stripe_customer_id, o.meter) o.id, o.org_id, o.subscription_id, o.stripe_customer_id,"
    " o.meter, o.value, o.event_ts, o.identifier, o.attempts, o.first_sent_at FROM stripe_meter_outbox o"
    " WHERE o.state IN ('pending', 'sending') AND o.id <> ALL(CAST(:passed AS uuid[])) AND NOT EXISTS"
    " (SELECT 1 FROM stripe_meter_outbox b WHERE b.stripe_customer_id = o.stripe_customer_id AND b.meter = o.meter"
    " AND b.due_at > :now AND {holding}){which}"
    " ORDER BY o.stripe_customer_id, o.meter, o.event_ts, o.id LIMIT :limit) AS d"
)
_DUE_OF_ALL = text(_DUE.format(holding="b.state IN ('pending', 'sending')", which=""))
_DUE_OF_ORG = text(_DUE.format(holding="b.state = 'sending'", which=" AND o.org_id = :org_id"))
_UNSENT = text(
    "SELECT EXISTS (SELECT 1 FROM stripe_meter_outbox WHERE org_id = :org_id AND state IN ('pending', 'sending'))"
)
_LEASE = text(
    "UPDATE stripe_meter_outbox SET state = 'sending', due_at = :until, attempts = attempts + 1,"
    " first_sent_at = COALESCE(first_sent_at, :now) WHERE id = ANY(:ids) AND state IN ('pending', 'sending')"
    " RETURNING id"
)
_DOUBT = "UPDATE stripe_meter_outbox SET state = 'reconcile', due_at = :due_at, last_error = :problem"
_DOUBT_ONE = text(f"{_DOUBT} WHERE id = :id")
_DOUBT_NAMED = text(
    f"{_DOUBT} WHERE identifier = ANY(CAST(:identifiers AS uuid[])) AND state IN ('pending', 'sending', 'acked')"
)
_DOUBT_ACKED = text(f"{_DOUBT} WHERE acked_at >= :start AND acked_at <= :end AND state = 'acked'")
_ACK = text(
    "UPDATE stripe_meter_outbox SET state = 'acked', acked_at = :now, last_error = NULL"
    " WHERE id = :id AND state = 'sending'"
)
_FAIL = text(
    "UPDATE stripe_meter_outbox SET state = :state, due_at = :due_at, last_error = :problem"
    " WHERE id = :id AND state = 'sending'"
)
_RETRY = text("UPDATE stripe_meter_outbox SET state = 'pending', due_at = 'epoch' WHERE state = 'rejected'")
_WAIT = text("UPDATE stripe_meter_outbox SET due_at = :due_at, last_error = :problem WHERE id = :id")


async def drain(database: Database, gateway: Gateway, *, now: datetime, org_id: UUID | None = None) -> None:
    """Sends what is due, one at a time per customer and meter; a part of it where it is very much.

    Args:
        database: With the outbox.
        gateway: To Stripe.
        now: By Stripe's clock.
        org_id: This organisation's only, whether it is due or waits after a failure.

    Raises:
        StripeUnavailable: ``org_id`` is given and something of it was not taken; do not
            change its prices now.
    """
    clock = asyncio.get_running_loop().time
    ends_at_s = clock() + MAX_TURN_S
    while True:
        async with database.begin() as connection:
            events = await _take(connection, now, org_id)
        if not events:
            break
        outcomes = await asyncio.gather(*(_send(database, gateway, event, now) for event in events))
        # It is away: the others would wait for their deadlines one after the other.
        if all(outcome == "unavailable" for outcome in outcomes) or clock() >= ends_at_s:
            break
    if org_id is not None:
        async with database.begin() as connection:
            is_unsent = bool((await connection.execute(_UNSENT, {"org_id": org_id})).scalar_one())
        if is_unsent:
            raise StripeUnavailable("What was used so far could not be reported to Stripe. Please try again soon.")


async def on_error_report(database: Database, gateway: Gateway, event_id: str, now: datetime) -> None:
    """Doubts the meter events that a thin event says were not counted; may run twice.

    Where it does not name all of them, everything that was taken in the time that it is about is doubted.

    Args:
        database: With the outbox.
        gateway: To Stripe, to read the event in full.
        event_id: Of ``v1.billing.meter.error_report_triggered`` or ``….no_meter_found``.
        now: By Stripe's clock.

    Raises:
        StripeUnavailable: The event could not be read.
        StripeRefused: There is no such event.
    """
    report = await gateway.retrieve_thin_event(event_id)
    if await _is_of_others(gateway, report):
        return
    data = report["data"]
    problem, identifiers, is_complete = _read_report(data["reason"])
    doubts: list[tuple[TextClause, dict[str, object]]] = [(_DOUBT_NAMED, {"identifiers": identifiers})]
    if not is_complete:
        # Taken by our clock, validated by Stripe's.
        start = datetime.fromisoformat(data["validation_start"]) - LEASE
        end = datetime.fromisoformat(data["validation_end"]) + LEASE
        doubts.append((_DOUBT_ACKED, {"start": start, "end": end}))
    bind = {"due_at": now + LAG, "problem": problem}
    async with database.begin() as connection:
        doubted = sum([(await connection.execute(doubt, {**bind, **terms})).rowcount for doubt, terms in doubts])
    METER_EVENTS.labels("doubted").inc(doubted)
    log.error("meter_events.not_counted", stripe_event=event_id, problem=problem, num_doubted=doubted)


async def retry_rejected(database: Database) -> int:
    """Lets what Stripe refused be sent once more, after somebody has seen to the reason; returns how many."""
    async with database.begin() as connection:
        return (await connection.execute(_RETRY)).rowcount


def backoff(attempts: int) -> timedelta:
    """How long to wait after so many attempts, of which the last failed."""
    return min(_MAX_BACKOFF, _BACKOFF * (1 << min(attempts - 1, 10)))


async def _take(connection: AsyncConnection, now: datetime, org_id: UUID | None) -> list[Row[Any]]:
    """Leases the next event of each customer; what must not be sent any more goes its other way.

    Returns:
        Those to be sent; empty: there is nothing more to do.
    """
    await connection.execute(_LOCK)
    statement = _DUE_OF_ALL if org_id is None else _DUE_OF_ORG
    passed: list[UUID] = []
    while True:
        bind = {"now": now, "draft": DRAFT, "limit": MAX_AT_ONCE, "passed": passed}
        if org_id is not None:
            bind["org_id"] = org_id
        events = (await connection.execute(statement, bind)).all()
        sendable = [event for event in events if not await _diverted(connection, event, now)]
        # Behind one that went another way there may be one that can be sent.
        if sendable or not events:
            break
        passed += [event.id for event in events]
    # Meanwhile Stripe may have told that it does not count one.
    lease = {"now": now, "until": now + LEASE, "ids": [event.id for event in sendable]}
    leased = set((await connection.execute(_LEASE, lease)).scalars())
    return [event for event in sendable if event.id in leased]


async def _diverted(connection: AsyncConnection, event: Row[Any], now: datetime) -> bool:
    """Whether an event must not be sent any more, and was doubted or replaced instead."""
    is_forgotten = event.first_sent_at is not None and event.first_sent_at <= now - UNIQUE_FOR
    if not is_forgotten and not event.is_invoiced:
        return False
    if event.first_sent_at is not None:
        problem = "its identifier may be forgotten" if is_forgotten else "its period has been invoiced"
        await connection.execute(_DOUBT_ONE, {"id": event.id, "due_at": now + LAG, "problem": problem})
        METER_EVENTS.labels("doubted").inc()
        return True
    is_placed = await reissues.reissue(connection, event.id, now)
    if not is_placed and not await reissues.give_up(connection, event.id, event.org_id):
        await connection.execute(
            _WAIT, {"id": event.id, "due_at": now + _UNPLACED, "problem": "no period's invoice can take it"}
        )
    return True


async def _send(database: Database, gateway: Gateway, event: Row[Any], now: datetime) -> Outcome:
    outcome, problem = await _attempt(gateway, event)
    METER_EVENTS.labels(outcome).inc()
    async with database.begin() as connection:
        if outcome in ("acked", "duplicate"):
            await connection.execute(_ACK, {"id": event.id, "now": now})
            return outcome
        due_at = now + backoff(event.attempts + 1)
        state = "pending" if outcome == "unavailable" else "rejected"
        await connection.execute(_FAIL, {"id": event.id, "state": state, "due_at": due_at, "problem": problem})
    return outcome


async def _attempt(gateway: Gateway, event: Row[Any]) -> tuple[Outcome, str | None]:
    identifier = str(event.identifier)
    try:
        await gateway.send_meter_event(
            event.meter,
            event.stripe_customer_id,
            event.value,
            event.event_ts,
            identifier,
            # An answer of 500 is remembered with the key, for a day; of an attempt, not of the event.
            idempotency_key=f"{identifier}/{event.attempts}",
        )
    except StripeUnavailable:
        return "unavailable", "Stripe did not take it"
    except StripeRefused as refusal:
        if _DUPLICATE in refusal.message:
            return "duplicate", None
        log.error("meter_event.rejected", outbox_id=str(event.id), org_id=str(event.org_id), problem=refusal.message)
        return "rejected", refusal.message
    return "acked", None


async def _is_of_others(gateway: Gateway, report: Mapping[str, Any]) -> bool:
    """Whether it is about a meter of somebody else's: the account may sell other things."""
    meter_id = (report.get("related_object") or {}).get("id")
    return any(meter["id"] == meter_id and meter["event_name"] != METER for meter in await gateway.list_meters())


def _read_report(reason: Mapping[str, Any]) -> tuple[str, Sequence[str], bool]:
    """What went wrong in words, the identifiers that are named, and whether those are all."""
    samples = [sample for kind in reason["error_types"] for sample in kind["sample_errors"]]
    problem = ", ".join(sorted({kind["code"] for kind in reason["error_types"]}))
    # Stripe says now that this is the event's identifier, now that it is the call's idempotency key: ours begins so.
    named = {sample["request"]["identifier"].partition("/")[0] for sample in samples}
    return problem, _uuids(named), len(samples) >= reason["error_count"]


def _uuids(texts: Iterable[str]) -> list[str]:
    found = []
    for value in sorted(texts):
        try:
            found.append(str(UUID(value)))
        except ValueError:
            # Somebody else's usage of the same account.
            continue
    return found
