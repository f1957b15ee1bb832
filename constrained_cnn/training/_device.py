"""Where training takes place, and what that place can do."""

import warnings

import torch

from constrained_cnn.errors import InvalidInputError
from constrained_cnn.training._world import local_rank


def find_device(device: str | torch.device) -> torch.device:
    """Return the torch device that ``device`` names.

    Raises:
        InvalidInputError: If there is no such device here.
    """
    if str(device) == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        found = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise InvalidInputError(
            f"device={device!r}: must be 'auto', 'cpu', 'cuda', 'cuda:0' or the like"
        ) from error
    if found.type == "cuda":
        if not torch.cuda.is_available():
            raise InvalidInputError(f"device={str(device)!r}: this machine has no CUDA device")
        index = found.index
        if index is None:  # of several processes each has the GPU of its number
            place = local_rank()
            index = torch.cuda.current_device() if place is None else place
        if index >= torch.cuda.device_count():
            count = torch.cuda.device_count()
            raise InvalidInputError(f"device={str(device)!r}: there are {count} CUDA devices here")
        return torch.device("cuda", index)
    if found.type == "mps":
        if not torch.backends.mps.is_available():
            raise InvalidInputError("device='mps': this machine has no MPS device")
        warnings.warn("training on MPS is untested; compare with a CPU run", stacklevel=3)
    elif found.type != "cpu":
        raise InvalidInputError(f"device={str(device)!r}: only 'cpu', 'cuda' and 'mps' are known")
    return found


def check_autocast(autocast: str | None, device: torch.device) -> None:
    """Raise unless ``device`` computes in the type that ``autocast`` names.

    Raises:
        InvalidInputError: If it does not.
    """
    if autocast is None:
        return
    try:
        with torch.autocast(device.type, dtype=getattr(torch, autocast)):
            pass
    except RuntimeError as error:
        raise InvalidInputError(
            f"autocast={autocast!r}: device {device} does not compute in it ({error}); leave it out"
        ) from error
