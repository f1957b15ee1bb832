"""What the figures say: rows, tables, Markdown, a picture. All of it is made from the JSON file."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.trainers._ways import OURS, RAW, WAYS
from constrained_cnn.errors import counted
from constrained_cnn.record import write_atomically
from constrained_cnn.table import Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "FULL_RUN",
    "Row",
    "conditions",
    "failures",
    "figure",
    "fill_page",
    "markdown",
    "rows_of",
    "tables",
]

FULL_RUN = (19, 469)  # epochs, and steps of 128 in one of MNIST
NETWORK, LINEAR = ("rotated", "plain"), ("linear", "linear-resident")
SAID = {
    "rotated": "rotated",
    "plain": "plain",
    "linear": "ready",
    "linear-resident": "drawn",
}
_BARS = {
    "rotated": "#E69F00",
    "plain": "#0072B2",
    "linear": "#0072B2",
    "linear-resident": "#E69F00",
}


@dataclass(frozen=True)
class Row:
    """What one way takes for one task.

    Attributes:
        kind: Kind of the task.
        way: Name of the way.
        missing: Why there are no figures; empty if there are.
        seconds: Of a step, in each repeat: the median over its epochs.
        over_raw: Seconds of a step more than the raw loop's in the same repeat: the median.
        ratio: Time over that of the Trainer in the same repeat: the median.
        whole: Seconds of 19 epochs.
    """

    kind: str
    way: str
    missing: str = ""
    seconds: tuple[float, ...] = ()
    over_raw: float | None = None
    ratio: float | None = None
    whole: float | None = None


def rows_of(content: Mapping[str, Any]) -> list[Row]:
    """Return a row for each way and task, in the order they were run."""
    runs = {(run["kind"], run["way"], run["repeat"]): run for run in content["runs"]}
    repeats = range(content["repeats"])
    rows = []
    for kind, way in content["lineup"]:
        own = [runs.get((kind, way, repeat), {}) for repeat in repeats]
        failed = [run["failed"] for run in own if "failed" in run]
        if failed or not all(own):
            rows.append(Row(kind, way, missing="failed" if failed else "not installed"))
            continue
        times = {repeat: _a_step(run) for repeat, run in zip(repeats, own, strict=True)}
        raw = _reference(runs, kind, (RAW,), repeats)
        ours = _reference(runs, kind, OURS, repeats)
        rows.append(
            Row(
                kind,
                way,
                seconds=tuple(times.values()),
                over_raw=statistics.median(times[i] - raw[i] for i in repeats) if raw else None,
                ratio=statistics.median(times[i] / ours[i] for i in repeats) if ours else None,
                whole=_whole(own, content["full"]),
            )
        )
    return rows


def _a_step(run: Mapping[str, Any]) -> float:
    return statistics.median(run["seconds"])


def _reference(
    runs: Mapping[tuple[str, str, int], Any], kind: str, ways: Sequence[str], repeats: range
) -> dict[int, float]:
    """Return, for each repeat, the time of the first of these ways that ran in all of them."""
    for way in ways:
        own = [runs.get((kind, way, repeat)) for repeat in repeats]
        if all(run is not None and "seconds" in run for run in own):
            return {repeat: _a_step(runs[kind, way, repeat]) for repeat in repeats}
    return {}


def _whole(own: Sequence[Mapping[str, Any]], measured: bool) -> float:
    """Return the seconds of 19 epochs: measured, or start-up and as many steps."""
    if measured:
        return statistics.median(run["total"] for run in own)
    epochs, steps = FULL_RUN
    return statistics.median(run["start_up"] + epochs * steps * _a_step(run) for run in own)


def tables(content: Mapping[str, Any]) -> list[Table]:
    """Return the table of the network and that of the linear model; each if it was measured."""
    rows = rows_of(content)
    chosen = [[row for row in rows if row.kind in kinds] for kinds in (NETWORK, LINEAR)]
    return [_table(content, those, network=those[0].kind in NETWORK) for those in chosen if those]


def failures(content: Mapping[str, Any]) -> list[str]:
    """Return what the ways that failed said, each once."""
    said = {
        f"{run['kind']}, {WAYS[run['way']].title}: {run['failed']}": None
        for run in content["runs"]
        if "failed" in run
    }
    return list(said)


def _table(content: Mapping[str, Any], rows: Sequence[Row], *, network: bool) -> Table:
    unit, scale, digits = ("ms", 1e3, 2) if network else ("µs", 1e6, 1)
    columns = ["<way", "<images" if network else "<batches", f"{unit} a step", "range"]
    columns += ["over the raw loop, µs", *(["19 epochs, s"] if network else []), "times Trainer"]
    cells = []
    for row in rows:
        line = [WAYS[row.way].title, SAID[row.kind]]
        if row.missing:
            cells.append((*line, row.missing, *("-" for _ in columns[3:])))
            continue
        times = [scale * second for second in row.seconds]
        line += [f"{statistics.median(times):,.{digits}f}"]
        line += [f"{min(times):,.{digits}f} to {max(times):,.{digits}f}"]
        line += ["-" if row.over_raw is None else _microseconds(row.over_raw)]
        if network and row.whole is not None:
            line += [f"{row.whole:,.{0 if row.whole > 100 else 1}f}"]
        cells.append((*line, "-" if row.ratio is None else f"{row.ratio:.2f}"))
    title = f"`{content['model']}`" if network else "A linear model of 22 parameters"
    return Table(tuple(columns), tuple(cells), title=f"{title}, batches of {content['batch_size']}")


def _microseconds(seconds: float) -> str:
    """Return a difference with its sign; none has none.

    Examples:
        >>> _microseconds(1.234e-3), _microseconds(0.0)
        ('+1,234', '0')
    """
    return f"{1e6 * seconds:+,.0f}" if seconds else "0"


def conditions(content: Mapping[str, Any]) -> str:
    """Return in a sentence or two how the figures were taken."""
    around = content["environment"]
    epochs, steps = FULL_RUN
    device = "" if around["device"] == "cpu" else f"{around['device']}; "
    versions = {name: version for name, version in content["rivals"].items() if version}
    named = "".join(f", {name} {version}" for name, version in versions.items())
    whole = (
        "measured"
        if content["full"]
        else f"computed: start-up as measured, and {epochs} times {steps} steps"
    )
    return (
        f"{counted(content['repeats'], 'repeat')} in turns, each way in a process of its own; "
        f"{counted(content['steps'], 'step')} an epoch for the network (images of "
        f"{content['data']}) and {content['linear_steps']} for the linear model, the first epoch "
        f"of a process not counted. 19 epochs: {whole}. {device}{around['processor']}, "
        f"{counted(around['cores'], 'core')}, {counted(content['threads'], 'thread')}, "
        f"Python {around['python']}, torch {around['packages']['torch']}{named}."
    )


def markdown(content: Mapping[str, Any], name: str) -> str:
    """Return what the page says between its two comments.

    Args:
        content: The figures.
        name: Name of the file they are in, without ``.json``.
    """
    parts = [f"{table.title}:\n\n{table.to_markdown()}" for table in tables(content)]
    parts.append(f"![Time of a step, and what each trainer adds to it](images/{name}.png)\n")
    parts.append(
        f"{conditions(content)} Made by `{content['command']}`; every figure is in "
        f"`benchmarks/results/{name}.json`.\n"
    )
    return "\n".join(parts)


def fill_page(page: Path, name: str, text: str) -> None:
    """Put ``text`` between ``<!-- table: NAME -->`` and the next ``<!-- end -->`` of a page.

    Raises:
        ValueError: If there are no such comments.
    """
    begin, end = f"<!-- table: {name} -->\n", "<!-- end -->"
    before, found, rest = page.read_text("utf-8").partition(begin)
    _, ended, after = rest.partition(end)
    if not (found and ended):
        raise ValueError(f"{page.name}: has no {begin.strip()} with a {end} after it")
    write_atomically(page, f"{before}{begin}{text}{end}{after}".encode())


def figure(content: Mapping[str, Any]) -> "Figure":
    """Draw a step of the network, and what each trainer adds to a step of a linear model."""
    from matplotlib.figure import Figure

    rows = [row for row in rows_of(content) if not row.missing]
    network = [row for row in rows if row.kind in NETWORK]
    linear = [row for row in rows if row.kind in LINEAR and row.over_raw is not None]
    linear = [row for row in linear if row.way != RAW]
    drawn = Figure(figsize=(9.6, 1.3 + 0.27 * max(len(network), len(linear))), layout="constrained")
    left, right = drawn.subplots(1, 2)
    milliseconds = [1e3 * statistics.median(row.seconds) for row in network]
    _bars(left, network, milliseconds, f"{content['model']}: ms a step", "{:.1f}")
    added = [1e6 * (row.over_raw or 0.0) for row in linear]
    _bars(right, linear, added, "linear model: µs over the raw loop", "{:+,.0f}")
    return drawn


def _bars(
    axes: "Axes", rows: Sequence[Row], values: Sequence[float], title: str, form: str
) -> None:
    """Draw a bar for each row, its value beside it."""
    colours = [_BARS[row.kind] for row in rows]
    axes.barh(range(len(rows)), values, color=colours, height=0.72)
    largest = max([*values, 1e-9])
    for place, value in enumerate(values):
        said = form.format(value)
        axes.text(max(value, 0) + 0.015 * largest, place, said, va="center", fontsize=8)
    names = [f"{WAYS[row.way].title} ({SAID[row.kind]})" for row in rows]
    axes.set_yticks(range(len(rows)), names)
    axes.set_xlim(min([*values, 0.0]), 1.17 * largest)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_title(title, fontsize=10.5)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8)
    axes.tick_params(axis="y", length=0)
