"""Ctrl-C: the first stops after the step in flight and loses nothing, the second stops at once."""

import io
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from constrained_cnn import ImageSet, RunRecord, TrainConfig, Trainer
from constrained_cnn.cli import main
from constrained_cnn.errors import InvalidInputError
from constrained_cnn.training import History
from constrained_cnn.training._interrupt import InterruptGuard

REPOSITORY = Path(__file__).resolve().parents[1]
EPOCHS = 3
STEPS = 4
CONFIG = TrainConfig(epochs=EPOCHS, batch_size=4, learning_rate=0.1, weight_averaging=0.5)


@pytest.fixture(autouse=True)
def usual_handler() -> Iterator[Callable[..., object]]:
    """Let SIGINT mean KeyboardInterrupt, also where the tests were started with it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield signal.default_int_handler
    signal.signal(signal.SIGINT, before)


def make_set() -> ImageSet:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (14, 1, 8, 8), generator=generator, dtype=torch.uint8)
    return ImageSet.from_arrays(images, torch.arange(14) % 4)


def make_net(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.Dropout(0.3), nn.Flatten(), nn.Linear(144, 4))


class PressesCtrlC:
    """Cross-entropy that presses Ctrl-C at one of its calls, counted from 1."""

    def __init__(self, at: int | None, times: int = 1) -> None:
        self.at, self.times, self.calls = at, times, 0

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        self.calls += 1
        if self.calls == self.at:
            for _ in range(self.times):
                os.kill(os.getpid(), signal.SIGINT)
        return nn.functional.cross_entropy(outputs, targets)


def fit(model: nn.Module, loss: PressesCtrlC, **options: Any) -> History:
    trainer = Trainer(CONFIG, device="cpu", progress=False, loss=loss)
    return trainer.fit(model, make_set(), **options)


@pytest.mark.parametrize("at", [1, 3, 4, 5, 7, 8])
def test_the_first_stops_after_the_step_and_a_resumed_run_ends_the_same(
    at: int, tmp_path: Path, usual_handler: object, capfd: pytest.CaptureFixture[str]
) -> None:
    whole = make_net()
    unbroken = fit(whole, PressesCtrlC(None))
    loss = PressesCtrlC(at)
    stopped = fit(make_net(), loss, folder=tmp_path)
    assert stopped.status == "interrupted"
    assert loss.calls == at  # not one step more
    assert len(stopped) == at // STEPS  # an epoch that was complete is kept
    assert "press Ctrl-C again to stop at once" in capfd.readouterr().err
    assert signal.getsignal(signal.SIGINT) is usual_handler
    assert len(History.load(tmp_path / "history.jsonl")) == len(stopped)

    resumed = make_net(seed=9)
    history = fit(resumed, PressesCtrlC(None), folder=tmp_path, resume=True)
    assert history.status == "finished"
    assert [row.train_loss for row in history] == [row.train_loss for row in unbroken]
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


def test_at_the_very_last_step_the_run_is_finished() -> None:
    model, whole = make_net(), make_net()
    history = fit(model, PressesCtrlC(EPOCHS * STEPS))
    fit(whole, PressesCtrlC(None))
    assert (history.status, len(history)) == ("finished", EPOCHS)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, model.state_dict()[name]), name


def test_the_second_stops_at_once_and_the_folder_can_go_on(
    tmp_path: Path, usual_handler: object
) -> None:
    loss = PressesCtrlC(6, times=2)
    with pytest.raises(KeyboardInterrupt):
        fit(make_net(), loss, folder=tmp_path)
    assert signal.getsignal(signal.SIGINT) is usual_handler
    history = fit(make_net(), PressesCtrlC(None), folder=tmp_path, resume=True)
    assert (history.status, len(history)) == ("finished", EPOCHS)


def test_an_error_restores_the_handler(usual_handler: object) -> None:
    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        raise ZeroDivisionError

    trainer = Trainer(CONFIG, device="cpu", progress=False, loss=loss)
    with pytest.raises(InvalidInputError, match="ZeroDivisionError"):
        trainer.fit(make_net(), make_set())
    assert signal.getsignal(signal.SIGINT) is usual_handler


def test_within_another_run_both_stop(usual_handler: object) -> None:
    inner: list[History] = []

    def train_another(row: object) -> None:
        inner.append(fit(make_net(), PressesCtrlC(2 if len(inner) == 1 else None)))

    trainer = Trainer(CONFIG, device="cpu", progress=train_another)
    outer = trainer.fit(make_net(), make_set())
    assert [one.status for one in inner] == ["finished", "interrupted"]
    assert (outer.status, len(outer)) == ("interrupted", 2)
    assert signal.getsignal(signal.SIGINT) is usual_handler
    assert fit(make_net(), PressesCtrlC(None)).status == "finished"  # it is over


def test_who_asked_before_a_run_began_is_not_forgotten(usual_handler: object) -> None:
    with InterruptGuard(quiet=True) as guard:
        os.kill(os.getpid(), signal.SIGINT)
        assert guard.requested
        stopped = fit(make_net(), PressesCtrlC(None))
    assert (stopped.status, len(stopped), stopped.steps_of_next) == ("interrupted", 0, 0)


def test_nobody_has_to_read_that_it_stops(
    tmp_path: Path, usual_handler: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    monkeypatch.setattr(sys, "stderr", Gone())
    history = fit(make_net(), PressesCtrlC(2), folder=tmp_path)
    assert (history.status, history.steps_of_next) == ("interrupted", 2)


@pytest.mark.parametrize(("rank", "times"), [(None, 1), ("0", 1), ("1", 0), ("12", 0)])
def test_of_the_processes_of_torchrun_one_says_that_they_stop(
    rank: str | None,
    times: int,
    usual_handler: object,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.delenv("RANK", raising=False)
    if rank is not None:
        monkeypatch.setenv("RANK", rank)
    with InterruptGuard() as guard:
        os.kill(os.getpid(), signal.SIGINT)
        assert guard.requested
    assert capfd.readouterr().err.count("Stopping after this step") == times


def test_an_epoch_is_kept_before_it_is_shown(tmp_path: Path) -> None:
    def fail(row: object) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        Trainer(CONFIG, device="cpu", progress=fail).fit(make_net(), make_set(), folder=tmp_path)
    assert len(History.load(tmp_path / "history.jsonl")) == 1


def test_another_thread_leaves_the_handler_alone(usual_handler: object) -> None:
    found: list[object] = []

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        found.append(signal.getsignal(signal.SIGINT))
        return nn.functional.cross_entropy(outputs, targets)

    trainer = Trainer(CONFIG, device="cpu", progress=False, loss=loss)
    thread = threading.Thread(target=trainer.fit, args=(make_net(), make_set()))
    thread.start()
    thread.join()
    assert found == [usual_handler] * EPOCHS * STEPS


def command(folder: Path, *words: str) -> list[str]:
    """A run of four short epochs: most of the digits are held out."""
    data = ["--data", "digits", "--held-out", "1100", "--epochs", "4", "--device", "cpu"]
    return ["train", "mnist-12k", *data, "--out", str(folder), *words]


def press_ctrl_c_after_the_first_epoch(words: list[str], folder: Path) -> int:
    process = subprocess.Popen(
        [sys.executable, "-m", "constrained_cnn", *words],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)},
        cwd=folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    for line in process.stderr:
        if re.match(r"\s+1\s+\d\.\d+", line):  # the line of the first epoch
            process.send_signal(signal.SIGINT)
            break
    _, errors = process.communicate()
    assert "Traceback" not in errors, errors
    assert "Stopping after this step" in errors
    return process.returncode


def test_the_command_stops_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert press_ctrl_c_after_the_first_epoch(command(broken), tmp_path) == 130
    record = RunRecord.load(broken)
    assert record.status == "interrupted"
    assert 1 <= record.epochs < 4
    assert set(record.result) <= {"seconds", "timings", "steps_of_next_epoch"}
    assert not (broken / "weights.safetensors").exists()

    monkeypatch.setattr("constrained_cnn.recipes._run._draw", lambda *_: None)  # slow, not asked
    assert main(command(broken, "--resume", "--quiet")) == 0
    assert main(command(whole, "--quiet")) == 0
    first, second = RunRecord.load(whole), RunRecord.load(broken)
    assert (second.status, second.epochs) == ("finished", 4)
    assert second.result["validation_loss"] == first.result["validation_loss"]
    weights = [safetensors.torch.load_file(run / "weights.safetensors") for run in (whole, broken)]
    for name, value in weights[0].items():
        assert torch.equal(value, weights[1][name]), name
