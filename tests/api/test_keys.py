"""/v1/keys: managed with a key of the scope ``keys``; leaked ones are reported without any."""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest

from app import auth
from app.api.key_schemas import ApiKeyAnswer, CreatedKey, Scope
from app.api.keys import LEAK_REPORTS
from app.throttle import Limit
from tests.api.world import World, error_of, serving
from tests.factories import make_key, make_org
from tests.fakes import until
from tests.test_key_cache import forgotten

NOT_FOUND = (404, "key_not_found", "key_id")


async def create(world: World, **terms: Any) -> dict[str, Any]:
    response = await world.post("/v1/keys", {"name": "made", **terms})
    assert response.status_code == 200, response.text
    body: dict[str, Any] = response.json()
    CreatedKey.model_validate_json(response.text)
    return body


async def change(world: World, key_id: str, **terms: Any) -> Any:
    return await world.http.patch(f"/v1/keys/{key_id}", json=terms, headers=world.auth())


async def delete(world: World, key_id: str) -> Any:
    return await world.http.delete(f"/v1/keys/{key_id}", headers=world.auth())


async def use(world: World, key: str, model: str = "bytes") -> Any:
    return await world.post("/v1/completions", {"model": model, "prompt": "a"}, key)


async def wait_for_status(world: World, key: str, status: int) -> Any:
    """Asks until the answer has this status; a change may take up to a second to arrive."""
    async with asyncio.timeout(30):
        while (response := await use(world, key)).status_code != status:
            pass
    return response


async def test_a_created_key_works_and_is_shown_once(world: World) -> None:
    created = await create(world)
    assert (await use(world, created["key"])).status_code == 200
    assert created["scopes"] == list(auth.DEFAULT_SCOPES)
    listed = (await world.get("/v1/keys")).json()["data"]
    shown = (await world.get(f"/v1/keys/{created['id']}")).json()
    assert listed[0] | {"last_used_at": None} == shown | {"last_used_at": None}
    assert shown == {name: value for name, value in created.items() if name != "key"}
    assert created["key"] not in (await world.get("/v1/keys")).text


async def test_every_term_is_kept_and_shown(world: World) -> None:
    end = (datetime.now(UTC) + timedelta(days=3)).replace(microsecond=0)
    terms = {
        "scopes": ["usage", "keys"],
        "allowed_models": ["bytes"],
        "ip_allow": ["192.0.2.0/24", "2001:db8::1"],
        "requests_per_minute": 7,
        "tokens_per_minute": 70,
        "monthly_cap": {"value": "12.5", "currency": "usd"},
        "expires_at": end.isoformat(),
    }
    created = await create(world, **terms)
    shown = ApiKeyAnswer.model_validate_json((await world.get(f"/v1/keys/{created['id']}")).text)
    assert (shown.scopes, shown.allowed_models) == (["usage", "keys"], ["bytes"])
    assert shown.ip_allow == ["192.0.2.0/24", "2001:db8::1/128"]
    assert (shown.requests_per_minute, shown.tokens_per_minute, shown.expires_at) == (7, 70, end)
    assert created["monthly_cap"] == {"value": "12.500000", "currency": "usd"}
    async with world.database.begin() as connection:
        caps = await connection.exec_driver_sql("SELECT monthly_cap FROM api_keys WHERE monthly_cap IS NOT NULL")
        assert caps.scalar_one() == 12_500_000_000_000


def test_the_schema_names_every_scope() -> None:
    assert Scope.__args__ == auth.SCOPES  # type: ignore[attr-defined]


async def test_null_for_a_new_key_is_the_default(world: World) -> None:
    created = await create(world, scopes=None, ip_allow=None, expires_at=None)
    assert (created["scopes"], created["ip_allow"]) == (list(auth.DEFAULT_SCOPES), None)


@pytest.mark.parametrize(
    ("terms", "param"),
    [
        ({"name": ""}, "name"),
        ({"name": "a\nb"}, "name"),
        ({"scopes": []}, "scopes"),
        ({"scopes": ["root"]}, "scopes[0]"),
        ({"allowed_models": []}, "allowed_models"),
        ({"allowed_models": ["\0"]}, "allowed_models"),
        ({"ip_allow": ["here"]}, "ip_allow"),
        ({"ip_allow": ["192.0.2.1/24"]}, "ip_allow"),
        ({"requests_per_minute": 0}, "requests_per_minute"),
        ({"tokens_per_minute": 2**31}, "tokens_per_minute"),
        ({"monthly_cap": {"value": "-1", "currency": "usd"}}, "monthly_cap.value"),
        ({"monthly_cap": {"value": "9000001", "currency": "usd"}}, "monthly_cap"),
        ({"expires_at": "2020-01-01T00:00:00Z"}, "expires_at"),
        ({"expires_at": "2036-01-01T00:00:00"}, "expires_at"),
        ({"owner": "me"}, "owner"),
    ],
)
async def test_what_no_key_can_have_is_refused_by_name(world: World, terms: dict[str, Any], param: str) -> None:
    status, _, named = error_of(await world.post("/v1/keys", {"name": "k", **terms}))
    assert (status, named) == (400, param)
    created = await create(world)
    status, _, named = error_of(await change(world, created["id"], **terms))
    assert (status, named) == (400, param)


async def test_a_change_reaches_the_next_requests(world: World) -> None:
    created = await create(world)
    assert (await use(world, created["key"])).status_code == 200
    changed = (await change(world, created["id"], allowed_models=["labels"])).json()
    assert (changed["allowed_models"], changed["name"]) == (["labels"], "made")
    refused = await wait_for_status(world, created["key"], 403)
    assert error_of(refused) == (403, "model_not_allowed", "model")
    await change(world, created["id"], allowed_models=None)
    await wait_for_status(world, created["key"], 200)


async def test_name_and_scopes_cannot_be_taken_away(world: World) -> None:
    created = await create(world)
    for param in ("name", "scopes"):
        assert error_of(await change(world, created["id"], **{param: None})) == (400, "invalid_request_error", param)


async def test_a_key_for_some_models_sees_only_those(world: World) -> None:
    key = await make_key(world.database, world.settings, allowed_models=("labels", "gone"))
    listed = (await world.get("/v1/models", key)).json()["data"]
    assert [model["id"] for model in listed] == ["labels"]
    assert (await world.get("/v1/models/labels", key)).status_code == 200
    for name in ("bytes", "gone-too"):
        assert error_of(await world.get(f"/v1/models/{name}", key)) == (403, "model_not_allowed", "model")
    assert error_of(await use(world, key)) == (403, "model_not_allowed", "model")
    assert (await world.post("/v1/classifications", {"model": "labels", "input": "a"}, key)).status_code == 200
    assert await world.usage_rows()


async def test_a_key_is_refused_from_other_addresses(world: World) -> None:
    elsewhere = await create(world, ip_allow=["192.0.2.0/24"])
    assert error_of(await use(world, elsewhere["key"])) == (403, "ip_not_allowed", None)
    here = await create(world, ip_allow=["127.0.0.0/8"])
    assert (await use(world, here["key"])).status_code == 200


async def test_a_revoked_key_is_refused_and_its_usage_stays(world: World) -> None:
    created = await create(world)
    await use(world, created["key"])
    revoked = (await delete(world, created["id"])).json()
    assert (revoked["state"], revoked["revoke_reason"]) == ("revoked", "revoked")
    assert error_of(await use(world, created["key"])) == (401, "invalid_api_key", None)
    assert (await delete(world, created["id"])).json() == revoked
    assert len(await world.usage_rows()) == 1


async def until_heard(world: World) -> None:
    """Its channel of news is open: nothing is forgotten any more because it opens."""

    async def is_heard() -> bool:
        return bool(world.app.state.key_cache.is_heard)

    await until(is_heard)


async def test_a_revocation_reaches_every_worker(world: World) -> None:
    """Two API processes over one database: neither asks the other."""
    created = await create(world)
    async with serving(world.settings, world.database) as second:
        await until_heard(second)
        assert (await use(second, created["key"])).status_code == 200
        pepper = world.settings.key_pepper.get_secret_value()
        key_hash = auth.hash_key(created["key"], pepper)
        assert second.app.state.key_cache.get(key_hash) is not None
        await delete(world, created["id"])
        # Admission asks the database: not even the first request after it succeeds.
        assert (await use(second, created["key"])).status_code == 401
        await forgotten(second.app.state.key_cache, key_hash)


async def test_a_known_key_is_not_looked_up_again(world: World) -> None:
    await until_heard(world)
    await world.get("/v1/models")
    pepper = world.settings.key_pepper.get_secret_value()
    known = world.app.state.key_cache.get(auth.hash_key(world.key, pepper))
    assert known is not None
    async with world.database.begin() as connection:
        # Not a change that is told: only who looks the key up again would see it.
        await connection.exec_driver_sql("UPDATE rate_buckets SET requests_level = 1")
    await world.get("/v1/models")
    assert world.app.state.key_cache.get(auth.hash_key(world.key, pepper)) is known


async def test_after_a_rotation_both_keys_work(world: World) -> None:
    created = await create(world, requests_per_minute=50)
    rotated = (await world.post(f"/v1/keys/{created['id']}/rotate", {})).json()
    old = (await world.get(f"/v1/keys/{created['id']}")).json()
    assert (old["replaced_by"], old["state"]) == (rotated["id"], "active")
    ahead = datetime.fromisoformat(old["expires_at"]) - datetime.now(UTC)
    assert timedelta(hours=23) < ahead <= timedelta(hours=24)
    assert rotated["requests_per_minute"] == 50
    for key in (created["key"], rotated["key"]):
        assert (await use(world, key)).status_code == 200
    again = await world.post(f"/v1/keys/{created['id']}/rotate", {})
    assert error_of(again) == (409, "key_replaced", None)


async def test_a_rotation_may_end_the_old_key_at_once(world: World) -> None:
    created = await create(world)
    rotated = (await world.post(f"/v1/keys/{created['id']}/rotate", {"overlap_s": 0})).json()
    assert (await use(world, created["key"])).status_code == 401
    assert (await use(world, rotated["key"])).status_code == 200
    assert (await world.get(f"/v1/keys/{created['id']}")).json()["revoke_reason"] == "rotated"


async def test_an_overlap_has_a_limit(world: World) -> None:
    created = await create(world)
    for overlap_s in (-1, 367 * 86_400):
        refused = await world.post(f"/v1/keys/{created['id']}/rotate", {"overlap_s": overlap_s})
        assert error_of(refused) == (400, "invalid_request_error", "overlap_s")


async def test_pages_hold_every_key_once(world: World) -> None:
    made = [(await create(world, name=str(number)))["id"] for number in range(4)]
    found, after = list[str](), dict[str, str]()
    while True:
        page = (await world.get("/v1/keys", limit=2, **after)).json()
        found += [key["id"] for key in page["data"]]
        if not page["has_more"]:
            break
        after = {"after": page["next"]}
    assert found[:-1] == made[::-1]  # the last is the world's own
    assert page["next"] is None


@pytest.mark.parametrize("after", ["nonsense", str(UUID(int=9))])
async def test_a_page_after_nothing_is_refused(world: World, after: str) -> None:
    assert error_of(await world.get("/v1/keys", after=after)) == (400, "invalid_request_error", "after")


@pytest.mark.parametrize("key_id", ["nonsense", str(UUID(int=9)), "%00"])
async def test_a_key_that_is_not_there_is_not_found(world: World, key_id: str) -> None:
    assert error_of(await world.get(f"/v1/keys/{key_id}")) == NOT_FOUND
    assert error_of(await change(world, key_id, name="x")) == NOT_FOUND
    assert error_of(await delete(world, key_id)) == NOT_FOUND
    assert error_of(await world.post(f"/v1/keys/{key_id}/rotate", {})) == NOT_FOUND


async def test_a_key_of_another_organisation_is_not_found(world: World) -> None:
    created = await create(world)
    stranger = await make_key(world.database, world.settings, await make_org(world.database, "Other"))
    world.key = stranger
    await test_a_key_that_is_not_there_is_not_found(world, created["id"])
    assert (await use(world, created["key"])).status_code == 200


async def test_a_leaked_key_ends_and_the_answer_tells_nothing(world: World) -> None:
    created = await create(world)
    headers = {"content-type": "application/json"}
    answers = [
        await world.http.post("/v1/leaked-keys", json={"key": key}, headers=headers)
        for key in (f" {created['key']}\n", created["key"], auth.generate_key())
    ]
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.text for answer in answers}) == 1
    volatile = {"x-request-id", "openai-processing-ms", "date"}
    assert len({str([h for h in answer.headers.items() if h[0] not in volatile]) for answer in answers}) == 1
    assert (await use(world, created["key"])).status_code == 401
    assert (await world.get(f"/v1/keys/{created['id']}")).json()["revoke_reason"] == "leaked"


@pytest.mark.parametrize("key", ["", "sk-abc", "tg_live_" + "0" * 36, "tg_live_" + "é" * 36])
async def test_what_is_not_a_key_is_refused_without_the_database(world: World, key: str) -> None:
    response = await world.http.post("/v1/leaked-keys", json={"key": key})
    assert error_of(response) == (400, "invalid_request_error", "key")


async def test_reports_are_slowed_down_per_address(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    assert LEAK_REPORTS.num <= 60
    monkeypatch.setattr("app.api.keys.LEAK_REPORTS", Limit(2, LEAK_REPORTS.window))
    for _ in range(2):
        assert (await world.http.post("/v1/leaked-keys", json={"key": auth.generate_key()})).status_code == 200
    response = await world.http.post("/v1/leaked-keys", json={"key": auth.generate_key()})
    assert error_of(response) == (429, "rate_limit_exceeded", None)
    assert response.headers["retry-after"] == "60"


async def test_what_a_key_does_to_keys_is_in_the_audit_log(world: World) -> None:
    created = await create(world, name="first")
    key_id = created["id"]
    await change(world, key_id, name="second")
    new = (await world.post(f"/v1/keys/{key_id}/rotate", {})).json()
    await delete(world, key_id)
    await world.http.post("/v1/leaked-keys", json={"key": new["key"]})
    await world.http.post("/v1/leaked-keys", json={"key": new["key"]})  # has ended already
    async with world.database.begin() as connection:
        rows = await connection.exec_driver_sql(
            "SELECT actor, action, target, \"before\"->>'name' AS old, \"after\"->>'name' AS new, host(ip) AS ip,"
            ' request_id IS NOT NULL AS has_request, "after" FROM audit_log ORDER BY id'
        )
        told = rows.all()
        (own,) = await connection.exec_driver_sql(f"SELECT id FROM api_keys WHERE last4 = '{world.key[-4:]}'")
    by = f"key:{own.id}"
    assert [tuple(row[:5]) for row in told] == [
        (by, "key.create", f"key:{key_id}", None, "first"),
        (by, "key.change", f"key:{key_id}", "first", "second"),
        (by, "key.rotate", f"key:{key_id}", None, None),
        (by, "key.revoke", f"key:{key_id}", None, None),
        ("somebody", "key.leak", f"key:{new['id']}", None, None),
    ]
    assert {(row.ip, row.has_request) for row in told} == {("127.0.0.1", True)}
    assert created["key"] not in str(told)
    assert new["key"] not in str(told)
