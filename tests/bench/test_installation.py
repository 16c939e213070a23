"""What measures a whole installation, on one of the hand-computable engine."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.bench.gateway import LITELLM, gateway_of
from app.bench.gateway import Plan as GatewayPlan
from app.bench.installation import Installation
from app.bench.random_model import Sizes, TextSizes, write_random_classifier, write_random_model
from app.bench.sides import MODEL, Ours, Peer
from app.bench.soak import Plan, soak_on
from app.bench.workload import Prompt
from app.errors import ConfigError
from app.modeling.registry import Registry

GATEWAY_PEER = str(Path(__file__).parent / "gateway_peer.py")
FEW = GatewayPlan(rounds=2, num_requests=10, seconds=0.5, callers=4)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300), pytest.mark.xdist_group("installation")]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    tiny = Sizes(layers=1, width=8, feed_forward=8, heads=1, key_heads=1, vocab=256, context=512)
    write_random_model(folder / MODEL, tiny)
    texts = TextSizes(layers=1, width=8, feed_forward=8, heads=1, vocab=60, context=128)
    write_random_classifier(folder / "reader", texts)
    return folder


@pytest.fixture(scope="module")
def installation(models: Path) -> Iterator[Installation]:
    with Installation(models, num_slots=4, options=("--stub",)) as running:
        yield running


@pytest.fixture
def peer() -> Iterator[Peer]:
    with Peer(LITELLM, Path(sys.executable), GATEWAY_PEER, {}) as running:
        yield running


def test_the_way_through_has_every_figure_beside_the_other(installation: Installation, peer: Peer) -> None:
    found = gateway_of(installation, peer, FEW)
    assert len({finding.case for finding in found}) == 7
    assert not any(finding.failure for finding in found)
    assert all(finding.ours > 0 for finding in found if "latency" not in finding.case)


def test_a_proxy_that_does_not_answer_fails_alone(installation: Installation) -> None:
    with Peer(LITELLM, Path(sys.executable), GATEWAY_PEER, {"is_gone": True}) as gone:
        *found, failed = gateway_of(installation, gone, FEW)
    assert failed.failure
    assert [finding.failure for finding in found] == [""] * 4


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
        assert 0 < ours.first_token_s(Prompt((1,), 4), Prompt((1,) * 500, 4), 0.001) < 60
        with pytest.raises(ConfigError, match="context_length_exceeded"):  # beside nothing: no measurement
            ours.first_token_s(Prompt((1,), 4), Prompt((1,) * 512, 4), 0.001)
        assert ours.latency_s(Prompt((1,), 4)) > 0
    finally:
        ours.close()


def test_a_command_that_fails_says_why(installation: Installation) -> None:
    with pytest.raises(ConfigError, match="tollgate keys create"):
        installation.make_key("no-such-org")


def test_an_installation_that_cannot_start_says_why(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="did not start"), Installation(tmp_path / "nothing"):
        pass
