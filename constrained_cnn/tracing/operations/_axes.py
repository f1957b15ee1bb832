"""What operations that move, cut and join axes read."""

from dataclasses import replace
from fractions import Fraction

import torch
from torch import Tensor

from constrained_cnn.graph import AxisRead, Border, Patch, Read, Resample, Segment, Taps, Window
from constrained_cnn.graph._reads import By
from constrained_cnn.tracing.operations._call import Call, Reads, data_of, kept, spread, tensors


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
        names = ("axis0", "axis1") if "axis0" in call.kwargs else ("dim0", "dim1")
        one, other = (call.get(i + 1, name) % x.ndim for i, name in enumerate(names))
        order[one], order[other] = order[other], order[one]
    return (call.read(x, [AxisRead(axis) for axis in order]),)


def reshape(call: Call) -> Reads:
    """All elements in their order; the axes that stay are named."""
    x, out = call.input, call.output
    axes: list[AxisRead | None] = [None] * out.ndim
    for before, after in groups(tuple(x.shape), tuple(out.shape)):
        real_before = [axis for axis in before if x.shape[axis] > 1]
        real_after = [axis for axis in after if out.shape[axis] > 1]
        if len(real_before) == len(real_after) == 1:
            axes[real_after[0]] = AxisRead(real_before[0])
        elif not real_before and len(before) == len(after) == 1:
            axes[after[0]] = AxisRead(before[0])
    singles = [axis for axis in range(x.ndim) if x.shape[axis] == 1]
    free = [axis for axis in range(out.ndim) if out.shape[axis] == 1 and axes[axis] is None]
    taken = {read.axis for read in axes if read is not None}
    for axis, place in zip([a for a in singles if a not in taken], free, strict=False):
        axes[place] = AxisRead(axis)
    return (call.read(x, axes, reshapes=True),)


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
    """Axes of one unit of the first input made longer."""
    return (call.broadcast(call.input),) * len(call.outputs)


def stretched_each(call: Call) -> Reads:
    """Several tensors made as large as all of them together."""
    return tuple(map(call.broadcast, tensors((call.args, call.kwargs))))


def somewhere(call: Call) -> Reads:
    """Units of the first input in no order that is described."""
    x = call.input
    return (call.read(x, [None] * call.output.ndim, unplaced=range(x.ndim)),) * len(call.outputs)


def parts(call: Call) -> Reads:
    """Runs of units along one axis, or single ones: chunk, split, unbind."""
    x, single = call.input, call.op == "unbind"
    axis = call.get(1 if single else 2, "dim", 0) % x.ndim
    if single:
        axes: list[AxisRead | None] = [AxisRead(i) for i in range(x.ndim) if i != axis]
        return tuple(call.read(x, axes, picks=[(axis, i)]) for i in range(len(call.outputs)))
    start = 0
    reads: list[tuple[Read, ...]] = []
    for out in call.outputs:
        axes = list(kept(x))
        axes[axis] = AxisRead(axis, Window(padding=-start) if start else None)
        reads.append(call.read(x, axes))
        start += out.shape[axis]
    return tuple(reads)


def indexing(call: Call) -> Reads:
    """Slices, new axes, single units, and units in an order that is given.

    An order that only the input or the device knows is not placed, and neither are several.
    """
    x, index = call.args[0], call.args[1]
    index = index if isinstance(index, tuple) else (index,)
    orders = [item for item in index if isinstance(item, list | Tensor)]
    plain = [item for item in index if item is None or item is ... or _is_plain(item)]
    if len(orders) > 1 or len(plain) + len(orders) < len(index) or not all(map(_is_order, orders)):
        return somewhere(call)
    named = sum(item is not None and item is not ... for item in index)
    if not any(item is ... for item in index):
        index = (*index, ...)
    axes: list[AxisRead | None] = []
    picks: list[tuple[int, int]] = []
    unplaced: list[int] = []
    axis = 0
    for item in index:
        if item is None:
            axes.append(None)
            continue
        if item is ...:
            axes += [AxisRead(i) for i in range(axis, x.ndim - named + axis)]
            axis += x.ndim - named
            continue
        if isinstance(item, int):
            picks.append((axis, item % x.shape[axis]))
        elif isinstance(item, slice):
            start, _, step = item.indices(x.shape[axis])
            sliced = Window(stride=step, padding=-start) if (start, step) != (0, 1) else None
            axes.append(AxisRead(axis, sliced))
        elif isinstance(item, Tensor) and item.is_meta:
            axes.append(None)
            unplaced.append(axis)
        else:
            units = tuple((unit % x.shape[axis],) for unit in map(int, item))
            axes.append(AxisRead(axis, Taps(units)))
        axis += 1
    if picks and orders:  # numpy's rule: the axis may go to the front
        return somewhere(call)
    return (call.read(x, axes, picks=picks, unplaced=unplaced),)


def _is_plain(item: object) -> bool:
    return isinstance(item, int | slice) and not isinstance(item, bool)


def _is_order(units: "list[object] | Tensor") -> bool:
    if isinstance(units, Tensor):
        return units.ndim == 1 and units.dtype not in (torch.bool, torch.uint8)
    return all(isinstance(unit, int) and not isinstance(unit, bool) for unit in units)


def padding(call: Call) -> Reads:
    """Move the start; what is put around reads nothing, or repeats what is there."""
    x, amounts = call.get(0, "input"), list(call.get(1, "pad"))
    mode = call.get(2, "mode", "constant")
    if call.op.startswith(("reflection", "replication")):  # as torch.export calls them
        mode = "reflect" if call.op.startswith("reflection") else "replicate"
    axes = kept(x)
    for i in range(0, len(amounts), 2):
        axis, size = x.ndim - 1 - i // 2, x.shape[x.ndim - 1 - i // 2]
        before, behind = amounts[i : i + 2]
        by: By = Window(padding=before)
        if mode == "circular":
            by = Taps(tuple((unit % size,) for unit in range(-before, size + behind)))
        elif mode in ("reflect", "replicate") and max(before, behind) > 0:
            by = Border(mode, before, size)
        if before or behind:
            axes[axis] = AxisRead(axis, by)
    return (call.read(x, axes),)


def flip(call: Call) -> Reads:
    """Run axes backwards."""
    x = call.input
    given = call.args[1:] if len(call.args) > 2 else call.get(1, "dims")
    given = [given] if isinstance(given, int) else list(given)
    axes = kept(x)
    for axis in (axis % x.ndim for axis in given):
        axes[axis] = _backwards(x, axis)
    return (call.read(x, axes),)


def _backwards(x: Tensor, axis: int) -> AxisRead:
    return AxisRead(axis, Window(stride=-1, padding=1 - x.shape[axis]))


def turned(call: Call) -> Reads:
    """Quarter turns of two axes."""
    x, axes = call.input, kept(call.input)
    one, other = (axis % x.ndim for axis in call.get(2, "dims", (0, 1)))
    axes[one], axes[other] = (
        (AxisRead(one), AxisRead(other)),
        (_backwards(x, other), AxisRead(one)),
        (_backwards(x, one), _backwards(x, other)),
        (AxisRead(other), _backwards(x, one)),
    )[call.get(1, "k", 1) % 4]
    return (call.read(x, axes),)


def diagonal(call: Call) -> Reads:
    """Units of two axes that lie on a diagonal, on a new last axis."""
    x, count = call.input, call.output.shape[-1]
    offset = call.get(1, "offset", 0)
    one, other = (call.get(i, f"dim{i - 1}", i - 2) % x.ndim for i in (2, 3))
    patches = [
        Patch(axis, Window(padding=-max(start, 0)), call.output.ndim - 1, 1, count)
        for axis, start in ((one, -offset), (other, offset))
    ]
    rest = [AxisRead(axis) for axis in range(x.ndim) if axis not in (one, other)]
    return (call.read(x, [*rest, None], patches=patches),)


def on_diagonal(call: Call) -> Reads:
    """Units of the last axis on a diagonal of two new ones."""
    x, out = call.input, call.output
    one, other = (call.get(i, f"dim{i - 1}", i - 4) % out.ndim for i in (2, 3))
    last = AxisRead(x.ndim - 1, Window(padding=max(call.get(1, "offset", 0), 0)))
    rest = iter(range(x.ndim - 1))
    axes = (
        None if axis == one else last if axis == other else AxisRead(next(rest))
        for axis in range(out.ndim)
    )
    return (call.read(x, list(axes)),)


def rolled(call: Call) -> Reads:
    """Units move round an axis."""
    x, shifts, dims = call.get(0, "input"), call.get(1, "shifts"), call.get(2, "dims")
    if dims is None or dims == ():  # over all axes as if they were one
        return somewhere(call)
    shifts, dims = ([one] if isinstance(one, int) else list(one) for one in (shifts, dims))
    axes = kept(x)
    by: dict[int, int] = {}  # an axis may be named again
    for shift, axis in zip(shifts, (axis % x.ndim for axis in dims), strict=True):
        by[axis] = by.get(axis, 0) + shift
    for axis, shift in by.items():
        size = x.shape[axis]
        axes[axis] = AxisRead(axis, Taps(tuple(((unit - shift) % size,) for unit in range(size))))
    return (call.read(x, axes),)


def repeated(call: Call) -> Reads:
    """Copies one after another."""
    x, out = call.input, call.output
    ahead = out.ndim - x.ndim
    axes: list[AxisRead | None] = [None] * ahead
    for axis, size in enumerate(x.shape):
        times = out.shape[ahead + axis] // size
        copies = Taps(tuple((unit,) for unit in range(size)) * times)
        axes.append(AxisRead(axis, None if times == 1 else copies))
    return (call.read(x, axes),)


def interleaved(call: Call) -> Reads:
    """Each unit several times in a row, as nearest neighbour does."""
    x, times, axis = call.input, call.get(1, "repeats"), call.get(2, "dim")
    if axis is None or not isinstance(times, int):
        return somewhere(call)
    axes = kept(x)
    axes[axis] = AxisRead(axis % x.ndim, Resample("nearest", Fraction(1, times)))
    return (call.read(x, axes),)


def unfolded(call: Call) -> Reads:
    """Windows along one axis, their taps on a new last axis."""
    x = call.input
    axis, size, step = (
        call.get(i, name) for i, name in ((1, "dimension"), (2, "size"), (3, "step"))
    )
    if size is None or call.output.ndim != x.ndim + 1:  # torch.nn.functional.unfold
        return patches(call)
    axes = kept(x)
    axes[axis] = AxisRead(axis % x.ndim, Window(size, step))
    return (call.read(x, [*axes, None]),)


def patches(call: Call) -> Reads:
    """Windows over the image, their taps among the channels, their places one after another."""
    x = call.get(0, "input")
    pair = _patches(call, x, 1)
    return (call.read(x, [AxisRead(0), None, None], patches=pair),)


def folded(call: Call) -> Reads:
    """Places of the image, each of which lies in several windows: patches the other way."""
    x = call.get(0, "input")
    back = [
        Patch(2, replace(patch.window, transposed=True), patch.axis, patch.step, patch.count)
        for patch in _patches(call, call.output, 2)
    ]
    return (call.read(x, [AxisRead(0), None, None, None], patches=back, unplaced=[2]),)


def _patches(call: Call, image: Tensor, first: int) -> list[Patch]:
    """Return how rows and columns of an image go into patches; ``first`` is the kernel's place."""
    names = ("kernel_size", "dilation", "padding", "stride")
    given = [call.get(i + first, name, int(i != 2)) for i, name in enumerate(names)]
    kernel, dilation, padding, stride = (spread(value, 2) for value in given)
    windows = list(map(Window, kernel, stride, padding, dilation))
    counts = [
        (size + 2 * w.padding - w.dilation * (w.kernel - 1) - 1) // w.stride + 1
        for size, w in zip(image.shape[2:], windows, strict=True)
    ]
    return list(map(Patch, (2, 3), windows, (2, 2), (counts[1], 1), counts))


def selected(call: Call) -> Reads:
    """Units of one axis in an order that a tensor gives."""
    x = call.input
    axis = call.get(1, "dim") % x.ndim
    return (call.read(x, kept(x, whole=[axis]), unplaced=[axis]),)


def gathered(call: Call) -> Reads:
    """Units of one axis, for each unit of the output the one that its index names."""
    index = call.get(2, "index")
    return ((*selected(call)[0], *call.read(index, kept(index))),)


def put(call: Call) -> Reads:
    """A tensor with units of one axis replaced by others, or added to, where an index says."""
    x, axis = call.input, call.get(1, "dim") % call.input.ndim
    reads = [*call.read(x, kept(x))]
    for tensor in tensors((call.args[2:], call.kwargs)):
        if tensor is not x and tensor.ndim != x.ndim:  # an index of one axis
            reads += call.read(tensor, [None] * x.ndim, unplaced=range(tensor.ndim))
        elif tensor is not call.kwargs.get("input"):
            axes = [AxisRead(i, Segment(0, size)) for i, size in enumerate(tensor.shape)]
            given = [None if i == axis else read for i, read in enumerate(axes)]
            reads += call.read(tensor, given, unplaced=[axis])
    return (tuple(reads),)


def written(call: Call) -> Reads:
    """A tensor with a part of it replaced by another's; slices and single units name the part.

    Where an order of units or a mask does, all of the tensor is read, and units of the other's
    somewhere.
    """
    x, index, value = call.args[:3]
    index = index if isinstance(index, tuple) else (index,)
    if not all(item is ... or _is_plain(item) for item in index):
        reads = [*call.read(x, kept(x))]
        for tensor in tensors((index, value)):
            if tensor.dtype == torch.bool and tensor.shape == x.shape:
                reads += call.broadcast(tensor)
            else:
                reads += call.read(tensor, [None] * x.ndim, unplaced=range(tensor.ndim))
        return (tuple(reads),)
    named = sum(item is not ... for item in index)
    if not any(item is ... for item in index):
        index = (*index, ...)
    at = index.index(...)
    items = (*index[:at], *[slice(None)] * (x.ndim - named), *index[at + 1 :])
    replaced = [
        range(*item.indices(size))
        if isinstance(item, slice)
        else range(item % size, item % size + 1)
        for item, size in zip(items, x.shape, strict=True)
    ]
    new: list[AxisRead | None] = [None] * x.ndim
    axes = [axis for axis, item in enumerate(items) if isinstance(item, slice)]
    ahead = len(axes) - getattr(value, "ndim", 0)  # it is stretched over as many axes before it
    for place, axis in enumerate(axes):
        if place >= ahead and isinstance(value, Tensor):
            new[axis] = _placed(place - ahead, value, replaced[axis], x.shape[axis])
    partly = [axis for axis, units in enumerate(replaced) if len(units) < x.shape[axis]]
    old = kept(x)
    for axis in partly if len(partly) == 1 else ():
        rest = (() if unit in replaced[axis] else (unit,) for unit in range(x.shape[axis]))
        old[axis] = AxisRead(axis, Taps(tuple(rest)))
    return ((*(call.read(x, old) if partly else ()), *call.read(value, new)),)


def _placed(axis: int, value: Tensor, units: range, size: int) -> AxisRead:
    """Return how units of an axis read what is written into some of them."""
    stretched = value.shape[axis] == 1 < len(units)
    if len(units) == size and units.step == 1:
        return AxisRead(axis, Window(stride=0) if stretched else None)
    if units.step == 1 and not stretched:
        return AxisRead(axis, Segment(units.start, len(units)))
    reads = ((0 if stretched else units.index(u),) if u in units else () for u in range(size))
    return AxisRead(axis, Taps(tuple(reads)))


def made_of(call: Call) -> Reads:
    """A new tensor of numbers, or of what tensors hold."""
    data = data_of(call)
    if isinstance(data, Tensor):
        return (call.broadcast(data),)
    held = (call.read(tensor, [None] * call.output.ndim) for tensor in tensors(data))
    return (tuple(read for each in held for read in each),)


def filled(call: Call) -> Reads:
    """Every unit reads the number it is filled with."""
    return (call.broadcast(call.get(1, "value")),)


def copied(call: Call) -> Reads:
    """What is copied into a tensor replaces all of it."""
    return (call.broadcast(call.get(1, "src")),)
