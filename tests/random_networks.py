"""Strategies that draw random networks: branches, strides, dilation, groups, resampling, crops."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import Tensor, nn

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
    stride = draw(st.tuples(st.integers(1, 2), st.integers(1, 2)))
    # No narrower than the stride: units that see nothing would hide, in the gradient summed over
    # one axis, what is seen along the other.
    kernel = draw(st.tuples(*(st.integers(step, 4) for step in stride)))
    options: dict[str, Any] = {
        "stride": stride,
        "padding": tuple(draw(st.integers(0, (size - 1) // 2)) for size in kernel),
        "output_padding": tuple(
            draw(st.integers(0, min(step - 1, size - step)))
            for step, size in zip(stride, kernel, strict=True)
        ),
        "groups": draw(st.sampled_from([1, CHANNELS])),
    }
    return Part(
        f"transposed {kernel} {options}",
        lambda: nn.ConvTranspose2d(CHANNELS, CHANNELS, kernel, **options),
    )


OTHERS = [
    Part("average pool", lambda: nn.AvgPool2d(2)),
    Part("overlapping pool", lambda: nn.AvgPool2d(3, 2, 1)),
    Part("nearest", lambda: nn.Upsample(scale_factor=2)),
    Part("linear", lambda: nn.Upsample(scale_factor=2, mode="bilinear")),
    Part("linear by 4", lambda: nn.Upsample(scale_factor=4, mode="bilinear")),
    Part("every second", lambda: Does(lambda x: x[..., ::2])),
    Part("pad", lambda: Does(lambda x: F.pad(x, (2, 0, 0, 1)))),
    Part("flip", lambda: Does(lambda x: x.flip(3))),
    Part(
        "shuffle", lambda: nn.Sequential(nn.Conv2d(CHANNELS, 4 * CHANNELS, 1), nn.PixelShuffle(2))
    ),
    Part("norm and activation", lambda: nn.Sequential(nn.BatchNorm2d(CHANNELS), nn.Softplus())),
    Part("channel shuffle", lambda: nn.ChannelShuffle(CHANNELS)),
]
# Rounds the number of units down, so zeros that fill it up would stand for units it could make.
NEAREST_BY_3_2 = Part("nearest by 3/2", lambda: Does(lambda x: F.interpolate(x, scale_factor=1.5)))
UNPADDED = (
    "average pool",
    "nearest",
    "every second",
    "shuffle",
    "norm and activation",
    "channel shuffle",
)
parts = st.one_of(
    convolutions(), convolutions(), transposed_convolutions(), st.sampled_from(OTHERS)
)


class Branches(nn.Module):
    """Two branches, brought to the same size, and added or put side by side."""

    def __init__(
        self, one: nn.Module, other: nn.Module, *, side_by_side: bool, filled: bool
    ) -> None:
        super().__init__()
        self.one, self.other = one, other
        self.side_by_side, self.filled = side_by_side, filled

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.one(x), self.other(x)
        choose = max if self.filled else min
        height, width = (choose(a.shape[i], b.shape[i]) for i in (2, 3))
        a, b = (F.pad(y, (0, width - y.shape[3], 0, height - y.shape[2])) for y in (a, b))
        if not self.side_by_side:
            return a + b
        # Mixed at once: a field does not follow which channel comes from which branch.
        return F.conv2d(torch.cat([a, b], 1), x.new_ones(CHANNELS, 2 * CHANNELS, 1, 1))


@st.composite
def networks(
    draw: st.DrawFn, depth: int = 2, parts: st.SearchStrategy[Part] = parts, filled: bool = True
) -> nn.Sequential:
    layers: list[nn.Module] = []
    for _ in range(draw(st.integers(1, 3))):
        if depth and draw(st.booleans()):
            one, other = (draw(networks(depth - 1, parts, filled)) for _ in range(2))
            side_by_side = draw(st.booleans())
            layers.append(Branches(one, other, side_by_side=side_by_side, filled=filled))
        else:
            layers.append(draw(parts).make())
    return nn.Sequential(*layers)


@st.composite
def unpadded_convolutions(draw: st.DrawFn) -> Part:
    options: dict[str, Any] = {
        "stride": draw(st.sampled_from([(1, 1), (2, 1), (1, 2)])),
        "dilation": draw(st.sampled_from([(1, 1), (2, 1), (1, 2)])),
        "groups": draw(st.sampled_from([1, CHANNELS])),
    }
    kernel = draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    return Part("conv", lambda: nn.Conv2d(CHANNELS, CHANNELS, kernel, **options))


@st.composite
def crops(draw: st.DrawFn) -> Part:
    top, left = draw(st.integers(0, 3)), draw(st.integers(0, 3))
    if draw(st.booleans()):
        return Part("slice", lambda: Does(lambda x: x[:, :, top:, left:]))
    return Part("negative padding", lambda: Does(lambda x: F.pad(x, (-left, 0, -top, 0))))


def cropping_networks() -> st.SearchStrategy[nn.Sequential]:
    """Networks that cut off the first lines.

    Nothing in them pads, where zeros would stand for what was cut off; the larger of two branches
    is cut to the smaller.
    """
    plain = [NEAREST_BY_3_2, *(part for part in OTHERS if part.name in UNPADDED)]
    parts = st.one_of(unpadded_convolutions(), crops(), st.sampled_from(plain))
    return networks(parts=parts, filled=False)
