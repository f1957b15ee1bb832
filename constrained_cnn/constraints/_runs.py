"""Rules on the record of a run. They read plain data, and know nothing of how it was made."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, ClassVar, TypeGuard, TypeVar

from constrained_cnn.constraints._measured import Measure, Measured, say
from constrained_cnn.constraints._rule import Finding, Rule, check_text
from constrained_cnn.constraints._subject import CannotTellError, Subject, listed
from constrained_cnn.constraints._verdict import Verdict
from constrained_cnn.errors import InvalidInputError, check_choice, check_integer, check_number
from constrained_cnn.record import RunRecord

_AFTER_LAST_EPOCH = "after the last epoch"


def _each(subject: Subject, said: Mapping[int, str] | Sequence[str]) -> tuple[str, ...]:
    """Return what was found of each record, under its seed where there are several."""
    if len(subject.runs) == 1:
        return tuple(said[i] for i in range(1) if said[i])
    return tuple(f"seed {run.seed}: {said[i]}" for i, run in enumerate(subject.runs))


def _check_optional(name: str, value: object) -> None:
    if value is not None:
        check_text(name, value)


_Kind = TypeVar("_Kind")


def _said(run: RunRecord, part: str, key: str, kind: type[_Kind]) -> _Kind:
    """Return what a part of a record says; raise if it does not say it, or in another form."""
    table = getattr(run, part)
    value = table.get(key) if isinstance(table, Mapping) else None
    if not isinstance(value, kind) or isinstance(value, bool):
        raise CannotTellError(f"the record does not say it: {part} has no {key}")
    return value


def _numbers(run: RunRecord, key: str) -> tuple[float, ...]:
    values = run.data.get(key) if isinstance(run.data, Mapping) else None
    if not isinstance(values, list | tuple) or not all(map(_is_number, values)) or not values:
        raise CannotTellError(f"the record does not say it: data has no {key}")
    return tuple(values)


def _is_number(value: object) -> TypeGuard[float]:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and math.isfinite(value)  # type: ignore[arg-type]


def _checksum(run: RunRecord, part: str) -> str | None:
    """Return the checksum of the images of one part of the data, where the record has it."""
    found = run.data.get(part) if isinstance(run.data, Mapping) else None
    checksum = found.get("checksum") if isinstance(found, Mapping) else None
    return checksum if isinstance(checksum, str) else None


def _history(run: RunRecord) -> Sequence[Mapping[str, Any]]:
    """Return the rows of the epochs."""
    rows = run.history
    if not isinstance(rows, list | tuple) or not all(isinstance(row, Mapping) for row in rows):
        raise CannotTellError("the record does not say it: it has no history")
    return rows


@dataclass(frozen=True, repr=False)
class Epochs(Measured):
    """How many epochs really ran to their end.

    Examples:
        >>> Epochs(exactly=19).required
        'exactly 19'
    """

    kind: ClassVar[str] = "epochs"
    of_run: ClassVar[bool] = True

    @property
    def title(self) -> str:
        """What it is about."""
        return "epochs"

    def measure(self, subject: Subject) -> Measure:
        """Return their number in each run."""
        for run in subject.runs:
            if len(_history(run)) != run.epochs:
                raise CannotTellError(
                    f"the record says {run.epochs} epochs and has {len(run.history)} of them"
                )
        asked = [_said(run, "config", "epochs", int) for run in subject.runs]
        said = [f"asked for {n}, {run.status}" for n, run in zip(asked, subject.runs, strict=True)]
        return Measure(tuple(run.epochs for run in subject.runs), _each(subject, said))


@dataclass(frozen=True, repr=False)
class BatchSize(Measured):
    """How many images one step of training takes.

    Examples:
        >>> BatchSize(exactly=128).required
        'exactly 128'
    """

    kind: ClassVar[str] = "batch_size"
    of_run: ClassVar[bool] = True
    lowest: ClassVar[int | None] = 1

    @property
    def title(self) -> str:
        """What it is about."""
        return "batch size"

    def measure(self, subject: Subject) -> Measure:
        """Return the size in each run."""
        return Measure(tuple(_said(run, "config", "batch_size", int) for run in subject.runs))


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

    kind: ClassVar[str] = "augmentation"
    of_run: ClassVar[bool] = True
    rotation: float = 0.0
    shift: float = 0.0
    scale: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in _VARIED:
            number = check_number(name, getattr(self, name), minimum=0.0)
            object.__setattr__(self, name, number)

    @property
    def title(self) -> str:
        """What it is about."""
        return "augmentation"

    @property
    def required(self) -> str:
        """What it asks for, in words."""
        return _varied({name: getattr(self, name) for name in _VARIED})

    def find(self, subject: Subject) -> Finding:
        """Return whether images are varied so."""
        wanted = {name: getattr(self, name) for name in _VARIED}
        found = [_augmentation(run) for run in subject.runs]
        measured = "; ".join(dict.fromkeys(map(_varied, found)))
        return self.finding(all(one == wanted for one in found), measured)


_VARIED = ("rotation", "shift", "scale")
_HOW = ("interpolation", "fill")


def _augmentation(run: RunRecord) -> dict[str, Any]:
    """Return what images are varied by; amounts of 0 that no rule speaks of left out."""
    if isinstance(run.data, Mapping) and "augmentation" in run.data:
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
        f"{name} {amount:g}" if _is_number(amount) else f"{name} {amount!r}"
        for name, amount in amounts.items()
    )


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

    kind: ClassVar[str] = "normalisation"
    of_run: ClassVar[bool] = True
    mean: Sequence[float]
    std: Sequence[float]
    data: str | None = None
    within: float = 5e-5

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("mean", "std"):
            values = getattr(self, name)
            if not isinstance(values, list | tuple) or not values:
                raise InvalidInputError(f"{name}={values!r}: must be a list, one number a channel")
            values = tuple(check_number(name, value) for value in values)
            object.__setattr__(self, name, values)
        if len(self.mean) != len(self.std):
            raise InvalidInputError(f"mean={self.mean}, std={self.std}: must be of equal length")
        _check_optional("data", self.data)
        object.__setattr__(self, "within", check_number("within", self.within, minimum=0.0))

    @property
    def title(self) -> str:
        """What it is about."""
        return "normalisation"

    @property
    def required(self) -> str:
        """What it asks for, in words."""
        rest = f" on {self.data}, other data its own" if self.data else ""
        return _normalised(self.mean, self.std) + rest

    def find(self, subject: Subject) -> Finding:
        """Return whether inputs are normalised so."""
        kept, said = [], []
        for run in subject.runs:
            mean, std = _numbers(run, "mean"), _numbers(run, "std")
            other = self.data is not None and _said(run, "data", "name", str) != self.data
            fits = len(mean) == len(std) == len(self.mean)
            off = [abs(a - b) for a, b in zip((*mean, *std), (*self.mean, *self.std), strict=False)]
            kept.append(other or (fits and max(off) <= self.within))
            said.append(_normalised(mean, std) + (f" on {run.data['name']}" if other else ""))
        return self.finding(all(kept), "; ".join(dict.fromkeys(said)))


def _normalised(mean: Sequence[float], std: Sequence[float]) -> str:
    means, deviations = (", ".join(f"{value:.4g}" for value in values) for values in (mean, std))
    return f"mean {means}, std {deviations}"


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

    kind: ClassVar[str] = "data_set"
    of_run: ClassVar[bool] = True
    data: str
    train_checksum: str | None = None
    test_checksum: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_text("data", self.data)
        _check_optional("train_checksum", self.train_checksum)
        _check_optional("test_checksum", self.test_checksum)

    @property
    def title(self) -> str:
        """What it is about."""
        return "data set"

    @property
    def required(self) -> str:
        """What it asks for, in words."""
        sums = {"training": self.train_checksum, "test": self.test_checksum}
        return ", ".join([self.data, *(f"{k} {v[:12]}..." for k, v in sums.items() if v)])

    def find(self, subject: Subject) -> Finding:
        """Return whether a run is of that data."""
        wrong, names = [], []
        for run in subject.runs:
            names.append(_said(run, "data", "name", str))
            if names[-1] != self.data:
                wrong.append(f"seed {run.seed}: is on {names[-1]}")
            for part, wanted in (("train", self.train_checksum), ("test", self.test_checksum)):
                there = _checksum(run, part)
                if wanted is not None and there is None:
                    raise CannotTellError(f"the record has no checksum of its {part} images")
                if wanted not in (None, there):
                    wrong.append(f"seed {run.seed}: the checksum of its {part} images is {there}")
        return self.finding(not wrong, ", ".join(dict.fromkeys(names)), evidence=tuple(wrong))


@dataclass(frozen=True, kw_only=True, repr=False)
class _OfAccuracy(Measured):
    """What the rules on accuracy share.

    Attributes:
        data: Name of the data set that is meant; on any other it cannot be told. None for any.
        of: ``"test"`` or ``"validation"``: which images.
    """

    of_run: ClassVar[bool] = True
    unit: ClassVar[str] = "%"
    whole: ClassVar[bool] = False
    data: str | None = None
    of: str = "test"

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_optional("data", self.data)
        check_choice("of", self.of, ("test", "validation"))

    def _checked(self, name: str, value: int | float) -> int | float:
        number = check_number(name, value, minimum=0.0, maximum=100.0)
        if 0 < number < 1 and name != "within":
            raise InvalidInputError(
                f"{name}={value!r}: must be in percent, as 99.4 is; a share is not meant"
            )
        return number

    @property
    def _on(self) -> str:
        return f" on {self.data}" if self.data else ""

    @property
    def _images(self) -> str:
        return f"{self.of} accuracy{self._on}"

    def _check_run(self, run: RunRecord) -> None:
        name = _said(run, "data", "name", str)
        if self.data not in (None, name):
            raise CannotTellError(f"the run is on {name}, not on {self.data}")
        if run.status != "finished" or run.epochs < 1:
            raise CannotTellError(f"the run is not finished: {run.epochs} epochs ran")

    def _final(self, run: RunRecord) -> Fraction | None:
        """Return the accuracy after the last epoch, from the number of errors where it is known."""
        result = run.result if isinstance(run.result, Mapping) else {}
        errors = result.get(f"{self.of}_errors")
        part = run.data.get("test" if self.of == "test" else "held_out")
        samples = part.get("samples") if isinstance(part, Mapping) else None
        accuracy = result.get(f"{self.of}_accuracy")
        said = Fraction(repr(round(accuracy, 9))) if _is_number(accuracy) else None
        if isinstance(errors, int) and isinstance(samples, int) and 0 <= errors <= samples > 0:
            counted = Fraction(100 * (samples - errors), samples)
            if said is not None and abs(said - counted) > Fraction(1, 100):
                raise CannotTellError(
                    f"the record contradicts itself: {errors} errors of {samples:,} and an "
                    f"accuracy of {say(float(said), '%')}"
                )
            return counted
        return said if said is not None and 0 <= said <= 100 else None

    def _curve(self, run: RunRecord) -> list[float | None]:
        """Return the accuracy after each epoch; None where it was not read on these images."""
        held_out = run.data.get("held_out") is not None
        read = held_out == (self.of == "validation")
        found = [row.get("validation_accuracy") if read else None for row in _history(run)]
        # A mean over images is rounded where it was worked out; 9 digits are more than it has.
        curve = [round(value, 9) if _is_number(value) else None for value in found]
        final = self._final(run)
        if curve and curve[-1] is None and final is not None:
            curve[-1] = float(final)
        return curve

    def _judged(
        self, values: Sequence[float | None], evidence: tuple[str, ...], unknown: str
    ) -> Finding:
        """Return fail if a known value breaks the limits, cannot tell if one is not known."""
        known = tuple(value for value in values if value is not None)
        verdict, margin = self.limits.judge(known)
        said = ", ".join(map(self.say, known)) or "none read"
        if verdict is Verdict.FAIL:
            excess = self.limits.excess(known, self.say)
            return self.finding(verdict, said, margin=margin, excess=excess, evidence=evidence)
        if len(known) < len(values):
            return self.finding(Verdict.CANNOT_TELL, said, evidence=(*evidence, unknown))
        return self.finding(verdict, said, margin=margin, evidence=evidence)


@dataclass(frozen=True, repr=False)
class Accuracy(_OfAccuracy):
    """Accuracy of the weights after the last epoch, in percent.

    Attributes:
        data: Name of the data set that is meant; on any other it cannot be told. None for any.
        of: ``"test"`` or ``"validation"``: the images it is the accuracy on.
        over_seeds: ``"each"``: every run's own; ``"mean"``: their mean.

    Examples:
        >>> Accuracy(at_least=99.4, data="mnist").required
        'at least 99.4 %'
    """

    kind: ClassVar[str] = "accuracy"
    over_seeds: str = "each"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("over_seeds", self.over_seeds, ("each", "mean"))

    @property
    def title(self) -> str:
        """What it is about."""
        return f"final {self._images}" + (", mean" if self.over_seeds == "mean" else "")

    def measure(self, subject: Subject) -> Measure:
        """Return the accuracy of each run that has one, or the mean of all."""
        found = [value for value, _ in self._each_run(subject) if value is not None]
        return Measure(tuple(float(value) for value in found))

    def find(self, subject: Subject) -> Finding:
        """Return whether each is within the limits, or their mean; one that is not is enough."""
        found = self._each_run(subject)
        unknown = next((why for value, why in found if value is None), "")
        values = [value for value, _ in found]
        said = [
            f"after epoch {run.epochs}" if len(found) == 1 else why or say(float(value or 0), "%")
            for run, (value, why) in zip(subject.runs, found, strict=True)
        ]
        evidence = () if unknown and len(found) == 1 else _each(subject, said)
        if self.over_seeds == "each" or len(values) == 1:
            every = [None if value is None else float(value) for value in values]
            return self._judged(every, evidence, unknown)
        if unknown:
            raise CannotTellError(unknown)
        mean = sum(value for value in values if value is not None) / len(values)
        return self._judged([float(mean)], evidence, "")

    def _each_run(self, subject: Subject) -> list[tuple[Fraction | None, str]]:
        """Return the accuracy of each run, or why it cannot be told."""
        found: list[tuple[Fraction | None, str]] = []
        for run in subject.runs:
            try:
                self._check_run(run)
                final = self._final(run)
                unread = f"the {self.of} images were not read after the last epoch"
                found.append((final, unread if final is None else ""))
            except CannotTellError as error:
                found.append((None, str(error)))
        return found


@dataclass(frozen=True, repr=False)
class BestAccuracy(_OfAccuracy):
    """The best accuracy after any epoch, in percent. Chosen on the test images it is optimistic.

    Attributes:
        data: Name of the data set that is meant; on any other it cannot be told. None for any.
        of: ``"test"`` or ``"validation"``: the images it is the accuracy on.

    Examples:
        >>> BestAccuracy(at_least=99.4).title
        'best test accuracy'
    """

    kind: ClassVar[str] = "best_accuracy"

    @property
    def title(self) -> str:
        """What it is about."""
        return f"best {self._images}"

    def measure(self, subject: Subject) -> Measure:
        """Return the best of each run; a lower bound where not every epoch was read."""
        best, said, whole = [], [], True
        for run in subject.runs:
            self._check_run(run)
            known = [(value, i) for i, value in enumerate(self._curve(run), 1) if value is not None]
            if not known:
                raise CannotTellError(f"the {self.of} images were not read")
            whole = whole and len(known) == run.epochs
            value, epoch = max(known, key=lambda pair: (pair[0], -pair[1]))
            best.append(value)
            optimism = ", chosen on the test images: optimistic" if self.of == "test" else ""
            rest = optimism if len(known) == run.epochs else ", the others were not read"
            said.append(f"epoch {epoch}{rest}")
        return Measure(tuple(best), _each(subject, said), at_least=not whole)


@dataclass(frozen=True, repr=False)
class LastEpochs(_OfAccuracy):
    """Accuracy after each of the last epochs, in percent: reached to stay, not once.

    Attributes:
        data: Name of the data set that is meant; on any other it cannot be told. None for any.
        of: ``"test"`` or ``"validation"``: the images it is the accuracy on.
        last: How many epochs.

    Examples:
        >>> LastEpochs(3, at_least=99.4).title
        'test accuracy, last 3 epochs'
    """

    kind: ClassVar[str] = "last_epochs"
    last: int

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "last", check_integer("last", self.last, minimum=1))

    @property
    def title(self) -> str:
        """What it is about."""
        return f"{self._images}, last {'epoch' if self.last == 1 else f'{self.last} epochs'}"

    def measure(self, subject: Subject) -> Measure:
        """Return the accuracy after each of them that was read."""
        values, _ = self._all(subject)
        return Measure(tuple(value for value in values if value is not None))

    def find(self, subject: Subject) -> Finding:
        """Return whether each is within the limits; one that is not is enough to fail."""
        values, why = self._all(subject)
        return self._judged(values, (), why)

    def _all(self, subject: Subject) -> tuple[list[float | None], str]:
        """Return the accuracies of all runs, and why some are not known."""
        values: list[float | None] = []
        unknown = ""
        for run in subject.runs:
            try:
                self._check_run(run)
                curve = self._curve(run)
            except CannotTellError as error:
                curve, unknown = [], unknown or str(error)
            last = curve[-self.last :]
            values += [*last, *[None] * (self.last - len(last))]
            if len(curve) < self.last:
                unknown = unknown or f"only {len(curve)} epochs ran"
        unread = sum(value is None for value in values)
        return values, unknown or f"{unread} of these epochs were not read on the {self.of} images"


@dataclass(frozen=True, repr=False)
class Seeds(Measured):
    """How many seeds there is a finished run of, alike in all else.

    Attributes:
        from_zero: Whether they must be 0, 1, 2 and so on, none left out.

    Examples:
        >>> Seeds(at_least=5).required
        'at least 5'
    """

    kind: ClassVar[str] = "seeds"
    of_run: ClassVar[bool] = True
    from_zero: bool = False

    @property
    def title(self) -> str:
        """What it is about."""
        return "seeds" + (" from 0, none left out" if self.from_zero else "")

    def find(self, subject: Subject) -> Finding:
        """Return whether there are so many, and none left out."""
        seeds = sorted({run.seed for run in subject.runs if run.status == "finished"})
        # No more than there are seeds and names in a list can be of interest.
        first = range(min(max(seeds, default=-1) + 1, len(seeds) + 100))
        missing = sorted(set(first) - set(seeds))
        if self.from_zero and missing:
            evidence = (f"left out: {listed(map(str, missing))}",)
            return self.finding(False, f"{len(seeds)} seeds", evidence=evidence)
        return super().find(subject)

    def measure(self, subject: Subject) -> Measure:
        """Return their number."""
        alike = {_but_seed(run) for run in subject.runs}
        if len(alike) > 1:
            raise CannotTellError("the runs differ in more than their seed")
        seeds = sorted({run.seed for run in subject.runs if run.status == "finished"})
        return Measure((len(seeds),), (f"seeds {', '.join(map(str, seeds))}",))


def _but_seed(run: RunRecord) -> str:
    """Return all that a run depends on but its seed."""
    config = {name: value for name, value in dict(run.config).items() if name != "seed"}
    return json.dumps([run.recipe, run.model, config, run.data], sort_keys=True, default=repr)


@dataclass(frozen=True, repr=False)
class TestUnseen(Rule):
    """The test images were used for nothing but the last figure.

    They are read once at most, after the last epoch, and are not among the training images.

    Examples:
        >>> TestUnseen().required
        'read at most once, after the last epoch'
    """

    __test__: ClassVar[bool] = False  # not a test, whatever its name
    kind: ClassVar[str] = "test_unseen"
    of_run: ClassVar[bool] = True

    @property
    def title(self) -> str:
        """What it is about."""
        return "test images"

    @property
    def required(self) -> str:
        """What it asks for, in words."""
        return "read at most once, after the last epoch"

    def find(self, subject: Subject) -> Finding:
        """Return whether they were read but once, at the end."""
        wrong = [f"seed {run.seed}: {said}" for run in subject.runs for said in _misuses(run)]
        times = [len(_readings(run)) for run in subject.runs]
        said = f"read {max(times)} time{'' if max(times) == 1 else 's'}"
        unknown = any(
            None in (_checksum(run, "train"), _checksum(run, "test")) for run in subject.runs
        )
        if unknown and not wrong:
            raise CannotTellError("the record has no checksums of its training and test images")
        return self.finding(not wrong, said, evidence=tuple(wrong))


def _readings(run: RunRecord) -> Sequence[Mapping[str, Any]]:
    found = run.test_readings
    if not isinstance(found, list | tuple) or not all(isinstance(one, Mapping) for one in found):
        raise CannotTellError("the record does not say when the test images were read")
    return found


def _misuses(run: RunRecord) -> Iterator[str]:
    readings = _readings(run)
    early = [reading for reading in readings if reading.get("epoch") != run.epochs]
    if early:
        epochs = ", ".join(str(reading.get("epoch")) for reading in early[:5])
        yield f"read after epoch {epochs}{' and more' if len(early) > 5 else ''}"
    others = [reading for reading in readings if reading.get("purpose") != _AFTER_LAST_EPOCH]
    if others:
        yield f"read for another purpose: {others[0].get('purpose')}"
    if len(readings) - len(early) > 1 and not others:
        yield f"read {len(readings)} times"
    train, test = _checksum(run, "train"), _checksum(run, "test")
    if train is not None and train == test:
        yield "the test images are the training images"
