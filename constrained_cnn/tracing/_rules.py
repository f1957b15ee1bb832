"""The operation table: for each operation of torch, how its outputs read its inputs.

A rule gets a :class:`Call` and returns, for each output, the reads it makes. Operations are known
by the name torch gives them, in-place and reflected forms under the plain name: ``add_``,
``__radd__`` and ``torch.add`` are all ``add``.
"""

from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

from torch import Tensor

from constrained_cnn.errors import InvalidInputError, TracingError
from constrained_cnn.graph import AxisRead, Read, Resample, Window
from constrained_cnn.tracing._call import Call, tensors

Reads = tuple[tuple[Read, ...], ...]
Rule = Callable[[Call], Reads]


def elementwise(call: Call) -> Reads:
    """Every unit reads the same unit of every input."""
    reads = tuple(read for tensor in call.traced() for read in call.broadcast(tensor))
    return (reads,) * len(call.outputs)


def kept(tensor: Tensor, *, whole: Sequence[int] = ()) -> list[AxisRead | None]:
    """Return axes that read themselves, but for those read whole."""
    gone = {axis % tensor.ndim for axis in whole}
    return [None if axis in gone else AxisRead(axis) for axis in range(tensor.ndim)]


def convolution(call: Call) -> Reads:
    """Slide over the last axes; read all channels."""
    spatial = int(call.op[-2])
    x, weight = call.get(0, "input"), call.get(1, "weight")
    if x.ndim == spatial + 1:
        raise TracingError(
            f"{call.op} is given {tuple(x.shape)}, which has no batch axis; the input shape must "
            "name the channels too, as (1, 28, 28) does"
        )
    stride = spread(call.get(3, "stride", 1), spatial)
    padding = call.get(4, "padding", 0)
    dilation = spread(call.get(5, "dilation", 1), spatial)
    kernel = weight.shape[2:]
    if padding == "same":  # torch puts the odd cell behind
        padding = [d * (k - 1) // 2 for k, d in zip(kernel, dilation, strict=True)]
    padding = spread(0 if padding == "valid" else padding, spatial)
    windows = map(Window, kernel, stride, padding, dilation)
    return (call.read(x, over_windows(x, list(windows))),)


def transposed_convolution(call: Call) -> Reads:
    """Spread over the last axes; read all channels."""
    spatial = int(call.op[-2])
    x, weight = call.get(0, "input"), call.get(1, "weight")
    stride = spread(call.get(3, "stride", 1), spatial)
    padding = spread(call.get(4, "padding", 0), spatial)
    dilation = spread(call.get(7, "dilation", 1), spatial)
    shape = zip(weight.shape[2:], stride, padding, dilation, strict=True)
    windows = [Window(*parts, transposed=True) for parts in shape]
    return (call.read(x, over_windows(x, windows)),)


def over_windows(x: Tensor, windows: Sequence[Window | Resample | None]) -> list[AxisRead | None]:
    """Return reads by ``windows`` on the last axes, all channels before them, and the batch."""
    ahead = x.ndim - len(windows)
    axes: list[AxisRead | None] = [AxisRead(axis) for axis in range(ahead - 1)] + [None]
    return axes + [AxisRead(ahead + axis, window) for axis, window in enumerate(windows)]


def pool(call: Call) -> Reads:
    """Slide over the last axes, channel by channel."""
    spatial = int(call.op.removesuffix("_with_indices")[-2])
    x = call.get(0, "input")
    shift = int(call.op.startswith("lp_"))  # its second argument is the norm
    kernel = spread(call.get(1 + shift, "kernel_size"), spatial)
    stride = call.get(2 + shift, "stride")
    stride = kernel if stride is None or stride == [] else spread(stride, spatial)
    padded = not shift
    padding = spread(call.get(3, "padding", 0) if padded else 0, spatial)
    dilated = call.op.startswith("max_")
    dilation = spread(call.get(4, "dilation", 1) if dilated else 1, spatial)
    windows = list(map(Window, kernel, stride, padding, dilation))
    return (call.read(x, on_last_axes(x, windows)),) * len(call.outputs)


def on_last_axes(x: Tensor, windows: Sequence[Window | Resample | None]) -> list[AxisRead | None]:
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
    if call.get(6, "antialias", False):
        raise TracingError("interpolate with antialias=True: what its units read is not described")
    if mode == "area":
        return adaptive_pool(
            Call(f"adaptive_avg_pool{x.ndim - 2}d", call.args, {}, call.outputs, call.values)
        )
    aligned = bool(call.get(4, "align_corners", False))
    scales = call.get(2, "scale_factor")
    exact = bool(call.get(5, "recompute_scale_factor", False)) or scales is None
    scale = spread(1.0 if scales is None else scales, x.ndim - 2)
    windows: list[Resample] = []
    for axis in range(2, x.ndim):
        into, out = x.shape[axis], call.output.shape[axis]
        slope = Fraction(into, out)
        if aligned:
            slope = Fraction(into - 1, max(out - 1, 1)) or Fraction(1)
        elif not exact:
            slope = 1 / Fraction(scale[axis - 2]).limit_denominator(10_000)
        windows.append(Resample(kind.get(mode, mode), slope, aligned))
    return (call.read(x, on_last_axes(x, windows)),)


def reduction(call: Call) -> Reads:
    """Read the axes it runs over whole."""
    x = call.input
    axes = call.get(2 if call.op == "norm" else 1, "dim", call.kwargs.get("axis"))
    if isinstance(axes, Tensor) or "other" in call.kwargs:  # the larger of two tensors
        return elementwise(call)
    if axes is None or isinstance(axes, bool) or axes == [] or axes == ():
        axes = range(x.ndim)
    gone = {axis % x.ndim for axis in ([axes] if isinstance(axes, int) else axes)}
    stays = call.output.ndim == x.ndim
    reads = [
        None if axis in gone else AxisRead(axis)
        for axis in range(x.ndim)
        if stays or axis not in gone
    ]
    return (call.read(x, reads),) * len(call.outputs)


def along(call: Call) -> Reads:
    """Each unit reads itself, and for its scale all of one axis: softmax, normalize, cumsum."""
    x = call.input
    axis = call.get(1, "dim", None)
    if call.op == "normalize":
        axis = call.get(2, "dim", 1)
    whole = range(x.ndim) if axis is None else [axis]
    return ((*call.broadcast(x), *call.read(x, kept(x, whole=whole), gate=True)),)


def layer_norm(call: Call) -> Reads:
    """Each unit reads itself, and for its scale the last axes."""
    x, shape = call.get(0, "input"), call.get(1, "normalized_shape")
    whole = range(x.ndim - len(shape), x.ndim)
    return ((*call.broadcast(x), *call.read(x, kept(x, whole=whole), gate=True)),)


def position_norm(call: Call) -> Reads:
    """Norms by statistics of the input itself: for its scale each unit reads all positions."""
    x = call.get(0, "input")
    running = {"instance_norm": not call.get(5, "use_input_stats", True)}
    running["batch_norm"] = not call.get(5, "training", False)
    if running.get(call.op):
        return (call.broadcast(x),)
    whole = range(0 if call.op == "batch_norm" else 1, x.ndim)
    return ((*call.broadcast(x), *call.read(x, kept(x, whole=whole), gate=True)),)


def shuffled_channels(call: Call) -> Reads:
    """Each unit reads the channels at its place."""
    x = call.get(0, "input")
    return (call.read(x, kept(x, whole=[1])),)


def across_channels(call: Call) -> Reads:
    """Each unit reads itself, and for its scale the other channels."""
    x = call.get(0, "input")
    return ((*call.broadcast(x), *call.read(x, kept(x, whole=[1]), gate=True)),)


def linear(call: Call) -> Reads:
    """Read all of the last axis."""
    x = call.get(0, "input")
    return (call.read(x, kept(x, whole=[-1])),)


def matmul(call: Call) -> Reads:
    """Rows of one with columns of the other; the axis between is read whole."""
    first, second = call.get(0, "input"), call.get(1, "other", call.kwargs.get("mat2"))
    if call.op in ("addmm", "baddbmm"):
        first, second = call.get(1, "mat1"), call.get(2, "mat2")
    reads: list[Read] = []
    out = call.output.ndim
    rows, columns = first.ndim > 1, second.ndim > 1
    for tensor, own, axis in ((first, rows, -2), (second, columns, -1)):
        axes: list[AxisRead | None] = [None] * out
        matrix = rows + columns  # how many of the output's last axes are matrix axes
        for position in range(out - matrix):  # the batch
            source = tensor.ndim - min(tensor.ndim, 2) - (out - matrix) + position
            if source >= 0:
                stretched = tensor.shape[source] != call.output.shape[position]
                axes[position] = AxisRead(source, Window(stride=0) if stretched else None)
        if own:
            place = out - matrix if tensor is first and axis == -2 else out - 1
            axes[place] = AxisRead(tensor.ndim + axis)
        reads += call.read(tensor, axes)
    if call.op in ("addmm", "baddbmm"):
        reads += call.broadcast(call.get(0, "input"))
    return (tuple(reads),)


def attention(call: Call) -> Reads:
    """Each query reads itself and every key and value."""
    query, key, value = (call.get(i, name) for i, name in enumerate(("query", "key", "value")))
    reads = [*call.read(query, kept(query, whole=[-1]))]
    for other in (key, value):
        axes = [AxisRead(axis) if axis < other.ndim - 2 else None for axis in range(other.ndim)]
        reads += call.read(other, axes)
    return (tuple(reads),)


def multi_head_attention(call: Call) -> Reads:
    """Each query reads itself and every key and value; (length, batch, channels)."""
    outputs: list[tuple[Read, ...]] = []
    for out in call.outputs:
        reads: list[Read] = []
        for i, name in enumerate(("query", "key", "value")):
            tensor = call.get(i, name)
            if out is call.output and i == 0:
                reads += call.read(tensor, kept(tensor, whole=[-1]))
            else:
                reads += call.read(tensor, [None] * out.ndim)
        outputs.append(tuple(reads))
    return tuple(outputs)


def concatenation(call: Call) -> Reads:
    """Every unit may read the same unit of each part; parts along the axis are not told apart."""
    parts = list(tensors(call.args[0] if call.args else call.kwargs["tensors"]))
    axis = call.get(1, "dim", 0) % call.output.ndim
    if call.op == "stack":
        reads: list[Read] = []
        for part in parts:
            axes: list[AxisRead | None] = [AxisRead(i) for i in range(part.ndim)]
            reads += call.read(part, [*axes[:axis], None, *axes[axis:]])
        return (tuple(reads),)
    # An empty part of one axis is what torch lets pass.
    found = [
        read
        for part in parts
        if part.ndim == call.output.ndim
        for read in call.read(part, kept(part, whole=[axis]), unplaced=[axis])
    ]
    return (tuple(found),)


def permutation(call: Call) -> Reads:
    """Axes in another order."""
    x = call.input
    order = list(range(x.ndim))
    if call.op == "permute":
        given = call.args[1:] if len(call.args) > 2 else call.get(1, "dims")
        given = given[0] if len(given) == 1 and not isinstance(given[0], int) else given
        order = [axis % x.ndim for axis in given]
    elif call.op in ("T", "mT", "H", "mH", "t", "adjoint"):
        order = order[:-2] + order[-2:][::-1] if call.op in ("mT", "mH", "adjoint") else order[::-1]
    elif call.op in ("movedim", "moveaxis"):
        source, target = call.get(1, "source"), call.get(2, "destination")
        source, target = ([a] if isinstance(a, int) else list(a) for a in (source, target))
        source, target = ([a % x.ndim for a in axes] for axes in (source, target))
        rest = iter(axis for axis in order if axis not in source)
        order = [source[target.index(a)] if a in target else next(rest) for a in order]
    else:
        one, other = (call.get(i, f"dim{i - 1}") % x.ndim for i in (1, 2))
        order[one], order[other] = order[other], order[one]
    return (call.read(x, [AxisRead(axis) for axis in order]),)


def reshape(call: Call) -> Reads:
    """Axes that stay are kept; one that is merged is read whole, one that is cut is not placed."""
    x, out = call.input, call.output
    axes: list[AxisRead | None] = [None] * out.ndim
    cut: list[int] = []
    for before, after in groups(tuple(x.shape), tuple(out.shape)):
        real_before = [axis for axis in before if x.shape[axis] > 1]
        real_after = [axis for axis in after if out.shape[axis] > 1]
        if len(real_before) == len(real_after) == 1:
            axes[real_after[0]] = AxisRead(real_before[0])
        elif not real_before and len(before) == len(after) == 1:
            axes[after[0]] = AxisRead(before[0])
        elif len(real_after) > 1 and len(real_before) >= 1:
            cut += real_before
    singles = [axis for axis in range(x.ndim) if x.shape[axis] == 1]
    free = [axis for axis in range(out.ndim) if out.shape[axis] == 1 and axes[axis] is None]
    taken = {read.axis for read in axes if read is not None}
    for axis, place in zip([a for a in singles if a not in taken], free, strict=False):
        axes[place] = AxisRead(axis)
    return (call.read(x, axes, unplaced=cut),)


def groups(before: tuple[int, ...], after: tuple[int, ...]) -> list[tuple[list[int], list[int]]]:
    """Return the smallest runs of axes of two shapes with equal products, in order.

    Examples:
        >>> groups((2, 6, 5), (2, 3, 2, 5))
        [([0], [0]), ([1], [1, 2]), ([2], [3])]
    """
    found: list[tuple[list[int], list[int]]] = []
    i = j = 0
    while i < len(before) or j < len(after):
        left, right = [], []
        left_size = right_size = 1
        if i < len(before):
            left, left_size, i = [i], before[i], i + 1
        if j < len(after):
            right, right_size, j = [j], after[j], j + 1
        while left_size != right_size:
            if left_size < right_size:
                left.append(i)
                left_size *= before[i]
                i += 1
            else:
                right.append(j)
                right_size *= after[j]
                j += 1
        found.append((left, right))
    return found


def squeeze(call: Call) -> Reads:
    """Drop or add axes of one unit."""
    x, out = call.input, call.output
    if call.op == "unsqueeze":
        axis = call.get(1, "dim") % out.ndim
        axes: list[AxisRead | None] = [AxisRead(i) for i in range(x.ndim)]
        return (call.read(x, [*axes[:axis], None, *axes[axis:]]),)
    given = call.get(1, "dim")
    named = range(x.ndim) if given is None else [given] if isinstance(given, int) else given
    gone = {axis % x.ndim for axis in named if x.shape[axis] == 1}
    return (call.read(x, [AxisRead(i) for i in range(x.ndim) if i not in gone]),)


def stretched(call: Call) -> Reads:
    """Axes of one unit made longer."""
    return (call.broadcast(call.input),)


def parts(call: Call) -> Reads:
    """Runs of units along one axis: chunk, split, narrow, unbind."""
    x = call.input
    position = {"narrow": 1, "unbind": 1, "select": 1}.get(call.op, 2)
    axis = call.get(position, "dim", 0) % x.ndim
    if call.op in ("unbind", "select"):
        axes: list[AxisRead | None] = [AxisRead(i) for i in range(x.ndim) if i != axis]
        return (call.read(x, axes, unplaced=[axis]),) * len(call.outputs)
    start = call.get(2, "start") if call.op == "narrow" else 0
    reads: list[tuple[Read, ...]] = []
    for out in call.outputs:
        axes = list(kept(x))
        axes[axis] = AxisRead(axis, Window(padding=-start) if start else None)
        reads.append(call.read(x, axes))
        start += out.shape[axis]
    return tuple(reads)


def indexing(call: Call) -> Reads:
    """Slices, new axes and single units; anything else is not placed."""
    x, index = call.args[0], call.args[1]
    index = index if isinstance(index, tuple) else (index,)
    simple = all(item is None or item is ... or isinstance(item, int | slice) for item in index)
    if not simple or any(isinstance(item, bool) for item in index):
        return (call.read(x, [None] * call.output.ndim, unplaced=range(x.ndim)),)
    named = sum(item is not None and item is not ... for item in index)
    if ... not in index:
        index = (*index, ...)
    axes: list[AxisRead | None] = []
    picked: list[int] = []
    axis = 0
    for item in index:
        if item is None:
            axes.append(None)
        elif item is ...:
            axes += [AxisRead(i) for i in range(axis, x.ndim - named + axis)]
            axis += x.ndim - named
        elif isinstance(item, int):
            picked.append(axis)
            axis += 1
        else:
            start, _, step = item.indices(x.shape[axis])
            sliced = Window(stride=step, padding=-start) if (start, step) != (0, 1) else None
            axes.append(AxisRead(axis, sliced))
            axis += 1
    return (call.read(x, axes, unplaced=picked),)


def padding(call: Call) -> Reads:
    """Move the start; a circular pad is not placed."""
    x, amounts = call.get(0, "input"), list(call.get(1, "pad"))
    axes = kept(x)
    padded = [(x.ndim - 1 - i // 2, amounts[i]) for i in range(0, len(amounts), 2)]
    if call.get(2, "mode", "constant") == "circular":
        return (
            call.read(x, kept(x, whole=[a for a, _ in padded]), unplaced=[a for a, _ in padded]),
        )
    for axis, amount in padded:
        axes[axis] = AxisRead(axis, Window(padding=amount))
    return (call.read(x, axes),)


def pixel_shuffle(call: Call) -> Reads:
    """Channels to positions: nearest neighbour on both axes, all channels."""
    x, factor = call.get(0, "input"), call.get(1, "upscale_factor")
    return (call.read(x, over_windows(x, [Resample("nearest", Fraction(1, factor))] * 2)),)


def pixel_unshuffle(call: Call) -> Reads:
    """Positions to channels: a window as wide as its stride."""
    x, factor = call.get(0, "input"), call.get(1, "downscale_factor")
    return (call.read(x, over_windows(x, [Window(factor, factor)] * 2)),)


def flip(call: Call) -> Reads:
    """Run axes backwards."""
    x = call.input
    given = call.args[1:] if len(call.args) > 2 else call.get(1, "dims")
    given = [given] if isinstance(given, int) else list(given)
    axes = kept(x)
    for axis in (axis % x.ndim for axis in given):
        axes[axis] = AxisRead(axis, Window(stride=-1, padding=1 - x.shape[axis]))
    return (call.read(x, axes),)


def rolled(call: Call) -> Reads:
    """Units move round an axis; not placed."""
    x, axes = call.get(0, "input"), call.get(2, "dims")
    moved = range(x.ndim) if axes is None else [axes] if isinstance(axes, int) else axes
    moved = [axis % x.ndim for axis in moved]
    return (call.read(x, kept(x, whole=moved), unplaced=moved),)


def product(call: Call) -> Reads:
    """Einstein's sum: letters of the output are kept, the others read whole."""
    equation = call.args[0]
    operands = list(tensors(call.args[1:]))
    if "..." in equation or "->" not in equation:
        raise InvalidInputError(f"einsum {equation!r}: write it with '->' and without '...'")
    left, right = equation.replace(" ", "").split("->")
    reads: list[Read] = []
    for letters, operand in zip(left.split(","), operands, strict=True):
        axes = [AxisRead(letters.index(x)) if x in letters else None for x in right]
        reads += call.read(operand, axes)
    return (tuple(reads),)


def spread(value: Any, count: int) -> list[Any]:
    """Return ``value`` once for each axis."""
    given = list(value) if isinstance(value, list | tuple) else [value]
    return given * count if len(given) == 1 else given


_ELEMENTWISE = frozenset(
    """
    abs add addcdiv addcmul alpha_dropout and atan bernoulli bfloat16 bitwise_and bitwise_not
    bitwise_or ceil celu clamp clamp_max clamp_min clone contiguous copysign cos cpu dequantize
    detach div divide double dropout dropout1d dropout2d dropout3d elu eq erf exp expm1
    fake_quantize_per_tensor_affine feature_alpha_dropout feature_dropout float floor
    floor_divide floordiv fmod ge gelu gt half hardshrink hardsigmoid hardswish hardtanh
    heaviside int invert isfinite isinf isnan le leaky_relu lerp log log10 log1p log2
    logical_and logical_not logical_or logit logsigmoid long lt masked_fill maximum minimum mish
    mod mul multiply nan_to_num ne neg or pow prelu quantize_per_tensor reciprocal relu relu6
    remainder requires_grad round rrelu rsqrt selu sigmoid sign silu sin softplus softshrink
    softsign sqrt square sub subtract tan tanh tanhshrink threshold  true_divide truediv trunc
    truncate type where xlogy xor
    """.split()  # noqa: SIM905
)

_REDUCTIONS = frozenset(
    """
    all amax amin any argmax argmin logsumexp max mean min norm prod std std_mean sum var
    var_mean
    """.split()  # noqa: SIM905
)

# They read their first tensor; a second one only says which shape or type is wanted.
REFERENCES = frozenset({"expand_as", "reshape_as", "to", "type_as", "view_as"})

# They take a tensor for its shape, not for what it holds.
SOURCES = frozenset(
    """
    empty_like full_like new_empty new_full new_ones new_tensor new_zeros ones_like rand_like
    randint_like randn_like zeros_like
    """.split()  # noqa: SIM905
)

RULES: dict[str, Rule] = {
    **dict.fromkeys(_ELEMENTWISE, elementwise),
    **dict.fromkeys(_REDUCTIONS, reduction),
    **{f"conv{n}d": convolution for n in (1, 2, 3)},
    **{f"conv_transpose{n}d": transposed_convolution for n in (1, 2, 3)},
    **{f"{kind}_pool{n}d": pool for kind in ("max", "avg", "lp") for n in (1, 2, 3)},
    **{f"max_pool{n}d_with_indices": pool for n in (1, 2, 3)},
    **{f"adaptive_{kind}_pool{n}d": adaptive_pool for kind in ("max", "avg") for n in (1, 2, 3)},
    **{f"adaptive_max_pool{n}d_with_indices": adaptive_pool for n in (1, 2, 3)},
    **dict.fromkeys(["softmax", "log_softmax", "softmin", "normalize"], along),
    **dict.fromkeys(["batch_norm", "group_norm", "instance_norm"], position_norm),
    **dict.fromkeys(["matmul", "mm", "bmm", "addmm", "baddbmm"], matmul),
    **dict.fromkeys(["cat", "concat", "concatenate", "stack"], concatenation),
    **dict.fromkeys(
        ["permute", "transpose", "swapaxes", "swapdims", "movedim", "moveaxis"], permutation
    ),
    **dict.fromkeys(["T", "mT", "H", "mH", "t", "adjoint"], permutation),
    **dict.fromkeys(["view", "reshape", "flatten", "unflatten", "view_as", "reshape_as"], reshape),
    **dict.fromkeys(["squeeze", "unsqueeze"], squeeze),
    **dict.fromkeys(["expand", "expand_as", "broadcast_to", "type_as", "to"], stretched),
    **dict.fromkeys(
        ["chunk", "split", "split_with_sizes", "tensor_split", "narrow", "unbind", "select"], parts
    ),
    **dict.fromkeys(["upsample", "interpolate"], interpolate),
    **dict.fromkeys(["layer_norm", "rms_norm"], layer_norm),
    "einsum": product,
    "channel_shuffle": shuffled_channels,
    "flip": flip,
    "getitem": indexing,
    "linear": linear,
    "local_response_norm": across_channels,
    "multi_head_attention_forward": multi_head_attention,
    "pad": padding,
    "pixel_shuffle": pixel_shuffle,
    "pixel_unshuffle": pixel_unshuffle,
    "roll": rolled,
    "scaled_dot_product_attention": attention,
}
