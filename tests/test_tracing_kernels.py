"""What runs without numbers gives the shapes that torch gives, and keeps what torch keeps."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from kept_by_torch import kept
from torch import Tensor, nn

from constrained_cnn import check, measure_receptive_field
from constrained_cnn.constraints import CleanPrediction, Count, Padding
from constrained_cnn.errors import TracingError
from constrained_cnn.tracing import trace

Function = Callable[[Any, Any], Any]
IMAGE, TOKENS = (3, 6, 6), (10, 16)
SAMPLES = 4


class Parts(nn.Module):
    """Layers to choose from, and a function of them and the input."""

    def __init__(self, function: Function, *, frozen: bool = False) -> None:
        super().__init__()
        self.function = function
        self.conv, self.wide = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(3, 3, 7, padding=3)
        self.linear, self.qkv = nn.Linear(8, 8), nn.Linear(16, 48)
        self.norm, self.layer_norm = nn.BatchNorm2d(8), nn.LayerNorm(10)
        self.attention = nn.MultiheadAttention(16, 4, batch_first=True)
        self.gru = nn.GRU(16, 8, 2, batch_first=True, bidirectional=True)
        if frozen:
            self.requires_grad_(False)
        self.scale = nn.Parameter(torch.ones(8, 1, 1))
        self.of_tokens = nn.Parameter(torch.ones(16))

    def forward(self, x: Tensor) -> Any:
        return self.function(self, x)

    def heads(self, x: Tensor) -> tuple[Tensor, ...]:
        q, k, v = self.qkv(x).reshape(len(x), 10, 3, 4, 4).permute(2, 0, 3, 1, 4)
        return q, k, v


attend: Any = F.scaled_dot_product_attention
OF_IMAGES: dict[str, Function] = {
    "relu": lambda net, x: net.conv(x).relu(),
    "relu in place": lambda net, x: net.conv(x).relu_(),
    "relu of a part": lambda net, x: net.conv(x)[:, :4].relu_(),
    "gelu": lambda net, x: F.gelu(net.conv(x), approximate="tanh"),
    "hardswish": lambda net, x: F.hardswish(net.conv(x), inplace=True),
    "sigmoid": lambda net, x: net.conv(x).sigmoid(),
    "prelu": lambda net, x: F.prelu(net.conv(x), net.scale.flatten()),
    "scaled": lambda net, x: net.conv(x) * net.scale,
    "scaled, the other way": lambda net, x: net.scale * net.conv(x),
    "scaled in place": lambda net, x: net.conv(x).mul_(net.scale),
    "squeeze-excite": lambda net, x: (y := net.conv(x)) * y.mean((2, 3), keepdim=True).sigmoid(),
    "square": lambda net, x: (y := net.conv(x)) * y,
    "difference": lambda net, x: 1 - net.conv(x),
    "linear at each place": lambda net, x: net.linear(net.conv(x).permute(0, 2, 3, 1)),
    "linear": lambda net, x: net.linear(net.conv(x).mean((2, 3))),
    "joined": lambda net, x: torch.cat([y := net.conv(x), y.relu()], dim=1),
    "batch norm": lambda net, x: net.norm(net.conv(x)),
    "batch norm that is still": lambda net, x: F.batch_norm(
        net.conv(x), net.norm.running_mean, net.norm.running_var, training=False
    ),
    "half": lambda net, x: net.conv(x).half().relu().float(),
}
OF_TOKENS: dict[str, Function] = {
    "attention": lambda net, x: attend(*net.heads(x)),
    "attention, its heads joined": lambda net, x: (
        attend(*net.heads(x)).transpose(1, 2).reshape(len(x), 10, 16) ** 2
    ),
    "attention under a mask": lambda net, x: attend(
        *net.heads(x), attn_mask=torch.zeros(10, 10, device=x.device)
    ),
    "attention without heads": lambda net, x: attend(*(x * net.of_tokens for _ in range(3))),
    "values of another width": lambda net, x: attend(
        *net.heads(x)[:2], value=net.heads(x)[2][..., :2]
    ),
    "module of attention": lambda net, x: net.attention(x, x, x, need_weights=False)[0],
    "module of attention with its weights": lambda net, x: net.attention(x, x, x)[0],
    "recurrent": lambda net, x: net.gru(x)[0],
    "state of a recurrent layer": lambda net, x: net.gru(
        x, (x.mean(1) * net.of_tokens)[:, :8].expand(4, -1, -1).contiguous()
    )[0].sin(),
    "layer norm of what lies otherwise": lambda net, x: net.layer_norm(x.transpose(1, 2)).view(
        len(x), -1
    ),
}
CASES = [
    *((name, function, IMAGE) for name, function in OF_IMAGES.items()),
    *((name, function, TOKENS) for name, function in OF_TOKENS.items()),
]


@pytest.mark.parametrize("frozen", [False, True], ids=["trained", "frozen"])
@pytest.mark.parametrize(("name", "function", "shape"), CASES, ids=[name for name, *_ in CASES])
def test_what_is_kept_is_what_torch_keeps(
    name: str, function: Function, shape: tuple[int, ...], frozen: bool
) -> None:
    network = Parts(function, frozen=frozen)
    run = trace(network, shape).training
    assert run.problem == ""
    saved = SAMPLES * sum(layer.saved for layer in run.layers) + run.saved_once
    assert saved == kept(network, torch.rand(SAMPLES, *shape))


WRONG: dict[str, Function] = {
    "axis that is not there": lambda net, x: torch.cat([x, x], dim=4),
    "rows of another length": lambda net, x: torch.cat([x, x[..., :2]], dim=1),
    "bias of another length": lambda net, x: F.linear(
        x, torch.ones(4, 6, device=x.device), torch.ones(3, device=x.device)
    ),
    "weight of other axes": lambda net, x: F.conv1d(x, torch.ones(2, 3, 1, 1, device=x.device)),
    "statistics of other channels": lambda net, x: net.norm(x),
    "no statistics": lambda net, x: F.batch_norm(x, None, None, training=False),
    "rows that are not normalized": lambda net, x: net.layer_norm(x),
    "keys of another width": lambda net, x: attend(x, x[..., :3], x),
    "mask of another shape": lambda net, x: attend(x, x, x, torch.zeros(5, 5, device=x.device)),
    "sums that do not fit": lambda net, x: x + x[..., :2],
}


@pytest.mark.parametrize("function", WRONG.values(), ids=WRONG)
def test_what_torch_refuses_is_refused(function: Function) -> None:
    network = Parts(function).eval()
    with pytest.raises((RuntimeError, IndexError, ValueError)):
        network(torch.rand(1, *IMAGE))
    with pytest.raises(TracingError):
        trace(network, IMAGE)


def test_axes_of_a_join_by_every_name() -> None:
    for function in (
        lambda net, x: torch.cat([x, x], axis=1),  # type: ignore[call-arg]
        lambda net, x: torch.cat(dim=-3, tensors=[x, x]),
        lambda net, x: torch.concat([x, x], 1),
    ):
        graph = trace(Parts(function), IMAGE)
        assert graph.values[graph.outputs[0]].shape == (1, 6, 6, 6)


def written_by_out(net: Parts, x: Tensor) -> Tensor:
    y = net.conv(x)[:, :3]
    with torch.no_grad():
        over = torch.zeros_like(y)
        torch.cat([net.wide(x).relu()], 1, out=over)
    return y + over


def test_what_is_written_by_out_is_read() -> None:
    network = Parts(written_by_out)
    assert measure_receptive_field(network, IMAGE).axes[0].size == 7
    assert check(network, IMAGE, Count("relu", at_most=0)).ok is False


def test_autocast_in_a_forward_is_refused_and_around_a_trace_does_not_matter() -> None:
    def cast(net: Parts, x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return net.conv(x)

    with pytest.raises(TracingError, match="autocast"):
        trace(Parts(cast), IMAGE)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        graph = trace(Parts(OF_IMAGES["relu"]), IMAGE)
    assert graph.values[graph.outputs[0]].dtype == "float32"


HIDDEN: dict[str, Function] = {
    "a number by it": lambda net, x: 1 / (net.conv(x) + 9),
    "its own product": lambda net, x: (net.conv(x)[None] * net.conv(x))[0],
    "its own product, by einsum": lambda net, x: torch.einsum(
        "nki,nki->nk", y := net.conv(x).flatten(1)[..., None], y
    ),
    "its size": lambda net, x: F.lp_pool2d(net.conv(x), 2.0, 1),
    "a table, at places it names": lambda net, x: F.grid_sample(
        net.scale.T[None], net.conv(x)[:, :2].permute(0, 2, 3, 1), align_corners=True
    ),
}


@pytest.mark.parametrize("function", HIDDEN.values(), ids=HIDDEN)
def test_what_may_be_an_activation_is_not_passed(function: Function) -> None:
    rules = [Count("activation", at_most=0), CleanPrediction()]
    report = check(Parts(function), IMAGE, rules)
    assert [finding.ok for finding in report.findings] == [None, None]


def test_a_recurrent_layer_has_activations_inside() -> None:
    network = Parts(lambda net, x: net.gru(x)[0])
    assert check(network, TOKENS, Count("activation", at_most=0)).ok is None
    assert check(network, TOKENS, Count("relu", at_most=0)).ok is True


PADDED: dict[str, Function] = {
    "channels last": lambda net, x: F.conv2d(
        F.pad(x.permute(0, 2, 3, 1), (0, 0, 1, 1, 1, 1)).permute(0, 3, 1, 2), net.conv.weight
    ),
    "on two ways": lambda net, x: F.conv2d((y := F.pad(x, (1, 1, 1, 1))) + y * 2, net.conv.weight),
}


@pytest.mark.parametrize("function", PADDED.values(), ids=PADDED)
def test_padding_on_a_way_that_is_not_followed_is_not_passed(function: Function) -> None:
    assert check(Parts(function), IMAGE, Padding(0)).ok is None


def test_a_copy_with_other_weights_is_refused() -> None:
    class Other(nn.Conv2d):
        def __deepcopy__(self, memo: Any) -> nn.Module:
            return nn.Conv2d(3, 5, 3)

    with pytest.raises(TracingError, match="its copy has other weights"):
        trace(nn.Sequential(Other(3, 4, 3)), IMAGE)
