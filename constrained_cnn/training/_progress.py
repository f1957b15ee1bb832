"""What a person sees while a run goes on, without slowing it."""

import math
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from time import monotonic
from types import TracebackType
from typing import Any, Protocol, Self, TextIO, cast

from rich.console import Console
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as Bar

from constrained_cnn.errors import counted
from constrained_cnn.training._history import EpochRow, History, format_row, headings
from constrained_cnn.training._notebook import Notebook, in_notebook

REFRESH_SECONDS = 0.1
# Drawing takes no more than this share of the time, where a terminal or a browser is slow.
DRAWING_SHARE = 0.05
LONG_SECONDS = 1.0  # of an epoch whose steps have a rate of their own, without the evaluation
EARLIER_EPOCHS = 5  # that a terminal repeats of a run that goes on


class BestEffort:
    """A stream of text that never fails: what it cannot pass on is lost.

    The reader of standard error may be gone, as ``head`` goes, or its disk full; no training ends
    for that.

    Attributes:
        error: Why something was lost, the first time; None if nothing was.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.error: OSError | None = None

    def write(self, text: str) -> int:
        """Pass it on."""
        with self._kept():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Pass on what is held back."""
        with self._kept():
            self._stream.flush()

    @contextmanager
    def _kept(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self.error = self.error or error
        except ValueError:  # it was closed
            pass

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def standard_error() -> Console:
    """Return a console on standard error for what is shown of a run; it never fails."""
    stream = None
    if sys.stderr is not None:  # as it is in a program without a console
        # A bar of rich's puts itself in place of the stream, and is passed by as rich does it.
        stream = BestEffort(getattr(sys.stderr, "rich_proxied_file", sys.stderr))
    return Console(
        file=cast("TextIO | None", stream),
        stderr=True,
        highlight=False,
        markup=False,
        emoji=False,
        soft_wrap=True,
    )


class Progress:
    """What is told how far a run is; entered before its first step. This one shows nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...

    def start_epoch(self, epoch: int, done: int = 0) -> None:
        """Epoch number ``epoch``, from 1, begins; so many of its steps are done already."""

    def advance(self, step: int) -> None:
        """``step`` steps of the epoch are done. Called for every step: it must cost nothing."""

    def end_epoch(self, row: EpochRow) -> None:
        """An epoch is done."""

    def end_run(self, history: History) -> None:
        """The run is over, finished or interrupted; this is what it gave."""


class Told(Progress):
    """Passes the row of every epoch on; for a run that another process watches."""

    def __init__(self, tell: Callable[[EpochRow], None]) -> None:
        self._tell = tell

    def end_epoch(self, row: EpochRow) -> None:
        """Pass it on."""
        self._tell(row)


class FinishedAlready(Progress):
    """Says of a run that was finished before that nothing is trained."""

    def __init__(self, epochs: int) -> None:
        self._epochs = epochs

    def __enter__(self) -> Self:
        epochs = counted(self._epochs, "epoch")
        standard_error().print(f"nothing to train: the run was finished already, after {epochs}")
        return self


class View(Protocol):
    """Where progress is shown."""

    def open(self) -> None:
        """Show that a run begins."""

    def go_on(self, said: str) -> None:
        """Show after what a run goes on."""

    def draw(self, words: Sequence[str], share: float, new: Sequence[EpochRow]) -> None:
        """Show how far the run is, in words and from 0 to 1, and the epochs that are new."""

    def close(self, said: str, new: Sequence[EpochRow], *, failed: bool) -> None:
        """Show the epochs that are new, and what is ``said`` at the end."""


class Lines:
    """A line per epoch on standard error; in a terminal a bar below them.

    Args:
        judged_on: What the set read after every epoch is; None without one.
        rows: The epochs that are done already.
    """

    def __init__(self, judged_on: str | None, rows: Sequence[EpochRow]) -> None:
        self._judged_on = judged_on
        self._rows = rows
        self._console = standard_error()
        self._bar: Bar | None = None

    def open(self) -> None:
        """Print the heading; in a terminal also the last epochs that are done already."""
        self._console.print("  ".join(headings(self._judged_on)), style="bold")
        if not self._console.is_terminal:
            return
        if self._rows:
            self._print(self._rows[-EARLIER_EPOCHS:], style="dim")
        self._bar = Bar(
            BarColumn(bar_width=16),
            TextColumn("{task.description}", markup=False),
            console=self._console,
            auto_refresh=False,
            transient=True,
        )
        self._task = self._bar.add_task("starting", total=1.0)
        self._bar.start()

    def go_on(self, said: str) -> None:
        """Print after what the run goes on."""
        self._console.print(said)

    def draw(self, words: Sequence[str], share: float, new: Sequence[EpochRow]) -> None:
        """Print the new lines and move the bar."""
        if new:
            self._print(new)
        if self._bar is not None:
            self._bar.update(self._task, description=", ".join(words), completed=share)
            self._bar.refresh()

    def close(self, said: str, new: Sequence[EpochRow], *, failed: bool) -> None:
        """Print the last lines and take the bar away; an error speaks for itself."""
        if self._bar is not None:
            self._bar.stop()
        if new:
            self._print(new)
        if said and not failed:
            self._console.print(said)

    def _print(self, rows: Sequence[EpochRow], style: str = "") -> None:
        lines = ["  ".join(format_row(row, self._judged_on)) for row in rows]
        self._console.print("\n".join(lines), style=style)


class EpochProgress(Progress):
    """Epoch by epoch what a run gives, and how far it is; at the end, where the time went.

    In a notebook it is one display with curves; in a terminal a line per epoch, on standard error,
    and a bar; elsewhere the lines alone. It is fed by the host's own step counter, so nothing is
    read from the device, and draws some ten times a second at most.

    Args:
        epochs: Number of epochs of the run.
        steps: Steps in an epoch; None where unknown.
        judged_on: What the set read after every epoch is; None without one.
        enabled: Whether to show anything.
        rows: The epochs that are done already, of a run that goes on.
    """

    def __init__(
        self,
        *,
        epochs: int,
        steps: int | None,
        judged_on: str | None,
        enabled: bool,
        rows: Sequence[EpochRow] = (),
    ) -> None:
        self.epochs = epochs
        self.steps = steps
        self._view: View | None = None
        if enabled:
            view = Notebook if in_notebook() else Lines
            self._view = view(judged_on, tuple(rows))
        self._due = -math.inf if enabled else math.inf
        self._new: list[EpochRow] = []
        self._said = ""
        self._epoch, self._step = len(rows) + 1, 0
        self._began, self._whole, self._first = 0.0, False, True
        self._epoch_seconds: float | None = None
        self._marks: deque[tuple[float, int]] = deque(maxlen=11)
        self._rate: float | None = None

    def __enter__(self) -> Self:
        if self._view is not None:
            self._view.open()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._view is None:
            return
        if kind is not None:
            self._said = f"broken off in epoch {self._epoch} of {self.epochs}"
        self._view.close(self._said, self._new, failed=kind is not None)

    def start_epoch(self, epoch: int, done: int = 0) -> None:
        """Show that an epoch begins, of which so many steps are done already."""
        if self._view is None:
            return
        if self._first and (epoch, done) != (1, 0):
            self._view.go_on(say_going_on(epoch, done, self.epochs))
        self._first = False
        now = monotonic()
        if self._whole:
            self._epoch_seconds = now - self._began
        if self.steps is None or now - self._began > LONG_SECONDS:
            self._marks.clear()  # the time of an evaluation is no step's
        self._epoch, self._step, self._began, self._whole = epoch, done, now, done == 0
        if now >= self._due:
            self._draw(now)

    def advance(self, step: int) -> None:
        """Show that ``step`` steps of the epoch are done."""
        self._step = step
        now = monotonic()
        if now >= self._due:
            self._measure(now)
            self._draw(now)

    def end_epoch(self, row: EpochRow) -> None:
        """Show what an epoch gave."""
        if self._view is None:
            return
        self._new.append(row)
        now = monotonic()
        # Before its turn, if the last drawing was in its turn: the next step may be far off.
        if now >= self._due - REFRESH_SECONDS:
            if now - self._began <= LONG_SECONDS:
                self._measure(now)
            self._draw(now)

    def end_run(self, history: History) -> None:
        """Show at the end where the time went."""
        steps = f" and {counted(history.steps_of_next, 'step')}" if history.steps_of_next else ""
        timings = "" if history.timings is None else f": {history.timings}"
        self._said = f"{history.status} after {counted(len(history), 'epoch')}{steps}{timings}"

    def _measure(self, now: float) -> None:
        """Find the rate over the last drawings; never with the first step, which takes long."""
        self._marks.append((now, (self._epoch - 1) * (self.steps or 0) + self._step))
        (since, before), (_, steps) = self._marks[0], self._marks[-1]
        if now > since:
            self._rate = (steps - before) / (now - since)

    def _draw(self, now: float) -> None:
        assert self._view is not None
        part = min(1.0, self._step / self.steps) if self.steps else 0.0
        share = (self._epoch - 1 + part) / self.epochs
        self._view.draw(self._words(now), share, self._new)
        self._new = []
        pause = max(REFRESH_SECONDS, (monotonic() - now) / DRAWING_SHARE)
        self._due = max(self._due, now) + pause

    def _words(self, now: float) -> list[str]:
        of_steps = "" if self.steps is None else f"/{self.steps}"
        words = [f"epoch {self._epoch}/{self.epochs}", f"step {self._step}{of_steps}"]
        if self._rate:
            words.append(say_rate(self._rate))
        epochs = self.epochs - self._epoch + 1
        if self._epoch_seconds is not None:
            left = self._epoch_seconds * epochs - (now - self._began)
            words.append(f"{duration(max(0.0, left))} left")
        elif self._rate and self.steps is not None:
            left = (self.steps * epochs - self._step) / self._rate
            words.append(f"{duration(left)} left")
        return words


def say_going_on(epoch: int, done: int, epochs: int) -> str:
    """Return where a run goes on, with ``done`` steps of ``epoch`` behind it.

    Examples:
        >>> say_going_on(4, 0, 19), say_going_on(4, 7, 19)
        ('going on after epoch 3 of 19', 'going on after epoch 3 of 19 and 7 steps of the next')
        >>> say_going_on(1, 7, 19)
        'going on after 7 steps of epoch 1 of 19'
    """
    steps = counted(done, "step")
    if epoch == 1:
        return f"going on after {steps} of epoch 1 of {epochs}"
    rest = f" and {steps} of the next" if done else ""
    return f"going on after epoch {epoch - 1} of {epochs}{rest}"


def say_rate(rate: float) -> str:
    """Return steps a second as a person says it.

    Examples:
        >>> say_rate(2310.4), say_rate(3.21), say_rate(0.25)
        ('2,310 steps/s', '3.2 steps/s', '4.0 s a step')
    """
    if rate < 1:
        return f"{1 / rate:.1f} s a step"
    return f"{rate:.1f} steps/s" if rate < 9.95 else f"{rate:,.0f} steps/s"


def duration(seconds: float) -> str:
    """Return a time as a person says it.

    Examples:
        >>> duration(7), duration(190), duration(7300)
        ('7 s', '3 min', '2 h 2 min')
    """
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"
