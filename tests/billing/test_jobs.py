"""Jobs of the worker that look at Stripe."""

from datetime import UTC, datetime

import pytest

from app import worker
from app.billing import sync
from app.billing.gateway import Gateway
from app.config import Settings
from app.db import Database
from app.telemetry import configure_logging
from tests.simulators.stripe.simulator import Simulator

NOW = datetime(2027, 1, 1, tzinfo=UTC)


async def test_drift_of_the_catalogue_is_logged_every_hour(
    database: Database,
    settings: Settings,
    gateway: Gateway,
    simulator: Simulator,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (job,) = (job for job in worker.stripe_jobs(settings, gateway) if job.name == "check_catalog")
    assert job.interval_s == 3600
    configure_logging(Settings(log_format="json"))
    await sync.push(database, gateway, NOW)
    await job.run(database, NOW)
    assert "catalog.drift" not in capsys.readouterr().err
    [price] = simulator.v1.prices.list({"lookup_keys": ["tollgate_scale_v1_flat_year"]})
    simulator.v1.prices.update(price.id, {"active": False})
    await job.run(database, NOW)
    assert "catalog.drift" in capsys.readouterr().err
