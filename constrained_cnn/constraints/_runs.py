"""Rules on what went into a run. They read its record, and know nothing of how it was made."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from constrained_cnn.constraints._measured import Measure, Measured
from constrained_cnn.constraints._records import (
    by_seed,
    checksum_of,
    is_number,
    numbers_of,
    said_of,
)
from constrained_cnn.constraints._rule import (
    Finding,
    Rule,
    Verdict,
    check_text,
    checked_by,
    optional,
)
from constrained_cnn.constraints._subject import CannotTellError, Subject
from constrained_cnn.constraints._table import register_rule
from constrained_cnn.errors import InvalidInputError, check_number
from constrained_cnn.record import RunRecord


@register_rule
@dataclass(frozen=True, repr=False)
class Epochs(Measured):
    """How many epochs really ran to their end; of a run that may go on, so many at least.

    Examples:
        >>> Epochs(exactly=19).required
        'exactly 19'
    """

    kind = "epochs"
    of_run = True
    title = "epochs"

    def measure(self, subject: Subject) -> Measure:
        """Return their number in each run."""
        for run in subject.runs:
            if len(run.history) != run.epochs:
                raise CannotTellError(
                    f"the record says {run.epochs} epochs and has {len(run.history)} of them"
                )
        evidence = by_seed(subject, list(map(_how_far, subject.runs)))
        done = tuple(run.epochs for run in subject.runs if run.status == "finished")
        if len(done) == len(subject.runs) or self.limits.judge(done)[0] is Verdict.FAIL:
            return Measure(done, evidence)
        every = tuple(run.epochs for run in subject.runs)
        return Measure(every, evidence, at_least=True)


def _how_far(run: RunRecord) -> str:
    asked = said_of(run, "config", "epochs", int)
    if run.status == "finished":
        return f"asked for {asked}, finished"
    return f"asked for {asked}, and the run is not finished: {run.epochs} ran so far"


@register_rule
@dataclass(frozen=True, repr=False)
class BatchSize(Measured):
    """How many images one step of training takes.

    Examples:
        >>> BatchSize(exactly=128).required
        'exactly 128'
    """

    kind = "batch_size"
    of_run = True
    lowest = 1
    title = "batch size"

    def measure(self, subject: Subject) -> Measure:
        """Return the size in each run."""
        return Measure(tuple(said_of(run, "config", "batch_size", int) for run in subject.runs))


_AMOUNT = checked_by(check_number, minimum=0.0)


@register_rule
@dataclass(frozen=True, repr=False)
class Augmentation(Rule):
    """How training images are varied: so, and in no other way.

    Attributes:
        rotation: The largest angle in degrees, to either side.
        shift: The largest shift, as a share of the side.
        scale: The largest change of scale, as a share.

    Examples:
        >>> Augmentation(rotation=5).required
        'rotation 5, shift 0, scale 0'
    """

    kind = "augmentation"
    of_run = True
    title = "augmentation"
    rotation: float = field(default=0.0, metadata=_AMOUNT)
    shift: float = field(default=0.0, metadata=_AMOUNT)
    scale: float = field(default=0.0, metadata=_AMOUNT)

    @property
    def required(self) -> str:
        """What it asks for, in words."""
        return _varied(self._amounts)

    @property
    def _amounts(self) -> dict[str, float]:
        return {name: getattr(self, name) for name in _VARIED}

    def find(self, subject: Subject) -> Finding:
        """Return whether images are varied so."""
        found = [_augmentation(run) for run in subject.runs]
        measured = "; ".join(dict.fromkeys(map(_varied, found)))
        return self.finding(all(amounts == self._amounts for amounts in found), measured)


_VARIED = ("rotation", "shift", "scale")
_HOW = ("interpolation", "fill")


def _augmentation(run: RunRecord) -> dict[str, Any]:
    """Return what images are varied by; amounts of 0 that no rule speaks of left out."""
    if "augmentation" in run.data:
        said = run.data["augmentation"]
        if said is None:  # nothing was varied
            return dict.fromkeys(_VARIED, 0.0)
        if isinstance(said, Mapping):
            others = {name: said[name] for name in said if name not in (*_VARIED, *_HOW)}
            more = {name: value for name, value in others.items() if value}
            return {**{name: said.get(name, 0.0) for name in _VARIED}, **more}
    raise CannotTellError("the record does not say it: data has no augmentation")


def _varied(amounts: Mapping[str, Any]) -> str:
    return ", ".join(
        f"{name} {amount:g}" if is_number(amount) else f"{name} {amount!r}"
        for name, amount in amounts.items()
    )


def _check_numbers(name: str, value: Any) -> tuple[float, ...]:
    if not isinstance(value, list | tuple) or not value:
        raise InvalidInputError(f"{name}={value!r}: must be a list, one number a channel")
    return tuple(check_number(name, number) for number in value)


@register_rule
@dataclass(frozen=True, repr=False)
class Normalisation(Rule):
    """By which mean and deviation inputs are normalised.

    Attributes:
        mean: Mean of each channel, full scale being 1.
        std: Deviation of each channel.
        data: Name of the data set these numbers are of; a run on another is then to be normalised
            by numbers of its own, whichever they are. None for whatever the data.
        within: How far off a number may be, for rounding.

    Examples:
        >>> Normalisation(mean=[0.1307], std=[0.3081], data="mnist").required
        'mean 0.1307, std 0.3081 on mnist, other data its own'
    """

    kind = "normalisation"
    of_run = True
    title = "normalisation"
    mean: Sequence[float] = field(metadata=checked_by(_check_numbers))
    std: Sequence[float] = field(metadata=checked_by(_check_numbers))
    data: str | None = field(default=None, metadata=checked_by(optional(check_text)))
    within: float = field(default=5e-5, metadata=_AMOUNT)

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.mean) != len(self.std):
            raise InvalidInputError(f"mean={self.mean}, std={self.std}: must be of equal length")

    @property
    def required(self) -> str:
        """What it asks for, in words."""
        rest = f" on {self.data}, other data its own" if self.data else ""
        return _normalised(self.mean, self.std) + rest

    def find(self, subject: Subject) -> Finding:
        """Return whether inputs are normalised so."""
        kept, said = [], []
        for run in subject.runs:
            mean, std = numbers_of(run, "mean"), numbers_of(run, "std")
            other = self.data is not None and said_of(run, "data", "name", str) != self.data
            fits = len(mean) == len(std) == len(self.mean)
            off = [abs(a - b) for a, b in zip((*mean, *std), (*self.mean, *self.std), strict=False)]
            kept.append(other or (fits and max(off) <= self.within))
            said.append(_normalised(mean, std) + (f" on {run.data['name']}" if other else ""))
        return self.finding(all(kept), "; ".join(dict.fromkeys(said)))


def _normalised(mean: Sequence[float], std: Sequence[float]) -> str:
    means, deviations = (", ".join(f"{value:.4g}" for value in values) for values in (mean, std))
    return f"mean {means}, std {deviations}"


@register_rule
@dataclass(frozen=True, repr=False)
class DataSet(Rule):
    """Which data a run is of, by name and by the checksum of what was trained and tested on.

    Attributes:
        data: Name of the data set.
        train_checksum: Checksum of the training images; None for any.
        test_checksum: Checksum of the test images; None for any.

    Examples:
        >>> DataSet("mnist").required
        'mnist'
    """

    kind = "data_set"
    of_run = True
    title = "data set"
    data: str = field(metadata=checked_by(check_text))
    train_checksum: str | None = field(default=None, metadata=checked_by(optional(check_text)))
    test_checksum: str | None = field(default=None, metadata=checked_by(optional(check_text)))

    @property
    def required(self) -> str:
        """What it asks for, in words."""
        sums = {"training": self.train_checksum, "test": self.test_checksum}
        return ", ".join([self.data, *(f"{k} {v[:12]}..." for k, v in sums.items() if v)])

    def find(self, subject: Subject) -> Finding:
        """Return whether a run is of that data."""
        wrong, names = [], []
        for run in subject.runs:
            names.append(said_of(run, "data", "name", str))
            if names[-1] != self.data:
                wrong.append(f"seed {run.seed}: is on {names[-1]}")
            for part, wanted in (("train", self.train_checksum), ("test", self.test_checksum)):
                there = checksum_of(run, part)
                if wanted is not None and there is None:
                    raise CannotTellError(f"the record has no checksum of its {part} images")
                if wanted not in (None, there):
                    wrong.append(f"seed {run.seed}: the checksum of its {part} images is {there}")
        return self.finding(not wrong, ", ".join(dict.fromkeys(names)), evidence=tuple(wrong))
