"""The limits of an organisation, as operators set them and admission judges them."""

from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

from sqlalchemy import Row, select, text, update
from sqlalchemy.ext.asyncio import AsyncConnection

from app import audit
from app.billing import credits
from app.errors import BadRequest, Conflict, NotFound
from app.tables import OrgBudget, new_id

LIMITS = ("monthly_token_limit", "spend_cap", "max_concurrent")
"""What can be lifted: then it is the plan's again, or there is none."""
PLANS_TO_GIVE = ("free", "internal")
"""Every other plan comes with what was paid."""

_IS_CUSTOMER = text(
    "SELECT EXISTS (SELECT FROM subscriptions WHERE org_id = :org_id)"
    " OR EXISTS (SELECT FROM credit_ledger WHERE org_id = :org_id)"
)


@dataclass(frozen=True, slots=True)
class Change:
    """What an operator wants; None leaves as it is.

    Attributes:
        monthly_token_limit: Input and output of a month, >= 0.
        spend_cap: Of a month, in 10^-12 USD, >= 0.
        max_concurrent: Requests at once, > 0.
        credit: In 10^-12 USD, given to the prepaid balance, or taken from it where below 0.
        plan: ``free``, or ``internal`` of an organisation that never paid.
        lifted: Of ``LIMITS``: those that are taken away.
    """

    monthly_token_limit: int | None = None
    spend_cap: int | None = None
    max_concurrent: int | None = None
    credit: int | None = None
    plan: str | None = None
    lifted: Sequence[str] = ()


async def set_budget(connection: AsyncConnection, org_id: UUID, change: Change) -> None:
    """Sets what is given and leaves the rest; the next admission sees it. Recorded in the audit log.

    Credit is added to the ledger; whether it pays for requests is decided by
    ``app.billing.entitlement``.

    Args:
        connection: An open transaction; this is its last step.
        org_id: The organisation.
        change: What to set.

    Raises:
        BadRequest: Nothing is given, or an amount or a plan that cannot be.
        Conflict: The plan of somebody who has paid is to change.
        NotFound: No such organisation.
    """
    values = _values(change)
    if not values and not change.credit:
        raise BadRequest("Nothing to set.")
    before = await _locked(connection, org_id)
    if change.plan is not None and before.plan not in PLANS_TO_GIVE:
        raise Conflict(f"The organisation is on {before.plan}, which comes with what it paid.", param="plan")
    if change.plan == "internal":
        await _require_stranger(connection, org_id)
    if values:
        await connection.execute(update(OrgBudget).where(OrgBudget.org_id == org_id).values(values))
    if change.credit:
        kind: credits.Kind = "grant" if change.credit > 0 else "adjust"
        await credits.add(connection, org_id, kind, change.credit, "operator", str(new_id()))
    after = values | ({"credit_added": change.credit} if change.credit else {})
    await audit.record(
        connection,
        org_id=org_id,
        actor=audit.OPERATOR,
        action="budget.set",
        target=f"org:{org_id}",
        before={name: getattr(before, name) for name in values},
        after=after,
    )


def _values(change: Change) -> dict[str, object]:
    """The columns to write."""
    values: dict[str, object] = {}
    for name in change.lifted:
        if name not in LIMITS:
            raise BadRequest(f"'{name}' is no limit: {', '.join(LIMITS)}.", param="lift")
        values[name] = None
    if change.monthly_token_limit is not None:
        values["monthly_token_limit"] = _at_least(change.monthly_token_limit, 0, "monthly_token_limit")
    if change.spend_cap is not None:
        values["spend_cap"] = _at_least(change.spend_cap, 0, "spend_cap")
    if change.max_concurrent is not None:
        values["max_concurrent"] = _at_least(change.max_concurrent, 1, "max_concurrent")
    if change.plan is not None:
        values["plan"] = checked_plan(change.plan)
    return values


def checked_plan(name: str) -> str:
    """The name of a plan that an operator may give.

    Raises:
        BadRequest: It is not one of those.
    """
    if name not in PLANS_TO_GIVE:
        raise BadRequest(
            f"An operator gives the plans {' and '.join(PLANS_TO_GIVE)}; '{name}' comes with what is paid.",
            param="plan",
        )
    return name


async def _locked(connection: AsyncConnection, org_id: UUID) -> Row[tuple[object, ...]]:
    columns = [getattr(OrgBudget, name) for name in (*LIMITS, "plan")]
    statement = select(*columns).where(OrgBudget.org_id == org_id).with_for_update()
    row = (await connection.execute(statement)).one_or_none()
    if row is None:
        raise NotFound(f"There is no organisation {org_id}.", code="org_not_found", param="org")
    return row


async def _require_stranger(connection: AsyncConnection, org_id: UUID) -> None:
    if (await connection.execute(_IS_CUSTOMER, {"org_id": org_id})).scalar_one():
        raise Conflict("An organisation that has paid, or was given credit, is a customer.", param="plan")


def _at_least(value: int, least: int, param: str) -> int:
    if value < least:
        raise BadRequest(f"'{param}' must be at least {least}.", param=param)
    return value
