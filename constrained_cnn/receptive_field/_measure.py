"""The receptive field of a network and of each of its layers."""

import html
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from torch import nn

from constrained_cnn.errors import InvalidInputError, TracingError, check_integer
from constrained_cnn.graph import Graph, Layer, Read, Resample, Window
from constrained_cnn.receptive_field._axis import AxisField, Span, clip
from constrained_cnn.receptive_field._digits import Field
from constrained_cnn.receptive_field._flow import POOLS, Place, Places, places
from constrained_cnn.receptive_field._positions import PositionField
from constrained_cnn.table import Table
from constrained_cnn.tracing import as_graph

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult

SCHEMA = "constrained_cnn.receptive_field/1"


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
        growth: For each axis by how many positions it sees more than the largest of what it reads;
            None where it is global.
    """

    name: str
    path: str
    op: str
    axes: tuple[Axis, ...]
    windows: tuple[tuple[int | None, Window | None], ...] = ()
    problem: str = ""
    growth: tuple[int | None, ...] = ()

    @property
    def changes(self) -> bool:
        """Whether it slides a window, or sees other than what it reads."""
        slides = any(window is not None for _, window in self.windows)
        return slides or any(more != 0 for more in self.growth)


_MOST_PHASES = 6
_SHEET = ("<layer", "n_in", "k", "p", "s", "d", "n_out", "jump", "r")


@dataclass(frozen=True, repr=False)
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

    def table(self) -> Table:
        """Return a row for each layer that slides a window or sees more than what it reads.

        Where the axes differ their numbers stand as ``3 x 5``, phases of one axis as ``2 / 3``.
        """
        columns = ("<layer", "units", "size", "grows by", "jump", "start", "stage", "<")
        rows = []
        for row in self.layers:
            if row.problem or not row.changes:
                continue
            stage = [axis.stage for axis in row.axes]
            rows.append(
                (
                    row.name,
                    _across([axis.units for axis in row.axes]),
                    _across([_sizes(axis) for axis in row.axes]),
                    _across(row.growth),
                    _across([axis.jump for axis in row.axes]),
                    _across([None if axis.is_global else axis.start for axis in row.axes]),
                    _across([None if field is None else field.size for field in stage]),
                    _remark(row.axes),
                )
            )
        shape = " x ".join(map(str, self.input_shape))
        return Table(columns, tuple(rows), title=f"{self.model} on {shape}")

    def sheet(self, axis: int = 0) -> Table:
        """Return the sheet people keep by hand, for one axis: a row for each window.

        Args:
            axis: Number of the image's axis.

        Raises:
            InvalidInputError: If there is no such axis.
        """
        check_integer("axis", axis, minimum=0, maximum=len(self.axes) - 1)
        rows = []
        for row, (n_in, window) in zip(self.layers, self._windows(axis), strict=True):
            if window is None or row.problem:
                continue
            numbers = (n_in, window.kernel, window.padding, window.stride, window.dilation)
            at = row.axes[axis]
            rows.append((row.name, *map(str, (*numbers, at.units, at.jump)), _sizes(at)))
        return Table(_SHEET, tuple(rows))

    def _windows(self, axis: int) -> list[tuple[int | None, Window | None]]:
        return [row.windows[axis] if row.windows else (None, None) for row in self.layers]

    def __repr__(self) -> str:
        return f"ReceptiveField({self})"

    def __str__(self) -> str:
        where = "; ".join(_say(axis) for axis in self.axes)
        return f"{self.model} at {self.layer}: {where}"

    def __rich_console__(self, console: "Console", options: "ConsoleOptions") -> "RenderResult":
        yield self.table()
        yield str(self)

    def _repr_html_(self) -> str:
        return f"{self.table().to_html()}<p>{html.escape(str(self))}</p>"

    def to_markdown(self) -> str:
        """Return :meth:`sheet` for the first axis, in Markdown."""
        return self.sheet().to_markdown()

    def to_csv(self) -> str:
        """Return :meth:`sheet` for the first axis, as CSV."""
        return self.sheet().to_csv()

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain data, with the version of the schema; fractions as text."""
        return {
            "schema": SCHEMA,
            "model": self.model,
            "input_shape": list(self.input_shape),
            "layer": self.layer,
            "axes": [_axis_as_data(axis) for axis in self.axes],
            "first_to_see_all": self.first_to_see_all,
            "layers": [
                {
                    "name": row.name,
                    "path": row.path,
                    "op": row.op,
                    "axes": [_axis_as_data(axis) for axis in row.axes],
                    "growth": list(row.growth),
                    "problem": row.problem,
                }
                for row in self.layers
            ],
        }

    def to_json(self) -> str:
        """Return everything as JSON."""
        return json.dumps(self.to_dict(), indent=1) + "\n"


def _axis_as_data(axis: Axis) -> dict[str, Any]:
    return {
        "size": axis.size,
        "sizes": list(axis.sizes),
        "jump": None if axis.jump is None else str(axis.jump),
        "start": axis.start,
        "units": axis.units,
        "length": axis.length,
        "spans": None if axis.field is None else _spans_as_data(axis.field.spans),
        "advance": axis.field.advance if isinstance(axis.field, AxisField) else None,
        "global": axis.is_global,
        "shift_invariant": axis.is_shift_invariant,
        "local_size": None if axis.local is None else axis.local.size,
        "stage_size": None if axis.stage is None else axis.stage.size,
    }


def _spans_as_data(spans: Sequence[Span | None]) -> list[list[int] | None]:
    return [None if span is None else list(span) for span in spans]


def _across(values: Sequence[Any]) -> str:
    """Return what is said of the axes: once if they agree."""
    said = ["-" if value is None else str(value) for value in values]
    return said[0] if len(set(said)) == 1 else " x ".join(said)


def _sizes(axis: Axis) -> str:
    if axis.is_global:
        return "all"
    sizes = axis.sizes
    if not axis.is_shift_invariant or len(sizes) > _MOST_PHASES:
        least, most = min(sizes, default=0), max(sizes, default=0)
        return str(most) if least == most else f"{least} to {most}"
    return str(sizes[0]) if len(set(sizes)) == 1 else " / ".join(map(str, sizes))


def _remark(axes: Sequence[Axis]) -> str:
    if not all(axis.is_shift_invariant for axis in axes):
        return "differs from place to place"
    if any(axis.is_global for axis in axes):
        local = [None if axis.local is None else axis.local.size for axis in axes]
        return "" if set(local) == {None} else f"{_across(local)} with gates left out"
    return "sees all" if all(axis.sees_all for axis in axes) else ""


def measure_receptive_field(
    model: nn.Module | Graph,
    input_shape: Sequence[int] | None = None,
    *,
    layer: str | None = None,
    inputs: Sequence[Any] | Mapping[str, Any] | None = None,
    image: int = 0,
    strict: bool = True,
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
        inputs: All inputs, for a network with several, as in
            :func:`~constrained_cnn.tracing.trace`.
        image: Which of the tensors that come in, from 0, is the one whose positions are meant.
        strict: Whether an operation that nobody has described is an error, or only what sees
            through it.

    Raises:
        InvalidInputError: If there is no image axis, no such layer ran, or it does not depend on
            the image.
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
    graph = as_graph(model, input_shape, inputs=inputs, strict=strict)
    check_integer("image", image, minimum=0, maximum=len(graph.inputs) - 1)
    others = (number for number in graph.inputs if number != graph.inputs[image])
    graph = replace(graph, inputs=(graph.inputs[image], *others))
    shape = graph.values[graph.inputs[0]].shape
    if len(shape) < 3:
        raise InvalidInputError(
            f"input_shape={shape[1:]}: has no image axis after the channels, as (1, 28, 28) has"
        )
    found = places(graph)
    value = _last_spatial(graph, found) if layer is None else graph.value_of(layer)
    if not found[value]:
        raise InvalidInputError(f"layer={layer!r}: does not depend on input {image}")
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
            standing = [place.axis is not None or place.problem for place in found[value]]
            if standing and all(standing):
                if anew and value not in graph.outputs:
                    raise TracingError(
                        f"{graph.model}: after {layer.name} an axis of the image is read whole or "
                        "taken apart, and later layers work on axes made of it, for which there is "
                        "no field; name a layer before that: layer=..."
                    )
                return value
        anew = anew or any(_slides(graph, read) for read in layer.reads[0])
    return graph.inputs[0]


def _slides(graph: Graph, read: Read) -> bool:
    """Whether a window of several taps, or resampling, runs over an axis of several units."""
    shape = graph.values[read.value].shape
    by = [source.by for source in read.axes if source is not None and shape[source.axis] > 1]
    return any(
        isinstance(one, Resample) or (isinstance(one, Window) and one.kernel > 1) for one in by
    )


def _row(graph: Graph, layer: Layer, found: Sequence[Places]) -> LayerField:
    value = layer.outputs[0]
    reads = [read for read in layer.reads[0] if found[read.value]]
    problem = next((place.problem for place in found[value] if place.problem), "")
    axes = _axes(graph, value, found[value])
    growth = []
    for number, axis in enumerate(axes):
        before = [found[read.value][number].field for read in reads]
        sizes = [field.size for field in before if field is not None]
        growth.append(None if axis.field is None else axis.field.size - max(sizes, default=0))
    windows = tuple(_window(graph, reads, found, number) for number in range(len(axes)))
    return LayerField(layer.name, layer.path, layer.op, axes, windows, problem, tuple(growth))


def _window(
    graph: Graph, reads: Sequence[Read], found: Sequence[Places], number: int
) -> tuple[int | None, Window | None]:
    """Return the units before a layer along an axis of the image, and its window."""
    for read in reads:
        before = found[read.value][number].axis
        for source in read.axes:
            if source is not None and source.axis == before and isinstance(source.by, Window):
                return graph.values[read.value].shape[source.axis], source.by
    return None, None


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
    if not axis.is_shift_invariant:
        return f"{_sizes(axis)} of {axis.length}, differs from place to place"
    return f"{_sizes(axis)} of {axis.length}, jump {axis.jump}, start {axis.start}"
