"""POST /webhooks/stripe: what Stripe signed is kept before it is told so; anything else leaves no trace but a count."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
import stripe
from pydantic import SecretStr
from structlog.testing import capture_logs

from app.api.webhooks import MAX_EVENT_BYTES
from app.config import Settings
from app.db import Database
from app.telemetry import STRIPE_EVENTS
from tests.api.world import World, error_of, serving
from tests.factories import make_key

OLD, NEW = "whsec_old_and_still_good", "whsec_new"
EVENT = {"id": "evt_1", "object": "event", "type": "invoice.paid", "created": 1_800_000_000, "data": {"object": {}}}
BODY = json.dumps(EVENT).encode()


@pytest.fixture
async def world(settings: Settings, database: Database) -> AsyncIterator[World]:
    """An API that believes two secrets."""
    secrets = SecretStr(f"{OLD}, {NEW},")
    async with serving(settings, database, stripe_webhook_secrets=secrets) as running:
        running.key = await make_key(database, settings)
        yield running


def sign(body: bytes, secret: str, age_s: int = 0) -> str:
    """The header as Stripe makes it."""
    header = stripe.WebhookSignature.generate_signature_header(body.decode(), secret, int(time.time()) - age_s)
    return str(header)


async def send(world: World, body: bytes = BODY, header: str | bytes | None = None) -> httpx.Response:
    headers: Any = {} if header is None else {"stripe-signature": header}
    return await world.http.post("/webhooks/stripe", content=body, headers=headers)


async def rows(world: World) -> list[Any]:
    async with world.database.begin() as connection:
        return list((await connection.exec_driver_sql("SELECT id, body FROM stripe_events")).all())


@pytest.mark.parametrize("secret", [OLD, NEW])
async def test_an_event_is_kept_byte_for_byte_while_secrets_are_rolled(world: World, secret: str) -> None:
    answer = await send(world, header=sign(BODY, secret))
    assert (answer.status_code, answer.json()) == (200, {"received": True})
    assert [(row.id, bytes(row.body)) for row in await rows(world)] == [("evt_1", BODY)]


async def test_one_delivery_a_hundred_times_at_once_is_one_row(world: World) -> None:
    before = {name: STRIPE_EVENTS.labels(name)._value.get() for name in ("stored", "duplicate")}
    answers = await asyncio.gather(*(send(world, header=sign(BODY, NEW)) for _ in range(100)))
    assert {answer.status_code for answer in answers} == {200}
    assert len(await rows(world)) == 1
    counted = {name: STRIPE_EVENTS.labels(name)._value.get() - before[name] for name in before}
    assert counted == {"stored": 1, "duplicate": 99}


FORGED = {
    "unsigned": None,
    "empty": "",
    "with another secret": sign(BODY, "whsec_other"),
    "with an empty secret": sign(BODY, ""),
    "with a blank": sign(BODY, " "),
    "of another body": sign(BODY + b" ", NEW),
    "six minutes old": sign(BODY, NEW, age_s=360),
    "without a time": sign(BODY, NEW).partition(",")[2],
    "of another time": f"t={int(time.time()) + 1},{sign(BODY, NEW).partition(',')[2]}",
    "of another scheme": sign(BODY, NEW).replace("v1=", "v0="),
    "no header at all": "nonsense",
    "not ASCII": "t=1,v1=\xfc".encode("latin-1"),
}


@pytest.mark.parametrize("header", FORGED.values(), ids=FORGED)
async def test_what_stripe_did_not_sign_makes_no_row(world: World, header: str | bytes | None) -> None:
    before = STRIPE_EVENTS.labels("refused")._value.get()
    answer = await send(world, header=header)
    assert error_of(answer) == (400, "invalid_signature", None)
    assert await rows(world) == []
    assert STRIPE_EVENTS.labels("refused")._value.get() == before + 1


async def test_a_delivery_that_is_four_minutes_old_is_taken(world: World) -> None:
    assert (await send(world, header=sign(BODY, NEW, age_s=240))).status_code == 200


@pytest.mark.parametrize("secrets", ["", " ", ",", " , ,"])
async def test_without_a_secret_nothing_is_believed(settings: Settings, database: Database, secrets: str) -> None:
    async with serving(settings, database, stripe_webhook_secrets=SecretStr(secrets)) as world:
        for secret in ("", " ", secrets):
            assert error_of(await send(world, header=sign(BODY, secret))) == (400, "invalid_signature", None)
        assert await rows(world) == []


@pytest.mark.parametrize("body", [b"{}", b"no JSON", b'{"id": "a b", "type": "x", "created": 1}', b"\xff"])
async def test_a_signed_body_that_is_no_event_makes_no_row(world: World, body: bytes) -> None:
    header = sign(body, NEW) if body != b"\xff" else sign(b"x", NEW)
    answer = await send(world, body, header)
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] in {"invalid_event", "invalid_signature"}
    assert await rows(world) == []


async def test_an_event_that_is_too_large_is_refused_before_it_is_looked_at(world: World) -> None:
    body = BODY + b" " * MAX_EVENT_BYTES
    assert error_of(await send(world, body, sign(body, NEW))) == (413, "request_too_large", None)
    fits = BODY + b" " * (MAX_EVENT_BYTES - len(BODY))
    assert (await send(world, fits, sign(fits, NEW))).status_code == 200


async def test_a_thin_event_is_kept_too(world: World) -> None:
    thin = {
        "id": "evt_thin",
        "object": "v2.core.event",
        "type": "v1.billing.meter.no_meter_found",
        "created": "2026-11-27T06:00:00.000Z",
        "related_object": None,
    }
    body = json.dumps(thin).encode()
    assert (await send(world, body, sign(body, NEW))).status_code == 200
    assert [row.id for row in await rows(world)] == ["evt_thin"]


async def test_stripe_is_told_to_come_again_while_the_database_is_away(world: World) -> None:
    database: Database = world.app.state.database
    away = Database.connect("postgresql://nobody@127.0.0.1:1/none", timeout_s=0.5)
    world.app.state.database = away
    answer = await send(world, header=sign(BODY, NEW))
    world.app.state.database = database
    await away.aclose()
    assert error_of(answer) == (503, "database_unavailable", None)
    assert (await send(world, header=sign(BODY, NEW))).status_code == 200


async def test_neither_secrets_nor_bodies_are_logged(world: World) -> None:
    with capture_logs() as logs:
        await send(world, header=sign(BODY, "whsec_other"))
        await send(world, b'{"card": "a secret of a customer"}', sign(b'{"card": "a secret of a customer"}', NEW))
        await send(world, header=sign(BODY, NEW))
    written = repr(logs)
    assert "stripe.event_refused" in written
    for secret in (OLD, NEW, "whsec", "a secret of a customer", "v1="):
        assert secret not in written


async def test_only_posts_are_taken(world: World) -> None:
    assert (await world.http.get("/webhooks/stripe")).status_code == 405


async def test_a_key_of_the_interface_opens_nothing_here(world: World) -> None:
    answer = await world.post("/webhooks/stripe", EVENT)
    assert error_of(answer) == (400, "invalid_signature", None)
