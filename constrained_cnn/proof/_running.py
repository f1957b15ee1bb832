"""A copy of a network in double precision, run up to one of its values."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from constrained_cnn.errors import TracingError
from constrained_cnn.proof._swaps import CASTS, SWAPS, call
from constrained_cnn.tracing._call import tensors
from constrained_cnn.tracing._recorder import Watcher, operation_name


@dataclass(frozen=True)
class Target:
    """Where a value comes about.

    Attributes:
        path: Path of the module.
        op: The operation in it; empty for what the module returns.
        count: Which call of that operation in that module, from 1.
    """

    path: str
    op: str = ""
    count: int = 1


def copy_of(model: nn.Module) -> nn.Module:
    """Return a copy in double precision and evaluation mode on the CPU."""
    try:
        network = copy.deepcopy(model)
    except Exception as error:
        raise TracingError(
            f"{type(model).__name__} cannot be copied, and it is a copy that is run: {error}"
        ) from error
    if any(part.is_meta for part in (*network.parameters(), *network.buffers())):
        network = network.to_empty(device="cpu")
        for part in network.buffers():
            part.zero_()
    network = network.to("cpu", torch.float64).eval().requires_grad_(False)
    for module in network.modules():
        for name, part in vars(module).items():  # plain attributes: no parameter, no buffer
            if isinstance(part, Tensor):
                vars(module)[name] = part.to(
                    "cpu", torch.float64 if part.is_floating_point() else None
                )
    return network


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
) -> Tensor:
    """Return the value that comes about at ``target``; ``linear`` swaps what hides gradients."""
    if target is None:
        return image
    catch = _Catch(network, target, image, linear=linear)
    default = torch.get_default_dtype()
    try:
        torch.set_default_dtype(torch.float64)
        with torch.random.fork_rng([]), catch.watching():
            network(image)
    except Exception as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise TracingError(
            f"{type(network).__name__} cannot be run in double precision on an image of shape "
            f"{tuple(image.shape[1:])}: {reason}"
        ) from error
    finally:
        torch.set_default_dtype(default)
    if catch.caught is None:
        raise TracingError(
            f"{type(network).__name__}: {target.op} in {target.path!r} did not run again as it was "
            "traced; name the layer to look at: layer=..."
        )
    return catch.caught


class _Catch(Watcher):
    """Keeps the value that comes about at a target, and may swap operations on their way."""

    def __init__(self, network: nn.Module, target: Target, image: Tensor, *, linear: bool) -> None:
        super().__init__(type(network).__name__, network)
        self.caught: Tensor | None = None
        self._target = target
        self._linear = linear
        self._calls = 0
        self._from_image = {id(image): image}  # an id belongs to a tensor only while it lives

    def leave(self, paths: Sequence[str], outputs: Any) -> None:
        """Keep what the module gave, if it is the one."""
        if not self._target.op and self._target.path in paths:
            # A clone: what follows may write into it.
            self.caught = next(tensors(outputs)).clone()

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        op = operation_name(func)
        swap = CASTS.get(op) or (SWAPS.get(op) if self._linear else None)
        outcome = (swap or call)(func, *args, **kwargs)
        if self._target.op:
            self._count(op, (args, kwargs), list(tensors(outcome)))
        return outcome

    def _count(self, op: str, given: Any, made: list[Tensor]) -> None:
        """Count the calls at the target's place that depend on the image, as tracing does."""
        if not made or not any(id(tensor) in self._from_image for tensor in tensors(given)):
            return
        self._from_image.update((id(tensor), tensor) for tensor in made)
        if (op, self.path) == (self._target.op, self._target.path):
            self._calls += 1
            if self._calls == self._target.count:
                self.caught = made[0].clone()
