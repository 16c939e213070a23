"""What the processes of an installation use, read from Linux' /proc: memory and processor time by role."""

import os
import re
from collections import defaultdict
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

ROLES = ("engine", "api", "worker")
PROC = Path("/proc")
ANONYMOUS = re.compile(r"^RssAnon:\s+(\d+) kB$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Use:
    """Of all processes of one role together; memory that they share with others is left out."""

    memory_mib: float = 0.0
    cpu_s: float = 0.0


def uses(root_pid: int) -> dict[str, Use]:
    """By role, of every process below this one."""
    found: defaultdict[str, Use] = defaultdict(Use)
    for pid in descendants(root_pid):
        try:
            role = _role((PROC / str(pid) / "cmdline").read_bytes().decode(errors="replace").split("\0"))
            use = _use(pid)
        except OSError:  # it ended meanwhile
            continue
        found[role] = Use(found[role].memory_mib + use.memory_mib, found[role].cpu_s + use.cpu_s)
    return dict(found)


def cpu_s(root_pid: int) -> float:
    """Processor time of a process and every one below it that still runs."""
    used = 0.0
    for pid in (root_pid, *descendants(root_pid)):
        with suppress(OSError):  # it ended meanwhile
            used += _use(pid).cpu_s
    return used


def descendants(root_pid: int) -> Iterator[int]:
    """Every process that this one started, or one of those did."""
    children = defaultdict(list)
    for folder in PROC.glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        children[int(fields[1])].append(int(folder.name))
    waiting = [root_pid]
    while waiting:
        below = children[waiting.pop()]
        yield from below
        waiting += below


def _use(pid: int) -> Use:
    # proc_pid_stat(5): utime and stime are fields 14 and 15; the third is the first after ")".
    fields = (PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
    ticks = int(fields[11]) + int(fields[12])
    status = (PROC / str(pid) / "status").read_text()
    anonymous = ANONYMOUS.search(status)  # none of a process that has ended
    return Use(int(anonymous[1]) / 1024 if anonymous else 0.0, ticks / os.sysconf("SC_CLK_TCK"))


def _role(command: list[str]) -> str:
    for role in ROLES:
        if role in command:
            return role
    return "postgres" if "postgres" in command[0] else "other"
