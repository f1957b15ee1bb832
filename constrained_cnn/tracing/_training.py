"""Watch a network run in training mode, and what autograd keeps of it."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from constrained_cnn.graph import TrainingLayer, TrainingRun
from constrained_cnn.tracing._call import Call, tensors
from constrained_cnn.tracing._rules import SOURCES
from constrained_cnn.tracing._settings import DROPOUTS, settings_of
from constrained_cnn.tracing._watcher import Watcher, on_meta, operation_name, run

# Of these a network can make a dropout of its own.
_DRAWS = frozenset(
    """
    bernoulli cauchy exponential geometric log_normal multinomial normal poisson rand rand_like
    randint randint_like randn randn_like random randperm rrelu uniform
    """.split()  # noqa: SIM905
)


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
        self._depends: dict[int, Tensor] = {}  # an id belongs to a tensor only while it lives
        self._numbers: dict[int, int] = {}
        self._shapes: list[tuple[int, ...]] = []
        self._writes: dict[int, list[int]] = {}  # by piece of memory: what was written in place
        self._turns: Counter[tuple[str, str]] = Counter()
        self._draws: list[str] = []
        for tensor in inputs:
            self._new_value(tensor)
        self._seen = {
            part.untyped_storage()._cdata for part in (*shadow.parameters(), *shadow.buffers())
        }
        self._held: list[Tensor] = []  # so that no address comes twice
        self._layers: list[TrainingLayer | None] = []
        self._saved: list[int] = []
        self._constant = 0

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Watch all that runs meanwhile, and what autograd keeps."""
        with saved_tensors_hooks(self._save, lambda tensor: tensor), super().watching():
            yield

    def run(self, outputs: Any = (), problem: str = "", draws: Sequence[str] = ()) -> TrainingRun:
        """Return what was seen of a network that gave ``outputs``.

        Args:
            outputs: What it gave.
            problem: Why it did not run to its end.
            draws: Random numbers of others that it drew.
        """
        layers = (
            replace(layer, saved=saved)
            for layer, saved in zip(self._layers, self._saved, strict=True)
            if layer is not None
        )
        return TrainingRun(
            tuple(layers),
            self._constant,
            problem,
            tuple(self._shapes),
            tuple(number for tensor in tensors(outputs) for number in self._now_in(tensor)),
            (*self._draws, *draws),
        )

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        sources = list(tensors((args, kwargs)))
        given = tuple(number for tensor in sources for number in self._now_in(tensor))
        op = operation_name(func)
        if op in _DRAWS:
            self._draws.append(f"{self.path}: {op}" if self.path else op)
        if not given and op not in DROPOUTS:  # which may drop a weight, or a mask of ones
            return func(*args, **kwargs)
        args, kwargs = on_meta(sources, args, kwargs)
        position = len(self._layers)
        self._layers.append(None)
        self._saved.append(0)
        outcome = run(func, args, kwargs)
        made = tuple(sources[:1] if op == "setitem" else tensors(outcome))
        if not made or op in SOURCES:
            self._layers.pop(), self._saved.pop()
            return outcome
        call = Call(op, args, kwargs, made, {})
        self._turns[self.path, op] += 1
        self._layers[position] = TrainingLayer(
            op,
            self.path,
            settings_of(func, call),
            0,
            tuple(map(self._new_value, made)),
            given,
            self._turns[self.path, op],
        )
        for tensor in made:
            if any(tensor is source for source in sources):
                memory = tensor.untyped_storage()._cdata
                self._writes.setdefault(memory, []).append(self._numbers[id(tensor)])
        return outcome

    def _now_in(self, tensor: Tensor) -> list[int]:
        """Return the value that a tensor holds; more than one after writes through its views."""
        if id(tensor) not in self._depends:
            return []
        own = self._numbers[id(tensor)]
        later = [n for n in self._writes.get(tensor.untyped_storage()._cdata, ()) if n > own]
        # What was written read what was there before, so that one write stands for both.
        return later if len(later) == 1 else [own, *later]

    def _new_value(self, tensor: Tensor) -> int:
        number = len(self._shapes)
        self._depends[id(tensor)] = tensor
        self._numbers[id(tensor)] = number
        self._shapes.append(tuple(tensor.shape[1:]))
        return number

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
