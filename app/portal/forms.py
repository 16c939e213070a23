"""What protects the portal's forms: signed tokens, cookies, a throttle, headers.

A form carries an HMAC of the cookie it was rendered for; another site can neither
read the cookie nor make the HMAC. Guessing passwords is slowed per address and per
login in each process: the point is to make it useless, not to count exactly.
"""

import hmac
import time
from collections import deque
from collections.abc import Callable

from fastapi import Request, Response

from app.config import Settings

SESSION_COOKIE = "tollgate_session"
FORM_COOKIE = "tollgate_form"
FORM_LIFETIME_S = 3600
HEADERS = {
    "content-security-policy": (
        "default-src 'none'; style-src 'self'; img-src 'self'; form-action 'self'; base-uri 'none';"
        " frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "same-origin",
    # Pages show a customer's data.
    "cache-control": "no-store",
}


class Throttle:
    """At most ``limit`` attempts within ``window_s`` seconds for each name.

    Keeps at most ``max_names`` names; the one that tried longest ago is forgotten first.
    """

    def __init__(
        self,
        limit: int = 10,
        window_s: float = 900.0,
        max_names: int = 10_000,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._limit = limit
        self._window_s = window_s
        self._max_names = max_names
        self._clock = clock
        self._attempts: dict[str, deque[float]] = {}

    def allows(self, *names: str) -> bool:
        """Counts one attempt for each name; whether all were within their limit."""
        counted = [self._count(name) for name in names]  # each, even after a refusal
        return all(counted)

    def _count(self, name: str) -> bool:
        now = self._clock()
        # Taken out and put back: the dictionary stays ordered by last attempt.
        attempts = self._attempts.pop(name, deque(maxlen=self._limit))
        while attempts and attempts[0] <= now - self._window_s:
            attempts.popleft()
        is_allowed = len(attempts) < self._limit
        if is_allowed:
            attempts.append(now)
        self._attempts[name] = attempts
        if len(self._attempts) > self._max_names:
            del self._attempts[next(iter(self._attempts))]
        return is_allowed


def form_token(settings: Settings, cookie: str) -> str:
    """What a form must carry that was rendered for the owner of ``cookie``."""
    return hmac.digest(settings.secret_key.get_secret_value().encode(), b"form:" + cookie.encode(), "sha256").hex()


def is_genuine(settings: Settings, cookie: str | None, token: object) -> bool:
    """Whether a submitted form was rendered for the cookie that came with it."""
    if not cookie or not isinstance(token, str):
        return False
    return hmac.compare_digest(form_token(settings, cookie).encode(), token.encode())


def set_cookie(response: Response, request: Request, name: str, value: str, max_age_s: int) -> None:
    """A cookie that scripts cannot read and other sites cannot send with a form."""
    settings: Settings = request.app.state.settings
    is_secure = settings.env == "production" or request.url.scheme == "https"
    response.set_cookie(name, value, max_age=max_age_s, httponly=True, secure=is_secure, samesite="lax", path="/")
