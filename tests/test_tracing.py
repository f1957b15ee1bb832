"""Tracing sees what runs, whatever it is called, and leaves the model alone."""

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from constrained_cnn import models
from constrained_cnn.errors import InvalidInputError, TracingError
from constrained_cnn.tracing import trace
from constrained_cnn.tracing._axes import groups


class Renamed(nn.Conv2d):
    pass


class Functional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 1, 3, 3))
        self.never_called = nn.Conv2d(1, 1, 3)
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return F.dropout(F.relu(F.conv2d(x, self.weight)), 0.5, self.training).mean((2, 3))


def ops(model: nn.Module, shape: tuple[int, ...]) -> list[str]:
    return [layer.op for layer in trace(model, shape).layers]


def test_it_is_the_operation_that_counts_not_the_name_of_a_class() -> None:
    assert ops(Renamed(1, 2, 3), (1, 8, 8)) == ["conv2d"]
    assert ops(Functional(), (1, 8, 8)) == ["conv2d", "relu", "dropout", "mean"]


def test_shapes_are_those_of_the_network() -> None:
    graph = trace(models.mnist_12k(), (1, 28, 28))
    shapes = {layer.path: graph.values[layer.outputs[0]].shape for layer in graph.layers}
    assert shapes["stage_1.2.conv"] == (1, 16, 28, 28)
    assert shapes["last"] == (1, 10, 7, 7)
    assert graph.values[graph.outputs[0]].shape == (1, 10)


def test_a_reused_module_runs_twice_and_a_path_means_its_last_call() -> None:
    shared = nn.Conv2d(1, 1, 3)
    graph = trace(nn.Sequential(shared, nn.ReLU(), shared), (1, 9, 9))
    assert [layer.op for layer in graph.layers] == ["conv2d", "relu", "conv2d"]
    assert graph.values[graph.value_of("0")].shape == (1, 1, 5, 5)


def test_parametrised_weights() -> None:
    conv = torch.nn.utils.parametrizations.weight_norm(nn.Conv2d(1, 2, 3))
    assert ops(conv, (1, 8, 8)) == ["conv2d"]
    assert "weight" not in dict(conv.named_parameters())


def test_attention_and_resampling() -> None:
    assert (
        ops(torchvision.models.vit_b_16(), (3, 224, 224)).count("multi_head_attention_forward")
        == 12
    )
    assert "interpolate" in ops(nn.Upsample(scale_factor=2), (1, 4, 4))


class Everything(nn.Module):
    """State of every kind, all of which a careless tracer would touch."""

    def __init__(self, fail: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 3)
        self.norm = nn.BatchNorm2d(2)
        self.drop = nn.Dropout(0.5)
        self.plain = torch.ones(2, 1, 1)
        self.seen: list[int] = []
        self.fail = fail

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(1)
        x = self.drop(self.norm(self.conv(x))) * self.plain + torch.rand(1).item()
        return torch.fft.fft2(x) if self.fail else x


@pytest.mark.parametrize("fail", [False, True])
def test_the_model_is_left_as_it_was(fail: bool) -> None:
    model = Everything(fail).train()
    model.norm.eval()
    before = copy.deepcopy(model.state_dict())
    hooks = len(torch.nn.modules.module._global_forward_hooks)
    random_state = torch.random.get_rng_state()
    if fail:
        with pytest.raises(TracingError, match="'fft_fft2'"):
            trace(model, (1, 8, 8))
    else:
        trace(model, (1, 8, 8))
    assert [part.training for part in model.modules()] == [True, True, False, True]
    assert all(torch.equal(part, before[name]) for name, part in model.state_dict().items())
    assert model.conv.weight.device.type == model.plain.device.type == "cpu"
    assert model.seen == []
    assert len(torch.nn.modules.module._global_forward_hooks) == hooks
    assert torch.equal(torch.random.get_rng_state(), random_state)


def test_several_outputs() -> None:
    class Two(nn.Module):
        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"half": x[:, :, ::2], "double": 2 * x}

    graph = trace(Two(), (1, 8, 8))
    assert [graph.values[number].shape for number in graph.outputs] == [(1, 1, 4, 8), (1, 1, 8, 8)]


@pytest.mark.parametrize(
    ("model", "shape", "error", "message"),
    [
        ("resnet18", (3, 8, 8), InvalidInputError, "model=str: must be a torch.nn.Module"),
        (nn.ReLU(), 8, InvalidInputError, "must be a shape"),
        (nn.ReLU(), (), InvalidInputError, "must be a shape"),
        (nn.ReLU(), (1, 2.5), InvalidInputError, "input_shape=2.5"),
    ],
)
def test_what_it_refuses(
    model: nn.Module, shape: tuple[int, ...], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        trace(model, shape)


def test_an_error_names_the_module() -> None:
    class Inner(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.fft.fft2(x)

    with pytest.raises(TracingError, match=r"'fft_fft2' in module '1.0' of Sequential"):
        trace(nn.Sequential(nn.ReLU(), nn.Sequential(Inner())), (1, 8, 8))

    class Writes(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            x = x.clone()
            x[:, :, 0] = 1
            return x

    with pytest.raises(TracingError, match="writes into part of a tensor"):
        trace(Writes(), (1, 8, 8))


class _Double(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return (2 * x).view_as(x)


class Hidden(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + F.relu(_Double.apply(x))


def test_a_function_of_ones_own_is_followed_inside() -> None:
    graph = trace(Hidden(), (1, 8, 8))
    assert [layer.op for layer in graph.layers] == ["mul", "view_as", "relu", "add"]
    assert {read.value for read in graph.layers[-1].reads[0]} == {0, graph.layers[2].outputs[0]}


def test_what_comes_from_nowhere_is_noticed() -> None:
    outside = torch.zeros(1, device="meta")

    class Smuggler(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + outside

    with pytest.raises(TracingError, match="no operation seen here made"):
        trace(Smuggler(), (1, 8, 8))


def test_an_output_that_does_not_depend_on_the_input() -> None:
    class Constant(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.zeros(3, device=x.device)

    with pytest.raises(TracingError, match="nothing depends on the input"):
        trace(Constant(), (1, 8, 8))


@pytest.mark.parametrize(
    ("before", "after", "found"),
    [
        ((1, 4, 6), (1, 24), [([0], [0]), ([1, 2], [1])]),
        ((1, 24), (1, 4, 6), [([0], [0]), ([1], [1, 2])]),
        ((2, 3, 4), (4, 3, 2), [([0, 1, 2], [0, 1, 2])]),
        ((3, 1), (3,), [([0], [0]), ([1], [])]),
    ],
)
def test_axes_that_belong_together(
    before: tuple[int, ...], after: tuple[int, ...], found: list[tuple[list[int], list[int]]]
) -> None:
    assert groups(before, after) == found
