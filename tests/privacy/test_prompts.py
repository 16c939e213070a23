"""What is sent is kept for those who want it, as long as they say, and for nobody else."""

import asyncio
import dataclasses
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest
from sqlalchemy import func, select, text, update

from app.db import Database
from app.errors import BadRequest, NotFound
from app.privacy import prompts
from app.privacy.prompts import MAX_WAITING, Kept, PromptStore
from app.tables import StoredRequest, new_id
from tests.factories import make_org, someone_waits


@pytest.fixture
async def store(database: Database) -> AsyncIterator[PromptStore]:
    store = PromptStore(database)
    yield store
    await store.aclose()


def kept(org_id: UUID, days: int = 1) -> Kept:
    now = datetime.now(UTC)
    return Kept(new_id(), org_id, now, "/v1/completions", b"{}", b"ok", now + timedelta(days=days))


async def stored(database: Database) -> int:
    async with database.begin() as connection:
        return int((await connection.execute(select(func.count()).select_from(StoredRequest))).scalar_one())


async def let(database: Database, org_id: UUID, days: int | None) -> None:
    async with database.begin() as connection:
        await prompts.set_retention(connection, org_id, days)


async def test_nothing_is_kept_until_it_is_wanted(database: Database, store: PromptStore) -> None:
    org_id = await make_org(database)
    store.keep(kept(org_id))
    await store.aclose()
    assert await stored(database) == 0
    async with database.begin() as connection:
        assert await prompts.retention(connection, org_id) is None


async def test_what_is_kept_is_found_by_its_organisation_alone(database: Database, store: PromptStore) -> None:
    own, other = await make_org(database), await make_org(database, "Other")
    await let(database, own, 7)
    one = kept(own)
    for _ in range(2):  # a repetition changes nothing
        store.keep(one)
    await store.aclose()
    async with database.begin() as connection:
        assert await prompts.find_stored(connection, own, one.request_id) == one
        assert await prompts.find_stored(connection, other, one.request_id) is None
        assert await prompts.retention(connection, own) == 7


async def test_turning_it_off_deletes_what_there_is(database: Database, store: PromptStore) -> None:
    org_id = await make_org(database)
    await let(database, org_id, 7)
    store.keep(kept(org_id))
    await store.aclose()
    await let(database, org_id, None)
    assert await stored(database) == 0


async def test_who_turns_it_off_while_one_is_written_keeps_nothing(database: Database, store: PromptStore) -> None:
    org_id = await make_org(database)
    await let(database, org_id, 7)
    async with database.begin() as connection:
        await prompts.set_retention(connection, org_id, None)
        store.keep(kept(org_id))
        closing = asyncio.create_task(store.aclose())
        await someone_waits(database, closing)
    await closing
    assert await stored(database) == 0


async def test_fewer_days_hold_for_what_there_is_and_what_is_on_its_way(database: Database, store: PromptStore) -> None:
    org_id = await make_org(database)
    await let(database, org_id, 30)
    for _ in range(2):
        one = kept(org_id, days=30)
        store.keep(one)
        await store._waiting.join()
        await let(database, org_id, 7)
    await let(database, org_id, 90)
    async with database.begin() as connection:
        days = select(func.extract("day", StoredRequest.expires_at - StoredRequest.started_at))
        assert (await connection.execute(days)).scalars().all() == [7, 7]


async def test_what_has_expired_is_not_shown_before_it_is_deleted(database: Database, store: PromptStore) -> None:
    org_id = await make_org(database)
    await let(database, org_id, 7)
    one = kept(org_id)
    store.keep(one)
    await store.aclose()
    async with database.begin() as connection:
        await connection.execute(update(StoredRequest).values(expires_at=func.now()))
        assert await prompts.find_stored(connection, org_id, one.request_id) is None


async def test_what_the_database_refuses_ends_nothing_else(database: Database, store: PromptStore) -> None:
    org_id = await make_org(database)
    await let(database, org_id, 7)
    store.keep(dataclasses.replace(kept(org_id), route="/v1/\0"))
    store.keep(kept(org_id))
    await asyncio.wait_for(store.aclose(), 30)
    assert await stored(database) == 1


async def test_who_ends_does_not_wait_for_a_database_that_hangs(
    database: Database, store: PromptStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prompts, "CLOSE_S", 0.1)
    org_id = await make_org(database)
    async with database.begin() as connection:
        await connection.execute(text("LOCK TABLE orgs IN ACCESS EXCLUSIVE MODE"))
        store.keep(kept(org_id))
        await asyncio.wait_for(store.aclose(), 30)


async def test_what_was_kept_long_enough_is_deleted(database: Database, store: PromptStore) -> None:
    org_id = await make_org(database)
    await let(database, org_id, 7)
    one = kept(org_id)
    for request in (one, kept(org_id)):
        store.keep(request)
    await store.aclose()
    async with database.begin() as connection:
        expired = update(StoredRequest).where(StoredRequest.request_id == one.request_id)
        await connection.execute(expired.values(expires_at=func.now()))
        assert await prompts.delete_expired(connection) == 1
    assert await stored(database) == 1


@pytest.mark.parametrize("days", [0, 91, -1])
async def test_days_are_within_reason(database: Database, days: int) -> None:
    with pytest.raises(BadRequest):
        await let(database, await make_org(database), days)


async def test_nobody_has_no_setting(database: Database) -> None:
    with pytest.raises(NotFound):
        await let(database, new_id(), 7)


async def test_where_too_many_wait_the_rest_is_left_out(database: Database, store: PromptStore) -> None:
    org_id = await make_org(database)
    await let(database, org_id, 7)
    for _ in range(MAX_WAITING + 10):
        store.keep(kept(org_id))
    await store.aclose()
    assert await stored(database) == MAX_WAITING


async def test_a_database_that_is_away_costs_what_came_meanwhile(database: Database) -> None:
    away = Database.connect("postgresql://nobody@127.0.0.1:9/none", timeout_s=1)
    store = PromptStore(away)
    store.keep(kept(new_id()))
    await asyncio.wait_for(store.aclose(), 30)
    await away.aclose()


async def test_a_key_that_was_looked_up_hears_of_it(database: Database) -> None:
    org_id, heard = await make_org(database), asyncio.Event()
    async with database.engine.connect() as connection:
        raw = (await connection.get_raw_connection()).driver_connection
        assert raw is not None
        await raw.add_listener("tollgate_keys", lambda *_: heard.set())
        await let(database, org_id, 3)
        await asyncio.wait_for(heard.wait(), 30)
        await raw.reset()
