"""From an ``nn.Module`` to a :class:`~constrained_cnn.graph.Graph`: the only door from torch."""

from constrained_cnn.tracing._trace import as_graph, trace
from constrained_cnn.tracing.operations import Call, elementwise, register_op

__all__ = ["Call", "as_graph", "elementwise", "register_op", "trace"]
