"""2x2 max-pooling that does not cost more than the convolution before it."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import handle_torch_function, has_torch_function_unary

from constrained_cnn.blocks._dropout import CPU


class MaxPool2d(nn.MaxPool2d):
    """:class:`torch.nn.MaxPool2d`, faster where a network trains on a CPU.

    Torch visits the cells of a CPU tensor one by one; the usual 2x2 pool with a stride of 2 is here
    made of maxima of whole slices. The values are torch's own to the last bit, and so are finite
    gradients, also where cells are equal. On other devices, for other kernels and layouts and in
    evaluation mode it is torch's own.

    Examples:
        >>> import torch
        >>> x = torch.randn(1, 2, 5, 6)
        >>> torch.equal(MaxPool2d(2)(x), torch.nn.MaxPool2d(2)(x))
        True
    """

    def forward(self, input: Tensor) -> Tensor:
        """Return the maxima; shapes as for :class:`torch.nn.MaxPool2d`."""
        if self.training and _is_two_by_two(self) and _is_dense_on_cpu(input):
            return max_pool2d(input, kernel_size=2, stride=2)
        return super().forward(input)


def max_pool2d(input: Tensor, *, kernel_size: int, stride: int) -> Tensor:
    """Return the maxima of 2x2 cells; to whoever watches it is one operation, as torch's is."""
    if has_torch_function_unary(input):
        sizes = {"kernel_size": kernel_size, "stride": stride}
        watched: Tensor = handle_torch_function(max_pool2d, (input,), input, **sizes)
        return watched
    maxima: Tensor = _Pool.apply(input)
    return maxima


def _is_two_by_two(pool: nn.MaxPool2d) -> bool:
    halves = all(size in (2, (2, 2)) for size in (pool.kernel_size, pool.stride))
    plain = pool.padding in (0, (0, 0)) and pool.dilation in (1, (1, 1))
    return halves and plain and not (pool.ceil_mode or pool.return_indices)


def _is_dense_on_cpu(input: Tensor) -> bool:
    if input.device.type not in CPU or input.ndim != 4 or not input.is_floating_point():
        return False
    return input.is_contiguous() and min(input.shape) > 0 and min(input.shape[2:]) > 1


class _Pool(torch.autograd.Function):
    """Maxima of 2x2 cells; remembers where each came from."""

    @staticmethod
    def forward(ctx: Any, input: Tensor) -> Tensor:
        height, width = (size // 2 * 2 for size in input.shape[2:])  # torch drops an odd last cell
        left, right = input[:, :, :height, 0:width:2], input[:, :, :height, 1:width:2]
        rows = torch.maximum(left, right)
        above, below = rows[:, :, 0::2], rows[:, :, 1::2]
        # Of equal cells the first in reading order gets the gradient, as in torch.
        ctx.save_for_backward(left >= right, above >= below)
        ctx.size = tuple(input.shape[2:])
        return torch.maximum(above, below)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        from_left, from_above = ctx.saved_tensors
        spread: Tensor = _Spread.apply(gradients[0], from_left, from_above, ctx.size)
        return spread


class _Spread(torch.autograd.Function):
    """Puts each value where its maximum came from, and 0 elsewhere."""

    @staticmethod
    def forward(
        ctx: Any, values: Tensor, from_left: Tensor, from_above: Tensor, size: tuple[int, int]
    ) -> Tensor:
        ctx.save_for_backward(from_left, from_above)
        count, channels, height, width = values.shape
        rows = values.new_empty(count, channels, height, 2, width)
        torch.mul(values, from_above, out=rows[:, :, :, 0])
        torch.sub(values, rows[:, :, :, 0], out=rows[:, :, :, 1])
        rows = rows.view(count, channels, 2 * height, width)
        covered = size == (2 * height, 2 * width)
        make = values.new_empty if covered else values.new_zeros
        spread = make(count, channels, *size)
        left = spread[:, :, : 2 * height, 0 : 2 * width : 2]
        right = spread[:, :, : 2 * height, 1 : 2 * width : 2]
        torch.mul(rows, from_left, out=left)
        torch.sub(rows, left, out=right)
        return spread

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        from_left, from_above = ctx.saved_tensors
        height, width = from_left.shape[2], 2 * from_left.shape[3]
        cells = gradients[0][:, :, :height, :width]
        rows = torch.where(from_left, cells[..., 0::2], cells[..., 1::2])
        return torch.where(from_above, rows[:, :, 0::2], rows[:, :, 1::2]), None, None, None
