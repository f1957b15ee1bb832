"""Element-wise dropout whose mask does not cost more than the convolution before it."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import handle_torch_function, has_torch_function_unary

# The meta device stands in for a CPU: it is asked what a network would do, and keep, on one.
CPU = ("cpu", "meta")

# Up to this p it is quicker to draw which elements are dropped than to draw for each whether it is.
# Of 1.6 million elements, forward and backward, places take 0.4 of a mask's time at p = 0.02, 0.65
# at 0.07, 0.8 at 0.1, as long at 0.15 and twice as long at 0.4 (AMD EPYC, 1 and 2 threads). A call
# takes 0.08 ms more, whatever its size: at 0.07 they are even at 100,000 elements.
MOST_PLACES = 0.1


class Dropout(nn.Dropout):
    """:class:`torch.nn.Dropout`, faster on a CPU.

    Torch draws the mask of a CPU tensor number by number on one thread, which is a large part of
    the training step of a small network. Here, up to a p of 0.1, only the dropped elements are
    drawn, by the steps from each to the next, and only their places are kept for the backward pass:
    4 bytes for each. Above, the mask comes from raw 32-bit integers, two to a draw: an element is
    dropped with the probability ``round(p * 2**32) / 2**32``, which is p up to the rounding of a
    float. The law is the same and the draws are not. On other devices, compiled, in evaluation
    mode and in place it is torch's own.

    Args:
        p: Probability of an element to be zeroed; the others are divided by ``1 - p``.
        inplace: As in :class:`torch.nn.Dropout`.

    Examples:
        >>> import torch
        >>> x = torch.ones(1000, 1000)
        >>> dropped = Dropout(0.25)(x)
        >>> sorted(set(dropped.flatten().tolist())) == [0.0, torch.tensor(1 / 0.75).item()]
        True
        >>> abs((dropped == 0).float().mean().item() - 0.25) < 0.01
        True
        >>> torch.equal(Dropout(0.25).eval()(x), x)
        True
    """

    def forward(self, input: Tensor) -> Tensor:
        """Return ``input``, in training mode with elements dropped at random."""
        if self.inplace:
            return super().forward(input)
        return dropout(input, self.p, self.training)


def dropout(input: Tensor, p: float, training: bool) -> Tensor:
    """Drop elements; to whoever watches torch's functions it is one operation, as torch's is."""
    if has_torch_function_unary(input):
        watched: Tensor = handle_torch_function(dropout, (input,), input, p=p, training=training)
        return watched
    drawn = training and 0 < p < 1 and input.numel() > 0 and not torch.compiler.is_compiling()
    if not (drawn and input.device.type in CPU and input.is_floating_point()):
        return F.dropout(input, p, training)
    # A subclass may have no values, and then nobody can say how many are dropped.
    if p > MOST_PLACES or type(input) is not Tensor:
        masked: Tensor = _Masked.apply(input, p)
        return masked
    layout = torch.empty_like(input, device="meta").stride()  # dense, as the input where it is
    thinned: Tensor = _Thinned.apply(input, draw_places(input, p), layout, 1 / (1 - p))
    return thinned


def draw_places(input: Tensor, p: float) -> Tensor:
    """Return which elements are dropped, counted as they lie in memory, in rising order.

    On the meta device, where nothing is drawn, it returns as many as are expected; of a fraction
    for each row of the first axis, the batch, the next whole number.
    """
    count = input.numel()
    if input.device.type == "meta":
        rows = math.prod(input.shape[:1])
        expected = rows * math.ceil(count // rows * p)
        return torch.empty(expected, dtype=torch.int32, device="meta")
    return _draw(count, p).to(torch.int32 if count <= 2**31 else torch.int64)


def _draw(count: int, p: float) -> Tensor:
    draws = _enough(count, p)
    # The step to the next dropped element is geometric: 1 with probability p, 2 with p (1 - p),
    # and so on. A number from [0, 1) is at least (1 - p)^n with probability 1 - (1 - p)^n.
    steps = torch.rand(draws, dtype=torch.float64, device="cpu").log_().div_(math.log1p(-p)).ceil_()
    places = steps.cumsum(0).sub_(1)
    found = int(torch.searchsorted(places, count))
    if found < draws:
        return places[:found]
    # Whether an element is dropped does not depend on those before it, so the rest is drawn anew.
    start = int(places[-1]) + 1
    return torch.cat([places, start + _draw(count - start, p)])


def _enough(count: int, p: float) -> int:
    """Return more draws than there are dropped elements, but for one time in 10^15."""
    expected = count * p
    return int(expected + 8 * math.sqrt(expected)) + 10


class _Thinned(torch.autograd.Function):
    """Multiplies by ``scale``, and by 0 at places in the dense memory that ``layout`` strides."""

    @staticmethod
    def forward(
        ctx: Any, input: Tensor, places: Tensor, layout: tuple[int, ...], scale: float
    ) -> Tensor:
        thinned = input.new_empty_strided(input.shape, layout)
        torch.mul(input, scale, out=thinned)
        in_memory = thinned.as_strided((thinned.numel(),), (1,))
        dropped = places.long()
        # Not filled with 0: of NaN and infinity torch's own makes NaN.
        in_memory.scatter_(0, dropped, in_memory.index_select(0, dropped).mul_(0))
        ctx.save_for_backward(places)
        ctx.layout, ctx.scale = layout, scale
        return thinned

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        (places,) = ctx.saved_tensors
        thinned: Tensor = _Thinned.apply(gradients[0], places, ctx.layout, ctx.scale)
        return thinned, None, None, None


class _Masked(torch.autograd.Function):
    """Multiplies by a fresh mask, forward and backward."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, p: float) -> Tensor:
        mask = torch.empty_like(input)  # dense, in the input's own memory layout where that is
        count = mask.numel()
        # The full range has to be asked for: by default random_ leaves the sign bit 0.
        bits = torch.empty((count + 1) // 2, dtype=torch.int64, device=input.device)
        bits.random_(-(2**63), None)
        threshold = round(p * 2**32) - 2**31
        in_memory = mask.as_strided((count,), (1,))
        torch.ge(bits.view(torch.int32)[:count], threshold, out=in_memory)
        mask.mul_(1 / (1 - p))
        ctx.save_for_backward(mask)
        return input * mask

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (mask,) = ctx.saved_tensors
        return gradients[0] * mask, None
