"""What every figure shares: colours, frame, labels at the ends of lines, and its file."""

import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from constrained_cnn.errors import InvalidInputError
from constrained_cnn.record import write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Told apart with any colour vision: Okabe and Ito, "Color Universal Design", 2008.
BLUE, ORANGE, GREEN, VERMILION = "#0072B2", "#E69F00", "#009E73", "#D55E00"
GREY = "0.35"
SMALL = 9.0

_FORMATS = ("png", "svg", "pdf")


class End(NamedTuple):
    """The end of a line, and what to write beside it."""

    x: float
    y: float
    text: str
    colour: str


def new_figure(width: float, height: float) -> "Figure":
    """Return an empty figure of ``width`` by ``height`` inches that pyplot does not know."""
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    return Figure(figsize=(width, height), layout=ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.08))


def tidy(axes: "Axes") -> None:
    """Leave of the frame what is read: two spines and a faint horizontal grid."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="0.9", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=SMALL)


def label_ends(axes: "Axes", ends: Sequence[End], *, height: float) -> None:
    """Write each text to the right of its line's end, moved up or down so that none overlap.

    Args:
        axes: Where the lines are; their limits must be final.
        ends: The ends, in data coordinates.
        height: About how tall the axes will be, in inches.
    """
    if not ends:
        return
    points = 72 * height
    # Reading the limits makes them follow the lines; the transforms alone would not.
    axes.get_xlim(), axes.get_ylim()
    to_axes = axes.transData + axes.transAxes.inverted()
    placed = sorted((float(to_axes.transform((end.x, end.y))[1]) * points, end) for end in ends)
    heights = [position for position, _ in placed]
    for (position, end), moved in zip(placed, spread(heights, gap=1.25 * SMALL), strict=True):
        axes.annotate(
            end.text,
            (end.x, end.y),
            xytext=(7, moved - position),
            textcoords="offset points",
            color=end.colour,
            fontsize=SMALL,
            va="center",
            annotation_clip=False,
        )


def spread(positions: Sequence[float], *, gap: float) -> list[float]:
    """Move ascending positions at least ``gap`` apart, keeping their order and their mean.

    Examples:
        >>> spread([0.0, 10.0, 10.0], gap=6.0)
        [-2.0, 8.0, 14.0]
    """
    moved: list[float] = []
    for position in positions:
        moved.append(max(position, moved[-1] + gap) if moved else position)
    shift = (sum(moved) - sum(positions)) / len(moved)
    return [position - shift for position in moved]


def save_figure(figure: "Figure", path: str | os.PathLike[str]) -> Path:
    """Write a figure to a file, whole or not at all.

    Args:
        figure: A figure of this module, or any other of matplotlib's.
        path: Where to; the suffix gives the format: ``.png`` (200 dots an inch), ``.svg`` or
            ``.pdf``. Missing folders are made.

    Returns:
        The path written.

    Raises:
        InvalidInputError: If the suffix names none of these formats.
        OutputError: If the path cannot be written; what was there stays.

    Examples:
        >>> save_figure(new_figure(4, 3), "curves.jpg")
        Traceback (most recent call last):
        ...
        constrained_cnn.errors.InvalidInputError: path='curves.jpg': must end in .png, .svg or .pdf
    """
    if not hasattr(figure, "savefig"):
        raise InvalidInputError(f"figure={type(figure).__name__}: must be a figure of matplotlib's")
    if not isinstance(path, str | os.PathLike):
        raise InvalidInputError(f"path={path!r}: must be a path that ends in .png, .svg or .pdf")
    target = Path(path)
    suffix = target.suffix.lower().removeprefix(".")
    if suffix not in _FORMATS:
        raise InvalidInputError(f"path={str(target)!r}: must end in .png, .svg or .pdf")
    content = io.BytesIO()
    figure.savefig(content, format=suffix, dpi=200)
    return write_atomically(target, content.getvalue())
