"""What rules are judged on: the graph of a network, what is measured on it, records of its runs."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

from constrained_cnn.budget import Budget, measure_budget
from constrained_cnn.errors import ConstrainedCNNError
from constrained_cnn.graph import Graph, Layer, Program, Shape, Window
from constrained_cnn.receptive_field import LayerField, ReceptiveField, measure_receptive_field
from constrained_cnn.record import RunRecord

_MOST_NAMES = 12


class CannotTellError(Exception):
    """A rule cannot be judged; says why."""


@dataclass(frozen=True)
class Subject:
    """A network as it runs, and the records of its runs. What is measured is measured once.

    Attributes:
        graph: The network.
        runs: The records.
    """

    graph: Graph
    runs: tuple[RunRecord, ...] = ()

    @cached_property
    def budget(self) -> Budget:
        """What it costs."""
        return measure_budget(self.graph)

    @cached_property
    def fields(self) -> tuple[ReceptiveField, ...]:
        """What its units see of each image, up to the last that stand at places of it.

        Raises:
            CannotTellError: If there are operations nobody has described.
        """
        self.check_known()
        return tuple(measure_receptive_field(self.graph, image=image) for image in self._images)

    @cached_property
    def sheets(self) -> tuple[ReceptiveField, ...]:
        """What the units of every layer see of each image, where it can be said and where not."""
        return tuple(
            measure_receptive_field(self.graph, layer=first, image=image)
            for image, first in self._images.items()
            if first is not None
        )

    @cached_property
    def rows(self) -> Mapping[str, tuple[LayerField, ...]]:
        """What the units of each layer see, by its name, once for each image they depend on."""
        found: dict[str, tuple[LayerField, ...]] = {}
        for sheet in self.sheets:
            for row in sheet.layers:
                found[row.name] = (*found.get(row.name, ()), row)
        return found

    @cached_property
    def _images(self) -> Mapping[int, str | None]:
        """The inputs that are images, and the first layer that depends on each."""
        found: dict[int, str | None] = {}
        for image, value in enumerate(self.graph.inputs):
            if self.graph.values[value].image_axes:
                readers = (one.name for one in self.graph.layers if value in one.sources)
                found[image] = next(readers, None)
        return found

    @cached_property
    def evaluation(self) -> Program:
        """The operations in evaluation mode."""
        return self._with_pointwise(self.graph.evaluation)

    @cached_property
    def training(self) -> Program:
        """The operations in training mode.

        Raises:
            CannotTellError: If the network cannot run in training mode, or cannot be followed.
        """
        program = self.graph.training
        if program.problem:
            raise CannotTellError(f"the network does not run in training mode: {program.problem}")
        if program.unseen:
            raise CannotTellError(f"in training mode {listed(program.unseen)}")
        if not program.outputs:
            raise CannotTellError("what the network gives in training mode could not be followed")
        return self._with_pointwise(program)

    def _with_pointwise(self, program: Program) -> Program:
        """Return the same with linear layers that work at each place of an image marked so.

        One that runs in training mode only has no field; its shape decides.
        """
        known = {layer.name for layer in self.graph.layers}

        def marked(layer: Layer) -> Layer:
            alone = layer.name not in known and not is_vector(layer.input_shape)
            if (
                layer.kind == "linear"
                and layer.weights
                and (alone or layer.name in self._at_places)
            ):
                places = len(layer.input_shape) - 1
                return replace(layer, kind="pointwise", windows=(Window(),) * places)
            return layer

        return replace(program, layers=tuple(map(marked, program.layers)))

    @property
    def programs(self) -> tuple[Program, ...]:
        """What runs in evaluation mode, and in training mode where it runs in that."""
        if self.graph.training.problem:
            return (self.evaluation,)
        return self.evaluation, self.training

    def check_known(self) -> None:
        """Raise CannotTellError if there are operations nobody has described."""
        if self.graph.unknown:
            raise CannotTellError(f"nobody has described {listed(self.graph.unknown)}")

    @cached_property
    def unknown_kinds(self) -> tuple[str, ...]:
        """Names of the operations of which it is not known what they are, in either mode."""
        layers = (one for program in self.programs for one in program.layers)
        return tuple(dict.fromkeys(one.name for one in layers if one.kind == "unknown"))

    @property
    def no_kind(self) -> str:
        """Of which operations it is not known what they are, and what to do; empty if of none."""
        names = listed(self.unknown_kinds)
        return f"no kind is known of {names}; register_op(kind=...) says it" if names else ""

    def check_kinds(self) -> None:
        """Raise CannotTellError if it is not known of some operations what they are."""
        if self.unknown_kinds:
            raise CannotTellError(self.no_kind)

    @cached_property
    def _at_places(self) -> frozenset[str]:
        """Names of the linear layers that work at each place of an image and mix no places."""
        shapes = self.graph.values
        linear = frozenset(
            layer.name
            for layer in self.graph.layers
            if layer.kind == "linear" and math.prod(shapes[layer.outputs[0]].shape[:-1]) > 1
        )
        try:
            return frozenset(name for name in linear if any(map(_stays, self.rows.get(name, ()))))
        except ConstrainedCNNError:  # no field can be given; then by its shape
            return linear


def _stays(row: LayerField) -> bool:
    """Whether a layer works at each place: it sees no more than what it reads."""
    units = [axis.units for axis in row.axes]
    return not row.problem and any(units) and all(growth == 0 for growth in row.growth)


def is_vector(shape: Shape) -> bool:
    """Return whether a value has one axis of more than one element, or none.

    Examples:
        >>> is_vector((16,)), is_vector((1, 1, 16)), is_vector((16, 7, 7))
        (True, True, False)
    """
    return sum(size > 1 for size in shape) <= 1


def listed(names: Iterable[str]) -> str:
    """Return names in one line, the first dozen of them.

    Examples:
        >>> listed(str(i) for i in range(15))
        '0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11 and 3 more'
    """
    every = list(names)
    more = len(every) - _MOST_NAMES
    return ", ".join(every[:_MOST_NAMES]) + (f" and {more} more" if more > 0 else "")
