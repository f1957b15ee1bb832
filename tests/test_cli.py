"""The command line, called in-process: what it prints, writes, refuses, and returns."""

import dataclasses
import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import nn

from constrained_cnn import RunRecord, TrainConfig, data, models, recipes
from constrained_cnn.cli import _told, main
from constrained_cnn.models import _registry
from constrained_cnn.recipes import Recipe, _recipe, _run
from constrained_cnn.training import _threads

FILES = {
    "checkpoint-before.pt",
    "checkpoint.pt",
    "history.csv",
    "history.jsonl",
    "pictures",
    "record.json",
    "weights.safetensors",
}
TINY = Recipe(
    name="tiny",
    about="for tests",
    model="tiny_net",
    data="digits",
    config=TrainConfig(epochs=2, batch_size=50),
)
Captured = pytest.CaptureFixture[str]


def tiny_net() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 4, 5, stride=4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10))


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """A recipe named tiny that trains within a second, and draws nothing."""
    train, test = data.load_digits()
    sets = train.subset(range(140)), test.subset(range(60))
    monkeypatch.setitem(_registry._BUILDERS, "tiny_net", tiny_net)
    monkeypatch.setattr(_recipe, "_RECIPES", dict(_recipe._RECIPES))
    recipes.register_recipe(TINY)
    monkeypatch.setattr(data, "load", lambda name, root: sets)
    monkeypatch.setattr(_run, "_draw", lambda *_: None)


@pytest.fixture
def no_mnist(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No folder holds MNIST, and no mirror answers."""

    def no_answer(*_: object) -> None:
        raise OSError("the network [/is down]")  # brackets are markup to rich

    monkeypatch.delenv("CONSTRAINED_CNN_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("constrained_cnn.data._loaders.download_files", no_answer)


def train(*words: str) -> int:
    return main(["train", "tiny", "--device", "cpu", *words])


def test_the_reference_recipe_on_digits_leaves_everything(capsys: Captured) -> None:
    words = ["--data", "digits", "--epochs", "1", "--device", "cpu"]
    assert main(["train", "mnist-12k", *words]) == 0
    folder = Path("runs/mnist-12k-digits-seed-0")
    assert {path.name for path in folder.iterdir()} == FILES
    assert len(list((folder / "pictures").glob("*.png"))) == 4
    record = RunRecord.load(folder)
    assert (record.model, record.parameters, record.epochs) == ("mnist_12k", 12_000, 1)
    assert (record.data["name"], record.data["asked"]) == ("digits", "digits")
    assert record.test_readings == [{"epoch": 1, "purpose": "after the last epoch"}]
    printed = capsys.readouterr()
    assert "Total params: 12,000" in printed.out  # the table of layers
    assert f"{record.test_accuracy:.2f} %" in printed.out
    assert str(folder) in printed.out
    assert "train loss" in printed.err
    assert "not of MNIST" not in printed.out + printed.err  # digits were asked for by name


@pytest.mark.usefixtures("no_mnist")
@pytest.mark.filterwarnings("default::constrained_cnn.data.DataFallbackWarning")
def test_without_mnist_auto_trains_on_digits_and_says_so(
    capsys: Captured, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(_registry._BUILDERS, "tiny_net", tiny_net)
    monkeypatch.setattr(_recipe, "_RECIPES", dict(_recipe._RECIPES))
    recipes.register_recipe(dataclasses.replace(TINY, data="auto"))
    monkeypatch.setattr(_run, "_draw", lambda *_: None)
    assert train() == 0
    record = RunRecord.load("runs/tiny-seed-0")
    assert (record.data["name"], record.data["asked"]) == ("digits", "auto")
    assert record.data["train"]["samples"] == 1437
    printed = capsys.readouterr()
    assert "DataFallbackWarning" in printed.err
    assert "NO accuracy of this run is an accuracy on MNIST" in printed.err
    assert "the network [/is down]" in printed.err
    assert "These figures are of the digits set, not of MNIST." in printed.out
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]


@pytest.mark.usefixtures("no_mnist")
def test_without_mnist_a_run_on_mnist_is_an_error_with_ways_out(
    capsys: Captured, tmp_path: Path
) -> None:
    assert main(["train", "mnist-12k", "--data", "mnist", "--quiet"]) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: mnist cannot be had")
    assert "--data digits" in message
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("tiny")
def test_a_finished_run_is_never_overwritten(capsys: Captured) -> None:
    assert train("--out", "here") == 0
    before = {path.name: path.read_bytes() for path in Path("here").iterdir()}
    for words in ([], ["--resume"], ["--seed", "1"]):
        assert train("--out", "here", *words) == 2
        assert "holds a finished run, " in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in Path("here").iterdir()} == before


@pytest.mark.usefixtures("tiny")
def test_default_folders_are_numbered(capsys: Captured) -> None:
    for name in ("tiny-seed-3", "tiny-seed-3-run-2", "tiny-seed-3-run-3"):
        assert train("--seed", "3", "--quiet") == 0
        assert f"runs/{name}/" in capsys.readouterr().out
        assert RunRecord.load(f"runs/{name}").seed == 3


@pytest.mark.usefixtures("tiny")
def test_a_folder_with_brackets_is_printed_as_it_is(capsys: Captured) -> None:
    assert train("--out", "try[red][/b]", "--quiet") == 0
    assert "try[red][/b]/" in capsys.readouterr().out


@pytest.mark.usefixtures("tiny")
def test_workers_are_for_seeds(capsys: Captured) -> None:
    assert train("--workers", "2") == 2
    assert "--workers: shares out --seeds, and there are none" in capsys.readouterr().err


@pytest.mark.usefixtures("tiny")
def test_a_range_of_seeds_gives_a_run_each_and_their_mean(capsys: Captured) -> None:
    assert train("--seeds", "0-1", "--workers", "1") == 0
    folder = Path("runs/tiny-seeds-0-to-1")
    records = [RunRecord.load(folder / f"seed-{seed}") for seed in (0, 1)]
    assert [record.seed for record in records] == [0, 1]
    accuracies = [record.test_accuracy for record in records]
    printed = capsys.readouterr().out
    for accuracy in accuracies:
        assert f"{accuracy:.2f} %" in printed
    mean = f"{sum(accuracy or 0 for accuracy in accuracies) / 2:.2f}"
    assert re.search(rf"│ mean +│ +{re.escape(mean)} │", printed)
    assert train("--seeds", "0-1", "--workers", "1", "--resume", "--json") == 0
    again = json.loads(capsys.readouterr().out)
    assert again == [record.to_dict() for record in records]  # kept, not run anew


@pytest.mark.usefixtures("tiny")
def test_places_are_told_for_each_seed_and_for_all(capsys: Captured) -> None:
    assert train("--seeds", "0-1", "--workers", "1", "--quiet") == 0
    folder = Path("runs/tiny-seeds-0-to-1")
    *_, each, together = capsys.readouterr().out.splitlines()
    assert each == f"For each seed a folder with record, weights, history and pictures: {folder}/"
    assert together == f"All seeds together: {folder}/sample.json and {folder}/seeds.png"
    assert (folder / "sample.json").exists()
    assert (folder / "seeds.png").exists()
    assert train("--seeds", "7-7", "--workers", "1", "--quiet") == 0
    assert "together" not in capsys.readouterr().out  # one has no statistics


@pytest.mark.usefixtures("tiny")
def test_a_run_that_is_finished_already_is_said_to_be(capsys: Captured) -> None:
    said = "Nothing to train: the run is finished already, in here/\n"
    assert train("--out", "here", "--resume-if-begun") == 0
    first = capsys.readouterr()
    assert "Nothing to train" not in first.out + first.err
    assert "Results go to here/" in first.out
    assert train("--out", "here", "--resume-if-begun") == 0
    again = capsys.readouterr()
    assert again.out.startswith(said)
    assert "Results go to" not in again.out
    assert again.err == ""
    assert "test accuracy" in again.out
    assert train("--out", "here", "--resume-if-begun", "--json") == 0
    again = capsys.readouterr()
    assert again.err == said
    assert json.loads(again.out) == RunRecord.load("here").to_dict()


@pytest.mark.usefixtures("tiny")
def test_seeds_that_are_finished_already_are_named(capsys: Captured) -> None:
    words = ["--out", "here", "--workers", "1"]
    assert train("--seeds", "0-1", *words) == 0
    assert "lready" not in capsys.readouterr().out
    assert train("--seeds", "0-2", *words, "--resume") == 0
    printed = capsys.readouterr()
    assert "Finished already and not trained again: seeds 0, 1\n" in printed.out
    assert "seed 2, 3 of 3" in printed.err
    assert train("--seeds", "0-2", *words, "--resume", "--quiet") == 0
    printed = capsys.readouterr()
    assert printed.out.startswith(
        "Nothing to train: the runs of seeds 0, 1, 2 are finished already, in here/\n"
    )
    assert printed.err == ""


def report_of(summary: str, **accuracies: str) -> dict[str, Any]:
    """Return a report on a run: a rule that is kept, one that is not judged, and those broken."""
    found = {"judged": True, "verdict": "fail", "required": "99 %", "evidence": ["why"]}
    broken = [{**found, "label": name, "measured": value} for name, value in accuracies.items()]
    others = [{**found, "label": "kept", "verdict": "pass"}, {**found, "judged": False}]
    return {"summary": summary, "findings": [*others, *broken]}


def test_rules_are_told_once_for_seeds_alike(capsys: Captured) -> None:
    reports = {
        0: report_of("1 kept", first="98 %", second="12"),
        1: report_of("2 kept", first="98 %"),
        2: report_of("1 kept", first="97 %", second="12"),
        3: None,
        4: report_of("2 kept", second="12"),
    }
    shipped = models.get_weights("mnist_12k", "mnist").record
    records = [dataclasses.replace(shipped, seed=seed, report=one) for seed, one in reports.items()]
    console = Console(highlight=False)
    _told._print_rules(console, records)
    assert capsys.readouterr().out.splitlines() == [
        "Rules, 1 kept, seeds 0, 2",
        "  fail: first: 99 % required, 98 % (seed 0), 97 % (seed 2)",
        "  fail: second: 99 % required, 12",
        "Rules, 2 kept, seed 1",
        "  fail: first: 99 % required, 98 %",
        "Rules, 2 kept, seed 4",
        "  fail: second: 99 % required, 12",
    ]
    _told._print_rules(console, [records[0]])
    assert capsys.readouterr().out.splitlines()[0] == "Rules, 1 kept"
    _told._print_rules(console, [records[1], dataclasses.replace(records[1], seed=9)])
    assert capsys.readouterr().out.splitlines() == [
        "Rules, 2 kept, each of 2 seeds",
        "  fail: first: 99 % required, 98 %",
    ]


@pytest.mark.usefixtures("tiny")
def test_steps_are_counted_as_a_person_says_it(
    capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    shipped = models.get_weights("mnist_12k", "mnist").record
    result = {"seconds": 1.0, "steps_of_next_epoch": 1}
    stopped = dataclasses.replace(shipped, status="interrupted", result=result)
    monkeypatch.setattr("constrained_cnn.recipes.run", lambda *_, **__: stopped)
    assert train("--quiet") == 130
    assert "epochs and 1 step of the next are kept. " in capsys.readouterr().err


@pytest.mark.usefixtures("tiny")
def test_more_threads_than_cores_are_warned_of(
    capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    for cores, said in ((1, "warning: --threads 2: this process may use 1 core; "), (2, "")):
        monkeypatch.setattr(_threads, "usable_cores", lambda cores=cores: cores)
        assert train("--quiet", "--threads", "2") == 0
        error = capsys.readouterr().err
        assert error.startswith(said)
        assert error.count("\n") == bool(said)


def in_a_process(*words: str, **streams: Any) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-m", "constrained_cnn", "train", "mnist-12k", "--data", "digits"]
    options = ["--epochs", "1", "--device", "cpu", "--threads", "1", *words]
    return subprocess.Popen([*command, *options], **streams)


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_reader_that_is_gone_ends_no_training(
    unbuffered: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONUNBUFFERED", unbuffered)
    # Nobody reads standard error, as after `2> >(head -1)`; or neither of them, as `2>&1 | head`.
    read, write = os.pipe()
    os.close(read)
    seen = in_a_process("--out", "seen", stdout=subprocess.PIPE, stderr=write)
    unseen = in_a_process("--out", "unseen", stdout=write, stderr=write)
    os.close(write)
    out, _ = seen.communicate()
    assert seen.returncode == 0
    assert b"test accuracy" in out
    assert unseen.wait() == 2  # its results could not be printed
    for name in ("seen", "unseen"):
        assert RunRecord.load(name).status == "finished"


@pytest.mark.usefixtures("tiny")
def test_json_prints_the_record_and_nothing_else(capsys: Captured, tmp_path: Path) -> None:
    assert train("--json") == 0
    printed = capsys.readouterr()
    (tmp_path / "printed.json").write_text(printed.out)
    loaded = RunRecord.load(tmp_path / "printed.json")  # version and checksum are right
    assert loaded.to_dict() == RunRecord.load("runs/tiny-seed-0").to_dict()
    assert "train loss" in printed.err


@pytest.mark.usefixtures("tiny")
def test_quiet_shows_the_result_alone(capsys: Captured) -> None:
    assert train("--quiet") == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    assert "Total params" not in printed.out
    assert "test accuracy" in printed.out


@pytest.mark.usefixtures("tiny")
def test_images_held_out_give_a_validation_accuracy(capsys: Captured) -> None:
    assert train("--held-out", "30", "--quiet") == 0
    printed = capsys.readouterr().out
    assert "validation accuracy" in printed
    assert "test accuracy" not in printed


@pytest.mark.usefixtures("tiny")
def test_a_test_curve_is_in_the_record() -> None:
    assert train("--test-curve", "--quiet") == 0
    readings = RunRecord.load("runs/tiny-seed-0").test_readings
    assert [reading["epoch"] for reading in readings] == [1, 2, 2]
    assert "optimistic" in readings[0]["purpose"]
    heading = Path("runs/tiny-seed-0/history.csv").read_text().splitlines()[0]
    assert "test_accuracy" in heading
    assert "validation" not in heading


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--epochs", "0"], "epochs=0: must be an integer of at least 1"),
        (["--seed", "-1"], "seed=-1"),
        (["--held-out", "-1"], "held_out=-1"),
        (["--held-out", "100000"], "held_out=100000"),
        (["--held-out", "30", "--test-curve"], "never reads the test"),
        (["--device", "gpu"], "device='gpu'"),
        (["--resume"], "there is nothing to resume"),
        (["--resume", "--out", "nowhere"], "there is nothing to resume"),
    ],
)
def test_a_wrong_argument_is_an_error_and_writes_nothing(
    words: list[str], message: str, capsys: Captured, tmp_path: Path
) -> None:
    assert train(*words) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_recipe_suggests_the_nearest(capsys: Captured, tmp_path: Path) -> None:
    assert main(["train", "mnist-12"]) == 2
    assert "did you mean 'mnist-12k'?" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (["--help"], 0, "train a recipe"),
        (["train", "--help"], 0, "--held-out"),
        (["--version"], 0, "0."),
        ([], 2, "COMMAND"),
        (["tarin"], 2, "invalid choice"),
        (["train", "tiny", "--seeds", "3-1"], 2, "'3-1': must be A-B with A <= B"),
        (["train", "tiny", "--seeds", "five"], 2, "'five': must be A-B"),
        (["train", "tiny", "--seed", "1", "--seeds", "0-1"], 2, "not allowed with"),
        (["train", "tiny", "--seed", "0", "--seeds", "0-1"], 2, "not allowed with"),
        (["train", "tiny", "--data", "cifar"], 2, "invalid choice: 'cifar'"),
        (["train", "tiny", "--epochs", "1.5"], 2, "invalid int value: '1.5'"),
    ],
)
def test_words_that_end_in_the_parser(
    words: list[str], status: int, message: str, capsys: Captured, tmp_path: Path
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(words)
    printed = capsys.readouterr()
    assert caught.value.code == status
    assert message in (printed.err if status else printed.out)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("tiny")
def test_a_second_ctrl_c_is_status_130(capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("constrained_cnn.recipes.run", stopped)
    assert train("--quiet") == 130
    assert capsys.readouterr().err == "stopped\n"
    os.makedirs("runs/begun")
    assert train("--quiet", "--out", "runs/begun") == 130
    assert "same command with --resume --out runs/begun\nstopped\n" in capsys.readouterr().err


def net_of_random_weights() -> nn.Module:
    model = models.create_model("mnist_12k")
    with torch.no_grad():
        for _ in range(20):
            model.train()(torch.randn(16, 1, 28, 28))
        list(model.parameters())[-1].copy_(torch.linspace(0, 1, 10))
    return model.eval()


def draw_digit(path: Path, *, one: bool) -> Path:
    """Dark ink on light paper: a stroke, or a ring."""
    from PIL import Image, ImageDraw

    picture = Image.new("L", (60, 60), 230)
    pen = ImageDraw.Draw(picture)
    if one:
        pen.line([(30, 10), (30, 50)], fill=20, width=6)
    else:
        pen.ellipse([15, 10, 45, 50], outline=20, width=6)
    picture.save(path)
    return path


def expected_answers(model: nn.Module, files: Sequence[Path]) -> list[dict[str, Any]]:
    inputs = (data.read_pictures(files).float() / 255 - 0.1307) / 0.3081
    with torch.no_grad():
        chances = model(inputs).softmax(1)
    ranked = chances.argsort(1, descending=True)
    return [
        {
            "image": str(file),
            "class": str(int(ranked[row, 0])),
            "probability": pytest.approx(float(chances[row, ranked[row, 0]]), abs=1e-4),
            "runner_up": str(int(ranked[row, 1])),
        }
        for row, file in enumerate(files)
    ]


def test_predict_reads_pictures_with_weights_of_ones_own(capsys: Captured, tmp_path: Path) -> None:
    model = net_of_random_weights()
    folder = finished_run(model, tmp_path / "run")
    files = [
        draw_digit(tmp_path / "one.png", one=True),
        draw_digit(tmp_path / "nought[bold].png", one=False),
    ]
    words = ["predict", *map(str, files), "--run", str(folder)]
    assert main([*words, "--json"]) == 0
    answers = json.loads(capsys.readouterr().out)
    assert answers == expected_answers(model, files)
    assert main(words) == 0
    printed = capsys.readouterr().out
    assert "nought[bold].png" in printed
    assert f"{100 * answers[0]['probability']:.1f} %" in printed


def test_predict_reads_the_other_pictures_when_one_is_bad(capsys: Captured, tmp_path: Path) -> None:
    good = draw_digit(tmp_path / "one.png", one=True)
    pipe = tmp_path / "pipe.png"
    os.mkfifo(pipe)
    assert main(["predict", str(tmp_path / "none.png"), str(good), str(pipe), "--json"]) == 2
    printed = capsys.readouterr()
    assert [answer["image"] for answer in json.loads(printed.out)] == [str(good)]
    assert "none.png': there is no such picture" in printed.err
    assert "pipe.png' is no readable picture: it is not a file" in printed.err


def finished_run(model: nn.Module, folder: Path) -> Path:
    """Make a folder as a finished run leaves it, with the weights of ``model``."""
    shipped = models.get_weights("mnist_12k", "mnist").record
    data = {**shipped.data, "classes": [str(digit) for digit in range(10)]}
    dataclasses.replace(shipped, data=data, weights_sha256=None).save(folder / "record.json")
    models.save_weights(model, folder / "weights.safetensors")
    return folder


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("missing picture", "there is no such picture"),
        ("text for a picture", "is no readable picture"),
        ("missing weights", "cannot read weights"),
        ("damaged weights", "are damaged"),
        ("other weights", "belong to another model"),
        ("weights of another run", "are not those of the record"),
        ("no run", "is not a readable run record"),
    ],
)
def test_predict_says_what_is_wrong(
    case: str, message: str, capsys: Captured, tmp_path: Path
) -> None:
    picture = draw_digit(tmp_path / "one.png", one=True)
    folder = finished_run(net_of_random_weights(), tmp_path / "run")
    weights = folder / "weights.safetensors"
    if case == "missing picture":
        picture = tmp_path / "none.png"
    elif case == "text for a picture":
        picture.write_text("a digit, they said")
    elif case == "missing weights":
        weights.unlink()
    elif case == "damaged weights":
        weights.write_bytes(weights.read_bytes()[:500])
    elif case == "other weights":
        models.save_weights(models.create_model("mnist_12k_source"), weights)
    elif case == "weights of another run":
        record = dataclasses.replace(RunRecord.load(folder), weights_sha256="0" * 64)
        record.save(folder / "record.json")
    else:
        folder = tmp_path / "elsewhere"
    assert main(["predict", str(picture), "--run", str(folder)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
