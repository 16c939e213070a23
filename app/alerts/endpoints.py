"""Where customers want to be called: addresses, and the secrets that calls are signed with.

A secret is made of the installation's own key, so none is stored. It can be shown again
and is exchanged by a new version. Calls are signed with the version before as well, so that
a receiver can be told of the new one in its own time; a further version ends that.
"""

import base64
import hmac
from urllib.parse import urlsplit
from uuid import UUID

import httpx
from sqlalchemy import delete, func, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from app.config import Settings
from app.errors import BadRequest, Conflict, NotFound
from app.tables import Org, WebhookEndpoint, new_id

MAX_ENDPOINTS = 5
MAX_URL_LENGTH = 2_000


def secret_of(settings: Settings, endpoint_id: UUID, version: int) -> str:
    """A secret that calls to an endpoint are signed with, in the spelling of Standard Webhooks."""
    key = settings.secret_key.get_secret_value().encode()
    digest = hmac.digest(key, b"webhook:" + endpoint_id.bytes + version.to_bytes(4, "big"), "sha256")
    return f"whsec_{base64.b64encode(digest).decode()}"


def secrets_of(settings: Settings, endpoint_id: UUID, version: int) -> tuple[str, ...]:
    """All that calls to an endpoint are signed with: the secret of this version, and that of the one before."""
    versions = (version, version - 1) if version > 1 else (version,)
    return tuple(secret_of(settings, endpoint_id, one) for one in versions)


async def add_endpoint(connection: AsyncConnection, org_id: UUID, url: str, created_by: UUID | None = None) -> UUID:
    """A new address to call; returns its id.

    Raises:
        BadRequest: It is no address that can be called.
        Conflict: There are as many as there may be.
    """
    address = checked_url(url)
    # Of two that are added at once, one counts after the other.
    await connection.execute(select(Org.id).where(Org.id == org_id).with_for_update())
    count = select(func.count()).where(WebhookEndpoint.org_id == org_id)
    if (await connection.execute(count)).scalar_one() >= MAX_ENDPOINTS:
        raise Conflict("There are %(most)s webhook addresses already.", values={"most": MAX_ENDPOINTS}, param="url")
    endpoint_id = new_id()
    values = {"id": endpoint_id, "org_id": org_id, "url": address, "created_by": created_by}
    await connection.execute(insert(WebhookEndpoint).values(values))
    return endpoint_id


async def list_endpoints(connection: AsyncConnection, org_id: UUID) -> list[WebhookEndpoint]:
    """An organisation's addresses, oldest first."""
    columns = WebhookEndpoint.__table__.columns
    rows = await connection.execute(select(*columns).where(WebhookEndpoint.org_id == org_id).order_by(columns.id))
    return [WebhookEndpoint(**row._mapping) for row in rows]


async def require_endpoint(connection: AsyncConnection, org_id: UUID, endpoint_id: UUID) -> None:
    """Makes sure that an address is the organisation's, and stays until the transaction ends.

    Raises:
        NotFound: The organisation has no such address.
    """
    found = select(WebhookEndpoint.id).where(WebhookEndpoint.id == endpoint_id, WebhookEndpoint.org_id == org_id)
    if (await connection.execute(found.with_for_update())).first() is None:
        raise _unknown()


async def remove_endpoint(connection: AsyncConnection, org_id: UUID, endpoint_id: UUID) -> None:
    """Calls it no more.

    Raises:
        NotFound: The organisation has no such address.
    """
    statement = delete(WebhookEndpoint).where(WebhookEndpoint.id == endpoint_id, WebhookEndpoint.org_id == org_id)
    if not (await connection.execute(statement)).rowcount:
        raise _unknown()


async def renew_secret(connection: AsyncConnection, org_id: UUID, endpoint_id: UUID) -> int:
    """Signs with another secret from now on, beside the one that was the newest; returns its version.

    Raises:
        NotFound: The organisation has no such address.
    """
    statement = (
        update(WebhookEndpoint)
        .where(WebhookEndpoint.id == endpoint_id, WebhookEndpoint.org_id == org_id)
        .values(secret_version=WebhookEndpoint.secret_version + 1)
        .returning(WebhookEndpoint.secret_version)
    )
    version: int | None = (await connection.execute(statement)).scalar_one_or_none()
    if version is None:
        raise _unknown()
    return version


def checked_url(url: str) -> str:
    """The address without blanks around it.

    Raises:
        BadRequest: It is not an absolute http or https address of at most 2,000 printable ASCII
            characters, with a host that can be looked up and no user or password.
    """
    address = url.strip()
    if not address.isascii() or not address.isprintable() or " " in address or not _is_callable(address):
        raise BadRequest("A webhook address begins with https:// and a host.", param="url")
    if len(address) > MAX_URL_LENGTH:
        raise BadRequest(
            "A webhook address has at most %(most)s characters.", values={"most": MAX_URL_LENGTH}, param="url"
        )
    return address


def _is_callable(address: str) -> bool:
    try:
        parts = urlsplit(address)
        # Whoever looks a name up spells it so first, and fails with labels that are empty or too long.
        (parts.hostname or "").encode("idna")
        has_place = bool(parts.hostname) and parts.port != 0 and "@" not in parts.netloc
        return parts.scheme in {"http", "https"} and has_place and bool(httpx.URL(address).host)
    except (ValueError, httpx.InvalidURL):
        return False


def _unknown() -> NotFound:
    return NotFound("There is no such webhook address.", code="webhook_not_found", param="id")
