"""The training step as a CUDA graph: recorded once for each shape of a batch, then launched whole.

A small network keeps a GPU busy for less time than Python takes to launch its kernels one by one. A
graph launches all of them at once. What Python does happens only while the graph is recorded:
numbers freeze, tensors keep their addresses, and nothing can be read back. So the number of the
step and the learning rates live on the device, what the recording moved is put back, and whatever
else Python holds is compared with what it was then.
"""

import gc
import pickle
import random
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from operator import is_
from pathlib import Path
from time import perf_counter
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import SGD, Adagrad, Adam, AdamW, Optimizer

from constrained_cnn.errors import InvalidInputError, check_choice, reason_of
from constrained_cnn.training._evaluation import EXPLAINED
from constrained_cnn.training._executor import EagerExecutor, Executor, Parts, training_step
from constrained_cnn.training._memory import is_out_of_memory

EXECUTORS = ("auto", "eager", "graph")
MOST_GRAPHS = 4
REHEARSALS = 3
FUSED_KERNELS = ((SGD, "sgd"), (Adam, "adam"), (AdamW, "adamw"), (Adagrad, "adagrad"))

Result = TypeVar("Result")
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


def prepare_optimizer(optimizer: Optimizer, device: torch.device) -> str | None:
    """Make an optimizer read nothing on the host in its step, or return why that cannot be.

    Its learning rates become float32 tensors on the device, one for each group; it uses the fused
    kernels of torch where the device has them, else the ``capturable`` way; state that lives on the
    host moves to the device. What it computes stays the same up to rounding. Called again it finds
    nothing to do, and where a state was loaded meanwhile it makes good what that undid.
    """
    name = type(optimizer).__name__
    groups = optimizer.param_groups
    parameters = [part for group in groups for part in group["params"]]
    if not all(_is_on(part, device) for part in parameters):
        return f"{name} moves parameters that are not on {device}"
    if any(group.get("differentiable") for group in groups):
        return f"{name} is differentiable"
    fused = _has_fused_kernel(optimizer, device)
    fused = fused and all(part.is_floating_point() for part in parameters)
    if not fused and not all("capturable" in group for group in groups):
        return (
            f"{name} knows neither fused nor capturable, so its step reads numbers on the host; "
            "SGD, AdamW and most other optimizers of torch do not have to"
        )
    taken: set[int] = set()
    for group in groups:
        # Not foreach with fused, as some optimizers look at foreach first.
        chosen = {"foreach": not fused, "fused": fused, "capturable": True}
        group.update({key: value for key, value in chosen.items() if key in group})
        rate = group["lr"]
        fits = isinstance(rate, Tensor) and _is_on(rate, device) and rate.dtype == torch.float32
        if not fits or rate.ndim or id(rate) in taken:  # torch gives all groups the same tensor
            group["lr"] = torch.tensor(float(rate), dtype=torch.float32, device=device)
        taken.add(id(group["lr"]))
    for state in optimizer.state.values():
        for key, value in state.items():
            if isinstance(value, Tensor) and not _is_on(value, device):
                dtype = torch.float32 if key == "step" else value.dtype
                state[key] = value.to(device, dtype)
    return None


def _is_on(tensor: Tensor, device: torch.device) -> bool:
    return tensor.device.type == device.type and device.index in (None, tensor.device.index)


def _has_fused_kernel(optimizer: Optimizer, device: torch.device) -> bool:
    """Whether torch has a fused step for it that takes the rate as a tensor: depends on version."""
    for kind, name in FUSED_KERNELS:
        if isinstance(optimizer, kind):
            operator, key = f"aten::_fused_{name}_.tensor_lr", device.type.upper()
            return bool(torch._C._dispatch_has_kernel_for_dispatch_key(operator, key))
    return False


class Recorder(Protocol):
    """Runs steps and records them. A test puts a stand-in here that needs no GPU."""

    def run(self, step: Callable[[], Result]) -> Result:
        """Run a step in the place where steps are recorded."""

    def rehearse(self, step: Callable[[], object]) -> None:
        """Run a step, and raise RuntimeError where the host reads from the device."""

    def capture(self, step: Callable[[], Result]) -> tuple[Callable[[], None], Result]:
        """Record a step without executing it.

        Returns:
            What executes it, and what it returned while it was recorded.
        """


class CudaRecorder:
    """Records on a CUDA device, each graph in a memory pool of its own.

    Everything happens on one stream beside the current one, with the order of the two kept, and no
    step runs on the current one. For as long as anything of a backward pass is held, autograd
    remembers the stream of its weights, and a recording that waits for another stream breaks.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)

    def run(self, step: Callable[[], Result]) -> Result:
        """Run a step after what the current stream has to do, and before what it will have to."""
        with torch.cuda.device(self._device):
            current = torch.cuda.current_stream()
            self._stream.wait_stream(current)
            try:
                with torch.cuda.stream(self._stream):
                    return step()
            finally:
                current.wait_stream(self._stream)

    def rehearse(self, step: Callable[[], object]) -> None:
        """Run a step, with torch watching for what makes the host wait.

        A recording would fail there as well, but leaves more behind that has to be cleaned up.
        """
        before = torch.cuda.get_sync_debug_mode()
        with warnings.catch_warnings():
            # Torch warns that the mode does not see everything. The recording does.
            warnings.simplefilter("ignore")
            torch.cuda.set_sync_debug_mode("error")
        try:
            self.run(step)
        finally:
            torch.cuda.set_sync_debug_mode(before)

    def capture(self, step: Callable[[], Result]) -> tuple[Callable[[], None], Result]:
        """Record a step; where that fails, leave stream and random numbers in working order."""
        graph = torch.cuda.CUDAGraph()
        failure: BaseException | None = None
        collecting = gc.isenabled()
        gc.disable()  # freeing some other graph or memory in the middle would end the recording
        try:
            with (
                torch.cuda.device(self._device),
                # torch.cuda.graph enters it too, and does not give it back where its end fails.
                torch.cuda.stream(self._stream),
                # Other threads may do as they like meanwhile: a DataLoader that pins memory does.
                torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"),
            ):
                try:
                    result = step()
                except BaseException as error:
                    failure = error
                    raise
        except BaseException:
            self._clean_up()
            if failure is not None:
                raise failure from None  # not what the end of a broken recording says
            raise
        finally:
            failure = None  # else it would hold, through its traceback, itself and the graph
            if collecting:
                gc.enable()
        return graph.replay, result

    def _clean_up(self) -> None:
        """Make random numbers work after a recording that failed."""
        torch.cuda.synchronize(self._device)
        try:
            torch.empty(1, device=self._device).uniform_()
        except RuntimeError:
            # In older torch the generator goes on believing that it is recorded. A copy does not.
            with torch.cuda.device(self._device):
                index = torch.cuda.current_device()
            generator = torch.cuda.default_generators[index]
            generator.graphsafe_set_state(generator.clone_state())


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
        self._watched = _Watched(parts.model)
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
                self._graphs.clear()
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

    def _step_eagerly(
        self, inputs: Tensor, targets: Tensor, index: int
    ) -> tuple[Tensor, Tensor | None]:
        first = self._losses is None
        if first:
            # Once more, as a checkpoint may have been loaded since.
            self._failure = prepare_optimizer(self.parts.optimizer, self._device)
        loss, count = self._recorder.run(lambda: self._eager.step(inputs, targets, index))
        if first:
            self._losses = loss.new_zeros(self._steps)
            self._loss_of = self._losses.unbind()
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
        before, drawn = _inventory(self.parts, self._device), self._drawn()
        kept = _Kept(self.parts, self._device, own)
        # Unless it is recorded, the exchange reads on the host which gradients are missing. So the
        # rehearsal that watches for such reads goes without it.
        alone = replace(self.parts, exchange=None)
        done = False
        try:
            with _settings_for(self._device):
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
            self._recorded = _inventory(self.parts, self._device)
            self._watched = _Watched(self.parts.model)
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
        here = self._numbers == self._position
        torch.where(here, loss.to(self._losses.dtype), self._losses, out=self._losses)
        if count is not None:
            torch.where(here, count, self._counts, out=self._counts)
        self._position.add_(1)
        return count is not None

    def _drawn(self) -> list[bytes]:
        return _drawn_on_host(self.parts, self._device)

    def _check_moved(self, before: dict[str, Any], drawn: list[bytes]) -> None:
        """Raise RuntimeError if the steps since ``before`` moved what a graph would freeze."""
        change = _change(before, _inventory(self.parts, self._device))
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
        change = _change(self._recorded, _inventory(self.parts, self._device))
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


@contextmanager
def _settings_for(device: torch.device) -> Iterator[None]:
    """Set for a while how torch chooses kernels and casts, as a recording needs it."""
    backend = torch.backends.cudnn
    benchmark = backend.benchmark
    # Trying kernels out is done in the rehearsals, and pays as the choice holds for the whole run.
    repeatable = torch.are_deterministic_algorithms_enabled() or backend.deterministic
    backend.benchmark = not repeatable
    try:
        # A weight that autocast has cast and kept would never be cast again.
        with torch.autocast(
            device.type,
            dtype=torch.get_autocast_dtype(device.type),
            enabled=torch.is_autocast_enabled(device.type),
            cache_enabled=False,
        ):
            yield
    finally:
        backend.benchmark = benchmark


@dataclass(frozen=True)
class _Place:
    """Where something is. Holding it keeps the address from being given to something else."""

    address: int
    held: Any = field(compare=False, repr=False)


class _Watched:
    """What is looked at before every step: the mode of each module, and which its weights are.

    All the rest would take too long, and is looked at once an epoch.
    """

    def __init__(self, model: nn.Module) -> None:
        parts = list(model.modules())
        self._values = [vars(part) for part in parts]
        self._modes = [part.training for part in parts]
        places = [(part._parameters, name) for part in parts for name in part._parameters]
        self._holders = [holder for holder, _ in places]
        self._names = [name for _, name in places]
        self._weights = [holder[name] for holder, name in places]

    def same(self) -> bool:
        """Whether all is as it was when this object was made."""
        if [values["training"] for values in self._values] != self._modes:
            return False
        now = map(dict.get, self._holders, self._names)
        return all(map(is_, now, self._weights))


PLAIN = (bool, int, float, complex, str, bytes, type, type(None), torch.dtype, torch.device)
MODULE_OWN = frozenset(vars(nn.Module())) - {"training"}
MOST_ITEMS = 1000  # of a longer container, such as a vocabulary, only the length is looked at
OPTIMIZER_OWN = ("state", "param_groups", "defaults")


def _inventory(parts: Parts, device: torch.device) -> dict[str, Any]:
    """Return by name what a step takes from Python: numbers, and the places of tensors."""
    return {name: _frozen(value, device) for name, value in _reachable(parts).items()}


def _frozen(value: Any, device: torch.device) -> Any:
    if isinstance(value, PLAIN):
        return value
    if not isinstance(value, Tensor) or value.layout != torch.strided:
        return _Place(id(value), value)
    if value.numel() == 1 and not _is_on(value, device):
        return value.item()  # on the host it is a number like any other, which freezes
    return _Place(value.data_ptr(), value.detach())


def _change(before: dict[str, Any], after: dict[str, Any]) -> str | None:
    """Return the first difference in words; None if there is none."""
    for name, old in before.items():
        if name not in after:
            return f"{name} has gone"
        new = after[name]
        if old is new or old == new:
            continue
        if isinstance(new, _Place):
            return f"{name} has been replaced"
        return f"{name} went from {old!r} to {new!r}"
    return next((f"{name} has come" for name in after if name not in before), None)


def _reachable(parts: Parts) -> dict[str, Any]:
    """Return what a step can read or change and that is there after it, down to plain values.

    What objects other than modules, tensors and containers hold is not looked at.
    """
    optimizer = parts.optimizer
    moved = {id(part) for group in optimizer.param_groups for part in group["params"]}
    found: dict[str, Any] = {}
    seen: set[int] = set()

    def look(name: str, value: Any) -> None:
        if isinstance(value, Tensor):
            # With a grad_fn it is left over from a forward pass, and made anew in the next.
            if value.grad_fn is None:
                found[name] = value
        elif isinstance(value, nn.Module | dict | list | tuple | set):
            if id(value) not in seen or isinstance(value, tuple):
                seen.add(id(value))
                look_into(name, value)
        else:
            found[name] = value

    def look_into(name: str, value: Any) -> None:
        if isinstance(value, nn.Module):
            look_into_module(name, value)
            return
        found[f"len({name})"] = len(value)
        if len(value) <= MOST_ITEMS:
            for key, item in value.items() if isinstance(value, dict) else enumerate(value):
                look(f"{name}[{key!r}]", item)

    def look_into_module(name: str, module: nn.Module) -> None:
        found[name] = type(module)
        for key, value in vars(module).items():
            if key not in MODULE_OWN:
                look(f"{name}.{key}", value)
        for key, buffer in module._buffers.items():
            found[f"{name}.{key}"] = buffer
        for key, weight in module._parameters.items():
            found[f"{name}.{key}"] = weight
            if weight is not None:
                found[f"{name}.{key}.requires_grad"] = weight.requires_grad
                if id(weight) not in moved:
                    # The optimizer does not reset this gradient: it adds up from step to step.
                    found[f"{name}.{key}.grad"] = weight.grad
        for key, child in module._modules.items():
            look(f"{name}.{key}", child)

    look("model", parts.model)
    look("loss", parts.loss)
    if parts.average is not None:
        look("average", parts.average.module)
        found["average.kept"] = parts.average.state_dict()["kept"]
    for key, value in vars(optimizer).items():
        if key not in OPTIMIZER_OWN:
            look(f"optimizer.{key}", value)
    for number, group in enumerate(optimizer.param_groups):
        look(f"optimizer.param_groups[{number}]", group)
        for place, part in enumerate(group["params"]):
            if part in optimizer.state:
                name = f"the optimizer's state of parameter {place} in group {number}"
                look(name, optimizer.state[part])
    return found


def _generators(parts: Parts, device: torch.device) -> list[Any]:
    """Return what a step could draw random numbers from, the modules of Python and NumPy too."""
    kinds = (torch.Generator, random.Random, np.random.Generator, np.random.RandomState)
    own = [value for value in _reachable(parts).values() if isinstance(value, kinds)]
    generators = [random, np.random, torch.default_generator, *own]
    if device.type == "cuda":
        number = torch.cuda.current_device() if device.index is None else device.index
        generators.append(torch.cuda.default_generators[number])
    return generators


def _where(generator: Any) -> Any:
    """Return the state of a generator."""
    if isinstance(generator, np.random.Generator):
        return generator.bit_generator.state
    return generator.getstate() if hasattr(generator, "getstate") else generator.get_state()


def _put(generator: Any, state: Any) -> None:
    if isinstance(generator, np.random.Generator):
        generator.bit_generator.state = state
    elif hasattr(generator, "setstate"):
        generator.setstate(state)
    else:
        generator.set_state(state)


def _drawn_on_host(parts: Parts, device: torch.device) -> list[bytes]:
    """Return the states of the generators whose numbers a graph would freeze."""
    return [
        pickle.dumps(state.tolist() if isinstance(state, Tensor) else state)
        for generator in _generators(parts, device)
        if not isinstance(generator, torch.Generator) or generator.device.type != device.type
        for state in (_where(generator),)
    ]


class _Kept:
    """What a rehearsal and a recording may move, to be put back bit by bit and in place."""

    def __init__(self, parts: Parts, device: torch.device, own: Iterable[Tensor]) -> None:
        reachable = list(_reachable(parts).values())
        tensors = [value for value in (*reachable, *own) if isinstance(value, Tensor)]
        tensors = [value for value in tensors if value.layout == torch.strided]
        self._aliases = [(value, value.detach()) for value in tensors]
        # Whole storages, as tensors may overlap.
        storages = {value.data_ptr(): value for value in (t.untyped_storage() for t in tensors)}
        whole = [
            torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)
            for storage in storages.values()
        ]
        self._contents = [(part, part.clone()) for part in whole]
        self._random = [(one, _where(one)) for one in _generators(parts, device)]
        self._containers = [(one, one.copy()) for one in _containers(parts)]
        weights = [weight for weight in tensors if isinstance(weight, nn.Parameter)]
        self._gradients = [(weight, weight.grad) for weight in weights]

    def put_back(self, *, structure: bool) -> None:
        """Put back gradients, the contents of tensors, and random states.

        Args:
            structure: Whether to put back as well which objects there are.
        """
        if structure:
            for held, copy in self._containers:
                held.clear()
                held.extend(copy) if isinstance(held, list) else held.update(copy)
            for tensor, alias in self._aliases:
                if tensor.data_ptr() != alias.data_ptr():
                    tensor.data = alias
        for weight, gradient in self._gradients:
            weight.grad = gradient
        for content, copy in self._contents:
            content.copy_(copy)
        for generator, state in self._random:
            _put(generator, state)


def _containers(parts: Parts) -> Iterator[Any]:
    """Yield the dictionaries, lists and sets in which a step could put something."""
    for root in (parts.model, parts.loss):
        for module in root.modules() if isinstance(root, nn.Module) else ():
            values = vars(module)
            yield from (values, module._parameters, module._buffers)
            for name, value in values.items():
                if name not in MODULE_OWN and isinstance(value, dict | list | set):
                    yield value
    optimizer = parts.optimizer
    yield from (vars(optimizer), optimizer.state, *optimizer.state.values())
    yield from optimizer.param_groups
