"""A table that prints everywhere: terminal, notebook, Markdown, CSV. Knows nothing of networks."""

import csv
import html
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from constrained_cnn.errors import InvalidInputError, escape_controls

if TYPE_CHECKING:
    import rich.table
    from rich.console import Console, ConsoleOptions, RenderResult

__all__ = ["Table", "escape_markdown", "say_bytes", "say_kib"]


@dataclass(frozen=True)
class Table:
    """Rows of cells under a heading, each cell already a text.

    Whatever texts hold is shown and not obeyed, by a terminal, rich, Markdown or HTML; what is a
    control character is written as :func:`~constrained_cnn.errors.escape_controls` writes it.

    Attributes:
        columns: The heading of each column; one that begins with ``<`` is set to the left, the
            others to the right, as numbers are. They may begin with ``>``: before a name, which
            could begin with either sign itself.
        rows: The rows.
        totals: A last row, set apart; empty for none.
        title: A line above it.
        may_go: Headings of columns that a narrow terminal leaves out, in the order they go; columns
            without content go before them. Everywhere else the table is whole.
        note: Lines below it.
        colours: For each row the colour of one of its cells in a terminal or a notebook; empty for
            none.
        coloured: Heading of the column whose cells have these colours.

    Raises:
        InvalidInputError: If a row has not one cell for each column, a column that may go or that
            is coloured is none of the table's, or there is not one colour for each row.

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
    may_go: tuple[str, ...] = ()
    note: str = ""
    colours: tuple[str, ...] = ()
    coloured: str = ""

    def __post_init__(self) -> None:
        for name in ("columns", "totals", "may_go"):
            object.__setattr__(self, name, tuple(map(escape_controls, getattr(self, name))))
        for name in ("title", "coloured"):
            object.__setattr__(self, name, escape_controls(getattr(self, name)))
        rows = tuple(tuple(map(escape_controls, row)) for row in self.rows)
        object.__setattr__(self, "rows", rows)
        object.__setattr__(self, "note", escape_controls(self.note, keep_lines=True))
        if self.colours and len(self.colours) != len(self.rows):
            raise InvalidInputError(
                f"colours={self.colours!r}: must be {len(self.rows)}, one for each row"
            )
        if self.colours and self.coloured not in self.headings:
            raise InvalidInputError(f"coloured={self.coloured!r}: must be a heading of this table")
        for heading in self.may_go:
            if heading not in self.headings[1:]:
                raise InvalidInputError(
                    f"may_go={heading!r}: must be a heading of this table, and not the first"
                )
        for row in (*self.rows, *([self.totals] if self.totals else [])):
            if len(row) != len(self.columns):
                raise InvalidInputError(
                    f"row={row!r}: must have {len(self.columns)} cells, one for each column"
                )

    @property
    def headings(self) -> tuple[str, ...]:
        """The headings without the sign of their side."""
        return tuple(column[column.startswith(("<", ">")) :] for column in self.columns)

    @property
    def _coloured(self) -> int:
        return self.headings.index(self.coloured) if self.colours else -1

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
        lines += ["", self.note] if self.note else []
        return "\n".join(lines)

    def to_markdown(self) -> str:
        """Return the table in Markdown, the totals in bold."""
        rows = [
            tuple(map(_escape_marks, self.headings)),
            tuple(":---" if left else "---:" for left in self._left),
            *(tuple(map(_escape_marks, row)) for row in self.rows),
        ]
        if self.totals:
            rows.append(tuple(f"**{_escape_marks(cell)}**" if cell else "" for cell in self.totals))
        note = f"\n{escape_markdown(self.note)}\n" if self.note else ""
        return "".join(f"| {' | '.join(cells)} |\n" for cells in rows) + note

    def to_csv(self) -> str:
        """Return the rows as CSV, numbers without separators; no title, totals or note."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(self.headings)
        for row in self.rows:
            plain = [cell.replace(",", "") if _is_number(cell) else cell for cell in row]
            writer.writerow(plain)
        return text.getvalue()

    def to_html(self) -> str:
        """Return the table in HTML, as a notebook shows it."""

        def line(cells: Sequence[str], tag: str, colour: str = "") -> str:
            styles = [f"text-align:{'left' if left else 'right'}" for left in self._left]
            if colour:
                styles[self._coloured] += f";color:{_HTML_COLOURS.get(colour, colour)}"
            inner = "".join(
                f'<{tag} style="{style}">{html.escape(cell)}</{tag}>'
                for cell, style in zip(cells, styles, strict=True)
            )
            return f"<tr>{inner}</tr>"

        caption = f"<caption>{html.escape(self.title)}</caption>" if self.title else ""
        foot = f"<tfoot>{line(self.totals, 'th')}</tfoot>" if self.totals else ""
        colours = self.colours or ("",) * len(self.rows)
        body = "".join(
            line(row, "td", colour) for row, colour in zip(self.rows, colours, strict=True)
        )
        head = line(self.headings, "th")
        note = f"<p>{html.escape(self.note)}</p>" if self.note else ""
        return f"<table>{caption}<thead>{head}</thead><tbody>{body}</tbody>{foot}</table>{note}"

    def _repr_html_(self) -> str:
        return self.to_html()

    def __rich_console__(self, console: "Console", options: "ConsoleOptions") -> "RenderResult":
        from rich.text import Text

        natural = [self._natural_width(i) for i in range(len(self.columns))]
        shown = self._shown(natural, options.max_width)
        if self.title:
            yield Text(self.title, style="bold")
        yield self._drawn(shown, _shared_out(natural, self._left, shown, options.max_width))
        yield Text("")
        gone = [
            heading
            for i, heading in enumerate(self.headings)
            if i not in shown and any(row[i] for row in self.rows)
        ]
        if gone:
            yield Text(
                f"Left out for want of room: {', '.join(gone)}. A wider terminal, a file or "
                "Markdown has the whole table.",
                style="dim",
            )
        if self.note:
            yield Text(self.note)

    def _natural_width(self, column: int) -> int:
        from rich.cells import cell_len

        cells = [self.headings[column], *(row[column] for row in self.rows)]
        return max(map(cell_len, [*cells, self.totals[column] if self.totals else ""]))

    def _shown(self, natural: Sequence[int], room: int) -> list[int]:
        """Return the columns that fit, names folded but no number or heading broken."""
        shown = list(range(len(self.columns)))
        # A total of nothing says nothing either.
        empty = [i for i in shown[1:] if not any(row[i] for row in self.rows)]
        for column in (*empty, *map(self.headings.index, self.may_go)):
            if _width(natural, self._left, shown, _FOLDED) <= room:
                break
            shown = [i for i in shown if i != column]
        while len(shown) > 1 and _width(natural, self._left, shown, _FOLDED_AT_LAST) > room:
            shown.pop()
        return shown

    def _drawn(self, shown: Sequence[int], widths: Sequence[int]) -> "rich.table.Table":
        from rich import box
        from rich.table import Table as RichTable
        from rich.text import Text

        table = RichTable(
            box=box.SIMPLE_HEAD,
            show_footer=bool(self.totals),
            show_edge=False,
            padding=(0, 1, 0, 0),
            pad_edge=False,
        )
        for i, width in zip(shown, widths, strict=True):
            # As Text, for rich reads a str as markup, and a path may hold brackets.
            table.add_column(
                Text(self.headings[i]),
                Text(self.totals[i]) if self.totals else Text(""),
                justify="left" if self._left[i] else "right",
                overflow="fold",
                width=width,
            )
        for row, colour in zip(self.rows, self.colours or ("",) * len(self.rows), strict=True):
            styles = {self._coloured: colour}
            table.add_row(*(Text(row[i], style=styles.get(i, "")) for i in shown))
        return table


_GAP = 2
# Names of a terminal's colours, as a page shows them on white.
_HTML_COLOURS = {"green": "#1a7f37", "red": "#cf222e", "yellow": "#9a6700", "dim": "#6e7781"}
# What a column of names is folded to before others go, and after they are gone.
_FOLDED, _FOLDED_AT_LAST = 20, 8


def _width(natural: Sequence[int], left: Sequence[bool], shown: Sequence[int], narrow: int) -> int:
    """Return the width of a table whose names are folded."""
    folded = sum(min(natural[i], narrow) if left[i] else natural[i] for i in shown)
    return folded + _GAP * (len(shown) - 1)


def _shared_out(
    natural: Sequence[int], left: Sequence[bool], shown: Sequence[int], room: int
) -> list[int]:
    """Return the width of each column; names take what numbers leave."""
    narrow = _FOLDED if _width(natural, left, shown, _FOLDED) <= room else _FOLDED_AT_LAST
    spare = room - _width(natural, left, shown, narrow)
    widths = []
    for i in shown:
        least = min(natural[i], narrow) if left[i] else natural[i]
        more = max(0, min(natural[i] - least, spare))
        widths.append(least + more)
        spare -= more
    return widths


def _is_number(cell: str) -> bool:
    digits = cell.replace(",", "").replace(".", "", 1).removeprefix("-").removeprefix("+")
    return digits.isdigit()


# What has a meaning anywhere in a line. An underscore within a word has none, a bracket none alone.
_MARKS = re.compile(r"(?<=[^\W_])_+(?=[^\W_])|([\\`*_|~$]|\](?=\())")
# What begins a heading, a list, a quotation or a rule where it begins a line.
_BEGINNING = re.compile(r"^(\d+(?=[.)])|(?=[#>+=:[-]))")


def escape_markdown(text: str) -> str:
    r"""Return lines of a text that Markdown shows as they are.

    Args:
        text: The text, without control characters.

    Examples:
        >>> print(escape_markdown("# max_pool [a](b) <c>"))
        \# max_pool [a\](b) &lt;c>
    """
    lines = (_escape_marks(line.strip()) for line in text.split("\n"))
    return "\n".join(_BEGINNING.sub(r"\1\\", line) for line in lines)


def _escape_marks(text: str) -> str:
    """Return a text that Markdown shows as it is within a line or a cell."""
    marked = _MARKS.sub(lambda match: f"\\{match[0]}" if match[1] else match[0], text)
    # Not with a backslash, so that it is no tag for what knows HTML alone either.
    return marked.replace("&", "&amp;").replace("<", "&lt;")


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


def say_kib(count: int) -> str:
    """Return a number of bytes as tables of devices say it; 1 KiB is 1,024 bytes.

    Examples:
        >>> say_kib(640), say_kib(92_160), say_kib(340_736), say_kib(1_404_928)
        ('640 B', '90.0 KiB', '332.8 KiB', '1,372.0 KiB')
    """
    return f"{count / 1024:,.1f} KiB" if abs(count) >= 1024 else f"{count} B"
