from datetime import UTC, datetime

import pytest
from sqlalchemy.exc import IntegrityError

from app.db import Database
from app.tables import ApiKey, Membership, Org, User, new_id
from tests.factories import make_org


def test_ids_are_version_7_and_in_order_of_time() -> None:
    ids = [new_id() for _ in range(100)]
    assert {(value.version, value.variant) for value in ids} == {(7, "specified in RFC 4122")}
    assert [value.int >> 80 for value in ids] == sorted(value.int >> 80 for value in ids)
    assert len({*ids}) == 100


def test_an_id_holds_its_time() -> None:
    before = datetime.now(UTC)
    milliseconds = new_id().int >> 80
    assert abs(milliseconds / 1000 - before.timestamp()) < 60


@pytest.mark.parametrize(
    "row",
    [
        Org(name=""),
        Org(name="Acme", status="sleeping"),
        User(email="Upper@acme.example", password_hash="x"),
        User(email="", password_hash="x"),
        Membership(org_id=new_id(), user_id=new_id(), role="owner"),
        ApiKey(org_id=new_id(), name="k", key_hash=b"0" * 32, prefix="tg_live_", last4="abcd", scopes=[]),
    ],
    ids=["org without name", "org of unknown status", "upper case", "no address", "no such org", "key of no org"],
)
async def test_the_database_refuses_what_cannot_be(database: Database, row: object) -> None:
    with pytest.raises(IntegrityError):
        async with database.session() as session:
            session.add(row)


async def test_an_address_has_one_login(database: Database) -> None:
    with pytest.raises(IntegrityError):
        async with database.session() as session:
            session.add_all([User(email="a@acme.example", password_hash="x") for _ in range(2)])


@pytest.mark.parametrize("limit", [0, -1])
async def test_a_limit_of_nothing_is_refused(database: Database, limit: int) -> None:
    org_id = await make_org(database)
    with pytest.raises(IntegrityError):
        async with database.session() as session:
            session.add(
                ApiKey(
                    org_id=org_id,
                    name="k",
                    key_hash=b"0" * 32,
                    prefix="tg_live_",
                    last4="abcd",
                    scopes=[],
                    requests_per_minute=limit,
                )
            )
