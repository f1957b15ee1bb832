"""When and how a run is written into its folder."""

import time
import warnings
from typing import TYPE_CHECKING

from constrained_cnn.errors import CheckpointError, InvalidInputError
from constrained_cnn.training._checkpoint import load_checkpoint
from constrained_cnn.training._folder import CHECKPOINT, HISTORY_FILES
from constrained_cnn.training._saved import check_fits_run, state_of, state_of_rank
from constrained_cnn.training._timings import SAVING

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
        self._proven = False  # whether a checkpoint with the optimizer's state was read back

    def begin(self) -> None:
        """Write the first checkpoint of a new run, and see that the run could go on from it.

        Raises:
            OutputError: If the folder cannot be written.
            InvalidInputError: If the model holds what no checkpoint can.
        """
        try:
            self.save()
            self._read_back()
        except CheckpointError as error:
            self.forget()
            raise InvalidInputError(
                f"a run of this model could not be resumed, so it is not begun: {error}. Without a "
                "folder it trains, and keeps nothing"
            ) from error

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
        try:
            self._read_back()
        except CheckpointError as error:
            warnings.warn(f"this run cannot be resumed: {error}", stacklevel=2)

    def _read_back(self) -> None:
        """Raise CheckpointError unless the run could go on from what it has just written."""
        if self._folder is not None:
            path = self._folder.path / CHECKPOINT
            check_fits_run(self._run, load_checkpoint(path), str(path))
