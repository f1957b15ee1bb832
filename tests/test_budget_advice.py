"""What one more channel was said to cost is what the wider network, built anew, costs more."""

from collections.abc import Callable

import pytest
import torch
import torchvision
from torch import Tensor, nn

from constrained_cnn.budget import advise, measure_budget


class Mixed(nn.Module):
    """Branches, sums, joins, depthwise and grouped layers, and a flatten, with chosen widths."""

    def __init__(self, a: int, b: int, c: int, d: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, a, 3, padding=1, bias=False), nn.BatchNorm2d(a))
        self.depthwise = nn.Conv2d(a, a, 3, padding=1, groups=a)
        self.twin = nn.Conv2d(a, a, 1)
        self.side = nn.Conv2d(3, b, 3, padding=1)
        self.after = nn.ConvTranspose2d(a + b, c, 2, 2)
        self.activation = nn.PReLU(c)
        self.grouped = nn.Conv2d(c, d, 3, groups=2)
        self.pool = nn.AvgPool2d(7)
        self.head = nn.Linear(4 * d, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.stem(x))
        y = y + self.twin(self.depthwise(y))
        y = self.activation(self.after(torch.cat([y, self.side(x)], 1)))
        return self.head(self.pool(self.grouped(y)).flatten(1))


WIDTHS = (6, 4, 8, 4)


def test_every_width_of_a_mixed_network() -> None:
    advice = advise(Mixed(*WIDTHS), (3, 8, 8))
    by_layer = {layer: cost for cost in advice.costs for layer in cost.layers}
    names = ["stem.0: conv2d", "side: conv2d", "after: conv_transpose2d", "grouped: conv2d"]
    assert by_layer["twin: conv2d"] is by_layer["stem.0: conv2d"]
    before = measure_budget(Mixed(*WIDTHS), (3, 8, 8))
    for place, (name, step) in enumerate(zip(names, (1, 1, 2, 2), strict=True)):
        cost = by_layer[name]
        assert (cost.channels, cost.step, cost.problem) == (WIDTHS[place], step, "")
        wider = [width + step * (i == place) for i, width in enumerate(WIDTHS)]
        after = measure_budget(Mixed(*wider), (3, 8, 8))
        assert cost.parameters == after.parameters.total - before.parameters.total
        assert cost.macs == after.macs - before.macs
        assert cost.memory == after.memory.inference_peak - before.memory.inference_peak


def test_widths_that_a_sum_ties_in_a_residual_network() -> None:
    def build(width: int) -> nn.Module:
        return torchvision.models.ResNet(
            torchvision.models.resnet.BasicBlock, [1, 1, 1, 1], width_per_group=width
        )

    costs = advise(build(64), (3, 64, 64)).costs
    assert costs[0].layers == ("conv1: conv2d", "layer1.0.conv2: conv2d")
    assert [cost.channels for cost in costs if not cost.problem] == [
        64,
        64,
        128,
        128,
        256,
        256,
        512,
        512,
    ]


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (lambda: nn.Sequential(nn.Conv2d(1, 4, 3), nn.PixelShuffle(2)), "pixel_shuffle"),
        (lambda: nn.Sequential(nn.Conv2d(1, 4, 3), nn.GLU(1)), "glu"),
        (
            lambda: nn.Sequential(
                nn.utils.parametrizations.weight_norm(nn.Conv2d(1, 4, 3)), nn.Conv2d(4, 2, 3)
            ),
            "parametrised",
        ),
        (lambda: nn.Conv2d(1, 4, 3), "goes out"),
    ],
)
def test_what_cannot_be_said_says_why(make: Callable[[], nn.Module], problem: str) -> None:
    first = advise(make(), (1, 8, 8)).costs[0]
    assert problem in first.problem
    assert (first.parameters, first.macs, first.memory) == (0, 0, 0)


def test_faces() -> None:
    advice = advise(Mixed(*WIDTHS), (3, 8, 8))
    assert "stem.0: conv2d and 1 tied to it" in str(advice)
    assert "goes out of the network" in advice.to_markdown()
    assert advice.to_dict()["schema"] == "constrained_cnn.advice/1"
    assert "<table>" in advice._repr_html_().replace("<table><caption>", "<table>")
    assert repr(advice) == "Advice(Mixed: 5 groups of channels)"


# Channels that meet themselves again, and weights that have none


class Reused(nn.Module):
    """A convolution that runs twice, and a depthwise one that runs on two values."""

    def __init__(self, a: int) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, a, 3), nn.Conv2d(a, a, 3, padding=1)
        self.depthwise, self.norm = nn.Conv2d(a, a, 3, groups=a), nn.BatchNorm2d(a)
        self.side, self.out = nn.Conv2d(3, a, 3), nn.Conv2d(2 * a, 2, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.depthwise(self.b(torch.relu(self.b(self.a(x))))))
        z = self.norm(self.depthwise(self.side(x)))
        return self.out(torch.cat([y, z], 1))


class Embedded(nn.Module):
    """Weights of many shapes, with an axis of channels and without."""

    def __init__(self, a: int) -> None:
        super().__init__()
        self.a, self.out = nn.Conv2d(3, a, 3), nn.Conv2d(a, 2, 3)
        shapes = [(1, 1, 8, 10), (1, a, 8, 10), (8, 10), (a, 1, 1), (10,), (1,), (a, 8, 10), (a,)]
        self.added = nn.ParameterList([nn.Parameter(torch.ones(shape)) for shape in shapes])
        self.norms = nn.Sequential(nn.LayerNorm((8, 10)), nn.GroupNorm(1, a), nn.PReLU(a))
        self.one = nn.PReLU()

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        *broadcast, last = self.added
        for weight in broadcast:
            y = y + weight
        return self.out(self.one(self.norms(y * last.view(1, -1, 1, 1))))


class Last(nn.Module):
    """Channels behind the positions."""

    def __init__(self, a: int) -> None:
        super().__init__()
        self.a, self.norm, self.out = nn.Linear(5, a), nn.LayerNorm(a), nn.Linear(a, 4)
        self.scale, self.place = nn.Parameter(torch.ones(a)), nn.Parameter(torch.ones(1, 6, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.norm(self.a(x)) * self.scale + self.place)


class Narrow(nn.Module):
    """One channel, which is no sign of a weight that all channels share."""

    def __init__(self, a: int) -> None:
        super().__init__()
        self.a, self.norm, self.b = nn.Conv2d(3, a, 1), nn.BatchNorm2d(a), nn.Conv2d(a, 4, 1)
        self.up, self.last = nn.ConvTranspose2d(4, 4, 2, groups=4), nn.Conv2d(4, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.up(self.b(self.norm(self.a(x)))))


@pytest.mark.parametrize(
    ("make", "width", "shape"),
    [
        (Reused, 5, (3, 10, 12)),
        (Embedded, 6, (3, 10, 12)),
        (Last, 7, (6, 5)),
        (Narrow, 1, (3, 6, 6)),
        (Narrow, 2, (3, 6, 6)),
    ],
)
def test_one_more_channel_is_what_building_it_says(
    make: Callable[[int], nn.Module], width: int, shape: tuple[int, ...]
) -> None:
    costs = advise(make(width), shape).costs
    (cost,) = (one for one in costs if one.layers[0].startswith("a: "))
    assert (cost.channels, cost.step, cost.problem) == (width, 1, "")
    before, after = measure_budget(make(width), shape), measure_budget(make(width + 1), shape)
    assert cost.parameters == after.parameters.total - before.parameters.total
    assert cost.macs == after.macs - before.macs
    assert cost.memory == after.memory.inference_peak - before.memory.inference_peak


def test_depthwise_transposed() -> None:
    def build(width: int) -> nn.Module:
        up = nn.ConvTranspose2d(width, 2 * width, 2, groups=width)
        return nn.Sequential(nn.Conv2d(3, width, 1), up, nn.Conv2d(2 * width, 2, 1))

    cost = advise(build(4), (3, 6, 6)).costs[0]
    before, after = measure_budget(build(4), (3, 6, 6)), measure_budget(build(5), (3, 6, 6))
    assert cost.parameters == after.parameters.total - before.parameters.total
    assert cost.macs == after.macs - before.macs


def test_a_weight_whose_axis_of_channels_is_hidden_says_so() -> None:
    class Square(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.out = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 2, 3)
            self.scale = nn.Parameter(torch.ones(8))

        def forward(self, x: Tensor) -> Tensor:
            return self.out(self.a(x) * self.scale.view(1, -1, 1, 1))

    assert advise(Square(), (3, 9, 9)).costs[0].parameters == 3 * 9 + 1 + 2 * 9 + 1
    problem = advise(Square(), (3, 10, 10)).costs[0].problem  # 8 columns as well
    assert problem == "mul hides their axis of scale"
