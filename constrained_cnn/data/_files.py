"""Checks of a data set's files before they are read: length, header, MD5."""

import hashlib
import math
import struct
from collections.abc import Sequence
from pathlib import Path

from constrained_cnn.errors import DataError

__all__ = ["check_files"]

# What is wrong is said first in words a person can use: an IDX file's length and header.
_IDX_SHAPES = {
    "train-images-idx3-ubyte": (60_000, 28, 28),
    "train-labels-idx1-ubyte": (60_000,),
    "t10k-images-idx3-ubyte": (10_000, 28, 28),
    "t10k-labels-idx1-ubyte": (10_000,),
}


def check_files(folder: Path, names: Sequence[str], md5: Sequence[str]) -> None:
    """Check that the files of a set are whole.

    Args:
        folder: Where they lie.
        names: The files.
        md5: The MD5 of each.

    Raises:
        DataError: If a file cannot be read or is damaged; the message says which and how.
    """
    for name, expected in zip(names, md5, strict=True):
        file = folder / name
        try:
            content = file.read_bytes()
        except OSError as error:
            raise DataError(f"{str(file)!r} cannot be read: {error.strerror or error}") from error
        if name in _IDX_SHAPES:
            _check_idx(file, content, _IDX_SHAPES[name])
        found = hashlib.md5(content, usedforsecurity=False).hexdigest()
        if found != expected:
            raise _damaged(file, f"its MD5 is {found} and must be {expected}")


def _check_idx(file: Path, content: bytes, shape: tuple[int, ...]) -> None:
    # Big-endian: 2049 for labels or 2051 for images, then the length of each axis.
    header = struct.pack(f">{len(shape) + 1}I", 0x0800 + len(shape), *shape)
    length = len(header) + math.prod(shape)
    if len(content) != length:
        raise _damaged(file, f"it is {len(content):,} bytes long and must be {length:,}")
    if not content.startswith(header):
        found = content[: len(header)].hex()
        raise _damaged(file, f"its header is {found} and must be {header.hex()}")


def _damaged(file: Path, reason: str) -> DataError:
    return DataError(f"{str(file)!r} is damaged: {reason}; remove its folder and fetch it again")
