"""A peer that repeats each prompt; its setup says how it misbehaves."""

import signal
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2] / "app" / "bench" / "peers"))
from protocol import Prepare, Run, serve


def load(setup: dict[str, Any]) -> Prepare:
    sys.stdout.write("a library says something\n")
    sys.stdout.flush()
    if setup.get("refuses"):
        raise SystemExit("no such model")

    def prepare(prompts: list[list[int]], outputs: list[int], job: dict[str, Any]) -> Run:
        def run() -> list[list[int]]:
            if setup.get("hangs"):
                signal.pause()
            shorter = 1 if setup.get("cuts") else 0
            return [(prompt * count)[: count - shorter] for prompt, count in zip(prompts, outputs, strict=True)]

        return run

    return prepare


serve(load)
