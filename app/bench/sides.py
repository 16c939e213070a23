"""The sides of a comparison: each takes a batch of prompts and gives the seconds and the tokens.

Ours is asked over HTTP like a customer's, all requests at once; a peer is a process of
its own Python that is handed the whole batch. Both wait idle while the other runs.
"""

import asyncio
import json
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

from app.bench.answers import Answered, read
from app.bench.http import HttpClient
from app.bench.installation import Installation
from app.bench.load import ROUTE, Load, request_body
from app.bench.random_model import tokens_of
from app.bench.workload import Lengths, Prompt
from app.errors import ConfigError
from app.supervise import follow_parent

SCRIPTS = Path(__file__).parent / "peers"
MODEL = "random"
# A batch of the largest model on two cores takes minutes; none takes so many.
TIMEOUT_S = 900.0
LAST_WORDS_S = 10.0


@dataclass(frozen=True, slots=True)
class Batch:
    """What a side made of some prompts: all tokens, and the seconds from the first request to the last token."""

    seconds: float
    tokens: list[list[int]]

    @property
    def tokens_per_s(self) -> float:
        """Of answers."""
        return sum(map(len, self.tokens)) / self.seconds


class Side(Protocol):
    """One of those compared."""

    @property
    def name(self) -> str:
        """In reports."""
        ...

    @property
    def warms_up(self) -> bool:
        """Whether a shorter batch before does it any good; one that compiles by shape has to do it itself."""
        ...

    def run(self, prompts: Sequence[Prompt], *, exact: bool = False) -> Batch:
        """Answer all of them; greedy, as long as each asks for.

        Args:
            prompts: Of one batch.
            exact: Nothing may be rounded that need not be; for comparing tokens.
        """
        ...


class Ours:
    """An installation of our own, over HTTP.

    Args:
        name: In reports.
        installation: Entered already; it serves ``MODEL``.
    """

    warms_up = True

    def __init__(self, name: str, installation: Installation) -> None:
        self.name = name
        self.installation = installation
        self._runner = asyncio.Runner()
        self._client = HttpClient(installation.url, installation.key)
        self._stream = Load(MODEL, Lengths.of(1), Lengths.of(1), num_requests=1)
        self._load = replace(self._stream, is_streamed=False)

    def run(self, prompts: Sequence[Prompt], *, exact: bool = False) -> Batch:
        """All at once; the engine batches as it sees fit.

        Raises:
            ConfigError: An answer is an error, or shorter than asked.
        """
        del exact  # nothing is ever rounded more than it has to be
        answers = self._runner.run(self._ask([request_body(self._load, prompt) for prompt in prompts]))
        for prompt, answer in zip(prompts, answers, strict=True):
            if answer.error or answer.output_tokens != prompt.max_tokens:
                found = f"{answer.output_tokens} of {prompt.max_tokens} tokens"
                raise ConfigError(f"{self.name}: an answer has {found} {answer.error}".rstrip())
        return Batch(max(answer.latency_s for answer in answers), [tokens_of(answer.text) for answer in answers])

    def latency_s(self, prompt: Prompt) -> float:
        """Time to the last byte of one prompt's answer, alone."""
        return self.run([prompt]).seconds

    def first_token_s(self, prompt: Prompt, other: Prompt | None = None, after_s: float = 0.0) -> float:
        """Time to the first token of one prompt, sent so long after another or alone."""
        bodies = [request_body(self._stream, each) for each in (other, prompt) if each]
        answers = self._runner.run(self._ask(bodies, after_s))
        first_s = answers[-1].first_s
        failed = next((answer.error for answer in answers if answer.error), "")
        if failed or first_s is None:
            raise ConfigError(f"{self.name}: no first token, or none beside another: {failed}")
        return first_s

    def close(self) -> None:
        """Give the connections back."""
        self._runner.run(self._client.aclose())
        self._runner.close()

    async def _ask(self, bodies: list[bytes], gap_s: float = 0.0) -> list[Answered]:
        due_at = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            tasks = []
            for number, body in enumerate(bodies):
                if gap_s and number:
                    await asyncio.sleep(gap_s)
                    due_at = time.perf_counter()
                tasks.append(group.create_task(self._client.post(ROUTE, body, due_at)))
        return [read(task.result()) for task in tasks]


class PeerFailed(ConfigError):
    """A peer did not start, broke off or took too long; the others go on without it."""


class Peer:
    """A peer's process; entered, it has loaded its model.

    Args:
        name: In reports.
        python: Of the environment that the peer is installed in.
        script: Below ``peers/``.
        setup: Its first line: what it loads, the threads that it computes with.
        timeout_s: Of each answer; a slower peer is ended.

    Attributes:
        ready: What it said when it had loaded.
    """

    def __init__(
        self, name: str, python: Path, script: str, setup: Mapping[str, Any], timeout_s: float = TIMEOUT_S
    ) -> None:
        self.name = name
        self._command = [str(python), str(SCRIPTS / script)]
        self._setup = dict(setup)
        self._timeout_s = timeout_s

    def __enter__(self) -> Self:
        self._errors = tempfile.TemporaryFile("w+")
        try:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                text=True,
                preexec_fn=follow_parent(signal.SIGKILL),
            )
        except OSError as error:
            self._errors.close()
            raise PeerFailed(f"{self.name}: {self._command[0]}: {error.strerror}") from None
        try:
            self.ready = self._ask(self._setup)
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()

    @property
    def warms_up(self) -> bool:
        """As it said itself."""
        return not self.ready.get("compiles_by_shape", False)

    def run(self, prompts: Sequence[Prompt], *, exact: bool = False) -> Batch:
        """The whole batch in one call.

        Raises:
            PeerFailed: No answer, or one of other lengths than asked.
        """
        job = {
            "prompts": [prompt.tokens for prompt in prompts],
            "outputs": [prompt.max_tokens for prompt in prompts],
            "exact": exact,
        }
        batch = Batch(**self._ask(job))
        if [len(row) for row in batch.tokens] != job["outputs"]:
            raise PeerFailed(f"{self.name}: its answers are not as long as asked")
        return batch

    def _ask(self, line: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        timer = threading.Timer(self._timeout_s, self._process.kill)
        timer.start()
        try:
            with suppress(BrokenPipeError):  # the empty answer below says it
                self._process.stdin.write(json.dumps(line) + "\n")
                self._process.stdin.flush()
            answer = self._process.stdout.readline()
        finally:
            timer.cancel()
        if not answer:
            raise PeerFailed(f"{self.name} ended: {self._last_error}")
        parsed: dict[str, Any] = json.loads(answer)
        return parsed

    @property
    def _last_error(self) -> str:
        with suppress(subprocess.TimeoutExpired):  # its last words come after it closed its answers
            self._process.wait(LAST_WORDS_S)
        self._errors.seek(0)
        lines = self._errors.read().strip().splitlines()
        return lines[-1].strip() if lines else f"it said nothing within {self._timeout_s:g} s"

    def _stop(self) -> None:
        self._process.kill()
        with suppress(BrokenPipeError):
            self._process.communicate()
        self._errors.close()


def write_gguf(python: Path, model: Path, out: Path, kind: str) -> Path:
    """A GGUF file of a model, by the package `gguf` of the peers' environment.

    Raises:
        PeerFailed: It could not be written.
    """
    job = json.dumps({"model": str(model), "out": str(out), "type": kind}) + "\n"
    result = subprocess.run(
        [str(python), str(SCRIPTS / "write_gguf.py")], input=job, capture_output=True, text=True, check=False
    )
    if result.returncode:
        last = [*result.stderr.strip().splitlines()[-1:], ""][0]
        raise PeerFailed(f"no GGUF file could be written: {last}")
    return out
