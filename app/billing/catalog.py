"""The plans, defined once and versioned: what each costs, what it includes, what it allows.

A subscription has two prices: a flat one of a month or a year, and one of usage, always
of a month. Usage is metered in nano-USD (10^-9 USD) of list price (``app.billing.prices``), on
one meter for every model and kind of work, and rated in graduated tiers: what the plan
includes costs nothing, what is above it list price, or less by volume. So an amount is
rounded once, at the line of the invoice.

What is included is said in standard tokens: a token of a prompt for generation at
list price is one, others count by their price.

A version that was sold never changes in what it costs or includes; a new one is added
beside it, and its buyers stay on theirs. What a plan allows (rates, requests at once,
a hard limit of tokens) is that of its newest version for everybody.

Here is nothing that talks to Stripe: ``app.billing.sync`` pushes this.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from decimal import Decimal
from types import MappingProxyType
from typing import Any, Literal, cast

from app.billing.amounts import CURRENCY
from app.billing.prices import PRICES
from app.errors import NotFound

Interval = Literal["month", "year"]
Part = Literal["flat", "usage"]
Kind = Literal["free", "subscription", "prepaid", "internal"]

METER = "tollgate_usage"
"""Name of the events of the one meter; its unit is the nano-USD of list price."""
NANO_USD_PER_STANDARD_TOKEN = PRICES[1, "generation"].input // 1_000
NANO_USD_PER_USD = 10**9
CENTS_PER_NANO_USD = Decimal("1E-7")
CREDIT_VALID_DAYS = 365
"""Of prepaid credit, from its purchase."""
TRIAL = "-trial"
TAX_CODE = "txcd_10103001"
"""Software as a service, for business use."""
PRODUCT_OF_USAGE = "tollgate_usage"
PRODUCT_OF_CREDIT = "tollgate_credit"

_LOOKUP_KEY = re.compile(r"tollgate_([a-z]+)_v([0-9]+)_(flat|usage)_(month|year)")
_HUNDRED = 100


@dataclass(frozen=True, slots=True)
class Tier:
    """A step of the price of usage.

    Attributes:
        up_to: It ends after so many nano-USD of a period; None: it has no end.
        percent: Of list price that a customer pays in it.
    """

    up_to: int | None
    percent: int

    @property
    def cents_per_unit(self) -> Decimal:
        """What one nano-USD of list price costs in it, in cents; at most 12 decimals, as Stripe wants."""
        return CENTS_PER_NANO_USD * self.percent / _HUNDRED


@dataclass(frozen=True, slots=True)
class Plan:
    """What a customer buys, and what they may do unless the key or the organisation's budget says otherwise.

    Attributes:
        name: Of lower-case letters; a trial's has a suffix.
        version: Of what it costs and includes.
        kind: How it is paid for.
        requests_per_minute: With one key.
        tokens_per_minute: Likewise.
        max_concurrent: Requests of the organisation that run at once.
        monthly_token_limit: Input and output of a calendar month (UTC), hard; None: no limit.
        month_cents: Flat price of a month; 0 where there is none.
        year_cents: Flat price of a year.
        included_tokens: Standard tokens of a period that the flat price pays for.
        overage: Tiers of what is above them.
        trial_days: Of a first subscription; 0: none.
        is_listed: Whether customers see it and may choose it.
    """

    name: str
    title: str
    version: int
    kind: Kind
    requests_per_minute: int
    tokens_per_minute: int
    max_concurrent: int
    monthly_token_limit: int | None = None
    month_cents: int = 0
    year_cents: int = 0
    included_tokens: int = 0
    overage: tuple[Tier, ...] = ()
    trial_days: int = 0
    is_listed: bool = True

    @property
    def included_value(self) -> int:
        """What the included tokens are worth, in nano-USD of list price."""
        return self.included_tokens * NANO_USD_PER_STANDARD_TOKEN

    @property
    def tiers(self) -> tuple[Tier, ...]:
        """Those of a period, from its first token on: what is included, then the overage."""
        return (Tier(self.included_value, 0), *self.overage)

    @property
    def intervals(self) -> tuple[Interval, ...]:
        """What it can be paid by."""
        return ("month", "year") if self.kind == "subscription" else ()

    def flat_cents(self, interval: Interval) -> int:
        """Its flat price of a month or a year."""
        return self.month_cents if interval == "month" else self.year_cents


@dataclass(frozen=True, slots=True)
class PlanPrice:
    """A price that Stripe has to know, in the words of its API.

    Attributes:
        product: Id of the product, which is ours to choose.
        terms: What is agreed upon with whoever buys it: everything but its name and where it lies.
    """

    lookup_key: str
    product: str
    nickname: str
    terms: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Coupon:
    """A discount that customers get by a code.

    Attributes:
        id: At Stripe.
        code: What they type in.
        months: Of a subscription that it lasts.
    """

    id: str
    name: str
    code: str
    percent_off: int
    months: int


def cost_of_usage(plan: "Plan", value: int) -> Decimal:
    """What a period's usage costs beyond the flat price, in cents, exact.

    Args:
        plan: Rates it.
        value: Nano-USD at list price, >= 0.
    """
    cost, below = Decimal(0), 0
    for tier in plan.tiers:
        upper = value if tier.up_to is None else min(value, tier.up_to)
        cost += max(0, upper - below) * tier.cents_per_unit
        below = max(below, upper)
    return cost


def lookup_key(plan: Plan, part: Part, interval: Interval) -> str:
    """The name of one of a plan's prices at Stripe; usage is always by the month."""
    return f"tollgate_{plan.name}_v{plan.version}_{part}_{interval}"


def plan_of_lookup_key(key: str | None) -> tuple[Plan, Part, Interval] | None:
    """What a price at Stripe is to us; None: not one of the catalogue."""
    match = _LOOKUP_KEY.fullmatch(key or "")
    if match is None:
        return None
    name, version, part, interval = match.groups()
    found = VERSIONS.get((name, int(version)))
    # The words of the pattern.
    return None if found is None else (found, cast("Part", part), cast("Interval", interval))


def plan(name: str, version: int | None = None) -> Plan:
    """A plan of the catalogue.

    Args:
        name: As ``org_budgets.plan`` has it.
        version: None: the newest.

    Raises:
        NotFound: There is none.
    """
    found = PLANS.get(name) if version is None else VERSIONS.get((name, version))
    if found is None:
        raise NotFound("There is no plan '%(plan)s'.", values={"plan": name}, code="plan_not_found", param="plan")
    return found


def trial_of(plan: Plan) -> Plan:
    """The plan as it is during its trial: what it includes is a hard limit, counted in tokens of any kind."""
    return replace(plan, name=plan.name + TRIAL, monthly_token_limit=plan.included_tokens, is_listed=False)


def _plans() -> Iterator[Plan]:
    yield Plan("free", "Free", 1, "free", 20, 40_000, 2, monthly_token_limit=1_000_000)
    yield Plan(
        "starter",
        "Starter",
        1,
        "subscription",
        requests_per_minute=120,
        tokens_per_minute=400_000,
        max_concurrent=10,
        month_cents=19_00,
        year_cents=190_00,
        included_tokens=100_000_000,
        overage=(Tier(None, 100),),
        trial_days=14,
    )
    yield Plan(
        "growth",
        "Growth",
        1,
        "subscription",
        requests_per_minute=1_200,
        tokens_per_minute=4_000_000,
        max_concurrent=60,
        month_cents=99_00,
        year_cents=990_00,
        included_tokens=600_000_000,
        overage=(Tier(500 * NANO_USD_PER_USD, 100), Tier(None, 90)),
    )
    yield Plan(
        "scale",
        "Scale",
        1,
        "subscription",
        requests_per_minute=6_000,
        tokens_per_minute=20_000_000,
        max_concurrent=300,
        month_cents=499_00,
        year_cents=4_990_00,
        included_tokens=3_200_000_000,
        overage=(Tier(2_000 * NANO_USD_PER_USD, 90), Tier(10_000 * NANO_USD_PER_USD, 80), Tier(None, 70)),
    )
    yield Plan("prepaid", "Pay as you go", 1, "prepaid", 600, 2_000_000, 30)
    # The operator's own keys, the demonstration and the tests: as much as the machine does.
    yield Plan("internal", "Internal", 1, "internal", 12_000, 6_000_000, 1_000, is_listed=False)


VERSIONS: Mapping[tuple[str, int], Plan] = MappingProxyType({(one.name, one.version): one for one in _plans()})
"""Everything that was ever sold, by name and version; a version that was sold stays."""
_NEWEST = {one.name: one for one in sorted(VERSIONS.values(), key=lambda one: one.version)}
PLANS: Mapping[str, Plan] = MappingProxyType(
    _NEWEST | {trial.name: trial for one in _NEWEST.values() if one.intervals for trial in (trial_of(one),)}
)
"""What ``org_budgets.plan`` may say: the newest of each, and of subscriptions as they are in a trial.

A trial of a plan that is sold without one is an operator's gift, made at Stripe."""
LISTED: tuple[Plan, ...] = tuple(one for one in PLANS.values() if one.is_listed)
"""What customers choose from, cheapest first, prepaid last."""
CREDIT_CENTS = (10_00, 25_00, 100_00, 500_00)
"""Amounts in which prepaid credit is sold."""
COUPONS = (
    Coupon("tollgate_welcome", "Welcome: 20 % off for three months", "WELCOME20", percent_off=20, months=3),
    Coupon("tollgate_startup", "Start-ups: half price for a year", "STARTUP50", percent_off=50, months=12),
)


def credit_lookup_key(cents: int) -> str:
    """The name of the price of so much prepaid credit at Stripe."""
    return f"tollgate_credit_{cents}"


def products() -> Mapping[str, str]:
    """Names of the products at Stripe, by their ids."""
    own = {product_of(one): f"Tollgate {one.title}" for one in PLANS.values() if one.intervals and one.is_listed}
    return own | {PRODUCT_OF_USAGE: "Tollgate usage", PRODUCT_OF_CREDIT: "Tollgate credit"}


def product_of(plan: Plan) -> str:
    """Id of the product behind a plan's flat price."""
    return f"tollgate_{plan.name}"


def prices(meter_id: str) -> list[PlanPrice]:
    """Every price of every version that Stripe has to know.

    Args:
        meter_id: Stripe's id of the meter that usage is billed by.
    """
    found = []
    for one in VERSIONS.values():
        found += [_flat_price(one, interval) for interval in one.intervals]
        if one.intervals:
            found.append(_usage_price(one, meter_id))
    return found + [_credit_price(cents) for cents in CREDIT_CENTS]


def _flat_price(plan: Plan, interval: Interval) -> PlanPrice:
    terms = _terms(
        billing_scheme="per_unit",
        unit_amount=plan.flat_cents(interval),
        recurring={"interval": interval, "interval_count": 1, "usage_type": "licensed"},
    )
    nickname = f"{plan.title} by the {interval}, version {plan.version}"
    return PlanPrice(lookup_key(plan, "flat", interval), product_of(plan), nickname, terms)


def _usage_price(plan: Plan, meter_id: str) -> PlanPrice:
    tiers = [
        {"up_to": tier.up_to or "inf", "unit_amount_decimal": f"{tier.cents_per_unit:f}" if tier.percent else "0"}
        for tier in plan.tiers
    ]
    recurring = {"interval": "month", "interval_count": 1, "usage_type": "metered", "meter": meter_id}
    terms = _terms(billing_scheme="tiered", tiers_mode="graduated", tiers=tiers, recurring=recurring)
    nickname = f"Usage on {plan.title}, version {plan.version}"
    return PlanPrice(lookup_key(plan, "usage", "month"), PRODUCT_OF_USAGE, nickname, terms)


def _credit_price(cents: int) -> PlanPrice:
    terms = _terms(billing_scheme="per_unit", unit_amount=cents)
    return PlanPrice(credit_lookup_key(cents), PRODUCT_OF_CREDIT, f"{cents // _HUNDRED} USD of credit", terms)


def _terms(**terms: Any) -> Mapping[str, Any]:  # noqa: ANN401 - in the words of Stripe's API
    # It cannot be set later: so that the tax switch can be turned at any time, it is set from the start.
    return {"currency": CURRENCY, "tax_behavior": "exclusive", **terms}
