# ruff: noqa: E501 - one line for each trap
"""Networks that look as if they kept a rule, or broke it, and do not: one line for each.

A line says: what is odd, the network, the rule, the verdict, and what must be said of it. All read
2 x 8 x 8 unless they say so.
"""

import functools
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import trap_networks as nets
from torch import nn
from trap_networks import SHAPE, Net, after_conv, conv, dead, dropped, ending, idle, with_weight

from constrained_cnn.constraints import (
    BlockOrder,
    CleanPrediction,
    ConvsBeforePool,
    Count,
    CoversInput,
    Distance,
    Dropout,
    FieldAtPools,
    FieldSize,
    Macs,
    Padding,
    Parameters,
    Rule,
    check,
)
from constrained_cnn.errors import TracingError
from constrained_cnn.graph import Graph
from constrained_cnn.tracing import trace

PASS, FAIL, OPEN = "pass", "fail", "cannot tell"
NOT_PASS, NOT_FAIL = (FAIL, OPEN), (PASS, OPEN)

SOME = {word: Count(word, at_least=1) for word in ("conv", "relu", "max_pool", "avg_pool")}
CONV, RELU, MAX_POOL, AVG_POOL = SOME.values()
BN = Count("batch_norm", at_least=1)
DROP = Count("dropout", at_least=1)
FC = Count("fully_connected", at_least=1)
GAP = Count("global_average_pool", at_least=1)
P = Dropout(0.07)
CLEAN = CleanPrediction()


def none(word: str, **more: Any) -> Count:
    return Count(word, at_most=0, **more)


def exactly(number: int, word: str, **more: Any) -> Count:
    return Count(word, exactly=number, **more)


@dataclass(frozen=True)
class Trap:
    """A network, a rule, and what is right to say of them.

    Attributes:
        name: What is odd.
        make: Makes the network.
        rule: The rule.
        verdict: The only right verdict, or those that are not wrong.
        says: What the evidence or the measured words must match.
        never: What they must not match.
        shape: What the network reads.
        inputs: All its inputs, if there are several.
    """

    name: str
    make: Callable[[], nn.Module]
    rule: Rule
    verdict: str | tuple[str, ...]
    says: str = ""
    never: str = ""
    shape: tuple[int, ...] = SHAPE
    inputs: tuple[Any, ...] | None = None


def traps(*lines: Trap) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("trap", [pytest.param(line, id=line.name) for line in lines])


@functools.cache
def graph_of(
    make: Callable[[], nn.Module], shape: tuple[int, ...], inputs: tuple[Any, ...] | None
) -> Graph:
    """Trace a network, as check would, once for all lines about it."""
    net, one = make(), None if inputs else shape
    try:
        return trace(net, one, inputs=inputs)
    except TracingError:
        return trace(net, one, inputs=inputs, strict=False)


def judge(trap: Trap) -> None:
    try:
        graph = graph_of(trap.make, trap.shape, trap.inputs)
    except TracingError:
        # Up to torch 2.6 nothing gets into a vmap; an error that says so is no pass.
        assert "vmap" in trap.name
        return
    (finding,) = check(graph, None, trap.rule).findings
    right = (trap.verdict,) if isinstance(trap.verdict, str) else trap.verdict
    told = "\n".join((finding.measured, *finding.evidence))
    assert finding.verdict.value in right, told
    assert re.search(trap.says, told, re.DOTALL | re.IGNORECASE), told
    assert not trap.never or not re.search(trap.never, told, re.DOTALL | re.IGNORECASE), told
    if finding.verdict.value == OPEN:
        assert finding.evidence, "it does not say why it cannot tell"


# fmt: off
# From here on a line is a trap, however long it is.

# Declared ---------------------------------------------------------------------------------------

NEVER = "never called"


@traps(
    Trap("fc", lambda: idle(fc=nn.Linear(4, 3)), FC, FAIL, f"{NEVER}.*fc"),
    Trap("dropout", lambda: idle(drop=nn.Dropout(0.07)), DROP, FAIL, f"{NEVER}.*drop"),
    Trap("dropout 2d", lambda: idle(drop=nn.Dropout2d(0.07)), DROP, FAIL, f"{NEVER}.*drop"),
    Trap("its p", lambda: idle(drop=nn.Dropout(0.5)), P, PASS, f"{NEVER}.*drop"),
    Trap("batch norm", lambda: idle(bn=nn.BatchNorm2d(4)), BN, FAIL, f"{NEVER}.*bn"),
    Trap("GAP", lambda: idle(gap=nn.AdaptiveAvgPool2d(1)), GAP, FAIL, f"{NEVER}.*gap"),
    Trap("max-pool", lambda: idle(pool=nn.MaxPool2d(2)), MAX_POOL, FAIL, f"{NEVER}.*pool"),
    Trap("relu", lambda: idle(act=nn.ReLU()), RELU, FAIL, f"{NEVER}.*act"),
    Trap("conv", lambda: idle(more=conv(4, 4)), exactly(1, "conv"), PASS, "body"),
    Trap("no max-pool", lambda: idle(pool=nn.MaxPool2d(2)), none("max_pool"), PASS),
    Trap("no fc", lambda: idle(fc=nn.Linear(4, 3)), none("fully_connected"), PASS),
    Trap("batch norm, renamed", lambda: idle(bn=nets.Scale(4)), BN, FAIL, f"{NEVER}.*bn"),
    Trap("dropout, renamed", lambda: idle(drop=nets.Regular()), DROP, FAIL, f"{NEVER}.*drop"),
    Trap("clean", lambda: idle(act=nn.ReLU(), bn=nn.BatchNorm2d(4)), CLEAN, PASS),
)
def test_declared_and_never_called(trap: Trap) -> None:
    judge(trap)


@traps(
    Trap("conv", lambda: dead(more=conv(4, 4)), Count("conv", at_least=2), FAIL, "more.*depends"),
    Trap("bn", lambda: dead(bn=nn.BatchNorm2d(4)), BN, FAIL, "bn.*no output depends"),
    Trap("dropout", lambda: dead(drop=nn.Dropout(0.07)), DROP, FAIL, "drop.*no output depends"),
    Trap("GAP", lambda: dead(gap=nn.AdaptiveAvgPool2d(1)), GAP, FAIL, "gap.*no output depends"),
    Trap("relu", lambda: dead(act=nn.ReLU()), RELU, FAIL, "act.*no output depends"),
    Trap("max-pool", lambda: dead(pool=nn.MaxPool2d(2)), MAX_POOL, FAIL, "pool.*no output"),
    Trap("at most 1 conv", lambda: dead(more=conv(4, 4)), Count("conv", at_most=1), FAIL, "more"),
    Trap("no bn", lambda: dead(bn=nn.BatchNorm2d(4)), none("batch_norm"), FAIL, "bn"),
    Trap("no dropout", lambda: dead(drop=nn.Dropout(0.07)), none("dropout"), FAIL, "drop"),
    Trap("no GAP", lambda: dead(g=nn.AvgPool2d(8)), none("global_average_pool"), FAIL, "g:"),
    Trap("no max-pool", lambda: dead(pool=nn.MaxPool2d(2)), none("max_pool"), FAIL, "pool"),
    Trap("exactly 1 conv", lambda: dead(c=conv(4, 4)), exactly(1, "conv"), FAIL, "c: conv2d"),
    Trap("two or none", lambda: dead(c=conv(4, 4)), Count("conv", one_of=(1, 3)), FAIL, "c: conv"),
    Trap("not at least 2", lambda: dead(c=conv(4, 4)), ~Count("conv", at_least=2), PASS, "c: conv"),
    Trap("p of a dead one", lambda: dead(drop=nn.Dropout(0.5)), P, FAIL, "drop.*0.5"),
    Trap("clean", lambda: dead(act=nn.ReLU(), bn=nn.BatchNorm2d(4)), CLEAN, PASS),
    Trap("distance", lambda: dead(p=nn.MaxPool2d(2)), Distance("max_pool", at_least=5), PASS),
    Trap("fields", lambda: dead(p=nn.MaxPool2d(2)), FieldAtPools(exactly=9), PASS),
)
def test_what_runs_for_nothing(trap: Trap) -> None:
    """It is not counted for "at least", and it is for "at most"."""
    judge(trap)


def in_place(**modules: nn.Module) -> nn.Module:
    return nets.written_in_place(**modules)


@traps(
    Trap("relu", lambda: in_place(act=nn.ReLU(inplace=True)), RELU, PASS, "act"),
    Trap("dropout", lambda: in_place(d=nn.Dropout(0.07, inplace=True)), DROP, PASS, "d:"),
    Trap("p", lambda: in_place(d=nn.Dropout(0.5, inplace=True)), P, FAIL, "d:.*0.5"),
    Trap("not clean", lambda: in_place(act=nn.ReLU(inplace=True)), CLEAN, FAIL, "act"),
    Trap("not clean, dropout", lambda: in_place(d=nn.Dropout(inplace=True)), CLEAN, FAIL, "d:"),
)
def test_what_is_thrown_away_but_wrote_in_place(trap: Trap) -> None:
    judge(trap)


@traps(
    Trap("relu, clean", lambda: nets.through_a_view(lambda x: x[:, :2].relu_()), CLEAN, NOT_PASS),
    Trap("relu, some", lambda: nets.through_a_view(lambda x: x.flatten(2).relu_()), RELU, NOT_FAIL),
    Trap("relu of all, clean", lambda: nets.through_a_view(lambda x: x.view(-1).relu_()), CLEAN, NOT_PASS),
    Trap("dropout, clean", lambda: nets.through_a_view(lambda x: F.dropout(x[:, :2], 0.07, True, True)), CLEAN, NOT_PASS),
    Trap("dropout, some", lambda: nets.through_a_view(lambda x: F.dropout(x[:, :2], 0.07, True, True)), DROP, NOT_FAIL),
    Trap("no relu", lambda: nets.through_a_view(lambda x: x[:, :2].relu_()), none("relu"), FAIL, "relu"),
)
def test_what_is_written_through_a_view(trap: Trap) -> None:
    judge(trap)


@traps(
    Trap("bn by another name", lambda: nn.Sequential(conv(), nets.Scale(4)), BN, PASS, "1: batch"),
    Trap("dropout by another name", lambda: dropped(kind=nets.Regular), DROP, PASS, "drop"),
    Trap("p of such a one", lambda: dropped(0.5, nets.Regular), P, FAIL, "drop.*0.5"),
    Trap("BatchNorm2d that is none", lambda: nn.Sequential(conv(), nets.BatchNorm2d(4)), BN, FAIL),
    Trap("Dropout that is none", lambda: nn.Sequential(conv(), nets.Dropout()), DROP, FAIL),
    Trap("its p", lambda: nn.Sequential(conv(), nets.Dropout()), Dropout(0.5), PASS, "no dropout"),
    Trap("average that is a maximum", after_conv(nets.AdaptiveAvgPool2d()), GAP, FAIL),
    Trap("it is a max-pool", after_conv(nets.AdaptiveAvgPool2d()), none("max_pool"), FAIL),
    Trap("Linear that convolves", lambda: nets.Linear(2, 3, 3), FC, FAIL),
    Trap("F.batch_norm", after_conv(lambda x: F.batch_norm(x, None, None, training=True)), BN, PASS),
    Trap("no statistics kept", lambda: nn.Sequential(conv(), nn.BatchNorm2d(4, track_running_stats=False)), BN, PASS),
    Trap("not affine", lambda: nn.Sequential(conv(), nn.BatchNorm2d(4, affine=False)), BN, PASS),
    Trap("no bn but gn", lambda: nn.Sequential(conv(), nn.GroupNorm(2, 4)), BN, FAIL),
    Trap("instance norm", lambda: nn.Sequential(conv(), nn.InstanceNorm2d(4)), none("batch_norm"), PASS),
    Trap("a frozen bn is one", nets.frozen, BN, PASS, "1: batch_norm"),
    Trap("bn in a plain list", lambda: nets.lost_in_a_list(nn.BatchNorm2d(4, affine=False)), BN, PASS),
    Trap("dropout in a plain list", lambda: nets.lost_in_a_list(nn.Dropout(0.5)), P, FAIL, "dropout.*0.5"),
    Trap("module list", nets.module_list, exactly(2, "conv"), PASS, r"first\.1.*first\.0"),
    Trap("module dict", nets.module_list, exactly(2, "dropout"), PASS, r"more\.drop"),
    Trap("bn behind GAP", lambda: nn.Sequential(conv(), nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(4)), BN, PASS),
    Trap("no bn behind GAP", lambda: nn.Sequential(conv(), nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(4)), none("batch_norm"), FAIL),
)
def test_names_do_not_count(trap: Trap) -> None:
    judge(trap)


def test_weights_in_a_plain_list_are_refused() -> None:
    with pytest.raises(TracingError, match=r"batch_norm.*not registered"):
        check(nets.lost_in_a_list(nn.BatchNorm2d(4)), SHAPE, BN)


# Dropout ----------------------------------------------------------------------------------------

OFF = "off in training"
STILL = "evaluation"
ROUNDED = float(np.float32(0.07))


@traps(
    Trap("functional", nets.functional, DROP, PASS, "dropout"),
    Trap("functional, p", nets.functional, P, PASS, "0.07"),
    Trap("functional, wrong p", partial(nets.functional, 0.5), P, FAIL, "dropout.*0.5"),
    Trap("functional, in place", partial(nets.functional, 0.07, True), P, PASS, "0.07"),
    Trap("p = 0 is none", partial(dropped, 0.0), DROP, FAIL, "drop.*p = 0"),
    Trap("p = 0 is none, at most", partial(dropped, 0.0), none("dropout"), PASS, "drop.*p = 0"),
    Trap("p = 0 is not 0.07", partial(dropped, 0.0), P, FAIL, "drop.*p = 0"),
    Trap("p = 0, functional", partial(nets.functional, 0.0), DROP, FAIL, "p = 0"),
    Trap("one of p = 0", lambda: nn.Sequential(conv(), nn.Dropout(0.07), nn.Dropout(0.0)), P, FAIL, "2: dropout.*p = 0"),
    Trap("one object twice", nets.twice, exactly(2, "dropout"), PASS, "drop"),
    Trap("one object twice, p", partial(nets.twice, 0.5), P, FAIL, "drop.*0.5"),
    Trap("p changed after", partial(nets.changed_after, 0.5), P, FAIL, "1: dropout.*0.5"),
    Trap("p changed to right", partial(nets.changed_after, 0.2), Dropout(0.2), PASS, "0.2"),
    Trap("p changed to 0", partial(nets.changed_after, 0.0), DROP, FAIL, "1: dropout.*p = 0"),
    Trap("p rounded to float32", partial(dropped, ROUNDED), P, PASS),
    Trap("0.069 is not 0.07", partial(dropped, 0.069), P, FAIL, "drop.*0.069"),
    Trap("0.069 as float32 is not 0.07", partial(dropped, float(np.float32(0.069))), P, FAIL, "0.06"),
    Trap("0.0700001 is not 0.07", partial(dropped, 0.0700001), P, FAIL, "0.0700001"),
    Trap("on by default", nets.always_on, P, FAIL, f"dropout.*{STILL}"),
    Trap("on by default, counts", nets.always_on, DROP, PASS),
    Trap("on by default, asked for", nets.always_on, Dropout(0.07, off_in_evaluation=False), PASS),
    Trap("under an if", nets.only_if_training, P, PASS, "0.07"),
    Trap("under an if, counts", nets.only_if_training, DROP, PASS, "dropout"),
    Trap("in evaluation only, p", nets.only_in_evaluation, P, FAIL, STILL),
    Trap("in evaluation only, none", nets.only_in_evaluation, none("dropout"), FAIL, STILL),
    Trap("in evaluation only, some", nets.only_in_evaluation, DROP, FAIL, STILL),
    Trap("argument, on", nets.switched_by_input, P, FAIL, STILL, inputs=(SHAPE, True)),
    Trap("argument, on, counts", nets.switched_by_input, DROP, PASS, inputs=(SHAPE, True)),
    Trap("argument, off", nets.switched_by_input, DROP, FAIL, OFF, inputs=(SHAPE, False)),
    Trap("argument, off, p", nets.switched_by_input, P, PASS, inputs=(SHAPE, False)),
    Trap("argument, called", nets.asked_by_input, DROP, PASS, "drop", inputs=(SHAPE, True)),
    Trap("argument, not called", nets.asked_by_input, DROP, FAIL, f"{NEVER}.*drop", inputs=(SHAPE, False)),
    Trap("flag, on", partial(nets.switched_by_flag, True), DROP, PASS, "drop"),
    Trap("flag, off", partial(nets.switched_by_flag, False), DROP, FAIL, f"{NEVER}.*drop"),
    Trap("left in evaluation", nets.kept_in_evaluation, DROP, FAIL, f"drop.*{OFF}"),
    Trap("left in evaluation, p", nets.kept_in_evaluation, Dropout(0.5), PASS, OFF),
    Trap("left in training", nets.kept_in_training, P, FAIL, f"drop.*{STILL}"),
    Trap("of channels", partial(dropped, 0.07, nn.Dropout2d), P, PASS, "channel"),
    Trap("of channels, not elements", partial(dropped, 0.07, nn.Dropout2d), Dropout(0.07, drops="elementwise"), FAIL, "drop.*channel"),
    Trap("of elements, not channels", dropped, Dropout(0.07, drops="channel"), FAIL, "drop.*elementwise"),
    Trap("alpha", partial(dropped, 0.07, nn.AlphaDropout), DROP, PASS, "drop"),
    Trap("alpha, p", partial(dropped, 0.5, nn.AlphaDropout), P, FAIL, "drop.*0.5"),
    Trap("alpha, not elements", partial(dropped, 0.07, nn.AlphaDropout), Dropout(0.07, drops="elementwise"), FAIL, "drop.*alpha"),
    Trap("alpha of channels", partial(dropped, 0.07, nn.FeatureAlphaDropout), Dropout(0.07, drops="channel alpha"), PASS),
    Trap("alpha, in evaluation", after_conv(lambda x: F.alpha_dropout(x, 0.07, True)), P, FAIL, STILL),
    Trap("torch.dropout", after_conv(lambda x: torch.dropout(x, 0.07, True)), P, FAIL, STILL),
    Trap("in attention", partial(nets.attention, 0.07), DROP, PASS, "mix"),
    Trap("in attention, p", partial(nets.attention, 0.1), P, FAIL, "mix.*0.1"),
    Trap("in attention, right p", partial(nets.attention, 0.07), P, PASS, "attention"),
    Trap("in attention, p = 0", partial(nets.attention, 0.0), DROP, FAIL),
    Trap("in attention, none", partial(nets.attention, 0.1), none("dropout"), FAIL, "mix"),
    Trap("dot product", partial(nets.dot_product, 0.07), DROP, PASS, "scaled_dot"),
    Trap("dot product, p", partial(nets.dot_product, 0.1), P, FAIL, "0.1"),
    Trap("dot product, in evaluation", partial(nets.dot_product, 0.07), P, FAIL, STILL),
    Trap("in LSTM", partial(nets.recurrent, 0.07), DROP, PASS, "read"),
    Trap("in LSTM, p", partial(nets.recurrent, 0.2), P, FAIL, "read.*0.2"),
    Trap("in LSTM, none", partial(nets.recurrent, 0.2), none("dropout"), FAIL, "read"),
    Trap("in LSTM, p = 0", partial(nets.recurrent, 0.0), DROP, FAIL),
    Trap("LSTM of one layer drops nothing", partial(nets.recurrent, 0.2, 1), DROP, FAIL, "read"),
    Trap("LSTM of one layer, no p", partial(nets.recurrent, 0.2, 1), none("dropout"), PASS),
    Trap("in GRU, p", partial(nets.recurrent, 0.2, kind=nn.GRU), P, FAIL, "read.*0.2"),
    Trap("in RNN, p", partial(nets.recurrent, 0.2, kind=nn.RNN), P, FAIL, "read.*0.2"),
    Trap("encoder", partial(nets.transformer, 0.1), exactly(4, "dropout"), PASS, "self_attn"),
    Trap("encoder, p", partial(nets.transformer, 0.1), P, FAIL, "self_attn.*0.1"),
    Trap("of a weight, p", nets.dropped_weight, P, NOT_PASS),
    Trap("of a weight, none", nets.dropped_weight, none("dropout"), NOT_PASS),
    Trap("of ones, p", nets.locked(torch.ones_like), P, NOT_PASS),
    Trap("of ones for a channel, p", nets.locked(lambda x: torch.ones(x.shape[0], 4, 1, 1)), P, NOT_PASS),
    Trap("of ones, none", nets.locked(torch.ones_like), none("dropout"), NOT_PASS),
    Trap("of a position, p", nets.dropped_position, P, NOT_PASS),
    Trap("of a position, some", nets.dropped_position, DROP, NOT_FAIL),
    Trap("under vmap, p", after_conv(lambda x: torch.vmap(lambda y: F.dropout(y), randomness="different")(x)), P, NOT_PASS),
    Trap("in a hook, p", nets.hooked, P, FAIL, "dropout.*0.5"),
    Trap("second of two, p", after_conv(lambda x: F.dropout(F.dropout(x, 0.07), 0.5)), P, FAIL, "dropout #2: p = 0.5"),
    Trap("p = 1 drops all", partial(dropped, 1.0), DROP, PASS, "drop"),
)
def test_dropout(trap: Trap) -> None:
    judge(trap)


BY_HAND: dict[str, Any] = {
    "bernoulli": lambda x: torch.bernoulli(torch.full_like(x, 0.93)),
    "bernoulli in place": lambda x: torch.empty_like(x).bernoulli_(0.93),
    "rand_like": lambda x: (torch.rand_like(x) > 0.07).float(),
    "rand": lambda x: (torch.rand(x.shape) > 0.07).float(),
    "uniform": lambda x: (torch.empty_like(x).uniform_() > 0.07).float(),
    "of a sample": lambda x: x.new_empty(x.shape[0], 1, 1, 1).bernoulli_(0.93),
    "distribution": lambda x: torch.distributions.Bernoulli(0.93).sample(x.shape),
    "numpy": lambda x: torch.from_numpy(np.random.rand(*x.shape) > 0.07),  # noqa: NPY002
}


@pytest.mark.parametrize("how", BY_HAND)
@pytest.mark.parametrize("rule", [DROP, none("dropout"), P, CLEAN], ids=["some", "none", "p", "clean"])
def test_dropout_by_hand_cannot_be_told(rule: Rule, how: str) -> None:
    judge(Trap(how, nets.by_hand(BY_HAND[how]), rule, OPEN, "random"))


@traps(
    Trap("at least one besides", nets.by_hand(BY_HAND["rand"], nn.Dropout), DROP, PASS, "behind"),
    Trap("at least two", nets.by_hand(BY_HAND["rand"], nn.Dropout), Count("dropout", at_least=2), OPEN),
    Trap("at most none", nets.by_hand(BY_HAND["rand"], nn.Dropout), none("dropout"), FAIL, "behind"),
    Trap("wrong p besides", nets.by_hand(BY_HAND["rand"], nn.Dropout), P, FAIL, "behind.*0.5"),
    Trap("relu besides", nets.by_hand(BY_HAND["rand"], nn.ReLU), CLEAN, FAIL, "behind"),
    Trap("convs can be told", nets.by_hand(BY_HAND["rand"]), exactly(1, "conv"), PASS, "conv"),
    Trap("weights can be told", nets.by_hand(BY_HAND["rand"]), Parameters(exactly=76), PASS),
)
def test_beside_a_dropout_by_hand(trap: Trap) -> None:
    judge(trap)


# Pools ------------------------------------------------------------------------------------------

GLOBAL: dict[str, Any] = {
    "adaptive 1": nn.AdaptiveAvgPool2d(1),
    "adaptive (1, 1)": lambda x: F.adaptive_avg_pool2d(x, (1, 1)),
    "full window": nn.AvgPool2d(8),
    "window from the shape": lambda x: F.avg_pool2d(x, x.shape[2:]),
    "full window, small stride": nn.AvgPool2d(8, stride=1),
    "padded window without the padding": nn.AvgPool2d(10, padding=1, count_include_pad=False),
    "mean (2, 3)": lambda x: x.mean((2, 3)),
    "mean (-1, -2)": lambda x: x.mean((-1, -2)),
    "mean, kept": lambda x: x.mean((2, 3), keepdim=True),
    "torch.mean": lambda x: torch.mean(x, dim=[3, 2]),
    "mean 3, mean 2": lambda x: x.mean(3).mean(2),
    "mean 2, mean 2": lambda x: x.mean(2).mean(2),
    "mean 2 kept, mean 3": lambda x: x.mean(2, keepdim=True).mean(3),
    "flat mean": lambda x: x.flatten(2).mean(2),
    "flat mean by view": lambda x: x.view(x.shape[0], x.shape[1], -1).mean(-1),
    "flat, transposed": lambda x: x.flatten(2).transpose(1, 2).mean(1),
    "channels last": lambda x: x.permute(0, 2, 3, 1).mean((1, 2)),
    "channels last, in two steps": lambda x: x.permute(0, 2, 3, 1).mean(1).mean(1),
    "rows, then columns": lambda x: F.avg_pool2d(F.avg_pool2d(x, (8, 1)), (1, 8)),
    "adaptive rows, then columns": lambda x: F.adaptive_avg_pool2d(F.adaptive_avg_pool2d(x, (1, 8)), 1),
    "behind a smaller pool": lambda x: F.avg_pool2d(F.avg_pool2d(x, 2), 4),
    "1d": lambda x: F.adaptive_avg_pool1d(x.flatten(2), 1),
    "3d": lambda x: F.adaptive_avg_pool3d(x.unsqueeze(2), 1),
}
# What is equal to a global average, though no operation is one.
AS_GOOD: dict[str, Any] = {
    "sum and division": lambda x: x.sum((2, 3)) / 64,
    "einsum": lambda x: torch.einsum("nchw->nc", x) / 64,
    "linear": lambda x: F.linear(x.flatten(2), torch.full((1, 64), 1 / 64)),
}


@pytest.mark.parametrize("how", GLOBAL)
def test_global_average_pool(how: str) -> None:
    judge(Trap(how, after_conv(GLOBAL[how]), GAP, PASS, "mean|avg_pool"))
    judge(Trap(how, after_conv(GLOBAL[how]), none("global_average_pool"), FAIL, "mean|avg_pool"))


@pytest.mark.parametrize("how", AS_GOOD)
def test_what_is_equal_to_a_global_average_is_not_denied(how: str) -> None:
    judge(Trap(how, after_conv(AS_GOOD[how]), GAP, NOT_FAIL))


NOT_ONE_CELL = "leaves 1 x 1 cells"


@traps(
    Trap("pool 2", after_conv(nn.AvgPool2d(2)), GAP, FAIL, "avg_pool2d.*not global.*4 x 4"),
    Trap("adaptive 2", after_conv(nn.AdaptiveAvgPool2d(2)), GAP, FAIL, "not global.*2 x 2"),
    Trap("window leaves cells", after_conv(nn.AvgPool2d(7, 1)), GAP, FAIL, "not global.*2 x 2"),
    Trap("window does not cover", after_conv(nn.AvgPool2d(7)), GAP, FAIL, "avg_pool2d", NOT_ONE_CELL),
    Trap("window in one axis", after_conv(nn.AvgPool2d((8, 4))), GAP, FAIL, "not global.*1 x 2"),
    Trap("does not cover one axis", after_conv(nn.AvgPool2d((8, 7))), GAP, FAIL, "", NOT_ONE_CELL),
    Trap("mean of rows", after_conv(lambda x: x.mean(3)), GAP, FAIL, "mean.*not global"),
    Trap("mean of columns", after_conv(lambda x: x.mean(2)), GAP, FAIL, "mean.*not global"),
    Trap("mean of channels", after_conv(lambda x: x.mean(1)), GAP, FAIL, "mean"),
    Trap("mean of rows twice kept", after_conv(lambda x: x.mean(3, True).mean(3, True)), GAP, FAIL),
    Trap("mean of all", after_conv(lambda x: x.mean((1, 2, 3))), GAP, FAIL, "mean.*channels"),
    Trap("adaptive rows", after_conv(nn.AdaptiveAvgPool2d((1, None))), GAP, FAIL, "1 x 8"),
    Trap("same size", after_conv(nn.AdaptiveAvgPool2d(8)), GAP, FAIL, "8 x 8"),
    Trap("smooths", after_conv(nn.AvgPool2d(3, 1, 1)), GAP, FAIL, "8 x 8"),
    Trap("of one cell", after_conv(lambda x: F.adaptive_avg_pool2d(x[:, :, :1, :1], 1)), GAP, FAIL, "", NOT_ONE_CELL),
    Trap("maximum", after_conv(nn.AdaptiveMaxPool2d(1)), GAP, FAIL),
    Trap("flatten", lambda: nn.Sequential(conv(), nn.Flatten(), nn.Linear(256, 3)), GAP, FAIL),
    Trap("no GAP", after_conv(nn.AvgPool2d(2)), none("global_average_pool"), PASS),
    Trap("mean of all, flat", after_conv(lambda x: x.flatten(1).mean(1)), GAP, FAIL, "mean", NOT_ONE_CELL),
    Trap("of pairs of channels", after_conv(lambda x: x.reshape(-1, 2, 128).mean(2)), GAP, NOT_PASS, "mean", NOT_ONE_CELL),
    Trap("relu in between", after_conv(lambda x: x.mean(3).relu().mean(2)), GAP, NOT_PASS, "mean", NOT_ONE_CELL),
    Trap("conv in between", lambda: Net(lambda net, x: net.b(net.a(x).mean(3)).mean(2), a=conv(), b=nn.Conv1d(4, 6, 3)), GAP, NOT_PASS),
    Trap("upper half", after_conv(lambda x: x[:, :, :4].mean((2, 3))), GAP, NOT_PASS),
    Trap("every other cell", after_conv(lambda x: x[..., ::2, ::2].mean((2, 3))), GAP, NOT_PASS),
    Trap("quarters", after_conv(lambda x: x.view(-1, 4, 2, 4, 2, 4).mean((3, 5))), GAP, FAIL, "not global.*2 x 2"),
    Trap("of tokens behind attention", lambda: nn.Sequential(nets.attention(0.0), nets.Mean(1)), GAP, NOT_FAIL),
    Trap("of tokens behind LSTM", lambda: nn.Sequential(nets.recurrent(0.0), nets.Mean(1)), GAP, NOT_FAIL),
    Trap("of patches", after_conv(lambda x: x.unflatten(3, (4, 2)).mean(-1)), GAP, FAIL, "mean"),
)
def test_average_that_is_not_global(trap: Trap) -> None:
    judge(trap)


@traps(
    Trap("module", after_conv(nn.MaxPool2d(2)), MAX_POOL, PASS, "max_pool2d"),
    Trap("functional", after_conv(lambda x: F.max_pool2d(x, 2)), MAX_POOL, PASS, "max_pool2d"),
    Trap("with places", after_conv(lambda x: F.max_pool2d(x, 2, return_indices=True)[0]), MAX_POOL, PASS),
    Trap("adaptive", after_conv(nn.AdaptiveMaxPool2d(4)), MAX_POOL, PASS, "adaptive_max_pool2d"),
    Trap("global", after_conv(nn.AdaptiveMaxPool2d(1)), none("max_pool"), FAIL, "max_pool2d"),
    Trap("keeps the size", after_conv(nn.MaxPool2d(3, 1, 1)), MAX_POOL, PASS, "max_pool2d"),
    Trap("keeps the size, none", after_conv(nn.MaxPool2d(3, 1, 1)), none("max_pool"), FAIL, "max_pool"),
    Trap("keeps the size, distance", after_conv(nn.MaxPool2d(3, 1, 1)), Distance("max_pool", at_least=1), FAIL),
    Trap("keeps the size, convs", after_conv(nn.MaxPool2d(3, 1, 1)), ConvsBeforePool(exactly=2), FAIL),
    Trap("keeps the size, field", after_conv(nn.MaxPool2d(3, 1, 1)), FieldAtPools(exactly=9), FAIL),
    Trap("adaptive, field", after_conv(nn.AdaptiveMaxPool2d(4)), FieldAtPools(exactly=9), NOT_PASS),
    Trap("with places, field", after_conv(lambda x: F.max_pool2d(x, 2, return_indices=True)[0]), FieldAtPools(exactly=9), FAIL, "3"),
    Trap("with places, convs", after_conv(lambda x: F.max_pool2d(x, 2, return_indices=True)[0]), ConvsBeforePool(exactly=9), FAIL),
    Trap("of the image, field", lambda: nn.Sequential(nn.MaxPool2d(2), conv()), FieldAtPools(exactly=3), FAIL, "0: max_pool"),
    Trap("kernel 1, field", after_conv(nn.MaxPool2d(1)), FieldAtPools(exactly=9), PASS),
    Trap("smoothing is a pool", after_conv(nn.AvgPool2d(3, 1, 1)), AVG_POOL, PASS, "avg_pool2d"),
    Trap("kernel 1", after_conv(nn.MaxPool2d(1)), MAX_POOL, FAIL),
    Trap("kernel 1, none", after_conv(nn.MaxPool2d(1)), none("max_pool"), PASS),
    Trap("adaptive to its size", after_conv(nn.AdaptiveMaxPool2d(8)), MAX_POOL, FAIL),
    Trap("fractional", after_conv(lambda x: F.fractional_max_pool2d(x, 2, 4)), none("max_pool"), NOT_PASS),
    Trap("kernel", after_conv(nn.MaxPool2d(3, 2)), Count("max_pool", kernel=2, at_least=1), FAIL),
    Trap("stride by default", after_conv(nn.MaxPool2d(2)), Count("max_pool", stride=2, at_least=1), PASS),
    Trap("an average is none", after_conv(nn.AvgPool2d(2)), none("max_pool"), PASS),
    Trap("GAP is an average pool", after_conv(nn.AdaptiveAvgPool2d(1)), AVG_POOL, PASS),
    Trap("1d", after_conv(lambda x: F.max_pool1d(x.flatten(2), 2)), MAX_POOL, PASS),
    Trap("3d", after_conv(lambda x: F.max_pool3d(x.unsqueeze(2), (1, 2, 2))), MAX_POOL, PASS),
)
def test_max_pool(trap: Trap) -> None:
    judge(trap)


# Activations ------------------------------------------------------------------------------------

RELUS: dict[str, Any] = {
    "module": nn.ReLU(),
    "module in place": nn.ReLU(inplace=True),
    "F.relu": F.relu,
    "F.relu in place": lambda x: F.relu(x, inplace=True),
    "method": lambda x: x.relu(),
    "relu_": lambda x: x.relu_(),
    "F.relu_": F.relu_,
    "torch.relu": torch.relu,
    "clamp": lambda x: x.clamp(min=0),
    "clamp by place": lambda x: x.clamp(0),
    "clamp 0.0": lambda x: torch.clamp(x, min=0.0),
    "clamp_": lambda x: x.clamp_(min=0),
    "clamp_min": lambda x: x.clamp_min(0),
    "clip": lambda x: x.clip(min=0),
}
# What is equal to one in another form.
LIKE_RELU: dict[str, Any] = {
    "maximum": lambda x: torch.maximum(x, torch.zeros_like(x)),
    "where": lambda x: torch.where(x > 0, x, torch.zeros_like(x)),
    "times a mask": lambda x: x * (x > 0),
    "threshold": lambda x: F.threshold(x, 0.0, 0.0),
    "vmap": lambda x: torch.vmap(torch.relu)(x),
    "hardtanh": lambda x: F.hardtanh(x, 0.0, math.inf),
    "leaky by 0": lambda x: F.leaky_relu(x, 0.0),
    "masked_fill": lambda x: x.masked_fill(x < 0, 0.0),
    "clamp by a tensor": lambda x: torch.clamp(x, min=torch.zeros(1)),
    "max of a stack": lambda x: torch.stack([x, x * 0]).amax(0),
}
OTHERS: dict[str, Any] = {
    "relu6": F.relu6,
    "leaky": F.leaky_relu,
    "prelu": lambda x: F.prelu(x, torch.full((1,), 0.2)),
    "rrelu": lambda x: F.rrelu(x),
    "gelu": F.gelu,
    "silu": F.silu,
    "mish": F.mish,
    "sigmoid": torch.sigmoid,
    "tanh": lambda x: x.tanh(),
    "softplus": F.softplus,
    "elu": F.elu,
    "selu in place": lambda x: F.selu(x, inplace=True),
    "hardswish": F.hardswish,
    "glu": lambda x: F.glu(x, 1),
    "clamp to 6": lambda x: x.clamp(0, 6),
    "clamp from -1": lambda x: x.clamp(min=-1),
    "swish by hand": lambda x: x * x.sigmoid(),
    "square": lambda x: x * x,
    "absolute": lambda x: x.abs(),
    "gelu by hand": lambda x: x * 0.5 * (1 + torch.erf(x / math.sqrt(2))),
    "sine": torch.sin,
    "exponential": torch.exp,
    "threshold at 1": lambda x: F.threshold(x, 1.0, 0.0),
    "maxout": lambda x: x.unflatten(1, (2, 2)).amax(2),
}


@pytest.mark.parametrize("how", RELUS)
def test_relu(how: str) -> None:
    judge(Trap(how, after_conv(RELUS[how]), exactly(1, "relu"), PASS, "relu|clamp|clip"))
    judge(Trap(how, after_conv(RELUS[how]), CLEAN, FAIL, "relu|clamp|clip"))


@pytest.mark.parametrize("how", LIKE_RELU)
def test_what_is_equal_to_a_relu_is_not_overlooked(how: str) -> None:
    judge(Trap(how, after_conv(LIKE_RELU[how]), CLEAN, NOT_PASS))
    judge(Trap(how, after_conv(LIKE_RELU[how]), none("relu"), NOT_PASS))


@pytest.mark.parametrize("how", OTHERS)
def test_other_activations(how: str) -> None:
    judge(Trap(how, after_conv(OTHERS[how]), CLEAN, NOT_PASS))
    judge(Trap(how, after_conv(OTHERS[how]), none("activation"), NOT_PASS))
    judge(Trap(how, after_conv(OTHERS[how]), RELU, NOT_PASS))


# Convolutions and linear layers -----------------------------------------------------------------

ONE = Count("conv", kernel=1, at_least=1)


def nhwc(module: nn.Module) -> Callable[[], nn.Module]:
    return lambda: Net(lambda net, x: net.each(x.permute(0, 2, 3, 1)), each=module)


def tokens(module: nn.Module) -> Callable[[], nn.Module]:
    return lambda: Net(lambda net, x: net.each(x.flatten(2).transpose(1, 2)), each=module)


@traps(
    Trap("linear at every place", nhwc(nn.Linear(2, 3)), ONE, PASS, "each: linear"),
    Trap("and is no fc", nhwc(nn.Linear(2, 3)), FC, FAIL),
    Trap("linear at every token", tokens(nn.Linear(2, 3)), ONE, PASS, "each: linear"),
    Trap("it narrows", nhwc(nn.Linear(2, 1)), Count("conv", narrows=True, at_least=1), PASS),
    Trap("it does not narrow", nhwc(nn.Linear(2, 3)), Count("conv", narrows=True, at_least=1), FAIL),
    Trap("its bias", nhwc(nn.Linear(2, 3)), none("conv", bias=True), FAIL, "each"),
    Trap("without", nhwc(nn.Linear(2, 3, bias=False)), none("conv", bias=True), PASS),
    Trap("linear along rows is no 1x1", lambda: nn.Linear(8, 8), ONE, NOT_PASS),
    Trap("linear over places is no 1x1", lambda: nn.Sequential(nn.Flatten(2), nn.Linear(64, 5)), ONE, NOT_PASS),
    Trap("linear along rows does not narrow", lambda: nn.Linear(8, 4), Count("conv", narrows=True, at_least=1), NOT_PASS),
    Trap("1x1 conv", lambda: conv(kernel=1), ONE, PASS, "conv2d"),
    Trap("1x1 conv is no fc", lambda: conv(kernel=1), none("fully_connected"), PASS),
    Trap("3x3 conv", lambda: conv(), ONE, FAIL),
    Trap("1x3 conv", lambda: nn.Conv2d(2, 3, (1, 3)), ONE, FAIL),
    Trap("1x3 by name", lambda: nn.Conv2d(2, 3, (1, 3)), Count("conv", kernel=(1, 3), at_least=1), PASS),
    Trap("functional conv", with_weight(lambda x, w: F.conv2d(x[:, :, None, None], w), 3, 4, 1, 1), exactly(1, "conv", kernel=1), PASS),
    Trap("linear behind GAP", lambda: nn.Sequential(conv(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)), FC, PASS, "3: linear"),
    Trap("linear behind flatten", lambda: nn.Sequential(nn.Flatten(), nn.Linear(128, 3)), FC, PASS, "1: linear"),
    Trap("F.linear", with_weight(F.linear, 3, 4), FC, PASS, "linear"),
    Trap("matmul", with_weight(lambda x, w: x @ w, 4, 3), FC, PASS, "matmul"),
    Trap("matmul, transposed", with_weight(lambda x, w: x @ w.t(), 3, 4), FC, PASS, "matmul"),
    Trap("weight first", with_weight(lambda x, w: torch.matmul(w, x.unsqueeze(-1)), 3, 4), FC, PASS),
    Trap("mm", with_weight(lambda x, w: torch.mm(x, w), 4, 3), FC, PASS, "mm"),
    Trap("addmm", with_weight(lambda x, w: torch.addmm(w[0], x, w), 4, 4), FC, PASS),
    Trap("einsum", with_weight(lambda x, w: torch.einsum("ni,io->no", x, w), 4, 3), FC, PASS, "einsum"),
    Trap("scaled weight", with_weight(lambda x, w: F.linear(x, F.normalize(w)), 3, 4), FC, PASS),
    Trap("bilinear", with_weight(lambda x, w: F.bilinear(x, x, w), 3, 4, 4), FC, NOT_FAIL),
    Trap("of data only", after_conv(lambda x: x @ x.transpose(2, 3)), none("fully_connected"), PASS),
    Trap("a constant is no layer", after_conv(lambda x: x.flatten(1) @ torch.ones(256, 3)), FC, FAIL),
    Trap("tied are two", nets.tied, exactly(2, "conv"), PASS, "0: conv2d.*1: conv2d"),
    Trap("tied count once", nets.tied, Parameters(exactly=2 * 2 * 9 + 4), PASS),
    Trap("transposed is no conv", lambda: nn.ConvTranspose2d(2, 3, 3), none("conv"), PASS),
    Trap("transposed", lambda: nn.ConvTranspose2d(2, 3, 3), Count("transposed_conv", at_least=1), PASS),
    Trap("bias", lambda: conv(), none("conv", bias=True), FAIL, "conv2d"),
    Trap("no bias", lambda: conv(bias=False), none("conv", bias=True), PASS),
    Trap("a bias of 0 is one", nets.zero_bias, none("conv", bias=True), FAIL),
    Trap("functional bias", with_weight(lambda x, w: F.conv2d(x[:, :, None, None], w, w[:, 0, 0, 0]), 4, 4, 1, 1), none("conv", bias=True), FAIL),
    Trap("functional, no bias", with_weight(lambda x, w: F.conv2d(x[:, :, None, None], w, None), 4, 4, 1, 1), none("conv", bias=True), PASS),
    Trap("bias of circular", lambda: conv(padding_mode="circular"), none("conv", bias=True), FAIL),
    Trap("no bias of circular", lambda: conv(padding_mode="circular", bias=False), none("conv", bias=True), PASS),
)
def test_conv_and_fully_connected(trap: Trap) -> None:
    judge(trap)


DEPTHWISE = Count("depthwise", at_least=1)
DILATED = Count("dilated", at_least=1)
STRIDED = Count("strided", at_least=1)


@traps(
    Trap("depthwise", lambda: conv(2, 2, groups=2), DEPTHWISE, PASS, "conv2d"),
    Trap("with a multiplier", lambda: conv(2, 6, groups=2), DEPTHWISE, PASS),
    Trap("of one channel", lambda: conv(1, 4), DEPTHWISE, FAIL, shape=(1, 8, 8)),
    Trap("of one channel, groups said", lambda: conv(1, 1, groups=1), DEPTHWISE, FAIL, shape=(1, 8, 8)),
    Trap("grouped", lambda: conv(4, 4, groups=2), DEPTHWISE, FAIL, shape=(4, 8, 8)),
    Trap("grouped, none", lambda: conv(4, 4, groups=2), none("depthwise"), PASS, shape=(4, 8, 8)),
    Trap("dilated", lambda: conv(dilation=2), DILATED, PASS, "conv2d"),
    Trap("dilated 1x1", lambda: conv(kernel=1, dilation=2), DILATED, FAIL),
    Trap("dilated 1x1, none", lambda: conv(kernel=1, dilation=2), none("dilated"), PASS),
    Trap("dilated across 1x3", lambda: nn.Conv2d(2, 3, (1, 3), dilation=(2, 1)), DILATED, FAIL),
    Trap("dilated along 1x3", lambda: nn.Conv2d(2, 3, (1, 3), dilation=(1, 2)), DILATED, PASS),
    Trap("dilated pool is no conv", after_conv(nn.MaxPool2d(2, dilation=2)), DILATED, FAIL),
    Trap("strided conv", lambda: conv(stride=2), STRIDED, PASS, "conv2d"),
    Trap("strided in one axis", lambda: conv(stride=(2, 1)), STRIDED, PASS),
    Trap("not strided", lambda: conv(), STRIDED, FAIL),
    Trap("strided pool is no strided conv", after_conv(nn.MaxPool2d(2)), none("conv", stride=2), PASS),
    Trap("strided conv is no strided pool", lambda: conv(stride=2), none("pool", stride=2), PASS),
    Trap("no pool but a stride", lambda: conv(stride=2), none("pool"), PASS),
    Trap("transposed with stride", lambda: nn.ConvTranspose2d(2, 3, 2, 2), STRIDED, FAIL),
)
def test_depthwise_dilated_strided(trap: Trap) -> None:
    judge(trap)


PAD = Padding(1, kernel=3)


def padded(module: nn.Module, padding: int = 0) -> Callable[[], nn.Module]:
    return lambda: nn.Sequential(module, conv(padding=padding))


def padded_by(how: Callable[[Any], Any], **more: Any) -> Callable[[], nn.Module]:
    return lambda: Net(lambda net, x: net.conv(how(x)), conv=conv(**{"padding": 0, **more}))


@traps(
    Trap("own", lambda: conv(), PAD, PASS, "conv2d"),
    Trap("none", lambda: conv(padding=0), PAD, FAIL, "conv2d: padding 0"),
    Trap("same", lambda: conv(padding="same"), PAD, PASS),
    Trap("valid", lambda: conv(padding="valid"), PAD, FAIL, "padding 0"),
    Trap("same, dilated", lambda: conv(padding="same", dilation=2), PAD, FAIL, "padding 2"),
    Trap("same, asked for", lambda: conv(padding=2, dilation=2), Padding("same"), PASS),
    Trap("same, not kept", lambda: conv(padding=1, dilation=2), Padding("same"), FAIL, "padding 1"),
    Trap("F.pad", padded_by(lambda x: F.pad(x, (1, 1, 1, 1))), PAD, PASS),
    Trap("F.pad reflecting", padded_by(lambda x: F.pad(x, (1, 1, 1, 1), mode="reflect")), PAD, PASS),
    Trap("ZeroPad2d", padded(nn.ZeroPad2d(1)), PAD, PASS),
    Trap("ReflectionPad2d", padded(nn.ReflectionPad2d(1)), PAD, PASS),
    Trap("ReplicationPad2d", padded(nn.ReplicationPad2d(1)), PAD, PASS),
    Trap("ConstantPad2d", padded(nn.ConstantPad2d(1, 0.5)), PAD, PASS),
    Trap("CircularPad2d", padded(nn.CircularPad2d(1)), PAD, PASS),
    Trap("padding_mode reflect", lambda: conv(padding_mode="reflect"), PAD, PASS),
    Trap("padding_mode circular", lambda: conv(padding_mode="circular"), PAD, PASS),
    Trap("padded twice", padded(nn.ZeroPad2d(1), 1), PAD, FAIL, "padding 2"),
    Trap("in two steps", padded_by(lambda x: F.pad(F.pad(x, (1, 1)), (0, 0, 1, 1))), PAD, PASS),
    Trap("one axis only", padded_by(lambda x: F.pad(x, (1, 1))), PAD, FAIL, "padding 0 x 1"),
    Trap("too much", padded(nn.ZeroPad2d(2)), PAD, FAIL, "padding 2"),
    Trap("lopsided", padded_by(lambda x: F.pad(x, (1, 2, 1, 2))), PAD, FAIL, r"padding 1\+2"),
    Trap("only after", padded_by(lambda x: F.pad(x, (0, 2, 0, 2))), PAD, FAIL, "padding 0"),
    Trap("copied in between", padded_by(lambda x: F.pad(x, (1, 1, 1, 1)).contiguous()), PAD, PASS),
    Trap("channels padded", padded_by(lambda x: F.pad(x, (0, 0, 0, 0, 0, 2)), into=4, padding=1), PAD, PASS),
    Trap("all axes padded", padded_by(lambda x: F.pad(x, (1, 1, 1, 1, 0, 2)), into=4), PAD, PASS),
    Trap("1x1 without", lambda: nn.Sequential(conv(), conv(4, 4, 1)), PAD, PASS),
    Trap("linear at every place", nhwc(nn.Linear(2, 3)), Padding(1), PASS, "no such"),
    Trap("one of two", lambda: nn.Sequential(conv(), conv(4, 4, padding=0)), PAD, FAIL, "1: conv2d: padding 0", "0: conv2d: padding"),
    Trap("1d", lambda: nn.Sequential(nn.Flatten(2), nn.Conv1d(2, 3, 3, padding=1)), PAD, PASS),
    Trap("1d, none", lambda: nn.Sequential(nn.Flatten(2), nn.Conv1d(2, 3, 3)), PAD, FAIL, "padding 0"),
    Trap("1d by F.pad", lambda: Net(lambda net, x: net.c(F.pad(x.flatten(2), (1, 1))), c=nn.Conv1d(2, 3, 3)), PAD, PASS),
    Trap("in training only", nets.in_two_ways(lambda net, x: (x, net.aux(x)), lambda net, x: x, aux=conv(4, 3, padding=0)), PAD, FAIL, "aux"),
)
def test_padding(trap: Trap) -> None:
    judge(trap)


@pytest.mark.parametrize("how", ["weight_norm", "spectral_norm", "of one's own"])
def test_parametrised_weights(how: str) -> None:
    def line(name: str, rule: Rule, verdict: str, says: str = "") -> Trap:
        return Trap(name, partial(nets.parametrised, how), rule, verdict, says)

    judge(line("convs", exactly(2, "conv", kernel=3), PASS, "last"))
    judge(line("padding", PAD, PASS, "last"))
    judge(line("no bias", none("conv", bias=True), PASS))
    judge(line("one batch norm", exactly(1, "batch_norm"), PASS, "norm"))
    judge(line("one norm", exactly(1, "norm"), PASS, "norm"))
    judge(line("one activation", exactly(1, "activation"), PASS))
    judge(line("no dropout", none("dropout"), PASS))
    judge(line("one fc", exactly(1, "fully_connected"), PASS, "head"))
    judge(line("clean", CLEAN, PASS))
    judge(line("block", BlockOrder(("conv", "relu", "batch_norm")), PASS, "first"))
    # Weight norm adds a magnitude for each of the 4 channels; spectral norm has two buffers.
    total = sum(p.numel() for p in nets.parametrised(how).parameters())
    assert total == 72 + 8 + 144 + 15 + (4 if how == "weight_norm" else 0)
    judge(line("parameters", Parameters(exactly=total), PASS))
    # Of the norm the scale goes into the next convolution; its padding keeps the shift out.
    judge(line("deployed", Parameters(exactly=72 + 4 + 144 + 15, count="deployed"), PASS))


# Frozen layers ----------------------------------------------------------------------------------

FROZEN = (2 * 4 * 9 + 4) + 2 * 4  # a convolution and a batch norm
LEARNED = 4 * 3 * 9 + 3


@traps(
    Trap("total", nets.frozen, Parameters(exactly=FROZEN + LEARNED), PASS, f"{FROZEN}.*frozen"),
    Trap("frozen", nets.frozen, Parameters(exactly=FROZEN, count="frozen"), PASS),
    Trap("trainable", nets.frozen, Parameters(exactly=LEARNED, count="trainable"), PASS),
    Trap("unused", lambda: idle(fc=nn.Linear(4, 3)), Parameters(exactly=15, count="unused"), PASS, r"never.*fc\.weight"),
    Trap("unused count", lambda: idle(fc=nn.Linear(4, 3)), Parameters(exactly=15 + 76), PASS, "fc"),
    Trap("dead count", lambda: dead(bn=nn.BatchNorm2d(4)), Parameters(exactly=8 + 76), PASS),
    Trap("dead are unused", lambda: dead(bn=nn.BatchNorm2d(4)), Parameters(exactly=8, count="unused"), PASS),
)
def test_parameters(trap: Trap) -> None:
    judge(trap)


# The prediction ---------------------------------------------------------------------------------


def head(x: Any) -> Any:
    return x.mean((2, 3))


@traps(
    Trap("bare", ending(lambda net, x: x), CLEAN, PASS, "last"),
    Trap("GAP and linear", ending(lambda net, x: net.fc(head(x)), fc=nn.Linear(4, 3)), CLEAN, PASS, "fc"),
    Trap("log_softmax", ending(lambda net, x: F.log_softmax(head(x), 1)), CLEAN, PASS),
    Trap("softmax", ending(lambda net, x: head(x).softmax(1)), CLEAN, PASS),
    Trap("log_softmax, avoided", ending(lambda net, x: F.log_softmax(head(x), 1)), CleanPrediction(("softmax",)), FAIL, "log_softmax"),
    Trap("sigmoid", ending(lambda net, x: head(x).sigmoid()), CLEAN, FAIL, "sigmoid"),
    Trap("max-pool", ending(lambda net, x: F.max_pool2d(x, 2)), CLEAN, PASS),
    Trap("relu", ending(lambda net, x: F.relu(x)), CLEAN, FAIL, "from last.*relu"),
    Trap("relu in place, thrown away", ending(lambda net, x: (x.relu_(), head(x))[1]), CLEAN, FAIL, "relu"),
    Trap("relu behind linear", ending(lambda net, x: net.fc(head(x)).relu(), fc=nn.Linear(4, 3)), CLEAN, FAIL, "relu"),
    Trap("batch norm", ending(lambda net, x: net.bn(x), bn=nn.BatchNorm2d(4)), CLEAN, FAIL, "bn"),
    Trap("batch norm renamed", ending(lambda net, x: net.bn(x), bn=nets.Scale(4)), CLEAN, FAIL, "bn"),
    Trap("layer norm", ending(lambda net, x: net.n(head(x)), n=nn.LayerNorm(4)), CLEAN, FAIL, "n: layer"),
    Trap("local response norm", ending(lambda net, x: F.local_response_norm(x, 2)), CLEAN, NOT_PASS),
    Trap("dropout", ending(lambda net, x: net.d(head(x)), d=nn.Dropout(0.07)), CLEAN, FAIL, "d: dropout"),
    Trap("dropout in training only", ending(lambda net, x: F.dropout(x, 0.07) if net.training else x), CLEAN, FAIL, "dropout"),
    Trap("relu in training only", ending(lambda net, x: x.relu() if net.training else x), CLEAN, FAIL, "relu"),
    Trap("relu in evaluation only", ending(lambda net, x: x if net.training else x.relu()), CLEAN, FAIL, "relu"),
    Trap("dropout in evaluation only", ending(lambda net, x: x if net.training else F.dropout(x)), CLEAN, FAIL, "dropout"),
    Trap("p = 0", ending(lambda net, x: F.dropout(x, 0.0)), CLEAN, PASS),
    Trap("off", ending(lambda net, x: F.dropout(x, 0.5, False)), CLEAN, PASS),
    Trap("dead relu", ending(lambda net, x: (x.relu(), head(x))[1]), CLEAN, PASS),
    Trap("SE gate", ending(nets.gated, **nets.gate()), CLEAN, FAIL, "sigmoid"),
    Trap("1x1 as linear", ending(lambda net, x: net.fc(x.permute(0, 2, 3, 1)).mean((1, 2)), fc=nn.Linear(4, 3)), CLEAN, PASS),
    Trap("1x1 as linear, relu before", ending(lambda net, x: net.fc(x.relu().permute(0, 2, 3, 1)), fc=nn.Linear(4, 3)), CLEAN, PASS, "fc"),
    Trap("residual", nets.residual, CLEAN, PASS, "last"),
    Trap("two heads", partial(nets.two_heads, nn.Identity()), CLEAN, PASS),
    Trap("two heads, one with relu", partial(nets.two_heads, nn.ReLU()), CLEAN, FAIL, "more"),
    Trap("two heads, one drops", partial(nets.two_heads, nn.Dropout(0.07)), CLEAN, FAIL, "more"),
    Trap("GAP head of 1x1", ending(lambda net, x: net.fc(F.adaptive_avg_pool2d(x, 1)), fc=conv(4, 3, 1)), CLEAN, PASS, "fc"),
    Trap("no conv at all", lambda: nn.Sequential(nn.Flatten(), nn.Linear(128, 3)), CLEAN, OPEN, "no conv"),
    Trap("drops channels of attention", ending(lambda net, x: net.m(*3 * (x.flatten(2).mT,))[0], m=nn.MultiheadAttention(4, 2, 0.1, batch_first=True)), CLEAN, FAIL, "m:"),
    Trap("transposed last", ending(lambda net, x: net.up(x.relu()), up=nn.ConvTranspose2d(4, 3, 2, 2)), CLEAN, NOT_FAIL),
)
def test_clean_prediction(trap: Trap) -> None:
    judge(trap)


ORDER = BlockOrder(("conv", "relu", "batch_norm", "dropout"), kernel=3)
BN_RELU = BlockOrder(("conv", "batch_norm", "relu"))


def blocks(*kinds: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    return lambda: nets.block(*(kind() for kind in kinds))


norm = partial(nn.BatchNorm2d, 4)
drop = partial(nn.Dropout, 0.07)


@traps(
    Trap("so", blocks(nn.ReLU, norm, drop), ORDER, PASS, "0: conv2d"),
    Trap("norm first", blocks(norm, nn.ReLU, drop), ORDER, FAIL, "0: conv2d.*batch_norm, relu, dropout"),
    Trap("no dropout", blocks(nn.ReLU, norm), ORDER, FAIL, "0: conv2d.*conv, relu, batch_norm, then"),
    Trap("p = 0", blocks(nn.ReLU, norm, partial(nn.Dropout, 0.0)), ORDER, FAIL, "0: conv2d"),
    Trap("p = 0 in between", blocks(nn.ReLU, partial(nn.Dropout, 0.0), norm, drop), ORDER, PASS),
    Trap("one relu more", blocks(nn.ReLU, norm, nn.ReLU, drop), ORDER, FAIL, "0: conv2d"),
    Trap("a pool in between", blocks(nn.ReLU, partial(nn.MaxPool2d, 2), norm, drop), ORDER, FAIL, "max_pool"),
    Trap("an identity in between", blocks(nn.ReLU, nn.Identity, norm, drop), ORDER, PASS),
    Trap("relu6", blocks(nn.ReLU6, norm, drop), ORDER, FAIL, "0: conv2d"),
    Trap("any activation", blocks(nn.ReLU6, norm), BlockOrder(("conv", "activation", "batch_norm")), PASS),
    Trap("in place", blocks(partial(nn.ReLU, True), norm, partial(nn.Dropout, 0.07, True)), ORDER, PASS),
    Trap("renamed", blocks(nn.ReLU, partial(nets.Scale, 4), partial(nets.Regular, 0.07)), ORDER, PASS),
    Trap("only in name", blocks(nn.ReLU, partial(nets.BatchNorm2d, 4), drop), ORDER, FAIL, "0: conv2d"),
    Trap("alpha dropout", blocks(nn.ReLU, norm, partial(nn.AlphaDropout, 0.07)), ORDER, PASS),
    Trap("last left out", blocks(nn.ReLU, norm, drop), ORDER, PASS, "", "1: conv|4: conv"),
    Trap("last not left out", blocks(nn.ReLU, norm, drop), BlockOrder(ORDER.order, but_last=False), FAIL, "4: conv2d"),
    Trap("one conv", lambda: conv(), ORDER, PASS, "no such"),
    Trap("1x1 is not asked", lambda: nn.Sequential(conv(kernel=1), conv(4, 3)), ORDER, PASS),
    Trap("two in a row", lambda: nn.Sequential(conv(), conv(4, 4, 1), nn.ReLU(), norm(), drop(), conv(4, 3)), ORDER, FAIL, "0: conv2d: conv, then 1.*1x1"),
    Trap("residual", nets.residual, BN_RELU, FAIL, "conv_2: conv2d.*ways", "conv_1: conv2d: "),
    Trap("sum of blocks", nets.residual_sums, BN_RELU, PASS, "a.0.*b.0"),
    Trap("channels moved last", nets.channels_last_norm, BlockOrder(("conv", "layer_norm")), NOT_FAIL),
    Trap("one object twice", nets.twice, BlockOrder(("conv", "dropout"), but_last=False), PASS, "a: conv2d.*b: conv2d"),
    Trap("functional dropout", lambda: Net(lambda net, x: net.b(F.dropout(net.bn(net.a(x).clamp(min=0)), 0.07, net.training)), a=conv(), bn=norm(), b=conv(4, 3)), ORDER, PASS, "a: conv2d"),
    Trap("by hand", lambda: Net(lambda net, x: net.b(net.a(x) * (torch.rand(1) > 0.07)), a=conv(), b=conv(4, 3)), BlockOrder(("conv",)), NOT_PASS),
    Trap("more than was asked: abs", lambda: Net(lambda net, x: net.b(net.a(x).relu().abs()), a=conv(), b=conv(4, 3)), BlockOrder(("conv", "relu")), NOT_PASS),
    Trap("more than was asked: softmax", blocks(nn.ReLU, partial(nn.Softmax, 1)), BlockOrder(("conv", "relu")), NOT_PASS),
    Trap("more than was asked: LRN", blocks(nn.ReLU, partial(nn.LocalResponseNorm, 2)), BlockOrder(("conv", "relu")), NOT_PASS),
    Trap("GAP ends it", lambda: Net(lambda net, x: net.c(F.adaptive_avg_pool2d(net.b(x), 1)), b=nn.Sequential(conv(), nn.ReLU(), norm(), drop()), c=conv(4, 3, 1)), ORDER, PASS),
    Trap("shape changes", lambda: Net(lambda net, x: net.b(net.act(net.a(x).flatten(2)).view(-1, 4, 8, 8)), a=conv(), act=nn.ReLU(), b=conv(4, 3)), BlockOrder(("conv", "relu")), NOT_FAIL),
)
def test_block_order(trap: Trap) -> None:
    judge(trap)


# Training and evaluation ------------------------------------------------------------------------

AUX = nets.in_two_ways(lambda net, x: (x, net.aux(x)), lambda net, x: x, aux=conv(4, 3, 5))
EVAL = nets.in_two_ways(lambda net, x: x, lambda net, x: F.max_pool2d(x, 2))
AUX_FC = nets.in_two_ways(lambda net, x: (x, net.aux(x.mean((2, 3)))), lambda net, x: x, aux=nn.Linear(4, 3))
AUX_1X1 = nets.in_two_ways(lambda net, x: (x, net.aux(x.permute(0, 2, 3, 1))), lambda net, x: x, aux=nn.Linear(4, 3))
SWAP = nets.in_two_ways(
    lambda net, x: net.a(x), lambda net, x: net.b(x), a=conv(4, 4, 5), b=conv(4, 4, 1)
)


@traps(
    Trap("aux conv, at least", AUX, Count("conv", at_least=2), FAIL, "aux.*training mode only"),
    Trap("aux conv, at most", AUX, Count("conv", at_most=1), FAIL, "aux.*training mode only"),
    Trap("aux fc, none", AUX_FC, none("fully_connected"), FAIL, "aux.*training mode only"),
    Trap("aux linear at every place", AUX_1X1, Count("conv", at_most=1), FAIL, "aux.*training mode only"),
    Trap("pool in evaluation, some", EVAL, MAX_POOL, FAIL, "evaluation mode only"),
    Trap("pool in evaluation, none", EVAL, none("max_pool"), FAIL, "evaluation mode only"),
    Trap("one or the other, none", SWAP, none("conv", kernel=5), FAIL, "a: conv2d.*training"),
    Trap("one or the other, some", SWAP, Count("conv", kernel=5, at_least=1), FAIL, "a: conv2d.*training"),
    Trap("one or the other, at most", SWAP, Count("conv", at_most=2), FAIL, "a: conv2d"),
    Trap("refuses, dropout", nets.not_in_training, DROP, OPEN, "training mode.*for inference only"),
    Trap("refuses, p", nets.not_in_training, P, OPEN, "for inference only"),
    Trap("refuses, clean", nets.not_in_training, CLEAN, OPEN, "for inference only"),
    Trap("refuses, order", nets.not_in_training, ORDER, OPEN, "for inference only"),
    Trap("refuses, conv", nets.not_in_training, exactly(1, "conv"), PASS, "conv"),
    Trap("refuses, pool", nets.not_in_training, none("max_pool"), FAIL, "max_pool"),
    Trap("refuses, padding", nets.not_in_training, PAD, PASS),
    Trap("refuses, parameters", nets.not_in_training, Parameters(exactly=76 + 8), PASS),
    Trap("refuses, field", nets.not_in_training, FieldAtPools(exactly=3), PASS, "max_pool"),
)
def test_modes(trap: Trap) -> None:
    judge(trap)


# What is hard to follow -------------------------------------------------------------------------

SLICES = nets.into_slices


@traps(
    Trap("convs", SLICES, exactly(3, "conv", kernel=3), PASS, "a.*b.*last"),
    Trap("padding", SLICES, PAD, PASS),
    Trap("bias", SLICES, exactly(1, "conv", bias=True), PASS, "a"),
    Trap("batch norm", SLICES, exactly(1, "batch_norm"), PASS, "norm"),
    Trap("relu", SLICES, exactly(1, "relu"), PASS, "relu"),
    Trap("max-pool", SLICES, exactly(1, "max_pool", kernel=2, stride=2), PASS, "max_pool"),
    Trap("GAP", SLICES, exactly(1, "global_average_pool"), PASS, "mean"),
    Trap("fc", SLICES, exactly(1, "fully_connected"), PASS, "head"),
    Trap("dropout", SLICES, exactly(1, "dropout"), PASS, "dropout"),
    Trap("p", SLICES, P, PASS, "0.07"),
    Trap("wrong p", partial(SLICES, 0.5), P, FAIL, "0.5"),
    Trap("p = 0", partial(SLICES, 0.0), DROP, FAIL, "p = 0"),
    Trap("on in evaluation", partial(SLICES, 0.07, True), P, FAIL, STILL),
    Trap("off in training", partial(SLICES, 0.07, False), DROP, FAIL, OFF),
    Trap("clean", SLICES, CLEAN, PASS),
    Trap("field", SLICES, FieldAtPools(exactly=3), NOT_FAIL),
    Trap("convs before", SLICES, ConvsBeforePool(exactly=1), NOT_FAIL),
    Trap("parameters", SLICES, Parameters(exactly=76 + 72 + 8 + 288 + 15), PASS),
)
def test_writes_into_slices(trap: Trap) -> None:
    judge(trap)


UNKNOWN = nets.unknown_middle


@traps(
    Trap("parameters", UNKNOWN, Parameters(exactly=72 + 8 + 144 + 15), PASS),
    Trap("macs above", UNKNOWN, Macs(at_most=1), FAIL),
    Trap("macs below", UNKNOWN, Macs(at_most=10**9), OPEN, "fft"),
    Trap("macs, at least", UNKNOWN, Macs(at_least=64 * 72), PASS, "fft"),
    Trap("some conv", UNKNOWN, Count("conv", at_least=2), PASS, "a.*b"),
    Trap("more convs", UNKNOWN, Count("conv", at_least=3), OPEN, "fft"),
    Trap("at most two convs", UNKNOWN, Count("conv", at_most=2), OPEN, "fft"),
    Trap("at most one conv", UNKNOWN, Count("conv", at_most=1), FAIL),
    Trap("two convs", UNKNOWN, exactly(2, "conv"), OPEN, "fft"),
    Trap("no max-pool", UNKNOWN, none("max_pool"), OPEN, "fft"),
    Trap("max-pool", UNKNOWN, MAX_POOL, OPEN, "fft"),
    Trap("batch norm", UNKNOWN, BN, PASS, "norm"),
    Trap("fc", UNKNOWN, FC, PASS, "head"),
    Trap("GAP", UNKNOWN, GAP, NOT_FAIL),
    Trap("dropout", UNKNOWN, DROP, PASS, "drop"),
    Trap("p", UNKNOWN, P, OPEN, "fft"),
    Trap("wrong p", UNKNOWN, Dropout(0.5), FAIL, "drop.*0.07"),
    Trap("clean", UNKNOWN, CLEAN, NOT_FAIL),
    Trap("order", UNKNOWN, BlockOrder(("conv", "relu", "batch_norm", "dropout")), OPEN, "fft"),
    Trap("wrong order", UNKNOWN, BlockOrder(("conv", "batch_norm")), FAIL, "a: conv2d"),
    Trap("padding", UNKNOWN, PAD, OPEN, "fft"),
    Trap("wrong padding", UNKNOWN, Padding(0), FAIL, "a: conv2d"),
    Trap("field", UNKNOWN, FieldSize(at_least=1), OPEN, "fft"),
    Trap("covers", UNKNOWN, CoversInput(), OPEN, "fft"),
    Trap("fields at pools", UNKNOWN, FieldAtPools(exactly=3), OPEN, "fft"),
    Trap("convs before", UNKNOWN, ConvsBeforePool(exactly=3), OPEN, "fft"),
    Trap("distance", UNKNOWN, Distance("max_pool", at_least=1), OPEN, "fft"),
)
def test_operations_nobody_described(trap: Trap) -> None:
    judge(trap)


IMAGES: Any = partial(Trap, inputs=(SHAPE, SHAPE))
FIRST, SECOND = partial(nets.two_images, False), partial(nets.two_images, True)


@traps(
    IMAGES("convs", FIRST, exactly(3, "conv"), PASS, "a.*b.*c"),
    IMAGES("max-pool", FIRST, exactly(1, "max_pool"), PASS),
    IMAGES("no max-pool", FIRST, none("max_pool"), FAIL, "max_pool"),
    IMAGES("GAP of the second", FIRST, GAP, NOT_FAIL),
    IMAGES("no GAP of the second", FIRST, none("global_average_pool"), NOT_PASS),
    IMAGES("fields of the second", FIRST, FieldAtPools(exactly=9), NOT_PASS),
    IMAGES("GAP of the second, run first", SECOND, GAP, NOT_FAIL),
    IMAGES("no GAP of the second, run first", SECOND, none("global_average_pool"), NOT_PASS),
    IMAGES("fields of the second, run first", SECOND, FieldAtPools(exactly=9), NOT_PASS),
    IMAGES("convs before", FIRST, ConvsBeforePool(exactly=1), PASS),
    IMAGES("distance", FIRST, Distance("max_pool", exactly=2), PASS),
    IMAGES("padding", FIRST, PAD, PASS),
    IMAGES("parameters", FIRST, Parameters(exactly=76 + 76 + 148 + 260 * 3 + 3), PASS),
    IMAGES("covers only the first", nets.two_fields, CoversInput(), NOT_PASS),
)
def test_two_images(trap: Trap) -> None:
    judge(trap)
