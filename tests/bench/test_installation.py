"""What measures a whole installation, on one of the hand-computable engine."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from app.bench.installation import Installation
from app.bench.overhead import CASES, overhead_of
from app.bench.random_model import Sizes, TextSizes, write_random_classifier, write_random_model
from app.bench.sides import MODEL, Ours
from app.bench.soak import Plan, soak_on
from app.bench.workload import Prompt
from app.errors import ConfigError
from app.modeling.registry import Registry

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300), pytest.mark.xdist_group("installation")]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    tiny = Sizes(layers=1, width=8, feed_forward=8, heads=1, key_heads=1, vocab=256, context=256)
    write_random_model(folder / MODEL, tiny)
    texts = TextSizes(layers=1, width=8, feed_forward=8, heads=1, vocab=60, context=128)
    write_random_classifier(folder / "reader", texts)
    return folder


@pytest.fixture(scope="module")
def installation(models: Path) -> Iterator[Installation]:
    with Installation(models, num_slots=4, options=("--stub",)) as running:
        yield running


def test_the_way_through_costs_something_and_every_figure_is_there(installation: Installation) -> None:
    found = [*overhead_of(installation, 40)]
    assert [finding.case for finding in found] == [*CASES]
    assert all(finding.target and finding.ours >= 0 for finding in found)


def test_a_short_soak_leaves_nothing_and_the_books_are_equal(installation: Installation, models: Path) -> None:
    report = soak_on(installation, Plan(models, seconds=4.0, concurrency=8), Registry(models).list())
    assert report.problems == []
    assert report.counted == report.billed
    assert set(report.counted) == {MODEL, "reader"}
    assert {"api", "engine", "postgres"} <= set(report.memory)


def test_our_side_answers_as_long_as_asked_and_tells_of_its_first_token(installation: Installation) -> None:
    ours = Ours("we", installation)
    try:
        batch = ours.run([Prompt((1, 2, 3), 5), Prompt((4,), 2)])
        assert [len(row) for row in batch.tokens] == [5, 2]
        assert 0 < ours.first_token_s(Prompt((1,), 4)) < 60
        assert ours.latency_s(Prompt((1,), 4)) > 0
    finally:
        ours.close()


def test_a_command_that_fails_says_why(installation: Installation) -> None:
    with pytest.raises(ConfigError, match="tollgate keys create"):
        installation.make_key("no-such-org")


def test_an_installation_that_cannot_start_says_why(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="did not start"), Installation(tmp_path / "nothing"):
        pass
