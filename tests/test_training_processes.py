"""Work in several processes: what becomes of the others, and what is said, where one fails."""

import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
import types
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from constrained_cnn import TrainConfig, Trainer
from constrained_cnn.errors import ConstrainedCNNError, InvalidInputError
from constrained_cnn.training import in_processes
from constrained_cnn.training._interrupt import InterruptGuard
from constrained_cnn.training._processes import Send, Work

REPOSITORY = Path(__file__).resolve().parents[1]
LONG_SECONDS = 900.0  # of an item that nobody stops, and of a wait for what never comes


def worked(
    work: Work, items: int = 2, on_message: Callable[[Any, Any], None] = lambda *_: None
) -> dict[Any, Any]:
    return dict(in_processes(work, range(items), workers=2, threads=1, on_message=on_message))


def until(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + LONG_SECONDS
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def assert_none_is_left() -> None:
    assert multiprocessing.active_children() == []


@dataclass
class SpeaksWhileAnotherBegins:
    """Item 0 is begun first, says hello, and works on, as item 1 does, until it is stopped."""

    folder: Path

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        try:
            (self.folder / "first").touch(exist_ok=False)
        except FileExistsError:
            until((self.folder / "begun-0").exists)
            time.sleep(1)

    def __call__(self, item: int, send: Send) -> None:
        (self.folder / f"begun-{item}").touch()
        deadline = time.monotonic() + LONG_SECONDS
        with InterruptGuard(quiet=True) as guard:
            send("hello")
            while not guard.requested and time.monotonic() < deadline:
                time.sleep(0.01)
            (self.folder / (f"kept-{item}" if guard.requested else f"whole-{item}")).touch()
        send("more")


def test_after_an_error_no_process_that_just_begins_does_its_whole_work(tmp_path: Path) -> None:
    heard: list[object] = []

    def fail(item: object, message: object) -> None:
        heard.append((item, message))
        deadline = time.monotonic() + 4  # by then the other is ready
        while not (tmp_path / "begun-1").exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        raise ZeroDivisionError(message)

    with pytest.raises(ZeroDivisionError, match="hello"):
        worked(SpeaksWhileAnotherBegins(tmp_path), on_message=fail)
    assert heard == [(0, "hello")]
    assert (tmp_path / "kept-0").exists()
    assert not (tmp_path / "whole-1").exists()
    assert_none_is_left()


@dataclass
class FailsBesideAnother:
    """Item 0 fails once item 1 is begun, which stops when it is asked to, or never.

    Attributes:
        folder: Where item 1 writes its process, and what became of it.
        stubborn: Whether it goes on when it was asked to stop.
    """

    folder: Path
    stubborn: bool = False

    def __call__(self, item: int, send: Send) -> bytes:
        if item == 0:
            until((self.folder / "begun").exists)
            raise ZeroDivisionError("item 0")
        (self.folder / "begun").touch()
        deadline = time.monotonic() + LONG_SECONDS
        with InterruptGuard(quiet=True) as guard:
            while not guard.requested:
                assert time.monotonic() < deadline
                time.sleep(0.01)
            (self.folder / "stopped").touch()
            while self.stubborn and time.monotonic() < deadline:
                time.sleep(0.01)
        send("more")
        (self.folder / "kept").touch()
        return bytes(10**6)  # more than a pipe holds


def test_where_one_fails_another_finishes_as_after_a_signal(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError, match="item 0"):
        worked(FailsBesideAnother(tmp_path))
    assert (tmp_path / "kept").exists()
    assert_none_is_left()


def test_a_second_ctrl_c_after_an_error_ends_them_at_once(tmp_path: Path) -> None:
    def press_twice() -> None:
        until((tmp_path / "stopped").exists)
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.5)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    thread = threading.Thread(target=press_twice)
    thread.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            worked(FailsBesideAnother(tmp_path, stubborn=True))
        assert_none_is_left()
    finally:
        thread.join()
        signal.signal(signal.SIGINT, before)
    assert not (tmp_path / "kept").exists()


@dataclass
class IsKilledBesideAnother(FailsBesideAnother):
    def __call__(self, item: int, send: Send) -> bytes:
        if item == 0:
            until((self.folder / "begun").exists)
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__call__(item, send)


def test_where_one_is_killed_another_finishes_however_much_it_has_to_say(tmp_path: Path) -> None:
    with pytest.raises(ConstrainedCNNError, match=r"killed \(signal 9\), perhaps because memory"):
        worked(IsKilledBesideAnother(tmp_path))
    assert (tmp_path / "kept").exists()
    assert_none_is_left()


def end_itself(item: int, send: Send) -> None:
    os._exit(3)


def test_a_process_that_ends_itself(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConstrainedCNNError, match=r"ended of itself \(exit code 3\)"):
        worked(end_itself)
    assert_none_is_left()


SCRIPT = """
import torch
from torch import nn
from constrained_cnn import ImageSet, TrainConfig, Trainer, recipes

def make_model():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 4))

images = torch.randint(0, 256, (16, 1, 8, 8), dtype=torch.uint8)
data = ImageSet.from_arrays(images, torch.arange(16) % 4)
trainer = Trainer(TrainConfig(epochs=1, batch_size=4), device="cpu")
"""
FIT_MANY = "trainer.fit_many(make_model, [0, 1], data, workers=2)"
RUN_SEEDS = "recipes.run_seeds('mnist-12k', [0, 1], data_name='digits', device='cpu', workers=2)"


@pytest.mark.parametrize("what", [FIT_MANY, RUN_SEEDS])
def test_a_script_without_its_main_is_told_what_it_lacks(what: str, tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SCRIPT + what)
    done = subprocess.run(
        [sys.executable, "script.py"],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    last = done.stderr.strip().splitlines()[-1]
    assert done.returncode == 1
    assert "could not begin; what it printed says why" in last
    assert 'A script needs `if __name__ == "__main__":` around what it runs' in last
    assert "memory" not in last
    assert "bootstrapping phase" in done.stderr  # it did print why


class NeedsTwo(Exception):  # noqa: N818 - it is somebody else's
    """Can be pickled, and not be unpickled: its arguments are not those of its __init__."""

    def __init__(self, name: str, value: int) -> None:
        super().__init__(f"{name} is {value}")


class HoldsAFunction(Exception):  # noqa: N818
    """Cannot be pickled."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.function = lambda: None


def raise_item(item: Exception | type[BaseException], send: Send) -> None:
    if item is NeedsTwo:
        raise NeedsTwo("size", 3)
    if item is HoldsAFunction:
        raise HoldsAFunction("held")
    if isinstance(item, type):
        raise item("last words")
    raise item


@pytest.mark.parametrize(
    ("item", "said"),
    [
        (NeedsTwo, r"NeedsTwo: size is 3"),
        (HoldsAFunction, r"HoldsAFunction: held"),
        (SystemExit, r"SystemExit: last words"),
    ],
)
def test_an_error_that_cannot_be_sent_is_named(item: type[BaseException], said: str) -> None:
    with pytest.raises(ConstrainedCNNError, match=rf"a process raised .*{said}") as caught:
        list(in_processes(raise_item, [item], workers=2, threads=1, on_message=print))
    assert "workers=1 raises it here" in str(caught.value)
    assert "in raise_item" in caught.value.__notes__[0]
    assert_none_is_left()


def test_an_error_that_can_be_sent_is_raised_with_where_it_was_raised() -> None:
    error = InvalidInputError("x=1: must be 2")
    with pytest.raises(InvalidInputError) as caught:
        list(in_processes(raise_item, [error], workers=2, threads=1, on_message=print))
    assert str(caught.value) == "x=1: must be 2"
    assert "in raise_item" in caught.value.__notes__[0]


class OnlyThere:
    """Can be pickled, and not be unpickled."""

    def __reduce__(self) -> Any:
        return int, ("no number",)


def make_what_cannot_be_sent(item: int, send: Send) -> Any:
    return (lambda: None) if item == 0 else OnlyThere()


@pytest.mark.parametrize("item", [0, 1])
def test_a_result_that_cannot_be_sent(item: int) -> None:
    with pytest.raises(ConstrainedCNNError, match=rf"item={item}: its result cannot be sent.*work"):
        list(in_processes(make_what_cannot_be_sent, [item], workers=2, threads=1, on_message=print))
    assert_none_is_left()


def test_work_that_is_of_this_process_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """As what is defined in a notebook: it is sent by name, and there is no such name there."""
    module = types.ModuleType("only_here")

    class Here:
        def __call__(self, item: int, send: Send) -> None:
            raise AssertionError

    Here.__module__, Here.__qualname__ = "only_here", "Here"
    vars(module)["Here"] = Here
    monkeypatch.setitem(sys.modules, "only_here", module)
    assert pickle.dumps(Here())
    with pytest.raises(InvalidInputError, match=r"only_here.*not in a notebook.*workers=1"):
        worked(Here())
    assert_none_is_left()


def stops_itself(item: int, send: Send) -> int:
    if item == 0:
        os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(0.2)
    return item


def test_a_signal_to_one_process_alone_leaves_the_items_to_the_others() -> None:
    assert sorted(worked(stops_itself, items=6)) == [0, 1, 2, 3, 4, 5]
    assert_none_is_left()


def tells_and_finishes(item: int, send: Send) -> str:
    with InterruptGuard(quiet=True) as guard:
        send(os.getpid())
        until(lambda: guard.requested)
        time.sleep(0.5)  # a step, which further signals must not break
    return "whole"


def test_a_signal_to_all_processes_is_one_signal() -> None:
    """As a job's end or the stop of a service sends it: to each process, not to the first alone."""
    pids: list[int] = []

    def signal_all(item: object, pid: int) -> None:
        pids.append(pid)
        if len(pids) == 2:
            for one in (*pids, os.getpid()):
                os.kill(one, signal.SIGTERM)

    assert worked(tells_and_finishes, on_message=signal_all) == {0: "whole", 1: "whole"}


def test_signals_between_seeds_in_one_process_stop_and_keep_what_is_done() -> None:
    made: list[int] = []

    def make_model() -> nn.Module:
        made.append(len(made))
        if len(made) == 3:
            signal.raise_signal(signal.SIGTERM)
        return nn.Linear(3, 2)

    trainer = Trainer(TrainConfig(epochs=1, schedule="constant"), device="cpu", progress=False)
    batches = [(torch.randn(4, 3), torch.tensor([0, 1, 0, 1]))]
    found = trainer.fit_many(make_model, range(5), batches, workers=1)
    states = ["" if one.history is None else one.history.status for one in found]
    assert states == ["finished", "finished", "interrupted"]


class Grown(nn.Module):
    """Has a buffer that grows, so that what it holds in the end fits no new one."""

    seen: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(3, 2)
        self.register_buffer("seen", torch.zeros(0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen = torch.cat([self.seen, x.new_zeros(1)])
        out: torch.Tensor = self.net(x)
        return out


def test_a_model_that_cannot_be_made_again_here_is_an_error_and_leaves_no_process() -> None:
    trainer = Trainer(TrainConfig(epochs=1, schedule="constant"), device="cpu", progress=False)
    batches = [(torch.randn(4, 3), torch.tensor([0, 1, 0, 1]))]
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(
        ConstrainedCNNError, match=r"seed \d: its model cannot come from.*workers=1"
    ):
        trainer.fit_many(Grown, range(4), batches, workers=2)
    assert_none_is_left()
    assert signal.getsignal(signal.SIGINT) == handler
