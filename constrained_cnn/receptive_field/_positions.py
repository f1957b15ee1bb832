"""What each unit of an axis sees where no rule moves with the unit. Integers, without torch."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from constrained_cnn.receptive_field._axis import AxisField, Span, hull_of

__all__ = ["PositionField"]


@dataclass(frozen=True)
class PositionField:
    """Which input positions each unit of an axis can depend on, unit by unit, for one input size.

    It stands in for an :class:`AxisField` where branches move by different numbers of positions
    from unit to unit, as they do after resampling with aligned corners: then no interval that
    moves with the unit describes what it sees.

    Attributes:
        spans: For each unit its first and last position, or None where it sees nothing.

    Examples:
        >>> field = PositionField(((0, 2), (1, 5)))
        >>> field.size, field.sizes, field.interval(1)
        (5, (3, 5), (1, 5))
    """

    spans: tuple[Span | None, ...]

    @property
    def sizes(self) -> tuple[int, ...]:
        """Number of positions from first to last for each unit."""
        return tuple(0 if span is None else span[1] - span[0] + 1 for span in self.spans)

    @property
    def size(self) -> int:
        """The largest of :attr:`sizes`."""
        return max(self.sizes, default=0)

    @property
    def start(self) -> int | None:
        """First position that unit 0 sees; None if it sees nothing."""
        span = self.interval(0)
        return None if span is None else span[0]

    @property
    def jump(self) -> None:
        """None: it differs from unit to unit."""

    def interval(self, unit: int) -> Span | None:
        """Return the first and last position that ``unit`` sees; None if it sees nothing."""
        return self.spans[unit] if 0 <= unit < len(self.spans) else None

    @staticmethod
    def reading(
        field: "AxisField | PositionField", taps: Callable[[int], Sequence[int]], units: int
    ) -> "PositionField":
        """Return the field of ``units`` units, each of which reads some units of ``field``."""
        return PositionField(
            tuple(hull_of([field.interval(tap) for tap in taps(unit)]) for unit in range(units))
        )

    @staticmethod
    def joining(fields: "Sequence[AxisField | PositionField]", units: int) -> "PositionField":
        """Return the field of units that read the same unit of each of ``fields``."""
        return PositionField(
            tuple(hull_of([field.interval(unit) for field in fields]) for unit in range(units))
        )
