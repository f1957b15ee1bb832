"""Steps of a small run, for the tests of a graph with and without a GPU."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer, lr_scheduler

from constrained_cnn.training._executor import Executor, Parts
from constrained_cnn.training._schedule import Rates, rate_table

EPOCHS, STEPS = 8, 7
TOTAL = EPOCHS * STEPS
Batch = tuple[Tensor, Tensor]
State = dict[str, Tensor]


def sgd(parameters: Any) -> Optimizer:
    return torch.optim.SGD(parameters, lr=0.1, momentum=0.9, nesterov=True, weight_decay=1e-3)


MakeOptimizer = Callable[[Any], Optimizer]
OPTIMIZERS: dict[str, MakeOptimizer] = {
    "SGD with Nesterov": sgd,
    "SGD": lambda w: torch.optim.SGD(w, lr=0.1),
    "SGD with dampening": lambda w: torch.optim.SGD(w, lr=0.1, momentum=0.9, dampening=0.4),
    "Adam": lambda w: torch.optim.Adam(w, lr=0.01),
    "Adam with amsgrad": lambda w: torch.optim.Adam(w, lr=0.01, amsgrad=True, weight_decay=1e-2),
    "AdamW": lambda w: torch.optim.AdamW(w, lr=0.01),
    "Adagrad": lambda w: torch.optim.Adagrad(w, lr=0.05, lr_decay=0.1),
    "Adadelta": lambda w: torch.optim.Adadelta(w, lr=1.0),
    "Adamax": lambda w: torch.optim.Adamax(w, lr=0.01),
    "ASGD": lambda w: torch.optim.ASGD(w, lr=0.05, lambd=0.1, t0=3),
    "NAdam": lambda w: torch.optim.NAdam(w, lr=0.01, decoupled_weight_decay=True),
    "RAdam": lambda w: torch.optim.RAdam(w, lr=0.01),
    "RMSprop": lambda w: torch.optim.RMSprop(w, lr=0.01, momentum=0.9, centered=True),
    "Rprop": lambda w: torch.optim.Rprop(w, lr=0.01),
}


if not hasattr(torch.ops.aten._fused_adagrad_, "tensor_lr"):
    del OPTIMIZERS["Adagrad"]  # torch 2.6: no step of it reads nothing on the host


def one_cycle(optimizer: Optimizer, epochs: int = EPOCHS, steps: int = STEPS) -> Rates:
    peaks = [float(group["lr"]) for group in optimizer.param_groups]
    table = rate_table(
        optimizer,
        lambda trial: lr_scheduler.OneCycleLR(
            trial, peaks, total_steps=epochs * steps, cycle_momentum=False
        ),
        epochs=epochs,
        steps_per_epoch=steps,
    )
    return Rates(peaks, table)


def state_of(parts: Parts, random: Tensor) -> State:
    """Return everything that a step moves, on the CPU; ``random`` is where its generator is."""
    state = {f"model.{name}": part for name, part in parts.model.state_dict().items()}
    if parts.average is not None:
        state |= {f"average.{name}": part for name, part in parts.average.state_dict().items()}
    for number, held in enumerate(parts.optimizer.state.values()):
        state |= {
            f"optimizer.{number}.{name}": torch.as_tensor(part)
            for name, part in held.items()
            if part is not None
        }
    for number, group in enumerate(parts.optimizer.param_groups):
        state[f"rate.{number}"] = torch.as_tensor(group["lr"])
    state["random"] = random
    return {name: part.detach().cpu().clone() for name, part in state.items()}


def assert_same_bits(first: State, second: State) -> None:
    assert first.keys() == second.keys()
    for name, part in first.items():
        assert part.dtype == second[name].dtype, name
        assert torch.equal(part, second[name]), name


def take(
    executor: Executor,
    parts: Parts,
    batches: Sequence[Batch],
    *,
    epochs: int = EPOCHS,
    start: int = 0,
    after_step: Callable[[int], object] = lambda index: None,
) -> list[tuple[float, int | None]]:
    """Train as a run does, from a step on; return what each step gave, read once per epoch."""
    given: list[tuple[float, int | None]] = []
    for epoch in range(start // len(batches), epochs):
        if start <= epoch * len(batches):
            torch.manual_seed(100 + epoch)
        parts.model.train()
        kept = []
        for step, (inputs, targets) in enumerate(batches):
            index = epoch * len(batches) + step
            if index >= start:
                kept.append(executor.step(inputs, targets, index))
                after_step(index)
        given += [(float(loss), None if n is None else int(n)) for loss, n in kept]
    return given
