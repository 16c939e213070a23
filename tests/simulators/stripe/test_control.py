"""The simulator's own controls, as JSON and as a page."""

import re
from typing import Any

import httpx
import pytest

from simulators.stripe.hazards import LASTING_S, NAMES
from tests.simulators.stripe.simulator import Simulator


@pytest.fixture
def charge(simulator: Simulator) -> str:
    """A payment of 20 USD that succeeded."""
    customer = simulator.v1.customers.create({"name": "Acme", "payment_method": "pm_card_visa"}).id
    card = simulator.v1.payment_methods.list({"customer": customer}).data[0].id
    params: dict[str, Any] = {"amount": 2000, "currency": "usd", "customer": customer, "payment_method": card}
    return str(simulator.v1.payment_intents.create({**params, "confirm": True}).latest_charge)


def page(simulator: Simulator) -> str:
    answer = httpx.get(f"{simulator.url}/_control")
    assert answer.status_code == 200
    return answer.text


def press(simulator: Simulator, button: str, **form: str) -> httpx.Response:
    return httpx.post(f"{simulator.url}/_control/{button}", data=form)


def test_page_says_what_it_is_and_shows_every_hazard(simulator: Simulator) -> None:
    shown = page(simulator)
    assert "never against the real service" in shown
    assert all(name in shown for name in NAMES)


def test_page_fits_a_browser_without_scripts(simulator: Simulator) -> None:
    shown = page(simulator)
    assert "<script" not in shown
    assert 'name="viewport"' in shown
    ids = re.findall(r' id="([^"]+)"', shown)
    assert len(ids) == len(set(ids))


def test_hazard_is_switched_on_and_off_by_buttons(simulator: Simulator) -> None:
    answer = press(simulator, "hazard", name="rate_limit_429", on="1", times="2")
    assert (answer.status_code, answer.headers["location"]) == (303, "/_control")
    assert "Off (2 left)" in page(simulator)
    assert simulator.raw("GET", "/v1/customers").status_code == 429
    press(simulator, "hazard", name="rate_limit_429", on="0")
    assert simulator.raw("GET", "/v1/customers").status_code == 200


def test_clock_is_moved_by_a_button(simulator: Simulator) -> None:
    press(simulator, "clock", days="2", hours="3")
    assert simulator.control("GET")["offset_s"] == 2 * 86400 + 3 * 3600
    assert "2.1 days ahead" in page(simulator)


@pytest.mark.parametrize("form", [{"days": "9" * 400}, {"days": "-1"}, {"days": "367"}, {"hours": "soon"}])
def test_clock_that_cannot_be_moved_so_far_is_an_error_page(simulator: Simulator, form: dict[str, str]) -> None:
    answer = press(simulator, "clock", **form)
    assert answer.status_code == 400
    assert "never against the real service" in answer.text
    assert simulator.control("GET")["offset_s"] == 0


def test_form_without_its_fields_is_an_error_page(simulator: Simulator) -> None:
    assert press(simulator, "resend").status_code == 400


def test_hazards_that_take_time_take_some_that_can_be_seen(simulator: Simulator) -> None:
    assert set(LASTING_S) <= set(NAMES)
    for name in LASTING_S:
        assert f"How many seconds {name} takes" in page(simulator)
        press(simulator, "hazard", name=name, on="1")
    press(simulator, "hazard", name="slow", on="1", seconds="7", times="1")
    on = {hazard["name"]: hazard["seconds"] for hazard in simulator.control("GET", "/hazards")["on"]}
    assert on == {"slow": 7, "one_call_at_a_time": 5, "summaries_lag": 900, "webhook_delayed": 60}


def test_webhook_is_delayed_by_the_button_alone(simulator: Simulator) -> None:
    press(simulator, "hazard", name="webhook_delayed", on="1")
    simulator.v1.customers.create({"name": "Acme"})
    [waiting] = simulator.control("GET")["deliveries"]
    assert waiting["due"] == waiting["made"] + 60


@pytest.mark.parametrize("status", ["won", "lost"])
def test_dispute_is_decided_by_a_button(simulator: Simulator, charge: str, status: str) -> None:
    press(simulator, "dispute", id=charge)
    dispute = simulator.v1.disputes.list({"charge": charge}).data[0].id
    assert f"The dispute is {status}" in page(simulator)
    press(simulator, "decide", id=dispute, status=status)
    assert simulator.v1.disputes.retrieve(dispute).status == status
    assert "The dispute is" not in page(simulator)
    assert press(simulator, "decide", id=dispute, status=status).status_code == 400


def test_unknown_hazard_is_an_error_page(simulator: Simulator) -> None:
    answer = press(simulator, "hazard", name="flood", on="1")
    assert answer.status_code == 400
    assert "There is no hazard called flood" in answer.text


def test_event_is_sent_again_by_a_button(simulator: Simulator) -> None:
    simulator.v1.customers.create({"name": "<Acme>"})
    simulator.flush()
    event = simulator.v1.events.list().data[0].id
    shown = page(simulator)
    assert event in shown
    assert "&lt;Acme&gt;" in shown
    press(simulator, "resend", id=event)
    press(simulator, "flush")
    assert simulator.receiver.types == ["customer.created"] * 2


def test_cards_decline_until_they_pay_again(simulator: Simulator) -> None:
    customer = simulator.v1.customers.create({"payment_method": "pm_card_visa"}).id
    card = simulator.v1.payment_methods.list({"customer": customer}).data[0].id
    params = {"amount": 2000, "currency": "usd", "customer": customer, "payment_method": card, "confirm": "true"}
    body = "&".join(f"{name}={value}" for name, value in params.items())
    press(simulator, "decline", id=customer, on="1")
    assert simulator.raw("POST", "/v1/payment_intents", body).status_code == 402
    assert "Let them pay again" in page(simulator)
    press(simulator, "decline", id=customer, on="0")
    assert simulator.raw("POST", "/v1/payment_intents", body).json()["status"] == "succeeded"


def test_charge_is_refunded_or_disputed(simulator: Simulator, charge: str) -> None:
    assert "20.00 USD" in page(simulator)
    assert simulator.control("POST", f"/charges/{charge}/refund", amount=500)["amount"] == 500
    assert simulator.control("POST", f"/charges/{charge}/dispute")["status"] == "needs_response"
    with pytest.raises(AssertionError, match="cannot be disputed"):
        simulator.control("POST", f"/charges/{charge}/dispute")
    simulator.flush()
    assert {"charge.refunded", "charge.dispute.created"} <= set(simulator.receiver.types)


def test_charge_is_refunded_by_a_button(simulator: Simulator, charge: str) -> None:
    press(simulator, "refund", id=charge)
    assert simulator.v1.charges.retrieve(charge).refunded
    assert "refunded" in page(simulator)
    assert press(simulator, "dispute", id="ch_none").status_code == 404


def test_reset_forgets_all_but_the_endpoint(simulator: Simulator) -> None:
    simulator.v1.customers.create()
    simulator.hazard("outage", path="/v1/prices")
    simulator.forward(100)
    state = simulator.control("POST", "/reset")
    assert (state["offset_s"], state["hazards"], state["deliveries"]) == (0, [], [])
    assert simulator.v1.customers.list().data == []
    assert len(simulator.v1.webhook_endpoints.list().data) == 1


def test_body_that_is_no_object_is_refused(simulator: Simulator) -> None:
    for body in ("[", "[]"):
        assert httpx.post(f"{simulator.url}/_control/api/hazards", content=body).status_code == 400
