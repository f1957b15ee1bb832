"""Figures by their structure: what is drawn, where, and what the words on them say."""

import dataclasses
import itertools
import math
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import matplotlib.colors
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Text

from constrained_cnn import plots
from constrained_cnn.errors import InvalidInputError, OutputError
from constrained_cnn.plots._frame import spread
from constrained_cnn.record import RunRecord
from constrained_cnn.study import Sample
from constrained_cnn.training import EpochRow, History

DIGITS = tuple("0123456789")


def texts(figure: Figure) -> list[str]:
    """Every text of a figure that is not empty."""
    found = [text.get_text() for text in figure.findobj(Text) if isinstance(text, Text)]
    return [text for text in found if text]


def pixels(axes: Axes) -> Any:
    """The array an axes shows as an image; masked where it holds NaN."""
    return np.ma.masked_invalid(np.ma.asarray(axes.images[0].get_array()))


def heights(line: Line2D) -> list[float]:
    return [float(y) for y in np.asarray(line.get_ydata())]


def image_set(count: int, channels: int = 1, classes: tuple[str, ...] = DIGITS) -> SimpleNamespace:
    """Distinct images: image ``i`` is filled with ``i``, and of class ``i`` modulo the classes."""
    fill = torch.arange(count).view(-1, 1, 1, 1).expand(count, channels, 6, 5)
    return SimpleNamespace(
        images=fill.to(torch.uint8), labels=torch.arange(count) % len(classes), classes=classes
    )


def history(epochs: int = 3, **more: Any) -> list[dict[str, Any]]:
    return [
        {
            "epoch": epoch,
            "train_loss": 0.5 / epoch,
            "train_accuracy": 90.0 + epoch,
            "validation_loss": 0.3 / epoch,
            "validation_accuracy": 95.0 + epoch,
            "learning_rate": 0.01,
            "seconds": 1.0,
            **more,
        }
        for epoch in range(1, epochs + 1)
    ]


# Images


def test_sample_grid_shows_the_first_images_under_their_class_names() -> None:
    figure = plots.sample_grid(image_set(20), rows=3, columns=5)
    assert [axes.get_title() for axes in figure.axes] == [str(i % 10) for i in range(15)]
    for i, axes in enumerate(figure.axes):
        assert np.array_equal(pixels(axes), np.full((6, 5), i))
        assert axes.images[0].get_clim() == (0, 255)


def test_sample_grid_draws_by_seed_without_repeats() -> None:
    data = image_set(40)

    def drawn(seed: int) -> list[int]:
        figure = plots.sample_grid(data, seed=seed)
        return [int(pixels(axes)[0, 0]) for axes in figure.axes]

    assert drawn(1) == drawn(1) != drawn(2)
    assert len(set(drawn(1))) == 15
    titles = [axes.get_title() for axes in plots.sample_grid(data, seed=1).axes]
    assert titles == [str(i % 10) for i in drawn(1)]


def test_sample_grid_of_colour_images_and_of_few() -> None:
    figure = plots.sample_grid(image_set(4, channels=3), rows=2, columns=5)
    assert len(figure.axes) == 4
    assert pixels(figure.axes[2]).shape == (6, 5, 3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": torch.zeros(4, 6, 5, dtype=torch.uint8)}, "N, C, H, W"),
        ({"images": torch.zeros(4, 2, 6, 5, dtype=torch.uint8)}, "1 or 3 channels"),
        ({"images": torch.zeros(4, 1, 6, 5)}, "must be uint8"),
        ({"images": torch.zeros(0, 1, 6, 5, dtype=torch.uint8)}, "no images"),
        ({"labels": torch.arange(3)}, "3 values: must be 4"),
        ({"labels": torch.tensor([0, 1, 2, 10])}, r"data.labels\[3\]=10: .* from 0 to 9"),
        ({"labels": torch.tensor([0, 1, -1, 2])}, r"data.labels\[2\]=-1"),
    ],
)
def test_a_data_set_that_does_not_fit_is_refused(change: dict[str, Any], message: str) -> None:
    data = SimpleNamespace(**{**vars(image_set(4)), **change})
    with pytest.raises(InvalidInputError, match=message):
        plots.sample_grid(data)
    with pytest.raises(InvalidInputError, match=message):
        plots.misclassified(data, [0, 1, 2, 3])


@pytest.mark.parametrize("number", [0, -1, 1.5, True])
def test_grids_have_at_least_one_row_and_column(number: int) -> None:
    for name in ("rows", "columns"):
        with pytest.raises(InvalidInputError, match=f"{name}="):
            plots.sample_grid(image_set(4), **{name: number})
        with pytest.raises(InvalidInputError, match=f"{name}="):
            plots.misclassified(image_set(4), [0, 1, 2, 3], **{name: number})


def test_misclassified_shows_each_error_with_both_classes() -> None:
    data = image_set(12)
    predictions = data.labels.clone()
    predictions[[2, 7, 11]] = torch.tensor([5, 1, 0])
    figure = plots.misclassified(data, predictions)
    assert figure.get_suptitle() == "3 of 12 wrong"
    shown = [int(pixels(axes)[0, 0]) for axes in figure.axes]
    assert shown == [2, 7, 11]
    for axes, truth, answer in zip(figure.axes, "271", "510", strict=True):
        (true_text,) = axes.texts
        assert (true_text.get_text(), axes.get_title()) == (f"true: {truth}", f"pred: {answer}")
        assert true_text.get_color() != axes.title.get_color()


def test_misclassified_puts_the_most_confident_error_first() -> None:
    data = image_set(4, classes=("a", "b"))
    probabilities = torch.tensor([[0.4, 0.6], [0.9, 0.1], [0.1, 0.9], [0.3, 0.7]])
    figure = plots.misclassified(
        data, probabilities.argmax(1), probabilities=probabilities, columns=2, rows=1
    )
    assert figure.get_suptitle() == "3 of 4 wrong; the most confident 2"
    shown = [int(pixels(axes)[0, 0]) for axes in figure.axes]
    assert shown == [1, 2]
    assert [axes.get_title() for axes in figure.axes] == ["pred: a (90 %)", "pred: b (90 %)"]


def test_misclassified_takes_half_precision_probabilities() -> None:
    probabilities = torch.tensor([[0.25, 0.75]], dtype=torch.bfloat16)
    data = image_set(1, classes=("a", "b"))
    figure = plots.misclassified(data, [1], probabilities=probabilities)
    assert figure.axes[0].get_title() == "pred: b (75 %)"


def test_no_errors_are_said(tmp_path: Path) -> None:
    data = image_set(3)
    figure = plots.misclassified(data, data.labels)
    assert texts(figure) == ["0 of 3 wrong"]
    plots.save_figure(figure, tmp_path / "none.png")


@pytest.mark.parametrize(
    ("predictions", "probabilities", "message"),
    [
        ([0, 1], None, "predictions: 2 values: must be 3"),
        ([0, 1, 2], None, r"predictions\[2\]=2"),
        (torch.zeros(3, 2), None, "argmax"),
        ([0.0, 1.0, 0.0], None, "class number"),
        ([0, 1, 0], torch.zeros(3), "probabilities: shape"),
        ([0, 1, 0], torch.tensor([[2.0, -1.0]] * 3), "softmax"),
        ([0, 1, 0], torch.full((3, 2), math.nan), "from 0 to 1"),
    ],
)
def test_misclassified_refuses_what_does_not_fit(
    predictions: Any, probabilities: Any, message: str
) -> None:
    with pytest.raises(InvalidInputError, match=message):
        plots.misclassified(
            image_set(3, classes=("a", "b")), predictions, probabilities=probabilities
        )


# Curves


def lines(figure: Figure) -> list[dict[str, tuple[list[float], list[float]]]]:
    """The data of each axes' lines, by label."""
    return [
        {
            str(line.get_label()): (np.asarray(line.get_xdata()).tolist(), heights(line))
            for line in axes.lines
        }
        for axes in figure.axes
    ]


def test_curves_draw_the_history() -> None:
    rows = history()
    figure = plots.curves(rows, title="seed 0")
    loss, accuracy = lines(figure)
    assert loss["train"] == ([1, 2, 3], [row["train_loss"] for row in rows])
    assert loss["validation"] == ([1, 2, 3], [row["validation_loss"] for row in rows])
    assert accuracy["train"] == ([1, 2, 3], [91.0, 92.0, 93.0])
    assert accuracy["validation"] == ([1, 2, 3], [96.0, 97.0, 98.0])
    assert figure.get_suptitle() == "seed 0"
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert legend == ["train", "validation"]


def test_curves_annotate_the_last_values() -> None:
    said = texts(plots.curves(history()))
    assert {"0.1667", "0.1000", "93.00 %", "98.00 %"} <= set(said)


def test_a_test_set_read_every_epoch_is_called_optimistic() -> None:
    figure = plots.curves(history(test_loss=0.02, test_accuracy=99.1))
    label = "test (read every epoch: optimistic if chosen on)"
    assert lines(figure)[1][label] == ([1, 2, 3], [99.1] * 3)
    assert label in texts(figure)


def test_missing_values_are_left_out() -> None:
    rows = history(4)
    rows[0]["validation_loss"] = rows[2]["validation_loss"] = None
    del rows[1]["train_accuracy"]
    loss, accuracy = lines(plots.curves(rows))
    assert loss["validation"] == ([2, 4], [0.15, 0.075])
    assert accuracy["train"][0] == [1, 3, 4]


def test_a_regression_has_one_panel() -> None:
    rows = history(train_accuracy=None, validation_accuracy=None)
    (axes,) = plots.curves(rows).axes
    assert axes.get_ylabel() == "loss (log scale)"


def test_one_epoch_is_a_point_one_can_see() -> None:
    figure = plots.curves(history(1))
    for axes in figure.axes:
        for line in axes.lines:
            assert line.get_marker() not in ("", "None", None)
            assert line.get_markevery() == 1


def test_a_negative_loss_is_drawn_on_a_linear_scale() -> None:
    figure = plots.curves([{"epoch": 1, "train_loss": -0.5}, {"epoch": 2, "train_loss": -1.5}])
    assert figure.axes[0].get_yscale() == "linear"
    assert figure.axes[0].get_ylabel() == "loss"


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_diverged_run_can_be_drawn(bad: float, tmp_path: Path) -> None:
    rows = history()
    rows[2]["train_loss"] = bad
    figure = plots.curves(rows)
    assert f"{bad:.4f}" in texts(figure)
    plots.save_figure(figure, tmp_path / "diverged.png")
    lost = plots.curves([{"epoch": 1, "train_loss": bad}])
    plots.save_figure(lost, tmp_path / "lost.png")


def test_accuracy_up_to_100_stays_on_its_scale(tmp_path: Path) -> None:
    rows = [{"epoch": i, "train_accuracy": a} for i, a in enumerate([0.0, 60.0, 98.0, 99.9, 100.0])]
    figure = plots.curves(rows)
    axes = figure.axes[0]
    assert axes.get_yscale() == "function"
    placed = axes.transData.transform([(0, row["train_accuracy"]) for row in rows])[:, 1]
    assert np.all(np.isfinite(placed))
    assert np.all(np.diff(placed) > 0)
    # What the stretch is for: 98 to 99.9 takes more room than 60 to 98 would leave it.
    assert placed[3] - placed[2] > 0.25 * (placed[4] - placed[0])
    plots.save_figure(figure, tmp_path / "scale.png")


@pytest.mark.parametrize("values", [[20.0, 34.0], [99.2, 99.4], [50.0]])
def test_a_narrow_range_of_accuracy_keeps_the_linear_scale(values: list[float]) -> None:
    rows = [{"epoch": i, "train_accuracy": value} for i, value in enumerate(values)]
    assert plots.curves(rows).axes[0].get_yscale() == "linear"


def test_every_form_of_history_is_the_same() -> None:
    rows = history()
    record = RunRecord(
        recipe="r",
        model="m",
        seed=0,
        status="finished",
        parameters=1,
        epochs=3,
        config={},
        data={},
        history=rows,
    )
    forms = (rows, tuple(rows), iter(rows), SimpleNamespace(rows=rows), record)
    assert all(lines(plots.curves(form)) == lines(plots.curves(rows)) for form in forms)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "no epoch"),
        (3, "no epoch"),
        ([1], r"history\[0\]=1: must be a mapping"),
        ([{"train_loss": 0.1}], r"'epoch'\]=None"),
        ([{"epoch": 1, "seconds": 2.0}], "no row has a loss or an accuracy"),
        ([{"epoch": 1, "train_loss": "low"}], "train_loss='low' in epoch 1"),
        ([{"epoch": 1, "train_accuracy": 101.0}], "in percent, 0 to 100"),
    ],
)
def test_curves_refuse_what_is_no_history(rows: Any, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        plots.curves(rows)
    with pytest.raises(InvalidInputError, match=message.replace("history", r"runs\['bad'\]")):
        # The values of a row are named alone: the message need not say which run.
        plots.compare({"good": history(), "bad": rows})


def test_compare_puts_runs_side_by_side_on_one_scale() -> None:
    worse = [{**row, "train_loss": 2 * row["train_loss"]} for row in history(5)]
    figure = plots.compare({"ReLU-BN": history(), "BN-ReLU": worse})
    assert len(figure.axes) == 4
    one, two, three, four = figure.axes
    assert (one.get_title(), two.get_title()) == ("ReLU-BN", "BN-ReLU")
    assert one.get_ylim() == two.get_ylim()
    assert three.get_ylim() == four.get_ylim()
    assert one.get_xlim() == four.get_xlim()
    assert lines(figure)[1]["train"] == (
        [1, 2, 3, 4, 5],
        [row["train_loss"] for row in worse],
    )
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["train", "validation"]


def test_compare_needs_two_runs() -> None:
    with pytest.raises(InvalidInputError, match="two or more"):
        plots.compare({"alone": history()})


@given(st.lists(st.floats(0, 200), min_size=1, max_size=6), st.floats(1, 20))
def test_labels_are_spread_in_order(positions: list[float], gap: float) -> None:
    positions.sort()
    moved = spread(positions, gap=gap)
    assert all(b - a >= gap - 1e-6 for a, b in itertools.pairwise(moved))
    assert sum(moved) == pytest.approx(sum(positions), abs=1e-6)


def test_end_labels_do_not_overlap(tmp_path: Path) -> None:
    rows = history(validation_accuracy=99.31, test_accuracy=99.33, train_accuracy=99.3)
    figure = plots.curves(rows)
    plots.save_figure(figure, tmp_path / "labels.png")
    boxes = [text.get_window_extent() for text in figure.axes[1].texts]
    assert len(boxes) == 3
    assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))


# Results


@pytest.mark.parametrize("count", [2, 10, 20])
def test_confusion_counts_every_pair(count: int) -> None:
    rng = np.random.default_rng(count)
    targets = rng.integers(0, count, 500)
    predictions = np.where(rng.random(500) < 0.8, targets, rng.integers(0, count, 500))
    expected: dict[tuple[int, int], int] = {}
    for target, prediction in zip(targets.tolist(), predictions.tolist(), strict=True):
        expected[target, prediction] = expected.get((target, prediction), 0) + 1
    classes = [f"class {i}" for i in range(count)]
    figure = plots.confusion(torch.tensor(targets), predictions, classes)
    axes = figure.axes[0]
    cells = {
        (round(t.get_position()[1]), round(t.get_position()[0])): int(t.get_text())
        for t in axes.texts
    }
    assert cells == expected
    assert [label.get_text() for label in axes.get_yticklabels()] == classes
    wrong = sum(n for (true, predicted), n in expected.items() if true != predicted)
    assert axes.get_title().startswith(f"{wrong} of 500 wrong")


def test_confusion_colours_errors_and_not_the_diagonal() -> None:
    targets = [0] * 990 + [1] * 10
    predictions = [0] * 989 + [1] + [1] * 9 + [0]
    axes = plots.confusion(targets, predictions, ("a", "b")).axes[0]
    colours = axes.images[0].to_rgba(pixels(axes))
    assert np.allclose(colours[0, 0], colours[1, 1])
    assert np.allclose(pixels(axes).filled(0), [[0.0, 100 / 990], [10.0, 0.0]])
    rare, often = (matplotlib.colors.rgb_to_hsv(c[:3])[1] for c in (colours[0, 1], colours[1, 0]))
    assert often > rare


def test_confusion_without_errors(tmp_path: Path) -> None:
    figure = plots.confusion([0, 0], [0, 0], ("a", "b"))
    assert figure.axes[0].get_title() == "0 of 2 wrong (accuracy 100.00 %)"
    assert len(figure.axes) == 1  # no colour bar: there is nothing to colour
    plots.save_figure(figure, tmp_path / "right.png")


def test_confusion_needs_two_classes() -> None:
    with pytest.raises(InvalidInputError, match="two or more"):
        plots.confusion([0, 0], [0, 0], ("a",))


def test_confusion_writes_readably_on_every_colour() -> None:
    targets = np.repeat(np.arange(10), 100)
    predictions = targets.copy()
    for i in range(10):
        predictions[100 * i : 100 * i + 9 * i] = (i + 1) % 10
    axes = plots.confusion(targets, predictions, DIGITS).axes[0]
    colours = axes.images[0].to_rgba(pixels(axes))

    def luminance(colour: Any) -> float:
        channels = np.array(matplotlib.colors.to_rgb(colour))
        linear = np.where(
            channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4
        )
        return float(linear @ [0.2126, 0.7152, 0.0722])

    for text in axes.texts:
        column, row = (round(value) for value in text.get_position())
        pair = sorted((luminance(text.get_color()), luminance(colours[row, column])))
        # WCAG's least contrast of large or bold text is 3.
        assert (pair[1] + 0.05) / (pair[0] + 0.05) >= 3


@pytest.mark.parametrize(
    ("targets", "predictions", "message"),
    [
        ([], [], "targets: empty"),
        ([0, 1], [0], "predictions: 1 values: must be 2"),
        ([0, 2], [0, 1], r"targets\[1\]=2: must be a class number from 0 to 1"),
        ([0, 1], [0, -1], r"predictions\[1\]=-1"),
        ([[0], [1]], [0, 1], "one class number a sample"),
    ],
)
def test_confusion_refuses_what_does_not_fit(targets: Any, predictions: Any, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        plots.confusion(targets, predictions, ("a", "b"))


def test_seeds_draw_one_dot_each_with_mean_and_interval() -> None:
    sample = Sample((99.39, 99.52, 99.46), seeds=(4, 7, 9))
    axes = plots.seeds(sample, reference=99.4).axes[0]
    mean, dots, reference = axes.lines
    assert tuple(heights(dots)) == sample.values
    assert set(heights(mean)) == {sample.mean}
    assert set(heights(reference)) == {99.4}
    (band,) = axes.patches
    box = band.get_extents().transformed(axes.transData.inverted())
    assert (box.y0, box.y1) == pytest.approx((sample.interval().low, sample.interval().high))
    assert [label.get_text() for label in axes.get_xticklabels()] == ["4", "7", "9"]
    assert [text.get_text() for text in axes.texts] == ["≥ 99.4: 2 of 3", "mean"]


def test_seeds_of_one_run_and_of_many() -> None:
    axes = plots.seeds(Sample((99.4,))).axes[0]
    assert not axes.patches
    assert axes.get_xlabel() == "run"
    many = plots.seeds(Sample(tuple(range(100)), unit="", seeds=range(100))).axes[0]
    assert [label.get_text() for label in many.get_xticklabels()][:3] == ["0", "5", "10"]
    assert many.get_ylabel() == "accuracy"


def test_seeds_refuse_what_is_no_sample() -> None:
    with pytest.raises(InvalidInputError, match=r"must be a study\.Sample"):
        plots.seeds([99.4, 99.5])  # type: ignore[arg-type]
    with pytest.raises(InvalidInputError, match="reference=nan"):
        plots.seeds(Sample((99.4,)), reference=math.nan)


# Files


@pytest.mark.parametrize(
    ("name", "start"), [("a.png", b"\x89PNG"), ("a.SVG", b"<?xml"), ("new/a.pdf", b"%PDF")]
)
def test_the_suffix_gives_the_format(tmp_path: Path, name: str, start: bytes) -> None:
    path = plots.save_figure(plots.sample_grid(image_set(2)), tmp_path / name)
    assert path == tmp_path / name
    assert path.read_bytes().startswith(start)
    assert [file.name for file in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("name", ["a.jpg", "a", "a.png.gz", ".png"])
def test_other_suffixes_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(InvalidInputError, match=r"must end in \.png, \.svg or \.pdf"):
        plots.save_figure(Figure(), tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_a_file_that_cannot_be_replaced_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"old")

    def no_space(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", no_space)
    with pytest.raises(OutputError, match="No space left"):
        plots.save_figure(plots.sample_grid(image_set(2)), path)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_in_the_way_is_an_output_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError):
        plots.save_figure(plots.sample_grid(image_set(2)), tmp_path / "file" / "a.png")


def test_names_are_written_as_they_are(tmp_path: Path) -> None:
    # A dollar sign would start a formula, and a bad one fails when the figure is drawn.
    names = (r"$\nonsense$", "_hidden", "a & <b>")
    figures = [
        plots.sample_grid(image_set(3, classes=names)),
        plots.misclassified(image_set(3, classes=names), [1, 2, 0]),
        plots.confusion([0, 1, 2], [1, 2, 0], names),
        plots.compare({names[0]: history(), names[1]: history()}),
        plots.curves(history(), title=names[0]),
        plots.seeds(Sample((1.0, 2.0), name=names[0])),
    ]
    for figure in figures:
        plots.save_figure(figure, tmp_path / "names.svg")


def test_pyplot_is_never_loaded_nor_anything_before_it_is_used(tmp_path: Path) -> None:
    code = """
import sys
import numpy as np
from types import SimpleNamespace
from constrained_cnn import plots
from constrained_cnn.study import Sample
assert not {"matplotlib", "sklearn", "scipy", "torch"} & set(sys.modules)
data = SimpleNamespace(images=np.zeros((2, 1, 4, 4), np.uint8), labels=[0, 1], classes="ab")
rows = [{"epoch": 1, "train_loss": 1.0}]
for figure in (
    plots.sample_grid(data), plots.misclassified(data, [1, 0]), plots.curves(rows),
    plots.compare({"a": rows, "b": rows}), plots.confusion([0, 1], [1, 0], "ab"),
    plots.seeds(Sample((1.0, 2.0))),
):
    plots.save_figure(figure, sys.argv[1])
assert "matplotlib.pyplot" not in sys.modules
"""
    command = [sys.executable, "-c", code, str(tmp_path / "figure.png")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_curves_takes_what_fit_returns() -> None:
    row = EpochRow(
        epoch=1,
        train_loss=0.5,
        train_accuracy=80.0,
        validation_loss=None,
        validation_accuracy=None,
        learning_rate=0.1,
        seconds=1.0,
    )
    history = History((row, dataclasses.replace(row, epoch=2, train_loss=0.25)))
    axes = plots.curves(history).axes[0]
    assert np.asarray(axes.lines[0].get_ydata()).tolist() == [0.5, 0.25]
