"""Where a few more channels cost least."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from torch import nn

from constrained_cnn.budget._advice import ChannelCost, channel_costs
from constrained_cnn.budget._order import NormOrder, better_order
from constrained_cnn.errors import InvalidInputError, escape_controls
from constrained_cnn.graph import Graph
from constrained_cnn.table import Table
from constrained_cnn.tracing import as_graph

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult

SCHEMA = "constrained_cnn.advice/1"


@dataclass(frozen=True, repr=False)
class Advice:
    """What more channels in each layer of a network would cost.

    Attributes:
        model: Name of the model's class.
        costs: One for each group of channels that can only change together.
        order: What norms before activations in place of behind them would save, once folded; None
            if nothing.
    """

    model: str
    costs: tuple[ChannelCost, ...]
    order: NormOrder | None = None

    def table(self) -> Table:
        """Return the costs as a table."""
        columns = ("<layers", "channels", "more", "parameters", "MACs", "peak bytes", "<remark")
        rows = []
        for cost in self.costs:
            first, *others = cost.layers
            names = first + (f" and {len(others)} tied to it" if others else "")
            numbers = [f"{n:+,}" for n in (cost.step, cost.parameters, cost.macs, cost.memory)]
            if cost.problem:
                numbers = [""] * 4
            rows.append((names, str(cost.channels), *numbers, cost.problem))
        note = f"{self.order}." if self.order else ""
        return Table(columns, tuple(rows), title=f"One more channel in {self.model}", note=note)

    def __repr__(self) -> str:
        return escape_controls(f"Advice({self.model}: {len(self.costs)} groups of channels)")

    def __str__(self) -> str:
        return str(self.table())

    def __rich_console__(self, console: "Console", options: "ConsoleOptions") -> "RenderResult":
        yield self.table()

    def _repr_html_(self) -> str:
        return self.table().to_html()

    def to_markdown(self) -> str:
        """Return the table in Markdown."""
        return self.table().to_markdown()

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain data, with the version of the schema."""
        plain: dict[str, Any] = json.loads(json.dumps({"schema": SCHEMA, **asdict(self)}))
        return plain

    def to_json(self) -> str:
        """Return everything as JSON."""
        return json.dumps(self.to_dict(), indent=1) + "\n"


def advise(model: nn.Module | Graph, input_shape: Sequence[int] | None = None) -> Advice:
    """Return what one more channel in each layer would cost: parameters, MACs, memory.

    Beside it, what another order of norms and activations would save on a device.

    Channels that a sum ties together change together; a grouped convolution takes as many more as
    keep its groups even. What comes from outside or goes out of the network stays as it is.

    Args:
        model: The network, or its :class:`~constrained_cnn.graph.Graph`.
        input_shape: Shape of one sample; not for a graph.

    Raises:
        InvalidInputError: If there is no shape, or axis 0 of no input is the batch.
        TracingError: If the network cannot be traced.

    Examples:
        >>> net = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))
        >>> (cost, last) = advise(net, (1, 8, 8)).costs
        >>> cost.layers, cost.parameters, cost.macs  # 10 in its own layer, 36 in the next
        (('0: conv2d',), 46, 900)
        >>> last.problem
        'goes out of the network'

        A norm behind an activation leaves its shift where the next convolution has padding:

        >>> layers = nn.Conv2d(1, 8, 3), nn.ReLU(), nn.BatchNorm2d(8), nn.Conv2d(8, 4, 3, padding=1)
        >>> advise(nn.Sequential(*layers), (1, 8, 8)).order
        NormOrder(norms=('2: batch_norm',), parameters=8, int8_peak=144)
    """
    graph = as_graph(model, input_shape)
    if not any(graph.values[number].batch_axis == 0 for number in graph.inputs):
        raise InvalidInputError(
            f"model={graph.model}: has no input whose axis 0 is the batch, and so no channels at "
            "axis 1; trace it with batch_axis=0"
        )
    return Advice(graph.model, channel_costs(graph), better_order(graph))
