"""The training step as a CUDA graph: recorded once for each shape of a batch, then launched whole.

A small network keeps a GPU busy for less time than Python takes to launch its kernels one by one. A
graph launches all of them at once. What Python does happens only while the graph is recorded:
numbers freeze, tensors keep their addresses, and nothing can be read back. So the number of the
step and the learning rates live on the device, what the recording moved is put back, and whatever
else Python holds is compared with what it was then.
"""

import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from constrained_cnn.errors import InvalidInputError, check_choice, reason_of
from constrained_cnn.training._evaluation import EXPLAINED
from constrained_cnn.training._executor import EagerExecutor, Executor, Parts, training_step
from constrained_cnn.training._frozen import Kept, Watched, change_between, drawn_on_host, inventory
from constrained_cnn.training._memory import is_out_of_memory
from constrained_cnn.training._optimizers import prepare_optimizer
from constrained_cnn.training._recorder import CudaRecorder, Recorder, settings_for

EXECUTORS = ("auto", "eager", "graph")
MOST_GRAPHS = 4
REHEARSALS = 3

Shape = tuple[Any, ...]


def make_executor(
    wanted: str,
    parts: Parts,
    device: torch.device,
    steps_per_epoch: int | None,
    *,
    agree: Callable[[bool], bool] | None = None,
) -> Executor:
    """Return what runs the training steps.

    Args:
        wanted: ``"eager"``; ``"graph"``, with a warning where there can be none; ``"auto"``, a
            graph where there can be one.
        parts: What a step works on.
        device: Where it works.
        steps_per_epoch: Steps in an epoch; None if unknown, which rules a graph out.
        agree: As for :class:`GraphExecutor`.

    Raises:
        InvalidInputError: If a graph is wanted without a CUDA device.
    """
    check_choice("executor", wanted, EXECUTORS)
    if wanted == "graph" and device.type != "cuda":
        raise InvalidInputError(
            f"executor='graph': needs a CUDA device, and this run is on {str(device)!r}; 'auto' "
            "takes a graph where there can be one"
        )
    if wanted == "eager" or device.type != "cuda":
        return EagerExecutor(parts)
    reason = reason_against(parts, device, steps_per_epoch)
    if reason is None and steps_per_epoch is not None:
        recorder = CudaRecorder(device)
        return GraphExecutor(parts, device, steps_per_epoch, recorder=recorder, agree=agree)
    if wanted == "graph":
        warnings.warn(_fallback(str(reason)), stacklevel=2)
    return EagerExecutor(parts)


def reason_against(parts: Parts, device: torch.device, steps_per_epoch: int | None) -> str | None:
    """Prepare the optimizer, and return why there can be no graph; None if nothing is against it.

    What the step itself does is seen only when it is recorded.
    """
    if steps_per_epoch is None:
        return "train does not say how many batches an epoch has (no len)"
    for name, module in parts.model.named_modules():
        # A fused optimizer takes no sparse gradients, and one that does reads their sizes.
        if getattr(module, "sparse", False) is True:
            return f"{name or 'model'} has sparse gradients (sparse=True)"
    return prepare_optimizer(parts.optimizer, device)


@dataclass(frozen=True)
class _Graph:
    """A recorded step.

    Attributes:
        inputs: Where it reads its inputs.
        targets: Where it reads its targets.
        replay: Executes it.
        counts: Whether it counts correct answers.
    """

    inputs: Tensor
    targets: Tensor
    replay: Callable[[], None]
    counts: bool


class GraphExecutor:
    """Runs the training step as a CUDA graph, one for each of the first few shapes of a batch.

    The first step, and one of a further shape, is taken operation by operation. The first makes
    what is made on first use (momentum, connections between processes), so that a recording finds
    it there. When a shape comes up, the step is rehearsed and recorded, all that the rehearsals
    moved is put back, and the graph takes the real step. It consists of all that
    :func:`training_step` does; per step the host copies a batch and launches one graph.

    Gradients lie in the memory of the graph, which writes them anew in every step: what becomes of
    ``grad`` afterwards, in whoever's hands, changes nothing. Hooks and whatever else is Python run
    when a step is recorded and not when it is launched.

    If the step cannot be recorded, everything is as it was before the attempt, a warning says why,
    and the run goes on operation by operation.

    Several processes record at the same step, as NCCL asks: whether an exchange is part of a graph
    must be the same in all. So they record one graph, of the batches before the last of an epoch.
    The last, whose share may be of a known shape in one process and of a new one in another, is
    never taken as a graph, and any other shape is an error.

    Args:
        parts: What a step works on.
        device: Where it works.
        steps_per_epoch: Steps in an epoch.
        recorder: Records steps.
        agree: Given whether this process could record the step, whether all could; None in a
            single process.

    Attributes:
        name: ``"graph"``; ``"eager"`` once the step could not be recorded.
        parts: What a step works on.
        capture_seconds: Time spent on recording.
    """

    def __init__(
        self,
        parts: Parts,
        device: torch.device,
        steps_per_epoch: int,
        *,
        recorder: Recorder,
        agree: Callable[[bool], bool] | None = None,
    ) -> None:
        self.name = "graph"
        self.parts = parts
        self.capture_seconds = 0.0
        self._device = device
        self._steps = steps_per_epoch
        self._recorder = recorder
        self._agree = agree
        self._eager = EagerExecutor(parts)
        self._graphs: dict[Shape, _Graph] = {}
        self._failure: str | None = None
        self._recorded: dict[str, Any] = {}
        self._watched = Watched(parts.model)
        table = parts.rates.table
        self._rates: Tensor | None = None
        if table is not None:
            # One row for each group; float32 as the tensors that hold the rates are.
            self._rates = torch.tensor(table, dtype=torch.float32, device=device).T.contiguous()
        # The number of the step, and those of the steps of its epoch, which say where to write.
        self._position = torch.zeros(1, dtype=torch.int64, device=device)
        self._numbers = torch.arange(steps_per_epoch, device=device)
        self._next = -1  # what the device holds as the number of the step
        self._losses: Tensor | None = None
        self._counts = torch.zeros(steps_per_epoch, dtype=torch.int64, device=device)
        self._count_of = self._counts.unbind()
        self._loss_of: tuple[Tensor, ...] = ()

    def step(self, inputs: Tensor, targets: Tensor, index: int) -> tuple[Tensor, Tensor | None]:
        """Take one step; see :class:`Executor`.

        Raises:
            InvalidInputError: If something changed that the graph cannot follow.
        """
        # Beyond the table this raises, where the device could only crash.
        self.parts.rates.of(index)
        graph = None if self.name == "eager" else self._graph_for(inputs, targets, index)
        if graph is None:
            # A batch that is at fault itself raises here, as without a graph.
            result = self._step_eagerly(inputs, targets, index)
            if self._failure is not None and self.name == "graph":
                self.name = "eager"
                self.close()
                warnings.warn(_fallback(self._failure), stacklevel=2)
            return result
        if index != self._next or index % self._steps == 0:
            self._begin(index)
        elif not self._watched.same():
            self._look_closely()
        graph.inputs.copy_(inputs)
        graph.targets.copy_(targets)
        graph.replay()
        self._next = index + 1
        place = index % self._steps
        return self._loss_of[place], self._count_of[place] if graph.counts else None

    def close(self) -> None:
        """Give back the graphs."""
        self._graphs.clear()
        self._recorder.close()

    def _step_eagerly(
        self, inputs: Tensor, targets: Tensor, index: int
    ) -> tuple[Tensor, Tensor | None]:
        first = self._losses is None
        if first:
            # Once more, as a checkpoint may have been loaded since.
            self._failure = prepare_optimizer(self.parts.optimizer, self._device)
        loss, count = self._recorder.run(lambda: self._eager.step(inputs, targets, index))
        if first:
            # Each is one number, or several where the step is that of several networks.
            self._losses = loss.new_zeros((self._steps, *loss.shape))
            self._loss_of = self._losses.unbind()
            if count is not None:
                self._counts = count.new_zeros((self._steps, *count.shape))
                self._count_of = self._counts.unbind()
        return loss, count

    def _graph_for(self, inputs: Tensor, targets: Tensor, index: int) -> _Graph | None:
        """Return the graph for a batch, recorded now if its shape is new; None for no graph."""
        last = index % self._steps == self._steps - 1
        if self._losses is None or (last and self._agree is not None):
            return None
        shape = _shape_of(inputs, targets)
        graph = self._graphs.get(shape)
        if graph is not None or len(self._graphs) >= MOST_GRAPHS:
            return graph
        if inputs.requires_grad or targets.requires_grad:
            return None
        if self._graphs:
            self._look_closely()
        if self._graphs and self._agree is not None:
            raise InvalidInputError(
                f"a batch of {tuple(inputs.shape)} before the last of its epoch, and the others "
                "were of another shape: several processes with a CUDA graph need equal batches; "
                "use executor='eager'"
            )
        started = perf_counter()
        graph = self._attempt(inputs, targets, index)
        self.capture_seconds += perf_counter() - started
        if graph is not None:
            self._graphs[shape] = graph
        return graph

    def _attempt(self, inputs: Tensor, targets: Tensor, index: int) -> _Graph | None:
        """Record the step, or say in ``_failure`` why not."""
        graph = self._failure = None
        try:
            graph = self._record(inputs, targets, index)
        except EXPLAINED as error:
            if is_out_of_memory(error):
                raise  # it may fit without a graph, but that is for the caller to decide
            self._failure = _said_by(error)
        if self._agree is not None and not self._agree(graph is not None):
            graph = None
            self._failure = self._failure or "another process cannot record its step"
        return graph

    def _record(self, inputs: Tensor, targets: Tensor, index: int) -> _Graph:
        inputs, targets = (torch.empty_like(part).copy_(part) for part in (inputs, targets))
        assert self._losses is not None
        own = (self._position, self._numbers, self._losses, self._counts)
        self.parts.optimizer.zero_grad(set_to_none=True)
        before, drawn = inventory(self.parts, self._device), self._drawn()
        kept = Kept(self.parts, self._device, own)
        # Unless it is recorded, the exchange reads on the host which gradients are missing. So the
        # rehearsal that watches for such reads goes without it.
        alone = replace(self.parts, exchange=None)
        done = False
        try:
            with settings_for(self._device):
                for rehearsal in range(1, REHEARSALS + 1):
                    self._position.fill_(index)
                    if rehearsal < REHEARSALS:
                        self._recorder.run(lambda: self._whole_step(self.parts, inputs, targets))
                    else:
                        self._recorder.rehearse(lambda: self._whole_step(alone, inputs, targets))
                self._check_moved(before, drawn)
                self._position.fill_(index)
                replay, counts = self._recorder.capture(
                    lambda: self._whole_step(self.parts, inputs, targets)
                )
                self._check_moved(before, drawn)
            done = True
        finally:
            kept.put_back(structure=not done)
        if not self._recorded:
            self._recorded = inventory(self.parts, self._device)
            self._watched = Watched(self.parts.model)
        return _Graph(inputs, targets, replay, counts)

    def _whole_step(self, parts: Parts, inputs: Tensor, targets: Tensor) -> bool:
        """Do all that is recorded; return whether correct answers are counted."""
        assert self._losses is not None
        if self._rates is not None:
            groups = parts.optimizer.param_groups
            for group, rates in zip(groups, self._rates.unbind(), strict=True):
                torch.index_select(rates, 0, self._position, out=group["lr"].view(1))
        loss, count = training_step(parts, inputs, targets)
        # Not index_copy_, which becomes a sort under deterministic algorithms.
        here = (self._numbers == self._position).view(-1, *[1] * loss.ndim)
        torch.where(here, loss.to(self._losses.dtype), self._losses, out=self._losses)
        if count is not None:
            torch.where(here, count, self._counts, out=self._counts)
        self._position.add_(1)
        return count is not None

    def _drawn(self) -> list[bytes]:
        return drawn_on_host(self.parts, self._device)

    def _check_moved(self, before: dict[str, Any], drawn: list[bytes]) -> None:
        """Raise RuntimeError if the steps since ``before`` moved what a graph would freeze."""
        change = change_between(before, inventory(self.parts, self._device))
        if change is None and drawn != self._drawn():
            change = "random numbers are drawn on the host"
        if change is not None:
            raise RuntimeError(f"a step changes what Python holds: {change}")

    def _begin(self, index: int) -> None:
        """Tell the device which step comes, at the start of an epoch or after a jump."""
        self._look_closely()
        self._position.fill_(index)
        start = index - index % self._steps
        torch.arange(start, start + self._steps, out=self._numbers)

    def _look_closely(self) -> None:
        change = change_between(self._recorded, inventory(self.parts, self._device))
        if change is not None:
            raise InvalidInputError(
                f"since the training step was recorded as a CUDA graph, {change}; the graph goes "
                "on as it was recorded, so leave the network as it is while it trains, or use "
                "executor='eager'"
            )


def _fallback(reason: str) -> str:
    return (
        "the training step cannot be a CUDA graph, so the run goes on operation by operation, "
        f"which is slower: {reason}. A graph needs steps that read nothing on the host (no "
        ".item(), no branch on a tensor) and change tensors in place; executor='eager' does "
        "without one and without this warning"
    )


def _shape_of(*parts: Tensor) -> Shape:
    return tuple(
        (part.shape, part.stride(), part.dtype, part.device, part.requires_grad) for part in parts
    )


def _said_by(error: BaseException) -> str:
    """Return what an error says, and where, outside torch and this package."""
    folders = (str(Path(torch.__file__).parent), str(Path(__file__).parent))
    frames = traceback.extract_tb(error.__traceback__)
    frames_outside = [frame for frame in frames if not frame.filename.startswith(folders)]
    said = reason_of(error)
    if not frames_outside:
        return said
    frame = frames_outside[-1]
    return f"{said} ({frame.filename}, line {frame.lineno}, in {frame.name})"
