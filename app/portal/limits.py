"""/limits: what an organisation may use in a month, how far it has got, and the cap that it sets itself."""

from datetime import UTC, datetime

from fastapi import APIRouter, Request, Response
from fastapi.responses import RedirectResponse

from app.billing.amounts import written
from app.billing.standing import read_standing, set_own_spend_cap
from app.errors import BadRequest
from app.portal.forms import read_form, text_of, usd_of
from app.portal.i18n import language_of
from app.portal.page import SEE_OTHER, PageRoute, render
from app.portal.session import database_of, note, require_user

router = APIRouter(include_in_schema=False, route_class=PageRoute)


@router.get("/limits")
async def show_limits(request: Request) -> Response:
    """Quota, cap and rates."""
    await require_user(request, "limits.read")
    return await _page(request)


@router.post("/limits")
async def save_cap(request: Request) -> Response:
    """Sets the cap, or takes it away."""
    user = await require_user(request, "limits.write")
    form = await read_form(request)
    try:
        cap = usd_of(form, "spend_cap")
        async with database_of(request).begin() as connection:
            before = await set_own_spend_cap(connection, user.org_id, cap)
            told = {"spend_cap": cap}
            target = f"org:{user.org_id}"
            await note(request, connection, user, "cap.set", target, before={"spend_cap": before}, after=told)
    except BadRequest as error:
        return await _page(request, text_of(form, "spend_cap"), language_of(request).told(error))
    return RedirectResponse("/limits?done=saved", SEE_OTHER)


async def _page(request: Request, typed: str | None = None, problem: str = "") -> Response:
    async with database_of(request).begin() as connection:
        standing = await read_standing(connection, request.state.user.org_id, datetime.now(UTC))
    cap = "" if standing.own_spend_cap is None else written(standing.own_spend_cap)
    return render(
        request,
        "limits.html",
        400 if problem else 200,
        standing=standing,
        cap=cap if typed is None else typed,
        problem=problem,
        done=request.query_params.get("done"),
    )
