"""Figures of networks, of data, of training, and of results over seeds.

Each function returns a matplotlib ``Figure`` of its own; none touches the current figure of
``pyplot``, so there is nothing to close. :func:`save_figure` writes one to a file.

The names are loaded on first use: curves of a finished run are drawn without waiting for torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

_FILES = {
    "LabelledImages": "_images",
    "compare": "_curves",
    "confusion": "_results",
    "curves": "_curves",
    "effective_field": "_fields",
    "layer_costs": "_costs",
    "memory_timeline": "_costs",
    "misclassified": "_images",
    "receptive_field_growth": "_fields",
    "sample_grid": "_images",
    "save_figure": "_frame",
    "seeds": "_results",
}

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

if TYPE_CHECKING:
    from constrained_cnn.plots._costs import layer_costs, memory_timeline
    from constrained_cnn.plots._curves import compare, curves
    from constrained_cnn.plots._fields import effective_field, receptive_field_growth
    from constrained_cnn.plots._frame import save_figure
    from constrained_cnn.plots._images import LabelledImages, misclassified, sample_grid
    from constrained_cnn.plots._results import confusion, seeds


def __getattr__(name: str) -> Any:
    if name in _FILES:
        return getattr(importlib.import_module(f"{__name__}.{_FILES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
