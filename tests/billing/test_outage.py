"""Stripe is away for an hour under load: nobody who asks for an answer notices, and all usage counts once."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from pydantic import SecretStr

from app import worker
from app.billing import claims, metering_checks
from app.billing.gateway import Gateway
from app.config import Settings
from app.db import Database
from tests.api.world import World, serving, write_model
from tests.billing.metered import MINUTE, MONTH, Customer, make_customer, outbox_of
from tests.factories import make_key
from tests.simulators.stripe.simulator import API_KEY, Simulator

pytestmark = pytest.mark.slow

BODY = {"model": "bytes", "prompt": "abc"}
VALUE = 3 * 150 + 5 * 600
"""Of a request with three tokens, and an answer of five, in 10^-9 USD."""
NUM_CALLERS = 4


@pytest.fixture
async def world(settings: Settings, database: Database, simulator: Simulator) -> AsyncIterator[World]:
    """A served model, on an installation that has a Stripe."""
    write_model(settings.models_dir)
    settings = settings.model_copy(
        update={
            "stripe_api_key": SecretStr(API_KEY),
            "stripe_api_base": simulator.url,
            "stripe_webhook_secrets": SecretStr("whsec_test"),
        }
    )
    async with serving(settings, database) as running:
        yield running


class Hour:
    """A customer who asks for answers, and a worker whose clock the test moves."""

    def __init__(self, world: World, simulator: Simulator, customer: Customer, gateway: Gateway) -> None:
        self.world = world
        self.simulator = simulator
        self.customer = customer
        self.now = datetime.now(UTC)
        self.num_requests = 0
        names = ("claim_usage", "send_meter_events", "settle_doubted_usage", "measure_meter_outbox")
        jobs = (*worker.billing_jobs(world.settings), *worker.stripe_jobs(world.settings, gateway))
        self.jobs = [job for job in jobs if job.name in names]
        assert len(self.jobs) == len(names)

    async def ask(self) -> None:
        """Some requests at once; each is answered."""
        answers = await asyncio.gather(*(self.world.post("/v1/completions", BODY) for _ in range(NUM_CALLERS)))
        assert [answer.status_code for answer in answers] == [200] * NUM_CALLERS
        self.num_requests += NUM_CALLERS

    async def turn(self, minutes: int) -> None:
        """Time passes here and at Stripe, and the worker does what is due, while requests come in."""
        self.now += minutes * MINUTE
        self.simulator.forward(minutes * 60)
        async with asyncio.TaskGroup() as group:
            asking = group.create_task(self.ask())
            for job in self.jobs:
                await job.run(self.world.database, self.now)
            await asking

    @property
    def counted(self) -> list[int]:
        rows = [row for row in self.simulator.world.all("_usage") if row["customer"] == self.customer.stripe_id]
        return [event["value"] for row in rows for event in row["events"]]

    async def states(self) -> list[str]:
        return [row.state for row in await outbox_of(self.world.database, self.customer.org_id)]


@pytest.fixture
async def hour(world: World, simulator: Simulator, database: Database) -> AsyncIterator[Hour]:
    """A customer in the middle of a period."""
    simulator.v1.billing.meters.create(
        {"display_name": "Usage", "event_name": "tollgate_usage", "default_aggregation": {"formula": "sum"}}
    )
    stripe_id = simulator.v1.customers.create({"name": "Acme"}).id
    start = datetime.now(UTC).replace(microsecond=0) - timedelta(hours=2)
    customer = await make_customer(database, start, start + MONTH, stripe_id=stripe_id)
    world.key = await make_key(database, world.settings, customer.org_id)
    gateway = Gateway(API_KEY, api_base=simulator.url, retries=0, timeout_s=5)
    yield Hour(world, simulator, customer, gateway)
    await gateway.aclose()


async def test_an_hour_without_stripe_loses_nothing_and_is_noticed_by_nobody(hour: Hour) -> None:
    await hour.turn(17)
    hour.simulator.hazard("outage")
    for _ in range(15):
        await hour.turn(4)
    strikes = hour.simulator.strikes("outage")
    assert strikes > 3
    assert "acked" not in (await hour.states())[1:]
    await hour.ask()
    # Whoever asks for an answer asks nothing of Stripe.
    assert hour.simulator.strikes("outage") == strikes
    hour.simulator.control("DELETE", "/hazards")
    for _ in range(5):
        await hour.turn(6)
    await claims.flush(hour.world.database, hour.customer.org_id, hour.now)
    for _ in range(2):
        await hour.turn(1)
    await claims.flush(hour.world.database, hour.customer.org_id, hour.now + MINUTE)
    await hour.turn(2)
    await check(hour)


@pytest.mark.parametrize("hazard", ["response_lost", "error_500_after_commit"])
async def test_an_hour_of_lost_answers_counts_nothing_twice(hour: Hour, hazard: str) -> None:
    hour.simulator.hazard(hazard, path="/v1/billing", rate=0.7, seed=5)
    for _ in range(15):
        await hour.turn(4)
    hour.simulator.control("DELETE", "/hazards")
    await hour.turn(20)
    await claims.flush(hour.world.database, hour.customer.org_id, hour.now + MINUTE)
    await hour.turn(2)
    await check(hour)


async def check(hour: Hour) -> None:
    """What Stripe counts is what the outbox says and what the rows say."""
    rows = await hour.world.usage_rows()
    claimed = [row for row in rows if row.claim_id is not None]
    states = await hour.states()
    assert states == ["acked"] * len(states)
    outbox = [row.value for row in await outbox_of(hour.world.database, hour.customer.org_id)]
    assert len(rows) == hour.num_requests
    assert len(rows) - len(claimed) <= NUM_CALLERS  # those that came with the last turn
    assert sum(hour.counted) == sum(outbox) == VALUE * len(claimed)
    assert len(hour.counted) == len(outbox)
    for verify in (metering_checks.find_unlike_claims, metering_checks.find_stuck_events):
        assert await verify(hour.world.database) == []


def test_the_worker_has_every_job_of_metering(settings: Settings) -> None:
    jobs: dict[str, Any] = {job.name: job.interval_s for job in worker.billing_jobs(settings)}
    # Both together leave a window a quarter of an hour before its invoice takes no more.
    assert jobs["claim_usage"] <= 60
    assert jobs["burn_credit"] <= 3600
    assert jobs["expire_credit"] <= 3600
