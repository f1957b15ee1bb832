"""What a graph freezes: the numbers and places that a step takes from Python, and their copies."""

import pickle
import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from operator import is_
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from constrained_cnn.training._executor import Parts
from constrained_cnn.training._optimizers import is_on


@dataclass(frozen=True)
class _Place:
    """Where something is. Holding it keeps the address from being given to something else."""

    address: int
    held: Any = field(compare=False, repr=False)


class Watched:
    """What is looked at before every step: the mode of each module, and which its weights are.

    All the rest would take too long, and is looked at once an epoch.
    """

    def __init__(self, model: nn.Module) -> None:
        parts = list(model.modules())
        self._values = [vars(part) for part in parts]
        self._modes = [part.training for part in parts]
        places = [(part._parameters, name) for part in parts for name in part._parameters]
        self._holders = [holder for holder, _ in places]
        self._names = [name for _, name in places]
        self._weights = [holder[name] for holder, name in places]

    def same(self) -> bool:
        """Whether all is as it was when this object was made."""
        if [values["training"] for values in self._values] != self._modes:
            return False
        now = map(dict.get, self._holders, self._names)
        return all(map(is_, now, self._weights))


PLAIN = (bool, int, float, complex, str, bytes, type, type(None), torch.dtype, torch.device)
MODULE_OWN = frozenset(vars(nn.Module())) - {"training"}
MOST_ITEMS = 1000  # of a longer container, such as a vocabulary, only the length is looked at
OPTIMIZER_OWN = ("state", "param_groups", "defaults")


def inventory(parts: Parts, device: torch.device) -> dict[str, Any]:
    """Return by name what a step takes from Python: numbers, and the places of tensors."""
    return {name: _frozen(value, device) for name, value in _reachable(parts).items()}


def _frozen(value: Any, device: torch.device) -> Any:
    if isinstance(value, PLAIN):
        return value
    if not isinstance(value, Tensor) or value.layout != torch.strided:
        return _Place(id(value), value)
    if value.numel() == 1 and not is_on(value, device):
        return value.item()  # on the host it is a number like any other, which freezes
    return _Place(value.data_ptr(), value.detach())


def change_between(before: dict[str, Any], after: dict[str, Any]) -> str | None:
    """Return the first difference in words; None if there is none."""
    for name, old in before.items():
        if name not in after:
            return f"{name} has gone"
        new = after[name]
        if old is new or old == new:
            continue
        if isinstance(new, _Place):
            return f"{name} has been replaced"
        return f"{name} went from {old!r} to {new!r}"
    return next((f"{name} has come" for name in after if name not in before), None)


def _reachable(parts: Parts) -> dict[str, Any]:
    """Return what a step can read or change and that is there after it, down to plain values.

    What objects other than modules, tensors and containers hold is not looked at.
    """
    optimizer = parts.optimizer
    moved = {id(part) for group in optimizer.param_groups for part in group["params"]}
    found: dict[str, Any] = {}
    seen: set[int] = set()

    def look(name: str, value: Any) -> None:
        if isinstance(value, Tensor):
            # With a grad_fn it is left over from a forward pass, and made anew in the next.
            if value.grad_fn is None:
                found[name] = value
        elif isinstance(value, nn.Module | dict | list | tuple | set):
            if id(value) not in seen or isinstance(value, tuple):
                seen.add(id(value))
                look_into(name, value)
        else:
            found[name] = value

    def look_into(name: str, value: Any) -> None:
        if isinstance(value, nn.Module):
            look_into_module(name, value)
            return
        found[f"len({name})"] = len(value)
        if len(value) <= MOST_ITEMS:
            for key, item in value.items() if isinstance(value, dict) else enumerate(value):
                look(f"{name}[{key!r}]", item)

    def look_into_module(name: str, module: nn.Module) -> None:
        found[name] = type(module)
        for key, value in vars(module).items():
            if key not in MODULE_OWN:
                look(f"{name}.{key}", value)
        for key, buffer in module._buffers.items():
            found[f"{name}.{key}"] = buffer
        for key, weight in module._parameters.items():
            found[f"{name}.{key}"] = weight
            if weight is not None:
                found[f"{name}.{key}.requires_grad"] = weight.requires_grad
                if id(weight) not in moved:
                    # The optimizer does not reset this gradient: it adds up from step to step.
                    found[f"{name}.{key}.grad"] = weight.grad
        for key, child in module._modules.items():
            look(f"{name}.{key}", child)

    look("model", parts.model)
    look("loss", parts.loss)
    if parts.average is not None:
        look("average", parts.average.module)
        found["average.kept"] = parts.average.state_dict()["kept"]
    for key, value in vars(optimizer).items():
        if key not in OPTIMIZER_OWN:
            look(f"optimizer.{key}", value)
    for number, group in enumerate(optimizer.param_groups):
        look(f"optimizer.param_groups[{number}]", group)
        for place, part in enumerate(group["params"]):
            if part in optimizer.state:
                name = f"the optimizer's state of parameter {place} in group {number}"
                look(name, optimizer.state[part])
    return found


def _generators(parts: Parts, device: torch.device) -> list[Any]:
    """Return what a step could draw random numbers from, the modules of Python and NumPy too."""
    kinds = (torch.Generator, random.Random, np.random.Generator, np.random.RandomState)
    own = [value for value in _reachable(parts).values() if isinstance(value, kinds)]
    generators = [random, np.random, torch.default_generator, *own]
    if device.type == "cuda":
        number = torch.cuda.current_device() if device.index is None else device.index
        generators.append(torch.cuda.default_generators[number])
    return generators


def _where(generator: Any) -> Any:
    """Return the state of a generator."""
    if isinstance(generator, np.random.Generator):
        return generator.bit_generator.state
    return generator.getstate() if hasattr(generator, "getstate") else generator.get_state()


def _put(generator: Any, state: Any) -> None:
    if isinstance(generator, np.random.Generator):
        generator.bit_generator.state = state
    elif hasattr(generator, "setstate"):
        generator.setstate(state)
    else:
        generator.set_state(state)


def drawn_on_host(parts: Parts, device: torch.device) -> list[bytes]:
    """Return the states of the generators whose numbers a graph would freeze."""
    return [
        pickle.dumps(state.tolist() if isinstance(state, Tensor) else state)
        for generator in _generators(parts, device)
        if not isinstance(generator, torch.Generator) or generator.device.type != device.type
        for state in (_where(generator),)
    ]


class Kept:
    """What a rehearsal and a recording may move, to be put back bit by bit and in place."""

    def __init__(self, parts: Parts, device: torch.device, own: Iterable[Tensor]) -> None:
        reachable = list(_reachable(parts).values())
        tensors = [value for value in (*reachable, *own) if isinstance(value, Tensor)]
        tensors = [value for value in tensors if value.layout == torch.strided]
        self._aliases = [(value, value.detach()) for value in tensors]
        # Whole storages, as tensors may overlap.
        storages = {value.data_ptr(): value for value in (t.untyped_storage() for t in tensors)}
        whole = [
            torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)
            for storage in storages.values()
        ]
        self._contents = [(part, part.clone()) for part in whole]
        self._random = [(one, _where(one)) for one in _generators(parts, device)]
        self._containers = [(one, one.copy()) for one in _containers(parts)]
        weights = [weight for weight in tensors if isinstance(weight, nn.Parameter)]
        self._gradients = [(weight, weight.grad) for weight in weights]

    def put_back(self, *, structure: bool) -> None:
        """Put back gradients, the contents of tensors, and random states.

        Args:
            structure: Whether to put back as well which objects there are.
        """
        if structure:
            for held, copy in self._containers:
                held.clear()
                held.extend(copy) if isinstance(held, list) else held.update(copy)
            for tensor, alias in self._aliases:
                if tensor.data_ptr() != alias.data_ptr():
                    tensor.data = alias
        for weight, gradient in self._gradients:
            weight.grad = gradient
        for content, copy in self._contents:
            content.copy_(copy)
        for generator, state in self._random:
            _put(generator, state)


def _containers(parts: Parts) -> Iterator[Any]:
    """Yield the dictionaries, lists and sets in which a step could put something."""
    for root in (parts.model, parts.loss):
        for module in root.modules() if isinstance(root, nn.Module) else ():
            values = vars(module)
            yield from (values, module._parameters, module._buffers)
            for name, value in values.items():
                if name not in MODULE_OWN and isinstance(value, dict | list | set):
                    yield value
    optimizer = parts.optimizer
    yield from (vars(optimizer), optimizer.state, *optimizer.state.values())
    yield from optimizer.param_groups
