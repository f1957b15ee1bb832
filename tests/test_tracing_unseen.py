"""What a network does unseen is refused, or is seen after all: never passed over."""

import random
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from constrained_cnn import check, measure_budget, measure_receptive_field, trace
from constrained_cnn.constraints import CleanPrediction, Count, Parameters
from constrained_cnn.errors import ConstrainedCNNError, TracingError

SHAPE = (2, 15, 15)

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script.*")


class Base(nn.Module):
    """Two convolutions; what stands between them is a network's own."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 3, 3, padding=1)

    def between(self, x: Tensor) -> Tensor:
        return x

    def forward(self, x: Tensor) -> Any:
        return self.second(self.between(self.first(x)))


def rows_that_matter(network: nn.Module, unit: int = 7) -> tuple[int, int]:
    """Return the first and last row of the input that change a row of the output."""
    torch.manual_seed(0)
    network.eval()
    x = torch.randn(1, *SHAPE)
    with torch.no_grad():
        base = network(x.clone())[:, :, unit]
        rows = []
        for row in range(SHAPE[1]):
            changed = x.clone()
            changed[:, :, row] += 9
            if not torch.equal(network(changed)[:, :, unit], base):
                rows.append(row)
    return rows[0], rows[-1]


def macs_of(network: nn.Module) -> int:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network.eval()(torch.zeros(1, *SHAPE))
    return counter.get_total_flops() // 2


def scripted(function: Callable[..., Any]) -> Any:
    return torch.jit.script(function)


def _blur(x: Tensor) -> Tensor:
    return F.avg_pool2d(x, 5, 1, 2)


def _blur_in_place(x: Tensor):  # type: ignore[no-untyped-def]
    x.copy_(F.avg_pool2d(x, 5, 1, 2))


def _conv(x: Tensor, weight: Tensor) -> Tensor:
    return F.conv2d(x, weight, padding=1)


def _drop(x: Tensor) -> Tensor:
    return F.dropout(x, 0.5)


def _act_in_place(x: Tensor):  # type: ignore[no-untyped-def]
    x.relu_()


class ScriptedBlur(Base):
    def between(self, x: Tensor) -> Tensor:
        return scripted(_blur)(x)


class ScriptedWrite(Base):
    def between(self, x: Tensor) -> Tensor:
        scripted(_blur_in_place)(x)
        return x


class Data(Base):
    def between(self, x: Tensor) -> Tensor:
        other = torch.zeros_like(x)
        other.data = F.avg_pool2d(x, 5, 1, 2)
        return other + x


class OwnData(Base):
    def between(self, x: Tensor) -> Tensor:
        x.data = F.avg_pool2d(x, 7, 1, 3)
        return x


class Slices(Base):
    def between(self, x: Tensor) -> Tensor:
        out = torch.empty_like(x)
        out[:, :2] = F.avg_pool2d(x[:, :2], 7, 1, 3)
        out[:, 2:] = x[:, 2:]
        return out


class SliceInPlace(Base):
    def between(self, x: Tensor) -> Tensor:
        part = torch.cat([x, F.avg_pool2d(x, 5, 1, 2)], 1)[:, 2:6]
        part += x
        return part


SEEN = [ScriptedBlur, ScriptedWrite, Data, OwnData, Slices, SliceInPlace]


@pytest.mark.parametrize("kind", SEEN, ids=lambda kind: kind.__name__)
def test_what_can_be_seen_is_measured(kind: type[Base]) -> None:
    network = kind()
    (axis, _) = measure_receptive_field(network, SHAPE).axes
    assert axis.interval(7, clipped=True) == rows_that_matter(network)
    assert measure_budget(network, SHAPE).macs == macs_of(network)


def test_a_scripted_convolution_of_the_second_output_costs_what_it_costs() -> None:
    class Two(Base):
        def __init__(self) -> None:
            super().__init__()
            self.wide = nn.Conv2d(4, 64, 3, padding=1)

        def forward(self, x: Tensor) -> Any:
            y = self.first(x)
            return y, scripted(_conv)(y, self.wide.weight)

    network = Two()
    assert measure_budget(network, SHAPE).macs == macs_of(network)


def test_a_scripted_dropout_in_training_mode_only_passes_no_rule_against_it() -> None:
    class Drops(Base):
        def between(self, x: Tensor) -> Tensor:
            return scripted(_drop)(x) if self.training else x

    assert check(Drops(), SHAPE, Count("dropout", at_most=0)).ok is not True


def test_a_scripted_activation_in_place_is_behind_the_last_convolution() -> None:
    class Acts(Base):
        def forward(self, x: Tensor) -> Tensor:
            y = self.second(self.first(x))
            scripted(_act_in_place)(y)
            return y

    assert check(Acts(), SHAPE, CleanPrediction()).ok is False


class NumberInTry(Base):
    def between(self, x: Tensor) -> Tensor:
        try:
            wide = bool(x.abs().sum() > 0)
        except Exception:  # noqa: BLE001 - as a network may have it
            wide = False
        return F.avg_pool2d(x, 5, 1, 2) if wide else x


class RefusalInTry(Base):
    def between(self, x: Tensor) -> Tensor:
        try:
            return torch.fft.fft2(x).real.abs()
        except Exception:  # noqa: BLE001
            return x


class WrittenUnseen(Base):
    def between(self, x: Tensor) -> Tensor:
        with torch._C.DisableTorchFunction():
            x.copy_(F.avg_pool2d(x, 5, 1, 2))
        return x


class OutputUnseen(Base):
    def forward(self, x: Tensor) -> Any:
        y = self.second(self.first(x))
        with torch._C.DisableTorchFunction():
            z = F.avg_pool2d(y, 5, 1, 2)
        return y, z


class OtherMemory(Base):
    def between(self, x: Tensor) -> Tensor:
        z = torch.zeros_like(x)
        z.set_(F.avg_pool2d(x, 5, 1, 2))  # type: ignore[call-overload]
        return z


UNSEEN = [NumberInTry, RefusalInTry, WrittenUnseen, OtherMemory]


@pytest.mark.parametrize("kind", UNSEEN, ids=lambda kind: kind.__name__)
def test_what_cannot_be_seen_is_refused(kind: type[Base]) -> None:
    with pytest.raises(TracingError):
        measure_receptive_field(kind(), SHAPE)
    with pytest.raises(TracingError):
        measure_budget(kind(), SHAPE)


def test_an_output_that_nobody_saw_being_made_is_refused_or_right() -> None:
    try:
        graph = trace(OutputUnseen(), SHAPE)
    except TracingError:
        return
    assert len(graph.outputs) == 2  # torch.export sees it


class InAttribute(Base):
    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.ones(4, 4, 3, 3, requires_grad=True)

    def between(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight, padding=1)


class InList(Base):
    def __init__(self) -> None:
        super().__init__()
        self.weights = {"all": [torch.ones(4, requires_grad=True)]}

    def between(self, x: Tensor) -> Tensor:
        return x * self.weights["all"][0].view(-1, 1, 1)


class InBuffer(Base):
    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale", torch.ones(4, 1, 1, requires_grad=True))

    def between(self, x: Tensor) -> Tensor:
        return x * self.scale


OUTSIDE = torch.ones(4, 1, 1, requires_grad=True)


class Outside(Base):
    def between(self, x: Tensor) -> Tensor:
        return x * OUTSIDE


@pytest.mark.parametrize("kind", [InAttribute, InList, InBuffer, Outside], ids=lambda k: k.__name__)
def test_a_trained_tensor_that_no_module_registers_is_refused(kind: type[Base]) -> None:
    with pytest.raises(TracingError, match="takes a gradient and is no parameter"):
        check(kind(), SHAPE, Parameters(at_most=1_000))


def test_a_trained_tensor_that_is_not_used_is_nothing() -> None:
    class Unused(InAttribute):
        def between(self, x: Tensor) -> Tensor:
            return x

    assert measure_budget(Unused(), SHAPE).macs == macs_of(Base())


class Counter(Base):
    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def between(self, x: Tensor) -> Tensor:
        self.calls += 1
        return F.avg_pool2d(x, 3, 1, 1) if self.calls % 2 else x


CALLS = [0]


class GlobalCounter(Base):
    def between(self, x: Tensor) -> Tensor:
        CALLS[0] += 1
        return x.relu() if CALLS[0] % 2 else x


class PythonCoin(Base):
    def between(self, x: Tensor) -> Tensor:
        return x.relu() if random.random() < 0.5 else x


class NumpyCoin(Base):
    def between(self, x: Tensor) -> Tensor:
        return x.relu() if np.random.rand() < 0.4 else x  # noqa: NPY002


class TorchCoin(Base):
    def between(self, x: Tensor) -> Tensor:
        return x.relu() if torch.rand(1).item() < 0.6 else x


UNSTEADY = [Counter, GlobalCounter, PythonCoin, NumpyCoin, TorchCoin]


@pytest.mark.parametrize("kind", UNSTEADY, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("seed", range(3))
def test_a_forward_that_differs_from_call_to_call_is_refused_with_its_place(
    kind: type[Base], seed: int
) -> None:
    random.seed(seed), np.random.seed(seed), torch.manual_seed(seed)  # noqa: NPY002
    with pytest.raises(TracingError, match="differs from one call to the next, first at"):
        measure_budget(kind(), SHAPE)


class Cached(Base):
    """Makes a table at its first call, as position encodings do."""

    def __init__(self) -> None:
        super().__init__()
        self.table: Tensor | None = None

    def between(self, x: Tensor) -> Tensor:
        if self.table is None:
            self.table = torch.ones(4, 1, 1, device=x.device).relu().cumsum(0)
        return x * self.table


def test_what_the_first_call_makes_for_the_later_ones_is_no_difference() -> None:
    network = Cached()
    before = measure_budget(network, SHAPE)
    network(torch.zeros(1, *SHAPE))
    assert measure_budget(network, SHAPE).macs == before.macs


def test_check_runs_a_network_twice_without_being_asked() -> None:
    class Hidden(Base):
        calls: ClassVar[Any] = iter(range(1_000))

        def between(self, x: Tensor) -> Tensor:
            return x.relu() if next(self.calls) % 2 else x

    with pytest.raises(ConstrainedCNNError, match="differs"):
        check(Hidden(), SHAPE, Count("conv", at_least=1))


class Ghost(nn.Module):
    """Norms whose statistics are those of a part of the batch."""

    def __init__(self, parts: int) -> None:
        super().__init__()
        self.parts = parts
        self.conv, self.drop = nn.Conv2d(2, 4, 3), nn.Dropout(0.1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(x)
        if self.training:
            y = y.view(self.parts, -1, *y.shape[1:]).flatten(2).view_as(y)
        return self.drop(y)


@pytest.mark.parametrize("parts", [2, 3, 4, 7, 9, 10])
def test_a_batch_that_is_cut_into_parts_is_tried(parts: int) -> None:
    ghost, plain = Ghost(parts), Ghost(1)
    assert check(ghost, SHAPE, Count("dropout", at_least=1)).ok is True
    ours, theirs = (measure_budget(net, SHAPE).memory for net in (ghost, plain))
    assert ours.saved_for_backward == theirs.saved_for_backward


def test_a_batch_that_no_number_fits_is_named() -> None:
    (finding,) = check(Ghost(11), SHAPE, Count("dropout", at_least=1)).findings
    assert finding.ok is None
    assert "a batch of 1,009; 2,520 fails too" in finding.evidence[0]


def test_training_runs_when_it_is_asked_for() -> None:
    modes: list[bool] = []

    class Noted(Base):
        def between(self, x: Tensor) -> Tensor:
            modes.append(self.training)
            return x

    graph = trace(Noted(), SHAPE)
    measure_receptive_field(graph)
    assert modes == [False]
    assert graph.training.layers == graph.training.layers
    assert modes == [False, True]
