"""Keeps an account in a file, so that it outlives the process."""

import json
import os
from pathlib import Path

from simulators.stripe.world import World


def save(world: World, file: Path) -> None:
    """Write all of the account; a process killed meanwhile leaves the former file whole."""
    text = json.dumps({"offset_s": world.offset_s, "objects": world.objects})
    beside = file.with_name(f"{file.name}.new")
    beside.write_text(text)
    os.replace(beside, file)


def load(world: World, file: Path) -> None:
    """Read what `save` wrote; a file that is not there leaves the account as it is."""
    if not file.exists():
        return
    kept = json.loads(file.read_text())
    world.offset_s = kept["offset_s"]
    world.objects = kept["objects"]
