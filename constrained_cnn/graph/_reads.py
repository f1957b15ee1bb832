"""What an operation reads: windows, positions, parts and patches of the axes of its inputs."""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction


@dataclass(frozen=True)
class Window:
    """A window that slides along one axis: convolution, pool, slice, padding.

    Attributes:
        kernel: Number of taps.
        stride: Units from one window to the next; negative runs backwards, 0 stays.
        padding: Units before the first; negative crops.
        dilation: Units from tap to tap.
        transposed: Whether it is the window of a transposed convolution.
    """

    kernel: int = 1
    stride: int = 1
    padding: int = 0
    dilation: int = 1
    transposed: bool = False


@dataclass(frozen=True)
class Resample:
    """Units read at positions that need not be whole.

    Attributes:
        kind: ``"nearest"``, ``"nearest-exact"``, ``"linear"``, ``"cubic"``, or ``"adaptive"`` for
            adaptive pooling.
        slope: Units of the input for one of the output.
        aligned: Whether the first and last units of both stand on each other.
    """

    kind: str
    slope: Fraction
    aligned: bool = False


@dataclass(frozen=True)
class Taps:
    """Units read that no window describes, listed for each unit of the output.

    Attributes:
        units: For each unit of the output the units of the input that it reads.
    """

    units: tuple[Sequence[int], ...]


@dataclass(frozen=True)
class Segment:
    """Units that lie one after another in the output, as those of each part of a ``cat`` do.

    Attributes:
        start: The unit of the output that reads the first.
        length: How many there are; units of the output before and after them read nothing.
    """

    start: int
    length: int


@dataclass(frozen=True)
class Border:
    """Units around which others are put that repeat them, as reflected padding does.

    Where an interval moves with the unit, positions outside the image stand for what they repeat.

    Attributes:
        kind: ``"reflect"`` or ``"replicate"``.
        before: How many stand before the first; negative crops.
        length: How many there are.
    """

    kind: str
    before: int
    length: int


By = Window | Resample | Taps | Segment | Border


@dataclass(frozen=True)
class AxisRead:
    """How an axis of an output reads one axis of an input.

    Attributes:
        axis: The axis of the input.
        by: The window, resampling, list, segment or border; None where unit i reads unit i.
    """

    axis: int
    by: By | None = None


@dataclass(frozen=True)
class Patch:
    """How an axis of an image goes into one that counts patches, as ``unfold`` makes it.

    With a transposed window it is the way back, as ``fold`` goes it: then ``axis`` counts patches,
    and ``into`` is an axis of the image.

    Attributes:
        axis: The axis of the input.
        window: Slides along it, once for each patch.
        into: The axis of the output. Of the one that counts patches ``index // step % count`` is
            the number of the window.
        step: Patches from one window to the next.
        count: How many windows there are.
    """

    axis: int
    window: Window
    into: int
    step: int
    count: int


@dataclass(frozen=True)
class Read:
    """How one output of an operation reads one of its inputs.

    Axes of the input that are named nowhere are read whole: every unit of the output depends on all
    of them.

    Attributes:
        value: The value that is read.
        axes: For each axis of the output what it reads; None where no axis of this input.
        gate: Whether it only scales or shifts what another read gives: statistics, attention of a
            squeeze-excite.
        unplaced: Axes of the input that are read in a way that differs from unit to unit and is not
            described here.
        picks: Units of which one is read alone, as ``x[:, 0]`` does: pairs of an axis of the input
            and the unit.
        patches: Axes of the input that go together into one of the output, window by window.
        reshapes: Whether the output is all of the input in another shape, its elements in their
            order; then the axes say which of them stay, and the shapes say the rest.
    """

    value: int
    axes: tuple[AxisRead | None, ...]
    gate: bool = False
    unplaced: tuple[int, ...] = ()
    picks: tuple[tuple[int, int], ...] = ()
    patches: tuple[Patch, ...] = ()
    reshapes: bool = False
