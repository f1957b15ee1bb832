"""Figures made of images: a sample of a data set, and what a model got wrong."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from constrained_cnn.errors import InvalidInputError, check_integer
from constrained_cnn.plots._frame import BLUE, SMALL, VERMILION, new_figure
from constrained_cnn.plots._labels import class_numbers, to_array

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["LabelledImages", "misclassified", "sample_grid"]


class LabelledImages(Protocol):
    """What the figures need of a data set; :class:`~constrained_cnn.data.ImageSet` has it."""

    @property
    def images(self) -> Any:
        """The images, uint8, (N, C, H, W), with one channel or three."""

    @property
    def labels(self) -> Any:
        """The class numbers, integers, (N,)."""

    @property
    def classes(self) -> Sequence[str]:
        """The class names, by class number."""


def sample_grid(
    data: LabelledImages, *, rows: int = 3, columns: int = 5, seed: int | None = None
) -> "Figure":
    """Draw images of a data set under the names of their classes, as stored: not augmented.

    Args:
        data: The data set; images (N, C, H, W) of one channel or three.
        rows: Rows of images, at most.
        columns: Columns of images, at most.
        seed: Draws the images at random, each at most once; None takes the first ones.

    Returns:
        A figure with one axes an image, fewer than ``rows * columns`` if ``data`` is smaller.

    Raises:
        InvalidInputError: If ``data`` is empty, its labels do not fit it, its images are not
            uint8 with one channel or three, or the numbers are out of range.

    Examples:
        >>> from types import SimpleNamespace
        >>> images = np.zeros((2, 1, 8, 8), dtype=np.uint8)
        >>> data = SimpleNamespace(images=images, labels=[1, 0], classes=("cat", "dog"))
        >>> [axes.get_title() for axes in sample_grid(data).axes]
        ['dog', 'cat']
    """
    rows = check_integer("rows", rows, minimum=1)
    columns = check_integer("columns", columns, minimum=1)
    labels = _labels_of(data)
    shown = np.arange(len(labels))
    if seed is not None:
        shown = np.random.default_rng(check_integer("seed", seed, minimum=0)).permutation(shown)
    shown = shown[: rows * columns]
    names = [data.classes[label] for label in labels[shown]]
    figure, grid = _grid(len(shown), columns, tile=_tile(names), caption=0.2)
    for axes, index, name in zip(grid, shown, names, strict=True):
        _draw(axes, data.images[int(index)])
        axes.set_title(name, fontsize=SMALL + 1, parse_math=False)
    return figure


def misclassified(
    data: LabelledImages,
    predictions: Any,
    *,
    rows: int = 4,
    columns: int = 8,
    probabilities: Any = None,
) -> "Figure":
    """Draw the images a model got wrong, with the true class and the predicted one.

    Args:
        data: The data set the model was evaluated on; images (N, C, H, W).
        predictions: The predicted class numbers, (N,), in the order of ``data``.
        rows: Rows of images, at most.
        columns: Columns of images, at most.
        probabilities: The predicted probabilities, (N, classes), 0 to 1. With them the most
            confident errors come first and their confidence is shown; without, the order is that
            of ``data``.

    Returns:
        A figure whose title counts the errors; it says so too if there are none.

    Raises:
        InvalidInputError: If ``data`` is empty, the lengths differ, a class number or probability
            is out of range, or the images are not uint8 with one channel or three.

    Examples:
        >>> from types import SimpleNamespace
        >>> images = np.zeros((3, 1, 8, 8), dtype=np.uint8)
        >>> data = SimpleNamespace(images=images, labels=[1, 0, 1], classes=("cat", "dog"))
        >>> misclassified(data, [1, 1, 1]).get_suptitle()
        '1 of 3 wrong'
    """
    rows = check_integer("rows", rows, minimum=1)
    columns = check_integer("columns", columns, minimum=1)
    labels = _labels_of(data)
    classes = len(data.classes)
    predicted = class_numbers("predictions", predictions, classes=classes, count=len(labels))
    wrong = np.flatnonzero(predicted != labels)
    confidence = None
    if probabilities is not None:
        confidence = _confidence(probabilities, predicted, classes)
        wrong = wrong[np.argsort(-confidence[wrong], kind="stable")]
    title = f"{len(wrong):,} of {len(labels):,} wrong"
    if not len(wrong):
        figure = new_figure(4, 1)
        figure.suptitle(title, y=0.5, va="center")
        return figure

    shown = wrong[: rows * columns]
    if len(shown) < len(wrong):
        which = "the first" if confidence is None else "the most confident"
        title += f"; {which} {len(shown):,}"
    truths = [f"true: {data.classes[label]}" for label in labels[shown]]
    answers = [f"pred: {data.classes[label]}" for label in predicted[shown]]
    if confidence is not None:
        shares = 100 * confidence[shown]
        answers = [f"{a} ({s:.0f} %)" for a, s in zip(answers, shares, strict=True)]
    figure, grid = _grid(
        len(shown), columns, tile=_tile(truths + answers), caption=0.35, heading=0.35
    )
    figure.suptitle(title)
    for axes, index, truth, answer in zip(grid, shown, truths, answers, strict=True):
        _draw(axes, data.images[int(index)])
        # Two texts, because one text has one colour.
        axes.set_title(answer, fontsize=SMALL, color=VERMILION, parse_math=False, pad=3)
        axes.annotate(
            truth,
            (0.5, 1),
            xytext=(0, 4 + 1.2 * SMALL),
            xycoords="axes fraction",
            textcoords="offset points",
            ha="center",
            fontsize=SMALL,
            color=BLUE,
            parse_math=False,
        )
    return figure


def _labels_of(data: LabelledImages) -> NDArray[np.int64]:
    """Return the labels of ``data`` once it is known that they and the images fit the figures."""
    shape = tuple(data.images.shape)
    if len(shape) != 4 or shape[1] not in (1, 3):
        raise InvalidInputError(
            f"data.images: shape {shape}: must be (N, C, H, W) with 1 or 3 channels to be drawn"
        )
    if not str(data.images.dtype).endswith("uint8"):
        raise InvalidInputError(f"data.images: {data.images.dtype}: must be uint8, 0 to 255")
    if shape[0] == 0:
        raise InvalidInputError("data: holds no images: there is nothing to draw")
    return class_numbers("data.labels", data.labels, classes=len(data.classes), count=shape[0])


def _confidence(
    probabilities: Any, predicted: NDArray[np.int64], classes: int
) -> NDArray[np.float64]:
    """Return the probability given to each predicted class."""
    if hasattr(probabilities, "detach"):
        probabilities = probabilities.detach().float()  # NumPy knows no bfloat16
    array = to_array(probabilities).astype(np.float64)
    if array.shape != (len(predicted), classes):
        raise InvalidInputError(
            f"probabilities: shape {array.shape}: must be {(len(predicted), classes)}, "
            "one row a sample and one column a class"
        )
    # A softmax in single precision may end a rounding above 1.
    if not bool(np.all((array >= 0) & (array <= 1 + 1e-5))):
        raise InvalidInputError(
            "probabilities: must lie from 0 to 1 (of logits take .softmax(1), "
            "of log-probabilities .exp())"
        )
    return array[np.arange(len(predicted)), predicted]


def _tile(texts: Sequence[str]) -> float:
    """Return the width in inches that lets neighbouring texts stand apart."""
    return max(1.0, 0.15 + 0.075 * max(len(text) for text in texts))


def _grid(
    count: int, columns: int, *, tile: float, caption: float, heading: float = 0.0
) -> tuple["Figure", list["Axes"]]:
    """Return a figure with ``count`` axes, ``columns`` a row; lengths are in inches."""
    columns = min(columns, count)
    rows = math.ceil(count / columns)
    figure = new_figure(columns * tile, rows * (1.0 + caption) + heading)
    return figure, [figure.add_subplot(rows, columns, i + 1) for i in range(count)]


def _draw(axes: "Axes", image: Any) -> None:
    pixels = to_array(image).transpose(1, 2, 0)
    if pixels.shape[2] == 1:
        axes.imshow(pixels[:, :, 0], cmap="gray", vmin=0, vmax=255)
    else:
        axes.imshow(pixels)
    axes.set_axis_off()
