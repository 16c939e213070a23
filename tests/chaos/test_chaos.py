"""The short version of `make chaos`, with every run of the tests."""

import asyncio
import random
import tempfile
from pathlib import Path

import pytest

from app.bench.progress import note
from tests.chaos.installation import Installation
from tests.chaos.rounds import run
from tests.chaos.schedule import SHARES, strikes

NUM_KILLS = 8
NUM_CALLERS = 64


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.xdist_group("chaos")
def test_the_ledger_is_right_whatever_is_killed_under_load() -> None:
    # Another schedule with each run; a failure shows it, for `python -m tests.chaos --seed`.
    seed = random.SystemRandom().randrange(2**31)
    note(f"seed {seed}")
    with tempfile.TemporaryDirectory(prefix="tollgate-chaos-") as name:
        Path(name).chmod(0o711)
        with Installation(Path(name)) as installation:
            report = asyncio.run(run(installation, strikes(seed, NUM_KILLS), seed=seed, num_callers=NUM_CALLERS))
    assert report.victims.total() == NUM_KILLS
    assert report.endings["whole"] > NUM_CALLERS


def test_a_seed_gives_one_schedule_in_which_every_victim_comes() -> None:
    schedule = list(strikes(7, 100))
    assert schedule == list(strikes(7, 100))
    assert schedule != list(strikes(8, 100))
    assert {strike.victim for strike in schedule[: len(SHARES)]} == set(SHARES)
    assert all(bool(strike.stopped_s) == strike.victim.endswith("stopped") for strike in schedule)
