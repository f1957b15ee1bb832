"""Limits of the search that follow from rules."""

import math
from collections.abc import Iterator

from constrained_cnn.constraints import (
    AllOf,
    Constraints,
    Macs,
    Measured,
    Memory,
    Parameters,
    Rule,
    WeightBytes,
)
from constrained_cnn.errors import InvalidInputError
from constrained_cnn.sizing._fits import Limits

_COUNTS = {
    "total": "parameters",
    "trainable": "trainable_parameters",
    "deployed": "deployed_parameters",
}
_PEAKS = {"inference peak": "inference_peak", "int8 peak": "int8_peak"}


def limits_of(rules: Constraints | None) -> Limits:
    """Return the limits that rules on costs put to the quantities of the search.

    Examples:
        >>> limits_of(Constraints([Parameters(at_most=20_000), Macs(near=1_000, within=10)]))
        {'parameters': (None, 20000), 'macs': (990, 1010)}
    """
    found: Limits = {}
    for rule in rules or ():
        for quantity, cost in _costs(rule):
            low, high = cost.limits.bounds
            bounds = (
                None if low == -math.inf else math.ceil(low),
                None if high == math.inf else math.floor(high),
            )
            found = joined(found, {quantity: bounds})
    return found


def joined(one: Limits, other: Limits) -> Limits:
    """Return limits that hold together.

    Raises:
        InvalidInputError: If they contradict each other.
    """
    both = {**one}
    for name, (low, high) in other.items():
        least, most = both.get(name, (None, None))
        lows = [limit for limit in (low, least) if limit is not None]
        highs = [limit for limit in (high, most) if limit is not None]
        both[name] = (max(lows, default=None), min(highs, default=None))
        if lows and highs and max(lows) > min(highs):
            raise InvalidInputError(
                f"limits and rules: {name} must be at least {max(lows):,} and at most "
                f"{min(highs):,}: they contradict each other"
            )
    return both


def _costs(rule: Rule) -> Iterator[tuple[str, Measured]]:
    """Yield the rules on quantities of the search, and which quantity each is on."""
    match rule:
        case AllOf(of=rules):
            for one in rules:
                yield from _costs(one)
        case Parameters(count=count) if count in _COUNTS:
            yield _COUNTS[count], rule
        case Macs():
            yield "macs", rule
        case Memory(accounting=accounting) if accounting in _PEAKS:
            yield _PEAKS[accounting], rule
        case WeightBytes(stored_as="as stored"):
            yield "weight_bytes", rule
