"""What is bought at Stripe: a plan, prepaid credit, and the door to Stripe's own billing portal.

Each of these makes an address to which the customer's browser goes; cards are typed in
there, never here. Nothing changes on our side: what was bought comes in by webhook,
with the organisation's id in the metadata.

Stripe's hosted checkout takes prices of one interval. A plan that is paid by the year is
therefore bought with its flat price alone, and ``complete_items`` adds the metered one,
which is always monthly, as soon as the subscription is known.
"""

from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import select, text, update
from sqlalchemy.ext.asyncio import AsyncConnection

from app.billing import catalog
from app.billing.catalog import Interval, Plan
from app.billing.gateway import Gateway, Object
from app.billing.subscriptions import LIVE
from app.billing.sync import find_portal
from app.config import Settings
from app.db import Database
from app.errors import BadRequest, Conflict, NotFound, StripeRefused, StripeUnavailable
from app.tables import CatalogPrice, Org, Subscription

_HAS_TRIED = text(
    "SELECT EXISTS (SELECT FROM subscriptions WHERE org_id = :org_id) OR EXISTS (SELECT FROM subscriptions s"
    " JOIN memberships m ON m.org_id = s.org_id JOIN users u ON u.id = m.user_id"
    " WHERE u.email = lower(CAST(:email AS text)) AND m.role = 'owner' AND s.trial_end IS NOT NULL)"
)


@dataclass(frozen=True, slots=True)
class Buyer:
    """Who buys, and where the browser comes back to.

    Attributes:
        email: Of the person, for Stripe's receipts; None: they are asked for it.
        base_url: Of this installation as the browser sees it, without a slash at the end.
    """

    org_id: UUID
    email: str | None
    base_url: str


async def ensure_customer(
    database: Database, gateway: Gateway, buyer: Buyer, now: datetime, *, test_clock: str | None = None
) -> str:
    """The organisation's customer at Stripe, made at the first call.

    Two calls at once ask Stripe with the same key and are given the same customer. A
    call that was answered with a failure is asked anew a minute later, because Stripe
    repeats what it stored for a key, failures too; whoever comes second to the database
    then leaves an empty customer behind, which nothing refers to.

    Args:
        database: Opened twice, never while Stripe is awaited.
        gateway: To Stripe.
        buyer: Whose customer.
        now: The present.
        test_clock: At Stripe's test mode, the clock that the customer lives by.

    Raises:
        NotFound: No such organisation.
        StripeUnavailable: As every call; likewise ``StripeRefused``.
    """
    async with database.begin() as connection:
        row = (
            await connection.execute(select(Org.name, Org.stripe_customer_id).where(Org.id == buyer.org_id))
        ).one_or_none()
    if row is None:
        raise NotFound(
            "There is no organisation %(id)s.", values={"id": buyer.org_id}, code="org_not_found", param="org"
        )
    if row.stripe_customer_id is not None:
        return str(row.stripe_customer_id)
    customer: Object = {"name": row.name, "metadata": {"org_id": str(buyer.org_id)}}
    if buyer.email is not None:
        customer["email"] = buyer.email
    if test_clock is not None:
        customer["test_clock"] = test_clock
    made = await gateway.create_customer(customer, f"customer-{buyer.org_id}-{now:%Y%m%d%H%M}")
    async with database.begin() as connection:
        await connection.execute(
            update(Org)
            .where(Org.id == buyer.org_id, Org.stripe_customer_id.is_(None))
            .values(stripe_customer_id=made["id"])
        )
        return str(await connection.scalar(select(Org.stripe_customer_id).where(Org.id == buyer.org_id)))


async def subscribe(
    database: Database,
    gateway: Gateway,
    settings: Settings,
    buyer: Buyer,
    plan_name: str,
    interval: str,
    now: datetime,
    *,
    coupon: str | None = None,
) -> str:
    """The address at which the customer pays for a plan; older ones of theirs end.

    It begins with the plan's trial for whoever ``may_try``.

    Args:
        database: Not open while Stripe is awaited.
        gateway: To Stripe.
        settings: Whether Stripe computes tax.
        buyer: Who pays.
        plan_name: Of the catalogue, one that costs something.
        interval: ``month`` or ``year``, of the flat price.
        now: The present.
        coupon: Of the catalogue; None: the customer may type in a promotion code.

    Raises:
        BadRequest: No such plan, interval or coupon, or nothing to pay for.
        Conflict: There is a subscription already; it can be changed.
        StripeUnavailable: Stripe does not answer, or has not been given the catalogue.
        StripeRefused: Stripe does not sell this.
    """
    plan, by = sold(plan_name, interval)
    flat, usage = lookup_keys(plan, by)
    async with database.begin() as connection:
        past = list(await connection.scalars(select(Subscription.status).where(Subscription.org_id == buyer.org_id)))
        days = plan.trial_days if await may_try(connection, buyer.org_id, buyer.email) else 0
        prices = await price_ids(connection, [flat, usage])
    _require_none(past)
    customer = await ensure_customer(database, gateway, buyer, now)
    await _end_older_checkouts(gateway, customer)
    # One that was paid for a moment ago, of which we have not been told yet; no older checkout can add to it now.
    _require_none(await _statuses(gateway, customer))
    session = {
        **_session(buyer, customer, "subscription"),
        "line_items": [{"price": prices[flat], "quantity": 1}, *([{"price": prices[usage]}] if by == "month" else [])],
        "subscription_data": _subscription_data(buyer.org_id, days),
        **_discount(coupon),
        **_tax(settings),
    }
    return str((await gateway.create_checkout(session))["url"])


async def may_try(connection: AsyncConnection, org_id: UUID, email: str | None) -> bool:
    """Whether a subscription would begin with a trial: it is the first, and the person has not tried before.

    Args:
        connection: An open transaction.
        org_id: The organisation.
        email: Of who buys: one trial is enough for all the organisations that somebody owns; None: not known.
    """
    return not await connection.scalar(_HAS_TRIED, {"org_id": org_id, "email": email})


async def buy_credit(
    database: Database, gateway: Gateway, settings: Settings, buyer: Buyer, cents: int, now: datetime
) -> str:
    """The address at which the customer pays for prepaid credit.

    Args:
        database: Not open while Stripe is awaited.
        gateway: To Stripe.
        settings: Whether Stripe computes tax, on top of the credit.
        buyer: Who pays.
        cents: US cents, one of the catalogue's amounts.
        now: The present.

    Raises:
        BadRequest: An amount that is not sold.
        StripeUnavailable: As every call; likewise ``StripeRefused``.
    """
    if cents not in catalog.CREDIT_CENTS:
        raise BadRequest("Credit is not sold in this amount.", param="amount")
    key = catalog.credit_lookup_key(cents)
    async with database.begin() as connection:
        prices = await price_ids(connection, [key])
    customer = await ensure_customer(database, gateway, buyer, now)
    session = _session(buyer, customer, "credit")
    session |= {
        "line_items": [{"price": prices[key], "quantity": 1}],
        "payment_intent_data": {"metadata": session["metadata"]},
        **_tax(settings),
    }
    return str((await gateway.create_checkout(session))["url"])


async def open_portal(database: Database, gateway: Gateway, buyer: Buyer, now: datetime) -> str:
    """The address of Stripe's billing portal: cards, addresses, invoices as PDF.

    Raises:
        StripeUnavailable: As every call; likewise ``StripeRefused``.
    """
    customer = await ensure_customer(database, gateway, buyer, now)
    session: Object = {"customer": customer, "return_url": f"{buyer.base_url}/billing"}
    configuration = await find_portal(gateway)
    if configuration is not None:
        session["configuration"] = configuration["id"]
    return str((await gateway.create_portal_session(session))["url"])


async def complete_items(database: Database, gateway: Gateway, subscription: Mapping[str, Any], now: datetime) -> bool:
    """Adds the metered price to a subscription that was bought without; safe to repeat.

    Args:
        database: For the ids of prices.
        gateway: To Stripe.
        subscription: Stripe's object.
        now: The present.

    Returns:
        Whether one was added, so that the object is out of date.

    Raises:
        StripeUnavailable: As every call; likewise ``StripeRefused``.
    """
    key = missing_price(subscription)
    if key is None:
        return False
    async with database.begin() as connection:
        prices = await price_ids(connection, [key])
    await add_price(gateway, subscription, prices[key], now)
    return True


def missing_price(subscription: Mapping[str, Any]) -> str | None:
    """The lookup key of the metered price that a subscription was bought without; None: it lacks none."""
    items = subscription["items"]["data"]
    if subscription["status"] not in LIVE or len(items) != 1:
        return None
    named = catalog.plan_of_lookup_key(items[0]["price"]["lookup_key"])
    if named is None or named[1] != "flat":
        return None
    return catalog.lookup_key(named[0], "usage", "month")


async def add_price(gateway: Gateway, subscription: Mapping[str, Any], price_id: str, now: datetime) -> None:
    """Adds a price to a subscription.

    Two calls at once add one, as Stripe refuses a price that a subscription has. A call that
    was answered with a failure is asked anew a minute later, because Stripe repeats what it
    stored for a key.

    Raises:
        StripeUnavailable: As every call; likewise ``StripeRefused``.
    """
    item = {"subscription": subscription["id"], "price": price_id, "proration_behavior": "none"}
    await gateway.create_subscription_item(item, f"metered-{subscription['id']}-{price_id}-{now:%Y%m%d%H%M}")


def lookup_keys(plan: Plan, interval: Interval) -> list[str]:
    """Of a plan's flat price and its price of usage, in this order."""
    return [catalog.lookup_key(plan, "flat", interval), catalog.lookup_key(plan, "usage", "month")]


def sold(plan_name: str, interval: str) -> tuple[Plan, Interval]:
    """What is meant by a plan's name and an interval, as a browser sends them.

    Raises:
        BadRequest: There is no such plan to subscribe to.
    """
    plan = catalog.PLANS.get(plan_name)
    if plan is None or not plan.is_listed or interval not in plan.intervals:
        raise BadRequest("There is no such plan to subscribe to.", param="plan")
    return plan, interval


async def price_ids(connection: AsyncConnection, keys: list[str]) -> dict[str, str]:
    """Stripe's ids of the prices with these lookup keys.

    Raises:
        StripeUnavailable: The catalogue has not been pushed.
    """
    rows = await connection.execute(
        select(CatalogPrice.lookup_key, CatalogPrice.stripe_price_id).where(CatalogPrice.lookup_key.in_(keys))
    )
    found = {row.lookup_key: row.stripe_price_id for row in rows}
    if len(found) < len(keys):
        raise StripeUnavailable("Plans cannot be bought here yet: the catalogue has not been pushed to Stripe.")
    return found


def _require_none(statuses: Iterable[str]) -> None:
    if any(status in LIVE for status in statuses):
        raise Conflict("There is a subscription already; change its plan instead.", code="already_subscribed")


async def _statuses(gateway: Gateway, customer: str) -> list[str]:
    """Of a customer's subscriptions to plans, as Stripe has them."""
    return [
        subscription["status"]
        for subscription in await gateway.list_subscriptions(customer)
        if any(catalog.plan_of_lookup_key(item["price"]["lookup_key"]) for item in subscription["items"]["data"])
    ]


async def _end_older_checkouts(gateway: Gateway, customer: str) -> None:
    """So that nobody pays for two plans from two open pages."""
    for session in await gateway.list_open_checkouts(customer):
        if session["mode"] == "subscription":
            # It was paid, or somebody else's click has ended it.
            with suppress(StripeRefused):
                await gateway.expire_checkout(session["id"])


def _session(buyer: Buyer, customer: str, purpose: str) -> Object:
    return {
        "mode": "subscription" if purpose == "subscription" else "payment",
        "customer": customer,
        "client_reference_id": str(buyer.org_id),
        "metadata": {"org_id": str(buyer.org_id), "purpose": purpose},
        "success_url": f"{buyer.base_url}/billing?bought={purpose}",
        "cancel_url": f"{buyer.base_url}/billing",
    }


def _subscription_data(org_id: UUID, trial_days: int) -> Object:
    data: Object = {"metadata": {"org_id": str(org_id)}, "billing_mode": {"type": "flexible"}}
    if trial_days:
        data["trial_period_days"] = trial_days
        data["trial_settings"] = {"end_behavior": {"missing_payment_method": "cancel"}}
    return data


def _discount(coupon: str | None) -> Object:
    # Stripe takes one or the other.
    if coupon is None:
        return {"allow_promotion_codes": True}
    if coupon not in {one.id for one in catalog.COUPONS}:
        raise BadRequest("There is no coupon '%(coupon)s'.", values={"coupon": coupon}, param="coupon")
    return {"discounts": [{"coupon": coupon}]}


def _tax(settings: Settings) -> Object:
    if not settings.stripe_tax:
        return {}
    return {
        "automatic_tax": {"enabled": True},
        "billing_address_collection": "required",
        "customer_update": {"address": "auto", "name": "auto"},
        "tax_id_collection": {"enabled": True},
    }
