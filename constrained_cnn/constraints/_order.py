"""Rules on what follows what: blocks, stages, and the way to the output."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from constrained_cnn.constraints._kinds import (
    DROPOUTS,
    KINDS,
    MOVES,
    check_word,
    is_conv,
    is_weighted_product,
    window_of,
    words_of,
)
from constrained_cnn.constraints._layers import Cells, check_cells, is_of_size, say_cells
from constrained_cnn.constraints._measured import Measure, Measured
from constrained_cnn.constraints._rule import Finding, Rule
from constrained_cnn.constraints._select import listed, select
from constrained_cnn.constraints._steps import Course, Step
from constrained_cnn.constraints._subject import CannotTellError, Subject
from constrained_cnn.errors import InvalidInputError, check_flag

# Of one step the first of these is told.
_TOLD = ("batch_norm", "norm", "relu", "activation", "dropout")
_OF_A_COURSE = tuple(KINDS)


def last_convs(course: Course) -> tuple[Step, ...]:
    """Return the live convolutions that no other convolution follows."""
    convs = [step for step in course.steps if is_conv(step) and course.is_live(step)]
    return tuple(step for step in convs if not any(map(is_conv, course.reached_from([step])[1:])))


@dataclass(frozen=True, repr=False)
class BlockOrder(Rule):
    """After every convolution of a kind come these layers, in this order, and no others.

    What follows is read in training mode up to the next convolution, pool or head, or to where ways
    part or meet. The last convolution, which begins the prediction, is left out.

    Attributes:
        order: The kinds of layers, the first of them ``"conv"``: ``("conv", "relu", "batch_norm",
            "dropout")``.
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
        known = ("conv", "relu", "activation", "batch_norm", "group_norm", "instance_norm")
        for word in self.order[1:]:
            check_word("order", word, (*known[1:], "layer_norm", "norm", "dropout"))
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
        last = last_convs(course) if self.but_last else ()
        wrong: list[str] = []
        right: list[str] = []
        for step in course.steps:
            window = window_of(step) if is_conv(step) else None
            meant = window is not None and is_of_size(window.kernel, self.kernel)
            if not meant or step in last or not course.is_live(step):
                continue
            block, then = _block(course, step)
            if len(block) == len(self.order) - 1 and all(
                KINDS[word](one) for word, one in zip(self.order[1:], block, strict=True)
            ):
                right.append(step.name)
            else:
                said = ", ".join(["conv", *map(_told, block)])
                wrong.append(f"{step.name}: {said}, then {then}")
        if subject.graph.unknown and not wrong:
            raise CannotTellError(f"nobody has described {listed(subject.graph.unknown)}")
        if not wrong and not right:
            return self.finding(True, "no such convolution runs")
        measured = f"{len(right)} of {len(right) + len(wrong)} so"
        return self.finding(not wrong, measured, evidence=tuple(wrong) or (listed(right),))


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
        off = step.op in DROPOUTS and not KINDS["dropout"](step)
        if step.op in MOVES or off:
            continue
        if not any(KINDS[word](step) for word in _TOLD):
            return block, f"{step.name} ({words_of(step)})"
        block.append(step)


def _told(step: Step) -> str:
    return next(word for word in _TOLD if KINDS[word](step))


@dataclass(frozen=True, repr=False)
class CleanPrediction(Rule):
    """From the last convolution on there is nothing of some kinds.

    The prediction zone is each convolution that no other follows, and all that follows it, in
    training mode.

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
        course = subject.training
        last = last_convs(course)
        if not last:
            raise CannotTellError("no convolution runs")
        zone = course.reached_from(last)
        found = [step for step in zone if any(KINDS[word](step) for word in self.avoid)]
        open_ = select(subject, "dropout").open if "dropout" in self.avoid else ""
        if found:
            names = dict.fromkeys(_told(step) if _is_told(step) else step.op for step in found)
            where = f"from {listed(step.name for step in last)} on: "
            evidence = (where + listed(step.name for step in found),)
            return self.finding(False, ", ".join(names), evidence=evidence)
        if open_:
            raise CannotTellError(open_)
        return self.finding(True, "none", evidence=(listed(step.name for step in zone),))


def _is_told(step: Step) -> bool:
    return any(KINDS[word](step) for word in _TOLD)


@dataclass(frozen=True, repr=False)
class Distance(Measured):
    """How far layers of a kind stay away from the output.

    Counted are the convolutions and fully connected layers behind them, on the shortest way to an
    output, in training mode. Where no such layer runs the rule is kept.

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
        course = subject.training
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
        found = [
            (far[step.position], step.name)
            for step in course.steps
            if step.position in far and KINDS[self.layer](step)
        ]
        unseen = select(subject, self.layer).open
        if unseen:
            raise CannotTellError(unseen)
        if not found:
            return Measure((), said=f"no {self.layer} runs")
        nearest = min(number for number, _ in found)
        evidence = f"nearest: {listed(name for number, name in found if number == nearest)}"
        return Measure((nearest,), (evidence,))


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
        course = subject.evaluation
        if subject.graph.unknown:
            raise CannotTellError(f"nobody has described {listed(subject.graph.unknown)}")
        deep: dict[int, int] = defaultdict(int)
        found: list[tuple[str, int]] = []
        for step in filter(course.is_live, course.steps):
            before = max((deep[value] for value in step.inputs), default=0)
            if KINDS["max_pool"](step):
                found.append((step.name, before))
                before = 0
            window = window_of(step) if is_conv(step) else None
            counts = window is not None and is_of_size(window.kernel, self.kernel)
            deep |= dict.fromkeys(step.outputs, before + counts)
        if not found:
            return Measure((), said="no max_pool runs")
        evidence = listed(f"{name}: {number}" for name, number in found)
        said = ", ".join(str(number) for _, number in found)
        return Measure(tuple(number for _, number in found), (evidence,), said)
