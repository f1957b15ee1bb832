"""Modules that do with their weights what torch's classes do, and nothing around it."""

from collections import Counter

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils import parametrize

# What a class must have from torch for its weights to mean what torch says they do.
_MEANING = ("forward", "_conv_forward", "_call_impl", "__call__", "__getattr__", "weight", "bias")


def plain_modules(network: nn.Module) -> dict[str, str]:
    """Return the convolutions, linear layers and batch norms that may be rewritten, by path.

    Such a module has torch's own ``forward`` and no hooks; a convolution or linear layer shares its
    tensors with no other module. Of a batch norm the signs of its scale are told: ``"+"``,
    ``"+-"``, or ``"0"`` if it is 0 in some channel. A scale without values counts as it begins,
    above 0; one that a parametrisation makes may be 0.

    Examples:
        >>> plain_modules(nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.BatchNorm2d(2)))
        {'0': '', '2': '+'}
    """
    owners = Counter(id(part) for module in network.modules() for part in _tensors_of(module))
    found = {}
    for path, module in network.named_modules(remove_duplicate=False):
        if not path or not _means_what_torch_says(module):
            continue
        if isinstance(module, _BatchNorm):
            found[path] = _sign_of(module)
        elif isinstance(module, _ConvNd | nn.Linear):
            own = all(owners[id(part)] == 1 for part in _tensors_of(module))
            if own and {"weight", "bias"} <= {*module._parameters, *_parametrised(module)}:
                found[path] = ""
    return found


def _means_what_torch_says(module: nn.Module) -> bool:
    own = type(module).__bases__[0] if parametrize.is_parametrized(module) else type(module)
    torchs = [one for one in own.__mro__ if one.__module__.startswith("torch.nn.modules.")]
    same = bool(torchs) and all(
        getattr(own, name, None) is getattr(torchs[0], name, None) for name in _MEANING
    )
    hooked = module._forward_hooks or module._forward_pre_hooks
    return same and not hooked and not vars(module).keys() & set(_MEANING)


def _parametrised(module: nn.Module) -> list[str]:
    return list(module.parametrizations) if parametrize.is_parametrized(module) else []  # type: ignore[arg-type]


def _tensors_of(module: nn.Module) -> list[Tensor]:
    held = (*module._parameters.values(), *module._buffers.values())
    return [tensor for tensor in held if tensor is not None]


def _sign_of(norm: _BatchNorm) -> str:
    if "weight" in _parametrised(norm):
        return "0"
    weight = norm._parameters.get("weight")
    if weight is None or weight.is_meta:
        return "+"
    scale = weight.detach()
    if bool((scale > _TINY).all()):
        return "+"
    return "+-" if bool((scale.abs() > _TINY).all()) else "0"


# A shift that is divided by a smaller scale may overflow.
_TINY = 1e-20
