"""Figures of results: which classes are mixed up, and how much seeds differ."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from constrained_cnn.errors import InvalidInputError, check_number
from constrained_cnn.plots._frame import (
    BLUE,
    GREY,
    SMALL,
    VERMILION,
    End,
    label_ends,
    new_figure,
    tidy,
)
from constrained_cnn.plots._labels import class_numbers, to_array
from constrained_cnn.study import Sample

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["confusion", "seeds"]


def confusion(targets: Any, predictions: Any, classes: Sequence[str]) -> "Figure":
    """Draw the confusion matrix: how often each class was taken for each other.

    Errors alone are coloured, by their share of the true class: beside 99 % on the diagonal any
    error would look like none. Empty cells are zero.

    Args:
        targets: The true class numbers, (N,).
        predictions: The predicted class numbers, (N,).
        classes: The class names, by class number.

    Returns:
        A figure with true classes as rows, predicted ones as columns and counts in the cells.

    Raises:
        InvalidInputError: If nothing is given, the lengths differ, a class number is out of
            range, or there are fewer than two classes.

    Examples:
        >>> confusion([0, 1, 1], [0, 1, 0], ("cat", "dog")).axes[0].get_title()
        '1 of 3 wrong (accuracy 66.67 %)'
    """
    from sklearn.metrics import confusion_matrix

    if len(classes) < 2:
        raise InvalidInputError(f"classes={tuple(classes)}: must be two or more")
    count = to_array(targets).size
    if count == 0:
        raise InvalidInputError("targets: empty: must hold at least one class number")
    truth = class_numbers("targets", targets, classes=len(classes), count=count)
    answer = class_numbers("predictions", predictions, classes=len(classes), count=count)
    counts = confusion_matrix(truth, answer, labels=range(len(classes)))

    # Wide enough for the largest count and the longest class name.
    cell = max(0.42, 0.16 + 0.08 * len(str(counts.max())))
    side = 1.2 + cell * len(classes) + 0.07 * max(map(len, classes))
    figure = new_figure(max(4.0, side + 0.7), max(3.2, side))
    axes = figure.add_subplot()
    _draw_matrix(axes, counts)
    ticks = range(len(classes))
    upright = max(map(len, classes)) > 3
    axes.set_xticks(ticks, classes, rotation=90 if upright else 0, parse_math=False)
    axes.set_yticks(ticks, classes, parse_math=False)
    axes.tick_params(length=0, labelsize=SMALL)
    axes.spines[:].set_visible(False)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    wrong = count - int(np.trace(counts))
    accuracy = 100 * (count - wrong) / count
    axes.set_title(f"{wrong:,} of {count:,} wrong (accuracy {accuracy:.2f} %)", fontsize=SMALL + 2)
    return figure


def seeds(sample: Sample, *, reference: float | None = None) -> "Figure":
    """Draw the result of every seed, their mean, and its 95 % interval.

    Args:
        sample: The results.
        reference: A value to compare with, drawn as a line, with the number of runs at or above
            it; in the unit of the sample.

    Returns:
        A figure of one axes with one dot a seed.

    Raises:
        InvalidInputError: If ``sample`` is no Sample, or ``reference`` not a finite number.

    Examples:
        >>> figure = seeds(Sample((99.41, 99.52, 99.46)), reference=99.4)
        >>> figure.axes[0].get_ylabel()
        'accuracy (%)'
    """
    if not isinstance(sample, Sample):
        raise InvalidInputError(f"sample={sample!r}: must be a study.Sample of the results")
    figure = new_figure(6.4, 3.4)
    axes = figure.add_subplot()
    tidy(axes)
    positions = np.arange(sample.n)
    low, high = sample.interval().low, sample.interval().high
    right = sample.n - 0.5
    if math.isfinite(low):
        axes.axhspan(low, high, color=BLUE, alpha=0.18, linewidth=0)
    axes.axhline(sample.mean, color=BLUE, linewidth=1.5)
    axes.plot(positions, sample.values, "o", color=GREY, markersize=5)
    ends = [End(right, sample.mean, "mean", BLUE)]
    if reference is not None:
        reference = check_number("reference", reference)
        share = sample.share(reference)
        axes.axhline(reference, color=VERMILION, linewidth=1.5, linestyle="--")
        text = f"≥ {reference:g}: {share.count} of {share.n}"
        ends.append(End(right, reference, text, VERMILION))
    axes.set_xlim(-0.5, right)
    step = math.ceil(sample.n / 20)
    names = sample.seeds if sample.seeds is not None else range(1, sample.n + 1)
    axes.set_xticks(positions[::step], list(map(str, names))[::step])
    axes.set_xlabel("run" if sample.seeds is None else "seed")
    label = f"{sample.name} ({sample.unit})" if sample.unit else sample.name
    axes.set_ylabel(label, parse_math=False)
    axes.set_title(str(sample).split("\n", 1)[1], fontsize=SMALL + 1, loc="left", parse_math=False)
    label_ends(axes, ends, height=2.4)
    return figure


def _draw_matrix(axes: "Axes", counts: NDArray[np.int64]) -> None:
    """Draw counts (classes, classes) with errors coloured by their share of the row."""
    from matplotlib import colormaps

    share = 100 * counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    np.fill_diagonal(share, np.nan)
    largest = float(np.nanmax(share))
    # The diagonal is grey (NaN), and no error at all is white: it lies under the least of them.
    colours = colormaps["Oranges"].with_extremes(bad="0.9", under="white")
    image = axes.imshow(share, cmap=colours, vmin=1e-6, vmax=largest or 1.0)
    if largest:
        bar = axes.figure.colorbar(image, ax=axes, shrink=0.6, pad=0.02)
        bar.set_label("errors, % of true class", fontsize=SMALL)
        bar.ax.tick_params(labelsize=SMALL)
        bar.outline.set_visible(False)
    # A faint rule between cells leads the eye from a name to its row.
    edges = np.arange(len(counts) + 1) - 0.5
    axes.set_xticks(edges, minor=True)
    axes.set_yticks(edges, minor=True)
    axes.grid(which="minor", color="0.85", linewidth=0.6)
    axes.tick_params(which="minor", length=0)
    for (row, column), count in np.ndenumerate(counts):
        if count:
            dark = row != column and share[row, column] > 0.6 * largest
            axes.text(
                column,
                row,
                str(count),
                ha="center",
                va="center",
                fontsize=SMALL,
                color="white" if dark else "0.15",
            )
