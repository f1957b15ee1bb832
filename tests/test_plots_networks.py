"""Figures of networks, by their structure: what is drawn has the numbers that were measured."""

from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.text import Text
from torch import nn

from constrained_cnn import models, plots
from constrained_cnn.budget import measure_budget, memory_timeline
from constrained_cnn.errors import InvalidInputError
from constrained_cnn.proof import effective_receptive_field
from constrained_cnn.receptive_field import ReceptiveField, measure_receptive_field
from constrained_cnn.tracing import trace


def words(figure: Figure) -> list[str]:
    found = [text.get_text() for text in figure.findobj(Text) if isinstance(text, Text)]
    return [text for text in found if text]


def boxes(figure: Figure) -> set[tuple[float, ...]]:
    patches = figure.axes[0].patches
    found = [patch for patch in patches if isinstance(patch, Rectangle)]
    return {(*patch.get_xy(), patch.get_width(), patch.get_height()) for patch in found}


@pytest.fixture(scope="module")
def field() -> ReceptiveField:
    return measure_receptive_field(models.mnist_12k_source(), (1, 28, 28))


def test_boxes_are_what_the_middle_unit_sees(field: ReceptiveField) -> None:
    figure = plots.receptive_field_growth(field)
    expected = {(-0.5, -0.5, 28, 28)}
    for row in field.layers:
        if row.changes and row.axes[0].field is not None:
            (top, bottom), (left, right) = (
                a.interval((a.units or 1) // 2) or (0, 0) for a in row.axes
            )
            expected.add((left - 0.5, top - 0.5, right - left + 1, bottom - top + 1))
    drawn = boxes(figure)
    assert drawn <= expected
    assert {size for *_, size in drawn} == {28, 3, 5, 6, 10, 14, 16, 24, 32}


def test_sizes_are_those_of_the_layers(field: ReceptiveField) -> None:
    size, stage = plots.receptive_field_growth(field).axes[1].lines
    assert np.asarray(size.get_ydata()).tolist() == [3, 5, 6, 10, 14, 16, 24, 24, 32]
    assert np.asarray(stage.get_ydata()).tolist() == [3, 5, 1, 3, 5, 1, 3, 3, 5]


def test_over_an_image(field: ReceptiveField) -> None:
    image = np.arange(784.0).reshape(28, 28)
    for given in (image, image[None], torch.from_numpy(image)):
        (shown,) = plots.receptive_field_growth(field, image=given).axes[0].images
        assert np.array_equal(np.asarray(shown.get_array()), image)
    with pytest.raises(InvalidInputError, match=r"must be \(28, 28\)"):
        plots.receptive_field_growth(field, image=image[:5])


def test_gates_are_left_out_and_said_to_be() -> None:
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.InstanceNorm2d(4), nn.Conv2d(4, 4, 3))
    figure = plots.receptive_field_growth(measure_receptive_field(net, (1, 16, 16)))
    assert "gates left out" in figure.get_suptitle()
    assert {size for *_, size in boxes(figure)} == {16, 3, 5}


def test_one_axis_and_three() -> None:
    net = nn.Sequential(nn.Conv1d(2, 4, 3), nn.Conv1d(4, 4, 3, dilation=2))
    figure = plots.receptive_field_growth(measure_receptive_field(net, (2, 30)))
    assert [bar.get_width() for bar in figure.axes[0].patches[:2]] == [3, 7]  # type: ignore[attr-defined]
    solid = measure_receptive_field(nn.Conv3d(1, 1, 3), (1, 5, 5, 5))
    with pytest.raises(InvalidInputError, match="3 axes"):
        plots.receptive_field_growth(solid)


def test_labels_of_a_long_network_are_few() -> None:
    field = measure_receptive_field(torchvision.models.resnet18(), (3, 64, 64))
    figure = plots.receptive_field_growth(field)
    assert len(boxes(figure)) <= 11
    assert "435  layer4.1.conv2" in words(figure)
    assert "from avgpool on: all" in figure.get_suptitle()


def test_bars_are_the_costs_and_sum_to_the_totals() -> None:
    budget = measure_budget(models.mnist_12k(), (1, 28, 28))
    figure = plots.layer_costs(budget)
    for axes, total in zip(figure.axes, (12_000, 3_774_276), strict=True):
        assert sum(bar.get_width() for bar in axes.patches) == total  # type: ignore[attr-defined]
    names = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert names[0] == "stage_1.0.conv"
    assert figure.axes[0].patches[0].get_width() == 72  # type: ignore[attr-defined]


def test_many_layers_are_put_together() -> None:
    budget = measure_budget(torchvision.models.resnet50(), (3, 64, 64))
    figure = plots.layer_costs(budget)
    names = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert "layer4.0" in names
    assert len(names) <= 40
    total = sum(bar.get_width() for bar in figure.axes[0].patches)  # type: ignore[attr-defined]
    assert total == budget.parameters.total


def test_the_peak_is_marked() -> None:
    net = nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
    budget = measure_budget(net, (1, 28, 28))
    figure = plots.memory_timeline(budget)
    assert "43.3 kB at 1: batch_norm" in words(figure)
    assert {"as run", "as run, batch norm folded"} <= set(words(figure))
    lines = [np.asarray(line.get_ydata()).tolist() for line in figure.axes[0].lines]
    assert list(budget.memory.timeline.live) in lines
    assert [43264] in lines
    alone = plots.memory_timeline(memory_timeline(trace(net, (1, 28, 28)), elements="int8"))
    assert "10.8 kB at 1: batch_norm" in words(alone)


def test_the_map_is_drawn_with_both_boxes() -> None:
    used = effective_receptive_field(nn.Conv2d(1, 3, 5), (1, 20, 20), samples=3)
    figure = plots.effective_field(used)
    drawn = np.asarray(figure.axes[0].images[0].get_array())
    assert np.allclose(drawn**2 * used.map.max(), used.map)
    widths = {size for *_, size in boxes(figure)}
    assert widths == {5, used.size(0.95)}
    curve = plots.effective_field(effective_receptive_field(nn.Conv1d(1, 3, 5), (1, 20)))
    assert len(curve.axes[0].lines) == 1


@pytest.mark.parametrize(
    "draw",
    [plots.receptive_field_growth, plots.layer_costs, plots.memory_timeline, plots.effective_field],
)
def test_what_is_no_network(draw: Any) -> None:
    with pytest.raises(InvalidInputError, match="must be a"):
        draw("conv")


def test_nothing_to_draw() -> None:
    budget = measure_budget(nn.ReLU(), (1, 8, 8))
    with pytest.raises(InvalidInputError, match="nothing in ReLU"):
        plots.layer_costs(budget)
