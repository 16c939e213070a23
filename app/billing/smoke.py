"""A rehearsal of a customer's life at Stripe's test mode: from the catalogue to a paid invoice.

Against the real service it shows that what we send is understood there and rated as we
think it is; the tests run the same steps against the simulator. It uses a test clock,
so that a month takes a minute, and deletes it at the end with the customers it made. No
database is touched, so that one that belongs to a live account never learns ids of the test mode.

Webhooks are not part of it: Stripe would have to reach this machine.
"""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import ROUND_HALF_UP, Decimal
from uuid import uuid4

from app.billing import catalog, changes, checkout, sync
from app.billing.catalog import METER, NANO_USD_PER_USD, Interval, Plan
from app.billing.checkout import lookup_keys
from app.billing.gateway import Gateway, Object
from app.errors import AppError, ConfigError

Pause = Callable[[float], Awaitable[None]]
TEST_KEYS = ("sk_test_", "rk_test_")
CARD = "pm_card_visa"
"""Stripe's test card that is always charged."""
WAIT_S = 300
"""Longest wait for Stripe to count, or for its clock to arrive."""
_POLL_S = 2.0
_PLAN = "starter"
_NEXT_PLAN = "growth"


@dataclass(slots=True)
class Rehearsal:
    """What the steps hand to each other.

    Attributes:
        prices: Stripe's ids, by lookup key.
        pause: Waits so many seconds.
        value: Usage that is reported, in nano-USD: all that is included, and something above.
    """

    gateway: Gateway
    prices: dict[str, str]
    pause: Pause
    now: datetime
    clock: str = ""
    customer: str = ""
    subscription: Object = field(default_factory=dict)
    value: int = catalog.PLANS[_PLAN].included_value + 12_345_678_901

    async def until(self, is_done: Callable[[], Awaitable[bool]], what: str) -> None:
        """Waits for Stripe.

        Raises:
            ConfigError: It takes too long.
        """
        for _ in range(int(WAIT_S / _POLL_S)):
            if await is_done():
                return
            await self.pause(_POLL_S)
        raise ConfigError(f"{what}: not within {WAIT_S} seconds")


def check_key(api_key: str) -> None:
    """Passes for a key of Stripe's test mode.

    Raises:
        ConfigError: It would make real customers.
    """
    if not api_key.startswith(TEST_KEYS):
        raise ConfigError("The key is not one of Stripe's test mode (sk_test_…); nothing was done.")


async def rehearse(gateway: Gateway, now: datetime, *, pause: Pause = asyncio.sleep) -> AsyncGenerator[str]:
    """Does one step after the other, and says what it has seen; may run again, and beside itself.

    Args:
        gateway: An account in test mode.
        now: The present.
        pause: Waits so many seconds.

    Raises:
        ConfigError: Stripe did something else than expected.
        StripeUnavailable: As every call; likewise ``StripeRefused``.
    """
    prices = await _push(gateway, now)
    yield "the catalogue is at Stripe"
    rehearsal = Rehearsal(gateway, prices, pause, now.replace(microsecond=0))
    try:
        for step in (_buy, _open_pages, _report, _renew, _upgrade, _end, _buy_a_year):
            yield await step(rehearsal)
    finally:
        if rehearsal.clock:
            # Otherwise Stripe does it after thirty days.
            with suppress(AppError):
                await gateway.delete_test_clock(rehearsal.clock)


async def _push(gateway: Gateway, now: datetime) -> dict[str, str]:
    wanted = await sync.make_missing(gateway, sync.Report(), now)
    listed = await gateway.list_prices([price.lookup_key for price in wanted])
    prices = {price["lookup_key"]: str(price["id"]) for price in listed if price["active"]}
    _expect("active prices are", sorted(prices), sorted(price.lookup_key for price in wanted))
    return prices


async def _buy(rehearsal: Rehearsal) -> str:
    gateway, plan = rehearsal.gateway, catalog.PLANS[_PLAN]
    clock = await gateway.create_test_clock(int(rehearsal.now.timestamp()), "tollgate live-smoke")
    rehearsal.clock = clock["id"]
    rehearsal.customer = await _customer(rehearsal)
    items = _items(rehearsal, plan, "month")
    rehearsal.subscription = await gateway.create_subscription(
        {"customer": rehearsal.customer, "items": items, "billing_mode": {"type": "flexible"}}
    )
    _expect("the new subscription is", rehearsal.subscription["status"], "active")
    (invoice,) = await gateway.list_invoices(rehearsal.customer)
    _expect("the first invoice is", (invoice["status"], invoice["total"]), ("paid", plan.month_cents))
    return f"{plan.title} is bought; the first invoice of {_dollars(invoice['total'])} is paid"


async def _open_pages(rehearsal: Rehearsal) -> str:
    gateway, address = rehearsal.gateway, "https://example.com/billing"
    flat, _ = lookup_keys(catalog.PLANS[_PLAN], "month")
    session = await gateway.create_checkout(
        {
            "mode": "subscription",
            "customer": rehearsal.customer,
            "line_items": [{"price": rehearsal.prices[flat], "quantity": 1}],
            "subscription_data": {"billing_mode": {"type": "flexible"}, "trial_period_days": 14},
            "success_url": address,
            "cancel_url": address,
            "allow_promotion_codes": True,
        }
    )
    await gateway.expire_checkout(session["id"])
    portal = await gateway.create_portal_session({"customer": rehearsal.customer, "return_url": address})
    _expect("addresses are given", bool(session["url"] and portal["url"]), True)
    return "checkout and billing portal open"


async def _report(rehearsal: Rehearsal) -> str:
    gateway, at = rehearsal.gateway, rehearsal.now
    identifier = str(uuid4())
    await gateway.send_meter_event(
        METER, rehearsal.customer, rehearsal.value, at, identifier, idempotency_key=f"smoke-{identifier}"
    )
    meter = await gateway.meter_id(METER)
    hour = at.replace(minute=0, second=0)

    async def is_counted() -> bool:
        sums = await gateway.meter_sums(meter, rehearsal.customer, hour, hour + timedelta(hours=1))
        return sum(sums.values()) == rehearsal.value

    await rehearsal.until(is_counted, "Stripe counts the usage")
    return f"usage worth {_dollars(Decimal(rehearsal.value) * 100 / NANO_USD_PER_USD)} at list price is counted"


async def _renew(rehearsal: Rehearsal) -> str:
    item = rehearsal.subscription["items"]["data"][0]
    end = datetime.fromtimestamp(item["current_period_end"], UTC)
    await _advance(rehearsal, end + timedelta(minutes=5))
    await _advance(rehearsal, end + timedelta(hours=2))
    (invoice, _) = await rehearsal.gateway.list_invoices(rehearsal.customer)
    invoice = await rehearsal.gateway.retrieve_invoice(invoice["id"])
    plan = catalog.PLANS[_PLAN]
    counted, cents = _metered(invoice, rehearsal.prices[lookup_keys(plan, "month")[1]])
    _expect("the invoice counts", counted, rehearsal.value)
    _expect("its usage costs, in cents,", cents, _rounded(catalog.cost_of_usage(plan, rehearsal.value)))
    _expect("the invoice is", (invoice["status"], invoice["total"]), ("paid", plan.month_cents + cents))
    return f"the month is over; {_dollars(cents)} of usage are on the invoice of {_dollars(invoice['total'])}, paid"


async def _upgrade(rehearsal: Rehearsal) -> str:
    flat, usage = (rehearsal.prices[key] for key in lookup_keys(catalog.PLANS[_NEXT_PLAN], "month"))
    items = []
    for item in rehearsal.subscription["items"]["data"]:
        is_usage = item["price"]["recurring"]["usage_type"] == "metered"
        items.append({"id": item["id"], "price": usage} if is_usage else {"id": item["id"], "price": flat})
    details = {"items": items, "proration_behavior": "always_invoice"}
    preview = await rehearsal.gateway.preview_invoice(
        {"subscription": rehearsal.subscription["id"], "subscription_details": details}
    )
    changed = await rehearsal.gateway.update_subscription(
        rehearsal.subscription["id"], {**details, "payment_behavior": "error_if_incomplete"}
    )
    _expect("the changed subscription is", changed["status"], "active")
    invoice = (await rehearsal.gateway.list_invoices(rehearsal.customer))[0]
    _expect("the change costs what was shown", invoice["total"], preview["total"])
    return f"{catalog.PLANS[_NEXT_PLAN].title} begins at once for {_dollars(invoice['total'])}, as previewed"


async def _end(rehearsal: Rehearsal) -> str:
    ending = await rehearsal.gateway.update_subscription(rehearsal.subscription["id"], {"cancel_at": "max_period_end"})
    await _advance(rehearsal, datetime.fromtimestamp(ending["cancel_at"], UTC) + timedelta(hours=2))
    ended = await rehearsal.gateway.retrieve_subscription(rehearsal.subscription["id"])
    _expect("the ended subscription is", ended["status"], "canceled")
    return "the subscription ends with its period"


async def _buy_a_year(rehearsal: Rehearsal) -> str:
    """What Stripe's documentation says least about: a flat price by the year with usage by the month."""
    gateway, plan = rehearsal.gateway, catalog.PLANS[_NEXT_PLAN]
    customer = await _customer(rehearsal)
    flat, usage = _items(rehearsal, plan, "year")
    bought = await gateway.create_subscription(
        {"customer": customer, "items": [flat], "billing_mode": {"type": "flexible"}}
    )
    _expect("what a plan by the year lacks is", checkout.missing_price(bought), lookup_keys(plan, "year")[1])
    await checkout.add_price(gateway, bought, usage["price"], rehearsal.now)
    subscription = await gateway.retrieve_subscription(bought["id"])
    ends = {item["price"]["id"]: item["current_period_end"] for item in subscription["items"]["data"]}
    year_end = ends[flat["price"]]
    _expect("usage is billed before the year ends,", ends[usage["price"]] < year_end, True)
    cheaper = _items(rehearsal, catalog.PLANS[_PLAN], "month")
    await changes.change_later(gateway, subscription, cheaper, datetime.fromtimestamp(year_end, UTC))
    schedule = (await gateway.retrieve_subscription(bought["id"]))["schedule"]
    _expect("the cheaper plan begins at", schedule["phases"][-1]["start_date"], year_end)
    await gateway.release_schedule(schedule["id"])
    ending = await gateway.update_subscription(bought["id"], {"cancel_at": "max_period_end"})
    _expect("the subscription ends at", ending["cancel_at"], year_end)
    return "a plan by the year takes usage by the month, and changes and ends with its year"


async def _advance(rehearsal: Rehearsal, to: datetime) -> None:
    await rehearsal.gateway.advance_test_clock(rehearsal.clock, int(to.timestamp()))

    async def is_there() -> bool:
        clock = await rehearsal.gateway.retrieve_test_clock(rehearsal.clock)
        return str(clock["status"]) == "ready"

    await rehearsal.until(is_there, "Stripe's test clock arrives")


async def _customer(rehearsal: Rehearsal) -> str:
    customer = {
        "name": "Tollgate live-smoke",
        "test_clock": rehearsal.clock,
        "payment_method": CARD,
        "invoice_settings": {"default_payment_method": CARD},
    }
    return str((await rehearsal.gateway.create_customer(customer, f"smoke-{uuid4()}"))["id"])


def _items(rehearsal: Rehearsal, plan: Plan, interval: Interval) -> list[Object]:
    """What a subscription to a plan has, the flat price first."""
    flat, usage = (rehearsal.prices[key] for key in lookup_keys(plan, interval))
    return [{"price": flat, "quantity": 1}, {"price": usage}]


def _metered(invoice: Object, price: str) -> tuple[int, int]:
    """What an invoice's lines at a price count, and what they cost in cents."""
    lines = [line for line in invoice["lines"]["data"] if line["pricing"]["price_details"]["price"] == price]
    return sum(line["quantity"] for line in lines), sum(line["amount"] for line in lines)


def _rounded(cents: Decimal) -> int:
    return int(cents.quantize(Decimal(1), ROUND_HALF_UP))


def _dollars(cents: int | Decimal) -> str:
    return f"${Decimal(cents) / 100:,.2f}"


def _expect(what: str, found: object, expected: object) -> None:
    if found != expected:
        raise ConfigError(f"{what} {found!r}, not {expected!r}")
