"""A network as it runs, in frozen records: operations, values, weights, and what reads what.

Imports no torch: what is said about a network is worked out from these records alone.
"""

from constrained_cnn.graph._graph import (
    Graph,
    Layer,
    TensorInfo,
    TrainingLayer,
    TrainingRun,
    Weight,
    Work,
    bytes_of,
)
from constrained_cnn.graph._reads import (
    AxisRead,
    Border,
    Patch,
    Read,
    Resample,
    Segment,
    Taps,
    Window,
)

__all__ = [
    "AxisRead",
    "Border",
    "Graph",
    "Layer",
    "Patch",
    "Read",
    "Resample",
    "Segment",
    "Taps",
    "TensorInfo",
    "TrainingLayer",
    "TrainingRun",
    "Weight",
    "Window",
    "Work",
    "bytes_of",
]
