"""PyTorch Lightning: with bar, logger and checkpoints, as by default; and barebones.

After "LightningModule" and "Trainer" of its documentation, and "TorchMetrics in PyTorch Lightning"
of that of torchmetrics.
"""

import tempfile
from typing import Any

import pytorch_lightning as pl
import torch.nn.functional as F
from pytorch_lightning.callbacks import TQDMProgressBar
from pytorch_lightning.loggers import CSVLogger
from torch import Tensor
from torchmetrics.classification import MulticlassAccuracy

from benchmarks.trainers._task import Batch, Clock, Task

__all__ = ["barebones", "usual"]


class Bare(pl.LightningModule):  # type: ignore[misc]
    """A step and its optimizer."""

    def __init__(self, task: Task) -> None:
        super().__init__()
        self.model = task.model
        self.task = task

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the loss."""
        inputs, targets = batch
        return F.cross_entropy(self.model(inputs), targets)

    def configure_optimizers(self) -> Any:
        """Return the optimizer and its schedule."""
        config = self.task.config
        optimizer = config.make_optimizer(self.model.parameters())
        scheduler = config.make_scheduler(optimizer, self.task.steps, config.epochs)
        if scheduler is None:
            return optimizer
        moves = {"scheduler": scheduler, "interval": config.schedule_interval}
        return {"optimizer": optimizer, "lr_scheduler": moves}


class Logging(Bare):
    """A step that logs loss and accuracy, of the step and of the epoch."""

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        self.accuracy = MulticlassAccuracy(task.classes, average="micro")

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the loss, and log it."""
        inputs, targets = batch
        outputs = self.model(inputs)
        loss = F.cross_entropy(outputs, targets)
        self.accuracy(outputs, targets)
        self.log("train_loss", loss, on_step=True, on_epoch=True, prog_bar=True)
        self.log("train_acc", self.accuracy, on_step=True, on_epoch=True, prog_bar=True)
        return loss


class Ticking(pl.Callback):  # type: ignore[misc]
    """Ticks at the end of each epoch."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Tick."""
        self.clock.tick()


def usual(task: Task, clock: Clock) -> int:
    """Train as people use it; its bar is that of tqdm, a little quicker than that of rich."""
    with tempfile.TemporaryDirectory() as folder:
        return _fit(
            Logging(task),
            clock,
            TQDMProgressBar(),
            default_root_dir=folder,
            logger=CSVLogger(folder),
        )


def barebones(task: Task, clock: Clock) -> int:
    """Train with nothing shown, logged or saved."""
    return _fit(Bare(task), clock, barebones=True)


def _fit(module: Bare, clock: Clock, *callbacks: Any, **options: Any) -> int:
    accelerator = "gpu" if module.task.device.type == "cuda" else "cpu"
    trainer = pl.Trainer(
        max_epochs=module.task.config.epochs,
        accelerator=accelerator,
        devices=1,
        callbacks=[*callbacks, Ticking(clock)],
        **options,
    )
    trainer.fit(module, train_dataloaders=module.task.loader())
    return int(trainer.global_step)
