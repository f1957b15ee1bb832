"""The folder of a run: which one to take, and what must not be lost in it."""

import os
from collections.abc import Sequence
from pathlib import Path

from constrained_cnn.errors import OutputError
from constrained_cnn.record import RunRecord

RECORD = "record.json"
CHECKPOINT = "checkpoint.pt"


def run_folder(out: str | os.PathLike[str] | None, name: str, *, resume: bool) -> Path:
    """Return the folder a run may write into.

    A folder that was asked for by name is taken as it is, unless that would lose something.
    Without one the run goes to ``runs/NAME``, or where that is taken to ``runs/NAME-2`` and so on;
    a resumed run goes to the newest of these.

    Args:
        out: The folder asked for, or None.
        name: What the run is called.
        resume: Whether an unfinished run is to go on.

    Raises:
        OutputError: If the folder holds a finished run, or an unfinished one that is not to go on.
    """
    if out is not None:
        folder = _named(out)
        if folder.exists() and not folder.is_dir():
            raise OutputError(f"out={str(folder)!r}: is a file; give a folder")
        _check_free(folder, resume=resume)
        return folder
    candidates = [Path("runs") / name]
    while (candidates[-1] / RECORD).exists() or (candidates[-1] / CHECKPOINT).exists():
        candidates.append(Path("runs") / f"{name}-{len(candidates) + 1}")
    if not resume:
        return candidates[-1]
    newest = candidates[max(len(candidates) - 2, 0)]
    _check_free(newest, resume=True)
    return newest


def seeds_folder(
    out: str | os.PathLike[str] | None, name: str, seeds: Sequence[int], *, resume: bool
) -> Path:
    """Return the folder that holds one folder for each seed.

    Args:
        out: The folder asked for, or None for ``runs/NAME-seeds-A-B``, with a number if taken.
        name: What the runs are called.
        seeds: The seeds.
        resume: Whether to go on in the newest one.
    """
    if out is not None:
        return _named(out)
    stem = f"{name}-seeds-{seeds[0]}-{seeds[-1]}"
    candidates = [Path("runs") / stem]
    while candidates[-1].exists():
        candidates.append(Path("runs") / f"{stem}-{len(candidates) + 1}")
    return candidates[-2] if resume and len(candidates) > 1 else candidates[-1]


def _named(out: str | os.PathLike[str]) -> Path:
    if not os.fspath(out):
        raise OutputError("out='': must name a folder")
    return Path(out)


def _check_free(folder: Path, *, resume: bool) -> None:
    if (folder / RECORD).exists() and RunRecord.load(folder).status == "finished":
        raise OutputError(
            f"{str(folder)!r} holds a finished run, which is never overwritten; "
            "give another folder, or remove this one"
        )
    started = (folder / CHECKPOINT).exists()
    if started and not resume:
        raise OutputError(
            f"{str(folder)!r} holds an unfinished run; --resume (resume=True) goes on with it, "
            "another folder starts anew"
        )
    if resume and not started:
        raise OutputError(f"{str(folder)!r} holds no checkpoint: there is nothing to resume")
