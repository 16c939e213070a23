"""Amounts: what is read is exact or refused, what is shown is rounded once."""

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.billing.amounts import MAX_USD, PICO_USD_PER_USD, money, parse_usd, written
from app.errors import BadRequest


@pytest.mark.parametrize(
    ("text", "pico_usd"),
    [
        ("0", 0),
        ("25", 25 * 10**12),
        ("12.50", 12_500_000_000_000),
        ("0.000001", 10**6),
        ("007", 7 * 10**12),
        ("0" * 5000 + "1", 10**12),
        ("9000000.000000", 9_000_000 * 10**12),
    ],
)
def test_an_amount_is_read_to_the_last_digit(text: str, pico_usd: int) -> None:
    assert parse_usd(text, "cap") == pico_usd
    assert parse_usd(f"-{text}", "cap", is_signed=True) == -pico_usd


@pytest.mark.parametrize(
    "text",
    [
        "",
        "-",
        "-1",
        "+1",
        ".5",
        "5.",
        "1.0000001",
        "1_0",
        "1,000",
        "NaN",
        "Infinity",
        "1e3",
        "0x1",
        "٣",
        "1\n",
        " 1",
    ],
)
def test_what_is_no_amount_is_refused(text: str) -> None:
    with pytest.raises(BadRequest, match=r"such as 25 or 12\.50") as refusal:
        parse_usd(text, "cap")
    assert refusal.value.param == "cap"


@pytest.mark.parametrize("text", ["9000000.000001", "9000001", "1000000000000", "1" + "0" * 5000])
def test_what_is_too_much_is_refused(text: str) -> None:
    for is_signed in (False, True):
        with pytest.raises(BadRequest, match="at most 9,000,000"):
            parse_usd(text, "cap", is_signed=is_signed)


@given(micro_usd=st.integers(0, MAX_USD * 10**6))
def test_what_is_written_reads_as_it_was(micro_usd: int) -> None:
    pico_usd = micro_usd * (PICO_USD_PER_USD // 10**6)
    assert parse_usd(written(pico_usd), "cap") == pico_usd


@pytest.mark.parametrize(
    ("pico_usd", "text"), [(0, "0"), (12_500_000_000_000, "12.5"), (100 * 10**12, "100"), (1, "0.000000000001")]
)
def test_what_is_written_has_no_zeros_at_its_end(pico_usd: int, text: str) -> None:
    assert written(pico_usd) == text


@pytest.mark.parametrize(
    ("pico_usd", "value"),
    [
        (0, "0.000000"),
        (500_000, "0.000000"),
        (500_001, "0.000001"),
        (1_500_000, "0.000002"),
        (10**18, "1000000.000000"),
    ],
)
def test_money_is_rounded_half_to_even_at_the_micro_unit(pico_usd: int, value: str) -> None:
    assert money(pico_usd) == {"value": value, "currency": "usd"}
    assert money(Decimal(pico_usd))["value"] == value
