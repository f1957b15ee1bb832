"""What a check gives: a finding for each rule, as a table that can be read and as plain data."""

import html
import json
import textwrap
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from constrained_cnn.constraints._measured import Measured, say
from constrained_cnn.constraints._rule import Finding, Verdict, all_of
from constrained_cnn.errors import ConstraintError, InvalidInputError, escape_controls
from constrained_cnn.table import Table, escape_markdown

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult

SCHEMA = "constrained_cnn.report/1"

_SIGNS = {Verdict.PASS: "✓ pass", Verdict.FAIL: "✗ FAIL", Verdict.CANNOT_TELL: "? cannot tell"}
_COLOURS = {Verdict.PASS: "green", Verdict.FAIL: "red", Verdict.CANNOT_TELL: "yellow"}
_NOT_JUDGED = "- not judged"


@dataclass(frozen=True, repr=False)
class Report:
    """What was found of each rule.

    Attributes:
        model: Name of the network.
        input_shapes: Shape of one sample of each input.
        constraints: Name of the rules.
        findings: What was found, rule by rule.
        runs: What records were judged: seed and recipe of each, in words.
    """

    model: str
    input_shapes: tuple[tuple[int, ...], ...]
    constraints: str
    findings: tuple[Finding, ...]
    runs: tuple[str, ...] = ()

    @property
    def verdict(self) -> Verdict:
        """Pass if every rule that is judged passes, fail if one fails, else cannot tell.

        Where none is judged it cannot be told.
        """
        if not self.judged:
            return Verdict.CANNOT_TELL
        return all_of(finding.verdict for finding in self.judged)

    @property
    def ok(self) -> bool | None:
        """True, False, or None if it cannot be told."""
        return self.verdict.ok

    @property
    def judged(self) -> tuple[Finding, ...]:
        """The findings of the rules that count."""
        return tuple(finding for finding in self.findings if finding.judged)

    @property
    def failed(self) -> tuple[Finding, ...]:
        """The findings of the rules that are broken."""
        return tuple(finding for finding in self.judged if finding.verdict is Verdict.FAIL)

    @property
    def unclear(self) -> tuple[Finding, ...]:
        """The findings of the rules of which it cannot be told."""
        return tuple(finding for finding in self.judged if finding.verdict is Verdict.CANNOT_TELL)

    def raise_if_failed(self) -> None:
        """Raise if a rule is broken, or if of one it cannot be told.

        Raises:
            ConstraintError: With what is broken, and the evidence.
        """
        if not self.ok:
            raise ConstraintError(self.explain(), report=self)

    def explain(self, *, every: bool = False, width: int | None = None) -> str:
        """Return in words what is broken, and of what it cannot be told, with the evidence.

        Args:
            every: Whether to tell of the rules that are kept too.
            width: Columns to fill; None for lines as long as they are.
        """
        kept = [finding for finding in self.judged if finding.ok] if every else []
        lines = [self.summary()]
        for finding in (*self.failed, *self.unclear, *kept):
            sign = _SIGNS[finding.verdict].split()[0]
            excess = f" ({finding.excess})" if finding.excess else ""
            lines.append(
                f"{sign} {finding.rule.label}, required {finding.required}, measured "
                f"{finding.measured}{excess}"
            )
            lines += [f"    {said}" for said in finding.evidence]
        lines = list(map(escape_controls, lines))
        return "\n".join(lines if width is None else [_folded(line, width) for line in lines])

    def summary(self) -> str:
        """Return in one line how many rules are kept."""
        return escape_controls(self._summary)

    @property
    def _summary(self) -> str:
        """The summary with all names as they are."""
        failed, unclear = len(self.failed), len(self.unclear)
        aside = len(self.findings) - len(self.judged)
        parts = [f"{len(self.judged) - failed - unclear} of {len(self.judged)} rules kept"]
        parts += [f"{failed} broken"] if failed else []
        parts += [f"{unclear} cannot be told"] if unclear else []
        parts += [f"{aside} on a run, not judged without its record"] if aside else []
        return f"{self.model}: {', '.join(parts)} ({self._rules})"

    @property
    def _rules(self) -> str:
        return self.constraints if self.constraints == "rules" else f"rules {self.constraints}"

    def table(self, *, evidence: bool = True) -> Table:
        """Return a row for each rule.

        Args:
            evidence: Whether what a verdict rests on is a column.
        """
        columns = {
            "<verdict": map(_sign, self.findings),
            "<rule": (finding.rule.label for finding in self.findings),
            "<required": (finding.required for finding in self.findings),
            "<measured": (finding.measured for finding in self.findings),
            "margin": map(_margin, self.findings),
        }
        if evidence:
            columns["<evidence"] = ("; ".join(finding.evidence) for finding in self.findings)
        shapes = ", ".join(" x ".join(map(str, shape)) for shape in self.input_shapes)
        return Table(
            tuple(columns),
            tuple(zip(*columns.values(), strict=True)),
            title=f"{self.model} on {', '.join([shapes, *self.runs])}: {self._rules}",
            may_go=("margin",),
            colours=tuple(map(_colour, self.findings)),
            coloured="verdict",
        )

    def beside(self, old: "Report") -> Table:
        """Return a row for each rule, with what was found of another network beside it.

        Args:
            old: What was found before, by the same rules.

        Raises:
            InvalidInputError: If the rules were others.
        """
        if [one.rule for one in old.findings] != [one.rule for one in self.findings]:
            raise InvalidInputError(
                f"old: was judged by {old.constraints!r}, and this by {self.constraints!r}; judge "
                "both by the same rules"
            )
        rows = tuple(
            (_sign(was), _sign(new), new.rule.label, new.required, was.measured, new.measured)
            for was, new in zip(old.findings, self.findings, strict=True)
        )
        return Table(
            ("<old", "<new", "<rule", "<required", "<measured, old", "<measured, new"),
            rows,
            title=f"{old.model} -> {self.model}: {self._rules}",
            may_go=("required",),
            colours=tuple(map(_colour, self.findings)),
            coloured="new",
        )

    def __repr__(self) -> str:
        return f"Report({self.summary()})"

    def __str__(self) -> str:
        return f"{self.table(evidence=False)}\n\n{self.explain()}"

    def __rich_console__(self, console: "Console", options: "ConsoleOptions") -> "RenderResult":
        from rich.text import Text

        yield self.table(evidence=False)
        yield Text(self.explain(width=options.max_width))

    def _repr_html_(self) -> str:
        return f"{self.table().to_html()}<p>{html.escape(self.summary())}</p>"

    def to_markdown(self) -> str:
        """Return the table with its evidence in Markdown, as a comment on a change shows it."""
        table = self.table()
        title, summary = map(escape_markdown, (table.title, self.summary()))
        return f"**{title}**\n\n{table.to_markdown()}\n{summary}\n"

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain data, with the version of the schema."""
        return {
            "schema": SCHEMA,
            "model": self.model,
            "input_shapes": [list(shape) for shape in self.input_shapes],
            "constraints": self.constraints,
            "runs": list(self.runs),
            "summary": self._summary,
            "verdict": self.verdict.value,
            "ok": self.ok,
            "findings": [finding.to_dict() for finding in self.findings],
        }

    def to_json(self) -> str:
        """Return everything as JSON."""
        return json.dumps(self.to_dict(), indent=1) + "\n"


def _sign(finding: Finding) -> str:
    return _SIGNS[finding.verdict] if finding.judged else _NOT_JUDGED


def _folded(line: str, width: int) -> str:
    indent = " " * (len(line) - len(line.lstrip()) + 2)
    return textwrap.fill(
        line, width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )


def _colour(finding: Finding) -> str:
    return _COLOURS[finding.verdict] if finding.judged else "dim"


def _margin(finding: Finding) -> str:
    if finding.margin is None:
        return ""
    unit = finding.rule.unit if isinstance(finding.rule, Measured) else ""
    return ("+" if finding.margin > 0 else "") + say(finding.margin, unit)
