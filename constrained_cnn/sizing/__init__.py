"""The widths of a network that meet every limit and land on a target, by exact search."""

from constrained_cnn.sizing._fit import fit_widths
from constrained_cnn.sizing._fits import Fit, Fits

__all__ = ["Fit", "Fits", "fit_widths"]
