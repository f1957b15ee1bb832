"""What changed between two networks. Works on budgets alone, without torch."""

import json
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Protocol

from constrained_cnn.table import Table

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult

SCHEMA = "constrained_cnn.diff/1"


class Quantities(Protocol):
    """What a budget gives to compare: numbers by name, and numbers of each layer."""

    @property
    def model(self) -> str:
        """Name of the model's class."""

    def quantities(self) -> dict[str, int]:
        """Return the totals by name."""

    def layer_quantities(self) -> list[tuple[str, dict[str, int]]]:
        """Return the name and the numbers of each layer, in order."""


@dataclass(frozen=True)
class Change:
    """A quantity before and after.

    Attributes:
        name: What it is.
        old: Before; None where there was none.
        new: After; None where there is none.
    """

    name: str
    old: int | None
    new: int | None

    @property
    def difference(self) -> int:
        """How much more there is now."""
        return (self.new or 0) - (self.old or 0)

    @property
    def ratio(self) -> float | None:
        """How many times as much there is now; None where there was nothing."""
        return (self.new or 0) / self.old if self.old else None

    def cells(self) -> tuple[str, ...]:
        """Return it as a row of a table."""
        share = "" if self.ratio is None else f"{100 * (self.ratio - 1):+.1f} %"
        if self.difference == 0:
            share = ""
        signed = f"{self.difference:+,}" if self.difference else "="
        return (self.name, _number(self.old), _number(self.new), signed, share)


@dataclass(frozen=True, repr=False)
class Diff:
    """What changed between two networks.

    Attributes:
        old: Name of the one model.
        new: Name of the other.
        totals: Each quantity before and after.
        layers: Each layer's parameters and MACs before and after, layers that did not change left
            out.
    """

    old: str
    new: str
    totals: tuple[Change, ...]
    layers: tuple[Change, ...]

    @property
    def changed(self) -> bool:
        """Whether anything did."""
        return any(change.difference for change in (*self.totals, *self.layers))

    def table(self) -> Table:
        """Return the totals as a table."""
        return self._table(self.totals, f"{self.old} -> {self.new}")

    def layer_table(self) -> Table:
        """Return the layers that changed as a table."""
        return self._table(self.layers, "Layers that changed")

    @staticmethod
    def _table(changes: Sequence[Change], title: str) -> Table:
        rows = tuple(change.cells() for change in changes)
        return Table(("<cost", "old", "new", "difference", "share"), rows, title=title)

    def _tables(self) -> Iterator[Table]:
        yield self.table()
        if self.layers:
            yield self.layer_table()

    def __repr__(self) -> str:
        return f"Diff({self.old} -> {self.new}, {len(self.layers)} changes in layers)"

    def __str__(self) -> str:
        return "\n\n".join(map(str, self._tables()))

    def __rich_console__(self, console: "Console", options: "ConsoleOptions") -> "RenderResult":
        yield from self._tables()

    def _repr_html_(self) -> str:
        return "".join(table.to_html() for table in self._tables())

    def to_markdown(self) -> str:
        """Return the tables in Markdown, as a comment on a change shows them."""
        return "\n".join(f"**{table.title}**\n\n{table.to_markdown()}" for table in self._tables())

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain data, with the version of the schema."""
        plain: dict[str, Any] = json.loads(json.dumps({"schema": SCHEMA, **asdict(self)}))
        return plain

    def to_json(self) -> str:
        """Return everything as JSON."""
        return json.dumps(self.to_dict(), indent=1) + "\n"


def diff(old: Quantities, new: Quantities) -> Diff:
    """Return what changed from one network to another.

    Layers are matched by name and, where a name comes more than once, by its turn.

    Args:
        old: The :class:`Budget` before.
        new: The :class:`Budget` after.

    Examples:
        >>> from torch import nn
        >>> from constrained_cnn.budget import measure_budget
        >>> wide, narrow = nn.Sequential(nn.Conv2d(1, 8, 3)), nn.Sequential(nn.Conv2d(1, 4, 3))
        >>> change = diff(measure_budget(wide, (1, 8, 8)), measure_budget(narrow, (1, 8, 8)))
        >>> print(change.layer_table())
        Layers that changed
        cost                    old    new  difference    share
        --------------------  -----  -----  ----------  -------
        0: conv2d parameters     80     40         -40  -50.0 %
        0: conv2d MACs        2,592  1,296      -1,296  -50.0 %
    """
    before, after = old.quantities(), new.quantities()
    names = [*before, *(name for name in after if name not in before)]
    totals = tuple(Change(name, before.get(name), after.get(name)) for name in names)
    return Diff(old.model, new.model, totals, tuple(_layer_changes(old, new)))


def _layer_changes(old: Quantities, new: Quantities) -> Iterator[Change]:
    waiting: dict[str, deque[dict[str, int]]] = {}
    for name, numbers in old.layer_quantities():
        waiting.setdefault(name, deque()).append(numbers)
    for name, numbers in new.layer_quantities():
        queue = waiting.get(name)
        yield from _changes(name, queue.popleft() if queue else None, numbers)
    for name, queue in waiting.items():
        for numbers in queue:
            yield from _changes(name, numbers, None)


def _changes(name: str, old: dict[str, int] | None, new: dict[str, int] | None) -> Iterator[Change]:
    for quantity in old or new or {}:
        change = Change(
            f"{name} {quantity}",
            None if old is None else old[quantity],
            None if new is None else new[quantity],
        )
        if change.difference:
            yield change


def _number(value: int | None) -> str:
    return "" if value is None else f"{value:,}"
