"""A table prints the same cells everywhere."""

import csv
import io

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from constrained_cnn.errors import InvalidInputError, escape_controls
from constrained_cnn.table import Table, say_bytes

TABLE = Table(
    ("<layer", "MACs"),
    (("conv [bold] | <b>", "1,152"), ("", "7")),
    totals=("total", "1,159"),
    title="A & B",
)


def test_plain() -> None:
    assert str(TABLE).splitlines() == [
        "A & B",
        "layer               MACs",
        "-----------------  -----",
        "conv [bold] | <b>  1,152",
        "                       7",
        "-----------------  -----",
        "total              1,159",
    ]


def test_markdown_and_html_escape_what_would_be_read_as_marks() -> None:
    assert "| conv [bold] \\| &lt;b> | 1,152 |" in TABLE.to_markdown()
    assert "| **total** | **1,159** |" in TABLE.to_markdown()
    assert "conv [bold] | &lt;b&gt;" in TABLE.to_html()
    assert "A &amp; B" in TABLE._repr_html_()


def test_rich_shows_brackets_as_they_are() -> None:
    console = Console(file=io.StringIO(), width=80)
    console.print(TABLE)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "conv [bold] | <b>" in text
    assert "1,159" in text


WIDE = Table(
    ("<layer", "<output", "parameters", "MACs", "bias", "norm"),
    (
        ("stage_1.block.0.conv: conv2d", "16 x 112 x 112", "1,234", "123,456,789", "12", ""),
        ("head", "10", "7", "7", "0", ""),
    ),
    totals=("total", "", "1,241", "123,456,796", "12", "0"),
    may_go=("bias", "output"),
    note="A note.",
)


def shown(table: Table, width: int) -> list[str]:
    console = Console(file=io.StringIO(), width=width)
    console.print(table)
    return console.file.getvalue().splitlines()  # type: ignore[attr-defined]


@given(width=st.integers(12, 130))
def test_no_terminal_breaks_a_number_or_a_heading(width: int) -> None:
    lines = shown(WIDE, width)
    assert all(len(line) <= width for line in lines)
    headings = lines[0].split()
    assert set(headings) <= set(WIDE.headings)
    numbers = {cell for row in (*WIDE.rows, WIDE.totals) for cell in row[2:]}
    table = lines[: next(i for i, line in enumerate(lines) if line.startswith("total")) + 1]
    words = {word for line in table for word in line.split() if "," in word}
    assert words <= numbers
    said = {h for i, h in enumerate(WIDE.headings) if any(row[i] for row in WIDE.rows)}
    gone = said - set(headings)  # a column that says nothing is not missed
    text = " ".join(lines)
    assert all(heading in text for heading in gone)
    assert ("Left out" in text) == bool(gone)


@pytest.mark.parametrize(
    ("width", "headings"),
    [
        (120, ["layer", "output", "parameters", "MACs", "bias", "norm"]),
        (67, ["layer", "output", "parameters", "MACs", "bias"]),  # what is empty goes first
        (63, ["layer", "output", "parameters", "MACs"]),
        (50, ["layer", "parameters", "MACs"]),  # names fold before what must stay goes
        (34, ["layer", "parameters", "MACs"]),
        (30, ["layer", "parameters"]),
    ],
)
def test_columns_go_in_the_order_that_was_stated(width: int, headings: list[str]) -> None:
    assert shown(WIDE, width)[0].split() == headings


def test_a_file_has_the_whole_table_and_its_note() -> None:
    for text in (str(WIDE), WIDE.to_markdown(), WIDE.to_html()):
        assert all(heading in text for heading in WIDE.headings)
        assert "A note." in text
    assert "A note." not in WIDE.to_csv()


def test_a_column_that_may_go_must_be_there() -> None:
    for heading in ("MACs!", "layer"):
        with pytest.raises(InvalidInputError, match="must be a heading of this table"):
            Table(("<layer", "MACs"), (), may_go=(heading,))


cells = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=9).filter(
    lambda cell: escape_controls(cell) == cell
)


@given(rows=st.lists(st.tuples(cells, st.integers(-(10**9), 10**9)), max_size=5))
def test_csv_reads_back(rows: list[tuple[str, int]]) -> None:
    table = Table(("<name", "number"), tuple((name, f"{number:,}") for name, number in rows))
    (_, *back) = csv.reader(io.StringIO(table.to_csv()))
    for (name, number), (said, digits) in zip(rows, back, strict=True):
        assert digits == str(number)
        assert said in (name, name.replace(",", ""))


def test_a_row_of_the_wrong_length() -> None:
    with pytest.raises(InvalidInputError, match="must have 2 cells"):
        Table(("a", "b"), (("1",),))


@pytest.mark.parametrize(
    ("count", "said"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.00 kB"), (25_088, "25.1 kB"), (137_000_000, "137 MB")],
)
def test_bytes_as_people_read_them(count: int, said: str) -> None:
    assert say_bytes(count) == said
