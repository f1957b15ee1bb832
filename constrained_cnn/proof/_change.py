"""Finite changes of the image, and what they show of what a unit sees."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from constrained_cnn.proof._running import Caught
from constrained_cnn.proof._scene import Sample, Scene, ends_of, once
from constrained_cnn.receptive_field._axis import Span, hull_of

_ROUNDING = 1e-9  # a share of the largest number: less may come of sums taken in another order
_LOST = 1e-12  # a share of a value: less may be lost in double precision


@dataclass(frozen=True)
class Seen:
    """What changes of the image show of one unit.

    Attributes:
        span: First and last position that were seen to move it; None for none.
        ok: True if both ends of what it is said to see move it and nothing outside does, False if
            something outside does, None where neither shows.
        note: With which weights it shows, if not with the positive ones.
    """

    span: Span | None
    ok: bool | None
    note: str = ""


class Changes:
    """Changes of the image along one axis, for units that are said to see ``spans`` of it."""

    def __init__(self, scene: Scene, spans: Sequence[Span | None]) -> None:
        sample = scene.sample
        noise = torch.Generator().manual_seed(3)
        either = 16 * torch.randn(sample.image.shape, generator=noise, dtype=torch.float64)
        # Of either sign, as one of them may end at a rectifier; and far beyond what is lost in
        # double precision of the share that an end has behind many layers.
        amounts = (either, 1e30 * either.abs(), -either)
        self._scene = scene
        self._tries = [_Try(scene, sample.network, sample.unchanged, it) for it in amounts]
        self._own: _Try | None = None
        self._beyond = scene.outside(hull_of(spans))  # of all units: one run serves them all
        if sample.unchanged_with_own is not None and sample.own is not None:
            self._own = _Try(scene, sample.own, sample.unchanged_with_own, either)

    def seen_by(self, unit: int | None, expected: Span | None) -> Seen:
        """Return what moves a unit; ``unit=None`` where there are no units."""
        if self._own is not None and self._own.shift(self._beyond, unit).is_certain:
            return Seen(self._own.extent(unit), False, "with the network's own weights")
        positions, outside = torch.arange(self._scene.length), self._scene.outside(expected)
        ends = sorted(set(expected or ()))
        seen: list[int] = []
        for this in self._tries:
            away = this.shift(outside, unit)
            if away.is_certain:
                return Seen(this.extent(unit), False)
            shifts = {end: this.shift(positions == end, unit) for end in ends}
            seen += [end for end, shift in shifts.items() if shift.is_visible]
            least = min((shift.by for shift in shifts.values()), default=0.0)
            if all(shift.is_visible for shift in shifts.values()) and away.by <= _ROUNDING * least:
                return Seen(expected, True)
        return Seen((min(seen), max(seen)) if seen else None, None)


@dataclass(frozen=True)
class _Shift:
    """How far a unit moved.

    Attributes:
        by: The largest difference; not finite if that says nothing: an operation overflowed or has
            no value there, or how many random numbers it draws depends on what it is given.
        size: The largest of its values.
        amount: The largest change of the image.
    """

    by: float
    size: float
    amount: float

    @property
    def is_visible(self) -> bool:
        return math.isfinite(self.by) and self.by > _LOST * self.size

    @property
    def is_certain(self) -> bool:
        """Whether it is too far to be rounding, wherever on the way that happened."""
        return math.isfinite(self.by) and self.by > _ROUNDING * max(self.size, self.amount)


class _Try:
    """A network, and an amount that is added to the image."""

    def __init__(self, scene: Scene, network: nn.Module, before: Caught, amount: Tensor) -> None:
        def work(where: Tensor) -> Tensor:
            after = scene.value(network, amount, where)
            if after.drawn != before.drawn:
                return torch.full((2, scene.units or 1), torch.nan)
            return _differences(*(scene.by_unit(it.value) for it in (before, after)))

        self._length = scene.length
        self._amount = float(amount.abs().max())
        self._differences = once(work)

    def shift(self, where: Tensor, unit: int | None) -> _Shift:
        """Return how far a change at some positions moves a unit."""
        if not where.any():
            return _Shift(0, 0, self._amount)
        by, size = self._differences(where)[:, unit or 0].tolist()
        return _Shift(by, size, self._amount)

    def extent(self, unit: int | None) -> Span | None:
        """Return the first and last position that move a unit."""
        return ends_of(self._length, lambda where: self.shift(where, unit).is_certain)


def _differences(before: Tensor, after: Tensor) -> Tensor:
    """Return the largest difference of each row, and the largest number in it."""
    if not before.is_floating_point():
        before, after = before.double(), after.double()
    same = (before == after) | (before.isnan() & after.isnan())
    by = (after - before).abs().masked_fill(same, 0).amax(1)
    size = torch.maximum(*(rows.nan_to_num(0, 0, 0).abs().amax(1) for rows in (before, after)))
    return torch.stack([by, size])


def is_steady(sample: Sample, before: Caught) -> bool:
    """Whether the network still gives what it gave before for the same image.

    In two calls, as what takes turns may have come round.
    """
    again = [sample.run(sample.network, sample.image) for _ in range(2)]
    pairs = [_differences(before.value.reshape(1, -1), it.value.reshape(1, -1)) for it in again]
    return all(by <= _ROUNDING * size for by, size in pairs)
