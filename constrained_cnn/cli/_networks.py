"""The commands that say what a network costs and what it sees."""

import argparse
import json
import sys
from typing import TYPE_CHECKING, Any

from constrained_cnn.cli._inputs import sample_tensors
from constrained_cnn.cli._layers import layer_table
from constrained_cnn.cli._loading import opened, traced
from constrained_cnn.cli._options import (
    MODEL_HELP,
    add_formats,
    add_model,
    check_pictures,
    count,
)
from constrained_cnn.cli._printing import show
from constrained_cnn.cli._status import EXIT_CANNOT_RUN, EXIT_DONE, EXIT_FAILED
from constrained_cnn.errors import InvalidInputError, escape_controls

if TYPE_CHECKING:
    from torch import nn

    from constrained_cnn.proof import FieldProof
    from constrained_cnn.receptive_field import ReceptiveField


def add_network_commands(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add ``summary``, ``budget`` and ``rf``."""
    summary = commands.add_parser(
        "summary", help="the familiar table of layers", description=MODEL_HELP
    )
    add_model(summary)
    summary.add_argument("--depth", type=count, default=3, help="levels of modules (default 3)")
    summary.set_defaults(command=_summary)

    budget = commands.add_parser(
        "budget", help="what a network costs: parameters, MACs, memory", description=MODEL_HELP
    )
    add_model(budget)
    add_formats(budget)
    budget.add_argument("--totals", action="store_true", help="leave the layers out")
    budget.add_argument(
        "--advise", action="store_true", help="what one more channel in each layer would cost"
    )
    _add_allow_unknown(budget)
    budget.add_argument("--plot", metavar="FILE", help="draw parameters and MACs of each layer")
    budget.add_argument("--plot-memory", metavar="FILE", help="draw the memory at each operation")
    budget.set_defaults(command=_budget)

    field = commands.add_parser(
        "rf", help="what the units of a network see: receptive fields", description=MODEL_HELP
    )
    add_model(field)
    formats = add_formats(field)
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


def _add_allow_unknown(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--allow-unknown",
        action="store_true",
        help="list operations nobody has described, in place of an error; exit status 2",
    )


def _summary(options: argparse.Namespace) -> int:
    with opened(options.model) as model:
        shapes = [one.shape for one in options.input]
        tensors = sample_tensors(model, options)
        table = layer_table(model, *shapes, depth=options.depth, tensors=tensors)
    print(table)
    return EXIT_DONE


def _budget(options: argparse.Namespace) -> int:
    from constrained_cnn.budget import advise, measure_budget

    check_pictures([options.plot, options.plot_memory])
    with opened(options.model) as model:
        graph = traced(model, options.model, options)
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
        show(*([] if options.totals else [budget.table()]), budget.totals())
        if advice is not None:
            show(advice.table())
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
        graph = traced(model, options.model, options)
        field = measure_receptive_field(graph, layer=options.layer, image=options.image)
        proof = _proof(model, field, options) if options.verify else None
    if options.json:
        proved = {} if proof is None else {"proved": proof.ok}
        print(json.dumps({**field.to_dict(), **proved}))
    elif options.markdown or options.csv:
        sheet = field.to_markdown if options.markdown else field.to_csv
        print(sheet(options.axis), end="")
    else:
        show(field.table(), str(field))
    if proof is not None and not options.json:
        print(proof, file=sys.stderr if options.markdown or options.csv else sys.stdout)
    if options.plot:
        from constrained_cnn import plots

        _say_written(plots.save_figure(plots.receptive_field_growth(field), options.plot))
    if graph.unknown:
        print(escape_controls(f"not known: {', '.join(graph.unknown)}"), file=sys.stderr)
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
    if options.verify and (options.input[0].dtype or options.batch_axis not in (None, (0,))):
        raise InvalidInputError(
            "verify: proves networks whose input is real numbers with the batch at axis 0; leave "
            "the type and --batch-axis out, or --verify"
        )


def _proof(
    model: "nn.Module", field: "ReceptiveField", options: argparse.Namespace
) -> "FieldProof":
    from constrained_cnn.proof import verify_receptive_field

    (image,) = options.input
    return verify_receptive_field(model, image.shape, layer=options.layer, field=field)


def _say_written(path: Any) -> None:
    print(escape_controls(f"Picture: {path}"), file=sys.stderr)
