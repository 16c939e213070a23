"""Passwords hashed beside the event loop, a few at a time.

A hash takes tens of milliseconds and 64 MiB by design. Threads of their own keep those who
sign in from holding up what else leaves the loop (prompts are tokenized there), and a flood of
them from taking the machine's memory: beyond the queue the answer is 503 at once.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar, TypeVarTuple

from app.accounts.users import check_password, checked_password, hash_password
from app.errors import Overloaded

Args = TypeVarTuple("Args")
Result = TypeVar("Result")

NUM_THREADS = 2
MAX_WAITING = 40
"""Of one process; about two seconds' work."""


class Hashing:
    """Hashes and checks passwords; ``close`` ends its threads.

    Args:
        num_threads: Passwords at work together.
        max_waiting: Those behind them.
    """

    def __init__(self, num_threads: int = NUM_THREADS, max_waiting: int = MAX_WAITING) -> None:
        self._threads = ThreadPoolExecutor(num_threads, thread_name_prefix="passwords")
        self._room = num_threads + max_waiting

    async def hash(self, password: str, about: str = "") -> str:
        """As ``users.hash_password``.

        Raises:
            BadRequest: As ``users.checked_password``.
            Overloaded: Too many wait.
        """
        checked_password(password, about)
        return await self._run(hash_password, password)

    async def fits(self, password_hash: str | None, password: str) -> bool:
        """As ``users.check_password``.

        Raises:
            Overloaded: Too many wait.
        """
        return await self._run(check_password, password_hash, password)

    def close(self) -> None:
        """Ends the threads once what runs is done; who waits is cancelled."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _run(self, work: Callable[[*Args], Result], *args: *Args) -> Result:
        if not self._room:
            raise Overloaded("Too many people sign in at this moment; please retry.")
        self._room -= 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, work, *args)
        finally:
            self._room += 1
