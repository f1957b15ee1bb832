"""A network on an image, and what NaN and gradients show of it along one axis."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn

from constrained_cnn.errors import reason_of
from constrained_cnn.graph import Border, Graph, Resample
from constrained_cnn.proof._running import Caught, Target, run
from constrained_cnn.receptive_field import measure_receptive_field
from constrained_cnn.receptive_field._axis import Span
from constrained_cnn.receptive_field._digits import Field
from constrained_cnn.receptive_field._flow import places
from constrained_cnn.receptive_field._measure import last_spatial

T = TypeVar("T")


@dataclass(frozen=True)
class Sample:
    """A network on a finite image, the same each time, and the value it gives.

    Attributes:
        network: The copy with positive weights.
        own: The copy with the network's own weights; None if it has only their shapes.
        target: Where its value comes about; None for the image itself.
        shape: Shape of the sample.
    """

    network: nn.Module
    own: nn.Module | None
    target: Target | None
    shape: tuple[int, ...]

    @functools.cached_property
    def image(self) -> Tensor:
        noise = torch.Generator().manual_seed(0)
        return torch.rand((1, *self.shape), generator=noise, dtype=torch.float64) + 0.5

    def run(self, network: nn.Module, image: Tensor) -> Caught:
        """Return the value that a network gives, without a gradient."""
        with torch.no_grad():
            return run(network, self.target, image.clone())  # it may write into its input

    @functools.cached_property
    def unchanged(self) -> Caught:
        """The value for the image as it is."""
        return self.run(self.network, self.image)

    @functools.cached_property
    def unchanged_with_own(self) -> Caught | None:
        """That of the network's own weights."""
        return None if self.own is None else self.run(self.own, self.image)

    @functools.cached_property
    def is_finite(self) -> bool:
        """Whether the value has no NaN where the image has none."""
        return not bool(self.unchanged.value.isnan().any())

    @functools.cached_property
    def linear(self) -> tuple[Tensor, Caught]:
        """The image and the value it gives, with the graph between them."""
        image = self.image.clone().requires_grad_()
        return image, run(self.network, self.target, image.clone(), linear=True)


@dataclass(frozen=True)
class Scene:
    """A sample, looked at along one axis of the image.

    Attributes:
        sample: The network and its image.
        axis: The axis of the image.
        dim: The value's axis along it; None where it is gone.
        units: Units along it.
        field: What the analysis says they see.
        rounded: Whether weights of resampling may be 0 but for rounding.
        repeats: Whether a border repeats positions of the image, as reflected padding does.
        where: What to say of the image; empty for the one that was given.
    """

    sample: Sample
    axis: int
    dim: int | None
    units: int | None
    field: Field | None
    rounded: bool
    repeats: bool
    where: str = ""

    @property
    def length(self) -> int:
        """Positions of the image along the axis."""
        return self.sample.shape[1 + self.axis]

    def outside(self, span: Span | None) -> Tensor:
        """Return which positions lie outside a span."""
        positions = torch.arange(self.length)
        return (positions < span[0]) | (positions > span[1]) if span else positions >= 0

    def lines(self, image: Tensor) -> Tensor:
        """Return a view of an image with the axis first."""
        return image.movedim(2 + self.axis, 0)

    def by_unit(self, value: Tensor) -> Tensor:
        """Return a row for each unit; one row where the value has no units along the axis."""
        return value.reshape(1, -1) if self.dim is None else value.movedim(self.dim, 0).flatten(1)

    def value(self, network: nn.Module, amount: Tensor, where: Tensor) -> Caught:
        """Return the value for the image with an amount added at some positions of the axis."""
        image = self.sample.image.clone()
        self.lines(image)[where] += self.lines(amount)[where]
        return self.sample.run(network, image)

    def seen_by_gradient(self, unit: int | None, expected: Span | None) -> tuple[Span | None, str]:
        """Return the first and last position with a gradient, and why it may miss some.

        Args:
            unit: Number of the unit; None for all units.
            expected: First and last position it is said to see.
        """
        image, caught = self.sample.linear
        if not caught.value.requires_grad:
            return None, f"{caught.blind or 'an operation'} has no gradient"
        part = caught.value if unit is None else self.by_unit(caught.value)[unit]
        try:
            gradient = _gradient(part, image)
        except RuntimeError as error:  # it writes in place what its gradient needs, or has none
            return None, f"there is no gradient: {reason_of(error)}"
        if gradient is not None and gradient.isnan().any():
            return None, "the gradient is NaN"
        blind = f"{caught.blind} has no gradient, or not all of it" if caught.blind else ""
        return None if gradient is None else self._ends_of(gradient, expected), blind

    def _ends_of(self, gradient: Tensor, expected: Span | None) -> Span | None:
        lines = self.lines(gradient.abs()).flatten(1).sum(1)
        if self.rounded and expected is not None:
            inside = lines[expected[0] : expected[1] + 1]
            beyond = lines.sum() - inside.sum()
            if float(beyond) < 1e-12 * float(torch.minimum(inside[0], inside[-1])):
                return expected
        seen = lines.nonzero().flatten().tolist()
        return (seen[0], seen[-1]) if seen else None

    @functools.cached_property
    def _nan_from(self) -> Callable[[Tensor], Tensor]:
        """Return which units NaN at some positions reaches."""
        nan = torch.full_like(self.sample.image, torch.nan)

        def work(where: Tensor) -> Tensor:
            value = self.value(self.sample.network, nan, where).value
            return self.by_unit(value.isnan()).any(1)

        return once(work)

    def seen_by_nan(self, unit: int | None, expected: Span | None) -> Span | None:
        """Return the first and last position from where a NaN arrives."""
        positions, ends = torch.arange(self.length), sorted(set(expected or ()))

        def arrives(where: Tensor) -> bool:
            return bool(where.any() and self._nan_from(where)[unit or 0])

        if not arrives(self.outside(expected)) and all(arrives(positions == end) for end in ends):
            return expected
        return ends_of(self.length, arrives)


def once(work: Callable[[Tensor], T]) -> Callable[[Tensor], T]:
    """Return the same function of positions, which works out no answer twice."""
    known: dict[bytes, T] = {}

    def answer(where: Tensor) -> T:
        key = where.numpy().tobytes()
        if key not in known:
            known[key] = work(where)
        return known[key]

    return answer


def ends_of(length: int, reaches: Callable[[Tensor], bool]) -> Span | None:
    """Return the first and last position that reach a unit; more of them never reach less."""
    positions = torch.arange(length)
    if not reaches(positions >= 0):
        return None
    first = _smallest(length, lambda k: reaches(positions <= k))
    last = length - 1 - _smallest(length, lambda k: reaches(positions >= length - 1 - k))
    return first, last


def _gradient(part: Tensor, image: Tensor) -> Tensor | None:
    # Not a plain sum: that of a softmax or a norm does not depend on its input.
    noise = torch.Generator().manual_seed(1)
    weights = torch.rand(part.shape, generator=noise, dtype=torch.float64) + 0.5
    (gradient,) = torch.autograd.grad(
        (part * weights).sum(), image, retain_graph=True, allow_unused=True
    )
    return gradient


def _smallest(length: int, holds: Callable[[int], bool]) -> int:
    low, high = 0, length - 1
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle + 1, high)
    return low


def scenes_of(
    network: nn.Module, own: nn.Module | None, graph: Graph, layer: str | None
) -> list[Scene]:
    """Return a scene for each axis of the image, of one sample."""
    measured = measure_receptive_field(graph, layer=layer)
    value = value_of(graph, layer)
    ways = [
        source.by
        for one in graph.layers
        for reads in one.reads
        for read in reads
        for source in read.axes
        if source is not None
    ]
    resampled = any(isinstance(by, Resample) for by in ways)
    repeats = any(isinstance(by, Border) for by in ways)
    sample = Sample(network, own, target_of(graph, value), measured.input_shape)
    return [
        Scene(sample, number, place.axis, axis.units, axis.field, resampled, repeats)
        for number, (axis, place) in enumerate(
            zip(measured.axes, places(graph)[value], strict=True)
        )
    ]


def value_of(graph: Graph, layer: str | None) -> int:
    """Return the number of the value that is measured."""
    return last_spatial(graph, places(graph)) if layer is None else graph.value_of(layer)


def target_of(graph: Graph, value: int) -> Target | None:
    if value in graph.inputs:
        return None
    for path, given in graph.modules.items():
        if given == value:
            return Target(path)
    made = next(i for i, one in enumerate(graph.layers) if value in one.outputs)
    one = graph.layers[made]
    alike = [
        other for other in graph.layers[: made + 1] if (other.op, other.path) == (one.op, one.path)
    ]
    return Target(one.path, one.op, len(alike), one.outputs.index(value))
