"""The command: ``python -m benchmarks.trainers``."""

import argparse
import importlib.metadata
import json
import shlex
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.trainers import _report
from benchmarks.trainers._task import KINDS, load_images
from benchmarks.trainers._ways import WAYS, lineup
from benchmarks.trainers._worker import Job, in_a_process, train_once
from constrained_cnn import recipes
from constrained_cnn.errors import ConstrainedCNNError, check_choice, check_integer
from constrained_cnn.plots import save_figure
from constrained_cnn.recipes import describe_environment
from constrained_cnn.record import write_atomically
from constrained_cnn.training import Trainer

SCHEMA_VERSION = 1
LINEAR_EPOCHS = 11
RESULTS = Path(__file__).parents[1] / "results"
DOCS = Path(__file__).parents[2] / "docs"


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print the tables, write the JSON file; return the exit status."""
    words = sys.argv[1:] if arguments is None else list(arguments)
    options = _make_parser().parse_args(words)
    if options.one:
        print(json.dumps(train_once(Job(**json.loads(options.one)))))
        return 0
    try:
        if options.publish:
            return _publish(options.publish)
        content = _measure(options, shlex.join(["python", "-m", "benchmarks.trainers", *words]))
    except (ConstrainedCNNError, OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for table in _report.tables(content):
        print(f"{table}\n")
    print(_report.conditions(content))
    if options.quick:
        print("Too short to say how fast a way is: it says that it works.")
    if options.out or not options.quick:
        out = options.out or RESULTS / f"trainers-{content['device']}.json"
        print("Every figure:", write_atomically(out, f"{json.dumps(content, indent=1)}\n".encode()))
    failures = _report.failures(content)
    for failure in failures:
        print("failed:", failure, file=sys.stderr)
    return 1 if failures else 0


def _make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.trainers", description=__doc__)
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda (default: auto)")
    parser.add_argument("--recipe", default="mnist-12k", help="whose network (default mnist-12k)")
    parser.add_argument("--steps", type=int, default=60, help="steps in an epoch (default 60)")
    parser.add_argument("--linear-steps", type=int, default=500, help="likewise (default 500)")
    parser.add_argument("--epochs", type=int, default=3, help="the first is not timed (default 3)")
    parser.add_argument("--repeats", type=int, default=5, help="timings of each (default 5)")
    parser.add_argument("--threads", type=int, help="threads of torch (default: its own choice)")
    parser.add_argument("--kinds", help=f"with commas between, of {', '.join(KINDS)}")
    parser.add_argument("--ways", help=f"with commas between, of {', '.join(WAYS)}")
    parser.add_argument("--quick", action="store_true", help="see that every way works; no file")
    parser.add_argument("--full", action="store_true", help="the network for 19 whole epochs")
    parser.add_argument("--data-dir", type=Path, metavar="DIR", help="where MNIST lies")
    parser.add_argument(
        "--out", type=Path, metavar="FILE.json", help="default: results/trainers-DEVICE.json"
    )
    parser.add_argument(
        "--publish", type=Path, metavar="FILE.json", help="fill docs/speed.md, draw its picture"
    )
    parser.add_argument("--one", metavar="JOB", help="train once, as these words in JSON say")
    return parser


def _measure(options: argparse.Namespace, command: str) -> dict[str, Any]:
    """Let all ways take turns, and return everything that was measured."""
    if options.quick:
        options.steps, options.epochs, options.linear_steps, options.repeats = 8, 2, 50, 1
    for name, least in (("steps", 1), ("epochs", 2), ("linear_steps", 1), ("repeats", 1)):
        check_integer(name, getattr(options, name), minimum=least)
    linear_epochs = 2 if options.quick else LINEAR_EPOCHS
    data_dir = None if options.data_dir is None else str(options.data_dir.resolve())
    if options.threads is not None:
        torch.set_num_threads(check_integer("threads", options.threads, minimum=1))
    recipe = recipes.get_recipe(options.recipe)
    device = Trainer(recipe.config, device=options.device).device
    epochs, steps = _report.FULL_RUN if options.full else (options.epochs, options.steps)
    order = _lineup(options, device.type)
    jobs = {
        (kind, way): Job(
            way=way,
            kind=kind,
            recipe=recipe.name,
            device=device.type,
            epochs=linear_epochs if kind.startswith("linear") else epochs,
            steps=options.linear_steps if kind.startswith("linear") else steps,
            threads=options.threads,
            data_dir=data_dir,
        )
        for kind, way in order
        if WAYS[way].installed
    }
    return {
        "schema_version": SCHEMA_VERSION,
        "benchmark": "trainers",
        "command": command,
        "environment": describe_environment(device),
        "device": device.type,
        "rivals": {way.package: _version(way.package) for way in WAYS.values() if way.package},
        "data": load_images(data_dir, 1).name,
        "recipe": recipe.name,
        "model": recipe.model,
        "batch_size": recipe.config.batch_size,
        "epochs": epochs,
        "steps": steps,
        "linear_epochs": linear_epochs,
        "linear_steps": options.linear_steps,
        "repeats": options.repeats,
        "threads": torch.get_num_threads(),
        "full": options.full,
        "lineup": order,
        "runs": _take_turns(list(jobs.values()), options.repeats),
    }


def _lineup(options: argparse.Namespace, device: str) -> list[tuple[str, str]]:
    kinds = options.kinds.split(",") if options.kinds else list(KINDS)
    ways = options.ways.split(",") if options.ways else list(WAYS)
    for name, given, known in (("kinds", kinds, KINDS), ("ways", ways, WAYS)):
        for one in given:
            check_choice(name, one, list(known))
    return [(kind, way) for kind in kinds for way in lineup(kind, device) if way in ways]


def _take_turns(jobs: Sequence[Job], repeats: int) -> list[dict[str, Any]]:
    """Run every job in a process of its own, one after another and over again."""
    runs = []
    for repeat in range(repeats):
        for job in jobs:
            result = in_a_process(job)
            runs.append({"kind": job.kind, "way": job.way, "repeat": repeat, **result})
            done = f"[{len(runs)}/{repeats * len(jobs)}] {job.kind}, {WAYS[job.way].title}"
            print(f"{done}: {_said(result)}", file=sys.stderr, flush=True)
    return runs


def _said(result: dict[str, Any]) -> str:
    if "failed" in result:
        return f"failed: {result['failed']}"
    return f"{1e6 * statistics.median(result['seconds']):,.0f} µs a step"


def _publish(file: Path) -> int:
    """Put the tables of a file of figures into the page, and draw its picture."""
    content = json.loads(file.read_text("utf-8"))
    _report.fill_page(DOCS / "speed.md", file.stem, _report.markdown(content, file.stem))
    print(DOCS / "speed.md")
    print(save_figure(_report.figure(content), DOCS / "images" / f"{file.stem}.png"))
    return 0


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


if __name__ == "__main__":
    sys.exit(main())
