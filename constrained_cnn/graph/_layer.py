"""Operations, values and weights of a network, as frozen records."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import cache, cached_property
from operator import attrgetter

from constrained_cnn.graph._kinds import POOLS
from constrained_cnn.graph._reads import Read, Window

Setting = int | float | bool | str | tuple[int | float, ...] | None
Shape = tuple[int, ...]


@cache
def bytes_of(dtype: str) -> int:
    """Return the bytes of one element of a type, by the name torch gives it.

    Examples:
        >>> bytes_of("float32"), bytes_of("bfloat16"), bytes_of("bool"), bytes_of("complex64")
        (4, 2, 1, 8)
    """
    bits = re.search(r"\d+", dtype)
    return max(1, int(bits[0]) // 8) if bits else 1


@dataclass(frozen=True)
class TensorInfo:
    """A tensor that flows through the network.

    Attributes:
        shape: Its shape for a batch of one sample.
        dtype: Its type, such as ``"float32"``.
        memory: Number of the piece of memory it lies in; views and results made in place share one.
        batch_axis: Which axis is the batch; None where there is none.
    """

    shape: tuple[int, ...]
    dtype: str
    memory: int
    batch_axis: int | None = 0

    @property
    def elements(self) -> int:
        """Number of its elements."""
        return math.prod(self.shape)

    @property
    def sample_shape(self) -> Shape:
        """Its shape without the batch."""
        axis = self.batch_axis
        return self.shape if axis is None else (*self.shape[:axis], *self.shape[axis + 1 :])

    @property
    def image_axes(self) -> range:
        """Its axes behind the channels, if they come first in a sample; else none."""
        if self.batch_axis is None:
            return range(1, len(self.shape))
        return range(2, len(self.shape)) if self.batch_axis == 0 else range(0)


@dataclass(frozen=True)
class Weight:
    """A parameter or buffer of the network.

    Attributes:
        names: Its paths; more than one where it is tied.
        shape: Its shape.
        dtype: Its type.
        trainable: Whether it takes a gradient; never for a buffer.
        buffer: Whether it is a buffer.
        evaluates_to: Path of the tensor that a parametrisation makes of it, such as
            ``"conv.weight"``; empty for an ordinary one.
    """

    names: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: str
    trainable: bool
    buffer: bool = False
    evaluates_to: str = ""

    @property
    def name(self) -> str:
        """The first of its paths."""
        return self.names[0]

    @property
    def elements(self) -> int:
        """Number of its elements."""
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        """Bytes it takes."""
        return self.elements * bytes_of(self.dtype)


@dataclass(frozen=True)
class Work:
    """The arithmetic of one operation, or of many, for one sample.

    Attributes:
        macs: Multiply-accumulates of convolutions, linear layers and products of matrices.
        bias: Additions of a bias: one for each element of the output.
        norm: Operations of norms: two for each element (scale and shift) where statistics are
            stored, four more where they are computed.
        elementwise: Elements that activations, sums, softmax and the like compute.
        pooling: Elements that pools, reductions and resampling read.
    """

    macs: int = 0
    bias: int = 0
    norm: int = 0
    elementwise: int = 0
    pooling: int = 0

    def __add__(self, other: "Work") -> "Work":
        return Work(*(mine + more for mine, more in zip(_parts(self), _parts(other), strict=True)))


_parts = attrgetter(*(part.name for part in fields(Work)))


@dataclass(frozen=True)
class Layer:
    """One operation that ran.

    Attributes:
        op: Its name, as torch calls it: ``"conv2d"``.
        path: Path of the innermost module it ran in; empty for the network itself.
        outputs: The values it made.
        reads: For each output, how it reads the inputs.
        weights: The parameters and buffers it reads, at first hand or worked out.
        work: Its arithmetic; None where nobody has described it.
        in_place: Whether it wrote its output over its input.
        settings: Its arguments that are no tensors, by name: ``{"p": 0.069}``.
        known: Whether there is a rule for it; False only for ``trace(..., strict=False)``.
        turn: Which of the operations of that name in that module it is, from 1.
        kind: What it is, one of :data:`~constrained_cnn.graph.KINDS`.
        inputs: The values it was given, in order, after what was written into them in place.
        input_shapes: Shape of each of these, for one sample.
        output_shape: Shape of the first value it made, for one sample.
        windows: The windows it slides, one for each axis of the image; none if it slides none.
        drops: What it drops, if it can: ``"elementwise"``, ``"channel"``, ``"attention"``, ...
        saved: Bytes that it keeps for the backward pass, for one sample, in training mode; what an
            operation before it already kept counts there.
    """

    op: str
    path: str
    outputs: tuple[int, ...]
    reads: tuple[tuple[Read, ...], ...]
    weights: tuple[int, ...] = ()
    work: Work | None = Work()
    in_place: bool = False
    settings: Mapping[str, Setting] = field(default_factory=dict)
    known: bool = True
    turn: int = 1
    kind: str = "unknown"
    inputs: tuple[int, ...] = ()
    input_shapes: tuple[Shape, ...] = ()
    output_shape: Shape = ()
    windows: tuple[Window, ...] = ()
    drops: str = ""
    saved: int = 0

    @property
    def name(self) -> str:
        """The path and the operation, for a table or an error; ``"cat #2"`` for the second."""
        name = f"{self.path}: {self.op}" if self.path else self.op
        return name if self.turn == 1 else f"{name} #{self.turn}"

    @property
    def input_shape(self) -> Shape:
        """Shape of the first value it was given; none where it was given none."""
        return self.input_shapes[0] if self.input_shapes else ()

    @property
    def begins_stage(self) -> bool:
        """Whether it is a pool, and does not take the whole map into one cell."""
        windows = (one for one in self.reads[0][0].axes if one and isinstance(one.by, Window))
        is_global = all(size == 1 for size in self.output_shape[1:]) and not any(windows)
        return self.kind in POOLS and not is_global

    @cached_property
    def sources(self) -> frozenset[int]:
        """The values it reads."""
        return frozenset(read.value for reads in self.reads for read in reads)
