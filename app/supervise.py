"""Child processes that are restarted when they die and never outlive us.

Each child runs in a session of its own, so that a Ctrl-C in the terminal reaches only
the parent, which then stops the children in order. If the parent is killed, the
kernel sends each child a signal (Linux; elsewhere a killed parent leaves them to the
user). That signal is bound to the thread that forked: spawn from the main thread.
"""

import asyncio
import ctypes
import os
import signal
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from app.telemetry import get_logger

log = get_logger(__name__)

PR_SET_PDEATHSIG = 1  # linux/prctl.h
FIRST_DELAY_S = 0.5
LONGEST_DELAY_S = 15.0
# A child that lived this long was healthy: its next death starts from the first delay.
HEALTHY_AFTER_S = 60.0
MAX_LINE_BYTES = 1 << 20

_libc = ctypes.CDLL(None) if sys.platform == "linux" else None


def follow_parent(signum: signal.Signals) -> Callable[[], None]:
    """A ``preexec_fn`` by which the child gets ``signum`` when its parent dies.

    Args:
        signum: What the kernel sends; the child may still handle it.
    """
    assert threading.current_thread() is threading.main_thread(), "the signal would follow this thread's end"
    parent = os.getpid()

    def arm() -> None:
        if _libc is None:
            return
        _libc.prctl(PR_SET_PDEATHSIG, int(signum), 0, 0, 0)
        if os.getppid() != parent:  # it died between fork and here
            os._exit(1)

    return arm


@dataclass(frozen=True, slots=True)
class Role:
    """One kind of child process.

    Attributes:
        name: Prefix of its log lines.
        command: Program and arguments.
        environment: All variables it sees.
        pass_fds: Open file descriptors it inherits.
    """

    name: str
    command: Sequence[str]
    environment: Mapping[str, str]
    pass_fds: tuple[int, ...] = ()


@dataclass
class Child:
    """One supervised process; ``run`` keeps it alive until ``stop``.

    Attributes:
        role: What is run.
        on_line: Receives each line that the process writes.
        on_exit: Receives the pid of a process that has ended.
        delay_s: Pause before the first restart; doubles with each quick death.
        process: The present or last one.
        starts: How often it was started.
        last_line: What it wrote last.
        spawned: Set once the first process exists.
    """

    role: Role
    on_line: Callable[[str, str], None]
    on_exit: Callable[[int], None] = lambda _pid: None
    delay_s: float = FIRST_DELAY_S
    process: asyncio.subprocess.Process | None = None
    starts: int = 0
    last_line: str = "it wrote nothing"
    spawned: asyncio.Event = field(default_factory=asyncio.Event)
    _stopping: asyncio.Event = field(default_factory=asyncio.Event)

    async def run(self) -> None:
        """Starts the process again each time it ends, with back-off, until stopped."""
        delay_s = self.delay_s
        while not self._stopping.is_set():
            lived_s, code = await self._run_once()
            if self._stopping.is_set():
                return
            delay_s = self.delay_s if lived_s > HEALTHY_AFTER_S else delay_s
            log.warning("process.restarting", role=self.role.name, exit=describe_exit(code), delay_s=delay_s)
            with suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), delay_s)
            delay_s = min(delay_s * 2, LONGEST_DELAY_S)

    def terminate(self) -> None:
        """Asks the process to finish what it does, and ends the restarts."""
        self._stopping.set()
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        """Ends the process now, and the restarts."""
        self._stopping.set()
        self._signal(signal.SIGKILL)

    def _signal(self, signum: signal.Signals) -> None:
        if self.process is not None and self.process.returncode is None:
            with suppress(ProcessLookupError):
                self.process.send_signal(signum)

    async def _run_once(self) -> tuple[float, int]:
        loop = asyncio.get_running_loop()
        started = loop.time()
        process = await asyncio.create_subprocess_exec(
            *self.role.command,
            env=dict(self.role.environment),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            limit=MAX_LINE_BYTES,
            pass_fds=self.role.pass_fds,
            start_new_session=True,
            preexec_fn=follow_parent(signal.SIGKILL),
        )
        self.process = process
        self.starts += 1
        self.spawned.set()
        if self._stopping.is_set():  # asked to stop while it was being forked
            self._signal(signal.SIGTERM)
        await self._forward(process)
        code = await process.wait()
        self.on_exit(process.pid)
        return loop.time() - started, code

    async def _forward(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None
        while True:
            try:
                line = await process.stdout.readline()
            except ValueError:  # longer than the limit; the reader has dropped it
                continue
            if not line:
                return
            self.last_line = line.decode("utf-8", "replace").rstrip() or self.last_line
            self.on_line(self.role.name, self.last_line)


def describe_exit(code: int) -> str:
    """An exit status in words: ``code 1`` or ``SIGKILL``."""
    if code >= 0:
        return f"code {code}"
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"


async def stop_all(children: Sequence[Child], timeout_s: float) -> None:
    """Terminates the children together; what still runs after ``timeout_s`` is killed."""
    for child in children:
        child.terminate()
    running = [child.process for child in children if child.process is not None and child.process.returncode is None]
    if not running:
        return
    waits = [asyncio.ensure_future(process.wait()) for process in running]
    _, late = await asyncio.wait(waits, timeout=timeout_s)
    if late:
        for child in children:
            child.kill()
        await asyncio.wait(waits)
