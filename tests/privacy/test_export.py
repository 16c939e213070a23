"""A customer gets everything that is theirs, and nobody else's."""

import csv
import io
import zipfile
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import event, insert, text

from app.config import Settings
from app.db import Database
from app.privacy import export
from app.tables import Base, StoredRequest, UsageEvent, new_id
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


async def test_what_is_kept_of_requests_is_read_and_sent_in_small_pieces(database: Database) -> None:
    org_id, statements, text_sent = await make_org(database), [], "prompt" * 50_000
    async with database.begin() as connection:
        row = {"org_id": org_id, "started_at": NOW, "route": "/v1/completions", "answer": b"{}", "expires_at": NOW}
        values = [row | {"request_id": new_id(), "request": text_sent.encode()} for _ in range(10)]
        await connection.execute(insert(StoredRequest), values)

    def note(*parameters: Any) -> None:
        statements.append(parameters[2])

    event.listen(database.engine.sync_engine, "before_cursor_execute", note)
    pieces = [piece async for piece in export.export(database, org_id, NOW)]
    assert len([one for one in statements if "FROM stored_requests" in one]) == 2
    assert max(len(piece) for piece in pieces) < 2 * export.PIECE_BYTES
    archive = zipfile.ZipFile(io.BytesIO(b"".join(pieces)))
    # The hexadecimal text is longer than what the csv module takes by default.
    assert archive.read("stored_requests.csv").count(text_sent.encode().hex().encode()) == 10


# Neither an organisation's nor in the hands of one: the installation's, or a person's own with every organisation.
OF_NO_ORGANISATION = {
    *("catalog_prices", "rolled_hours", "stripe_sweeps"),
    # Raw, for some days; what came of them is exported.
    "stripe_events",
    # Of people who are nobody's yet, and counts of attempts.
    *("sign_ups", "throttled"),
    # A person's own: how they prove who they are, and mails about it.
    *("account_mails", "password_resets", "recovery_codes", "second_factors"),
    # Pieces of answers in idempotency_keys.
    "answer_parts",
}


def test_every_table_is_exported_or_left_out_for_a_reason() -> None:
    exported_names = {table.name for table in export.exported_tables()}
    parts = (exported_names, export.NOT_EXPORTED, OF_NO_ORGANISATION)
    assert sum(len(part) for part in parts) == len(set().union(*parts))
    assert set().union(*parts) == {table.name for table in Base.metadata.sorted_tables}
