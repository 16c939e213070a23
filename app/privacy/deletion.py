"""The end of an organisation: access at once, its data a day later, for good.

The day is for mistakes: until then an operator can call it off. Its subscription has to be
over before, which is the caller's matter, so that what was used is still invoiced. One that
began meanwhile, at a checkout that was still open, puts the end off until it is over: nobody
could cancel it afterwards.

What stays: the audit log and the ledger of credit, which nobody can delete from, and what Stripe
keeps by law. The ledger holds ids and amounts; the audit log tells who was invited, what keys
and webhooks were called, and from which addresses of the network it was done.
"""

from datetime import datetime, timedelta
from uuid import UUID

from sqlalchemy import delete, select, text, update
from sqlalchemy.ext.asyncio import AsyncConnection

from app.billing.turns import Turns
from app.db import Database
from app.errors import Conflict, NotFound
from app.tables import Membership, Org, Subscription, User
from app.telemetry import get_logger

log = get_logger(__name__)

DELAY = timedelta(days=1)

_DUE = text(
    "SELECT id FROM orgs o WHERE delete_at <= :now"
    # Requests that still run have yet to write what they used.
    " AND NOT EXISTS (SELECT 1 FROM reservations r WHERE r.org_id = o.id) ORDER BY id"
)
# Another worker may be faster, and an operator may just be calling it off.
_STILL_DUE = text("SELECT 1 FROM orgs WHERE id = :org_id AND delete_at <= :now FOR UPDATE")
_REVOKE_KEYS = text(
    "UPDATE api_keys SET revoked_at = :now, revoke_reason = 'revoked' WHERE org_id = :org_id AND revoked_at IS NULL"
)
# Without a foreign key, so that rows outlive keys and requests; everything else goes with the organisation.
_LOOSE = ("usage_events", "usage_rollup_hour", "stripe_meter_outbox")
# Who is in no other organisation; they go after it, as it must not be without an owner.
_PEOPLE = text(
    "SELECT user_id FROM memberships o WHERE org_id = :org_id"
    " AND NOT EXISTS (SELECT 1 FROM memberships m WHERE m.user_id = o.user_id AND m.org_id <> :org_id)"
)
_ORG = text("DELETE FROM orgs WHERE id = :org_id")
_ENDED = ("canceled", "incomplete_expired")


async def request_deletion(connection: AsyncConnection, org_id: UUID, now: datetime) -> datetime:
    """Ends all access and has the organisation deleted a day later; returns when.

    Raises:
        NotFound: No such organisation.
        Conflict: It has a subscription that lives.
    """
    if await _has_subscription(connection, org_id):
        raise Conflict("Cancel the subscription first: what was used still has to be invoiced.")
    delete_at = now + DELAY
    statement = update(Org).where(Org.id == org_id).values(status="suspended", delete_at=delete_at)
    if not (await connection.execute(statement)).rowcount:
        raise _unknown(org_id)
    await connection.execute(_REVOKE_KEYS, {"org_id": org_id, "now": now})
    return delete_at


async def call_off(connection: AsyncConnection, org_id: UUID) -> None:
    """Gives the organisation back to its members; its keys stay revoked.

    Raises:
        NotFound: There is none of this id that is to be deleted.
    """
    waiting = update(Org).where(Org.id == org_id, Org.delete_at.is_not(None))
    if not (await connection.execute(waiting.values(status="active", delete_at=None))).rowcount:
        raise _unknown(org_id)


async def delete_due(database: Database, now: datetime) -> int:
    """Deletes those whose time has come, a transaction for each; returns how many.

    Raises:
        DBAPIError: One could not be deleted; the others are.
    """
    async with database.begin() as connection:
        org_ids = (await connection.execute(_DUE, {"now": now})).scalars().all()
    num_deleted = 0
    turns = Turns("org.deletion_failed")
    for org_id in org_ids:
        with turns.of(org_id=str(org_id)):
            async with database.begin() as connection:
                is_deleted = await _delete(connection, org_id, now)
            if is_deleted:
                log.info("org.deleted", org_id=str(org_id))
            num_deleted += is_deleted
    turns.end()
    return num_deleted


async def _delete(connection: AsyncConnection, org_id: UUID, now: datetime) -> bool:
    bind = {"org_id": org_id}
    if (await connection.execute(_STILL_DUE, bind | {"now": now})).first() is None:
        return False
    if await _has_subscription(connection, org_id):
        log.warning("org.deletion_waits", org_id=str(org_id), reason="subscription")
        return False
    for table in _LOOSE:
        await connection.execute(text(f"DELETE FROM {table} WHERE org_id = :org_id"), bind)  # noqa: S608 - ours
    people = (await connection.execute(_PEOPLE, bind)).scalars().all()
    await connection.execute(_ORG, bind)
    # Who has just joined another one stays.
    elsewhere = select(Membership.user_id).where(Membership.user_id == User.id).exists()
    await connection.execute(delete(User).where(User.id.in_(people), ~elsewhere))
    return True


async def _has_subscription(connection: AsyncConnection, org_id: UUID) -> bool:
    live = select(Subscription.id).where(Subscription.org_id == org_id, Subscription.status.not_in(_ENDED))
    return (await connection.execute(live)).first() is not None


def _unknown(org_id: UUID) -> NotFound:
    return NotFound("There is no organisation %(id)s.", values={"id": org_id}, code="org_not_found", param="org")
