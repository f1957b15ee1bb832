"""Watch a network run in training mode, and what autograd keeps of it."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from constrained_cnn.errors import TracingError
from constrained_cnn.graph import Program
from constrained_cnn.tracing._meta_copy import MetaCopy
from constrained_cnn.tracing._recorder import Recorder
from constrained_cnn.tracing.operations import Operation


class TrainingRecorder(Recorder):
    """Writes down which operations run in training mode, and the bytes each keeps.

    What cannot be followed is noted and not refused: it concerns the rules on training alone.

    Args:
        copy: The network, without content.
        inputs: What it is given.
    """

    def __init__(self, copy: MetaCopy, inputs: Sequence[Tensor]) -> None:
        super().__init__(copy, inputs, strict=False)
        weights = [tensor for tensor in copy.tensors if id(tensor) in copy.numbers]
        self._seen = {tensor.untyped_storage()._cdata for tensor in weights}
        self._held: list[Tensor] = []  # so that no address comes twice
        self._slot = 0  # the layer that keeps what is kept now
        self.kept: list[tuple[int, int]] = []  # the layer, and the bytes it keeps for the batch

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Watch all that runs meanwhile, and what autograd keeps."""
        with saved_tensors_hooks(self._save, lambda tensor: tensor), super().watching():
            yield

    def numbers_of(self, outputs: Any) -> tuple[int, ...]:
        """Return the values in what the network gave; there may be none."""
        try:
            return super().numbers_of(outputs)
        except TracingError:
            return ()

    def _check_origin(self, op: str, sources: Sequence[Tensor]) -> None:
        traced = any(id(tensor) in self._numbers for tensor in sources)
        self._slot = len(self.layers) - (not traced)
        super()._check_origin(op, sources)

    def _refuse(self, error: TracingError) -> None:
        self.unseen.append(getattr(error, "what", str(error)))

    def _check_written(self, op: str, targets: Sequence[Tensor], sources: Sequence[Tensor]) -> None:
        """Nothing: who reads what was written through a view is followed by its memory."""

    def _is_of_note(self, operation: Operation | None) -> bool:
        """Whether it may drop a weight, or a mask of ones."""
        return operation is not None and bool(operation.drops)

    def _save(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in self._seen:
            self._seen.add(storage._cdata)
            self._held.append(tensor.detach())
            self.kept.append((self._slot, storage.nbytes()))
        return tensor


def with_saved(program: Program, saved: Mapping[int, int], once: int) -> Program:
    """Return what ran in training mode with the bytes that each layer keeps.

    Args:
        program: What ran.
        saved: Bytes that each layer keeps for one sample, by its number.
        once: Bytes that are kept whatever the size of the batch.
    """
    layers = tuple(replace(one, saved=saved.get(i, 0)) for i, one in enumerate(program.layers))
    return replace(program, layers=layers, saved_once=once)


def growing(kept: Sequence[tuple[int, int]], batch: int) -> tuple[Counter[int], int]:
    """Return what each layer keeps for a sample, and what is kept once, from a prime batch.

    What divides by the prime grows with the batch.
    """
    each: Counter[int] = Counter()
    once = 0
    for slot, size in kept:
        if slot >= 0 and size % batch == 0:
            each[slot] += size // batch
        else:
            once += size
    return each, once


def differing(
    kept: Sequence[tuple[int, int]], more: Sequence[tuple[int, int]], samples: int
) -> tuple[Counter[int], int]:
    """Return the same from a batch and from one that has so many samples more."""
    first, second = _by_slot(kept), _by_slot(more)
    each = Counter({slot: (second[slot] - size) // samples for slot, size in first.items()})
    once = first.total() - samples * each.total()
    return each, once


def _by_slot(kept: Sequence[tuple[int, int]]) -> Counter[int]:
    sizes: Counter[int] = Counter()
    for slot, size in kept:
        sizes[slot] += size
    return sizes
