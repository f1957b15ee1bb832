"""A table prints the same cells everywhere."""

import csv
import io

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from constrained_cnn.errors import InvalidInputError
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
    assert "| conv [bold] \\| <b> | 1,152 |" in TABLE.to_markdown()
    assert "| **total** | **1,159** |" in TABLE.to_markdown()
    assert "conv [bold] | &lt;b&gt;" in TABLE.to_html()
    assert "A &amp; B" in TABLE._repr_html_()


def test_rich_shows_brackets_as_they_are() -> None:
    console = Console(file=io.StringIO(), width=80)
    console.print(TABLE)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "conv [bold] | <b>" in text
    assert "1,159" in text


cells = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=9)


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
