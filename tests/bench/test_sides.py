import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pytest

from app.bench.installation import Installation
from app.bench.sides import Ours, Peer, PeerFailed, write_gguf
from app.bench.workload import Prompt
from app.errors import ConfigError

SCRIPT = str(Path(__file__).parent / "echo_peer.py")
PROMPTS = [Prompt((1, 2), 3), Prompt((7,), 2)]


def peer(timeout_s: float = 30, **setup: Any) -> Peer:
    return Peer("echo", Path(sys.executable), SCRIPT, setup, timeout_s)


def test_a_peer_answers_batch_after_batch() -> None:
    with peer() as running:
        assert running.ready["ready"]
        assert running.warms_up
        for _ in range(2):
            batch = running.run(PROMPTS)
            assert batch.tokens == [[1, 2, 1], [7, 7]]
            assert batch.seconds > 0


def test_a_peer_that_does_not_load_says_why() -> None:
    with pytest.raises(PeerFailed, match="no such model"), peer(refuses=True):
        pass


def test_a_python_that_is_not_there_is_named() -> None:
    with pytest.raises(PeerFailed, match="/nowhere/python"), Peer("echo", Path("/nowhere/python"), SCRIPT, {}):
        pass


def test_a_peer_that_hangs_is_ended() -> None:
    with peer(timeout_s=2, hangs=True) as running, pytest.raises(PeerFailed, match="echo ended"):
        running.run(PROMPTS)


def test_shorter_answers_than_asked_for_are_no_measurement() -> None:
    with peer(cuts=True) as running, pytest.raises(PeerFailed, match="not as long"):
        running.run(PROMPTS)


def test_a_file_that_cannot_be_written_fails_the_peer(tmp_path: Path) -> None:
    with pytest.raises(PeerFailed, match="GGUF"):
        write_gguf(Path(sys.executable), tmp_path, tmp_path / "x.gguf", "f32")


@dataclass
class AtUrl:
    url: str
    key: str = "a-key"


def test_our_side_needs_an_installation_that_answers() -> None:
    ours = Ours("we", cast("Installation", AtUrl("http://127.0.0.1:1/v1")))
    try:
        with pytest.raises(ConfigError, match="ConnectionRefusedError"):
            ours.run(PROMPTS)
        with pytest.raises(ConfigError, match="no first token"):
            ours.first_token_s(PROMPTS[0], PROMPTS[1], 0.001)
    finally:
        ours.close()
