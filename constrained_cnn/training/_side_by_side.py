"""Several runs led side by side on one device: every step of theirs is one.

A GPU is far from busy with one small network. Here each network has a branch of the step, on a
stream of its own, and the branches run beside one another; the weights of all are moved by one
kernel. Captured as a CUDA graph that is a single launch for all of them.
"""

import copy
import functools
from collections import defaultdict
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from constrained_cnn.errors import (
    InvalidInputError,
    NonFiniteLossError,
    OutOfMemoryError,
    reason_of,
)
from constrained_cnn.training._average import Average
from constrained_cnn.training._evaluation import explained, no_stretching
from constrained_cnn.training._executor import Executor, Given, Parts, count_correct, outputs_of
from constrained_cnn.training._folder import RunFolder
from constrained_cnn.training._graph import make_executor
from constrained_cnn.training._history import History
from constrained_cnn.training._interrupt import InterruptGuard
from constrained_cnn.training._many import (
    FitOne,
    Fitted,
    SeedsProgress,
    say_fitted,
    seeded_model,
)
from constrained_cnn.training._memory import is_out_of_memory
from constrained_cnn.training._progress import Progress, Told
from constrained_cnn.training._run import Asked, Asking, Run, Steps
from constrained_cnn.training._schedule import Rates
from constrained_cnn.training._source import Data, ResidentSet
from constrained_cnn.training._timings import Stopwatch

Outcome = History | NonFiniteLossError


def fit_side_by_side(one: FitOne, seeds: Sequence[int]) -> list[Fitted]:
    """Train these seeds on the trainer's device, a step of all at a time."""
    trainer = one.trainer
    device, judged_on = trainer.device, one.options["judged_on"]
    shown = SeedsProgress(len(seeds), trainer.config.epochs, enabled=trainer.progress is not False)
    models, runs = [], []
    with InterruptGuard() as guard, ExitStack() as folders:
        # Once, for all of them.
        train, validation = _resident(one.train, device), one.validation
        if validation is not None:
            validation = _resident(validation, device)
        for seed in seeds:
            models.append(seeded_model(one.make_model, seed))
            own = None
            if one.folder is not None:
                own = folders.enter_context(RunFolder(one.folder / f"seed-{seed}"))
                own.check_free()
            plan = trainer.with_seed(seed)._plan(models[-1], train, validation, judged_on, own)
            runs.append(Run(plan, Stopwatch(device)))
        devices = [device] if device.type == "cuda" else []
        with torch.random.fork_rng(devices), no_stretching():
            told = [Told(functools.partial(shown.end_epoch, seed)) for seed in seeds]
            try:
                outcomes = go_side_by_side(runs, guard, told)
            except Exception:
                for run in runs:
                    with suppress(OSError):  # the error is what matters
                        run.keeper.forget()
                raise
    found = []
    for seed, model, outcome in zip(seeds, models, outcomes, strict=True):
        if isinstance(outcome, NonFiniteLossError):
            found.append(Fitted(seed, None, None, outcome))
        else:
            found.append(Fitted(seed, model, outcome))
        shown.end_seed(seed, say_fitted(found[-1]))
    return found


def _resident(data: Data, device: torch.device) -> Data:
    return data.to(device) if isinstance(data, ResidentSet) else data


def go_side_by_side(runs: Sequence[Run], guard: Asking, shown: Sequence[Progress]) -> list[Outcome]:
    """Start runs of equal length, lead them to their end, and return the history of each.

    A run that diverges is its error, and the others go on. The batches of all must have the same
    shapes, step by step, as they have where the runs differ by their seed.

    Args:
        runs: New runs of one device, and of one configuration but for the seed.
        guard: Whether to stop.
        shown: What is told how far each is.

    Raises:
        InvalidInputError: If their optimizers are of different kinds.
    """
    executor = _join(runs)
    outcomes: dict[int, Outcome] = {}
    asked: dict[int, Asked] = {}
    answers: Sequence[Any] = [None] * len(runs)  # what a generator is sent first
    stop = _Stop()
    with ExitStack() as stack:
        for run in runs:
            # Not when it ends: the branch of a run that diverged stays a part of the step.
            stack.callback(run.plan.model.eval)
        stack.callback(executor.close)
        leading: dict[int, Steps] = {}
        for number, (run, one) in enumerate(zip(runs, shown, strict=True)):
            leading[number] = run.steps(stop, one)
            stack.callback(leading[number].close)
        while True:
            stop.requested = guard.requested
            for number in list(leading):
                try:
                    asked[number] = leading[number].send(answers[number])
                except StopIteration as end:
                    outcomes[number] = end.value
                    del leading[number]
                except NonFiniteLossError as error:
                    outcomes[number] = error
                    del leading[number]
            if not leading:
                return [outcomes[number] for number in range(len(runs))]
            answers = _take(executor, [asked[number] for number in range(len(runs))])
            _share_state(executor, runs)


@dataclass
class _Stop:
    """Whether to stop, the same for all runs between two steps.

    One that stopped a step later than another would move it beyond its checkpoint.
    """

    requested: bool = False


def _take(executor: Executor, asked: Sequence[Asked]) -> Sequence[Given]:
    """Take the step of every network, and return what each gave."""
    # Not by its number in the run, which is not known of data without a length.
    latest = max(asked, key=lambda one: (one.epoch, one.step))
    now = latest.epoch, latest.step
    # The branch of a run that has ended stays a part of the step, and gets another one's batch.
    asked = [one if (one.epoch, one.step) == now else latest for one in asked]
    inputs = _stacked([one.inputs for one in asked], "inputs", latest)
    targets = _stacked([one.targets for one in asked], "targets", latest)
    try:
        with explained("train", latest.step, inputs, targets):
            losses, counts = executor.step(inputs, targets, latest.number)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise OutOfMemoryError(
            f"out of memory in step {latest.step} of epoch {latest.epoch}, of {len(asked)} seeds "
            f"side by side ({reason_of(error)}); give fewer at a time, such as "
            f"workers={max(1, len(asked) // 2)}, or a smaller batch_size",
            batch_size=len(latest.inputs),
            fits=None,
        ) from error
    hits = [None] * len(asked) if counts is None else counts.unbind()
    return list(zip(losses.unbind(), hits, strict=True))


def _stacked(parts: Sequence[Tensor], what: str, step: Asked) -> Tensor:
    try:
        return torch.stack(list(parts))
    except RuntimeError as error:
        shapes = sorted({tuple(part.shape) for part in parts})
        if len(shapes) == 1:
            raise
        raise InvalidInputError(
            f"train: step {step.step} of epoch {step.epoch} has {what} of the shapes {shapes} for "
            "different seeds, and seeds side by side need equal ones; give workers=1, which trains "
            "them one after another"
        ) from error


def _join(runs: Sequence[Run]) -> Executor:
    """Start the runs, and return what takes a step of all of them."""
    plan = runs[0].plan
    networks = Networks([run.plan.model for run in runs])
    decay = plan.config.weight_averaging
    average = None
    if decay is not None:
        average = Average(networks, decay)
        for run, network in zip(runs, average.module.children(), strict=True):
            run.average = average.of(network)
    for run in runs:
        run.start()
    own = [run.parts for run in runs]
    parts = Parts(
        networks,
        own[0].loss,
        _joined([one.optimizer for one in own]),
        _side_by_side([one.rates for one in own]),
        average,
        own[0].clip_gradient,
        step=branches_step,
        autocast=plan.config.autocast,
    )
    executor = make_executor(plan.executor, parts, plan.device, plan.train.steps)
    for run in runs:
        run.executor = executor
    return executor


class Networks(nn.Module):
    """Several networks, each with a batch of its own; on a GPU they run beside one another.

    Args:
        networks: The networks.
    """

    def __init__(self, networks: Sequence[nn.Module]) -> None:
        super().__init__()
        for number, network in enumerate(networks):
            self.add_module(str(number), network)
        self._streams: dict[torch.device, list[Any]] = {}

    def forward(self, inputs: Tensor) -> list[Tensor]:
        """Return the outputs of each network for its part of the inputs ``(K, N, ...)``."""
        if not inputs.is_cuda:
            return [network(own) for network, own in zip(self.children(), inputs, strict=True)]
        current = torch.cuda.current_stream(inputs.device)
        streams = self._streams_on(inputs.device)
        outputs = []
        for network, own, stream in zip(self.children(), inputs, streams, strict=True):
            stream.wait_stream(current)
            with torch.cuda.stream(stream):
                outputs.append(network(own))
        # The backward pass of each runs on the stream of its forward pass.
        for stream in streams:
            current.wait_stream(stream)
        return outputs

    def _streams_on(self, device: torch.device) -> list[Any]:
        if device not in self._streams:
            self._streams[device] = [torch.cuda.Stream(device) for _ in self.children()]
        return self._streams[device]

    def __deepcopy__(self, memo: dict[int, Any]) -> "Networks":
        # Streams cannot be copied.
        return Networks([copy.deepcopy(network, memo) for network in self.children()])


def branches_step(parts: Parts, inputs: Tensor, targets: Tensor) -> Given:
    """Move the weights of several networks once; nothing is read on the host.

    Args:
        parts: What the step works on; its model is :class:`Networks`.
        inputs: A batch for each ``(K, N, ...)``.
        targets: Their targets ``(K, N, ...)``.

    Returns:
        Losses ``(K,)`` and counts of correct answers ``(K,)``, or None.
    """
    parts.optimizer.zero_grad(set_to_none=True)
    pairs = list(zip(outputs_of(parts.model, inputs, parts.autocast), targets, strict=True))
    losses = torch.stack([parts.loss(outputs, own).reshape(()) for outputs, own in pairs])
    # The gradient of the sum is, for each network, that of its own loss.
    losses.sum().backward()
    if parts.clip_gradient is not None:
        for network in parts.model.children():
            torch.nn.utils.clip_grad_norm_(network.parameters(), parts.clip_gradient)
    parts.optimizer.step()
    if parts.average is not None:
        parts.average.update(parts.model)
    counts = [count_correct(outputs, own) for outputs, own in pairs]
    hits = [count for count in counts if count is not None]
    return losses.detach(), torch.stack(hits) if len(hits) == len(counts) else None


def _joined(optimizers: Sequence[Optimizer]) -> Optimizer:
    """Return one optimizer over the very groups of several.

    Raises:
        InvalidInputError: If they are of different kinds, or of the caller's own.
    """
    kinds = {type(one) for one in optimizers}
    names = sorted(kind.__name__ for kind in kinds)
    if len(kinds) > 1:
        raise InvalidInputError(f"optimizer: made {names}; several seeds at once need one kind")
    hooks = ("_optimizer_step_pre_hooks", "_optimizer_step_post_hooks")
    own = type(optimizers[0]).__module__.partition(".")[0] != "torch"
    if own or any(getattr(one, name, None) for one in optimizers for name in hooks):
        raise InvalidInputError(
            f"optimizer: made {names[0]}, {'a class' if own else 'with hooks'} of your own, which "
            "may not be able to move several networks at once; give workers=1, which trains the "
            "seeds one after another"
        )
    joined = copy.copy(optimizers[0])
    joined.param_groups = [group for one in optimizers for group in one.param_groups]
    joined.state = defaultdict(dict)
    for one in optimizers:
        joined.state.update(one.state)
    return joined


def _share_state(executor: Executor, runs: Sequence[Run]) -> None:
    """Let the optimizer of each run hold the state of its own weights, for its checkpoint."""
    joined = executor.parts.optimizer.state
    if sum(len(run.optimizer.state) for run in runs) == len(joined):
        return  # a weight whose first gradient comes late gets its state late
    for run in runs:
        own = run.optimizer
        for group in own.param_groups:
            for weight in group["params"]:
                if weight in joined:
                    own.state[weight] = joined[weight]


def _side_by_side(rates: Sequence[Rates]) -> Rates:
    """Return the rates of all parameter groups of all runs."""
    constant = [rate for one in rates for rate in one.constant]
    tables = [one.table for one in rates if one.table is not None]
    if not tables:
        return Rates(constant)
    steps = zip(*tables, strict=True)
    return Rates(constant, [[rate for row in step for rate in row] for step in steps])
