"""What a person sees while a run goes on, without slowing it."""

import time
from collections.abc import Callable
from types import TracebackType
from typing import Protocol, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
from rich.progress import Progress as Bar

from constrained_cnn.training._history import EpochRow, format_row, headings

REFRESH_SECONDS = 0.1


class Progress(Protocol):
    """What is told how far a run is; entered before its first step."""

    def __enter__(self) -> Self: ...

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


class Told:
    """Passes the row of every epoch on; for a run that another process watches."""

    def __init__(self, tell: Callable[[EpochRow], None]) -> None:
        self._tell = tell

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...

    def start_epoch(self, epoch: int, done: int = 0) -> None:
        """Nothing is shown."""

    def advance(self, step: int) -> None:
        """Nothing is shown."""

    def end_epoch(self, row: EpochRow) -> None:
        """Pass it on."""
        self._tell(row)


class EpochProgress:
    """A line per epoch and, in a terminal, a bar within it; on standard error.

    The bar is fed by the host's own step counter, so nothing is read from the device, and is
    redrawn at most ten times a second.

    Args:
        epochs: Number of epochs of the run.
        steps: Steps in an epoch; None where unknown.
        judged_on: What the set read after every epoch is; None without one.
        enabled: Whether to show anything.
    """

    def __init__(
        self, *, epochs: int, steps: int | None, judged_on: str | None, enabled: bool
    ) -> None:
        self.epochs = epochs
        self.steps = steps
        self.judged_on = judged_on
        self.enabled = enabled
        self._console = Console(stderr=True, highlight=False)
        self._bar: Bar | None = None
        self._shown_at = 0.0

    def __enter__(self) -> Self:
        if self.enabled:
            self._console.print("  ".join(headings(self.judged_on)), style="bold")
            if self._console.is_terminal:
                self._bar = Bar(
                    TextColumn("{task.description}"),
                    BarColumn(),
                    MofNCompleteColumn(),
                    TextColumn("{task.fields[rate]}"),
                    TextColumn("{task.fields[left]}"),
                    console=self._console,
                    auto_refresh=False,
                    transient=True,
                )
                self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def start_epoch(self, epoch: int, done: int = 0) -> None:
        """Begin the bar of one epoch, of which so many steps are done already."""
        if self._bar is not None:
            for task in self._bar.task_ids:
                self._bar.remove_task(task)
            self._started, self._first = time.monotonic(), done
            name = f"epoch {epoch}/{self.epochs}"
            self._task = self._bar.add_task(
                name, total=self.steps, completed=done, rate="", left=""
            )
            self._epoch = epoch

    def advance(self, step: int) -> None:
        """Show that ``step`` steps of the epoch are done."""
        if self._bar is None:
            return
        now = time.monotonic()
        if now - self._shown_at < REFRESH_SECONDS:
            return
        self._shown_at = now
        rate = (step - self._first) / max(now - self._started, 1e-9)
        left = ""
        if self.steps is not None:
            steps = self.steps * (self.epochs - self._epoch + 1) - step
            left = f"{duration(steps / rate)} left of the run"
        self._bar.update(self._task, completed=step, rate=f"{rate:.0f} steps/s", left=left)
        self._bar.refresh()

    def end_epoch(self, row: EpochRow) -> None:
        """Print the line of one epoch."""
        if self.enabled:
            self._console.print("  ".join(format_row(row, self.judged_on)))


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
