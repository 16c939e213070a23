"""What callers saw beside what the ledger says: invariant by invariant, one line for each breach."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any
from uuid import UUID

from sqlalchemy import text

from app.billing.check import examine
from app.billing.doctor import CHECKS
from app.db import Database
from app.journal import Orphan
from tests.chaos.callers import Seen, mark_of

_ROWS = text(
    "SELECT id, input_tokens, output_tokens, finish_reason, state, parameters FROM usage_events"
    " WHERE started_at >= :since ORDER BY id"
)
_HELD = text(
    "SELECT 'reservation ' || request_id AS what FROM reservations"
    " UNION ALL SELECT 'organisation ' || org_id FROM org_budgets WHERE cost_held + tokens_held + num_running <> 0"
    " UNION ALL SELECT 'key ' || key_id FROM rate_buckets WHERE cost_held <> 0"
)


@dataclass(frozen=True, slots=True)
class Billed:
    """One usage row."""

    id: UUID
    input_tokens: int
    output_tokens: int
    finish_reason: str
    state: str = "final"

    def __str__(self) -> str:
        return f"{self.input_tokens} in, {self.output_tokens} out, {self.finish_reason}, {self.state}, id {self.id}"


Rows = Mapping[int | None, Sequence[Billed]]
"""By the mark of their request."""


async def read_rows(database: Database, since: datetime) -> Rows:
    """The rows of requests that began at ``since`` or later."""
    rows: defaultdict[int | None, list[Billed]] = defaultdict(list)
    async with database.begin() as connection:
        for row in await connection.execute(_ROWS, {"since": since}):
            parameters: dict[str, Any] = row.parameters or {}
            billed = Billed(row.id, row.input_tokens, row.output_tokens, row.finish_reason, row.state)
            rows[mark_of(parameters)].append(billed)
    return rows


async def find_held(database: Database) -> list[str]:
    """Whatever holds money or places."""
    async with database.begin() as connection:
        return list((await connection.execute(_HELD)).scalars())


async def ask_doctor(database: Database) -> list[str]:
    """What `tollgate billing doctor` finds."""
    findings = await examine(database, CHECKS)
    return [f"{finding.check.name}: {problem}" for finding in findings for problem in finding.problems]


def find_unwritten(journal_dir: Path) -> list[str]:
    """What journals of the living and the dead still have to say."""
    holders = {UUID(hex=path.name.split(".")[0]) for path in journal_dir.glob("*.*")}
    orphans = (Orphan(journal_dir, holder, -1) for holder in holders)
    return [f"journal entry of {request_id}" for orphan in orphans for request_id in orphan.remnants()]


def compare(all_seen: Sequence[Seen], rows: Rows, *, may_break: bool) -> Iterator[str]:
    """What is wrong.

    Args:
        all_seen: Of the callers, every request they sent.
        rows: Of the ledger.
        may_break: Processes that hold callers' connections were killed.
    """
    for seen in all_seen:
        found = rows.get(seen.ask.mark, ())
        for problem in _judge(seen, found, may_break=may_break):
            ledger = " and ".join(f"[{row}]" for row in found) or "no row"
            yield f"{problem}: {seen}; the ledger has {ledger}"
    sent = {seen.ask.mark for seen in all_seen}
    for mark, strange in rows.items():
        if mark not in sent:
            yield from (f"nobody sent what is billed by [{row}], mark {mark}" for row in strange)


def is_billed_unseen(seen: Seen, rows: Rows) -> bool:
    """Whether a whole answer was billed whose caller lost the connection before it came."""
    return seen.ending == "broken" and not seen.ask.is_stream and bool(rows.get(seen.ask.mark))


def _judge(seen: Seen, found: Sequence[Billed], *, may_break: bool) -> Iterator[str]:
    if len(found) > 1:
        yield "billed twice"
        return
    if seen.ending in {"hung", "cut short"}:
        yield "neither an answer nor an error"
    if seen.ending == "broken" and not may_break:
        yield "the connection broke, and no process that holds one was killed"
    if not found:
        if _least(seen, may_break=may_break) is not None:
            yield "not billed"
        return
    (row,) = found
    if seen.request_id is not None and seen.request_id != str(row.id):
        yield "billed under another id"
    if seen.ask.input_tokens not in {None, row.input_tokens}:
        yield f"billed for an input of {row.input_tokens} tokens instead of {seen.ask.input_tokens}"
    yield from _judge_output(seen, row, may_break=may_break)


def _judge_output(seen: Seen, row: Billed, *, may_break: bool) -> Iterator[str]:
    most = _most(seen)
    if most is None:
        yield "billed though it was refused"
        return
    if not (_least(seen, may_break=may_break) or 0) <= row.output_tokens <= most:
        yield f"billed for {row.output_tokens} tokens of output"
    if seen.ending == "whole" and (row.input_tokens, row.output_tokens) != seen.usage:
        yield "billed unlike the answer's own usage"
    if seen.finish_reason is not None and seen.ending == "whole" and row.finish_reason != seen.finish_reason:
        yield f"billed as {row.finish_reason}"


def _least(seen: Seen, *, may_break: bool) -> int | None:
    """Output tokens that have to be billed; None: there need not be a row."""
    match seen.ending:
        case "whole":
            return seen.num_received if seen.ask.is_stream else 0
        case "error":
            return seen.num_received
        case "left" | "broken" | "hung" | "cut short":
            # Of a stream that a kill broke off, the last chunk may be missing.
            certain = seen.num_received - (seen.last_chunk if may_break else 0)
            return certain or None
        case "refused" | "unreached":
            return None


def _most(seen: Seen) -> int | None:
    """Output tokens that may be billed; None: there must be no row."""
    match seen.ending:
        case "whole":
            return seen.num_received if seen.ask.is_stream else seen.ask.max_output
        case "error":
            return seen.num_received
        case "broken" if seen.ask.is_stream:
            return seen.num_received
        case "broken" | "left" | "hung" | "cut short":
            # What was sent to somebody who had left, nobody but the server knows.
            return seen.ask.max_output
        case "refused" | "unreached":
            return None
