"""Print tables and texts to a terminal or a file."""

from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from rich.console import Console


def plain_console(file: TextIO | None = None, *, stderr: bool = False) -> "Console":
    """Return a console that reads no text as markup; without a file, on standard output."""
    from rich.console import Console

    return Console(file=file, stderr=stderr, highlight=False, markup=False, emoji=False)


def width_of_terminal() -> int | None:
    """Return how many columns there are; None where it goes to a file."""
    console = plain_console()
    return console.width if console.is_terminal else None


def show(*parts: Any) -> None:
    """Print tables and texts: in colour and fitted to a terminal, whole and plain to a file."""
    console = plain_console()
    for part in parts:
        if console.is_terminal:
            console.print(part)
        else:
            print(f"{part}\n" if not isinstance(part, str) else part)
