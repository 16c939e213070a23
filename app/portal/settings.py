"""/settings: what a member reads in, and in which colours; kept in cookies of their browser.

Mails are written in the language that was chosen last.
"""

from fastapi import APIRouter, Request, Response
from fastapi.responses import RedirectResponse

from app.accounts.users import set_language
from app.errors import NotFound
from app.portal.forms import local_path, read_form, set_cookie, text_of
from app.portal.i18n import LANGUAGE_COOKIE, LANGUAGES
from app.portal.page import SEE_OTHER, THEME_COOKIE, THEMES, PageRoute, render
from app.portal.session import database_of, require_user

_YEAR_S = 31_536_000

router = APIRouter(include_in_schema=False, route_class=PageRoute)


@router.get("/settings")
async def show_settings(request: Request) -> Response:
    """Language and colours."""
    await require_user(request, None)
    return render(request, "settings.html", is_saved=request.query_params.get("saved") == "yes")


@router.post("/settings")
async def save_settings(request: Request) -> Response:
    """Remembers them in this browser, and the language for mails."""
    user = await require_user(request, None)
    form = await read_form(request)
    response = RedirectResponse("/settings?saved=yes", SEE_OTHER)
    language = text_of(form, "language")
    if language in LANGUAGES:
        async with database_of(request).begin() as connection:
            await set_language(connection, user.user_id, language)
        set_cookie(response, request, LANGUAGE_COOKIE, language, _YEAR_S)
    if text_of(form, "theme") in THEMES:
        set_cookie(response, request, THEME_COOKIE, text_of(form, "theme"), _YEAR_S)
    return response


@router.get("/language/{code}")
async def choose_language(request: Request, code: str) -> Response:
    """Changes the language of this browser and goes back; works for anybody.

    Raises:
        NotFound: There is no such language.
    """
    if code not in LANGUAGES:
        raise NotFound("There is no page at this address.", code="unknown_language")
    response = RedirectResponse(local_path(request.query_params.get("next"), "/"), SEE_OTHER)
    set_cookie(response, request, LANGUAGE_COOKIE, code, _YEAR_S)
    return response
