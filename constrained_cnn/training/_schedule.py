"""The learning rate of every step, worked out before the first."""

import copy
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from constrained_cnn.errors import InvalidInputError


@dataclass(frozen=True)
class Rates:
    """The learning rates of a run, known before its first step.

    Attributes:
        constant: One rate for each parameter group, where no schedule moves them.
        table: One such row for each step; None for a constant rate.
    """

    constant: Sequence[float]
    table: Sequence[Sequence[float]] | None = None

    def of(self, index: int) -> Sequence[float]:
        """Return the rates of one step, counted from 0 over the whole run."""
        return self.constant if self.table is None else self.table[index]


def rate_table(
    optimizer: Optimizer,
    make_scheduler: Callable[[Optimizer], LRScheduler | None],
    *,
    epochs: int,
    steps_per_epoch: int,
    interval: str = "step",
) -> list[list[float]]:
    """Return the learning rates of every step, by running a torch schedule once from end to end.

    Schedules that move every step and every epoch become the same thing, and the training loop
    only reads a number. The optimizer's own settings are as before afterwards.

    Args:
        optimizer: The optimizer, with its parameter groups.
        make_scheduler: Makes the schedule for an optimizer; None for a constant rate.
        epochs: Number of epochs.
        steps_per_epoch: Steps in each.
        interval: ``"step"`` or ``"epoch"``.

    Returns:
        One row per step with one rate per parameter group.

    Raises:
        InvalidInputError: If the schedule changes anything but the rate, gives a negative or
            infinite one, or ends too early.
    """
    before = [_settings(group) for group in optimizer.param_groups]
    originals = [dict(group) for group in optimizer.param_groups]
    rates: list[list[float]] = []
    try:
        scheduler = make_scheduler(optimizer)
        if scheduler is None:
            constant = [float(group["lr"]) for group in optimizer.param_groups]
            return [constant] * (epochs * steps_per_epoch)
        if not hasattr(scheduler, "step"):
            raise InvalidInputError(
                f"scheduler: made {scheduler!r}; must make a schedule of torch.optim.lr_scheduler"
            )
        with warnings.catch_warnings():
            # Stepping a schedule without its optimizer is the point here.
            warnings.simplefilter("ignore", UserWarning)
            for index in range(epochs * steps_per_epoch):
                if index and (interval == "step" or index % steps_per_epoch == 0):
                    scheduler.step()
                rates.append([float(group["lr"]) for group in optimizer.param_groups])
                _check_rates(rates[-1], index + 1)
                _check_only_rate_moves(optimizer, before)
    except InvalidInputError:
        raise
    except (TypeError, ValueError, ArithmeticError) as error:
        raise InvalidInputError(f"the schedule fails at step {len(rates) + 1}: {error}") from error
    finally:
        for group, original, settings in zip(
            optimizer.param_groups, originals, before, strict=True
        ):
            group.clear()
            group.update(original)
            for key, value in settings.items():
                if isinstance(value, torch.Tensor):  # a rate that is a tensor was set in place
                    group[key].copy_(value)
        # A schedule leaves a counting wrapper around the optimizer's step.
        vars(optimizer).pop("step", None)
    return rates


def _settings(group: dict[str, object]) -> dict[str, object]:
    return {
        key: value.clone() if isinstance(value, torch.Tensor) else copy.copy(value)
        for key, value in group.items()
        if key != "params"
    }


def _check_rates(rates: list[float], step: int) -> None:
    for rate in rates:
        if not (math.isfinite(rate) and rate >= 0):
            raise InvalidInputError(
                f"the schedule gives a learning rate of {rate!r} at step {step}; it must be finite "
                "and at least 0 in every step of the run"
            )


def _check_only_rate_moves(optimizer: Optimizer, before: list[dict[str, object]]) -> None:
    for group, settings in zip(optimizer.param_groups, before, strict=True):
        for key in ("momentum", "betas", "weight_decay"):
            value = settings.get(key)
            if isinstance(value, torch.Tensor) or group.get(key) == value:
                continue
            raise InvalidInputError(
                f"the schedule changes {key!r} from {value!r}, and only the learning rate may "
                "move during a run; with OneCycleLR or CyclicLR set cycle_momentum=False"
            )
