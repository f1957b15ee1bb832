"""The command that says what changed from one network to another."""

import argparse
import json
from dataclasses import replace
from typing import TYPE_CHECKING

from constrained_cnn.cli._inputs import add_input
from constrained_cnn.cli._loading import opened, traced
from constrained_cnn.cli._options import MODEL_HELP, add_formats, add_spec
from constrained_cnn.cli._printing import show, width_of_terminal
from constrained_cnn.cli._rules import named_rules, status_of
from constrained_cnn.cli._status import EXIT_DONE
from constrained_cnn.errors import ConstrainedCNNError

if TYPE_CHECKING:
    from constrained_cnn.budget import Change
    from constrained_cnn.graph import Graph


def add_diff_command(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add ``diff``."""
    parser = commands.add_parser(
        "diff", help="what changed from one network to another", description=MODEL_HELP
    )
    parser.add_argument("old", metavar="OLD")
    parser.add_argument("new", metavar="NEW")
    add_input(parser)
    add_spec(parser, "judge both by rules too; the exit status is that of `check` for NEW")
    add_formats(parser)
    parser.set_defaults(command=_diff)


def _diff(options: argparse.Namespace) -> int:
    from constrained_cnn.budget import diff, measure_budget
    from constrained_cnn.constraints import check
    from constrained_cnn.table import escape_markdown

    rules, graphs = None, []
    for name in (options.old, options.new):
        with opened(name) as model:
            if rules is None and options.spec is not None:
                rules = named_rules(options.spec)
            graphs.append(traced(model, name, options))
    change = diff(*map(measure_budget, graphs))
    fields, notes = _field_changes(*graphs)
    change = replace(change, totals=(*change.totals, *fields), notes=(*change.notes, *notes))
    reports = [] if rules is None else [check(graph, constraints=rules) for graph in graphs]
    if options.json:
        judged = {"reports": [report.to_dict() for report in reports]} if reports else {}
        print(json.dumps({**change.to_dict(), **judged}))
    elif options.markdown:
        print(change.to_markdown(), end="")
        if reports:
            table = reports[1].beside(reports[0])
            print(f"\n**{escape_markdown(table.title)}**\n\n{table.to_markdown()}")
            print(f"```text\n{reports[1].explain()}\n```")
    else:
        show(change.table(), *([change.layer_table()] if change.layers else []))
        if reports:
            said = reports[1].explain(width=width_of_terminal())
            show(reports[1].beside(reports[0]), said)
    return status_of(reports[1]) if reports else EXIT_DONE


def _field_changes(old: "Graph", new: "Graph") -> "tuple[list[Change], tuple[str, ...]]":
    """Return the receptive fields before and after, or why there are none to compare."""
    from constrained_cnn.budget import Change
    from constrained_cnn.receptive_field import measure_receptive_field

    found, notes = [], []
    for graph in (old, new):
        try:
            found.append(measure_receptive_field(graph).axes)
        except ConstrainedCNNError as error:  # the costs stand without it
            notes.append(f"No receptive field of {graph.model}: {error}")
    if notes:
        return [], tuple(dict.fromkeys(notes))
    sizes = [[axis.seen_size for axis in one] for one in found]
    gated = any(axis.is_gated for axes in found for axis in axes)
    name = "receptive field, gates left out" if gated else "receptive field"
    if all(len(set(one)) == 1 for one in sizes):
        return [Change(name, sizes[0][0], sizes[1][0])], ()
    pairs = enumerate(zip(*sizes, strict=True))
    return [Change(f"{name}, axis {i}", a, b) for i, (a, b) in pairs], ()
