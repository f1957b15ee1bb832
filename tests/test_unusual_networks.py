"""Unusual networks whose numbers somebody else worked out, without having read the library."""

import pytest
from independent_networks import Case
from unusual_networks import CASES

from constrained_cnn.budget import measure_budget
from constrained_cnn.errors import TracingError
from constrained_cnn.receptive_field import Axis, measure_receptive_field

# What is refused, and why.
REFUSED = {
    "spectrum fft": "'fft_rfft2'.*register_op",
}
TRACED = [case for case in CASES if case.name not in REFUSED]


def named(cases: list[Case]) -> list[object]:
    return [pytest.param(case, id=case.name) for case in cases]


@pytest.mark.parametrize("case", named([case for case in CASES if case.name in REFUSED]))
def test_what_is_refused_says_why(case: Case) -> None:
    with pytest.raises(TracingError, match=REFUSED[case.name]):
        measure_budget(case.make(), case.input_shape)


@pytest.mark.parametrize("case", named(TRACED))
def test_costs(case: Case) -> None:
    budget = measure_budget(case.make(), case.input_shape)
    numbers = budget.parameters
    assert (numbers.total, numbers.trainable) == (case.parameters, case.trainable)
    # A NaN in a weight, by which unused ones were found, does not pass an argmax; we follow it.
    assert numbers.unused == (0 if case.name == "hard gate" else case.unused)
    assert budget.macs == case.macs
    assert not budget.memory.problem


def check(axis: Axis, wanted: tuple[tuple[int, ...], object, int] | None) -> None:
    """Compare what is said of units away from the border."""
    if wanted is None:
        assert axis.is_global
        return
    sizes, jump, start = wanted
    if axis.is_shift_invariant:
        assert axis.jump == jump
        assert axis.start == start
        assert [axis.sizes[i % len(axis.sizes)] for i in range(24)] == [
            sizes[i % len(sizes)] for i in range(24)
        ]
        return
    found = [axis.interval(unit) for unit in range(2, (axis.units or 0) - 2)]
    assert {span[1] - span[0] + 1 for span in found if span} <= {*sizes}


def test_where_places_depend_on_the_numbers_no_field_is_said() -> None:
    case = next(case for case in CASES if case.name == "seg unpool")
    with pytest.raises(TracingError, match="max_unpool2d reads along the image in a way that"):
        measure_receptive_field(case.make(), case.input_shape)


@pytest.mark.parametrize("case", named([case for case in TRACED if case.name != "seg unpool"]))
def test_fields(case: Case) -> None:
    field = measure_receptive_field(case.make(), case.input_shape, layer=case.layer)
    for axis, wanted in zip(field.axes, case.field, strict=True):
        check(axis, wanted)
