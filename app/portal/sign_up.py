"""/signup and /confirm: from a visitor to a person with an organisation.

What the pages say, and how long they take, is the same whether an address has a login or
not; only its mailbox learns the difference.
"""

from datetime import UTC, datetime

from fastapi import APIRouter, Request, Response
from fastapi.responses import RedirectResponse

from app.accounts import mailings, sign_ups, users
from app.accounts.orgs import checked_name
from app.accounts.sign_ups import Waiting, Wish
from app.errors import BadRequest
from app.portal.attempts import require_attempt, require_mail, require_sign_up
from app.portal.forms import FORM_COOKIE, read_form, set_cookie, text_of
from app.portal.i18n import language_of
from app.portal.page import HOME, SEE_OTHER, PageRoute, render
from app.portal.session import database_of, find_person, hashing_of, note_person
from app.portal.sign_in import start_session

BROWSER_COOKIE = "tollgate_signup"
"""Only in the browser that asked: there the link in the mail is enough."""

router = APIRouter(include_in_schema=False, route_class=PageRoute)


@router.get("/signup")
async def show_sign_up(request: Request) -> Response:
    """The form for a new account."""
    if await find_person(request) is not None:
        return RedirectResponse(HOME, SEE_OTHER)
    return render(request, "signup.html", email="", org_name="", problems={})


@router.post("/signup")
async def sign_up(request: Request) -> Response:
    """Remembers what is asked for, and mails a link to confirm it.

    Raises:
        PermissionDenied: The form is not genuine.
        RateLimited: Too many sign-ups from here, or mails to this address.
    """
    form = await read_form(request, FORM_COOKIE)
    language = language_of(request)
    email, org_name = text_of(form, "email"), text_of(form, "org_name")
    try:
        address, name = users.checked_email(email), checked_name(org_name)
        password = users.checked_password(str(form.get("password", "")), address)
    except BadRequest as error:
        field = "org_name" if error.param == "name" else error.param
        problems = {field: language.told(error)}
        return render(request, "signup.html", error.status, email=email, org_name=org_name, problems=problems)
    await require_sign_up(request)
    await require_mail(request, address)
    password_hash = await hashing_of(request).hash(password, address)
    now = datetime.now(UTC)
    async with database_of(request).begin() as connection:
        id, browser = await sign_ups.ask(connection, Wish(address, password_hash, name, language.code), now)
        await mailings.queue(connection, "sign_up", address, language.code, now, id)
    response = render(request, "signup_sent.html", email=address)
    set_cookie(response, request, BROWSER_COOKIE, browser.text, int(sign_ups.SIGN_UP_LIFETIME.total_seconds()))
    return response


@router.get("/confirm")
async def show_confirm(request: Request) -> Response:
    """What a link confirms; nothing happens before its form is sent, whoever opens links ahead.

    Raises:
        NotFound: The link was used or is too old.
    """
    token = request.query_params.get("token", "")
    async with database_of(request).begin() as connection:
        waiting = await sign_ups.find_waiting(connection, token, datetime.now(UTC))
    return _confirm_page(request, token, waiting)


@router.post("/confirm")
async def confirm(request: Request) -> Response:
    """Makes the person and their organisation, and logs them in.

    Raises:
        PermissionDenied: The form is not genuine.
        RateLimited: Too many were tried.
        NotFound: The link was used or is too old.
        Conflict: The address got a login in the meantime.
    """
    form = await read_form(request, FORM_COOKIE)
    link, now = text_of(form, "link"), datetime.now(UTC)
    await require_attempt(request, "confirm")
    async with database_of(request).begin() as connection:
        waiting = await sign_ups.find_waiting(connection, link, now)
    if not waiting.is_from(request.cookies.get(BROWSER_COOKIE)):
        password = str(form.get("password", ""))
        if not await hashing_of(request).fits(waiting.wish.password_hash, password):
            problem = language_of(request).gettext("The password is wrong.")
            return _confirm_page(request, link, waiting, problem)
    async with database_of(request).begin() as connection:
        account = await sign_ups.confirm(connection, link, now)
        after = {"name": waiting.wish.org_name, "plan": sign_ups.PLAN}
        target = f"org:{account.org_id}"
        await note_person(request, connection, account.user_id, "org.sign_up", target=target, after=after)
        response = await start_session(request, connection, account.user_id, now, org_id=account.org_id)
    response.delete_cookie(BROWSER_COOKIE)
    return response


def _confirm_page(request: Request, link: str, waiting: Waiting, problem: str = "") -> Response:
    needs_password = not waiting.is_from(request.cookies.get(BROWSER_COOKIE))
    return render(
        request,
        "confirm.html",
        401 if problem else 200,
        link=link,
        wish=waiting.wish,
        needs_password=needs_password,
        problem=problem,
    )
