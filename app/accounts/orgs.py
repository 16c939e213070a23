"""Organisations: the customers whom people belong to."""

from dataclasses import dataclass
from uuid import UUID

from sqlalchemy import insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from app.errors import BadRequest
from app.tables import Membership, Org, OrgBudget, new_id

MAX_NAME_LENGTH = 100


@dataclass(frozen=True, slots=True)
class Belonging:
    """An organisation that a person belongs to, and as what."""

    org_id: UUID
    name: str
    role: str


async def create_org(connection: AsyncConnection, name: str, plan: str = "internal") -> UUID:
    """A new, active organisation with a budget that nothing limits but its plan.

    Args:
        connection: An open transaction.
        name: 1 to 100 printable characters.
        plan: Of the catalogue; ``internal``: an organisation of the operator's own.

    Raises:
        BadRequest: The name is empty or longer than 100 characters.
    """
    org_id = new_id()
    await connection.execute(insert(Org).values(id=org_id, name=checked_name(name)))
    await connection.execute(insert(OrgBudget).values(org_id=org_id, plan=plan))
    return org_id


def checked_name(name: str) -> str:
    """The name without blanks around it.

    Raises:
        BadRequest: It is empty, longer than 100 characters, or not printable.
    """
    stripped = name.strip()
    if not stripped or len(stripped) > MAX_NAME_LENGTH or not stripped.isprintable():
        raise BadRequest("A name has 1 to 100 printable characters.", param="name")
    return stripped


async def list_orgs(connection: AsyncConnection) -> list[tuple[UUID, str, str]]:
    """Id, name and status of every organisation, oldest first."""
    rows = await connection.execute(select(Org.id, Org.name, Org.status).order_by(Org.created_at, Org.id))
    return [(row.id, row.name, row.status) for row in rows]


async def orgs_of(connection: AsyncConnection, user_id: UUID) -> list[Belonging]:
    """Those that a person belongs to, in the order of joining."""
    statement = (
        select(Org.id, Org.name, Membership.role)
        .join_from(Membership, Org, Org.id == Membership.org_id)
        .where(Membership.user_id == user_id, Org.delete_at.is_(None))
        .order_by(Membership.created_at, Org.id)
    )
    return [Belonging(row.id, row.name, row.role) for row in await connection.execute(statement)]
