"""By what criterion one answer is better than another."""

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from constrained_cnn.errors import InvalidInputError, check_choice, check_integer, check_known_keys
from constrained_cnn.sizing._costs import Cost
from constrained_cnn.sizing._polynomial import Array, Factor, check_cells
from constrained_cnn.sizing._space import Space

ORDERS = ("even", "fewest macs", "most macs")

# Sums of whole numbers are the same in any order, so equal answers are equal.
_UNIT = 10**12


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
        check_integer(f"order: {name}", order[name], minimum=1)


def as_order(order: str | Mapping[str, int], space: Space, costs: Mapping[str, Cost]) -> Order:
    """Return a criterion that was checked."""
    if isinstance(order, Mapping):
        near = ", ".join(f"{name}={order[name]}" for name in space.names)
        words = f"nearest to {near} (least sum of squared relative distances)"
        return Order(words, tuple(_near(order, space)), _UNIT)
    if order == "even":
        words = "most even (least sum of squared log-ratios of one width to the next)"
        return Order(words, tuple(_even(space)), _UNIT)
    (part,) = costs["macs"].parts
    if order == "fewest macs":
        return Order("fewest MACs", tuple(part.factors(space)), 1)
    return Order("most MACs", tuple(part.negated().factors(space)), -1)


def _near(order: Mapping[str, int], space: Space) -> Iterator[Factor]:
    for axis, (name, values) in enumerate(zip(space.names, space.ranges, strict=True)):
        away = (np.array(values) - order[name]) / order[name]
        yield Factor((axis,), _whole(away**2))


def _even(space: Space) -> Iterator[Factor]:
    logs = [np.log(np.array(values)) for values in space.ranges]
    for i, (one, other) in enumerate(itertools.pairwise(logs)):
        check_cells(space.names[i : i + 2], (len(one), len(other)))
        yield Factor((i, i + 1), _whole(np.subtract.outer(one, other) ** 2))


def _whole(shares: npt.NDArray[np.float64]) -> Array:
    return np.rint(shares * _UNIT).astype(np.int64)
