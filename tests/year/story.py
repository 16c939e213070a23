"""What twelve customers do in a year, and the time that passes meanwhile.

Time stands still while anybody does something, and then goes to the next thing that
happens: a step of the plot, the end of a period, a week that is over. Everything at
Stripe lives by test clocks, three customers each; the jobs of the worker are told the
same time.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import text

from app.accounts.orgs import create_org
from app.bench.progress import note
from app.billing import changes, checkout
from app.billing.changes import Desk
from app.billing.checkout import Buyer
from app.worker import Job, billing_jobs, stripe_jobs
from tests.year import usage
from tests.year.oracle import Life, later
from tests.year.town import GRACE, Town
from tests.year.usage import Habit

START = datetime(2024, 1, 8, 8, tzinfo=UTC)
END = START.replace(year=2025)
CUSTOMERS_OF_A_CLOCK = 3
STEP = timedelta(days=7)
DRAFT = timedelta(hours=1)
"""For which the invoice of a renewal is open."""
_JUST_AFTER = timedelta(minutes=4)
_MICROSECOND = timedelta(microseconds=1)
_WEEK = timedelta(days=7)
# What only compares, once a week; what asks Stripe for events that were lost, once.
_RARELY = {
    "audit_invoices": _WEEK,
    "check_catalog": _WEEK,
    "compare_usage": _WEEK,
    "sweep_stripe_events": timedelta(days=1000),
}
_STATUS = text("SELECT status FROM org_budgets WHERE org_id = :org_id")
_SERVED = text("SELECT org_id FROM org_budgets WHERE status = 'active'")
_NEXT_END = text("SELECT min(period_end) FROM metering_periods WHERE period_end > :now")
_WAITING = text("SELECT type, attempts, last_error FROM stripe_events WHERE processed_at IS NULL")
_CURRENT = text(
    "SELECT stripe_subscription_id, plan, trial_end, started_at FROM subscriptions"
    " WHERE org_id = :org_id AND is_current"
)

Act = Callable[["Year", "Customer"], Awaitable[None]]


@dataclass
class Customer:
    """One of the twelve.

    Attributes:
        plot: What they do, by the time since the start of the year.
        clock: Their test clock.
        lives: Their subscriptions, as the oracle needs them.
    """

    name: str
    habit: Habit
    plot: list[tuple[timedelta, Act]]
    clock: str = ""
    org_id: UUID = field(default_factory=lambda: UUID(int=0))
    stripe_id: str = ""
    lives: list[Life] = field(default_factory=list)
    credit_bought: int = 0


class Year:
    """The year as it passes.

    Args:
        town: Where it does.
        customers: Who live there.
        seed: Of what they use.

    Attributes:
        now: What time it is.
        late: When rows that came late were first seen, by their ids.
    """

    def __init__(self, town: Town, customers: list[Customer], seed: int) -> None:
        self.town = town
        self.customers = customers
        self.now = START
        self.late: dict[UUID, datetime] = {}
        self._seed = seed
        self._clocks: list[str] = []
        self._last: dict[str, datetime] = {}
        self._jobs: tuple[Job, ...] = (*billing_jobs(town.settings), *stripe_jobs(town.settings, town.gateway))

    async def live(self, until: datetime = END) -> None:
        """From the start to ``until``."""
        await self._settle_in()
        plot = sorted(
            ((START + at, number, act) for number, one in enumerate(self.customers) for at, act in one.plot),
            key=lambda entry: entry[:2],
        )
        while self.now < until:
            while plot and plot[0][0] <= self.now:
                _, number, act = plot.pop(0)
                await act(self, self.customers[number])
                await self.work()
            ahead = [at for at, _, _ in plot[:1]] + [self.now + STEP, until]
            await self.go_to(min(ahead))

    async def go_to(self, to: datetime) -> None:
        """Lets time pass; stops where periods end, while their invoices still take usage."""
        while (end := await self._next_end()) <= to:
            await self._write_brinks(end)
            await self._pass(end + _JUST_AFTER)
        if self.now < to:
            await self._pass(to)

    async def work(self) -> None:
        """Everything that the worker does, until nothing is left that Stripe has told us."""
        is_more = True
        while is_more:
            await self.town.deliver()
            await self._run_jobs()
            await self.town.deliver()
            async with self.town.database.begin() as connection:
                waiting = (await connection.execute(_WAITING)).all()
            assert not any(event.attempts for event in waiting), waiting
            is_more = bool(waiting)

    async def _run_jobs(self) -> None:
        for job in self._jobs:
            if self.now - self._last.get(job.name, START - timedelta(days=30)) >= _RARELY.get(job.name, timedelta(0)):
                self._last[job.name] = self.now
                await job.run(self.town.database, self.now)

    def buyer(self, customer: Customer) -> Buyer:
        """As the portal has them."""
        return Buyer(customer.org_id, f"{customer.name}@example.com", "http://127.0.0.1")

    def desk(self, customer: Customer) -> Desk:
        """For changes of their subscription."""
        return Desk(self.town.database, self.town.gateway, customer.org_id, self.now, GRACE)

    async def current(self, customer: Customer) -> Any:
        """Their subscription."""
        async with self.town.database.begin() as connection:
            return (await connection.execute(_CURRENT, {"org_id": customer.org_id})).one_or_none()

    async def _settle_in(self) -> None:
        town = self.town
        for number, customer in enumerate(self.customers):
            if number % CUSTOMERS_OF_A_CLOCK == 0:
                clock = await town.gateway.create_test_clock(int(START.timestamp()), f"year {number}")
                self._clocks.append(clock["id"])
            customer.clock = self._clocks[-1]
            async with town.database.begin() as connection:
                customer.org_id = await create_org(connection, customer.name, "free")
            customer.stripe_id = await checkout.ensure_customer(
                town.database, town.gateway, self.buyer(customer), START, test_clock=customer.clock
            )

    async def _pass(self, to: datetime) -> None:
        if (to.year, to.month) != (self.now.year, self.now.month):
            note(f"{to:%B %Y}")
        served = await self._served()
        rows = [
            row
            for customer in self.customers
            if customer.org_id in served
            for row in usage.draw(customer.habit, customer.org_id, self.now, to, f"{self._seed} {customer.name}")
        ]
        await usage.write(self.town.database, rows)
        await asyncio.gather(*(self._advance(clock, to) for clock in self._clocks))
        self.now = to
        await self.work()

    async def _advance(self, clock: str, to: datetime) -> None:
        await self.town.gateway.advance_test_clock(clock, int(to.timestamp()))
        while (await self.town.gateway.retrieve_test_clock(clock))["status"] != "ready":
            pass

    async def _next_end(self) -> datetime:
        async with self.town.database.begin() as connection:
            found: datetime | None = await connection.scalar(_NEXT_END, {"now": self.now})
        return found or END + timedelta(days=1000)

    async def _served(self) -> set[UUID]:
        """Whose requests are not refused."""
        async with self.town.database.begin() as connection:
            return set(await connection.scalars(_SERVED))

    async def _write_brinks(self, end: datetime) -> None:
        """A row in the last microsecond of a period, and one in the first of the next."""
        served = await self._served()
        for customer in self.customers:
            ends = {later(life.anchor, months) for life in customer.lives for months in range(14)}
            if end in ends and customer.org_id in served:
                chance = random.Random(f"{self._seed} {customer.name} {end}")
                rows = [usage.one(chance, customer.habit, customer.org_id, at) for at in (end - _MICROSECOND, end)]
                await usage.write(self.town.database, rows)


# What a customer may do.


def sign_up(plan: str, interval: str = "month", coupon: str | None = None) -> Act:
    """Buys a plan at the checkout."""

    async def act(year: Year, customer: Customer) -> None:
        town = year.town
        url = await checkout.subscribe(
            town.database,
            town.gateway,
            town.settings,
            year.buyer(customer),
            plan,
            interval,
            year.now,
            coupon=coupon,
        )
        await town.pay(url)
        await year.work()
        held = await year.current(customer)
        assert held is not None, customer.name
        assert held.plan == plan
        anchor = held.trial_end or held.started_at
        customer.lives.append(Life(held.stripe_subscription_id, customer.org_id, anchor, [(anchor, plan)]))

    return act


def change(plan: str, interval: str = "month") -> Act:
    """Changes the plan, at once or later, whatever the rules say."""

    async def act(year: Year, customer: Customer) -> None:
        seen = await changes.preview(year.desk(customer), plan, interval)
        made = await changes.change_plan(year.desk(customer), plan, interval)
        assert made.at == seen.change.at
        life = customer.lives[-1]
        life.plans.append((made.at or max(year.now, life.anchor), plan))

    return act


async def cancel(year: Year, customer: Customer) -> None:
    """Lets the subscription end with what is paid for."""
    await changes.cancel(year.desk(customer))
    life = customer.lives[-1]
    subscription = await year.town.ask(f"/v1/subscriptions/{life.id}")
    life.end = datetime.fromtimestamp(subscription["cancel_at"], UTC)


async def keep(year: Year, customer: Customer) -> None:
    """Withdraws the end."""
    await changes.resume(year.desk(customer))
    customer.lives[-1].end = None


async def buy_credit(year: Year, customer: Customer) -> None:
    """Buys a hundred dollars of prepaid credit."""
    town, cents = year.town, 100_00
    url = await checkout.buy_credit(town.database, town.gateway, town.settings, year.buyer(customer), cents, year.now)
    await town.pay(url)
    customer.credit_bought += cents


async def lose_card(year: Year, customer: Customer) -> None:
    """From now on the card is declined."""
    await _declines(year, customer, is_on=True)


async def renew_card(year: Year, customer: Customer) -> None:
    """The card is charged again, and what is open is paid."""
    await _declines(year, customer, is_on=False)
    for invoice in await year.town.all("/v1/invoices", customer=customer.stripe_id, status="open"):
        await year.town.tell(f"/v1/invoices/{invoice['id']}/pay")


def is_status(status: str) -> Act:
    """Sees that requests are served, or not."""

    async def act(year: Year, customer: Customer) -> None:
        async with year.town.database.begin() as connection:
            found = await connection.scalar(_STATUS, {"org_id": customer.org_id})
        assert found == status, f"{customer.name} is {found} on {year.now}"

    return act


async def come_late(year: Year, customer: Customer) -> None:
    """A row of two days ago is seen only now: its window, and perhaps its invoice, is closed."""
    chance = random.Random(f"{customer.name} {year.now}")
    row = usage.one(chance, customer.habit, customer.org_id, year.now)
    await usage.write(year.town.database, [row], billed_at=year.now - timedelta(days=2))
    year.late[row.id] = year.now


async def _declines(year: Year, customer: Customer, *, is_on: bool) -> None:
    body: Mapping[str, Any] = {"on": is_on}
    answer = await year.town.stripe.post(f"/_control/api/customers/{customer.stripe_id}/decline", json=body)
    answer.raise_for_status()
