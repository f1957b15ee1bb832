"""What operations cost, against torch's counter where it counts them, or by hand."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from kept_by_torch import kept, plain_formulas
from operation_examples import Runs, boxes, torchvision_op
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from constrained_cnn.budget import measure_budget
from constrained_cnn.errors import TracingError
from constrained_cnn.graph import Work
from constrained_cnn.tracing import trace

LAYERS: list[Any] = [nn.LSTM, nn.GRU, nn.RNN]
OPTIONS: list[dict[str, Any]] = [
    {},
    {"bias": False},
    {"num_layers": 3},
    {"bidirectional": True},
    {"num_layers": 2, "bidirectional": True, "dropout": 0.5},
]
RECURRENT = [(layer, options) for layer in LAYERS for options in OPTIONS]
RECURRENT += [(nn.LSTM, {"proj_size": 2}), (nn.RNN, {"nonlinearity": "relu"})]
RECURRENT += [(nn.LSTM, {"proj_size": 2, "num_layers": 2, "bidirectional": True})]


@pytest.mark.filterwarnings("ignore:LSTM with projections")
@pytest.mark.parametrize(("layer", "options"), RECURRENT)
def test_a_recurrent_layer_is_one_layer_and_costs_what_its_formulas_do(
    layer: Any, options: dict[str, Any]
) -> None:
    model = layer(5, 4, batch_first=True, **options)
    graph = trace(model, (7, 5))
    assert len(graph.layers) == len(graph.training.layers) == 1
    assert graph.training.problem == ""
    out, state = copy.deepcopy(model)(torch.rand(1, 7, 5))
    states = state if isinstance(state, tuple) else (state,)
    assert [graph.values[n].shape for n in graph.outputs] == [t.shape for t in (out, *states)]
    with (
        plain_formulas(),  # the counter does not see into a fused kernel
        FlopCounterMode(display=False) as counter,
        torch.no_grad(),
    ):
        model.eval()(torch.rand(1, 7, 5))
    budget = measure_budget(graph)
    assert 2 * budget.macs == counter.get_total_flops()
    # Of one sample less is kept: there transposing copies nothing.
    assert budget.memory.saved_for_backward == kept(model.train(), torch.rand(2, 7, 5)) // 2


def test_long_sequences() -> None:
    budget = measure_budget(nn.LSTM(12, 128, batch_first=True), (250, 12))
    assert budget.macs == 250 * 4 * 128 * (12 + 128)
    assert len(budget.layers) == 1


def torch_counts(network: nn.Module, *inputs: Tensor) -> int:
    with (
        FlopCounterMode(display=False) as counter,
        torch.no_grad(),
        sdpa_kernel(SDPBackend.MATH),
    ):
        network.eval()(*inputs)
    return counter.get_total_flops()


COUNTED: dict[str, tuple[nn.Module, list[tuple[int, ...]]]] = {
    "LSTM cell": (nn.LSTMCell(6, 8), [(6,)]),
    "GRU cell": (nn.GRUCell(6, 8, bias=False), [(6,)]),
    "RNN cell": (nn.RNNCell(6, 8, nonlinearity="relu"), [(6,)]),
    "one query for all heads": (
        Runs(lambda q, k: F.scaled_dot_product_attention(q, k, k)),
        [(1, 5, 8), (4, 7, 8)],
    ),
    "one key for all heads": (
        Runs(lambda q, k: F.scaled_dot_product_attention(q, k, k)),
        [(4, 5, 8), (1, 7, 8)],
    ),
    "queries in groups": (
        Runs(lambda q, k, v: F.scaled_dot_product_attention(q, k, v, enable_gqa=True)),
        [(8, 5, 8), (2, 7, 8), (2, 7, 3)],
    ),
    "a head for all": (
        Runs(lambda q, k: F.scaled_dot_product_attention(q, k, k, enable_gqa=True)),
        [(6, 5, 8), (1, 7, 8)],
    ),
    "tensordot": (Runs(lambda x, y: torch.tensordot(x, y[0], 1)), [(3, 4), (4, 5)]),
    "inner": (Runs(lambda x, y: torch.inner(x, y[0])), [(3, 4), (5, 4)]),
    "a chain": (
        Runs(lambda x, y, z: torch.linalg.multi_dot([x[0], y[0], z[0]])),
        [(3, 4), (4, 5), (5, 2)],
    ),
    "baddbmm": (Runs(torch.baddbmm), [(3, 5), (3, 4), (4, 5)]),
    "kron": (Runs(lambda x, y: torch.kron(x[0], y[0])), [(3, 4), (2, 5)]),
}


@pytest.mark.parametrize("name", COUNTED)
def test_macs_are_half_of_what_torch_counts(name: str) -> None:
    network, shapes = COUNTED[name]
    macs = measure_budget(network, inputs=shapes).macs
    assert 2 * macs == torch_counts(network, *(torch.rand(1, *shape) for shape in shapes))


def heads(x: Tensor, **options: Any) -> Tensor:
    return F.scaled_dot_product_attention(x, x[:, :3], x[:, :3], **options)


def test_heads_that_do_not_divide_are_refused_in_torchs_words() -> None:
    with pytest.raises(TracingError, match="cannot take an input"):
        trace(Runs(lambda x: heads(x, enable_gqa=True)), (8, 5, 4))


def deformed(x: Tensor, shifts: Tensor) -> Tensor:
    weight, bias = torch.ones(6, 2, 3, 3, device=x.device), torch.ones(6, device=x.device)
    convolve = torchvision_op("deform_conv2d")
    none = shifts[:, :0]
    return convolve(x, weight, shifts, none, bias, 1, 1, 0, 0, 1, 1, 2, 1, False)


BY_HAND: list[tuple[str, Callable[..., Any], list[tuple[int, ...]], Work]] = [
    ("mv", lambda x, v: torch.mv(x[0], v[0]), [(3, 4), (4,)], Work(macs=12)),
    ("dot", lambda x, y: torch.dot(x[0], tensor=y[0]), [(4,), (4,)], Work(macs=4)),
    ("vdot", lambda x, y: torch.vdot(x[0], y[0]), [(4,), (4,)], Work(macs=4)),
    (
        "addmv",
        lambda c, x, v: torch.addmv(c[0], mat=x[0], vec=v[0]),
        [(3,), (3, 4), (4,)],
        Work(macs=12, bias=3),
    ),
    (
        "addbmm",
        lambda c, x, y: torch.addbmm(c[0], x, y),
        [(3, 5), (3, 4), (4, 5)],
        Work(macs=60, bias=15),
    ),
    ("cdist", torch.cdist, [(3, 4), (5, 4)], Work(elementwise=60)),
    (
        "embedding_bag",
        lambda x: F.embedding_bag((x * 0).long(), torch.ones(9, 5, device=x.device)),
        [(7,)],
        Work(pooling=35),
    ),
    (
        "affine_grid",
        lambda t: F.affine_grid(t, [len(t), 1, 3, 4], align_corners=False),
        [(2, 3)],
        Work(macs=3 * 4 * 2 * 3),
    ),
    (
        "grid_sample",
        lambda x, g: F.grid_sample(x, g, align_corners=False),
        [(2, 4, 5), (3, 3, 2)],
        Work(pooling=4 * 2 * 9),
    ),
    (
        "grid_sample, nearest",
        lambda x, g: F.grid_sample(x, g, mode="nearest", align_corners=False),
        [(2, 4, 5), (3, 3, 2)],
        Work(),
    ),
    (
        "roi_align",
        lambda x: torchvision_op("roi_align")(x, boxes(x), 1.0, 2, 2, 3, False),
        [(2, 4, 5)],
        Work(pooling=2 * 2 * 4 * 9 * 4),
    ),
    ("deformed", deformed, [(4, 8, 8), (18, 6, 6)], Work(6 * 36 * 18, 6 * 36, pooling=4 * 4 * 324)),
    ("fold", lambda x: F.fold(x, (4, 4), 2), [(8, 9)], Work(pooling=72)),
    (
        "smaller without aliases",
        lambda x: F.interpolate(x, (2, 8), mode="bilinear", antialias=True),
        [(3, 6, 4)],
        Work(pooling=3 * (2 * 6) * (2 * 8)),
    ),
    ("gather", lambda x: x.gather(1, (x > 0).long()), [(4,)], Work(elementwise=4)),
    ("stacked", lambda x: torch.vstack([x, torch.dstack([x, x])[..., 0]]), [(4,)], Work()),
]


@pytest.mark.parametrize(
    ("make", "shapes", "work"), [pytest.param(*c[1:], id=c[0]) for c in BY_HAND]
)
def test_work_by_hand(make: Callable[..., Any], shapes: list[tuple[int, ...]], work: Work) -> None:
    found = measure_budget(Runs(make), inputs=shapes).work
    assert (found.macs, found.bias, found.pooling) == (work.macs, work.bias, work.pooling)
    assert found.elementwise >= work.elementwise


def test_a_bilinear_layer_multiplies_each_pair_of_features_by_a_weight() -> None:
    row = measure_budget(nn.Bilinear(6, 5, 3), inputs=[(6,), (5,)]).layers[-1]
    assert row.work == Work(macs=3 * 6 * 5, bias=3)
    assert row.parameters == 3 * 6 * 5 + 3


@pytest.mark.filterwarnings("ignore:torch.ao.quantization", "ignore:Please use quant_min")
@pytest.mark.parametrize("backend", ["fbgemm", "qnnpack", "x86"])
@pytest.mark.parametrize("fused", [True, False])
def test_a_network_that_learns_to_be_quantized_costs_what_it_cost_before(
    backend: str, fused: bool
) -> None:
    quantization = torch.ao.quantization
    plain = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 3))
    network = copy.deepcopy(plain).train()
    if fused:
        network = quantization.fuse_modules_qat(network, [["0", "1"]])
    network.qconfig = quantization.get_default_qat_qconfig(backend)
    budget = measure_budget(quantization.prepare_qat(network), (1, 8, 8))
    wanted = measure_budget(plain, (1, 8, 8))
    assert budget.macs == wanted.macs == 8 * 9 * 36 + 8 * 36 * 3
    assert budget.parameters.total == wanted.parameters.total
    assert not budget.memory.problem


@pytest.mark.filterwarnings("ignore:torch.ao.quantization", "ignore:Please use quant_min")
def test_steps_that_stay_need_no_observer() -> None:
    quantization = torch.ao.quantization
    network = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU()).train()
    network.qconfig = quantization.get_default_qat_qconfig("fbgemm", version=0)
    network = quantization.prepare_qat(network).apply(quantization.disable_observer)
    graph = trace(network, (1, 8, 8))
    assert "fake_quantize_per_tensor_affine" in {layer.op for layer in graph.layers}
    assert measure_budget(graph).macs == 8 * 9 * 36
    assert graph.training.problem == ""


def test_a_hard_choice_by_gumbel_noise_draws() -> None:
    graph = trace(Runs(lambda x: F.gumbel_softmax(x, dim=1, hard=True)), (5,))
    assert any("exponential" in draw for draw in graph.training.draws)
    assert measure_budget(graph).macs == 0
