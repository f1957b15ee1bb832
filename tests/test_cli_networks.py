"""The commands that say what a network costs and sees, called in-process."""

import csv
import io
import json
from pathlib import Path

import pytest

from constrained_cnn.cli import main

NET = """
from torch import nn
class Small(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3))
wide = nn.Sequential(nn.Conv2d(1, 9, 3))
def needs(width): return wide
def nothing(): return 3
def odd():
    import torch
    class Odd(nn.Module):
        def forward(self, x): return torch.fft.fft2(x)
    return Odd()
"""
Captured = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def net(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "nets_for_tests.py").write_text(NET)


@pytest.mark.parametrize("name", ["nets_for_tests:Small", "nets_for_tests.py:Small"])
def test_a_budget_of_a_file_or_module(name: str, capsys: Captured) -> None:
    assert main(["budget", name, "--input", "1,28,28", "--json", "--advise"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert content["parameters"]["total"] == 80 + 16 + 292
    assert content["macs"] == 26 * 26 * 72 + 24 * 24 * 288
    assert content["advice"]["costs"][0]["parameters"] == 10 + 2 + 36


def test_a_budget_for_people(capsys: Captured) -> None:
    assert main(["budget", "nets_for_tests:Small", "--input", "1x28x28", "--advise"]) == 0
    out = capsys.readouterr().out
    assert "Small on 1 x 28 x 28" in out
    assert "388" in out
    assert "One more channel in nets_for_tests:Small" in out
    assert main(["budget", "mnist_12k", "--input", "1,28,28", "--markdown", "--totals"]) == 0
    assert "| parameters | 12,000 |" in capsys.readouterr().out


def test_a_field_and_its_proof(capsys: Captured) -> None:
    assert main(["rf", "nets_for_tests:Small", "--input", "1,28,28", "--verify"]) == 0
    out = capsys.readouterr().out
    assert "3: conv2d: 5 of 28, jump 1, start 0" in out
    assert "proved (nan 4 of 4, gradient 4 of 4)" in out
    arguments = ["rf", "nets_for_tests:Small", "--input", "1,28,28", "--layer", "0"]
    assert main([*arguments, "--json", "--verify"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert (content["axes"][0]["size"], content["proved"]) == (3, True)


def test_the_sheet_as_csv(capsys: Captured) -> None:
    assert main(["rf", "mnist_12k_source", "--input", "1,28,28", "--csv"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [int(row["r"]) for row in rows] == [3, 5, 6, 10, 14, 16, 24, 24, 32]
    assert rows[-1]["n_in"] == "5"


def test_a_diff(capsys: Captured) -> None:
    arguments = ["diff", "nets_for_tests:wide", "nets_for_tests:Small", "--input", "1,28,28"]
    assert main([*arguments, "--json"]) == 0
    totals = {row["name"]: row for row in json.loads(capsys.readouterr().out)["totals"]}
    assert (totals["parameters"]["old"], totals["parameters"]["new"]) == (90, 388)
    assert (totals["receptive field"]["old"], totals["receptive field"]["new"]) == (3, 5)
    assert main([*arguments, "--markdown"]) == 0
    assert "| parameters | 90 | 388 | +298 | +331.1 % |" in capsys.readouterr().out


def test_a_summary(capsys: Captured) -> None:
    assert main(["summary", "nets_for_tests:Small", "--input", "1,28,28"]) == 0
    assert "Total params: 388" in capsys.readouterr().out


def test_pictures(capsys: Captured) -> None:
    options = ["--plot", "a.png", "--plot-memory", "b.svg"]
    assert main(["budget", "nets_for_tests:Small", "--input", "1,28,28", *options]) == 0
    assert main(["rf", "nets_for_tests:Small", "--input", "1,28,28", "--plot", "c.png"]) == 0
    assert all(Path(name).stat().st_size > 1000 for name in ("a.png", "b.svg", "c.png"))
    assert capsys.readouterr().err.count("Picture: ") == 3


def test_what_nobody_has_described(capsys: Captured) -> None:
    arguments = ["budget", "nets_for_tests:odd", "--input", "1,8,8"]
    assert main(arguments) == 2
    assert "'fft_fft2'" in capsys.readouterr().err
    assert main([*arguments, "--allow-unknown"]) == 2
    assert "incomplete" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["rf", "mnist_21k", "--input", "1,28,28"], "did you mean 'mnist_12k'"),
        (["rf", "nets_for_tests:Smal", "--input", "1,28,28"], "did you mean 'Small'"),
        (["rf", "nets_for_test:Small", "--input", "1,28,28"], "cannot be imported"),
        (["rf", "nets_for_tests:needs", "--input", "1,28,28"], "without arguments"),
        (["rf", "nets_for_tests:nothing", "--input", "1,28,28"], "gave a int"),
        (["rf", "nets_for_tests:NET", "--input", "1,28,28"], "has no 'NET'"),
        (["rf", "nets_for_tests:Small", "--input", "3,28,28"], "cannot take an input"),
        (["rf", "nets_for_tests:Small", "--input", "1,28,28", "--layer", "9"], "no such module"),
        (["budget", "mnist_12k", "--input", "1,28,28", "--plot", "a.jpg"], "must end in .png"),
    ],
)
def test_errors_say_what_is_wrong(arguments: list[str], message: str, capsys: Captured) -> None:
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error


def test_a_shape_that_is_none(capsys: Captured) -> None:
    with pytest.raises(SystemExit):
        main(["rf", "mnist_12k", "--input", "1,28,zero"])
    assert "must be a shape such as 1,28,28" in capsys.readouterr().err
