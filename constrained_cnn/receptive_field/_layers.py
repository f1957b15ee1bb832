"""What the units of one layer see of each axis of the image."""

from dataclasses import dataclass
from fractions import Fraction

from constrained_cnn.errors import check_integer
from constrained_cnn.graph import Window
from constrained_cnn.receptive_field._axis import Span, clip
from constrained_cnn.receptive_field._digits import Field
from constrained_cnn.receptive_field._positions import PositionField


@dataclass(frozen=True)
class Axis:
    """What the units of a layer see of one axis of the image.

    Attributes:
        field: The map from units to input positions: one that moves with the unit, or, where there
            is none, a list for this input size. None where a unit depends on all of the axis,
            whatever its length.
        local: The same with scales and gates left out (squeeze-excite, norms over positions).
        stage: The same, counted in cells from the last pool; None where branches differ in it.
        length: Positions of the input.
        units: Units of the layer; None where the axis is gone.
    """

    field: Field | None
    local: Field | None
    stage: Field | None
    length: int
    units: int | None

    @property
    def is_global(self) -> bool:
        """Whether a unit depends on the whole axis at every input size."""
        return self.field is None

    @property
    def is_gated(self) -> bool:
        """Whether scales and gates alone make it global, so that ``local`` says more."""
        return self.field is None and self.local is not None and self.units is not None

    @property
    def seen(self) -> Field | None:
        """The field, or ``local`` where scales and gates alone make it global."""
        return self.local if self.is_gated else self.field

    @property
    def seen_size(self) -> int:
        """The size of what is :attr:`seen`; the length of the axis where that is everything."""
        return self.length if self.seen is None else self.seen.size

    @property
    def is_shift_invariant(self) -> bool:
        """Whether the interval moves with the unit; if not, each unit has its own."""
        return not isinstance(self.field, PositionField)

    @property
    def size(self) -> int:
        """Input positions from the first to the last that a unit sees, padding included.

        Where it is global: the length of the axis. Where phases differ: the largest.
        """
        return self.length if self.field is None else self.field.size

    @property
    def sizes(self) -> tuple[int, ...]:
        """The size for each phase; for each unit where it does not move with the unit."""
        return (self.length,) if self.field is None else self.field.sizes

    @property
    def jump(self) -> Fraction | None:
        """Input positions between neighbouring units; None where it is global or differs."""
        return None if self.field is None else self.field.jump

    @property
    def start(self) -> int | None:
        """First position that unit 0 sees, negative in padding."""
        return 0 if self.field is None else self.field.start

    def interval(self, unit: int, *, clipped: bool = False) -> Span | None:
        """Return the first and last position that ``unit`` sees; None if it sees nothing.

        Args:
            unit: Its number along the axis, from 0.
            clipped: Whether what lies in the padding, outside the image, is cut off.

        Raises:
            InvalidInputError: If there is no such unit.
        """
        check_integer("unit", unit, minimum=0, maximum=(self.units or 1) - 1)
        span = (0, self.length - 1) if self.field is None else self.field.interval(unit)
        return clip(span, self.length) if clipped else span

    def is_clipped(self, unit: int) -> bool:
        """Return whether ``unit`` reaches over the border of the image, into padding."""
        return self.interval(unit) != self.interval(unit, clipped=True)

    @property
    def sees_all(self) -> bool:
        """Whether some unit sees the whole axis of this input."""
        if self.field is None:
            return True
        if self.size < self.length:
            return False
        whole = (0, self.length - 1)
        return any(self.interval(u, clipped=True) == whole for u in range(self.units or 0))


@dataclass(frozen=True)
class LayerField:
    """The receptive field after one operation.

    Attributes:
        name: Path of its module and name of the operation.
        path: Path of its module.
        op: The operation.
        axes: One for each axis of the image.
        windows: For each axis the units before it and the window it slides along them; None for
            either where there is none.
        problem: Why it cannot be said what a unit sees; empty if it can.
        growth: For each axis by how many positions it sees more than the largest of what it reads,
            gates left out where they alone make it global; None where it is the first to be global.
        whole: For each axis whether it reads all of its units into one, as global pooling does.
        kind: What the operation is, one of :data:`~constrained_cnn.graph.KINDS`.
    """

    name: str
    path: str
    op: str
    axes: tuple[Axis, ...]
    windows: tuple[tuple[int | None, Window | None], ...] = ()
    problem: str = ""
    growth: tuple[int | None, ...] = ()
    whole: tuple[bool, ...] = ()
    kind: str = "unknown"

    @property
    def changes(self) -> bool:
        """Whether it slides a window, or has other units or sees other sizes than what it reads."""
        return any(self.changes_along(axis) for axis in range(len(self.axes)))

    def changes_along(self, axis: int) -> bool:
        """Return whether it does so along one axis.

        Args:
            axis: Number of the image's axis.
        """
        if not self.windows:
            return False
        units, window = self.windows[axis]
        other_units = units is not None and units != self.axes[axis].units
        return window is not None or other_units or self.growth[axis] != 0
