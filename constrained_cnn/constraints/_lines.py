"""Find the line of a TOML text that something was said in; the parser does not tell."""

import itertools
import re
import tomllib
from collections.abc import Mapping, Sequence
from typing import Any

Path = Sequence[str | int]


def line_of(text: str, path: Path) -> int | None:
    r"""Return the line in which something was said; None if it cannot be found.

    The table is found first, then its lines are read one after another until the path is there.
    What is said over several lines, as a list of tables can be, is looked through for the last key.

    Args:
        text: The text, which is TOML.
        path: Keys, and numbers within lists. Where its last part was not said, the line is that of
            the part before.

    Examples:
        >>> line_of('a = 1\n[[b]]\nc = 2\n', ("b", 0, "c"))
        3
    """
    lines = text.split("\n")
    whole = tomllib.loads(text)
    while path and not _holds(whole, path):
        path = path[:-1]
    if not path:
        return None
    first, last = _table_of(lines, path)
    complete = first  # lines up to which all that was begun is ended
    for number in range(first + 1, last + 1):
        content = _parsed(lines[:number])
        if content is None:
            continue
        if _holds(content, path):
            return complete + _within(lines[complete:number], path)
        complete = number
    return None


def _table_of(lines: Sequence[str], path: Path) -> tuple[int, int]:
    """Return the lines, from and to, of the table in which a path is said first."""
    heads = [number for number, line in enumerate(lines) if line.lstrip().startswith("[")]
    cuts = [0, *heads, len(lines)]
    low, high = 0, len(cuts) - 1  # at low the path is not there yet, at high it is
    while high - low > 1:
        middle = (low + high) // 2
        content = _parsed(lines[: cuts[middle]])
        if content is None:  # it is no head, but a line of a list or a text
            del cuts[middle]
            high -= 1
        elif _holds(content, path):
            high = middle
        else:
            low = middle
    return cuts[low], cuts[high]


def _parsed(lines: Sequence[str]) -> Mapping[str, Any] | None:
    try:
        return tomllib.loads("\n".join(lines))
    except ValueError:
        return None


def _holds(content: Any, path: Path) -> bool:
    for key in path:
        if isinstance(key, int):
            if not isinstance(content, list) or len(content) <= key:
                return False
            content = content[key]
        elif not isinstance(content, Mapping) or key not in content:
            return False
        else:
            content = content[key]
    return True


def _within(lines: Sequence[str], path: Path) -> int:
    """Return the number of the line, among those of one statement, that a path speaks of."""
    keys = [key for key in path if isinstance(key, str)]
    numbers = [key for key in path if isinstance(key, int)]
    if len(lines) == 1 or not keys or not numbers:
        return len(lines) if len(lines) == 1 else 1
    # Of tables in a list: the one of that number begins with so many braces.
    opened = itertools.accumulate(line.count("{") for line in lines)
    first = next((number for number, braces in enumerate(opened) if braces > numbers[-1]), 0)
    for offset, line in enumerate(lines[first:], start=first):
        if re.search(rf"(?<![\w-]){re.escape(keys[-1])}(?![\w-])", line.split("#")[0]):
            return offset + 1
    return first + 1
