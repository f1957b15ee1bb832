"""Figures of data, of training, and of results over seeds.

Each function returns a matplotlib ``Figure`` of its own; none touches the current figure of
``pyplot``, so there is nothing to close. :func:`save_figure` writes one to a file.
"""

from constrained_cnn.plots._curves import compare, curves
from constrained_cnn.plots._frame import save_figure
from constrained_cnn.plots._images import LabelledImages, misclassified, sample_grid
from constrained_cnn.plots._results import confusion, seeds

__all__ = [
    "LabelledImages",
    "compare",
    "confusion",
    "curves",
    "misclassified",
    "sample_grid",
    "save_figure",
    "seeds",
]
