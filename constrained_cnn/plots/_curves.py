"""Loss and accuracy, epoch by epoch, of one run or of several side by side."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from constrained_cnn.errors import InvalidInputError, check_integer
from constrained_cnn.plots._frame import (
    BLUE,
    GREEN,
    SMALL,
    VERMILION,
    End,
    label_ends,
    new_figure,
    tidy,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["compare", "curves"]


class _Series(NamedTuple):
    part: str
    label: str
    colour: str
    marker: str


_SERIES = (
    _Series("train", "train", BLUE, "o"),
    _Series("validation", "validation", VERMILION, "s"),
    _Series("test", "test (read every epoch: optimistic if chosen on)", GREEN, "^"),
)
_QUANTITIES = ("loss", "accuracy")
_Rows = Sequence[Mapping[str, Any]]


def curves(history: Any, *, title: str | None = None) -> "Figure":
    """Draw loss and accuracy of one run over its epochs, with their last values.

    Args:
        history: One mapping an epoch with ``epoch`` and any of ``train_``, ``validation_`` and
            ``test_`` with ``loss`` and ``accuracy`` (percent), None where it was not measured; or
            what holds such rows: a history (``.rows``) or a run record (``.history``).
        title: A title over both panels.

    Returns:
        A figure of one axes for the loss, on a log scale where it is positive, and one for the
        accuracy, on the log scale of the error where it spans much of it; a quantity that was
        never measured has none.

    Raises:
        InvalidInputError: If there is no row, a row has no epoch, nothing was measured, or a
            value is no number or no percentage.

    Examples:
        >>> rows = [{"epoch": 1, "train_loss": 0.4}, {"epoch": 2, "train_loss": 0.2}]
        >>> [axes.get_ylabel() for axes in curves(rows).axes]
        ['loss (log scale)']
    """
    rows = _rows("history", history)
    quantities = _measured("history", [rows])
    figure = new_figure(4.6 * len(quantities), 3.4)
    if title is not None:
        figure.suptitle(title, parse_math=False)
    panels = figure.subplots(1, len(quantities), squeeze=False)[0]
    for quantity, axes in zip(quantities, panels, strict=True):
        _panel([axes], [rows], quantity, height=2.4)
        axes.set_xlabel("epoch")
    _legend(figure)
    return figure


def compare(runs: Mapping[str, Any]) -> "Figure":
    """Draw loss and accuracy of several runs side by side, on the same scales.

    Args:
        runs: Two or more histories, each in a form :func:`curves` takes, by the name to show.

    Returns:
        A figure with one column a run and one row a quantity.

    Raises:
        InvalidInputError: If there are fewer than two runs, or a history is not a valid one.

    Examples:
        >>> one = [{"epoch": 1, "train_loss": 0.4, "train_accuracy": 88.0}]
        >>> two = [{"epoch": 1, "train_loss": 0.5, "train_accuracy": 86.0}]
        >>> len(compare({"ReLU-BN": one, "BN-ReLU": two}).axes)
        4
    """
    if len(runs) < 2:
        raise InvalidInputError(f"runs: {len(runs)} given: must be two or more; curves draws one")
    every = [_rows(f"runs[{name!r}]", history) for name, history in runs.items()]
    for name, rows in zip(runs, every, strict=True):
        _measured(f"runs[{name!r}]", [rows])
    quantities = _measured("runs", every)
    figure = new_figure(1 + 3.4 * len(runs), 0.8 + 2.5 * len(quantities))
    grid = figure.subplots(len(quantities), len(runs), sharex=True, sharey="row", squeeze=False)
    for quantity, line in zip(quantities, grid, strict=True):
        _panel(list(line), every, quantity, height=2.0)
    for axes, name in zip(grid[0], runs, strict=True):
        axes.set_title(name, parse_math=False)
    for axes in grid[-1]:
        axes.set_xlabel("epoch")
    _legend(figure)
    return figure


def _rows(name: str, history: Any) -> _Rows:
    """Return the rows of any form of history, checked."""
    history = getattr(history, "history", history)
    if hasattr(history, "to_dicts"):
        history = history.to_dicts()
    history = getattr(history, "rows", history)
    rows = list(history) if isinstance(history, Iterable) else []
    if not rows:
        raise InvalidInputError(f"{name}: holds no epoch: there is nothing to draw")
    for i, row in enumerate(rows):
        if not isinstance(row, Mapping):
            raise InvalidInputError(f"{name}[{i}]={row!r}: must be a mapping, one an epoch")
        check_integer(f"{name}[{i}]['epoch']", row.get("epoch"))
    return rows


def _measured(name: str, runs: Sequence[_Rows]) -> list[str]:
    """Return the quantities that any run measured."""
    found = [q for q in _QUANTITIES if any(_points(rows, s, q) for rows in runs for s in _SERIES)]
    if not found:
        raise InvalidInputError(
            f"{name}: no row has a loss or an accuracy: must have one, as 'train_loss'"
        )
    return found


def _points(rows: _Rows, series: _Series, quantity: str) -> list[tuple[int, float]]:
    """Return the epochs in which a quantity was measured, with its values."""
    key = f"{series.part}_{quantity}"
    points = []
    for row in rows:
        value = row.get(key)
        if value is None:
            continue
        # NaN and infinity are let through: they are what a diverged run measured.
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise InvalidInputError(
                f"history: {key}={value!r} in epoch {row['epoch']}: must be a number or None"
            )
        if quantity == "accuracy" and (value < 0 or value > 100):
            raise InvalidInputError(
                f"history: {key}={value!r} in epoch {row['epoch']}: must be in percent, 0 to 100"
            )
        points.append((int(row["epoch"]), float(value)))
    return points


def _panel(line: Sequence["Axes"], runs: Sequence[_Rows], quantity: str, *, height: float) -> None:
    """Draw one quantity of each run into its axes, which share their limits."""
    from matplotlib.ticker import MaxNLocator

    ends = []
    for axes, rows in zip(line, runs, strict=True):
        drawn = [(s, _points(rows, s, quantity)) for s in _SERIES]
        ends.append([_draw(axes, s, points, quantity) for s, points in drawn if points])
        tidy(axes)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    values = [y for rows in runs for s in _SERIES for _, y in _points(rows, s, quantity)]
    scale = _scale_loss if quantity == "loss" else _scale_accuracy
    scale(line[0], [value for value in values if math.isfinite(value)])
    # Only now are the limits final, which the labels must know to keep apart.
    for axes, labels in zip(line, ends, strict=True):
        label_ends(axes, [end for end in labels if end is not None], height=height)


def _draw(
    axes: "Axes", series: _Series, points: Sequence[tuple[int, float]], quantity: str
) -> End | None:
    """Draw one line and return its end, or None if no value of it is finite."""
    epochs, values = zip(*points, strict=True)
    axes.plot(
        epochs,
        values,
        color=series.colour,
        label=series.label,
        linewidth=1.5,
        marker=series.marker,
        markersize=4,
        markevery=max(1, len(points) // 20),
    )
    finite = [(x, y) for x, y in points if math.isfinite(y)]
    last = values[-1]
    text = f"{last:.2f} %" if quantity == "accuracy" else f"{last:.4f}"
    return End(*finite[-1], text, series.colour) if finite else None


def _scale_loss(axes: "Axes", values: Sequence[float]) -> None:
    """Put the loss on a log scale, unless it reaches zero or below."""
    from matplotlib.ticker import LogLocator, NullFormatter

    axes.set_ylabel("loss")
    if values and min(values) > 0:
        axes.set_ylabel("loss (log scale)")
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter(NullFormatter())


def _scale_accuracy(axes: "Axes", values: Sequence[float]) -> None:
    """Stretch the accuracy towards 100 % where it spans at least three of the ticks below.

    From 86 to 99.4 % a linear scale gives all the room to the first epoch, and the tenths of a
    percent that matter become one line. The log of the error shows both.
    """
    axes.set_ylabel("accuracy, %")
    ticks = [0, 50, 80, 90, 95, 98, 99, 99.5, 99.8, 100]
    spanned = [tick for tick in ticks if values and min(values) <= tick <= max(values)]
    if len(spanned) < 3:
        return
    # One more above them, so that the best values lie between two ticks.
    spanned += [tick for tick in ticks if tick > spanned[-1]][:1]
    # The offset keeps 100 % at a finite place, a little above 99.9.
    top = 100.05
    axes.set_yscale("function", functions=(lambda a: -np.log10(top - a), lambda y: top - 10.0**-y))
    axes.set_yticks(spanned, [f"{tick:g}" for tick in spanned])
    axes.set_ylabel("accuracy, % (log scale)")


def _legend(figure: "Figure") -> None:
    """Name each series once, under all panels."""
    named: dict[str, Any] = {}
    for axes in figure.axes:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            named.setdefault(label, handle)
    order = [series.label for series in _SERIES if series.label in named]
    figure.legend(
        [named[label] for label in order],
        order,
        loc="outside lower center",
        ncols=len(order),
        frameon=False,
        fontsize=SMALL,
    )
