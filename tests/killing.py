"""Runs that are killed at any moment: in a step, and inside the writing of a file.

Each attempt is a child that a process forks once everything is imported, so that a hundred
killed runs take minutes. Moments are counted, not timed: every training step and every system call
by which a file is written is one, and at the chosen one the child sends itself SIGKILL. A write
that is to be killed first writes half of its bytes.
"""

import os
import random
import signal
import traceback
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import IO, Any

import pytest
import small_recipe
import torch
from torch import Tensor

from constrained_cnn import data, recipes
from constrained_cnn.recipes import Recipe
from constrained_cnn.record import RunRecord
from constrained_cnn.training._executor import EagerExecutor

WEIGHTS = "weights.safetensors"

Job = Callable[[], None]
KILLED, DONE, FAILED = "killed", "done", "failed"


class Moments:
    """Counts moments, and kills its own process at one of them.

    Attributes:
        count: How many there were.
        kill_at: The number of the one that is the last; None for none.
        log: Where the kind of the last one is noted.
    """

    def __init__(self, kill_at: int | None, log: Path) -> None:
        self.count, self.kill_at, self.log = 0, kill_at, log

    def is_last(self) -> bool:
        self.count += 1
        return self.count == self.kill_at

    def meet(self, kind: str) -> None:
        if self.is_last():
            self.kill(kind)

    def kill(self, kind: str) -> None:
        with self.log.open("a", encoding="ascii") as stream:
            print(kind, file=stream)
        os.kill(os.getpid(), signal.SIGKILL)


def watch(patch: pytest.MonkeyPatch, moments: Moments) -> None:
    """Make every step and every part of every write a moment."""
    step = EagerExecutor.step

    def watched_step(self: EagerExecutor, inputs: Tensor, targets: Tensor, index: int) -> Any:
        moments.meet("step")
        return step(self, inputs, targets, index)

    patch.setattr(EagerExecutor, "step", watched_step)
    for name in ("fsync", "replace", "link", "chmod"):
        call = getattr(os, name)

        def watched(*words: Any, call: Any = call, name: str = name, **named: Any) -> Any:
            moments.meet(name)
            return call(*words, **named)

        patch.setattr(os, name, watched)
    fdopen = os.fdopen

    def watched_fdopen(*words: Any, **named: Any) -> IO[Any]:
        stream = fdopen(*words, **named)
        write = stream.write

        class Stream:
            def __enter__(self) -> "Stream":
                return self

            def __exit__(self, *_: Any) -> None:
                stream.close()

            def write(self, content: bytes) -> int:
                if moments.is_last():
                    write(content[: len(content) // 2])
                    stream.flush()
                    moments.kill("write")
                return write(content)

            def __getattr__(self, name: str) -> Any:
                return getattr(stream, name)

        return Stream()  # type: ignore[return-value]

    patch.setattr(os, "fdopen", watched_fdopen)


def attempt(job: Job, folder: Path, kill_at: int | None) -> tuple[str, int]:
    """Do ``job`` in a child; return how it ended, and its moments if it came to its end.

    In ``folder`` it notes in ``kinds`` at what it was killed, and in ``error`` what failed.
    """
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.close(reader)
            moments = Moments(kill_at, folder / "kinds")
            with pytest.MonkeyPatch.context() as patch:
                watch(patch, moments)
                job()
            os.write(writer, str(moments.count).encode())
            status = 0
        except BaseException:  # noqa: BLE001 - the child must not return into pytest
            (folder / "error").write_text(traceback.format_exc())
        finally:
            os._exit(status)
    os.close(writer)
    with os.fdopen(reader) as stream:
        count = stream.read()
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return KILLED, 0
    if os.WEXITSTATUS(status):
        return FAILED, 0
    return DONE, int(count)


def job(recipe: Recipe, folder: Path, epochs: int, checkpoint_seconds: float) -> Callable[[], None]:
    def run() -> None:
        record = recipes.run(
            recipe,
            data_name="digits",
            epochs=epochs,
            out=folder,
            resume="if-begun",
            device="cpu",
            progress=False,
            checkpoint_seconds=checkpoint_seconds,
        )
        assert record.status == "finished"

    return run


def kill_and_resume(
    recipe: Recipe, folder: Path, *, epochs: int, runs: int, seed: int
) -> Counter[str]:
    """Kill ``runs`` runs, each at least once, and take them up again until they are done.

    Returns:
        How many were killed at what.
    """
    drawn = random.Random(seed)
    data.load_digits()  # read once, before the children
    moments, expected = {}, set()
    for seconds in (0.0, 1e9):  # a checkpoint after every step, or none within an epoch
        whole = folder / f"whole-{seconds}"
        ended, moments[seconds] = attempt(job(recipe, whole, epochs, seconds), folder, None)
        assert ended == DONE, (folder / "error").read_text()
        expected.add((whole / WEIGHTS).read_bytes())
    assert len(expected) == 1  # a checkpoint changes nothing
    unbroken = RunRecord.load(whole)
    for number in range(runs):
        out = folder / f"run-{number}"
        seconds = drawn.choice([0.0, 1e9])
        work = job(recipe, out, epochs, seconds)
        # The first attempt is always killed; later ones get to the end sooner or later.
        limit = moments[seconds]
        while True:
            ended, _ = attempt(work, folder, drawn.randint(1, limit))
            assert ended != FAILED, f"run {number}: {(folder / 'error').read_text()}"
            if ended == DONE:
                break
            limit = 2 * moments[seconds]
        assert {(out / WEIGHTS).read_bytes()} == expected, f"run {number} of seed {seed}"
        record = RunRecord.load(out)
        assert record.weights_sha256 == unbroken.weights_sha256
        assert record.result["test_loss"] == unbroken.result["test_loss"]
        assert [path.name for path in out.iterdir() if path.name.startswith(".")] == []
    return Counter((folder / "kinds").read_text().split())


def kill_and_resume_anew(name: str, folder: Path, **words: int) -> Counter[str]:
    """Do it in a new process: torch refuses a backward pass to the children of some others."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return pool.submit(_kill_and_resume, name, folder, words).result()


def _kill_and_resume(name: str, folder: Path, words: dict[str, int]) -> Counter[str]:
    torch.set_num_threads(1)  # a child would wait for the threads that it has not
    with pytest.MonkeyPatch.context() as patch:
        small_recipe.register(patch)
        patch.setattr("constrained_cnn.recipes._run._draw", lambda *_: None)  # slow, not asked
        return kill_and_resume(recipes.get_recipe(name), folder, **words)
