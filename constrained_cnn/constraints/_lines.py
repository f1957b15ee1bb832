"""Find the line of a TOML text that something was said in; the parser does not tell."""

import bisect
import functools
import itertools
import re
import tomllib
from collections.abc import Mapping, Sequence
from typing import Any

Path = Sequence[str | int]


def line_of(text: str, path: Path) -> int | None:
    r"""Return the line in which something was said; None if it cannot be found.

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

    @functools.cache
    def read(number: int) -> Mapping[str, Any] | None:
        """Return what the first lines say; None where a statement is cut short."""
        try:
            return tomllib.loads("\n".join(lines[:number]))
        except ValueError:
            return None

    def complete(number: int) -> int:
        """Return how many of the first lines hold whole statements."""
        while read(number) is None:
            number -= 1
        return number

    numbers = range(len(lines) + 1)
    last = bisect.bisect_left(numbers, True, key=lambda one: _holds(read(complete(one)), path))
    first = complete(last - 1)
    return first + _within(lines[first:last], path)


def _holds(content: Any, path: Path) -> bool:
    for key in path:
        try:
            content = content[key]
        except (LookupError, TypeError):
            return False
    return True


def _within(lines: Sequence[str], path: Path) -> int:
    """Return the number of the line, among those of one statement, that a path speaks of."""
    keys = [key for key in path if isinstance(key, str)]
    numbers = [key for key in path if isinstance(key, int)]
    if len(lines) == 1 or not keys or not numbers:
        return 1
    # Of tables in a list: the one of that number begins with so many braces.
    opened = itertools.accumulate(line.count("{") for line in lines)
    first = next((number for number, braces in enumerate(opened) if braces > numbers[-1]), 0)
    for offset, line in enumerate(lines[first:], start=first):
        if re.search(rf"(?<![\w-]){re.escape(keys[-1])}(?![\w-])", line.split("#")[0]):
            return offset + 1
    return first + 1
