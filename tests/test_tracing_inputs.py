"""What a network is given: which axis is the batch, and inputs within inputs.

Multiply-accumulates are compared with half the flops that torch counts while the network runs on
real tensors of the same shapes.
"""

from collections import OrderedDict, UserDict, namedtuple
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from constrained_cnn import check, fit_widths, measure_budget, measure_receptive_field, trace
from constrained_cnn.budget import advise
from constrained_cnn.constraints import Count, Parameters
from constrained_cnn.errors import InvalidInputError, TracingError
from constrained_cnn.tracing import as_graph


def macs_of(network: nn.Module, *args: Any, **kwargs: Any) -> int:
    """Return half the flops that torch counts of a real run.

    In double precision and with gradients, or torch takes fused ways whose flops it does not count.
    """
    counter = FlopCounterMode(display=False)
    network.double().eval()
    with sdpa_kernel(SDPBackend.MATH), counter:
        network(*args, **kwargs)
    return counter.get_total_flops() // 2


class Positions(nn.Module):
    """Tokens and a table of positions, which all samples share."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.linear = nn.Embedding(16, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor, pos: Tensor) -> Tensor:
        return x + self.linear(self.table(pos))


class GraphConv(nn.Module):
    """Nodes, and one matrix that says which are neighbors."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(5, 7)

    def forward(self, x: Tensor, adjacency: Tensor) -> Tensor:
        return F.relu(adjacency @ self.linear(x))


class Video(nn.Module):
    """Frames first, then the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.rnn = nn.GRU(4, 6)

    def forward(self, frames: Tensor) -> Tensor:
        t, n = frames.shape[:2]
        maps = self.conv(frames.flatten(0, 1)).mean((2, 3))
        output: Tensor = self.rnn(maps.view(t, n, -1))[0]
        return output


class Turned(nn.Module):
    """Batch first outside, sequence first inside, as torch's default has it."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Any:
        turned = x.transpose(0, 1)
        if isinstance(self.inner, nn.MultiheadAttention):
            return self.inner(turned, turned, turned)[0]
        return self.inner(turned)


class Crossed(nn.Module):
    """Attention of learned queries to a sequence, by keyword."""

    def __init__(self) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.zeros(3, 1, 8))
        self.attention = nn.MultiheadAttention(8, 2)

    def forward(self, memory: Tensor) -> Tensor:
        query = self.query.expand(-1, memory.shape[1], -1)
        output: Tensor = self.attention(query, key=memory, value=memory)[0]
        return output


BATCH_AXES: list[Any] = [
    pytest.param(
        lambda: nn.TransformerEncoderLayer(16, 2, 32),
        [(10, 16)],
        1,
        [(10, 1, 16)],
        id="transformer",
    ),
    pytest.param(
        lambda: nn.TransformerDecoderLayer(16, 2, 32),
        [(4, 16), (9, 16)],
        1,
        [(4, 1, 16), (9, 1, 16)],
        id="decoder",
    ),
    pytest.param(
        lambda: nn.MultiheadAttention(16, 4),
        [(10, 16), (7, 16), (7, 16)],
        1,
        [(10, 1, 16), (7, 1, 16), (7, 1, 16)],
        id="attention",
    ),
    pytest.param(lambda: nn.LSTM(16, 8), [(10, 16)], 1, [(10, 1, 16)], id="lstm"),
    pytest.param(
        lambda: nn.GRU(16, 8, 2, bidirectional=True), [(10, 16)], 1, [(10, 1, 16)], id="gru"
    ),
    pytest.param(lambda: nn.RNN(16, 8), [(10, 16)], None, [(10, 16)], id="one sequence"),
    pytest.param(
        lambda: nn.TransformerEncoderLayer(16, 2, 32),
        [(10, 16)],
        None,
        [(10, 16)],
        id="one sentence",
    ),
    pytest.param(Video, [(5, 3, 9, 9)], 1, [(5, 1, 3, 9, 9)], id="video"),
    pytest.param(Crossed, [(6, 8)], 1, [(6, 1, 8)], id="crossed"),
    pytest.param(
        GraphConv, [(12, 5), (12, 12)], (0, None), [(1, 12, 5), (12, 12)], id="shared matrix"
    ),
    pytest.param(GraphConv, [(12, 5), (12, 12)], None, [(12, 5), (12, 12)], id="one graph"),
    pytest.param(lambda: nn.Conv2d(3, 4, 3), [(3, 9, 8)], None, [(3, 9, 8)], id="one image"),
    pytest.param(lambda: nn.Conv1d(3, 4, 3, groups=1), [(3, 9)], None, [(3, 9)], id="one signal"),
    pytest.param(
        lambda: nn.ConvTranspose2d(3, 4, 3), [(3, 9, 8)], None, [(3, 9, 8)], id="one image, spread"
    ),
    pytest.param(lambda: nn.Linear(8, 4), [(8,)], None, [(8,)], id="one vector"),
    pytest.param(lambda: nn.Linear(8, 4), [(6, 8)], 1, [(6, 1, 8)], id="batch in the middle"),
]


@pytest.mark.parametrize(("make", "shapes", "axis", "whole"), BATCH_AXES)
def test_the_batch_goes_where_it_is_said(
    make: Callable[[], nn.Module], shapes: Any, axis: Any, whole: Any
) -> None:
    tensors = [torch.rand(shape, dtype=torch.float64) for shape in whole]
    want = macs_of(make(), *tensors)
    assert want > 0
    budget = measure_budget(make(), inputs=shapes, batch_axis=axis)
    assert budget.macs == want
    assert budget.input_shapes == tuple(shapes)
    # A tensor says the same, whatever its size along the batch.
    for batch in (1, 4):
        axes = axis if isinstance(axis, tuple) else (axis,) * len(shapes)
        given = [
            t.float() if a is None else torch.zeros((*t.shape[:a], batch, *t.shape[a + 1 :]))
            for t, a in zip(tensors, axes, strict=True)
        ]
        assert measure_budget(make(), inputs=given, batch_axis=axis).macs == want


def test_shapes_are_those_of_one_sample() -> None:
    """The batch is left out wherever it stands, in training mode too."""
    net = nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Flatten(0, 1), nn.Linear(4, 2))
    graph = trace(net, (6, 8), batch_axis=1)
    assert [value.shape for value in graph.values] == [
        (6, 1, 8),
        (6, 1, 4),
        (6, 1, 4),
        (6, 4),
        (6, 2),
    ]
    assert [value.sample_shape for value in graph.values[:3]] == [(6, 8), (6, 4), (6, 4)]
    for program in (graph.evaluation, graph.training):
        assert [layer.input_shape for layer in program.layers[:3]] == [(6, 8), (6, 4), (6, 4)]
        assert program.layers[0].output_shape == (6, 4)
    rows = [layer.shape for layer in measure_budget(graph).layers]
    assert rows[:2] == [(6, 4), (6, 4)]


def test_positions_are_listed_whole() -> None:
    graph = trace(Positions(), inputs=[(16, 8), torch.arange(16)], batch_axis=(0, None))
    assert {layer.op: layer.output_shape for layer in graph.layers} == {
        "embedding": (16, 8),
        "linear": (16, 8),
        "add": (16, 8),
    }


class Convolved(nn.Module):
    """One image without a batch, which it puts in front."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(1, 8, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 4, 3), nn.Dropout(0.1)
        )
        self.pool = nn.AdaptiveAvgPool2d(1)

    def forward(self, image: Tensor) -> Tensor:
        output: Tensor = self.pool(self.net(image[None]))[0]
        return output


class Batched(Convolved):
    """The same with a batch."""

    def forward(self, image: Tensor) -> Tensor:
        output: Tensor = self.pool(self.net(image))
        return output


@pytest.mark.parametrize("make", [Convolved, lambda: nn.Sequential(*Batched().net, Batched().pool)])
def test_an_image_without_a_batch_is_measured_as_one_in_a_batch(
    make: Callable[[], nn.Module],
) -> None:
    rules = [Count("pool", at_least=1), Count("dropout", at_least=1), Parameters(at_most=400)]
    alone, one = make(), Batched()
    budgets = [
        measure_budget(alone, (1, 12, 12), batch_axis=None),
        measure_budget(one, (1, 12, 12)),
    ]
    assert budgets[0].macs == budgets[1].macs == 8 * 9 * 100 + 4 * 72 * 9
    saved = [budget.memory.saved_for_backward for budget in budgets]
    assert saved[0] == saved[1] is not None
    fields = [
        measure_receptive_field(alone, (1, 12, 12), batch_axis=None),
        measure_receptive_field(one, (1, 12, 12)),
    ]
    for field in fields:
        assert [axis.size for axis in field.axes] == [8, 8]
        assert [axis.interval(1) for axis in field.axes] == [(2, 9), (2, 9)]
    reports = [
        check(alone, (1, 12, 12), rules, batch_axis=None),
        check(one, (1, 12, 12), rules),
    ]
    verdicts = [[finding.ok for finding in report.findings] for report in reports]
    assert verdicts[0] == verdicts[1] == [True, True, True]


@pytest.mark.parametrize("axis", [0, 1, None])
def test_what_training_keeps_of_a_sample_does_not_depend_on_the_axis(axis: int | None) -> None:
    """A linear layer keeps its input, 6 x 8 numbers, and a tanh its output, 6 x 4."""
    net = nn.Sequential(nn.Linear(8, 4), nn.Tanh())
    memory = measure_budget(net, (6, 8), batch_axis=axis).memory
    assert memory.saved_for_backward == 4 * (6 * 8 + 6 * 4)
    assert memory.saved_once == 0


def test_what_all_samples_share_is_kept_once() -> None:
    """The matrix, which grows with no batch, is kept once: 12 x 12 numbers of four bytes."""
    net = GraphConv()
    memory = measure_budget(net, inputs=[(12, 5), (12, 12)], batch_axis=(0, None)).memory
    assert memory.saved_once == 4 * 12 * 12
    assert memory.saved_for_backward == 4 * (12 * 5 + 12 * 7)


def test_there_is_no_image_where_the_batch_is_in_between() -> None:
    with pytest.raises(
        InvalidInputError, match="no image axis after the channels with batch_axis=1"
    ):
        measure_receptive_field(nn.Linear(4, 4), (10, 6, 4), batch_axis=1)
    with pytest.raises(InvalidInputError, match="axis 0 is the batch"):
        advise(trace(nn.Linear(4, 4), (10, 4), batch_axis=1))


def test_every_function_that_takes_inputs_takes_the_axis() -> None:
    def make(width: int) -> nn.Module:
        return nn.TransformerEncoderLayer(16, 2, width)

    fits = fit_widths(
        make, {"width": range(1, 65)}, (10, 16), batch_axis=1, target={"macs": 23_680}
    )
    assert fits.best.widths == {"width": 32}
    graph = as_graph(make(32), (10, 16), batch_axis=1)
    assert measure_budget(graph).macs == 23_680
    with pytest.raises(InvalidInputError, match="batch_axis=1: not for a Graph"):
        measure_budget(graph, batch_axis=1)
    assert check(make(32), (10, 16), [Parameters(at_most=10_000)], batch_axis=1).ok


SEQUENCES: list[Any] = [
    pytest.param(lambda: nn.LSTM(8, 8), (6, 8), "'LSTM'|a LSTM with batch_first=False", id="lstm"),
    pytest.param(lambda: nn.GRU(8, 8), (6, 8), "a GRU with batch_first=False", id="gru"),
    pytest.param(lambda: nn.RNN(8, 8), (6, 8), "a RNN with batch_first=False", id="rnn"),
    pytest.param(
        lambda: nn.Sequential(nn.Linear(4, 8), nn.TransformerEncoderLayer(8, 2, 16)),
        (6, 4),
        r"'1\.self_attn', a MultiheadAttention with batch_first=False",
        id="transformer",
    ),
    pytest.param(Crossed, (6, 8), "'attention', a MultiheadAttention", id="by keyword"),
    pytest.param(
        lambda: nn.LSTM(8, 8, batch_first=True), (8,), r"2 axes.*batch_axis=None", id="no batch"
    ),
]


@pytest.mark.parametrize(("make", "shape", "message"), SEQUENCES)
def test_a_batch_that_is_taken_for_the_sequence_is_refused(
    make: Callable[[], nn.Module], shape: tuple[int, ...], message: str
) -> None:
    with pytest.raises(InvalidInputError, match=message) as caught:
        trace(make(), shape)
    assert "batch_axis=" in str(caught.value)
    with pytest.raises(InvalidInputError, match="batch_axis="):
        measure_budget(make(), inputs=[torch.zeros((3, *shape))])
    assert trace(make(), shape, batch_axis=0).layers  # as it is meant


class Tutorial(nn.Module):
    """Tokens with the sequence first, and a table with room for few positions."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(99, 8)
        self.register_buffer("positions", torch.zeros(50, 1, 8))
        self.layer = nn.TransformerEncoderLayer(8, 2, 16)

    def forward(self, tokens: Tensor) -> Tensor:
        output: Tensor = self.layer(self.table(tokens) + self.positions[: tokens.size(0)])  # type: ignore[index]
        return output


class OneSample(nn.Module):
    """Takes one sample only, so that nobody can see what grows with the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.GRU(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.rnn(x.reshape(1, 1, 8))[0]
        return output


def test_where_it_cannot_be_seen_it_stays_doubtful() -> None:
    tokens = torch.zeros(20, 1, dtype=torch.long)
    with pytest.raises(InvalidInputError, match="give batch_axis=1"):
        measure_budget(Tutorial(), inputs=[tokens])
    assert measure_budget(Tutorial(), inputs=[tokens], batch_axis=1).macs == macs_of(
        Tutorial(), tokens
    )
    with pytest.raises(InvalidInputError, match="batch_axis"):
        measure_budget(OneSample(), (8,))
    sample = torch.rand(1, 8, dtype=torch.float64)
    assert measure_budget(OneSample(), (8,), batch_axis=0).macs == macs_of(OneSample(), sample)


def test_states_of_a_recurrent_layer_have_their_own_axis() -> None:
    state = (torch.zeros(1, 3, 8), torch.zeros(1, 3, 8))
    inputs = [torch.zeros(3, 5, 16), state]
    net = nn.LSTM(16, 8, batch_first=True)
    with pytest.raises(InvalidInputError, match=r"batch_axis=\.\.\., nested as the inputs are"):
        measure_budget(net, inputs=inputs)
    assert measure_budget(net, inputs=inputs, batch_axis=(0, 1)).macs == 5 * 4 * 8 * (16 + 8)


def test_what_holds_itself_is_entered_once() -> None:
    batch: dict[str, Any] = {"image": (1, 16, 16), "mask": (1, 14, 14)}
    batch["batch"] = batch
    assert measure_budget(Nested(), inputs=[batch]).macs == 8 * 14 * 14 * 9


INNER: list[Any] = [
    pytest.param(lambda: nn.LSTM(8, 8), id="lstm"),
    pytest.param(lambda: nn.MultiheadAttention(8, 2), id="attention"),
    pytest.param(lambda: nn.TransformerEncoderLayer(8, 2, 16), id="transformer"),
]


@pytest.mark.parametrize("steps", [1, 6])
@pytest.mark.parametrize("make", INNER)
def test_a_network_that_turns_its_input_itself_is_right(
    make: Callable[[], nn.Module], steps: int
) -> None:
    want = macs_of(Turned(make()), torch.rand(1, steps, 8, dtype=torch.float64))
    assert measure_budget(Turned(make()), (steps, 8)).macs == want


def test_batch_first_modules_are_right_without_a_word() -> None:
    for module in (
        nn.GRU(8, 8, batch_first=True),
        nn.TransformerEncoderLayer(8, 2, 16, batch_first=True),
    ):
        sample = torch.rand(1, 6, 8, dtype=torch.float64)
        assert measure_budget(module, (6, 8)).macs == macs_of(module, sample)


DOUBTFUL: list[Any] = [
    pytest.param(Positions, [(16, 8), torch.arange(16)], r"batch_axis=\(0, None\)", id="positions"),
    pytest.param(
        GraphConv,
        [torch.zeros(4, 12, 5), torch.zeros(12, 12)],
        r"batch_axis=\(0, None\)",
        id="shared",
    ),
    pytest.param(
        Positions,
        {"x": torch.zeros(2, 16, 8), "pos": torch.arange(16)},
        r"batch_axis=\{'x': 0, 'pos': None\}",
        id="by name",
    ),
    pytest.param(nn.Identity, [[torch.zeros(2, 3), torch.zeros(4, 3)]], "batch_axis", id="nested"),
    pytest.param(
        lambda: nn.Embedding(99, 4), [torch.arange(16)], "batch_axis=0 or batch_axis=None", id="ids"
    ),
]


@pytest.mark.parametrize(("make", "inputs", "message"), DOUBTFUL)
def test_sizes_that_cannot_be_one_batch_are_refused(
    make: Callable[[], nn.Module], inputs: Any, message: str
) -> None:
    with pytest.raises(InvalidInputError, match=message):
        trace(make(), inputs=inputs)


def test_one_sample_beside_shapes_is_right() -> None:
    class Scaled(nn.Module):
        def forward(self, x: Tensor, label: Tensor, scale: Tensor, flag: bool) -> Tensor:
            return x * label[:, None] * scale if flag else x

    label, scale = torch.zeros(1, dtype=torch.long), torch.tensor(2.0)
    graph = trace(Scaled(), inputs=[(5,), label, scale, True])
    assert [graph.values[number].shape for number in graph.inputs] == [(1, 5), (1,), ()]
    many = trace(Scaled(), inputs=[torch.zeros(7, 5), torch.zeros(7), scale, True])
    assert [many.values[number].shape for number in many.inputs] == [(1, 5), (1,), ()]


def test_an_error_of_the_network_reminds_of_the_axis_of_tensors() -> None:
    with pytest.raises(TracingError, match=r"give batch_axis\): "):
        trace(GraphConv(), inputs=[torch.zeros(12, 5), torch.zeros(12, 12)])
    with pytest.raises(TracingError) as caught:
        trace(nn.Linear(3, 4), (5,))
    assert "batch_axis" not in str(caught.value)


@dataclass(frozen=True)
class Batch:
    """A batch object, which may not be written to."""

    image: Any
    mask: Any = None
    name: str = "train"


Pair = namedtuple("Pair", ["image", "mask"])


class Nested(nn.Module):
    """Takes image and mask out of whatever they are in."""

    def __init__(self, get: Callable[[Any, str], Any] = lambda batch, key: batch[key]) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 8, 3)
        self.get = get

    def forward(self, batch: Any) -> Tensor:
        image, mask = (self.get(batch, key) for key in ("image", "mask"))
        output: Tensor = self.conv(image) * mask
        return output


def by_place(batch: Any, key: str) -> Any:
    return batch[("image", "mask").index(key)]


IMAGE, MASK = torch.ones(1, 1, 16, 16), torch.ones(1, 1, 14, 14)
NESTED: list[Any] = [
    pytest.param(Nested(), dict, id="dict"),
    pytest.param(Nested(), OrderedDict, id="ordered dict"),
    pytest.param(Nested(), UserDict, id="a mapping of its own, as of tokenizers"),
    pytest.param(Nested(), MappingProxyType, id="a mapping that cannot be written to"),
    pytest.param(Nested(getattr), lambda parts: Batch(**parts), id="dataclass"),
    pytest.param(Nested(getattr), lambda parts: Pair(**parts), id="named tuple"),
    pytest.param(Nested(by_place), lambda parts: list(parts.values()), id="list"),
    pytest.param(Nested(by_place), lambda parts: tuple(parts.values()), id="tuple"),
    pytest.param(
        Nested(lambda batch, key: batch["data"][0][key]),
        lambda parts: {"data": [parts, "no tensor", None], "epoch": 3},
        id="deep",
    ),
]


@pytest.mark.parametrize(
    "leaves", [(IMAGE, MASK), ((1, 16, 16), (1, 14, 14)), (IMAGE, (1, 14, 14))]
)
@pytest.mark.parametrize(("net", "build"), NESTED)
def test_inputs_within_inputs(
    net: nn.Module, build: Callable[[Mapping[str, Any]], Any], leaves: tuple[Any, Any]
) -> None:
    batch = build(dict(zip(("image", "mask"), leaves, strict=True)))
    before = repr(batch)
    budget = measure_budget(net, inputs=[batch])
    assert budget.macs == 8 * 14 * 14 * 9
    assert budget.input_shapes == ((1, 16, 16), (1, 14, 14))
    assert repr(batch) == before  # what was given stays as it was


def test_the_axis_of_nested_inputs_is_nested_as_they_are() -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(8, 4)

        def forward(self, batch: Mapping[str, Any], table: Tensor) -> Tensor:
            return self.linear(batch["sequence"][0] + batch["shift"]) + table

    shapes = [{"sequence": [(6, 8)], "shift": (8,)}, (4,)]
    axes = ({"sequence": [1], "shift": 0}, None)
    graph = trace(Both(), inputs=shapes, batch_axis=axes)
    assert [graph.values[number].shape for number in graph.inputs] == [(6, 1, 8), (1, 8), (4,)]
    assert [graph.values[number].batch_axis for number in graph.inputs] == [1, 0, None]


class Detector(nn.Module):
    """Takes images of several sizes in a list, without a batch axis, as detectors do."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)

    def forward(self, images: list[Tensor]) -> list[dict[str, Tensor]]:
        height, width = (max(image.shape[axis] for image in images) for axis in (1, 2))
        padded = [
            F.pad(image, (0, width - image.shape[2], 0, height - image.shape[1]))
            for image in images
        ]
        return [{"scores": scores.flatten()} for scores in self.conv(torch.stack(padded))]


def test_a_list_of_images_without_a_batch() -> None:
    shapes = [(3, 8, 9), (3, 7, 10)]
    images = [torch.rand(shape, dtype=torch.float64) for shape in shapes]
    budget = measure_budget(Detector(), inputs=[shapes], batch_axis=None)
    assert budget.macs == macs_of(Detector(), images) == 2 * 4 * 27 * 8 * 10
    assert (
        measure_budget(
            Detector(), inputs=[[image.float() for image in images]], batch_axis=None
        ).macs
        == budget.macs
    )


def test_a_detector_of_torchvision_is_given_its_images() -> None:
    """What it is refused for is what it does with them, and not that it was given them."""
    detection = pytest.importorskip("torchvision.models.detection")
    model = detection.ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None)
    with pytest.raises(TracingError) as caught:
        trace(model, inputs=[[(3, 320, 320)]], batch_axis=None)
    assert "batch_axis" not in str(caught.value)
    assert "3d tensors" not in str(caught.value)
    with pytest.raises(TracingError, match=r"give batch_axis.*list of 3d tensors"):
        trace(model, inputs=[[(3, 320, 320)]])


MISTAKES: list[Any] = [
    pytest.param([(3, 8)], "one", "batch_axis='one': must be an index, None", id="text"),
    pytest.param(
        [(3, 8)], True, "batch_axis of .*=True: must be an integer from 0 to 2", id="flag"
    ),
    pytest.param([(3, 8)], 3, "=3: must be an integer from 0 to 2", id="beyond a shape"),
    pytest.param([(3, 8)], -1, "=-1: must be an integer from 0 to 2", id="negative"),
    pytest.param(
        [torch.zeros(1, 8)], 2, "=2: must be an integer from 0 to 1", id="beyond a tensor"
    ),
    pytest.param([torch.tensor(1.0), (8,)], 0, "has no axis; give it None", id="a number"),
    pytest.param([(3, 8)], (0, None), "one for each part of inputs, which has 1", id="too many"),
    pytest.param([(3, 8)], {"x": 0}, "in order, not by name; give a tuple", id="name of none"),
    pytest.param({"x": (3, 8)}, {"y": 0}, "unknown key 'y'", id="another name"),
    pytest.param([(3, 8)], ((0, 1),), "is one tensor; give it an index, or None", id="too deep"),
]


@pytest.mark.parametrize(("inputs", "axis", "message"), MISTAKES)
def test_an_axis_that_cannot_be(inputs: Any, axis: Any, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        trace(nn.Identity(), inputs=inputs, batch_axis=axis)


def test_no_error_prints_what_is_in_a_tensor() -> None:
    class Opaque:
        def __init__(self) -> None:
            self.image = torch.full((2, 2), 0.123)

        def __repr__(self) -> str:
            return f"Opaque({self.image})"

    secret = torch.full((3, 2), 0.123)
    wrong: list[dict[str, Any]] = [
        {"inputs": [Opaque()]},
        {"inputs": {"batch": Opaque()}},
        {"inputs": secret},
        {"input_shape": secret},
        {"input_shape": (1, 2), "inputs": [secret]},
        {"input_shape": secret, "inputs": [secret]},
        {"inputs": [secret, {"x": torch.zeros(7, 2)}]},
        {"inputs": [(3,)], "batch_axis": secret},
    ]
    for arguments in wrong:
        with pytest.raises(InvalidInputError) as caught:
            trace(nn.Identity(), **arguments)
        assert "0.123" not in str(caught.value)
        assert "tensor([" not in str(caught.value)
    with pytest.raises(InvalidInputError, match=r"inputs=\[Opaque\]: must hold a shape"):
        trace(nn.Identity(), inputs=[Opaque()])
    packed = nn.utils.rnn.pack_padded_sequence(torch.zeros(3, 1, 2), torch.tensor([3]))
    with pytest.raises(InvalidInputError, match="packed sequence"):
        trace(nn.LSTM(2, 2), inputs=[packed])


@given(st.data())
def test_any_axis_of_any_linear_network(data: st.DataObject) -> None:
    """Work and shapes are those of one sample, wherever the batch is."""
    sizes = data.draw(st.lists(st.integers(1, 5), min_size=1, max_size=4))
    axis = data.draw(st.none() | st.integers(0, len(sizes) - 1))
    net = nn.Sequential(nn.Linear(sizes[-1], 3), nn.ReLU())
    budget = measure_budget(net, tuple(sizes), batch_axis=axis)
    rows = 1
    for size in sizes[:-1]:
        rows *= size
    assert budget.macs == rows * sizes[-1] * 3
    assert budget.input_shapes == (tuple(sizes),)
    assert budget.memory.saved_for_backward == 4 * rows * (sizes[-1] + 3)
