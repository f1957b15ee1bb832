"""How receptive fields print: the table, the sheet people keep by hand, a line, plain data."""

from collections.abc import Sequence
from typing import Any

from constrained_cnn.receptive_field._axis import AxisField, Span
from constrained_cnn.receptive_field._layers import Axis, LayerField
from constrained_cnn.table import Table

_MOST_PHASES = 6
_COLUMNS = ("<layer", "units", "size", "grows by", "jump", "start", "stage", "<remark")
_MAY_GO = ("stage", "start", "grows by", "jump")
_SHEET = ("<layer", "n_in", "k", "p", "s", "d", "n_out", "jump", "r")
_GATED = "gates left out"
_DIFFERS = "differs from place to place"


def table_of(rows: Sequence[LayerField], title: str) -> Table:
    """Return a row for each layer that slides a window, or whose units or sizes change."""
    cells = tuple(_table_row(row) for row in rows if row.changes and not row.problem)
    unsaid = next((row for row in rows if row.problem), None)
    note = "" if unsaid is None else f"What {unsaid.name} sees cannot be said: {unsaid.problem}."
    return Table(_COLUMNS, cells, title=title, may_go=_MAY_GO, note=note)


def _table_row(row: LayerField) -> tuple[str, ...]:
    axes = row.axes
    # As 14 x 14 even where the axes agree: 14 alone could be all units together.
    units = " x ".join(_units(row, axis) for axis in range(len(axes)))
    return (
        row.name,
        units,
        _across([_sizes(axis) for axis in axes]),
        _across(row.growth),
        _across([_jump(axis) for axis in axes]),
        _across([None if axis.seen is None else axis.seen.start for axis in axes]),
        _across([None if axis.stage is None else axis.stage.size for axis in axes]),
        _remark(axes),
    )


def sheet_of(rows: Sequence[LayerField], axes: Sequence[int]) -> Table:
    """Return the sheet for some axes: once where all give the same numbers, else one by one."""
    sheets = {axis: _sheet_rows(rows, axis) for axis in axes}
    first = sheets[axes[0]]
    several = any(sheet != first for sheet in sheets.values())
    columns: tuple[str, ...] = _SHEET
    cells = first
    if several:
        columns = ("<layer", "axis", *_SHEET[1:])
        cells = [(row[0], str(axis), *row[1:]) for axis in axes for row in sheets[axis]]
    if any(row[-1] for row in cells):
        return Table((*columns, "<remark"), tuple(cells))
    return Table(columns, tuple(row[:-1] for row in cells))


def _sheet_rows(rows: Sequence[LayerField], axis: int) -> list[tuple[str, ...]]:
    found = []
    for row in rows:
        if row.problem or not row.changes_along(axis):
            continue
        at = row.axes[axis]
        units, window = row.windows[axis]
        numbers = [units, units if row.whole[axis] else None, None, None, None]
        if window is not None:
            numbers[1:] = window.kernel, window.padding, window.stride, window.dilation
        said = (_units(row, axis), _or_dash(_jump(at)), _sizes(at), _remark([at], seen=False))
        found.append((row.name, *map(_or_dash, numbers), *said))
    return found


def _units(row: LayerField, axis: int) -> str:
    return "1" if row.whole[axis] else _or_dash(row.axes[axis].units)


def _or_dash(value: Any) -> str:
    return "-" if value is None else str(value)


def _jump(axis: Axis) -> Any:
    return None if axis.seen is None else axis.seen.jump


def _across(values: Sequence[Any]) -> str:
    """Return what is said of the axes: once if they agree."""
    said = [_or_dash(value) for value in values]
    return said[0] if len(set(said)) == 1 else " x ".join(said)


def _sizes(axis: Axis) -> str:
    if axis.seen is None:
        return "all"
    sizes = axis.seen.sizes
    if not isinstance(axis.seen, AxisField) or len(sizes) > _MOST_PHASES:
        least, most = min(sizes, default=0), max(sizes, default=0)
        return str(most) if least == most else f"{least} to {most}"
    return str(sizes[0]) if len(set(sizes)) == 1 else " / ".join(map(str, sizes))


def _remark(axes: Sequence[Axis], *, seen: bool = True) -> str:
    remarks = []
    if any(axis.is_gated for axis in axes):
        remarks.append(_GATED)
    if not all(axis.seen is None or isinstance(axis.seen, AxisField) for axis in axes):
        remarks.append(_DIFFERS)
    some = any(axis.field is not None for axis in axes)
    if seen and not remarks and some and all(axis.sees_all for axis in axes):
        remarks.append("sees all")
    return ", ".join(remarks)


def line_of(axes: Sequence[Axis]) -> str:
    """Return what is seen of each axis, in words; once where all axes agree."""
    said = [_say(axis) for axis in axes]
    if len(set(said)) == 1:
        return said[0]
    return "; ".join(f"axis {i}: {words}" for i, words in enumerate(said))


def _say(axis: Axis) -> str:
    if axis.seen is None:
        return f"all {axis.length}"
    most = axis.seen.size
    # More than the image has lies in the padding, and "32 of 28" would read like a slip.
    of = f" of {axis.length}" if most <= axis.length else f" (image: {axis.length})"
    gated = f"all {axis.length}; with gates left out " if axis.is_gated else ""
    if not isinstance(axis.seen, AxisField):
        return f"{gated}{_sizes(axis)}{of}, {_DIFFERS}"
    return f"{gated}{_sizes(axis)}{of}, jump {axis.seen.jump}, start {axis.seen.start}"


def row_as_data(row: LayerField) -> dict[str, Any]:
    """Return a layer as plain data."""
    return {
        "name": row.name,
        "path": row.path,
        "op": row.op,
        "axes": [axis_as_data(axis) for axis in row.axes],
        "growth": list(row.growth),
        "problem": row.problem,
    }


def axis_as_data(axis: Axis) -> dict[str, Any]:
    """Return an axis as plain data, fractions as text."""
    return {
        "size": axis.size,
        "sizes": list(axis.sizes),
        "jump": None if axis.jump is None else str(axis.jump),
        "start": axis.start,
        "units": axis.units,
        "length": axis.length,
        "spans": None if axis.field is None else _spans_as_data(axis.field.spans),
        "advance": axis.field.advance if isinstance(axis.field, AxisField) else None,
        "global": axis.is_global,
        "shift_invariant": axis.is_shift_invariant,
        "local_size": None if axis.local is None else axis.local.size,
        "stage_size": None if axis.stage is None else axis.stage.size,
    }


def _spans_as_data(spans: Sequence[Span | None]) -> list[list[int] | None]:
    return [None if span is None else list(span) for span in spans]
