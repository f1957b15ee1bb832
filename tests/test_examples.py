"""The example is the reference recipe, written out: the same network, training and result."""

import dataclasses
import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from constrained_cnn import RunRecord, models, recipes
from constrained_cnn.models import _registry
from constrained_cnn.recipes import _recipe

EXAMPLE = Path(__file__).parents[1] / "examples" / "mnist_12k.py"


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The example, imported, with what it registers forgotten afterwards."""
    monkeypatch.setattr(_registry, "_BUILDERS", dict(_registry._BUILDERS))
    monkeypatch.setattr(_recipe, "_RECIPES", dict(_recipe._RECIPES))
    spec = importlib.util.spec_from_file_location("example_mnist_12k", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    return module


def test_same_network_from_the_same_seed(example: ModuleType) -> None:
    torch.manual_seed(3)
    written_out = example.my_mnist_12k()
    torch.manual_seed(3)
    reference = models.mnist_12k()
    assert str(written_out) == str(reference)
    for name, value in reference.state_dict().items():
        assert torch.equal(written_out.state_dict()[name], value), name


def test_same_recipe(example: ModuleType) -> None:
    reference = recipes.get_recipe("mnist-12k")
    same = dataclasses.replace(
        reference, name=example.RECIPE.name, about=example.RECIPE.about, model=example.RECIPE.model
    )
    assert same == example.RECIPE


def test_runs_by_its_own_name(
    example: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The options of the command reach it, and its record names it."""
    monkeypatch.chdir(tmp_path)
    options = ["--data", "digits", "--epochs", "1", "--out", "mine", "--quiet"]
    assert example.cli.main(["train", example.RECIPE.name, *options]) == 0
    record = RunRecord.load(tmp_path / "mine")
    assert (record.recipe, record.model) == ("my-mnist-12k", "my_mnist_12k")
    assert (record.epochs, record.parameters, record.data["name"]) == (1, 12_000, "digits")


def test_its_help_is_its_own() -> None:
    done = subprocess.run(
        [sys.executable, EXAMPLE, "--help"], capture_output=True, text=True, check=True
    )
    assert "python examples/mnist_12k.py [--seed 0 | --seeds 0-2]" in done.stdout
    assert "usage" not in done.stdout  # that of the command, which takes the name of a recipe
