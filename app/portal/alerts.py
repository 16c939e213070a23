"""/alerts: who is told how much of the limits is used up, and by which webhooks."""

from datetime import UTC, datetime
from uuid import UUID

from fastapi import APIRouter, Request, Response
from fastapi.responses import RedirectResponse

from app.alerts import endpoints, notifications, thresholds
from app.errors import BadRequest, Conflict, NotFound
from app.portal.forms import read_form, text_of
from app.portal.i18n import language_of
from app.portal.page import SEE_OTHER, PageRoute, render
from app.portal.session import database_of, note, require_user, settings_of

router = APIRouter(include_in_schema=False, route_class=PageRoute)


@router.get("/alerts")
async def show_alerts(request: Request) -> Response:
    """What was told lately, and the addresses that are called."""
    await require_user(request, "limits.read")
    return await _page(request)


@router.post("/alerts/webhooks")
async def add_webhook(request: Request) -> Response:
    """Calls another address from now on."""
    user = await require_user(request, "limits.write")
    form = await read_form(request)
    try:
        async with database_of(request).begin() as connection:
            added = await endpoints.add_endpoint(connection, user.org_id, text_of(form, "url"), user.user_id)
            after = {"url": endpoints.checked_url(text_of(form, "url"))}
            await note(request, connection, user, "webhook.add", f"webhook:{added}", after=after)
    except (BadRequest, Conflict) as error:
        return await _page(request, text_of(form, "url"), language_of(request).told(error))
    return RedirectResponse("/alerts?done=added", SEE_OTHER)


@router.post("/alerts/webhooks/{endpoint_id}/remove")
async def remove_webhook(request: Request, endpoint_id: str) -> Response:
    """Calls an address no more.

    Raises:
        NotFound: The organisation has no such address.
    """
    user = await require_user(request, "limits.write")
    await read_form(request)
    id = _endpoint_id(endpoint_id)
    async with database_of(request).begin() as connection:
        await endpoints.remove_endpoint(connection, user.org_id, id)
        await note(request, connection, user, "webhook.remove", f"webhook:{id}")
    return RedirectResponse("/alerts?done=removed", SEE_OTHER)


@router.post("/alerts/webhooks/{endpoint_id}/renew")
async def renew_webhook(request: Request, endpoint_id: str) -> Response:
    """Signs with another secret from now on.

    Raises:
        NotFound: The organisation has no such address.
    """
    user = await require_user(request, "limits.write")
    await read_form(request)
    id = _endpoint_id(endpoint_id)
    async with database_of(request).begin() as connection:
        await endpoints.renew_secret(connection, user.org_id, id)
        await note(request, connection, user, "webhook.renew", f"webhook:{id}")
    return RedirectResponse("/alerts?done=renewed", SEE_OTHER)


@router.post("/alerts/webhooks/{endpoint_id}/test")
async def test_webhook(request: Request, endpoint_id: str) -> Response:
    """Calls an address with an event that means nothing.

    Raises:
        NotFound: The organisation has no such address.
    """
    user = await require_user(request, "limits.write")
    await read_form(request)
    async with database_of(request).begin() as connection:
        await notifications.queue_test(connection, user.org_id, _endpoint_id(endpoint_id), datetime.now(UTC))
    return RedirectResponse("/alerts?done=tested", SEE_OTHER)


async def _page(request: Request, typed: str = "", problem: str = "") -> Response:
    org_id = request.state.user.org_id
    async with database_of(request).begin() as connection:
        told = await thresholds.list_alerts(connection, org_id)
        addresses = await endpoints.list_endpoints(connection, org_id)
        sent = await notifications.list_notifications(connection, org_id)
    settings = settings_of(request)
    return render(
        request,
        "alerts.html",
        400 if problem else 200,
        alerts=told,
        endpoints=addresses,
        secrets={one.id: endpoints.secret_of(settings, one.id, one.secret_version) for one in addresses},
        urls={str(one.id): one.url for one in addresses},
        notifications=sent,
        thresholds=thresholds.THRESHOLDS,
        typed=typed,
        problem=problem,
        done=request.query_params.get("done"),
    )


def _endpoint_id(value: str) -> UUID:
    try:
        return UUID(value)
    except ValueError:
        raise NotFound("There is no such webhook address.", code="webhook_not_found") from None
