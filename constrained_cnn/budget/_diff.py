"""What changed between two networks. Works on budgets alone, without torch."""

import itertools
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from constrained_cnn.errors import InvalidInputError, escape_controls
from constrained_cnn.table import Table, escape_markdown

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult

SCHEMA = "constrained_cnn.diff/1"


@runtime_checkable
class Quantities(Protocol):
    """What a budget gives to compare: numbers by name, and numbers of each layer."""

    @property
    def model(self) -> str:
        """Name of the model's class."""

    @property
    def input_shapes(self) -> tuple[tuple[int, ...], ...]:
        """Shape of one sample of each input."""

    def quantities(self) -> dict[str, int]:
        """Return the totals by name."""

    def peak_layers(self) -> dict[str, str]:
        """Return which layer makes each of the totals that one layer makes."""

    def layer_quantities(self) -> list[tuple[str, dict[str, int]]]:
        """Return the name and the numbers of each layer, in order."""


@dataclass(frozen=True)
class Change:
    """A quantity before and after.

    Attributes:
        name: What it is.
        old: Before; None where there was none.
        new: After; None where there is none.
        layer: Name of the layer it is of; empty for a total.
    """

    name: str
    old: int | None
    new: int | None
    layer: str = ""

    @property
    def difference(self) -> int:
        """How much more there is now."""
        return (self.new or 0) - (self.old or 0)

    @property
    def ratio(self) -> float | None:
        """How many times as much there is now; None where there was nothing."""
        return (self.new or 0) / self.old if self.old else None

    @property
    def quantity(self) -> str:
        """What it is, without the name of the layer."""
        return self.name.removeprefix(f"{self.layer} ") if self.layer else self.name

    def numbers(self) -> tuple[str, str, str]:
        """Return before, after and difference as a table says them."""
        signed = f"{self.difference:+,}" if self.difference else "="
        return _number(self.old), _number(self.new), signed

    def cells(self) -> tuple[str, ...]:
        """Return it as a row of a table."""
        changed = self.ratio is not None and self.difference != 0
        share = f"{100 * (self.ratio - 1):+.1f} %" if changed and self.ratio is not None else ""
        return (self.name, *self.numbers(), share)


@dataclass(frozen=True, repr=False)
class Diff:
    """What changed between two networks.

    Attributes:
        old: Name of the one network.
        new: Name of the other.
        totals: Each quantity before and after.
        layers: Parameters and MACs, before and after, of each layer in which either changed; those
            of the old network stand where they stood.
        labels: Headings of the columns before and after.
        notes: What the numbers are of, where the peaks are, and what could not be compared.
    """

    old: str
    new: str
    totals: tuple[Change, ...]
    layers: tuple[Change, ...]
    labels: tuple[str, str] = ("old", "new")
    notes: tuple[str, ...] = ()

    @property
    def changed(self) -> bool:
        """Whether anything did."""
        return any(change.difference for change in (*self.totals, *self.layers))

    def table(self) -> Table:
        """Return the totals as a table."""
        rows = tuple(change.cells() for change in self.totals)
        return Table(
            ("<cost", *(f">{label}" for label in self.labels), "difference", "share"),
            rows,
            title=f"{self.old} -> {self.new}",
            may_go=("share",),
            note="\n".join(map(escape_controls, self.notes)),
        )

    def layer_table(self) -> Table:
        """Return the layers that changed as a table, a row for each."""
        rows = []
        quantities: list[str] = []
        for layer, group in itertools.groupby(self.layers, lambda change: change.layer):
            changes = list(group)
            quantities = quantities or [change.quantity for change in changes]
            rows.append((layer, *(cell for change in changes for cell in change.numbers())))
        old, new = self.labels
        columns = [
            (f"{quantity} {old}", f"{quantity} {new}", f"{quantity} +/-") for quantity in quantities
        ]
        return Table(
            ("<layer", *(heading for three in columns for heading in three)),
            tuple(rows),
            title="Layers that changed",
            may_go=tuple(three[which] for which in (0, 1) for three in columns),
        )

    def _tables(self) -> Iterator[Table]:
        yield self.table()
        if self.layers:
            yield self.layer_table()

    def __repr__(self) -> str:
        layers = len({change.layer for change in self.layers})
        return escape_controls(f"Diff({self.old} -> {self.new}, layers that changed: {layers})")

    def __str__(self) -> str:
        return "\n\n".join(map(str, self._tables()))

    def __rich_console__(self, console: "Console", options: "ConsoleOptions") -> "RenderResult":
        yield from self._tables()

    def _repr_html_(self) -> str:
        return "".join(table.to_html() for table in self._tables())

    def to_markdown(self) -> str:
        """Return the tables and notes in Markdown, as a comment on a change shows them."""
        return "\n".join(
            f"**{escape_markdown(table.title)}**\n\n{table.to_markdown()}"
            for table in self._tables()
        )

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain data, with the version of the schema."""
        plain: dict[str, Any] = json.loads(json.dumps({"schema": SCHEMA, **asdict(self)}))
        for total in plain["totals"]:
            del total["layer"]  # of none
        return plain

    def to_json(self) -> str:
        """Return everything as JSON."""
        return json.dumps(self.to_dict(), indent=1) + "\n"


def diff(old: Quantities, new: Quantities, *, names: tuple[str, str] | None = None) -> Diff:
    """Return what changed from one network to another.

    Layers are matched by name and, where a name comes more than once, by its turn.

    Args:
        old: The :class:`Budget` before.
        new: The :class:`Budget` after.
        names: What to call them, such as ``("before", "after")``; None for the names of the models.

    Raises:
        InvalidInputError: If either is no budget, or the names are not two different texts.

    Examples:
        >>> from torch import nn
        >>> from constrained_cnn.budget import measure_budget
        >>> wide, narrow = nn.Sequential(nn.Conv2d(1, 8, 3)), nn.Sequential(nn.Conv2d(1, 4, 3))
        >>> change = diff(measure_budget(wide, (1, 8, 8)), measure_budget(narrow, (1, 8, 8)))
        >>> change.totals[0]
        Change(name='parameters', old=80, new=40, layer='')
        >>> print(change.layer_table())
        Layers that changed
        layer      parameters old  parameters new  parameters +/-  MACs old  MACs new  MACs +/-
        ---------  --------------  --------------  --------------  --------  --------  --------
        0: conv2d              80              40             -40     2,592     1,296    -1,296
    """
    for name, value in (("old", old), ("new", new)):
        if not isinstance(value, Quantities):
            raise InvalidInputError(
                f"{name}={type(value).__name__}: must be a Budget; measure the network first: "
                "measure_budget(model, input_shape)"
            )
    before, after = old.quantities(), new.quantities()
    every = [*before, *(name for name in after if name not in before)]
    totals = tuple(Change(name, before.get(name), after.get(name)) for name in every)
    layers = tuple(_layer_changes(old.layer_quantities(), new.layer_quantities()))
    notes = (_of_what(old, new), *_places(old, new))
    if names is None:
        return Diff(old.model, new.model, totals, layers, notes=notes)
    return Diff(*_checked(names), totals, layers, _checked(names), notes)


def _of_what(old: Quantities, new: Quantities) -> str:
    """Say what one sample is; two networks may have been given different ones."""
    before, after = (
        ", ".join(" x ".join(map(str, shape)) for shape in budget.input_shapes)
        for budget in (old, new)
    )
    if before == after:
        return f"For one sample of {before}."
    return f"For different samples: {before} before, {after} after."


def _places(old: Quantities, new: Quantities) -> Iterator[str]:
    before, after = old.peak_layers(), new.peak_layers()
    last, places = "", ("", "")
    for name in filter(after.__contains__, before):
        one, other = before[name], after[name]
        # Of an accounting with one word more, only where it is elsewhere.
        if not name.startswith(f"{last}, ") or (one, other) != places:
            yield f"{name}: at {one}{'' if one == other else f' before, at {other} after'}."
        last, places = name, (one, other)


def _checked(names: tuple[str, str]) -> tuple[str, str]:
    two = isinstance(names, tuple | list) and len(names) == 2
    if not two or names[0] == names[1] or not all(isinstance(n, str) and n for n in names):
        raise InvalidInputError(f"names={names!r}: must be two names that differ")
    return names[0], names[1]


Layers = Sequence[tuple[str, dict[str, int]]]


def _layer_changes(old: Layers, new: Layers) -> Iterator[Change]:
    before, after = _by_turn(old), _by_turn(new)
    for name in _merged(list(before), list(after)):
        one, other = before.get(name), after.get(name)
        changes = [
            Change(
                f"{name} {quantity}",
                None if one is None else one[quantity],
                None if other is None else other[quantity],
                name,
            )
            for quantity in one or other or {}
        ]
        if any(change.difference for change in changes):
            yield from changes


def _by_turn(layers: Layers) -> Mapping[str, dict[str, int]]:
    """Return the numbers by name; a name that comes again has its turn behind it."""
    turns: Counter[str] = Counter()
    found: dict[str, dict[str, int]] = {}
    for name, numbers in layers:
        turns[name] += 1
        found[name if turns[name] == 1 else f"{name} ({turns[name]})"] = numbers
    return found


def _merged(old: Sequence[str], new: Sequence[str]) -> list[str]:
    """Return all names in the order of the new, those that are gone behind what they came after."""
    kept = set(new)
    behind: dict[str, list[str]] = {"": []}
    last = ""
    for name in old:
        if name in kept:
            last = name
        else:
            behind.setdefault(last, []).append(name)
    return [*behind[""], *(one for name in new for one in (name, *behind.get(name, [])))]


def _number(value: int | None) -> str:
    return "" if value is None else f"{value:,}"
