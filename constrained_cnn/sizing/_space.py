"""The widths to choose among, without torch."""

import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from constrained_cnn.errors import InvalidInputError, check_integer

# Where in its range each width is, counted from the least; arithmetic is done in these.
Point = tuple[int, ...]


@dataclass(frozen=True)
class Space:
    """Every choice of widths.

    Attributes:
        names: Name of each width, in order.
        ranges: What it may be, from the least up; one value for a fixed one.
    """

    names: tuple[str, ...]
    ranges: tuple[range, ...]

    @property
    def sizes(self) -> tuple[int, ...]:
        """How many values each width has."""
        return tuple(map(len, self.ranges))

    @property
    def top(self) -> Point:
        """The greatest widths."""
        return tuple(size - 1 for size in self.sizes)

    def widths(self, point: Point) -> dict[str, int]:
        """Return the widths at a point, by name."""
        pairs = zip(self.names, self.ranges, point, strict=True)
        return {name: values[at] for name, values, at in pairs}

    def say(self, point: Point) -> str:
        """Return the widths at a point as arguments."""
        return ", ".join(f"{name}={width}" for name, width in self.widths(point).items())

    def level(self) -> Point:
        """Return the point where the widths are as equal as they can be."""
        low, high = max(r[0] for r in self.ranges), min(r[-1] for r in self.ranges)
        middle = (low + high) // 2
        return tuple(
            min(range(len(values)), key=lambda at: abs(values[at] - middle))
            for values in self.ranges
        )

    def some(self, count: int) -> Iterator[Point]:
        """Yield points to check at: the top, the level one, and others all over the space."""
        yield self.top
        yield self.level()
        draw = random.Random(0)
        for _ in range(count):
            yield tuple(draw.randrange(size) for size in self.sizes)


MOST_VALUES = 100_000


def as_space(widths: Mapping[str, range | int]) -> Space:
    """Return the space of widths as a user gives them.

    Raises:
        InvalidInputError: If there are none, or one is no range of positive integers.
    """
    if not isinstance(widths, Mapping) or not widths:
        raise InvalidInputError(
            f"widths={widths!r}: must be a dict of ranges by name, such as "
            '{"first": range(8, 65, 8)}'
        )
    for name in widths:
        if not isinstance(name, str):
            raise InvalidInputError(f"widths: key {name!r} must be the name of a width")
    return Space(tuple(widths), tuple(_range(name, given) for name, given in widths.items()))


def _range(name: str, given: range | int) -> range:
    if not isinstance(given, range):
        try:
            width = check_integer(name, given, minimum=1)
        except InvalidInputError as error:
            raise InvalidInputError(
                f"widths: {name}={given!r}: must be a range, such as range(8, 65, 8), or a "
                "positive integer for a fixed width"
            ) from error
        return range(width, width + 1)
    values = given if given.step > 0 else given[::-1]
    if not values or values[0] < 1:
        rule = "must hold positive widths only" if values else "is empty"
        raise InvalidInputError(
            f"widths: {name}={given!r}: {rule}; range(8, 65, 8) is 8, 16, ... to 64"
        )
    if values[-1] - values[0] >= MOST_VALUES * values.step:  # len() is limited itself
        raise InvalidInputError(
            f"widths: {name}={given!r}: holds more than {MOST_VALUES:,} widths; narrow it"
        )
    return values


def exponents(degree: int, sizes: Sequence[int]) -> list[Point]:
    """Return every exponent of a polynomial of that degree, as far as values can tell.

    They are also the points at which its values determine it.
    """
    found: list[Point] = [(0,) * len(sizes)]
    layer = set(found)
    for _ in range(degree):
        layer = {
            (*point[:i], point[i] + 1, *point[i + 1 :])
            for point in layer
            for i, size in enumerate(sizes)
            if point[i] + 1 < size
        }
        found += sorted(layer)
    return found


def count_exponents(degree: int, sizes: Sequence[int]) -> int:
    """Return at most how many exponents there are, without listing them."""
    free = sum(size > 1 for size in sizes)
    return min(math.comb(free + degree, degree), math.prod(sizes))
