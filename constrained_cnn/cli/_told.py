"""What is told of runs: before they begin, and of what came of them."""

import argparse
import json
import os
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from constrained_cnn.cli._layers import layer_table
from constrained_cnn.errors import escape_controls

if TYPE_CHECKING:
    from pathlib import Path

    from rich.console import Console

    from constrained_cnn.recipes import Recipe
    from constrained_cnn.record import RunRecord
    from constrained_cnn.study import Sample


def stopped_of(records: "Sequence[RunRecord]") -> "RunRecord | None":
    """Return the last run that was interrupted; where processes share the seeds, any may be."""
    stopped = [record for record in records if record.status == "interrupted"]
    return stopped[-1] if stopped else None


def report(
    console: "Console", options: argparse.Namespace, records: "Sequence[RunRecord]", folder: "Path"
) -> None:
    """Say what came of the runs."""
    if not records:
        print(
            "Stopped before a seed was begun. To go on, give the same command again",
            file=sys.stderr,
        )
        return
    if options.seeds is not None:
        _keep_statistics(records, folder)
    if options.json:
        content = [record.to_dict() for record in records]
        print(json.dumps(content[0] if options.seeds is None else content))
    else:
        _print_records(console, records)
        if stopped_of(records) is None:
            _print_places(console, options, records, folder)
    missing = [] if options.seeds is None else options.seeds[:]
    missing = [seed for seed in missing if seed not in {record.seed for record in records}]
    if stopped_of(records) is not None or missing:
        kept = [_say_kept(one) for one in records if one.status == "interrupted"]
        if options.seeds is None:
            said = f"Stopped; {kept[0]} are kept"
        else:
            stopped = [one.seed for one in records if one.status == "interrupted"]
            done = [one.seed for one in records if one.seed not in stopped]
            parts = [f"{_of_seeds(done)} finished"] if done else []
            parts += [f"seed {seed} after {how}" for seed, how in zip(stopped, kept, strict=True)]
            parts += [f"{_of_seeds(missing)} not begun"] if missing else []
            said = f"Stopped: {', '.join(parts)}; what was done is kept"
        how = f"{said}. To go on, give the same command with --resume --out {folder}"
        print(escape_controls(how), file=sys.stderr)


def _say_kept(record: "RunRecord") -> str:
    from constrained_cnn.errors import counted

    steps = record.result.get("steps_of_next_epoch", 0)
    more = f" and {counted(steps, 'step')} of the next" if steps else ""
    return f"{record.epochs} of {counted(record.config['epochs'], 'epoch')}{more}"


def _print_places(
    console: "Console",
    options: argparse.Namespace,
    records: "Sequence[RunRecord]",
    folder: "Path",
) -> None:
    """Say where the results are."""
    what = "Record" if options.seeds is None else "For each seed a folder with record"
    lines = [f"{what}, weights, history and pictures: {folder}{os.sep}"]
    if options.seeds is not None and _sample(records) is not None:
        lines.append(f"All seeds together: {folder / 'sample.json'} and {folder / 'seeds.png'}")
    for line in lines:
        _print_line(console, line)


def announce(
    console: "Console",
    options: argparse.Namespace,
    recipe: "Recipe",
    folder: "Path",
    before: Sequence[int],
) -> None:
    """Say what is about to run, and where its results go; and what is finished ``before``."""
    if options.quiet or len(before) == _runs_of(options):
        return
    _print_layers(console, recipe)
    lines = [f"Results go to {folder}{os.sep}"]
    if before:
        lines.append(f"Finished already and not trained again: {_of_seeds(before)}")
    for line in lines:
        _print_line(console, line)


def say_done_before(
    console: "Console", options: argparse.Namespace, folder: "Path", before: Sequence[int]
) -> None:
    """Say, once it is known that they are what was asked for, that all runs were finished."""
    if len(before) == _runs_of(options):
        which = "the run is" if options.seeds is None else f"the runs of {_of_seeds(before)} are"
        _print_line(console, f"Nothing to train: {which} finished already, in {folder}{os.sep}")


def _print_line(console: "Console", line: str, style: str = "") -> None:
    console.print(escape_controls(line), style=style, soft_wrap=True)


def _runs_of(options: argparse.Namespace) -> int:
    return 1 if options.seeds is None else len(options.seeds)


def _of_seeds(seeds: Sequence[int]) -> str:
    """Return which seeds, in words.

    Examples:
        >>> _of_seeds([4]), _of_seeds([0, 1, 3])
        ('seed 4', 'seeds 0, 1, 3')
    """
    return f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}"


def _keep_statistics(records: "Sequence[RunRecord]", folder: "Path") -> None:
    """Write the statistics over seeds and their picture beside the runs."""
    sample = _sample(records)
    if sample is not None:
        from constrained_cnn import plots
        from constrained_cnn.record import write_atomically

        write_atomically(folder / "sample.json", sample.to_json().encode())
        plots.save_figure(plots.seeds(sample), folder / "seeds.png")


def _sample(records: "Sequence[RunRecord]") -> "Sample | None":
    """Return the accuracies of the runs that finished, if there are several."""
    from constrained_cnn.study import Sample

    kind = _kind(records)
    done = [record for record in records if record.status == "finished"]
    if len(done) < 2:
        return None
    values = tuple(record.result[f"{kind}_accuracy"] for record in done)
    return Sample(values, name=f"{kind} accuracy", seeds=tuple(record.seed for record in done))


def _kind(records: "Sequence[RunRecord]") -> str:
    return "validation" if "validation_accuracy" in records[0].result else "test"


def _print_layers(console: "Console", recipe: "Recipe") -> None:
    """Print the familiar table of layers, a row for each block."""
    from constrained_cnn import models

    model = models.create_model(recipe.model)
    table = layer_table(model, recipe.input_shape, depth=2)
    console.print(table, soft_wrap=True)


def _print_records(console: "Console", records: "Sequence[RunRecord]") -> None:
    """Print a table with a row per run and, for several that finished, their statistics."""
    from rich.table import Table

    kind = _kind(records)
    first = records[0]
    title = f"{first.model} on {first.data['name']}, {first.parameters:,} parameters"
    table = Table(title=escape_controls(title))
    for heading in ("seed", "epochs", f"{kind} accuracy", "wrong", "loss", "time of epochs"):
        table.add_column(heading, justify="right")
    for record in records:
        result = record.result
        accuracy = result.get(f"{kind}_accuracy")
        cells = ["-", "-", "-"]
        if accuracy is not None:
            cells = [
                f"{accuracy:.2f} %",
                str(result[f"{kind}_errors"]),
                f"{result[f'{kind}_loss']:.4f}",
            ]
        epochs = str(record.epochs) + (" (stopped)" if record.status == "interrupted" else "")
        table.add_row(str(record.seed), epochs, *cells, f"{result['seconds']:.1f} s")
    console.print(table)
    sample = _sample(records)
    if sample is not None:
        console.print(sample)
    _print_rules(console, records)
    if first.data["asked"] == "auto" and first.data["name"] != "mnist":
        line = f"These figures are of the {first.data['name']} set, not of MNIST."
        _print_line(console, line, style="bold red")


def _print_rules(console: "Console", records: "Sequence[RunRecord]") -> None:
    """Print how many rules of the recipe are kept, and which are not; once for seeds alike."""
    alike: dict[object, dict[int, Mapping[str, Any]]] = {}
    for record in records:
        if record.report is not None:
            open_ones = [(one["verdict"], one["label"]) for one in _open_ones(record.report)]
            key = record.report["summary"], *open_ones
            alike.setdefault(key, {})[record.seed] = record.report
    for reports in alike.values():
        seeds = list(reports)
        which = _of_seeds(seeds) if len(seeds) < len(records) else f"each of {len(seeds)} seeds"
        of = f", {which}" if len(records) > 1 else ""
        summary = reports[seeds[0]]["summary"]
        _print_line(console, f"Rules, {summary}{of}")
        for found in zip(*map(_open_ones, reports.values()), strict=True):
            first = found[0]
            said = _said_of_each(dict(zip(seeds, map(_said, found), strict=True)))
            line = f"  {first['verdict']}: {first['label']}: {first['required']} required, {said}"
            _print_line(console, line, "red" if first["verdict"] == "fail" else "yellow")


def _open_ones(report: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return what was found of the rules that are not kept."""
    return [one for one in report["findings"] if one["judged"] and one["verdict"] != "pass"]


def _said(found: Mapping[str, Any]) -> str:
    said: str = found["measured"] if found["verdict"] == "fail" else found["evidence"][0]
    return said


def _said_of_each(said: Mapping[int, str]) -> str:
    """Return what is said of each seed; once where it is the same of all.

    Examples:
        >>> _said_of_each({0: "12", 1: "12"}), _said_of_each({0: "12", 1: "13"})
        ('12', '12 (seed 0), 13 (seed 1)')
    """
    if len(set(said.values())) == 1:
        return next(iter(said.values()))
    return ", ".join(f"{one} (seed {seed})" for seed, one in said.items())
