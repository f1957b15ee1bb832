"""Several runs led side by side on one device: every step of theirs is one.

A GPU is far from busy with one small network. Here each network has a branch of the step, on a
stream of its own, and the branches run beside one another; the weights of all are moved by one
kernel. Captured as a CUDA graph that is a single launch for all of them.
"""

import copy
from collections import defaultdict
from collections.abc import Sequence
from contextlib import ExitStack, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from constrained_cnn.errors import InvalidInputError, NonFiniteLossError
from constrained_cnn.training._executor import Parts, count_correct
from constrained_cnn.training._history import History
from constrained_cnn.training._interrupt import InterruptGuard
from constrained_cnn.training._progress import Progress
from constrained_cnn.training._run import Asked, Given, Run, Steps

Outcome = History | NonFiniteLossError


def go_side_by_side(
    runs: Sequence[Run], guard: InterruptGuard, shown: Sequence[Progress]
) -> list[Outcome]:
    """Lead runs of equal length to their end, and return the history of each.

    A run that diverges is its error, and the others go on. The batches of all must have the same
    shapes, step by step, as they have where the runs differ by their seed.

    Args:
        runs: The runs, ready for their first step, of one device.
        guard: Whether to stop.
        shown: What is told how far each is.
    """
    branches = Branches([run.parts for run in runs])
    outcomes: dict[int, Outcome] = {}
    with ExitStack() as stack:
        leading: dict[int, Steps] = {}
        asked: dict[int, Asked] = {}
        for number, (run, one) in enumerate(zip(runs, shown, strict=True)):
            leading[number] = run.steps(guard, one)
            stack.callback(leading[number].close)
        answers: Sequence[Any] = [None] * len(runs)
        while True:
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
            # Of a run that has ended the last batch is met again: its branch is a part of the step.
            batch = [asked[number] for number in range(len(runs))]
            answers = branches.step(batch)


class Branches:
    """One training step for several networks.

    Args:
        parts: What the step of each network works on.

    Raises:
        InvalidInputError: If their optimizers are of different kinds.
    """

    def __init__(self, parts: Sequence[Parts]) -> None:
        self.parts = list(parts)
        self.optimizer = _joined([one.optimizer for one in parts])
        device = next(parts[0].model.parameters()).device
        self._streams: list[Any] = [None] * len(parts)
        if device.type == "cuda":
            self._streams = [torch.cuda.Stream(device) for _ in parts]

    def step(self, asked: Sequence[Asked]) -> list[Given]:
        """Take one step of every network, and return what each gave."""
        for one, request in zip(self.parts, asked, strict=True):
            groups = one.optimizer.param_groups
            for group, rate in zip(groups, one.rates.of(request.number), strict=True):
                if isinstance(group["lr"], Tensor):
                    group["lr"].fill_(rate)
                else:
                    group["lr"] = rate
        losses, counts = self.training_step(
            [request.inputs for request in asked], [request.targets for request in asked]
        )
        hits: Sequence[Tensor | None] = [None] * len(asked) if counts is None else counts.unbind()
        return list(zip(losses.unbind(), hits, strict=True))

    def training_step(
        self, inputs: Sequence[Tensor], targets: Sequence[Tensor]
    ) -> tuple[Tensor, Tensor | None]:
        """Move the weights of every network once; nothing is read on the host.

        Returns:
            Losses ``(K,)`` and counts of correct answers ``(K,)``, or None.
        """
        self.optimizer.zero_grad(set_to_none=True)
        losses: list[Tensor] = []
        counts: list[Tensor | None] = []
        fork = self._fork()
        for one, own, labels, stream in zip(
            self.parts, inputs, targets, self._streams, strict=True
        ):
            with torch.cuda.stream(stream) if stream else nullcontext():
                if stream:
                    stream.wait_stream(fork)
                outputs = one.model(own)
                losses.append(one.loss(outputs, labels).reshape(()))
                counts.append(count_correct(outputs, labels))
        self._join(fork)
        # The gradient of the sum is, for each network, that of its own loss. The backward pass of a
        # branch runs on the stream of its forward pass.
        together = torch.stack(losses)
        together.sum().backward()
        for one in self.parts:
            if one.clip_gradient is not None:
                torch.nn.utils.clip_grad_norm_(one.model.parameters(), one.clip_gradient)
        self.optimizer.step()
        self._share_state()
        for one in self.parts:
            if one.average is not None:
                one.average.update(one.model)
        hits = [count for count in counts if count is not None]
        return together.detach(), torch.stack(hits) if len(hits) == len(counts) else None

    def _fork(self) -> Any:
        return torch.cuda.current_stream() if self._streams[0] else None

    def _join(self, fork: Any) -> None:
        for stream in self._streams:
            if stream:
                fork.wait_stream(stream)

    def _share_state(self) -> None:
        """Let the optimizer of each run hold the state of its own weights, for its checkpoint."""
        for one in self.parts:
            own = one.optimizer
            for group in own.param_groups:
                for weight in group["params"]:
                    if weight in self.optimizer.state and weight not in own.state:
                        own.state[weight] = self.optimizer.state[weight]


def _joined(optimizers: Sequence[Optimizer]) -> Optimizer:
    """Return one optimizer over the very groups of several.

    Raises:
        InvalidInputError: If they are of different kinds.
    """
    kinds = {type(one) for one in optimizers}
    if len(kinds) > 1:
        names = sorted(kind.__name__ for kind in kinds)
        raise InvalidInputError(f"optimizer: made {names}; several seeds at once need one kind")
    joined = copy.copy(optimizers[0])
    joined.param_groups = [group for one in optimizers for group in one.param_groups]
    joined.state = defaultdict(dict)
    for one in optimizers:
        joined.state.update(one.state)
    return joined
