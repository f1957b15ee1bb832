"""Find the layers of a kind: those that run and matter, and what only looks like them."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from constrained_cnn.constraints._kinds import DROPOUTS, GLOBAL_AVERAGE_POOL, KINDS, dropout_p
from constrained_cnn.constraints._steps import Course, Step
from constrained_cnn.constraints._subject import Subject
from constrained_cnn.receptive_field import LayerField

_MOST_NAMES = 12

# What the classes of modules are called that were declared for such a layer.
_CLASSES = {
    "conv": "conv",
    "fully_connected": "linear",
    "relu": "relu",
    "pool": "pool",
    "max_pool": "maxpool",
    "avg_pool": "avgpool",
    GLOBAL_AVERAGE_POOL: "avgpool",
    "norm": "norm",
}


@dataclass(frozen=True)
class Selection:
    """The layers of one kind.

    Attributes:
        live: Those on which an output depends, in the mode that tells most: dropout in training,
            what else there is in evaluation.
        fewest: How many there are for sure, in either mode.
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


def listed(names: Iterable[str]) -> str:
    """Return names in one line, the first dozen of them.

    Examples:
        >>> listed(str(i) for i in range(15))
        '0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11 and 3 more'
    """
    every = list(names)
    more = len(every) - _MOST_NAMES
    return ", ".join(every[:_MOST_NAMES]) + (f" and {more} more" if more > 0 else "")


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
    names = {step.name for step in (*in_use.ran, *trained.ran)}
    differ = len(in_use.ran) != len(trained.ran)  # names differ where torch.export gave them
    only = [(in_use, trained, "evaluation"), (trained, in_use, "training")] if differ else []
    remarks = [f"{step.name}: runs, but no output depends on it" for step in in_use.dead]
    for one, other, mode in only:
        known = {step.name for step in other.ran}
        remarks += [
            f"{step.name}: runs in {mode} mode only" for step in one.ran if step.name not in known
        ]
    unknown = subject.graph.unknown
    return Selection(
        in_use.live,
        min(len(in_use.live), len(trained.live)),
        max(len(in_use.ran), len(trained.ran)),
        (*remarks, *_idle(subject, word, bool(names))),
        f"nobody has described {listed(unknown)}" if unknown else "",
    )


@dataclass(frozen=True)
class _Found:
    live: tuple[Step, ...]
    dead: tuple[Step, ...]

    @property
    def ran(self) -> tuple[Step, ...]:
        return (*self.live, *self.dead)


def _of_kind(course: Course, word: str, keep: Callable[[Step], bool]) -> _Found:
    return _sorted(course, [step for step in course.steps if KINDS[word](step) and keep(step)])


def _sorted(course: Course, steps: Sequence[Step]) -> _Found:
    return _Found(
        tuple(step for step in steps if course.is_live(step)),
        tuple(step for step in steps if not course.is_live(step)),
    )


def _idle(subject: Subject, word: str, found: bool) -> tuple[str, ...]:
    """Return the modules that were declared for such a layer and never called."""
    wanted = _CLASSES.get(word, word.replace("_", ""))
    names = [
        f"{path} ({kind})"
        for path, kind in subject.graph.idle.items()
        if wanted in kind.lower() and not (found and word == GLOBAL_AVERAGE_POOL)
    ]
    return (f"declared and never called: {listed(names)}",) if names else ()


def _dropouts(subject: Subject, keep: Callable[[Step], bool]) -> Selection:
    course = subject.training
    steps = [step for step in course.steps if step.op in DROPOUTS and keep(step)]
    found = _sorted(course, [step for step in steps if dropout_p(step)])
    remarks = [f"{step.name}: runs, but no output depends on it" for step in found.dead]
    for step in steps:
        if DROPOUTS[step.op] in ("attention", "recurrent"):
            continue
        if dropout_p(step) is None:
            remarks.append(f"{step.name}: is off in training mode")
        elif dropout_p(step) == 0:
            remarks.append(f"{step.name}: p = 0 drops nothing")
    draws = subject.graph.training.draws
    unseen = [f"{listed(draws)} draws random numbers, which may make a dropout of its own"]
    unseen += [f"nobody has described {listed(subject.graph.unknown)}"]
    return Selection(
        found.live,
        len(found.live),
        len(found.ran),
        (*remarks, *_idle(subject, "dropout", bool(steps))),
        unseen[0] if draws else unseen[1] if subject.graph.unknown else "",
    )


_AVERAGES = ("mean", *(f"{kind}avg_pool{n}d" for kind in ("", "adaptive_") for n in (1, 2, 3)))


def _global_pools(subject: Subject, keep: Callable[[Step], bool]) -> Selection:
    course = subject.evaluation
    found: list[Step] = []
    remarks: list[str] = []
    problem = ""
    averaged: dict[int, set[int]] = {}  # by value: the axes of the image that were averaged
    for step in course.steps:
        row = subject.fields.get(step.name)
        if row is None or step.op not in _AVERAGES or not keep(step):
            _pass_on(step, averaged)
            continue
        problem = problem or row.problem
        here = {axis for axis in range(len(row.axes)) if _averages(row, axis)}
        before = averaged.get(step.inputs[0], set())
        averaged |= dict.fromkeys(step.outputs, here | before)
        rest = [axis for axis in range(len(row.axes)) if axis not in here | before]
        if here and all(_units_before(row, axis) == 1 for axis in rest):
            if math.prod(step.after) == 1 < step.before[0]:
                remarks.append(f"{step.name}: averages the channels too")
            else:
                found.append(step)
        else:
            cells = " x ".join(str(axis.units or 1) for axis in row.axes)
            remarks.append(f"{step.name}: is not global, it leaves {cells} cells")
    sorted_ = _sorted(course, found)
    remarks += [f"{step.name}: runs, but no output depends on it" for step in sorted_.dead]
    unknown = subject.graph.unknown
    unseen = f"nobody has described {listed(unknown)}" if unknown else problem
    return Selection(
        sorted_.live,
        len(sorted_.live),
        len(sorted_.ran),
        (*remarks, *_idle(subject, GLOBAL_AVERAGE_POOL, bool(found))),
        unseen,
    )


def _pass_on(step: Step, averaged: dict[int, set[int]]) -> None:
    """Let what was averaged stay so through a change of shape."""
    if step.before != step.after and len(step.inputs) == 1 and step.inputs[0] in averaged:
        averaged |= dict.fromkeys(step.outputs, averaged[step.inputs[0]])


def _units_before(row: LayerField, axis: int) -> int | None:
    return row.windows[axis][0] if row.windows else None


def _averages(row: LayerField, axis: int) -> bool:
    """Whether all of several units along an axis of the image go into one."""
    units, window = row.windows[axis] if row.windows else (None, None)
    if units is None or units == 1 or row.axes[axis].units not in (None, 1):
        return False
    return window is None or (window.kernel >= units and window.dilation == 1)
