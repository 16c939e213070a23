"""A storm of webhooks: everything that Stripe ever said, repeated and out of order, at once.

``brew`` lets customers live at a simulated Stripe; ``blow`` sends their events to the API as
Stripe would, many more times than they happened, and then works the inbox off. What is
believed afterwards must be what was believed when each event came once and in order.
"""

import asyncio
import json
import random
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import stripe
from sqlalchemy import select, text, update

from app.accounts.orgs import create_org
from app.billing import catalog, inbox
from app.tables import CatalogPrice, Org, OrgBudget
from tests.billing.told import forget, state
from tests.year.town import GRACE, Town

START = datetime(2027, 1, 31, 12, tzinfo=UTC)
END = START + timedelta(days=33)
PLANS = ("starter", "growth", "scale")
CUSTOMERS_A_CLOCK = 3
AT_ONCE = 32


@dataclass(frozen=True, slots=True)
class Storm:
    """What came of it.

    Attributes:
        deliveries: Sent, duplicates included.
        events: That differ.
        taken_per_second: Deliveries that the API kept or knew.
        drained_per_second: Events that were worked off.
        cpu_s: Processor time of the worker meanwhile, without PostgreSQL's and Stripe's.
        lost: Events that were not.
        is_same: Whether what is believed is what was believed without the storm.
    """

    deliveries: int
    events: int
    taken_per_second: float
    drained_per_second: float
    cpu_s: float
    lost: int
    is_same: bool

    def line(self) -> str:
        """As JSON."""
        return json.dumps(asdict(self))


async def endpoint_of(town: Town) -> str:
    """Where webhooks are taken in."""
    (endpoint,) = await town.all("/v1/webhook_endpoints")
    return str(endpoint["url"])


async def brew(town: Town, num_customers: int) -> list[bytes]:
    """Customers who subscribe, renew and change their minds; returns the events that say so, oldest first.

    Stripe delivers none of them by itself: they are sent later, many times.
    """
    for endpoint in await town.all("/v1/webhook_endpoints"):
        (await town.stripe.delete(f"/v1/webhook_endpoints/{endpoint['id']}")).raise_for_status()
    async with town.database.begin() as connection:
        rows = await connection.execute(select(CatalogPrice.lookup_key, CatalogPrice.stripe_price_id))
        prices = {row.lookup_key: row.stripe_price_id for row in rows}
    clocks = []
    for number in range(num_customers):
        if number % CUSTOMERS_A_CLOCK == 0:
            clocks.append((await town.tell("/v1/test_helpers/test_clocks", frozen_time=int(START.timestamp())))["id"])
        await _subscribe(town, prices, clocks[-1], number)
    for clock in clocks:
        await town.tell(f"/v1/test_helpers/test_clocks/{clock}/advance", frozen_time=int(END.timestamp()))
    events = await town.all("/v1/events")
    return [json.dumps(event).encode() for event in reversed(events)]


async def blow(town: Town, url: str, bodies: Sequence[bytes], num_deliveries: int, seed: int) -> Storm:
    """Sends so many deliveries of these events, each at least once, in no order, and works them off.

    Args:
        town: The running parts.
        url: Where webhooks are taken in.
        bodies: Of the events.
        num_deliveries: At least as many.
        seed: Of the order.
    """
    for body in bodies:
        async with town.database.begin() as connection:
            await inbox.store(connection, body)
    await inbox.work_off(town.database, town.gateway, END, GRACE)
    calm = await state(town.database)
    await forget(town.database)
    chance = random.Random(seed)
    told = [*bodies, *chance.choices(bodies, k=num_deliveries - len(bodies))]
    chance.shuffle(told)
    started_s = time.perf_counter()
    await _send(town, url, told)
    sent_s = time.perf_counter() - started_s
    started_s, cpu_s = time.perf_counter(), time.process_time()
    num_drained = await inbox.work_off(town.database, town.gateway, END, GRACE)
    drained_s, cpu_s = time.perf_counter() - started_s, time.process_time() - cpu_s
    async with town.database.begin() as connection:
        done = await connection.scalar(text("SELECT count(*) FROM stripe_events WHERE processed_at IS NOT NULL"))
    return Storm(
        deliveries=len(told),
        events=len(bodies),
        taken_per_second=round(len(told) / sent_s, 1),
        drained_per_second=round(num_drained / drained_s, 1),
        cpu_s=round(cpu_s, 2),
        lost=len(bodies) - int(done or 0),
        is_same=await state(town.database) == calm,
    )


async def _subscribe(town: Town, prices: dict[str, str], clock: str, number: int) -> None:
    async with town.database.begin() as connection:
        org_id = await create_org(connection, f"Customer {number}")
        await connection.execute(update(OrgBudget).where(OrgBudget.org_id == org_id).values(plan="free"))
    card = {"payment_method": "pm_card_visa", "invoice_settings[default_payment_method]": "pm_card_visa"}
    customer = (await town.tell("/v1/customers", test_clock=clock, name=f"Customer {number}", **card))["id"]
    async with town.database.begin() as connection:
        await connection.execute(update(Org).where(Org.id == org_id).values(stripe_customer_id=customer))
    plan = catalog.plan(PLANS[number % len(PLANS)])
    keys = (catalog.lookup_key(plan, "flat", "month"), catalog.lookup_key(plan, "usage", "month"))
    items = {f"items[{index}][price]": prices[key] for index, key in enumerate(keys)}
    terms: dict[str, Any] = {"customer": customer, "billing_mode[type]": "flexible", **items}
    bought = (await town.tell("/v1/subscriptions", **terms))["id"]
    for change in ("true", "false") * (number % 4):
        await town.tell(f"/v1/subscriptions/{bought}", cancel_at_period_end=change)


async def _send(town: Town, url: str, bodies: Sequence[bytes]) -> None:
    (secret,) = town.settings.webhook_secrets
    waiting = iter(bodies)

    async def send(client: httpx.AsyncClient) -> None:
        for body in waiting:
            header = stripe.WebhookSignature.generate_signature_header(body.decode(), secret, int(time.time()))
            answer = await client.post(url, content=body, headers={"stripe-signature": header})
            answer.raise_for_status()

    async with httpx.AsyncClient(timeout=60) as client:
        await asyncio.gather(*(send(client) for _ in range(AT_ONCE)))
