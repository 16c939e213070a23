"""/members: who belongs to the organisation, as what, and who is invited."""

from datetime import UTC, datetime
from uuid import UUID

from fastapi import APIRouter, Request, Response
from fastapi.responses import RedirectResponse

from app.accounts import invitations, mailings, members
from app.accounts.permissions import PERMISSIONS, allows
from app.accounts.sessions import PortalUser
from app.accounts.users import checked_email
from app.errors import AppError, BadRequest, Conflict, NotFound
from app.portal import mails
from app.portal.attempts import require_invitation, require_mail
from app.portal.forms import read_form, text_of
from app.portal.i18n import language_of
from app.portal.page import SEE_OTHER, PageRoute, render
from app.portal.session import database_of, note, require_user

router = APIRouter(include_in_schema=False, route_class=PageRoute)


@router.get("/members")
async def list_members(request: Request) -> Response:
    """Members and open invitations."""
    user = await require_user(request, "members.read")
    return await _page(request, user)


@router.post("/members/invite")
async def invite(request: Request) -> Response:
    """Invites an address by mail; a second time replaces the link of the first.

    Raises:
        PermissionDenied: Only owners make owners.
        RateLimited: Too many invitations, or mails to this address.
    """
    user = await require_user(request, "members.write")
    form = await read_form(request)
    email, role = text_of(form, "email"), text_of(form, "role")
    language, now = language_of(request), datetime.now(UTC)
    try:
        address = checked_email(email)
        await require_invitation(request, user.org_id)
        await require_mail(request, address)
        async with database_of(request).begin() as connection:
            invited = await invitations.invite(connection, user, email, role, now)
            await mailings.queue(connection, "invitation", invited.email, language.code, now, invited.id)
            after = {"email": invited.email, "role": role}
            await note(request, connection, user, "member.invite", f"invitation:{invited.id}", after=after)
    except (BadRequest, Conflict) as error:
        return await _page(request, user, email, role, error)
    return RedirectResponse("/members?done=invited", SEE_OTHER)


@router.post("/members/{user_id}/role")
async def change_role(request: Request, user_id: str) -> Response:
    """Gives a member another role, from their next request on.

    Raises:
        PermissionDenied: Only owners make and unmake owners.
        NotFound: Nobody of this id is a member.
        Conflict: The organisation would be left without an owner.
    """
    user = await require_user(request, "members.write")
    form = await read_form(request)
    role, id = text_of(form, "role"), _id_of(user_id, "There is no such member in this organisation.")
    async with database_of(request).begin() as connection:
        old = await members.change_role(connection, user, id, role)
        before, after = {"role": old}, {"role": role}
        await note(request, connection, user, "member.change_role", f"user:{id}", before=before, after=after)
    return RedirectResponse("/members?done=saved", SEE_OTHER)


@router.post("/members/{user_id}/remove")
async def remove_member(request: Request, user_id: str) -> Response:
    """Ends a membership, from their next request on; keys that they made stay.

    Raises:
        PermissionDenied: Only owners remove owners.
        NotFound: Nobody of this id is a member.
        Conflict: The organisation would be left without an owner.
    """
    user = await require_user(request, "members.write")
    await read_form(request)
    id = _id_of(user_id, "There is no such member in this organisation.")
    async with database_of(request).begin() as connection:
        role = await members.remove_member(connection, user, id)
        await note(request, connection, user, "member.remove", f"user:{id}", before={"role": role})
    return RedirectResponse("/members?done=removed", SEE_OTHER)


@router.post("/members/invitations/{invitation_id}/withdraw")
async def withdraw(request: Request, invitation_id: str) -> Response:
    """Takes an invitation back.

    Raises:
        PermissionDenied: Only owners withdraw an owner's.
        NotFound: There is no such invitation.
    """
    user = await require_user(request, "members.write")
    await read_form(request)
    id = _id_of(invitation_id, "This invitation was accepted or withdrawn already.")
    async with database_of(request).begin() as connection:
        invited = await invitations.withdraw(connection, user, id)
        before = {"email": invited.email, "role": invited.role}
        await note(request, connection, user, "member.withdraw_invitation", f"invitation:{id}", before=before)
    return RedirectResponse("/members?done=withdrawn", SEE_OTHER)


async def _page(
    request: Request, user: PortalUser, email: str = "", role: str = "developer", error: AppError | None = None
) -> Response:
    now, language = datetime.now(UTC), language_of(request)
    async with database_of(request).begin() as connection:
        listed = await members.list_members(connection, user.org_id)
        invited = await invitations.list_invitations(connection, user.org_id, now)
    return render(
        request,
        "members.html",
        200 if error is None else error.status,
        members=listed,
        invitations=invited,
        roles=[(name, mails.role_name(language, name)) for name in PERMISSIONS if _may_give(user, name)],
        role_names={name: mails.role_name(language, name) for name in PERMISSIONS},
        may_change={member.user_id for member in listed if _may_give(user, member.role)},
        now=now,
        email=email,
        role=role,
        problems={} if error is None else {error.param or "": language.told(error)},
        done=request.query_params.get("done"),
    )


def _may_give(user: PortalUser, role: str) -> bool:
    return allows(user.role, "owners.write" if role == members.OWNER else "members.write")


def _id_of(text: str, missing: str) -> UUID:
    try:
        return UUID(text)
    except ValueError:
        raise NotFound(missing, code="not_found") from None
