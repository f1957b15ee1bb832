"""What operations that mix whole axes read: sums, norms, products, attention."""

from collections.abc import Sequence
from fractions import Fraction

from torch import Tensor

from constrained_cnn.errors import TracingError
from constrained_cnn.graph import AxisRead, Read, Resample, Segment, Taps, Window
from constrained_cnn.tracing.operations._call import Call, Reads, elementwise, kept, tensors


def reduction(call: Call) -> Reads:
    """Read the axes it runs over whole."""
    x = call.input
    axes = call.get(
        2 if call.op in ("norm", "linalg_vector_norm") else 1, "dim", call.kwargs.get("axis")
    )
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
    return _scaled_by(call, range(x.ndim - len(shape), x.ndim))


def _scaled_by(call: Call, whole: Sequence[int]) -> Reads:
    """Each unit reads itself and, for its scale, some axes; statistics read all there is."""
    x = call.get(0, "input")
    first = (*call.broadcast(x), *call.read(x, kept(x, whole=whole), gate=True))
    return (first, *_of_all(call))


def _of_all(call: Call) -> Reads:
    return tuple(call.read(call.input, [None] * out.ndim) for out in call.outputs[1:])


def position_norm(call: Call) -> Reads:
    """Norms by statistics of the input itself: for its scale each unit reads all positions."""
    x = call.get(0, "input")
    running = {"instance_norm": not call.get(5, "use_input_stats", True)}
    running["batch_norm"] = not call.get(5, "training", False)
    if running.get(call.op):
        return itself(call)
    return _scaled_by(call, range(0 if call.op == "batch_norm" else 1, x.ndim))


def itself(call: Call) -> Reads:
    """Each unit reads itself; further outputs, such as statistics, read all there is."""
    return (call.broadcast(call.input), *_of_all(call))


def observed(call: Call) -> Reads:
    """Each unit reads itself and, for the steps it is rounded to, all units."""
    return _scaled_by(call, range(call.input.ndim))


def shuffled_channels(call: Call) -> Reads:
    """Each unit reads the channels at its place."""
    x = call.get(0, "input")
    return (call.read(x, kept(x, whole=[1])),)


def across_channels(call: Call) -> Reads:
    """Each unit reads itself, and for its scale the other channels."""
    return _scaled_by(call, [1])


def linear(call: Call) -> Reads:
    """Read all of the last axis."""
    x = call.get(0, "input")
    return (call.read(x, kept(x, whole=[-1])),)


def factors(call: Call) -> tuple[Tensor, Tensor]:
    """Return the two tensors that are multiplied; what is added to their product comes first."""
    named = [call.kwargs[name] for name in _FACTORS if name in call.kwargs]
    given = [*call.args, *named][_adds(call) :]
    return given[0], given[1]


_FACTORS = ("input", *("mat1", "batch1", "mat"), *("mat2", "batch2", "vec", "other", "tensor"))


def _adds(call: Call) -> bool:
    return call.op.startswith(("add", "baddbmm"))


def matmul(call: Call) -> Reads:
    """Rows of one with columns of the other; the axis between is read whole."""
    first, second = factors(call)
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
    if _adds(call):
        reads += call.broadcast(call.get(0, "input"))
    return (tuple(reads),)


def attention(call: Call) -> Reads:
    """Each query reads itself and every key and value; a causal one none behind its own place."""
    query, key, value = (call.get(i, name) for i, name in enumerate(("query", "key", "value")))
    reads = [*_batched(call, query, -2, AxisRead(query.ndim - 2))]
    ahead = None
    if call.get(5, "is_causal", False):
        length = key.shape[-2]
        until = (min(unit + 1, length) for unit in range(query.shape[-2]))
        ahead = AxisRead(key.ndim - 2, Taps(tuple(range(end) for end in until)))
    for other in (key, value):
        reads += _batched(call, other, -2, ahead)
    return (tuple(reads),)


def _batched(call: Call, tensor: Tensor, at: int, place: AxisRead | None) -> tuple[Read, ...]:
    """Return a read of matrices of each sample or head, one of which several may share.

    Args:
        call: The call.
        tensor: What is read.
        at: The axis of the output that reads rows.
        place: How it reads them.
    """
    axes: list[AxisRead | None] = [None] * call.output.ndim
    ahead = call.output.ndim - tensor.ndim
    for axis, size in enumerate(tensor.shape[:-2]):
        shared = Fraction(size, call.output.shape[ahead + axis])
        by = Window(stride=0) if size == 1 else Resample("nearest", shared)
        axes[ahead + axis] = AxisRead(axis, None if shared == 1 else by)
    axes[at] = place
    return call.read(tensor, axes)


def multi_head_attention(call: Call) -> Reads:
    """Each query reads itself and every key and value of its sample; (length, batch, channels)."""
    outputs: list[tuple[Read, ...]] = []
    for out in call.outputs:
        reads: list[Read] = []
        for i, name in enumerate(("query", "key", "value")):
            tensor = call.get(i, name)
            axes: list[AxisRead | None] = [None] * out.ndim
            batched, place = tensor.ndim == 3, AxisRead(0) if i == 0 else None
            if out is call.output:
                axes[0] = place
                axes[1] = AxisRead(1) if batched else None
            else:  # the weights of attention: (batch, query, key), or with heads
                axes[0] = AxisRead(1) if batched else None
                axes[-2] = place
            reads += call.read(tensor, axes)
        outputs.append(tuple(reads))
    return tuple(outputs)


def concatenation(call: Call) -> Reads:
    """Parts one after another along an axis, or each on a unit of a new one."""
    parts = tensors(call.args[0] if call.args else call.kwargs["tensors"])
    axis = call.get(1, "dim", call.kwargs.get("axis", 0)) % call.output.ndim
    reads: list[Read] = []
    start = 0
    for part in parts:
        if call.op == "stack":
            axes: list[AxisRead | None] = [AxisRead(i) for i in range(part.ndim)]
            reads += call.read(part, [*axes[:axis], None, *axes[axis:]])
        elif part.ndim == call.output.ndim:  # an empty part of one axis is what torch lets pass
            axes = kept(part)
            axes[axis] = AxisRead(axis, Segment(start, part.shape[axis]))
            reads += call.read(part, axes)
            start += part.shape[axis]
    return (tuple(reads),)


def product(call: Call) -> Reads:
    """Einstein's sum: letters of the output are kept, the others read whole."""
    left, right, operands = letters_of(call)
    if any(len(set(letters)) < len(letters) for letters in left):
        raise TracingError(
            f"einsum {call.get(0, 'equation')!r}: a letter twice in one operand is not described; "
            "take the diagonal first"
        )
    reads: list[Read] = []
    for letters, operand in zip(left, operands, strict=True):
        reads += call.read(
            operand, [AxisRead(letters.index(x)) if x in letters else None for x in right]
        )
    return (tuple(reads),)


def letters_of(call: Call) -> tuple[list[str], str, list[Tensor]]:
    """Return the letters of each operand of an einsum, those of its output, and the operands.

    An ellipsis becomes capital letters counted from the last axis, as it is matched.
    """
    equation = call.get(0, "equation")
    if not isinstance(equation, str):
        raise TracingError("einsum with lists of axes: write it with an equation, 'bchw,dc->bdhw'")
    operands = tensors(call.args[1:])
    given, _, wanted = equation.replace(" ", "").partition("->")
    left = given.split(",")
    hidden = max(
        (operand.ndim - len(letters) + 3 if "..." in letters else 0)
        for letters, operand in zip(left, operands, strict=True)
    )
    spare = [chr(ord("Z") - i) for i in range(hidden)][::-1]
    if set(spare) & set(equation):
        raise TracingError(f"einsum {equation!r}: write it without the letters {', '.join(spare)}")
    full = [
        letters.replace("...", "".join(spare[hidden - (operand.ndim - len(letters) + 3) :]))
        for letters, operand in zip(left, operands, strict=True)
    ]
    if "->" in equation:
        return full, wanted.replace("...", "".join(spare)), operands
    once = sorted(x for x in set("".join(left)) - {"."} if "".join(left).count(x) == 1)
    return full, "".join(spare + once), operands


def glu(call: Call) -> Reads:
    """One half of an axis times the other."""
    x = call.input
    axis = call.get(1, "dim", -1) % x.ndim
    first, second = kept(x), kept(x)
    first[axis] = AxisRead(axis, Window())
    second[axis] = AxisRead(axis, Window(padding=-call.output.shape[axis]))
    return ((*call.read(x, first), *call.read(x, second)),)


def cumulated(call: Call) -> Reads:
    """Each unit reads itself and all before it."""
    x = call.input
    axis = call.get(1, "dim") % x.ndim
    axes = kept(x)
    axes[axis] = AxisRead(axis, Taps(tuple(range(unit + 1) for unit in range(x.shape[axis]))))
    return (call.read(x, axes),) * len(call.outputs)


def differences(call: Call) -> Reads:
    """Each unit reads itself and as many behind it as differences are taken."""
    x = call.get(0, "input")
    axis = call.get(2, "dim", -1) % x.ndim
    if any(call.get(i, name) is not None for i, name in ((3, "prepend"), (4, "append"))):
        return (call.read(x, kept(x, whole=[axis]), unplaced=[axis]),)
    axes = kept(x)
    axes[axis] = AxisRead(axis, Window(call.get(1, "n", 1) + 1))
    return (call.read(x, axes),)


def ordered(call: Call) -> Reads:
    """Each unit may read any along one axis: sort, topk, median."""
    x = call.get(0, "input")
    after_size = call.op in ("topk", "kthvalue")
    axis = call.get(2 if after_size else 1, "dim", None if call.op == "median" else -1)
    if axis is None:
        return (call.read(x, [None] * call.output.ndim),) * len(call.outputs)
    axis %= x.ndim
    stays = call.output.ndim == x.ndim
    axes = [None if i == axis else AxisRead(i) for i in range(x.ndim) if stays or i != axis]
    return (call.read(x, axes),) * len(call.outputs)


def embedding(call: Call) -> Reads:
    """A row of the weight for each index."""
    x = call.get(0, "input")
    return (call.read(x, [*kept(x), None]),)


def bag(call: Call) -> Reads:
    """Rows of the weight for the indices of each bag, put together."""
    x = call.get(0, "input")
    bags = [AxisRead(0)] if x.ndim == 2 else [None]
    return (call.read(x, [*bags, None], unplaced=[] if x.ndim == 2 else [0]),)


def rows(call: Call) -> Reads:
    """Read all of the last axis of the first two arguments: a step and its state, two inputs."""
    reads = (call.read(x, kept(x, whole=[-1])) for x in tensors(call.args[:2]))
    return (tuple(read for each in reads for read in each),) * len(call.outputs)


def distances(call: Call) -> Reads:
    """Each row of one with each row of the other."""
    first, second = tensors((call.args, call.kwargs))[:2]
    return (
        (
            *_batched(call, first, -2, AxisRead(first.ndim - 2)),
            *_batched(call, second, -1, AxisRead(second.ndim - 2)),
        ),
    )


def alike(call: Call) -> Reads:
    """Every unit reads the same unit of what has its shape; what has another is read whole."""
    given = [tensor for tensor in call.traced() if tensor.shape == call.output.shape]
    return (tuple(read for tensor in given for read in call.broadcast(tensor)),)


def recurrent(call: Call) -> Reads:
    """Every step may read every other; the sequence is not told apart."""
    x = call.get(0, "input")
    along = [axis for axis in range(x.ndim) if x.shape[axis] != 1 or axis == x.ndim - 1]
    return tuple(
        call.read(x, kept(x, whole=along) if out.ndim == x.ndim else [None] * out.ndim)
        for out in call.outputs
    )
