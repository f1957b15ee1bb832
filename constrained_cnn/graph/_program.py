"""The operations of one mode of a network, and what follows what."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

from constrained_cnn.graph._layer import Layer


@dataclass(frozen=True)
class Program:
    """All that runs in one mode, evaluation or training, in the order it runs.

    Attributes:
        layers: The operations.
        outputs: The values that go out of the network, after what was written into them in place.
        ran: Paths of the modules that were called.
        draws: Names of the operations that draw random numbers and are no dropout.
        saved_once: Bytes kept for the backward pass that do not grow with the batch, such as the
            statistics of a batch; 0 in evaluation mode.
        problem: Why it could not be run to its end; empty if it could.
        unseen: What happened in it that could not be followed; a layer may be missing. Empty if
            everything could.
    """

    layers: tuple[Layer, ...] = ()
    outputs: tuple[int, ...] = ()
    ran: frozenset[str] = frozenset()
    draws: tuple[str, ...] = ()
    saved_once: int = 0
    problem: str = ""
    unseen: tuple[str, ...] = ()

    @cached_property
    def makers(self) -> Mapping[int, Layer]:
        """The layer that made each value."""
        return {value: layer for layer in self.layers for value in layer.outputs}

    @cached_property
    def readers(self) -> Mapping[int, tuple[Layer, ...]]:
        """The live layers that read each value."""
        readers: dict[int, list[Layer]] = defaultdict(list)
        for layer in self.layers:
            for value in dict.fromkeys(layer.inputs) if self.is_live(layer) else ():
                readers[value].append(layer)
        return {value: tuple(layers) for value, layers in readers.items()}

    @cached_property
    def _live(self) -> frozenset[int]:
        """The first value of each layer that an output depends on."""
        wanted, live = set(self.outputs), set()
        for layer in reversed(self.layers):
            if wanted.intersection(layer.outputs):
                live.add(layer.outputs[0])
                wanted.update(layer.inputs)
        return frozenset(live)

    def is_live(self, layer: Layer) -> bool:
        """Return whether an output depends on a layer."""
        return layer.outputs[0] in self._live

    def following(self, layer: Layer) -> tuple[Layer, ...]:
        """Return the live layers that read what a layer made."""
        after = {one.outputs[0]: one for v in layer.outputs for one in self.readers.get(v, ())}
        return tuple(after[value] for value in sorted(after))

    def reached_from(self, layers: Iterable[Layer]) -> tuple[Layer, ...]:
        """Return some layers and all live ones that depend on them."""
        waiting = list(layers)
        reached = {layer.outputs[0]: layer for layer in waiting}
        while waiting:
            for layer in self.following(waiting.pop()):
                if layer.outputs[0] not in reached:
                    reached[layer.outputs[0]] = layer
                    waiting.append(layer)
        return tuple(reached[value] for value in sorted(reached))
