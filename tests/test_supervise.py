import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Callable

import psutil
import pytest

from app.supervise import Child, Role, describe_exit, follow_parent, stop_all

WAITS = "import signal; print('up', flush=True); signal.pause()"
IGNORES_TERM = (
    "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True)\nwhile 1: signal.pause()"
)
FINISHES_ON_TERM = (
    "import os, signal, sys\n"
    "signal.signal(signal.SIGTERM, lambda *_: (os.write(1, b'drained\\n'), sys.exit(0)))\n"
    "print('up', flush=True)\nsignal.pause()"
)
# Starts a child that follows it, reports the child's pid, and waits to be killed.
PARENT = """
import signal, subprocess, sys
from app.supervise import follow_parent
child = subprocess.Popen(
    [sys.executable, "-c", "import signal; signal.pause()"], preexec_fn=follow_parent(signal.SIGKILL)
)
print(child.pid, flush=True)
signal.pause()
"""


class Lines:
    """Collects what children write and lets a test wait for a count."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, str]] = []
        self._changed = asyncio.Event()

    def __call__(self, role: str, line: str) -> None:
        self.seen.append((role, line))
        self._changed.set()

    async def wait_for(self, count: int) -> None:
        while len(self.seen) < count:
            self._changed.clear()
            await self._changed.wait()


def child_of(script: str, on_line: Callable[[str, str], None], **options: float) -> Child:
    role = Role("test", [sys.executable, "-c", script], {"PATH": "/usr/bin:/bin"})
    return Child(role, on_line=on_line, **options)  # type: ignore[arg-type]


async def test_lines_come_with_the_role() -> None:
    lines = Lines()
    child = child_of("print('one'); print('two')", lines)
    task = asyncio.create_task(child.run())
    await lines.wait_for(2)
    await stop_all([child], 5)
    await task
    assert lines.seen[:2] == [("test", "one"), ("test", "two")]


async def test_a_killed_child_is_started_again() -> None:
    lines = Lines()
    child = child_of(WAITS, lines, delay_s=0.0)
    task = asyncio.create_task(child.run())
    await lines.wait_for(1)
    assert child.process is not None
    first = child.process.pid
    os.kill(first, signal.SIGKILL)
    await lines.wait_for(2)
    assert child.process.pid != first
    assert child.starts == 2
    await stop_all([child], 5)
    await task


async def test_a_stopped_child_is_not_started_again() -> None:
    lines = Lines()
    child = child_of(FINISHES_ON_TERM, lines, delay_s=0.0)
    task = asyncio.create_task(child.run())
    await lines.wait_for(1)
    await stop_all([child], 30)
    await task
    assert child.starts == 1
    assert lines.seen[-1] == ("test", "drained")


async def test_a_child_that_ignores_sigterm_is_killed() -> None:
    lines = Lines()
    child = child_of(IGNORES_TERM, lines)
    task = asyncio.create_task(child.run())
    await lines.wait_for(1)
    await stop_all([child], 0.05)
    await task
    assert child.process is not None
    assert child.process.returncode == -signal.SIGKILL


async def test_stopping_ends_the_wait_before_a_restart() -> None:
    lines = Lines()
    child = child_of("print('dies')", lines, delay_s=3600.0)
    task = asyncio.create_task(child.run())
    await lines.wait_for(1)
    assert child.process is not None
    await child.process.wait()
    await stop_all([child], 5)
    await task
    assert child.starts == 1


async def test_a_line_beyond_the_limit_is_dropped_and_the_next_arrives() -> None:
    lines = Lines()
    child = child_of("print('x' * (3 << 20)); print('after')", lines, delay_s=3600.0)
    task = asyncio.create_task(child.run())
    await asyncio.wait_for(child.spawned.wait(), 30)
    while ("test", "after") not in lines.seen:
        await lines.wait_for(len(lines.seen) + 1)
    await stop_all([child], 5)
    await task


async def test_the_end_of_each_process_is_reported() -> None:
    ended: list[int] = []
    lines = Lines()
    child = child_of(WAITS, lines)
    child.on_exit = ended.append
    task = asyncio.create_task(child.run())
    await lines.wait_for(1)
    assert child.process is not None
    pid = child.process.pid
    await stop_all([child], 30)
    await task
    assert ended == [pid]


async def test_stopping_nothing_is_fine() -> None:
    await stop_all([], 1)


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel signals children on Linux only")
def test_a_child_ends_with_its_killed_parent() -> None:
    parent = subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    with parent.stdout:
        child = psutil.Process(int(parent.stdout.readline()))
    parent.kill()
    parent.wait()
    assert psutil.wait_procs([child], timeout=30)[1] == []


def test_following_from_another_thread_is_refused() -> None:
    async def call() -> None:
        await asyncio.to_thread(follow_parent, signal.SIGKILL)

    with pytest.raises(AssertionError, match="thread"):
        asyncio.run(call())


@pytest.mark.parametrize(("code", "words"), [(1, "code 1"), (0, "code 0"), (-9, "SIGKILL"), (-63, "signal 63")])
def test_exits_are_described(code: int, words: str) -> None:
    assert describe_exit(code) == words
