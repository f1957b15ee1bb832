"""More small networks with their numbers, in the terms of `independent_networks`."""

import math
from dataclasses import dataclass
from dataclasses import field as dc_field
from fractions import Fraction

import torch
import torch.fx
import torch.nn.functional as F
import torch.utils.checkpoint
from independent_networks import Case
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm


def conv_bn(
    cin: int,
    cout: int,
    k: int = 3,
    s: int = 1,
    p: int | None = None,
    g: int = 1,
    d: int = 1,
    act: bool = True,
) -> nn.Sequential:
    """Convolution, batch norm, activation."""
    layers: list[nn.Module] = [
        nn.Conv2d(cin, cout, k, s, (k - 1) // 2 * d if p is None else p, d, g, bias=False),
        nn.BatchNorm2d(cout),
    ]
    if act:
        layers.append(nn.ReLU(inplace=True))
    return nn.Sequential(*layers)


# Padding, strides, pools --------------------------------------------------------------------------


class LopsidedStem(nn.Module):
    """Asymmetric zero padding, strides 3 and 2, pools that round up."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, (4, 3), (3, 2))
        self.norm = nn.BatchNorm2d(6)
        self.pool = nn.MaxPool2d(3, 2, ceil_mode=True)
        self.tail = nn.Conv2d(6, 5, (2, 5), padding=(1, 0), dilation=(2, 1))
        self.mean = nn.AvgPool2d(
            (2, 3), (3, 1), padding=(1, 1), ceil_mode=True, count_include_pad=False
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(F.pad(x, (1, 2, 0, 3)))).relu()
        return self.mean(F.hardswish(self.tail(F.pad(self.pool(x), (0, 3, 2, 0)))))


class PowerPools(nn.Module):
    """lp_pool, divisor_override, adaptive pools of whole ratio, a padded and dilated max-pool."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(1, 4, 3, padding=1)
        self.lp = nn.LPPool2d(2, 3, stride=2)
        self.b = nn.Conv2d(4, 4, 3, groups=2, padding="same", dilation=2)
        self.t1 = nn.Identity()
        self.mx = nn.MaxPool2d((3, 2), (1, 2), padding=(1, 1), dilation=(2, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.b(self.lp(self.a(x).relu()).add(0.5))
        x = self.t1(F.avg_pool2d(x, 3, 2, 1, False, True, 5))
        return self.mx(x)


def adaptive_uneven() -> nn.Module:
    """Adaptive pools from 12 to 5."""
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d((5, 5)), nn.Conv2d(4, 3, 2)
    )


class SPPHead(nn.Module):
    """Parallel max pools 5, 9, 13 with stride 1, and the chained form of it."""

    def __init__(self) -> None:
        super().__init__()
        self.cv1 = conv_bn(3, 4, 1)
        self.pools = nn.ModuleList(nn.MaxPool2d(k, 1, k // 2) for k in (5, 9, 13))
        self.cv2 = conv_bn(16, 6, 1)
        self.one = nn.MaxPool2d(5, 1, 2)
        self.cv3 = nn.Conv2d(24, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.cv1(x)
        x = self.cv2(torch.cat([x, *(p(x) for p in self.pools)], 1))
        y1 = self.one(x)
        y2 = self.one(y1)
        return self.cv3(torch.cat((x, y1, y2, self.one(y2)), dim=1))


class BlurDown(nn.Module):
    """Anti-aliased: max-pool of stride 1, reflection, a fixed binomial kernel, groups."""

    kernel: Tensor

    def __init__(self, channels: int, taps: int = 4) -> None:
        super().__init__()
        row = torch.tensor([float(math.comb(taps - 1, i)) for i in range(taps)])
        square = row[:, None] * row[None, :]
        self.register_buffer(
            "kernel", (square / square.sum()).expand(channels, 1, taps, taps).clone()
        )
        self.pad = nn.ReflectionPad2d((1, 2, 1, 2))

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(x, 2, 1)
        return F.conv2d(self.pad(x), self.kernel, stride=2, groups=x.shape[1])


def antialiased() -> nn.Module:
    """Two blurred down-samplings."""
    return nn.Sequential(
        conv_bn(1, 6), BlurDown(6), conv_bn(6, 8), BlurDown(8, 3), nn.Conv2d(8, 2, 1)
    )


class PadModes(nn.Module):
    """Replication by the convolution itself, reflection and a constant that is no zero."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(2, 4, 5, padding=2, stride=2, padding_mode="replicate")
        self.b = nn.Conv2d(4, 4, (3, 1), padding=(1, 0), padding_mode="reflect")
        self.pad = nn.ConstantPad2d((2, -1, -1, 3), 0.3)
        self.c = nn.Conv2d(4, 3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.pad(self.b(self.a(x)).tanh()))


# One dimension ------------------------------------------------------------------------------------


class Gate1d(nn.Module):
    """A gated residual unit; padding on the left then a crop, or on both sides then a chomp."""

    def __init__(self, width: int, dilation: int, chomp: bool) -> None:
        super().__init__()
        self.extra = 2 * dilation
        self.chomp = chomp
        self.both = nn.Conv1d(
            width, 2 * width, 3, dilation=dilation, padding=self.extra if chomp else 0
        )
        self.res = nn.Conv1d(width, width, 1)
        self.skip = nn.Conv1d(width, 5, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if self.chomp:
            h = self.both(x)[:, :, : -self.extra]
        else:
            h = self.both(F.pad(x, (self.extra + 3, 0)))[..., 3:]
        a, b = h.chunk(2, dim=1)
        h = torch.tanh(a) * torch.sigmoid(b)
        return x + self.res(h), self.skip(h)


class GatedCausal(nn.Module):
    """WaveNet-like with skip sums, causal in two ways."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv1d(1, 4, 2)
        self.units = nn.ModuleList(Gate1d(4, d, i % 2 == 1) for i, d in enumerate((1, 2, 4, 1, 3)))
        self.out = nn.Sequential(nn.ReLU(), nn.Conv1d(5, 7, 1), nn.ReLU(), nn.Conv1d(7, 3, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(F.pad(x, (1, 0)))
        total: Tensor | None = None
        for unit in self.units:
            x, skip = unit(x)
            total = skip if total is None else total + skip
        assert total is not None
        return self.out(total)


class SampleRates(nn.Module):
    """Raw audio: strides 5 and 4, transposed back with gaps, average over three frames."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Sequential(
            nn.Conv1d(1, 4, 10, 5, 3), nn.GELU(), nn.Conv1d(4, 6, 8, 4, 2), nn.GELU()
        )
        self.mid = nn.AvgPool1d(3, 1, 1)
        self.up = nn.Sequential(
            nn.ConvTranspose1d(6, 4, 8, 4, 2), nn.GLU(1), nn.ConvTranspose1d(2, 1, 3, 5, 0, 2)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.up(self.mid(self.down(x)))


class CausalAttention1d(nn.Module):
    """A convolution, then attention to what came before."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(2, 8, 3, padding=1)
        self.qkv = nn.Linear(8, 24)
        self.proj = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x).transpose(1, 2)
        b, n, c = x.shape
        q, k, v = self.qkv(x).view(b, n, 3, 2, 4).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.proj(y.transpose(1, 2).reshape(b, n, c)).transpose(1, 2)


# Encoders and decoders ----------------------------------------------------------------------------


def centre(x: Tensor, like: Tensor) -> Tensor:
    """Crop the middle of ``x`` to the size of ``like``."""
    top = (x.shape[-2] - like.shape[-2]) // 2
    left = (x.shape[-1] - like.shape[-1]) // 2
    return x[..., top : top + like.shape[-2], left : left + like.shape[-1]]


class ValidUNet(nn.Module):
    """The first U-Net: no padding, crops in the skips."""

    def __init__(self) -> None:
        super().__init__()
        self.d1 = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU())
        self.d2 = nn.Sequential(nn.Conv2d(4, 6, 3), nn.ReLU(), nn.Conv2d(6, 6, 2), nn.ReLU())
        self.up = nn.ConvTranspose2d(6, 4, 2, stride=2)
        self.u1 = nn.Sequential(nn.Conv2d(8, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 1))

    def forward(self, x: Tensor) -> Tensor:
        a = self.d1(x)
        b = self.up(self.d2(F.max_pool2d(a, 2)))
        return self.u1(torch.cat([centre(a, b), b], 1))


class NestedUNet(nn.Module):
    """U-Net++ of depth 3, nearest up-sampling to the size of the skip."""

    def __init__(self) -> None:
        super().__init__()
        w = (3, 4, 5)
        self.x00 = conv_bn(1, w[0])
        self.x10 = conv_bn(w[0], w[1])
        self.x20 = conv_bn(w[1], w[2])
        self.x01 = conv_bn(w[0] + w[1], w[0])
        self.x11 = conv_bn(w[1] + w[2], w[1])
        self.x02 = conv_bn(2 * w[0] + w[1], w[0])
        self.heads = nn.ModuleList(nn.Conv2d(w[0], 2, 1) for _ in range(2))

    def forward(self, x: Tensor) -> list[Tensor]:
        def up(low: Tensor, like: Tensor) -> Tensor:
            return F.interpolate(low, size=like.shape[2:])

        x00 = self.x00(x)
        x10 = self.x10(F.max_pool2d(x00, 2))
        x20 = self.x20(F.max_pool2d(x10, 2))
        x01 = self.x01(torch.cat([x00, up(x10, x00)], 1))
        x11 = self.x11(torch.cat([x10, up(x20, x10)], 1))
        x02 = self.x02(torch.cat([x00, x01, up(x11, x00)], 1))
        return [self.heads[1](x02), self.heads[0](x01)]


@dataclass
class Levels:
    """What a feature pyramid gives."""

    fine: Tensor
    others: dict[str, Tensor] = dc_field(default_factory=dict)


class FeaturePyramid(nn.Module):
    """Lateral 1x1s, nearest up-sampling to a given size, one smoothing shared by all levels."""

    def __init__(self) -> None:
        super().__init__()
        self.c1 = conv_bn(3, 4, 3, 2)
        self.c2 = conv_bn(4, 6, 3, 2)
        self.c3 = conv_bn(6, 8, 3, 2)
        self.lateral = nn.ModuleDict(
            {"1": nn.Conv2d(4, 5, 1), "2": nn.Conv2d(6, 5, 1), "3": nn.Conv2d(8, 5, 1)}
        )
        self.smooth = nn.Conv2d(5, 5, 3, padding=1)

    def forward(self, x: Tensor) -> Levels:
        c1 = self.c1(x)
        c2 = self.c2(c1)
        p3 = self.lateral["3"](self.c3(c2))
        p2 = self.lateral["2"](c2)
        p2 = p2 + F.interpolate(p3, size=p2.shape[-2:], mode="nearest")
        p1 = self.lateral["1"](c1)
        p1 = p1 + F.interpolate(p2, size=p1.shape[-2:], mode="nearest")
        coarse, middle = self.smooth(p3), self.smooth(p2)
        return Levels(fine=self.smooth(p1), others={"middle": middle, "coarse": coarse})


class HighResolution(nn.Module):
    """Three resolutions that exchange: strided convolutions down, bilinear and nearest up."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(1, 4)
        self.t2 = conv_bn(4, 6, 3, 2)
        self.t3 = conv_bn(6, 8, 3, 2)
        self.b = nn.ModuleList([conv_bn(4, 4), conv_bn(6, 6), conv_bn(8, 8)])
        self.f21 = nn.Sequential(
            nn.Conv2d(6, 4, 1, bias=False), nn.BatchNorm2d(4), nn.Upsample(scale_factor=2)
        )
        self.f31 = nn.Sequential(nn.Conv2d(8, 4, 1, bias=False), nn.BatchNorm2d(4))
        self.f12 = conv_bn(4, 6, 3, 2, act=False)
        self.f32 = nn.Sequential(nn.Conv2d(8, 6, 1), nn.Upsample(scale_factor=2, mode="nearest"))
        self.f13 = nn.Sequential(conv_bn(4, 4, 3, 2), conv_bn(4, 8, 3, 2, act=False))
        self.f23 = conv_bn(6, 8, 3, 2, act=False)
        self.y1, self.y2, self.y3 = nn.Identity(), nn.Identity(), nn.Identity()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x1 = self.stem(x)
        x2 = self.t2(x1)
        x3 = self.t3(x2)
        x1, x2, x3 = (b(v) for b, v in zip(self.b, (x1, x2, x3), strict=True))
        up = F.interpolate(self.f31(x3), scale_factor=4, mode="bilinear", align_corners=False)
        y1 = (x1 + self.f21(x2) + up).relu_()
        y2 = F.relu(self.f12(x1) + x2 + self.f32(x3), inplace=True)
        y3 = F.relu(self.f13(x1) + self.f23(x2) + x3)
        return self.y1(y1), self.y2(y2), self.y3(y3)


class Resizers(nn.Module):
    """Bilinear by 1.5, bicubic by 2, nearest-exact by 3 and down again, one behind the other."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(1, 3, 3, padding=1)
        self.up1 = nn.Upsample(scale_factor=1.5, mode="bilinear")
        self.b = nn.Conv2d(3, 3, 3, stride=3, padding=1)
        self.up2 = nn.Upsample(scale_factor=2, mode="bicubic")
        self.c = nn.Conv2d(3, 2, 2)
        self.up3 = nn.Upsample(scale_factor=3, mode="nearest-exact")
        self.down = nn.Conv2d(2, 2, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.b(self.up1(self.a(x)))
        return self.down(self.up3(self.c(self.up2(x))))


class AlignedSkip(nn.Module):
    """Aligned corners beside a skip."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(1, 3, 3, padding=1)
        self.b = nn.Conv2d(3, 3, 3, stride=2, padding=1)
        self.c = nn.Conv2d(6, 2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x).relu()
        y = F.interpolate(self.b(x), size=x.shape[-2:], mode="bilinear", align_corners=True)
        return self.c(torch.cat([x, y], dim=-3))


class GappyTransposed(nn.Module):
    """Transposed convolutions: stride 3 with 2 taps, dilation, groups, output padding."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(2, 4, 3, stride=2, padding=1)
        self.gaps = nn.ConvTranspose2d(4, 4, 2, stride=3)
        self.wide = nn.ConvTranspose2d(
            4, 6, 3, stride=2, padding=2, output_padding=1, groups=2, dilation=(3, 2)
        )
        self.b = nn.Conv2d(6, 2, (1, 4), stride=(4, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.wide(self.gaps(self.a(x).relu())))


class SubPixel3(nn.Module):
    """Pixel unshuffle by 2, then a shuffle by 3."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.PixelUnshuffle(2)
        self.a = nn.Conv2d(4, 8, 3, padding=1)
        self.b = nn.Conv2d(8, 18, 3, padding=1)
        self.up = nn.PixelShuffle(3)
        self.c = nn.Conv2d(2, 1, 5, padding=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.up(self.b(torch.tanh(self.a(self.down(x))))))


class FoldedSquares(nn.Module):
    """Space to depth by reshape and permute, a 1x1, back again by view; by 3."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(1, 2, 3, padding=1)
        self.mix = nn.Conv2d(18, 18, 1, groups=2)
        self.t1 = nn.Identity()
        self.c = nn.Conv2d(2, 1, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        n, c, h, w = x.shape
        y = (
            x.reshape(n, c, h // 3, 3, w // 3, 3)
            .permute(0, 1, 3, 5, 2, 4)
            .reshape(n, c * 9, h // 3, w // 3)
        )
        y = self.t1(self.mix(y))
        y = (
            y.view(n, c, 3, 3, h // 3, w // 3)
            .permute(0, 1, 4, 2, 5, 3)
            .contiguous()
            .view(n, c, h, w)
        )
        return self.c(x + y)


class SegUnpool(nn.Module):
    """SegNet: positions of the maxima brought back."""

    def __init__(self) -> None:
        super().__init__()
        self.a = conv_bn(1, 4)
        self.pool = nn.MaxPool2d(2, return_indices=True)
        self.b = conv_bn(4, 4)
        self.unpool = nn.MaxUnpool2d(2)
        self.c = nn.Conv2d(4, 2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x, where = self.pool(self.a(x))
        return self.c(self.unpool(self.b(x), where))


class FoldBack(nn.Module):
    """Overlapping patches through a linear map, and back by fold."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(1, 2, 3, padding=1)
        self.mlp = nn.Linear(32, 32)
        self.b = nn.Conv2d(2, 2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        cols = F.unfold(x, 4, stride=2, padding=1).transpose(1, 2)
        back = F.fold(self.mlp(cols).transpose(1, 2), x.shape[-2:], 4, stride=2, padding=1)
        return self.b(back)


# Shifts -------------------------------------------------------------------------------------------


class Shifts(nn.Module):
    """Branches moved by negative padding, by slices and by stacking neighbours."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(2, 4, 3, padding=1)
        self.t1 = nn.Identity()
        self.b = nn.Conv2d(4, 2, (1, 3), stride=(1, 2))
        self.t2 = nn.Identity()
        self.c = nn.Conv2d(8, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        y = self.t1(x[..., 2:] + x[..., :-2])
        y = y + F.pad(y, (0, 0, 3, -3)) - F.pad(y, (0, 0, -1, 1))
        y = self.t2(torch.stack([y[:, :, 1:-1], y[:, :, 2:] * y[:, :, :-2]], dim=2).flatten(1, 2))
        return F.conv2d(self.c(y), self.b.weight[:, :3], self.b.bias, stride=(1, 2))


class Rolled(nn.Module):
    """Quarters of the channels rolled in four directions."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(1, 8, 3, padding=1)
        self.b = nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        p, q, r, s = torch.split(self.a(x), 2, dim=1)
        y = [
            p.roll(2, 2),
            torch.roll(q, -1, dims=2),
            torch.roll(r, shifts=(3, 0), dims=(3, 2)),
            s.roll(-1, -1),
        ]
        return self.b(torch.cat(y, 1))


class ZeroShift(nn.Module):
    """S2-MLP: channels shifted by slices with zeros cat'ed, then mixed."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 8, 4, 4)
        self.mlp = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8))
        self.b = nn.Conv2d(8, 3, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        z = torch.zeros_like(x[:, :2, :1])
        w = x.new_zeros(x.shape[0], 2, x.shape[2], 1)
        y = torch.cat(
            [
                torch.cat([z, x[:, 0:2, :-1]], 2),
                torch.cat([x[:, 2:4, 1:], z], 2),
                torch.cat([w, x[:, 4:6, :, :-1]], 3),
                torch.cat([x[:, 6:8, :, 1:], w], 3),
            ],
            1,
        )
        return self.b(x + self.mlp(y.permute(0, 2, 3, 1)).permute(0, 3, 1, 2))


class Interleaved(nn.Module):
    """Wavelet-like lifting: even and odd columns apart, predicted, woven together by stack."""

    def __init__(self) -> None:
        super().__init__()
        self.predict = nn.Conv2d(1, 1, (1, 3), padding=(0, 1))
        self.update = nn.Conv2d(1, 1, (3, 1), padding=(1, 0))
        self.t1 = nn.Identity()
        self.out = nn.Conv2d(1, 1, 3)

    def forward(self, x: Tensor) -> Tensor:
        even, odd = x[..., ::2], x[..., 1::2]
        odd = odd - self.predict(even)
        even = self.t1(even + self.update(odd))
        return self.out(torch.stack((even, odd), -1).flatten(-2))


class TensorUnfold(nn.Module):
    """Sliding windows by Tensor.unfold, differences, narrow."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(1, 3, 3)
        self.w = nn.Parameter(torch.rand(5))
        self.t1 = nn.Identity()
        self.b = nn.Conv2d(3, 2, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        x = self.t1((x.unfold(3, 5, 2) * self.w).sum(-1))
        x = torch.diff(x, dim=2, n=2)
        return self.b(x.narrow(2, 1, x.shape[2] - 3))


class Cumulative(nn.Module):
    """A sum from the left, beside a convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(1, 3, 3, padding=1)
        self.b = nn.Conv2d(3, 2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        return self.b(x + x.cumsum(-1) / 8)


class Symmetric(nn.Module):
    """What is made mirror-symmetric: flip and add, flipped copies along the channels."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(1, 3, 3, padding=1)
        self.b = nn.Conv2d(6, 2, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        x = torch.cat([x, torch.flip(x, (2,))], 1)
        return self.b(x) + self.b(x.flip(2)).flip(2)


class Transposing(nn.Module):
    """Height and width change places between convolutions that are not square."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(1, 3, (5, 1), stride=(2, 1))
        self.b = nn.Conv2d(3, 4, (3, 2), padding=(1, 0), dilation=(1, 2))
        self.c = nn.Conv2d(4, 2, (1, 7), stride=(1, 3), padding=(0, 2))

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x).transpose(2, 3)
        x = self.b(x).mT
        return self.c(torch.swapaxes(x, -1, -2)).permute(0, 1, 3, 2)


# Weights ------------------------------------------------------------------------------------------


class OneKernel(nn.Module):
    """One kernel at three dilations and two strides, used both ways round."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 4, 1)
        self.kernel = nn.Parameter(torch.rand(4, 4, 3, 3) * 0.1)
        self.shift = nn.Parameter(torch.zeros(4), requires_grad=False)
        self.t1 = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = sum(
            (F.conv2d(x, self.kernel, self.shift, padding=d, dilation=d) for d in (1, 2, 4)),
            torch.zeros(()).to(x),
        )
        x = self.t1(F.conv2d(x.relu(), self.kernel, stride=2, padding=1))
        x = F.conv2d(x, self.kernel.flip(2, 3).transpose(0, 1), stride=(3, 1))
        return F.conv_transpose2d(x, self.kernel, stride=(3, 2), padding=1)


class Standardised(nn.Module):
    """Weights standardised on the way, in a dictionary of parameters; no module at all."""

    def __init__(self) -> None:
        super().__init__()
        self.p = nn.ParameterDict(
            {
                "w1": nn.Parameter(torch.randn(6, 3, 3, 3)),
                "g1": nn.Parameter(torch.ones(6, 1, 1, 1)),
                "w2": nn.Parameter(torch.randn(6, 1, 5, 5)),
                "b2": nn.Parameter(torch.zeros(6)),
                "w3": nn.Parameter(torch.randn(4, 6)),
                "spare": nn.Parameter(torch.zeros(7)),
            }
        )
        self.out = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        w = self.p["w1"]
        w = (
            (w - w.mean((1, 2, 3), keepdim=True))
            / (w.var((1, 2, 3), keepdim=True) + 1e-5).sqrt()
            * self.p["g1"]
        )
        x = F.silu(F.conv2d(x, w, stride=2, padding=1))
        x = F.conv2d(x, self.p["w2"].abs(), self.p["b2"], padding=4, dilation=2, groups=6)
        return self.out(torch.einsum("oc,nchw->nohw", self.p["w3"], x))


def spectral() -> nn.Module:
    """Spectrally normalised, as discriminators are."""
    return nn.Sequential(
        spectral_norm(nn.Conv2d(3, 6, 4, 2, 1)),
        nn.LeakyReLU(0.2),
        spectral_norm(nn.Conv2d(6, 8, 4, 2, 1, bias=False)),
        nn.InstanceNorm2d(8, affine=True, track_running_stats=True),
        nn.LeakyReLU(0.2, inplace=True),
        nn.Conv2d(8, 1, 4, 1, 1),
    )


class RepVGGBlock(nn.Module):
    """Three branches: 3x3, 1x1 and the identity, each with its norm."""

    def __init__(self, cin: int, cout: int, stride: int) -> None:
        super().__init__()
        self.dense = nn.Sequential(
            nn.Conv2d(cin, cout, 3, stride, 1, bias=False), nn.BatchNorm2d(cout)
        )
        self.point = nn.Sequential(
            nn.Conv2d(cin, cout, 1, stride, bias=False), nn.BatchNorm2d(cout)
        )
        self.same = nn.BatchNorm2d(cin) if cin == cout and stride == 1 else None

    def forward(self, x: Tensor) -> Tensor:
        y = self.dense(x) + self.point(x)
        if self.same is not None:
            y += self.same(x)
        return F.relu_(y)


def repvgg() -> nn.Module:
    """Four such blocks and a classifier."""
    return nn.Sequential(
        RepVGGBlock(3, 6, 2),
        RepVGGBlock(6, 6, 1),
        RepVGGBlock(6, 8, 2),
        RepVGGBlock(8, 8, 1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 10),
    )


class DynamicKernels(nn.Module):
    """CondConv: a kernel mixed from experts by what the image shows."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(1, 4, 3, padding=1)
        self.route = nn.Linear(4, 3)
        self.experts = nn.Parameter(torch.randn(3, 5, 4, 3, 3) * 0.1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        n, c, h, w = x.shape
        r = torch.sigmoid(self.route(x.mean((2, 3))))
        k = torch.matmul(r, self.experts.flatten(1)).view(n * 5, c, 3, 3)
        return F.conv2d(x.reshape(1, n * c, h, w), k, padding=1, groups=n).view(n, 5, h, w)


# Blocks -------------------------------------------------------------------------------------------


class Ghost(nn.Module):
    """Few channels by convolution, the others by cheap operations on them."""

    def __init__(self, cin: int, cout: int, stride: int = 1) -> None:
        super().__init__()
        first = -(-cout // 2)
        self.cout = cout
        self.primary = conv_bn(cin, first, 1, stride)
        self.cheap = conv_bn(first, first, 3, g=first)

    def forward(self, x: Tensor) -> Tensor:
        a = self.primary(x)
        return torch.cat([a, self.cheap(a)], 1)[:, : self.cout]


class GhostNet(nn.Module):
    """Ghost bottlenecks, one of which takes a stride of two between them."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(1, 5)
        self.g1 = Ghost(5, 9)
        self.dw = conv_bn(9, 9, 5, 2, g=9, act=False)
        self.g2 = Ghost(9, 7)
        self.short = nn.Sequential(conv_bn(5, 5, 5, 2, g=5, act=False), conv_bn(5, 7, 1, act=False))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.g2(self.dw(self.g1(x)))
        y += self.short(x)
        return y


class Octave(nn.Module):
    """Half of the channels at half of the size."""

    def __init__(self) -> None:
        super().__init__()
        self.first_h = nn.Conv2d(1, 4, 3, padding=1)
        self.first_l = nn.Conv2d(1, 3, 3, padding=1)
        self.hh = nn.Conv2d(4, 4, 3, padding=1)
        self.hl = nn.Conv2d(4, 3, 3, padding=1)
        self.lh = nn.Conv2d(3, 4, 3, padding=1)
        self.ll = nn.Conv2d(3, 3, 3, padding=1)
        self.last = nn.Conv2d(4, 2, 1)
        self.last_l = nn.Conv2d(3, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        high = self.first_h(x)
        low = self.first_l(F.avg_pool2d(x, 2))
        new_high = self.hh(high) + F.interpolate(self.lh(low), scale_factor=2, mode="nearest")
        new_low = self.ll(low) + self.hl(F.avg_pool2d(high, 2, 2))
        return self.last(new_high.relu()) + self.last_l(new_low.relu()).repeat_interleave(
            2, 2
        ).repeat_interleave(2, 3)


class DualPath(nn.Module):
    """A residual and a dense path in one."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(3, 8)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                conv_bn(8 + 2 * i, 6, 1), conv_bn(6, 6, 3, g=3, d=1 + i), nn.Conv2d(6, 10, 1)
            )
            for i in range(3)
        )
        self.out = nn.Conv2d(14, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        res, dense = x[:, :8], x[:, 8:]
        for block in self.blocks:
            y = block(torch.cat([res, dense], 1) if dense.shape[1] else res)
            res = res + y[:, :8]
            dense = torch.cat([dense, y[:, 8:]], 1)
        return self.out(torch.cat([res, dense], 1))


class CheckpointDense(nn.Module):
    """DenseNet layers under torch.utils.checkpoint."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 4, 3, 2, 1)
        self.layers = nn.ModuleList(
            nn.Sequential(
                nn.BatchNorm2d(4 + 3 * i),
                nn.ReLU(),
                nn.Conv2d(4 + 3 * i, 6, 1, bias=False),
                nn.BatchNorm2d(6),
                nn.ReLU(inplace=True),
                nn.Conv2d(6, 3, 3, padding=1, bias=False),
            )
            for i in range(3)
        )
        self.trans = nn.Sequential(
            nn.BatchNorm2d(13), nn.ReLU(), nn.Conv2d(13, 6, 1), nn.AvgPool2d(2)
        )

    def forward(self, x: Tensor) -> Tensor:
        xs = [self.stem(x)]
        for layer in self.layers:

            def run(*parts: Tensor, layer: nn.Module = layer) -> Tensor:
                return layer(torch.cat(parts, 1))

            xs.append(torch.utils.checkpoint.checkpoint(run, *xs, use_reentrant=False))
        return self.trans(torch.cat(xs, 1))


class Reversible(nn.Module):
    """Two halves that are added to each other in turn."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 6, 5, 2, 2)
        self.f = nn.Sequential(nn.ReLU(), nn.Conv2d(3, 3, 3, padding=1))
        self.g = nn.Sequential(nn.ReLU(), nn.Conv2d(3, 3, (1, 3), padding=(0, 1)))

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.stem(x).chunk(2, 1)
        for _ in range(2):
            a = a + self.f(b)
            b = torch.add(b, self.g(a), alpha=0.5)
        return torch.cat([a, b], dim=1)


class Shuffled(nn.Module):
    """Channels dealt out by slices with a step, groups, and view with transpose."""

    def __init__(self) -> None:
        super().__init__()
        self.a = conv_bn(1, 8)
        self.b = conv_bn(4, 4, 3, 2, g=4)
        self.c = conv_bn(4, 4, 3, 2, g=2)
        self.d = nn.Conv2d(8, 8, 3, groups=4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        x = torch.cat((self.b(x[:, ::2]), self.c(x[:, 1::2])), 1)
        n, c, h, w = x.size()
        x = torch.transpose(x.view(n, 2, c // 2, h, w), 1, 2).contiguous().view(n, -1, h, w)
        x = self.d(x)
        return x[:, [0, 2, 4, 6]] + x[:, 1::2]


class Coordinates(nn.Module):
    """CoordConv: channels with the place, made from the shape."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 4, 3, padding=1)
        self.b = nn.Conv2d(6, 4, 3, stride=2)

    @staticmethod
    def place(x: Tensor) -> Tensor:
        """Append the coordinates."""
        n, _, h, w = x.shape
        ys = torch.linspace(-1, 1, h, dtype=x.dtype, device=x.device)
        xs = torch.arange(w, dtype=x.dtype, device=x.device) / (w - 1) * 2 - 1
        gy, gx = torch.meshgrid(ys, xs, indexing="ij")
        return torch.cat([x, gy.expand(n, 1, h, w), gx[None, None].repeat(n, 1, 1, 1)], 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.place(self.a(self.place(x)).relu()))


class Involution(nn.Module):
    """A kernel for each place, made from that place, on unfolded patches."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 3, padding=1)
        self.reduce = conv_bn(8, 4, 1)
        self.span = nn.Conv2d(4, 2 * 25, 1)
        self.down = nn.AvgPool2d(2)
        self.unfold = nn.Unfold(5, padding=2, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        w = self.span(self.reduce(self.down(x)))
        n, _, h, v = w.shape
        w = w.view(n, 2, 25, h, v).unsqueeze(2)
        y = self.unfold(x).view(n, 2, 4, 25, h, v)
        return (w * y).sum(dim=3).view(n, 8, h, v)


class Attended(nn.Module):
    """CBAM: channels from mean and maximum, then places by a 7x7."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(3, 8, 3, 2)
        self.mlp = nn.Sequential(
            nn.Conv2d(8, 2, 1, bias=False), nn.ReLU(), nn.Conv2d(2, 8, 1, bias=False)
        )
        self.spatial = nn.Conv2d(2, 1, 7, padding=3, bias=False)
        self.gate = nn.Identity()
        self.out = nn.Conv2d(8, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x * torch.sigmoid(
            self.mlp(F.adaptive_avg_pool2d(x, 1)) + self.mlp(F.adaptive_max_pool2d(x, 1))
        )
        s = torch.cat([x.mean(1, keepdim=True), x.max(1, keepdim=True).values], 1)
        return self.out(x * self.gate(self.spatial(s).sigmoid()))


class SpatialGate(nn.Module):
    """The places half of CBAM alone, so that the field stays local."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(3, 6, 3, 2)
        self.spatial = nn.Conv2d(2, 1, 7, padding=3, bias=False)
        self.out = nn.Conv2d(6, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        s = torch.cat(
            [torch.mean(x, dim=1, keepdim=True), torch.amax(x, dim=1, keepdim=True)], dim=1
        )
        return self.out(x * torch.sigmoid(self.spatial(s)).expand_as(x))


class ECA(nn.Module):
    """Efficient channel attention: a 1-D convolution along the channels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 3, 2)
        self.eca = nn.Conv1d(1, 1, 3, padding=1, bias=False)
        self.tail = nn.Conv2d(8, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = F.adaptive_avg_pool2d(x, 1).squeeze(-1).transpose(-1, -2)
        y = self.eca(y).transpose(-1, -2).unsqueeze(-1)
        return self.tail(x * y.sigmoid())


class ConvMixer(nn.Module):
    """Patches, depthwise 5x5 with a residual, pointwise."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 4, 4), nn.GELU(), nn.BatchNorm2d(8))
        self.depth = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(8, 8, 5, groups=8, padding="same"), nn.GELU(), nn.BatchNorm2d(8)
            )
            for _ in range(2)
        )
        self.point = nn.ModuleList(
            nn.Sequential(nn.Conv2d(8, 8, 1), nn.GELU(), nn.BatchNorm2d(8)) for _ in range(2)
        )
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d((1, 1)), nn.Flatten(), nn.Linear(8, 5))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for depth, point in zip(self.depth, self.point, strict=True):
            x = point(x + depth(x))
        return self.head(x)


class Mixer(nn.Module):
    """MLP-Mixer on 16 patches."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 8, 5, 4, 2)
        self.n1 = nn.LayerNorm(8)
        self.tokens = nn.Sequential(nn.Linear(16, 12), nn.GELU(), nn.Linear(12, 16))
        self.n2 = nn.LayerNorm(8)
        self.channels = nn.Sequential(nn.Linear(8, 20), nn.GELU(), nn.Linear(20, 8))
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = x + self.tokens(self.n1(x).transpose(1, 2)).transpose(1, 2)
        x = x + self.channels(self.n2(x))
        return self.head(x.mean(1))


class EinsumWindows(nn.Module):
    """Tokens mixed within windows of 4x4 by einsum, then a 1x1 by tensordot-like einsum."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(1, 4, 3, padding=1)
        self.mix = nn.Parameter(torch.randn(16, 16))
        self.point = nn.Parameter(torch.randn(4, 6))
        self.b = nn.Conv2d(6, 2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        n, c, h, w = x.shape
        x = x.view(n, c, h // 4, 4, w // 4, 4)
        x = torch.einsum("nchiwj,ijkl->nchkwl", x, self.mix.view(4, 4, 4, 4)).reshape(n, c, h, w)
        x = torch.einsum("b c h w, c d -> b d h w", x, self.point)
        return self.b(x)


class ChannelsLast(nn.Module):
    """Layer norm on NHWC, linear maps, a depthwise 7x7, a learned scale."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 2, 2)
        self.dw = nn.Conv2d(8, 8, 7, padding=3, groups=8)
        self.norm = nn.LayerNorm(8)
        self.up = nn.Linear(8, 16)
        self.down = nn.Linear(8, 8)
        self.gamma = nn.Parameter(torch.full((8,), 0.1))
        self.outn = nn.LayerNorm(8, elementwise_affine=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.dw(x).movedim(1, -1)
        y = self.down(F.glu(self.up(self.norm(y)), -1)) * self.gamma
        x = x + y.permute(0, 3, 1, 2)
        return self.outn(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class InstanceStyle(nn.Module):
    """Instance norm after a local part."""

    def __init__(self) -> None:
        super().__init__()
        self.local = nn.Sequential(
            nn.ReflectionPad2d(2), nn.Conv2d(3, 4, 5), nn.ReLU(), nn.Conv2d(4, 4, 3, 2, 1)
        )
        self.norm = nn.InstanceNorm2d(4, affine=True)
        self.out = nn.Sequential(
            nn.Upsample(scale_factor=2), nn.ReflectionPad2d(1), nn.Conv2d(4, 3, 3)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.norm(self.local(x)))


# Space and time -----------------------------------------------------------------------------------


def separable_3d() -> nn.Module:
    """Depthwise and pointwise in three dimensions, other numbers along each axis."""
    return nn.Sequential(
        nn.Conv3d(2, 4, (1, 3, 3), (1, 2, 2), (0, 1, 1), bias=False),
        nn.BatchNorm3d(4),
        nn.ReLU6(inplace=True),
        nn.Conv3d(4, 4, (3, 3, 5), (1, 2, 1), (1, 0, 2), groups=4),
        nn.Conv3d(4, 6, 1, bias=False),
        nn.BatchNorm3d(6),
        nn.Hardswish(),
        nn.MaxPool3d((2, 1, 3), (2, 1, 2)),
        nn.Conv3d(6, 2, (2, 1, 1), dilation=(2, 1, 1)),
    )


class TwoPlusOne(nn.Module):
    """Frames folded into the batch for 2-D convolutions, then a 1-D one along time."""

    def __init__(self) -> None:
        super().__init__()
        self.frame = conv_bn(3, 4, 3, 2)
        self.time = nn.Conv1d(4, 5, 3, padding=2, dilation=2)
        self.point = nn.Conv2d(5, 2, 3)

    def forward(self, x: Tensor) -> Tensor:
        n, c, t, h, w = x.shape
        x = self.frame(x.transpose(1, 2).reshape(n * t, c, h, w))
        _, c, h, w = x.shape
        x = x.view(n, t, c, h, w).permute(0, 3, 4, 2, 1).reshape(n * h * w, c, t)
        x = self.time(x).view(n, h, w, 5, t).permute(0, 4, 3, 1, 2)
        x = self.point(x.flatten(0, 1))
        return x.unflatten(0, (n, t)).transpose(1, 2)


class ShiftedFrames(nn.Module):
    """Frames in the batch, a shift along time by slices into zeros, then 2-D convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(2, 8, 3, padding=1)
        self.b = nn.Conv2d(8, 3, 3, 2)

    def forward(self, x: Tensor) -> Tensor:
        n, c, t, h, w = x.shape
        y = self.a(x.transpose(1, 2).reshape(n * t, c, h, w))
        z = y.view(n, t, *y.shape[1:])
        out = torch.zeros_like(z)
        out[:, :-1, :2] = z[:, 1:, :2]
        out[:, 1:, 2:4] = z[:, :-1, 2:4]
        out[:, :, 4:] = z[:, :, 4:]
        y = self.b(out.view_as(y))
        return y.view(n, t, *y.shape[1:]).transpose(1, 2)


class ConvLSTM(nn.Module):
    """One cell, three steps on the same image."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 3, 3, 2, 1)
        self.gates = nn.Conv2d(3 + 4, 16, 3, padding=1)
        self.head = nn.Conv2d(4, 1, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.stem(x)
        h = x.new_zeros(x.shape[0], 4, *x.shape[-2:])
        c = torch.zeros_like(h)
        for _ in range(3):
            i, f, o, g = torch.chunk(self.gates(torch.cat([x, h], 1)), 4, 1)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * c.tanh()
        return self.head(h), c


class ColumnReader(nn.Module):
    """CRNN: columns as steps of an LSTM that reads both ways."""

    def __init__(self) -> None:
        super().__init__()
        self.cnn = nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 6, 3, padding=1)
        )
        self.rnn = nn.LSTM(6, 5, batch_first=True, bidirectional=True)
        self.head = nn.Linear(10, 7)

    def forward(self, x: Tensor) -> Tensor:
        x = self.cnn(x).mean(2).permute(0, 2, 1)
        y, _ = self.rnn(x)
        return self.head(y)


# Attention ----------------------------------------------------------------------------------------


class PatchTransformer(nn.Module):
    """A convolutional stem, a class token, nn.MultiheadAttention over patches."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(conv_bn(3, 6, 3, 2), nn.Conv2d(6, 8, 4, 4))
        self.token = nn.Parameter(torch.zeros(1, 1, 8))
        self.place = nn.Parameter(torch.randn(1, 17, 8) * 0.02)
        self.norm = nn.LayerNorm(8)
        self.attn = nn.MultiheadAttention(8, 2, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.place
        y = self.norm(x)
        x = x + self.attn(y, y, y, need_weights=False)[0]
        return self.head(x[:, 0])


class WindowBias(nn.Module):
    """Swin: attention in windows of 4, with the bias of relative places; then a rolled one."""

    index: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 3, padding=1)
        self.qkv = nn.Linear(8, 24)
        self.proj = nn.Linear(8, 8)
        self.table = nn.Parameter(torch.randn(49, 2) * 0.1)
        ys, xs = torch.meshgrid(torch.arange(4), torch.arange(4), indexing="ij")
        flat = torch.stack([ys.flatten(), xs.flatten()])
        rel = flat[:, :, None] - flat[:, None, :] + 3
        self.register_buffer("index", rel[0] * 7 + rel[1])
        self.t1 = nn.Identity()
        self.out = nn.Conv2d(8, 2, 1)

    def attend(self, x: Tensor) -> Tensor:
        """Attention within windows of NHWC."""
        n, h, w, c = x.shape
        x = x.view(n, h // 4, 4, w // 4, 4, c).transpose(2, 3).reshape(-1, 16, c)
        q, k, v = self.qkv(x).reshape(-1, 16, 3, 2, 4).permute(2, 0, 3, 1, 4)
        bias = self.table[self.index.view(-1)].view(16, 16, 2).permute(2, 0, 1)
        a = (q @ k.transpose(-2, -1) * 0.5 + bias).softmax(-1)
        y = self.proj((a @ v).transpose(1, 2).reshape(-1, 16, c))
        return y.view(n, h // 4, w // 4, 4, 4, c).permute(0, 1, 3, 2, 4, 5).reshape(n, h, w, c)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).permute(0, 2, 3, 1)
        x = x + self.attend(x)
        self.t1(x.permute(0, 3, 1, 2))
        x = x + torch.roll(self.attend(torch.roll(x, (-2, -2), (1, 2))), (2, 2), (1, 2))
        return self.out(x.permute(0, 3, 1, 2))


class LocalAttention(nn.Module):
    """Each place looks at the 3x5 around it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 4, 3, 2, 1)
        self.q = nn.Conv2d(4, 4, 1)
        self.k = nn.Conv2d(4, 4, 1)
        self.v = nn.Conv2d(4, 4, 1)
        self.rel = nn.Parameter(torch.zeros(15))
        self.out = nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        n, c, h, w = x.shape
        k = F.unfold(self.k(x), (3, 5), padding=(1, 2)).view(n, c, 15, h * w)
        v = F.unfold(self.v(x), (3, 5), padding=(1, 2)).view(n, c, 15, h * w)
        q = self.q(x).view(n, c, 1, h * w)
        a = ((q * k).sum(1) + self.rel[:, None]).softmax(dim=1)
        y = torch.einsum("nkp,nckp->ncp", a, v).view(n, c, h, w)
        return self.out(y) + F.max_pool2d(x[:, :2], (1, 3), 1, (0, 1))


class NonLocal(nn.Module):
    """Non-local block with sub-sampled keys; its affinity not normalised."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 6, 3, 2)
        self.theta = nn.Conv2d(6, 3, 1)
        self.phi = nn.Sequential(nn.Conv2d(6, 3, 1), nn.MaxPool2d(2))
        self.g = nn.Sequential(nn.Conv2d(6, 3, 1), nn.MaxPool2d(2))
        self.w = conv_bn(3, 6, 1, act=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        n, _, h, w = x.shape
        theta = self.theta(x).view(n, 3, -1).transpose(1, 2)
        phi = self.phi(x).view(n, 3, -1)
        g = self.g(x).view(n, 3, -1).transpose(1, 2)
        f = torch.bmm(theta, phi) / phi.shape[-1]
        y = torch.bmm(f, g).transpose(1, 2).reshape(n, 3, h, w)
        return x + self.w(y)


class AxialAttention(nn.Module):
    """Attention along the rows only: nn.MultiheadAttention with rows in the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 4, 3, padding=1)
        self.attn = nn.MultiheadAttention(4, 1, bias=False)
        self.out = nn.Conv2d(4, 2, (3, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        n, c, h, w = x.shape
        rows = x.permute(3, 0, 2, 1).reshape(w, n * h, c)
        y, _ = self.attn(rows, rows, rows)
        return self.out(y.view(w, n, h, c).permute(1, 3, 2, 0) + x)


# Control flow and containers ----------------------------------------------------------------------


class Shrinking(nn.Module):
    """Halved while it is wider than 7."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 2, 3, padding=1)
        self.t1 = nn.Identity()
        self.out = nn.Conv2d(2, 3, 3)

    def forward(self, x: Tensor) -> Tensor:
        while x.shape[-1] > 7:
            x = self.conv(x)
            if x.size(2) % 2:
                x = F.pad(x, (0, 0, 0, 1))
            x = self.t1(F.max_pool2d(x, 2))
        return self.out(x)


class Chosen(nn.Module):
    """Operations chosen from a dictionary of lists; most are never called."""

    def __init__(self) -> None:
        super().__init__()
        self.ops = nn.ModuleDict(
            {
                "conv": nn.ModuleList(
                    nn.Conv2d(3, 3, k, padding=k // 2, groups=3) for k in (3, 5, 7)
                ),
                "sep": nn.ModuleList(
                    nn.Sequential(nn.Conv2d(3, 3, 3, padding=2, dilation=2), nn.ELU())
                    for _ in range(2)
                ),
                "pool": nn.ModuleList([nn.AvgPool2d(3, 1, 1), nn.Identity()]),
            }
        )
        self.plan = [("conv", -1, 0), ("sep", 1, 1), ("pool", 0, 0), ("sep", 1, 2), ("conv", 0, 3)]
        self.out = nn.Conv2d(9, 2, 2, 2)

    def forward(self, x: Tensor) -> Tensor:
        states = [x, x.neg()]
        for kind, index, source in self.plan:
            ops = self.ops[kind]
            assert isinstance(ops, nn.ModuleList)
            states.append(ops[index](states[source]))
        return self.out(torch.cat(states[-3:], 1))


class HardGate(nn.Module):
    """A one-hot of the strongest channel picks among branches."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Conv2d(1, 3, 5, padding=2)
        self.wide = nn.Conv2d(1, 3, 3, padding=1)
        self.pick = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        best = self.gate(x).argmax(1)
        mask = F.one_hot(best, 3).permute(0, 3, 1, 2).to(x.dtype)
        return self.pick((self.wide(x) * mask).sum(1, keepdim=True))


class LazyRasp(nn.Module):
    """LR-ASPP: a gate from large strided means, at a coarse level; a skip from a fine one."""

    def __init__(self) -> None:
        super().__init__()
        self.low = conv_bn(3, 4, 3, 2)
        self.high = conv_bn(4, 6, 3, 2)
        self.cbr = conv_bn(6, 5, 1)
        self.scale = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(6, 5, 1, bias=False), nn.Sigmoid()
        )
        self.low_classifier = nn.Conv2d(4, 2, 1)
        self.high_classifier = nn.Conv2d(5, 2, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        low = self.low(x)
        high = self.high(low)
        y = self.cbr(high) * self.scale(high)
        y = F.interpolate(y, size=low.shape[-2:], mode="bilinear", align_corners=False)
        y = self.low_classifier(low) + self.high_classifier(y)
        return {"out": F.interpolate(y, size=x.shape[-2:], mode="bilinear", align_corners=False)}


class Siamese(nn.Module):
    """One encoder for two images, their difference."""

    def __init__(self) -> None:
        super().__init__()
        self.enc = nn.Sequential(conv_bn(1, 4, 3, 2), conv_bn(4, 6, 3, 2))
        self.diff = nn.Conv2d(12, 2, 3, padding=1)

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        a, b = self.enc(left), self.enc(right)
        return self.diff(torch.cat([(a - b).abs(), a * b], 1))


class Traced(nn.Module):
    """A submodule that is a torch.fx graph."""

    def __init__(self) -> None:
        super().__init__()
        inner = nn.Sequential(nn.Conv2d(1, 3, 3, 2), nn.BatchNorm2d(3), nn.ReLU())
        self.inner = torch.fx.symbolic_trace(inner)
        self.out = nn.Conv2d(3, 2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.inner(x))


class Hooked(nn.Module):
    """A forward hook adds the input of a layer to its output, and a pre-hook pads it."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(2, 2, 5)
        self.a.register_forward_pre_hook(lambda module, args: (F.pad(args[0], (4, 0, 2, 2)),))
        self.a.register_forward_hook(lambda module, args, out: out + args[0][..., 2:-2, :-4])
        self.b = nn.Conv2d(2, 1, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x))


class Ladder(nn.Module):
    """PAN: down, up by transposed convolutions, down again; outputs in a nested tuple."""

    def __init__(self) -> None:
        super().__init__()
        self.c1 = conv_bn(1, 4, 3, 2)
        self.c2 = conv_bn(4, 4, 3, 2)
        self.up = nn.ConvTranspose2d(4, 4, 4, 2, 1, bias=False)
        self.bn = nn.BatchNorm2d(4)
        self.down = conv_bn(4, 4, 3, 2)
        self.out = nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> tuple[tuple[Tensor, Tensor], dict[str, Tensor]]:
        c1 = self.c1(x)
        c2 = self.c2(c1)
        p1 = torch.maximum(c1, self.bn(self.up(c2)))
        p2 = self.out(torch.cat([self.down(p1), c2], 1))
        return (p2, p1), {"c2": c2}


class NormPlaces(nn.Module):
    """Norms that cannot fold simply: before a padded conv, on a shared conv, on a sum."""

    def __init__(self) -> None:
        super().__init__()
        self.bn0 = nn.BatchNorm2d(2)
        self.conv = nn.Conv2d(2, 4, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(4)
        self.bn2 = nn.BatchNorm2d(4)
        self.tr = nn.ConvTranspose2d(4, 6, 3, 2, groups=2)
        self.bn3 = nn.BatchNorm2d(6, affine=False)
        self.c1 = nn.Conv2d(6, 6, 1, groups=3)
        self.bn4 = nn.BatchNorm2d(6)
        self.fc = nn.Linear(6, 5)
        self.bn5 = nn.BatchNorm1d(5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn0(x)
        y = self.conv(x)
        x = self.bn1(y) + self.bn2(self.conv(x.flip(1)))
        x = self.bn3(self.tr(x))
        x = self.bn4(self.c1(x).view_as(x))
        return self.bn5(self.fc(x.mean((-1, -2))))


class GridSampler(nn.Module):
    """Rectified by a fixed affine map: grid_sample with a constant grid."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        theta = torch.tensor([[[1.0, 0.0, 0.1], [0.0, 1.0, 0.0]]], dtype=x.dtype, device=x.device)
        grid = F.affine_grid(theta.expand(x.shape[0], 2, 3), list(x.shape), align_corners=False)
        return self.conv(F.grid_sample(x, grid, align_corners=False))


class Spectrum(nn.Module):
    """GFNet: a filter for each frequency."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 3, padding=1)
        self.w = nn.Parameter(torch.rand(2, 16, 9, 2))

    def forward(self, x: Tensor) -> Tensor:
        y = torch.fft.rfft2(self.conv(x), norm="ortho")
        return torch.fft.irfft2(y * torch.view_as_complex(self.w), s=x.shape[-2:], norm="ortho")


class IndexedRows(nn.Module):
    """Rows taken by a list of numbers that lies in a buffer."""

    rows: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 3, padding=1)
        self.register_buffer("rows", torch.tensor([0, 3, 3, 7, 1]))
        self.out = nn.Conv2d(2, 1, (2, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.conv(x).index_select(2, self.rows))


class TwinChannels(nn.Module):
    """Siamese: two images side by side in the channels, one encoder for both."""

    def __init__(self) -> None:
        super().__init__()
        self.enc = nn.Sequential(conv_bn(1, 4, 3, 2), conv_bn(4, 6, 3, 2))
        self.diff = nn.Conv2d(12, 2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        a, b = (self.enc(part) for part in x.split(1, dim=1))
        return self.diff(torch.cat([(a - b).abs(), a * b], 1))


class SlidRows(nn.Module):
    """A shift by assignment to slices, after a batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.a = conv_bn(2, 8)
        self.b = nn.Conv2d(8, 3, 3, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        out = torch.zeros_like(x)
        out[:, :3, :-1] = x[:, :3, 1:]
        out[:, 3:6, 1:] = x[:, 3:6, :-1]
        out[:, 6:] = x[:, 6:]
        return self.b(out)


class ShiftMLP(nn.Module):
    """Shifts by padding and cropping, mixed by a linear map on NHWC."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 8, 4, 4)
        self.mlp = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8))
        self.b = nn.Conv2d(8, 3, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        h, w = x.shape[2:]
        p = F.pad(x, (2, 2, 2, 2))
        parts = [
            torch.narrow(torch.narrow(part, 2, 2 + dy, h), 3, 2 + dx, w)
            for part, dy, dx in zip(p.tensor_split(4, 1), (-2, 2, 0, 0), (0, 0, -1, 1), strict=True)
        ]
        y = torch.concat(parts, 1)
        return self.b(x + self.mlp(y.permute(0, 2, 3, 1)).permute(0, 3, 1, 2))


class SmoothStride(nn.Module):
    """Strided means by a fixed kernel of zeros and ones, maxima of both signs."""

    box: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(1, 4, (1, 5), stride=(1, 2))
        self.register_buffer("box", torch.ones(4, 1, 3, 3) / 9)
        self.b = nn.Conv2d(8, 2, (5, 1), stride=(2, 1), bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        x = torch.cat(
            [F.conv2d(x, self.box, stride=(2, 1), groups=4), -F.max_pool2d(-x, 3, (2, 1))], 1
        )
        return self.b(F.softplus(x) * x)


CASES = [
    Case(
        name="lopsided",
        make=LopsidedStem,
        input_shape=(3, 41, 38),
        parameters=539,
        trainable=539,
        unused=0,
        macs=84780,
        layer=None,
        field=(
            ((28,), Fraction(18), -24),
            ((31,), Fraction(4), -5),
        ),
    ),
    Case(
        name="power pools",
        make=PowerPools,
        input_shape=(1, 30, 33),
        parameters=116,
        trainable=116,
        unused=0,
        macs=51768,
        layer=None,
        field=(
            ((33,), Fraction(4), -11),
            ((21,), Fraction(8), -11),
        ),
    ),
    Case(
        name="adaptive uneven",
        make=adaptive_uneven,
        input_shape=(2, 12, 12),
        parameters=127,
        trainable=127,
        unused=0,
        macs=11136,
        layer="1",
        field=(
            ((3,), Fraction(1), -1),
            ((3,), Fraction(1), -1),
        ),
    ),
    Case(
        name="spp",
        make=SPPHead,
        input_shape=(3, 20, 23),
        parameters=178,
        trainable=178,
        unused=0,
        macs=71760,
        layer=None,
        field=(
            ((25,), Fraction(1), -12),
            ((25,), Fraction(1), -12),
        ),
    ),
    Case(
        name="antialiased",
        make=antialiased,
        input_shape=(1, 32, 29),
        parameters=532,
        trainable=532,
        unused=0,
        macs=173312,
        layer=None,
        field=(
            ((17,), Fraction(4), -6),
            ((17,), Fraction(4), -6),
        ),
    ),
    Case(
        name="padding modes",
        make=PadModes,
        input_shape=(2, 27, 24),
        parameters=367,
        trainable=367,
        unused=0,
        macs=58296,
        layer=None,
        field=(
            ((13,), Fraction(2), -2),
            ((9,), Fraction(2), -6),
        ),
    ),
    Case(
        name="gated causal",
        make=GatedCausal,
        input_shape=(1, 40),
        parameters=823,
        trainable=823,
        unused=20,
        macs=30400,
        layer=None,
        field=(((24,), Fraction(1), -23),),
    ),
    Case(
        name="sample rates",
        make=SampleRates,
        input_shape=(1, 200),
        parameters=445,
        trainable=445,
        unused=0,
        macs=5680,
        layer="up.1",
        field=(((105,), Fraction(5), -53),),
    ),
    Case(
        name="causal attention",
        make=CausalAttention1d,
        input_shape=(2, 20),
        parameters=344,
        trainable=344,
        unused=0,
        macs=12480,
        layer="conv",
        field=(((3,), Fraction(1), -1),),
    ),
    Case(
        name="valid unet",
        make=ValidUNet,
        input_shape=(1, 45, 48),
        parameters=962,
        trainable=962,
        unused=0,
        macs=827256,
        layer=None,
        field=(
            ((14,), Fraction(1), 0),
            ((14,), Fraction(1), 0),
        ),
    ),
    Case(
        name="nested unet",
        make=NestedUNet,
        input_shape=(1, 20, 28),
        parameters=1158,
        trainable=1158,
        unused=0,
        macs=345660,
        layer="heads.1",
        field=(
            ((22, 26, 26, 22), Fraction(1), -11),
            ((22, 26, 26, 22), Fraction(1), -11),
        ),
    ),
    Case(
        name="pyramid fpn",
        make=FeaturePyramid,
        input_shape=(3, 32, 40),
        parameters=1127,
        trainable=1127,
        unused=0,
        macs=164580,
        layer=None,
        field=(
            ((23, 15, 15, 23), Fraction(2), -15),
            ((23, 15, 15, 23), Fraction(2), -15),
        ),
    ),
    Case(
        name="hrnet",
        make=HighResolution,
        input_shape=(1, 32, 24),
        parameters=3058,
        trainable=3058,
        unused=0,
        macs=402432,
        layer="y3",
        field=(
            ((17,), Fraction(4), -8),
            ((17,), Fraction(4), -8),
        ),
    ),
    Case(
        name="resizers",
        make=Resizers,
        input_shape=(1, 24, 30),
        parameters=178,
        trainable=178,
        unused=0,
        macs=105468,
        layer=None,
        field=(
            ((13, 13, 11), Fraction(2, 3), -6),
            ((13, 13, 11), Fraction(2, 3), -6),
        ),
    ),
    Case(
        name="aligned skip",
        make=AlignedSkip,
        input_shape=(1, 17, 21),
        parameters=224,
        trainable=224,
        unused=0,
        macs=56214,
        layer=None,
        field=(
            ((9, 7), Fraction(1), -4),
            ((9, 7), Fraction(1), -4),
        ),
    ),
    Case(
        name="gappy transposed",
        make=GappyTransposed,
        input_shape=(2, 19, 21),
        parameters=308,
        trainable=308,
        unused=0,
        macs=159104,
        layer="a",
        field=(
            ((3,), Fraction(2), -1),
            ((3,), Fraction(2), -1),
        ),
    ),
    Case(
        name="sub-pixel 3",
        make=SubPixel3,
        input_shape=(1, 16, 20),
        parameters=1661,
        trainable=1661,
        unused=0,
        macs=162720,
        layer=None,
        field=(
            ((12, 14, 12), Fraction(2, 3), -6),
            ((12, 14, 12), Fraction(2, 3), -6),
        ),
    ),
    Case(
        name="folded squares",
        make=FoldedSquares,
        input_shape=(1, 18, 24),
        parameters=219,
        trainable=219,
        unused=0,
        macs=23328,
        layer=None,
        field=(
            ((8, 5, 8), Fraction(1), -4),
            ((8, 5, 8), Fraction(1), -4),
        ),
    ),
    Case(
        name="seg unpool",
        make=SegUnpool,
        input_shape=(1, 16, 20),
        parameters=270,
        trainable=270,
        unused=0,
        macs=46080,
        layer=None,
        field=(
            ((10,), Fraction(1), -5),
            ((10,), Fraction(1), -5),
        ),
    ),
    Case(
        name="fold back",
        make=FoldBack,
        input_shape=(1, 16, 18),
        parameters=1114,
        trainable=1114,
        unused=0,
        macs=89280,
        layer=None,
        field=(
            ((10,), Fraction(1), -4),
            ((10,), Fraction(1), -4),
        ),
    ),
    Case(
        name="shifts",
        make=Shifts,
        input_shape=(2, 20, 33),
        parameters=129,
        trainable=129,
        unused=0,
        macs=65772,
        layer=None,
        field=(
            ((9,), Fraction(1), -4),
            ((7,), Fraction(2), -1),
        ),
    ),
    Case(
        name="rolled",
        make=Rolled,
        input_shape=(1, 14, 17),
        parameters=98,
        trainable=98,
        unused=0,
        macs=20944,
        layer="a",
        field=(
            ((3,), Fraction(1), -1),
            ((3,), Fraction(1), -1),
        ),
    ),
    Case(
        name="zero shift",
        make=ZeroShift,
        input_shape=(3, 24, 32),
        parameters=891,
        trainable=891,
        unused=0,
        macs=35904,
        layer=None,
        field=(
            ((20,), Fraction(4), -4),
            ((20,), Fraction(4), -4),
        ),
    ),
    Case(
        name="interleaved",
        make=Interleaved,
        input_shape=(1, 16, 20),
        parameters=18,
        trainable=18,
        unused=0,
        macs=3228,
        layer=None,
        field=(
            ((5,), Fraction(1), -1),
            ((7,), Fraction(1), -2),
        ),
    ),
    Case(
        name="tensor unfold",
        make=TensorUnfold,
        input_shape=(1, 16, 22),
        parameters=91,
        trainable=91,
        unused=0,
        macs=9828,
        layer=None,
        field=(
            ((7,), Fraction(1), 1),
            ((11,), Fraction(2), 0),
        ),
    ),
    Case(
        name="cumulative",
        make=Cumulative,
        input_shape=(1, 14, 16),
        parameters=86,
        trainable=86,
        unused=0,
        macs=18144,
        layer="a",
        field=(
            ((3,), Fraction(1), -1),
            ((3,), Fraction(1), -1),
        ),
    ),
    Case(
        name="symmetric",
        make=Symmetric,
        input_shape=(1, 15, 17),
        parameters=140,
        trainable=140,
        unused=0,
        macs=18981,
        layer="a",
        field=(
            ((3,), Fraction(1), -1),
            ((3,), Fraction(1), -1),
        ),
    ),
    Case(
        name="transposing",
        make=Transposing,
        input_shape=(1, 24, 26),
        parameters=152,
        trainable=152,
        unused=0,
        macs=21788,
        layer=None,
        field=(
            ((21,), Fraction(6), -4),
            ((3,), Fraction(1), -1),
        ),
    ),
    Case(
        name="one kernel",
        make=OneKernel,
        input_shape=(1, 24, 26),
        parameters=156,
        trainable=152,
        unused=0,
        macs=307200,
        layer=None,
        field=(
            ((15,), Fraction(2), -5),
            ((15, 17), Fraction(1), -5),
        ),
    ),
    Case(
        name="standardised",
        make=Standardised,
        input_shape=(3, 24, 26),
        parameters=355,
        trainable=355,
        unused=7,
        macs=52416,
        layer=None,
        field=(
            ((19,), Fraction(2), -9),
            ((19,), Fraction(2), -9),
        ),
    ),
    Case(
        name="spectral",
        make=spectral,
        input_shape=(3, 32, 36),
        parameters=1207,
        trainable=1207,
        unused=0,
        macs=145408,
        layer=None,
        field=(
            ((22,), Fraction(4), -7),
            ((22,), Fraction(4), -7),
        ),
    ),
    Case(
        name="repvgg",
        make=repvgg,
        input_shape=(3, 32, 32),
        parameters=1890,
        trainable=1890,
        unused=0,
        macs=210000,
        layer="3",
        field=(
            ((19,), Fraction(4), -9),
            ((19,), Fraction(4), -9),
        ),
    ),
    Case(
        name="dynamic kernels",
        make=DynamicKernels,
        input_shape=(1, 12, 14),
        parameters=595,
        trainable=595,
        unused=0,
        macs=36840,
        layer=None,
        field=(
            None,
            None,
        ),
    ),
    Case(
        name="ghost",
        make=GhostNet,
        input_shape=(1, 28, 28),
        parameters=660,
        trainable=660,
        unused=0,
        macs=179732,
        layer=None,
        field=(
            ((13,), Fraction(2), -6),
            ((13,), Fraction(2), -6),
        ),
    ),
    Case(
        name="octave",
        make=Octave,
        input_shape=(1, 16, 20),
        parameters=543,
        trainable=543,
        unused=0,
        macs=86560,
        layer=None,
        field=(
            ((10,), Fraction(1), -4),
            ((10,), Fraction(1), -4),
        ),
    ),
    Case(
        name="dual path",
        make=DualPath,
        input_shape=(3, 18, 18),
        parameters=1048,
        trainable=1048,
        unused=0,
        macs=300672,
        layer=None,
        field=(
            ((15,), Fraction(1), -7),
            ((15,), Fraction(1), -7),
        ),
    ),
    Case(
        name="checkpoint dense",
        make=CheckpointDense,
        input_shape=(1, 28, 28),
        parameters=840,
        trainable=840,
        unused=0,
        macs=142296,
        layer=None,
        field=(
            ((17,), Fraction(4), -7),
            ((17,), Fraction(4), -7),
        ),
    ),
    Case(
        name="reversible",
        make=Reversible,
        input_shape=(2, 24, 22),
        parameters=420,
        trainable=420,
        unused=0,
        macs=68112,
        layer=None,
        field=(
            ((13,), Fraction(2), -6),
            ((21,), Fraction(2), -10),
        ),
    ),
    Case(
        name="shuffled",
        make=Shuffled,
        input_shape=(1, 24, 26),
        parameters=364,
        trainable=364,
        unused=0,
        macs=77616,
        layer=None,
        field=(
            ((9,), Fraction(2), -2),
            ((9,), Fraction(2), -2),
        ),
    ),
    Case(
        name="coordinates",
        make=Coordinates,
        input_shape=(1, 16, 18),
        parameters=332,
        trainable=332,
        unused=0,
        macs=43200,
        layer=None,
        field=(
            ((5,), Fraction(2), -1),
            ((5,), Fraction(2), -1),
        ),
    ),
    Case(
        name="involution",
        make=Involution,
        input_shape=(1, 16, 18),
        parameters=370,
        trainable=370,
        unused=0,
        macs=37440,
        layer=None,
        field=(
            ((7,), Fraction(2), -3),
            ((7,), Fraction(2), -3),
        ),
    ),
    Case(
        name="cbam",
        make=Attended,
        input_shape=(3, 24, 24),
        parameters=654,
        trainable=654,
        unused=0,
        macs=74080,
        layer=None,
        field=(
            None,
            None,
        ),
    ),
    Case(
        name="spatial gate",
        make=SpatialGate,
        input_shape=(3, 24, 28),
        parameters=492,
        trainable=492,
        unused=0,
        macs=69600,
        layer=None,
        field=(
            ((19,), Fraction(2), -7),
            ((19,), Fraction(2), -7),
        ),
    ),
    Case(
        name="eca",
        make=ECA,
        input_shape=(1, 17, 19),
        parameters=375,
        trainable=375,
        unused=0,
        macs=17304,
        layer="tail",
        field=(
            None,
            None,
        ),
    ),
    Case(
        name="conv mixer",
        make=ConvMixer,
        input_shape=(3, 32, 36),
        parameters=1077,
        trainable=1077,
        unused=0,
        macs=65704,
        layer="point.1",
        field=(
            ((36,), Fraction(4), -16),
            ((36,), Fraction(4), -16),
        ),
    ),
    Case(
        name="mixer",
        make=Mixer,
        input_shape=(3, 16, 16),
        parameters=1436,
        trainable=1436,
        unused=0,
        macs=17824,
        layer="patch",
        field=(
            ((5,), Fraction(4), -2),
            ((5,), Fraction(4), -2),
        ),
    ),
    Case(
        name="einsum windows",
        make=EinsumWindows,
        input_shape=(1, 16, 20),
        parameters=430,
        trainable=430,
        unused=0,
        macs=74240,
        layer=None,
        field=(
            ((10, 6, 6, 10), Fraction(1), -5),
            ((10, 6, 6, 10), Fraction(1), -5),
        ),
    ),
    Case(
        name="channels last",
        make=ChannelsLast,
        input_shape=(3, 20, 24),
        parameters=744,
        trainable=744,
        unused=0,
        macs=81600,
        layer=None,
        field=(
            ((14,), Fraction(2), -6),
            ((14,), Fraction(2), -6),
        ),
    ),
    Case(
        name="instance style",
        make=InstanceStyle,
        input_shape=(3, 16, 20),
        parameters=571,
        trainable=571,
        unused=0,
        macs=142080,
        layer=None,
        field=(
            None,
            None,
        ),
    ),
    Case(
        name="separable 3d",
        make=separable_3d,
        input_shape=(2, 10, 21, 20),
        parameters=326,
        trainable=326,
        unused=0,
        macs=182640,
        layer=None,
        field=(
            ((8,), Fraction(2), -1),
            ((7,), Fraction(4), -1),
            ((15,), Fraction(4), -5),
        ),
    ),
    Case(
        name="two plus one",
        make=TwoPlusOne,
        input_shape=(3, 8, 13, 15),
        parameters=273,
        trainable=273,
        unused=0,
        macs=96864,
        layer=None,
        field=(
            ((5,), Fraction(1), -2),
            ((7,), Fraction(2), -1),
            ((7,), Fraction(2), -1),
        ),
    ),
    Case(
        name="shifted frames",
        make=ShiftedFrames,
        input_shape=(2, 6, 13, 15),
        parameters=371,
        trainable=371,
        unused=0,
        macs=222912,
        layer=None,
        field=(
            ((3,), Fraction(1), -1),
            ((5,), Fraction(2), -1),
            ((5,), Fraction(2), -1),
        ),
    ),
    Case(
        name="conv lstm",
        make=ConvLSTM,
        input_shape=(1, 18, 20),
        parameters=1059,
        trainable=1059,
        unused=0,
        macs=274950,
        layer=None,
        field=(
            ((15,), Fraction(2), -7),
            ((15,), Fraction(2), -7),
        ),
    ),
    Case(
        name="column reader",
        make=ColumnReader,
        input_shape=(1, 16, 24),
        parameters=859,
        trainable=859,
        unused=0,
        macs=40680,
        layer="cnn",
        field=(
            ((8,), Fraction(2), -3),
            ((8,), Fraction(2), -3),
        ),
    ),
    Case(
        name="patch transformer",
        make=PatchTransformer,
        input_shape=(3, 32, 32),
        parameters=1425,
        trainable=1425,
        unused=0,
        macs=62760,
        layer="stem",
        field=(
            ((9,), Fraction(8), -1),
            ((9,), Fraction(8), -1),
        ),
    ),
    Case(
        name="window bias",
        make=WindowBias,
        input_shape=(1, 16, 12),
        parameters=484,
        trainable=484,
        unused=0,
        macs=213504,
        layer=None,
        field=(
            ((10,), Fraction(1), -5),
            ((10,), Fraction(1), -5),
        ),
    ),
    Case(
        name="local attention",
        make=LocalAttention,
        input_shape=(1, 20, 22),
        parameters=125,
        trainable=125,
        unused=0,
        macs=16720,
        layer=None,
        field=(
            ((7,), Fraction(2), -3),
            ((11,), Fraction(2), -5),
        ),
    ),
    Case(
        name="non-local",
        make=NonLocal,
        input_shape=(1, 17, 17),
        parameters=153,
        trainable=153,
        unused=0,
        macs=14208,
        layer=None,
        field=(
            None,
            None,
        ),
    ),
    Case(
        name="axial attention",
        make=AxialAttention,
        input_shape=(1, 10, 12),
        parameters=130,
        trainable=130,
        unused=0,
        macs=25824,
        layer=None,
        field=(
            ((5,), Fraction(1), -1),
            None,
        ),
    ),
    Case(
        name="shrinking",
        make=Shrinking,
        input_shape=(2, 23, 28),
        parameters=95,
        trainable=95,
        unused=0,
        macs=30312,
        layer="t1",
        field=(
            ((10,), Fraction(4), -3),
            ((10,), Fraction(4), -3),
        ),
    ),
    Case(
        name="chosen",
        make=Chosen,
        input_shape=(3, 16, 18),
        parameters=500,
        trainable=500,
        unused=162,
        macs=101952,
        layer=None,
        field=(
            ((12,), Fraction(2), -5),
            ((12,), Fraction(2), -5),
        ),
    ),
    Case(
        name="hard gate",
        make=HardGate,
        input_shape=(1, 12, 14),
        parameters=108,
        trainable=108,
        unused=78,
        macs=17136,
        layer=None,
        field=(
            ((5,), Fraction(1), -2),
            ((5,), Fraction(1), -2),
        ),
    ),
    Case(
        name="lr-aspp",
        make=LazyRasp,
        input_shape=(3, 29, 33),
        parameters=436,
        trainable=436,
        unused=0,
        macs=49872,
        layer=None,
        field=(
            None,
            None,
        ),
    ),
    Case(
        name="traced fx",
        make=Traced,
        input_shape=(1, 16, 18),
        parameters=92,
        trainable=92,
        unused=0,
        macs=4536,
        layer=None,
        field=(
            ((7,), Fraction(2), -2),
            ((7,), Fraction(2), -2),
        ),
    ),
    Case(
        name="hooked",
        make=Hooked,
        input_shape=(2, 16, 18),
        parameters=121,
        trainable=121,
        unused=0,
        macs=29808,
        layer=None,
        field=(
            ((7,), Fraction(2), -2),
            ((7,), Fraction(2), -4),
        ),
    ),
    Case(
        name="ladder",
        make=Ladder,
        input_shape=(1, 32, 28),
        parameters=630,
        trainable=630,
        unused=0,
        macs=39424,
        layer=None,
        field=(
            ((15,), Fraction(4), -7),
            ((15,), Fraction(4), -7),
        ),
    ),
    Case(
        name="norm places",
        make=NormPlaces,
        input_shape=(2, 9, 11),
        parameters=285,
        trainable=285,
        unused=0,
        macs=30222,
        layer="c1",
        field=(
            ((4, 3), Fraction(1, 2), -2),
            ((4, 3), Fraction(1, 2), -2),
        ),
    ),
    Case(
        name="spectrum fft",
        make=Spectrum,
        input_shape=(1, 16, 16),
        parameters=596,
        trainable=596,
        unused=0,
        macs=4608,
        layer="conv",
        field=(
            ((3,), Fraction(1), -1),
            ((3,), Fraction(1), -1),
        ),
    ),
    Case(
        name="indexed rows",
        make=IndexedRows,
        input_shape=(1, 12, 14),
        parameters=33,
        trainable=33,
        unused=0,
        macs=3600,
        layer="conv",
        field=(
            ((3,), Fraction(1), -1),
            ((3,), Fraction(1), -1),
        ),
    ),
    Case(
        name="siamese",
        make=TwinChannels,
        input_shape=(2, 32, 32),
        parameters=490,
        trainable=490,
        unused=0,
        macs=59904,
        layer=None,
        field=(
            ((15,), Fraction(4), -7),
            ((15,), Fraction(4), -7),
        ),
    ),
    Case(
        name="slid rows",
        make=SlidRows,
        input_shape=(2, 16, 18),
        parameters=379,
        trainable=379,
        unused=0,
        macs=53568,
        layer=None,
        field=(
            ((7,), Fraction(2), -2),
            ((5,), Fraction(2), -1),
        ),
    ),
    Case(
        name="shift mlp",
        make=ShiftMLP,
        input_shape=(3, 32, 36),
        parameters=891,
        trainable=891,
        unused=0,
        macs=55152,
        layer=None,
        field=(
            ((28,), Fraction(4), -8),
            ((20,), Fraction(4), -4),
        ),
    ),
    Case(
        name="smooth stride",
        make=SmoothStride,
        input_shape=(1, 21, 24),
        parameters=104,
        trainable=104,
        unused=0,
        macs=9000,
        layer=None,
        field=(
            ((11,), Fraction(4), 0),
            ((9,), Fraction(2), 0),
        ),
    ),
]
