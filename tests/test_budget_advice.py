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
