"""Nothing of organisation B is readable or mutable with the session of A's owner, on any page of the portal.

Each place of each route, and each field that a form or an address might have, is tried with
each of B's ids; the forms are genuine ones of A's.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import httpx
import pytest
from sqlalchemy import insert, select

from app.accounts import invitations, members
from app.accounts.sessions import SESSION_COOKIE, PortalUser, open_session
from app.accounts.sign_ups import found_org
from app.accounts.users import add_user
from app.portal.forms import form_token
from app.tables import AuditEntry, Membership, PortalSession
from app.throttle import Limit
from tests.api.test_isolation import Victim, rows_of, victim
from tests.api.world import World
from tests.portal.routes import ROUTES, filled

__all__ = ["victim"]

FIELDS = (
    *("org", "org_id", "user", "user_id", "member", "session", "invitation", "email", "link", "plan", "role"),
    *("key", "key_id", "id", "after", "before", "request", "invoice", "endpoint", "model", "group", "next"),
)
NUM_PARTS = 6
ENDLESS = {"GET /live"}
# They end A's own session, or A's own organisation: what follows them would prove nothing.
SELF_ENDING = {"POST /logout", "POST /security/sessions/end-all", "POST /data/delete"}


@dataclass(frozen=True)
class Attacker:
    """A's owner at a browser."""

    org_id: UUID
    session: str
    token: str

    @property
    def headers(self) -> dict[str, str]:
        """What the browser sends."""
        return {"cookie": f"{SESSION_COOKIE}={self.session}"}


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """All requests come from one place here."""
    for limit in ("FROM_ONE_PLACE", "ON_ONE_NAME", "MAILS", "INVITATIONS", "ORGANISATIONS", "SIGN_UPS"):
        monkeypatch.setattr(f"app.portal.attempts.{limit}", Limit(100_000, timedelta(minutes=15)))


async def attacker_at(world: World, number: int) -> Attacker:
    """A new A, so that what one route did to it is of no matter to the next."""
    async with world.database.begin() as connection:
        user_id = await add_user(connection, f"{number}@a.example", "no hash")
        org_id = await found_org(connection, user_id, "Attackers Ltd")
        session = await open_session(connection, user_id, datetime.now(UTC))
    return Attacker(org_id, session, form_token(world.settings, session))


async def ids_of(world: World, victim: Victim) -> tuple[str, ...]:
    """B's ids, with those of an invitation, a session and an entry of the audit log."""
    owner = PortalUser(victim.org_id, victim.user_id, "victim@b.example", victim.org_id, "Victims Ltd", "owner")
    async with world.database.begin() as connection:
        now = datetime.now(UTC)
        invited = await invitations.invite(connection, owner, "guest@b.example", "viewer", now)
        await open_session(connection, victim.user_id, now)
        session = (await connection.execute(select(PortalSession.id))).scalar_one()
        entry = (await connection.execute(select(AuditEntry.id).order_by(AuditEntry.id).limit(1))).scalar()
    return (*victim.ids, str(invited.id), str(session), *([] if entry is None else [str(entry)]))


def requests_to(route: str, ids: tuple[str, ...], attacker: Attacker) -> Iterator[dict[str, Any]]:
    """Every way to put one of B's ids into the route."""
    for value in ids:
        method, path = filled(route, value)
        everywhere = dict.fromkeys(FIELDS, value)
        if method == "POST":
            yield {"method": method, "url": path, "data": {**everywhere, "token": attacker.token}}
            if "{" in route:
                yield {"method": method, "url": path, "data": {"token": attacker.token, "role": "viewer"}}
            continue
        yield {"method": method, "url": path}
        yield {"method": method, "url": path, "params": everywhere}
    if route.startswith("GET ") and "{" not in route:
        for place, name in enumerate(FIELDS):
            yield {"method": "GET", "url": filled(route, "")[1], "params": {name: ids[place % len(ids)]}}


async def attack(world: World, route: str, victim: Victim, ids: tuple[str, ...], attacker: Attacker) -> None:
    """Fails if anything of B comes out or changes."""
    before = await rows_of(world.database, victim, attacker.org_id)
    for request in requests_to(route, ids, attacker):
        answer = await fetch(world, route, request, attacker)
        sent = str(request)
        marks = (*victim.marks, "guest@b.example", *ids)
        shown = answer.text + str(answer.headers)
        seen = [mark for mark in marks if len(mark) > 8 and mark in shown and mark not in sent]
        assert not seen, f"{request} shows {seen}"
        assert answer.status_code != 500, request
        if "{" in route:
            assert answer.status_code in {400, 404}, f"{request} is answered with {answer.status_code}"
    assert await rows_of(world.database, victim, attacker.org_id) == before, f"{route} changes rows"


async def fetch(world: World, route: str, request: dict[str, Any], attacker: Attacker) -> httpx.Response:
    """The whole answer; of one without an end, its first part."""
    async with world.http.stream(**request, headers=attacker.headers) as answer:
        if route in ENDLESS:
            answer._content = await anext(answer.aiter_bytes())
        else:
            await answer.aread()
        return answer


@pytest.mark.parametrize("part", range(NUM_PARTS))
async def test_nothing_of_another_organisation_is_read_or_changed(
    world: World,
    victim: Victim,
    part: int,
) -> None:
    ids = await ids_of(world, victim)
    for number, route in enumerate(sorted(set(ROUTES) - SELF_ENDING)[part::NUM_PARTS]):
        await attack(world, route, victim, ids, await attacker_at(world, number))


@pytest.mark.parametrize("route", sorted(SELF_ENDING))
async def test_what_ends_ones_own_ends_nothing_of_others(world: World, victim: Victim, route: str) -> None:
    ids = await ids_of(world, victim)
    before = await rows_of(world.database, victim)
    for number, request in enumerate(requests_to(route, ids, await attacker_at(world, 1000))):
        attacker = await attacker_at(world, number)
        request["data"]["token"] = attacker.token
        await fetch(world, route, request, attacker)
    after = await rows_of(world.database, victim)
    assert [row for row in after if row[0] != "audit_log"] == [row for row in before if row[0] != "audit_log"]


async def test_its_owner_sees_what_the_attacker_must_not(world: World, victim: Victim) -> None:
    """Or the marks would be found on no page whatever."""
    await ids_of(world, victim)
    async with world.database.begin() as connection:
        session = await open_session(connection, victim.user_id, datetime.now(UTC))
    headers = {"cookie": f"{SESSION_COOKIE}={session}"}
    pages = {path: (await world.http.get(path, headers=headers)).text for path in ("/keys", "/members", "/overview")}
    assert "key of the victim" in pages["/keys"]
    assert "guest@b.example" in pages["/members"]
    assert "Victims Ltd" in pages["/overview"]


async def test_a_hole_would_be_found(world: World, victim: Victim, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = await ids_of(world, victim)

    async def careless(connection: Any, by: PortalUser, user_id: UUID) -> str:
        row = {"org_id": victim.org_id, "user_id": by.user_id, "role": "owner"}
        await connection.execute(insert(Membership).values(row))
        return "owner"

    monkeypatch.setattr(members, "remove_member", careless)
    with pytest.raises(AssertionError):
        await attack(world, "POST /members/{user_id}/remove", victim, ids, await attacker_at(world, 0))
