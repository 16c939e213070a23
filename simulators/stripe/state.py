"""Keeps an account in a file, so that it outlives the process."""

import json
import os
from pathlib import Path

from simulators.stripe.world import World


class DamagedStateError(Exception):
    """A file that holds no account."""


def save(world: World, file: Path) -> None:
    """Write all of the account; a process killed meanwhile leaves the former file whole.

    Nobody else may read it: it holds customers and the secrets of endpoints.
    """
    text = json.dumps({"base_url": world.base_url, "offset_s": world.offset_s, "objects": world.objects})
    beside = file.with_name(f"{file.name}.new")
    with os.fdopen(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as written:
        written.write(text)
    os.replace(beside, file)


def load(world: World, file: Path) -> None:
    """Read what `save` wrote; a file that is not there leaves the account as it is.

    Links to pages are told anew where the simulator is reached at another address than before.

    Raises:
        DamagedStateError: It is no account.
    """
    if not file.exists():
        return
    try:
        text = file.read_text()
        base_url = json.loads(text).get("base_url", world.base_url)
        kept = json.loads(text.replace(f'"{base_url}/', f'"{world.base_url}/'))
        world.offset_s, world.objects = kept["offset_s"], kept["objects"]
    except (ValueError, KeyError, AttributeError) as error:
        raise DamagedStateError(f"{file} holds no account: {error!r}; remove it to begin with an empty one") from None
