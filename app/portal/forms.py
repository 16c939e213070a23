"""What protects the portal's forms: signed tokens, cookies, headers.

A form carries an HMAC of the cookie it was rendered for; another site can neither
read the cookie nor make the HMAC. Guessing passwords is slowed by ``app.throttle``.
"""

import hmac

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
