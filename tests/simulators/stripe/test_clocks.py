"""Test clocks, the account's clock, and how long an account lasts."""

import json
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
import stripe

from simulators.stripe import state
from simulators.stripe.world import World
from tests.simulators.stripe.shop import Shop, at
from tests.simulators.stripe.simulator import API_KEY, Simulator, running

START = 1_800_000_000


def test_clock_advances_and_is_ready_when_asked_again(simulator: Simulator) -> None:
    clocks = simulator.v1.test_helpers.test_clocks
    clock = clocks.create({"frozen_time": START, "name": "year end"})
    assert (clock.status, clock.frozen_time) == ("ready", START)
    advancing = clocks.advance(clock.id, {"frozen_time": START + 100})
    assert (advancing.status, advancing.status_details.advancing.target_frozen_time) == ("advancing", START + 100)
    ready = clocks.retrieve(clock.id)
    assert (ready.status, ready.frozen_time, ready.status_details.advancing) == ("ready", START + 100, None)
    simulator.flush()
    assert [name.removeprefix("test_helpers.test_clock.") for name in simulator.receiver.types] == [
        "created",
        "advancing",
        "ready",
    ]


@pytest.mark.parametrize("ahead", [0, -1, 10**9])
def test_clock_goes_forward_only_and_not_too_far(simulator: Simulator, ahead: int) -> None:
    clock = simulator.v1.test_helpers.test_clocks.create({"frozen_time": START}).id
    with pytest.raises(stripe.InvalidRequestError) as caught:
        simulator.v1.test_helpers.test_clocks.advance(clock, {"frozen_time": START + ahead})
    assert caught.value.param == "frozen_time"


def test_clock_goes_two_intervals_of_its_shortest_subscription_at_once(simulator: Simulator) -> None:
    shop = Shop(simulator, "2026-01-31")
    clocks = simulator.v1.test_helpers.test_clocks
    shop.subscribe(shop.year)
    monthly = shop.subscribe(shop.month)
    for too_far in ("2026-03-31 00:01", "2027-01-31"):
        with pytest.raises(stripe.InvalidRequestError, match="two intervals"):
            clocks.advance(shop.clock, {"frozen_time": at(too_far)})
    clocks.advance(shop.clock, {"frozen_time": at("2026-03-31")})
    shop.v1.subscriptions.cancel(monthly.id)
    clocks.advance(shop.clock, {"frozen_time": at("2028-03-31")})
    assert clocks.retrieve(shop.clock).status == "ready"


def test_customer_under_a_clock_lives_in_its_time(simulator: Simulator) -> None:
    clock = simulator.v1.test_helpers.test_clocks.create({"frozen_time": START}).id
    customer = simulator.v1.customers.create({"test_clock": clock})
    assert customer.created == START
    assert simulator.v1.customers.list().data == []
    assert [found.id for found in simulator.v1.customers.list({"test_clock": clock}).data] == [customer.id]


def test_clock_has_at_most_three_customers(simulator: Simulator) -> None:
    clock = simulator.v1.test_helpers.test_clocks.create({"frozen_time": START}).id
    for _ in range(3):
        simulator.v1.customers.create({"test_clock": clock})
    with pytest.raises(stripe.InvalidRequestError, match="at most 3"):
        simulator.v1.customers.create({"test_clock": clock})


def test_deleted_clock_takes_its_customers_along(simulator: Simulator) -> None:
    clocks = simulator.v1.test_helpers.test_clocks
    clock = clocks.create({"frozen_time": START}).id
    gone = simulator.v1.customers.create({"test_clock": clock, "payment_method": "pm_card_visa"}).id
    kept = simulator.v1.customers.create({"name": "kept"}).id
    assert clocks.delete(clock).deleted
    assert clocks.list().data == []
    with pytest.raises(stripe.InvalidRequestError):
        simulator.v1.customers.retrieve(gone)
    assert [found.id for found in simulator.v1.customers.list().data] == [kept]


def test_clock_that_fails_says_so(simulator: Simulator) -> None:
    clock = simulator.v1.test_helpers.test_clocks.create({"frozen_time": START}).id
    customer = simulator.v1.customers.create({"test_clock": clock}).id
    # Whatever happens to a subscription like this, it is none that the simulator made.
    broken = {
        "id": "sub_broken",
        "object": "subscription",
        "customer": customer,
        "status": "active",
        "items": {"data": []},
    }
    simulator.world.put(broken)
    simulator.v1.test_helpers.test_clocks.advance(clock, {"frozen_time": START + 100})
    assert simulator.v1.test_helpers.test_clocks.retrieve(clock).status == "internal_failure"


def test_clock_of_the_account_moves_forward(simulator: Simulator) -> None:
    before = simulator.control("GET")["now"]
    simulator.forward(1000)
    assert simulator.v1.customers.create().created >= before + 1000
    for seconds in (-1, "1"):
        with pytest.raises(AssertionError, match="forward"):
            simulator.control("POST", "/clock", seconds=seconds)


def test_account_outlives_its_process(tmp_path: Path) -> None:
    file = tmp_path / "account.json"
    with running(state_file=file) as simulator:
        made = simulator.v1.customers.create({"name": "Acme"}, {"idempotency_key": "k1"})
        simulator.forward(100)
    world = World()
    state.load(world, file)
    assert world.offset_s == 100
    with running(world, state_file=file) as simulator:
        assert simulator.v1.customers.retrieve(made.id).name == "Acme"
        again = simulator.v1.customers.create({"name": "Acme"}, {"idempotency_key": "k1"})
        assert again.id == made.id


def test_event_that_was_not_delivered_is_delivered_by_the_next_process(tmp_path: Path) -> None:
    file = tmp_path / "account.json"
    with running(state_file=file) as simulator:
        simulator.hazard("webhook_delayed", seconds=9999)
        simulator.v1.customers.create({"name": "Acme"})
    world = World()
    state.load(world, file)
    with running(world) as simulator:
        simulator.flush()
        assert simulator.receiver.types == ["customer.created"]


def test_links_lead_to_where_the_next_process_is_reached(tmp_path: Path) -> None:
    file = tmp_path / "account.json"
    with running(state_file=file) as simulator:
        customer = simulator.v1.customers.create({"name": "Acme"}).id
        session = simulator.v1.billing_portal.sessions.create({"customer": customer})
        before = simulator.url
    world = World()
    world.base_url = "http://127.0.0.1:1"
    state.load(world, file)
    kept = world.get("billing_portal.session", session.id)
    assert kept["url"] == session.url.replace(before, world.base_url) != session.url


def test_file_is_for_nobody_else(tmp_path: Path) -> None:
    state.save(World(), tmp_path / "account.json")
    assert (tmp_path / "account.json").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"offset_s": 0'])
def test_damaged_file_is_told_and_left_as_it_is(tmp_path: Path, text: str) -> None:
    file = tmp_path / "account.json"
    file.write_text(text)
    command = [sys.executable, "-m", "simulators.stripe", "--state", str(file)]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[3], check=False)
    assert ended.returncode == 1
    assert ended.stderr.splitlines()[-1].startswith(f"{file} holds no account")
    assert file.read_text() == text


def test_missing_file_is_an_empty_account(tmp_path: Path) -> None:
    world = World()
    state.load(world, tmp_path / "none.json")
    assert world.objects == {}


def test_command_prints_its_address_and_serves(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "simulators.stripe", "--port", "0", "--state", str(tmp_path / "deep" / "a.json")]
    root = Path(__file__).parents[3]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=root) as process:
        try:
            assert process.stdout is not None
            url = json.loads(process.stdout.readline())["url"]
            answer = httpx.get(f"{url}/v1/customers", headers={"Authorization": f"Bearer {API_KEY}"})
            assert answer.json()["data"] == []
        finally:
            process.terminate()
            _, errors = process.communicate()
    assert errors == ""
    assert (tmp_path / "deep" / "a.json").exists()


def test_command_wants_a_secret_for_its_endpoint() -> None:
    command = [sys.executable, "-m", "simulators.stripe", "--webhook-url", "http://127.0.0.1:1/"]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[3], check=False)
    assert ended.returncode == 1
    assert "--webhook-secret" in ended.stderr
