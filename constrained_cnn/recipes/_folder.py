"""The folder of a run: which one to take, and what must not be lost in it."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from constrained_cnn.errors import CheckpointError, OutputError
from constrained_cnn.record import RunRecord
from constrained_cnn.training import RunFolder

RECORD = "record.json"
WEIGHTS = "weights.safetensors"


def run_folder(out: str | os.PathLike[str] | None, name: str, *, resume: bool | str) -> Path:
    """Return the folder a run may write into.

    A folder that was asked for by name is taken as it is, unless that would lose something.
    Without one the run goes to ``runs/NAME``, or where that is taken to ``runs/NAME-run-2`` and so
    on; a resumed run goes to the newest of these that is not finished.

    Args:
        out: The folder asked for, or None.
        name: What the run is called.
        resume: Whether an unfinished run is to go on; ``"if-begun"`` for the newest run, finished
            or not, where there is one.

    Raises:
        OutputError: If the folder holds a finished run, or an unfinished one that is not to go on,
            or nothing to go on with.
    """
    if out is not None:
        folder = _named(out)
        if folder.exists() and not folder.is_dir():
            raise OutputError(f"out={str(folder)!r}: is a file; give a folder")
        _check_free(folder, resume=resume)
        return folder
    taken, free = _below_runs(name, lambda folder: (folder / RECORD).exists() or is_begun(folder))
    if not resume:
        return free
    if resume == "if-begun":  # the newest, finished or not: the same command finds its own run
        return taken[-1] if taken else free
    for folder in reversed(taken):
        if finished_record(folder) is None:
            _check_free(folder, resume=True)
            return folder
    raise OutputError(
        f"resume: {str(Path('runs') / name)!r} and those after it hold no unfinished run: there is "
        "nothing to resume"
    )


def seeds_folder(
    out: str | os.PathLike[str] | None, name: str, seeds: Sequence[int], *, resume: bool | str
) -> Path:
    """Return the folder that holds one folder for each seed.

    Args:
        out: The folder asked for; None for ``runs/NAME-seeds-A-to-B``, or where that is taken
            ``runs/NAME-seeds-A-to-B-run-2`` and so on.
        name: What the runs are called.
        seeds: The seeds.
        resume: Whether to go on in the newest one; ``"if-begun"`` where there is one.

    Raises:
        OutputError: If there is none to go on in.
    """
    if out is not None:
        folder = _named(out)
        if (folder / RECORD).exists() or is_begun(folder):
            raise OutputError(
                f"{str(folder)!r} holds a run of one seed, among which those of several are not to "
                "lie; give another folder"
            )
        taken = [folder] if folder.exists() else []
    else:
        stem = f"{name}-seeds-{seeds[0]}-to-{seeds[-1]}"
        taken, folder = _below_runs(stem, Path.exists)
    if resume is True and not taken:
        raise OutputError(f"{str(folder)!r} is not there: there is nothing to resume")
    return taken[-1] if resume and taken else folder


def _below_runs(stem: str, is_taken: Callable[[Path], bool]) -> tuple[list[Path], Path]:
    """Return the folders of this name that are taken, oldest first, and the next free one."""
    taken: list[Path] = []
    while True:
        again = f"-run-{len(taken) + 1}" if taken else ""
        folder = Path("runs") / f"{stem}{again}"
        if not is_taken(folder):
            return taken, folder
        taken.append(folder)


def _named(out: str | os.PathLike[str]) -> Path:
    return RunFolder(out).path


def _check_free(folder: Path, *, resume: bool | str) -> None:
    if finished_record(folder) is not None:
        if resume == "if-begun":
            return  # it is taken as it is
        rule = "there is nothing to resume" if resume else "which is never overwritten"
        raise OutputError(
            f"{str(folder)!r} holds a finished run, {rule}; give another folder, or remove this one"
        )
    of_a_run = (folder / RECORD).exists() or is_begun(folder)
    if (folder / WEIGHTS).exists() and not of_a_run:
        raise OutputError(
            f"{str(folder)!r} holds a {WEIGHTS} that is of no run here and would be overwritten; "
            "give another folder"
        )
    started = is_begun(folder)
    if started and not resume:
        raise OutputError(
            f"{str(folder)!r} holds an unfinished run; --resume (resume=True) goes on with it, "
            "another folder starts anew"
        )
    if resume is True and not started:
        raise OutputError(f"{str(folder)!r} holds no checkpoint: there is nothing to resume")


def is_begun(folder: Path) -> bool:
    """Return whether a folder holds a checkpoint to go on with."""
    return RunFolder(folder).holds_checkpoint


def finished_record(folder: Path) -> RunRecord | None:
    """Return the record of a finished run in a folder; None if there is none."""
    if not (folder / RECORD).exists():
        return None
    try:
        record = RunRecord.load(folder)
    except CheckpointError as error:
        if not is_begun(folder):
            raise
        raise CheckpointError(
            f"{error}; remove it, and the run, resumed, writes it again from its checkpoint"
        ) from error
    return record if record.status == "finished" else None
