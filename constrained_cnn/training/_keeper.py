"""When and how a run is written into its folder."""

import time
import warnings
from typing import TYPE_CHECKING

from torch import nn

from constrained_cnn.errors import CheckpointError, InvalidInputError, reason_of
from constrained_cnn.training._checkpoint import load_checkpoint, say_tensor, unkeepable
from constrained_cnn.training._evaluation import EXPLAINED
from constrained_cnn.training._folder import CHECKPOINT, HISTORY_FILES
from constrained_cnn.training._saved import (
    check_fits_run,
    restore,
    state_of,
    state_of_loss,
    state_of_rank,
)
from constrained_cnn.training._timings import SAVING, Timings

if TYPE_CHECKING:
    from constrained_cnn.training._run import Run


class Keeper:
    """Writes what a run can go on from, if it has a folder: checkpoint and history.

    Several processes call the same methods at the same time, and the first one writes.

    Args:
        run: The run.
    """

    def __init__(self, run: "Run") -> None:
        self._run = run
        self._folder = run.plan.folder
        self._next = 0.0  # when a checkpoint is due; set when the steps begin
        self._holds_steps = False
        self._shape: dict[str, str] | None = None  # of the model when the run was begun
        self._proven = False  # whether a checkpoint with the optimizer's state was read back

    def begin(self) -> None:
        """Write the first checkpoint of a new run, and see that the run could go on from it.

        Raises:
            OutputError: If the folder cannot be written.
            InvalidInputError: If the model holds what no checkpoint can.
        """
        if not self._run.plan.keeps:
            return
        reason = _no_way_back(self._run.plan.model)
        if reason is not None:
            raise _not_begun(reason)
        self._shape = _shape_of(self._run)
        try:
            self.save()
            self._go_on()
        except (CheckpointError, *EXPLAINED) as error:
            self.forget()
            raise _not_begun(self._unkeepable() or reason_of(error)) from error

    def wait(self) -> None:
        """Let the time begin after which a checkpoint is due within an epoch."""
        self._next = time.monotonic() + self._run.plan.checkpoint_seconds

    @property
    def is_due(self) -> bool:
        """Whether that time is over."""
        return time.monotonic() >= self._next

    def save(self, *, within: bool = False) -> None:
        """Write a checkpoint, and after an epoch the history.

        Args:
            within: Whether an epoch is under way, whose steps so far are kept as well.

        Raises:
            NonFiniteLossError: If those steps lost their way.
        """
        run = self._run
        if not run.plan.keeps:
            return
        if within:
            run.check_finite(len(run.rows) + 1)
        ranks = run.plan.world.gathered(state_of_rank(run))
        if self._folder is not None:
            before = run.watch.start(SAVING)
            seconds = run.seconds_of_epoch() if within else 0.0
            self._folder.save(state_of(run, ranks, run.timings_now(), seconds))
            self._prove()
            if not within:
                self.save_history()
            self._holds_steps = self._holds_steps or within or bool(run.rows)
            run.watch.start(before)
        self.wait()

    def save_history(self) -> None:
        """Write the history."""
        if self._folder is not None:
            history = self._run.history()
            for name in HISTORY_FILES:
                history.save(self._folder.path / name)

    def forget(self) -> None:
        """Remove what a run wrote that was refused before its first checkpoint with steps."""
        if self._folder is not None and not self._holds_steps:
            self._folder.forget()

    def _prove(self) -> None:
        """Read the first checkpoint back that holds an optimizer's state, which may be anything."""
        run = self._run
        if self._proven or not (run.rows or run.tally.steps):
            return
        self._proven = True
        reason = None
        now = _shape_of(run)
        if self._shape is not None and now != self._shape:
            changed = sorted(set(now.items()) ^ set(self._shape.items()))
            reason = f"{changed[0][0]} came, went or changed its shape while it trained"
        try:
            assert self._folder is not None
            path = self._folder.path / CHECKPOINT
            check_fits_run(run, load_checkpoint(path), str(path))
        except CheckpointError as error:
            reason = self._unkeepable() or str(error)
        if reason is not None:
            warnings.warn(f"this run cannot be resumed: {reason}", stacklevel=2)

    def _go_on(self) -> None:
        """Do with the first checkpoint what a resumed run does; nothing changes by it."""
        if self._folder is not None:
            path = self._folder.path / CHECKPOINT
            restore(self._run, load_checkpoint(path), str(path))
            self._run.timings = Timings()  # those up to now are of this part of the run

    def _unkeepable(self) -> str | None:
        """Return which part of the run can be in no checkpoint; None if all can."""
        run = self._run
        states = {
            "model": run.plan.model.state_dict(),
            "optimizer": run.optimizer.state_dict(),
            "loss": state_of_loss(run.plan.loss),
        }
        found = (unkeepable(f"the state of the {name}", state) for name, state in states.items())
        return next((one for one in found if one), None)


def _not_begun(reason: str) -> InvalidInputError:
    return InvalidInputError(
        f"this run could not be resumed, so it is not begun: {reason}. Without a folder it trains, "
        "and keeps nothing"
    )


def _shape_of(run: "Run") -> dict[str, str]:
    """Return names and shapes of all that a module holds, which a new process must have as well."""
    model = run.plan.model
    return {
        name: say_tensor(part) for name, part in (*model.named_parameters(), *model.named_buffers())
    }


def _no_way_back(model: nn.Module) -> str | None:
    """Return which module says what it holds and does not take it back; None if none does."""
    for name, part in model.named_modules():
        kind = type(part)
        keeps = kind.get_extra_state is not nn.Module.get_extra_state
        if keeps and kind.set_extra_state is nn.Module.set_extra_state:
            return (
                f"{name or 'model'}, a {kind.__name__}, has get_extra_state and no set_extra_state"
            )
    return None
