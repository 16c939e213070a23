"""Silence is told once for as long as it lasts, and one timer suffices for many things heard."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from app.silence import Silence


@dataclass
class Timer:
    due_at: float
    call: Callable[[], None]
    is_cancelled: bool = False

    def cancel(self) -> None:
        self.is_cancelled = True


@dataclass
class Clock:
    """A loop whose time is the test's."""

    now: float = 0.0
    timers: list[Timer] = field(default_factory=list)

    def time(self) -> float:
        return self.now

    def call_at(self, due_at: float, call: Callable[[], None]) -> Timer:
        self.timers.append(Timer(due_at, call))
        return self.timers[-1]

    def call_later(self, after_s: float, call: Callable[[], None]) -> Timer:
        return self.call_at(self.now + after_s, call)

    def run_until(self, now: float) -> None:
        while due := [timer for timer in self.timers if timer.due_at <= now and not timer.is_cancelled]:
            self.now = due[0].due_at
            self.timers.remove(due[0])
            due[0].call()
        self.now = now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(asyncio, "get_running_loop", lambda: clock)
    return clock


def test_silence_is_told_each_time_it_has_lasted(clock: Clock) -> None:
    told = list[float]()
    Silence(10.0, lambda: told.append(clock.now))
    clock.run_until(29.0)
    assert told == [10.0, 20.0]


def test_what_is_heard_puts_it_off(clock: Clock) -> None:
    told = list[float]()
    watch = Silence(10.0, lambda: told.append(clock.now))
    for now in (4.0, 8.0, 12.0):
        clock.run_until(now)
        watch.hear()
    clock.run_until(21.0)
    assert told == []
    clock.run_until(22.0)
    assert told == [22.0]


def test_many_things_heard_take_one_timer(clock: Clock) -> None:
    watch = Silence(10.0, lambda: None)
    for _ in range(100):
        watch.hear()
    assert len(clock.timers) == 1


def test_a_closed_watch_tells_nothing(clock: Clock) -> None:
    told = list[float]()
    watch = Silence(10.0, lambda: told.append(clock.now))
    clock.run_until(5.0)
    watch.close()
    clock.run_until(50.0)
    assert told == []
