"""Calls of operations, one or more for each rule of the table, to hold the rules against."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Shape = tuple[int, ...]


class Runs(nn.Module):
    """A network that is one function of its inputs, and of modules."""

    def __init__(self, function: Callable[..., Any], *parts: nn.Module) -> None:
        super().__init__()
        self.function, self.parts = function, nn.ModuleList(parts)

    def forward(self, *inputs: Tensor) -> Any:
        return self.function(*inputs, *self.parts)


@dataclass(frozen=True)
class Example:
    """A call.

    Attributes:
        op: The name that the table has for the operation.
        kind: What it is.
        make: Makes a network that runs it, last of all.
        shapes: Shape of one sample of each input; all have the same batch.
    """

    op: str
    kind: str
    make: Callable[[], nn.Module]
    shapes: tuple[Shape, ...]


IMAGE, VECTOR, MATRIX = (2, 4, 5), (4,), (3, 4)


def calls(
    op: str, kind: str, function: Callable[..., Any], *shapes: Shape, parts: Any = ()
) -> Example:
    return Example(op, kind, lambda: Runs(function, *(part() for part in parts)), shapes)


def order(x: Tensor, *shape: int) -> Tensor:
    """Return units that are the same in every run."""
    numbers = torch.arange(torch.Size(shape).numel(), device=x.device)
    return (numbers * 2 % 3).reshape(shape)


def boxes(x: Tensor) -> Tensor:
    return torch.tensor([[0, 0.2, 0.1, 3.0, 2.5], [0, 1, 1, 4, 3]], dtype=x.dtype, device=x.device)


def grid(x: Tensor) -> Tensor:
    places = torch.linspace(-0.8, 0.9, 18, dtype=x.dtype, device=x.device)
    return places.reshape(1, 3, 3, 2).expand(len(x), -1, -1, -1)


def torchvision_op(name: str) -> Any:
    import torchvision

    del torchvision  # it registers its operations
    return getattr(torch.ops.torchvision, name)


def unpooled(x: Tensor, other: Tensor) -> Tensor:
    places = F.max_pool2d(x, 2, return_indices=True)[1]
    return F.max_unpool2d(other, places, [2, 2], output_size=x.shape[2:])


def written(x: Tensor, index: Tensor, source: Tensor) -> Tensor:
    y = x * 1
    y[:, :, index] = source
    return y


def blanked(x: Tensor) -> Tensor:
    y = x * 1
    y[x > 0.6] = 0
    return y


EXAMPLES: list[Example] = [
    # vectors and matrices
    calls("mv", "product", lambda x, v: x[0].mv(v[0]), MATRIX, VECTOR),
    calls("mv", "product", lambda x, v: torch.mv(x[0], vec=v[0]), MATRIX, VECTOR),
    calls("dot", "product", lambda x, y: torch.dot(x[0], y[0]), VECTOR, VECTOR),
    calls("vdot", "product", lambda x, y: torch.vdot(x[0], y[0]), VECTOR, VECTOR),
    calls("addmv", "product", lambda c, x, v: torch.addmv(c[0], x[0], v[0]), (3,), MATRIX, VECTOR),
    calls("addbmm", "product", lambda c, x, y: torch.addbmm(c[0], x, y), (3, 2), MATRIX, (4, 2)),
    calls("addr", "product", lambda c, x, y: torch.addr(c[0], x[0], y[0]), MATRIX, (3,), VECTOR),
    calls(
        "bilinear",
        "product",
        lambda x, y, part: part(x, y),
        VECTOR,
        (3,),
        parts=[lambda: nn.Bilinear(4, 3, 2)],
    ),
    calls("_cdist_forward", "nonlinear", lambda x, y: torch.cdist(x, y), MATRIX, (2, 4)),
    calls("_pdist_forward", "nonlinear", lambda x: F.pdist(x[0]), MATRIX),
    calls("dist", "nonlinear", lambda x, y: torch.dist(x, y), VECTOR, VECTOR),
    calls("trace", "sum", lambda x: torch.trace(x[0]), MATRIX),
    # cells and layers with a state
    calls(
        "lstm_cell", "recurrent", lambda x, c: c(x)[0], VECTOR, parts=[lambda: nn.LSTMCell(4, 3)]
    ),
    calls("gru_cell", "recurrent", lambda x, c: c(x), VECTOR, parts=[lambda: nn.GRUCell(4, 3)]),
    calls(
        "rnn_tanh_cell", "recurrent", lambda x, c: c(x), VECTOR, parts=[lambda: nn.RNNCell(4, 3)]
    ),
    calls(
        "gru_cell",
        "recurrent",
        lambda x, h, c: c(x, h),
        VECTOR,
        (3,),
        parts=[lambda: nn.GRUCell(4, 3)],
    ),
    calls(
        "lstm",
        "recurrent",
        lambda x, c: c(x)[0],
        (5, 4),
        parts=[lambda: nn.LSTM(4, 3, batch_first=True)],
    ),
    calls(
        "scaled_dot_product_attention",
        "attention",
        lambda q, k, v: F.scaled_dot_product_attention(q, k, v, enable_gqa=True),
        (4, 3, 2),
        (2, 5, 2),
        (2, 5, 3),
    ),
    calls(
        "scaled_dot_product_attention",
        "attention",
        lambda q, k: F.scaled_dot_product_attention(value=k, query=q, key=k, is_causal=True),
        (1, 5, 2),
        (3, 5, 2),
    ),
    # places that an index names
    calls("gather", "cut", lambda x: x.gather(3, order(x, len(x), 2, 4, 2)), IMAGE),
    calls("take", "cut", lambda x: torch.take(x, order(x, 2, 2)), VECTOR),
    calls("index_select", "cut", lambda x: x.index_select(2, order(x, 2)), IMAGE),
    calls("gather", "nonlinear", lambda x: x.gather(3, (x > 0.5).long()), IMAGE),
    calls("getitem", "nonlinear", lambda x: x[:, :, (x[0, 0, :, 0] > 0.5).long()], IMAGE),
    calls(
        "scatter", "join", lambda x, y: x.scatter(2, order(x, len(y), 2, 2, 5), y), IMAGE, (2, 2, 5)
    ),
    calls("scatter", "join", lambda x: x.scatter(2, order(x, len(x), 2, 2, 5), 0.5), IMAGE),
    calls("scatter", "nonlinear", lambda x, y: x.scatter(3, (y > 0.5).long(), y), IMAGE, IMAGE),
    calls("scatter_add", "add", lambda x, y: x.scatter_add(2, order(y, *y.shape), y), IMAGE, IMAGE),
    calls(
        "scatter_reduce",
        "nonlinear",
        lambda x, y: x.scatter_reduce(2, order(y, *y.shape), y, "prod"),
        IMAGE,
        IMAGE,
    ),
    calls(
        "index_add", "add", lambda x, y: x.index_add(3, order(x, 2), y, alpha=2), IMAGE, (2, 4, 2)
    ),
    calls("index_copy", "join", lambda x, y: x.index_copy(3, order(x, 2), y), IMAGE, (2, 4, 2)),
    calls("index_fill", "join", lambda x: x.index_fill(3, order(x, 2), 0.5), IMAGE),
    calls(
        "index_reduce",
        "nonlinear",
        lambda x, y: x.index_reduce(3, order(x, 2), y, "prod"),
        IMAGE,
        (2, 4, 2),
    ),
    calls(
        "index_put",
        "join",
        lambda x, y: torch.ops.aten.index_put(x, [None, None, order(x, 2)], y),
        IMAGE,
        (2, 2, 5),
    ),
    calls("setitem", "join", lambda x, y: written(x, order(x, 2), y), IMAGE, (2, 2, 5)),
    calls("setitem", "nonlinear", blanked, IMAGE),
    calls(
        "masked_scatter", "join", lambda x, y: x.masked_scatter(order(x, 5) > 0, y), IMAGE, IMAGE
    ),
    calls("diagonal_scatter", "join", lambda x, y: x.diagonal_scatter(y, 0, 2, 3), IMAGE, (2, 4)),
    # axes
    calls("rot90", "shift", lambda x: torch.rot90(x, 1, (2, 3)), IMAGE),
    calls("rot90", "shift", lambda x: x.rot90(2, (2, 3)), IMAGE),
    calls("rot90", "shift", lambda x: x.rot90(-1, [3, 1]), IMAGE),
    calls("diagonal", "cut", lambda x: x.diagonal(1, 2, 3), IMAGE),
    calls("diagonal", "cut", lambda x: torch.diagonal(x, -2, dim1=3, dim2=1), IMAGE),
    calls("diag_embed", "pad", lambda x: torch.diag_embed(x, 1), IMAGE),
    calls("diag_embed", "pad", lambda x: torch.diag_embed(x, -1, 0, 2), IMAGE),
    calls("as_strided", "cut", lambda x: x.as_strided((2, 3), (4, 1)), IMAGE),
    calls(
        "broadcast_tensors",
        "repeat",
        lambda x, y: torch.broadcast_tensors(x, y)[0],
        (1, 4, 5),
        IMAGE,
    ),
    calls("block_diag", "join", lambda x, y: torch.block_diag(x[0], y[0]), MATRIX, (2, 2)),
    calls("view_as_real", "reshapes", lambda x: torch.view_as_real(torch.complex(x, x)), MATRIX),
    calls(
        "linspace", "add", lambda x: torch.linspace(x[0, 0], x[0, 1], 5, device=x.device), VECTOR
    ),
    # images
    calls("col2im", "sum", lambda x: F.fold(x, (4, 5), 2), (2 * 4, 12)),
    calls("max_unpool2d", "nonlinear", unpooled, IMAGE, (2, 2, 2)),
    calls(
        "grid_sample", "resample", lambda x: F.grid_sample(x, grid(x), align_corners=False), IMAGE
    ),
    calls(
        "grid_sample",
        "nonlinear",
        lambda x, g: F.grid_sample(x, g - 0.5, "bicubic", align_corners=True),
        IMAGE,
        (3, 2, 2),
    ),
    calls(
        "affine_grid_generator",
        "linear",
        lambda t: F.affine_grid(t, [len(t), 1, 3, 4], align_corners=False),
        (2, 3),
    ),
    calls(
        "interpolate",
        "resample",
        lambda x: F.interpolate(x, (2, 2), mode="bilinear", antialias=True),
        IMAGE,
    ),
    calls(
        "interpolate",
        "resample",
        lambda x: F.interpolate(x, scale_factor=(0.5, 2), mode="bicubic", antialias=True),
        IMAGE,
    ),
    calls(
        "torchvision::roi_align",
        "nonlinear",
        lambda x: torchvision_op("roi_align")(x, boxes(x), 1.0, 2, 2, 2, False),
        IMAGE,
    ),
    calls(
        "torchvision::ps_roi_align",
        "nonlinear",
        lambda x: torchvision_op("ps_roi_align")(x, boxes(x), 1.0, 1, 2, 2)[0],
        IMAGE,
    ),
    calls(
        "torchvision::deform_conv2d",
        "nonlinear",
        lambda x, shifts: torchvision_op("deform_conv2d")(
            x,
            torch.ones(3, 2, 2, 2, dtype=x.dtype, device=x.device),
            shifts,
            shifts[:, :0],
            torch.zeros(3, dtype=x.dtype, device=x.device),
            1,
            1,
            0,
            0,
            1,
            1,
            1,
            1,
            False,
        ),
        IMAGE,
        (8, 3, 4),
    ),
    # numbers
    calls(
        "fake_quantize_per_channel_affine",
        "nonlinear",
        lambda x: torch.fake_quantize_per_channel_affine(
            x,
            torch.full((2,), 0.01, device=x.device),
            torch.zeros(2, device=x.device).int(),
            1,
            0,
            255,
        ),
        IMAGE,
    ),
    calls(
        "bucketize",
        "nonlinear",
        lambda x: torch.bucketize(x, torch.arange(3.0, device=x.device)),
        IMAGE,
    ),
    calls("mse_loss", "nonlinear", lambda x, y: F.mse_loss(x, y, reduction="none"), IMAGE, IMAGE),
    calls(
        "cross_entropy",
        "nonlinear",
        lambda x: F.cross_entropy(x, order(x, len(x), 4, 5) % 2),
        IMAGE,
    ),
    calls(
        "log_sigmoid_forward",
        "activation",
        lambda x: torch.ops.aten.log_sigmoid_forward(x)[0],
        IMAGE,
    ),
    calls(
        "native_layer_norm",
        "layer_norm",
        lambda x: torch.native_layer_norm(x, [5], None, None, 1e-5)[1],
        IMAGE,
    ),
    calls(
        "native_group_norm",
        "group_norm",
        lambda x: torch.native_group_norm(x, None, None, len(x), 2, 20, 1, 1e-5)[2],
        IMAGE,
    ),
]


# By name, with the number of those of the same operation.
BY_NAME = {
    f"{example.op} {[other.op for other in EXAMPLES[:place]].count(example.op) + 1}": example
    for place, example in enumerate(EXAMPLES)
}


@functools.cache
def numbers(shape: Shape) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64) + 0.1
