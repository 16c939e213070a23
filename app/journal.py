"""What a process has delivered, in a file that outlives it: billing after a kill.

An API process appends to files of its own, one ``write`` right after each chunk of a
stream went to the socket. There is no fsync on that path: the page cache survives the
death of the process, not a power cut. Only a settlement that PostgreSQL could not take
is synced, because its caller sees a whole answer.

A process holds the lock of its files for as long as it lives, however it ends. What
nobody holds is found by ``orphans`` and belongs to whoever gets the lock; of a stream
it says the highest count that was written. Nothing here knows the database.

Files of one process: ``<holder>.lock`` and ``<holder>.<number>.journal``, a line a
record. A file that has grown is left for a new one, and deleted when the last stream
in it has ended.
"""

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID

from pydantic_core import from_json, to_json

from app.tables import new_id
from app.telemetry import get_logger

log = get_logger(__name__)

MAX_FILE_BYTES = 16 * 2**20

_OPENED, _DELIVERED, _KEPT, _CLOSED = b"o", b"d", b"k", b"c"


@dataclass(slots=True)
class Remnant:
    """What a journal says of one request that it does not say the end of.

    Attributes:
        opening: As it was given to ``Journal.open``, or to ``Journal.keep``.
        is_whole: It was kept: the answer had ended and ``opening`` is all there is to bill.
        output_tokens: Delivered, at least.
        cached_tokens: Of the input.
        engine_ms: Accelerator time, as far as it was known.
    """

    opening: dict[str, Any]
    is_whole: bool = False
    output_tokens: int = 0
    cached_tokens: int = 0
    engine_ms: float = 0.0


class Entry:
    """One stream in a journal; ``close`` it when its usage row is committed."""

    __slots__ = ("_file", "_id", "_is_open")

    def __init__(self, file: "_File", request_id: UUID) -> None:
        self._file = file
        self._id = request_id.hex.encode()
        self._is_open = True
        file.num_open += 1

    def deliver(self, output_tokens: int, cached_tokens: int, engine_ms: float) -> None:
        """Notes what has been delivered until now, all in all."""
        self._file.append(b"%b%b %d %d %.3f\n" % (_DELIVERED, self._id, output_tokens, cached_tokens, engine_ms))

    def close(self) -> None:
        """Nothing more is to be done for it; closing twice changes nothing."""
        if self._is_open:
            self._is_open = False
            self._file.append(_CLOSED + self._id + b"\n")
            self._file.end_one()


@dataclass(slots=True)
class _File:
    path: Path
    fd: int
    size: int = 0
    num_open: int = 0
    is_left: bool = False
    is_torn: bool = False

    def write(self, line: bytes) -> None:
        """Adds a line.

        Raises:
            OSError: Nothing of it was written, or not all: a disk that fills up takes what it can.
        """
        if self.is_torn:
            # What comes next is a line of its own, not the end of the one that was cut short.
            line = b"\n" + line
        written = os.write(self.fd, line)
        self.size += written
        self.is_torn = written < len(line)
        if self.is_torn:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def append(self, line: bytes) -> None:
        try:
            self.write(line)
        except OSError as error:
            # Worth less than the answer that is under way: it is billed when it ends.
            log.error("journal.write_failed", error=error.strerror)

    def end_one(self) -> None:
        self.num_open -= 1
        self.delete_if_done()

    def delete_if_done(self) -> None:
        if self.is_left and not self.num_open:
            os.close(self.fd)
            self.path.unlink()


@dataclass(slots=True)
class Journal:
    """The files of this process.

    Attributes:
        folder: Where all processes of this machine that share a database keep theirs.
        max_file_bytes: A larger file is left for a new one.
        holder: Names this process in file names and reservations.
    """

    folder: Path
    max_file_bytes: int = MAX_FILE_BYTES
    holder: UUID = field(default_factory=new_id)
    _lock: int = -1
    _file: _File | None = None
    _number: int = 0

    def __post_init__(self) -> None:
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        # Locked before it has its name: nobody takes it for an orphan's.
        unnamed = self.folder / f"{self.holder.hex}.new"
        self._lock = os.open(unnamed, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        unnamed.rename(_lock_path(self.folder, self.holder))

    def open(self, request_id: UUID, opening: dict[str, Any]) -> Entry:
        """Begins a stream.

        Args:
            request_id: Names it.
            opening: JSON that suffices to bill it, given what is delivered.
        """
        file = self._current()
        entry = Entry(file, request_id)
        file.append(_OPENED + request_id.hex.encode() + b" " + to_json(opening) + b"\n")
        return entry

    def keep(self, request_id: UUID, settlement: dict[str, Any]) -> Entry:
        """Takes what PostgreSQL could not, for good: on the disk when this returns, which takes milliseconds.

        Raises:
            OSError: It is not kept.
        """
        file = self._current()
        line = _KEPT + request_id.hex.encode() + b" " + to_json(settlement) + b"\n"
        file.write(line)
        os.fdatasync(file.fd)
        return Entry(file, request_id)

    def release(self) -> None:
        """Deletes the files if nothing is open in them, else leaves them for the next start; ends the lock."""
        is_empty = all(not file.num_open for file in [self._file] if file) and not self._left_files()
        if self._file is not None:
            self._file.is_left = True
            self._file.delete_if_done()
        if is_empty:
            _lock_path(self.folder, self.holder).unlink()
        os.close(self._lock)

    def _current(self) -> _File:
        if self._file is None or self._file.size > self.max_file_bytes:
            if self._file is not None:
                self._file.is_left = True
                self._file.delete_if_done()
            path = self.folder / f"{self.holder.hex}.{self._number}.journal"
            self._number += 1
            self._file = _File(path, os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_APPEND, 0o600))
        return self._file

    def _left_files(self) -> list[Path]:
        current = self._file.path if self._file else None
        return [path for path in _files(self.folder, self.holder) if path != current]


@dataclass(slots=True)
class Orphan:
    """The files of a process that has ended; ``delete`` or ``leave`` it.

    Attributes:
        holder: As reservations name the process.
    """

    folder: Path
    holder: UUID
    _lock: int

    def remnants(self) -> dict[UUID, Remnant]:
        """What is left to bill, by request."""
        found: dict[UUID, Remnant] = {}
        for path in _files(self.folder, self.holder):
            for line in path.read_bytes().splitlines(keepends=True):
                try:
                    _read(line, found)
                except ValueError:  # a full disk cut the line before it short, or a crash this one
                    log.warning("journal.line_skipped", file=path.name)
        return found

    def delete(self) -> None:
        """All of it is billed."""
        for path in _files(self.folder, self.holder):
            path.unlink()
        _lock_path(self.folder, self.holder).unlink()
        os.close(self._lock)

    def leave(self) -> None:
        """For another time, or for another process."""
        os.close(self._lock)


def orphans(folder: Path) -> Iterator[Orphan]:
    """Journals that no live process holds, each locked for the caller until it is deleted or left."""
    for path in sorted(folder.glob("*.lock")):
        try:
            lock = os.open(path, os.O_WRONLY)
        except FileNotFoundError:
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            continue
        if os.fstat(lock).st_nlink == 0:  # somebody else has just done with it
            os.close(lock)
            continue
        yield Orphan(folder, UUID(hex=path.stem), lock)


def _read(line: bytes, found: dict[UUID, Remnant]) -> None:
    if not line.endswith(b"\n"):
        raise ValueError("cut short")
    kind, request_id, rest = line[:1], UUID(hex=line[1:33].decode()), line[34:]
    if kind in {_OPENED, _KEPT}:
        found[request_id] = Remnant(from_json(rest), is_whole=kind == _KEPT)
    elif kind == _DELIVERED:
        tokens, cached, engine_ms = rest.split()
        with suppress(KeyError):  # its opening could not be written
            remnant = found[request_id]
            # Never less than was noted before, in whatever order.
            remnant.output_tokens = max(remnant.output_tokens, int(tokens))
            remnant.cached_tokens = max(remnant.cached_tokens, int(cached))
            remnant.engine_ms = max(remnant.engine_ms, float(engine_ms))
    else:
        found.pop(request_id, None)


def _files(folder: Path, holder: UUID) -> list[Path]:
    return sorted(folder.glob(f"{holder.hex}.*.journal"), key=lambda path: int(path.suffixes[0][1:]))


def _lock_path(folder: Path, holder: UUID) -> Path:
    return folder / f"{holder.hex}.lock"
