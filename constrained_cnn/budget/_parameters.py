"""Count parameters: all, and of which kind. Works on the graph alone, without torch."""

import math
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

from constrained_cnn.budget._folding import SHIFT, WHOLE, Folding, foldings_of
from constrained_cnn.errors import InvalidInputError
from constrained_cnn.graph import Graph, Weight


@dataclass(frozen=True)
class Parameters:
    """How many parameters a network has; each number counts elements, tied tensors once.

    Attributes:
        total: All of them, those of modules that never run included.
        trainable: Those that take a gradient.
        frozen: Those that take none.
        shared: Those known under several names, or read by several operations.
        unused: Those on which no output depends.
        buffers: Elements of buffers, such as the statistics of batch norm; not in the total.
        deployed: Those that inference needs: unused ones left out, each batch norm merged into the
            layer before it or behind as :func:`fold_bn` does it, and each parametrised weight as
            the tensor that it makes.
        bytes: Bytes of parameters and buffers for each type of element.
        statistics: Running means and variances of batch norms. Keras counts them as parameters.
        left: What of its norms deployment keeps: their names, and why.
    """

    total: int
    trainable: int
    frozen: int
    shared: int
    unused: int
    buffers: int
    deployed: int
    bytes: Mapping[str, int]
    statistics: int = 0
    left: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "left", tuple(self.left))  # JSON has lists


def count_parameters(graph: Graph) -> Parameters:
    """Return how many parameters the network of a graph has, without what else it costs.

    Raises:
        InvalidInputError: If it is no graph; :func:`~constrained_cnn.tracing.trace` gives one.

    Examples:
        >>> from torch import nn
        >>> from constrained_cnn.tracing import trace
        >>> counts = count_parameters(trace(nn.Conv2d(1, 8, 3), (1, 28, 28)))
        >>> counts.total, counts.trainable
        (80, 80)
    """
    if not isinstance(graph, Graph):
        raise InvalidInputError(f"graph={type(graph).__name__}: must be a Graph, as trace() gives")
    foldings = foldings_of(graph)
    readers = Counter(weight for layer in graph.layers for weight in layer.weights)
    used = used_weights(graph)
    numbered = list(enumerate(graph.weights))
    parameters = [(i, weight) for i, weight in numbered if not weight.buffer]
    kinds: Counter[str] = Counter()
    for weight in graph.weights:
        kinds[weight.dtype] += weight.bytes
    total = sum(weight.elements for _, weight in parameters)
    trainable = sum(weight.elements for _, weight in parameters if weight.trainable)
    return Parameters(
        total=total,
        trainable=trainable,
        frozen=total - trainable,
        shared=sum(w.elements for i, w in parameters if len(w.names) > 1 or readers[i] > 1),
        unused=sum(w.elements for i, w in parameters if i not in used),
        buffers=sum(weight.elements for weight in graph.weights if weight.buffer),
        deployed=sum(deployed_by_layer(graph, foldings).values()),
        bytes=dict(sorted(kinds.items())),
        statistics=_statistics(graph),
        left=tuple(str(one) for one in foldings if one.left),
    )


def used_weights(graph: Graph) -> frozenset[int]:
    """Return the weights on which an output depends."""
    return frozenset(w for i in graph.live_layers for w in graph.layers[i].weights)


def _statistics(graph: Graph) -> int:
    """Return the elements of the buffers that batch norms read."""
    norms = (layer for layer in graph.layers if layer.kind == "batch_norm")
    read = {number for layer in norms for number in layer.weights}
    return sum(graph.weights[i].elements for i in read if graph.weights[i].buffer)


def deployed_by_layer(graph: Graph, foldings: Sequence[Folding]) -> dict[int, int]:
    """Return the parameters that inference needs, by the layer that reads them first."""
    norms = {one.position: one for one in foldings if one.left != WHOLE}
    # Where a shift goes, a layer without a bias gets one.
    shifted = {one.target for one in norms.values() if one.left != SHIFT}
    counted: set[Hashable] = set()
    found: dict[int, int] = {}
    for position in sorted(graph.live_layers):
        layer = graph.layers[position]
        if position in norms:
            found[position] = _left(graph, norms[position], counted)
            continue
        need = sum(_need(graph, graph.weights[i], i, counted) for i in layer.weights)
        key = "bias", layer.weights
        if position in shifted and key not in counted and not _has_bias(graph, position):
            counted.add(key)
            need += graph.values[layer.outputs[0]].shape[1]
        found[position] = need
    return found


def _left(graph: Graph, one: Folding, counted: set[Hashable]) -> int:
    """Return the elements of what is left of a norm; 0 if they were counted."""
    layer = graph.layers[one.position]
    key = "left", layer.weights, layer.settings.get("eps")
    if not one.left or key in counted:
        return 0
    counted.add(key)
    return (1 if one.left == SHIFT else 2) * graph.values[layer.outputs[0]].shape[1]


def _need(graph: Graph, weight: Weight, number: int, counted: set[Hashable]) -> int:
    """Return the elements a weight adds to what is counted already; 0 if it was."""
    if weight.buffer:
        counted.add(number)
        return 0
    key = weight.evaluates_to or number
    if key in counted:
        return 0
    counted.add(key)
    return graph.evaluated[weight.evaluates_to] if weight.evaluates_to else weight.elements


def _has_bias(graph: Graph, position: int) -> bool:
    work = graph.layers[position].work
    return work is not None and work.bias > 0


def parameters_by_layer(graph: Graph) -> dict[int, int]:
    """Return the parameters by the layer that reads them first; what none reads is not in it."""
    found: dict[int, int] = {}
    counted: set[int] = set()
    for position, layer in enumerate(graph.layers):
        new = [w for w in layer.weights if w not in counted and not graph.weights[w].buffer]
        counted.update(new)
        found[position] = sum(math.prod(graph.weights[w].shape) for w in new)
    return found
