"""The fast dropout has the law of torch's own, in every layout, forward and backward."""

import math
from collections.abc import Callable

import pytest
import torch
from scipy import stats
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks

from constrained_cnn.blocks import Dropout, _dropout

LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda x: x,
    "channels last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "transposed": lambda x: x.transpose(2, 3),
    "a slice": lambda x: torch.cat([x, x], 3)[..., ::2],
    "expanded": lambda x: x[:1].expand(x.shape),
}

# Up to 0.1 places are drawn, above a mask.
PLACES, MASK = 0.069, 0.4


def dropped_of(p: float, count: int, seed: int = 0) -> Tensor:
    """Return which of ``count`` ones a dropout made 0."""
    torch.manual_seed(seed)
    return Dropout(p)(torch.ones(count)) == 0


def test_both_ways_are_tested() -> None:
    assert PLACES <= _dropout.MOST_PLACES < MASK


@pytest.mark.parametrize("p", [0.001, 0.069, 0.1, 0.5, 0.999])
def test_the_share_dropped_is_p(p: float) -> None:
    """Two million draws: the binomial test would see a p of 0.069 off by a percent of itself."""
    dropped = dropped_of(p, 2_000_001)
    count = int(dropped.sum())
    assert stats.binomtest(count, dropped.numel(), p).pvalue > 1e-4


@pytest.mark.parametrize("apart", [1, 2, 16])
@pytest.mark.parametrize("p", [PLACES, 0.3])
def test_neighbours_are_independent(p: float, apart: int) -> None:
    """Two bits of a mask come out of one 64-bit draw; neither tells of the other."""
    dropped = dropped_of(p, 2_000_000).reshape(-1, 2, apart)
    first, second = dropped[:, 0].flatten(), dropped[:, 1].flatten()
    table = [[int(((first == a) & (second == b)).sum()) for a in (0, 1)] for b in (0, 1)]
    assert stats.chi2_contingency(table).pvalue > 1e-4


@pytest.mark.parametrize("p", [0.01, PLACES, 0.1])
def test_the_steps_between_dropped_elements_are_geometric(p: float) -> None:
    places = dropped_of(p, 3_000_000).nonzero().flatten()
    steps = places.diff()
    longest = int(3 / p)  # the last bin takes all from there on
    seen = torch.bincount(steps.clamp(max=longest), minlength=longest + 1)[1:]
    share = [stats.geom.pmf(step, p) for step in range(1, longest)]
    expected = [len(steps) * part for part in (*share, 1 - sum(share))]
    assert stats.chisquare(seen.numpy(), expected).pvalue > 1e-4
    # and none tells of the next
    assert stats.spearmanr(steps[:-1], steps[1:]).pvalue > 1e-4


@pytest.mark.parametrize("draws", [None, 1, 3])
def test_every_element_is_as_likely(draws: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first and the last too, also where the draws do not reach it and more are needed."""
    if draws is not None:
        monkeypatch.setattr(_dropout, "_enough", lambda count, p: draws)
    size, times, p = 25, 8_000, 0.08
    torch.manual_seed(0)
    ones, drop = torch.ones(size), Dropout(p)
    dropped = torch.stack([drop(ones) == 0 for _ in range(times)])
    values = [stats.binomtest(int(count), times, p).pvalue for count in dropped.sum(0)]
    assert min(values) > 1e-4
    together = torch.bincount(dropped.sum(1).clamp(max=6), minlength=7)
    share = [stats.binom.pmf(count, size, p) for count in range(6)]
    expected = [times * part for part in (*share, 1 - sum(share))]
    assert stats.chisquare(together.numpy(), expected).pvalue > 1e-4


def test_a_number_becomes_the_step_of_its_probability(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step is longer than n with probability (1 - p)^n, to more than 32 bits."""
    p, near = 0.05, 1e-12
    passed = [(1 - p) ** n for n in (1, 2, 3, 40)]
    numbers = [value + off for value in passed for off in (near, -near)]

    def rand(size: int, dtype: torch.dtype, device: str) -> Tensor:
        return torch.tensor([*numbers, 0.0] + [0.5] * (size - 9), dtype=dtype, device=device)

    monkeypatch.setattr(torch, "rand", rand)
    places = _dropout.draw_places(torch.ones(1000), p)  # after 0 there are no more
    assert places.tolist() == [0, 2, 4, 7, 10, 14, 54, 95]


def test_draws_go_on_where_they_do_not_reach_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_dropout, "_enough", lambda count, p: 2)
    torch.manual_seed(0)
    places = _dropout.draw_places(torch.ones(1000), 0.1)
    assert stats.binomtest(len(places), 1000, 0.1).pvalue > 1e-4
    assert (places.diff() > 0).all()
    assert places[-1] < 1000


def test_draws_that_do_not_reach_the_end_are_once_in_a_blue_moon() -> None:
    for p in (1e-6, 0.01, PLACES, 0.1):
        for count in (1, 10, 100, 3_000, 10**5, 10**8):
            assert stats.binom.sf(_dropout._enough(count, p) - 1, count, p) < 1e-14


def test_the_sign_bit_is_drawn_too() -> None:
    """Were it always 0, as by default, no odd element would ever be dropped for p below a half."""
    dropped = dropped_of(0.3, 100_000)
    assert abs(dropped[::2].double().mean() - 0.3) < 0.02
    assert abs(dropped[1::2].double().mean() - 0.3) < 0.02


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("p", [PLACES, MASK])
def test_what_is_kept_is_scaled_and_the_gradient_goes_the_same_way(
    layout: str, dtype: torch.dtype, p: float
) -> None:
    x = LAYOUTS[layout](torch.rand(4, 3, 6, 5) + 1).to(dtype).detach().requires_grad_()
    y = Dropout(p)(x)
    assert (y.shape, y.dtype, y.stride()) == (x.shape, x.dtype, torch.empty_like(x).stride())
    kept = (y != 0).to(dtype)
    assert 0 < kept.sum() < kept.numel()
    scale = torch.tensor(1 / (1 - p), dtype=dtype)
    torch.testing.assert_close(y, x * kept * scale)
    (gradient,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(gradient, kept * scale)


@pytest.mark.parametrize("given", LAYOUTS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("p", [PLACES, MASK])
def test_a_gradient_may_lie_in_memory_in_another_way(layout: str, given: str, p: float) -> None:
    x = LAYOUTS[layout](torch.rand(4, 3, 6, 6) + 1).detach().requires_grad_()
    y = Dropout(p)(x)
    coming = LAYOUTS[given](torch.randn(4, 3, 6, 6))
    (gradient,) = torch.autograd.grad(y, x, coming)
    torch.testing.assert_close(gradient, torch.where(y == 0, 0.0, coming / (1 - p)))
    assert gradient.stride() == y.stride() or p == MASK


@pytest.mark.parametrize("shape", [(), (1,), (3,), (2, 0, 3)])
@pytest.mark.parametrize("p", [PLACES, MASK])
def test_small_tensors(shape: tuple[int, ...], p: float) -> None:
    x = torch.ones(shape, requires_grad=True)
    seen: set[float] = set()
    for _ in range(100):
        y = Dropout(p)(x)
        assert torch.equal(torch.autograd.grad(y.sum(), x)[0], y)
        seen |= set(y.flatten().tolist())
    scale = torch.tensor(1 / (1 - p)).item()
    assert seen == ({0.0, scale} if x.numel() else set())


@pytest.mark.parametrize("p", [1e-320, 1e-12])
def test_a_p_that_drops_nothing(p: float) -> None:
    assert torch.equal(Dropout(p)(torch.ones(1000)), torch.ones(1000))


@pytest.mark.parametrize("p", [PLACES, MASK])
def test_what_is_not_finite_stays_so(p: float) -> None:
    """0 times NaN, or infinity, is NaN: torch's own dropout hides neither, and nor does this."""
    dropped = dropped_of(p, 1000)
    assert 0 < dropped.sum() < 1000
    torch.manual_seed(0)
    x = torch.full((1000,), math.nan, requires_grad=True)
    y = Dropout(p)(x)
    assert y.isnan().all()
    (gradient,) = torch.autograd.grad(y, x, torch.full((1000,), math.inf))
    assert torch.equal(gradient.isnan(), dropped)
    assert torch.equal(gradient.isinf(), ~dropped)
    theirs = nn.functional.dropout(torch.full((1000,), math.inf), p)
    assert set(theirs.abs().nan_to_num(-1, posinf=1).tolist()) == {-1, 1}


@pytest.mark.parametrize("p", [PLACES, MASK])
def test_the_global_seed_decides(p: float) -> None:
    assert torch.equal(dropped_of(p, 256, seed=1), dropped_of(p, 256, seed=1))
    assert not torch.equal(dropped_of(p, 256, seed=1), dropped_of(p, 256, seed=2))


def test_elsewhere_it_is_torchs_own() -> None:
    x = torch.rand(8, 8)
    assert Dropout(0.5).eval()(x) is x
    assert torch.equal(Dropout(0.0)(x), x)
    assert torch.equal(Dropout(1.0)(x), torch.zeros(8, 8))
    assert Dropout(0.5)(torch.ones(0, 3)).shape == (0, 3)
    assert Dropout(PLACES)(torch.ones(0, 3, device="meta")).shape == (0, 3)
    y = x.clone()
    assert Dropout(0.5, inplace=True)(y) is y
    assert isinstance(Dropout(0.5), nn.Dropout)


def test_an_input_that_needs_no_gradient() -> None:
    x = torch.ones(1000)
    assert not Dropout(PLACES)(x).requires_grad
    assert torch.equal(x, torch.ones(1000))
    with torch.inference_mode():
        assert 0 < (Dropout(PLACES)(torch.ones(1000)) == 0).sum() < 200


@pytest.mark.parametrize("p", [PLACES, MASK])
def test_derivatives_are_those_of_differences(p: float) -> None:
    def fixed(x: Tensor) -> Tensor:
        torch.manual_seed(0)
        return Dropout(p)(x.transpose(0, 1)) ** 3

    x = torch.rand(6, 8, dtype=torch.float64, requires_grad=True)
    assert 0 < (fixed(x) == 0).sum() < 48
    torch.autograd.gradcheck(fixed, x)
    torch.autograd.gradgradcheck(fixed, x)


def test_second_derivatives() -> None:
    x = torch.rand(20, dtype=torch.float64, requires_grad=True)
    torch.manual_seed(0)
    y = (Dropout(0.5)(x) ** 3).sum()
    (first,) = torch.autograd.grad(y, x, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), x)
    kept = (first != 0).double()
    torch.testing.assert_close(second, 6 * x * kept * 2**3)


def kept_for_backward(x: Tensor, p: float) -> tuple[Tensor, int]:
    """Return what a dropout gives, and the bytes that autograd keeps of it."""
    kept: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        y = Dropout(p)(x)
    return y, sum(t.untyped_storage().nbytes() for t in kept)


def test_only_the_places_are_kept() -> None:
    x = torch.ones(32, 16, 14, 14, requires_grad=True)
    y, kept = kept_for_backward(x, PLACES)
    assert kept == 4 * int((y == 0).sum())
    assert 13 * kept < kept_for_backward(x, MASK)[1] == x.nbytes


@pytest.mark.parametrize("shape", [(1009, 16, 14, 14), (1009, 3), (7,), ()])
def test_without_data_as_many_are_kept_as_are_expected(shape: tuple[int, ...]) -> None:
    x = torch.ones(shape, device="meta", requires_grad=True)
    y, kept = kept_for_backward(x, PLACES)
    rows = shape[0] if shape else 1
    assert kept % (4 * rows) == 0  # so that it grows with the batch
    assert 0 <= kept / 4 - PLACES * x.numel() < rows
    assert (y.shape, y.device) == (x.shape, x.device)
    assert torch.autograd.grad(y.sum(), x)[0].shape == x.shape


def test_places_beyond_32_bits() -> None:
    places = _dropout.draw_places(torch.ones(1).expand(2**31 + 10**9), 1e-6)
    assert places.dtype == torch.int64
    assert (places.diff() > 0).all()
    assert 2**31 < places[-1] < 2**31 + 10**9


def test_a_weight_is_dropped_by_a_mask() -> None:
    """Of a subclass nothing is asked that a tensor without values could not tell."""
    weight = nn.Parameter(torch.ones(1000))
    y, kept = kept_for_backward(weight, PLACES)
    assert kept == weight.nbytes
    assert 0 < (y == 0).sum() < 200


def test_tensors_without_values() -> None:
    with FakeTensorMode():
        y = Dropout(PLACES)(torch.ones(4, 5, requires_grad=True))
        y.sum().backward()
    assert y.shape == (4, 5)


def test_compiled_it_is_one_graph() -> None:
    compiled = torch.compile(Dropout(PLACES), backend="eager", fullgraph=True)
    x = torch.ones(20_000, requires_grad=True)
    y = compiled(x)
    dropped = y == 0
    assert stats.binomtest(int(dropped.sum()), 20_000, PLACES).pvalue > 1e-4
    (gradient,) = torch.autograd.grad(y.sum(), x)
    assert torch.equal(gradient == 0, dropped)
