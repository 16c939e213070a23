"""The catalogue at Stripe: pushed there, and compared with what is there.

Everything has a name that is ours to choose (a product its id, a price its lookup key, a
coupon its id, the meter its event name), so pushing again finds what there is and makes
what is missing. What customers have agreed to is never changed from here: where Stripe's
price is not the catalogue's, that is drift, which is reported for a person to resolve, in
the code by a new version or at Stripe. Names of products and switches of Stripe's portal
are put right.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from typing import Any

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from app import audit
from app.billing import catalog
from app.billing.catalog import Coupon, PlanPrice
from app.billing.gateway import Gateway, Object
from app.db import Database
from app.telemetry import CATALOG_DRIFT

PORTAL_MARK = {"tollgate": "portal"}
"""Metadata of the one configuration of Stripe's portal that is ours."""

_ON, _OFF = {"enabled": True}, {"enabled": False}
# Plans are changed and cancelled with us, where usage is sent off first.
_FEATURES: Mapping[str, Mapping[str, Any]] = {
    "customer_update": {**_ON, "allowed_updates": ["address", "email", "name", "tax_id"]},
    "invoice_history": _ON,
    "payment_method_update": _ON,
    "subscription_cancel": _OFF,
    "subscription_update": _OFF,
}
_METER: Mapping[str, Any] = {
    "event_name": catalog.METER,
    "display_name": "Usage at list price, 10^-9 USD",
    "default_aggregation": {"formula": "sum"},
    "customer_mapping": {"type": "by_id", "event_payload_key": "stripe_customer_id"},
    "value_settings": {"event_payload_key": "value"},
}
_COMPARED = ("currency", "tax_behavior", "billing_scheme", "unit_amount", "tiers_mode", "tiers", "recurring")
_RECURRING = ("interval", "interval_count", "usage_type", "meter")
# What was agreed upon is that of the price's first day, however the code changes.
_UPSERT = text(
    "INSERT INTO catalog_prices AS c (lookup_key, stripe_price_id, stripe_product_id, fingerprint, drift, synced_at)"
    " VALUES (:lookup_key, :price_id, :product_id, :fingerprint, :drift, :now)"
    " ON CONFLICT (lookup_key) DO UPDATE SET stripe_price_id = excluded.stripe_price_id,"
    " stripe_product_id = excluded.stripe_product_id, drift = excluded.drift, synced_at = excluded.synced_at,"
    " fingerprint = CASE WHEN c.stripe_price_id = excluded.stripe_price_id THEN c.fingerprint"
    " ELSE excluded.fingerprint END"
)
_FINGERPRINTS = text("SELECT lookup_key, stripe_price_id, fingerprint FROM catalog_prices")
_FORGET = text("DELETE FROM catalog_prices WHERE NOT lookup_key = ANY(:lookup_keys)")


@dataclass(slots=True)
class Report:
    """What was done and found.

    Attributes:
        made: Names of what was not there.
        repaired: Names of what was put right.
        drift: By name, in which way Stripe has something else than the catalogue.
    """

    made: list[str] = field(default_factory=list)
    repaired: list[str] = field(default_factory=list)
    drift: dict[str, str] = field(default_factory=dict)


async def push(database: Database, gateway: Gateway, now: datetime) -> Report:
    """Makes what Stripe lacks of the catalogue and remembers where it lies.

    May be run again at any time, also after it failed half-way.

    Args:
        database: Remembers it.
        gateway: The account.
        now: When this is.

    Raises:
        StripeUnavailable: It can be run again.
        StripeRefused: The account does not allow it.
    """
    report = Report()
    prices = await make_missing(gateway, report, now)
    listed = await gateway.list_prices([price.lookup_key for price in prices])
    async with database.begin() as connection:
        report.drift |= await _compare(connection, prices, listed, now)
        if report.made or report.repaired:
            after = {"made": report.made, "repaired": report.repaired}
            await audit.record(
                connection,
                org_id=None,
                actor=audit.OPERATOR,
                action="catalog.push",
                target="catalog:stripe",
                after=after,
            )
    CATALOG_DRIFT.set(len(report.drift))
    return report


async def make_missing(gateway: Gateway, report: Report, now: datetime) -> list[PlanPrice]:
    """Makes what Stripe lacks of the catalogue, and remembers nothing of it here.

    Args:
        gateway: The account.
        report: Is told of it, and of drift of all but the prices.
        now: When this is.

    Returns:
        The prices of the catalogue, all of which Stripe has now under their lookup keys.

    Raises:
        StripeUnavailable: It can be run again; likewise ``StripeRefused``.
    """
    prices = catalog.prices(await _push_meter(gateway, report))
    await _push_products(gateway, report)
    await _push_prices(gateway, prices, report, now)
    await _push_coupons(gateway, report)
    await _push_portal(gateway, report)
    return prices


async def check(database: Database, gateway: Gateway, now: datetime) -> Mapping[str, str]:
    """Compares the meter and the prices without making anything, and remembers what it found.

    Returns:
        Drift as ``Report`` has it; what is missing altogether is drift too.
    """
    drift = {catalog.METER: "is missing"}
    for meter in await gateway.list_meters():
        if meter["event_name"] == catalog.METER:
            prices = catalog.prices(meter["id"])
            listed = await gateway.list_prices([price.lookup_key for price in prices])
            async with database.begin() as connection:
                drift = _meter_drift(meter) | await _compare(connection, prices, listed, now)
    CATALOG_DRIFT.set(len(drift))
    return drift


async def find_portal(gateway: Gateway) -> Object | None:
    """Our configuration of Stripe's portal; None: the catalogue has not been pushed.

    Raises:
        StripeUnavailable: As every call; likewise ``StripeRefused``.
    """
    ours = (one for one in await gateway.list_portal_configurations() if PORTAL_MARK.items() <= one["metadata"].items())
    return next(ours, None)


def lines(report: Report) -> Iterable[str]:
    """The report, for a person."""
    yield from (f"made      {name}" for name in report.made)
    yield from (f"repaired  {name}" for name in report.repaired)
    yield from (f"DRIFT     {name}: {problem}" for name, problem in report.drift.items())
    if not (report.made or report.repaired or report.drift):
        yield "Stripe has the catalogue as it is."


def drift_of(price: PlanPrice, found: Mapping[str, Any]) -> str | None:
    """In which way Stripe's price is another than ours, in words; None: it is the same.

    Args:
        price: Of the catalogue.
        found: Stripe's, with its tiers.
    """
    expected = {"active": True, "product": price.product, **_flattened(price.terms)}
    actual = _flattened({name: found.get(name) for name in ("active", "product", *_COMPARED)})
    differences = [
        f"{name} is {actual.get(name)}, not {expected.get(name)}"
        for name in sorted(expected.keys() | actual.keys())
        if actual.get(name) != expected.get(name)
    ]
    return "; ".join(differences) or None


def fingerprint(price: PlanPrice) -> bytes:
    """SHA-256 of what is agreed upon with whoever buys it; the same in every account."""
    agreed = json.dumps([price.product, _without_meter(price.terms)], sort_keys=True)
    return hashlib.sha256(agreed.encode()).digest()


async def _push_meter(gateway: Gateway, report: Report) -> str:
    for meter in await gateway.list_meters():
        if meter["event_name"] == catalog.METER:
            report.drift |= _meter_drift(meter)
            return str(meter["id"])
    for meter in await gateway.list_meters("inactive"):
        if meter["event_name"] == catalog.METER:
            # Prices count by it; another one of its name would be counted by none.
            await gateway.reactivate_meter(meter["id"])
            report.repaired.append(catalog.METER)
            report.drift |= _meter_drift(meter)
            return str(meter["id"])
    made = await gateway.create_meter(_METER)
    report.made.append(catalog.METER)
    return str(made["id"])


async def _push_products(gateway: Gateway, report: Report) -> None:
    wanted = catalog.products()
    found = {product["id"]: product for product in await gateway.list_products(list(wanted))}
    for product_id, name in wanted.items():
        there = found.get(product_id)
        if there is None:
            await gateway.create_product({"id": product_id, "name": name, "tax_code": catalog.TAX_CODE})
            report.made.append(product_id)
        elif (there["name"], there["active"]) != (name, True):
            await gateway.update_product(product_id, {"name": name, "active": True})
            report.repaired.append(product_id)


async def _push_prices(gateway: Gateway, prices: Sequence[PlanPrice], report: Report, now: datetime) -> None:
    there = {price["lookup_key"] for price in await gateway.list_prices([price.lookup_key for price in prices])}
    for price in prices:
        if price.lookup_key not in there:
            names = {"product": price.product, "lookup_key": price.lookup_key, "nickname": price.nickname}
            # Two that push at once make one; a failure, which Stripe repeats for its key, is over in a minute.
            key = f"{price.lookup_key}-{fingerprint(price).hex()[:16]}-{now:%Y%m%d%H%M}"
            await gateway.create_price({**names, **price.terms}, idempotency_key=key)
            report.made.append(price.lookup_key)


async def _push_coupons(gateway: Gateway, report: Report) -> None:
    there = {coupon["id"]: coupon for coupon in await gateway.list_coupons()}
    for coupon in catalog.COUPONS:
        found = there.get(coupon.id)
        if found is None:
            await gateway.create_coupon({"id": coupon.id, "name": coupon.name, **_discount(coupon)})
            report.made.append(coupon.id)
        elif differences := [name for name, value in _discount(coupon).items() if found[name] != value]:
            report.drift[coupon.id] = f"another {', '.join(differences)}"
        # One that somebody has switched off stays off.
        if not await gateway.list_promotion_codes(coupon.code):
            promotion = {"type": "coupon", "coupon": coupon.id}
            await gateway.create_promotion_code({"code": coupon.code, "promotion": promotion})
            report.made.append(coupon.code)


async def _push_portal(gateway: Gateway, report: Report) -> None:
    found = await find_portal(gateway)
    if found is None:
        await gateway.create_portal_configuration({"features": _FEATURES, "metadata": PORTAL_MARK})
        report.made.append("portal")
    elif any(found["features"][name]["enabled"] != wanted["enabled"] for name, wanted in _FEATURES.items()):
        await gateway.update_portal_configuration(found["id"], {"features": _FEATURES})
        report.repaired.append("portal")


async def _compare(
    connection: AsyncConnection, prices: Sequence[PlanPrice], listed: Sequence[Object], now: datetime
) -> dict[str, str]:
    # An archived price may have kept the key of one that took its place.
    found = {price["lookup_key"]: price for price in sorted(listed, key=lambda one: bool(one["active"]))}
    agreed = {row.stripe_price_id: row.fingerprint for row in await connection.execute(_FINGERPRINTS)}
    drift = {}
    for price in prices:
        there = found.get(price.lookup_key)
        if there is None:
            drift[price.lookup_key] = "is missing"
            continue
        problem = drift_of(price, there) or _changed(price, agreed.get(there["id"]))
        if problem is not None:
            drift[price.lookup_key] = problem
        await connection.execute(_UPSERT, _row(price, there, problem, now))
    await connection.execute(_FORGET, {"lookup_keys": [price.lookup_key for price in prices]})
    return drift


def _changed(price: PlanPrice, agreed: bytes | None) -> str | None:
    if agreed is None or agreed == fingerprint(price):
        return None
    return "the catalogue says something else than when it was first pushed; add a version instead"


def _row(price: PlanPrice, found: Object, drift: str | None, now: datetime) -> Mapping[str, object]:
    return {
        "lookup_key": price.lookup_key,
        "price_id": found["id"],
        "product_id": found["product"],
        "fingerprint": fingerprint(price),
        "drift": drift,
        "now": now,
    }


def _discount(coupon: Coupon) -> dict[str, Any]:
    return {"percent_off": coupon.percent_off, "duration": "repeating", "duration_in_months": coupon.months}


def _meter_drift(meter: Mapping[str, Any]) -> dict[str, str]:
    names = ("default_aggregation", "customer_mapping", "value_settings")
    differences = [name for name in names if dict(meter[name]) != _METER[name]]
    return {catalog.METER: f"another {', '.join(differences)}"} if differences else {}


def _flattened(terms: Mapping[str, Any]) -> dict[str, Any]:
    """Terms of a price as simple values, the same for what we send and for what Stripe shows."""
    flat = {name: value for name, value in terms.items() if name not in {"tiers", "recurring"} and value is not None}
    # Of a tiered price Stripe shows no amount; of any other none of the rest.
    flat |= {
        f"recurring.{name}": value
        for name, value in (terms.get("recurring") or {}).items()
        if name in _RECURRING and value is not None
    }
    for number, tier in enumerate(terms.get("tiers") or (), start=1):
        flat[f"tier {number}"] = _tier(tier)
    return flat


def _tier(tier: Mapping[str, Any]) -> str:
    end = "inf" if tier["up_to"] is None else tier["up_to"]
    flat = tier.get("flat_amount") or 0
    price = Decimal(tier["unit_amount_decimal"] or 0).normalize()
    return f"up to {end} at {price:f} cents" + (f" and {flat} cents once" if flat else "")


def _without_meter(terms: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: {inner: one for inner, one in value.items() if inner != "meter"} if name == "recurring" else value
        for name, value in terms.items()
    }
