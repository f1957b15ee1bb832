"""A network as it runs, in frozen records: operations, values, weights, and what reads what.

Imports no torch: what is said about a network is worked out from these records alone.
"""

from constrained_cnn.graph._graph import Graph
from constrained_cnn.graph._kinds import ACTIVATIONS, CONVS, KINDS, NORMS, POOLS, PRODUCTS
from constrained_cnn.graph._layer import (
    Layer,
    Setting,
    Shape,
    TensorInfo,
    Weight,
    Work,
    bytes_of,
)
from constrained_cnn.graph._program import Program
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
    "ACTIVATIONS",
    "CONVS",
    "KINDS",
    "NORMS",
    "POOLS",
    "PRODUCTS",
    "AxisRead",
    "Border",
    "Graph",
    "Layer",
    "Patch",
    "Program",
    "Read",
    "Resample",
    "Segment",
    "Setting",
    "Shape",
    "Taps",
    "TensorInfo",
    "Weight",
    "Window",
    "Work",
    "bytes_of",
]
