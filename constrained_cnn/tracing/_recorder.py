"""Watch a network run and write down what it does, operation by operation."""

import functools
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from constrained_cnn.errors import TracingError
from constrained_cnn.graph import PRODUCTS, Layer, Program, Read, TensorInfo
from constrained_cnn.tracing._kernels import META, run
from constrained_cnn.tracing._meta_copy import MetaCopy
from constrained_cnn.tracing._watcher import (
    Decomposition,
    Watcher,
    is_in_place,
    misfit_of,
    on_meta,
    operation_name,
)
from constrained_cnn.tracing.operations import (
    Call,
    Operation,
    Reads,
    described,
    elementwise,
    find,
    settings_of,
    tensors,
)

# Their work counts even where it does not depend on the input.
_COSTLY = (*PRODUCTS, "attention")


class UndescribedError(TracingError):
    """The network runs, and something in it is not described.

    Attributes:
        what: The operation, where it is, and why.
        exportable: Whether torch.export may take it apart, such as a write through a view.
    """

    def __init__(self, what: str, *, exportable: bool = False) -> None:
        super().__init__(
            f"{what}, so what its outputs read is not known; use an operation that is described, "
            "or describe it: constrained_cnn.tracing.register_op"
        )
        self.what = what
        self.exportable = exportable


class Recorder(Watcher):
    """Writes down the operations that depend on the network's input, and what each reads.

    Args:
        copy: The network, without content.
        inputs: The tensors it is given.
        strict: Whether what is not described is refused; if not, it is noted.
    """

    def __init__(self, copy: MetaCopy, inputs: Sequence[Tensor], *, strict: bool) -> None:
        super().__init__(copy.model, copy.network)
        self._strict = strict
        self._hidden = copy.hidden
        self._known: dict[int, Tensor] = {}  # an id belongs to a tensor only while it lives
        self._versions: dict[int, int] = {}  # how often each was written to, as far as was seen
        self._numbers: dict[int, int] = {}
        self._pieces: dict[int, int] = {}  # the number of each piece of memory
        self._sharing: dict[int, set[int]] = {}  # the tensors in each piece
        self._writes: dict[int, list[int]] = {}  # what was written in place into each piece
        self._turns: Counter[tuple[str, str]] = Counter()
        self._made_of = {number: frozenset({weight}) for number, weight in copy.numbers.items()}
        self.draws: list[str] = []
        self.unseen: list[str] = []
        self.refusal: Exception | None = None
        self.values: list[TensorInfo] = []
        self.layers: list[Layer] = []
        self.constants: list[Layer] = []
        self.modules: dict[str, int] = {}
        self.given: Any = ()  # what the network gave
        kept_by_runs = [list(vars(module).values()) for module in copy.own_modules]
        for tensor in (*copy.tensors, *tensors(kept_by_runs)):
            self._keep(tensor)
        self.inputs = tuple(self._new_value(tensor) for tensor in inputs)

    def expect(self, items: Any) -> None:
        """Note tensors that come from outside and do not depend on the input."""
        for tensor in tensors(items):
            self._keep(tensor)

    def leave(self, paths: Sequence[str], outputs: Any) -> None:
        """Note what a module gave: the first value in it."""
        for tensor in tensors(outputs):
            if id(tensor) in self._numbers:
                self.modules |= dict.fromkeys(paths, self._numbers[id(tensor)])
                return

    def numbers_of(self, outputs: Any) -> tuple[int, ...]:
        """Return the values in what the network gave; raise if there are none."""
        for tensor in tensors(outputs):
            if id(tensor) not in self._known and tensor.device == META:
                self._refuse(
                    UndescribedError(
                        f"{self.model} gives a tensor that no operation seen here made"
                    )
                )
            elif id(tensor) in self._numbers:
                self._check_version("the end", tensor)
        numbers = [self._numbers[id(t)] for t in tensors(outputs) if id(t) in self._numbers]
        if not numbers:
            raise TracingError(
                f"{self.model} gave a {type(outputs).__name__} in which nothing depends on the "
                "input as far as could be seen"
            )
        return tuple(numbers)

    def program(self, outputs: Any) -> Program:
        """Return what ran, of a network that gave ``outputs``."""
        values = [n for t in tensors(outputs) if id(t) in self._numbers for n in self._now_in(t)]
        return Program(
            tuple(self.layers),
            tuple(values),
            frozenset(self.ran),
            tuple(self.draws),
            unseen=tuple(dict.fromkeys(self.unseen)),
        )

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        return self._see(func, args, kwargs or {})

    def scripted(self, func: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """See the operations of a function that torch has compiled."""
        return self._see(func, args, kwargs)

    def _see(self, func: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        name = getattr(func, "__name__", "")
        if name == "__get__":  # a property; of most nothing is to be seen
            outcome = func(*args)
            if not isinstance(outcome, Tensor):
                return outcome
        if name == "__rmatmul__":
            func, args = torch.matmul, args[::-1]
        op = operation_name(func)
        if any(map(torch.is_autocast_enabled, ("cpu", "cuda"))):
            # In training mode too, where others are noted alone: bytes kept would be wrong.
            self.refusal = TracingError(
                f"operation {op!r} in {self._where()} runs under torch.autocast, so the types of "
                "what it gives are not known; trace the network without it"
            )
            raise self.refusal
        sources = tensors((args, kwargs))
        self._check_origin(op, sources)
        writes = op == "setitem" or is_in_place(func)
        targets = tensors(kwargs.get("out")) or (sources[:1] if writes else [])
        brings = any(id(t) in self._numbers for t in sources if t is not sources[0] or not writes)
        if brings and any(target.device != META for target in targets):
            why = "writes into a tensor made on a fixed device"
            self._refuse(self._unknown(op, why, exportable=True))
        if op == "set" and any(id(t) in self._numbers for t in sources):
            self._refuse(self._unknown(op, "puts other memory under a tensor"))
        if op != "getitem":  # an order of units is known only while it has numbers in it
            args, kwargs = on_meta(sources, args, kwargs)
            sources = tensors((args, kwargs))
        traced = [t for t in sources if id(t) in self._numbers]
        if targets:
            self._check_written(op, tensors(kwargs.get("out")) or sources[:1], sources)
        before = [t._version for t in traced]
        if op.startswith(("conv", "linear")):
            misfit = misfit_of(Call(op, args, kwargs, (), {}), self.is_batched)
            if misfit:
                raise ValueError(misfit)
        inner: list[tuple[Callable[..., Any], Call]] = []
        outcome = self._run(func, op, args, kwargs, inner)
        made = tuple(tensors(outcome))
        for tensor in made:
            self._keep(tensor)
        self._note_versions((*sources, *made))
        if op == "set data":
            self._replace(*sources)
        if op == "setitem" and traced:
            made = (sources[0],)
        if made or inner:
            # After an operation in place its tensor has its old number until it is recorded.
            inputs = self._inputs_of(sources)
            in_place = before != [t._version for t in traced]
            call = Call(op, args, kwargs, made, self._numbers)
            self._record_all(func, call, inner, sources, in_place, inputs)
        return outcome

    def _run(
        self,
        func: Callable[..., Any],
        op: str,
        args: Any,
        kwargs: Any,
        inner: list[tuple[Callable[..., Any], Call]],
    ) -> Any:
        """Run an operation; one that no rule describes is taken apart on the way, into ``inner``.

        An error that is there only because there are no values is noted: the network may catch it
        and go another way than it would with values.
        """
        try:
            if find(op) is not None or _is_property(func):
                return run(op, func, args, kwargs)
            with Decomposition() as parts:
                outcome = run(op, func, args, kwargs)
            inner += parts.calls
            return outcome
        except Exception as error:
            said = str(error).lower()
            if self.refusal is None and ("meta tensor" in said or "data-dependent" in said):
                self.refusal = error
            raise

    def _record_all(
        self,
        func: Callable[..., Any],
        call: Call,
        inner: Sequence[tuple[Callable[..., Any], Call]],
        sources: Sequence[Tensor],
        in_place: bool,
        inputs: Sequence[int],
    ) -> None:
        """Record an operation, or those that it was taken apart into, if each of them is known."""
        parts = inner if all(find(part.op) for _, part in inner) else ()
        there = {id(tensor) for _, part in parts for tensor in part.outputs}
        if not parts or not there.issuperset(map(id, call.outputs)):
            if any(_is_random(part) for part, _ in inner):
                self._draw(call.op)
            if call.outputs:
                self._record(func, call, sources, in_place, inputs)
            elif any(is_in_place(part) for part, _ in inner):
                self._refuse(self._unknown(call.op, "writes what no rule describes"))
            return
        for part, each in parts:
            of = tensors((each.args, each.kwargs))
            for tensor in (*of, *each.outputs):
                self._keep(tensor)
            if is_in_place(part):
                self._check_written(each.op, of[:1], of)
            each = Call(each.op, each.args, each.kwargs, each.outputs, self._numbers)
            self._record(part, each, of, is_in_place(part), self._inputs_of(of))

    def _replace(self, target: Tensor, source: Tensor) -> None:
        """Note that a tensor holds from now on what another holds: ``target.data = source``."""
        self._keep(target)
        self._pass_on(Call("detach", (source,), {}, (target,), {}), None, [source])
        if id(source) in self._numbers:
            self._numbers[id(target)] = self._numbers[id(source)]

    def _record(
        self,
        func: Callable[..., Any],
        call: Call,
        sources: Sequence[Tensor],
        in_place: bool,
        inputs: Sequence[int],
    ) -> None:
        op, (operation, call) = call.op, described(call)
        traced = [t for t in sources if id(t) in self._numbers]
        if operation is not None and operation.draws and not operation.drops:
            self._draw(op)
        reads: Reads = ((),) * len(call.outputs)
        if operation is not None and traced:
            reads = operation.reads(call)
        elif operation is None and traced and self._strict:
            self._refuse(self._unknown(op, "is in no rule"))
        # What no read speaks of, such as a weight that depends on the input, is read whole.
        said = {read.value for each in reads for read in each}
        silent = [t for t in traced if call.values[id(t)] not in said]
        if silent and (operation is None or not operation.partial):
            unplaced = operation is None
            reads = tuple(
                (*each, *(_whole(call.values[id(t)], t, out, unplaced) for t in silent))
                for each, out in zip(reads, call.outputs, strict=True)
            )
        if not any(reads) and not self._is_of_note(operation):
            self._pass_on(call, operation, sources)
            return
        weights = frozenset[int]().union(*(self._made_of.get(id(t), ()) for t in sources))
        settings = settings_of(func, call, operation.arguments if operation else ())
        work = None if operation is None else operation.work(call)
        kind = "unknown" if operation is None else operation.kind_of(call, settings)
        windows = operation.windows(call) if operation and operation.windows else ()
        self._turns[self.path, op] += 1
        layer = Layer(
            op,
            self.path,
            tuple(map(self._new_value, call.outputs)),
            reads,
            tuple(sorted(weights)),
            work,
            in_place,
            settings,
            operation is not None,
            self._turns[self.path, op],
            kind,
            tuple(inputs),
            tuple(self.values[value].shape[1:] for value in inputs),
            tuple(call.output.shape[1:]),
            tuple(windows),
            operation.drops if operation else "",
        )
        self.layers.append(layer)
        if in_place:
            for tensor in call.outputs:
                memory = tensor.untyped_storage()._cdata
                self._writes.setdefault(memory, []).append(self._numbers[id(tensor)])

    def _is_of_note(self, operation: Operation | None) -> bool:
        """Whether an operation is recorded though it reads nothing that depends on the input."""
        return False

    def _pass_on(self, call: Call, operation: Operation | None, sources: Sequence[Tensor]) -> None:
        """Note which weights a tensor is made of that does not depend on the input."""
        for tensor in call.outputs:  # it may have been filled with something else
            self._numbers.pop(id(tensor), None)
        kind = "unknown" if operation is None else operation.kind_of(call, {})
        if kind == "source":
            return
        of = frozenset[int]().union(*(self._made_of.get(id(t), ()) for t in sources))
        for tensor in call.outputs if of else ():
            self._made_of[id(tensor)] = of
        if operation is not None and kind in _COSTLY:
            weights, work = tuple(sorted(of)), operation.work(call)
            self.constants.append(Layer(call.op, self.path, (), (), weights, work))

    def _draw(self, op: str) -> None:
        self.draws.append(f"{self.path}: {op}" if self.path else op)

    def _refuse(self, error: TracingError) -> None:
        """Raise, and note it in case the network catches it."""
        self.refusal = self.refusal or error
        raise error

    def _check_origin(self, op: str, sources: Sequence[Tensor]) -> None:
        """Refuse what comes from nowhere: its costs and what it depends on are not known."""
        for tensor in sources:
            own = id(tensor) in self._known
            if id(tensor) in self._hidden or (not own and _is_trained(tensor)):
                self._refuse(self._hidden_weight(op, tensor))
            elif own:
                self._check_version(op, tensor)
            elif tensor.device == META:
                why = "is given a tensor that no operation seen here made"
                self._refuse(self._unknown(op, why, exportable=True))
                self._keep(tensor)

    def _hidden_weight(self, op: str, tensor: Tensor) -> TracingError:
        if isinstance(tensor, nn.Parameter):
            return TracingError(
                f"operation {op!r} in {self._where()} uses a parameter of shape "
                f"{tuple(tensor.shape)} that is not registered in the network; register its "
                "module, or call the network once before, if its forward builds it"
            )
        name = self._hidden.get(id(tensor), "a tensor")
        return TracingError(
            f"operation {op!r} in {self._where()} uses {name} of shape {tuple(tensor.shape)}, "
            "which takes a gradient and is no parameter, so it would not be counted; make it a "
            "torch.nn.Parameter of its module, or call requires_grad_(False) on it"
        )

    def _check_version(self, op: str, tensor: Tensor) -> None:
        if self._versions.get(id(tensor), tensor._version) != tensor._version:
            self._versions[id(tensor)] = tensor._version
            self._refuse(self._unknown(op, "is given a tensor that was written to unseen"))

    def _note_versions(self, used: Sequence[Tensor]) -> None:
        """Note how often tensors were written to, after an operation that was seen."""
        for tensor in used:
            version = tensor._version
            if self._versions.get(id(tensor)) != version:
                self._versions[id(tensor)] = version
                for key in self._sharing.get(tensor.untyped_storage()._cdata, ()):
                    self._versions[key] = self._known[key]._version

    def _check_written(self, op: str, targets: Sequence[Tensor], sources: Sequence[Tensor]) -> None:
        """Refuse to write what depends on the input where another tensor shares the memory.

        What that other tensor then depends on would go unnoticed, unless each unit only changes in
        its place.
        """
        operation = find(op)
        for target in targets:
            others = [source for source in sources if source is not target]
            brings = any(id(other) in self._numbers for other in others)
            unit_wise = operation is not None and operation.reads is elementwise
            if not brings and (id(target) not in self._numbers or unit_wise):
                continue
            shared = self._sharing[target.untyped_storage()._cdata] - {id(target)}
            if any(self._is_held(key, {*shared, id(target)}) for key in shared):
                why = "writes in place into what another tensor is a view of"
                self._refuse(self._unknown(op, why, exportable=True))

    def _is_held(self, key: int, sharing: set[int]) -> bool:
        """Whether the network still holds a tensor; those that only stand in these notes are gone.

        Python counts the holders: the notes, and the two names a call to ``getrefcount`` takes. A
        view that is in the notes too may hold what it is a view of.
        """
        tensor = self._known[key]
        is_base = any(self._known[other]._base is tensor for other in sharing)
        return sys.getrefcount(tensor) > 3 + (is_base and _counts_views())

    def _keep(self, tensor: Tensor) -> None:
        self._known[id(tensor)] = tensor
        self._versions.setdefault(id(tensor), tensor._version)
        self._sharing.setdefault(tensor.untyped_storage()._cdata, set()).add(id(tensor))

    def _inputs_of(self, sources: Sequence[Tensor]) -> list[int]:
        return [n for t in sources if id(t) in self._numbers for n in self._now_in(t)]

    def _now_in(self, tensor: Tensor) -> list[int]:
        """Return the value that a tensor holds; more than one after writes through its views."""
        own = self._numbers[id(tensor)]
        later = [n for n in self._writes.get(tensor.untyped_storage()._cdata, ()) if n > own]
        # What was written read what was there before, so that one write stands for both.
        return later if len(later) == 1 else [own, *later]

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

    def _unknown(self, op: str, why: str, *, exportable: bool = False) -> "UndescribedError":
        return UndescribedError(f"operation {op!r} in {self._where()} {why}", exportable=exportable)


@functools.cache
def _counts_views() -> bool:
    """Whether Python counts a view among the holders of what it is a view of; torch's way differs.

    Newer releases hold the Python object as long as anything in C++ holds the tensor.
    """
    base = torch.empty(2, device=META)
    alone = sys.getrefcount(base)
    view = base[:1]
    return sys.getrefcount(base) > alone and view is not base


def _whole(value: int, tensor: Tensor, out: Tensor, unplaced: bool) -> Read:
    return Read(value, (None,) * out.ndim, False, tuple(range(tensor.ndim)) if unplaced else ())


def _is_trained(tensor: Tensor) -> bool:
    return isinstance(tensor, nn.Parameter) or (tensor.requires_grad and tensor.is_leaf)


def _is_property(func: Callable[..., Any]) -> bool:
    return getattr(func, "__name__", "") == "__get__"


def _is_random(func: Callable[..., Any]) -> bool:
    return torch.Tag.nondeterministic_seeded in getattr(func, "tags", ())
