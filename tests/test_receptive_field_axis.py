"""AxisField against brute force: the set of input positions of every unit, one by one."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from constrained_cnn.errors import InvalidInputError
from constrained_cnn.receptive_field import AxisField

Reads = Callable[[int], set[int]]  # the units of the axis before that a unit reads
UNITS = range(-7, 30)


@dataclass(frozen=True)
class Step:
    """One layer twice: as the library's map of fields, and as what a unit reads."""

    name: str
    apply: Callable[[AxisField], AxisField]
    reads: Reads


def window(k: int, s: int, p: int, d: int) -> Step:
    return Step(
        f"window({k}, stride={s}, padding={p}, dilation={d})",
        lambda field: field.window(k, stride=s, padding=p, dilation=d),
        lambda unit: {unit * s - p + tap * d for tap in range(k)},
    )


def transposed(k: int, s: int, p: int, d: int) -> Step:
    return Step(
        f"transposed({k}, stride={s}, padding={p}, dilation={d})",
        lambda field: field.transposed(k, stride=s, padding=p, dilation=d),
        # What the definition scatters: input i adds to the outputs i * s - p + t * d.
        lambda unit: {
            i
            for i in range(-abs(unit) - 20, abs(unit) + 20)
            for tap in range(k)
            if i * s - p + tap * d == unit
        },
    )


def nearest(out: int, into: int) -> Step:
    slope = Fraction(into, out)
    return Step(
        f"nearest({slope})",
        lambda field: field.resampled(slope, lambda unit: [math.floor(unit * slope)]),
        lambda unit: {math.floor(unit * slope)},
    )


def linear(out: int, into: int) -> Step:
    slope = Fraction(into, out)

    def taps(unit: int) -> set[int]:
        position = (unit + Fraction(1, 2)) * slope - Fraction(1, 2)
        return {math.floor(position), math.ceil(position)}

    return Step(
        f"linear({slope})",
        lambda field: field.resampled(slope, lambda unit: sorted(taps(unit))),
        taps,
    )


sizes = st.integers(1, 4)
steps = st.one_of(
    st.builds(window, sizes, st.sampled_from([1, 1, 2, 3, -1, 0]), st.integers(-3, 3), sizes),
    st.builds(transposed, sizes, st.integers(1, 3), st.integers(0, 2), st.integers(1, 2)),
    st.builds(nearest, sizes, sizes),
    st.builds(linear, sizes, sizes),
)
chains = st.lists(steps, max_size=4)


def field_of(chain: list[Step]) -> AxisField:
    field = AxisField()
    for step in chain:
        field = step.apply(field)
    return field


def seen(chain: list[Step], unit: int) -> set[int]:
    """Walk from a unit back to the input."""
    units = {unit}
    for step in reversed(chain):
        units = set().union(*(step.reads(one) for one in units))
    return units


def ends(positions: set[int]) -> tuple[int, int] | None:
    return (min(positions), max(positions)) if positions else None


@given(chain=chains)
def test_every_unit_sees_what_brute_force_finds(chain: list[Step]) -> None:
    field = field_of(chain)
    for unit in UNITS:
        assert field.interval(unit) == ends(seen(chain, unit)), (unit, [s.name for s in chain])


@given(chain=chains)
def test_a_field_repeats_with_its_period_and_is_in_lowest_terms(chain: list[Step]) -> None:
    field = field_of(chain)
    for unit in UNITS:
        span = field.interval(unit)
        moved = field.interval(unit + field.period)
        expected = None if span is None else (span[0] + field.advance, span[1] + field.advance)
        assert moved == expected
    twice = tuple(field.interval(unit) for unit in range(3 * field.period))
    assert AxisField(twice, 3 * field.advance) == field
    assert field.jump == Fraction(field.advance, field.period)
    assert field.size == max(field.sizes)
    assert len(field.sizes) == field.period


@given(one=chains, other=chains)
def test_a_union_sees_what_either_branch_sees(one: list[Step], other: list[Step]) -> None:
    first, second = field_of(one), field_of(other)
    if first.jump != second.jump:
        with pytest.raises(InvalidInputError, match="depends on the position"):
            first.union(second)
        return
    union = first.union(second)
    assert union == second.union(first)
    assert union.union(first) == union
    for unit in UNITS:
        assert union.interval(unit) == ends(seen(one, unit) | seen(other, unit))


@given(chain=chains, padding=st.integers(-5, 5))
def test_padding_moves_the_start_only(chain: list[Step], padding: int) -> None:
    field = field_of(chain)
    plain, padded = field.window(3), field.window(3, padding=padding)
    for unit in UNITS:
        assert padded.interval(unit) == plain.interval(unit - padding)


@given(layers=st.lists(st.tuples(sizes, st.integers(1, 3), sizes), max_size=5))
def test_one_path_has_the_textbook_size(layers: list[tuple[int, int, int]]) -> None:
    """The size is 1 + the sum of d (k - 1) times the strides before."""
    field, size, jump = AxisField(), 1, 1
    for kernel, stride, dilation in layers:
        field = field.window(kernel, stride=stride, dilation=dilation)
        size += dilation * (kernel - 1) * jump
        jump *= stride
    assert field.size == size
    assert field.jump == jump


CASES = {
    "k2 then k4 s2": ([window(2, 1, 0, 1), window(4, 2, 0, 1)], 5, 2),
    "dilation 1, 2, 4": ([window(3, 1, 0, d) for d in (1, 2, 4)], 15, 1),
    "1x1 stride 2 then 3x3": ([window(1, 2, 0, 1), window(3, 1, 0, 1)], 5, 2),
    "stride 2 then transposed k4 s2": ([window(3, 2, 1, 1), transposed(4, 2, 1, 1)], 5, 1),
    "dilated max-pool": ([window(3, 1, 0, 3)], 7, 1),
    "pixel shuffle after a 3x3": ([window(3, 1, 1, 1), nearest(2, 1)], 3, Fraction(1, 2)),
    "60 3x3": ([window(3, 1, 1, 1)] * 60, 121, 1),
    "vgg16": (
        [
            layer
            for convolutions in (2, 2, 3, 3, 3)
            for layer in [window(3, 1, 1, 1)] * convolutions + [window(2, 2, 0, 1)]
        ],
        212,
        32,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_published_and_known_sizes(name: str) -> None:
    chain, size, jump = CASES[name]
    field = field_of(chain)
    assert (field.size, field.jump) == (size, jump)


def test_vgg16_starts_where_it_is_published_to() -> None:
    assert field_of(CASES["vgg16"][0]).start == -90


def test_the_sizes_of_the_source_network() -> None:
    field, sizes_met = AxisField(), []
    for kernel, stride in [(3, 1), (3, 1), (2, 2), (3, 1), (3, 1), (2, 2), (3, 1), (1, 1), (3, 1)]:
        field = field.window(kernel, stride=stride)
        sizes_met.append(field.size)
    assert sizes_met == [3, 5, 6, 10, 14, 16, 24, 24, 32]


def test_a_transposed_convolution_may_leave_units_that_see_nothing() -> None:
    field = AxisField().transposed(1, stride=2)
    assert field.sizes == (1, 0)
    assert field.interval(3) is None
    assert AxisField((None,)).start is None


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: AxisField(()), "at least one phase"),
        (lambda: AxisField(((2, 1),)), "ends before it begins"),
        (lambda: AxisField().window(0), "kernel=0"),
        (lambda: AxisField().window(3, dilation=0), "dilation=0"),
        (lambda: AxisField().transposed(3, stride=0), "stride=0"),
        (lambda: AxisField().resampled(Fraction(0), lambda unit: [unit]), "slope=0"),
    ],
)
def test_what_it_refuses(make: Callable[[], AxisField], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message.replace("(", r"\(")):
        make()
