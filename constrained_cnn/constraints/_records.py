"""What a record says, in the form it should have; what it does not say cannot be told."""

from collections.abc import Mapping, Sequence
from typing import TypeGuard, TypeVar

from constrained_cnn.constraints._subject import CannotTellError, Subject
from constrained_cnn.errors import InvalidInputError, check_number
from constrained_cnn.record import RunRecord


def by_seed(subject: Subject, said: Sequence[str]) -> tuple[str, ...]:
    """Return what was found of each record, under its seed where there are several."""
    if len(subject.runs) == 1:
        return (said[0],)
    return tuple(f"seed {run.seed}: {one}" for run, one in zip(subject.runs, said, strict=True))


_Kind = TypeVar("_Kind")
_MOST = 10**18


def said_of(run: RunRecord, part: str, key: str, kind: type[_Kind]) -> _Kind:
    """Return what a part of a record says; raise if it does not say it, or in another form."""
    value = getattr(run, part).get(key)
    huge = isinstance(value, int) and abs(value) > _MOST
    if not isinstance(value, kind) or isinstance(value, bool) or huge:
        raise CannotTellError(f"the record does not say it: {part} has no {key}")
    return value


def numbers_of(run: RunRecord, key: str) -> tuple[float, ...]:
    """Return a list of numbers that the data of a record says; raise if it does not."""
    values = run.data.get(key)
    if not isinstance(values, list | tuple) or not all(map(is_number, values)) or not values:
        raise CannotTellError(f"the record does not say it: data has no {key}")
    return tuple(values)


def is_number(value: object) -> TypeGuard[float]:
    """Return whether a value is a finite number."""
    try:
        check_number("value", value)
    except InvalidInputError:
        return False
    return True


def checksum_of(run: RunRecord, part: str) -> str | None:
    """Return the checksum of the images of one part of the data, where the record has it."""
    found = run.data.get(part)
    checksum = found.get("checksum") if isinstance(found, Mapping) else None
    return checksum if isinstance(checksum, str) else None
