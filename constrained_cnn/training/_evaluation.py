"""Evaluation: how a model does on a set, read once at the end."""

import itertools
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from constrained_cnn.errors import ConstrainedCNNError, InvalidInputError, reason_of
from constrained_cnn.training._executor import Loss, count_correct
from constrained_cnn.training._memory import is_out_of_memory
from constrained_cnn.training._source import Batch, Source
from constrained_cnn.training._world import World

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


# Losses that compare number by number. Of other shapes most of them stretch one to the other, and
# compare every output with every target; some warn of it.
SAME_SHAPE = (
    nn.BCEWithLogitsLoss,
    nn.HingeEmbeddingLoss,
    nn.HuberLoss,
    nn.KLDivLoss,
    nn.L1Loss,
    nn.MSELoss,
    nn.MultiLabelSoftMarginLoss,
    nn.PoissonNLLLoss,
    nn.SmoothL1Loss,
    nn.SoftMarginLoss,
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
        """Keep what one batch gave: two tensors of one number, and its number of samples."""
        self._losses.append(loss)
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
        if not self._losses:
            return None
        bad = ~torch.isfinite(torch.stack(self._losses))
        return int(bad.int().argmax()) + 1 if bool(bad.any()) else None

    def sums(self) -> tuple[float, int | None, int]:
        """Read the sum of losses over samples, the correct answers (or None), the samples.

        The one moment at which the host waits for the device.
        """
        if not self._losses:
            return 0.0, 0, 0
        losses = torch.stack(self._losses).double().cpu()
        weights = torch.tensor(self._sizes, dtype=torch.float64)
        # A batch of none, as a process among several may get it, has no loss.
        losses = torch.where(weights > 0, losses, 0.0)
        counts = [count for count in self._correct if count is not None]
        right = int(torch.stack(counts).sum()) if len(counts) == len(self._correct) else None
        return float((losses * weights).sum()), right, self.samples

    def state(self) -> dict[str, Tensor | None]:
        """Return what was kept, as tensors on the CPU."""
        counts = [count for count in self._correct if count is not None]
        whole = len(counts) == len(self._correct)
        return {
            "losses": torch.stack(self._losses).cpu() if self._losses else torch.empty(0),
            "correct": torch.stack(counts).cpu() if counts and whole else None,
            "sizes": torch.tensor(self._sizes, dtype=torch.int64),
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor | None], device: torch.device) -> "Tally":
        """Return the tally that :meth:`state` described, on a device."""
        tally = cls()
        losses, correct, sizes = state["losses"], state["correct"], state["sizes"]
        assert losses is not None
        assert sizes is not None
        tally._losses = list(losses.to(device).unbind())
        tally._sizes = sizes.tolist()
        tally._correct = [None] * len(losses)
        if correct is not None:
            tally._correct = list(correct.to(device).unbind())
        return tally


def evaluation_of(loss_sum: float, right: int | None, samples: int) -> Evaluation:
    """Return what these totals over a set come to."""
    loss = loss_sum / samples
    if right is None:
        return Evaluation(loss, None, samples, None)
    return Evaluation(loss, 100.0 * right / samples, samples, samples - right)


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
    except ConstrainedCNNError:
        raise
    except EXPLAINED as error:
        if is_out_of_memory(error):
            raise
        held = f"inputs {_say(inputs)}"
        if targets is not None:
            held += f", targets {_say(targets)}"
        who = "the model" if targets is None else "model and loss"
        raise InvalidInputError(
            f"{who} cannot take batch {batch} of {name} ({held}): {type(error).__name__}: {error}"
        ) from error


def check_same_shape(loss: object, outputs: Tensor, targets: Tensor) -> None:
    """Raise if a loss that compares number by number would stretch one of these to the other.

    Raises:
        InvalidInputError: With both shapes.
    """
    if isinstance(loss, SAME_SHAPE) and outputs.shape != targets.shape:
        raise InvalidInputError(
            f"the model gives outputs {_say(outputs)} for targets {_say(targets)}, and "
            f"{type(loss).__name__} compares number by number; give both one shape, as by "
            "targets.unsqueeze(1) or outputs.squeeze(1)"
        )


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


class StoppedError(Exception):
    """What was reading a set was asked to stop before its end."""


@contextmanager
def reading(stopped: Callable[[], bool]) -> Iterator[None]:
    """Take it for a stop if batches fail to come once the run was asked to stop.

    A signal to all processes of a group, such as ``timeout`` sends, ends those of a DataLoader too.

    Raises:
        StoppedError: If they fail to come then.
    """
    try:
        yield
    except Exception as error:
        if not stopped():
            raise
        raise StoppedError from error


def until_stopped(batches: Iterator[Batch], stopped: Callable[[], bool]) -> Iterator[Batch]:
    """Yield batches, of which the next may fail to come as :func:`reading` says."""
    with reading(stopped):
        yield from batches


def evaluate(
    model: nn.Module,
    loss: Loss,
    source: Source,
    *,
    world: World | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> Evaluation:
    """Return how ``model`` does on every batch of ``source``.

    Args:
        model: The network.
        loss: Maps (outputs, targets) to a scalar mean.
        source: The set; of several processes each has its own samples of every batch.
        world: The processes whose results are added up; None for this one alone.
        stop: Says whether the run was asked to stop; it is asked after every batch.

    Raises:
        StoppedError: If ``stop`` says so.
    """
    tally = Tally()
    met = 0
    with evaluating(model), torch.no_grad(), no_stretching():
        for inputs, targets in until_stopped(source.batches(), stop):
            met += 1
            if not len(inputs):
                continue
            with explained(source.name, met, inputs, targets):
                outputs = model(inputs)
                check_same_shape(loss, outputs, targets)
                found = loss(outputs, targets).reshape(())
                tally.add(found, count_correct(outputs, targets), len(inputs))
            if stop():
                raise StoppedError
    if not met:
        raise InvalidInputError(f"{source.name}: gave no batches")
    return evaluation_of(*sums_over(world, tally))


def sums_over(world: World | None, tally: Tally) -> tuple[float, int | None, int]:
    """Return :meth:`Tally.sums`, added up over all processes."""
    loss, right, samples = tally.sums()
    if world is None or world.size == 1:
        return loss, right, samples
    total, count, missing, number = world.total([loss, right or 0, right is None, samples])
    return total, None if missing else int(count), int(number)


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
