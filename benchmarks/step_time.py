"""Milliseconds of a training step: the Trainer beside the source's way and a bare loop.

Run it with ``python -m benchmarks.step_time``; README.md says how to read the result.
"""

import argparse
import contextlib
import dataclasses
import io
import json
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from benchmarks import source_way
from constrained_cnn import data, models, recipes
from constrained_cnn.data import ImageSet
from constrained_cnn.errors import ConstrainedCNNError, check_integer
from constrained_cnn.recipes import Recipe, describe_environment
from constrained_cnn.record import write_atomically
from constrained_cnn.training import TrainConfig, Trainer

__all__ = ["WAYS", "Timing", "load_images", "main", "measure"]

SCHEMA_VERSION = 1
RECIPES = ("mnist-12k", "mnist-12k-source")
TRAINER = "Trainer"
RESULTS = Path(__file__).parent / "results"

# Trains the model in place and returns the seconds of each epoch.
Way = Callable[[nn.Module, ImageSet, TrainConfig, torch.device], list[float]]


def trainer_way(
    model: nn.Module, images: ImageSet, config: TrainConfig, device: torch.device
) -> list[float]:
    """Train with the library's Trainer."""
    history = Trainer(config, device=device).fit(model, images)
    return [row.seconds for row in history]


def bare_way(
    model: nn.Module, images: ImageSet, config: TrainConfig, device: torch.device
) -> list[float]:
    """Train with the least loop there is over the same batches: no figures, no progress."""
    images = images.to(device)
    layout = torch.channels_last if config.channels_last else torch.contiguous_format
    model.to(device).to(memory_format=layout)
    model.train()
    loss_of = config.make_loss()
    optimizer = config.make_optimizer(model.parameters())
    steps = config.epochs * images.steps(config.batch_size)
    scheduler = config.make_scheduler(optimizer, steps, config.epochs)
    seconds = []
    for epoch in range(1, config.epochs + 1):
        started = time.perf_counter()
        for inputs, targets in images.training_batches(
            config.batch_size, seed=config.seed, epoch=epoch, memory_format=layout
        ):
            optimizer.zero_grad()
            loss_of(model(inputs), targets).backward()
            optimizer.step()
            if scheduler is not None:
                scheduler.step()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - started)
    return seconds


WAYS: dict[str, Way] = {
    TRAINER: trainer_way,
    "source's way": source_way.train,
    "bare loop": bare_way,
}


@dataclass(frozen=True)
class Timing:
    """What one way takes for one network.

    Attributes:
        recipe: Name of the recipe.
        model: Name of the network.
        way: Name of the way.
        milliseconds: Per step, one figure for each repeat.
        ratio: Time over that of the Trainer: the median over the repeats of the ratio within one.
    """

    recipe: str
    model: str
    way: str
    milliseconds: tuple[float, ...]
    ratio: float

    @property
    def median(self) -> float:
        """Median over the repeats, in milliseconds."""
        return statistics.median(self.milliseconds)

    def to_dict(self) -> dict[str, Any]:
        """Return the timing as plain data."""
        return {**dataclasses.asdict(self), "median": self.median}


def measure(
    recipe: Recipe,
    images: ImageSet,
    device: torch.device,
    *,
    repeats: int,
    channels_last: bool = False,
) -> list[Timing]:
    """Time every way on the recipe's network, one after another and over again.

    Each time a new network is trained for two epochs, and the second is timed: in the first the
    machine warms up.

    Args:
        recipe: Network, augmentation and training configuration.
        images: The images of an epoch.
        device: Where to train.
        repeats: How many times each way is timed.
        channels_last: Whether all but the source's way get the channels innermost in memory.

    Returns:
        One timing for each of :data:`WAYS`, in order.
    """
    # Without what comes after the last step, which is no part of a step.
    config = dataclasses.replace(
        recipe.config, epochs=2, precise_bn=None, channels_last=channels_last
    )
    images = images.augmented(recipe.augmentation)
    steps = images.steps(config.batch_size)
    found: dict[str, list[float]] = {name: [] for name in WAYS}
    for _ in range(repeats):
        for name, way in WAYS.items():
            torch.manual_seed(config.seed)
            model = models.create_model(recipe.model)
            # Every way draws its progress in full, as in a terminal.
            with contextlib.redirect_stderr(_UnseenTerminal()):
                seconds = way(model, images, config, device)
            found[name].append(1000 * seconds[-1] / steps)
    return [
        Timing(
            recipe.name,
            recipe.model,
            name,
            tuple(times),
            statistics.median(a / b for a, b in zip(times, found[TRAINER], strict=True)),
        )
        for name, times in found.items()
    ]


class _UnseenTerminal(io.StringIO):
    """Takes what is shown on a terminal, and forgets it."""

    def isatty(self) -> bool:
        return True

    def write(self, text: str) -> int:
        return len(text)


def load_images(root: str | None, count: int) -> ImageSet:
    """Return ``count`` training images: MNIST if it is there, else the digits of scikit-learn.

    A set with fewer images is repeated.
    """
    try:
        train, _ = data.load_mnist(root, download=False)
    except data.MissingDataError:
        train, _ = data.load_digits()
    return train.subset(torch.arange(count) % len(train))


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print a table, write the JSON file; return the exit status."""
    words = sys.argv[1:] if arguments is None else list(arguments)
    options = _make_parser().parse_args(words)
    console = Console(highlight=False)
    try:
        content = _run(options, console)
        content["command"] = shlex.join(["python", "-m", "benchmarks.step_time", *words])
        device = content["device"]
        out = Path(options.out) if options.out else RESULTS / f"step_time-{device}.json"
        write_atomically(out, (json.dumps(content, indent=1) + "\n").encode())
    except ConstrainedCNNError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    console.print(f"Every figure: {out}")
    return 0


def _make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.step_time", description=__doc__)
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda (default: auto)")
    parser.add_argument("--steps", type=int, default=60, help="steps in an epoch (default 60)")
    parser.add_argument("--repeats", type=int, default=5, help="timings of each (default 5)")
    parser.add_argument(
        "--channels-last",
        action="store_true",
        help="all but the source's way get the channels innermost in memory",
    )
    parser.add_argument("--threads", type=int, help="threads of torch (default: its own choice)")
    parser.add_argument("--data-dir", metavar="DIR", help="where MNIST lies")
    parser.add_argument(
        "--out", metavar="FILE.json", help="default: benchmarks/results/step_time-DEVICE.json"
    )
    return parser


def _run(options: argparse.Namespace, console: Console) -> dict[str, Any]:
    steps = check_integer("steps", options.steps, minimum=1)
    repeats = check_integer("repeats", options.repeats, minimum=1)
    if options.threads is not None:
        torch.set_num_threads(check_integer("threads", options.threads, minimum=1))
    chosen = [recipes.get_recipe(name) for name in RECIPES]
    device = Trainer(chosen[0].config, device=options.device).device
    if device.type != "cuda":
        why = "" if torch.cuda.is_available() else ": this machine has no CUDA device"
        console.print(f"Not measured on CUDA{why}.", style="bold")
    batch_size = chosen[0].config.batch_size
    images = load_images(options.data_dir, steps * batch_size)
    if images.name != "mnist":
        console.print(
            f"No MNIST in the folders searched: the images are of {images.name}.", style="bold"
        )
    environment = describe_environment(device)
    timings: list[Timing] = []
    for recipe in chosen:
        rows = measure(recipe, images, device, repeats=repeats, channels_last=options.channels_last)
        console.print(_table(rows))
        timings += rows
    console.print(
        f"{steps} steps of {batch_size} images of {images.name}, {repeats} repeats; "
        f"{environment['device']}; {environment['processor']}, {environment['cores']} cores, "
        f"{environment['threads']} threads; torch {torch.__version__}"
    )
    return {
        "schema_version": SCHEMA_VERSION,
        "benchmark": "step_time",
        "command": None,
        "environment": environment,
        "device": device.type,
        "data": images.name,
        "image_shape": images.shape,
        "batch_size": batch_size,
        "channels_last": options.channels_last,
        "steps": steps,
        "repeats": repeats,
        "timings": [timing.to_dict() for timing in timings],
    }


def _table(timings: Sequence[Timing]) -> Table:
    table = Table(title=f"{timings[0].model}, milliseconds per training step")
    table.add_column("way")
    for heading in ("median", "from", "to", f"times {TRAINER}"):
        table.add_column(heading, justify="right")
    for timing in timings:
        figures = (timing.median, min(timing.milliseconds), max(timing.milliseconds))
        cells = [f"{figure:.2f}" for figure in figures]
        table.add_row(timing.way, *cells, f"{timing.ratio:.2f}")
    return table


if __name__ == "__main__":
    sys.exit(main())
