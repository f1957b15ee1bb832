"""The command line: ``constrained-cnn`` and ``python -m constrained_cnn``.

Exit status: 0 done, 1 a rule is broken or a proof failed, 2 cannot run, or tell, or not in full,
130 stopped by Ctrl-C. Nothing
heavy is imported until a command needs it, so ``--help`` answers at once.
"""

import argparse
import io
import os
import sys
from collections.abc import Sequence

from constrained_cnn.cli._diff import add_diff_command
from constrained_cnn.cli._networks import add_network_commands
from constrained_cnn.cli._rules import add_check_command
from constrained_cnn.cli._runs import add_run_commands
from constrained_cnn.cli._status import EXIT_CANNOT_RUN, EXIT_INTERRUPTED
from constrained_cnn.errors import ConstrainedCNNError, escape_controls

__all__ = ["main", "make_parser"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status.

    Args:
        arguments: Words after the command's name; None takes the process's own.
    """
    _prepare_streams()
    options = make_parser().parse_args(arguments)
    try:
        status: int = options.command(options)
        sys.stdout.flush()
    except ConstrainedCNNError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_CANNOT_RUN
    except BrokenPipeError:  # whoever read has had enough, as `head` has
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_CANNOT_RUN
    except OSError as error:
        print(f"error: {escape_controls(str(error))}", file=sys.stderr)
        return EXIT_CANNOT_RUN
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return EXIT_INTERRUPTED
    return status


def _prepare_streams() -> None:
    """Let nothing that is printed fail: to a closed stream, or in an encoding that lacks a sign."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            # Open to the end of the process; it takes the place of the one that was closed.
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
        elif isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="backslashreplace")


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the whole command line."""
    import constrained_cnn

    parser = argparse.ArgumentParser(
        prog="constrained-cnn",
        description="Design, prove and train small convolutional networks under hard constraints.",
    )
    parser.add_argument("--version", action="version", version=constrained_cnn.__version__)
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    add_run_commands(commands)
    add_network_commands(commands)
    add_check_command(commands)
    add_diff_command(commands)
    return parser
