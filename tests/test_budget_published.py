"""Bytes that independent planners and papers give for networks that are built here by hand."""

from collections.abc import Callable

import pytest
import torch
import torchvision
from torch import Tensor, nn

from constrained_cnn import models
from constrained_cnn.blocks import ConvBNDrop, GAPHead, SeparableConvBNDrop
from constrained_cnn.budget import measure_budget, memory_timeline
from constrained_cnn.tracing import trace


def block(channels: int, out: int) -> nn.Module:
    return ConvBNDrop(channels, out, padding=1, order="conv-bn-relu-drop")


def separable(channels: int, out: int) -> nn.Module:
    return SeparableConvBNDrop(channels, out, padding=1, order="conv-bn-relu-drop")


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = block(1, 8)
        self.body = nn.Sequential(block(8, 8), block(8, 8))
        self.head = GAPHead(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.head(x + self.body(x))


def plain() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(inplace=True),
        nn.Conv2d(8, 16, 3, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 24, 3),
        nn.ReLU(inplace=True),
        GAPHead(24, 10),
    )


def stages(kind: Callable[[int, int], nn.Module]) -> nn.Module:
    return nn.Sequential(block(1, 8), kind(8, 16), nn.MaxPool2d(2), kind(16, 24), GAPHead(24, 10))


@pytest.mark.parametrize(
    ("make", "runs", "folded", "unfused", "planned"),
    [
        # As ExecuTorch plans what runs, and as TensorFlow Lite Micro allocates int8.
        pytest.param(Residual, 75_264, 75_264, 18_816, 18_816, id="residual"),
        pytest.param(plain, 73_728, 58_496, 14_624, 14_624, id="plain"),
        pytest.param(lambda: stages(block), 100_352, 100_352, 25_088, 18_816, id="ConvBNDrop"),
        pytest.param(lambda: stages(separable), 100_352, 100_352, 25_088, 18_816, id="separable"),
    ],
)
def test_peaks_that_planners_of_runtimes_find(
    make: Callable[[], nn.Module], runs: int, folded: int, unfused: int, planned: int
) -> None:
    graph = trace(make(), (1, 28, 28))
    assert memory_timeline(graph).peak == runs
    assert memory_timeline(graph, folded=True).peak == folded
    assert memory_timeline(graph, elements="int8", folded=True).peak == unfused
    assert measure_budget(graph).memory.int8_peak == planned


def test_norms_after_activations_take_maps_of_their_own_until_they_fold_forward() -> None:
    graph = trace(models.mnist_12k(), (1, 28, 28))
    assert memory_timeline(graph).peak == 100_352
    assert memory_timeline(graph, elements="int8", fused=True).peak == 25_088  # as allocated
    # The last norm before the first pool is gone, and what it read and made with it.
    assert measure_budget(graph).memory.int8_peak == (12 + 16) * 28 * 28


def conv(channels: int, out: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(channels, out, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(out),
        nn.ReLU(),
    )


def mobilenet_v1_quarter() -> nn.Module:
    """MobileNet (2017) at a quarter of its width: stride and channels of each separable layer."""
    layers, channels = [conv(3, 8, 3, 2)], 8
    for stride, out in (
        *((1, 16), (2, 32), (1, 32), (2, 64), (1, 64), (2, 128)),
        *((1, 128),) * 5,
        *((2, 256), (1, 256)),
    ):
        layers += [conv(channels, channels, 3, stride, channels), conv(channels, out, 1)]
        channels = out
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(256, 2))


def test_mobilenet_v1_quarter_as_the_visual_wake_words_paper_runs_it() -> None:
    memory = measure_budget(mobilenet_v1_quarter(), (3, 96, 96)).memory
    assert memory.int8_peak == 55_296  # 48 x 48 x (8 + 16): 54 KiB
    assert memory.unfused_int8_timeline.peak == 73_728


def test_resnet_50_with_batch_norms_folded() -> None:
    with torch.device("meta"):
        graph = trace(torchvision.models.resnet50(), (3, 224, 224))
    assert memory_timeline(graph, elements="float32", folded=True).peak == 7_225_344


def test_mobilenet_v2_with_depthwise_convolutions_in_place() -> None:
    with torch.device("meta"):
        memory = measure_budget(torchvision.models.mobilenet_v2(), (3, 224, 224)).memory
    fused, in_place = memory.planned
    assert fused.peak == 96 * (112 * 112 + 56 * 56)
    assert in_place.peak == (16 + 96) * 112 * 112 == 1372 * 1024


class Inverted(nn.Module):
    """An inverted residual: expansion, depthwise convolution, projection."""

    def __init__(self, channels: int, out: int, expand: int, stride: int, kernel: int) -> None:
        super().__init__()
        wide = channels * expand
        self.adds = stride == 1 and channels == out
        self.layers = nn.Sequential(
            *([conv(channels, wide, 1)] if expand > 1 else []),
            conv(wide, wide, kernel, stride, wide),
            conv(wide, out, 1)[:2],  # type: ignore[index]
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x) if self.adds else self.layers(x)


# Of each inverted residual: expansion, channels, stride, kernel.
MCUNET_5FPS = (
    *((1, 8, 1, 3), (4, 16, 2, 3), (3, 16, 1, 3), (3, 24, 2, 7), (5, 24, 1, 3), (5, 40, 2, 3)),
    *((4, 40, 1, 7), (4, 48, 1, 5), (3, 48, 1, 3), (4, 48, 1, 3), (5, 96, 2, 7), (4, 96, 1, 5)),
    *((4, 96, 1, 5), (6, 160, 1, 3)),
)
MCUNET_320KB = (
    *((1, 8, 1, 3), (3, 16, 2, 7), (5, 16, 1, 3), (5, 16, 1, 7), (4, 16, 1, 5), (5, 24, 2, 5)),
    *((5, 24, 1, 5), (5, 24, 1, 5), (5, 40, 2, 3), (6, 40, 1, 7), (4, 40, 1, 5), (5, 48, 1, 5)),
    *((5, 48, 1, 7), (5, 48, 1, 3), (6, 96, 2, 3), (5, 96, 1, 7), (4, 96, 1, 3), (5, 160, 1, 7)),
)


def mcunet(blocks: tuple[tuple[int, int, int, int], ...]) -> nn.Module:
    layers, channels = [conv(3, 16, 3, 2)], 16
    for expand, out, stride, kernel in blocks:
        layers.append(Inverted(channels, out, expand, stride, kernel))
        channels = out
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 1000))


@pytest.mark.parametrize(
    ("make", "size", "peak", "kib"),
    [
        pytest.param(lambda: mcunet(MCUNET_5FPS), 96, 92_160, 90, id="mcunet-5fps"),
        pytest.param(lambda: mcunet(MCUNET_320KB), 176, 340_736, 333, id="mcunet-320kB"),
        pytest.param(
            lambda: torchvision.models.mobilenet_v2(width_mult=0.35),
            *(144, 311_040, 303),
            id="mbv2-w0.35",
        ),
    ],
)
def test_activations_as_mcunet_publishes_them(
    make: Callable[[], nn.Module], size: int, peak: int, kib: int
) -> None:
    with torch.device("meta"):
        memory = measure_budget(make(), (3, size, size)).memory
    assert memory.int8_peak == peak
    assert abs(peak / 1024 - kib) < 1  # as they print it


@pytest.mark.parametrize(
    ("blocks", "size", "macs", "parameters"),
    [(MCUNET_5FPS, 96, "12.8", "0.64"), (MCUNET_320KB, 176, "81.8", "0.74")],
)
def test_they_are_the_networks_of_the_model_list(
    blocks: tuple[tuple[int, int, int, int], ...], size: int, macs: str, parameters: str
) -> None:
    with torch.device("meta"):
        budget = measure_budget(mcunet(blocks), (3, size, size))
    millions = f"{budget.macs / 1e6:.1f}", f"{budget.parameters.total / 1e6:.2f}"
    assert millions == (macs, parameters)
