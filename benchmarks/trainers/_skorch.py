"""skorch: its classifier with a schedule, training accuracy and a bar.

After "Neural net classes" and "Callbacks" of its documentation.
"""

from typing import Any

import torch
from skorch import NeuralNetClassifier
from skorch.callbacks import Callback, EpochScoring, LRScheduler, ProgressBar
from torch import nn
from torch.optim import Optimizer

from benchmarks.trainers._task import Clock, Task

__all__ = ["train"]


class Ticking(Callback):  # type: ignore[misc]
    """Ticks at the end of each epoch."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def on_epoch_end(self, net: Any, **kwargs: Any) -> None:
        """Tick."""
        self.clock.tick()


def _policy(task: Task) -> Any:
    """Return what makes the schedule of the configuration."""

    def make(optimizer: Optimizer, last_epoch: int) -> Any:
        return task.config.make_scheduler(optimizer, task.steps, task.config.epochs)

    return make


def train(task: Task, clock: Clock) -> int:
    """Train with a classifier."""
    config = task.config
    options: dict[str, Any] = {"iterator_train__shuffle": True}
    for name, value in (config.optimizer_options or {}).items():
        options[f"optimizer__{name}"] = value
    if task.batches is not None:
        options["iterator_train"] = lambda dataset, **_: task.batches
    callbacks: list[Any] = [EpochScoring("accuracy", on_train=True, name="train_acc")]
    if config.schedule != "constant":
        every = {"step": "batch", "epoch": "epoch"}[config.schedule_interval]
        callbacks.append(LRScheduler(policy=_policy(task), step_every=every))
    net = NeuralNetClassifier(
        task.model,
        criterion=nn.CrossEntropyLoss,
        optimizer=getattr(torch.optim, config.optimizer),
        lr=config.learning_rate,
        max_epochs=config.epochs,
        batch_size=config.batch_size,
        train_split=None,
        device=task.device,
        callbacks=[*callbacks, ProgressBar(), Ticking(clock)],
        **options,
    )
    net.fit(*task.arrays())
    return int(sum(net.history[:, "train_batch_count"]))
