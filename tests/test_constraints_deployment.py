"""The rule that every norm folds, and what another order of layers would save."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from constrained_cnn.blocks import ConvBNDrop
from constrained_cnn.budget import advise, fold_bn, measure_budget
from constrained_cnn.constraints import EveryNormFolds, Memory, Verdict, check, rule_from_dict
from constrained_cnn.tracing import trace

PASS, FAIL, CANNOT_TELL = Verdict.PASS, Verdict.FAIL, Verdict.CANNOT_TELL


def seq(*layers: nn.Module) -> nn.Sequential:
    return nn.Sequential(*layers)


class Spectrum(nn.Module):
    """Nobody has described it."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.fft.fft2(x).abs()


class Dead(nn.Module):
    """A norm that leaves something, on which no output depends."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        self.norm(x)
        return self.conv(x)


NETWORKS: dict[str, tuple[Callable[[], nn.Module], Verdict, str, str]] = {
    "no norm": (lambda: nn.Conv2d(3, 4, 3), PASS, "there is no norm", ""),
    "behind a convolution": (
        lambda: seq(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()),
        *(PASS, "1 of 1 norms folds", ""),
    ),
    "before a convolution": (
        lambda: seq(nn.ReLU(), nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3)),
        *(PASS, "1 of 1 norms folds", ""),
    ),
    "before one with padding": (
        lambda: seq(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)),
        *(FAIL, "1 of 2 norms folds", "0: batch_norm: leaves its shift"),
    ),
    "last of all": (
        lambda: seq(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.BatchNorm2d(4)),
        *(FAIL, "0 of 1 norms fold", "2: batch_norm: leaves its scale and shift, for it goes out"),
    ),
    "group norm": (
        lambda: seq(nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4)),
        *(FAIL, "0 of 1 norms fold", "1: group_norm: stays as it is"),
    ),
    "without statistics": (
        lambda: seq(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False)),
        *(FAIL, "0 of 1 norms fold", "anew for each batch"),
    ),
    "dead": (Dead, PASS, "there is no norm", ""),
    "with what nobody knows": (
        lambda: seq(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), Spectrum()),
        *(CANNOT_TELL, "cannot tell", "fft_fft2"),
    ),
    "left, with what nobody knows": (
        lambda: seq(nn.Conv2d(3, 4, 3), Spectrum(), nn.BatchNorm2d(4)),
        *(FAIL, "0 of 1 norms fold", "2: batch_norm: leaves its scale and shift"),
    ),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_every_norm_folds(name: str) -> None:
    make, verdict, measured, evidence = NETWORKS[name]
    (finding,) = check(
        trace(make(), (3, 8, 8), strict=False), constraints=EveryNormFolds()
    ).findings
    assert (finding.verdict, finding.measured) == (verdict, measured)
    assert evidence in " ".join(finding.evidence)
    assert bool(finding.evidence) == (verdict is not PASS)


def test_a_file_names_it() -> None:
    assert rule_from_dict({"rule": "norms_fold"}) == EveryNormFolds()


def net(order: str, padding: int = 1, bias: bool = False) -> nn.Module:
    def block(channels: int, out: int) -> nn.Module:
        return ConvBNDrop(channels, out, padding=padding, order=order, bias=bias)

    return seq(block(1, 4), block(4, 8), block(8, 4), nn.AdaptiveAvgPool2d(1), nn.Flatten())


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("padding", [0, 1])
def test_what_another_order_saves_is_what_the_network_in_that_order_has_less(
    padding: int, bias: bool
) -> None:
    shape = (1, 12, 12)
    now, then = (net(f"conv-{order}-drop", padding, bias) for order in ("relu-bn", "bn-relu"))
    before, after = measure_budget(now, shape), measure_budget(then, shape)
    order = advise(now, shape).order
    assert order is not None
    assert order.parameters == before.parameters.deployed - after.parameters.deployed
    assert order.int8_peak == before.memory.int8_peak - after.memory.int8_peak
    # The last norm goes out of the network; those before it go forward where nothing is padded.
    assert order.norms == tuple(f"{i}.norm: batch_norm" for i in ((0, 1, 2) if padding else (2,)))
    assert sum(isinstance(m, nn.Identity) for m in fold_bn(then, shape).modules()) == 3


def test_the_remark_is_in_the_evidence_and_in_the_advice() -> None:
    (finding,) = check(net("conv-relu-bn-drop"), (1, 12, 12), EveryNormFolds()).findings
    assert finding.excess == "3 stay"
    assert "would fold 3 more: 3 operations, 4 parameters and 576 B" in finding.evidence[-1]
    advice = advise(net("conv-relu-bn-drop"), (1, 12, 12))
    assert str(advice.order) in str(advice)
    assert advice.to_dict()["order"]["norms"] == list(advice.order.norms if advice.order else ())
    better = advise(net("conv-bn-relu-drop"), (1, 12, 12))
    assert better.order is None
    assert "would fold" not in str(better)


def test_less_may_be_needed_where_an_operation_is_not_known() -> None:
    class Unknown(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.special.bessel_j0(x)

    network = nn.Sequential(nn.Conv2d(1, 8, 3), Unknown(), nn.BatchNorm2d(8), nn.Conv2d(8, 4, 3))
    for accounting in ("int8 peak", "as run, fused", "int8, batch norm folded"):
        report = check(network, (1, 28, 28), Memory(at_most=8_000, accounting=accounting))
        assert report.ok is None
    report = check(network, (1, 28, 28), Memory(at_most=8_000))
    assert report.ok is False  # as it runs no operation makes it less
    assert report.failed[0].measured.startswith("at least")
