"""A database and a folder for one measurement, gone when it is over; not durable."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from app import postgres


@contextmanager
def scratch(name: str) -> Iterator[tuple[str, Path]]:
    """The address of an empty database of the embedded PostgreSQL, and the folder that holds it."""
    folder = Path(tempfile.mkdtemp(prefix=f"tollgate-{name}-"))
    # As root, the server runs as another user that has to pass through.
    folder.chmod(0o711)
    try:
        server = postgres.start(postgres.locate(folder / "postgres", durable=False))
        try:
            yield server.cluster.url, folder
        finally:
            server.stop()
    finally:
        shutil.rmtree(folder)
