"""Batch norms that look at the whole batch, of which every process holds its own rows.

``torch.nn.SyncBatchNorm`` needs CUDA, takes every process's gradient for equally heavy, whatever
its number of rows, and replaces the modules of the network. Here a norm stays what it is and only
computes otherwise for a while, on a CPU as well.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.modules.batchnorm import _BatchNorm

from constrained_cnn.errors import InvalidInputError
from constrained_cnn.training._world import World


class NormExchange:
    """How this process takes part in the statistics of :func:`synchronised_norms`.

    Attributes:
        world: The processes.
        active: Whether the norms are synchronised; False once it is over, also for a copy of the
            network that was made meanwhile.
        counted: Whether what goes through the network counts.
    """

    def __init__(self, world: World) -> None:
        self.world = world
        self.active = True
        self.counted = True

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Let every norm look at its own rows alone meanwhile."""
        self.active = False
        try:
            yield
        finally:
            self.active = True

    @contextmanager
    def standing_in(self) -> Iterator[None]:
        """Let nothing count that goes through the network meanwhile.

        A process without rows in a batch has to meet the others in every norm all the same. It
        sends any one sample through the network, forward and backward, which adds nothing to any
        statistic or gradient of theirs. (A batch of no rows would do for these norms. Many networks
        cannot take one: ``x.view(len(x), -1)`` is an error.)
        """
        self.counted = False
        try:
            yield
        finally:
            self.counted = True


@contextmanager
def synchronised_norms(model: nn.Module, world: World) -> Iterator[NormExchange]:
    r"""Let every batch norm of ``model`` take its statistics from the rows of all processes.

    In training mode alone: outputs, running statistics and gradients are those of one process that
    holds the whole batch, where each process's loss is the mean over its own samples and
    ``GradientExchange`` makes the gradients one. A norm in evaluation mode is what it always is.

    In the backward pass of a norm the gradients of different processes meet, each with respect to
    the mean over :math:`n_r` samples in place of all :math:`N`, that is, :math:`N / n_r` times too
    large. They are weighed by :math:`n_r`, the length of the norm's own input, and the result is
    given back on the scale of the process; a network that makes :math:`k` rows of every sample
    changes nothing of this.

    Args:
        model: The network; afterwards it is as it was, whatever happens.
        world: The processes; nothing is changed for a process on its own.

    Yields:
        What a process without rows stands in with.

    Raises:
        InvalidInputError: If a batch norm has a forward of its own.
    """
    exchange = NormExchange(world)
    parts = [(name, part) for name, part in model.named_modules() if isinstance(part, _BatchNorm)]
    norms = [part for _, part in parts] if world.size > 1 else []
    for name, part in parts if norms else ():
        if type(part).forward is not _BatchNorm.forward or "forward" in vars(part):
            raise InvalidInputError(
                f"{name or 'model'}: a {type(part).__name__} with a forward of its own, which "
                "cannot be synchronised; use a torch.nn.BatchNorm, or leave the norms to each "
                "process"
            )
    forward = _forward_of(exchange)
    try:
        for norm in norms:
            # On the object, where it hides the method of the class. A bound method, since
            # copy.deepcopy binds it to the copy.
            vars(norm)["forward"] = MethodType(forward, norm)
        yield exchange
    finally:
        exchange.active = False
        for norm in norms:
            vars(norm).pop("forward", None)


def _forward_of(exchange: NormExchange) -> Callable[[_BatchNorm, Tensor], Tensor]:
    def forward(norm: _BatchNorm, inputs: Tensor) -> Tensor:
        if not (exchange.active and norm.training):
            return _BatchNorm.forward(norm, inputs)
        norm._check_input_dim(inputs)
        mean, variance, total = _statistics(inputs, exchange)
        if norm.track_running_stats:
            _track(norm, mean, variance, total)
        rows = len(inputs) if exchange.counted else 0
        scale = torch.rsqrt(variance + norm.eps)
        outputs: Tensor = _Normalise.apply(
            inputs, norm.weight, norm.bias, mean, scale, total, rows, exchange.world
        )
        return outputs

    return forward


@torch.no_grad()
def _statistics(inputs: Tensor, exchange: NormExchange) -> tuple[Tensor, Tensor, Tensor]:
    """Return mean, variance and count of each channel over the rows of all processes."""
    channels = inputs.shape[1]
    values = inputs.to(torch.promote_types(inputs.dtype, torch.float32))
    own = values.new_zeros(2 * channels + 1)
    if exchange.counted and inputs.numel():
        variance, mean = torch.var_mean(values, _axes(values), correction=0)
        own = torch.cat([mean, variance, own.new_full((1,), inputs.numel() // channels)])
    means, variances, counts = exchange.world.stacked(own).split([channels, channels, 1], dim=1)
    total = counts.sum()
    # A host read; on a GPU it would make the host wait, and no CUDA graph could be captured.
    if not total.is_cuda and total <= 1:
        raise InvalidInputError(
            f"batch norm: the batch has {int(total)} values per channel over all processes; in "
            "training it needs more than one"
        )
    shares = counts / total
    mean = (shares * means).sum(0)
    # Not the mean of squares less the square of the mean, of which rounding leaves nothing where
    # the mean is large.
    variance = (shares * (variances + (means - mean).square())).sum(0)
    return mean, variance, total


@torch.no_grad()
def _track(norm: _BatchNorm, mean: Tensor, variance: Tensor, total: Tensor) -> None:
    """Move the running statistics as torch does: with the unbiased variance."""
    share: float | Tensor = 0.0 if norm.momentum is None else norm.momentum
    if norm.num_batches_tracked is not None:
        norm.num_batches_tracked.add_(1)
        if norm.momentum is None:
            share = norm.num_batches_tracked.double().reciprocal()
    unbiased = variance * (total / (total - 1))
    for running, new in ((norm.running_mean, mean), (norm.running_var, unbiased)):
        if running is not None:
            running.mul_(1 - share).add_(new * share)


class _Normalise(torch.autograd.Function):
    """Normalise by statistics that depend on the inputs of every process."""

    @staticmethod
    def forward(
        ctx: Any,
        inputs: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        mean: Tensor,
        scale: Tensor,
        total: Tensor,
        rows: int,
        world: World,
    ) -> Tensor:
        """Return the outputs; ``rows`` is what this process weighs."""
        ctx.save_for_backward(inputs, weight, mean, scale, total)
        ctx.rows, ctx.world = rows, world
        centred = inputs.to(mean.dtype) - _column(mean, inputs)
        factor = _column(scale if weight is None else scale * weight, inputs)
        if bias is None:
            return (centred * factor).to(inputs.dtype)
        return torch.addcmul(_column(bias.to(mean.dtype), inputs), centred, factor).to(inputs.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of inputs, weight and bias, on the scale of this process."""
        inputs, weight, mean, scale, total = ctx.saved_tensors
        needs_inputs, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        gradient = gradient.to(mean.dtype)
        normal = (inputs.to(mean.dtype) - _column(mean, inputs)) * _column(scale, inputs)
        sums = gradient.sum(_axes(inputs)), (gradient * normal).sum(_axes(inputs))
        of_inputs = None
        if needs_inputs:
            joint = torch.cat(sums)
            # Not zero times what may be NaN.
            joint = joint * ctx.rows if ctx.rows else torch.zeros_like(joint)
            ctx.world.add_up(joint)
            of_inputs = torch.zeros_like(inputs)
            if ctx.rows:
                along_ones, along_normal = (joint / (ctx.rows * total)).chunk(2)
                factor = scale if weight is None else scale * weight
                of_inputs = gradient - _column(along_ones, inputs)
                of_inputs -= normal * _column(along_normal, inputs)
                of_inputs *= _column(factor, inputs)
        of_weight = sums[1] if needs_weight else None
        of_bias = sums[0] if needs_bias else None
        return of_inputs, of_weight, of_bias, None, None, None, None, None


def _axes(inputs: Tensor) -> list[int]:
    """Return every axis but that of the channels."""
    return [0, *range(2, inputs.ndim)]


def _column(values: Tensor, inputs: Tensor) -> Tensor:
    """Return one value per channel in the shape that meets ``inputs``."""
    return values.view(1, -1, *(1,) * (inputs.ndim - 2))
