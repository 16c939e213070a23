"""Plans: what they cost and include, and the names by which Stripe knows them."""

import itertools
from dataclasses import replace
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.billing import catalog
from app.billing.catalog import LISTED, PLANS, VERSIONS, Plan, Tier, cost_of_usage, lookup_key, plan_of_lookup_key
from app.errors import NotFound

SOLD = [plan for plan in VERSIONS.values() if plan.kind == "subscription"]
# What was published: a change here breaks a promise to those who bought it. Add a version instead.
PUBLISHED = {
    ("starter", 1): (1900, 19000, 100_000_000, ((None, 100),), 14),
    ("growth", 1): (9900, 99000, 600_000_000, ((500_000_000_000, 100), (None, 90)), 0),
    ("scale", 1): (
        49900,
        499000,
        3_200_000_000,
        ((2_000_000_000_000, 90), (10_000_000_000_000, 80), (None, 70)),
        0,
    ),
}


def terms(plan: Plan) -> tuple[object, ...]:
    overage = tuple((tier.up_to, tier.percent) for tier in plan.overage)
    return plan.month_cents, plan.year_cents, plan.included_tokens, overage, plan.trial_days


def test_what_was_published_stays_as_it_is() -> None:
    assert {(plan.name, plan.version): terms(plan) for plan in SOLD} == PUBLISHED


def test_customers_choose_from_five_plans() -> None:
    assert [plan.name for plan in LISTED] == ["free", "starter", "growth", "scale", "prepaid"]


def test_a_dearer_plan_allows_and_includes_more() -> None:
    for less, more in itertools.pairwise(SOLD):
        assert less.month_cents < more.month_cents
        assert less.included_tokens / less.month_cents < more.included_tokens / more.month_cents
        assert less.requests_per_minute < more.requests_per_minute
        assert less.tokens_per_minute < more.tokens_per_minute
        assert less.max_concurrent < more.max_concurrent


@pytest.mark.parametrize("plan", SOLD, ids=lambda plan: plan.name)
def test_a_year_costs_ten_months_and_nobody_pays_more_than_list_price(plan: Plan) -> None:
    assert plan.year_cents == 10 * plan.month_cents
    *bounded, last = plan.tiers
    assert last.up_to is None
    ends = [tier.up_to or 0 for tier in bounded]
    assert ends == sorted(set(ends))
    percents = [tier.percent for tier in plan.overage]
    assert percents == sorted(percents, reverse=True)
    assert max(percents) <= 100
    # Stripe takes twelve decimals of a cent.
    assert all(tier.cents_per_unit == round(tier.cents_per_unit, 12) for tier in plan.tiers)


def test_free_and_internal_cost_nothing_and_free_ends() -> None:
    assert PLANS["free"].monthly_token_limit == 1_000_000
    assert PLANS["internal"].monthly_token_limit is None
    assert PLANS["prepaid"].monthly_token_limit is None
    assert not PLANS["internal"].is_listed


@pytest.mark.parametrize("plan", SOLD, ids=lambda plan: plan.name)
def test_a_trial_has_what_the_plan_includes_as_its_limit(plan: Plan) -> None:
    trial = PLANS[plan.name + catalog.TRIAL]
    assert trial.monthly_token_limit == plan.included_tokens
    assert plan.monthly_token_limit is None
    assert trial.requests_per_minute == plan.requests_per_minute
    assert not trial.is_listed


def test_the_newest_version_is_the_plan_and_older_ones_are_found_by_number() -> None:
    assert catalog.plan("growth") is catalog.plan("growth", 1)
    for name, version in (("growth", 99), ("none", None)):
        with pytest.raises(NotFound):
            catalog.plan(name, version)


def test_lookup_keys_name_plan_part_and_interval() -> None:
    keys = [price.lookup_key for price in catalog.prices("mtr_1")]
    assert len(keys) == len(set(keys)) == 3 * len(SOLD) + len(catalog.CREDIT_CENTS)
    for plan in SOLD:
        assert plan_of_lookup_key(lookup_key(plan, "flat", "year")) == (plan, "flat", "year")
        assert plan_of_lookup_key(lookup_key(plan, "usage", "month")) == (plan, "usage", "month")


@pytest.mark.parametrize(
    "key", [None, "", "tollgate_growth_v99_flat_month", "tollgate_growth_v1_flat_day", "other", "tollgate_credit_1000"]
)
def test_what_is_not_a_plans_price_is_nobodys(key: str | None) -> None:
    assert plan_of_lookup_key(key) is None


def test_prices_are_what_the_plans_say() -> None:
    prices = {price.lookup_key: price for price in catalog.prices("mtr_1")}
    year = prices["tollgate_starter_v1_flat_year"]
    assert (year.terms["unit_amount"], year.terms["recurring"]["interval"]) == (19000, "year")
    usage = prices["tollgate_growth_v1_usage_month"].terms
    assert usage["recurring"] == {"interval": "month", "interval_count": 1, "usage_type": "metered", "meter": "mtr_1"}
    assert usage["tiers"] == [
        {"up_to": 90_000_000_000, "unit_amount_decimal": "0"},
        {"up_to": 500_000_000_000, "unit_amount_decimal": "0.0000001"},
        {"up_to": "inf", "unit_amount_decimal": "0.00000009"},
    ]
    assert prices["tollgate_credit_2500"].terms["unit_amount"] == 2500
    assert {price.product for price in prices.values()} == set(catalog.products())


@pytest.mark.parametrize(
    ("value", "cents"),
    [
        (0, "0"),
        (90_000_000_000, "0"),
        (90_000_000_001, "0.0000001"),
        (500_000_000_000, "41000"),
        (600_000_000_000, "50000"),
    ],
)
def test_usage_is_rated_in_steps(value: int, cents: str) -> None:
    """Growth includes 90 USD; up to 500 USD costs list price, what is above nine tenths of it."""
    assert cost_of_usage(PLANS["growth"], value) == Decimal(cents)


@given(ends=st.lists(st.integers(1, 60), unique=True, max_size=4), value=st.integers(0, 80), data=st.data())
def test_usage_rated_in_steps_is_the_sum_over_its_units(ends: list[int], value: int, data: st.DataObject) -> None:
    tiers = [Tier(end, data.draw(st.integers(0, 100))) for end in [*sorted(ends)]] + [Tier(None, 100)]
    plan = replace(PLANS["starter"], included_tokens=0, overage=tuple(tiers))
    expected = Decimal(0)
    for unit in range(1, value + 1):
        expected += next(tier.cents_per_unit for tier in tiers if tier.up_to is None or unit <= tier.up_to)
    assert cost_of_usage(plan, value) == expected


def test_coupons_have_codes_that_can_be_typed() -> None:
    assert all(coupon.code.isalnum() and coupon.code.isascii() for coupon in catalog.COUPONS)
    assert len({coupon.code for coupon in catalog.COUPONS}) == len(catalog.COUPONS)
