"""PyTorch-Ignite: its supervised trainer with a running loss in a bar, and accuracy.

After "Getting Started" and the MNIST example of its documentation.
"""

from typing import Any

from ignite.engine import Events, create_supervised_trainer
from ignite.handlers.tqdm_logger import ProgressBar
from ignite.metrics import Accuracy, RunningAverage
from torch import Tensor

from benchmarks.trainers._task import Clock, Task

__all__ = ["train"]


def _output(inputs: Tensor, targets: Tensor, outputs: Tensor, loss: Tensor) -> dict[str, Any]:
    """Return what a step gives, the loss read as by default."""
    return {"loss": loss.item(), "y_pred": outputs, "y": targets}


def train(task: Task, clock: Clock) -> int:
    """Train with a supervised trainer."""
    model = task.model.to(task.device)
    optimizer = task.config.make_optimizer(model.parameters())
    scheduler = task.config.make_scheduler(optimizer, task.steps, task.config.epochs)
    trainer = create_supervised_trainer(
        model, optimizer, task.config.make_loss(), device=task.device, output_transform=_output
    )
    RunningAverage(output_transform=lambda output: output["loss"]).attach(trainer, "loss")
    Accuracy(output_transform=lambda output: (output["y_pred"], output["y"])).attach(
        trainer, "accuracy"
    )
    if scheduler is not None:
        trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda: scheduler.step())
    ProgressBar(persist=True).attach(trainer, ["loss"])
    trainer.add_event_handler(Events.EPOCH_COMPLETED, clock.tick)
    trainer.run(task.loader(), max_epochs=task.config.epochs)
    return int(trainer.state.iteration)
