"""How many seeds an hour: one after another, and several at a time.

    python -m benchmarks.many_seeds --seeds 16

trains the reference network for the same number of epochs with every seed, in each way, in turns,
and prints seconds for all of them and the ratio to one after another. On a CPU several seeds go to
processes; on a GPU their steps are branches of one CUDA graph, beside ``torch.func.vmap`` over
stacked weights, which is written here and is no part of the library.
"""

import argparse
import json
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, stack_module_state, vmap

from benchmarks import source_way
from constrained_cnn import data, models, recipes
from constrained_cnn.data import ImageSet
from constrained_cnn.errors import ConstrainedCNNError, check_integer
from constrained_cnn.recipes import describe_environment
from constrained_cnn.record import write_atomically
from constrained_cnn.training import TrainConfig, Trainer, seeded_model

__all__ = ["main", "make_model", "vmap_way"]

SCHEMA_VERSION = 1
RESULTS = Path(__file__).parent / "results"
ALONE = "one after another"

Way = Callable[[TrainConfig, ImageSet, Sequence[int], torch.device], None]


def make_model() -> nn.Module:
    """Return a new reference network."""
    return models.create_model("mnist_12k")


def _plain_model() -> nn.Module:
    """Return one of torch's own layers, as those of the library cannot go through vmap."""
    model = make_model()
    source_way.use_torch_parts(model)
    return model


def one_after_another(
    config: TrainConfig, images: ImageSet, seeds: Sequence[int], device: torch.device
) -> None:
    """Train each seed with all that the machine has."""
    Trainer(config, device=device, progress=False).fit_many(make_model, seeds, images, workers=1)


def at_once(
    config: TrainConfig, images: ImageSet, seeds: Sequence[int], device: torch.device
) -> None:
    """Train them as the library does: in processes on a CPU, as branches of a graph on a GPU."""
    Trainer(config, device=device, progress=False).fit_many(make_model, seeds, images)


def vmap_way(
    config: TrainConfig, images: ImageSet, seeds: Sequence[int], device: torch.device
) -> None:
    """Train stacked copies by one vectorised step, SGD with Nesterov momentum written by hand."""
    networks = [seeded_model(_plain_model, seed).to(device).train() for seed in seeds]
    weights, buffers = stack_module_state(networks)
    base = _plain_model().to(device).train()
    options: dict[str, Any] = dict(config.optimizer_options or {})
    momentum, decay = options.get("momentum", 0.0), options.get("weight_decay", 0.0)
    moving = {name: torch.zeros_like(part) for name, part in weights.items()}

    def loss_of(own: Any, held: Any, inputs: Tensor, targets: Tensor) -> Tensor:
        outputs = functional_call(base, (own, held), (inputs,))
        return nn.functional.cross_entropy(outputs, targets)

    step = vmap(grad_and_value(loss_of), randomness="different")
    resident = images.to(device)
    for epoch in range(1, config.epochs + 1):
        epochs = [resident.training_batches(config.batch_size, seed=s, epoch=epoch) for s in seeds]
        for batches in zip(*epochs, strict=True):
            inputs = torch.stack([one for one, _ in batches])
            targets = torch.stack([one for _, one in batches])
            gradients, _ = step(weights, buffers, inputs, targets)
            with torch.no_grad():
                for name, weight in weights.items():
                    gradient = gradients[name] + decay * weight
                    moving[name].mul_(momentum).add_(gradient)
                    weight.sub_(config.learning_rate * (gradient + momentum * moving[name]))


def _run(options: argparse.Namespace, console: Console) -> dict[str, Any]:
    count = check_integer("seeds", options.seeds, minimum=2)
    repeats = check_integer("repeats", options.repeats, minimum=1)
    recipe = recipes.get_recipe("mnist-12k")
    config = TrainConfig.from_dict(
        {**recipe.config.to_dict(), "epochs": options.epochs, "precise_bn": None}
    )
    device = Trainer(config, device=options.device).device
    try:
        images, _ = data.load_mnist(options.data_dir, download=False)
    except data.MissingDataError:
        images, _ = data.load_digits()
        console.print("No MNIST in the folders searched: these are the digits.", style="bold")
    wanted = check_integer("steps", options.steps, minimum=1) * config.batch_size
    images = images.subset(torch.arange(wanted) % len(images)).augmented(recipe.augmentation)
    seeds = range(count)
    ways: dict[str, Way] = {ALONE: one_after_another, "fit_many": at_once}
    if device.type == "cuda":
        ways["vmap"] = vmap_way
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for repeat in range(repeats):
        for name, way in ways.items():
            console.print(f"{name}, repeat {repeat + 1} of {repeats}", style="dim")
            started = time.perf_counter()
            way(config, images, seeds, device)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            seconds[name].append(time.perf_counter() - started)
    table = Table(title=f"Seeds: {count}; epochs: {options.epochs}; steps of each: {options.steps}")
    for heading in ("way", "seconds", "times as fast"):
        table.add_column(heading, justify="left" if heading == "way" else "right")
    rows = []
    for name, times in seconds.items():
        pairs = zip(seconds[ALONE], times, strict=True)
        ratio = statistics.median(alone / own for alone, own in pairs)
        rows.append({"way": name, "seconds": times, "times_as_fast": ratio})
        table.add_row(name, f"{statistics.median(times):.1f}", f"{ratio:.2f}")
    console.print(table)
    return {
        "schema_version": SCHEMA_VERSION,
        "benchmark": "many_seeds",
        "environment": describe_environment(device),
        "device": device.type,
        "data": images.name,
        "seeds": count,
        "epochs": options.epochs,
        "steps": options.steps,
        "repeats": repeats,
        "ways": rows,
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print a table, write the JSON file; return the exit status."""
    words = sys.argv[1:] if arguments is None else list(arguments)
    parser = argparse.ArgumentParser(prog="python -m benchmarks.many_seeds", description=__doc__)
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda (default: auto)")
    parser.add_argument("--seeds", type=int, default=16, help="how many (default 16)")
    parser.add_argument("--epochs", type=int, default=2, help="of each seed (default 2)")
    parser.add_argument("--steps", type=int, default=60, help="in an epoch (default 60)")
    parser.add_argument("--repeats", type=int, default=3, help="of each way (default 3)")
    parser.add_argument("--data-dir", metavar="DIR", help="where MNIST lies")
    parser.add_argument("--out", metavar="FILE.json")
    options = parser.parse_args(words)
    console = Console(highlight=False)
    try:
        content = _run(options, console)
        content["command"] = shlex.join(["python", "-m", "benchmarks.many_seeds", *words])
        out = Path(options.out or RESULTS / f"many_seeds-{content['device']}.json")
        write_atomically(out, (json.dumps(content, indent=1) + "\n").encode())
    except ConstrainedCNNError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    console.print(f"Every figure: {out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
