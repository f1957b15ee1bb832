"""Find the layers of a kind: those that run and matter, and what only looks like them."""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from constrained_cnn.constraints._kinds import (
    GLOBAL_AVERAGE_POOL,
    KINDS,
    dropout_p,
    is_dropout,
    may_be_nonlinear,
    near_miss,
)
from constrained_cnn.constraints._subject import CannotTellError, Subject, listed
from constrained_cnn.errors import ConstrainedCNNError
from constrained_cnn.graph import Layer, Program
from constrained_cnn.receptive_field import LayerField

# What the classes of modules are called that were declared for such a layer.
_CLASSES = {
    "fully_connected": "linear",
    GLOBAL_AVERAGE_POOL: "avgpool",
}


@dataclass(frozen=True)
class Selection:
    """The layers of one kind.

    Attributes:
        live: Those on which an output depends, in the mode that tells most: dropout in training,
            what else there is in evaluation.
        fewest: How many count for sure, in either mode.
        most: How many run at all, in either mode, whether they matter or not.
        remarks: What does not count, and why.
        open: Why there may be more that cannot be seen; empty if there cannot.
    """

    live: tuple[Layer, ...]
    fewest: int
    most: int
    remarks: tuple[str, ...] = ()
    open: str = ""

    @property
    def evidence(self) -> tuple[str, ...]:
        """The names of those that count, and the remarks."""
        named = (listed(layer.name for layer in self.live),) if self.live else ()
        return (*named, *self.remarks, *([self.open] if self.open else []))


def select(
    subject: Subject, word: str, keep: Callable[[Layer], bool] = lambda layer: True
) -> Selection:
    """Return the layers of a kind.

    Args:
        subject: The network.
        word: The kind.
        keep: Which of them are meant.

    Raises:
        CannotTellError: If it cannot be told.
    """
    if word == "dropout":
        return _dropouts(subject, keep)
    if word == GLOBAL_AVERAGE_POOL:
        return _global_pools(subject, keep)
    in_use = _of_kind(subject.evaluation, word, keep)
    problem = subject.graph.training.problem
    trained = in_use if problem else _of_kind(subject.training, word, keep)
    gates: tuple[Layer, ...] = ()
    if word in _NOT_OF_GATES:
        in_use, gates = _without_gates(subject, subject.evaluation, in_use)
        if not problem:
            trained, _ = _without_gates(subject, subject.training, trained)
    remarks = [
        *_dead(in_use),
        *_gating(gates),
        *_only(in_use, trained, "evaluation"),
        *_only(trained, in_use, "training"),
    ]
    return Selection(
        in_use.live,
        min(len(in_use.live), len(trained.live)),
        (in_use.at | trained.at).total(),
        (*remarks, *_near_misses(subject, word, in_use), *_idle(subject, word)),
        _unseen(subject) or _nonlinear(subject, word),
    )


# What scales a map is no head and no stage of the network, whatever it is made of.
_NOT_OF_GATES = ("fully_connected", "classifier", "max_pool", "avg_pool", "pool")


@dataclass(frozen=True)
class _Found:
    live: tuple[Layer, ...]
    dead: tuple[Layer, ...]

    @property
    def ran(self) -> tuple[Layer, ...]:
        return (*self.live, *self.dead)

    @property
    def at(self) -> Counter[str]:
        """How many ran in each module; names of operations differ where torch.export gave them."""
        return Counter(layer.path for layer in self.ran)


def _of_kind(program: Program, word: str, keep: Callable[[Layer], bool]) -> _Found:
    return _sorted(
        program, [layer for layer in program.layers if KINDS[word](layer) and keep(layer)]
    )


def _sorted(program: Program, layers: Sequence[Layer]) -> _Found:
    return _Found(
        tuple(layer for layer in layers if program.is_live(layer)),
        tuple(layer for layer in layers if not program.is_live(layer)),
    )


def _without_gates(
    subject: Subject, program: Program, found: _Found
) -> tuple[_Found, tuple[Layer, ...]]:
    """Return what was found without the layers that only scale places, and these."""
    gates = tuple(layer for layer in found.live if only_gates(subject, program, layer))
    live = tuple(layer for layer in found.live if layer not in gates)
    return _Found(live, found.dead), gates


def _gating(gates: Sequence[Layer]) -> list[str]:
    return [f"{layer.name}: only scales what has places, as a gate" for layer in gates]


def only_gates(subject: Subject, program: Program, layer: Layer) -> bool:
    """Return whether a layer only scales places, as all of a squeeze-excite does.

    Then what it makes has no places, and goes out only through products with what has.

    Args:
        subject: The network.
        program: What ran.
        layer: The layer.
    """
    waiting, met = [layer], {layer.outputs[0]}
    if _has_places(subject, layer):
        return False
    while waiting:
        one = waiting.pop()
        if set(one.outputs).intersection(program.outputs):
            return False
        for follower in program.following(one):
            scales = follower.kind == "scale" and _has_places(subject, follower)
            if follower.outputs[0] not in met and not scales:
                waiting.append(follower)
                met.add(follower.outputs[0])
    return True


def _has_places(subject: Subject, layer: Layer) -> bool:
    try:
        rows = subject.rows.get(layer.name, ())
    except (CannotTellError, ConstrainedCNNError):
        return False
    return any(axis.units is not None and axis.units > 1 for row in rows for axis in row.axes)


def _dead(found: _Found) -> list[str]:
    return [f"{layer.name}: runs, but no output depends on it" for layer in found.dead]


def _only(found: _Found, other: _Found, mode: str) -> list[str]:
    """Return which of the layers found in one mode do not run in the other."""
    more = found.at - other.at
    return [f"{layer.name}: runs in {mode} mode only" for layer in found.ran if more[layer.path]]


def _unseen(subject: Subject) -> str:
    """Return which operations nobody has described, in either mode."""
    unknown = subject.unknown_kinds
    return f"no kind is known of {listed(unknown)}" if unknown else ""


def _nonlinear(subject: Subject, word: str) -> str:
    """Return what may be an activation without the name of one."""
    if word not in ("relu", "activation"):
        return ""
    programs = [subject.evaluation]
    programs += [] if subject.graph.training.problem else [subject.training]
    names = [one.name for program in programs for one in program.layers if may_be_nonlinear(one)]
    return f"{listed(dict.fromkeys(names))} may be one" if names else ""


def _near_misses(subject: Subject, word: str, found: _Found) -> list[str]:
    """Return what only looks like such a layer, where none counts."""
    layers = () if found.live else subject.evaluation.layers
    return [said for layer in layers if (said := near_miss(layer, word))]


def _idle(subject: Subject, word: str) -> tuple[str, ...]:
    """Return the modules that were declared for such a layer and never called."""
    wanted = _CLASSES.get(word, word.replace("_", ""))
    names = [
        f"{path} ({kind})" for path, kind in subject.graph.idle.items() if wanted in kind.lower()
    ]
    return (f"declared and never called: {listed(names)}",) if names else ()


def _dropouts(subject: Subject, keep: Callable[[Layer], bool]) -> Selection:
    layers = [layer for layer in subject.training.layers if layer.drops and keep(layer)]
    found = _sorted(subject.training, list(filter(is_dropout, layers)))
    in_use = [layer for layer in subject.evaluation.layers if is_dropout(layer) and keep(layer)]
    also = _sorted(subject.evaluation, in_use)
    remarks = [*_dead(found), *_only(also, found, "evaluation")]
    for layer in layers:
        if layer.kind != "dropout":
            if layer.settings.get("dropout") and not is_dropout(layer):
                remarks.append(f"{layer.name}: drops between its layers, and there is but one")
            continue
        if dropout_p(layer) is None:
            remarks.append(f"{layer.name}: is off in training mode")
        elif dropout_p(layer) == 0:
            remarks.append(f"{layer.name}: p = 0 drops nothing")
    draws = subject.graph.training.draws
    drawn = f"{listed(draws)} draws random numbers, which may make a dropout of its own"
    return Selection(
        found.live,
        len(found.live),
        (found.at | also.at).total(),
        (*remarks, *_idle(subject, "dropout")),
        drawn if draws else _unseen(subject),
    )


# They can average over the map with weights that nobody looks at.
_SUMS = ("conv", "linear", "product", "scale", "sum", "unknown")


def _global_pools(subject: Subject, keep: Callable[[Layer], bool]) -> Selection:
    program = subject.evaluation
    found: list[Layer] = []
    remarks: list[str] = []
    unseen = _unseen(subject)
    averaged: dict[int, set[int]] = {}  # by value: the axes of the image that were averaged
    for layer in program.layers:
        rows = subject.rows.get(layer.name, ())
        if layer.kind in ("mean", "avg_pool") and rows and keep(layer):
            for row in rows:
                unseen = unseen or row.problem
                if len(layer.input_shape) > 1 and not any(units for units, _ in row.windows):
                    unseen = unseen or f"what {layer.name} averages cannot be said"
            why = _why_not(program, layer, rows, averaged)
            if why:
                remarks.append(f"{layer.name}: {why}")
            else:
                found.append(layer)
        elif layer.kind in _SUMS and not _is_trained(subject, layer) and any(map(_ends, rows)):
            unseen = unseen or f"{layer.name} reads the whole map, and may average it"
        elif layer.kind in ("moves", "reshapes") and layer.inputs[0] in averaged:
            averaged |= dict.fromkeys(layer.outputs, averaged[layer.inputs[0]])
    all_of_them = _sorted(program, found)
    sorted_, gates = _without_gates(subject, program, all_of_them)
    return Selection(
        sorted_.live,
        len(sorted_.live),
        len(sorted_.ran),
        (*remarks, *_dead(all_of_them), *_gating(gates), *_idle(subject, GLOBAL_AVERAGE_POOL)),
        unseen,
    )


def _is_trained(subject: Subject, layer: Layer) -> bool:
    """Whether a layer reads a parameter, and not only buffers that may hold one number."""
    return any(not subject.graph.weights[number].buffer for number in layer.weights)


def _why_not(
    program: Program, layer: Layer, rows: Sequence[LayerField], averaged: dict[int, set[int]]
) -> str:
    """Return why an average is none over the whole map; empty if it is one."""
    row = next((row for row in rows if any(units for units, _ in row.windows)), rows[0])
    axes = range(len(row.axes))
    here = {axis for axis in axes if _averages(row, axis)}
    done = here | averaged.get(layer.inputs[0], set())
    averaged |= dict.fromkeys(layer.outputs, done)
    rest = [axis for axis in axes if axis not in done and _units_before(row, axis) != 1]
    if rest or not here:
        return _what_else(row, rest)
    if math.prod(layer.output_shape) == 1 < layer.input_shape[0]:
        return "averages the channels too"
    padded = layer.settings.get("padding") not in (None, 0, (0,), (0, 0), (0, 0, 0))
    counted = padded and layer.settings.get("count_include_pad", True)
    if layer.settings.get("divisor_override") is not None or counted:
        return "does not divide by the number of cells"
    maker = program.makers.get(layer.inputs[0])
    while maker is not None and maker.kind == "moves":
        maker = program.makers.get(maker.inputs[0])
    if (
        maker is not None
        and maker.kind == "cut"
        and maker.input_shape[1:] != maker.output_shape[1:]
    ):
        return f"averages a part: what {maker.name} cuts out"
    return ""


def _what_else(row: LayerField, rest: Sequence[int]) -> str:
    """Return what an average does that is not over the whole map."""
    before = [_units_before(row, axis) for axis in range(len(row.axes))]
    after = [axis.units for axis in row.axes]
    if not any(before):
        return "does not average over places of the image"
    cells = " x ".join(str(units) for units in before if units)
    if all(units in (None, 1) for units in before):
        return f"has but {cells} cell to average"
    if any(units is not None and units > 1 for units in after):
        return f"is not global, it leaves {' x '.join(str(units or 1) for units in after)} cells"
    windows = [window for _, window in row.windows if window is not None]
    if rest and windows:
        size = " x ".join(str(window.kernel) for window in windows)
        return f"is not global, its window of {size} does not cover {cells} cells"
    return "is not global, an axis of the image went into it in another way"


def _ends(row: LayerField) -> bool:
    """Whether after a layer no place of the image is left, and before it there were several."""
    before = [_units_before(row, axis) for axis in range(len(row.axes))]
    gone = all(axis.units in (None, 1) for axis in row.axes)
    return gone and any(units is not None and units > 1 for units in before)


def _units_before(row: LayerField, axis: int) -> int | None:
    return row.windows[axis][0] if axis < len(row.windows) else None


def _averages(row: LayerField, axis: int) -> bool:
    """Whether all of several units along an axis of the image go into one."""
    units, window = row.windows[axis] if row.windows else (None, None)
    if units is None or units == 1 or row.axes[axis].units not in (None, 1):
        return False
    return window is None or (window.kernel >= units and window.dilation == 1)
