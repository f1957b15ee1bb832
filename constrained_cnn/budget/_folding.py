"""Batch norms that merge into a layer before or behind. From the graph alone, without torch."""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from constrained_cnn.graph import (
    CONVS,
    NORMS,
    AxisRead,
    Border,
    Graph,
    Layer,
    Taps,
)

FEEDERS = (*CONVS, "linear")

SHIFT, BOTH, WHOLE = "shift", "scale and shift", "norm as it is"


@dataclass(frozen=True)
class Folding:
    """What becomes of a norm when a network is folded.

    Attributes:
        layer: Name of the norm.
        into: Name of the layer that takes its scale; empty if none does.
        left: What stays in its place: nothing (empty), ``"shift"`` or ``"scale and shift"`` of each
            channel, or the ``"norm as it is"``.
        why: Why that stays; empty if nothing does.
        position: Where the norm stands among the layers of the graph.
        target: Where the layer stands that takes its scale; None if none does.
        forward: Whether that layer comes after the norm.
    """

    layer: str
    into: str
    left: str
    why: str
    position: int
    target: int | None = None
    forward: bool = False

    def __str__(self) -> str:
        if not self.left:
            return f"{self.layer}: folds into {self.into}"
        what = "stays as it is" if self.left == WHOLE else f"leaves its {self.left}"
        return f"{self.layer}: {what}, {self.why}"


def is_stored_norm(layer: Layer) -> bool:
    """Whether a layer is a batch norm with stored statistics: scale and shift, in evaluation."""
    return layer.kind == "batch_norm" and not layer.settings.get("training", False)


def foldings_of(graph: Graph) -> tuple[Folding, ...]:
    """Return what becomes of each norm, in the order they run.

    A batch norm folds back where a convolution or linear layer feeds it directly and nothing else
    reads what that layer gives. Else it folds forward, through pools that keep channels apart, into
    the next convolution or linear layer, if nothing else reads what lies between. Either way the
    two layers must meet each other wherever the weights of one are used: a layer that feeds two
    norms has two sets of weights once folded.
    """
    flow = Flow(graph)
    layers = graph.layers
    norms = [i for i, layer in enumerate(layers) if layer.kind in NORMS]
    plain = [i for i in norms if is_stored_norm(layers[i]) and layers[i].path in graph.plain]
    plain = [i for i in plain if len(layers[i].sources) == 1]
    fed = {i: flow.feeder(i) for i in plain}
    back = _consistent(graph, {i: feeder for i, feeder in fed.items() if feeder is not None})
    ways = {i: flow.way(i) for i in plain if i not in back}
    ahead = _consistent(graph, {i: w.target for i, w in ways.items() if w.target is not None})
    hindered: dict[tuple[int, ...], _Way] = {}  # a norm that runs twice goes the harder way
    for i in ahead:
        before = hindered.get(layers[i].weights, _Way())
        hindered[layers[i].weights] = _Way(
            shift_stays=before.shift_stays or ways[i].shift_stays, pool=before.pool or ways[i].pool
        )
    found = []
    for i in norms:
        one = Folding(layers[i].name, "", "", "", i)
        if i in back:
            one = replace(one, into=layers[back[i]].name, target=back[i])
        elif i in ahead:
            one = _forward(graph, one, ahead[i], hindered[layers[i].weights])
        elif i in ways:
            why = (
                ways[i].why or "for its weights, or those of the next layer, are used elsewhere too"
            )
            one = replace(one, left=BOTH, why=why)
        else:
            one = replace(one, left=WHOLE, why=_why_whole(graph, layers[i]))
        found.append(one)
    return tuple(found)


def vanishing(foldings: Iterable[Folding]) -> frozenset[int]:
    """Return the positions of the norms of which nothing is left."""
    return frozenset(one.position for one in foldings if not one.left)


def _forward(graph: Graph, one: Folding, target: int, way: "_Way") -> Folding:
    """Return how a norm goes into a layer after it."""
    sign = graph.plain[graph.layers[one.position].path]
    if way.pool and sign != "+":
        why = f"for it is not positive in every channel and {way.pool} takes the largest"
        return replace(one, left=BOTH, why=why)
    if way.shift_stays and sign == "0":
        why = f"for {way.shift_stays}, and before a scale of 0 no shift can stand"
        return replace(one, left=BOTH, why=why)
    into = graph.layers[target].name
    left = SHIFT if way.shift_stays else ""
    why = f"for {way.shift_stays}" if left else ""
    return replace(one, into=into, left=left, why=why, target=target, forward=True)


def _why_whole(graph: Graph, layer: Layer) -> str:
    if layer.kind != "batch_norm":
        return "for it works out its statistics anew for each sample"
    if not is_stored_norm(layer):
        return "for it works out its statistics anew for each batch"
    kind = graph.declared.get(layer.path)
    if kind is None:
        return "for it is no module of its own in the network"
    return f"for {kind}, has a forward or hooks of its own"


@dataclass(frozen=True)
class _Way:
    """The way from a norm to the next layer that could take it.

    Attributes:
        target: Position of that layer; None if there is none.
        why: Why there is none.
        shift_stays: Why the shift cannot go the way; empty if it can.
        pool: The first max-pool on the way; empty if there is none.
    """

    target: int | None = None
    why: str = ""
    shift_stays: str = ""
    pool: str = ""


class Flow:
    """What makes and what reads each value."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.maker = {value: i for i, layer in enumerate(graph.layers) for value in layer.outputs}
        self.readers: Mapping[int, list[int | None]] = defaultdict(list)
        for i, layer in enumerate(graph.layers):
            for value in layer.sources:
                self.readers[value].append(i)
        for value in graph.outputs:
            self.readers[value].append(None)

    def feeder(self, norm: int) -> int | None:
        """Return the convolution or linear layer that feeds a norm directly, and nothing else."""
        layer = self.graph.layers[norm]
        return self.feeds(min(layer.sources))

    def feeds(self, value: int) -> int | None:
        """Return the convolution or linear layer that makes a value for one reader alone."""
        before = self.maker.get(value)
        if before is None or len(self.readers[value]) != 1:
            return None
        feeder = self.graph.layers[before]
        # After a linear layer on a sequence the norm runs over positions, not features.
        over_positions = feeder.kind == "linear" and len(self.graph.values[value].shape) != 2
        fits = feeder.kind in FEEDERS and feeder.path in self.graph.plain and not over_positions
        return before if fits else None

    def way(self, norm: int) -> _Way:
        """Return the way from a norm to the next convolution or linear layer."""
        graph = self.graph
        (value,) = graph.layers[norm].outputs[:1]
        channels = graph.values[value].shape[1]
        shift_stays = pool = ""
        while True:
            readers = self.readers[value]
            names = [graph.layers[i].name for i in readers if i is not None]
            if None in readers or not readers:
                why = "it goes out of the network" if readers else "nothing reads it"
                return _Way(why=f"for {why}")
            if len(names) > 1:
                return _Way(why=f"for {' and '.join(names[:3])} read it")
            (position,) = (i for i in readers if i is not None)
            layer = graph.layers[position]
            if layer.kind in FEEDERS:
                if not self._takes(layer, value, channels):
                    return _Way(why=f"for {layer.name} reads it otherwise than torch's layers")
                pads = layer.kind != "linear" and self._pads(layer)
                if pads:
                    shift_stays = shift_stays or f"{layer.name} reads zeros of padding beside it"
                return _Way(position, "", shift_stays, pool)
            passes = self._passes(layer, value)
            if passes is None:
                return _Way(why=f"for {layer.name} comes before a layer that could take it")
            shift_stays = shift_stays or passes
            if layer.kind == "max_pool":
                pool = pool or layer.name
            value = layer.outputs[0]

    def _takes(self, layer: Layer, value: int, channels: int) -> bool:
        """Whether a layer's weights have an entry for each channel of a value."""
        shape = self.graph.values[value].shape
        if layer.path not in self.graph.plain or layer.sources != {value}:
            return False
        if layer.kind == "linear":
            return len(shape) == 2 and shape[1] % channels == 0
        return shape[1] == channels

    def _pads(self, layer: Layer) -> bool:
        """Whether a convolution may read anything but its input; a transposed one reads gaps."""
        if layer.kind == "transposed_conv":
            return True
        sizes = zip(layer.windows, layer.input_shape[1:], layer.output_shape[1:], strict=True)
        return any(
            window.padding != 0
            or after != (before - window.dilation * (window.kernel - 1) - 1) // window.stride + 1
            for window, before, after in sizes
        )

    def _passes(self, layer: Layer, value: int) -> str | None:
        """Return why a shift cannot pass a layer, empty if it can; None if a scale cannot."""
        values, reads = self.graph.values, layer.reads[0]
        unread = not any(self.readers[other] for other in layer.outputs[1:])
        if layer.sources != {value} or len(reads) != 1 or not unread:
            return None
        before, after = values[value], values[layer.outputs[0]]
        flat = reads[0].reshapes and after.shape == (before.shape[0], math.prod(before.shape[1:]))
        if flat:
            return ""
        axes = reads[0].axes
        if before.dtype != after.dtype or axes[:2] != (AxisRead(0), AxisRead(1)):
            return None
        settings, windows = layer.settings, layer.windows
        match layer.kind:
            case "moves" | "reshapes" | "max_pool" | "mean":
                return ""
            case "dropout":
                on = settings.get("training", settings.get("train", True))
                return None if on else ""
            case "avg_pool":
                padded = any(window.padding for window in windows)
                counted = padded and settings.get("count_include_pad", True)
                divides = settings.get("divisor_override") is not None
                return f"{layer.name} divides by other than it sums" if counted or divides else ""
            case "pad" if all(one and isinstance(one.by, Border | Taps | None) for one in axes):
                return ""
            case "pad" if "value" in settings and not settings["value"]:
                return f"{layer.name} puts zeros beside it"
        return None


def _consistent(graph: Graph, pairs: Mapping[int, int]) -> dict[int, int]:
    """Leave out pairs whose weights are used elsewhere in another pairing."""
    partners: dict[int, set[tuple[int, ...]]] = {}
    alone: set[int] = set()
    for norm, other in pairs.items():
        for one, its in ((norm, other), (other, norm)):
            for weight in graph.layers[one].weights:
                partners.setdefault(weight, set()).add(graph.layers[its].weights)
    paired = set(pairs) | set(pairs.values())
    for position, layer in enumerate(graph.layers):
        if position not in paired:
            alone.update(layer.weights)

    def fits(position: int) -> bool:
        weights = graph.layers[position].weights
        return all(w not in alone and len(partners[w]) == 1 for w in weights)

    return {norm: other for norm, other in pairs.items() if fits(norm) and fits(other)}
