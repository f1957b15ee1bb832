"""Words of the command line that are checked before anything runs."""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from constrained_cnn.cli._inputs import add_input
from constrained_cnn.errors import InvalidInputError, OutputError

MODEL_HELP = """
MODEL is a model of the package (mnist_12k), MODULE:FACTORY (such as torchvision.models:resnet18)
or FILE.py:FACTORY. The factory is a class or function that takes no arguments and gives a
torch.nn.Module, or such a module itself. To find it, its file is run.
"""

_PICTURES = (".png", ".svg", ".pdf")


def count(text: str) -> int:
    """Return the number that a text names, 0 or more.

    Examples:
        >>> count("3")
        3
    """
    if not text.isdecimal() or len(text) > 9:
        raise argparse.ArgumentTypeError(f"{text!r}: must be a number, 0 or more")
    return int(text)


def check_pictures(files: Sequence[str | None]) -> None:
    """Raise if a picture cannot be written where it shall go.

    Args:
        files: The files, None for each that is not asked for.

    Raises:
        InvalidInputError: If a file has no name, another suffix, or is named twice.
        OutputError: If it is a folder, or its folder is none and cannot be made.
    """
    named = [file for file in files if file is not None]
    for name in named:
        file = Path(name)
        if file.suffix.lower() not in _PICTURES:
            raise InvalidInputError(f"path={name!r}: must end in .png, .svg or .pdf")
        if file.is_dir():
            raise OutputError(f"path={name!r}: is a folder; name a file")
        above = next(folder for folder in file.absolute().parents if folder.exists())
        if not above.is_dir() or not os.access(above, os.W_OK):
            raise OutputError(f"path={name!r}: nothing can be written to {str(above)!r}")
    if len({Path(name).resolve() for name in named}) < len(named):
        raise InvalidInputError(
            f"path={named[0]!r}: is to hold two pictures; name another file for one of them"
        )


def add_model(parser: argparse.ArgumentParser) -> None:
    """Add the network, and what it is given."""
    parser.add_argument(
        "model", metavar="MODEL", help="mnist_12k, MODULE:FACTORY or FILE.py:FACTORY"
    )
    add_input(parser)


def add_formats(parser: argparse.ArgumentParser) -> argparse._MutuallyExclusiveGroup:
    """Add the forms in which it may be printed."""
    formats = parser.add_mutually_exclusive_group()
    formats.add_argument("--json", action="store_true", help="print JSON")
    formats.add_argument("--markdown", action="store_true", help="print Markdown")
    return formats


def add_spec(parser: argparse.ArgumentParser, what: str) -> None:
    """Add the rules.

    Args:
        parser: Where to.
        what: What they are for, and where they come from if none are named.
    """
    parser.add_argument(
        "--spec", metavar="RULES", help=f"{what}; a name (mnist-12k) or a TOML file"
    )
