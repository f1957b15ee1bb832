"""Processes that torchrun started train one network as one process does, or share out its seeds."""

import dataclasses
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing import forkserver
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
import torchrun_processes as run
from small_recipe import RECIPE, STEPS, register
from torchrun_processes import Outcome
from world_processes import Pool

from constrained_cnn import recipes
from constrained_cnn.cli import main as command
from constrained_cnn.record import RunRecord
from constrained_cnn.training import World
from constrained_cnn.training._run import AGREE_EVERY

WEIGHTS = "weights.safetensors"
# What a run goes through at its most: every process has random numbers and statistics of its own.
LOCAL: dict[str, Any] = {
    "parts": ("norm", "dropout"),
    "config": {"weight_averaging": 0.7, "precise_bn": 2},
}


@pytest.fixture(scope="module", autouse=True)
def _loaded() -> None:
    """Import once what each process of a pool needs, in the server from which they are forked."""
    forkserver.set_forkserver_preload(["torch", "torch._dynamo", "constrained_cnn.recipes"])
    forkserver.ensure_running()


@pytest.fixture(autouse=True)
def _registered(monkeypatch: pytest.MonkeyPatch) -> None:
    register(monkeypatch)


@pytest.fixture(scope="module")
def two(_loaded: None) -> Iterator[Pool]:
    with Pool(2) as pool:
        yield pool


@pytest.fixture(scope="module")
def three(_loaded: None) -> Iterator[Pool]:
    with Pool(3) as pool:
        yield pool


@pytest.fixture(params=["two", "three"])
def pool(request: pytest.FixtureRequest) -> Pool:
    found: Pool = request.getfixturevalue(request.param)
    return found


def same_in_all(outcomes: list[Outcome]) -> Outcome:
    """Return what the first process is left with; the others must be left with the same bytes."""
    assert [one.error for one in outcomes] == [""] * len(outcomes)
    assert {one.checksum for one in outcomes} == {outcomes[0].checksum}
    assert all(one.rows == outcomes[0].rows for one in outcomes)
    assert all(bool(torch.isfinite(part).all()) for part in outcomes[0].weights.values())
    return outcomes[0]


def assert_close(found: Outcome, wanted: Outcome, tolerance: float) -> None:
    for name, part in wanted.weights.items():
        assert torch.allclose(found.weights[name], part, rtol=tolerance, atol=tolerance), name
    for row, aim in zip(found.rows, wanted.rows, strict=True):
        for name, value in aim.items():
            if name.endswith("_loss"):
                assert row[name] == pytest.approx(value, abs=1e-6), name
            else:  # counts, so that the same samples were met, and each once
                assert row[name] == value, name


MOMENTUM: dict[str, Any] = {"optimizer_options": {"momentum": 0.9, "nesterov": True}}
ADAM: dict[str, Any] = {"optimizer": "AdamW", "optimizer_options": {}, "learning_rate": 0.01}
TOGETHER: dict[str, tuple[tuple[str, ...], dict[str, Any], str, str]] = {
    "float32": ((), {}, "resident", "resident"),
    "momentum": (("double",), MOMENTUM, "resident", "resident"),
    "all": (("double",), {**ADAM, "weight_averaging": 0.7}, "resident", "loader"),
    "clipped": (("double",), {"clip_gradient": 0.1, "weight_averaging": 0.5}, "loader", "resident"),
    "thaw": (("double", "thaw"), MOMENTUM, "resident", "resident"),
    "norm": (("double", "norm"), {"weight_averaging": 0.7}, "resident", "resident"),
    "precise": (("double", "norm"), {"precise_bn": 2, **MOMENTUM}, "resident", "resident"),
    "precise loader": (("double", "norm"), {"precise_bn": 2}, "loader", "loader"),
}


@pytest.mark.parametrize("name", TOGETHER)
def test_many_processes_give_the_weights_of_one(pool: Pool, name: str) -> None:
    # 13 and 9 samples in batches of 4: of the last batch only the first process gets a row.
    parts, config, kind, judged_kind = TOGETHER[name]
    config = {**config, "sync_batch_norm": True}
    words: dict[str, Any] = {"parts": parts, "config": config}
    words |= {"kind": kind, "judged_kind": judged_kind}
    alone = run.fit(World(), **words)
    together = same_in_all(pool.run(run.fit, **words))
    assert_close(together, alone, 1e-12 if "double" in parts else 1e-5)
    assert together.status == alone.status == "finished"
    assert together.samples == alone.samples == 3 * 13
    again = same_in_all(pool.run(run.fit, **words))
    assert again.checksum == together.checksum
    assert again.rows == together.rows


def test_buffers_are_those_of_all_beside_synchronised_norms_too(pool: Pool) -> None:
    # What it counts, the rows of one process, is another number in each.
    words: dict[str, Any] = {"parts": ("norm", "counter"), "config": {"sync_batch_norm": True}}
    together = same_in_all(pool.run(run.fit, **words))
    assert "2.rows" in together.weights


def test_norms_of_their_own_rows(pool: Pool) -> None:
    together = same_in_all(pool.run(run.fit, judged_kind="resident", **LOCAL))
    again = same_in_all(pool.run(run.fit, judged_kind="resident", **LOCAL))
    assert again.checksum == together.checksum
    assert again.rows == together.rows


def test_precise_statistics_are_the_same_in_all_whatever_a_loader_draws(two: Pool) -> None:
    same_in_all(two.run(run.fit, kind="loader", judged_kind="loader", **LOCAL))


@pytest.mark.parametrize("kind", ["resident", "loader"])
def test_each_sample_is_met_once(pool: Pool, kind: str) -> None:
    # As many classes as images, so that a label says which image it was.
    words: dict[str, Any] = {"classes": 13, "parts": ("dropout",), "kind": kind}
    alone = run.fit(World(), judged_kind=kind, **words)
    together = pool.run(run.fit, judged_kind=kind, **words)
    for rank, one in enumerate(together):
        own = [batch[rank :: pool.size] for batch in alone.trained]
        assert one.trained == [batch for batch in own if batch]
    assert len({tuple(batch) for batch in alone.trained}) == len(alone.trained)  # it is shuffled
    judged = [label for one in together for batch in one.judged for label in batch]
    assert sorted(judged) == sorted(3 * list(range(9)))


def test_each_process_drops_other_elements(pool: Pool) -> None:
    dropped = [epoch for one in pool.run(run.drop) for epoch in one]
    assert len({tuple(epoch) for epoch in dropped}) == 2 * pool.size
    assert all(10 < sum(epoch) < 54 for epoch in dropped)  # of 64, each with a chance of a half
    assert dropped == [epoch for one in pool.run(run.drop) for epoch in one]


BROKEN: dict[str, tuple[int, dict[str, Any]]] = {
    "local": (5, {**LOCAL, "count": 61}),
    "second epoch": (21 + 5, {**LOCAL, "count": 61}),
    "loader": (5, {**LOCAL, "count": 61, "kind": "loader"}),
    "noise": (5, {**LOCAL, "count": 61, "kind": "noisy"}),
    # It goes on with the one step in which the second process has no row.
    "no rows": (5, {**LOCAL, "count": 49, "config": {"sync_batch_norm": True}}),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_signal_to_one_stops_all_and_nothing_is_lost(
    two: Pool, tmp_path: Path, name: str
) -> None:
    at, words = BROKEN[name]
    words = {**words, "batch": 3, "judged_kind": "resident"}
    unbroken = same_in_all(two.run(run.fit, **words))
    words["folder"] = str(tmp_path / "machine")
    stopped = two.run(run.fit, at={1: (at, "SIGTERM")}, **words)
    done = at // 21  # epochs
    for one in stopped:
        assert (one.status, len(one.rows), one.steps) == ("interrupted", done, AGREE_EVERY)
    assert [path.name for path in tmp_path.iterdir()] == ["machine-0"]  # nobody else writes
    resumed = same_in_all(two.run(run.fit, resume=True, **words))
    assert resumed.checksum == unbroken.checksum
    assert resumed.rows == unbroken.rows
    assert resumed.status == "finished"
    assert [path.name for path in tmp_path.iterdir()] == ["machine-0"]


def test_another_number_of_processes_is_refused(two: Pool, tmp_path: Path) -> None:
    words: dict[str, Any] = {"count": 61, "at": {0: (5, "SIGTERM")}, **LOCAL}
    folders = {"one": str(tmp_path / "one"), "two": str(tmp_path / "two")}
    assert run.fit(World(), folder=folders["one"], **words).status == "interrupted"
    two.run(run.fit, folder=folders["two"], **words)
    words["at"] = None
    alone = run.fit(World(), folder=folders["two"], resume=True, **words)
    together = two.run(run.fit, folder=folders["one"], resume=True, **words)
    message = "CheckpointError: .* from a run with other processes: number was {} and is {}. "
    assert re.match(message.format(2, 1), alone.error)
    for one in together:
        assert re.match(message.format(1, 2), one.error)


def test_a_loss_that_is_not_finite_in_one_is_an_error_in_all(two: Pool, tmp_path: Path) -> None:
    folder = str(tmp_path / "run")
    outcomes = two.run(run.fit, count=81, folder=folder, at={1: (AGREE_EVERY + 2, "NaN")})
    assert [one.error for one in outcomes] == [f"epoch 1, step {AGREE_EVERY + 2}"] * 2
    state = torch.load(tmp_path / "run-0" / "checkpoint.pt", weights_only=True)
    assert (state["epoch"], state["step"]) == (0, AGREE_EVERY)
    assert all(bool(torch.isfinite(part).all()) for part in state["model"].values())


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"config": {"seed": 4}}, "seed is 3 in process 0 and 4 in process 1"),
        ({"count": 7}, "samples is 13 in process 0 and 7 in process 1"),
        ({"folder": "given"}, "folder is False in process 0 and True in process 1"),
        ({"judged_kind": "resident"}, "validation is None in process 0 and 'given' in process 1"),
        ({"executor": "eager"}, "executor is 'auto' in process 0 and 'eager' in process 1"),
        (
            {"parts": ("thaw",)},
            r"0.bias is 'float32 (4,), trained' in process 0 and 'float32 (4,)' in process 1",
        ),
    ],
)
def test_processes_that_are_asked_for_different_runs(
    two: Pool, other: dict[str, Any], message: str, tmp_path: Path
) -> None:
    if "folder" in other:
        other = {"folder": str(tmp_path / "run")}
    for one in two.run(run.fit_own, own=[{}, other]):
        assert one.error.startswith("InvalidInputError: the processes are asked for different runs")
        assert message in one.error
    assert list(tmp_path.iterdir()) == []


def test_one_that_has_done_its_seeds_waits_for_the_others(two: Pool, tmp_path: Path) -> None:
    message = two.run(run.meet_late, device="", given_up=tmp_path / "given-up")[0]
    assert message.startswith("rank 0 of 2 lost the other processes")
    assert two.run(run.share_seeds_late, device="", done=tmp_path / "done") == [3, 3]


def test_seeds_that_are_fitted_are_shared_out_too(two: Pool) -> None:
    first, second = two.run(run.fit_seeds)
    assert [seed for seed, _ in first] == [5, 1, 2]
    assert first == second == run.fit_seeds(World())  # as in a process on its own


def test_processes_that_are_asked_for_different_seeds(two: Pool) -> None:
    for said in two.run(run.fit_other_seeds):
        assert said.startswith("the processes are asked for different seeds")


def test_one_that_is_to_go_on_if_begun_does_not_wait_for_one_that_is_not(
    two: Pool, tmp_path: Path
) -> None:
    folder = str(tmp_path / "run")
    own = [{"folder": folder, "resume": "if-begun"}, {"folder": folder}]
    same_in_all(two.run(run.fit_own, own=own))
    first, second = two.run(run.fit_own, own=own)  # now there is a run
    assert "resume is True in process 0 and False in process 1" in first.error
    assert first.error == second.error


# torchrun itself.

TORCHRUN = [sys.executable, "-m", "torch.distributed.run"]
TRAIN = ["-m", "constrained_cnn", "train"]
SCRIPT = [str(Path(run.__file__))]


def environment() -> dict[str, str]:
    own = {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "COLUMNS": "200"}
    return {**os.environ, **own}


def start(*words: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [*TORCHRUN, *words],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: "subprocess.Popen[str]", *, status: int = 0) -> tuple[str, str]:
    try:
        out, err = process.communicate()
    except BaseException:  # such as that of the guard against hanging
        process.terminate()
        process.communicate()
        raise
    assert process.returncode == status, err
    return out, err


def two_here(*words: str, restarts: int = 0) -> "subprocess.Popen[str]":
    restarting = ["--max-restarts", str(restarts)]
    return start("--standalone", "--nproc-per-node", "2", *restarting, *words)


@dataclass(frozen=True)
class Finished:
    """What the script left: runs below ``folder``, and what was printed."""

    folder: Path
    out: str
    err: str

    def weights(self, name: str) -> bytes:
        return (self.folder / name / WEIGHTS).read_bytes()


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """Run the script once: the second process is killed in the middle of the second epoch."""
    folder = tmp_path_factory.mktemp("torchrun")
    process = two_here(*SCRIPT, str(folder), f"1:{STEPS + AGREE_EVERY + 5}", restarts=2)
    return Finished(folder, *finish(process))


def test_a_process_that_was_killed_changes_nothing(finished: Finished) -> None:
    assert f"start 1: epoch 1, step {AGREE_EVERY}\n" in finished.out
    assert "start 2" not in finished.out
    assert finished.weights("killed") == finished.weights("whole")
    whole, killed = (RunRecord.load(finished.folder / name) for name in ("whole", "killed"))
    assert whole.weights_sha256 == killed.weights_sha256
    assert whole.result["test_loss"] == killed.result["test_loss"]
    rows = [[{**row, "seconds": 0} for row in one.history] for one in (whole, killed)]
    assert rows[0] == rows[1]


def test_the_record_says_how_many_processes(finished: Finished) -> None:
    together = RunRecord.load(finished.folder / "whole").environment
    assert (together["processes"], together["threads"], together["executor"]) == (2, 1, "eager")
    alone = RunRecord.load(finished.folder / "seeds" / "seed-1").environment
    assert (alone["processes"], alone["threads"]) == (1, 1)


def test_only_the_first_process_prints(finished: Finished) -> None:
    for name, starts in (("whole", 1), ("seeds", 1), ("killed", 2)):
        assert finished.out.count(f"Results go to {finished.folder / name}{os.sep}\n") == starts
        assert finished.out.count(f"pictures: {finished.folder / name}{os.sep}\n") == 1
    assert finished.err.count("the data is not what it should be") == 1
    assert finished.err.count("epoch  train loss") == 3  # each start of both runs


def test_seeds_are_shared_out_and_each_is_what_it_is_alone(
    finished: Finished, tmp_path: Path
) -> None:
    below = finished.folder / "seeds"
    folders = [path.name for path in below.iterdir() if path.is_dir()]
    assert sorted(folders) == [f"seed-{seed}" for seed in range(4)]
    sample = json.loads((below / "sample.json").read_text())
    assert sample["seeds"] == list(range(4))
    with mock.patch("constrained_cnn.recipes._run._draw"):
        for seed in range(4):
            out = tmp_path / str(seed)
            words: dict[str, Any] = {"device": "cpu", "threads": 1, "progress": False}
            alone = recipes.run(RECIPE, seed, out=out, **words)
            assert finished.weights(f"seeds/seed-{seed}") == (out / WEIGHTS).read_bytes()
            assert sample["values"][seed] == alone.result["test_accuracy"]
    assert finished.weights("seeds/seed-0") != finished.weights("whole")  # of two processes


def test_a_seed_that_was_stopped_is_said_wherever_it_is(
    finished: Finished, capsys: pytest.CaptureFixture[str]
) -> None:
    records = [RunRecord.load(finished.folder / "seeds" / f"seed-{seed}") for seed in range(2)]
    records[0] = dataclasses.replace(records[0], status="interrupted", epochs=1)
    words = ["train", RECIPE.name, "--seeds", "0-1", "--device", "cpu", "--quiet"]
    with mock.patch("constrained_cnn.recipes.run_seeds", return_value=records):
        assert command([*words, "--out", str(finished.folder / "again")]) == 130
    said = capsys.readouterr().err
    assert "Stopped: seed 1 finished, seed 0 after 1 of 2 epochs; what was done is kept. To" in said


@pytest.mark.slow
def test_killed_again_and_again(finished: Finished, tmp_path: Path) -> None:
    # Before the first step and in the first steps, in either process, in either epoch; in the
    # third start neither gets to the next checkpoint.
    moments = ["0:1", "1:5", "0:40", "1:3", "0:30", "1:25"]
    (tmp_path / "whole").mkdir()
    process = two_here(*SCRIPT, str(tmp_path), *moments, restarts=len(moments))
    out, _ = finish(process)
    found = re.findall(r"start \d: epoch (\d), step (\d+)\n", out)
    places = [STEPS * int(epoch) + int(step) for epoch, step in found]
    assert len(places) == len(moments)
    assert places == sorted(places)
    assert len(set(places)) > 3
    assert (tmp_path / "killed" / WEIGHTS).read_bytes() == finished.weights("whole")


def children(process: "subprocess.Popen[str]") -> list[int]:
    """Return the processes that torchrun started, by rank."""
    path = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    return sorted(int(number) for number in path.read_text().split())


def wait_for(happened: Callable[[], bool], process: "subprocess.Popen[str]") -> None:
    while not happened():
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)


def digits(folder: Path, *words: str) -> Sequence[str]:
    asked = ["mnist-12k", "--data", "digits", "--device", "cpu", "--epochs", "2"]
    return [*TRAIN, *asked, "--checkpoint-seconds", "0", "--out", str(folder), *words]


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc").exists(), reason="looks for the processes in /proc")
def test_the_command_as_it_is(tmp_path: Path) -> None:
    """Train the reference network: unbroken, killed, stopped, and as on two machines."""
    whole = tmp_path / "whole"
    out, _ = finish(two_here(*digits(whole)))
    assert out.count("Results go to") == 1
    assert (whole / "pictures" / "confusion.png").exists()
    record = RunRecord.load(whole)
    assert record.environment["processes"] == 2

    killed = tmp_path / "killed"
    process = two_here(*digits(killed, "--resume-if-begun"), restarts=2)
    wait_for((killed / "history.csv").exists, process)
    wait_for(lambda: len((killed / "history.csv").read_text().split()) > 1, process)
    os.kill(children(process)[1], signal.SIGKILL)
    finish(process)
    assert RunRecord.load(killed).weights_sha256 == record.weights_sha256

    stopped = tmp_path / "stopped"
    process = two_here(*digits(stopped, "--resume-if-begun"))
    wait_for((stopped / "checkpoint.pt").exists, process)
    process.send_signal(signal.SIGTERM)
    process.communicate()
    assert process.returncode != 0
    assert RunRecord.load(stopped).status == "interrupted"
    finish(two_here(*digits(stopped, "--resume-if-begun")))
    assert RunRecord.load(stopped).weights_sha256 == record.weights_sha256

    seeds = tmp_path / "seeds"
    process = two_here(*digits(seeds, "--resume-if-begun", "--seeds", "0-2"), restarts=1)
    wait_for((seeds / "seed-1" / "history.csv").exists, process)
    os.kill(children(process)[1], signal.SIGKILL)
    finish(process)
    words: dict[str, Any] = {"data_name": "digits", "epochs": 2, "device": "cpu", "threads": 1}
    for seed in range(3):
        alone = recipes.run("mnist-12k", seed, out=tmp_path / str(seed), progress=False, **words)
        shared = RunRecord.load(seeds / f"seed-{seed}")
        assert (shared.weights_sha256, shared.status) == (alone.weights_sha256, "finished")

    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    meeting = ["--nnodes", "2", "--nproc-per-node", "1", "--rdzv-backend", "c10d"]
    meeting += ["--rdzv-endpoint", f"localhost:{port}", "--rdzv-id", "test"]
    machines = [
        start(*meeting, "--local-addr", "localhost", *digits(tmp_path / "machines")) for _ in "ab"
    ]
    for machine in machines:
        finish(machine)
    assert RunRecord.load(tmp_path / "machines").weights_sha256 == record.weights_sha256
