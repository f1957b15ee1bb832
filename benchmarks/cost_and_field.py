"""What a network costs and sees: this library beside other tools, in time and in truth.

Run it with ``python -m benchmarks.cost_and_field``; README.md says how to read the result.
"""

import argparse
import contextlib
import importlib.metadata
import io
import itertools
import json
import logging
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import torchvision
from rich.console import Console
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from constrained_cnn import models
from constrained_cnn.budget import measure_budget
from constrained_cnn.receptive_field import measure_receptive_field
from constrained_cnn.recipes import describe_environment
from constrained_cnn.record import write_atomically
from constrained_cnn.table import Table
from constrained_cnn.tracing import trace

__all__ = ["TOOLS", "main"]

SCHEMA_VERSION = 1
OURS = "constrained_cnn"
Shape = tuple[int, ...]
# Parameters, MACs, and size of the receptive field of the last layer with places, where it is said.
Answer = tuple[float | None, float | None, float | None]


def ours(model: nn.Module, shape: Shape) -> Answer:
    """Parameters, MACs, memory and receptive field of every layer, of one trace."""
    graph = trace(model, shape)
    budget = measure_budget(graph)
    try:
        size: float | None = measure_receptive_field(graph).axes[0].size
    except ValueError:  # there is no image
        size = None
    return budget.parameters.total, budget.macs, size


def flop_counter(model: nn.Module, shape: Shape) -> Answer:
    """Count with torch's own counter during one pass on the CPU."""
    from torch.utils.flop_counter import FlopCounterMode

    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        model(torch.zeros(1, *shape))
    return None, counter.get_total_flops() / 2, None


def torchinfo_summary(model: nn.Module, shape: Shape) -> Answer:
    """Count with torchinfo."""
    import torchinfo

    found = torchinfo.summary(model, (1, *shape), device="cpu", verbose=0)
    return found.total_params, found.total_mult_adds, None


def fvcore_count(model: nn.Module, shape: Shape) -> Answer:
    """Count with fvcore, whose flops are multiply-accumulates."""
    from fvcore.nn import FlopCountAnalysis, parameter_count

    analysis = FlopCountAnalysis(model, torch.zeros(1, *shape))
    analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    return parameter_count(model)[""], analysis.total(), None


def thop_profile(model: nn.Module, shape: Shape) -> Answer:
    """Count with thop."""
    import thop

    macs, parameters = thop.profile(model, (torch.zeros(1, *shape),), verbose=False)
    return parameters, macs, None


def ptflops_info(model: nn.Module, shape: Shape) -> Answer:
    """Count with ptflops."""
    from ptflops import get_model_complexity_info

    macs, parameters = get_model_complexity_info(
        model, shape, as_strings=False, print_per_layer_stat=False, verbose=False
    )
    return parameters, macs, None


def torchprofile_macs(model: nn.Module, shape: Shape) -> Answer:
    """Count with torchprofile."""
    from torchprofile import profile_macs

    return None, profile_macs(model, torch.zeros(1, *shape)), None


def torchscan_crawl(model: nn.Module, shape: Shape) -> Answer:
    """Count with torchscan, whose receptive fields are those of single modules."""
    from torchscan import crawl_module

    found = crawl_module(model, shape)
    macs = [layer["metrics"].get("macs", {}).get("value") or 0 for layer in found["layers"]]
    return None, sum(macs), None


Tool = Callable[[nn.Module, Shape], Answer]
TOOLS: dict[str, Tool] = {
    OURS: ours,
    "FlopCounterMode": flop_counter,
    "torchinfo": torchinfo_summary,
    "fvcore": fvcore_count,
    "thop": thop_profile,
    "ptflops": ptflops_info,
    "torchprofile": torchprofile_macs,
    "torchscan": torchscan_crawl,
}


@dataclass(frozen=True)
class Network:
    """A network whose numbers are known.

    Attributes:
        make: Makes it.
        shape: Shape of one sample.
        parameters: How many it has.
        macs: How many it does.
        field: Size of the receptive field of its trunk; None if it is not asked for.
    """

    make: Callable[[], nn.Module]
    shape: Shape
    parameters: int
    macs: int
    field: int | None = None


class Functional(nn.Module):
    """A convolution without a module."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(8, 8, 3, 3))

    def forward(self, x: Tensor) -> Tensor:
        """Convolve."""
        return F.conv2d(x, self.kernel, padding=1)


class Renamed(nn.Conv2d):
    """A convolution under another name."""


class Tied(nn.Module):
    """Two modules with one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.two = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.two.weight = self.one.weight

    def forward(self, x: Tensor) -> Tensor:
        """Convolve twice."""
        return self.two(self.one(x))


IMAGE, SMALL = (3, 224, 224), (8, 16, 16)
TIMED = {
    "mnist_12k": Network(models.mnist_12k, (1, 28, 28), 12_000, 3_774_276, 22),
    "resnet50": Network(torchvision.models.resnet50, IMAGE, 25_557_032, 4_089_184_256, 427),
    "densenet201": Network(torchvision.models.densenet201, IMAGE, 20_013_928, 4_291_365_888),
}
# Of the reference: torchvision's metadata, and small cases by hand.
CASES = {
    "mobilenet_v2": Network(torchvision.models.mobilenet_v2, IMAGE, 3_504_872, 300_774_272),
    "convnext_tiny": Network(torchvision.models.convnext_tiny, IMAGE, 28_589_128, 4_455_531_264),
    "transposed": Network(
        lambda: nn.Sequential(nn.ConvTranspose2d(8, 4, 4, 2, 1, bias=False)), SMALL, 512, 131_072
    ),
    "function": Network(Functional, SMALL, 576, 147_456),
    "weight norm": Network(
        lambda: nn.Sequential(
            parametrizations.weight_norm(nn.Conv2d(8, 8, 3, padding=1, bias=False))
        ),
        SMALL,
        584,
        147_456,
    ),
    "renamed class": Network(
        lambda: nn.Sequential(Renamed(8, 8, 3, padding=1, bias=False)), SMALL, 576, 147_456
    ),
    "tied weights": Network(Tied, SMALL, 576, 294_912),
}


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep what tools print and warn of to themselves."""
    logging.disable(logging.CRITICAL)
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            logging.disable(logging.NOTSET)


def ask(tool: Tool, network: Network) -> tuple[Answer | None, float, str]:
    """Return what a tool answers, the seconds it takes, and why it does not answer."""
    model = network.make().eval()
    started = time.perf_counter()
    try:
        with quiet():
            answer = tool(model, network.shape)
    except ImportError:
        return None, 0.0, "not installed"
    except Exception as error:  # noqa: BLE001 - a tool that fails is a result
        return None, 0.0, f"{type(error).__name__}: {error}".splitlines()[0][:90]
    return answer, time.perf_counter() - started, ""


@dataclass(frozen=True)
class Row:
    """What one tool does with one network.

    Attributes:
        network: Name of the network.
        tool: Name of the tool.
        seconds: Of each repeat, after a first that is not timed.
        ratio: Median over the repeats of the time over ours in the same repeat.
        answer: Parameters, MACs and receptive field.
        problem: Why there is none.
    """

    network: str
    tool: str
    seconds: tuple[float, ...]
    ratio: float | None
    answer: Answer | None
    problem: str


def measure(names: Sequence[str], repeats: int) -> list[Row]:
    """Ask every tool about every network, in turns."""
    rows = []
    for name in names:
        network = TIMED[name]
        first = {tool: ask(TOOLS[tool], network) for tool in TOOLS}
        seconds: dict[str, list[float]] = {tool: [] for tool in TOOLS}
        for _ in range(repeats):
            for tool in TOOLS:
                if first[tool][0] is not None:
                    seconds[tool].append(ask(TOOLS[tool], network)[1])
        for tool, (answer, _, problem) in first.items():
            pairs = zip(seconds[tool], seconds[OURS], strict=False)
            ratios = [theirs / mine for theirs, mine in pairs]
            ratio = statistics.median(ratios) if ratios else None
            rows.append(Row(name, tool, tuple(seconds[tool]), ratio, answer, problem))
    return rows


def deviations() -> list[Row]:
    """Ask every tool once about the cases where tools differ."""
    found = []
    for name, network in CASES.items():
        for tool in TOOLS:
            answer, seconds, problem = ask(TOOLS[tool], network)
            found.append(Row(name, tool, (seconds,), None, answer, problem))
    return found


def chains(lengths: Sequence[int]) -> list[dict[str, float]]:
    """Return the seconds that each part takes for chains of convolutions."""
    found = []
    for length in lengths:
        layers = [x for _ in range(length) for x in (nn.Conv2d(4, 4, 3, padding=1), nn.ReLU())]
        model = nn.Sequential(*layers)
        trace(model[:2], (4, 16, 16))
        times = [time.perf_counter()]
        graph = trace(model, (4, 16, 16))
        times.append(time.perf_counter())
        measure_budget(graph)
        times.append(time.perf_counter())
        measure_receptive_field(graph)
        times.append(time.perf_counter())
        parts = [after - before for before, after in itertools.pairwise(times)]
        found.append(
            {"layers": length, **dict(zip(("trace", "budget", "field"), parts, strict=True))}
        )
    return found


def _deviation(said: float | None, true: float | None) -> str:
    if said is None or true is None:
        return ""
    if said == true:
        return "exact"
    percent = 100 * (said / true - 1)
    return f"{percent:+.1f} %" if abs(percent) >= 0.05 else f"{percent:+.2g} %"


def time_table(rows: Sequence[Row]) -> Table:
    """Return the times and what was answered."""
    cells = []
    for row in rows:
        network = TIMED[row.network]
        if row.answer is None:
            cells.append((row.network, row.tool, "", "", row.problem, "", ""))
            continue
        parameters, macs, field = row.answer
        cells.append(
            (
                row.network,
                row.tool,
                f"{1000 * statistics.median(row.seconds):.0f}",
                "" if row.ratio is None else f"{row.ratio:.2f}",
                _deviation(parameters, network.parameters),
                _deviation(macs, network.macs),
                "" if field is None else f"{field:g}",
            )
        )
    columns = ("<network", "<tool", "ms", "times ours", "parameters", "MACs", "receptive field")
    return Table(columns, tuple(cells))


def case_table(rows: Sequence[Row]) -> Table:
    """Return how far each tool's MACs are off, a row for each tool."""
    by_tool: dict[str, dict[str, str]] = {}
    for row in rows:
        said = None if row.answer is None else row.answer[1]
        text = _deviation(said, CASES[row.network].macs) or row.problem.split(":")[0]
        by_tool.setdefault(row.tool, {})[row.network] = text
    cells = tuple((tool, *(said[name] for name in CASES)) for tool, said in by_tool.items())
    shown = tuple(
        row for row in cells if any(cell not in ("", "not installed") for cell in row[1:])
    )
    return Table(("<MACs, off by", *CASES), shown)


def chain_table(chained: Sequence[dict[str, float]]) -> Table:
    """Return the seconds of each part for each length."""
    cells = tuple(
        (f"{row['layers']:.0f}", *(f"{row[part]:.2f}" for part in ("trace", "budget", "field")))
        for row in chained
    )
    return Table(("convolutions", "trace, s", "budget, s", "field, s"), cells)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print the tables, and write the figures to a file."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cost_and_field")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--models", default=",".join(TIMED), help="names, with commas between")
    parser.add_argument("--chains", default="100,1000,3000", help="lengths, with commas between")
    default = Path(__file__).parent / "results" / "cost_and_field.json"
    parser.add_argument("--out", default=default, type=Path)
    options = parser.parse_args(arguments)
    lengths = [int(length) for length in options.chains.split(",") if length]
    rows = measure(options.models.split(","), options.repeats)
    cases, chained = deviations(), chains(lengths)
    console = Console(width=140)
    for table in (time_table(rows), case_table(cases), chain_table(chained)):
        console.print(table)
    packages = ("torchinfo", "fvcore", "thop", "ptflops", "torchprofile", "torchscan")
    versions = {name: _version(name) for name in packages}
    content: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "command": " ".join(["python -m benchmarks.cost_and_field", *(arguments or sys.argv[1:])]),
        "repeats": options.repeats,
        "environment": describe_environment(torch.device("cpu")),
        "tools": versions,
        "timed": [asdict(row) for row in rows],
        "cases": [asdict(row) for row in cases],
        "chains": chained,
    }
    print(write_atomically(options.out, (json.dumps(content, indent=1) + "\n").encode()))


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


if __name__ == "__main__":
    main()
