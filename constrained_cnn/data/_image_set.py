"""A labelled set of images that lies whole on one device: :class:`ImageSet`."""

import dataclasses
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from constrained_cnn.data._augmentation import (
    PERMUTATION_STREAM,
    Augmentation,
    random_generator,
    warp,
)
from constrained_cnn.data._checks import check_indices, check_label_range, check_tensors
from constrained_cnn.data._reading import (
    channel_statistics,
    read_dataset,
    read_folder,
    to_images,
    to_labels,
)
from constrained_cnn.errors import DataError, InvalidInputError, check_integer, check_number

__all__ = ["ImageSet"]

# Batches are prepared together up to this many pixel values (about 10,000 images of 28x28): few
# kernel launches on a GPU, 32 MiB of floats on a CPU.
_CHUNK_VALUES = 2**23
_MOST_CLASSES = 100_000  # that labels alone may ask for; ImageNet-21k has 22,000


@dataclass(frozen=True, eq=False, repr=False)
class ImageSet:
    """Images and their labels, resident on one device; never changed once made.

    Attributes:
        images: uint8 pixels (N, C, H, W), 0 to 255.
        labels: int64 class numbers (N,), on the same device.
        mean: Mean of each channel, in units of 0 to 1.
        std: Deviation of each channel, in units of 0 to 1.
        classes: Name of each class; label i is ``classes[i]``.
        name: Name of the data set, for records and reports.
        augmentation: How training images are varied; None for not at all.

    Raises:
        InvalidInputError: If types, shapes, lengths or statistics do not fit together.
        DataError: If the set is empty or a label is out of range.

    Examples:
        >>> images = torch.arange(3 * 4 * 4).reshape(3, 4, 4).to(torch.uint8)
        >>> ImageSet.from_arrays(images, [0, 1, 1], classes=("cat", "dog"), name="pets")
        ImageSet('pets', 3 x 1x4x4, 2 classes, cpu)
    """

    images: Tensor
    labels: Tensor
    mean: tuple[float, ...]
    std: tuple[float, ...]
    classes: tuple[str, ...]
    name: str
    augmentation: Augmentation | None = None

    def __post_init__(self) -> None:
        check_tensors(self.images, self.labels)
        for name in ("mean", "std"):
            values = tuple(check_number(name, value) for value in getattr(self, name))
            if len(values) != self.images.shape[1]:
                raise InvalidInputError(
                    f"{name}={values}: needs one value for each of {self.images.shape[1]} channels"
                )
            object.__setattr__(self, name, values)
        if min(self.std) <= 0:
            raise InvalidInputError(f"std={self.std}: every value must be above 0")
        object.__setattr__(self, "classes", tuple(str(name) for name in self.classes))
        check_label_range(self.labels, len(self.classes))

    @classmethod
    def from_arrays(
        cls,
        images: Any,
        labels: Any,
        *,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        classes: Sequence[str] | None = None,
        name: str = "arrays",
    ) -> "ImageSet":
        """Make a set of NumPy arrays or tensors; they are copied.

        Args:
            images: uint8 (0 to 255) or float (0 to 1), of shape (N, H, W) or (N, C, H, W).
            labels: N integers from 0.
            mean: Mean of each channel, in units of 0 to 1; computed from the images if None.
            std: Deviation of each channel; computed if None.
            classes: Class names; ``"0"`` up to the largest label if None.
            name: Name of the data set.

        Raises:
            InvalidInputError: If types, shapes, lengths or statistics do not fit together.
            DataError: If the set is empty, a pixel or label is out of range, or a channel is flat.
        """
        pixels, numbers = to_images(images), to_labels(labels)
        check_tensors(pixels, numbers)
        if classes is None and int(numbers.max()) >= _MOST_CLASSES:
            raise InvalidInputError(
                f"labels: the largest is {int(numbers.max())}, which would make as many classes; "
                "number the labels from 0, or give the classes their names"
            )
        if classes is None:
            classes = [str(label) for label in range(int(numbers.max()) + 1)]
        if mean is None or std is None:
            computed_mean, computed_std = channel_statistics(pixels)
            mean = computed_mean if mean is None else mean
            std = computed_std if std is None else std
        return cls(pixels, numbers, tuple(mean), tuple(std), tuple(classes), name)

    @classmethod
    def from_dataset(
        cls,
        dataset: Any,
        *,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        classes: Sequence[str] | None = None,
        name: str | None = None,
    ) -> "ImageSet":
        """Read a map-style torch data set of (image, label) pairs, such as torchvision's, once.

        Args:
            dataset: Its images are PIL images, tensors or arrays (H, W) or (C, H, W), uint8 or
                float from 0 to 1, all of one shape.
            mean: Mean of each channel; computed from the images if None.
            std: Deviation of each channel; computed if None.
            classes: Class names; the data set's own ``classes`` if None, else numbers.
            name: Name of the data set; the name of its type if None.

        Raises:
            InvalidInputError: If an item is not such a pair.
            DataError: If the images differ in shape, or as :meth:`from_arrays`.
        """
        images, labels = read_dataset(dataset)
        return cls.from_arrays(
            images,
            labels,
            mean=mean,
            std=std,
            classes=getattr(dataset, "classes", None) if classes is None else classes,
            name=type(dataset).__name__ if name is None else name,
        )

    @classmethod
    def from_folder(
        cls,
        root: Any,
        *,
        size: tuple[int, int],
        channels: int = 1,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        name: str = "folder",
    ) -> "ImageSet":
        """Read a folder that holds one sub-folder of pictures (PNG, JPEG, BMP, ...) per class.

        Args:
            root: The folder; the sorted names of its sub-folders are the classes. Hidden files
                and folders are skipped.
            size: Height and width that every picture is resized to.
            channels: 1 for grey, 3 for colour.
            mean: Mean of each channel; computed from the images if None.
            std: Deviation of each channel; computed if None.
            name: Name of the data set.

        Raises:
            InvalidInputError: If ``size`` or ``channels`` is wrong.
            DataError: If there is no picture, or one that cannot be read; the message names it.
        """
        images, labels, classes = read_folder(root, size, channels)
        return cls.from_arrays(images, labels, mean=mean, std=std, classes=classes, name=name)

    def __len__(self) -> int:
        return len(self.labels)

    def __repr__(self) -> str:
        size = "x".join(str(length) for length in self.shape)
        classes = f"{len(self.classes)} class{'es' if len(self.classes) != 1 else ''}"
        parts = [repr(self.name), f"{len(self)} x {size}", classes, str(self.device)]
        if self.augmentation is not None:
            parts.append(repr(self.augmentation))
        return f"ImageSet({', '.join(parts)})"

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of one image (channels, height, width)."""
        channels, height, width = self.images.shape[1:]
        return (channels, height, width)

    @property
    def device(self) -> torch.device:
        """The device that holds the set."""
        return self.images.device

    @cached_property
    def checksum(self) -> str:
        """SHA-256, in hex, of shape, pixels and labels; the same on every device."""
        digest = hashlib.sha256(repr(tuple(self.images.shape)).encode())
        digest.update(self.images.cpu().contiguous().numpy().data)
        digest.update(self.labels.cpu().numpy().astype("<i8").data)
        return digest.hexdigest()

    def describe(self) -> dict[str, Any]:
        """Return what the set is as plain data: everything that a training run depends on."""
        how = self.augmentation
        return {
            "name": self.name,
            "samples": len(self),
            "checksum": self.checksum,
            "mean": list(self.mean),
            "std": list(self.std),
            "classes": list(self.classes),
            "augmentation": None if how is None else how.to_dict(),
        }

    def to(self, device: torch.device | str) -> "ImageSet":
        """Return the same set on another device; itself if it is there already."""
        images, labels = self.images.to(device), self.labels.to(device)
        if images is self.images and labels is self.labels:
            return self
        return self._same_content(images=images, labels=labels)

    def augmented(self, augmentation: Augmentation | None = None, **settings: Any) -> "ImageSet":
        """Return the set with another augmentation of its training batches.

        Args:
            augmentation: The augmentation; None for none.
            **settings: The fields of :class:`Augmentation`, instead of one.

        Raises:
            InvalidInputError: If both are given, or a setting is unknown or out of range.

        Examples:
            >>> digits = ImageSet.from_arrays(torch.eye(8)[None], [0]).augmented(rotation=5)
            >>> digits.augmentation.rotation
            5.0
        """
        if settings and augmentation is not None:
            raise InvalidInputError("augmented: give an Augmentation or its settings, not both")
        if settings:
            augmentation = Augmentation.from_dict(settings)
        if not isinstance(augmentation, Augmentation | None):
            raise InvalidInputError(f"augmentation={augmentation!r}: must be an Augmentation")
        return self._same_content(augmentation=augmentation)

    def subset(self, indices: Any) -> "ImageSet":
        """Return the chosen images, in the order given.

        Args:
            indices: Integers from 0 to N - 1, or a boolean mask of length N.

        Raises:
            InvalidInputError: If there are none, one is out of range, or a mask is not of
                length N.
        """
        chosen = check_indices(indices, len(self)).to(self.device)
        return dataclasses.replace(self, images=self.images[chosen], labels=self.labels[chosen])

    def split(self, count: int, *, seed: int) -> tuple["ImageSet", "ImageSet"]:
        """Hold out ``count`` images, with the same share of every class as in the set.

        Args:
            count: Number of images held out.
            seed: The choice is a pure function of it and of the labels.

        Returns:
            The rest, and the held-out set; together every image once, each in the set's order.

        Raises:
            InvalidInputError: If ``count`` leaves a part smaller than the number of classes.
            DataError: If a class has a single image.
        """
        from sklearn.model_selection import train_test_split

        labels = self.labels.cpu().numpy()
        present, counts = np.unique(labels, return_counts=True)
        if counts.min() < 2:
            lone = self.classes[present[counts.argmin()]]
            raise DataError(f"class {lone!r} has 1 image; a split needs at least 2 of each class")
        check_integer("count", count, minimum=len(present), maximum=len(self) - len(present))
        check_integer("seed", seed, minimum=0, maximum=2**32 - 1)
        rest, held_out = train_test_split(
            np.arange(len(self)), test_size=int(count), stratify=labels, random_state=int(seed)
        )
        return self.subset(np.sort(rest)), self.subset(np.sort(held_out))

    def normalised(
        self, images: Tensor, *, memory_format: torch.memory_format = torch.contiguous_format
    ) -> Tensor:
        """Return ``(images / 255 - mean) / std`` as float32.

        Args:
            images: Pixels (N, C, H, W), 0 to 255, uint8 or float, on any device.
            memory_format: Layout of the result.
        """
        std = torch.tensor(self.std, dtype=torch.float64).view(-1, 1, 1)
        mean = torch.tensor(self.mean, dtype=torch.float64).view(-1, 1, 1)
        scale = (1 / (255 * std)).to(images.device, torch.float32)
        offset = (-mean / std).to(images.device, torch.float32)
        result = torch.addcmul(offset, images.to(torch.float32), scale)
        if memory_format == torch.contiguous_format:
            return result
        # A plain conversion leaves the strides of one-channel images as they are, and a
        # convolution would then answer in the other layout.
        return torch.empty_like(result, memory_format=memory_format).copy_(result)

    def steps(self, batch_size: int) -> int:
        """Return the number of batches in an epoch, a short last one counted."""
        return -(-len(self) // check_integer("batch_size", batch_size, minimum=1))

    def batches(
        self,
        batch_size: int,
        *,
        memory_format: torch.memory_format = torch.contiguous_format,
        part: tuple[int, int] = (0, 1),
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Iterate over normalised batches, in order, never augmented; the last may be short.

        Args:
            batch_size: Images in a batch.
            memory_format: Layout of the inputs.
            part: As for :meth:`training_batches`.

        Returns:
            An iterator over (inputs, labels), float32 (B, C, H, W) and int64 (B,).
        """
        chosen = self._part_of_each(batch_size, part)
        order = None if part[1] == 1 else torch.cat(chosen).to(self.device)
        return self._batches(chosen, order, None, memory_format)

    def training_batches(
        self,
        batch_size: int,
        *,
        seed: int,
        epoch: int,
        memory_format: torch.memory_format = torch.contiguous_format,
        start: int = 0,
        part: tuple[int, int] = (0, 1),
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Iterate once over all images in random order, augmented if the set says so.

        Order and augmentation are a pure function of ``seed`` and ``epoch``, the same on every
        device, so an epoch can be taken up again, at any batch, without any state. An image's
        transform belongs to its place in the set, not to the batch it lands in.

        Args:
            batch_size: Images in a batch; the last may be short.
            seed: Seed of the run, from 0.
            epoch: Number of the epoch, from 0.
            memory_format: Layout of the inputs.
            start: Number of the first batch, from 0; those before it are not made.
            part: ``(r, n)`` gives images r, r + n, r + 2n and so on of every batch: what process r
                of n takes. A short last batch may leave none for it, and is then empty.

        Returns:
            An iterator over (inputs, labels), float32 (B, C, H, W) and int64 (B,).

        Raises:
            InvalidInputError: If a number is out of its range.
        """
        steps = self.steps(batch_size)
        check_integer("start", start, minimum=0, maximum=steps)
        order = torch.randperm(
            len(self), generator=random_generator(seed, epoch, PERMUTATION_STREAM)
        )
        chosen = self._part_of_each(batch_size, part)[start:]
        order = order[torch.cat(chosen)] if chosen else order[:0]
        matrices = None
        if self.augmentation is not None:
            drawn = self.augmentation.draw(len(self), seed=seed, epoch=epoch).take(order)
            matrices = drawn.matrices(*self.shape[1:]).to(self.device)
        return self._batches(chosen, order.to(self.device), matrices, memory_format)

    def _part_of_each(self, batch_size: int, part: tuple[int, int]) -> list[Tensor]:
        """Return, for every batch of an epoch, which places in the order this process takes."""
        batch_size = check_integer("batch_size", batch_size, minimum=1)
        number = check_integer("part", part[1], minimum=1, maximum=batch_size)
        first = check_integer("part", part[0], minimum=0, maximum=number - 1)
        return [places[first::number] for places in torch.arange(len(self)).split(batch_size)]

    def _batches(
        self,
        places: Sequence[Tensor],
        order: Tensor | None,
        matrices: Tensor | None,
        memory_format: torch.memory_format,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Iterate over batches of these sizes, prepared many at a time; order None for in order."""
        sizes = [len(batch) for batch in places]
        values = max(sizes, default=1) * self.images[0].numel()
        together = max(1, _CHUNK_VALUES // max(1, values))
        done = 0
        for first in range(0, len(sizes), together):
            those = sizes[first : first + together]
            part = slice(done, done + sum(those))
            done = part.stop
            chosen = part if order is None else order[part]
            images, labels = self.images[chosen], self.labels[chosen]
            if matrices is not None and self.augmentation is not None:
                how = self.augmentation
                images = warp(images.float(), matrices[part], how.interpolation, how.fill)
            inputs = self.normalised(images, memory_format=memory_format)
            yield from zip(inputs.split(those), labels.split(those), strict=True)

    def _same_content(self, **changes: Any) -> "ImageSet":
        result = dataclasses.replace(self, **changes)
        if "checksum" in self.__dict__:  # where cached_property keeps it
            result.__dict__["checksum"] = self.checksum
        return result
