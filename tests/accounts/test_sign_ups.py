"""Signing up, apart from its pages."""

from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncConnection

from app.accounts import sign_ups
from app.accounts.sign_ups import SIGN_UP_LIFETIME, Wish
from app.accounts.tokens import Token
from app.db import Database
from app.errors import BadRequest, Conflict, NotFound
from app.tables import Membership, SignUp
from tests.factories import make_org, make_user

NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)
WISH = Wish("new@customer.example", "a hash", "Initech", "zh")


async def ask(connection: AsyncConnection) -> tuple[Token, Token]:
    """The tokens of the mail and of the browser."""
    id, browser = await sign_ups.ask(connection, WISH, NOW)
    mail = await sign_ups.make_link(connection, id, NOW)
    assert mail is not None
    return mail, browser


async def test_a_wish_comes_true_once(connection: AsyncConnection) -> None:
    mail, browser = await ask(connection)
    waiting = await sign_ups.find_waiting(connection, mail.text, NOW)
    assert waiting.wish == WISH
    assert waiting.is_from(browser.text)
    assert not waiting.is_from(mail.text)
    assert not waiting.is_from(None)
    account = await sign_ups.confirm(connection, mail.text, NOW)
    member = select(Membership.org_id, Membership.role).where(Membership.user_id == account.user_id)
    assert (await connection.execute(member)).one() == (account.org_id, "owner")
    with pytest.raises(NotFound):
        await sign_ups.confirm(connection, mail.text, NOW)
    with pytest.raises(NotFound):
        await sign_ups.find_waiting(connection, mail.text, NOW)


async def test_a_wish_is_kept_for_a_day(connection: AsyncConnection) -> None:
    asked = await ask(connection)
    end = NOW + SIGN_UP_LIFETIME
    await sign_ups.find_waiting(connection, asked[0].text, end - timedelta(seconds=1))
    with pytest.raises(NotFound):
        await sign_ups.confirm(connection, asked[0].text, end)
    assert await sign_ups.delete_expired_sign_ups(connection, end - timedelta(seconds=1)) == 0
    assert await sign_ups.delete_expired_sign_ups(connection, end) == 1


async def test_no_token_is_in_the_database(connection: AsyncConnection) -> None:
    asked = await ask(connection)
    rows = str((await connection.execute(select(SignUp))).all())
    assert not any(token.text in rows for token in asked)


async def test_an_address_with_a_login_gets_no_second_account(database: Database, connection: AsyncConnection) -> None:
    asked = await ask(connection)
    await make_user(database, await make_org(database), WISH.email)
    id, _ = await sign_ups.ask(connection, WISH, NOW)
    assert await sign_ups.make_link(connection, id, NOW) is None
    with pytest.raises(NotFound):
        await sign_ups.make_link(connection, id, NOW)
    with pytest.raises(Conflict):
        await sign_ups.confirm(connection, asked[0].text, NOW)


async def test_a_second_mail_takes_the_place_of_the_first(connection: AsyncConnection) -> None:
    id, _ = await sign_ups.ask(connection, WISH, NOW)
    first, second = [await sign_ups.make_link(connection, id, NOW) for _ in range(2)]
    assert first is not None
    assert second is not None
    with pytest.raises(NotFound):
        await sign_ups.find_waiting(connection, first.text, NOW)
    await sign_ups.confirm(connection, second.text, NOW)
    with pytest.raises(NotFound):
        await sign_ups.make_link(connection, id, NOW)


async def test_a_wish_that_is_over_gets_no_link(connection: AsyncConnection) -> None:
    id, _ = await sign_ups.ask(connection, WISH, NOW)
    with pytest.raises(NotFound):
        await sign_ups.make_link(connection, id, NOW + SIGN_UP_LIFETIME)


async def test_an_organisation_needs_a_name(connection: AsyncConnection) -> None:
    with pytest.raises(BadRequest):
        await sign_ups.ask(connection, Wish("new@customer.example", "a hash", " "), NOW)


async def test_a_link_that_is_used_in_the_meantime_is_over(database: Database) -> None:
    async with database.begin() as connection:
        asked = await ask(connection)
    async with database.begin() as first:
        await sign_ups.confirm(first, asked[0].text, NOW)
    with pytest.raises(NotFound):
        async with database.begin() as second:
            await sign_ups.confirm(second, asked[0].text, NOW)
