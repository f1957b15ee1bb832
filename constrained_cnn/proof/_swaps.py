"""Operations that hide what a unit depends on, and what runs in their place."""

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from constrained_cnn.tracing._watcher import is_in_place, operation_name
from constrained_cnn.tracing.operations import find, tensors


def call(func: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    return func(*args, **kwargs)


def _identity(func: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Return the input: a cast."""
    x = tensors((args, kwargs))[0]
    return x if x.is_floating_point() else func(*args, **kwargs)


def _in_single_precision(func: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Return nearest neighbours as a network in single precision picks them.

    Which one is nearest is a matter of rounding: in double precision some would be others.
    """
    x = tensors((args, kwargs))[0]
    nearest = any("nearest" in str(value) for value in (*args[1:], *kwargs.values()))
    if not nearest or x.dtype != torch.float64:
        return func(*args, **kwargs)
    args = tuple(x.float() if item is x else item for item in args)
    kwargs = {name: x.float() if item is x else item for name, item in kwargs.items()}
    return func(*args, **kwargs).double()


def _passed_on(func: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Return the values of the input: an activation."""
    x = tensors((args, kwargs))[0]
    if not x.is_floating_point():
        return func(*args, **kwargs)
    # Its own tensor, for what follows may write into it, but for one that itself was written to.
    return x if is_in_place(func) else x.clone()


def _together(func: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Return a sum of all it is given: the larger of two, a comparison, a choice by a mask."""
    given = [x for x in tensors((args, kwargs)) if x.is_floating_point()]
    if not any(x.requires_grad for x in given):
        return func(*args, **kwargs)
    shape = torch.broadcast_shapes(*[x.shape for x in tensors((args, kwargs))])
    total = sum((x.expand(shape) for x in given), given[0].new_zeros(()))
    first = tensors((args, kwargs))[0]
    return first.copy_(total) if is_in_place(func) and first.is_floating_point() else total


def _average(func: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Return the mean for the largest along an axis, or a sum for two tensors."""
    x, *others = tensors((args, kwargs))
    if others:
        return _together(func, *args, **kwargs)
    outcome = func(*args, **kwargs)
    if not x.is_floating_point():
        return outcome
    dims = args[1] if len(args) > 1 else kwargs.get("dim", ())
    keepdim = args[2] if len(args) > 2 else kwargs.get("keepdim", False)
    mean = x.mean(dims, keepdim) if dims != () else x.mean()
    return mean if isinstance(outcome, Tensor) else type(outcome)((mean, outcome[1]))


def _average_pool(func: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Return the mean over the windows of a max-pool, however dilated, padded or rounded."""
    outcome = func(*args, **kwargs)
    largest = tensors(outcome)[0]
    given = {**dict(zip(_POOL_ARGUMENTS, args, strict=False)), **kwargs}
    x, n = given["input"], int(operation_name(func).removesuffix("_with_indices")[-2])
    kernel = _each(given["kernel_size"], n)
    stride = _each(given.get("stride") or kernel, n)
    padding, dilation = _each(given.get("padding", 0), n), _each(given.get("dilation", 1), n)
    pads: list[int] = []
    for axis in reversed(range(n)):
        out, into = largest.shape[axis - n], x.shape[axis - n]
        span = (out - 1) * stride[axis] + (kernel[axis] - 1) * dilation[axis] + 1
        pads += [padding[axis], span - into - padding[axis]]
    planes = F.pad(x.reshape(-1, 1, *x.shape[-n:]), pads)
    ones = x.new_full((1, 1, *kernel), 1 / math.prod(kernel))
    convolution: Callable[..., Tensor] = getattr(F, f"conv{n}d")
    mean = convolution(planes, ones, stride=stride, dilation=dilation).reshape(largest.shape)
    return mean if isinstance(outcome, Tensor) else (mean, *outcome[1:])


def _adaptive_average_pool(func: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    outcome = func(*args, **kwargs)
    largest, x = tensors(outcome)[0], tensors((args, kwargs))[0]
    n = int(operation_name(func).removesuffix("_with_indices")[-2])
    mean = getattr(F, f"adaptive_avg_pool{n}d")(x, largest.shape[-n:])
    return mean if isinstance(outcome, Tensor) else (mean, *outcome[1:])


def _each(value: Any, n: int) -> list[int]:
    given = list(value) if isinstance(value, tuple | list) else [value]
    return given * n if len(given) == 1 else given


Swap = Callable[..., Any]
_POOL_ARGUMENTS = ("input", "kernel_size", "stride", "padding", "dilation")
_BY_GRADIENT: dict[str, Swap] = {"passes": _passed_on, "chooses": _together, "largest": _average}
# The copy is in double precision; what casts to another would not fit its weights.
_ALWAYS: dict[str, Swap] = {"casts": _identity, "rounds": _in_single_precision}


def swap_of(op: str, *, linear: bool) -> Swap:
    """Return what runs in the place of an operation.

    Args:
        op: Its name.
        linear: Whether what hides a gradient is to let it through.
    """
    operation = find(op)
    if operation is None or not operation.gradient:
        return call
    if linear and operation.gradient == "largest" and operation.kind == "max_pool":
        return _average_pool if operation.windows else _adaptive_average_pool
    swaps = _BY_GRADIENT if linear else {}
    return {**_ALWAYS, **swaps}.get(operation.gradient, call)


def is_selection(op: str) -> bool:
    """Return whether a gradient reaches only what was chosen, though the choice depends on all."""
    operation = find(op)
    return operation is not None and operation.gradient == "selects"
