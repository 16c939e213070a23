"""/forgot and /reset: a new password for who reads the mail of their address.

Asking looks the same for every address. A link is looked up only after the answer has
left, so that nobody can time whether an address has a login.
"""

from datetime import UTC, datetime

from fastapi import APIRouter, Request, Response
from fastapi.responses import RedirectResponse
from starlette.background import BackgroundTask

from app.accounts import passwords, users
from app.accounts.sessions import SESSION_COOKIE
from app.config import Settings
from app.db import Database
from app.errors import BadRequest
from app.mail import send_or_log
from app.portal import mails
from app.portal.attempts import require_attempt, require_mail
from app.portal.forms import FORM_COOKIE, read_form, text_of
from app.portal.i18n import Language, language_of
from app.portal.page import SEE_OTHER, PageRoute, render
from app.portal.session import database_of, hashing_of, note_person, settings_of

router = APIRouter(include_in_schema=False, route_class=PageRoute)


@router.get("/forgot")
async def show_forgot(request: Request) -> Response:
    """Asks for the address."""
    return render(request, "forgot.html", email="")


@router.post("/forgot")
async def forgot(request: Request) -> Response:
    """Mails a link, if anybody has the address.

    Raises:
        PermissionDenied: The form is not genuine.
        RateLimited: Too many were asked for from here, or for this address.
    """
    form = await read_form(request, FORM_COOKIE)
    await require_attempt(request, "forgot")
    try:
        email = users.checked_email(text_of(form, "email"))
    except BadRequest as error:
        problem = language_of(request).told(error)
        return render(request, "forgot.html", error.status, email=text_of(form, "email"), problem=problem)
    await require_mail(request, email)
    response = render(request, "forgot_sent.html", email=email)
    response.background = BackgroundTask(
        _send_link, settings_of(request), database_of(request), email, language_of(request)
    )
    return response


@router.get("/reset")
async def show_reset(request: Request) -> Response:
    """Asks for the new password.

    Raises:
        NotFound: The link was used or is too old.
    """
    token = request.query_params.get("token", "")
    async with database_of(request).begin() as connection:
        reset = await passwords.find_reset(connection, token, datetime.now(UTC))
    return render(request, "reset.html", link=token, email=reset.email)


@router.post("/reset")
async def reset_password(request: Request) -> Response:
    """Sets the new password and ends every session of the person; then they sign in.

    Raises:
        PermissionDenied: The form is not genuine.
        RateLimited: Too many were tried.
        NotFound: The link was used or is too old.
    """
    form = await read_form(request, FORM_COOKIE)
    await require_attempt(request, "reset")
    link, now = text_of(form, "link"), datetime.now(UTC)
    async with database_of(request).begin() as connection:
        reset = await passwords.find_reset(connection, link, now)
    try:
        password_hash = await hashing_of(request).hash(str(form.get("password", "")), reset.email)
    except BadRequest as error:
        problem = language_of(request).told(error)
        return render(request, "reset.html", error.status, link=link, email=reset.email, problem=problem)
    async with database_of(request).begin() as connection:
        await passwords.use_reset(connection, link, password_hash, now)
        await note_person(request, connection, reset.user_id, "password.reset")
    response = RedirectResponse("/login?done=reset", SEE_OTHER)
    response.delete_cookie(SESSION_COOKIE)
    response.background = password_mail(request, reset.email)
    return response


def password_mail(request: Request, email: str) -> BackgroundTask:
    """Tells somebody that their password was changed."""
    settings = settings_of(request)
    mail = mails.password_changed(language_of(request), email, f"{settings.portal_url}/forgot")
    return BackgroundTask(send_or_log, settings, mail)


async def _send_link(settings: Settings, database: Database, email: str, language: Language) -> None:
    async with database.begin() as connection:
        asked = await passwords.ask_reset(connection, email, datetime.now(UTC))
    if asked is not None:
        token, login = asked
        link = f"{settings.portal_url}/reset?token={token.text}"
        await send_or_log(settings, mails.reset_password(language, login.email, link))
