"""/login, its second step, and /logout.

Each step that raises what a login is worth makes a new token: a cookie that somebody
planted in a browser beforehand opens nothing afterwards.
"""

from datetime import UTC, datetime
from urllib.parse import quote
from uuid import UUID

from fastapi import APIRouter, Request, Response
from fastapi.responses import RedirectResponse
from sqlalchemy.ext.asyncio import AsyncConnection
from starlette.datastructures import FormData

from app.accounts import second_factor, sessions, users
from app.accounts.sessions import SESSION_COOKIE, PortalUser
from app.errors import PermissionDenied, RateLimited
from app.portal.attempts import forgive_attempt, require_attempt
from app.portal.forms import (
    FORM_COOKIE,
    TOKEN_FIELD,
    is_genuine,
    local_path,
    read_form,
    set_cookie,
    text_of,
)
from app.portal.i18n import language_of
from app.portal.page import HOME, SEE_OTHER, PageRoute, render
from app.portal.session import database_of, device_of, find_person, hashing_of, note_person, settings_of
from app.telemetry import get_logger

log = get_logger(__name__)

CODE_COOKIE = "tollgate_code"
"""Of a login whose second factor is waited for."""

router = APIRouter(include_in_schema=False, route_class=PageRoute)


@router.get("/login")
async def show_login(request: Request) -> Response:
    """The login form."""
    following = local_path(request.query_params.get("next"))
    person = await find_person(request)
    if isinstance(person, PortalUser):
        return RedirectResponse(following, SEE_OTHER)
    if person is not None:  # every other page would send them here
        return RedirectResponse("/organizations", SEE_OTHER)
    return render(request, "login.html", following=following, done=request.query_params.get("done"))


@router.post("/login")
async def login(request: Request) -> Response:
    """Checks a password; then comes the second factor where there is one, or a session."""
    try:
        form = await read_form(request, FORM_COOKIE)
    except PermissionDenied as error:
        return _refused(request, error.message, error.status)
    email, following = text_of(form, "email"), local_path(form.get("next"))
    try:
        await require_attempt(request, "login", email.lower())
    except RateLimited as error:
        return _refused(request, error.message, error.status, email, following)
    found = await _checked_login(request, email, form)
    if found is None:
        log.info("login.refused")
        return _refused(request, "The e-mail address or the password is wrong.", 401, email, following)
    # A whole office signs in from one address every morning.
    await forgive_attempt(request, "login", email.lower())
    now = datetime.now(UTC)
    async with database_of(request).begin() as connection:
        if not found.has_second_factor:
            return await start_session(request, connection, found.user_id, now, following)
        token = await sessions.open_session(connection, found.user_id, now, device_of(request), awaits_code=True)
    response = RedirectResponse(f"/login/code?next={quote(following, safe='')}", SEE_OTHER)
    set_cookie(response, request, CODE_COOKIE, token, int(sessions.CODE_LIFETIME.total_seconds()))
    return response


@router.get("/login/code")
async def show_code(request: Request) -> Response:
    """Asks for the second factor."""
    following = local_path(request.query_params.get("next"))
    if await _awaiting(request) is None:
        return RedirectResponse("/login", SEE_OTHER)
    return render(request, "login_code.html", following=following)


@router.post("/login/code")
async def enter_code(request: Request) -> Response:
    """Checks the second factor and opens a session.

    Raises:
        PermissionDenied: The form is not genuine.
        RateLimited: Too many codes were tried.
    """
    form = await read_form(request, FORM_COOKIE)
    following = local_path(form.get("next"))
    user_id = await _awaiting(request)
    if user_id is None:
        return RedirectResponse("/login", SEE_OTHER)
    await require_attempt(request, "code", str(user_id))
    response = await _entered(request, user_id, text_of(form, "code"), following)
    if response is None:
        log.info("login.code_refused")
        problem = language_of(request).gettext("The code is wrong, was used already, or is too old.")
        return render(request, "login_code.html", 401, problem=problem, following=following)
    await forgive_attempt(request, "code", str(user_id))
    return response


@router.post("/logout")
async def logout(request: Request) -> Response:
    """Ends the session; the cookie alone is then worth nothing."""
    form = await request.form()
    token, settings = request.cookies.get(SESSION_COOKIE), settings_of(request)
    cookies = (token, request.cookies.get(FORM_COOKIE))
    if token is None or not any(is_genuine(settings, cookie, form.get(TOKEN_FIELD)) for cookie in cookies):
        return RedirectResponse(HOME, SEE_OTHER)
    async with database_of(request).begin() as connection:
        await sessions.close_session(connection, token)
    response = RedirectResponse("/", SEE_OTHER)
    response.delete_cookie(SESSION_COOKIE)
    return response


async def start_session(
    request: Request,
    connection: AsyncConnection,
    user_id: UUID,
    now: datetime,
    following: str = HOME,
    *,
    org_id: UUID | None = None,
) -> Response:
    """Logs a person in and sends them on; a login that this browser had before is ended.

    The last step of its transaction: it writes to the audit log.

    Args:
        request: Of the browser that gets the cookie.
        connection: An open transaction.
        user_id: Who has shown everything that is asked of them.
        now: Aware.
        following: A path of ours.
        org_id: What to look at first.
    """
    previous = request.cookies.get(SESSION_COOKIE)
    if previous is not None:
        await sessions.close_session(connection, previous)
    token = await sessions.open_session(connection, user_id, now, device_of(request), org_id=org_id)
    await note_person(request, connection, user_id, "session.open")
    response = RedirectResponse(following, SEE_OTHER)
    set_cookie(response, request, SESSION_COOKIE, token, int(sessions.SESSION_LIFETIME.total_seconds()))
    response.delete_cookie(FORM_COOKIE)
    return response


async def _checked_login(request: Request, email: str, form: FormData) -> users.Login | None:
    """Takes as long for an address that nobody has."""
    async with database_of(request).begin() as connection:
        found = await users.find_login(connection, email)
    password = str(form.get("password", ""))
    password_hash = None if found is None else found.password_hash
    is_right = await hashing_of(request).fits(password_hash, password)
    return found if is_right else None


async def _entered(request: Request, user_id: UUID, code: str, following: str) -> Response | None:
    """A session for a right code; None: it is wrong, and counted."""
    now = datetime.now(UTC)
    async with database_of(request).begin() as connection:
        if not await second_factor.accepts(connection, settings_of(request), user_id, code, now):
            return None
        await sessions.close_session(connection, request.cookies[CODE_COOKIE])
        response = await start_session(request, connection, user_id, now, following)
    response.delete_cookie(CODE_COOKIE)
    return response


async def _awaiting(request: Request) -> UUID | None:
    token = request.cookies.get(CODE_COOKIE)
    if token is None:
        return None
    async with database_of(request).begin() as connection:
        return await sessions.find_awaiting(connection, token, datetime.now(UTC))


def _refused(request: Request, problem: str, status: int, email: str = "", following: str = HOME) -> Response:
    shown = language_of(request).gettext(problem)
    return render(request, "login.html", status, problem=shown, email=email, following=following)
