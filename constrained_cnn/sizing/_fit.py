"""Find the widths that meet every limit and land on a target."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
from torch import nn

from constrained_cnn.constraints import Constraints, Report, Rule, as_constraints, check
from constrained_cnn.errors import InvalidInputError, check_integer, check_known_keys
from constrained_cnn.graph import Graph
from constrained_cnn.sizing._costs import PEAKS, QUANTITIES, Cost, Factory, recover_costs, say_wrong
from constrained_cnn.sizing._fits import Fit, Fits, Limits, say_amount
from constrained_cnn.sizing._limits import joined, limits_of
from constrained_cnn.sizing._order import Order, as_order, check_order
from constrained_cnn.sizing._polynomial import Factor
from constrained_cnn.sizing._search import Found, Search
from constrained_cnn.sizing._space import Point, Space, as_space
from constrained_cnn.sizing._stages import Problem
from constrained_cnn.tracing._inputs import BatchAxis

MOST_BUILT = 2_000
MOST_REFUSED = 300
_MOST = 10**18

Where = Callable[[Mapping[str, int]], bool]


def fit_widths(
    make: Callable[..., nn.Module],
    widths: Mapping[str, range | int],
    input_shape: Sequence[int] | None = None,
    *,
    inputs: Sequence[Any] | Mapping[str, Any] | None = None,
    batch_axis: BatchAxis = "auto",
    target: Mapping[str, int],
    limits: Mapping[str, int | tuple[int | None, int | None]] = MappingProxyType({}),
    order: str | Mapping[str, int] = "even",
    count: int | None = 10,
    where: Where | None = None,
    rules: Constraints | Rule | Sequence[Rule] | str | None = None,
) -> Fits:
    """Return the widths whose networks meet every limit and are nearest to a target, best first.

    Networks at a few widths are made and traced. From these, each quantity is worked out exactly
    as a polynomial of the widths (a peak as the greatest of one polynomial for each operation),
    and checked at others. The search is exact where the costs are these polynomials: no network
    that meets the limits is nearer than the first answer, and of those as near none comes before it
    in the order. A factory that treats one width apart can escape the checks. Each answer is then
    made and measured, so what is said of it is what it costs.

    Quantities are ``parameters``, ``trainable_parameters``, ``deployed_parameters``, ``macs``,
    ``weight_bytes``, ``inference_peak`` and ``int8_peak`` (bytes), of one sample, as
    :func:`~constrained_cnn.budget.measure_budget` counts them; the int8 peak with batch norms
    folded and activations fused. A peak can be a limit only.

    Args:
        make: A function that takes the widths by name and gives a network.
        widths: What each width may be, in the order of the layers: ``range(8, 65, 8)`` says the
            least, the most and the multiple; an integer is a fixed width.
        input_shape: Shape of one sample, as in :func:`~constrained_cnn.tracing.trace`.
        inputs: All inputs, for a network with several.
        batch_axis: Which axis of them is the batch, as in :func:`~constrained_cnn.tracing.trace`.
        target: The quantity to be met, and what it is to be: ``{"parameters": 12_000}``.
        limits: The most that is allowed of a quantity, or the least and the most, None for any:
            ``{"macs": 4_000_000, "inference_peak": (None, 100_000)}``.
        order: What comes first of networks as near to the target as one another: ``"even"``, the
            least sum of squared log-ratios of each width to the next; ``"fewest macs"``;
            ``"most macs"``; or widths to be near, the least sum of squared relative distances.
            Of those that are equal in this too, the lesser widths come first.
        count: How many answers; None for all that are as near to the target as can be.
        where: Whether widths may be, given as one mapping by name: ``lambda w: w["a"] < w["b"]``;
            asked before a network is made.
        rules: What every answer must keep, as :func:`constrained_cnn.constraints.check` takes them.
            Rules on costs bound the search; of the others each network that is found is asked, and
            the search goes on where it breaks one. Rules on a run do not count.

    Raises:
        InvalidInputError: If an argument breaks a rule, if a quantity is no polynomial of the
            widths, or if the search or the answers would be too many.
        TracingError: If a network cannot be traced.

    Examples:
        >>> def make(first, second):
        ...     return nn.Sequential(nn.Conv2d(1, first, 3), nn.ReLU(), nn.Conv2d(first, second, 3))
        >>> ranges = {"first": range(1, 33), "second": range(1, 33)}
        >>> fits = fit_widths(make, ranges, (1, 28, 28), target={"parameters": 1_010})
        >>> fits.best.widths, fits.best.quantities["parameters"]
        ({'first': 10, 'second': 10}, 1010)

        At most 1,000, as many of them as can be, and within a limit of memory:

        >>> limits = {"parameters": 1_000, "inference_peak": 50_000}
        >>> fits = fit_widths(
        ...     make, ranges, (1, 28, 28), target={"parameters": 1_000}, limits=limits
        ... )
        >>> fits.best.widths, fits.best.quantities["inference_peak"], fits.best.difference
        ({'first': 9, 'second': 11}, 49680, -8)
    """
    space = as_space(widths)
    quantity, wanted = _checked_target(target)
    bounds = _checked_limits(limits)
    check_order(order, space)
    most = None if count is None else check_integer("count", count, minimum=1)
    if where is not None and not callable(where):
        raise InvalidInputError(f"where={where!r}: must be a function, or None")
    kept = None if rules is None else as_constraints(rules)
    bounds = joined(bounds, limits_of(kept))
    factory = Factory(make, space, input_shape, inputs, batch_axis)
    by_macs = ["macs"] if order in ("fewest macs", "most macs") else []
    costs = recover_costs(factory, list(dict.fromkeys([quantity, *bounds, *by_macs])))
    criterion = as_order(order, space, costs)
    why = _why_none(space, costs, bounds)
    found: Iterator[Found] = iter(())
    if not why:
        search = Search(_problem(space, costs, quantity, bounds, criterion))
        found = search.nearest(wanted, *bounds.get(quantity, (None, None)))
    if where is not None:
        found = (one for one in found if _asked(where, space.widths(one.point)))
    answers, broken = _answers(found, factory, costs, criterion, (quantity, wanted), most, kept)
    note = why or _note(answers, most, where is not None or kept is not None, broken)
    return Fits(quantity, wanted, bounds, criterion.words, answers, factory.traces, note)


def _asked(where: Where, widths: Mapping[str, int]) -> bool:
    try:
        return bool(where(widths))
    except Exception as error:
        raise InvalidInputError(
            f"where= raised {type(error).__name__}: {error}, asked about {dict(widths)}; it takes "
            'one mapping of widths by name: lambda w: w["a"] < w["b"]'
        ) from error


def _checked_target(target: Mapping[str, int]) -> tuple[str, int]:
    if not isinstance(target, Mapping) or len(target) != 1:
        raise InvalidInputError(
            f'target={target!r}: must be one quantity and its value, such as {{"parameters": '
            "12_000}; what others may be goes into limits"
        )
    ((quantity, value),) = target.items()
    check_known_keys("target", [quantity], QUANTITIES)
    if quantity in PEAKS:
        raise InvalidInputError(
            f"target={dict(target)!r}: a peak can be a limit only: "
            f"limits={{{quantity!r}: {value!r}}}, with parameters or macs as the target"
        )
    return quantity, check_integer(f"target: {quantity}", value, minimum=0, maximum=_MOST)


def _checked_limits(limits: Mapping[str, int | tuple[int | None, int | None]]) -> Limits:
    if not isinstance(limits, Mapping):
        raise InvalidInputError(
            f'limits={limits!r}: must be a dict by quantity, such as {{"macs": 4_000_000}}'
        )
    check_known_keys("limits", limits, QUANTITIES)
    return {name: _limit(name, limit) for name, limit in limits.items()}


def _limit(name: str, limit: int | tuple[int | None, int | None]) -> tuple[int | None, int | None]:
    pair = limit if isinstance(limit, tuple | list) else (None, limit)
    if len(pair) != 2 or tuple(pair) == (None, None):
        raise InvalidInputError(
            f"limits: {name}={limit!r}: must be the most, or the least and the most, such as "
            "(None, 4_000_000)"
        )
    low, high = (
        None if end is None else check_integer(f"limits: {name}", end, minimum=0, maximum=_MOST)
        for end in pair
    )
    if low is not None and high is not None and low > high:
        raise InvalidInputError(
            f"limits: {name}={limit!r}: the least must not be more than the most"
        )
    return low, high


def _why_none(space: Space, costs: Mapping[str, Cost], limits: Limits) -> str:
    """Return which limit no network of the space can meet; empty if none is seen to be such."""
    bottom = (0,) * len(space.sizes)
    for name, (low, high) in limits.items():
        if not costs[name].rising:
            continue
        least, most = costs[name](bottom), costs[name](space.top)
        if high is not None and least > high:
            return (
                f"No network has at most {say_amount(name, high)}: the least in this space is "
                f"{least:,}, at {space.say(bottom)}."
            )
        if low is not None and most < low:
            return (
                f"No network has at least {say_amount(name, low)}: the most in this space is "
                f"{most:,}, at {space.say(space.top)}."
            )
    return ""


def _problem(
    space: Space, costs: Mapping[str, Cost], quantity: str, limits: Limits, order: Order
) -> Problem:
    sums, masks = [(order.factors, 0)], list[Factor]()
    for name, (low, high) in limits.items():
        cost = costs[name]
        if name in PEAKS:
            masks += [] if high is None else _exceeding(space, cost, high)
            sums += [] if low is None else [(tuple(_reaching(space, cost, low)), -1)]
        elif name != quantity:
            (part,) = cost.parts
            sums += [] if high is None else [(tuple(part.factors(space)), high)]
            sums += [] if low is None else [(tuple(part.negated().factors(space)), -low)]
    (target,) = costs[quantity].parts
    return Problem(
        space.names,
        space.sizes,
        tuple(target.factors(space)),
        tuple(factors for factors, _ in sums),
        tuple(bound for _, bound in sums[1:]),
        tuple(masks),
    )


def _exceeding(space: Space, cost: Cost, most: int) -> Iterator[Factor]:
    """Yield where a part of a peak exceeds its limit; parts that cannot tie no widths together."""
    for part in cost.parts:
        if part.most(space.sizes) > most:
            table = part.table(space)
            if table.axes:
                yield Factor(table.axes, (table.values > most).astype(np.int64))
            else:  # whatever the first width is
                yield Factor((0,), np.ones(space.sizes[0], dtype=np.int64))


def _reaching(space: Space, cost: Cost, least: int) -> Iterator[Factor]:
    """Yield less by one for each part of a peak that is large enough; one is enough."""
    for part in cost.parts:
        if part.most(space.sizes) >= least:
            table = part.table(space)
            yield Factor(table.axes, -(table.values >= least).astype(np.int64))


def _answers(
    found: Iterator[Found],
    factory: Factory,
    costs: Mapping[str, Cost],
    order: Order,
    target: tuple[str, int],
    count: int | None,
    rules: Constraints | None,
) -> tuple[tuple[Fit, ...], str]:
    """Make and measure the networks that were found, until there are enough.

    Returns:
        The answers, and which rules the last one broke that was found and left out.
    """
    broken = ""
    answers: list[Fit] = []
    built, refused = 0, 0
    for one in found:
        if count is None and answers and one.distance > answers[-1].distance:
            break
        built += 1
        _check_built(built, len(answers))
        graph = _built(factory, costs, one.point)
        if rules is not None:
            report = check(graph, constraints=rules)
            if report.ok is not True and report.judged:
                refused += 1
                broken = ", ".join(one.rule.label for one in (*report.failed, *report.unclear))
                _check_refused(refused, factory.space.say(one.point), report)
                continue
            refused = 0
        widths, totals = factory.space.widths(one.point), factory.totals(one.point)
        quantity, wanted = target
        answers.append(Fit(widths, totals, totals[quantity] - wanted, order.value(one.order)))
        if len(answers) == count:
            break
    return tuple(answers), broken


def _built(factory: Factory, costs: Mapping[str, Cost], point: Point) -> Graph:
    """Return the graph of a network, once it costs what was predicted."""
    graph = factory.build(point)
    wrong = say_wrong(factory, costs, point)
    if wrong is not None:
        raise InvalidInputError(wrong)
    return graph


def _check_built(built: int, accepted: int) -> None:
    if built > MOST_BUILT:
        raise InvalidInputError(
            f"count: gave up after making {MOST_BUILT:,} networks, of which {accepted:,} keep all "
            "rules; ask for fewer, or narrow the ranges or limits"
        )


def _check_refused(refused: int, where: str, report: Report) -> None:
    if refused == MOST_REFUSED:
        raise InvalidInputError(
            f"rules: the best {MOST_REFUSED} networks that meet the limits break one, the last of "
            f"them at {where}: {'; '.join(map(str.strip, report.explain().splitlines()))}. Change "
            "what make gives, leave the rule out, or say by where= which widths may be"
        )


def _note(answers: Sequence[Fit], count: int | None, asked: bool, broken: str) -> str:
    """Return why there are no answers, or no more."""
    rules = "all limits and what was asked of it" if asked else "all limits"
    if not answers:
        last = f" The last that meets the limits breaks {broken}." if broken else ""
        return f"No network of this space meets {rules} at once.{last}"
    if count is not None and len(answers) < count:
        return f"No other network of this space meets {rules}."
    return ""
