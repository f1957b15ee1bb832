"""Every classification model that torchvision lists, against the numbers it publishes."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torchvision
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from constrained_cnn.budget import measure_budget

NAMES = torchvision.models.list_models(module=torchvision.models)
LARGEST = ("regnet_y_128gf", "vit_h_14", "vit_l_16", "vit_l_32", "vgg19_bn")

# Parameters and MACs of the reference, exact.
EXACT = {
    "alexnet": (61_100_840, 714_188_480),
    "vgg16": (138_357_544, 15_470_264_320),
    "resnet18": (11_689_512, 1_814_073_344),
    "resnet50": (25_557_032, 4_089_184_256),
    "googlenet": (6_624_904, 1_498_376_192),
    "inception_v3": (27_161_264, 5_713_216_096),
    "mobilenet_v2": (3_504_872, 300_774_272),
    "mobilenet_v3_small": (2_542_856, 56_510_400),
    "densenet121": (7_978_856, 2_834_161_664),
    "squeezenet1_0": (1_248_424, 818_924_576),
    "shufflenet_v2_x1_0": (2_278_604, 144_907_992),
    "efficientnet_b0": (5_288_548, 385_814_752),
    "convnext_tiny": (28_589_128, 4_455_531_264),
}


@pytest.fixture(autouse=True)
def _nothing_is_initialised(monkeypatch: pytest.MonkeyPatch) -> None:
    """Skip the drawing of weights, which is most of the time and touches all the memory."""
    for name in dir(nn.init):
        if name.endswith("_") and not name.startswith("_"):
            monkeypatch.setattr(nn.init, name, lambda tensor, *_, **__: tensor)


def build(name: str, **options: Any) -> nn.Module:
    if name == "googlenet":  # what it publishes leaves the auxiliary heads out
        options["aux_logits"] = False
    if name in ("googlenet", "inception_v3"):
        options["init_weights"] = False
    return torchvision.models.get_model(name, **options)


def published(name: str) -> Iterator[tuple[int, int, float, dict[str, Any]]]:
    """Yield the size, the parameters, and the MACs in units of 10**9, for each size published."""
    seen = set()
    for weights in torchvision.models.get_model_weights(name):
        (size,) = weights.transforms().crop_size
        key = (size, weights.meta["num_params"], weights.meta["_ops"])
        if key not in seen:
            seen.add(key)
            yield *key, {"image_size": size} if name.startswith("vit") else {}


def counted(model: nn.Module, size: int) -> int:
    """Return the multiply-accumulates that torch's own counter finds."""
    counter = FlopCounterMode(display=False)
    image = torch.empty(1, 3, size, size, device="meta")
    with torch.no_grad(), counter, sdpa_kernel(SDPBackend.MATH):
        model.eval().to("meta")(image)
    return counter.get_total_flops() // 2


def check(name: str) -> None:
    for size, parameters, ops, options in published(name):
        model = build(name, **options)
        budget = measure_budget(model, (3, size, size))
        assert budget.macs == counted(model, size)
        assert budget.parameters.total == parameters
        assert budget.macs / 1e9 == pytest.approx(ops, abs=0.00051)  # published to 0.001
        assert not budget.memory.problem


@pytest.mark.parametrize("name", [name for name in NAMES if name not in LARGEST])
def test_published_numbers(name: str) -> None:
    check(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", LARGEST)
def test_published_numbers_of_the_largest(name: str) -> None:
    check(name)


@pytest.mark.parametrize("name", EXACT)
def test_exact_numbers(name: str) -> None:
    size = 299 if name == "inception_v3" else 224
    budget = measure_budget(build(name), (3, size, size))
    assert (budget.parameters.total, budget.macs) == EXACT[name]
