"""Constraints from plain data, from TOML and by name, and back to TOML."""

import dataclasses
import os
import re
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from typing import Any

import tomli_w

from constrained_cnn.constraints._constraints import Constraints
from constrained_cnn.constraints._lines import line_of
from constrained_cnn.constraints._rule import AllOf, AnyOf, Not, Rule
from constrained_cnn.constraints._table import find_rule, rule_kinds
from constrained_cnn.errors import (
    InvalidInputError,
    check_choice,
    check_known_keys,
    reason_of,
    say_value,
)
from constrained_cnn.record import write_atomically

_KEYS = ("name", "about", "extends", "without", "rules")
TABLE = "constrained-cnn"


def constraints_from_dict(content: Mapping[str, Any], *, name: str = "rules") -> Constraints:
    """Return constraints from plain data, as :meth:`Constraints.to_dict` gives it.

    ``extends`` names rules that come with the package, to which these are added; one that has the
    name of an earlier one replaces it, and those whose names ``without`` lists are left out.

    Args:
        content: The data: ``name``, ``about``, ``extends``, ``without`` and ``rules``, each rule
            with its kind under ``rule``.
        name: What they are called if they do not say it themselves.

    Raises:
        InvalidInputError: If a key or a rule is unknown (the nearest is suggested), or a rule
            breaks its own rules.

    Examples:
        >>> mine = constraints_from_dict({"rules": [{"rule": "parameters", "at_most": 20_000}]})
        >>> mine.rules[0].required
        'at most 20,000'
    """
    if not isinstance(content, Mapping):
        raise SpecError("constraints: must be a table of name, about, extends and rules")
    with _at():
        check_known_keys("constraints", content, _KEYS)
    given = content.get("rules", [])
    if not isinstance(given, list | tuple):
        said = f"rules={say_value(given)}: must be a list of tables, [[rules]] in TOML"
        raise SpecError(said, ("rules",))
    rules: list[Rule] = []
    for number, one in enumerate(given):
        with _at("rules", number, say=f"rule {number + 1}: "):
            rule = rule_from_dict(one)
            if rule.name and rule.name in (other.name for other in rules):
                raise SpecError(f"2 rules have the name {rule.name!r}; one may", ("name",))
        rules.append(rule)
    own = {key: content[key] for key in ("name", "about") if key in content}
    base = content.get("extends")
    without = content.get("without", [])
    if not isinstance(without, list | tuple) or not all(isinstance(one, str) for one in without):
        raise SpecError(f"without={say_value(without)}: must be a list of names", ("without",))
    if without and base is None:
        raise SpecError("without: leaves out rules of extends, which is not given", ("without",))
    with _at():
        if base is None:
            return Constraints(tuple(rules), **{"name": name, **own})
        mine = get_constraints(check_choice("extends", base, list_constraints()))
        mine = mine.without(*without)
        mine = mine + tuple(rules) if rules else mine
        return dataclasses.replace(mine, **{"name": name, **own})


class SpecError(InvalidInputError):
    """Rules in plain data are wrong; knows where.

    Attributes:
        path: Keys and numbers that lead to what is wrong.
    """

    def __init__(self, message: str, path: tuple[str | int, ...] = ()) -> None:
        super().__init__(message)
        self.path = path


@contextmanager
def _at(*path: str | int, say: str = "") -> Iterator[None]:
    """Let an error within know the path, and the key its message speaks of."""
    try:
        yield
    except SpecError as error:
        raise SpecError(f"{say}{error}", (*path, *error.path)) from error
    except InvalidInputError as error:
        spoken = re.match(r"(?:.*: unknown key '([^']+)'|(\w+)=|(\w+):)", str(error))
        key = next(filter(None, spoken.groups()), None) if spoken else None
        raise SpecError(f"{say}{error}", (*path, *([key] if key else []))) from error
    except RecursionError as error:
        raise SpecError(f"{say}lies in one another too deep", path) from error


_MOST_NESTED = 32


def rule_from_dict(content: Mapping[str, Any], *, _depth: int = 0) -> Rule:
    """Return a rule from plain data, as :meth:`Rule.to_dict` gives it.

    Raises:
        InvalidInputError: If its kind or a key is unknown, a key is missing, or a value is wrong.

    Examples:
        >>> rule_from_dict({"rule": "count", "layer": "max_pool", "exactly": 2}).title
        'max_pool'
    """
    if not isinstance(content, Mapping):
        raise SpecError("must be a table with the kind under rule")
    if _depth > _MOST_NESTED:
        raise SpecError(f"rules lie in one another deeper than {_MOST_NESTED}")
    if "rule" not in content:
        raise SpecError(f"says no kind; give it under rule, one of {', '.join(rule_kinds())}")
    with _at():
        given = {key: _frozen(value) for key, value in content.items() if key != "rule"}
        rule = find_rule(content["rule"])
        check_known_keys(rule.kind, given, [part.name for part in dataclasses.fields(rule)])
    for part in dataclasses.fields(rule):
        needed = part.default is dataclasses.MISSING and part.default_factory is dataclasses.MISSING
        if needed and part.name not in given:
            raise SpecError(f"{rule.kind}: {part.name} is missing")
    say = f"{rule.kind}: "
    if rule is Not:
        with _at("of", say=say):
            given["of"] = rule_from_dict(given["of"], _depth=_depth + 1)
    if rule in (AllOf, AnyOf):
        if not isinstance(given["of"], tuple):
            raise SpecError(f"{say}of: must be a list of rules", ("of",))
        several = []
        for number, one in enumerate(given["of"]):
            with _at("of", number, say=say):
                several.append(rule_from_dict(one, _depth=_depth + 1))
        given["of"] = tuple(several)
    with _at(say=say):
        return rule(**given)


def _frozen(value: Any) -> Any:
    return tuple(map(_frozen, value)) if isinstance(value, list) else value


def load_constraints(path: str | os.PathLike[str]) -> Constraints:
    """Read constraints from a TOML file.

    The keys stand at the top of the file, or in a ``pyproject.toml`` under
    ``[tool.constrained-cnn]``. Nothing in the file is executed.

    Args:
        path: The file.

    Raises:
        InvalidInputError: If there is no such file, it is no TOML, or it says something wrong; the
            message names the line.

    Examples:
        A file of two rules::

            name = "mine"

            [[rules]]
            rule = "parameters"
            at_most = 20_000

            [[rules]]
            rule = "count"
            layer = "dropout"
            at_least = 1
    """
    try:
        file = Path(path)
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, TypeError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else reason_of(error)
        reason = "it is no text in UTF-8" if isinstance(error, UnicodeDecodeError) else reason
        raise InvalidInputError(f"cannot read rules {_shortly(path)}: {reason}") from error
    content: Any
    try:
        content = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidInputError(f"{str(file)!r} is not TOML: {reason_of(error)}") from error
    default = file.stem
    ahead: tuple[str, ...] = ()
    if file.name == "pyproject.toml":
        default, ahead = TABLE, ("tool", TABLE)
        for key in ahead:
            content = content.get(key) if isinstance(content, dict) else None
        if content is None:
            hint = f"; it is {TABLE}, with a hyphen" if "[tool.constrained_cnn]" in text else ""
            raise InvalidInputError(f"{str(file)!r} has no table [tool.{TABLE}]{hint}")
    try:
        return constraints_from_dict(content, name=default)
    except SpecError as error:
        line = line_of(text, (*ahead, *error.path)) if error.path else None
        where = f"{file}, line {line}" if line else str(file)
        raise InvalidInputError(f"{where}: {error}") from error


def _shortly(value: Any) -> str:
    return repr(str(value)) if isinstance(value, str | os.PathLike) else f"a {type(value).__name__}"


def save_constraints(constraints: Constraints, path: str | os.PathLike[str]) -> Path:
    """Write constraints to a TOML file, atomically.

    Returns:
        The path written.

    Raises:
        OutputError: If the file cannot be written.
    """
    return write_atomically(path, tomli_w.dumps(constraints.to_dict()).encode())


def list_constraints() -> list[str]:
    """Return the names of the constraints that come with the package, sorted.

    Examples:
        >>> list_constraints()
        ['cifar10-200k', 'mnist-10k', 'mnist-12k', 'mnist-20k', 'mnist-8k']
    """
    folder = resources.files("constrained_cnn.constraints") / "specs"
    names = (file.name for file in folder.iterdir())
    return sorted(name.removesuffix(".toml") for name in names if name.endswith(".toml"))


def get_constraints(name: str) -> Constraints:
    """Return constraints that come with the package.

    Raises:
        InvalidInputError: If there are none of that name; the nearest is suggested.

    Examples:
        >>> get_constraints("mnist-12k").rules[0].label
        'R1: parameters'
    """
    check_choice("constraints", name, list_constraints())
    file = resources.files("constrained_cnn.constraints") / "specs" / f"{name}.toml"
    with resources.as_file(file) as path:
        return load_constraints(path)
