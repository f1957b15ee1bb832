"""How much memory lives at each step of inference. Works on the graph alone, without torch."""

from dataclasses import dataclass

from constrained_cnn.budget._folding import foldable
from constrained_cnn.errors import InvalidInputError, check_choice
from constrained_cnn.graph import Graph, TensorInfo, bytes_of

ELEMENTS = ("as run", "float32", "float16", "int8")


@dataclass(frozen=True)
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
    """

    elements: str
    folded: bool
    in_place: bool
    with_input: bool
    layers: tuple[str, ...]
    live: tuple[int, ...]

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
            "" if self.in_place else "nothing in place",
            "with the input" if self.with_input else "",
        ]
        return ", ".join(part for part in parts if part)

    def __str__(self) -> str:
        return f"{self.name}: {self.peak:,} bytes at {self.peak_layer}"


def memory_timeline(
    graph: Graph,
    *,
    elements: str = "as run",
    folded: bool = False,
    in_place: bool = True,
    with_input: bool = False,
) -> Timeline:
    """Return the bytes of activations that live while each operation runs, for one sample.

    Args:
        graph: The network, from :func:`~constrained_cnn.tracing.trace`.
        elements: What an element takes: ``"as run"``, ``"float32"``, ``"float16"`` or ``"int8"``.
        folded: Whether batch norms that fold are merged into the layer before them.
        in_place: Whether operations in place write over their input.
        with_input: Whether the caller's input counts, until its last use.

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
    """
    if not isinstance(graph, Graph):
        raise InvalidInputError(f"graph={type(graph).__name__}: must be a Graph, as trace() gives")
    check_choice("elements", elements, ELEMENTS)
    return timeline_of(graph, elements, folded, in_place, with_input)


def timeline_of(
    graph: Graph,
    elements: str,
    folded: bool,
    in_place: bool,
    with_input: bool = False,
    counts: list[int] | None = None,
) -> Timeline:
    """Return a timeline; ``counts`` are the elements of each value, where not its own."""
    sizes = [
        (value.elements if counts is None else counts[number]) * _element(value, elements)
        for number, value in enumerate(graph.values)
    ]
    buffers = _Buffers(sizes, with_input)
    for value in graph.inputs:
        buffers.hold(value, buffers.new(value, -1, of_caller=True), graph.values[value].memory)
    merged = foldable(graph) if folded else {}
    for step, layer in enumerate(graph.layers):
        for value in layer.sources:
            buffers.use(value, step)
        for value in layer.outputs:
            memory = graph.values[value].memory
            shared = buffers.in_memory.get(memory)
            if step in merged:
                (source,) = layer.sources
                buffers.hold(value, buffers.of_value[source], memory)
            elif shared is None or (layer.in_place and not in_place):
                buffers.hold(value, buffers.new(value, step), memory)
            else:
                buffers.hold(value, shared, memory)
            buffers.use(value, step)
    for value in graph.outputs:
        buffers.use(value, len(graph.layers) - 1)
    return Timeline(
        elements,
        folded,
        in_place,
        with_input,
        tuple(layer.name for layer in graph.layers),
        buffers.live(len(graph.layers)),
    )


class _Buffers:
    """Pieces of memory, each with its size, its first and its last step."""

    def __init__(self, sizes: list[int], with_input: bool) -> None:
        self._sizes = sizes
        self._with_input = with_input
        self._size: list[int] = []
        self._first: list[int] = []
        self._last: list[int] = []
        self.of_value: dict[int, int] = {}
        self.in_memory: dict[int, int] = {}

    def new(self, value: int, step: int, *, of_caller: bool = False) -> int:
        """Return a new piece, as large as a value."""
        counted = self._with_input or not of_caller
        self._size.append(self._sizes[value] if counted else 0)
        self._first.append(max(step, 0))
        self._last.append(max(step, 0))
        return len(self._size) - 1

    def hold(self, value: int, piece: int, memory: int) -> None:
        """Note where a value lies."""
        self.of_value[value] = self.in_memory[memory] = piece

    def use(self, value: int, step: int) -> None:
        """Note that a value is still needed."""
        piece = self.of_value[value]
        self._last[piece] = max(self._last[piece], step)

    def live(self, steps: int) -> tuple[int, ...]:
        """Return the bytes that live at each step."""
        change = [0] * (steps + 1)
        for size, first, last in zip(self._size, self._first, self._last, strict=True):
            change[first] += size
            change[last + 1] -= size
        found, now = [], 0
        for delta in change[:-1]:
            now += delta
            found.append(now)
        return tuple(found)


def _element(value: TensorInfo, elements: str) -> int:
    if elements == "as run" or not value.dtype.startswith(("float", "bfloat")):
        return bytes_of(value.dtype)
    return bytes_of(elements)
