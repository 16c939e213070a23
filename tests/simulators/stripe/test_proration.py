"""Shares of a period."""

from decimal import Decimal

from hypothesis import given
from hypothesis import strategies as st

from simulators.stripe.periods import Period
from simulators.stripe.proration import Debit, share, unused

PERIOD = Period(0, 3_000)


def debit(net: int, period: Period = PERIOD) -> Debit:
    return Debit("si_1", net, period, {})


def test_share_is_by_the_second_and_rounded_once() -> None:
    assert share(Decimal(1_000), PERIOD, Period(0, 1)) == 0
    assert share(Decimal(1_000), PERIOD, Period(0, 2)) == 1
    assert share(Decimal(1_000), PERIOD, Period(1_000, 3_000)) == 667


def test_unused_time_is_credited_from_what_was_debited() -> None:
    assert unused(debit(900), 1_000) == 600
    assert unused(debit(900, Period(1_000, 3_000)), 2_000) == 450


def test_debit_that_is_used_up_gives_nothing_back() -> None:
    assert unused(debit(900), 3_000) == 0
    assert unused(debit(900), 9_000) == 0


def test_debit_that_has_not_begun_is_given_back_whole() -> None:
    assert unused(debit(900, Period(5_000, 6_000)), 1_000) == 900


@given(net=st.integers(0, 10**9), moment=st.integers(-100, 4_000))
def test_credit_never_exceeds_the_debit(net: int, moment: int) -> None:
    assert 0 <= unused(debit(net), moment) <= net
