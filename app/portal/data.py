"""/data: what is kept of an organisation's requests, everything in one file, and the end of it all."""

from datetime import UTC, datetime
from uuid import UUID

from fastapi import APIRouter, Request, Response
from fastapi.responses import RedirectResponse, StreamingResponse

from app.errors import BadRequest, Conflict, NotFound
from app.portal.forms import read_form, text_of, whole_of
from app.portal.i18n import language_of
from app.portal.page import SEE_OTHER, PageRoute, render
from app.portal.session import database_of, note, require_user
from app.privacy import deletion, prompts
from app.privacy.export import export

router = APIRouter(include_in_schema=False, route_class=PageRoute)


@router.get("/data")
async def show_data(request: Request) -> Response:
    """What is kept, and what can be done with it."""
    await require_user(request, "settings.read")
    return await _page(request)


@router.post("/data/prompts")
async def keep_prompts(request: Request) -> Response:
    """Keeps requests and answers from now on, or no more."""
    user = await require_user(request, "settings.write")
    form = await read_form(request)
    try:
        days = whole_of(form, "days") if text_of(form, "keep") == "yes" else None
        if text_of(form, "keep") == "yes" and days is None:
            raise BadRequest("Please enter a whole number.", param="days")
        async with database_of(request).begin() as connection:
            before = await prompts.retention(connection, user.org_id)
            await prompts.set_retention(connection, user.org_id, days)
            target, after = f"org:{user.org_id}", {"prompt_retention_days": days}
            await note(
                *(request, connection, user, "prompts.keep", target),
                before={"prompt_retention_days": before},
                after=after,
            )
    except BadRequest as error:
        return await _page(request, {"days": language_of(request).told(error)})
    return RedirectResponse("/data?done=saved", SEE_OTHER)


@router.get("/data/requests")
async def show_request(request: Request) -> Response:
    """A request that was kept, as it was sent.

    Raises:
        NotFound: Nothing is kept under this id.
    """
    user = await require_user(request, "settings.read")
    async with database_of(request).begin() as connection:
        kept = await prompts.find_stored(connection, user.org_id, _request_id(request.query_params.get("id", "")))
    if kept is None:
        raise _not_kept()
    return render(request, "kept_request.html", kept=kept, sent=_readable(kept.request), answer=_readable(kept.answer))


@router.post("/data/export")
async def export_data(request: Request) -> Response:
    """Everything in one file; made while it is sent."""
    user = await require_user(request, "settings.write")
    await read_form(request)
    now = datetime.now(UTC)
    async with database_of(request).begin() as connection:
        await note(request, connection, user, "data.export", f"org:{user.org_id}")
    name = f"tollgate-{now:%Y%m%d-%H%M%S}.zip"
    headers = {"content-disposition": f'attachment; filename="{name}"', "cache-control": "no-store"}
    return StreamingResponse(
        export(database_of(request), user.org_id, now), media_type="application/zip", headers=headers
    )


@router.post("/data/delete")
async def delete_organisation(request: Request) -> Response:
    """Ends the organisation; its name has to be typed."""
    user = await require_user(request, "org.delete")
    form = await read_form(request)
    say = language_of(request).gettext
    if text_of(form, "name") != user.org_name:
        return await _page(request, {"name": say("This is not the name of the organisation.")})
    try:
        async with database_of(request).begin() as connection:
            delete_at = await deletion.request_deletion(connection, user.org_id, datetime.now(UTC))
            await note(request, connection, user, "org.delete", f"org:{user.org_id}", after={"delete_at": delete_at})
    except Conflict as error:
        return await _page(request, {"name": language_of(request).told(error)})
    return RedirectResponse("/organizations", SEE_OTHER)


async def _page(request: Request, problems: dict[str, str] | None = None) -> Response:
    async with database_of(request).begin() as connection:
        days = await prompts.retention(connection, request.state.user.org_id)
    return render(
        request,
        "data.html",
        400 if problems else 200,
        days=days,
        max_days=prompts.MAX_DAYS,
        problems=problems or {},
        done=request.query_params.get("done"),
    )


def _readable(body: bytes) -> str:
    return body.decode("utf-8", "replace")


def _request_id(value: str) -> UUID:
    try:
        return UUID(value.strip())
    except ValueError:
        raise _not_kept() from None


def _not_kept() -> NotFound:
    return NotFound("Nothing is kept of a request with this id.", code="request_not_kept")
