"""rate_table beside the real torch scheduler, stepped with a real optimizer as torch intends."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.optim import Optimizer, lr_scheduler
from torch.optim.lr_scheduler import LRScheduler

from constrained_cnn.errors import InvalidInputError
from constrained_cnn.training._schedule import rate_table

EPOCHS, STEPS = 4, 3
TOTAL = EPOCHS * STEPS

Make = Callable[[Optimizer], LRScheduler]


def one_cycle(optimizer: Optimizer) -> LRScheduler:
    rates = [group["lr"] for group in optimizer.param_groups]
    return lr_scheduler.OneCycleLR(optimizer, rates, total_steps=TOTAL, cycle_momentum=False)


def sequential(optimizer: Optimizer) -> LRScheduler:
    warm_up = lr_scheduler.LinearLR(optimizer, start_factor=0.1, total_iters=2)
    decay = lr_scheduler.ExponentialLR(optimizer, 0.7)
    return lr_scheduler.SequentialLR(optimizer, [warm_up, decay], milestones=[2])


def by_group(optimizer: Optimizer) -> LRScheduler:
    slow, fast = (lambda step: 1 / (1 + step)), (lambda step: 0.9**step)
    return lr_scheduler.LambdaLR(optimizer, [slow, fast][: len(optimizer.param_groups)])


SCHEDULES: dict[str, Make] = {
    "one cycle": one_cycle,
    "cosine": lambda optimizer: lr_scheduler.CosineAnnealingLR(optimizer, T_max=TOTAL),
    "step": lambda optimizer: lr_scheduler.StepLR(optimizer, step_size=2, gamma=0.3),
    "lambda": by_group,
    "exponential": lambda optimizer: lr_scheduler.ExponentialLR(optimizer, gamma=0.8),
    "sequential": sequential,
}


def make_optimizer(groups: int) -> Optimizer:
    parameters = [nn.Parameter(torch.ones(2)) for _ in range(groups)]
    rates = (0.4, 0.05)
    return torch.optim.SGD(
        [{"params": [p], "lr": rate} for p, rate in zip(parameters, rates, strict=False)],
        lr=1.0,
        momentum=0.9,
    )


def stepped(make: Make, groups: int, interval: str) -> list[list[float]]:
    """The rates that a loop written by hand trains with."""
    optimizer = make_optimizer(groups)
    scheduler = make(optimizer)
    rates = []
    for _ in range(EPOCHS):
        for _ in range(STEPS):
            rates.append([group["lr"] for group in optimizer.param_groups])
            optimizer.step()
            if interval == "step":
                scheduler.step()
        if interval == "epoch":
            scheduler.step()
    return rates


# SequentialLR of torch 2.6 calls its own parts in a way that torch warns of.
@pytest.mark.filterwarnings("ignore:The epoch parameter in `scheduler.step")
@pytest.mark.parametrize("interval", ["step", "epoch"])
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("name", SCHEDULES)
def test_the_table_is_what_a_hand_written_loop_meets(name: str, groups: int, interval: str) -> None:
    optimizer = make_optimizer(groups)
    before = [dict(group) for group in optimizer.param_groups]
    table = rate_table(
        optimizer, SCHEDULES[name], epochs=EPOCHS, steps_per_epoch=STEPS, interval=interval
    )
    assert table == stepped(SCHEDULES[name], groups, interval)
    assert len({tuple(row) for row in table}) > 1
    assert optimizer.param_groups == before
    assert "step" not in vars(optimizer)  # torch's counting wrapper is gone


@given(st.floats(0.05, 0.95), st.integers(2, 9), st.integers(1, 9))
def test_one_cycle_of_any_length_peaks_at_the_rate_and_ends_near_zero(
    share: float, epochs: int, steps: int
) -> None:
    def make(optimizer: Optimizer) -> LRScheduler:
        total = epochs * steps
        return lr_scheduler.OneCycleLR(
            optimizer, 0.4, total_steps=total, pct_start=share, cycle_momentum=False
        )

    if share * epochs * steps == 1:  # torch divides by zero
        return
    table = rate_table(make_optimizer(1), make, epochs=epochs, steps_per_epoch=steps)
    assert len(table) == epochs * steps
    assert max(rate for (rate,) in table) <= 0.4
    assert table[-1][0] == pytest.approx(0.4 / 25 / 1e4)


def test_no_schedule_is_a_constant_table() -> None:
    table = rate_table(make_optimizer(2), lambda optimizer: None, epochs=2, steps_per_epoch=3)
    assert table == [[0.4, 0.05]] * 6


def test_a_rate_that_is_a_tensor_is_as_before_afterwards() -> None:
    rate = torch.tensor(0.25)
    optimizer = torch.optim.Adam([nn.Parameter(torch.ones(1))], lr=rate)
    table = rate_table(
        optimizer,
        lambda trial: lr_scheduler.ExponentialLR(trial, 0.5),
        epochs=1,
        steps_per_epoch=4,
    )
    assert table == [[0.25], [0.125], [0.0625], [0.03125]]
    assert optimizer.param_groups[0]["lr"] is rate
    assert float(rate) == 0.25


def test_a_schedule_that_moves_momentum_is_refused_and_nothing_stays_changed() -> None:
    optimizer = make_optimizer(1)
    before = [dict(group) for group in optimizer.param_groups]
    with pytest.raises(InvalidInputError, match=r"changes 'momentum' from 0\.9"):
        rate_table(
            optimizer,
            lambda trial: lr_scheduler.OneCycleLR(trial, 0.4, total_steps=TOTAL),
            epochs=EPOCHS,
            steps_per_epoch=STEPS,
        )
    assert optimizer.param_groups == before


def plateau(optimizer: Optimizer) -> LRScheduler:
    return lr_scheduler.ReduceLROnPlateau(optimizer)


def dividing(optimizer: Optimizer) -> LRScheduler:
    return lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (2 - step))


def short_cycle(optimizer: Optimizer) -> LRScheduler:
    return lr_scheduler.OneCycleLR(optimizer, 0.4, total_steps=5, cycle_momentum=False)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (plateau, "fails at step 2: .*metrics"),
        (dividing, "fails at step 3: .*zero"),
        (short_cycle, "fails at step 7: .*total steps is 5"),
    ],
)
def test_a_schedule_that_fails_names_the_step(make: Make, message: str) -> None:
    optimizer = make_optimizer(1)
    with pytest.raises(InvalidInputError, match=message):
        rate_table(optimizer, make, epochs=EPOCHS, steps_per_epoch=STEPS)
    assert optimizer.param_groups[0]["lr"] == 0.4
