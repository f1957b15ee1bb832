"""The check of a network, and of the records of its runs, against rules."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from torch import nn

from constrained_cnn.constraints._constraints import Constraints
from constrained_cnn.constraints._reading import get_constraints, load_constraints
from constrained_cnn.constraints._report import Report
from constrained_cnn.constraints._rule import Finding, Rule
from constrained_cnn.constraints._subject import Subject
from constrained_cnn.errors import InvalidInputError, TracingError, check_flag
from constrained_cnn.graph import Graph
from constrained_cnn.record import RunRecord
from constrained_cnn.tracing import as_graph
from constrained_cnn.tracing._inputs import BatchAxis


def check(
    model: nn.Module | Graph,
    input_shape: Sequence[int] | None = None,
    constraints: Constraints | Rule | Sequence[Rule] | str | os.PathLike[str] | None = None,
    *,
    run: RunRecord | Sequence[RunRecord] | None = None,
    inputs: Sequence[Any] | Mapping[str, Any] | None = None,
    batch_axis: BatchAxis = "auto",
    require_run: bool = False,
) -> Report:
    """Judge a network, and the records of its runs, by rules.

    Rules are judged on what runs, not on what is declared; the network is run without data, once in
    evaluation mode and once in training mode. What cannot be known is "cannot tell", never pass.

    Args:
        model: The network, or its :class:`~constrained_cnn.graph.Graph`.
        input_shape: Shape of one sample, ``(channels, *image)``; not for a graph.
        constraints: The rules: :class:`Constraints`, one rule, a list of them, a file ``*.toml``,
            or the name of rules that come with the package, such as ``"mnist-12k"``.
        run: The record of a run of this network, or of several. Without one, rules on a run are
            listed and do not count.
        inputs: All inputs, for a network with several, as in
            :func:`~constrained_cnn.tracing.trace`.
        batch_axis: Which axis of them is the batch, as in :func:`~constrained_cnn.tracing.trace`.
        require_run: Whether rules on a run count without a record too: then they cannot be told.

    Raises:
        InvalidInputError: If an argument breaks its rule, or a record is of another network.
        TracingError: If the network cannot run.

    Examples:
        >>> from constrained_cnn.constraints import Count, Parameters
        >>> net = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Dropout(0.0))
        >>> rules = [Parameters(at_most=100), Count("dropout", at_least=1)]
        >>> report = check(net, (1, 28, 28), rules)
        >>> report.ok, [finding.ok for finding in report.findings]
        (False, [True, False])
        >>> print(report.failed[0].evidence[0])
        2: dropout: p = 0 drops nothing
    """
    rules = as_constraints(constraints)
    check_flag("require_run", require_run)
    records = _records(run)
    graph = _graph(partial(as_graph, model, input_shape, inputs=inputs, batch_axis=batch_axis))
    subject = Subject(graph, records)
    _check_records(subject)
    try:
        findings = [rule.judge(subject) for rule in rules]
    except RecursionError as error:
        raise InvalidInputError("rules: lie in one another too deep to be judged") from error
    if require_run:
        findings = list(map(_required, findings))
    return Report(
        graph.model,
        tuple(graph.values[number].sample_shape for number in graph.inputs),
        rules.name,
        tuple(findings),
        tuple(f"{record.recipe} seed {record.seed}" for record in records),
    )


def _required(finding: Finding) -> Finding:
    """Return a finding that counts, and so do its parts."""
    return replace(finding, judged=True, parts=tuple(map(_required, finding.parts)))


def as_constraints(constraints: Any) -> Constraints:
    """Return the constraints that an argument stands for.

    Raises:
        InvalidInputError: If it stands for none.
    """
    if isinstance(constraints, Constraints):
        return constraints
    if isinstance(constraints, os.PathLike) or str(constraints).endswith(".toml"):
        return load_constraints(constraints)
    if isinstance(constraints, str):
        try:
            return get_constraints(constraints)
        except InvalidInputError as error:
            raise InvalidInputError(f"{error}; rules of your own are a file: FILE.toml") from error
    if isinstance(constraints, Rule):
        return Constraints((constraints,))
    if isinstance(constraints, list | tuple):
        return Constraints(tuple(constraints))
    raise InvalidInputError(
        f"constraints={constraints!r}: must be Constraints, a rule, a list of rules, a file "
        "*.toml, or the name of rules that come with the package, such as 'mnist-12k'"
    )


def _records(run: Any) -> tuple[RunRecord, ...]:
    records = () if run is None else (run,) if isinstance(run, RunRecord) else run
    if not isinstance(records, list | tuple) or not all(
        isinstance(record, RunRecord) for record in records
    ):
        raise InvalidInputError(
            f"run={run!r}: must be a RunRecord, or a list of them; RunRecord.load reads one"
        )
    return tuple(record for i, record in enumerate(records) if record not in records[:i])


def _graph(build: Callable[..., Graph]) -> Graph:
    """Return the graph; where operations are not known, with what is known of the others."""
    try:
        return build(repeat=True)
    except TracingError as error:
        try:
            return build(repeat=True, strict=False)
        except TracingError:
            raise error from error.__cause__


def _check_records(subject: Subject) -> None:
    weights = [weight for weight in subject.graph.weights if not weight.buffer]
    there = sum(weight.elements for weight in weights)
    for record in subject.runs:
        if record.parameters != there:
            raise InvalidInputError(
                f"run: the record of {record.model} (seed {record.seed}) is of a network with "
                f"{record.parameters:,} parameters, and this one has {there:,}; give the record of "
                "a run of this network"
            )
        noted = record.weight_shapes
        if noted is not None and list(map(tuple, noted)) != [weight.shape for weight in weights]:
            raise InvalidInputError(
                f"run: the record of {record.model} (seed {record.seed}) is of a network whose "
                "weights have other shapes; give the record of a run of this network"
            )
