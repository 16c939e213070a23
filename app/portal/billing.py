"""The pages of plan and billing: what is bought, what runs up, what was invoiced.

What they show is read from our own rows, so they work while Stripe is away and say so.
What they change is changed at Stripe, within the deadline of ``app.billing.gateway``; a card
is typed in there, never here.
"""

from datetime import UTC, datetime, timedelta

from fastapi import APIRouter, Request, Response
from fastapi.responses import RedirectResponse

from app.accounts.sessions import PortalUser
from app.billing import account, catalog, changes, checkout
from app.billing.changes import Desk
from app.billing.checkout import Buyer
from app.billing.gateway import Gateway
from app.errors import BadRequest, StripeUnavailable
from app.portal.forms import read_form, text_of
from app.portal.page import SEE_OTHER, PageRoute, render
from app.portal.session import database_of, note, require_user, settings_of

READ = "billing.read"
WRITE = "billing.write"
MAX_LOOKS = 20
"""So often the page looks by itself for a plan that was paid for, every three seconds."""
_MAX_DIGITS = 9

router = APIRouter(include_in_schema=False, route_class=PageRoute)


@router.get("/billing")
async def show(request: Request) -> Response:
    """Plan, running period, credit and invoices."""
    user = await require_user(request, READ)
    async with database_of(request).begin() as connection:
        standing = await account.read_account(connection, user.org_id, datetime.now(UTC))
        invoices = await account.read_invoices(connection, user.org_id)
        may_try = await checkout.may_try(connection, user.org_id, user.email)
    bought = request.query_params.get("bought")
    # Stripe's news of it may take a moment longer than the browser.
    is_awaited = bought == "subscription" and standing.held is None
    look = _look(request.query_params.get("look", ""))
    return render(
        request,
        "billing.html",
        account=standing,
        invoices=invoices,
        plans=[plan for plan in catalog.LISTED if plan.intervals],
        may_try=may_try,
        credit_amounts=catalog.CREDIT_CENTS,
        grace_days=settings_of(request).billing_grace_days,
        is_sold=request.app.state.gateway is not None,
        done=request.query_params.get("done"),
        bought=bought,
        is_awaited=is_awaited,
        next_look=look + 1 if is_awaited and look < MAX_LOOKS else None,
    )


@router.get("/billing/change")
async def preview(request: Request) -> Response:
    """What another plan would cost now, with a button to confirm."""
    user = await require_user(request, WRITE)
    name, interval = (request.query_params.get(key, "") for key in ("plan", "interval"))
    seen = await changes.preview(_desk(request, user), name, interval)
    return render(request, "billing_change.html", preview=seen, change=seen.change)


@router.get("/billing/invoices/{invoice_id}")
async def show_invoice(request: Request, invoice_id: str) -> Response:
    """An invoice, and the usage that its metered lines bill."""
    user = await require_user(request, READ)
    async with database_of(request).begin() as connection:
        invoice = await account.read_invoice(connection, user.org_id, invoice_id)
        period = account.metered_period(invoice.lines)
        used = [] if period is None else await account.read_used(connection, user.org_id, *period)
    total = sum(one.cost for one in used)
    return render(request, "billing_invoice.html", invoice=invoice, period=period, used=used, total=total)


@router.post("/billing/subscribe")
async def subscribe(request: Request) -> Response:
    """Sends the browser to Stripe to pay for a plan."""
    user = await require_user(request, WRITE)
    form = await read_form(request)
    name, interval = text_of(form, "plan"), text_of(form, "interval")
    url = await checkout.subscribe(
        database_of(request),
        gateway_of(request),
        settings_of(request),
        _buyer(request, user),
        name,
        interval,
        datetime.now(UTC),
    )
    await _note(request, user, "checkout.open", plan=name, interval=interval)
    return _leave(request, url)


@router.post("/billing/credit")
async def buy_credit(request: Request) -> Response:
    """Sends the browser to Stripe to pay for prepaid credit."""
    user = await require_user(request, WRITE)
    cents = _whole(text_of(await read_form(request), "cents"))
    url = await checkout.buy_credit(
        database_of(request),
        gateway_of(request),
        settings_of(request),
        _buyer(request, user),
        cents,
        datetime.now(UTC),
    )
    await _note(request, user, "checkout.open", credit_cents=cents)
    return _leave(request, url)


@router.post("/billing/portal")
async def open_portal(request: Request) -> Response:
    """Sends the browser to Stripe's billing portal."""
    user = await require_user(request, WRITE)
    await read_form(request)
    return _leave(
        request,
        await checkout.open_portal(database_of(request), gateway_of(request), _buyer(request, user), datetime.now(UTC)),
    )


@router.post("/billing/change")
async def change(request: Request) -> Response:
    """Changes the plan."""
    user = await require_user(request, WRITE)
    form = await read_form(request)
    name, interval = text_of(form, "plan"), text_of(form, "interval")
    made = await changes.change_plan(_desk(request, user), name, interval)
    await _note(request, user, "subscription.change", plan=name, interval=interval, at=made.at or "now")
    return RedirectResponse(f"/billing?done={'plan' if made.at else 'change'}", SEE_OTHER)


@router.post("/billing/cancel")
async def cancel(request: Request) -> Response:
    """Lets the subscription end with what is paid for."""
    user = await require_user(request, WRITE)
    await read_form(request)
    await changes.cancel(_desk(request, user))
    await _note(request, user, "subscription.cancel")
    return RedirectResponse("/billing?done=cancel", SEE_OTHER)


@router.post("/billing/resume")
async def resume(request: Request) -> Response:
    """Withdraws the end, or the change, that was planned."""
    user = await require_user(request, WRITE)
    await read_form(request)
    await changes.resume(_desk(request, user))
    await _note(request, user, "subscription.resume")
    return RedirectResponse("/billing?done=resume", SEE_OTHER)


def gateway_of(request: Request) -> Gateway:
    """To Stripe.

    Raises:
        StripeUnavailable: No key is set here.
    """
    gateway: Gateway | None = request.app.state.gateway
    if gateway is None:
        raise StripeUnavailable("Billing is not set up on this installation.")
    return gateway


def _buyer(request: Request, user: PortalUser) -> Buyer:
    settings = settings_of(request)
    base_url = settings.portal_url if settings.public_url else str(request.base_url).rstrip("/")
    return Buyer(user.org_id, user.email, base_url)


def _desk(request: Request, user: PortalUser) -> Desk:
    grace = timedelta(days=settings_of(request).billing_grace_days)
    return Desk(database_of(request), gateway_of(request), user.org_id, datetime.now(UTC), grace)


async def _note(request: Request, user: PortalUser, action: str, **after: object) -> None:
    async with database_of(request).begin() as connection:
        await note(request, connection, user, action, f"org:{user.org_id}", after=after or None)


def _leave(request: Request, url: str) -> Response:
    # Not a redirect: browsers hold where a form's redirect leads against `form-action`,
    # and Stripe's pages may lie under a domain of the operator's own.
    return render(request, "billing_leave.html", url=url)


def _look(text: str) -> int:
    return min(int(text), MAX_LOOKS) if text.isascii() and text.isdigit() and len(text) <= _MAX_DIGITS else 1


def _whole(text: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > _MAX_DIGITS:
        raise BadRequest("This is not an amount.", param="cents")
    return int(text)
