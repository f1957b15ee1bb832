"""One way, timed once, in a process of its own, as some change settings of the whole process."""

import contextlib
import copy
import dataclasses
import io
import json
import os
import statistics
import subprocess
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.trainers._plain import raw
from benchmarks.trainers._task import Clock, Task, check_trained, loss_of, make_task
from benchmarks.trainers._ways import WAYS

__all__ = ["Job", "in_a_process", "train_once"]


@dataclass(frozen=True)
class Job:
    """What one process is to do.

    Attributes:
        way: Name of the way.
        kind: Kind of the task.
        recipe: Name of the recipe.
        device: Type of the device.
        epochs: Epochs; the first is not timed.
        steps: Steps of an epoch.
        threads: Threads of torch; None for its own choice.
        data_dir: Folder to look for MNIST in, or None.
    """

    way: str
    kind: str
    recipe: str
    device: str
    epochs: int
    steps: int
    threads: int | None = None
    data_dir: str | None = None


class UnseenTerminal(io.StringIO):
    """Takes what is shown on a terminal, and forgets it."""

    def isatty(self) -> bool:
        return True

    def write(self, text: str) -> int:
        return len(text)


def train_once(job: Job) -> dict[str, Any]:
    """Train as the job says, see that it was done, and return the figures.

    Returns:
        ``seconds`` a step in each epoch but the first, ``start_up`` (seconds that are no steps'),
        ``total`` seconds, ``steps``, ``loss`` before and after, ``threads``.

    Raises:
        RuntimeError: If the way took other steps than asked for, or learned nothing.
    """
    if job.threads is not None:
        torch.set_num_threads(job.threads)
    task = make_task(
        job.kind,
        recipe=job.recipe,
        epochs=job.epochs,
        steps=job.steps,
        device=torch.device(job.device),
        data_dir=job.data_dir,
    )
    before, beginning = loss_of(task.model, task), copy.deepcopy(task.model)
    # Every way draws its progress in full, as in a terminal.
    seen = UnseenTerminal()
    with (
        warnings.catch_warnings(action="ignore"),
        contextlib.redirect_stdout(seen),
        contextlib.redirect_stderr(seen),
    ):
        train = WAYS[job.way].load()
        torch.manual_seed(task.config.seed)
        clock = Clock(task.device)
        steps = train(task, clock)
        total = clock.since_start()
        after = loss_of(task.model, task)
        check_trained(task.model, task, steps=steps, before=before, after=after)
        if task.batches is not None and WAYS[job.way].exact:
            _check_ends_as_raw(task, beginning)
    a_step = [seconds / (task.steps // job.epochs) for seconds in clock.epochs()]
    return {
        "seconds": a_step[1:],
        "start_up": max(0.0, total - task.steps * statistics.median(a_step[1:])),
        "total": total,
        "steps": steps,
        "loss": [before, after],
        "threads": torch.get_num_threads(),
    }


def _check_ends_as_raw(task: Task, beginning: torch.nn.Module) -> None:
    """Raise unless the weights are those that the raw loop gives from the same beginning."""
    begin = _weights(beginning)
    raw(dataclasses.replace(task, model=beginning), Clock(task.device))
    expected = _weights(beginning)
    off = float((_weights(task.model) - expected).norm() / (expected - begin).norm())
    if not off < 0.01:
        raise RuntimeError(f"ends {100 * off:.1f} % of the way off the weights of the raw loop")


def _weights(model: torch.nn.Module) -> torch.Tensor:
    return torch.cat([part.detach().cpu().flatten().clone() for part in model.parameters()])


def in_a_process(job: Job) -> dict[str, Any]:
    """Run a job in a process of its own.

    Returns:
        What :func:`train_once` gives; ``{"failed": why}`` if it does not.
    """
    told = json.dumps(dataclasses.asdict(job))
    ended = subprocess.run(
        [sys.executable, "-m", "benchmarks.trainers", "--one", told],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
        # What bars go by, were it a terminal, wherever this runs.
        env={**os.environ, "TERM": "xterm-256color", "COLUMNS": "100"},
    )
    if ended.returncode:
        print(ended.stderr, file=sys.stderr)
        said = [line for line in ended.stderr.splitlines() if line.strip()]
        return {"failed": said[-1][:200] if said else f"ended with {ended.returncode}"}
    result: dict[str, Any] = json.loads(ended.stdout.splitlines()[-1])
    return result
