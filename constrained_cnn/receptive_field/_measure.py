"""The receptive field of a network and of each of its layers."""

import html
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from torch import nn

from constrained_cnn.errors import (
    InvalidInputError,
    TracingError,
    check_integer,
    escape_controls,
)
from constrained_cnn.graph import Graph, Layer, Read, Resample, Window
from constrained_cnn.receptive_field._faces import (
    axis_as_data,
    line_of,
    row_as_data,
    sheet_of,
    table_of,
)
from constrained_cnn.receptive_field._flow import Place, Places, places
from constrained_cnn.receptive_field._layers import Axis, LayerField
from constrained_cnn.table import Table
from constrained_cnn.tracing import as_graph
from constrained_cnn.tracing._inputs import BatchAxis

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult

__all__ = ["Axis", "LayerField", "ReceptiveField", "measure_receptive_field"]

SCHEMA = "constrained_cnn.receptive_field/1"


@dataclass(frozen=True, repr=False)
class ReceptiveField:
    """What the units of a network see.

    Attributes:
        model: Name of the model's class.
        input_shape: Shape of one sample.
        layer: Name of the layer the axes are of.
        axes: One for each axis of the image, in its order.
        layers: One row for each operation that ran, in order.
        shown: How many of them the table and the sheet show: those up to the layer that was asked
            for; None for all.
        pools: The fields of what each pool reads, under the pool's name. ``axes[0].size`` is the
            absolute size and ``axes[0].stage.size`` that of the stage.
    """

    model: str
    input_shape: tuple[int, ...]
    layer: str
    axes: tuple[Axis, ...]
    layers: tuple[LayerField, ...]
    shown: int | None = None
    pools: tuple[LayerField, ...] = ()

    @property
    def first_to_see_all(self) -> str | None:
        """Name of the first layer with a unit that sees the whole image; None if none does."""
        for row in self.layers:
            if not row.problem and all(axis.sees_all for axis in row.axes):
                return row.name
        return None

    def table(self) -> Table:
        """Return a row for each layer that slides a window, or whose units or sizes change.

        Where the axes differ their numbers stand as ``3 x 5``, phases of one axis as ``2 / 3``.
        Where gates alone make a layer see everything its row leaves them out, and says so.
        """
        shape = " x ".join(map(str, self.input_shape))
        return table_of(self.layers[: self.shown], f"{self.model} on {shape}")

    def sheet(self, axis: int | None = None) -> Table:
        """Return the sheet people keep by hand: a row for each window and each change of units.

        Args:
            axis: Number of the image's axis; None for all of them, which are told apart by a
                column ``axis`` if their numbers differ.

        Raises:
            InvalidInputError: If there is no such axis.
        """
        if axis is not None:
            check_integer("axis", axis, minimum=0, maximum=len(self.axes) - 1)
        axes = range(len(self.axes)) if axis is None else [axis]
        return sheet_of(self.layers[: self.shown], axes)

    def __repr__(self) -> str:
        return f"ReceptiveField({self})"

    def __str__(self) -> str:
        whole = self.first_to_see_all
        rest = "" if whole is None else f"; first to see the whole image: {whole}"
        return escape_controls(f"{self.model} at {self.layer}: {line_of(self.axes)}{rest}")

    def __rich_console__(self, console: "Console", options: "ConsoleOptions") -> "RenderResult":
        from rich.text import Text

        yield self.table()
        yield Text(str(self))

    def _repr_html_(self) -> str:
        return f"{self.table().to_html()}<p>{html.escape(str(self))}</p>"

    def to_markdown(self, axis: int | None = None) -> str:
        """Return :meth:`sheet` in Markdown.

        Args:
            axis: As in :meth:`sheet`.
        """
        return self.sheet(axis).to_markdown()

    def to_csv(self, axis: int | None = None) -> str:
        """Return :meth:`sheet` as CSV.

        Args:
            axis: As in :meth:`sheet`.
        """
        return self.sheet(axis).to_csv()

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain data, with the version of the schema; fractions as text."""
        return {
            "schema": SCHEMA,
            "model": self.model,
            "input_shape": list(self.input_shape),
            "layer": self.layer,
            "axes": [axis_as_data(axis) for axis in self.axes],
            "first_to_see_all": self.first_to_see_all,
            "layers": [row_as_data(row) for row in self.layers],
        }

    def to_json(self) -> str:
        """Return everything as JSON."""
        return json.dumps(self.to_dict(), indent=1) + "\n"


def measure_receptive_field(
    model: nn.Module | Graph,
    input_shape: Sequence[int] | None = None,
    *,
    layer: str | None = None,
    inputs: Sequence[Any] | Mapping[str, Any] | None = None,
    batch_axis: BatchAxis = "auto",
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
        batch_axis: Which axis of them is the batch, as in :func:`~constrained_cnn.tracing.trace`.
            Channels come first in a sample, so that of the image is 0 or None.
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
    graph = as_graph(model, input_shape, inputs=inputs, batch_axis=batch_axis, strict=strict)
    check_integer("image", image, minimum=0, maximum=len(graph.inputs) - 1)
    others = (number for number in graph.inputs if number != graph.inputs[image])
    graph = replace(graph, inputs=(graph.inputs[image], *others))
    of_image = graph.values[graph.inputs[0]]
    if not of_image.image_axes:
        order = f" with batch_axis={of_image.batch_axis}" if of_image.batch_axis else ""
        raise InvalidInputError(
            f"input_shape={of_image.sample_shape}: has no image axis after the channels{order}, as "
            "(1, 28, 28) has"
        )
    found = places(graph)
    value = last_spatial(graph, found) if layer is None else graph.value_of(layer)
    if not found[value]:
        raise InvalidInputError(f"layer={layer!r}: does not depend on input {image}")
    problem = next((place.problem for place in found[value] if place.problem), "")
    if problem:
        raise TracingError(
            f"what {layer or graph.model} sees depends on the position: {problem}. Ask for a layer "
            "before it"
        )
    last = next((one for one in graph.layers if value in one.outputs), None)
    placed = [one for one in graph.layers if found[one.outputs[0]]]
    asked = 0 if last is None else placed.index(last) + 1
    return ReceptiveField(
        graph.model,
        of_image.sample_shape,
        layer or ("input" if last is None else last.name),
        _axes(graph, value, found[value]),
        tuple(_row(graph, one, found) for one in placed),
        None if layer is None else asked,
        tuple(_before(graph, one, found) for one in placed if one.begins_stage),
    )


def last_spatial(graph: Graph, found: Sequence[Places]) -> int:
    """Return the last value with a place in the image; raise if the image was formed anew later."""
    image = len(graph.values[graph.inputs[0]].sample_shape)
    shapes = [graph.values[value].sample_shape for value in graph.outputs]
    anew = any(len(shape) == image and max(shape[1:]) > 1 for shape in shapes)
    for layer in reversed(graph.layers):
        # Of several parts that which goes out of the network is meant.
        for value in sorted(layer.outputs, key=lambda one: one not in graph.outputs):
            # What cannot be said is an error, unless it was asked to go on past what is unknown.
            standing = [
                place.axis is not None or (place.problem and not graph.unknown)
                for place in found[value]
            ]
            if standing and all(standing):
                if anew and value not in graph.outputs and not graph.unknown:
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
    before = [_axes(graph, read.value, found[read.value]) for read in reads]
    windows, growth, whole = [], [], []
    for number, axis in enumerate(axes):
        windows.append(_window(graph, reads, found, number))
        growth.append(_growth(axis, [one[number] for one in before]))
        reshapes = all(read.reshapes for read in reads)
        units = windows[-1][0] or 1
        whole.append(growth[-1] is None and axis.units is None and units > 1 and not reshapes)
    return LayerField(
        layer.name,
        layer.path,
        layer.op,
        axes,
        tuple(windows),
        problem,
        tuple(growth),
        tuple(whole),
        layer.kind,
    )


def _before(graph: Graph, layer: Layer, found: Sequence[Places]) -> LayerField:
    """Return the field of what a pool reads, under the pool's name."""
    value = next(read.value for read in layer.reads[0] if found[read.value])
    problem = next((place.problem for place in found[value] if place.problem), "")
    axes = _axes(graph, value, found[value])
    return LayerField(layer.name, layer.path, layer.op, axes, problem=problem, kind=layer.kind)


def _growth(axis: Axis, before: Sequence[Axis]) -> int | None:
    """Return by how much more it sees than the largest of what it reads; None if suddenly all."""
    if axis.seen is None:
        return 0 if any(one.seen is None for one in before) else None
    return axis.seen.size - max((one.seen.size for one in before if one.seen), default=0)


def _window(
    graph: Graph, reads: Sequence[Read], found: Sequence[Places], number: int
) -> tuple[int | None, Window | None]:
    """Return the units before a layer along an axis of the image, and its window."""
    units = None
    for read in reads:
        before = found[read.value][number].axis
        if before is None:
            continue
        length = graph.values[read.value].shape[before]
        for source in read.axes:
            if source is not None and source.axis == before and isinstance(source.by, Window):
                return length, source.by
        if units is None and not read.gate:
            units = length
    return units, None


def _axes(graph: Graph, value: int, of: Sequence[Place]) -> tuple[Axis, ...]:
    image = graph.values[graph.inputs[0]].sample_shape[1:]
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
