"""What the table says an operation reads, against derivatives: never less than there is."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from gradients import Does, check
from operation_examples import BY_NAME, Runs, numbers
from torch import Tensor, nn

from constrained_cnn.errors import TracingError
from constrained_cnn.graph import Read
from constrained_cnn.receptive_field import measure_receptive_field
from constrained_cnn.receptive_field._flow import _listed
from constrained_cnn.tracing import trace

Index = tuple[int, ...]


def _admits(read: Read, out: Index, source: Index, shape: Sequence[int]) -> bool:
    """Whether a read says that a unit of the output may read a unit of the input."""
    if read.reshapes:
        return True
    for place, by in enumerate(read.axes):
        if by is None or by.axis in read.unplaced:
            continue
        units = [out[place]] if by.by is None else _listed(by.by)(out[place])
        if source[by.axis] not in units:
            return False
    for patch in read.patches:
        windows = _listed(patch.window)
        if patch.window.transposed:
            if source[patch.axis] // patch.step % patch.count not in windows(out[patch.into]):
                return False
        elif source[patch.axis] not in windows(out[patch.into] // patch.step % patch.count):
            return False
    return all(source[axis] == unit for axis, unit in read.picks)


@pytest.mark.filterwarnings("ignore:index_reduce")
@pytest.mark.parametrize("name", BY_NAME)
def test_no_unit_reads_more_than_the_table_says(name: str) -> None:
    """By derivatives of every unit of the last operation, of a network of a few others."""
    example = BY_NAME[name]
    network = example.make().double().eval()
    for weights in network.parameters():
        nn.init.uniform_(weights, 0.5, 1.5)
    inputs = tuple(numbers((1, *shape)).clone() for shape in example.shapes)
    graph = trace(network, inputs=example.shapes)
    try:
        jacobians = torch.autograd.functional.jacobian(network, inputs)
    except RuntimeError:  # it gives whole numbers, which have no derivative
        assert example.op == "bucketize"
        return
    # The pairs of units that may depend on each other, carried through all layers.
    reached: dict[int, dict[Index, set[tuple[int, Index]]]] = {
        value: {index: {(number, index)} for index in _indices(graph.values[value].shape)}
        for number, value in enumerate(graph.inputs)
    }
    for layer in graph.layers:
        for output, reads in zip(layer.outputs, layer.reads, strict=True):
            shape = graph.values[output].shape
            found: dict[Index, set[tuple[int, Index]]] = {index: set() for index in _indices(shape)}
            for read in reads:
                before = graph.values[read.value].shape
                for source, origins in reached[read.value].items():
                    for out in found:
                        if _admits(read, out, source, before) and (
                            not read.reshapes or _flat(out, shape) == _flat(source, before)
                        ):
                            found[out] |= origins
            reached[output] = found
    last = reached[graph.outputs[0]]
    for number, jacobian in enumerate(jacobians):
        value = graph.values[graph.outputs[0]].shape
        for pair in jacobian.nonzero().tolist():
            out, source = tuple(pair[: len(value)]), tuple(pair[len(value) :])
            assert (number, source) in last[out], (number, out, source)


def _indices(shape: Sequence[int]) -> list[Index]:
    return [tuple(index) for index in torch.ones(tuple(shape)).nonzero().tolist()]


def _flat(index: Index, shape: Sequence[int]) -> int:
    place = 0
    for unit, size in zip(index, shape, strict=True):
        place = place * size + unit
    return place


def conv(channels: int = 2, kernel: int = 3) -> nn.Conv2d:
    return nn.Conv2d(channels, 2, kernel)


def through_patches(x: Tensor, first: nn.Module, last: nn.Module) -> Tensor:
    columns = F.unfold(first(x), (3, 2), stride=(2, 1), padding=(1, 0))
    mixed = columns.transpose(1, 2).cumsum(2).transpose(1, 2)
    return last(F.fold(mixed, (8, 12), (3, 2), stride=(2, 1), padding=(1, 0)))


NETWORKS: dict[str, nn.Module] = {
    "patches and back": Does(
        through_patches, nn.Conv2d(2, 2, 3, padding=1), nn.Conv2d(2, 2, 3, padding=1)
    ),
    "a quarter turn": Does(lambda x, a, b: b(torch.rot90(a(x), 1, (2, 3))), conv(), conv()),
    "three quarters": Does(lambda x, a: torch.rot90(a(x), -1, (2, 3)), conv()),
    "a diagonal": Does(lambda x, a: a(x).diagonal(1, 2, 3), conv()),
    "mirrored": Does(lambda x, a: torch.fliplr(a(x).flip(3)), conv()),
    "smaller without aliases": Does(
        lambda x, a: F.interpolate(a(x), (3, 4), mode="bilinear", antialias=True), conv()
    ),
    "stacked": Does(lambda x, a: torch.hstack([a(x), x[..., 2:, 2:]]), conv()),
    "channels gathered": Does(
        lambda x, a: a(x).gather(1, torch.zeros(1, 1, 6, 10, dtype=torch.long, device=x.device)),
        conv(),
    ),
    "added to channels": Does(
        lambda x, a, b: a(x).index_add(1, torch.tensor([0], device=x.device), b(x[..., 2:, 2:])),
        conv(),
        nn.Conv2d(2, 1, 1),
    ),
    "a cosine": Does(lambda x, a: F.cosine_similarity(a(x), x[..., 2:, 2:], 1)[:, None], conv()),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_every_unit_sees_what_its_gradient_reaches(name: str) -> None:
    torch.manual_seed(0)
    check(NETWORKS[name])


UNPLACED: dict[str, Any] = {
    "gather": lambda x: x.gather(2, x.argsort(2)),
    "grid_sample": lambda x: F.grid_sample(x, x.permute(0, 2, 3, 1), align_corners=False),
    "scatter_add": lambda x: x.scatter_add(3, x.argsort(3), x),
    "setitem": lambda x: _put(x, x[0, 0, :, 0].argsort()),
}


def _put(x: Tensor, index: Tensor) -> Tensor:
    y = torch.zeros_like(x)
    y[:, :, index] = x
    return y


@pytest.mark.parametrize("op", UNPLACED)
def test_where_units_go_is_not_made_up(op: str) -> None:
    with pytest.raises(TracingError, match=f"{op} reads along the image in a way that differs"):
        measure_receptive_field(Does(UNPLACED[op]), (2, 5, 5))


@pytest.mark.filterwarnings("ignore:torch.ao.quantization")
@pytest.mark.filterwarnings("ignore:Please use quant_min")
def test_a_network_with_observers_sees_its_own_field_beside_their_scales() -> None:
    network = nn.Sequential(conv(1), nn.ReLU(), conv()).train()
    network.qconfig = torch.ao.quantization.get_default_qat_qconfig("fbgemm")
    prepared = torch.ao.quantization.prepare_qat(network)
    for axis in measure_receptive_field(prepared, (1, 16, 16)).axes:
        assert axis.is_global  # what it rounds to depends on all units
        assert axis.local is not None
        assert axis.local.size == 5


@pytest.mark.filterwarnings("ignore:To copy construct")
@pytest.mark.parametrize(
    "copy",
    [lambda x: x.new_tensor(x), lambda x: torch.tensor(x), lambda x: x.new_tensor(data=x)],
)
def test_a_new_tensor_of_what_another_holds_depends_on_it(copy: Callable[[Tensor], Tensor]) -> None:
    layer = trace(Runs(copy), (2, 4, 5)).layers[-1]
    assert layer.kind == "moves"
    assert [read.value for read in layer.reads[0]] == [0]


def test_a_new_tensor_of_numbers_depends_on_nothing() -> None:
    graph = trace(Runs(lambda x: x * x.new_tensor([2.0])), (2, 4, 5))
    assert [layer.op for layer in graph.layers] == ["mul"]
