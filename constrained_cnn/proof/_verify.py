"""Prove a receptive field on the running network."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import nn

from constrained_cnn.errors import (
    InvalidInputError,
    TracingError,
    check_integer,
    escape_controls,
)
from constrained_cnn.graph import Graph
from constrained_cnn.proof._change import Changes, is_steady
from constrained_cnn.proof._running import copy_of, positive
from constrained_cnn.proof._scene import Scene, scenes_of
from constrained_cnn.receptive_field import AxisField, ReceptiveField, measure_receptive_field
from constrained_cnn.receptive_field._axis import Span, clip
from constrained_cnn.receptive_field._digits import Field
from constrained_cnn.receptive_field._positions import PositionField
from constrained_cnn.tracing import trace
from constrained_cnn.tracing._around import undisturbed

Method = Literal["nan", "gradient", "change"]
_METHODS: tuple[Method, ...] = ("nan", "gradient", "change")
_GRADIENT_HIDDEN = "a gradient can be hidden, and a change arrives from the ends"
_NAN_ALONE = "NaN passes through weights of 0, or an operation stops it"
_NOT_FINITE = "the value is NaN without any in the image"
_NO_CHANGE = "a change does not show: an activation stops it, or rounding swallows it"
_UNSTEADY = "the forward gives something else from call to call"


@dataclass(frozen=True)
class FieldCheck:
    """What one method finds that one unit sees of one axis of the image.

    Attributes:
        axis: The axis of the image, from 0.
        unit: The unit along that axis; None where the layer has no units along it.
        method: ``"nan"``, ``"gradient"`` or ``"change"``.
        expected: First and last position it is said to see; None for nothing.
        found: First and last position it sees of the image; None for nothing.
        ok: Whether they agree inside the image; None where that cannot be told.
        note: What there is to say about it, such as the shape of a larger image; often empty.
    """

    axis: int
    unit: int | None
    method: Method
    expected: Span | None
    found: Span | None
    ok: bool | None
    note: str = ""

    def __str__(self) -> str:
        verdict = {True: "holds", False: "FAILS", None: "cannot tell"}[self.ok]
        unit = "all units" if self.unit is None else f"unit {self.unit}"
        said = f"expected {_say(self.expected)}, found {_say(self.found)}"
        note = f" ({self.note})" if self.note else ""
        return escape_controls(f"axis {self.axis}, {unit}, {self.method}: {said}: {verdict}{note}")


@dataclass(frozen=True)
class FieldProof:
    """The checks of a receptive field.

    Attributes:
        model: Name of the model's class.
        layer: Name of the layer.
        checks: Three for each unit that was tried, one for each method.
    """

    model: str
    layer: str
    checks: tuple[FieldCheck, ...]

    @property
    def ok(self) -> bool | None:
        """False if a check fails, True if for each unit two hold, None where it cannot be told."""
        if any(check.ok is False for check in self.checks):
            return False
        tried = {(check.axis, check.unit) for check in self.checks}
        held = Counter((check.axis, check.unit) for check in self.checks if check.ok)
        return True if tried and all(held[unit] > 1 for unit in tried) else None

    def raise_if_failed(self) -> None:
        """Raise if a check fails; what cannot be told is no failure.

        Raises:
            TracingError: Naming the first check that fails, and how many do.
        """
        failed = [check for check in self.checks if check.ok is False]
        if failed:
            raise TracingError(
                f"{self.model} at {self.layer}: {failed[0]}; {len(failed)} of {len(self.checks)} "
                "checks of its receptive field fail"
            )

    def __str__(self) -> str:
        verdict = {True: "proved", False: "REFUTED", None: "cannot tell"}[self.ok]
        counts = ", ".join(
            f"{method} {sum(c.ok is True for c in these)} of {len(these)}"
            for method in _METHODS
            if (these := [check for check in self.checks if check.method == method])
        )
        rest = "".join(f"\n  {check}" for check in self.checks if check.ok is not True)
        return escape_controls(f"{self.model} at {self.layer}: {verdict} ({counts})") + rest


def verify_receptive_field(
    model: nn.Module,
    input_shape: Sequence[int],
    *,
    layer: str | None = None,
    field: ReceptiveField | None = None,
    units: Sequence[int] | None = None,
) -> FieldProof:
    """Prove on the running network that its units see what is said, no less and no more.

    Three methods that know nothing of the analysis are applied to a copy of the network, in double
    precision and evaluation mode, with positive random weights:

    - ``nan``: NaN at all positions outside the interval leaves every channel of the unit finite;
      NaN at its first position alone, then at its last, makes some channel NaN.
    - ``gradient``: with max-pooling made average pooling and activations made the identity no two
      paths cancel, and the gradient of the sum over all channels of the unit is not zero at exactly
      the ends of the interval.
    - ``change``: a finite change of all positions outside the interval moves no channel of the
      unit, also with the network's own weights; one at its first position alone, then at its last,
      moves some channel. Nothing is swapped.

    For each unit two methods must hold and none may fail. A change outside that moves the unit
    refutes the field, whatever the others say. One at an end that does not is nothing against it:
    an activation may stop it. If the forward gives something else from call to call for the same
    image, nothing can be told.

    Along each axis one unit of each phase is tried and one more, so that the jump is proved too;
    where what a unit sees does not move with it, up to 16 units from the first to the last.
    A unit is all units at that index: the other axes are not told apart. The units are in the
    middle; where the image has no room for what they see, a larger one is taken if the network runs
    on it and has the same field there. Otherwise what lies inside the image is compared, and a unit
    that sees less of it than said is no proof against it: it may read the padding of a layer in
    between. Where an axis is global, the first, middle and last unit must see its first and last
    position, at this input size.

    NaN passes through weights that are exactly 0, as bilinear resampling has, and some operations
    stop it. Where only it disagrees, gradient and change decide, and the check says so. Some
    operations have no gradient, such as a cast to integers or ``argmax``: a unit that by its
    gradient sees less than said is then no proof against it. That an axis is global NaN shows only
    there. Where padding repeats positions of the image, a unit whose span
    leaves the image reads those, and nothing is said of it.

    Args:
        model: The network; it stays as it is.
        input_shape: Shape of one sample, ``(channels, *image)``.
        layer: Path of a module; None for the last layer whose units stand at places of the image,
            or that of ``field``.
        field: What is to be proved, for this shape and layer; None for what is measured.
        units: Numbers of the units to try along each axis; None chooses.

    Raises:
        InvalidInputError: If there is no such layer or unit, or the field is of another shape.
        TracingError: If the network cannot be traced, copied or run in double precision.

    Examples:
        >>> net = nn.Sequential(nn.Conv2d(1, 8, 3), nn.MaxPool2d(2), nn.Conv2d(8, 8, 3))
        >>> proof = verify_receptive_field(net, (1, 28, 28))
        >>> print(proof)
        Sequential at 2: conv2d: proved (nan 4 of 4, gradient 4 of 4, change 4 of 4)
        >>> print(proof.checks[1])
        axis 0, unit 4, gradient: expected 8 to 15, found 8 to 15: holds
    """
    with undisturbed(), torch.enable_grad():
        return _verified(model, input_shape, layer, field, units)


def _verified(
    model: nn.Module,
    input_shape: Sequence[int],
    layer: str | None,
    field: ReceptiveField | None,
    units: Sequence[int] | None,
) -> FieldProof:
    graph = trace(model, input_shape, repeat=True)
    if field is None:
        claim = measure_receptive_field(graph, layer=layer)
    else:
        claim, layer = _checked_claim(graph, layer, field)
    scenes = scenes_of(*_networks(model), graph, layer)
    sample = scenes[0].sample
    before = sample.unchanged
    checks: list[FieldCheck] = []
    for said, scene in zip(claim.axes, scenes, strict=True):
        chosen = _chosen(units, scene)
        if said.field is None:
            checks += _check_global(scene, chosen)
        elif isinstance(said.field, PositionField):
            checks += _check_units(scene, said.field, chosen or _spread(said.units or 0))
        elif scene.dim is None:
            found, _ = scene.seen_by_gradient(None, None)
            note = "the layer has no units along this axis"
            checks.append(FieldCheck(scene.axis, None, "gradient", None, found, False, note))
        else:
            checks += _check_local(model, scene, layer, said.field, chosen)
    if not is_steady(sample, before):
        checks = [replace(check, ok=None, note=_UNSTEADY) for check in checks]
    return FieldProof(claim.model, claim.layer, tuple(checks))


def _networks(model: nn.Module) -> tuple[nn.Module, nn.Module | None]:
    """Return a copy with positive weights, and one with the network's own if it has some."""
    has_weights = not any(part.is_meta for part in (*model.parameters(), *model.buffers()))
    return positive(copy_of(model)), copy_of(model) if has_weights else None


def _checked_claim(
    graph: Graph, layer: str | None, field: Any
) -> tuple[ReceptiveField, str | None]:
    """Return the claim and the layer it is of, if it fits what is asked."""
    if not isinstance(field, ReceptiveField):
        raise InvalidInputError(f"field={field!r}: must be a ReceptiveField")
    operations = {one.name for one in graph.layers}
    if layer is None and field.layer in graph.modules and field.layer not in operations:
        layer = field.layer
    measured = measure_receptive_field(graph, layer=layer)
    for what in ("layer", "input_shape"):
        asked, of = getattr(measured, what), getattr(field, what)
        if asked != of:
            raise InvalidInputError(f"field: is of {what}={of!r}; asked is {asked!r}")
    return field, layer


def _chosen(units: Sequence[int] | None, scene: "Scene") -> list[int] | None:
    if units is None or scene.units is None:
        return None
    if not isinstance(units, Sequence) or not units:
        raise InvalidInputError(f"units={units!r}: must be numbers of units, such as [3, 4]")
    return [check_integer("units", unit, minimum=0, maximum=scene.units - 1) for unit in units]


def _check_local(
    model: nn.Module, scene: Scene, layer: str | None, field: AxisField, chosen: list[int] | None
) -> list[FieldCheck]:
    """Check a field on the given image, on a larger one if that has no room or it fails."""
    if chosen is not None:
        return _check_units(scene, field, chosen)
    units = _middle_units(scene, field)
    checks: list[FieldCheck] = []
    if units is not None:
        checks = _check_units(scene, field, units)
        if all(check.ok is not False for check in checks):
            return checks
    larger = _enlarged(model, scene, layer, field)
    if larger is not None:
        units = _middle_units(larger, field)
        if units is not None:
            return _check_units(larger, field, units)
    return checks or _check_units(scene, field, _nearest_middle(scene, field)[0])


def _nearest_middle(scene: Scene, field: AxisField) -> list[list[int]]:
    """Return runs of units, one of each phase and one more, from the middle outwards."""
    count = scene.units or 0
    run = min(field.period + 1, count)
    middle = (count - run) // 2
    starts = sorted(range(count - run + 1), key=lambda start: abs(start - middle))
    return [list(range(start, start + run)) for start in starts]


def _middle_units(scene: Scene, field: AxisField) -> list[int] | None:
    """Return the run nearest the middle that sees nothing outside the image, if there is one."""
    for run in _nearest_middle(scene, field):
        spans = [field.interval(unit) for unit in run]
        if all(span is None or clip(span, scene.length) == span for span in spans):
            return run if len(run) > field.period else None
    return None


def _enlarged(model: nn.Module, scene: Scene, layer: str | None, field: AxisField) -> Scene | None:
    """Return the same with an axis long enough; None if the network or its field forbid it."""
    ends = [span for span in field.spans if span is not None]
    if not ends:
        return None
    reach = max(span[1] for span in ends) - min(span[0] for span in ends) + 1
    needed = reach + 5 * abs(field.advance) + 16
    # A multiple of the given length: what must divide it still does.
    shape = list(scene.sample.shape)
    shape[1 + scene.axis] *= max(2, math.ceil(needed / scene.length))
    try:
        graph = trace(model, shape)
        larger = scenes_of(scene.sample.network, scene.sample.own, graph, layer)[scene.axis]
    except (InvalidInputError, TracingError):
        return None
    where = f"on an image of {' x '.join(map(str, shape[1:]))}"
    return replace(larger, where=where) if larger.field == scene.field else None


def _spread(units: int, most: int = 16) -> list[int]:
    """Return units from the first to the last, evenly spread, at most so many."""
    count = min(units, most)
    return sorted({round(i * (units - 1) / max(count - 1, 1)) for i in range(count)})


def _check_units(scene: Scene, field: Field, units: Sequence[int]) -> list[FieldCheck]:
    spans = [field.interval(unit) for unit in units]
    inside = [clip(span, scene.length) for span in spans]
    changes = Changes(scene, inside)
    return [
        check
        for unit, span, part in zip(units, spans, inside, strict=True)
        for check in _check_unit(scene, changes, unit, span, part)
    ]


def _check_unit(
    scene: Scene, changes: Changes, unit: int, span: Span | None, inside: Span | None
) -> list[FieldCheck]:
    """Check one unit by each method."""
    by_nan, by_change = scene.seen_by_nan(unit, inside), changes.seen_by(unit, inside)
    by_gradient, blind = scene.seen_by_gradient(unit, inside)
    repeats = scene.repeats and span != inside
    nan_ok, gradient_ok = (_agree(found, inside, span, repeats) for found in (by_nan, by_gradient))
    note = "" if span == inside else "what lies inside the image"
    nan_note = gradient_note = "the border repeats positions of the image" if repeats else note
    change_ok, change_note = by_change.ok, by_change.note or note
    if change_ok is None:
        change_note = _NO_CHANGE
    elif repeats and not change_ok:
        change_ok, change_note = None, nan_note
    if not gradient_ok and blind and _is_within(by_gradient, inside):
        gradient_ok, gradient_note = None, blind
        if not nan_ok:
            nan_ok, nan_note = None, _NAN_ALONE
    elif gradient_ok and not nan_ok and change_ok is not False:
        nan_ok, nan_note = None, _NAN_ALONE
    elif gradient_ok is None:
        nan_ok = None
    if change_ok:  # from both ends and no further; who sees less has missed something
        if gradient_ok is False and _is_within(by_gradient, inside):
            # They disagree, so that nothing is proved.
            gradient_ok, gradient_note = None, _GRADIENT_HIDDEN
            nan_ok, nan_note = (None, _GRADIENT_HIDDEN) if nan_ok else (nan_ok, nan_note)
        if nan_ok is False and _is_within(by_nan, inside):
            nan_ok, nan_note = None, _NAN_ALONE
    if not scene.sample.is_finite:
        nan_ok, nan_note = None, _NOT_FINITE
    rows = (
        (by_nan, nan_ok, nan_note),
        (by_gradient, gradient_ok, gradient_note),
        (by_change.span, change_ok, change_note),
    )
    return [
        FieldCheck(scene.axis, unit, method, span, found, ok, said or scene.where)
        for method, (found, ok, said) in zip(_METHODS, rows, strict=True)
    ]


def _agree(
    found: Span | None, inside: Span | None, span: Span | None, repeats: bool
) -> bool | None:
    """Whether what is found is what lies inside the image; None if the border may hide the rest."""
    if found == inside:
        return True
    return None if repeats or (span != inside and _is_within(found, inside)) else False


def _is_within(found: Span | None, inside: Span | None) -> bool:
    if found is None or inside is None:
        return found is None
    return inside[0] <= found[0] and found[1] <= inside[1]


def _check_global(scene: Scene, chosen: list[int] | None) -> list[FieldCheck]:
    """Check that the first and last position reach every unit that is tried."""
    units: Sequence[int | None] = [None]
    if scene.units is not None:
        units = chosen or sorted({0, scene.units // 2, scene.units - 1})
    full = (0, scene.length - 1)
    changes = Changes(scene, [full])
    return [check for unit in units for check in _check_whole(scene, changes, unit)]


def _check_whole(scene: Scene, changes: Changes, unit: int | None) -> list[FieldCheck]:
    """Check that a unit sees all of an axis; NaN shows it only where there is no gradient."""
    full = (0, scene.length - 1)
    by_gradient, blind = scene.seen_by_gradient(unit, full)
    found, by_change = (scene.seen_by_nan(unit, full), by_gradient), changes.seen_by(unit, full)
    nan_excuse = gradient_excuse = ""
    if found[1] == full:
        nan_excuse = "the other method decides"
    elif blind:
        nan_excuse, gradient_excuse = _NAN_ALONE, blind
    elif found[0] == full:
        nan_excuse = gradient_excuse = "NaN may pass where values do not, as behind a mask"
    elif (all_read := scene.seen_by_gradient(None, full)[0]) is not None and all_read in found:
        nan_excuse = gradient_excuse = "no unit reads the rest of the image"
    nan_ok: bool | None = None if nan_excuse else False
    if found[0] == full and (found[1] == full or blind):
        nan_ok = True
    if not scene.sample.is_finite:
        nan_ok, nan_excuse = None, _NOT_FINITE
    gradient_ok = True if found[1] == full else None if gradient_excuse else False
    rows = (
        (found[0], nan_ok, nan_excuse),
        (found[1], gradient_ok, gradient_excuse),
        (by_change.span, by_change.ok, _NO_CHANGE),
    )
    return [
        FieldCheck(scene.axis, unit, method, full, seen, ok, "" if ok else excuse)
        for method, (seen, ok, excuse) in zip(_METHODS, rows, strict=True)
    ]


def _say(span: Span | None) -> str:
    return "nothing" if span is None else f"{span[0]} to {span[1]}"
