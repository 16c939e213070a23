"""/security: a person's own password, sessions and second factor.

Of the person, not of an organisation: everybody who is signed in may see and change it,
and nobody else. What weakens an account asks for the password again, so that a session
that was left open somewhere is not enough.
"""

from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from fastapi import APIRouter, Request, Response
from fastapi.responses import RedirectResponse
from sqlalchemy.ext.asyncio import AsyncConnection

from app.accounts import mailings, passwords, second_factor, sessions, users
from app.accounts.sessions import SESSION_COOKIE, Person
from app.errors import AppError, BadRequest, NotFound, PermissionDenied
from app.portal.attempts import require_attempt
from app.portal.devices import device_name
from app.portal.forms import text_of
from app.portal.i18n import language_of
from app.portal.page import SEE_OTHER, PageRoute, render
from app.portal.session import database_of, hashing_of, note_person, read_form_of, require_person, settings_of

_WRONG_PASSWORD = "The password is wrong."  # noqa: S105 - a sentence
_WRONG_CODE = "The code is wrong, was used already, or is too old."

router = APIRouter(include_in_schema=False, route_class=PageRoute)


@router.get("/security")
async def show_security(request: Request) -> Response:
    """Password, second factor and the list of sessions."""
    return await _page(request, await require_person(request))


@router.post("/security/password")
async def change_password(request: Request) -> Response:
    """Replaces the password and ends the other sessions.

    Raises:
        RateLimited: Too many wrong ones.
    """
    person = await require_person(request)
    form = await read_form_of(request, person)
    try:
        await _require_password(request, person, str(form.get("current", "")), "current")
        password_hash = await hashing_of(request).hash(str(form.get("password", "")), person.email)
    except (BadRequest, PermissionDenied) as error:
        return await _page(request, person, error)
    async with database_of(request).begin() as connection:
        await passwords.change_password(connection, person.user_id, password_hash, keep_session=person.session_id)
        await _queue_mail(request, connection, person, "password_changed")
        await note_person(request, connection, person.user_id, "password.change")
    return RedirectResponse("/security?done=password", SEE_OTHER)


@router.post("/security/sessions/end")
async def end_session(request: Request) -> Response:
    """Ends one of the person's sessions.

    Raises:
        NotFound: It is not theirs, or it has ended.
    """
    person = await require_person(request)
    form = await read_form_of(request, person)
    async with database_of(request).begin() as connection:
        await sessions.end_session(connection, person.user_id, _id_of(text_of(form, "session")))
        await note_person(request, connection, person.user_id, "session.end")
    return RedirectResponse("/security?done=ended", SEE_OTHER)


@router.post("/security/sessions/end-all")
async def sign_out_everywhere(request: Request) -> Response:
    """Ends every session of the person, this one as well."""
    person = await require_person(request)
    await read_form_of(request, person)
    async with database_of(request).begin() as connection:
        await sessions.end_sessions(connection, person.user_id)
        await note_person(request, connection, person.user_id, "session.end_all")
    response = RedirectResponse("/login?done=everywhere", SEE_OTHER)
    response.delete_cookie(SESSION_COOKIE)
    return response


@router.post("/security/second-factor")
async def start_second_factor(request: Request) -> Response:
    """Begins to set an authenticator up.

    Raises:
        Conflict: There is one in use.
        RateLimited: Too many wrong passwords.
    """
    person = await require_person(request)
    form = await read_form_of(request, person)
    try:
        await _require_password(request, person, str(form.get("password", "")), "factor_password")
    except PermissionDenied as error:
        return await _page(request, person, error)
    async with database_of(request).begin() as connection:
        await second_factor.start(connection, person.user_id, datetime.now(UTC))
    return RedirectResponse("/security/second-factor", SEE_OTHER)


@router.get("/security/second-factor")
async def show_second_factor(request: Request) -> Response:
    """What the authenticator has to be told, while it is being set up."""
    return await _setup_page(request, await require_person(request))


@router.post("/security/second-factor/confirm")
async def confirm_second_factor(request: Request) -> Response:
    """Turns the second factor on, and shows the recovery codes once.

    Raises:
        Conflict: Nothing was begun.
        RateLimited: Too many wrong codes.
    """
    person = await require_person(request)
    form = await read_form_of(request, person)
    await require_attempt(request, "code", str(person.user_id))
    now = datetime.now(UTC)
    async with database_of(request).begin() as connection:
        code = text_of(form, "code")
        codes = await second_factor.confirm(connection, settings_of(request), person.user_id, code, now)
        if codes is not None:
            await _queue_mail(request, connection, person, "second_factor_on")
            await note_person(request, connection, person.user_id, "second_factor.on")
    if codes is None:
        return await _setup_page(request, person, _WRONG_CODE)
    return render(request, "recovery_codes.html", codes=codes)


@router.post("/security/second-factor/off")
async def remove_second_factor(request: Request) -> Response:
    """Turns the second factor off: takes the password and a code.

    Raises:
        RateLimited: Too many wrong ones.
    """
    person = await require_person(request)
    form = await read_form_of(request, person)
    try:
        await _require_password(request, person, str(form.get("password", "")), "factor_password")
        await _require_code(request, person, text_of(form, "code"))
    except PermissionDenied as error:
        return await _page(request, person, error)
    async with database_of(request).begin() as connection:
        await second_factor.remove(connection, person.user_id)
        await _queue_mail(request, connection, person, "second_factor_off")
        await note_person(request, connection, person.user_id, "second_factor.off")
    return RedirectResponse("/security?done=factor-off", SEE_OTHER)


@router.post("/security/recovery-codes")
async def renew_recovery_codes(request: Request) -> Response:
    """New recovery codes in the place of the old ones, shown once: takes a code.

    Raises:
        RateLimited: Too many wrong ones.
    """
    person = await require_person(request)
    form = await read_form_of(request, person)
    try:
        await _require_code(request, person, text_of(form, "code"), "renew_code")
    except PermissionDenied as error:
        return await _page(request, person, error)
    async with database_of(request).begin() as connection:
        codes = await second_factor.renew_recovery_codes(connection, person.user_id)
        await note_person(request, connection, person.user_id, "recovery_codes.renew")
    return render(request, "recovery_codes.html", codes=codes)


async def _page(request: Request, person: Person, error: AppError | None = None) -> Response:
    now = datetime.now(UTC)
    async with database_of(request).begin() as connection:
        shown: dict[str, Any] = {
            "sessions": await sessions.list_sessions(connection, person.user_id, now),
            "has_factor": await second_factor.is_on(connection, person.user_id),
            "num_codes": await second_factor.num_recovery_codes(connection, person.user_id),
        }
    problems = {} if error is None else {error.param: language_of(request).told(error)}
    status = 200 if error is None else error.status
    done = request.query_params.get("done")
    shown |= {"person": person, "now": now, "problems": problems, "done": done, "device_name": device_name}
    return render(request, "security.html", status, **shown)


async def _setup_page(request: Request, person: Person, problem: str = "") -> Response:
    async with database_of(request).begin() as connection:
        now = datetime.now(UTC)
        setup = await second_factor.find_setup(connection, settings_of(request), person.user_id, person.email, now)
    if setup is None:
        return RedirectResponse("/security", SEE_OTHER)
    shown = language_of(request).gettext(problem) if problem else ""
    return render(request, "second_factor.html", 403 if problem else 200, setup=setup, problem=shown)


async def _require_password(request: Request, person: Person, password: str, param: str) -> None:
    """Asks for the password again.

    Raises:
        PermissionDenied: It is wrong; ``param`` names the field.
        RateLimited: Too many wrong ones.
    """
    await require_attempt(request, "password", str(person.user_id))
    async with database_of(request).begin() as connection:
        login = await users.login_of(connection, person.user_id)
    if not await hashing_of(request).fits(login.password_hash, password):
        raise PermissionDenied(_WRONG_PASSWORD, param=param, code="wrong_password")


async def _require_code(request: Request, person: Person, code: str, param: str = "factor_code") -> None:
    """Asks for the second factor.

    Raises:
        PermissionDenied: It is wrong; ``param`` names the field.
        RateLimited: Too many wrong ones.
    """
    await require_attempt(request, "code", str(person.user_id))
    async with database_of(request).begin() as connection:
        now = datetime.now(UTC)
        is_right = await second_factor.accepts(connection, settings_of(request), person.user_id, code, now)
    if not is_right:
        raise PermissionDenied(_WRONG_CODE, param=param, code="wrong_code")


async def _queue_mail(request: Request, connection: AsyncConnection, person: Person, kind: str) -> None:
    await mailings.queue(connection, kind, person.email, language_of(request).code, datetime.now(UTC))


def _id_of(text: str) -> UUID:
    try:
        return UUID(text)
    except ValueError:
        raise NotFound("This session has ended already.", code="session_not_found") from None
