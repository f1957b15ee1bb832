"""Find the layers of a kind: those that run and matter, and what only looks like them."""

import math
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from constrained_cnn.constraints._kinds import (
    GLOBAL_AVERAGE_POOL,
    KINDS,
    may_be_nonlinear,
    near_miss,
)
from constrained_cnn.constraints._subject import CannotTellError, Subject, listed
from constrained_cnn.errors import ConstrainedCNNError
from constrained_cnn.graph import Layer, Program
from constrained_cnn.receptive_field import LayerField

# What the classes of modules are called that were declared for such a layer.
_CLASSES = {"fully_connected": "linear", GLOBAL_AVERAGE_POOL: "avgpool"}


@dataclass(frozen=True)
class Selection:
    """The layers of one kind.

    Attributes:
        fewest: How many count for sure, in either mode.
        most: How many run at all, in either mode, whether they matter or not.
        evidence: The names of those that count, what does not count, and why.
        open: Why there may be more that cannot be seen; empty if there cannot.
    """

    fewest: int
    most: int
    evidence: tuple[str, ...]
    open: str


def select(
    subject: Subject, word: str, keep: Callable[[Layer], bool] = lambda layer: True
) -> Selection:
    """Return the layers of a kind, those of them that ``keep`` says are meant."""
    unseen = ""

    def find(program: Program) -> _Found:
        meant = (layer for layer in program.layers if KINDS[word](layer) and keep(layer))
        return _found(subject, program, meant, word)

    if word == GLOBAL_AVERAGE_POOL:
        pools, remarks, unseen = _global_pools(subject)
        main = other = _found(subject, subject.evaluation, pools, word)
    elif word == "dropout":
        main, other = find(subject.training), find(subject.evaluation)
        remarks = _only(other, main, "evaluation")
        remarks += _near_misses(filter(keep, subject.training.layers), word)
    else:
        main = find(subject.evaluation)
        other = main if subject.graph.training.problem else find(subject.training)
        remarks = [*_only(main, other, "evaluation"), *_only(other, main, "training")]
        remarks += [] if main.live else _near_misses(subject.evaluation.layers, word)
    unseen = _unseen(subject, word) or unseen
    evidence = (
        listed(layer.name for layer in main.live),
        *(f"{layer.name}: runs, but no output depends on it" for layer in main.dead),
        *(f"{layer.name}: only scales what has places, as a gate" for layer in main.gates),
        *remarks,
        _idle(subject, word),
        unseen,
    )
    fewest = len(main.live if word == "dropout" else min(main.live, other.live, key=len))
    most = (main.at | other.at).total()
    return Selection(fewest, most, tuple(filter(None, evidence)), unseen)


# What scales a map is no head and no stage of the network, whatever it is made of.
_NOT_OF_GATES = (
    *("pool", "max_pool", "avg_pool", GLOBAL_AVERAGE_POOL),
    *("fully_connected", "classifier"),
)


@dataclass(frozen=True)
class _Found:
    """The layers of a kind in one mode; those of gates, and on which no output depends, aside."""

    live: tuple[Layer, ...]
    gates: tuple[Layer, ...]
    dead: tuple[Layer, ...]

    @property
    def ran(self) -> tuple[Layer, ...]:
        return (*self.live, *self.dead)

    @property
    def at(self) -> Counter[str]:
        """How many ran in each module; names of operations differ where torch.export gave them."""
        return Counter(layer.path for layer in self.ran)


def _found(subject: Subject, program: Program, layers: Iterable[Layer], word: str) -> _Found:
    live, gates, dead = [], [], []
    for layer in layers:
        if not program.is_live(layer):
            dead.append(layer)
        elif word in _NOT_OF_GATES and only_gates(subject, program, layer):
            gates.append(layer)
        else:
            live.append(layer)
    return _Found(tuple(live), tuple(gates), tuple(dead))


def only_gates(subject: Subject, program: Program, layer: Layer) -> bool:
    """Return whether a layer only scales places, as all of a squeeze-excite does.

    Then what it makes has no places, and goes out only through products with what has.
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


def _only(found: _Found, other: _Found, mode: str) -> list[str]:
    """Return which of the layers found in one mode do not run in the other."""
    more = found.at - other.at
    return [f"{layer.name}: runs in {mode} mode only" for layer in found.ran if more[layer.path]]


def _unseen(subject: Subject, word: str) -> str:
    """Return why there may be more of a kind than can be seen; empty if there cannot."""
    draws = subject.graph.training.draws
    if word == "dropout" and draws:
        return f"{listed(draws)} draws random numbers, which may make a dropout of its own"
    if subject.unknown_kinds:
        return subject.no_kind
    layers = [one for program in subject.programs for one in program.layers]
    if word == "relu":  # a quotient has no bend
        doubtful = [one for one in layers if may_be_nonlinear(one) and one.kind != "quotient"]
    elif word == "activation":  # a recurrent layer has some inside
        doubtful = [one for one in layers if may_be_nonlinear(one) or one.kind == "recurrent"]
    else:
        doubtful = []
    names = dict.fromkeys(one.name for one in doubtful)
    return f"{listed(names)} may be one" if names else ""


def _near_misses(layers: Iterable[Layer], word: str) -> list[str]:
    return [said for layer in layers if (said := near_miss(layer, word))]


def _idle(subject: Subject, word: str) -> str:
    """Return which modules were declared for such a layer and never called."""
    wanted = _CLASSES.get(word, word.replace("_", ""))
    idle = subject.graph.idle.items()
    names = [f"{path} ({kind})" for path, kind in idle if wanted in kind.lower()]
    return f"declared and never called: {listed(names)}" if names else ""


# They can average over the map with weights that nobody looks at.
_SUMS = ("conv", "linear", "product", "scale", "sum", "unknown")


def _global_pools(subject: Subject) -> tuple[list[Layer], list[str], str]:
    """Return the averages over whole maps, what other averages are, and why there may be more."""
    program = subject.evaluation
    pools: list[Layer] = []
    remarks: list[str] = []
    unseen = ""
    averaged: dict[int, set[int]] = {}  # by value: the axes of the image that were averaged
    for layer in program.layers:
        rows = subject.rows.get(layer.name, ())
        if layer.kind in ("mean", "avg_pool") and rows:
            spatial = [row for row in rows if any(units for units, _ in row.windows)]
            unseen = unseen or next((row.problem for row in rows if row.problem), "")
            if len(layer.input_shape) > 1 and len(spatial) < len(rows):
                unseen = unseen or f"what {layer.name} averages cannot be said"
            row = [*spatial, *rows][0]
            here = {axis for axis in range(len(row.axes)) if _averages(row, axis)}
            done = here | averaged.get(layer.inputs[0], set())
            averaged |= dict.fromkeys(layer.outputs, done)
            why = _why_not(program, layer, row, here, done)
            if why:
                remarks.append(f"{layer.name}: {why}")
            else:
                pools.append(layer)
        elif layer.kind in _SUMS and not _is_trained(subject, layer) and any(map(_ends, rows)):
            unseen = unseen or f"{layer.name} reads the whole map, and may average it"
        elif layer.kind in ("moves", "reshapes") and layer.inputs[0] in averaged:
            averaged |= dict.fromkeys(layer.outputs, averaged[layer.inputs[0]])
    return pools, remarks, unseen


def _is_trained(subject: Subject, layer: Layer) -> bool:
    """Whether a layer reads a parameter, and not only buffers that may hold one number."""
    return any(not subject.graph.weights[number].buffer for number in layer.weights)


def _why_not(
    program: Program, layer: Layer, row: LayerField, here: set[int], done: set[int]
) -> str:
    """Return why an average is none over the whole map; empty if it is one."""
    rest = [i for i, (units, _) in enumerate(row.windows) if i not in done and units != 1]
    if rest or not here:
        return _what_else(row, bool(rest))
    if math.prod(layer.output_shape) == 1 < layer.input_shape[0]:
        return "averages the channels too"
    padded = any(window.padding for window in layer.windows)
    counted = padded and layer.settings.get("count_include_pad", True)
    if layer.settings.get("divisor_override") is not None or counted:
        return "does not divide by the number of cells"
    maker = program.makers.get(layer.inputs[0])
    while maker is not None and maker.kind == "moves":
        maker = program.makers.get(maker.inputs[0])
    cut = maker is not None and maker.kind == "cut"
    if maker is not None and cut and maker.input_shape[1:] != maker.output_shape[1:]:
        return f"averages a part: what {maker.name} cuts out"
    return ""


def _what_else(row: LayerField, rest: bool) -> str:
    """Return what an average does that is not over the whole map."""
    before = [units for units, _ in row.windows if units]
    after = [axis.units or 1 for axis in row.axes]
    if not before:
        return "does not average over places of the image"
    cells = " x ".join(map(str, before))
    if max(before) == 1:
        return f"has but {cells} cell to average"
    if max(after) > 1:
        return f"is not global, it leaves {' x '.join(map(str, after))} cells"
    windows = [window for _, window in row.windows if window is not None]
    if rest and windows:
        size = " x ".join(str(window.kernel) for window in windows)
        return f"is not global, its window of {size} does not cover {cells} cells"
    return "is not global, an axis of the image went into it in another way"


def _ends(row: LayerField) -> bool:
    """Whether after a layer no place of the image is left, and before it there were several."""
    gone = all(axis.units in (None, 1) for axis in row.axes)
    return gone and any((units or 1) > 1 for units, _ in row.windows)


def _averages(row: LayerField, axis: int) -> bool:
    """Whether all of several units along an axis of the image go into one."""
    units, window = row.windows[axis]
    if units is None or units == 1 or row.axes[axis].units not in (None, 1):
        return False
    return window is None or (window.kernel >= units and window.dilation == 1)
