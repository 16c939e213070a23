"""The limits of an organisation, as operators set them and admission judges them."""

from decimal import Decimal
from typing import TypeVar
from uuid import UUID

from sqlalchemy import func, update
from sqlalchemy.ext.asyncio import AsyncConnection

from app.billing.prices import pico_usd
from app.errors import BadRequest, NotFound
from app.tables import OrgBudget

AmountT = TypeVar("AmountT", int, Decimal)


async def set_budget(
    connection: AsyncConnection,
    org_id: UUID,
    *,
    monthly_token_limit: int | None = None,
    spend_cap: Decimal | None = None,
    max_concurrent: int | None = None,
    credit: Decimal | None = None,
) -> None:
    """Sets what is given and leaves the rest; the next admission sees it.

    Args:
        connection: An open transaction.
        org_id: The organisation.
        monthly_token_limit: Input and output of a month, >= 0.
        spend_cap: USD a month, >= 0.
        max_concurrent: Requests at once, > 0.
        credit: USD, added to the prepaid balance; from the first one on, nothing runs without.

    Raises:
        BadRequest: Nothing is given, or an amount that cannot be.
        NotFound: No such organisation.
    """
    values: dict[str, object] = {}
    if monthly_token_limit is not None:
        values["monthly_token_limit"] = _at_least(monthly_token_limit, 0, "monthly_token_limit")
    if spend_cap is not None:
        values["spend_cap"] = pico_usd(_at_least(spend_cap, Decimal(0), "spend_cap"))
    if max_concurrent is not None:
        values["max_concurrent"] = _at_least(max_concurrent, 1, "max_concurrent")
    if credit is not None:
        values["credit"] = func.coalesce(OrgBudget.credit, 0) + pico_usd(credit)
    if not values:
        raise BadRequest("Nothing to set.")
    statement = update(OrgBudget).where(OrgBudget.org_id == org_id).values(values)
    if not (await connection.execute(statement)).rowcount:
        raise NotFound(f"There is no organisation {org_id}.", code="org_not_found", param="org")


def _at_least(value: AmountT, least: AmountT, param: str) -> AmountT:
    if value < least:
        raise BadRequest(f"'{param}' must be at least {least}.", param=param)
    return value
