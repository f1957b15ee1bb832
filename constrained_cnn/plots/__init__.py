"""Figures of networks, of data, of training, and of results over seeds.

Each function returns a matplotlib ``Figure`` of its own; none touches the current figure of
``pyplot``, so there is nothing to close. :func:`save_figure` writes one to a file.
"""

from constrained_cnn.plots._costs import layer_costs, memory_timeline
from constrained_cnn.plots._curves import compare, curves
from constrained_cnn.plots._fields import effective_field, receptive_field_growth
from constrained_cnn.plots._frame import save_figure
from constrained_cnn.plots._images import LabelledImages, misclassified, sample_grid
from constrained_cnn.plots._results import confusion, seeds

__all__ = [
    "LabelledImages",
    "compare",
    "confusion",
    "curves",
    "effective_field",
    "layer_costs",
    "memory_timeline",
    "misclassified",
    "receptive_field_growth",
    "sample_grid",
    "save_figure",
    "seeds",
]
