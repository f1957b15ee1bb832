"""Rules on what a network costs, and on what it becomes on a device."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from constrained_cnn.budget import Budget, memory_timeline
from constrained_cnn.budget._folding import foldings_of
from constrained_cnn.budget._memory import ELEMENTS
from constrained_cnn.budget._order import better_order
from constrained_cnn.constraints._measured import Measure, Measured
from constrained_cnn.constraints._rule import Finding, Rule, check_text, checked_by
from constrained_cnn.constraints._subject import CannotTellError, Subject, listed
from constrained_cnn.constraints._table import register_rule
from constrained_cnn.errors import check_choice
from constrained_cnn.table import say_kib

_COUNTS = ("total", "trainable", "frozen", "deployed", "unused", "buffers")


def heaviest(costs: Iterable[tuple[str, int]]) -> str:
    """Return the layers with the largest share of a cost, in words.

    Examples:
        >>> heaviest([("a: conv2d", 90), ("b: conv2d", 10), ("c: relu", 0)])
        'heaviest: a: conv2d 90 (90 %), b: conv2d 10 (10 %)'
    """
    every = [(name, cost) for name, cost in costs if cost]
    total = sum(cost for _, cost in every)
    top = sorted(every, key=lambda pair: -pair[1])[:5]
    said = [f"{name} {cost:,} ({100 * cost / total:.0f} %)" for name, cost in top]
    return f"heaviest: {', '.join(said)}" if said else ""


@register_rule
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

    kind = "parameters"
    count: str = field(default="total", metadata=checked_by(check_choice, _COUNTS))

    @property
    def title(self) -> str:
        """What it is about."""
        noun = "buffers" if self.count == "buffers" else "parameters"
        return noun if self.count in ("total", "buffers") else f"{self.count} {noun}"

    def measure(self, subject: Subject) -> Measure:
        """Return their number."""
        found = subject.budget.parameters
        return Measure((getattr(found, self.count),), tuple(self._evidence(subject)))

    def _evidence(self, subject: Subject) -> Iterator[str]:
        budget, weights = subject.budget, subject.graph.weights
        if self.count in ("total", "trainable"):
            yield heaviest((layer.name, layer.parameters) for layer in budget.layers)
        if self.count == "deployed":
            yield heaviest((layer.name, layer.deployed) for layer in budget.layers)
        if self.count == "buffers":
            yield listed(weight.name for weight in weights if weight.buffer)
        frozen = [one.name for one in weights if not one.buffer and not one.trainable]
        if self.count in ("total", "frozen") and frozen:
            yield f"{budget.parameters.frozen:,} frozen: {listed(frozen)}"
        read = {number for layer in subject.graph.layers for number in layer.weights}
        never = [w.name for i, w in enumerate(weights) if not w.buffer and i not in read]
        if self.count in ("total", "unused") and never:
            yield f"never read: {listed(never)}"
        if self.count == "unused" and budget.parameters.unused:
            yield "no output depends on them"


@register_rule
@dataclass(frozen=True, repr=False)
class Macs(Measured):
    """How many multiply-accumulates one sample takes.

    Examples:
        >>> Macs(at_most=4_000_000).required
        'at most 4,000,000'
    """

    kind = "macs"
    title = "MACs"

    def measure(self, subject: Subject) -> Measure:
        """Return their number; a lower bound if there are operations nobody has described."""
        budget = subject.budget
        costs = ((layer.name, layer.work.macs if layer.work else 0) for layer in budget.layers)
        evidence = (heaviest(costs), _unknown(budget))
        return Measure((budget.macs,), evidence, at_least=not budget.complete)


def _unknown(budget: Budget) -> str:
    return "" if budget.complete else f"nobody has described {listed(budget.unknown)}"


# What an operation that is not known would change: no number is a lower bound then.
_SPARING = ("fused", "depthwise_in_place", "folded")
_SAVED = "saved for backward"
_PEAKS = {"inference peak": "as run", "int8 peak": "int8, batch norm folded, fused"}
_WAYS = {
    "folded": "batch norm folded",
    "fused": "fused",
    "depthwise_in_place": "depthwise in place",
    "in_place": "nothing in place",
    "with_input": "with the input",
}


def _check_accounting(name: str, value: Any) -> str:
    elements, *ways = check_text(name, value).split(", ")
    if elements not in ELEMENTS:
        check_choice(name, value, (*_PEAKS, _SAVED, *ELEMENTS))
    for way in ways:
        check_choice(name, way, _WAYS.values())
    return str(value)


@register_rule
@dataclass(frozen=True, repr=False)
class Memory(Measured):
    """How many bytes one sample takes while it runs, by a named accounting.

    Attributes:
        accounting: ``"inference peak"``: the most bytes of activations that live at once, as the
            network runs; ``"int8 peak"``: the same as planners of microcontrollers have it, an
            element one byte, batch norms folded and activations fused; ``"saved for backward"``;
            or what an element takes (``"as run"``, ``"float32"``, ``"float16"``, ``"int8"``), and
            after it, with commas between, ``"batch norm folded"``, ``"fused"``, ``"depthwise in
            place"``, ``"nothing in place"``, ``"with the input"``, as
            :func:`~constrained_cnn.budget.memory_timeline` has them.

    Examples:
        >>> Memory(at_most=64_000, accounting="int8 peak").title
        'memory, int8 peak'
        >>> Memory(at_most=64_000, accounting="int8, batch norm folded, with the input").required
        'at most 64,000 B'
    """

    kind = "memory"
    unit = "B"
    accounting: str = field(default="inference peak", metadata=checked_by(_check_accounting))

    @property
    def title(self) -> str:
        """What it is about."""
        return f"memory, {self.accounting}"

    def measure(self, subject: Subject) -> Measure:
        """Return the bytes and where they are."""
        memory = subject.budget.memory
        if self.accounting == _SAVED:
            if memory.saved_for_backward is None:
                raise CannotTellError(f"it does not run in training mode: {memory.problem}")
            if subject.graph.training.unseen:
                raise CannotTellError(f"in training mode {listed(subject.graph.training.unseen)}")
            costs = ((layer.name, layer.saved) for layer in subject.budget.layers)
            return Measure((memory.saved_for_backward,), (heaviest(costs),))
        ways = self._keywords()
        if not subject.budget.complete and any(ways[way] for way in _SPARING):
            raise CannotTellError(f"{_unknown(subject.budget)}, and it may need less so")
        peak = memory_timeline(subject.graph, **ways)
        place = f"at {peak.peak_layer}"
        if self.accounting in _PEAKS:  # a word that says no accounting
            place += f" ({peak.name}: {say_kib(peak.peak)})"
        evidence = (place, _unknown(subject.budget))
        return Measure((peak.peak,), evidence, at_least=not subject.budget.complete)

    def _keywords(self) -> dict[str, Any]:
        elements, *ways = _PEAKS.get(self.accounting, self.accounting).split(", ")
        asked = {keyword: way in ways for keyword, way in _WAYS.items()}
        return {"elements": elements, **asked, "in_place": "nothing in place" not in ways}


@register_rule
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

    kind = "weight_bytes"
    unit = "B"
    stored_as: str = field(
        default="as stored",
        metadata=checked_by(check_choice, ("as stored", "float32", "int8")),
    )

    @property
    def title(self) -> str:
        """What it is about."""
        return f"bytes of weights, {self.stored_as}"

    def measure(self, subject: Subject) -> Measure:
        """Return the bytes."""
        memory, stored = subject.budget.memory, self.stored_as == "as stored"
        number = memory.weights if stored else memory.deployed_weights[self.stored_as]
        costs = (
            (layer.name, layer.parameters if stored else layer.deployed)
            for layer in subject.budget.layers
        )
        return Measure((number,), (f"in parameters, {heaviest(costs)}",))


@register_rule
@dataclass(frozen=True, repr=False)
class EveryNormFolds(Rule):
    """Nothing is left of any norm once the network is folded, as ``fold_bn`` does it.

    Norms that work out statistics of the sample, such as group norm, never fold; those on which no
    output depends do not matter.

    Examples:
        >>> from torch import nn
        >>> from constrained_cnn.constraints import Subject
        >>> from constrained_cnn.tracing import trace
        >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
        >>> EveryNormFolds().judge(Subject(trace(net, (1, 8, 8)))).measured
        '1 of 1 norms folds'
    """

    kind = "norms_fold"
    title = "every norm folds"
    required = "nothing left of any norm"

    def find(self, subject: Subject) -> Finding:
        """Return the norms of which something is left, and why."""
        graph = subject.graph
        norms = [one for one in foldings_of(graph) if one.position in graph.live_layers]
        left = [str(one) for one in norms if one.left]
        if not left:
            subject.check_known()
        order = better_order(graph) if left else None
        folding = len(norms) - len(left)
        measured = f"{folding} of {len(norms)} norms {'folds' if folding == 1 else 'fold'}"
        return self.finding(
            not left,
            measured if norms else "there is no norm",
            excess=f"{len(left)} {'stays' if len(left) == 1 else 'stay'}" if left else "",
            evidence=(*left, *([str(order)] if order else [])),
        )
