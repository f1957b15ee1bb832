"""The training step, and what runs it.

The step reads nothing back from the device: it returns tensors that stay there until the epoch
ends. An executor that captures the step (a CUDA graph) replaces :class:`EagerExecutor` without the
trainer knowing.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from constrained_cnn.training._average import Average
from constrained_cnn.training._schedule import Rates

Loss = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Parts:
    """What a step works on.

    Attributes:
        model: The network, in training mode.
        loss: Maps (outputs, targets) to a scalar mean.
        optimizer: Moves the weights.
        rates: The learning rates of every step.
        average: Running average of the weights, or None.
        clip_gradient: Largest norm of the gradient, or None.
        exchange: Makes the gradients of several processes one, given the number of samples that
            this process met; None in a single process.
        step: What a step does with these parts; None for :func:`training_step`.
        stand_in: What a process does that got none of a batch's samples, so that the others do not
            wait for it; None for nothing.
        autocast: Name of the type that convolutions and linear layers compute in; None for that of
            the weights.
    """

    model: nn.Module
    loss: Loss
    optimizer: Optimizer
    rates: Rates
    average: Average | None = None
    clip_gradient: float | None = None
    exchange: Callable[[int], None] | None = None
    step: "Step | None" = None
    stand_in: Callable[[], None] | None = None
    autocast: str | None = None


Given = tuple[Tensor, Tensor | None]
Step = Callable[[Parts, Tensor, Tensor], Given]


class Executor(Protocol):
    """Runs training steps."""

    name: str
    parts: Parts
    capture_seconds: float

    def step(self, inputs: Tensor, targets: Tensor, index: int) -> tuple[Tensor, Tensor | None]:
        """Take one step and return its loss and its count of correct answers.

        Args:
            inputs: The inputs of a batch, on the device.
            targets: Its targets.
            index: Number of the step in the whole run, from 0.

        Returns:
            Two tensors of one number on the device; None in place of the count where accuracy has
            no meaning. They hold until an epoch's worth of steps later.
        """

    def close(self) -> None:
        """Give back what the executor holds on the device; it takes no steps any more."""


class EagerExecutor:
    """Runs the step operation by operation, on any device."""

    name = "eager"
    capture_seconds = 0.0

    def __init__(self, parts: Parts) -> None:
        self.parts = parts

    def step(self, inputs: Tensor, targets: Tensor, index: int) -> tuple[Tensor, Tensor | None]:
        """Take one step with one learning rate per parameter group."""
        groups = self.parts.optimizer.param_groups
        for group, rate in zip(groups, self.parts.rates.of(index), strict=True):
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate
        return training_step(self.parts, inputs, targets)

    def close(self) -> None:
        """Nothing is held."""


def training_step(parts: Parts, inputs: Tensor, targets: Tensor) -> Given:
    """Move the weights once; return the loss and the count of correct answers, on the device."""
    if parts.step is not None:
        return parts.step(parts, inputs, targets)
    parts.optimizer.zero_grad(set_to_none=True)
    if parts.exchange is not None and not len(inputs):
        return _step_without_samples(parts, targets)
    outputs = outputs_of(parts.model, inputs, parts.autocast)
    loss = parts.loss(outputs, targets)
    loss.backward()
    _move(parts, len(inputs))
    # One number, as a loss of one's own may have the shape (1,).
    return loss.detach().reshape(()), count_correct(outputs, targets)


def outputs_of(model: nn.Module, inputs: Tensor, autocast: str | None) -> Any:
    """Return what a model makes of inputs, computed in the type ``autocast`` names, if any.

    A tensor of that type, and each of a list of them, comes back in single precision: a loss sums
    what cancels.
    """
    if autocast is None:
        return model(inputs)
    lower = getattr(torch, autocast)
    # Without its cache, which would go stale within an autocast of the caller's.
    with torch.autocast(inputs.device.type, dtype=lower, cache_enabled=False):
        outputs = model(inputs)

    def lifted(one: Any) -> Any:
        return one.float() if isinstance(one, Tensor) and one.dtype == lower else one

    return [lifted(one) for one in outputs] if isinstance(outputs, list) else lifted(outputs)


def _move(parts: Parts, samples: int) -> None:
    """Move the weights by their gradients."""
    if parts.exchange is not None:
        parts.exchange(samples)
    if parts.clip_gradient is not None:
        torch.nn.utils.clip_grad_norm_(parts.model.parameters(), parts.clip_gradient)
    parts.optimizer.step()
    if parts.average is not None:
        parts.average.update(parts.model)


def _step_without_samples(parts: Parts, targets: Tensor) -> tuple[Tensor, Tensor | None]:
    """Move the weights as the other processes do, of whose batch this one got nothing."""
    if parts.stand_in is not None:
        parts.stand_in()
    _move(parts, 0)
    counted = targets.ndim == 1 and not targets.is_floating_point()
    nothing = torch.zeros((), device=targets.device)
    return nothing, nothing.long() if counted else None


def count_correct(outputs: Tensor, targets: Tensor) -> Tensor | None:
    """Return how many rows of ``outputs`` are largest at their target, or None.

    None where accuracy has no meaning: unless outputs are ``(N, classes)`` and targets ``(N,)``
    integers.
    """
    if outputs.ndim != 2 or targets.ndim != 1 or targets.is_floating_point():
        return None
    return (outputs.detach().argmax(1) == targets).sum()
