"""The checks at the door: what passes, what does not, and what the message says."""

import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from constrained_cnn import errors
from constrained_cnn.errors import (
    CheckpointError,
    ConstrainedCNNError,
    DataError,
    InvalidInputError,
    NonFiniteLossError,
    OutputError,
    check_choice,
    check_integer,
    check_known_keys,
    check_number,
    check_probability,
    closest,
)


@pytest.mark.parametrize(
    ("kind", "builtin"),
    [
        (InvalidInputError, ValueError),
        (NonFiniteLossError, ArithmeticError),
        (CheckpointError, Exception),
        (DataError, Exception),
        (OutputError, Exception),
    ],
)
def test_one_base_and_the_builtin_that_fits(kind: type[Exception], builtin: type) -> None:
    assert issubclass(kind, ConstrainedCNNError)
    assert issubclass(kind, builtin)


def test_every_public_name_is_there() -> None:
    assert sorted(errors.__all__) == errors.__all__
    assert all(hasattr(errors, name) for name in errors.__all__)


def test_non_finite_loss_says_where() -> None:
    error = NonFiniteLossError("the loss is nan", epoch=2, step=7)
    assert (str(error), error.epoch, error.step) == ("the loss is nan", 2, 7)


@given(st.integers(), st.integers(), st.integers())
def test_integer_limits_are_inclusive(value: int, minimum: int, maximum: int) -> None:
    if minimum <= value <= maximum:
        assert check_integer("n", value, minimum=minimum, maximum=maximum) == value
    else:
        with pytest.raises(InvalidInputError) as caught:
            check_integer("n", value, minimum=minimum, maximum=maximum)
        assert str(caught.value) == f"n={value}: must be an integer from {minimum} to {maximum}"


@pytest.mark.parametrize("value", [3, np.int64(3), np.uint8(3), torch.tensor(3), np.array(3)])
def test_integers_of_every_library_become_plain(value: Any) -> None:
    checked = check_integer("n", value, minimum=1)
    assert type(checked) is int
    assert checked == 3


@pytest.mark.parametrize(
    "value",
    [True, np.True_, 1.0, 1.5, math.nan, "1", None, [1], torch.tensor(1.5), np.array([1, 2])],
    ids=repr,
)
def test_what_is_no_integer_is_refused(value: Any) -> None:
    with pytest.raises(InvalidInputError) as caught:
        check_integer("n", value)
    assert str(caught.value) == f"n={value!r}: must be an integer"


@pytest.mark.parametrize(
    ("limits", "rule"),
    [
        ({}, "a finite number"),
        ({"minimum": 0}, "a finite number of at least 0"),
        ({"maximum": 0.5}, "a finite number of at most 0.5"),
        ({"minimum": 0, "maximum": 0.5}, "a finite number from 0 to 0.5"),
    ],
)
def test_number_message_states_the_limits(limits: dict[str, float], rule: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        check_number("lr", math.nan, **limits)
    assert str(caught.value) == f"lr=nan: must be {rule}"


@given(st.floats(), st.floats(allow_nan=False), st.floats(allow_nan=False))
def test_number_limits_are_inclusive_and_finite(value: float, low: float, high: float) -> None:
    if math.isfinite(value) and low <= value <= high:
        assert check_number("x", value, minimum=low, maximum=high) == value
    else:
        with pytest.raises(InvalidInputError):
            check_number("x", value, minimum=low, maximum=high)


@pytest.mark.parametrize(
    ("value", "number"),
    [(1, 1.0), (np.int64(2), 2.0), (np.float32(0.5), 0.5), (Fraction(1, 4), 0.25)],
)
def test_numbers_of_every_kind_become_floats(value: Any, number: float) -> None:
    checked = check_number("x", value)
    assert type(checked) is float
    assert checked == number


@pytest.mark.parametrize(
    "value", [True, "1", None, 1j, [1.0], math.inf, -math.inf, 10**400, torch.tensor(1.0)]
)
def test_what_is_no_finite_number_is_refused(value: Any) -> None:
    with pytest.raises(InvalidInputError, match="must be a finite number"):
        check_number("x", value)


@pytest.mark.parametrize("value", [0, 0.0, 0.069, np.float32(0.5), math.nextafter(1, 0)])
def test_probability_is_below_one(value: Any) -> None:
    assert check_probability("p", value) == value


@pytest.mark.parametrize("value", [1, 1.0, 1.2, -0.1, math.nan, math.inf, False, "0.1", None])
def test_what_is_no_probability_is_refused(value: Any) -> None:
    with pytest.raises(InvalidInputError) as caught:
        check_probability("p", value)
    assert str(caught.value) == f"p={value!r}: must be a probability, 0 <= p < 1"


def test_choice_passes_only_what_is_listed() -> None:
    assert check_choice("kind", "conv", ("linear", "conv")) == "conv"


@pytest.mark.parametrize(
    ("value", "hint"),
    [
        ("cnov", "; did you mean 'conv'?"),
        ("LINEAR", "; did you mean 'linear'?"),
        ("zzz", ""),
        (1, ""),
        (None, ""),
        (["conv"], ""),
    ],
)
def test_bad_choice_lists_the_choices_and_the_nearest(value: Any, hint: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        check_choice("kind", value, ("linear", "conv"))
    assert str(caught.value) == f"kind={value!r}: must be one of 'linear', 'conv'{hint}"


def test_known_keys() -> None:
    check_known_keys("settings", [], {"seed"})
    check_known_keys("settings", ["seed", "epochs"], {"epochs", "seed"})
    with pytest.raises(InvalidInputError) as caught:
        check_known_keys("settings", ["seed", "epoch", "x"], {"seed", "epochs"})
    assert str(caught.value) == (
        "settings: unknown key 'epoch'; did you mean 'epochs'? (known keys: epochs, seed)"
    )
    with pytest.raises(InvalidInputError, match=r"unknown key 1 \(known keys: seed\)"):
        check_known_keys("settings", [1], {"seed"})  # type: ignore[list-item]


@given(st.lists(st.text(min_size=1), min_size=1), st.data())
def test_a_known_word_is_its_own_nearest(words: list[str], data: st.DataObject) -> None:
    word = data.draw(st.sampled_from(words))
    suggestion = closest(word, words)
    assert suggestion in {f"; did you mean {w!r}?" for w in words if w.lower() == word.lower()}


def test_nearest_of_nothing_is_empty() -> None:
    assert closest("epochs", []) == ""
