"""People, their addresses and passwords."""

import pytest
from argon2 import PasswordHasher
from argon2.profiles import RFC_9106_LOW_MEMORY
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncConnection

from app.accounts import users
from app.db import Database
from app.errors import BadRequest, Conflict
from app.tables import User
from tests.factories import PASSWORD, make_org, make_user


async def test_the_right_password_opens_the_login(database: Database) -> None:
    user_id = await make_user(database, await make_org(database), "Some.One@Acme.example")
    async with database.begin() as connection:
        found = await users.find_login(connection, " some.one@acme.EXAMPLE ")
        assert found == await users.login_of(connection, user_id)
    assert found is not None
    assert (found.user_id, found.email, found.has_second_factor) == (user_id, "some.one@acme.example", False)
    assert users.check_password(found.password_hash, PASSWORD)
    assert not users.check_password(found.password_hash, "another password")
    assert not users.check_password(found.password_hash, PASSWORD + "x" * 10_000)
    assert not users.check_password(found.password_hash, "\udfff")
    assert PASSWORD not in found.password_hash
    assert found.password_hash.startswith("$argon2id$")


def test_passwords_are_hashed_as_the_standard_says(production_hasher: PasswordHasher) -> None:
    for name in ("time_cost", "memory_cost", "parallelism", "hash_len", "salt_len", "type"):
        assert getattr(production_hasher, name) == getattr(RFC_9106_LOW_MEMORY, name)


def test_a_password_is_the_same_however_a_keyboard_composes_it() -> None:
    assert users.check_password(
        users.hash_password("caf\u00e9 caf\u00e9 caf\u00e9"), "cafe\u0301 cafe\u0301 cafe\u0301"
    )


async def test_nobody_has_no_login(connection: AsyncConnection) -> None:
    assert await users.find_login(connection, "nobody@acme.example") is None
    assert await users.find_login(connection, "nobody\0@acme.example") is None
    assert not users.check_password(None, PASSWORD)
    assert not users.check_password("damaged", PASSWORD)


async def test_an_address_is_used_once(database: Database) -> None:
    org_id = await make_org(database)
    await make_user(database, org_id)
    with pytest.raises(Conflict):
        await make_user(database, org_id, "SomeOne@acme.example")
    async with database.begin() as connection:
        assert len((await connection.execute(select(User.id))).all()) == 1


@pytest.mark.parametrize(
    ("email", "password", "role"),
    [
        ("nonsense", PASSWORD, "owner"),
        ("a@b.example", "short", "owner"),
        ("a@b.example", "x" * 201, "owner"),
        ("a@b.example", "Password2026", "owner"),
        ("a@b.example", PASSWORD, "emperor"),
    ],
)
async def test_a_user_needs_an_address_a_password_and_a_role(
    database: Database, email: str, password: str, role: str
) -> None:
    org_id = await make_org(database)
    async with database.begin() as connection:
        with pytest.raises(BadRequest):
            await users.create_user(connection, org_id, email, password, role)


@pytest.mark.parametrize(
    "email",
    [
        "",
        "@b.example",
        "a@",
        "a b@c.example",
        "a@b@c.example",
        "a@-b.example",
        "a@b..example",
        "<a@b.example>",
        "a@b.example\r\nBcc: c@d.example",
        '"a"@b.example',
        "ä@b.example",
        "a@b.example\0",
        "=?utf-8?q?victim=40b.example=3e?=@c.example",
        f"{'a' * 250}@b.example",
    ],
)
def test_what_is_no_address_is_refused(email: str) -> None:
    with pytest.raises(BadRequest) as refusal:
        users.checked_email(email)
    assert refusal.value.param == "email"


@pytest.mark.parametrize("email", ["owner@demo.local", "a.b+c@sub.d-e.example", "O'Neil@Example.COM", "root@localhost"])
def test_an_address_has_one_spelling(email: str) -> None:
    assert users.checked_email(f" {email}\t") == email.lower()


async def test_a_password_is_replaced(database: Database) -> None:
    user_id = await make_user(database, await make_org(database))
    async with database.begin() as connection:
        await users.set_password(connection, user_id, users.hash_password("another long password"))
        login = await users.login_of(connection, user_id)
    assert users.check_password(login.password_hash, "another long password")
    assert not users.check_password(login.password_hash, PASSWORD)


async def test_addresses_are_found_by_id(database: Database) -> None:
    user_id = await make_user(database, await make_org(database))
    async with database.begin() as connection:
        assert await users.emails_of(connection, [user_id]) == {user_id: "someone@acme.example"}
        assert await users.emails_of(connection, []) == {}
