"""Rules on what follows what: blocks, stages, and the way to the output."""

import itertools
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

from constrained_cnn.constraints._kinds import (
    DROPOUTS,
    KINDS,
    MOVES,
    RESHAPES,
    check_word,
    is_any_conv,
    is_conv,
    is_dropout,
    is_weighted_product,
    may_bend,
    window_of,
    words_of,
)
from constrained_cnn.constraints._layers import Cells, check_cells, is_of_size, say_cells
from constrained_cnn.constraints._measured import Measure, Measured
from constrained_cnn.constraints._rule import Finding, Rule
from constrained_cnn.constraints._select import only_gates, select
from constrained_cnn.constraints._steps import Course, Step
from constrained_cnn.constraints._subject import CannotTellError, Subject, listed
from constrained_cnn.errors import InvalidInputError, check_flag

# Of one step the first of these is told.
_TOLD = ("batch_norm", "norm", "relu", "activation", "dropout")
_OF_A_COURSE = tuple(KINDS)
_OF_A_BLOCK = (
    *("relu", "activation", "batch_norm", "group_norm", "instance_norm", "layer_norm", "norm"),
    "dropout",
)


def last_convs(subject: Subject, course: Course) -> tuple[Step, ...]:
    """Return the live convolutions, transposed or not, that no other follows; gates left out."""
    convs = [step for step in course.steps if is_any_conv(step) and course.is_live(step)]
    convs = [step for step in convs if not only_gates(subject, course, step)]
    behind = {step.position: course.reached_from([step])[1:] for step in convs}
    return tuple(step for step in convs if not any(one in convs for one in behind[step.position]))


@dataclass(frozen=True, repr=False)
class BlockOrder(Rule):
    """After every convolution of a kind come these layers, in this order, and no others.

    What follows is read in training mode up to the next convolution, pool or head, or to where ways
    part or meet. The last convolution, which begins the prediction, is left out.

    Attributes:
        order: The kinds of layers, the first of them ``"conv"``: ``("conv", "relu", "batch_norm",
            "dropout?")``. One with ``?`` behind it may be left out.
        kernel: Only convolutions with such a kernel.
        but_last: Whether the last convolution is left out.

    Examples:
        >>> BlockOrder(("conv", "relu", "batch_norm", "dropout"), kernel=3).required
        'conv, relu, batch_norm, dropout'
    """

    kind: ClassVar[str] = "block_order"
    order: Sequence[str]
    kernel: Cells = None
    but_last: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.order, list | tuple) or list(self.order)[:1] != ["conv"]:
            raise InvalidInputError(
                f"order={self.order!r}: must be a list of kinds of layers that begins with 'conv'"
            )
        for word in self.order[1:]:
            check_word("order", str(word).removesuffix("?"), _OF_A_BLOCK)
        object.__setattr__(self, "order", tuple(self.order))
        object.__setattr__(self, "kernel", check_cells("kernel", self.kernel))
        check_flag("but_last", self.but_last)

    @property
    def title(self) -> str:
        """What it is about."""
        return f"block of {say_cells(self.kernel)}conv"

    @property
    def required(self) -> str:
        """What it asks for, in words."""
        return ", ".join(self.order)

    def find(self, subject: Subject) -> Finding:
        """Return whether every block is in that order."""
        course = subject.training
        last = last_convs(subject, course) if self.but_last else ()
        wrong: list[str] = []
        right: list[str] = []
        for step in course.steps:
            window = window_of(step) if is_conv(step) else None
            meant = window is not None and is_of_size(window.kernel, self.kernel)
            if not meant or step in last or not course.is_live(step):
                continue
            if only_gates(subject, course, step):
                continue
            block, then = _block(course, step)
            if _fits(self.order[1:], block):
                right.append(step.name)
            elif not self._may_be_so(block, subject.graph.unknown):
                said = ", ".join(["conv", *map(_told, block)])
                wrong.append(f"{step.name}: {said}, then {then}")
        if not wrong:
            subject.check_known()
        if not wrong and not right:
            return self.finding(True, "no such convolution runs")
        measured = f"{len(right)} of {len(right) + len(wrong)} so"
        return self.finding(not wrong, measured, evidence=tuple(wrong) or (listed(right),))

    def _may_be_so(self, block: Sequence[Step], unknown: Collection[str]) -> bool:
        """Whether nobody has described a step of a block, and what comes before it is in order."""
        known = list(itertools.takewhile(lambda step: step.name not in unknown, block))
        return len(known) < len(block) and _fits(self.order[1:], known, begins=True)


def _fits(order: Sequence[str], block: Sequence[Step], *, begins: bool = False) -> bool:
    """Whether a block is in order, or begins so."""
    places = _from({0}, order)  # how much of the order may be done
    for step in block:
        done = {i + 1 for i in places if i < len(order) and KINDS[order[i].rstrip("?")](step)}
        places = _from(done, order)
    return bool(places) if begins else len(order) in places


def _from(places: set[int], order: Sequence[str]) -> set[int]:
    """Return some places in an order, and those that are reached by what may be left out."""
    found = set(places)
    for i, word in enumerate(order):
        if i in found and word.endswith("?"):
            found.add(i + 1)
    return found


# With these something else begins.
_ENDS = frozenset(
    """
    cat chunk getitem index_select interpolate mean narrow pad pixel_shuffle pixel_unshuffle select
    split stack sum unbind unfold upsample
    """.split()  # noqa: SIM905
)


def _block(course: Course, conv: Step) -> tuple[list[Step], str]:
    """Return what follows a convolution on its own way, and what comes then."""
    block: list[Step] = []
    step = conv
    while True:
        after = course.following(step)
        if len(after) != 1:
            return block, "the output" if not after else "ways part"
        step = after[0]
        if len(set(step.inputs)) > 1:
            return block, f"{step.name}, where ways meet"
        off = step.op in DROPOUTS and not is_dropout(step)
        if step.op in MOVES | RESHAPES or off:
            continue
        if is_weighted_product(step) or KINDS["pool"](step) or step.op in _ENDS:
            return block, f"{step.name} ({words_of(step)})"
        block.append(step)


def _told(step: Step) -> str:
    return next((word for word in _TOLD if KINDS[word](step)), step.op)


@dataclass(frozen=True, repr=False)
class CleanPrediction(Rule):
    """From the last convolution on there is nothing of some kinds.

    The prediction zone is each convolution that no other follows, and all that follows it, in
    training and in evaluation mode.

    Attributes:
        avoid: The kinds of layers that must not be there.

    Examples:
        >>> CleanPrediction().required
        'no activation, norm or dropout'
    """

    kind: ClassVar[str] = "clean_prediction"
    avoid: Sequence[str] = ("activation", "norm", "dropout")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.avoid, list | tuple) or not self.avoid:
            raise InvalidInputError(f"avoid={self.avoid!r}: must be a list of kinds of layers")
        for word in self.avoid:
            check_word("avoid", word, _OF_A_COURSE)
        object.__setattr__(self, "avoid", tuple(self.avoid))

    @property
    def title(self) -> str:
        """What it is about."""
        return "from the last conv on"

    @property
    def required(self) -> str:
        """What it asks for, in words."""
        *first, last = self.avoid
        return f"no {', '.join(first)} or {last}" if first else f"no {last}"

    def find(self, subject: Subject) -> Finding:
        """Return whether there is nothing of these kinds."""
        found: dict[str, str] = {}
        zone: dict[str, Step] = {}
        begin: dict[str, Step] = {}
        for course in (subject.training, subject.evaluation):
            last = last_convs(subject, course)
            if not last:
                raise CannotTellError("no convolution runs")
            begin |= {step.name: step for step in last}
            zone |= {step.name: step for step in course.reached_from(last)}
            for step in course.reached_from(last):
                word = next((word for word in self.avoid if KINDS[word](step)), None)
                if word is not None:
                    found[step.name] = _told(step)
        if found:
            evidence = (f"from {listed(begin)} on: {listed(found)}",)
            return self.finding(False, ", ".join(dict.fromkeys(found.values())), evidence=evidence)
        if "dropout" in self.avoid:
            unseen = select(subject, "dropout").open
            if unseen:
                raise CannotTellError(unseen)
        bent = [name for name, step in zone.items() if may_bend(step) or _mixes(step)]
        if bent and {"relu", "activation", "norm"}.intersection(self.avoid):
            raise CannotTellError(f"{listed(bent)} may be an activation, or a norm")
        subject.check_known()
        return self.finding(True, "none", evidence=(listed(zone),))


def _mixes(step: Step) -> bool:
    """Whether a step makes one of several values in a way that need not be a sum."""
    if step.op in ("einsum", "matmul", "bmm", "mm"):
        return not step.weighted
    return len(set(step.inputs)) > 1 and step.op not in ("add", "cat", "rsub", "stack", "sub")


@dataclass(frozen=True, repr=False)
class Distance(Measured):
    """How far layers of a kind stay away from the output.

    Counted are the convolutions and fully connected layers behind them, on the shortest way to an
    output, in either mode. Where no such layer runs the rule is kept.

    Attributes:
        layer: The kind, as in :class:`Count`.

    Examples:
        >>> Distance("max_pool", at_least=2).title
        'layers from max_pool to the output'
    """

    kind: ClassVar[str] = "distance"
    layer: str

    def __post_init__(self) -> None:
        super().__post_init__()
        check_word("layer", self.layer, _OF_A_COURSE)

    @property
    def title(self) -> str:
        """What it is about."""
        return f"layers from {self.layer} to the output"

    def measure(self, subject: Subject) -> Measure:
        """Return the least distance."""
        found = [pair for course in subject.courses for pair in self._distances(course)]
        unseen = select(subject, self.layer).open
        if unseen:
            raise CannotTellError(unseen)
        if not found:
            return Measure((), said=f"no {self.layer} runs")
        nearest = min(number for number, _ in found)
        names = dict.fromkeys(name for number, name in found if number == nearest)
        evidence = f"nearest: {listed(names)}"
        return Measure((nearest,), (evidence,))

    def _distances(self, course: Course) -> Iterator[tuple[int, str]]:
        """Yield how far each such layer is from an output, and its name."""
        ahead: dict[int, int] = dict.fromkeys(course.outputs, 0)
        far: dict[int, int] = {}
        for step in reversed(course.steps):
            known = [ahead[value] for value in step.outputs if value in ahead]
            if not known:
                continue
            far[step.position] = min(known)
            more = min(known) + is_weighted_product(step)
            for value in step.inputs:
                ahead[value] = min(more, ahead.get(value, more))
        for step in course.steps:
            if step.position in far and KINDS[self.layer](step):
                yield far[step.position], step.name


@dataclass(frozen=True, repr=False)
class ConvsBeforePool(Measured):
    """How many convolutions stand before each max-pool, from the pool before it or the input.

    Where ways part, the way with the most counts. Where no max-pool runs the rule is kept.

    Attributes:
        kernel: Only convolutions with such a kernel.

    Examples:
        >>> ConvsBeforePool(kernel=3, near=3, within=1).title
        '3x3 conv before each max_pool'
    """

    kind: ClassVar[str] = "convs_before_pool"
    kernel: Cells = None

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "kernel", check_cells("kernel", self.kernel))

    @property
    def title(self) -> str:
        """What it is about."""
        return f"{say_cells(self.kernel)}conv before each max_pool"

    def measure(self, subject: Subject) -> Measure:
        """Return their number before each pool."""
        subject.check_known()
        pairs = [pair for course in subject.courses for pair in self._before(course)]
        found = list(dict.fromkeys(pairs))  # what runs in both modes is told once
        if not found:
            return Measure((), said="no max_pool runs")
        evidence = listed(f"{name}: {number}" for name, number in found)
        said = ", ".join(str(number) for _, number in found)
        return Measure(tuple(number for _, number in found), (evidence,), said)

    def _before(self, course: Course) -> Iterator[tuple[str, int]]:
        """Yield the name of each pool, and how many convolutions stand before it."""
        deep: dict[int, int] = defaultdict(int)
        for step in filter(course.is_live, course.steps):
            before = max((deep[value] for value in step.inputs), default=0)
            if KINDS["max_pool"](step):
                yield step.name, before
                before = 0
            window = window_of(step) if is_conv(step) else None
            counts = window is not None and is_of_size(window.kernel, self.kernel)
            deep |= dict.fromkeys(step.outputs, before + counts)
