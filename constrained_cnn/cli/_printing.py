"""Print tables and texts to a terminal or a file."""

from typing import Any


def width_of_terminal() -> int | None:
    """Return how many columns there are; None where it goes to a file."""
    from rich.console import Console

    console = Console()
    return console.width if console.is_terminal else None


def show(*parts: Any) -> None:
    """Print tables and texts: in colour and fitted to a terminal, whole and plain to a file."""
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False)
    for part in parts:
        if console.is_terminal:
            console.print(Text(part) if isinstance(part, str) else part)
        else:
            print(f"{part}\n" if not isinstance(part, str) else part)
