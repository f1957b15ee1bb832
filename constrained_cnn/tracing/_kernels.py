"""Kernels of operations that torch's meta device runs slowly or not at all: shapes alone.

Each gives what its operation gives, and keeps for the backward pass what torch keeps on a CPU. Most
activations, norms and sums are written in Python on the meta device: a millisecond or more each.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from constrained_cnn.graph import ACTIVATIONS
from constrained_cnn.tracing.operations import Call, elementwise, find, spread, tensors

META = torch.device("meta")


def run(op: str, func: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    """Run an operation on tensors without content.

    Args:
        op: Its name.
        func: What torch calls.
        args: Its arguments.
        kwargs: Its arguments by name.
    """
    kernel = _KERNELS.get(func)
    if kernel is None:
        outcome = _elementwise(op, func, args, kwargs)
    else:
        outcome = None if "out" in kwargs else kernel(args, kwargs)
    return func(*args, **kwargs) if outcome is None else outcome


class _Operation(torch.autograd.Function):
    """An operation that gives some tensors and keeps others."""

    @staticmethod
    def forward(
        ctx: Any, outputs: list[Tensor], kept: list[Tensor], writes: bool, *inputs: Tensor
    ) -> Any:
        if writes:
            ctx.mark_dirty(inputs[0])
        ctx.save_for_backward(*kept)
        return inputs[0] if writes else outputs[0] if len(outputs) == 1 else tuple(outputs)


def _give(
    outputs: list[Tensor], kept: list[Tensor], inputs: Sequence[Tensor], *, writes: bool = False
) -> Any:
    """Return outputs that depend on the inputs, and let autograd keep what the operation keeps.

    Args:
        outputs: What it gives.
        kept: What it keeps.
        inputs: What it is given.
        writes: Whether its output is its first input, written over.
    """
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in inputs):
        return _Operation.apply(outputs, kept, writes, *inputs)
    return outputs[0] if len(outputs) == 1 else tuple(outputs)


class _Place(NamedTuple):
    """Where the tensor of that number stands among the arguments."""

    number: int


class _Traits(NamedTuple):
    """What an operation on tensors of one shape does with them.

    Attributes:
        writes: Whether it writes over the first of them.
        keeps: What autograd keeps: the number of a tensor, -1 for the output, or the type of a new
            tensor of that shape.
    """

    writes: bool
    keeps: tuple[int | torch.dtype, ...]


def _elementwise(op: str, func: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    """Run an activation, a sum, a product or a rounding; None where it may be something else."""
    operation = find(op)
    if operation is None or operation.draws or operation.reads is not elementwise:
        return None
    passes = operation.gradient == "passes" and operation.kind != "moves"
    if not passes and operation.kind not in (*ACTIVATIONS, "add", "scale"):
        return None
    used = tensors((args, kwargs))
    if not used:
        return None
    x = max(used, key=Tensor.numel)  # what the others are stretched over
    alike = all(t.dtype == x.dtype and t.device == META for t in used)
    if not alike or not x.is_floating_point() or _stretched(used) != x.shape:
        return None
    numbers = {id(tensor): number for number, tensor in enumerate(used)}
    slots = [_Place(numbers[id(a)]) if isinstance(a, Tensor) else a for a in args]
    names = {k: _Place(numbers[id(v)]) if isinstance(v, Tensor) else v for k, v in kwargs.items()}
    needs = tuple(torch.is_grad_enabled() and tensor.requires_grad for tensor in used)
    try:
        traits = _traits_of(func, tuple(slots), tuple(names.items()), x.dtype, needs)
    except Exception:  # noqa: BLE001 - then the meta device is asked, and tells what is wrong
        return None
    if traits is None or (traits.writes and x.shape != used[0].shape):
        return None
    out = used[0] if traits.writes else torch.empty_like(x)
    if not any(needs):
        return out.zero_() if traits.writes else out
    kept = [
        torch.empty_like(x, dtype=one) if isinstance(one, torch.dtype) else (*used, out)[one]
        for one in traits.keeps
    ]
    return _give([out], kept, used, writes=traits.writes)


def _stretched(used: Sequence[Tensor]) -> tuple[int, ...] | None:
    """Return the shape that tensors are stretched to; None if they do not fit each other."""
    shapes = {tuple(tensor.shape) for tensor in used}
    try:
        return tuple(torch.broadcast_shapes(*shapes)) if len(shapes) > 1 else shapes.pop()
    except RuntimeError:
        return None


@functools.lru_cache(maxsize=4096)
def _traits_of(
    func: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: tuple[tuple[str, Any], ...],
    dtype: torch.dtype,
    needs: tuple[bool, ...],
) -> _Traits | None:
    """Try an operation on two numbers; None if what it gives is of another shape or type."""
    leaves = [torch.ones(2, dtype=dtype, device="cpu", requires_grad=need) for need in needs]
    kept: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        used = [leaf * 1 for leaf in leaves]  # a leaf cannot be written to
        kept.clear()

        def filled(value: Any) -> Any:
            return used[value.number] if isinstance(value, _Place) else value

        out = func(*map(filled, args), **{name: filled(value) for name, value in kwargs})
    if not isinstance(out, Tensor) or out.shape != (2,) or out.dtype != dtype:
        return None
    places = {tensor.data_ptr(): number for number, tensor in enumerate(used)}
    places.setdefault(out.data_ptr(), -1)
    if any(tensor.numel() != 2 for tensor in kept):
        return None
    keeps = (places.get(tensor.data_ptr(), tensor.dtype) for tensor in kept)
    return _Traits(out is used[0], tuple(keeps))


def _weighted(args: Any, kwargs: Any, axes: int) -> tuple[Tensor, Tensor, list[Tensor]] | None:
    """Return the input, the weight of so many axes, and both with the bias; None if they misfit."""
    call = Call("", args, kwargs, (), {})
    x, weight, bias = (call.get(i, name) for i, name in enumerate(("input", "weight", "bias")))
    used = [x, weight] if bias is None else [x, weight, bias]
    alike = all(t.dtype == x.dtype and t.device == META and t.is_contiguous() for t in used)
    fits = weight.ndim == axes and (bias is None or bias.shape == weight.shape[:1])
    return (x, weight, used) if alike and fits else None


def _convolution(axes: int, args: Any, kwargs: Any) -> Any:
    given = _weighted(args, kwargs, axes + 2)
    if given is None or given[0].ndim != axes + 2:
        return None
    x, weight, used = given
    call = Call("", args, kwargs, (), {})
    stride, padding, dilation = (
        spread(call.get(i, name, default), axes)
        for i, name, default in ((3, "stride", 1), (4, "padding", 0), (5, "dilation", 1))
    )
    if not isinstance(padding[0], int) or min(*stride, *dilation) < 1 or min(padding) < 0:
        return None
    reach = (d * (k - 1) + 1 for k, d in zip(weight.shape[2:], dilation, strict=True))
    slid = zip(x.shape[2:], reach, stride, padding, strict=True)
    places = [(size + 2 * around - width) // step + 1 for size, width, step, around in slid]
    out = x.new_empty((x.shape[0], weight.shape[0], *places))
    return _give([out], [x, weight], used)


def _linear(args: Any, kwargs: Any) -> Any:
    given = _weighted(args, kwargs, 2)
    if given is None or given[0].ndim < 2:
        return None
    x, weight, used = given
    out = x.new_empty((*x.shape[:-1], weight.shape[0]))
    kept = [*([x] if weight.requires_grad else []), *([weight] if x.requires_grad else [])]
    return _give([out], kept, used)


def _join(args: Any, kwargs: Any) -> Any:
    call = Call("", args, kwargs, (), {})
    parts = call.get(0, "tensors")
    axis, first = call.get(1, "dim", kwargs.get("axis", 0)), parts[0]
    if not isinstance(axis, int) or not -first.ndim <= axis < first.ndim:
        return None
    axis %= first.ndim
    around = (*first.shape[:axis], *first.shape[axis + 1 :])
    for part in parts:
        same = part.dtype == first.dtype and part.device == META and part.is_contiguous()
        same = same and part.ndim == first.ndim
        if not same or (*part.shape[:axis], *part.shape[axis + 1 :]) != around:
            return None
    length = sum(part.shape[axis] for part in parts)
    return _give([first.new_empty((*around[:axis], length, *around[axis:]))], [], parts)


def _batch_norm(args: Any, kwargs: Any) -> Any:
    call = Call("", args, kwargs, (), {})
    x, *channels = (call.get(i, name) for i, name in enumerate(_BATCH_NORM))
    training, weights = call.get(5, "training", False), tensors(channels)
    if x.ndim < 2 or any(weight.shape != x.shape[1:2] for weight in weights):
        return None
    if not _fit(x, weights) or not (training or all(isinstance(t, Tensor) for t in channels[:2])):
        return None
    statistics = x.new_empty((2, x.shape[1]), dtype=_exact(x))
    return _give([torch.empty_like(x)], [x, statistics] if training else [x], [x, *weights])


_BATCH_NORM = ("input", "running_mean", "running_var", "weight", "bias")


def _exact(x: Tensor) -> torch.dtype:
    """Return the type in which a CPU works out statistics."""
    return torch.promote_types(x.dtype, torch.float32)


def _fit(x: Tensor, weights: Sequence[Tensor]) -> bool:
    """Whether a norm takes weights of these types."""
    kinds = {weight.dtype for weight in weights} - {x.dtype, _exact(x)}
    return x.is_floating_point() and not kinds


def _layer_norm(args: Any, kwargs: Any) -> Any:
    call = Call("", args, kwargs, (), {})
    x, shape, *weights = (call.get(i, name) for i, name in enumerate(_LAYER_NORM))
    weights = tensors(weights)
    shapes = {tuple(tensor.shape) for tensor in weights} | {tuple(x.shape[-len(shape) :])}
    if shapes != {tuple(shape)} or not _fit(x, weights):
        return None
    statistics = x.new_empty((2, *x.shape[: -len(shape)]), dtype=_exact(x))
    return _give([x.new_empty(x.shape)], [x, statistics], [x, *weights])


_LAYER_NORM = ("input", "normalized_shape", "weight", "bias")


def _attention(args: Any, kwargs: Any) -> Any:
    """Fused attention, where a CPU takes it; the meta device goes the other way always."""
    call = Call("", args, kwargs, (), {})
    query, key, value, mask = (call.get(i, name) for i, name in enumerate(_ATTENTION))
    inputs = [query, key, value]
    alike = all(t.dtype == query.dtype and t.device == META and t.stride(-1) == 1 for t in inputs)
    sizes = {(*tensor.shape[:-2], tensor.shape[-1]) for tensor in inputs}
    if not alike or len(sizes) > 1 or query.ndim not in _fused_axes() or key.shape != value.shape:
        return None
    if call.get(4, "dropout_p") or kwargs.get("enable_gqa"):
        return None
    kept = [*inputs]
    if mask is not None:
        shape = (*query.shape[:-1], key.shape[-2])
        plain = (
            mask.dtype == query.dtype and not mask.requires_grad and not call.get(5, "is_causal")
        )
        if not plain or _stretched([mask, mask.new_empty(shape)]) != shape:
            return None
        kept.append(mask)
    out = torch.empty_like(query)
    kept += [out, query.new_empty(query.shape[:-1], dtype=_exact(query))]
    return _give([out], kept, inputs)


@functools.cache
def _fused_axes() -> tuple[int, ...]:
    """Return how many axes torch's fused attention takes: 4, and in newer releases 3."""
    axes: set[int] = set()

    def note(tensor: Tensor) -> Tensor:
        axes.add(tensor.ndim)
        return tensor

    x = torch.ones(1, 2, 2, device="cpu", requires_grad=True)
    with torch.enable_grad(), saved_tensors_hooks(note, lambda tensor: tensor):
        F.scaled_dot_product_attention(x, x, x)
    return (3, 4) if 4 in axes else (4,)


_ATTENTION = ("query", "key", "value", "attn_mask")


def _multi_head_attention(args: Any, kwargs: Any) -> Any:
    """All of a module of attention, with fused attention inside."""
    torchs = F.scaled_dot_product_attention

    def fused(*args: Any, **kwargs: Any) -> Any:
        outcome = _attention(args, kwargs)
        return torchs(*args, **kwargs) if outcome is None else outcome

    F.scaled_dot_product_attention = fused
    try:
        return F.multi_head_attention_forward(*args, **kwargs)
    finally:
        F.scaled_dot_product_attention = torchs


def _recurrent(gates: int, args: Any, kwargs: Any) -> Any:
    """Recurrent layers; the meta device runs them step by step."""
    if len(args) < 9 or not isinstance(args[3], bool):  # of a packed sequence a list stands there
        return None
    x, state, weights, biased, layers, dropout, training, both_ways, batch_first = args
    hidden, states = weights[0].shape[0] // gates, tensors(state)
    width = states[0].shape[-1] if gates == 4 else hidden
    projected = width != hidden
    each = 2 + 2 * biased + projected
    if len(weights) != each * layers * (1 + both_ways) or weights[0].shape[-1] != x.shape[-1]:
        return None
    if any(t.requires_grad for t in (x, *states)) and not all(t.requires_grad for t in weights):
        return None  # less is kept for weights that are frozen
    if x.ndim != 3 or weights[1].shape[-1] != width or states[0].shape[-1] != width:
        return None
    ways, batch = 1 + both_ways, x.shape[not batch_first]
    steps = x.numel() // (batch * x.shape[-1])

    out = x.new_empty((*x.shape[:2], ways * width))
    last = [x.new_empty((layers * ways, batch, size)) for size in (width, hidden)]
    kept = [x, *(torch.empty_like(out) for _ in range(layers - 1))]
    if dropout and training:
        kept += [torch.empty_like(out) for _ in range(layers - 1)]
    if both_ways and batch_first:  # the way back reads a copy
        kept.append(torch.empty_like(x))
    of_step = 7 * hidden + (width if projected else 0) if gates > 1 else hidden
    kept.append(x.new_empty((layers * ways, steps + (gates == 1), batch, of_step)))
    return _give([out, *last[: 1 + (gates == 4)]], kept, [x, *states, *weights])


def _fake_quantize(args: Any, kwargs: Any) -> Any:
    """Rounding to steps; kept is which units it does not cut off."""
    x, *steps = tensors((args, kwargs))
    axis = Call("", args, kwargs, (), {}).get(3, "axis", 0)
    if len({step.numel() for step in steps} | {1}) > 1 and steps[0].numel() != x.shape[axis]:
        return None
    return _give([torch.empty_like(x)], [torch.empty_like(x, dtype=torch.bool)], [x])


_KERNELS: dict[Any, Callable[[Any, Any], Any]] = {
    F.conv1d: functools.partial(_convolution, 1),
    F.conv2d: functools.partial(_convolution, 2),
    F.conv3d: functools.partial(_convolution, 3),
    F.linear: _linear,
    torch.cat: _join,
    F.batch_norm: _batch_norm,
    F.layer_norm: _layer_norm,
    F.scaled_dot_product_attention: _attention,
    F.multi_head_attention_forward: _multi_head_attention,
    torch.fake_quantize_per_tensor_affine: _fake_quantize,
    torch.fake_quantize_per_channel_affine: _fake_quantize,
    # What the plain formulas keep of each step, in states: gates, what goes in and what comes out.
    torch.lstm: functools.partial(_recurrent, 4),
    torch.gru: functools.partial(_recurrent, 3),
    torch.rnn_tanh: functools.partial(_recurrent, 1),
    torch.rnn_relu: functools.partial(_recurrent, 1),
}
