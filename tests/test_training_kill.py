"""Killed with SIGKILL at random moments and taken up again, a run ends as if it never had been."""

import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import small_recipe
from killing import DONE, FAILED, attempt

from constrained_cnn import data, recipes
from constrained_cnn.recipes import Recipe
from constrained_cnn.record import RunRecord

WEIGHTS = "weights.safetensors"


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


@pytest.fixture
def _no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    small_recipe.register(monkeypatch)
    monkeypatch.setattr("constrained_cnn.recipes._run._draw", lambda *_: None)  # slow, not asked


@pytest.mark.usefixtures("_no_pictures")
def test_runs_that_are_killed_again_and_again_end_the_same(tmp_path: Path) -> None:
    killed_at = kill_and_resume(small_recipe.RECIPE, tmp_path, epochs=2, runs=6, seed=0)
    assert killed_at.total() >= 6
    assert killed_at["step"] >= 1
    assert killed_at.total() - killed_at["step"] >= 1  # inside the writing of a file


@pytest.mark.slow
@pytest.mark.usefixtures("_no_pictures")
def test_a_hundred_runs_of_the_reference_network_end_the_same(tmp_path: Path) -> None:
    recipe = recipes.get_recipe("mnist-12k")
    killed_at = kill_and_resume(recipe, tmp_path, epochs=1, runs=100, seed=1)
    assert killed_at.total() >= 100
    assert set(killed_at) == {"step", "write", "chmod", "fsync", "link", "replace"}
