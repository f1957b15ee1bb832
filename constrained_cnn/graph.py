"""A network as it runs, in frozen records: operations, values, and which axis reads which.

Imports no torch: what is said about a network is worked out from these records alone.
"""

from dataclasses import dataclass
from fractions import Fraction

from constrained_cnn.errors import InvalidInputError, closest

__all__ = ["AxisRead", "Graph", "Layer", "Read", "Resample", "TensorInfo", "Window"]


@dataclass(frozen=True)
class TensorInfo:
    """A tensor that flows through the network.

    Attributes:
        shape: Its shape, the batch first.
        dtype: Its type, such as ``"float32"``.
    """

    shape: tuple[int, ...]
    dtype: str


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
class AxisRead:
    """How an axis of an output reads one axis of an input.

    Attributes:
        axis: The axis of the input.
        by: The window or resampling; None where unit i reads unit i.
    """

    axis: int
    by: Window | Resample | None = None


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
    """

    value: int
    axes: tuple[AxisRead | None, ...]
    gate: bool = False
    unplaced: tuple[int, ...] = ()


@dataclass(frozen=True)
class Layer:
    """One operation that ran.

    Attributes:
        op: Its name, as torch calls it: ``"conv2d"``.
        path: Path of the innermost module it ran in; empty for the network itself.
        outputs: The values it made.
        reads: For each output, how it reads the inputs.
    """

    op: str
    path: str
    outputs: tuple[int, ...]
    reads: tuple[tuple[Read, ...], ...]

    @property
    def name(self) -> str:
        """The path and the operation, for a table or an error."""
        return f"{self.path}: {self.op}" if self.path else self.op


@dataclass(frozen=True)
class Graph:
    """A network as it runs in evaluation mode.

    Attributes:
        model: Name of the model's class.
        inputs: The values that come in.
        outputs: The values that go out.
        values: Every value.
        layers: Every operation, in the order it ran.
        modules: What each module gave last, by its path: the first value it returned.
    """

    model: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    values: tuple[TensorInfo, ...]
    layers: tuple[Layer, ...]
    modules: dict[str, int]

    def value_of(self, path: str) -> int:
        """Return what the module at ``path`` gave.

        Raises:
            InvalidInputError: If no module of that path ran; the nearest that did is suggested.
        """
        if path not in self.modules:
            raise InvalidInputError(
                f"layer={path!r}: no such module ran in {self.model}{closest(path, self.modules)}"
            )
        return self.modules[path]
