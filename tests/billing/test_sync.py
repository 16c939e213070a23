"""The catalogue at Stripe: made once, found again, and told apart where it is another."""

import asyncio
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from app.billing import catalog, sync
from app.billing.catalog import PlanPrice
from app.billing.gateway import Gateway
from app.db import Database
from app.errors import StripeUnavailable
from app.telemetry import CATALOG_DRIFT
from tests.simulators.stripe.simulator import API_KEY, Simulator

NOW = datetime(2027, 1, 1, tzinfo=UTC)
NAMES = {price.lookup_key for price in catalog.prices("m")}


async def push(database: Database, gateway: Gateway) -> sync.Report:
    return await sync.push(database, gateway, NOW)


async def rows(database: Database, columns: str = "lookup_key, drift") -> list[Any]:
    async with database.begin() as connection:
        result = await connection.exec_driver_sql(f"SELECT {columns} FROM catalog_prices ORDER BY lookup_key")
        return list(result.all())


async def portal_id(gateway: Gateway) -> str:
    found = await sync.find_portal(gateway)
    assert found is not None
    return str(found["id"])


def gauge() -> float:
    return float(CATALOG_DRIFT._value.get())


async def test_an_empty_account_gets_all_of_it(database: Database, gateway: Gateway, simulator: Simulator) -> None:
    report = await push(database, gateway)
    assert {catalog.METER, "portal", "tollgate_growth", "WELCOME20", "tollgate_welcome"} <= {*report.made}
    assert {*report.made} >= NAMES
    assert (report.repaired, report.drift) == ([], {})
    assert {row.lookup_key for row in await rows(database)} == NAMES
    [price] = simulator.v1.prices.list({"lookup_keys": ["tollgate_scale_v1_usage_month"], "expand": ["data.tiers"]})
    assert (price.tiers_mode, price.recurring.usage_type, len(price.tiers)) == ("graduated", "metered", 4)
    assert f"{price.tiers[1].unit_amount_decimal:f}" == "0.00000009"
    assert price.tiers[0].up_to == catalog.PLANS["scale"].included_value


async def test_pushing_again_changes_nothing(database: Database, gateway: Gateway, simulator: Simulator) -> None:
    await push(database, gateway)
    before = await rows(database, "lookup_key, stripe_price_id, stripe_product_id, fingerprint")
    again = await push(database, gateway)
    assert (again.made, again.repaired, again.drift) == ([], [], {})
    assert await rows(database, "lookup_key, stripe_price_id, stripe_product_id, fingerprint") == before
    assert list(sync.lines(again)) == ["Stripe has the catalogue as it is."]
    assert len(simulator.v1.prices.list({"limit": 100}).data) == len(NAMES)


@pytest.mark.parametrize(
    ("hazard", "path"),
    [("error_500", "/v1/coupons"), ("response_lost", "/v1/prices"), ("response_lost", "/v1/billing/meters")],
)
async def test_a_push_that_broke_off_is_finished_by_the_next(
    database: Database, gateway: Gateway, simulator: Simulator, hazard: str, path: str
) -> None:
    simulator.hazard(hazard, path=path, times=1)
    impatient = Gateway(API_KEY, api_base=simulator.url, retries=0)
    with pytest.raises(StripeUnavailable):
        await push(database, impatient)
    await impatient.aclose()
    assert await rows(database) == []
    await push(database, gateway)
    assert {row.lookup_key for row in await rows(database)} == NAMES
    assert len(simulator.v1.prices.list({"limit": 100}).data) == len(NAMES)
    assert len(simulator.v1.billing.meters.list().data) == 1


async def test_a_failure_that_stripe_repeats_is_over_after_a_minute(
    database: Database, gateway: Gateway, simulator: Simulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    create, failures = gateway.create_price, iter([1])

    async def fail_first(price: Mapping[str, Any], idempotency_key: str) -> dict[str, Any]:
        simulator.hazard("error_500", path="/v1/prices", times=next(failures, 0))
        return await create(price, idempotency_key)

    monkeypatch.setattr(gateway, "create_price", fail_first)
    for _ in range(2):
        with pytest.raises(StripeUnavailable):
            await push(database, gateway)
    await sync.push(database, gateway, NOW + timedelta(minutes=1))
    assert {row.lookup_key for row in await rows(database)} == NAMES


async def test_two_that_push_at_once_make_one_catalogue(
    database: Database, gateway: Gateway, simulator: Simulator
) -> None:
    await push(database, gateway)  # products and coupons have ids of ours: the second to make them would be refused
    await asyncio.gather(push(database, gateway), push(database, gateway))
    assert len(simulator.v1.prices.list({"limit": 100}).data) == len(NAMES)
    assert {row.drift for row in await rows(database)} == {None}


async def test_names_are_put_right(database: Database, gateway: Gateway, simulator: Simulator) -> None:
    await push(database, gateway)
    simulator.v1.products.update("tollgate_growth", {"name": "Grwth"})
    simulator.v1.products.update("tollgate_scale", {"active": False})
    report = await push(database, gateway)
    assert report.repaired == ["tollgate_growth", "tollgate_scale"]
    assert simulator.v1.products.retrieve("tollgate_growth").name == "Tollgate Growth"
    assert simulator.v1.products.retrieve("tollgate_scale").active
    assert list(sync.lines(report)) == ["repaired  tollgate_growth", "repaired  tollgate_scale"]


async def test_a_switch_of_the_portal_is_put_right(database: Database, gateway: Gateway, simulator: Simulator) -> None:
    await push(database, gateway)
    configuration = await portal_id(gateway)
    cancel = {"subscription_cancel": {"enabled": True}}
    simulator.v1.billing_portal.configurations.update(configuration, {"features": cancel})
    assert (await push(database, gateway)).repaired == ["portal"]
    assert await portal_id(gateway) == configuration
    found = simulator.v1.billing_portal.configurations.retrieve(configuration)
    assert not found.features.subscription_cancel.enabled


async def test_a_meter_that_was_switched_off_counts_again(
    database: Database, gateway: Gateway, simulator: Simulator
) -> None:
    await push(database, gateway)
    meters = simulator.v1.billing.meters
    other = meters.create({"display_name": "O", "event_name": "other", "default_aggregation": {"formula": "sum"}})
    [ours] = [meter for meter in meters.list().data if meter.id != other.id]
    for meter in (other, ours):
        meters.deactivate(meter.id)
    assert await sync.check(database, gateway, NOW) == {catalog.METER: "is missing"}
    report = await push(database, gateway)
    assert (report.made, report.repaired, report.drift) == ([], [catalog.METER], {})
    assert [meter.id for meter in meters.list({"status": "active"}).data] == [ours.id]


async def test_a_price_that_was_archived_is_drift(database: Database, gateway: Gateway, simulator: Simulator) -> None:
    await push(database, gateway)
    [price] = simulator.v1.prices.list({"lookup_keys": ["tollgate_starter_v1_flat_month"]})
    simulator.v1.prices.update(price.id, {"active": False})
    drift = {"tollgate_starter_v1_flat_month": "active is False, not True"}
    assert (await push(database, gateway)).drift == drift
    assert await sync.check(database, gateway, NOW) == drift
    assert gauge() == 1
    assert {row.lookup_key: row.drift for row in await rows(database) if row.drift} == drift
    simulator.v1.prices.update(price.id, {"active": True})
    assert await sync.check(database, gateway, NOW) == {}
    assert gauge() == 0
    assert {row.drift for row in await rows(database)} == {None}


async def test_a_price_that_somebody_replaced_is_drift(
    database: Database, gateway: Gateway, simulator: Simulator
) -> None:
    await push(database, gateway)
    changed = {"currency": "usd", "product": "tollgate_growth", "unit_amount": 9999, "tax_behavior": "inclusive"}
    simulator.v1.prices.create(
        {
            **changed,
            "recurring": {"interval": "month"},
            "lookup_key": "tollgate_growth_v1_flat_month",
            "transfer_lookup_key": True,
        }
    )
    assert await sync.check(database, gateway, NOW) == {
        "tollgate_growth_v1_flat_month": "tax_behavior is inclusive, not exclusive; unit_amount is 9999, not 9900"
    }


async def test_an_account_without_the_meter_or_a_price_lacks_something(
    database: Database, gateway: Gateway, simulator: Simulator
) -> None:
    assert await sync.check(database, gateway, NOW) == {catalog.METER: "is missing"}
    terms = {"display_name": "Other", "default_aggregation": {"formula": "sum"}}
    for meter in (
        {**terms, "event_name": "older"},
        {**sync._METER, "default_aggregation": {"formula": "count"}},
        {**terms, "event_name": "newer"},
    ):
        simulator.v1.billing.meters.create(meter)
    drift = await sync.check(database, gateway, NOW)
    assert drift[catalog.METER] == "another default_aggregation"
    assert {drift[name] for name in NAMES} == {"is missing"}
    report = await push(database, gateway)
    assert report.drift == {catalog.METER: "another default_aggregation"}
    assert "DRIFT     tollgate_usage: another default_aggregation" in list(sync.lines(report))


async def test_a_coupon_that_somebody_made_otherwise_is_drift(
    database: Database, gateway: Gateway, simulator: Simulator
) -> None:
    simulator.v1.coupons.create({"id": "tollgate_welcome", "percent_off": 20, "duration": "once"})
    report = await push(database, gateway)
    assert report.drift == {"tollgate_welcome": "another duration, duration_in_months"}


async def test_a_code_that_somebody_switched_off_stays_off(
    database: Database, gateway: Gateway, simulator: Simulator
) -> None:
    await push(database, gateway)
    (code,) = simulator.v1.promotion_codes.list({"code": "STARTUP50"}).data
    simulator.v1.promotion_codes.update(code.id, {"active": False})
    assert (await push(database, gateway)).made == []
    assert [one.active for one in simulator.v1.promotion_codes.list({"code": "STARTUP50"}).data] == [False]


async def test_a_version_that_was_sold_and_changed_in_the_code_is_drift(
    database: Database, gateway: Gateway, simulator: Simulator
) -> None:
    """Even where Stripe has been changed along."""
    await push(database, gateway)
    async with database.begin() as connection:
        await connection.exec_driver_sql(
            "UPDATE catalog_prices SET fingerprint = sha256('other') WHERE lookup_key = 'tollgate_scale_v1_flat_year'"
        )
    drift = await sync.check(database, gateway, NOW)
    assert list(drift) == ["tollgate_scale_v1_flat_year"]
    assert "add a version instead" in drift["tollgate_scale_v1_flat_year"]
    # In another account it is another price, with nobody who agreed to the old one.
    simulator.control("POST", "/reset")
    assert (await push(database, gateway)).drift == {}
    assert await sync.check(database, gateway, NOW) == {}


async def test_prices_that_are_no_longer_sold_are_forgotten(database: Database, gateway: Gateway) -> None:
    await push(database, gateway)
    async with database.begin() as connection:
        await connection.exec_driver_sql(
            "INSERT INTO catalog_prices SELECT 'tollgate_old_v1_flat_month', 'price_old', stripe_product_id,"
            " fingerprint, drift, synced_at FROM catalog_prices LIMIT 1"
        )
    await sync.check(database, gateway, NOW)
    assert {row.lookup_key for row in await rows(database)} == NAMES


async def test_a_push_that_changed_something_is_in_the_audit_log(database: Database, gateway: Gateway) -> None:
    report = await push(database, gateway)
    await push(database, gateway)
    async with database.begin() as connection:
        (entry,) = (await connection.exec_driver_sql('SELECT action, target, "after" FROM audit_log')).all()
    assert tuple(entry) == ("catalog.push", "catalog:stripe", {"made": report.made, "repaired": []})


PRICES = {price.lookup_key: price for price in catalog.prices("mtr_1")}


def as_stripe_shows(price: PlanPrice) -> dict[str, Any]:
    """A price in the words of an answer."""
    shown = {"active": True, "product": price.product, "unit_amount": None, "recurring": None, **price.terms}
    tiers = [
        {**tier, "up_to": None if tier["up_to"] == "inf" else tier["up_to"], "flat_amount": None}
        for tier in shown.get("tiers", ())
    ]
    recurring = {"trial_period_days": None, "meter": None, **shown["recurring"]} if shown["recurring"] else None
    return {**shown, "recurring": recurring, "tiers": tiers or None, "nickname": "any"}


@pytest.mark.parametrize("price", PRICES.values(), ids=PRICES)
def test_what_is_pushed_is_what_is_expected(price: PlanPrice) -> None:
    assert sync.drift_of(price, as_stripe_shows(price)) is None


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("flat_month", {"currency": "eur"}, "currency is eur, not usd"),
        ("flat_month", {"product": "other"}, "product is other, not tollgate_growth"),
        ("flat_month", {"recurring": None}, "recurring.interval is None, not month"),
        ("usage_month", {"tiers_mode": "volume"}, "tiers_mode is volume, not graduated"),
        ("usage_month", {"tiers": None}, "tier 1 is None, not up to 90000000000 at 0 cents"),
        (
            "usage_month",
            {"tiers": [{"up_to": None, "flat_amount": 5, "unit_amount_decimal": "0.00000010"}]},
            "tier 1 is up to inf at 0.0000001 cents and 5 cents once, not up to 90000000000 at 0 cents",
        ),
    ],
)
def test_each_difference_is_named(name: str, change: dict[str, Any], said: str) -> None:
    price = PRICES[f"tollgate_growth_v1_{name}"]
    drift = sync.drift_of(price, as_stripe_shows(price) | change)
    assert drift is not None
    assert said in drift


def test_what_was_agreed_upon_is_the_same_in_every_account() -> None:
    others = {price.lookup_key: sync.fingerprint(price) for price in catalog.prices("mtr_other")}
    assert {name: sync.fingerprint(price) for name, price in PRICES.items()} == others
    assert len(set(others.values())) == len(others)
