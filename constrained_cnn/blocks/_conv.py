"""The convolution blocks: a convolution with what follows it."""

from collections import OrderedDict
from collections.abc import Callable

from torch import nn

from constrained_cnn.blocks._checks import check_cells, check_channels, check_padding
from constrained_cnn.blocks._dropout import Dropout
from constrained_cnn.blocks._pool import MaxPool2d
from constrained_cnn.errors import (
    InvalidInputError,
    check_choice,
    check_flag,
    check_integer,
    check_probability,
)

Pair = int | tuple[int, int]
Activation = Callable[[], nn.Module]

ORDERS = ("conv-relu-bn-drop", "conv-bn-relu-drop")
DROPS = {"elementwise": Dropout, "channel": nn.Dropout2d}


class ConvBNDrop(nn.Sequential):
    """A 2-D convolution with activation, batch normalization and dropout.

    Shapes: input ``(N, in_channels, H, W)``, output ``(N, out_channels, H', W')`` with ``H'`` and
    ``W'`` as for :class:`torch.nn.Conv2d`.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        kernel_size: Size of the kernel in cells, one number or (height, width).
        stride: Stride in cells.
        padding: Zero padding in cells, or ``"same"`` or ``"valid"``.
        dilation: Distance between the kernel's taps in cells.
        groups: Number of groups; it divides both channel counts.
        bias: Whether the convolution has a bias.
        order: ``"conv-relu-bn-drop"`` or ``"conv-bn-relu-drop"``.
        activation: Makes the activation module (a class such as :class:`torch.nn.ReLU`); None for
            none.
        norm: Whether to normalize by :class:`torch.nn.BatchNorm2d`.
        p_drop: Dropout probability; 0 builds no dropout.
        drop: ``"elementwise"`` drops single values, ``"channel"`` whole channels.

    Raises:
        InvalidInputError: If an argument breaks its rule.

    Examples:
        >>> import torch
        >>> block = ConvBNDrop(1, 8, kernel_size=3, padding=1, p_drop=0.069)
        >>> [name for name, _ in block.named_children()]
        ['conv', 'act', 'norm', 'drop']
        >>> block(torch.zeros(2, 1, 28, 28)).shape
        torch.Size([2, 8, 28, 28])
        >>> sum(p.numel() for p in block.parameters())  # 9 * 1 * 8 weights, 2 * 8 for the norm
        88
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        kernel_size: Pair = 3,
        stride: Pair = 1,
        padding: Pair | str = 0,
        dilation: Pair = 1,
        groups: int = 1,
        bias: bool = False,
        order: str = "conv-relu-bn-drop",
        activation: Activation | None = nn.ReLU,
        norm: bool = True,
        p_drop: float = 0.0,
        drop: str = "elementwise",
    ) -> None:
        conv = _conv(
            in_channels,
            out_channels,
            kernel_size=kernel_size,
            stride=stride,
            padding=padding,
            dilation=dilation,
            groups=groups,
            bias=bias,
        )
        tail = _after_conv(
            out_channels, order=order, activation=activation, norm=norm, p_drop=p_drop, drop=drop
        )
        super().__init__(OrderedDict([("conv", conv), *tail]))


class Transition1x1(nn.Sequential):
    """A 1x1 convolution that consolidates channels, with an optional 2x2 max-pool.

    Shapes: input ``(N, in_channels, H, W)``, output ``(N, out_channels, H, W)``, or half the
    height and width (rounded down) with a pool.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        pool: ``"before"`` or ``"after"`` the convolution; None for no pool.
        bias: Whether the convolution has a bias.
        order: As in :class:`ConvBNDrop`.
        activation: As in :class:`ConvBNDrop`; None leaves the convolution linear.
        norm: Whether to normalize by :class:`torch.nn.BatchNorm2d`.
        p_drop: Dropout probability; 0 builds no dropout.
        drop: ``"elementwise"`` or ``"channel"``.

    Raises:
        InvalidInputError: If an argument breaks its rule.

    Examples:
        >>> import torch
        >>> Transition1x1(16, 12, pool="before")(torch.zeros(2, 16, 28, 28)).shape
        torch.Size([2, 12, 14, 14])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        pool: str | None = None,
        bias: bool = False,
        order: str = "conv-relu-bn-drop",
        activation: Activation | None = nn.ReLU,
        norm: bool = True,
        p_drop: float = 0.0,
        drop: str = "elementwise",
    ) -> None:
        if pool is not None:
            check_choice("pool", pool, ("before", "after"))
        conv = _conv(in_channels, out_channels, kernel_size=1, bias=bias)
        parts = [
            ("conv", conv),
            *_after_conv(
                out_channels,
                order=order,
                activation=activation,
                norm=norm,
                p_drop=p_drop,
                drop=drop,
            ),
        ]
        if pool is not None:
            parts.insert(0 if pool == "before" else len(parts), ("pool", MaxPool2d(2)))
        super().__init__(OrderedDict(parts))


class SeparableConvBNDrop(nn.Sequential):
    """A depthwise-separable convolution: each channel by itself, then a 1x1 mix of them.

    It costs ``k * k * in + in * out`` weights where :class:`ConvBNDrop` costs
    ``k * k * in * out``, which is what the smallest networks are made of. Between the two
    convolutions stand a batch normalization and the activation, as in MobileNet; after them what
    stands after the convolution of a :class:`ConvBNDrop`.

    Shapes: as for :class:`ConvBNDrop`.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        kernel_size: Size of the depthwise kernel in cells.
        stride: Stride of the depthwise convolution in cells.
        padding: Zero padding in cells, or ``"same"`` or ``"valid"``.
        dilation: Distance between the kernel's taps in cells.
        bias: Whether both convolutions have a bias.
        order: As in :class:`ConvBNDrop`; it holds for both convolutions.
        activation: As in :class:`ConvBNDrop`.
        norm: Whether to normalize, after each of the two.
        p_drop: Dropout probability at the end; 0 builds no dropout.
        drop: ``"elementwise"`` or ``"channel"``.

    Raises:
        InvalidInputError: If an argument breaks its rule.

    References:
        Howard et al., "MobileNets: Efficient Convolutional Neural Networks for Mobile Vision
        Applications", 2017.

    Examples:
        >>> import torch
        >>> block = SeparableConvBNDrop(8, 16, padding=1)
        >>> block(torch.zeros(2, 8, 14, 14)).shape
        torch.Size([2, 16, 14, 14])
        >>> sum(p.numel() for p in block.parameters())  # 72 + 2*8, then 128 + 2*16
        248
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        kernel_size: Pair = 3,
        stride: Pair = 1,
        padding: Pair | str = 0,
        dilation: Pair = 1,
        bias: bool = False,
        order: str = "conv-relu-bn-drop",
        activation: Activation | None = nn.ReLU,
        norm: bool = True,
        p_drop: float = 0.0,
        drop: str = "elementwise",
    ) -> None:
        check_integer("in_channels", in_channels, minimum=1)
        depthwise = ConvBNDrop(
            in_channels,
            in_channels,
            kernel_size=kernel_size,
            stride=stride,
            padding=padding,
            dilation=dilation,
            groups=in_channels,
            bias=bias,
            order=order,
            activation=activation,
            norm=norm,
        )
        pointwise = Transition1x1(
            in_channels,
            out_channels,
            bias=bias,
            order=order,
            activation=activation,
            norm=norm,
            p_drop=p_drop,
            drop=drop,
        )
        super().__init__(OrderedDict([("depthwise", depthwise), ("pointwise", pointwise)]))


def _conv(
    in_channels: int,
    out_channels: int,
    *,
    kernel_size: Pair,
    stride: Pair = 1,
    padding: Pair | str = 0,
    dilation: Pair = 1,
    groups: int = 1,
    bias: bool,
) -> nn.Conv2d:
    check_channels(in_channels, out_channels, groups)
    check_cells("kernel_size", kernel_size, minimum=1)
    check_cells("stride", stride, minimum=1)
    check_cells("dilation", dilation, minimum=1)
    check_padding(padding, stride)
    check_flag("bias", bias)
    return nn.Conv2d(
        in_channels,
        out_channels,
        kernel_size,
        stride=stride,
        padding=padding,
        dilation=dilation,
        groups=groups,
        bias=bias,
    )


def _after_conv(
    channels: int,
    *,
    order: str,
    activation: Activation | None,
    norm: bool,
    p_drop: float,
    drop: str,
) -> list[tuple[str, nn.Module]]:
    """Return what stands after the convolution, in the order asked for, under its names."""
    check_choice("order", order, ORDERS)
    check_choice("drop", drop, tuple(DROPS))
    check_probability("p_drop", p_drop)
    check_flag("norm", norm)
    act = [] if activation is None else [("act", _activation(activation))]
    normalization = [("norm", nn.BatchNorm2d(channels))] if norm else []
    dropout = [("drop", DROPS[drop](p_drop))] if p_drop > 0 else []
    if order == "conv-relu-bn-drop":
        return [*act, *normalization, *dropout]
    return [*normalization, *act, *dropout]


def _activation(make: Activation) -> nn.Module:
    made: object = None
    if callable(make) and not isinstance(make, nn.Module):
        try:
            made = make()
        except TypeError:  # such as a plain function of a tensor
            made = None
    if not isinstance(made, nn.Module):
        raise InvalidInputError(
            f"activation={make!r}: must be a class or function that makes a module, "
            "like nn.ReLU, or None"
        )
    return made
