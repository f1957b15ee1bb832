"""That nothing outlives a test or an example, so that no order matters."""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import left_behind
import matplotlib
import numpy as np
import pytest
import torch
from left_behind import LeftBehindError, nothing_left_behind
from small_recipe import RECIPE
from torch import nn

from constrained_cnn import models, recipes, tracing
from constrained_cnn.constraints import Parameters, register_rule, rule_kinds
from constrained_cnn.errors import TracingError

REPOSITORY = Path(__file__).resolve().parents[1]


def open_a_figure() -> None:
    from matplotlib import pyplot as plt

    plt.figure()


CHANGES: dict[str, Callable[[], object]] = {
    "the current folder": lambda: os.chdir("/"),
    "os.environ (CONSTRAINED_CNN_NEW)": lambda: os.environ.update(CONSTRAINED_CNN_NEW="1"),
    "os.environ (PATH)": lambda: os.environ.pop("PATH"),
    "sys.path": lambda: sys.path.insert(0, "/nowhere"),
    "sys.argv": lambda: sys.argv.append("--more"),
    "sys.excepthook": lambda: setattr(sys, "excepthook", print),
    "the recursion limit": lambda: sys.setrecursionlimit(5_000),
    "numpy's print options (precision)": lambda: np.set_printoptions(precision=3),
    "numpy's handling of errors (invalid)": lambda: np.seterr(invalid="raise"),
    "matplotlib's settings (lines.linewidth)": lambda: matplotlib.rcParams.update(
        {"lines.linewidth": 9.0}
    ),
    "open figures": open_a_figure,
    "torch's threads": lambda: torch.set_num_threads(2),
    "torch's default dtype": lambda: torch.set_default_dtype(torch.float64),
    "torch's default device": lambda: torch.set_default_device("meta"),
    "torch's gradients": lambda: torch.set_grad_enabled(False),
    "torch's deterministic algorithms": lambda: torch.use_deterministic_algorithms(
        True, warn_only=True
    ),
    "torch's autocast": lambda: torch.set_autocast_enabled("cpu", True),
    "torch's detection of anomalies": lambda: torch.autograd.set_detect_anomaly(True, False),
    "torch's precision of matrix products": lambda: torch.set_float32_matmul_precision("medium"),
    "cuDNN's settings (benchmark)": lambda: setattr(torch.backends.cudnn, "benchmark", True),
    "torch's print options (precision)": lambda: torch.set_printoptions(precision=2),
    "torch's hooks on all modules": lambda: nn.modules.module.register_module_forward_hook(
        lambda *_: None
    ),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_setting_left_changed_is_an_error_and_put_back(name: str) -> None:
    before = [setting.read() for setting in left_behind.SETTINGS]
    with pytest.raises(LeftBehindError, match=re.escape(name)), nothing_left_behind():
        CHANGES[name]()
    assert [setting.read() for setting in left_behind.SETTINGS] == before
    with nothing_left_behind():
        pass


def leave_two_changed(then: Callable[[], object]) -> None:
    with nothing_left_behind():
        sys.path.append("/nowhere")
        torch.set_default_dtype(torch.float16)
        then()


def test_of_two_settings_both_are_named_and_a_failure_comes_first() -> None:
    with pytest.raises(LeftBehindError, match=r"sys\.path .*; torch's default dtype"):
        leave_two_changed(lambda: None)
    with pytest.raises(ZeroDivisionError):
        leave_two_changed(lambda: 1 / 0)
    assert torch.get_default_dtype() == torch.float32
    assert "/nowhere" not in sys.path


def test_what_is_registered_is_forgotten() -> None:
    class Mine(Parameters):
        kind: ClassVar[str] = "mine"

    def of_mine() -> nn.Module:
        return nn.Linear(1, 1)

    def known() -> tuple[Any, ...]:
        return models.list_models(), recipes.list_recipes(), rule_kinds()

    before = known()
    with nothing_left_behind():
        models.register_model(of_mine)
        recipes.register_recipe(RECIPE)
        register_rule(Mine)
        tracing.register_op("erfinv", like="tanh")
        assert all(a != b for a, b in zip(known(), before, strict=True))
        tracing.trace(Erfinv(), (3,))
    assert known() == before
    with pytest.raises(TracingError):
        tracing.trace(Erfinv(), (3,))


class Erfinv(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.erfinv(x)


LEAKY = """
import os

from torch import nn

from constrained_cnn import models


def test_leaves_a_variable():
    os.environ["LEFT_BEHIND"] = "1"


def test_registers():
    def left_behind():
        return nn.Linear(1, 1)

    models.register_model(left_behind)


def test_sees_neither():
    assert "LEFT_BEHIND" not in os.environ
    assert "left_behind" not in models.list_models()
"""


def test_tests_and_examples_are_guarded(tmp_path: Path) -> None:
    """One example registers a model; that of the package, run after it, lists all there are."""
    leaky = tmp_path / "test_leaky.py"
    leaky.write_text(LEAKY)
    examples = [f"constrained_cnn/models/{name}.py" for name in ("_registry", "__init__")]
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-v", "-p", "no:randomly", "-p", "no:cacheprovider"),
            *("-c", "pyproject.toml", "--rootdir", ".", str(leaky), *examples),
        ],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "os.environ (LEFT_BEHIND)" in done.stdout
    assert re.search(r"== \d+ passed, 1 error in ", done.stdout), done.stdout
    ran = re.findall(r"::(\S+) PASSED", done.stdout)
    assert ran[:3] == ["test_leaves_a_variable", "test_registers", "test_sees_neither"]
    assert ran.index("constrained_cnn.models._registry.register_model") < ran.index(
        "constrained_cnn.models"
    )
