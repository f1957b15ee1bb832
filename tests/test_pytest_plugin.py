"""The pytest plugin, in sample repositories made here: passes, fails, keeps a baseline."""

import json
import os
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ET
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from constrained_cnn.errors import CheckpointError, OutputError
from constrained_cnn.pytest_plugin import _baseline

NET = """
import os
from torch import nn


class Net(nn.Module):
    def __init__(self, wide=8, last=3):
        super().__init__()
        self.first = nn.Conv2d(1, wide, 3, bias=False)
        self.norm = nn.BatchNorm2d(wide)
        self.widen = nn.Conv2d(wide, 16, 3)
        self.mix = nn.Conv2d(16, 32, 3)
        self.narrow = nn.Conv2d(32, 8, 1)
        self.last = nn.Conv2d(8, 10, last)

    def forward(self, x):
        x = self.widen(self.norm(self.first(x)).relu()).relu()
        return self.last(self.narrow(self.mix(x).relu())).mean((2, 3))


class Untrainable(nn.Conv2d):
    def forward(self, x):
        if self.training:
            raise RuntimeError("inference only")
        return super().forward(x)
"""
# What each layer of it has, by hand: kernel area x channels in x channels out, and biases.
FIVE = {"mix": 4640, "widen": 1168, "last": 730, "narrow": 264, "first": 72}
PARAMETERS = sum(FIVE.values()) + 16  # and the norm, which comes sixth
MACS = 72 * 26**2 + 1152 * 24**2 + (4608 + 256) * 22**2 + 720 * 20**2
# One more channel at first: 9 taps for it, 2 of its norm, 9 x 16 that read it.
CHANNEL = 9 + 2 + 9 * 16
PROJECT = """
[tool.pytest.ini_options]
pythonpath = ["."]

[[tool.constrained-cnn.rules]]
rule = "parameters"
at_most = 6_000
"""
BASELINE = "constrained-cnn-baseline.json"
UPDATE = "--constrained-cnn-update"


@dataclass(frozen=True)
class Session:
    """What a session of pytest printed, and what each test of it said of its failure."""

    status: int
    printed: str
    said: dict[str, str]

    @property
    def failed(self) -> set[str]:
        return {name for name, wrong in self.said.items() if wrong}


def run(folder: Path, *words: str, **environment: str) -> Session:
    """Run the tests of a repository in a process of their own, where warnings are errors."""
    done = subprocess.run(
        [
            *(sys.executable, "-W", "error", "-m", "pytest", "-W", "error"),
            # The one that draws the order of tests is ours alone; it imports NumPy.
            *(
                "-p",
                "no:randomly",
                "-p",
                "no:cacheprovider",
                "--strict-markers",
                "--junitxml=said.xml",
                *words,
            ),
        ],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONIOENCODING": "utf-8", **environment},
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    said = {}
    if done.returncode in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
        for case in ET.parse(folder / "said.xml").iter("testcase"):
            wrong = [part.text or "" for part in case if part.tag in ("failure", "error")]
            said[case.attrib["name"]] = "\n".join(wrong)
    return Session(done.returncode, done.stdout + done.stderr, said)


def make_repository(folder: Path, **tests: str) -> Path:
    """Write a repository with a network, rules in its ``pyproject.toml``, and tests."""
    (folder / "tests").mkdir(parents=True)
    (folder / "pyproject.toml").write_text(PROJECT, encoding="utf-8")
    (folder / "net.py").write_text(NET, encoding="utf-8")
    for name, text in tests.items():
        (folder / "tests" / f"{name}.py").write_text(text, encoding="utf-8")
    return folder


def entries(folder: Path) -> dict[str, Any]:
    content = json.loads((folder / BASELINE).read_text(encoding="utf-8"))
    assert content["schema"] == "constrained_cnn.baseline/1"
    networks: dict[str, Any] = content["networks"]
    return networks


RULES = """
from pathlib import Path
import pytest
from constrained_cnn.constraints import Accuracy, Constraints, Count, Parameters
from constrained_cnn.tracing import trace
from net import Net, Untrainable

IMAGE = (1, 28, 28)
roomy = Parameters(at_most=10_000)

def test_rules_in_python(check_network):
    report = check_network(Net(), IMAGE, roomy)
    assert report.ok
    assert check_network(Net(), IMAGE, [roomy, Count("conv", exactly=5)]).ok
    assert check_network(Net(), rules=Constraints([roomy]), inputs=[IMAGE]).ok
    assert check_network(trace(Net(), IMAGE), rules=roomy).ok

@pytest.mark.parametrize("file", ["near.toml", "root.toml", Path("near.toml")])
def test_rules_of_a_file(check_network, file):
    check_network(Net(), IMAGE, file)

def test_rules_of_the_project(check_network):
    check_network(Net(), IMAGE)

def test_rules_of_the_package(check_network):
    check_network(Net(), IMAGE, "mnist-12k")

@pytest.mark.constraints(Parameters(at_most=100), input_shape=IMAGE)
class TestMarked:
    def test_by_the_class(self, check_network):
        check_network(Net())

    @pytest.mark.constraints(rules="near.toml")
    def test_by_the_closest(self, check_network):
        check_network(Net())

    def test_but_told(self, check_network):
        check_network(Net(), rules=roomy)
        check_network(trace(Net(), IMAGE), rules=roomy)

def test_cannot_tell(check_network):
    check_network(Untrainable(1, 8, 3), IMAGE, Count("dropout", at_most=3))

def test_no_record(check_network):
    check_network(Net(), IMAGE, Accuracy(at_least=99))

def test_unknown_name(check_network):
    check_network(Net(), IMAGE, "mnist-12")

def test_no_file(check_network):
    check_network(Net(), IMAGE, "missing.toml")

def test_no_shape(check_network):
    check_network(Net())

def test_wrong_shape(check_network):
    check_network(Net(), (3, 28, 28))

@pytest.mark.constraints("mnist-12k", input_size=IMAGE)
def test_unknown_word(check_network): ...

@pytest.mark.constraints("mnist-12k", rules="mnist-8k")
def test_said_twice(check_network): ...

@pytest.mark.constraints("mnist-12k", IMAGE, 3)
def test_too_many(check_network): ...

def test_no_baseline(check_network):
    check_network.against_baseline(Net(), IMAGE)
"""
# Each test that fails, and what it has to say.
FAILURES = {
    "test_rules_of_the_project": ["1 broken", "required at most 6,000"],
    "test_rules_of_the_package": ["R1", "required 12,000 to 18,000"],
    "test_by_the_class": ["required at most 100"],
    "test_cannot_tell": ["1 cannot be told", "dropout", "inference only"],
    "test_no_record": ["nothing was judged", "run="],
    "test_unknown_name": ["'mnist-12'", "did you mean 'mnist-12k'?"],
    "test_no_file": ["rules='missing.toml'", "no such file"],
    "test_no_shape": ["input_shape=None", "(1, 28, 28)"],
    "test_wrong_shape": ["(3, 28, 28)", "'first'"],
    "test_unknown_word": ["@pytest.mark.constraints", "did you mean 'input_shape'?"],
    "test_said_twice": ["@pytest.mark.constraints('mnist-12k'", "once"],
    "test_too_many": ["@pytest.mark.constraints('mnist-12k', (1, 28, 28), 3", "once"],
    "test_no_baseline": [
        "Net: is not in the baseline",
        f"pytest {UPDATE} tests/test_rules.py::test_no_baseline",
    ],
}


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory) -> Session:
    """A session of tests that ask for rules in every way."""
    folder = make_repository(tmp_path_factory.mktemp("rules") / "sample", test_rules=RULES)
    roomy = '[[rules]]\nrule = "parameters"\nat_most = 10_000\n'
    (folder / "tests" / "near.toml").write_text(roomy, encoding="utf-8")
    (folder / "root.toml").write_text(roomy, encoding="utf-8")
    session = run(folder)
    assert not (folder / BASELINE).exists()
    return session


def test_what_keeps_its_rules_passes_and_the_rest_fails(judged: Session) -> None:
    assert judged.status == pytest.ExitCode.TESTS_FAILED
    assert judged.failed == FAILURES.keys(), judged.printed
    assert len(judged.said) - len(judged.failed) == 6


@pytest.mark.parametrize("name", FAILURES)
def test_a_failure_says_what_is_wrong_and_shows_no_traceback(judged: Session, name: str) -> None:
    wrong = judged.said[name]
    assert [word for word in FAILURES[name] if word not in wrong] == []
    assert "Error" not in wrong
    assert "pytest_plugin" not in wrong
    assert "During handling" not in wrong


def test_a_broken_rule_shows_the_excess_and_the_five_heaviest_layers(judged: Session) -> None:
    wrong = judged.said["test_rules_of_the_project"]
    assert wrong.startswith("Net: 0 of 1 rules kept, 1 broken")
    assert f"measured {PARAMETERS:,}" in wrong
    assert f"{PARAMETERS - 6_000:,}" in wrong.replace(f"{PARAMETERS:,}", "")
    places = [wrong.index(f"{name}: conv2d {number:,}") for name, number in FIVE.items()]
    assert places == sorted(places)
    assert "norm" not in wrong


GUARDED = """
import os
import pytest
from net import Net, Untrainable

WIDE, OTHER, LAST, ROWS = map(int, os.environ.get("NUMBERS", "8 8 3 28").split())
IMAGE = (1, 28, 28)

@pytest.mark.parametrize("turn", [1, 2])
def test_costs(check_network, turn):
    budget = check_network.against_baseline(Net(WIDE), IMAGE)
    assert budget.parameters.total

def test_small(check_network):
    check_network.against_baseline(Net(OTHER), IMAGE, name="the small one")

@pytest.mark.constraints(input_shape=(1, ROWS, 28))
class TestMore:
    def test_sample(self, check_network):
        check_network.against_baseline(Net())

    def test_field(self, check_network):
        check_network.against_baseline(Net(last=LAST), IMAGE)

    def test_training(self, check_network):
        check_network.against_baseline(Untrainable(1, 8, 3), IMAGE)
"""
CLASH = """
import pytest
from net import Net

@pytest.mark.parametrize("wide", [2, 3])
def test_clash(check_network, wide):
    check_network.against_baseline(Net(wide), (1, 28, 28))

def test_no_name(check_network):
    check_network.against_baseline(Net(), (1, 28, 28), name="")
"""
COSTS = "tests/test_costs.py::test_costs"


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository whose baseline was written."""
    folder = make_repository(tmp_path_factory.mktemp("costs") / "sample", test_costs=GUARDED)
    session = run(folder, UPDATE)
    assert session.status == pytest.ExitCode.OK, session.printed
    assert f"{COSTS}: written to {BASELINE}" in session.printed
    return folder


def test_the_baseline_holds_what_networks_cost(guarded: Path) -> None:
    written = entries(guarded)
    more = {f"tests/test_costs.py::TestMore::test_{n}" for n in ("sample", "field", "training")}
    assert written.keys() == {COSTS, "the small one", *more}
    entry = written[COSTS]
    assert (entry["model"], entry["sample"]) == ("Net", "1 x 28 x 28")
    assert entry["quantities"]["parameters"] == PARAMETERS
    assert entry["quantities"]["MACs"] == MACS
    assert entry["quantities"]["receptive field, axis 0"] == 9  # four windows of 3 taps
    text = (guarded / BASELINE).read_text(encoding="utf-8")
    assert text == json.dumps(json.loads(text), indent=1, sort_keys=True) + "\n"


def test_growth_fails_and_what_shrank_is_noted(guarded: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(guarded, tmp_path / "sample")
    content = json.loads((folder / BASELINE).read_text(encoding="utf-8"))
    training = content["networks"]["tests/test_costs.py::TestMore::test_training"]["quantities"]
    assert "bytes saved for backward" not in training
    training["bytes saved for backward"] = 5_000
    before = json.dumps(content)
    (folder / BASELINE).write_text(before, encoding="utf-8")

    session = run(folder, NUMBERS="9 7 1 14")
    turns = {"test_costs[1]", "test_costs[2]"}
    assert session.failed == {*turns, "test_sample", "test_field", "test_training"}
    assert (folder / BASELINE).read_text(encoding="utf-8") == before

    wrong = session.said["test_costs[1]"]
    now = PARAMETERS + CHANNEL
    assert wrong.startswith(f"Net: parameters {PARAMETERS:,} -> {now:,} (+155, +2.2 %) and ")
    rows = [line.split() for line in wrong.splitlines()]
    macs = MACS + 9 * 26**2 + 9 * 16 * 24**2
    share = f"+{100 * (macs / MACS - 1):.1f}"
    assert ["MACs", f"{MACS:,}", f"{macs:,}", f"+{macs - MACS:,}", share, "%"] in rows
    assert "receptive field" not in wrong
    heaviest = next(line for line in wrong.splitlines() if "heaviest layers, parameters" in line)
    assert heaviest.endswith(
        ": mix: conv2d 4,640, widen: conv2d 1,312, last: conv2d 730, narrow: conv2d 264, "
        "first: conv2d 81"
    )
    assert wrong.rstrip().endswith(f"pytest {UPDATE} {COSTS}")
    assert "pytest_plugin" not in session.printed

    note = next(line for line in session.printed.splitlines() if line.startswith("the small one"))
    assert f"can be tightened by {UPDATE}" in note
    assert f"parameters {PARAMETERS:,} -> {PARAMETERS - CHANNEL:,} (-155, -2.2 %)" in note

    assert "receptive field, axis 0 9 -> 7 (-2, -22.2 %)" in session.said["test_field"]
    assert "one sample of 1 x 28 x 28" in session.said["test_sample"]
    assert "one of 1 x 14 x 28" in session.said["test_sample"]
    assert "bytes saved for backward 5,000 -> cannot tell" in session.said["test_training"]


def test_an_update_takes_over_and_keeps_other_entries(guarded: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(guarded, tmp_path / "sample")
    (folder / "tests" / "test_clash.py").write_text(CLASH, encoding="utf-8")
    before = entries(folder)
    session = run(
        folder,
        UPDATE,
        "-k",
        "test_costs.py and not small and not More or clash",
        NUMBERS="9 9 3 28",
    )
    after = entries(folder)
    assert session.failed == {"test_clash[3]", "test_no_name"}
    assert "two networks have it" in session.said["test_clash[3]"]
    assert "name=''" in session.said["test_no_name"]
    assert after.keys() - before.keys() == {"tests/test_clash.py::test_clash"}
    changed = {name for name in before if after[name] != before[name]}
    assert changed == {COSTS}
    assert after[COSTS]["quantities"]["parameters"] == PARAMETERS + CHANNEL


BARE = """
def test_without_rules(check_network):
    check_network(object(), (1, 28, 28))
"""


def test_without_a_baseline_or_rules_to_read_tests_fail(guarded: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(guarded, tmp_path / "sample")
    (folder / "tests" / "test_bare.py").write_text(BARE, encoding="utf-8")
    bare = PROJECT.partition("[[tool.constrained-cnn")[0]
    (folder / "pyproject.toml").write_text(bare, encoding="utf-8")
    file = folder / "costs" / "mine.json"
    file.parent.mkdir()
    file.write_text('{"schema": ', encoding="utf-8")
    session = run(folder, UPDATE, "-o", "constrained_cnn_baseline=costs/mine.json")
    assert session.failed == session.said.keys()
    assert "no rules are given" in session.said["test_without_rules"]
    assert "has no table [tool.constrained-cnn]" in session.said["test_without_rules"]
    wrong = session.said["test_small"]
    assert f"{str(file)!r} is not a baseline: Expecting value: line 1" in wrong
    assert "move it away" in wrong
    assert file.read_text(encoding="utf-8") == '{"schema": '
    assert entries(folder) == entries(guarded)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b'{"schema": "constrained_cnn.baseline/1", "networks": {', "Expecting"),
        (b"\xff\xfe", "decode"),
        (b'{"name": "a package", "version": "1.0"}', "something else"),
        (b"[1, 2]", "something else"),
        (b'{"schema": "constrained_cnn.baseline/2", "networks": {}}', "baseline/2"),
        (b'{"schema": "constrained_cnn.baseline/1", "networks": []}', "something else"),
        (b'{"schema": "constrained_cnn.baseline/1", "networks": {"a": {}}}', "something else"),
    ],
)
def test_a_damaged_or_foreign_file_is_told(tmp_path: Path, content: bytes, why: str) -> None:
    file = tmp_path / "baseline.json"
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match=f"is not a baseline: .*{why}.*stays as it is"):
        _baseline.read_baseline(file)


def test_numbers_of_a_baseline_are_numbers(tmp_path: Path) -> None:
    entry = {"model": "Net", "sample": "1 x 28 x 28", "quantities": {"MACs": "many"}}
    content = {"schema": _baseline.SCHEMA, "networks": {"a": entry}}
    file = tmp_path / "baseline.json"
    file.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(CheckpointError, match="MACs='many'"):
        _baseline.read_baseline(file)


def test_several_processes_may_not_write_the_baseline(tmp_path: Path) -> None:
    folder = make_repository(tmp_path / "sample", test_it="def test_nothing(): pass")
    session = run(folder, UPDATE, "-n", "2")
    assert session.status == pytest.ExitCode.USAGE_ERROR
    assert f"ERROR: {UPDATE}: several processes cannot write one baseline" in session.printed


IDLE = """
import sys
import pytest

@pytest.mark.constraints("mnist-12k", input_shape=(1, 28, 28))
def test_nothing(request):
    assert request.config.pluginmanager.hasplugin("constrained-cnn")
    heavy = {"matplotlib", "numpy", "rich", "torch", "torchvision", "constrained_cnn.budget"}
    assert not heavy & sys.modules.keys()
"""


def test_the_plugin_costs_nothing_until_it_is_used(tmp_path: Path) -> None:
    session = run(make_repository(tmp_path / "sample", test_it=IDLE))
    assert session.status == pytest.ExitCode.OK, session.printed
    assert session.said == {"test_nothing": ""}
    assert "constrained-cnn ==" not in session.printed


def test_a_baseline_that_is_being_written_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_baseline, "_TRIES", 2)
    file = tmp_path / "baseline.json"
    refused = pytest.raises(OutputError, match=r"is being written by another process; .* remove")
    with _baseline.locked(file), refused, _baseline.locked(file):
        pass
    with _baseline.locked(file):  # free again
        pass
    assert list(tmp_path.iterdir()) == []
