"""Figures of what a network costs: parameters and MACs of each layer, memory at each operation."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from constrained_cnn.budget import Budget, Memory, Timeline
from constrained_cnn.errors import InvalidInputError
from constrained_cnn.plots._frame import (
    BLUE,
    GREEN,
    ORANGE,
    SMALL,
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
            share = _share(value, total)
            axes.text(value + 0.015 * largest, place, share, va="center", fontsize=SMALL - 1)
    axes.set_xlim(0, 1.17 * largest)
    axes.xaxis.set_major_formatter(lambda value, _: _short(value))
    axes.locator_params(axis="x", nbins=4)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=SMALL)
    axes.tick_params(axis="y", length=0)


def _share(value: int, total: int) -> str:
    """Return a share in per cent; what is there is never said to be nothing.

    Examples:
        >>> _share(1, 3), _share(320, 10**7)
        ('33.3 %', '< 0.1 %')
    """
    per_cent = 100 * value / total
    return f"{per_cent:.1f} %" if per_cent >= 0.1 else "< 0.1 %"


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
        memory: A timeline; or a budget, whose own accounting is filled. Thin lines beside it are
            the same with batch norms folded, where that changes it, and int8, batch norms folded
            and, where that changes it once more, activations fused;
            :meth:`~constrained_cnn.budget.Budget.totals` has every accounting.

    Raises:
        InvalidInputError: If it is neither, or nothing ran.

    Examples:
        >>> from constrained_cnn import measure_budget, models
        >>> figure = memory_timeline(measure_budget(models.mnist_12k(), (1, 28, 28)))
        >>> figure.axes[0].get_ylabel()
        'live bytes'
    """
    if isinstance(memory, Budget):
        main, others = memory.memory.timeline, _most_telling(memory.memory)
    elif isinstance(memory, Timeline):
        main, others = memory, []
    else:
        raise InvalidInputError(f"memory={type(memory).__name__}: must be a Timeline or a Budget")
    if not main.layers:
        raise InvalidInputError("memory: no operation ran")
    shown = range(0, len(main.layers), max(1, -(-len(main.layers) // 45)))
    names = [main.layers[i] for i in shown]
    figure = new_figure(9.0, 3.2 + 0.055 * max(map(len, names)))
    axes = figure.add_subplot()
    _draw_line(axes, main, BLUE, width=1.8 if len(main.layers) <= 80 else 1.1)
    axes.fill_between(
        range(len(main.live)), main.live, step="mid", color=BLUE, alpha=0.18, linewidth=0
    )
    for other in others:
        _draw_line(axes, other, GREEN if other.elements == "int8" else ORANGE, width=1.1)
    axes.set_xticks(list(shown), names, rotation=90, parse_math=False)
    axes.margins(x=0.01)
    axes.set_ylim(0, 1.08 * max(1, *(one.peak for one in (main, *others))))
    axes.yaxis.set_major_formatter(lambda value, _: say_bytes(round(value)))
    axes.set_ylabel("live bytes")
    tidy(axes)
    axes.tick_params(axis="x", labelsize=SMALL - 2)
    _say_peaks(axes)
    return figure


def _most_telling(memory: Memory) -> list[Timeline]:
    """Return what folding batch norms gives, and what int8 and fusing give after that."""
    main, *others = memory.peaks
    found = [
        one for one in others if one.in_place and (one.elements, one.folded) == ("as run", True)
    ]
    plain, fused = memory.unfused_int8_timeline, memory.int8_timeline
    found.append(plain if plain.live == fused.live else fused)
    return [one for one in found if one.live != main.live]


def _draw_line(axes: "Axes", timeline: Timeline, colour: str, *, width: float) -> None:
    """Draw a line below those drawn before, and its peak above all of them."""
    at = timeline.live.index(timeline.peak)
    said = f"{timeline.name}: peak {say_bytes(timeline.peak)} at {timeline.peak_layer}"
    where, depth = range(len(timeline.live)), 2 - 0.1 * len(axes.lines)
    axes.step(where, timeline.live, where="mid", color=colour, linewidth=width, zorder=depth)
    axes.plot(
        [at],
        [timeline.peak],
        color=colour,
        linewidth=width,
        marker="o",
        markersize=5.5,
        zorder=3,
        label=said,
    )


def _say_peaks(axes: "Axes") -> None:
    """Name the lines and their peaks above the axes, where they hide nothing."""
    _, said = axes.get_legend_handles_labels()
    if len(said) == 1:
        axes.set_title(said[0], loc="left", fontsize=10.5, parse_math=False)
        return
    legend = axes.legend(
        loc="lower left", bbox_to_anchor=(0, 1), borderpad=0, fontsize=SMALL, frameon=False
    )
    for text in legend.get_texts():
        text.set_parse_math(False)
