"""A table that prints everywhere: terminal, notebook, Markdown, CSV. Knows nothing of networks."""

import csv
import html
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from constrained_cnn.errors import InvalidInputError

if TYPE_CHECKING:
    import rich.table

__all__ = ["Table", "say_bytes"]


@dataclass(frozen=True)
class Table:
    """Rows of cells under a heading, each cell already a text.

    Attributes:
        columns: The heading of each column; one that begins with ``<`` is set to the left, the
            others to the right, as numbers are.
        rows: The rows.
        totals: A last row, set apart; empty for none.
        title: A line above it.

    Raises:
        InvalidInputError: If a row has not one cell for each column.

    Examples:
        >>> print(Table(("<layer", "MACs"), (("conv", "1,152"),), totals=("total", "1,152")))
        layer   MACs
        -----  -----
        conv   1,152
        -----  -----
        total  1,152
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    totals: tuple[str, ...] = ()
    title: str = ""

    def __post_init__(self) -> None:
        for row in (*self.rows, *([self.totals] if self.totals else [])):
            if len(row) != len(self.columns):
                raise InvalidInputError(
                    f"row={row!r}: must have {len(self.columns)} cells, one for each column"
                )

    @property
    def headings(self) -> tuple[str, ...]:
        """The headings without the sign of their side."""
        return tuple(column.removeprefix("<") for column in self.columns)

    @property
    def _left(self) -> tuple[bool, ...]:
        return tuple(column.startswith("<") for column in self.columns)

    def __str__(self) -> str:
        every = [self.headings, *self.rows, *([self.totals] if self.totals else [])]
        widths = [max(len(row[i]) for row in every) for i in range(len(self.columns))]

        def line(cells: Sequence[str]) -> str:
            set_out = [
                cell.ljust(width) if left else cell.rjust(width)
                for cell, width, left in zip(cells, widths, self._left, strict=True)
            ]
            return "  ".join(set_out).rstrip()

        rule = "  ".join("-" * width for width in widths)
        lines = [self.title] if self.title else []
        lines += [line(self.headings), rule, *map(line, self.rows)]
        if self.totals:
            lines += [rule, line(self.totals)]
        return "\n".join(lines)

    def to_markdown(self) -> str:
        """Return the table in Markdown, the totals in bold."""
        rows = [
            self.headings,
            tuple(":---" if left else "---:" for left in self._left),
            *(tuple(cell.replace("|", "\\|") for cell in row) for row in self.rows),
        ]
        if self.totals:
            rows.append(tuple(f"**{cell}**" if cell else "" for cell in self.totals))
        return "".join(f"| {' | '.join(cells)} |\n" for cells in rows)

    def to_csv(self) -> str:
        """Return the rows as CSV, numbers without separators; neither title nor totals."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(self.headings)
        for row in self.rows:
            plain = [cell.replace(",", "") if _is_number(cell) else cell for cell in row]
            writer.writerow(plain)
        return text.getvalue()

    def to_html(self) -> str:
        """Return the table in HTML, as a notebook shows it."""

        def line(cells: Sequence[str], tag: str) -> str:
            sides = ["left" if left else "right" for left in self._left]
            inner = "".join(
                f'<{tag} style="text-align:{side}">{html.escape(cell)}</{tag}>'
                for cell, side in zip(cells, sides, strict=True)
            )
            return f"<tr>{inner}</tr>"

        caption = f"<caption>{html.escape(self.title)}</caption>" if self.title else ""
        foot = f"<tfoot>{line(self.totals, 'th')}</tfoot>" if self.totals else ""
        body = "".join(line(row, "td") for row in self.rows)
        head = line(self.headings, "th")
        return f"<table>{caption}<thead>{head}</thead><tbody>{body}</tbody>{foot}</table>"

    def _repr_html_(self) -> str:
        return self.to_html()

    def __rich__(self) -> "rich.table.Table":
        from rich import box
        from rich.table import Table as RichTable
        from rich.text import Text

        table = RichTable(
            title=self.title or None,
            title_justify="left",
            title_style="bold",
            box=box.SIMPLE_HEAD,
            show_footer=bool(self.totals),
            pad_edge=False,
        )
        for i, (heading, left) in enumerate(zip(self.headings, self._left, strict=True)):
            # Cells are texts, not markup: a path may hold brackets.
            table.add_column(
                Text(heading),
                Text(self.totals[i]) if self.totals else Text(""),
                justify="left" if left else "right",
                overflow="fold",
            )
        for row in self.rows:
            table.add_row(*map(Text, row))
        return table


def _is_number(cell: str) -> bool:
    digits = cell.replace(",", "").replace(".", "", 1).removeprefix("-").removeprefix("+")
    return digits.isdigit()


def say_bytes(count: int) -> str:
    """Return a number of bytes as people read it; 1 kB is 1,000 bytes.

    Examples:
        >>> say_bytes(640), say_bytes(50_936), say_bytes(6_422_528)
        ('640 B', '50.9 kB', '6.42 MB')
    """
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if abs(count) >= size:
            value = count / size
            digits = 2 if abs(value) < 10 else 1 if abs(value) < 100 else 0
            return f"{value:,.{digits}f} {unit}"
    return f"{count} B"
