"""Random affine transforms, one per image: what is drawn, and how it is applied."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from constrained_cnn.errors import (
    InvalidInputError,
    check_choice,
    check_integer,
    check_known_keys,
    check_number,
)

__all__ = ["Augmentation", "Transforms", "augment", "random_generator"]

# One stream of random numbers per purpose, so that neither changes when the other is not used.
PERMUTATION_STREAM = 0
AUGMENTATION_STREAM = 1


def random_generator(seed: int, epoch: int, stream: int) -> torch.Generator:
    """Return a CPU generator that is a pure function of its arguments.

    Raises:
        InvalidInputError: If one of them is not an integer of at least 0.
    """
    words = [
        check_integer("seed", seed, minimum=0),
        check_integer("epoch", epoch, minimum=0),
        stream,
    ]
    state = np.random.SeedSequence(words).generate_state(1, np.uint64)[0]
    return torch.Generator("cpu").manual_seed(int(state >> np.uint64(1)))


@dataclass(frozen=True, eq=False)
class Transforms:
    """Affine transforms that were drawn, one per image; CPU float tensors of shape (count,).

    Attributes:
        angle: Rotation in degrees; positive is counter-clockwise.
        shift_x: Shift to the right, as a fraction of the width.
        shift_y: Shift downwards, as a fraction of the height.
        scale: Magnification about the centre.
    """

    angle: Tensor
    shift_x: Tensor
    shift_y: Tensor
    scale: Tensor

    def __len__(self) -> int:
        return len(self.angle)

    def take(self, indices: Tensor) -> "Transforms":
        """Return the transforms of these samples, in this order."""
        return Transforms(
            self.angle[indices], self.shift_x[indices], self.shift_y[indices], self.scale[indices]
        )

    def matrices(self, height: int, width: int) -> Tensor:
        """Return where each output pixel is read from: (count, 2, 3) float32, on the CPU.

        A matrix maps an output position (x, y, 1), in pixels from the centre of the image, to the
        input position in units of half the width and half the height, as ``grid_sample`` wants it.
        """
        # In float64, like the Python floats of torchvision's rotate, so that the rounding agrees.
        angle = torch.deg2rad(self.angle.double())
        cos = torch.cos(angle) / self.scale.double()
        sin = torch.sin(angle) / self.scale.double()
        right, down = self.shift_x.double() * width, self.shift_y.double() * height
        to_x = torch.stack([cos, -sin, -cos * right + sin * down], dim=1)
        to_y = torch.stack([sin, cos, -sin * right - cos * down], dim=1)
        matrices = torch.stack([to_x, to_y], dim=1).float()
        return matrices / torch.tensor([[0.5 * width], [0.5 * height]])


@dataclass(frozen=True)
class Augmentation:
    """How training images are varied: every image of every epoch by its own random transform.

    Attributes:
        rotation: Largest rotation, in degrees from 0 to 180; uniform in ``[-rotation, rotation]``.
        shift: Largest shift, as a fraction of the width and height; uniform, each axis alone.
        scale: Largest change of size; the factor is uniform in ``[1 - scale, 1 + scale]``.
        interpolation: ``"bilinear"`` or ``"nearest"``.
        fill: The pixel value, 0 to 255, that comes in from outside: the background.

    Raises:
        InvalidInputError: If a value is out of its range.

    Examples:
        >>> Augmentation(rotation=5).draw(3, seed=0, epoch=1).angle.abs().max() <= 5
        tensor(True)
    """

    rotation: float = 0.0
    shift: float = 0.0
    scale: float = 0.0
    interpolation: str = "bilinear"
    fill: float = 0.0

    def __post_init__(self) -> None:
        limits = {"rotation": 180, "shift": 1, "scale": None, "fill": 255}
        for name, maximum in limits.items():
            number = check_number(name, getattr(self, name), minimum=0, maximum=maximum)
            # A plain float: NumPy's numbers fit in no record and no checkpoint.
            object.__setattr__(self, name, number)
        if self.scale >= 1:
            raise InvalidInputError(f"scale={self.scale!r}: must be below 1, or an image vanishes")
        check_choice("interpolation", self.interpolation, ("bilinear", "nearest"))

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as plain data."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Augmentation":
        """Return the augmentation that :meth:`to_dict` described.

        Raises:
            InvalidInputError: If a key is unknown or a value out of its range.
        """
        check_known_keys("augmentation", values, [field.name for field in dataclasses.fields(cls)])
        return cls(**values)

    def draw(self, count: int, *, seed: int, epoch: int) -> Transforms:
        """Draw one transform for each of ``count`` samples; a pure function of seed and epoch.

        Row i belongs to sample i of the set, whatever batch it lands in.

        Raises:
            InvalidInputError: If ``count`` is below 1, or ``seed`` or ``epoch`` below 0.
        """
        check_integer("count", count, minimum=1)
        generator = random_generator(seed, epoch, AUGMENTATION_STREAM)
        # All four are drawn, used or not: turning one on leaves the others as they were.
        angle, right, down, scale = torch.rand((4, count), generator=generator) * 2 - 1
        return Transforms(
            angle * self.rotation, right * self.shift, down * self.shift, 1 + scale * self.scale
        )


def augment(
    images: Tensor, drawn: Transforms, *, interpolation: str = "bilinear", fill: float = 0.0
) -> Tensor:
    """Apply to each image its own transform.

    Rotation, pixel for pixel, is that of ``torchvision.transforms.functional.rotate``. At the
    frame's edge a bilinear pixel mixes image and ``fill`` by their shares of its area.

    Args:
        images: Float images (N, C, H, W), pixel values 0 to 255, on any device.
        drawn: N transforms.
        interpolation: ``"bilinear"`` or ``"nearest"``.
        fill: The pixel value that comes in from outside.

    Returns:
        The transformed images; same shape, type and device.

    Raises:
        InvalidInputError: If the images are not float (N, C, H, W) or the lengths differ.

    Examples:
        A quarter turn counter-clockwise:

        >>> one, zero = torch.ones(1), torch.zeros(1)
        >>> image = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]])
        >>> augment(image, Transforms(90 * one, zero, zero, one), interpolation="nearest")
        tensor([[[[2., 4.],
                  [1., 3.]]]])
    """
    if images.ndim != 4 or not images.is_floating_point():
        raise InvalidInputError(
            f"images={images.dtype} of shape {tuple(images.shape)}: must be float (N, C, H, W)"
        )
    if len(drawn) != len(images):
        raise InvalidInputError(f"drawn={len(drawn)} transforms for {len(images)} images")
    check_choice("interpolation", interpolation, ("bilinear", "nearest"))
    matrices = drawn.matrices(images.shape[2], images.shape[3])
    return warp(images, matrices.to(images.device, images.dtype), interpolation, fill)


def warp(images: Tensor, matrices: Tensor, interpolation: str, fill: float) -> Tensor:
    """Read each image through its own matrix of :meth:`Transforms.matrices`."""
    height, width = images.shape[2:]
    x = torch.arange(width, device=images.device, dtype=images.dtype) - (width - 1) / 2
    y = torch.arange(height, device=images.device, dtype=images.dtype) - (height - 1) / 2
    of_x, of_y, offset = (matrices[:, None, None, :, column] for column in range(3))
    # Not affine_grid: that is a matrix product, which a GPU may round to TF32 (10 bits), and which
    # works in units of the half frame, where a pixel of a non-square image is not square.
    grid = torch.addcmul(of_x * x[:, None], of_y, y[:, None, None]) + offset
    inside = images - fill if fill else images
    warped = torch.nn.functional.grid_sample(
        inside, grid, mode=interpolation, padding_mode="zeros", align_corners=False
    )
    return warped + fill if fill else warped
