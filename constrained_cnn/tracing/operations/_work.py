"""What arithmetic an operation is: multiply-accumulates and, apart from them, everything else.

A rule gets a :class:`Call` for one sample and returns its :class:`~constrained_cnn.graph.Work`.
"""

import math
from typing import Any

from torch import Tensor

from constrained_cnn.graph import Work
from constrained_cnn.tracing.operations._call import Call, tensors
from constrained_cnn.tracing.operations._mixing import factors, letters_of
from constrained_cnn.tracing.operations._windows import windows_of_pool


def none(call: Call) -> Work:
    """It moves elements and computes none."""
    return Work()


def each(call: Call) -> Work:
    """It computes every element of its outputs."""
    return Work(elementwise=sum(out.numel() for out in call.outputs))


def reduction(call: Call) -> Work:
    """It reads every element once."""
    if call.output.ndim == call.input.ndim and call.output.shape == call.input.shape:
        return each(call)  # the larger of two tensors
    return Work(pooling=call.input.numel())


def reduction_of_input(call: Call) -> Work:
    """It reads every element at least once."""
    return Work(pooling=call.input.numel())


def convolution(call: Call) -> Work:
    """Each element of the output takes one multiply-accumulate for each tap and channel."""
    weight, out = call.get(1, "weight"), call.output
    return Work(macs=out.numel() * math.prod(weight.shape[1:]), bias=_bias(call, out))


def transposed_convolution(call: Call) -> Work:
    """Each element of the input is multiplied by each tap for each channel of the output."""
    x, weight = call.get(0, "input"), call.get(1, "weight")
    return Work(macs=x.numel() * math.prod(weight.shape[1:]), bias=_bias(call, call.output))


def linear(call: Call) -> Work:
    """Each element of the output takes as many multiply-accumulates as there are features."""
    weight, out = call.get(1, "weight"), call.output
    return Work(macs=out.numel() * weight.shape[-1], bias=_bias(call, out))


def _bias(call: Call, out: Tensor) -> int:
    return 0 if call.get(2, "bias") is None else out.numel()


def matmul(call: Call) -> Work:
    """Each element of the output takes as many multiply-accumulates as the axis between is long."""
    return Work(macs=call.output.numel() * factors(call)[0].shape[-1])


def vectors(call: Call) -> Work:
    """A product with a vector; torch counts none of weights alone, as spectral norm makes it."""
    size = factors(call)[0].numel()
    return Work(macs=size) if call.traced() else Work(elementwise=size)


def added_matmul(call: Call) -> Work:
    """A product with something added to it."""
    first, second = factors(call)
    columns = second.shape[-1] if second.ndim > 1 else 1
    return Work(macs=first.numel() * columns, bias=call.output.numel())


def bilinear(call: Call) -> Work:
    """Each element of the output takes a multiply-accumulate for each pair of features."""
    weight, bias = call.get(2, "weight"), call.get(3, "bias")
    out = call.output.numel()
    return Work(macs=out * weight[0].numel(), bias=0 if bias is None else out)


def distances(call: Call) -> Work:
    """Each pair of rows is compared feature by feature."""
    return Work(elementwise=call.output.numel() * call.input.shape[-1])


def sampled(call: Call) -> Work:
    """Each element of the output reads its neighbours: 2 along each axis, 1 or 4 in other modes."""
    along = {"nearest": 0, 1: 0, "bicubic": 4, 2: 4}.get(call.get(2, "mode", "bilinear"), 2)
    return Work(pooling=call.output.numel() * along ** (call.output.ndim - 2))


def affine_grid(call: Call) -> Work:
    """Each place, with a one behind it, is multiplied by the matrix."""
    theta = call.input
    return Work(macs=call.output.numel() * theta.shape[-1])


def deformed(call: Call) -> Work:
    """That of a convolution, and four neighbours read for each tap of each channel."""
    x, weight, out = call.input, call.args[1], call.output
    places = math.prod(out.shape[2:]) * math.prod(weight.shape[2:])
    return Work(
        macs=out.numel() * math.prod(weight.shape[1:]),
        bias=out.numel(),
        pooling=4 * places * x.shape[0] * x.shape[1],
    )


def regions(call: Call) -> Work:
    """Each element of the output reads four neighbours of each of its points."""
    points = call.args[5] if call.op.endswith("align") else 1
    return Work(pooling=4 * call.output.numel() * max(points, 1) ** 2)


def bag(call: Call) -> Work:
    """Each index brings a row."""
    return Work(pooling=call.get(0, "input").numel() * call.output.shape[-1])


def product(call: Call) -> Work:
    """Einstein's sum, two operands at a time from the left, as torch does it without opt_einsum."""
    left, right, operands = letters_of(call)
    sizes = {
        letter: size
        for letters, operand in zip(left, operands, strict=True)
        for letter, size in sorted(zip(letters, operand.shape, strict=True))
        if size > 1
    }

    def volume(letters: set[str]) -> int:
        return math.prod(sizes.get(letter, 1) for letter in letters)

    macs = elementwise = 0
    held = set(left[0])
    if len(left) == 1:
        return Work(pooling=operands[0].numel() if held - set(right) else 0)
    for position, letters in enumerate(left[1:], start=2):
        wanted = set(right).union(*left[position:])
        both = held | set(letters)
        summed = {x for x in held & set(letters) if x not in wanted and sizes.get(x, 1) > 1}
        # Letters of one operand alone that nobody wants are summed before the product.
        alone = (held ^ set(letters)) - wanted
        if summed:
            macs += volume(both - alone)
        else:
            elementwise += volume(both - alone)
        held = both & wanted
    return Work(macs=macs, elementwise=elementwise)


def attention(call: Call) -> Work:
    """Queries times keys, softmax, times values."""
    query, key, value = (call.get(i, name) for i, name in enumerate(("query", "key", "value")))
    scores = math.prod(call.output.shape[:-1]) * key.shape[-2]
    return Work(macs=scores * (query.shape[-1] + value.shape[-1]), elementwise=scores)


def multi_head_attention(call: Call) -> Work:
    """Three projections, attention in each head, and the projection of what it gives."""
    query, key, value = (call.get(i, name) for i, name in enumerate(("query", "key", "value")))
    width = call.get(3, "embed_dim_to_check")
    heads = call.get(4, "num_heads")
    biased = call.get(6, "in_proj_bias") is not None
    extra = int(call.get(7, "bias_k") is not None) + int(bool(call.get(9, "add_zero_attn", False)))
    batch = query.shape[1] if query.ndim == 3 else 1
    rows, columns = query.shape[0], key.shape[0]
    given = sum(tensor.numel() for tensor in (query, key, value))
    scores = batch * heads * rows * (columns + extra)
    projected = batch * width * (rows + 2 * columns)
    out = batch * rows * width
    return Work(
        macs=given * width + 2 * scores * (width // heads) + out * width,
        bias=biased * projected + (call.get(12, "out_proj_bias") is not None) * out,
        elementwise=scores,
    )


def recurrent(call: Call) -> Work:
    """At every step each matrix of weights is multiplied once; gates are not counted apart."""
    weights = [tensor for tensor in tensors(call.args[2:]) if id(tensor) not in call.values]
    out = call.output
    steps = out.numel() // out.shape[-1]
    matrices = sum(weight.numel() for weight in weights if weight.ndim == 2)
    biases = sum(weight.numel() for weight in weights if weight.ndim == 1)
    return Work(macs=steps * matrices, bias=steps * biases, elementwise=out.numel())


def norm(call: Call) -> Work:
    """Scale and shift, and four operations more for each element where statistics are computed."""
    running = {"batch_norm": not call.get(5, "training", False)}
    running["instance_norm"] = not call.get(5, "use_input_stats", True)
    return Work(norm=call.output.numel() * (2 if running.get(call.op) else 6))


def stored_norm(call: Call) -> Work:
    """Scale and shift."""
    return Work(norm=2 * call.output.numel())


def pool(call: Call) -> Work:
    """Each element of the output reads every tap."""
    taps = math.prod(window.kernel for window in windows_of_pool(call))
    return Work(pooling=call.output.numel() * taps)


def adaptive_pool(call: Call) -> Work:
    """Each element of the output reads its share of each axis; shares may overlap."""
    x, out = call.get(0, "input"), call.output
    spatial = int(call.op.removesuffix("_with_indices")[-2])
    read = math.prod(x.shape[:-spatial])
    for into, made in zip(x.shape[-spatial:], out.shape[-spatial:], strict=True):
        read *= sum(-(-(i + 1) * into // made) - i * into // made for i in range(made))
    return Work(pooling=read)


def interpolate(call: Call) -> Work:
    """Each element of the output reads its neighbours: 1, or 2 or 4 along each axis."""
    x: Any = call.get(0, "input")
    mode = str(call.get(3, "mode", "nearest"))
    if mode == "area":
        return Work(pooling=max(x.numel(), call.output.numel()))
    along = 4 if "cubic" in mode else 2 if "linear" in mode else 0
    read = math.prod(x.shape[:2])
    for into, made in zip(x.shape[2:], call.output.shape[2:], strict=True):
        # Shrunk without aliases, a unit reads all those that it stands for.
        read *= along * (max(into, made) if call.get(6, "antialias", False) else made)
    return Work(pooling=read)
