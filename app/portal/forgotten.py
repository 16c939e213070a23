"""/forgot and /reset: a new password for who reads the mail of their address.

Asking looks the same for every address. Whether it has a login is looked up only when the
mail is sent, so that nobody can time it.
"""

from datetime import UTC, datetime

from fastapi import APIRouter, Request, Response
from fastapi.responses import RedirectResponse

from app.accounts import mailings, passwords, users
from app.accounts.sessions import SESSION_COOKIE
from app.errors import BadRequest
from app.portal.attempts import require_attempt, require_mail
from app.portal.forms import FORM_COOKIE, read_form, text_of
from app.portal.i18n import language_of
from app.portal.page import SEE_OTHER, PageRoute, render
from app.portal.session import database_of, hashing_of, note_person

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
    async with database_of(request).begin() as connection:
        await mailings.queue(connection, "reset", email, language_of(request).code, datetime.now(UTC))
    return render(request, "forgot_sent.html", email=email)


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
        await mailings.queue(connection, "password_changed", reset.email, language_of(request).code, now)
        await note_person(request, connection, reset.user_id, "password.reset")
    response = RedirectResponse("/login?done=reset", SEE_OTHER)
    response.delete_cookie(SESSION_COOKIE)
    return response
