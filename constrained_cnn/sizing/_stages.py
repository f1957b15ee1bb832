"""A space taken apart into one choice after another, and what is known of the choices to come."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from constrained_cnn.sizing._polynomial import Array, Factor, check_cells

Bits = npt.NDArray[np.uint8]
Flags = npt.NDArray[np.bool_]

NEVER = 2**61

# Cells of one table of least sums: 8 bytes each.
_MOST_CELLS = 1_000_000
# Bytes that are moved to find which sums can be met from one stage on, and bytes that say so.
_MOST_WORK = 6 * 10**9
_MOST_BYTES = 2 * 10**8


@dataclass(frozen=True, eq=False)
class Problem:
    """What is to be searched, as sums of shares.

    Attributes:
        names: Name of each width.
        sizes: How many values it has.
        target: The shares of what is to be met.
        sums: The shares of each sum that is looked at: first that which orders answers, then those
            that have a bound.
        bounds: The most that each of the latter may be.
        masks: Shares of 0 where a choice is allowed, else 1.
    """

    names: tuple[str, ...]
    sizes: tuple[int, ...]
    target: tuple[Factor, ...]
    sums: tuple[tuple[Factor, ...], ...]
    bounds: tuple[int, ...]
    masks: tuple[Factor, ...]

    @property
    def factors(self) -> list[Factor]:
        """Every share."""
        return [*self.target, *self.masks, *(f for factors in self.sums for f in factors)]


@dataclass(frozen=True, eq=False)
class Stage:
    """The choice of one width, for each choice of those before it that still matter: a state.

    Attributes:
        cost: What it adds to the target, in units, for each state and value; never negative.
        sums: What it adds to each sum.
        allowed: Whether it may be made.
        after: The state of the next stage.
    """

    cost: Array
    sums: tuple[Array, ...]
    allowed: Flags
    after: Array

    @property
    def states(self) -> int:
        """How many states there are."""
        return self.cost.shape[0]


@dataclass(frozen=True, eq=False)
class Stages:
    """The choices of all widths, one after another.

    Attributes:
        stages: One for each width.
        least: What the target is at least.
        unit: What every value of the target differs from it in multiples of.
        start: What each sum is before the first choice.
    """

    stages: tuple[Stage, ...]
    least: int
    unit: int
    start: tuple[int, ...]

    @property
    def most(self) -> int:
        """The most units the target can be above its least."""
        return self.most_from(0)

    def most_from(self, index: int) -> int:
        """Return the most units that the stages from one on can add."""
        return sum(int(stage.cost.max()) for stage in self.stages[index:])


def as_stages(problem: Problem) -> Stages:
    """Return a space as one choice after another.

    Raises:
        InvalidInputError: If too many widths depend on one another.
    """
    stages, least, unit = [], _constant(problem.target), 0
    frontiers = _frontiers(len(problem.sizes), [factor.axes for factor in problem.factors])
    for axis in range(len(problem.sizes)):
        axes = (*frontiers[axis], axis)
        check_cells([problem.names[a] for a in axes], [problem.sizes[a] for a in axes])
        shape = tuple(problem.sizes[a] for a in axes)
        cost = _summed(problem.target, axis, axes, shape)
        low = int(cost.min())
        cost -= low
        least += low
        unit = math.gcd(unit, int(np.gcd.reduce(cost, axis=None)))
        stages.append(
            Stage(
                cost,
                tuple(_summed(factors, axis, axes, shape) for factors in problem.sums),
                _summed(problem.masks, axis, axes, shape) == 0,
                _after(axes, shape, frontiers[axis + 1]),
            )
        )
    unit = unit or 1
    scaled = [Stage(s.cost // unit, s.sums, s.allowed, s.after) for s in stages]
    return Stages(tuple(scaled), least, unit, tuple(map(_constant, problem.sums)))


def _constant(factors: Iterable[Factor]) -> int:
    return sum(int(factor.values) for factor in factors if not factor.axes)


def _frontiers(count: int, together: Sequence[tuple[int, ...]]) -> list[tuple[int, ...]]:
    """Return, for each stage, the widths chosen before it on which later shares depend."""
    found = []
    for stage in range(count + 1):
        open_at = [axes for axes in together if axes and axes[-1] >= stage]
        found.append(tuple(sorted({a for axes in open_at for a in axes if a < stage})))
    return found


def _summed(
    factors: Iterable[Factor], last: int, axes: tuple[int, ...], shape: tuple[int, ...]
) -> Array:
    """Return the sum of the shares that are known when ``last`` is chosen, a row for a state."""
    total = np.zeros(shape, dtype=np.int64)
    for factor in factors:
        if factor.axes and factor.axes[-1] == last:
            size = [n if axis in factor.axes else 1 for axis, n in zip(axes, shape, strict=True)]
            total += factor.values.reshape(size)
    return total.reshape(-1, shape[-1])


def _after(axes: tuple[int, ...], shape: tuple[int, ...], frontier: tuple[int, ...]) -> Array:
    """Return the number of the state of the next stage for each state and value."""
    grid = np.indices(shape)
    number = np.zeros(shape, dtype=np.int64)
    for axis in frontier:
        at = axes.index(axis)
        number = number * shape[at] + grid[at]
    return number.reshape(-1, shape[-1])


@dataclass(frozen=True, eq=False)
class Outlook:
    """What is known of the choices to come, from each stage and state on.

    Attributes:
        stages: The choices.
        horizon: The units of the target up to which it is known.
        bucket: How many units share one cell of the tables of least sums.
        bits: Which units can still be met exactly, a bit each; None for stages where that takes
            too much room.
        tables: For each sum, its least for each bucket of units; ``NEVER`` where there is none.
    """

    stages: Stages
    horizon: int
    bucket: int
    bits: tuple[Bits | None, ...]
    tables: tuple[tuple[Array, ...], ...]

    def may_meet(self, stage: int, states: Array, units: Array) -> Flags:
        """Return whether so many units may be met from these states on."""
        bits = self.bits[stage]
        if bits is None:
            return np.ones(len(units), dtype=np.bool_)
        at = np.minimum(units >> 3, bits.shape[1] - 1)
        found = (bits[states, at] >> (units & 7).astype(np.uint8)) & 1
        return (found == 1) & (units >> 3 == at)

    def least(self, which: int, stage: int, states: Array, units: Array) -> Array:
        """Return the least that a sum still grows by, or less."""
        return self.tables[which][stage][states, units // self.bucket]


def look_ahead(stages: Stages, horizon: int) -> Outlook:
    """Return what is known of the choices to come, up to so many units."""
    widest = max(stage.states for stage in stages.stages)
    bucket = 1 + horizon * widest // _MOST_CELLS
    tables = tuple(
        _least(stages, which, horizon // bucket + 1, bucket) for which in range(len(stages.start))
    )
    return Outlook(stages, horizon, bucket, _reachable(stages, horizon), tables)


def _least(stages: Stages, which: int, buckets: int, bucket: int) -> tuple[Array, ...]:
    """Return the least of a sum for each state and bucket, from the last stage back."""
    table = np.full((1, buckets), NEVER, dtype=np.int64)
    table[0, 0] = 0
    tables = [table]
    for stage in reversed(stages.stages):
        table = np.full((stage.states, buckets), NEVER, dtype=np.int64)
        shares = stage.sums[which]
        for state, value in zip(*map(np.ndarray.tolist, np.nonzero(stage.allowed)), strict=True):
            whole, rest = divmod(int(stage.cost[state, value]), bucket)
            ahead, share = tables[-1][stage.after[state, value]], shares[state, value]
            # With a rest, the units to come may lie in this bucket or the one below.
            for shift in {whole, whole + (rest > 0)}:
                if shift < buckets:
                    row = table[state, shift:]
                    np.minimum(row, ahead[: buckets - shift] + share, out=row)
        # Nothing is added to what cannot be.
        table[table > NEVER // 2] = NEVER
        tables.append(table)
    return tuple(reversed(tables))


def _reachable(stages: Stages, horizon: int) -> tuple[Bits | None, ...]:
    """Return which units can be met from each state on, from the last stage back."""
    ahead = [1]
    found: list[Bits | None] = [np.ones((1, 1), dtype=np.uint8)]
    room = _MOST_BYTES
    for index in reversed(range(len(stages.stages))):
        stage = stages.stages[index]
        length = min(horizon, stages.most_from(index)) // 8 + 1
        room -= stage.states * length
        if stage.cost.size * length > _MOST_WORK or room < 0:
            break
        ahead = _pulled(stage, ahead, horizon)
        packed = np.empty((stage.states, length), dtype=np.uint8)
        for state, bits in enumerate(ahead):
            packed[state] = np.frombuffer(bits.to_bytes(length, "little"), dtype=np.uint8)
        found.append(packed)
    missing: list[Bits | None] = [None] * (len(stages.stages) + 1 - len(found))
    return (*missing, *reversed(found))


def _pulled(stage: Stage, ahead: Sequence[int], horizon: int) -> list[int]:
    """Return the units that can be met from each state, as the bits of one number."""
    mask = (1 << (horizon + 1)) - 1
    found = []
    for costs, after, allowed in zip(
        stage.cost.tolist(), stage.after.tolist(), stage.allowed.tolist(), strict=True
    ):
        bits = 0
        for cost, state, may in zip(costs, after, allowed, strict=True):
            if may and cost <= horizon:
                bits |= ahead[state] << cost
        found.append(bits & mask)
    return found
