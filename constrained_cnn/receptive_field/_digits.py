"""Where a value's index holds the number of a unit, when axes are cut and merged. Without torch.

A reshape that cuts an axis of 6 units into 3 by 2, or merges rows and columns into tokens, moves no
unit: its number is only written in other digits. While they are followed, a field stays exact
through windows of attention, patches, tokens and shuffles.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

from constrained_cnn.receptive_field._axis import AxisField, Span, hull_of
from constrained_cnn.receptive_field._positions import PositionField

Field = AxisField | PositionField


@dataclass(frozen=True)
class Digit:
    """A digit of a unit's number.

    Attributes:
        axis: The value's axis whose index holds it.
        step: The digit is ``index // step % count``.
        count: How many values it takes.
    """

    axis: int
    step: int
    count: int


@dataclass(frozen=True)
class Spot:
    """What the units of a value see of one axis of the image.

    Attributes:
        digits: The digits of a unit's number, the most significant first; none where the axis is
            gone, or was read whole, or one unit of it was picked.
        field: What a unit can see, by its number; None for all of the axis, whatever its length.
        local: The same, scales and gates left out.
        stage: The same, counted from the last pool; None too where branches differ in it.
        problem: Why it cannot be said; empty if it can.
        length: Positions of the image's axis.
    """

    digits: tuple[Digit, ...] = ()
    field: Field | None = None
    local: Field | None = None
    stage: Field | None = None
    problem: str = ""
    length: int = 0

    @property
    def units(self) -> int:
        """Number of units."""
        return math.prod(digit.count for digit in self.digits)

    def map(self, change: Callable[[Field], Field], digits: Sequence[Digit]) -> "Spot":
        """Return the spot with each field changed."""
        fields = (self.field, self.local, self.stage)  # most often one and the same
        made: dict[int, Field | None] = {id(None): None}
        for one in fields:
            if one is not None and id(one) not in made:
                made[id(one)] = change(one)
        field, local, stage = (made[id(one)] for one in fields)
        return Spot(tuple(digits), field, local, stage, self.problem, self.length)

    def is_along(self, axis: int, size: int) -> bool:
        """Whether the index along an axis of that size is the unit's number."""
        return self.digits == (Digit(axis, 1, size),)

    def without(self, gone: Callable[[Digit], bool]) -> "Spot":
        """Return what is seen by the units that differ in these digits alone, taken together."""
        spot = self
        for digit in [digit for digit in self.digits if gone(digit)]:
            spot = spot._together(spot.digits.index(digit))
        return spot

    def _together(self, place: int) -> "Spot":
        rest = (*self.digits[:place], *self.digits[place + 1 :])
        count = self.digits[place].count
        if not rest:
            return self._whole(count)
        low = math.prod(digit.count for digit in self.digits[place + 1 :])

        def join(field: Field) -> Field:
            if isinstance(field, AxisField) and low == 1:
                return field.window(count, stride=count)
            if isinstance(field, AxisField) and place == 0:
                return field.window(count, dilation=low)

            def taps(unit: int) -> Sequence[int]:
                first = unit // low * low * count + unit % low
                return range(first, first + low * count, low)

            return PositionField.reading(field, taps, math.prod(d.count for d in rest))

        return self.map(join, rest)

    def picked(self, axis: int, index: int) -> "Spot":
        """Return what is seen by the units at one index of an axis.

        Without digits that are left it is one unit, and its field a list of one.
        """
        spot = self
        for digit in [digit for digit in self.digits if digit.axis == axis]:
            spot = spot._at(spot.digits.index(digit), index // digit.step % digit.count)
        return spot

    def _at(self, place: int, value: int) -> "Spot":
        rest = (*self.digits[:place], *self.digits[place + 1 :])
        count = self.digits[place].count
        low = math.prod(digit.count for digit in self.digits[place + 1 :])

        def read(field: Field) -> Field:
            if isinstance(field, AxisField) and rest and low == 1:
                return field.window(1, stride=count, padding=-value)
            if isinstance(field, AxisField) and rest and place == 0:
                return field.window(1, padding=-value * low)

            def taps(unit: int) -> Sequence[int]:
                return [unit // low * low * count + value * low + unit % low]

            return PositionField.reading(field, taps, math.prod(d.count for d in rest))

        return self.map(read, rest)

    def _whole(self, count: int) -> "Spot":
        """Return what all units together see: everything, or the part they were cut from.

        It counts as everything if no further unit would fit behind the last.
        """
        if self.field is None:
            return Spot(problem=self.problem, length=self.length)
        hull = _hull(self.field, count)
        step = abs(self.field.jump) if self.field.jump else Fraction(1)
        if hull is not None and hull[0] < step and hull[1] > self.length - 1 - step:
            return Spot(problem=self.problem, length=self.length)
        return self.map(lambda field: PositionField((_hull(field, count),)), ())

    def windowed(
        self, axis: int, size: int, taps: Callable[[int], Sequence[int]], along: Digit
    ) -> "Spot":
        """Return what is seen by units that read some along one axis, each in its own place else.

        Args:
            axis: The axis; there are digits on others.
            size: Its length.
            taps: Which units along it a unit reads; those outside are padding.
            along: The digit of the result that counts the units along it.
        """
        place = sum(digit.axis != axis for digit in self.digits[: self._first_on(axis)])
        kept = [digit for digit in self.digits if digit.axis != axis]
        digits = [*kept[:place], along, *kept[place:]]

        def number(values: Sequence[int], index: int) -> int:
            others, unit = iter(values), 0
            for digit in self.digits:
                here = index // digit.step % digit.count if digit.axis == axis else next(others)
                unit = unit * digit.count + here
            return unit

        def reads(unit: int) -> list[int]:
            values = []
            for digit in reversed(digits):
                unit, value = divmod(unit, digit.count)
                values.append(value)
            values.reverse()
            index = values.pop(place)
            return [number(values, tap) for tap in taps(index) if 0 <= tap < size]

        units = math.prod(digit.count for digit in digits)
        return self.map(lambda field: PositionField.reading(field, reads, units), digits)

    def _first_on(self, axis: int) -> int:
        return next(i for i, digit in enumerate(self.digits) if digit.axis == axis)

    def everywhere(self) -> "Spot":
        """Return what sees everything as a list of units that do."""
        if self.field is not None:
            return self
        units = PositionField(((0, self.length - 1),) * self.units)
        return replace(self, field=units, local=self.local or units)

    def where(self, place: int, holds: Sequence[bool]) -> "Spot":
        """Return the same for units whose digit at a place has a value that holds; none else."""
        low = math.prod(digit.count for digit in self.digits[place + 1 :])

        def read(field: Field) -> Field:
            return PositionField.reading(
                field, lambda unit: [unit] if holds[unit // low % len(holds)] else [], self.units
            )

        return self.map(read, self.digits)

    def along(self, axis: int, size: int) -> "Spot":
        """Return what the units of one axis see, digits on other axes taken together."""
        spot = self.without(lambda digit: digit.axis != axis)
        if not spot.digits or spot.is_along(axis, size):
            return spot
        digits = spot.digits

        def number(index: int) -> int:
            unit = 0
            for digit in digits:
                unit = unit * digit.count + index // digit.step % digit.count
            return unit

        def read(field: Field) -> Field:
            step = digits[0].step
            if isinstance(field, AxisField) and size == step * spot.units and len(digits) == 1:
                return field.resampled(Fraction(1, step), lambda index: [index // step])
            return PositionField.reading(field, lambda index: [number(index)], size)

        return spot.map(read, [Digit(axis, 1, size)])

    def spread_over(self, digits: tuple[Digit, ...]) -> "Spot | None":
        """Return the same for units with more digits; None if these are not among them."""
        own = [digits.index(digit) if digit in digits else -1 for digit in self.digits]
        if -1 in own or own != sorted(own):
            return None
        if len(own) == len(digits):
            return self
        counts = [digit.count for digit in digits]
        low = math.prod(counts[len(own) :])
        total = math.prod(counts)

        def number(unit: int) -> int:
            found = 0
            for place in own:
                value = unit // math.prod(counts[place + 1 :]) % counts[place]
                found = found * counts[place] + value
            return found

        def read(field: Field) -> Field:
            if isinstance(field, AxisField) and own == list(range(len(own))):
                return field.resampled(Fraction(1, low), lambda unit: [unit // low])
            return PositionField.reading(field, lambda unit: [number(unit)], total)

        return self.map(read, digits)

    def reshaped(self, before: Sequence[int], after: Sequence[int]) -> "Spot | None":
        """Return the same in a tensor whose elements keep their order; None if a digit is cut."""
        found: list[Digit] = []
        starts = _strides(after)
        for digit in self.digits:
            first = _strides(before)[digit.axis] * digit.step
            parts = [
                _overlap(first, digit.count, axis, step, size)
                for axis, (step, size) in enumerate(zip(starts, after, strict=True))
            ]
            held = [part for part in parts if part is not None]
            if math.prod(part.count for part in held) != digit.count:
                return None
            found += held
        return replace(self, digits=_joined(found))

    def without_idle(self) -> "Spot":
        """Return the same without digits on which nothing that is listed depends.

        A number that was read through a list has lost its digits; here they are found again.
        """
        spot = self
        listed = [field for field in (self.field, self.local, self.stage) if field is not None]
        if len(self.digits) < 2 or not all(isinstance(field, PositionField) for field in listed):
            return spot
        for digit in self.digits if listed else ():
            smaller = spot._at(spot.digits.index(digit), 0)
            spread = smaller.spread_over(spot.digits) if smaller.digits else None
            if spread is not None and replace(spread, problem=spot.problem) == spot:
                spot = smaller
        return spot


def _hull(field: Field, count: int) -> Span | None:
    """Return what so many units see together."""
    if isinstance(field, PositionField):
        return hull_of(field.spans[:count])
    # Each phase moves one way: its outermost units are in the first and the last period.
    period = min(field.period, count)
    ends = (*range(period), *range(count - period, count))
    return hull_of([field.interval(unit) for unit in ends])


def _strides(shape: Sequence[int]) -> list[int]:
    """Return by how many elements an axis's neighbours lie apart.

    Examples:
        >>> _strides((1, 3, 4))
        [12, 4, 1]
    """
    return [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]


def _overlap(first: int, count: int, axis: int, step: int, size: int) -> Digit | None:
    """Return the part of a digit of the element's number that an axis holds."""
    low, high = max(first, step), min(first * count, step * size)
    # An axis that ends within a round of the digit would start it anew elsewhere.
    if low >= high or low % first or high % low or low % step or (step * size) % high:
        return None
    return Digit(axis, low // step, high // low)


def _joined(digits: Sequence[Digit]) -> tuple[Digit, ...]:
    """Return neighbouring digits of one axis as one."""
    found: list[Digit] = []
    for digit in digits:
        last = found[-1] if found else None
        if last and last.axis == digit.axis and last.step == digit.step * digit.count:
            found[-1] = Digit(digit.axis, digit.step, last.count * digit.count)
        else:
            found.append(digit)
    return tuple(found)
