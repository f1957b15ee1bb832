"""Polynomials with integer values, and tables of them. Without torch."""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from constrained_cnn.errors import InvalidInputError
from constrained_cnn.sizing._space import Point, Space

Array = npt.NDArray[np.int64]

MOST_CELLS = 500_000
_MOST_SUM = 2**56


@dataclass(frozen=True, eq=False)
class Factor:
    """A share of a sum, which depends on some of the widths alone.

    Attributes:
        axes: Which widths, in order.
        values: The share for each of their values, one axis for each width.
    """

    axes: tuple[int, ...]
    values: Array


@dataclass(frozen=True)
class Polynomial:
    r"""A polynomial in the places :math:`t` of the widths, as a sum of binomials.

    With :math:`c_a` the coefficients, :math:`p(t) = \sum_a c_a \prod_i \binom{t_i}{a_i}`; these are
    integers wherever the values are.

    Attributes:
        coefficients: Each that is not zero, by its exponents.
    """

    coefficients: Mapping[Point, int]

    def __call__(self, point: Point) -> int:
        """Return the value at a point."""
        return sum(
            coefficient * math.prod(math.comb(t, a) for t, a in zip(point, power, strict=True) if a)
            for power, coefficient in self.coefficients.items()
        )

    @property
    def rising(self) -> bool:
        """Whether it is clear that it never falls where a width grows."""
        return all(c >= 0 for power, c in self.coefficients.items() if any(power))

    @cached_property
    def axes(self) -> tuple[int, ...]:
        """The widths that it depends on."""
        return tuple(sorted({i for power in self.coefficients for i, a in enumerate(power) if a}))

    def most(self, sizes: Sequence[int]) -> int:
        """Return a bound that no value exceeds in size."""
        return sum(
            abs(c) * math.prod(math.comb(n - 1, a) for n, a in zip(sizes, power, strict=True))
            for power, c in self.coefficients.items()
        )

    def negated(self) -> "Polynomial":
        """Return it with the other sign."""
        return Polynomial({power: -c for power, c in self.coefficients.items()})

    def factors(self, space: Space) -> list[Factor]:
        """Return it as shares, one for each set of widths that come together."""
        together: dict[tuple[int, ...], dict[Point, int]] = {}
        for power, coefficient in self.coefficients.items():
            axes = tuple(i for i, a in enumerate(power) if a)
            together.setdefault(axes, {})[power] = coefficient
        return [Polynomial(part).table(space) for part in together.values()]

    def table(self, space: Space) -> Factor:
        """Return its values for each choice of the widths that it depends on.

        Raises:
            InvalidInputError: If these choices are too many, or the values too large.
        """
        axes, sizes = self.axes, space.sizes
        shape = tuple(sizes[axis] for axis in axes)
        check_cells([space.names[axis] for axis in axes], shape)
        if self.most(sizes) > _MOST_SUM:
            raise InvalidInputError(
                f"widths: a cost reaches {self.most(sizes):.1e}, more than can be searched; narrow "
                "the ranges"
            )
        total = np.zeros(shape, dtype=np.int64)
        for power, coefficient in self.coefficients.items():
            term = np.array(coefficient, dtype=np.int64)
            for axis in axes:
                column = [math.comb(t, power[axis]) for t in range(sizes[axis])]
                term = np.multiply.outer(term, np.array(column, dtype=np.int64))
            total += term
        return Factor(axes, total)


def interpolate(values: Mapping[Point, int]) -> Polynomial:
    """Return the polynomial that has these values at all points below those of its degree."""
    found: dict[Point, int] = {}
    for point in values:
        total = 0
        for below in itertools.product(*(range(a + 1) for a in point)):
            times = math.prod(math.comb(a, b) for a, b in zip(point, below, strict=True) if a)
            total += (-1) ** (sum(point) - sum(below)) * times * values[below]
        if total:
            found[point] = total
    return Polynomial(found)


def check_cells(names: Sequence[str], sizes: Sequence[int]) -> None:
    """Refuse widths that have too many choices together.

    Raises:
        InvalidInputError: If they have.
    """
    if math.prod(sizes) > MOST_CELLS:
        listed = ", ".join(names)
        raise InvalidInputError(
            f"widths: {listed} depend on one another and have {math.prod(sizes):,} choices "
            f"together; {MOST_CELLS:,} is the most: narrow their ranges, take larger steps, let "
            "layers share a width, or give the widths in the order of the layers"
        )
