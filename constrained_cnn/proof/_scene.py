"""A network on an image, looked at along one axis."""

import functools
from collections.abc import Callable
from dataclasses import dataclass

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


@dataclass(frozen=True)
class Scene:
    """A network on an image of one shape, looked at along one axis of it.

    Attributes:
        network: The copy with positive weights.
        target: Where its value comes about; None for the image itself.
        shape: Shape of the sample.
        axis: The axis of the image.
        dim: The value's axis along it; None where it is gone.
        units: Units along it.
        field: What the analysis says they see.
        rounded: Whether weights of resampling may be 0 but for rounding.
        repeats: Whether a border repeats positions of the image, as reflected padding does.
        where: What to say of the image; empty for the one that was given.
    """

    network: nn.Module
    target: Target | None
    shape: tuple[int, ...]
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
        return self.shape[1 + self.axis]

    @functools.cached_property
    def image(self) -> Tensor:
        """A finite sample, the same each time."""
        noise = torch.Generator().manual_seed(0)
        return torch.rand((1, *self.shape), generator=noise, dtype=torch.float64) + 0.5

    @functools.cached_property
    def _linear(self) -> tuple[Tensor, Caught]:
        """The image and the value it gives, with the graph between them."""
        image = self.image.clone().requires_grad_()
        return image, run(self.network, self.target, image.clone(), linear=True)

    @functools.cached_property
    def _obstacle(self) -> str:
        """Why there is no gradient; empty if there is one."""
        image, caught = self._linear
        if not caught.value.requires_grad:
            return f"{caught.blind or 'an operation'} has no gradient"
        try:
            gradient = _gradient(caught.value, image)
        except RuntimeError as error:  # it writes in place what its gradient needs, or has none
            return f"there is no gradient: {reason_of(error)}"
        return "the gradient is NaN" if gradient is not None and gradient.isnan().any() else ""

    @property
    def blind(self) -> str:
        """Why a gradient may miss what a unit depends on; empty if it cannot."""
        way = self._linear[1].blind
        return self._obstacle or (f"{way} has no gradient, or not all of it" if way else "")

    def seen_by_gradient(self, unit: int | None, expected: Span | None) -> Span | None:
        """Return the first and last position with a gradient; ``unit=None`` for all units."""
        if self._obstacle:
            return None
        image, caught = self._linear
        gradient = _gradient(self._part(caught.value, unit), image)
        if gradient is None:
            return None
        lines = gradient.abs().movedim(2 + self.axis, 0).flatten(1).sum(1)
        if self.rounded and expected is not None:
            inside = lines[expected[0] : expected[1] + 1]
            beyond = lines.sum() - inside.sum()
            if float(beyond) < 1e-12 * float(torch.minimum(inside[0], inside[-1])):
                return expected
        seen = lines.nonzero().flatten().tolist()
        return (seen[0], seen[-1]) if seen else None

    def _part(self, value: Tensor, unit: int | None) -> Tensor:
        return value if unit is None or self.dim is None else value.select(self.dim, unit)

    def seen_by_nan(self, unit: int | None, expected: Span | None) -> Span | None:
        """Return the first and last position from where a NaN arrives."""
        positions = torch.arange(self.length)

        def arrives(where: Tensor) -> bool:
            if not where.any():
                return False
            image = self.image.clone()
            image.movedim(2 + self.axis, 0)[where] = torch.nan
            with torch.no_grad():
                value = run(self.network, self.target, image).value
            return bool(self._part(value, unit).isnan().any())

        if expected is None:
            outside, ends = positions >= 0, []
        else:
            outside = (positions < expected[0]) | (positions > expected[1])
            ends = sorted(set(expected))
        if not arrives(outside) and all(arrives(positions == end) for end in ends):
            return expected
        if not arrives(positions >= 0):
            return None
        # More lines of NaN never reach less, so halving finds the ends.
        first = smallest(self.length, lambda k: arrives(positions <= k))
        last = (
            self.length
            - 1
            - smallest(self.length, lambda k: arrives(positions >= self.length - 1 - k))
        )
        return first, last

    @functools.cached_property
    def is_finite(self) -> bool:
        """Whether the value has no NaN where the image has none."""
        with torch.no_grad():
            value = run(self.network, self.target, self.image.clone()).value
        return not bool(value.isnan().any())


def _gradient(part: Tensor, image: Tensor) -> Tensor | None:
    # Not a plain sum: that of a softmax or a norm does not depend on its input.
    noise = torch.Generator().manual_seed(1)
    weights = torch.rand(part.shape, generator=noise, dtype=torch.float64) + 0.5
    (gradient,) = torch.autograd.grad(
        (part * weights).sum(), image, retain_graph=True, allow_unused=True
    )
    return gradient


def smallest(length: int, holds: Callable[[int], bool]) -> int:
    low, high = 0, length - 1
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle + 1, high)
    return low


def scene_of(network: nn.Module, graph: Graph, layer: str | None, axis: int) -> Scene:
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
    of = measured.axes[axis]
    dim = places(graph)[value][axis].axis
    target = target_of(graph, value)
    shape = measured.input_shape
    return Scene(network, target, shape, axis, dim, of.units, of.field, resampled, repeats)


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
