"""A person's own pictures of digits, brought into the form of MNIST's."""

import os
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from constrained_cnn.errors import DataError, InvalidInputError, check_choice, check_integer

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL.Image import Image

    Grey = NDArray[np.float64]

__all__ = ["open_picture", "pixels", "read_pictures"]

# Shares of the range from background to darkest ink.
_FAINT = 0.1  # below it: paper
_INK = 0.4  # a spot that stays below it is a shadow
# Of all ink; a spot with less is dust. The smallest real part, a broken stroke, has about a tenth.
_DUST = 0.03
_BLANK = 24.0  # grey levels: with less contrast there is nothing on the paper
_LARGEST_SIDE = 512  # of the picture worked on


def read_pictures(
    paths: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
    *,
    size: tuple[int, int] = (28, 28),
    invert: str = "auto",
) -> Tensor:
    """Read pictures of one digit each and give them MNIST's form.

    Dark ink on paper becomes white on black, the paper is flattened, the digit is scaled so that
    its longer side is 20 of 28 pixels, and its centre of mass put in the middle of the frame.

    Args:
        paths: One picture file or several; any format Pillow reads.
        size: Height and width of the result.
        invert: ``"yes"`` for dark ink on a bright ground, ``"no"`` for bright ink on a dark one,
            ``"auto"`` to tell by the picture's border.

    Returns:
        uint8 (N, 1, H, W).

    Raises:
        InvalidInputError: If there is no path, or an argument is wrong.
        DataError: If a picture is missing, unreadable or blank; the message names it.

    References:
        LeCun, Cortes, Burges, "The MNIST database of handwritten digits": 20x20 box, 28x28 frame.
    """
    check_choice("invert", invert, ("auto", "yes", "no"))
    if not isinstance(size, tuple | list) or len(size) != 2:
        raise InvalidInputError(f"size={size!r}: must be a pair (height, width)")
    height, width = (check_integer("size", length, minimum=8) for length in size)
    files = [paths] if isinstance(paths, str | os.PathLike) else list(paths)
    if not files:
        raise InvalidInputError("paths: is empty; give at least one picture")
    pictures = [_read_picture(Path(file), (height, width), invert) for file in files]
    return torch.from_numpy(np.stack(pictures)).unsqueeze(1)


def open_picture(path: Path) -> "Image":
    """Return the picture upright, and without transparency: that becomes white.

    Raises:
        DataError: If the file is missing or is no readable picture.
    """
    from PIL import Image, ImageOps

    if path.exists() and not path.is_file():  # a pipe would be waited for
        raise DataError(f"{str(path)!r} is no readable picture: it is not a file")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on large photographs and odd metadata
            with Image.open(path) as opened:
                opened.load()
                picture = ImageOps.exif_transpose(opened)
            if picture.mode.startswith("I") or picture.mode == "F":
                return _from_deep_grey(picture)
            if not picture.has_transparency_data:
                return picture if picture.mode in ("L", "RGB") else picture.convert("RGB")
            paper = Image.new("RGBA", picture.size, "white")
            return Image.alpha_composite(paper, picture.convert("RGBA")).convert("RGB")
    except FileNotFoundError:
        raise DataError(f"{str(path)!r}: there is no such picture") from None
    # Pillow's decoders raise many types on damaged files; whichever it is, it is about this file.
    except Exception as error:
        raise DataError(f"{str(path)!r} is no readable picture: {error}") from error


def pixels(
    picture: "Image", mode: str, *, size: tuple[int, int] | None = None
) -> "NDArray[np.uint8]":
    """Return a picture's pixels as (C, H, W), in a mode of Pillow, resized to ``size`` (H, W)."""
    from PIL.Image import Resampling

    converted = picture if picture.mode == mode else picture.convert(mode)
    if size is not None and converted.size != (size[1], size[0]):
        converted = converted.resize((size[1], size[0]), Resampling.BILINEAR)
    values = np.array(converted, dtype=np.uint8)
    return values[None] if values.ndim == 2 else np.ascontiguousarray(values.transpose(2, 0, 1))


def _from_deep_grey(picture: "Image") -> "Image":
    """Bring 16-bit grey, or numbers of any range, to 8 bits."""
    from PIL import Image

    values = np.asarray(picture, dtype=np.float64)
    largest = 65535.0 if picture.mode.startswith("I") else 1.0
    if values.max() > largest or values.max() <= 255 < largest:
        largest = max(255.0, float(values.max()))
    return Image.fromarray((values.clip(0) * (255 / largest)).round().astype(np.uint8))


def _read_picture(path: Path, size: tuple[int, int], invert: str) -> "NDArray[np.uint8]":
    from PIL.Image import Resampling

    picture = open_picture(path).convert("L")
    picture.thumbnail((_LARGEST_SIDE, _LARGEST_SIDE), Resampling.LANCZOS)
    ink = _ink(np.asarray(picture, dtype=np.float64), invert)
    if ink is None:
        hint = "" if invert == "auto" else f" when read with invert={invert!r}; 'auto' looks"
        raise DataError(f"{str(path)!r} is blank: nothing stands out from its background{hint}")
    return _framed(ink, size)


def _ink(grey: "Grey", invert: str) -> "Grey | None":
    """Return how much ink each pixel holds, 0 to 1 with paper exactly 0; None if there is none."""
    from scipy import ndimage

    ground = _ground(grey)
    if invert == "auto":
        bright = np.median(ground) > (grey.min() + grey.max()) / 2
    else:
        bright = invert == "yes"
    ink = (ground - grey if bright else grey - ground).clip(0)
    if ink.max() < _BLANK:
        return None
    ink /= ink.max()
    ink[ink < _FAINT] = 0
    spots, count = ndimage.label(ink > 0, structure=np.ones((3, 3)))
    numbers = np.arange(1, count + 1)
    peak = ndimage.maximum(ink, spots, numbers)
    mass = ndimage.sum_labels(ink, spots, numbers)
    kept = numbers[(np.asarray(peak) >= _INK) & (mass >= _DUST * mass.sum())]
    ink[~np.isin(spots, kept)] = 0
    return ink


def _ground(grey: "Grey") -> "Grey":
    """Return the paper's brightness everywhere: the plane through the border, if it has a slope."""
    height, width = grey.shape
    border = np.ones((height, width), dtype=bool)
    if min(height, width) > 2:
        border[1:-1, 1:-1] = False
    y, x = np.nonzero(border)
    values = grey[border]
    level = np.median(values)
    # Ink that touches the border must not tilt the plane.
    near = np.abs(values - level) < 0.25 * max(1.0, np.ptp(grey))
    terms = np.stack([np.ones(near.sum()), y[near] / height, x[near] / width], axis=1)
    plane, *_ = np.linalg.lstsq(terms, values[near], rcond=None)
    rows, columns = np.mgrid[:height, :width]
    return np.asarray(plane[0] + plane[1] * rows / height + plane[2] * columns / width)


def _framed(ink: "Grey", size: tuple[int, int]) -> "NDArray[np.uint8]":
    """Crop the ink, scale it to 20/28 of the frame, and put its centre of mass in the middle."""
    from PIL import Image

    rows, columns = np.nonzero(ink)
    cropped = ink[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
    longer = round(min(size) * 20 / 28)
    factor = longer / max(cropped.shape)
    height, width = (max(1, round(length * factor)) for length in cropped.shape)
    if cropped.shape != (height, width):
        resized = Image.fromarray(cropped.astype(np.float32)).resize(
            (width, height), Image.Resampling.BICUBIC
        )
        cropped = np.asarray(resized, dtype=np.float64).clip(0)
        cropped = cropped / cropped.max()
    top, left = (_start(cropped.sum(axis=1 - axis), frame) for axis, frame in enumerate(size))
    result = np.zeros(size, dtype=np.uint8)
    result[top : top + height, left : left + width] = (cropped * 255).round().clip(0, 255)
    return result


def _start(mass: Any, frame: int) -> int:
    """Return where a profile begins so that its centre of mass lies in the frame's middle."""
    # Pixel 14 of 0 to 27: the mean over MNIST is 13.99 and 14.00.
    centre = float(np.arange(len(mass)) @ mass / mass.sum())
    return min(max(0, round(frame / 2 - centre)), frame - len(mass))
