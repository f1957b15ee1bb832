"""Where the common data sets come from: a folder that holds them, a download, or scikit-learn."""

import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from constrained_cnn.data._download import download_files
from constrained_cnn.data._files import check_files
from constrained_cnn.data._image_set import ImageSet
from constrained_cnn.errors import DataError, InvalidInputError, check_choice, check_integer

__all__ = [
    "DataFallbackWarning",
    "MissingDataError",
    "load",
    "load_cifar10",
    "load_digits",
    "load_fashion_mnist",
    "load_mnist",
]

_NAMES = ("auto", "mnist", "fashion-mnist", "cifar10", "digits")

_Root = str | os.PathLike[str] | None

_IDX_FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)
_MNIST_MD5 = (
    "6bbc9ace898e44ae57da46a324031adb",
    "a25bea736e30d166cdddb491f175f624",
    "2646ac647ad5339dbf082846283269ea",
    "27ae3e4e09519cfbb04c329615203637",
)
_FASHION_MD5 = (
    "f4a8712d7a061bf5bd6d2ca38dc4d50a",
    "9018921c3c673c538a1fc5bad174d6f9",
    "8181f5470baa50b63fa0f6fddb340f0a",
    "15d484375f8d13e6eb1aabb0c3f46965",
)
_FASHION_CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
_CIFAR_CLASSES = (
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
)
_DIGIT_CLASSES = tuple("0123456789")


class MissingDataError(DataError):
    """A data set is in none of the folders searched, and could not be downloaded."""


class DataFallbackWarning(UserWarning):
    """Another data set stands in for the one that could not be had."""


@dataclass(frozen=True)
class _Source:
    """A data set of torchvision: where its files lie, how they are checked and read."""

    name: str
    torchvision_name: str
    folder: str
    files: tuple[str, ...]
    md5: tuple[str, ...]
    read: Callable[[Path, bool], tuple[Tensor, Tensor]]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    classes: tuple[str, ...]


def load_mnist(root: _Root = None, *, download: bool = True) -> tuple[ImageSet, ImageSet]:
    """Load MNIST: 60,000 training and 10,000 test images of handwritten digits, 1x28x28.

    The four files are looked for in ``MNIST/raw`` under: ``root``, the folder named by the
    environment variable ``CONSTRAINED_CNN_DATA``, ``./data``, the user's cache. Their MD5 is
    checked.

    Args:
        root: The folder to look in first, and to download to.
        download: Whether to download the set if no folder holds it; a download that gives no
            sign of life for about 10 seconds is given up.

    Returns:
        The training and the test set.

    Raises:
        MissingDataError: If no folder holds the set and it cannot be downloaded.
        DataError: If a file is damaged, or some of the files are missing.
    """
    return _load(_mnist(), root, download)


def load_fashion_mnist(root: _Root = None, *, download: bool = True) -> tuple[ImageSet, ImageSet]:
    """Load Fashion-MNIST: 60,000 training and 10,000 test images of clothes, 1x28x28.

    Like :func:`load_mnist`; the files are looked for in ``FashionMNIST/raw``. Their MD5 is
    checked.

    Args:
        root: The folder to look in first, and to download to.
        download: Whether to download the set if no folder holds it.

    Returns:
        The training and the test set.

    Raises:
        MissingDataError: If no folder holds the set and it cannot be downloaded.
        DataError: If a file is damaged, or some of the files are missing.
    """
    return _load(_fashion_mnist(), root, download)


def load_cifar10(root: _Root = None, *, download: bool = True) -> tuple[ImageSet, ImageSet]:
    """Load CIFAR-10: 50,000 training and 10,000 test colour images, 3x32x32.

    Like :func:`load_mnist`; the files are looked for in ``cifar-10-batches-py``. Their MD5 is
    checked.

    Args:
        root: The folder to look in first, and to download to.
        download: Whether to download the set if no folder holds it.

    Returns:
        The training and the test set.

    Raises:
        MissingDataError: If no folder holds the set and it cannot be downloaded.
        DataError: If a file is damaged, or some of the files are missing.
    """
    return _load(_cifar10(), root, download)


def load_digits(
    *, size: int = 28, test_count: int = 360, seed: int = 0
) -> tuple[ImageSet, ImageSet]:
    """Load scikit-learn's 1,797 handwritten 8x8 digits, enlarged; works without a network.

    Args:
        size: Height and width the images are resized to, bilinearly.
        test_count: Number of test images, with the same share of every class.
        seed: Seed of the split.

    Returns:
        The training and the test set, both normalised by the statistics of the training set.

    Raises:
        InvalidInputError: If an argument is out of its range.

    Examples:
        >>> train, test = load_digits()
        >>> train
        ImageSet('digits', 1437 x 1x28x28, 10 classes, cpu)
    """
    check_integer("size", size, minimum=1)
    from sklearn.datasets import load_digits as load_bundle

    bundle = load_bundle()
    pixels = torch.from_numpy(bundle.images).unsqueeze(1) * (255 / 16)
    pixels = torch.nn.functional.interpolate(
        pixels, size=(size, size), mode="bilinear", align_corners=False
    )
    images = pixels.round().clamp(0, 255).to(torch.uint8)
    everything = ImageSet.from_arrays(images, bundle.target, classes=_DIGIT_CLASSES, name="digits")
    rest, held_out = everything.split(test_count, seed=seed)
    train, test = (
        ImageSet.from_arrays(part.images, part.labels, classes=_DIGIT_CLASSES, name="digits")
        for part in (rest, held_out)
    )
    return train, _with_statistics_of(train, test)


def load(
    name: str = "auto", root: _Root = None, *, download: bool = True
) -> tuple[ImageSet, ImageSet]:
    """Load a data set by its name.

    Args:
        name: ``"mnist"``, ``"fashion-mnist"``, ``"cifar10"``, ``"digits"``; or ``"auto"``: MNIST
            if it can be had, else the digits, with a :class:`DataFallbackWarning`.
        root: The folder to look in first, and to download to.
        download: Whether to download a set that no folder holds.

    Returns:
        The training and the test set; their ``name`` says which one it is.

    Raises:
        InvalidInputError: If there is no such name.
        MissingDataError: If the set named cannot be had.
        DataError: If its files are damaged or incomplete, with ``"auto"`` too.
    """
    check_choice("name", name, _NAMES)
    if name == "digits":
        return load_digits()
    if name != "auto":
        source = {"mnist": _mnist, "fashion-mnist": _fashion_mnist, "cifar10": _cifar10}[name]
        return _load(source(), root, download)
    try:
        return load_mnist(root, download=download)
    except MissingDataError as error:
        warnings.warn(
            "MNIST could not be loaded: the 1,797 small digits of scikit-learn stand in for it, so "
            f"NO accuracy of this run is an accuracy on MNIST. The reason: {error}",
            DataFallbackWarning,
            stacklevel=2,
        )
        return load_digits()


def _load(source: _Source, root: _Root, download: bool) -> tuple[ImageSet, ImageSet]:
    folder = _find(source, root, download)
    parts = []
    for train in (True, False):
        with _quiet_torchvision():
            images, labels = source.read(folder, train)
        parts.append(ImageSet(images, labels, source.mean, source.std, source.classes, source.name))
    return parts[0], parts[1]


def _find(source: _Source, root: _Root, download: bool) -> Path:
    """Return the checked folder of the set's files; download them if need be."""
    given, searched = _roots(root)
    for candidate in searched:
        folder = candidate / source.folder
        missing = [name for name in source.files if not (folder / name).exists()]
        if len(missing) < len(source.files):
            if missing:
                raise DataError(
                    f"{str(folder)!r} is incomplete: {', '.join(missing)} missing; add what is "
                    "missing, or remove the folder to have the set downloaded"
                )
            check_files(folder, source.files, source.md5)
            if root is not None and candidate != Path(root).expanduser():
                warnings.warn(
                    f"{str(Path(root) / source.folder)!r} holds no {source.name}; it was taken "
                    f"from {str(folder)!r}",
                    UserWarning,
                    stacklevel=4,
                )
            return folder
    looked = ", ".join(repr(str(candidate / source.folder)) for candidate in searched)
    if not download:
        raise _missing(source, f"not in {looked}, and download=False")
    try:
        with _quiet_torchvision():
            download_files(source.torchvision_name, given, source.folder, source.files, source.md5)
    except (OSError, RuntimeError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise _missing(source, f"not in {looked}, and the download failed: {reason}") from error
    return given / source.folder


def _roots(root: _Root) -> tuple[Path, list[Path]]:
    """Return the folder a download goes to, and all folders to search, in order."""
    variable = os.environ.get("CONSTRAINED_CNN_DATA")
    if os.name == "nt":
        cache = os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local"
    else:
        cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    user_cache = Path(cache) / "constrained_cnn"
    if root is not None and Path(root).is_file():
        raise InvalidInputError(f"root={str(root)!r}: must be a folder, and is a file")
    given = [Path(place).expanduser() for place in (root, variable) if place]
    return [*given, user_cache][0], [*given, Path("data"), user_cache]


def _missing(source: _Source, reason: str) -> MissingDataError:
    return MissingDataError(
        f"{source.name} cannot be had: {reason}. Three ways out: (1) where the set lies in another "
        "folder, set CONSTRAINED_CNN_DATA to it or pass root=; (2) use the embedded digits, "
        "load_digits() or --data digits; (3) download the set on another machine and put its "
        f"{len(source.files)} files, unpacked, into <root>/{source.folder}"
    )


@contextmanager
def _quiet_torchvision() -> Iterator[None]:
    """Keep torchvision's warnings to itself: old pickles, files it leaves open."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _with_statistics_of(train: ImageSet, other: ImageSet) -> ImageSet:
    return ImageSet(other.images, other.labels, train.mean, train.std, other.classes, other.name)


def _mnist() -> _Source:
    return _Source(
        name="mnist",
        torchvision_name="MNIST",
        folder="MNIST/raw",
        files=_IDX_FILES,
        md5=_MNIST_MD5,
        read=_read_idx,
        mean=(0.1307,),
        std=(0.3081,),
        classes=_DIGIT_CLASSES,
    )


def _fashion_mnist() -> _Source:
    return _Source(
        name="fashion-mnist",
        torchvision_name="FashionMNIST",
        folder="FashionMNIST/raw",
        files=_IDX_FILES,
        md5=_FASHION_MD5,
        read=_read_idx,
        mean=(0.2860,),
        std=(0.3530,),
        classes=_FASHION_CLASSES,
    )


def _cifar10() -> _Source:
    from torchvision.datasets import CIFAR10

    listed: dict[str, Any] = dict(CIFAR10.train_list + CIFAR10.test_list)
    listed[CIFAR10.meta["filename"]] = CIFAR10.meta["md5"]

    def read(folder: Path, train: bool) -> tuple[Tensor, Tensor]:
        part = CIFAR10(folder.parent, train=train, download=False)
        images = torch.tensor(np.ascontiguousarray(part.data.transpose(0, 3, 1, 2)))
        return images, torch.tensor(part.targets)

    return _Source(
        name="cifar10",
        torchvision_name="CIFAR10",
        folder=CIFAR10.base_folder,
        files=tuple(listed),
        md5=tuple(listed.values()),
        read=read,
        mean=(0.4914, 0.4822, 0.4465),
        std=(0.2470, 0.2435, 0.2616),
        classes=_CIFAR_CLASSES,
    )


def _read_idx(folder: Path, train: bool) -> tuple[Tensor, Tensor]:
    # Not datasets.MNIST itself: it prefers a MNIST/processed folder of old versions, unchecked.
    from torchvision.datasets.mnist import read_image_file, read_label_file

    images, labels = _IDX_FILES[:2] if train else _IDX_FILES[2:]
    return (
        read_image_file(str(folder / images)).unsqueeze(1),
        read_label_file(str(folder / labels)),
    )
