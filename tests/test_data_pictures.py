"""A person's own pictures in MNIST's form: what must not matter, and what must be an error."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from constrained_cnn.data import load_mnist, read_pictures
from constrained_cnn.data._pictures import _framed, _ink
from constrained_cnn.errors import DataError, InvalidInputError

STROKES = {
    "seven": [(60, 60), (140, 60), (90, 220)],
    "one": [(100, 40), (100, 240)],
    "two": [(50, 90), (80, 60), (130, 70), (130, 110), (50, 200), (140, 200)],
}


def draw(
    name: str = "seven",
    *,
    size: tuple[int, int] = (200, 280),
    ink: int = 0,
    paper: int = 255,
    width: int = 14,
    offset: tuple[int, int] = (0, 0),
) -> Image.Image:
    """A grey picture (W, H) of a digit in dark strokes."""
    picture = Image.new("L", size, paper)
    points = [(x + offset[0], y + offset[1]) for x, y in STROKES[name]]
    ImageDraw.Draw(picture).line(points, fill=ink, width=width, joint="curve")
    return picture


def read(
    tmp_path: Path, picture: Image.Image, name: str = "picture.png", **options: Any
) -> NDArray[np.uint8]:
    picture.save(tmp_path / name)
    return read_pictures(tmp_path / name, **options)[0, 0].numpy()


def distance(first: NDArray[Any], second: NDArray[Any]) -> float:
    """Mean difference of grey levels."""
    return float(np.abs(first.astype(float) - second.astype(float)).mean())


def assert_mnist_form(image: NDArray[np.uint8], size: tuple[int, int] = (28, 28)) -> None:
    assert image.dtype == np.uint8
    assert image.shape == size
    assert image.max() == 255
    rows, columns = np.nonzero(image)
    assert max(np.ptp(rows), np.ptp(columns)) + 1 == round(min(size) * 20 / 28)
    for axis, length in enumerate(size):
        profile = image.sum(axis=1 - axis, dtype=float)
        centre = np.arange(length) @ profile / profile.sum()
        assert abs(centre - length / 2) <= 0.51


@pytest.mark.parametrize("name", STROKES)
@pytest.mark.parametrize("size", [(28, 28), (32, 32), (40, 28)])
def test_the_digit_is_white_20_pixels_long_and_centred(
    tmp_path: Path, name: str, size: tuple[int, int]
) -> None:
    image = read(tmp_path, draw(name), size=size)
    assert_mnist_form(image, size)
    assert image[0, 0] == image[-1, -1] == 0


def test_the_aspect_stays(tmp_path: Path) -> None:
    rows, columns = np.nonzero(read(tmp_path, draw("one", width=10)))
    assert np.ptp(rows) + 1 == 20
    assert np.ptp(columns) + 1 == 1  # a line of 10 by 201 pixels


@settings(max_examples=15)
@given(
    ink=st.integers(0, 90),
    paper=st.integers(150, 255),
    inverted=st.booleans(),
    offset=st.tuples(st.integers(-30, 40), st.integers(-40, 40)),
)
def test_colours_and_place_do_not_matter(
    tmp_path_factory: pytest.TempPathFactory,
    ink: int,
    paper: int,
    inverted: bool,
    offset: tuple[int, int],
) -> None:
    folder = tmp_path_factory.mktemp("pictures")
    reference = read(folder, draw())
    if inverted:
        ink, paper = 255 - ink, 255 - paper
    image = read(folder, draw(ink=ink, paper=paper, offset=offset))
    assert distance(image, reference) < 1


@pytest.mark.parametrize("name", ["p.png", "p.bmp", "p.tif", "p.gif", "p.jpg", "p.webp"])
def test_file_formats_do_not_matter(tmp_path: Path, name: str) -> None:
    assert distance(read(tmp_path, draw(), name), read(tmp_path, draw())) < 2


@pytest.mark.parametrize("mode", ["1", "P", "RGB", "RGBA", "LA", "CMYK", "I;16", "F"])
def test_pixel_modes_do_not_matter(tmp_path: Path, mode: str) -> None:
    grey = draw()
    if mode == "I;16":
        picture = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    elif mode == "F":
        picture = Image.fromarray(np.asarray(grey).astype(np.float32))
    else:
        picture = grey.convert(mode)
    name = "p.png" if mode in ("1", "P", "RGB", "RGBA", "LA", "I;16") else "p.tif"
    assert distance(read(tmp_path, picture, name), read(tmp_path, grey)) < 1


def test_transparency_is_paper(tmp_path: Path) -> None:
    strokes = Image.new("RGBA", (200, 280), (0, 0, 0, 0))
    ImageDraw.Draw(strokes).line(STROKES["seven"], fill=(0, 0, 0, 255), width=14, joint="curve")
    assert distance(read(tmp_path, strokes), read(tmp_path, draw())) < 1


@pytest.mark.parametrize(
    ("orientation", "turn"),
    [
        (3, Image.Transpose.ROTATE_180),
        (6, Image.Transpose.ROTATE_90),
        (8, Image.Transpose.ROTATE_270),
        (2, Image.Transpose.FLIP_LEFT_RIGHT),
    ],
)
def test_the_cameras_orientation_is_undone(
    tmp_path: Path, orientation: int, turn: Image.Transpose
) -> None:
    upright = read(tmp_path, draw())
    exif = Image.Exif()
    exif[0x0112] = orientation
    draw().transpose(turn).save(tmp_path / "turned.png", exif=exif)
    assert distance(read_pictures(tmp_path / "turned.png")[0, 0].numpy(), upright) < 1


def test_a_photograph_with_shade_noise_and_dust(tmp_path: Path) -> None:
    clean = np.asarray(draw(size=(300, 400), offset=(60, 50))).astype(float) / 255
    rows, columns = np.mgrid[:400, :300]
    shade = 170 + 60 * rows / 400 - 40 * columns / 300
    photo = shade * (0.3 + 0.7 * clean) + np.random.default_rng(0).normal(0, 4, clean.shape)
    photo[20:23, 20:23] = photo[380:383, 270:274] = 20
    picture = Image.fromarray(photo.clip(0, 255).astype(np.uint8)).convert("RGB")
    assert distance(read(tmp_path, picture, "photo.jpg"), read(tmp_path, draw())) < 4


def test_a_stroke_in_two_parts_keeps_both(tmp_path: Path) -> None:
    picture = draw("two")
    ImageDraw.Draw(picture).line([(60, 20), (120, 20)], fill=0, width=14)
    image = read(tmp_path, picture)
    rows = np.nonzero(image.any(axis=1))[0]
    assert_mnist_form(image)
    assert np.diff(rows).max() > 1  # paper between the parts


def test_invert_can_be_said(tmp_path: Path) -> None:
    dark, told = (read(tmp_path, draw(), invert=invert) for invert in ("auto", "yes"))
    assert distance(dark, told) == 0
    inverted = Image.eval(draw(), lambda level: 255 - level)
    assert distance(read(tmp_path, inverted, invert="no"), dark) < 1
    with pytest.raises(DataError, match="blank"):
        read(tmp_path, draw(), invert="no")


def test_the_order_of_paths_is_kept(tmp_path: Path) -> None:
    paths = []
    for name in STROKES:
        draw(name).save(tmp_path / f"{name}.png")
        paths.append(tmp_path / f"{name}.png")
    together = read_pictures(paths)
    assert together.dtype == torch.uint8
    assert together.shape == (3, 1, 28, 28)
    for index, path in enumerate(paths):
        assert read_pictures(str(path))[0].equal(together[index])


def test_mnists_own_images_stay_as_they_are(mnist_root: Path) -> None:
    _, test = load_mnist(mnist_root, download=False)

    def in_form(grey: NDArray[np.float64]) -> NDArray[np.uint8]:
        ink = _ink(grey, "auto")
        assert ink is not None
        return _framed(ink, (28, 28))

    same = 0
    for image in test.images[:500, 0].numpy().astype(float):
        once = in_form(image)
        same += distance(once, image) < 2
        assert distance(in_form(once.astype(float)), once) < 1
    assert same >= 480


def test_mnists_own_images_on_paper_become_themselves_again(
    mnist_root: Path, tmp_path: Path
) -> None:
    _, test = load_mnist(mnist_root, download=False)
    images = test.images[:60, 0].numpy()
    paths = [tmp_path / f"{index}.jpg" for index in range(len(images))]
    for path, image in zip(paths, images, strict=True):
        page = Image.new("L", (500, 400), 230)
        digit = Image.fromarray(230 - (image * 0.8).astype(np.uint8))
        page.paste(digit.resize((280, 280), Image.Resampling.BICUBIC), (190, 40))
        page.save(path, quality=90)
    read_back = read_pictures(paths).flatten(1).float()
    apart = torch.cdist(read_back, torch.from_numpy(images).flatten(1).float())
    nearest_is_itself = apart.argmin(dim=1) == torch.arange(len(images))
    # A thin one whose centre lies between two pixels may land a pixel beside its place.
    assert int(nearest_is_itself.sum()) >= 57


@pytest.mark.parametrize("level", [0, 255, 128])
def test_a_blank_picture_is_an_error(tmp_path: Path, level: int) -> None:
    with pytest.raises(DataError, match=r"empty\.png' is blank"):
        read(tmp_path, Image.new("L", (50, 50), level), "empty.png")


def test_noise_on_blank_paper_is_no_digit(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).normal(200, 4, (300, 300)).clip(0, 255).astype(np.uint8)
    with pytest.raises(DataError, match="is blank"):
        read(tmp_path, Image.fromarray(noise))


def test_tiny_pictures_do_not_break(tmp_path: Path) -> None:
    for size in [(1, 1), (1, 5), (2, 2)]:
        with pytest.raises(DataError, match="blank"):
            read(tmp_path, Image.new("L", size, 255))
    dot = Image.new("L", (3, 3), 255)
    dot.putpixel((1, 1), 0)
    assert_mnist_form(read(tmp_path, dot))


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no picture")
    draw().save(tmp_path / "whole.png")
    (tmp_path / "half.png").write_bytes((tmp_path / "whole.png").read_bytes()[:300])
    for name in ("text.png", "half.png"):
        with pytest.raises(DataError, match=f"{name}' is no readable picture"):
            read_pictures([tmp_path / "whole.png", tmp_path / name])
    with pytest.raises(DataError, match=r"none\.png': there is no such picture"):
        read_pictures(tmp_path / "none.png")
    with pytest.raises(DataError, match="no readable picture"):
        read_pictures(tmp_path)


def test_wrong_arguments_are_errors(tmp_path: Path) -> None:
    draw().save(tmp_path / "p.png")
    with pytest.raises(InvalidInputError, match="paths"):
        read_pictures([])
    with pytest.raises(InvalidInputError, match="invert='maybe'"):
        read_pictures(tmp_path / "p.png", invert="maybe")
    with pytest.raises(InvalidInputError, match="size=28"):
        read_pictures(tmp_path / "p.png", size=28)  # type: ignore[arg-type]
    with pytest.raises(InvalidInputError, match="size=4"):
        read_pictures(tmp_path / "p.png", size=(4, 28))
