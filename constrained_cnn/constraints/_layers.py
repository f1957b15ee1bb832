"""Rules on the layers that run: which, how many, dropout, padding."""

import math
import struct
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from constrained_cnn.constraints._kinds import (
    KINDS,
    channels,
    check_word,
    dropout_p,
    is_any_conv,
    is_dropout,
)
from constrained_cnn.constraints._measured import Measure, Measured
from constrained_cnn.constraints._rule import Finding, Rule, checked_by, optional
from constrained_cnn.constraints._select import select
from constrained_cnn.constraints._subject import CannotTellError, Subject, listed
from constrained_cnn.constraints._table import register_rule
from constrained_cnn.errors import (
    InvalidInputError,
    check_choice,
    check_flag,
    check_integer,
    check_probability,
)
from constrained_cnn.graph import POOLS, PRODUCTS, Layer, Program

Cells = int | tuple[int, ...] | None
Pads = tuple[tuple[int, int], ...]

# What dropouts may drop.
DROPS = ("elementwise", "channel", "alpha", "channel alpha", "attention", "recurrent")


def check_cells(name: str, value: Any) -> Cells:
    """Return None, a number of cells, or one for each axis, as it is; raise if it is none."""
    check = partial(check_integer, name, minimum=0, maximum=10**6)
    if value is None:
        return None
    if isinstance(value, list | tuple) and value:
        return tuple(map(check, value))
    try:
        return check(value)
    except InvalidInputError as error:
        raise InvalidInputError(f"{error}, or one for each axis, such as [3, 1]") from error


def is_of_size(found: tuple[int, ...], wanted: Cells) -> bool:
    """Return whether cells along each axis are those wanted; None wants none in particular."""
    return wanted is None or (bool(found) and found == _per_axis(wanted, len(found)))


def has_kernel(layer: Layer, wanted: Cells) -> bool:
    """Return whether a layer slides a window of a kernel; None wants none in particular."""
    kernel = tuple(window.kernel for window in layer.windows)
    return bool(kernel) and is_of_size(kernel, wanted)


def _per_axis(cells: int | tuple[int, ...], axes: int) -> tuple[int, ...]:
    return cells if isinstance(cells, tuple) else (cells,) * axes


def say_cells(cells: Cells) -> str:
    """Return the size of a kernel in words.

    Examples:
        >>> say_cells(3), say_cells((3, 1)), say_cells(None)
        ('3x3 ', '3x1 ', '')
    """
    return "" if cells is None else "x".join(map(str, _per_axis(cells, 2))) + " "


_CONVS = ("conv", "depthwise", "dilated")
_WINDOWS = (*_CONVS, "strided", "transposed_conv", "max_pool", "avg_pool", "pool")
# Which kinds of layers have what is filtered by.
_HAVE = {
    "kernel": _WINDOWS,
    "stride": _WINDOWS,
    "dilation": _WINDOWS,
    "bias": (*_CONVS, "transposed_conv", "fully_connected"),
    "narrows": _CONVS,
}


@register_rule
@dataclass(frozen=True, repr=False)
class Count(Measured):
    """How many layers of a kind run.

    What must be there has to count for something: a layer is counted for ``at_least`` only if an
    output depends on it. What must not be there must not run at all: for ``at_most`` every one that
    runs is counted, in evaluation or in training, whether it matters or not. Dropout is looked for
    in training mode, and counts where it drops something. A module that runs twice counts twice.
    Pools and fully connected layers that only scale a map, as those of a squeeze-excite do, do not
    count.

    Attributes:
        layer: The kind: ``"conv"``, ``"depthwise"``, ``"dilated"``, ``"strided"``,
            ``"transposed_conv"``, ``"fully_connected"``, ``"classifier"`` (fully connected, or the
            same as a convolution on one cell), ``"max_pool"``, ``"avg_pool"``, ``"pool"``,
            ``"global_average_pool"``, ``"batch_norm"``, ``"group_norm"``, ``"instance_norm"``,
            ``"layer_norm"``, ``"norm"``, ``"relu"``, ``"activation"``, ``"softmax"`` or
            ``"dropout"``.
        kernel: Of those only the ones with such a kernel, in cells.
        stride: Only those with such a stride.
        dilation: Only those with such a dilation.
        bias: Only those with a bias, or without.
        narrows: Only convolutions that make fewer channels than they are given, or that do not.

    Examples:
        >>> Count("conv", kernel=3, at_least=6, at_most=8)
        Count(at_least=6, at_most=8, layer='conv', kernel=3)
        >>> Count("conv", kernel=3, at_least=6, at_most=8).title
        '3x3 conv'
        >>> Count("max_pool", at_most=0).required
        'none'
    """

    kind = "count"
    layer: str = field(metadata=checked_by(check_word))
    kernel: Cells = field(default=None, metadata=checked_by(check_cells))
    stride: Cells = field(default=None, metadata=checked_by(check_cells))
    dilation: Cells = field(default=None, metadata=checked_by(check_cells))
    bias: bool | None = field(default=None, metadata=checked_by(optional(check_flag)))
    narrows: bool | None = field(default=None, metadata=checked_by(optional(check_flag)))

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, kinds in _HAVE.items():
            if getattr(self, name) is not None and self.layer not in kinds:
                raise InvalidInputError(
                    f"{name}={getattr(self, name)!r}: layers of kind {self.layer!r} have none; "
                    f"those that do are {', '.join(kinds)}"
                )

    @property
    def title(self) -> str:
        """What it is about."""
        said = f"{say_cells(self.kernel)}{self.layer}"
        for name in ("stride", "dilation"):
            if getattr(self, name) is not None:
                said += f", {name} {say_cells(getattr(self, name)).strip()}"
        if self.bias is not None:
            said += " with bias" if self.bias else " without bias"
        if self.narrows is not None:
            said += " to fewer channels" if self.narrows else " to no fewer channels"
        return said

    def measure(self, subject: Subject) -> Measure:
        """Return how many count, and how many run at all."""
        found = select(subject, self.layer, self._is_meant)
        said = str(found.fewest)
        if found.most != found.fewest:
            said += f" that count, {found.most} that run"
        numbers = tuple(dict.fromkeys((found.fewest, found.most)))
        return Measure(numbers, found.evidence, said, at_least=bool(found.open))

    def find(self, subject: Subject) -> Finding:
        """Return whether enough count and not too many run."""
        found = self.measure(subject)
        if not found.at_least or len(found.values) == 1:
            return super().find(subject)
        raise CannotTellError(f"{found.said}: {found.evidence[-1]}")

    def _is_meant(self, layer: Layer) -> bool:
        for name in ("kernel", "stride", "dilation"):
            sizes = tuple(getattr(window, name) for window in layer.windows)
            if not is_of_size(sizes, getattr(self, name)):
                return False
        has_bias = bool(layer.settings.get("bias", layer.work is not None and layer.work.bias > 0))
        if self.bias not in (None, has_bias):
            return False
        given, made = channels(layer) if self.narrows is not None else (0, 0)
        return self.narrows in (None, made < given)


@register_rule
@dataclass(frozen=True, repr=False)
class Dropout(Rule):
    """Every dropout that runs drops with one probability, and none drops in evaluation mode.

    Where none runs it is kept; :class:`Count` asks for some. One that runs with p = 0 drops
    nothing, and breaks the rule all the same unless it asks for 0.

    Attributes:
        p: The probability.
        drops: What they drop: ``"elementwise"``, ``"channel"``, ``"alpha"``, ``"channel alpha"``,
            ``"attention"`` or ``"recurrent"``; None for any of these.
        off_in_evaluation: Whether one that drops in evaluation mode too breaks the rule.

    Examples:
        >>> Dropout(0.069).required
        'every p = 0.069, off in evaluation'
    """

    kind = "dropout"
    title = "dropout p"
    p: float = field(metadata=checked_by(check_probability))
    drops: str | None = field(
        default=None, metadata=checked_by(optional(partial(check_choice, choices=DROPS)))
    )
    off_in_evaluation: bool = field(default=True, metadata=checked_by(check_flag))

    @property
    def required(self) -> str:
        """What it asks for, in words."""
        said = f"every p = {self.p:g}" + (f", {self.drops}" if self.drops else "")
        return said + (", off in evaluation" if self.off_in_evaluation else "")

    def find(self, subject: Subject) -> Finding:
        """Return whether every one drops with that probability."""
        running = [layer for layer in subject.training.layers if dropout_p(layer) is not None]
        still_on = [layer.name for layer in subject.evaluation.layers if is_dropout(layer)]
        kinds: dict[str, list[Layer]] = {}
        for layer in running:
            kinds.setdefault(f"p = {dropout_p(layer):.10g}, {layer.drops}", []).append(layer)
        wrong = [
            f"{listed(layer.name for layer in layers)}: {said}"
            for said, layers in kinds.items()
            if not self._allows(layers[0])
        ]
        if self.off_in_evaluation and still_on:
            wrong.append(f"{listed(still_on)}: drops in evaluation mode too")
        measured = "; ".join(kinds) or "no dropout runs"
        selection = select(subject, "dropout")
        if selection.open and not wrong:
            raise CannotTellError(selection.open)
        return self.finding(not wrong, measured, evidence=tuple(wrong) or selection.evidence)

    def _allows(self, layer: Layer) -> bool:
        same = _rounded(dropout_p(layer) or 0.0) == _rounded(self.p)
        return same and self.drops in (None, layer.drops)


def _rounded(p: float) -> float:
    """Return a probability as a float of 32 bits holds it."""
    rounded: float = struct.unpack("f", struct.pack("f", p))[0]
    return rounded


def _check_padding(name: str, value: Any) -> Cells | str:
    if value == "same":
        return "same"
    if value is None or isinstance(value, str):
        raise InvalidInputError(f"{name}={value!r}: must be a number of cells, or 'same'")
    return check_cells(name, value)


@register_rule
@dataclass(frozen=True, repr=False)
class Padding(Rule):
    """Every convolution of a kind is padded so, before the first cell and behind the last.

    Padding that an operation of its own puts around what the convolution reads counts with its own.

    Attributes:
        cells: Cells at either end of each axis; ``"same"`` for as many in all as give every
            ``stride``-th cell an output, so that with a stride of 1 the size is kept.
        kernel: Only convolutions with such a kernel.

    Examples:
        >>> Padding(1, kernel=3).title, Padding(1, kernel=3).required
        ('padding of 3x3 conv', '1 each')
    """

    kind = "padding"
    cells: Cells | str = field(metadata=checked_by(_check_padding))
    kernel: Cells = field(default=None, metadata=checked_by(check_cells))

    @property
    def title(self) -> str:
        """What it is about."""
        return f"padding of {say_cells(self.kernel)}conv"

    @property
    def required(self) -> str:
        """What it asks for, in words."""
        cells = self.cells
        return f"{' x '.join(map(str, cells)) if isinstance(cells, tuple) else cells} each"

    def find(self, subject: Subject) -> Finding:
        """Return whether every one is padded so."""
        found: dict[str, str] = {}
        wrong = []
        for program in subject.programs:
            for layer in program.layers:
                if layer.kind != "conv" or not has_kernel(layer, self.kernel):
                    continue
                pads = _pads(program, layer)
                if layer.name not in found and not self._allows(pads, layer):
                    wrong.append(f"{layer.name}: padding {_said(pads)}")
                found.setdefault(layer.name, _said(pads))
        if not wrong:
            subject.check_kinds()
        if not found:
            return self.finding(True, "no such convolution runs")
        kinds = " and ".join(sorted(set(found.values())))
        return self.finding(not wrong, kinds, evidence=tuple(wrong) or (listed(found),))

    def _allows(self, pads: Pads, layer: Layer) -> bool:
        if not isinstance(self.cells, str):
            ends = zip(*pads, strict=True)
            return all(is_of_size(end, self.cells) for end in ends)
        strides = (window.stride for window in layer.windows)
        shapes = zip(layer.input_shape[1:], layer.output_shape[1:], strides, strict=True)
        around = zip(pads, _own_pads(layer), shapes, strict=True)
        return all(
            after == -(-(before - sum(pad) + sum(own)) // stride)
            for pad, own, (before, after, stride) in around
        )


def _said(pads: Pads) -> str:
    """Return what is put around each axis, in words; ends that differ with a plus."""
    each = [str(one) if one == other else f"{one}+{other}" for one, other in pads]
    return " x ".join(each if len(set(each)) > 1 else each[:1])


def _own_pads(layer: Layer) -> Pads:
    """Return the cells that a convolution itself puts before and behind each axis."""
    if layer.settings.get("padding") == "same":  # the odd cell is behind
        spans = [window.dilation * (window.kernel - 1) for window in layer.windows]
    else:
        spans = [2 * window.padding for window in layer.windows]
    starts = [window.padding for window in layer.windows]
    return tuple((start, span - start) for start, span in zip(starts, spans, strict=True))


def _pads(program: Program, layer: Layer) -> Pads:
    """Return the cells put around what a convolution slides over, by it and by what precedes it."""
    found = _own_pads(layer)
    while True:
        maker = program.makers.get(layer.inputs[0]) if layer.inputs else None
        if maker is not None and maker.kind == "pad":
            more = _put_around(maker, len(found))
            found = tuple((a + c, b + d) for (a, b), (c, d) in zip(found, more, strict=True))
        elif maker is None or not _passes(maker):
            _check_no_other_pad(program, layer)
            return found
        layer = maker


def _check_no_other_pad(program: Program, layer: Layer) -> None:
    """Raise if cells are put around on a way to a layer that is not followed, and still there."""
    waiting, met = list(layer.inputs), set(layer.inputs)
    while waiting:
        maker = program.makers.get(waiting.pop())
        if maker is None or maker.kind in (*PRODUCTS, *POOLS):
            continue
        if maker.kind == "pad" and math.prod(maker.input_shape) < math.prod(layer.input_shape):
            raise CannotTellError(f"where the cells of {maker.name} go is not followed")
        waiting += [value for value in maker.inputs if value not in met]
        met.update(maker.inputs)


def _put_around(layer: Layer, axes: int) -> Pads:
    """Return the cells that an operation puts around each of the last axes."""
    pads = layer.settings.get("pad") or layer.settings.get("padding")
    if not isinstance(pads, tuple):
        raise CannotTellError(f"{layer.name} pads by an amount that is not known")
    # Pairs of before and behind, the last axis first.
    pairs = [(int(one), int(two)) for one, two in zip(pads[::2], pads[1::2], strict=True)]
    return tuple([(0, 0)] * (axes - len(pairs)) + pairs[::-1][-axes:])


def _passes(layer: Layer) -> bool:
    """Whether a layer leaves each cell in its place, and brings no other value in."""
    if layer.kind == "moves":
        return True
    moves = is_any_conv(layer) or KINDS["pool"](layer) or layer.kind in ("shift", "linear")
    return not moves and layer.input_shape == layer.output_shape and len(set(layer.inputs)) == 1
