"""Tracing sees what runs, whatever it is called, and leaves the model alone."""

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from constrained_cnn import blocks, models
from constrained_cnn.errors import InvalidInputError, TracingError
from constrained_cnn.graph import AxisRead, Work
from constrained_cnn.receptive_field import measure_receptive_field
from constrained_cnn.tracing import Call, elementwise, register_op, trace
from constrained_cnn.tracing.operations import _register
from constrained_cnn.tracing.operations._axes import groups


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


class Writes(nn.Module):
    """Writes into part of a tensor, which the first front end cannot look into."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        y = torch.zeros(x.shape[0], 2, 6, 7)  # says no device
        y[..., 1:] = self.inner(x)
        return y


def test_what_one_front_end_cannot_trace_the_next_does() -> None:
    graph = trace(Writes(), (1, 8, 8))
    assert [(layer.op, layer.path) for layer in graph.layers] == [
        ("conv2d", "inner.0"),
        ("relu", "inner.1"),
        ("copy", ""),
        ("slice_scatter", ""),
    ]
    assert graph.values[graph.value_of("inner")].shape == (1, 2, 6, 6)
    assert [graph.weights[number].name for number in graph.layers[0].weights] == [
        "inner.0.weight",
        "inner.0.bias",
    ]
    assert [layer.op for layer in graph.training.layers][:2] == ["conv2d", "relu"]


def test_a_tensor_from_outside() -> None:
    outside = torch.zeros(1, device="meta")

    class Smuggler(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + outside

    assert ops(Smuggler(), (1, 8, 8)) == ["add"]


def test_what_none_can_trace_is_said_in_one_error() -> None:
    class Odd(Writes):
        def forward(self, x: Tensor) -> Tensor:
            return torch.fft.fft2(super().forward(x))

    both = r"'setitem' in Odd writes.*\. torch\.export .*'fft_fft2'"
    with pytest.raises(TracingError, match=both):
        trace(Odd(), (1, 8, 8))


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


def test_settings_are_the_arguments_by_name() -> None:
    class Calls(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            x = F.conv2d(x, x.new_ones(2, 1, 3, 1), None, 2, (1, 0))
            return F.dropout(F.max_pool2d(x, 2, stride=1), 0.069, self.training)

    graph = trace(Calls(), (1, 8, 8))
    conv, pool, drop = (dict(layer.settings) for layer in graph.layers)
    assert conv == {"bias": False, "stride": 2, "padding": (1, 0), "kernel_size": (3, 1)}
    assert (pool["kernel_size"], pool["stride"]) == (2, 1)
    assert (drop["p"], drop["training"]) == (0.069, False)
    trained = graph.training.layers[-1]
    assert (trained.op, trained.settings["p"], trained.settings["training"]) == (
        "dropout",
        0.069,
        True,
    )


def test_what_runs_in_training_only() -> None:
    class Deep(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.dropout2d(x, 0.3) if self.training else x * 1

    graph = trace(Deep(), (1, 8, 8))
    assert [layer.op for layer in graph.layers] == ["mul"]
    assert [(run.op, run.settings["p"]) for run in graph.training.layers] == [("dropout2d", 0.3)]
    norm = trace(nn.Sequential(nn.BatchNorm2d(1)), (1, 8, 8))
    assert norm.layers[0].settings["training"] is False
    assert norm.training.layers[0].settings["training"] is True


def test_our_fast_modules_are_one_operation() -> None:
    net = nn.Sequential(blocks.Dropout(0.069), blocks.MaxPool2d(2)).train()
    graph = trace(net, (1, 8, 8))
    assert [layer.op for layer in graph.layers] == ["dropout", "max_pool2d"]
    drop, pool = graph.training.layers
    assert (drop.op, drop.settings["p"], drop.settings["training"]) == ("dropout", 0.069, True)
    assert (pool.op, pool.settings["kernel_size"]) == ("max_pool2d", 2)


@pytest.fixture
def _table(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forget afterwards what was registered."""
    monkeypatch.setattr(_register, "_REGISTERED", dict(_register._REGISTERED))


class Fft(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.fft.fft2(x).real.contiguous()


@pytest.mark.usefixtures("_table")
def test_an_operation_that_is_described() -> None:
    def reads(call: Call) -> Any:
        return (call.read(call.input, [AxisRead(0), AxisRead(1), None, None]),)

    def work(call: Call) -> Work:
        return Work(macs=7 * call.output.numel())

    with pytest.raises(TracingError, match="register_op"):
        trace(Fft(), (1, 8, 8))
    register_op("fft_fft2", reads=reads, work=work)
    graph = trace(Fft(), (1, 8, 8))
    assert [layer.op for layer in graph.layers] == ["fft_fft2", "real", "contiguous"]
    assert graph.layers[0].work == Work(macs=7 * 64)
    assert measure_receptive_field(graph, layer="contiguous").axes[0].is_global


@pytest.mark.parametrize(
    ("op", "options", "message"),
    [
        ("conv2d", {"like": "relu"}, "described by the library"),
        ("mine", {"like": "rellu"}, "did you mean 'relu'"),
        ("mine", {}, "must be functions"),
        ("mine", {"reads": elementwise}, "must be functions"),
        ("", {"like": "relu"}, "name of an operation"),
    ],
)
def test_what_cannot_be_registered(op: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        register_op(op, **options)


@torch.library.custom_op("constrained_cnn_tests::doubled", mutates_args=())
def doubled(x: Tensor) -> Tensor:
    return 2 * x


@doubled.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


@pytest.mark.usefixtures("_table")
def test_an_operation_of_a_library() -> None:
    class Uses(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.ops.constrained_cnn_tests.doubled(x)

    with pytest.raises(TracingError, match="'constrained_cnn_tests::doubled'"):
        trace(Uses(), (1, 8, 8))
    register_op("constrained_cnn_tests::doubled", like="mul")
    assert ops(Uses(), (1, 8, 8)) == ["constrained_cnn_tests::doubled"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "give either"),
        ({"input_shape": (1, 8, 8), "inputs": [(1, 8, 8)]}, "give either"),
        ({"inputs": (1, 8, 8)}, "must hold a shape"),
        ({"inputs": 3}, "must be a list"),
        ({"inputs": []}, "must hold a shape"),
        ({"input_shape": (1, 8, 8), "strict": "no"}, "strict='no'"),
    ],
)
def test_inputs_that_say_nothing(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        trace(nn.ReLU(), **options)


def test_a_field_is_that_of_one_input() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Conv2d(1, 2, 3), nn.Conv2d(1, 2, 5, padding=1)

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return self.one(x) + self.two(y)

    inputs = [(1, 9, 9), (1, 9, 9)]
    field = measure_receptive_field(Two(), inputs=inputs)
    assert [axis.size for axis in field.axes] == [3, 3]
    assert [row.name for row in field.layers] == ["one: conv2d", "add"]
    other = measure_receptive_field(trace(Two(), inputs=inputs), image=1)
    assert [axis.interval(0) for axis in other.axes] == [(-1, 3), (-1, 3)]
    assert [row.name for row in other.layers] == ["two: conv2d", "add"]
    with pytest.raises(InvalidInputError, match="image=2: must be an integer from 0 to 1"):
        measure_receptive_field(Two(), inputs=inputs, image=2)
    with pytest.raises(InvalidInputError, match="layer='one': does not depend on input 1"):
        measure_receptive_field(Two(), inputs=inputs, image=1, layer="one")
