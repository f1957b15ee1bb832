"""Random networks: what is measured for every unit is what its gradient reaches.

A field is that of the network without borders. A unit that reads the padding of a layer in between
sees less, so there the gradient may reach less; where the span lies inside the image it must reach
its ends. No layer here crops: what one cut off, the padding of the next would put zeros for.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from constrained_cnn.errors import TracingError
from constrained_cnn.graph import Graph
from constrained_cnn.receptive_field import ReceptiveField, measure_receptive_field
from constrained_cnn.tracing import trace

CHANNELS = 2
SHAPE = (CHANNELS, 13, 12)


@dataclass(frozen=True)
class Part:
    """One layer, made anew for each network."""

    name: str
    make: Callable[[], nn.Module]


class Does(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


@st.composite
def convolutions(draw: st.DrawFn) -> Part:
    pair = st.tuples(st.integers(1, 3), st.integers(1, 3))
    options: dict[str, Any] = {
        "stride": draw(st.sampled_from([(1, 1), (1, 1), (2, 1), (2, 2)])),
        "padding": draw(st.tuples(st.integers(0, 2), st.integers(0, 2))),
        "dilation": draw(st.sampled_from([(1, 1), (1, 1), (2, 1), (1, 2)])),
        "groups": draw(st.sampled_from([1, CHANNELS])),
    }
    kernel = draw(pair)
    return Part(
        f"conv {kernel} {options}", lambda: nn.Conv2d(CHANNELS, CHANNELS, kernel, **options)
    )


@st.composite
def transposed_convolutions(draw: st.DrawFn) -> Part:
    stride = draw(st.integers(1, 2))
    # No narrower than the stride: units that see nothing would hide, in the gradient summed over
    # one axis, what is seen along the other.
    kernel = draw(st.integers(stride, 4))
    return Part(
        f"transposed {kernel} {stride}",
        lambda: nn.ConvTranspose2d(CHANNELS, CHANNELS, kernel, stride),
    )


OTHERS = [
    Part("average pool", lambda: nn.AvgPool2d(2)),
    Part("overlapping pool", lambda: nn.AvgPool2d(3, 2, 1)),
    Part("nearest", lambda: nn.Upsample(scale_factor=2)),
    Part("linear", lambda: nn.Upsample(scale_factor=2, mode="bilinear")),
    Part("every second", lambda: Does(lambda x: x[..., ::2])),
    Part("pad", lambda: Does(lambda x: F.pad(x, (2, 0, 0, 1)))),
    Part("flip", lambda: Does(lambda x: x.flip(3))),
    Part(
        "shuffle", lambda: nn.Sequential(nn.Conv2d(CHANNELS, 4 * CHANNELS, 1), nn.PixelShuffle(2))
    ),
    Part("norm and activation", lambda: nn.Sequential(nn.BatchNorm2d(CHANNELS), nn.Softplus())),
    Part("channel shuffle", lambda: nn.ChannelShuffle(CHANNELS)),
]
parts = st.one_of(
    convolutions(), convolutions(), transposed_convolutions(), st.sampled_from(OTHERS)
)


class Branches(nn.Module):
    """Two branches, filled up to the same size, and added or put side by side."""

    def __init__(self, one: nn.Module, other: nn.Module, *, side_by_side: bool) -> None:
        super().__init__()
        self.one, self.other, self.side_by_side = one, other, side_by_side

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.one(x), self.other(x)
        height, width = (max(a.shape[i], b.shape[i]) for i in (2, 3))
        a, b = (F.pad(y, (0, width - y.shape[3], 0, height - y.shape[2])) for y in (a, b))
        if not self.side_by_side:
            return a + b
        # Mixed at once: a field does not follow which channel comes from which branch.
        return F.conv2d(torch.cat([a, b], 1), x.new_ones(CHANNELS, 2 * CHANNELS, 1, 1))


@st.composite
def networks(draw: st.DrawFn, depth: int = 2) -> nn.Module:
    layers: list[nn.Module] = []
    for _ in range(draw(st.integers(1, 3))):
        if depth and draw(st.booleans()):
            one, other = draw(networks(depth - 1)), draw(networks(depth - 1))
            layers.append(Branches(one, other, side_by_side=draw(st.booleans())))
        else:
            layers.append(draw(parts).make())
    return nn.Sequential(*layers)


def traced(network: nn.Module) -> Graph | None:
    """Return the graph; None if the image is too small for the network, or its layers too large."""
    try:
        graph = trace(network, SHAPE)
    except TracingError as error:
        assert "cannot take an input" in str(error)  # noqa: PT017
        return None
    largest = max(math.prod(value.shape) for value in graph.values)
    return graph if largest <= 20_000 and math.prod(graph.values[-1].shape) > 0 else None


def measured(graph: Graph) -> ReceptiveField | None:
    """Return the field; None where branches move at different speeds, so that there is none."""
    try:
        return measure_receptive_field(graph)
    except TracingError as error:
        assert "depends on the position" in str(error)  # noqa: PT017
        return None


def check(network: nn.Module) -> None:
    """Compare the measured span of every unit of both axes with its gradient."""
    network = network.double().eval()
    for weights in network.parameters():
        nn.init.uniform_(weights, 0.5, 1.5)  # no two paths cancel
    graph = traced(network)
    assume(graph is not None)
    assert graph is not None
    field = measured(graph)
    assume(field is not None)
    assert field is not None
    image = (torch.rand(1, *SHAPE, dtype=torch.float64) + 0.5).requires_grad_()
    value = network(image)
    assume(value[0, 0].numel() <= 1500)
    for number, axis in enumerate(field.axes):
        own, last = 2 + number, SHAPE[1 + number] - 1
        others = [a for a in range(4) if a != own]
        for unit in range(value.shape[own]):
            (gradient,) = torch.autograd.grad(
                value.select(own, unit).sum(), image, retain_graph=True
            )
            reached = gradient.abs().sum(others).nonzero().flatten().tolist()
            span = axis.interval(unit)
            if span is None:
                assert reached == []
            elif span[0] >= 0 and span[1] <= last:
                assert (min(reached), max(reached)) == span
            else:
                assert all(span[0] <= position <= span[1] for position in reached)


@settings(max_examples=100)
@given(network=networks())
def test_every_unit_of_a_random_network(network: nn.Module) -> None:
    check(network)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@settings(max_examples=3000)
@given(network=networks(depth=3))
def test_every_unit_of_many_random_networks(network: nn.Module) -> None:
    check(network)
