"""The pytest plugin: a test fails when a network breaks its rules, or costs more than it did.

It comes with the package. The fixture ``check_network`` is a :class:`NetworkCheck`, the marker
``constraints`` gives it rules and a shape, and ``--constrained-cnn-update`` writes the baseline.
Nothing heavy is imported until a test uses the fixture.
"""

import os
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

import pytest

from constrained_cnn.errors import (
    ConstrainedCNNError,
    InvalidInputError,
    check_known_keys,
    escape_controls,
)
from constrained_cnn.pytest_plugin._baseline import (
    UPDATE,
    Entry,
    changes,
    claim,
    in_short,
    locked,
    problem_of,
    read_baseline,
    write_baseline,
)

if TYPE_CHECKING:
    import torch

    from constrained_cnn.budget import Budget
    from constrained_cnn.constraints import Constraints, Report, Rule
    from constrained_cnn.graph import Graph
    from constrained_cnn.record import RunRecord

__all__ = ["NetworkCheck"]

_MARKED = ("rules", "input_shape")
_NOTE = "constrained_cnn"
# What was compared in this session, by its name in the baseline.
_COMPARED = pytest.StashKey[dict[str, Entry]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option and the setting of the baseline."""
    parser.getgroup("constrained-cnn").addoption(
        UPDATE,
        action="store_true",
        help="write what networks cost to the baseline, for the tests that run",
    )
    parser.addini(
        "constrained_cnn_baseline",
        help="file of what networks cost, from the root folder",
        type="string",
        default="constrained-cnn-baseline.json",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Describe the marker; refuse to let several processes write one baseline."""
    config.addinivalue_line(
        "markers",
        "constraints(rules, input_shape): what the fixture check_network takes if it is not told",
    )
    config.stash[_COMPARED] = {}
    if config.getoption(UPDATE) and config.getoption("dist", "no") != "no":
        raise pytest.UsageError(
            f"{UPDATE}: several processes cannot write one baseline; run it without -n"
        )


def pytest_terminal_summary(terminalreporter: "pytest.TerminalReporter") -> None:  # not in 8.3
    """Say what was written to the baseline, and where it could be tightened."""
    reports = (report for every in terminalreporter.stats.values() for report in every)
    notes = [
        str(note)
        for report in reports
        if isinstance(report, pytest.TestReport) and report.when == "call"
        for name, note in report.user_properties
        if name == _NOTE
    ]
    if notes:
        terminalreporter.section("constrained-cnn")
        for note in dict.fromkeys(notes):
            terminalreporter.line(note)


@pytest.fixture
def check_network(request: pytest.FixtureRequest) -> "NetworkCheck":
    """Judge networks: the test fails where one breaks its rules, or costs more than it did."""
    with _errors_fail("nothing was judged"):
        return NetworkCheck(request.node, _marked(request.node))


@final
class NetworkCheck:
    """What the fixture ``check_network`` is: called with a network, it judges it by rules."""

    def __init__(self, test: pytest.Item, marked: Mapping[str, Any]) -> None:
        self._test = test
        self._marked = marked

    def __call__(
        self,
        model: "torch.nn.Module | Graph",
        input_shape: Sequence[int] | None = None,
        rules: "Constraints | Rule | Sequence[Rule] | str | os.PathLike[str] | None" = None,
        *,
        run: "RunRecord | Sequence[RunRecord] | None" = None,
        inputs: Sequence[Any] | Mapping[str, Any] | None = None,
        require_run: bool = False,
    ) -> "Report":
        """Fail the test if the network breaks a rule, or if of one it cannot be told.

        Args:
            model: The network, or its :class:`~constrained_cnn.graph.Graph`.
            input_shape: Shape of one sample; None for the marker's.
            rules: The rules, as :func:`constrained_cnn.constraints.check` takes them, or a file
                ``*.toml``, from the folder of the test or the root folder. None for the marker's;
                without one, for those under ``[tool.constrained-cnn]`` in the ``pyproject.toml`` of
                the root folder.
            run: The record of a run of this network, or of several.
            inputs: All inputs, for a network with several.
            require_run: Whether rules on a run count without a record too.

        Returns:
            The report, to assert more on it.
        """
        __tracebackhide__ = True
        from constrained_cnn.constraints import check

        with _errors_fail("nothing was judged"):
            shape = self._shape(model, input_shape, inputs)
            asked = self._rules(rules)
            report = check(model, shape, asked, run=run, inputs=inputs, require_run=require_run)
        if not report.judged:
            pytest.fail(f"{report.summary()}\nnothing was judged: give a record, run=...", False)
        if not report.ok:
            pytest.fail(report.explain(), pytrace=False)
        return report

    def against_baseline(
        self,
        model: "torch.nn.Module | Graph",
        input_shape: Sequence[int] | None = None,
        *,
        inputs: Sequence[Any] | Mapping[str, Any] | None = None,
        name: str | None = None,
    ) -> "Budget":
        """Fail the test if the network costs more than the baseline says, or sees another field.

        Compared are the totals of :meth:`constrained_cnn.budget.Budget.quantities`, none of which
        may grow, and the receptive field along each axis, which may not change. With
        ``--constrained-cnn-update`` what is there now becomes the baseline.

        Args:
            model: The network, or its :class:`~constrained_cnn.graph.Graph`.
            input_shape: Shape of one sample; None for the marker's.
            inputs: All inputs, for a network with several.
            name: What the network is called in the baseline; None for the test's id without its
                parameters. Two networks may not have one name.

        Returns:
            What the network costs, to assert more on it.
        """
        __tracebackhide__ = True
        from constrained_cnn.budget import measure_budget
        from constrained_cnn.tracing import as_graph

        config = self._test.config
        named = str(config.getini("constrained_cnn_baseline"))
        with _errors_fail("nothing was compared"):
            name = _name_of(self._test) if name is None else name
            graph = as_graph(model, self._shape(model, input_shape, inputs), inputs=inputs)
            budget = measure_budget(graph)
            now = Entry.of(graph, budget)
            claim(config.stash[_COMPARED], name, now)
            file = (config.rootpath / named).resolve()
            if config.getoption(UPDATE):
                with locked(file):
                    entries = read_baseline(file)
                    if entries.get(name) != now:
                        write_baseline(file, {**entries, name: now})
                        self._note(f"{name}: written to {named}")
                return budget
            entries = read_baseline(file)
        problem = problem_of(entries.get(name), now, budget)
        if problem:
            command = f"pytest {UPDATE} {shlex.quote(_from_here(self._test))}"
            pytest.fail(f"{problem}\n\nTo write {name} to {named}:\n    {command}", pytrace=False)
        smaller = [change for change in changes(entries[name], now) if change.new != change.old]
        if smaller:
            said = f"the baseline can be tightened by {UPDATE}: {in_short(smaller)}"
            self._note(f"{name}: {said}")
        return budget

    def _shape(self, model: Any, given: Any, inputs: Any) -> Any:
        """Return the shape that was given; else the marker's, where one is wanted."""
        from constrained_cnn.graph import Graph

        wanted = given is None and inputs is None and not isinstance(model, Graph)
        return self._marked.get("input_shape") if wanted else given

    def _rules(self, given: Any) -> Any:
        """Return the rules that were given, else the marker's, else the project's."""
        from constrained_cnn.constraints import load_constraints

        rules = self._marked.get("rules") if given is None else given
        if isinstance(rules, os.PathLike) or (isinstance(rules, str) and rules.endswith(".toml")):
            return self._found(rules)
        if rules is not None:
            return rules
        try:
            return load_constraints(self._test.config.rootpath / "pyproject.toml")
        except InvalidInputError as error:
            raise InvalidInputError(f"no rules are given, so the project's are: {error}") from error

    def _found(self, file: str | os.PathLike[str]) -> Path:
        folders = dict.fromkeys([self._test.path.parent, self._test.config.rootpath])
        for folder in folders:
            if (folder / file).is_file():
                return folder / file
        listed = " or ".join(repr(str(folder)) for folder in folders)
        raise InvalidInputError(f"rules={os.fspath(file)!r}: there is no such file in {listed}")

    def _note(self, text: str) -> None:
        # A property of the report, which the processes of pytest-xdist hand on too.
        self._test.user_properties.append((_NOTE, escape_controls(text)))


@contextmanager
def _errors_fail(what: str) -> Iterator[None]:
    """Let an error of the library fail the test with what it says, without a traceback."""
    try:
        yield
    except ConstrainedCNNError as error:
        raise pytest.fail.Exception(f"{what}: {error}", pytrace=False) from None


def _marked(test: pytest.Item) -> dict[str, Any]:
    """Return what the markers of a test, its class and its module give; the closest counts."""
    found: dict[str, Any] = {}
    for mark in test.iter_markers("constraints"):
        said = f"@pytest.mark.{mark.name}"
        check_known_keys(said, mark.kwargs, _MARKED)
        if len(mark.args) > len(_MARKED) or set(_MARKED[: len(mark.args)]) & set(mark.kwargs):
            given = ", ".join(map(repr, mark.args))
            raise InvalidInputError(f"{said}({given}, ...): takes rules and input_shape, each once")
        found = {**dict(zip(_MARKED, mark.args, strict=False)), **mark.kwargs, **found}
    return found


def _name_of(test: pytest.Item) -> str:
    """Return the id of a test without its parameters."""
    place = test.nodeid.removesuffix(test.name)
    return f"{place}{getattr(test, 'originalname', None) or test.name}"


def _from_here(test: pytest.Item) -> str:
    """Return the id of a test as it is asked for from the folder that pytest was started in."""
    file, _, rest = _name_of(test).partition("::")
    here = test.config.invocation_params.dir
    return f"{os.path.relpath(test.config.rootpath / file, here)}::{rest}"
