"""What protects the portal's forms: signed tokens, cookies, addresses that stay here.

A form carries an HMAC of the cookie it was rendered for; another site can neither
read the cookie nor make the HMAC. One that can plant a cookie, on another host of the same
domain, is refused by what browsers say of where a form comes from.
"""

import hmac

from fastapi import Request, Response
from starlette.datastructures import FormData

from app.accounts.sessions import SESSION_COOKIE
from app.billing.amounts import parse_usd
from app.config import Settings
from app.errors import BadRequest, PermissionDenied

FORM_COOKIE = "tollgate_form"
"""Of visitors who are not signed in."""
FORM_LIFETIME_S = 3600
_MAX_DIGITS = 15
TOKEN_FIELD = "token"  # noqa: S105 - a field's name


def form_token(settings: Settings, cookie: str) -> str:
    """What a form must carry that was rendered for the owner of ``cookie``."""
    return hmac.digest(settings.secret_key.get_secret_value().encode(), b"form:" + cookie.encode(), "sha256").hex()


def is_genuine(settings: Settings, cookie: str | None, token: object) -> bool:
    """Whether a submitted form was rendered for the cookie that came with it."""
    if not cookie or not isinstance(token, str):
        return False
    return hmac.compare_digest(form_token(settings, cookie).encode(), token.encode())


async def read_form(request: Request, cookie_name: str = SESSION_COOKIE) -> FormData:
    """The fields of a form that one of our pages has sent.

    Args:
        request: A POST.
        cookie_name: ``FORM_COOKIE`` where the form was shown to somebody who was not signed in.

    Raises:
        PermissionDenied: Another site made it, or it was open for too long; code ``stale_form``.
    """
    form = await request.form()
    # Pages cannot forge it (Fetch Metadata); browsers leave it out where there is no TLS.
    is_foreign = request.headers.get("sec-fetch-site") in {"cross-site", "same-site"}
    if is_foreign or not is_genuine(
        request.app.state.settings, request.cookies.get(cookie_name), form.get(TOKEN_FIELD)
    ):
        raise PermissionDenied("The form was open for too long. Please try again.", code="stale_form")
    return form


def text_of(form: FormData, name: str) -> str:
    """A field without blanks around it; empty where it is missing or a file."""
    value = form.get(name)
    return value.strip() if isinstance(value, str) else ""


def texts_of(form: FormData, name: str) -> tuple[str, ...]:
    """Every value of a field that may be ticked several times."""
    return tuple(value for value in form.getlist(name) if isinstance(value, str))


def whole_of(form: FormData, name: str) -> int | None:
    """A field with a whole number from 0 on; None where it is empty.

    Raises:
        BadRequest: It is something else; ``param`` names it.
    """
    text = text_of(form, name)
    if not text:
        return None
    if not (text.isascii() and text.isdigit() and len(text) <= _MAX_DIGITS):
        raise BadRequest("Please enter a whole number.", param=name)
    return int(text)


def usd_of(form: FormData, name: str) -> int | None:
    """A field with an amount of USD from 0 on, in 10^-12 USD; None where it is empty.

    Raises:
        BadRequest: It is something else; ``param`` names it.
    """
    text = text_of(form, name)
    return parse_usd(text, name) if text else None


def local_path(address: object, otherwise: str = "/overview") -> str:
    r"""``address`` if it is a path of this site, else ``otherwise``: nobody is sent elsewhere by a link to us.

    Browsers drop tabs and line ends, and read a backslash as a slash: ``/\evil.example`` is another host.
    """
    if not isinstance(address, str) or not address.startswith("/") or not address.isprintable():
        return otherwise
    return otherwise if address.startswith("//") or "\\" in address else address


def set_cookie(response: Response, request: Request, name: str, value: str, max_age_s: int) -> None:
    """A cookie that scripts cannot read and other sites cannot send with a form."""
    settings: Settings = request.app.state.settings
    is_secure = settings.env == "production" or request.url.scheme == "https"
    response.set_cookie(name, value, max_age=max_age_s, httponly=True, secure=is_secure, samesite="lax", path="/")
