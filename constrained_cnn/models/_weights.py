"""Weights in safetensors files: those that come with the package, and a person's own."""

import hashlib
import os
from dataclasses import dataclass
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import nn

from constrained_cnn.errors import CheckpointError, InvalidInputError, check_choice
from constrained_cnn.record import RunRecord, write_atomically


@dataclass(frozen=True)
class Weights:
    """Trained weights that come with the package.

    Attributes:
        model: Name of the model they belong to.
        name: Their own name, such as ``"mnist"``.
        sha256: Checksum of the file.
        mean: Mean of the images they were trained on, per channel, full scale being 1.
        std: Deviation of those images, likewise.
        classes: What the outputs stand for.
    """

    model: str
    name: str
    sha256: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    classes: tuple[str, ...]

    @property
    def record(self) -> RunRecord:
        """The record of the run that made them."""
        with resources.as_file(_file(self, "json")) as path:
            return RunRecord.load(path)

    def load_into(self, model: nn.Module) -> None:
        """Fill ``model`` with these weights.

        Raises:
            CheckpointError: If the file is missing or damaged, or the model is another.
        """
        file = _file(self, "safetensors")
        try:
            content = file.read_bytes()
        except OSError as error:
            raise CheckpointError(
                f"{file.name}: cannot be read ({error.strerror}); install the package again"
            ) from error
        if hashlib.sha256(content).hexdigest() != self.sha256:
            raise CheckpointError(
                f"{file.name}: does not match its checksum; install the package again"
            )
        _fill(model, content, file.name)


def list_weights(model: str) -> list[str]:
    """Return the names of the weights that come with the package for ``model``.

    Examples:
        >>> list_weights("mnist_12k")
        ['mnist']
    """
    return sorted(weights.name for weights in _SHIPPED if weights.model == model)


def get_weights(model: str, name: str) -> Weights:
    """Return the weights called ``name`` that come with the package for ``model``.

    Raises:
        InvalidInputError: If there are none of that name.

    Examples:
        >>> get_weights("mnist_12k", "mnist").classes[:3]
        ('0', '1', '2')
    """
    names = list_weights(model)
    if not names:
        raise InvalidInputError(
            f"weights={name!r}: none come with the package for {model!r}; "
            "use weights=None and train it"
        )
    check_choice(f"weights of {model}", name, names)
    return next(found for found in _SHIPPED if (found.model, found.name) == (model, name))


def save_weights(model: nn.Module, path: str | os.PathLike[str]) -> Path:
    """Write the model's weights and buffers to a ``.safetensors`` file, atomically.

    Raises:
        OutputError: If the file cannot be written.
    """
    # Copies, each of its own: safetensors stores rows in order, whatever the memory layout was,
    # and refuses parts that share memory, as tied weights do.
    tensors = {
        name: part.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, part in model.state_dict().items()
    }
    return write_atomically(path, safetensors.torch.save(tensors))


def load_weights(
    model: nn.Module, path: str | os.PathLike[str], *, sha256: str | None = None
) -> None:
    """Fill ``model`` with the weights in a ``.safetensors`` file. No code from it is run.

    Args:
        model: The network.
        path: The file.
        sha256: Checksum the file must have, such as that of a run's record; None for any.

    Raises:
        CheckpointError: If the file is missing or damaged, or belongs to another model or run.
    """
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise CheckpointError(f"cannot read weights {str(path)!r}: {error.strerror}") from error
    found = hashlib.sha256(content).hexdigest()
    if sha256 not in (None, found):
        raise CheckpointError(
            f"weights {str(path)!r} are not those of the record: their SHA-256 is {found}, and the "
            f"record says {sha256}"
        )
    _fill(model, content, str(path))


_SHIPPED: tuple[Weights, ...] = (
    Weights(
        model="mnist_12k",
        name="mnist",
        sha256="47564b9af0e01e0bba8fd53192a10ad5808567a360c9c6358dc1f737f98997d9",
        mean=(0.1307,),
        std=(0.3081,),
        classes=tuple("0123456789"),
    ),
)


def _file(weights: Weights, suffix: str) -> Traversable:
    folder = resources.files("constrained_cnn.models") / "weights"
    return folder / f"{weights.model}-{weights.name}.{suffix}"


def _fill(model: nn.Module, content: bytes, name: str) -> None:
    try:
        tensors = safetensors.torch.load(content)
    except (safetensors.SafetensorError, ValueError) as error:
        raise CheckpointError(f"weights {name!r} are damaged: {error}") from error
    # torch copies what fits before it says what does not, so everything is compared first.
    state = model.state_dict()
    wanted = {key: tuple(part.shape) for key, part in state.items()}
    found = {key: tuple(part.shape) for key, part in tensors.items()}
    for key in [*wanted, *sorted(found)]:
        if wanted.get(key) != found.get(key):
            raise CheckpointError(
                f"weights {name!r} belong to another model: {key!r} is "
                f"{found.get(key, 'missing')} in the file and {wanted.get(key, 'missing')} "
                "in the model"
            )
    for key, part in tensors.items():
        if part.is_floating_point() != state[key].is_floating_point():
            raise CheckpointError(f"weights {name!r} are damaged: {key!r} is of type {part.dtype}")
        if not bool(part.to(state[key].dtype).isfinite().all()):
            raise CheckpointError(f"weights {name!r} are damaged: {key!r} holds NaN or infinity")
    model.load_state_dict(tensors)
