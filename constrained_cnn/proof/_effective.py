"""How much of a receptive field is used."""

import functools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from constrained_cnn.errors import (
    InvalidInputError,
    TracingError,
    check_integer,
    check_number,
    escape_controls,
    reason_of,
)
from constrained_cnn.proof._running import Target, copy_of, run
from constrained_cnn.proof._scene import target_of, value_of
from constrained_cnn.receptive_field import ReceptiveField, measure_receptive_field
from constrained_cnn.receptive_field._axis import Span
from constrained_cnn.receptive_field._flow import places
from constrained_cnn.tracing import trace
from constrained_cnn.tracing._around import undisturbed


@dataclass(frozen=True, eq=False, repr=False)
class EffectiveField:
    """How much of what a unit sees it uses.

    Attributes:
        model: Name of the model's class.
        layer: Name of the layer.
        unit: Number of the unit along each axis of the image; None where the axis is gone.
        map: Share of each position of the image in the gradient of the unit; sums to 1. Read-only.
        intervals: For each axis first and last position the unit can see, which may lie outside
            the image; None where it sees the whole axis.
        centre: Position of the unit's centre along each axis, whole or half: the middle of its
            interval, gates left out; that of the image where it sees the whole axis.
    """

    model: str
    layer: str
    unit: tuple[int | None, ...]
    map: np.ndarray[Any, Any]
    intervals: tuple[Span | None, ...]
    centre: tuple[float, ...]

    def __repr__(self) -> str:
        return f"EffectiveField({self})"

    @functools.cached_property
    def _shares(self) -> NDArray[np.float64]:
        """The share within the centred box of each side, from 0."""
        grid = np.meshgrid(*map(np.arange, self.map.shape), indexing="ij")
        away = [np.abs(at - centre) for at, centre in zip(grid, self.centre, strict=True)]
        sides = np.rint(2 * np.max(away, axis=0) + 1).astype(np.int64)
        return np.cumsum(np.bincount(sides.ravel(), weights=self.map.ravel()))

    def share_within(self, size: int) -> float:
        """Return the share of the gradient in a box around the unit's centre.

        Args:
            size: Side of the box in positions, at least 1: those no further than
                ``(size - 1) / 2`` from the centre along each axis.

        Raises:
            InvalidInputError: If it is not an integer of at least 1.
        """
        side = check_integer("size", size, minimum=1)
        return float(self._shares[min(side, len(self._shares) - 1)])

    def size(self, share: float = 0.95) -> int:
        """Return the side of the smallest box around the unit's centre that holds ``share``.

        Raises:
            InvalidInputError: If the share is not above 0 and at most 1.
        """
        wanted = check_number("share", share, minimum=0, maximum=1)
        if wanted == 0:
            raise InvalidInputError("share=0: must be above 0 and at most 1")
        # The last bits of a sum are rounding: all of it must be found for a share of 1.
        return max(1, int(np.searchsorted(self._shares, wanted * self._shares[-1] - 1e-12)))

    def __str__(self) -> str:
        sizes = [
            f"all {length}" if span is None else str(span[1] - span[0] + 1)
            for span, length in zip(self.intervals, self.map.shape, strict=True)
        ]
        unit = ", ".join("-" if number is None else str(number) for number in self.unit)
        return escape_controls(
            f"{self.model} at {self.layer}: unit ({unit}) can see {' x '.join(sizes)}; 95 % of its "
            f"gradient lies within {' x '.join([str(self.size(0.95))] * self.map.ndim)}"
        )


def effective_receptive_field(
    model: nn.Module,
    input_shape: Sequence[int],
    *,
    layer: str | None = None,
    unit: Sequence[int | None] | None = None,
    images: Tensor | None = None,
    samples: int = 32,
    seed: int = 0,
) -> EffectiveField:
    r"""Return how strongly each position of the image moves a unit, with the model's own weights.

    For each image the gradient of :math:`\sum_c s_c\,y_c` with respect to the image is taken, with
    :math:`y_c` the channels of the unit and :math:`s_c` random signs, drawn anew for each. Its
    absolute values are summed over the channels of the image, averaged over the images and divided
    by their sum. Luo et al. send the gradient of 1 into the one channel of a unit; signs treat all
    channels alike, and no two of them cancel for every draw as they can in a plain sum.

    It runs in evaluation mode and double precision on a copy, on the CPU.

    Args:
        model: The network; it stays as it is.
        input_shape: Shape of one sample, ``(channels, *image)``.
        layer: Path of a module; None for the last layer whose units stand at places of the image.
        unit: Its number along each axis of the image, None where the axis is gone; None for the
            middle.
        images: Real images ``(n, *input_shape)``, prepared as for the network; None for Gaussian
            noise of mean 0 and variance 1.
        samples: Images used, at most.
        seed: Of the noise and the signs.

    Raises:
        InvalidInputError: If an argument breaks its rule, or no gradient reaches the image.
        TracingError: If the network cannot be traced, copied or run in double precision, or an
            operation has no gradient.

    References:
        Luo, Li, Urtasun, Zemel, "Understanding the Effective Receptive Field in Deep Convolutional
        Neural Networks", NeurIPS 2016.

    Examples:
        Six layers see 13 x 13; near the edge little of it counts:

        >>> _ = torch.manual_seed(0)
        >>> net = nn.Sequential(*[nn.Conv2d(4, 4, 3, padding=1) for _ in range(6)])
        >>> field = effective_receptive_field(net, (4, 28, 28), samples=4)
        >>> field.intervals, field.size(0.95) < 13, field.share_within(13)
        (((8, 20), (8, 20)), True, 1.0)
    """
    with undisturbed(), torch.enable_grad():
        graph = trace(model, input_shape)
        measured = measure_receptive_field(graph, layer=layer)
        check_integer("samples", samples, minimum=1)
        check_integer("seed", seed, minimum=0, maximum=2**64 - 1)
        if any(part.is_meta for part in (*model.parameters(), *model.buffers())):
            raise InvalidInputError(f"model={type(model).__name__}: has no weights, only shapes")
        noise = torch.Generator().manual_seed(seed)
        pictures = _pictures(images, measured.input_shape, samples, noise)
        at = _unit_of(measured, unit)
        value = value_of(graph, layer)
        part = _index([place.axis for place in places(graph)[value]], at)
        network, target = copy_of(model), target_of(graph, value)
        total = torch.zeros(measured.input_shape[1:], dtype=torch.float64)
        for picture in pictures:
            total += _influence(network, target, picture[None], part, noise)
    mass = float(total.sum())
    if not math.isfinite(mass) or mass == 0:
        raise InvalidInputError(
            f"model={measured.model}: the gradient of unit {at} of {measured.layer} sums to {mass} "
            "over the image, so there is nothing to share out; look at the weights and the images"
        )
    shares = (total / mass).numpy()
    shares.flags.writeable = False
    intervals, centre = _extent(measured, at)
    return EffectiveField(measured.model, measured.layer, at, shares, intervals, centre)


def _pictures(
    images: Any, shape: tuple[int, ...], samples: int, noise: torch.Generator
) -> Iterator[Tensor]:
    if images is None:
        return (torch.randn(shape, generator=noise, dtype=torch.float64) for _ in range(samples))
    if not isinstance(images, Tensor) or images.shape[1:] != shape or not len(images):
        got = tuple(images.shape) if isinstance(images, Tensor) else type(images).__name__
        raise InvalidInputError(f"images={got}: must be a tensor of shape (n, *{shape})")
    if images.is_complex() or images.layout is not torch.strided or images.is_meta:
        raise InvalidInputError(
            f"images={images.dtype}, {images.layout}, on {images.device}: must be a dense tensor "
            "of real numbers"
        )
    used = images.detach()[:samples].to("cpu", torch.float64)
    if not used.isfinite().all():
        raise InvalidInputError(
            f"images={tuple(images.shape)}: must hold finite numbers; there is NaN or infinity"
        )
    return iter(used)


def _unit_of(measured: ReceptiveField, unit: Any) -> tuple[int | None, ...]:
    counts = [axis.units for axis in measured.axes]
    if unit is None:
        return tuple(None if count is None else count // 2 for count in counts)
    if not isinstance(unit, tuple | list) or len(unit) != len(counts):
        raise InvalidInputError(f"unit={unit!r}: must be {len(counts)} numbers, one for each axis")
    for number, count in zip(unit, counts, strict=True):
        if count is not None:
            check_integer("unit", number, minimum=0, maximum=count - 1)
        elif number is not None:
            raise InvalidInputError(
                f"unit={unit!r}: must be None where {measured.layer} has no units along the axis"
            )
    return tuple(unit)


def _index(dims: Sequence[int | None], unit: Sequence[int | None]) -> dict[int, int | None]:
    """Return the unit's number along each axis of the value."""
    index: dict[int, int | None] = {}
    for dim, number in zip(dims, unit, strict=True):
        if dim is not None and index.setdefault(dim, number) != number:
            raise InvalidInputError(
                f"unit={tuple(unit)!r}: must name one unit; axes of the image that lie together on "
                "one axis of the value, as those of tokens do, have one number for it"
            )
    return index


def _influence(
    network: nn.Module,
    target: Target | None,
    picture: Tensor,
    part: dict[int, int | None],
    noise: torch.Generator,
) -> Tensor:
    """Return the absolute gradient of the unit ``part`` names, summed over input channels."""
    leaf = picture.clone().requires_grad_()
    value = run(network, target, leaf.clone()).value
    here = value[tuple(part.get(dim, slice(None)) for dim in range(value.ndim))]
    signs = torch.randint(0, 2, here.shape, generator=noise) * 2 - 1
    moved = (here * signs).sum()
    if not moved.requires_grad:
        raise InvalidInputError(
            f"model={type(network).__name__}: no gradient reaches the image; an operation on the "
            "way has none, such as a cast to integers, or runs without, as under no_grad"
        )
    try:
        (gradient,) = torch.autograd.grad(moved, leaf, allow_unused=True)
    except RuntimeError as error:
        raise TracingError(
            f"{type(network).__name__}: the gradient of a unit cannot be worked out: "
            f"{reason_of(error)}"
        ) from error
    return (torch.zeros_like(leaf) if gradient is None else gradient).abs().sum((0, 1))


def _extent(
    measured: ReceptiveField, unit: tuple[int | None, ...]
) -> tuple[tuple[Span | None, ...], tuple[float, ...]]:
    """Return for each axis what the unit can see, and where its centre is."""
    intervals: list[Span | None] = []
    centre: list[float] = []
    for axis, number in zip(measured.axes, unit, strict=True):
        near = None if axis.local is None or number is None else axis.local.interval(number)
        intervals.append(None if axis.field is None else near)
        centre.append((axis.length - 1) / 2 if near is None else sum(near) / 2)
    return tuple(intervals), tuple(centre)
