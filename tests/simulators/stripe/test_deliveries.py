"""Events on their way to an endpoint."""

import asyncio

import httpx
import pytest
import stripe

from simulators.stripe.deliveries import Courier
from simulators.stripe.world import World
from tests.simulators.stripe.simulator import SECRET, Simulator, running


def test_event_is_delivered_and_signed(simulator: Simulator) -> None:
    made = simulator.v1.customers.create({"name": "Acme"})
    simulator.flush()
    body, header = simulator.receiver.received[0]
    event = simulator.client.construct_event(body, header, SECRET)
    assert event.type == "customer.created"
    assert event.data.object.id == made.id
    assert event.request.id.startswith("req_")
    with pytest.raises(stripe.SignatureVerificationError):
        simulator.client.construct_event(body, header, "whsec_other")


def test_event_holds_the_object_as_it_was(simulator: Simulator) -> None:
    made = simulator.v1.customers.create({"name": "Acme"})
    simulator.v1.customers.update(made.id, {"name": "Other"})
    created, updated = reversed(simulator.v1.events.list().data)
    assert created.data.object["name"] == "Acme"
    assert updated.data.object["name"] == "Other"
    assert updated.data.previous_attributes["name"] == "Acme"
    assert simulator.v1.events.retrieve(created.id).data.object["name"] == "Acme"
    assert [found.id for found in simulator.v1.events.list({"type": "customer.updated"}).data] == [updated.id]
    assert len(simulator.v1.events.list({"types": ["customer.updated", "customer.created"]}).data) == 2


def test_refused_event_is_tried_again_until_it_is_taken(simulator: Simulator) -> None:
    simulator.receiver.statuses = [500, 404]
    simulator.v1.customers.create({"name": "Acme"})
    outcomes = [simulator.flush() for _ in range(3)]
    assert simulator.receiver.types == ["customer.created"] * 3
    assert outcomes[-1]["failed"] == 0
    assert simulator.control("GET")["deliveries"] == []
    assert simulator.v1.events.list({"delivery_success": False}).data == []


def test_retry_waits_longer_each_time_by_the_clock_of_the_account(simulator: Simulator) -> None:
    simulator.receiver.statuses = [500] * 100
    simulator.v1.customers.create({"name": "Acme"})
    waits = []
    for _ in range(4):
        simulator.flush()
        state = simulator.control("GET")
        waits.append(state["deliveries"][0]["due"] - state["now"])
    assert waits == sorted(waits)
    assert waits[-1] > 100
    assert len(simulator.v1.events.list({"delivery_success": False}).data) == 1


def test_delivery_is_given_up_after_three_days(simulator: Simulator) -> None:
    simulator.receiver.statuses = [500] * 1000
    simulator.v1.customers.create({"name": "Acme"})
    simulator.flush()
    simulator.forward(3 * 24 * 3600)
    simulator.flush()
    assert simulator.control("GET")["deliveries"] == []


def test_endpoint_gets_only_the_types_it_wants(simulator: Simulator) -> None:
    endpoint = simulator.v1.webhook_endpoints.create(
        {"url": simulator.receiver.url, "enabled_events": ["product.created"]}
    )
    simulator.v1.customers.create({"name": "Acme"})
    simulator.v1.products.create({"name": "Tokens"})
    simulator.flush()
    assert sorted(simulator.receiver.types) == ["customer.created", "product.created", "product.created"]
    products = [(body, header) for body, header in simulator.receiver.received if b"product.created" in body]
    signed_by = [
        {secret for secret in (SECRET, endpoint.secret) if verifies(simulator, *sent, secret)} for sent in products
    ]
    assert sorted(signed_by, key=str) == sorted([{SECRET}, {endpoint.secret}], key=str)


def test_disabled_or_deleted_endpoint_gets_nothing(simulator: Simulator) -> None:
    given = simulator.v1.webhook_endpoints.list().data[0]
    simulator.v1.webhook_endpoints.update(given.id, {"disabled": True})
    simulator.v1.customers.create({"name": "Acme"})
    simulator.flush()
    simulator.v1.webhook_endpoints.update(given.id, {"disabled": False})
    simulator.v1.webhook_endpoints.delete(given.id)
    simulator.v1.customers.create({"name": "Acme"})
    simulator.flush()
    assert simulator.receiver.received == []


def test_unreachable_endpoint_is_a_failed_delivery(simulator: Simulator) -> None:
    given = simulator.v1.webhook_endpoints.list().data[0]
    simulator.v1.webhook_endpoints.update(given.id, {"url": "http://127.0.0.1:1/gone"})
    simulator.v1.customers.create({"name": "Acme"})
    simulator.flush()
    assert "ConnectError" in simulator.control("GET")["deliveries"][0]["problem"]


def test_duplicated_event_comes_twice(simulator: Simulator) -> None:
    simulator.hazard("webhook_duplicated", times=1)
    simulator.v1.customers.create({"name": "Acme"})
    simulator.flush()
    first, second = simulator.receiver.events
    assert first["id"] == second["id"]


def test_delayed_event_waits_for_the_clock(simulator: Simulator) -> None:
    simulator.hazard("webhook_delayed", times=1, seconds=600)
    simulator.v1.customers.create({"name": "Acme"})
    assert simulator.receiver.received == []
    assert len(simulator.control("GET")["deliveries"]) == 1
    simulator.forward(600)
    simulator.flush()
    assert simulator.receiver.types == ["customer.created"]


def test_dropped_event_comes_by_its_retry(simulator: Simulator) -> None:
    simulator.hazard("webhook_dropped", times=1)
    simulator.v1.customers.create({"name": "Acme"})
    simulator.flush()
    while not simulator.receiver.received:
        simulator.flush()
    assert simulator.strikes("webhook_dropped") == 1
    assert simulator.receiver.types == ["customer.created"]


def test_reordered_events_come_in_another_order(simulator: Simulator) -> None:
    simulator.hazard("webhook_delayed", seconds=600)
    simulator.hazard("webhook_reordered", seed=3)
    made = [simulator.v1.customers.create({"name": str(number)}).id for number in range(6)]
    simulator.flush()
    came = [event["data"]["object"]["id"] for event in simulator.receiver.events]
    assert sorted(came) == sorted(made)
    assert came != made


def test_event_can_be_sent_again(simulator: Simulator) -> None:
    simulator.v1.customers.create({"name": "Acme"})
    simulator.flush()
    event = simulator.v1.events.list().data[0]
    simulator.control("POST", f"/events/{event.id}/resend")
    simulator.flush()
    assert [found["id"] for found in simulator.receiver.events] == [event.id, event.id]
    with pytest.raises(AssertionError, match="No such event"):
        simulator.control("POST", "/events/evt_none/resend")


def verifies(simulator: Simulator, body: bytes, header: str, secret: str) -> bool:
    try:
        simulator.client.construct_event(body, header, secret)
    except stripe.SignatureVerificationError:
        return False
    return True


def test_nothing_is_sent_to_endpoints_that_are_no_addresses(simulator: Simulator) -> None:
    with pytest.raises(stripe.InvalidRequestError) as caught:
        simulator.v1.webhook_endpoints.create({"url": "acme.example", "enabled_events": ["*"]})
    assert caught.value.param == "url"
    assert httpx.get(simulator.url, follow_redirects=False).headers["location"] == "/_control"


def test_event_goes_past_the_proxy_that_leads_out_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    # For the tests' own calls.
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with running() as simulator:
        url = simulator.receiver.url.replace("127.0.0.1", "localhost")
        simulator.v1.webhook_endpoints.create({"url": url, "enabled_events": ["customer.created"]})
        simulator.v1.customers.create({"name": "Acme"})
        simulator.flush()
        assert simulator.receiver.types == ["customer.created"] * 2


async def test_whoever_delivers_ends_when_told_whatever_happens_at_that_moment() -> None:
    async with httpx.AsyncClient(trust_env=False) as client:
        for num_rounds in range(8):
            courier = Courier(World(), client, lambda: None)
            delivering = asyncio.create_task(courier.run())
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            courier._is_waiting.set()
            for _ in range(num_rounds):
                await asyncio.sleep(0)
            delivering.cancel()
            assert await asyncio.wait({delivering}, timeout=5) == ({delivering}, set())
