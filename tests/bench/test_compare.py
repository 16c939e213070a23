from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

import pytest

from app.bench import compare
from app.bench.classify import Speed
from app.bench.compare import Comparison, Plan, Sides
from app.bench.finding import Record
from app.bench.sides import PeerFailed
from app.errors import ConfigError
from tests.bench.fake_sides import FakeSide

T = TypeVar("T")
PLAN = compare.quick(Plan(python=Path("python"), int8="A=1", rounds=1))
WITHOUT_PROCESSES = ("agreement", "throughput", "mixed", "first-token", "classification")


class FakeTexts:
    def __init__(self, name: str) -> None:
        self.name = name

    def scores(self, texts: list[str]) -> list[list[float]]:
        return [[0.25, 0.75] for _ in texts]

    def speed(self, texts: list[str], concurrency: int, seconds: float) -> Speed:
        return Speed(10.0 * concurrency, 5.0)


class FakeSides:
    def __init__(self, missing: str = "") -> None:
        self.missing = missing
        self.started: set[str] = set()

    def ours(self, name: str) -> FakeSide:
        return self._start(name, FakeSide)

    def peer(self, name: str) -> FakeSide:
        return self._start(name, FakeSide)

    def our_classifier(self) -> FakeTexts:
        return self._start("tollgate", FakeTexts)

    def classifier(self, name: str) -> FakeTexts:
        return self._start(name, FakeTexts)

    def _start(self, name: str, make: Callable[[str], T]) -> T:
        self.started.add(name)
        if name == self.missing:
            raise PeerFailed(f"{name} is not installed")
        return make(name)


def run(plan: Plan, record: Record, sides: FakeSides) -> Record:
    comparison = Comparison(plan, record, cast("Sides", sides))
    for scenario in WITHOUT_PROCESSES:
        for finding in comparison.run(scenario):
            record.add(finding)
    return record


def test_every_scenario_has_a_figure_for_every_peer(tmp_path: Path) -> None:
    record = run(PLAN, Record(tmp_path / "out", PLAN.settings), FakeSides())
    by_scenario = {s: [f.case for f in record.findings if f.scenario == s] for s in WITHOUT_PROCESSES}
    assert [len(cases) for cases in by_scenario.values()] == [4, 8, 2, 1, 6]
    assert "4 x tollgate int8 / llama.cpp q8_0" in by_scenario["throughput"]
    assert len({(f.scenario, f.case) for f in record.findings}) == 21


def test_a_run_that_was_stopped_goes_on_and_starts_nothing_that_it_does_not_need(tmp_path: Path) -> None:
    run(PLAN, Record(tmp_path / "out", PLAN.settings), FakeSides())
    again = FakeSides()
    record = run(PLAN, Record(tmp_path / "out", PLAN.settings), again)
    assert len(record.findings) == 21
    assert again.started == set()


def test_a_peer_that_is_not_installed_is_the_only_one_without_figures(tmp_path: Path) -> None:
    record = run(PLAN, Record(tmp_path / "out", PLAN.settings), FakeSides(missing="llama.cpp"))
    failed = {f.case for f in record.findings if f.failure}
    assert failed == {"tollgate / llama.cpp", "1 x tollgate / llama.cpp", "4 x tollgate / llama.cpp"}
    later = FakeSides()
    record = run(PLAN, Record(tmp_path / "out", PLAN.settings), later)
    assert not any(f.failure for f in record.findings)
    assert later.started == {"tollgate", "llama.cpp"}


def test_without_an_environment_no_peer_is_started() -> None:
    sides = FakeSides()
    record = run(Plan(rounds=1), Record(), sides)
    assert sides.started == {"tollgate"}
    assert [f.scenario for f in record.findings] == ["mixed", "first-token"]


def test_without_a_way_to_int8_its_peer_is_left_out() -> None:
    plan = compare.quick(Plan(python=Path("python"), scenarios=("agreement",)))
    sides = FakeSides()
    [*Comparison(plan, Record(), cast("Sides", sides)).run("agreement")]
    assert "llama.cpp q8_0" not in sides.started


@pytest.mark.parametrize("wrong", [{"peers": ("nobody",)}, {"scenarios": ("nothing",)}])
def test_what_there_is_not_is_refused_by_name(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="there is no"):
        Plan(**wrong)


def test_figures_do_not_depend_on_how_often_they_are_tried() -> None:
    assert Plan(rounds=1, peers=("keras-hub",)).settings == Plan(rounds=9, case_seconds=5).settings
    assert Plan(seed=1).settings != Plan().settings
