"""Round by round: load, a strike, more load, quiet, and the books compared.

Quiet means: every process lives again, the installation says that it is ready, every
journal is replayed and nothing is held any more.
"""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime

from app import key_terms, keys, up
from app.accounts.orgs import create_org
from app.bench.progress import note
from app.db import Database
from app.errors import DatabaseUnavailable
from app.modeling.registry import Registry
from tests.chaos.books import ask_doctor, compare, find_held, find_unwritten, is_billed_unseen, read_rows
from tests.chaos.callers import Callers, Seen
from tests.chaos.installation import NUM_API, Installation
from tests.chaos.schedule import BREAKS_CONNECTIONS, Strike

NUM_ORGS = 3
# A reservation that only its expiry frees is free after deadline, a minute and a turn of the worker.
QUIET_WITHIN_S = 150.0
# Longer than it takes to start everything; whatever is quiet only later waited for an expiry.
SOON_S = 25.0
POLL_S = 0.1
UNLIMITED = 10**9
MAX_PROBLEMS = 20


class Breach(AssertionError):
    """The books are wrong, or it did not become quiet."""


@dataclass(slots=True)
class Report:
    """What was done and seen.

    Attributes:
        num_unseen: Whole answers billed though the kill came between row and answer.
        quiet_s: How long each round took to become quiet.
    """

    victims: Counter[str] = field(default_factory=Counter)
    endings: Counter[str] = field(default_factory=Counter)
    states: Counter[str] = field(default_factory=Counter)
    num_unseen: int = 0
    quiet_s: list[float] = field(default_factory=list)

    def __str__(self) -> str:
        slow = sum(seconds > SOON_S for seconds in self.quiet_s)
        return "\n".join(
            (
                f"{self.victims.total()} strikes: {_listed(self.victims)}",
                f"{self.endings.total()} requests: {_listed(self.endings)}",
                f"{self.states.total()} rows: {_listed(self.states)}",
                f"whole answers billed in the moment of the kill, unseen: {self.num_unseen}",
                f"quiet after {sum(self.quiet_s) / len(self.quiet_s):.1f} s on average, at most"
                f" {max(self.quiet_s):.1f} s; {slow} times after more than {SOON_S:.0f} s",
            )
        )


async def run(installation: Installation, schedule: Iterable[Strike], *, seed: int, num_callers: int) -> Report:
    """Strikes as it is written, and compares after each.

    Args:
        installation: Started.
        schedule: What to strike when.
        seed: Of what is asked.
        num_callers: At once.

    Raises:
        Breach: An invariant did not hold; names requests, what their callers saw and what was billed.
    """
    report = Report()
    await _become_ready(installation)
    async with _database(installation) as database, _callers(installation, database, num_callers, seed) as callers:
        await _become_quiet(installation, database)
        for number, strike in enumerate(schedule, 1):
            note(f"{number:3d} {strike}")
            began = datetime.now(UTC)
            seen = await _load(callers, installation, strike)
            report.quiet_s.append(await _become_quiet(installation, database))
            await _settle_books(database, began, seen, strike, report)
            endings = Counter[str](one.ending for one in seen)
            note(f"    {len(seen)} requests: {_listed(endings)}; quiet after {report.quiet_s[-1]:.1f} s")
    return report


async def _load(callers: Callers, installation: Installation, strike: Strike) -> list[Seen]:
    enough = asyncio.Event()
    working = asyncio.create_task(callers.work(enough))
    try:
        await asyncio.sleep(strike.after_s)
        await _strike(installation, strike)
        await asyncio.sleep(strike.then_s)
    finally:
        enough.set()
    return await working


async def _strike(installation: Installation, strike: Strike) -> None:
    if strike.stopped_s:
        with installation.stopped(strike.victim, strike.pick):
            await asyncio.sleep(strike.stopped_s)
        return
    first, *others = strike.victims
    installation.hit(first, strike.pick)
    for victim in others:
        await asyncio.sleep(strike.between_s)
        installation.hit(victim, strike.pick)


async def _settle_books(
    database: Database, began: datetime, seen: Sequence[Seen], strike: Strike, report: Report
) -> None:
    rows = await read_rows(database, began)
    problems = list(compare(seen, rows, may_break=strike.victim in BREAKS_CONNECTIONS))
    problems += await find_held(database) + await ask_doctor(database)
    report.victims[strike.victim] += 1
    report.endings.update(one.ending for one in seen)
    report.states.update(row.state for found in rows.values() for row in found)
    report.num_unseen += sum(is_billed_unseen(one, rows) for one in seen)
    if problems:
        more = f"\n... and {len(problems) - MAX_PROBLEMS} more" if len(problems) > MAX_PROBLEMS else ""
        raise Breach(f"after {strike}:\n" + "\n".join(problems[:MAX_PROBLEMS]) + more)


async def _become_ready(installation: Installation) -> None:
    """PostgreSQL has no tables before that."""
    ends_at = time.monotonic() + QUIET_WITHIN_S
    while not await up.answers(installation.url, "/readyz"):
        if time.monotonic() > ends_at:
            raise Breach(f"it does not start:\n{installation.last_lines()}")
        await asyncio.sleep(POLL_S)


async def _become_quiet(installation: Installation, database: Database) -> float:
    """Waits until nothing is left of any request; how long that took, seconds."""
    began = time.monotonic()
    while True:
        restless = await _restless(installation, database)
        took_s = time.monotonic() - began
        if not restless:
            return took_s
        if took_s > QUIET_WITHIN_S:
            listed = "\n".join(restless[:MAX_PROBLEMS])
            raise Breach(f"not quiet after {took_s:.0f} s:\n{listed}\n{installation.last_lines()}")
        await asyncio.sleep(POLL_S)


async def _restless(installation: Installation, database: Database) -> list[str]:
    if not installation.is_whole:
        return ["a process is missing"]
    if not await up.answers(installation.url, "/readyz"):
        return ["it is not ready"]
    folder = installation.settings.journal_dir
    if (num := len(list(folder.glob("*.lock")))) != NUM_API:
        return [f"{num} journals"]
    try:
        return find_unwritten(folder) + await find_held(database)
    except FileNotFoundError:
        return ["a journal has just been deleted"]
    except DatabaseUnavailable:
        return ["the database is away"]


@asynccontextmanager
async def _database(installation: Installation) -> AsyncIterator[Database]:
    database = Database.connect(installation.database_url, pool_size=2)
    try:
        yield database
    finally:
        await database.aclose()


@asynccontextmanager
async def _callers(
    installation: Installation, database: Database, num_callers: int, seed: int
) -> AsyncIterator[Callers]:
    terms = key_terms.Terms("caller", requests_per_minute=UNLIMITED, tokens_per_minute=UNLIMITED)
    minted = []
    async with database.begin() as connection:
        orgs = [await create_org(connection, f"customer {number}", plan="internal") for number in range(NUM_ORGS)]
        for caller in range(num_callers):
            new = await keys.mint_key(connection, installation.settings, orgs[caller % NUM_ORGS], terms)
            minted.append(new.key)
    cards = [card for card in Registry(installation.settings.models_dir).list() if card.enabled]
    callers = Callers(installation.url, minted, cards, seed)
    try:
        yield callers
    finally:
        await callers.aclose()


def _listed(counts: "Counter[str]") -> str:
    return ", ".join(f"{name} {num}" for name, num in sorted(counts.items(), key=_falling))


def _falling(item: tuple[str, int]) -> tuple[int, str]:
    return -item[1], item[0]
