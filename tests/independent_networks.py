"""Small networks with their numbers, to hold a library against; the numbers come from elsewhere.

Nothing here is computed by the code under test: every number is a literal, worked out by hand from
the layer shapes and then checked by brute force. A test loops over `CASES`.

Parameters.
    `parameters` counts the elements of the distinct `nn.Parameter`s: a tied or shared one once,
    the ones of modules that are never called as well, buffers never. `trainable` counts those
    with `requires_grad`. `unused` counts the elements of parameters on which no output depends.
    Check: each parameter was filled with NaN in turn, and the outputs searched for NaN.

Multiply-accumulates.
    `macs` is for one sample of `input_shape` in eval mode: convolutions (taps in the padding
    included), transposed convolutions (taps cut off at the border included), linear maps, matrix
    products, einsum and attention products. Biases, norms, activations, element-wise products,
    pooling and resampling are 0, and so is work on weights alone (weight norm). A branch that runs
    counts, even where its result is thrown away, and so do outputs that are cropped afterwards.
    Check: half of what PyTorch's flop counter reports for a run on the CPU, with the fast path
    of `nn.MultiheadAttention` switched off, which that counter does not see into.

Fields.
    `field` has one entry per image axis of the input, in order, for the value that `layer` names:
    the output of the module at that path, or for None the (first) tensor that the network returns.
    Unit i along an axis can depend on the closed interval [lo, hi] of input positions: the hull
    of all positions over all channels and branches, whatever the other axes. "Can depend" is meant
    of the architecture, with generic weights: a ReLU is never dead, any position of a pooling
    window may be the largest, nothing cancels. An entry is (sizes, jump, start):

    - sizes: hi - lo + 1 for units 0 to P - 1, with P the smallest period of the sizes. The
      positions lo may have a longer period: after nearest upsampling by two, the units can all have
      the same size, while lo moves by 2, 0, 2, 0, ... .
    - jump: by how much the interval moves on from one unit to the next, on average over a period
      of the positions. It is negative behind a flip.
    - start: lo of unit 0 if the border did not cut it, hence negative in the padding.

    None in place of an entry says that every unit depends on the whole axis at every input size:
    a mean over the axis, attention over it, or the statistics of a group norm, are in between.

    Check, twice, on inputs several times larger, for many consecutive units away from the border:
    every position of an axis in turn was filled with NaN, and the units that turned NaN noted;
    and each unit was differentiated with respect to the input, in double precision, with positive
    weights, rectifiers replaced by the identity and max-pooling by the mean of its window. Two
    exceptions: where the network itself stops gradients, the NaNs alone were used; and behind the
    flip, start depends on the width of the input, so there it was read at `input_shape`.

Matters of definition, where others may count otherwise: group norm is global (above); a frozen part
that runs without gradients still passes its input on; parameters that reach only a result that is
thrown away are unused, although they are multiplied by; a convolution with a fixed kernel has
multiply-accumulates and no parameters.
"""

import math
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

Field = tuple[tuple[int, ...], Fraction, int]


@dataclass(frozen=True)
class Case:
    """A network and what is true of it; the module's docstring defines each number."""

    name: str
    make: Callable[[], nn.Module]
    input_shape: tuple[int, ...]
    parameters: int
    trainable: int
    unused: int
    macs: int
    layer: str | None
    field: tuple[Field | None, ...]


# Strides, kernels, padding ------------------------------------------------------------------------


def odd_strides() -> nn.Module:
    """Strides of 3 and 5."""
    return nn.Sequential(
        nn.Conv2d(3, 8, kernel_size=5, stride=3, padding=2),
        nn.ReLU(inplace=True),
        nn.Conv2d(8, 16, kernel_size=3, stride=5, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(inplace=True),
        nn.Conv2d(16, 4, 1),
    )


def even_kernels() -> nn.Module:
    return nn.Sequential(
        OrderedDict(
            [
                ("a", nn.Conv2d(1, 6, 4, padding=1)),
                ("act_a", nn.LeakyReLU(0.1)),
                ("b", nn.Conv2d(6, 6, 2, stride=2)),
                ("act_b", nn.LeakyReLU(0.1)),
                ("c", nn.Conv2d(6, 2, (6, 2), padding=(2, 1))),
            ]
        )
    )


class OneSided(nn.Module):
    """Pads a different number of rows or columns on each side."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 5, 3)
        self.conv2 = nn.Conv2d(5, 5, (3, 5), stride=2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv1(F.pad(x, (2, 0, 0, 1))))
        return self.conv2(F.pad(x, (0, 4, 2, 0)))


class CropByPad(nn.Module):
    """Negative padding cuts rows and columns off."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(2, 4, 3, padding=1)
        self.b = nn.Conv2d(4, 3, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        y = F.pad(self.a(x), (-2, -1, -3, 0))
        return self.b(F.elu(y))


class Reflecting(nn.Module):
    """Padding with values instead of zeros."""

    def __init__(self) -> None:
        super().__init__()
        self.pad = nn.ReflectionPad2d((2, 1, 0, 3))
        self.conv = nn.Conv2d(1, 4, 4)
        self.down = nn.Conv2d(4, 4, 3, stride=2, padding=1, padding_mode="replicate")

    def forward(self, x: Tensor) -> Tensor:
        return self.down(torch.relu(self.conv(self.pad(x))))


class ShiftedBranches(nn.Module):
    """Two branches, cropped at opposite ends and added."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Conv2d(3, 4, 3)
        self.right = nn.Conv2d(3, 4, (3, 1))
        self.out = nn.Conv2d(4, 2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        a = self.left(x)[:, :, 4:, 1:]
        b = self.right(x)[:, :, :-4, :-3]
        return self.out(F.relu(a + b))


class StridedSlices(nn.Module):
    """Downsamples by slicing with a step."""

    def __init__(self) -> None:
        super().__init__()
        self.before = nn.Conv2d(1, 4, 3, padding=1)
        self.after = nn.Conv2d(4, 2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.before(x).relu()
        x = x[:, :, ::2]
        x = x[..., 1::3]
        return self.after(x)


class Focus(nn.Module):
    """Four interleaved quarters of the image, stacked along the channels."""

    def __init__(self, c1: int = 3, c2: int = 6) -> None:
        super().__init__()
        self.conv = nn.Conv2d(c1 * 4, c2, 3, 1, 1)
        self.act = nn.SiLU()

    def forward(self, x: Tensor) -> Tensor:
        quarters = [
            x[..., ::2, ::2],
            x[..., 1::2, ::2],
            x[..., ::2, 1::2],
            x[..., 1::2, 1::2],
        ]
        return self.act(self.conv(torch.cat(quarters, 1)))


# One-dimensional ----------------------------------------------------------------------------------


class Chomp1d(nn.Module):
    """Drops the last steps, which makes a padded convolution causal."""

    def __init__(self, chomp_size: int) -> None:
        super().__init__()
        self.chomp_size = chomp_size

    def forward(self, x: Tensor) -> Tensor:
        return x[:, :, : -self.chomp_size].contiguous()


class TemporalBlock(nn.Module):
    def __init__(self, n_in: int, n_out: int, k: int, dilation: int) -> None:
        super().__init__()
        pad = (k - 1) * dilation
        self.net = nn.Sequential(
            nn.Conv1d(n_in, n_out, k, padding=pad, dilation=dilation),
            Chomp1d(pad),
            nn.ReLU(),
            nn.Dropout(0.2),
            nn.Conv1d(n_out, n_out, k, padding=pad, dilation=dilation),
            Chomp1d(pad),
            nn.ReLU(),
            nn.Dropout(0.2),
        )
        self.downsample = nn.Conv1d(n_in, n_out, 1) if n_in != n_out else None
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        out = self.net(x)
        res = x if self.downsample is None else self.downsample(x)
        return self.relu(out + res)


class TCN(nn.Module):
    """Causal dilated convolutions with residual connections."""

    def __init__(self) -> None:
        super().__init__()
        channels = [2, 8, 8, 8]
        self.network = nn.Sequential(
            *[
                TemporalBlock(channels[i], channels[i + 1], k=3, dilation=2**i)
                for i in range(len(channels) - 1)
            ]
        )
        self.head = nn.Conv1d(8, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.network(x))


class WaveNet(nn.Module):
    """Gated causal convolutions; the last residual connection is computed and dropped."""

    def __init__(self, residual: int = 6, skip: int = 10) -> None:
        super().__init__()
        self.dilations = [1, 2, 4, 8]
        self.start = nn.Conv1d(1, residual, 1)
        self.filters = nn.ModuleList()
        self.gates = nn.ModuleList()
        self.residuals = nn.ModuleList()
        self.skips = nn.ModuleList()
        for d in self.dilations:
            self.filters.append(nn.Conv1d(residual, residual, 2, dilation=d))
            self.gates.append(nn.Conv1d(residual, residual, 2, dilation=d))
            self.residuals.append(nn.Conv1d(residual, residual, 1))
            self.skips.append(nn.Conv1d(residual, skip, 1))
        self.end1 = nn.Conv1d(skip, skip, 1)
        self.end2 = nn.Conv1d(skip, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.start(x)
        total: Tensor | None = None
        for i, d in enumerate(self.dilations):
            padded = F.pad(x, (d, 0))
            z = torch.tanh(self.filters[i](padded)) * torch.sigmoid(self.gates[i](padded))
            s = self.skips[i](z)
            total = s if total is None else total + s
            x = x + self.residuals[i](z)
        assert total is not None
        return self.end2(F.relu(self.end1(F.relu(total))))


def weight_normed() -> nn.Module:
    """Weight norm on plain, dilated and transposed convolutions."""
    return nn.Sequential(
        weight_norm(nn.Conv1d(3, 8, 5, stride=2, padding=2)),
        nn.LeakyReLU(0.2),
        weight_norm(nn.Conv1d(8, 8, 3, padding=3, dilation=3)),
        nn.LeakyReLU(0.2),
        weight_norm(nn.ConvTranspose1d(8, 2, 3, stride=2, padding=1, output_padding=1)),
    )


class BothDirections(nn.Module):
    """A causal branch, and one that runs over the flipped signal and is flipped back."""

    def __init__(self) -> None:
        super().__init__()
        self.forwards = nn.Conv1d(1, 5, 4, dilation=2)
        self.backwards = nn.Conv1d(1, 5, 3)
        self.mix = nn.Conv1d(10, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        past = self.forwards(F.pad(x, [6, 0]))
        future = self.backwards(F.pad(torch.flip(x, dims=[2]), [2, 0])).flip(-1)
        return self.mix(torch.cat((past, future), dim=1))


class TemporalShift(nn.Module):
    """Moves some channels one step back and some one step forth."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv1d(3, 6, 3, padding=1)
        self.mix = nn.Conv1d(6, 6, 1)
        self.out = nn.Conv1d(6, 2, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        shifted = torch.zeros_like(x)
        shifted[:, :2, :-1] = x[:, :2, 1:]
        shifted[:, 2:4, 1:] = x[:, 2:4, :-1]
        shifted[:, 4:] = x[:, 4:]
        return self.out(F.relu(self.mix(shifted)))


# Up and down --------------------------------------------------------------------------------------


class UNetTransposed(nn.Module):
    """Two levels, max-pooling down and transposed convolutions up."""

    def __init__(self, in_ch: int = 3, base: int = 4, classes: int = 2) -> None:
        super().__init__()
        self.enc1 = self._block(in_ch, base)
        self.enc2 = self._block(base, base * 2)
        self.pool = nn.MaxPool2d(2)
        self.bottleneck = self._block(base * 2, base * 4)
        self.up2 = nn.ConvTranspose2d(base * 4, base * 2, kernel_size=2, stride=2)
        self.dec2 = self._block(base * 4, base * 2)
        self.up1 = nn.ConvTranspose2d(base * 2, base, kernel_size=2, stride=2)
        self.dec1 = self._block(base * 2, base)
        self.out = nn.Conv2d(base, classes, kernel_size=1)

    @staticmethod
    def _block(i: int, o: int) -> nn.Sequential:
        return nn.Sequential(nn.Conv2d(i, o, 3, padding=1), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        e1 = self.enc1(x)
        e2 = self.enc2(self.pool(e1))
        b = self.bottleneck(self.pool(e2))
        d2 = self.dec2(torch.cat([self.up2(b), e2], dim=1))
        d1 = self.dec1(torch.cat([self.up1(d2), e1], dim=1))
        return self.out(d1)


class UNetNearest(nn.Module):
    """One level, strided convolution down and nearest upsampling up."""

    def __init__(self) -> None:
        super().__init__()
        self.enc = nn.Conv2d(1, 4, 3, padding="same")
        self.down = nn.Conv2d(4, 8, 3, stride=2, padding=1)
        self.mid = nn.Conv2d(8, 8, 3, padding="same")
        self.up = nn.Upsample(scale_factor=2)
        self.dec = nn.Conv2d(12, 4, 3, padding="same")
        self.head = nn.Conv2d(4, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        skip = F.relu(self.enc(x))
        x = F.relu(self.mid(F.relu(self.down(skip))))
        x = torch.cat([skip, self.up(x)], 1)
        return torch.sigmoid(self.head(F.relu(self.dec(x))))


class UNetBilinear(nn.Module):
    """One level, average pooling down and bilinear upsampling to the size of the skip."""

    def __init__(self) -> None:
        super().__init__()
        self.enc = nn.Conv2d(2, 4, 3, padding=1)
        self.mid = nn.Conv2d(4, 6, 3, padding=1)
        self.dec = nn.Conv2d(10, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        a = F.gelu(self.enc(x))
        b = F.gelu(self.mid(F.avg_pool2d(a, 2)))
        b = F.interpolate(b, size=a.shape[-2:], mode="bilinear", align_corners=False)
        return self.dec(torch.cat((a, b), dim=1))


class OddTransposed(nn.Module):
    """Stride 3 down; up again with output padding and a dilated kernel."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Conv2d(2, 4, 3, stride=3, padding=1)
        self.up = nn.ConvTranspose2d(4, 3, 4, stride=3, padding=1, output_padding=1, dilation=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.up(F.relu(self.down(x)))


class PixelShuffleSR(nn.Module):
    """Threefold super-resolution, smoothed at the high resolution."""

    def __init__(self, r: int = 3) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 8, 5, padding=2),
            nn.Tanh(),
            nn.Conv2d(8, r * r, 3, padding=1),
            nn.PixelShuffle(r),
        )
        self.smooth = nn.Conv2d(1, 1, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.smooth(self.body(x))


class SpaceToDepth(nn.Module):
    """Once with the module for it, once with a view."""

    def __init__(self) -> None:
        super().__init__()
        self.unshuffle = nn.PixelUnshuffle(2)
        self.conv = nn.Conv2d(12, 8, 3, padding=1)
        self.out = nn.Conv2d(32, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv(self.unshuffle(x)))
        b, c, h, w = x.size()
        x = x.view(b, c, h // 2, 2, w // 2, 2)
        x = x.permute(0, 3, 5, 1, 2, 4).contiguous().view(b, c * 4, h // 2, w // 2)
        return self.out(x)


# Weights used in unusual ways ---------------------------------------------------------------------


class Recurrent(nn.Module):
    """One convolution applied three times."""

    def __init__(self, steps: int = 3) -> None:
        super().__init__()
        self.steps = steps
        self.stem = nn.Conv2d(1, 6, 3, padding=1)
        self.step = nn.Conv2d(6, 6, 3, padding=1)
        self.head = nn.Conv2d(6, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x)
        for _ in range(self.steps):
            h = h + F.relu(self.step(h))
        return self.head(h)


class TiedAutoencoder(nn.Module):
    """The decoder has the encoder's weight."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Conv2d(1, 8, 4, stride=4)
        self.middle = nn.Conv2d(8, 8, 3, padding=1)
        self.decoder = nn.ConvTranspose2d(8, 1, 4, stride=4)
        self.decoder.weight = self.encoder.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(self.middle(self.encoder(x).relu()).relu())


class Functional(nn.Module):
    """Bare parameters and the functions of `torch.nn.functional`."""

    def __init__(self) -> None:
        super().__init__()
        self.w1 = nn.Parameter(torch.randn(6, 3, 3, 3) * 0.1)
        self.b1 = nn.Parameter(torch.zeros(6))
        self.rest = nn.ParameterList(
            [
                nn.Parameter(torch.randn(6, 6, 3, 3) * 0.1),
                nn.Parameter(torch.zeros(6)),
                nn.Parameter(torch.randn(2, 6, 1, 1) * 0.1),
                nn.Parameter(torch.zeros(2)),
            ]
        )
        self.scale = nn.Parameter(torch.tensor(1.0))

    def forward(self, x: Tensor) -> Tensor:
        w2, b2, w3, b3 = self.rest
        x = F.relu(F.conv2d(x, self.w1, self.b1, padding=1))
        x = F.relu(F.conv2d(x, w2, b2, padding=2, dilation=2)) * self.scale
        return F.conv2d(x, w3, b3)


class EinsumNet(nn.Module):
    """A 1x1 convolution written as an einsum."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 6, 3, stride=2, padding=1)
        self.weight = nn.Parameter(torch.randn(10, 6) / math.sqrt(6))
        self.bias = nn.Parameter(torch.zeros(10))
        self.conv2 = nn.Conv2d(10, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        x = torch.einsum("oc,bchw->bohw", self.weight, x) + self.bias[None, :, None, None]
        return self.conv2(torch.relu(x))


class UnfoldNet(nn.Module):
    """A convolution written as unfold and a matrix product."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(5, 18) * 0.1)
        self.bias = nn.Parameter(torch.zeros(5, 1))
        self.down = nn.Conv2d(5, 2, 2, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        n, _, h, w = x.shape
        columns = F.unfold(x, kernel_size=3, padding=1)
        y = self.weight @ columns + self.bias
        return self.down(F.relu(y.view(n, 5, h, w)))


class PartlyFrozen(nn.Module):
    """The backbone is not trained."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(
            nn.Conv2d(3, 6, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(6, 6, 3, padding=1),
            nn.ReLU(),
        )
        for p in self.backbone.parameters():
            p.requires_grad = False
        self.head = nn.Conv2d(6, 2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.backbone(x))


class FrozenWithoutGradients(PartlyFrozen):
    """The same, and the backbone runs outside of the graph of gradients."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            x = self.backbone(x)
        return self.head(x)


class BlurWithSpare(nn.Module):
    """A fixed kernel in a buffer, and a layer that is never called."""

    kernel: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, padding=1)
        k = torch.tensor([1.0, 2.0, 1.0])
        self.register_buffer("kernel", (k[:, None] * k / 16).expand(6, 1, 3, 3).clone())
        self.spare = nn.Linear(10, 10)
        self.head = nn.Conv2d(6, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv(x))
        x = F.conv2d(x, self.kernel, stride=2, padding=1, groups=x.shape[1])
        return self.head(x)


# Groups and separable kernels ---------------------------------------------------------------------


def channel_shuffle(x: Tensor, groups: int) -> Tensor:
    n, c, h, w = x.shape
    x = x.view(n, groups, c // groups, h, w)
    x = torch.transpose(x, 1, 2).contiguous()
    return x.reshape(n, c, h, w)


class ShuffleUnit(nn.Module):
    def __init__(self, half: int) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            nn.Conv2d(half, half, 1, groups=2, bias=False),
            nn.BatchNorm2d(half),
            nn.ReLU(inplace=True),
            nn.Conv2d(half, half, 3, padding=1, groups=half, bias=False),
            nn.BatchNorm2d(half),
            nn.Conv2d(half, half, 1, groups=2, bias=False),
            nn.BatchNorm2d(half),
            nn.ReLU(inplace=True),
        )

    def forward(self, x: Tensor) -> Tensor:
        x1, x2 = x.chunk(2, dim=1)
        return channel_shuffle(torch.cat((x1, self.branch(x2)), dim=1), 2)


def shufflenet() -> nn.Module:
    """Split, grouped convolutions, shuffle."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1),
        ShuffleUnit(4),
        ShuffleUnit(4),
    )


class InvertedResidual(nn.Module):
    def __init__(self, inp: int, hidden: int, oup: int, k: int, stride: int) -> None:
        super().__init__()
        self.use_res_connect = stride == 1 and inp == oup
        layers: list[nn.Module] = []
        for conv in (
            nn.Conv2d(inp, hidden, 1, bias=False),
            nn.Conv2d(hidden, hidden, k, stride, k // 2, groups=hidden, bias=False),
        ):
            layers += [conv, nn.BatchNorm2d(hidden), nn.ReLU6(inplace=True)]
        layers += [nn.Conv2d(hidden, oup, 1, bias=False), nn.BatchNorm2d(oup)]
        self.conv = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        if self.use_res_connect:
            return x + self.conv(x)
        return self.conv(x)


def mobilenet() -> nn.Module:
    """Inverted residuals with depthwise kernels, then a grouped convolution."""
    return nn.Sequential(
        nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU6()),
        InvertedResidual(8, 16, 12, k=5, stride=2),
        InvertedResidual(12, 24, 12, k=3, stride=1),
        nn.Conv2d(12, 12, 3, padding=1, groups=3),
    )


class PerAxis(nn.Module):
    """Dilated depthwise kernels, one for each axis."""

    def __init__(self, ch: int = 6) -> None:
        super().__init__()
        self.inp = nn.Conv2d(3, ch, 1)
        self.row = nn.Conv2d(ch, ch, (1, 5), padding=(0, 4), dilation=(1, 2), groups=ch)
        self.col = nn.Conv2d(ch, ch, (3, 1), padding=(3, 0), dilation=(3, 1), groups=ch)
        self.mix = nn.Conv2d(ch, ch, 1)
        self.out = nn.Conv2d(ch, 2, (2, 3), stride=(2, 1), padding=(0, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.inp(x)
        x = x + self.mix(F.hardswish(self.col(self.row(x))))
        return self.out(x)


class DenseBlock(nn.Module):
    """Every layer sees all before it."""

    def __init__(self, growth: int = 4, layers: int = 3) -> None:
        super().__init__()
        self.conv0 = nn.Conv2d(2, growth, 3, padding=1)
        self.layers = nn.ModuleList(
            nn.Sequential(
                nn.BatchNorm2d(growth * (i + 1)),
                nn.ReLU(),
                nn.Conv2d(growth * (i + 1), growth, 3, padding=1, bias=False),
            )
            for i in range(layers)
        )
        width = growth * (layers + 1)
        self.transition = nn.Sequential(
            nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, 6, 1, bias=False), nn.AvgPool2d(2)
        )

    def forward(self, x: Tensor) -> Tensor:
        feats = [self.conv0(x)]
        for layer in self.layers:
            feats.append(layer(torch.cat(feats, 1)))
        return self.transition(torch.cat(feats, 1))


# Pooling ------------------------------------------------------------------------------------------


def dilated_max_pool() -> nn.Module:
    """Max-pooling with a dilated window, rounding its size up."""
    return nn.Sequential(
        nn.Conv2d(1, 4, 3),
        nn.MaxPool2d(3, stride=2, padding=1, dilation=2, ceil_mode=True),
        nn.Conv2d(4, 4, 3, padding=1),
    )


class AveragePools(nn.Module):
    """Overlapping, per-axis and rounded-up averages."""

    def __init__(self) -> None:
        super().__init__()
        self.pool1 = nn.AvgPool2d(3, stride=2, padding=1, count_include_pad=False)
        self.conv = nn.Conv2d(2, 5, 3, padding=1)
        self.pool2 = nn.AvgPool2d((4, 1))
        self.out = nn.Conv2d(5, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool2(self.conv(self.pool1(x)))
        x = F.avg_pool2d(x, (1, 2), ceil_mode=True)
        return self.out(x)


class BasicBlock(nn.Module):
    def __init__(self, inplanes: int, planes: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inplanes, planes, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.downsample = nn.Sequential(
            nn.Conv2d(inplanes, planes, 1, stride, bias=False), nn.BatchNorm2d(planes)
        )

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return F.relu(out + self.downsample(x))


class ResNetClassifier(nn.Module):
    """Ends in a global average and a linear layer; the field is of what is averaged."""

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, 8, 7, stride=2, padding=3, bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, stride=2, padding=1),
        )
        self.stage = BasicBlock(8, 16, stride=2)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(16, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stage(self.stem(x))
        return self.fc(torch.flatten(self.avgpool(x), 1))


class StripPooling(nn.Module):
    """A gate from the mean of each row: local along the height, global along the width."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3, padding=1)
        self.strip = nn.Conv2d(4, 4, (3, 1), padding=(1, 0))
        self.out = nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        gate = torch.sigmoid(self.strip(x.mean(dim=3, keepdim=True)))
        return self.out(x * gate)


class SqueezeExcite(nn.Module):
    def __init__(self, ch: int, r: int) -> None:
        super().__init__()
        self.fc = nn.Sequential(nn.Linear(ch, ch // r), nn.ReLU(), nn.Linear(ch // r, ch))

    def forward(self, x: Tensor) -> Tensor:
        s = x.mean((2, 3))
        s = torch.sigmoid(self.fc(s))
        return x * s[:, :, None, None]


class SENet(nn.Module):
    """The gate sees the whole image, so everything behind it does."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.se = SqueezeExcite(8, 4)
        self.out = nn.Conv2d(8, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.se(F.relu(self.stem(x))))


class ASPP(nn.Module):
    """Dilated branches beside one that averages the whole image."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, stride=2, padding=1)
        self.branches = nn.ModuleList(
            [
                nn.Conv2d(6, 4, 1),
                nn.Conv2d(6, 4, 3, padding=2, dilation=2),
                nn.Conv2d(6, 4, 3, padding=4, dilation=4),
            ]
        )
        self.image_pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(6, 4, 1), nn.ReLU())
        self.project = nn.Conv2d(16, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        res = [F.relu(b(x)) for b in self.branches]
        pooled = self.image_pool(x)
        res.append(F.interpolate(pooled, x.shape[2:], mode="bilinear", align_corners=False))
        return self.project(torch.cat(res, dim=1))


# Norms, linear layers, attention ------------------------------------------------------------------


class ChannelsFirstNorm(nn.Module):
    def __init__(self, ch: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(ch, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class ConvNeXtBlock(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dwconv = nn.Conv2d(dim, dim, kernel_size=7, padding=3, groups=dim)
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.pwconv1 = nn.Linear(dim, 4 * dim)
        self.act = nn.GELU()
        self.pwconv2 = nn.Linear(4 * dim, dim)
        self.gamma = nn.Parameter(torch.full((dim,), 1e-2))

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x
        x = self.dwconv(x)
        x = x.permute(0, 2, 3, 1)
        x = self.pwconv2(self.act(self.pwconv1(self.norm(x))))
        x = (self.gamma * x).permute(0, 3, 1, 2)
        return shortcut + x


def convnext() -> nn.Module:
    """Layer norm over the channels of each position: it stays local."""
    return nn.Sequential(
        nn.Conv2d(3, 8, kernel_size=2, stride=2),
        ChannelsFirstNorm(8),
        ConvNeXtBlock(8),
    )


class GroupNormNet(nn.Module):
    """Group norm takes its mean and variance over all positions, in eval mode as well."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.GroupNorm(4, 8)
        self.second = nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(F.relu(self.norm(self.first(x))))


class PixelMLP(nn.Module):
    """Linear layers on the last axis, between convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 6, 3, stride=3)
        self.mlp = nn.Sequential(nn.Linear(6, 12), nn.GELU(), nn.Linear(12, 6))
        self.out = nn.Conv2d(6, 6, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).movedim(1, -1)
        x = x + self.mlp(x)
        return self.out(x.movedim(-1, 1))


class PositionAttention(nn.Module):
    """Attention among all positions, back in the shape of an image."""

    def __init__(self, dim: int = 16) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, dim, 4, stride=4)
        self.norm = nn.LayerNorm(dim)
        self.attn = nn.MultiheadAttention(dim, num_heads=4, batch_first=True)
        self.head = nn.Conv2d(dim, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        b, c, h, w = x.shape
        seq = x.flatten(2).transpose(1, 2)
        normed = self.norm(seq)
        seq = seq + self.attn(normed, normed, normed, need_weights=False)[0]
        return self.head(seq.transpose(1, 2).reshape(b, c, h, w))


class TokenMixer(nn.Module):
    """Patches, then one perceptron across them and one across the channels."""

    def __init__(self, tokens: int = 16, dim: int = 12) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, dim, kernel_size=4, stride=4)
        self.norm1 = nn.LayerNorm(dim)
        self.token_mlp = nn.Sequential(nn.Linear(tokens, 8), nn.GELU(), nn.Linear(8, tokens))
        self.norm2 = nn.LayerNorm(dim)
        self.channel_mlp = nn.Sequential(nn.Linear(dim, 24), nn.GELU(), nn.Linear(24, dim))
        self.head = nn.Linear(dim, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x).flatten(2).transpose(1, 2)
        x = x + self.token_mlp(self.norm1(x).transpose(1, 2)).transpose(1, 2)
        x = x + self.channel_mlp(self.norm2(x))
        return self.head(x.mean(dim=1))


class RowAttention(nn.Module):
    """Attention within each row: local along the height, global along the width."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.qkv = nn.Conv2d(8, 24, 1)
        self.out = nn.Conv2d(8, 4, (3, 1), padding=(1, 0))

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        q, k, v = self.qkv(x).permute(0, 2, 3, 1).chunk(3, dim=-1)
        y = F.scaled_dot_product_attention(q, k, v)
        return self.out(y.permute(0, 3, 1, 2))


class WindowAttention(nn.Module):
    """Attention within windows of 4 by 4: the field depends on the place in the window."""

    def __init__(self, dim: int = 6, window: int = 4) -> None:
        super().__init__()
        self.window = window
        self.stem = nn.Conv2d(2, dim, 3, padding=1)
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.out = nn.Conv2d(dim, 2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        b, c, h, w = x.shape
        s = self.window
        x = x.view(b, c, h // s, s, w // s, s).permute(0, 2, 4, 3, 5, 1)
        x = x.reshape(-1, s * s, c)
        q, k, v = self.qkv(x).split(c, dim=-1)
        weights = torch.softmax(q @ k.transpose(-2, -1) / math.sqrt(c), dim=-1)
        y = (weights @ v).view(b, h // s, w // s, s, s, c)
        y = y.permute(0, 5, 1, 3, 2, 4).reshape(b, c, h, w)
        return self.out(y)


# The rest -----------------------------------------------------------------------------------------


class SizeDependent(nn.Module):
    """Downsamples only what is wide enough, as the input of the case is."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 4, 3, padding=1)
        self.down = nn.Conv2d(4, 4, 3, stride=2, padding=1)
        self.body = nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        if x.shape[-1] > 16:
            x = F.relu(self.down(x))
        return self.body(x)


class DropPath(nn.Module):
    """Leaves a whole branch out of some samples while training."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0.0:
            return x
        keep = torch.rand(x.shape[0], 1, 1, 1, device=x.device) >= self.p
        return x * keep / (1 - self.p)


class StochasticDepth(nn.Module):
    """Residual branches that are dropped while training, and dropout of channels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 7, stride=2, padding=3)
        self.convs = nn.ModuleList([nn.Conv2d(6, 6, 3, padding=1) for _ in range(2)])
        self.drops = nn.ModuleList([DropPath(p) for p in (0.1, 0.3)])
        self.dropout = nn.Dropout2d(0.5)

    def _branches(self) -> Iterator[tuple[nn.Module, nn.Module]]:
        yield from zip(self.convs, self.drops, strict=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for conv, drop in self._branches():
            x = x + drop(F.relu(conv(x)))
        return self.dropout(x)


class Video(nn.Module):
    """Three axes; time is treated otherwise than height and width."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv3d(3, 4, (3, 5, 5), stride=(1, 2, 2), padding=(1, 2, 2)),
            nn.ReLU(),
            nn.MaxPool3d((1, 2, 2)),
            nn.Conv3d(4, 8, 3, padding=(0, 1, 1), dilation=(2, 1, 1)),
            nn.ReLU(),
            nn.Conv3d(8, 2, 1),
        )

    def forward(self, clip: Tensor) -> Tensor:
        return self.net(clip)


class Heads(nn.Module):
    """Returns a dictionary; `mask` is its first tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(
            nn.Conv2d(3, 6, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(6, 6, 3, padding=1),
            nn.ReLU(),
        )
        self.mask = nn.Conv2d(6, 1, 1)
        self.box = nn.Conv2d(6, 4, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        f = self.backbone(x)
        return {"mask": self.mask(f), "box": self.box(f)}


class Pyramid(nn.Module):
    """Returns a tuple, the coarse map first and the fine one, which saw more, second."""

    def __init__(self) -> None:
        super().__init__()
        self.c1 = nn.Conv2d(1, 4, 3, stride=2, padding=1)
        self.c2 = nn.Conv2d(4, 4, 3, stride=2, padding=1)
        self.fine = nn.Conv2d(4, 2, 3, padding=1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        p1 = F.relu(self.c1(x))
        p2 = F.relu(self.c2(p1))
        up = F.interpolate(p2, scale_factor=2, mode="nearest")
        return p2, self.fine(p1 + up)


class Mirrored(nn.Module):
    """Flips the width and leaves it flipped: the field runs backwards, from the far end."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, (3, 2))

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x.flip(3))


def _at(sizes: tuple[int, ...], jump: int | Fraction, start: int) -> Field:
    return sizes, Fraction(jump), start


# Some networks are here twice, with the fields of two values.
CASES: tuple[Case, ...] = (
    Case(
        name="odd strides",
        make=odd_strides,
        input_shape=(3, 60, 45),
        parameters=1860,
        trainable=1860,
        unused=0,
        macs=194_592,
        layer=None,
        field=(_at((11,), 15, -5),) * 2,
    ),
    Case(
        name="even kernels",
        make=even_kernels,
        input_shape=(1, 24, 24),
        parameters=398,
        trainable=398,
        unused=0,
        macs=85_488,
        layer=None,
        field=(_at((15,), 2, -5), _at((7,), 2, -3)),
    ),
    Case(
        name="one-sided padding",
        make=OneSided,
        input_shape=(3, 16, 20),
        parameters=520,
        trainable=520,
        unused=0,
        macs=70_500,
        layer=None,
        field=(_at((5,), 2, -2), _at((7,), 2, -2)),
    ),
    Case(
        name="negative padding",
        make=CropByPad,
        input_shape=(2, 20, 20),
        parameters=187,
        trainable=187,
        unused=0,
        macs=35_712,
        layer=None,
        field=(_at((5,), 2, 2), _at((5,), 2, 1)),
    ),
    Case(
        name="reflection and replication",
        make=Reflecting,
        input_shape=(1, 15, 17),
        parameters=216,
        trainable=216,
        unused=0,
        macs=26_688,
        layer=None,
        field=(_at((6,), 2, -1), _at((6,), 2, -3)),
    ),
    Case(
        name="shifted branches",
        make=ShiftedBranches,
        input_shape=(3, 20, 18),
        parameters=226,
        trainable=226,
        unused=0,
        macs=57_888,
        layer=None,
        field=(_at((9,), 1, -1), _at((6,), 1, -1)),
    ),
    Case(
        name="strided slices",
        make=StridedSlices,
        input_shape=(1, 16, 18),
        parameters=114,
        trainable=114,
        unused=0,
        macs=13_824,
        layer=None,
        field=(_at((7,), 2, -3), _at((9,), 3, -3)),
    ),
    Case(
        name="focus",
        make=Focus,
        input_shape=(3, 16, 16),
        parameters=654,
        trainable=654,
        unused=0,
        macs=41_472,
        layer=None,
        field=(_at((6,), 2, -2),) * 2,
    ),
    Case(
        name="causal residual",
        make=TCN,
        input_shape=(2, 64),
        parameters=1089,
        trainable=1089,
        unused=0,
        macs=71_136,
        layer=None,
        field=(_at((29,), 1, -28),),
    ),
    Case(
        name="wavenet",
        make=WaveNet,
        input_shape=(1, 40),
        parameters=1238,
        trainable=1238,
        unused=42,
        macs=44_240,
        layer=None,
        field=(_at((16,), 1, -15),),
    ),
    Case(
        name="weight norm",
        make=weight_normed,
        input_shape=(3, 48),
        parameters=402,
        trainable=402,
        unused=0,
        macs=8_640,
        layer=None,
        field=(_at((17, 19), 1, -8),),
    ),
    Case(
        name="both directions",
        make=BothDirections,
        input_shape=(1, 30),
        parameters=78,
        trainable=78,
        unused=0,
        macs=1_950,
        layer=None,
        field=(_at((9,), 1, -6),),
    ),
    Case(
        name="temporal shift",
        make=TemporalShift,
        input_shape=(3, 20),
        parameters=140,
        trainable=140,
        unused=0,
        macs=2_448,
        layer=None,
        field=(_at((7,), 1, -2),),
    ),
    Case(
        name="u-net, transposed",
        make=UNetTransposed,
        input_shape=(3, 32, 32),
        parameters=3690,
        trainable=3690,
        unused=0,
        macs=921_600,
        layer=None,
        field=(_at((22, 26, 26, 22), 1, -11),) * 2,
    ),
    Case(
        name="u-net, nearest",
        make=UNetNearest,
        input_shape=(1, 20, 28),
        parameters=1361,
        trainable=1361,
        unused=0,
        macs=385_280,
        layer=None,
        field=(_at((11,), 1, -6),) * 2,
    ),
    Case(
        name="u-net, bilinear",
        make=UNetBilinear,
        input_shape=(2, 24, 24),
        parameters=571,
        trainable=571,
        unused=0,
        macs=228_096,
        layer=None,
        field=(_at((12,), 1, -5),) * 2,
    ),
    Case(
        name="transposed, odd",
        make=OddTransposed,
        input_shape=(2, 18, 18),
        parameters=271,
        trainable=271,
        unused=0,
        macs=9_504,
        layer=None,
        field=(_at((3, 3, 9), 1, -4),) * 2,
    ),
    Case(
        name="pixel shuffle",
        make=PixelShuffleSR,
        input_shape=(1, 12, 10),
        parameters=875,
        trainable=875,
        unused=0,
        macs=111_480,
        layer=None,
        field=(_at((8, 7, 8), Fraction(1, 3), -4),) * 2,
    ),
    Case(
        name="space to depth",
        make=SpaceToDepth,
        input_shape=(3, 16, 16),
        parameters=1037,
        trainable=1037,
        unused=0,
        macs=57_856,
        layer=None,
        field=(_at((8,), 4, -2),) * 2,
    ),
    Case(
        name="shared three times",
        make=Recurrent,
        input_shape=(1, 16, 16),
        parameters=404,
        trainable=404,
        unused=0,
        macs=265_728,
        layer=None,
        field=(_at((9,), 1, -4),) * 2,
    ),
    Case(
        name="tied weights",
        make=TiedAutoencoder,
        input_shape=(1, 16, 16),
        parameters=721,
        trainable=721,
        unused=0,
        macs=13_312,
        layer=None,
        field=(_at((12,), 1, -4),) * 2,
    ),
    Case(
        name="functional",
        make=Functional,
        input_shape=(3, 18, 18),
        parameters=513,
        trainable=513,
        unused=0,
        macs=161_352,
        layer=None,
        field=(_at((7,), 1, -3),) * 2,
    ),
    Case(
        name="einsum",
        make=EinsumNet,
        input_shape=(3, 16, 24),
        parameters=602,
        trainable=602,
        unused=0,
        macs=55_872,
        layer=None,
        field=(_at((7,), 2, -3),) * 2,
    ),
    Case(
        name="unfold",
        make=UnfoldNet,
        input_shape=(2, 12, 12),
        parameters=137,
        trainable=137,
        unused=0,
        macs=14_400,
        layer=None,
        field=(_at((4,), 2, -1),) * 2,
    ),
    Case(
        name="frozen part",
        make=PartlyFrozen,
        input_shape=(3, 16, 16),
        parameters=608,
        trainable=110,
        unused=0,
        macs=38_016,
        layer=None,
        field=(_at((11,), 2, -5),) * 2,
    ),
    Case(
        name="frozen, without gradients",
        make=FrozenWithoutGradients,
        input_shape=(3, 16, 16),
        parameters=608,
        trainable=110,
        unused=0,
        macs=38_016,
        layer=None,
        field=(_at((11,), 2, -5),) * 2,
    ),
    Case(
        name="buffer and unused",
        make=BlurWithSpare,
        input_shape=(3, 16, 16),
        parameters=292,
        trainable=292,
        unused=110,
        macs=45_696,
        layer=None,
        field=(_at((5,), 2, -2),) * 2,
    ),
    Case(
        name="channel shuffle",
        make=shufflenet,
        input_shape=(3, 32, 32),
        parameters=376,
        trainable=376,
        unused=0,
        macs=81_920,
        layer=None,
        field=(_at((11,), 2, -5),) * 2,
    ),
    Case(
        name="inverted residuals",
        make=mobilenet,
        input_shape=(3, 32, 32),
        parameters=2396,
        trainable=2396,
        unused=0,
        macs=204_288,
        layer=None,
        field=(_at((27,), 4, -13),) * 2,
    ),
    Case(
        name="dilated, per axis",
        make=PerAxis,
        input_shape=(3, 14, 30),
        parameters=200,
        trainable=200,
        unused=0,
        macs=57_960,
        layer=None,
        field=(_at((8,), 2, -3), _at((11,), 1, -5)),
    ),
    Case(
        name="dense",
        make=DenseBlock,
        input_shape=(2, 16, 16),
        parameters=1116,
        trainable=1116,
        unused=0,
        macs=264_192,
        layer=None,
        field=(_at((10,), 2, -4),) * 2,
    ),
    Case(
        name="dilated max-pool",
        make=dilated_max_pool,
        input_shape=(1, 22, 22),
        parameters=188,
        trainable=188,
        unused=0,
        macs=28_800,
        layer=None,
        field=(_at((11,), 2, -3),) * 2,
    ),
    Case(
        name="average pools",
        make=AveragePools,
        input_shape=(2, 24, 18),
        parameters=113,
        trainable=113,
        unused=0,
        macs=9_945,
        layer=None,
        field=(_at((13,), 8, -3), _at((9,), 4, -3)),
    ),
    Case(
        name="classifier",
        make=ResNetClassifier,
        input_shape=(3, 64, 64),
        parameters=5042,
        trainable=5042,
        unused=0,
        macs=1_433_760,
        layer="stage",
        field=(_at((35,), 8, -17),) * 2,
    ),
    Case(
        name="strip pooling",
        make=StripPooling,
        input_shape=(2, 12, 16),
        parameters=138,
        trainable=138,
        unused=0,
        macs=15_936,
        layer=None,
        field=(_at((5,), 1, -2), None),
    ),
    Case(
        name="squeeze-excite",
        make=SENet,
        input_shape=(3, 16, 16),
        parameters=558,
        trainable=558,
        unused=0,
        macs=32_288,
        layer=None,
        field=(None,) * 2,
    ),
    Case(
        name="squeeze-excite, before",
        make=SENet,
        input_shape=(3, 16, 16),
        parameters=558,
        trainable=558,
        unused=0,
        macs=32_288,
        layer="stem",
        field=(_at((3,), 2, -1),) * 2,
    ),
    Case(
        name="image pooling",
        make=ASPP,
        input_shape=(3, 24, 24),
        parameters=715,
        trainable=715,
        unused=0,
        macs=95_928,
        layer=None,
        field=(None,) * 2,
    ),
    Case(
        name="image pooling, beside",
        make=ASPP,
        input_shape=(3, 24, 24),
        parameters=715,
        trainable=715,
        unused=0,
        macs=95_928,
        layer="branches.2",
        field=(_at((19,), 2, -9),) * 2,
    ),
    Case(
        name="convnext",
        make=convnext,
        input_shape=(3, 16, 16),
        parameters=1096,
        trainable=1096,
        unused=0,
        macs=64_000,
        layer=None,
        field=(_at((14,), 2, -6),) * 2,
    ),
    Case(
        name="group norm",
        make=GroupNormNet,
        input_shape=(3, 12, 12),
        parameters=824,
        trainable=824,
        unused=0,
        macs=114_048,
        layer=None,
        field=(None,) * 2,
    ),
    Case(
        name="group norm, before",
        make=GroupNormNet,
        input_shape=(3, 12, 12),
        parameters=824,
        trainable=824,
        unused=0,
        macs=114_048,
        layer="first",
        field=(_at((3,), 1, -1),) * 2,
    ),
    Case(
        name="pixel mlp",
        make=PixelMLP,
        input_shape=(3, 21, 21),
        parameters=480,
        trainable=480,
        unused=0,
        macs=20_178,
        layer=None,
        field=(_at((6,), 3, 0),) * 2,
    ),
    Case(
        name="position attention",
        make=PositionAttention,
        input_shape=(3, 16, 16),
        parameters=1955,
        trainable=1955,
        unused=0,
        macs=37_632,
        layer=None,
        field=(None,) * 2,
    ),
    Case(
        name="token mixer",
        make=TokenMixer,
        input_shape=(3, 16, 16),
        parameters=1593,
        trainable=1593,
        unused=0,
        macs=21_564,
        layer="embed",
        field=(_at((4,), 4, 0),) * 2,
    ),
    Case(
        name="row attention",
        make=RowAttention,
        input_shape=(3, 10, 14),
        parameters=540,
        trainable=540,
        unused=0,
        macs=101_920,
        layer=None,
        field=(_at((5,), 1, -2), None),
    ),
    Case(
        name="window attention",
        make=WindowAttention,
        input_shape=(2, 16, 16),
        parameters=332,
        trainable=332,
        unused=0,
        macs=132_096,
        layer=None,
        field=(_at((10, 6, 6, 10), 1, -5),) * 2,
    ),
    Case(
        name="size-dependent",
        make=SizeDependent,
        input_shape=(1, 24, 24),
        parameters=336,
        trainable=336,
        unused=0,
        macs=62_208,
        layer=None,
        field=(_at((9,), 2, -4),) * 2,
    ),
    Case(
        name="stochastic depth",
        make=StochasticDepth,
        input_shape=(3, 24, 24),
        parameters=1548,
        trainable=1548,
        unused=0,
        macs=220_320,
        layer=None,
        field=(_at((15,), 2, -7),) * 2,
    ),
    Case(
        name="video",
        make=Video,
        input_shape=(3, 8, 24, 24),
        parameters=1794,
        trainable=1794,
        unused=0,
        macs=1_163_520,
        layer=None,
        field=(_at((7,), 1, -1), _at((15,), 4, -6), _at((15,), 4, -6)),
    ),
    Case(
        name="dictionary",
        make=Heads,
        input_shape=(3, 20, 20),
        parameters=725,
        trainable=725,
        unused=0,
        macs=54_600,
        layer="mask",
        field=(_at((7,), 2, -3),) * 2,
    ),
    Case(
        name="dictionary, second",
        make=Heads,
        input_shape=(3, 20, 20),
        parameters=725,
        trainable=725,
        unused=0,
        macs=54_600,
        layer="box",
        field=(_at((11,), 4, -5),) * 2,
    ),
    Case(
        name="tuple",
        make=Pyramid,
        input_shape=(1, 16, 16),
        parameters=262,
        trainable=262,
        unused=0,
        macs=9_216,
        layer=None,
        field=(_at((7,), 4, -3),) * 2,
    ),
    Case(
        name="tuple, second",
        make=Pyramid,
        input_shape=(1, 16, 16),
        parameters=262,
        trainable=262,
        unused=0,
        macs=9_216,
        layer="fine",
        field=(_at((11,), 2, -7),) * 2,
    ),
    Case(
        name="mirrored",
        make=Mirrored,
        input_shape=(1, 10, 12),
        parameters=28,
        trainable=28,
        unused=0,
        macs=2_112,
        layer=None,
        field=(_at((3,), 1, 0), _at((2,), -1, 10)),
    ),
)
