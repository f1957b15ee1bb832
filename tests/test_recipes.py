"""Recipes: what a run leaves behind, when it reads the test set, and what it never overwrites."""

import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

from constrained_cnn import ImageSet, RunRecord, TrainConfig, check, data, models, recipes
from constrained_cnn.constraints import Accuracy, Constraints, Count, Epochs, Parameters
from constrained_cnn.data import Augmentation
from constrained_cnn.errors import (
    CheckpointError,
    ConstraintError,
    InvalidInputError,
    OutputError,
)
from constrained_cnn.models import _registry
from constrained_cnn.recipes import Recipe, _recipe, _run, _seeds

EPOCHS = 3
TINY = Recipe(
    name="tiny",
    about="for tests",
    model="tiny_net",
    data="digits",
    augmentation=Augmentation(rotation=5.0),
    config=TrainConfig(epochs=EPOCHS, batch_size=50),
)
TIMES = ("seconds", "timings")
FILES = {
    "checkpoint-before.pt",
    "checkpoint.pt",
    "history.csv",
    "history.jsonl",
    "record.json",
    "weights.safetensors",
}
PICTURES = {"samples.png", "curves.png", "confusion.png", "misclassified.png"}
CURVE = "every epoch, for a curve: a best epoch chosen from it is optimistic"
LAST = "after the last epoch"


class PowerCutError(Exception):
    pass


def tiny_net() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 4, 5, stride=4), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 10)
    )


@pytest.fixture(scope="session")
def digits() -> tuple[ImageSet, ImageSet]:
    train, test = data.load_digits()
    return train.subset(range(140)), test.subset(range(60))


@pytest.fixture(autouse=True)
def small(
    digits: tuple[ImageSet, ImageSet], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A net and a set small enough for seconds, and an empty folder to stand in."""
    monkeypatch.setitem(_registry._BUILDERS, "tiny_net", tiny_net)
    monkeypatch.setattr(_recipe, "_RECIPES", dict(_recipe._RECIPES))
    recipes.register_recipe(TINY)
    monkeypatch.setattr(data, "load", lambda name, root: digits)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_run, "_draw", lambda *_: None)


def run(**options: Any) -> RunRecord:
    return recipes.run(**{"recipe": "tiny", "device": "cpu", "progress": False, **options})


def break_off(out: Path, **options: Any) -> None:
    """Leave in ``out`` what a run leaves whose power fails within its second epoch."""
    ordinary = ImageSet.training_batches

    def until_power_cut(self: ImageSet, *words: Any, **named: Any) -> Iterator[Any]:
        for step, batch in enumerate(ordinary(self, *words, **named)):
            if named["epoch"] == 2 and step == 1:
                raise PowerCutError
            yield batch

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ImageSet, "training_batches", until_power_cut)
        with pytest.raises(PowerCutError):
            run(out=out, **options)


def untimed(record: RunRecord) -> dict[str, Any]:
    return {name: value for name, value in record.result.items() if name not in TIMES}


def test_a_run_leaves_everything_and_its_figures_are_those_of_its_weights(
    digits: tuple[ImageSet, ImageSet], tmp_path: Path
) -> None:
    out = tmp_path / "run"
    record = run(seed=4, out=out)
    assert {path.name for path in out.iterdir()} == FILES | {"pictures"}
    assert {path.name for path in (out / "pictures").iterdir()} == PICTURES
    assert RunRecord.load(out).to_dict() == record.to_dict()

    model = tiny_net()
    weights = out / "weights.safetensors"
    assert record.weights_sha256 == hashlib.sha256(weights.read_bytes()).hexdigest()
    model.load_state_dict(safetensors.torch.load_file(weights))
    train, test = digits
    inputs = (test.images.float() / 255 - train.mean[0]) / train.std[0]
    outputs = model.eval()(inputs).detach()
    wrong = int((outputs.argmax(1) != test.labels).sum())
    loss = nn.functional.cross_entropy(outputs, test.labels)
    assert record.result["test_errors"] == wrong
    assert record.test_accuracy == pytest.approx(100 * (1 - wrong / 60))
    assert record.result["test_loss"] == pytest.approx(float(loss), rel=1e-4)
    assert wrong < 50  # it learned something

    assert (record.recipe, record.model, record.seed) == ("tiny", "tiny_net", 4)
    assert (record.status, record.epochs, record.rerunnable) == ("finished", EPOCHS, True)
    assert record.parameters == sum(p.numel() for p in model.parameters())
    assert TrainConfig.from_dict(record.config) == dataclasses.replace(TINY.config, seed=4)
    assert record.test_readings == [{"epoch": EPOCHS, "purpose": LAST}]
    assert record.data["train"] == {"samples": 140, "checksum": train.checksum}
    assert record.data["test"] == {"samples": 60, "checksum": test.checksum}
    assert record.data["held_out"] is None
    assert (record.data["name"], record.data["asked"]) == ("digits", "digits")
    assert record.data["augmentation"]["rotation"] == 5.0
    assert torch.__version__.startswith(record.environment["packages"]["torch"])
    lines = (out / "history.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == record.history


@pytest.mark.usefixtures("no_pictures")
def test_a_seed_fixes_the_run_whatever_the_caller_drew() -> None:
    states: list[dict[str, torch.Tensor]] = []
    results = []
    for seed in (1, 1, 2):
        torch.manual_seed(len(states))
        before = torch.get_rng_state()
        record = run(seed=seed, out=f"run-{len(states)}")
        assert torch.equal(torch.get_rng_state(), before)
        states.append(safetensors.torch.load_file(f"run-{len(states)}/weights.safetensors"))
        results.append(untimed(record))
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    assert results[0] == results[1]
    assert not torch.equal(states[0]["0.weight"], states[2]["0.weight"])


class Readings:
    """Notes which set is read by what, in order."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.notes: list[tuple[str, str]] = []
        for method in ("batches", "training_batches"):
            monkeypatch.setattr(ImageSet, method, self._noted(method))

    def _noted(self, method: str) -> Any:
        ordinary = getattr(ImageSet, method)

        def noting(images: ImageSet, batch_size: int, **named: Any) -> Any:
            if batch_size > 1:  # one image is only tried on the model, whose answer is dropped
                self.notes.append((images.checksum, method))
            return ordinary(images, batch_size, **named)

        return noting

    def times(self, images: ImageSet) -> list[int]:
        return [when for when, (sum_, _) in enumerate(self.notes) if sum_ == images.checksum]


@pytest.mark.usefixtures("no_pictures")
def test_the_test_set_is_read_only_after_the_last_epoch(
    digits: tuple[ImageSet, ImageSet], monkeypatch: pytest.MonkeyPatch
) -> None:
    readings = Readings(monkeypatch)
    run()
    train, test = digits
    learning = [when for when, (_, how) in enumerate(readings.notes) if how == "training_batches"]
    assert len(learning) == EPOCHS
    assert learning == readings.times(train)
    assert min(readings.times(test)) > max(learning)


def test_with_images_held_out_the_test_set_is_never_read(
    digits: tuple[ImageSet, ImageSet], monkeypatch: pytest.MonkeyPatch
) -> None:
    train, test = digits
    rest, held_out = train.split(30, seed=0)
    readings = Readings(monkeypatch)
    record = run(held_out=30)
    assert readings.times(test) == []
    assert len(readings.times(rest)) == EPOCHS
    assert len(readings.times(held_out)) >= EPOCHS + 1
    assert record.test_readings == []
    assert record.test_accuracy is None
    assert {"validation_accuracy", "validation_loss", "validation_errors"} < set(record.result)
    assert record.data["held_out"] == {"samples": 30, "checksum": held_out.checksum}
    assert record.data["train"]["samples"] == 110
    last = record.history[-1]
    assert last["validation_accuracy"] == record.result["validation_accuracy"]


@pytest.mark.usefixtures("no_pictures")
def test_a_test_curve_is_recorded_and_called_what_it_is() -> None:
    record = run(test_curve=True)
    curve = [{"epoch": epoch, "purpose": CURVE} for epoch in range(1, EPOCHS + 1)]
    assert record.test_readings == [*curve, {"epoch": EPOCHS, "purpose": LAST}]
    assert "validation_accuracy" not in record.history[0]
    assert record.history[-1]["test_accuracy"] == record.test_accuracy


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize("first", [True, False])
def test_a_resumed_run_owns_up_to_every_reading(first: bool, tmp_path: Path) -> None:
    break_off(tmp_path / "run", test_curve=first)
    record = run(out=tmp_path / "run", resume=True, test_curve=not first)
    read = [1] if first else [2, 3]
    curve = [{"epoch": epoch, "purpose": CURVE} for epoch in read]
    assert record.test_readings == [*curve, {"epoch": EPOCHS, "purpose": LAST}]
    with_figures = [row["epoch"] for row in record.history if row["test_loss"] is not None]
    assert with_figures == read


@pytest.mark.usefixtures("no_pictures")
def test_a_broken_run_goes_on_to_the_same_end(tmp_path: Path) -> None:
    whole = run(out=tmp_path / "whole")
    break_off(tmp_path / "broken")
    resumed = run(out=tmp_path / "broken", resume=True)
    assert untimed(resumed) == untimed(whole)
    weights = [
        (tmp_path / name / "weights.safetensors").read_bytes() for name in ("whole", "broken")
    ]
    assert weights[0] == weights[1]


@pytest.mark.usefixtures("no_pictures")
def test_resuming_with_other_images_held_out_is_refused(tmp_path: Path) -> None:
    break_off(tmp_path / "run")
    with pytest.raises(CheckpointError, match="a run with other data"):
        run(out=tmp_path / "run", resume=True, held_out=30)


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize("resume", [False, True])
def test_a_finished_run_is_never_overwritten(resume: bool, tmp_path: Path) -> None:
    out = tmp_path / "run"
    run(out=out)
    before = {path: path.read_bytes() for path in out.iterdir()}
    with pytest.raises(OutputError, match="holds a finished run"):
        run(out=out, seed=1, resume=resume)
    assert {path: path.read_bytes() for path in out.iterdir()} == before


@pytest.mark.usefixtures("no_pictures")
def test_a_damaged_record_can_be_written_again(tmp_path: Path) -> None:
    out = tmp_path / "run"
    record = run(out=out)
    (out / "record.json").write_bytes(b"")
    with pytest.raises(CheckpointError, match="remove it, and the run, resumed, writes it again"):
        run(out=out, resume=True)
    (out / "record.json").unlink()
    assert untimed(run(out=out, resume=True)) == untimed(record)


@pytest.mark.usefixtures("no_pictures")
def test_a_command_that_is_given_repeatedly_does_its_work_once(tmp_path: Path) -> None:
    out = tmp_path / "run"
    break_off(out, resume="if-begun")  # it starts a run
    record = run(out=out, resume="if-begun")  # goes on with it
    assert untimed(record) == untimed(run(out=tmp_path / "whole"))
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in out.iterdir()}
    again = run(out=out, resume="if-begun")  # and leaves it be
    assert again.to_dict() == record.to_dict()
    after = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in out.iterdir()}
    assert after == before
    # The record says enough: what goes with a run may have been removed since.
    for name in ("checkpoint.pt", "checkpoint-before.pt", "history.jsonl", "history.csv"):
        (out / name).unlink()
    assert run(out=out, resume="if-begun").to_dict() == record.to_dict()
    with pytest.raises(OutputError, match="of another kind: seed was 0 and is 1"):
        run(out=out, resume="if-begun", seed=1)
    assert not (out / "checkpoint.pt").exists()
    with pytest.raises(InvalidInputError, match="resume='perhaps': must be True, False or"):
        run(out=out, resume="perhaps")


@pytest.mark.usefixtures("no_pictures")
def test_an_unfinished_run_is_not_overwritten_by_accident(tmp_path: Path) -> None:
    out = tmp_path / "run"
    break_off(out)
    before = (out / "checkpoint.pt").read_bytes()
    with pytest.raises(OutputError, match=r"unfinished run; --resume"):
        run(out=out)
    assert (out / "checkpoint.pt").read_bytes() == before


@pytest.mark.usefixtures("no_pictures")
def test_runs_without_a_folder_are_numbered_and_the_newest_is_resumed() -> None:
    run()
    run()
    assert sorted(os.listdir("runs")) == ["tiny-seed-0", "tiny-seed-0-run-2"]
    with pytest.raises(OutputError, match="nothing to resume"):
        run(resume=True)
    break_off(recipes.run_folder(None, "tiny-seed-0", resume=False))
    run()  # a later one that is finished is not in the way
    names = ["tiny-seed-0", "tiny-seed-0-run-2", "tiny-seed-0-run-3", "tiny-seed-0-run-4"]
    assert sorted(os.listdir("runs")) == names
    run(resume=True)
    assert RunRecord.load("runs/tiny-seed-0-run-3").status == "finished"
    run(seed=7)
    assert sorted(os.listdir("runs"))[-1] == "tiny-seed-7"


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"recipe": "tiney"}, InvalidInputError, "did you mean 'tiny'?"),
        ({"seed": -1}, InvalidInputError, "seed=-1"),
        ({"epochs": 0}, InvalidInputError, "epochs=0"),
        ({"held_out": -1}, InvalidInputError, "held_out=-1"),
        ({"held_out": 10_000}, InvalidInputError, "held_out=10000"),
        ({"held_out": 30, "test_curve": True}, InvalidInputError, "never reads the test"),
        ({"device": "gpu"}, InvalidInputError, "device='gpu'"),
        ({"resume": True}, OutputError, "there is nothing to resume"),
        ({"resume": True, "out": "nowhere"}, OutputError, "there is nothing to resume"),
    ],
)
def test_a_wrong_argument_writes_nothing(
    options: dict[str, Any], error: type[Exception], message: str, tmp_path: Path
) -> None:
    with pytest.raises(error) as caught:
        run(**options)
    assert message in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_data_of_another_shape_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    colour = ImageSet.from_arrays(torch.randint(0, 256, (20, 3, 32, 32)).byte(), [0, 1] * 10)
    monkeypatch.setattr(data, "load", lambda name, root: (colour, colour))
    with pytest.raises(InvalidInputError, match=r"shape \(3, 32, 32\).*takes \(1, 28, 28\)"):
        run()
    assert list(tmp_path.iterdir()) == []


def test_an_output_folder_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match="is a file; give a folder"):
        run(out=tmp_path / "file")


@pytest.mark.usefixtures("no_pictures")
def test_seeds_go_on_where_they_stopped(tmp_path: Path) -> None:
    out = tmp_path / "seeds"
    alone = run(seed=1)
    run(seed=0, out=out / "seed-0")
    break_off(out / "seed-1", seed=1)
    kept = (out / "seed-0" / "record.json").read_bytes()
    options: dict[str, Any] = {"out": out, "device": "cpu", "progress": False}
    records = recipes.run_seeds("tiny", [0, 1, 2], resume=True, **options)
    assert [record.seed for record in records] == [0, 1, 2]
    assert all(record.status == "finished" for record in records)
    assert (out / "seed-0" / "record.json").read_bytes() == kept
    assert records[1].result["test_loss"] == alone.result["test_loss"]
    with pytest.raises(OutputError, match="finished run"):
        recipes.run_seeds("tiny", [2, 3], **options)
    assert not (out / "seed-3").exists()


@pytest.mark.usefixtures("no_pictures")
def test_a_finished_run_of_another_kind_is_not_kept(tmp_path: Path) -> None:
    options: dict[str, Any] = {"out": tmp_path, "device": "cpu", "progress": False}
    recipes.run_seeds("tiny", np.array([0, 1]), **options)  # type: ignore[arg-type]
    slower = dataclasses.replace(TINY, config=TrainConfig(epochs=EPOCHS, learning_rate=0.01))
    with pytest.raises(OutputError, match=r"learning_rate was 0\.1 and is 0\.01"):
        recipes.run_seeds(slower, [0, 1], resume=True, **options)
    for other in ({"augmentation": Augmentation(rotation=9.0)}, {"model": "mnist_12k"}):
        with pytest.raises(OutputError, match=f"{next(iter(other))} was"):
            recipes.run_seeds(dataclasses.replace(TINY, **other), [0], resume=True, **options)
    record = RunRecord.load(tmp_path / "seed-0")
    data = {**record.data, "train": {**record.data["train"], "checksum": "0" * 64}}
    dataclasses.replace(record, data=data).save(tmp_path / "seed-0" / "record.json")
    with pytest.raises(OutputError, match=r"train was .*checksum"):
        recipes.run_seeds("tiny", [0, 1], resume=True, **options)
    record.save(tmp_path / "seed-0" / "record.json")
    shutil.copytree(tmp_path / "seed-1", tmp_path / "seed-7")
    with pytest.raises(OutputError, match="seed was 1 and is 7"):
        recipes.run_seeds("tiny", [0, 7], resume=True, **options)


def test_weights_of_no_run_are_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "weights.safetensors").write_text("precious")
    with pytest.raises(OutputError, match="would be overwritten"):
        run(out=tmp_path)
    assert (tmp_path / "weights.safetensors").read_text() == "precious"


def test_seeds_stop_with_the_first_interrupted_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def interrupted(recipe: Recipe, seed: int, **_: Any) -> RunRecord:
        asked.append(seed)
        status = "interrupted" if seed == 1 else "finished"
        plain: dict[str, Any] = {"parameters": 1, "epochs": 1, "config": {}, "data": {}}
        return RunRecord(recipe="tiny", model="tiny", seed=seed, status=status, **plain)

    monkeypatch.setattr(_seeds, "run", interrupted)
    records = recipes.run_seeds("tiny", range(4), out=tmp_path / "seeds")
    assert asked == [0, 1]
    assert [record.status for record in records] == ["finished", "interrupted"]


@pytest.mark.parametrize("seeds", [[], [1, 1]])
def test_seeds_it_cannot_take(seeds: list[int], tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="at least one, each once"):
        recipes.run_seeds("tiny", seeds)
    assert list(tmp_path.iterdir()) == []


def test_folders_of_seeds_are_numbered(tmp_path: Path) -> None:
    def asked(*, resume: bool) -> str:
        return recipes.seeds_folder(None, "tiny", [0, 1, 2], resume=resume).as_posix()

    assert asked(resume=False) == "runs/tiny-seeds-0-to-2"
    with pytest.raises(OutputError, match="nothing to resume"):
        asked(resume=True)
    os.makedirs("runs/tiny-seeds-0-to-2")
    assert asked(resume=False) == "runs/tiny-seeds-0-to-2-run-2"
    assert asked(resume=True) == "runs/tiny-seeds-0-to-2"
    assert recipes.seeds_folder("mine", "tiny", [0], resume=False) == Path("mine")


def test_recipes_have_one_name_each() -> None:
    assert recipes.register_recipe(TINY) is TINY  # again, unchanged
    with pytest.raises(InvalidInputError, match="another recipe has this name"):
        recipes.register_recipe(dataclasses.replace(TINY, about="another"))
    assert recipes.get_recipe("tiny") is TINY
    assert recipes.list_recipes() == sorted(recipes.list_recipes())
    assert {"mnist-12k", "mnist-12k-bfloat16", "mnist-12k-source", "tiny"} <= set(
        recipes.list_recipes()
    )


def test_seeds_of_another_experiment_are_not_mixed_in(tmp_path: Path) -> None:
    options: dict[str, Any] = {"data_name": "digits", "out": tmp_path, "progress": False}
    recipes.run_seeds("mnist-12k", [0], epochs=1, **options)
    with pytest.raises(OutputError, match="a finished run of another kind"):
        recipes.run_seeds("mnist-12k", [0, 1], epochs=2, resume=True, **options)
    with pytest.raises(OutputError, match="a finished run of another kind"):
        recipes.run_seeds("mnist-12k-source", [0, 1], epochs=1, resume=True, **options)
    with pytest.raises(OutputError, match="never overwritten"):
        recipes.run_seeds("mnist-12k", [1, 0], epochs=1, **options)
    assert not (tmp_path / "seed-1").exists()


RULES = Constraints(
    [
        Parameters(name="budget", at_most=1_000),
        Count("dropout", name="dropout", at_least=1),
        Epochs(name="epochs", exactly=EPOCHS),
        Accuracy(name="accuracy", at_least=99.4, data="mnist"),
    ],
    name="for tests",
)


def test_a_network_that_breaks_a_rule_is_not_trained(tmp_path: Path) -> None:
    recipe = dataclasses.replace(TINY, constraints=RULES)
    with pytest.raises(ConstraintError, match="before the first step") as raised:
        run(recipe=recipe, out=tmp_path / "run")
    message = str(raised.value)
    assert "budget: parameters, required at most 1,000, measured 1,562 (562 over)" in message
    assert "heaviest: 3: linear 1,450" in message
    assert "dropout, required at least 1, measured 0 (1 under)" in message
    assert raised.value.report.ok is False
    assert not (tmp_path / "run").exists()


@pytest.mark.usefixtures("no_pictures")
def test_what_a_recipe_is_known_to_break_is_in_its_record(tmp_path: Path) -> None:
    recipe = dataclasses.replace(TINY, constraints=RULES, departures=("budget", "dropout"))
    record = run(recipe=recipe, out=tmp_path / "run")
    report = record.report
    assert report is not None
    verdicts = {found["rule"]["name"]: found["verdict"] for found in report["findings"]}
    assert verdicts == {
        "budget": "fail",
        "dropout": "fail",
        "epochs": "pass",
        "accuracy": "cannot tell",  # on digits, not on MNIST
    }
    assert (report["ok"], report["model"]) == (False, "tiny_net")
    assert RunRecord.load(tmp_path / "run").report == report
    one = dataclasses.replace(recipe, departures=("budget",))
    with pytest.raises(ConstraintError, match="dropout"):
        run(recipe=one)
    wrong = dataclasses.replace(recipe, departures=("bugdet",))
    with pytest.raises(InvalidInputError, match="name='bugdet': no rule has it"):
        run(recipe=wrong)


@pytest.mark.usefixtures("no_pictures")
def test_a_recipe_without_rules_has_no_report(tmp_path: Path) -> None:
    assert run(out=tmp_path / "run").report is None
    with pytest.raises(InvalidInputError, match="did you mean 'mnist-12k'"):
        run(recipe=dataclasses.replace(TINY, constraints="mnist12k"))


def test_the_recipes_of_the_package_name_what_they_depart_from() -> None:
    for name in ("mnist-12k", "mnist-12k-bfloat16", "mnist-12k-source"):
        recipe = recipes.get_recipe(name)
        report = check(models.create_model(recipe.model), recipe.input_shape, recipe.constraints)
        assert {found.rule.name for found in report.failed} == set(recipe.departures)
