"""The search among widths, against looking at every choice; no networks here."""

import itertools
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from constrained_cnn.errors import InvalidInputError
from constrained_cnn.sizing import _search, _stages
from constrained_cnn.sizing._polynomial import Factor, Polynomial, interpolate
from constrained_cnn.sizing._search import Search
from constrained_cnn.sizing._space import Space, as_space, exponents
from constrained_cnn.sizing._stages import Problem


@st.composite
def factors(draw: st.DrawFn, sizes: tuple[int, ...], low: int, high: int) -> tuple[Factor, ...]:
    """Shares of a sum: each depends on up to three of the widths."""
    found = []
    for _ in range(draw(st.integers(0, 4))):
        count = draw(st.integers(0, min(3, len(sizes))))
        axes = tuple(sorted(draw(st.permutations(range(len(sizes))))[:count]))
        shape = tuple(sizes[a] for a in axes)
        cells = st.integers(low, high)
        values = draw(st.lists(cells, min_size=math.prod(shape), max_size=math.prod(shape)))
        found.append(Factor(axes, np.array(values, dtype=np.int64).reshape(shape)))
    return tuple(found)


@st.composite
def problems(draw: st.DrawFn) -> Problem:
    """Small spaces with a target, an order, up to two bounded sums, and masks."""
    sizes = tuple(draw(st.lists(st.integers(1, 4), min_size=1, max_size=4)))
    names = tuple("abcd"[: len(sizes)])
    scale = draw(st.sampled_from([1, 6]))
    target = tuple(Factor(f.axes, f.values * scale) for f in draw(factors(sizes, -20, 60)))
    sums = [draw(factors(sizes, -3, 3)) for _ in range(1 + draw(st.integers(0, 2)))]
    bounds = tuple(draw(st.integers(-5, 8)) for _ in sums[1:])
    masks = tuple(
        Factor(f.axes, (f.values > 1).astype(np.int64))
        for f in draw(factors(sizes, 0, 2))
        if f.axes
    )
    return Problem(names, sizes, target, tuple(sums), bounds, masks)


def total(shares: tuple[Factor, ...], point: tuple[int, ...]) -> int:
    return sum(int(f.values[tuple(point[a] for a in f.axes)]) for f in shares)


def everything(problem: Problem, target: int) -> list[tuple[int, int, tuple[int, ...]]]:
    """Return every choice that meets the bounds, sorted, by looking at each."""
    found = []
    for point in itertools.product(*map(range, problem.sizes)):
        first, *others = (total(shares, point) for shares in problem.sums)
        within = all(o <= bound for o, bound in zip(others, problem.bounds, strict=True))
        if within and not total(problem.masks, point):
            found.append((abs(total(problem.target, point) - target), first, point))
    return sorted(found)


@pytest.fixture(params=["exact tables", "coarse tables", "no bits", "neither"])
def _room(request: pytest.FixtureRequest) -> Iterator[None]:
    """Leave the search less and less to know of what is ahead; it must find the same."""
    with pytest.MonkeyPatch.context() as patch:
        if request.param in ("coarse tables", "neither"):
            patch.setattr(_stages, "_MOST_CELLS", 5)
        if request.param in ("no bits", "neither"):
            patch.setattr(_stages, "_MOST_BYTES", 3)
        yield


@pytest.mark.usefixtures("_room")
@settings(max_examples=150)
@given(problem=problems(), target=st.integers(-100, 700), low=st.none() | st.integers(-50, 300))
def test_every_choice_comes_in_order(problem: Problem, target: int, low: int | None) -> None:
    high = None if low is None else low + 150
    expected = [
        one
        for one in everything(problem, target)
        if low is None or low <= total(problem.target, one[2]) <= low + 150
    ]
    found = list(Search(problem).nearest(target, low, high))
    assert [(one.distance, one.order, one.point) for one in found] == expected


def test_far_targets_are_looked_at_ring_by_ring() -> None:
    """The range of values is much larger than what is looked at first."""
    values = np.arange(0, 40_000, 1_000)
    shares = (Factor((0,), values), Factor((1,), values * 41))
    problem = Problem(("a", "b"), (40, 40), shares, ((),), (), ())
    for target in (-7, 0, 777_777, 10**9):
        expected = everything(problem, target)
        found = Search(problem).nearest(target, None, None)
        assert [(one.distance, one.order, one.point) for one in found] == expected


def test_a_search_that_finds_nothing_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_search, "MOST_STEPS", 10)
    shares = tuple(Factor((i,), np.arange(10)) for i in range(4))
    problem = Problem(tuple("abcd"), (10,) * 4, shares, ((),), (), ())
    with pytest.raises(InvalidInputError, match="gave up after 10 steps; narrow the ranges"):
        list(Search(problem).nearest(18, None, None))


def test_too_many_widths_that_depend_on_one_another() -> None:
    shares = (Factor(tuple(range(4)), np.zeros((30,) * 4, dtype=np.int64)),)
    problem = Problem(tuple("abcd"), (30,) * 4, shares, ((),), (), ())
    with pytest.raises(InvalidInputError, match=r"a, b, c, d depend on one another.* 810,000"):
        Search(problem)


@given(st.data())
def test_a_polynomial_is_recovered_from_its_values(data: st.DataObject) -> None:
    sizes = tuple(data.draw(st.lists(st.integers(1, 5), min_size=1, max_size=3)))
    degree = data.draw(st.integers(0, 3))
    powers = exponents(degree, sizes)
    numbers = data.draw(st.lists(st.integers(-9, 9), min_size=len(powers), max_size=len(powers)))

    def value(point: tuple[int, ...]) -> int:
        """The sum of powers, not of binomials as the library has it."""
        return sum(
            number * math.prod(t**a for t, a in zip(point, power, strict=True))
            for number, power in zip(numbers, powers, strict=True)
        )

    found = interpolate({point: value(point) for point in powers})
    space = Space(tuple("abc"[: len(sizes)]), tuple(range(1, 1 + size) for size in sizes))
    parts, whole = tuple(found.factors(space)), found.table(space)
    for point in itertools.product(*map(range, sizes)):
        assert found(point) == value(point)
        assert total(parts, point) == value(point)
        assert total((whole,), point) == value(point)
        assert found.negated()(point) == -value(point)
        assert abs(value(point)) <= found.most(sizes)


def test_the_exponents_are_those_that_the_values_can_tell() -> None:
    assert exponents(2, (1, 2, 9)) == [
        (0, 0, 0), (0, 0, 1), (0, 1, 0), (0, 0, 2), (0, 1, 1),
    ]  # fmt: skip
    assert len(exponents(2, (64,) * 7)) == math.comb(9, 2)


def test_a_cost_too_large_for_the_tables() -> None:
    polynomial = Polynomial({(1,): 2**60})
    with pytest.raises(InvalidInputError, match="a cost reaches"):
        polynomial.factors(Space(("a",), (range(1, 9),)))


@pytest.mark.parametrize(
    ("given_", "said"),
    [
        (range(4, 65), range(4, 65)),
        (range(64, 0, -8), range(8, 65, 8)),
        (5, range(5, 6)),
        (np.int64(5), range(5, 6)),
    ],
)
def test_what_a_width_may_be(given_: Any, said: range) -> None:
    assert list(as_space({"a": given_}).ranges[0]) == list(said)
