"""Class numbers, checked at the door."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from constrained_cnn.errors import InvalidInputError


def to_array(values: Any) -> NDArray[Any]:
    """Return a tensor of any device, an array or a sequence as a NumPy array."""
    return np.asarray(values.detach().cpu() if hasattr(values, "detach") else values)


def class_numbers(name: str, values: Any, *, classes: int, count: int) -> NDArray[np.int64]:
    """Return ``values`` as a NumPy array of ``count`` class numbers from 0 to ``classes - 1``.

    Raises:
        InvalidInputError: If they are not one integer a sample, too few or many, or out of range.
    """
    array = to_array(values)
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise InvalidInputError(
            f"{name}: shape {array.shape} of {array.dtype}: must be one class number a sample "
            "(of logits take .argmax(1))"
        )
    if len(array) != count:
        raise InvalidInputError(f"{name}: {len(array)} values: must be {count}, one a sample")
    outside = np.flatnonzero((array < 0) | (array >= classes))
    if outside.size:
        first = int(outside[0])
        raise InvalidInputError(
            f"{name}[{first}]={array[first]}: must be a class number from 0 to {classes - 1}"
        )
    return array.astype(np.int64)
