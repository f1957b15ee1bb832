"""What networks cost when the baseline was written, and what has changed since."""

import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from constrained_cnn.errors import (
    CheckpointError,
    ConstrainedCNNError,
    InvalidInputError,
    OutputError,
    check_integer,
    escape_controls,
    reason_of,
)
from constrained_cnn.record import write_atomically
from constrained_cnn.table import Table

if TYPE_CHECKING:
    from constrained_cnn.budget import Budget, Change, Timeline
    from constrained_cnn.graph import Graph

SCHEMA = "constrained_cnn.baseline/1"
UPDATE = "--constrained-cnn-update"

_FIELD = "receptive field"
_HEAVIEST = 5
_TRIES, _PAUSE = 200, 0.05  # ten seconds


@dataclass(frozen=True)
class Entry:
    """What the baseline says of one network: its name, the shape of one sample, the numbers."""

    model: str
    sample: str
    quantities: Mapping[str, int]

    @classmethod
    def of(cls, graph: "Graph", budget: "Budget") -> "Entry":
        """Return that of a network."""
        sample = ", ".join(" x ".join(map(str, shape)) for shape in budget.input_shapes)
        return cls(budget.model, sample, {**budget.quantities(), **_field_sizes(graph)})


def claim(compared: dict[str, Entry], name: Any, now: Entry) -> None:
    """Remember what has a name in this session; raise if it is no name, or another network's."""
    if not isinstance(name, str) or not name or not name.isprintable():
        raise InvalidInputError(f"name={name!r}: must be a text of one line")
    if compared.setdefault(name, now) != now:
        raise InvalidInputError(
            f"name={name!r}: two networks have it, {compared[name].model} and {now.model}, with "
            "different costs; give each its own: against_baseline(..., name=...)"
        )


def _field_sizes(graph: "Graph") -> dict[str, int]:
    """Return the receptive field along each axis; nothing where there is none to speak of."""
    from constrained_cnn.receptive_field import measure_receptive_field

    try:
        axes = measure_receptive_field(graph).axes
    except ConstrainedCNNError:  # the costs stand without it
        return {}
    return {f"{_FIELD}, axis {number}": axis.seen_size for number, axis in enumerate(axes)}


def read_baseline(file: Path) -> dict[str, Entry]:
    """Return the entries of a baseline; none if there is no file.

    Raises:
        CheckpointError: If it is damaged, or something else.
    """
    if not file.exists():
        return {}
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        if content["schema"] != SCHEMA:
            raise ValueError(f"its schema is {content['schema']!r}, not {SCHEMA!r}")
        entries = {name: Entry(**said) for name, said in content["networks"].items()}
        for entry in entries.values():
            if not entry.quantities:
                raise ValueError("it has an entry without numbers")
            for name, number in entry.quantities.items():
                check_integer(name, number, minimum=0)
    except (OSError, ValueError, RecursionError, AttributeError, KeyError, TypeError) as error:
        foreign = isinstance(error, AttributeError | KeyError | TypeError)
        why = "it holds something else" if foreign else reason_of(error)
        raise CheckpointError(
            f"{str(file)!r} is not a baseline: {why}. It stays as it is: restore it, or move it "
            f"away and write a new one with {UPDATE}"
        ) from error
    return entries


@contextmanager
def locked(file: Path) -> Iterator[None]:
    """Let no other process write the baseline meanwhile; raise if one does not end."""
    lock = file.with_name(f".{file.name}.lock")
    for _ in range(_TRIES):
        try:
            os.close(os.open(lock, os.O_CREAT | os.O_EXCL))
            break
        except FileExistsError:
            time.sleep(_PAUSE)
        except OSError as error:
            raise OutputError(f"cannot write {str(file)!r}: {error.strerror}") from error
    else:
        raise OutputError(
            f"{str(file)!r} is being written by another process; if there is none, remove "
            f"{str(lock)!r}"
        )
    try:
        yield
    finally:
        lock.unlink(missing_ok=True)


def write_baseline(file: Path, entries: Mapping[str, Entry]) -> None:
    networks = {name: asdict(entry) for name, entry in entries.items()}
    content = {"schema": SCHEMA, "networks": networks}
    text = json.dumps(content, indent=1, sort_keys=True, ensure_ascii=False)
    write_atomically(file, f"{text}\n".encode())


def changes(old: Entry, now: Entry) -> "list[Change]":
    from constrained_cnn.budget import Change

    every = dict.fromkeys([*now.quantities, *old.quantities])
    return [Change(name, old.quantities.get(name), now.quantities.get(name)) for name in every]


def _is_broken(change: "Change") -> bool:
    """Whether a cost grew, a field changed, or it cannot be told any more."""
    if change.old is None:
        return False
    if change.new is None or change.name.startswith(_FIELD):
        return change.new != change.old
    return change.new > change.old


def problem_of(old: Entry | None, now: Entry, budget: "Budget") -> str:
    """Say what is beyond the baseline, where, and by how much; nothing if nothing is."""
    model = escape_controls(now.model)
    if old is None:
        return f"{model}: is not in the baseline"
    if old.sample != now.sample:
        return (
            f"{model}: the baseline is for one sample of {old.sample}, and this is one of "
            f"{now.sample}: their costs do not compare"
        )
    broken = [change for change in changes(old, now) if _is_broken(change)]
    if not broken:
        return ""
    columns = ("<of one sample", "baseline", "now", "difference", "share")
    parts = [
        f"{model}: {escape_controls(in_short(broken))} beyond the baseline",
        str(Table(columns, tuple(map(_row, broken)))),
        "\n".join(map(escape_controls, _heaviest(budget, broken))),
    ]
    return "\n\n".join(filter(None, parts))


def _row(change: "Change") -> tuple[str, ...]:
    if change.new is None:
        return (change.name, f"{change.old:,}", "cannot tell", "", "")
    return change.cells()


def in_short(changes: "Sequence[Change]") -> str:
    """Say the first change, and how many more there are."""
    name, old, now, *by = _row(changes[0])
    said = f"{name} {old or 'not said'} -> {now}"
    said += f" ({', '.join(filter(None, by))})" if any(by) else ""
    return f"{said} and {len(changes) - 1} more" if len(changes) > 1 else said


def _live(timeline: "Timeline") -> list[tuple[str, int]]:
    return list(zip(timeline.layers, timeline.live, strict=True))


def _heaviest(budget: "Budget", changes: "Sequence[Change]") -> Iterator[str]:
    """Say for each cost that is one of layers too which of them have most of it."""
    layers, memory = budget.layers, budget.memory
    costs = {
        "parameters": [(layer.name, layer.parameters) for layer in layers],
        "deployed parameters": [(layer.name, layer.deployed) for layer in layers],
        "MACs": [(layer.name, layer.work.macs if layer.work else 0) for layer in layers],
        "bytes at the inference peak": [(layer.name, layer.live) for layer in layers],
        "bytes at the int8 peak, batch norm folded": _live(memory.unfused_int8_timeline),
        "bytes at the int8 peak, batch norm folded, fused": _live(memory.int8_timeline),
        "bytes saved for backward": [(layer.name, layer.saved) for layer in layers],
    }
    for change in changes:
        top = sorted(costs.get(change.name, []), key=lambda pair: -pair[1])[:_HEAVIEST]
        said = ", ".join(f"{name} {cost:,}" for name, cost in top if cost)
        if said:
            yield f"heaviest layers, {change.name}: {said}"
