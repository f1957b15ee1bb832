"""Whether two arms differ in accuracy: two folders of runs, each of many seeds.

    python -m benchmarks.compare_arms runs/eager runs/graph --out FILE.json

reads every ``seed-N/record.json`` below each folder and prints, of their final test accuracies, the
difference of the means with its 95 % interval, Welch's test and a permutation test.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from constrained_cnn.errors import ConstrainedCNNError, InvalidInputError
from constrained_cnn.record import RunRecord, write_atomically
from constrained_cnn.study import Sample

__all__ = ["compare", "load_arm", "main"]


def load_arm(folder: Path) -> list[RunRecord]:
    """Return the finished runs of every seed below ``folder``, in the order of the seeds.

    Raises:
        InvalidInputError: If there are fewer than two, or one is not finished: none is left out.
    """
    records = [RunRecord.load(file) for file in sorted(folder.glob("seed-*/record.json"))]
    open_ones = [record.seed for record in records if record.status != "finished"]
    if len(records) < 2 or open_ones:
        raise InvalidInputError(
            f"{str(folder)!r}: holds {len(records)} runs, of which seeds {open_ones} are not "
            "finished; at least two are needed, and all of them finished"
        )
    return sorted(records, key=lambda record: record.seed)


def compare(first: Sequence[float], second: Sequence[float]) -> dict[str, Any]:
    """Return what is known of the difference ``second - first`` of two means.

    Args:
        first: Accuracies of one arm, in percent.
        second: Of the other.
    """
    welch = stats.ttest_ind(second, first, equal_var=False)
    interval = welch.confidence_interval(0.95)
    permuted = stats.permutation_test(
        (np.asarray(second), np.asarray(first)),
        lambda a, b, axis: np.mean(a, axis=axis) - np.mean(b, axis=axis),
        n_resamples=9_999,
        rng=np.random.default_rng(0),
    )
    return {
        "difference": float(np.mean(second) - np.mean(first)),
        "interval": [float(interval.low), float(interval.high)],
        "welch_p": float(welch.pvalue),
        "permutation_p": float(permuted.pvalue),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Compare, print, write the JSON file if asked; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compare_arms", description=__doc__)
    parser.add_argument("first", type=Path)
    parser.add_argument("second", type=Path)
    parser.add_argument("--out", type=Path, metavar="FILE.json")
    options = parser.parse_args(arguments)
    try:
        arms = [(folder.name, load_arm(folder)) for folder in (options.first, options.second)]
        content: dict[str, Any] = {"arms": []}
        values: list[tuple[float, ...]] = []
        for name, records in arms:
            values.append(tuple(record.result["test_accuracy"] for record in records))
            sample = Sample(values[-1], seeds=tuple(record.seed for record in records))
            environment = dict(records[0].environment)
            content["arms"].append({"name": name, **sample.to_dict(), "environment": environment})
            print(f"{name}: mean {sample.mean:.3f}, SD {sample.sd:.3f}, n {sample.n}")
        content |= compare(*values)
        low, high = content["interval"]
        print(
            f"difference {content['difference']:+.3f}, 95 % interval {low:+.3f} to {high:+.3f}; "
            f"Welch p = {content['welch_p']:.3f}, permutation p = {content['permutation_p']:.3f}"
        )
        if options.out is not None:
            write_atomically(options.out, (json.dumps(content, indent=1) + "\n").encode())
    except ConstrainedCNNError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
