"""From an ``nn.Module`` to a :class:`~constrained_cnn.graph.Graph`: the only door from torch."""

from constrained_cnn.tracing._trace import trace

__all__ = ["trace"]
