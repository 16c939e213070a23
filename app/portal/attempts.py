"""How often something may be tried that costs us, or that somebody could guess at.

Counted in the database (``app.throttle``), so that it is the same with one process and with
twenty. Whoever is refused is told to wait, whether the next guess was right or not. A place
is an address of the fourth version, or a network of the sixth of which a household has one.
What is tried on somebody is limited more loosely than what comes from one place: whoever
knows an address must not be able to lock its owner out from a single machine.
"""

from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address, ip_address, ip_network
from uuid import UUID

from fastapi import Request

from app import throttle
from app.auth import caller_ip
from app.errors import RateLimited
from app.portal.session import database_of
from app.throttle import Attempt, Limit

_QUARTER = timedelta(minutes=15)
_HOUR = timedelta(hours=1)
FROM_ONE_PLACE = Limit(10, _QUARTER)
ON_ONE_NAME = Limit(30, _QUARTER)
MAILS = Limit(5, _HOUR)
INVITATIONS = Limit(50, timedelta(days=1))
"""Of one organisation: their mails carry its name, and come from us."""
SIGN_UPS = Limit(20, timedelta(days=1))
"""From one place: a class may begin together, but each account comes with a free plan."""
ORGANISATIONS = Limit(5, timedelta(days=30))
"""Of one person: each comes with what the free plan gives away every month."""
_HOME_NETWORK_BITS = 64  # RFC 6177: a site gets at least one such network


async def require_attempt(request: Request, what: str, *names: str) -> None:
    """Counts one attempt from the caller's place and on each name.

    Args:
        request: Whose place counts.
        what: Is tried; each kind of attempt has a count of its own.
        names: Whom it is tried on.

    Raises:
        RateLimited: There were too many within a quarter of an hour.
    """
    if not await _take(request, *_attempts(request, what, *names)):
        wait_s = _QUARTER.total_seconds()
        raise RateLimited("Too many attempts. Please wait a quarter of an hour.", retry_after_s=wait_s)


async def forgive_attempt(request: Request, what: str, *names: str) -> None:
    """Counts an attempt as not made: it was right, and nobody guesses who knows."""
    async with database_of(request).begin() as connection:
        await throttle.give_back(connection, _attempts(request, what, *names))


async def require_sign_up(request: Request) -> None:
    """Counts one account that somebody asks for.

    Raises:
        RateLimited: There were too many from the caller's place within a day.
    """
    if not await _take(request, Attempt(f"sign-up from {place_of(caller_ip(request))}", SIGN_UPS)):
        wait_s = SIGN_UPS.step.total_seconds()
        raise RateLimited("Enough accounts were asked for from here today. Please wait a while.", retry_after_s=wait_s)


async def require_mail(request: Request, address: str) -> None:
    """Counts one mail to an address, sent because somebody asked for it.

    Raises:
        RateLimited: There were too many within an hour.
    """
    if not await _take(request, Attempt(f"mail {address}", MAILS)):
        wait_s = _HOUR.total_seconds()
        raise RateLimited("Enough mails went to this address. Please wait an hour.", retry_after_s=wait_s)


async def require_invitation(request: Request, org_id: UUID) -> None:
    """Counts one invitation of an organisation.

    Raises:
        RateLimited: There were too many within a day.
    """
    if not await _take(request, Attempt(f"invitation of {org_id}", INVITATIONS)):
        wait_s = INVITATIONS.step.total_seconds()
        raise RateLimited("Too many people were invited today. Please wait a while.", retry_after_s=wait_s)


async def require_founding(request: Request, person_id: UUID) -> None:
    """Counts one organisation that a person founds.

    Raises:
        RateLimited: There were too many within a month.
    """
    if not await _take(request, Attempt(f"organization of {person_id}", ORGANISATIONS)):
        wait_s = ORGANISATIONS.step.total_seconds()
        raise RateLimited("You have founded enough organisations for this month.", retry_after_s=wait_s)


def place_of(ip: str | None) -> str:
    """What counts as one place; all of whom nothing is known are one."""
    if ip is None:
        return "unknown"
    address = ip_address(ip)
    if isinstance(address, IPv4Address):
        return str(address)
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(ip_network((address.packed, _HOME_NETWORK_BITS), strict=False))


async def _take(request: Request, *attempts: Attempt) -> bool:
    async with database_of(request).begin() as connection:
        return await throttle.take(connection, attempts, datetime.now(UTC))


def _attempts(request: Request, what: str, *names: str) -> tuple[Attempt, ...]:
    place = Attempt(f"{what} from {place_of(caller_ip(request))}", FROM_ONE_PLACE)
    return place, *(Attempt(f"{what} on {name}", ON_ONE_NAME) for name in names)
