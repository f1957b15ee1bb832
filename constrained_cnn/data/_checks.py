"""What must hold of the tensors of an image set, and of indices into it."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from constrained_cnn.errors import DataError, InvalidInputError

__all__ = ["check_indices", "check_label_range", "check_tensors"]


def check_tensors(images: Tensor, labels: Tensor) -> None:
    """Raise unless these are the images and labels of a set that is not empty."""
    if images.dtype != torch.uint8 or images.ndim != 4:
        raise InvalidInputError(
            f"images: {images.dtype} of shape {tuple(images.shape)} must be uint8 (N, C, H, W); "
            "ImageSet.from_arrays converts"
        )
    if labels.dtype != torch.int64 or labels.ndim != 1:
        raise InvalidInputError(
            f"labels: {labels.dtype} of shape {tuple(labels.shape)} must be int64 (N,)"
        )
    if len(images) != len(labels):
        raise InvalidInputError(f"{len(images)} images but {len(labels)} labels: must be equal")
    if images.device != labels.device:
        raise InvalidInputError(
            f"images on {images.device}, labels on {labels.device}: must be on one device"
        )
    if images.numel() == 0:
        raise DataError(f"images: shape {tuple(images.shape)} is empty; give at least one image")


def check_label_range(labels: Tensor, classes: int) -> None:
    """Raise on the first label that is not the number of a class."""
    bad = ((labels < 0) | (labels >= classes)).nonzero().flatten()
    if len(bad):
        index = int(bad[0])
        raise DataError(
            f"label {int(labels[index])} at index {index}: with {classes} classes, labels must be "
            f"from 0 to {classes - 1}"
        )


def check_indices(indices: Any, count: int) -> Tensor:
    """Return integers or a boolean mask as int64 indices into ``count`` images, on the CPU."""
    chosen = indices.cpu() if isinstance(indices, Tensor) else torch.tensor(np.asarray(indices))
    if chosen.ndim != 1 or chosen.numel() == 0:
        raise InvalidInputError(f"indices: shape {tuple(chosen.shape)} must be (n,), n at least 1")
    if chosen.dtype == torch.bool:
        if len(chosen) != count:
            raise InvalidInputError(f"indices: a mask of {len(chosen)} for {count} images")
        chosen = chosen.nonzero().flatten()
    if chosen.is_floating_point() or chosen.numel() == 0:
        raise InvalidInputError("indices: must be integers or a mask, and choose an image")
    bad = chosen[(chosen < 0) | (chosen >= count)]
    if len(bad):
        raise InvalidInputError(f"indices: {int(bad[0])} is not from 0 to {count - 1}")
    return chosen.long()
