"""Element-wise dropout whose mask does not cost more than the convolution before it."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import handle_torch_function, has_torch_function_unary

# The meta device stands in for a CPU: it is asked what a network would do, and keep, on one.
CPU = ("cpu", "meta")


class Dropout(nn.Dropout):
    """:class:`torch.nn.Dropout`, faster on a CPU.

    Torch draws the mask of a CPU tensor number by number on one thread, which is a large part of
    the training step of a small network. Here the mask comes from raw 32-bit integers, two to a
    draw: an element is dropped with the probability ``round(p * 2**32) / 2**32``, which is p up
    to the rounding of a float. The law is the same and the draws are not. On other devices, in
    evaluation mode and in place it is torch's own.

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
    drawn = training and 0 < p < 1 and input.numel() > 0
    if drawn and input.device.type in CPU and input.is_floating_point():
        masked: Tensor = _Masked.apply(input, p)
        return masked
    return F.dropout(input, p, training)


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
