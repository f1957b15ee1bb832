"""Carry fields through a graph: from the input to every value, axis by axis. Without torch."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

from constrained_cnn.errors import InvalidInputError
from constrained_cnn.graph import Graph, Layer, Read, Resample, Taps, Window
from constrained_cnn.receptive_field._axis import AxisField
from constrained_cnn.receptive_field._positions import PositionField

Field = AxisField | PositionField
POOLS = tuple(f"{kind}_pool{n}d" for kind in ("max", "avg", "lp") for n in (1, 2, 3))


@dataclass(frozen=True)
class Place:
    """What the units of a value see of one axis of the image.

    Attributes:
        axis: The value's axis that runs along the image's; None where it is gone.
        field: What a unit can see; None for all of the axis, whatever its length. Where it does not
            move with the unit it is listed unit by unit.
        local: The same, scales and gates left out: squeeze-excite, norms over positions.
        stage: The same, counted from the last pool; None too where branches differ in it.
        problem: Why it cannot be said; empty if it can.
    """

    axis: int | None
    field: Field | None
    local: Field | None
    stage: Field | None
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
            shape = graph.values[output].shape
            # What depends on another input alone has no place in this image.
            placed = [(read, found[read.value]) for read in reads if found[read.value]]
            if placed:
                found[output] = tuple(
                    _meet(
                        layer,
                        [_follow(layer, of[image], read, shape) for read, of in placed if of],
                        shape,
                    )
                    for image in range(ndim - 2)
                )
    return [place or () for place in found]


@dataclass(frozen=True)
class _Arrival:
    """A place as one read of a layer brings it.

    Attributes:
        place: The place, on the axes of the layer's output.
        aside: Whether it only gates what another read brings.
    """

    place: Place
    aside: bool


def _follow(layer: Layer, place: Place, read: Read, shape: Sequence[int]) -> _Arrival:
    """Return what a read makes of a place; ``shape`` is that of the output."""
    if place.axis is None:  # all of the axis went into it before: it can only scale or shift
        return _Arrival(place, aside=True)
    for axis, source in enumerate(read.axes):
        if source is not None and source.axis == place.axis:
            moved = _moved(place, source.by, shape[axis])
            return _Arrival(replace(moved, axis=axis), read.gate)
    if place.axis in read.unplaced and place.field is not None:
        problem = place.problem or (
            f"{layer.name} reads along the image in a way that differs from unit to unit"
            if layer.known
            else f"nobody has described what {layer.name} reads"
        )
        return _Arrival(Place(None, None, None, None, problem), read.gate)
    return _Arrival(Place(None, None, None, None, place.problem), read.gate)


def _moved(place: Place, by: Window | Resample | Taps | None, units: int) -> Place:
    if by is None:
        return place

    def step(field: Field | None) -> Field | None:
        if field is None:
            return None
        if isinstance(field, AxisField) and not isinstance(by, Taps):
            return _step(by)(field)
        return PositionField.reading(field, _listed(by), units)

    field, local, stage = map(step, (place.field, place.local, place.stage))
    return Place(place.axis, field, local, stage, place.problem)


def _step(by: Window | Resample) -> Callable[[AxisField], AxisField]:
    if isinstance(by, Resample):
        return lambda field: field.resampled(by.slope, _taps(by))
    move = AxisField.transposed if by.transposed else AxisField.window
    return lambda field: move(
        field, by.kernel, stride=by.stride, padding=by.padding, dilation=by.dilation
    )


def _listed(by: Window | Resample | Taps) -> Callable[[int], Sequence[int]]:
    """Return which units a unit reads."""
    if isinstance(by, Resample):
        return _taps(by)
    if isinstance(by, Taps):
        return lambda unit: by.units[unit]

    def taps(unit: int) -> Sequence[int]:
        if not by.transposed:
            first = unit * by.stride - by.padding
            return range(first, first + by.kernel * by.dilation, by.dilation)
        reach = [unit + by.padding - tap * by.dilation for tap in range(by.kernel)]
        return [tap // by.stride for tap in reach if tap % by.stride == 0]

    return taps


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


def _meet(layer: Layer, arrivals: Sequence[_Arrival], shape: Sequence[int]) -> Place:
    """Return the place of an output of this shape from all that it reads."""
    axes = [arrival.place.axis for arrival in arrivals if arrival.place.axis is not None]
    axis = axes[0] if axes else None
    if len(set(axes)) > 1:  # unit i of the one axis meets every unit of the other
        arrivals = [replace(arrival, place=_lost(arrival.place, axis)) for arrival in arrivals]
    there = [arrival.place for arrival in arrivals]
    main = [arrival.place for arrival in arrivals if not arrival.aside]
    problem = next((place.problem for place in there if place.problem), "")
    units = 0 if axis is None else shape[axis]
    field = _union([place.field for place in there], units)
    local = _union([place.local for place in main], units)
    stage = _union([place.stage for place in main], units)
    if isinstance(stage, PositionField):  # of two branches only one went through a pool
        stage = None
    if layer.op in POOLS and stage is not None:
        stage = AxisField()
    return Place(axis, field, local, stage, problem)


def _lost(place: Place, axis: int | None) -> Place:
    """Return what is left of a place for the units of ``axis``: all, unless it lies along it."""
    return place if place.axis == axis else Place(None, None, None, None, place.problem)


def _union(fields: Sequence[Field | None], units: int) -> Field | None:
    """Return the union; None, which is everything, if any of them is, or there are none."""
    known = [field for field in fields if field is not None]
    if not known or len(known) < len(fields):
        return None
    regular = [field for field in known if isinstance(field, AxisField)]
    if len(regular) < len(known) or len({field.jump for field in regular}) > 1:
        return PositionField.joining(known, units)
    return regular[0].union(*regular[1:])
