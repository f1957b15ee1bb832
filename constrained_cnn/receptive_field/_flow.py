"""Carry fields through a graph: from the input to every value, axis by axis. Without torch."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

from constrained_cnn.errors import InvalidInputError
from constrained_cnn.graph import Graph, Layer, Read, Resample, Window
from constrained_cnn.receptive_field._axis import AxisField

POOLS = tuple(f"{kind}_pool{n}d" for kind in ("max", "avg", "lp") for n in (1, 2, 3))


@dataclass(frozen=True)
class Place:
    """What the units of a value see of one axis of the image.

    Attributes:
        axis: The value's axis that runs along the image's; None where it is gone.
        field: What a unit can see; None for all of the axis, whatever its length.
        local: The same, scales and gates left out: squeeze-excite, norms over positions.
        stage: The same, counted from the last pool; None too where branches differ in it.
        problem: Why it cannot be said; empty if it can.
    """

    axis: int | None
    field: AxisField | None
    local: AxisField | None
    stage: AxisField | None
    problem: str = ""


Places = tuple[Place, ...]


def places(graph: Graph) -> list[Places]:
    """Return, for each value of the graph, its place along each axis of the image."""
    ndim = len(graph.values[graph.inputs[0]].shape)
    start = AxisField()
    found: list[Places | None] = [None] * len(graph.values)
    found[graph.inputs[0]] = tuple(Place(axis, start, start, start) for axis in range(2, ndim))
    for layer in graph.layers:
        for output, reads in zip(layer.outputs, layer.reads, strict=True):
            found[output] = tuple(
                _meet(layer, [_follow(layer, _of(found, read)[image], read) for read in reads])
                for image in range(ndim - 2)
            )
    return [place or () for place in found]


def _of(found: Sequence[Places | None], read: Read) -> Places:
    value = found[read.value]
    assert value is not None  # a graph lists its layers in the order they ran
    return value


@dataclass(frozen=True)
class _Arrival:
    """A place as one read of a layer brings it.

    Attributes:
        place: The place, on the axes of the layer's output.
        aside: Whether it only gates what another read brings.
    """

    place: Place
    aside: bool


def _follow(layer: Layer, place: Place, read: Read) -> _Arrival:
    """Return what a read makes of a place."""
    if place.axis is None:  # all of the axis went into it before: it can only scale or shift
        return _Arrival(place, aside=True)
    for axis, source in enumerate(read.axes):
        if source is not None and source.axis == place.axis:
            moved = _moved(place, source.by)
            return _Arrival(replace(moved, axis=axis), read.gate)
    if place.axis in read.unplaced and place.field is not None:
        problem = place.problem or (
            f"{layer.name} reads along the image in a way that differs from unit to unit"
        )
        return _Arrival(Place(None, None, None, None, problem), read.gate)
    return _Arrival(Place(None, None, None, None, place.problem), read.gate)


def _moved(place: Place, by: Window | Resample | None) -> Place:
    if by is None:
        return place
    step = _step(by)
    field, local, stage = (
        None if part is None else step(part) for part in (place.field, place.local, place.stage)
    )
    return Place(place.axis, field, local, stage, place.problem)


def _step(by: Window | Resample) -> Callable[[AxisField], AxisField]:
    if isinstance(by, Resample):
        return lambda field: field.resampled(by.slope, _taps(by))
    move = AxisField.transposed if by.transposed else AxisField.window
    return lambda field: move(
        field, by.kernel, stride=by.stride, padding=by.padding, dilation=by.dilation
    )


def _taps(by: Resample) -> Callable[[int], Sequence[int]]:
    """Return which units a unit reads, with a weight that is not 0."""
    slope, half = by.slope, Fraction(1, 2)

    def position(unit: int) -> Fraction:
        return unit * slope if by.aligned else (unit + half) * slope - half

    match by.kind:
        case "nearest":
            return lambda unit: [math.floor(unit * slope)]
        case "nearest-exact":
            return lambda unit: [math.floor((unit + half) * slope)]
        case "linear":
            return lambda unit: [math.floor(position(unit)), math.ceil(position(unit))]
        case "adaptive":
            return lambda unit: [math.floor(unit * slope), math.ceil((unit + 1) * slope) - 1]
        case "cubic":

            def cubic(unit: int) -> Sequence[int]:
                whole = math.floor(position(unit))
                return [whole] if whole == position(unit) else [whole - 1, whole + 2]

            return cubic
        case kind:
            raise InvalidInputError(f"kind={kind!r}: is no way to resample that is known")


def _meet(layer: Layer, arrivals: Sequence[_Arrival]) -> Place:
    """Return the place of an output from all that it reads."""
    axes = [arrival.place.axis for arrival in arrivals if arrival.place.axis is not None]
    axis = axes[0] if axes else None
    if len(set(axes)) > 1:  # unit i of the one axis meets every unit of the other
        arrivals = [replace(arrival, place=_lost(arrival.place, axis)) for arrival in arrivals]
    there = [arrival.place for arrival in arrivals]
    main = [arrival.place for arrival in arrivals if not arrival.aside]
    problem = next((place.problem for place in there if place.problem), "")
    try:
        field = _union([place.field for place in there])
        local = _union([place.local for place in main])
    except InvalidInputError as error:
        field = local = None
        problem = problem or f"{layer.name}: {error}"
    try:
        stage = _union([place.stage for place in main])
    except InvalidInputError:  # of two branches only one went through a pool: there are no stages
        stage = None
    if layer.op in POOLS and stage is not None:
        stage = AxisField()
    return Place(axis, field, local, stage, problem)


def _lost(place: Place, axis: int | None) -> Place:
    """Return what is left of a place for the units of ``axis``: all, unless it lies along it."""
    return place if place.axis == axis else Place(None, None, None, None, place.problem)


def _union(fields: Sequence[AxisField | None]) -> AxisField | None:
    """Return the union; None, which is everything, if any of them is, or there are none."""
    whole: AxisField | None = None
    for field in fields:
        if field is None:
            return None
        whole = field if whole is None else whole.union(field)
    return whole
