"""Constraints: rules under a name."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from constrained_cnn.constraints._rule import Rule, check_text
from constrained_cnn.errors import InvalidInputError
from constrained_cnn.table import Table

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult


@dataclass(frozen=True)
class Constraints:
    """Rules under a name.

    Attributes:
        rules: The rules.
        name: What they are called.
        about: One line on where they come from.

    Raises:
        InvalidInputError: If there are none, one is no rule, or two have one name.

    Examples:
        >>> from constrained_cnn.constraints import Count, Parameters
        >>> mine = Constraints([Parameters(at_most=20_000), Count("dropout", at_least=1)])
        >>> [rule.label for rule in mine]
        ['parameters', 'dropout']
    """

    rules: Sequence[Rule]
    name: str = "rules"
    about: str = ""

    def __post_init__(self) -> None:
        if not isinstance(self.rules, list | tuple) or not self.rules:
            raise InvalidInputError(f"rules={self.rules!r}: must be a list of at least one rule")
        for rule in self.rules:
            if not isinstance(rule, Rule):
                hint = "; call it: a class makes a rule" if isinstance(rule, type) else ""
                raise InvalidInputError(f"rules: {rule!r} is no rule{hint}")
        for name in ("name", "about"):
            check_text(name, getattr(self, name))
        names = Counter(rule.name for rule in self.rules if rule.name)
        for name, times in names.items():
            if times > 1:
                raise InvalidInputError(f"rules: {times} rules have the name {name!r}; one may")
        object.__setattr__(self, "rules", tuple(self.rules))

    def __iter__(self) -> Iterator[Rule]:
        return iter(self.rules)

    def __len__(self) -> int:
        return len(self.rules)

    def __add__(self, other: "Constraints | Rule | Sequence[Rule]") -> "Constraints":
        """Return these rules and others; one that has the name of an earlier one replaces it."""
        if not isinstance(other, Constraints):
            other = Constraints((other,) if isinstance(other, Rule) else other)
        named = {rule.name: rule for rule in other if rule.name}
        kept = tuple(named.pop(rule.name, rule) for rule in self.rules)
        new = tuple(rule for rule in other if not rule.name or rule.name in named)
        return replace(self, rules=(*kept, *new))

    def without(self, *names: str) -> "Constraints":
        """Return the rules but those of some names.

        Raises:
            InvalidInputError: If no rule has one of the names.
        """
        known = {rule.name for rule in self.rules if rule.name}
        for name in names:
            if name not in known:
                raise InvalidInputError(f"name={name!r}: no rule has it; names are {sorted(known)}")
        return replace(self, rules=tuple(rule for rule in self.rules if rule.name not in names))

    def table(self) -> Table:
        """Return what each rule asks for, a row for each."""
        rows = tuple((rule.label, rule.required) for rule in self.rules)
        about = f": {self.about}" if self.about else ""
        return Table(("<rule", "<required"), rows, title=f"{self.name}{about}")

    def __str__(self) -> str:
        return str(self.table())

    def __rich_console__(self, console: "Console", options: "ConsoleOptions") -> "RenderResult":
        yield self.table()

    def _repr_html_(self) -> str:
        return self.table().to_html()

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain data, as a file holds it."""
        about = {"about": self.about} if self.about else {}
        return {"name": self.name, **about, "rules": [rule.to_dict() for rule in self.rules]}
