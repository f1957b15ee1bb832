"""What operations that slide over positions read: convolutions, pools, resampling."""

import math
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from constrained_cnn.graph import AxisRead, Read, Resample, Taps, Window
from constrained_cnn.graph._reads import By
from constrained_cnn.tracing.operations._call import Call, Reads, kept, spread


def convolution(call: Call) -> Reads:
    """Slide over the last axes; read all channels."""
    x, weight = call.get(0, "input"), call.get(1, "weight")
    axes = over_windows(x, windows_of_convolution(call))
    own = call.get(6, "groups", 1) == x.shape[1] == weight.shape[0]
    if own and not isinstance(weight, nn.Parameter):  # fixed weights: global pooling by hand
        axes = _whole_where_covered(call, axes)
    return (call.read(x, axes),)


def windows_of_convolution(call: Call) -> list[Window]:
    """Return the windows of a convolution, one for each of its axes."""
    spatial = int(call.op[-2])
    stride = spread(call.get(3, "stride", 1), spatial)
    padding = call.get(4, "padding", 0)
    dilation = spread(call.get(5, "dilation", 1), spatial)
    kernel = call.get(1, "weight").shape[2:]
    if padding == "same":  # torch puts the odd cell behind
        padding = [d * (k - 1) // 2 for k, d in zip(kernel, dilation, strict=True)]
    padding = spread(0 if padding == "valid" else padding, spatial)
    return list(map(Window, kernel, stride, padding, dilation))


def transposed_convolution(call: Call) -> Reads:
    """Spread over the last axes; read all channels."""
    x = call.get(0, "input")
    return (call.read(x, over_windows(x, windows_of_transposed(call))),)


def windows_of_transposed(call: Call) -> list[Window]:
    """Return the windows of a transposed convolution, one for each of its axes."""
    spatial = int(call.op[-2])
    stride = spread(call.get(3, "stride", 1), spatial)
    padding = spread(call.get(4, "padding", 0), spatial)
    dilation = spread(call.get(7, "dilation", 1), spatial)
    shape = zip(call.get(1, "weight").shape[2:], stride, padding, dilation, strict=True)
    return [Window(*parts, transposed=True) for parts in shape]


def over_windows(x: Tensor, windows: Sequence[By | None]) -> list[AxisRead | None]:
    """Return reads by ``windows`` on the last axes, all channels before them, and the batch."""
    ahead = x.ndim - len(windows)
    axes: list[AxisRead | None] = [AxisRead(axis) for axis in range(ahead - 1)] + [None]
    return axes + [AxisRead(ahead + axis, window) for axis, window in enumerate(windows)]


def pool(call: Call) -> Reads:
    """Slide over the last axes, channel by channel."""
    x = call.get(0, "input")
    axes = _whole_where_covered(call, on_last_axes(x, windows_of_pool(call)))
    return (call.read(x, axes),) * len(call.outputs)


def _whole_where_covered(call: Call, axes: Sequence[AxisRead | None]) -> list[AxisRead | None]:
    """Return the same, but read whole along axes that one window covers: then it is global."""
    x, out = call.get(0, "input"), call.output

    def covers(read: AxisRead | None) -> bool:
        if read is None or not isinstance(read.by, Window) or out.shape[read.axis] > 1:
            return False
        reach = read.by.kernel - read.by.padding
        return 1 < x.shape[read.axis] <= reach and read.by.dilation == 1

    return [None if covers(read) else read for read in axes]


def windows_of_pool(call: Call) -> list[Window]:
    """Return the windows of a pool, one for each of its axes."""
    spatial = int(call.op.removesuffix("_with_indices")[-2])
    shift = int(call.op.startswith("lp_"))  # its second argument is the norm
    kernel = spread(call.get(1 + shift, "kernel_size"), spatial)
    stride = call.get(2 + shift, "stride")
    stride = kernel if stride is None or stride == [] else spread(stride, spatial)
    padding = spread(0 if shift else call.get(3, "padding", 0), spatial)
    dilated = call.op.startswith("max_")
    dilation = spread(call.get(4, "dilation", 1) if dilated else 1, spatial)
    return list(map(Window, kernel, stride, padding, dilation))


def on_last_axes(x: Tensor, windows: Sequence[By | None]) -> list[AxisRead | None]:
    """Return reads by ``windows`` on the last axes and unit by unit on the others."""
    ahead = x.ndim - len(windows)
    axes: list[AxisRead | None] = [AxisRead(axis) for axis in range(ahead)]
    return axes + [AxisRead(ahead + axis, window) for axis, window in enumerate(windows)]


def adaptive_pool(call: Call) -> Reads:
    """Windows that share an axis out; an output of one unit reads all of it."""
    x, spatial = call.get(0, "input"), int(call.op.removesuffix("_with_indices")[-2])
    axes = kept(x)
    for axis in range(x.ndim - spatial, x.ndim):
        into, out = x.shape[axis], call.output.shape[axis]
        if out == 1:
            axes[axis] = None
        elif into % out == 0:
            axes[axis] = AxisRead(axis, Window(into // out, into // out))
        else:
            axes[axis] = AxisRead(axis, Resample("adaptive", Fraction(into, out)))
    return (call.read(x, axes),) * len(call.outputs)


def interpolate(call: Call) -> Reads:
    """Resample the last axes."""
    x = call.get(0, "input")
    kind = {"bilinear": "linear", "trilinear": "linear", "bicubic": "cubic"}
    mode = call.get(3, "mode", "nearest")
    if mode == "area":
        return adaptive_pool(replace(call, op=f"adaptive_avg_pool{x.ndim - 2}d", kwargs={}))
    aligned = bool(call.get(4, "align_corners", False))
    scales = call.get(2, "scale_factor")
    exact = bool(call.get(5, "recompute_scale_factor", False)) or scales is None
    scale = spread(1.0 if scales is None else scales, x.ndim - 2)
    windows: list[Resample | Taps] = []
    for axis in range(2, x.ndim):
        into, out = x.shape[axis], call.output.shape[axis]
        slope = Fraction(into, out)
        if aligned:
            slope = Fraction(into - 1, max(out - 1, 1)) or Fraction(1)
        elif not exact:
            slope = 1 / Fraction(scale[axis - 2]).limit_denominator(10_000)
        window = Resample(kind.get(mode, mode), slope, aligned)
        by = None if exact else scale[axis - 2]
        if call.get(6, "antialias", False):
            windows.append(_antialiased(into, (out, by), mode, aligned))
        else:
            nearest = "nearest" in mode
            windows.append(_as_torch_rounds(x, window, axis, (out, by)) if nearest else window)
    return (call.read(x, on_last_axes(x, windows)),)


def _as_torch_rounds(
    x: Tensor, window: Resample, axis: int, to: tuple[int, float | None]
) -> Resample | Taps:
    """Return the units torch reads one by one, where its rounding is not that of the fraction."""
    into, (out, scale) = x.shape[axis], to
    shift = Fraction(1, 2) if window.kind == "nearest-exact" else Fraction(0)
    exact = [math.floor((unit + shift) * window.slope) for unit in range(out)]
    kind = torch.float64 if x.dtype == torch.float64 else torch.float32  # they round otherwise
    numbers = torch.arange(into, dtype=kind)[None, None]
    read = F.interpolate(numbers, out if scale is None else None, scale, mode=window.kind)
    units = read.flatten().long().tolist()
    return window if units == exact[: len(units)] else Taps(tuple((unit,) for unit in units))


def _antialiased(into: int, to: tuple[int, float | None], mode: str, aligned: bool) -> Taps:
    """Return the units that torch gives a weight, along one axis; each row has one of them."""
    rows, (out, scale) = torch.eye(into)[None, None], to
    size, by = ((into, out), None) if scale is None else (None, (1.0, scale))
    made = F.interpolate(rows, size, by, mode, align_corners=aligned, antialias=True)
    return Taps(tuple(tuple(column.nonzero().flatten().tolist()) for column in made[0, 0].T))


def in_channels(call: Call) -> Reads:
    """Units anywhere in the image, channel by channel: of all inputs that have its axes."""
    reads: list[Read] = []
    for x in call.traced():
        if x.ndim == call.output.ndim:
            reads += _anywhere(call, x, kept(x)[:2])
    return (tuple(reads),) * len(call.outputs)


def sampled(call: Call) -> Reads:
    """Units anywhere in the image, at the places that a grid gives for each unit."""
    x, grid = call.get(0, "input"), call.get(1, "grid")
    places = [AxisRead(axis) for axis in range(1, grid.ndim - 1)]
    return ((*_anywhere(call, x, kept(x)[:2]), *call.read(grid, [AxisRead(0), None, *places])),)


def affine_grid(call: Call) -> Reads:
    """Each place reads the matrix of its sample."""
    return (call.read(call.input, [AxisRead(0), *[None] * (call.output.ndim - 1)]),)


def deformed(call: Call) -> Reads:
    """All channels, anywhere in the image; the shifts and weights of taps place by place."""
    reads = [*_anywhere(call, call.input, [AxisRead(0), None])]
    for shifts in (call.get(2, "offset"), call.get(3, "mask")):
        if shifts.shape[2:] == call.output.shape[2:]:
            reads += call.read(shifts, kept(shifts, whole=[1]))
    return (tuple(reads),)


def regions(call: Call) -> Reads:
    """Each region of any sample reads units anywhere in the image, channel by channel."""
    return (_anywhere(call, call.input, [None, AxisRead(1)], (0, 2, 3)),) * len(call.outputs)


def _anywhere(
    call: Call, x: Tensor, first: list[AxisRead | None], unplaced: Sequence[int] = ()
) -> tuple[Read, ...]:
    axes = [*first, *[None] * (call.output.ndim - 2)]
    return call.read(x, axes, unplaced=unplaced or range(2, x.ndim))


def pixel_shuffle(call: Call) -> Reads:
    """Channels to positions: nearest neighbour on both axes, all channels."""
    x, factor = call.get(0, "input"), call.get(1, "upscale_factor")
    return (call.read(x, over_windows(x, [Resample("nearest", Fraction(1, factor))] * 2)),)


def pixel_unshuffle(call: Call) -> Reads:
    """Positions to channels: a window as wide as its stride."""
    x, factor = call.get(0, "input"), call.get(1, "downscale_factor")
    return (call.read(x, over_windows(x, [Window(factor, factor)] * 2)),)
