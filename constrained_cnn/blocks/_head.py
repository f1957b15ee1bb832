"""The prediction head: global average pooling and the classes."""

from collections import OrderedDict

from torch import nn

from constrained_cnn.errors import check_choice, check_flag, check_integer


class GAPHead(nn.Sequential):
    """Global average pooling and one linear map to the classes, in either order.

    Shapes: input ``(N, in_channels, H, W)`` of any height and width, output ``(N, classes)``.

    The two kinds compute the same function, since averaging and a 1x1 convolution commute;
    ``"linear"`` does so with ``H * W`` times fewer multiplications, ``"conv"`` gives a map of class
    scores on the way (its ``conv`` part), from which one can see where a class was found.

    Args:
        in_channels: Channels of the input.
        classes: Number of classes.
        kind: ``"linear"``: pool, then :class:`torch.nn.Linear`; ``"conv"``: a 1x1 convolution, then
            pool.
        bias: Whether the linear map has a bias.

    Raises:
        InvalidInputError: If an argument breaks its rule.

    References:
        Lin, Chen, Yan, "Network In Network", 2014.

    Examples:
        >>> import torch
        >>> head = GAPHead(24, 10)
        >>> head(torch.zeros(2, 24, 7, 7)).shape
        torch.Size([2, 10])
        >>> [name for name, _ in head.named_children()]
        ['pool', 'flatten', 'linear']
    """

    def __init__(
        self, in_channels: int, classes: int, *, kind: str = "linear", bias: bool = True
    ) -> None:
        check_choice("kind", kind, ("linear", "conv"))
        check_integer("in_channels", in_channels, minimum=1)
        check_integer("classes", classes, minimum=1)
        check_flag("bias", bias)
        pool = [("pool", nn.AdaptiveAvgPool2d(1)), ("flatten", nn.Flatten())]
        if kind == "linear":
            parts = [*pool, ("linear", nn.Linear(in_channels, classes, bias=bias))]
        else:
            parts = [("conv", nn.Conv2d(in_channels, classes, 1, bias=bias)), *pool]
        super().__init__(OrderedDict(parts))
