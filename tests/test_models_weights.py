"""Weights in files: bit for bit the same, or refused with the reason and nothing changed."""

import copy
import dataclasses
import hashlib
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from constrained_cnn import models
from constrained_cnn.errors import CheckpointError, InvalidInputError
from constrained_cnn.models import Weights, _weights, load_weights, save_weights

NETWORKS = [models.mnist_12k, models.mnist_12k_source]


def same_weights(one: nn.Module, other: nn.Module) -> bool:
    """Whether names, types and bits agree, buffers included."""
    first, second = one.state_dict(), other.state_dict()
    return list(first) == list(second) and all(
        part.dtype == second[name].dtype and torch.equal(part, second[name])
        for name, part in first.items()
    )


def used(model: nn.Module) -> nn.Module:
    """Move batch norm's statistics and counters away from where they start."""
    model.train()(torch.randn(4, 1, 28, 28))
    return model


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("network", NETWORKS)
def test_weights_come_back_bit_for_bit(
    network: Any, layout: torch.memory_format, training: bool, tmp_path: Path
) -> None:
    model = used(network()).to(memory_format=layout).train(training)
    before = copy.deepcopy(model)
    path = tmp_path / "weights.safetensors"
    assert models.save_weights(model, path) == path
    assert same_weights(model, before)
    assert model.training is training
    for target in (network(), network().to(memory_format=torch.channels_last)):
        models.load_weights(target, str(path))
        assert same_weights(model, target)
        images = torch.randn(2, 1, 28, 28)
        torch.testing.assert_close(model.eval()(images), target.eval()(images))


def test_tied_weights_come_back(tmp_path: Path) -> None:
    linear = nn.Linear(3, 3)
    model = nn.Sequential(linear, linear)
    target = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    models.load_weights(target, models.save_weights(model, tmp_path / "weights.safetensors"))
    assert same_weights(model, target)


@pytest.mark.parametrize(
    ("widths", "difference"),
    [
        ((4, 4, 3), "'1.weight' is (2, 4) in the file and (3, 4) in the model"),
        ((4, 4, 2, 2), "'2.weight' is missing in the file and (2, 2) in the model"),
        ((4, 4), "'1.bias' is (2,) in the file and missing in the model"),
    ],
)
def test_another_model_is_refused_and_left_as_it_was(
    widths: tuple[int, ...], difference: str, tmp_path: Path
) -> None:
    def network(*widths: int) -> nn.Module:
        return nn.Sequential(*(nn.Linear(*pair) for pair in itertools.pairwise(widths)))

    path = models.save_weights(network(4, 4, 2), tmp_path / "weights.safetensors")
    target = network(*widths)
    before = copy.deepcopy(target)
    with pytest.raises(CheckpointError) as caught:
        models.load_weights(target, path)
    assert str(caught.value) == f"weights {str(path)!r} belong to another model: {difference}"
    # The first layer fits; torch alone would have filled it before it refused the second.
    assert same_weights(target, before)


@given(part=st.floats(0, 1, exclude_max=True))
def test_a_truncated_file_is_refused(part: float, tmp_path_factory: pytest.TempPathFactory) -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
    before = copy.deepcopy(model)
    path = models.save_weights(model, tmp_path_factory.mktemp("weights") / "w.safetensors")
    content = path.read_bytes()
    path.write_bytes(content[: int(part * len(content))])
    with pytest.raises(CheckpointError, match="are damaged"):
        models.load_weights(model, path)
    assert same_weights(model, before)


def test_a_pickle_is_refused(tmp_path: Path) -> None:
    model = models.mnist_12k()
    path = tmp_path / "weights.pt"
    torch.save(model.state_dict(), path)
    with pytest.raises(CheckpointError, match="are damaged"):
        models.load_weights(model, path)


@pytest.mark.parametrize(
    ("weight", "message"),
    [
        (torch.full((2, 3), torch.nan), "'weight' holds NaN or infinity"),
        (torch.ones(2, 3, dtype=torch.int64), "'weight' is of type torch.int64"),
    ],
)
def test_weights_no_training_gives_are_refused(
    weight: torch.Tensor, message: str, tmp_path: Path
) -> None:
    file = tmp_path / "weights.safetensors"
    safetensors.torch.save_file({"weight": weight, "bias": torch.zeros(2)}, file)
    model = nn.Linear(3, 2)
    before = model.weight.detach().clone()
    with pytest.raises(CheckpointError, match=message):
        load_weights(model, file)
    assert torch.equal(model.weight, before)


def test_half_precision_weights_are_widened(tmp_path: Path) -> None:
    half = nn.Linear(3, 2).half()
    save_weights(half, tmp_path / "weights.safetensors")
    model = nn.Linear(3, 2)
    load_weights(model, tmp_path / "weights.safetensors")
    assert torch.equal(model.weight, half.weight.float())


def test_weights_must_have_the_checksum_asked_for(tmp_path: Path) -> None:
    file = save_weights(nn.Linear(3, 2), tmp_path / "weights.safetensors")
    model = nn.Linear(3, 2)
    with pytest.raises(CheckpointError, match="not those of the record"):
        load_weights(model, file, sha256="0" * 64)
    load_weights(model, file, sha256=hashlib.sha256(file.read_bytes()).hexdigest())


def test_a_missing_file_is_refused_by_path(tmp_path: Path) -> None:
    for path in (tmp_path / "none.safetensors", tmp_path):
        with pytest.raises(CheckpointError) as caught:
            models.load_weights(models.mnist_12k(), path)
        assert str(caught.value).startswith(f"cannot read weights {str(path)!r}: ")


@pytest.fixture
def packed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Weights, nn.Module, Path]:
    """Weights as the package ships them, their network and their file, below ``tmp_path``."""
    model = used(models.mnist_12k())
    path = models.save_weights(model, tmp_path / "packed.safetensors")
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    weights = dataclasses.replace(models.get_weights("mnist_12k", "mnist"), sha256=sha256)
    monkeypatch.setattr(_weights, "_SHIPPED", (weights,))
    monkeypatch.setattr(_weights, "_file", lambda _, suffix: path.with_suffix(f".{suffix}"))
    return weights, model, path


def test_named_weights_fill_a_new_model(packed: tuple[Weights, nn.Module, Path]) -> None:
    _, model, _ = packed
    assert same_weights(models.create_model("mnist_12k", weights="mnist"), model)


def test_damaged_named_weights_are_refused(packed: tuple[Weights, nn.Module, Path]) -> None:
    weights, _, path = packed
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    model = models.mnist_12k()
    before = copy.deepcopy(model)
    with pytest.raises(CheckpointError, match="does not match its checksum; install the package"):
        weights.load_into(model)
    path.unlink()
    with pytest.raises(CheckpointError, match=r"cannot be read .*; install the package"):
        weights.load_into(model)
    assert same_weights(model, before)


def test_named_weights_refuse_another_model(packed: tuple[Weights, nn.Module, Path]) -> None:
    with pytest.raises(CheckpointError, match="belong to another model"):
        packed[0].load_into(models.mnist_12k_source())


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "mnist_12k",
            "weights of mnist_12k='minst': must be one of 'mnist'; did you mean 'mnist'?",
        ),
        (
            "mnist_12k_source",
            (
                "weights='minst': none come with the package for 'mnist_12k_source'; "
                "use weights=None and train it"
            ),
        ),
    ],
)
def test_unknown_weights_say_which_there_are(name: str, message: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        models.create_model(name, weights="minst")
    assert str(caught.value) == message


# The weights that come with the package


@pytest.fixture
def shipped() -> Weights:
    """The weights of mnist_12k trained on MNIST."""
    return models.get_weights("mnist_12k", "mnist")


def test_shipped_file_is_small_and_whole(shipped: Weights) -> None:
    content = _weights._file(shipped, "safetensors").read_bytes()
    assert len(content) < 100_000
    assert hashlib.sha256(content).hexdigest() == shipped.sha256
    model = models.mnist_12k(weights="mnist")
    assert all(part.isfinite().all() for part in model.state_dict().values())


def test_shipped_record_says_how_they_were_made(shipped: Weights) -> None:
    record = shipped.record
    assert (record.model, record.recipe, record.status) == ("mnist_12k", "mnist-12k", "finished")
    assert (record.parameters, record.epochs, len(record.history)) == (12_000, 19, 19)
    assert record.config["batch_size"] == 128
    assert record.data["name"] == "mnist"
    assert record.data["train"]["samples"] == 60_000
    assert record.data["mean"] == pytest.approx(shipped.mean, abs=5e-5)
    assert record.data["std"] == pytest.approx(shipped.std, abs=5e-5)
    assert record.data["augmentation"]["rotation"] == 5
    assert [reading["epoch"] for reading in record.test_readings] == [19]


def test_shipped_weights_are_as_good_as_their_record_says(
    shipped: Weights, mnist_root: Path
) -> None:
    raw = mnist_root / "MNIST" / "raw"
    # The format of MNIST: a head of 16 or 8 bytes, then one byte for each pixel or label.
    pixels = np.fromfile(raw / "t10k-images-idx3-ubyte", np.uint8, offset=16)
    labels = torch.from_numpy(np.fromfile(raw / "t10k-labels-idx1-ubyte", np.uint8, offset=8))
    images = torch.from_numpy(pixels).reshape(-1, 1, 28, 28) / 255
    images = (images - shipped.mean[0]) / shipped.std[0]
    model = models.mnist_12k(weights="mnist").eval()
    with torch.no_grad():
        logits = torch.cat([model(batch) for batch in images.split(1000)])
    first, second = logits.topk(2).values.unbind(1)
    assert (first - second).min() > 1e-3  # so on no processor does rounding decide another way
    accuracy = 100 * (logits.argmax(1) == labels).double().mean().item()
    assert shipped.record.test_accuracy == pytest.approx(accuracy)
