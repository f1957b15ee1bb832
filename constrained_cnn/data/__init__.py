"""Data sets that lie whole on one device, with batched augmentation, and where to get them.

:class:`ImageSet` holds images and labels; ``load_*`` finds or downloads the common sets;
:func:`read_pictures` brings a person's own pictures into the form of MNIST.
"""

from constrained_cnn.data._augmentation import Augmentation, Transforms, augment
from constrained_cnn.data._image_set import ImageSet
from constrained_cnn.data._loaders import (
    DataFallbackWarning,
    MissingDataError,
    load,
    load_cifar10,
    load_digits,
    load_fashion_mnist,
    load_mnist,
)
from constrained_cnn.data._pictures import read_pictures

__all__ = [
    "Augmentation",
    "DataFallbackWarning",
    "ImageSet",
    "MissingDataError",
    "Transforms",
    "augment",
    "load",
    "load_cifar10",
    "load_digits",
    "load_fashion_mnist",
    "load_mnist",
    "read_pictures",
]
