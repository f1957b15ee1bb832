"""What a unit sees along one axis of the input: exact arithmetic in integers, without torch."""

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction

from constrained_cnn.errors import InvalidInputError, check_integer

__all__ = ["AxisField", "Span"]

Span = tuple[int, int]


@dataclass(frozen=True)
class AxisField:
    r"""Which input positions each unit of an axis can depend on.

    A quasi-affine map: units come in ``period`` phases, and from one period to the next the spans
    move by ``advance`` input positions. Unit :math:`i = qP + r` with :math:`0 \le r < P` sees the
    closed interval :math:`[lo_r + qA,\ hi_r + qA]`. Where every layer has whole strides there is
    one phase; transposed convolution and resampling make more. Fields are kept in lowest terms, so
    equal maps are equal values.

    Attributes:
        spans: For each phase the span of its first unit, or None where that unit sees nothing.
        advance: Input positions from one period to the next; negative where the axis is flipped.

    Raises:
        InvalidInputError: If there is no phase, or a span ends before it begins.

    Examples:
        >>> AxisField().window(3).window(2, stride=2)
        AxisField(spans=((0, 3),), advance=2)

    References:
        Araujo, Norris, Sim, "Computing Receptive Fields of Convolutional Neural Networks", Distill,
        2019, for one phase.
    """

    spans: tuple[Span | None, ...] = ((0, 0),)
    advance: int = 1

    def __post_init__(self) -> None:
        check_integer("advance", self.advance)
        if not self.spans:
            raise InvalidInputError("spans=(): must hold the span of at least one phase")
        for span in self.spans:
            if span is not None and span[0] > span[1]:
                raise InvalidInputError(f"spans={self.spans!r}: {span} ends before it begins")
        spans, advance = _lowest_terms(self.spans, self.advance)
        object.__setattr__(self, "spans", spans)
        object.__setattr__(self, "advance", advance)

    @property
    def period(self) -> int:
        """Number of phases."""
        return len(self.spans)

    @functools.cached_property
    def jump(self) -> Fraction:
        """Input positions between neighbouring units, on average over a period."""
        return Fraction(self.advance, self.period)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Number of input positions from first to last that a unit of each phase sees."""
        return tuple(0 if span is None else span[1] - span[0] + 1 for span in self.spans)

    @property
    def size(self) -> int:
        """The largest of :attr:`sizes`."""
        return max(self.sizes)

    @property
    def start(self) -> int | None:
        """First position that unit 0 sees, negative in padding; None if it sees nothing."""
        span = self.spans[0]
        return None if span is None else span[0]

    def interval(self, unit: int) -> Span | None:
        """Return the first and last position that ``unit`` sees; None if it sees nothing.

        Positions outside the input lie in its padding.

        Examples:
            >>> AxisField().window(3, padding=1).interval(0)
            (-1, 1)
        """
        turns, phase = divmod(unit, self.period)
        span = self.spans[phase]
        if span is None:
            return None
        shift = turns * self.advance
        return span[0] + shift, span[1] + shift

    def hull(self, first: int, last: int) -> Span | None:
        """Return the smallest interval that holds what the units ``first`` to ``last`` see."""
        return hull_of([self.interval(unit) for unit in range(first, last + 1)])

    def window(
        self, kernel: int, *, stride: int = 1, padding: int = 0, dilation: int = 1
    ) -> "AxisField":
        r"""Return the field after a convolution or pool, a slice with a step, or padding.

        Unit :math:`i` reads the units :math:`i s - p + t d` of this field, :math:`0 \le t < k`.
        In one phase: :math:`r' = r + (k - 1)\,d\,j`, :math:`j' = s\,j`, :math:`f' = f - p\,j`.

        Args:
            kernel: Number of taps.
            stride: Units from one window to the next; negative runs backwards, as a flip does; 0
                stays, as a value that is stretched over an axis does.
            padding: Units before the first; negative crops.
            dilation: Units from tap to tap.

        Examples:
            Two windows of 3 see what one of 5 sees:

            >>> AxisField().window(3).window(3) == AxisField().window(5)
            True
        """
        check_integer("kernel", kernel, minimum=1)
        check_integer("dilation", dilation, minimum=1)
        check_integer("stride", stride)

        def read(unit: int) -> Span | None:
            first = unit * stride - padding
            taps = range(first, first + kernel * dilation, dilation)
            if self.period == 1:  # spans that move evenly: the outer taps see the outermost
                taps = range(first, taps[-1] + 1, max(1, taps[-1] - first))
            return hull_of([self.interval(tap) for tap in taps])

        period = self.period // math.gcd(self.period, stride)
        return self._from(read, period, stride * period)

    def transposed(
        self, kernel: int, *, stride: int = 1, padding: int = 0, dilation: int = 1
    ) -> "AxisField":
        r"""Return the field after a transposed convolution.

        Unit :math:`o` reads the units :math:`(o + p - t d) / s`, where that is whole.

        Args:
            kernel: Number of taps.
            stride: Units of the output for one of the input.
            padding: Units taken away before the first.
            dilation: Units from tap to tap.

        Examples:
            >>> AxisField().transposed(4, stride=2, padding=1).jump
            Fraction(1, 2)
        """
        check_integer("kernel", kernel, minimum=1)
        check_integer("stride", stride, minimum=1)
        check_integer("dilation", dilation, minimum=1)

        def read(unit: int) -> Span | None:
            taps = [unit + padding - tap * dilation for tap in range(kernel)]
            return hull_of([self.interval(tap // stride) for tap in taps if tap % stride == 0])

        return self._from(read, self.period * stride, self.period)

    def resampled(self, slope: Fraction, taps: Callable[[int], Sequence[int]]) -> "AxisField":
        """Return the field after reading units at positions that advance by ``slope``.

        Args:
            slope: Units of this field for one unit of the result, above 0.
            taps: The units that a unit of the result reads. Adding ``slope.denominator`` to the
                unit must add ``slope.numerator`` to each.

        Examples:
            Nearest neighbour, twice as large:

            >>> AxisField().resampled(Fraction(1, 2), lambda i: [i // 2]).spans
            ((0, 0), (0, 0))
        """
        if slope <= 0:
            raise InvalidInputError(f"slope={slope}: must be above 0")
        turns = self.period // math.gcd(self.period, slope.numerator)

        def read(unit: int) -> Span | None:
            return hull_of([self.interval(tap) for tap in taps(unit)])

        return self._from(read, slope.denominator * turns, slope.numerator * turns)

    def union(self, *others: "AxisField") -> "AxisField":
        """Return the field of a unit that reads the same unit of this and of others, as a sum does.

        Raises:
            InvalidInputError: If the jumps differ: then no interval that moves with the unit
                describes what it sees.

        Examples:
            >>> AxisField(((0, 4),)).union(AxisField(((2, 6),))).size
            7
        """
        fields = tuple(dict.fromkeys((self, *others)))
        for other in fields[1:]:
            if self.jump != other.jump:
                raise InvalidInputError(
                    f"the branches move by {self.jump} and {other.jump} input positions from unit "
                    "to unit: their union depends on the position"
                )
        if len(fields) == 1:
            return self
        period = math.lcm(*(field.period for field in fields))
        spans = tuple(hull_of([field.interval(i) for field in fields]) for i in range(period))
        return AxisField(spans, self.advance * (period // self.period))

    def _from(self, read: Callable[[int], Span | None], period: int, units: int) -> "AxisField":
        """Return the field of ``period`` phases; a period moves this field by ``units`` units."""
        spans = tuple(read(unit) for unit in range(period))
        return AxisField(spans, self.advance * units // self.period)


def hull_of(spans: Sequence[Span | None]) -> Span | None:
    """Return the smallest interval that holds all of ``spans``; None if there are none."""
    if len(spans) == 1:
        return spans[0]
    seen = [span for span in spans if span is not None]
    if not seen:
        return None
    return min(low for low, _ in seen), max(high for _, high in seen)


def clip(span: Span | None, length: int) -> Span | None:
    """Return what of a span lies inside an axis of that length; None if nothing does."""
    if span is None or span[1] < 0 or span[0] >= length:
        return None
    return max(span[0], 0), min(span[1], length - 1)


def _lowest_terms(
    spans: tuple[Span | None, ...], advance: int
) -> tuple[tuple[Span | None, ...], int]:
    """Return the same map with the fewest phases."""
    period = len(spans)
    for fewer in _divisors(period)[:-1]:
        if advance * fewer % period:
            continue
        step = advance * fewer // period
        if all(spans[i] == _moved(spans[i - fewer], step) for i in range(fewer, period)):
            return spans[:fewer], step
    return spans, advance


def _moved(span: Span | None, by: int) -> Span | None:
    return None if span is None else (span[0] + by, span[1] + by)


@functools.cache
def _divisors(number: int) -> list[int]:
    return [candidate for candidate in range(1, number + 1) if number % candidate == 0]
