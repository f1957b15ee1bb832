"""The training step as a CUDA graph, against the step taken operation by operation, on a CPU.

``recorded_graph`` stands in for CUDA and has its traps. For each trap there is a test that the
executor avoids it, and where it can be a few lines that walk into it, which shows that the test
could fail. What only a GPU can show is in ``test_gpu_graph.py``.
"""

import copy
import gc
import importlib
import itertools
import random
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import graph_steps
import numpy as np
import pytest
import torch
from graph_steps import (
    EPOCHS,
    OPTIMIZERS,
    STEPS,
    Batch,
    MakeOptimizer,
    State,
    assert_same_bits,
    one_cycle,
    sgd,
)
from recorded_graph import NOT_PERMITTED, RecordedGraph
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.optim import Optimizer, lr_scheduler

from constrained_cnn.errors import InvalidInputError
from constrained_cnn.training._average import Average
from constrained_cnn.training._executor import EagerExecutor, Executor, Parts, training_step
from constrained_cnn.training._graph import (
    MOST_GRAPHS,
    REHEARSALS,
    GraphExecutor,
    make_executor,
    reason_against,
)
from constrained_cnn.training._optimizers import prepare_optimizer
from constrained_cnn.training._recorder import CudaRecorder
from constrained_cnn.training._schedule import Rates, rate_table

CPU = torch.device("cpu")
BATCH, TAIL = 8, 3


@pytest.fixture(autouse=True)
def _capturable_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let optimizers be capturable here, as they are on CUDA."""
    for name in ("adadelta", "adam", "adamax", "asgd", "nadam", "radam", "rmsprop", "rprop"):
        module = importlib.import_module(f"torch.optim.{name}")
        monkeypatch.setattr(
            module, "_get_capturable_supported_devices", lambda *_, **__: ["cpu"], raising=False
        )


def make_batches(steps: int = STEPS, tail: int = TAIL, seed: int = 0) -> list[Batch]:
    generator = torch.Generator().manual_seed(seed)
    sizes = [BATCH] * (steps - 1) + [tail]
    return [
        (
            torch.randn(size, 2, 6, 6, generator=generator),
            torch.randint(0, 4, (size,), generator=generator),
        )
        for size in sizes
    ]


BATCHES = make_batches()


class Net(nn.Sequential):
    def __init__(self, p: float = 0.25) -> None:
        super().__init__(
            nn.Conv2d(2, 4, 3, bias=False),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.Dropout(p),
            nn.Flatten(),
            nn.Linear(64, 4),
        )

    def forward(self, inputs: Tensor) -> Tensor:
        for part in self:
            inputs = part(inputs)
        return inputs


def make_parts(
    make_optimizer: MakeOptimizer = sgd,
    *,
    model: nn.Module | None = None,
    loss: Any = None,
    decay: float | None = None,
    clip: float | None = None,
    constant: bool = False,
    prepared: bool = True,
    exchange: Callable[[int], None] | None = None,
    autocast: str | None = None,
) -> Parts:
    if model is None:
        torch.manual_seed(1)
        model = Net()
    optimizer = make_optimizer(model.parameters())
    rates = one_cycle(optimizer)
    if constant:
        rates = Rates(rates.constant)
    average = None if decay is None else Average(model, decay)
    if prepared:
        assert prepare_optimizer(optimizer, CPU) is None
    return Parts(
        model.train(),
        loss or nn.CrossEntropyLoss(),
        optimizer,
        rates,
        average,
        clip,
        exchange,
        autocast=autocast,
    )


def make_graph(parts: Parts, **options: Any) -> tuple[GraphExecutor, RecordedGraph]:
    recorder = RecordedGraph()
    executor = GraphExecutor(parts, CPU, STEPS, recorder=recorder, **options)
    return executor, recorder


def state_of(parts: Parts) -> State:
    return graph_steps.state_of(parts, torch.get_rng_state())


def differ(first: State, second: State, part: str = "model.0.weight") -> bool:
    return not torch.equal(first[part], second[part])


def take(
    executor: Executor, parts: Parts, *, batches: Sequence[Batch] = BATCHES, **options: Any
) -> list[tuple[float, int | None]]:
    return graph_steps.take(executor, parts, batches, **options)


def eager(parts: Parts, **options: Any) -> tuple[list[Any], State]:
    given = take(EagerExecutor(parts), parts, **options)
    return given, state_of(parts)


def graphed(parts: Parts, **options: Any) -> tuple[list[Any], State]:
    executor, recorder = make_graph(parts)
    given = take(executor, parts, **options)
    assert executor.name == "graph"
    assert recorder.replays > 0
    return given, state_of(parts)


MAKE_EXECUTOR: tuple[Callable[[Parts], Executor], ...] = (
    EagerExecutor,
    lambda parts: make_graph(parts)[0],
)


def compare(make: Callable[[], Parts], **options: Any) -> None:
    """Assert that a run with a graph is, bit by bit, the run without one."""
    torch.manual_seed(0)
    expected, state = eager(make(), **options)
    torch.manual_seed(0)
    found, graph_state = graphed(make(), **options)
    assert found == expected
    assert_same_bits(graph_state, state)


# What a naive graph is.


class Naive:
    """Records the training step as it stands, and replays it: all precautions are left out."""

    name = "naive"
    capture_seconds = 0.0

    def __init__(self, parts: Parts, *, warm_ups: int = 0, eager_steps: int = 0) -> None:
        self.parts = parts
        self.warm_ups = warm_ups
        self.eager_steps = eager_steps
        self.recorder = RecordedGraph()
        self.replay: Callable[[], None] | None = None

    def close(self) -> None:
        self.recorder.close()

    def step(self, inputs: Tensor, targets: Tensor, index: int) -> tuple[Tensor, Tensor | None]:
        if index < self.eager_steps:
            return EagerExecutor(self.parts).step(inputs, targets, index)
        groups = self.parts.optimizer.param_groups
        for group, rate in zip(groups, self.parts.rates.of(index), strict=True):
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate
        if self.replay is None:
            self.inputs, self.targets = inputs.clone(), targets.clone()
            for _ in range(self.warm_ups):
                training_step(self.parts, self.inputs, self.targets)
            self.replay, self.given = self.recorder.capture(
                lambda: training_step(self.parts, self.inputs, self.targets)
            )
        self.inputs[: len(inputs)] = inputs
        self.targets[: len(targets)] = targets
        self.replay()
        loss, count = self.given
        return loss.clone(), None if count is None else count.clone()


EVEN = make_batches(tail=BATCH)


def naive(parts: Parts, *, batches: Sequence[Batch] = EVEN, **options: Any) -> State:
    torch.manual_seed(0)
    take(Naive(parts, **options), parts, batches=batches)
    return state_of(parts)


# The stand-in.


def test_a_recording_does_not_take_effect_and_leaves_rubbish() -> None:
    held, made = torch.zeros(3), []

    def step() -> None:
        held.add_(1)
        made.append(held * 2)

    replay, _ = RecordedGraph().capture(step)
    assert held.tolist() == [0, 0, 0]
    assert made[0].isnan().all()
    for expected in (1, 2):
        replay()
        assert held.tolist() == [expected] * 3
        assert made[0].tolist() == [2 * expected] * 3


def test_numbers_freeze_and_random_numbers_do_not() -> None:
    number, held = [2.0], torch.zeros(2, 1000)

    def step() -> None:
        held[0].fill_(number[0])
        held[1].bernoulli_(0.5)

    torch.manual_seed(3)
    replay, _ = RecordedGraph().capture(step)
    number[0] = 5.0
    masks = []
    for _ in range(2):
        replay()
        assert held[0].unique().tolist() == [2.0]
        masks.append(held[1].clone())
    torch.manual_seed(3)
    assert torch.equal(masks[0], torch.empty(1000).bernoulli_(0.5))
    assert not torch.equal(masks[0], masks[1])


def test_a_recorded_tensor_keeps_its_memory_wherever_its_name_points() -> None:
    weight = nn.Parameter(torch.ones(2))
    old = weight.data

    def step() -> None:
        with torch.no_grad():
            weight.mul_(2)

    replay, _ = RecordedGraph().capture(step)
    weight.data = torch.ones(2)
    replay()
    assert weight.tolist() == [1, 1]
    assert old.tolist() == [2, 2]


READS: dict[str, Callable[[Tensor], object]] = {
    "item": lambda x: x[0].item(),
    "branch": lambda x: 1 if x[0] > 0 else 0,
    "nonzero": lambda x: x.nonzero(),
    "mask": lambda x: x[x > 0],
    "tolist": lambda x: x.tolist(),
    "numpy": lambda x: x.numpy(),
    "equal": lambda x: torch.equal(x, x),
    "unique": lambda x: x.unique(),
}


@pytest.mark.parametrize("name", READS)
def test_reading_back_is_refused(name: str) -> None:
    x = torch.ones(3)
    with pytest.raises(RuntimeError, match=NOT_PERMITTED):
        RecordedGraph().capture(lambda: READS[name](x))
    with pytest.raises(RuntimeError, match="synchronizing"):
        RecordedGraph().rehearse(lambda: READS[name](x))
    index = torch.tensor([0, 2])
    RecordedGraph().capture(lambda: x[index] + x.sum())
    RecordedGraph().rehearse(lambda: x[index] + x.sum())


# Trap 9: the same bits.


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_graph_gives_the_same_bits(name: str) -> None:
    make = OPTIMIZERS[name]
    compare(lambda: make_parts(make, decay=0.9, clip=0.5))


@pytest.mark.parametrize("constant", [False, True])
@pytest.mark.parametrize("clip", [None, 0.05])
@pytest.mark.parametrize("decay", [None, 0.7])
def test_with_and_without_clipping_averaging_and_a_schedule(
    decay: float | None, clip: float | None, constant: bool
) -> None:
    compare(lambda: make_parts(decay=decay, clip=clip, constant=constant))


def test_several_groups_have_rates_of_their_own() -> None:
    def by_layer(parameters: Any) -> Optimizer:
        first, *others = parameters
        rates = [{"params": [first], "lr": 0.3}, {"params": others, "lr": 0.02}]
        return torch.optim.AdamW(rates)

    def make() -> Parts:
        return make_parts(by_layer)

    compare(make)
    table = make().rates.table
    assert table is not None
    assert table[0][0] != table[0][1]


def test_a_regression_has_no_count() -> None:
    batches = [(inputs, torch.randn(len(inputs), 4)) for inputs, _ in BATCHES]
    compare(lambda: make_parts(loss=nn.MSELoss()), batches=batches)
    parts = make_parts(loss=nn.MSELoss())
    assert {count for _, count in graphed(parts, batches=batches)[0]} == {None}


def test_a_loss_with_state_and_of_one_element() -> None:
    class Weighted(nn.Module):
        seen: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("seen", torch.zeros(1))

        def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
            self.seen += 1
            loss = nn.functional.cross_entropy(outputs, targets)
            return loss * (1 + 1 / self.seen)

    compare(lambda: make_parts(loss=Weighted()))


class Embedded(nn.Module):
    """Takes integers, and has a buffer that is no state: a view of few numbers."""

    shift: Tensor

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.embedding = nn.Embedding(9, 5)
        self.classify = nn.Linear(5, 4)
        self.register_buffer("shift", torch.ones(1).expand(5), persistent=False)

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.classify(self.embedding(inputs).mean(1) + self.shift)
        return outputs


def test_integers_go_in_and_overlapping_buffers_are_kept() -> None:
    batches = [(torch.randint(0, 9, (len(y), 3)), y) for _, y in BATCHES]
    compare(lambda: make_parts(model=Embedded()), batches=batches)


def test_a_weight_that_the_optimizer_does_not_move_gathers_its_gradient_for_the_clipping() -> None:
    def only_the_last(parameters: Any) -> Optimizer:
        return sgd([list(parameters)[-2]])

    compare(lambda: make_parts(only_the_last, clip=0.1))


def test_frozen_weights_stay() -> None:
    def make() -> Parts:
        torch.manual_seed(1)
        net = Net()
        net[0].weight.requires_grad_(False)
        return make_parts(model=net)

    compare(make)


def test_another_memory_layout() -> None:
    batches = [(x.to(memory_format=torch.channels_last), y) for x, y in BATCHES]
    compare(lambda: make_parts(), batches=batches)


def test_lower_precision() -> None:
    compare(lambda: make_parts(autocast="bfloat16"))
    # A weight that is cast once and kept would learn nothing here.
    torch.manual_seed(0)
    expected, state = eager(make_parts(autocast="bfloat16"))
    torch.manual_seed(0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found, within = eager(make_parts(autocast="bfloat16"))
    assert found == expected
    assert_same_bits(within, state)


def test_what_a_forward_pass_leaves_behind_is_no_obstacle() -> None:
    class Remembering(Net):
        seen: Tensor

        def forward(self, inputs: Tensor) -> Tensor:
            self.seen = super().forward(inputs)  # has a grad_fn, so the next step makes it anew
            return self.seen

    def make() -> Parts:
        torch.manual_seed(1)
        return make_parts(model=Remembering())

    compare(make)


def test_a_generator_on_the_device_draws_in_the_graph() -> None:
    class Noisy(Net):
        def __init__(self) -> None:
            super().__init__()
            self.generator = torch.Generator().manual_seed(5)

        def __deepcopy__(self, memo: Any) -> nn.Module:
            return Net()

        def forward(self, inputs: Tensor) -> Tensor:
            return super().forward(inputs) * torch.rand(4, generator=self.generator)

    def make() -> Parts:
        torch.manual_seed(1)
        return make_parts(model=Noisy())

    compare(make)


def test_masks_differ_from_step_to_step_and_repeat_with_the_seed() -> None:
    class Masked(nn.Module):
        last: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.drop = nn.Dropout(0.3)
            self.scale = nn.Parameter(torch.ones(1))
            self.register_buffer("last", torch.zeros(BATCH, 72))

        def forward(self, inputs: Tensor) -> Tensor:
            dropped = self.drop(torch.ones_like(inputs.flatten(1))) * self.scale
            if len(inputs) == BATCH:
                self.last.copy_(dropped.detach())
            return dropped[:, :4]

    runs = []
    for _ in range(2):
        model = Masked()
        parts = make_parts(lambda w: torch.optim.SGD(w, lr=1e-9), model=model)
        masks: list[Tensor] = []
        executor, recorder = make_graph(parts)

        def look(index: int, masks: list[Tensor] = masks, last: Tensor = model.last) -> None:
            masks.append(last.ne(0))

        take(executor, parts, after_step=look)
        assert recorder.replays > 40
        runs.append(masks)
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))
    full = [mask for step, mask in enumerate(runs[0]) if step % STEPS != STEPS - 1]
    assert all(not torch.equal(a, b) for a, b in itertools.pairwise(full))
    kept = torch.stack(full).double().mean()
    assert abs(float(kept) - 0.7) < 4 * (0.3 * 0.7 / torch.stack(full).numel()) ** 0.5


@pytest.mark.parametrize("name", ["SGD with Nesterov", "AdamW", "RMSprop"])
@pytest.mark.parametrize("start", [2 * STEPS, 3 * STEPS + 2, 4 * STEPS - 1])
def test_a_run_goes_on_in_the_middle(start: int, name: str) -> None:
    def make() -> Parts:
        return make_parts(OPTIMIZERS[name], decay=0.9, clip=0.5)

    expected, state = eager(make())
    broken = make()
    saved: dict[str, Any] = {}

    def save(index: int) -> None:
        if index == start - 1:
            saved["model"] = copy.deepcopy(broken.model.state_dict())
            saved["optimizer"] = copy.deepcopy(broken.optimizer.state_dict())
            assert broken.average is not None
            saved["average"] = copy.deepcopy(broken.average.state_dict())
            saved["random"] = torch.get_rng_state()

    given = graphed(broken, after_step=save)[0][:start]
    for group in saved["optimizer"]["param_groups"]:
        # What a file holds that does not depend on the executor.
        group.update(lr=float(group["lr"]), foreach=None, fused=None, capturable=False)
    going_on = make()
    executor, recorder = make_graph(going_on)
    going_on.model.load_state_dict(saved["model"])
    going_on.optimizer.load_state_dict(saved["optimizer"])
    assert going_on.average is not None
    going_on.average.load_state_dict(saved["average"])
    torch.set_rng_state(saved["random"])
    given += take(executor, going_on, start=start)
    assert executor.name == "graph"
    assert recorder.captures == 2
    assert given == expected
    assert_same_bits(state_of(going_on), state)


def test_steps_may_come_in_any_order() -> None:
    order = [0, 5, 1, 20, 21, 22, 7, 40, 7, 6, 55]
    states, given = [], []
    for make in MAKE_EXECUTOR:
        parts = make_parts(decay=0.9)
        torch.manual_seed(0)
        executor = make(parts)
        results = []
        for index in order:
            loss, count = executor.step(*BATCHES[index % STEPS], index)
            assert count is not None
            results.append((float(loss), int(count)))
        states.append(state_of(parts))
        given.append(results)
    assert given[0] == given[1]
    assert_same_bits(*states)


def test_what_a_step_returned_holds_for_an_epoch() -> None:
    parts = make_parts()
    executor, _ = make_graph(parts)
    kept, values = [], []
    for index in range(3 * STEPS):
        loss, count = executor.step(*BATCHES[index % STEPS], index)
        assert loss.shape == ()
        assert count is not None
        kept.append((loss, count))
        values.append((float(loss), int(count)))
        first = max(0, index - STEPS + 1)
        assert [(float(a), int(b)) for a, b in kept[first:]] == values[first:]


def test_a_step_beyond_the_schedule_is_an_error_as_without_a_graph() -> None:
    for make in MAKE_EXECUTOR:
        parts = make_parts()
        executor = make(parts)
        for index in range(3):
            executor.step(*BATCHES[0], index)
        with pytest.raises(IndexError):
            executor.step(*BATCHES[0], EPOCHS * STEPS)


def test_a_step_beyond_the_schedule_never_gets_to_the_device() -> None:
    parts = make_parts()
    executor = GraphExecutor(parts, CPU, STEPS, recorder=Deaf())  # which would not notice
    for index in range(3):
        executor.step(*BATCHES[0], index)
    with pytest.raises(IndexError):
        executor.step(*BATCHES[0], EPOCHS * STEPS)


def test_inputs_with_a_gradient_go_operation_by_operation() -> None:
    parts = make_parts()
    executor, recorder = make_graph(parts)
    for index in range(4):
        inputs = BATCHES[0][0].clone().requires_grad_(index > 1)
        executor.step(inputs, BATCHES[0][1], index)
        assert (inputs.grad is None) is (index <= 1)
    assert (executor.name, recorder.captures, recorder.replays) == ("graph", 1, 1)


def test_the_last_step_of_all_can_be_the_first_of_its_shape() -> None:
    """Rehearsals that counted steps would read rates beyond the table."""
    last = EPOCHS * STEPS - 1
    states = []
    for make in MAKE_EXECUTOR:
        parts = make_parts()
        executor = make(parts)
        torch.manual_seed(0)
        for index in (last - 2, last - 1):
            executor.step(*BATCHES[0], index)
        executor.step(*BATCHES[-1], last)
        states.append(state_of(parts))
        assert executor.name != "eager" or isinstance(executor, EagerExecutor)
    assert_same_bits(*states)


# Trap 1: a rate that is read on the host, or frozen.


def test_trap_1_a_rate_that_is_a_number_freezes() -> None:
    _, state = eager(make_parts(prepared=False), batches=EVEN)
    assert differ(naive(make_parts(prepared=False), eager_steps=1), state)
    compare(lambda: make_parts(), batches=EVEN)


def test_trap_1_an_optimizer_that_reads_its_rate_cannot_be_recorded() -> None:
    def foreach(parameters: Any) -> Optimizer:
        return torch.optim.SGD(parameters, lr=torch.tensor(0.1), momentum=0.9, foreach=True)

    with pytest.raises(RuntimeError, match=NOT_PERMITTED):
        naive(make_parts(foreach, prepared=False), eager_steps=1)
    compare(lambda: make_parts(foreach))


# Trap 2: numbers that freeze.


def test_trap_2_momentum_that_moves_freezes_and_is_refused_at_the_door() -> None:
    def moving(parts: Parts) -> Callable[[int], None]:
        def move(index: int) -> None:
            parts.optimizer.param_groups[0]["momentum"] = 0.9 - 0.01 * index

        return move

    parts = make_parts(constant=True)
    _, state = eager(parts, batches=EVEN, after_step=moving(parts))
    parts = make_parts(constant=True)
    runs = Naive(parts, eager_steps=1)
    torch.manual_seed(0)
    take(runs, parts, batches=EVEN, after_step=moving(parts))
    assert differ(state_of(parts), state)

    optimizer = sgd(Net().parameters())
    with pytest.raises(InvalidInputError, match="cycle_momentum=False"):
        rate_table(
            optimizer,
            lambda trial: lr_scheduler.OneCycleLR(trial, 0.1, total_steps=56),
            epochs=8,
            steps_per_epoch=7,
        )
    assert prepare_optimizer(optimizer, CPU) is None
    with pytest.raises(InvalidInputError, match="cycle_momentum=False"):
        rate_table(
            optimizer,
            lambda trial: lr_scheduler.OneCycleLR(trial, 0.1, total_steps=56),
            epochs=8,
            steps_per_epoch=7,
        )


def test_trap_2_settings_of_the_optimizer_that_change_between_epochs_are_noticed() -> None:
    parts = make_parts()
    executor, _ = make_graph(parts)
    take(executor, parts, epochs=1)
    parts.optimizer.param_groups[0]["momentum"] = 0.5
    with pytest.raises(InvalidInputError, match=r"\['momentum'\] went from 0\.9 to 0\.5"):
        take(executor, parts, epochs=2, start=STEPS)


# Trap 3: what warm-up and recording leave behind.


class Deaf(RecordedGraph):
    """Its graphs do nothing, so that what remains is what the recording did."""

    def capture(self, step: Callable[[], Any]) -> tuple[Callable[[], None], Any]:
        _, result = super().capture(step)
        return (lambda: None), result


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_trap_3_a_recording_leaves_no_trace(name: str) -> None:
    parts = make_parts(OPTIMIZERS[name], decay=0.9, clip=0.5)
    executor = GraphExecutor(parts, CPU, STEPS, recorder=Deaf())
    executor.step(*BATCHES[0], 0)
    before, numpy, python = state_of(parts), np.random.get_state(), random.getstate()  # noqa: NPY002
    for index in (1, STEPS - 1):
        executor.step(*BATCHES[index], index)
        after = state_of(parts)
        assert_same_bits(after, before)
    assert str(np.random.get_state()) == str(numpy)  # noqa: NPY002
    assert random.getstate() == python
    # Nothing of a graph's memory stays in anybody's hands.
    assert all(weight.grad is None for weight in parts.model.parameters())


def test_trap_3_a_warm_up_that_is_not_undone_changes_the_run() -> None:
    _, state = eager(make_parts(), batches=EVEN)
    found = naive(make_parts(), eager_steps=1)
    assert not differ(found, state)  # with equal batches and no warm-up nothing is wrong
    assert differ(naive(make_parts(), eager_steps=1, warm_ups=REHEARSALS), state)


def test_trap_3_momentum_made_in_the_recording_never_builds_up() -> None:
    _, state = eager(make_parts(), batches=EVEN)
    assert differ(naive(make_parts()), state)


# Trap 4: gradients and weights in other memory.


def spoil_gradients(parts: Parts) -> None:
    for weight in parts.model.parameters():
        if weight.grad is None:
            weight.grad = torch.ones_like(weight)
        weight.grad.fill_(9)


CLEAR: tuple[Callable[[Parts], None], ...] = (
    lambda parts: parts.optimizer.zero_grad(set_to_none=True),
    lambda parts: parts.model.zero_grad(set_to_none=True),
    spoil_gradients,
)


@pytest.mark.parametrize("clear", CLEAR)
def test_trap_4_who_clears_gradients_disturbs_nothing(clear: Callable[[Parts], None]) -> None:
    expected, state = eager(make_parts(clip=0.5))
    parts = make_parts(clip=0.5)
    found, graph_state = graphed(parts, after_step=lambda index: clear(parts))
    assert found == expected
    assert_same_bits(graph_state, state)


def test_trap_4_a_graph_that_adds_to_gradients_goes_wrong_when_they_are_cleared_to_none() -> None:
    inputs, targets = EVEN[0]
    given = []
    for to_none in (False, True):
        torch.manual_seed(0)
        classify = nn.Linear(72, 4)

        def backward(classify: nn.Module = classify) -> None:
            nn.functional.cross_entropy(classify(inputs.flatten(1)), targets).backward()

        backward()
        gradient = classify.weight.grad
        assert gradient is not None
        replay, _ = RecordedGraph().capture(backward)
        for _ in range(2):
            classify.zero_grad(set_to_none=to_none)
            replay()
        given.append(gradient)
    torch.testing.assert_close(given[1], 3 * given[0])


def replace_weight(net: Any) -> None:
    net[0].weight = nn.Parameter(net[0].weight.detach().clone())


def move_weight(net: Any) -> None:
    net[0].weight.data = net[0].weight.data.clone()


def test_trap_4_the_memory_of_a_graph_is_not_given_to_others() -> None:
    parts = make_parts()
    executor = GraphExecutor(parts, CPU, STEPS, recorder=Deaf())  # which holds on to nothing
    for index in range(2):
        executor.step(*BATCHES[0], index)
    weight = parts.model.get_parameter("0.weight")
    old = StorageWeakRef(weight.untyped_storage())
    move_weight(parts.model)
    gc.collect()
    assert not old.expired()


def test_trap_4_a_graph_moves_the_weights_it_was_recorded_with() -> None:
    for reassign in (replace_weight, move_weight):
        parts = make_parts()
        runs = Naive(parts, eager_steps=1)
        take(runs, parts, epochs=1, batches=EVEN)
        reassign(parts.model)
        before = state_of(parts)
        take(runs, parts, epochs=2, start=STEPS, batches=EVEN)
        assert not differ(state_of(parts), before)  # it does not learn any more


# Trap 5: the last batch of an epoch.


def test_trap_5_each_shape_has_a_graph_of_its_own() -> None:
    parts = make_parts()
    executor, recorder = make_graph(parts)
    take(executor, parts)
    assert recorder.captures == 2
    assert recorder.replays == EPOCHS * STEPS - 1
    assert executor.capture_seconds > 0


def test_trap_5_a_tail_in_a_graph_of_full_batches_learns_from_stale_rows() -> None:
    _, state = eager(make_parts())
    assert differ(naive(make_parts(), eager_steps=1, batches=BATCHES), state)


def test_trap_5_after_a_few_shapes_a_new_one_goes_operation_by_operation() -> None:
    generator = torch.Generator().manual_seed(3)
    batches = [
        (torch.randn(size, 2, 6, 6, generator=generator), torch.arange(size) % 4)
        for size in (8, 8, 7, 6, 5, 4, 3)
    ]
    compare(lambda: make_parts(decay=0.9), batches=batches)
    parts = make_parts()
    executor, recorder = make_graph(parts)
    take(executor, parts, batches=batches)
    assert recorder.captures == MOST_GRAPHS
    # All but the first step, and two shapes in each epoch.
    assert recorder.replays == EPOCHS * (STEPS - 2) - 1


def test_trap_5_a_type_or_layout_of_its_own_is_a_shape_of_its_own() -> None:
    parts = make_parts(loss=lambda outputs, targets: outputs.square().mean())
    executor, recorder = make_graph(parts)
    inputs, targets = BATCHES[0]
    variants = [
        (inputs, targets),
        (inputs, targets),
        (inputs, targets.int()),
        (inputs.to(memory_format=torch.channels_last), targets),
    ]
    for index, batch in enumerate(variants):
        executor.step(*batch, index)
    assert recorder.captures == 3


# Trap 6: how kernels are chosen, and what autocast keeps.


class Spy(RecordedGraph):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, bool]] = []

    def run(self, step: Callable[[], Any]) -> Any:
        self.seen.append(("run", torch.backends.cudnn.benchmark))
        return super().run(step)

    def rehearse(self, step: Callable[[], object]) -> None:
        self.seen.append(("rehearse", torch.backends.cudnn.benchmark))
        super().rehearse(step)

    def capture(self, step: Callable[[], Any]) -> tuple[Callable[[], None], Any]:
        self.seen.append(("capture", torch.backends.cudnn.benchmark))
        return super().capture(step)


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("before", [False, True])
def test_trap_6_kernels_are_tried_out_before_the_recording(
    before: bool, deterministic: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", before)
    spy = Spy()
    parts = make_parts()
    executor = GraphExecutor(parts, CPU, STEPS, recorder=spy)
    try:
        torch.use_deterministic_algorithms(deterministic)
        for index in range(3):
            executor.step(*BATCHES[0], index)
    finally:
        torch.use_deterministic_algorithms(False)
    chosen = not deterministic
    assert spy.seen == [
        ("run", before),
        *[("run", chosen)] * (REHEARSALS - 1),
        ("rehearse", chosen),
        ("capture", chosen),
    ]
    assert torch.backends.cudnn.benchmark == before


def test_trap_6_a_weight_that_autocast_has_kept_is_never_cast_again() -> None:
    def make() -> Parts:
        torch.manual_seed(1)
        return make_parts(model=nn.Sequential(nn.Flatten(), nn.Linear(72, 4)))

    def cast(kept: bool) -> torch.autocast:
        return torch.autocast("cpu", dtype=torch.bfloat16, cache_enabled=kept)

    with cast(kept=False):
        expected, state = eager(make(), batches=EVEN)
    with cast(kept=True):
        parts = make()
        found = take(Naive(parts, eager_steps=1), parts, batches=EVEN)
        assert [loss for loss, _ in found[2:]] != [loss for loss, _ in expected[2:]]
        assert differ(state_of(parts), state, "model.1.weight")
    with cast(kept=False):
        parts = make()
        EagerExecutor(parts).step(*EVEN[0], 0)
    with cast(kept=True):
        parts = make()
        executor, _ = make_graph(parts)
        found = take(executor, parts, batches=EVEN)
        assert executor.name == "graph"
    assert found == expected
    assert_same_bits(state_of(parts), state)


# Trap 7: what changes afterwards.


def freeze(parts: Any) -> None:
    parts.model[0].weight.requires_grad_(False)


CHANGES: dict[str, tuple[Callable[[Any], object], str]] = {
    "mode of a part": (lambda p: p.model[1].eval(), r"model\.1\.training went from True to False"),
    "mode of all": (lambda p: p.model.eval(), r"training went from True to False"),
    "weight": (lambda p: replace_weight(p.model), r"model\.0\.weight has been replaced"),
}
SLOW_CHANGES: dict[str, tuple[Callable[[Any], object], str]] = {
    "p": (lambda p: setattr(p.model[3], "p", 0.5), r"model\.3\.p went from 0\.25 to 0\.5"),
    "eps": (lambda p: setattr(p.model[1], "eps", 1e-3), r"model\.1\.eps went from 1e-05 to 0\.001"),
    "momentum": (
        lambda p: setattr(p.model[1], "momentum", None),
        r"model\.1\.momentum went from 0\.1 to None",
    ),
    "requires_grad": (freeze, r"model\.0\.weight\.requires_grad went from True to False"),
    "memory of a weight": (
        lambda p: move_weight(p.model),
        r"model\.0\.weight has been replaced",
    ),
    "buffer": (
        lambda p: p.model[1].register_buffer("running_mean", torch.zeros(4)),
        r"model\.1\.running_mean has been replaced",
    ),
    "layer": (
        lambda p: p.model.register_module("2", nn.GELU()),
        r"model\.2 went from <class .*ReLU'> to <class .*GELU'>",
    ),
    "new layer": (lambda p: p.model.append(nn.Identity()), r"model\.6 has come"),
    "lost layer": (lambda p: p.model.pop(3), r"model\.3 went from|model\.5 has gone"),
    "rate": (
        lambda p: p.optimizer.param_groups[0].update(lr=torch.tensor(0.5)),
        r"\['lr'\] has been replaced",
    ),
    "momentum buffers": (
        lambda p: p.optimizer.load_state_dict(p.optimizer.state_dict()),
        r"optimizer.*has been replaced|went from",
    ),
    "label smoothing": (
        lambda p: setattr(p.loss, "label_smoothing", 0.1),
        r"loss\.label_smoothing went from 0\.0 to 0\.1",
    ),
    "attribute": (
        lambda p: setattr(p.model, "temperature", 2.0),
        r"model\.temperature has come",
    ),
}


@pytest.mark.parametrize("name", CHANGES)
def test_trap_7_a_change_within_an_epoch_is_an_error_that_says_what(name: str) -> None:
    change, message = CHANGES[name]
    parts = make_parts()
    executor, _ = make_graph(parts)
    for index in range(3):
        executor.step(*BATCHES[0], index)
    change(parts)
    with pytest.raises(InvalidInputError, match=message) as error:
        executor.step(*BATCHES[0], 3)
    assert "executor='eager'" in str(error.value)


@pytest.mark.parametrize("name", [*CHANGES, *SLOW_CHANGES])
def test_trap_7_a_change_between_epochs_is_an_error_that_says_what(name: str) -> None:
    change, message = (CHANGES | SLOW_CHANGES)[name]
    parts = make_parts()
    executor, _ = make_graph(parts)
    for index in range(STEPS):
        executor.step(*BATCHES[index], index)
    change(parts)
    with pytest.raises(InvalidInputError, match=message):
        executor.step(*BATCHES[0], STEPS)


@pytest.mark.parametrize("name", [*CHANGES, *SLOW_CHANGES])
def test_trap_7_a_change_before_another_shape_is_recorded_is_an_error(name: str) -> None:
    change, message = (CHANGES | SLOW_CHANGES)[name]
    parts = make_parts()
    executor, _ = make_graph(parts)
    for index in range(STEPS - 1):
        executor.step(*BATCHES[index], index)
    change(parts)
    with pytest.raises(InvalidInputError, match=message):
        executor.step(*BATCHES[-1], STEPS - 1)


def test_trap_7_a_graph_itself_follows_no_change() -> None:
    states = []
    for changed in (False, True):
        parts = make_parts()
        runs = Naive(parts, eager_steps=1)

        def change(index: int, parts: Any = parts, changed: bool = changed) -> None:
            if changed and index == 3:
                parts.model[3].p = 0.9
                parts.model[1].eval()

        torch.manual_seed(0)
        take(runs, parts, batches=EVEN, after_step=change)
        states.append(state_of(parts))
    assert_same_bits(*states)


def test_what_is_equal_is_no_change() -> None:
    parts = make_parts()
    net: Any = parts.model
    net.first = net.second = (1, 2)
    executor, _ = make_graph(parts)
    take(executor, parts, epochs=1)
    net.second = tuple(int(digit) for digit in "12")  # another tuple, with the same in it
    take(executor, parts, epochs=2, start=STEPS)


def test_what_happens_between_epochs_is_no_change() -> None:
    parts = make_parts(decay=0.9)
    executor, _ = make_graph(parts)

    def judge(index: int) -> None:
        if index % STEPS != STEPS - 1:
            return
        assert parts.average is not None
        for model in (parts.model, parts.average.module):
            model.eval()
            with torch.no_grad():
                model(BATCHES[0][0])
            model.train()
        parts.model.load_state_dict(copy.deepcopy(parts.model.state_dict()))

    take(executor, parts, after_step=judge)
    assert executor.name == "graph"


# Trap 8: several processes.


class Exchange:
    """Halves the gradients, and reads on the host where it is neither recorded nor watched."""

    def __init__(self) -> None:
        self.calls: list[int] = []
        self.parts: Parts | None = None

    def __call__(self, samples: int) -> None:
        self.calls.append(samples)
        assert self.parts is not None
        for weight in self.parts.model.parameters():
            assert weight.grad is not None
            weight.grad.mul_(0.5)


def with_exchange() -> tuple[Parts, Exchange]:
    exchange = Exchange()
    parts = make_parts(exchange=exchange)
    exchange.parts = parts
    return parts, exchange


def test_trap_8_the_exchange_is_part_of_the_graph() -> None:
    compare(lambda: with_exchange()[0])
    parts, exchange = with_exchange()
    executor, _ = make_graph(parts)
    take(executor, parts)
    # The first step, two rehearsals and the recording; those of the tail.
    assert exchange.calls == [BATCH] * 4 + [TAIL] * 3


def test_trap_8_processes_agree_once_and_record_one_graph() -> None:
    asked: list[bool] = []

    def agree(ready: bool) -> bool:
        asked.append(ready)
        return True

    expected, _ = with_exchange()
    given, state = eager(expected)
    parts, _ = with_exchange()
    executor, recorder = make_graph(parts, agree=agree)
    assert take(executor, parts) == given
    assert_same_bits(state_of(parts), state)
    assert asked == [True]
    assert recorder.captures == 1
    assert recorder.replays == EPOCHS * (STEPS - 1) - 1


def test_trap_8_the_last_batch_is_never_in_a_graph_even_if_its_shape_is_known_here() -> None:
    """In another process it may be one row shorter, and whether NCCL is recorded must be alike."""
    parts, _ = with_exchange()
    executor, recorder = make_graph(parts, agree=lambda ready: ready)
    take(executor, parts, batches=EVEN)
    assert recorder.replays == EPOCHS * (STEPS - 1) - 1


def test_trap_8_if_another_process_cannot_record_this_one_does_not() -> None:
    expected, _ = with_exchange()
    given, state = eager(expected)
    parts, _ = with_exchange()
    executor, recorder = make_graph(parts, agree=lambda ready: False)
    with pytest.warns(UserWarning, match="another process") as caught:
        found = take(executor, parts)
    assert len(caught) == 1
    assert found == given
    assert_same_bits(state_of(parts), state)
    assert recorder.replays == 0
    assert executor.name == "eager"


def test_trap_8_if_this_process_cannot_record_it_says_so() -> None:
    asked: list[bool] = []

    def agree(ready: bool) -> bool:
        asked.append(ready)
        return ready

    parts = make_parts(model=Reading())
    executor, _ = make_graph(parts, agree=agree)
    with pytest.warns(UserWarning, match="synchronizing"):
        take(executor, parts)
    assert asked == [False]


def test_trap_8_uneven_batches_are_an_error() -> None:
    parts, _ = with_exchange()
    executor, _ = make_graph(parts, agree=lambda ready: ready)
    for index in range(3):
        executor.step(*BATCHES[0], index)
    with pytest.raises(InvalidInputError, match=r"\(3, 2, 6, 6\).*equal batches"):
        executor.step(*BATCHES[-1], 3)


# Trap 10: steps that cannot be recorded.


class Reading(Net):
    """Reads on the host: a branch on a number of the device."""

    def __init__(self) -> None:
        torch.manual_seed(1)
        super().__init__()

    def forward(self, inputs: Tensor) -> Tensor:
        outputs = super().forward(inputs)
        return outputs * 2 if outputs.sum().item() > 0 else outputs


class Counting(Reading):
    """Keeps a number in Python."""

    calls = 0

    def forward(self, inputs: Tensor) -> Tensor:
        self.calls += 1
        return super(Reading, self).forward(inputs) / self.calls


class Reassigning(Reading):
    """Moves a buffer to other memory in every step, where a graph would read the old one."""

    mean: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(()))

    def forward(self, inputs: Tensor) -> Tensor:
        self.mean = 0.9 * self.mean + 0.1 * inputs.mean()
        return super(Reading, self).forward(inputs) + self.mean


class Forgetful(Reading):
    """Likewise, with a tensor that is no buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.mean = torch.zeros(())

    def forward(self, inputs: Tensor) -> Tensor:
        self.mean = 0.9 * self.mean + 0.1 * inputs.mean()
        return super(Reading, self).forward(inputs) + self.mean


class Repointing(Reading):
    """Likewise, through ``data``."""

    def forward(self, inputs: Tensor) -> Tensor:
        classify: Any = self[5]
        classify.bias.data = classify.bias.data * 0.9
        return super(Reading, self).forward(inputs)


class Listing(Reading):
    """Writes a diary."""

    def __init__(self) -> None:
        super().__init__()
        self.diary: list[int] = []

    def forward(self, inputs: Tensor) -> Tensor:
        self.diary.append(len(inputs))
        return super(Reading, self).forward(inputs) / len(self.diary)


class Late(Reading):
    """Changes a number in its fifth pass, which is the one that is recorded."""

    def __init__(self) -> None:
        super().__init__()
        self.number = 0
        self.passes = iter(range(10_000))  # an object that nobody looks into

    def __deepcopy__(self, memo: Any) -> nn.Module:
        return Net()

    def forward(self, inputs: Tensor) -> Tensor:
        if next(self.passes) == REHEARSALS + 1:
            self.number = 1
        return super(Reading, self).forward(inputs)


class Drawing(Reading):
    """Draws random numbers in Python."""

    def forward(self, inputs: Tensor) -> Tensor:
        return super(Reading, self).forward(inputs) * random.random()


class DrawingNumpy(Reading):
    """Draws random numbers in NumPy."""

    def forward(self, inputs: Tensor) -> Tensor:
        return super(Reading, self).forward(inputs) * float(np.random.rand())  # noqa: NPY002


class DrawingOwn(Reading):
    """Draws from generators of its own."""

    def __init__(self, numpy: bool = False) -> None:
        super().__init__()
        self.own = np.random.default_rng(3) if numpy else random.Random(3)

    def forward(self, inputs: Tensor) -> Tensor:
        return super(Reading, self).forward(inputs) * self.own.random()


class DrawingOwnNumpy(DrawingOwn):
    """Likewise."""

    def __init__(self) -> None:
        super().__init__(numpy=True)


class Masking(Reading):
    """Has a result whose size depends on what is in it."""

    def forward(self, inputs: Tensor) -> Tensor:
        outputs = super(Reading, self).forward(inputs)
        return outputs - outputs[outputs > 0].sum()


UNRECORDABLE: dict[type[Reading], str] = {
    Reading: r"synchronizing.*test_training_graph\.py, line \d+, in forward",
    Masking: r"synchronizing.*in forward",
    Counting: r"model\.calls",
    Reassigning: r"model\.mean has been replaced",
    Forgetful: r"model\.mean has been replaced",
    Repointing: r"model\.5\.bias has been replaced",
    Late: r"model\.number went from 0 to 1",
    Listing: r"len\(model\.diary\) went from 1 to 4",
    Drawing: "random numbers are drawn on the host",
    DrawingNumpy: "random numbers are drawn on the host",
    DrawingOwn: "random numbers are drawn on the host",
    DrawingOwnNumpy: "random numbers are drawn on the host",
}


@pytest.mark.parametrize("kind", UNRECORDABLE)
def test_trap_10_what_cannot_be_recorded_goes_on_eagerly_with_one_warning(
    kind: type[Reading],
) -> None:
    random.seed(4)
    np.random.seed(4)  # noqa: NPY002
    expected_parts = make_parts(model=kind(), decay=0.9)
    expected, state = eager(expected_parts)
    random.seed(4)
    np.random.seed(4)  # noqa: NPY002
    parts = make_parts(model=kind(), decay=0.9)
    executor, recorder = make_graph(parts)
    with pytest.warns(UserWarning, match=UNRECORDABLE[kind]) as caught:
        found = take(executor, parts)
    assert len(caught) == 1
    assert "executor='eager'" in str(caught[0].message)
    assert (executor.name, recorder.replays) == ("eager", 0)
    assert found == expected
    assert_same_bits(state_of(parts), state)
    # What Python holds is as if nothing had been tried, too.
    assert getattr(parts.model, "calls", None) == getattr(expected_parts.model, "calls", None)
    assert getattr(parts.model, "diary", None) == getattr(expected_parts.model, "diary", None)


class CountingLate(Reading):
    """Goes wrong for the tail only."""

    tails = 0

    def forward(self, inputs: Tensor) -> Tensor:
        self.tails += len(inputs) == TAIL
        return super(Reading, self).forward(inputs) / (1 + self.tails)


def test_trap_10_the_second_shape_may_be_the_one_that_fails() -> None:
    expected, state = eager(make_parts(model=CountingLate()))
    parts = make_parts(model=CountingLate())
    executor, recorder = make_graph(parts)
    with pytest.warns(UserWarning, match=r"model\.tails went from 0 to 3") as caught:
        found = take(executor, parts)
    assert len(caught) == 1
    assert recorder.captures == 1
    assert recorder.replays == STEPS - 2
    assert found == expected
    assert_same_bits(state_of(parts), state)


def test_trap_10_a_naive_graph_of_such_networks_is_wrong() -> None:
    for kind in (Counting, Reassigning, Repointing):
        _, state = eager(make_parts(model=kind()), batches=EVEN)
        found = naive(make_parts(model=kind()), eager_steps=1)
        assert differ(found, state, "model.5.weight"), kind


class Failing(RecordedGraph):
    """Fails in the recording itself, after all of it has been done."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error

    def capture(self, step: Callable[[], Any]) -> tuple[Callable[[], None], Any]:
        super().capture(step)
        raise self.error


def test_trap_10_an_error_in_the_recording_leaves_no_trace() -> None:
    expected, state = eager(make_parts(decay=0.9))
    parts = make_parts(decay=0.9)
    failing = Failing(RuntimeError("CUDA error: operation would make the legacy stream depend\nx"))
    executor = GraphExecutor(parts, CPU, STEPS, recorder=failing)
    with pytest.warns(
        UserWarning, match=r"slower: CUDA error: operation would .* depend \("
    ) as got:
        found = take(executor, parts)
    assert len(got) == 1
    assert found == expected
    assert_same_bits(state_of(parts), state)


def test_running_out_of_memory_is_no_reason_to_go_on_in_secret() -> None:
    parts = make_parts(decay=0.9)
    error = torch.OutOfMemoryError("CUDA out of memory")
    executor = GraphExecutor(parts, CPU, STEPS, recorder=Failing(error))
    executor.step(*BATCHES[0], 0)
    before = state_of(parts)
    with pytest.raises(torch.OutOfMemoryError):
        executor.step(*BATCHES[1], 1)
    assert_same_bits(state_of(parts), before)


def test_ctrl_c_in_the_recording_leaves_no_trace() -> None:
    class Stopped(RecordedGraph):
        def capture(self, step: Callable[[], Any]) -> tuple[Callable[[], None], Any]:
            super().capture(step)
            raise KeyboardInterrupt

    parts = make_parts(decay=0.9)
    executor = GraphExecutor(parts, CPU, STEPS, recorder=Stopped())
    executor.step(*BATCHES[0], 0)
    before = state_of(parts)
    with pytest.raises(KeyboardInterrupt):
        executor.step(*BATCHES[1], 1)
    assert_same_bits(state_of(parts), before)


BAD: dict[str, Batch] = {
    "image too small": (torch.zeros(BATCH, 2, 2, 2), BATCHES[0][1]),
    "channels": (torch.zeros(BATCH, 3, 6, 6), BATCHES[0][1]),
    "type": (torch.zeros(BATCH, 2, 6, 6, dtype=torch.int64), BATCHES[0][1]),
    "number of labels": (BATCHES[0][0], BATCHES[0][1][:3]),
    "label": (BATCHES[0][0], torch.full((BATCH,), 4)),
}


@pytest.mark.parametrize("when", [0, 1, 3])
@pytest.mark.parametrize("name", BAD)
def test_a_bad_batch_gives_the_error_it_gives_without_a_graph(name: str, when: int) -> None:
    errors = []
    for make in MAKE_EXECUTOR:
        parts = make_parts()
        executor = make(parts)
        for index in range(when):
            executor.step(*BATCHES[0], index)
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # nothing is said of graphs
            with pytest.raises((RuntimeError, IndexError, ValueError)) as caught:
                executor.step(*BAD[name], when)
        errors.append((type(caught.value), str(caught.value)))
    assert errors[0] == errors[1]


# Preparing the optimizer, and choosing an executor.


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_preparing_puts_rates_and_state_on_the_device(name: str) -> None:
    net = Net()
    optimizer = OPTIMIZERS[name](net.parameters())
    before = [dict(group) for group in optimizer.param_groups]
    assert prepare_optimizer(optimizer, CPU) is None
    (group,) = optimizer.param_groups
    assert isinstance(group["lr"], Tensor)
    assert group["lr"].dtype == torch.float32
    assert float(group["lr"]) == pytest.approx(before[0]["lr"])
    kernels = {"lr", "foreach", "fused", "capturable"}
    assert group.keys() == before[0].keys()  # so that a checkpoint fits with or without a graph
    for key in group.keys() - kernels:
        assert group[key] is before[0][key]
    again = dict(group)
    assert prepare_optimizer(optimizer, CPU) is None
    assert all(group[key] is again[key] for key in again)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_preparing_makes_good_what_loading_undid(name: str) -> None:
    parts = make_parts(OPTIMIZERS[name])
    take(EagerExecutor(parts), parts, epochs=1)
    saved = copy.deepcopy(parts.optimizer.state_dict())
    for group in saved["param_groups"]:
        group.update(lr=0.125, **dict.fromkeys(group.keys() & {"foreach", "fused"}))
    parts.optimizer.load_state_dict(saved)
    assert parts.optimizer.param_groups[0]["lr"] == 0.125
    assert prepare_optimizer(parts.optimizer, CPU) is None
    group = parts.optimizer.param_groups[0]
    assert isinstance(group["lr"], Tensor)
    assert group.get("fused") or group["foreach"]


def test_counters_on_the_host_move_to_the_device() -> None:
    meta = torch.device("meta")
    optimizer = torch.optim.RMSprop([nn.Parameter(torch.zeros(2, device=meta))])
    (weight,) = optimizer.param_groups[0]["params"]
    optimizer.state[weight] = {"step": torch.tensor(3.0, dtype=torch.float64)}
    assert prepare_optimizer(optimizer, meta) is None
    step = optimizer.state[weight]["step"]
    assert (step.device, step.dtype) == (meta, torch.float32)


def test_groups_that_share_a_rate_get_one_each() -> None:
    rate = torch.tensor(0.1)
    net = Net()
    groups = [{"params": [weight]} for weight in net.parameters()]
    optimizer = torch.optim.SGD(groups, lr=rate, momentum=0.9)
    assert prepare_optimizer(optimizer, CPU) is None
    rates = [group["lr"] for group in optimizer.param_groups]
    assert len({one.data_ptr() for one in rates}) == len(rates)
    assert [float(one) for one in rates] == [float(rate)] * len(rates)


class Plain(Optimizer):
    """An optimizer of one's own."""

    def __init__(self, parameters: Any) -> None:
        super().__init__(parameters, {"lr": 0.1})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for weight in group["params"]:
                weight.add_(weight.grad, alpha=-group["lr"])


UNFIT: dict[str, tuple[Callable[[nn.Module], Optimizer], str]] = {
    "LBFGS": (lambda net: torch.optim.LBFGS(net.parameters()), "LBFGS knows neither"),
    "SparseAdam": (lambda net: torch.optim.SparseAdam(list(net.parameters())), "SparseAdam knows"),
    "Adafactor": (lambda net: torch.optim.Adafactor(net.parameters()), "Adafactor knows neither"),
    "of one's own": (lambda net: Plain(net.parameters()), "Plain knows neither"),
    "differentiable": (
        lambda net: torch.optim.Adam(net.parameters(), differentiable=True),
        "Adam is differentiable",
    ),
    "elsewhere": (
        lambda net: torch.optim.Adam([nn.Parameter(torch.zeros(1, device="meta"))]),
        "not on cpu",
    ),
    "complex": (
        lambda net: torch.optim.SGD([nn.Parameter(torch.zeros(1, dtype=torch.complex64))]),
        "SGD knows neither",
    ),
}


@pytest.mark.parametrize("name", UNFIT)
def test_an_optimizer_that_cannot_be_recorded_is_left_alone(name: str) -> None:
    make, message = UNFIT[name]
    optimizer = make(Net())
    before = [dict(group) for group in optimizer.param_groups]
    reason = prepare_optimizer(optimizer, CPU)
    assert reason is not None
    assert message in reason
    assert [dict(group) for group in optimizer.param_groups] == before


def test_complex_weights_go_the_capturable_way() -> None:
    optimizer = torch.optim.Adam([nn.Parameter(torch.zeros(1, dtype=torch.complex64))])
    assert prepare_optimizer(optimizer, CPU) is None
    assert optimizer.param_groups[0]["fused"] is False
    assert optimizer.param_groups[0]["capturable"] is True


def test_reasons_known_beforehand() -> None:
    parts = make_parts(prepared=False)
    assert reason_against(parts, CPU, STEPS) is None
    assert "no len" in str(reason_against(parts, CPU, None))
    sparse = make_parts(model=nn.Sequential(nn.Embedding(3, 3, sparse=True)), prepared=False)
    assert "0 has sparse gradients" in str(reason_against(sparse, CPU, STEPS))
    assert isinstance(sparse.optimizer.param_groups[0]["lr"], float)


def test_an_optimizer_that_a_checkpoint_made_unfit_goes_on_eagerly() -> None:
    parts = make_parts(OPTIMIZERS["Adam"])
    executor, recorder = make_graph(parts)
    parts.optimizer.param_groups[0]["differentiable"] = True
    parts.optimizer.param_groups[0]["fused"] = False
    parts.optimizer.param_groups[0]["capturable"] = False
    with pytest.warns(UserWarning, match="Adam is differentiable"):
        executor.step(*BATCHES[0], 0)
    executor.step(*BATCHES[0], 1)
    assert (executor.name, recorder.captures) == ("eager", 0)


def test_who_chooses_what() -> None:
    parts = make_parts(prepared=False)
    for wanted in ("auto", "eager"):
        assert isinstance(make_executor(wanted, parts, CPU, STEPS), EagerExecutor)
    assert isinstance(parts.optimizer.param_groups[0]["lr"], float)
    with pytest.raises(InvalidInputError, match="executor='graph': needs a CUDA device"):
        make_executor("graph", parts, CPU, STEPS)
    with pytest.raises(InvalidInputError, match="did you mean 'graph'"):
        make_executor("graf", parts, CPU, STEPS)


def test_where_there_can_be_no_graph_it_is_said_if_one_is_wanted() -> None:
    parts = make_parts(prepared=False)  # on the CPU, while the device is another
    cuda = torch.device("cuda", 0)
    assert isinstance(make_executor("auto", parts, cuda, STEPS), EagerExecutor)
    assert isinstance(make_executor("eager", parts, cuda, STEPS), EagerExecutor)
    with pytest.warns(UserWarning, match="not on cuda:0") as caught:
        assert isinstance(make_executor("graph", parts, cuda, STEPS), EagerExecutor)
    assert len(caught) == 1
    with pytest.warns(UserWarning, match="how many batches"):
        make_executor("graph", parts, cuda, None)


@pytest.fixture
def broken_cuda(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """torch.cuda of a machine on which the end of a recording fails, as CUDA's does."""
    log: list[str] = []

    class Stream:
        def __init__(self, device: Any = None) -> None:
            pass

        def wait_stream(self, other: Any) -> None:
            log.append("wait")

    class Entered:
        def __init__(self, name: str) -> None:
            self.name = name

        def __enter__(self) -> None:
            log.append(f"enter {self.name}")

        def __exit__(self, *args: object) -> None:
            log.append(f"leave {self.name}")

    class Graph(Entered):
        def __init__(self, *args: object, **options: object) -> None:
            super().__init__("graph")
            assert options["capture_error_mode"] == "thread_local"

        def __exit__(self, *args: object) -> None:
            raise RuntimeError(
                "CUDA error: operation failed due to a previous error during capture"
            )

    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "current_stream", Stream)
    monkeypatch.setattr(torch.cuda, "device", lambda device: Entered("device"))
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: Entered("stream"))
    monkeypatch.setattr(torch.cuda, "CUDAGraph", object)
    monkeypatch.setattr(torch.cuda, "graph", Graph)
    monkeypatch.setattr(CudaRecorder, "_clean_up", lambda self: log.append("clean up"))
    return log


def test_a_broken_recording_on_cuda_says_its_own_error_and_gives_the_stream_back(
    broken_cuda: list[str],
) -> None:
    def step() -> None:
        raise ValueError("the model's own")

    with pytest.raises(ValueError, match="the model's own"):
        CudaRecorder(torch.device("cuda", 0)).capture(step)
    assert broken_cuda == [
        "enter device",
        "enter stream",
        "enter graph",
        "leave stream",
        "leave device",
        "clean up",
    ]
    broken_cuda.clear()
    with pytest.raises(RuntimeError, match="previous error during capture"):
        CudaRecorder(torch.device("cuda", 0)).capture(lambda: None)
    assert broken_cuda[-1] == "clean up"
    broken_cuda.clear()
    assert CudaRecorder(torch.device("cuda", 0)).run(lambda: 3) == 3
    assert broken_cuda == [
        "enter device",
        "wait",
        "enter stream",
        "leave stream",
        "wait",
        "leave device",
    ]
