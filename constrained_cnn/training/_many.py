"""Many seeds at once."""

import contextlib
import functools
import io
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from constrained_cnn.errors import (
    ConstrainedCNNError,
    InvalidInputError,
    NonFiniteLossError,
    check_integer,
    counted,
    reason_of,
)
from constrained_cnn.training._folder import RunFolder
from constrained_cnn.training._history import EpochRow, History
from constrained_cnn.training._interrupt import InterruptGuard
from constrained_cnn.training._processes import Send, in_processes
from constrained_cnn.training._progress import duration, standard_error
from constrained_cnn.training._threads import usable_cores
from constrained_cnn.training._world import World

if TYPE_CHECKING:
    from constrained_cnn.training._source import Data
    from constrained_cnn.training._trainer import Trainer


@dataclass(frozen=True, repr=False)
class Fitted:
    """What one seed gave.

    Attributes:
        seed: The seed.
        model: The trained network, on the CPU where it came from another process; None if the run
            diverged.
        history: Its epochs; None if it diverged.
        error: Why, if it diverged: a seed that fails is a result as well.
    """

    seed: int
    model: nn.Module | None
    history: History | None
    error: NonFiniteLossError | None = None

    def __repr__(self) -> str:
        return f"Fitted(seed {self.seed}: {say_fitted(self)})"


def check_seeds(seeds: Iterable[int]) -> list[int]:
    """Return the seeds as a list.

    Raises:
        InvalidInputError: Unless they are integers of at least 0, at least one, each once.
    """
    if not isinstance(seeds, Iterable):
        raise InvalidInputError(f"seeds={seeds!r}: must be a sequence of integers")
    checked = [check_integer("seed", seed, minimum=0) for seed in seeds]
    if not checked or len(set(checked)) != len(checked):
        raise InvalidInputError(f"seeds={checked!r}: must be at least one, each once")
    return checked


def share_cores(jobs: int, workers: int | None, threads: int | None) -> tuple[int, int]:
    """Return how many processes to use for ``jobs``, and how many threads each.

    One process for each core, as a step of a small network gains less from a second thread than a
    second network does; threads that are left over are shared out.
    """
    cores = usable_cores()
    if workers is None:
        workers = max(1, min(jobs, cores // (threads or 1)))
    workers = min(check_integer("workers", workers, minimum=1, maximum=4096), jobs)
    return workers, threads or max(1, cores // workers)


def seeded_model(make_model: Callable[[], nn.Module], seed: int) -> nn.Module:
    """Return a new model whose weights are drawn from ``seed``; the caller's generator stays."""
    with torch.random.fork_rng([]):
        # Not torch.manual_seed, which would set the caller's generators on every GPU too.
        torch.default_generator.manual_seed(seed)
        model = make_model()
    if not isinstance(model, nn.Module):
        raise InvalidInputError(
            f"make_model: made a {type(model).__name__}; must make a torch.nn.Module"
        )
    return model


@dataclass(frozen=True)
class FitOne:
    """Trains one seed: what is sent to a process.

    Attributes:
        trainer: The trainer; its seed is replaced.
        make_model: Makes a network.
        train: As for ``Trainer.fit``.
        validation: As for ``Trainer.fit``.
        options: Further keywords of ``Trainer.fit``.
        folder: Folder of the runs, or None.
        resume: Whether runs that were begun go on.
    """

    trainer: "Trainer"
    make_model: Callable[[], nn.Module]
    train: "Data"
    validation: "Data | None"
    folder: Path | None
    resume: bool
    options: dict[str, Any]

    def fit(self, seed: int, tell: Callable[[EpochRow], None] | bool) -> Fitted:
        """Train one seed in this process."""
        trainer = self.trainer.with_seed(seed, progress=tell)
        model = seeded_model(self.make_model, seed)
        folder = None if self.folder is None else RunFolder(self.folder / f"seed-{seed}")
        resume = self.resume and folder is not None and folder.holds_checkpoint
        try:
            history = trainer.fit(
                model, self.train, self.validation, folder=folder, resume=resume, **self.options
            )
        except NonFiniteLossError as error:
            return Fitted(seed, None, None, error)
        return Fitted(seed, model, history)

    def __call__(self, seed: int, send: Send) -> "Reply":
        return reply_of(self.fit(seed, send))

    def received(self, seed: int, reply: "Reply") -> Fitted:
        """Return what a seed gave in another process, with a model made here."""
        content, history, error = reply
        if history is None:
            return Fitted(seed, None, None, error)
        model = seeded_model(self.make_model, seed)
        try:
            state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
            model.load_state_dict(state)
        except Exception as error:  # what a module loads may raise anything
            raise ConstrainedCNNError(
                f"seed {seed}: its model cannot come from the process that trained it, as what it "
                f"holds fits no new one of make_model ({reason_of(error)}); give workers=1"
            ) from error
        return Fitted(seed, model.eval(), history)


Reply = tuple[bytes, History | None, NonFiniteLossError | None]


def reply_of(fitted: Fitted) -> Reply:
    """Return what a seed gave as another process can take it: its class may be known only here."""
    stream = io.BytesIO()
    # As bytes: tensors that travel through shared memory end with the process that made them.
    torch.save({} if fitted.model is None else fitted.model.state_dict(), stream)
    return stream.getvalue(), fitted.history, fitted.error


def fit_many(one: FitOne, seeds: Sequence[int], workers: int, threads: int) -> list[Fitted]:
    """Train every seed; return those that were begun, in the order of the seeds."""
    trainer = one.trainer
    shown = SeedsProgress(len(seeds), trainer.config.epochs, enabled=trainer.progress is not False)
    found: dict[int, Fitted] = {}
    if workers == 1:
        with InterruptGuard() as guard:  # a signal may come between two seeds
            for seed in seeds:
                if guard.requested:
                    break
                found[seed] = one.fit(seed, functools.partial(shown.end_epoch, seed))
                shown.end_seed(seed, say_fitted(found[seed]))
    else:
        replies = in_processes(
            one, seeds, workers=workers, threads=threads, on_message=shown.end_epoch
        )
        with contextlib.closing(replies):  # or, after an error here, the processes would stay
            for seed, reply in replies:
                found[seed] = one.received(seed, reply)
                shown.end_seed(seed, say_fitted(found[seed]))
    return [found[seed] for seed in seeds if seed in found]


def check_same_seeds(world: World, seeds: Sequence[int]) -> None:
    """Raise in every process unless all of them are asked for the same seeds.

    Raises:
        InvalidInputError: With what two of them are asked for.
    """
    for rank, other in enumerate(world.gathered(list(seeds))):
        if other != list(seeds):
            raise InvalidInputError(
                f"the processes are asked for different seeds: process {world.rank} for "
                f"{list(seeds)} and process {rank} for {other}. Give all of them the same"
            )


def shared_out(
    world: World, one: FitOne, seeds: Sequence[int], own: Sequence[Fitted]
) -> list[Fitted]:
    """Return what the seeds gave, which several processes trained, in the order of the seeds.

    Args:
        world: The processes.
        one: What trained them.
        seeds: All seeds.
        own: What this process trained.
    """
    found = {fitted.seed: fitted for fitted in own}
    told = [(fitted.seed, reply_of(fitted)) for fitted in own] if world.size > 1 else []
    for rank, part in enumerate(world.gathered(told)):
        for seed, reply in part if rank != world.rank else ():
            found[seed] = one.received(seed, reply)
    return [found[seed] for seed in seeds if seed in found]


class SeedsProgress:
    """A line per seed on standard error, and in a terminal one that says how far they are.

    Args:
        seeds: Number of seeds.
        epochs: Epochs of each.
        enabled: Whether to show anything.
    """

    def __init__(self, seeds: int, epochs: int, *, enabled: bool) -> None:
        self._console = standard_error()
        self._seeds, self._epochs = seeds, epochs
        self._enabled = enabled
        self._started = time.monotonic()
        self._done = self._ended = 0

    def end_epoch(self, seed: int, row: EpochRow) -> None:
        """An epoch of a seed is done."""
        self._done += 1
        if self._enabled and self._console.is_terminal:
            share = self._done / (self._seeds * self._epochs)
            left = (time.monotonic() - self._started) * (1 - share) / share
            self._console.print(
                f"{self._ended} of {self._seeds} seeds done, {100 * share:.0f} % of all epochs, "
                f"{duration(left)} left   ",
                end="\r",
            )

    def end_seed(self, seed: int, said: str) -> None:
        """A seed is done; ``said`` is what is told of it."""
        self._ended += 1
        if self._enabled:
            line = f"seed {seed} ({self._ended} of {self._seeds}): {said}"
            # In a terminal it covers the line that said how far they are.
            self._console.print(line.ljust(60) if self._console.is_terminal else line)


def say_fitted(fitted: Fitted) -> str:
    """Return in a few words what came of a seed."""
    history = fitted.history
    if history is None:
        return f"diverged: {fitted.error}"
    if not len(history):
        return "stopped before its first epoch ended"
    row = history[-1]
    said = f"train loss {row.train_loss:.4f}"
    if row.validation_accuracy is not None:
        said += f", {history.judged_on} accuracy {row.validation_accuracy:.2f} %"
    said += f", {sum(one.seconds for one in history):.1f} s"
    whole = history.status == "finished"
    return said if whole else f"{said}, stopped after {counted(len(history), 'epoch')}"
