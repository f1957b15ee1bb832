"""The commands that say what a network costs and what it sees."""

import argparse
import json
import os
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from constrained_cnn.cli._layers import layer_table
from constrained_cnn.cli._status import EXIT_CANNOT_RUN, EXIT_DONE, EXIT_FAILED
from constrained_cnn.errors import ConstrainedCNNError, TracingError

if TYPE_CHECKING:
    from torch import nn

    from constrained_cnn.budget import Change
    from constrained_cnn.graph import Graph

_MODEL = """
MODEL is the name of a model of the package (mnist_12k), MODULE:FACTORY, or FILE.py:FACTORY. The
factory is a class or function that takes no arguments and gives a torch.nn.Module, or such a
module itself.
"""


def add_network_commands(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add ``summary``, ``budget``, ``rf`` and ``diff``."""
    summary = commands.add_parser(
        "summary", help="the familiar table of layers", description=_MODEL
    )
    _add_model(summary)
    summary.add_argument("--depth", type=int, default=3, help="levels of modules (default 3)")
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
    budget.add_argument(
        "--allow-unknown",
        action="store_true",
        help="list operations nobody has described, in place of an error",
    )
    budget.add_argument("--plot", metavar="FILE", help="draw parameters and MACs of each layer")
    budget.add_argument("--plot-memory", metavar="FILE", help="draw the memory at each operation")
    budget.set_defaults(command=_budget)

    field = commands.add_parser(
        "rf", help="what the units of a network see: receptive fields", description=_MODEL
    )
    _add_model(field)
    formats = _add_formats(field)
    formats.add_argument("--csv", action="store_true", help="print the course sheet as CSV")
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
        type=_shape,
        required=True,
        metavar="C,H,W",
        help="shape of one sample, channels first: 1,28,28",
    )


def _add_formats(parser: argparse.ArgumentParser) -> argparse._MutuallyExclusiveGroup:
    formats = parser.add_mutually_exclusive_group()
    formats.add_argument("--json", action="store_true", help="print JSON")
    formats.add_argument("--markdown", action="store_true", help="print Markdown")
    return formats


def _shape(text: str) -> tuple[int, ...]:
    """Return the shape that a text names.

    Examples:
        >>> _shape("1,28,28"), _shape("3x224x224")
        ((1, 28, 28), (3, 224, 224))
    """
    parts = text.lower().replace("x", ",").split(",")
    if not all(part.strip().isdecimal() and int(part) > 0 for part in parts):
        raise argparse.ArgumentTypeError(f"{text!r}: must be a shape such as 1,28,28")
    return tuple(map(int, parts))


def _summary(options: argparse.Namespace) -> int:
    print(layer_table(_model(options.model), options.input, depth=options.depth))
    return EXIT_DONE


def _budget(options: argparse.Namespace) -> int:
    from constrained_cnn.budget import advise, measure_budget
    from constrained_cnn.tracing import trace

    graph = trace(_model(options.model), options.input, strict=not options.allow_unknown)
    graph = replace(graph, model=options.model)
    budget = measure_budget(graph)
    advice = advise(graph) if options.advise else None
    if options.json:
        content = budget.to_dict()
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
    from constrained_cnn.tracing import trace

    model = _model(options.model)
    graph = replace(trace(model, options.input), model=options.model)
    field = measure_receptive_field(graph, layer=options.layer)
    proof = None
    if options.verify:
        from constrained_cnn.proof import verify_receptive_field

        proof = verify_receptive_field(model, options.input, layer=options.layer, field=field)
    if options.json:
        proved = {} if proof is None else {"proved": proof.ok}
        print(json.dumps({**field.to_dict(), **proved}))
    elif options.markdown or options.csv:
        print(field.to_markdown() if options.markdown else field.to_csv(), end="")
    else:
        _show(field.table(), str(field))
    if proof is not None and not options.json:
        print(proof, file=sys.stderr if options.markdown or options.csv else sys.stdout)
    if options.plot:
        from constrained_cnn import plots

        _say_written(plots.save_figure(plots.receptive_field_growth(field), options.plot))
    if proof is None or proof.ok:
        return EXIT_DONE
    return EXIT_CANNOT_RUN if proof.ok is None else EXIT_FAILED


def _diff(options: argparse.Namespace) -> int:
    from constrained_cnn.budget import diff, measure_budget
    from constrained_cnn.tracing import trace

    graphs = [
        replace(trace(_model(name), options.input), model=name)
        for name in (options.old, options.new)
    ]
    change = diff(*map(measure_budget, graphs))
    change = replace(change, totals=(*change.totals, *_field_changes(*graphs)))
    if options.json:
        print(json.dumps(change.to_dict()))
    elif options.markdown:
        print(change.to_markdown(), end="")
    else:
        _show(change.table(), *([change.layer_table()] if change.layers else []))
    return EXIT_DONE


def _field_changes(old: "Graph", new: "Graph") -> "list[Change]":
    """Return the receptive fields before and after, where both have one."""
    from constrained_cnn.budget import Change
    from constrained_cnn.receptive_field import measure_receptive_field

    try:
        before, after = (measure_receptive_field(graph).axes for graph in (old, new))
    except ConstrainedCNNError:  # no image, or none to say: the costs stand without it
        return []
    same = len({axis.size for axis in before}) == len({axis.size for axis in after}) == 1
    pairs = list(zip(before, after, strict=False))[: 1 if same else None]
    names = ["receptive field"] if same else [f"receptive field, axis {i}" for i in range(9)]
    return [Change(name, a.size, b.size) for name, (a, b) in zip(names, pairs, strict=False)]


def _show(*parts: Any) -> None:
    """Print tables: in colour and fitted to a terminal, whole and plain to a file."""
    from rich.console import Console

    console = Console(highlight=False)
    for part in parts:
        if console.is_terminal and not isinstance(part, str):
            console.print(part)
        else:
            print(f"{part}\n" if not isinstance(part, str) else part)


def _say_written(path: Any) -> None:
    print(f"Picture: {path}", file=sys.stderr)


def _model(name: str) -> "nn.Module":
    """Return the network that a word of the command line names."""
    from torch import nn

    from constrained_cnn import models

    if ":" not in name:
        return models.create_model(name)
    found: Any = _find(name)
    if not isinstance(found, nn.Module):
        if not callable(found):
            raise TracingError(f"{name!r} is a {type(found).__name__}, and gives no network")
        try:
            found = found()
        except Exception as error:
            reason = str(error) or type(error).__name__
            raise TracingError(f"{name!r} cannot be called without arguments: {reason}") from error
    if not isinstance(found, nn.Module):
        raise TracingError(f"{name!r} gave a {type(found).__name__}, not a torch.nn.Module")
    return found


def _find(name: str) -> Any:
    """Return what stands under a name in a module or file."""
    import importlib
    import importlib.util
    from pathlib import Path

    from constrained_cnn.errors import closest

    place, _, attribute = name.rpartition(":")
    sys.path.insert(0, os.getcwd())  # as `python -m` does
    try:
        if place.endswith(".py"):
            spec = importlib.util.spec_from_file_location(Path(place).stem, place)
            assert spec is not None
            assert spec.loader is not None
            module = importlib.util.module_from_spec(spec)
            sys.modules.setdefault(spec.name, module)
            spec.loader.exec_module(module)
        else:
            module = importlib.import_module(place)
    except Exception as error:
        reason = str(error) or type(error).__name__
        raise TracingError(f"{name!r}: {place!r} cannot be imported: {reason}") from error
    finally:
        sys.path.remove(os.getcwd())
    if not hasattr(module, attribute):
        hint = closest(attribute, vars(module))
        raise TracingError(f"{name!r}: {place!r} has no {attribute!r}{hint}")
    return getattr(module, attribute)
