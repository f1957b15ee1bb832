"""Bytes that live, against the reference, a running network, and autograd's own hooks."""

import copy
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode

from constrained_cnn import models
from constrained_cnn.blocks import Dropout
from constrained_cnn.budget import measure_budget, memory_timeline
from constrained_cnn.errors import InvalidInputError
from constrained_cnn.tracing import trace


# Of the reference, in units of 10 kB.
@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("resnet18", 642),
        ("mobilenet_v2", 963),
        ("vgg16", 2569),
        ("densenet121", 843),
        ("shufflenet_v2_x1_0", 241),
    ],
)
def test_peaks_of_the_reference(name: str, peak: int) -> None:
    with torch.device("meta"):
        model = torchvision.models.get_model(name)
    memory = measure_budget(model, (3, 224, 224)).memory
    assert round(memory.inference_peak / 1e4) == peak


class Living(TorchDispatchMode):
    """The most bytes that live at once, of the tensors that operations made."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.peak = 0
        self._own = {part.untyped_storage().data_ptr() for part in model.parameters()}
        self._made: list[tuple[weakref.ref[Tensor], int, int]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        outcome = func(*args, **(kwargs or {}))
        for tensor in outcome if isinstance(outcome, tuple | list) else [outcome]:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in self._own:  # a weight, turned
                self._made.append((weakref.ref(tensor), storage.data_ptr(), storage.nbytes()))
        living = {place: size for tensor, place, size in self._made if tensor() is not None}
        self.peak = max(self.peak, sum(living.values()))
        return outcome


@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3), nn.AvgPool2d(2)),
        lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(inplace=True), nn.Conv2d(8, 16, 3)),
        lambda: nn.Sequential(nn.Conv2d(3, 4, 1), nn.Flatten(), nn.ReLU(), nn.Linear(1024, 5)),
        lambda: torchvision.models.resnet.BasicBlock(3, 3),
    ],
)
def test_peaks_of_networks_that_run(make: Callable[[], nn.Module]) -> None:
    model = make().eval()
    image = torch.randn(1, 3, 16, 16)
    with torch.no_grad(), Living(model) as living:
        model(image)
    assert measure_budget(model, (3, 16, 16)).memory.inference_peak == living.peak


def test_accountings_by_hand() -> None:
    net = nn.Sequential(
        nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(inplace=True), nn.Conv2d(2, 3, 3)
    )
    graph = trace(net, (1, 8, 8))  # 72 elements three times, then 48; the input has 64
    assert memory_timeline(graph).live == (288, 576, 288, 480)
    assert memory_timeline(graph, in_place=False).live == (288, 576, 576, 480)
    assert memory_timeline(graph, folded=True).live == (288, 288, 288, 480)
    assert memory_timeline(graph, folded=True, in_place=False).live == (288, 288, 576, 480)
    assert memory_timeline(graph, elements="int8", with_input=True).live == (136, 144, 72, 120)
    peaks = {peak.name: peak.peak for peak in measure_budget(graph).memory.peaks}
    assert peaks == {
        "as run": 576,
        "as run, nothing in place": 576,
        "as run, batch norm folded": 480,
        "as run, batch norm folded, nothing in place": 576,
        "int8": 144,
        "int8, nothing in place": 144,
        "int8, batch norm folded": 120,
        "int8, batch norm folded, nothing in place": 144,
    }


class Reads(nn.Module):
    """A convolution to 2 x 8 x 8, an activation, and what else the function does with both."""

    def __init__(self, function: Callable[[Tensor, Tensor], Tensor], activation: nn.Module) -> None:
        super().__init__()
        self.conv, self.act, self.function = nn.Conv2d(1, 2, 3), activation, function

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return self.function(x, self.act(x))


MAP = 2 * 8 * 8


@pytest.mark.parametrize(
    ("make", "peak"),
    [
        # An activation that alone reads the map works in it, in place or not.
        (lambda: Reads(lambda x, y: y, nn.ReLU()), MAP),
        (lambda: Reads(lambda x, y: y, nn.ReLU(inplace=True)), MAP),
        (lambda: Reads(lambda x, y: y, nn.Hardswish()), MAP),
        (lambda: Reads(lambda x, y: y, nn.Sequential(nn.Dropout(0.5), nn.SiLU())), MAP),
        (lambda: Reads(lambda x, y: y, nn.Sequential(nn.Flatten(), nn.Tanh())), MAP),
        (lambda: nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.PReLU(2)), MAP),
        # Where something else reads the map, before the activation or after, it makes another.
        (lambda: Reads(lambda x, y: torch.cat([x, y], 1), nn.ReLU()), 4 * MAP),
        (
            lambda: Reads(lambda x, y: x.flatten(1).sum(1) + y.sum((1, 2, 3)), nn.ReLU()),
            2 * MAP + 1,
        ),
        # A softmax is no activation of a layer, and one that halves its channels keeps no map.
        (lambda: Reads(lambda x, y: y, nn.Softmax(1)), 2 * MAP),
        (lambda: Reads(lambda x, y: y, nn.GLU(1)), MAP + MAP // 2),
        # What the caller gives is the caller's.
        (lambda: nn.Sequential(nn.ReLU(), nn.Conv2d(1, 2, 3)), 100 + MAP),
    ],
)
def test_what_an_activation_fuses_into(make: Callable[[], nn.Module], peak: int) -> None:
    memory = measure_budget(make(), (1, 10, 10)).memory
    assert memory.int8_timeline.name == "int8, batch norm folded, fused"
    assert memory.int8_peak == memory.int8_timeline.peak == peak


@pytest.mark.parametrize(
    ("layers", "peak"),
    [
        ([nn.Conv2d(4, 4, 3, padding=1, groups=4)], 4 * 64 + 64),  # then 1 x 8 x 8 more
        ([nn.Conv2d(4, 4, 3, 2, 1, groups=4)], 64 + 4 * 64),  # the 1 x 8 x 8 before it
        ([nn.Conv2d(4, 4, 2, padding=1, groups=4)], 4 * 64 + 4 * 81),  # larger: not over its input
        ([nn.Conv2d(4, 8, 3, padding=1, groups=4)], 4 * 64 + 8 * 64),  # two of each
        ([nn.Conv2d(4, 4, 3, padding=1, groups=2)], 2 * 4 * 64),  # no depthwise one
        ([nn.Conv2d(4, 4, 3, padding=1, groups=4), nn.ReLU6()], 4 * 64 + 64),
    ],
)
def test_a_depthwise_convolution_writes_over_its_input(layers: list[nn.Module], peak: int) -> None:
    net = nn.Sequential(nn.Conv2d(1, 1, 1), nn.Conv2d(1, 4, 1), *layers, nn.LazyConv2d(1, 1))
    with torch.no_grad():
        net(torch.zeros(1, 1, 8, 8))
    *_, timeline = measure_budget(net, (1, 8, 8)).memory.planned
    assert timeline.name == "int8, batch norm folded, fused, depthwise in place"
    assert timeline.peak == peak


def test_a_depthwise_convolution_spares_what_is_needed_later() -> None:
    class Beside(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.wide = nn.Conv2d(1, 4, 1)
            self.each = nn.Conv2d(4, 4, 3, padding=1, groups=4)

        def forward(self, x: Tensor) -> Tensor:
            x = self.wide(x)
            return self.each(x) + x

    graph = trace(Beside(), (1, 8, 8))
    assert memory_timeline(graph, elements="int8", depthwise_in_place=True).peak == 3 * 4 * 64


def test_the_peak_grows_with_the_image() -> None:
    peaks = [
        measure_budget(models.mnist_12k(), (1, size, size)).memory.inference_peak
        for size in (28, 32, 40)
    ]
    assert peaks == sorted(set(peaks))


def test_memory_prints_shortly() -> None:
    memory = measure_budget(nn.Conv2d(1, 2, 3), (1, 8, 8)).memory
    assert repr(memory.timeline) == "Timeline(as run: 288 bytes at conv2d)"
    assert repr(memory) == (
        "Memory(weights 80 B, inference peak 288 B at conv2d, saved for backward 256 B)"
    )


def test_what_cannot_be_asked() -> None:
    graph = trace(nn.ReLU(), (1, 8, 8))
    with pytest.raises(InvalidInputError, match="'float16'"):
        memory_timeline(graph, elements="float61")
    with pytest.raises(InvalidInputError, match="must be a Graph"):
        memory_timeline(nn.ReLU())  # type: ignore[arg-type]


def saved_bytes(model: nn.Module, shape: tuple[int, ...], batch: int) -> tuple[int, int]:
    """Return the bytes that autograd keeps on a CPU, parameters and buffers left out.

    The second number is those of dropped elements' places, whose count is random.
    """
    model = copy.deepcopy(model).train()
    own = {p.untyped_storage().data_ptr() for p in (*model.parameters(), *model.buffers())}
    sizes: dict[int, int] = {}
    places: dict[int, int] = {}
    kept: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            of_kind = places if tensor.dtype == torch.int32 else sizes
            of_kind[storage.data_ptr()] = storage.nbytes()
            kept.append(tensor.detach())
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        model(torch.randn(batch, *shape))
    return sum(sizes.values()), sum(places.values())


class Attends(nn.Module):
    """Attention by one fused operation, in heads."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.qkv, self.options = nn.Linear(12, 36), options

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, 3, 4)).permute(2, 0, 3, 1, 4)
        return nn.functional.scaled_dot_product_attention(q, k, v, **self.options)


@pytest.mark.parametrize(
    ("model", "shape"),
    [
        (models.mnist_12k(), (1, 28, 28)),
        (models.mnist_12k_source(), (1, 28, 28)),
        (nn.Sequential(nn.Conv2d(1, 4, 3), Dropout(0.02), nn.Tanh(), Dropout(0.2)), (1, 30, 30)),
        (torchvision.models.resnet18(), (3, 64, 64)),
        (torchvision.models.mobilenet_v2(), (3, 64, 64)),
        (torchvision.models.convnext_tiny(), (3, 64, 64)),
        (nn.Sequential(nn.Conv2d(1, 4, 3).requires_grad_(False), nn.Tanh()), (1, 9, 9)),
        (Attends(), (5, 12)),
        (Attends(is_causal=True), (5, 12)),
        (nn.Sequential(nn.Flatten(), nn.Linear(12, 3), nn.Dropout(0.5), nn.Softmax(1)), (3, 4)),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_autograd_keeps(model: nn.Module, shape: tuple[int, ...]) -> None:
    (two, places_of_two), (three, places_of_three) = (saved_bytes(model, shape, n) for n in (2, 3))
    memory = measure_budget(model, shape).memory
    assert memory.saved_for_backward is not None
    places = memory.saved_for_backward - (three - two)
    assert memory.saved_once == 3 * two - 2 * three
    # The variance of a count is at most its mean; each dropout rounds up.
    slack = 4 * (5 * (5 * places / 4) ** 0.5 + len(list(model.modules()))) if places else 0
    assert abs(places_of_three - places_of_two - places) <= slack
