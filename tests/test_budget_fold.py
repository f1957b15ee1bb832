"""A folded network gives the same outputs and has the parameters it was said to deploy."""

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from constrained_cnn import models
from constrained_cnn.budget import ScaleShift, fold_bn, measure_budget


class Shared(nn.Module):
    """One convolution before two norms, and a pair that runs twice."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.one, self.two = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.BatchNorm2d(3)
        self.pair = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3))

    def forward(self, x: Tensor) -> Tensor:
        return self.pair(self.pair(self.one(self.conv(x)) + self.two(self.conv(2 * x))))


class ReadTwice(nn.Module):
    """What the convolution gives is read beside the norm as well."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return x * torch.sigmoid(self.norm(x))


class Functional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight, self.norm = nn.Parameter(torch.randn(4, 3, 3, 3)), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(F.conv2d(x, self.weight))


class Positions(nn.Module):
    """A norm over the positions of a sequence, which is not one over the features."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.norm = nn.Linear(8, 8), nn.BatchNorm1d(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.linear(x.mean(2)))


def seq(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(*layers)


NETWORKS: list[tuple[str, Callable[[], nn.Module], int]] = [
    ("convolution", lambda: seq(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4)), 0),
    ("with a bias", lambda: seq(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, affine=False)), 0),
    ("grouped", lambda: seq(nn.Conv2d(3, 6, 3, groups=3), nn.BatchNorm2d(6)), 0),
    ("transposed", lambda: seq(nn.ConvTranspose2d(3, 4, 3, 2), nn.BatchNorm2d(4)), 0),
    (
        "transposed, grouped",
        lambda: seq(nn.ConvTranspose2d(3, 6, 3, 2, groups=3, bias=False), nn.BatchNorm2d(6)),
        0,
    ),
    ("linear", lambda: seq(nn.Flatten(), nn.Linear(192, 5), nn.BatchNorm1d(5)), 0),
    ("after a relu", lambda: seq(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.BatchNorm2d(4)), 1),
    ("before a padded one", lambda: seq(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3, padding=1)), 1),
    ("shared", Shared, 2),
    ("read twice", ReadTwice, 1),
    ("over positions", Positions, 1),
    (
        "weight norm",
        lambda: seq(parametrizations.weight_norm(nn.Conv2d(3, 4, 3)), nn.BatchNorm2d(4)),
        0,
    ),
    (
        "statistics of the batch",
        lambda: seq(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False)),
        0,
    ),
    ("resnet18", torchvision.models.resnet18, 0),
    # After a join: the first norm of each of 4 layers, that of the transition, and the last.
    ("densenet", lambda: torchvision.models.DenseNet(4, (2, 2), 8), 6),
    ("mobilenet", torchvision.models.mobilenet_v3_small, 0),
    ("mnist_12k", models.mnist_12k, 8),
    ("mnist_12k_source", models.mnist_12k_source, 5),
]


def with_statistics(model: nn.Module) -> nn.Module:
    """Give every norm statistics and weights that show."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            for part in (module.running_mean, module.bias):
                if part is not None:
                    nn.init.normal_(part)
            for part in (module.running_var, module.weight):
                if part is not None:
                    nn.init.uniform_(part, 0.5, 2)
    return model.double().eval()


@pytest.mark.parametrize(("make", "left"), [pytest.param(*c[1:], id=c[0]) for c in NETWORKS])
def test_outputs_and_parameters(make: Callable[[], nn.Module], left: int) -> None:
    model = with_statistics(make())
    shape = (3, 64, 64) if sum(1 for _ in model.modules()) > 40 else (3, 8, 8)
    shape = (1, 28, 28) if make in (models.mnist_12k, models.mnist_12k_source) else shape
    before = copy.deepcopy(model.state_dict())
    folded = fold_bn(model, shape)
    x = torch.randn(2, *shape, dtype=torch.float64)
    torch.testing.assert_close(folded(x), model(x), rtol=1e-9, atol=1e-9)
    assert sum(isinstance(module, ScaleShift) for module in folded.modules()) == left
    deployed = measure_budget(model, shape).parameters.deployed
    assert sum(part.numel() for part in folded.parameters()) == deployed
    assert all(torch.equal(part, before[name]) for name, part in model.state_dict().items())
    assert model(x).isfinite().all()


def test_a_norm_after_a_function_stays_though_it_could_fold() -> None:
    model = with_statistics(Functional())
    folded = fold_bn(model, (3, 8, 8))
    assert isinstance(folded.norm, ScaleShift)
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    torch.testing.assert_close(folded(x), model(x))


def test_the_model_may_be_in_training_mode_and_stays_in_it() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)).train()
    folded = fold_bn(model, (1, 8, 8))
    assert model.training
    assert not folded.training
    assert isinstance(folded.get_submodule("1"), nn.Identity)
