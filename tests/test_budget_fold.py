"""A folded network gives the same outputs and has the parameters it was said to deploy."""

import copy
import warnings
from collections.abc import Callable
from types import MethodType

import pytest
import torch
import torch.nn.functional as F
import torchvision
import unusual_networks
from hypothesis import given, settings
from hypothesis import strategies as st
from independent_networks import CASES, Case
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from constrained_cnn import models
from constrained_cnn.budget import ScaleShift, fold_bn, foldings, measure_budget
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
    # Those before convolutions with padding.
    ("mnist_12k", models.mnist_12k, 5),
    ("mnist_12k_source", models.mnist_12k_source, 3),
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


# Forward, into the next convolution or linear layer


def normed(*layers: nn.Module, head: nn.Module | None = None) -> nn.Module:
    """A convolution to 4 x 6 x 6, a ReLU, a norm, some layers, and a head that takes it."""
    return seq(
        *(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.BatchNorm2d(4)), *layers, head or nn.Conv2d(4, 5, 2)
    )


def linear(features: int) -> nn.Module:
    return seq(nn.Flatten(), nn.Linear(features, 3, bias=False))


class Residue(nn.Module):
    """What the norm gives is read beside the next convolution, too."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.conv = nn.BatchNorm2d(3), nn.Conv2d(3, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x)
        return x + self.conv(x)


class Gives(Residue):
    """What the norm gives goes out as well."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x)
        return torch.cat([self.conv(x), x], 1)


class Beside(nn.Module):
    """A residual: what comes in is read twice."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.norm(self.conv(x)))


class Twice(nn.Module):
    """A norm and a convolution that meet twice, the second time with zeros between them."""

    def __init__(self, pads: bool) -> None:
        super().__init__()
        self.norm, self.conv, self.pads = nn.BatchNorm2d(3), nn.Conv2d(3, 3, 3), pads

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.conv(self.norm(x)))
        x = self.norm(x)
        return self.conv(F.pad(x, (1, 1, 1, 1)) if self.pads else x)


class Forked(nn.Module):
    """A norm before two convolutions, one in each of two calls."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.one, self.two = nn.BatchNorm2d(3), nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.two(self.norm(torch.relu(self.one(self.norm(x)))))


class Sequence(nn.Module):
    """A linear layer that reads the features of a sequence, not its channels."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.linear = nn.BatchNorm1d(3), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.norm(x.mean(2)))


class Calls(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


class PoolsAndCounts(nn.Module):
    """A max-pool whose places are read too."""

    def forward(self, x: Tensor) -> Tensor:
        largest, places = F.max_pool2d(x, 2, return_indices=True)
        return largest + places


class Means(nn.Module):
    def __init__(self, *axes: int) -> None:
        super().__init__()
        self.axes = axes

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(self.axes)


class Sums(Means):
    def forward(self, x: Tensor) -> Tensor:
        return x.sum(self.axes)


class AlwaysDrops(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.dropout2d(x, 0.5, training=True)


class Pads(nn.Module):
    def __init__(self, mode: str, value: float | None = None) -> None:
        super().__init__()
        self.mode, self.value = mode, value

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x, (1, 0, 2, 1), self.mode, self.value)


# By name: the network, and what is left of its last norm where its scale is positive, where it
# has both signs, and where it is 0 in some channel.
ALL, SHIFTS, STAYS = ("",) * 3, ("shift", "shift", "scale and shift"), ("scale and shift",) * 3
POOLED = ("", "scale and shift", "scale and shift")
FORWARD: dict[str, tuple[Callable[[], nn.Module], tuple[str, str, str]]] = {
    "convolution": (normed, ALL),
    "grouped": (lambda: normed(head=nn.Conv2d(4, 6, 3, groups=2, bias=False)), ALL),
    "depthwise": (lambda: normed(head=nn.Conv2d(4, 4, 3, groups=4, bias=False)), ALL),
    "dilated, strided": (lambda: normed(head=nn.Conv2d(4, 3, 2, 2, dilation=3)), ALL),
    "padding": (lambda: normed(head=nn.Conv2d(4, 5, 3, padding=1, bias=False)), SHIFTS),
    "padding along one axis": (lambda: normed(head=nn.Conv2d(4, 5, 3, padding=(0, 1))), SHIFTS),
    "padding behind alone": (lambda: normed(head=nn.Conv2d(4, 5, 2, padding="same")), SHIFTS),
    "same, of one tap": (lambda: normed(head=nn.Conv2d(4, 5, 1, padding="same")), ALL),
    "valid": (lambda: normed(head=nn.Conv2d(4, 5, 3, padding="valid")), ALL),
    "reflection": (
        lambda: normed(head=nn.Conv2d(4, 5, 3, padding=1, padding_mode="reflect")),
        ALL,
    ),
    "circular": (lambda: normed(head=nn.Conv2d(4, 5, 3, padding=1, padding_mode="circular")), ALL),
    "transposed": (lambda: normed(head=nn.ConvTranspose2d(4, 6, 3, 2, groups=2)), SHIFTS),
    "zeros around": (lambda: normed(Pads("constant")), SHIFTS),
    "ones around": (lambda: normed(Pads("constant", 1.0)), STAYS),
    "edges around": (lambda: normed(Pads("replicate")), ALL),
    "zero padding layer": (lambda: normed(nn.ZeroPad2d(1)), SHIFTS),
    "reflection layer": (lambda: normed(nn.ReflectionPad2d(1)), ALL),
    "max-pool": (lambda: normed(nn.MaxPool2d(2)), POOLED),
    "max-pool with padding": (lambda: normed(nn.MaxPool2d(3, 2, 1)), POOLED),
    "adaptive max-pool": (lambda: normed(nn.AdaptiveMaxPool2d(3)), POOLED),
    "max-pool, then padding": (
        lambda: normed(nn.MaxPool2d(2), head=nn.Conv2d(4, 5, 3, padding=1)),
        ("shift", "scale and shift", "scale and shift"),
    ),
    "average pool": (lambda: normed(nn.AvgPool2d(2)), ALL),
    "average pool that rounds up": (lambda: normed(nn.AvgPool2d(4, 3, ceil_mode=True)), ALL),
    "average pool with zeros": (lambda: normed(nn.AvgPool2d(3, 2, 1)), SHIFTS),
    "average pool beside zeros": (
        lambda: normed(nn.AvgPool2d(3, 2, 1, count_include_pad=False)),
        ALL,
    ),
    "another divisor": (lambda: normed(nn.AvgPool2d(2, divisor_override=3)), SHIFTS),
    "adaptive average pool": (lambda: normed(nn.AdaptiveAvgPool2d(4)), ALL),
    "power pool": (lambda: normed(nn.LPPool2d(2, 2)), STAYS),
    "mean": (lambda: normed(Means(2, 3), head=nn.Linear(4, 3)), ALL),
    "mean of channels": (lambda: normed(Means(1, 2), head=nn.Linear(6, 3)), STAYS),
    "sum": (lambda: normed(Sums(2, 3), head=nn.Linear(4, 3)), STAYS),
    "flattened": (lambda: normed(head=linear(4 * 36)), ALL),
    "pooled, dropped, flattened": (
        lambda: normed(nn.AdaptiveAvgPool2d(1), nn.Dropout(0.5), head=linear(4)),
        ALL,
    ),
    "dropped in evaluation too": (lambda: normed(AlwaysDrops()), STAYS),
    "flattened, then one vector": (
        lambda: seq(nn.Flatten(), nn.BatchNorm1d(192), nn.Dropout(0.1), nn.Linear(192, 4)),
        ALL,
    ),
    "over positions": (Sequence, STAYS),
    "an activation between": (lambda: normed(nn.ReLU()), STAYS),
    "transposed places": (lambda: normed(Calls(lambda x: x.transpose(2, 3))), ALL),
    "one axis of places": (
        lambda: normed(Calls(lambda x: x.flatten(2)), head=nn.Conv1d(4, 5, 2)),
        ALL,
    ),
    "places cut otherwise": (lambda: normed(Calls(lambda x: x.reshape(-1, 4, 4, 9))), ALL),
    "channels and places mixed": (
        lambda: normed(Calls(lambda x: x.reshape(-1, 6, 4, 6)), head=nn.Conv2d(6, 5, 2)),
        STAYS,
    ),
    "channels and places exchanged": (
        lambda: normed(Calls(lambda x: x.transpose(1, 2)), head=nn.Conv2d(6, 5, 2)),
        STAYS,
    ),
    "some channels": (lambda: normed(Calls(lambda x: x[:, 1:]), head=nn.Conv2d(3, 5, 2)), STAYS),
    "channels turned round": (lambda: normed(Calls(lambda x: x.flip(1))), STAYS),
    "written into": (lambda: normed(Calls(lambda x: x.add_(1))), STAYS),
    "places of the largest, read": (lambda: normed(PoolsAndCounts()), STAYS),
    "read beside": (Residue, STAYS),
    "given beside": (Gives, STAYS),
    "twice": (lambda: Twice(False), ALL),
    "twice, once with zeros": (lambda: Twice(True), SHIFTS),
    "before two": (Forked, STAYS),
    "a layer that reworks its weights": (lambda: normed(head=Standardised(4, 5, 2)), STAYS),
    "a layer with a hook": (lambda: normed(head=hooked(nn.Conv2d(4, 5, 2), True)), STAYS),
    "weight norm": (
        lambda: normed(head=parametrizations.weight_norm(nn.Conv2d(4, 5, 2, bias=False))),
        ALL,
    ),
    "first of all": (lambda: seq(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3)), ALL),
    "a layer with a norm of its own": (
        lambda: normed(head=seq(nn.Conv2d(4, 5, 2, bias=False), nn.BatchNorm2d(5))),
        ALL,
    ),
}
# Channels of the scale: all above 0, of both signs, and one of them 0.
SIGNS: dict[str, Callable[[Tensor], Tensor]] = {
    "positive": lambda scale: scale,
    "both signs": lambda scale: (
        scale * torch.tensor([-1.0, 1.0, 1.0, -1.0]).repeat(50)[: len(scale)]
    ),
    "zero": lambda scale: scale * torch.tensor([1.0, -1.0, 0.0, 1.0]).repeat(50)[: len(scale)],
}


def check_folding(model: nn.Module, shape: tuple[int, ...]) -> nn.Module:
    """Return the folded network; it gives the same, and has the parameters that were foretold."""
    folded = fold_bn(model, shape)
    x = torch.randn(3, *shape, dtype=torch.float64)
    with torch.no_grad():
        found, expected = folded(x), model(x)
    scale = float(expected.abs().max())
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9 * scale)
    numbers = measure_budget(model, shape).parameters
    kept = measure_budget(folded, shape).parameters
    assert numbers.deployed == kept.total - kept.unused
    return folded


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("sign", SIGNS)
@pytest.mark.parametrize("name", FORWARD)
def test_a_norm_folds_forward(name: str, sign: str) -> None:
    make, left = FORWARD[name]
    model = with_statistics(make())
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    with torch.no_grad():
        norms[0].weight.copy_(SIGNS[sign](norms[0].weight))
    torch.manual_seed(1)
    if name != "dropped in evaluation too":
        check_folding(model, (3, 8, 8))
    first = foldings(model, (3, 8, 8))[0]
    assert first.left == left[list(SIGNS).index(sign)], first
    assert bool(first.why) == bool(first.left)
    assert bool(first.into) == (first.left != "scale and shift")


def test_what_is_left_is_a_module_without_a_scale_or_with_both() -> None:
    padded = fold_bn(with_statistics(FORWARD["padding"][0]()), (3, 8, 8)).get_submodule("2")
    assert repr(padded) == "ScaleShift(4, scale=False)"
    assert [tuple(part.shape) for part in padded.parameters()] == [(4,)]
    stays = fold_bn(with_statistics(FORWARD["sum"][0]()), (3, 8, 8)).get_submodule("2")
    assert repr(stays) == "ScaleShift(4)"


def test_why_something_is_left() -> None:
    def why(*layers: nn.Module) -> str:
        (one,) = foldings(seq(*layers), (3, 8, 8))
        return str(one)

    norm, conv = nn.BatchNorm2d(3), nn.Conv2d(3, 3, 3)
    assert why(conv, norm) == "1: batch_norm: folds into 0: conv2d"
    assert why(norm, conv) == "0: batch_norm: folds into 1: conv2d"
    assert "leaves its shift, for 1: conv2d reads zeros" in why(norm, nn.Conv2d(3, 3, 3, padding=1))
    assert "leaves its scale and shift, for it goes out of the network" in why(nn.ReLU(), norm)
    assert "for 1: relu comes before a layer that could take it" in why(norm, nn.ReLU(), conv)
    assert "stays as it is, for BNReLU, a BatchNorm2d, has a forward" in why(conv, BNReLU(3))
    assert "anew for each batch" in why(conv, nn.BatchNorm2d(3, track_running_stats=False))
    assert "anew for each sample" in why(conv, nn.GroupNorm(1, 3))
    (one,) = foldings(Residue(), (3, 8, 8))
    assert one.why == "for conv: conv2d and add read it"


REFUSED = ("seg unpool", "fold back", "spectrum fft")
OTHERS = [one for one in (*CASES, *unusual_networks.CASES) if one.name not in REFUSED]


@pytest.mark.parametrize("case", [pytest.param(one, id=one.name) for one in OTHERS])
def test_parameters_of_other_networks_are_those_of_their_folded_copies(case: Case) -> None:
    model = case.make()
    for norm in model.modules():
        if isinstance(norm, nn.modules.batchnorm._BatchNorm) and norm.running_mean is not None:
            norm.running_mean.normal_()
    folded = fold_bn(model, case.input_shape)  # raises where it gives something else
    numbers = measure_budget(model, case.input_shape).parameters
    kept = measure_budget(folded, case.input_shape).parameters
    assert numbers.deployed == kept.total - kept.unused


# Each takes (4, 9, 8) down to a size that the next can take, in any order.
PARTS: list[Callable[[], nn.Module]] = [
    *(lambda: nn.BatchNorm2d(4) for _ in range(4)),
    lambda: nn.Conv2d(4, 4, 3, bias=False),
    lambda: nn.Conv2d(4, 4, (1, 3), padding=(0, 1), groups=2),
    lambda: nn.Conv2d(4, 4, 1, groups=4, bias=False),
    lambda: nn.ConvTranspose2d(4, 4, 2),
    nn.ReLU,
    lambda: nn.ReLU(inplace=True),
    nn.Hardtanh,
    lambda: nn.MaxPool2d(2, 1),
    lambda: nn.AvgPool2d(3, 1, 1),
    lambda: nn.AvgPool2d(2, 1),
    lambda: nn.ZeroPad2d(1),
    lambda: nn.ReflectionPad2d(1),
    lambda: nn.Dropout(0.3),
    lambda: nn.Upsample(scale_factor=2),
    lambda: nn.GroupNorm(2, 4),
    Beside,
]
HEADS: list[Callable[[], list[nn.Module]]] = [
    list,
    lambda: [nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 3)],
    lambda: [nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Dropout(0.5), nn.Linear(4, 3, bias=False)],
]


@given(
    st.lists(st.sampled_from(PARTS), min_size=1, max_size=9),
    st.sampled_from(HEADS),
    st.integers(0, 10**6),
)
@settings(deadline=None, max_examples=40)
def test_any_row_of_layers_folds_to_the_same(
    parts: list[Callable[[], nn.Module]], head: Callable[[], list[nn.Module]], seed: int
) -> None:
    torch.manual_seed(seed)
    model = with_statistics(seq(nn.ZeroPad2d(9), *(make() for make in parts), *head()))
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.normal_(norm.weight)  # of both signs
            norm.weight.data *= torch.randint(0, 4, (4,)).clamp(max=1)
    check_folding(model, (4, 9, 8))


@pytest.mark.parametrize("name", [*UNTOUCHED, *FEEDERS])
def test_what_stays_is_counted_as_it_stays(name: str) -> None:
    layers = UNTOUCHED[name]() if name in UNTOUCHED else FEEDERS[name]()
    if name in FEEDERS:
        layers.append(nn.BatchNorm1d(4) if isinstance(layers[-1], nn.Linear) else nn.BatchNorm2d(4))
    model = with_statistics(seq(*layers))
    deployed = measure_budget(model, (3, 8, 8)).parameters.deployed
    kept = measure_budget(fold_bn(model, (3, 8, 8)), (3, 8, 8)).parameters
    assert deployed == kept.total - kept.unused


@pytest.mark.parametrize("make", [Shared, ReadTwice, Functional, Positions])
def test_parameters_of_networks_that_meet_twice(make: Callable[[], nn.Module]) -> None:
    check_folding(with_statistics(make()), (3, 8, 8))


@pytest.mark.parametrize("convolutions", [True, False])
def test_parameters_of_networks_that_share_weights(convolutions: bool) -> None:
    check_folding(with_statistics(Tied(convolutions)), (3, 8, 8))


def test_a_shipped_network_folds_to_the_same_digits() -> None:
    model = models.mnist_12k(weights="mnist").double().eval()
    folded = check_folding(model, (1, 28, 28))
    assert not any(isinstance(m, nn.BatchNorm2d) for m in folded.modules())
