"""What one more channel in each layer would cost. Works on the graph alone, without torch."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction

from constrained_cnn.budget._folding import FEEDERS
from constrained_cnn.budget._memory import pieces_of, timeline_of
from constrained_cnn.graph import ACTIVATIONS, Graph, Layer, Read, bytes_of

# A width is a row of segments: so many times the channels of a group, one after another.
Segment = tuple[int, int]
Width = tuple[Segment, ...]
Shape = tuple[int, ...]

_NORMS = ("batch_norm", "group_norm", "instance_norm")
_NORMS_OF_LAST = ("layer_norm", "rms_norm")
_FIXED = 0  # the group of what the network is given


@dataclass(frozen=True)
class ChannelCost:
    """What more channels in a layer, and in those tied to it, would cost for one sample.

    Attributes:
        layers: The layers that make these channels; more than one where sums tie them.
        channels: How many channels there are.
        step: How many more are counted: 1, or as many as keep groups even.
        parameters: Parameters that come with them.
        macs: Multiply-accumulates that come with them.
        memory: Bytes by which the inference peak grows.
        problem: Why it cannot be said; empty if it can.
    """

    layers: tuple[str, ...]
    channels: int
    step: int
    parameters: int
    macs: int
    memory: int
    problem: str = ""


@dataclass
class _Groups:
    """Channels that can only change together."""

    sizes: list[int] = field(default_factory=lambda: [1])
    layers: list[list[str]] = field(default_factory=lambda: [[]])
    steps: list[int] = field(default_factory=lambda: [1])
    problems: list[str] = field(default_factory=lambda: ["comes from outside"])
    _parent: list[int] = field(default_factory=lambda: [0])

    def new(self, size: int, layer: str) -> int:
        self.sizes.append(size)
        self.layers.append([layer])
        self.steps.append(1)
        self.problems.append("")
        self._parent.append(len(self._parent))
        return len(self._parent) - 1

    def root(self, group: int) -> int:
        while self._parent[group] != group:
            group = self._parent[group]
        return group

    def roots(self) -> list[int]:
        return [group for group in range(1, len(self._parent)) if self._parent[group] == group]

    def tie(self, one: Width, other: Width, where: str) -> None:
        """Make two widths change together."""
        if [times for _, times in one] != [times for _, times in other]:
            self.block(one, f"{where} joins parts of different widths")
            self.block(other, f"{where} joins parts of different widths")
            return
        for (first, _), (second, _) in zip(one, other, strict=True):
            low, high = sorted((self.root(first), self.root(second)))
            if low != high:
                self._parent[high] = low
                self.layers[low] += [x for x in self.layers[high] if x not in self.layers[low]]
                self.steps[low] = math.lcm(self.steps[low], self.steps[high])
                self.problems[low] = self.problems[low] or self.problems[high]

    def block(self, width: Width, why: str) -> None:
        """Note that what more channels would cost cannot be said."""
        for group, _ in width:
            root = self.root(group)
            self.problems[root] = self.problems[root] or why

    def in_steps_of(self, width: Width, step: int) -> None:
        """Note that a width must stay a multiple."""
        for group, times in width:
            root = self.root(group)
            self.steps[root] = math.lcm(self.steps[root], step // math.gcd(step, times))


@dataclass
class _Widths:
    """The channels of each value, followed through the graph."""

    graph: Graph
    groups: _Groups = field(default_factory=_Groups)
    of: dict[int, tuple[int, Width]] = field(default_factory=dict)  # value: its axis, its width
    into: dict[int, Width] = field(default_factory=dict)  # layer: what it reads
    out: dict[int, Width] = field(default_factory=dict)  # layer: what it makes
    depthwise: set[int] = field(default_factory=set)  # layers that take each channel on its own
    growing: set[tuple[int, int]] = field(default_factory=set)  # layer and weight with channels
    _by_weights: dict[tuple[int, ...], int] = field(default_factory=dict)

    def follow(self) -> None:
        for value in self.graph.inputs:
            shape = self.graph.values[value].shape
            if len(shape) > 1 and self.graph.values[value].batch_axis == 0:
                self.of[value] = (1, ((_FIXED, shape[1]),))
        for position, layer in enumerate(self.graph.layers):
            if layer.kind in FEEDERS:
                self._make(position, layer)
            else:
                self._pass(position, layer)
        for value in self.graph.outputs:
            if value in self.of:
                self.groups.block(self.of[value][1], "goes out of the network")

    def _make(self, position: int, layer: Layer) -> None:
        """A convolution or linear layer makes channels of its own."""
        value = min(layer.sources)
        given = self.of.get(value)
        shape = self.graph.values[layer.outputs[0]].shape
        axis = len(shape) - 1 if layer.kind == "linear" else 1
        into: Width = given[1] if given is not None else ((_FIXED, 1),)
        if given is None or given[0] != axis or len(layer.sources) > 1:
            self.groups.block(into, f"{layer.name} does not read them as channels")
        groups = layer.settings.get("groups", 1)
        groups = groups if isinstance(groups, int) else 1
        channels = self.graph.values[value].shape[axis]
        if any(self.graph.weights[w].evaluates_to for w in layer.weights):
            self.groups.block(into, f"{layer.name} has parametrised weights")
        if groups == channels > 1 and shape[1] % channels == 0:  # each channel on its own
            self.depthwise.add(position)
            out = tuple((group, times * (shape[1] // channels)) for group, times in into)
            self._tie_to_earlier(position, layer, into)
        else:
            out = ((self._group(position, layer, shape[axis], into), 1),)
            if groups > 1:
                self.groups.in_steps_of(into, groups)
                self.groups.in_steps_of(out, groups)
            if any(self.graph.weights[w].evaluates_to for w in layer.weights):
                self.groups.block(out, f"{layer.name} has parametrised weights")
        self.into[position], self.out[position] = into, out
        self.of[layer.outputs[0]] = (axis, out)

    def sizes(self, layer: Layer) -> tuple[int, int]:
        """Return how many channels a layer with weights makes, and how many it reads."""
        axis = -1 if layer.kind == "linear" else 1
        into = self.graph.values[min(layer.sources)].shape
        return self.graph.values[layer.outputs[0]].shape[axis], into[axis]

    def _group(self, position: int, layer: Layer, channels: int, into: Width) -> int:
        earlier = self._tie_to_earlier(position, layer, into)
        if earlier is not None:
            return self.out[earlier][0][0]
        group = self.groups.new(channels, layer.name)
        if not layer.weights:
            self.groups.block(((group, 1),), f"{layer.name} has no weights of its own")
        return group

    def _tie_to_earlier(self, position: int, layer: Layer, into: Width) -> int | None:
        """Return the layer that used these weights first, and tie what both read."""
        kernels = [w for w in layer.weights if len(self.graph.weights[w].shape) > 1]
        # With its sizes: a weight may come back transposed.
        key = (*self.sizes(layer), *(kernels or layer.weights))
        earlier = self._by_weights.setdefault(key, position)
        if earlier == position or not layer.weights:
            return None
        self.groups.tie(self.into[earlier], into, layer.name)
        return earlier

    def _pass(self, position: int, layer: Layer) -> None:
        """Any other layer hands channels on, joins them, or mixes them."""
        for output, reads in zip(layer.outputs, layer.reads, strict=True):
            known = [read for read in reads if read.value in self.of and not read.gate]
            if layer.kind == "join" and self._join(layer, output, reads):
                continue
            for read in known:
                axis, width = self.of[read.value]
                at = self._axis_after(layer, output, read, axis)
                if at is None:
                    size = self.graph.values[read.value].shape[axis]
                    if size > 1:
                        self.groups.block(width, f"{layer.name} does not keep them as channels")
                    continue
                place, times = at
                scaled = tuple((group, n * times) for group, n in width)
                if self._shuffles(layer, read):
                    groups = layer.settings.get("groups", 1)
                    self.groups.in_steps_of(scaled, groups if isinstance(groups, int) else 1)
                if output in self.of:
                    self.groups.tie(self.of[output][1], scaled, layer.name)
                else:
                    self.of[output] = (place, scaled)
        if layer.outputs[0] in self.of:
            axis, width = self.of[layer.outputs[0]]
            self.into[position] = self.out[position] = width
            self._weigh(position, layer, axis, width)

    def _weigh(self, position: int, layer: Layer, axis: int, width: Width) -> None:
        """Note which weights of a layer that hands channels on have an axis of channels."""
        shape = self.graph.values[layer.outputs[0]].shape
        for number in layer.weights:
            weight = self.graph.weights[number]
            grows = _has_channels(layer.kind, weight.shape, shape, axis)
            if grows is None:
                self.groups.block(width, f"{layer.name} hides their axis of {weight.name}")
            elif grows:
                self.growing.add((position, number))
                earlier = self._by_weights.setdefault((-1, number), position)
                self.groups.tie(self.out[earlier], width, layer.name)

    def _axis_after(
        self, layer: Layer, output: int, read: Read, axis: int
    ) -> tuple[int, int] | None:
        """Return the output's axis that holds the channels, and how often it holds them."""
        before, after = self.graph.values[read.value].shape, self.graph.values[output].shape
        for place, source in enumerate(read.axes):
            if source is not None and source.axis == axis:
                if source.by is None and before[axis] == after[place]:
                    return place, 1
                return None
        if self._shuffles(layer, read):
            return axis, 1
        flat = layer.kind == "reshapes" and axis == 1 and len(after) == 2
        if flat and math.prod(before[1:]) == after[1]:
            return 1, after[1] // before[1]
        return None

    def _shuffles(self, layer: Layer, read: Read) -> bool:
        """Whether a layer only changes the order of channels."""
        shape = self.graph.values[read.value].shape
        return layer.kind == "shuffle" and shape == self.graph.values[layer.outputs[0]].shape

    def _join(self, layer: Layer, output: int, reads: Sequence[Read]) -> bool:
        """Widths one after another, if it is along the channels that parts are joined."""
        parts = [self.of.get(read.value) for read in reads]
        shape = self.graph.values[output].shape
        axes = {part[0] for part in parts if part is not None}
        if None in parts or len(axes) != 1:
            return False
        (axis,) = axes
        if sum(self.graph.values[read.value].shape[axis] for read in reads) != shape[axis]:
            return False
        self.of[output] = (axis, tuple(s for part in parts if part for s in part[1]))
        return True


def _has_channels(kind: str, weight: Shape, shape: Shape, axis: int) -> bool | None:
    """Return whether a weight has an entry for each channel of an output; None if none can tell."""
    channels, ahead = shape[axis], len(shape) - len(weight)
    if kind in _NORMS:
        return weight == (channels,)
    if math.prod(weight) == 1:
        return False
    if kind in ACTIVATIONS:
        return weight == (channels,)
    if kind in _NORMS_OF_LAST:
        return axis >= ahead
    if channels not in weight:
        return False
    fits = ahead >= 0 and all(w in (1, n) for w, n in zip(weight, shape[ahead:], strict=True))
    if fits and axis >= ahead and channels > 1:  # stretched over the rest, as torch does
        return weight[axis - ahead] == channels
    # Elsewhere it was put in another shape first, and only a size that is there once is a sign.
    return None if fits or channels == 1 or weight.count(channels) > 1 else True


def channel_costs(graph: Graph) -> tuple[ChannelCost, ...]:
    """Return what one more channel in each layer would cost, in the order the layers run."""
    widths = _Widths(graph)
    widths.follow()
    counter = _Counter(graph, widths)
    return tuple(counter.cost(group) for group in widths.groups.roots())


class _Counter:
    """Counts what more channels in a group bring, looking only where the group is."""

    def __init__(self, graph: Graph, widths: _Widths) -> None:
        self._graph, self._widths = graph, widths
        self._layers: dict[int, set[int]] = {}
        self._values: dict[int, set[int]] = {}
        for position in widths.out:
            for group, _ in (*widths.into[position], *widths.out[position]):
                self._layers.setdefault(widths.groups.root(group), set()).add(position)
        for value, (_, width) in widths.of.items():
            for group, _ in width:
                self._values.setdefault(widths.groups.root(group), set()).add(value)
        self._first_to_read: dict[int, int] = {}
        for position, layer in enumerate(graph.layers):
            for weight in layer.weights:
                self._first_to_read.setdefault(weight, position)
        self._pieces = {piece.value: piece for piece in pieces_of(graph)}
        self._live = timeline_of(graph, "as run", False, True).live

    def cost(self, group: int) -> ChannelCost:
        """Return what one step more of a group's channels costs."""
        groups = self._widths.groups
        step, size = groups.steps[group], groups.sizes[group]
        nothing = ChannelCost(tuple(groups.layers[group]), size, step, 0, 0, 0)
        if groups.problems[group]:
            return replace(nothing, problem=groups.problems[group])
        parameters = macs = Fraction(0)
        for position in self._layers[group]:
            more = self._more(group, position)
            parameters, macs = parameters + more[0], macs + more[1]
        memory = self._peak_with(group) - max(self._live, default=0)
        return replace(nothing, parameters=int(parameters), macs=int(macs), memory=memory)

    def _growth(self, group: int, width: Width) -> Fraction:
        """Return how many times as wide a width becomes."""
        groups = self._widths.groups
        sizes = [(groups.sizes[groups.root(g)] if g else 1) * n for g, n in width]
        more = [groups.steps[group] * n if groups.root(g) == group else 0 for g, n in width]
        return 1 + Fraction(sum(more), sum(sizes))

    def _more(self, group: int, position: int) -> tuple[Fraction, Fraction]:
        """Return the parameters and the MACs that come in one layer."""
        layer = self._graph.layers[position]
        into = self._growth(group, self._widths.into[position])
        out = self._growth(group, self._widths.out[position])
        alone = position in self._widths.depthwise
        if layer.kind not in FEEDERS or alone:
            into = Fraction(1)
        parameters = Fraction(0)
        for number in layer.weights:
            weight = self._graph.weights[number]
            if weight.buffer or self._first_to_read[number] != position:
                continue
            if layer.kind in FEEDERS:
                growth = self._growth_of_kernel(layer, weight.shape, into, out, alone)
            else:
                growth = out if (position, number) in self._widths.growing else Fraction(1)
            parameters += weight.elements * (growth - 1)
        macs = 0 if layer.work is None else layer.work.macs
        return parameters, macs * (into * out - 1)

    def _growth_of_kernel(
        self, layer: Layer, shape: Shape, into: Fraction, out: Fraction, alone: bool
    ) -> Fraction:
        """Return how many times as large a weight of a convolution or linear layer becomes."""
        makes, reads = self._widths.sizes(layer)
        if len(shape) < 2:
            return out if shape == (makes,) else Fraction(1)
        groups = layer.settings.get("groups", 1)
        groups = groups if isinstance(groups, int) else 1
        axes = [(makes, out), (reads // groups, into)]
        if (
            layer.kind == "transposed_conv"
        ):  # of a depthwise one the axis of inputs grows with the outputs
            axes = [(reads, out)] if alone else [(reads, into), (makes // groups, out)]
        of_axes = [
            growth for size, (whole, growth) in zip(shape, axes, strict=False) if size == whole
        ]
        return math.prod(of_axes, start=Fraction(1))

    def _peak_with(self, group: int) -> int:
        """Return the inference peak with one step more of a group's channels."""
        change = [0] * (len(self._live) + 1)
        for number in self._values[group]:
            piece = self._pieces.get(number)
            if piece is not None:
                value = self._graph.values[number]
                growth = self._growth(group, self._widths.of[number][1]) - 1
                more = int(value.elements * growth) * bytes_of(value.dtype)
                change[piece.first] += more
                change[piece.last + 1] -= more
        return max(map(sum, zip(self._live, itertools.accumulate(change), strict=False)))
