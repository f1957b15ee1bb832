"""A copy of a network that shares nothing with it."""

import copy
import copyreg
import functools
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from constrained_cnn.errors import TracingError, reason_of

# What deepcopy hands on as it is.
_ATOMS = (type, FunctionType, BuiltinFunctionType, ModuleType)


def copied(model: nn.Module, stand_in: Callable[[Tensor], Tensor] | None = None) -> nn.Module:
    """Return a copy of a network, no module or weight of which is one of the network's own.

    Args:
        model: The network; it stays as it is.
        stand_in: Returns what takes the place of a tensor in the copy. It is called once for each
            parameter, buffer and tensor that an attribute holds, however deep in lists and dicts:
            what was tied stays tied. In the place of a parameter it becomes a parameter. None for
            the same values; a tensor with a history loses it.

    Raises:
        TracingError: If something cannot be copied, or is handed on as it is, naming it.

    Examples:
        >>> empty = copied(nn.Linear(2, 2), lambda tensor: torch.empty_like(tensor, device="meta"))
        >>> empty.weight.is_meta, isinstance(empty.weight, nn.Parameter)
        (True, True)
    """
    memo: dict[int, Any] = {}
    for tensor in _held(model):
        if stand_in is not None:
            memo[id(tensor)] = _like(tensor, stand_in(tensor))
        elif not tensor.is_leaf:  # deepcopy refuses it
            memo[id(tensor)] = tensor.detach().clone()
    made = dict(memo)
    try:
        network = _twin(model, memo)
    except Exception as error:
        raise TracingError(
            f"{type(model).__name__} cannot be copied, and it is a copy that is looked at"
            f"{_culprit(model, made)}: {reason_of(error)}"
        ) from error
    if [name for name, _ in _modules(network)] != [name for name, _ in _modules(model)]:
        # A __deepcopy__ of its own gives another network, and this one is asked about.
        memo = dict(made)
        network = memo[id(model)] = type(model).__new__(type(model))
        vars(network).update(copy.deepcopy(vars(model), memo))
    own = dict(_parts(model))
    for key, name in _parts(network):
        if key in own:
            raise TracingError(
                f"{type(model).__name__}: its copy has {name} in common with it, which would be "
                "changed; let __deepcopy__ of what holds it return a copy"
            )
    if stand_in is not None:
        _replace_others(network, stand_in, made)
    return network


def _twin(value: Any, memo: dict[int, Any]) -> Any:
    """Return what deepcopy returns, in a third of the time for modules and their dicts."""
    kind: Any = type(value)
    if kind in _VALUES:
        return value
    if id(value) in memo:
        return memo[id(value)]
    if kind in (dict, OrderedDict) and all(type(key) is str for key in value):
        twin = memo[id(value)] = kind()
        twin.update((key, _twin(item, memo)) for key, item in value.items())
        return twin
    if isinstance(value, nn.Module) and _is_plain(kind) and _OWN not in vars(value):
        twin = memo[id(value)] = kind.__new__(kind)
        state: dict[str, Any] = value.__getstate__()
        vars(twin).update((name, _twin(item, memo)) for name, item in state.items())
        return twin
    return copy.deepcopy(value, memo)


@functools.lru_cache(maxsize=4096)
def _is_plain(kind: Any) -> bool:
    """Whether a class of modules says nothing of its own about how it is copied."""
    usual = all(getattr(kind, name) is getattr(nn.Module, name) for name in _HOW)
    sets = kind.__setstate__
    slots = any(vars(base).get("__slots__") for base in kind.__mro__)
    asks = any(hasattr(kind, name) for name in (_OWN, "__getnewargs__", "__getnewargs_ex__"))
    others = slots or asks or kind in copyreg.dispatch_table
    return usual and not others and sets in (nn.Module.__setstate__, _ConvNd.__setstate__)


_OWN = "__deepcopy__"
_HOW = ("__new__", "__reduce__", "__reduce_ex__", "__getstate__")
_VALUES = frozenset({type(None), bool, int, float, str})


def in_double(tensor: Tensor) -> Tensor:
    """Return a tensor's values in double precision on the CPU; zeros where it has none.

    Examples:
        >>> in_double(torch.ones(1)), in_double(torch.ones(1, dtype=torch.int32, device="meta"))
        (tensor([1.], dtype=torch.float64), tensor([0], dtype=torch.int32))
    """
    dtype = tensor.dtype
    if tensor.is_floating_point():
        dtype = torch.float64
    elif tensor.is_complex():
        dtype = torch.complex128
    if tensor.is_meta:
        return torch.zeros(tensor.shape, dtype=dtype, device="cpu")
    return tensor.detach().to("cpu", dtype, copy=True)


def _like(tensor: Tensor, made: Tensor) -> Tensor:
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(made, requires_grad=tensor.requires_grad)
    return made


def _replace_others(
    network: nn.Module, stand_in: Callable[[Tensor], Tensor], made: dict[int, Any]
) -> None:
    """Replace the weights that a ``__deepcopy__`` of a module's own has copied in its own way."""
    placed = {id(tensor): tensor for tensor in made.values()}
    kept = []  # an id belongs to a tensor only while it lives
    for module in network.modules():
        for store in (module._parameters, module._buffers):
            for name, tensor in store.items():
                if tensor is not None and id(tensor) not in placed:
                    kept.append(tensor)
                    placed[id(tensor)] = _like(tensor, stand_in(tensor))
                    placed[id(placed[id(tensor)])] = placed[id(tensor)]
                store[name] = None if tensor is None else placed[id(tensor)]


def _held(value: Any) -> Iterator[Tensor]:
    """Yield every tensor that deepcopy would come to, once."""
    seen: dict[int, Any] = {}  # an id belongs to an object only while it lives
    todo = [value]
    while todo:
        item = todo.pop()
        if type(item) in _VALUES or id(item) in seen or isinstance(item, _ATOMS):
            continue
        seen[id(item)] = item
        if isinstance(item, Tensor):
            yield item
        elif isinstance(item, dict):
            todo += [*item.keys(), *item.values()]
        elif isinstance(item, list | tuple | set | frozenset | deque):
            todo += item
        elif isinstance(item, MethodType):
            todo.append(item.__self__)
        elif isinstance(item, functools.partial):
            todo += [item.func, item.args, item.keywords]
        else:
            todo += getattr(item, "__dict__", {}).values()


def _parts(model: nn.Module) -> list[tuple[int, str]]:
    """Return the id and the name of each module, parameter and buffer."""
    return [
        *((id(part), f"module {name!r}" if name else "itself") for name, part in _modules(model)),
        *((id(part), f"parameter {name!r}") for name, part in model.named_parameters()),
        *((id(part), f"buffer {name!r}") for name, part in model.named_buffers()),
    ]


def _modules(model: nn.Module) -> list[tuple[str, nn.Module]]:
    return list(model.named_modules())


def _culprit(model: nn.Module, made: dict[int, Any]) -> str:
    """Say which attribute cannot be copied, or which module."""
    modules = _modules(model)
    known = {**made, **{id(module): module for _, module in modules}}
    for path, module in reversed(modules):
        for name, value in vars(module).items():
            if name != "_modules" and not _can_be_copied(value, known):
                where = f"{path}.{name}" if path else name
                return f" (it is {where!r}, a {type(value).__name__})"
    for path, module in reversed(modules):
        if path and not _can_be_copied(module, made):
            return f" (it is {path!r}, a {type(module).__name__})"
    return ""


def _can_be_copied(value: Any, memo: dict[int, Any]) -> bool:
    try:
        copy.deepcopy(value, dict(memo))
    except Exception:  # noqa: BLE001 - whatever it is, it is no copy
        return False
    return True
