"""Numbers of a zoo of networks: this library beside independent counters, torchinfo and fvcore.

Run it with ``python -m benchmarks.zoo``; README.md says how to read the result.
"""

import argparse
import contextlib
import dataclasses
import importlib.metadata
import json
import math
import multiprocessing
import resource
import signal
import statistics
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.cost_and_field import quiet
from benchmarks.trainers._report import fill_page
from benchmarks.zoo_networks import Network, networks
from constrained_cnn.budget import fold_bn, measure_budget
from constrained_cnn.constraints import CleanPrediction, Count, Rule, check, get_constraints
from constrained_cnn.errors import ConstrainedCNNError, counted
from constrained_cnn.graph import Graph
from constrained_cnn.receptive_field import measure_receptive_field
from constrained_cnn.recipes import describe_environment
from constrained_cnn.record import write_atomically
from constrained_cnn.table import Table
from constrained_cnn.tracing import trace

__all__ = ["main", "markdown"]

Tell = Callable[..., None]
Work = Callable[[Tell], None]

SCHEMA_VERSION = 1
RESULTS = Path(__file__).parent / "results" / "zoo.json"
LIBRARIES = ("timm", "torchvision", "transformers")
PACKAGES = ("timm", "torchvision", "transformers", "torchinfo", "fvcore")

# Seconds that one tool, and all work on one network, may take; bytes that its process may hold.
TOOL_SECONDS, NETWORK_SECONDS, MOST_BYTES = 200, 600, 6 * 2**30
# A network that takes longer than this for all its repeats is asked less often.
TIMING_SECONDS = 6
# How far from the independent number is "off", and how far outputs may differ once folded.
OFF, FOLD_ERROR = 0.1, 1e-9
SLOW_REFUSAL = 30
# Places of an image on which batch norms are folded.
SMALL = 64


class Late(BaseException):
    """A tool took too long; no ``except Exception`` of a network catches it."""


@contextlib.contextmanager
def limited(seconds: float) -> Iterator[None]:
    """Raise :class:`Late` within, after some seconds."""

    def ring(number: int, frame: FrameType | None) -> None:
        raise Late(f"stopped after {seconds:g} s")

    signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def clock() -> float:
    """Return seconds; of one thread those of the processor, which other work hardly moves."""
    return time.process_time() if torch.get_num_threads() == 1 else time.perf_counter()


def attempt(tool: Callable[[], Any]) -> tuple[Any, float, str]:
    """Return what a tool answers, its seconds, and its error if it has none."""
    started = clock()
    try:
        with quiet(), limited(TOOL_SECONDS):
            answer, problem = tool(), ""
    except (Exception, Late) as error:  # noqa: BLE001 - a tool that fails is a result
        lines = str(error).strip().splitlines() or [""]
        answer, problem = None, f"{type(error).__name__}: {lines[0][:400]}"
        if not isinstance(error, ConstrainedCNNError | Late):
            frame = traceback.extract_tb(error.__traceback__)[-1]
            problem += f" ({Path(frame.filename).name}:{frame.lineno})"
    return answer, clock() - started, problem


# The tools -----------------------------------------------------------------------------------


def graph_of(model: nn.Module, network: Network) -> Graph:
    """Trace a network."""
    if network.shape is not None:
        return trace(model, network.shape)
    return trace(model, inputs=network.inputs)


def all_figures(model: nn.Module, network: Network) -> dict[str, Any]:
    """Return parameters and MACs of ours, the fields as well, and the seconds of the trace."""
    started = clock()
    graph = graph_of(model, network)
    traced = clock() - started
    budget = measure_budget(graph)
    try:
        measure_receptive_field(graph)
        field = ""
    except ConstrainedCNNError as error:
        field = f"{type(error).__name__}: {error}"[:300]
    counts = budget.parameters
    return {
        "parameters": counts.total,
        "macs": budget.macs,
        "deployed": counts.deployed,
        "unused": counts.unused,
        "field": field,
        "trace_seconds": round(traced, 4),
    }


def ask_torchinfo(model: nn.Module, network: Network) -> dict[str, Any]:
    """Return parameters and MACs of torchinfo."""
    import torchinfo

    found = torchinfo.summary(model, input_data=network.inputs, device="cpu", verbose=0)
    return {"parameters": found.total_params, "macs": found.total_mult_adds}


class Positional(nn.Module):
    """A network that takes its inputs in order, and gives a tuple of tensors, for a tracer."""

    def __init__(self, model: nn.Module, names: Sequence[str]) -> None:
        super().__init__()
        self.model, self.names = model, names

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Run the network."""
        return tuple(tensors_of(self.model(**dict(zip(self.names, inputs, strict=True)))))


def ask_fvcore(model: nn.Module, network: Network) -> dict[str, Any]:
    """Return parameters and MACs of fvcore, whose flops are multiply-accumulates."""
    from fvcore.nn import FlopCountAnalysis, parameter_count

    inputs = network.inputs
    if isinstance(inputs, Mapping):
        model, inputs = Positional(model, tuple(inputs)), tuple(inputs.values())
    analysis = FlopCountAnalysis(model, tuple(inputs))
    analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    return {"parameters": parameter_count(model)[""], "macs": analysis.total()}


def call(model: nn.Module, inputs: Any) -> Any:
    """Run a network on its inputs."""
    return model(**inputs) if isinstance(inputs, Mapping) else model(*inputs)


def tensors_of(value: Any) -> Iterator[Tensor]:
    """Yield the tensors in what a network gives."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from tensors_of(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from tensors_of(item)


def moved(value: Any, device: str) -> Any:
    """Return inputs on another device."""
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, Mapping):
        return {name: moved(item, device) for name, item in value.items()}
    return type(value)(moved(item, device) for item in value) if value is not None else None


def _product(a_shape: Sequence[int], *_: Any, **__: Any) -> int:
    """Return the operations of a product of a matrix, or a vector, with a vector."""
    return 2 * math.prod(a_shape)


# What torch's counter does not know of.
_ATEN = torch.ops.aten
MISSING = {
    _ATEN.mv: _product,
    _ATEN.dot: _product,
    _ATEN.vdot: _product,
    _ATEN.addmv: lambda _bias, matrix, *_, **__: 2 * math.prod(matrix),
}


def count_flops(model: nn.Module, inputs: Any) -> int:
    """Return the MACs that torch's own counter sees during one pass.

    Attention runs as products of matrices: the counter knows no fused kernel for the CPU.
    """
    from torch.utils.flop_counter import FlopCounterMode

    torch.backends.mha.set_fastpath_enabled(False)
    model.requires_grad_(False)  # what takes a gradient outside of one trips the counter
    counter = FlopCounterMode(display=False, custom_mapping=MISSING)
    with counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        call(model, inputs)
    flops = counter.get_total_flops()
    assert flops % 2 == 0
    return flops // 2


def independent_macs(model: nn.Module, network: Network) -> tuple[int, str]:
    """Return MACs and the device they were counted on; the model is lost.

    First without data, where no kernel of the CPU hides what it does (an LSTM's shows nothing); a
    network that needs values runs on the CPU.
    """
    try:
        return count_flops(model.to("meta"), moved(network.inputs, "meta")), "meta"
    except Exception:  # noqa: BLE001 - it asks for values, or makes a tensor on the CPU
        return count_flops(network.make().eval(), network.inputs), "cpu"


def shake_norms(model: nn.Module) -> int:
    """Give batch norms numbers as after training; return how many there are."""
    generator = torch.Generator().manual_seed(0)
    found = 0
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_var is not None:
            found += 1
            for tensor, low, high in (
                (module.running_mean, -0.2, 0.2),
                (module.running_var, 0.5, 1.5),
                (module.weight, 0.5, 1.5),
                (module.bias, -0.2, 0.2),
            ):
                if tensor is not None:
                    tensor.data.uniform_(low, high, generator=generator)
    return found


def norms_in(model: nn.Module) -> int:
    """Return how many batch norms a network has."""
    return sum(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.modules())


def small_shape(model: nn.Module, network: Network) -> tuple[int, ...]:
    """Return a shape that a network runs on quickly: double precision is slow on a CPU."""
    shape = network.shape
    assert shape is not None
    small = (*shape[:-2], *(min(size, SMALL) for size in shape[-2:]))
    try:
        with torch.no_grad():
            model(torch.zeros((1, *small), dtype=torch.float64))
    except Exception:  # noqa: BLE001 - it has a size of its own
        return shape
    return small


def fold(model: nn.Module, network: Network) -> dict[str, Any]:
    """Fold the batch norms of a network in double precision, and compare its outputs."""
    norms = shake_norms(model)
    model = model.double().eval()
    shape = small_shape(model, network)
    folded = fold_bn(model, shape)
    image = torch.randn((1, *shape), dtype=torch.float64)
    image = image.clamp(-2, 2)
    with torch.no_grad():
        before, after = (list(tensors_of(net(image.clone()))) for net in (model, folded))
    assert len(before) == len(after) > 0
    errors = [
        float((old - new).abs().max() / old.abs().max().clamp(min=1e-300))
        for old, new in zip(before, after, strict=True)
        if old.is_floating_point() and old.numel()
    ]
    return {
        "norms": norms,
        "left": norms_in(folded),
        "error": max(errors),
        "parameters": distinct_parameters(folded),
    }


def distinct_parameters(model: nn.Module) -> int:
    """Return the elements of the parameters, tied ones once."""
    distinct = {id(part): part.numel() for part in model.parameters()}
    return sum(distinct.values())


class Forwards:
    """Counts how often the root of a network runs in evaluation mode, by torch's global hooks.

    More than once within one trace means that it was traced twice, or taken apart by torch.export.
    """

    def __init__(self, model: nn.Module) -> None:
        self.kind, self.depth, self.count = type(model), 0, 0

    def __enter__(self) -> "Forwards":
        hooks = nn.modules.module
        self._hooks = (
            hooks.register_module_forward_pre_hook(self._begin),
            hooks.register_module_forward_hook(self._end, always_call=True),
        )
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()

    def _begin(self, module: nn.Module, args: Any) -> None:
        if type(module) is self.kind:
            self.count += self.depth == 0 and not module.training
            self.depth += 1

    def _end(self, module: nn.Module, args: Any, outputs: Any) -> None:
        self.depth -= type(module) is self.kind


# One network ---------------------------------------------------------------------------------


def measure(network: Network, repeats: int, threads: int, tell: Tell) -> None:
    """Tell all figures of one network, as they come."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    model = network.make().eval()
    tell(input=network.said, true={"parameters": distinct_parameters(model)})
    with Forwards(model) as forwards:
        answer, seconds, problem = attempt(lambda: all_figures(model, network))
    tell(ours=answer, first_seconds=round(seconds, 3), refusal=problem, forwards=forwards.count)
    for name, ask in (("torchinfo", ask_torchinfo), ("fvcore", ask_fvcore)):
        theirs, _, failure = attempt(partial(ask, model, network))
        tell(**{name: theirs, f"{name}_problem": failure[:120]})
    if answer is not None:
        tell(seconds=times(model, network, repeats))
        if network.shape is not None and norms_in(model):
            folded, seconds, problem = attempt(lambda: fold(model, network))
            tell(fold=folded, fold_seconds=round(seconds, 3), fold_problem=problem)
    counted, _, failure = attempt(lambda: independent_macs(model, network))
    tell(counted=counted, counted_problem=failure[:120])


def times(model: nn.Module, network: Network, repeats: int) -> dict[str, list[float]]:
    """Return seconds of a trace, of torchinfo and of all figures, in turns."""
    found: dict[str, list[float]] = {"trace": [], "torchinfo": [], "figures": []}
    begun = time.perf_counter()
    for _ in range(repeats):
        figures, seconds, problem = attempt(lambda: all_figures(model, network))
        _, others, theirs = attempt(lambda: ask_torchinfo(model, network))
        if problem or theirs:
            return {}
        found["trace"].append(figures["trace_seconds"])
        found["figures"].append(round(seconds, 4))
        found["torchinfo"].append(round(others, 4))
        if time.perf_counter() - begun > TIMING_SECONDS:
            break
    return found


def judge(network: Network, rules: Mapping[str, Rule], tell: Tell) -> None:
    """Tell the verdicts of all rules on one network, a letter for each."""
    torch.manual_seed(0)
    model = network.make().eval()

    def verdicts() -> str:
        if network.shape is not None:
            report = check(model, network.shape, list(rules.values()))
        else:
            report = check(model, inputs=network.inputs, constraints=list(rules.values()))
        return "".join(finding.verdict.value[0] for finding in report.findings)

    answer, _, problem = attempt(verdicts)
    tell(verdicts=answer, refusal=problem)


@dataclasses.dataclass
class Job:
    """A process that works on one network.

    Attributes:
        name: Name of the network.
        process: The process.
        end: When it is ended, by the monotonic clock.
        row: What it has told so far.
    """

    name: str
    process: BaseProcess
    end: float
    row: dict[str, Any]


def run_all(jobs: Mapping[str, Work], workers: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield what each job tells, each from a process of its own that is ended if it takes too long.

    The processes are forked, so that what they need is imported already.
    """
    context = multiprocessing.get_context("fork")
    waiting, running = list(jobs), dict[Connection, Job]()
    while waiting or running:
        while waiting and len(running) < workers:
            name = waiting.pop(0)
            ours, theirs = context.Pipe(duplex=False)
            process = context.Process(target=_work, args=(jobs[name], theirs))
            process.start()
            theirs.close()
            running[ours] = Job(name, process, time.monotonic() + NETWORK_SECONDS, {})
        for pipe in wait(list(running), timeout=1):
            assert isinstance(pipe, Connection)
            job = running[pipe]
            try:
                job.row |= pipe.recv()
            except EOFError:
                del running[pipe]
                job.process.join()
                if job.process.exitcode and "failed" not in job.row:
                    job.row["failed"] = f"exit status {job.process.exitcode}"
                yield job.name, job.row
        for job in running.values():
            if time.monotonic() > job.end and "failed" not in job.row:
                job.row["failed"] = f"ended after {NETWORK_SECONDS} s"
                job.process.kill()


def _work(work: Work, pipe: Connection) -> None:
    resource.setrlimit(resource.RLIMIT_DATA, (MOST_BYTES, MOST_BYTES))
    try:
        work(lambda **told: pipe.send(told))
    except Exception as error:  # noqa: BLE001 - it ends this network, not the run
        pipe.send({"failed": f"{type(error).__name__}: {error}"[:300]})


# What the figures say ------------------------------------------------------------------------


def wrong(row: Mapping[str, Any]) -> list[str]:
    """Return what of ours is not the independent number."""
    if row.get("ours") is None:
        return []
    found = []
    for name in ("parameters", "macs"):
        number = _true(row, name)
        if number is not None and row["ours"][name] != number:
            found.append(f"{name} {row['ours'][name]:,} for {number:,}")
    fold = row.get("fold")
    if fold and not fold["error"] <= FOLD_ERROR:
        found.append(f"fold_bn off by {fold['error']:.2g}")
    return found


def _true(row: Mapping[str, Any], name: str) -> int | None:
    """Return the independent number; None where nothing could count."""
    if name == "parameters":
        return row["true"]["parameters"] if "true" in row else None
    return row["counted"][0] if row.get("counted") else None


def count_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Return a row for each library and tool: how many are answered, exact, off."""
    cells = []
    for library in (*LIBRARIES, "all"):
        own = [row for row in rows if library in ("all", row["network"].partition("/")[0])]
        if not own:
            continue
        for tool in ("ours", "torchinfo", "fvcore"):
            answered = [row for row in own if row.get(tool) is not None]
            line = [library, "constrained_cnn" if tool == "ours" else tool]
            line += [str(len(own)), str(len(answered))]
            for name in ("parameters", "macs"):
                pairs = [(row[tool][name], _true(row, name)) for row in answered]
                judged = [(said, true) for said, true in pairs if true is not None]
                exact = sum(said == true for said, true in judged)
                off = sum(abs(said - true) > OFF * true for said, true in judged)
                line += [f"{exact} of {len(judged)}", str(off)]
            cells.append(tuple(line))
    counts = ("parameters exact", "parameters off", "MACs exact", "MACs off")
    return Table(("<library", "<tool", "networks", "answered", *counts), tuple(cells))


def time_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Return seconds and the ratio to torchinfo, for networks traced once and for the others."""
    timed = [row for row in rows if row.get("seconds")]
    groups = {
        "traced once": [row for row in timed if row["forwards"] == 1],
        "traced again": [row for row in timed if row["forwards"] > 1],
    }
    cells: list[tuple[str, ...]] = []
    for title, chosen in groups.items():
        for task in ("torchinfo", "trace", "figures") if chosen else ():
            seconds = [statistics.median(row["seconds"][task]) for row in chosen]
            ratios = sorted(ratio(row, task) for row in chosen)
            tenth = len(ratios) // 10
            line = [title, task, str(len(chosen)), f"{1000 * statistics.median(seconds):,.0f}"]
            line.append(f"{statistics.median(ratios):.2f}")
            line.append(f"{ratios[tenth]:.2f} to {ratios[-1 - tenth]:.2f}")
            cells.append(tuple(line))
    columns = ("<networks", "<task", "how many", "median, ms", "times torchinfo", "80 % of them")
    return Table(columns, tuple(cells))


def ratio(row: Mapping[str, Any], task: str) -> float:
    """Return the median of a task's time over torchinfo's in the same turn."""
    pairs = zip(row["seconds"][task], row["seconds"]["torchinfo"], strict=True)
    return statistics.median(mine / theirs for mine, theirs in pairs)


def fold_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Return what came of folding: a row for each library."""
    cells: list[tuple[str, ...]] = []
    for library in LIBRARIES:
        own = [r for r in rows if r["network"].startswith(f"{library}/") and "fold_problem" in r]
        done = [row["fold"] for row in own if row["fold"]]
        if own:
            norms = sum(fold["norms"] for fold in done)
            left = sum(fold["left"] for fold in done)
            worst = max((fold["error"] for fold in done), default=math.nan)
            agree = sum(_deployed_agrees(row) for row in own if row["fold"])
            counts = (str(number) for number in (len(own), len(done), norms, left, agree))
            cells.append((library, *counts, f"{worst:.1e}"))
    numbers = ("with batch norms", "folded", "batch norms", "left", "deployed is what is left")
    return Table(("<library", *numbers, "largest error"), tuple(cells))


def _deployed_agrees(row: Mapping[str, Any]) -> bool:
    """Whether the parameters said to be deployed are those of the folded network."""
    used: int = row["fold"]["parameters"] - row["ours"]["unused"]
    return used == row["ours"]["deployed"]


def refusal_of(row: Mapping[str, Any]) -> str:
    """Return why ours gives no parameters and MACs; empty if it does."""
    return "" if row.get("ours") else row.get("refusal") or row.get("failed", "")


def field_refusal_of(row: Mapping[str, Any]) -> str:
    """Return why ours gives no receptive field, where there is an image; empty if it does."""
    said: str = (row.get("ours") or {}).get("field", "")
    return "" if said.startswith("InvalidInputError") else said


def refusal_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Return what is refused, or failed, and why."""
    cells = [
        (row["network"], what, f"{row.get('first_seconds', math.nan):.1f}", said[:200])
        for row in rows
        for what, said in (
            ("all", refusal_of(row)),
            ("field", field_refusal_of(row)),
            ("folding", row.get("fold_problem", "")),
            ("the rest", row.get("failed", "") if row.get("ours") else ""),
        )
        if said
    ]
    return Table(("<refused", "<what", "seconds", "<why"), tuple(cells))


def markdown(content: Mapping[str, Any]) -> str:
    """Return the tables of a page, made from the content of the file."""
    rows = content["networks"]
    mistakes = [f"{row['network']}: {said}" for row in rows for said in wrong(row)]
    refused = [row for row in rows if refusal_of(row)]
    by_library = Counter(row["network"].partition("/")[0] for row in refused)
    counts = ", ".join(f"{count} of {name}" for name, count in sorted(by_library.items())) or "none"
    fields = [row for row in rows if field_refusal_of(row)]
    slowest = max((row.get("first_seconds", 0.0) for row in refused + fields), default=0.0)
    about = content["environment"]
    versions = ", ".join(f"{name} {version}" for name, version in content["tools"].items())
    texts = [table(rows).to_markdown() for table in (count_table, fold_table, time_table)]
    texts.append(
        f"Off: by more than {OFF:.0%}. Wrong of ours: {len(mistakes)}. Refused: {counts}; the "
        f"receptive field of {len(fields)} more. The slowest refusal takes {slowest:.1f} s.\n"
    )
    kind = "processor" if about["threads"] == 1 else "clock"
    texts.append(
        f"{about['processor']}, {about['cores']} cores, {counted(about['threads'], 'thread')}, "
        f"Python {about['python']}, torch {about['packages']['torch']}, {versions}; "
        f"{counted(content['repeats'], 'repeat')} in turns, after one that is not timed, in "
        f"seconds of the {kind}. Made by `{content['command']}`; every figure is in "
        "`benchmarks/results/zoo.json`.\n"
    )
    return "\n".join(texts)


# Verdicts ------------------------------------------------------------------------------------

# The kinds of layers of `Count`, as its documentation lists them.
KINDS = """
conv depthwise dilated strided transposed_conv fully_connected max_pool avg_pool pool
global_average_pool batch_norm group_norm instance_norm layer_norm norm relu activation softmax
dropout
"""
SPECS = ("mnist-20k", "mnist-12k", "cifar10-200k")


def all_rules() -> dict[str, Rule]:
    """Return the rules on networks that come with the package, and counts of every kind."""
    rules: dict[str, Rule] = {
        f"{spec}/{rule.name}": dataclasses.replace(rule, name="")  # names would meet each other
        for spec in SPECS
        for rule in get_constraints(spec).rules
        if not rule.of_run
    }
    for kind in KINDS.split():
        rules[f"at least one {kind}"] = Count(kind, at_least=1)
        rules[f"no {kind}"] = Count(kind, at_most=0)
    return rules | {"clean prediction": CleanPrediction()}


def write_verdicts(chosen: Sequence[Network], path: Path, workers: int) -> None:
    """Judge networks by all rules; write a letter for each: pass, fail or cannot tell.

    A file that is there is gone on with.
    """
    rules = all_rules()
    content: dict[str, Any] = {"rules": list(rules), "verdicts": {}, "refused": {}}
    if path.exists():
        content = json.loads(path.read_text())
    known = content["verdicts"].keys() | content["refused"].keys()
    jobs = {n.name: partial(judge, n, rules) for n in chosen if n.name not in known}
    for number, (name, row) in enumerate(run_all(jobs, workers)):
        said = row.get("refusal") or row.get("failed", "")
        if said:
            content["refused"][name] = said
        else:
            content["verdicts"][name] = row["verdicts"]
        write_atomically(path, (json.dumps(content, indent=0) + "\n").encode())
        print(f"{number + 1} of {len(jobs)}: {name} {said}", flush=True)


def compare_verdicts(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """Return what differs between two files of verdicts, a line for each."""
    changed = []
    for name, letters in before["verdicts"].items():
        if name in after["refused"]:
            changed.append(f"{name}: refused: {after['refused'][name]}")
            continue
        new = dict(zip(after["rules"], after["verdicts"].get(name, ""), strict=False))
        for rule, letter in zip(before["rules"], letters, strict=True):
            if new and letter != new.get(rule, letter):
                changed.append(f"{name}: {rule}: {letter} -> {new[rule]}")
    changed += [
        f"{name}: no longer refused" for name in before["refused"] if name in after["verdicts"]
    ]
    return changed


# The command ---------------------------------------------------------------------------------


def warm_up() -> None:
    """Import everything, and call each tool once, so that no network pays for what is first."""
    network = Network("warm", lambda: nn.Conv2d(1, 2, 3), lambda: (torch.zeros(1, 1, 8, 8),))
    model = network.make().eval()
    for tool in (all_figures, ask_torchinfo, ask_fvcore):
        _, _, problem = attempt(partial(tool, model, network))
        if problem:
            sys.exit(f"{tool.__name__}: {problem}; pip install -r benchmarks/requirements-zoo.txt")


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print the tables, and write the figures to a file."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.zoo")
    parser.add_argument("--library", choices=(*LIBRARIES, "tests"), action="append")
    parser.add_argument("--only", default="", help="a part of the names, or several with commas")
    parser.add_argument("--quick", action="store_true", help="three networks of each library, once")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--workers", type=int, default=2, help="networks at a time")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--verdicts", type=Path, metavar="FILE", help="judge by rules instead")
    parser.add_argument("--compare", type=Path, nargs=2, metavar="FILE", help="two such files")
    parser.add_argument("--publish", type=Path, metavar="FILE", help="put the tables into the docs")
    options = parser.parse_args(arguments)
    if options.publish:
        page = Path(__file__).parents[1] / "docs" / "speed.md"
        fill_page(page, "zoo", markdown(json.loads(options.publish.read_text())))
        return
    if options.compare:
        before, after = (json.loads(path.read_text()) for path in options.compare)
        print("\n".join(compare_verdicts(before, after)))
        return
    # One thread until the processes are forked, so that no pool of threads is lost in them.
    torch.set_num_threads(1)
    warm_up()
    libraries = options.library or (*(["tests"] if options.verdicts else []), *LIBRARIES)
    chosen = [network for library in libraries for network in networks(library)]
    if options.quick:
        chosen = [n for library in libraries for n in networks(library)[:3]]
        options.repeats = 1
    if options.only:
        words = options.only.split(",")
        chosen = [network for network in chosen if any(word in network.name for word in words)]
    if options.verdicts:
        write_verdicts(chosen, options.verdicts, options.workers)
        return
    rows = measure_all(chosen, options, options.out.with_suffix(".jsonl"))
    words = arguments if arguments is not None else sys.argv[1:]
    content = {
        "schema_version": SCHEMA_VERSION,
        "command": " ".join(["python -m benchmarks.zoo", *words]),
        "repeats": options.repeats,
        "environment": describe_environment(torch.device("cpu")) | {"threads": options.threads},
        "tools": {name: importlib.metadata.version(name) for name in PACKAGES},
        "networks": rows,
    }
    show(rows)
    lines = [json.dumps(row, separators=(",", ":")) for row in rows]
    rest = json.dumps(content | {"networks": []}, indent=1).removesuffix("[]\n}")
    text = rest + "[\n" + ",\n".join(lines) + "\n]\n}\n"
    print(write_atomically(options.out, text.encode()))
    options.out.with_suffix(".jsonl").unlink()


def measure_all(
    chosen: Sequence[Network], options: argparse.Namespace, kept: Path
) -> list[dict[str, Any]]:
    """Return a row for each network; those that ``kept`` holds already are taken from there."""
    lines = kept.read_text().splitlines() if kept.exists() else []
    rows = {row["network"]: row for row in map(json.loads, lines)}
    jobs = {
        network.name: partial(measure, network, options.repeats, options.threads)
        for network in chosen
        if network.name not in rows
    }
    for name, told in run_all(jobs, options.workers):
        row = rows[name] = {"network": name, **told}
        with kept.open("a") as file:
            file.write(json.dumps(row) + "\n")
        said = "; ".join(wrong(row)) or refusal_of(row) or "right"
        print(f"{len(rows)} of {len(chosen)}: {name}: {said}", flush=True)
    return [rows[network.name] for network in chosen]


def show(rows: Sequence[Mapping[str, Any]]) -> None:
    """Print the tables."""
    for table in (count_table, fold_table, time_table, refusal_table):
        print(f"{table(rows)}\n")
    for row in rows:
        for said in wrong(row):
            print(f"WRONG {row['network']}: {said}")
        slow = row.get("first_seconds", 0) > SLOW_REFUSAL
        if slow and (refusal_of(row) or field_refusal_of(row)):
            print(f"SLOW REFUSAL {row['network']}: {row['first_seconds']:.0f} s")


if __name__ == "__main__":
    main()
