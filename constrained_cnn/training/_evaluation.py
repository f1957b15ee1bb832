"""Evaluation: how a model does on a set, read once at the end."""

import itertools
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from constrained_cnn.errors import ConstrainedCNNError, InvalidInputError, reason_of
from constrained_cnn.training._executor import Loss, count_correct
from constrained_cnn.training._source import Source

# What torch, a model or a loss raise for a batch they cannot take.
EXPLAINED = (
    RuntimeError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    AssertionError,
    ArithmeticError,
    UserWarning,
)


@dataclass(frozen=True)
class Evaluation:
    """How a model does on a set.

    Attributes:
        loss: Mean over the samples.
        accuracy: In percent; None where accuracy has no meaning.
        samples: Number of samples.
        errors: Number of wrong answers; None where accuracy has no meaning.
    """

    loss: float
    accuracy: float | None
    samples: int
    errors: int | None

    def __str__(self) -> str:
        if self.accuracy is None:
            return f"loss {self.loss:.4f} over {self.samples} samples"
        return (
            f"{self.accuracy:.2f} % ({self.errors} of {self.samples} wrong), loss {self.loss:.4f}"
        )


class Tally:
    """Losses and counts of correct answers, kept on the device until they are read.

    A loss is the mean of its batch, so it weighs as much as the batch has samples.
    """

    def __init__(self) -> None:
        self._losses: list[Tensor] = []
        self._correct: list[Tensor | None] = []
        self._sizes: list[int] = []

    def add(self, loss: Tensor, correct: Tensor | None, size: int) -> None:
        """Keep what one batch gave."""
        self._losses.append(loss.reshape(()))  # one number, as a loss of one's own may be (1,)
        self._correct.append(correct)
        self._sizes.append(size)

    @property
    def samples(self) -> int:
        """Number of samples so far."""
        return sum(self._sizes)

    @property
    def steps(self) -> int:
        """Number of batches so far."""
        return len(self._sizes)

    def first_bad_step(self) -> int | None:
        """Return the first step, counted from 1, whose loss is not finite; None if all are."""
        bad = ~torch.isfinite(torch.stack(self._losses))
        return int(bad.int().argmax()) + 1 if bool(bad.any()) else None

    def read(self) -> Evaluation:
        """Read the totals: the one moment at which the host waits for the device."""
        losses = torch.stack(self._losses).double().cpu()
        weights = torch.tensor(self._sizes, dtype=torch.float64)
        loss = float((losses * weights).sum() / weights.sum())
        counts = [count for count in self._correct if count is not None]
        if len(counts) < len(self._correct):
            return Evaluation(loss, None, self.samples, None)
        right = int(torch.stack(counts).sum())
        return Evaluation(loss, 100.0 * right / self.samples, self.samples, self.samples - right)


@contextmanager
def evaluating(*modules: nn.Module) -> Iterator[None]:
    """Put ``modules`` in evaluation mode for a while; every part gets its own mode back."""
    parts = list(itertools.chain.from_iterable(module.modules() for module in modules))
    modes = [part.training for part in parts]
    try:
        for module in modules:
            module.eval()
        yield
    finally:
        for part, mode in zip(parts, modes, strict=True):
            part.training = mode


@contextmanager
def explained(
    name: str, batch: int, inputs: Tensor, targets: Tensor | None = None
) -> Iterator[None]:
    """Make an error of torch on one batch say which batch it was, and what it held.

    Args:
        name: What the data is called.
        batch: Number of the batch, counted from 1.
        inputs: Its inputs.
        targets: Its targets, where they take part.

    Raises:
        InvalidInputError: In place of torch's own error; running out of memory stays what it is.
    """
    try:
        yield
    except (torch.OutOfMemoryError, ConstrainedCNNError):
        raise
    except EXPLAINED as error:
        held = f"inputs {_say(inputs)}"
        if targets is not None:
            held += f", targets {_say(targets)}"
        who = "the model" if targets is None else "model and loss"
        raise InvalidInputError(
            f"{who} cannot take batch {batch} of {name} ({held}): {type(error).__name__}: {error}"
        ) from error


@contextmanager
def no_stretching() -> Iterator[None]:
    """Make it an error that a loss stretches outputs and targets of different shapes.

    Torch only warns of it.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="Using a target size")
        yield


def _say(part: Tensor) -> str:
    return f"{tuple(part.shape)} {str(part.dtype).removeprefix('torch.')}"


def evaluate(model: nn.Module, loss: Loss, source: Source) -> Evaluation:
    """Return how ``model`` does on every batch of ``source``."""
    tally = Tally()
    with evaluating(model), torch.no_grad(), no_stretching():
        for inputs, targets in source.batches():
            with explained(source.name, tally.steps + 1, inputs, targets):
                outputs = model(inputs)
                tally.add(loss(outputs, targets), count_correct(outputs, targets), len(inputs))
    if tally.samples == 0:
        raise InvalidInputError(f"{source.name}: gave no batches")
    return tally.read()


def check_fits(model: nn.Module, source: Source, *, classifier: bool) -> None:
    """Raise unless the model takes the set's images and, as a classifier, knows its classes.

    Only sets that live on the device are tried: reading an iterable would disturb it.
    """
    inputs = source.first_inputs()
    if inputs is None:
        return
    with evaluating(model), torch.no_grad():
        try:
            outputs = model(inputs)
        except (RuntimeError, ValueError, TypeError) as error:
            shape = tuple(inputs.shape[1:])
            reason = reason_of(error)
            raise InvalidInputError(
                f"the model cannot take the images of {source.name}, of shape {shape}: {reason}"
            ) from error
    if not isinstance(outputs, Tensor):
        raise InvalidInputError(
            f"the model gives a {type(outputs).__name__}; its forward must return one tensor"
        )
    if classifier and (outputs.ndim != 2 or outputs.shape[1] != source.classes):
        raise InvalidInputError(
            f"the model gives outputs of shape {tuple(outputs.shape[1:])} and {source.name} has "
            f"{source.classes} classes; give the model's last layer {source.classes} outputs"
        )
