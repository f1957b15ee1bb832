"""What is shown of a run: in a notebook, in a terminal, in a file; and how often."""

import io
import itertools
import math
import re
import sys
import types
import xml.etree.ElementTree as ET
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from constrained_cnn import ImageSet, TrainConfig, Trainer
from constrained_cnn.errors import NonFiniteLossError
from constrained_cnn.training import _notebook, _progress
from constrained_cnn.training._history import EpochRow, History
from constrained_cnn.training._many import Fitted, SeedsProgress
from constrained_cnn.training._notebook import (
    BOTTOM,
    LEFT,
    RIGHT,
    TOP,
    accuracy_scale,
    draw_curves,
    even_ticks,
    in_notebook,
    log_ticks,
    loss_scale,
    thinned,
)
from constrained_cnn.training._progress import BestEffort, EpochProgress, Told
from constrained_cnn.training._timings import Timings

SVG = "{http://www.w3.org/2000/svg}"
TIMINGS = Timings(start_up=0.1, training=3.4, evaluation=0.2, samples=61200, peak_memory=700 << 20)
HEADING = "epoch  train loss  train acc  val. loss   val. acc      rate  seconds"


def make_row(epoch: int, **values: Any) -> EpochRow:
    usual = {
        "train_loss": 1 / epoch,
        "train_accuracy": 90.0,
        "validation_loss": 0.9 / epoch,
        "validation_accuracy": 91.0,
        "learning_rate": 0.1,
        "seconds": 0.02,
    }
    return EpochRow(epoch=epoch, **{**usual, **values})


def make_rows(count: int) -> list[EpochRow]:
    return [make_row(epoch) for epoch in range(1, count + 1)]


class Clock:
    """A clock that stands until it is moved."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(_progress, "monotonic", clock)
    return clock


class Display:
    """Stands in for IPython's display and for its handle; keeps what was shown, and when."""

    def __init__(self) -> None:
        self.shown: list[tuple[float, dict[str, str]]] = []
        self.displays = 0
        self.now: Callable[[], float] = lambda: 0.0
        self.on_update: Callable[[], None] = lambda: None

    def display(self, content: dict[str, str], *, raw: bool, display_id: bool) -> "Display":
        assert raw
        assert display_id
        self.displays += 1
        self.shown.append((self.now(), content))
        return self

    def update(self, content: dict[str, str], *, raw: bool) -> None:
        assert raw
        self.shown.append((self.now(), content))
        self.on_update()

    @property
    def pages(self) -> list[ET.Element]:
        return [ET.fromstring(content["text/html"]) for _, content in self.shown]


class ZMQInteractiveShell:
    kernel = object()


class TerminalInteractiveShell:
    pass


class ColabShell(ZMQInteractiveShell):
    pass


class OtherKernelShell:
    kernel = object()


class SpyderShell(ZMQInteractiveShell):
    __module__ = "spyder_kernels.console.shell"


def stand_in(monkeypatch: pytest.MonkeyPatch, shell: object) -> Display:
    """Put modules in place of IPython, of which ``shell`` is the shell."""
    ipython, part = types.ModuleType("IPython"), types.ModuleType("IPython.display")
    display = Display()
    vars(ipython)["get_ipython"] = lambda: shell
    vars(part)["display"] = display.display
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    monkeypatch.setitem(sys.modules, "IPython.display", part)
    return display


@pytest.fixture
def notebook(monkeypatch: pytest.MonkeyPatch) -> Display:
    return stand_in(monkeypatch, ZMQInteractiveShell())


@pytest.fixture
def no_notebook(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "IPython", raising=False)


def run_epochs(
    shown: EpochProgress,
    clock: Clock,
    *,
    first: int = 1,
    done: int = 0,
    last: int | None = None,
    steps: int = 20,
    step_seconds: float = 0.001,
    evaluation_seconds: float = 0.0,
) -> None:
    """Tell what a run would tell, at the pace it would."""
    for epoch in range(first, (last or shown.epochs) + 1):
        before = done if epoch == first else 0
        shown.start_epoch(epoch, before)
        for step in range(before, steps):
            clock.now += step_seconds
            shown.advance(step + 1)
        clock.now += evaluation_seconds
        shown.end_epoch(make_row(epoch))


def make_progress(epochs: int, steps: int | None = 20, **options: Any) -> EpochProgress:
    usual = {"judged_on": "validation", "enabled": True}
    return EpochProgress(epochs=epochs, steps=steps, **{**usual, **options})


# --- The curves -----------------------------------------------------------------------------------


def panels_of(svg: str) -> list[ET.Element]:
    return ET.fromstring(svg).findall(f"{SVG}g")


def title_of(panel: ET.Element) -> str:
    return panel.findtext(f"{SVG}text", "")


def texts_of(panel: ET.Element) -> list[str]:
    return [text.text or "" for text in panel.findall(f"{SVG}text")]


def points_of(panel: ET.Element) -> list[list[tuple[float, float]]]:
    """Return the points of each line of a panel."""
    lines = []
    for line in panel.findall(f"{SVG}polyline"):
        pairs = [pair.split(",") for pair in line.attrib["points"].split()]
        lines.append([(float(x), float(y)) for x, y in pairs])
    return lines


def ticks_of(panel: ET.Element) -> list[tuple[float, float]]:
    """Return the number and the height of every tick of the upright axis."""
    return [
        (float(text.text or ""), float(text.attrib["y"]))
        for text in panel.findall(f"{SVG}text")
        if text.attrib.get("text-anchor") == "end"
    ]


losses = st.floats(width=32)
percentages = st.none() | st.floats(0, 100)


@st.composite
def some_rows(draw: st.DrawFn) -> list[EpochRow]:
    """Epochs of any run, of which a loss may be NaN, infinite, negative or missing."""
    count = draw(st.integers(1, 30))
    first = draw(st.sampled_from([1, 7]))
    rows = []
    for epoch in range(first, first + count):
        loss, accuracy = draw(losses), draw(percentages)
        held_out, other = draw(st.none() | losses), draw(percentages)
        rows.append(
            make_row(
                epoch,
                train_loss=loss,
                train_accuracy=accuracy,
                validation_loss=held_out,
                validation_accuracy=other,
            )
        )
    return rows


def finite(rows: Sequence[EpochRow], name: str) -> list[float]:
    values = [getattr(row, name) for row in rows]
    return [value for value in values if value is not None and math.isfinite(value)]


@given(some_rows(), st.sampled_from([None, "validation", "test"]))
def test_every_finite_value_is_a_point_between_the_ticks_around_it(
    rows: list[EpochRow], judged_on: str | None
) -> None:
    svg = draw_curves(rows, judged_on)
    parts = ["train"] if judged_on is None else ["train", "validation"]
    expected = {}
    for quantity in ("loss", "accuracy"):
        lines = [finite(rows, f"{part}_{quantity}") for part in parts]
        if any(lines):
            expected[quantity] = [line for line in lines if line]
    if not expected:
        assert svg == ""
        return
    panels = panels_of(svg)
    assert [title_of(panel).split(",")[0].split()[0] for panel in panels] == list(expected)
    for panel, lines in zip(panels, expected.values(), strict=True):
        ticks = ticks_of(panel)
        assert 2 <= len(ticks) <= 11
        for line, points in zip(lines, points_of(panel), strict=True):
            assert len(points) == len(line)
            for value, (x, y) in zip(line, points, strict=True):
                assert LEFT - 0.1 <= x <= RIGHT + 0.1
                assert TOP - 0.1 <= y <= BOTTOM + 0.1
                for tick, height in ticks:  # downwards, as SVG counts
                    if tick < value:
                        assert y <= height + 1.5
                    if tick > value:
                        assert y >= height - 1.5
        heights = [y for text in panel.findall(f"{SVG}text") if (y := float(text.attrib["y"]))]
        assert 0 < min(heights) <= max(heights) < _notebook.HEIGHT


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1))
def test_the_ticks_cover_the_losses(values: list[float]) -> None:
    scale = loss_scale(values)
    ticks = scale.ticks
    assert list(ticks) == sorted(set(ticks))
    assert scale.place(min(values)) >= -1e-6
    assert scale.place(max(values)) <= 1 + 1e-6
    assert (scale.note != "") == (min(values) > 0 and max(values) >= 10 * min(values))


@given(st.lists(st.floats(0, 100), min_size=1))
def test_the_ticks_cover_the_accuracies_and_stay_percentages(values: list[float]) -> None:
    scale = accuracy_scale(values)
    assert scale.place(min(values)) >= -1e-6
    assert scale.place(max(values)) <= 1 + 1e-6
    assert scale.ticks[-1] <= 100


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.0, 1.0, [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        (88.1, 97.6, [88.0, 90.0, 92.0, 94.0, 96.0, 98.0]),
        (0.0, 0.0, [-0.6, -0.4, -0.2, 0.0, 0.2, 0.4, 0.6]),
        (-3.0, 11.0, [-5.0, 0.0, 5.0, 10.0, 15.0]),
    ],
)
def test_even_ticks(low: float, high: float, expected: list[float]) -> None:
    assert even_ticks(low, high) == expected


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.021, 0.35, [0.02, 0.05, 0.1, 0.2, 0.5]),
        (1e-6, 2.3, [1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0]),
        (1e-21, 0.5, [10.0**power for power in range(-21, 1, 3)]),
    ],
)
def test_log_ticks(low: float, high: float, expected: list[float]) -> None:
    assert log_ticks(low, high) == pytest.approx(expected, rel=1e-12)


def test_accuracy_is_stretched_towards_100_where_it_spans_much() -> None:
    assert accuracy_scale([88.0, 99.45]).ticks == [80.0, 90.0, 95.0, 98.0, 99.0, 99.5]
    assert accuracy_scale([88.0, 94.0]).note == ""


def test_a_first_epoch_is_a_point_in_the_middle() -> None:
    for panel in panels_of(draw_curves([make_row(1)], "validation")):
        assert [[x for x, _ in line] for line in points_of(panel)] == [[(LEFT + RIGHT) / 2]] * 2
        assert len(panel.findall(f"{SVG}circle")) == 2


def test_without_accuracy_there_is_one_panel_and_without_validation_one_line() -> None:
    rows = [make_row(epoch, train_accuracy=None) for epoch in (1, 2)]
    (panel,) = panels_of(draw_curves(rows, None))
    assert len(points_of(panel)) == 1
    assert "train" in texts_of(panel)
    assert "validation" not in texts_of(panel)


@pytest.mark.parametrize("judged_on", ["validation", "test"])
def test_lines_are_named_after_what_they_are(judged_on: str) -> None:
    for panel in panels_of(draw_curves(make_rows(3), judged_on)):
        assert texts_of(panel)[-2:] == ["train", judged_on]


@given(
    *[st.floats(TOP, BOTTOM)] * 2,
)
def test_labels_do_not_overlap(first: float, second: float) -> None:
    low, high = _notebook.apart([first, second])
    assert abs(high - low) >= _notebook.LABEL_GAP - 1e-9
    assert TOP - 1e-9 <= min(low, high) <= max(low, high) <= BOTTOM + 1e-9
    assert (low <= high) == (first <= second)


@given(st.lists(st.floats(-1, 1), min_size=1, max_size=1500))
def test_a_long_line_keeps_its_extremes_and_its_end(values: list[float]) -> None:
    points = list(enumerate(values))
    kept = list(thinned(points))
    assert kept == sorted(kept)
    assert set(kept) <= set(points)
    assert len(kept) <= _notebook.MOST_POINTS + 1
    assert kept[-1] == points[-1]
    assert {min(values), max(values)} <= {value for _, value in kept}


def luminance(colour: str) -> float:
    """Relative luminance, as the Web Content Accessibility Guidelines 2.1 define it."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.03928 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(first: str, second: str) -> float:
    low, high = sorted([luminance(first), luminance(second)])
    return (high + 0.05) / (low + 0.05)


def test_colours_are_seen_on_light_and_on_dark_and_differ_in_lightness() -> None:
    for colour in _notebook.COLOURS:
        assert contrast(colour, "#ffffff") >= 3
        assert contrast(colour, "#1e1e1e") >= 3
    assert luminance(_notebook.COLOURS[1]) >= 1.5 * luminance(_notebook.COLOURS[0])


# --- In a notebook --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shell", "expected"),
    [
        (None, False),
        (TerminalInteractiveShell(), False),
        (ZMQInteractiveShell(), True),
        (ColabShell(), True),
        (OtherKernelShell(), True),
        (SpyderShell(), False),
    ],
)
def test_a_notebook_is_known_by_its_shell(
    monkeypatch: pytest.MonkeyPatch, shell: object, expected: bool
) -> None:
    stand_in(monkeypatch, shell)
    assert in_notebook() is expected


@pytest.mark.usefixtures("no_notebook")
def test_ipython_is_not_imported() -> None:
    assert not in_notebook()
    assert "IPython" not in sys.modules


def most_at_once(display: Display) -> float:
    """Return by how many the updates ever exceeded ten a second."""
    times = [time for time, _ in display.shown[1:-1]]  # what a run opens and closes with
    return max(
        last - first + 1 - 10 * (times[last] - times[first])
        for first, last in itertools.combinations(range(len(times)), 2)
    )


def test_short_epochs_are_drawn_ten_times_a_second(notebook: Display, clock: Clock) -> None:
    notebook.now = clock
    with make_progress(40) as shown:
        run_epochs(shown, clock)
        shown.end_run(History(tuple(make_rows(40)), timings=TIMINGS))
    assert notebook.displays == 1
    assert most_at_once(notebook) <= 2 + 1e-6
    assert 9 <= len(notebook.shown) <= 12  # of 0.8 s
    page = notebook.pages[-1]
    assert f"finished after 40 epochs: {TIMINGS}" in "".join(page.itertext())
    assert page.find(".//progress") is None
    assert [row[0].text for row in page.iterfind(".//tbody/tr")] == ["36", "37", "38", "39", "40"]
    assert notebook.shown[-1][1]["text/plain"].splitlines()[-1].split()[0] == "40"


def test_a_slow_browser_does_not_slow_the_run_down(notebook: Display, clock: Clock) -> None:
    def take_time() -> None:
        clock.now += 0.05

    notebook.on_update = take_time
    began = clock.now
    with make_progress(1, steps=10_000) as shown:
        run_epochs(shown, clock, steps=10_000)
    drawing = 0.05 * (len(notebook.shown) - 1)
    assert drawing <= 0.06 * (clock.now - began)


def test_a_long_epoch_shows_how_far_it_is(notebook: Display, clock: Clock) -> None:
    with make_progress(4, steps=1000) as shown:
        run_epochs(shown, clock, steps=1000, last=2, step_seconds=0.01)
    bars = [page.find(".//progress") for page in notebook.pages[1:-1]]
    values = [float(bar.attrib["value"]) for bar in bars if bar is not None]
    assert values == sorted(values)
    assert values[0] == 0
    assert values[-1] == pytest.approx(0.5, abs=0.01)
    assert any(re.search(r"epoch 2/4 · step 5../1000 · 100 steps/s", one) for one in said(notebook))


def said(display: Display) -> list[str]:
    return [content["text/plain"].partition("\n")[0] for _, content in display.shown]


def test_time_left_counts_evaluations_once_one_was_seen(notebook: Display, clock: Clock) -> None:
    with make_progress(3, steps=100) as shown:
        run_epochs(shown, clock, steps=100, step_seconds=0.1, evaluation_seconds=5.0)
    # 100 steps of 0.1 s, and then 5 s: three times.
    assert any(re.search(r"epoch 1/3 · step 50/100 .* 25 s left", one) for one in said(notebook))
    assert any(re.search(r"epoch 2/3 · step 50/100 .* 25 s left", one) for one in said(notebook))


def test_a_slow_first_step_is_no_measure_of_the_others(notebook: Display, clock: Clock) -> None:
    with make_progress(1, steps=100) as shown:
        shown.start_epoch(1)
        for step in range(1, 101):
            clock.now += 0.05 if step > 1 else 30.0
            shown.advance(step)
    rates = {match[1] for one in said(notebook) if (match := re.search(r"(\S+) steps/s", one))}
    assert rates == {"20"}


def test_an_unknown_number_of_steps(notebook: Display, clock: Clock) -> None:
    with make_progress(3, steps=None) as shown:
        run_epochs(shown, clock, steps=30, step_seconds=0.1)
    assert any(one == "epoch 1/3 · step 30 · 10 steps/s" for one in said(notebook))
    assert any(re.search(r"epoch 2/3 · step 10 .* 5 s left", one) for one in said(notebook))


def test_slow_steps_are_told_in_seconds(notebook: Display, clock: Clock) -> None:
    with make_progress(1, steps=4) as shown:
        run_epochs(shown, clock, steps=4, step_seconds=3.0)
    assert any("step 2/4 · 3.0 s a step · 6 s left" in one for one in said(notebook))


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_error_leaves_the_last_curve(
    notebook: Display, clock: Clock, error: type[BaseException]
) -> None:
    def broken_run() -> None:
        with make_progress(5) as shown:
            run_epochs(shown, clock, last=3)
            shown.start_epoch(4)
            raise error

    with pytest.raises(error):
        broken_run()
    page = notebook.pages[-1]
    assert page.find(".//progress") is None
    assert "broken off in epoch 4 of 5" in "".join(page.itertext())
    svg = page.find(f".//{SVG}svg")
    assert svg is not None
    assert len(svg.findall(f".//{SVG}circle")) == 3 * 4


def test_a_run_that_goes_on_shows_its_earlier_epochs(notebook: Display, clock: Clock) -> None:
    with make_progress(9, steps=100, rows=make_rows(6)) as shown:
        assert len(notebook.pages[0].findall(f".//{SVG}circle")) == 6 * 4
        shown.start_epoch(7, 60)
        assert "epoch 7/9 · step 60/100" in said(notebook)[-1]
        run_epochs(shown, clock, steps=100, first=7, done=60, last=7)
    bar = notebook.pages[1].find(".//progress")
    assert bar is not None
    assert float(bar.attrib["value"]) == pytest.approx(6.6 / 9, abs=1e-4)
    assert len(notebook.pages[-1].findall(f".//{SVG}circle")) == 7 * 4


def test_an_interrupted_run_says_so(notebook: Display, clock: Clock) -> None:
    with make_progress(9) as shown:
        run_epochs(shown, clock, last=1)
        shown.end_run(History((make_row(1),), "interrupted", steps_of_next=7, timings=TIMINGS))
    assert said(notebook)[-1] == f"interrupted after 1 epoch and 7 steps: {TIMINGS}"


def test_a_trainer_shows_its_run_in_a_notebook(
    notebook: Display, capsys: pytest.CaptureFixture[str]
) -> None:
    pixels = torch.randint(0, 256, (40, 1, 4, 4), dtype=torch.uint8)
    images = ImageSet.from_arrays(pixels, torch.arange(40) % 4)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 4))
    trainer = Trainer(TrainConfig(epochs=3, batch_size=10), device="cpu")
    history = trainer.fit(model, images, images, judged_on="test")
    assert notebook.displays == 1
    rows = [[cell.text for cell in row][:2] for row in notebook.pages[-1].iterfind(".//tbody/tr")]
    assert rows == [[f"{row.epoch}", f"{row.train_loss:.4f}"] for row in history]
    assert said(notebook)[-1] == f"finished after 3 epochs: {history.timings}"
    assert capsys.readouterr() == ("", "")


# --- Elsewhere ------------------------------------------------------------------------------------


@pytest.mark.usefixtures("no_notebook")
def test_a_file_gets_a_line_per_epoch(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with make_progress(40) as shown:
        run_epochs(shown, clock)
        shown.end_run(History(tuple(make_rows(40)), timings=TIMINGS))
    out, err = capsys.readouterr()
    lines = err.splitlines()
    assert out == ""
    assert lines[0] == HEADING
    assert [int(line.split()[0]) for line in lines[1:-1]] == list(range(1, 41))
    assert lines[-1] == f"finished after 40 epochs: {TIMINGS}"


@pytest.mark.usefixtures("no_notebook")
def test_a_line_is_written_when_its_epoch_ends(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    with make_progress(3) as shown:
        run_epochs(shown, clock, last=1, steps=20, step_seconds=1.0)
        assert capsys.readouterr().err.splitlines()[-1].split()[0] == "1"


@pytest.mark.usefixtures("no_notebook")
def test_after_an_error_the_lines_so_far_stay(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken_run() -> None:
        with make_progress(5) as shown:
            run_epochs(shown, clock, last=3)
            raise ValueError

    with pytest.raises(ValueError):
        broken_run()
    lines = capsys.readouterr().err.splitlines()
    assert [line.split()[0] for line in lines] == ["epoch", "1", "2", "3"]


@pytest.mark.usefixtures("no_notebook")
@pytest.mark.parametrize(
    ("epochs", "done", "said"),
    [
        (0, 7, "going on after 7 steps of epoch 1 of 9"),
        (3, 0, "going on after epoch 3 of 9"),
        (3, 1, "going on after epoch 3 of 9 and 1 step of the next"),
    ],
)
def test_a_file_says_after_what_a_run_goes_on(
    clock: Clock, capsys: pytest.CaptureFixture[str], epochs: int, done: int, said: str
) -> None:
    with make_progress(9, rows=make_rows(epochs)) as shown:
        run_epochs(shown, clock, first=epochs + 1, done=done, last=epochs + 2)
    heading, going_on, *rows = capsys.readouterr().err.splitlines()
    assert (heading, going_on) == (HEADING, said)
    assert [int(row.split()[0]) for row in rows] == [epochs + 1, epochs + 2]


class Broken(io.StringIO):
    """A stream that takes no more: its reader is gone, its disk is full, it is closed."""

    def __init__(self, error: type[Exception]) -> None:
        super().__init__()
        self._error = error
        self.refused = 0

    def isatty(self) -> bool:
        return self._error is BrokenPipeError  # a terminal that was closed as well

    def flush(self) -> None:
        self.refused += 1
        raise self._error

    def write(self, text: str) -> int:
        if len(text) > 4:  # what is longer is too much for what it holds back
            self.flush()
        return len(text)


@pytest.mark.usefixtures("no_notebook")
@pytest.mark.parametrize("error", [BrokenPipeError, OSError, ValueError])
def test_no_run_ends_because_it_cannot_be_shown(
    monkeypatch: pytest.MonkeyPatch, clock: Clock, error: type[Exception]
) -> None:
    stream = Broken(error)
    monkeypatch.setattr(sys, "stderr", stream)
    with make_progress(3) as shown:
        run_epochs(shown, clock)
        shown.end_run(History(tuple(make_rows(3)), timings=TIMINGS))
    seeds = SeedsProgress(1, 3, enabled=True)
    before = stream.refused
    seeds.end_epoch(0, make_row(1))
    seeds.end_seed(0, "done")
    assert stream.refused > before > 2


def test_no_run_ends_because_there_is_no_standard_error(
    monkeypatch: pytest.MonkeyPatch, clock: Clock, no_notebook: None
) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    with make_progress(3) as shown:
        run_epochs(shown, clock)


def test_what_was_lost_is_known() -> None:
    stream = BestEffort(Broken(BrokenPipeError))
    assert (stream.write("four"), stream.error) == (4, None)
    stream.write("fiver")
    assert isinstance(stream.error, BrokenPipeError)
    assert (stream.isatty(), stream.closed) == (True, False)  # of the stream itself


def test_what_a_seed_gave_is_told_in_a_line() -> None:
    history = History((make_row(1),), "interrupted", "test")
    fitted = Fitted(4, nn.Linear(2, 2), history)
    said = "train loss 1.0000, test accuracy 91.00 %, 0.0 s, stopped after 1 epoch"
    assert repr([fitted]) == f"[Fitted(seed 4: {said})]"
    diverged = Fitted(5, None, None, NonFiniteLossError("the loss is nan", epoch=1, step=2))
    assert repr(diverged) == "Fitted(seed 5: diverged: the loss is nan)"


def test_nothing_is_shown_where_it_is_not_enabled(
    notebook: Display, clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    with make_progress(2, enabled=False) as shown:
        run_epochs(shown, clock)
        shown.end_run(History(tuple(make_rows(2)), timings=TIMINGS))
    assert not notebook.shown
    assert capsys.readouterr() == ("", "")


def test_told_is_told_of_epochs_alone() -> None:
    rows: list[EpochRow] = []
    with Told(rows.append) as told:
        told.start_epoch(1)
        told.advance(1)
        told.end_epoch(make_row(1))
        told.end_run(History((make_row(1),)))
    assert rows == [make_row(1)]


class Terminal(io.StringIO):
    """A terminal that keeps what was written, and can tell what stands on its screen."""

    def isatty(self) -> bool:
        return True

    @property
    def plain(self) -> str:
        return re.sub(r"\x1b\[[0-9;]*m", "", self.getvalue())

    @property
    def screen(self) -> list[str]:
        """The lines after all that was written; knows the few codes that are used."""
        lines, at = [""], 0
        for code in re.findall(r"\x1b\[\??[0-9;]*[A-Za-z]|\r|\n|[^\x1b\r\n]+", self.getvalue()):
            if code == "\n":
                at += 1
                lines += [""] * (at + 1 - len(lines))
            elif code == "\x1b[1A":
                at -= 1
            elif code == "\x1b[2K":
                lines[at] = ""
            elif not code.startswith(("\x1b", "\r")):
                lines[at] += code
        return [line for line in lines if line]


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch, no_notebook: None) -> Terminal:
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "80")
    terminal = Terminal()
    # Not sys.stderr itself, which pytest sets anew before the test.
    monkeypatch.setattr(_progress, "sys", types.SimpleNamespace(stderr=terminal))
    return terminal


def test_in_a_terminal_the_lines_and_the_timings_stay(terminal: Terminal, clock: Clock) -> None:
    with make_progress(40) as shown:
        run_epochs(shown, clock)
        shown.end_run(History(tuple(make_rows(40)), timings=TIMINGS))
    heading, *rows, last = terminal.screen
    assert heading == HEADING
    assert [int(row.split()[0]) for row in rows] == list(range(1, 41))
    assert last == f"finished after 40 epochs: {TIMINGS}"
    assert terminal.getvalue().rindex("\x1b[?25h") > terminal.getvalue().rindex("\x1b[?25l")


def test_a_terminal_is_redrawn_ten_times_a_second(terminal: Terminal, clock: Clock) -> None:
    with make_progress(40) as shown:
        run_epochs(shown, clock)
    states = set(re.findall(r"epoch \d+/40, step \d+/20", terminal.plain))
    assert 7 <= len(states) <= 9  # in 0.8 s


def test_a_terminal_shows_a_bar_while_an_epoch_runs(terminal: Terminal, clock: Clock) -> None:
    with make_progress(2, steps=100) as shown:
        shown.start_epoch(1)
        for step in range(1, 51):
            clock.now += 0.1
            shown.advance(step)
        assert terminal.screen[-1].endswith("epoch 1/2, step 50/100, 10 steps/s, 15 s left")


def test_a_bar_of_a_run_that_goes_on_starts_where_it_was(terminal: Terminal, clock: Clock) -> None:
    with make_progress(9, steps=100, rows=make_rows(7)) as shown:
        shown.start_epoch(8, 60)
        *rows, bar = terminal.screen
        assert bar.endswith("epoch 8/9, step 60/100")
        assert bar.count("━") > 12  # of 16
        assert [row.split()[0] for row in rows[1:-1]] == ["3", "4", "5", "6", "7"]
        assert rows[-1] == "going on after epoch 7 of 9 and 60 steps of the next"


def test_an_error_takes_the_bar_away(terminal: Terminal, clock: Clock) -> None:
    def broken_run() -> None:
        with make_progress(5) as shown:
            run_epochs(shown, clock, last=2)
            shown.start_epoch(3)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        broken_run()
    assert [line.split()[0] for line in terminal.screen] == ["epoch", "1", "2"]
    assert terminal.getvalue().rindex("\x1b[?25h") > terminal.getvalue().rindex("\x1b[?25l")


def test_seeds_are_padded_in_a_terminal_alone(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = io.StringIO()
    for stream in (terminal, file):
        monkeypatch.setattr(_progress, "sys", types.SimpleNamespace(stderr=stream))
        shown = SeedsProgress(2, 1, enabled=True)
        shown.end_epoch(3, make_row(1))
        shown.end_seed(3, "diverged: " + 80 * "x" if stream is file else "[done]")
    assert file.getvalue() == f"seed 3 (1 of 2): diverged: {80 * 'x'}\n"
    percent, line = terminal.plain.split("\r")
    assert percent.startswith("0 of 2 seeds done, 50 % of all epochs, ")
    assert line.rstrip() == "seed 3 (1 of 2): [done]"
    assert len(line) > len(percent)
