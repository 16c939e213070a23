"""Who looks at a page, at the moment when it counts."""

from collections.abc import Awaitable, Callable
from urllib.parse import urlencode
from uuid import UUID

import pytest
from fastapi import Request
from sqlalchemy import delete, select
from starlette.types import Message

from app.accounts.sessions import SESSION_COOKIE
from app.api.playground import require_member_call
from app.errors import AuthenticationFailed
from app.portal import members, security
from app.portal.forms import form_token
from app.tables import Invitation, Membership, PortalSession
from tests.api.world import World
from tests.factories import make_user
from tests.portal.people import session_of


def slow_form(world: World, session: str, fields: dict[str, str], meanwhile: Callable[[], Awaitable[None]]) -> Request:
    """A form whose first byte arrives after ``meanwhile``."""
    body = urlencode({"token": form_token(world.settings, session), **fields}).encode()
    headers = {
        "cookie": f"{SESSION_COOKIE}={session}",
        "content-type": "application/x-www-form-urlencoded",
        "sec-fetch-site": "same-origin",
    }
    scope = {
        "type": "http",
        "method": "POST",
        "path": "/members/invite",
        "query_string": b"",
        "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
        "client": ("127.0.0.1", 1),
        "app": world.app,
    }

    async def receive() -> Message:
        await meanwhile()
        return {"type": "http.request", "body": body, "more_body": False}

    return Request(scope, receive)


async def test_who_is_removed_while_their_form_is_on_its_way_does_nothing(world: World, acme: UUID) -> None:
    await make_user(world.database, acme, "other@acme.example")
    user_id = await make_user(world.database, acme, "removed@acme.example")

    async def removed() -> None:
        async with world.database.begin() as connection:
            await connection.execute(delete(Membership).where(Membership.user_id == user_id))

    fields = {"email": "accomplice@evil.example", "role": "owner"}
    request = slow_form(world, await session_of(world, user_id), fields, removed)
    with pytest.raises(AuthenticationFailed):
        await members.invite(request)
    async with world.database.begin() as connection:
        assert (await connection.execute(select(Invitation.id))).all() == []


async def test_who_is_signed_out_while_their_form_is_on_its_way_does_nothing(world: World, acme: UUID) -> None:
    user_id = await make_user(world.database, acme)

    async def signed_out() -> None:
        async with world.database.begin() as connection:
            await connection.execute(delete(PortalSession))

    with pytest.raises(AuthenticationFailed):
        await security.sign_out_everywhere(slow_form(world, await session_of(world, user_id), {}, signed_out))


async def test_who_is_removed_while_their_prompt_is_on_its_way_gets_no_answer(world: World, acme: UUID) -> None:
    user_id = await make_user(world.database, acme)

    async def signed_out() -> None:
        async with world.database.begin() as connection:
            await connection.execute(delete(PortalSession))

    with pytest.raises(AuthenticationFailed):
        await require_member_call(slow_form(world, await session_of(world, user_id), {}, signed_out))
