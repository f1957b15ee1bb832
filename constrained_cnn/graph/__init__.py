"""A network as it runs, in frozen records: operations, values, weights, and what reads what.

Imports no torch: what is said about a network is worked out from these records alone.
"""

from constrained_cnn.graph._graph import Graph
from constrained_cnn.graph._kinds import ACTIVATIONS as ACTIVATIONS
from constrained_cnn.graph._kinds import CONVS as CONVS
from constrained_cnn.graph._kinds import KINDS
from constrained_cnn.graph._kinds import NORMS as NORMS
from constrained_cnn.graph._kinds import POOLS as POOLS
from constrained_cnn.graph._kinds import PRODUCTS as PRODUCTS
from constrained_cnn.graph._layer import Layer, TensorInfo, Weight, Work, bytes_of
from constrained_cnn.graph._layer import Setting as Setting
from constrained_cnn.graph._layer import Shape as Shape
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
    "KINDS",
    "AxisRead",
    "Border",
    "Graph",
    "Layer",
    "Patch",
    "Program",
    "Read",
    "Resample",
    "Segment",
    "Taps",
    "TensorInfo",
    "Weight",
    "Window",
    "Work",
    "bytes_of",
]
