"""Watch a network run in training mode, and what autograd keeps of it."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from constrained_cnn.graph import TrainingLayer, TrainingRun
from constrained_cnn.tracing._call import Call, tensors
from constrained_cnn.tracing._rules import SOURCES
from constrained_cnn.tracing._settings import settings_of
from constrained_cnn.tracing._watcher import Watcher, on_meta, operation_name, run


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
