"""Progress in a notebook: one display, updated in place, with curves drawn by hand as SVG."""

import html
import importlib
import math
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from constrained_cnn.table import Table
from constrained_cnn.training._history import EpochRow, format_row, headings

# Each at 3 to 1 or better on white and on #1e1e1e, and the second 1.5 times as light as the first.
COLOURS = ("#2878c8", "#dd7a00")
LAST_EPOCHS = 5
MOST_POINTS = 200  # of one line; a longer one would only make every update larger
MOST_MARKED = 30
MOST_TICKS = 9

WIDTH, HEIGHT = 380, 220
LEFT, RIGHT, TOP, BOTTOM = 46, 300, 28, 184  # of the frame of a panel
LABEL_GAP = 14.0


def in_notebook() -> bool:
    """Return whether this process is the kernel of a notebook.

    IPython is not imported: in a notebook it is there already.
    """
    get_shell = getattr(sys.modules.get("IPython"), "get_ipython", None)
    shell = None if get_shell is None else get_shell()
    kinds = type(shell).__mro__
    # Spyder's console shows no HTML, and of a display only what it was at first.
    if any(kind.__module__.startswith("spyder_kernels") for kind in kinds):
        return False
    is_kernel = any(kind.__name__ == "ZMQInteractiveShell" for kind in kinds)
    return is_kernel or getattr(shell, "kernel", None) is not None


class Notebook:
    """Shows a run as one display: a line that says how far it is, curves, the last epochs.

    Args:
        judged_on: What the set read after every epoch is; None without one.
        rows: The epochs that are done already.
    """

    def __init__(self, judged_on: str | None, rows: Sequence[EpochRow]) -> None:
        self._judged_on = judged_on
        self._rows = list(rows)
        self._curves, self._table, self._plain = "", "", ""
        self._handle: Any = None

    def open(self) -> None:
        """Show the display for the first time."""
        self._take(self._rows)
        display = importlib.import_module("IPython.display").display
        self._handle = display(self._content("starting"), raw=True, display_id=True)

    def go_on(self, said: str) -> None:
        """Say nothing: the curves show the epochs that are done, and the bar the steps."""

    def draw(self, words: Sequence[str], share: float, new: Sequence[EpochRow]) -> None:
        """Show how far the run is, and the epochs that were done since the last time."""
        self._rows += new
        self._take(new)
        self._handle.update(self._content(" · ".join(words), share), raw=True)

    def close(self, said: str, new: Sequence[EpochRow], *, failed: bool) -> None:
        """Show what stays: ``said``, the curves, the last epochs."""
        self._rows += new
        self._take(new)
        self._handle.update(self._content(said), raw=True)

    def _take(self, new: Sequence[EpochRow]) -> None:
        if not new:
            return
        self._curves = draw_curves(self._rows, self._judged_on)
        last = self._rows[-LAST_EPOCHS:]
        cells = [tuple(c.strip() for c in format_row(row, self._judged_on)) for row in last]
        columns = tuple(heading.strip() for heading in headings(self._judged_on))
        table = Table(columns, tuple(cells))
        self._table, self._plain = table.to_html(), str(table)

    def _content(self, said: str, share: float | None = None) -> dict[str, str]:
        """Return the display in HTML, and as text for where that is not shown."""
        bar = ""
        if share is not None:
            style = "width:14em;margin-right:1em;vertical-align:middle"
            bar = f'<progress value="{share:.4f}" max="1" style="{style}"></progress>'
        line = f'<div style="margin:4px 0">{bar}{html.escape(said)}</div>'
        plain = f"{said}\n{self._plain}".strip()
        return {"text/html": f"<div>{line}{self._curves}{self._table}</div>", "text/plain": plain}


class Line(NamedTuple):
    """A line of a panel: its name, its colour, and points (epoch, value), all finite."""

    name: str
    colour: str
    points: list[tuple[float, float]]


class Scale(NamedTuple):
    """An axis from its first tick to its last.

    Attributes:
        ticks: In ascending order.
        bend: Applied before lengths are measured.
        note: What the title says of it.
    """

    ticks: Sequence[float]
    bend: Callable[[float], float] = float
    note: str = ""

    def place(self, value: float) -> float:
        """Return where ``value`` is, from 0 at the first tick to 1 at the last."""
        first, last = self.bend(self.ticks[0]), self.bend(self.ticks[-1])
        return (self.bend(value) - first) / (last - first) if last > first else 0.5


def draw_curves(rows: Sequence[EpochRow], judged_on: str | None) -> str:
    """Return loss and accuracy over the epochs as an SVG; values that are not finite are skipped.

    Text and axes take the colour of the text around them, so that it can be read on any ground.

    Args:
        rows: The epochs that are done.
        judged_on: What the set read after every epoch is; None without one.

    Returns:
        A panel for the loss and one for the accuracy, without those that have no value; "" if
        neither has one.
    """
    parts = {"train": "train"} | ({} if judged_on is None else {"validation": judged_on})
    panels: list[str] = []
    for quantity, scale_of in (("loss", loss_scale), ("accuracy", accuracy_scale)):
        lines = []
        for (part, name), colour in zip(parts.items(), COLOURS, strict=False):
            values = [(row.epoch, getattr(row, f"{part}_{quantity}")) for row in rows]
            points = [(float(x), float(y)) for x, y in values if y is not None and math.isfinite(y)]
            if points:
                lines.append(Line(name, colour, points))
        if lines:
            scale = scale_of([y for line in lines for _, y in line.points])
            unit = ", %" if quantity == "accuracy" else ""
            epochs = Scale(epoch_ticks(rows[0].epoch, rows[-1].epoch))
            inner = _panel(f"{quantity}{unit}{scale.note}", lines, epochs, scale)
            panels.append(f'<g transform="translate({WIDTH * len(panels)} 0)">{inner}</g>')
    if not panels:
        return ""
    width = WIDTH * len(panels)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{HEIGHT}" '
        f'viewBox="0 0 {width} {HEIGHT}" role="img" aria-label="loss and accuracy of each epoch" '
        'fill="currentColor" font-family="system-ui, sans-serif" font-size="11" '
        f'style="display:block;max-width:100%;height:auto">{"".join(panels)}</svg>'
    )


def _panel(title: str, lines: Sequence[Line], epochs: Scale, scale: Scale) -> str:
    def x(epoch: float) -> float:
        return LEFT + (RIGHT - LEFT) * epochs.place(epoch)

    def y(value: float) -> float:
        return BOTTOM - (BOTTOM - TOP) * scale.place(value)

    drawn = [f'<text x="{LEFT}" y="14" font-size="12" font-weight="600">{title}</text>']
    for tick in scale.ticks:
        drawn.append(
            f'<path d="M{LEFT} {y(tick):.1f}H{RIGHT}" stroke="currentColor" opacity="0.18"/>'
            f'<text x="{LEFT - 6}" y="{y(tick):.1f}" dy="0.35em" text-anchor="end">'
            f"{say_tick(tick)}</text>"
        )
    for tick in epochs.ticks:
        drawn.append(
            f'<path d="M{x(tick):.1f} {BOTTOM}v4" stroke="currentColor" opacity="0.5"/>'
            f'<text x="{x(tick):.1f}" y="{BOTTOM + 16}" text-anchor="middle">{tick:g}</text>'
        )
    middle = (LEFT + RIGHT) / 2
    drawn.append(f'<text x="{middle}" y="{BOTTOM + 31}" text-anchor="middle">epoch</text>')
    ends = []
    for line in lines:
        points = [(x(epoch), y(value)) for epoch, value in thinned(line.points)]
        path = " ".join(f"{px:.1f},{py:.1f}" for px, py in points)
        drawn.append(
            f'<polyline points="{path}" fill="none" stroke="{line.colour}" stroke-width="1.8" '
            'stroke-linejoin="round"/>'
        )
        marked = points if len(points) <= MOST_MARKED else points[-1:]
        drawn += [
            f'<circle cx="{px:.1f}" cy="{py:.1f}" r="2.4" fill="{line.colour}"/>'
            for px, py in marked
        ]
        ends.append(points[-1])
    for line, (px, _), place in zip(lines, ends, apart([py for _, py in ends]), strict=True):
        drawn.append(
            f'<text x="{px + 8:.1f}" y="{place:.1f}" dy="0.35em" font-weight="600" '
            f'fill="{line.colour}">{line.name}</text>'
        )
    return "".join(drawn)


def loss_scale(values: Sequence[float]) -> Scale:
    """Return an axis for losses: of their log where they are positive and span a factor of 10."""
    low, high = min(values), max(values)
    if low > 0 and high >= 10 * low:
        return Scale(log_ticks(low, high), math.log10, " (log scale)")
    return Scale(even_ticks(low, high))


ACCURACY_TICKS = (0.0, 50.0, 80.0, 90.0, 95.0, 98.0, 99.0, 99.5, 99.8, 100.0)


def accuracy_scale(values: Sequence[float]) -> Scale:
    """Return an axis for percentages: of the log of the error where they span three of its ticks.

    On an even scale from 86 to 99.4 % the tenths of a percent that matter become one line.
    """
    low, high = min(values), max(values)
    if sum(low <= tick <= high for tick in ACCURACY_TICKS) < 3:
        return Scale(even_ticks(low, high, top=100.0))
    # The offset keeps 100 % at a finite place, a little above 99.9.
    return Scale(
        around(low, high, ACCURACY_TICKS), lambda a: -math.log10(100.05 - a), " (log scale)"
    )


def even_ticks(low: float, high: float, *, top: float = math.inf) -> list[float]:
    """Return some four to seven round numbers from ``low`` or less to ``high`` or more.

    Args:
        low: The least value.
        high: The greatest.
        top: What no tick exceeds; a round number.

    Examples:
        >>> even_ticks(0.13, 0.48)
        [0.1, 0.2, 0.3, 0.4, 0.5]
    """
    # Values that are nearly the same would need ticks of many digits.
    least = (1e-3 if low < high else 0.2) * max(abs(low), abs(high)) or 1.0
    if high - low < least:
        low, high = (low + high - least) / 2, (low + high + least) / 2
        low, high = low - max(0.0, high - top), min(high, top)
    raw = (high - low) / 5
    power = math.floor(math.log10(raw))
    nice = next(nice for nice in (1, 2, 5, 10) if nice * 10.0**power >= 0.999 * raw)
    step = nice * 10.0**power
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [float(f"{i * nice}e{power}") for i in range(first, last + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Return numbers such as 1, 2, 5, or powers of ten, from ``low`` or less to ``high`` or more.

    Examples:
        >>> log_ticks(0.03, 0.7), log_ticks(0.0008, 2.3)
        ([0.02, 0.05, 0.1, 0.2, 0.5, 1.0], [0.0001, 0.001, 0.01, 0.1, 1.0, 10.0])
    """
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    fine = [float(f"{nice}e{p}") for p in range(first - 1, last + 1) for nice in (1, 2, 5)]
    ticks = around(low, high, fine)
    if len(ticks) <= MOST_TICKS:
        return ticks
    stride = math.ceil((last - first) / (MOST_TICKS - 1))
    return [float(f"1e{p}") for p in reversed(range(last, first - stride, -stride))]


def around(low: float, high: float, ticks: Sequence[float]) -> list[float]:
    """Return the ticks from the last that is ``low`` or less to the first ``high`` or more.

    Examples:
        >>> around(3, 8, [0, 2, 4, 6, 8, 10])
        [2, 4, 6, 8]
    """
    before, after = (-math.inf, *ticks[:-1]), (*ticks[1:], math.inf)
    return [t for b, t, a in zip(before, ticks, after, strict=True) if a > low and b < high]


def epoch_ticks(first: int, last: int) -> list[float]:
    """Return the first and the last epoch, and round numbers between them.

    Examples:
        >>> epoch_ticks(1, 19), epoch_ticks(1, 2), epoch_ticks(1, 1)
        ([1.0, 5.0, 10.0, 15.0, 19.0], [1.0, 2.0], [1.0])
    """
    step = next(
        nice * 10**power
        for power in range(len(str(last)))
        for nice in (1, 2, 5, 10)
        if nice * 10**power * 6 >= last - first
    )
    # Not so near to an end that the two numbers would touch.
    between = range(-(-first // step) * step, last, step)
    kept = [tick for tick in between if 2 * min(tick - first, last - tick) >= step]
    return [float(t) for t in dict.fromkeys([first, *kept, last])]


def say_tick(tick: float) -> str:
    """Return a tick's number in short.

    Examples:
        >>> say_tick(0.25), say_tick(1e-6), say_tick(2e7)
        ('0.25', '1e-6', '2e7')
    """
    mantissa, e, power = f"{tick:.5g}".partition("e")
    return f"{mantissa}e{int(power)}" if e else mantissa


def thinned(points: Sequence[tuple[float, float]]) -> Sequence[tuple[float, float]]:
    """Return so few points that a line of them is short; of each stretch its lowest and highest."""
    if len(points) <= MOST_POINTS:
        return points
    size = math.ceil(2 * len(points) / (MOST_POINTS - 1))
    kept = []
    for start in range(0, len(points), size):
        stretch = points[start : start + size]
        ends = {min(stretch, key=lambda p: p[1]), max(stretch, key=lambda p: p[1])}
        kept += sorted(ends)
    return kept if kept[-1] == points[-1] else [*kept, points[-1]]


def apart(places: Sequence[float]) -> list[float]:
    """Move the places of one or two labels so far apart that they do not overlap.

    Examples:
        >>> apart([50.0, 52.0]), apart([50.0, 90.0]), apart([BOTTOM, BOTTOM])
        ([44.0, 58.0], [50.0, 90.0], [170.0, 184.0])
    """
    if len(places) < 2 or abs(places[0] - places[1]) >= LABEL_GAP:
        return list(places)
    half = LABEL_GAP / 2
    middle = min(max(sum(places) / 2, TOP + half), BOTTOM - half)
    shift = half if places[0] <= places[1] else -half
    return [middle - shift, middle + shift]
