"""Constraints from plain data, from TOML and by name, and back to TOML."""

import dataclasses
import os
import re
import tomllib
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import tomli_w

from constrained_cnn.constraints._constraints import Constraints
from constrained_cnn.constraints._rule import AllOf, AnyOf, Not, Rule
from constrained_cnn.constraints._table import find_rule, rule_kinds
from constrained_cnn.errors import InvalidInputError, check_choice, check_known_keys
from constrained_cnn.record import write_atomically

_KEYS = ("name", "about", "extends", "rules")
TABLE = "constrained-cnn"


def constraints_from_dict(content: Mapping[str, Any], *, name: str = "rules") -> Constraints:
    """Return constraints from plain data, as :meth:`Constraints.to_dict` gives it.

    ``extends`` names rules that come with the package, to which these are added; one that has the
    name of an earlier one replaces it.

    Args:
        content: The data: ``name``, ``about``, ``extends`` and ``rules``, each rule with its kind
            under ``rule``.
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
        raise InvalidInputError(f"constraints={content!r}: must be a table")
    check_known_keys("constraints", content, _KEYS)
    given = content.get("rules", [])
    if not isinstance(given, list | tuple):
        raise InvalidInputError(f"rules={given!r}: must be a list of tables, [[rules]] in TOML")
    rules = []
    for number, one in enumerate(given, start=1):
        try:
            rules.append(rule_from_dict(one))
        except InvalidInputError as error:
            raise _RuleError(f"rule {number}: {error}", number) from error
    base = content.get("extends")
    own = {key: content[key] for key in ("name", "about") if key in content}
    if base is None:
        return Constraints(tuple(rules), **{"name": name, **own})
    if not isinstance(base, str):
        raise InvalidInputError(f"extends={base!r}: must be the name of rules, such as 'mnist-12k'")
    extended = get_constraints(base)
    if rules:
        extended = extended + Constraints(tuple(rules))
    return dataclasses.replace(extended, **{"name": name, **own})


class _RuleError(InvalidInputError):
    """A rule is wrong; knows which."""

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.number = number


def rule_from_dict(content: Mapping[str, Any]) -> Rule:
    """Return a rule from plain data, as :meth:`Rule.to_dict` gives it.

    Raises:
        InvalidInputError: If its kind or a key is unknown, a key is missing, or a value is wrong.

    Examples:
        >>> rule_from_dict({"rule": "count", "layer": "max_pool", "exactly": 2}).title
        'max_pool'
    """
    if not isinstance(content, Mapping):
        raise InvalidInputError(f"{content!r}: must be a table with the kind under rule")
    kind = content.get("rule")
    if kind is None:
        raise InvalidInputError(
            f"{dict(content)!r}: says no kind; give it under rule, one of {', '.join(rule_kinds())}"
        )
    rule = find_rule(kind)
    parts = dataclasses.fields(rule)
    keys = [part.name for part in parts]
    given = {key: value for key, value in content.items() if key != "rule"}
    check_known_keys(str(kind), given, keys)
    for part in parts:
        needed = part.default is dataclasses.MISSING and part.default_factory is dataclasses.MISSING
        if needed and part.name not in given:
            raise InvalidInputError(f"{kind}: {part.name} is missing")
    if rule in (AllOf, AnyOf):
        listed = given["of"]
        if not isinstance(listed, list | tuple):
            raise InvalidInputError(f"{kind}: of={listed!r}: must be a list of rules")
        given["of"] = tuple(map(rule_from_dict, listed))
    elif rule is Not:
        given["of"] = rule_from_dict(given["of"])
    try:
        return rule(**{key: _frozen(value) for key, value in given.items()})
    except InvalidInputError as error:
        raise InvalidInputError(f"{kind}: {error}") from error


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
    file = Path(path)
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no text in UTF-8"
        raise InvalidInputError(f"cannot read rules {str(file)!r}: {reason}") from error
    try:
        content = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise InvalidInputError(f"{str(file)!r} is not TOML: {error}") from error
    default = file.stem
    if file.name == "pyproject.toml":
        content = content.get("tool", {}).get(TABLE)
        default = TABLE
        if content is None:
            raise InvalidInputError(f"{str(file)!r} has no table [tool.{TABLE}]")
    try:
        return constraints_from_dict(content, name=default)
    except InvalidInputError as error:
        line = _line_of(text, error)
        where = f"{file}, line {line}" if line else str(file)
        raise InvalidInputError(f"{where}: {error}") from error


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


def _line_of(text: str, error: InvalidInputError) -> int | None:
    """Return the line of what an error speaks of, as well as it can be found in the text."""
    lines = text.splitlines()
    first, last = 0, len(lines)
    if isinstance(error, _RuleError):
        heads = [i for i, line in enumerate(lines) if re.match(r"\s*\[\[.*\brules\s*\]\]", line)]
        if len(heads) >= error.number:
            first = heads[error.number - 1]
            last = heads[error.number] if len(heads) > error.number else last
    quoted = re.findall(r"(?:unknown key |rule=|^)'?([\w-]+)'?", str(error).split(": ", 1)[-1])
    named = re.findall(r"'([^']+)'|(\w+)=", str(error))
    words = [word for pair in named for word in pair if word] + quoted
    for word in words:
        for number in range(first, last):
            if re.search(rf"(?<![\w-]){re.escape(word)}(?![\w-])", lines[number]):
                return number + 1
    return first + 1 if isinstance(error, _RuleError) and first else None
