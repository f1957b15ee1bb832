"""Keras 3 on the torch backend: ``compile`` and ``fit`` of the same network in a wrapper.

After "Getting started with Keras 3" and "TorchModuleWrapper" of its documentation.
"""

import os
from typing import Any

from torch.utils.data import DataLoader

from benchmarks.trainers._task import Clock, Made, Task
from constrained_cnn.training import TrainConfig

os.environ["KERAS_BACKEND"] = "torch"  # Keras reads it when it is imported

import keras

__all__ = ["train"]


class Ticking(keras.callbacks.Callback):  # type: ignore[misc]
    """Ticks at the end of each epoch."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self.clock = clock

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Tick."""
        self.clock.tick()


def _rate(config: TrainConfig, steps: int) -> Any:
    """Return the rate, or the schedule of its own that is nearest to OneCycleLR."""
    if config.schedule == "constant":
        return config.learning_rate
    warm_up = int((config.schedule_options or {}).get("pct_start", 0.3) * steps)
    return keras.optimizers.schedules.CosineDecay(
        config.learning_rate / 25,
        decay_steps=steps - warm_up,
        warmup_target=config.learning_rate,
        warmup_steps=warm_up,
    )


def train(task: Task, clock: Clock) -> int:
    """Train with ``fit``."""
    config = task.config
    if config.optimizer != "SGD" or config.schedule not in ("constant", "OneCycleLR"):
        raise NotImplementedError("only SGD at a constant rate or with OneCycleLR is written here")
    with keras.device(task.device.type):
        model = keras.Sequential(
            [
                keras.Input(task.images.shape),
                keras.layers.TorchModuleWrapper(task.model, output_shape=(None, task.classes)),
            ]
        )
        model.compile(
            optimizer=keras.optimizers.SGD(
                _rate(config, task.steps), **(config.optimizer_options or {})
            ),
            loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            metrics=["accuracy"],
        )
        if task.batches is not None:
            data: dict[str, Any] = {"x": DataLoader(Made(task.batches), batch_size=None)}
        else:
            inputs, labels = (tensor.numpy() for tensor in task.arrays())
            data = {"x": inputs, "y": labels, "batch_size": config.batch_size}
        model.fit(**data, epochs=config.epochs, callbacks=[Ticking(clock)])
    return int(model.optimizer.iterations)
