"""The comparison of numbers over a zoo of networks: its counters, its processes, its tables."""

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import benchmarks
from benchmarks import zoo, zoo_networks
from benchmarks.zoo_networks import Network


def network(make: Any, *shape: int) -> Network:
    return Network("mine/one", make, lambda: (torch.zeros(1, *shape),))


@pytest.mark.parametrize(
    ("make", "shape", "macs"),
    [
        # 25 steps of four gates, each of 12 inputs and 128 states.
        (lambda: nn.LSTM(12, 128, batch_first=True), (25, 12), 25 * 4 * 128 * (12 + 128)),
        # Queries, keys, values, output: 10 * 16 * 64; scores and sums: 2 * 100 * 16; then 16 to 32.
        (
            lambda: nn.TransformerEncoderLayer(16, 2, 32, batch_first=True),
            (10, 16),
            10 * 16 * 64 + 2 * 100 * 16 + 10 * 2 * 16 * 32,
        ),
        (lambda: nn.ConvTranspose2d(8, 4, 4, 2, 1), (8, 16, 16), 8 * 4 * 16 * 256),
    ],
)
def test_the_independent_counter_counts_what_is_done(
    make: Any, shape: tuple[int, ...], macs: int
) -> None:
    asked = network(make, *shape)
    assert zoo.independent_macs(make().eval(), asked) == (macs, "meta")


class ByValue(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x[0] @ self.weight if float(x.sum()) >= 0 else x


def test_a_network_that_asks_for_values_is_counted_on_the_cpu() -> None:
    assert zoo.independent_macs(ByValue().eval(), network(ByValue, 7, 5)) == (35, "cpu")


def test_a_batch_norm_that_is_folded_or_left_is_counted() -> None:
    def make() -> nn.Module:
        return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.BatchNorm2d(2))

    found = zoo.fold(make(), network(make, 1, 80, 8))
    # The kernel and a bias, and one scale and one shift for each channel.
    assert (found["norms"], found["left"], found["parameters"]) == (2, 0, 18 + 2 + 4)
    assert found["error"] <= 1e-14


def told(tell: zoo.Tell) -> None:
    tell(one=1)
    tell(two=2)


def broken(tell: zoo.Tell) -> None:
    tell(one=1)
    raise ValueError("no such thing")


def dead(tell: zoo.Tell) -> None:
    tell(one=1)
    os._exit(3)


def endless(tell: zoo.Tell) -> None:
    tell(one=1)
    time.sleep(10_000)


def test_one_bad_network_does_not_end_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zoo, "NETWORK_SECONDS", 2)
    jobs = {"endless": endless, "broken": broken, "dead": dead, "told": told}
    rows = dict(zoo.run_all(jobs, workers=2))
    assert rows == {
        "told": {"one": 1, "two": 2},
        "broken": {"one": 1, "failed": "ValueError: no such thing"},
        "dead": {"one": 1, "failed": "exit status 3"},
        "endless": {"one": 1, "failed": "ended after 2 s"},
    }


def row(**changed: Any) -> dict[str, Any]:
    content = {
        "network": "timm/one",
        "true": {"parameters": 100},
        "counted": [1000, "meta"],
        "ours": {"parameters": 100, "macs": 1000, "deployed": 80, "unused": 5, "field": ""},
        "torchinfo": {"parameters": 100, "macs": 889},
        "fvcore": None,
        "first_seconds": 1.0,
        "forwards": 1,
        "seconds": {"trace": [4.0, 3.0], "torchinfo": [1.0, 2.0], "figures": [5.0, 4.0]},
        "fold": {"norms": 3, "left": 1, "error": 1e-15, "parameters": 85},
        "fold_problem": "",
    }
    return content | changed


def test_what_is_wrong_is_said_with_both_numbers() -> None:
    assert zoo.wrong(row()) == []
    assert zoo.wrong(row(ours=None)) == []
    assert zoo.wrong(row(counted=None)) == []
    assert zoo.wrong(row(true={"parameters": 99}, counted=[1001, "cpu"])) == [
        "parameters 100 for 99",
        "macs 1,000 for 1,001",
    ]
    off = {"norms": 1, "left": 0, "error": 2e-9, "parameters": 1}
    assert zoo.wrong(row(fold=off)) == ["fold_bn off by 2e-09"]
    assert zoo.wrong(row(fold=off | {"error": float("nan")})) == ["fold_bn off by nan"]


def test_tables_tell_what_is_off_from_what_is_refused() -> None:
    refused = row(ours=None, refusal="TracingError: no", seconds={}, fold=None)
    fieldless = row(ours={**row()["ours"], "field": "TracingError: no"})
    rows = [row(), refused, fieldless]
    counts = [list(cells) for cells in zoo.count_table(rows).rows]
    assert counts[0] == ["timm", "constrained_cnn", "3", "2", "2 of 2", "0", "2 of 2", "0"]
    assert counts[1] == ["timm", "torchinfo", "3", "3", "3 of 3", "0", "0 of 3", "3"]
    assert counts[2] == ["timm", "fvcore", "3", "0", "0 of 0", "0", "0 of 0", "0"]
    (folds,) = zoo.fold_table(rows).rows
    assert folds == ("timm", "3", "2", "6", "2", "2", "1.0e-15")
    assert [cells[:2] for cells in zoo.refusal_table(rows).rows] == [
        ("timm/one", "all"),
        ("timm/one", "field"),
    ]
    times = [cells[-2] for cells in zoo.time_table(rows).rows]
    assert times == ["1.00", "2.75", "3.50"]  # medians of 4 and 1.5, and of 5 and 2


def test_verdicts_are_compared_by_the_names_of_rules() -> None:
    before = {
        "rules": ["small", "clean"],
        "verdicts": {"same": "pf", "other": "pc", "gone": "pp", "left out": "pp"},
        "refused": {"new": "no"},
    }
    after = {
        "rules": ["clean", "more", "small"],
        "verdicts": {"same": "fcp", "other": "ppc", "new": "ppp"},
        "refused": {"gone": "TracingError: no"},
    }
    assert zoo.compare_verdicts(before, after) == [
        "other: small: p -> c",
        "other: clean: c -> p",
        "gone: refused: TracingError: no",
        "new: no longer refused",
    ]


def test_verdicts_are_written_and_gone_on_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    chosen = [n for n in zoo_networks.networks("tests") if n.name == "models/mnist_12k"]
    for _ in range(2):
        zoo.write_verdicts(chosen, tmp_path / "verdicts.json", workers=1)
    assert capsys.readouterr().out == "1 of 1: models/mnist_12k \n"
    content = json.loads((tmp_path / "verdicts.json").read_text())
    verdicts = dict(zip(content["rules"], content["verdicts"]["models/mnist_12k"], strict=True))
    assert {verdicts[name] for name in verdicts if name.startswith("mnist-12k/")} == {"p"}
    assert verdicts["no depthwise"] == verdicts["at least one dropout"] == "p"
    assert verdicts["no dropout"] == "f"


def test_networks_are_many_and_each_is_there_once() -> None:
    names = zoo_networks.TIMM.split()
    assert len(names) == len(set(names)) >= 150
    assert len(zoo_networks.TRANSFORMERS) >= 20
    others = [one.name for one in zoo_networks.networks("torchvision")]
    assert len(others) == len(set(others)) >= 16


def test_the_page_says_what_the_figures_say() -> None:
    if not zoo.RESULTS.exists():
        pytest.skip("not measured yet")
    page = Path(benchmarks.__file__).parents[1] / "docs" / "speed.md"
    assert zoo.markdown(json.loads(zoo.RESULTS.read_text())) in page.read_text("utf-8")
