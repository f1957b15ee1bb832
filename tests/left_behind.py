"""What outlives a test or an example: the registries of the package, and settings of the process.

Both are put back after each test and after the examples of each page. To register is what some
examples are there to show, so it is not held against them; a setting that has changed is an error.
"""

import contextlib
import functools
import importlib
import os
import pkgutil
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import matplotlib
import numpy as np
import torch
from torch.nn.modules import module as hooks
from torch.utils import _device

import constrained_cnn

Container = dict[Any, Any] | list[Any] | set[Any]


class Setting(NamedTuple):
    """One thing that all of a process shares: what it is called, how it is read and written."""

    name: str
    read: Callable[[], Any]
    write: Callable[[Any], object]


@functools.cache
def containers() -> list[Container]:
    """Return every dict, list and set that a module of the package holds: its registries, and more.

    All modules are imported for that: of one that a test is the first to import, nobody knows what
    it held before.
    """
    found: dict[int, Container] = {}
    for each in pkgutil.walk_packages(constrained_cnn.__path__, "constrained_cnn."):
        if not each.name.endswith("__main__"):
            for name, value in vars(importlib.import_module(each.name)).items():
                if isinstance(value, dict | list | set) and not name.startswith("__"):
                    found[id(value)] = value
    return list(found.values())


def _fill(container: Container, content: Container) -> None:
    if container == content:
        return
    container.clear()
    if isinstance(container, list):
        container.extend(content)
    else:
        container.update(content)


def _environment() -> dict[str, str]:
    # Pytest changes its own all the time; scikit-learn and torch's compiler set some when they are
    # first imported.
    own = ("PYTEST_", "KMP_", "TORCHINDUCTOR_", "TRITON_")
    return {name: value for name, value in os.environ.items() if not name.startswith(own)}


def _set_environment(before: dict[str, str]) -> None:
    for name in _environment().keys() - before.keys():
        del os.environ[name]
    os.environ.update(before)


def _handlers() -> dict[int, Any]:
    named = ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK", "SIGUSR1", "SIGUSR2")
    numbers = [getattr(signal, name) for name in named if hasattr(signal, name)]
    return {number: signal.getsignal(number) for number in numbers}


def _set_handlers(before: dict[int, Any]) -> None:
    for number, handler in before.items():
        signal.signal(number, handler)


HOOKS = (
    hooks._global_forward_pre_hooks,
    hooks._global_forward_hooks,
    hooks._global_backward_pre_hooks,
    hooks._global_backward_hooks,
    hooks._global_module_registration_hooks,
    hooks._global_buffer_registration_hooks,
    hooks._global_parameter_registration_hooks,
)


def _set_hooks(before: list[dict[int, Any]]) -> None:
    for hooks_of_kind, then in zip(HOOKS, before, strict=True):
        _fill(hooks_of_kind, then)


def _cudnn() -> dict[str, bool]:
    names = ("enabled", "benchmark", "deterministic")
    return {name: getattr(torch.backends.cudnn, name) for name in names}


def _set_cudnn(before: dict[str, bool]) -> None:
    for name, value in before.items():
        setattr(torch.backends.cudnn, name, value)


def _print_options() -> dict[str, Any]:
    return dict(vars(torch._tensor_str.PRINT_OPTS))


def _look() -> dict[str, Any]:
    """Return matplotlib's settings, but for the backend, which it chooses when it first draws."""
    # Of dict itself: to ask matplotlib for its backend is to have it choose one.
    return {name: value for name, value in dict.items(matplotlib.rcParams) if name != "backend"}


def _figures() -> list[int]:
    drawn = sys.modules.get("matplotlib.pyplot")
    return drawn.get_fignums() if drawn else []


def _close_figures(before: list[int]) -> None:
    for number in set(_figures()) - set(before):
        sys.modules["matplotlib.pyplot"].close(number)


def _path() -> list[str]:
    """Return where modules are looked for, but for a folder that torch adds when it is imported."""
    instantiator = sys.modules.get("torch.distributed.nn.jit.instantiator")
    return [one for one in sys.path if one != getattr(instantiator, _OF_TORCH, None)]


_OF_TORCH = "INSTANTIATED_TEMPLATE_DIR_PATH"
SETTINGS = (
    Setting("the current folder", os.getcwd, os.chdir),
    Setting("os.environ", _environment, _set_environment),
    Setting("sys.path", _path, functools.partial(_fill, sys.path)),
    Setting("sys.argv", lambda: list(sys.argv), functools.partial(_fill, sys.argv)),
    Setting("sys.excepthook", lambda: sys.excepthook, lambda it: setattr(sys, "excepthook", it)),
    Setting("the recursion limit", sys.getrecursionlimit, sys.setrecursionlimit),
    Setting("the handlers of signals", _handlers, _set_handlers),
    Setting("the time-out of sockets", socket.getdefaulttimeout, socket.setdefaulttimeout),
    Setting("numpy's print options", np.get_printoptions, lambda then: np.set_printoptions(**then)),
    Setting("numpy's handling of errors", np.geterr, lambda then: np.seterr(**then)),
    Setting("matplotlib's settings", _look, matplotlib.rcParams.update),
    Setting("open figures", _figures, _close_figures),
    Setting("torch's threads", torch.get_num_threads, torch.set_num_threads),
    Setting("torch's default dtype", torch.get_default_dtype, torch.set_default_dtype),
    Setting("torch's default device", lambda: _device.CURRENT_DEVICE, torch.set_default_device),
    Setting("torch's gradients", torch.is_grad_enabled, torch.set_grad_enabled),
    Setting(
        "torch's deterministic algorithms",
        lambda: (
            torch.are_deterministic_algorithms_enabled(),
            torch.is_deterministic_algorithms_warn_only_enabled(),
        ),
        lambda then: torch.use_deterministic_algorithms(then[0], warn_only=then[1]),
    ),
    Setting(
        "torch's autocast",
        lambda: torch.is_autocast_enabled("cpu"),
        lambda then: torch.set_autocast_enabled("cpu", then),
    ),
    Setting(
        "torch's detection of anomalies",
        lambda: (torch.is_anomaly_enabled(), torch.is_anomaly_check_nan_enabled()),
        lambda then: torch.autograd.set_detect_anomaly(*then),
    ),
    Setting(
        "torch's precision of matrix products",
        torch.get_float32_matmul_precision,
        torch.set_float32_matmul_precision,
    ),
    Setting("cuDNN's settings", _cudnn, _set_cudnn),
    Setting("torch's print options", _print_options, vars(torch._tensor_str.PRINT_OPTS).update),
    Setting("torch's hooks on all modules", lambda: [dict(kind) for kind in HOOKS], _set_hooks),
)


def _difference(before: Any, after: Any) -> str:
    """Say what has changed, of a mapping only where."""
    if isinstance(before, dict):
        names = sorted(str(name) for name in before.keys() | after.keys())
        differ = [n for n in names if before.get(n, _difference) != after.get(n, _difference)]
        return ", ".join(differ)
    return f"{before!r} before, {after!r} after"


class LeftBehindError(Exception):
    """A test or an example changed a setting and did not put it back."""


@contextlib.contextmanager
def nothing_left_behind() -> Iterator[None]:
    """Put everything back as it was.

    Raises:
        LeftBehindError: If a setting of the process was not as before.
    """
    held = [(container, container.copy()) for container in containers()]
    before = [setting.read() for setting in SETTINGS]
    try:
        yield
    finally:
        for container, then in held:
            _fill(container, then)
        changed = []
        for setting, then in zip(SETTINGS, before, strict=True):
            if setting.read() != then:
                changed.append(f"{setting.name} ({_difference(then, setting.read())})")
                setting.write(then)
    if changed:
        raise LeftBehindError("; ".join(changed))
