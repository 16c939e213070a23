"""The twelve: each leads a life that the others do not."""

from datetime import timedelta

from tests.year.story import (
    Act,
    Customer,
    buy_credit,
    cancel,
    change,
    come_late,
    is_status,
    keep,
    lose_card,
    renew_card,
    sign_up,
)
from tests.year.usage import Habit

MILLION = 1_000_000


def customers() -> list[Customer]:
    """The twelve, before anything has happened."""
    return [
        # A trial, then little usage.
        _one("ada", Habit(7, MILLION), (0, sign_up("starter"))),
        # A trial, then more than is included.
        _one("bell", Habit(12, 9 * MILLION), (1.3, sign_up("starter")), (95.2, come_late), (244, come_late)),
        # Into the second tier.
        _one("curie", Habit(12, 80 * MILLION), (2.71828, sign_up("growth")), (180.5, come_late)),
        # Paid by the year, usage by the month; from the last day of a month on.
        _one("dirac", Habit(9, 40 * MILLION), (27.66, sign_up("growth", "year"))),
        # Every tier.
        _one("euler", Habit(13, 1_400 * MILLION), (4.5, sign_up("scale"))),
        # By the year, at half price.
        _one("fermi", Habit(9, 200 * MILLION), (5.25, sign_up("scale", "year", "tollgate_startup"))),
        # Grows twice, in the middle of a period.
        _one(
            "gauss",
            Habit(12, 30 * MILLION),
            (6.1, sign_up("starter")),
            (75.123456, change("growth")),
            (200.7654321, change("scale")),
        ),
        # Wants less at the period's end, later more again.
        _one(
            "hopper",
            Habit(10, 30 * MILLION),
            (7.9, sign_up("growth", coupon="tollgate_welcome")),
            (130.4, change("starter")),
            (260.2, change("growth")),
        ),
        # Goes, and comes back.
        _one(
            "ito",
            Habit(10, 12 * MILLION),
            (8.05, sign_up("starter")),
            (100, cancel),
            (101, keep),
            (160, cancel),
            (230.5, sign_up("growth")),
        ),
        # The card is declined for three weeks: served in the days of grace, then not.
        _one(
            "joule",
            Habit(12, 50 * MILLION),
            (9.6, sign_up("growth")),
            (95, lose_card),
            (102.5, is_status("active")),
            (110, is_status("restricted")),
            (112, renew_card),
            (112.1, is_status("active")),
        ),
        # Pays in advance, subscribes later.
        _one(
            "kepler",
            Habit(9, 10 * MILLION),
            (10, buy_credit),
            (90, buy_credit),
            (180, buy_credit),
            (250.25, sign_up("starter")),
        ),
        # By the year, and up in the middle of it.
        _one("lovelace", Habit(9, 25 * MILLION), (11.4, sign_up("starter", "year")), (150.6, change("growth", "year"))),
    ]


def _one(name: str, habit: Habit, *plot: tuple[float, Act]) -> Customer:
    # Stripe's clocks know whole seconds.
    return Customer(name, habit, [(timedelta(seconds=round(days * 86_400)), act) for days, act in plot])
