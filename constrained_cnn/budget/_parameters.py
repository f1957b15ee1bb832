"""Count parameters: all, and of which kind. Works on the graph alone, without torch."""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from constrained_cnn.budget._folding import foldable, is_stored_norm
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
        deployed: Those that inference needs: unused ones left out, batch norm merged into the
            layer that feeds it or kept as one scale and one shift for each channel, and each
            parametrised weight as the tensor that it makes.
        bytes: Bytes of parameters and buffers for each type of element.
    """

    total: int
    trainable: int
    frozen: int
    shared: int
    unused: int
    buffers: int
    deployed: int
    bytes: Mapping[str, int]


def count_parameters(graph: Graph) -> Parameters:
    """Return how many parameters the network of a graph has."""
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
        deployed=sum(deployed_by_layer(graph).values()),
        bytes=dict(sorted(kinds.items())),
    )


def used_weights(graph: Graph) -> frozenset[int]:
    """Return the weights on which an output depends."""
    return frozenset(w for i in graph.live_layers for w in graph.layers[i].weights)


def deployed_by_layer(graph: Graph) -> dict[int, int]:
    """Return the parameters that inference needs, by the layer that reads them first."""
    pairs = foldable(graph)
    feeders = {feeder: norm for norm, feeder in pairs.items()}
    counted: set[int | str] = set()
    found: dict[int, int] = {}
    for position in sorted(graph.live_layers):
        layer = graph.layers[position]
        before = len(counted)
        need = 0
        for number in layer.weights:
            need += _need(graph, graph.weights[number], number, counted)
        if is_stored_norm(layer):
            channels = graph.values[layer.outputs[0]].shape[1]
            is_new = len(counted) > before
            need = 2 * channels if is_new and position not in pairs else 0
        elif position in feeders and len(counted) > before and not _has_bias(graph, position):
            need += _channels(graph, feeders[position])
        found[position] = need
    return found


def _need(graph: Graph, weight: Weight, number: int, counted: set[int | str]) -> int:
    """Return the elements a weight adds to what is counted already; 0 if it was."""
    if weight.buffer:
        counted.add(number)
        return 0
    key = weight.evaluates_to or number
    if key in counted:
        return 0
    counted.add(key)
    return graph.evaluated[weight.evaluates_to] if weight.evaluates_to else weight.elements


def _channels(graph: Graph, norm: int) -> int:
    return graph.values[graph.layers[norm].outputs[0]].shape[1]


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
