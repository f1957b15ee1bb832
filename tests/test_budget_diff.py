"""What changed between two networks."""

import json
from dataclasses import replace
from typing import Any

import pytest
from torch import nn

from constrained_cnn.budget import Budget, diff, measure_budget
from constrained_cnn.errors import InvalidInputError
from constrained_cnn.tracing import trace

OLD = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))
NEW = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 1), nn.Conv2d(4, 2, 1))


def test_totals_and_layers() -> None:
    change = diff(measure_budget(OLD, (1, 8, 8)), measure_budget(NEW, (1, 8, 8)))
    totals = {one.name: (one.old, one.new, one.difference) for one in change.totals}
    assert totals["parameters"] == (80 + 292, 80 + 36 + 10, -246)
    assert totals["MACs"] == (36 * 72 + 16 * 288, 36 * (72 + 32 + 8), -3168)
    layers = {one.name: (one.old, one.new) for one in change.layers}
    assert layers == {
        "2: conv2d parameters": (292, 36),
        "2: conv2d MACs": (4608, 1152),
        "3: conv2d parameters": (None, 10),
        "3: conv2d MACs": (None, 288),
    }
    assert change.changed


def test_what_was_is_gone() -> None:
    change = diff(measure_budget(NEW, (1, 8, 8)), measure_budget(OLD, (1, 8, 8)))
    gone = [one for one in change.layers if one.name.startswith("3")]
    assert [(one.old, one.new, one.ratio) for one in gone] == [(10, None, 0), (288, None, 0)]


def test_nothing_changed() -> None:
    change = diff(measure_budget(OLD, (1, 8, 8)), measure_budget(OLD, (1, 8, 8)))
    assert not change.changed
    assert change.layers == ()
    assert "=" in str(change)


def test_faces() -> None:
    change = diff(measure_budget(OLD, (1, 8, 8)), measure_budget(NEW, (1, 8, 8)))
    assert "-66.1 %" in str(change)
    assert "| 2: conv2d | 292 | 36 | -256 | 4,608 | 1,152 | -3,456 |" in change.to_markdown()
    assert "| 3: conv2d |  | 10 | +10 |  | 288 | +288 |" in change.to_markdown()
    content = json.loads(change.to_json())
    assert content["schema"] == "constrained_cnn.diff/1"
    assert content["totals"][0] == {"name": "parameters", "old": 372, "new": 126}
    assert "Layers that changed" in change._repr_html_()


def named(**layers: nn.Module) -> nn.Sequential:
    net = nn.Sequential()
    for name, layer in layers.items():
        net.add_module(name, layer)
    return net


def conv(width: int = 1) -> nn.Module:
    return nn.Conv2d(1, width, 1)


def test_what_is_gone_stands_where_it_stood() -> None:
    old = named(a=conv(), gone=conv(), b=conv(), also=conv(), c=nn.Conv2d(1, 2, 1))
    new = named(a=conv(), fresh=conv(), b=conv(), c=nn.Conv2d(1, 3, 1))
    change = diff(measure_budget(old, (1, 4, 4)), measure_budget(new, (1, 4, 4)))
    rows = [row[0].split(":")[0] for row in change.layer_table().rows]
    assert rows == ["gone", "fresh", "also", "c"]
    first = diff(measure_budget(old, (1, 4, 4)), measure_budget(old[1:], (1, 4, 4)))
    assert [row[0].split(":")[0] for row in first.layer_table().rows] == ["a"]


def test_a_layer_has_one_row_even_where_one_number_stays() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = conv()

        def forward(self, x: Any) -> Any:
            return self.a(self.a(x))

    change = diff(measure_budget(named(a=conv()), (1, 4, 4)), measure_budget(Twice(), (1, 4, 4)))
    (row,) = change.layer_table().rows  # it reads the parameters the first read has
    assert row[1:] == ("", "0", "=", "", "16", "+16")


def test_names_in_place_of_those_of_the_models() -> None:
    budgets = measure_budget(OLD, (1, 8, 8)), measure_budget(NEW, (1, 8, 8))
    change = diff(*budgets, names=("before", "after"))
    assert change.table().title == "before -> after"
    assert change.table().headings == ("cost", "before", "after", "difference", "share")
    assert "MACs after" in change.layer_table().headings
    assert diff(*budgets).table().title == "Sequential -> Sequential"
    for names in (("a", "a"), ("a",), "ab", ("a", 1)):
        with pytest.raises(InvalidInputError, match="must be two names that differ"):
            diff(*budgets, names=names)  # type: ignore[arg-type]


def test_notes_stand_below() -> None:
    budget = measure_budget(OLD, (1, 8, 8))
    change = replace(diff(budget, budget), notes=("One.", "Two."))
    assert "One.\nTwo." in str(change)
    assert "One.\nTwo." in change.to_markdown()
    assert json.loads(change.to_json())["notes"] == ["One.", "Two."]


@pytest.mark.parametrize("thing", [OLD, trace(OLD, (1, 8, 8)), 3])
def test_what_is_no_budget(thing: Any) -> None:
    budget = measure_budget(OLD, (1, 8, 8))
    with pytest.raises(InvalidInputError, match=r"old=.*measure_budget\(model, input_shape\)"):
        diff(thing, budget)
    with pytest.raises(InvalidInputError, match="new="):
        diff(budget, thing)


def test_a_diff_says_what_it_is_of_and_where_the_peaks_are() -> None:
    def budget(channels: int, side: int) -> Budget:
        net = nn.Sequential(nn.Conv2d(1, channels, 3), nn.ReLU(), nn.Conv2d(channels, 40, 3))
        return measure_budget(net, (1, side, side))

    same = diff(budget(8, 28), budget(8, 28))
    assert same.notes == (
        "For one sample of 1 x 28 x 28.",
        "bytes at the inference peak: at 2: conv2d.",
        "bytes at the int8 peak, batch norm folded: at 2: conv2d.",
    )
    other = diff(budget(8, 28), budget(80, 32))
    assert other.notes[0] == "For different samples: 1 x 28 x 28 before, 1 x 32 x 32 after."
    assert "at 2: conv2d before, at 1: relu after" in other.to_markdown()
