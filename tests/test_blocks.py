"""Blocks against closed formulas, arithmetic written out here, and a sequence written by hand."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from constrained_cnn.blocks import (
    ConvBNDrop,
    Dropout,
    GAPHead,
    SeparableConvBNDrop,
    Transition1x1,
)
from constrained_cnn.errors import InvalidInputError

HEIGHT, WIDTH = 17, 14
RELU_FIRST, BN_FIRST = "conv-relu-bn-drop", "conv-bn-relu-drop"

# torch says that it pads on one side for an even kernel under "same"; that is meant here.
even_same = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning")

# Each makes its module with this many parameters of its own.
ACTIVATIONS: dict[Callable[[], nn.Module] | None, int] = {
    None: 0,
    nn.ReLU: 0,
    nn.Hardswish: 0,
    nn.PReLU: 1,
}

tails = st.fixed_dictionaries(
    {
        "bias": st.booleans(),
        "order": st.sampled_from([RELU_FIRST, BN_FIRST]),
        "activation": st.sampled_from(list(ACTIVATIONS)),
        "norm": st.booleans(),
        "p_drop": st.sampled_from([0.0, 0.069, 0.5]),
        "drop": st.sampled_from(["elementwise", "channel"]),
    }
)


def cells(low: int, high: int) -> st.SearchStrategy[int | tuple[int, int]]:
    """One number, or one for the height and one for the width."""
    numbers = st.integers(low, high)
    return numbers | st.tuples(numbers, numbers)


@st.composite
def windows(draw: st.DrawFn) -> dict[str, Any]:
    """Kernel, stride, padding and dilation of a convolution that fits 17 x 14 cells."""
    padding = draw(cells(0, 3) | st.sampled_from(["same", "valid"]))
    stride = 1 if padding == "same" else draw(cells(1, 3))
    return {
        "kernel_size": draw(cells(1, 4)),
        "stride": stride,
        "padding": padding,
        "dilation": draw(cells(1, 3)),
    }


def pair(value: int | tuple[int, int]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else value


def expected_size(window: dict[str, Any]) -> tuple[int, ...]:
    if window["padding"] == "same":
        return HEIGHT, WIDTH
    padding = (0, 0) if window["padding"] == "valid" else pair(window["padding"])
    kernel, stride = pair(window["kernel_size"]), pair(window["stride"])
    dilation = pair(window["dilation"])
    return tuple(
        (size + 2 * p - d * (k - 1) - 1) // s + 1
        for size, k, s, p, d in zip((HEIGHT, WIDTH), kernel, stride, padding, dilation, strict=True)
    )


def tail_parameters(channels: int, tail: dict[str, Any]) -> int:
    return channels * tail["bias"] + 2 * channels * tail["norm"] + ACTIVATIONS[tail["activation"]]


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def by_hand(channels: int, conv: nn.Conv2d, tail: dict[str, Any]) -> nn.Sequential:
    """The same layers, one after the other, as one would write them without the library."""
    layers: list[nn.Module] = [conv]
    activation = tail["activation"]
    if activation is not None and tail["order"] == RELU_FIRST:
        layers.append(activation())
    if tail["norm"]:
        layers.append(nn.BatchNorm2d(channels))
    if activation is not None and tail["order"] == BN_FIRST:
        layers.append(activation())
    if tail["p_drop"]:
        kind = nn.Dropout2d if tail["drop"] == "channel" else Dropout
        layers.append(kind(tail["p_drop"]))
    return nn.Sequential(*layers)


def assert_same_function(block: nn.Module, oracle: nn.Module, images: Tensor) -> None:
    """Given the block's weights, the oracle trains, drops and evaluates bit for bit alike."""
    weights = zip(oracle.state_dict(), block.state_dict().values(), strict=True)
    oracle.load_state_dict(dict(weights))
    for training in (True, False):
        results = []
        for module in (block, oracle):
            torch.manual_seed(7)
            results.append(module.train(training)(images))
        assert torch.equal(*results)
    for ours, theirs in zip(block.buffers(), oracle.buffers(), strict=True):
        assert torch.equal(ours, theirs)


@even_same
@given(window=windows(), tail=tails, groups=st.integers(1, 3), factors=cells(1, 3))
def test_conv_block_is_the_sequence_written_by_hand(
    window: dict[str, Any], tail: dict[str, Any], groups: int, factors: int | tuple[int, int]
) -> None:
    in_channels, out_channels = (groups * factor for factor in pair(factors))
    block = ConvBNDrop(in_channels, out_channels, groups=groups, **window, **tail)
    images = torch.randn(2, in_channels, HEIGHT, WIDTH)
    assert block(images).shape == (2, out_channels, *expected_size(window))
    kernel_area = math.prod(pair(window["kernel_size"]))
    weights = kernel_area * in_channels * out_channels // groups
    assert count(block) == weights + tail_parameters(out_channels, tail)
    conv = nn.Conv2d(in_channels, out_channels, groups=groups, bias=tail["bias"], **window)
    assert_same_function(block, by_hand(out_channels, conv, tail), images)


@given(tail=tails, pool=st.sampled_from([None, "before", "after"]), channels=cells(1, 5))
def test_transition_is_the_sequence_written_by_hand(
    tail: dict[str, Any], pool: str | None, channels: int | tuple[int, int]
) -> None:
    in_channels, out_channels = pair(channels)
    block = Transition1x1(in_channels, out_channels, pool=pool, **tail)
    images = torch.randn(2, in_channels, HEIGHT, WIDTH)
    size = (HEIGHT, WIDTH) if pool is None else (HEIGHT // 2, WIDTH // 2)
    assert block(images).shape == (2, out_channels, *size)
    assert count(block) == in_channels * out_channels + tail_parameters(out_channels, tail)
    oracle = by_hand(out_channels, nn.Conv2d(in_channels, out_channels, 1, bias=tail["bias"]), tail)
    if pool == "before":
        oracle.insert(0, nn.MaxPool2d(2))
    elif pool == "after":
        oracle.append(nn.MaxPool2d(2))
    assert_same_function(block, oracle, images)


@even_same
@given(window=windows(), tail=tails, channels=cells(1, 5))
def test_separable_block_is_the_sequence_written_by_hand(
    window: dict[str, Any], tail: dict[str, Any], channels: int | tuple[int, int]
) -> None:
    in_channels, out_channels = pair(channels)
    block = SeparableConvBNDrop(in_channels, out_channels, **window, **tail)
    images = torch.randn(2, in_channels, HEIGHT, WIDTH)
    assert block(images).shape == (2, out_channels, *expected_size(window))
    weights = math.prod(pair(window["kernel_size"])) * in_channels + in_channels * out_channels
    after_both = tail_parameters(in_channels, tail) + tail_parameters(out_channels, tail)
    assert count(block) == weights + after_both
    bias = tail["bias"]
    depthwise = nn.Conv2d(in_channels, in_channels, groups=in_channels, bias=bias, **window)
    pointwise = nn.Conv2d(in_channels, out_channels, 1, bias=bias)
    oracle = nn.Sequential(
        *by_hand(in_channels, depthwise, {**tail, "p_drop": 0.0}),
        *by_hand(out_channels, pointwise, tail),
    )
    assert_same_function(block, oracle, images)


@given(
    stack=st.lists(
        st.tuples(
            st.sampled_from([ConvBNDrop, Transition1x1, SeparableConvBNDrop]),
            st.integers(1, 9),
            tails,
        ),
        max_size=5,
    ),
    classes=st.integers(1, 11),
    head_bias=st.booleans(),
)
def test_stacks_run_and_cost_what_the_formula_says(
    stack: list[tuple[type[nn.Module], int, dict[str, Any]]], classes: int, head_bias: bool
) -> None:
    channels, expected, parts = 3, 0, []
    for kind, width, tail in stack:
        window = {} if kind is Transition1x1 else {"padding": 1}
        parts.append(kind(channels, width, **window, **tail))
        weights = {
            ConvBNDrop: 9 * channels * width,
            Transition1x1: channels * width,
            SeparableConvBNDrop: 9 * channels + channels * width,
        }
        expected += weights[kind] + tail_parameters(width, tail)
        if kind is SeparableConvBNDrop:
            expected += tail_parameters(channels, tail)
        channels = width
    parts.append(GAPHead(channels, classes, bias=head_bias))
    network = nn.Sequential(*parts)
    assert count(network) == expected + channels * classes + classes * head_bias
    assert network(torch.randn(2, 3, 5, 6)).shape == (2, classes)


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({"p_drop": 0.1}, ["conv", "act", "norm", "drop"]),
        ({"p_drop": 0.1, "order": BN_FIRST}, ["conv", "norm", "act", "drop"]),
        ({}, ["conv", "act", "norm"]),
        ({"norm": False}, ["conv", "act"]),
        ({"activation": None}, ["conv", "norm"]),
        ({"activation": None, "norm": False}, ["conv"]),
    ],
)
def test_only_what_is_asked_for_is_built_in_its_order(
    options: dict[str, Any], names: list[str]
) -> None:
    assert [name for name, _ in ConvBNDrop(2, 3, **options).named_children()] == names
    assert [name for name, _ in Transition1x1(2, 3, **options).named_children()] == names
    before = Transition1x1(2, 3, pool="before", **options)
    assert [name for name, _ in before.named_children()] == ["pool", *names]
    after = Transition1x1(2, 3, pool="after", **options)
    assert [name for name, _ in after.named_children()] == [*names, "pool"]


def test_state_dict_reads_like_the_block() -> None:
    norm = ["weight", "bias", "running_mean", "running_var", "num_batches_tracked"]
    conv_and_norm = ["conv.weight", *(f"norm.{part}" for part in norm)]
    assert list(ConvBNDrop(1, 2, p_drop=0.1).state_dict()) == conv_and_norm
    assert list(SeparableConvBNDrop(1, 2).state_dict()) == [
        f"{half}.{part}" for half in ("depthwise", "pointwise") for part in conv_and_norm
    ]
    assert list(GAPHead(2, 3).state_dict()) == ["linear.weight", "linear.bias"]
    assert list(GAPHead(2, 3, kind="conv").state_dict()) == ["conv.weight", "conv.bias"]


@pytest.mark.parametrize("drop", ["elementwise", "channel"])
def test_dropout_drops_values_or_whole_channels(drop: str) -> None:
    block = ConvBNDrop(1, 64, kernel_size=1, norm=False, p_drop=0.5, drop=drop)
    assert isinstance(block.conv, nn.Conv2d)
    nn.init.ones_(block.conv.weight)
    out = block(torch.ones(1, 1, 8, 8))
    assert set(out.unique().tolist()) == {0.0, 2.0}
    mixed = [len(channel.unique()) > 1 for channel in out[0]]
    assert all(mixed) if drop == "elementwise" else not any(mixed)
    assert torch.equal(block.eval()(torch.ones(1, 1, 8, 8)), torch.ones(1, 64, 8, 8))


@given(
    sizes=st.tuples(*[st.integers(1, 6)] * 4), bias=st.booleans(), seed=st.integers(0, 2**32 - 1)
)
def test_both_heads_are_one_function(
    sizes: tuple[int, int, int, int], bias: bool, seed: int
) -> None:
    channels, classes, height, width = sizes
    torch.manual_seed(seed)
    pool_first = GAPHead(channels, classes, bias=bias).double()
    conv_first = GAPHead(channels, classes, kind="conv", bias=bias).double()
    conv_first.load_state_dict(
        {
            "conv." + name.removeprefix("linear."): value[..., None, None]
            if value.ndim == 2
            else value
            for name, value in pool_first.state_dict().items()
        }
    )
    images = torch.randn(3, channels, height, width, dtype=torch.float64)
    torch.testing.assert_close(pool_first(images), conv_first(images))
    scores = images.mean((2, 3)) @ pool_first.state_dict()["linear.weight"].T
    offset = pool_first.state_dict()["linear.bias"] if bias else 0
    torch.testing.assert_close(pool_first(images), scores + offset)


@pytest.mark.parametrize("order", [RELU_FIRST, BN_FIRST])
def test_gradient_reaches_every_parameter_and_the_input(order: str) -> None:
    network = nn.Sequential(
        ConvBNDrop(1, 6, padding=1, p_drop=0.069, order=order),
        SeparableConvBNDrop(6, 8, padding="same", order=order, drop="channel", p_drop=0.069),
        Transition1x1(8, 4, pool="before", order=order),
        GAPHead(4, 3),
    )
    images = torch.randn(8, 1, 10, 10, requires_grad=True)
    (network(images) * torch.randn(8, 3)).sum().backward()
    for name, tensor in [("images", images), *network.named_parameters()]:
        assert tensor.grad is not None, name
        assert tensor.grad.isfinite().all(), name
        assert tensor.grad.any(), name


def at_least(name: str, value: object, minimum: int = 1) -> str:
    return f"{name}={value!r}: must be an integer of at least {minimum}"


TAIL_ERRORS: list[tuple[dict[str, Any], str]] = [
    *(
        ({"p_drop": p}, f"p_drop={p!r}: must be a probability, 0 <= p_drop < 1")
        for p in (1.2, 1.0, -0.1, math.nan, math.inf, True, "0.1", None)
    ),
    (
        {"order": "conv-bn-rel-drop"},
        (
            "order='conv-bn-rel-drop': must be one of 'conv-relu-bn-drop', 'conv-bn-relu-drop'; "
            "did you mean 'conv-bn-relu-drop'?"
        ),
    ),
    (
        {"drop": "chanel"},
        "drop='chanel': must be one of 'elementwise', 'channel'; did you mean 'channel'?",
    ),
    (
        {"activation": "relu"},
        "activation='relu': must be a class or function that makes a module, like nn.ReLU, or None",
    ),
    (
        {"activation": dict},
        (
            "activation=<class 'dict'>: must be a class or function that makes a module, "
            "like nn.ReLU, or None"
        ),
    ),
    ({"bias": "no"}, "bias='no': must be True or False"),
    ({"norm": 1}, "norm=1: must be True or False"),
    (
        {"activation": nn.ReLU()},
        "activation=ReLU(): must be a class or function that makes a module, like nn.ReLU, or None",
    ),
]
WINDOW_ERRORS: list[tuple[dict[str, Any], str]] = [
    ({"kernel_size": 0}, at_least("kernel_size", 0)),
    ({"kernel_size": (3, 0)}, at_least("kernel_size", 0)),
    ({"kernel_size": 3.0}, at_least("kernel_size", 3.0)),
    (
        {"kernel_size": (1, 2, 3)},
        "kernel_size=(1, 2, 3): must be one integer or (height, width)",
    ),
    ({"stride": 0}, at_least("stride", 0)),
    ({"dilation": 0}, at_least("dilation", 0)),
    ({"padding": -1}, at_least("padding", -1, 0)),
    ({"padding": (1, True)}, at_least("padding", True, 0)),
    (
        {"padding": "sam"},
        "padding='sam': must be one of 'same', 'valid'; did you mean 'same'?",
    ),
    (
        {"padding": "same", "stride": 2},
        "padding='same': needs a stride of 1, and stride=2; give the padding as a number",
    ),
    (
        {"padding": "same", "stride": (1, 2)},
        "padding='same': needs a stride of 1, and stride=(1, 2); give the padding as a number",
    ),
]
CASES = [
    *((ConvBNDrop, *case) for case in [*TAIL_ERRORS, *WINDOW_ERRORS]),
    *((Transition1x1, *case) for case in TAIL_ERRORS),
    *((SeparableConvBNDrop, *case) for case in [*TAIL_ERRORS, *WINDOW_ERRORS]),
    (ConvBNDrop, {"groups": 0}, at_least("groups", 0)),
    (ConvBNDrop, {"groups": 3}, "groups=3: must divide in_channels=4"),
    (ConvBNDrop, {"groups": 4}, "groups=4: must divide out_channels=6"),
    (
        Transition1x1,
        {"pool": "middle"},
        "pool='middle': must be one of 'before', 'after'",
    ),
    (GAPHead, {"kind": "mlp"}, "kind='mlp': must be one of 'linear', 'conv'"),
]


@pytest.mark.parametrize(("block", "options", "message"), CASES)
def test_bad_option_is_refused_with_its_reason(
    block: type[nn.Module], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(InvalidInputError) as caught:
        block(4, 6, **options)
    assert str(caught.value) == message


@pytest.mark.parametrize("block", [ConvBNDrop, Transition1x1, SeparableConvBNDrop, GAPHead])
@pytest.mark.parametrize("channels", [0, -1, True, 1.5, "8", None])
def test_bad_channels_are_refused(block: type[nn.Module], channels: object) -> None:
    names = ("in_channels", "classes" if block is GAPHead else "out_channels")
    for name, arguments in zip(names, [(channels, 4), (4, channels)], strict=True):
        with pytest.raises(InvalidInputError) as caught:
            block(*arguments)
        assert str(caught.value) == at_least(name, channels)
