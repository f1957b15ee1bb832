"""Checks of what a convolution is asked to be, made before any layer is built."""

from typing import Any

from constrained_cnn.errors import InvalidInputError, check_choice, check_integer


def check_channels(in_channels: Any, out_channels: Any, groups: Any = 1) -> None:
    """Raise unless both counts are positive and ``groups`` divides both."""
    check_integer("in_channels", in_channels, minimum=1)
    check_integer("out_channels", out_channels, minimum=1)
    check_integer("groups", groups, minimum=1)
    for name, channels in (("in_channels", in_channels), ("out_channels", out_channels)):
        if channels % groups:
            raise InvalidInputError(f"groups={groups}: must divide {name}={channels}")


def check_cells(name: str, value: Any, *, minimum: int) -> None:
    """Raise unless ``value`` is one integer or a (height, width) pair of at least ``minimum``."""
    if isinstance(value, tuple | list):
        if len(value) != 2:
            raise InvalidInputError(f"{name}={value!r}: must be one integer or (height, width)")
        for part in value:
            check_integer(name, part, minimum=minimum)
    else:
        check_integer(name, value, minimum=minimum)


def check_padding(padding: Any, stride: Any) -> None:
    """Raise unless ``padding`` is in cells, ``"valid"``, or ``"same"`` with a stride of 1."""
    if not isinstance(padding, str):
        check_cells("padding", padding, minimum=0)
        return
    check_choice("padding", padding, ("same", "valid"))
    if padding == "same" and stride not in (1, (1, 1), [1, 1]):
        raise InvalidInputError(
            f"padding='same': needs a stride of 1, and stride={stride!r}; "
            "give the padding as a number"
        )
