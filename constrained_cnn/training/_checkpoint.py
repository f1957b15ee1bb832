"""Checkpoints: everything a run needs to go on, in one file that cannot run code."""

import io
import os
import pickle
import zipfile
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from constrained_cnn.errors import CheckpointError, reason_of
from constrained_cnn.record import write_atomically
from constrained_cnn.training._optimizers import ELEMENTWISE, KERNELS, SCALARS

FORMAT = 3
KINDS: dict[str, Any] = {
    "config": dict,
    "callables": dict,
    "data": dict,
    "validation": dict,
    "frozen": dict,
    "processes": dict,
    "made_on": dict,
    "epoch": int,
    "step": int,
    "ranks": list,
    "seconds": float,
    "timings": dict,
    "model": dict,
    "loss": dict,
    "optimizer": dict,
    "average": dict | None,
    "rows": list,
}
KEYS = {"format", *KINDS}


class UnreadableError(CheckpointError):
    """A checkpoint cannot be read just now, or by this version; it need not be damaged."""


def save_checkpoint(path: str | os.PathLike[str], state: Mapping[str, Any]) -> Path:
    """Write ``state`` to ``path``, atomically: a killed run leaves the previous checkpoint.

    Raises:
        OutputError: If the file cannot be written.
        CheckpointError: If something in it can be in no file.
    """
    stream = io.BytesIO()
    try:
        torch.save({"format": FORMAT, **state}, stream)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise CheckpointError(
            f"the state of the run cannot be written into a checkpoint: {reason_of(error)}"
        ) from error
    return write_atomically(path, stream.getvalue())


def load_checkpoint(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a checkpoint back, on the CPU. No code from the file is run.

    Raises:
        UnreadableError: If the system does not give the file's content, or it is of another
            version.
        CheckpointError: If the file is missing, damaged, or not a checkpoint.
    """
    try:
        content = io.BytesIO(Path(path).read_bytes())
    except FileNotFoundError as error:
        raise CheckpointError(
            f"no checkpoint at {str(path)!r}: there is nothing to resume"
        ) from error
    except (OSError, MemoryError) as error:
        raise UnreadableError(
            f"checkpoint {str(path)!r} cannot be read: {reason_of(error)}; nothing was changed: "
            "try again when it can"
        ) from error
    try:
        # torch.load does not look at the checksums of its own format, which is a zip file.
        with zipfile.ZipFile(content) as archive:
            broken = archive.testzip()
            # Torch takes a member that is marked as a folder for an empty one, and loads what
            # happens to be in memory.
            folders = [part.filename for part in archive.infolist() if part.external_attr & 0x10]
            broken = broken or next(iter(folders), None)
        if broken is not None:
            raise zipfile.BadZipFile(f"{broken} does not match its checksum")
        content.seek(0)
        state = torch.load(content, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        # Not torch's own words, which advise to load it with weights_only=False.
        raise CheckpointError(
            f"checkpoint {str(path)!r} is damaged, or none of this library: it holds something "
            "else than tensors and plain data, and none of it was run"
        ) from error
    except Exception as error:  # torch raises many kinds for damaged files
        reason = reason_of(error)
        raise CheckpointError(f"checkpoint {str(path)!r} is damaged: {reason}") from error
    found = state.get("format") if isinstance(state, dict) else None
    if type(found) is int and found != FORMAT:
        raise UnreadableError(
            f"checkpoint {str(path)!r} is of format {found}, and this version of the library goes "
            f"on with format {FORMAT}: finish the run with the version that began it"
        )
    if found != FORMAT or set(state) != KEYS:
        raise CheckpointError(f"{str(path)!r} is not a checkpoint of format {FORMAT}")
    for name, kind in KINDS.items():
        if not isinstance(state[name], kind):
            raise CheckpointError(
                f"checkpoint {str(path)!r} is damaged: its {name!r} is a "
                f"{type(state[name]).__name__}"
            )
    return state


def check_same(path: str, what: str, saved: Mapping[str, Any], current: Mapping[str, Any]) -> None:
    """Raise unless two descriptions are equal, listing what differs."""
    differing = [
        f"{name} was {saved.get(name)!r} and is {current.get(name)!r}"
        for name in sorted({*saved, *current}, key=str)
        if saved.get(name) != current.get(name)
    ]
    if differing:
        raise CheckpointError(
            f"checkpoint {path!r} comes from a run with other {what}: {'; '.join(differing)}. "
            "Resume with the same, or start in another folder"
        )


def check_same_model(
    path: str,
    saved: Mapping[str, Any],
    current: Mapping[str, Any],
    trained: Collection[str],
    *,
    what: str = "model",
) -> None:
    """Raise unless two state dictionaries have the same names, shapes and types.

    Args:
        path: The file, for messages.
        saved: What it holds.
        current: What is here.
        trained: Names of the weights that are trained, which a run never keeps with NaN or
            infinity; a buffer, such as a mask, may have them.
        what: Whose they are.
    """
    tensors = {name: part for name, part in saved.items() if not _is_extra(str(name))}
    for name, part in tensors.items():
        if not (isinstance(name, str) and isinstance(part, Tensor)):
            raise CheckpointError(
                f"{path!r} is damaged: among its weights is {name!r}, a {type(part).__name__}"
            )
    for name, part in tensors.items():
        if name in trained and not bool(torch.isfinite(part).all()):
            raise CheckpointError(f"{path!r} is damaged: {name} holds NaN or infinity")
    problems = [f"{name} is not in the file" for name in current if name not in saved]
    problems += [f"{name} is only in the file" for name in saved if name not in current]
    for name, part in tensors.items():
        there, here = (say_tensor(one) for one in (part, current.get(name, part)))
        if there != here:
            problems.append(f"{name} is {there} in the file and {here} here")
    if problems:
        listed = "; ".join(problems[:4]) + ("; ..." if len(problems) > 4 else "")
        raise CheckpointError(f"{path!r} holds the weights of another {what}: {listed}")


def _is_extra(name: str) -> bool:
    """Whether it is what a module adds by ``get_extra_state``, which need be no tensor."""
    return name.rpartition(".")[2] == "_extra_state"


def say_tensor(part: Tensor) -> str:
    """Return type and shape as they are written: ``float32 (4, 1, 3, 3)``."""
    return f"{str(part.dtype).removeprefix('torch.')} {tuple(part.shape)}"


def check_same_optimizer(path: str, saved: Mapping[str, Any], optimizer: Optimizer) -> None:
    """Raise unless an optimizer's saved state fits the parameters of ``optimizer``.

    Torch compares the number of groups and parameters and nothing else.
    """
    current = optimizer.state_dict()
    try:
        groups = [(len(group["params"]), set(group)) for group in saved["param_groups"]]
        states = dict(saved["state"])
        numbers = [number for group in saved["param_groups"] for number in group["params"]]
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{path!r} is damaged: its optimizer is none ({reason_of(error)})"
        ) from error
    here = [(len(group["params"]), set(group)) for group in current["param_groups"]]
    parameters = [part for group in optimizer.param_groups for part in group["params"]]
    fits = groups == here and numbers == list(range(len(parameters)))
    # Of optimizers other than torch's it is not known what they keep, and where.
    if fits and type(optimizer) in ELEMENTWISE:
        fits = set(states) <= {*numbers}
        fits = fits and all(_fits(state, parameters[n]) for n, state in states.items())
        pairs = zip(saved["param_groups"], optimizer.param_groups, strict=True)
        fits = fits and all(_same_settings(there, here) for there, here in pairs)
    if not fits:
        raise CheckpointError(
            f"{path!r}: its optimizer does not fit: it moved other parameters, or in another way"
        )


def _fits(state: Any, parameter: Tensor) -> bool:
    """Whether it is what one of torch's optimizers keeps for a parameter.

    Its kernels do not look at sizes, and would write beyond what is too small.
    """
    if not isinstance(state, dict):
        return False
    for name, part in state.items():
        if not isinstance(part, Tensor):
            if not isinstance(part, int | float | None):
                return False
        elif part.shape != (() if name in SCALARS else parameter.shape):
            return False
    return True


def _same_settings(saved: Mapping[str, Any], current: Mapping[str, Any]) -> bool:
    """Whether the settings of a group are the same, but for the rate and the kernels."""
    for name in set(current) - {"params", "lr", *KERNELS}:
        there, here = saved[name], current[name]
        if isinstance(there, Tensor) or isinstance(here, Tensor):
            there, here = (torch.as_tensor(one).tolist() for one in (there, here))
        if there != here and list(_flat(there)) != list(_flat(here)):
            return False
    return True


def _flat(value: Any) -> Iterator[Any]:
    """Yield the parts of a tuple or list, tensors as numbers; a file may hold one for the other."""
    for part in value if isinstance(value, tuple | list) else [value]:
        yield part.tolist() if isinstance(part, Tensor) else part


def unkeepable(name: str, value: Any) -> str | None:
    """Return the first thing in a state that can be in no checkpoint; None if all can.

    Args:
        name: What the state is called.
        value: The state.
    """
    if isinstance(value, dict | list) and type(value).__module__ in ("builtins", "collections"):
        parts = value.items() if isinstance(value, dict) else enumerate(value)
        found = (unkeepable(f"{name}[{key!r}]", part) for key, part in parts)
        return next((one for one in found if one), None)
    stream = io.BytesIO()
    try:
        torch.save(value, stream)
        stream.seek(0)
        torch.load(stream, weights_only=True)
    except Exception:  # noqa: BLE001 - whatever it is, it cannot be kept
        kind = type(value).__name__
        return f"{name} is a {kind}, and a checkpoint holds nothing but tensors and plain data"
    return None
