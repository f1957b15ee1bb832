"""What a unit of a network sees: receptive fields, exact, per axis.

The arithmetic is here; measuring a whole network builds on it.
"""

from constrained_cnn.receptive_field._axis import AxisField

__all__ = ["AxisField"]
