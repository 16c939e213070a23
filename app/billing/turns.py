"""One after the other has a turn: what goes wrong with one keeps nobody else from theirs.

For jobs that look at many organisations. What fails is logged with whose turn it was, and the
job fails in the end, so that it is counted. That nothing can be reached ends it at once: the
others would fail likewise.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy.exc import DBAPIError

from app.errors import DataError, StripeRefused
from app.telemetry import get_logger

log = get_logger(__name__)


class Turns:
    """The turns of one run of a job.

    Args:
        event: By which a failure is logged.
    """

    def __init__(self, event: str) -> None:
        self._event = event
        self._failure: Exception | None = None

    @contextmanager
    def of(self, **whose: str) -> Iterator[None]:
        """One turn; ``whose`` is logged where it fails."""
        try:
            yield
        except (DataError, StripeRefused, DBAPIError) as error:
            log.error(self._event, problem=_problem(error), **whose)
            self._failure = error

    def end(self) -> None:
        """To be called after the last.

        Raises:
            DataError: A turn failed, the last that did so by this; likewise ``StripeRefused`` and ``DBAPIError``.
        """
        if self._failure is not None:
            raise self._failure


def _problem(error: DataError | StripeRefused | DBAPIError) -> str:
    # The database's first line; those that follow repeat the row.
    return str(error.orig).partition("\n")[0] if isinstance(error, DBAPIError) else error.message
