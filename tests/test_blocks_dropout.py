"""The fast dropout has the law of torch's own, in every layout, forward and backward."""

from collections.abc import Callable

import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from constrained_cnn.blocks import Dropout

LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda x: x,
    "channels last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "transposed": lambda x: x.transpose(2, 3),
    "a slice": lambda x: torch.cat([x, x], 3)[..., ::2],
    "expanded": lambda x: x[:1].expand(x.shape),
}


@pytest.mark.parametrize("p", [0.069, 0.5, 0.999])
def test_the_share_dropped_is_p(p: float) -> None:
    """Two million draws: the binomial test would see a p off by half a percent of itself."""
    dropped = Dropout(p)(torch.ones(2_000_001)) == 0
    count = int(dropped.sum())
    assert stats.binomtest(count, dropped.numel(), p).pvalue > 1e-4


def test_neighbours_are_independent() -> None:
    """Two masks come out of one 64-bit draw; neither tells of the other."""
    dropped = (Dropout(0.3)(torch.ones(2_000_000)) == 0).reshape(-1, 2)
    table = torch.stack(
        [((dropped == torch.tensor([a, b])).all(1)).sum() for a in (0, 1) for b in (0, 1)]
    )
    assert stats.chi2_contingency(table.reshape(2, 2).numpy()).pvalue > 1e-4


def test_the_sign_bit_is_drawn_too() -> None:
    """Were it always 0, as by default, no odd element would ever be dropped for p below a half."""
    dropped = Dropout(0.3)(torch.ones(100_000)) == 0
    assert abs(dropped[::2].double().mean() - 0.3) < 0.02
    assert abs(dropped[1::2].double().mean() - 0.3) < 0.02


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_what_is_kept_is_scaled_and_the_gradient_goes_the_same_way(
    layout: str, dtype: torch.dtype
) -> None:
    x = LAYOUTS[layout](torch.rand(4, 3, 6, 5) + 1).to(dtype).detach().requires_grad_()
    y = Dropout(0.4)(x)
    assert (y.shape, y.dtype) == (x.shape, x.dtype)
    kept = (y != 0).to(dtype)
    assert 0 < kept.sum() < kept.numel()
    scale = torch.tensor(1 / 0.6, dtype=dtype)
    torch.testing.assert_close(y, x * kept * scale)
    (gradient,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(gradient, kept * scale)


def test_the_global_seed_decides() -> None:
    def draw(seed: int) -> Tensor:
        torch.manual_seed(seed)
        return Dropout(0.5)(torch.ones(64))

    assert torch.equal(draw(1), draw(1))
    assert not torch.equal(draw(1), draw(2))


def test_elsewhere_it_is_torchs_own() -> None:
    x = torch.rand(8, 8)
    assert Dropout(0.5).eval()(x) is x
    assert torch.equal(Dropout(0.0)(x), x)
    assert torch.equal(Dropout(1.0)(x), torch.zeros(8, 8))
    assert Dropout(0.5)(torch.ones(0, 3)).shape == (0, 3)
    y = x.clone()
    assert Dropout(0.5, inplace=True)(y) is y
    assert isinstance(Dropout(0.5), nn.Dropout)


def test_second_derivatives() -> None:
    x = torch.rand(20, dtype=torch.float64, requires_grad=True)
    torch.manual_seed(0)
    y = (Dropout(0.5)(x) ** 3).sum()
    (first,) = torch.autograd.grad(y, x, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), x)
    kept = (first != 0).double()
    torch.testing.assert_close(second, 6 * x * kept * 2**3)
