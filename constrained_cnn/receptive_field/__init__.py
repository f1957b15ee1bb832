"""What the units of a network see: receptive fields, exact, per axis."""

from constrained_cnn.receptive_field._axis import AxisField
from constrained_cnn.receptive_field._measure import (
    Axis,
    LayerField,
    ReceptiveField,
    measure_receptive_field,
)
from constrained_cnn.receptive_field._positions import PositionField

__all__ = [
    "Axis",
    "AxisField",
    "LayerField",
    "PositionField",
    "ReceptiveField",
    "measure_receptive_field",
]
