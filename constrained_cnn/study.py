"""What repeated runs say together: :class:`Sample`, results over seeds. Imports no torch."""

import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from html import escape
from typing import TYPE_CHECKING, Any

from constrained_cnn.errors import (
    InvalidInputError,
    check_integer,
    check_number,
    check_probability,
    escape_controls,
)
from constrained_cnn.table import escape_markdown

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["SCHEMA_VERSION", "TOLERANCE", "Interval", "Sample", "Share"]

SCHEMA_VERSION = 1

TOLERANCE = 1e-9
"""How far below a threshold a value may lie and still count as reaching it.

An accuracy is ``correct / total * 100``, which floating point may put a hair below the decimal
number it stands for; one image in a million is ten thousand times this.
"""


@dataclass(frozen=True)
class Interval:
    """A confidence interval, in the unit of what it was made from.

    Attributes:
        low: Lower end; NaN where one value alone says nothing of the spread.
        high: Upper end, likewise.
        confidence: The probability that such an interval covers the true value.
    """

    low: float
    high: float
    confidence: float = 0.95

    def __str__(self) -> str:
        if math.isnan(self.low):
            return "none (needs 2 or more runs)"
        places = _places(self.high - self.low, self.high)
        return f"{self.low:.{places}f} to {self.high:.{places}f}"


@dataclass(frozen=True)
class Share:
    """How many runs reached a threshold, and where the true share may lie.

    Attributes:
        count: The runs that reached it.
        n: All runs.
        low: Lower end of the exact binomial interval of the share, 0 to 1.
        high: Upper end.
        confidence: The probability that such an interval covers the true share, at least.
    """

    count: int
    n: int
    low: float
    high: float
    confidence: float = 0.95

    @property
    def fraction(self) -> float:
        """The share seen, 0 to 1."""
        return self.count / self.n

    def __str__(self) -> str:
        return (
            f"{self.count} of {self.n} ({100 * self.fraction:.0f} %; "
            f"{100 * self.confidence:g} % interval {100 * self.low:.1f} to {100 * self.high:.1f} %)"
        )


@dataclass(frozen=True)
class Sample:
    """One figure of the same configuration, over seeds.

    Every run counts, a diverged one too: its accuracy is a number like any other, and leaving it
    out would flatter the rest. So there is no place for NaN here.

    Attributes:
        values: One finite number a seed, in the order of the seeds.
        name: What the numbers are.
        unit: Their unit; empty if they have none.
        seeds: The seeds, all different; None if they are not known.

    Raises:
        InvalidInputError: If ``values`` is empty or holds anything but finite numbers, or
            ``seeds`` does not fit it.

    Examples:
        >>> print(Sample((99.41, 99.52, 99.46), seeds=(0, 1, 2)))
        accuracy (%), n = 3, seeds 0 to 2
        mean 99.463, SD 0.055, min 99.410, max 99.520
        95 % interval of the mean: 99.33 to 99.60
    """

    values: Sequence[float]
    name: str = "accuracy"
    unit: str = "%"
    seeds: Sequence[int] | None = None

    def __post_init__(self) -> None:
        values = tuple(check_number(f"values[{i}]", v) for i, v in enumerate(self.values))
        if not values:
            raise InvalidInputError("values=(): must hold the result of at least one run")
        object.__setattr__(self, "values", values)
        if self.seeds is None:
            return
        seeds = tuple(check_integer(f"seeds[{i}]", seed) for i, seed in enumerate(self.seeds))
        if len(seeds) != len(values) or len(set(seeds)) != len(seeds):
            raise InvalidInputError(
                f"seeds={seeds}: must be {len(values)} different seeds, one for each value"
            )
        object.__setattr__(self, "seeds", seeds)

    @property
    def n(self) -> int:
        """Number of runs."""
        return len(self.values)

    @property
    def mean(self) -> float:
        """Arithmetic mean."""
        return statistics.mean(self.values)

    @property
    def sd(self) -> float:
        """Standard deviation between runs, with ``n - 1`` in the denominator; NaN for one run."""
        return statistics.stdev(self.values) if self.n > 1 else math.nan

    @property
    def minimum(self) -> float:
        """The smallest value."""
        return min(self.values)

    @property
    def maximum(self) -> float:
        """The largest value."""
        return max(self.values)

    def interval(self, confidence: float = 0.95) -> Interval:
        r"""Return the confidence interval of the mean, by Student's t distribution.

        The ends are :math:`\bar x \pm t_{n-1}\, s / \sqrt n`. It covers the spread between seeds
        alone: that the test set is itself a sample (0.07 points for 10,000 images at 99.5 %)
        comes on top. Of shares in percent the ends stop at 0 and 100, beyond which no mean can lie.

        Args:
            confidence: The probability that such an interval covers the true mean.

        Returns:
            The interval, in the unit of the values; both ends NaN for one run.

        Raises:
            InvalidInputError: If ``confidence`` is not a probability below 1.

        References:
            Student, "The Probable Error of a Mean", Biometrika 6, 1908.
        """
        confidence = check_probability("confidence", confidence)
        if self.n == 1:
            return Interval(math.nan, math.nan, confidence)
        from scipy import stats

        quantile = float(stats.t.ppf((1 + confidence) / 2, df=self.n - 1))
        half = quantile * self.sd / math.sqrt(self.n)
        low, high = self.mean - half, self.mean + half
        if self.unit == "%" and self.minimum >= 0 and self.maximum <= 100:
            low, high = max(low, 0.0), min(high, 100.0)
        return Interval(low, high, confidence)

    def share(self, at_least: float, confidence: float = 0.95) -> Share:
        """Return how many runs reached ``at_least``, with the exact interval of that share.

        A value counts if it is no more than :data:`TOLERANCE` below the threshold, so that
        9,940 of 10,000 is 99.4 % whatever floating point makes of it.

        Args:
            at_least: The threshold, in the unit of the values.
            confidence: The least probability that such an interval covers the true share.

        Returns:
            The count and the Clopper-Pearson interval.

        Raises:
            InvalidInputError: If ``at_least`` is not a finite number, or ``confidence`` not a
                probability below 1.

        Examples:
            >>> print(Sample((99.41, 99.52, 99.36)).share(99.4))
            2 of 3 (67 %; 95 % interval 9.4 to 99.2 %)

        References:
            Clopper, Pearson, "The Use of Confidence or Fiducial Limits Illustrated in the Case
            of the Binomial", Biometrika 26, 1934.
        """
        at_least = check_number("at_least", at_least)
        confidence = check_probability("confidence", confidence)
        from scipy import stats

        count = sum(value >= at_least - TOLERANCE for value in self.values)
        exact = stats.binomtest(count, self.n).proportion_ci(confidence, method="exact")
        return Share(count, self.n, float(exact.low), float(exact.high), confidence)

    def to_dict(self, *, at_least: float | None = None) -> dict[str, Any]:
        """Return the values and what they say as plain data; what one run cannot say is None.

        Args:
            at_least: A threshold whose share is given too, as :meth:`share` counts it.
        """
        content: dict[str, Any] = {
            "schema_version": SCHEMA_VERSION,
            "name": self.name,
            "unit": self.unit,
            "n": self.n,
            "values": list(self.values),
            "seeds": None if self.seeds is None else list(self.seeds),
            "mean": self.mean,
            "sd": _none_for_nan(self.sd),
            "minimum": self.minimum,
            "maximum": self.maximum,
            "interval": {k: _none_for_nan(v) for k, v in asdict(self.interval()).items()},
        }
        if at_least is not None:
            content["share"] = {"at_least": at_least, **asdict(self.share(at_least))}
        return content

    def to_json(self, *, at_least: float | None = None) -> str:
        """Return :meth:`to_dict` as indented JSON."""
        return json.dumps(self.to_dict(at_least=at_least), indent=1, allow_nan=False) + "\n"

    def to_markdown(self, *, at_least: float | None = None) -> str:
        """Return a Markdown table of what the sample says.

        Args:
            at_least: A threshold whose share is given too, as :meth:`share` counts it.

        Examples:
            >>> print(Sample((99.41, 99.52), name="test accuracy").to_markdown())
            | test accuracy (%) | |
            |---|---|
            | n | 2 |
            | mean | 99.465 |
            | SD | 0.078 |
            | minimum | 99.410 |
            | maximum | 99.520 |
            | 95 % interval of the mean | 98.77 to 100.00 |
        """
        rows = [f"| {label} | {text} |" for label, text in self._rows(at_least)]
        heading = escape_markdown(self._heading())
        return "\n".join([f"| {heading} | |", "|---|---|", *rows])

    def __str__(self) -> str:
        numbers = self._numbers()
        seeds = "" if self.seeds is None else f", seeds {_list_seeds(self.seeds)}"
        return (
            f"{self._heading()}, n = {self.n}{seeds}\n"
            f"mean {numbers['mean']}, SD {numbers['SD']}, "
            f"min {numbers['minimum']}, max {numbers['maximum']}\n"
            f"95 % interval of the mean: {self.interval()}"
        )

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><td>{escape(label)}</td><td>{escape(text)}</td></tr>"
            for label, text in self._rows()
        )
        return f"<table><tr><th colspan='2'>{escape(self._heading())}</th></tr>{rows}</table>"

    def __rich__(self) -> "Table":
        from rich.table import Table
        from rich.text import Text

        # Text, not str: a name in square brackets is a name, not markup.
        table = Table(title=Text(self._heading()), show_header=False)
        table.add_column()
        table.add_column(justify="right")
        for label, text in self._rows():
            table.add_row(label, text)
        return table

    def _heading(self) -> str:
        return escape_controls(f"{self.name} ({self.unit})" if self.unit else self.name)

    def _numbers(self) -> dict[str, str]:
        places = _places(self.sd, self.maximum)
        return {
            "mean": f"{self.mean:.{places}f}",
            "SD": "none" if self.n == 1 else f"{self.sd:.{places}f}",
            "minimum": f"{self.minimum:.{places}f}",
            "maximum": f"{self.maximum:.{places}f}",
        }

    def _rows(self, at_least: float | None = None) -> list[tuple[str, str]]:
        rows = [("n", str(self.n)), *self._numbers().items()]
        rows.append(("95 % interval of the mean", str(self.interval())))
        if at_least is not None:
            rows.append((f"at or above {at_least:.10g}", str(self.share(at_least))))
        return rows


def _places(spread: float, size: float) -> int:
    """Decimals that show two digits of the spread; without one, four digits of the size."""
    # By way of the printed form, because 0.00099999 prints as 0.0010.
    if spread > 0:
        return max(2, 1 - int(f"{spread:.1e}".partition("e")[2]))
    return max(2, 3 - int(f"{size:.3e}".partition("e")[2]))


def _none_for_nan(value: float) -> float | None:
    return None if math.isnan(value) else value


def _list_seeds(seeds: Sequence[int]) -> str:
    if len(seeds) > 2 and list(seeds) == list(range(seeds[0], seeds[0] + len(seeds))):
        return f"{seeds[0]} to {seeds[-1]}"
    return ", ".join(map(str, seeds))
