"""The familiar table of layers, which torchinfo makes."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from constrained_cnn.errors import TracingError, escape_controls

if TYPE_CHECKING:
    from torch import Tensor, nn


def layer_table(
    model: "nn.Module",
    *input_shapes: Sequence[int],
    depth: int,
    tensors: "Sequence[Tensor] | Mapping[str, Tensor] | None" = None,
) -> str:
    """Return torchinfo's table of a network's modules.

    Args:
        model: The network.
        input_shapes: Shape of one sample of each input.
        depth: Levels of modules that are shown.
        tensors: The inputs, in order or by name, where their shapes do not say all.

    Raises:
        TracingError: If the network cannot take such inputs.
    """
    import torchinfo

    try:
        table = torchinfo.summary(
            model,
            [(1, *shape) for shape in input_shapes] if tensors is None else None,
            input_data=tensors,
            device="cpu",
            verbose=0,
            depth=depth,
            col_names=("output_size", "num_params", "mult_adds"),
            col_width=16,
            row_settings=("var_names",),
        )
    except Exception as error:
        cause = error.__cause__ or error  # torchinfo wraps what the network says
        reason = next(iter(str(cause).splitlines()), type(cause).__name__)
        shapes = ", ".join(str(tuple(shape)) for shape in input_shapes)
        raise TracingError(
            f"{type(model).__name__} cannot take an input of shape {shapes}: {reason}"
        ) from error
    for row in table.summary_list:
        row.class_name, row.var_name = map(escape_controls, (row.class_name, row.var_name))
    table.formatting.set_layer_name_width(table.summary_list)
    # torchinfo 1.8 prints the name of an enum member for the unit (its bug on Python 3.11).
    return str(table).replace("Units.MEGABYTES", "M").replace("Units.GIGABYTES", "G")
