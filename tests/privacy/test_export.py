"""A customer gets everything that is theirs, and nobody else's."""

import csv
import io
import zipfile
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest
from sqlalchemy import insert, text

from app.config import Settings
from app.db import Database
from app.privacy import export
from app.tables import Base, UsageEvent, new_id
from tests.factories import PASSWORD, make_key, make_org, make_user

NOW = datetime.now(UTC)


async def exported(database: Database, org_id: UUID) -> zipfile.ZipFile:
    pieces = [piece async for piece in export.export(database, org_id, NOW)]
    return zipfile.ZipFile(io.BytesIO(b"".join(pieces)))


def rows(archive: zipfile.ZipFile, table: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(archive.read(f"{table}.csv").decode())))


async def use(database: Database, org_id: UUID, num_rows: int) -> None:
    row = {"org_id": org_id, "key_id": new_id(), "model": "m", "model_digest": "d", "kind": "generation"}
    async with database.begin() as connection:
        values = [
            row
            | {"id": new_id(), "started_at": NOW, "input_tokens": number, "output_tokens": 1}
            # Several at one instant: a page may end between them.
            | {"billed_at": NOW + timedelta(seconds=number // 3)}
            for number in range(num_rows)
        ]
        await connection.execute(insert(UsageEvent), values)


async def test_everything_of_an_organisation_is_there_and_nothing_of_others(
    database: Database, settings: Settings
) -> None:
    own, other = await make_org(database), await make_org(database, "Other")
    for org_id, name in ((own, "own"), (other, "foreign")):
        await make_user(database, org_id, f"{name}@acme.example")
        await make_key(database, settings, org_id, name=name)
        await use(database, org_id, 3)
    archive = await exported(database, own)
    assert [row["name"] for row in rows(archive, "orgs")] == ["Acme"]
    assert [row["email"] for row in rows(archive, "users")] == ["own@acme.example"]
    assert [row["name"] for row in rows(archive, "api_keys")] == ["own"]
    assert sorted(row["input_tokens"] for row in rows(archive, "usage_events")) == ["0", "1", "2"]
    assert len(rows(archive, "rate_buckets")) == 1
    assert rows(archive, "metering_periods") == []
    everything = b"".join(archive.read(name) for name in archive.namelist())
    assert str(other).encode() not in everything
    assert b"foreign" not in everything
    assert archive.testzip() is None


async def test_secrets_stay_here(database: Database, settings: Settings) -> None:
    org_id = await make_org(database)
    await make_user(database, org_id)
    key = await make_key(database, settings, org_id)
    async with database.begin() as connection:
        hashes = text("SELECT encode(key_hash, 'hex') FROM api_keys UNION ALL SELECT password_hash FROM users")
        secrets = [*(await connection.execute(hashes)).scalars(), key, PASSWORD]
    archive = await exported(database, org_id)
    everything = b"".join(archive.read(name) for name in archive.namelist()).decode()
    assert [secret for secret in secrets if secret in everything] == []


async def test_many_rows_come_page_by_page_each_once(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "PAGE", 4)
    org_id = await make_org(database)
    await use(database, org_id, 22)
    archive = await exported(database, org_id)
    assert sorted(int(row["input_tokens"]) for row in rows(archive, "usage_events")) == list(range(22))


def test_every_table_of_an_organisation_is_exported_or_left_out_for_a_reason() -> None:
    tables = {table.name for table in Base.metadata.sorted_tables if "org_id" in table.columns}
    exported_names = {table.name for table in export.exported_tables()}
    assert tables - exported_names == export.NOT_EXPORTED
    assert {"orgs", "users", "rate_buckets", "metering_periods"} <= exported_names
