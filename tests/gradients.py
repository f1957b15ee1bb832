"""What units see, found by gradients: to hold what is said of a network against."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from constrained_cnn.receptive_field._flow import places
from constrained_cnn.tracing import trace

SHAPE = (2, 8, 12)


class Does(nn.Module):
    def __init__(self, function: Callable[..., Tensor], *parts: nn.Module) -> None:
        super().__init__()
        self.function, self.parts = function, nn.ModuleList(parts)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, *self.parts)


def check(network: nn.Module, shape: tuple[int, ...] = SHAPE) -> None:
    """Compare what the units of the network's output see with their gradients.

    Weights are positive, so that no two paths cancel; the network must not hide gradients, as
    max-pools do.
    """
    network = network.double().eval()
    for weights in network.parameters():
        nn.init.uniform_(weights, 0.5, 1.5)
    graph = trace(network, shape)
    image = (torch.rand(1, *shape, dtype=torch.float64) + 0.5).requires_grad_()
    value = network(image)
    for number, place in enumerate(places(graph)[graph.outputs[0]]):
        assert not place.problem
        length = shape[1 + number]
        others = [axis for axis in range(image.ndim) if axis != 2 + number]
        units = range(1 if place.axis is None else value.shape[place.axis])
        for unit in units:
            part = value if place.axis is None else value.select(place.axis, unit)
            (gradient,) = torch.autograd.grad(part.sum(), image, retain_graph=True)
            reached = gradient.abs().sum(others).nonzero().flatten().tolist()
            span = (0, length - 1) if place.field is None else place.field.interval(unit)
            assert span is not None
            span = (max(span[0], 0), min(span[1], length - 1))
            assert (reached[0], reached[-1]) == span, (number, unit)
