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
