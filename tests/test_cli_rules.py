"""The command that judges a network by rules, and ``diff --spec``, called in-process."""

import dataclasses
import json
from pathlib import Path

import pytest

from constrained_cnn import RunRecord, models
from constrained_cnn.cli import main

NET = """
import torch
from torch import nn
class Small(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3))
class Wide(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Conv2d(1, 16, 3), nn.ReLU(), nn.Conv2d(16, 4, 3))
class Odd(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)
    def forward(self, x):
        return torch.fft.fft2(self.conv(x))
def raises():
    raise ValueError("my bug")
"""
SPEC = """
name = "mine"

[[rules]]
name = "budget"
rule = "parameters"
at_most = 400

[[rules]]
rule = "count"
layer = "batch_norm"
at_least = 1

[[rules]]
rule = "macs"
at_least = 1
"""
ON_RUN = '[[rules]]\nrule = "epochs"\nexactly = 19\n'
Captured = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("nets.py").write_text(NET, encoding="utf-8")
    Path("rules.toml").write_text(SPEC, encoding="utf-8")
    monkeypatch.setenv("COLUMNS", "200")


def judge(name: str, *words: str) -> int:
    return main(["check", name, "--input", "1,28,28", *words])


def test_a_network_that_keeps_its_rules(capsys: Captured) -> None:
    assert judge("nets.py:Small", "--spec", "rules.toml") == 0
    out = capsys.readouterr().out
    assert "nets.py:Small on 1 x 28 x 28: rules mine" in out
    assert out.count("✓ pass") == 3
    assert "3 of 3 rules kept" in out


def test_a_network_that_breaks_one_says_where(capsys: Captured) -> None:
    Path("rules.toml").write_text(SPEC.replace("400", "300"), encoding="utf-8")
    assert judge("nets.py:Small", "--spec", "rules.toml") == 1
    out = capsys.readouterr().out
    assert "✗ budget: parameters, required at most 300, measured 388 (88 over)" in out
    assert "heaviest: 3: conv2d 292 (75 %), 0: conv2d 80 (21 %), 1: batch_norm 16 (4 %)" in out


def test_what_nobody_has_described_cannot_be_told(capsys: Captured) -> None:
    Path("odd.toml").write_text('[[rules]]\nrule = "macs"\nat_most = 10_000_000\n')
    assert judge("nets.py:Odd", "--spec", "odd.toml") == 2
    assert "? MACs, required at most 10,000,000" in capsys.readouterr().out
    # What is counted already is too much: that can be told.
    Path("odd.toml").write_text('[[rules]]\nrule = "macs"\nat_most = 10\n')
    assert judge("nets.py:Odd", "--spec", "odd.toml") == 1


def test_the_source_breaks_the_rules_it_is_known_to_break(capsys: Captured) -> None:
    assert judge("mnist_12k_source", "--spec", "mnist-12k", "--json") == 1
    content = json.loads(capsys.readouterr().out)
    assert content["model"] == "mnist_12k_source"
    broken = {f["rule"]["name"]: f for f in content["findings"] if f["verdict"] == "fail"}
    assert set(broken) == {"R1 near", "R6 block", "R6 padding", "R7"}
    assert any("stage_3.conv" in said for said in broken["R6 block"]["evidence"])
    assert judge("mnist_12k", "--spec", "mnist-12k") == 0


def test_markdown_for_a_comment(capsys: Captured) -> None:
    assert judge("nets.py:Small", "--spec", "rules.toml", "--markdown") == 0
    out = capsys.readouterr().out
    assert "| verdict | rule | required | measured | margin | evidence |" in out
    assert "| ✓ pass | batch_norm | at least 1 | 1 | 0 | 1: batch_norm |" in out


def test_rules_of_the_project_are_found(capsys: Captured) -> None:
    assert judge("nets.py:Small") == 2
    assert "give --spec mnist-12k" in capsys.readouterr().err
    table = SPEC.replace('name = "mine"', "[tool.constrained-cnn]").replace(
        "[[rules]]", "[[tool.constrained-cnn.rules]]"
    )
    Path("pyproject.toml").write_text(table, encoding="utf-8")
    assert judge("nets.py:Small") == 0
    assert "rules constrained-cnn" in capsys.readouterr().out


def test_rules_on_a_run(capsys: Captured) -> None:
    Path("rules.toml").write_text(SPEC.replace("400", "12_000") + ON_RUN, encoding="utf-8")
    assert judge("mnist_12k", "--spec", "rules.toml") == 0
    assert "- not judged  epochs" in capsys.readouterr().out
    assert judge("mnist_12k", "--spec", "rules.toml", "--require-run") == 2
    assert "? cannot tell" in capsys.readouterr().out
    record = models.get_weights("mnist_12k", "mnist").record
    record.save("runs/seed-0/record.json")
    assert judge("mnist_12k", "--spec", "rules.toml", "--run", "runs/seed-0") == 0
    short = dataclasses.replace(record, seed=1, epochs=3, history=record.history[:3])
    short.save("runs/seed-1/record.json")
    capsys.readouterr()
    assert judge("mnist_12k", "--spec", "rules.toml", "--run", "runs") == 1
    assert "seed 1: asked for 19" in capsys.readouterr().out


def test_a_record_that_was_edited_is_refused(capsys: Captured) -> None:
    record = models.get_weights("mnist_12k", "mnist").record
    file = record.save("record.json")
    file.write_text(file.read_text().replace('"epochs": 19', '"epochs": 18', 1))
    assert judge("mnist_12k", "--spec", "mnist-12k", "--run", "record.json") == 2
    assert "does not match its checksum: it was damaged or edited" in capsys.readouterr().err


def test_a_record_of_another_network_is_refused(capsys: Captured) -> None:
    models.get_weights("mnist_12k", "mnist").record.save("record.json")
    words = ["--spec", "mnist-12k", "--run", "record.json"]
    assert judge("mnist_12k_source", *words) == 2
    assert "is of a network with 12,000 parameters, and this one has 12,734" in (
        capsys.readouterr().err
    )


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ('[[rules]]\nrule = "parameter"\nat_most = 1\n', "line 2: rule 1: rule='parameter'"),
        ('[[rules]]\nrule = "parameter"\nat_most = 1\n', "did you mean 'parameters'?"),
        (
            '[[rules]]\nrule = "macs"\nat_most = 1\n\n[[rules]]\nrule = "macs"\nat_mots = 1\n',
            "line 7: rule 2: macs: unknown key 'at_mots'; did you mean 'at_most'?",
        ),
        ('[[rules]]\nrule = "macs"\nat_least = 5\nat_most = 4\n', "contradict each other"),
        ('[[rules]]\nrule = "macs"\nat_most = "few"\n', "line 3: rule 1: macs: at_most='few'"),
        ('[[rules]]\nrule = "macs"\n', "no limit is given"),
        ('[[rules]]\nrule = "dropout"\n', "p is missing"),
        ('[[rules]]\nrule = "count"\nlayer = "bn"\nat_least = 1\n', "did you mean 'batch_norm'?"),
        ('rules = "macs"\n', "rules='macs': must be a list of tables"),
        ("rules = \n", "is not TOML"),
        ("", "must be a list of at least one rule"),
        ('extends = "mnist-13k"\n', "did you mean 'mnist-12k'?"),
        ('[[rule]]\nrule = "macs"\n', "unknown key 'rule'; did you mean 'rules'?"),
    ],
)
def test_a_bad_spec_is_a_clear_error(spec: str, message: str, capsys: Captured) -> None:
    Path("rules.toml").write_text(spec, encoding="utf-8")
    assert judge("nets.py:Small", "--spec", "rules.toml") == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    assert "rules.toml" in captured.err
    assert message in captured.err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nets.py:raises", "--spec", "rules.toml"], "nets.py:raises raised ValueError: my bug"),
        (["broken.py:Net", "--spec", "rules.toml"], "SyntaxError"),
        (["nets.py:Small", "--spec", "none.toml"], "cannot read rules 'none.toml'"),
        (["nets.py:Small", "--spec", "mnist-12"], "did you mean 'mnist-12k'?"),
        (["nets.py:Small", "--spec", "."], "cannot read rules '.'"),
        (
            ["nets.py:Small", "--spec", "rules.toml", "--run", "gone"],
            "is not a readable run",
        ),
    ],
)
def test_what_cannot_run_is_a_clear_error(words: list[str], message: str, capsys: Captured) -> None:
    Path("broken.py").write_text("def Net(:\n", encoding="utf-8")
    assert judge(*words) == 2
    captured = capsys.readouterr()
    assert (captured.out, captured.err[:7]) == ("", "error: ")
    assert message in captured.err
    assert "Traceback" not in captured.err


def test_a_diff_with_rules(capsys: Captured) -> None:
    words = ["diff", "nets.py:Small", "nets.py:Wide", "--input", "1,28,28", "--spec", "rules.toml"]
    assert main([*words, "--markdown"]) == 1
    out = capsys.readouterr().out
    assert "**nets.py:Small -> nets.py:Wide: rules mine**" in out
    assert "| ✓ pass | ✗ FAIL | budget: parameters | at most 400 | 388 | 740 |" in out
    assert "| ✓ pass | ✗ FAIL | batch_norm | at least 1 | 1 | 0 |" in out
    assert "heaviest: 2: conv2d 580" in out
    assert main([*words, "--json"]) == 1
    old, new = json.loads(capsys.readouterr().out)["reports"]
    assert (old["ok"], new["ok"]) == (True, False)
    back = [words[0], words[2], words[1], *words[3:]]
    assert main(back) == 0
    assert "3 of 3 rules kept" in capsys.readouterr().out


def test_a_record_keeps_the_report(tmp_path: Path) -> None:
    record = models.get_weights("mnist_12k", "mnist").record
    report = {"ok": True, "findings": []}
    file = dataclasses.replace(record, report=report).save(tmp_path / "record.json")
    assert RunRecord.load(file).report == report
