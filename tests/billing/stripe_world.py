"""A simulated Stripe that has the catalogue, organisations that are its customers, and their events."""

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import select, text, update

from app.billing import catalog, inbox, sync
from app.billing.catalog import Interval
from app.billing.gateway import Gateway
from app.db import Database
from app.tables import CatalogPrice, Org, OrgBudget
from tests.factories import make_org
from tests.simulators.stripe.simulator import Simulator

START = datetime(2027, 1, 31, 12, tzinfo=UTC)
GRACE = timedelta(days=7)


class StripeWorld:
    """Both sides of the border: what is at Stripe, and what we know of it."""

    def __init__(self, database: Database, gateway: Gateway, simulator: Simulator) -> None:
        self.database = database
        self.gateway = gateway
        self.simulator = simulator
        self.clock = ""
        self.now = START
        self._prices: dict[str, str] = {}

    @property
    def v1(self) -> Any:
        """The API of the simulator, through the real client."""
        return self.simulator.v1

    async def open(self) -> None:
        """Pushes the catalogue; customers will live by a test clock that stands at ``START``."""
        await sync.push(self.database, self.gateway, self.now)
        async with self.database.begin() as connection:
            rows = await connection.execute(select(CatalogPrice.lookup_key, CatalogPrice.stripe_price_id))
            self._prices = {row.lookup_key: row.stripe_price_id for row in rows}
        self.restart()

    def restart(self) -> None:
        """Lets the customers that are made from now on live by a clock that stands at ``START``."""
        self.clock = self.v1.test_helpers.test_clocks.create({"frozen_time": int(START.timestamp())}).id
        self.now = START

    def price(self, plan: str, part: catalog.Part, interval: Interval = "month") -> str:
        """Stripe's id of a price of the catalogue."""
        return self._prices[catalog.lookup_key(catalog.plan(plan), part, interval)]

    async def customer(self, name: str = "Acme", card: str = "pm_card_visa") -> tuple[UUID, str]:
        """An organisation on the free plan, and its customer with a card."""
        org_id = await make_org(self.database, name)
        terms = {"payment_method": card, "invoice_settings": {"default_payment_method": card}}
        made = self.v1.customers.create({"name": name, "test_clock": self.clock, "email": "a@acme.example", **terms})
        async with self.database.begin() as connection:
            await connection.execute(update(Org).where(Org.id == org_id).values(stripe_customer_id=made.id))
            await connection.execute(update(OrgBudget).where(OrgBudget.org_id == org_id).values(plan="free"))
        return org_id, str(made.id)

    def subscribe(self, customer: str, plan: str = "starter", interval: Interval = "month", **terms: Any) -> str:
        """A subscription to a plan; returns its id."""
        items = [{"price": self.price(plan, "flat", interval)}, {"price": self.price(plan, "usage")}]
        terms = {"billing_mode": {"type": "flexible"}, **terms}
        return str(self.v1.subscriptions.create({"customer": customer, "items": items, **terms}).id)

    def go(self, moment: datetime) -> None:
        """Lets the customers' clock stand at a moment, with everything that happens until then."""
        while self.now < moment:
            # By two months at once, which the clock allows.
            self.now = min(moment, self.now + timedelta(days=59))
            self.v1.test_helpers.test_clocks.advance(self.clock, {"frozen_time": int(self.now.timestamp())})

    def bodies(self) -> list[bytes]:
        """Every event that Stripe has sent so far, each once."""
        self.simulator.flush()
        return list(dict.fromkeys(body for body, _ in self.simulator.receiver.received))

    async def take_in(self, bodies: Iterable[bytes] | None = None) -> None:
        """Puts events into the inbox: these, or all that were sent."""
        for body in self.bodies() if bodies is None else bodies:
            async with self.database.begin() as connection:
                await inbox.store(connection, body)

    async def work_off(self) -> int:
        """Works off what is in the inbox."""
        return await inbox.work_off(self.database, self.gateway, self.now, GRACE)

    async def settle(self) -> int:
        """Takes everything in and works it off."""
        await self.take_in()
        return await self.work_off()

    async def rows(self, statement: str, **bind: Any) -> list[Any]:
        """What a query finds."""
        async with self.database.begin() as connection:
            return list((await connection.execute(text(statement), bind)).all())

    async def run(self, statement: str, **bind: Any) -> None:
        """Executes a statement."""
        async with self.database.begin() as connection:
            await connection.execute(text(statement), bind)

    async def budget(self, org_id: UUID) -> tuple[str, str, str | None]:
        """Plan, status and restriction."""
        (row,) = await self.rows("SELECT plan, status, restriction FROM org_budgets WHERE org_id = :id", id=org_id)
        return row.plan, row.status, row.restriction
