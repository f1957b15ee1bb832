"""Receptive fields of whole networks: every unit against the gradient."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from gradients import Does
from torch import Tensor, nn

from constrained_cnn import models
from constrained_cnn.errors import InvalidInputError, TracingError
from constrained_cnn.receptive_field import measure_receptive_field
from constrained_cnn.tracing import trace


def test_the_source_network_breaks_its_own_rule_at_the_pools() -> None:
    field = measure_receptive_field(models.mnist_12k_source(), (1, 28, 28))
    sizes = [row.axes[0].size for row in field.layers if row.windows[0][1] is not None]
    assert sizes == [3, 5, 6, 10, 14, 16, 24, 24, 32]
    assert [row.axes[0].size for row in field.pools] == [5, 14]
    assert [at_pool.axes[0].stage and at_pool.axes[0].stage.size for at_pool in field.pools] == [
        5,
        5,
    ]


def test_ours_keeps_the_rule_at_each_pool() -> None:
    for at_pool in measure_receptive_field(models.mnist_12k(), (1, 28, 28)).pools:
        for axis in at_pool.axes:
            assert axis.stage is not None
            assert axis.stage.size in (7, 9)


# Small networks against the gradient of every unit


def written_through_a_view(x: Tensor) -> Tensor:
    y = x * 1
    y[..., 1:].add_(x[..., :-1])
    return y


def written_in_parts(x: Tensor, a: nn.Module) -> Tensor:
    y = torch.zeros(x.shape[0], 2, 12, 15)  # on no device in particular
    y[..., :12] = a(x)
    y[..., 12:] = x[..., :12, :3]
    return y + torch.arange(15.0)


def written_over(x: Tensor, a: nn.Module) -> Tensor:
    y = a(x)
    y[:, :, 4:] = y[:, :, :-4].clone()
    y[:, :, 1] = 0
    return y * 2


def conv(channels: int = 2, kernel: Any = 3, out: int | None = None, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(channels, out or channels, kernel, **options)


def attended(x: Tensor, gate: nn.Module) -> Tensor:
    return x * torch.sigmoid(gate(x.mean((2, 3), keepdim=True)))


NETWORKS: dict[str, nn.Module] = {
    "plain": nn.Sequential(conv(), nn.ReLU(), conv(stride=2, padding=1)),
    "kernels of each axis": nn.Sequential(conv(kernel=(3, 1)), conv(kernel=(1, 5), stride=(1, 2))),
    "dilation": nn.Sequential(*[conv(dilation=d, padding=d) for d in (1, 2, 4)]),
    "same, even kernel": nn.Sequential(conv(kernel=4, padding="same"), conv(kernel=2)),
    "1x1 with a stride leaves holes": nn.Sequential(conv(kernel=1, stride=2), conv()),
    "transposed": nn.Sequential(
        conv(stride=2, padding=1), nn.ConvTranspose2d(2, 2, 4, stride=2, padding=1)
    ),
    "transposed, dilated": nn.ConvTranspose2d(2, 2, 3, stride=3, padding=2, dilation=2),
    "average pool": nn.Sequential(conv(), nn.AvgPool2d(3, 2, 1)),
    "groups and norm": nn.Sequential(conv(groups=2), nn.BatchNorm2d(2), nn.GELU()),
    "residual": Does(lambda x, a, b: x + b(a(x)), conv(padding=1), conv(padding=1)),
    "branches that are shifted": Does(
        lambda x, a, b: a(F.pad(x, (4, 0, 4, 0))) + b(F.pad(x, (2, 2, 2, 2))),
        conv(kernel=5),
        conv(kernel=5),
    ),
    "cat of branches": Does(
        lambda x, a, b: torch.cat([a(x), b(x)], 1), conv(kernel=1), conv(kernel=5, padding=2)
    ),
    "nearest": nn.Sequential(conv(stride=2, padding=1), nn.Upsample(scale_factor=2)),
    "nearest by 3/2": Does(lambda x: F.interpolate(x, scale_factor=1.5)),
    "linear": nn.Sequential(
        conv(stride=2, padding=1), nn.Upsample(scale_factor=2, mode="bilinear"), conv()
    ),
    "linear, aligned": Does(
        lambda x: F.interpolate(x, size=(21, 21), mode="bilinear", align_corners=True)
    ),
    "shuffle": nn.Sequential(conv(out=8, padding=1), nn.PixelShuffle(2), conv()),
    "unshuffle": nn.Sequential(conv(kernel=4), nn.PixelUnshuffle(2), conv(8)),
    "slices": Does(lambda x, a: a(x[:, :, 1:-2:2, 3:]), conv()),
    "flip": Does(lambda x, a, b: b(a(x).flip(2)), conv(stride=2), conv()),
    "transpose": Does(lambda x, a: a(x.transpose(2, 3)), conv(kernel=(3, 1))),
    "channel shuffle": Does(
        lambda x, a, b: b(a(x).view(1, 2, 2, 11, 11).transpose(1, 2).reshape(1, 4, 11, 11)),
        conv(out=4, padding=1),
        conv(4, padding=1),
    ),
    "channels last and back": Does(
        lambda x, a, b: b(a(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)), nn.Linear(2, 2), conv()
    ),
    "adaptive pool": nn.Sequential(conv(padding=1), nn.AdaptiveAvgPool2d(4)),
    "functional, reused": Does(lambda x, a: a(F.relu(a(a(x)))), conv()),
    "crop and add": Does(lambda x, a: a(x) + x[..., 1:-1, 1:-1], conv()),
    "chunks": Does(
        lambda x, a, b: torch.cat([a(x.chunk(2, 1)[0]), b(x.chunk(2, 1)[1])], 1),
        conv(1, padding=1),
        conv(1, 5, padding=2),
    ),
    "larger of two": Does(lambda x, a: torch.max(a(x), x), conv(padding=1)),
    "response norm": nn.Sequential(conv(), nn.LocalResponseNorm(2)),
    "type of another": Does(
        lambda x, a: a(x) * torch.full((1, 2, 1, 1), 2.0, device=x.device).to(x).expand_as(x),
        conv(padding=1),
    ),
    "shapes of another": Does(
        lambda x, a, b: a(x).view_as(x) + b(x).expand_as(x), conv(padding=1), conv(kernel=1)
    ),
    "in place": Does(lambda x, a, b: a(x).mul_(2).add_(b(x)), conv(padding=1), conv(kernel=1)),
    "einsum": Does(
        lambda x, a: torch.einsum(
            "nchw,dc->ndhw", a(x), torch.ones(3, 2, dtype=x.dtype, device=x.device)
        ),
        conv(),
    ),
}
SIDE = 11


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("name", NETWORKS)
def test_every_unit_sees_what_its_gradient_reaches(name: str) -> None:
    torch.manual_seed(0)
    network = NETWORKS[name].double().eval()
    for weights in network.parameters():
        nn.init.uniform_(weights, 0.5, 1.5)  # no two paths cancel
    image = torch.rand(1, 2, SIDE, SIDE, dtype=torch.float64) + 0.5
    image.requires_grad_()
    value = network(image)
    field = measure_receptive_field(network, (2, SIDE, SIDE))
    for number, axis in enumerate(field.axes):
        along = field.axes[number].units
        own = 2 + number if name != "transpose" else 3 - number
        assert along == value.shape[own]
        for unit in range(value.shape[own]):
            others = [a for a in range(4) if a != 2 + number]
            (gradient,) = torch.autograd.grad(
                value.select(own, unit).sum(), image, retain_graph=True
            )
            reached = gradient.abs().sum(others).nonzero().flatten().tolist()
            span = axis.interval(unit)
            if span is not None:  # what lies in the padding has no gradient
                span = (max(span[0], 0), min(span[1], SIDE - 1))
                span = span if span[0] <= span[1] else None
            assert span == ((min(reached), max(reached)) if reached else None), (number, unit)


def each_row(x: Tensor, attention: nn.Module) -> Tensor:
    n, c, h, w = x.shape
    rows = x.permute(0, 2, 3, 1).reshape(n * h, w, c)
    rows = attention(rows, rows, rows)[0]
    return rows.view(n, h, w, c).permute(0, 3, 1, 2)


def causal(x: Tensor) -> Tensor:
    rows = x.permute(0, 2, 3, 1)
    return F.scaled_dot_product_attention(rows, rows, rows, is_causal=True).permute(0, 3, 1, 2)


RANGES: dict[str, nn.Module] = {
    "cumulated round an end": Does(lambda x: x.roll(3, 3).cumsum(3)),
    "pooled round an end": Does(lambda x: F.adaptive_avg_pool2d(x.roll(3, 3), (11, 4))),
    "cumulated with holes": Does(
        lambda x, a: a(x).cumsum(3), nn.ConvTranspose2d(2, 2, 1, stride=(1, 3))
    ),
    "resized by area": Does(lambda x: F.interpolate(x.roll(3, 3), size=(11, 4), mode="area")),
    "attention in each row": Does(each_row, nn.MultiheadAttention(2, 1, batch_first=True)),
    "causal attention": Does(causal),
    "the last four": Does(lambda x, a: a(x.narrow(3, -4, 4)), conv()),
    "rolled twice": Does(lambda x, a: a(torch.roll(x, (1, 2), (2, 2))), conv()),
    "picked columns": Does(lambda x, a: a(x[:, :, [4, 2, 9, 10]]), conv()),
    "picked channels": Does(lambda x, a: a(x[:, [1, 0]]), conv()),
    "in an order the device knows": Does(lambda x, a: a(x[:, torch.tensor([1, 0]), 2:]), conv()),
    "differences": Does(lambda x, a: a(torch.diff(x, 2, 3)), conv()),
    "the larger channel": Does(lambda x, a: a(x.topk(1, 1)[0]), conv(1)),
    "an odd factor": Does(lambda x: F.interpolate(x, scale_factor=1.4142, mode="bilinear")),
}


@pytest.mark.parametrize("name", RANGES)
def test_ranges_and_orders(name: str) -> None:
    torch.manual_seed(0)
    network = RANGES[name].double().eval()
    if "attention" not in name:
        for weights in network.parameters():
            nn.init.uniform_(weights, 0.5, 1.5)
    image = (torch.rand(1, 2, SIDE, SIDE, dtype=torch.float64) + 0.5).requires_grad_()
    value = network(image)
    for number, axis in enumerate(measure_receptive_field(network, (2, SIDE, SIDE)).axes):
        for unit in range(axis.units or 0):
            (gradient,) = torch.autograd.grad(
                value.select(2 + number, unit).sum(), image, retain_graph=True
            )
            reached = gradient.abs().sum([0, 1, 3 - number]).nonzero().flatten().tolist()
            span = axis.interval(unit, clipped=True)
            assert span == ((reached[0], reached[-1]) if reached else None), (number, unit)


@pytest.mark.parametrize(
    ("length", "options"),
    [
        (2, {"size": 82}),
        (14, {"size": 46}),
        (7, {"size": 287}),
        (56, {"scale_factor": 2.3}),
        (9, {"scale_factor": 0.6}),
        (5, {"scale_factor": 1.7, "mode": "nearest-exact"}),
    ],
)
def test_nearest_rounds_as_torch_does(length: int, options: dict[str, Any]) -> None:
    read = F.interpolate(torch.arange(float(length))[None, None], **options).flatten().tolist()
    network = Does(lambda x: F.interpolate(x, **options))
    (axis,) = measure_receptive_field(network, (1, length)).axes
    assert [axis.interval(unit) for unit in range(len(read))] == [(int(u), int(u)) for u in read]


@pytest.mark.parametrize("mode", ["reflect", "replicate"])
def test_padding_that_repeats_stands_for_what_it_repeats(mode: str) -> None:
    padded = Does(lambda x, a: a(F.pad(x, (2, 3), mode=mode)), nn.Conv1d(1, 1, 3))
    (axis,) = measure_receptive_field(padded, (1, 16)).axes
    assert [axis.interval(unit) for unit in (0, 1, 18)] == [(-2, 0), (-1, 1), (16, 18)]
    rolled = Does(lambda x: F.pad(x.roll(1, 2), (2, 3), mode=mode))
    numbers = torch.arange(16.0)[None, None]
    read = F.pad(numbers.roll(1, 2), (2, 3), mode=mode).flatten().tolist()
    (axis,) = measure_receptive_field(rolled, (1, 16)).axes
    assert [axis.interval(unit) for unit in range(21)] == [(int(u), int(u)) for u in read]


GLOBAL: dict[str, tuple[nn.Module, int | None]] = {
    # the network, and its size with gates left out
    "squeeze-excite": (Does(attended, conv(kernel=1)), 1),
    "group norm": (nn.Sequential(conv(), nn.GroupNorm(1, 2)), 3),
    "pool to one": (nn.AdaptiveAvgPool2d(1), None),
    "norm of the batch's own statistics": (
        nn.Sequential(conv(), nn.BatchNorm2d(2, track_running_stats=False)),
        3,
    ),
    "flatten and linear": (nn.Sequential(nn.Flatten(), nn.Linear(2 * SIDE * SIDE, 3)), None),
}


@pytest.mark.parametrize("name", GLOBAL)
def test_what_depends_on_the_whole_image(name: str) -> None:
    network, local = GLOBAL[name]
    graph = trace(network, (2, SIDE, SIDE))
    row = measure_receptive_field(graph).layers[-1]
    for axis in row.axes:
        assert axis.is_global
        assert axis.size == SIDE
        assert axis.sees_all
        assert (None if axis.local is None else axis.local.size) == local


def test_a_weight_that_is_cut_from_the_input() -> None:
    for axis in measure_receptive_field(
        Does(lambda x: F.conv2d(x, x[:, :, :3, :3])), (2, 9, 9)
    ).axes:
        assert [axis.interval(unit) for unit in range(7)] == [(0, unit + 2) for unit in range(7)]


def test_one_and_three_dimensions() -> None:
    causal = Does(lambda x, a: a(F.pad(x, (4, 0))), nn.Conv1d(2, 2, 3, dilation=2))
    (axis,) = measure_receptive_field(causal, (2, 50)).axes
    assert axis.interval(10) == (6, 10)
    solid = nn.Sequential(nn.Conv3d(1, 2, (1, 3, 5)), nn.MaxPool3d(2))
    assert [a.size for a in measure_receptive_field(solid, (1, 9, 9, 9)).axes] == [2, 4, 6]


def test_it_prints_and_gives_the_sheet_people_keep() -> None:
    net = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.MaxPool2d(2), nn.Conv2d(8, 8, 3))
    field = measure_receptive_field(net, (1, 28, 28))
    assert str(field) == "Sequential at 2: conv2d: 8 of 28, jump 2, start -1"
    assert field.to_markdown().splitlines()[2:] == [
        "| 0: conv2d | 28 | 3 | 1 | 1 | 1 | 28 | 1 | 3 |",
        "| 1: max_pool2d | 28 | 2 | 0 | 2 | 1 | 14 | 2 | 4 |",
        "| 2: conv2d | 14 | 3 | 0 | 1 | 1 | 12 | 2 | 8 |",
    ]
    assert field.first_to_see_all is None


@pytest.mark.parametrize(
    ("network", "shape", "layer", "error", "message"),
    [
        (nn.Linear(3, 2), (3,), None, InvalidInputError, "has no image axis"),
        (nn.Conv2d(1, 2, 3), None, None, InvalidInputError, "give either the shape"),
        (nn.Conv2d(1, 2, 3), (1, 28, 0), None, InvalidInputError, "input_shape=0"),
        (nn.Sequential(conv(), conv()), (2, 9, 9), "3", InvalidInputError, "no such module ran"),
        (nn.Conv2d(3, 2, 3), (1, 28, 28), None, TracingError, r"cannot take an input of shape"),
        (nn.Conv2d(1, 2, 5), (1, 3, 3), None, TracingError, r"cannot take an input of shape"),
        (nn.LazyConv2d(2, 3), (1, 28, 28), None, TracingError, "call the model once"),
        (
            Does(lambda x: x if x.sum() > 0 else -x),
            (1, 8, 8),
            None,
            TracingError,
            "depends on the values of its input",
        ),
        (Does(lambda x: torch.fft.fft2(x)), (1, 8, 8), None, TracingError, "'fft_fft2'.*no rule"),
        (Does(lambda x: x @ x.mT), (1, 8, 8), None, TracingError, "name a layer before that"),
        (conv(1), (8, 8), None, TracingError, "channels first, and is given"),
        (
            Does(lambda x, a: a(x[:, :, x[0, 0, 0].argsort()]), conv(1)),
            (1, 8, 8),
            None,
            TracingError,
            "differs from unit to unit",
        ),
    ],
)
def test_what_cannot_be_said(
    network: nn.Module, shape: Any, layer: str | None, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        measure_receptive_field(network, shape, layer=layer)


def aligned(x: Tensor, down: nn.Module, up: nn.Module) -> Tensor:
    y = F.interpolate(down(x), size=x.shape[2:], mode="bilinear", align_corners=True)
    return up(torch.cat([x, y], 1))


def pyramid(x: Tensor, down: nn.Module) -> Tensor:
    return x + F.interpolate(down(x), size=x.shape[2:])  # from 6 units to 14


BY_POSITION = {
    "aligned corners beside a skip": Does(
        aligned, nn.Conv2d(2, 2, 3, stride=2, padding=1), nn.Conv2d(4, 2, 3)
    ),
    "odd sizes": Does(pyramid, nn.Conv2d(2, 2, 3, stride=2)),
    "roll": Does(lambda x, a: a(x.roll((1, -2), (2, 3))), conv(2)),
    "circular padding": nn.Conv2d(2, 2, 3, padding=1, padding_mode="circular"),
    "cumulated": Does(lambda x, a: a(x).cumsum(3), conv(2)),
    "written through a view": Does(written_through_a_view),
    "written in parts": Does(written_in_parts, conv(2)),
    "written over": Does(written_over, conv(2)),
    "two branches of different speed": Does(
        lambda x, a, b: a(x)[..., :6, :6] + b(x)[..., :6, :6], conv(2), nn.Conv2d(2, 2, 2, stride=2)
    ),
}


@pytest.mark.parametrize("name", BY_POSITION)
def test_units_whose_fields_do_not_move_with_them(name: str) -> None:
    network = BY_POSITION[name].double().eval()
    for weights in network.parameters():
        nn.init.uniform_(weights, 0.5, 1.5)
    field = measure_receptive_field(network, (2, 14, 14))
    assert "place to place" in str(field)
    image = (torch.rand(1, 2, 14, 14, dtype=torch.float64) + 0.5).requires_grad_()
    value = network(image)
    for number, axis in enumerate(field.axes):
        for unit in range(value.shape[2 + number]):
            (gradient,) = torch.autograd.grad(
                value.select(2 + number, unit).sum(), image, retain_graph=True
            )
            reached = gradient.abs().sum([0, 1, 3 - number]).nonzero().flatten().tolist()
            low, high = axis.interval(unit) or (14, -1)
            span = (max(low, 0), min(high, 13))
            assert (min(reached, default=14), max(reached, default=-1)) == span


def test_a_unit_that_is_not_there() -> None:
    (axis, _) = measure_receptive_field(nn.Conv2d(1, 2, 3), (1, 8, 8)).axes
    assert not axis.is_clipped(0)
    with pytest.raises(InvalidInputError, match="unit=6"):
        axis.interval(6)


def test_of_several_parts_the_one_that_goes_out_is_meant() -> None:
    net = Does(lambda x, a: torch.split(a(x), [4, 5], 2)[1], conv(1))
    rows, columns = measure_receptive_field(net, (1, 11, 11)).axes
    assert [rows.interval(0), columns.interval(0)] == [(4, 6), (0, 2)]


def test_a_field_of_many_positions_takes_no_time() -> None:
    net = nn.Sequential(nn.Conv1d(1, 1, 3), nn.AdaptiveAvgPool1d(1))
    field = measure_receptive_field(net, (1, 10**8), layer="0")
    assert field.first_to_see_all == "1: adaptive_avg_pool1d"
    assert field.axes[0].interval(10**8 - 3) == (10**8 - 3, 10**8 - 1)


def test_what_is_seen_before_an_operation_that_is_not_known() -> None:
    net = Does(lambda x, a, b: b(torch.special.bessel_j1(a(x))), conv(1), conv(1))
    field = measure_receptive_field(net, (1, 9, 9), strict=False)
    assert field.layer == "parts.0: conv2d"
    assert "nobody has described what special_bessel_j1 reads" in str(field.table())
    with pytest.raises(TracingError, match="no rule"):
        measure_receptive_field(net, (1, 9, 9))
