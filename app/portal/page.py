"""A page of the portal as an answer: rendered on the server, complete without JavaScript.

``PageRoute`` makes pages of errors too: whoever is not signed in is asked to, a fault
of the visitor is told in one sentence.
"""

import hashlib
import secrets
from collections.abc import Callable, Coroutine, Sequence
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import quote

from fastapi import Request, Response
from fastapi.responses import HTMLResponse, RedirectResponse
from fastapi.routing import APIRoute
from jinja2 import Environment, PackageLoader, StrictUndefined
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

from app.accounts.permissions import allows
from app.accounts.sessions import SESSION_COOKIE, PortalUser
from app.errors import AppError, AuthenticationFailed, BadRequest, StripeRefused
from app.portal.forms import FORM_COOKIE, FORM_LIFETIME_S, form_token, set_cookie
from app.portal.headers import content_policy
from app.portal.i18n import LANGUAGES, Language, language_of
from app.portal.navigation import ENTRIES
from app.portal.session import find_user, settings_of
from app.telemetry import request_id

SEE_OTHER = 303
HOME = "/overview"
THEME_COOKIE = "tollgate_theme"
THEMES = ("auto", "light", "dark")
STATIC_DIR = Path(__file__).parent / "static"
_MISSING = (404, 405)
_OUR_FAULT = 500
_FOREVER = "public, max-age=31536000, immutable"


class PageRoute(APIRoute):
    """A route whose errors are pages."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The handler, with ``AppError`` answered as a page."""
        handler = super().get_route_handler()

        async def answer(request: Request) -> Response:
            try:
                return await handler(request)
            except AuthenticationFailed:
                return RedirectResponse(sign_in_path(request), SEE_OTHER)
            except AppError as error:
                return error_page(request, error)

        return answer


class Files(StaticFiles):
    """Style sheets, modules and icons; what is asked for with its version is kept for good."""

    async def get_response(self, path: str, scope: Scope) -> Response:
        """The file."""
        response = await super().get_response(path, scope)
        is_versioned = scope["query_string"].startswith(b"v=")
        response.headers["cache-control"] = _FOREVER if is_versioned else "no-cache"
        return response


def render(
    request: Request, name: str, status: int = 200, *, form_targets: Sequence[str] = (), **values: object
) -> Response:
    """The template ``name`` as an answer that nobody keeps.

    Beside ``values``, templates have ``user`` (None: not signed in), ``language``, ``navigation``,
    ``can(permission)``, ``csrf()``, ``path`` and ``static(file)``.

    Args:
        request: Whom it is for.
        name: Of a file in ``templates``.
        status: Of the answer.
        form_targets: Origins to which one of its forms may lead; see ``headers.content_policy``.
        values: What the template shows.
    """
    user: PortalUser | None = getattr(request.state, "user", None)
    stamp = _Stamp(request, user)
    language = language_of(request)
    shown = {
        "user": user,
        "language": language,
        "languages": LANGUAGES.values(),
        "theme": theme_of(request),
        "path": request.url.path,
        "here": _here(request),
        "navigation": [entry for entry in ENTRIES if user and entry.is_for(user.role)],
        "can": lambda permission: user is not None and allows(user.role, permission),
        "csrf": stamp.token,
    }
    page = HTMLResponse(templates(language).get_template(name).render(shown | values), status)
    if form_targets:
        page.headers["content-security-policy"] = content_policy(form_targets)
    stamp.set_cookie(page)
    return page


def error_page(request: Request, error: AppError) -> Response:
    """A failure in one sentence, with what can be done next."""
    language = language_of(request)
    message = language.told(error)
    if isinstance(error, StripeRefused):  # in Stripe's own words, which are in no catalogue
        message = language.gettext("Stripe says: %(words)s") % {"words": message}
    # Who asks for help has to name it.
    id = request_id.get() if error.status >= _OUR_FAULT else None
    page = render(request, "error.html", error.status, error=error, message=message, request_id=id)
    page.headers.update(error.headers)
    return page


def wants_page(request: Request) -> bool:
    """Whether a person asks with a browser, and not a program that calls the API."""
    return not request.url.path.startswith("/v1/") and "text/html" in request.headers.get("accept", "")


async def refused_page(request: Request, status: int) -> Response:
    """The answer to a person for an address that is no page, or for a form that cannot be read."""
    await find_user(request)  # with the menu, for whoever has one
    if status not in _MISSING:
        return error_page(request, BadRequest("The form could not be read.", status=status))
    return error_page(request, AppError("There is no page at this address.", code="unknown_url", status=status))


def sign_in_path(request: Request) -> str:
    """The login, which leads back to the page that was asked for."""
    here = _here(request)
    is_plain = request.method != "GET" or here == HOME
    return "/login" if is_plain else f"/login?next={quote(here, safe='')}"


def theme_of(request: Request) -> str:
    """The colours that the visitor chose; ``auto``: those of their system."""
    theme = request.cookies.get(THEME_COOKIE, "")
    return theme if theme in THEMES else THEMES[0]


@cache
def templates(language: Language) -> Environment:
    """The templates, with the words and numbers of a language."""
    environment = Environment(
        loader=PackageLoader("app.portal"),
        autoescape=True,
        undefined=StrictUndefined,  # a name that is misspelt is a fault, not an empty space
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=["jinja2.ext.i18n"],
    )
    environment.install_gettext_translations(language.translations, newstyle=True)  # type: ignore[attr-defined]
    environment.policies["ext.i18n.trimmed"] = True
    environment.globals["static"] = static
    for filter_name in (
        "number", "compact", "percent", "money", "dollars", "rounded", "cents", "month", "day", "minute", "ago",
    ):  # fmt: skip
        environment.filters[filter_name] = getattr(language, filter_name)
    return environment


@cache
def static(name: str) -> str:
    """The address of a file in ``static``, which changes with it."""
    digest = hashlib.sha256((STATIC_DIR / name).read_bytes()).hexdigest()
    return f"/static/{name}?v={digest[:12]}"


class _Stamp:
    """The token of a page's forms, and the cookie it belongs to where nobody is signed in."""

    def __init__(self, request: Request, user: PortalUser | None) -> None:
        self._request = request
        self._session = request.cookies.get(SESSION_COOKIE) if user else None
        self._made: str | None = None

    def token(self) -> str:
        """What ``forms.read_form`` wants to see again."""
        if self._session:
            return form_token(settings_of(self._request), self._session)
        self._made = self._made or self._request.cookies.get(FORM_COOKIE) or secrets.token_urlsafe(32)
        return form_token(settings_of(self._request), self._made)

    def set_cookie(self, page: Response) -> None:
        """Gives the visitor the cookie that the page's forms need."""
        if self._made:
            set_cookie(page, self._request, FORM_COOKIE, self._made, FORM_LIFETIME_S)


def _here(request: Request) -> str:
    query = request.url.query
    return f"{request.url.path}?{query}" if query else request.url.path
