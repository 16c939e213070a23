"""/login and /logout."""

import asyncio
from datetime import UTC, datetime

from fastapi import APIRouter, Request, Response
from fastapi.responses import RedirectResponse

from app.accounts import sessions, users
from app.errors import PermissionDenied
from app.portal.forms import (
    FORM_COOKIE,
    SESSION_COOKIE,
    is_genuine,
    local_path,
    read_form,
    set_cookie,
    text_of,
)
from app.portal.i18n import language_of
from app.portal.page import SEE_OTHER, PageRoute, render
from app.portal.session import database_of, find_user, host_of, settings_of
from app.telemetry import get_logger
from app.throttle import Throttle

log = get_logger(__name__)

router = APIRouter(include_in_schema=False, route_class=PageRoute)


@router.get("/login")
async def show_login(request: Request) -> Response:
    """The login form."""
    following = local_path(request.query_params.get("next"))
    if await find_user(request) is not None:
        return RedirectResponse(following, SEE_OTHER)
    return render(request, "login.html", following=following)


@router.post("/login")
async def login(request: Request) -> Response:
    """Checks a password and opens a session."""
    language = language_of(request)
    try:
        form = await read_form(request, FORM_COOKIE)
    except PermissionDenied as error:
        return _refused(request, language.gettext(error.message), error.status)
    database = database_of(request)
    email, password, following = text_of(form, "email"), str(form.get("password", "")), local_path(form.get("next"))
    if not _throttle(request).allows(f"host {host_of(request)}", f"login {email.lower()}"):
        problem = language.gettext("Too many attempts. Please wait a quarter of an hour.")
        return _refused(request, problem, 429, email, following)
    async with database.begin() as connection:
        found = await users.find_login(connection, email)
    is_right = await asyncio.to_thread(users.check_password, found and found.password_hash, password)
    if found is None or not is_right:
        log.info("login.refused")
        problem = language.gettext("The e-mail address or the password is wrong.")
        return _refused(request, problem, 401, email, following)
    async with database.begin() as connection:
        token = await sessions.open_session(connection, found.user_id, datetime.now(UTC))
    response = RedirectResponse(following, SEE_OTHER)
    set_cookie(response, request, SESSION_COOKIE, token, int(sessions.SESSION_LIFETIME.total_seconds()))
    response.delete_cookie(FORM_COOKIE)
    return response


@router.post("/logout")
async def logout(request: Request) -> Response:
    """Ends the session; the cookie alone is then worth nothing."""
    form = await request.form()
    token = request.cookies.get(SESSION_COOKIE)
    if token is None or not is_genuine(settings_of(request), token, form.get("token")):
        return RedirectResponse("/overview", SEE_OTHER)
    async with database_of(request).begin() as connection:
        await sessions.close_session(connection, token)
    response = RedirectResponse("/", SEE_OTHER)
    response.delete_cookie(SESSION_COOKIE)
    return response


def _refused(request: Request, problem: str, status: int, email: str = "", following: str = "/overview") -> Response:
    return render(request, "login.html", status, problem=problem, email=email, following=following)


def _throttle(request: Request) -> Throttle:
    throttle: Throttle = request.app.state.throttle
    return throttle
