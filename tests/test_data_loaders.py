"""Where data sets come from, and what is said when they do not come. No test uses the network."""

import hashlib
import os
import pickle
import socket
import struct
import threading
import time
import types
import urllib.error
import warnings
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from numpy.typing import NDArray

from constrained_cnn import data
from constrained_cnn.data import (
    DataFallbackWarning,
    ImageSet,
    MissingDataError,
    _download,
    _files,
    _loaders,
)
from constrained_cnn.errors import DataError, InvalidInputError

FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)
SIZES = {"train": 30, "t10k": 10}

Pixels = dict[str, NDArray[np.uint8]]


def idx_files() -> dict[str, bytes]:
    """The four files of a small MNIST, by name: 30 and 10 images of 28x28."""
    generator = np.random.default_rng(0)
    content = {}
    for part, count in SIZES.items():
        pixels = generator.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        labels = np.arange(count, dtype=np.uint8) % 10
        content[f"{part}-images-idx3-ubyte"] = (
            struct.pack(">IIII", 2051, count, 28, 28) + pixels.tobytes()
        )
        content[f"{part}-labels-idx1-ubyte"] = struct.pack(">II", 2049, count) + labels.tobytes()
    return content


def write(folder: Path, content: Mapping[str, bytes]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in content.items():
        (folder / name).write_bytes(value)


@pytest.fixture(autouse=True)
def nothing_to_find(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An empty working folder and cache, and a download that fails at once."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CONSTRAINED_CNN_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path / "cache"))

    def refuse(self: Any) -> None:
        raise urllib.error.URLError("the network is unreachable")

    monkeypatch.setattr(torchvision.datasets.MNIST, "download", refuse)
    monkeypatch.setattr(torchvision.datasets.CIFAR10, "download", refuse)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """Take the small files of :func:`idx_files` for the whole of MNIST and Fashion-MNIST."""
    content = idx_files()
    md5 = tuple(hashlib.md5(content[name]).hexdigest() for name in FILES)
    monkeypatch.setattr(_loaders, "_MNIST_MD5", md5)
    monkeypatch.setattr(_loaders, "_FASHION_MD5", md5)
    shapes = {
        name: (SIZES[name.split("-")[0]], *shape[1:]) for name, shape in _files._IDX_SHAPES.items()
    }
    monkeypatch.setattr(_files, "_IDX_SHAPES", shapes)
    return content


def download_of(
    content: Mapping[str, bytes], calls: list[Path] | None = None
) -> Callable[[Any], None]:
    """A download as torchvision does it, that brings these files."""

    def download(self: Any) -> None:
        write(Path(self.raw_folder), content)
        if calls is not None:
            calls.append(Path(self.root))

    return download


# Real files


def test_real_mnist(mnist_root: Path) -> None:
    train, test = data.load_mnist(mnist_root, download=False)
    assert (len(train), len(test), train.name) == (60_000, 10_000, "mnist")
    assert train.shape == test.shape == (1, 28, 28)
    assert (train.mean, train.std) == ((0.1307,), (0.3081,))
    assert test.classes == tuple("0123456789")
    for part, flag in ((train, True), (test, False)):
        reference = torchvision.datasets.MNIST(mnist_root, train=flag, download=False)
        assert part.images[:, 0].equal(reference.data)
        assert part.labels.equal(reference.targets)
    counts = torch.bincount(train.labels)
    held_out = train.split(10_000, seed=0)[1]
    assert (torch.bincount(held_out.labels) - counts / 6).abs().max() <= 1


@pytest.mark.parametrize("damage", ["truncated", "flipped"])
def test_damaged_real_mnist(mnist_root: Path, tmp_path: Path, damage: str) -> None:
    folder = tmp_path / "MNIST" / "raw"
    content = {name: (mnist_root / "MNIST" / "raw" / name).read_bytes() for name in FILES}
    labels = content[FILES[3]]
    middle = len(labels) // 2
    flipped = labels[:middle] + bytes([labels[middle] ^ 1]) + labels[middle + 1 :]
    content[FILES[3]] = {"truncated": labels[:-1], "flipped": flipped}[damage]
    write(folder, content)
    with pytest.raises(DataError, match="t10k-labels-idx1-ubyte' is damaged") as caught:
        data.load("auto", tmp_path)
    assert not isinstance(caught.value, MissingDataError)


# Where they are looked for


def test_search_order(
    small: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    places = {
        "argument": tmp_path / "argument",
        "environment": tmp_path / "environment",
        "working folder": tmp_path / "data",
        "cache": tmp_path / "cache" / "constrained_cnn",
    }
    monkeypatch.setenv("CONSTRAINED_CNN_DATA", str(places["environment"]))
    read: list[Path] = []

    def note_and_check(folder: Path, *rest: Any) -> None:
        read.append(folder)
        _files.check_files(folder, *rest)

    monkeypatch.setattr(_loaders, "check_files", note_and_check)
    for place in reversed(places.values()):
        write(place / "MNIST" / "raw", small)
        found_elsewhere = place != places["argument"]
        with (
            pytest.warns(UserWarning, match="holds no mnist") if found_elsewhere else nullcontext()
        ):
            train, test = data.load_mnist(places["argument"])
        assert (len(train), len(test)) == (30, 10)
        assert read[-1].resolve() == (place / "MNIST" / "raw").resolve()
    assert data.load_mnist()[0].checksum == train.checksum
    assert read[-1] == places["environment"] / "MNIST" / "raw"


def test_fashion_mnist(small: dict[str, bytes], tmp_path: Path) -> None:
    write(tmp_path / "data" / "FashionMNIST" / "raw", small)
    train, test = data.load("fashion-mnist")
    assert train.name == test.name == "fashion-mnist"
    assert (train.mean, train.std) == ((0.2860,), (0.3530,))
    assert train.classes == tuple(torchvision.datasets.FashionMNIST.classes)
    assert len(test) == 10


@pytest.fixture
def small_cifar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Pixels]:
    """A CIFAR-10 of 4 training and 2 test images, and its pixels."""
    generator = np.random.default_rng(0)
    folder = tmp_path / "data" / "cifar-10-batches-py"
    pixels: Pixels = {}
    lists: dict[str, list[list[str]]] = {"train_list": [], "test_list": []}
    for kind, name, count in [
        ("train_list", "data_batch_1", 2),
        ("train_list", "data_batch_2", 2),
        ("test_list", "test_batch", 2),
    ]:
        pixels[name] = generator.integers(0, 256, (count, 3072), dtype=np.uint8)
        content = pickle.dumps({"data": pixels[name], "labels": [3, 9]})
        write(folder, {name: content})
        lists[kind].append([name, hashlib.md5(content).hexdigest()])
    meta = pickle.dumps({"label_names": list("abcdefghij")})
    write(folder, {"batches.meta": meta})
    cifar = torchvision.datasets.CIFAR10
    for kind, value in lists.items():
        monkeypatch.setattr(cifar, kind, value)
    monkeypatch.setattr(cifar, "meta", {**cifar.meta, "md5": hashlib.md5(meta).hexdigest()})
    return folder, pixels


def test_cifar10(small_cifar: tuple[Path, Pixels]) -> None:
    folder, pixels = small_cifar
    train, test = data.load_cifar10()
    assert (len(train), len(test), train.shape) == (4, 2, (3, 32, 32))
    assert train.labels.tolist() == [3, 9, 3, 9]
    assert train.classes[3] == "cat"
    np.testing.assert_array_equal(test.images.numpy(), pixels["test_batch"].reshape(2, 3, 32, 32))
    (folder / "test_batch").write_bytes(b"no pickle is read before its MD5 fits")
    with pytest.raises(DataError, match="test_batch' is damaged: its MD5"):
        data.load_cifar10()
    (folder / "batches.meta").unlink()
    with pytest.raises(DataError, match=r"incomplete: batches\.meta missing"):
        data.load_cifar10()


# Damaged files


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda content: content[:-1], "bytes long and must be"),
        (lambda content: b"", "is 0 bytes long"),
        (lambda content: content + b"\0", "bytes long and must be"),
        (lambda content: b"\x1f\x8b" + content[2:], "its header is 1f8b"),
        (lambda content: content[:-1] + bytes([content[-1] ^ 128]), "its MD5 is"),
    ],
    ids=["truncated", "empty", "too long", "header", "one bit"],
)
def test_damage_is_named_and_never_a_reason_to_fall_back(
    small: dict[str, bytes],
    tmp_path: Path,
    name: str,
    damage: Callable[[bytes], bytes],
    message: str,
) -> None:
    write(tmp_path / "data" / "MNIST" / "raw", {**small, name: damage(small[name])})
    with pytest.raises(DataError, match=f"{name}' is damaged: .*{message}") as caught:
        data.load("auto")
    assert not isinstance(caught.value, MissingDataError)


def test_a_missing_file_is_named_and_nothing_is_downloaded_over_the_rest(
    small: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[Path] = []
    monkeypatch.setattr(torchvision.datasets.MNIST, "download", download_of(small, calls))
    folder = tmp_path / "data" / "MNIST" / "raw"
    write(folder, small)
    (folder / FILES[1]).unlink()
    with pytest.raises(DataError, match=f"incomplete: {FILES[1]} missing") as caught:
        data.load("auto")
    assert not isinstance(caught.value, MissingDataError)
    assert calls == []


@pytest.mark.skipif(
    os.name == "nt" or not hasattr(os, "geteuid") or os.geteuid() == 0,
    reason="needs a user whom permissions bind",
)
def test_an_unreadable_file_is_named(small: dict[str, bytes], tmp_path: Path) -> None:
    folder = tmp_path / "data" / "MNIST" / "raw"
    write(folder, small)
    (folder / FILES[2]).chmod(0)
    with pytest.raises(DataError, match=f"{FILES[2]}' cannot be read"):
        data.load_mnist()


def test_a_processed_folder_of_old_versions_is_not_read(
    small: dict[str, bytes], tmp_path: Path
) -> None:
    write(tmp_path / "data" / "MNIST" / "raw", small)
    old = tmp_path / "data" / "MNIST" / "processed"
    old.mkdir()
    for name in ("training.pt", "test.pt"):
        torch.save((torch.zeros(1, 28, 28, dtype=torch.uint8), torch.zeros(1)), old / name)
    assert len(data.load_mnist()[0]) == 30


# Downloads


def test_a_download_is_put_in_place_once(
    small: dict[str, bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    calls: list[Path] = []

    def download(self: Any) -> None:
        print("Downloading something")
        download_of(small, calls)(self)

    monkeypatch.setattr(torchvision.datasets.MNIST, "download", download)
    root = tmp_path / "new" / "root"
    for _ in range(2):
        assert len(data.load_mnist(root)[1]) == 10
    assert len(calls) == 1
    assert sorted(path.name for path in (root / "MNIST" / "raw").iterdir()) == sorted(FILES)
    assert [path.name for path in root.iterdir()] == ["MNIST"]
    assert capsys.readouterr().out == ""


def test_a_download_goes_to_the_cache_where_nothing_is_named(
    small: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torchvision.datasets.MNIST, "download", download_of(small))
    data.load_mnist()
    assert (tmp_path / "cache" / "constrained_cnn" / "MNIST" / "raw" / FILES[0]).is_file()


def test_a_download_keeps_other_files_in_the_folder(
    small: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torchvision.datasets.MNIST, "download", download_of(small))
    folder = tmp_path / "data" / "MNIST" / "raw"
    write(folder, {"notes.txt": b"mine"})
    data.load_mnist("data")
    assert sorted(path.name for path in folder.iterdir()) == sorted([*FILES, "notes.txt"])


@pytest.mark.parametrize(
    "error", [urllib.error.URLError("timed out"), TimeoutError(), RuntimeError("Error"), EOFError()]
)
def test_a_download_that_breaks_off_leaves_nothing(
    small: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def download(self: Any) -> None:
        download_of({FILES[0]: small[FILES[0]]})(self)
        raise error

    monkeypatch.setattr(torchvision.datasets.MNIST, "download", download)
    with pytest.raises(MissingDataError):
        data.load_mnist(tmp_path / "root")
    assert not (tmp_path / "root").exists()


def test_a_damaged_download_is_not_put_in_place(
    small: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = {**small, FILES[3]: small[FILES[3]][:-1]}
    monkeypatch.setattr(torchvision.datasets.MNIST, "download", download_of(content))
    with pytest.raises(DataError, match=f"{FILES[3]}' is damaged"):
        data.load_mnist(tmp_path / "root")
    assert not (tmp_path / "root").exists()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> types.SimpleNamespace:
    """The clock of a download: it stands still, but for ``step`` seconds each time it is read."""
    clock = types.SimpleNamespace(now=0.0, step=0.0, readings=0)

    def monotonic() -> float:
        clock.now += clock.step
        clock.readings += 1
        return float(clock.now)

    monkeypatch.setattr(_download, "time", types.SimpleNamespace(monotonic=monotonic))
    return clock


def test_a_download_without_an_answer_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clock: types.SimpleNamespace
) -> None:
    seen: list[float | None] = []
    wake = threading.Event()

    def hang(self: Any) -> None:
        seen.append(socket.getdefaulttimeout())
        clock.step = 4.0
        wake.wait()

    monkeypatch.setattr(torchvision.datasets.MNIST, "download", hang)
    try:
        with pytest.raises(MissingDataError, match="no answer from the network for 10 seconds"):
            data.load_mnist(tmp_path / "root")
    finally:
        wake.set()
    assert seen == [5.0]
    assert socket.getdefaulttimeout() is None
    assert not (tmp_path / "root").exists()


def test_a_slow_download_that_goes_on_is_waited_for(
    small: dict[str, bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    clock: types.SimpleNamespace,
) -> None:
    def slow(self: Any) -> None:
        for name, content in small.items():
            write(Path(self.raw_folder), {name: content})
            before = clock.readings
            while clock.readings < before + 3:  # until its growth was certainly seen
                time.sleep(0.01)
            clock.now += 9.0

    monkeypatch.setattr(torchvision.datasets.MNIST, "download", slow)
    assert len(data.load_mnist(tmp_path)[0]) == 30
    assert clock.now == 9.0 * len(small)


# Missing sets


def test_missing_data_says_why_and_names_three_ways_out(tmp_path: Path) -> None:
    with pytest.raises(MissingDataError) as caught:
        data.load_mnist(tmp_path / "root")
    message = str(caught.value)
    for part in (
        "the network is unreachable",
        str(tmp_path / "root"),
        "CONSTRAINED_CNN_DATA",
        "--data digits",
        "<root>/MNIST/raw",
        "4 files",
    ):
        assert part in message
    assert "\n" not in message


@pytest.mark.parametrize("load", [data.load_mnist, data.load_fashion_mnist, data.load_cifar10])
def test_download_can_be_forbidden(
    tmp_path: Path, load: Callable[..., tuple[ImageSet, ImageSet]]
) -> None:
    with pytest.raises(MissingDataError, match="download=False"):
        load(tmp_path, download=False)
    assert list(tmp_path.iterdir()) == []


def test_auto_falls_back_with_a_warning() -> None:
    with pytest.warns(DataFallbackWarning, match="unreachable") as caught:
        train, test = data.load()
    assert caught[0].filename == __file__
    assert train.name == test.name == "digits"


def test_auto_takes_mnist_without_a_warning(small: dict[str, bytes], tmp_path: Path) -> None:
    write(tmp_path / "data" / "MNIST" / "raw", small)
    assert data.load()[0].name == "mnist"


def test_only_auto_falls_back() -> None:
    with pytest.raises(MissingDataError):
        data.load("mnist")


def test_unknown_names_and_roots_are_errors(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match=r"name='mnis'.*did you mean 'mnist'"):
        data.load("mnis")
    (tmp_path / "file").write_text("")
    with pytest.raises(InvalidInputError, match="must be a folder"):
        data.load_mnist(tmp_path / "file")


# The embedded digits


def test_digits() -> None:
    from sklearn.datasets import load_digits

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train, test = data.load("digits")
    assert (len(train), len(test), train.shape) == (1437, 360, (1, 28, 28))
    assert (train.mean, train.std) == (test.mean, test.std)
    assert float(train.normalised(train.images).mean()) == pytest.approx(0, abs=1e-6)
    bundle = load_digits()
    counts = np.bincount(test.labels.numpy()) - np.bincount(bundle.target) * 360 / 1797
    assert np.abs(counts).max() <= 1
    again = data.load_digits()
    assert (train.checksum, test.checksum) == (again[0].checksum, again[1].checksum)
    assert data.load_digits(seed=1)[1].checksum != test.checksum


def test_digits_at_their_own_size_are_scikit_learns_pixels() -> None:
    from sklearn.datasets import load_digits

    train, test = data.load_digits(size=8, test_count=797)
    got = {image.numpy().tobytes() for part in (train, test) for image in part.images}
    pixels = np.round(load_digits().images * 255 / 16).astype(np.uint8)
    assert got == {image.tobytes() for image in pixels}
    with pytest.raises(InvalidInputError, match="size=0"):
        data.load_digits(size=0)
