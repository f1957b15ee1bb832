"""One call of ``Trainer.fit``: the state that moves from epoch to epoch."""

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import LBFGS, Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from constrained_cnn.errors import CheckpointError, InvalidInputError, NonFiniteLossError
from constrained_cnn.training._batch_norm import measure_batch_norm
from constrained_cnn.training._checkpoint import (
    FILE_NAME,
    check_same,
    check_same_model,
    check_same_optimizer,
    load_checkpoint,
    save_checkpoint,
)
from constrained_cnn.training._config import CONSTANT, TrainConfig
from constrained_cnn.training._evaluation import Evaluation, Tally, evaluate, explained
from constrained_cnn.training._executor import EagerExecutor, Executor, Loss, Parts
from constrained_cnn.training._history import EpochRow, History, row_from_dict
from constrained_cnn.training._interrupt import InterruptGuard
from constrained_cnn.training._progress import EpochProgress
from constrained_cnn.training._schedule import rate_table
from constrained_cnn.training._source import Source, epoch_seed

HISTORY_FILES = ("history.jsonl", "history.csv")


@dataclass(frozen=True)
class Plan:
    """What one run is made of.

    Attributes:
        config: What to do.
        model: The network, on its device.
        train: Where training batches come from.
        validation: What is read after every epoch, or None.
        judged_on: What that set is: "validation" or "test".
        classifier: Whether the loss compares classes.
        loss: Maps (outputs, targets) to a scalar mean.
        make_optimizer: The caller's, or None for the configuration's.
        make_scheduler: The caller's, or None for the configuration's.
        callables: Names of the caller's callables, which a file cannot hold.
        folder: Where checkpoint and history go, or None.
    """

    config: TrainConfig
    model: nn.Module
    train: Source
    validation: Source | None
    judged_on: str
    classifier: bool
    loss: Loss
    make_optimizer: Callable[[nn.Module], Optimizer] | None
    make_scheduler: Callable[[Optimizer], LRScheduler] | None
    callables: Sequence[str]
    folder: Path | None


class Run:
    """The moving state of one run: optimizer, averaged weights, rates, finished epochs."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.rows: list[EpochRow] = []
        config = plan.config
        if plan.make_optimizer is None:
            self.optimizer = config.make_optimizer(plan.model.parameters())
        else:
            self.optimizer = plan.make_optimizer(plan.model)
            if not isinstance(self.optimizer, Optimizer) or isinstance(self.optimizer, LBFGS):
                raise InvalidInputError(
                    f"optimizer: made {type(self.optimizer).__name__}; must make a torch optimizer "
                    "whose step takes a single gradient, so not LBFGS"
                )
            _check_moves_model(self.optimizer, plan.model)
        self.average: AveragedModel | None = None
        if config.weight_averaging is not None:
            decay = get_ema_multi_avg_fn(config.weight_averaging)
            self.average = AveragedModel(plan.model, multi_avg_fn=decay, use_buffers=True)
        self._initial_rates = [float(group["lr"]) for group in self.optimizer.param_groups]
        self._rates = self._rate_table()
        self._executor: Executor = EagerExecutor(
            Parts(plan.model, plan.loss, self.optimizer, self.average, config.clip_gradient)
        )

    def go(self, guard: InterruptGuard, *, progress: bool) -> History:
        """Run the epochs that are left, until done or asked to stop."""
        epochs = self.plan.config.epochs
        shown = EpochProgress(
            epochs=epochs,
            steps=self.plan.train.steps,
            judged_on=None if self.plan.validation is None else self.plan.judged_on,
            enabled=progress,
        )
        try:
            with shown, _first_outputs_checked(self.plan):
                while len(self.rows) < epochs and not guard.requested:
                    row = self._epoch(len(self.rows) + 1, guard, shown)
                    if row is not None:
                        self.rows.append(row)
                        shown.end_epoch(row)
                        self.save()
        finally:
            self.plan.model.eval()
        finished = len(self.rows) == epochs
        return self._history("finished" if finished else "interrupted")

    def _history(self, status: str) -> History:
        return History(tuple(self.rows), status, self.plan.judged_on)

    def _epoch(self, epoch: int, guard: InterruptGuard, shown: EpochProgress) -> EpochRow | None:
        """Train one epoch; return its row, or None if it was cut short."""
        started = time.perf_counter()
        shown.start_epoch(epoch)
        seed = self.plan.config.seed
        torch.manual_seed(epoch_seed(seed, epoch))
        self.plan.model.train()
        tally = Tally()
        batches = self.plan.train.training_batches(seed=seed, epoch=epoch)
        for step, (inputs, targets) in enumerate(batches):
            rates = self._rates_of(epoch, step)
            with explained("train", step + 1, inputs, targets):
                loss, correct = self._executor.step(inputs, targets, rates)
                tally.add(loss, correct, len(inputs))
            shown.advance(step + 1)
            if guard.requested and step + 1 != self.plan.train.steps:
                return None
        if tally.samples == 0:
            raise InvalidInputError(
                f"train: gave no batches in epoch {epoch}; pass something that can be iterated "
                "anew for every epoch, such as a list or a DataLoader, not a generator"
            )
        if self.plan.train.steps not in (None, tally.steps):
            raise InvalidInputError(
                f"train: its len is {self.plan.train.steps}, and it gave {tally.steps} batches in "
                f"epoch {epoch}; the learning-rate schedule goes by the len"
            )
        self._check_finite(tally, epoch)
        trained = tally.read()
        if epoch == self.plan.config.epochs:
            self._finish()
        judged = self._validate()
        return EpochRow(
            epoch=epoch,
            train_loss=trained.loss,
            train_accuracy=trained.accuracy,
            validation_loss=None if judged is None else judged.loss,
            validation_accuracy=None if judged is None else judged.accuracy,
            learning_rate=self._rates_of(epoch, 0)[0],
            seconds=time.perf_counter() - started,
        )

    def _validate(self) -> Evaluation | None:
        if self.plan.validation is None:
            return None
        model = self.plan.model if self.average is None else self.average.module
        return evaluate(model, self.plan.loss, self.plan.validation)

    def _finish(self) -> None:
        """Make the model what the run gives: averaged weights, fresh batch-norm statistics."""
        config, model = self.plan.config, self.plan.model
        if self.average is not None:
            model.load_state_dict(self.average.module.state_dict())
            self.average = None
        if config.precise_bn is not None:
            batches = self.plan.train.training_batches(seed=config.seed, epoch=config.epochs)
            measure_batch_norm(model, itertools.islice(batches, config.precise_bn))

    def _check_finite(self, tally: Tally, epoch: int) -> None:
        step = tally.first_bad_step()
        if step is None:
            # The loss of a step is that of the weights before it, so the last step shows here.
            weights = [part for part in self.plan.model.parameters() if part.is_floating_point()]
            if all(bool(torch.isfinite(part).all()) for part in weights):
                return
            step = tally.steps
        kept = "" if self.plan.folder is None else "; the checkpoint before it is kept"
        raise NonFiniteLossError(
            f"the loss is not finite at step {step} of epoch {epoch}{kept}; "
            "lower the learning rate, set clip_gradient, or look for NaN in the data",
            epoch=epoch,
            step=step,
        )

    def _rate_table(self) -> list[list[float]] | None:
        """Return the rates of every step; None for a constant rate."""
        config, make = self.plan.config, self.plan.make_scheduler
        if make is None and config.schedule == CONSTANT:
            return None
        steps = self.plan.train.steps
        if steps is None:
            raise InvalidInputError(
                "train: does not say how many batches it has (no len), which the learning-rate "
                "schedule needs; give it a __len__, or use schedule='constant'"
            )
        total = config.epochs * steps
        return rate_table(
            self.optimizer,
            make or (lambda optimizer: config.make_scheduler(optimizer, total, config.epochs)),
            epochs=config.epochs,
            steps_per_epoch=steps,
            interval=config.schedule_interval,
        )

    def _rates_of(self, epoch: int, step: int) -> list[float]:
        if self._rates is None:
            return self._initial_rates
        steps = self.plan.train.steps or 0
        if step >= steps:
            raise InvalidInputError(f"train: its len is {steps}, and it gave more batches")
        return self._rates[(epoch - 1) * steps + step]

    def save(self) -> None:
        """Write checkpoint and history into the folder, if there is one."""
        folder = self.plan.folder
        if folder is None:
            return
        average = None if self.average is None else self.average.state_dict()
        state = {
            **self._identity(),
            "epoch": len(self.rows),
            "model": self.plan.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "average": average,
            "rows": History(tuple(self.rows)).to_dicts(),
        }
        save_checkpoint(folder / FILE_NAME, state)
        for name in HISTORY_FILES:
            self._history("finished").save(folder / name)

    def forget(self) -> None:
        """Remove what a run wrote that was refused before its first epoch ended."""
        if self.plan.folder is not None and not self.rows:
            for name in (FILE_NAME, *HISTORY_FILES):
                (self.plan.folder / name).unlink(missing_ok=True)

    def load(self) -> None:
        """Go on from the folder's checkpoint; nothing is changed unless all of it fits."""
        assert self.plan.folder is not None
        path = self.plan.folder / FILE_NAME
        state = load_checkpoint(path)
        check_same_model(str(path), state["model"], self.plan.model.state_dict())
        for name, current in self._identity().items():
            check_same(str(path), name, state[name], current)
        check_same_optimizer(str(path), state["optimizer"], self.optimizer)
        try:
            rows = [row_from_dict(row) for row in state["rows"]]
        except InvalidInputError as error:
            raise CheckpointError(f"{str(path)!r} is damaged: {error}") from error
        finished = len(rows) == self.plan.config.epochs
        averaged = self.average is not None and not finished  # the end makes it the model
        if [row.epoch for row in rows] != list(range(1, state["epoch"] + 1)):
            raise CheckpointError(f"{str(path)!r} is damaged: its epochs are not 1, 2, 3 and so on")
        if averaged != (state["average"] is not None):
            raise CheckpointError(f"{str(path)!r} is damaged: it holds no averaged weights")
        if self.average is not None and averaged:
            check_same_model(str(path), state["average"], self.average.state_dict())
            self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.plan.model.load_state_dict(state["model"])
        self.rows = rows

    def _identity(self) -> dict[str, Any]:
        """Return what must be the same for a run to go on."""
        return {
            "config": self.plan.config.to_dict(),
            "callables": dict.fromkeys(self.plan.callables, "given"),
            "data": self.plan.train.describe(),
        }


def _check_moves_model(optimizer: Optimizer, model: nn.Module) -> None:
    """Raise unless what a caller's optimizer moves are parameters of the model."""
    own = {id(parameter) for parameter in model.parameters()}
    moved = [id(parameter) for group in optimizer.param_groups for parameter in group["params"]]
    foreign = sum(parameter not in own for parameter in moved)
    if foreign:
        raise InvalidInputError(
            f"optimizer: made one over {foreign} parameters that are not the model's; make it from "
            "the model it is given"
        )


@contextmanager
def _first_outputs_checked(plan: Plan) -> Iterator[None]:
    """Refuse a classifier of one output at its first call: its loss is 0 whatever it says."""

    def look(model: nn.Module, inputs: Any, outputs: Any) -> None:
        handle.remove()  # once is enough, and a hook costs time
        if plan.classifier and isinstance(outputs, Tensor) and outputs.shape[1:] == (1,):
            raise InvalidInputError(
                f"the model gives one output for each sample, of which loss={plan.config.loss!r} "
                "makes 0 whatever it is; give it an output for each class, or choose another loss: "
                "'MSELoss' for a regression, 'BCEWithLogitsLoss' for two classes in one output"
            )

    handle = plan.model.register_forward_hook(look)
    try:
        yield
    finally:
        handle.remove()
