"""Receptive fields of known networks against the numbers that others have published."""

from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn

from constrained_cnn.receptive_field import measure_receptive_field

TORCHVISION = {
    # name: (trunk, global, size with gates left out, jump, start)
    "alexnet": ("features", False, 195, 32, -66),
    "vgg16": ("features", False, 212, 32, -90),
    "resnet18": ("layer4", False, 435, 32, -217),
    "resnet50": ("layer4", False, 427, 32, -213),
    "googlenet": ("inception5b", False, 379, 32, -167),
    "inception_v3": ("Mixed_7c", False, 1311, 32, -618),
    "mobilenet_v2": ("features", False, 491, 32, -245),
    "mobilenet_v3_small": ("features", True, 639, 32, -319),
    "densenet121": ("features", False, 2071, 32, -1021),
    "squeezenet1_0": ("features", False, 155, 16, -60),
    "shufflenet_v2_x1_0": ("conv5", False, 527, 32, -263),
    "efficientnet_b0": ("features", True, 851, 32, -425),
    "convnext_tiny": ("features", False, 1688, 32, -828),
}
ONLY_SIZE = {"resnet101": 971, "resnet152": 1451}


def build(name: str) -> nn.Module:
    options: dict[str, Any] = {}
    if name in ("googlenet", "inception_v3"):
        options["init_weights"] = False
    with torch.device("meta"):  # no test needs their weights
        return torchvision.models.get_model(name, **options)


@pytest.mark.parametrize("name", TORCHVISION)
def test_networks_of_torchvision(name: str) -> None:
    trunk, is_global, size, jump, start = TORCHVISION[name]
    side = 299 if name == "inception_v3" else 224
    field = measure_receptive_field(build(name), (3, side, side), layer=trunk)
    for axis in field.axes:
        assert axis.local is not None
        assert axis.is_global == is_global
        assert axis.local.size == size
        assert axis.local.jump == jump
        assert axis.local.start == start


@pytest.mark.parametrize("name", ONLY_SIZE)
def test_sizes_of_residual_networks(name: str) -> None:
    field = measure_receptive_field(build(name), (3, 224, 224), layer="layer4")
    assert [axis.size for axis in field.axes] == [ONLY_SIZE[name]] * 2


# Networks of the Distill article that torchvision does not have, one channel wide: for a field
# only kernels, strides and branches count.


class Branches(nn.Module):
    def __init__(self, *branches: nn.Module) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([branch(x) for branch in self.branches]).sum(0)


def chain(*parts: nn.Module) -> nn.Module:
    return nn.Sequential(*parts)


def conv(height: int, width: int | None = None) -> nn.Module:
    kernel = (height, height if width is None else width)
    return nn.Conv2d(1, 1, kernel, padding=(kernel[0] // 2, kernel[1] // 2))


def valid(stride: int = 1) -> nn.Module:
    return nn.Conv2d(1, 1, 3, stride)


def pool() -> nn.Module:
    return nn.MaxPool2d(3, 2)


def averaged() -> nn.Module:
    return chain(nn.AvgPool2d(3, 1, 1), conv(1))


def spread() -> nn.Module:
    return Branches(conv(1, 3), conv(3, 1))


def residual(*branches: nn.Module) -> nn.Module:
    return Branches(nn.Identity(), *branches)


def inception_v4() -> nn.Module:
    """Szegedy, Ioffe, Vanhoucke, Alemi, 2017, figures 3 to 9."""
    seven, turned = chain(conv(1, 7), conv(7, 1)), chain(conv(7, 1), conv(1, 7))
    stem = [
        *(valid(2), valid(), conv(3), Branches(pool(), valid(2))),
        Branches(chain(conv(1), valid()), chain(conv(1), seven, valid())),
        Branches(valid(2), pool()),
    ]
    a = Branches(conv(1), conv(3), chain(conv(3), conv(3)), averaged())
    reduction_a = Branches(valid(2), chain(conv(3), valid(2)), pool())
    b = Branches(conv(1), seven, chain(turned, turned), averaged())
    reduction_b = Branches(chain(conv(1), valid(2)), chain(seven, valid(2)), pool())
    c = Branches(conv(1), spread(), chain(conv(3, 1), conv(1, 3), spread()), averaged())
    return chain(*stem, *[a] * 4, reduction_a, *[b] * 7, reduction_b, *[c] * 3)


def inception_resnet_v2() -> nn.Module:
    """The same, and the stem and first block of the code the authors published."""
    stem = [valid(2), valid(), conv(3), pool(), conv(1), valid(), pool()]
    first = Branches(conv(1), conv(5), chain(conv(3), conv(3)), averaged())
    a = residual(conv(1), conv(3), chain(conv(3), conv(3)))
    reduction_a = Branches(valid(2), chain(conv(3), valid(2)), pool())
    b = residual(conv(1), chain(conv(1, 7), conv(7, 1)))
    reduction_b = Branches(valid(2), chain(conv(3), valid(2)), pool())
    c = residual(conv(1), chain(conv(1, 3), conv(3, 1)))
    return chain(*stem, first, *[a] * 10, reduction_a, *[b] * 20, reduction_b, *[c] * 10)


def mobilenet_v1() -> nn.Module:
    """Howard et al., 2017, table 1."""
    strides = (2, 1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1)
    return chain(*[nn.Conv2d(1, 1, 3, stride, 1) for stride in strides])


@pytest.mark.parametrize(
    ("make", "size", "padding"),
    [(inception_v4, 2071, 998), (inception_resnet_v2, 3039, 1482), (mobilenet_v1, 315, None)],
)
def test_networks_of_the_distill_article(make: Any, size: int, padding: int | None) -> None:
    for axis in measure_receptive_field(make(), (1, 299, 299)).axes:
        assert axis.size == size
        assert axis.jump == 32
        if padding is not None:
            assert axis.start == -padding
