"""History: what a training run gave, epoch by epoch."""

import csv
import dataclasses
import io
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from constrained_cnn.errors import (
    CheckpointError,
    InvalidInputError,
    check_choice,
    check_integer,
    check_known_keys,
    counted,
)
from constrained_cnn.record import write_atomically
from constrained_cnn.training._timings import Timings

VALIDATION, TEST = "validation", "test"


@dataclass(frozen=True, kw_only=True)
class EpochRow:
    """One epoch.

    Attributes:
        epoch: Counted from 1.
        train_loss: Mean over the epoch's samples, as they were met in training (augmented, with
            dropout, while the weights moved).
        train_accuracy: In percent, likewise; None where accuracy has no meaning.
        validation_loss: Mean over the validation set after the epoch; None without one.
        validation_accuracy: In percent, after the epoch; None without one.
        learning_rate: The rate of the epoch's first step; of the first parameter group.
        seconds: Wall-clock time of the epoch, validation included.
    """

    epoch: int
    train_loss: float
    train_accuracy: float | None
    validation_loss: float | None
    validation_accuracy: float | None
    learning_rate: float
    seconds: float


OPTIONAL = ("train_accuracy", "validation")
COLUMNS = tuple(f.name for f in dataclasses.fields(EpochRow))


@dataclass(frozen=True)
class History:
    """The epochs of one run, in order; iterate over it or index it for the rows.

    Attributes:
        rows: One :class:`EpochRow` per epoch that ran to its end.
        status: ``"finished"``, or ``"interrupted"`` if the run was stopped before its last epoch.
        judged_on: ``"validation"``, or ``"test"`` where the set read after every epoch was the test
            set; files and tables name their columns by it.
        steps_of_next: Steps that an interrupted run took of the epoch after the last row; with a
            folder they are in the checkpoint.
        made_on: Device, executor, threads, processes and version of torch that it was trained with,
            as plain data; empty of a history that was read from a file.
        timings: Where the time went; None of a history that was read from a file. Two histories are
            equal without these.
    """

    rows: tuple[EpochRow, ...] = ()
    status: str = "finished"
    judged_on: str = VALIDATION
    steps_of_next: int = field(default=0, kw_only=True)
    made_on: Mapping[str, Any] = field(default_factory=dict, compare=False, kw_only=True)
    timings: Timings | None = field(default=None, compare=False, kw_only=True)

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[EpochRow]:
        return iter(self.rows)

    def __getitem__(self, index: int) -> EpochRow:
        return self.rows[index]

    def __str__(self) -> str:
        lines = ["  ".join(cells) for cells in self._table()]
        steps = f" and {counted(self.steps_of_next, 'step')}" if self.steps_of_next else ""
        return "\n".join([*lines, f"{self.status} after {counted(len(self), 'epoch')}{steps}"])

    def to_dicts(self) -> list[dict[str, Any]]:
        """Return the rows as plain data."""
        return [
            dict(zip(self._columns, dataclasses.astuple(row), strict=True)) for row in self.rows
        ]

    def to_jsonl(self) -> str:
        """Return the rows as JSON lines, one object per epoch."""
        return "".join(json.dumps(row) + "\n" for row in self.to_dicts())

    def to_csv(self) -> str:
        """Return the rows as CSV with a heading; what is None is empty."""
        stream = io.StringIO()
        writer = csv.DictWriter(stream, self._columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.to_dicts())
        return stream.getvalue()

    def to_markdown(self) -> str:
        """Return the rows as a Markdown table."""
        heading, *rows = self._table()
        rows = [heading, ["---:"] * len(heading), *rows]
        return "\n".join(f"| {' | '.join(cell.strip() for cell in row)} |" for row in rows) + "\n"

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the rows to a ``.jsonl`` or ``.csv`` file, atomically."""
        suffix = check_choice("suffix", Path(path).suffix, (".jsonl", ".csv"))
        text = self.to_jsonl() if suffix == ".jsonl" else self.to_csv()
        return write_atomically(path, text.encode())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "History":
        """Read rows back from a ``.jsonl`` file.

        Raises:
            CheckpointError: If the file is missing or a line is damaged; the line is named.
        """
        rows = []
        judged_on = VALIDATION
        try:
            lines = Path(path).read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise CheckpointError(f"cannot read history {str(path)!r}: {error}") from error
        for number, line in enumerate(lines, start=1):
            try:
                values = json.loads(line)
                if isinstance(values, dict) and "test_loss" in values:
                    judged_on = TEST
                    values = {name.replace(TEST, VALIDATION): v for name, v in values.items()}
                rows.append(row_from_dict(values))
                if rows[-1].epoch != rows[0].epoch + number - 1:
                    raise ValueError(f"epoch {rows[-1].epoch} does not follow the one before it")
            except (ValueError, TypeError, RecursionError) as error:
                raise CheckpointError(f"{str(path)!r}, line {number}: {error}") from error
        return cls(tuple(rows), judged_on=judged_on)

    @property
    def _columns(self) -> tuple[str, ...]:
        return tuple(name.replace(VALIDATION, self.judged_on) for name in COLUMNS)

    def _table(self) -> list[list[str]]:
        """Return heading and rows as text; without what was judged on where nothing was."""
        judged = any(row.validation_loss is not None for row in self.rows)
        judged_on = self.judged_on if judged else None
        return [headings(judged_on), *(format_row(row, judged_on) for row in self.rows)]


def row_from_dict(values: Mapping[str, Any]) -> EpochRow:
    """Return the row that ``values`` describe.

    Raises:
        InvalidInputError: If a value is unknown, missing or of the wrong type.
    """
    if not isinstance(values, Mapping):
        raise InvalidInputError(f"history row {values!r}: must be a table of values")
    check_known_keys("history row", values, COLUMNS)
    missing = [name for name in COLUMNS if name not in values]
    if missing:
        raise InvalidInputError(f"history row: has no {missing[0]!r}")
    check_integer("epoch", values["epoch"], minimum=1)
    for name in COLUMNS[1:]:
        value = values[name]
        # Losses may be NaN, so this is not check_number.
        if isinstance(value, bool) or not isinstance(value, int | float | None):
            raise InvalidInputError(f"history row: {name}={value!r} must be a number")
        if value is None and not name.startswith(OPTIONAL):
            raise InvalidInputError(f"history row: {name} must be a number")
    return EpochRow(**values)


def headings(judged_on: str | None) -> list[str]:
    """Return the headings of a table of epochs, aligned.

    Args:
        judged_on: What the set read after every epoch is; None without one.
    """
    short = {None: (), VALIDATION: ("val. loss", "val. acc"), TEST: ("test loss", "test acc")}
    middle = [f"{heading:>9}" for heading in short[judged_on]]
    return ["epoch", "train loss", "train acc", *middle, f"{'rate':>8}", "seconds"]


def format_row(row: EpochRow, judged_on: str | None) -> list[str]:
    """Return the row's cells as text, aligned under :func:`headings`."""
    middle = []
    if judged_on is not None:
        loss = "-" if row.validation_loss is None else _loss(row.validation_loss)
        middle = [f"{loss:>9}", f"{_percent(row.validation_accuracy):>9}"]
    return [
        f"{row.epoch:>5}",
        f"{_loss(row.train_loss):>10}",
        f"{_percent(row.train_accuracy):>9}",
        *middle,
        f"{row.learning_rate:>8.2g}",
        f"{row.seconds:>7.1f}" if row.seconds >= 1 else f"{row.seconds:>7.2f}",
    ]


def _loss(value: float) -> str:
    return f"{value:.4f}" if value == 0 or abs(value) >= 0.001 else f"{value:.1e}"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f} %"
