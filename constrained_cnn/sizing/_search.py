"""The points of a space whose target is exact or nearest, best first. Without torch."""

import heapq
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from constrained_cnn.errors import InvalidInputError
from constrained_cnn.sizing._polynomial import Array
from constrained_cnn.sizing._space import Point
from constrained_cnn.sizing._stages import (
    NEVER,
    Outlook,
    Problem,
    Stages,
    as_stages,
    look_ahead,
)

MOST_STEPS = 300_000


@dataclass(frozen=True)
class Found:
    """A point that meets the bounds.

    Attributes:
        point: The point.
        distance: How far the target is missed by.
        order: The sum that orders answers.
    """

    point: Point
    distance: int
    order: int


@dataclass
class Search:
    """Looks for the points of a space near to a target, and counts its steps."""

    problem: Problem
    steps: int = 0
    _stages: Stages = field(init=False)

    def __post_init__(self) -> None:
        self._stages = as_stages(self.problem)

    def nearest(self, target: int, low: int | None, high: int | None) -> Iterator[Found]:
        """Yield every point that meets the bounds, the nearest to the target first.

        Points as near as one another come in the order of the first sum, then of the point.

        Args:
            target: What is to be met.
            low: The least it may be; None for any.
            high: The most it may be; None for any.

        Raises:
            InvalidInputError: If the search takes too many steps.
        """
        stages = self._stages
        # Beyond what the space has, nearer to the target and nearer to its end are the same.
        goal = min(max(target, stages.least), stages.least + stages.most * stages.unit)
        centre = (goal - stages.least) // stages.unit
        outlook: Outlook | None = None
        done = -1
        for reach in _reaches(centre, stages.most):
            horizon = min(stages.most, centre + reach)
            if outlook is None or outlook.horizon < horizon:
                outlook = look_ahead(stages, horizon)
            units = self._open(outlook, max(0, centre - reach), horizon, low, high)
            distances = np.abs(stages.least + units * stages.unit - goal)
            for distance, near in _by_distance(units, distances, done, reach * stages.unit):
                yield from self._at(outlook, near, distance + abs(target - goal))
            done = reach * stages.unit

    def _open(
        self, outlook: Outlook, first: int, last: int, low: int | None, high: int | None
    ) -> Array:
        """Return the units, of some, that a network that meets the bounds may have."""
        stages = self._stages
        units = np.arange(first, last + 1)
        values = stages.least + units * stages.unit
        start = np.zeros(1, dtype=np.int64)
        keep = outlook.may_meet(0, start, units)
        keep &= outlook.least(0, 0, start, units) < NEVER
        if low is not None:
            keep &= values >= low
        if high is not None:
            keep &= values <= high
        for which, bound in enumerate(self.problem.bounds, start=1):
            keep &= stages.start[which] + outlook.least(which, 0, start, units) <= bound
        return units[keep]

    def _at(self, outlook: Outlook, units: Array, distance: int) -> Iterator[Found]:
        """Yield the points that have so many units, the least first sum first."""
        start = self._stages.start
        last = len(self._stages.stages)
        # A number that no later choice can lower, the choices, what is left, state and sums.
        open_: list[tuple[int, Point, int, int, tuple[int, ...]]] = [
            (-NEVER, (), int(left), 0, start) for left in units
        ]
        while open_:
            bound, point, left, state, sums = heapq.heappop(open_)
            if len(point) == last:
                yield Found(point, distance, bound)
                continue
            self._step()
            for child in self._children(outlook, point, left, state, sums):
                heapq.heappush(open_, child)

    def _step(self) -> None:
        self.steps += 1
        if self.steps > MOST_STEPS:
            raise InvalidInputError(
                f"limits: gave up after {MOST_STEPS:,} steps; narrow the ranges, take larger "
                "steps, or set fewer or tighter limits"
            )

    def _children(
        self, outlook: Outlook, point: Point, left: int, state: int, sums: tuple[int, ...]
    ) -> Iterator[tuple[int, Point, int, int, tuple[int, ...]]]:
        """Yield what the next choice leads to, where the target and the bounds may be met."""
        stage = self._stages.stages[len(point)]
        after, rest = stage.after[state], left - stage.cost[state]
        values = np.flatnonzero(stage.allowed[state] & (rest >= 0))
        after, rest = after[values], rest[values]
        keep = outlook.may_meet(len(point) + 1, after, rest)
        totals = [total + stage.sums[i][state, values] for i, total in enumerate(sums)]
        ahead = [
            total + outlook.least(i, len(point) + 1, after, rest) for i, total in enumerate(totals)
        ]
        keep &= ahead[0] < NEVER // 2
        for least, bound in zip(ahead[1:], self.problem.bounds, strict=True):
            keep &= least <= bound
        for at in np.flatnonzero(keep):
            yield (
                int(ahead[0][at]),
                (*point, int(values[at])),
                int(rest[at]),
                int(after[at]),
                tuple(int(total[at]) for total in totals),
            )


def _reaches(centre: int, most: int) -> Iterator[int]:
    """Yield how many units around the centre to look at, until they are all."""
    reach = 256 + centre // 32
    while reach <= max(centre, most - centre):
        yield reach
        reach *= 4
    yield reach


def _by_distance(
    units: Array, distances: Array, above: int, reach: int
) -> Iterator[tuple[int, Array]]:
    """Yield the units at each distance, the nearest first."""
    order = np.argsort(distances, kind="stable")
    units, distances = units[order], distances[order]
    at = int(np.searchsorted(distances, above, side="right"))
    while at < len(units) and distances[at] <= reach:
        end = int(np.searchsorted(distances, distances[at], side="right"))
        yield int(distances[at]), units[at:end]
        at = end
