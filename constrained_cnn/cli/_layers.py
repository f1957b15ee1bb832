"""The familiar table of layers, which torchinfo makes."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn


def layer_table(model: "nn.Module", input_shape: Sequence[int], *, depth: int) -> str:
    """Return torchinfo's table of a network's modules.

    Args:
        model: The network.
        input_shape: Shape of one sample.
        depth: Levels of modules that are shown.
    """
    import torchinfo

    table = torchinfo.summary(
        model,
        (1, *input_shape),
        device="cpu",
        verbose=0,
        depth=depth,
        col_names=("output_size", "num_params", "mult_adds"),
        col_width=16,
        row_settings=("var_names",),
    )
    # torchinfo 1.8 prints the name of an enum member for the unit (its bug on Python 3.11).
    return str(table).replace("Units.MEGABYTES", "M").replace("Units.GIGABYTES", "G")
