"""Rules on what a network costs."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

from constrained_cnn.budget import Budget
from constrained_cnn.constraints._measured import Measure, Measured
from constrained_cnn.constraints._subject import CannotTellError, Subject, listed
from constrained_cnn.errors import InvalidInputError, check_choice
from constrained_cnn.graph import Weight

_HEAVIEST = 5
_COUNTS = ("total", "trainable", "frozen", "deployed", "unused", "buffers")


def heaviest(costs: Iterable[tuple[str, int]], count: int = _HEAVIEST) -> str:
    """Return the layers with the largest share of a cost, in words.

    Args:
        costs: Name and cost of each layer.
        count: How many layers to name.

    Examples:
        >>> heaviest([("a: conv2d", 90), ("b: conv2d", 10), ("c: relu", 0)])
        'heaviest: a: conv2d 90 (90 %), b: conv2d 10 (10 %)'
    """
    every = [(name, cost) for name, cost in costs if cost]
    total = sum(cost for _, cost in every)
    top = sorted(every, key=lambda pair: -pair[1])[:count]
    said = [f"{name} {cost:,} ({100 * cost / total:.0f} %)" for name, cost in top]
    return f"heaviest: {', '.join(said)}" if said else ""


@dataclass(frozen=True, repr=False)
class Parameters(Measured):
    """How many parameters there are.

    Every tensor counts once, in all layers, those that never run included.

    Attributes:
        count: Which: ``"total"``, ``"trainable"``, ``"frozen"``, ``"deployed"``, ``"unused"`` or
            ``"buffers"``, as in :class:`~constrained_cnn.budget.Parameters`.

    Examples:
        >>> Parameters(at_least=12_000, at_most=18_000).required
        '12,000 to 18,000'
        >>> Parameters(near=12_000, within=500).required
        '12,000 ± 500'
    """

    kind: ClassVar[str] = "parameters"
    count: str = "total"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("count", self.count, _COUNTS)

    @property
    def title(self) -> str:
        """What it is about."""
        noun = "buffers" if self.count == "buffers" else "parameters"
        return noun if self.count in ("total", "buffers") else f"{self.count} {noun}"

    def measure(self, subject: Subject) -> Measure:
        """Return their number."""
        found = subject.budget.parameters
        never = [weight.name for weight in _never_read(subject)]
        evidence = [heaviest((layer.name, layer.parameters) for layer in subject.budget.layers)]
        evidence += [f"{found.frozen:,} of them are frozen"] if found.frozen else []
        evidence += [f"never read: {listed(never)} ({found.unused:,})"] if never else []
        number = getattr(found, self.count)
        return Measure((number,), tuple(filter(None, evidence)))


def _never_read(subject: Subject) -> list[Weight]:
    graph = subject.graph
    read = {number for layer in graph.layers for number in layer.weights}
    return [w for i, w in enumerate(graph.weights) if not w.buffer and i not in read]


@dataclass(frozen=True, repr=False)
class Macs(Measured):
    """How many multiply-accumulates one sample takes.

    Examples:
        >>> Macs(at_most=4_000_000).required
        'at most 4,000,000'
    """

    kind: ClassVar[str] = "macs"

    @property
    def title(self) -> str:
        """What it is about."""
        return "MACs"

    def measure(self, subject: Subject) -> Measure:
        """Return their number; a lower bound if there are operations nobody has described."""
        budget = subject.budget
        costs = ((layer.name, layer.work.macs if layer.work else 0) for layer in budget.layers)
        evidence = tuple(filter(None, [heaviest(costs), _unknown(budget)]))
        return Measure((budget.macs,), evidence, at_least=not budget.complete)


def _unknown(budget: Budget) -> str:
    return "" if budget.complete else f"nobody has described {listed(budget.unknown)}"


@dataclass(frozen=True, repr=False)
class Memory(Measured):
    """How many bytes one sample takes while it runs, by a named accounting.

    Attributes:
        accounting: ``"inference peak"``: the most bytes of activations that live at once, as the
            network runs; ``"int8 peak"``: the same, an element one byte and batch norms folded;
            ``"saved for backward"``; or the name of another of the budget's peaks.

    Examples:
        >>> Memory(at_most=64_000, accounting="int8 peak").title
        'memory, int8 peak'
    """

    kind: ClassVar[str] = "memory"
    unit: ClassVar[str] = "B"
    accounting: str = "inference peak"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.accounting, str) or not self.accounting:
            raise InvalidInputError(
                f"accounting={self.accounting!r}: must be 'inference peak', 'int8 peak', "
                "'saved for backward', or the name of another peak of the budget"
            )

    @property
    def title(self) -> str:
        """What it is about."""
        return f"memory, {self.accounting}"

    def measure(self, subject: Subject) -> Measure:
        """Return the bytes and where they are."""
        memory = subject.budget.memory
        if self.accounting == "saved for backward":
            if memory.saved_for_backward is None:
                raise CannotTellError(f"it does not run in training mode: {memory.problem}")
            costs = ((layer.name, layer.saved) for layer in subject.budget.layers)
            return Measure((memory.saved_for_backward,), (heaviest(costs),))
        peaks = {peak.name: peak for peak in memory.peaks}
        peaks |= {"inference peak": memory.timeline, "int8 peak": memory.int8_timeline}
        peak = peaks[check_choice("accounting", self.accounting, tuple(peaks))]
        evidence = tuple(filter(None, [f"at {peak.peak_layer}", _unknown(subject.budget)]))
        return Measure((peak.peak,), evidence, at_least=not subject.budget.complete)


@dataclass(frozen=True, repr=False)
class WeightBytes(Measured):
    """How many bytes the weights take.

    Attributes:
        stored_as: ``"as stored"``: parameters and buffers as they are; ``"float32"`` or
            ``"int8"``: the deployed parameters, so much for each.

    Examples:
        >>> WeightBytes(at_most=16_384, stored_as="int8").title
        'bytes of weights, int8'
    """

    kind: ClassVar[str] = "weight_bytes"
    unit: ClassVar[str] = "B"
    stored_as: str = "as stored"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("stored_as", self.stored_as, ("as stored", "float32", "int8"))

    @property
    def title(self) -> str:
        """What it is about."""
        return f"bytes of weights, {self.stored_as}"

    def measure(self, subject: Subject) -> Measure:
        """Return the bytes."""
        memory, layers = subject.budget.memory, subject.budget.layers
        if self.stored_as == "as stored":
            costs = ((layer.name, layer.parameters) for layer in layers)
            return Measure((memory.weights,), (heaviest(costs),))
        costs = ((layer.name, layer.deployed) for layer in layers)
        return Measure((memory.deployed_weights[self.stored_as],), (heaviest(costs),))
