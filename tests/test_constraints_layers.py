"""Rules on layers, costs and fields: the networks that come with the package, and sums by hand."""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval
from torch.utils.flop_counter import FlopCounterMode
from trap_networks import Net, conv

from constrained_cnn import models
from constrained_cnn.constraints import (
    BlockOrder,
    CleanPrediction,
    ConvsBeforePool,
    Count,
    CoversInput,
    Distance,
    FieldAtPools,
    FieldSize,
    Finding,
    Macs,
    Memory,
    Padding,
    Parameters,
    Report,
    Rule,
    WeightBytes,
    check,
)

MNIST, CIFAR = (1, 28, 28), (3, 32, 32)
OF_A_RUN = {
    "mnist-12k": {"R2", "R9", "R9 inputs", "R10", "R11", "R11 epochs"},
    "mnist-20k": {"epochs", "accuracy", "consistent"},
    "mnist-10k": {"epochs", "accuracy", "consistent"},
    "mnist-8k": {"epochs", "accuracy", "consistent"},
    "cifar10-200k": {"accuracy"},
}


def found(model: nn.Module, rule: Rule, shape: Sequence[int] = MNIST) -> Finding:
    (finding,) = check(model, shape, rule).findings
    return finding


def broken(report: Report) -> dict[str, Finding]:
    """What is broken by name, once it is clear that nothing is left open."""
    assert report.unclear == ()
    return {finding.rule.name: finding for finding in report.failed}


# The networks that come with the package --------------------------------------------------------


def test_mnist_12k_keeps_every_rule_on_the_network() -> None:
    report = check(models.mnist_12k(), MNIST, "mnist-12k")
    assert broken(report) == {}
    assert report.ok
    aside = {finding.rule.name for finding in report.findings if not finding.judged}
    assert aside == OF_A_RUN["mnist-12k"]


def test_the_source_breaks_four_rules() -> None:
    report = check(models.mnist_12k_source(), MNIST, "mnist-12k")
    failed = broken(report)
    assert report.ok is False
    assert failed.keys() == {"R1 near", "R6 padding", "R6 block", "R7"}

    assert failed["R1 near"].measured == "12,734"
    assert failed["R1 near"].margin == 12_500 - 12_734

    said = failed["R6 padding"].evidence
    assert [line.split(":")[0] for line in said] == ["stage_3.conv", "last"]
    assert all("padding 0" in line for line in said)

    (line,) = failed["R6 block"].evidence
    assert line.startswith("stage_3.conv: conv2d: conv, then")
    assert "consolidate" in line
    assert "1x1" in line

    first, second = failed["R7"].evidence
    assert first.startswith("pool_1")
    assert "stage-local 5, absolute 5" in first
    assert second.startswith("pool_2")
    assert "stage-local 5, absolute 14" in second
    assert failed["R7"].measured == "5, 5"
    assert failed["R7"].margin == -2


def test_what_the_source_keeps_is_said_with_its_layers() -> None:
    report = check(models.mnist_12k_source(), MNIST, "mnist-12k")
    kept = {finding.rule.name: finding for finding in report.findings if finding.ok}
    assert kept["R1"].measured == "12,734"
    assert kept["R3 BN"].measured == "5"
    assert kept["R3 FC"].measured == kept["R3 GAP"].measured == "1"
    assert "head" in kept["R3 FC"].evidence[0]
    assert kept["R4 used"].measured == "5"
    assert "channel" in kept["R4"].measured
    assert "stage_3.consolidate" in kept["R5"].evidence[0]
    assert kept["R6 convs"].measured == "6"
    assert kept["R6 pools"].measured == "2"
    assert kept["R6 stages"].measured == "2, 2"


# Course assignments -----------------------------------------------------------------------------


class AllConvolutional(nn.Sequential):
    """Three blocks and a head; what is None is left out."""

    def __init__(
        self,
        norm: Callable[[int], nn.Module] | None = nn.BatchNorm2d,
        drop: nn.Module | None = None,
        pool: nn.Module | None = None,
        head: nn.Module | None = None,
        spare: int = 0,
    ) -> None:
        super().__init__()
        for number, (into, out) in enumerate([(1, 8), (8, 12), (12, 16)]):
            self.add_module(f"conv_{number}", conv(into, out, bias=False))
            self.add_module(f"act_{number}", nn.ReLU())
            if norm is not None:
                self.add_module(f"norm_{number}", norm(out))
            self.add_module(f"drop_{number}", nn.Dropout(0.05) if drop is None else drop)
            if number < 2:
                self.add_module(f"pool_{number}", nn.MaxPool2d(2))
        self.add_module("global", nn.AdaptiveAvgPool2d(1) if pool is None else pool)
        self.add_module("flat", nn.Flatten())
        self.add_module("head", nn.Linear(16, 10) if head is None else head)
        if spare:
            self.spare = nn.Parameter(torch.zeros(spare))


# 9 (8 + 96 + 192) weights, 2 (8 + 12 + 16) of the norms, 170 of the head.
OWN = 9 * (1 * 8 + 8 * 12 + 12 * 16) + 2 * (8 + 12 + 16) + 170
LIMITS = {"mnist-20k": 20_000, "mnist-10k": 10_000, "mnist-8k": 8_000}
MNIST_BREAKS: dict[str, tuple[str, Callable[[], nn.Module] | None]] = {
    "one parameter more": ("parameters", None),
    "no norm": ("batch norm", partial(AllConvolutional, norm=None)),
    "another norm": ("batch norm", partial(AllConvolutional, norm=partial(nn.GroupNorm, 2))),
    "p = 0": ("dropout", partial(AllConvolutional, drop=nn.Dropout(0.0))),
    "no dropout": ("dropout", partial(AllConvolutional, drop=nn.Identity())),
    "flatten": ("pooling", lambda: AllConvolutional(pool=nn.Identity(), head=nn.Linear(784, 2))),
    "pool that leaves cells": (
        "pooling",
        lambda: AllConvolutional(pool=nn.AvgPool2d(3, 2), head=nn.Linear(144, 10)),
    ),
    "pool that leaves the border": (
        "pooling",
        lambda: AllConvolutional(pool=nn.AvgPool2d(6), head=nn.Linear(16, 10)),
    ),
    "max-pool": ("pooling", lambda: AllConvolutional(pool=nn.AdaptiveMaxPool2d(1))),
}


@pytest.mark.parametrize("spec", LIMITS)
def test_a_network_for_a_course(spec: str) -> None:
    report = check(AllConvolutional(spare=LIMITS[spec] - 1 - OWN), MNIST, spec)
    assert broken(report) == {}
    assert report.ok
    assert {f.rule.name for f in report.findings if not f.judged} == OF_A_RUN[spec]


@pytest.mark.parametrize("spec", LIMITS)
@pytest.mark.parametrize("change", MNIST_BREAKS)
def test_one_change_breaks_one_rule_of_a_course(spec: str, change: str) -> None:
    rule, make = MNIST_BREAKS[change]
    net = make() if make else AllConvolutional(spare=LIMITS[spec] - OWN)
    failed = broken(check(net, MNIST, spec))
    assert failed.keys() == {rule}
    if change == "one parameter more":
        assert failed[rule].margin == -1


def test_the_head_of_mnist_20k_is_linear_or_the_same_as_a_convolution_on_one_cell() -> None:
    head = nn.Sequential(nn.Unflatten(1, (16, 1, 1)), nn.Conv2d(16, 10, 1), nn.Flatten())
    for spec in ("mnist-10k", "mnist-20k"):
        assert broken(check(AllConvolutional(head=head), MNIST, spec)) == {}
    grouped = nn.Sequential(nn.Unflatten(1, (16, 1, 1)), nn.Conv2d(16, 10, 1, groups=2))
    flat = AllConvolutional(head=nn.Sequential(grouped, nn.Flatten()))
    assert broken(check(flat, MNIST, "mnist-20k")).keys() == {"head"}
    (finding,) = check(flat, MNIST, Count("fully_connected", at_least=1)).findings
    assert finding.ok is False


def for_cifar(
    depth: bool = True,
    dilation: int = 2,
    pool: nn.Module | None = None,
    last: int = 3,
    spare: int = 0,
    between: nn.Module | None = None,
) -> nn.Module:
    """Sees 3, 5, 13, 17, 33, 41 and in the end 41 + 4 (last - 1); its jump is 4."""
    # The wider kernel sees as much as the dilated one.
    wide: dict[str, Any] = {"dilation": 2, "padding": 2} if dilation == 2 else {"kernel": 5}
    net = nn.Sequential(
        conv(3, 6, groups=3 if depth else 1, bias=False),
        conv(6, 16, stride=2, bias=False),
        conv(16, 16, **wide),
        conv(16, 24, stride=2),
        conv(24, 24, **wide),
        conv(24, 24),
        nn.Identity() if between is None else between,
        conv(24, 10, last),
        nn.AdaptiveAvgPool2d(1) if pool is None else pool,
        nn.Flatten(),
    )
    if spare:
        net.spare = nn.Parameter(torch.zeros(spare - sum(p.numel() for p in net.parameters())))
    return net


CIFAR_RIGHT: dict[str, Callable[[], nn.Module]] = {
    "so": for_cifar,
    "sees 45": partial(for_cifar, last=2),
    "199,999 parameters": partial(for_cifar, spare=199_999),
}
CIFAR_BREAKS: dict[str, tuple[str, Callable[[], nn.Module]]] = {
    "200,000 parameters": ("parameters", partial(for_cifar, spare=200_000)),
    "no depthwise": ("depthwise", partial(for_cifar, depth=False)),
    "no dilation": ("dilated", partial(for_cifar, dilation=1)),
    "sees 41": ("field", partial(for_cifar, last=1)),
    "max-pool": ("no max-pool", partial(for_cifar, between=nn.MaxPool2d(2))),
    "max-pool of stride 1": ("no max-pool", partial(for_cifar, between=nn.MaxPool2d(3, 1, 1))),
    "no global pool": ("pooling", partial(for_cifar, pool=nn.Identity())),
    "pool that leaves cells": ("pooling", partial(for_cifar, pool=nn.AvgPool2d(4))),
}


@pytest.mark.parametrize("change", CIFAR_RIGHT)
def test_a_network_for_cifar(change: str) -> None:
    report = check(CIFAR_RIGHT[change](), CIFAR, "cifar10-200k")
    assert broken(report) == {}
    assert report.ok
    assert {f.rule.name for f in report.findings if not f.judged} == OF_A_RUN["cifar10-200k"]


@pytest.mark.parametrize("change", CIFAR_BREAKS)
def test_one_change_breaks_one_rule_for_cifar(change: str) -> None:
    rule, make = CIFAR_BREAKS[change]
    assert broken(check(make(), CIFAR, "cifar10-200k")).keys() == {rule}


# Costs ------------------------------------------------------------------------------------------


SMALL = (1, 12, 12)
IDLE = 5 * 3 + 3


def mixed(fused: bool = False) -> nn.Module:
    """A frozen and an idle layer, buffers, and two batch norms, which torch fuses if asked."""
    first = conv(1, 6, bias=False)
    second = conv(6, 8, stride=2, groups=2)
    norm_1, norm_2 = nn.BatchNorm2d(6), nn.BatchNorm2d(8)
    first.weight.requires_grad_(False)
    norms: tuple[nn.Module, nn.Module] = (norm_1, norm_2)
    if fused:
        first = fuse_conv_bn_eval(first.eval(), norm_1.eval())
        second = fuse_conv_bn_eval(second.eval(), norm_2.eval())
        norms = (nn.Identity(), nn.Identity())
    return nn.Sequential(
        *(first, norms[0], nn.ReLU(inplace=True), second, norms[1], nn.ReLU()),
        *(nn.MaxPool2d(2), nn.Flatten(), nn.Linear(8 * 9, 12), nn.ReLU()),
        nn.Linear(12, 10, bias=False),
    )


def idle_besides() -> nn.Module:
    return Net(lambda net, x: net.body(x), body=mixed(), spare=nn.Linear(5, 3))


def numel(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() for tensor in tensors)


def counted_by_torch(net: nn.Module) -> dict[str, int]:
    parameters = list(net.parameters())
    return {
        "total": numel(parameters),
        "trainable": numel(p for p in parameters if p.requires_grad),
        "frozen": numel(p for p in parameters if not p.requires_grad),
        "buffers": numel(net.buffers()),
        "unused": IDLE,
        "deployed": numel(mixed(fused=True).parameters()),
    }


@pytest.mark.parametrize("count", ["total", "trainable", "frozen", "buffers", "unused", "deployed"])
def test_parameters_as_torch_counts_them(count: str) -> None:
    net = idle_besides()
    number = counted_by_torch(net)[count]
    assert_limits(net, partial(Parameters, count=count), number, SMALL)


def assert_limits(
    net: nn.Module, rule: Callable[..., Rule], number: int, shape: Sequence[int]
) -> None:
    """The limits are met at the number itself and nowhere beside it."""
    for limit in ("at_least", "at_most", "exactly"):
        kept = found(net, rule(**{limit: number}), shape)
        assert kept.ok, kept
        assert kept.margin == 0
    for limit, beside in [
        ("at_least", number + 1),
        ("at_most", number - 1),
        ("exactly", number + 1),
    ]:
        wrong = found(net, rule(**{limit: beside}), shape)
        assert wrong.ok is False, wrong
        assert wrong.margin == -1
    assert found(net, rule(near=number + 5, within=5), shape).ok
    assert found(net, rule(near=number + 5, within=4), shape).ok is False
    assert found(net, rule(one_of=(number - 1, number + 1)), shape).ok is False
    assert found(net, rule(one_of=(1, number)), shape).ok
    assert found(net, rule(at_least=number, at_most=number), shape).ok


def test_a_batch_norm_behind_a_linear_layer_folds() -> None:
    linear, norm = nn.Linear(144, 5, bias=False), nn.BatchNorm1d(5)
    number = numel(fuse_linear_bn_eval(linear.eval(), norm.eval()).parameters())
    net = nn.Sequential(nn.Flatten(), linear, norm)
    assert found(net, Parameters(exactly=number, count="deployed"), SMALL).ok


@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (mixed, SMALL),
        (for_cifar, CIFAR),
        (models.mnist_12k, MNIST),
        (models.mnist_12k_source, MNIST),
        (lambda: nn.Sequential(nn.ConvTranspose2d(1, 3, 3, 2), nn.Conv2d(3, 2, (1, 5))), SMALL),
    ],
    ids=["mixed", "cifar", "mnist_12k", "source", "transposed"],
)
def test_macs_as_torch_counts_them(make: Callable[[], nn.Module], shape: tuple[int, ...]) -> None:
    net = make().eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net(torch.zeros(1, *shape))
    flops = counter.get_total_flops()
    assert flops % 2 == 0
    assert_limits(net, Macs, flops // 2, shape)


def test_macs_name_the_heaviest() -> None:
    finding = found(nn.Sequential(conv(1, 9), conv(9, 1, 1)), Macs(at_most=1), SMALL)
    assert "0: conv2d 11,664 (90 %), 1: conv2d 1,296 (10 %)" in finding.evidence[0]


# A convolution to 2 x 8 x 8, a relu in place, a pool to 2 x 4 x 4; the input is 1 x 10 x 10.
def in_place() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(inplace=True), nn.MaxPool2d(2))


# A convolution to 4 x 8 x 8, a batch norm and a relu of that size, a convolution to 1 x 6 x 6.
def with_norm() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 1, 3))


# A convolution to 4 x 8 x 8, a depthwise one to the same, a convolution to 1 x 6 x 6.
def depthwise() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 3, padding=1, groups=4), nn.Conv2d(4, 1, 3)
    )


TEN = (1, 10, 10)
WIDE, POOLED, MAP, LAST = 2 * 64, 2 * 16, 4 * 64, 36
PEAKS = {
    "runs": (in_place, "inference peak", 4 * (WIDE + POOLED), "2: max_pool2d"),
    "runs, in full": (in_place, "as run", 4 * (WIDE + POOLED), "2: max_pool2d"),
    "nothing in place": (in_place, "as run, nothing in place", 4 * 2 * WIDE, "1: relu"),
    "int8": (in_place, "int8 peak", WIDE + POOLED, "2: max_pool2d"),
    "int8, nothing in place": (in_place, "int8, nothing in place", 2 * WIDE, "1: relu"),
    "norm": (with_norm, "inference peak", 4 * 2 * MAP, "1: batch_norm"),
    "norm folded": (with_norm, "as run, batch norm folded", 4 * 2 * MAP, "2: relu"),
    "norm, int8": (with_norm, "int8 peak", MAP + LAST, "3: conv2d"),
    "norm, fused": (with_norm, "as run, batch norm folded, fused", 4 * (MAP + LAST), "3: conv2d"),
    "norm, fused, not folded": (with_norm, "int8, fused", 2 * MAP, "1: batch_norm"),
    "norm, int8, not fused": (with_norm, "int8, batch norm folded", 2 * MAP, "2: relu"),
    "depthwise": (depthwise, "int8 peak", 2 * MAP, "1: conv2d"),
    "depthwise in place": (depthwise, "int8, depthwise in place", MAP + LAST, "2: conv2d"),
    "norm, int8, not folded": (with_norm, "int8", 2 * MAP, "1: batch_norm"),
}


@pytest.mark.parametrize("name", PEAKS)
def test_memory_by_hand(name: str) -> None:
    make, accounting, number, where = PEAKS[name]
    assert_limits(make(), partial(Memory, accounting=accounting), number, TEN)
    finding = found(make(), Memory(at_most=1, accounting=accounting), TEN)
    assert where in finding.evidence[0]


def saved_by_torch(net: nn.Module, shape: Sequence[int]) -> int:
    """Bytes that autograd keeps for one more sample."""
    own = {p.untyped_storage().data_ptr() for p in (*net.parameters(), *net.buffers())}

    def saved(batch: int) -> int:
        kept: dict[int, Tensor] = {}

        def keep(tensor: Tensor) -> Tensor:
            kept[tensor.untyped_storage().data_ptr()] = tensor
            return tensor

        with saved_tensors_hooks(keep, lambda tensor: tensor):
            out = net.train()(torch.randn(batch, *shape))
        del out
        return sum(t.untyped_storage().nbytes() for at, t in kept.items() if at not in own)

    return saved(4) - saved(3)


@pytest.mark.parametrize(
    ("make", "shape"),
    [(in_place, TEN), (with_norm, TEN), (mixed, SMALL), (models.mnist_12k_source, MNIST)],
    ids=["in place", "norm", "mixed", "mnist_12k_source"],
)
def test_memory_saved_for_backward_as_autograd_saves_it(
    make: Callable[[], nn.Module], shape: tuple[int, ...]
) -> None:
    number = saved_by_torch(make(), shape)
    rule = Memory(exactly=number, accounting="saved for backward")
    finding = found(make(), rule, shape)
    assert finding.ok, (finding.measured, number)


@pytest.mark.parametrize("stored_as", ["as stored", "float32", "int8"])
def test_bytes_of_weights(stored_as: str) -> None:
    net = idle_besides()
    stored = sum(t.nbytes for t in (*net.parameters(), *net.buffers()))
    deployed = counted_by_torch(net)["deployed"]
    number = {"as stored": stored, "float32": 4 * deployed, "int8": deployed}[stored_as]
    assert_limits(net, partial(WeightBytes, stored_as=stored_as), number, SMALL)


def test_bytes_of_half_precision() -> None:
    net = nn.Linear(6, 5).half()
    assert found(net, WeightBytes(exactly=2 * 35), (6,)).ok
    assert found(net, WeightBytes(exactly=4 * 35, stored_as="float32"), (6,)).ok


# Fields -----------------------------------------------------------------------------------------

# Each line: kernels of the convolutions (with padding, so that none is lost), p for a pool of 2.
# A pool of 2 adds its jump to the size and doubles the jump; a kernel k adds (k - 1) jumps.
AT_POOLS = {
    "2 and 2": ("33p33p", [5, 5], [5, 14]),  # 5, 6, 14
    "3 and 3": ("333p333p", [7, 7], [7, 20]),  # 7, 8, 20
    "5s": ("55p3p", [9, 3], [9, 14]),  # 9, 10, 14
    "7s": ("7p7p", [7, 7], [7, 20]),
    "1x1 adds nothing": ("3313p1p", [7, 1], [7, 8]),
    "at once": ("p3p", [1, 3], [1, 6]),  # 1, 2, 6
    "three": ("3p3p3p", [3, 3, 3], [3, 8, 18]),  # 3, 4, 8, 10, 18
    "no pool": ("333", [], []),
}  # fmt: skip


def stack(said: str) -> nn.Module:
    layers: list[nn.Module] = []
    channels = 1
    for kind in said:
        layers.append(nn.MaxPool2d(2) if kind == "p" else conv(channels, 2, int(kind)))
        channels = channels if kind == "p" else 2
    return nn.Sequential(*layers)


@pytest.mark.parametrize("name", AT_POOLS)
def test_fields_at_pools_by_hand(name: str) -> None:
    said, local, absolute = AT_POOLS[name]
    for counted, sizes in [("stage", local), ("image", absolute)]:
        allowed = tuple(sizes) or (1,)
        right = found(stack(said), FieldAtPools(one_of=allowed, counted=counted))
        assert right.ok
        if not sizes:
            assert "no such pool" in right.measured
            continue
        assert right.measured == ", ".join(map(str, sizes))
        pools = [i for i, kind in enumerate(said) if kind == "p"]
        assert [line.split(":")[0] for line in right.evidence] == [str(i) for i in pools]
        for line, near, far in zip(right.evidence, local, absolute, strict=True):
            assert f"stage-local {near}, absolute {far}" in line
        wrong = found(stack(said), FieldAtPools(at_most=max(sizes) - 1 or 1, counted=counted))
        assert wrong.ok is (max(sizes) == 1)
        if not wrong.ok:
            assert wrong.margin == -1
            marked = [i for i, line in zip(pools, wrong.evidence, strict=True) if "breaks" in line]
            assert marked == [i for i, s in zip(pools, sizes, strict=True) if s == max(sizes)]


def pools_of_both_kinds() -> nn.Module:
    """Reads 3 at the average, then 4 and 8 at the maximum."""
    return nn.Sequential(conv(1, 2), nn.AvgPool2d(2), conv(2, 2), nn.MaxPool2d(2))


def strided() -> nn.Module:
    """Reads 3, and 3 + 2 * 2 = 7 at the pool."""
    return nn.Sequential(conv(1, 2, stride=2), conv(2, 2), nn.MaxPool2d(2))


def overlapping() -> nn.Module:
    """Reads 3; a pool of 3 makes 5; 5 + 2 * 2 = 9 at the second."""
    return nn.Sequential(conv(1, 2), nn.MaxPool2d(3, 2), conv(2, 2), nn.MaxPool2d(2))


def lopsided() -> nn.Module:
    """Reads 3 x 5."""
    return nn.Sequential(nn.Conv2d(1, 2, (3, 5)), nn.MaxPool2d(2))


def parallel() -> nn.Module:
    """The larger of 3 and 5."""
    return Net(
        lambda net, x: net.pool(net.a(x) + net.b(x)),
        a=conv(1, 2),
        b=conv(1, 2, 5),
        pool=nn.MaxPool2d(2),
    )


@pytest.mark.parametrize(
    ("make", "rule", "ok", "measured"),
    [
        (pools_of_both_kinds, FieldAtPools(exactly=8, counted="image"), True, "8"),
        (pools_of_both_kinds, FieldAtPools(exactly=3, pools="every"), True, "3, 3"),
        (
            pools_of_both_kinds,
            FieldAtPools(one_of=(3, 8), counted="image", pools="every"),
            True,
            "3, 8",
        ),
        (strided, FieldAtPools(exactly=7), True, "7"),
        (overlapping, FieldAtPools(one_of=(3, 9), counted="image"), True, "3, 9"),
        (overlapping, FieldAtPools(exactly=3), True, "3, 3"),
        (lopsided, FieldAtPools(one_of=(3, 5)), True, "3 x 5"),
        (lopsided, FieldAtPools(exactly=5), False, "3 x 5"),
        (parallel, FieldAtPools(exactly=5), True, "5"),
        (lopsided, FieldSize(at_least=4), True, "4 x 6"),
        (lopsided, FieldSize(at_least=5), False, "4 x 6"),
        (lopsided, FieldSize(exactly=3, layer="0"), False, "3 x 5"),
        (partial(stack, "333"), FieldSize(exactly=7), True, "7"),
        (partial(stack, "333"), FieldSize(exactly=5, layer="1"), True, "5"),
        (partial(stack, "33p33"), FieldSize(exactly=14), True, "14"),
        (partial(stack, "33p33"), FieldSize(at_least=15), False, "14"),
        (strided, FieldSize(exactly=9), True, "9"),
        (partial(conv, 1, 2, dilation=3, padding=3), FieldSize(exactly=7), True, "7"),
        (partial(stack, "33p33"), CoversInput(), False, "14 of 28"),
        (partial(stack, "333p333p33"), CoversInput(), True, "38 of 28"),  # 20, 22, 38
        (partial(stack, "333p333p33"), CoversInput(layer="pool"), None, ""),
        (partial(stack, "333p333p33"), CoversInput(layer="7"), False, "22 of 28"),
        (lambda: nn.Sequential(nn.Conv2d(1, 2, 27)), CoversInput(), False, "27 of 28"),
        (lambda: nn.Sequential(nn.Conv2d(1, 2, 28)), CoversInput(), True, "28 of 28"),
        (lambda: nn.Sequential(nn.Conv2d(1, 2, (28, 27))), CoversInput(), False, "28 x 27 of 28"),
    ],
)
def test_fields_by_hand(
    make: Callable[[], nn.Module], rule: Rule, ok: bool | None, measured: str
) -> None:
    finding = found(make(), rule)
    assert finding.ok is ok, finding
    assert measured in finding.measured
    if "," not in measured:
        assert finding.measured == measured or ok is None


# What follows what ------------------------------------------------------------------------------


def classifier(more: int = 0) -> nn.Module:
    """Batch norm, pool, then some convolutions and a linear layer."""
    return nn.Sequential(
        conv(1, 2),
        nn.BatchNorm2d(2),
        nn.MaxPool2d(2),
        *(conv(2, 2) for _ in range(more)),
        nn.Flatten(),
        nn.Linear(2 * 196, 3),
    )


def short_cut() -> nn.Module:
    """From the pool two ways lead out: over two convolutions, or over none."""
    return Net(
        lambda net, x: (lambda y: y + net.b(net.a(y)))(net.pool(x)),
        pool=nn.MaxPool2d(2),
        a=conv(1, 2),
        b=conv(2, 1),
    )


def uneven_ways() -> nn.Module:
    """Three convolutions lead to the pool on one way, one on the other."""
    return Net(
        lambda net, x: net.pool(net.a(x) + net.d(net.c(net.b(x)))),
        a=conv(1, 2),
        b=conv(1, 2),
        c=conv(2, 2, 1),
        d=conv(2, 2),
        pool=nn.MaxPool2d(2),
    )


@pytest.mark.parametrize(
    ("make", "rule", "ok", "measured"),
    [
        (classifier, Distance("max_pool", exactly=1), True, "1"),
        (classifier, Distance("max_pool", at_least=2), False, "1"),
        (partial(classifier, 2), Distance("max_pool", exactly=3), True, "3"),
        (partial(classifier, 2), Distance("batch_norm", exactly=3), True, "3"),
        (partial(classifier, 2), Distance("conv", exactly=1), True, "1"),
        (partial(classifier, 2), Distance("dropout", at_least=9), True, "no dropout runs"),
        (short_cut, Distance("max_pool", exactly=0), True, "0"),
        (short_cut, Distance("max_pool", at_least=1), False, "0"),
        (partial(stack, "33p333p"), ConvsBeforePool(one_of=(2, 3)), True, "2, 3"),
        (partial(stack, "33p333p"), ConvsBeforePool(near=3, within=1), True, "2, 3"),
        (partial(stack, "3p333p"), ConvsBeforePool(near=3, within=1), False, "1, 3"),
        (partial(stack, "31p13p"), ConvsBeforePool(exactly=1, kernel=3), True, "1, 1"),
        (partial(stack, "31p13p"), ConvsBeforePool(exactly=2), True, "2, 2"),
        (partial(stack, "33p33"), ConvsBeforePool(exactly=2), True, "2"),
        (partial(stack, "3p"), ConvsBeforePool(exactly=1, kernel=(3, 3)), True, "1"),
        (partial(stack, "333"), ConvsBeforePool(exactly=9), True, "no max_pool runs"),
        (uneven_ways, ConvsBeforePool(exactly=3), True, "3"),
        (uneven_ways, ConvsBeforePool(exactly=2, kernel=3), True, "2"),
        (pools_of_both_kinds, ConvsBeforePool(exactly=2), True, "2"),
        (partial(stack, "3p3pp"), Count("max_pool", exactly=3), True, "3"),
    ],
)
def test_what_follows_what_by_hand(
    make: Callable[[], nn.Module], rule: Rule, ok: bool, measured: str
) -> None:
    finding = found(make(), rule)
    assert finding.ok is ok, finding
    assert finding.measured == measured


@pytest.mark.parametrize(
    ("conv", "kept"),
    [
        (nn.Conv2d(1, 2, 3, padding=1), True),
        (nn.Conv2d(1, 2, 3, padding="same", dilation=2), True),
        (nn.Conv2d(1, 2, 3, padding=1, stride=2), True),
        (nn.Sequential(nn.ZeroPad2d((0, 2, 0, 2)), nn.Conv2d(1, 2, 3)), True),
        (nn.Sequential(nn.ZeroPad2d(1), nn.ReLU(), nn.Conv2d(1, 2, 3)), True),
        (nn.Conv2d(1, 2, 2), False),
        (nn.Conv2d(1, 2, 4, padding=1), False),
        (nn.Sequential(nn.ZeroPad2d((1, 0, 1, 0)), nn.Conv2d(1, 2, 3)), False),
        (nn.Conv2d(1, 2, (3, 1), padding=(1, 1)), False),
    ],
)
def test_same_padding_keeps_the_size(conv: nn.Module, kept: bool) -> None:
    shape = conv(torch.zeros(1, 1, 28, 28)).shape[2:]
    stride = 2 if 14 in shape else 1
    assert (tuple(shape) == (28 // stride,) * 2) == kept
    assert check(conv, (1, 28, 28), Padding("same")).ok is kept


def test_what_is_squeezed_for_a_gate_is_no_global_pool() -> None:
    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.squeeze = nn.Conv2d(1, 4, 3, padding=1), nn.Linear(4, 4)
            self.last = nn.Linear(4 * 64, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = self.conv(x)
            gate = self.squeeze(x.mean((2, 3))).sigmoid()
            return self.last((x * gate[:, :, None, None]).flatten(1))

    report = check(
        Gated(),
        (1, 8, 8),
        [
            Count("global_average_pool", at_least=1),
            Count("global_average_pool", at_most=0),
            Count("fully_connected", exactly=1),
        ],
    )
    assert [finding.ok for finding in report.findings] == [False, True, True]
    assert "mean: only scales what has places, as a gate" in report.findings[0].evidence
    assert report.findings[2].evidence[0] == "last: linear"


def test_a_layer_of_a_block_may_be_left_out() -> None:
    def block(*layers: nn.Module) -> nn.Module:
        return nn.Sequential(nn.Conv2d(1, 4, 3), *layers, nn.Conv2d(4, 4, 3))

    rule = BlockOrder(("conv", "batch_norm?", "relu", "dropout?"))
    for layers, kept in (
        ([nn.ReLU()], True),
        ([nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.1)], True),
        ([nn.ReLU(), nn.Dropout(0.1)], True),
        ([nn.ReLU(), nn.BatchNorm2d(4)], False),
        ([nn.Dropout(0.1)], False),
    ):
        assert check(block(*layers), (1, 8, 8), rule).ok is kept, layers


def test_the_last_convolution_is_none_of_a_gate() -> None:
    class Gate(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.down, self.up = nn.Conv2d(10, 2, 1), nn.Conv2d(2, 10, 1)

        def forward(self, x: Tensor) -> Tensor:
            gate = self.up(self.down(x.mean((2, 3), keepdim=True)).relu())
            return x * gate.sigmoid()

    tail = [nn.BatchNorm2d(10), nn.Dropout(0.1), Gate(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    net = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 10, 3), *tail)
    finding = check(net, (1, 12, 12), CleanPrediction(("batch_norm", "dropout"))).findings[0]
    assert finding.ok is False
    assert finding.evidence == ("from 2: conv2d on: 3: batch_norm, 4: dropout",)
    assert check(net, (1, 12, 12), BlockOrder(("conv", "relu"))).ok is True


@pytest.mark.parametrize("pools", ["max", "every"])
def test_a_pool_over_the_whole_map_begins_no_stage(pools: str) -> None:
    head = [nn.MaxPool2d(2), nn.Conv2d(8, 10, 3), nn.AdaptiveMaxPool2d(1), nn.Flatten()]
    net = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), *head)
    finding = check(net, (1, 28, 28), FieldAtPools(exactly=3, pools=pools)).findings[0]
    assert (finding.ok, finding.measured) == (True, "3")


def test_padding_behind_arithmetic() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(1, 4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv((nn.functional.pad(x, (1, 1, 1, 1)) - 0.13) / 0.31)

    verdicts = [check(Scaled(), (1, 8, 8), Padding(cells)).ok for cells in (1, "same", 0)]
    assert verdicts == [True, True, False]
