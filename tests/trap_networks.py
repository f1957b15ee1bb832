"""Networks that look as if they kept a rule, or broke it, and do not. They read 2 x 8 x 8.

Each is a function that makes a new one. Its docstring says what is odd about it.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

SHAPE = (2, 8, 8)

Maker = Callable[[], nn.Module]


class Net(nn.Module):
    """Modules under their names, and what is done with them."""

    def __init__(self, does: Callable[..., Any], **modules: nn.Module) -> None:
        super().__init__()
        for name, module in modules.items():
            self.add_module(name, module)
        self.does = does

    def forward(self, *inputs: Any) -> Any:
        return self.does(self, *inputs)


def conv(into: int = 2, out: int = 4, kernel: int = 3, **more: Any) -> nn.Conv2d:
    """A convolution that keeps the size."""
    return nn.Conv2d(into, out, kernel, **{"padding": kernel // 2, **more})


def after_conv(does: Callable[[Tensor], Any]) -> Maker:
    """A convolution to 4 x 8 x 8, and then this."""
    return lambda: Net(lambda net, x: does(net.conv(x)), conv=conv())


def with_weight(does: Callable[[Tensor, Tensor], Any], *shape: int) -> Maker:
    """Global average pooling to 4 numbers, and then this with a parameter of that shape."""

    def make() -> nn.Module:
        net = Net(lambda net, x: does(net.conv(x).mean((2, 3)), net.weight), conv=conv(bias=False))
        net.weight = nn.Parameter(torch.randn(shape))
        return net

    return make


# Declared, and what becomes of it -----------------------------------------------------------------


def idle(**modules: nn.Module) -> nn.Module:
    """Has these modules and never calls them."""
    return Net(lambda net, x: net.body(x), body=conv(), **modules)


def dead(**modules: nn.Module) -> nn.Module:
    """Calls these modules and throws away what they make."""

    def does(net: Any, x: Tensor) -> Tensor:
        x = net.body(x)
        for name in modules:
            getattr(net, name)(x)
        return x

    return Net(does, body=conv(), **modules)


def written_in_place(**modules: nn.Module) -> nn.Module:
    """Calls modules that write in place and never looks at what they give."""

    def does(net: Any, x: Tensor) -> Tensor:
        x = net.body(x)
        for name in modules:
            getattr(net, name)(x)
        return x + 1

    return Net(does, body=conv(), **modules)


class Scale(nn.BatchNorm2d):
    """Batch normalization by another name."""


class Regular(nn.Dropout):
    """Dropout by another name."""


class BatchNorm2d(nn.Module):
    """Does nothing."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        return x


class Dropout(nn.Module):
    """Does nothing."""

    p = 0.069

    def forward(self, x: Tensor) -> Tensor:
        return x


class AdaptiveAvgPool2d(nn.Module):
    """Takes the maximum."""

    def forward(self, x: Tensor) -> Tensor:
        return F.adaptive_max_pool2d(x, 1)


class Mean(nn.Module):
    """The mean along an axis."""

    def __init__(self, axis: int) -> None:
        super().__init__()
        self.axis = axis

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(self.axis)


class Linear(nn.Conv2d):
    """A convolution."""


def lost_in_a_list(*modules: nn.Module) -> nn.Module:
    """Layers in a plain list: torch does not know them, yet they run."""
    hidden = list(modules)

    def does(net: Any, x: Tensor) -> Tensor:
        x = net.body(x)
        for module in hidden:
            x = module.train(net.training)(x)
        return x

    return Net(does, body=conv())


def module_list() -> nn.Module:
    """Layers in lists and dictionaries, called last to first."""

    class Listed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.ModuleList([conv(4, 6), conv(2, 4)])
            self.more = nn.ModuleDict({"act": nn.ReLU(), "drop": nn.Dropout(0.07)})

        def forward(self, x: Tensor) -> Tensor:
            for module in reversed(self.first):
                x = self.more["drop"](self.more["act"](module(x)))
            return x

    return Listed()


# Dropout ------------------------------------------------------------------------------------------


def dropped(p: float = 0.07, kind: type[nn.Module] = nn.Dropout, **more: Any) -> nn.Module:
    """A convolution and a dropout."""
    return Net(lambda net, x: net.drop(net.conv(x)), conv=conv(), drop=kind(p, **more))


def functional(p: float = 0.07, inplace: bool = False) -> nn.Module:
    """Dropout without a module, in training only."""
    return Net(
        lambda net, x: F.dropout(net.conv(x), p, training=net.training, inplace=inplace),
        conv=conv(),
    )


def twice(p: float = 0.07) -> nn.Module:
    """One dropout, in two places."""
    return Net(
        lambda net, x: net.drop(net.b(net.drop(net.a(x)))),
        a=conv(),
        b=conv(4, 4),
        drop=nn.Dropout(p),
    )


def changed_after(p: float) -> nn.Module:
    """Made with p = 0.07; changed since."""
    drop = nn.Dropout(0.07)
    drop.p = p
    return nn.Sequential(conv(), drop)


def always_on() -> nn.Module:
    """The default of F.dropout: in evaluation as well."""
    return after_conv(lambda x: F.dropout(x, 0.07))()


def only_if_training() -> nn.Module:
    """The dropout stands under an if."""
    return Net(
        lambda net, x: F.dropout(net.conv(x), 0.07) if net.training else net.conv(x), conv=conv()
    )


def only_in_evaluation() -> nn.Module:
    """The wrong way round."""
    return Net(
        lambda net, x: net.conv(x) if net.training else F.dropout(net.conv(x), 0.07), conv=conv()
    )


def switched_by_input() -> nn.Module:
    """Whether it drops is an argument of forward; drops in evaluation too if so."""
    return Net(lambda net, x, drop: F.dropout(net.conv(x), 0.07, training=drop), conv=conv())


def hooked() -> nn.Module:
    """A hook drops, with p = 0.5."""
    net = nn.Sequential(conv(), nn.Identity())
    net[1].register_forward_hook(lambda module, args, out: F.dropout(out, 0.5, module.training))
    return net


def asked_by_input() -> nn.Module:
    """Whether the module is called is an argument of forward."""
    return Net(
        lambda net, x, drop: net.drop(net.conv(x)) if drop else net.conv(x),
        conv=conv(),
        drop=nn.Dropout(0.07),
    )


def switched_by_flag(drop: bool) -> nn.Module:
    """Whether it drops is an argument of the constructor."""
    return Net(
        lambda net, x: net.drop(net.conv(x)) if drop else net.conv(x),
        conv=conv(),
        drop=nn.Dropout(0.07),
    )


def kept_in_evaluation() -> nn.Module:
    """train() leaves the dropout in evaluation mode."""

    class Stays(nn.Dropout):
        def train(self, mode: bool = True) -> "Stays":
            super().train(False)
            return self

    return Net(lambda net, x: net.drop(net.conv(x)), conv=conv(), drop=Stays(0.07))


def kept_in_training() -> nn.Module:
    """eval() leaves the dropout in training mode."""

    class Stays(nn.Dropout):
        def train(self, mode: bool = True) -> "Stays":
            super().train(True)
            return self

    return Net(lambda net, x: net.drop(net.conv(x)), conv=conv(), drop=Stays(0.07))


def by_hand(mask: Callable[[Tensor], Tensor], behind: Maker = nn.Identity) -> Maker:
    """A dropout written by hand: the mask, in training only."""

    def does(net: Any, x: Tensor) -> Tensor:
        x = net.conv(x)
        return net.behind(x * mask(x) / 0.93 if net.training else x)

    return lambda: Net(does, conv=conv(), behind=behind())


def zero_bias() -> nn.Module:
    """It adds a bias, which is 0."""
    net = conv()
    nn.init.zeros_(net.get_parameter("bias"))
    return net


def locked(mask: Callable[[Tensor], Tensor]) -> Maker:
    """One mask for many places: a dropout of ones, and p = 0.5."""

    def does(net: Any, x: Tensor) -> Tensor:
        x = net.conv(x)
        return x * F.dropout(mask(x), 0.5, net.training)

    return lambda: Net(does, conv=conv())


def dropped_position() -> nn.Module:
    """A dropout on a parameter that is added, with p = 0.5."""
    net = Net(lambda net, x: net.conv(x) + net.drop(net.position), conv=conv(), drop=nn.Dropout())
    net.position = nn.Parameter(torch.randn(4, 8, 8))
    return net


def dropped_weight() -> nn.Module:
    """A dropout on the weight of a convolution, in training only."""
    return Net(
        lambda net, x: F.conv2d(x, F.dropout(net.conv.weight, 0.5, net.training), padding=1),
        conv=conv(bias=False),
    )


def attention(p: float) -> nn.Module:
    """Attention with a dropout within."""
    return Net(
        lambda net, x: net.mix(*3 * (net.conv(x).flatten(2).transpose(1, 2),))[0],
        conv=conv(),
        mix=nn.MultiheadAttention(4, 2, dropout=p, batch_first=True),
    )


def dot_product(p: float) -> nn.Module:
    """Attention that drops in evaluation too, as its default is."""

    def does(net: Any, x: Tensor) -> Tensor:
        x = net.conv(x).flatten(2).transpose(1, 2)
        return F.scaled_dot_product_attention(x, x, x, dropout_p=p)

    return Net(does, conv=conv())


def recurrent(p: float, layers: int = 2, kind: Callable[..., nn.Module] = nn.LSTM) -> nn.Module:
    """A recurrent network; between its layers it drops, if there are several."""
    read = kind(4, 5, layers, batch_first=True)
    read.dropout = p  # type: ignore[assignment]  # in the constructor, with one layer, it warns
    return Net(
        lambda net, x: net.read(net.conv(x).flatten(2).transpose(1, 2))[0], conv=conv(), read=read
    )


def transformer(p: float) -> nn.Module:
    """An encoder layer."""
    layer = nn.TransformerEncoderLayer(4, 2, 8, dropout=p, batch_first=True)
    return Net(
        lambda net, x: net.layer(net.conv(x).flatten(2).transpose(1, 2)), conv=conv(), layer=layer
    )


# Weights ------------------------------------------------------------------------------------------


class Symmetric(nn.Module):
    """A parametrization that ends in an activation."""

    def forward(self, weight: Tensor) -> Tensor:
        return torch.tanh(weight + weight.flip(3))


def parametrised(how: str) -> nn.Module:
    """The weight of the last convolution is made anew in every call."""
    last: nn.Module = conv(4, 4, bias=False)
    if how == "weight_norm":
        last = parametrizations.weight_norm(last)
    elif how == "spectral_norm":
        last = parametrizations.spectral_norm(last)
    else:
        parametrize.register_parametrization(last, "weight", Symmetric())
    return Net(
        lambda net, x: net.head(net.last(net.norm(net.first(x).relu())).mean((2, 3))),
        first=conv(bias=False),
        norm=nn.BatchNorm2d(4),
        last=last,
        head=nn.Linear(4, 3),
    )


def frozen() -> nn.Module:
    """The first convolution takes no gradient, its batch norm never learns."""

    class Fixed(nn.BatchNorm2d):
        def train(self, mode: bool = True) -> "Fixed":
            super().train(False)
            return self

    net = nn.Sequential(conv(), Fixed(4), conv(4, 3))
    for parameter in (*net[0].parameters(), *net[1].parameters()):
        parameter.requires_grad_(False)
    return net


def tied() -> nn.Module:
    """Two convolutions with one weight."""
    a, b = conv(2, 2), conv(2, 2)
    b.weight = a.weight
    return nn.Sequential(a, b)


# The way to the output ----------------------------------------------------------------------------


def ending(does: Callable[[Any, Tensor], Any], **modules: nn.Module) -> Maker:
    """A block, a last convolution without anything, and then this."""

    def make() -> nn.Module:
        block = nn.Sequential(conv(bias=False), nn.ReLU(), nn.BatchNorm2d(4), nn.Dropout(0.07))
        return Net(
            lambda net, x: does(net, net.last(net.block(x))),
            block=block,
            last=conv(4, 4, bias=False),
            **modules,
        )

    return make


def gated(net: Any, x: Tensor) -> Tensor:
    """Scale channels by what a gate makes of their means."""
    return x * net.up(net.down(x.mean((2, 3), keepdim=True)).relu()).sigmoid()


def gate() -> dict[str, nn.Module]:
    """What the gate consists of."""
    return {"down": nn.Conv2d(4, 2, 1), "up": nn.Conv2d(2, 4, 1)}


def two_heads(second: nn.Module) -> nn.Module:
    """Two convolutions that none follows; one of them with more behind it."""
    return Net(
        lambda net, x: (net.a(net.body(x).relu()), net.more(net.b(net.body(x).relu()))),
        body=conv(),
        a=conv(4, 3),
        b=conv(4, 2),
        more=second,
    )


def in_two_ways(training: Callable[[Any, Tensor], Any], evaluation: Any, **modules: Any) -> Maker:
    """Does one thing in training and another in evaluation."""

    def make() -> nn.Module:
        return Net(
            lambda net, x: (training if net.training else evaluation)(net, net.body(x)),
            body=conv(),
            **modules,
        )

    return make


# Blocks -------------------------------------------------------------------------------------------


def block(*after: nn.Module, last: bool = True) -> nn.Module:
    """A convolution, these layers, and a last convolution."""
    return nn.Sequential(conv(bias=False), *after, *([conv(4, 3)] if last else []))


def residual() -> nn.Module:
    """A residual block: the second convolution has its activation behind the sum."""

    def does(net: Any, x: Tensor) -> Tensor:
        x = net.stem(x)
        inner = net.norm_1(net.conv_1(x)).relu()
        return net.last((net.norm_2(net.conv_2(inner)) + x).relu())

    return Net(
        does,
        stem=nn.Sequential(conv(bias=False), nn.BatchNorm2d(4), nn.ReLU()),
        conv_1=conv(4, 4, bias=False),
        norm_1=nn.BatchNorm2d(4),
        conv_2=conv(4, 4, bias=False),
        norm_2=nn.BatchNorm2d(4),
        last=conv(4, 3),
    )


def residual_sums() -> nn.Module:
    """A residual sum of whole blocks."""

    def whole(into: int) -> nn.Module:
        return nn.Sequential(conv(into, 4, bias=False), nn.BatchNorm2d(4), nn.ReLU())

    return Net(
        lambda net, x: net.last(net.a(x) + net.b(net.a(x))),
        a=whole(2),
        b=whole(4),
        last=conv(4, 3),
    )


def channels_last_norm() -> nn.Module:
    """A layer norm over channels, which are moved last and back."""

    def does(net: Any, x: Tensor) -> Tensor:
        x = net.norm(net.first(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return net.last(x)

    return Net(does, first=conv(bias=False), norm=nn.LayerNorm(4), last=conv(4, 3))


# What is hard to follow ---------------------------------------------------------------------------


def into_slices(p: float = 0.07, training: bool | None = None) -> nn.Module:
    """Writes into parts of a tensor, which only torch.export can follow."""

    def does(net: Any, x: Tensor) -> Tensor:
        y = x.new_zeros(x.shape[0], 8, 8, 8)
        y[:, :4] = net.a(x).relu()
        y[:, 4:] = F.dropout(net.norm(net.b(x)), p, net.training if training is None else training)
        y = F.max_pool2d(y, 2)
        return net.head(net.last(y).mean((2, 3)))

    return Net(
        does,
        a=conv(),
        b=conv(bias=False),
        norm=nn.BatchNorm2d(4),
        last=conv(8, 4, bias=False),
        head=nn.Linear(4, 3),
    )


def unknown_middle() -> nn.Module:
    """An operation that no rule of the library describes, between layers that it knows."""

    def does(net: Any, x: Tensor) -> Tensor:
        x = net.drop(net.norm(net.a(x).relu()))
        x = torch.fft.rfft2(x).real
        return net.head(net.b(x).mean((2, 3)))

    return Net(
        does,
        a=conv(bias=False),
        norm=nn.BatchNorm2d(4),
        drop=nn.Dropout(0.07),
        b=conv(4, 4, bias=False),
        head=nn.Linear(4, 3),
    )


def not_in_training() -> nn.Module:
    """Refuses to run in training mode."""

    def does(net: Any, x: Tensor) -> Tensor:
        if net.training:
            raise NotImplementedError("for inference only")
        return net.drop(F.max_pool2d(net.norm(net.conv(x)), 2))

    return Net(does, conv=conv(), norm=nn.BatchNorm2d(4), drop=nn.Dropout(0.07))


def two_images(second_first: bool) -> nn.Module:
    """Two images; pools only the second."""

    def does(net: Any, x: Tensor, other: Tensor) -> Tensor:
        mine = None if second_first else net.a(x).flatten(1)
        other = F.max_pool2d(net.b(other), 2)
        other = F.adaptive_avg_pool2d(net.c(other), 1).flatten(1)
        mine = net.a(x).flatten(1) if mine is None else mine
        return net.head(torch.cat([mine, other], 1))

    return Net(does, a=conv(), b=conv(), c=conv(4, 4), head=nn.Linear(4 * 64 + 4, 3))


def two_fields() -> nn.Module:
    """Sees all of the first image and 3 x 3 of the second."""
    return Net(lambda net, x, other: net.a(x) + net.b(other), a=conv(kernel=15), b=conv())


def through_a_view(how: Callable[[Tensor], Any], **modules: nn.Module) -> nn.Module:
    """Writes in place into a view of what the convolution made; goes on with the whole."""

    def does(net: Any, x: Tensor) -> Tensor:
        x = net.conv(x) * 1
        how(x)
        return x + 1

    return Net(does, conv=conv(), **modules)
