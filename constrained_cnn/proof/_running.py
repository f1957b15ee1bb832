"""A copy of a network in double precision, run up to one of its values."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from constrained_cnn.errors import TracingError, reason_of
from constrained_cnn.proof._swaps import is_selection, swap_of
from constrained_cnn.tracing._around import states_of_others, undisturbed
from constrained_cnn.tracing._copy import copied, in_double
from constrained_cnn.tracing._watcher import Watcher, operation_name
from constrained_cnn.tracing.operations import find, tensors


@dataclass(frozen=True)
class Target:
    """Where a value comes about.

    Attributes:
        path: Path of the module.
        op: The operation in it; empty for what the module returns.
        count: Which call of that operation in that module, from 1.
        output: Which of the tensors it gives.
    """

    path: str
    op: str = ""
    count: int = 1
    output: int = 0


@dataclass(frozen=True)
class Caught:
    """A value that came about.

    Attributes:
        value: The value.
        blind: The operation by which it depends on the image without a gradient; empty if there is
            none, or if that was not looked for.
        drawn: Where random numbers stood at the end of the run.
    """

    value: Tensor
    blind: str = ""
    drawn: tuple[object, ...] = ()


def copy_of(model: nn.Module) -> nn.Module:
    """Return a copy in double precision and evaluation mode on the CPU."""
    return copied(model, in_double).eval().requires_grad_(False)


def positive(network: nn.Module) -> nn.Module:
    """Make all weights positive, so that no two paths cancel, and keep the scale of values."""
    noise = torch.Generator().manual_seed(2)
    for name, part in network.named_parameters():
        if part.is_floating_point():
            fan_in = part[0].numel() if part.ndim > 1 else 1
            weights = torch.rand(part.shape, generator=noise, dtype=torch.float64) + 0.5
            part.copy_(weights * (0 if name.endswith("bias") else 1 / fan_in))
    for name, buffer in network.named_buffers():
        if name.endswith("running_mean"):
            buffer.zero_()
        elif name.endswith("running_var"):
            buffer.fill_(1)
    return network


def run(
    network: nn.Module, target: Target | None, image: Tensor, *, linear: bool = False
) -> Caught:
    """Return the value that comes about at ``target``; ``linear`` swaps what hides gradients."""
    if target is None:
        return Caught(image)
    catch = _Catch(network, target, image, linear=linear)
    try:
        with undisturbed(), catch.watching():
            torch.set_default_dtype(torch.float64)
            network(image)
            drawn = (torch.get_rng_state().numpy().tobytes(), *states_of_others().values())
    except Exception as error:
        raise TracingError(
            f"{type(network).__name__} cannot be run in double precision on an image of shape "
            f"{tuple(image.shape[1:])}: {reason_of(error)}"
        ) from error
    if catch.caught is None:
        raise TracingError(
            f"{type(network).__name__}: {target.op} in {target.path!r} did not run again as it was "
            "traced; name the layer to look at: layer=..."
        )
    return replace(catch.caught, drawn=drawn)


class _Catch(Watcher):
    """Keeps the value that comes about at a target, and may swap operations on their way."""

    def __init__(self, network: nn.Module, target: Target, image: Tensor, *, linear: bool) -> None:
        super().__init__(type(network).__name__, network)
        self.caught: Caught | None = None
        self._target = target
        self._linear = linear
        self._calls = 0
        self._from_image = {id(image): image}  # an id belongs to a tensor only while it lives
        self._blind: dict[int, tuple[str, Tensor]] = {}  # by the memory that holds such values

    def leave(self, paths: Sequence[str], outputs: Any) -> None:
        """Keep what the module gave, if it is the one."""
        if not self._target.op and self._target.path in paths:
            self._keep(tensors(outputs)[0])

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        op = operation_name(func)
        outcome = swap_of(op, linear=self._linear)(func, *args, **kwargs)
        made = tensors(outcome)
        if self._linear:
            self._follow(op, tensors((args, kwargs)), made)
        if self._target.op:
            self._count(op, (args, kwargs), made)
        return outcome

    def _follow(self, op: str, given: list[Tensor], made: list[Tensor]) -> None:
        """Note what depends on the image by a way that has no gradient."""
        operation = find(op)
        if not given or (operation is not None and operation.kind in ("source", "random")):
            return
        ways = (self._blind.get(_memory(tensor), ("",))[0] for tensor in given)
        way = next(filter(None, ways), "")
        has_gradient = any(tensor.requires_grad for tensor in given)
        for tensor in made or [given[0]]:  # what makes none writes
            if way or (has_gradient and (is_selection(op) or not tensor.requires_grad)):
                self._blind[_memory(tensor)] = (way or op, tensor)

    def _count(self, op: str, given: Any, made: list[Tensor]) -> None:
        """Count the calls at the target's place that depend on the image, as tracing does."""
        if not made or not any(id(tensor) in self._from_image for tensor in tensors(given)):
            return
        self._from_image.update((id(tensor), tensor) for tensor in made)
        if (op, self.path) == (self._target.op, self._target.path):
            self._calls += 1
            if self._calls == self._target.count:
                self._keep(made[self._target.output])

    def _keep(self, value: Tensor) -> None:
        way = self._blind.get(_memory(value), ("",))[0]
        self.caught = Caught(value.clone(), way)  # a clone: what follows may write into it


def _memory(tensor: Tensor) -> int:
    """Return what stands for the memory of a tensor: its views have the same."""
    return tensor.untyped_storage()._cdata if tensor.layout is torch.strided else id(tensor)
