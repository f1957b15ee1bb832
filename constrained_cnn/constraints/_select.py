"""Find the layers of a kind: those that run and matter, and what only looks like them."""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from constrained_cnn.constraints._kinds import (
    DROPOUTS,
    GLOBAL_AVERAGE_POOL,
    KINDS,
    MOVES,
    RESHAPES,
    dropout_p,
    is_dropout,
    may_bend,
)
from constrained_cnn.constraints._steps import Course, Step
from constrained_cnn.constraints._subject import CannotTellError, Subject, listed
from constrained_cnn.errors import ConstrainedCNNError
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

    live: tuple[Step, ...]
    fewest: int
    most: int
    remarks: tuple[str, ...] = ()
    open: str = ""

    @property
    def evidence(self) -> tuple[str, ...]:
        """The names of those that count, and the remarks."""
        named = (listed(step.name for step in self.live),) if self.live else ()
        return (*named, *self.remarks, *([self.open] if self.open else []))


def select(
    subject: Subject, word: str, keep: Callable[[Step], bool] = lambda step: True
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
    gates: tuple[Step, ...] = ()
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
        (*remarks, *_idle(subject, word)),
        _unseen(subject) or _bent(subject, word),
    )


# What scales a map is no head and no stage of the network, whatever it is made of.
_NOT_OF_GATES = ("fully_connected", "max_pool", "avg_pool", "pool")


@dataclass(frozen=True)
class _Found:
    live: tuple[Step, ...]
    dead: tuple[Step, ...]

    @property
    def ran(self) -> tuple[Step, ...]:
        return (*self.live, *self.dead)

    @property
    def at(self) -> Counter[str]:
        """How many ran in each module; names of operations differ where torch.export gave them."""
        return Counter(step.path for step in self.ran)


def _of_kind(course: Course, word: str, keep: Callable[[Step], bool]) -> _Found:
    return _sorted(course, [step for step in course.steps if KINDS[word](step) and keep(step)])


def _sorted(course: Course, steps: Sequence[Step]) -> _Found:
    return _Found(
        tuple(step for step in steps if course.is_live(step)),
        tuple(step for step in steps if not course.is_live(step)),
    )


def _without_gates(
    subject: Subject, course: Course, found: _Found
) -> tuple[_Found, tuple[Step, ...]]:
    """Return what was found without the layers that only scale places, and these."""
    gates = tuple(step for step in found.live if only_gates(subject, course, step))
    live = tuple(step for step in found.live if step not in gates)
    return _Found(live, found.dead), gates


def _gating(gates: Sequence[Step]) -> list[str]:
    return [f"{step.name}: only scales what has places, as a gate" for step in gates]


def only_gates(subject: Subject, course: Course, step: Step) -> bool:
    """Return whether a layer only scales places, as all of a squeeze-excite does.

    Then what it makes has no places, and goes out only through products with what has.

    Args:
        subject: The network.
        course: What ran.
        step: The layer.
    """
    waiting, met = [step], {step.position}
    if _has_places(subject, step):
        return False
    while waiting:
        one = waiting.pop()
        if set(one.outputs).intersection(course.outputs):
            return False
        for follower in course.following(one):
            scales = follower.op in ("mul", "multiply") and _has_places(subject, follower)
            if follower.position not in met and not scales:
                waiting.append(follower)
                met.add(follower.position)
    return True


def _has_places(subject: Subject, step: Step) -> bool:
    try:
        rows = subject.rows.get(step.name, ())
    except (CannotTellError, ConstrainedCNNError):
        return False
    return any(axis.units is not None and axis.units > 1 for row in rows for axis in row.axes)


def _dead(found: _Found) -> list[str]:
    return [f"{step.name}: runs, but no output depends on it" for step in found.dead]


def _only(found: _Found, other: _Found, mode: str) -> list[str]:
    """Return which of the layers found in one mode do not run in the other."""
    more = found.at - other.at
    return [f"{step.name}: runs in {mode} mode only" for step in found.ran if more[step.path]]


def _unseen(subject: Subject) -> str:
    unknown = subject.graph.unknown
    return f"nobody has described {listed(unknown)}" if unknown else ""


def _bent(subject: Subject, word: str) -> str:
    """Return what may be an activation without the name of one."""
    if word not in ("relu", "activation"):
        return ""
    courses = [subject.evaluation]
    courses += [] if subject.graph.training.problem else [subject.training]
    names = [step.name for course in courses for step in course.steps if may_bend(step)]
    return f"{listed(dict.fromkeys(names))} may be one" if names else ""


def _idle(subject: Subject, word: str) -> tuple[str, ...]:
    """Return the modules that were declared for such a layer and never called."""
    wanted = _CLASSES.get(word, word.replace("_", ""))
    names = [
        f"{path} ({kind})" for path, kind in subject.graph.idle.items() if wanted in kind.lower()
    ]
    return (f"declared and never called: {listed(names)}",) if names else ()


def _dropouts(subject: Subject, keep: Callable[[Step], bool]) -> Selection:
    steps = [step for step in subject.training.steps if step.op in DROPOUTS and keep(step)]
    found = _sorted(subject.training, list(filter(is_dropout, steps)))
    in_use = [step for step in subject.evaluation.steps if is_dropout(step) and keep(step)]
    also = _sorted(subject.evaluation, in_use)
    remarks = [*_dead(found), *_only(also, found, "evaluation")]
    for step in steps:
        if DROPOUTS[step.op] in ("attention", "recurrent"):
            if step.settings.get("dropout") and not is_dropout(step):
                remarks.append(f"{step.name}: drops between its layers, and there is but one")
            continue
        if dropout_p(step) is None:
            remarks.append(f"{step.name}: is off in training mode")
        elif dropout_p(step) == 0:
            remarks.append(f"{step.name}: p = 0 drops nothing")
    draws = subject.graph.training.draws
    drawn = f"{listed(draws)} draws random numbers, which may make a dropout of its own"
    return Selection(
        found.live,
        len(found.live),
        (found.at | also.at).total(),
        (*remarks, *_idle(subject, "dropout")),
        drawn if draws else _unseen(subject),
    )


_AVERAGES = ("mean", *(f"{kind}avg_pool{n}d" for kind in ("", "adaptive_") for n in (1, 2, 3)))
# They can average over the map with weights that nobody looks at.
_SUMS = ("sum", "nansum", "einsum", "matmul", "mm", "bmm", "linear", "tensordot")
_CUTS = ("getitem", "narrow", "select", "slice", "split", "chunk", "index_select", "unbind")


def _global_pools(subject: Subject, keep: Callable[[Step], bool]) -> Selection:
    course = subject.evaluation
    found: list[Step] = []
    remarks: list[str] = []
    unseen = _unseen(subject)
    averaged: dict[int, set[int]] = {}  # by value: the axes of the image that were averaged
    for step in course.steps:
        rows = subject.rows.get(step.name, ())
        if step.op in _AVERAGES and rows and keep(step):
            for row in rows:
                unseen = unseen or row.problem
                if len(step.before) > 1 and not any(units for units, _ in row.windows):
                    unseen = unseen or f"what {step.name} averages cannot be said"
            why = _why_not(course, step, rows, averaged)
            if why:
                remarks.append(f"{step.name}: {why}")
            else:
                found.append(step)
        elif step.op in _SUMS and not step.weighted and any(map(_ends, rows)):
            unseen = unseen or f"{step.name} reads the whole map, and may average it"
        elif step.op in MOVES | RESHAPES and step.inputs[0] in averaged:
            averaged |= dict.fromkeys(step.outputs, averaged[step.inputs[0]])
    all_of_them = _sorted(course, found)
    sorted_, gates = _without_gates(subject, course, all_of_them)
    return Selection(
        sorted_.live,
        len(sorted_.live),
        len(sorted_.ran),
        (*remarks, *_dead(all_of_them), *_gating(gates), *_idle(subject, GLOBAL_AVERAGE_POOL)),
        unseen,
    )


def _why_not(
    course: Course, step: Step, rows: Sequence[LayerField], averaged: dict[int, set[int]]
) -> str:
    """Return why an average is none over the whole map; empty if it is one."""
    row = next((row for row in rows if any(units for units, _ in row.windows)), rows[0])
    axes = range(len(row.axes))
    here = {axis for axis in axes if _averages(row, axis)}
    done = here | averaged.get(step.inputs[0], set())
    averaged |= dict.fromkeys(step.outputs, done)
    rest = [axis for axis in axes if axis not in done and _units_before(row, axis) != 1]
    if rest or not here:
        return _what_else(row, rest)
    if math.prod(step.after) == 1 < step.before[0]:
        return "averages the channels too"
    padded = step.settings.get("padding") not in (None, 0, (0,), (0, 0), (0, 0, 0))
    counted = padded and step.settings.get("count_include_pad", True)
    if step.settings.get("divisor_override") is not None or counted:
        return "does not divide by the number of cells"
    maker = course.makers.get(step.inputs[0])
    while maker is not None and maker.op in MOVES:
        maker = course.makers.get(maker.inputs[0])
    if maker is not None and maker.op in _CUTS and maker.before[1:] != maker.after[1:]:
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
