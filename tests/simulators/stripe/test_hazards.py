"""What goes wrong on request."""

import threading
from typing import Any

import pytest
import stripe

from simulators.stripe.errors import StripeError
from simulators.stripe.hazards import NAMES, Hazards
from tests.simulators.stripe.simulator import Simulator


def test_hazard_strikes_so_many_times_where_it_should() -> None:
    hazards = Hazards()
    hazards.switch_on("outage", times=2, path="/v1/prices")
    assert hazards.strike("outage", "/v1/products") is None
    assert [hazards.strike("outage", "/v1/prices/x") is not None for _ in range(3)] == [True, True, False]
    assert hazards.all()[0].strikes == 2


def test_rate_is_drawn_from_the_seed() -> None:
    def run(seed: int) -> list[bool]:
        hazards = Hazards()
        hazards.switch_on("outage", rate=0.5, seed=seed)
        return [hazards.strike("outage") is not None for _ in range(100)]

    assert run(1) == run(1)
    assert run(1) != run(2)
    assert 25 < sum(run(1)) < 75


def test_switched_off_it_does_not_strike() -> None:
    hazards = Hazards()
    hazards.switch_on("outage")
    hazards.switch_on("slow")
    hazards.switch_off("outage")
    assert hazards.strike("outage") is None
    assert hazards.strike("slow") is not None
    hazards.switch_off()
    assert hazards.strike("slow") is None


@pytest.mark.parametrize(
    "settings",
    [
        {"name": "flood"},
        {"name": "outage", "colour": "red"},
        {"name": "outage", "times": -1},
        {"name": "outage", "times": "2"},
        {"name": "outage", "rate": 1.5},
        {"name": "slow", "seconds": -1},
    ],
)
def test_unknown_name_or_setting_is_refused(settings: dict[str, Any]) -> None:
    hazards = Hazards()
    with pytest.raises(StripeError):
        hazards.switch_on(**settings)
    assert hazards.all() == []


def test_outage_closes_connections_and_does_nothing(simulator: Simulator) -> None:
    simulator.hazard("outage")
    for _ in range(2):
        with pytest.raises(stripe.APIConnectionError):
            simulator.v1.customers.create({"name": "Acme"})
    simulator.control("DELETE", "/hazards/outage")
    assert simulator.v1.customers.list().data == []


def test_lost_response_is_carried_out_once(simulator: Simulator) -> None:
    simulator.hazard("response_lost", times=1)
    made = simulator.new_client(retries=1).v1.customers.create({"name": "Acme"})
    assert simulator.strikes("response_lost") == 1
    assert [found.id for found in simulator.v1.customers.list().data] == [made.id]


@pytest.mark.parametrize(("name", "made"), [("error_500", 0), ("error_500_after_commit", 1)])
def test_500_is_replayed_for_the_same_key(simulator: Simulator, name: str, made: int) -> None:
    simulator.hazard(name, times=1, path="/v1/customers")
    for _ in range(2):
        with pytest.raises(stripe.APIError) as caught:
            simulator.v1.customers.create({"name": "Acme"}, {"idempotency_key": "k1"})
        assert caught.value.http_status == 500
    headers = caught.value.headers or {}
    assert (headers["idempotent-replayed"], headers["stripe-should-retry"]) == ("true", "false")
    assert len(simulator.v1.customers.list().data) == made
    simulator.v1.customers.create({"name": "Acme"}, {"idempotency_key": "k2"})


def test_rate_limit_is_not_stored(simulator: Simulator) -> None:
    simulator.hazard("rate_limit_429", times=1)
    with pytest.raises(stripe.RateLimitError) as caught:
        simulator.v1.customers.create({"name": "Acme"}, {"idempotency_key": "k1"})
    error = caught.value.json_body["error"]  # type: ignore[index]
    assert (error["code"], error["type"]) == ("rate_limit", "invalid_request_error")
    assert simulator.v1.customers.create({"name": "Acme"}, {"idempotency_key": "k1"}).name == "Acme"


def test_second_call_for_a_meter_of_a_customer_gets_429(simulator: Simulator) -> None:
    simulator.v1.billing.meters.create(
        {"display_name": "T", "event_name": "tokens", "default_aggregation": {"formula": "sum"}}
    )
    one, other = (simulator.v1.customers.create({"name": name}).id for name in ("one", "other"))
    simulator.hazard("one_call_at_a_time", seconds=0.3)
    statuses: list[tuple[str, int]] = []

    def report(customer: str) -> None:
        body = f"event_name=tokens&payload[stripe_customer_id]={customer}&payload[value]=1"
        statuses.append((customer, simulator.raw("POST", "/v1/billing/meter_events", body).status_code))

    threads = [threading.Thread(target=report, args=(customer,)) for customer in (one, one, other)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(statuses) == sorted([(one, 200), (one, 429), (other, 200)])


def test_every_hazard_is_described() -> None:
    assert all(text.endswith(".") for text in NAMES.values())
