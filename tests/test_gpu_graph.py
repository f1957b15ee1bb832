"""The training step as a CUDA graph, on a real GPU: what ``test_training_graph.py`` cannot show."""

import copy
import gc
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import graph_steps
import pytest
import torch
from graph_steps import (
    EPOCHS,
    OPTIMIZERS,
    STEPS,
    TOTAL,
    Batch,
    MakeOptimizer,
    State,
    assert_same_bits,
    one_cycle,
    sgd,
    take,
)
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader, TensorDataset

from constrained_cnn import ImageSet, TrainConfig, Trainer
from constrained_cnn.errors import InvalidInputError
from constrained_cnn.training._average import Average
from constrained_cnn.training._executor import EagerExecutor, Executor, Parts, training_step
from constrained_cnn.training._graph import (
    GraphExecutor,
    make_executor,
)
from constrained_cnn.training._optimizers import prepare_optimizer
from constrained_cnn.training._recorder import CudaRecorder

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

# Asked of cuBLAS before its first use, for results that repeat.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

BATCH, TAIL = 64, 40


@pytest.fixture(scope="module")
def device() -> torch.device:
    return torch.device("cuda", torch.cuda.current_device())


@pytest.fixture(autouse=True)
def _repeatable() -> Iterator[None]:
    """Only kernels that give the same bits every time."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def batches(device: torch.device) -> list[Batch]:
    return make_batches(device)


def make_batches(device: torch.device, tail: int = TAIL) -> list[Batch]:
    generator = torch.Generator().manual_seed(0)
    return [
        (
            torch.randn(size, 1, 12, 12, generator=generator).to(device),
            torch.randint(0, 10, (size,), generator=generator).to(device),
        )
        for size in [BATCH] * (STEPS - 1) + [tail]
    ]


class Net(nn.Sequential):
    def __init__(self, p: float = 0.0, classes: int = 10) -> None:
        super().__init__(
            nn.Conv2d(1, 8, 3, bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Dropout(p),
            nn.Conv2d(8, 12, 3, stride=2),
            nn.BatchNorm2d(12),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(192, classes),
        )

    def forward(self, inputs: Tensor) -> Tensor:
        for part in self:
            inputs = part(inputs)
        return inputs


def make_parts(
    device: torch.device,
    make_optimizer: MakeOptimizer = sgd,
    *,
    make_model: Callable[[], nn.Module] | None = None,
    decay: float | None = 0.9,
    clip: float | None = 1.0,
    p: float = 0.0,
    prepared: bool = True,
    exchange: Callable[[int], None] | None = None,
    autocast: str | None = None,
) -> Parts:
    torch.manual_seed(1)
    model = (Net(p) if make_model is None else make_model()).to(device).train()
    optimizer = make_optimizer(model.parameters())
    rates = one_cycle(optimizer)
    average = None if decay is None else Average(model, decay)
    if prepared:
        assert prepare_optimizer(optimizer, device) is None
    loss = nn.CrossEntropyLoss()
    return Parts(model, loss, optimizer, rates, average, clip, exchange, autocast=autocast)


class Counting(CudaRecorder):
    """Counts what it records and what is executed."""

    def __init__(self, device: torch.device) -> None:
        super().__init__(device)
        self.captures = 0
        self.replays = 0

    def capture(self, step: Callable[[], Any]) -> tuple[Callable[[], None], Any]:
        launch, result = super().capture(step)
        self.captures += 1

        def replay() -> None:
            self.replays += 1
            launch()

        return replay, result


def make_graph(parts: Parts, device: torch.device, **options: Any) -> GraphExecutor:
    return GraphExecutor(parts, device, STEPS, recorder=Counting(device), **options)


def recorder_of(executor: GraphExecutor) -> Counting:
    recorder = executor._recorder
    assert isinstance(recorder, Counting)
    return recorder


def state_of(parts: Parts, device: torch.device) -> State:
    return graph_steps.state_of(parts, torch.cuda.get_rng_state(device))


def compare(
    make: Callable[[], Parts], batches: Sequence[Batch], device: torch.device
) -> GraphExecutor:
    """Assert that a run with a graph is, bit by bit, the run without one."""
    parts = make()
    expected = take(EagerExecutor(parts), parts, batches)
    state = state_of(parts, device)
    parts = make()
    executor = make_graph(parts, device)
    found = take(executor, parts, batches)
    assert executor.name == "graph"
    assert found == expected
    assert_same_bits(state_of(parts, device), state)
    return executor


# Trap 9: the same bits.


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_graph_gives_the_same_bits(name: str, batches: list[Batch], device: torch.device) -> None:
    if name == "Adagrad" and prepare_optimizer(
        OPTIMIZERS[name](Net().to(device).parameters()), device
    ):
        pytest.skip("this version of torch has no fused Adagrad on CUDA")
    executor = compare(lambda: make_parts(device, OPTIMIZERS[name]), batches, device)
    recorder = recorder_of(executor)
    assert (recorder.captures, recorder.replays) == (2, TOTAL - 1)
    assert executor.capture_seconds > 0


def test_dropout_draws_in_a_graph_what_it_draws_without(
    batches: list[Batch], device: torch.device
) -> None:
    compare(lambda: make_parts(device, p=0.3), batches, device)


class Masked(nn.Module):
    """Shows the masks of its dropout."""

    last: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.drop = nn.Dropout(0.3)
        self.scale = nn.Parameter(torch.ones(1))
        self.register_buffer("last", torch.zeros(BATCH, 144))

    def forward(self, inputs: Tensor) -> Tensor:
        dropped = self.drop(torch.ones_like(inputs.flatten(1))) * self.scale
        if len(inputs) == BATCH:
            self.last.copy_(dropped.detach())
        return dropped[:, :10]


def test_masks_differ_from_step_to_step_and_repeat_with_the_seed(
    batches: list[Batch], device: torch.device
) -> None:
    runs = []
    for _ in range(2):
        parts = make_parts(device, lambda w: torch.optim.SGD(w, lr=1e-9), make_model=Masked)
        masks: list[Tensor] = []
        shown = parts.model.get_buffer("last")

        def look(index: int, masks: list[Tensor] = masks, last: Tensor = shown) -> None:
            if index % STEPS != STEPS - 1:
                masks.append(last.ne(0).cpu())

        executor = make_graph(parts, device)
        take(executor, parts, batches, after_step=look)
        assert recorder_of(executor).replays == TOTAL - 1
        runs.append(torch.stack(masks))
    assert torch.equal(*runs)
    assert len({bytes(mask.numpy()) for mask in runs[0]}) == len(runs[0])
    kept, numel = float(runs[0].double().mean()), runs[0].numel()
    assert abs(kept - 0.7) < 4 * (0.3 * 0.7 / numel) ** 0.5


def in_channels_last() -> nn.Module:
    net = Net()
    for weight in net.parameters():
        if weight.ndim == 4:
            weight.data = weight.data.to(memory_format=torch.channels_last)
    return net


def test_channels_last_and_half_precision(device: torch.device) -> None:
    batches = [(x.to(memory_format=torch.channels_last), y) for x, y in make_batches(device)]

    compare(lambda: make_parts(device, make_model=in_channels_last), batches, device)
    compare(lambda: make_parts(device, autocast="bfloat16"), batches, device)
    with torch.autocast("cuda", dtype=torch.bfloat16, cache_enabled=False):
        parts = make_parts(device)
        expected = take(EagerExecutor(parts), parts, batches)
    with torch.autocast("cuda", dtype=torch.bfloat16):
        # A weight that is cast once and kept would learn nothing here.
        parts = make_parts(device)
        executor = make_graph(parts, device)
        found = take(executor, parts, batches)
    assert executor.name == "graph"
    assert found == expected


@pytest.mark.parametrize("start", [2 * STEPS, 3 * STEPS + 2])
def test_a_run_goes_on_in_the_middle(
    start: int, batches: list[Batch], device: torch.device
) -> None:
    whole = make_parts(device, p=0.3)
    expected = take(make_graph(whole, device), whole, batches)
    state = state_of(whole, device)
    broken = make_parts(device, p=0.3)
    saved: dict[str, Any] = {}

    def save(index: int) -> None:
        if index == start - 1:
            assert broken.average is not None
            saved["model"] = copy.deepcopy(broken.model.state_dict())
            saved["optimizer"] = copy.deepcopy(broken.optimizer.state_dict())
            saved["average"] = copy.deepcopy(broken.average.state_dict())
            saved["random"] = torch.cuda.get_rng_state(device)

    take(make_graph(broken, device), broken, batches, after_step=save)
    for group in saved["optimizer"]["param_groups"]:
        group.update(lr=float(group["lr"]), foreach=None, fused=None)
    going_on = make_parts(device, p=0.3)
    executor = make_graph(going_on, device)
    going_on.model.load_state_dict(saved["model"])
    going_on.optimizer.load_state_dict(saved["optimizer"])
    assert going_on.average is not None
    going_on.average.load_state_dict(saved["average"])
    torch.cuda.set_rng_state(saved["random"], device)
    assert take(executor, going_on, batches, start=start) == expected[start:]
    assert_same_bits(state_of(going_on, device), state)


def test_nothing_makes_the_host_wait(batches: list[Batch], device: torch.device) -> None:
    parts = make_parts(device, p=0.3)
    executor = make_graph(parts, device)
    take(executor, parts, batches, epochs=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch says that the mode does not see everything
        torch.cuda.set_sync_debug_mode("error")
    try:
        for index in range(STEPS, 3 * STEPS):
            executor.step(*batches[index % STEPS], index)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_rates_come_from_the_table_on_the_device(
    batches: list[Batch], device: torch.device
) -> None:
    parts = make_parts(device)
    met: list[Tensor] = []
    rate = parts.optimizer.param_groups[0]["lr"]
    take(make_graph(parts, device), parts, batches, after_step=lambda _: met.append(rate.clone()))
    table = parts.rates.table
    assert table is not None
    assert torch.equal(torch.stack(met).cpu(), torch.tensor(table, dtype=torch.float32)[:, 0])


def test_without_deterministic_kernels_it_learns_the_same(
    batches: list[Batch], device: torch.device
) -> None:
    torch.use_deterministic_algorithms(False)
    parts = make_parts(device)
    eager = [loss for loss, _ in take(EagerExecutor(parts), parts, batches)]
    parts = make_parts(device)
    graph = [loss for loss, _ in take(make_graph(parts, device), parts, batches)]
    # Rounding grows from step to step, so only the first ones are close.
    assert graph[:STEPS] == pytest.approx(eager[:STEPS], rel=0.05)
    assert max(graph[-STEPS:]) < min(graph[:STEPS])
    assert not torch.backends.cudnn.benchmark


# Traps on the real thing.


def test_trap_1_a_foreach_step_reads_its_rate(batches: list[Batch], device: torch.device) -> None:
    def foreach(parameters: Any) -> Optimizer:
        rate = torch.tensor(0.1, device=device)
        return torch.optim.SGD(parameters, lr=rate, momentum=0.9, foreach=True)

    parts = make_parts(device, foreach, prepared=False)
    recorder = CudaRecorder(device)
    training_step(parts, *batches[0])
    with pytest.raises(RuntimeError):
        recorder.capture(lambda: training_step(parts, *batches[0]))
    with pytest.raises(RuntimeError, match="synchronizing"):
        recorder.rehearse(lambda: training_step(parts, *batches[0]))
    compare(lambda: make_parts(device, foreach), batches, device)


def test_graphs_are_given_back(batches: list[Batch], device: torch.device) -> None:
    parts = make_parts(device)
    executor = make_graph(parts, device)
    take(executor, parts, batches)
    parts.model.zero_grad(set_to_none=True)
    torch.cuda.empty_cache()
    before = torch.cuda.memory_reserved(device)
    executor.close()
    torch.cuda.empty_cache()
    assert torch.cuda.memory_reserved(device) < before
    assert not recorder_of(executor)._graphs


class Deaf(CudaRecorder):
    """Its graphs do nothing, so that what remains is what the recording did."""

    def capture(self, step: Callable[[], Any]) -> tuple[Callable[[], None], Any]:
        _, result = super().capture(step)
        return (lambda: None), result


@pytest.mark.parametrize("name", ["SGD with Nesterov", "AdamW", "RMSprop"])
def test_trap_3_a_recording_leaves_no_trace(
    name: str, batches: list[Batch], device: torch.device
) -> None:
    parts = make_parts(device, OPTIMIZERS[name], p=0.3)
    executor = GraphExecutor(parts, device, STEPS, recorder=Deaf(device))
    executor.step(*batches[0], 0)
    before = state_of(parts, device)
    for index in (1, STEPS - 1):
        executor.step(*batches[index], index)
        assert_same_bits(state_of(parts, device), before)


def test_trap_4_who_clears_gradients_disturbs_nothing(
    batches: list[Batch], device: torch.device
) -> None:
    whole = make_parts(device)
    expected = take(make_graph(whole, device), whole, batches)
    parts = make_parts(device)

    def clear(index: int) -> None:
        parts.model.zero_grad(set_to_none=True)
        # What was freed is given to someone else, who writes there.
        torch.full((1 << 20,), 9.0, device=device)

    assert take(make_graph(parts, device), parts, batches, after_step=clear) == expected


CHANGES: dict[str, Callable[[Any], object]] = {
    "mode": lambda parts: parts.model[1].eval(),
    "p": lambda parts: setattr(parts.model[3], "p", 0.5),
    "requires_grad": lambda parts: parts.model[0].weight.requires_grad_(False),
    "weight": lambda parts: setattr(
        parts.model[0], "weight", nn.Parameter(parts.model[0].weight.detach().clone())
    ),
    "rate": lambda parts: parts.optimizer.param_groups[0].update(lr=torch.tensor(0.5)),
}


@pytest.mark.parametrize("name", CHANGES)
def test_trap_7_a_change_is_an_error(name: str, batches: list[Batch], device: torch.device) -> None:
    parts = make_parts(device, p=0.3)
    executor = make_graph(parts, device)
    for index in range(STEPS):
        executor.step(*batches[index], index)
    CHANGES[name](parts)
    with pytest.raises(InvalidInputError, match="since the training step was recorded"):
        executor.step(*batches[0], STEPS)


@pytest.fixture
def nccl(device: torch.device) -> Iterator[None]:
    """A group of one process, whose exchanges are NCCL's all the same."""
    dist = torch.distributed
    if not (dist.is_available() and dist.is_nccl_available()):
        pytest.skip("needs NCCL")
    dist.init_process_group(
        "nccl",
        store=dist.HashStore(),  # type: ignore[attr-defined]
        rank=0,
        world_size=1,
        device_id=device,
    )
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("nccl")
def test_trap_8_an_exchange_is_part_of_the_graph(
    batches: list[Batch], device: torch.device
) -> None:
    def make() -> Parts:
        weights: list[nn.Parameter] = []

        def exchange(samples: int) -> None:
            for weight in weights:
                assert weight.grad is not None
                torch.distributed.all_reduce(weight.grad)

        parts = make_parts(device, exchange=exchange)
        weights.extend(parts.model.parameters())
        return parts

    compare(make, batches, device)
    parts = make()
    asked: list[bool] = []

    def agree(ready: bool) -> bool:
        asked.append(ready)
        return ready

    executor = make_graph(parts, device, agree=agree)
    take(executor, parts, batches)
    recorder = recorder_of(executor)
    assert asked == [True]
    assert (recorder.captures, recorder.replays) == (1, EPOCHS * (STEPS - 1) - 1)


# Trap 10: steps that cannot be recorded.


class Reading(Net):
    """Reads on the host."""

    def __init__(self) -> None:
        super().__init__(0.3)

    def forward(self, inputs: Tensor) -> Tensor:
        outputs = super().forward(inputs)
        return outputs * 2 if outputs.sum().item() > 0 else outputs


class Late(Reading):
    """Reads on the host when it is recorded, and not when it is rehearsed."""

    def forward(self, inputs: Tensor) -> Tensor:
        outputs = super(Reading, self).forward(inputs)
        if torch.cuda.is_current_stream_capturing():
            outputs = outputs * outputs.sum().item()
        return outputs


class Copying(Reading):
    """Brings a number from the host, which has to wait for it."""

    def forward(self, inputs: Tensor) -> Tensor:
        scale = torch.tensor([1.5], device=inputs.device)
        return super(Reading, self).forward(inputs) * scale


class OnTheHost(Reading):
    """Keeps a number in a tensor on the CPU, where no synchronization shows it."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = [torch.zeros(())]  # in a list, where .to(device) does not see it

    def forward(self, inputs: Tensor) -> Tensor:
        self.calls[0] += 1
        return super(Reading, self).forward(inputs) / self.calls[0]


class HostDraws(Reading):
    """Draws from the generator of the CPU."""

    def forward(self, inputs: Tensor) -> Tensor:
        return super(Reading, self).forward(inputs) * torch.rand(()).item()


class HostGenerator(Reading):
    """Draws from a generator of its own, on the CPU."""

    def __init__(self) -> None:
        super().__init__()
        self.generator = torch.Generator().manual_seed(5)

    def __deepcopy__(self, memo: Any) -> nn.Module:
        return Net(0.3).to(next(self.parameters()).device)

    def forward(self, inputs: Tensor) -> Tensor:
        return super(Reading, self).forward(inputs) * torch.rand((), generator=self.generator)


class Reassigning(Reading):
    """Moves a buffer to other memory in every step."""

    mean: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(()))

    def forward(self, inputs: Tensor) -> Tensor:
        self.mean = 0.9 * self.mean + 0.1 * inputs.mean()
        return super(Reading, self).forward(inputs) + self.mean


UNRECORDABLE: dict[type[Reading], str] = {
    Reading: r"synchronizing.*test_gpu_graph\.py, line \d+, in forward",
    Late: r"slower: .*(captur|permitted).*test_gpu_graph\.py, line \d+, in forward",
    Copying: "synchronizing",
    OnTheHost: r"model\.calls\[0\] went from 1\.0 to",
    HostDraws: "random numbers are drawn on the host",
    HostGenerator: "random numbers are drawn on the host",
    Reassigning: r"model\.mean has been replaced",
}


@pytest.mark.parametrize("kind", UNRECORDABLE)
def test_trap_10_what_cannot_be_recorded_goes_on_eagerly_with_one_warning(
    kind: type[Reading], batches: list[Batch], device: torch.device
) -> None:
    parts = make_parts(device, make_model=kind)
    expected = take(EagerExecutor(parts), parts, batches)
    state = state_of(parts, device)
    parts = make_parts(device, make_model=kind)
    executor = make_graph(parts, device)
    stream = torch.cuda.current_stream(device)
    with pytest.warns(UserWarning, match=UNRECORDABLE[kind]) as caught:
        found = take(executor, parts, batches)
    assert len(caught) == 1
    assert (executor.name, recorder_of(executor).replays) == ("eager", 0)
    assert found == expected
    assert_same_bits(state_of(parts, device), state)
    assert torch.cuda.current_stream(device) == stream
    # The next network is recorded as if nothing had happened.
    compare(lambda: make_parts(device, p=0.3), batches, device)


class Remembering(Net):
    """Holds on to its last forward pass, and so to what autograd knows of its weights."""

    def forward(self, inputs: Tensor) -> Tensor:
        self.seen = super().forward(inputs)
        return self.seen


def test_what_a_forward_pass_leaves_behind_is_no_obstacle(
    batches: list[Batch], device: torch.device
) -> None:
    compare(lambda: make_parts(device, make_model=Remembering), batches, device)


def test_a_bad_batch_gives_the_error_it_gives_without_a_graph(
    batches: list[Batch], device: torch.device
) -> None:
    errors = []
    for graph in (False, True):
        parts = make_parts(device)
        executor: Executor = make_graph(parts, device) if graph else EagerExecutor(parts)
        for index in range(3):
            executor.step(*batches[0], index)
        with pytest.raises(RuntimeError) as caught:
            executor.step(torch.zeros(BATCH, 3, 12, 12, device=device), batches[0][1], 3)
        errors.append(str(caught.value))
    assert errors[0] == errors[1]


def test_a_loader_may_pin_memory_meanwhile(device: torch.device) -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(BATCH * STEPS - 10, 1, 12, 12, generator=generator)
    labels = torch.randint(0, 10, (len(images),), generator=generator)
    loader = DataLoader(
        TensorDataset(images, labels), BATCH, pin_memory=True, num_workers=1, prefetch_factor=4
    )
    parts = make_parts(device)
    executor = make_graph(parts, device)
    index = 0
    for _ in range(3):
        for inputs, targets in loader:
            executor.step(
                inputs.to(device, non_blocking=True), targets.to(device, non_blocking=True), index
            )
            index += 1
    assert executor.name == "graph"
    assert index == 3 * STEPS


# Memory.


def test_a_graph_takes_a_few_times_the_memory_and_gives_it_back(device: torch.device) -> None:
    images = torch.randn(1024, 1, 28, 28, device=device)
    labels = torch.randint(0, 10, (1024,), device=device)

    class Wide(nn.Sequential):
        def __init__(self) -> None:
            layers = [
                nn.Conv2d(1 if first else 32, 32, 3, padding=1) for first in (True, *[False] * 3)
            ]
            super().__init__(*layers, nn.Flatten(), nn.Linear(32 * 784, 10))

    def reserved(make: Callable[[Parts], Executor] | None) -> int:
        """Return the most memory that a few steps need; without an executor what is left over."""
        gc.collect()
        torch.cuda.empty_cache()
        if make is None:
            return torch.cuda.memory_reserved(device)
        torch.cuda.reset_peak_memory_stats(device)
        parts = make_parts(device, make_model=Wide)
        executor = make(parts)
        for index in range(4):
            executor.step(images, labels, index)
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_reserved(device)

    reserved(EagerExecutor)
    before = reserved(None)
    eager = reserved(EagerExecutor)
    graph = reserved(lambda parts: make_graph(parts, device))
    assert graph < 3 * eager
    # What cuBLAS and the streams keep for themselves is small.
    assert reserved(None) < before + 128 * 2**20


# Through the trainer.


def make_set(count: int = 200, seed: int = 0) -> ImageSet:
    """Random images of four classes, with a square whose place tells the class."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 100, (count, 1, 12, 12), generator=generator, dtype=torch.uint8)
    labels = torch.arange(count) % 4
    for index, label in enumerate(labels.tolist()):
        row, column = divmod(label, 2)
        images[index, 0, 6 * row : 6 * row + 6, 6 * column : 6 * column + 6] += 100
    return ImageSet.from_arrays(images, labels)


CONFIG = TrainConfig(epochs=4, batch_size=32, learning_rate=0.1, weight_averaging=0.8, seed=3)


def fit(
    executor: str, *, p: float = 0.2, config: TrainConfig = CONFIG, **options: Any
) -> tuple[Any, State]:
    torch.manual_seed(0)
    model = Net(p, classes=4)
    trainer = Trainer(config, device="cuda", executor=executor, progress=False)
    history = trainer.fit(model, make_set(), make_set(60, seed=1), **options)
    return history, {name: part.cpu() for name, part in model.state_dict().items()}


def figures(history: Any) -> list[dict[str, Any]]:
    return [{**row, "seconds": 0} for row in history.to_dicts()]


def test_the_trainer_repeats_with_a_graph() -> None:
    first, state = fit("graph")
    second, again = fit("graph")
    assert figures(first) == figures(second)
    assert_same_bits(state, again)
    assert first.made_on["executor"] == "graph"
    assert first.timings.capture > 0
    assert first[-1].validation_accuracy > 90


def test_the_trainer_learns_the_same_with_and_without() -> None:
    graph, state = fit("graph", p=0.0)
    eager, expected = fit("eager", p=0.0)
    assert (graph.made_on["executor"], eager.made_on["executor"]) == ("graph", "eager")
    # Not the same bits: with a graph the optimizer uses its fused kernels.
    for row, other in zip(graph, eager, strict=True):
        assert row.train_loss == pytest.approx(other.train_loss, rel=1e-3, abs=1e-4)
    for name, part in state.items():
        torch.testing.assert_close(part, expected[name], rtol=1e-2, atol=1e-3)


def test_the_trainer_takes_a_graph_by_itself() -> None:
    history, _ = fit("auto")
    assert history.made_on["executor"] == "graph"


def test_a_run_with_a_graph_that_was_broken_off_ends_the_same(tmp_path: Path) -> None:
    whole, state = fit("graph")
    torch.manual_seed(0)
    model = Net(0.2, classes=4)

    class Broken(Exception):  # noqa: N818
        pass

    config = CONFIG
    trainer = Trainer(
        config, device="cuda", executor="graph", progress=False, checkpoint_seconds=0.0
    )
    step, taken = GraphExecutor.step, 0

    def failing(self: GraphExecutor, *args: Any) -> Any:
        nonlocal taken
        taken += 1
        if taken == 10:
            raise Broken
        return step(self, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(GraphExecutor, "step", failing)
        with pytest.raises(Broken):
            trainer.fit(model, make_set(), make_set(60, seed=1), folder=tmp_path)
    torch.manual_seed(9)
    model = Net(0.2, classes=4)
    history = trainer.fit(model, make_set(), make_set(60, seed=1), folder=tmp_path, resume=True)
    assert figures(history) == figures(whole)
    assert_same_bits({name: part.cpu() for name, part in model.state_dict().items()}, state)


def test_a_run_with_a_graph_goes_on_elsewhere(tmp_path: Path) -> None:
    """A checkpoint does not depend on the executor or the device."""
    config = TrainConfig(
        epochs=4, batch_size=32, learning_rate=0.01, optimizer="RMSprop", weight_averaging=0.8
    )
    torch.manual_seed(0)
    model = Net(0.0, classes=4)

    class Stopped(Exception):  # noqa: N818
        pass

    step, taken = GraphExecutor.step, 0

    def failing(self: GraphExecutor, *args: Any) -> Any:
        nonlocal taken
        taken += 1
        if taken == 12:
            raise Stopped
        return step(self, *args)

    trainer = Trainer(
        config, device="cuda", executor="graph", progress=False, checkpoint_seconds=0.0
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(GraphExecutor, "step", failing)
        with pytest.raises(Stopped):
            trainer.fit(model, make_set(), folder=tmp_path)
    on_cpu = Trainer(config, device="cpu", progress=False)
    with pytest.warns(UserWarning, match="device was cuda and is cpu"):
        history = on_cpu.fit(Net(0.0, classes=4), make_set(), folder=tmp_path, resume=True)
    assert len(history) == config.epochs
    assert history[-1].train_loss < history[0].train_loss


def test_make_executor_on_a_gpu(device: torch.device) -> None:
    for wanted, kind in (
        ("auto", GraphExecutor),
        ("graph", GraphExecutor),
        ("eager", EagerExecutor),
    ):
        parts = make_parts(device, prepared=False)
        assert isinstance(make_executor(wanted, parts, device, STEPS), kind)
        assert isinstance(parts.optimizer.param_groups[0]["lr"], Tensor) is (wanted != "eager")
    parts = make_parts(device, lambda w: torch.optim.Adafactor(w, lr=0.1), prepared=False)
    assert isinstance(make_executor("auto", parts, device, STEPS), EagerExecutor)
    with pytest.warns(UserWarning, match="Adafactor knows neither"):
        assert isinstance(make_executor("graph", parts, device, STEPS), EagerExecutor)
