"""How much memory a network takes, and what lives when. From the graph alone, without torch."""

import itertools
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

from constrained_cnn.budget._folding import Folding, foldings_of, vanishing
from constrained_cnn.budget._parameters import Parameters
from constrained_cnn.errors import InvalidInputError, check_choice, escape_controls
from constrained_cnn.graph import ACTIVATIONS, Graph, Layer, TensorInfo, bytes_of
from constrained_cnn.table import say_bytes

ELEMENTS = ("as run", "float32", "float16", "int8")


@dataclass(frozen=True, repr=False)
class Timeline:
    """The bytes that live while each operation runs, under a named accounting.

    A value lives from the operation that makes it to the last that reads it; what the network
    gives lives to the end. Views and results made in place share the memory of what they came
    from. What an operation needs for itself while it runs is not counted.

    Attributes:
        elements: What an element takes: ``"as run"`` its own type, or a type for all that are
            floating-point.
        folded: Whether batch norms that fold take no memory.
        in_place: Whether operations in place write over their input, as the network asks; if not,
            each makes its result anew.
        with_input: Whether the caller's input counts.
        layers: Name of each operation, in the order it runs.
        live: Bytes that live while it runs, its results included.
        fused: Whether an activation works in the memory of the layer before it, if nothing else
            reads what that layer made.
        depthwise_in_place: Whether a depthwise convolution writes over its input, if nothing needs
            that later.
    """

    elements: str
    folded: bool
    in_place: bool
    with_input: bool
    layers: tuple[str, ...]
    live: tuple[int, ...]
    fused: bool = False
    depthwise_in_place: bool = False

    @property
    def peak(self) -> int:
        """The most bytes that live at once."""
        return max(self.live, default=0)

    @property
    def peak_layer(self) -> str:
        """Name of the first operation at which so many live."""
        return self.layers[self.live.index(self.peak)] if self.layers else ""

    @property
    def name(self) -> str:
        """The accounting in words."""
        parts = [
            self.elements,
            "batch norm folded" if self.folded else "",
            "fused" if self.fused else "",
            "depthwise in place" if self.depthwise_in_place else "",
            "" if self.in_place else "nothing in place",
            "with the input" if self.with_input else "",
        ]
        return ", ".join(part for part in parts if part)

    def __repr__(self) -> str:
        return f"Timeline({self})"

    def __str__(self) -> str:
        return escape_controls(f"{self.name}: {self.peak:,} bytes at {self.peak_layer}")


@dataclass(frozen=True, repr=False)
class Memory:
    """How much memory a network takes.

    Attributes:
        weights: Bytes of parameters and buffers, as they are stored.
        deployed_weights: Bytes of the deployed parameters, by what an element takes.
        timeline: Bytes that live at each operation, as the network runs.
        peaks: The same under other accountings, each of which says its name; the first is
            ``timeline``.
        saved_for_backward: Bytes kept for the backward pass, for one sample; None if the network
            cannot run in training mode.
        saved_once: Bytes kept beside, whatever the size of the batch.
        problem: Why the network cannot run in training mode; empty if it can.
        planned: The same as planners of microcontrollers have it: an element one byte, batch norms
            folded, activations fused; and the second with depthwise convolutions in place.
    """

    weights: int
    deployed_weights: Mapping[str, int]
    timeline: Timeline
    peaks: tuple[Timeline, ...]
    saved_for_backward: int | None
    saved_once: int
    problem: str = ""
    planned: tuple[Timeline, ...] = ()

    @property
    def inference_peak(self) -> int:
        """The most bytes of activations that live at once, as the network runs."""
        return self.timeline.peak

    @property
    def peak_layer(self) -> str:
        """The operation at which they live."""
        return self.timeline.peak_layer

    @property
    def int8_timeline(self) -> Timeline:
        """Bytes that live at each operation under int8, batch norm folded, fused."""
        return self.planned[0]

    @property
    def int8_peak(self) -> int:
        """The most of them that live at once."""
        return self.int8_timeline.peak

    @property
    def unfused_int8_timeline(self) -> Timeline:
        """The same, but that an activation makes a map of its own unless it is in place."""
        plain = [peak for peak in self.peaks if peak.elements == "int8" and peak.in_place]
        return plain[-1]  # without a batch norm that folds it is the only one

    @property
    def planned_apart(self) -> tuple[Timeline, ...]:
        """The accountings of planners worth a line, the second only where it differs."""
        first, second = self.planned
        return self.planned if second.peak != first.peak else (first,)

    @property
    def told_apart(self) -> tuple[Timeline, ...]:
        """The accountings worth a line, those with nothing in place only where they differ."""
        with_places = {(p.elements, p.folded): p.peak for p in self.peaks if p.in_place}
        return tuple(
            peak
            for peak in self.peaks
            if peak.in_place or peak.peak != with_places[peak.elements, peak.folded]
        )

    def __repr__(self) -> str:
        saved = self.saved_for_backward
        trained = "cannot tell" if saved is None else say_bytes(saved)
        return escape_controls(
            f"Memory(weights {say_bytes(self.weights)}, inference peak "
            f"{say_bytes(self.inference_peak)} at {self.peak_layer}, saved for backward {trained})"
        )


def memory_timeline(
    graph: Graph,
    *,
    elements: str = "as run",
    folded: bool = False,
    in_place: bool = True,
    with_input: bool = False,
    fused: bool = False,
    depthwise_in_place: bool = False,
) -> Timeline:
    """Return the bytes of activations that live while each operation runs, for one sample.

    Args:
        graph: The network, from :func:`~constrained_cnn.tracing.trace`.
        elements: What an element takes: ``"as run"``, ``"float32"``, ``"float16"`` or ``"int8"``.
        folded: Whether batch norms that :func:`fold_bn` merges away take no memory.
        in_place: Whether operations in place write over their input.
        with_input: Whether the caller's input counts, until its last use.
        fused: Whether an activation works in the memory of the layer before it, in place or not, if
            nothing else reads what that layer made. Runtimes of microcontrollers compute both at
            once.
        depthwise_in_place: Whether a depthwise convolution writes over its input, channel by
            channel, if nothing needs that later and its output is no larger, as TinyEngine does.
            The one channel that it keeps apart is not counted.

    Raises:
        InvalidInputError: If ``elements`` is none of these, or ``graph`` no graph.

    Examples:
        >>> from torch import nn
        >>> from constrained_cnn import trace
        >>> net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(inplace=True), nn.MaxPool2d(2))
        >>> graph = trace(net, (1, 10, 10))
        >>> memory_timeline(graph).live, memory_timeline(graph, in_place=False).live
        ((512, 512, 640), (512, 1024, 640))
        >>> print(memory_timeline(graph, elements="int8", with_input=True))
        int8, with the input: 228 bytes at 0: conv2d

        What a planner finds for an activation that torch does not run in place:

        >>> net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.MaxPool2d(2))
        >>> graph = trace(net, (1, 10, 10))
        >>> print(memory_timeline(graph))
        as run: 1,024 bytes at 1: relu
        >>> print(memory_timeline(graph, elements="int8", folded=True, fused=True))
        int8, batch norm folded, fused: 160 bytes at 2: max_pool2d
    """
    if not isinstance(graph, Graph):
        raise InvalidInputError(f"graph={type(graph).__name__}: must be a Graph, as trace() gives")
    check_choice("elements", elements, ELEMENTS)
    return timeline_of(
        graph,
        elements,
        folded,
        in_place,
        with_input,
        fused=fused,
        depthwise_in_place=depthwise_in_place,
    )


def timeline_of(
    graph: Graph,
    elements: str,
    folded: bool,
    in_place: bool,
    with_input: bool = False,
    *,
    fused: bool = False,
    depthwise_in_place: bool = False,
    gone: Collection[int] | None = None,
) -> Timeline:
    """Return a timeline, with arguments that were checked; ``gone`` are the norms that fold."""
    pieces = pieces_of(
        graph,
        gone=(vanishing(foldings_of(graph)) if gone is None else gone) if folded else (),
        in_place=in_place,
        with_input=with_input,
        fused=fused,
        depthwise_in_place=depthwise_in_place,
    )
    live, names = _live(graph, pieces, elements), tuple(layer.name for layer in graph.layers)
    return Timeline(elements, folded, in_place, with_input, names, live, fused, depthwise_in_place)


def _live(graph: Graph, pieces: Iterable["Piece"], elements: str) -> tuple[int, ...]:
    """Return the bytes that live at each layer."""
    change = [0] * (len(graph.layers) + 1)
    for piece in pieces:
        value = graph.values[piece.value]
        size = value.elements * _element(value, elements)
        change[piece.first] += size
        change[piece.last + 1] -= size
    return tuple(itertools.accumulate(change[:-1]))


def memory_of(graph: Graph, parameters: Parameters, foldings: Iterable[Folding]) -> Memory:
    """Return how much memory a network takes, under every accounting."""
    gone = vanishing(foldings)
    names = tuple(layer.name for layer in graph.layers)
    of_elements: dict[str, list[Timeline]] = {"as run": [], "int8": []}
    for folded in (False, True) if gone else (False,):
        for in_place in (True, False) if any(one.in_place for one in graph.layers) else (True,):
            pieces = pieces_of(graph, gone=gone if folded else (), in_place=in_place)
            for elements, found in of_elements.items():
                live = _live(graph, pieces, elements)
                found.append(Timeline(elements, folded, in_place, False, names, live))
    peaks = tuple(itertools.chain.from_iterable(of_elements.values()))
    run = graph.training
    return Memory(
        weights=sum(weight.bytes for weight in graph.weights),
        deployed_weights={
            kind: parameters.deployed * bytes_of(kind) for kind in ("float32", "int8")
        },
        timeline=peaks[0],
        peaks=peaks,
        saved_for_backward=None if run.problem else sum(layer.saved for layer in run.layers),
        saved_once=0 if run.problem else run.saved_once,
        problem=run.problem,
        planned=tuple(
            timeline_of(
                graph, "int8", True, True, fused=True, depthwise_in_place=depthwise, gone=gone
            )
            for depthwise in (False, True)
        ),
    )


@dataclass
class Piece:
    """A piece of memory.

    Attributes:
        value: The value it was made for, which has its size.
        first: The step from which it lives.
        last: The step that is the last to use it.
        counted: Whether it counts; the caller's need not.
        values: The values that lie in it.
    """

    value: int
    first: int
    last: int
    counted: bool = True
    values: list[int] = field(default_factory=list)


def pieces_of(
    graph: Graph,
    *,
    gone: Collection[int] = (),
    in_place: bool = True,
    with_input: bool = False,
    fused: bool = False,
    depthwise_in_place: bool = False,
) -> list[Piece]:
    """Return the pieces of memory that a network takes, with the steps each lives.

    ``gone`` are the positions of layers that hand on what they are given.
    """
    pieces: list[Piece] = []
    of_value: dict[int, Piece] = {}
    in_memory: dict[int, Piece] = {}
    end = len(graph.layers)
    readers: dict[int, list[int]] = defaultdict(list)
    for step, layer in enumerate(graph.layers):
        for value in layer.sources:
            readers[value].append(step)
    for value in graph.outputs:
        readers[value].append(end)

    def make(value: int, step: int, counted: bool = True) -> Piece:
        pieces.append(Piece(value, step, step, counted))
        return pieces[-1]

    def fuses(step: int, layer: Layer) -> bool:
        """Whether a layer is an activation that alone reads what another layer made."""
        if layer.kind not in ACTIVATIONS or len(layer.sources) != 1:
            return False
        (value,) = layer.sources
        before, after = graph.values[value], graph.values[layer.outputs[0]]
        piece = of_value[value]
        # Views, dropout and folded norms between them read what lies in the same piece.
        reading = {r for v in piece.values for r in readers[v] if not moves(r, piece)}
        same = (before.shape, before.dtype) == (after.shape, after.dtype)
        return same and reading == {step} and piece.value not in graph.inputs

    def moves(step: int, piece: Piece) -> bool:
        return step < end and graph.layers[step].outputs[0] in piece.values

    def overwrites(step: int, layer: Layer) -> bool:
        """Whether a layer is a depthwise convolution whose input nothing needs any more."""
        if not _is_depthwise(graph, layer):
            return False
        (value,) = layer.sources
        piece = of_value[value]
        return piece.counted and all(max(readers[v], default=0) <= step for v in piece.values)

    for value in graph.inputs:
        memory = graph.values[value].memory
        of_value[value] = in_memory[memory] = make(value, 0, with_input)
        of_value[value].values.append(value)
    for step, layer in enumerate(graph.layers):
        for value in layer.sources:
            of_value[value].last = step
        within = step in gone or (fused and fuses(step, layer))
        within = within or (depthwise_in_place and overwrites(step, layer))
        for value in layer.outputs:
            memory = graph.values[value].memory
            shared = in_memory.get(memory)
            if within:
                (source,) = layer.sources
                piece = of_value[source]
            elif shared is None or (layer.in_place and not in_place):
                piece = make(value, step)
            else:
                piece = shared
            of_value[value] = in_memory[memory] = piece
            piece.values.append(value)
            piece.last = step
    for value in graph.outputs:
        of_value[value].last = max(0, end - 1)
    return [piece for piece in pieces if piece.counted]


def _is_depthwise(graph: Graph, layer: Layer) -> bool:
    """Whether a layer makes each channel of one channel, and none that is larger."""
    if layer.kind != "conv" or len(layer.sources) != 1:
        return False
    (value,) = layer.sources
    before, after = graph.values[value].shape, graph.values[layer.outputs[0]].shape
    alone = layer.settings.get("groups") == before[1] == after[1] > 1
    return alone and all(new <= old for new, old in zip(after, before, strict=True))


def _element(value: TensorInfo, elements: str) -> int:
    if elements == "as run" or not value.dtype.startswith(("float", "bfloat")):
        return bytes_of(value.dtype)
    return bytes_of(elements)
