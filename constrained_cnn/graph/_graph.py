"""A network as it runs in evaluation mode, and what of it differs in training."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

from constrained_cnn.errors import InvalidInputError, closest, counted, escape_controls
from constrained_cnn.graph._layer import Layer, TensorInfo, Weight
from constrained_cnn.graph._program import Program


@dataclass(frozen=True, repr=False)
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
        constants: Products that run and do not depend on the input, such as a position bias worked
            out of weights. They make and read no values.
        evaluation: The same layers, and what follows what.
        declared: The class of each module without modules in it, by its path.
        plain: The convolutions, linear layers and batch norms, by path, that do with their weights
            what torch's classes do, and nothing around it; of a batch norm the signs of its scale:
            ``"+"``, ``"+-"``, or ``"0"`` if it is 0 in some channel.
        train: Runs the network in training mode; called once, when somebody asks for it.
    """

    model: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    values: tuple[TensorInfo, ...]
    layers: tuple[Layer, ...]
    modules: Mapping[str, int]
    weights: tuple[Weight, ...] = ()
    evaluated: Mapping[str, int] = field(default_factory=dict)
    constants: tuple[Layer, ...] = ()
    evaluation: Program = field(default_factory=Program)
    declared: Mapping[str, str] = field(default_factory=dict)
    train: Callable[[], Program] = field(default=Program, repr=False, compare=False)
    plain: Mapping[str, str] = field(default_factory=dict)

    def __repr__(self) -> str:
        unknown = f", unknown: {', '.join(self.unknown)}" if self.unknown else ""
        text = f"Graph({self.model}: {counted(len(self.layers), 'operation')}{unknown})"
        return escape_controls(text)

    @cached_property
    def training(self) -> Program:
        """What runs in training mode."""
        return self.train()

    @cached_property
    def idle(self) -> Mapping[str, str]:
        """The class of each module that neither ran, in either mode, nor lent a weight."""
        read = {number for layer in self.layers for number in layer.weights}
        lenders = {
            name.rpartition(".")[0] for number in read for name in self.weights[number].names
        }
        busy = self.evaluation.ran | self.training.ran | lenders
        return {path: kind for path, kind in self.declared.items() if path not in busy}

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
