"""Progress of a long measurement, on standard error, so that the report alone is on standard output."""

import sys


def note(line: str) -> None:
    """Write a line at once."""
    sys.stderr.write(line + "\n")
    sys.stderr.flush()
