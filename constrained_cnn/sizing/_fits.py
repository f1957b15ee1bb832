"""The networks that were found: widths, what they cost, and in which order they come."""

import dataclasses
import html
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from constrained_cnn.errors import InvalidInputError, escape_controls
from constrained_cnn.table import Table, escape_markdown

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult

SCHEMA = "constrained_cnn.fits/1"

Limits = Mapping[str, tuple[int | None, int | None]]

_SAID = {
    "macs": "MACs",
    "weight_bytes": "bytes of weights",
    "inference_peak": "bytes at the inference peak",
    "int8_peak": "bytes at the int8 peak, batch norm folded, fused",
}


def say_amount(name: str, amount: int) -> str:
    """Return so much of a quantity in words."""
    return f"{amount:,} {_SAID.get(name, name.replace('_', ' '))}"


def _heading(name: str) -> str:
    return "MACs" if name == "macs" else name.replace("_", " ")


@dataclass(frozen=True)
class Fit:
    """A network that meets every limit.

    Attributes:
        widths: Its widths, by name.
        quantities: What it costs, by name, as measured.
        difference: How much more than the target it has; negative for less.
        criterion: What orders answers that are as near to the target as one another.

    Examples:
        >>> Fit({"first": 8}, {"parameters": 80}, difference=-20, criterion=0.0).distance
        20
    """

    widths: Mapping[str, int]
    quantities: Mapping[str, int]
    difference: int
    criterion: int | float

    @property
    def distance(self) -> int:
        """How far the target is missed by."""
        return abs(self.difference)


@dataclass(frozen=True, repr=False)
class Fits:
    """The networks that meet every limit, the nearest to the target first.

    Attributes:
        quantity: Name of the quantity that was to be met.
        target: What it was to be.
        limits: The least and the most that was allowed of each quantity; None for any.
        order: The criterion that orders answers which are as near as one another, in words.
        answers: The networks, best first.
        traces: How many networks were made and measured to find them.
        note: Why there are no answers, or no more; empty if as many were found as asked for.

    Examples:
        >>> from torch import nn
        >>> from constrained_cnn.sizing import fit_widths
        >>> def make(width):
        ...     return nn.Conv2d(1, width, 3)
        >>> fits = fit_widths(make, {"width": range(4, 9)}, (1, 8, 8), target={"macs": 2_000})
        >>> [(fit.widths["width"], fit.quantities["macs"]) for fit in fits]
        [(6, 1944), (7, 2268), (5, 1620), (8, 2592), (4, 1296)]
        >>> fits.note
        'No other network of this space meets all limits.'
    """

    quantity: str
    target: int
    limits: Limits
    order: str
    answers: tuple[Fit, ...]
    traces: int
    note: str = ""

    @property
    def best(self) -> Fit:
        """The first answer.

        Raises:
            InvalidInputError: If there is none; the message says why.
        """
        if not self.answers:
            raise InvalidInputError(f"{self._title}: {self.note}")
        return self.answers[0]

    def __len__(self) -> int:
        return len(self.answers)

    def __iter__(self) -> Iterator[Fit]:
        return iter(self.answers)

    def __getitem__(self, index: int) -> Fit:
        return self.answers[index]

    @property
    def _title(self) -> str:
        goal = say_amount(self.quantity, self.target)
        met = all(fit.difference == 0 for fit in self.answers)
        limits = [
            _say_limit(name, *limit)
            for name, limit in self.limits.items()
            if limit != (self.target, self.target) or name != self.quantity
        ]
        near = "Networks of" if met and self.answers else "Networks nearest to"
        return escape_controls(f"{near} {', '.join([goal, *limits])}; {self.order} first")

    def table(self) -> Table:
        """Return the answers as a table, a row for each."""
        names = list(self.answers[0].widths) if self.answers else []
        others = [name for name in self._quantities() if name != self.quantity]
        asked = [name for name in others if name in self.limits]
        shown = [self.quantity, *asked, *(name for name in others if name not in asked)]
        rows = tuple(
            (
                str(number),
                *(str(fit.widths[name]) for name in names),
                *(f"{fit.quantities[name]:,}" for name in shown),
                f"{fit.difference:+,}" if fit.difference else "=",
                f"{fit.criterion:,}" if isinstance(fit.criterion, int) else f"{fit.criterion:.4f}",
            )
            for number, fit in enumerate(self.answers, start=1)
        )
        headings = tuple(map(_heading, shown))
        return Table(
            ("", *(f">{name}" for name in names), *headings, "off target", "criterion"),
            rows,
            title=self._title,
            may_go=tuple(reversed(headings[1 + len(asked) :])),
            note=escape_controls(self.note),
        )

    def _quantities(self) -> list[str]:
        return list(self.answers[0].quantities) if self.answers else [self.quantity]

    def __repr__(self) -> str:
        return f"Fits({self._title}: {len(self)} found)"

    def __str__(self) -> str:
        if self.answers:
            return str(self.table())
        return f"{self._title}\n\n{escape_controls(self.note)}"

    def __rich_console__(self, console: "Console", options: "ConsoleOptions") -> "RenderResult":
        from rich.text import Text

        yield self.table() if self.answers else Text(str(self))

    def _repr_html_(self) -> str:
        if self.answers:
            return self.table().to_html()
        return "".join(f"<p>{html.escape(line)}</p>" for line in str(self).split("\n\n"))

    def to_markdown(self) -> str:
        """Return the answers as a table in Markdown."""
        if self.answers:
            return f"{escape_markdown(self._title)}\n\n{self.table().to_markdown()}"
        return f"{escape_markdown(str(self))}\n"

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain data, with the version of the schema."""
        plain = {"schema": SCHEMA, **dataclasses.asdict(self)}
        cleaned: dict[str, Any] = json.loads(json.dumps(plain))
        return cleaned

    def to_json(self) -> str:
        """Return everything as JSON."""
        return json.dumps(self.to_dict(), indent=1) + "\n"


def _say_limit(name: str, low: int | None, high: int | None) -> str:
    if low is None or high is None:
        return " ".join(
            f"{end} {say_amount(name, amount)}"
            for end, amount in (("at least", low), ("at most", high))
            if amount is not None
        )
    return f"{low:,} to {say_amount(name, high)}"
