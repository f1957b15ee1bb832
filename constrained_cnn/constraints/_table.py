"""The kinds of rules, by the word that a file calls them."""

from typing import TypeVar

from constrained_cnn.constraints._rule import AllOf, AnyOf, Not, Rule
from constrained_cnn.errors import InvalidInputError, check_choice

Kind = TypeVar("Kind", bound=type[Rule])

_KINDS: dict[str, type[Rule]] = {rule.kind: rule for rule in (AllOf, AnyOf, Not)}


def rule_kinds() -> list[str]:
    """Return the kinds of rules that a file may name, sorted.

    Examples:
        >>> rule_kinds()[:3]
        ['accuracy', 'all', 'any']
    """
    return sorted(_KINDS)


def find_rule(kind: object) -> type[Rule]:
    """Return the class of a kind of rules.

    Raises:
        InvalidInputError: If there is none; the nearest is suggested.
    """
    return _KINDS[check_choice("rule", kind, rule_kinds())]


def register_rule(rule: Kind) -> Kind:
    """Make a rule of your own known by its ``kind``, so that files may name it; a decorator.

    Raises:
        InvalidInputError: If it is no rule, says no kind, or another rule has it.

    Examples:
        >>> from dataclasses import dataclass
        >>> from typing import ClassVar
        >>> from constrained_cnn.constraints import Measure, Measured
        >>> @register_rule
        ... @dataclass(frozen=True)
        ... class Operations(Measured):
        ...     kind: ClassVar[str] = "operations"
        ...     title = "operations"
        ...     def measure(self, subject):
        ...         return Measure((len(subject.graph.layers),))
        >>> Operations(at_most=3).required
        'at most 3'
    """
    if not isinstance(rule, type) or not issubclass(rule, Rule) or not rule.kind:
        raise InvalidInputError(f"rule={rule!r}: must be a class of rules that says its kind")
    known = _KINDS.setdefault(rule.kind, rule)
    if (known.__module__, known.__qualname__) != (rule.__module__, rule.__qualname__):
        raise InvalidInputError(f"rule {rule.kind!r}: another rule is called so; choose another")
    _KINDS[rule.kind] = rule
    return rule
