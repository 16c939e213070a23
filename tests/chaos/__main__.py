"""`python -m tests.chaos`: as many kills as you like; `make chaos` does a hundred."""

import asyncio
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated

import typer

from app.bench.progress import note
from app.config import Settings
from app.telemetry import configure_logging
from tests.chaos.installation import Installation
from tests.chaos.rounds import Breach, run
from tests.chaos.schedule import SHARES, strikes


def main(
    kills: Annotated[int, typer.Option(min=1, max=10_000, help="How often something is killed or stopped.")] = 100,
    callers: Annotated[int, typer.Option(min=1, max=512, help="Who send at once.")] = 64,
    seed: Annotated[int | None, typer.Option(help="Of schedule and requests; drawn if not given.")] = None,
    victim: Annotated[list[str] | None, typer.Option(help="Only this one; may be given several times.")] = None,
) -> None:
    """Kill parts of a running installation under load and compare the ledger with what callers saw."""
    victims = [name for name in SHARES if not victim or name in victim]
    seed = random.randrange(2**31) if seed is None else seed
    note(f"seed {seed}, {kills} kills, {callers} callers")
    configure_logging(Settings(log_level="error"))
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="tollgate-chaos-") as name:
        Path(name).chmod(0o711)
        try:
            with Installation(Path(name)) as installation:
                schedule = strikes(seed, kills, victims)
                report = asyncio.run(run(installation, schedule, seed=seed, num_callers=callers))
        except Breach as breach:
            sys.stderr.write(f"BREACH with seed {seed}: {breach}\n")
            raise typer.Exit(1) from None
    sys.stdout.write(f"{report}\nok: seed {seed}, {time.monotonic() - began:.0f} s\n")


typer.run(main)
