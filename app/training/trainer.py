"""The training loop: progress, development loss, early stopping, checkpoints, resume.

A run is a function of its seed: batch N depends on (seed, N) alone, and a
checkpoint holds the network, the optimizer and the random state, so a killed run
continues as if it had not been killed. Checkpoints are replaced atomically.
"""

import json
import math
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import keras
import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from safetensors import safe_open
from safetensors.numpy import save_file

from app.errors import ConfigError
from app.training.network import Network

CHECKPOINT = "checkpoint.safetensors"
BEST = "best.safetensors"

Batch = tuple[Any, np.ndarray]


@dataclass(frozen=True, slots=True)
class Schedule:
    """How long to train.

    Attributes:
        steps: at most; the learning rate has decayed to zero there.
        eval_every: steps between looks at the development set.
        patience: looks without a new best before stopping early.
    """

    steps: int
    eval_every: int
    patience: int


@dataclass(slots=True)
class Progression:
    """Where a run stands; what a checkpoint says besides tensors."""

    step: int = 0
    best_loss: float = float("inf")
    best_step: int = 0
    num_looks_since_best: int = 0
    seconds: float = 0.0
    history: list[dict[str, float]] = field(default_factory=list)


class Trainer:
    """One run in one folder, which it continues if it finds a checkpoint there.

    Args:
        network: compiled.
        batches: maps a step to its batch.
        evaluate: loss on the development set, lower is better.
        items_per_batch: tokens or texts, for the speed shown.
        unit: what those items are.
    """

    def __init__(
        self,
        network: Network,
        *,
        batches: Callable[[int], Batch],
        evaluate: Callable[[], float],
        schedule: Schedule,
        run_dir: Path,
        items_per_batch: int,
        unit: str,
        console: Console,
    ) -> None:
        self._network = network
        self._batches = batches
        self._evaluate = evaluate
        self._schedule = schedule
        self._run_dir = run_dir
        self._items_per_batch = items_per_batch
        self._unit = unit
        self._console = console
        self._state = Progression()

    def fit(self) -> Progression:
        """Train to the end of the schedule or until patience runs out; the network then holds the best weights.

        Raises:
            ConfigError: The loss was never a number.
        """
        self._run_dir.mkdir(parents=True, exist_ok=True)
        self._resume()
        with self._progress() as (progress, task):
            while not self._is_finished:
                self._run_until_next_look(progress, task)
                self._look(progress, task)
                self._save()
        if not math.isfinite(self._state.best_loss):
            shutil.rmtree(self._run_dir)  # or the same command would go on from weights that are lost
            raise ConfigError("the loss was never a number; train with a lower --learning-rate")
        load_variables(self._run_dir / BEST, self._network.variables)
        return self._state

    @property
    def _is_finished(self) -> bool:
        return self._state.step >= self._schedule.steps or self._state.num_looks_since_best >= self._schedule.patience

    def _run_until_next_look(self, progress: Progress, task: TaskID) -> None:
        state, started = self._state, time.monotonic()
        first = state.step
        self._network.reset_metrics()  # the loss shown is the mean since the last look
        for step in range(first, min(first + self._schedule.eval_every, self._schedule.steps)):
            loss = self._network.train_on_batch(*self._batches(step))
            speed = (step + 1 - first) * self._items_per_batch / (time.monotonic() - started)
            progress.update(task, completed=step + 1, loss=f"{float(np.ravel(loss)[0]):.3f}", speed=f"{speed:,.0f}")
            state.step = step + 1
        state.seconds += time.monotonic() - started

    def _look(self, progress: Progress, task: TaskID) -> None:
        state, loss = self._state, self._evaluate()
        state.history.append({"step": state.step, "dev_loss": round(loss, 5)})
        if loss < state.best_loss:
            state.best_loss, state.best_step, state.num_looks_since_best = loss, state.step, 0
            save_variables(self._run_dir / BEST, self._network.variables)
        else:
            state.num_looks_since_best += 1
        progress.update(task, dev=f"{loss:.4f}")
        if not self._console.is_terminal:
            self._console.print(f"step {state.step}/{self._schedule.steps}  dev loss {loss:.4f}  {state.seconds:.0f} s")

    def _save(self) -> None:
        variables = [*self._network.variables, *self._network.optimizer.variables]
        save_variables(self._run_dir / CHECKPOINT, variables, asdict(self._state))

    def _resume(self) -> None:
        path = self._run_dir / CHECKPOINT
        if not path.exists():
            return
        state = load_variables(path, [*self._network.variables, *self._network.optimizer.variables])
        self._state = Progression(**state)
        self._console.print(f"Resuming at step {self._state.step} of {self._schedule.steps}.")

    @contextmanager
    def _progress(self) -> Iterator[tuple[Progress, TaskID]]:
        columns = (
            TextColumn("train"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]}  dev {task.fields[dev]}  {task.fields[speed]} " + self._unit + "/s"),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=self._console, disable=not self._console.is_terminal) as progress:
            task = progress.add_task(
                "train", total=self._schedule.steps, completed=self._state.step, loss="-", dev="-", speed="-"
            )
            yield progress, task


def warm_up_then_decay(learning_rate: float, steps: int) -> keras.optimizers.schedules.LearningRateSchedule:
    """Linear warm-up over a twentieth of the steps, then cosine decay to zero.

    Args:
        learning_rate: at its highest.
        steps: of the whole run.
    """
    warmup = max(1, steps // 20)
    return keras.optimizers.schedules.CosineDecay(
        learning_rate / 10, steps - warmup, alpha=0.0, warmup_target=learning_rate, warmup_steps=warmup
    )


def save_variables(path: Path, variables: list[keras.Variable], state: dict[str, Any] | None = None) -> None:
    """Write variables in order, and a JSON state, replacing the file atomically."""
    tensors = {f"{index:05d}": np.array(variable.numpy(), order="C") for index, variable in enumerate(variables)}
    partial = path.with_suffix(".partial")
    save_file(tensors, partial, metadata={"state": json.dumps(state or {})})
    os.replace(partial, path)


def load_variables(path: Path, variables: list[keras.Variable]) -> dict[str, Any]:
    """Assign variables in order from `save_variables`; returns the state."""
    with safe_open(path, framework="np") as file:
        for index, variable in enumerate(variables):
            variable.assign(file.get_tensor(f"{index:05d}"))
        state: dict[str, Any] = json.loads(file.metadata()["state"])
        return state
