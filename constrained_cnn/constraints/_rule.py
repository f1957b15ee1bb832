"""What a rule is, and how rules are joined: plain data that can be asked for a verdict."""

import abc
import dataclasses
import enum
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, final

from constrained_cnn.constraints._subject import CannotTellError, Subject
from constrained_cnn.errors import ConstrainedCNNError, InvalidInputError, reason_of, say_value


class Verdict(enum.Enum):
    """What is said of a rule; the logic is Kleene's, with "cannot tell" as the third value.

    Examples:
        >>> ~Verdict.PASS, ~Verdict.CANNOT_TELL
        (<Verdict.FAIL: 'fail'>, <Verdict.CANNOT_TELL: 'cannot tell'>)
    """

    PASS = "pass"
    FAIL = "fail"
    CANNOT_TELL = "cannot tell"

    def __invert__(self) -> "Verdict":
        return {Verdict.PASS: Verdict.FAIL, Verdict.FAIL: Verdict.PASS}.get(self, self)

    @property
    def ok(self) -> bool | None:
        """True for pass, False for fail, None for cannot tell."""
        return {Verdict.PASS: True, Verdict.FAIL: False}.get(self)


def all_of(verdicts: Iterable[Verdict]) -> Verdict:
    """Return pass if all pass, fail if one fails, else cannot tell.

    Examples:
        >>> all_of([Verdict.PASS, Verdict.CANNOT_TELL]), all_of([])
        (<Verdict.CANNOT_TELL: 'cannot tell'>, <Verdict.PASS: 'pass'>)
    """
    found = set(verdicts)
    if Verdict.FAIL in found:
        return Verdict.FAIL
    return Verdict.CANNOT_TELL if Verdict.CANNOT_TELL in found else Verdict.PASS


def any_of(verdicts: Iterable[Verdict]) -> Verdict:
    """Return pass if one passes, fail if all fail, else cannot tell.

    Examples:
        >>> any_of([Verdict.FAIL, Verdict.CANNOT_TELL]), any_of([])
        (<Verdict.CANNOT_TELL: 'cannot tell'>, <Verdict.FAIL: 'fail'>)
    """
    return ~all_of(~verdict for verdict in verdicts)


@dataclass(frozen=True)
class Finding:
    """What was found of one rule.

    Attributes:
        rule: The rule.
        verdict: Pass, fail or cannot tell.
        required: What it asks for, in words.
        measured: What is there, in words.
        margin: By how much it is kept, in the unit of what is measured; negative by how much it is
            broken; None where nothing is counted.
        excess: By how much it is broken, in words: ``"890 over"``; empty where it is not, or
            nothing is counted.
        evidence: What the verdict rests on; names the layers.
        judged: Whether it counts; False for a rule on a run without the record of one.
        parts: What was found of the rules it is made of.
    """

    rule: "Rule"
    verdict: Verdict
    required: str
    measured: str
    margin: float | None = None
    excess: str = ""
    evidence: tuple[str, ...] = ()
    judged: bool = True
    parts: tuple["Finding", ...] = ()

    @property
    def ok(self) -> bool | None:
        """True, False, or None if it cannot be told."""
        return self.verdict.ok

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain data."""
        return {
            "rule": self.rule.to_dict(),
            "label": self.rule.label,
            "verdict": self.verdict.value,
            "judged": self.judged,
            "required": self.required,
            "measured": self.measured,
            "margin": self.margin,
            "excess": self.excess,
            "evidence": list(self.evidence),
            "parts": [part.to_dict() for part in self.parts],
        }


def check_text(name: str, value: object) -> str:
    """Return a value if it is a text that a file can hold.

    Raises:
        InvalidInputError: If it is not.
    """
    # Half a character has no place in a file.
    if not isinstance(value, str) or value != value.encode(errors="ignore").decode():
        raise InvalidInputError(f"{name}={say_value(value)}: must be a text")
    return value


def checked_by(check: Callable[..., Any], *arguments: Any, **options: Any) -> dict[str, Any]:
    """Return the metadata of a field that gets what a check makes of its name and value."""
    return {"check": lambda name, value: check(name, value, *arguments, **options)}


def optional(check: Callable[[str, Any], Any]) -> Callable[[str, Any], Any]:
    """Return a check that lets None pass."""
    return lambda name, value: None if value is None else check(name, value)


@dataclass(frozen=True, kw_only=True, repr=False)
class Rule(abc.ABC):
    """A rule: small, frozen, and judged on what runs.

    A rule of your own is a frozen dataclass that derives from this class (or from :class:`Measured`
    if it puts limits to a number), sets ``kind`` and has ``title``, ``required`` and ``find``.
    Rules join by ``&``, ``|`` and ``~``. A field whose ``metadata`` has a ``"check"`` gets what
    that makes of the name and the value; it may raise.

    Attributes:
        kind: What it is called in a file.
        of_run: Whether it is on the record of a run, and not on the network.
        name: What it is called in a report, such as ``"R1"``; unique within
            :class:`Constraints` if it is given.
    """

    kind: ClassVar[str] = ""
    of_run: ClassVar[bool] = False
    name: str = field(default="", metadata=checked_by(check_text))

    def __post_init__(self) -> None:
        for part in dataclasses.fields(self):
            if "check" in part.metadata:
                value = part.metadata["check"](part.name, getattr(self, part.name))
                object.__setattr__(self, part.name, value)

    @property
    @abc.abstractmethod
    def title(self) -> str:
        """What it is about, in a few words."""

    @property
    @abc.abstractmethod
    def required(self) -> str:
        """What it asks for, in words."""

    @abc.abstractmethod
    def find(self, subject: Subject) -> Finding:
        """Return what is found; may raise :class:`CannotTellError`, or an error of the library."""

    @property
    def label(self) -> str:
        """Name and title, as a report has them."""
        title = self.title
        same = self.name.lower().replace("_", " ") in ("", title.lower().replace("_", " "))
        label = title if same else f"{self.name}: {title}"
        return "".join(sign if sign.isprintable() else " " for sign in label)

    @final
    def judge(self, subject: Subject) -> Finding:
        """Return the verdict and what it rests on. What cannot be measured is no error.

        Args:
            subject: The network, and the records of its runs.
        """
        if self.of_run and not subject.runs:
            said = "no record of a run"
            return Finding(self, Verdict.CANNOT_TELL, self.required, said, judged=False)
        try:
            return self.find(subject)
        except (CannotTellError, ConstrainedCNNError) as error:
            why = reason_of(error)
            return Finding(self, Verdict.CANNOT_TELL, self.required, "cannot tell", evidence=(why,))

    def finding(
        self,
        verdict: Verdict | bool,
        measured: str,
        *,
        margin: float | None = None,
        excess: str = "",
        evidence: tuple[str, ...] = (),
    ) -> Finding:
        """Return a finding of this rule.

        Args:
            verdict: A verdict; True stands for pass and False for fail.
            measured: What is there, in words.
            margin: By how much it is kept.
            excess: By how much it is broken, in words.
            evidence: What it rests on.
        """
        if isinstance(verdict, bool):
            verdict = Verdict.PASS if verdict else Verdict.FAIL
        return Finding(self, verdict, self.required, measured, margin, excess, evidence)

    def to_dict(self) -> dict[str, Any]:
        """Return the rule as plain data, as a file holds it: what is not at its default."""
        return {"rule": self.kind, **{name: _plain(value) for name, value in self._given()}}

    def __repr__(self) -> str:
        said = ", ".join(f"{name}={value!r}" for name, value in self._given())
        return f"{type(self).__name__}({said})"

    def _given(self) -> list[tuple[str, Any]]:
        """Return the fields that are not at their default, and what they are."""
        fields = [(part, getattr(self, part.name)) for part in dataclasses.fields(self)]
        return [(part.name, value) for part, value in fields if value != part.default]

    def __and__(self, other: "Rule") -> "AllOf":
        return AllOf((*_parts(self, AllOf), *_parts(other, AllOf)))

    def __or__(self, other: "Rule") -> "AnyOf":
        return AnyOf((*_parts(self, AnyOf), *_parts(other, AnyOf)))

    def __invert__(self) -> "Not":
        return Not(self)


def _parts(rule: Rule, kind: "type[_Joined]") -> "Sequence[Rule]":
    """Return what a rule is made of, if it is of that kind and has no name of its own."""
    return rule.of if isinstance(rule, kind) and not rule.name else (rule,)


def _plain(value: Any) -> Any:
    if isinstance(value, Rule):
        return value.to_dict()
    return [_plain(item) for item in value] if isinstance(value, tuple | list) else value


def _check_rules(name: str, value: Any) -> tuple[Rule, ...]:
    rules = tuple(value) if isinstance(value, list | tuple) else ()
    if not rules or not all(isinstance(rule, Rule) for rule in rules):
        raise InvalidInputError(f"{name}={value!r}: must be a list of at least one rule")
    return rules


def _check_rule(name: str, value: Any) -> Rule:
    if not isinstance(value, Rule):
        raise InvalidInputError(f"{name}={value!r}: must be a rule")
    return value


@dataclass(frozen=True, repr=False)
class _Joined(Rule):
    """Rules judged together.

    Attributes:
        of: The rules.
    """

    of: Sequence[Rule] = field(metadata=checked_by(_check_rules))

    @staticmethod
    @abc.abstractmethod
    def _join(verdicts: Iterable[Verdict]) -> Verdict:
        """Return the verdict on all of the rules."""

    @property
    def required(self) -> str:
        """What it asks for, in words."""
        return "; ".join(f"{rule.label}: {rule.required}" for rule in self.of)

    def find(self, subject: Subject) -> Finding:
        """Return what the verdicts on the rules come to.

        It counts unless it cannot be told for want of a record alone.
        """
        parts = tuple(rule.judge(subject) for rule in self.of)
        verdict = self._join(part.verdict for part in parts)
        unclear = [part for part in parts if part.verdict is Verdict.CANNOT_TELL]
        return Finding(
            self,
            verdict,
            self.required,
            "; ".join(f"{part.rule.label}: {part.measured}" for part in parts),
            evidence=tuple(
                f"{part.rule.label} ({part.verdict.value}): {said}"
                for part in parts
                for said in part.evidence or (part.measured,)
            ),
            judged=verdict is not Verdict.CANNOT_TELL or any(part.judged for part in unclear),
            parts=parts,
        )


@dataclass(frozen=True, repr=False)
class AllOf(_Joined):
    """Every one of some rules holds.

    Attributes:
        of: The rules.

    Examples:
        >>> from constrained_cnn.constraints import Count, Parameters
        >>> (Parameters(at_most=20_000) & Count("dropout", at_least=1)).required
        'parameters: at most 20,000; dropout: at least 1'
    """

    kind = "all"
    title = "all of"
    _join = staticmethod(all_of)


@dataclass(frozen=True, repr=False)
class AnyOf(_Joined):
    """At least one of some rules holds.

    Attributes:
        of: The rules.

    Examples:
        >>> from constrained_cnn.constraints import Count
        >>> (Count("batch_norm", at_least=1) | Count("group_norm", at_least=1)).title
        'any of'
    """

    kind = "any"
    title = "any of"
    _join = staticmethod(any_of)


@dataclass(frozen=True, repr=False)
class Not(Rule):
    """A rule does not hold.

    Attributes:
        of: The rule.

    Examples:
        >>> from constrained_cnn.constraints import Count
        >>> (~Count("max_pool", at_least=1)).required
        'not: at least 1'
    """

    kind = "not"
    of: Rule = field(metadata=checked_by(_check_rule))

    @property
    def title(self) -> str:
        """What it is about."""
        return self.of.title

    @property
    def required(self) -> str:
        """What it asks for, in words."""
        return f"not: {self.of.required}"

    def find(self, subject: Subject) -> Finding:
        """Return the opposite of what is found of the rule."""
        part = self.of.judge(subject)
        return Finding(
            self,
            ~part.verdict,
            self.required,
            part.measured,
            -part.margin if part.margin else None,  # at 0 no sign would say which side it is on
            evidence=part.evidence,
            judged=part.judged,
            parts=(part,),
        )
