"""The operations of a network in the order they run, and what follows what: in either mode."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from constrained_cnn.graph import Graph
from constrained_cnn.graph._graph import Setting

Shape = tuple[int, ...]

_RENAMED = {
    "_native_batch_norm_legit_no_training": "batch_norm",
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
        settings: Its arguments that are no tensors.
        before: Shape of the first value it was given, for one sample.
        after: Shape of the first value it made.
        weighted: Whether it reads a weight.
        position: Its place in the order.
    """

    op: str
    name: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    settings: Mapping[str, Setting] = field(default_factory=dict)
    before: Shape = ()
    after: Shape = ()
    weighted: bool = False
    position: int = 0


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


def evaluation_of(graph: Graph) -> Course:
    """Return what runs in evaluation mode."""
    steps = []
    for position, layer in enumerate(graph.layers):
        inputs = tuple(dict.fromkeys(read.value for reads in layer.reads for read in reads))
        steps.append(
            Step(
                _plain(layer.op),
                layer.name,
                inputs,
                layer.outputs,
                layer.settings,
                graph.values[inputs[0]].shape[1:] if inputs else (),
                graph.values[layer.outputs[0]].shape[1:],
                bool(layer.weights),
                position,
            )
        )
    return Course(tuple(steps), graph.outputs)


def training_of(graph: Graph) -> Course:
    """Return what runs in training mode."""
    run = graph.training
    lending = {layer.name for layer in graph.layers if layer.weights}
    steps = [
        Step(
            _plain(layer.op),
            layer.name,
            layer.inputs,
            layer.outputs,
            layer.settings,
            run.shapes[layer.inputs[0]] if layer.inputs else (),
            run.shapes[layer.outputs[0]],
            layer.name in lending,
            position,
        )
        for position, layer in enumerate(run.layers)
    ]
    return Course(tuple(steps), run.outputs)


def _plain(op: str) -> str:
    return _RENAMED.get(op, op.removesuffix("_with_indices"))
