"""Outside data brought into the one form an image set has: uint8 (N, C, H, W) and int64 labels."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from constrained_cnn.data._pictures import open_picture, pixels
from constrained_cnn.errors import DataError, InvalidInputError, check_choice, check_integer

__all__ = ["channel_statistics", "read_dataset", "read_folder", "to_images", "to_labels"]


def to_images(values: Any) -> Tensor:
    """Return a new CPU tensor, uint8 (N, C, H, W), of an array or tensor of images.

    Raises:
        InvalidInputError: If the type or shape cannot be images.
        DataError: If there is no image, or a float pixel is not finite or outside 0 to 1.
    """
    images = _to_tensor("images", values)
    shape = tuple(images.shape)
    if images.ndim == 3:
        images = images.unsqueeze(1)
    if images.ndim != 4:
        raise InvalidInputError(f"images: shape {shape} must be (N, H, W) or (N, C, H, W)")
    if images.shape[1] > 4 and images.shape[3] in (1, 2, 3, 4):
        raise InvalidInputError(
            f"images: shape {shape} looks like (N, H, W, C); transpose it to (N, C, H, W), with "
            "array.transpose(0, 3, 1, 2) or tensor.permute(0, 3, 1, 2)"
        )
    if images.numel() == 0:
        raise DataError(f"images: shape {shape} holds no pixel; give at least one image")
    if images.is_floating_point():
        return _from_unit_floats(images)
    if images.dtype != torch.uint8:
        raise InvalidInputError(
            f"images: type {images.dtype} must be uint8 (0 to 255) or float (0 to 1)"
        )
    return images.contiguous()


def to_labels(values: Any) -> Tensor:
    """Return a new CPU tensor, int64 (N,), of an array, tensor or list of class numbers.

    Raises:
        InvalidInputError: If they are not one-dimensional integers.
    """
    labels = _to_tensor("labels", values)
    wrong_type = labels.is_floating_point() or labels.dtype == torch.bool
    if labels.ndim != 1 or (wrong_type and len(labels)):
        raise InvalidInputError(
            f"labels: {labels.dtype} of shape {tuple(labels.shape)} must be integers of shape "
            "(N,), the class number of each image"
        )
    return labels.to(torch.int64)


def channel_statistics(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the exact mean and deviation of each channel of uint8 images, in units of 0 to 1.

    Raises:
        DataError: If all pixels of a channel are equal.
    """
    level = torch.arange(256, dtype=torch.float64) / 255
    means, deviations = [], []
    for channel in range(images.shape[1]):
        counts = torch.bincount(images[:, channel].reshape(-1).cpu().int(), minlength=256).double()
        share = counts / counts.sum()
        mean = float(share @ level)
        means.append(mean)
        deviations.append(float(share @ (level - mean) ** 2) ** 0.5)
        if int((counts > 0).sum()) == 1:
            raise DataError(
                f"images: all pixels of channel {channel} are equal, so their deviation is 0; "
                "pass mean= and std= if that is meant"
            )
    return tuple(means), tuple(deviations)


def read_dataset(dataset: Any) -> tuple[Tensor, Tensor]:
    """Read every (image, label) pair of a map-style data set.

    Raises:
        InvalidInputError: If it has no length, or an item is no such pair.
        DataError: If it is empty, or an image has another shape or type than the first.
    """
    if not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__"):
        raise InvalidInputError(
            f"dataset={type(dataset).__name__}: must have a length and items by index"
        )
    count = len(dataset)
    if count == 0:
        raise DataError(f"dataset={type(dataset).__name__}: is empty; give at least one image")
    images: list[Tensor] = []
    labels: list[int] = []
    for index in range(count):
        image, label = _pair(dataset[index], index)
        if images and (image.shape != images[0].shape or image.dtype != images[0].dtype):
            raise DataError(
                f"dataset: image {index} is {image.dtype} of shape {tuple(image.shape)}, image 0 "
                f"is {images[0].dtype} of shape {tuple(images[0].shape)}; bring all to one form"
            )
        images.append(image)
        labels.append(label)
    return to_images(torch.stack(images)), to_labels(labels)


def read_folder(
    root: str | os.PathLike[str], size: tuple[int, int], channels: int
) -> tuple[Tensor, Tensor, tuple[str, ...]]:
    """Read a folder with one sub-folder of pictures per class; resize all to ``size`` (H, W).

    Returns:
        Images, labels, and the sorted names of the sub-folders.

    Raises:
        InvalidInputError: If ``size`` or ``channels`` is wrong.
        DataError: If there is no such folder, no class, a class without pictures, or a file that
            is no readable picture.
    """
    height, width = _check_size(size)
    mode = {"1": "L", "3": "RGB"}[check_choice("channels", str(channels), ("1", "3"))]
    folder = Path(root)
    if not folder.is_dir():
        raise DataError(f"root={str(folder)!r}: there is no such folder")
    classes = sorted(p.name for p in folder.iterdir() if p.is_dir() and not _hidden(p))
    if not classes:
        raise DataError(f"root={str(folder)!r}: holds no sub-folder; make one for each class")
    images: list[Tensor] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        files = sorted(p for p in (folder / name).iterdir() if p.is_file() and not _hidden(p))
        if not files:
            raise DataError(f"{str(folder / name)!r}: holds no image; remove it or fill it")
        for file in files:
            picture = pixels(open_picture(file), mode, size=(height, width))
            images.append(torch.from_numpy(picture))
            labels.append(label)
    return torch.stack(images), torch.tensor(labels), tuple(classes)


def _to_tensor(name: str, values: Any) -> Tensor:
    if isinstance(values, Tensor):
        return values.detach().to("cpu", copy=True)
    try:
        return torch.tensor(np.ascontiguousarray(values))
    except (TypeError, ValueError) as error:
        raise InvalidInputError(
            f"{name}: cannot be read as one array of numbers: {error}"
        ) from None


def _from_unit_floats(images: Tensor) -> Tensor:
    good = (images >= 0) & (images <= 1)  # False for NaN too
    bad = (~good).flatten(1).any(dim=1).nonzero().flatten()
    if len(bad):
        index = int(bad[0])
        value = float(images[index][~good[index]][0])
        raise DataError(
            f"images: image {index} holds {value:g}, the first of {len(bad)} bad images; float "
            "pixels must be finite and from 0 to 1 (divide by 255, or pass uint8)"
        )
    return (images * 255).round().to(torch.uint8).contiguous()


def _pair(item: Any, index: int) -> tuple[Tensor, int]:
    if not isinstance(item, Sequence) or len(item) != 2:
        raise InvalidInputError(f"dataset: item {index} must be a pair (image, label)")
    image, label = item
    if isinstance(label, bool) or not hasattr(label, "__index__"):
        raise InvalidInputError(f"dataset: label {index} is {label!r}; must be an integer")
    if hasattr(image, "getbands"):  # a PIL image
        depth = {"1": "L", "P": "RGB"}.get(image.mode, image.mode)
        if depth not in ("L", "LA", "RGB", "RGBA"):
            raise DataError(f"dataset: image {index} has mode {depth!r}; convert it to L or RGB")
        return torch.from_numpy(pixels(image, depth)), label.__index__()
    tensor = _to_tensor(f"dataset: image {index}", image)
    return tensor if tensor.ndim != 2 else tensor.unsqueeze(0), label.__index__()


def _check_size(size: Any) -> tuple[int, int]:
    if not isinstance(size, tuple | list) or len(size) != 2:
        raise InvalidInputError(f"size={size!r}: must be a pair (height, width)")
    height, width = size
    return (
        check_integer("height", height, minimum=1),
        check_integer("width", width, minimum=1),
    )


def _hidden(path: Path) -> bool:
    return path.name.startswith(".") or path.name in ("Thumbs.db", "desktop.ini")
