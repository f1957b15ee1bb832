"""What a network costs: parameters, arithmetic and memory, in total and for each layer."""

import dataclasses
import html
import json
from collections import defaultdict, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import nn

from constrained_cnn.budget._folding import Folding, foldings_of
from constrained_cnn.budget._memory import Memory, memory_of, timeline_of
from constrained_cnn.budget._parameters import (
    Parameters,
    count_parameters,
    deployed_by_layer,
    parameters_by_layer,
)
from constrained_cnn.errors import escape_controls
from constrained_cnn.graph import Graph, Work
from constrained_cnn.table import Table, escape_markdown, say_bytes, say_kib
from constrained_cnn.tracing import as_graph
from constrained_cnn.tracing._inputs import BatchAxis

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult

__all__ = ["Budget", "LayerCost", "Memory", "measure_budget"]

SCHEMA = "constrained_cnn.budget/1"

CONVENTIONS = (
    "One sample, in evaluation mode, as it runs: a module called twice works twice.",
    "Parameters: distinct tensors, tied ones once, those of modules that never run included.",
    (
        "MACs: multiply-accumulates of convolutions (taps in the padding included), transposed "
        "convolutions, linear layers, products of matrices and attention; FLOPs = 2 x MACs."
    ),
    "Bias, norms, element-wise work, pooling and resampling have columns of their own.",
    "Products of weights with weights count, for they run each time; a weight norm is not one.",
    (
        "Memory: activations that live while an operation runs, without the caller's input and "
        "without what the operation needs for itself; 1 kB is 1,000 bytes, 1 KiB is 1,024."
    ),
    (
        "Device peaks, as planners of microcontrollers find them: an element one byte, batch norms "
        "folded, an activation in the memory of the layer before it (fused)."
    ),
    (
        "Saved for backward: what autograd keeps in training mode on a CPU, no parameters or "
        "buffers, the input included where it is kept."
    ),
)


# What a narrow terminal leaves out, in this order.
_MAY_GO = (
    "bias",
    "norm",
    "element-wise",
    "pooling",
    "saved bytes",
    "output",
    "deployed",
    "live bytes",
)


# Of the norms that leave something, so many have a line of their own.
_MOST_NORMS = 5


@dataclass(frozen=True)
class LayerCost:
    """What one operation costs, for one sample.

    Attributes:
        name: Path of its module and name of the operation.
        path: Path of its module.
        op: The operation.
        shape: Shape of what it gives, without the batch; empty for parameters that nothing reads.
        parameters: Parameters that it is the first to read.
        deployed: Of those, what inference needs (``Parameters.deployed``).
        work: Its arithmetic; None where nobody has described it.
        live: Bytes of activations that live while it runs.
        saved: Bytes it keeps for the backward pass, for one sample.
    """

    name: str
    path: str
    op: str
    shape: tuple[int, ...]
    parameters: int
    deployed: int
    work: Work | None
    live: int
    saved: int


@dataclass(frozen=True, repr=False)
class Budget:
    """What a network costs, for one sample.

    Attributes:
        model: Name of the model's class.
        input_shapes: Shape of one sample of each input.
        parameters: How many parameters it has.
        work: Its arithmetic, summed over the layers.
        memory: How much memory it takes.
        layers: What each operation costs; columns sum to the totals.
        unknown: Operations that nobody has described; where there are any, the totals lack them.
    """

    model: str
    input_shapes: tuple[tuple[int, ...], ...]
    parameters: Parameters
    work: Work
    memory: Memory
    layers: tuple[LayerCost, ...]
    unknown: tuple[str, ...] = ()

    @property
    def macs(self) -> int:
        """Multiply-accumulates."""
        return self.work.macs

    @property
    def flops(self) -> int:
        """Operations of the multiply-accumulates, two for each."""
        return 2 * self.work.macs

    @property
    def complete(self) -> bool:
        """Whether every operation is known, so that the totals hold."""
        return not self.unknown

    @property
    def conventions(self) -> tuple[str, ...]:
        """What is counted, and how."""
        return CONVENTIONS

    def totals(self) -> Table:
        """Return the totals: one row for each quantity."""
        p, m = self.parameters, self.memory
        rows = [
            ("parameters", f"{p.total:,}", _parts(trainable=p.trainable, frozen=p.frozen)),
            ("", "", _parts(shared=p.shared, unused=p.unused, buffers=p.buffers)),
            ("", "", _keras(p)),
            ("deployed parameters", f"{p.deployed:,}", _bytes(m.deployed_weights)),
            ("MACs", f"{self.macs:,}", f"{self.flops:,} FLOPs"),
            ("other operations", "", _parts(**_other(self.work))),
            ("weights", say_bytes(m.weights), _bytes(p.bytes)),
        ]
        for i, peak in enumerate(m.told_apart):
            where = f"at {peak.peak_layer} ({peak.name})"
            rows.append(("" if i else "inference peak", say_bytes(peak.peak), where))
        rows.append(self._saved_row())
        for i, peak in enumerate(m.planned_apart):
            where = f"at {peak.peak_layer} ({peak.name})"
            rows.append(("" if i else "device peak", say_kib(peak.peak), where))
        more = len(p.left) - _MOST_NORMS
        for i, norm in enumerate(p.left[:_MOST_NORMS]):
            rows.append(("" if i else "norms not folded", "" if i else str(len(p.left)), norm))
        if more > 0:
            rows.append(("", "", f"and {more} more: budget.foldings"))
        if not self.complete:
            rows.append(("not known", str(len(self.unknown)), ", ".join(self.unknown)))
        return Table(("<cost", "of one sample", "<of which"), tuple(r for r in rows if any(r[1:])))

    def _saved_row(self) -> tuple[str, str, str]:
        m = self.memory
        if m.saved_for_backward is None:
            return "saved for backward", "cannot tell", m.problem[:80]
        once = f"and {say_bytes(m.saved_once)} once for the batch" if m.saved_once else ""
        return "saved for backward", say_bytes(m.saved_for_backward), once

    def table(self) -> Table:
        """Return the layers: one row for each operation, and the totals."""
        columns = (
            "<layer",
            "<output",
            "parameters",
            "deployed",
            "MACs",
            "bias",
            "norm",
            "element-wise",
            "pooling",
            "live bytes",
            "saved bytes",
        )
        rows = [self._row(layer) for layer in self.layers]
        p, m = self.parameters, self.memory
        numbers = (
            p.total,
            p.deployed,
            *dataclasses.astuple(self.work),
            m.inference_peak,
            m.saved_for_backward,
        )
        cells = tuple("?" if number is None else f"{number:,}" for number in numbers)
        total = ("total (live: peak)", "", *cells)
        return Table(columns, tuple(rows), total, title=self._title, may_go=_MAY_GO)

    @property
    def _title(self) -> str:
        shapes = ", ".join(" x ".join(map(str, shape)) for shape in self.input_shapes)
        return escape_controls(f"{self.model} on {shapes}{self._incomplete}")

    @property
    def _incomplete(self) -> str:
        return "" if self.complete else ", incomplete: not every operation is known"

    @staticmethod
    def _row(layer: LayerCost) -> tuple[str, ...]:
        work = ("?",) * 5 if layer.work is None else dataclasses.astuple(layer.work)
        numbers = (layer.parameters, layer.deployed, *work, layer.live, layer.saved)
        cells = [f"{n:,}" if n != 0 and n != "?" else str(n if n else "") for n in numbers]
        return (layer.name, " x ".join(map(str, layer.shape)), *cells)

    def quantities(self) -> dict[str, int]:
        """Return the totals by name, to compare with another network's."""
        p, m = self.parameters, self.memory
        found = {
            "parameters": p.total,
            "trainable parameters": p.trainable,
            "deployed parameters": p.deployed,
            "MACs": self.macs,
            "bytes of weights": m.weights,
            **{f"bytes of deployed weights, {kind}": n for kind, n in m.deployed_weights.items()},
            "bytes at the inference peak": m.inference_peak,
            "bytes at the int8 peak, batch norm folded": m.unfused_int8_timeline.peak,
            "bytes at the int8 peak, batch norm folded, fused": m.int8_peak,
        }
        if m.saved_for_backward is not None:
            found["bytes saved for backward"] = m.saved_for_backward
        return found

    def peak_layers(self) -> dict[str, str]:
        """Return which layer makes each of the peaks among :meth:`quantities`."""
        return {
            "bytes at the inference peak": self.memory.peak_layer,
            "bytes at the int8 peak, batch norm folded": (
                self.memory.unfused_int8_timeline.peak_layer
            ),
            "bytes at the int8 peak, batch norm folded, fused": (
                self.memory.int8_timeline.peak_layer
            ),
        }

    def layer_quantities(self) -> list[tuple[str, dict[str, int]]]:
        """Return the parameters and MACs of each layer, to compare with another network's."""
        return [
            (row.name, {"parameters": row.parameters, "MACs": row.work.macs if row.work else 0})
            for row in self.layers
        ]

    def __repr__(self) -> str:
        numbers = f"{self.parameters.total:,} parameters, {self.macs:,} MACs"
        return escape_controls(f"Budget({self.model}: {numbers}{self._incomplete})")

    def __str__(self) -> str:
        return f"{self._title}\n\n{self.totals()}"

    def __rich_console__(self, console: "Console", options: "ConsoleOptions") -> "RenderResult":
        yield self.table()
        yield self.totals()

    def _repr_html_(self) -> str:
        title = f"<p>{html.escape(self._title)}</p>"
        return title + self.totals().to_html() + self.table().to_html()

    def to_markdown(self) -> str:
        """Return the totals and the layers as tables in Markdown."""
        tables = f"{self.totals().to_markdown()}\n{self.table().to_markdown()}"
        return f"{escape_markdown(self._title)}\n\n{tables}"

    def to_dict(self, *, layers: bool = True) -> dict[str, Any]:
        """Return everything as plain data, with the version of the schema.

        Args:
            layers: Whether what is said of each layer is in it, or the totals alone.
        """
        content = dataclasses.asdict(self)
        derived = {"macs": self.macs, "flops": self.flops, "conventions": list(CONVENTIONS)}
        memory = content["memory"]
        memory |= {"inference_peak": self.memory.inference_peak}
        memory |= {"peak_layer": self.memory.peak_layer}
        del memory["timeline"]  # the first of the peaks
        every = zip(
            [*memory["peaks"], *memory["planned"]],
            [*self.memory.peaks, *self.memory.planned],
            strict=True,
        )
        for said, peak in every:
            del said["layers"]  # those of the budget
            said |= {"name": peak.name, "peak": peak.peak, "peak_layer": peak.peak_layer}
            if not layers:
                del said["live"]
        if not layers:
            del content["layers"]
        plain = {"schema": SCHEMA, **content, **derived, "complete": self.complete}
        cleaned: dict[str, Any] = json.loads(json.dumps(plain))
        return cleaned

    def to_json(self) -> str:
        """Return everything as JSON."""
        return json.dumps(self.to_dict(), indent=1) + "\n"


def _parts(**numbers: int) -> str:
    return ", ".join(f"{n:,} {name.replace('_', '-')}" for name, n in numbers.items() if n)


def _other(work: Work) -> dict[str, int]:
    names = {"bias": work.bias, "norm": work.norm, "element_wise": work.elementwise}
    return {**names, "pooling": work.pooling}


def _keras(p: Parameters) -> str:
    if not p.statistics:
        return ""
    total = p.total + p.statistics
    return f"{total:,} with the {p.statistics:,} statistics of batch norms, as Keras counts"


def _bytes(kinds: Mapping[str, int]) -> str:
    return ", ".join(f"{say_bytes(count)} {kind}" for kind, count in kinds.items())


def measure_budget(
    model: nn.Module | Graph,
    input_shape: Sequence[int] | None = None,
    *,
    inputs: Sequence[Any] | Mapping[str, Any] | None = None,
    batch_axis: BatchAxis = "auto",
    strict: bool = True,
) -> Budget:
    """Return exactly what a network costs for one sample: parameters, MACs, memory.

    The costs are those of the network that runs, in evaluation mode; :data:`Budget.conventions`
    says what counts. Nothing is computed and no weight is allocated.

    Args:
        model: The network, or its :class:`~constrained_cnn.graph.Graph`.
        input_shape: Shape of one sample, ``(channels, *image)``; not for a graph.
        inputs: All inputs, for a network with several, as in
            :func:`~constrained_cnn.tracing.trace`.
        batch_axis: Which axis of them is the batch, as in :func:`~constrained_cnn.tracing.trace`.
        strict: Whether an operation that nobody has described is an error, or listed as unknown.

    Raises:
        InvalidInputError: If neither a shape nor inputs are given, or both, or if it is doubtful
            which axis is the batch.
        TracingError: If the network cannot be traced.

    Examples:
        >>> net = nn.Sequential(nn.Conv2d(1, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        >>> budget = measure_budget(net, (1, 28, 28))
        >>> budget.parameters.total, budget.parameters.deployed, budget.macs
        (88, 80, 48672)
        >>> budget.memory.inference_peak, budget.memory.peak_layer
        (43264, '1: batch_norm')
    """
    graph = as_graph(model, input_shape, inputs=inputs, batch_axis=batch_axis, strict=strict)
    foldings = foldings_of(graph)
    layers = _layers(graph, foldings)
    work = sum((layer.work for layer in layers if layer.work is not None), Work())
    parameters = count_parameters(graph)
    return Budget(
        graph.model,
        tuple(graph.values[number].sample_shape for number in graph.inputs),
        parameters,
        work,
        memory_of(graph, parameters, foldings),
        layers,
        graph.unknown,
    )


def _layers(graph: Graph, foldings: Sequence[Folding]) -> tuple[LayerCost, ...]:
    """Return a row for each operation, and for parameters or saved bytes that belong to none."""
    own, deployed = parameters_by_layer(graph), deployed_by_layer(graph, foldings)
    live = timeline_of(graph, "as run", False, True).live
    saved: dict[tuple[str, str], deque[int]] = defaultdict(deque)
    for run in () if graph.training.problem else graph.training.layers:
        saved[run.path, run.op].append(run.saved)
    rows = []
    for i, layer in enumerate(graph.layers):
        queue = saved[layer.path, layer.op]
        rows.append(
            LayerCost(
                layer.name,
                layer.path,
                layer.op,
                graph.values[layer.outputs[0]].sample_shape,
                own[i],
                deployed.get(i, 0),
                layer.work,
                live[i],
                queue.popleft() if queue else 0,
            )
        )
    for layer in graph.constants:
        name = f"{layer.name} (of weights alone)"
        rows.append(LayerCost(name, layer.path, layer.op, (), 0, 0, layer.work, 0, 0))
    for (path, op), rest in saved.items():
        if sum(rest):
            name = f"{path}: {op}" if path else op
            name += " (in training only)"
            rows.append(LayerCost(name, path, op, (), 0, 0, Work(), 0, sum(rest)))
    read = {number for layer in graph.layers for number in layer.weights}
    for number, weight in enumerate(graph.weights):
        if not weight.buffer and number not in read:
            name = f"{weight.name} (never read)"
            rows.append(LayerCost(name, weight.name, "", (), weight.elements, 0, Work(), 0, 0))
    return tuple(rows)
