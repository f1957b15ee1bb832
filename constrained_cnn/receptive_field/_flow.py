"""Carry fields through a graph: from the input to every value, axis by axis. Without torch."""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction

from constrained_cnn.errors import InvalidInputError
from constrained_cnn.graph import (
    AxisRead,
    Border,
    Graph,
    Layer,
    Read,
    Resample,
    Segment,
    Taps,
    Window,
)
from constrained_cnn.graph._reads import By
from constrained_cnn.receptive_field._axis import AxisField
from constrained_cnn.receptive_field._digits import Digit, Field, Spot
from constrained_cnn.receptive_field._positions import PositionField

_MOST_UNITS = 20_000


@dataclass(frozen=True)
class Place:
    """What the units of a value see of one axis of the image.

    Attributes:
        axis: The value's axis whose units stand at places of it; None where there is none.
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
Spots = tuple[Spot, ...]


def places(graph: Graph) -> list[Places]:
    """Return, for each value of the graph, its place along each axis of the image."""
    of_image = graph.values[graph.inputs[0]]
    image, image_axes = of_image.shape, of_image.image_axes
    start = AxisField()
    found: list[Spots] = [()] * len(graph.values)
    found[graph.inputs[0]] = tuple(
        Spot((Digit(axis, 1, image[axis]),), start, start, start, length=image[axis])
        for axis in image_axes
    )
    for layer in graph.layers:
        for output, reads in zip(layer.outputs, layer.reads, strict=True):
            shape = graph.values[output].shape
            # What depends on another input alone has no place in this image.
            placed = [read for read in reads if found[read.value]]
            if placed:
                found[output] = tuple(
                    _meet(
                        layer,
                        [_follow(layer, graph, found, read, i, shape) for read in placed],
                        shape,
                    )
                    for i in range(len(image_axes))
                )
    return [_settled(spots, value.shape) for spots, value in zip(found, graph.values, strict=True)]


def _settled(spots: Spots, shape: Sequence[int]) -> Places:
    """Return the places of a value: what units see along the axis that is the image's.

    That is the axis that counts the units, or their most significant digit, or positions of all
    axes of the image together, as tokens do. Where an axis holds channels too there is none.
    """
    together: dict[int, int] = {}
    for digit in {digit for spot in spots for digit in spot.digits}:
        together[digit.axis] = together.get(digit.axis, 1) * digit.count
    return tuple(_place(spot, shape, together) for spot in spots)


def _place(spot: Spot, shape: Sequence[int], together: Mapping[int, int]) -> Place:
    telling = spot.without_idle().digits
    if not telling:
        return Place(None, spot.field, spot.local, spot.stage, spot.problem)
    axis = telling[0].axis
    if telling[0] != Digit(axis, 1, shape[axis]) and together[axis] != shape[axis]:
        return Place(None, None, None, None, spot.problem)
    spot = spot.along(axis, shape[axis])
    return Place(axis, spot.field, spot.local, spot.stage, spot.problem)


@dataclass(frozen=True)
class _Arrival:
    """A spot as one read of a layer brings it.

    Attributes:
        spot: The spot, its digits on the axes of the layer's output.
        aside: Whether it only gates what another read brings.
        fills: The axes of the output of which it fills a part, and how.
    """

    spot: Spot
    aside: bool
    fills: Mapping[int, By] = field(default_factory=dict)


def _follow(
    layer: Layer, graph: Graph, found: Sequence[Spots], read: Read, image: int, shape: Sequence[int]
) -> _Arrival:
    """Return what a read makes of a spot; ``shape`` is that of the output."""
    spot, before = found[read.value][image], graph.values[read.value].shape
    fills = {
        axis: by.by
        for axis, by in enumerate(read.axes)
        if by is not None and isinstance(by.by, Segment | Taps)
    }
    if not spot.digits:  # where all of the axis went into it before it can only scale or shift
        return _Arrival(spot, read.gate or spot.field is None, {} if read.gate else fills)
    if before == shape and read == _unit_by_unit(read.value, len(shape), read.gate):
        return _Arrival(spot, read.gate)
    for axis, unit in read.picks:
        spot = spot.picked(axis, unit)
    for patch in read.patches:
        number = Digit(patch.axis, patch.step, patch.count)
        if patch.window.transposed:
            if spot.digits == (number,):
                along = Digit(patch.into, 1, shape[patch.into])
                return _Arrival(_moved(spot, patch.window, along), read.gate)
        elif any(digit.axis == patch.axis for digit in spot.digits):
            spot = spot.along(patch.axis, before[patch.axis])
            along = replace(number, axis=patch.into)
            return _Arrival(_moved(spot, patch.window, along), read.gate)
    if read.reshapes and spot.units > 1:
        moved = spot.reshaped(before, shape)
        where = f"{layer.name} cuts the image where its units are not"
        return _Arrival(moved or _unknown(spot, where), read.gate)
    to = {by.axis: (axis, by.by) for axis, by in enumerate(read.axes) if by is not None}
    gone = {digit.axis for digit in spot.digits if digit.axis not in to}
    if gone.intersection(read.unplaced) and spot.field is not None:
        differs = f"{layer.name} reads along the image in a way that differs from unit to unit"
        unsaid = f"nobody has described what {layer.name} reads"
        return _Arrival(_unknown(spot, differs if layer.known else unsaid), read.gate)
    spot = spot.without(lambda digit: digit.axis in gone)
    return _Arrival(_slide(layer, spot, to, before, shape), read.gate, fills)


@functools.cache
def _unit_by_unit(value: int, axes: int, gate: bool) -> Read:
    return Read(value, tuple(map(AxisRead, range(axes))), gate)


def _slide(
    layer: Layer,
    spot: Spot,
    to: Mapping[int, tuple[int, By | None]],
    before: Sequence[int],
    after: Sequence[int],
) -> Spot:
    """Return a spot whose digits are all on axes that stay or that something slides along.

    Args:
        layer: The layer that reads it.
        spot: The spot.
        to: For each axis of the input the one of the output, and what slides.
        before: Shape of the input.
        after: Shape of the output.
    """
    slid = {digit.axis for digit in spot.digits if to[digit.axis][1] is not None}
    slid |= {d.axis for d in spot.digits if before[d.axis] != after[to[d.axis][0]]}
    rest = {digit.axis for digit in spot.digits} - slid
    if spot.field is None and len(slid) > (not rest):  # wherever it goes, it sees everything
        outs = dict.fromkeys(to[digit.axis][0] for digit in spot.digits)
        return Spot(tuple(Digit(out, 1, after[out]) for out in outs), length=spot.length)
    if rest and slid and spot.units > _MOST_UNITS:
        return _unknown(spot, f"{layer.name} works inside windows, too many to be listed")
    if not rest and len(slid) > 1:
        return _unknown(spot, f"{layer.name} slides over parts of one axis of the image")
    names = {axis: out for axis, (out, _) in to.items()}
    for axis in slid:
        out, by = to[axis]
        along = Digit(-1 - out, 1, after[out])  # below 0, so that it is no axis of the input
        names[along.axis] = out
        if rest:
            taps = _listed(by) if by is not None else lambda unit: [unit]
            spot = spot.windowed(axis, before[axis], taps, along)
        else:
            spot = _moved(spot.along(axis, before[axis]), by, along)
    return replace(spot, digits=tuple(replace(d, axis=names[d.axis]) for d in spot.digits))


def _unknown(spot: Spot, why: str) -> Spot:
    return Spot(problem=spot.problem or why, length=spot.length)


def _moved(spot: Spot, by: By | None, along: Digit) -> Spot:
    """Return what is seen by the units of the output that read those of a spot."""

    def step(field: Field) -> Field:
        if by is None:
            return field
        if isinstance(field, AxisField):
            if isinstance(by, Border):
                return field.window(1, padding=by.before)
            if isinstance(by, Window) or (isinstance(by, Resample) and _is_regular(by, along)):
                return _step(by)(field)
        return PositionField.reading(field, _listed(by), along.count)

    return spot.map(step, [along])


def _is_regular(by: Resample, along: Digit) -> bool:
    """Whether what is read repeats within the units there are, so that phases say more than a list.

    Factors such as 1.4142 repeat after thousands.
    """
    return by.slope.denominator <= max(along.count, 16)


def _step(by: Window | Resample) -> Callable[[AxisField], AxisField]:
    if isinstance(by, Resample):
        return lambda field: field.resampled(by.slope, _taps(by))
    move = AxisField.transposed if by.transposed else AxisField.window
    return lambda field: move(
        field, by.kernel, stride=by.stride, padding=by.padding, dilation=by.dilation
    )


def _listed(by: By) -> Callable[[int], Sequence[int]]:
    """Return which units a unit reads."""
    if isinstance(by, Resample):
        return _taps(by)
    if isinstance(by, Taps):
        return lambda unit: by.units[unit]
    if isinstance(by, Border):
        return lambda unit: [_repeated(unit - by.before, by)]
    if isinstance(by, Segment):
        return lambda unit: range(max(unit - by.start, 0), min(unit - by.start + 1, by.length))

    def taps(unit: int) -> Sequence[int]:
        if not by.transposed:
            first = unit * by.stride - by.padding
            return range(first, first + by.kernel * by.dilation, by.dilation)
        reach = [unit + by.padding - tap * by.dilation for tap in range(by.kernel)]
        return [tap // by.stride for tap in reach if tap % by.stride == 0]

    return taps


def _repeated(unit: int, by: Border) -> int:
    """Return the unit that stands at a place within or around them."""
    if by.kind == "replicate":
        return min(max(unit, 0), by.length - 1)
    return by.length - 1 - abs(by.length - 1 - abs(unit))


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
            return lambda unit: range(math.floor(unit * slope), math.ceil((unit + 1) * slope))
        case "cubic":

            def cubic(unit: int) -> Sequence[int]:
                whole = math.floor(position(unit))
                return [whole] if whole == position(unit) else range(whole - 1, whole + 3)

            return cubic
        case kind:
            raise InvalidInputError(f"kind={kind!r}: is no way to resample that is known")


def _meet(layer: Layer, arrivals: Sequence[_Arrival], shape: Sequence[int]) -> Spot:
    """Return the spot of an output of this shape from all that it reads."""
    if len(arrivals) == 1 and arrivals[0].spot.digits and not arrivals[0].aside:
        return _staged(layer, arrivals[0].spot)
    arrivals = _on_one_axis(arrivals, shape)
    bearing = [arrival for arrival in arrivals if arrival.spot.digits]
    most = max(bearing, key=lambda a: (not a.aside, len(a.spot.digits)), default=None)
    digits = most.spot.digits if most else ()
    arrivals = [_in_its_part(arrival, digits, shape) for arrival in arrivals]
    brought = [_brought(arrival.spot, digits) for arrival in arrivals]
    problem = next((spot.problem for spot in brought if spot.problem), "")
    length = max(spot.length for spot in brought)
    if problem and not digits:
        return Spot(problem=problem, length=length)
    main = [spot for spot, one in zip(brought, arrivals, strict=True) if not one.aside]
    units = math.prod(digit.count for digit in digits)
    field = _union([spot.field for spot in brought], units)
    local = _union([spot.local for spot in main], units)
    stage = _union([spot.stage for spot in main], units)
    if isinstance(stage, PositionField):  # of two branches only one went through a pool
        stage = None
    return _staged(layer, Spot(digits, field, local, stage, problem, length))


def _staged(layer: Layer, spot: Spot) -> Spot:
    """Return a spot whose stage begins anew behind a pool."""
    begins = spot.stage is not None and layer.begins_stage
    return replace(spot, stage=AxisField()) if begins else spot


def _on_one_axis(arrivals: Sequence[_Arrival], shape: Sequence[int]) -> Sequence[_Arrival]:
    """Return spots that lie along one axis in different digits as what its index sees."""
    kinds = {arrival.spot.digits for arrival in arrivals if arrival.spot.digits}
    axes = {digit.axis for digits in kinds for digit in digits}
    if len(kinds) < 2 or len(axes) > 1:
        return arrivals
    (axis,) = axes
    return [replace(one, spot=one.spot.along(axis, shape[axis])) for one in arrivals]


def _in_its_part(arrival: _Arrival, digits: tuple[Digit, ...], shape: Sequence[int]) -> _Arrival:
    """Return what fills but a part of an axis as what is seen there, and nothing elsewhere."""
    spot = arrival.spot
    if spot.problem:
        return arrival
    for digit in digits:
        by = arrival.fills.get(digit.axis)
        alone = digit == Digit(digit.axis, 1, shape[digit.axis])
        if by is None or not alone or any(d.axis == digit.axis for d in spot.digits):
            continue
        filled = [bool(_listed(by)(index)) for index in range(digit.count)]
        wanted = tuple(one for one in digits if one == digit or one in spot.digits)
        spread = spot.everywhere().spread_over(wanted)
        if spread is not None and not all(filled):
            aside = arrival.aside and spot.field is not None
            return _Arrival(spread.where(wanted.index(digit), filled), aside)
    return arrival


def _brought(spot: Spot, digits: tuple[Digit, ...]) -> Spot:
    """Return a spot for units with these digits; on other axes its units are taken together."""
    axes = {digit.axis for digit in digits}
    spot = spot.without(lambda digit: digit.axis not in axes)
    if not spot.digits and spot.field is None:
        return spot
    return spot.spread_over(digits) or _unknown(spot, "parts that are cut in other ways are joined")


def _union(fields: Sequence[Field | None], units: int) -> Field | None:
    """Return the union; None, which is everything, if any of them is, or there are none."""
    different = list(dict.fromkeys(fields))
    known = [field for field in different if field is not None]
    if not known or len(known) < len(different):
        return None
    if len(known) == 1:
        return known[0]
    regular = [field for field in known if isinstance(field, AxisField)]
    if len(regular) < len(known) or len({field.jump for field in regular}) > 1:
        return PositionField.joining(known, units)
    return regular[0].union(*regular[1:])
