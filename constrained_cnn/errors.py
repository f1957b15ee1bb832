"""Exceptions, and the ``check_*`` helpers that raise them.

Every error of the library derives from :class:`ConstrainedCNNError`. A message has one form:
what was asked (``name=value``), the rule it breaks, and what to do instead.
"""

import difflib
import math
import numbers
import operator
import re
from collections.abc import Collection, Iterable
from typing import Any

__all__ = [
    "CheckpointError",
    "ConstrainedCNNError",
    "ConstraintError",
    "DataError",
    "InvalidInputError",
    "NonFiniteLossError",
    "OutOfMemoryError",
    "OutputError",
    "TracingError",
    "check_choice",
    "check_flag",
    "check_integer",
    "check_known_keys",
    "check_number",
    "check_probability",
    "closest",
    "escape_controls",
    "reason_of",
    "say_value",
]


class ConstrainedCNNError(Exception):
    """Base of every error the library raises on purpose; its message is one line."""

    def __str__(self) -> str:
        # A message names modules, files and classes, which come from others.
        return escape_controls(super().__str__())

    def __reduce__(self) -> Any:
        # An error may come from another process; Python's own way calls __init__ without keywords.
        return _rebuilt, (type(self), self.args, vars(self))


def _rebuilt(
    kind: type[ConstrainedCNNError], args: tuple[Any, ...], state: dict[str, Any]
) -> ConstrainedCNNError:
    error = kind.__new__(kind, *args)
    vars(error).update(state)
    return error


class InvalidInputError(ConstrainedCNNError, ValueError):
    """An argument breaks a rule; nothing was done."""


class DataError(ConstrainedCNNError):
    """A data set is missing, damaged, or does not fit what was asked of it."""


class CheckpointError(ConstrainedCNNError):
    """A checkpoint or weight file is damaged, or belongs to something else."""


class OutputError(ConstrainedCNNError):
    """A result cannot be written where it was asked to go, or would replace another."""


class TracingError(ConstrainedCNNError):
    """A network cannot be described: it cannot run, or runs something nobody has described."""


class ConstraintError(ConstrainedCNNError):
    """A network or a run breaks a rule, or it cannot be told whether it does; in several lines.

    Attributes:
        report: The :class:`~constrained_cnn.constraints.Report`.
    """

    def __init__(self, message: str, *, report: Any) -> None:
        super().__init__(message)
        self.report = report

    def __str__(self) -> str:
        return escape_controls(Exception.__str__(self), keep_lines=True)


class OutOfMemoryError(ConstrainedCNNError, RuntimeError):
    """A training step needs more memory than there is.

    Attributes:
        batch_size: Samples in the batch that does not fit.
        fits: Samples in the largest part of it, halved and halved again, that was seen to fit;
            None where not even one does, or where several seeds were trained side by side, for
            which a part was not tried.
    """

    def __init__(self, message: str, *, batch_size: int, fits: int | None) -> None:
        super().__init__(message)
        self.batch_size = batch_size
        self.fits = fits


class NonFiniteLossError(ConstrainedCNNError, ArithmeticError):
    """The training loss became infinite or NaN.

    Attributes:
        epoch: The epoch it happened in, counted from 1.
        step: The first bad step of that epoch, counted from 1.
    """

    def __init__(self, message: str, *, epoch: int, step: int) -> None:
        super().__init__(message)
        self.epoch = epoch
        self.step = step


# Control characters, ends of lines, signs that turn the direction of writing, halves of a pair.
_CONTROLS = re.compile(
    r"[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)


def escape_controls(text: str, *, keep_lines: bool = False) -> str:
    r"""Return a text in which what would act on a terminal is written as Python writes it.

    A name of a module or a file may hold any character, such as one that clears the screen. What
    is escaped already stays as it is.

    Args:
        text: The text.
        keep_lines: Whether ends of lines are meant, and stay.

    Examples:
        >>> print(escape_controls("conv\x1b[2J\n"))
        conv\x1b[2J\n
    """

    def escape(match: re.Match[str]) -> str:
        character = match[0]
        if keep_lines and character == "\n":
            return character
        return character.encode("unicode_escape").decode()

    return _CONTROLS.sub(escape, text)


def reason_of(error: BaseException) -> str:
    r"""Return the first line that an error says; the name of its kind if it says nothing.

    Examples:
        >>> reason_of(ValueError("\n  no room\nat all")), reason_of(KeyError())
        ('no room', 'KeyError')
    """
    lines = (line.strip() for line in str(error).splitlines())
    return next((line for line in lines if line), type(error).__name__)


def closest(word: str, words: Iterable[str]) -> str:
    """Return ``"; did you mean 'x'?"`` for the nearest of ``words``, or an empty string.

    Examples:
        >>> closest("epoch", ["epochs", "seed"])
        "; did you mean 'epochs'?"
        >>> closest("zzz", ["epochs", "seed"])
        ''
    """
    by_lower_case = {candidate.lower(): candidate for candidate in words}
    near = difflib.get_close_matches(word.lower(), by_lower_case, n=1)
    return f"; did you mean {by_lower_case[near[0]]!r}?" if near else ""


def check_integer(
    name: str, value: Any, *, minimum: int | None = None, maximum: int | None = None
) -> int:
    """Return ``value`` if it is an integer within the limits.

    Raises:
        InvalidInputError: If it is not an integer (``True`` is not one), or out of range.

    Examples:
        >>> check_integer("epochs", 19, minimum=1)
        19
        >>> check_integer("epochs", 0, minimum=1)
        Traceback (most recent call last):
        ...
        constrained_cnn.errors.InvalidInputError: epochs=0: must be an integer of at least 1
    """
    wanted = "an integer" + _limits(minimum, maximum)
    try:
        # Arrays and tensors have __index__ whatever they hold, so it must be called to know.
        number = None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = None
    too_low = number is not None and minimum is not None and number < minimum
    too_high = number is not None and maximum is not None and number > maximum
    if number is None or too_low or too_high:
        raise InvalidInputError(f"{name}={say_value(value)}: must be {wanted}")
    return number


def check_number(
    name: str, value: Any, *, minimum: float | None = None, maximum: float | None = None
) -> float:
    """Return ``value`` as a float if it is a finite number within the limits.

    Raises:
        InvalidInputError: If it is not a number, not finite, or out of range.
    """
    wanted = "a finite number" + _limits(minimum, maximum)
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise InvalidInputError(f"{name}={say_value(value)}: must be {wanted}")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    too_low = minimum is not None and number < minimum
    too_high = maximum is not None and number > maximum
    if not math.isfinite(number) or too_low or too_high:
        raise InvalidInputError(f"{name}={say_value(value)}: must be {wanted}")
    return number


def check_probability(name: str, value: Any) -> float:
    """Return ``value`` if it is a probability below 1.

    Raises:
        InvalidInputError: If it is not a number with ``0 <= value < 1``.
    """
    try:
        number = check_number(name, value, minimum=0.0)
    except InvalidInputError:
        number = 1.0
    if number >= 1.0:
        raise InvalidInputError(
            f"{name}={say_value(value)}: must be a probability, 0 <= {name} < 1"
        )
    return number


def check_choice(name: str, value: Any, choices: Collection[str]) -> str:
    """Return ``value`` if it is one of ``choices``.

    Raises:
        InvalidInputError: If it is not; the message lists them and suggests the nearest.

    Examples:
        >>> check_choice("drop", "chanel", ("elementwise", "channel"))
        Traceback (most recent call last):
        ...
        constrained_cnn.errors.InvalidInputError: drop='chanel': must be one of 'elementwise', \
'channel'; did you mean 'channel'?
    """
    if not isinstance(value, str) or value not in choices:
        listed = ", ".join(repr(choice) for choice in choices)
        hint = closest(value, choices) if isinstance(value, str) else ""
        raise InvalidInputError(f"{name}={say_value(value)}: must be one of {listed}{hint}")
    return value


def check_flag(name: str, value: Any) -> bool:
    """Return ``value`` if it is True or False, and not something that only counts as one.

    Raises:
        InvalidInputError: If it is not.

    Examples:
        >>> check_flag("bias", "no")
        Traceback (most recent call last):
        ...
        constrained_cnn.errors.InvalidInputError: bias='no': must be True or False
    """
    if not isinstance(value, bool):
        raise InvalidInputError(f"{name}={say_value(value)}: must be True or False")
    return value


def check_known_keys(name: str, keys: Iterable[str], known: Collection[str]) -> None:
    """Raise if any of ``keys`` is not in ``known``.

    Raises:
        InvalidInputError: Naming the first unknown key, with the nearest known one.
    """
    for key in keys:
        if key not in known:
            listed = ", ".join(sorted(known))
            hint = closest(str(key), known)
            raise InvalidInputError(f"{name}: unknown key {key!r}{hint} (known keys: {listed})")


def say_value(value: Any) -> str:
    """Return a value as Python writes it; its kind where that is too long or too deep.

    Examples:
        >>> say_value("a"), say_value(10**5_000)
        ("'a'", 'a int')
    """
    try:
        return repr(value)
    except (ValueError, RecursionError):  # an integer of thousands of digits, lists within lists
        return f"a {type(value).__name__}"


def counted(number: int, word: str) -> str:
    """Return a number of things as a person says it.

    Examples:
        >>> counted(1, "epoch"), counted(12, "epoch")
        ('1 epoch', '12 epochs')
    """
    return f"{number} {word}" if number == 1 else f"{number} {word}s"


def _limits(minimum: float | None, maximum: float | None) -> str:
    if minimum is not None and maximum is not None:
        return f" from {minimum} to {maximum}"
    if minimum is not None:
        return f" of at least {minimum}"
    return f" of at most {maximum}" if maximum is not None else ""
