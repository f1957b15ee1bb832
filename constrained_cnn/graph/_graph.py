"""Operations, values and weights of a network, and what of it differs in training."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields

from constrained_cnn.errors import InvalidInputError, closest
from constrained_cnn.graph._reads import Read

Setting = int | float | bool | str | tuple[int | float, ...] | None


def bytes_of(dtype: str) -> int:
    """Return the bytes of one element of a type, by the name torch gives it.

    Examples:
        >>> bytes_of("float32"), bytes_of("bfloat16"), bytes_of("bool"), bytes_of("complex64")
        (4, 2, 1, 8)
    """
    bits = re.search(r"\d+", dtype)
    return max(1, int(bits[0]) // 8) if bits else 1


def _name(path: str, op: str, turn: int) -> str:
    name = f"{path}: {op}" if path else op
    return name if turn == 1 else f"{name} #{turn}"


@dataclass(frozen=True)
class TensorInfo:
    """A tensor that flows through the network.

    Attributes:
        shape: Its shape, the batch first.
        dtype: Its type, such as ``"float32"``.
        memory: Number of the piece of memory it lies in; views and results made in place share one.
    """

    shape: tuple[int, ...]
    dtype: str
    memory: int

    @property
    def elements(self) -> int:
        """Number of its elements."""
        return math.prod(self.shape)


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
        parts = {f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(self)}
        return Work(**parts)


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

    @property
    def name(self) -> str:
        """The path and the operation, for a table or an error; ``"cat #2"`` for the second."""
        return _name(self.path, self.op, self.turn)

    @property
    def sources(self) -> frozenset[int]:
        """The values it reads."""
        return frozenset(read.value for reads in self.reads for read in reads)


@dataclass(frozen=True)
class TrainingLayer:
    """One operation that ran in training mode.

    Attributes:
        op: Its name.
        path: Path of the innermost module it ran in.
        settings: Its arguments that are no tensors, by name: ``{"p": 0.069, "training": True}``.
        saved: Bytes that it keeps for the backward pass, for one sample; what an operation before
            it already kept counts there.
        outputs: The values it made, numbered apart from those of evaluation.
        inputs: The values it was given, in order.
        turn: Which of the operations of that name in that module it is, from 1.
    """

    op: str
    path: str
    settings: Mapping[str, Setting]
    saved: int
    outputs: tuple[int, ...] = ()
    inputs: tuple[int, ...] = ()
    turn: int = 1

    @property
    def name(self) -> str:
        """The path and the operation, as :attr:`Layer.name`."""
        return _name(self.path, self.op, self.turn)


@dataclass(frozen=True)
class TrainingRun:
    """What runs in training mode.

    Attributes:
        layers: Every operation, in the order it ran.
        saved_constant: Bytes kept for the backward pass that do not grow with the batch, such as
            the statistics of a batch.
        problem: Why it could not be run to its end; empty if it could.
        shapes: Shape of each value, the first axis left out.
        outputs: The values that go out.
        draws: Operations that draw random numbers and are no dropout of torch's, by name.
    """

    layers: tuple[TrainingLayer, ...]
    saved_constant: int = 0
    problem: str = ""
    shapes: tuple[tuple[int, ...], ...] = ()
    outputs: tuple[int, ...] = ()
    draws: tuple[str, ...] = ()


@dataclass(frozen=True)
class Graph:
    """A network as it runs in evaluation mode, and what of it differs in training.

    Attributes:
        model: Name of the model's class.
        inputs: The values that come in.
        outputs: The values that go out.
        values: Every value.
        layers: Every operation, in the order it ran.
        modules: What each module gave last, by its path: the first value it returned.
        weights: Every parameter and buffer, those of modules that never run included.
        evaluated: Elements of each tensor that a parametrisation makes, by its path.
        training: What runs in training mode.
        constants: Products that run and do not depend on the input, such as a position bias worked
            out of weights. They make and read no values.
    """

    model: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    values: tuple[TensorInfo, ...]
    layers: tuple[Layer, ...]
    modules: Mapping[str, int]
    weights: tuple[Weight, ...] = ()
    evaluated: Mapping[str, int] = field(default_factory=dict)
    training: TrainingRun = TrainingRun(())
    constants: tuple[Layer, ...] = ()
    idle: Mapping[str, str] = field(default_factory=dict)

    @property
    def unknown(self) -> tuple[str, ...]:
        """Names of the operations that no rule describes."""
        return tuple(layer.name for layer in self.layers if not layer.known)

    @property
    def live_layers(self) -> frozenset[int]:
        """Positions of the layers that an output depends on."""
        wanted, found = set(self.outputs), set()
        for position in range(len(self.layers) - 1, -1, -1):
            layer = self.layers[position]
            if wanted.intersection(layer.outputs):
                found.add(position)
                wanted |= layer.sources
        return frozenset(found)

    def value_of(self, path: str) -> int:
        """Return what the module at ``path`` gave last, or the operation of that name.

        Args:
            path: Path of a module, ``"layer4"``, or name of an operation, ``"layer4: add"``.

        Raises:
            InvalidInputError: If none of that name ran; the nearest that did is suggested.
        """
        if isinstance(path, str) and path in self.modules:
            return self.modules[path]
        by_name = {layer.name: layer.outputs[0] for layer in self.layers}
        if not isinstance(path, str) or path not in by_name:
            near = closest(str(path), [*self.modules, *by_name])
            raise InvalidInputError(f"layer={path!r}: no such module ran in {self.model}{near}")
        return by_name[path]
