"""Rules on what follows what: blocks, stages, and the way to the output."""

import itertools
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from constrained_cnn.constraints._kinds import (
    KINDS,
    check_word,
    is_any_conv,
    is_conv,
    is_dropout,
    is_weighted_product,
    may_be_nonlinear,
    words_of,
)
from constrained_cnn.constraints._layers import Cells, check_cells, has_kernel, say_cells
from constrained_cnn.constraints._measured import Measure, Measured
from constrained_cnn.constraints._rule import Finding, Rule, checked_by
from constrained_cnn.constraints._select import only_gates, select
from constrained_cnn.constraints._subject import CannotTellError, Subject, listed
from constrained_cnn.constraints._table import register_rule
from constrained_cnn.errors import InvalidInputError, check_flag
from constrained_cnn.graph import ACTIVATIONS, NORMS, POOLS, PRODUCTS, Layer, Program

# Of one layer the first of these is told.
_TOLD = ("batch_norm", "norm", "relu", "activation", "dropout")
_OF_A_BLOCK = (
    *("relu", "activation", "batch_norm", "group_norm", "instance_norm", "layer_norm", "norm"),
    "dropout",
)


def last_convs(subject: Subject, program: Program) -> tuple[Layer, ...]:
    """Return the live convolutions, transposed or not, that no other follows; gates left out."""
    live = filter(program.is_live, program.layers)
    convs = [one for one in live if is_any_conv(one) and not only_gates(subject, program, one)]
    return tuple(
        layer
        for layer in convs
        if not any(one in convs for one in program.reached_from([layer])[1:])
    )


def _check_order(name: str, value: Any) -> tuple[str, ...]:
    if not isinstance(value, list | tuple) or list(value)[:1] != ["conv"]:
        raise InvalidInputError(
            f"{name}={value!r}: must be a list of kinds of layers that begins with 'conv'"
        )
    for word in value[1:]:
        check_word(name, str(word).removesuffix("?"), _OF_A_BLOCK)
    return tuple(value)


@register_rule
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

    kind = "block_order"
    order: Sequence[str] = field(metadata=checked_by(_check_order))
    kernel: Cells = field(default=None, metadata=checked_by(check_cells))
    but_last: bool = field(default=True, metadata=checked_by(check_flag))

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
        program = subject.training
        last = last_convs(subject, program) if self.but_last else ()
        wrong: list[str] = []
        right: list[str] = []
        for layer in program.layers:
            meant = is_conv(layer) and has_kernel(layer, self.kernel) and program.is_live(layer)
            if not meant or layer in last or only_gates(subject, program, layer):
                continue
            block, then = _block(program, layer)
            if _fits(self.order[1:], block):
                right.append(layer.name)
            elif not self._may_be_so(block, subject.unknown_kinds):
                said = ", ".join(["conv", *map(_told, block)])
                wrong.append(f"{layer.name}: {said}, then {then}")
        if not wrong:
            subject.check_kinds()
        if not wrong and not right:
            return self.finding(True, "no such convolution runs")
        measured = f"{len(right)} of {len(right) + len(wrong)} so"
        return self.finding(not wrong, measured, evidence=tuple(wrong) or (listed(right),))

    def _may_be_so(self, block: Sequence[Layer], unknown: Collection[str]) -> bool:
        """Whether nobody has described a layer of a block, and what comes before it is in order."""
        known = list(itertools.takewhile(lambda layer: layer.name not in unknown, block))
        return len(known) < len(block) and _fits(self.order[1:], known, begins=True)


def _fits(order: Sequence[str], block: Sequence[Layer], *, begins: bool = False) -> bool:
    """Whether a block is in order, or begins so."""
    if not block and begins:
        return True
    if not order:
        return not block
    word, *rest = order
    if word.endswith("?") and _fits(rest, block, begins=begins):
        return True
    fits = bool(block) and KINDS[word.removesuffix("?")](block[0])
    return fits and _fits(rest, block[1:], begins=begins)


# With these something else begins.
_ENDS = ("cut", "join", "mean", "pad", "resample", "shuffle", "sum", "unfold")


def _block(program: Program, conv: Layer) -> tuple[list[Layer], str]:
    """Return what follows a convolution on its own way, and what comes then."""
    block: list[Layer] = []
    layer = conv
    while True:
        after = program.following(layer)
        if len(after) != 1:
            return block, "the output" if not after else "ways part"
        layer = after[0]
        if len(set(layer.inputs)) > 1:
            return block, f"{layer.name}, where ways meet"
        off = layer.kind == "dropout" and not is_dropout(layer)
        if layer.kind in ("moves", "reshapes") or off:
            continue
        if is_weighted_product(layer) or layer.kind in (*_ENDS, *POOLS):
            return block, f"{layer.name} ({words_of(layer)})"
        block.append(layer)


def _told(layer: Layer) -> str:
    return next((word for word in _TOLD if KINDS[word](layer)), layer.op)


def _check_avoid(name: str, value: Any) -> tuple[str, ...]:
    if not isinstance(value, list | tuple) or not value:
        raise InvalidInputError(f"{name}={value!r}: must be a list of kinds of layers")
    return tuple(check_word(name, word, tuple(KINDS)) for word in value)


@register_rule
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

    kind = "clean_prediction"
    title = "from the last conv on"
    avoid: Sequence[str] = field(
        default=("activation", "norm", "dropout"), metadata=checked_by(_check_avoid)
    )

    @property
    def required(self) -> str:
        """What it asks for, in words."""
        *first, last = self.avoid
        return f"no {', '.join(first)} or {last}" if first else f"no {last}"

    def find(self, subject: Subject) -> Finding:
        """Return whether there is nothing of these kinds."""
        found: dict[str, str] = {}
        zone: dict[str, Layer] = {}
        begin: dict[str, Layer] = {}
        for program in (subject.training, subject.evaluation):
            last = last_convs(subject, program)
            if not last:
                raise CannotTellError("no convolution runs")
            begin |= {layer.name: layer for layer in last}
            after = program.reached_from(last)
            zone |= {layer.name: layer for layer in after}
            avoided = (one for one in after if any(KINDS[word](one) for word in self.avoid))
            found |= {layer.name: _told(layer) for layer in avoided}
        if found:
            evidence = (f"from {listed(begin)} on: {listed(found)}",)
            return self.finding(False, ", ".join(dict.fromkeys(found.values())), evidence=evidence)
        unseen = select(subject, "dropout").open if "dropout" in self.avoid else ""
        if unseen:
            raise CannotTellError(unseen)
        doubtful = [name for name, layer in zone.items() if not _is_harmless(layer)]
        if doubtful:
            raise CannotTellError(f"{listed(doubtful)} may be {' or '.join(self.avoid)}")
        subject.check_kinds()
        return self.finding(True, "none", evidence=(listed(zone),))


# Of these it is known that they are linear, or what they are called.
_HARMLESS = (
    *(*PRODUCTS, *POOLS, *ACTIVATIONS, *NORMS),
    *("add", "cut", "dropout", "join", "mean", "moves", "pad", "pointwise", "repeat", "resample"),
    *("reshapes", "scale", "shift", "shuffle", "softmax", "sum", "unfold", "source"),
)


def _is_harmless(layer: Layer) -> bool:
    """Whether a layer is known to be no other kind than it says."""
    return layer.kind in _HARMLESS and not may_be_nonlinear(layer)


@register_rule
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

    kind = "distance"
    layer: str = field(metadata=checked_by(check_word, tuple(KINDS)))

    @property
    def title(self) -> str:
        """What it is about."""
        return f"layers from {self.layer} to the output"

    def measure(self, subject: Subject) -> Measure:
        """Return the least distance."""
        found = [pair for program in subject.programs for pair in self._distances(program)]
        unseen = select(subject, self.layer).open
        if unseen:
            raise CannotTellError(unseen)
        if not found:
            return Measure((), said=f"no {self.layer} runs")
        nearest = min(number for number, _ in found)
        names = dict.fromkeys(name for number, name in found if number == nearest)
        return Measure((nearest,), (f"nearest: {listed(names)}",))

    def _distances(self, program: Program) -> list[tuple[int, str]]:
        """Return how far each such layer is from an output, and its name."""
        found: list[tuple[int, str]] = []
        ahead: dict[int, int] = dict.fromkeys(program.outputs, 0)
        for layer in reversed(program.layers):
            known = [ahead[value] for value in layer.outputs if value in ahead]
            if known and KINDS[self.layer](layer):
                found.insert(0, (min(known), layer.name))
            for value in layer.inputs if known else ():
                more = min(known) + is_weighted_product(layer)
                ahead[value] = min(more, ahead.get(value, more))
        return found


@register_rule
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

    kind = "convs_before_pool"
    kernel: Cells = field(default=None, metadata=checked_by(check_cells))

    @property
    def title(self) -> str:
        """What it is about."""
        return f"{say_cells(self.kernel)}conv before each max_pool"

    def measure(self, subject: Subject) -> Measure:
        """Return their number before each pool."""
        subject.check_kinds()
        pairs = [pair for program in subject.programs for pair in self._before(program)]
        found = list(dict.fromkeys(pairs))  # what runs in both modes is told once
        if not found:
            return Measure((), said="no max_pool runs")
        evidence = listed(f"{name}: {number}" for name, number in found)
        said = ", ".join(str(number) for _, number in found)
        return Measure(tuple(number for _, number in found), (evidence,), said)

    def _before(self, program: Program) -> Iterator[tuple[str, int]]:
        """Yield the name of each pool, and how many convolutions stand before it."""
        deep: dict[int, int] = defaultdict(int)
        for layer in filter(program.is_live, program.layers):
            before = max((deep[value] for value in layer.inputs), default=0)
            if KINDS["max_pool"](layer):
                yield layer.name, before
                before = 0
            counts = is_conv(layer) and has_kernel(layer, self.kernel)
            deep |= dict.fromkeys(layer.outputs, before + counts)
