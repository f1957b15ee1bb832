"""Verdicts on networks of the zoo: none that was right has become another, or "cannot tell".

``benchmarks/results/verdicts.json`` holds a letter (pass, fail, cannot tell) for each network and
rule from before operations had one table. Those of timm and transformers are compared by hand:
``python -m benchmarks.zoo --verdicts NEW`` and ``--compare OLD NEW``.
"""

import json
from pathlib import Path
from typing import Any

import pytest

import benchmarks
from benchmarks import zoo, zoo_networks

BEFORE = Path(benchmarks.__file__).parent / "results" / "verdicts.json"
# The head may be a convolution on one cell, which is the same as a fully connected layer.
HEAD = "mnist-20k/head: f -> p"
# They passed an LSTM in the prediction zone, which holds activations.
WRONG_BEFORE = {
    "unusual_networks/column reader: mnist-12k/R8: p -> c",
    "unusual_networks/column reader: clean prediction: p -> c",
}


def verdicts_of(library: str, before: dict[str, Any]) -> dict[str, Any]:
    """Return the verdicts of today on the networks of a library, as the file holds them."""
    rules = zoo.all_rules()
    now: dict[str, Any] = {"rules": list(rules), "verdicts": {}, "refused": {}}
    for network in zoo_networks.networks(library):
        if network.name in before["verdicts"]:
            row: dict[str, Any] = {}
            zoo.judge(network, rules, row.update)
            if row["verdicts"] is None:
                now["refused"][network.name] = row["refusal"]
            else:
                now["verdicts"][network.name] = row["verdicts"]
    return now


def changes(library: str) -> list[str]:
    """Return what is otherwise than before, but for what could not be told then."""
    before = json.loads(BEFORE.read_text("utf-8"))
    now = verdicts_of(library, before)
    assert len(now["verdicts"]) >= 15
    changed = zoo.compare_verdicts(before, now)
    return [one for one in changed if not one.endswith(("c -> p", "c -> f", HEAD))]


def test_networks_of_courses_and_unusual_ones() -> None:
    assert set(changes("tests")) == WRONG_BEFORE


@pytest.mark.slow
def test_networks_of_torchvision() -> None:
    assert changes("torchvision") == []
