"""A stand-in for a CUDA graph that runs on the CPU, with the habits that make a graph dangerous.

While a step is recorded its operations do not take effect. Each is kept with the memory it reads
and writes and with the Python numbers it was given. To replay is to do them again, on that memory
and with those numbers, whatever Python has become meanwhile; random operations draw anew. What
gives Python a number is an error. After a recording all memory that it has allocated holds rubbish.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

Result = TypeVar("Result")

NOT_PERMITTED = "CUDA error: operation not permitted when stream is capturing"
WAITS = "called a synchronizing CUDA operation"
# They give a size or a number that only the device knows.
READS = (torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape)
# Their tag says that they may; with integers for indices they do not.
INDEXING = (torch.ops.aten.index.Tensor, torch.ops.aten.index_put_.default)
PYTHON_READS = (Tensor.tolist, Tensor.numpy, Tensor.__array__)
ALLOCATIONS = ("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided")


class RecordedGraph:
    """Records steps on the CPU, in place of ``CudaRecorder``.

    Attributes:
        captures: How many steps were recorded.
        replays: How many times one was executed.
        operations: How many operations the last recording holds.
        closed: Whether what was recorded was given back.
    """

    def __init__(self) -> None:
        self.captures = 0
        self.replays = 0
        self.operations = 0
        self.closed = False

    def run(self, step: Callable[[], Result]) -> Result:
        return step()

    def rehearse(self, step: Callable[[], object]) -> None:
        try:
            with _refusing(WAITS), _Watch():  # type: ignore[no-untyped-call]
                step()
        except RuntimeError as error:
            raise error.with_traceback(_outside(error.__traceback__)) from None

    def capture(self, step: Callable[[], Result]) -> tuple[Callable[[], None], Result]:
        recording = Recording()
        random = torch.get_rng_state()
        try:
            with _refusing(NOT_PERMITTED), recording:
                result = step()
        finally:
            recording.undo()
            torch.set_rng_state(random)
        recording.spoil()
        self.captures += 1
        self.operations = len(recording.operations)

        def replay() -> None:
            assert not self.closed
            self.replays += 1
            recording.replay()

        return replay, result

    def close(self) -> None:
        self.closed = True


def _outside(trace: TracebackType | None) -> TracebackType | None:
    """Return a traceback without the frames of this file, as there are none in torch's C++."""
    if trace is None:
        return None
    rest = _outside(trace.tb_next)
    if trace.tb_frame.f_code.co_filename == __file__:
        return rest
    return TracebackType(rest, trace.tb_frame, trace.tb_lasti, trace.tb_lineno)


def _reads(operation: Any, values: Sequence[Any]) -> bool:
    """Whether an operation tells Python what is in a tensor."""
    if operation in INDEXING:
        masks = (torch.bool, torch.uint8)
        return any(isinstance(one, Tensor) and one.dtype in masks for one in values[1:])
    return any(tag in operation.tags for tag in READS)


@contextmanager
def _refusing(message: str) -> Iterator[None]:
    """Refuse the ways to read a tensor that pass by torch's dispatcher."""

    class Refusing(TorchFunctionMode):
        def __torch_function__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            if func in PYTHON_READS:
                raise RuntimeError(message)
            return func(*args, **(kwargs or {}))

    with Refusing():
        yield


class _Watch(TorchDispatchMode):
    """Lets everything happen but reads."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if _reads(func, tree_leaves(args)):
            raise RuntimeError(WAITS)
        return func(*args, **(kwargs or {}))


class Recording(TorchDispatchMode):
    """The operations of one step.

    Attributes:
        operations: Each with its arguments, and where its results go that are no views of them.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.operations: list[tuple[Any, Any, Any, list[tuple[int, Tensor]]]] = []
        self._allocated: dict[int, Tensor] = {}
        self._before: dict[int, tuple[Tensor, Tensor]] = {}
        self._held: list[Any] = []  # addresses are given anew once a tensor is gone

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = tree_leaves((args, kwargs))
        if _reads(func, given):
            raise RuntimeError(NOT_PERMITTED)
        if func in (torch.ops.aten.set_.source_Storage, torch.ops.aten.resize_.default):
            raise NotImplementedError(f"{func}: no stand-in for an operation that moves memory")
        # Aliases, since a tensor may later be pointed at other memory, and a graph does not follow.
        kept_args, kept_kwargs = tree_map(_alias, (args, kwargs or {}))
        inputs = {_address(one): one for one in given if isinstance(one, Tensor)}
        for address, one in inputs.items():
            if address not in self._allocated and address not in self._before:
                whole = _whole(one)
                self._before[address] = (whole, whole.clone())
        results = func(*args, **(kwargs or {}))
        fresh = []
        for place, one in enumerate(tree_leaves(results)):
            if isinstance(one, Tensor) and _address(one) not in inputs:
                fresh.append((place, _alias(one)))
                self._allocated[_address(one)] = _whole(one)
        self._held.append((given, results))
        name = func.overloadpacket.__name__
        writes = func._schema.is_mutable and torch.Tag.inplace_view not in func.tags
        if (fresh or writes) and name not in ALLOCATIONS:
            self.operations.append((func, kept_args, kept_kwargs, fresh))
        return results

    def undo(self) -> None:
        """Make what the step found as it was."""
        for whole, copy in self._before.values():
            whole.copy_(copy)

    def spoil(self) -> None:
        """Leave rubbish in what the step has allocated."""
        for whole in self._allocated.values():
            whole.fill_(0xFF)  # NaN in every float, -1 in every integer

    @torch.no_grad()
    def replay(self) -> None:
        for operation, args, kwargs, fresh in self.operations:
            results = tree_leaves(operation(*args, **kwargs))
            for place, memory in fresh:
                memory.copy_(results[place])


def _alias(value: Any) -> Any:
    return torch.ops.aten.detach(value) if isinstance(value, Tensor) else value


def _address(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _whole(tensor: Tensor) -> Tensor:
    """Return all memory that the tensor lies in, as bytes."""
    return torch.empty(0, dtype=torch.uint8).set_(tensor.untyped_storage())
