"""From an ``nn.Module`` to a :class:`~constrained_cnn.graph.Graph`: the only door from torch."""

from constrained_cnn.tracing._call import Call, elementwise
from constrained_cnn.tracing._rules import register_op
from constrained_cnn.tracing._trace import as_graph, trace

__all__ = ["Call", "as_graph", "elementwise", "register_op", "trace"]
