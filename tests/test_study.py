"""Sample against textbook values, closed forms, and a binomial written out here."""

import json
import math
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from constrained_cnn.errors import InvalidInputError
from constrained_cnn.study import Interval, Sample

# Student, Biometrika 6, 1908: hours of sleep gained, one drug against the other, ten patients.
SLEEP = (1.2, 2.4, 1.3, 1.3, 0.0, 1.0, 1.8, 0.8, 4.6, 1.4)

# Two-sided 95 % points of Student's t as every table prints them, by degrees of freedom.
T_TABLE = {1: 12.706, 2: 4.303, 4: 2.776, 9: 2.262, 14: 2.145, 29: 2.045}

accuracies = st.lists(st.integers(0, 10_000).map(lambda k: k / 100), min_size=2, max_size=40)


def binomial_tail(k: int, n: int, p: float) -> float:
    """The probability of at least ``k`` successes in ``n``."""
    return sum(math.comb(n, i) * p**i * (1 - p) ** (n - i) for i in range(k, n + 1))


def clopper_pearson(k: int, n: int, confidence: float) -> tuple[float, float]:
    """The exact interval by bisection of the tail, straight from its definition."""
    alpha = (1 - confidence) / 2

    def solve(successes: int, wanted: float) -> float:
        low, high = 0.0, 1.0
        for _ in range(60):
            middle = (low + high) / 2
            if binomial_tail(successes, n, middle) < wanted:
                low = middle
            else:
                high = middle
        return low

    return (0.0 if k == 0 else solve(k, alpha)), (1.0 if k == n else solve(k + 1, 1 - alpha))


def test_students_own_example() -> None:
    sample = Sample(SLEEP, name="sleep gained", unit="h")
    assert sample.mean == pytest.approx(1.58)
    assert sample.sd == pytest.approx(1.229995, abs=1e-6)
    interval = sample.interval()
    assert (interval.low, interval.high) == pytest.approx((0.7001142, 2.4598858), abs=1e-7)


@pytest.mark.parametrize(("df", "quantile"), T_TABLE.items())
def test_interval_uses_the_printed_t_table(df: int, quantile: float) -> None:
    values = np.random.default_rng(df).normal(99.5, 0.05, df + 1)
    half = quantile * values.std(ddof=1) / math.sqrt(df + 1)
    interval = Sample(tuple(values)).interval()
    assert interval.high - interval.low == pytest.approx(2 * half, rel=5e-4)
    assert interval.low + interval.high == pytest.approx(2 * values.mean())


@given(st.floats(0.01, 0.99))
def test_interval_agrees_with_the_closed_forms_of_small_samples(confidence: float) -> None:
    two = Sample((1.0, 3.0)).interval(confidence)
    assert two.high - 2 == pytest.approx(math.tan(math.pi * confidence / 2))
    three = Sample((1.0, 2.0, 3.0)).interval(confidence)
    quantile = confidence * math.sqrt(2 / (1 - confidence**2))
    assert three.high - 2 == pytest.approx(quantile / math.sqrt(3))


@given(accuracies)
def test_mean_and_spread_agree_with_numpy(values: list[float]) -> None:
    sample = Sample(values)
    assert sample.n == len(values)
    assert sample.mean == pytest.approx(np.mean(values), abs=1e-9)
    assert sample.sd == pytest.approx(np.std(values, ddof=1), abs=1e-9)
    assert sample.minimum <= sample.mean <= sample.maximum


@given(accuracies, st.integers(-50, 50), st.sampled_from([0.5, 2.0, 8.0]))
def test_shift_and_scale(values: list[float], shift: int, factor: float) -> None:
    before = Sample(values, unit="")  # in percent the interval would stop at 100
    after = Sample([factor * value + shift for value in values], unit="")
    assert after.mean == pytest.approx(factor * before.mean + shift, abs=1e-6)
    assert after.sd == pytest.approx(factor * before.sd, abs=1e-6)
    low = before.interval().low
    assert after.interval().low == pytest.approx(factor * low + shift, abs=1e-4, rel=1e-6)
    assert after.share(factor * 50 + shift).count == before.share(50).count


def test_an_interval_of_percentages_stops_where_no_mean_can_lie() -> None:
    assert Sample((99.0, 99.9)).interval().high == 100.0
    assert Sample((0.1, 1.0)).interval().low == 0.0
    assert Sample((99.0, 99.9), unit="").interval().high > 100.0
    assert Sample((99.0, 101.0)).interval().high > 101.0  # no share, whatever its unit says


def test_equal_values_have_no_spread() -> None:
    sample = Sample((99.43,) * 7)
    assert (sample.mean, sample.sd) == (99.43, 0.0)
    assert sample.interval() == Interval(99.43, 99.43)


def test_one_run_says_nothing_of_the_spread() -> None:
    sample = Sample((99.39,))
    assert math.isnan(sample.sd)
    assert math.isnan(sample.interval().low)
    assert math.isnan(sample.interval().high)
    assert "needs 2 or more runs" in str(sample)
    assert "nan" not in str(sample) + sample.to_markdown()
    assert sample.share(99.4).high == pytest.approx(0.975)


def test_mendels_peas() -> None:
    # 682 of 925 plants: the example of R's binom.test.
    share = Sample([1.0] * 682 + [0.0] * 243).share(1)
    assert (share.count, share.n) == (682, 925)
    assert (share.low, share.high) == pytest.approx((0.7076683, 0.7654066), abs=1e-7)


@given(st.integers(1, 25), st.data(), st.sampled_from([0.8, 0.95, 0.99]))
def test_share_inverts_the_binomial(n: int, data: st.DataObject, confidence: float) -> None:
    count = data.draw(st.integers(0, n))
    share = Sample([1.0] * count + [0.0] * (n - count)).share(0.5, confidence)
    assert share.count == count
    assert share.fraction == count / n
    low, high = clopper_pearson(count, n, confidence)
    assert (share.low, share.high) == pytest.approx((low, high), abs=1e-9)


def test_the_share_of_none_and_of_all_in_closed_form() -> None:
    none, every = Sample((1.0,) * 20).share(2), Sample((1.0,) * 20).share(1)
    assert (none.low, every.high) == (0.0, 1.0)
    assert none.high == pytest.approx(1 - 0.025 ** (1 / 20))
    assert every.low == pytest.approx(0.025 ** (1 / 20))


@pytest.mark.parametrize("correct", range(9930, 9951))
def test_a_threshold_is_met_whatever_the_rounding(correct: int) -> None:
    ways = (correct / 10_000 * 100, 100 * correct / 10_000, 100 - 100 * (1 - correct / 10_000))
    for accuracy in ways:
        assert Sample((accuracy,)).share(99.4).count == (correct >= 9940)
        assert Sample((accuracy,)).share(correct / 100).count == 1


def test_a_diverged_run_counts() -> None:
    sample = Sample((99.5, 99.5, 9.8))
    assert sample.minimum == 9.8
    assert (sample.share(99.4).count, sample.share(99.4).n) == (2, 3)


@pytest.mark.parametrize("bad", [math.nan, math.inf, "99", None, True])
def test_every_value_is_a_finite_number(bad: object) -> None:
    with pytest.raises(InvalidInputError, match=r"values\[1\]=.*finite number"):
        Sample((99.4, bad))  # type: ignore[arg-type]


def test_no_runs_are_no_sample() -> None:
    with pytest.raises(InvalidInputError, match="at least one run"):
        Sample(())


@pytest.mark.parametrize("seeds", [(0,), (0, 0), (0, 1, 2), (0, 0.5)])
def test_seeds_fit_the_values(seeds: tuple[int, ...]) -> None:
    with pytest.raises(InvalidInputError, match="seeds"):
        Sample((99.4, 99.5), seeds=seeds)


@pytest.mark.parametrize("confidence", [-0.1, 1.0, 95, math.nan, "high"])
def test_a_confidence_is_a_probability(confidence: float) -> None:
    sample = Sample((99.4, 99.5))
    with pytest.raises(InvalidInputError, match="confidence"):
        sample.interval(confidence)
    with pytest.raises(InvalidInputError, match="confidence"):
        sample.share(99.4, confidence)


def test_a_threshold_is_a_number() -> None:
    with pytest.raises(InvalidInputError, match="at_least=nan"):
        Sample((99.4,)).share(math.nan)


def test_any_sequence_becomes_a_tuple() -> None:
    sample = Sample(np.array([99.0, 100.0]), seeds=range(2))  # type: ignore[arg-type]
    assert sample == Sample((99.0, 100.0), seeds=(0, 1))
    assert all(type(value) is float for value in sample.values)


def test_text_names_the_seeds() -> None:
    assert "seeds 0 to 4" in str(Sample((1.0,) * 5, seeds=range(5)))
    assert "seeds 3, 1, 4" in str(Sample((1.0,) * 3, seeds=(3, 1, 4)))
    assert "seed" not in str(Sample((1.0,) * 3))


def test_text_shows_small_spreads_in_full() -> None:
    assert "mean 0.01660, SD 0.00010" in str(Sample((0.0165, 0.0166, 0.0167), "loss", ""))


def test_json_is_strict_and_complete() -> None:
    sample = Sample((99.39, 99.42), seeds=(0, 1))
    content = json.loads(sample.to_json(at_least=99.4), parse_constant=pytest.fail)
    assert content["schema_version"] == 1
    assert (content["values"], content["seeds"]) == ([99.39, 99.42], [0, 1])
    assert content["interval"]["low"] == sample.interval().low
    assert (content["share"]["count"], content["share"]["at_least"]) == (1, 99.4)
    one = json.loads(Sample((1.0,)).to_json(), parse_constant=pytest.fail)
    assert one["sd"] is None
    assert one["interval"] == {"low": None, "high": None, "confidence": 0.95}


def test_tables_escape_the_name() -> None:
    sample = Sample((1.0, 2.0), name="a|<b>[red]")
    assert sample.to_markdown().startswith("| a\\|&lt;b>[red] (%) | |")
    assert "a|&lt;b&gt;" in sample._repr_html_()
    console = Console(width=80)
    with console.capture() as capture:
        console.print(sample)
    assert "a|<b>[red] (%)" in capture.get()
    assert "1.50" in capture.get()


def test_markdown_names_the_threshold() -> None:
    assert "| at or above 99.4 | 1 of 2 (50 %; " in Sample((99.39, 99.42)).to_markdown(
        at_least=99.4
    )


def test_importing_costs_neither_torch_nor_scipy() -> None:
    code = "import sys, constrained_cnn.study as s; s.Sample((1.0, 2.0)).sd; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"torch", "scipy", "numpy", "rich"} & set(done.stdout.split())
