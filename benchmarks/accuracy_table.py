"""The table of accuracies in the README and the docs, made from the records of the runs.

    python -m benchmarks.accuracy_table

reads every record in ``benchmarks/results/runs`` and prints Markdown, a row for each recipe. A test
compares what the pages say with what this prints.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from constrained_cnn.record import RunRecord
from constrained_cnn.study import Sample

__all__ = ["load_records", "main", "table"]

RUNS = Path(__file__).parent / "results" / "runs"
MARK = 99.4
HEADING = (
    "Network",
    "Parameters",
    "Seeds",
    "Test accuracy after epoch 19, %",
    "Mean",
    "SD",
    "95 % interval of the mean",
    f"At or above {MARK:.2f}",
)


def load_records(folder: Path = RUNS) -> dict[str, list[RunRecord]]:
    """Return the records in ``folder`` by their recipe, each recipe's in the order of its seeds.

    Raises:
        CheckpointError: If a file is no record, or damaged.
    """
    found: dict[str, list[RunRecord]] = {}
    for file in sorted(folder.glob("*.json")):
        record = RunRecord.load(file)
        found.setdefault(record.recipe, []).append(record)
    return {recipe: sorted(found[recipe], key=lambda r: r.seed) for recipe in sorted(found)}


def table(runs: dict[str, list[RunRecord]]) -> str:
    """Return the table as Markdown."""
    lines = [HEADING, ("---",) * len(HEADING), *map(_row, runs.values())]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def _row(records: Sequence[RunRecord]) -> tuple[str, ...]:
    values = tuple(record.result["test_accuracy"] for record in records)
    sample = Sample(values, seeds=tuple(record.seed for record in records))
    share = sample.share(MARK)
    precision = records[0].config.get("autocast")  # not in the oldest records
    return (
        f"`{records[0].model}`" + (f", steps in {precision}" if precision else ""),
        f"{records[0].parameters:,}",
        ", ".join(str(record.seed) for record in records),
        ", ".join(f"{value:.2f}" for value in values),
        f"**{sample.mean:.2f}**",
        f"{sample.sd:.2f}",
        str(sample.interval()),
        f"{share.count} of {share.n}",
    )


def main() -> int:
    """Print the table."""
    print(table(load_records()), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
