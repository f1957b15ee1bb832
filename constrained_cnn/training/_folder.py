"""The folder of a run: one process at a time, and two checkpoints, of which one is always whole."""

import os
import shutil
import warnings
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from constrained_cnn.errors import CheckpointError, InvalidInputError, OutputError, counted
from constrained_cnn.record import UNFINISHED, remove_unfinished
from constrained_cnn.training._checkpoint import UnreadableError, load_checkpoint, save_checkpoint

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

CHECKPOINT = "checkpoint.pt"
BEFORE = "checkpoint-before.pt"
DAMAGED = "checkpoint-damaged.pt"
HISTORY_FILES = ("history.jsonl", "history.csv")


# In place of True or False: go on with a run where there is one.
IF_BEGUN = "if-begun"


def check_resume(resume: bool | str) -> None:
    """Raise unless ``resume`` is True, False or ``"if-begun"``.

    Raises:
        InvalidInputError: If it is something else.
    """
    if resume is not True and resume is not False and resume != IF_BEGUN:
        raise InvalidInputError(f"resume={resume!r}: must be True, False or {IF_BEGUN!r}")


class RunFolder:
    """A folder that one run writes into while it is entered; a second one is refused.

    The lock is the operating system's, on the folder itself, so that it is gone with the process,
    however that ended, and leaves no file. Where there are no such locks (Windows, some network
    drives) nothing is locked. It may be entered again while it is entered.

    Args:
        path: The folder; entering makes it.

    Raises:
        OutputError: On entering, if another run is in it, or it cannot be made.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        if not isinstance(path, str | os.PathLike) or not os.fspath(path):
            raise OutputError(f"folder={path!r}: must name a folder")
        if "\0" in os.fspath(path):
            raise OutputError(f"folder={path!r}: holds a NUL, which no name of a file can")
        self.path = Path(path)
        self._entered = 0
        self._made = False
        self._lock: int | None = None

    def __fspath__(self) -> str:
        return os.fspath(self.path)

    def __enter__(self) -> Self:
        if not self._entered:
            try:
                self._made = not self.path.exists()
                self.path.mkdir(parents=True, exist_ok=True)
                self._lock = _locked(self.path)
            except BlockingIOError as error:
                raise OutputError(
                    f"folder={str(self.path)!r}: another run is writing into it; wait for its end, "
                    "or give another folder"
                ) from error
            except OSError as error:
                raise OutputError(
                    f"cannot write into {str(self.path)!r}: {error.strerror or error}; "
                    "choose a folder you can write to"
                ) from error
            # What a process that was killed had begun to write.
            remove_unfinished(self.path)
        self._entered += 1
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._entered -= 1
        if self._entered:
            return
        if self._made:
            with suppress(OSError):  # nothing came of it, or something did
                self.path.rmdir()
        if self._lock in _HELD:  # not in a process that was forked, which has let go
            _HELD.discard(self._lock)
            fcntl.flock(self._lock, fcntl.LOCK_UN)
            os.close(self._lock)
        self._lock = None

    @property
    def holds_checkpoint(self) -> bool:
        """Whether there is something to resume."""
        return any(os.path.exists(self.path / name) for name in (CHECKPOINT, BEFORE))

    def check_free(self) -> None:
        """Raise if the folder holds what a new run would overwrite."""
        for name in (CHECKPOINT, BEFORE, *HISTORY_FILES):
            if os.path.exists(self.path / name):
                raise OutputError(
                    f"folder={str(self.path)!r}: holds the {name} of a run, which would be "
                    "overwritten; resume=True goes on with that run, another folder starts anew"
                )

    def save(self, state: dict[str, Any]) -> None:
        """Write a checkpoint; the one before it is kept.

        Raises:
            OutputError: If it cannot be written; what was there stays.
        """
        newest, before = self.path / CHECKPOINT, self.path / BEFORE
        if newest.exists():
            _put_beside(newest, before)
        save_checkpoint(newest, state)

    def load(self) -> tuple[Path, dict[str, Any]]:
        """Return the newest checkpoint that is whole; a warning names one that is not.

        A damaged one is put aside as ``checkpoint-damaged.pt``.

        Raises:
            CheckpointError: If there is none.
        """
        newest, before = self.path / CHECKPOINT, self.path / BEFORE
        try:
            return newest, load_checkpoint(newest)
        except UnreadableError:
            raise
        except CheckpointError as error:
            if not before.exists():
                raise
            try:
                state = load_checkpoint(before)
            except CheckpointError as second:
                raise CheckpointError(f"{error}; and of the one before it, {second}") from error
            reason = str(error)
        if newest.exists():
            os.replace(newest, self.path / DAMAGED)
            reason += f", and was put aside as {DAMAGED}"
        os.replace(before, newest)
        warnings.warn(
            f"{reason}; the run goes on from the checkpoint before it, {_progress_of(state)}",
            stacklevel=2,
        )
        return newest, state

    def forget(self) -> None:
        """Remove what a run wrote that was refused before its first checkpoint."""
        for name in (CHECKPOINT, BEFORE, *HISTORY_FILES):
            (self.path / name).unlink(missing_ok=True)


def _locked(folder: Path) -> int | None:
    """Return an open descriptor that holds the lock of a folder; None where there are no locks.

    Raises:
        BlockingIOError: If another has it.
    """
    if fcntl is None:
        return None
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        if isinstance(error, BlockingIOError):
            raise
        return None  # a file system without locks
    _HELD.add(descriptor)
    return descriptor


# Of the folders this process has locked. A process that is forked, such as one of a loader's, has
# them too, and with them the locks, which it would keep for a while after this one was killed.
_HELD: set[int] = set()


def _let_go() -> None:
    for descriptor in _HELD:
        with suppress(OSError):
            os.close(descriptor)
    _HELD.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go)


def _put_beside(newest: Path, before: Path) -> None:
    """Make ``before`` a second name of ``newest``, so that neither is missing at any time."""
    passing = before.with_name(f".{before.name}{UNFINISHED}")
    try:
        passing.unlink(missing_ok=True)
        try:
            os.link(newest, passing)
        except OSError:  # a file system without links
            shutil.copyfile(newest, passing)
        os.replace(passing, before)
    except OSError as error:
        raise OutputError(
            f"cannot write {str(before)!r}: {error.strerror or error}; "
            "choose a folder you can write to"
        ) from error
    finally:
        passing.unlink(missing_ok=True)


def _progress_of(state: dict[str, Any]) -> str:
    steps = f" and {counted(state['step'], 'step')}" if state["step"] else ""
    return f"after {counted(state['epoch'], 'epoch')}{steps}"
