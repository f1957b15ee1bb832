"""What changed between two networks."""

import json

from torch import nn

from constrained_cnn.budget import diff, measure_budget

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
    assert "| 2: conv2d parameters | 292 | 36 | -256 | -87.7 % |" in change.to_markdown()
    content = json.loads(change.to_json())
    assert content["schema"] == "constrained_cnn.diff/1"
    assert content["totals"][0] == {"name": "parameters", "old": 372, "new": 126}
    assert "Layers that changed" in change._repr_html_()
