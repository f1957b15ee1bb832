"""By what criterion one answer is better than another."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from constrained_cnn.errors import InvalidInputError, check_choice, check_integer, check_known_keys
from constrained_cnn.sizing._costs import Cost
from constrained_cnn.sizing._polynomial import Factor, check_cells
from constrained_cnn.sizing._space import Space

_WIDEST = 10**6
ORDERS = ("even", "fewest macs", "most macs")

# Sums of whole numbers are the same in any order, so equal answers are equal.
_UNIT = 10**12
_MOST = 2**56


@dataclass(frozen=True)
class Order:
    """A criterion, as a sum of shares; the least sum is the best.

    Attributes:
        words: The criterion in words.
        factors: The shares.
        unit: The sum at which the criterion is 1; negative where more is better.
    """

    words: str
    factors: tuple[Factor, ...]
    unit: int

    def value(self, total: int) -> int | float:
        """Return the criterion where the shares have a sum."""
        return total // self.unit if abs(self.unit) == 1 else total / self.unit


def check_order(order: str | Mapping[str, int], space: Space) -> None:
    """Refuse what is no criterion.

    Raises:
        InvalidInputError: If it is none, or a mapping that is not of all widths.
    """
    if not isinstance(order, Mapping):
        check_choice("order", order, ORDERS)
        return
    check_known_keys("order", order, space.names)
    for name in space.names:
        if name not in order:
            raise InvalidInputError(
                f"order={dict(order)!r}: must say what every width is to be near, and lacks {name}"
            )
        if check_integer(f"order: {name}", order[name], minimum=1) > _WIDEST:
            raise InvalidInputError(f"order: {name}={order[name]}: must be at most {_WIDEST:,}")


def as_order(order: str | Mapping[str, int], space: Space, costs: Mapping[str, Cost]) -> Order:
    """Return a criterion that was checked."""
    if isinstance(order, Mapping):
        near = ", ".join(f"{name}={order[name]}" for name in space.names)
        words = f"nearest to {near} (least sum of squared relative distances)"
        return _summed(words, list(_near(order, space)))
    if order == "even":
        words = "most even (least sum of squared log-ratios of one width to the next)"
        return _summed(words, list(_even(space)))
    (part,) = costs["macs"].parts
    if order == "fewest macs":
        return Order("fewest MACs", tuple(part.factors(space)), 1)
    return Order("most MACs", tuple(part.negated().factors(space)), -1)


Share = tuple[tuple[int, ...], npt.NDArray[np.float64]]


def _near(order: Mapping[str, int], space: Space) -> Iterator[Share]:
    for axis, (name, values) in enumerate(zip(space.names, space.ranges, strict=True)):
        away = (np.array(values) - order[name]) / order[name]
        yield (axis,), away**2


def _even(space: Space) -> Iterator[Share]:
    logs = [np.log(np.array(values)) for values in space.ranges]
    for i, (one, other) in enumerate(itertools.pairwise(logs)):
        check_cells(space.names[i : i + 2], (len(one), len(other)))
        yield (i, i + 1), np.subtract.outer(one, other) ** 2


def _summed(words: str, shares: Sequence[Share]) -> Order:
    """Return a criterion of these shares, in units so small that their sums are still held."""
    most = sum(float(values.max()) for _, values in shares)
    unit = max(1, min(_UNIT, int(_MOST / most))) if most else _UNIT
    factors = (Factor(axes, np.rint(values * unit).astype(np.int64)) for axes, values in shares)
    return Order(words, tuple(factors), unit)
