"""The table of operations as a whole: every entry has a kind, reads and work that fit its calls."""

import inspect
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from operation_examples import BY_NAME, Example, Runs
from torch import Tensor, nn

from constrained_cnn.errors import TracingError
from constrained_cnn.graph import KINDS, Layer, Work
from constrained_cnn.tracing import trace
from constrained_cnn.tracing.operations import BUILT_IN, Operation

PLAIN = {name: one for name, one in BUILT_IN.items() if one.stands_for is None}


@pytest.mark.parametrize("name", PLAIN)
def test_every_operation_has_a_kind(name: str) -> None:
    kind = PLAIN[name].kind
    assert kind in KINDS if isinstance(kind, str) else callable(kind)
    assert kind != "unknown"


def layers(example: Example) -> list[Layer]:
    """Return the layer of an example in either mode."""
    graph = trace(example.make(), inputs=example.shapes)
    assert not graph.training.problem
    assert not graph.training.unseen
    modes = (graph.layers, graph.training.layers)
    return [[layer for layer in ran if layer.op == example.op][-1] for ran in modes]


@pytest.mark.filterwarnings("ignore:index_reduce")
@pytest.mark.parametrize("name", BY_NAME)
def test_an_example_is_of_its_kind_and_has_its_reads_and_work(name: str) -> None:
    for layer in layers(BY_NAME[name]):
        assert layer.kind == BY_NAME[name].kind
        assert layer.known
        assert isinstance(layer.work, Work)
        assert len(layer.reads) == len(layer.outputs)
        assert set(layer.inputs) == layer.sources  # none is left out


FLAT = (4,)
# Of each rule that tells the kind of a call, a call for each kind that it can give.
KINDS_OF_CALLS: list[tuple[str, str, nn.Module]] = [
    ("relu", "clamp", Runs(lambda x: x.clamp(min=0))),
    ("activation", "clamp", Runs(lambda x: x.clamp(-1, 1))),
    ("nonlinear", "clamp", Runs(lambda x: torch.clamp(x, x * 2, x * 3))),
    ("relu", "hardtanh", nn.Hardtanh(0.0, float("inf"))),
    ("activation", "hardtanh", nn.Hardtanh()),
    ("relu", "leaky_relu", nn.LeakyReLU(0)),
    ("activation", "leaky_relu", nn.LeakyReLU()),
    ("relu", "_threshold", nn.Threshold(0, 0)),
    ("activation", "_threshold", nn.Threshold(0.1, 3)),
    ("moves", "pow", Runs(lambda x: x**1)),
    ("nonlinear", "pow", Runs(lambda x: x**2)),
    ("scale", "div", Runs(lambda x: x / 3)),
    ("quotient", "div", Runs(lambda x: x / (x + 1))),
    ("moves", "to", Runs(lambda x: x.to(torch.float64))),
    ("nonlinear", "to", Runs(lambda x: x.to(torch.int64))),
    ("moves", "tensor", Runs(lambda x: torch.tensor([x.sum(), x.mean()], device=x.device))),
    ("scale", "einsum", Runs(lambda x: torch.einsum("bi,bj->bij", x, x))),
    ("product", "einsum", Runs(lambda x: torch.einsum("bi,bi->b", x, x))),
    ("lp_pool", "lp_pool1d", Runs(lambda x: F.lp_pool1d(x, 2.0, 2))),
    ("nonlinear", "lp_pool1d", Runs(lambda x: F.lp_pool1d(x, 2.0, 1))),
    ("scale", "matmul", Runs(lambda x: x[..., None, None] @ x[..., None, None])),
    ("product", "matmul", Runs(lambda x: x[:, None] @ x[:, :, None])),
    ("resample", "interpolate", Runs(lambda x: F.interpolate(x[:, None], scale_factor=2.0))),
    (
        "avg_pool",
        "interpolate",
        Runs(lambda x: F.interpolate(x[:, None], size=2, mode="area")),
    ),
    ("cut", "getitem", Runs(lambda x: x[:, :2])),
    ("nonlinear", "getitem", Runs(lambda x: x[0][x.argmax(1)])),
    ("embedding", "getitem", Runs(lambda x: torch.ones(9, device=x.device)[x.argmax(1)])),
    ("join", "index_copy", Runs(lambda x: x.index_copy(1, _first(x), x[:, :1] * 2))),
    ("nonlinear", "index_copy", Runs(lambda x: x.index_copy(0, x.argmax(1), x))),
]


def _first(x: Tensor) -> Tensor:
    return torch.tensor([0], device=x.device)


@pytest.mark.parametrize(("kind", "op", "network"), KINDS_OF_CALLS)
def test_a_kind_that_depends_on_the_call(kind: str, op: str, network: nn.Module) -> None:
    found = [layer.kind for layer in trace(network, FLAT).layers if layer.op == op]
    assert found[-1] == kind
    assert kind in KINDS


def test_every_rule_of_a_kind_is_tried_here() -> None:
    told = {_rule(BUILT_IN[op]) for _, op, _ in KINDS_OF_CALLS}
    told |= {_rule(BUILT_IN[example.op]) for example in BY_NAME.values()}
    assert {_rule(one) for one in PLAIN.values() if callable(one.kind)} <= told


def _rule(operation: Operation) -> str:
    return getattr(operation.kind, "__qualname__", "")


class Aten(nn.Module):
    """A network that calls an operation of ATen by its own name."""

    def __init__(self, op: str) -> None:
        super().__init__()
        self.op = op

    def forward(self, x: Tensor) -> object:
        x = x.view(-1, 2, 4, 6)
        one, length = torch.ones(2, device=x.device), x.shape[0]
        packet = getattr(torch.ops.aten, self.op)
        given: dict[str, tuple[object, ...]] = {
            "convolution": (x, torch.ones(3, 2, 3, 3, device=x.device), None, [1, 1], [0, 0],
                            [1, 1], False, [0, 0], 1),
            "native_batch_norm": (x, one, one, one * 0, one * 1, False, 0.1, 1e-5),
            "native_layer_norm": (x, [6], None, None, 1e-5),
            "native_group_norm": (x, one, one, length, 2, 24, 1, 1e-5),
            "native_dropout": (x, 0.5, True),
            "_softmax": (x, 1, False),
            "_safe_softmax": (x, 1),
            "_log_softmax": (x, 1, False),
            "_adaptive_avg_pool2d": (x, [2, 2]),
            "_adaptive_avg_pool3d": (x, [1, 2, 2]),
            "index": (x, [None, one.long() * 0]),
            "_unsafe_index": (x, [None, one.long() * 0]),
            "index_put": (x, [None, one.long() * 0], x),
            "_unsafe_index_put": (x, [None, one.long() * 0], x),
            "masked_scatter": (x, x > 0, x),
            "narrow": (x, 2, 1, 2),
            "narrow_copy": (x, 2, 1, 2),
            "select": (x, 2, 1),
            "select_copy": (x, 2, -1),
            "slice": (x, 2, 1, 4, 2),
            "slice_scatter": (x, x[:, :, 1:3], 2, 1, 3),
            "select_scatter": (x, x[:, :, 1], 2, 1),
            "upsample_nearest1d": (x[:, 0], [8]),
            "upsample_nearest2d": (x, [8, 8]),
            "upsample_nearest3d": (x[:, None], [2, 8, 8]),
            "upsample_linear1d": (x[:, 0], [8], False),
            "upsample_bilinear2d": (x, [8, 8], False),
            "upsample_trilinear3d": (x[:, None], [2, 8, 8], False),
            "upsample_bicubic2d": (x, [8, 8], False),
        }  # fmt: skip
        return packet(*given[self.op])


STAND_INS = sorted(BUILT_IN.keys() - PLAIN.keys())


@pytest.mark.parametrize("op", STAND_INS)
def test_what_stands_for_another_operation_leads_to_an_entry(op: str) -> None:
    layer = trace(Aten(op), (48,)).layers[-1]
    assert layer.op == op
    assert layer.known
    assert layer.kind in KINDS
    assert layer.kind != "unknown"
    assert isinstance(layer.work, Work)
    assert len(layer.reads) == len(layer.outputs)
    assert all(layer.reads)


def test_rules_are_functions_of_the_call_alone() -> None:
    for operation in PLAIN.values():
        for rule in (operation.reads, operation.work):
            assert list(inspect.signature(rule).parameters) == ["call"]


@pytest.mark.parametrize(
    ("op", "function"),
    [
        ("masked_select", lambda x: x.masked_select(x > 0)),
        ("nonzero", lambda x: x[x > 0]),
        ("nonzero", lambda x: torch.where(x > 0)[0]),
        ("unique", lambda x: torch.unique(x)),
        ("bincount", lambda x: torch.bincount(x[0].long())),
    ],
)
def test_what_gives_as_much_as_its_numbers_say_is_refused_in_words(
    op: str, function: Callable[[Tensor], Tensor]
) -> None:
    with pytest.raises(TracingError, match=f"'{op}' runs on numbers alone.*torch.where"):
        trace(Runs(function), FLAT)
