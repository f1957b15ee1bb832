"""Figures of what units see: a receptive field that grows over the image, and how much is used."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from constrained_cnn.errors import InvalidInputError
from constrained_cnn.plots._frame import (
    BLUE,
    GREY,
    ORANGE,
    SMALL,
    VERMILION,
    End,
    label_ends,
    new_figure,
    spread,
    tidy,
)
from constrained_cnn.proof import EffectiveField
from constrained_cnn.receptive_field import Axis, LayerField, ReceptiveField

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Box = tuple[tuple[int, int], ...]

_MOST_LABELS = 10


def receptive_field_growth(field: ReceptiveField, *, image: Any = None) -> "Figure":
    """Draw how the receptive field of the middle unit grows over the image, layer by layer.

    Left the fields as nested boxes over the image, those of the padding outside it; right their
    size against the layers that slide a window or see more than what they read.

    Args:
        field: Of a network on images of one or two axes.
        image: What to draw them over, (H, W) or one of the shape of a sample, (C, H, W); None
            draws the border of the image alone. Not for images of one axis.

    Raises:
        InvalidInputError: If the image has three axes, or ``image`` is not of its shape.

    Examples:
        >>> from constrained_cnn import measure_receptive_field, models
        >>> field = measure_receptive_field(models.mnist_12k(), (1, 28, 28))
        >>> receptive_field_growth(field).axes[1].get_ylabel()
        'receptive field (positions)'
    """
    if not isinstance(field, ReceptiveField):
        raise InvalidInputError(f"field={type(field).__name__}: must be a ReceptiveField")
    if len(field.axes) > 2:
        raise InvalidInputError(
            f"field: is of images of {len(field.axes)} axes; only one and two can be drawn"
        )
    picture = _picture(field, image)
    rows = [_without_gates(row) for row in field.layers if row.changes and not row.problem]
    placed = [row for row in rows if not any(axis.is_global for axis in row.axes)]
    figure = new_figure(9.6, 4.4)
    left, right = figure.subplots(1, 2, width_ratios=[1, 1.25])
    draw = _draw_boxes if len(field.axes) == 2 else _draw_intervals
    draw(left, field, placed, picture)
    _draw_sizes(right, field, placed)
    gated = any(row.axes[0].is_global for row in field.layers if _without_gates(row) in placed)
    after = rows[rows.index(placed[-1]) + 1 :] if placed else rows
    words = f"What a unit of {field.model} sees" + (", gates left out" if gated else "")
    if after:
        words += f"; from {after[0].path or after[0].op} on: all"
    figure.suptitle(words, fontsize=11, parse_math=False)
    return figure


def _without_gates(row: LayerField) -> LayerField:
    """Return a layer's field as if gates read nothing, where they alone make it global."""
    axes = tuple(
        replace(axis, field=axis.local) if axis.is_global and axis.units else axis
        for axis in row.axes
    )
    return replace(row, axes=axes)


def _picture(field: ReceptiveField, image: Any) -> NDArray[Any] | None:
    """Return the image as matplotlib draws it, (H, W) or (H, W, 3)."""
    if image is None:
        return None
    shape = tuple(axis.length for axis in field.axes)
    array = np.asarray(image)
    if len(shape) == 2 and array.ndim == 3 and array.shape[0] in (1, 3):
        array = array.transpose(1, 2, 0).squeeze()
    if len(shape) != 2 or array.shape[:2] != shape:
        raise InvalidInputError(
            f"image: has the shape {np.asarray(image).shape}; must be {shape}, or that with "
            "channels before it, for images of two axes"
        )
    return array


def _middle_box(row: LayerField) -> Box | None:
    """Return what the middle unit of a layer sees."""
    spans = [axis.interval((axis.units or 1) // 2) for axis in row.axes]
    found = [span for span in spans if span is not None]
    return tuple(found) if len(found) == len(spans) else None


def _distinct(rows: Sequence[LayerField], most: int) -> list[tuple[LayerField, Box]]:
    """Return the layers whose middle unit sees more than any before; at most so many."""
    found: list[tuple[LayerField, Box]] = []
    for row in rows:
        box = _middle_box(row)
        if box is not None and (not found or max(_sides(box)) > max(_sides(found[-1][1]))):
            found.append((row, box))
    if len(found) <= most:
        return found
    kept = np.unique(np.linspace(0, len(found) - 1, most).round().astype(int))
    return [found[i] for i in kept]


def _sides(box: Box) -> tuple[int, ...]:
    return tuple(high - low + 1 for low, high in box)


def _draw_boxes(
    axes: "Axes", field: ReceptiveField, rows: Sequence[LayerField], picture: NDArray[Any] | None
) -> None:
    from matplotlib.patches import Rectangle

    height, width = (axis.length for axis in field.axes)
    if picture is not None:
        axes.imshow(picture, cmap="gray_r", interpolation="nearest", alpha=0.55)
    axes.add_patch(Rectangle((-0.5, -0.5), width, height, fill=False, color=GREY, linewidth=1.2))
    boxes = _distinct(rows, _MOST_LABELS)
    colours = _shades(len(boxes))
    for (_, ((top, bottom), (left, right))), colour in zip(boxes, colours, strict=True):
        corner = (left - 0.5, top - 0.5)
        size = (right - left + 1, bottom - top + 1)
        axes.add_patch(Rectangle(corner, *size, fill=False, color=colour, linewidth=1.6))
    _limits(axes, field, [box for _, box in boxes])
    tops = [box[0][0] - 0.5 for _, box in boxes]
    rights = [box[1][1] + 0.5 for _, box in boxes]
    _label_beside(axes, boxes, tops, rights, colours)
    axes.set_aspect("equal")
    axes.set_xlabel("column of the image")
    axes.set_ylabel("row of the image")
    axes.tick_params(labelsize=SMALL)
    axes.spines[:].set_visible(False)


def _limits(axes: "Axes", field: ReceptiveField, boxes: Sequence[Box]) -> None:
    """Show the image and as much of its padding as is seen."""
    spans = []
    for number, axis in enumerate(field.axes):
        low = min([0, *(box[number][0] for box in boxes)])
        high = max([axis.length - 1, *(box[number][1] for box in boxes)])
        spans.append((low - 1, high + 1))
    axes.set_ylim(spans[0][1] + 0.5, spans[0][0] - 0.5)
    axes.set_xlim(spans[1][0] - 0.5, spans[1][1] + 0.5)


def _label_beside(
    axes: "Axes",
    boxes: Sequence[tuple[LayerField, Box]],
    tops: Sequence[float],
    rights: Sequence[float],
    colours: Sequence[Any],
) -> None:
    """Write the size of each box to the right of the picture, with a line to its corner."""
    if not boxes:
        return
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    gap = abs(top - bottom) / 13
    order = sorted(range(len(boxes)), key=lambda i: (tops[i], -i))
    places = spread([tops[i] for i in order], gap=gap)
    for i, place in zip(order, places, strict=True):
        row, box = boxes[i]
        size = " x ".join(map(str, dict.fromkeys(_sides(box))))
        axes.annotate(
            f"{size}  {row.path or row.op}",
            (rights[i], tops[i]),
            xytext=(right + 0.03 * abs(right - left), place),
            fontsize=SMALL - 1,
            color=colours[i],
            va="center",
            annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": colours[i], "linewidth": 0.6},
        )


def _draw_intervals(
    axes: "Axes",
    field: ReceptiveField,
    rows: Sequence[LayerField],
    picture: NDArray[Any] | None,
) -> None:
    """Draw, for images of one axis, the intervals one above the other."""
    shown = _distinct(rows, 2 * _MOST_LABELS)
    for place, (_, ((low, high),)) in enumerate(shown):
        axes.barh(place, high - low + 1, left=low - 0.5, height=0.7, color=BLUE)
        axes.text(high + 1, place, f"{high - low + 1}", va="center", fontsize=SMALL - 1)
    axes.set_yticks(range(len(shown)), [row.path or row.op for row, _ in shown], parse_math=False)
    axes.axvspan(-0.5, field.axes[0].length - 0.5, color="0.93", zorder=0)
    axes.set_xlabel("position of the input (grey: inside)")
    axes.invert_yaxis()
    axes.tick_params(labelsize=SMALL)
    axes.spines[["top", "right"]].set_visible(False)


def _draw_sizes(axes: "Axes", field: ReceptiveField, rows: Sequence[LayerField]) -> None:
    """Draw size against layer, the size of the stage, and the length of the image."""
    where = range(len(rows))
    ends = []
    for number, (axis, colour) in enumerate(zip(field.axes, (BLUE, ORANGE), strict=False)):
        sizes = [row.axes[number].size for row in rows]
        same = number > 0 and sizes == [row.axes[0].size for row in rows]
        if same and axis.length == field.axes[0].length:
            break
        axes.plot(where, sizes, color=colour, marker="o", markersize=3.5, linewidth=1.6)
        name = "size" if len(field.axes) == 1 or _alike(rows) else f"size, axis {number}"
        if sizes:
            ends.append(End(len(rows) - 1, sizes[-1], name, colour))
    stages = [_stage_size(row.axes[0]) for row in rows]
    if any(row.op.startswith(("max_pool", "avg_pool")) for row in rows):
        axes.plot(where, stages, color=VERMILION, linewidth=1, linestyle="--")
        last = [i for i, size in enumerate(stages) if np.isfinite(size)]
        if last:
            ends.append(End(last[-1], stages[last[-1]], "since the last pool", VERMILION))
    length = field.axes[0].length
    axes.hlines(length, 0, max(len(rows) - 1, 1), color=GREY, linewidth=0.9, linestyle=":")
    axes.annotate(
        f"the image: {length}",
        (0, length),
        xytext=(0, 3),
        textcoords="offset points",
        fontsize=SMALL - 1,
        color=GREY,
        parse_math=False,
    )
    _name_layers(axes, rows)
    axes.set_ylim(0, None)
    axes.set_ylabel("receptive field (positions)")
    tidy(axes)
    axes.tick_params(axis="x", labelsize=SMALL - 1.5)
    label_ends(axes, ends, height=3.0)


def _alike(rows: Sequence[LayerField]) -> bool:
    return all(len({axis.size for axis in row.axes}) == 1 for row in rows)


def _stage_size(axis: Axis) -> float:
    return float("nan") if axis.stage is None else float(axis.stage.size)


def _name_layers(axes: "Axes", rows: Sequence[LayerField]) -> None:
    """Name the layers below the axis: all, or as many as have room."""
    every = max(1, -(-len(rows) // 30))
    shown = range(0, len(rows), every)
    names = [rows[i].path or rows[i].op for i in shown]
    axes.set_xticks(list(shown), names, rotation=90, parse_math=False)


def _shades(count: int) -> list[Any]:
    """Return colours from dark to light that stay apart in grey too."""
    import matplotlib

    return [matplotlib.colormaps["viridis"](x) for x in np.linspace(0.0, 0.88, max(count, 1))]


def effective_field(field: EffectiveField) -> "Figure":
    """Draw how much each position of the image moves a unit, and the field it can see.

    The colour is the root of the share: influence falls off so fast that little else than the
    middle would show.

    Args:
        field: Of a network on images of one or two axes.

    Raises:
        InvalidInputError: If the image has three axes.

    Examples:
        >>> from constrained_cnn import effective_receptive_field, models
        >>> field = effective_receptive_field(models.mnist_12k(), (1, 28, 28), samples=2)
        >>> effective_field(field).axes[0].get_xlabel()
        'column of the image'
    """
    if not isinstance(field, EffectiveField):
        raise InvalidInputError(f"field={type(field).__name__}: must be an EffectiveField")
    if field.map.ndim > 2:
        raise InvalidInputError(
            f"field: is of images of {field.map.ndim} axes; only one and two can be drawn"
        )
    figure = new_figure(6.4, 5.0 if field.map.ndim == 2 else 3.6)
    axes = figure.add_subplot()
    (_draw_map if field.map.ndim == 2 else _draw_curve)(axes, field)
    axes.set_title(f"What moves a unit of {field.layer}", fontsize=10.5, parse_math=False)
    axes.tick_params(labelsize=SMALL)
    return figure


def _draw_map(axes: "Axes", field: EffectiveField) -> None:
    from matplotlib.patches import Rectangle

    shown = axes.imshow(np.sqrt(field.map / field.map.max()), cmap="magma", vmin=0, vmax=1)
    bar = axes.figure.colorbar(shown, ax=axes, shrink=0.85)
    bar.set_label("root of the share, the largest being 1", fontsize=SMALL)
    bar.ax.tick_params(labelsize=SMALL)
    side = field.size(0.95)
    middle = [(centre - side / 2, centre + side / 2 - 1) for centre in field.centre]
    middle = [(low + 0.5, high + 0.5) for low, high in middle]
    can = [
        (0, length - 1) if span is None else span
        for span, length in zip(field.intervals, field.map.shape, strict=True)
    ]
    boxes = ((can, "white", f"can see: {_said(can)}"), (middle, ORANGE, f"95 %: {side} x {side}"))
    for box, colour, text in boxes:
        (top, bottom), (left, right) = box
        corner = (left - 0.5, top - 0.5)
        size = (right - left + 1, bottom - top + 1)
        patch = Rectangle(corner, *size, fill=False, color=colour, linewidth=1.6, label=text)
        axes.add_patch(patch)
    axes.set_xlim(-0.5, field.map.shape[1] - 0.5)
    axes.set_ylim(field.map.shape[0] - 0.5, -0.5)
    legend = axes.legend(loc="lower left", fontsize=SMALL - 1, facecolor="0.15", framealpha=0.9)
    for word in legend.get_texts():
        word.set_color("white")
    axes.set_xlabel("column of the image")
    axes.set_ylabel("row of the image")


def _said(box: Sequence[tuple[float, float]]) -> str:
    return " x ".join(f"{high - low + 1:.0f}" for low, high in box)


def _draw_curve(axes: "Axes", field: EffectiveField) -> None:
    side, (centre,), (span,) = field.size(0.95), field.centre, field.intervals
    low, high = (0, len(field.map) - 1) if span is None else span
    axes.axvspan(low - 0.5, high + 0.5, color="0.93", label=f"can see: {high - low + 1}")
    axes.axvspan(
        centre - side / 2, centre + side / 2, color=ORANGE, alpha=0.3, label=f"95 %: {side}"
    )
    axes.plot(100 * field.map, color=BLUE, linewidth=1.6)
    axes.set_xlabel("position of the input")
    axes.set_ylabel("share of the influence (%)")
    axes.legend(fontsize=SMALL, frameon=False)
    tidy(axes)
