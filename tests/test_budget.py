"""What a network costs, against published numbers, torch's own counters, and arithmetic by hand."""

import json
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from independent_networks import CASES, Case
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils import parametrizations
from torch.utils.flop_counter import FlopCounterMode

from constrained_cnn import models
from constrained_cnn.budget import Budget, measure_budget
from constrained_cnn.errors import InvalidInputError, TracingError
from constrained_cnn.graph import Work
from constrained_cnn.receptive_field import measure_receptive_field
from constrained_cnn.tracing import trace


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(self.conv(x))


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.two = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.two.weight = self.one.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.two(self.one(x))


class Functional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(8, 8, 3, 3))

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.kernel, padding=1)


class ChannelsLast(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 16, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x.permute(0, 2, 3, 1))


class Renamed(nn.Conv2d):
    """A subclass under another name."""


def weight_normed() -> nn.Module:
    return parametrizations.weight_norm(nn.Conv2d(8, 8, 3, padding=1, bias=False))


# The reference's table, and one it names in passing; the input is 8 x 16 x 16.
SMALL: list[tuple[str, Callable[[], nn.Module], int, int]] = [
    ("transposed", lambda: nn.ConvTranspose2d(8, 4, 4, 2, 1, bias=False), 512, 131_072),
    (
        "depthwise transposed",
        lambda: nn.ConvTranspose2d(8, 8, 4, 2, 1, groups=8, bias=False),
        128,
        32_768,
    ),
    ("applied twice", Twice, 576, 294_912),
    ("tied", Tied, 576, 294_912),
    ("functional", Functional, 576, 147_456),
    ("linear on NHWC", ChannelsLast, 128, 32_768),
    ("weight norm", weight_normed, 584, 147_456),
    ("a renamed subclass", lambda: Renamed(8, 8, 3, padding=1, bias=False), 576, 147_456),
]


@pytest.mark.parametrize(
    ("make", "parameters", "macs"), [pytest.param(*c[1:], id=c[0]) for c in SMALL]
)
def test_small_cases(make: Callable[[], nn.Module], parameters: int, macs: int) -> None:
    budget = measure_budget(make(), (8, 16, 16))
    assert (budget.parameters.total, budget.macs) == (parameters, macs)
    assert budget.flops == 2 * macs


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_networks_somebody_else_worked_out(case: Case) -> None:
    budget = measure_budget(case.make(), case.input_shape)
    numbers = budget.parameters
    assert (numbers.total, numbers.trainable, numbers.unused) == (
        case.parameters,
        case.trainable,
        case.unused,
    )
    assert budget.macs == case.macs
    assert not budget.memory.problem


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_fields_somebody_else_worked_out(case: Case) -> None:
    graph = trace(case.make(), case.input_shape)
    layer = case.layer
    if case.name == "tuple":  # the first of two outputs, where we take the last
        layer = next(one.name for one in graph.layers if graph.outputs[0] in one.outputs)
    field = measure_receptive_field(graph, layer=layer)
    for axis, wanted in zip(field.axes, case.field, strict=True):
        if wanted is None:
            assert axis.is_global
        elif not axis.is_shift_invariant:  # it writes into part of a tensor: listed by position
            sizes, jump, start = wanted
            for unit in range(4, (axis.units or 0) - 4):
                low = int(start + unit * jump)
                assert axis.interval(unit) == (low, low + sizes[0] - 1)
        else:
            sizes = axis.sizes if len(set(axis.sizes)) > 1 else axis.sizes[:1]
            assert (sizes, axis.jump, axis.start) == wanted


class Attends(nn.Module):
    def __init__(self, *, fused: bool) -> None:
        super().__init__()
        self.qkv, self.fused = nn.Linear(12, 36), fused

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(2).transpose(1, 2)
        q, k, v = self.qkv(tokens).chunk(3, -1)
        if self.fused:
            return F.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None])
        return torch.softmax(q @ k.mT / math.sqrt(12), -1) @ v


class Heads(nn.Module):
    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(12, 3, **options)

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(2).transpose(1, 2)
        if not self.attention.batch_first:
            tokens = tokens.transpose(0, 1)
        return self.attention(tokens, tokens, tokens, need_weights=False)[0]


class Sums(nn.Module):
    def __init__(self, equation: str, *shapes: tuple[int, ...]) -> None:
        super().__init__()
        self.equation = equation
        self.weights = nn.ParameterList(nn.Parameter(torch.randn(shape)) for shape in shapes)

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum(self.equation, x, *self.weights)


class LowRank(nn.Module):
    """A weight worked out of two others at every call."""

    def __init__(self) -> None:
        super().__init__()
        self.base, self.down = nn.Linear(7, 9), nn.Parameter(torch.randn(2, 7))
        self.up = nn.Parameter(torch.randn(9, 2))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.base.weight + self.up @ self.down, self.base.bias)


COUNTED: list[tuple[str, Callable[[], nn.Module], tuple[int, ...]]] = [
    ("attention by hand", lambda: Attends(fused=False), (12, 4, 5)),
    ("heads", Heads, (12, 4, 5)),
    ("heads, batch first", lambda: Heads(batch_first=True, bias=False), (12, 4, 5)),
    ("einsum", lambda: Sums("bchw,dc->bdhw", (5, 12)), (12, 4, 5)),
    ("einsum with an ellipsis", lambda: Sums("bc...,dc->b...d", (5, 12)), (12, 4, 5)),
    ("einsum without an arrow", lambda: Sums("bchw,cd", (12, 5)), (12, 4, 5)),
    ("einsum of outer products", lambda: Sums("bchw,d->bchwd", (5,)), (12, 4, 5)),
    ("einsum of three", lambda: Sums("bchw,cd,de->behw", (12, 5), (5, 3)), (12, 4, 5)),
    ("a weight out of two", LowRank, (7,)),
    ("grouped", lambda: nn.Conv2d(12, 6, 3, groups=3, stride=2), (12, 9, 8)),
    ("3-D", lambda: nn.Conv3d(2, 4, (1, 3, 2), dilation=2), (2, 5, 9, 8)),
    ("1-D transposed", lambda: nn.ConvTranspose1d(4, 6, 5, 3, groups=2), (4, 11)),
    ("bilinear resampling", lambda: nn.Upsample(scale_factor=2, mode="bilinear"), (3, 5, 5)),
]


@pytest.mark.parametrize(("make", "shape"), [pytest.param(*c[1:], id=c[0]) for c in COUNTED])
def test_macs_are_half_of_what_torch_counts(
    make: Callable[[], nn.Module], shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.mha, "get_fastpath_enabled", lambda: False)
    model = make().eval()
    counter = FlopCounterMode(display=False)
    # Of the fused kernels for attention on a CPU, torch's counter knows those of some releases.
    with counter, sdpa_kernel(SDPBackend.MATH):
        model(torch.randn(1, *shape))
    assert 2 * measure_budget(model, shape).macs == counter.get_total_flops()


def test_fused_attention_is_counted_as_by_hand() -> None:
    one, other = (measure_budget(Attends(fused=fused), (12, 4, 5)) for fused in (True, False))
    assert one.macs == other.macs == 20 * 12 * 36 + 2 * 20 * 20 * 12


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_recurrent_layers(kind: Any) -> None:
    model = kind(5, 7, num_layers=2, batch_first=True, bidirectional=True)
    matrices = sum(p.numel() for p in model.parameters() if p.ndim == 2)
    assert measure_budget(model, (11, 5)).macs == 11 * matrices


def test_columns_of_other_work() -> None:
    net = nn.Sequential(
        nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.MaxPool2d(2), nn.AdaptiveAvgPool2d(1)
    )
    rows = measure_budget(net, (1, 8, 8)).layers
    assert [row.work for row in rows] == [
        Work(macs=2 * 36 * 9, bias=2 * 36),
        Work(norm=2 * 2 * 36),
        Work(elementwise=2 * 36),
        Work(pooling=2 * 9 * 4),
        Work(pooling=2 * 9),
    ]


def test_the_source_network_has_12734_parameters() -> None:
    budget = measure_budget(models.mnist_12k_source(), (1, 28, 28))
    assert budget.parameters.total == 12_734
    assert measure_budget(models.mnist_12k(), (1, 28, 28)).parameters.total == 12_000


class Kinds(nn.Module):
    """Parameters of every kind."""

    def __init__(self) -> None:
        super().__init__()
        self.frozen = nn.Conv2d(1, 2, 3).requires_grad_(False)  # 20
        self.norm = nn.BatchNorm2d(2)  # 4, and 5 in buffers
        self.again = nn.Conv2d(2, 2, 1, bias=False)  # 4
        self.never = nn.Linear(3, 3)  # 12
        self.dead = nn.Conv2d(2, 1, 1)  # 3

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.frozen(x))
        self.dead(x)
        return self.again(self.again(x))


def test_kinds_of_parameters() -> None:
    numbers = measure_budget(Kinds(), (1, 8, 8)).parameters
    assert (numbers.total, numbers.frozen, numbers.trainable) == (43, 20, 23)
    assert (numbers.shared, numbers.unused, numbers.buffers) == (4, 15, 5)
    assert numbers.deployed == 20 + 4  # the norm is in the convolution
    assert numbers.bytes == {"float32": 4 * 47, "int64": 8}


def test_totals_as_keras_counts_them() -> None:
    """Keras calls running means and variances parameters that are not trained."""
    net = nn.Sequential(nn.Conv2d(1, 8, 3, bias=False), nn.BatchNorm2d(8), nn.Conv2d(8, 4, 1))
    budget = measure_budget(net, (1, 8, 8))
    assert budget.parameters.statistics == 2 * 8
    assert budget.parameters.total == 72 + 16 + 36
    assert "140 with the 16 statistics of batch norms, as Keras counts" in str(budget)
    assert budget.to_dict()["parameters"]["statistics"] == 16
    assert "Keras" not in str(measure_budget(nn.Conv2d(1, 8, 3), (1, 8, 8)))


def test_totals_say_which_norms_stay_and_the_peaks_on_a_device() -> None:
    layers = [layer for _ in range(7) for layer in (nn.ReLU(), nn.BatchNorm2d(4))]
    net = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), *layers)
    rows = measure_budget(net, (4, 16, 16)).totals().rows
    first = next(i for i, row in enumerate(rows) if row[0] == "norms not folded")
    why = "for 4: relu comes before a layer that could take it"
    assert rows[first][1:] == ("7", f"3: batch_norm: leaves its scale and shift, {why}")
    assert rows[-1] == ("", "", "and 2 more: budget.foldings")
    (peak,) = (row for row in rows if row[0] == "device peak")
    # The activation is in the memory of the norm before it, and the next norm makes a map.
    assert peak[1:] == ("2.0 KiB", "at 3: batch_norm (int8, batch norm folded, fused)")


def test_freezing_moves_parameters_and_nothing_else() -> None:
    model = models.mnist_12k()
    before = measure_budget(model, (1, 28, 28))
    after = measure_budget(model.requires_grad_(False), (1, 28, 28))
    assert (after.parameters.trainable, after.parameters.frozen) == (0, 12_000)
    assert (before.parameters.trainable, before.parameters.frozen) == (12_000, 0)
    assert after.work == before.work


def test_a_linear_layer_is_a_1x1_convolution_and_groups_divide() -> None:
    def macs(model: nn.Module, shape: tuple[int, ...]) -> int:
        return measure_budget(model, shape).macs

    assert macs(nn.Linear(6, 4), (6,)) == macs(nn.Conv1d(6, 4, 1), (6, 1))
    whole = macs(nn.Conv2d(6, 6, 3), (6, 9, 9))
    assert macs(nn.Conv2d(6, 6, 3, groups=3), (6, 9, 9)) * 3 == whole
    adjoint = nn.ConvTranspose2d(6, 6, 3)
    assert macs(adjoint, (6, 7, 7)) == whole


def test_rows_sum_to_totals() -> None:
    budget = measure_budget(Kinds(), (1, 8, 8))
    rows = budget.layers
    assert sum(row.parameters for row in rows) == budget.parameters.total
    assert sum(row.deployed for row in rows) == budget.parameters.deployed
    assert sum((row.work for row in rows if row.work), Work()) == budget.work
    assert sum(row.saved for row in rows) == budget.memory.saved_for_backward
    assert max(row.live for row in rows) == budget.memory.inference_peak


class Odd(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.fft.fft2(x).abs() + x


def test_an_unknown_operation_is_an_error_or_listed() -> None:
    with pytest.raises(TracingError, match=r"'fft_fft2'.*register_op"):
        measure_budget(Odd(), (1, 8, 8))
    budget = measure_budget(Odd(), (1, 8, 8), strict=False)
    assert budget.unknown == ("fft_fft2",)
    assert not budget.complete
    assert "incomplete" in str(budget)
    assert "incomplete" in repr(budget)
    assert budget.layers[0].work is None


def test_several_inputs() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.image, self.text = nn.Conv2d(3, 4, 3), nn.Embedding(10, 4)

        def forward(self, image: Tensor, *, words: Tensor, scale: float = 1.0) -> Tensor:
            return self.image(image).mean((2, 3)) + scale * self.text(words).mean(1)

    words = torch.zeros(1, 5, dtype=torch.long)
    with pytest.raises(TracingError, match="missing"):
        measure_budget(Two(), (3, 8, 8))
    budget = measure_budget(Two(), inputs={"image": (3, 8, 8), "words": words, "scale": 2.0})
    assert budget.macs == 36 * 4 * 27
    assert budget.parameters.unused == 0
    assert budget.input_shapes == ((3, 8, 8), (5,))


def test_a_graph_is_measured_as_its_model() -> None:
    graph = trace(models.mnist_12k(), (1, 28, 28))
    assert (
        measure_budget(graph).to_dict() == measure_budget(models.mnist_12k(), (1, 28, 28)).to_dict()
    )
    with pytest.raises(InvalidInputError, match="not for a Graph"):
        measure_budget(graph, (1, 28, 28))


@pytest.fixture
def budget() -> Budget:
    return measure_budget(nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)), (1, 8, 8))


def test_json_says_everything(budget: Budget) -> None:
    content = json.loads(budget.to_json())
    assert content["schema"] == "constrained_cnn.budget/1"
    assert content["parameters"]["total"] == 24
    assert content["macs"] == 2 * 36 * 9
    assert content["memory"]["peaks"][0]["peak"] == budget.memory.inference_peak
    assert [row["name"] for row in content["layers"]] == ["0: conv2d", "1: batch_norm"]


def test_faces(budget: Budget) -> None:
    text = str(budget)
    assert "24" in text
    assert "648" in text
    assert "| total (live: peak)" in budget.to_markdown().replace("**", "")
    assert "<p>Sequential on 1 x 8 x 8</p><table>" in budget._repr_html_()
    assert repr(budget) == "Budget(Sequential: 24 parameters, 648 MACs)"


def test_json_of_the_totals_alone(budget: Budget) -> None:
    whole, totals = budget.to_dict(), budget.to_dict(layers=False)
    assert "layers" not in totals
    assert all("live" not in peak for peak in totals["memory"]["peaks"])
    assert {key: whole[key] for key in totals if key != "memory"} == {
        key: totals[key] for key in totals if key != "memory"
    }


def test_each_peak_says_where_it_is_and_none_is_said_twice() -> None:
    net = nn.Sequential(
        nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(inplace=True), nn.Conv2d(2, 3, 3)
    )  # as in test_budget_memory.py: where nothing is in place only the folded ones differ
    rows = measure_budget(net, (1, 8, 8)).totals().rows
    first = next(i for i, row in enumerate(rows) if row[0] == "inference peak")
    assert [row[1:] for row in rows[first : first + 6]] == [
        ("576 B", "at 1: batch_norm (as run)"),
        ("480 B", "at 3: conv2d (as run, batch norm folded)"),
        ("576 B", "at 2: relu (as run, batch norm folded, nothing in place)"),
        ("144 B", "at 1: batch_norm (int8)"),
        ("120 B", "at 3: conv2d (int8, batch norm folded)"),
        ("144 B", "at 2: relu (int8, batch norm folded, nothing in place)"),
    ]
    assert rows[first + 6][0] == "saved for backward"


def test_quantities_of_what_is_deployed(budget: Budget) -> None:
    quantities = budget.quantities()
    assert quantities["bytes of deployed weights, float32"] == 4 * 20  # the norm is folded
    assert quantities["bytes of deployed weights, int8"] == 20
    assert quantities["bytes at the int8 peak, batch norm folded"] == 2 * 36
    plain = measure_budget(nn.Conv2d(1, 2, 3), (1, 8, 8)).quantities()  # nothing to fold
    assert plain["bytes at the int8 peak, batch norm folded"] == 2 * 36


def test_a_network_that_cannot_train_says_so() -> None:
    class OnlyEvaluates(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            if self.training:
                raise RuntimeError("not for training")
            return super().forward(x)

    budget = measure_budget(OnlyEvaluates(1, 2, 3), (1, 8, 8))
    assert budget.memory.saved_for_backward is None
    assert budget.memory.problem == "not for training"
    assert "not for training" in str(budget)
