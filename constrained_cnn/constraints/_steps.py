"""The operations of a network in the order they run, and what follows what: in either mode."""

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from constrained_cnn.graph import Graph
from constrained_cnn.graph._graph import Setting

Shape = tuple[int, ...]

_RENAMED = {
    "_native_batch_norm_legit_no_training": "batch_norm",
    "_threshold": "threshold",
    "addmm": "linear",
    "concat": "cat",
    "concatenate": "cat",
}


@dataclass(frozen=True)
class Step:
    """One operation that ran.

    Attributes:
        op: Its name, forms with indices under the plain one.
        name: Its path and name, as a report tells it.
        inputs: The values it was given, in order.
        outputs: The values it made.
        path: Path of the module it ran in.
        settings: Its arguments that are no tensors.
        shapes: Shape of each value it was given, for one sample.
        after: Shape of the first value it made.
        weighted: Whether it reads a weight.
        at_places: Whether it is a linear layer that works at each place of an image.
        position: Its place in the order.
    """

    op: str
    name: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    path: str = ""
    settings: Mapping[str, Setting] = field(default_factory=dict)
    shapes: tuple[Shape, ...] = ()
    after: Shape = ()
    weighted: bool = False
    at_places: bool = False
    position: int = 0

    @property
    def before(self) -> Shape:
        """Shape of the first value it was given; none where it was given none."""
        return self.shapes[0] if self.shapes else ()


@dataclass(frozen=True)
class Course:
    """All that ran in one mode.

    Attributes:
        steps: The operations, in order.
        outputs: The values that go out of the network.
    """

    steps: tuple[Step, ...]
    outputs: tuple[int, ...]

    @cached_property
    def makers(self) -> Mapping[int, Step]:
        """The step that made each value."""
        return {value: step for step in self.steps for value in step.outputs}

    @cached_property
    def readers(self) -> Mapping[int, tuple[Step, ...]]:
        """The steps on which an output depends that read each value."""
        found: dict[int, list[Step]] = defaultdict(list)
        for step in self.steps:
            for value in dict.fromkeys(step.inputs) if self.is_live(step) else ():
                found[value].append(step)
        return {value: tuple(steps) for value, steps in found.items()}

    @cached_property
    def _live(self) -> frozenset[int]:
        wanted, found = set(self.outputs), set()
        for step in reversed(self.steps):
            if wanted.intersection(step.outputs):
                found.add(step.position)
                wanted.update(step.inputs)
        return frozenset(found)

    def is_live(self, step: Step) -> bool:
        """Return whether an output depends on a step."""
        return step.position in self._live

    def following(self, step: Step) -> tuple[Step, ...]:
        """Return the live steps that read what a step made."""
        found = {one.position: one for v in step.outputs for one in self.readers.get(v, ())}
        return tuple(found[position] for position in sorted(found))

    def reached_from(self, steps: Sequence[Step]) -> tuple[Step, ...]:
        """Return some steps and all live ones that depend on them."""
        found = {step.position: step for step in steps}
        waiting = list(steps)
        while waiting:
            for step in self.following(waiting.pop()):
                if step.position not in found:
                    found[step.position] = step
                    waiting.append(step)
        return tuple(found[position] for position in sorted(found))


def evaluation_of(graph: Graph, at_places: Collection[str]) -> Course:
    """Return what runs in evaluation mode.

    Args:
        graph: The network.
        at_places: Names of the linear layers that work at each place of an image.
    """
    steps = []
    writes: dict[int, list[int]] = defaultdict(list)  # by piece of memory
    for position, layer in enumerate(graph.layers):
        read = [read.value for read in layer.reads[0]]
        inputs = tuple(value for one in read for value in _now_in(graph, one, writes))
        if layer.in_place:
            writes[graph.values[layer.outputs[0]].memory].append(layer.outputs[0])
        steps.append(
            Step(
                _plain(layer.op),
                layer.name,
                inputs,
                layer.outputs,
                layer.path,
                layer.settings,
                tuple(graph.values[value].shape[1:] for value in inputs),
                graph.values[layer.outputs[0]].shape[1:],
                bool(layer.weights),
                layer.name in at_places,
                position,
            )
        )
    outputs = (value for one in graph.outputs for value in _now_in(graph, one, writes))
    return Course(tuple(steps), tuple(outputs))


def _now_in(graph: Graph, value: int, writes: Mapping[int, Sequence[int]]) -> Sequence[int]:
    """Return what a value holds after what was written in place through others of its memory."""
    later = [one for one in writes[graph.values[value].memory] if one > value]
    # What was written read what was there before, so that one write stands for both.
    return later if len(later) == 1 else [value, *later]


def training_of(graph: Graph, at_places: Collection[str]) -> Course:
    """Return what runs in training mode.

    Args:
        graph: The network.
        at_places: As for :func:`evaluation_of`.
    """
    run = graph.training
    lending = {layer.name: bool(layer.weights) for layer in graph.layers}
    steps = []
    for position, layer in enumerate(run.layers):
        shapes = tuple(run.shapes[value] for value in layer.inputs)
        alone = _plain(layer.op) == "linear" and layer.name not in lending  # in training only
        steps.append(
            Step(
                _plain(layer.op),
                layer.name,
                layer.inputs,
                layer.outputs,
                layer.path,
                layer.settings,
                shapes,
                run.shapes[layer.outputs[0]],
                lending.get(layer.name, alone),
                layer.name in at_places or (alone and not is_vector(shapes[0])),
                position,
            )
        )
    return Course(tuple(steps), run.outputs)


def is_vector(shape: Shape) -> bool:
    """Return whether a value has one axis of more than one element, or none.

    Examples:
        >>> is_vector((16,)), is_vector((1, 1, 16)), is_vector((16, 7, 7))
        (True, True, False)
    """
    return sum(size > 1 for size in shape) <= 1


def _plain(op: str) -> str:
    return _RENAMED.get(op, op.removesuffix("_with_indices"))
