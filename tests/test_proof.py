"""Proofs of receptive fields: right ones hold, wrong ones are caught; and the effective field."""

import copy
import math
import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from gradients import Does
from torch import Tensor, nn
from torch.nn.utils import prune
from torch.utils.checkpoint import checkpoint

from constrained_cnn import models
from constrained_cnn.errors import InvalidInputError, TracingError
from constrained_cnn.proof import (
    EffectiveField,
    FieldProof,
    effective_receptive_field,
    verify_receptive_field,
)
from constrained_cnn.receptive_field import (
    AxisField,
    PositionField,
    ReceptiveField,
    measure_receptive_field,
)


def conv(channels: int = 2, kernel: Any = 3, out: int | None = None, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(channels, out or channels, kernel, **options)


def attended(x: Tensor, a: nn.Module, gate: nn.Module) -> Tensor:
    y = a(x)
    return y * torch.sigmoid(gate(y.mean((2, 3), keepdim=True)))


def spatially_attended(x: Tensor, a: nn.Module) -> Tensor:
    both = torch.cat([x.mean(1, keepdim=True), x.max(1, keepdim=True)[0]], 1)
    return x * torch.sigmoid(a(both))


# Right fields hold

NETWORKS: dict[str, nn.Module] = {
    "plain": nn.Sequential(conv(), nn.ReLU(inplace=True), conv(stride=2, padding=1), nn.GELU()),
    "norm, pool": nn.Sequential(conv(), nn.BatchNorm2d(2), nn.Hardswish(), nn.MaxPool2d(2), conv()),
    "dilated": nn.Sequential(*[conv(dilation=d, padding=d) for d in (1, 2, 4)]),
    "pool, overlapping": nn.Sequential(nn.MaxPool2d(3, 2, 1, ceil_mode=True), conv()),
    "pool, dilated": nn.Sequential(conv(), nn.MaxPool2d(2, 1, dilation=3), conv()),
    "kernels of each axis": nn.Sequential(conv(kernel=(3, 1)), conv(kernel=(1, 5), stride=(1, 2))),
    "1x1 with a stride": nn.Sequential(conv(kernel=1, stride=2), conv()),
    "transposed": nn.Sequential(
        conv(stride=2, padding=1), nn.ConvTranspose2d(2, 2, 4, stride=2, padding=1)
    ),
    "transposed with holes": nn.ConvTranspose2d(2, 2, 1, stride=2),
    "nearest": nn.Sequential(conv(stride=2, padding=1), nn.Upsample(scale_factor=2)),
    "linear": nn.Sequential(
        conv(stride=2, padding=1), nn.Upsample(scale_factor=2, mode="bilinear"), conv()
    ),
    "linear by 3, through weights of 0": nn.Upsample(scale_factor=3, mode="bilinear"),
    "linear, aligned": Does(
        lambda x: F.interpolate(x, size=(29, 29), mode="bilinear", align_corners=True)
    ),
    "residual": Does(lambda x, a, b: F.relu(x + b(F.relu(a(x)))), *[conv(padding=1)] * 2),
    "branches of unequal fields": Does(
        lambda x, a, b: torch.cat([a(x), b(b(b(x)))], 1), conv(kernel=1), conv(padding=1)
    ),
    "branches that are shifted": Does(
        lambda x, a, b: a(F.pad(x, (4, 0, 4, 0))) + b(F.pad(x, (2, 2, 2, 2))),
        conv(kernel=5),
        conv(kernel=5),
    ),
    "reused": Does(lambda x, a: a(F.relu(a(a(x)))), conv()),
    "larger of two": Does(lambda x, a: torch.max(a(x), x), conv(padding=1)),
    "where": Does(lambda x, a: torch.where(x > 1, a(x), x), conv(padding=1)),
    "gate by comparison": Does(lambda x, a: x * (~(a(x) > 0)).float(), conv(padding=1)),
    "mask": Does(
        lambda x, a: x.masked_fill(torch.logical_and(a(x) < 0, x > 1), 2.0), conv(padding=1)
    ),
    "written after an activation": Does(
        lambda x, a, b: F.relu(y := a(x)).add_(1) * b(y), conv(padding=1), conv(padding=1)
    ),
    "adaptive pools": nn.Sequential(conv(), nn.AdaptiveMaxPool2d(10), nn.AdaptiveAvgPool2d(7)),
    "squeeze-excite": Does(attended, conv(padding=1), conv(kernel=1)),
    "attention over places": Does(spatially_attended, conv(2, 5, out=1, padding=2)),
    "instance norm": nn.Sequential(conv(), nn.InstanceNorm2d(2), nn.ReLU()),
    "softmax": nn.Sequential(conv(), nn.Softmax2d()),
    "no gradient": Does(lambda x, a: a(x).round() + a(x).detach(), conv()),
    "stops NaN": Does(lambda x, a: a(x).sign(), conv()),
    "flatten and linear": nn.Sequential(
        conv(), nn.ReLU(), nn.MaxPool2d(2), conv(), nn.Flatten(), nn.Linear(2 * 8 * 8, 3)
    ),
    "head, by function": Does(
        lambda x, a, b: b(F.max_pool2d(F.relu(a(F.relu(a(x)))), 2).mean((2, 3))),
        conv(),
        nn.Linear(2, 3),
    ),
    "wider than the image": nn.Sequential(*[conv(padding=1) for _ in range(15)]),
    "shuffle": nn.Sequential(conv(out=8, padding=1), nn.PixelShuffle(2), conv()),
    "flip, crop": Does(lambda x, a, b: b(a(x).flip(2))[..., 1:-2:2], conv(stride=2), conv()),
    "transpose": Does(lambda x, a: a(x.transpose(2, 3)), conv(kernel=(3, 1))),
    "casts": Does(lambda x, a: a(x.float()) * torch.ones(2, 1, 1, device=x.device), conv()),
    "weight norm": nn.Sequential(nn.utils.parametrizations.weight_norm(conv()), conv()),
}
SHAPE = (2, 22, 22)


@pytest.mark.parametrize("name", NETWORKS)
def test_right_fields_hold(name: str) -> None:
    proof = verify_receptive_field(NETWORKS[name], SHAPE)
    assert proof.ok is True, str(proof)
    proof.raise_if_failed()


def test_a_jump_is_proved_by_neighbours_of_each_phase() -> None:
    proof = verify_receptive_field(NETWORKS["nearest"], SHAPE)
    assert [check.unit for check in proof.checks if check.axis == 0][::3] == [9, 10, 11]
    assert [check.method for check in proof.checks[:3]] == ["nan", "gradient", "change"]
    counts = "nan 6 of 6, gradient 6 of 6, change 6 of 6"
    assert str(proof) == f"Sequential at 1: interpolate: proved ({counts})"


def test_where_the_methods_differ_the_check_says_so() -> None:
    over = verify_receptive_field(NETWORKS["linear by 3, through weights of 0"], SHAPE)
    notes = {check.note for check in over.checks if check.ok is None}
    assert notes == {"NaN passes through weights of 0, or an operation stops it"}
    assert all(check.ok for check in over.checks if check.method == "gradient")


def test_an_image_without_room_is_made_larger() -> None:
    proof = verify_receptive_field(NETWORKS["wider than the image"], SHAPE)
    assert all(check.ok and check.expected == check.found for check in proof.checks)
    assert "on an image of" in proof.checks[0].note


def test_one_and_three_dimensions() -> None:
    causal = Does(lambda x, a: a(F.pad(x, (4, 0))), nn.Conv1d(2, 2, 3, dilation=2))
    assert verify_receptive_field(causal, (2, 50)).ok
    solid = nn.Sequential(nn.Conv3d(1, 2, (1, 3, 5)), nn.MaxPool3d(2), nn.ReLU())
    assert verify_receptive_field(solid, (1, 9, 9, 9)).ok


def test_our_models() -> None:
    assert verify_receptive_field(models.mnist_12k(), (1, 28, 28)).ok
    assert verify_receptive_field(models.mnist_12k_source(), (1, 28, 28)).ok


def test_resnet_without_weights() -> None:
    with torch.device("meta"):
        resnet = torchvision.models.resnet18()
    proof = verify_receptive_field(resnet, (3, 128, 128), layer="layer2")
    assert proof.ok
    assert proof.checks[0].expected is not None
    assert proof.checks[0].expected[1] - proof.checks[0].expected[0] + 1 == 99


def test_layers_inside() -> None:
    network = nn.Sequential(conv(), nn.ReLU(inplace=True), nn.Sequential(conv(), conv()))
    for layer in ("0", "1", "2", "2.0", "2.1"):
        assert verify_receptive_field(network, SHAPE, layer=layer).ok
    reused = Does(lambda x, a: a(a(x)).flatten(1), conv())
    proof = verify_receptive_field(reused, SHAPE, layer="parts.0")
    assert proof.ok
    assert proof.checks[0].expected == (8, 12)


# What no method can see is not held against a field


def of_signs(x: Tensor, a: nn.Module, table: nn.Module) -> Tensor:
    return table((a(x)[:, 0] > 0).long()).permute(0, 3, 1, 2)


BLIND: dict[str, nn.Module] = {
    "integers": Does(lambda x, a: a(x).to(torch.int32), conv(padding=1)),
    "integers, and more": Does(lambda x, a: a(a(x).to(torch.int32).to(x.dtype)), conv(padding=1)),
    "bool": Does(lambda x, a: a(x).bool(), conv(padding=1)),
    "argmax": Does(lambda x, a: a(x).argmax(1), conv(padding=1)),
    "which is largest": Does(lambda x, a: a(x).max(1)[1].to(x.dtype) + 1, conv(padding=1)),
    "any": Does(lambda x, a: (a(x) > 0).any(1), conv(padding=1)),
    "table": Does(of_signs, conv(padding=1), nn.Embedding(2, 3)),
    "table beside what is seen": Does(
        lambda x, a, table: x + of_signs(x, a, table), conv(padding=1), nn.Embedding(2, 2)
    ),
}


@pytest.mark.parametrize("name", BLIND)
def test_where_both_methods_are_blind_nothing_can_be_told(name: str) -> None:
    proof = verify_receptive_field(BLIND[name], SHAPE)
    assert proof.ok is None
    notes = {check.note for check in proof.checks if check.method == "gradient"}
    assert all("has no gradient" in note for note in notes)


def test_what_is_seen_beyond_a_field_refutes_it_though_an_operation_is_blind() -> None:
    network = Does(
        lambda x, a, b: b(x) + a(x).to(torch.int32).to(x.dtype),
        conv(padding=1),
        conv(kernel=5, padding=2),
    )
    right = measure_receptive_field(network, SHAPE)
    assert verify_receptive_field(network, SHAPE).ok is True
    claim = claimed(right, 0, AxisField(((-1, 1),)))
    assert verify_receptive_field(network, SHAPE, field=claim).ok is False


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")  # in no_grad: trace
def test_nan_alone_proves_where_there_is_no_gradient() -> None:
    for name, network in {
        "conv2d": Does(lambda x, a: torch.no_grad()(a)(x), conv()),
        "there is no gradient": Does(
            lambda x, a, b: b(checkpoint(a, x, use_reentrant=True)), conv(), conv()
        ),
    }.items():
        proof = verify_receptive_field(network, SHAPE)
        assert proof.ok is True
        noted = [check.note for check in proof.checks if check.method == "gradient"]
        assert all(name in note for note in noted)


def test_masks_that_are_filled_in_place() -> None:
    def filled(x: Tensor, a: nn.Module) -> Tensor:
        y = x * 1
        y.masked_fill_(a(x) < 0, 2.0)
        return y

    proof = verify_receptive_field(Does(filled, conv(padding=1)), SHAPE)
    assert proof.ok is True
    assert proof.checks[0].expected == (9, 11)


def test_nan_that_leaks_through_a_mask_does_not_prove_that_all_is_seen() -> None:
    def causal(x: Tensor) -> Tensor:
        y = x.transpose(1, 2)
        return F.scaled_dot_product_attention(y, y, y, is_causal=True).transpose(1, 2)

    network, shape = Does(causal), (4, 12)
    right = measure_receptive_field(network, shape)
    proof = verify_receptive_field(network, shape, field=claimed(right, 0, None), units=[0, 5])
    assert proof.ok is None
    assert {c.found for c in proof.checks if c.method == "nan"} == {(0, 11)}
    assert {c.found for c in proof.checks if c.method == "gradient"} == {(0, 0), (0, 5)}


@pytest.mark.parametrize("kind", ["reflect", "replicate", "circular"])
def test_units_that_read_repeated_positions(kind: str) -> None:
    network = nn.Sequential(
        Does(lambda x: F.pad(x, (4, 4, 4, 4), mode=kind)), conv(), conv(stride=2)
    )
    for units in ([0, 8], [0, 4, 8], [4], None):
        proof = verify_receptive_field(network, (2, 15, 15), units=units)
        assert proof.ok is (None if kind == "reflect" and units in ([0, 8], [0, 4, 8]) else True)
    if kind == "reflect":
        first = verify_receptive_field(network, (2, 15, 15), units=[0]).checks[0]
        assert (first.expected, first.found) == ((-4, 0), (0, 4))  # mirrored
        assert first.note == "the border repeats positions of the image"


def test_a_repeating_border_does_not_hide_a_wrong_field() -> None:
    network = nn.Sequential(nn.ReflectionPad2d(1), conv())
    claim = claimed(measure_receptive_field(network, SHAPE), 0, AxisField(((-1, 2),)))
    assert verify_receptive_field(network, SHAPE, field=claim).ok is False


# Wrong fields are caught

WRONG: dict[str, Callable[[AxisField], AxisField]] = {
    "wider before": lambda f: moved(f, -1, 0),
    "wider behind": lambda f: moved(f, 0, 1),
    "narrower before": lambda f: moved(f, 1, 0),
    "narrower behind": lambda f: moved(f, 0, -1),
    "shifted": lambda f: moved(f, 1, 1),
    "shifted back": lambda f: moved(f, -1, -1),
    "slower": lambda f: AxisField(f.spans, f.advance - 1),
    "faster": lambda f: AxisField(f.spans, f.advance + 1),
    "half": lambda f: AxisField(f.spans * 2, f.advance),
}


def moved(field: AxisField, low: int, high: int) -> AxisField:
    spans = [span and (span[0] + low, span[1] + high) for span in field.spans]
    return AxisField(tuple(spans), field.advance)


def claimed(field: ReceptiveField, axis: int, wrong: AxisField | None) -> ReceptiveField:
    axes = list(field.axes)
    axes[axis] = replace(axes[axis], field=wrong)
    return replace(field, axes=tuple(axes))


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize(
    "name",
    ["plain", "norm, pool", "linear", "reused", "flatten and linear", "wider than the image"],
)
def test_wrong_fields_are_caught(name: str, wrong: str) -> None:
    network = NETWORKS[name]
    right = measure_receptive_field(network, SHAPE)
    field = right.axes[1].field
    assert isinstance(field, AxisField)
    claim = claimed(right, 1, WRONG[wrong](field))
    proof = verify_receptive_field(network, SHAPE, field=claim)
    assert proof.ok is False
    assert {check.axis for check in proof.checks if check.ok is False} == {1}
    with pytest.raises(TracingError, match=r"axis 1, unit \d+, .*: expected -?\d+ to \d+, found "):
        proof.raise_if_failed()


def test_a_wrong_phase_is_caught() -> None:
    right = measure_receptive_field(NETWORKS["nearest"], SHAPE)
    claim = claimed(right, 0, AxisField(((-1, 1), (0, 2)), 2))
    assert verify_receptive_field(NETWORKS["nearest"], SHAPE, field=claim).ok is False


def test_what_is_found_is_said() -> None:
    network = conv(kernel=5)
    claim = claimed(measure_receptive_field(network, SHAPE), 0, AxisField(((0, 3),)))
    proof = verify_receptive_field(network, SHAPE, field=claim, units=[7])
    failed = [check for check in proof.checks if not check.ok]
    assert [(c.axis, c.unit, c.expected, c.found) for c in failed] == [(0, 7, (7, 10), (7, 11))] * 3
    assert (
        "REFUTED (nan 1 of 2, gradient 1 of 2, change 1 of 2)\n  axis 0, unit 7, nan: expected 7 to"
        in str(proof)
    )


@pytest.mark.parametrize("name", ["plain", "linear"])
def test_what_is_local_is_not_global(name: str) -> None:
    claim = claimed(measure_receptive_field(NETWORKS[name], SHAPE), 0, None)
    assert verify_receptive_field(NETWORKS[name], SHAPE, field=claim).ok is False


def test_what_is_global_is_not_local() -> None:
    for name in ("squeeze-excite", "instance norm"):
        right = measure_receptive_field(NETWORKS[name], SHAPE)
        local = right.axes[0].local
        assert isinstance(local, AxisField)
        claim = claimed(right, 0, local)
        assert verify_receptive_field(NETWORKS[name], SHAPE, field=claim).ok is False
    pooled = nn.Sequential(conv(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    right = measure_receptive_field(pooled, SHAPE, layer="2")
    assert verify_receptive_field(pooled, SHAPE, field=right).ok is True
    claim = claimed(right, 0, AxisField(((0, 21),)))
    assert verify_receptive_field(pooled, SHAPE, field=claim).ok is False


def test_a_border_that_hides_a_field_is_no_proof_against_it() -> None:
    network = nn.Sequential(conv(), conv(padding=2), nn.Flatten(), nn.Linear(2 * 22 * 22, 2))
    assert verify_receptive_field(network, SHAPE, layer="1").ok is True
    proof = verify_receptive_field(network, SHAPE, layer="1", units=[0])
    assert proof.checks[0].expected == (-2, 2)
    assert proof.checks[0].found == (0, 2)
    # A unit that reads only inner padding sees nothing, though its span touches the image.
    cropped = nn.Sequential(nn.Conv2d(2, 2, 1), nn.ZeroPad2d(-2), nn.ZeroPad2d(2), conv(padding=1))
    assert verify_receptive_field(cropped, SHAPE, units=[0]).ok is None


# The model stays as it is


def state_of(model: nn.Module) -> tuple[Any, ...]:
    return (
        {name: part.clone() for name, part in model.state_dict().items()},
        {name: part.requires_grad for name, part in model.named_parameters()},
        {name: None if p.grad is None else p.grad.clone() for name, p in model.named_parameters()},
        [module.training for module in model.modules()],
        [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()],
        {name: (id(part), part.dtype) for name, part in model.named_parameters()},
        torch.get_rng_state(),
        torch.get_default_dtype(),
        torch.is_grad_enabled(),
    )


def same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, tuple | list):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


class BreaksOnData(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if x.device.type != "meta":
            raise RuntimeError("it broke")
        return x


@pytest.mark.parametrize("breaks", [False, True])
@pytest.mark.parametrize("ask", [verify_receptive_field, effective_receptive_field])
def test_the_model_stays_as_it_is(ask: Callable[..., Any], breaks: bool) -> None:
    parts = [conv(), nn.BatchNorm2d(2), nn.ReLU(inplace=True), nn.Dropout(0.5), conv()]
    model = nn.Sequential(*parts, *([BreaksOnData()] if breaks else [])).train()
    model[0].eval()
    model[4].weight.requires_grad_(False)
    if not breaks:
        model(torch.randn(3, 2, 9, 9)).sum().backward()
    before = state_of(model)
    if breaks:
        with pytest.raises(TracingError, match=r"cannot be run .* it broke"):
            ask(model, SHAPE)
    else:
        ask(model, SHAPE)
    assert same(before, state_of(model))


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_it_works_where_gradients_are_off(mode: Callable[[], Any]) -> None:
    # The gradient decides where NaN passes through weights of 0.
    enlarged = nn.Sequential(conv(), nn.Upsample(scale_factor=3, mode="bilinear"))
    with mode():
        assert verify_receptive_field(enlarged, SHAPE).ok is True
        assert effective_receptive_field(conv(), SHAPE, samples=1).size(1.0) == 3


def test_it_works_on_any_default_device() -> None:
    network = conv()
    with torch.device("meta"):
        assert verify_receptive_field(network, SHAPE).ok is True
        assert effective_receptive_field(network, SHAPE, samples=1).size(1.0) == 3


def of_numpy() -> list[int]:
    """Return the state of numpy's global random numbers."""
    state = np.random.get_state(legacy=False)["state"]  # noqa: NPY002
    return [*state["key"].tolist(), state["pos"]]


class Disturbs(nn.Module):
    """Draws from, and changes, all that belongs to the whole process."""

    def forward(self, x: Tensor) -> Tensor:
        random.random()
        np.random.rand()  # noqa: NPY002
        torch.rand(1)
        torch.set_default_dtype(torch.float64)
        torch.set_grad_enabled(False)
        return x


def test_a_forward_that_changes_the_process_leaves_it_as_it_was() -> None:
    network = nn.Sequential(conv(), Disturbs())
    model_state = state_of(network)
    python, numbers = random.getstate(), of_numpy()
    verify_receptive_field(network, SHAPE, layer="0")
    effective_receptive_field(network, SHAPE, layer="0", samples=1)
    assert random.getstate() == python
    assert of_numpy() == numbers
    assert same(model_state, state_of(network))


def test_a_part_that_is_not_copied_is_refused_before_its_weights_are_lost() -> None:
    class Kept(nn.BatchNorm2d):
        def __deepcopy__(self, memo: Any) -> "Kept":
            return self

    network = nn.Sequential(conv(), Kept(2))
    before = state_of(network)
    for ask in (verify_receptive_field, effective_receptive_field):
        with pytest.raises(TracingError, match="'1'"):
            ask(network, SHAPE)
    assert same(before, state_of(network))


def test_weights_that_are_worked_out_by_hooks_and_kept() -> None:
    pruned, features = conv(), Does(lambda x, a: a(x), conv())
    prune.l1_unstructured(pruned, "weight", 0.5)
    network = nn.Sequential(pruned, features)
    features.kept = {"last": [network(torch.randn(1, *SHAPE))]}  # type: ignore[assignment]
    assert verify_receptive_field(network, SHAPE).ok is True
    assert effective_receptive_field(network, SHAPE, samples=1).size(1.0) <= 5


# The effective field


def test_the_effective_field_of_a_convolution_is_its_kernel() -> None:
    layer = conv(1, (3, 5), bias=False)
    field = effective_receptive_field(layer, (1, 11, 12), unit=(4, 2))
    kernel = layer.weight.detach().abs()[0, 0].double().numpy()
    expected = np.zeros((11, 12))
    expected[4:7, 2:7] = kernel / kernel.sum()
    np.testing.assert_allclose(field.map, expected, rtol=1e-12, atol=0)
    assert field.intervals == ((4, 6), (2, 6))
    assert field.centre == (5, 4)
    assert not field.map.flags.writeable
    assert str(field).startswith("Conv2d at conv2d: unit (4, 2) can see 3 x 5; 95 % of")


@pytest.mark.parametrize("n", [1, 4, 9])
def test_the_effective_field_of_uniform_kernels_is_a_folded_box(n: int) -> None:
    network = nn.Sequential(*[conv(1, bias=False) for _ in range(n)])
    for weights in network.parameters():
        nn.init.constant_(weights, 0.3)
    side = 2 * n + 5
    field = effective_receptive_field(network, (1, side, side), samples=2)
    line = np.ones(1)
    for _ in range(n):
        line = np.convolve(line, np.ones(3) / 3)
    (low, high) = field.intervals[0] or (0, 0)
    assert high - low == 2 * n
    expected = np.zeros(side)
    expected[low : high + 1] = line
    np.testing.assert_allclose(field.map, np.outer(expected, expected), atol=1e-12)


def test_it_is_narrower_than_what_can_be_seen() -> None:
    resnet = torchvision.models.resnet18()
    field = effective_receptive_field(resnet, (3, 64, 64), layer="layer1", samples=2)
    span = field.intervals[0]
    assert span is not None
    assert field.size(0.5) < field.size(0.95) <= span[1] - span[0] + 1


def brute_share(field: EffectiveField, size: int) -> float:
    total = 0.0
    for place in np.ndindex(field.map.shape):
        if all(2 * abs(p - c) <= size - 1 for p, c in zip(place, field.centre, strict=True)):
            total += float(field.map[place])
    return total


@pytest.mark.parametrize(
    ("network", "shape"),
    [
        (nn.Sequential(nn.Conv1d(2, 3, 4), nn.ReLU(), nn.Conv1d(3, 2, 4)), (2, 25)),
        (nn.Sequential(conv(kernel=(3, 4)), nn.ReLU(), conv(stride=2)), (2, 13, 12)),
        (nn.Sequential(nn.Conv3d(1, 2, (1, 3, 2)), nn.MaxPool3d(2)), (1, 6, 7, 8)),
        (Does(attended, conv(), conv(kernel=1)), (2, 10, 9)),
    ],
)
def test_shares_and_sizes(network: nn.Module, shape: tuple[int, ...]) -> None:
    field = effective_receptive_field(network, shape, samples=3)
    assert field.map.shape == shape[1:]
    assert field.map.sum() == pytest.approx(1)
    shares = [brute_share(field, size) for size in range(1, 30)]
    np.testing.assert_allclose([field.share_within(s) for s in range(1, 30)], shares, atol=1e-12)
    for share in (0.3, 0.8, 0.95, 1.0):
        wanted = next(s for s, found in enumerate(shares, 1) if found >= share - 1e-12)
        assert field.size(share) == wanted


def test_images_seed_and_global_axes() -> None:
    network = nn.Sequential(conv(), nn.Tanh(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    images = torch.randn(5, 2, 9, 9)
    one = effective_receptive_field(network, (2, 9, 9), layer="3", images=images, samples=2)
    two = effective_receptive_field(network, (2, 9, 9), layer="3", images=images[:2])
    np.testing.assert_array_equal(one.map, two.map)
    assert one.unit == (None, None)
    assert one.intervals == (None, None)
    assert one.centre == (4, 4)
    maps = [effective_receptive_field(network, (2, 9, 9), seed=s).map for s in (0, 0, 1)]
    np.testing.assert_array_equal(maps[0], maps[1])
    assert not np.array_equal(maps[0], maps[2])


def test_a_unit_of_tokens_has_one_number() -> None:
    patches = nn.Conv2d(2, 6, 4, stride=4)
    network = nn.Sequential(patches, nn.Flatten(2), Does(lambda x: x.transpose(1, 2) * 2))
    shape = (2, 16, 16)
    with pytest.raises(InvalidInputError, match=r"unit=\(3, 5\): must name one unit"):
        effective_receptive_field(network, shape, layer="2", unit=(3, 5))
    token = effective_receptive_field(network, shape, layer="2", unit=(6, 6), samples=2)
    patch = effective_receptive_field(network, shape, layer="0", unit=(1, 2), samples=2)
    assert np.array_equal(token.map > 0, patch.map > 0)  # the seventh of 4 x 4


# What is refused


def zeros() -> nn.Module:
    layer = conv()
    for weights in layer.parameters():
        nn.init.zeros_(weights)
    return layer


def test_what_cannot_be_proved() -> None:
    other = measure_receptive_field(conv(), (2, 30, 30))
    cases: list[tuple[Any, tuple[Any, ...], dict[str, Any], str]] = [
        (InvalidInputError, ("net", SHAPE), {}, "must be a torch.nn.Module"),
        (InvalidInputError, (conv(), 22), {}, "input_shape"),
        (InvalidInputError, (conv(), (2, 22, 0)), {}, "input_shape"),
        (InvalidInputError, (nn.Sequential(conv()), SHAPE), {"layer": "1"}, "no such module ran"),
        (InvalidInputError, (conv(), SHAPE), {"units": [20]}, r"units=20: .* from 0 to 19"),
        (InvalidInputError, (conv(), SHAPE), {"units": []}, "must be numbers of units"),
        (InvalidInputError, (conv(), SHAPE), {"field": 3}, "must be a ReceptiveField"),
        (InvalidInputError, (conv(), SHAPE), {"field": other}, "input_shape"),
        (TracingError, (nn.LazyConv2d(2, 3), SHAPE), {}, "call the model once"),
    ]
    for error, args, options, message in cases:
        with pytest.raises(error, match=message):
            verify_receptive_field(*args, **options)


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")  # in no_grad: trace
def test_effective_fields_that_cannot_be_had() -> None:
    cases: list[tuple[Any, dict[str, Any], str]] = [
        (conv(), {"unit": (1,)}, "must be 2 numbers"),
        (conv(), {"unit": (1, 20)}, "unit=20: .* from 0 to 19"),
        (conv(), {"samples": 0}, "samples=0"),
        (conv(), {"seed": -1}, "seed=-1"),
        (conv(), {"images": torch.zeros(3, 2, 9, 9)}, "images="),
        (conv(), {"images": torch.zeros(2, 22, 22)}, "images="),
        (conv(), {"images": [1]}, "images=list"),
        (conv(), {"seed": 2**64}, "seed=18446744073709551616"),
        (conv(), {"images": torch.zeros(2, *SHAPE, dtype=torch.complex64)}, "complex64"),
        (conv(), {"images": torch.zeros(2, *SHAPE, device="meta")}, "on meta: must be a dense"),
        (conv(), {"images": torch.zeros(2, *SHAPE).to_sparse()}, "sparse_coo.*: must be a dense"),
        (conv(), {"images": torch.full((2, *SHAPE), math.nan)}, "finite numbers"),
        (Does(lambda x, a: torch.no_grad()(a)(x), conv()), {}, "no gradient reaches"),
        (zeros(), {}, "nothing to share out"),
        (copy.deepcopy(conv()).to("meta"), {}, "only shapes"),
    ]
    for network, options, message in cases:
        with pytest.raises(InvalidInputError, match=message):
            effective_receptive_field(network, SHAPE, **options)
    twice = Does(lambda x, a, b: b(checkpoint(a, x, use_reentrant=True)), conv(), conv())
    with pytest.raises(TracingError, match="the gradient of a unit cannot be worked out"):
        effective_receptive_field(twice, SHAPE)
    field = effective_receptive_field(conv(), SHAPE, samples=1)
    for size in (0, 1.5, True):
        with pytest.raises(InvalidInputError, match="size="):
            field.share_within(size)  # type: ignore[arg-type]
    for share in (0, -1, 1.1, math.nan):
        with pytest.raises(InvalidInputError, match="share="):
            field.size(share)


def test_a_proof_without_failures_does_not_raise() -> None:
    empty = FieldProof("Net", "1: relu", ())
    empty.raise_if_failed()
    assert empty.ok is None


def test_fields_that_do_not_move_with_the_unit() -> None:
    network = nn.Conv2d(2, 2, 3, padding=1, padding_mode="circular")
    right = measure_receptive_field(network, SHAPE)
    assert verify_receptive_field(network, SHAPE).ok is True
    spans = right.axes[0].field
    assert isinstance(spans, PositionField)
    wrong = replace(right.axes[0], field=PositionField((*spans.spans[:-1], (1, 3))))
    claim = replace(right, axes=(wrong, *right.axes[1:]))
    assert verify_receptive_field(network, SHAPE, field=claim).ok is False


def test_nearest_neighbours_are_those_of_single_precision() -> None:
    proof = verify_receptive_field(nn.Upsample(size=82), (1, 8), units=[40, 41, 42])
    assert proof.ok, str(proof)
