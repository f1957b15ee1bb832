"""The MNIST networks: ours of exactly 12,000 parameters, and the one the project set out from."""

from collections import OrderedDict

from torch import nn

from constrained_cnn.blocks import ConvBNDrop, GAPHead, MaxPool2d, Transition1x1
from constrained_cnn.models._registry import register_model
from constrained_cnn.models._weights import get_weights

P_DROP = 0.069

# Chosen on a split of the training images (docs/reference-network.md), then frozen. Any change here
# makes another network: the shipped weights would no longer fit.
STAGE_1 = (8, 12, 16)
CONSOLIDATED_1 = 12
STAGE_2 = (15, 20, 22)
CONSOLIDATED_2 = 16
LAST = 10


@register_model
def mnist_12k(*, weights: str | None = None) -> nn.Module:
    """Return the 12,000-parameter MNIST classifier, which keeps every rule of the reference.

    Two stages of three 3x3 convolutions with padding 1, each stage before a max-pool and each pool
    before a 1x1 convolution that consolidates channels; after every one of these a ReLU, a batch
    normalization and a dropout of 0.069. The prediction zone (a last 1x1 convolution, global
    average pooling, linear) has none of them. At each pool a cell sees 7x7 cells of its stage's
    input.

    Shapes: input ``(N, 1, 28, 28)``, normalized; output ``(N, 10)`` logits.

    Args:
        weights: ``"mnist"`` for weights trained on MNIST, which come with the package; None for
            new random ones from torch's global generator.

    Raises:
        InvalidInputError: If there are no weights of that name.
        CheckpointError: If the weight file is damaged.

    Examples:
        >>> import torch
        >>> model = mnist_12k()
        >>> sum(p.numel() for p in model.parameters())
        12000
        >>> model.eval()(torch.zeros(2, 1, 28, 28)).shape
        torch.Size([2, 10])
    """
    model = nn.Sequential(
        OrderedDict(
            stage_1=_stage(1, STAGE_1),
            pool_1=MaxPool2d(2),
            consolidate_1=Transition1x1(STAGE_1[-1], CONSOLIDATED_1, p_drop=P_DROP),
            stage_2=_stage(CONSOLIDATED_1, STAGE_2),
            pool_2=MaxPool2d(2),
            consolidate_2=Transition1x1(STAGE_2[-1], CONSOLIDATED_2, p_drop=P_DROP),
            last=nn.Conv2d(CONSOLIDATED_2, LAST, 1, bias=False),
            head=GAPHead(LAST, 10),
        )
    )
    if weights is not None:
        get_weights("mnist_12k", weights).load_into(model)
    return model


@register_model
def mnist_12k_source(*, weights: str | None = None) -> nn.Module:
    """Return the network the project set out from, exactly: 12,734 parameters.

    It departs from its own rules: two of its 3x3 convolutions have no padding, its third stage has
    two convolutions in a row, and its receptive field at the pools is 5 and 14. See the table of
    rules in the documentation.

    Shapes: input ``(N, 1, 28, 28)``, normalized; output ``(N, 10)`` logits.

    Args:
        weights: None; no weights of this network come with the package.

    Raises:
        InvalidInputError: If weights are asked for.

    Examples:
        >>> sum(p.numel() for p in mnist_12k_source().parameters())
        12734
    """
    stage_3 = OrderedDict(
        conv=nn.Conv2d(16, 16, 3, bias=False),
        consolidate=Transition1x1(16, 14, p_drop=P_DROP, drop="channel"),
    )
    model = nn.Sequential(
        OrderedDict(
            stage_1=_stage(1, (8, 16), drop="channel"),
            pool_1=MaxPool2d(2),
            stage_2=_stage(16, (24, 16), drop="channel"),
            pool_2=MaxPool2d(2),
            stage_3=nn.Sequential(stage_3),
            last=nn.Conv2d(14, 14, 3, bias=False),
            head=GAPHead(14, 10),
        )
    )
    if weights is not None:
        get_weights("mnist_12k_source", weights).load_into(model)
    return model


def _stage(channels: int, widths: tuple[int, ...], *, drop: str = "elementwise") -> nn.Sequential:
    """Return 3x3 blocks of these widths, one after another."""
    blocks = []
    for width in widths:
        blocks.append(ConvBNDrop(channels, width, padding=1, p_drop=P_DROP, drop=drop))
        channels = width
    return nn.Sequential(*blocks)
