"""Many seeds at once: each gives what it gives alone."""

import functools
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from multiprocessing import util
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from constrained_cnn import ImageSet, TrainConfig, Trainer, errors
from constrained_cnn.errors import (
    ConstrainedCNNError,
    InvalidInputError,
    NonFiniteLossError,
    OutputError,
)
from constrained_cnn.training import Fitted, History
from constrained_cnn.training._many import share_cores
from constrained_cnn.training._threads import _quota, usable_cores

REPOSITORY = Path(__file__).resolve().parents[1]
CONFIG = TrainConfig(epochs=2, batch_size=4, learning_rate=0.1)


def make_set(count: int = 14, seed: int = 0) -> ImageSet:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (count, 1, 8, 8), generator=generator, dtype=torch.uint8)
    return ImageSet.from_arrays(images, torch.arange(count) % 4).augmented(rotation=20.0)


def make_parts(p_drop: float) -> list[nn.Module]:
    layers = [nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(p_drop)]
    return [*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 4)]


class Net(nn.Sequential):
    def __init__(self, p_drop: float = 0.3) -> None:
        super().__init__(*make_parts(p_drop))


def make_trainer(config: TrainConfig = CONFIG, **options: Any) -> Trainer:
    return Trainer(config, device="cpu", progress=False, threads=1, **options)


def alone(seed: int, **options: Any) -> tuple[nn.Module, History]:
    torch.manual_seed(seed)
    model = Net()
    config = TrainConfig.from_dict(CONFIG.to_dict() | {"seed": seed})
    return model, make_trainer(config).fit(model, make_set(), make_set(9, 1), **options)


def assert_as_alone(found: list[Fitted], seeds: list[int]) -> None:
    assert [one.seed for one in found] == seeds
    for one in found:
        model, history = alone(one.seed)
        assert one.model is not None
        assert one.history is not None
        for name, value in model.state_dict().items():
            assert torch.equal(value, one.model.state_dict()[name]), (one.seed, name)
        pairs = zip(history.to_dicts(), one.history.to_dicts(), strict=True)
        assert all({**a, "seconds": 0} == {**b, "seconds": 0} for a, b in pairs)
        assert not one.model.training


def test_one_after_another_is_as_alone() -> None:
    torch.manual_seed(99)
    before = torch.get_rng_state()
    found = make_trainer().fit_many(Net, [3, 1], make_set(), make_set(9, 1), workers=1)
    assert torch.equal(torch.get_rng_state(), before)
    assert_as_alone(found, [3, 1])


# One pool of processes serves several questions, as to start it takes seconds.
def test_processes_give_what_each_seed_gives_alone(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    trainer = Trainer(CONFIG, device="cpu", threads=1)
    found = trainer.fit_many(
        functools.partial(Net, p_drop=0.3),
        [2, 0, 5],
        make_set(),
        make_set(9, 1),
        workers=2,
        folder=tmp_path,
    )
    assert_as_alone(found, [2, 0, 5])
    shown = capfd.readouterr().err
    assert shown.count("validation accuracy") == 3
    assert "(3 of 3)" in shown
    assert sorted(path.name for path in tmp_path.iterdir()) == ["seed-0", "seed-2", "seed-5"]
    again = trainer.fit_many(
        Net, [2, 0, 5], make_set(), make_set(9, 1), workers=1, folder=tmp_path, resume=True
    )
    assert [one.history for one in again] == [one.history for one in found]


def test_a_seed_that_diverges_is_a_result() -> None:
    config = TrainConfig(
        epochs=1, batch_size=4, learning_rate=1e30, schedule="constant", optimizer_options={}
    )
    found = make_trainer(config).fit_many(Net, [0, 1], make_set(), workers=1)
    assert [(one.model, one.history) for one in found] == [(None, None)] * 2
    assert all(isinstance(one.error, NonFiniteLossError) for one in found)


@pytest.mark.parametrize(
    "error",
    [
        NonFiniteLossError("nan", epoch=2, step=3),
        errors.OutOfMemoryError("full", batch_size=8, fits=None),
        errors.ConstraintError("broken", report={"a": 1}),
        InvalidInputError("no"),
    ],
)
def test_errors_travel_between_processes(error: Exception) -> None:
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error)
    assert (again.args, vars(again)) == (error.args, vars(error))
    assert str(again) == str(error)


def test_bad_input_is_refused_before_anything_starts(tmp_path: Path) -> None:
    trainer = make_trainer()
    for seeds in ([], [1, 1], 3, ["a"], [-1]):
        with pytest.raises(InvalidInputError, match="seed"):
            trainer.fit_many(Net, seeds, make_set())  # type: ignore[arg-type]
    with pytest.raises(InvalidInputError, match="make_model: made a int"):
        trainer.fit_many(lambda: 3, [0], make_set(), workers=1)  # type: ignore[arg-type,return-value]
    with pytest.raises(InvalidInputError, match=r"make_model=.*must be callable"):
        trainer.fit_many(3, [0], make_set())  # type: ignore[arg-type]
    with pytest.raises(InvalidInputError, match="workers=0"):
        trainer.fit_many(Net, [0], make_set(), workers=0)
    with pytest.raises(InvalidInputError, match=r"cannot be sent to another process.*workers=1"):
        trainer.fit_many(lambda: Net(), [0, 1], make_set(), workers=2)
    with pytest.raises(InvalidInputError, match="needs the folder"):
        trainer.fit_many(Net, [0], make_set(), resume=True)


def test_cores_are_shared_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("constrained_cnn.training._many.usable_cores", lambda: 8)
    assert share_cores(16, None, None) == (8, 1)
    assert share_cores(3, None, None) == (3, 2)
    assert share_cores(16, 2, None) == (2, 4)
    assert share_cores(16, None, 4) == (2, 4)
    assert share_cores(1, None, None) == (1, 8)


def test_a_container_grants_what_its_quota_says(tmp_path: Path) -> None:
    assert 1 <= usable_cores() <= (os.cpu_count() or 1)
    assert _quota(tmp_path) is None
    for text, expected in (("max 100000", None), ("150000 100000", 1.5), ("nonsense", None)):
        (tmp_path / "cpu.max").write_text(text)
        assert _quota(tmp_path) == expected
    (tmp_path / "cpu.max").unlink()
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text("-1\n")
    (tmp_path / "cpu" / "cpu.cfs_period_us").write_text("100000\n")
    assert _quota(tmp_path) is None
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text("200000\n")
    assert _quota(tmp_path) == 2.0


SCRIPT = """
import sys, time
import torch
from torch import nn
from constrained_cnn import ImageSet, TrainConfig, Trainer

def make_model():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 4))

class Slow:
    def __call__(self, outputs, targets):
        time.sleep(0.05)
        return nn.functional.cross_entropy(outputs, targets)

if __name__ == "__main__":
    images = torch.randint(0, 256, (16, 1, 8, 8), dtype=torch.uint8)
    data = ImageSet.from_arrays(images, torch.arange(16) % 4)
    trainer = Trainer(TrainConfig(epochs=50, batch_size=4), device="cpu", loss=Slow())
    found = trainer.fit_many(make_model, [0, 1, 2], data, folder=sys.argv[1], workers=2)
    for one in found:
        print(one.seed, one.history.status, 4 * len(one.history) + one.history.steps_of_next)
"""


def start_script(tmp_path: Path) -> tuple["subprocess.Popen[str]", list[Path]]:
    """Start the script; return it, and the folders of its first two seeds, once both are begun."""
    script, out = tmp_path / "script.py", tmp_path / "out"
    script.write_text(SCRIPT)
    process = subprocess.Popen(
        [sys.executable, str(script), str(out)],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    folders = [out / "seed-0", out / "seed-1"]
    begun = [folder / "history.jsonl" for folder in folders]
    while not all(path.exists() and path.read_text() for path in begun):
        assert process.poll() is None
        time.sleep(0.05)
    return process, folders


def test_a_signal_stops_all_of_them_and_loses_nothing(tmp_path: Path) -> None:
    process, folders = start_script(tmp_path)
    process.send_signal(signal.SIGTERM)
    printed, errors_ = process.communicate()
    assert process.returncode == 0, errors_
    assert "Traceback" not in errors_
    rows = [line.split() for line in printed.splitlines()]
    assert [row[:2] for row in rows] == [["0", "interrupted"], ["1", "interrupted"]]
    for seed, _, steps in rows:
        state = torch.load(folders[int(seed)] / "checkpoint.pt", weights_only=True)
        assert 4 * state["epoch"] + state["step"] == int(steps)


def test_when_the_first_process_is_killed_the_others_end_too(tmp_path: Path) -> None:
    process, folders = start_script(tmp_path)
    process.kill()
    process.communicate()  # until no process has its pipes any more
    for folder in folders:
        state = torch.load(folder / "checkpoint.pt", weights_only=True)
        assert state["epoch"] < 50
        assert {file.name for file in folder.iterdir()} == {
            *("checkpoint.pt", "checkpoint-before.pt"),
            *("history.jsonl", "history.csv"),
        }


@pytest.fixture
def when_begun(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Return what lets every process of a pool get signals as soon as it is there."""

    def send_at_once(*numbers: signal.Signals) -> None:
        spawn = util.spawnv_passfds

        def spawn_and_send(path: Any, words: Any, passed: Any) -> int:
            pid = spawn(path, words, passed)
            if b"spawn_main" in b"".join(os.fsencode(word) for word in words):
                for number in numbers:
                    os.kill(pid, number)
            return pid

        monkeypatch.setattr(util, "spawnv_passfds", spawn_and_send)

    return send_at_once


def test_a_signal_to_processes_that_are_not_ready_is_for_the_first_to_pass_on(
    when_begun: Callable[..., None],
) -> None:
    when_begun(signal.SIGINT, signal.SIGTERM, signal.SIGINT)
    found = make_trainer().fit_many(Net, [3, 0], make_set(), make_set(9, 1), workers=2)
    assert_as_alone(found, [3, 0])


def test_a_process_that_is_killed_before_it_is_ready_is_an_error(
    when_begun: Callable[..., None],
) -> None:
    when_begun(signal.SIGKILL)
    images = make_set(4000)  # more than a pipe holds
    with pytest.raises(ConstrainedCNNError, match=r"a process that .* perhaps because memory"):
        make_trainer().fit_many(Net, [3, 0], images, workers=2)


def test_nowhere_to_write_for_the_processes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
    with pytest.raises(OutputError, match=r"cannot write .* bytes .* TMPDIR names another"):
        make_trainer().fit_many(Net, [3, 0], make_set(), workers=2)
