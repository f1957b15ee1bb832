"""What must hold of any network, whatever its numbers: random networks, changed in known ways."""

import copy
import dataclasses
import json
from fractions import Fraction
from typing import Any

import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from random_networks import CHANNELS, SHAPE, Branches, Does, networks
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from constrained_cnn.budget import Budget, LayerCost, Parameters, measure_budget
from constrained_cnn.errors import TracingError
from constrained_cnn.graph import Graph, Work
from constrained_cnn.receptive_field import (
    Axis,
    AxisField,
    PositionField,
    ReceptiveField,
    measure_receptive_field,
)
from constrained_cnn.tracing import trace


def traced(network: nn.Module, shape: tuple[int, ...] = SHAPE) -> Graph:
    """Return the graph; leave the example out if the image is too small for the network."""
    try:
        return trace(network.eval(), shape)
    except TracingError as error:
        assert "cannot take an input" in str(error)  # noqa: PT017
        assume(False)
        raise


def field_of(network: nn.Module, shape: tuple[int, ...] = SHAPE) -> ReceptiveField:
    return measure_receptive_field(traced(network, shape))


def seen(axes: tuple[Axis, ...]) -> list[object]:
    """Return what each axis sees, without the names of layers."""
    return [(axis.field, axis.local, axis.length, axis.units) for axis in axes]


class Named(nn.Module):
    """The same network under other names."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.trunk = nn.ModuleDict({"deeper": nn.Sequential(network)})

    def forward(self, picture: object) -> object:
        return self.trunk["deeper"](picture)


@settings(max_examples=40)
@given(network=networks())
def test_names_and_nesting_change_nothing(network: nn.Sequential) -> None:
    graph, named = traced(network), traced(Named(network))
    assert [layer.op for layer in graph.layers] == [layer.op for layer in named.layers]
    assert graph.values == named.values
    fields = [measure_receptive_field(one) for one in (graph, named)]
    assert seen(fields[0].axes) == seen(fields[1].axes)
    budgets = [measure_budget(one) for one in (graph, named)]
    assert budgets[0].quantities() == budgets[1].quantities()
    assert budgets[0].work == budgets[1].work


@settings(max_examples=40)
@given(one=networks(1), two=networks(1), three=networks(1))
def test_composition_is_associative(
    one: nn.Sequential, two: nn.Sequential, three: nn.Sequential
) -> None:
    left = nn.Sequential(nn.Sequential(one, two), three)
    right = nn.Sequential(one, nn.Sequential(two, three))
    assert seen(field_of(left).axes) == seen(field_of(right).axes)


@settings(max_examples=40)
@given(network=networks(), place=st.integers(0, 3))
def test_what_looks_at_one_unit_changes_no_field(network: nn.Sequential, place: int) -> None:
    parts = list(network)
    idle = [
        *(nn.Identity(), nn.Conv2d(CHANNELS, CHANNELS, 1), nn.BatchNorm2d(CHANNELS)),
        *(nn.ReLU(), nn.Dropout(0.069), nn.Dropout2d(0.5)),
    ]
    more = nn.Sequential(*parts[:place], *idle, *parts[place:])
    assert seen(field_of(network).axes) == seen(field_of(more).axes)


@settings(max_examples=40)
@given(network=networks(1))
def test_a_module_that_is_used_again_is_a_copy_that_shares_its_weights(
    network: nn.Sequential,
) -> None:
    again = measure_budget(traced(nn.Sequential(network, network)))
    copied = nn.Sequential(network, copy.deepcopy(network))
    twice = measure_budget(traced(copied))
    assert again.work == twice.work
    assert again.memory.inference_peak == twice.memory.inference_peak
    assert 2 * again.parameters.total == twice.parameters.total
    fields = field_of(nn.Sequential(network, network)), field_of(copied)
    assert seen(fields[0].axes) == seen(fields[1].axes)


@settings(max_examples=40)
@given(one=networks(1), other=networks(1), side_by_side=st.booleans())
def test_a_union_ignores_order_and_holds_each_branch(
    one: nn.Sequential, other: nn.Sequential, side_by_side: bool
) -> None:
    def joined(*branches: nn.Module) -> nn.Module:
        return Branches(*branches, side_by_side=side_by_side, filled=False)

    first, second = field_of(joined(one, other)), field_of(joined(other, one))
    assert seen(first.axes) == seen(second.axes)
    for branch in (one, other):
        for whole, part in zip(first.axes, field_of(branch).axes, strict=True):
            for unit in range(min(whole.units or 0, part.units or 0)):
                outer, inner = whole.interval(unit), part.interval(unit)
                if inner is not None:
                    assert outer is not None
                    assert outer[0] <= inner[0] <= inner[1] <= outer[1]


@settings(max_examples=40)
@given(network=networks())
def test_swapped_axes_swap_the_answer(network: nn.Sequential) -> None:
    turn = Does(lambda x: x.transpose(2, 3))
    turned = nn.Sequential(turn, network, turn)
    plain = field_of(network)
    swapped = field_of(turned, (SHAPE[0], SHAPE[2], SHAPE[1]))
    assert seen(swapped.axes) == seen(plain.axes)[::-1]


@given(
    kernel=st.integers(1, 5),
    stride=st.integers(1, 3),
    padding=st.integers(0, 3),
    dilation=st.integers(1, 3),
)
def test_a_convolution_and_its_adjoint_are_inverse_relations(
    kernel: int, stride: int, padding: int, dilation: int
) -> None:
    options: dict[str, Any] = {
        "stride": stride,
        "padding": padding,
        "dilation": dilation,
        "bias": False,
    }
    forth = nn.Conv1d(2, 3, kernel, **options)
    length = 40
    units = (length + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
    back = nn.ConvTranspose1d(3, 2, kernel, output_padding=0, **options)
    (reads,) = field_of(forth, (2, length)).axes
    (gives,) = field_of(back, (3, units)).axes
    for unit in range(units):
        first = unit * stride - padding
        assert reads.interval(unit) == (first, first + (kernel - 1) * dilation)
    taps = range(0, kernel * dilation, dilation)
    for position in range(gives.units or 0):
        readers = [u for u in range(-20, units + 20) if position + padding - u * stride in taps]
        expected = (min(readers), max(readers)) if readers else None
        assert gives.interval(position) == expected
    assert measure_budget(traced(forth, (2, length))).macs == units * 6 * kernel
    assert measure_budget(traced(back, (3, units))).macs == units * 6 * kernel


@settings(max_examples=25)
@given(network=networks(), batch=st.integers(2, 5))
def test_work_is_linear_in_the_batch(network: nn.Sequential, batch: int) -> None:
    graph = traced(network)
    assume(max(value.elements for value in graph.values) < 20_000)
    counter = FlopCounterMode(display=False)
    with counter:
        network(torch.zeros(batch, *SHAPE))
    assert counter.get_total_flops() == 2 * batch * measure_budget(graph).macs


@settings(max_examples=40)
@given(network=networks())
def test_memory_holds_what_an_operation_reads_and_makes_and_grows_with_the_image(
    network: nn.Sequential,
) -> None:
    graph = traced(network)
    peak = measure_budget(graph).memory.inference_peak
    given_pieces = {graph.values[value].memory for value in graph.inputs}
    for layer in graph.layers:
        sizes = {
            graph.values[v].memory: 4 * graph.values[v].elements
            for v in (*layer.sources, *layer.outputs)
        }
        together = sum(size for piece, size in sizes.items() if piece not in given_pieces)
        # A view is smaller than the piece of memory it looks into, never larger.
        assert peak >= together
    larger = measure_budget(traced(network, (SHAPE[0], SHAPE[1] + 4, SHAPE[2] + 4)))
    assert larger.memory.inference_peak >= peak
    assert larger.macs >= measure_budget(graph).macs


@settings(max_examples=40)
@given(network=networks())
def test_a_unit_and_its_successor_by_a_period(network: nn.Sequential) -> None:
    for axis in field_of(network).axes:
        if not isinstance(axis.field, AxisField):
            continue
        period = axis.field.period
        for unit in range((axis.units or 0) - period):
            here, there = axis.interval(unit), axis.interval(unit + period)
            moved = axis.field.advance
            assert there == (None if here is None else (here[0] + moved, here[1] + moved))


@settings(max_examples=40)
@given(network=networks())
def test_json_holds_everything(network: nn.Sequential) -> None:
    graph = traced(network)
    field = measure_receptive_field(graph)
    content = json.loads(field.to_json())
    assert content == field.to_dict()
    for said, axis in zip(content["axes"], field.axes, strict=True):
        spans = tuple(None if span is None else tuple(span) for span in said["spans"])
        found = (
            PositionField(spans) if said["advance"] is None else AxisField(spans, said["advance"])
        )
        assert found == axis.field
        assert said["jump"] is None or Fraction(said["jump"]) == axis.jump
    budget = measure_budget(graph)
    assert json.loads(budget.to_json()) == budget.to_dict()
    assert rebuilt(budget.to_dict()) == (budget.parameters, budget.work, budget.layers)


def rebuilt(content: dict[str, Any]) -> tuple[object, ...]:
    """Return the parts of a budget, made of plain data alone."""

    def layer(row: dict[str, Any]) -> LayerCost:
        plain = {"shape": tuple(row["shape"]), "work": Work(**row["work"])}
        return LayerCost(**{**row, **plain})

    rows = tuple(map(layer, content["layers"]))
    return Parameters(**content["parameters"]), Work(**content["work"]), rows


def test_budgets_are_plain_data() -> None:
    """Whatever a budget holds is in its JSON, by name."""
    budget = measure_budget(nn.Conv2d(1, 2, 3), (1, 8, 8))
    names = {part.name for part in dataclasses.fields(Budget)}
    assert names <= set(budget.to_dict())
