"""Per-sample affine transforms, against torchvision one image at a time."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as reference

from constrained_cnn.data import Augmentation, Transforms, augment
from constrained_cnn.data._augmentation import random_generator
from constrained_cnn.errors import InvalidInputError

MODES = {"bilinear": InterpolationMode.BILINEAR, "nearest": InterpolationMode.NEAREST}
SHAPES = [(1, 28, 28), (3, 32, 32), (1, 21, 35), (2, 40, 9), (1, 1, 7)]


def random_images(count: int, shape: tuple[int, int, int], seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, *shape), generator=generator).float()


def inside_frame(shape: tuple[int, int, int], angle: float) -> Tensor:
    """Where every bilinear weight falls on the image: a rotated image of ones stays one."""
    ones = torch.ones(1, *shape[1:])
    return reference.rotate(ones, angle, InterpolationMode.BILINEAR)[0] > 1 - 1e-6


@pytest.mark.parametrize("interpolation", MODES)
@pytest.mark.parametrize("shape", SHAPES)
@settings(max_examples=12)
@given(
    rotation=st.floats(0, 180), seed=st.integers(0, 2**31), fill=st.sampled_from([0.0, 1.0, 255])
)
def test_rotation_is_torchvisions(
    shape: tuple[int, int, int], interpolation: str, rotation: float, seed: int, fill: float
) -> None:
    images = random_images(8, shape, seed)
    drawn = Augmentation(rotation=rotation).draw(8, seed=seed, epoch=1)
    rotated = augment(images, drawn, interpolation=interpolation, fill=fill)
    differing = 0
    for image, angle, result in zip(images, drawn.angle.tolist(), rotated, strict=True):
        expected = reference.rotate(image, angle, MODES[interpolation], fill=[fill])
        if interpolation == "nearest":
            differing += int((result != expected).sum())
        else:
            inside = inside_frame(shape, angle).expand_as(image)
            torch.testing.assert_close(
                result[inside] / 255, expected[inside] / 255, rtol=0, atol=1e-4
            )
    assert differing <= 0.001 * rotated.numel()


@settings(max_examples=20)
@given(angle=st.floats(-180, 180), seed=st.integers(0, 2**31))
def test_zero_fill_is_torchvisions_without_fill_up_to_the_edge(angle: float, seed: int) -> None:
    images = random_images(1, (1, 21, 35), seed)
    one, zero = torch.ones(1), torch.zeros(1)
    result = augment(images, Transforms(angle * one, zero, zero, one))
    expected = reference.rotate(images, float(angle * one), InterpolationMode.BILINEAR)
    torch.testing.assert_close(result, expected, rtol=0, atol=255e-4)


@settings(max_examples=30)
@given(
    angle=st.floats(-180, 180),
    shift=st.tuples(st.integers(-6, 6), st.integers(-6, 6)),
    scale=st.floats(0.5, 1.8),
    fill=st.integers(0, 255),
)
def test_all_together_are_torchvisions_affine(
    angle: float, shift: tuple[int, int], scale: float, fill: float
) -> None:
    images = random_images(1, (2, 16, 24), 3)
    values = [angle, shift[0] / 24, shift[1] / 16, scale]
    drawn = Transforms(*(torch.tensor([value], dtype=torch.float64) for value in values))
    result = augment(images, drawn, fill=fill)
    # torchvision's affine turns the other way than its rotate.
    expected = reference.affine(
        images - fill, -angle, list(shift), scale, [0.0, 0.0], InterpolationMode.BILINEAR
    )
    torch.testing.assert_close(result, expected + fill, rtol=0, atol=255e-4)


@pytest.mark.parametrize("interpolation", MODES)
def test_a_constant_image_of_the_fill_value_stays_as_it_is(interpolation: str) -> None:
    images = torch.full((5, 1, 9, 9), 37.0)
    drawn = Augmentation(rotation=180, shift=0.5, scale=0.5).draw(5, seed=1, epoch=1)
    assert augment(images, drawn, interpolation=interpolation, fill=37).eq(37).all()


@pytest.mark.parametrize("fill", [0.0, 5.0])
def test_what_is_shifted_out_is_replaced_by_the_fill(fill: float) -> None:
    images = random_images(1, (1, 8, 8), 0)
    drawn = Transforms(*(torch.tensor([value]) for value in (0.0, 0.25, 0.0, 1.0)))
    result = augment(images, drawn, fill=fill)
    assert result[..., :2].eq(fill).all()
    torch.testing.assert_close(result[..., 2:], images[..., :-2])


def test_64_copies_of_one_image_become_64_images() -> None:
    image = random_images(1, (1, 28, 28), 0)
    drawn = Augmentation(rotation=5).draw(64, seed=0, epoch=1)
    copies = augment(image.expand(64, -1, -1, -1), drawn)
    assert len({copy.numpy().tobytes() for copy in copies}) == 64


@given(
    rotation=st.floats(0, 180),
    shift=st.floats(0, 1),
    scale=st.floats(0, 0.99),
    seed=st.integers(0, 2**63),
    epoch=st.integers(0, 1000),
)
def test_draws_lie_in_their_ranges_and_repeat(
    rotation: float, shift: float, scale: float, seed: int, epoch: int
) -> None:
    augmentation = Augmentation(rotation=rotation, shift=shift, scale=scale)
    drawn = augmentation.draw(50, seed=seed, epoch=epoch)
    again = augmentation.draw(50, seed=seed, epoch=epoch)
    limits = {"angle": rotation, "shift_x": shift, "shift_y": shift}
    for name, limit in limits.items():
        values = getattr(drawn, name)
        assert values.shape == (50,)
        assert values.abs().max() <= limit * (1 + 1e-6)
        assert values.equal(getattr(again, name))
    assert (drawn.scale - 1).abs().max() <= scale + 1e-6
    assert drawn.scale.equal(again.scale)


def test_draws_are_uniform() -> None:
    drawn = Augmentation(rotation=90, shift=0.1, scale=0.2).draw(20_000, seed=0, epoch=0)
    for values, limit in [(drawn.angle, 90), (drawn.shift_x, 0.1), (drawn.scale - 1, 0.2)]:
        # Of 20,000 uniform values, mean and deviation lie this close in all but one of 10**6 sets.
        assert abs(float(values.mean())) < 5 * limit / math.sqrt(3 * 20_000)
        assert float(values.std()) == pytest.approx(limit / math.sqrt(3), rel=0.02)
    assert abs(float(torch.corrcoef(torch.stack([drawn.shift_x, drawn.shift_y]))[0, 1])) < 0.04


def test_seed_epoch_and_stream_each_change_the_draw() -> None:
    draws = [
        torch.rand(4, generator=random_generator(*words)).tolist()
        for words in [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)]
    ]
    assert len({tuple(draw) for draw in draws}) == 4


def test_take_follows_the_indices() -> None:
    drawn = Augmentation(rotation=5, shift=0.1, scale=0.1).draw(5, seed=0, epoch=0)
    taken = drawn.take(torch.tensor([3, 0]))
    assert len(taken) == 2
    for name in ("angle", "shift_x", "shift_y", "scale"):
        assert getattr(taken, name).tolist() == [float(getattr(drawn, name)[i]) for i in (3, 0)]


def test_plain_data_round_trip() -> None:
    augmentation = Augmentation(rotation=5, interpolation="nearest", fill=1.0)
    assert Augmentation.from_dict(augmentation.to_dict()) == augmentation
    with pytest.raises(InvalidInputError, match=r"rotaton.*did you mean 'rotation'"):
        Augmentation.from_dict({"rotaton": 5})


@pytest.mark.parametrize(
    "settings",
    [
        {"rotation": -1},
        {"rotation": 181},
        {"rotation": math.nan},
        {"shift": 1.5},
        {"scale": 1.0},
        {"scale": -0.1},
        {"interpolation": "bicubic"},
        {"fill": 256},
        {"fill": "black"},
    ],
)
def test_settings_out_of_range_are_errors(settings: dict[str, Any]) -> None:
    (name,) = settings
    with pytest.raises(InvalidInputError, match=f"^{name}="):
        Augmentation(**settings)


def test_wrong_images_and_lengths_are_errors() -> None:
    drawn = Augmentation().draw(2, seed=0, epoch=0)
    with pytest.raises(InvalidInputError, match="must be float"):
        augment(torch.zeros(2, 1, 4, 4, dtype=torch.uint8), drawn)
    with pytest.raises(InvalidInputError, match="must be float"):
        augment(torch.zeros(2, 4, 4), drawn)
    with pytest.raises(InvalidInputError, match="2 transforms for 3 images"):
        augment(torch.zeros(3, 1, 4, 4), drawn)
    with pytest.raises(InvalidInputError, match="count=0"):
        Augmentation().draw(0, seed=0, epoch=0)
    with pytest.raises(InvalidInputError, match="seed=-1"):
        Augmentation().draw(1, seed=-1, epoch=0)
