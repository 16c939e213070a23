"""Keys through the portal's forms, as a browser without JavaScript sends them."""

import re
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import text

from app import key_terms
from app import keys as api_keys
from app.auth import is_well_formed
from app.db import Database
from app.keys import KeyListing
from tests.api.world import World
from tests.factories import make_key, make_org
from tests.portal.visiting import Browser, visiting

KEY = re.compile(r"tg_live_[0-9A-Za-z]{36}")
EVERYTHING: dict[str, Any] = {
    "name": "nightly batch",
    "scopes": ["generation", "usage"],
    "allowed_models": ["bytes"],
    "ip_allow": "192.0.2.0/24\n 2001:db8::/32",
    "requests_per_minute": "60",
    "tokens_per_minute": "10000",
    "monthly_cap": "12.50",
    "expires_at": "2099-01-02T03:04",
}


async def keys_of(database: Database, org_id: UUID) -> list[KeyListing]:
    async with database.begin() as connection:
        return await api_keys.list_keys(connection, org_id)


async def only_key(database: Database, org_id: UUID) -> KeyListing:
    (key,) = await keys_of(database, org_id)
    return key


async def audit_of(database: Database, org_id: UUID) -> list[Any]:
    async with database.begin() as connection:
        statement = text("SELECT * FROM audit_log WHERE org_id = :org_id AND action LIKE 'key.%' ORDER BY id")
        return list(await connection.execute(statement, {"org_id": org_id}))


async def test_a_key_is_made_shown_once_and_works(world: World, acme: UUID, owner: Browser) -> None:
    answer = await owner.send_form("/keys", "/keys/new", name="laptop", scopes=["generation", "usage"])
    assert answer.status_code == 201
    assert answer.headers["cache-control"] == "no-store"
    secret = KEY.findall(answer.text)[0]
    assert is_well_formed(secret)
    called = await world.post("/v1/completions", {"model": "bytes", "prompt": "abc"}, secret)
    assert called.status_code == 200
    key = await only_key(world.database, acme)
    for path in ("/keys", f"/keys/{key.id}", "/overview", "/usage", "/usage/rows"):
        page = await owner.page(path)
        assert secret not in page
    assert f"…{secret[-4:]}" in await owner.page("/keys")
    assert "$0.000003" in await owner.page("/keys")  # 3 tokens in, 5 out: 0.00000345 USD
    assert key.created_by is not None


async def test_everything_that_a_key_can_be_limited_to(world: World, acme: UUID, owner: Browser) -> None:
    await owner.send_form("/keys", "/keys/new", **EVERYTHING)
    key = await only_key(world.database, acme)
    assert key.terms == key_terms.Terms(
        name="nightly batch",
        scopes=("generation", "usage"),
        allowed_models=("bytes",),
        ip_allow=key_terms.parse_networks(["192.0.2.0/24", "2001:db8::/32"]),
        requests_per_minute=60,
        tokens_per_minute=10_000,
        monthly_cap=12_500_000_000_000,
        expires_at=datetime(2099, 1, 2, 3, 4, tzinfo=UTC),
    )
    page = await owner.page(f"/keys/{key.id}")
    for shown in ("12.5", "2099-01-02T03:04", "192.0.2.0/24 2001:db8::/32", 'value="60"', 'value="10000"'):
        assert shown in page


async def test_a_form_that_is_sent_as_it_was_shown_changes_nothing(world: World, acme: UUID, owner: Browser) -> None:
    # Its end has seconds, which the form does not show.
    await make_key(world.database, world.settings, acme, expires_at=datetime.now(UTC) + timedelta(days=3))
    before = await only_key(world.database, acme)
    ends = before.terms.expires_at
    assert ends is not None
    fields: dict[str, Any] = {
        "name": before.name,
        "scopes": list(before.scopes),
        "expires_at": ends.strftime("%Y-%m-%dT%H:%M"),
    }
    page = f"/keys/{before.id}"
    answer = await owner.send_form(page, page, **fields)
    assert answer.headers["location"] == f"{page}?done=saved"
    assert (await only_key(world.database, acme)).terms == before.terms


async def test_limits_are_changed_and_lifted(world: World, acme: UUID, owner: Browser) -> None:
    await owner.send_form("/keys", "/keys/new", **EVERYTHING)
    key = await only_key(world.database, acme)
    page = f"/keys/{key.id}"
    await owner.send_form(page, page, name="renamed", scopes=["usage"])
    assert (await only_key(world.database, acme)).terms == key_terms.Terms("renamed", ("usage",))


@pytest.mark.parametrize(
    ("field", "value", "problem"),
    [
        ("name", "", "A name has 1 to 100 printable characters."),
        ("name", "\x07", "A name has"),
        ("scopes", [], "A key needs at least one scope."),
        ("scopes", ["everything"], "is not one of"),
        ("ip_allow", "192.0.2.1/24", "192.0.2.1/24 has bits beyond its mask; the network is 192.0.2.0/24."),
        ("ip_allow", "here", "&#39;here&#39; is not a network such as 192.0.2.0/24."),
        ("requests_per_minute", "0", "A limit is from 1"),
        ("requests_per_minute", "-1", "Please enter a whole number."),
        ("tokens_per_minute", "9" * 16, "Please enter a whole number."),
        ("tokens_per_minute", "²", "Please enter a whole number."),
        ("monthly_cap", "1,5", "Please enter an amount such as 25 or 12.50."),
        ("monthly_cap", "1e3", "Please enter an amount"),
        ("monthly_cap", "NaN", "Please enter an amount"),
        ("monthly_cap", "9000001", "Please enter at most 9,000,000."),
        ("expires_at", "tomorrow", "Please enter a date and a time."),
        ("expires_at", "2001-01-01T00:00", "A key must expire in the future."),
    ],
)
async def test_what_cannot_be_is_told_beside_its_field(
    world: World, acme: UUID, owner: Browser, field: str, value: Any, problem: str
) -> None:
    answer = await owner.send_form("/keys", "/keys/new", **(EVERYTHING | {field: value}))
    assert answer.status_code == 400
    page = " ".join(answer.text.split())
    assert problem in page
    assert f'id="f-{field}-problem"' in page
    assert ("2001:db8::/32" in page) == (field != "ip_allow")  # what was typed in is not lost
    assert await keys_of(world.database, acme) == []


async def test_a_rotated_key_goes_on_for_as_long_as_was_chosen(world: World, acme: UUID, owner: Browser) -> None:
    old = await make_key(world.database, world.settings, acme, name="old")
    key = await only_key(world.database, acme)
    before = datetime.now(UTC)
    answer = await owner.send_form(f"/keys/{key.id}/rotate", f"/keys/{key.id}", overlap="24")
    assert answer.status_code == 201
    new = KEY.findall(answer.text)[0]
    assert new != old
    rotated = next(one for one in await keys_of(world.database, acme) if one.id == key.id)
    assert rotated.terms.expires_at is not None
    assert before + timedelta(hours=24) <= rotated.terms.expires_at <= datetime.now(UTC) + timedelta(hours=24)
    for working in (old, new):
        assert (await world.get("/v1/models", working)).status_code == 200
    assert f'href="/keys/{rotated.replaced_by}"' in await owner.page(f"/keys/{key.id}")


async def test_a_key_may_be_replaced_at_once(world: World, acme: UUID, owner: Browser) -> None:
    await make_key(world.database, world.settings, acme)
    key = await only_key(world.database, acme)
    await owner.send_form(f"/keys/{key.id}/rotate", f"/keys/{key.id}", overlap="0")
    page = await owner.page(f"/keys/{key.id}")
    assert "replaced" in page
    assert "/rotate" not in page


@pytest.mark.parametrize("overlap", ["", "2", "-1", "1000000"])
async def test_a_key_does_not_go_on_for_longer_than_offered(
    world: World, acme: UUID, owner: Browser, overlap: str
) -> None:
    await make_key(world.database, world.settings, acme)
    key = await only_key(world.database, acme)
    answer = await owner.send_form(f"/keys/{key.id}/rotate", f"/keys/{key.id}", overlap=overlap)
    assert answer.status_code == 400
    assert await only_key(world.database, acme) == key


async def test_a_revoked_key_is_refused_and_stays_in_the_list(world: World, acme: UUID, owner: Browser) -> None:
    await make_key(world.database, world.settings, acme, name="lost")
    key = await only_key(world.database, acme)
    answer = await owner.send_form(f"/keys/{key.id}/revoke", f"/keys/{key.id}")
    assert answer.headers["location"] == f"/keys/{key.id}?done=revoked"
    assert "The key has ended." in await owner.page(f"/keys/{key.id}?done=revoked")
    assert (await only_key(world.database, acme)).revoke_reason == "revoked"
    # Once more changes nothing; a revoked key is not changed either.
    token_page = "/keys/new"
    assert (await owner.send_form(f"/keys/{key.id}/revoke", token_page)).status_code == 303
    assert (await owner.send_form(f"/keys/{key.id}", token_page, name="x", scopes="usage")).status_code == 409
    assert "lost" in await owner.page("/keys")


async def test_what_is_done_to_keys_is_in_the_audit_log_without_the_key(
    world: World, acme: UUID, owner: Browser
) -> None:
    answer = await owner.send_form("/keys", "/keys/new", name="laptop", scopes=["usage"])
    secrets = KEY.findall(answer.text)
    key = await only_key(world.database, acme)
    page = f"/keys/{key.id}"
    await owner.send_form(page, page, name="desk", scopes=["usage"])
    secrets += KEY.findall((await owner.send_form(f"{page}/rotate", page, overlap="1")).text)
    await owner.send_form(f"{page}/revoke", page)
    entries = await audit_of(world.database, acme)
    assert [entry.action for entry in entries] == ["key.create", "key.change", "key.rotate", "key.revoke"]
    assert {entry.target for entry in entries} == {f"key:{key.id}"}
    assert {entry.actor.partition(":")[0] for entry in entries} == {"user"}
    assert all(entry.ip and entry.request_id for entry in entries)
    assert (entries[1].before["name"], entries[1].after["name"]) == ("laptop", "desk")
    assert len(secrets) == 2
    assert not any(secret in str(entries) for secret in secrets)


async def test_a_key_of_another_organisation_is_not_there(world: World, acme: UUID, owner: Browser) -> None:
    other = await make_org(world.database, "Globex")
    await make_key(world.database, world.settings, other, name="theirs")
    key = await only_key(world.database, other)
    for id in (key.id, uuid4(), "nonsense"):
        assert (await owner.get(f"/keys/{id}")).status_code == 404
        for action, fields in (
            ("", {"name": "mine", "scopes": "usage"}),
            ("/rotate", {"overlap": "1"}),
            ("/revoke", {}),
        ):
            answer = await owner.send_form(f"/keys/{id}{action}", "/keys/new", **fields)
            assert answer.status_code == 404, action
            assert "theirs" not in answer.text
    assert (await owner.get(f"/keys?after={key.id}")).status_code == 400
    assert await only_key(world.database, other) == key
    assert "theirs" not in await owner.page("/keys")


async def test_long_lists_of_keys_have_pages(world: World, acme: UUID, owner: Browser) -> None:
    for number in range(52):
        await make_key(world.database, world.settings, acme, name=f"number-{number}.")
    page = await owner.page("/keys")
    assert page.count("number-") == 50
    following = re.search(r'href="(/keys\?after=[^"]+)"', page)
    assert following is not None
    last = await owner.page(following[1])
    assert "number-1." in last
    assert "number-0." in last
    assert last.count("number-") == 2


async def test_viewers_and_the_billing_role_see_no_keys(world: World, acme: UUID) -> None:
    await make_key(world.database, world.settings, acme, name="secret-name")
    key = await only_key(world.database, acme)
    for role in ("viewer", "billing"):
        async with visiting(world, acme, role) as browser:
            for path in ("/keys", "/keys/new", f"/keys/{key.id}"):
                answer = await browser.get(path)
                assert answer.status_code == 403
                assert "secret-name" not in answer.text
            answer = await browser.send_form(f"/keys/{key.id}/revoke", "/settings")
            assert answer.status_code == 403
            assert 'href="/keys"' not in await browser.page("/overview")
    assert (await only_key(world.database, acme)).revoked_at is None


async def test_another_site_cannot_make_or_end_keys(world: World, acme: UUID, owner: Browser) -> None:
    await make_key(world.database, world.settings, acme)
    key = await only_key(world.database, acme)
    for path in ("/keys", f"/keys/{key.id}", f"/keys/{key.id}/rotate", f"/keys/{key.id}/revoke"):
        for fields in ({}, {"token": "0" * 64}):
            answer = await owner.post(path, data={"name": "x", "scopes": "usage", "overlap": "1", **fields})
            assert answer.status_code == 403
    assert await only_key(world.database, acme) == key


async def test_an_organisation_with_too_many_keys_is_told_so(
    world: World, acme: UUID, owner: Browser, monkeypatch: pytest.MonkeyPatch
) -> None:
    await make_key(world.database, world.settings, acme)
    monkeypatch.setattr(api_keys, "MAX_KEYS", 1)
    answer = await owner.send_form("/keys", "/keys/new", name="one more", scopes="usage")
    assert answer.status_code == 409
    assert 'role="alert"' in answer.text
    assert len(await keys_of(world.database, acme)) == 1
