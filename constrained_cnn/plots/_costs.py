"""Figures of what a network costs: parameters and MACs of each layer, memory at each operation."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from constrained_cnn.budget import Budget, Timeline
from constrained_cnn.errors import InvalidInputError
from constrained_cnn.plots._frame import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    SMALL,
    VERMILION,
    End,
    label_ends,
    new_figure,
    tidy,
)
from constrained_cnn.table import say_bytes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MOST_ROWS = 40


def layer_costs(budget: Budget) -> "Figure":
    """Draw the parameters and the MACs of each layer as bars.

    Operations of one module are one row. Where there are more than 40, modules are put together by
    the first parts of their paths.

    Args:
        budget: What the network costs.

    Raises:
        InvalidInputError: If nothing in it has parameters or MACs.

    Examples:
        >>> from constrained_cnn import measure_budget, models
        >>> figure = layer_costs(measure_budget(models.mnist_12k(), (1, 28, 28)))
        >>> figure.axes[0].get_title(), figure.axes[1].get_title()
        ('12,000 parameters', '3,774,276 MACs')
    """
    if not isinstance(budget, Budget):
        raise InvalidInputError(f"budget={type(budget).__name__}: must be a Budget")
    rows = _grouped(budget)
    if not rows:
        raise InvalidInputError(f"budget: nothing in {budget.model} has parameters or MACs")
    longest = max(map(len, rows))
    figure = new_figure(6.6 + 0.07 * longest, max(2.4, 1.2 + 0.23 * len(rows)))
    left, right = figure.subplots(1, 2, sharey=True)
    totals = (budget.parameters.total, budget.macs)
    words = ("parameters", "MACs")
    for i, (axes, colour) in enumerate(((left, BLUE), (right, ORANGE))):
        values = [row[i] for row in rows.values()]
        _draw_bars(axes, values, totals[i], colour)
        axes.set_title(f"{totals[i]:,} {words[i]}", fontsize=10.5)
    left.set_yticks(range(len(rows)), list(rows), parse_math=False)
    left.set_ylim(len(rows) - 0.4, -0.6)
    return figure


def _draw_bars(axes: "Axes", values: Sequence[int], total: int, colour: str) -> None:
    axes.barh(range(len(values)), values, color=colour, height=0.72)
    largest = max(max(values), 1)
    for place, value in enumerate(values):
        if value:
            share = f"{100 * value / total:.1f} %" if total else ""
            axes.text(value + 0.015 * largest, place, share, va="center", fontsize=SMALL - 1)
    axes.set_xlim(0, 1.17 * largest)
    axes.xaxis.set_major_formatter(lambda value, _: _short(value))
    axes.locator_params(axis="x", nbins=4)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=SMALL)
    axes.tick_params(axis="y", length=0)


def _short(value: float) -> str:
    """Return a number of a scale: 12 k, 3.5 M.

    Examples:
        >>> _short(0), _short(12_000), _short(3_500_000), _short(4e9)
        ('0', '12 k', '3.5 M', '4 G')
    """
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:g} {unit}"
    return f"{value:g}"


def _grouped(budget: Budget) -> dict[str, tuple[int, int]]:
    """Return parameters and MACs by module, or by the first parts of the path if they are many."""
    depth = max((layer.path.count(".") + 1 for layer in budget.layers), default=1)
    while True:
        rows: dict[str, tuple[int, int]] = {}
        for layer in budget.layers:
            name = ".".join(layer.path.split(".")[:depth]) or layer.op or layer.name
            macs = layer.work.macs if layer.work else 0
            if layer.parameters or macs:
                parameters, before = rows.get(name, (0, 0))
                rows[name] = (parameters + layer.parameters, before + macs)
        if len(rows) <= _MOST_ROWS or depth == 1:
            return rows
        depth -= 1


def memory_timeline(memory: Timeline | Budget) -> "Figure":
    """Draw the bytes of activations that live while each operation runs, and mark the peak.

    Args:
        memory: A timeline; or a budget, whose other accountings are drawn as thin lines.

    Raises:
        InvalidInputError: If it is neither, or nothing ran.

    Examples:
        >>> from constrained_cnn import measure_budget, models
        >>> figure = memory_timeline(measure_budget(models.mnist_12k(), (1, 28, 28)))
        >>> figure.axes[0].get_ylabel()
        'live bytes'
    """
    if isinstance(memory, Budget):
        main, *others = memory.memory.peaks
    elif isinstance(memory, Timeline):
        main, others = memory, []
    else:
        raise InvalidInputError(f"memory={type(memory).__name__}: must be a Timeline or a Budget")
    if not main.layers:
        raise InvalidInputError("memory: no operation ran")
    figure = new_figure(9.0, 4.2)
    axes = figure.add_subplot()
    where = range(len(main.live))
    axes.fill_between(where, main.live, step="mid", color=BLUE, alpha=0.22, linewidth=0)
    axes.step(where, main.live, where="mid", color=BLUE, linewidth=1.6)
    ends = [End(len(main.live) - 1, main.live[-1], main.name, BLUE)]
    for other, colour in zip(_told_apart(main, others), (GREEN, ORANGE, GREY), strict=False):
        axes.step(where, other.live, where="mid", color=colour, linewidth=1.0)
        ends.append(End(len(other.live) - 1, other.live[-1], other.name, colour))
    _mark_peak(axes, main)
    _name_operations(axes, main.layers)
    axes.set_ylim(0, 1.16 * max(main.peak, 1))
    axes.yaxis.set_major_formatter(lambda value, _: say_bytes(round(value)))
    axes.set_ylabel("live bytes")
    tidy(axes)
    axes.tick_params(axis="x", labelsize=SMALL - 2)
    label_ends(axes, ends if len(ends) > 1 else [], height=2.6)
    return figure


def _told_apart(main: Timeline, others: Sequence[Timeline]) -> list[Timeline]:
    """Return the other accountings of the same elements whose lines are not drawn already.

    None of a long network: the lines would run into one another.
    """
    found: list[Timeline] = []
    if len(main.layers) > 80:
        return found
    for other in others:
        drawn = {main.live, *(one.live for one in found)}
        if other.elements == main.elements and other.live not in drawn:
            found.append(other)
    return found


def _mark_peak(axes: "Axes", timeline: Timeline) -> None:
    at = timeline.live.index(timeline.peak)
    axes.plot([at], [timeline.peak], color=VERMILION, marker="o", markersize=6)
    right = at < 0.6 * len(timeline.live)
    axes.annotate(
        f"{say_bytes(timeline.peak)} at {timeline.peak_layer}",
        (at, timeline.peak),
        xytext=(8 if right else -8, 8),
        textcoords="offset points",
        ha="left" if right else "right",
        color=VERMILION,
        fontsize=SMALL,
        parse_math=False,
    )


def _name_operations(axes: "Axes", names: Sequence[str]) -> None:
    every = max(1, -(-len(names) // 45))
    shown = range(0, len(names), every)
    axes.set_xticks(list(shown), [names[i] for i in shown], rotation=90, parse_math=False)
