"""Fields through axes that are cut, merged and moved, against the gradient of every unit."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torchvision
from gradients import SHAPE, Does, check
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from constrained_cnn.errors import TracingError
from constrained_cnn.proof import verify_receptive_field
from constrained_cnn.receptive_field import AxisField, measure_receptive_field
from constrained_cnn.receptive_field._flow import places
from constrained_cnn.tracing import trace


def space_to_depth(x: Tensor, conv: nn.Module) -> Tensor:
    n, c, h, w = x.shape
    x = x.view(n, c, h // 2, 2, w // 2, 2).permute(0, 3, 5, 1, 2, 4)
    return conv(x.reshape(n, 4 * c, h // 2, w // 2))


def depth_to_space(x: Tensor, conv: nn.Module) -> Tensor:
    x = conv(x)
    n, c, h, w = x.shape
    x = x.view(n, 2, 2, c // 4, h, w).permute(0, 3, 4, 1, 5, 2)
    return x.reshape(n, c // 4, 2 * h, 2 * w)


def windows(x: Tensor, mix: Callable[[Tensor], Tensor], side: int = 4) -> Tensor:
    """Mix the positions of each window, as window attention does."""
    n, c, h, w = x.shape
    x = x.view(n, c, h // side, side, w // side, side).permute(0, 2, 4, 3, 5, 1)
    x = mix(x.reshape(-1, side * side, c))
    x = x.view(n, h // side, w // side, side, side, c)
    return x.permute(0, 5, 1, 3, 2, 4).reshape(n, c, h, w)


def attention(x: Tensor) -> Tensor:
    scores = torch.einsum("nic,njc->nij", x, x)
    return x + scores @ x


def patches(x: Tensor, linear: nn.Module) -> Tensor:
    """Patches of 2 by 3 as tokens."""
    n, c, h, w = x.shape
    x = x.view(n, c, h // 2, 2, w // 3, 3).permute(0, 2, 4, 1, 3, 5)
    return linear(x.reshape(n, (h // 2) * (w // 3), -1))


def tokens_and_back(x: Tensor, conv: nn.Module, linear: nn.Module) -> Tensor:
    x = conv(x)
    tokens = linear(x.flatten(2).transpose(1, 2))
    return conv(tokens.transpose(1, 2).unflatten(2, x.shape[2:]))


def with_class_token(x: Tensor, conv: nn.Module) -> Tensor:
    tokens = conv(x).flatten(2).transpose(1, 2)
    tokens = torch.cat([torch.ones_like(tokens[:, :1]).detach(), tokens], 1)
    return tokens[:, 1:].transpose(1, 2).unflatten(2, x.shape[2:])


def causal_windows(x: Tensor) -> Tensor:
    rows = x.permute(0, 2, 3, 1).unflatten(2, (3, 4))
    rows = F.scaled_dot_product_attention(rows, rows, rows, is_causal=True)
    return rows.flatten(2, 3).permute(0, 3, 1, 2)


def beside_their_mean(x: Tensor) -> Tensor:
    return torch.cat([x.mean(3, keepdim=True), x], 3)


def conv(into: int = 2, out: int = 2, kernel: int = 3, padding: int = 1) -> nn.Module:
    return nn.Conv2d(into, out, kernel, padding=padding)


NETWORKS: dict[str, nn.Module] = {
    "space to depth": Does(space_to_depth, conv(8)),
    "depth to space": Does(depth_to_space, conv(2, 8)),
    "windows": Does(lambda x: windows(x, attention)),
    "windows that mix nothing": Does(lambda x, a: windows(a(x), lambda y: 2 * y), conv()),
    "windows after windows": Does(
        lambda x, a: a(windows(windows(x.roll((2, 2), (2, 3)), attention), attention, 2)), conv()
    ),
    "patches": Does(patches, nn.Linear(12, 5)),
    "tokens and back": Does(tokens_and_back, conv(), nn.Linear(2, 2)),
    "a class token": Does(with_class_token, conv()),
    "the last column": Does(lambda x, a: a(x)[..., -1], conv()),
    "a pixel": Does(lambda x, a: a(x)[:, :, 3, 4], conv()),
    "the last of each window": Does(lambda x: x.unflatten(3, (3, 4))[..., -1]),
    "each second row apart": Does(
        lambda x, a: torch.stack(x.unflatten(2, (4, 2)).unbind(3), 3).flatten(2, 3), conv()
    ),
    "halves side by side": Does(
        lambda x, a: torch.cat([a(x[:, :, :5]), x[:, :, 4:, 1:-1]], 2), conv(padding=0)
    ),
    "reflected halves": Does(lambda x, a: a(torch.cat([x, x.flip(3)], 3)), conv()),
    "gated": Does(lambda x, a: F.glu(a(x), 1), conv(2, 4)),
    "gated along a row": Does(lambda x: F.glu(x, 3)),
    "tiled": Does(lambda x, a: a(x.repeat(1, 1, 2, 1)), conv()),
    "mean of each window": Does(lambda x: x.unflatten(2, (2, 4)).mean(3)),
    "mean over windows": Does(lambda x: x.unflatten(2, (2, 4)).mean(2)),
    "pooled patches": Does(lambda x: F.avg_pool2d(x.unflatten(3, (6, 2)).mean(4), 2)),
    "causal attention in windows": Does(causal_windows),
    "cumulated in windows": Does(lambda x: x + x.unflatten(3, (3, 4)).cumsum(4).flatten(3, 4)),
    "beside their mean": Does(beside_their_mean),
    "less their mean again": Does(lambda x, a: a(beside_their_mean(x)[..., 1:]), conv()),
    "and a mean as a channel": Does(
        lambda x: torch.cat([x, x.mean((2, 3), keepdim=True).expand_as(x)], 1)
    ),
    "and the mean of a part": Does(lambda x: x + x[..., :4].mean(3, keepdim=True)),
    "and one of them": Does(lambda x: x + x[..., 3:4]),
    "the second part": Does(lambda x, a: torch.split(a(x), [3, 5], 2)[1], conv()),
    "rows in the batch": Does(
        lambda x, a: a(x.transpose(1, 2).flatten(0, 1)).unflatten(0, (1, 8)), nn.Conv1d(2, 2, 3)
    ),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_every_unit_sees_what_its_gradient_reaches(name: str) -> None:
    check(NETWORKS[name])


def test_an_axis_that_is_cut_where_its_units_are_not_is_refused() -> None:
    def cut(x: Tensor, a: nn.Module) -> Tensor:
        return a(x.reshape(-1, 2, 12))

    with pytest.raises(TracingError, match="reshape cuts the image where its units are not"):
        measure_receptive_field(Does(cut, nn.Conv1d(2, 2, 3)), (3, 8))


def test_a_window_has_phases() -> None:
    (rows, columns) = measure_receptive_field(NETWORKS["windows"], SHAPE).axes
    for axis in (rows, columns):
        assert isinstance(axis.field, AxisField)
        assert [axis.interval(unit) for unit in range(5)] == [(0, 3)] * 4 + [(4, 7)]


def test_a_flattened_image_and_a_global_head_leave_the_last_places() -> None:
    heads: list[nn.Module] = [
        nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(2, 3, 1), nn.Flatten()),
        nn.Sequential(nn.AdaptiveMaxPool2d(1), nn.Conv2d(2, 3, 1)),
        nn.Sequential(nn.Flatten(), nn.Linear(192, 3), nn.ReLU()),
        Does(lambda x: torch.cat([x.mean((2, 3)), x.amax((2, 3))], 1)),
    ]
    for head in heads:
        field = measure_receptive_field(nn.Sequential(conv(), head), SHAPE)
        assert field.layer == "0: conv2d"
        assert [axis.is_global for axis in field.layers[-1].axes] == [True, True]


# Random chains of operations that move, cut and merge axes.


def divisors(number: int) -> list[int]:
    return [d for d in range(2, number) if number % d == 0]


@st.composite
def steps(draw: st.DrawFn) -> list[Callable[[Tensor], Tensor]]:
    """Draw functions of a tensor, made for the shape that those before give."""
    x = torch.zeros(1, *SHAPE)
    found: list[Callable[[Tensor], Tensor]] = []
    kinds = ["cut", "cut", "merge", "merge", "permute", "mix", "mean", "pick", "slide"]
    kinds += ["cumulate", "flip", "part", "beside", "regroup"]
    for _ in range(draw(st.integers(1, 6))):
        kind = draw(st.sampled_from(kinds))
        axis = draw(st.integers(0, x.ndim - 1))
        size = x.shape[axis]
        step: Callable[[Tensor], Tensor] | None = None
        if kind == "cut" and divisors(size) and x.ndim < 7:
            part = draw(st.sampled_from(divisors(size)))
            step = lambda t, a=axis, s=(size // part, part): t.unflatten(a, s)  # noqa: E731
        elif kind == "merge" and axis + 1 < x.ndim:
            step = lambda t, a=axis: t.flatten(a, a + 1)  # noqa: E731
        elif kind == "permute":
            order = draw(st.permutations(range(x.ndim)))
            step = lambda t, o=tuple(order): t.permute(o)  # noqa: E731
        elif kind == "mix":
            step = lambda t, a=axis: t + t.mean(a, keepdim=True)  # noqa: E731
        elif kind == "mean" and x.ndim > 2:
            step = lambda t, a=axis: t.mean(a)  # noqa: E731
        elif kind == "pick" and x.ndim > 2:
            unit = draw(st.integers(0, size - 1))
            step = lambda t, a=axis, u=unit: t.select(a, u)  # noqa: E731
        elif kind == "slide" and size > 2:
            step = lambda t, a=axis, n=size: t.narrow(a, 1, n - 1) + t.narrow(a, 0, n - 1)  # noqa: E731
        elif kind == "cumulate":
            step = lambda t, a=axis: t.cumsum(a)  # noqa: E731
        elif kind == "flip":
            step = lambda t, a=axis: t + t.flip(a)  # noqa: E731
        elif kind == "part" and size > 2:
            step = lambda t, a=axis: t + t.narrow(a, 1, 2).mean(a, keepdim=True)  # noqa: E731
        elif kind == "beside" and size < 30:
            step = lambda t, a=axis: torch.cat([t.mean(a, keepdim=True), t], a)  # noqa: E731
        elif kind == "regroup" and len(divisors(x.numel())) > 1:
            part = draw(st.sampled_from(divisors(x.numel())))
            step = lambda t, s=(1, part, -1): t.reshape(s)  # noqa: E731
        if step is not None:
            found.append(step)
            x = step(x)
    return found


@settings(max_examples=300)
@given(chain=steps())
def test_random_chains(chain: list[Any]) -> None:
    def run(x: Tensor) -> Tensor:
        for step in chain:
            x = step(x)
        return x

    network = Does(run)
    graph = trace(network, SHAPE)
    image = (torch.rand(1, *SHAPE, dtype=torch.float64) + 0.5).requires_grad_()
    value = run(image)
    for number, place in enumerate(places(graph)[graph.outputs[0]]):
        if place.problem or (place.field is None and place.axis is None):
            continue  # refused, or on an axis with channels
        whole = (0, SHAPE[1 + number] - 1)
        others = [axis for axis in range(image.ndim) if axis != 2 + number]
        for unit in range(1 if place.axis is None else value.shape[place.axis]):
            part = value if place.axis is None else value.select(place.axis, unit)
            (gradient,) = torch.autograd.grad(part.sum(), image, retain_graph=True)
            reached = gradient.abs().sum(others).nonzero().flatten().tolist()
            span = whole if place.field is None else place.field.interval(unit)
            assert (reached[0], reached[-1]) == span, (number, unit)


def test_window_attention_of_swin() -> None:
    """Patches of 4, windows of 7; the second block's are shifted, and shifted around the ends."""
    torch.manual_seed(0)
    model = torchvision.models.swin_t().eval()
    field = measure_receptive_field(model, (3, 112, 112), layer="features.1.0")
    for axis in field.axes:
        assert [axis.interval(unit) for unit in (0, 6, 7, 27)] == [
            *((0, 27), (0, 27), (28, 55), (84, 111))
        ]
    for layer in ("features.1.0", "features.1.1"):
        proof = verify_receptive_field(model, (3, 112, 112), layer=layer, units=[0, 7, 20])
        assert proof.ok, str(proof)


def test_attention_over_a_grid_sees_all() -> None:
    model = torchvision.models.maxvit_t()
    field = measure_receptive_field(model, (3, 224, 224))
    assert [axis.is_global for axis in field.axes] == [True, True]
    assert [axis.units for axis in field.axes] == [7, 7]


def test_a_vision_transformer_sees_all_from_its_first_layer() -> None:
    with torch.device("meta"):
        model = torchvision.models.vit_b_16()
    field = measure_receptive_field(model, (3, 224, 224))
    rows = {row.name: row for row in field.layers}
    tokens = rows["cat"].axes
    assert [axis.units for axis in tokens] == [197, 197]  # the first has no place in the image
    assert [axis.interval(0) for axis in tokens] == [None, None]
    assert [axis.interval(1 + 3 * 14 + 5) for axis in tokens] == [(48, 63), (80, 95)]
    attention = "encoder.layers.encoder_layer_0.self_attention: multi_head_attention_forward"
    assert all(axis.is_global for axis in rows[attention].axes)
    assert field.first_to_see_all == attention
