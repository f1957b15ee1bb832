"""What a network costs as a function of its widths, recovered from traces and checked."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from constrained_cnn.budget import count_parameters, memory_timeline
from constrained_cnn.errors import InvalidInputError, TracingError, reason_of
from constrained_cnn.graph import Graph
from constrained_cnn.sizing._polynomial import Polynomial, interpolate
from constrained_cnn.sizing._space import Point, Space, count_exponents, exponents
from constrained_cnn.tracing import trace
from constrained_cnn.tracing._inputs import BatchAxis


def _macs(graph: Graph) -> int:
    return sum(one.work.macs for one in (*graph.layers, *graph.constants) if one.work is not None)


# A quantity is the greatest of its parts: of one number, or of the bytes at each operation.
QUANTITIES: Mapping[str, Callable[[Graph], tuple[int, ...]]] = {
    "parameters": lambda graph: (count_parameters(graph).total,),
    "trainable_parameters": lambda graph: (count_parameters(graph).trainable,),
    "deployed_parameters": lambda graph: (count_parameters(graph).deployed,),
    "macs": lambda graph: (_macs(graph),),
    "weight_bytes": lambda graph: (sum(weight.bytes for weight in graph.weights),),
    "inference_peak": lambda graph: memory_timeline(graph).live,
    "int8_peak": lambda graph: (
        memory_timeline(graph, elements="int8", folded=True, fused=True).live
    ),
}
PEAKS = ("inference_peak", "int8_peak")

MOST_TRACES = 500
_CHECKS = 6


@dataclass(frozen=True)
class Cost:
    """A quantity as a function of the widths: the greatest of some polynomials.

    Attributes:
        name: Its name.
        parts: The polynomials.
    """

    name: str
    parts: tuple[Polynomial, ...]

    def __call__(self, point: Point) -> int:
        """Return what it is at a point."""
        return max((part(point) for part in self.parts), default=0)

    @property
    def rising(self) -> bool:
        """Whether it is clear that it never falls where a width grows."""
        return all(part.rising for part in self.parts)


class Factory:
    """Makes the network of a point and measures it, once for each point."""

    def __init__(
        self,
        make: Callable[..., nn.Module],
        space: Space,
        input_shape: Sequence[int] | None,
        inputs: Sequence[Any] | Mapping[str, Any] | None,
        batch_axis: BatchAxis = "auto",
    ) -> None:
        check_signature(make, space)
        self.space = space
        self._graphs: dict[Point, Graph] = {}
        self._measured: dict[Point, dict[str, tuple[int, ...]]] = {}
        self.traces = 0
        self._make = make
        self._trace = partial(trace, input_shape=input_shape, inputs=inputs, batch_axis=batch_axis)
        self._layers: tuple[Point, list[str]] | None = None

    def build(self, point: Point) -> Graph:
        """Make the network of a point and return its graph."""
        model = self._model(point)
        self.traces += 1
        try:
            graph = self._trace(model)
        except TracingError as error:
            raise TracingError(f"at widths {self.space.say(point)}: {error}") from error
        self._check_layers(point, [layer.name for layer in graph.layers])
        self._graphs[point], self._measured[point] = graph, {}
        return graph

    def measure(self, point: Point, name: str) -> tuple[int, ...]:
        """Return the parts of a quantity at a point."""
        if point not in self._graphs:
            self.build(point)
        known = self._measured[point]
        if name not in known:
            known[name] = QUANTITIES[name](self._graphs[point])
        return known[name]

    def totals(self, point: Point) -> dict[str, int]:
        """Return every quantity at a point."""
        return {name: max(self.measure(point, name), default=0) for name in QUANTITIES}

    def layer(self, part: int) -> str:
        """Return the name of an operation."""
        return "" if self._layers is None else self._layers[1][part]

    def _model(self, point: Point) -> nn.Module:
        try:
            with torch.random.fork_rng(devices=[]):  # the caller's seeds are the caller's
                model = self._make(**self.space.widths(point))
        except Exception as error:
            raise InvalidInputError(
                f"make: raised {type(error).__name__} at widths {self.space.say(point)}: "
                f"{reason_of(error)}; take ranges in which every network can be made"
            ) from error
        if not isinstance(model, nn.Module):
            raise InvalidInputError(
                f"make={_name(self._make)}: must give a torch.nn.Module, and gave a "
                f"{type(model).__name__}"
            )
        return model

    def _check_layers(self, point: Point, layers: list[str]) -> None:
        """Refuse a network that is another one at other widths."""
        if self._layers is None:
            self._layers = point, layers
        first, known = self._layers
        if layers == known:
            return
        pairs = zip([*known, "nothing"], [*layers, "nothing"], strict=False)
        old, new = next((a, b) for a, b in pairs if a != b)
        raise InvalidInputError(
            f"make={_name(self._make)}: must give the same operations at all widths, and runs "
            f"{old} at {self.space.say(first)} but {new} in its place at {self.space.say(point)}; "
            "take ranges in which the network keeps its form"
        )


def check_signature(make: Callable[..., nn.Module], space: Space) -> None:
    """Refuse a factory that does not take these widths."""
    if isinstance(make, nn.Module) or not callable(make):
        raise InvalidInputError(
            f"make={type(make).__name__}: must be a function that takes the widths by name and "
            "gives a network"
        )
    try:
        signature = inspect.signature(make)
    except (TypeError, ValueError):  # what is written in C need not have one
        return
    try:
        signature.bind(**space.widths(space.top))
    except TypeError as error:
        raise InvalidInputError(
            f"widths={list(space.names)}: must be what make takes, {_name(make)}{signature}, and "
            f"all that it needs ({error})"
        ) from error


def _name(make: Callable[..., nn.Module]) -> str:
    return getattr(make, "__name__", type(make).__name__)


def recover_costs(factory: Factory, names: Sequence[str]) -> dict[str, Cost]:
    """Return quantities as functions of the widths, checked all over the space.

    Raises:
        InvalidInputError: If one is no polynomial of degree 3 or less, or cannot be told from a
            reasonable number of traces.
        TracingError: If a network cannot be traced.
    """
    sizes = factory.space.sizes
    if count_exponents(2, sizes) > MOST_TRACES:
        raise InvalidInputError(
            f"widths: {sum(size > 1 for size in sizes)} widths to choose take more than "
            f"{MOST_TRACES} traces; fix some of them, or let several layers share one"
        )
    costs = _recover(factory, names, 2)
    wrong = _first_wrong(factory, costs)
    if wrong is None:
        return costs
    bent = _bent(factory, names)
    if bent:
        raise InvalidInputError(f"{wrong}; look at {bent} first")
    if count_exponents(3, sizes) > MOST_TRACES:
        raise InvalidInputError(wrong)
    costs = _recover(factory, names, 3)
    wrong = _first_wrong(factory, costs)
    if wrong is not None:
        raise InvalidInputError(wrong)
    return costs


def _bent(factory: Factory, names: Sequence[str]) -> str:
    """Return the names of widths along which alone a quantity is no polynomial of degree 3."""
    sizes = factory.space.sizes
    found = []
    for axis, size in enumerate(sizes):
        if size > 4:
            points = [tuple(t * (i == axis) for i in range(len(sizes))) for t in range(5)]
            for name in names:
                rows = zip(*(factory.measure(point, name) for point in points), strict=True)
                if any(4 * d - 6 * c + 4 * b - a != e for a, b, c, d, e in rows):
                    found.append(factory.space.names[axis])
                    break
    return ", ".join(found)


def _recover(factory: Factory, names: Sequence[str], degree: int) -> dict[str, Cost]:
    points = exponents(degree, factory.space.sizes)
    costs = {}
    for name in names:
        rows = zip(*(factory.measure(point, name) for point in points), strict=True)
        parts = [interpolate(dict(zip(points, row, strict=True))) for row in rows]
        costs[name] = Cost(name, tuple(parts))
    return costs


def _first_wrong(factory: Factory, costs: Mapping[str, Cost]) -> str | None:
    """Return what is wrong at the first point where a prediction is not the measurement."""
    for point in factory.space.some(_CHECKS):
        wrong = say_wrong(factory, costs, point)
        if wrong is not None:
            return wrong
    return None


def say_wrong(factory: Factory, costs: Mapping[str, Cost], point: Point) -> str | None:
    """Return what a prediction says otherwise than the measurement at a point; None if nothing."""
    for name, cost in costs.items():
        measured = factory.measure(point, name)
        for i, (part, value) in enumerate(zip(cost.parts, measured, strict=True)):
            if part(point) != value:
                place = f" at {factory.layer(i)}" if name in PEAKS else ""
                return (
                    f"make: at widths {factory.space.say(point)} {name}{place} should be "
                    f"{part(point):,}, going by other widths, and measures {value:,}: it is no "
                    "polynomial of the widths. Where the network divides a width, as in w // 4, "
                    "take a range whose start and step are multiples of 4; where it treats some "
                    "widths otherwise, leave them out"
                )
    return None
