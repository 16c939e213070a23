"""/organizations: those that a person belongs to; to look at another, to found one, to leave.

For whoever is signed in: a person without any organisation is asked here to found one.
"""

from uuid import UUID

from fastapi import APIRouter, Request, Response
from fastapi.responses import RedirectResponse

from app.accounts import members, sessions, sign_ups
from app.accounts.orgs import checked_name, orgs_of
from app.accounts.permissions import PERMISSIONS
from app.accounts.sessions import Person
from app.errors import BadRequest, NotFound
from app.portal import mails
from app.portal.attempts import require_founding
from app.portal.forms import text_of
from app.portal.i18n import language_of
from app.portal.page import HOME, SEE_OTHER, PageRoute, render
from app.portal.session import database_of, note, read_form_of, require_person, require_user

router = APIRouter(include_in_schema=False, route_class=PageRoute)


@router.get("/organizations")
async def list_organizations(request: Request) -> Response:
    """The person's organisations, and the form for another."""
    return await _page(request, await require_person(request))


@router.post("/organizations")
async def found_organization(request: Request) -> Response:
    """Founds an organisation on the free plan, and looks at it.

    Raises:
        RateLimited: Too many within a month.
    """
    person = await require_person(request)
    form = await read_form_of(request, person)
    name = text_of(form, "name")
    try:
        checked_name(name)
        await require_founding(request, person.user_id)
        async with database_of(request).begin() as connection:
            org_id = await sign_ups.found_org(connection, person.user_id, name)
            await sessions.choose_org(connection, person, org_id)
            user = await sessions.reload(connection, person)
            after = {"name": user.org_name, "plan": sign_ups.PLAN}
            await note(request, connection, user, "org.sign_up", f"org:{org_id}", after=after)
    except BadRequest as error:
        return await _page(request, person, name, language_of(request).told(error))
    return RedirectResponse(HOME, SEE_OTHER)


@router.post("/organizations/switch")
async def switch_organization(request: Request) -> Response:
    """Looks at another organisation of the person, in this session.

    Raises:
        NotFound: They do not belong to it.
    """
    person = await require_person(request)
    form = await read_form_of(request, person)
    async with database_of(request).begin() as connection:
        await sessions.choose_org(connection, person, _id_of(text_of(form, "org")))
    return RedirectResponse(HOME, SEE_OTHER)


@router.post("/organizations/leave")
async def leave_organization(request: Request) -> Response:
    """Ends the person's own membership in the organisation that they look at.

    Raises:
        Conflict: Nobody else owns it.
    """
    user = await require_user(request, None)
    await read_form_of(request, user)
    async with database_of(request).begin() as connection:
        role = await members.remove_member(connection, user, user.user_id)
        await note(request, connection, user, "member.leave", f"user:{user.user_id}", before={"role": role})
    return RedirectResponse("/organizations", SEE_OTHER)


async def _page(request: Request, person: Person, name: str = "", problem: str = "") -> Response:
    async with database_of(request).begin() as connection:
        belongings = await orgs_of(connection, person.user_id)
    status = 400 if problem else 200
    language = language_of(request)
    return render(
        request,
        "organizations.html",
        status,
        person=person,
        belongings=belongings,
        role_names={name: mails.role_name(language, name) for name in PERMISSIONS},
        org_name=name,
        problem=problem,
    )


def _id_of(text: str) -> UUID:
    try:
        return UUID(text)
    except ValueError:
        raise NotFound("You do not belong to this organisation.", code="organization_not_found") from None
