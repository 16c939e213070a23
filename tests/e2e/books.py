"""An installation's database and its simulated Stripe, opened beside it: what a customer cannot do in an afternoon."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import httpx
from pydantic import SecretStr
from sqlalchemy import text

from app import auth, metering, postgres, simulation
from app.billing import claims, outbox
from app.billing.gateway import Gateway
from app.billing.prices import PRICES, price_version
from app.config import Settings, development_secret
from app.db import Database
from app.journal import Journal
from app.tables import new_id
from tests.installation import Installation

_SECOND = timedelta(seconds=1)
_PERIOD = text(
    "SELECT p.period_start, p.period_end FROM metering_periods p JOIN subscriptions s ON s.id = p.subscription_id"
    " WHERE s.org_id = :org_id ORDER BY p.period_start LIMIT 1"
)
_ROWS = text(
    "SELECT model, kind, price_version, input_tokens, cached_tokens, output_tokens FROM usage_events"
    " WHERE org_id = :org_id AND billed_at >= :start AND billed_at < :end"
)


@dataclass(frozen=True, slots=True)
class Books:
    """What an installation keeps.

    Attributes:
        org_id: Whose rows are looked at.
        stripe: To the controls of the simulator.
    """

    settings: Settings
    database: Database
    gateway: Gateway
    stripe: httpx.AsyncClient
    org_id: UUID

    async def use(self, secret: str, model: str, input_tokens: int) -> None:
        """A month of a large prompt, settled as the API settles a request; ``secret`` is the key that pays."""
        version, now = price_version(model, "generation"), datetime.now(UTC)
        async with self.database.begin() as connection:
            key = await auth.find_key(connection, secret, self.settings.key_pepper.get_secret_value())
        ledger = metering.Ledger(self.database, Journal(self.settings.journal_dir))
        meter = metering.Meter(
            ledger,
            new_id(),
            key,
            kind="generation",
            model=model,
            model_digest="0" * 64,
            input_tokens=input_tokens,
            price=PRICES[version, "generation"],
            price_version=version,
            started_at=now,
        )
        await meter.settle("stop")
        await ledger.aclose()

    async def report(self) -> None:
        """Tells Stripe at once of all that was used, and not at the next quarter of an hour."""
        # What was billed in the second that runs as well.
        now = datetime.now(UTC) + _SECOND
        await claims.flush(self.database, self.org_id, now)
        await outbox.drain(self.database, self.gateway, org_id=self.org_id, now=now)

    async def pass_time(self, span: timedelta) -> None:
        """Moves Stripe's clock, and delivers what Stripe says of it."""
        for path, body in (("clock", {"seconds": int(span.total_seconds())}), ("flush", {})):
            (await self.stripe.post(f"/_control/api/{path}", json=body)).raise_for_status()

    async def period(self) -> tuple[datetime, datetime]:
        """The first period of usage."""
        async with self.database.begin() as connection:
            start, end = (await connection.execute(_PERIOD, {"org_id": self.org_id})).one()
        return start, end

    async def rows(self, start: datetime, end: datetime) -> Sequence[Any]:
        """The usage rows billed from ``start`` until before ``end``."""
        async with self.database.begin() as connection:
            bind = {"org_id": self.org_id, "start": start, "end": end}
            return (await connection.execute(_ROWS, bind)).all()


@asynccontextmanager
async def opened(installation: Installation, org_name: str) -> AsyncIterator[Books]:
    """The books of one of its organisations."""
    folder = installation.data_dir
    settings = Settings(
        data_dir=folder,
        database_url=postgres.locate(folder).url,
        key_pepper=SecretStr(development_secret(folder, "key_pepper")),
        stripe_api_key=SecretStr(simulation.API_KEY),
        stripe_api_base=installation.stripe_url,
    )
    assert settings.database_url is not None
    database, gateway = Database.connect(settings.database_url, pool_size=2), Gateway.of(settings)
    try:
        async with database.begin() as connection:
            org_id = await connection.scalar(text("SELECT id FROM orgs WHERE name = :name"), {"name": org_name})
        async with httpx.AsyncClient(base_url=installation.stripe_url, timeout=60) as stripe:
            yield Books(settings, database, gateway, stripe, org_id)
    finally:
        await gateway.aclose()
        await database.aclose()
