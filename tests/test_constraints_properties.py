"""What must hold of any rule, on any network: monotone, three-valued, blind to names."""

import copy
import dataclasses
import functools
import itertools
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from random_networks import SHAPE
from rule_strategies import (
    KINDS_OF_LAYERS,
    MEASURED,
    NUMBERS,
    SIMPLE,
    any_network,
    count_of,
    looser,
    percents,
    records,
    rules,
    simple_rules,
)
from torch import nn

from constrained_cnn import constraints
from constrained_cnn.constraints import (
    Accuracy,
    AllOf,
    AnyOf,
    BlockOrder,
    CannotTellError,
    CleanPrediction,
    ConvsBeforePool,
    Count,
    CoversInput,
    Distance,
    Dropout,
    EveryNormFolds,
    FieldAtPools,
    FieldSize,
    Finding,
    LastEpochs,
    Macs,
    Measured,
    Memory,
    Not,
    Padding,
    Parameters,
    Report,
    Rule,
    Subject,
    Verdict,
    check,
)
from constrained_cnn.errors import ConstrainedCNNError, InvalidInputError, TracingError
from constrained_cnn.graph import Graph
from constrained_cnn.record import RunRecord
from constrained_cnn.tracing import trace

PASS, FAIL, CANNOT_TELL = Verdict.PASS, Verdict.FAIL, Verdict.CANNOT_TELL
Runs = tuple[RunRecord, ...]


def traced(network: nn.Module) -> Graph:
    """Return the graph; leave the example out if the image is too small for the network."""
    try:
        return trace(network, SHAPE, strict=False)
    except TracingError as error:
        assert "cannot take an input" in str(error)  # noqa: PT017
        assume(False)
        raise


class Drawn:
    """A network as it runs, and records of its runs; told in a line."""

    def __init__(self, graph: Graph, runs: Runs) -> None:
        self.graph, self.runs = graph, runs

    def __repr__(self) -> str:
        ops = ", ".join(layer.name for layer in self.graph.layers)
        return f"[{ops}] with {len(self.runs)} records"


@st.composite
def subjects(draw: st.DrawFn) -> Drawn:
    """Draw a network as it runs, with or without records of its runs."""
    graph = traced(draw(any_network))
    parameters = sum(weight.elements for weight in graph.weights if not weight.buffer)
    runs = draw(st.lists(records(parameters), max_size=3))
    return Drawn(graph, tuple(runs))


def judged(subject: Drawn, rule: Rule) -> Finding:
    return check(subject.graph, constraints=rule, run=subject.runs).findings[0]


def verdict(subject: Drawn, rule: Rule) -> Verdict:
    return judged(subject, rule).verdict


def unnamed(rule: Rule) -> Rule:
    return dataclasses.replace(rule, name="")


def test_every_kind_of_rule_has_a_strategy() -> None:
    classes = [one for one in vars(constraints).values() if isinstance(one, type)]
    kinds = {one.kind for one in classes if issubclass(one, Rule) and one.kind}
    assert kinds == {*SIMPLE, "all", "any", "not"}


# Limits -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", MEASURED)
@settings(max_examples=15)
@given(data=st.data(), subject=subjects())
def test_looser_limits_turn_no_pass_into_fail(
    kind: str, data: st.DataObject, subject: Drawn
) -> None:
    rule = data.draw(MEASURED[kind])
    loose = data.draw(looser(rule, NUMBERS[kind]))
    tight_verdict, loose_verdict = verdict(subject, rule), verdict(subject, loose)
    if tight_verdict is PASS:
        assert loose_verdict is PASS
    if loose_verdict is FAIL:
        assert tight_verdict is FAIL


@settings(max_examples=40)
@given(rule=MEASURED["last_epochs"], fewer=st.integers(1, 20), subject=subjects())
def test_fewer_last_epochs_turn_no_pass_into_fail(
    rule: LastEpochs, fewer: int, subject: Drawn
) -> None:
    assume(subject.runs)
    short = dataclasses.replace(rule, last=min(rule.last, fewer))
    if verdict(subject, rule) is PASS:
        assert verdict(subject, short) is PASS


def allows(rule: Measured, number: float) -> bool:
    """Say whether the limits allow a number, limit by limit."""
    return (
        (rule.at_least is None or number >= rule.at_least)
        and (rule.at_most is None or number <= rule.at_most)
        and (rule.exactly is None or number == rule.exactly)
        and (not rule.one_of or number in rule.one_of)
        and (rule.near is None or abs(number - rule.near) <= (rule.within or 0))
    )


@settings(max_examples=100)
@given(rule=st.one_of(*MEASURED.values()), subject=subjects())
def test_the_verdict_is_that_of_the_limits_one_by_one(rule: Measured, subject: Drawn) -> None:
    assume(subject.runs or not rule.of_run)
    finding = judged(subject, rule)
    try:
        found = rule.measure(Subject(subject.graph, subject.runs))
    except (CannotTellError, ConstrainedCNNError):
        assume(False)
        raise
    assume(finding.verdict is not CANNOT_TELL and not isinstance(rule, LastEpochs))
    if not found.at_least:
        kept = all(allows(rule, number) for number in found.values)
        left_out = any(said.startswith("left out") for said in finding.evidence)
        assert finding.verdict is (PASS if kept and not left_out else FAIL)
        return
    # The true number may be this or any larger one; what is said must hold for each of them.
    for more in (0, 1, 2, 7, 100, 10**6):
        kept = all(allows(rule, number + more) for number in found.values)
        assert finding.verdict is (PASS if kept else FAIL)


@settings(max_examples=100)
@given(rule=simple_rules, subject=subjects())
def test_the_sign_of_the_margin_agrees_with_the_verdict(rule: Rule, subject: Drawn) -> None:
    finding = judged(subject, rule)
    assume(finding.margin is not None and finding.verdict is not CANNOT_TELL)
    assert finding.margin is not None
    assert (finding.margin >= 0) == (finding.verdict is PASS)


@settings(max_examples=40)
@given(rule=st.one_of(*MEASURED.values()), subject=subjects())
def test_the_sign_of_the_margin_of_a_negation_agrees_with_its_verdict(
    rule: Measured, subject: Drawn
) -> None:
    finding = judged(subject, ~rule)
    assume(finding.margin is not None and finding.verdict is not CANNOT_TELL)
    assert finding.margin is not None
    assert (finding.margin >= 0) == (finding.verdict is PASS)


@given(near=percents, errors=st.integers(0, 10_000), hundredths=st.integers(1, 500))
@example(near=99.4, errors=70, hundredths=10)
def test_near_is_judged_in_decimals(near: float, errors: int, hundredths: int) -> None:
    """Both sides in whole hundredths of a percent, as a person reads them."""
    accuracy = 100 * (10_000 - errors) / 10_000
    rule = Accuracy(near=near, within=hundredths / 100)
    apart = abs((10_000 - errors) - round(100 * near))
    assert rule.limits.judge([accuracy])[0] is (PASS if apart <= hundredths else FAIL)


# Three values -------------------------------------------------------------------------------------


@dataclass(frozen=True, repr=False)
class Says(Rule):
    """Says one thing of whatever network; with ``why`` it cannot tell, and raises."""

    kind: ClassVar[str] = "says"
    says: Verdict
    why: str = ""

    @property
    def title(self) -> str:
        return self.says.value

    @property
    def required(self) -> str:
        return "nothing"

    def find(self, subject: Subject) -> Finding:
        if self.why:
            raise CannotTellError(self.why)
        return self.finding(self.says, self.says.value)


@dataclass(frozen=True, repr=False)
class OfARun(Says):
    """Says it of a run."""

    kind: ClassVar[str] = "says of a run"
    of_run: ClassVar[bool] = True


STUBS: tuple[Rule, ...] = (
    *map(Says, (PASS, FAIL, CANNOT_TELL)),
    Says(CANNOT_TELL, "nobody knows"),
    OfARun(PASS),
)
Law = Callable[..., tuple[Rule, Rule]]
YES, NO = Says(PASS), Says(FAIL)
LAWS: dict[str, Law] = {
    "and commutes": lambda a, b: (a & b, b & a),
    "or commutes": lambda a, b: (a | b, b | a),
    "and is associative": lambda a, b, c: ((a & b) & c, a & (b & c)),
    "or is associative": lambda a, b, c: ((a | b) | c, a | (b | c)),
    "and of three": lambda a, b, c: (AllOf((a, b, c)), (a & b) & c),
    "or of three": lambda a, b, c: (AnyOf((a, b, c)), (a | b) | c),
    "and is idempotent": lambda a: (a & a, a),
    "or is idempotent": lambda a: (a | a, a),
    "all of one": lambda a: (AllOf((a,)), a),
    "any of one": lambda a: (AnyOf((a,)), a),
    "not and": lambda a, b: (~(a & b), ~a | ~b),
    "not or": lambda a, b: (~(a | b), ~a & ~b),
    "not not": lambda a: (~~a, a),
    "the operator is the class": lambda a: (~a, Not(a)),
    "and identity": lambda a: (a & YES, a),
    "or identity": lambda a: (a | NO, a),
    "and with fail": lambda a: (a & NO, NO),
    "or with pass": lambda a: (a | YES, YES),
    "and absorbs": lambda a, b: (a & (a | b), a),
    "or absorbs": lambda a, b: (a | (a & b), a),
    "and distributes": lambda a, b, c: (a & (b | c), (a & b) | (a & c)),
    "or distributes": lambda a, b, c: (a | (b & c), (a | b) & (a | c)),
}
# Where a part could be left out, whether the whole counts cannot follow every law.
OF_ONE_ANSWER = {law for law in LAWS if "absorb" not in law and "distribute" not in law}


def width(law: Law) -> int:
    return law.__code__.co_argcount


@functools.cache
def plain_graph() -> Graph:
    return trace(nn.Sequential(nn.Conv2d(2, 2, 3), nn.ReLU()), SHAPE)


@pytest.mark.parametrize("name", LAWS)
def test_answers_combine_by_the_logic_of_kleene(name: str) -> None:
    law = LAWS[name]
    for stubs in itertools.product(STUBS, repeat=width(law)):
        left, right = (check(plain_graph(), constraints=one).findings[0] for one in law(*stubs))
        assert left.verdict is right.verdict, stubs
        if name in OF_ONE_ANSWER:
            assert left.judged == right.judged, stubs


@pytest.mark.parametrize("join", [AllOf, AnyOf])
def test_and_is_the_least_and_or_the_greatest(join: Any) -> None:
    order = [FAIL, CANNOT_TELL, PASS]
    for stubs in itertools.product(STUBS[:4], repeat=3):
        ranks = [order.index(stub.says) for stub in stubs if isinstance(stub, Says)]
        wanted = order[min(ranks) if join is AllOf else max(ranks)]
        assert check(plain_graph(), constraints=join(stubs)).verdict is wanted


@pytest.mark.parametrize("name", LAWS)
@settings(max_examples=8)
@given(data=st.data(), subject=subjects())
def test_real_rules_combine_by_the_logic_of_kleene(
    name: str, data: st.DataObject, subject: Drawn
) -> None:
    law = LAWS[name]
    given_rules = [data.draw(simple_rules) for _ in range(width(law))]
    left, right = (judged(subject, one) for one in law(*given_rules))
    assert left.verdict is right.verdict


@settings(max_examples=100)
@given(rule=rules, subject=subjects())
def test_a_rule_and_its_negation_neither_both_pass_nor_both_fail(
    rule: Rule, subject: Drawn
) -> None:
    one, other = judged(subject, rule), judged(subject, ~rule)
    assert {one.verdict, other.verdict} in ({PASS, FAIL}, {CANNOT_TELL})
    assert one.judged == other.judged
    assert one.measured == other.measured


@settings(max_examples=40)
@given(rule=simple_rules, subject=subjects())
def test_a_rule_neither_excludes_nor_assures_more_than_it_knows(rule: Rule, subject: Drawn) -> None:
    assert verdict(subject, rule & ~rule) is not PASS
    assert verdict(subject, rule | ~rule) is not FAIL


# What a verdict does not depend on ----------------------------------------------------------------


class Renamed(nn.Module):
    """The same network under other names, and deeper."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.relu = nn.ModuleDict({"dropout": nn.Sequential(nn.Identity(), network)})
        self.max_pool = nn.Identity()

    def forward(self, picture: Any) -> Any:
        return self.max_pool(self.relu["dropout"](picture))


def said(finding: Finding) -> tuple[Any, ...]:
    """Return all that names of modules have no part in."""
    parts = tuple(map(said, finding.parts))
    return finding.verdict, finding.required, finding.measured, finding.margin, parts


def names_a_module(rule: Rule) -> bool:
    if isinstance(rule, AllOf | AnyOf):
        return any(map(names_a_module, rule.of))
    if isinstance(rule, Not):
        return names_a_module(rule.of)
    return isinstance(rule, FieldSize | CoversInput) and rule.layer is not None


@pytest.mark.parametrize(
    "wrap",
    [
        Renamed,
        nn.Sequential,
        lambda network: nn.Sequential(nn.Identity(), network, nn.Identity()),
        lambda network: nn.Sequential(*(nn.Sequential(part) for part in network)),
        lambda network: network.train(),
    ],
    ids=["renamed", "nested", "with identities", "part by part", "in training mode"],
)
@settings(max_examples=30)
@given(network=any_network, asked=st.lists(rules, min_size=1, max_size=6))
def test_names_and_nesting_change_nothing(wrap: Any, network: nn.Module, asked: list[Rule]) -> None:
    asked = [rule for rule in asked if not names_a_module(rule)]
    one, other = traced(network.eval()), traced(wrap(network))
    for rule in asked:
        before, after = (check(graph, constraints=rule).findings[0] for graph in (one, other))
        assert said(before) == said(after)


@settings(max_examples=30)
@given(network=any_network, asked=st.lists(rules.map(unnamed), min_size=1, max_size=6))
def test_judging_twice_gives_equal_findings(network: nn.Module, asked: list[Rule]) -> None:
    graph = traced(network)
    reports = [check(graph, constraints=asked), check(graph, constraints=asked)]
    reports.append(check(copy.deepcopy(network), SHAPE, asked))
    assert reports[0].findings == reports[1].findings == reports[2].findings
    assert reports[0] == reports[1]


@settings(max_examples=30)
@given(data=st.data(), subject=subjects())
def test_the_order_of_rules_changes_nothing(data: st.DataObject, subject: Drawn) -> None:
    asked = data.draw(st.lists(rules.map(unnamed), min_size=2, max_size=6))
    order = data.draw(st.permutations(range(len(asked))))

    def report(of: Sequence[Rule]) -> Report:
        return check(subject.graph, constraints=list(of), run=subject.runs)

    straight, mixed = report(asked), report([asked[i] for i in order])
    assert [straight.findings[i] for i in order] == list(mixed.findings)
    assert straight.ok is mixed.ok
    assert list(straight.findings) == [judged(subject, rule) for rule in asked]


@settings(max_examples=40)
@given(data=st.data(), subject=subjects(), require_run=st.booleans())
def test_a_report_is_the_conjunction_of_what_is_judged(
    data: st.DataObject, subject: Drawn, require_run: bool
) -> None:
    asked = data.draw(st.lists(rules.map(unnamed), min_size=1, max_size=6))
    report = check(subject.graph, constraints=asked, run=subject.runs, require_run=require_run)
    verdicts = [finding.verdict for finding in report.findings if finding.judged]
    # Nothing is kept where nothing is judged.
    unclear = CANNOT_TELL in verdicts or not verdicts
    wanted = False if FAIL in verdicts else None if unclear else True
    assert report.ok is wanted
    assert [finding.rule for finding in report.findings] == asked
    assert len(report.failed) == verdicts.count(FAIL)
    assert len(report.unclear) == verdicts.count(CANNOT_TELL)
    if require_run or subject.runs:
        assert all(finding.judged for finding in report.findings)


def state_of(network: nn.Module) -> dict[str, Any]:
    return {
        "tensors": {name: tensor.clone() for name, tensor in network.state_dict().items()},
        "places": {name: id(tensor) for name, tensor in network.named_parameters()},
        "gradients": {name: tensor.grad for name, tensor in network.named_parameters()},
        "training": [module.training for module in network.modules()],
        "hooks": [len(module._forward_hooks) for module in network.modules()],
        "attributes": [sorted(vars(module)) for module in network.modules()],
    }


def same(one: Any, other: Any) -> bool:
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    return torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other


@settings(max_examples=30)
@given(network=any_network, asked=st.lists(rules.map(unnamed), min_size=1), train=st.booleans())
def test_the_network_and_the_random_numbers_stay_as_they_were(
    network: nn.Module, asked: list[Rule], train: bool
) -> None:
    network.train(train)
    for part in list(network.children())[:1]:
        part.train(not train)  # a mode that a blunt .train() afterwards would lose
    traced(copy.deepcopy(network))
    before = state_of(network)
    numbers = torch.get_rng_state(), random.getstate(), str(np.random.get_state())  # noqa: NPY002
    check(network, SHAPE, asked)
    assert same(before, state_of(network))
    assert torch.equal(numbers[0], torch.get_rng_state())
    assert numbers[1] == random.getstate()
    assert numbers[2] == str(np.random.get_state())  # noqa: NPY002


def test_huge_limits_are_judged_like_others() -> None:
    huge = [Parameters(at_most=10**18), Count("conv", at_least=10**18)]
    assert [one.verdict for one in check(plain_graph(), constraints=huge).findings] == [PASS, FAIL]
    with pytest.raises(InvalidInputError, match=r"at_most=1000.*: must be at most"):
        Parameters(at_most=10**400)


# Networks out of the ordinary ---------------------------------------------------------------------


class Calls(nn.Module):
    """Calls a function of the input and of some layers."""

    def __init__(self, function: Callable[..., Any], *layers: nn.Module) -> None:
        super().__init__()
        self.function, self.layers = function, nn.ModuleList(layers)

    def forward(self, x: Any) -> Any:
        return self.function(x, *self.layers)


def _only_in_evaluation(x: Any, conv: nn.Module) -> Any:
    if conv.training:
        raise RuntimeError("no training")
    return conv(x)


ODD: dict[str, Callable[[], nn.Module]] = {
    "nothing": nn.Identity,
    "channels padded": lambda: Calls(
        lambda x, conv: conv(F.pad(x, (1, 1, 1, 1, 0, 1))), nn.Conv2d(3, 2, 3)
    ),
    "channels not padded": lambda: Calls(
        lambda x, conv: conv(F.pad(x, (1, 1, 1, 1, 0, 0))), nn.Conv2d(2, 2, 3)
    ),
    "columns padded": lambda: Calls(lambda x, conv: conv(F.pad(x, (1, 1))), nn.Conv2d(2, 2, 3)),
    "cropped": lambda: Calls(lambda x, conv: conv(F.pad(x, (-1, -1))), nn.Conv2d(2, 2, 3)),
    "reflected": lambda: nn.Sequential(nn.ReflectionPad2d(1), nn.Conv2d(2, 2, 3)),
    "one number a sample": lambda: Calls(
        lambda x, conv, drop: drop(conv(x).mean((1, 2, 3)).relu()),
        *(nn.Conv2d(2, 2, 3), nn.Dropout(0.1)),
    ),
    "one number": lambda: Calls(lambda x, conv: conv(x).mean(), nn.Conv2d(2, 2, 3)),
    "no training": lambda: Calls(_only_in_evaluation, nn.Conv2d(2, 2, 3)),
    "rows as time": lambda: Calls(
        lambda x, lstm: lstm(x.flatten(2))[0], nn.LSTM(156, 3, 2, dropout=0.1, batch_first=True)
    ),
    "attention": lambda: Calls(
        lambda x, layer: layer(x.flatten(2)),
        nn.TransformerEncoderLayer(156, 2, 8, batch_first=True),
    ),
    "a table of outputs": lambda: Calls(lambda x, conv: {"a": conv(x), "b": x}, nn.Conv2d(2, 2, 1)),
    "places of the largest": lambda: Calls(
        lambda x, pool: pool(x), nn.MaxPool2d(2, return_indices=True)
    ),
}
EVERY_LAYER = (*KINDS_OF_LAYERS, "global_average_pool")


def rules_of_every_kind() -> list[Rule]:
    found: list[Rule] = [CoversInput(), Dropout(0.1), CleanPrediction(), BlockOrder(("conv",))]
    for layer in EVERY_LAYER:
        found += [count_of(layer=layer, at_most=0, narrows=how) for how in (None, True, False)]
        filters = {"kernel": 3, "stride": 1, "dilation": 1, "bias": True}
        found += [count_of(layer=layer, at_least=1, **filters)]
    for layer in KINDS_OF_LAYERS:
        found += [Distance(layer, at_least=1), CleanPrediction((layer,))]
    for cells in (1, "same", (1, 1)):
        found += [Padding(cells), Padding(cells, kernel=3)]
    found += [FieldSize(at_least=1), Macs(at_most=1), ConvsBeforePool(kernel=3, at_most=1)]
    found += [FieldAtPools(at_least=1, counted=how) for how in ("stage", "image")]
    found += [EveryNormFolds()]
    found += [Memory(at_most=1, accounting=of) for of in ("int8 peak", "saved for backward")]
    return found


@pytest.mark.parametrize("name", ODD)
def test_no_rule_raises_on_an_odd_network(name: str) -> None:
    graph = trace(ODD[name](), SHAPE, strict=False)
    raised = {}
    for rule in rules_of_every_kind():
        try:
            finding = check(graph, constraints=rule).findings[0]
        except Exception as error:  # noqa: BLE001 - whatever it is, it is a defect
            raised[repr(rule)] = repr(error)
        else:
            assert finding.verdict is not CANNOT_TELL or finding.evidence
    assert not raised
