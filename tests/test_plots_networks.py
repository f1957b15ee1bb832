"""Figures of networks, by their structure: what is drawn has the numbers that were measured."""

from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from matplotlib.colors import to_rgba
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
    assert np.asarray(size.get_ydata()).tolist() == [3, 5, 6, 10, 14, 16, 24, 32]
    assert np.asarray(stage.get_ydata()).tolist() == [3, 5, 1, 3, 5, 1, 3, 5]


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
    fields = len({row.axes[0].size for row in field.layers if row.changes and row.growth[0]})
    assert len(boxes(figure)) == 13
    assert f"12 of {fields} fields shown" in words(figure)
    assert "435  layer4.1.conv2" in words(figure)
    assert f"first to see the whole image: {field.first_to_see_all}" in figure.get_suptitle()


def test_only_layers_that_grow_are_named() -> None:
    class Squeeze(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * x.mean((2, 3), keepdim=True).sigmoid()

    net = nn.Sequential(
        nn.Conv2d(1, 4, 3),
        Squeeze(),
        nn.Conv2d(4, 4, 1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Upsample(scale_factor=2, mode="bilinear"),
        nn.Conv2d(4, 4, 3),
    )
    figure = plots.receptive_field_growth(measure_receptive_field(net, (1, 16, 16)))
    assert [label.get_text() for label in figure.axes[1].get_xticklabels()] == ["0", "5", "6"]
    causal = nn.Sequential(
        nn.ConstantPad1d((1, 0), 0.0), nn.Conv1d(1, 4, 2), nn.ReLU(), nn.Conv1d(4, 1, 1)
    )
    figure = plots.receptive_field_growth(measure_receptive_field(causal, (1, 30)))
    assert [label.get_text() for label in figure.axes[1].get_xticklabels()] == ["1"]
    flat = plots.receptive_field_growth(measure_receptive_field(nn.Conv2d(1, 1, 1), (1, 8, 8)))
    assert np.asarray(flat.axes[1].lines[0].get_ydata()).tolist() == [1]


def test_layers_of_one_path_are_told_apart() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(1, 1, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.conv(self.conv(x))

    figure = plots.receptive_field_growth(measure_receptive_field(Twice(), (1, 16, 16)))
    names = [label.get_text() for label in figure.axes[1].get_xticklabels()]
    assert names == ["conv: conv2d", "conv: conv2d #2"]
    assert "5  conv: conv2d #2" in words(figure)


def test_rows_and_columns_have_limits_of_their_own() -> None:
    net = nn.Sequential(nn.Conv2d(1, 2, (1, 7)), nn.Conv2d(2, 2, (5, 1)))
    figure = plots.receptive_field_growth(measure_receptive_field(net, (1, 20, 64)))
    assert {"size, rows", "size, columns"} <= set(words(figure))
    assert {"the image, rows: 20", "the image, columns: 64", "the image: 20 x 64"} <= set(
        words(figure)
    )
    rows, columns = figure.axes[1].lines
    assert np.asarray(rows.get_ydata()).tolist() == [1, 5]
    assert np.asarray(columns.get_ydata()).tolist() == [7, 7]
    limits = {
        tuple(limit.get_colors()[0]): {y for _, y in limit.get_segments()[0]}  # type: ignore[attr-defined]
        for limit in figure.axes[1].collections
    }
    assert limits == {to_rgba(rows.get_color()): {20}, to_rgba(columns.get_color()): {64}}
    assert {(7, 1), (7, 5)} <= {
        size for *_, width, height in boxes(figure) for size in [(width, height)]
    }


def test_the_image_is_seen_below_fields_that_are_larger() -> None:
    net = nn.Sequential(*[nn.Conv2d(1, 1, 9, padding=4) for _ in range(5)])
    figure = plots.receptive_field_growth(measure_receptive_field(net, (1, 9, 9)))
    top = max(figure.axes[0].patches, key=lambda patch: patch.get_zorder())
    assert isinstance(top, Rectangle)
    assert (*top.get_xy(), top.get_width(), top.get_height()) == (-0.5, -0.5, 9, 9)
    assert words(figure).count("the image: 9") == 2


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


def test_what_is_there_is_never_said_to_be_nothing() -> None:
    net = nn.Sequential(nn.Conv2d(1, 1, 1, bias=False), nn.Conv2d(1, 64, 9, bias=False))
    figure = plots.layer_costs(measure_budget(net, (1, 28, 28)))
    assert words(figure).count("< 0.1 %") == 2
    assert "0.0 %" not in words(figure)


def lines_of(figure: Figure) -> dict[str, list[list[int]]]:
    """Return the lines of each colour, topmost first."""
    found: dict[str, list[list[int]]] = {}
    for line in sorted(figure.axes[0].lines, key=lambda line: -line.get_zorder()):
        data = np.asarray(line.get_ydata()).tolist()
        found.setdefault(str(line.get_color()), []).append(data)
    return found


def test_the_peak_of_each_accounting_is_marked_and_named() -> None:
    net = nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(inplace=True))
    graph = trace(net, (1, 28, 28))
    figure = plots.memory_timeline(measure_budget(graph))
    # 8 x 26 x 26 values of 4 bytes or 1: two of them live at once until the norm folds away.
    ours, folded, int8 = lines_of(figure).values()
    assert ours == [[43264], [21632, 43264, 21632]]
    assert folded == [[21632], [21632, 21632, 21632]]
    assert int8 == [[5408], [5408, 5408, 5408]]
    legend = figure.axes[0].get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == [
        "as run: peak 43.3 kB at 1: batch_norm",
        "as run, batch norm folded: peak 21.6 kB at 0: conv2d",
        "int8, batch norm folded: peak 5.41 kB at 0: conv2d",
    ]


def test_accountings_that_change_nothing_are_not_drawn() -> None:
    net = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(inplace=True))
    figure = plots.memory_timeline(measure_budget(net, (1, 28, 28)))
    assert len(lines_of(figure)) == 2
    assert "int8: peak 5.41 kB at 0: conv2d" in words(figure)


def test_a_long_network_has_its_other_accountings() -> None:
    block = [nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU()]
    net = nn.Sequential(*block * 30)
    figure = plots.memory_timeline(measure_budget(net, (4, 8, 8)))
    assert len(lines_of(figure)) == 3


def test_a_timeline_says_which_accounting_it_is() -> None:
    graph = trace(nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8)), (1, 28, 28))
    timeline = memory_timeline(graph, elements="int8", folded=True, with_input=True)
    (axes,) = plots.memory_timeline(timeline).axes
    # The caller's 28 x 28 bytes live until the convolution has read them.
    said = "int8, batch norm folded, with the input: peak 6.19 kB at 0: conv2d"
    assert axes.get_title(loc="left") == said


def test_the_map_is_drawn_with_both_boxes() -> None:
    used = effective_receptive_field(nn.Conv2d(1, 3, 5), (1, 20, 20), samples=3)
    figure = plots.effective_field(used)
    drawn = np.asarray(figure.axes[0].images[0].get_array())
    assert np.allclose(drawn / 100 * used.map.max(), used.map)
    widths = {size for *_, size in boxes(figure)}
    assert widths == {5, used.size(0.95)}


def test_the_box_of_most_influence_ends_where_the_unit_can_see() -> None:
    used = effective_receptive_field(nn.Conv2d(1, 3, (3, 11)), (1, 20, 20), samples=3)
    side = used.size(0.95)
    figure = plots.effective_field(used)
    assert {size[2:] for size in boxes(figure)} == {(11, 3), (side, 3)}
    (legend,) = figure.legends
    seen, most = (text.get_text() for text in legend.get_texts())
    assert seen == "can see: 3 x 11"
    assert most.endswith(
        f"within {side} x {side} around the middle of its field (drawn: 3 x {side})"
    )


def test_boxes_on_each_other_are_both_seen() -> None:
    used = effective_receptive_field(nn.Conv2d(1, 3, 9, padding=4), (1, 5, 5), samples=3)
    figure = plots.effective_field(used)
    solid, dashed = figure.axes[0].patches
    assert solid.get_linestyle() == "-"
    assert dashed.get_linestyle() != "-"
    assert dashed.get_edgecolor() != solid.get_edgecolor()
    assert figure.axes[0].get_xlim() == (-1, 5)
    assert "can see: 9 x 9 (in the image: 5 x 5)" in words(figure)


def test_the_influence_on_one_axis_is_a_curve() -> None:
    used = effective_receptive_field(nn.Conv1d(1, 3, 5), (1, 20))
    figure = plots.effective_field(used)
    (curve,) = figure.axes[0].lines
    assert np.allclose(np.asarray(curve.get_ydata()), 100 * used.map)
    assert "can see: 5" in words(figure)


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
