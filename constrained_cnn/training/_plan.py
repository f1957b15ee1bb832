"""What one run is made of, and what is seen to be wrong with it before it learns anything."""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim import LBFGS, Optimizer
from torch.optim.lr_scheduler import LRScheduler

from constrained_cnn.errors import InvalidInputError
from constrained_cnn.training._config import CONSTANT, TrainConfig
from constrained_cnn.training._evaluation import SAME_SHAPE, check_same_shape
from constrained_cnn.training._executor import Loss
from constrained_cnn.training._folder import RunFolder
from constrained_cnn.training._optimizers import use_fused_kernel
from constrained_cnn.training._schedule import Rates, rate_table
from constrained_cnn.training._source import Source
from constrained_cnn.training._synchronised_norm import NormExchange
from constrained_cnn.training._world import World


@dataclass(frozen=True)
class Plan:
    """What one run is made of.

    Attributes:
        config: What to do.
        model: The network, on its device.
        device: Where it trains.
        train: Where training batches come from.
        validation: What is read after every epoch, or None.
        judged_on: What that set is: "validation" or "test".
        classifier: Whether the loss compares classes.
        loss: Maps (outputs, targets) to a scalar mean.
        make_optimizer: The caller's, or None for the configuration's.
        make_scheduler: The caller's, or None for the configuration's.
        callables: Names of the caller's callables, which a file cannot hold.
        folder: Where this process writes checkpoint and history, or None.
        keeps: Whether any process does.
        executor: What runs the steps: "auto", "eager" or "graph".
        checkpoint_seconds: Longest time between two checkpoints within an epoch.
        world: The processes that train the network together.
        norms: How batch norms are synchronised among them, or None.
    """

    config: TrainConfig
    model: nn.Module
    device: torch.device
    train: Source
    validation: Source | None
    judged_on: str
    classifier: bool
    loss: Loss
    make_optimizer: Callable[[nn.Module], Optimizer] | None
    make_scheduler: Callable[[Optimizer], LRScheduler] | None
    callables: Sequence[str]
    folder: RunFolder | None
    keeps: bool
    executor: str
    checkpoint_seconds: float
    world: World
    norms: NormExchange | None


def make_optimizer(plan: Plan) -> Optimizer:
    """Return the optimizer of a run.

    Raises:
        InvalidInputError: If the caller's makes no optimizer that can be used here.
    """
    if plan.make_optimizer is None:
        optimizer = plan.config.make_optimizer(plan.model.parameters())
        use_fused_kernel(optimizer, plan.model)
        return optimizer
    optimizer = plan.make_optimizer(plan.model)
    if not isinstance(optimizer, Optimizer) or isinstance(optimizer, LBFGS):
        raise InvalidInputError(
            f"optimizer: made {type(optimizer).__name__}; must make a torch optimizer "
            "whose step takes a single gradient, so not LBFGS"
        )
    if not all("lr" in group for group in optimizer.param_groups):
        raise InvalidInputError(
            f"optimizer: made {type(optimizer).__name__}, whose groups have no 'lr'; the trainer "
            "sets the learning rate of every step there"
        )
    _check_moves_model(optimizer, plan.model)
    return optimizer


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


def check_no_sparse_gradients(plan: Plan) -> None:
    """Raise if several processes would have to exchange sparse gradients.

    Raises:
        InvalidInputError: With the name of the module.
    """
    for name, module in plan.model.named_modules():
        if plan.world.size > 1 and getattr(module, "sparse", False) is True:
            raise InvalidInputError(
                f"{name or 'model'} has sparse gradients (sparse=True), which several processes do "
                "not exchange; use sparse=False, or train in one process"
            )


def warn_of_average(plan: Plan) -> None:
    """Warn if the average of the weights would be mostly of those before they learned."""
    decay, steps = plan.config.weight_averaging, plan.train.steps
    if decay is None or steps is None or not plan.world.is_first:
        return
    total = steps * plan.config.epochs
    if (1 - decay) * total < 1:
        advice = f"{1 - 10 / total:.2g} would look back over a tenth of it"
        warnings.warn(
            f"weight_averaging={decay}: looks back over {1 / (1 - decay):,.0f} steps, and the run "
            f"has {total:,}, so its result is mostly the weights of the start; "
            f"{advice if total > 20 else 'leave it out for so short a run'}",
            stacklevel=2,
        )


def check_has_shapes(model: nn.Module) -> None:
    """Raise if a lazy module has not seen the shape of its inputs yet.

    Raises:
        InvalidInputError: With its name.
    """
    parts = [*model.named_parameters(), *model.named_buffers()]
    for name, part in parts:
        if is_lazy(part):
            raise InvalidInputError(
                f"model: {name} has no shape yet, as of a lazy module that was never called; call "
                "the model once with a batch before it is trained"
            )


def make_rates(plan: Plan, optimizer: Optimizer) -> Rates:
    """Return the learning rates of every step of a run.

    Raises:
        InvalidInputError: If a schedule needs the number of steps, and it is not known.
    """
    config, make, steps = plan.config, plan.make_scheduler, plan.train.steps
    constant = [float(group["lr"]) for group in optimizer.param_groups]
    if make is None and config.schedule == CONSTANT:
        return Rates(constant)
    if steps is None:
        raise InvalidInputError(
            "train: does not say how many batches it has (no len), which the learning-rate "
            "schedule needs; give it a __len__, or use schedule='constant'"
        )
    total = config.epochs * steps
    table = rate_table(
        optimizer,
        make or (lambda optimizer: config.make_scheduler(optimizer, total, config.epochs)),
        epochs=config.epochs,
        steps_per_epoch=steps,
        interval=config.schedule_interval,
    )
    return Rates(constant, table)


@contextmanager
def first_outputs_checked(plan: Plan) -> Iterator[None]:
    """Look at what the first step compares.

    Refused are a classifier of one output, whose loss is 0 whatever it says, and outputs of another
    shape than their targets where the loss would stretch them.
    """

    def look(model: nn.Module, inputs: Any, outputs: Any) -> None:
        handles[0].remove()  # once is enough, and a hook costs time
        if plan.classifier and isinstance(outputs, Tensor) and outputs.shape[1:] == (1,):
            raise InvalidInputError(
                f"the model gives one output for each sample, of which loss={plan.config.loss!r} "
                "makes 0 whatever it is; give it an output for each class, or choose another loss: "
                "'MSELoss' for a regression, 'BCEWithLogitsLoss' for two classes in one output"
            )

    def look_at_loss(loss: nn.Module, given: Any) -> None:
        handles[1].remove()
        check_same_shape(loss, *given)

    handles = [plan.model.register_forward_hook(look)]
    if isinstance(plan.loss, SAME_SHAPE):
        handles.append(plan.loss.register_forward_pre_hook(look_at_loss))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
