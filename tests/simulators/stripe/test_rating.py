"""What a quantity costs."""

from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulators.stripe.rating import Part, cents, plain, rate, total


def tier(up_to: int | None, unit: str | None = None, flat: str | None = None) -> dict[str, Any]:
    return {"up_to": up_to, "unit_amount_decimal": unit, "flat_amount_decimal": flat}


def tiered(mode: str, *tiers: dict[str, Any]) -> dict[str, Any]:
    return {"billing_scheme": "tiered", "tiers_mode": mode, "tiers": list(tiers)}


def per_unit(unit: str, **more: Any) -> dict[str, Any]:
    return {"billing_scheme": "per_unit", "unit_amount_decimal": unit, **more}


def test_fractions_of_a_cent_are_kept_until_the_line() -> None:
    assert rate(per_unit("0.00006"), 1_234_567) == [Part(1_234_567, Decimal("0.00006"), Decimal("74.07402"))]
    assert cents(total(per_unit("0.00006"), 1_234_567)) == 74


@pytest.mark.parametrize(("amount", "whole"), [("0.5", 1), ("1.4999", 1), ("2.5", 3), ("-0.5", -1), ("-1.4", -1)])
def test_half_a_cent_goes_away_from_zero(amount: str, whole: int) -> None:
    assert cents(Decimal(amount)) == whole


@pytest.mark.parametrize(
    ("quantity", "round", "cost"), [(1_000, "up", 1), (1_001, "up", 2), (1_999, "down", 1), (0, "up", 0)]
)
def test_packages_are_counted_whole(quantity: int, round: str, cost: int) -> None:
    price = per_unit("1", transform_quantity={"divide_by": 1_000, "round": round})
    assert total(price, quantity) == cost


def test_graduated_price_gives_a_part_for_each_tier_reached() -> None:
    price = tiered("graduated", tier(1_000, "0"), tier(5_000, "0.02"), tier(None, "0.01"))
    parts = rate(price, 6_000)
    assert [(part.quantity, int(part.amount), part.tier) for part in parts] == [
        (1_000, 0, 1),
        (4_000, 80, 2),
        (1_000, 10, 3),
    ]


def test_quantity_at_the_edge_of_a_tier_stays_in_it() -> None:
    price = tiered("graduated", tier(1_000, "0"), tier(None, "1"))
    assert [part.quantity for part in rate(price, 1_000)] == [1_000]
    assert [part.quantity for part in rate(price, 1_001)] == [1_000, 1]


def test_no_quantity_is_a_part_of_the_first_tier() -> None:
    price = tiered("graduated", tier(1_000, "0.5"), tier(None, "1"))
    assert rate(price, 0) == [Part(0, Decimal("0.5"), Decimal(0), 1)]


def test_flat_fee_of_a_tier_is_a_part_without_quantity() -> None:
    price = tiered("graduated", tier(10, "1", "500"), tier(None, "2", "700"))
    assert [(part.quantity, int(part.amount), part.is_flat_fee) for part in rate(price, 11)] == [
        (10, 10, False),
        (0, 500, True),
        (1, 2, False),
        (0, 700, True),
    ]


def test_volume_price_puts_all_units_into_one_tier() -> None:
    price = tiered("volume", tier(10, "5"), tier(None, "3"))
    assert [total(price, quantity) for quantity in (0, 10, 11)] == [0, 50, 33]


@given(quantity=st.integers(0, 10**15), edges=st.lists(st.integers(1, 10**12), min_size=1, max_size=5, unique=True))
def test_parts_add_up_to_the_quantity(quantity: int, edges: list[int]) -> None:
    tiers = [tier(edge, "0.000001") for edge in sorted(edges)]
    parts = rate(tiered("graduated", *tiers, tier(None, "0.000001")), quantity)
    assert sum(part.quantity for part in parts) == quantity
    assert sum(part.amount for part in parts) == Decimal("0.000001") * quantity


@pytest.mark.parametrize(("amount", "text"), [("100", "100"), ("0.00006", "0.00006"), ("1.50", "1.5"), ("0", "0")])
def test_decimals_are_written_plainly(amount: str, text: str) -> None:
    assert plain(Decimal(amount)) == text
