"""Random networks: what is measured is what gradients, NaNs, torch's counter and brute force find.

A field is that of the network without borders. A unit that reads the padding of a layer in between
sees less, so there the gradient may reach less; where the span lies inside the image it must reach
its ends.
"""

import math

import pytest
import torch
from hypothesis import assume, given, settings
from random_networks import SHAPE, cropping_networks, networks
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from constrained_cnn.budget import measure_budget, memory_timeline
from constrained_cnn.errors import TracingError
from constrained_cnn.graph import Graph, TensorInfo
from constrained_cnn.receptive_field import Axis, ReceptiveField, measure_receptive_field
from constrained_cnn.tracing import trace


def traced(network: nn.Module) -> Graph | None:
    """Return the graph; None if the image is too small for the network, or its layers too large."""
    try:
        graph = trace(network, SHAPE)
    except TracingError as error:
        assert "cannot take an input" in str(error)  # noqa: PT017
        return None
    largest = max(math.prod(value.shape) for value in graph.values)
    return graph if largest <= 20_000 and math.prod(graph.values[-1].shape) > 0 else None


def measured(graph: Graph) -> ReceptiveField | None:
    """Return the field; None where branches move at different speeds, so that there is none."""
    try:
        return measure_receptive_field(graph)
    except TracingError as error:
        assert "depends on the position" in str(error)  # noqa: PT017
        return None


def check(network: nn.Module) -> None:
    """Check what is said of a network against what it does."""
    network = network.double().eval()
    for weights in network.parameters():
        nn.init.uniform_(weights, 0.5, 1.5)  # no two paths cancel
    graph = traced(network)
    assume(graph is not None)
    assert graph is not None
    image = torch.rand(1, *SHAPE, dtype=torch.float64) + 0.5
    counter = FlopCounterMode(display=False)
    with counter:
        value = network(image)
    check_budget(network, graph, counter.get_total_flops() // 2)
    field = measured(graph)
    assume(field is not None and value[0, 0].numel() <= 1500)
    assert field is not None
    for number, axis in enumerate(field.axes):
        check_field(axis, 2 + number, image, network)


def check_budget(network: nn.Module, graph: Graph, macs: int) -> None:
    """Compare sums with torch's own, and live bytes with a search through all values."""
    budget = measure_budget(graph)
    assert budget.macs == macs
    assert budget.parameters.total == sum(part.numel() for part in network.parameters())
    assert sum(row.parameters for row in budget.layers) == budget.parameters.total
    assert sum(row.deployed for row in budget.layers) == budget.parameters.deployed
    assert sum(row.work.macs for row in budget.layers if row.work) == macs
    assert memory_timeline(graph).live == tuple(
        live_bytes(graph, step) for step in range(len(graph.layers))
    )
    memory = budget.memory
    assert memory.saved_for_backward == sum(row.saved for row in budget.layers)
    given = {graph.values[v].memory for v in graph.inputs}
    for layer in graph.layers:
        for made in (graph.values[v] for v in layer.outputs):
            assert made.memory in given or memory.inference_peak >= size_of(made)


def size_of(value: TensorInfo) -> int:
    return value.elements * {"float32": 4, "float64": 8}[value.dtype]


def live_bytes(graph: Graph, step: int) -> int:
    """Return the bytes of the pieces of memory made by now in which a value is used from now on."""
    made = {v for layer in graph.layers[: step + 1] for v in layer.outputs} | set(graph.inputs)
    used = {v for layer in graph.layers[step:] for v in (*layer.sources, *layer.outputs)}
    pieces = {graph.values[v].memory for v in made & (used | set(graph.outputs))}
    # A view made later of a piece keeps it alive meanwhile.
    later = {graph.values[v].memory for v in used | set(graph.outputs)}
    pieces |= {graph.values[v].memory for v in made} & later
    pieces -= {graph.values[v].memory for v in graph.inputs}
    first: dict[int, int] = {}
    for value in graph.values:
        first.setdefault(value.memory, size_of(value))
    return sum(first[piece] for piece in pieces)


def check_field(axis: Axis, own: int, image: Tensor, network: nn.Module) -> None:
    """Compare what is measured along an axis with gradients and NaNs."""
    found = reached_from(own, image, network)
    for unit, reached in enumerate(found):  # no unit sees more than is said, on any image
        span = axis.interval(unit)
        assert reached is None or (span and span[0] <= reached[0] <= reached[1] <= span[1])
    if axis.is_global:  # a pool covers its input; what windows before it leave over counts as seen
        return
    last = image.shape[own] - 1
    inside = [
        span and span[0] >= 0 and span[1] <= last for span in map(axis.interval, range(len(found)))
    ]
    short = [i for i, reached in enumerate(found) if inside[i] and reached != axis.interval(i)]
    middle = len(found) // 2
    if not short and (not inside[middle] or nan_agrees(axis, own, image, network, middle)):
        return
    # Along the other axis all that reaches the ends may come from padding: not so on a longer one.
    shape = list(image.shape)
    shape[5 - own] *= 6
    longer = torch.rand(shape, dtype=torch.float64) + 0.5
    there = measure_receptive_field(network, shape[1:]).axes[own - 2]
    assert there.field == axis.field
    found = reached_from(own, longer, network)
    for unit in short:
        assert found[unit] == axis.interval(unit)
    assert not inside[middle] or nan_agrees(axis, own, longer, network, middle)


def reached_from(own: int, image: Tensor, network: nn.Module) -> list[tuple[int, int] | None]:
    """Return the first and last line with a gradient, for each unit along an axis."""
    image = image.detach().clone().requires_grad_()
    value = network(image)
    others = [a for a in range(4) if a != own]
    found: list[tuple[int, int] | None] = []
    for unit in range(value.shape[own]):
        (gradient,) = torch.autograd.grad(value.select(own, unit).sum(), image, retain_graph=True)
        lines = gradient.abs().sum(others).nonzero().flatten().tolist()
        found.append((lines[0], lines[-1]) if lines else None)
    return found


def nan_agrees(axis: Axis, own: int, image: Tensor, network: nn.Module, unit: int) -> bool:
    """Return whether a NaN reaches a unit from both ends of what it sees; never from beyond."""

    def arrives(positions: list[int]) -> bool:
        poisoned = image.clone()
        poisoned.index_fill_(own, torch.tensor(positions, dtype=torch.long), math.nan)
        return bool(network(poisoned).select(own, unit).isnan().any())

    span = axis.interval(unit)
    assert span is not None
    beyond = [p for p in range(image.shape[own]) if not span[0] <= p <= span[1]]
    assert not arrives(beyond)
    return arrives([span[0]]) and arrives([span[1]])


@settings(max_examples=300)
@given(network=networks())
def test_random_networks(network: nn.Module) -> None:
    check(network)


@settings(max_examples=80)
@given(network=cropping_networks())
def test_random_networks_that_crop(network: nn.Module) -> None:
    check(network)


@pytest.mark.slow
@settings(max_examples=3000)
@given(network=networks(depth=3))
def test_many_random_networks(network: nn.Module) -> None:
    check(network)
