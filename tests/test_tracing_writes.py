"""What is written in place is followed, however it is written; what cannot be is refused."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from gradients import SHAPE, Does, check
from torch import Tensor, nn

from constrained_cnn.budget import measure_budget
from constrained_cnn.errors import TracingError
from constrained_cnn.receptive_field import measure_receptive_field
from constrained_cnn.tracing import trace


def conv(into: int = 2, out: int = 2) -> nn.Module:
    return nn.Conv2d(into, out, 3, padding=1)


def like(x: Tensor) -> Tensor:
    return torch.zeros(x.shape, device=x.device, dtype=x.dtype)


def added_to_a_view(x: Tensor, a: nn.Module, b: nn.Module) -> Tensor:
    y = like(x)
    y[:, :, :].add_(a(x))
    return b(y) + x


def added_to_a_slice(x: Tensor, a: nn.Module, b: nn.Module) -> Tensor:
    y = like(x)
    part = y[:, :1]
    part += a(x)[:, :1]
    return b(y) + x


def added_to_another_shape(x: Tensor, a: nn.Module, b: nn.Module) -> Tensor:
    y = like(x)
    y.view(x.shape[0], 2, -1).add_(a(x).flatten(2))
    return b(y) + x


def copied_into_a_channel(x: Tensor, a: nn.Module, b: nn.Module) -> Tensor:
    y = like(x)
    y[:, 0].copy_(a(x)[:, 0])
    return b(y) + x


def read_through_an_older_view(x: Tensor, a: nn.Module, b: nn.Module) -> Tensor:
    y = like(x)
    view = y[:]
    y.copy_(a(x))
    return b(view)


def cumulated_under_a_view(x: Tensor, a: nn.Module, b: nn.Module) -> Tensor:
    y = a(x) * 1
    view = y[:, :, :]
    y.cumsum_(3)
    return b(view)


def filled(x: Tensor, a: nn.Module, b: nn.Module) -> Tensor:
    return torch.zeros_like(x).fill_(a(x).mean()) + x


def in_a_window(x: Tensor, a: nn.Module, b: nn.Module) -> Tensor:
    y = like(x)
    y[:, :, 2:6] += a(x)[:, :, 2:6]
    return y + x


def after_a_norm(x: Tensor, a: nn.Module, b: nn.Module) -> Tensor:
    x = nn.functional.batch_norm(a(x), torch.zeros(2).to(x), torch.ones(2).to(x))
    y = torch.zeros_like(x)
    y[:, :1, :-1] = x[:, :1, 1:]
    y[:, 1:] = x[:, 1:]
    return y


def added_to_what_is_cut(x: Tensor, a: nn.Module, b: nn.Module) -> Tensor:
    y = torch.cat([a(x), b(x)], 1)[:, :2]
    y += x
    return y


WRITES: list[Callable[..., Tensor]] = [
    added_to_a_view,
    added_to_a_slice,
    added_to_another_shape,
    copied_into_a_channel,
    read_through_an_older_view,
    cumulated_under_a_view,
    filled,
    in_a_window,
    after_a_norm,
    added_to_what_is_cut,
]


@pytest.mark.parametrize("write", WRITES, ids=lambda write: write.__name__)
def test_what_is_written_is_followed(write: Callable[..., Tensor]) -> None:
    torch.manual_seed(0)
    check(Does(write, nn.Conv2d(2, 2, 1), nn.Conv2d(2, 2, 1)))


def written_by_out(x: Tensor, a: nn.Module, b: nn.Module) -> Tensor:
    y = torch.zeros(x.shape[0], 4, *x.shape[2:], device=x.device)
    torch.mul(a(x), 2, out=y[:, :2])
    return b(y)


def past_detach(x: Tensor, a: nn.Module, b: nn.Module) -> Tensor:
    y = torch.zeros(x.shape[0], 4, *x.shape[2:], device=x.device)
    y.detach()[:, :2].copy_(a(x))
    return b(y)


@pytest.mark.parametrize("write", [written_by_out, past_detach])
def test_what_hides_from_gradients_is_followed_too(write: Callable[..., Tensor]) -> None:
    field = measure_receptive_field(Does(write, conv(), conv(4)), SHAPE)
    assert [axis.size for axis in field.axes] == [5, 5]


def into_a_weight(x: Tensor, a: nn.Module) -> Tensor:
    assert isinstance(a.weight, Tensor)
    a.weight.data.add_(x.mean())
    return a(x)


def test_a_write_into_a_weight_is_refused() -> None:
    with pytest.raises(TracingError, match="writes in place into what another tensor is a view of"):
        trace(Does(into_a_weight, conv()), SHAPE)


def test_what_changes_unit_by_unit_needs_no_second_front_end() -> None:
    def run(x: Tensor, a: nn.Module) -> Tensor:
        return F.relu(a(x).flatten(2), inplace=True)

    assert [layer.op for layer in trace(Does(run, conv()), SHAPE).layers] == [
        *("conv2d", "flatten", "relu")
    ]


def test_what_is_set_to_zero_depends_on_nothing() -> None:
    def run(x: Tensor, a: nn.Module) -> Tensor:
        return a(x).zero_() + x

    graph = trace(Does(run, conv()), SHAPE)
    assert [layer.op for layer in graph.layers] == ["conv2d", "add"]
    assert [axis.size for axis in measure_receptive_field(graph).axes] == [1, 1]


class Builds(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if not hasattr(self, "built"):
            self.built = nn.Conv2d(2, 5, 1)
        return self.built(x)


def test_a_parameter_that_is_not_registered_is_refused() -> None:
    network = Builds()
    with pytest.raises(
        TracingError, match=r"parameter of shape \(5, 2, 1, 1\) that is not registered"
    ):
        measure_budget(network, SHAPE)
    network(torch.zeros(1, *SHAPE))
    assert measure_budget(network, SHAPE).parameters.total == 15
    outside = conv()
    with pytest.raises(TracingError, match="not registered"):
        measure_budget(Does(lambda x: outside(x)), SHAPE)
