"""The sides of a comparison: each takes a batch of prompts and gives the seconds and the tokens.

Ours is asked over HTTP like a customer's, all requests at once; a peer is a process of
its own Python that is handed the whole batch. Both wait idle while the other runs.
"""

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
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

SCRIPTS = Path(__file__).parent / "peers"
MODEL = "random"


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

    name: str

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

    def __init__(self, name: str, installation: Installation) -> None:
        self.name = name
        self.installation = installation
        self._runner = asyncio.Runner()
        self._client = HttpClient(installation.url, installation.key)
        self._load = Load(MODEL, Lengths.of(1), Lengths.of(1), num_requests=1)

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

    def step_s(self, prompt: Prompt) -> float:
        """Time per output token of one prompt alone."""
        (answer,) = self._runner.run(self._ask([request_body(self._load, prompt)]))
        if answer.per_token_s is None:
            raise ConfigError(f"{self.name}: no tokens: {answer.error}")
        return answer.per_token_s

    def first_token_s(self, prompt: Prompt, other: Prompt | None = None, after_s: float = 0.0) -> float:
        """Time to the first token of one prompt, sent so long after another or alone."""
        bodies = [request_body(self._load, each) for each in (other, prompt) if each]
        answers = self._runner.run(self._ask(bodies, after_s))
        first_s = answers[-1].first_s
        if first_s is None:
            raise ConfigError(f"{self.name}: no first token: {answers[-1].error}")
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


class Peer:
    """A peer's process; entered, it has loaded its model.

    Args:
        name: In reports.
        python: Of the environment that the peer is installed in.
        script: Below ``peers/``.
        model: What it loads.
        threads: That it computes with.
    """

    def __init__(self, name: str, python: Path, script: str, model: Path, threads: int) -> None:
        self.name = name
        self._command = [str(python), str(SCRIPTS / script)]
        self._setup = {"model": str(model), "threads": threads}

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        self._ask(self._setup)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.communicate()

    def run(self, prompts: Sequence[Prompt], *, exact: bool = False) -> Batch:
        """The whole batch in one call."""
        job = {
            "prompts": [prompt.tokens for prompt in prompts],
            "outputs": [prompt.max_tokens for prompt in prompts],
            "exact": exact,
        }
        return Batch(**self._ask(job))

    def _ask(self, line: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with suppress(BrokenPipeError):  # the empty answer below says it
            self._process.stdin.write(json.dumps(line) + "\n")
            self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise ConfigError(f"{self.name} ended; try: echo '{json.dumps(self._setup)}' | {' '.join(self._command)}")
        parsed: dict[str, Any] = json.loads(answer)
        return parsed


def write_gguf(python: Path, model: Path, out: Path, kind: str) -> Path:
    """A GGUF file of a model, by the package `gguf` of the peers' environment.

    Raises:
        ConfigError: It could not be written.
    """
    job = json.dumps({"model": str(model), "out": str(out), "type": kind}) + "\n"
    result = subprocess.run(
        [str(python), str(SCRIPTS / "write_gguf.py")], input=job, capture_output=True, text=True, check=False
    )
    if result.returncode:
        raise ConfigError(f"no GGUF file could be written: {result.stderr.strip().splitlines()[-1:]}")
    return out


def note(line: str) -> None:
    """A line of progress on standard error."""
    sys.stderr.write(line + "\n")
    sys.stderr.flush()
