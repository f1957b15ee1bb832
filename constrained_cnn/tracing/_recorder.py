"""Watch a network run and write down what it does, operation by operation."""

import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from constrained_cnn.errors import TracingError
from constrained_cnn.graph import Layer, Read, TensorInfo
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
from constrained_cnn.tracing._watcher import (
    META,
    Watcher,
    is_in_place,
    misfit_of,
    on_meta,
    operation_name,
    run,
)


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
            self._forget(made)
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

    def _forget(self, made: Sequence[Tensor]) -> None:
        """Note that a tensor was filled with something that does not depend on the input."""
        for tensor in made:
            self._numbers.pop(id(tensor), None)

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
            if op in SOURCES and brings:
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
