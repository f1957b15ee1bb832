"""The fast pool gives what torch's own gives, bit for bit, forward and backward."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from constrained_cnn.blocks import MaxPool2d, Transition1x1
from constrained_cnn.blocks import _pool as pool_module

LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda x: x,
    "channels last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "transposed": lambda x: x.transpose(2, 3),
    "a slice": lambda x: torch.cat([x, x], 3)[..., ::2],
}


def values_and_gradient(pool: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    x = x.detach().requires_grad_()
    y = pool(x)
    torch.manual_seed(1)
    y.backward(torch.randn(y.shape, dtype=y.dtype))
    assert x.grad is not None
    return y.detach(), x.grad


def check_same(x: Tensor, *, pool: MaxPool2d | None = None) -> None:
    """Assert that values and gradient are those of torch's layer of the same settings."""
    pool = MaxPool2d(2) if pool is None else pool
    torchs = nn.MaxPool2d(
        pool.kernel_size, pool.stride, pool.padding, pool.dilation, ceil_mode=pool.ceil_mode
    )
    for ours, theirs in zip(
        values_and_gradient(pool, x), values_and_gradient(torchs, x), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("size", [(4, 6), (5, 6), (4, 7), (5, 7), (2, 2), (3, 3)])
def test_same_as_torch(size: tuple[int, int], dtype: torch.dtype, layout: str) -> None:
    check_same(LAYOUTS[layout](torch.randn(3, 2, *size).to(dtype)))


def test_of_equal_cells_the_first_gets_the_gradient() -> None:
    """All 81 patterns of three values in four cells, which holds every kind of tie."""
    values = torch.cartesian_prod(*[torch.tensor([0.0, 1.0, -1.0])] * 4)
    check_same(values.reshape(1, 81, 2, 2))


def test_special_values() -> None:
    x = torch.randn(2, 3, 6, 6)
    x[0, 0, 0, 0] = torch.inf
    x[0, 1, 2] = -torch.inf
    check_same(x)
    x[1, 1, 3, 2] = torch.nan
    assert torch.equal(MaxPool2d(2)(x).isnan(), nn.MaxPool2d(2)(x).isnan())


@pytest.mark.parametrize(
    "pool",
    [
        MaxPool2d(3),
        MaxPool2d(2, stride=1),
        MaxPool2d(2, padding=1),
        MaxPool2d(2, dilation=2),
        MaxPool2d(2, ceil_mode=True),
        MaxPool2d((2, 2), stride=(2, 2)),
        MaxPool2d((2, 1)),
    ],
    ids=str,
)
def test_other_settings(pool: MaxPool2d) -> None:
    check_same(torch.randn(2, 3, 7, 7), pool=pool)


def test_other_inputs() -> None:
    check_same(torch.randn(3, 6, 6))  # without a batch
    assert MaxPool2d(2)(torch.zeros(0, 3, 6, 6)).shape == (0, 3, 3, 3)
    assert len(MaxPool2d(2, return_indices=True)(torch.randn(1, 1, 4, 4))) == 2
    with pytest.raises(RuntimeError, match="too small"):
        MaxPool2d(2)(torch.zeros(1, 1, 1, 1))


def test_the_fast_way_is_taken_in_training_only(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[Tensor] = []
    apply = pool_module._Pool.apply

    def watched(x: Tensor) -> Tensor:
        taken.append(x)
        return apply(x)

    monkeypatch.setattr(pool_module._Pool, "apply", watched)
    x = torch.randn(1, 1, 4, 4)
    pool = MaxPool2d(2)
    assert torch.equal(pool(x), pool.eval()(x))
    assert len(taken) == 1
    Transition1x1(1, 1, pool="before")(x)
    assert len(taken) == 2


def test_derivatives() -> None:
    x = torch.randn(2, 2, 5, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(MaxPool2d(2), x)
    assert torch.autograd.gradgradcheck(MaxPool2d(2), x)
