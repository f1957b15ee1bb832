"""Rules on what the units of a network see."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from constrained_cnn.constraints._kinds import KINDS
from constrained_cnn.constraints._measured import Measure, Measured
from constrained_cnn.constraints._rule import Finding, Rule, checked_by, optional
from constrained_cnn.constraints._subject import CannotTellError, Subject, listed
from constrained_cnn.constraints._table import register_rule
from constrained_cnn.errors import InvalidInputError, check_choice
from constrained_cnn.receptive_field import (
    Axis,
    LayerField,
    ReceptiveField,
    measure_receptive_field,
)


def _by_axes(numbers: Sequence[int]) -> str:
    return " x ".join(map(str, numbers if len(set(numbers)) > 1 else numbers[:1]))


def _check_layer(name: str, value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise InvalidInputError(f"{name}={value!r}: must be the path of a module")
    return value


@dataclass(frozen=True, repr=False)
class _OfLayer(Rule):
    layer: str | None = field(default=None, metadata=checked_by(optional(_check_layer)))

    @property
    def title(self) -> str:
        """What it is about."""
        return "receptive field" + (f" of {self.layer}" if self.layer else "")

    def _fields(self, subject: Subject) -> tuple[ReceptiveField, ...]:
        """Return the fields, one for each image; raise if there is none."""
        if self.layer is not None:
            return (measure_receptive_field(subject.graph, layer=self.layer),)
        if not subject.fields:
            raise CannotTellError("no input is an image")
        return subject.fields


def _evidence(fields: Sequence[ReceptiveField]) -> tuple[str, ...]:
    said = []
    for number, of in enumerate(fields):
        which = f"image {number}: " if len(fields) > 1 else ""
        gates = ", gates left out" if any(axis.is_gated for axis in of.axes) else ""
        said.append(f"{which}at {of.layer}{gates}")
    return tuple(said)


@register_rule
@dataclass(frozen=True, repr=False)
class FieldSize(_OfLayer, Measured):
    """The receptive field: how many input positions a unit sees, along each axis of the image.

    Attributes:
        layer: Path of a module; None for the last layer whose units stand at places of the image.

    Examples:
        >>> FieldSize(at_least=45).title
        'receptive field'
    """

    kind = "receptive_field"
    lowest = 1

    def measure(self, subject: Subject) -> Measure:
        """Return its size along each axis."""
        fields = self._fields(subject)
        sizes = [[axis.seen_size for axis in of.axes] for of in fields]
        said = ", ".join(map(_by_axes, sizes))
        return Measure(tuple(size for each in sizes for size in each), _evidence(fields), said)


@register_rule
@dataclass(frozen=True, repr=False)
class CoversInput(_OfLayer):
    """The receptive field is at least as large as the image, along each axis.

    Attributes:
        layer: Path of a module; None for the last layer whose units stand at places of the image.

    Examples:
        >>> CoversInput().required
        'at least the image'
    """

    kind = "covers_input"
    required = "at least the image"

    def find(self, subject: Subject) -> Finding:
        """Return whether it is so large."""
        fields = self._fields(subject)
        margin = min(axis.seen_size - axis.length for of in fields for axis in of.axes)
        said = ", ".join(
            f"{_by_axes([axis.seen_size for axis in of.axes])} of "
            f"{_by_axes([axis.length for axis in of.axes])}"
            for of in fields
        )
        excess = f"{-margin} under" if margin < 0 else ""
        return self.finding(
            margin >= 0, said, margin=margin, excess=excess, evidence=_evidence(fields)
        )


@register_rule
@dataclass(frozen=True, repr=False)
class FieldAtPools(Measured):
    """The receptive field of what each pool reads.

    An absolute size counts in input positions. A stage-local size counts from the output of the
    pool before in cells of that output; for the first pool it is the absolute size.

    Attributes:
        counted: ``"stage"`` for stage-local sizes, ``"image"`` for absolute ones.
        pools: ``"max"`` for max-pools, ``"every"`` for every pool with a window.

    Examples:
        >>> FieldAtPools(one_of=(7, 9), counted="stage").required
        '7 or 9'
    """

    kind = "field_at_pools"
    lowest = 1
    counted: str = field(default="stage", metadata=checked_by(check_choice, ("stage", "image")))
    pools: str = field(default="max", metadata=checked_by(check_choice, ("max", "every")))

    @property
    def title(self) -> str:
        """What it is about."""
        which = "max-pools" if self.pools == "max" else "pools"
        how = ", stage-local" if self.counted == "stage" else ""
        return f"receptive field at the {which}{how}"

    def measure(self, subject: Subject) -> Measure:
        """Return the size at each pool, along each axis."""
        subject.check_known()
        is_meant = KINDS["max_pool" if self.pools == "max" else "pool"]
        program = subject.evaluation
        live = [
            layer.name
            for layer in filter(is_meant, program.layers)
            if program.is_live(layer) and layer.begins_stage
        ]
        rows = [row for sheet in subject.sheets for row in sheet.pools if row.name in live]
        missing = set(live).difference(row.name for row in rows)
        if missing:
            raise CannotTellError(f"{listed(sorted(missing))}: it has no place in an image")
        if not rows:
            return Measure((), said="no such pool runs")
        values: list[int] = []
        said: list[str] = []
        evidence: list[str] = []
        for row in rows:
            local = [self._local(row, axis) for axis in row.axes]
            whole = [axis.seen_size for axis in row.axes]
            mine = local if self.counted == "stage" else whole
            values += mine
            said.append(_by_axes(mine))
            mark = "" if all(map(self.limits.allow, mine)) else ", which breaks the rule"
            evidence.append(
                f"{row.name}: stage-local {_by_axes(local)}, absolute {_by_axes(whole)}{mark}"
            )
        return Measure(tuple(values), tuple(evidence), ", ".join(said))

    def _local(self, row: LayerField, axis: Axis) -> int:
        if row.problem:
            raise CannotTellError(f"{row.name}: {row.problem}")
        if axis.stage is None:
            if self.counted == "image":
                return axis.seen_size
            raise CannotTellError(f"{row.name}: the ways that meet before it differ in their stage")
        return axis.stage.size
