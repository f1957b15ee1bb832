import copy
import importlib.util
import itertools
import json
import re
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor, nn

import benchmarks
from benchmarks import (
    accuracy_table,
    compare_arms,
    cost_and_field,
    layout_error,
    rules_and_widths,
    source_way,
)
from benchmarks.trainers import __main__ as command
from benchmarks.trainers import _plain, _report, _task
from benchmarks.trainers._task import Clock, Task
from benchmarks.trainers._ways import WAYS, Way, lineup
from benchmarks.trainers._worker import Job, in_a_process, train_once
from constrained_cnn import data, models
from constrained_cnn.blocks import MaxPool2d
from constrained_cnn.data import Augmentation, ImageSet
from constrained_cnn.errors import DataError
from constrained_cnn.record import RunRecord
from constrained_cnn.training import TrainConfig

CPU = torch.device("cpu")


def fake_images(count: int, channels: int = 1) -> ImageSet:
    pixels = torch.randint(0, 256, (count, channels, 28, 28), dtype=torch.uint8)
    return ImageSet.from_arrays(pixels, torch.arange(count) % 10)


def flat(model: nn.Module) -> Tensor:
    """Return all weights in one row, whatever their layout in memory."""
    return torch.cat([weights.detach().reshape(-1) for weights in model.parameters()])


def weights_after(way: str, model: str, images: ImageSet) -> Tensor:
    """Return all weights of a network after three steps on the whole set.

    It has no dropout, and nothing that rounding may tip over, as a ReLU or a maximum: ways that
    round differently would move apart in a step.
    """
    config = TrainConfig(epochs=3, batch_size=len(images), learning_rate=0.02)
    torch.manual_seed(1)
    network = models.create_model(model)
    for name, part in list(network.named_modules()):
        if isinstance(part, nn.Dropout | nn.Dropout2d):
            part.p = 0.0
        elif isinstance(part, nn.ReLU):
            network.set_submodule(name, nn.Softplus())
        elif isinstance(part, nn.MaxPool2d):
            network.set_submodule(name, nn.AvgPool2d(2))
    clock = Clock(CPU)
    assert WAYS[way].load()(Task("plain", network, images, config, CPU), clock) == 3
    assert len(clock.epochs()) == 3
    return flat(network)


@pytest.mark.parametrize("model", models.list_models())
def test_every_way_moves_the_weights_alike(model: str) -> None:
    # One batch is the whole set, so that the order, which each way draws for itself, is no matter.
    images = fake_images(30)
    torch.manual_seed(1)
    before = flat(models.create_model(model))
    raw = weights_after("raw", model, images)
    moved = (raw - before).norm()
    assert moved > 0.01
    for way in ("source", "eager"):
        assert (weights_after(way, model, images) - raw).norm() < 1e-4 * moved, way


def test_the_raw_loop_rotates_each_image_about_its_middle(monkeypatch: pytest.MonkeyPatch) -> None:
    images = fake_images(3).augmented(rotation=90, interpolation="nearest")
    task = Task("rotated", nn.Identity(), images, TrainConfig(), CPU)
    inputs = images.normalised(images.images)
    drawn = torch.tensor([0.0, 0.5, 1.0])  # of -90 to 90 degrees
    monkeypatch.setattr(torch, "rand", lambda *_, **__: drawn)
    for image, rotated, turns in zip(inputs, _plain.rotate(inputs, task), (-1, 0, 1), strict=True):
        torch.testing.assert_close(rotated, torch.rot90(image, turns, (1, 2)))


def test_pictures_are_the_normalised_images() -> None:
    images = fake_images(4)
    pictures = source_way.Pictures(images)
    inputs = torch.stack([pictures[index][0] for index in range(4)])
    torch.testing.assert_close(inputs, images.normalised(images.images))
    assert [pictures[index][1] for index in range(4)] == images.labels.tolist()


@pytest.mark.parametrize("fill", [0.0, 200.0])
def test_pictures_are_rotated_and_filled(fill: float) -> None:
    # Nothing but fill can come into a uniform picture, and only from its corners.
    uniform = ImageSet(
        torch.full((1, 1, 28, 28), 100, dtype=torch.uint8),
        torch.zeros(1, dtype=torch.int64),
        (0.0,),
        (1.0,),
        ("only",),
        "uniform",
    )
    how = Augmentation(rotation=45, interpolation="nearest", fill=fill)
    pictures = source_way.Pictures(uniform.augmented(how))
    values = torch.stack([pictures[0][0] for _ in range(5)]) * 255
    assert set(values.round().unique().tolist()) == {fill, 100.0}
    assert (values[:, 0, 10:18, 10:18].round() == 100).all()


def test_pictures_refuse_colour() -> None:
    with pytest.raises(DataError, match="must have one channel"):
        source_way.Pictures(fake_images(2, channels=3))


def test_images_are_digits_repeated_where_there_is_no_mnist(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CONSTRAINED_CNN_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    digits, _ = data.load_digits()
    images = _task.load_images(None, len(digits) + 3)
    assert images.name == "digits"
    assert torch.equal(images.images[-3:], digits.images[:3])


def job(way: str, kind: str = "linear", **changes: Any) -> Job:
    return Job(
        **{"recipe": "mnist-12k", "device": "cpu", "epochs": 3, "steps": 20, **changes},
        way=way,
        kind=kind,
    )


@pytest.mark.parametrize("kind", ["linear", "linear-resident"])
@pytest.mark.parametrize("way", ["raw", "eager"])
def test_a_way_is_timed_and_learns(way: str, kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    result = train_once(job(way, kind))
    assert len(result["seconds"]) == 2  # the first epoch is not timed
    assert result["steps"] == 60
    assert 40 * min(result["seconds"]) < result["total"]  # of two epochs of 20 steps each
    assert result["loss"][1] < 0.5 * result["loss"][0]
    assert capsys.readouterr() == ("", "")  # what it showed went to a terminal nobody sees


def test_the_network_is_trained_on_rotated_images(monkeypatch: pytest.MonkeyPatch) -> None:
    rotated = []

    def rotate(inputs: Tensor, task: Task) -> Tensor:
        rotated.append(len(inputs))
        return inputs

    monkeypatch.setattr(_task, "load_images", lambda root, count: fake_images(count))
    monkeypatch.setattr(_plain, "rotate", rotate)
    train_once(job("raw", "rotated", epochs=2, steps=2))
    assert rotated == 4 * [128]


def test_a_process_of_its_own_gives_the_same() -> None:
    result = in_a_process(job("raw"))
    assert result["steps"] == 60
    assert result["loss"] == pytest.approx(train_once(job("raw"))["loss"], rel=1e-3)


def test_a_process_that_fails_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    failing = tmp_path / "python"
    failing.write_text("#!/bin/sh\necho Traceback >&2\necho Oops: why >&2\nexit 1\n")
    failing.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(failing))
    assert in_a_process(job("raw")) == {"failed": "Oops: why"}
    assert "Traceback" in capsys.readouterr().err


def lazy(task: Task, clock: Clock) -> int:
    """Train for an epoch less than asked."""
    config = replace(task.config, epochs=task.config.epochs - 1)
    _plain.raw(replace(task, config=config), clock)
    clock.tick()
    return task.steps


def boastful(task: Task, clock: Clock) -> int:
    """Take one step more than asked."""
    return _plain.raw(task, clock) + 1


def idle(task: Task, clock: Clock) -> int:
    """Train nothing."""
    for _ in range(task.config.epochs):
        clock.tick()
    return task.steps


@pytest.mark.parametrize(
    ("train", "kind", "why"),
    [
        (lazy, "linear", "off the weights of the raw loop"),
        (lazy, "plain", "took 2 steps, and 4 were asked for"),  # which the batch norms know
        (boastful, "linear", "took 61 steps, and 60 were asked for"),
        (idle, "linear", "learned nothing"),
    ],
)
def test_a_way_that_does_not_do_its_work_is_found_out(
    train: Callable[[Task, Clock], int], kind: str, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Way, "load", lambda self: train)
    monkeypatch.setattr(_task, "load_images", lambda root, count: fake_images(count))
    short = {"epochs": 2, "steps": 2} if kind == "plain" else {}
    with pytest.raises(RuntimeError, match=why):
        train_once(job("eager", kind, **short))


def test_a_clock_that_is_told_of_epochs_puts_the_rest_into_the_first() -> None:
    clock = Clock(CPU)
    time.sleep(0.05)
    clock.note([0.001, 0.002, 0.003])
    first, *others = clock.epochs()
    assert others == pytest.approx([0.002, 0.003])
    assert first + 0.005 >= 0.05


def figures(**changes: Any) -> dict[str, Any]:
    """Return made-up figures of three repeats; the machine is slower from one to the next."""
    seconds = {
        ("plain", "raw"): [0.010, 0.020, 0.040],
        ("plain", "eager"): [0.011, 0.020, 0.044],
        ("plain", "ignite"): [0.022, 0.050, 0.088],
        ("linear", "raw"): [100e-6, 200e-6, 400e-6],
        ("linear", "eager"): [110e-6, 205e-6, 420e-6],
    }
    runs = [
        {
            "kind": kind,
            "way": way,
            "repeat": repeat,
            "seconds": [time, 9 * time, time],  # one epoch was disturbed
            "start_up": 2.0,
            "total": 500.0,
        }
        for (kind, way), times in seconds.items()
        for repeat, time in enumerate(times)
    ]
    return {
        "command": "python -m benchmarks.trainers",
        "environment": {
            "device": "cpu",
            "processor": "a processor",
            "cores": 2,
            "python": "3.11.0",
            "packages": {"torch": "2.6.0"},
        },
        "rivals": {"pytorch-ignite": "0.5.5", "keras": None},
        "data": "mnist",
        "model": "mnist_12k",
        "batch_size": 128,
        "steps": 60,
        "linear_steps": 500,
        "repeats": 3,
        "threads": 2,
        "full": False,
        "lineup": [*seconds, ("plain", "keras"), ("linear", "keras")],
        "runs": runs,
        **changes,
    }


def test_rows_compare_within_a_repeat() -> None:
    rows = {(row.kind, row.way): row for row in _report.rows_of(figures())}
    ignite = rows["plain", "ignite"]
    assert ignite.seconds == (0.022, 0.050, 0.088)
    assert ignite.over_raw == pytest.approx(0.030)  # 0.012, 0.030, 0.048
    assert ignite.ratio == pytest.approx(2.0)  # 2, 2.5, 2
    assert ignite.whole == pytest.approx(2 + 19 * 469 * 0.050)
    assert rows["linear", "eager"].over_raw == pytest.approx(10e-6)
    assert (rows["plain", "raw"].over_raw, rows["plain", "eager"].ratio) == (0.0, 1.0)
    measured = {(row.kind, row.way): row for row in _report.rows_of(figures(full=True))}
    assert measured["plain", "ignite"].whole == 500.0


def test_tables_say_what_is_missing_and_what_failed() -> None:
    content = figures()
    content["runs"][-1] = {"kind": "linear", "way": "eager", "repeat": 2, "failed": "Oops: why"}
    network, linear = _report.tables(content)
    assert network.rows[2][2:] == ("50.00", "22.00 to 88.00", "+30,000", "448", "2.00")
    assert network.rows[3] == ("Keras on torch", "plain", "not installed", "-", "-", "-", "-")
    assert linear.rows[0][2:] == ("200.0", "100.0 to 400.0", "0", "-")  # no Trainer to compare with
    assert linear.rows[1][2] == "failed"
    assert _report.failures(content) == ["linear, Trainer, eager: Oops: why"]


def test_figures_are_published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "DOCS", tmp_path)
    (tmp_path / "speed.md").write_text("<!-- table: some -->\n<!-- end -->\n")
    file = tmp_path / "some.json"
    file.write_text(json.dumps(figures()))
    assert command.main(["--publish", str(file)]) == 0
    assert "ignite" in (tmp_path / "speed.md").read_text()
    assert (tmp_path / "images" / "some.png").stat().st_size > 10_000


def test_the_page_is_filled_between_its_comments(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "a\n<!-- table: one -->\nold\n<!-- end -->\nb\n<!-- table: two -->\n<!-- end -->"
    )
    text = _report.markdown(figures(), "one")
    _report.fill_page(page, "one", text)
    said = page.read_text()
    assert said.startswith("a\n<!-- table: one -->\n`mnist_12k`, batches of 128:\n\n| way |")
    assert "pytorch-ignite 0.5.5" in said
    assert "old" not in said
    _report.fill_page(page, "one", text)
    assert page.read_text() == said
    with pytest.raises(ValueError, match="has no <!-- table: three -->"):
        _report.fill_page(page, "three", text)


def test_the_picture_has_a_bar_for_each_way_that_ran() -> None:
    left, right = _report.figure(figures()).axes
    assert [label.get_text() for label in left.get_yticklabels()] == [
        "raw PyTorch loop (plain)",
        "Trainer, eager (plain)",
        "ignite (plain)",
    ]
    assert [text.get_text() for text in left.texts] == ["20.0", "20.0", "50.0"]
    assert [text.get_text() for text in right.texts] == ["+10"]


def test_each_way_has_its_file_and_its_line_in_the_requirements() -> None:
    wanted = (Path(benchmarks.__file__).parent / "requirements-rivals.txt").read_text()
    for way in WAYS.values():
        assert importlib.util.find_spec(f"benchmarks.trainers.{way.place.partition(':')[0]}")
        assert f"\n{way.package}==" in wanted or not way.package
    assert "graph" not in lineup("plain", "cpu")
    assert lineup("linear-resident", "cuda") == ["raw", "eager", "graph"]


def test_ways_take_turns_and_every_figure_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    turns = []

    def done(job: Job) -> dict[str, Any]:
        turns.append(job.way)
        return {"seconds": [0.01 if job.way == "raw" else 0.02], "start_up": 1.0, "total": 3.0}

    monkeypatch.setattr(command, "in_a_process", done)
    monkeypatch.setitem(WAYS, "keras", replace(WAYS["keras"], module="a_module_that_is_not_there"))
    out = tmp_path / "trainers.json"
    words = ["--device", "cpu", "--repeats", "2", "--kinds", "plain", "--out", str(out)]
    assert command.main([*words, "--ways", "keras,raw,eager"]) == 0
    assert turns == ["raw", "eager", "raw", "eager"]
    shown = capsys.readouterr()
    assert "[4/4] plain, Trainer, eager: 20,000 µs a step" in shown.err
    assert re.search("Keras on torch +plain +not installed", shown.out)
    content = json.loads(out.read_text())
    assert content["command"].startswith("python -m benchmarks.trainers --device cpu")
    assert content["environment"]["packages"]["torch"] == torch.__version__
    assert _report.rows_of(content)[1].ratio == 1.0
    monkeypatch.setattr(command, "in_a_process", lambda job: {"failed": "Oops: why"})
    assert command.main(["--quick", "--device", "cpu", "--ways", "raw"]) == 1
    assert "failed: linear, raw PyTorch loop: Oops: why" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["--steps", "0"], "steps=0: must be an integer of at least 1"),
        (["--ways", "kera"], "did you mean 'keras'"),
        (["--publish", "no-such-file.json"], "No such file"),
    ],
)
def test_a_wrong_option_is_an_error(
    words: list[str], why: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.main(words) == 2
    assert why in capsys.readouterr().err


def test_the_page_says_what_the_figures_say() -> None:
    root = Path(benchmarks.__file__).parents[1]
    page = (root / "docs" / "speed.md").read_text("utf-8")
    for file in (root / "benchmarks" / "results").glob("trainers-*.json"):
        said = _report.markdown(json.loads(file.read_text("utf-8")), file.stem)
        assert said in page


@pytest.mark.parametrize("page", ["README.md", "docs/reference-network.md"])
def test_the_pages_say_what_the_records_say(page: str) -> None:
    root = Path(__file__).resolve().parents[1]
    assert accuracy_table.table(accuracy_table.load_records()) in (root / page).read_text("utf-8")


def test_the_reported_runs_followed_the_protocol() -> None:
    """Each read the test set once, at the end, of 19 epochs on all of MNIST."""
    runs = accuracy_table.load_records()
    assert len(runs["mnist-12k"]) >= 3
    assert len(runs["mnist-12k-source"]) >= 1
    for records in runs.values():
        assert len({record.environment["commit"] for record in records}) == 1
        for record in records:
            assert record.status == "finished"
            assert record.epochs == len(record.history) == 19
            assert [reading["epoch"] for reading in record.test_readings] == [19]
            assert (record.data["name"], record.data["train"]["samples"]) == ("mnist", 60_000)
            assert (
                record.data["train"]["checksum"] == runs["mnist-12k"][0].data["train"]["checksum"]
            )
            errors = record.result["test_errors"]
            assert record.result["test_accuracy"] == pytest.approx(100 - errors / 100)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", models.list_models())
def test_a_gradient_in_torchs_own_layout_is_exact_to_rounding(name: str, seed: int) -> None:
    torch.manual_seed(seed)
    net, layout = models.create_model(name), torch.contiguous_format
    assert layout_error.relative_error(net, layout, seed=seed, held=True) < 1e-4


@pytest.mark.parametrize("size", [6, 7])
def test_what_is_held_decides_as_the_first_did(size: int) -> None:
    plain = nn.Sequential(nn.Conv2d(2, 3, 1), nn.ReLU(), MaxPool2d(2), nn.Conv2d(3, 2, 1)).double()
    decided: dict[str, Tensor] = {}
    first, second = (layout_error.hold(copy.deepcopy(plain), decided) for _ in range(2))
    inputs = torch.randn(2, 2, size, size, dtype=torch.float64)
    torch.testing.assert_close(first(inputs), plain(inputs))
    assert decided.keys() == {"1", "2"}
    # Whatever it is given, the second is now one linear map, which a ReLU of its own would not be.
    zero = second(torch.zeros_like(inputs))
    torch.testing.assert_close(second(-inputs) - zero, zero - second(inputs))
    values = inputs.contiguous(memory_format=torch.channels_last)
    for part in second.children():
        values = part(values)
        assert values.is_contiguous(memory_format=torch.channels_last)


def test_tools_are_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "figures.json"
    options = ["--models", "mnist_12k", "--repeats", "1", "--chains", "3", "--out", str(out)]
    cost_and_field.main(options)
    content = json.loads(out.read_text())
    answers = {row["tool"]: row["answer"] for row in content["timed"]}
    assert answers["constrained_cnn"] == [12_000, 3_774_276, 22]
    assert answers["FlopCounterMode"][1] == 3_774_276
    exact = {row["network"]: row["answer"] for row in content["cases"] if row["tool"] == "fvcore"}
    assert set(exact) == set(cost_and_field.CASES)
    assert content["chains"][0]["layers"] == 3
    assert "constrained_cnn" in capsys.readouterr().out


def test_rules_are_timed_and_kept(tmp_path: Path) -> None:
    out = tmp_path / "times.json"
    chosen = ["trace", "check, 22 rules"]
    rules_and_widths.main(["--repeats", "2", "--out", str(out), "--only", *chosen])
    content = json.loads(out.read_text())
    assert {name: len(every) for name, every in content["seconds"].items()} == dict.fromkeys(
        chosen, 2
    )
    assert content["environment"]["packages"]["torch"] == torch.__version__


def test_two_arms_are_compared_as_a_textbook_does(tmp_path: Path) -> None:
    first, second = [99.40, 99.50, 99.45], [99.50, 99.60, 99.58, 99.52]
    found = compare_arms.compare(first, second)
    means, variances = [np.mean(first), np.mean(second)], [np.var(first, ddof=1) / 3]
    variances.append(np.var(second, ddof=1) / 4)
    error = np.sqrt(sum(variances))
    freedom = sum(variances) ** 2 / (variances[0] ** 2 / 2 + variances[1] ** 2 / 3)
    half = stats.t.ppf(0.975, freedom) * error
    assert found["difference"] == pytest.approx(means[1] - means[0])
    assert found["interval"] == pytest.approx(
        [means[1] - means[0] - half, means[1] - means[0] + half]
    )
    # Of all ways to take 3 of 7, those that differ at least as much; scipy doubles the lesser side.
    every = np.array(first + second)
    splits = [np.array(chosen) for chosen in itertools.combinations(range(7), 3)]
    gaps = [np.delete(every, chosen).mean() - every[chosen].mean() for chosen in splits]
    above = np.mean([gap >= found["difference"] - 1e-9 for gap in gaps])
    assert found["permutation_p"] == pytest.approx(min(1.0, 2 * above))


def test_an_arm_with_an_unfinished_seed_is_no_arm(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain: dict[str, Any] = {"parameters": 1, "epochs": 1, "config": {}, "data": {}}
    for arm, status in (("whole", "finished"), ("broken", "interrupted")):
        for seed in (0, 1):
            record = RunRecord(
                recipe="r",
                model="m",
                seed=seed,
                status=status if seed else "finished",
                result={"test_accuracy": 99.0 + seed / 10},
                **plain,
            )
            record.save(tmp_path / arm / f"seed-{seed}" / "record.json")
    words = [str(tmp_path / "whole"), str(tmp_path / "whole"), "--out", str(tmp_path / "out.json")]
    assert compare_arms.main(words) == 0
    assert json.loads((tmp_path / "out.json").read_text())["difference"] == 0.0
    assert "difference +0.000" in capsys.readouterr().out
    assert compare_arms.main([str(tmp_path / "whole"), str(tmp_path / "broken")]) == 2
    assert "seeds [1] are not finished" in capsys.readouterr().err
