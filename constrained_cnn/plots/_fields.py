"""Figures of what units see: a receptive field that grows over the image, and how much is used."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from constrained_cnn.errors import InvalidInputError
from constrained_cnn.plots._boxes import Box, box_patch, draw_seen, names_of
from constrained_cnn.plots._frame import (
    BLUE,
    GREY,
    ORANGE,
    SMALL,
    VERMILION,
    End,
    label_ends,
    new_figure,
    tidy,
)
from constrained_cnn.proof import EffectiveField
from constrained_cnn.receptive_field import Axis, LayerField, ReceptiveField

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def receptive_field_growth(field: ReceptiveField, *, image: Any = None) -> "Figure":
    """Draw how the receptive field of the middle unit grows over the image, layer by layer.

    Left the fields as nested boxes over the image, those of the padding outside it; right their
    size at the layers that see more than what they read, or slide a window of several taps.

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
    rows = [row for row in field.layers if row.changes and not row.problem]
    placed = [row for row in rows if not _is_global(_without_gates(row))]
    growing = [_without_gates(row) for row in _growing(placed) or placed[:1]]
    longest = max(map(len, names_of(growing)), default=0)
    figure = new_figure(9.0 + 0.05 * longest, 4.0 + 0.045 * longest)
    left, right = figure.subplots(1, 2, width_ratios=[1, 1.25])
    draw_seen(left, field, growing, picture)
    _draw_sizes(right, field, growing)
    whole = "image" if len(field.axes) == 2 else "input"
    words = f"What a unit of {field.model} sees"
    words += ", gates left out" if any(map(_is_global, placed)) else ""
    seen = field.first_to_see_all
    words += f"\nfirst to see the whole {whole}: {seen}" if seen else ""
    figure.suptitle(words, fontsize=11, parse_math=False)
    return figure


def _is_global(row: LayerField) -> bool:
    return any(axis.is_global for axis in row.axes)


def _without_gates(row: LayerField) -> LayerField:
    """Return a layer's field as if gates read nothing, where they alone make it global."""
    axes = tuple(
        replace(axis, field=axis.local) if axis.is_global and axis.units else axis
        for axis in row.axes
    )
    return replace(row, axes=axes)


def _growing(rows: Sequence[LayerField]) -> list[LayerField]:
    """Return the layers that see other than what they read, or slide a window of several taps.

    After a gate it is not known by how much a layer's field grows, gates left out: there, those
    that see more than every layer before.
    """
    found = []
    most = [0] * len(rows[0].axes) if rows else []
    for row in rows:
        sizes = [axis.size for axis in _without_gates(row).axes]
        slides = any(window is not None and window.kernel > 1 for _, window in row.windows)
        grows = any(
            size > before if more is None else more != 0
            for size, before, more in zip(sizes, most, row.growth, strict=True)
        )
        if slides or grows:
            found.append(row)
        most = list(map(max, most, sizes))
    return found


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


def _draw_sizes(axes: "Axes", field: ReceptiveField, rows: Sequence[LayerField]) -> None:
    """Draw size against layer, the size of the stage, and the lengths of the image."""
    numbers, last = range(len(field.axes)), max(len(rows) - 1, 1)
    lines = [[row.axes[number].size for row in rows] for number in numbers]
    differs = any(len(set(axis.sizes)) > 1 for row in rows for axis in row.axes)
    ends = []
    for name, sizes, colour in _told_apart("largest size" if differs else "size", lines):
        marker = "o" if len(rows) <= 60 else ""
        axes.plot(sizes, color=colour, marker=marker, markersize=3.5, linewidth=1.6)
        ends += [End(len(rows) - 1, sizes[-1], name, colour)] if rows else []
    ends += _draw_stages(axes, rows)
    whole = "the image" if len(numbers) == 2 else "the input"
    for name, length, colour in _told_apart(whole, [axis.length for axis in field.axes]):
        shade = GREY if name == whole else colour
        axes.hlines(length, 0, last, color=shade, linewidth=1.1, linestyle=":")
        ends.append(End(last, length, f"{name}: {length}", shade))
    _name_layers(axes, rows)
    axes.set_ylim(0, None)
    axes.set_ylabel("receptive field (positions)")
    tidy(axes)
    axes.tick_params(axis="x", labelsize=SMALL - 1.5)
    label_ends(axes, ends, height=2.8)


def _told_apart(what: str, values: Sequence[Any]) -> list[tuple[str, Any, str]]:
    """Return the values of the axes, named and coloured; once where they agree.

    Examples:
        >>> _told_apart("size", [3, 3]), [name for name, *_ in _told_apart("size", [3, 5])]
        ([('size', 3, '#0072B2')], ['size, rows', 'size, columns'])
    """
    if all(value == values[0] for value in values):
        return [(what, values[0], BLUE)]
    names = (f"{what}, rows", f"{what}, columns")
    return list(zip(names, values, (BLUE, ORANGE), strict=True))


def _draw_stages(axes: "Axes", rows: Sequence[LayerField]) -> list[End]:
    """Draw the sizes since the last pool, where there are pools; return the ends of the lines."""
    if not any(row.kind in ("max_pool", "avg_pool") for row in rows):
        return []
    stages = [[_stage_size(axis) for axis in row.axes] for row in rows]
    ends = []
    for name, sizes, _ in _told_apart("since the last pool", list(zip(*stages, strict=True))):
        style = ":" if name.endswith("columns") else "--"
        axes.plot(np.array(sizes, float), color=VERMILION, linewidth=1, linestyle=style)
        there = [i for i, size in enumerate(sizes) if size is not None]
        ends += [End(there[-1], sizes[there[-1]], name, VERMILION)] if there else []
    return ends


def _stage_size(axis: Axis) -> int | None:
    return None if axis.stage is None else axis.stage.size


def _name_layers(axes: "Axes", rows: Sequence[LayerField]) -> None:
    """Name the layers below the axis: all, or as many as have room."""
    every = max(1, -(-len(rows) // 30))
    shown = range(0, len(rows), every)
    names = names_of(rows)
    axes.set_xticks(list(shown), [names[i] for i in shown], rotation=90, parse_math=False)


def effective_field(field: EffectiveField) -> "Figure":
    """Draw how much each position of the image moves a unit, and the field it can see.

    The colours follow the square root of the influence: it falls off so fast that little else than
    the middle would show. The box that holds 95 % of it is :meth:`EffectiveField.size
    <constrained_cnn.proof.EffectiveField.size>`, a square, drawn as far as the unit can see.

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
    rows, columns = field.map.shape if field.map.ndim == 2 else (2, 3)
    figure = new_figure(6.4, 1.4 + 4.2 * min(max(rows / columns, 0.4), 1.4))
    axes = figure.add_subplot()
    (_draw_map if field.map.ndim == 2 else _draw_curve)(axes, field)
    axes.set_title(f"What moves a unit of {field.layer}", fontsize=10.5, parse_math=False)
    axes.tick_params(labelsize=SMALL)
    figure.legend(loc="outside lower center", fontsize=SMALL, frameon=False)
    return figure


def _draw_map(axes: "Axes", field: EffectiveField) -> None:
    from matplotlib.colors import PowerNorm

    strength = 100 * field.map / field.map.max()
    shown = axes.imshow(strength, cmap="Blues", norm=PowerNorm(0.5, 0, 100))
    bar = axes.figure.colorbar(shown, ax=axes, shrink=0.85, ticks=[0, 1, 5, 10, 25, 50, 100])
    bar.set_label("influence, % of the strongest\n(square root scale)", fontsize=SMALL)
    bar.ax.tick_params(labelsize=SMALL)
    # Dashes over a line: where the boxes are one, both are seen.
    for (box, said), colour, dashes in zip(
        (_seen(field), _most(field)), ("black", VERMILION), ("-", (0, (4, 3))), strict=True
    ):
        style = {"edgecolor": colour, "linestyle": dashes, "linewidth": 1.8}
        axes.add_patch(box_patch(box, fill=False, label=said, **style))
    height, width = field.map.shape
    axes.set_xlim(-1, width)
    axes.set_ylim(height, -1)
    axes.set_xlabel("column of the image")
    axes.set_ylabel("row of the image")


def _draw_curve(axes: "Axes", field: EffectiveField) -> None:
    ((low, high),), seen = _seen(field)
    ((first, last),), most = _most(field)
    # One has an edge, the other does not: where they are one, both are seen.
    axes.axvspan(low - 0.5, high + 0.5, facecolor="0.93", edgecolor="black", label=seen)
    axes.axvspan(first - 0.5, last + 0.5, color=ORANGE, alpha=0.35, linewidth=0, label=most)
    axes.plot(100 * field.map, color=BLUE, linewidth=1.6)
    axes.set_xlabel("position of the input")
    axes.set_ylabel("share of the influence (%)")
    tidy(axes)


def _seen(field: EffectiveField) -> tuple[Box, str]:
    """Return what of the image the unit can see, and how to say it."""
    lengths = field.map.shape
    pairs = list(zip(field.intervals, lengths, strict=True))
    spans = tuple((0, length - 1) if span is None else span for span, length in pairs)
    box = tuple(
        (max(low, 0), min(high, length - 1))
        for (low, high), length in zip(spans, lengths, strict=True)
    )
    said = f"can see: {_said(spans)}"
    return box, said if box == spans else f"{said} (in the image: {_said(box)})"


def _most(field: EffectiveField) -> tuple[Box, str]:
    """Return where in what the unit can see 95 % of its influence lies, and how to say it."""
    side = field.size(0.95)
    reach = (side - 1) / 2
    seen, _ = _seen(field)
    box = tuple(
        (max(low, math.ceil(centre - reach)), min(high, math.floor(centre + reach)))
        for (low, high), centre in zip(seen, field.centre, strict=True)
    )
    square = _said([(1, side)] * len(box))
    said = f"95 % of the influence: within {square} around the middle of its field"
    return box, said if _said(box) == square else f"{said} (drawn: {_said(box)})"


def _said(box: Box | Sequence[tuple[int, int]]) -> str:
    return " x ".join(str(high - low + 1) for low, high in box)
