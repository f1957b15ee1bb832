"""What the middle unit sees of the image, layer by layer: nested boxes, or bars on one axis."""

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from constrained_cnn.plots._frame import BLUE, GREY, SMALL, spread
from constrained_cnn.receptive_field import LayerField, ReceptiveField

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.patches import Rectangle

Box = tuple[tuple[int, int], ...]

_MOST_BOXES = 12


class _Tag(NamedTuple):
    """What is written beside a corner of a box."""

    row: float
    column: float
    text: str
    colour: Any


def names_of(rows: Sequence[LayerField]) -> list[str]:
    """Return the path of each layer, with its operation where several have one path."""
    short = [row.path or row.op for row in rows]
    times = Counter(short)
    return [name if times[name] == 1 else row.name for name, row in zip(short, rows, strict=True)]


def draw_seen(
    axes: "Axes", field: ReceptiveField, rows: Sequence[LayerField], picture: NDArray[Any] | None
) -> None:
    """Draw what the middle unit of each layer sees that sees more than those before it."""
    most = _MOST_BOXES if len(field.axes) == 2 else 2 * _MOST_BOXES
    every = _wider(rows)
    kept = np.unique(np.linspace(0, len(every) - 1, most).round().astype(int))
    shown = [every[i] for i in kept] if len(every) > most else every
    if len(field.axes) == 2:
        _draw_boxes(axes, field, shown, picture)
    else:
        _draw_intervals(axes, field, shown)
    if len(shown) < len(every):
        axes.set_title(f"{len(shown)} of {len(every)} fields shown", fontsize=SMALL, color=GREY)
    axes.tick_params(labelsize=SMALL)


def _wider(rows: Sequence[LayerField]) -> list[tuple[str, Box]]:
    """Return the layers whose middle unit sees, along some axis, more than any before."""
    found: list[tuple[str, Box]] = []
    most: tuple[int, ...] = ()
    for name, row in zip(names_of(rows), rows, strict=True):
        box = _middle_box(row)
        if box is None:
            continue
        sides = _sides(box)
        if not most or any(side > before for side, before in zip(sides, most, strict=True)):
            found.append((name, box))
            most = tuple(map(max, zip(sides, most or sides, strict=True)))
    return found


def _middle_box(row: LayerField) -> Box | None:
    """Return what the middle unit of a layer sees."""
    spans = [axis.interval((axis.units or 1) // 2) for axis in row.axes]
    found = [span for span in spans if span is not None]
    return tuple(found) if len(found) == len(spans) else None


def _sides(box: Box) -> tuple[int, ...]:
    return tuple(high - low + 1 for low, high in box)


def _draw_boxes(
    axes: "Axes",
    field: ReceptiveField,
    boxes: Sequence[tuple[str, Box]],
    picture: NDArray[Any] | None,
) -> None:
    height, width = (axis.length for axis in field.axes)
    border = ((0, height - 1), (0, width - 1))
    if picture is None:
        axes.add_patch(box_patch(border, facecolor="0.94", linewidth=0, zorder=0))
    else:
        axes.imshow(picture, cmap="gray_r", interpolation="nearest", alpha=0.55)
    tags = []
    for (name, box), colour in zip(boxes, _shades(len(boxes)), strict=True):
        axes.add_patch(box_patch(box, fill=False, edgecolor=colour, linewidth=1.6))
        (top, _), (_, right) = box
        tags.append(_Tag(top - 0.5, right + 0.5, f"{_said(_sides(box))}  {name}", colour))
    # On top and dashed: boxes of nearly its size would hide it.
    style = {"edgecolor": GREY, "linewidth": 1.3, "linestyle": (0, (4, 2)), "zorder": 3}
    axes.add_patch(box_patch(border, fill=False, **style))
    tags.append(_Tag(-0.5, width - 0.5, f"the image: {_said((height, width))}", GREY))
    _limits(axes, [border, *(box for _, box in boxes)])
    _write_beside(axes, tags)
    axes.set_aspect("equal")
    axes.set_xlabel("column of the image")
    axes.set_ylabel("row of the image")
    axes.spines[:].set_visible(False)


def box_patch(box: Sequence[Sequence[int]], **style: Any) -> "Rectangle":
    """Return the outline of the positions in a box, rows first."""
    from matplotlib.patches import Rectangle

    (top, bottom), (left, right) = box
    return Rectangle((left - 0.5, top - 0.5), right - left + 1, bottom - top + 1, **style)


def _said(sides: Sequence[int]) -> str:
    return " x ".join(map(str, dict.fromkeys(sides)))


def _limits(axes: "Axes", boxes: Sequence[Box]) -> None:
    """Show the image and as much of its padding as is seen."""
    tops, bottoms = zip(*(box[0] for box in boxes), strict=True)
    lefts, rights = zip(*(box[1] for box in boxes), strict=True)
    axes.set_ylim(max(bottoms) + 1.5, min(tops) - 1.5)
    axes.set_xlim(min(lefts) - 1.5, max(rights) + 1.5)


def _write_beside(axes: "Axes", tags: Sequence[_Tag]) -> None:
    """Write the tags to the right of the picture, in the order of their rows, each with a line."""
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    ordered = sorted(tags, key=lambda tag: (tag.row, -tag.column))
    # A line of text is a fifteenth of the longer side, whichever that is.
    gap = max(bottom - top, right - left) / 15
    places = spread([tag.row for tag in ordered], gap=gap)
    down = max(0.0, top - places[0])
    for tag, place in zip(ordered, places, strict=True):
        axes.annotate(
            tag.text,
            (tag.column, tag.row),
            xytext=(right + 0.06 * (right - left), place + down),
            fontsize=SMALL - 1,
            color=tag.colour,
            va="center",
            annotation_clip=False,
            arrowprops={
                "arrowstyle": "-",
                "color": tag.colour,
                "linewidth": 0.6,
                "relpos": (0, 0.5),
                "shrinkA": 1,
                "shrinkB": 0,
            },
            parse_math=False,
        )


def _draw_intervals(
    axes: "Axes", field: ReceptiveField, intervals: Sequence[tuple[str, Box]]
) -> None:
    """Draw, for images of one axis, the intervals one above the other."""
    length = field.axes[0].length
    for place, (_, ((low, high),)) in enumerate(intervals):
        axes.barh(place, high - low + 1, left=low - 0.5, height=0.7, color=BLUE)
        axes.annotate(
            f"{high - low + 1}",
            (high + 0.5, place),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            fontsize=SMALL - 1,
        )
    axes.axvspan(-0.5, length - 0.5, color="0.93", zorder=0)
    for border in (-0.5, length - 0.5):
        axes.axvline(border, color=GREY, linewidth=1.0, linestyle=(0, (4, 2)), zorder=3)
    axes.set_yticks(range(len(intervals)), [name for name, _ in intervals], parse_math=False)
    axes.set_xlabel(f"position of the input (grey: its {length})")
    axes.invert_yaxis()
    axes.spines[["top", "right"]].set_visible(False)


def _shades(count: int) -> list[Any]:
    """Return colours from dark to light that stay apart in grey too."""
    import matplotlib

    return [matplotlib.colormaps["viridis"](x) for x in np.linspace(0.0, 0.82, count)]
