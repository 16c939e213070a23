"""The portal's pages: landing, login and an overview of usage, cost and keys.

Rendered on the server, complete without JavaScript, and without anything from
another host. What a page shows belongs to the organisation of the session it was
asked with; there is no id in any address to guess.
"""

import asyncio
import secrets
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import RedirectResponse
from starlette.staticfiles import StaticFiles

from app import auth
from app import keys as api_keys
from app.billing.statement import Line, Query, read_lines
from app.modeling.registry import ModelCard, Registry
from app.portal.forms import (
    FORM_COOKIE,
    FORM_LIFETIME_S,
    SESSION_COOKIE,
    form_token,
    is_genuine,
    set_cookie,
)
from app.portal.page import SEE_OTHER, database_of, dollars, find_user, host_of, render, settings_of
from app.telemetry import get_logger
from app.throttle import Throttle

log = get_logger(__name__)

MAX_LINES = 1000

router = APIRouter(include_in_schema=False)


def static_files() -> StaticFiles:
    """The style sheet."""
    return StaticFiles(directory=Path(__file__).parent / "static")


@router.get("/")
async def landing(request: Request) -> Response:
    """What this is and which models it serves."""
    cards = await asyncio.to_thread(_enabled_cards, settings_of(request).models_dir)
    user = await find_user(request)
    return render("landing.html", user=user, cards=cards, example=_example(cards), base_url=_base_url(request))


@router.get("/login")
async def show_login(request: Request) -> Response:
    """The login form."""
    if await find_user(request) is not None:
        return RedirectResponse("/overview", SEE_OTHER)
    return _login_page(request)


@router.post("/login")
async def login(request: Request) -> Response:
    """Checks a password and opens a session."""
    form = await request.form()
    settings, database = settings_of(request), database_of(request)
    if not is_genuine(settings, request.cookies.get(FORM_COOKIE), form.get("token")):
        return _login_page(request, "The form was open for too long. Please try again.", 403)
    email, password = str(form.get("email", "")), str(form.get("password", ""))
    if not _throttle(request).allows(f"host {host_of(request)}", f"login {email.strip().lower()}"):
        return _login_page(request, "Too many attempts. Please wait a quarter of an hour.", 429, email)
    async with database.begin() as connection:
        found = await auth.find_login(connection, email)
    user_id, password_hash = found or (None, None)
    is_right = await asyncio.to_thread(auth.check_password, password_hash, password)
    if user_id is None or not is_right:
        log.info("login.refused")
        return _login_page(request, "The e-mail address or the password is wrong.", 401, email)
    async with database.begin() as connection:
        token = await auth.open_session(connection, user_id, datetime.now(UTC))
    response = RedirectResponse("/overview", SEE_OTHER)
    set_cookie(response, request, SESSION_COOKIE, token, int(auth.SESSION_LIFETIME.total_seconds()))
    response.delete_cookie(FORM_COOKIE)
    return response


@router.post("/logout")
async def logout(request: Request) -> Response:
    """Ends the session; the cookie alone is then worth nothing."""
    form = await request.form()
    token = request.cookies.get(SESSION_COOKIE)
    if token is None or not is_genuine(settings_of(request), token, form.get("token")):
        return RedirectResponse("/overview", SEE_OTHER)
    async with database_of(request).begin() as connection:
        await auth.close_session(connection, token)
    response = RedirectResponse("/", SEE_OTHER)
    response.delete_cookie(SESSION_COOKIE)
    return response


@router.get("/overview")
async def overview(request: Request) -> Response:
    """This month's usage and cost by model, the keys, and how to call."""
    user = await find_user(request)
    if user is None:
        return RedirectResponse("/login", SEE_OTHER)
    now = datetime.now(UTC)
    month = now.replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    query = Query(user.org_id, month, now, "month", ("model",), MAX_LINES)
    async with database_of(request).begin() as connection:
        lines, _ = await read_lines(connection, query)
        keys = await api_keys.list_keys(connection, user.org_id)
    cards = await asyncio.to_thread(_enabled_cards, settings_of(request).models_dir)
    return render(
        "overview.html",
        user=user,
        month=month,
        lines=lines,
        total=_total(lines),
        keys=keys,
        now=now,
        cost=dollars,
        token=form_token(settings_of(request), request.cookies[SESSION_COOKIE]),
        base_url=_base_url(request),
        example=_example(cards),
    )


def _login_page(request: Request, problem: str = "", status: int = 200, email: str = "") -> Response:
    cookie = request.cookies.get(FORM_COOKIE) or secrets.token_urlsafe(32)
    token = form_token(settings_of(request), cookie)
    page = render("login.html", status, user=None, token=token, problem=problem, email=email)
    set_cookie(page, request, FORM_COOKIE, cookie, FORM_LIFETIME_S)
    return page


def _enabled_cards(models_dir: Path) -> list[ModelCard]:
    return [card for card in Registry(models_dir).list() if card.enabled]


def _example(cards: list[ModelCard]) -> ModelCard | None:
    return next((card for card in cards if card.kind == "generation"), None)


def _base_url(request: Request) -> str:
    return f"{str(request.base_url).rstrip('/')}/v1"


def _total(lines: list[Line]) -> dict[str, Any]:
    return {
        "requests": sum(line.requests for line in lines),
        "input_tokens": sum(line.input_tokens for line in lines),
        "output_tokens": sum(line.output_tokens for line in lines),
        "cost": sum(line.cost for line in lines),
    }


def _throttle(request: Request) -> Throttle:
    throttle: Throttle = request.app.state.throttle
    return throttle
