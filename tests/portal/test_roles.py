"""Every route of the portal, asked by a stranger and by every role: what each may do, and nothing else."""

from datetime import UTC, datetime, timedelta
from uuid import uuid4

import httpx
import pytest
from sqlalchemy import insert

from app.accounts.orgs import create_org
from app.accounts.permissions import allows
from app.accounts.sessions import SESSION_COOKIE, open_session
from app.accounts.users import add_user
from app.portal.forms import FORM_COOKIE, form_token
from app.tables import ROLES, Membership
from app.throttle import Limit
from tests.api.world import World
from tests.portal.routes import EVERYBODY, MEMBER, PERSON, ROUTES, filled, served

REFUSED = "Your role in this organisation does not allow this."
OPEN_ENDED = {"GET /live"}


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """All requests come from one place here."""
    for limit in ("FROM_ONE_PLACE", "ON_ONE_NAME", "MAILS", "INVITATIONS", "ORGANISATIONS", "SIGN_UPS"):
        monkeypatch.setattr(f"app.portal.attempts.{limit}", Limit(100_000, timedelta(minutes=15)))


async def session_with(world: World, role: str) -> str:
    """Somebody of this role in a new organisation; no password fits."""
    async with world.database.begin() as connection:
        org_id = await create_org(connection, "Acme")
        for name in (role, "owner"):
            user_id = await add_user(connection, f"{uuid4().hex}@acme.example", "no hash")
            await connection.execute(insert(Membership).values(org_id=org_id, user_id=user_id, role=name))
            if name == role:
                return await open_session(connection, user_id, datetime.now(UTC))
    raise AssertionError


async def ask(world: World, route: str, session: str | None) -> httpx.Response:
    """One request with a genuine form; of an answer without an end, its beginning."""
    method, path = filled(route, str(uuid4()))
    cookie = session or "of a visitor"
    name = SESSION_COOKIE if session else FORM_COOKIE
    data = {"token": form_token(world.settings, cookie)} if method == "POST" else None
    async with world.http.stream(method, path, data=data, headers={"cookie": f"{name}={cookie}"}) as answer:
        if route not in OPEN_ENDED or answer.status_code != 200:
            await answer.aread()
        return answer


def says_no(answer: httpx.Response) -> bool:
    return answer.status_code == 403 and REFUSED in answer.text


def asks_to_sign_in(answer: httpx.Response) -> bool:
    return answer.status_code == 303 and answer.headers["location"].startswith("/login")


async def test_every_route_is_named(world: World) -> None:
    assert served() == set(ROUTES)


async def test_a_stranger_is_asked_to_sign_in(world: World) -> None:
    for route, who in ROUTES.items():
        if route != "POST /login/code" and route != "GET /login/code":
            answer = await ask(world, route, None)
            assert asks_to_sign_in(answer) == (who != EVERYBODY), route
            assert answer.status_code < 500, route


@pytest.mark.parametrize("role", ROLES)
async def test_each_role_may_do_what_the_table_says_and_nothing_else(world: World, role: str) -> None:
    for route, who in ROUTES.items():
        answer = await ask(world, route, await session_with(world, role))
        is_allowed = who in {EVERYBODY, PERSON, MEMBER} or allows(role, who)
        if route in OPEN_ENDED and is_allowed:
            assert answer.status_code == 200, route
            continue
        assert says_no(answer) == (not is_allowed), f"{route} is answered with {answer.status_code}"
        assert answer.status_code != 500, route


async def test_without_its_form_nothing_is_done(world: World) -> None:
    """A form of another site, on every route that takes one."""
    for route in ROUTES:
        if not route.startswith("POST "):
            continue
        session = await session_with(world, "owner")
        headers = {"cookie": f"{SESSION_COOKIE}={session}; {FORM_COOKIE}=of a visitor"}
        _, path = filled(route, str(uuid4()))
        for token in ("", "0" * 64, form_token(world.settings, "somebody else's")):
            answer = await world.http.post(path, data={"token": token}, headers=headers)
            assert answer.status_code == (303 if path == "/logout" else 403), f"{route}: {answer.status_code}"
        still = await world.http.get("/security", headers=headers)
        assert still.status_code == 200, f"{route} ended the session"


async def test_a_hole_would_be_found(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    async def let_in(request: object, permission: object) -> object:
        from app.portal import session

        return await session.require_person(request)  # type: ignore[arg-type]

    monkeypatch.setattr("app.portal.members.require_user", let_in)
    assert not says_no(await ask(world, "GET /members", await session_with(world, "viewer")))
