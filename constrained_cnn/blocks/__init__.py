"""Blocks for small convolutional networks.

Each is a plain :class:`torch.nn.Module` whose parts are ordinary torch layers under readable
names (``conv``, ``act``, ``norm``, ``drop``), so it works in any network and every tool sees what
is inside.
"""

from constrained_cnn.blocks._conv import ConvBNDrop, SeparableConvBNDrop, Transition1x1
from constrained_cnn.blocks._dropout import Dropout
from constrained_cnn.blocks._head import GAPHead
from constrained_cnn.blocks._pool import MaxPool2d

__all__ = ["ConvBNDrop", "Dropout", "GAPHead", "MaxPool2d", "SeparableConvBNDrop", "Transition1x1"]
