"""Run a network once without data and write down what it does."""

import copy
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import (
    register_module_forward_hook,
    register_module_forward_pre_hook,
)
from torch.nn.parameter import is_lazy
from torch.overrides import TorchFunctionMode

from constrained_cnn.errors import (
    ConstrainedCNNError,
    InvalidInputError,
    TracingError,
    check_integer,
)
from constrained_cnn.graph import Graph, Layer, TensorInfo
from constrained_cnn.tracing._call import Call, tensors
from constrained_cnn.tracing._rules import REFERENCES, RULES, SOURCES, Reads, Rule

META = torch.device("meta")


def trace(model: nn.Module, input_shape: Sequence[int]) -> Graph:
    """Return what ``model`` does with one sample, operation by operation, in evaluation mode.

    The network runs once on torch's meta device, which works out shapes and computes nothing: no
    weight is allocated. It is a copy that runs, so the model stays as it was in every way.

    Args:
        model: The network.
        input_shape: Shape of one sample, without the batch: ``(1, 28, 28)``.

    Raises:
        InvalidInputError: If the model is none, or the shape no shape.
        TracingError: If the network cannot take that shape, depends on the values of its input, or
            runs an operation nobody has described.

    Examples:
        >>> graph = trace(nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU()), (1, 28, 28))
        >>> [layer.name for layer in graph.layers], graph.values[graph.outputs[0]].shape
        (['0: conv2d', '1: relu'], (1, 8, 26, 26))
    """
    if not isinstance(model, nn.Module):
        raise InvalidInputError(f"model={type(model).__name__}: must be a torch.nn.Module")
    if not isinstance(input_shape, tuple | list | torch.Size) or not input_shape:
        raise InvalidInputError(
            f"input_shape={input_shape!r}: must be a shape, such as (1, 28, 28)"
        )
    for size in input_shape:
        check_integer("input_shape", size, minimum=1)
    shadow = _shadow_of(model).eval()
    kinds = {part.dtype for part in shadow.parameters() if part.is_floating_point()}
    dtype = kinds.pop() if len(kinds) == 1 else torch.get_default_dtype()
    sample = torch.empty((1, *input_shape), device=META, dtype=dtype)
    recorder = _Recorder(type(model).__name__, shadow, sample)
    with torch.random.fork_rng([]), torch.no_grad(), _following(recorder), recorder:
        try:
            outputs = shadow(sample)
        except ConstrainedCNNError:
            raise
        except Exception as error:
            raise TracingError(_say(error, recorder, input_shape)) from error
    return recorder.graph(outputs)


def _say(error: Exception, recorder: "_Recorder", input_shape: Sequence[int]) -> str:
    reason = (str(error) or type(error).__name__).splitlines()[0]
    where = f" in {recorder.path!r}" if recorder.path else ""
    if "meta" in reason and "cpu" in reason:
        return (
            f"{recorder.model} makes a tensor on a fixed device in its forward{where} ({reason}); "
            "make it with device=x.device, or register it as a buffer"
        )
    if "meta tensor" in reason or "data-dependent" in reason:
        return (
            f"{recorder.model}: its control flow depends on the values of its input{where}, so no "
            f"single graph describes it ({reason}); trace a network whose steps depend on shapes"
        )
    return f"{recorder.model} cannot take an input of shape {tuple(input_shape)}{where}: {reason}"


def _shadow_of(model: nn.Module) -> nn.Module:
    """Return a copy whose tensors have shapes and no content."""
    memo: dict[int, Any] = {}
    for name, part in [*model.named_parameters(), *model.named_buffers()]:
        if is_lazy(part):
            raise TracingError(
                f"{type(model).__name__}: {name!r} has no shape before the first call; call the "
                "model once on a sample, then trace it"
            )
        empty = torch.empty_like(part, device=META)
        if isinstance(part, nn.Parameter):
            empty = nn.Parameter(empty, requires_grad=part.requires_grad)
        memo[id(part)] = empty
    try:
        shadow = copy.deepcopy(model, memo)
    except Exception as error:
        raise TracingError(
            f"{type(model).__name__} cannot be copied, and it is a copy that is traced: {error}"
        ) from error
    for module in shadow.modules():
        for name, value in vars(module).items():
            if isinstance(value, Tensor) and value.device != META:
                vars(module)[name] = value.to(META)  # a plain attribute: no parameter, no buffer
    return shadow


class _Recorder(TorchFunctionMode):
    """Sees every torch operation on its way and keeps those that depend on the input."""

    def __init__(self, model: str, shadow: nn.Module, sample: Tensor) -> None:
        super().__init__()
        self.model = model
        self._names = {id(part): name for name, part in shadow.named_modules()}
        self._stack: list[str] = []
        self._known: dict[int, Tensor] = {}  # an id belongs to a tensor only while it lives
        self._numbers: dict[int, int] = {}
        self._sharing: dict[int, set[int]] = {}  # the traced tensors in each piece of memory
        self._values: list[TensorInfo] = []
        self._layers: list[Layer] = []
        self._modules: dict[str, int] = {}
        for part in shadow.modules():
            for tensor in tensors([part._parameters, part._buffers, list(vars(part).values())]):
                self._keep(tensor)
        self._inputs = (self._new_value(sample),)

    @property
    def path(self) -> str:
        """Path of the module that runs now."""
        return self._stack[-1] if self._stack else ""

    def enter(self, module: nn.Module) -> None:
        """Note that a module begins."""
        self._stack.append(self._names.get(id(module), self.path))

    def leave(self, outputs: Any) -> None:
        """Note that a module ended, and what it gave."""
        path = self._stack.pop()
        numbers = [self._numbers[id(t)] for t in tensors(outputs) if id(t) in self._numbers]
        if numbers:
            self._modules[path] = numbers[0]

    def graph(self, outputs: Any) -> Graph:
        """Return what was recorded."""
        given = list(tensors(outputs))
        if not any(id(tensor) in self._numbers for tensor in given):
            raise TracingError(
                f"{self.model} gave a {type(outputs).__name__} in which nothing depends on the "
                "input as far as could be seen"
            )
        return Graph(
            self.model,
            self._inputs,
            tuple(self._numbers[id(t)] for t in given if id(t) in self._numbers),
            tuple(self._values),
            tuple(self._layers),
            self._modules,
        )

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        op = operation_name(func)
        sources = list(tensors((args, kwargs)))
        if any(t.device == META and id(t) not in self._known for t in sources):
            raise self._unknown(op, "is given a tensor that no operation seen here made")
        # Some look at a second tensor for its shape or type alone.
        read = sources[:1] if op in REFERENCES else sources
        given = any(id(t) in self._numbers for t in read)
        if sources and _is_in_place(func):
            self._check_in_place(op, sources)
        outcome = func(*args, **kwargs)
        made = tuple(tensors(outcome))
        for tensor in made:
            self._keep(tensor)
        if op == "setitem" and given:
            raise self._unknown(op, "writes into part of a tensor")
        if not given or not made or op in SOURCES:
            return outcome
        rule = RULES.get(op)
        if rule is None:
            raise self._unknown(op, "is in no rule")
        # After an operation in place its tensor has its old number until it is recorded.
        self._record(op, rule, Call(op, args, kwargs, made, self._numbers))
        return outcome

    def _record(self, op: str, rule: Rule, call: Call) -> None:
        reads: Reads = rule(call)
        # What no read speaks of, such as a weight that depends on the input, is read whole.
        said = {read.value for each in reads for read in each}
        silent = {call.values[id(t)]: t for t in call.traced() if call.values[id(t)] not in said}
        if silent and op not in REFERENCES:
            whole = [call.read(t, [None] * call.output.ndim)[0] for t in silent.values()]
            reads = tuple((*each, *whole) for each in reads)
        numbers = tuple(self._new_value(tensor) for tensor in call.outputs)
        self._layers.append(Layer(op, self.path, numbers, reads))

    def _check_in_place(self, op: str, given: Sequence[Tensor]) -> None:
        """Refuse to mix another value into a tensor that shares its memory with a third."""
        target, *others = given
        if not any(id(other) in self._numbers for other in others if other is not target):
            return
        memory = target.untyped_storage()._cdata
        if self._sharing.get(memory, set()) - {id(target)}:
            raise self._unknown(op, "writes in place into what another tensor is a view of")

    def _keep(self, tensor: Tensor) -> None:
        self._known[id(tensor)] = tensor

    def _new_value(self, tensor: Tensor) -> int:
        self._keep(tensor)
        self._sharing.setdefault(tensor.untyped_storage()._cdata, set()).add(id(tensor))
        number = len(self._values)
        self._values.append(
            TensorInfo(tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."))
        )
        self._numbers[id(tensor)] = number
        return number

    def _unknown(self, op: str, why: str) -> TracingError:
        where = f"module {self.path!r} of {self.model}" if self.path else self.model
        return TracingError(
            f"operation {op!r} in {where} {why}, so what its outputs read is not known; use "
            "an operation that is described"
        )


def operation_name(func: Callable[..., Any]) -> str:
    """Return the plain name of an operation.

    Examples:
        >>> operation_name(Tensor.add_), operation_name(Tensor.__radd__), operation_name(torch.add)
        ('add', 'add', 'add')
    """
    name = getattr(func, "__name__", str(func))
    if name == "__get__":  # a property, such as x.T
        name = getattr(func, "__self__", func).__name__
    reflected = re.fullmatch(r"__[ri]?(\w+?)__", name)
    if reflected:
        whole = name.strip("_")
        name = whole if whole in ("invert", "index") else reflected[1]
        return "sub" if whole == "rsub" else name
    return name.removesuffix("_") if name != "_" else name


def _is_in_place(func: Callable[..., Any]) -> bool:
    name = getattr(func, "__name__", "")
    return (name.endswith("_") and not name.endswith("__")) or name.startswith("__i")


@contextmanager
def _following(recorder: _Recorder) -> Iterator[None]:
    """Tell the recorder of every module that begins and ends."""
    begins = register_module_forward_pre_hook(lambda module, _: recorder.enter(module))
    ends = register_module_forward_hook(lambda module, _, outputs: recorder.leave(outputs))
    try:
        yield
    finally:
        begins.remove()
        ends.remove()
