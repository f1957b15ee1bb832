"""Merge batch norms into the layers that feed them, in a copy of the network."""

from collections import Counter
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.utils import parametrize

from constrained_cnn.budget._folding import foldable, is_stored_norm
from constrained_cnn.errors import TracingError, reason_of
from constrained_cnn.graph import Graph
from constrained_cnn.tracing import trace
from constrained_cnn.tracing._around import undisturbed
from constrained_cnn.tracing._copy import copied, in_double
from constrained_cnn.tracing.operations import tensors

# What a class must have from torch for its weights to mean what torch says they do.
_MEANING = ("forward", "_conv_forward", "_call_impl", "__call__", "__getattr__", "weight", "bias")

# About a second in double precision.
_CHEAP_MACS = 4 * 10**9


class ScaleShift(nn.Module):
    """What is left of a batch norm in evaluation mode: one scale and one shift for each channel.

    Shapes: ``(N, C, *)`` to the same.

    Args:
        channels: Number of channels.

    Examples:
        >>> ScaleShift(2)(torch.ones(1, 2, 1)).flatten().tolist()
        [1.0, 1.0]
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, input: Tensor) -> Tensor:
        """Return ``input`` scaled and shifted, channel by channel."""
        shape = (1, -1, *([1] * (input.ndim - 2)))
        return input * self.weight.view(shape) + self.bias.view(shape)

    def extra_repr(self) -> str:
        """Return what ``repr`` shows."""
        return str(self.weight.numel())


def fold_bn(model: nn.Module, input_shape: Sequence[int]) -> nn.Module:
    """Return a copy in evaluation mode whose batch norms are merged away; outputs stay the same.

    A batch norm merges into the convolution or linear layer that feeds it directly, if nothing else
    reads what that layer gives. Elsewhere, as after a ReLU, it stays as a scale and a shift for
    each channel: merged forward into a convolution with padding it would be wrong at the border,
    where zeros come after the shift. Parametrised weights become ordinary ones. What comes out is
    in evaluation mode and not for training.

    Only what is known to be a scale and a shift is touched: a norm or a feeding layer whose class
    has a ``forward`` of its own, or that has hooks, stays as it is, and so does a layer that shares
    its weights with another. The result is traced, and where that takes no more than about a second
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
        merging, left = _plan(network, graph)
        for norm, feeder in merging.items():
            _merge(feeder, norm)
            _replace(network, norm, nn.Identity())
        for norm in left:
            _replace(network, norm, _scale_shift(norm))
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


def _plan(
    network: nn.Module, graph: Graph
) -> tuple[dict[_BatchNorm, "_ConvNd | nn.Linear"], list[_BatchNorm]]:
    """Return which norms merge into which layers, and which become a scale and a shift."""
    modules = dict(network.named_modules(remove_duplicate=False))
    at = [modules.get(layer.path) for layer in graph.layers]
    merging = _merging(network, graph, at)
    ran = Counter(at)
    stored = Counter(m for m, layer in zip(at, graph.layers, strict=True) if is_stored_norm(layer))
    left = [
        module
        for module in network.modules()
        if isinstance(module, _BatchNorm)
        and module is not network
        and module not in merging
        and 0 < stored[module] == ran[module]
        and _means_what_torch_says(module)
    ]
    return merging, left


def _merging(
    network: nn.Module, graph: Graph, at: Sequence[nn.Module | None]
) -> dict[_BatchNorm, "_ConvNd | nn.Linear"]:
    """Return the pairs of modules that meet each other, and nothing else, whenever they run."""
    pairs = foldable(graph)
    partner = {**pairs, **{feeder: norm for norm, feeder in pairs.items()}}
    partners: dict[nn.Module | None, set[nn.Module | None]] = {}
    for position, layer in enumerate(graph.layers):
        if layer.kind != "pad":  # a convolution pads its input itself where it reflects it
            other = at[partner[position]] if position in partner else None
            partners.setdefault(at[position], set()).add(other)
    owners = Counter(id(part) for module in network.modules() for part in _tensors_of(module))
    found: dict[_BatchNorm, _ConvNd | nn.Linear] = {}
    for norm, feeder in ((at[norm], at[feeder]) for norm, feeder in pairs.items()):
        # If not, it is a function in the forward of another module: nowhere to put a bias.
        if not isinstance(norm, _BatchNorm) or not isinstance(feeder, _ConvNd | nn.Linear):
            continue
        faithful = partners[norm] == {feeder} and partners[feeder] == {norm}
        own = {"weight", "bias"} <= feeder._parameters.keys()
        own = own and all(owners[id(part)] == 1 for part in _tensors_of(feeder))
        if faithful and own and _means_what_torch_says(norm) and _means_what_torch_says(feeder):
            found[norm] = feeder
    return found


def _tensors_of(module: nn.Module) -> list[Tensor]:
    held = (*module._parameters.values(), *module._buffers.values())
    return [tensor for tensor in held if tensor is not None]


def _means_what_torch_says(module: nn.Module) -> bool:
    """Whether a module does with its weights what torch's class does, and nothing around it."""
    torchs = next(c for c in type(module).__mro__ if c.__module__.startswith("torch.nn.modules."))
    same = all(
        getattr(type(module), name, None) is getattr(torchs, name, None) for name in _MEANING
    )
    hooked = module._forward_hooks or module._forward_pre_hooks
    return same and not hooked and not vars(module).keys() & set(_MEANING)


def _merge(feeder: "_ConvNd | nn.Linear", norm: _BatchNorm) -> None:
    scale, shift = _scale_and_shift(norm)
    weight = feeder.weight
    if isinstance(feeder, _ConvTransposeNd):  # (in, out / groups, *): outputs run on axis 1
        groups = feeder.groups
        parts = weight.view(groups, -1, *weight.shape[1:])
        each = scale.view(groups, 1, -1, *([1] * (weight.ndim - 2)))
        scaled = (parts * each).view(weight.shape)
    else:
        scaled = weight * scale.view(-1, *([1] * (weight.ndim - 1)))
    bias = shift if feeder.bias is None else feeder.bias * scale + shift
    feeder.weight = nn.Parameter(scaled.to(weight.dtype), weight.requires_grad)
    feeder.bias = nn.Parameter(bias.to(weight.dtype), weight.requires_grad)


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


def _scale_shift(norm: _BatchNorm) -> ScaleShift:
    scale, shift = _scale_and_shift(norm)
    assert norm.running_mean is not None
    module = ScaleShift(norm.num_features).to(norm.running_mean)
    module.weight.copy_(scale)
    module.bias.copy_(shift)
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
