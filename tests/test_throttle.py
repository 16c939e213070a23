"""Attempts counted by name, with a clock that the test turns."""

from app.throttle import Throttle


class Clock:
    """Seconds that pass when told."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_the_throttle_forgets_after_its_window() -> None:
    clock = Clock()
    throttle = Throttle(limit=2, window_s=10, clock=clock)
    assert [throttle.allows("a") for _ in range(3)] == [True, True, False]
    clock.now = 10.0
    assert throttle.allows("a")


def test_every_name_of_an_attempt_counts() -> None:
    throttle = Throttle(limit=1, clock=Clock())
    assert throttle.allows("host", "one")
    assert not throttle.allows("host", "two")
    assert not throttle.allows("two")


def test_the_throttle_holds_a_bounded_number_of_names() -> None:
    throttle = Throttle(limit=1, max_names=2, clock=Clock())
    for name in ("a", "b", "c"):
        throttle.allows(name)
    assert throttle.allows("a")
    assert not throttle.allows("c")
