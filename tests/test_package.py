"""The package as a whole: what its root offers, and what importing it costs."""

import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest

import constrained_cnn

ROOT = Path(__file__).resolve().parents[1]
HEAVY = {"matplotlib", "numpy", "scipy", "sklearn", "torch", "torch._dynamo", "torchvision"}


def _loaded_after(code: str, tmp_path: Path) -> set[str]:
    """Run ``code`` in a fresh interpreter, away from the repository; return the heavy modules."""
    report = f"import sys; print(*({HEAVY!r} & sys.modules.keys()))"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", f"{code}\n{report}"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return set(done.stdout.splitlines()[-1].split())


def test_the_root_imports_nothing_heavy(tmp_path: Path) -> None:
    assert _loaded_after("import constrained_cnn; dir(constrained_cnn)", tmp_path) == set()


@pytest.mark.parametrize("module", ["errors", "record", "study"])
def test_plain_modules_import_nothing_heavy(module: str, tmp_path: Path) -> None:
    assert _loaded_after(f"import constrained_cnn.{module}", tmp_path) == set()


@pytest.mark.parametrize("words", [["--help"], ["train", "--help"], ["--version"]])
def test_the_command_answers_without_torch(words: list[str], tmp_path: Path) -> None:
    code = (
        "from constrained_cnn.cli import main\n"
        f"try:\n    status = main({words!r})\n"
        "except SystemExit as stop:\n    status = stop.code\n"
        "assert not status, status"
    )
    assert "torch" not in _loaded_after(code, tmp_path)


@pytest.mark.parametrize("module", ["blocks", "data", "models", "plots", "recipes", "training"])
def test_libraries_of_one_job_wait_for_it(module: str, tmp_path: Path) -> None:
    loaded = _loaded_after(f"import constrained_cnn.{module}", tmp_path)
    assert loaded <= {"numpy", "torch"}


@pytest.mark.parametrize("name", sorted(constrained_cnn.__all__))
def test_each_name_at_the_root_resolves(name: str) -> None:
    assert getattr(constrained_cnn, name) is not None
    assert name in dir(constrained_cnn)


def test_star_import_resolves_in_a_fresh_interpreter(tmp_path: Path) -> None:
    assert "torch" in _loaded_after("from constrained_cnn import *; Trainer", tmp_path)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Trianer'"):
        constrained_cnn.Trianer  # noqa: B018 - the access is what is tested


def test_the_version_is_the_one_installed() -> None:
    assert metadata.version("constrained-cnn") == constrained_cnn.__version__


def test_the_version_is_the_one_to_cite() -> None:
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"\nversion: {constrained_cnn.__version__}\n" in citation


def test_every_dependency_states_the_oldest_version_it_may_have() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"].values()
    wanted = [*project["dependencies"], *(need for extra in extras for need in extra)]
    assert [need for need in wanted if ">=" not in need] == []
