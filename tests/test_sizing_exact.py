"""The widths that are found, against measuring every network there is and against formulas."""

import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from constrained_cnn.blocks import ConvBNDrop, GAPHead, Transition1x1
from constrained_cnn.budget import measure_budget
from constrained_cnn.constraints import (
    Epochs,
    Finding,
    Macs,
    Parameters,
    Rule,
    Subject,
    WeightBytes,
)
from constrained_cnn.sizing import Fits, fit_widths

Make = Callable[..., nn.Module]
Widths = dict[str, int]

IMAGE = (1, 8, 8)
NAMES = ("a", "b", "c")
MOST = 5  # the families below are measured at every width up to this one


def chain(a: int, b: int, c: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, a, 3, padding=1, bias=False),
        nn.BatchNorm2d(a),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(a, b, 3, bias=False),
        nn.BatchNorm2d(b),
        nn.Conv2d(b, c, 1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(c, 10),
    )


def depthwise(a: int, b: int, c: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, a, 3),
        nn.ReLU(inplace=True),
        nn.Conv2d(a, a, 3, groups=a),
        nn.Conv2d(a, b, 1),
        nn.Flatten(),
        nn.Linear(b * 16, c),
        nn.Linear(c, 3),
    )


class Residual(nn.Module):
    """Two blocks share the width a; one of them has a bottleneck b."""

    def __init__(self, a: int, b: int, c: int) -> None:
        super().__init__()
        self.first, self.down = nn.Conv2d(1, a, 3, padding=1), nn.Conv2d(a, b, 1)
        self.up, self.frozen = nn.Conv2d(b, a, 3, padding=1), nn.Conv2d(a, c, 3)
        self.frozen.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.frozen(x + self.up(torch.relu(self.down(x))))


class Branches(nn.Module):
    """Two branches that are joined, and a gate over all of them."""

    def __init__(self, a: int, b: int, c: int) -> None:
        super().__init__()
        self.left, self.right = nn.Conv2d(1, a, 3, padding=1), nn.Conv2d(1, b, 1)
        self.gate, self.last = nn.Linear(a + b, a + b), nn.Conv2d(a + b, c, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([self.left(x), self.right(x)], dim=1)
        gate = torch.sigmoid(self.gate(x.mean((2, 3))))
        return self.last(x * gate[:, :, None, None])


def falling(a: int, b: int, c: int) -> nn.Module:
    """What one layer has more, another has less."""
    return nn.Sequential(
        nn.Conv2d(1, 6, 1), nn.Conv2d(6, a, 3), nn.Conv2d(a, 7 - a, 3), nn.Conv2d(7 - a, b * c, 1)
    )


FAMILIES: Mapping[str, Make] = {
    "chain": chain,
    "falling": falling,
    "depthwise": depthwise,
    "residual": Residual,
    "branches": Branches,
}


def quantities(model: nn.Module, shape: tuple[int, ...]) -> dict[str, int]:
    budget = measure_budget(model, shape)
    return {
        "parameters": budget.parameters.total,
        "trainable_parameters": budget.parameters.trainable,
        "deployed_parameters": budget.parameters.deployed,
        "macs": budget.macs,
        "weight_bytes": budget.memory.weights,
        "inference_peak": budget.memory.inference_peak,
        "int8_peak": budget.memory.int8_peak,
    }


@cache
def measured(family: str) -> dict[tuple[int, ...], dict[str, int]]:
    """Every network of a family, made and measured."""
    points = itertools.product(range(1, MOST + 1), repeat=len(NAMES))
    return {
        point: quantities(FAMILIES[family](**dict(zip(NAMES, point, strict=True))), IMAGE)
        for point in points
    }


def criterion(order: str | Mapping[str, int], widths: tuple[int, ...], macs: int) -> float:
    """What orders answers, written down once more."""
    if isinstance(order, Mapping):
        away = [(w - order[n]) / order[n] for n, w in zip(NAMES, widths, strict=True)]
        return round(sum(x * x for x in away), 9)
    if order == "even":
        steps = [math.log(b / a) for a, b in itertools.pairwise(widths)]
        return round(sum(x * x for x in steps), 9)
    return macs if order == "fewest macs" else -macs


RANGES = st.one_of(
    st.integers(1, MOST),
    st.builds(
        lambda start, step, count: range(start, min(MOST, start + step * count) + 1, step),
        st.integers(1, 3),
        st.integers(1, 2),
        st.integers(0, 4),
    ),
)
SCALARS = st.sampled_from(
    ["parameters", "trainable_parameters", "deployed_parameters", "macs", "weight_bytes"]
)
ORDERS = st.one_of(
    st.sampled_from(["even", "fewest macs", "most macs"]),
    st.fixed_dictionaries({name: st.integers(1, MOST) for name in NAMES}),
)


@st.composite
def limits(draw: st.DrawFn, of: list[dict[str, int]]) -> dict[str, Any]:
    """Limits on up to three quantities that some networks of a family keep."""
    found: dict[str, Any] = {}
    for name in draw(st.lists(st.sampled_from(sorted(of[0])), max_size=3, unique=True)):
        ends = sorted(draw(st.sampled_from(of))[name] for _ in range(2))
        kinds = [ends[1], (ends[0], None), (None, ends[1]), (ends[0], ends[1])]
        found[name] = draw(st.sampled_from(kinds))
    return found


def within(limit: int | tuple[int | None, int | None], value: int) -> bool:
    low, high = limit if isinstance(limit, tuple) else (None, limit)
    return (low is None or value >= low) and (high is None or value <= high)


def none_is_like_the_others(widths: Mapping[str, int]) -> bool:
    return len(set(widths.values())) == len(widths)


@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=25)
@given(data=st.data())
def test_equals_measuring_every_network(family: str, data: st.DataObject) -> None:
    every = measured(family)
    ranges = {name: data.draw(RANGES, label=name) for name in NAMES}
    quantity = data.draw(SCALARS, label="quantity")
    near = data.draw(st.sampled_from(sorted(every)), label="near")
    goal = max(0, every[near][quantity] + data.draw(st.integers(-3, 3)))
    rules = data.draw(limits(list(every.values())), label="limits")
    order = data.draw(ORDERS, label="order")
    count = data.draw(st.none() | st.integers(1, 8), label="count")
    where = data.draw(st.sampled_from([None, none_is_like_the_others]))

    values = [[r] if isinstance(r, int) else list(r) for r in ranges.values()]
    expected = []
    for widths in itertools.product(*values):
        cost = every[widths]
        if all(within(rule, cost[name]) for name, rule in rules.items()) and (
            where is None or where(dict(zip(NAMES, widths, strict=True)))
        ):
            away = abs(cost[quantity] - goal)
            expected.append((away, criterion(order, widths, cost["macs"]), widths))
    expected.sort()
    if count is None:
        expected = [one for one in expected if one[0] == expected[0][0]]

    fits = fit_widths(
        FAMILIES[family],
        ranges,
        IMAGE,
        target={quantity: goal},
        limits=rules,
        order=order,
        count=count,
        where=where,
    )
    assert [tuple(fit.widths.values()) for fit in fits] == [one[2] for one in expected[:count]]
    for fit, (away, said, widths) in zip(fits, expected, strict=False):
        assert fit.quantities == every[widths]
        assert fit.distance == away
        assert abs(fit.criterion) == pytest.approx(abs(said), abs=1e-8)
    assert bool(fits.note) == (not expected or (count is not None and len(expected) < count))


OWN = (8, 12, 16, 12, 15, 20, 22, 16, 10)
MNIST = ("w1", "w2", "w3", "t1", "w4", "w5", "w6", "t2", "last")


def mnist(**widths: int) -> nn.Module:
    w1, w2, w3, t1, w4, w5, w6, t2, last = (widths[name] for name in MNIST)
    return nn.Sequential(
        ConvBNDrop(1, w1, padding=1),
        ConvBNDrop(w1, w2, padding=1),
        ConvBNDrop(w2, w3, padding=1),
        nn.MaxPool2d(2),
        Transition1x1(w3, t1),
        ConvBNDrop(t1, w4, padding=1),
        ConvBNDrop(w4, w5, padding=1),
        ConvBNDrop(w5, w6, padding=1),
        nn.MaxPool2d(2),
        Transition1x1(w6, t2),
        nn.Conv2d(t2, last, 1, bias=False),
        GAPHead(last, 10),
    )


def mnist_parameters(widths: Any) -> Any:
    """Kernels, two for each channel of a batch norm, and the head."""
    w1, w2, w3, t1, w4, w5, w6, t2, last = widths
    kernels = w1 + w1 * w2 + w2 * w3 + t1 * w4 + w4 * w5 + w5 * w6
    ones = w3 * t1 + w6 * t2 + t2 * last
    norms = 2 * (w1 + w2 + w3 + t1 + w4 + w5 + w6 + t2)
    return 9 * kernels + ones + norms + 10 * last + 10


def test_the_reference_network_is_among_those_of_12_000_parameters() -> None:
    near = dict(zip(MNIST, OWN, strict=True))
    ranges = {name: range(width - 1, width + 2) for name, width in near.items()}
    fits = fit_widths(
        mnist, ranges, (1, 28, 28), target={"parameters": 12_000}, order=near, count=None
    )
    exact = {
        widths
        for widths in itertools.product(*ranges.values())
        if mnist_parameters(widths) == 12_000
    }
    assert {tuple(fit.widths.values()) for fit in fits} == exact
    assert len(exact) > 10
    assert fits.best.widths == near
    assert fits.best.criterion == 0
    assert fits.best.quantities["macs"] == 3_774_276


def four(a: int, b: int, c: int, d: int) -> nn.Module:
    """A chain whose costs are easy to write down."""
    return nn.Sequential(
        nn.Conv2d(1, a, 3, padding=1, bias=False),
        nn.Conv2d(a, b, 3, padding=1, bias=False),
        nn.MaxPool2d(2),
        nn.Conv2d(b, c, 3, padding=1, bias=False),
        nn.Conv2d(c, d, 1),
    )


def test_the_order_of_a_hundred_and_sixty_thousand() -> None:
    a, b, c, d = np.indices((20,) * 4).reshape(4, -1) + 3
    parameters = 9 * (a + a * b + b * c) + c * d + d
    macs = 64 * 9 * (a + a * b) + 16 * (9 * b * c + c * d)
    logs = np.log([a, b, c, d])
    even = np.round((np.diff(logs, axis=0) ** 2).sum(0), 9)
    peak = 4 * np.max([64 * (a + b), 64 * b + 16 * b, 16 * (b + c), 16 * (c + d)], axis=0)
    for goal, most_macs, most_peak in ((3_000, 10**9, 10**9), (3_001, 150_000, 8_000)):
        keep = np.flatnonzero((macs <= most_macs) & (peak <= most_peak))
        away = np.abs(parameters[keep] - goal)
        best = keep[np.lexsort((d[keep], c[keep], b[keep], a[keep], even[keep], away))[:25]]
        fits = fit_widths(
            four,
            {name: range(3, 23) for name in "abcd"},
            (1, 8, 8),
            target={"parameters": goal},
            limits={"macs": most_macs, "inference_peak": most_peak},
            count=25,
        )
        found = [tuple(fit.widths.values()) for fit in fits]
        assert found == [(a[i], b[i], c[i], d[i]) for i in best]


SEVEN = tuple(f"w{i}" for i in range(1, 8))


def seven(**widths: int) -> nn.Module:
    layers: list[nn.Module] = []
    before = 1
    for name in SEVEN:
        layers += [nn.Conv2d(before, widths[name], 3, padding=1, bias=False)]
        before = widths[name]
    return nn.Sequential(*layers)


def seven_parameters(widths: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    found: npt.NDArray[np.int64] = 9 * (widths[0] + (widths[:-1] * widths[1:]).sum(0))
    return found


def squared_log_ratios(widths: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    found: npt.NDArray[np.float64] = (np.diff(np.log(widths), axis=0) ** 2).sum(0)
    return found


def test_all_of_seven_widths_at_once() -> None:
    """Every exact answer among 823,543 choices, and no other."""
    every = np.indices((7,) * 7).reshape(7, -1) * 4 + 8
    parameters = seven_parameters(every)
    values, times = np.unique(parameters, return_counts=True)
    goal = int(values[np.flatnonzero((times > 8) & (times < 15) & (values > 9_000))[0]])
    exact = every[:, parameters == goal]
    ranges = {name: range(8, 33, 4) for name in SEVEN}
    fits = fit_widths(seven, ranges, (1, 6, 6), target={"parameters": goal}, count=None)
    assert {tuple(fit.widths.values()) for fit in fits} == set(map(tuple, exact.T.tolist()))
    assert [fit.criterion for fit in fits] == pytest.approx(sorted(squared_log_ratios(exact)))


def test_no_network_of_seven_widths_up_to_64_that_chance_finds_is_better() -> None:
    draw = np.random.default_rng(0)
    some = draw.integers(4, 65, size=(7, 1_000_000))
    some[:, ::2] = draw.integers(12, 20, size=(7, 500_000))  # where the even ones are
    exact = some[:, seven_parameters(some) == 12_006]
    assert exact.shape[1] > 100
    ranges = {name: range(4, 65) for name in SEVEN}
    fits = fit_widths(seven, ranges, (1, 6, 6), target={"parameters": 12_006}, count=5)
    chance = np.unique(exact, axis=1)
    others = np.sort(squared_log_ratios(chance))
    assert [fit.distance for fit in fits] == [0] * 5
    assert all(fit.criterion <= other + 1e-9 for fit, other in zip(fits, others, strict=False))


@dataclass(frozen=True)
class WideAtTheEnd(Rule):
    """The last layer is given at least four channels."""

    title = "the end"
    required = "at least 4"

    def find(self, subject: Subject) -> Finding:
        graph = subject.graph
        width = graph.values[graph.layers[-1].reads[0][0].value].shape[1]
        return self.finding(width >= 4, str(width))


def test_what_breaks_a_rule_is_left_out_and_the_search_goes_on() -> None:
    def fits(count: int, rules: Any = None) -> Fits:
        ranges = {name: range(1, 6) for name in NAMES}
        return fit_widths(
            chain, ranges, IMAGE, target={"parameters": 150}, count=count, rules=rules
        )

    every = [fit.widths for fit in fits(125)]
    assert len(every) == 125
    found = [fit.widths for fit in fits(6, WideAtTheEnd())]
    assert found == [widths for widths in every if widths["c"] >= 4][:6]
    on_a_run = Epochs(exactly=19)  # which no network can keep or break
    assert [fit.widths for fit in fits(6, [WideAtTheEnd(), on_a_run])] == found


def test_rules_on_costs_bound_the_search() -> None:
    every = measured("chain")
    ranges = {name: range(1, 6) for name in NAMES}
    rules = [Parameters(near=150, within=20), Macs(at_most=6_000) & WeightBytes(at_least=500)]
    fits = fit_widths(chain, ranges, IMAGE, target={"macs": 10**9}, count=None, rules=rules)
    kept = [
        cost["macs"]
        for cost in every.values()
        if 130 <= cost["parameters"] <= 170
        and cost["macs"] <= 6_000
        and cost["weight_bytes"] >= 500
    ]
    assert kept
    assert {fit.quantities["macs"] for fit in fits} == {max(kept)}
    assert fits.limits["parameters"] == (130, 170)


@pytest.mark.parametrize("quantity", ["macs", "weight_bytes"])
def test_what_the_search_counts_in_is_what_all_values_differ_by(quantity: str) -> None:
    """Targets between two values that can be met, on both sides of them, and beyond all."""
    every = measured("chain")
    ranges = {name: range(1, 6) for name in NAMES}
    for goal in (0, 10**12, 5_001, 7_777):
        fits = fit_widths(chain, ranges, IMAGE, target={quantity: goal}, count=1)
        assert fits.best.distance == min(abs(cost[quantity] - goal) for cost in every.values())
