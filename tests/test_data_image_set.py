"""ImageSet: what it accepts, its splits and its batches."""

import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from constrained_cnn.data import Augmentation, ImageSet, _image_set, augment
from constrained_cnn.errors import DataError, InvalidInputError


def make_set(
    count: int, *, classes: int = 3, shape: tuple[int, int, int] = (1, 5, 4), seed: int = 0
) -> ImageSet:
    """A set whose image i holds i in its first two pixels, so that any batch tells its samples."""
    generator = np.random.default_rng(seed)
    images = generator.integers(0, 256, (count, *shape), dtype=np.uint8)
    images[:, 0, 0, 0], images[:, 0, 0, 1] = np.arange(count) // 256, np.arange(count) % 256
    labels = generator.integers(0, classes, count)
    names = [f"class {label}" for label in range(classes)]
    zeros, ones = [0.0] * shape[0], [1.0] * shape[0]
    return ImageSet.from_arrays(images, labels, classes=names, mean=zeros, std=ones)


def samples_of(batches: Iterable[tuple[Tensor, Tensor]]) -> tuple[list[int], list[int]]:
    """Return the sample numbers and labels of batches made by :func:`make_set`, in order."""
    inputs, labels = zip(*batches, strict=True)
    pixels = (torch.cat(inputs) * 255).round().long()
    return (pixels[:, 0, 0, 0] * 256 + pixels[:, 0, 0, 1]).tolist(), torch.cat(labels).tolist()


# Making a set


def test_float_pixels_are_rounded_and_statistics_exact() -> None:
    images = np.random.default_rng(0).random((20, 3, 6, 5))
    data = ImageSet.from_arrays(images, np.arange(20) % 4)
    rounded = np.round(images.astype(np.float64) * 255)
    np.testing.assert_array_equal(data.images.numpy(), rounded)
    np.testing.assert_allclose(data.mean, (rounded / 255).mean((0, 2, 3)), rtol=1e-12)
    np.testing.assert_allclose(data.std, (rounded / 255).std((0, 2, 3)), rtol=1e-12)
    assert data.classes == ("0", "1", "2", "3")
    assert data.shape == (3, 6, 5)
    assert data.name == "arrays"
    normal = data.normalised(data.images)
    assert abs(float(normal.mean())) < 1e-6
    assert float(normal.std(unbiased=False)) == pytest.approx(1)


def test_the_set_keeps_its_own_copy() -> None:
    images, labels = np.eye(4, dtype=np.uint8)[None].copy(), np.zeros(1, dtype=np.int32)
    data = ImageSet.from_arrays(images, labels)
    tensors = torch.eye(4)[None], torch.zeros(1, dtype=torch.int64)
    other = ImageSet.from_arrays(*tensors)
    images[:], labels[:], tensors[0][:] = 7, 7, 0.5
    tensors[1][:] = 7
    assert int(data.images.sum()) == 4
    assert int(other.images.sum()) == 4 * 255
    assert data.labels.tolist() == other.labels.tolist() == [0]


def test_read_only_and_strided_arrays_are_read() -> None:
    images = np.arange(32, dtype=np.uint8).reshape(2, 4, 4)[:, ::-1]
    images.flags.writeable = False
    data = ImageSet.from_arrays(images, [0, 1])
    assert data.images[0, 0, 0].tolist() == [12, 13, 14, 15]


@pytest.mark.parametrize(
    ("images", "labels", "error", "message"),
    [
        (np.zeros((0, 4, 4)), [], DataError, "at least one"),
        (np.zeros((4, 4)), [0], InvalidInputError, r"\(N, H, W\)"),
        (np.zeros((1, 28, 28, 3)), [0], InvalidInputError, "transpose"),
        (np.zeros((1, 4, 4), np.int64), [0], InvalidInputError, "uint8"),
        (np.array([None]), [0], InvalidInputError, "numbers"),
        (np.full((3, 4, 4), 1.5), [0, 0, 0], DataError, "image 0 holds 1.5"),
        (np.full((1, 4, 4), -1e-3), [0], DataError, "image 0 holds -0.001"),
        (np.full((1, 4, 4), np.inf), [0], DataError, "image 0 holds inf"),
        (np.eye(4)[None], [0, 1], InvalidInputError, "1 images but 2 labels"),
        (np.eye(4)[None], [], InvalidInputError, "1 images but 0 labels"),
        (np.eye(4)[None], [0.5], InvalidInputError, "integers"),
        (np.eye(4)[None], [[0]], InvalidInputError, "integers"),
        (np.zeros((2, 4, 4)), [0, 1], DataError, "deviation is 0"),
    ],
)
def test_unfit_arrays_are_errors(
    images: Any, labels: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        ImageSet.from_arrays(images, labels)


def test_the_first_nan_image_is_named() -> None:
    images = np.random.default_rng(0).random((5, 4, 4), dtype=np.float32)
    images[3, 1, 1] = images[4, 0, 0] = np.nan
    with pytest.raises(DataError, match="image 3 holds nan, the first of 2"):
        ImageSet.from_arrays(images, np.zeros(5, dtype=int))


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"labels": torch.tensor([0, 1, 2, 1])}, DataError, "label 2 at index 2: with 2 classes"),
        ({"labels": torch.tensor([0, -1, 0, 0])}, DataError, "label -1 at index 1"),
        ({"labels": torch.zeros(4, dtype=torch.int32)}, InvalidInputError, "int64"),
        ({"images": torch.zeros(4, 1, 2, 2)}, InvalidInputError, "uint8"),
        ({"std": (0.0,)}, InvalidInputError, "above 0"),
        ({"mean": (0.5, 0.5)}, InvalidInputError, "1 channels"),
        ({"mean": (math.nan,)}, InvalidInputError, "finite"),
        ({"classes": ()}, DataError, "0 classes"),
    ],
)
def test_unfit_fields_are_errors(
    changes: dict[str, Any], error: type[Exception], message: str
) -> None:
    fields: dict[str, Any] = {
        "images": torch.zeros(4, 1, 2, 2, dtype=torch.uint8),
        "labels": torch.tensor([0, 1, 0, 1]),
        "mean": (0.5,),
        "std": (0.5,),
        "classes": ("a", "b"),
        "name": "test",
    }
    with pytest.raises(error, match=message):
        ImageSet(**{**fields, **changes})


def test_from_dataset_reads_pil_tensors_and_arrays_alike() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (4, 6, 5, 3), dtype=np.uint8)
    planes = pixels.transpose(0, 3, 1, 2)
    kinds = [
        [(Image.fromarray(image), i % 2) for i, image in enumerate(pixels)],
        [(torch.from_numpy(plane.copy()), torch.tensor(i % 2)) for i, plane in enumerate(planes)],
        [[plane, np.int64(i % 2)] for i, plane in enumerate(planes)],
        [(plane / 255, i % 2) for i, plane in enumerate(planes)],
    ]
    sums = {ImageSet.from_dataset(dataset).checksum for dataset in kinds}
    assert sums == {ImageSet.from_arrays(planes, [0, 1, 0, 1]).checksum}
    grey = ImageSet.from_dataset([(Image.fromarray(pixels[0, :, :, 0]), 0)])
    assert grey.shape == (1, 6, 5)


@pytest.mark.parametrize(
    ("dataset", "error", "message"),
    [
        ([], DataError, "empty"),
        (iter([1]), InvalidInputError, "length"),
        ([np.zeros((4, 4))], InvalidInputError, "item 0 must be a pair"),
        ([(np.zeros((4, 4)), "cat")], InvalidInputError, "label 0 is 'cat'"),
        ([(np.eye(4), 0), (np.eye(5), 0)], DataError, r"image 1 is .*\(1, 5, 5\), image 0"),
        ([(Image.new("CMYK", (4, 4)), 0)], DataError, "image 0 has mode 'CMYK'"),
    ],
)
def test_unfit_datasets_are_errors(dataset: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        ImageSet.from_dataset(dataset)


def test_from_dataset_takes_names_from_the_dataset() -> None:
    class Pets(list[Any]):
        classes = ("cat", "dog")

    data = ImageSet.from_dataset(Pets([(np.eye(4), 0)]))
    assert data.classes == ("cat", "dog")
    assert data.name == "Pets"


@pytest.mark.parametrize("channels", [1, 3])
def test_from_folder(tmp_path: Path, channels: int) -> None:
    for name, level in {"dog": 200, "cat": 100}.items():
        (tmp_path / name).mkdir()
        for index, suffix in enumerate(("png", "jpg", "bmp")):
            picture = Image.new("RGB", (10 + index, 12), (level, level, level))
            picture.putpixel((0, 0), (0, 0, 0))
            picture.save(tmp_path / name / f"{index}.{suffix}")
        (tmp_path / name / ".DS_Store").write_bytes(b"hidden")
    (tmp_path / ".git").mkdir()
    (tmp_path / "readme.txt").write_text("not a class")
    data = ImageSet.from_folder(tmp_path, size=(8, 6), channels=channels)
    assert data.classes == ("cat", "dog")
    assert data.shape == (channels, 8, 6)
    assert data.labels.tolist() == [0, 0, 0, 1, 1, 1]
    levels = data.images.float().mean((1, 2, 3)).numpy()
    np.testing.assert_allclose(levels, [100] * 3 + [200] * 3, atol=8)


def test_from_folder_names_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such folder"):
        ImageSet.from_folder(tmp_path / "none", size=(8, 8))
    with pytest.raises(DataError, match="no sub-folder"):
        ImageSet.from_folder(tmp_path, size=(8, 8))
    (tmp_path / "cat").mkdir()
    with pytest.raises(DataError, match=r"cat.*holds no image"):
        ImageSet.from_folder(tmp_path, size=(8, 8))
    (tmp_path / "cat" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing more")
    with pytest.raises(DataError, match=r"broken\.png"):
        ImageSet.from_folder(tmp_path, size=(8, 8))
    with pytest.raises(InvalidInputError, match="size=28"):
        ImageSet.from_folder(tmp_path, size=28)  # type: ignore[arg-type]
    with pytest.raises(InvalidInputError, match="channels="):
        ImageSet.from_folder(tmp_path, size=(8, 8), channels=2)


# What it says of itself


def test_checksum_tells_content_and_only_content() -> None:
    data = make_set(10)
    changed = data.images.clone()
    changed[9, 0, 4, 3] ^= 1
    relabelled = data.labels.clone()
    relabelled[0] = (relabelled[0] + 1) % 3
    others = [
        ImageSet(changed, data.labels, data.mean, data.std, data.classes, data.name),
        ImageSet(data.images, relabelled, data.mean, data.std, data.classes, data.name),
        ImageSet(data.images.mT, data.labels, data.mean, data.std, data.classes, data.name),
        data.subset(range(9)),
    ]
    assert len({data.checksum, *(other.checksum for other in others)}) == 5
    renamed = ImageSet(data.images, data.labels, (0.3,), (0.2,), data.classes, "other")
    assert data.checksum == renamed.checksum == data.augmented(rotation=5).checksum
    assert len(data.checksum) == 64


def test_repr_and_augmented() -> None:
    data = make_set(7)
    assert repr(data) == "ImageSet('arrays', 7 x 1x5x4, 3 classes, cpu)"
    turned = data.augmented(rotation=5)
    assert turned.augmentation == data.augmented(Augmentation(rotation=5)).augmentation
    assert "Augmentation(rotation=5.0," in repr(turned)
    assert "\n" not in repr(turned)
    assert turned.augmented(None).augmentation is None
    assert data.to("cpu") is data
    with pytest.raises(InvalidInputError, match="unknown key 'rotate'"):
        data.augmented(rotate=5)
    with pytest.raises(InvalidInputError, match="not both"):
        data.augmented(Augmentation(), rotation=5)
    with pytest.raises(InvalidInputError, match="must be an Augmentation"):
        data.augmented(5)  # type: ignore[arg-type]


# Parts


@pytest.mark.parametrize("convert", [list, np.array, torch.tensor])
def test_subset_by_numbers_and_mask(convert: Callable[[Any], Any]) -> None:
    data = make_set(6)
    assert data.subset(convert([4, 0, 4])).labels.tolist() == data.labels[[4, 0, 4]].tolist()
    mask = [False, True, False, False, True, False]
    assert data.subset(convert(mask)).checksum == data.subset([1, 4]).checksum


@pytest.mark.parametrize("indices", [[], [6], [-1], [[0]], [0.5], [True], [False] * 6])
def test_unfit_subsets_are_errors(indices: Any) -> None:
    with pytest.raises(InvalidInputError, match="indices"):
        make_set(6).subset(indices)


@settings(max_examples=40)
@given(data=st.data())
def test_split_is_stratified_disjoint_complete_and_repeats(data: st.DataObject) -> None:
    counts = data.draw(st.lists(st.integers(2, 40), min_size=2, max_size=5))
    labels = np.repeat(np.arange(len(counts)), counts)
    total, classes = len(labels), len(counts)
    count = data.draw(st.integers(classes, total - classes))
    seed = data.draw(st.integers(0, 2**32 - 1))
    pixels = np.zeros((total, 1, 2, 2), dtype=np.uint8)
    pixels[:, 0, 0, 0] = np.arange(total)
    whole = ImageSet.from_arrays(pixels, labels)
    rest, held_out = whole.split(count, seed=seed)
    assert len(held_out) == count
    numbers = [part.images[:, 0, 0, 0].tolist() for part in (rest, held_out)]
    assert sorted(numbers[0] + numbers[1]) == list(range(total))
    assert all(part == sorted(part) for part in numbers)
    for label, size in enumerate(counts):
        held = int((held_out.labels == label).sum())
        assert abs(held - size * count / total) <= 1
    assert whole.split(count, seed=seed)[1].checksum == held_out.checksum


def test_another_seed_splits_otherwise_and_impossible_splits_are_errors() -> None:
    data = make_set(60)
    assert data.split(20, seed=0)[1].checksum != data.split(20, seed=1)[1].checksum
    for count in (0, 2, 58, 60, 2.5):
        with pytest.raises(InvalidInputError, match=f"count={count}"):
            data.split(count, seed=0)  # type: ignore[arg-type]
    with pytest.raises(InvalidInputError, match="seed=-1"):
        data.split(10, seed=-1)
    lone = ImageSet.from_arrays(np.eye(3)[None].repeat(5, 0), [0, 0, 1, 0, 0], classes=["a", "b"])
    with pytest.raises(DataError, match="class 'b' has 1 image"):
        lone.split(2, seed=0)


# Batches


@settings(max_examples=30)
@given(
    count=st.integers(1, 300),
    batch_size=st.integers(1, 320),
    seed=st.integers(0, 2**40),
    epoch=st.integers(0, 50),
    chunk=st.sampled_from([1, 500, 3000, 2**23]),
)
def test_an_epoch_gives_every_sample_once(
    count: int, batch_size: int, seed: int, epoch: int, chunk: int
) -> None:
    data = make_set(count)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_image_set, "_CHUNK_VALUES", chunk)
        batches = list(data.training_batches(batch_size, seed=seed, epoch=epoch))
    assert len(batches) == data.steps(batch_size) == math.ceil(count / batch_size)
    assert all(len(labels) == batch_size for _, labels in batches[:-1])
    numbers, labels = samples_of(batches)
    assert sorted(numbers) == list(range(count))
    assert labels == data.labels[numbers].tolist()
    assert samples_of(data.batches(batch_size)) == (list(range(count)), data.labels.tolist())


def test_order_is_a_pure_function_of_seed_and_epoch() -> None:
    data = make_set(200)

    def order(seed: int, epoch: int) -> list[int]:
        torch.rand(3)  # the global generator has no part in it
        return samples_of(data.training_batches(32, seed=seed, epoch=epoch))[0]

    assert order(1, 2) == order(1, 2)
    assert len({tuple(order(*words)) for words in [(0, 0), (0, 1), (1, 0), (1, 2), (2, 1)]}) == 5


def test_augmented_batches_equal_each_sample_augmented_alone() -> None:
    data = make_set(50, shape=(3, 8, 6)).augmented(
        rotation=20, shift=0.1, scale=0.1, interpolation="nearest", fill=9
    )
    assert data.augmentation is not None
    drawn = data.augmentation.draw(50, seed=4, epoch=7)
    plain = samples_of(data.augmented(None).training_batches(16, seed=4, epoch=7))[0]
    inputs = torch.cat([x for x, _ in data.training_batches(16, seed=4, epoch=7)])
    for position, number in enumerate(plain):
        one = torch.tensor([number])
        image = augment(data.images[one].float(), drawn.take(one), interpolation="nearest", fill=9)
        torch.testing.assert_close(inputs[position], data.normalised(image)[0])


@pytest.mark.parametrize("interpolation", ["bilinear", "nearest"])
def test_chunks_and_batch_size_change_nothing(
    monkeypatch: pytest.MonkeyPatch, interpolation: str
) -> None:
    data = make_set(130).augmented(rotation=30, interpolation=interpolation)

    def epoch(batch_size: int) -> Tensor:
        return torch.cat([x for x, _ in data.training_batches(batch_size, seed=0, epoch=3)])

    expected = epoch(128)
    for chunk in (1, 700, 5000):
        monkeypatch.setattr(_image_set, "_CHUNK_VALUES", chunk)
        for batch_size in (7, 64, 128):
            assert epoch(batch_size).equal(expected)


def test_batches_in_order_are_never_augmented_and_epochs_differ() -> None:
    data = make_set(64).augmented(rotation=30)
    torch.testing.assert_close(
        torch.cat([x for x, _ in data.batches(10)]), data.normalised(data.images)
    )
    first, second = (
        torch.cat([x for x, _ in data.training_batches(64, seed=0, epoch=epoch)])
        for epoch in (1, 2)
    )
    assert not first.equal(second)
    copies = {image.numpy().tobytes() for image in first}
    assert len(copies) == 64


@pytest.mark.parametrize("channels", [1, 3])
def test_channels_last_is_true_in_strides_too(channels: int) -> None:
    data = make_set(20, shape=(channels, 6, 5)).augmented(rotation=5)
    expected = list(data.training_batches(8, seed=0, epoch=0))
    got = data.training_batches(8, seed=0, epoch=0, memory_format=torch.channels_last)
    for (inputs, _), (wanted, _) in zip(got, expected, strict=True):
        assert inputs.stride() == (30 * channels, 1, 5 * channels, channels)
        assert inputs.equal(wanted)
        assert wanted.is_contiguous()


def test_normalised_is_the_formula_for_bytes_and_floats() -> None:
    data = ImageSet(
        torch.randint(0, 256, (9, 3, 5, 5), dtype=torch.uint8),
        torch.zeros(9, dtype=torch.int64),
        (0.4914, 0.4822, 0.4465),
        (0.2470, 0.2435, 0.2616),
        ("only",),
        "test",
    )
    mean = np.array(data.mean).reshape(3, 1, 1)
    expected = (data.images.numpy() / 255 - mean) / np.array(data.std).reshape(3, 1, 1)
    for images in (data.images, data.images.float(), data.images.double()):
        result = data.normalised(images)
        assert result.dtype == torch.float32
        np.testing.assert_allclose(result.numpy(), expected, atol=1e-6)


def test_wrong_batch_arguments_are_errors_at_once() -> None:
    data = make_set(5)
    for call in (data.batches, data.steps):
        with pytest.raises(InvalidInputError, match="batch_size=0"):
            call(0)
    with pytest.raises(InvalidInputError, match="batch_size=True"):
        data.training_batches(True, seed=0, epoch=0)
    with pytest.raises(InvalidInputError, match="epoch=-1"):
        data.training_batches(2, seed=0, epoch=-1)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_gives_the_same_epoch() -> None:
    data = make_set(300, shape=(1, 28, 28)).augmented(rotation=30, shift=0.1, scale=0.1, fill=3)
    on_device = data.to("cuda")
    assert on_device.device.type == "cuda"
    assert on_device.checksum == data.checksum
    pairs = zip(
        data.training_batches(64, seed=1, epoch=2),
        on_device.training_batches(64, seed=1, epoch=2),
        strict=True,
    )
    torch.backends.cuda.matmul.allow_tf32 = True
    for (inputs, labels), (device_inputs, device_labels) in pairs:
        assert device_inputs.is_cuda
        torch.testing.assert_close(device_inputs.cpu(), inputs, rtol=0, atol=1e-4)
        assert device_labels.tolist() == labels.tolist()
    assert on_device.subset([1, 2]).device.type == "cuda"


def test_a_mistyped_label_does_not_make_a_billion_classes() -> None:
    images = torch.randint(0, 256, (2, 1, 4, 4), dtype=torch.uint8)
    with pytest.raises(InvalidInputError, match="the largest is 1000000000"):
        ImageSet.from_arrays(images, [0, 10**9])
