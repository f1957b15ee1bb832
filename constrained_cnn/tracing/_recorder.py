"""Watch a network run and write down what it does, operation by operation."""

import re
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.modules.module import (
    register_module_forward_hook,
    register_module_forward_pre_hook,
)
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

from constrained_cnn.errors import TracingError
from constrained_cnn.graph import Layer, Read, TensorInfo, TrainingLayer, TrainingRun
from constrained_cnn.tracing._call import Call, Reads, tensors
from constrained_cnn.tracing._rules import (
    OVERWRITERS,
    PRODUCTS,
    REFERENCES,
    SOURCES,
    Operation,
    find,
    is_unit_wise,
)
from constrained_cnn.tracing._settings import settings_of

META = torch.device("meta")
CONVOLUTIONS = frozenset(f"{kind}{n}d" for kind in ("conv", "conv_transpose") for n in (1, 2, 3))


class UndescribedError(TracingError):
    """The network runs, and something in it is not described.

    Attributes:
        what: The operation, where it is, and why.
    """

    def __init__(self, what: str) -> None:
        super().__init__(
            f"{what}, so what its outputs read is not known; use an operation that is described, "
            "or describe it: constrained_cnn.tracing.register_op"
        )
        self.what = what


class Watcher(TorchFunctionMode):
    """Sees every torch operation on its way, and which module it runs in."""

    def __init__(self, model: str, shadow: nn.Module) -> None:
        super().__init__()
        self.model = model
        self._paths: dict[int, list[str]] = {}  # a shared module has several
        for path, part in shadow.named_modules(remove_duplicate=False):
            self._paths.setdefault(id(part), []).append(path)
        self._stack: list[str] = []

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

    def leave(self, paths: Sequence[str], outputs: Any) -> None:
        """Note that the module of these paths ended, and what it gave; None if it raised."""

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Watch all that runs meanwhile in this thread."""
        thread = threading.get_ident()  # hooks on all modules are called by every thread

        def begins(module: nn.Module, _: Any) -> None:
            if threading.get_ident() == thread:
                self._stack.append(self._paths.get(id(module), [self.path])[0])

        def ends(module: nn.Module, _: Any, outputs: Any) -> None:
            if threading.get_ident() == thread:
                self.leave(self._paths.get(id(module), [self._stack[-1]]), outputs)
                self._stack.pop()

        handles = [
            register_module_forward_pre_hook(begins),
            register_module_forward_hook(ends, always_call=True),
        ]
        try:
            with self:
                yield
        finally:
            for handle in handles:
                handle.remove()


class Recorder(Watcher):
    """Writes down the operations that depend on the network's input, and what each reads."""

    def __init__(
        self,
        model: str,
        shadow: nn.Module,
        inputs: Sequence[Tensor],
        weights: Mapping[int, int],
        *,
        strict: bool,
    ) -> None:
        super().__init__(model, shadow)
        self._strict = strict
        self._known: dict[int, Tensor] = {}  # an id belongs to a tensor only while it lives
        self._numbers: dict[int, int] = {}
        self._pieces: dict[int, int] = {}  # the number of each piece of memory
        self._sharing: dict[int, set[int]] = {}  # the tensors in each piece
        self._turns: Counter[tuple[str, str]] = Counter()
        self._made_of = {number: frozenset({weight}) for number, weight in weights.items()}
        self.values: list[TensorInfo] = []
        self.layers: list[Layer] = []
        self.constants: list[Layer] = []
        self.modules: dict[str, int] = {}
        for part in shadow.modules():
            for tensor in tensors([part._parameters, part._buffers, list(vars(part).values())]):
                self._keep(tensor)
        self.inputs = tuple(self._new_value(tensor) for tensor in inputs)

    def expect(self, given: Any) -> None:
        """Note tensors that come from outside and do not depend on the input."""
        for tensor in tensors(given):
            self._keep(tensor)

    def leave(self, paths: Sequence[str], outputs: Any) -> None:
        """Note what a module gave: the first value in it."""
        for tensor in tensors(outputs):
            if id(tensor) in self._numbers:
                self.modules |= dict.fromkeys(paths, self._numbers[id(tensor)])
                return

    def numbers_of(self, outputs: Any) -> tuple[int, ...]:
        """Return the values in what the network gave; raise if there are none."""
        numbers = [self._numbers[id(t)] for t in tensors(outputs) if id(t) in self._numbers]
        if not numbers:
            raise TracingError(
                f"{self.model} gave a {type(outputs).__name__} in which nothing depends on the "
                "input as far as could be seen"
            )
        return tuple(numbers)

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__name__", "") == "__rmatmul__":
            func, args = torch.matmul, args[::-1]
        op = operation_name(func)
        sources = list(tensors((args, kwargs)))
        self._check_origin(op, sources)
        brings = any(id(t) in self._numbers for t in sources[1:])
        if brings and sources[0].device != META and (op == "setitem" or is_in_place(func)):
            raise self._unknown(op, "writes into a tensor made on a fixed device")
        if op != "getitem":  # an order of units is known only while it has numbers in it
            args, kwargs = on_meta(sources, args, kwargs)
            sources = list(tensors((args, kwargs)))
        # Some look at a second tensor for its shape or type alone.
        read = sources[:1] if op in REFERENCES else sources
        given = [t for t in read if id(t) in self._numbers]
        written = list(tensors(kwargs.get("out")))
        if written or (sources and is_in_place(func)):
            self._check_written(op, written or sources[:1], sources)
        versions = [t._version for t in given]
        misfit = misfit_of(Call(op, args, kwargs, (), {}))
        if misfit:
            raise ValueError(misfit)
        outcome = run(func, args, kwargs)
        made = tuple(tensors(outcome))
        for tensor in made:
            self._keep(tensor)
        if op == "setitem" and given:
            if self._strict:
                raise self._unknown(op, "writes into part of a tensor")
            made = (sources[0],)
        if op in SOURCES and not (op == "fill" and brings):
            self._forget(op, made)
            return outcome
        if not given or not made:
            self._pass_on(Call(op, args, kwargs, made, {}), sources)
            return outcome
        # After an operation in place its tensor has its old number until it is recorded.
        call = Call(op, args, kwargs, made, self._numbers)
        in_place = versions != [t._version for t in given]
        self._record(func, call, find(op), sources, in_place)
        return outcome

    def _record(
        self,
        func: Callable[..., Any],
        call: Call,
        operation: Operation | None,
        sources: Sequence[Tensor],
        in_place: bool,
    ) -> None:
        if operation is None and self._strict:
            raise self._unknown(call.op, "is in no rule")
        reads: Reads = ((),) * len(call.outputs) if operation is None else operation.reads(call)
        # What no read speaks of, such as a weight that depends on the input, is read whole.
        said = {read.value for each in reads for read in each}
        silent = [t for t in call.traced() if call.values[id(t)] not in said]
        if silent and call.op not in REFERENCES | OVERWRITERS:
            unplaced = operation is None
            reads = tuple(
                (*each, *(_whole(call.values[id(t)], t, out, unplaced) for t in silent))
                for each, out in zip(reads, call.outputs, strict=True)
            )
        weights = frozenset[int]().union(*(self._made_of.get(id(t), ()) for t in sources))
        work = None if operation is None else operation.work(call)
        self._turns[self.path, call.op] += 1
        self.layers.append(
            Layer(
                call.op,
                self.path,
                tuple(self._new_value(tensor) for tensor in call.outputs),
                reads,
                tuple(sorted(weights)),
                work,
                in_place,
                settings_of(func, call),
                operation is not None,
                self._turns[self.path, call.op],
            )
        )

    def _pass_on(self, call: Call, sources: Sequence[Tensor]) -> None:
        """Note which weights a tensor is made of that does not depend on the input."""
        of = frozenset[int]().union(*(self._made_of.get(id(t), ()) for t in sources))
        for tensor in call.outputs if of else ():
            self._made_of[id(tensor)] = of
        operation = find(call.op) if call.op in PRODUCTS and call.outputs else None
        if operation is not None:
            weights, work = tuple(sorted(of)), operation.work(call)
            self.constants.append(Layer(call.op, self.path, (), (), weights, work))

    def _forget(self, op: str, made: Sequence[Tensor]) -> None:
        """Note that a tensor was filled with something that does not depend on the input."""
        for tensor in made:
            number = self._numbers.pop(id(tensor), None)
            shared = self._sharing.get(tensor.untyped_storage()._cdata, set()) - {id(tensor)}
            if number is not None and shared:
                raise self._unknown(op, "writes in place into what another tensor is a view of")

    def _check_origin(self, op: str, sources: Sequence[Tensor]) -> None:
        """Refuse what comes from nowhere: its costs and what it depends on are not known."""
        for tensor in sources:
            if id(tensor) in self._known:
                continue
            if isinstance(tensor, nn.Parameter):
                raise TracingError(
                    f"operation {op!r} in {self._where()} uses a parameter of shape "
                    f"{tuple(tensor.shape)} that is not registered in the network; register its "
                    "module, or call the network once before, if its forward builds it"
                )
            if tensor.device == META:
                raise self._unknown(op, "is given a tensor that no operation seen here made")

    def _check_written(self, op: str, targets: Sequence[Tensor], sources: Sequence[Tensor]) -> None:
        """Refuse to write what depends on the input where another tensor shares the memory.

        What that other tensor then depends on would go unnoticed, unless each unit only changes in
        its place.
        """
        for target in targets:
            others = [source for source in sources if source is not target]
            brings = any(id(other) in self._numbers for other in others)
            if not brings and (id(target) not in self._numbers or is_unit_wise(op)):
                continue
            if op in SOURCES:
                raise self._unknown(op, "fills a tensor with what depends on the input")
            shared = self._sharing[target.untyped_storage()._cdata] - {id(target)}
            if any(self._is_held(key) for key in shared):
                raise self._unknown(op, "writes in place into what another tensor is a view of")

    def _is_held(self, key: int) -> bool:
        """Whether the network still holds a tensor; those that only stand in these notes are gone.

        Python counts the holders: the notes, and the two names a call to ``getrefcount`` takes.
        """
        tensor = self._known[key]
        return sys.getrefcount(tensor) > 3

    def _keep(self, tensor: Tensor) -> None:
        self._known[id(tensor)] = tensor
        self._sharing.setdefault(tensor.untyped_storage()._cdata, set()).add(id(tensor))

    def _new_value(self, tensor: Tensor) -> int:
        self._keep(tensor)
        storage = tensor.untyped_storage()._cdata
        piece = self._pieces.setdefault(storage, len(self._pieces))
        number = len(self.values)
        self.values.append(
            TensorInfo(tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."), piece)
        )
        self._numbers[id(tensor)] = number
        return number

    def _where(self) -> str:
        return f"module {self.path!r} of {self.model}" if self.path else self.model

    def _unknown(self, op: str, why: str) -> "UndescribedError":
        return UndescribedError(f"operation {op!r} in {self._where()} {why}")


def _whole(value: int, tensor: Tensor, out: Tensor, unplaced: bool) -> Read:
    return Read(value, (None,) * out.ndim, False, tuple(range(tensor.ndim)) if unplaced else ())


class TrainingRecorder(Watcher):
    """Writes down which operations run in training mode, and the bytes each keeps.

    Args:
        model: Name of the model's class.
        shadow: The network.
        inputs: What it is given.
        batch: Size of their batch: a prime, so that what does not grow with it can be told apart.
    """

    def __init__(
        self, model: str, shadow: nn.Module, inputs: Sequence[Tensor], *, batch: int
    ) -> None:
        super().__init__(model, shadow)
        self._batch = batch
        self._depends: dict[int, Tensor] = {id(tensor): tensor for tensor in inputs}
        self._seen = {
            part.untyped_storage()._cdata for part in (*shadow.parameters(), *shadow.buffers())
        }
        self._held: list[Tensor] = []  # so that no address comes twice
        self._layers: list[tuple[str, str, Any]] = []
        self._saved: list[int] = []
        self._constant = 0

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Watch all that runs meanwhile, and what autograd keeps."""
        with saved_tensors_hooks(self._save, lambda tensor: tensor), super().watching():
            yield

    def run(self, problem: str = "") -> TrainingRun:
        """Return what was seen."""
        layers = zip(self._layers, self._saved, strict=True)
        return TrainingRun(
            tuple(TrainingLayer(*layer, saved) for layer, saved in layers), self._constant, problem
        )

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        sources = list(tensors((args, kwargs)))
        if not any(id(tensor) in self._depends for tensor in sources):
            return func(*args, **kwargs)
        args, kwargs = on_meta(sources, args, kwargs)
        op = operation_name(func)
        position = len(self._layers)
        self._layers.append((op, self.path, {}))
        self._saved.append(0)
        outcome = run(func, args, kwargs)
        made = tuple(tensors(outcome))
        if not made or op in SOURCES:
            self._layers.pop(), self._saved.pop()
            return outcome
        call = Call(op, args, kwargs, made, {})
        self._layers[position] = (op, self.path, settings_of(func, call))
        self._depends.update({id(tensor): tensor for tensor in made})
        return outcome

    def _save(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in self._seen:
            self._seen.add(storage._cdata)
            self._held.append(tensor.detach())
            if self._saved and storage.nbytes() % self._batch == 0:
                self._saved[-1] += storage.nbytes() // self._batch
            else:
                self._constant += storage.nbytes()
        return tensor


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


def run(func: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    """Run an operation on tensors without content.

    On the meta device torch's batch norm is written in Python and takes a millisecond, more than
    all the rest of a residual block; what comes out and what is kept is known without it.
    """
    if func is F.batch_norm:
        x, *channels = args[:5] if len(args) >= 5 else (*args, *kwargs.values())
        sizes = {tensor.numel() for tensor in tensors(channels)}
        if x.ndim > 1 and sizes == {x.shape[1]}:
            return _BatchNorm.apply(x, *(t for t in tensors(channels) if t.requires_grad))
    if func is F.scaled_dot_product_attention:
        given = list(tensors((args, kwargs)))
        if not kwargs.get("dropout_p") and len(args) < 5 and not any(t.ndim < 3 for t in given[:3]):
            return _Attention.apply(*given)
    return func(*args, **kwargs)


def misfit_of(call: Call) -> str:
    """Return what does not fit, in plainer words than torch's; empty if all does.

    A transposed convolution without content takes any number of channels.
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
    if x.ndim != spatial + 2:
        return (
            f"{call.op} expects samples of {spatial + 1} axes, channels first, and is given "
            f"{tuple(x.shape[1:])}; a shape has no batch: (1, 28, 28) for images of 28 x 28"
        )
    groups = call.get(6, "groups", 1)
    expected = weight.shape[0] if "transpose" in call.op else weight.shape[1] * groups
    if x.shape[1] != expected:
        return f"{call.op} expects {expected} channels, and is given {x.shape[1]}"
    return ""


class _Attention(torch.autograd.Function):
    """What fused attention gives and keeps on a CPU, without content.

    Without content torch takes its unfused way, which keeps the scores of every pair.
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, *others: Tensor) -> Tensor:
        value = others[1]
        batch = torch.broadcast_shapes(*(t.shape[:-2] for t in (query, *others[:2])))
        rows = (*batch, query.shape[-2])
        out = query.new_empty((*rows, value.shape[-1]))
        ctx.save_for_backward(query, *others, out, query.new_empty(rows, dtype=torch.float32))
        return out


class _BatchNorm(torch.autograd.Function):
    """What batch norm gives and keeps, without content."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, *channels: Tensor) -> Tensor:
        statistics = torch.empty((2, x.shape[1]), device=x.device, dtype=x.dtype)
        ctx.save_for_backward(x, statistics)
        return torch.empty_like(x)


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
    if name == "__get__":  # a property, such as x.T
        name = getattr(func, "__self__", func).__name__
    reflected = re.fullmatch(r"__[ri]?(\w+?)__", name)
    if reflected:
        whole = name.strip("_")
        name = whole if whole in ("invert", "index") else reflected[1]
        return "sub" if whole == "rsub" else name
    return name.removesuffix("_") if name != "_" else name


def is_in_place(func: Callable[..., Any]) -> bool:
    """Return whether the name of a function says that it writes over its first argument."""
    name = getattr(func, "__name__", "")
    return (name.endswith("_") and not name.endswith("__")) or name.startswith("__i")
