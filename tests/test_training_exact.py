"""A run may be broken off at any step and taken up again: the same bits come out."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from constrained_cnn import ImageSet, TrainConfig, Trainer
from constrained_cnn.errors import NonFiniteLossError, OutputError
from constrained_cnn.record import UNFINISHED
from constrained_cnn.training import History, RunFolder

EPOCHS, STEPS = 3, 4  # 14 images in batches of 4
TOTAL = EPOCHS * STEPS
EVERYTHING = {"weight_averaging": 0.7, "clip_gradient": 1.0, "precise_bn": 2}
ADAM = {"optimizer": "AdamW", "optimizer_options": {}, "learning_rate": 0.01}


@pytest.fixture(autouse=True)
def usual_handlers() -> Iterator[None]:
    """Let the signals mean what they usually do, however the tests were started."""
    before = {one: signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    yield
    for one, handler in before.items():
        signal.signal(one, handler)


def make_set(count: int = 14, seed: int = 0) -> ImageSet:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (count, 1, 8, 8), generator=generator, dtype=torch.uint8)
    return ImageSet.from_arrays(images, torch.arange(count) % 4).augmented(rotation=20.0)


def make_loader() -> DataLoader[Any]:
    inputs = torch.cat([part for part, _ in make_set().batches(14)])
    return DataLoader(TensorDataset(inputs, make_set().labels), 4, shuffle=True)


def make_net(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Dropout(0.3),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(16, 4),
    )


def make_config(**values: Any) -> TrainConfig:
    return TrainConfig(**{"epochs": EPOCHS, "batch_size": 4, "seed": 3, **values})


class Signals:
    """Cross-entropy that sends this process a signal at one of its calls while training."""

    def __init__(self, number: int = signal.SIGINT) -> None:
        self.number, self.calls, self.at = number, 0, 0

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        if outputs.requires_grad:
            self.calls += 1
            if self.calls == self.at:
                os.kill(os.getpid(), self.number)
        return nn.functional.cross_entropy(outputs, targets)

    def in_steps(self, steps: int) -> "Signals":
        self.at = self.calls + steps
        return self


def assert_same(first: tuple[nn.Module, History], second: tuple[nn.Module, History]) -> None:
    for name, value in first[0].state_dict().items():
        assert torch.equal(value, second[0].state_dict()[name]), name
    rows = [[{**row, "seconds": 0} for row in history.to_dicts()] for _, history in (first, second)]
    assert rows[0] == rows[1]
    assert first[1].status == second[1].status == "finished"


def fit_in_pieces(
    pieces: list[int], folder: Path, config: TrainConfig, data: Any, held_out: Any, number: int
) -> tuple[nn.Module, History]:
    """Train with a signal after so many steps, then as many again, and so on to the end."""
    loss = Signals(number)
    taken = 0
    for attempt in range(TOTAL + 2):
        trainer = Trainer(config, device="cpu", progress=False, loss=loss)
        steps = pieces[attempt] if attempt < len(pieces) else 2 * TOTAL
        model = make_net(seed=attempt)  # what the new process has for weights must not matter
        history = (
            trainer.fit(model, data, held_out, folder=folder, resume=attempt > 0)
            if loss.in_steps(steps)
            else None
        )
        assert history is not None
        if history.status == "finished":
            return model, history
        taken += steps
        assert len(history) * STEPS + history.steps_of_next == taken == loss.calls
    raise AssertionError("the run does not end")


@settings(
    max_examples=25,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(
    pieces=st.lists(st.integers(1, 5), max_size=TOTAL),
    options=st.sampled_from([{}, EVERYTHING, ADAM, {"autocast": "bfloat16"}]),
    resident=st.booleans(),
    number=st.sampled_from([signal.SIGINT, signal.SIGTERM]),
)
def test_any_split_into_interrupted_pieces_gives_the_same(
    tmp_path_factory: pytest.TempPathFactory,
    pieces: list[int],
    options: dict[str, Any],
    resident: bool,
    number: int,
) -> None:
    config = make_config(**options)
    data = make_set() if resident else make_loader()
    held_out = make_set(9, seed=1) if resident else None
    make_net(seed=0)
    whole = make_net()
    trainer = Trainer(config, device="cpu", progress=False, loss=Signals())
    unbroken = trainer.fit(whole, data, held_out)
    folder = tmp_path_factory.mktemp("run")
    pieced = fit_in_pieces(pieces, folder, config, data, held_out, number)
    assert_same(pieced, (whole, unbroken))
    assert History.load(folder / "history.jsonl").rows == pieced[1].rows


def test_a_signal_while_the_validation_set_is_read_keeps_the_epoch(tmp_path: Path) -> None:
    config = make_config()
    held_out = make_set(9, seed=1)
    whole = make_net()
    unbroken = Trainer(config, device="cpu", progress=False, loss=Signals()).fit(
        whole, make_set(), held_out
    )
    readings = 0

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        nonlocal readings
        if not outputs.requires_grad:
            readings += 1
            if readings in (2, 10):  # in the first epoch, and after the very last step
                os.kill(os.getpid(), signal.SIGTERM)
        return nn.functional.cross_entropy(outputs, targets)

    statuses = []
    for attempt in range(3):
        model = make_net(seed=attempt)
        trainer = Trainer(config, device="cpu", progress=False, loss=loss)
        history = trainer.fit(model, make_set(), held_out, folder=tmp_path, resume=attempt > 0)
        statuses.append((history.status, len(history), history.steps_of_next))
    assert statuses == [("interrupted", 0, 4), ("interrupted", 2, 4), ("finished", 3, 0)]
    assert_same((model, history), (whole, unbroken))


class PowerCutError(BaseException):
    """Nothing that handles errors sees it, as with a real one."""


@pytest.mark.parametrize("at", [1, 2, 3, 6, TOTAL])
def test_without_a_signal_what_the_last_checkpoint_holds_is_kept(at: int, tmp_path: Path) -> None:
    calls = 0

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        if calls == at:
            raise PowerCutError
        return nn.functional.cross_entropy(outputs, targets)

    config = make_config()
    whole, resumed = make_net(), make_net(seed=9)
    every_step = Trainer(config, device="cpu", progress=False, loss=loss, checkpoint_seconds=0)
    with pytest.raises(PowerCutError):
        every_step.fit(make_net(), make_set(), folder=tmp_path)
    history = every_step.fit(resumed, make_set(), folder=tmp_path, resume=True)
    assert calls == TOTAL + 1  # not one step was taken twice but that in which the power failed
    plain = Trainer(config, device="cpu", progress=False, loss=Signals())
    assert_same((resumed, history), (whole, plain.fit(whole, make_set())))


def test_checkpoints_within_an_epoch_are_as_rare_as_asked(tmp_path: Path) -> None:
    seen: list[int] = []

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
        seen.append(state["epoch"] * STEPS + state["step"])
        return nn.functional.cross_entropy(outputs, targets)

    options: dict[str, Any] = {"device": "cpu", "progress": False, "loss": loss}
    for seconds, expected in ((0, list(range(TOTAL))), (1e9, [4 * (n // 4) for n in range(TOTAL)])):
        seen.clear()
        folder = tmp_path if seconds == 0 else tmp_path / "rare"
        if seconds:
            (tmp_path / "checkpoint.pt").unlink()
            (tmp_path / "checkpoint-before.pt").unlink()
            for name in ("history.csv", "history.jsonl"):
                (tmp_path / name).unlink()
            folder = tmp_path
        Trainer(make_config(), checkpoint_seconds=seconds, **options).fit(
            make_net(), make_set(), folder=folder
        )
        assert seen == expected


def test_a_loss_that_is_not_finite_never_gets_into_a_checkpoint(tmp_path: Path) -> None:
    calls = 0

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        right = nn.functional.cross_entropy(outputs, targets)
        return right * torch.nan if calls == 6 else right

    trainer = Trainer(make_config(), device="cpu", progress=False, loss=loss, checkpoint_seconds=0)
    with pytest.raises(NonFiniteLossError) as caught:
        trainer.fit(make_net(), make_set(), folder=tmp_path)
    assert (caught.value.epoch, caught.value.step) == (2, 2)
    assert calls == 6  # the next checkpoint saw it; no step was wasted after it
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert (state["epoch"], state["step"]) == (1, 1)
    assert all(torch.isfinite(part).all() for part in state["model"].values())
    whole, resumed = make_net(), make_net(seed=9)
    history = trainer.fit(resumed, make_set(), folder=tmp_path, resume=True)
    plain = Trainer(make_config(), device="cpu", progress=False, loss=Signals())
    assert_same((resumed, history), (whole, plain.fit(whole, make_set())))


class Dying:
    """A loader whose own processes end with the signal that asks the run to stop."""

    def __init__(self, at: int, number: int | None = signal.SIGTERM) -> None:
        self.batches, self.left, self.number = list(make_loader()), at, number

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Any]:
        for batch in self.batches:
            if self.left == 0:
                if self.number is not None:
                    os.kill(os.getpid(), self.number)
                raise RuntimeError("DataLoader worker exited unexpectedly")
            self.left -= 1
            yield batch


@pytest.mark.parametrize("judged", [False, True])
def test_a_signal_that_ends_the_processes_of_a_loader_too_keeps_every_step(
    judged: bool, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    sets = [Dying(-1), Dying(-1)]
    trainer = Trainer(make_config(), device="cpu", progress=False)
    unbroken = make_net()
    whole = unbroken, trainer.fit(unbroken, *sets)
    # In the second epoch: with the third batch of one of the sets.
    sets[judged].left = STEPS + 2
    history = trainer.fit(make_net(), *sets, folder=tmp_path)
    assert (history.status, len(history)) == ("interrupted", 1)
    assert history.steps_of_next == (STEPS if judged else 2)
    sets[judged].left = -1
    model = make_net(seed=9)
    assert_same(whole, (model, trainer.fit(model, *sets, folder=tmp_path, resume=True)))


class Masks(Dataset[Any]):
    """Tells for every sample whether its process lets no Ctrl-C through."""

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> Any:
        held = signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, [])
        return torch.tensor([float(held)]), torch.tensor([0.0])


@pytest.mark.skipif(not hasattr(signal, "pthread_sigmask"), reason="no such signals")
def test_ctrl_c_does_not_end_the_processes_of_a_loader() -> None:
    met: list[Tensor] = []
    model = nn.Linear(1, 1)
    model.register_forward_pre_hook(lambda module, given: met.append(given[0]))
    loader = DataLoader(Masks(), 2, num_workers=1, multiprocessing_context="spawn")
    config = TrainConfig(epochs=1, loss="MSELoss", schedule="constant")
    Trainer(config, device="cpu", progress=False).fit(model, loader)
    assert torch.equal(torch.cat(met), torch.ones(4, 1))
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, [])


def test_a_loader_that_fails_without_a_signal_is_an_error(tmp_path: Path) -> None:
    trainer = Trainer(make_config(), device="cpu", progress=False)
    with pytest.raises(RuntimeError, match="exited unexpectedly"):
        trainer.fit(make_net(), Dying(2, None))


def test_a_second_run_into_the_same_folder_is_refused(tmp_path: Path) -> None:
    entered, leave = threading.Event(), threading.Event()

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        entered.set()
        leave.wait()
        return nn.functional.cross_entropy(outputs, targets)

    slow = Trainer(make_config(), device="cpu", progress=False, loss=loss)
    thread = threading.Thread(
        target=slow.fit, args=(make_net(), make_set()), kwargs={"folder": tmp_path}
    )
    thread.start()
    try:
        while not entered.wait(0.1):
            assert thread.is_alive()
        for resume in (False, True):
            with pytest.raises(OutputError, match="another run is writing into it"):
                Trainer(make_config(), device="cpu", progress=False).fit(
                    make_net(), make_set(), folder=tmp_path, resume=resume
                )
    finally:
        leave.set()
        thread.join()
    assert len(History.load(tmp_path / "history.jsonl")) == EPOCHS


def test_the_lock_of_a_process_that_was_killed_is_gone(tmp_path: Path) -> None:
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        RunFolder(tmp_path).__enter__()
        os.write(write, b"x")
        time.sleep(60)
        os._exit(1)
    os.read(read, 1)
    with pytest.raises(OutputError, match="another run"), RunFolder(tmp_path):
        pass
    (tmp_path / f".checkpoint.pt.abc{UNFINISHED}").write_text("half")
    (tmp_path / ".a.part").write_text("somebody else's")
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    with RunFolder(tmp_path) as folder, folder:
        pass
    # No lock, and nothing half written.
    assert [path.name for path in tmp_path.iterdir()] == [".a.part"]


@pytest.mark.skipif(not hasattr(os, "register_at_fork"), reason="no forks")
def test_a_forked_process_does_not_keep_the_lock_of_one_that_was_killed(tmp_path: Path) -> None:
    """As of a loader, whose processes notice only after some seconds that theirs is dead."""
    read, write = os.pipe()
    child = os.fork()
    if not child:
        with RunFolder(tmp_path):
            if not os.fork():  # the grandchild, which stays
                os.write(write, b"%8d" % os.getpid())
                time.sleep(60)
                os._exit(1)
            time.sleep(60)
        os._exit(1)
    grandchild = int(os.read(read, 8))
    try:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        with RunFolder(tmp_path):
            pass
    finally:
        os.kill(grandchild, signal.SIGKILL)


def test_going_on_with_other_threads_is_said(tmp_path: Path) -> None:
    trainer = Trainer(make_config(), device="cpu", progress=False, loss=Signals().in_steps(2))
    trainer.fit(make_net(), make_set(), folder=tmp_path)
    other = Trainer(make_config(), device="cpu", progress=False, loss=Signals(), threads=2)
    with pytest.warns(UserWarning, match="threads was 1 and is 2"):
        history = other.fit(make_net(), make_set(), folder=tmp_path, resume=True)
    assert history.status == "finished"
    assert torch.get_num_threads() == 1


def test_the_time_of_a_resumed_run_adds_up(tmp_path: Path) -> None:
    loss = Signals()

    def slow(outputs: Tensor, targets: Tensor) -> Tensor:
        time.sleep(0.02)
        return loss(outputs, targets)

    trainer = Trainer(make_config(), device="cpu", progress=False, loss=slow)
    loss.in_steps(6)
    first = trainer.fit(make_net(), make_set(), make_set(9, seed=1), folder=tmp_path)
    second = trainer.fit(make_net(), make_set(), make_set(9, seed=1), folder=tmp_path, resume=True)
    assert first.timings is not None
    assert second.timings is not None
    assert first.timings.training > 6 * 0.02
    assert second.timings.training > TOTAL * 0.02
    assert second.timings.evaluation > EPOCHS * 3 * 0.02
    assert second.timings.samples == EPOCHS * 14
    assert second[1].seconds > (STEPS + 3) * 0.02  # also of the epoch that was broken in two
    assert second.timings.throughput == pytest.approx(42 / second.timings.training)
