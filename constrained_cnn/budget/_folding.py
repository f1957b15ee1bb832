"""Which batch norms merge into the layer before them. Works on the graph alone, without torch."""

from collections import Counter

from constrained_cnn.graph import CONVS, Graph, Layer

FEEDERS = (*CONVS, "linear")


def is_stored_norm(layer: Layer) -> bool:
    """Whether a layer is a batch norm with stored statistics: scale and shift, in evaluation."""
    return layer.kind == "batch_norm" and not layer.settings.get("training", False)


def foldable(graph: Graph) -> dict[int, int]:
    """Return the position of each batch norm that folds, and of the layer it folds into.

    It folds where a convolution or linear layer feeds it directly, nothing else reads what that
    layer gives, and wherever the weights of either are used they meet each other again: a module
    that feeds two norms has two sets of weights once folded. After a ReLU it does not fold, nor
    forward into a convolution with padding, whose zeros come after the shift.
    """
    maker = {value: i for i, layer in enumerate(graph.layers) for value in layer.outputs}
    readers = Counter(value for layer in graph.layers for value in layer.sources)
    readers.update(graph.outputs)
    pairs: dict[int, int] = {}
    for position, layer in enumerate(graph.layers):
        if not is_stored_norm(layer) or len(layer.sources) != 1:
            continue
        (value,) = layer.sources
        before = maker.get(value)
        if before is None or readers[value] != 1 or graph.layers[before].kind not in FEEDERS:
            continue
        # After a linear layer on a sequence the norm runs over positions, not features.
        if graph.layers[before].kind == "linear" and len(graph.values[value].shape) != 2:
            continue
        pairs[position] = before
    return _consistent(graph, pairs)


def _consistent(graph: Graph, pairs: dict[int, int]) -> dict[int, int]:
    """Leave out pairs whose weights are used elsewhere in another pairing."""
    partners: dict[int, set[tuple[int, ...]]] = {}
    alone: set[int] = set()
    for norm, feeder in pairs.items():
        for one, other in ((norm, feeder), (feeder, norm)):
            for weight in graph.layers[one].weights:
                partners.setdefault(weight, set()).add(graph.layers[other].weights)
    paired = set(pairs) | set(pairs.values())
    for position, layer in enumerate(graph.layers):
        if position not in paired:
            alone.update(layer.weights)

    def fits(position: int) -> bool:
        weights = graph.layers[position].weights
        return all(w not in alone and len(partners[w]) == 1 for w in weights)

    return {n: f for n, f in pairs.items() if fits(n) and fits(f)}
