"""The commands that say what a network costs and what it sees."""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from constrained_cnn.cli._layers import layer_table
from constrained_cnn.cli._loading import opened
from constrained_cnn.cli._options import check_pictures, count, shape
from constrained_cnn.cli._status import EXIT_CANNOT_RUN, EXIT_DONE, EXIT_FAILED
from constrained_cnn.errors import ConstrainedCNNError, InvalidInputError, TracingError

if TYPE_CHECKING:
    from torch import nn

    from constrained_cnn.budget import Change
    from constrained_cnn.graph import Graph
    from constrained_cnn.proof import FieldProof
    from constrained_cnn.receptive_field import ReceptiveField

_MODEL = """
MODEL is a model of the package (mnist_12k), MODULE:FACTORY (such as torchvision.models:resnet18)
or FILE.py:FACTORY. The factory is a class or function that takes no arguments and gives a
torch.nn.Module, or such a module itself. To find it, its file is run.
"""


def add_network_commands(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add ``summary``, ``budget``, ``rf`` and ``diff``."""
    summary = commands.add_parser(
        "summary", help="the familiar table of layers", description=_MODEL
    )
    _add_model(summary)
    summary.add_argument("--depth", type=count, default=3, help="levels of modules (default 3)")
    summary.set_defaults(command=_summary)

    budget = commands.add_parser(
        "budget", help="what a network costs: parameters, MACs, memory", description=_MODEL
    )
    _add_model(budget)
    _add_formats(budget)
    budget.add_argument("--totals", action="store_true", help="leave the layers out")
    budget.add_argument(
        "--advise", action="store_true", help="what one more channel in each layer would cost"
    )
    _add_allow_unknown(budget)
    budget.add_argument("--plot", metavar="FILE", help="draw parameters and MACs of each layer")
    budget.add_argument("--plot-memory", metavar="FILE", help="draw the memory at each operation")
    budget.set_defaults(command=_budget)

    field = commands.add_parser(
        "rf", help="what the units of a network see: receptive fields", description=_MODEL
    )
    _add_model(field)
    formats = _add_formats(field)
    formats.add_argument("--csv", action="store_true", help="print the course sheet as CSV")
    _add_allow_unknown(field)
    field.add_argument(
        "--image", type=count, default=0, metavar="N", help="input that is the image (default 0)"
    )
    field.add_argument(
        "--axis", type=count, metavar="N", help="axis of the sheet; every one that differs if none"
    )
    field.add_argument("--layer", metavar="PATH", help="a layer; the last that sees places if none")
    field.add_argument(
        "--verify",
        action="store_true",
        help="prove it on the running network; exit status 1 if not",
    )
    field.add_argument("--plot", metavar="FILE", help="draw the field growing over the image")
    field.set_defaults(command=_field)

    diff = commands.add_parser(
        "diff", help="what changed from one network to another", description=_MODEL
    )
    diff.add_argument("old", metavar="OLD")
    diff.add_argument("new", metavar="NEW")
    _add_input(diff)
    _add_formats(diff)
    diff.set_defaults(command=_diff)


def _add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "model", metavar="MODEL", help="mnist_12k, MODULE:FACTORY or FILE.py:FACTORY"
    )
    _add_input(parser)


def _add_input(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--input",
        type=shape,
        action="append",
        required=True,
        metavar="C,H,W",
        help="shape of one sample, channels first: 1,28,28; once for each input, in order",
    )


def _add_allow_unknown(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--allow-unknown",
        action="store_true",
        help="list operations nobody has described, in place of an error; exit status 2",
    )


def _add_formats(parser: argparse.ArgumentParser) -> argparse._MutuallyExclusiveGroup:
    formats = parser.add_mutually_exclusive_group()
    formats.add_argument("--json", action="store_true", help="print JSON")
    formats.add_argument("--markdown", action="store_true", help="print Markdown")
    return formats


def _summary(options: argparse.Namespace) -> int:
    with opened(options.model) as model:
        table = layer_table(model, *options.input, depth=options.depth)
    print(table)
    return EXIT_DONE


def _traced(model: "nn.Module", name: str, options: argparse.Namespace) -> "Graph":
    """Return the graph of a network under the name it was asked for."""
    from constrained_cnn.tracing import trace

    may_be_unknown: bool | None = getattr(options, "allow_unknown", None)
    inputs = options.input
    try:
        graph = trace(model, inputs=inputs, strict=not may_be_unknown)
    except TracingError as error:
        if may_be_unknown is False and _only_unknown(model, inputs):
            raise TracingError(f"{error}; or go on without it: --allow-unknown") from error
        raise
    return replace(graph, model=name)


def _only_unknown(model: "nn.Module", inputs: Sequence[tuple[int, ...]]) -> bool:
    """Whether nothing but operations that nobody has described is in the way."""
    from constrained_cnn.tracing import trace

    try:
        return bool(trace(model, inputs=inputs, strict=False).unknown)
    except ConstrainedCNNError:
        return False


def _budget(options: argparse.Namespace) -> int:
    from constrained_cnn.budget import advise, measure_budget

    check_pictures([options.plot, options.plot_memory])
    with opened(options.model) as model:
        graph = _traced(model, options.model, options)
    budget = measure_budget(graph)
    advice = advise(graph) if options.advise else None
    if options.json:
        content = budget.to_dict(layers=not options.totals)
        print(json.dumps(content if advice is None else {**content, "advice": advice.to_dict()}))
    elif options.markdown:
        print(budget.totals().to_markdown() if options.totals else budget.to_markdown())
        if advice is not None:
            print(advice.to_markdown())
    else:
        _show(*([] if options.totals else [budget.table()]), budget.totals())
        if advice is not None:
            _show(advice.table())
    if options.plot or options.plot_memory:
        from constrained_cnn import plots

        if options.plot:
            _say_written(plots.save_figure(plots.layer_costs(budget), options.plot))
        if options.plot_memory:
            _say_written(plots.save_figure(plots.memory_timeline(budget), options.plot_memory))
    return EXIT_DONE if budget.complete else EXIT_CANNOT_RUN


def _field(options: argparse.Namespace) -> int:
    from constrained_cnn.receptive_field import measure_receptive_field

    _check_field_options(options)
    with opened(options.model) as model:
        graph = _traced(model, options.model, options)
        field = measure_receptive_field(graph, layer=options.layer, image=options.image)
        proof = _proof(model, field, options) if options.verify else None
    if options.json:
        proved = {} if proof is None else {"proved": proof.ok}
        print(json.dumps({**field.to_dict(), **proved}))
    elif options.markdown or options.csv:
        sheet = field.to_markdown if options.markdown else field.to_csv
        print(sheet(options.axis), end="")
    else:
        _show(field.table(), str(field))
    if proof is not None and not options.json:
        print(proof, file=sys.stderr if options.markdown or options.csv else sys.stdout)
    if options.plot:
        from constrained_cnn import plots

        _say_written(plots.save_figure(plots.receptive_field_growth(field), options.plot))
    if graph.unknown:
        print(f"not known: {', '.join(graph.unknown)}", file=sys.stderr)
        return EXIT_CANNOT_RUN
    if proof is None or proof.ok:
        return EXIT_DONE
    return EXIT_CANNOT_RUN if proof.ok is None else EXIT_FAILED


def _check_field_options(options: argparse.Namespace) -> None:
    check_pictures([options.plot])
    if options.axis is not None and not (options.csv or options.markdown):
        raise InvalidInputError(
            f"axis={options.axis}: chooses an axis of the sheet; give --csv or --markdown too"
        )
    if options.verify and len(options.input) > 1:
        raise InvalidInputError(
            f"verify: proves networks of one input, and {len(options.input)} are given; leave "
            "--verify out"
        )


def _proof(
    model: "nn.Module", field: "ReceptiveField", options: argparse.Namespace
) -> "FieldProof":
    from constrained_cnn.proof import verify_receptive_field

    (shape,) = options.input
    return verify_receptive_field(model, shape, layer=options.layer, field=field)


def _diff(options: argparse.Namespace) -> int:
    from constrained_cnn.budget import diff, measure_budget

    graphs = []
    for name in (options.old, options.new):
        with opened(name) as model:
            graphs.append(_traced(model, name, options))
    change = diff(*map(measure_budget, graphs))
    fields, notes = _field_changes(*graphs)
    change = replace(change, totals=(*change.totals, *fields), notes=(*change.notes, *notes))
    if options.json:
        print(json.dumps(change.to_dict()))
    elif options.markdown:
        print(change.to_markdown(), end="")
    else:
        _show(change.table(), *([change.layer_table()] if change.layers else []))
    return EXIT_DONE


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
    sizes = [
        [axis.length if axis.seen is None else axis.seen.size for axis in one] for one in found
    ]
    gated = any(axis.is_gated for axes in found for axis in axes)
    name = "receptive field, gates left out" if gated else "receptive field"
    if all(len(set(one)) == 1 for one in sizes):
        return [Change(name, sizes[0][0], sizes[1][0])], ()
    pairs = enumerate(zip(*sizes, strict=True))
    return [Change(f"{name}, axis {i}", a, b) for i, (a, b) in pairs], ()


def _show(*parts: Any) -> None:
    """Print tables: in colour and fitted to a terminal, whole and plain to a file."""
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False)
    for part in parts:
        if console.is_terminal:
            console.print(Text(part) if isinstance(part, str) else part)
        else:
            print(f"{part}\n" if not isinstance(part, str) else part)


def _say_written(path: Any) -> None:
    print(f"Picture: {path}", file=sys.stderr)
