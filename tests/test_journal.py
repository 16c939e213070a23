"""What a process has delivered, read by the next one."""

import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from app.journal import Journal, Remnant, orphans
from app.tables import new_id

OPENING = {"model": "m"}


def abandon(journal: Journal) -> None:
    """What the end of its process does: the kernel lets go of the lock."""
    os.close(journal._lock)


def remnants(folder: Path) -> list[Remnant]:
    (orphan,) = orphans(folder)
    found = list(orphan.remnants().values())
    orphan.leave()
    return found


def test_a_live_journal_is_nobody_elses(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.open(new_id(), OPENING).deliver(1, 0, 0.0)
    assert list(orphans(tmp_path)) == []
    abandon(journal)
    assert len(remnants(tmp_path)) == 1


def test_an_orphan_belongs_to_one(tmp_path: Path) -> None:
    abandon(Journal(tmp_path))
    (orphan,) = orphans(tmp_path)
    assert list(orphans(tmp_path)) == []
    orphan.leave()
    (orphan,) = orphans(tmp_path)
    orphan.delete()
    assert list(tmp_path.iterdir()) == []


def test_the_highest_count_is_what_was_delivered(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    entry = journal.open(new_id(), OPENING)
    for count, cached in ((1, 0), (9, 4), (5, 4)):
        entry.deliver(count, cached, count / 2)
    abandon(journal)
    assert remnants(tmp_path) == [Remnant(OPENING, output_tokens=9, cached_tokens=4, engine_ms=4.5)]


def test_what_was_closed_is_done(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    first, second = journal.open(new_id(), OPENING), journal.open(new_id(), {"model": "other"})
    first.deliver(1, 0, 0.0)
    first.close()
    first.close()
    second.deliver(2, 0, 0.0)
    abandon(journal)
    assert remnants(tmp_path) == [Remnant({"model": "other"}, output_tokens=2)]


def test_what_was_kept_is_whole_and_takes_the_place_of_its_stream(tmp_path: Path) -> None:
    journal, request_id = Journal(tmp_path), new_id()
    journal.open(request_id, OPENING).deliver(1, 0, 0.0)
    kept = journal.keep(request_id, {"model": "m", "cost": 7})
    abandon(journal)
    assert remnants(tmp_path) == [Remnant({"model": "m", "cost": 7}, is_whole=True)]
    kept.close()


@pytest.mark.parametrize("torn", [b"d0", b"o" + b"0" * 32 + b' {"mod', b"\n", b"d0123 x\n"])
def test_a_line_that_was_cut_short_is_left_out(tmp_path: Path, torn: bytes) -> None:
    journal = Journal(tmp_path)
    journal.open(new_id(), OPENING).deliver(3, 0, 0.0)
    (path,) = tmp_path.glob("*.journal")
    with path.open("ab") as file:
        file.write(torn)
    abandon(journal)
    assert remnants(tmp_path) == [Remnant(OPENING, output_tokens=3)]


def test_counts_without_an_opening_are_left_out(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.open(new_id(), OPENING).deliver(3, 0, 0.0)
    (path,) = tmp_path.glob("*.journal")
    path.write_bytes(path.read_bytes().split(b"\n", 1)[1])
    abandon(journal)
    assert remnants(tmp_path) == []


def test_a_file_that_has_grown_goes_when_its_last_stream_has_ended(tmp_path: Path) -> None:
    journal = Journal(tmp_path, max_file_bytes=10)
    first, second = journal.open(new_id(), OPENING), journal.open(new_id(), OPENING)
    assert len(list(tmp_path.glob("*.journal"))) == 2
    second.deliver(2, 0, 0.0)
    first.close()
    assert len(list(tmp_path.glob("*.journal"))) == 1
    abandon(journal)
    assert [remnant.output_tokens for remnant in remnants(tmp_path)] == [2]


def test_released_with_nothing_open_it_leaves_nothing(tmp_path: Path) -> None:
    journal = Journal(tmp_path, max_file_bytes=10)
    for _ in range(3):
        journal.open(new_id(), OPENING).close()
    journal.release()
    assert list(tmp_path.iterdir()) == []


def test_released_without_a_line_it_leaves_nothing(tmp_path: Path) -> None:
    Journal(tmp_path).release()
    assert list(tmp_path.iterdir()) == []


def test_released_with_something_open_it_is_left_for_the_next(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.keep(new_id(), OPENING)
    journal.release()
    assert remnants(tmp_path) == [Remnant(OPENING, is_whole=True)]


def test_a_disk_that_takes_nothing_breaks_no_stream(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    entry = journal.open(new_id(), OPENING)
    assert journal._file is not None
    (tmp_path / "full").write_bytes(b"")
    read_only = os.open(tmp_path / "full", os.O_RDONLY)
    os.dup2(read_only, journal._file.fd)
    entry.deliver(1, 0, 0.0)
    with pytest.raises(OSError, match="descriptor"):
        journal.keep(new_id(), OPENING)
    os.close(read_only)


@contextmanager
def disk_of(num_bytes: int) -> Iterator[None]:
    """Files of this process can have so many bytes; a write beyond takes what fits, as on a disk that fills up."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_what_fits_on_the_disk_in_part_is_not_kept(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    with disk_of(40), pytest.raises(OSError, match="No space left"):
        journal.keep(new_id(), OPENING)
    abandon(journal)
    assert remnants(tmp_path) == []


def test_a_line_that_was_cut_short_takes_no_other_with_it(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    with capture_logs() as logs, disk_of(40):
        journal.open(new_id(), OPENING).deliver(1, 0, 0.0)
    assert [entry["event"] for entry in logs] == ["journal.write_failed"] * 2
    journal.keep(new_id(), {"model": "kept"})
    journal.open(new_id(), OPENING).deliver(2, 0, 0.0)
    abandon(journal)
    assert remnants(tmp_path) == [Remnant({"model": "kept"}, is_whole=True), Remnant(OPENING, output_tokens=2)]
