"""Operations as ATen and torch.export call them, and the call that does the same under its name."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Final

from constrained_cnn.tracing.operations._call import Call


def _convolution(call: Call) -> Call:
    """Of any number of axes, transposed or not."""
    x, weight, bias, stride, padding, dilation, transposed, more, groups = call.args[:9]
    axes = weight.ndim - 2
    if transposed:
        rest = (padding, more, groups, dilation)
        return replace(call, op=f"conv_transpose{axes}d", args=(x, weight, bias, stride, *rest))
    args = (x, weight, bias, stride, padding, dilation, groups)
    return replace(call, op=f"conv{axes}d", args=args)


def _batch_norm(call: Call) -> Call:
    x, weight, bias, mean, variance, training, *rest = call.args
    return replace(call, op="batch_norm", args=(x, mean, variance, weight, bias, training, *rest))


def _group_norm(call: Call) -> Call:
    x, weight, bias, _, _, _, groups, eps = call.args
    return replace(call, op="group_norm", args=(x, groups, weight, bias, eps))


def _index(call: Call) -> Call:
    """Indices of leading axes, and what is written there; None for all units of one."""
    x, indices, *values = call.args[:3]
    index = tuple(slice(None) if item is None else item for item in indices)
    return replace(call, op="setitem" if values else "getitem", args=(x, index, *values))


def _part(call: Call) -> Call:
    """A run of units along one axis, or a single one: what is read, or what is written there."""
    op = call.op.removesuffix("_copy")
    writes = op.endswith("_scatter")
    x, first = call.input, 2 if writes else 1
    axis = call.get(first, "dim", 0) % x.ndim
    if op.startswith("select"):
        part: int | slice = call.get(first + 1, "index") % x.shape[axis]
    elif op == "narrow":
        start = call.get(2, "start") % x.shape[axis]
        part = slice(start, start + call.output.shape[axis])
    else:
        names = enumerate(("start", "end", "step"), start=first + 1)
        part = slice(*(call.get(i, name) for i, name in names))
    index = (*[slice(None)] * axis, part)
    if writes:
        return replace(call, op="setitem", args=(x, index, call.get(1, "src")), kwargs={})
    return replace(call, op="getitem", args=(x, index), kwargs={})


def _interpolate(call: Call) -> Call:
    kind = call.op.removeprefix("upsample_").rstrip("123d")
    aligns = "nearest" not in kind
    settings = {
        "mode": kind,
        "scale_factor": call.get(3 if aligns else 2, "scale_factors"),
        "align_corners": bool(call.get(2, "align_corners", False)) if aligns else False,
    }
    return replace(call, op="interpolate", args=call.args[:1], kwargs=settings)


def _as(op: str, count: int | None = None) -> Callable[[Call], Call]:
    """Return what gives the same arguments, or the first of them, to another operation."""
    return lambda call: replace(call, op=op, args=call.args[:count])


REWRITES: Final[Mapping[str, Callable[[Call], Call]]] = {
    "convolution": _convolution,
    "native_batch_norm": _batch_norm,
    "native_layer_norm": _as("layer_norm"),
    "native_group_norm": _group_norm,
    "native_dropout": _as("dropout"),
    "_softmax": _as("softmax", 2),
    "_safe_softmax": _as("softmax", 2),
    "_log_softmax": _as("log_softmax", 2),
    "_adaptive_avg_pool2d": _as("adaptive_avg_pool2d"),
    "_adaptive_avg_pool3d": _as("adaptive_avg_pool3d"),
    "index": _index,
    "_unsafe_index": _index,
    "index_put": _index,
    "_unsafe_index_put": _index,
    "masked_scatter": _as("setitem"),
    **dict.fromkeys(("narrow", "narrow_copy", "select", "select_copy", "slice"), _part),
    **dict.fromkeys(("slice_scatter", "select_scatter"), _part),
    **dict.fromkeys([f"upsample_nearest{n}d" for n in (1, 2, 3)], _interpolate),
    "upsample_linear1d": _interpolate,
    "upsample_bilinear2d": _interpolate,
    "upsample_trilinear3d": _interpolate,
    "upsample_bicubic2d": _interpolate,
}
