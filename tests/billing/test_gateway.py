"""The border to Stripe: what its answers and silences become, through the real client over a socket."""

import asyncio
import json
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

import pytest
from pydantic import SecretStr

from app.billing import catalog
from app.billing.gateway import Gateway
from app.config import Settings
from app.errors import ConfigError, StripeRefused, StripeUnavailable
from app.telemetry import configure_logging

API_KEY = "sk_test_of_the_border"
HANG = HTTPStatus.CONTINUE
"""Stands for an answer that never comes."""
CUT = HTTPStatus.SWITCHING_PROTOCOLS
"""Stands for a connection that ends without one."""


@dataclass
class Counterpart:
    """Answers every request with the next of its answers, the last for ever; remembers what was asked."""

    answers: list[tuple[int, object]]
    asked: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)
    address: str = ""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while await self._answer(reader, writer):
                pass
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        first, *rest = head.strip().split("\r\n")
        headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in rest)}
        body = (await reader.readexactly(int(headers.get("content-length", 0)))).decode()
        self.asked.append((first.rsplit(" ", 1)[0], body, headers))
        status, answer = self.answers[0] if len(self.answers) == 1 else self.answers.pop(0)
        if status == HANG:
            await asyncio.Event().wait()
        if status == CUT:
            return False
        raw = answer.encode() if isinstance(answer, str) else json.dumps(answer).encode()
        writer.write(b"HTTP/1.1 %d Some\r\nContent-Type: application/json\r\nRequest-Id: req_1\r\n" % status)
        writer.write(b"Content-Length: %d\r\n\r\n" % len(raw) + raw)
        await writer.drain()
        return True


@asynccontextmanager
async def facing(*answers: tuple[int, object], **options: Any) -> AsyncIterator[tuple[Gateway, Counterpart]]:
    """A gateway and what it talks to."""
    counterpart = Counterpart(list(answers))
    tasks: set[asyncio.Task[None]] = set()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tasks.add(asyncio.ensure_future(counterpart.serve(reader, writer)))

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    counterpart.address = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    gateway = Gateway(API_KEY, api_base=counterpart.address, **{"retries": 0, **options})
    try:
        yield gateway, counterpart
    finally:
        await gateway.aclose()
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def listing(*objects: object, has_more: bool = False) -> tuple[int, object]:
    return 200, {"object": "list", "data": list(objects), "has_more": has_more, "url": "/v1/coupons"}


def refusal(status: int, **fields: object) -> tuple[int, object]:
    return status, {"error": {"type": "invalid_request_error", "message": "No.", **fields}}


async def test_what_comes_back_is_what_was_on_the_wire() -> None:
    price = {"id": "price_1", "object": "price", "unit_amount_decimal": "0.0000001", "metadata": {"a": "b"}}
    async with facing((200, price)) as (gateway, counterpart):
        assert await gateway.create_price({"currency": "usd", "product": "p"}, "key-1") == price
    [(request, body, headers)] = counterpart.asked
    assert (request, body) == ("POST /v1/prices", "currency=usd&product=p")
    assert headers["idempotency-key"] == "key-1"
    assert headers["authorization"] == f"Bearer {API_KEY}"


async def test_a_list_is_read_to_its_end() -> None:
    pages = [listing({"id": "a"}, {"id": "b"}, has_more=True), listing({"id": "c"})]
    async with facing(*pages) as (gateway, counterpart):
        assert [coupon["id"] for coupon in await gateway.list_coupons()] == ["a", "b", "c"]
    assert [request for request, _, _ in counterpart.asked] == [
        "GET /v1/coupons?limit=100",
        "GET /v1/coupons?limit=100&starting_after=b",
    ]


async def test_many_lookup_keys_are_asked_for_ten_at_a_time_archived_ones_too() -> None:
    async with facing(listing()) as (gateway, counterpart):
        assert await gateway.list_prices([f"key{number}" for number in range(11)]) == []
    assert len(counterpart.asked) == 4
    assert [request.count("lookup_keys") for request, _, _ in counterpart.asked] == [10, 10, 1, 1]
    assert ["active=False" in request or "active=false" in request for request, _, _ in counterpart.asked] == [
        False,
        True,
        False,
        True,
    ]


UNCLEAR: dict[str, tuple[int, object]] = {
    "wrong key": refusal(401),
    "in progress": refusal(409),
    "busy": refusal(429),
    "fault": (500, {"error": {"type": "api_error", "message": "Oops."}}),
    "away": (503, "<html>no JSON</html>"),
    "garbled": (200, "no JSON either"),
    "cut": (CUT, None),
}


@pytest.mark.parametrize("answer", UNCLEAR.values(), ids=UNCLEAR)
async def test_what_leaves_open_whether_it_was_done_can_be_asked_again(answer: tuple[int, object]) -> None:
    async with facing(answer) as (gateway, _):
        with pytest.raises(StripeUnavailable, match="not reachable") as raised:
            await gateway.create_price({"currency": "usd"}, "key-1")
    assert raised.value.status == 503
    assert raised.value.headers["retry-after"] == "1"


async def test_silence_ends_at_the_deadline() -> None:
    async with facing((HANG, None), timeout_s=0.05) as (gateway, _):
        with pytest.raises(StripeUnavailable):
            await gateway.list_coupons()


async def test_nobody_there_is_unavailable() -> None:
    async with facing(listing()) as (_, counterpart):
        pass
    gone = Gateway(API_KEY, api_base=counterpart.address, retries=0)
    with pytest.raises(StripeUnavailable):
        await gone.list_coupons()
    await gone.aclose()


async def test_what_failed_for_a_moment_is_tried_again_under_the_same_key() -> None:
    async with facing(UNCLEAR["fault"], (200, {"id": "price_1"}), retries=1) as (gateway, counterpart):
        assert await gateway.create_price({"currency": "usd"}, "key-1") == {"id": "price_1"}
    assert [headers["idempotency-key"] for _, _, headers in counterpart.asked] == ["key-1", "key-1"]


async def test_a_refusal_says_what_stripe_says() -> None:
    async with facing(refusal(404, code="resource_missing", param="price")) as (gateway, _):
        with pytest.raises(StripeRefused, match=r"^No\.$") as raised:
            await gateway.update_product("tollgate_x", {"name": "X"})
    error = raised.value
    assert (error.stripe_status, error.stripe_code, error.param) == (404, "resource_missing", "price")
    assert (error.status, error.code, error.decline_code) == (409, "stripe_refused", None)


@pytest.mark.parametrize(("status", "fields"), [(400, {"type": "idempotency_error"}), (403, {})])
async def test_other_refusals_are_clear_too(status: int, fields: dict[str, object]) -> None:
    async with facing(refusal(status, **fields)) as (gateway, _):
        with pytest.raises(StripeRefused) as raised:
            await gateway.list_coupons()
    assert (raised.value.stripe_status, raised.value.stripe_code) == (status, None)


@pytest.mark.parametrize(
    ("told", "lacking"),
    [
        (
            "Key 'rk_test_****abc' lacks it. Having the 'rak_plan_write' permission would allow it.",
            "rak_plan_write",
        ),
        ("The key 'rk_test_****abc' does not have access.", "a permission"),
    ],
)
async def test_a_key_that_may_not_is_not_shown_to_customers(told: str, lacking: str) -> None:
    async with facing(refusal(403, message=told)) as (gateway, _):
        with pytest.raises(StripeRefused, match=rf"the key of Stripe lacks {lacking}\.$") as raised:
            await gateway.list_coupons()
    assert "rk_test" not in raised.value.message


async def test_a_declined_card_is_a_402_with_the_banks_reason() -> None:
    declined = refusal(402, type="card_error", code="card_declined", decline_code="insufficient_funds")
    async with facing(declined) as (gateway, _):
        with pytest.raises(StripeRefused) as raised:
            await gateway.list_coupons()
    assert (raised.value.status, raised.value.stripe_code) == (402, "card_declined")
    assert raised.value.decline_code == "insufficient_funds"


async def test_the_key_is_in_no_message_and_no_log(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(Settings(log_format="json", log_level="debug"))
    for answer in (refusal(401, message=f"Invalid API Key provided: {API_KEY}"), UNCLEAR["fault"]):
        async with facing(answer) as (gateway, _):
            with pytest.raises(StripeUnavailable) as raised:
                await gateway.list_coupons()
            assert API_KEY not in "".join(traceback.format_exception(raised.value))
    logged = capsys.readouterr().err
    assert logged.count("stripe.unavailable") == 2
    assert API_KEY not in logged


async def test_the_meter_is_asked_for_once() -> None:
    meters = listing({"id": "mtr_1", "event_name": "other"}, {"id": "mtr_2", "event_name": catalog.METER})
    async with facing(meters) as (gateway, counterpart):
        assert [await gateway.meter_id(catalog.METER) for _ in range(3)] == ["mtr_2"] * 3
    assert len(counterpart.asked) == 1


async def test_an_account_without_the_meter_is_to_be_prepared_first() -> None:
    async with facing(listing()) as (gateway, _):
        with pytest.raises(ConfigError, match="tollgate billing sync-catalog"):
            await gateway.meter_id(catalog.METER)


async def test_without_a_key_there_is_no_gateway(settings: Settings) -> None:
    with pytest.raises(StripeUnavailable, match="not set up"):
        Gateway.of(settings)


async def test_a_gateway_is_that_of_the_settings(settings: Settings) -> None:
    async with facing(listing()) as (_, counterpart):
        values = {"stripe_api_key": SecretStr("sk_test_other"), "stripe_api_base": counterpart.address}
        gateway = Gateway.of(settings.model_copy(update=values))
        assert await gateway.list_coupons() == []
        await gateway.aclose()
    assert counterpart.asked[0][2]["authorization"] == "Bearer sk_test_other"


OPERATIONS: dict[str, tuple[Callable[[Gateway], Awaitable[object]], str]] = {
    "products": (lambda gateway: gateway.list_products(["a"]), "GET /v1/products?ids[0]=a&limit=100"),
    "product": (lambda gateway: gateway.create_product({"id": "a", "name": "A"}), "POST /v1/products"),
    "rename": (lambda gateway: gateway.update_product("a", {"name": "A"}), "POST /v1/products/a"),
    "coupon": (lambda gateway: gateway.create_coupon({"id": "c", "percent_off": 20}), "POST /v1/coupons"),
    "code": (
        lambda gateway: gateway.create_promotion_code({"promotion": {"type": "coupon", "coupon": "c"}}),
        "POST /v1/promotion_codes",
    ),
    "codes": (
        lambda gateway: gateway.list_promotion_codes("C"),
        "GET /v1/promotion_codes?code=C&limit=100",
    ),
    "meter": (lambda gateway: gateway.create_meter({"event_name": "e"}), "POST /v1/billing/meters"),
    "meters": (lambda gateway: gateway.list_meters(), "GET /v1/billing/meters?status=active&limit=100"),
    "portals": (
        lambda gateway: gateway.list_portal_configurations(),
        "GET /v1/billing_portal/configurations?active=true&limit=100",
    ),
    "portal": (
        lambda gateway: gateway.create_portal_configuration({"features": {}}),
        "POST /v1/billing_portal/configurations",
    ),
    "change": (
        lambda gateway: gateway.update_portal_configuration("b", {"features": {}}),
        "POST /v1/billing_portal/configurations/b",
    ),
}


@pytest.mark.parametrize(("call", "expected"), OPERATIONS.values(), ids=OPERATIONS)
async def test_each_operation_is_one_call(call: Callable[[Gateway], Awaitable[object]], expected: str) -> None:
    async with facing(listing()) as (gateway, counterpart):
        await call(gateway)
    [(request, _, _)] = counterpart.asked
    assert request == expected
