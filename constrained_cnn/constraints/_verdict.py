"""What is said of a rule: pass, fail or cannot tell, and how such answers combine."""

import enum
from collections.abc import Iterable


class Verdict(enum.Enum):
    """What is said of a rule; the logic is Kleene's, with "cannot tell" as the third value.

    Examples:
        >>> ~Verdict.PASS, ~Verdict.CANNOT_TELL
        (<Verdict.FAIL: 'fail'>, <Verdict.CANNOT_TELL: 'cannot tell'>)
    """

    PASS = "pass"
    FAIL = "fail"
    CANNOT_TELL = "cannot tell"

    def __invert__(self) -> "Verdict":
        return _INVERTED[self]

    @property
    def ok(self) -> bool | None:
        """True for pass, False for fail, None for cannot tell."""
        return _TRUTH[self]


_INVERTED = {
    Verdict.PASS: Verdict.FAIL,
    Verdict.FAIL: Verdict.PASS,
    Verdict.CANNOT_TELL: Verdict.CANNOT_TELL,
}
_TRUTH = {Verdict.PASS: True, Verdict.FAIL: False, Verdict.CANNOT_TELL: None}


def all_of(verdicts: Iterable[Verdict]) -> Verdict:
    """Return pass if all pass, fail if one fails, else cannot tell.

    Examples:
        >>> all_of([Verdict.PASS, Verdict.CANNOT_TELL]), all_of([])
        (<Verdict.CANNOT_TELL: 'cannot tell'>, <Verdict.PASS: 'pass'>)
    """
    found = set(verdicts)
    if Verdict.FAIL in found:
        return Verdict.FAIL
    return Verdict.CANNOT_TELL if Verdict.CANNOT_TELL in found else Verdict.PASS


def any_of(verdicts: Iterable[Verdict]) -> Verdict:
    """Return pass if one passes, fail if all fail, else cannot tell.

    Examples:
        >>> any_of([Verdict.FAIL, Verdict.CANNOT_TELL]), any_of([])
        (<Verdict.CANNOT_TELL: 'cannot tell'>, <Verdict.FAIL: 'fail'>)
    """
    return ~all_of(~verdict for verdict in verdicts)
