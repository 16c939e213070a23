"""The rehearsal of live-smoke, against the simulator."""

from contextlib import aclosing
from datetime import datetime
from decimal import Decimal
from typing import Any

import pytest

from app.billing import catalog, smoke
from app.billing.gateway import Gateway
from app.errors import ConfigError, StripeUnavailable
from tests.billing.stripe_world import START, StripeWorld
from tests.simulators.stripe.simulator import Simulator


async def no_pause(_: float) -> None:
    """The simulator is there at once."""


async def steps(world: StripeWorld, now: datetime = START) -> list[str]:
    return [seen async for seen in smoke.rehearse(world.gateway, now, pause=no_pause)]


async def test_a_month_of_a_customer_is_rehearsed(stripe_world: StripeWorld) -> None:
    seen = await steps(stripe_world)
    assert seen == [
        "the catalogue is at Stripe",
        "Starter is bought; the first invoice of $19.00 is paid",
        "checkout and billing portal open",
        "usage worth $27.35 at list price is counted",
        "the month is over; $12.35 of usage are on the invoice of $31.35, paid",
        "Growth begins at once for $79.78, as previewed",
        "the subscription ends with its period",
        "a plan by the year takes usage by the month, and changes and ends with its year",
    ]
    # Only the test's own clock is left.
    assert [clock.id for clock in stripe_world.v1.test_helpers.test_clocks.list().data] == [stripe_world.clock]


async def test_an_account_can_be_rehearsed_in_that_knows_nothing(gateway: Gateway, simulator: Simulator) -> None:
    seen = [step async for step in smoke.rehearse(gateway, START, pause=no_pause)]
    assert len(seen) == 8
    assert simulator.v1.test_helpers.test_clocks.list().data == []


async def test_whoever_stops_listening_leaves_nothing(stripe_world: StripeWorld) -> None:
    async with aclosing(smoke.rehearse(stripe_world.gateway, START, pause=no_pause)) as seen:
        for _ in range(2):
            await anext(seen)
        assert len(stripe_world.v1.test_helpers.test_clocks.list().data) == 2
    assert len(stripe_world.v1.test_helpers.test_clocks.list().data) == 1


async def test_what_stripe_counts_otherwise_is_found(stripe_world: StripeWorld) -> None:
    stripe_world.simulator.hazard("meter_event_rejected", times=1)
    with pytest.raises(ConfigError, match="Stripe counts the usage: not within 300 seconds"):
        await steps(stripe_world)
    assert len(stripe_world.v1.test_helpers.test_clocks.list().data) == 1


async def test_what_costs_something_else_is_found(stripe_world: StripeWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalog, "cost_of_usage", lambda plan, value: Decimal(1))
    with pytest.raises(ConfigError, match="its usage costs"):
        await steps(stripe_world)


async def test_a_failure_is_told_even_if_nothing_can_be_cleared_away(stripe_world: StripeWorld) -> None:
    seen = smoke.rehearse(stripe_world.gateway, START, pause=no_pause)
    await anext(seen)
    await anext(seen)
    stripe_world.simulator.hazard("outage")
    with pytest.raises(StripeUnavailable):
        await anext(seen)


async def test_nothing_is_left_where_nothing_was_made() -> None:
    gateway = Gateway("sk_test_1", api_base="http://127.0.0.1:9", retries=0)
    with pytest.raises(StripeUnavailable):
        await anext(smoke.rehearse(gateway, START, pause=no_pause))
    await gateway.aclose()


async def test_a_clock_that_cannot_be_made_leaves_nothing(stripe_world: StripeWorld) -> None:
    stripe_world.simulator.hazard("outage", path="/v1/test_helpers")
    seen: Any = smoke.rehearse(stripe_world.gateway, START, pause=no_pause)
    await anext(seen)
    with pytest.raises(StripeUnavailable):
        await anext(seen)


@pytest.mark.parametrize("key", ["sk_live_1", "rk_live_1", "", "pk_test_1"])
def test_a_key_that_charges_real_cards_is_refused(key: str) -> None:
    with pytest.raises(ConfigError):
        smoke.check_key(key)
    smoke.check_key("sk_test_1")
    smoke.check_key("rk_test_1")
