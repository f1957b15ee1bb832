"""What a network may change around itself when it runs, and must not."""

import random
import sys
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch._C import _len_torch_function_stack
from torch.distributions import Distribution
from torch.overrides import _pop_mode, _push_mode
from torch.utils import _device

from constrained_cnn.tracing._meta_copy import MetaCopy


@contextmanager
def undisturbed() -> Iterator[None]:
    """Keep the state of the process as it was, whatever runs meanwhile.

    Kept are the random numbers of torch on the CPU, of numpy and of Python, the default type and
    device, and whether gradients are on. Meanwhile the default device is the CPU, inference mode
    and autocast are off, distributions do not look at their arguments, and function modes that
    were entered before see nothing.

    Examples:
        >>> with undisturbed():
        ...     torch.set_default_dtype(torch.float64)
        >>> torch.get_default_dtype()
        torch.float32
    """
    of_numpy = np.random.get_state()  # noqa: NPY002 - the global one, which a forward draws from
    of_python = random.getstate()
    dtype, gradients = torch.get_default_dtype(), torch.is_grad_enabled()
    validates = Distribution._validate_args
    Distribution.set_default_validate_args(False)
    try:
        with (
            torch.random.fork_rng([]),
            torch.inference_mode(False),
            torch.autocast("cpu", enabled=False),
            torch.autocast("cuda", enabled=False),
            torch.set_grad_enabled(gradients),
            _no_default_device(),
        ):
            yield
    finally:
        np.random.set_state(of_numpy)  # noqa: NPY002
        random.setstate(of_python)
        torch.set_default_dtype(dtype)
        Distribution.set_default_validate_args(validates)


class MovableState:
    """What a forward may leave behind: random states, attributes of modules, globals of its files.

    Args:
        copy: The network; what is compared is what there was when this was made.
    """

    def __init__(self, copy: MetaCopy) -> None:
        self._modules = copy.own_modules
        self._random = _random_states()
        self._plain = self._read()

    @property
    def drew(self) -> bool:
        """Whether a random state moved."""
        return _random_states() != self._random

    @property
    def moved(self) -> bool:
        """Whether anything moved."""
        return self.drew or self._read() != self._plain

    def reseed(self, seed: int) -> None:
        """Put other random states."""
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002 - the global one, which a forward draws from
        torch.manual_seed(seed)
        self._random = _random_states()

    def _read(self) -> list[Any]:
        files = {type(module).__module__ for module in self._modules}
        spaces = [vars(sys.modules[name]) for name in sorted(files) if name in sys.modules]
        return [_plain(space) for space in (*spaces, *map(vars, self._modules))]


def _random_states() -> list[Any]:
    return [*states_of_others().values(), torch.get_rng_state().numpy().tobytes()]


def _plain(value: Any, depth: int = 3) -> Any:
    """Return something that is equal as long as a value holds the same."""
    if value is None or isinstance(value, bool | int | float | str | bytes):
        return value
    if depth and type(value) in (list, tuple, set, frozenset, deque):
        return [_plain(item, depth - 1) for item in value]
    if depth and isinstance(value, dict):
        return [(key, _plain(item, depth - 1)) for key, item in value.items()]
    return id(value)


def states_of_others() -> dict[str, object]:
    """Return where random numbers of numpy and Python stand, to see whether some are drawn."""
    of_numpy = np.random.get_state(legacy=False)["state"]  # noqa: NPY002
    return {
        "numpy.random": (of_numpy["key"].tobytes(), of_numpy["pos"]),
        "random": random.getstate(),
    }


@contextmanager
def _no_default_device() -> Iterator[None]:
    """Start without a default device, and put back whatever there was.

    A default device is a function mode among others, a global one that has to lie at the bottom of
    them; to change it while others are entered breaks their order, so all are put aside.
    """
    default = torch._GLOBAL_DEVICE_CONTEXT
    modes, kept = _all_modes(), dict(vars(default))  # to torch 2.6 None is not the same as nothing
    current = _device.CURRENT_DEVICE
    vars(default).clear()
    _device.CURRENT_DEVICE = None
    try:
        yield
    finally:
        _all_modes()
        for mode in reversed(modes):
            _push_mode(mode)
        vars(default).clear()
        vars(default).update(kept)
        _device.CURRENT_DEVICE = current


def _all_modes() -> list[torch.overrides.TorchFunctionMode]:
    """Take all function modes away, the last to be entered first."""
    return [_pop_mode() for _ in range(_len_torch_function_stack())]
