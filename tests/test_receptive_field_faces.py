"""How receptive fields print: the table, the sheet, a line."""

import csv
import io
from dataclasses import replace

import pytest
import torch
import torchvision
from torch import Tensor, nn

from constrained_cnn.errors import InvalidInputError
from constrained_cnn.receptive_field import ReceptiveField, measure_receptive_field

NORMED = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.GroupNorm(2, 8), nn.Conv2d(8, 8, 3))


class Excited(nn.Module):
    """A convolution, squeeze-excite, a convolution, the mean."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, 2)
        self.gate = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.one(x)
        return self.two(x * self.gate(x.mean((2, 3))).sigmoid()[:, :, None, None]).mean((2, 3))


def rows_of(field: ReceptiveField, *axis: int) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(field.to_csv(*axis))))


@pytest.mark.parametrize(
    ("model", "shape"),
    [
        (NORMED, (3, 32, 32)),
        (Excited(), (3, 32, 32)),
        (torchvision.models.vit_b_16(), (3, 224, 224)),
        (torchvision.models.efficientnet_b0(), (3, 64, 64)),
        (nn.Sequential(nn.Conv1d(2, 2, 3), nn.Flatten(), nn.Linear(8, 2)), (2, 6)),
    ],
    ids=lambda value: type(value).__name__,
)
def test_no_cell_says_none(model: nn.Module, shape: tuple[int, ...]) -> None:
    field = measure_receptive_field(model, shape)
    for table in (field.table(), field.sheet()):
        assert not [cell for row in table.rows for cell in row if "None" in cell]
        assert all(table.headings)


def test_gates_are_left_out_and_the_row_says_so() -> None:
    field = measure_receptive_field(NORMED, (3, 32, 32))
    first, second = rows_of(field)
    assert (first["jump"], first["r"], first["remark"]) == ("1", "3", "")
    assert (second["jump"], second["r"], second["remark"]) == ("1", "5", "gates left out")
    assert [row[-1] for row in field.table().rows] == ["", "gates left out"]
    assert [row[2] for row in field.table().rows] == ["3", "5"]
    assert "all 32; with gates left out 5 of 32, jump 1, start -1" in str(field)


def test_the_mean_is_a_row_as_long_as_the_axis() -> None:
    *_, last = rows_of(measure_receptive_field(Excited(), (3, 32, 32)))
    assert [last[key] for key in ("n_in", "k", "p", "s", "n_out", "r")] == [
        "15",
        "15",
        "-",
        "-",
        "1",
        "all",
    ]


def test_the_table_lists_what_slides_or_changes_alone() -> None:
    model = torchvision.models.efficientnet_b0()
    field = measure_receptive_field(model, (3, 224, 224))
    listed = [row[0] for row in field.table().rows]
    placed = [name for name, part in model.named_modules() if isinstance(part, nn.Conv2d)]
    gates = [name for name in placed if name.endswith(("fc1", "fc2"))]
    pools = [n for n, part in model.named_modules() if isinstance(part, nn.AdaptiveAvgPool2d)]
    assert sorted(name.split(":")[0] for name in listed) == sorted({*placed, *pools} - set(gates))


def test_rows_for_each_change_of_units() -> None:
    net = nn.Sequential(
        nn.MaxPool2d(2),
        nn.ConvTranspose2d(1, 1, 2, stride=2),
        nn.ReLU(),
        nn.Upsample(scale_factor=2),
        nn.AdaptiveAvgPool2d(7),
        nn.AdaptiveAvgPool2d(3),
        nn.AdaptiveAvgPool2d(1),
    )
    rows = rows_of(measure_receptive_field(net, (1, 28, 28)))
    kinds = ("n_in", "k", "p", "s", "d", "n_out", "jump")
    assert [tuple(row[kind] for kind in kinds) for row in rows] == [
        ("28", "2", "0", "2", "1", "14", "2"),
        ("14", "2", "0", "2", "1", "28", "1"),
        ("28", "-", "-", "-", "-", "56", "1/2"),
        ("56", "8", "0", "8", "1", "7", "4"),
        ("7", "-", "-", "-", "-", "3", "28/3"),
        ("3", "3", "-", "-", "-", "1", "-"),
    ]


def test_axes_that_differ_have_rows_of_their_own() -> None:
    net = nn.Sequential(nn.Conv2d(1, 2, (3, 7), stride=(1, 2)), nn.Conv2d(2, 2, (1, 3)))
    field = measure_receptive_field(net, (1, 28, 28))
    every = rows_of(field)
    assert [(row["axis"], row["n_out"], row["r"]) for row in every] == [
        ("0", "26", "3"),
        ("0", "26", "3"),
        ("1", "11", "7"),
        ("1", "9", "11"),
    ]
    assert [row["r"] for row in rows_of(field, 1)] == ["7", "11"]
    assert "axis" not in rows_of(field, 0)[0]
    assert str(field).endswith(
        "axis 0: 3 of 28, jump 1, start 0; axis 1: 11 of 28, jump 2, start 0"
    )
    with pytest.raises(InvalidInputError, match="axis=2"):
        field.sheet(2)


def test_axes_that_agree_are_said_once() -> None:
    field = measure_receptive_field(nn.Conv2d(1, 2, 3), (1, 28, 28))
    assert str(field) == "Conv2d at conv2d: 3 of 28, jump 1, start 0"
    assert field.sheet().headings[1] == "n_in"


def test_units_are_said_for_each_axis() -> None:
    cube = measure_receptive_field(nn.Conv3d(1, 2, 3), (1, 16, 16, 16))
    assert cube.table().rows[0][1:3] == ("14 x 14 x 14", "3")
    line = measure_receptive_field(nn.Conv1d(1, 2, 3), (1, 16))
    assert line.table().rows[0][1] == "14"


def test_the_sheet_ends_at_the_layer_that_was_asked_for() -> None:
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Conv2d(2, 2, 3), nn.Conv2d(2, 2, 3))
    for layer, last in (("1", "0: conv2d"), ("2", "2: conv2d"), ("2: conv2d", "2: conv2d")):
        field = measure_receptive_field(net, (1, 28, 28), layer=layer)
        assert rows_of(field)[-1]["layer"] == last
        assert field.table().rows[-1][0] == last
        assert len(field.layers) == 4
    assert len(rows_of(measure_receptive_field(net, (1, 28, 28)))) == 3


def test_a_line_says_padding_and_who_is_first_to_see_all() -> None:
    net = nn.Sequential(*(nn.Conv2d(1, 1, 9, padding=4) for _ in range(4)))
    field = measure_receptive_field(net, (1, 28, 28))
    assert "33 (image: 28)" in str(field)
    first = next(row for row in field.layers if all(axis.sees_all for axis in row.axes))
    assert str(field).endswith(f"; first to see the whole image: {first.name}")


def test_a_notebook_shows_title_and_line() -> None:
    field = measure_receptive_field(NORMED, (3, 32, 32))
    html = field._repr_html_()
    assert "<caption>Sequential on 3 x 32 x 32</caption>" in html
    assert f"<p>{field}</p>" in html


def test_what_cannot_be_said_is_a_note() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(1, 1, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x), torch.special.bessel_j1(x)  # type: ignore[return-value]

    field = measure_receptive_field(Odd(), (1, 9, 9), layer="conv", strict=False)
    assert field.table().note == ""  # it comes later
    whole = replace(field, shown=None)
    assert "What special_bessel_j1 sees cannot be said" in whole.table().note
