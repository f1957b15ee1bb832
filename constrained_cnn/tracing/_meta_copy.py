"""A copy of a network on the meta device: tensors without content, and what was there to copy."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize

from constrained_cnn.errors import TracingError
from constrained_cnn.graph import Weight
from constrained_cnn.tracing._copy import copied
from constrained_cnn.tracing._kernels import META


@dataclass(frozen=True)
class MetaCopy:
    """A copy of a network whose tensors have no content.

    Attributes:
        model: Name of the model's class.
        network: The copy.
        weights: Every parameter and buffer.
        numbers: The number of each, by the ``id`` of its copy.
        hidden: Tensors that take a gradient and are no parameters: by ``id`` what each is.
        tensors: The copies of its weights, and the hidden tensors.
    """

    model: str
    network: nn.Module
    weights: tuple[Weight, ...]
    numbers: Mapping[int, int]
    hidden: Mapping[int, str]
    tensors: Sequence[Tensor]

    @cached_property
    def own_modules(self) -> list[nn.Module]:
        """The modules whose classes are not torch's; only they may keep something between runs."""
        return [
            module
            for module in self.network.modules()
            if not type(module).__module__.startswith("torch.nn.")
        ]

    @cached_property
    def dtype(self) -> torch.dtype:
        """The type of its parameters, or the default type if they have several."""
        kinds = {part.dtype for part in self.network.parameters() if part.is_floating_point()}
        return kinds.pop() if len(kinds) == 1 else torch.get_default_dtype()

    @property
    def declared(self) -> dict[str, str]:
        """The class of each module without modules in it, by path."""
        return {
            path: _class_of(module)
            for path, module in self.network.named_modules(remove_duplicate=False)
            if path and not module._modules
        }

    @property
    def parametrized(self) -> dict[str, int]:
        """The elements of each tensor that a parametrization makes, by its path."""
        found: dict[str, int] = {}
        for path, module in self.network.named_modules():
            if parametrize.is_parametrized(module):
                for name in module.parametrizations:
                    tensor = getattr(module, name)
                    found[f"{path}.{name}" if path else name] = tensor.numel()
        return found


def meta_copy(model: nn.Module) -> MetaCopy:
    """Return a copy of a network whose tensors have no content.

    Raises:
        TracingError: If it cannot be copied, or a parameter has no shape yet.
    """
    named = _named(model)
    for name, part in named:
        if is_lazy(part):
            raise TracingError(
                f"{type(model).__name__}: {name!r} has no shape before the first call; call the "
                "model once on a sample, then trace it"
            )
    hidden: dict[int, str] = {}
    made: list[Tensor] = []  # an id belongs to a tensor only while it lives
    buffers = {id(part): name for name, part in named if not isinstance(part, nn.Parameter)}

    def stand_in(tensor: Tensor) -> Tensor:
        if _is_switch(tensor):
            return tensor.detach().clone()
        empty = torch.empty_like(tensor, device=META)
        if tensor.requires_grad and tensor.is_leaf and not isinstance(tensor, nn.Parameter):
            name = buffers.get(id(tensor))
            hidden[id(empty)] = f"buffer {name!r}" if name else "a tensor"
            made.append(empty)
        return empty

    network = copied(model, stand_in)
    twins = _named(network)
    if [(name, t.shape) for name, t in named] != [(name, t.shape) for name, t in twins]:
        raise TracingError(
            f"{type(model).__name__}: its copy has other weights, and it is a copy that is looked "
            "at; let __deepcopy__ of its modules return copies"
        )
    names: dict[int, list[str]] = {}
    pairs: dict[int, tuple[Tensor, Tensor]] = {}
    for (name, part), (_, empty) in zip(named, twins, strict=True):
        names.setdefault(id(part), []).append(name)
        pairs[id(part)] = part, empty
    weights = tuple(_weight(names[key], part) for key, (part, _) in pairs.items())
    numbers = {id(empty): number for number, (_, empty) in enumerate(pairs.values())}
    made += [empty for _, empty in pairs.values()]
    return MetaCopy(type(model).__name__, network, weights, numbers, hidden, made)


def _is_switch(tensor: Tensor) -> bool:
    """Whether a tensor keeps its number: a flag, such as whether an observer is on."""
    return tensor.numel() == 1 and not (
        tensor.is_floating_point() or tensor.is_complex() or tensor.is_meta
    )


def _named(model: nn.Module) -> list[tuple[str, Tensor]]:
    """Return every parameter and buffer under each of its names."""
    modules = list(model.named_modules(remove_duplicate=False))
    return [
        (f"{path}.{name}" if path else name, tensor)
        for store in ("_parameters", "_buffers")
        for path, module in modules
        for name, tensor in vars(module)[store].items()
        if tensor is not None
    ]


def _weight(names: Sequence[str], part: Tensor) -> Weight:
    ahead, found, behind = names[0].partition("parametrizations.")
    is_parameter = isinstance(part, nn.Parameter)
    return Weight(
        tuple(names),
        tuple(part.shape),
        str(part.dtype).removeprefix("torch."),
        is_parameter and part.requires_grad,
        not is_parameter,
        ahead + behind.split(".")[0] if found else "",
    )


def _class_of(module: nn.Module) -> str:
    """Return the name of a module's class, and of the class of torch's that it derives from."""
    own = type(module)
    base = next((one for one in own.__mro__ if one.__module__.startswith("torch.nn.")), own)
    derived = base not in (own, nn.Module)
    return f"{own.__name__}, a {base.__name__}" if derived else own.__name__
