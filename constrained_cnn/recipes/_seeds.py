"""A recipe for many seeds: one after another, or several at a time."""

import os
from collections.abc import Mapping, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from constrained_cnn.errors import counted
from constrained_cnn.recipes._folder import (
    finished_record,
    is_begun,
    run_folder,
    seeds_folder,
)
from constrained_cnn.recipes._recipe import Recipe, get_recipe, run_name
from constrained_cnn.recipes._run import check_same_experiment, config_of, load_sets, run
from constrained_cnn.record import RunRecord
from constrained_cnn.training import (
    InterruptGuard,
    SeedsProgress,
    Trainer,
    World,
    check_resume,
    check_same_seeds,
    check_seeds,
    in_processes,
    share_cores,
)
from constrained_cnn.training._progress import standard_error


def run_seeds(
    recipe: str | Recipe,
    seeds: Sequence[int],
    *,
    out: str | os.PathLike[str] | None = None,
    resume: bool | str = False,
    workers: int | None = 1,
    **options: Any,
) -> list[RunRecord]:
    """Run a recipe once for each seed, each in a folder ``seed-N`` of its own.

    Args:
        recipe: A recipe or its name.
        seeds: The seeds, listed in advance.
        out: Folder of the runs; None takes a new one below ``runs``.
        resume: Keep the seeds that are finished and go on with the others; ``"if-begun"`` to start
            them where there are none.
        workers: Number of processes that share the seeds; None for one for each core, on a GPU for
            1. A recipe or model of your own must be registered at the top of a module.
        options: As for :func:`run`.

    Processes that ``torchrun`` started share the seeds as well, each training its own; with
    ``together=False`` each trains all of them, into a folder of its own.

    Returns:
        The records in the order of the seeds; seeds that were not begun when the runs were stopped
        are missing.

    Raises:
        InvalidInputError: If there are no seeds, or one twice; and as for :func:`run`.
    """
    seeds = check_seeds(seeds)
    recipe = get_recipe(recipe) if isinstance(recipe, str) else recipe
    check_resume(resume)
    name = run_name(recipe, options.get("data_name"), held_out=options.get("held_out", 0))
    device = Trainer(recipe.config, device=options.get("device", "auto")).device
    if workers is None and device.type != "cpu":
        workers = 1
    together = options.get("together", True)
    with World.joined(device, patient=True) if together else nullcontext(World()) as world:
        check_same_seeds(world, seeds)
        base = world.from_first(lambda: seeds_folder(out, name, seeds, resume=resume))
        if world.size == 1:
            found = _run_all(recipe, seeds, base, resume, workers, options)
            return [found[seed] for seed in seeds if seed in found]
        # Each process has its own seeds, and trains them alone.
        own = seeds[world.rank :: world.size]
        alone = {**options, "together": False}
        parts = world.gathered(_run_all(recipe, own, base, resume, 1, alone, quiet=True))
        found = {seed: record for part in parts for seed, record in part.items()}
        return [found[seed] for seed in seeds if seed in found]


def _run_all(
    recipe: Recipe,
    seeds: Sequence[int],
    base: Path,
    resume: bool | str,
    workers: int | None,
    options: Mapping[str, Any],
    *,
    quiet: bool = False,
) -> dict[int, RunRecord]:
    """Run the seeds in this process or in several of its own; return the record of each.

    With ``quiet`` a line is shown for each seed that is done, and not how far one is.
    """
    records: dict[int, RunRecord] = {}
    sets = None
    for seed in seeds:  # before the first of them runs
        folder = base / f"seed-{seed}"
        if not resume:
            run_folder(folder, recipe.name, resume=False)
        elif (kept := finished_record(folder)) is not None:
            words = {"held_out": options.get("held_out", 0)}
            sets = sets or load_sets(
                recipe, options.get("data_name"), options.get("data_dir"), **words
            )
            config = config_of(recipe, seed, options.get("epochs"))
            check_same_experiment(folder, kept, recipe, config, sets)
            records[seed] = kept
    left = [seed for seed in seeds if seed not in records]
    workers, threads = share_cores(max(1, len(left)), workers, options.get("threads"))
    shows = bool(options.get("progress", True))
    if workers == 1:
        console = standard_error()
        single = {**options, "progress": False} if quiet else options
        with InterruptGuard() as guard:  # a signal may come between two seeds
            for seed in left:
                if guard.requested:
                    break
                if shows and not quiet:
                    console.print(f"seed {seed}, {seeds.index(seed) + 1} of {len(seeds)}")
                records[seed] = _run_one(recipe, seed, base, resume, single)
                if shows and quiet:
                    console.print(f"seed {seed}: {_say(records[seed])}")
                if records[seed].status == "interrupted":
                    break
    elif left:
        epochs = options.get("epochs") or recipe.config.epochs
        shown = SeedsProgress(len(left), epochs, enabled=shows)
        work = _RunOne(recipe, base, resume, {**options, "threads": threads})
        found = in_processes(
            work, left, workers=workers, threads=threads, on_message=shown.end_epoch
        )
        with closing(found):  # or, after an error here, the processes would stay
            for seed, record in found:
                records[seed] = record
                shown.end_seed(seed, _say(record))
    return records


@dataclass(frozen=True)
class _RunOne:
    """Runs one seed: what is sent to a process."""

    recipe: Recipe
    base: Path
    resume: bool | str
    options: Mapping[str, Any]

    def __call__(self, seed: int, send: Any) -> RunRecord:
        options = {**self.options, "progress": send}
        return _run_one(self.recipe, seed, self.base, self.resume, options)


def _run_one(
    recipe: Recipe, seed: int, base: Path, resume: bool | str, options: Mapping[str, Any]
) -> RunRecord:
    folder = base / f"seed-{seed}"
    begun = bool(resume) and is_begun(folder)
    return run(recipe, seed, out=folder, resume=begun, **options)


def _say(record: RunRecord) -> str:
    if record.status != "finished":
        return f"stopped after {counted(record.epochs, 'epoch')}"
    kind = "validation" if "validation_accuracy" in record.result else "test"
    accuracy = record.result[f"{kind}_accuracy"]
    return f"{kind} accuracy {accuracy:.2f} %, {record.result['seconds']:.1f} s"
