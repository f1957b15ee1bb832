"""Rules on the record of a run. They read plain data, and know nothing of how it was made."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from constrained_cnn.constraints._measured import Measure, Measured, say
from constrained_cnn.constraints._rule import Finding, Rule
from constrained_cnn.constraints._subject import CannotTellError, Subject
from constrained_cnn.constraints._verdict import Verdict
from constrained_cnn.errors import InvalidInputError, check_choice, check_integer, check_number
from constrained_cnn.record import RunRecord

_AFTER_LAST_EPOCH = "after the last epoch"


def _each(subject: Subject, said: Mapping[int, str] | Sequence[str]) -> tuple[str, ...]:
    """Return what was found of each record, under its seed where there are several."""
    if len(subject.runs) == 1:
        return tuple(said[i] for i in range(1) if said[i])
    return tuple(f"seed {run.seed}: {said[i]}" for i, run in enumerate(subject.runs))


def _check_text(name: str, value: object) -> None:
    if value is not None and (not isinstance(value, str) or not value):
        raise InvalidInputError(f"{name}={value!r}: must be a text")


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
            if len(run.history) != run.epochs:
                raise CannotTellError(
                    f"the record says {run.epochs} epochs and has {len(run.history)} of them"
                )
        said = [f"asked for {run.config.get('epochs')}, {run.status}" for run in subject.runs]
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
        return Measure(tuple(_in(run.config, "config", "batch_size") for run in subject.runs))


def _in(table: Mapping[str, Any], name: str, key: str) -> Any:
    if not isinstance(table, Mapping) or table.get(key) is None:
        raise CannotTellError(f"the record does not say it: {name} has no {key}")
    return table[key]


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
        for name in ("rotation", "shift", "scale"):
            check_number(name, getattr(self, name), minimum=0.0)

    @property
    def title(self) -> str:
        """What it is about."""
        return "augmentation"

    @property
    def required(self) -> str:
        """What it asks for, in words."""
        return _varied({"rotation": self.rotation, "shift": self.shift, "scale": self.scale})

    def find(self, subject: Subject) -> Finding:
        """Return whether images are varied so."""
        found = []
        for run in subject.runs:
            said = _in(run.data, "data", "augmentation")
            found.append({name: said.get(name, 0.0) for name in ("rotation", "shift", "scale")})
        wanted = {"rotation": self.rotation, "shift": self.shift, "scale": self.scale}
        measured = dict.fromkeys(map(_varied, found))
        return self.finding(all(one == wanted for one in found), "; ".join(measured))


def _varied(amounts: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {amount:g}" for name, amount in amounts.items())


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
        _check_text("data", self.data)
        check_number("within", self.within, minimum=0.0)

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
            mean, std = (tuple(_in(run.data, "data", name)) for name in ("mean", "std"))
            near = len(mean) == len(self.mean) and all(
                abs(a - b) <= self.within
                for a, b in zip((*mean, *std), (*self.mean, *self.std), strict=True)
            )
            other = self.data not in (None, run.data.get("name"))
            kept.append(near or other)
            said.append(_normalised(mean, std) + (f" on {run.data.get('name')}" if other else ""))
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
        if not isinstance(self.data, str) or not self.data:
            raise InvalidInputError(f"data={self.data!r}: must be the name of a data set")
        _check_text("train_checksum", self.train_checksum)
        _check_text("test_checksum", self.test_checksum)

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
        wrong = []
        for run in subject.runs:
            found = _in(run.data, "data", "name")
            if found != self.data:
                wrong.append(f"seed {run.seed}: is on {found}")
            for part, wanted in (("train", self.train_checksum), ("test", self.test_checksum)):
                there = _in(run.data, "data", part).get("checksum") if wanted else None
                if wanted != there:
                    wrong.append(f"seed {run.seed}: the checksum of its {part} images is {there}")
        names = ", ".join(dict.fromkeys(str(run.data.get("name")) for run in subject.runs))
        return self.finding(not wrong, names, evidence=tuple(wrong))


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
        _check_text("data", self.data)
        check_choice("of", self.of, ("test", "validation"))

    def _check(self, name: str, value: int | float) -> None:
        check_number(name, value, minimum=0.0, maximum=100.0)

    @property
    def _on(self) -> str:
        return f" on {self.data}" if self.data else ""

    @property
    def _images(self) -> str:
        return f"{self.of} accuracy{self._on}"

    def _check_run(self, run: RunRecord) -> None:
        if self.data not in (None, run.data.get("name")):
            raise CannotTellError(f"the run is on {run.data.get('name')}, not on {self.data}")
        if run.status != "finished":
            raise CannotTellError(f"the run is not finished: {run.epochs} epochs ran")

    def _final(self, run: RunRecord) -> float | None:
        """Return the accuracy after the last epoch, from the number of errors where it is known."""
        errors = run.result.get(f"{self.of}_errors")
        part = run.data.get("test" if self.of == "test" else "held_out")
        samples = part.get("samples") if isinstance(part, Mapping) else None
        if errors is not None and samples:
            return 100 * (samples - errors) / samples
        return run.result.get(f"{self.of}_accuracy")

    def _curve(self, run: RunRecord) -> list[float | None]:
        """Return the accuracy after each epoch; None where it was not read on these images."""
        held_out = run.data.get("held_out") is not None
        read = held_out == (self.of == "validation")
        # A mean over images is rounded where it was worked out; 9 digits are more than it has.
        found = [row.get("validation_accuracy") if read else None for row in run.history]
        curve = [None if value is None else round(value, 9) for value in found]
        if curve and curve[-1] is None:
            curve[-1] = self._final(run)
        return curve


@dataclass(frozen=True, repr=False)
class Accuracy(_OfAccuracy):
    """Accuracy of the weights after the last epoch, in percent.

    Attributes:
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
        """Return the accuracy of each run, or their mean."""
        found = []
        for run in subject.runs:
            self._check_run(run)
            final = self._final(run)
            if final is None:
                raise CannotTellError(f"the {self.of} images were not read after the last epoch")
            found.append(final)
        said = [f"after epoch {run.epochs}" for run in subject.runs]
        if len(found) > 1:
            said = [say(value, "%") for value in found]
        evidence = _each(subject, said)
        if self.over_seeds == "mean":
            return Measure((math.fsum(found) / len(found),), evidence)
        return Measure(tuple(found), evidence)


@dataclass(frozen=True, repr=False)
class BestAccuracy(_OfAccuracy):
    """The best accuracy after any epoch, in percent. Chosen on the test images it is optimistic.

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
        last: How many epochs.

    Examples:
        >>> LastEpochs(3, at_least=99.4).title
        'test accuracy, last 3 epochs'
    """

    kind: ClassVar[str] = "last_epochs"
    last: int

    def __post_init__(self) -> None:
        super().__post_init__()
        check_integer("last", self.last, minimum=1)

    @property
    def title(self) -> str:
        """What it is about."""
        return f"{self._images}, last {self.last} epochs"

    def measure(self, subject: Subject) -> Measure:
        """Return the accuracy after each of them."""
        values = [value for run in subject.runs for value in self._of(run)]
        return Measure(tuple(value for value in values if value is not None))

    def find(self, subject: Subject) -> Finding:
        """Return whether each is within the limits; one that is not is enough to fail."""
        values = [value for run in subject.runs for value in self._of(run)]
        known = tuple(value for value in values if value is not None)
        verdict, margin = self.limits.judge(known)
        said = ", ".join(map(self.say, known)) or "none read"
        if len(known) == len(values) or verdict is Verdict.FAIL:
            excess = self.limits.excess(known, self.say) if verdict is Verdict.FAIL else ""
            return self.finding(verdict, said, margin=margin, excess=excess)
        unread = f"{len(values) - len(known)} of these epochs were not read on the {self.of} images"
        return self.finding(Verdict.CANNOT_TELL, said, evidence=(unread,))

    def _of(self, run: RunRecord) -> list[float | None]:
        self._check_run(run)
        if len(run.history) < self.last:
            raise CannotTellError(f"only {len(run.history)} epochs ran")
        return self._curve(run)[-self.last :]


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
        missing = sorted(set(range(max(seeds, default=-1) + 1)) - set(seeds))
        if self.from_zero and missing:
            evidence = (f"left out: {', '.join(map(str, missing))}",)
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
    config = {name: value for name, value in run.config.items() if name != "seed"}
    return repr((run.recipe, run.model, sorted(config.items()), run.data.get("checksum")))


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
        read = max(len(run.test_readings) for run in subject.runs)
        times = f"read {read} time{'' if read == 1 else 's'}"
        return self.finding(not wrong, times, evidence=tuple(wrong))


def _misuses(run: RunRecord) -> Iterator[str]:
    early = [reading for reading in run.test_readings if reading.get("epoch") != run.epochs]
    if early:
        epochs = ", ".join(str(reading.get("epoch")) for reading in early[:5])
        yield f"read after epoch {epochs}{' and more' if len(early) > 5 else ''}"
    others = [r for r in run.test_readings if r.get("purpose") != _AFTER_LAST_EPOCH]
    if others:
        yield f"read for another purpose: {others[0].get('purpose')}"
    if len(run.test_readings) - len(early) > 1 and not others:
        yield f"read {len(run.test_readings)} times"
    train, test = (_in(run.data, "data", part).get("checksum") for part in ("train", "test"))
    if train == test:
        yield "the test images are the training images"
