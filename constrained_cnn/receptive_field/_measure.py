"""The receptive field of a network and of each of its layers."""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from torch import nn

from constrained_cnn.errors import InvalidInputError, TracingError
from constrained_cnn.graph import Graph, Layer, Window
from constrained_cnn.receptive_field._axis import AxisField, Span
from constrained_cnn.receptive_field._flow import POOLS, Place, Places, places
from constrained_cnn.tracing import trace


@dataclass(frozen=True)
class Axis:
    """What the units of a layer see of one axis of the image.

    Attributes:
        field: The map from units to input positions; None where a unit depends on all of the axis,
            whatever its length.
        local: The same with scales and gates left out (squeeze-excite, norms over positions).
        stage: The same, counted in cells from the last pool; None where branches differ in it.
        length: Positions of the input.
        units: Units of the layer; None where the axis is gone.
    """

    field: AxisField | None
    local: AxisField | None
    stage: AxisField | None
    length: int
    units: int | None

    @property
    def is_global(self) -> bool:
        """Whether a unit depends on the whole axis at every input size."""
        return self.field is None

    @property
    def size(self) -> int:
        """Input positions from the first to the last that a unit sees, padding included.

        Where it is global: the length of the axis. Where phases differ: the largest.
        """
        return self.length if self.field is None else self.field.size

    @property
    def sizes(self) -> tuple[int, ...]:
        """The size for each phase."""
        return (self.length,) if self.field is None else self.field.sizes

    @property
    def jump(self) -> Fraction | None:
        """Input positions between neighbouring units; None where it is global."""
        return None if self.field is None else self.field.jump

    @property
    def start(self) -> int | None:
        """First position that unit 0 sees, negative in padding."""
        return 0 if self.field is None else self.field.start

    def interval(self, unit: int) -> Span | None:
        """Return the first and last position that ``unit`` sees; None if it sees nothing."""
        return (0, self.length - 1) if self.field is None else self.field.interval(unit)

    @property
    def sees_all(self) -> bool:
        """Whether some unit sees the whole axis of this input."""
        if self.field is None:
            return True
        spans = [self.interval(unit) for unit in range(self.units or 0)]
        return any(s is not None and s[0] <= 0 and s[1] >= self.length - 1 for s in spans)


@dataclass(frozen=True)
class LayerField:
    """The receptive field after one operation.

    Attributes:
        name: Path of its module and name of the operation.
        path: Path of its module.
        op: The operation.
        axes: One for each axis of the image.
        window: The window it slides along the first axis; None if it slides none.
        n_in: Units of the first axis before it.
        problem: Why it cannot be said what a unit sees; empty if it can.
    """

    name: str
    path: str
    op: str
    axes: tuple[Axis, ...]
    window: Window | None = None
    n_in: int | None = None
    problem: str = ""


@dataclass(frozen=True)
class ReceptiveField:
    """What the units of a network see.

    Attributes:
        model: Name of the model's class.
        input_shape: Shape of one sample.
        layer: Name of the layer the axes are of.
        axes: One for each axis of the image, in its order.
        layers: One row for each operation that ran, in order.
    """

    model: str
    input_shape: tuple[int, ...]
    layer: str
    axes: tuple[Axis, ...]
    layers: tuple[LayerField, ...]

    @property
    def pools(self) -> tuple[LayerField, ...]:
        """The fields of what each pool reads, under the pool's name.

        ``axes[0].size`` is the absolute size and ``axes[0].stage.size`` that of the stage.
        """
        before: list[LayerField] = []
        for row, ahead in zip(self.layers[1:], self.layers, strict=False):
            if row.op in POOLS:
                before.append(LayerField(row.name, row.path, row.op, ahead.axes))
        return tuple(before)

    @property
    def first_to_see_all(self) -> str | None:
        """Name of the first layer with a unit that sees the whole image; None if none does."""
        for row in self.layers:
            if not row.problem and all(axis.sees_all for axis in row.axes):
                return row.name
        return None

    def __str__(self) -> str:
        where = "; ".join(_say(axis) for axis in self.axes)
        return f"{self.model} at {self.layer}: {where}"

    def to_markdown(self) -> str:
        """Return the sheet people keep by hand, for the first axis: one row for each window."""
        rows: list[tuple[str, ...]] = [
            ("layer", "n_in", "k", "p", "s", "d", "n_out", "jump", "r"),
            ("---",) * 9,
        ]
        for row in self.layers:
            if row.window is None or row.problem:
                continue
            window, axis = row.window, row.axes[0]
            size = "all" if axis.is_global else " / ".join(map(str, axis.sizes))
            numbers = (row.n_in, window.kernel, window.padding, window.stride, window.dilation)
            rows.append((row.name, *map(str, numbers), str(axis.units), str(axis.jump), size))
        return "".join(f"| {' | '.join(cells)} |\n" for cells in rows)


def measure_receptive_field(
    model: nn.Module | Graph, input_shape: Sequence[int] | None = None, *, layer: str | None = None
) -> ReceptiveField:
    """Return what the units of a network see, exactly, for each axis of the image.

    A unit's receptive field is the closed interval of input positions it can depend on, in
    evaluation mode. It is that of the network without borders: positions outside the input lie in
    its padding, and a unit that reads the padding of a layer in between may see less. Channels are
    not told apart: a unit is all channels at its place. What is measured is the network that runs:
    branches, reused modules, functions and resampling as they are.

    Args:
        model: The network, or its :class:`~constrained_cnn.graph.Graph`.
        input_shape: Shape of one sample, ``(channels, *image)``; not for a graph.
        layer: Path of a module, such as ``"layer4"``; None for the last layer whose units still
            stand at places of the image.

    Raises:
        InvalidInputError: If there is no image axis, or no such layer ran.
        TracingError: If the network cannot be traced, or what its units see differs from place to
            place in a way that is not described.

    References:
        Araujo, Norris, Sim, "Computing Receptive Fields of Convolutional Neural Networks", Distill,
        2019.

    Examples:
        >>> net = nn.Sequential(nn.Conv2d(1, 8, 3), nn.MaxPool2d(2), nn.Conv2d(8, 8, 3))
        >>> field = measure_receptive_field(net, (1, 28, 28))
        >>> field.axes[0].size, field.axes[0].jump, field.axes[0].interval(1)
        (8, Fraction(2, 1), (2, 9))
        >>> measure_receptive_field(net, (1, 28, 28), layer="1").axes[0].size
        4
    """
    if isinstance(model, Graph):
        graph = model
    elif input_shape is None:
        raise InvalidInputError("input_shape=None: give the shape of one sample")
    else:
        graph = trace(model, input_shape)
    shape = graph.values[graph.inputs[0]].shape
    if len(shape) < 3:
        raise InvalidInputError(
            f"input_shape={shape[1:]}: has no image axis after the channels, as (1, 28, 28) has"
        )
    found = places(graph)
    value = _last_spatial(graph, found) if layer is None else graph.value_of(layer)
    problem = next((place.problem for place in found[value] if place.problem), "")
    if problem:
        raise TracingError(
            f"what {layer or graph.model} sees depends on the position: {problem}. Ask for a layer "
            "before it"
        )
    last = next((one for one in graph.layers if value in one.outputs), None)
    return ReceptiveField(
        graph.model,
        shape[1:],
        layer or ("input" if last is None else last.name),
        _axes(graph, value, found[value]),
        tuple(_row(graph, one, found) for one in graph.layers if found[one.outputs[0]]),
    )


def _last_spatial(graph: Graph, found: Sequence[Places]) -> int:
    """Return the last value with a place in the image; raise if the image was formed anew later."""
    image = len(graph.values[graph.inputs[0]].shape)
    shapes = [graph.values[value].shape for value in graph.outputs]
    anew = any(len(shape) == image and max(shape[2:]) > 1 for shape in shapes)
    for layer in reversed(graph.layers):
        for value in layer.outputs:
            places_of_value = found[value]
            if all(place.axis is not None or place.problem for place in places_of_value):
                if anew and value not in graph.outputs:
                    raise TracingError(
                        f"{graph.model}: after {layer.name} an axis of the image is read whole or "
                        "taken apart, and later layers work on axes made of it, for which there is "
                        "no field; name a layer before that: layer=..."
                    )
                return value
        anew = anew or any(
            source is not None and source.by not in (None, Window(stride=0))
            for read in layer.reads[0]
            for source in read.axes
        )
    return graph.inputs[0]


def _row(graph: Graph, layer: Layer, found: Sequence[Places]) -> LayerField:
    value = layer.outputs[0]
    window, n_in = None, None
    for read in layer.reads[0]:
        before = found[read.value][0].axis
        for source in read.axes:
            if source is not None and source.axis == before and isinstance(source.by, Window):
                window, n_in = source.by, graph.values[read.value].shape[source.axis]
    problem = next((place.problem for place in found[value] if place.problem), "")
    axes = _axes(graph, value, found[value])
    return LayerField(layer.name, layer.path, layer.op, axes, window, n_in, problem)


def _axes(graph: Graph, value: int, of: Sequence[Place]) -> tuple[Axis, ...]:
    image = graph.values[graph.inputs[0]].shape[2:]
    shape = graph.values[value].shape
    return tuple(
        Axis(
            place.field,
            place.local,
            place.stage,
            length,
            None if place.axis is None else shape[place.axis],
        )
        for place, length in zip(of, image, strict=True)
    )


def _say(axis: Axis) -> str:
    if axis.is_global:
        local = "" if axis.local is None else f", {axis.local.size} with gates left out"
        return f"all {axis.length}{local}"
    sizes = " / ".join(map(str, axis.sizes))
    return f"{sizes} of {axis.length}, jump {axis.jump}, start {axis.start}"
