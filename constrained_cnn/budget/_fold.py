"""Merge batch norms into the layers that feed them, in a copy of the network."""

from collections.abc import Hashable, Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.utils import parametrize

from constrained_cnn.budget._folding import SHIFT, WHOLE, Folding, foldings_of
from constrained_cnn.errors import TracingError, reason_of
from constrained_cnn.graph import Graph
from constrained_cnn.tracing import as_graph, trace
from constrained_cnn.tracing._around import undisturbed
from constrained_cnn.tracing._copy import copied, in_double
from constrained_cnn.tracing.operations import tensors

# About a second in double precision.
_CHEAP_MACS = 4 * 10**9


class ScaleShift(nn.Module):
    """What is left of a batch norm in evaluation mode: a scale and a shift for each channel.

    Shapes: ``(N, C, *)`` to the same.

    Args:
        channels: Number of channels.
        scale: Whether there is a scale; if not, only a shift is left.

    Examples:
        >>> ScaleShift(2)(torch.ones(1, 2, 1)).flatten().tolist()
        [1.0, 1.0]
    """

    weight: nn.Parameter | None

    def __init__(self, channels: int, scale: bool = True) -> None:
        super().__init__()
        self.register_parameter("weight", nn.Parameter(torch.ones(channels)) if scale else None)
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, input: Tensor) -> Tensor:
        """Return ``input`` scaled and shifted, channel by channel."""
        shape = (1, -1, *([1] * (input.ndim - 2)))
        scaled = input if self.weight is None else input * self.weight.view(shape)
        return scaled + self.bias.view(shape)

    def extra_repr(self) -> str:
        """Return what ``repr`` shows."""
        return f"{self.bias.numel()}{', scale=False' if self.weight is None else ''}"


def foldings(
    model: nn.Module | Graph, input_shape: Sequence[int] | None = None
) -> tuple[Folding, ...]:
    """Return what :func:`fold_bn` makes of each norm of a network, and why anything of it stays.

    Args:
        model: The network, or its :class:`~constrained_cnn.graph.Graph`.
        input_shape: Shape of one sample; not for a graph.

    Raises:
        InvalidInputError: If there is no shape.
        TracingError: If the network cannot be traced.

    Examples:
        >>> layers = nn.Conv2d(1, 2, 3), nn.ReLU(), nn.BatchNorm2d(2), nn.Conv2d(2, 4, 3, padding=1)
        >>> print(*foldings(nn.Sequential(*layers), (1, 8, 8)))
        2: batch_norm: leaves its shift, for 3: conv2d reads zeros of padding beside it
    """
    return foldings_of(as_graph(model, input_shape))


def fold_bn(model: nn.Module, input_shape: Sequence[int]) -> nn.Module:
    """Return a copy in evaluation mode whose batch norms are merged away; outputs stay the same.

    A batch norm merges *back* into the convolution or linear layer that feeds it directly, if
    nothing else reads what that layer gives. Elsewhere, as after a ReLU, it merges *forward* into
    the next convolution or linear layer, if nothing else reads what lies between. Its scale goes
    through average pools, and through a max-pool where it is positive in every channel. Its shift
    goes where that layer reads no zeros of padding, which come after the shift. A shift that cannot
    go stays as a :class:`ScaleShift` without a scale, and what can go nowhere as one with both.
    :func:`foldings` lists what stays, and why. Parametrised weights become ordinary ones. What
    comes out is in evaluation mode and not for training.

    Only what is known to be a scale and a shift is touched: a norm or a layer whose class has a
    ``forward`` of its own, or that has hooks, stays as it is, and so does a layer that shares its
    weights with another. The result is traced, and where that takes no more than about a second
    both networks run in double precision on a random sample to see that they agree.

    Args:
        model: The network; it stays as it is.
        input_shape: Shape of one sample, to see what feeds what.

    Raises:
        TracingError: If the network cannot be traced or copied, or does not give the same without
            its batch norms, as where another module reads their attributes.

    Examples:
        >>> net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.BatchNorm2d(2))
        >>> fold_bn(net, (1, 8, 8))
        Sequential(
          (0): Conv2d(1, 2, kernel_size=(3, 3), stride=(1, 1))
          (1): Identity()
          (2): ReLU()
          (3): ScaleShift(2)
        )
        >>> net = nn.Sequential(nn.ReLU(), nn.BatchNorm2d(2), nn.Conv2d(2, 4, 3, bias=False))
        >>> fold_bn(net, (2, 8, 8))
        Sequential(
          (0): ReLU()
          (1): Identity()
          (2): Conv2d(2, 4, kernel_size=(3, 3), stride=(1, 1))
        )
    """
    with undisturbed():
        graph = trace(model, input_shape)
        folded = _folded(copied(model), graph)
        _try(model, folded, graph, input_shape)
    return folded


def _folded(network: nn.Module, graph: Graph) -> nn.Module:
    """Fold a network that may be changed."""
    network.eval()
    with torch.no_grad():
        _settle(network)
        modules = dict(network.named_modules(remove_duplicate=False))
        done: set[nn.Module] = set()
        put: dict[Hashable, ScaleShift] = {}  # norms with the same tensors stay one
        for one in foldings_of(graph):
            norm = modules.get(graph.layers[one.position].path)
            if one.left == WHOLE or norm in done:
                continue
            assert isinstance(norm, _BatchNorm)
            done.add(norm)
            if one.target is not None:
                _merge(modules[graph.layers[one.target].path], norm, one)
            new: nn.Module = nn.Identity()
            if one.left:
                new = put.setdefault((*map(id, _tensors_of(norm)), norm.eps), _rest(norm, one))
            _replace(network, norm, new)
    return network.eval()


def _settle(model: nn.Module) -> None:
    """Make parametrised tensors ordinary ones.

    Not by torch's ``remove_parametrizations``: it takes them from the class that the copy shares
    with the model.
    """
    for module in list(model.modules()):
        if not parametrize.is_parametrized(module):
            continue
        parametrizations = cast(nn.ModuleDict, module.parametrizations)
        tensors = {name: getattr(module, name).detach().clone() for name in parametrizations}
        module.__class__ = type(module).__bases__[0]
        del module.parametrizations
        for name, tensor in tensors.items():
            module.register_parameter(name, nn.Parameter(tensor))


def _tensors_of(norm: _BatchNorm) -> list[Tensor]:
    held = (norm.weight, norm.bias, norm.running_mean, norm.running_var)
    return [tensor for tensor in held if tensor is not None]


def _merge(layer: nn.Module, norm: _BatchNorm, one: Folding) -> None:
    """Put the scale of a norm into a layer, and its shift where that moves."""
    assert isinstance(layer, _ConvNd | nn.Linear)
    scale, shift = _scale_and_shift(norm)
    weight, bias = layer.weight.double(), layer.bias
    if one.forward:
        scaled, shift = _behind(layer, weight, scale, shift)
        bias = shift if bias is None else bias.double() + shift
    else:
        scaled = _before(layer, weight, scale)
        bias = shift if bias is None else bias.double() * scale + shift
    keeps = layer.weight.requires_grad
    if one.left != SHIFT:
        layer.bias = nn.Parameter(bias.to(layer.weight.dtype), keeps)
    layer.weight = nn.Parameter(scaled.to(layer.weight.dtype), keeps)


def _before(layer: "_ConvNd | nn.Linear", weight: Tensor, scale: Tensor) -> Tensor:
    """Return a weight whose outputs are scaled."""
    if isinstance(layer, _ConvTransposeNd):  # (in, out / groups, *): outputs run on axis 1
        parts = weight.view(layer.groups, -1, *weight.shape[1:])
        each = scale.view(layer.groups, 1, -1, *([1] * (weight.ndim - 2)))
        return (parts * each).view(weight.shape)
    return weight * scale.view(-1, *([1] * (weight.ndim - 1)))


def _behind(
    layer: "_ConvNd | nn.Linear", weight: Tensor, scale: Tensor, shift: Tensor
) -> tuple[Tensor, Tensor]:
    """Return a weight that scales its inputs, and what it makes of a shift of all of them."""
    if isinstance(layer, _ConvTransposeNd):  # a shift does not go into one
        return weight * scale.view(-1, *([1] * (weight.ndim - 1))), torch.zeros(())
    groups = layer.groups if isinstance(layer, _ConvNd) else 1
    parts = weight.view(groups, -1, *weight.shape[1:])  # (groups, out / groups, in / groups, *)
    each = parts.shape[2] * groups // scale.numel()  # features of one channel, once flattened
    one, other = (
        part.repeat_interleave(each).view(groups, 1, -1, *([1] * (weight.ndim - 2)))
        for part in (scale, shift)
    )
    return (parts * one).view(weight.shape), (parts * other).flatten(2).sum(2).flatten()


def _scale_and_shift(norm: _BatchNorm) -> tuple[Tensor, Tensor]:
    """Return what a norm does to each channel, worked out in double precision."""
    mean, variance = norm.running_mean, norm.running_var
    assert mean is not None
    assert variance is not None
    scale = (variance.double() + norm.eps).rsqrt()
    if norm.weight is not None:
        scale = scale * norm.weight.double()
    shift = -mean.double() * scale
    if norm.bias is not None:
        shift = shift + norm.bias.double()
    return scale, shift


def _rest(norm: _BatchNorm, one: Folding) -> ScaleShift:
    """Return what stays of a norm: a shift before its scale, or both."""
    scale, shift = _scale_and_shift(norm)
    assert norm.running_mean is not None
    module = ScaleShift(norm.num_features, scale=one.left != SHIFT).to(norm.running_mean)
    module.bias.copy_(shift / scale if one.left == SHIFT else shift)
    if module.weight is not None:
        module.weight.copy_(scale)
    return module


def _replace(model: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Put a module in the place of another, wherever that is."""
    for path, module in list(model.named_modules(remove_duplicate=False)):
        if module is old:
            parent, _, name = path.rpartition(".")
            setattr(model.get_submodule(parent), name, new)


def _try(model: nn.Module, folded: nn.Module, graph: Graph, shape: Sequence[int]) -> None:
    """Raise if a folded network does not run, or gives something else."""
    try:
        trace(folded, shape)
    except TracingError as error:
        raise _broken(model, f"it does not run: {reason_of(error)}") from error
    weights = (*model.parameters(), *model.buffers())
    macs = sum(layer.work.macs for layer in graph.layers if layer.work is not None)
    if macs > _CHEAP_MACS or any(part.is_meta for part in weights):
        return
    for batch in (1, 2):  # a forward may go another way for one sample
        _compare(model, graph, torch.randn((batch, *shape), dtype=torch.float64))


def _compare(model: nn.Module, graph: Graph, images: Tensor) -> None:
    """Raise if a network and its folded copy differ on some images, in double precision."""
    try:
        expected = _outputs(copied(model, in_double).eval(), images)
    except Exception:  # noqa: BLE001 - it may cast, or take one sample only: then it is not tried
        return
    # Folded in double precision too: weights rounded once more would hide in no tolerance.
    merged = _folded(copied(model, in_double), graph)
    try:
        found = _outputs(merged, images)
    except Exception as error:
        raise _broken(model, f"it does not run: {reason_of(error)}") from error
    if len(found) != len(expected) or not all(map(_agree, found, expected)):
        raise _broken(model, "it gives other outputs")


def _outputs(network: nn.Module, image: Tensor) -> list[Tensor]:
    # Each starts from the same random numbers, should it draw any.
    with undisturbed(), torch.no_grad():
        torch.set_default_dtype(torch.float64)
        made = list(tensors(network(image.clone())))
    return [tensor for tensor in made if tensor.is_floating_point() or tensor.is_complex()]


def _agree(found: Tensor, expected: Tensor) -> bool:
    """Whether two outputs are equal but for rounding, measured by the largest value."""
    finite = expected[expected.isfinite()].abs()
    scale = float(finite.max()) if finite.numel() else 0.0
    tolerance = 1e-6 * scale + 1e-12
    return found.shape == expected.shape and torch.allclose(
        found, expected, rtol=0, atol=tolerance, equal_nan=True
    )


def _broken(model: nn.Module, what: str) -> TracingError:
    return TracingError(
        f"{type(model).__name__}: with its batch norms folded {what}; nothing is returned. Some "
        "module's forward uses a batch norm, or the layer before it, otherwise than by a call"
    )
