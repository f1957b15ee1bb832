"""Rules that put limits to a number, or to several of one kind."""

import abc
import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from constrained_cnn.constraints._rule import Finding, Rule
from constrained_cnn.constraints._subject import Subject
from constrained_cnn.constraints._verdict import Verdict
from constrained_cnn.errors import InvalidInputError, check_integer, check_number

Number = int | float
Saying = Callable[[Number], str]


@dataclass(frozen=True)
class Measure:
    """What was measured.

    Attributes:
        values: The numbers, each of which must lie within the limits; none where there is nothing
            to measure, which breaks no rule.
        evidence: What they are of; names the layers.
        said: The numbers in words; empty for the numbers alone.
        at_least: Whether they are but lower bounds: the true ones may be larger.
    """

    values: tuple[Number, ...]
    evidence: tuple[str, ...] = ()
    said: str = ""
    at_least: bool = False


@dataclass(frozen=True, kw_only=True, repr=False)
class Measured(Rule):
    """A rule that puts limits to a number; those that are given hold together.

    Attributes:
        at_least: The smallest number allowed.
        at_most: The largest number allowed.
        exactly: The only number allowed.
        one_of: The only numbers allowed.
        near: A number to be near to.
        within: How far from ``near`` is near enough.
        unit: What stands behind a number in words.
        whole: Whether the numbers are integers.
        lowest: The lowest limit that means something.
    """

    unit: ClassVar[str] = ""
    whole: ClassVar[bool] = True
    lowest: ClassVar[int | None] = 0

    at_least: Number | None = None
    at_most: Number | None = None
    exactly: Number | None = None
    one_of: Sequence[Number] = ()
    near: Number | None = None
    within: Number | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.one_of, list | tuple):
            raise InvalidInputError(f"one_of={self.one_of!r}: must be a list of numbers")
        object.__setattr__(self, "one_of", tuple(self.one_of))
        for name in ("at_least", "at_most", "exactly", "near", "within"):
            if getattr(self, name) is not None:
                self._check(name, getattr(self, name))
        for number in self.one_of:
            self._check("one_of", number)
        self._check_together()

    def _check(self, name: str, value: Number) -> None:
        lowest = 0 if name == "within" else self.lowest
        check = check_integer if self.whole else check_number
        check(name, value, minimum=lowest)

    def _check_together(self) -> None:
        given = [self.at_least, self.at_most, self.exactly, self.near, *self.one_of]
        if all(limit is None for limit in given):
            raise InvalidInputError(
                f"{self.kind}: no limit is given; give at_least, at_most, exactly, one_of, or near "
                "and within"
            )
        if (self.near is None) != (self.within is None):
            raise InvalidInputError(
                f"near={self.near!r}, within={self.within!r}: near says what to be near to and "
                "within how far is near enough; give both"
            )
        for number in (*([] if self.exactly is None else [self.exactly]), *self.one_of):
            others = dataclasses.replace(self.limits, exactly=None, one_of=())
            if not others.allow(number) and (self.exactly is not None or len(self.one_of) == 1):
                raise InvalidInputError(
                    f"{self._limits_said}: contradict each other: {number!r} is not allowed"
                )
        low, high = self.limits.bounds
        if low > high or (self.one_of and not any(map(self.limits.allow, self.one_of))):
            raise InvalidInputError(
                f"{self._limits_said}: contradict each other: no number is allowed"
            )

    @property
    def _limits_said(self) -> str:
        said = []
        for part in dataclasses.fields(Limits):
            value = getattr(self, part.name)
            if value not in (None, ()):
                said.append(f"{part.name}={value!r}")
        return ", ".join(said)

    @property
    def limits(self) -> "Limits":
        """The limits alone."""
        return Limits(
            self.at_least, self.at_most, self.exactly, self.one_of, self.near, self.within
        )

    @property
    def required(self) -> str:
        """What it asks for, in words."""
        return self.limits.said(self.say)

    def say(self, number: Number) -> str:
        """Return a number in words."""
        return say(number, self.unit)

    @abc.abstractmethod
    def measure(self, subject: Subject) -> Measure:
        """Return the numbers; may raise ``CannotTellError``, or an error of the library."""

    def find(self, subject: Subject) -> Finding:
        """Return whether each number lies within the limits."""
        found = self.measure(subject)
        verdict, margin = self.limits.judge(found.values, at_least=found.at_least)
        said = found.said or ", ".join(dict.fromkeys(map(self.say, found.values))) or "none"
        if found.at_least:
            said = f"at least {said}"
        excess = self.limits.excess(found.values, self.say) if verdict is Verdict.FAIL else ""
        return self.finding(verdict, said, margin=margin, excess=excess, evidence=found.evidence)


@dataclass(frozen=True)
class Limits:
    """Limits that hold together; the attributes are those of :class:`Measured`."""

    at_least: Number | None = None
    at_most: Number | None = None
    exactly: Number | None = None
    one_of: Sequence[Number] = ()
    near: Number | None = None
    within: Number | None = None

    @property
    def bounds(self) -> tuple[Number, Number]:
        """The smallest and the largest number that every limit but ``one_of`` allows."""
        low = [self.at_least, self.exactly]
        high = [self.at_most, self.exactly]
        if self.near is not None and self.within is not None:
            low.append(self.near - self.within)
            high.append(self.near + self.within)
        return (
            max((n for n in low if n is not None), default=-math.inf),
            min((n for n in high if n is not None), default=math.inf),
        )

    def allow(self, number: Number) -> bool:
        """Return whether the limits allow a number."""
        return self.margin(number) >= 0

    def margin(self, number: Number) -> Number:
        """Return by how much a number keeps the limits; negative by how much it breaks them."""
        low, high = self.bounds
        margins = [number - low, high - number]
        if self.one_of:
            margins.append(-min(abs(number - allowed) for allowed in self.one_of))
        return min(margins)

    def judge(
        self, numbers: Sequence[Number], *, at_least: bool = False
    ) -> tuple[Verdict, float | None]:
        """Return the verdict on all of some numbers, and the least margin.

        Args:
            numbers: The numbers.
            at_least: Whether they are but lower bounds.
        """
        margin = min(map(self.margin, numbers), default=None)
        if margin is not None and not math.isfinite(margin):
            margin = None
        if not at_least:
            kept = all(map(self.allow, numbers))
            return (Verdict.PASS if kept else Verdict.FAIL), margin
        low, high = self.bounds
        high = min(high, max(self.one_of, default=math.inf))
        if any(number > high for number in numbers):
            return Verdict.FAIL, margin
        kept = high == math.inf and not self.one_of and all(number >= low for number in numbers)
        return (Verdict.PASS if kept else Verdict.CANNOT_TELL), margin if kept else None

    def excess(self, numbers: Sequence[Number], say_number: Saying) -> str:
        """Return by how much the worst of some numbers breaks the limits, in words.

        Args:
            numbers: The numbers.
            say_number: Says one number.
        """
        worst = min(numbers, key=self.margin)
        low, high = self.bounds
        if worst > high:
            return f"{say_number(worst - high)} over"
        if worst < low:
            return f"{say_number(low - worst)} under"
        return f"{say_number(-self.margin(worst))} off"

    def said(self, say_number: Saying) -> str:
        """Return the limits in words.

        Args:
            say_number: Says one number.
        """
        parts = []
        if self.exactly is not None:
            parts.append(f"exactly {say_number(self.exactly)}")
        if self.one_of:
            parts.append(" or ".join(map(say_number, self.one_of)))
        if self.at_least is not None and self.at_most is not None:
            parts.append(f"{say_number(self.at_least)} to {say_number(self.at_most)}")
        elif self.at_least is not None:
            parts.append(f"at least {say_number(self.at_least)}")
        elif self.at_most is not None:
            parts.append("none" if self.at_most == 0 else f"at most {say_number(self.at_most)}")
        if self.near is not None and self.within is not None:
            parts.append(f"{say_number(self.near)} ± {say_number(self.within)}")
        return ", ".join(parts)


def say(number: Number, unit: str = "") -> str:
    """Return a number in words.

    Examples:
        >>> say(12_000), say(99.4, "%"), say(0.069)
        ('12,000', '99.4 %', '0.069')
    """
    text = f"{number:,}" if isinstance(number, int) else f"{number:.10g}"
    return f"{text} {unit}" if unit else text
