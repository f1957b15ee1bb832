import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from benchmarks import (
    accuracy_table,
    cost_and_field,
    layout_error,
    rules_and_widths,
    source_way,
    step_time,
)
from constrained_cnn import data, models
from constrained_cnn.data import Augmentation, ImageSet
from constrained_cnn.errors import DataError
from constrained_cnn.training import TrainConfig

CPU = torch.device("cpu")


def fake_images(count: int, channels: int = 1) -> ImageSet:
    pixels = torch.randint(0, 256, (count, channels, 28, 28), dtype=torch.uint8)
    return ImageSet.from_arrays(pixels, torch.arange(count) % 10)


def flat(model: nn.Module) -> Tensor:
    """Return all weights in one row, whatever their layout in memory."""
    return torch.cat([weights.detach().reshape(-1) for weights in model.parameters()])


def weights_after(way: step_time.Way, name: str, images: ImageSet) -> Tensor:
    """Return all weights of a network without dropout after three steps on the whole set."""
    # In one layout: on a CPU torch sums batch statistics less exactly with the channels innermost.
    config = TrainConfig(epochs=3, batch_size=len(images), learning_rate=0.02, channels_last=False)
    torch.manual_seed(1)
    model = models.create_model(name)
    for part in model.modules():
        if isinstance(part, nn.Dropout | nn.Dropout2d):
            part.p = 0.0
    assert len(way(model, images, config, CPU)) == 3
    return flat(model)


@pytest.mark.parametrize("model", models.list_models())
def test_every_way_moves_the_weights_alike(model: str) -> None:
    # One batch is the whole set, so that the order, which each way draws for itself, is no matter.
    images = fake_images(30)
    torch.manual_seed(1)
    before = flat(models.create_model(model))
    after = {name: weights_after(way, model, images) for name, way in step_time.WAYS.items()}
    moved = (after["Trainer"] - before).norm()
    assert moved > 0.01
    for name, weights in after.items():
        assert (weights - after["Trainer"]).norm() < 1e-3 * moved, name


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
    images = step_time.load_images(None, len(digits) + 3)
    assert images.name == "digits"
    assert torch.equal(images.images[-3:], digits.images[:3])


def test_the_table_is_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # Two steps, the second a short one to save time.
    monkeypatch.setattr(step_time, "load_images", lambda root, count: fake_images(132))
    out = tmp_path / "step_time.json"
    words = ["--device", "cpu", "--steps", "2", "--repeats", "2", "--out", str(out)]
    assert step_time.main(words) == 0
    shown = capsys.readouterr()
    assert "Not measured on CUDA" in shown.out
    assert "No MNIST" in shown.out
    assert shown.err == ""
    content = json.loads(out.read_text())
    assert content["command"].startswith("python -m benchmarks.step_time --device cpu")
    assert (content["steps"], content["repeats"], content["batch_size"]) == (2, 2, 128)
    for model in models.list_models():
        assert model in shown.out
        rows = [row for row in content["timings"] if row["model"] == model]
        assert [row["way"] for row in rows] == list(step_time.WAYS)
        for row in rows:
            low, high = sorted(row["milliseconds"])
            assert 0 < low <= row["median"] <= high
    assert all(row["ratio"] == 1 for row in content["timings"] if row["way"] == "Trainer")


def test_a_wrong_option_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert step_time.main(["--steps", "0"]) == 2
    assert "steps=0: must be an integer of at least 1" in capsys.readouterr().err


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


def test_a_gradient_in_torchs_own_layout_is_exact_to_rounding() -> None:
    torch.manual_seed(0)
    model = models.create_model("mnist_12k")
    assert layout_error.relative_error(model, torch.contiguous_format, seed=0) < 1e-3


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
