"""A folded network gives the same outputs and has the parameters it was said to deploy."""

import copy
import warnings
from collections.abc import Callable
from types import MethodType

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from constrained_cnn import models
from constrained_cnn.budget import ScaleShift, fold_bn, measure_budget
from constrained_cnn.errors import TracingError


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


def seq(*layers: nn.Module) -> nn.Sequential:
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


# What does more than torch's own layers stays as it is


class BNReLU(nn.BatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        return F.relu(super().forward(x))


class AbsoluteNorm(nn.BatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        assert self.weight is not None
        mean, variance = self.running_mean, self.running_var
        return F.batch_norm(x, mean, variance, self.weight.abs() + 1, self.bias, eps=0.3)


class Renamed(nn.BatchNorm2d):
    """A subclass that does what torch's does."""


class Standardised(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return self._conv_forward(x, weight / weight.std((1, 2, 3), keepdim=True), self.bias)


class Signs(nn.Conv2d):
    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return super()._conv_forward(input, weight.sign(), bias)


class Clamped(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight.clamp(-0.05, 0.05), self.bias)


class MoreBias(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        assert self.bias is not None
        return F.conv2d(x, self.weight, self.bias + 1)


class WithoutBias(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight)


class LessBias(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias * 0.1)


def hooked(module: nn.Module, before: bool) -> nn.Module:
    if before:
        module.register_forward_pre_hook(lambda module, given: (given[0] * 2 + 1,))
    else:
        module.register_forward_hook(lambda module, given, made: made * 3)
    return module


def twice(module: nn.Conv2d, x: Tensor) -> Tensor:
    return F.conv2d(x, module.weight * 2, module.bias)


def with_old_norm(kind: str, used: bool) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what torch says of its own, in some versions
        module = getattr(nn.utils, kind)(nn.Conv2d(3, 4, 3))
    if used:
        module(torch.randn(2, 3, 8, 8))
    return module


UNTOUCHED: dict[str, Callable[[], list[nn.Module]]] = {
    "norm with a relu": lambda: [nn.Conv2d(3, 4, 3), BNReLU(4)],
    "norm with a relu, after a relu": lambda: [nn.Conv2d(3, 4, 3), nn.ReLU(), BNReLU(4)],
    "norm of another weight and eps": lambda: [nn.Conv2d(3, 4, 3), AbsoluteNorm(4)],
    "norm with a hook": lambda: [nn.Conv2d(3, 4, 3), hooked(nn.BatchNorm2d(4), False)],
    "norm with a hook before it": lambda: [nn.ReLU(), hooked(nn.BatchNorm2d(3), True)],
}
FEEDERS: dict[str, Callable[[], list[nn.Module]]] = {
    "standardised": lambda: [Standardised(3, 4, 3)],
    "signs": lambda: [Signs(3, 4, 3)],
    "clamped": lambda: [Clamped(3, 4, 3)],
    "more bias": lambda: [MoreBias(3, 4, 3)],
    "a bias that is not used": lambda: [WithoutBias(3, 4, 3)],
    "less bias": lambda: [nn.AvgPool2d(8), nn.Flatten(), LessBias(3, 4)],
    "hook": lambda: [hooked(nn.Conv2d(3, 4, 3), False)],
    "hook before it": lambda: [hooked(nn.Conv2d(3, 4, 3), True)],
    "old weight norm": lambda: [with_old_norm("weight_norm", True)],
    "old spectral norm": lambda: [with_old_norm("spectral_norm", True)],
    "old spectral norm, never called": lambda: [with_old_norm("spectral_norm", False)],
}


def folded_alike(model: nn.Module, shape: tuple[int, ...] = (3, 8, 8)) -> nn.Module:
    """Return the folded network, having seen that it gives the same on several samples."""
    model = with_statistics(model)
    folded = fold_bn(model, shape)
    x = torch.randn(4, *shape, dtype=torch.float64)
    torch.testing.assert_close(folded(x), model(x), rtol=1e-9, atol=1e-9)
    return folded


def last(model: nn.Module) -> nn.Module:
    return list(model.children())[-1]


@pytest.mark.parametrize("name", UNTOUCHED)
def test_a_norm_that_does_more_stays(name: str) -> None:
    model = seq(*UNTOUCHED[name]())
    assert type(last(folded_alike(model))) is type(last(model))


@pytest.mark.parametrize("name", FEEDERS)
def test_a_layer_that_reworks_its_weights_is_not_merged_into(name: str) -> None:
    layers = FEEDERS[name]()
    norm = nn.BatchNorm1d(4) if isinstance(layers[-1], nn.Linear) else nn.BatchNorm2d(4)
    assert isinstance(last(folded_alike(seq(*layers, norm))), ScaleShift)


def test_a_forward_set_on_the_module_itself_is_seen() -> None:
    layer = nn.Conv2d(3, 4, 3)
    setattr(layer, "forward", MethodType(twice, layer))  # noqa: B010 - as a patch does
    assert isinstance(last(folded_alike(seq(layer, nn.BatchNorm2d(4)))), ScaleShift)


def test_a_subclass_that_changes_nothing_merges() -> None:
    assert isinstance(last(folded_alike(seq(nn.Conv2d(3, 4, 3), Renamed(4)))), nn.Identity)


def test_padding_that_reflects_belongs_to_the_convolution() -> None:
    layer = nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect")
    assert isinstance(last(folded_alike(seq(layer, nn.BatchNorm2d(4)))), nn.Identity)


class Tied(nn.Module):
    """Two convolutions with the same weights before one norm, or two norms that share theirs."""

    def __init__(self, convolutions: bool) -> None:
        super().__init__()
        self.a, self.n = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)
        self.b, self.m = self.a, self.n
        if convolutions:
            self.b = nn.Conv2d(3, 3, 3, padding=1)
            self.b.weight, self.b.bias = self.a.weight, self.a.bias
        else:
            self.m = nn.BatchNorm2d(3)
            self.m.weight, self.m.bias = self.n.weight, self.n.bias
            self.m.running_mean, self.m.running_var = self.n.running_mean, self.n.running_var
            self.m.num_batches_tracked = self.n.num_batches_tracked

    def forward(self, x: Tensor) -> Tensor:
        return self.m(self.b(torch.relu(self.n(self.a(x)))))


@pytest.mark.parametrize("convolutions", [True, False])
def test_shared_weights_are_not_merged_into(convolutions: bool) -> None:
    folded = folded_alike(Tied(convolutions))
    assert isinstance(folded.n, ScaleShift)
    assert isinstance(folded.m, ScaleShift)


class ReadsNorm(nn.Module):
    def __init__(self, alias: bool) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.alias = [self.norm] if alias else []

    def forward(self, x: Tensor) -> Tensor:
        if self.alias:  # a name under which it is not found
            return self.alias[0](self.conv(x))
        return self.norm(self.conv(x)) * self.norm.eps


def test_what_cannot_be_folded_unseen_is_refused() -> None:
    with pytest.raises(TracingError, match=r"folded it does not run: .*'eps'; nothing is returned"):
        fold_bn(ReadsNorm(False), (3, 8, 8))
    model = with_statistics(ReadsNorm(True))
    with pytest.raises(TracingError, match="folded it gives other outputs; nothing is returned"):
        fold_bn(model, (3, 8, 8))


def test_random_numbers_and_casts_in_a_forward_are_no_reason_to_refuse() -> None:
    class Draws(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.dropout(x, 0.5, training=True)

    class Casts(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.float()

    fold_bn(with_statistics(seq(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), Draws())), (3, 8, 8))
    model = with_statistics(seq(Casts(), nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))).float()
    before = torch.get_rng_state()
    assert isinstance(fold_bn(model, (3, 8, 8)).get_submodule("2"), nn.Identity)
    assert torch.equal(before, torch.get_rng_state())


def test_a_network_without_weights_is_folded_without_being_run() -> None:
    with torch.device("meta"):
        model = seq(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    assert isinstance(fold_bn(model, (3, 8, 8)).get_submodule("1"), nn.Identity)


def test_outputs_that_are_off_by_rounding_alone_agree() -> None:
    """Statistics a million times the outputs, and outputs of nothing but zeros."""
    norm = nn.BatchNorm2d(4)
    for statistics in norm.buffers():
        statistics.fill_(10**6)
    model = seq(nn.Conv2d(3, 4, 3), norm)
    fold_bn(model, (3, 8, 8))
    nn.init.zeros_(norm.weight)
    fold_bn(model, (3, 8, 8))
