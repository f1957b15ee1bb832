"""Savings of norms that stand before the activation instead of behind it. From the graph alone."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from constrained_cnn.budget._folding import SHIFT, WHOLE, Flow, Folding, foldings_of, vanishing
from constrained_cnn.budget._memory import timeline_of
from constrained_cnn.graph import ACTIVATIONS, Graph
from constrained_cnn.table import say_bytes


@dataclass(frozen=True)
class NormOrder:
    """What conv-norm-activation would save over conv-activation-norm once a network is folded.

    Attributes:
        norms: Names of the norms of which something stays, and nothing would in that order.
        parameters: Deployed parameters that would be saved.
        int8_peak: Bytes by which the int8 peak, batch norm folded, fused, would fall.
    """

    norms: tuple[str, ...]
    parameters: int
    int8_peak: int

    def __str__(self) -> str:
        count = len(self.norms)
        return (
            f"convolution, norm, activation in place of convolution, activation, norm would fold "
            f"{count} more: {count} operation{'s' if count > 1 else ''}, {self.parameters:,} "
            f"parameters and {say_bytes(self.int8_peak)} of the int8 peak (batch norm folded, "
            "fused) less"
        )


def better_order(graph: Graph) -> NormOrder | None:
    """Return what another order of norms and activations would save; None if it folds no more."""
    foldings = foldings_of(graph)
    found = list(_movable(graph, foldings))
    if not found:
        return None
    saved: dict[tuple[int, ...], int] = {}  # by the weights of the norm, which may run twice
    for one, feeder in found:
        channels = graph.values[graph.layers[one.position].outputs[0]].shape[1]
        work = graph.layers[feeder].work
        new_bias = channels if work is None or not work.bias else 0
        left = channels if one.left == SHIFT else 2 * channels
        saved[graph.layers[one.position].weights] = left - new_bias
    gone = vanishing(foldings)
    peaks = [
        timeline_of(graph, "int8", True, True, fused=True, gone=positions).peak
        for positions in (gone, gone | {one.position for one, _ in found})
    ]
    names = tuple(graph.layers[one.position].name for one, _ in found)
    return NormOrder(names, sum(saved.values()), peaks[0] - peaks[1])


def _movable(graph: Graph, foldings: Iterable[Folding]) -> Iterator[tuple[Folding, int]]:
    """Yield the norms that stay behind an activation of a layer that would take them before it.

    With each comes the position of that convolution or linear layer.
    """
    flow = Flow(graph)
    for one in foldings:
        values = [*graph.layers[one.position].sources]
        activated = False
        while one.left not in ("", WHOLE) and len(values) == 1:
            (value,) = values
            feeder = flow.feeds(value)
            if feeder is not None and activated:
                yield one, feeder
            before = flow.maker.get(value)
            if before is None or len(flow.readers[value]) != 1:
                break
            layer = graph.layers[before]
            if layer.kind not in (*ACTIVATIONS, "dropout"):
                break
            activated = activated or layer.kind in ACTIVATIONS
            values = [*layer.sources]
