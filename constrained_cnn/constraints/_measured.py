"""Rules that put limits to a number, or to several of one kind."""

import abc
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar

from constrained_cnn.constraints._rule import Finding, Rule, Verdict
from constrained_cnn.constraints._subject import Subject
from constrained_cnn.errors import InvalidInputError, check_integer, check_number, say_value

Number = int | float
Exact = int | float | Fraction
Saying = Callable[[Number], str]

_MOST = 10**18


@dataclass(frozen=True)
class Measure:
    """What was measured.

    Attributes:
        values: The numbers, each of which must lie within the limits; none where there is nothing
            to measure, which breaks no rule.
        evidence: What they are of; names the layers. Empty texts are left out.
        said: The numbers in words; empty for the numbers alone.
        at_least: Whether they are but lower bounds: the true ones may be larger.
        unknown: Why there are numbers beside these that are not known; empty if there are none. One
            that is known and breaks the limits is enough to fail.
    """

    values: tuple[Number, ...]
    evidence: tuple[str, ...] = ()
    said: str = ""
    at_least: bool = False
    unknown: str = ""


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
        for name in ("at_least", "at_most", "exactly", "near", "within"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, self._checked(name, getattr(self, name)))
        allowed = tuple(self._checked("one_of", number) for number in self.one_of)
        object.__setattr__(self, "one_of", allowed)
        limits = self.limits
        if limits == Limits(within=self.within):
            raise InvalidInputError(
                "no limit is given; give at_least, at_most, exactly, one_of, or near and within"
            )
        if (self.near is None) != (self.within is None):
            raise InvalidInputError(
                f"near={self.near!r}, within={self.within!r}: near says what to be near to and "
                "within how far is near enough; give both"
            )
        low, high = limits.bounds
        only = self.one_of if self.exactly is None else (self.exactly,)
        if low > high or (only and not any(map(limits.allow, only))):
            given = {name: value for name, value in vars(limits).items() if value not in (None, ())}
            said = ", ".join(f"{name}={value!r}" for name, value in given.items())
            raise InvalidInputError(f"{said}: contradict each other: no number is allowed")

    def _checked(self, name: str, value: Number) -> Number:
        lowest = 0 if name == "within" else self.lowest
        check = check_integer if self.whole else check_number
        number = check(name, value, minimum=lowest)
        if abs(number) > _MOST:
            raise InvalidInputError(f"{name}={say_value(number)}: must be at most {_MOST:,}")
        return number

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
        said = found.said or ", ".join(dict.fromkeys(map(self.say, found.values))) or "none"
        said = f"at least {said}" if found.at_least else said
        verdict, margin = self.limits.judge(found.values, at_least=found.at_least)
        evidence = tuple(filter(None, found.evidence))
        excess = ""
        if verdict is Verdict.FAIL:
            excess = self.limits.excess(found.values, self.say)
        elif found.unknown:
            verdict, margin, evidence = Verdict.CANNOT_TELL, None, (*evidence, found.unknown)
        return self.finding(verdict, said, margin=margin, excess=excess, evidence=evidence)


def _exact(number: Number) -> Exact:
    """Return a number as it is written: 99.4 is 994 tenths, and no binary fraction near it."""
    return Fraction(repr(float(number))) if isinstance(number, float) else number


def _plain(number: Exact) -> Number:
    return int(number) if isinstance(number, int | Fraction) and number % 1 == 0 else float(number)


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
    def bounds(self) -> tuple[Exact, Exact]:
        """The smallest and the largest number that every limit but ``one_of`` allows."""
        lows = [_exact(one) for one in (self.at_least, self.exactly) if one is not None]
        highs = [_exact(one) for one in (self.at_most, self.exactly) if one is not None]
        if self.near is not None and self.within is not None:
            lows.append(_exact(self.near) - _exact(self.within))
            highs.append(_exact(self.near) + _exact(self.within))
        return max(lows, default=-math.inf), min(highs, default=math.inf)

    def allow(self, number: Number) -> bool:
        """Return whether the limits allow a number."""
        return self.margin(number) >= 0

    def margin(self, number: Number) -> Number:
        """Return by how much a number keeps the limits; negative by how much it breaks them."""
        low, high = self.bounds
        exact = _exact(number)
        margins: list[Exact] = [exact - low, high - exact]
        if self.one_of:
            allowed = map(_exact, self.one_of)
            margins.append(max(exact - one if exact < one else one - exact for one in allowed))
        return _plain(min(margins))

    def judge(
        self, numbers: Sequence[Number], *, at_least: bool = False
    ) -> tuple[Verdict, float | None]:
        """Return the verdict on all of some numbers, and the least margin.

        Args:
            numbers: The numbers.
            at_least: Whether they are but lower bounds.
        """
        margin = min(map(self.margin, numbers), default=None)
        kept = margin is None or margin >= 0
        if not at_least:
            return (Verdict.PASS if kept else Verdict.FAIL), margin
        highest = min(self.bounds[1], max(map(_exact, self.one_of), default=math.inf))
        if any(_exact(number) > highest for number in numbers):
            return Verdict.FAIL, margin
        kept = kept and highest == math.inf
        return (Verdict.PASS if kept else Verdict.CANNOT_TELL), margin if kept else None

    def excess(self, numbers: Sequence[Number], say_number: Saying) -> str:
        """Return by how much the worst of some numbers breaks the limits, in words.

        Args:
            numbers: The numbers.
            say_number: Says one number.
        """
        worst = min(numbers, key=self.margin)
        low, high = self.bounds
        where = "over" if _exact(worst) > high else "under" if _exact(worst) < low else "off"
        return f"{say_number(-self.margin(worst))} {where}"

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
    if unit == "%" and not isinstance(number, int):
        number = round(number, 4)
    text = f"{number:,}" if isinstance(number, int) else f"{number:.10g}"
    return f"{text} {unit}" if unit else text
