"""Several processes that share the seeds of a recipe."""

from pathlib import Path
from typing import Any

from constrained_cnn import recipes


def test_processes_share_the_seeds_and_give_what_one_gives(tmp_path: Path) -> None:
    options: dict[str, Any] = {"data_name": "digits", "epochs": 1, "device": "cpu", "threads": 1}
    options |= {"progress": False, "held_out": 1300}  # so that few are left to train on
    recipe = recipes.get_recipe("mnist-12k")
    several = recipes.run_seeds(recipe, [4, 2], out=tmp_path / "two", workers=2, **options)
    alone = recipes.run(recipe, 2, out=tmp_path / "one", **options)
    assert [record.seed for record in several] == [4, 2]
    assert several[1].weights_sha256 == alone.weights_sha256
    assert several[1].environment["threads"] == 1
    assert (tmp_path / "two" / "seed-4" / "record.json").exists()
