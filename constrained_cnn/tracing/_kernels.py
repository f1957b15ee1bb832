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
    outcome = kernel(args, kwargs) if kernel else _elementwise(op, func, args, kwargs)
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


def _convolution(args: Any, kwargs: Any) -> Any:
    call = Call("", args, kwargs, (), {})
    x, weight, bias = (call.get(i, name) for i, name in enumerate(("input", "weight", "bias")))
    stride, padding, dilation = (
        spread(call.get(i, name, default), weight.ndim - 2)
        for i, name, default in ((3, "stride", 1), (4, "padding", 0), (5, "dilation", 1))
    )
    plain = x.ndim == weight.ndim and x.dtype == weight.dtype and isinstance(padding[0], int)
    if not plain or not x.is_contiguous() or not weight.is_contiguous():
        return None
    reach = (d * (k - 1) + 1 for k, d in zip(weight.shape[2:], dilation, strict=True))
    axes = zip(x.shape[2:], reach, stride, padding, strict=True)
    places = [(size + 2 * around - width) // step + 1 for size, width, step, around in axes]
    out = x.new_empty((x.shape[0], weight.shape[0], *places))
    return _give([out], [x, weight], [x, weight] if bias is None else [x, weight, bias])


def _linear(args: Any, kwargs: Any) -> Any:
    call = Call("", args, kwargs, (), {})
    x, weight, bias = (call.get(i, name) for i, name in enumerate(("input", "weight", "bias")))
    shared = x.dtype == weight.dtype and x.device == weight.device == META
    if not shared or weight.ndim != 2 or x.ndim < 2 or not x.is_contiguous():
        return None
    out = x.new_empty((*x.shape[:-1], weight.shape[0]))
    kept = [*([x] if weight.requires_grad else []), *([weight] if x.requires_grad else [])]
    return _give([out], kept, [x, weight] if bias is None else [x, weight, bias])


def _join(args: Any, kwargs: Any) -> Any:
    parts, axis = args[0], args[1] if len(args) > 1 else kwargs.get("dim", 0)
    first = parts[0]
    axis %= max(first.ndim, 1)
    around = (*first.shape[:axis], *first.shape[axis + 1 :])
    for part in parts:
        same = part.dtype == first.dtype and part.device == META and part.is_contiguous()
        if not same or (*part.shape[:axis], *part.shape[axis + 1 :]) != around:
            return None
    length = sum(part.shape[axis] for part in parts)
    return _give([first.new_empty((*around[:axis], length, *around[axis:]))], [], parts)


def _batch_norm(args: Any, kwargs: Any) -> Any:
    x, *channels = args[:5] if len(args) >= 5 else (*args, *kwargs.values())
    weights = tensors(channels)
    if x.ndim < 2 or {tensor.numel() for tensor in weights} != {x.shape[1]}:
        return None
    return _give([torch.empty_like(x)], [x, x.new_empty((2, x.shape[1]))], [x, *weights])


def _layer_norm(args: Any, kwargs: Any) -> Any:
    call = Call("", args, kwargs, (), {})
    x, shape, *weights = (call.get(i, name) for i, name in enumerate(_LAYER_NORM))
    weights = tensors(weights)
    if x.shape[-len(shape) :] != tuple(shape) or any(w.shape != tuple(shape) for w in weights):
        return None
    rows = x.shape[: -len(shape)]
    return _give([torch.empty_like(x)], [x, x.new_empty((2, *rows))], [x, *weights])


_LAYER_NORM = ("input", "normalized_shape", "weight", "bias")


def _attention(args: Any, kwargs: Any) -> Any:
    """Fused attention; the meta device takes the other way, which keeps scores of every pair."""
    call = Call("", args, kwargs, (), {})
    given = [call.get(i, name) for i, name in enumerate(("query", "key", "value", "attn_mask"))]
    heads = _heads_of(given[:3], bool(kwargs.get("enable_gqa")))
    if not heads or call.get(4, "dropout_p"):
        return None
    query, inputs = given[0], tensors(given)
    rows = (*heads, query.shape[-2])
    out = query.new_empty((*rows, given[2].shape[-1]))
    return _give([out], [*inputs, out, query.new_empty(rows, dtype=torch.float32)], inputs)


def _heads_of(given: Sequence[Tensor], grouped: bool) -> tuple[int, ...]:
    """Return the shape of samples and heads of an attention; none where torch is to refuse it."""
    if any(tensor.ndim < 3 for tensor in given):
        return ()
    query, *others = (tuple(tensor.shape[:-2]) for tensor in given)
    if grouped:
        if any(query[-1] % other[-1] for other in others):
            return ()
        others = [(*other[:-1], query[-1]) for other in others]
    return tuple(torch.broadcast_shapes(query, *others))


def _recurrent(gates: int, args: Any, kwargs: Any) -> Any:
    """Recurrent layers; the meta device runs them step by step."""
    if not isinstance(args[3], bool):  # of a packed sequence a list stands there
        return None
    x, state, weights, _, layers, dropout, training, both_ways, batch_first = args
    hidden = weights[0].shape[0] // gates
    width = state[0].shape[-1] if gates == 4 else hidden
    ways, batch = 1 + both_ways, x.shape[not batch_first]
    steps = x.numel() // (batch * x.shape[-1])

    out = x.new_empty((*x.shape[:2], ways * width))
    last = [x.new_empty((layers * ways, batch, size)) for size in (width, hidden)]
    kept = [x, *(torch.empty_like(out) for _ in range(layers - 1))]
    if dropout and training:
        kept += [torch.empty_like(out) for _ in range(layers - 1)]
    of_step = 7 * hidden + (width if width != hidden else 0) if gates > 1 else hidden
    kept.append(x.new_empty((layers * ways, steps + (gates == 1), batch, of_step)))
    return _give([out, *last[: 1 + (gates == 4)]], kept, [x, *weights])


def _fake_quantize(args: Any, kwargs: Any) -> Any:
    """Rounding to steps; kept is which units it does not cut off."""
    x = tensors((args, kwargs))[0]
    return _give([torch.empty_like(x)], [torch.empty_like(x, dtype=torch.bool)], [x])


_KERNELS: dict[Any, Callable[[Any, Any], Any]] = {
    F.conv1d: _convolution,
    F.conv2d: _convolution,
    F.conv3d: _convolution,
    F.linear: _linear,
    torch.cat: _join,
    F.batch_norm: _batch_norm,
    F.layer_norm: _layer_norm,
    F.scaled_dot_product_attention: _attention,
    torch.fake_quantize_per_tensor_affine: _fake_quantize,
    torch.fake_quantize_per_channel_affine: _fake_quantize,
    # What the plain formulas keep of each step, in states: gates, what goes in and what comes out.
    torch.lstm: functools.partial(_recurrent, 4),
    torch.gru: functools.partial(_recurrent, 3),
    torch.rnn_tanh: functools.partial(_recurrent, 1),
    torch.rnn_relu: functools.partial(_recurrent, 1),
}
