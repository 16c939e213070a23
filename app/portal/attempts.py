"""How often something may be tried that costs us, or that somebody could guess at.

Counted in each process by itself (``app.throttle``): guessing becomes useless, counting
need not be exact. Whoever is refused is told to wait, whether the next guess was right or not.
"""

from fastapi import Request

from app.errors import RateLimited
from app.portal.session import host_of
from app.throttle import Throttle

_WAIT_S = 900.0
_MAIL_WAIT_S = 3600.0


def require_attempt(request: Request, what: str, *names: str) -> None:
    """Counts one attempt for the caller's address and for each name.

    Args:
        request: Whose address counts.
        what: Is tried; each kind of attempt has a count of its own.
        names: Whom it is tried on.

    Raises:
        RateLimited: There were too many within a quarter of an hour.
    """
    throttle: Throttle = request.app.state.throttle
    if not throttle.allows(f"{what} host {host_of(request)}", *(f"{what} {name}" for name in names)):
        raise RateLimited("Too many attempts. Please wait a quarter of an hour.", retry_after_s=_WAIT_S)


def require_mail(request: Request, address: str) -> None:
    """Counts one mail to an address, sent because somebody asked for it.

    Raises:
        RateLimited: There were too many within an hour.
    """
    throttle: Throttle = request.app.state.mail_throttle
    if not throttle.allows(f"mail {address}"):
        raise RateLimited("Enough mails went to this address. Please wait an hour.", retry_after_s=_MAIL_WAIT_S)
