"""/invitation: what the link of an invitation leads to.

The link shows that somebody reads the mail of the invited address. Whoever has a login
there signs in first; whoever has none chooses a password and has one then.
"""

from datetime import UTC, datetime
from uuid import UUID

from fastapi import APIRouter, Request, Response
from fastapi.responses import RedirectResponse
from sqlalchemy.ext.asyncio import AsyncConnection

from app.accounts import invitations, sessions, users
from app.accounts.invitations import Invited
from app.accounts.sessions import Person
from app.errors import BadRequest, Conflict
from app.portal import mails
from app.portal.attempts import require_attempt
from app.portal.forms import FORM_COOKIE, read_form, text_of
from app.portal.i18n import language_of
from app.portal.page import HOME, SEE_OTHER, PageRoute, render
from app.portal.session import (
    database_of,
    find_person,
    hashing_of,
    note,
    note_person,
    read_form_of,
    require_person,
)
from app.portal.sign_in import start_session

router = APIRouter(include_in_schema=False, route_class=PageRoute)


@router.get("/invitation")
async def show_invitation(request: Request) -> Response:
    """What the link invites to, and the next step for who opens it.

    Raises:
        NotFound: It was used, withdrawn, or is too old.
    """
    person = await find_person(request)
    return await _page(request, person, request.query_params.get("token", ""))


@router.post("/invitation/accept")
async def accept(request: Request) -> Response:
    """Joins as the person who is signed in.

    Raises:
        NotFound: It was used, withdrawn, or is too old.
        PermissionDenied: It is for somebody else.
    """
    person = await require_person(request)
    form = await read_form_of(request, person)
    async with database_of(request).begin() as connection:
        invited = await invitations.accept(
            connection, person.user_id, person.email, text_of(form, "link"), datetime.now(UTC)
        )
        await sessions.choose_org(connection, person, invited.org_id)
        user = await sessions.reload(connection, person)
        after = {"email": invited.email, "role": user.role}
        await note(request, connection, user, "member.join", f"user:{person.user_id}", after=after)
    return RedirectResponse(HOME, SEE_OTHER)


@router.post("/invitation/join")
async def join(request: Request) -> Response:
    """Joins as a new person, with a password.

    Raises:
        NotFound: It was used, withdrawn, or is too old.
        Conflict: The address has a login: sign in with it.
        RateLimited: Too many were tried.
    """
    form = await read_form(request, FORM_COOKIE)
    await require_attempt(request, "join")
    link = text_of(form, "link")
    now = datetime.now(UTC)
    async with database_of(request).begin() as connection:
        invited = await invitations.find_invitation(connection, link, now)
    try:
        password_hash = await hashing_of(request).hash(str(form.get("password", "")), invited.email)
    except BadRequest as error:
        return await _page(request, None, link, language_of(request).told(error))
    async with database_of(request).begin() as connection:
        user_id = await _join(connection, invited, link, password_hash, language_of(request).code, now)
        after = {"email": invited.email, "role": invited.role}
        await note_person(request, connection, user_id, "member.join", after=after)
        return await start_session(request, connection, user_id, now, org_id=invited.org_id)


async def _join(
    connection: AsyncConnection, invited: Invited, link: str, password_hash: str, language: str, now: datetime
) -> UUID:
    try:
        user_id = await users.add_user(connection, invited.email, password_hash, language)
    except Conflict:
        raise Conflict("There is a login with this e-mail address. Please sign in first.", code="has_login") from None
    await invitations.accept(connection, user_id, invited.email, link, now)
    return user_id


async def _page(request: Request, person: Person | None, link: str, problem: str = "") -> Response:
    async with database_of(request).begin() as connection:
        invited = await invitations.find_invitation(connection, link, datetime.now(UTC))
        login = await users.find_login(connection, invited.email)
    return render(
        request,
        "invitation.html",
        400 if problem else 200,
        invited=invited,
        role=mails.role_name(language_of(request), invited.role),
        person=person,
        has_login=login is not None,
        link=link,
        problem=problem,
    )
