"""Rules on what came out of a run, and on how often it was looked at."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction

from constrained_cnn.constraints._measured import Measure, Measured, say
from constrained_cnn.constraints._records import by_seed, checksum_of, is_number, said_of
from constrained_cnn.constraints._rule import Finding, Rule, check_text, checked_by, optional
from constrained_cnn.constraints._subject import CannotTellError, Subject, listed
from constrained_cnn.constraints._table import register_rule
from constrained_cnn.errors import (
    InvalidInputError,
    check_choice,
    check_integer,
    check_number,
    counted,
)
from constrained_cnn.record import AFTER_LAST_EPOCH, RunRecord


@dataclass(frozen=True, kw_only=True, repr=False)
class _OfAccuracy(Measured):
    """What the rules on accuracy share."""

    of_run = True
    unit = "%"
    whole = False
    data: str | None = field(default=None, metadata=checked_by(optional(check_text)))
    of: str = field(default="test", metadata=checked_by(check_choice, ("test", "validation")))

    def _checked(self, name: str, value: int | float) -> int | float:
        number = check_number(name, value, minimum=0.0, maximum=100.0)
        if 0 < number < 1 and name != "within":
            raise InvalidInputError(
                f"{name}={value!r}: must be in percent, as 99.4 is; a share is not meant"
            )
        return number

    @property
    def _images(self) -> str:
        return f"{self.of} accuracy" + (f" on {self.data}" if self.data else "")

    def _final(self, run: RunRecord) -> Fraction | None:
        """Return the accuracy after the last epoch, from the number of errors where it is known."""
        name = said_of(run, "data", "name", str)
        if self.data not in (None, name):
            raise CannotTellError(f"the run is on {name}, not on {self.data}")
        if run.status != "finished" or run.epochs < 1:
            raise CannotTellError(f"the run is not finished: {counted(run.epochs, 'epoch')} ran")
        errors = run.result.get(f"{self.of}_errors")
        part = run.data.get("test" if self.of == "test" else "held_out")
        samples = part.get("samples") if isinstance(part, Mapping) else None
        accuracy = run.result.get(f"{self.of}_accuracy")
        said = Fraction(repr(round(float(accuracy), 9))) if is_number(accuracy) else None
        if isinstance(errors, int) and isinstance(samples, int) and 0 <= errors <= samples > 0:
            exact = Fraction(100 * (samples - errors), samples)
            if said is not None and abs(said - exact) > Fraction(1, 100):
                raise CannotTellError(
                    f"the record contradicts itself: {errors} errors of {samples:,} and an "
                    f"accuracy of {say(float(said), '%')}"
                )
            return exact
        return said if said is not None and 0 <= said <= 100 else None

    def _curve(self, run: RunRecord) -> list[float | None]:
        """Return the accuracy after each epoch; None where it was not read on these images."""
        final = self._final(run)
        read = (run.data.get("held_out") is not None) == (self.of == "validation")
        found = [row.get("validation_accuracy") if read else None for row in run.history]
        # A mean over images is rounded where it was worked out; 9 digits are more than it has.
        curve = [round(float(value), 9) if is_number(value) else None for value in found]
        if curve and curve[-1] is None and final is not None:
            curve[-1] = float(final)
        return curve

    def _measure(
        self, known: Sequence[Fraction | float], unknown: str, evidence: tuple[str, ...] = ()
    ) -> Measure:
        """Return the numbers that are known; ``unknown`` says why others are not."""
        values = tuple(map(float, known))
        said = ", ".join(map(self.say, values)) or "none read"
        return Measure(values, evidence, said, unknown=unknown)


@register_rule
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

    kind = "accuracy"
    over_seeds: str = field(default="each", metadata=checked_by(check_choice, ("each", "mean")))

    @property
    def title(self) -> str:
        """What it is about."""
        return f"final {self._images}" + (", mean" if self.over_seeds == "mean" else "")

    def measure(self, subject: Subject) -> Measure:
        """Return the accuracy of each run that has one, or the mean of all."""
        found = [self._told(run) for run in subject.runs]
        known = [value for value, why in found if not why]
        unknown = next((why for _, why in found if why), "")
        if len(found) == 1:
            after = f"after epoch {subject.runs[0].epochs}"
            return self._measure(known, unknown, () if unknown else (after,))
        evidence = by_seed(subject, [why or self.say(float(value)) for value, why in found])
        if self.over_seeds == "each":
            return self._measure(known, unknown, evidence)
        if unknown:
            raise CannotTellError(unknown)
        return self._measure([sum(known) / len(known)], "", evidence)

    def _told(self, run: RunRecord) -> tuple[Fraction, str]:
        """Return the accuracy of a run, and why it cannot be told; empty if it can."""
        try:
            final = self._final(run)
        except CannotTellError as error:
            return Fraction(), str(error)
        if final is None:
            return Fraction(), f"the {self.of} images were not read after the last epoch"
        return final, ""


@register_rule
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

    kind = "best_accuracy"

    @property
    def title(self) -> str:
        """What it is about."""
        return f"best {self._images}"

    def measure(self, subject: Subject) -> Measure:
        """Return the best of each run; a lower bound where not every epoch was read."""
        best, said, whole = [], [], True
        for run in subject.runs:
            known = [(value, i) for i, value in enumerate(self._curve(run), 1) if value is not None]
            if not known:
                raise CannotTellError(f"the {self.of} images were not read")
            whole = whole and len(known) == run.epochs
            value, epoch = max(known, key=lambda pair: (pair[0], -pair[1]))
            best.append(value)
            optimism = ", chosen on the test images: optimistic" if self.of == "test" else ""
            rest = optimism if len(known) == run.epochs else ", the others were not read"
            said.append(f"epoch {epoch}{rest}")
        return Measure(tuple(best), by_seed(subject, said), at_least=not whole)


@register_rule
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

    kind = "last_epochs"
    last: int = field(metadata=checked_by(check_integer, minimum=1))

    @property
    def title(self) -> str:
        """What it is about."""
        return f"{self._images}, last {'epoch' if self.last == 1 else f'{self.last} epochs'}"

    def measure(self, subject: Subject) -> Measure:
        """Return the accuracy after each of them that was read."""
        known: list[float] = []
        unknown = ""
        for run in subject.runs:
            try:
                curve = self._curve(run)
            except CannotTellError as error:
                curve, unknown = [], unknown or str(error)
            known += [value for value in curve[-self.last :] if value is not None]
            if len(curve) < self.last:
                unknown = unknown or f"only {counted(len(curve), 'epoch')} ran"
        unread = self.last * len(subject.runs) - len(known)
        if unread and not unknown:
            unknown = f"{unread} of these epochs were not read on the {self.of} images"
        return self._measure(known, unknown)


@register_rule
@dataclass(frozen=True, repr=False)
class Seeds(Measured):
    """How many seeds there is a finished run of, alike in all else.

    Attributes:
        from_zero: Whether they must be 0, 1, 2 and so on, none left out.

    Examples:
        >>> Seeds(at_least=5).required
        'at least 5'
    """

    kind = "seeds"
    of_run = True
    from_zero: bool = False

    @property
    def title(self) -> str:
        """What it is about."""
        return "seeds" + (" from 0, none left out" if self.from_zero else "")

    def find(self, subject: Subject) -> Finding:
        """Return whether there are so many, and none left out."""
        seeds = _finished(subject)
        # No more than there are seeds and names in a list can be of interest.
        first = range(min(max(seeds, default=-1) + 1, len(seeds) + 100))
        missing = sorted(set(first) - set(seeds))
        if self.from_zero and missing:
            evidence = (f"left out: {listed(map(str, missing))}",)
            return self.finding(False, counted(len(seeds), "seed"), evidence=evidence)
        return super().find(subject)

    def measure(self, subject: Subject) -> Measure:
        """Return their number."""
        if len(set(map(_but_seed, subject.runs))) > 1:
            raise CannotTellError("the runs differ in more than their seed")
        seeds = _finished(subject)
        return Measure((len(seeds),), (f"seeds {', '.join(map(str, seeds))}",))


def _finished(subject: Subject) -> list[int]:
    return sorted({run.seed for run in subject.runs if run.status == "finished"})


def _but_seed(run: RunRecord) -> str:
    """Return all that a run depends on but its seed."""
    config = {name: value for name, value in run.config.items() if name != "seed"}
    return json.dumps([run.recipe, run.model, config, run.data], sort_keys=True, default=repr)


@register_rule
@dataclass(frozen=True, repr=False)
class TestUnseen(Rule):
    """The test images were used for nothing but the last figure.

    They are read once at most, after the last epoch, and are not among the training images.

    Examples:
        >>> TestUnseen().required
        'read at most once, after the last epoch'
    """

    __test__ = False  # not a test, whatever its name
    kind = "test_unseen"
    of_run = True
    title = "test images"
    required = "read at most once, after the last epoch"

    def find(self, subject: Subject) -> Finding:
        """Return whether they were read but once, at the end."""
        wrong = [f"seed {run.seed}: {said}" for run in subject.runs for said in _misuses(run)]
        times = [len(run.test_readings) for run in subject.runs]
        said = f"read {counted(max(times), 'time')}"
        unknown = any(
            None in (checksum_of(run, "train"), checksum_of(run, "test")) for run in subject.runs
        )
        if unknown and not wrong:
            raise CannotTellError("the record has no checksums of its training and test images")
        return self.finding(not wrong, said, evidence=tuple(wrong))


def _misuses(run: RunRecord) -> Iterator[str]:
    readings = run.test_readings
    early = [reading for reading in readings if reading.get("epoch") != run.epochs]
    if early:
        epochs = ", ".join(str(reading.get("epoch")) for reading in early[:5])
        yield f"read after epoch {epochs}{' and more' if len(early) > 5 else ''}"
    others = [reading for reading in readings if reading.get("purpose") != AFTER_LAST_EPOCH]
    if others:
        yield f"read for another purpose: {others[0].get('purpose')}"
    if len(readings) - len(early) > 1 and not others:
        yield f"read {len(readings)} times"
    train, test = checksum_of(run, "train"), checksum_of(run, "test")
    if train is not None and train == test:
        yield "the test images are the training images"
