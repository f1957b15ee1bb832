"""Merge batch norms into the layers that feed them, in a copy of the network."""

import copy
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.utils import parametrize

from constrained_cnn.budget._folding import foldable, is_stored_norm
from constrained_cnn.errors import TracingError
from constrained_cnn.graph import Graph
from constrained_cnn.tracing import trace


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

    Args:
        model: The network; it stays as it is.
        input_shape: Shape of one sample, to see what feeds what.

    Raises:
        TracingError: If the network cannot be traced or copied.

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
    graph = trace(model, input_shape)
    try:
        folded = copy.deepcopy(model).eval()
    except Exception as error:
        raise TracingError(f"{type(model).__name__} cannot be copied: {error}") from error
    with torch.no_grad():
        _settle(folded)
        merged = _merge_all(folded, graph)
        for path, module in list(folded.named_modules(remove_duplicate=False)):
            left = path and isinstance(module, _BatchNorm) and path not in merged
            if left and _runs_as_stored(graph, module, folded):
                _put(folded, path, _scale_shift(module))
    return folded


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


def _merge_all(model: nn.Module, graph: Graph) -> set[str]:
    """Merge what folds; return the paths of the norms that are gone."""
    paths = dict(model.named_modules(remove_duplicate=False))
    gone: set[str] = set()
    for norm, feeder in foldable(graph).items():
        norm_path, feeder_path = graph.layers[norm].path, graph.layers[feeder].path
        norm_module, feeder_module = paths.get(norm_path), paths.get(feeder_path)
        if not isinstance(norm_module, _BatchNorm):
            continue
        if not isinstance(feeder_module, _ConvNd | nn.Linear):
            continue  # a function in the forward of another module: nowhere to put a bias
        if norm_path not in gone:
            _merge(feeder_module, norm_module)
            for path, module in paths.items():
                if module is norm_module:
                    _put(model, path, nn.Identity())
                    gone.add(path)
    return gone


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


def _runs_as_stored(graph: Graph, norm: _BatchNorm, model: nn.Module) -> bool:
    """Whether a norm ran with stored statistics, and ran at all."""
    names = {path for path, module in model.named_modules(remove_duplicate=False) if module is norm}
    return any(is_stored_norm(layer) and layer.path in names for layer in graph.layers)


def _scale_shift(norm: _BatchNorm) -> ScaleShift:
    scale, shift = _scale_and_shift(norm)
    assert norm.running_mean is not None
    module = ScaleShift(norm.num_features).to(norm.running_mean)
    module.weight.copy_(scale)
    module.bias.copy_(shift)
    return module.eval()


def _put(model: nn.Module, path: str, module: nn.Module) -> None:
    """Set a module at a path."""
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, module)
