"""How long rules take to judge, and widths to find: ``python -m benchmarks.rules_and_widths``."""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import nn

from constrained_cnn import models
from constrained_cnn.blocks import ConvBNDrop, GAPHead
from constrained_cnn.constraints import check
from constrained_cnn.recipes import describe_environment
from constrained_cnn.record import write_atomically
from constrained_cnn.sizing import fit_widths
from constrained_cnn.table import Table
from constrained_cnn.tracing import trace

__all__ = ["main"]

SCHEMA_VERSION = 1
RESULTS = Path(__file__).parent / "results" / "rules_and_widths.json"
SHAPE = (1, 28, 28)
COMMAND = ("check", "mnist_12k", "--input", "1,28,28", "--spec", "mnist-12k", "--json")
SEVEN = ("a", "b", "c", "d", "e", "f", "g")


def seven(a: int, b: int, c: int, d: int, e: int, f: int, g: int) -> nn.Module:
    """Return a chain of seven convolutions with two pools."""
    return nn.Sequential(
        ConvBNDrop(1, a, padding=1),
        ConvBNDrop(a, b, padding=1),
        nn.MaxPool2d(2),
        ConvBNDrop(b, c, padding=1),
        ConvBNDrop(c, d, padding=1),
        ConvBNDrop(d, e, padding=1),
        nn.MaxPool2d(2),
        ConvBNDrop(e, f, padding=1),
        ConvBNDrop(f, g, padding=1),
        GAPHead(g, 10),
    )


def in_a_process(*words: str) -> None:
    """Run Python anew, and wait for it."""
    subprocess.run([sys.executable, *words], check=True, stdout=subprocess.DEVNULL)


def widths() -> None:
    """Find the best ten networks of exactly 12,000 parameters, of 61 to the 7th."""
    ranges = {name: range(4, 65) for name in SEVEN}
    fits = fit_widths(seven, ranges, SHAPE, target={"parameters": 12_000})
    assert [fit.difference for fit in fits] == [0] * 10


def tasks() -> dict[str, Callable[[], Any]]:
    """Return what is timed, by name."""
    model = models.create_model("mnist_12k")
    return {
        "import torch, in a process of its own": lambda: in_a_process("-c", "import torch"),
        "constrained-cnn check, in a process of its own": lambda: in_a_process(
            "-m", "constrained_cnn", *COMMAND
        ),
        "trace": lambda: trace(model, SHAPE),
        "check, 22 rules": lambda: check(model, SHAPE, "mnist-12k"),
        "fit_widths, seven widths of 4 to 64": widths,
    }


def measure(repeats: int, chosen: Sequence[str]) -> dict[str, list[float]]:
    """Return the seconds of each task; they take turns, after a round that is not timed."""
    found: dict[str, list[float]] = {name: [] for name in chosen}
    every = tasks()
    for turn in range(repeats + 1):
        for name in chosen:
            begin = time.perf_counter()
            every[name]()
            if turn:
                found[name].append(time.perf_counter() - begin)
    return found


def table(seconds: dict[str, list[float]]) -> Table:
    """Return a row for each task."""
    rows = [
        (name, f"{statistics.median(every):.3g}", f"{min(every):.3g}", f"{max(every):.3g}")
        for name, every in seconds.items()
    ]
    return Table(("<task", "median, s", "from", "to"), tuple(rows))


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print the table, keep every figure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only", nargs="+", choices=list(tasks()), default=list(tasks()))
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    seconds = measure(options.repeats, options.only)
    console = Console(width=100, highlight=False)
    console.print(table(seconds))
    content = {
        "schema_version": SCHEMA_VERSION,
        "command": f"python -m benchmarks.rules_and_widths --repeats {options.repeats}",
        "environment": describe_environment(torch.device("cpu")),
        "seconds": seconds,
    }
    console.print(write_atomically(options.out, f"{json.dumps(content, indent=1)}\n".encode()))


if __name__ == "__main__":
    main()
