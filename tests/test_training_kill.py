"""Killed with SIGKILL at random moments and taken up again, a run ends as if it never had been."""

from pathlib import Path

import pytest
import small_recipe
from killing import kill_and_resume_anew


def test_runs_that_are_killed_again_and_again_end_the_same(tmp_path: Path) -> None:
    name = small_recipe.RECIPE.name
    killed_at = kill_and_resume_anew(name, tmp_path, epochs=2, runs=6, seed=0)
    assert killed_at.total() >= 6
    assert killed_at["step"] >= 1
    assert killed_at.total() - killed_at["step"] >= 1  # inside the writing of a file


@pytest.mark.slow
def test_a_hundred_runs_of_the_reference_network_end_the_same(tmp_path: Path) -> None:
    killed_at = kill_and_resume_anew("mnist-12k", tmp_path, epochs=1, runs=100, seed=1)
    assert killed_at.total() >= 100
    assert set(killed_at) == {"step", "write", "chmod", "fsync", "link", "replace"}
