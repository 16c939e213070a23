import asyncio
import importlib.util
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Connection, text
from sqlalchemy.exc import IntegrityError

from app import migrate
from app.config import Settings
from app.db import Database
from app.errors import ConfigError, DatabaseUnavailable
from app.tables import Base

CHECKS = (
    "SELECT conname FROM pg_constraint c JOIN pg_class t ON t.oid = c.conrelid JOIN pg_namespace n"
    " ON n.oid = t.relnamespace WHERE contype = 'c' AND nspname = 'public' AND NOT relispartition"
)

INSERT_EVENT = text(
    "INSERT INTO usage_events (id, started_at, org_id, key_id, model, model_digest, kind, input_tokens,"
    " output_tokens) VALUES (gen_random_uuid(), now() + make_interval(months => :ahead), gen_random_uuid(),"
    " gen_random_uuid(), 'm', 'd', 'generation', 1, 1)"
)


async def revision_of(url: str) -> str:
    database = Database.connect(url)
    async with database.begin() as connection:
        found = (await connection.execute(text("SELECT version_num FROM alembic_version"))).scalar_one()
    await database.aclose()
    return str(found)


async def test_an_empty_database_reaches_the_head(empty_database_url: str) -> None:
    await migrate.upgrade(empty_database_url)
    assert await revision_of(empty_database_url) == migrate.head()


async def test_a_second_run_changes_nothing(empty_database_url: str) -> None:
    await migrate.upgrade(empty_database_url)
    await migrate.upgrade(empty_database_url)
    assert await revision_of(empty_database_url) == migrate.head()


async def test_no_connection_is_left_open(empty_database_url: str) -> None:
    def fail(_: Connection) -> None:
        raise LookupError

    await migrate.upgrade(empty_database_url)
    with pytest.raises(LookupError):
        await migrate.on_connection(empty_database_url, fail)
    others = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
    database = Database.connect(empty_database_url)
    # A backend takes a moment to end; one that was left open would stay for good.
    async with asyncio.timeout(30):
        num_others = 1
        while num_others:
            async with database.begin() as connection:
                num_others = (await connection.execute(text(others))).scalar_one()
    await database.aclose()


async def test_migrators_at_once_do_not_race(empty_database_url: str) -> None:
    await asyncio.gather(*(migrate.upgrade(empty_database_url) for _ in range(4)))
    assert await revision_of(empty_database_url) == migrate.head()


async def test_the_tables_are_those_of_the_models(database: Database) -> None:
    def compare(connection: Connection) -> list[object]:
        options = {"include_name": migrate.is_ours, "compare_type": True, "compare_server_default": True}
        return list(compare_metadata(MigrationContext.configure(connection, opts=options), Base.metadata))

    async with database.begin() as connection:
        assert await connection.run_sync(compare) == []


async def test_the_checks_are_those_of_the_models(database: Database) -> None:
    declared = {
        str(constraint.name)
        for table in Base.metadata.sorted_tables
        for constraint in table.constraints
        if str(constraint.name).startswith("ck_")
    }
    async with database.begin() as connection:
        assert {*(await connection.execute(text(CHECKS))).scalars()} == declared


async def test_months_ahead_have_their_partition_from_the_first_migration(empty_database_url: str) -> None:
    await migrate.upgrade(empty_database_url)
    database = Database.connect(empty_database_url)
    async with database.begin() as connection:
        for ahead in range(4):
            await connection.execute(INSERT_EVENT, {"ahead": ahead})
    with pytest.raises(IntegrityError, match="no partition"):
        async with database.begin() as connection:
            await connection.execute(INSERT_EVENT, {"ahead": 5})
    await database.aclose()


async def test_rows_from_before_parameters_were_kept_have_none(empty_database_url: str) -> None:
    await migrate.upgrade(empty_database_url, "0002")
    database = Database.connect(empty_database_url)
    async with database.begin() as connection:
        await connection.execute(INSERT_EVENT, {"ahead": 0})
    await database.aclose()
    await migrate.upgrade(empty_database_url)
    database = Database.connect(empty_database_url)
    async with database.begin() as connection:
        assert (await connection.execute(text("SELECT parameters FROM usage_events"))).scalar_one() is None
    await database.aclose()


async def test_a_cap_stays_whose_it_was(empty_database_url: str) -> None:
    histories = {
        "never changed": (),
        "its own": ("operator", "customer"),
        "an operator's": ("customer", "operator"),
        "an operator changed something else": ("customer", "credit"),
    }
    entries = {
        "operator": ("budget.set", '{"spend_cap": 7}'),
        "customer": ("cap.set", '{"spend_cap": 7}'),
        "credit": ("budget.set", '{"credit_added": 1}'),
    }
    await migrate.upgrade(empty_database_url, "0011")
    database = Database.connect(empty_database_url)
    async with database.begin() as connection:
        for name, history in histories.items():
            insert = "INSERT INTO orgs (id, name) VALUES (gen_random_uuid(), :name) RETURNING id"
            org_id = (await connection.execute(text(insert), {"name": name})).scalar_one()
            budget = text("INSERT INTO org_budgets (org_id, spend_cap) VALUES (:org_id, 7)")
            await connection.execute(budget, {"org_id": org_id})
            for action, after in (entries[word] for word in history):
                entry = text(
                    "INSERT INTO audit_log (at, org_id, actor, action, target, after, previous_hash, hash) VALUES"
                    " (now(), :org_id, 'a', :action, 't', CAST(:after AS jsonb), sha256('a'), sha256('b'))"
                )
                await connection.execute(entry, {"org_id": org_id, "action": action, "after": after})
    await database.aclose()
    await migrate.upgrade(empty_database_url)
    database = Database.connect(empty_database_url)
    caps = "SELECT o.name, b.spend_cap, b.own_spend_cap FROM org_budgets b JOIN orgs o ON o.id = b.org_id"
    async with database.begin() as connection:
        found = {name: (operator, own) for name, operator, own in await connection.execute(text(caps))}
    await database.aclose()
    assert found == {
        "never changed": (7, None),
        "its own": (None, 7),
        "an operator's": (7, None),
        "an operator changed something else": (None, 7),
    }


async def test_a_table_lock_is_not_waited_for_long(empty_database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(migrate, "WAIT_FOR_TABLE", "1ms")
    seen: list[str] = []

    def show(connection: Connection) -> None:
        seen.append(connection.execute(text("SHOW lock_timeout")).scalar_one())

    await migrate.on_connection(empty_database_url, show)
    assert seen == ["1ms"]


async def test_a_server_that_is_away_is_unavailable() -> None:
    with pytest.raises(DatabaseUnavailable):
        await migrate.upgrade("postgresql://nobody@/none?host=/nonexistent")


def test_an_installed_package_brings_its_migrations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "migrations").mkdir()
    monkeypatch.setattr(migrate, "__file__", str(tmp_path / "migrate.py"))
    assert migrate.migrations_dir() == tmp_path / "migrations"


def test_each_revision_follows_one_other() -> None:
    revisions = {}
    for path in (migrate.migrations_dir() / "versions").glob("*.py"):
        spec = importlib.util.spec_from_file_location(path.stem, path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        revisions[module.revision] = module.down_revision
    assert sorted(str(down) for down in revisions.values()) == sorted(
        ["None", *(str(name) for name in revisions if name != migrate.head())]
    )


def test_no_address_is_one_clear_line() -> None:
    with pytest.raises(ConfigError, match="TOLLGATE_DATABASE_URL"):
        migrate.required_url(Settings())
