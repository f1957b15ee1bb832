"""The command that judges a network, and its runs, by rules."""

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from constrained_cnn.cli._inputs import network_inputs
from constrained_cnn.cli._loading import opened
from constrained_cnn.cli._options import MODEL_HELP, add_formats, add_model, add_spec
from constrained_cnn.cli._printing import show, width_of_terminal
from constrained_cnn.cli._status import EXIT_CANNOT_RUN, EXIT_DONE, EXIT_FAILED
from constrained_cnn.errors import InvalidInputError

if TYPE_CHECKING:
    from constrained_cnn.constraints import Constraints, Report
    from constrained_cnn.record import RunRecord

_PROJECT = "pyproject.toml"


def add_check_command(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add ``check`` and ``rules``."""
    parser = commands.add_parser(
        "check",
        help="judge a network, and its runs, by rules",
        description=MODEL_HELP,
        epilog="Exit status: 0 every rule is kept, 1 one is broken, 2 it cannot be told, or run.",
    )
    add_model(parser)
    add_spec(parser, f"the rules (default: [tool.constrained-cnn] of {_PROJECT})")
    parser.add_argument(
        "--run",
        action="append",
        type=Path,
        default=[],
        metavar="RECORD",
        help="record of a run, its folder, or a folder of seeds; may be given again",
    )
    parser.add_argument(
        "--require-run",
        action="store_true",
        help="let rules on a run count without --run too: they cannot be told, exit status 2",
    )
    parser.add_argument("--evidence", action="store_true", help="show what every verdict rests on")
    add_formats(parser)
    parser.set_defaults(command=_check)

    listing = commands.add_parser("rules", help="what rules ask for, or which there are")
    listing.add_argument("spec", nargs="?", metavar="RULES", help="a name, or a TOML file")
    listing.add_argument("--json", action="store_true", help="print JSON")
    listing.set_defaults(command=_rules)


def _rules(options: argparse.Namespace) -> int:
    from constrained_cnn.constraints import get_constraints, list_constraints
    from constrained_cnn.table import Table

    if options.spec is not None:
        rules = named_rules(options.spec)
        print(json.dumps(rules.to_dict())) if options.json else show(rules.table())
        return EXIT_DONE
    every = [get_constraints(name) for name in list_constraints()]
    if options.json:
        print(json.dumps([rules.to_dict() for rules in every]))
    else:
        show(Table(("<rules", "<what they ask for"), tuple((one.name, one.about) for one in every)))
    return EXIT_DONE


def _check(options: argparse.Namespace) -> int:
    from constrained_cnn.constraints import check

    records = [record for place in options.run for record in _records(place)]
    with opened(options.model) as model:
        # Within, so that rules which the file of the network registers are known.
        rules = named_rules(options.spec) if options.spec is not None else _rules_of_project()
        report = check(
            model,
            constraints=rules,
            run=records,
            **network_inputs(model, options),
            require_run=options.require_run,
        )
    report = replace(report, model=options.model)
    if options.json:
        print(json.dumps(report.to_dict()))
    elif options.markdown:
        print(report.to_markdown(), end="")
    else:
        width = width_of_terminal()
        show(report.table(evidence=False), report.explain(every=options.evidence, width=width))
    return status_of(report)


def status_of(report: "Report") -> int:
    """Return the exit status that a report stands for."""
    if report.ok is None:
        return EXIT_CANNOT_RUN
    return EXIT_DONE if report.ok else EXIT_FAILED


def named_rules(word: str) -> "Constraints":
    """Return the rules that a word names: a file, or rules that come with the package.

    Raises:
        InvalidInputError: If there are none.
    """
    from constrained_cnn.constraints import as_constraints, load_constraints

    return load_constraints(word) if Path(word).exists() else as_constraints(word)


def _rules_of_project() -> "Constraints":
    from constrained_cnn.constraints import load_constraints

    try:
        return load_constraints(_PROJECT)
    except InvalidInputError as error:
        if Path(_PROJECT).exists() and "has no table" not in str(error):
            raise
        raise InvalidInputError(
            "no rules are named: give --spec mnist-12k or --spec FILE.toml, or put them into "
            f"{_PROJECT} under [tool.constrained-cnn]"
        ) from error


def _records(place: Path) -> "list[RunRecord]":
    """Return the record of a run, or those of all seeds in a folder."""
    from constrained_cnn.record import RunRecord

    if place.is_dir() and not (place / "record.json").exists():
        found = sorted(place.glob("seed-*/record.json"))
        if found:
            return sorted(map(RunRecord.load, found), key=lambda record: record.seed)
    return [RunRecord.load(place)]
