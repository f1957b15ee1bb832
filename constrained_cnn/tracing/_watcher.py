"""See every torch operation on its way, and run it without content."""

import functools
import re
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import (
    register_module_forward_hook,
    register_module_forward_pre_hook,
)
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from constrained_cnn.tracing._kernels import META
from constrained_cnn.tracing.operations import Call, spread, tensors

CONVOLUTIONS = frozenset(f"{kind}{n}d" for kind in ("conv", "conv_transpose") for n in (1, 2, 3))


class Watcher(TorchFunctionMode):
    """Sees every torch operation on its way, and which module it runs in."""

    def __init__(self, model: str, network: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.is_batched = True  # if not, samples come without a batch axis
        self._paths: dict[int, list[str]] = {}  # a shared module has several
        for path, part in network.named_modules(remove_duplicate=False):
            self._paths.setdefault(id(part), []).append(path)
        self._stack: list[str] = []
        self.ran: set[str] = set()  # paths of the modules that were called
        self._failed: tuple[BaseException, str] | None = None

    @property
    def path(self) -> str:
        """Path of the module that runs now."""
        return self._stack[-1] if self._stack else ""

    @contextmanager
    def inside(self, path: str) -> Iterator[None]:
        """Take what runs meanwhile for the module at ``path``."""
        self._stack.append(path)
        try:
            yield
        finally:
            self._stack.pop()

    def where(self, error: BaseException) -> str:
        """Return the path of the innermost module that an error came from, if it is known."""
        known = self._failed is not None and self._failed[0] is error
        return self._failed[1] if known and self._failed else self.path

    def leave(self, paths: Sequence[str], outputs: Any) -> None:
        """Note that the module of these paths ended, and what it gave; None if it raised."""

    def scripted(self, func: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Run a function that torch has compiled, whose operations do not pass by Python."""
        return func(*args, **kwargs)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Watch all that runs meanwhile in this thread."""
        thread = threading.get_ident()  # hooks on all modules are called by every thread

        def begins(module: nn.Module, _: Any) -> None:
            if threading.get_ident() == thread:
                paths = self._paths.get(id(module), [self.path])
                self._stack.append(paths[0])
                self.ran.update(paths)

        def ends(module: nn.Module, _: Any, outputs: Any) -> None:
            if threading.get_ident() == thread:
                error = sys.exc_info()[1]  # hooks are called where a module raised too
                if error is not None and (self._failed is None or self._failed[0] is not error):
                    self._failed = error, self.path
                self.leave(self._paths.get(id(module), [self._stack[-1]]), outputs)
                self._stack.pop()

        handles = [
            register_module_forward_pre_hook(begins),
            register_module_forward_hook(ends, always_call=True),
        ]
        call = torch.jit.ScriptFunction.__call__

        def script(function: Any, *args: Any, **kwargs: Any) -> Any:
            if threading.get_ident() != thread:
                return call(function, *args, **kwargs)
            with torch._C.DisableTorchFunction():
                return self.scripted(_Scripted(function, call), args, kwargs)

        torch.jit.ScriptFunction.__call__ = script  # type: ignore[method-assign, assignment]
        try:
            with self:
                yield
        finally:
            torch.jit.ScriptFunction.__call__ = call  # type: ignore[method-assign]
            for handle in handles:
                handle.remove()


class _Scripted:
    """A function that torch has compiled, as an operation with a name.

    Args:
        function: The function.
        call: Calls one.
    """

    def __init__(self, function: Any, call: Callable[..., Any]) -> None:
        self._function, self._call = function, call
        self.__name__ = f"torch.jit.script::{function.name}"

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._call(self._function, *args, **kwargs)


class Decomposition(TorchDispatchMode):
    """Sees the operations of ATen that an operation is made of.

    Attributes:
        calls: What ran, in order, and the calls.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: list[tuple[Callable[..., Any], Call]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        outcome = func(*args, **kwargs)
        made = tuple(tensors(outcome))
        if made and func is not torch.ops.aten.detach.default:  # of what autograd keeps
            self.calls.append((func, Call(operation_name(func), args, kwargs, made, {})))
        return outcome


def on_meta(sources: Sequence[Tensor], args: Any, kwargs: Any) -> tuple[Any, Any]:
    """Return the arguments on the meta device, if some of them are and others are not.

    A network may make tensors in its forward without saying where; real ones have numbers in them
    that it may read, so they become empty only where they meet another that is.
    """
    here = {tensor.device for tensor in sources}
    if META not in here or len(here) == 1:
        return args, kwargs
    empty: tuple[Any, Any] = tree_map(
        lambda item: item.to(META) if isinstance(item, Tensor) else item, (args, kwargs)
    )
    return empty


def misfit_of(call: Call, is_batched: bool) -> str:
    """Return what does not fit, in plainer words than torch's; empty if all does.

    A transposed convolution without content takes any number of channels. Torch takes a sample
    without a batch too, but an image without channels is more often forgotten than meant.
    """
    if not call.op.startswith(("conv", "linear")):
        return ""
    x, weight = call.get(0, "input"), call.get(1, "weight")
    if not isinstance(x, Tensor) or not isinstance(weight, Tensor):
        return ""
    if call.op == "linear" and x.shape[-1] != weight.shape[-1]:
        return f"linear expects {weight.shape[-1]} features, and is given {x.shape[-1]}"
    if call.op not in CONVOLUTIONS:
        return ""
    spatial = weight.ndim - 2
    if x.ndim != spatial + 2 and (is_batched or x.ndim != spatial + 1):
        return (
            f"{call.op} expects samples of {spatial + 1} axes, channels first, and is given "
            f"{tuple(x.shape[1:])}; a shape has no batch: (1, 28, 28) for images of 28 x 28"
        )
    groups = call.get(6, "groups", 1)
    expected = weight.shape[0] if "transpose" in call.op else weight.shape[1] * groups
    channels = x.shape[-spatial - 1]
    if channels != expected:
        return f"{call.op} expects {expected} channels, and is given {channels}"
    return "" if "transpose" in call.op else _misfit_of_window(call, x, weight)


def _misfit_of_window(call: Call, x: Tensor, weight: Tensor) -> str:
    """Return whether the image is too small for a window; older releases of torch do not look."""
    padding = call.get(4, "padding", 0)
    if padding == "same":
        return ""
    pads = spread(0 if padding == "valid" else padding, weight.ndim - 2)
    dilations = spread(call.get(5, "dilation", 1), weight.ndim - 2)
    windows = [d * (k - 1) + 1 for k, d in zip(weight.shape[2:], dilations, strict=True)]
    room = [size + 2 * pad for size, pad in zip(x.shape[2 - weight.ndim :], pads, strict=True)]
    if all(window <= size for window, size in zip(windows, room, strict=True)):
        return ""
    window, size = (" x ".join(map(str, numbers)) for numbers in (windows, room))
    return f"the window of {call.op}, {window}, is larger than what it slides over, {size}"


@functools.lru_cache(maxsize=4096)
def operation_name(func: Callable[..., Any]) -> str:
    """Return the plain name of an operation.

    Examples:
        >>> operation_name(Tensor.add_), operation_name(Tensor.__radd__), operation_name(torch.add)
        ('add', 'add', 'add')
    """
    name = getattr(func, "__name__", str(func))
    if isinstance(func, torch._ops.OpOverload | torch._ops.OpOverloadPacket):
        library, _, name = str(getattr(func, "overloadpacket", func)).partition(".")
        return name.removesuffix("_") if library == "aten" else f"{library}::{name}"
    if name in ("__get__", "__set__"):  # a property, such as x.T
        property_name = getattr(func, "__self__", func).__name__
        return property_name if name == "__get__" else f"set {property_name}"
    reflected = re.fullmatch(r"__[ri]?(\w+?)__", name)
    if reflected:
        whole = name.strip("_")
        name = whole if whole in ("invert", "index") else reflected[1]
        if whole in ("rdiv", "rtruediv"):  # of a number by a tensor
            return "reciprocal"
        return "sub" if whole == "rsub" else name
    return name.removesuffix("_") if name != "_" else name


def is_in_place(func: Callable[..., Any]) -> bool:
    """Return whether the name of a function says that it writes over its first argument."""
    if isinstance(func, torch._ops.OpOverload):
        return bool(func._schema.is_mutable)
    name = getattr(func, "__name__", "")
    return (name.endswith("_") and not name.endswith("__")) or name.startswith("__i")
