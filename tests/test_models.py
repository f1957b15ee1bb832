"""The zoo: the rules checked on what really runs, and the registry.

Rules R1 to R8 are those of docs/reference-network.md. Forward hooks write down every layer that
runs with its tensors, so a layer that is declared and never called, or a function called between
two layers, does not pass.
"""

import copy
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector

from constrained_cnn import models
from constrained_cnn.blocks import Dropout
from constrained_cnn.errors import InvalidInputError
from constrained_cnn.models import _registry

NETWORKS = [models.mnist_12k, models.mnist_12k_source]
BLOCK = [nn.Conv2d, nn.ReLU, nn.BatchNorm2d, Dropout]


class Step(NamedTuple):
    """One layer as it ran."""

    layer: nn.Module
    before: Tensor
    after: Tensor


def execute(model: nn.Module, *, training: bool = False) -> list[Step]:
    """Return every leaf layer that runs, in order, having made sure that they form one chain."""
    steps: list[Step] = []

    def write_down(layer: nn.Module, arguments: tuple[Tensor], after: Tensor) -> None:
        steps.append(Step(layer, arguments[0], after))

    leaves = [module for module in model.modules() if not list(module.children())]
    handles = [leaf.register_forward_hook(write_down) for leaf in leaves]
    images = torch.randn(2, 1, 28, 28)
    with torch.no_grad():
        logits = model.train(training)(images)
    for handle in handles:
        handle.remove()
    # The very tensor that one layer gave is what the next one got: nothing ran between them.
    tensors = [images, *(step.after for step in steps)]
    assert all(step.before is tensor for step, tensor in zip(steps, tensors, strict=False))
    assert logits is tensors[-1]
    assert sorted(map(id, leaves)) == sorted(id(step.layer) for step in steps)
    return steps


def vector(model: nn.Module) -> Tensor:
    return parameters_to_vector(model.parameters())


def kinds(steps: list[Step]) -> list[type[nn.Module]]:
    return [type(step.layer) for step in steps]


def convolutions(steps: list[Step]) -> list[nn.Conv2d]:
    return [step.layer for step in steps if isinstance(step.layer, nn.Conv2d)]


def parameters_run(steps: list[Step]) -> int:
    """Count parameters by formula from the shapes that the layers met."""
    total = 0
    for layer, before, after in steps:
        if isinstance(layer, nn.Conv2d):
            total += layer.kernel_size[0] * layer.kernel_size[1] * before.shape[1] * after.shape[1]
        elif isinstance(layer, nn.BatchNorm2d):
            total += 2 * after.shape[1]
        elif isinstance(layer, nn.Linear):
            total += (before.shape[1] + 1) * after.shape[1]
    return total


def size_seen(steps: list[Step]) -> int:
    """Return the side of the square of the first step's input that one last cell depends on.

    Gradient support in float64. All weights are positive, so that no two paths cancel and every
    ReLU is open; a max-pool, whose gradient goes to one cell only, gives way to a mean of the same
    window.
    """
    layers: list[nn.Module] = []
    for step in steps:
        layer = copy.deepcopy(step.layer).double().eval()
        if isinstance(layer, nn.Conv2d):
            nn.init.constant_(layer.weight, 1 / layer.weight[0].numel())
        elif isinstance(layer, nn.BatchNorm2d):
            layer.reset_running_stats()
            layer.reset_parameters()
        elif isinstance(layer, nn.MaxPool2d):
            layer = nn.AvgPool2d(layer.kernel_size, layer.stride, layer.padding)
        layers.append(layer)
    image = torch.ones(1, steps[0].before.shape[1], 64, 64, dtype=torch.float64)
    image.requires_grad_()
    out = nn.Sequential(*layers)(image)
    out[:, :, out.shape[2] // 2, out.shape[3] // 2].sum().backward()
    assert image.grad is not None
    seen = image.grad.abs().sum((0, 1)) > 0
    height, width = int(seen.any(1).sum()), int(seen.any(0).sum())
    assert height == width < 64
    assert seen.sum() == height * width  # a full square, so its side is its extent
    return height


def before_pools(steps: list[Step]) -> list[list[Step]]:
    """Return what runs before each max-pool, from the image on."""
    pools = [i for i, kind in enumerate(kinds(steps)) if issubclass(kind, nn.MaxPool2d)]
    return [steps[:i] for i in pools]


def stages(steps: list[Step]) -> list[list[Step]]:
    """Return what runs before each max-pool, from the pool before it on."""
    first, second = before_pools(steps)
    return [first, second[len(first) + 1 :]]


# mnist_12k keeps the rules, in training and in use


@pytest.fixture(params=[True, False], ids=["training", "in use"])
def ours(request: pytest.FixtureRequest) -> list[Step]:
    """The layers of mnist_12k as they run."""
    return execute(models.mnist_12k(), training=request.param)


def test_r1_exactly_12_000_parameters(ours: list[Step]) -> None:
    assert parameters_run(ours) == 12_000
    assert sum(p.numel() for p in models.mnist_12k().parameters()) == 12_000


def test_r3_batch_norm_linear_and_global_average_pooling_run(ours: list[Step]) -> None:
    assert {nn.BatchNorm2d, nn.Linear} <= set(kinds(ours))
    (gap,) = [step for step in ours if isinstance(step.layer, nn.AdaptiveAvgPool2d)]
    torch.testing.assert_close(gap.after, gap.before.mean((2, 3), keepdim=True))


def test_r4_every_dropout_is_0_069(ours: list[Step]) -> None:
    dropouts = [s.layer for s in ours if isinstance(s.layer, nn.modules.dropout._DropoutNd)]
    assert dropouts
    assert {dropout.p for dropout in dropouts} == {0.069}


def test_r5_a_1x1_convolution_consolidates(ours: list[Step]) -> None:
    small = [conv for conv in convolutions(ours) if conv.kernel_size == (1, 1)]
    assert any(conv.out_channels < conv.in_channels for conv in small)


def test_r6_blocks_and_pools(ours: list[Step]) -> None:
    convs = convolutions(ours)
    threes = [conv for conv in convs if conv.kernel_size == (3, 3)]
    assert 6 <= len(threes) <= 8
    assert {conv.kernel_size for conv in convs} == {(3, 3), (1, 1)}
    assert {conv.padding for conv in threes} == {(1, 1)}
    assert all(conv.bias is None for conv in convs)
    pools = [step for step in ours if isinstance(step.layer, nn.MaxPool2d)]
    assert [tuple(pool.after.shape[2:]) for pool in pools] == [(14, 14), (7, 7)]
    for stage in stages(ours):
        assert sum(conv.kernel_size == (3, 3) for conv in convolutions(stage)) == 3
    # Every convolution but the last, the prediction's, begins a whole block.
    starts = [i for i, kind in enumerate(kinds(ours)) if kind is nn.Conv2d]
    for start in starts[:-1]:
        assert kinds(ours[start : start + 4]) == BLOCK
    between = len(ours) - len(BLOCK) * (len(starts) - 1)
    assert between == len(pools) + len(ours[starts[-1] :])


def test_r7_receptive_field_at_each_pool(ours: list[Step]) -> None:
    assert [size_seen(stage) for stage in stages(ours)] == [7, 7]
    # From the image on: 7; the pool makes it 8, and three 3x3 kernels add 2 cells of 2 pixels each.
    assert [size_seen(part) for part in before_pools(ours)] == [7, 8 + 3 * 2 * 2]


def test_r8_nothing_but_pooling_and_linear_after_the_last_convolution(ours: list[Step]) -> None:
    end = max(i for i, kind in enumerate(kinds(ours)) if kind is nn.Conv2d)
    assert kinds(ours[end + 1 :]) == [nn.AdaptiveAvgPool2d, nn.Flatten, nn.Linear]
    assert ours[-1].after.shape == (2, 10)


# mnist_12k_source is the table of the reference, layer by layer

SOURCE: list[tuple[str, tuple[int, ...], tuple[int, ...]]] = [
    # kind, (in, out, kernel, padding) of a convolution or what else there is to say, shape out
    ("Conv2d", (1, 8, 3, 1), (8, 28, 28)),
    ("Conv2d", (8, 16, 3, 1), (16, 28, 28)),
    ("MaxPool2d", (2,), (16, 14, 14)),
    ("Conv2d", (16, 24, 3, 1), (24, 14, 14)),
    ("Conv2d", (24, 16, 3, 1), (16, 14, 14)),
    ("MaxPool2d", (2,), (16, 7, 7)),
    ("bare Conv2d", (16, 16, 3, 0), (16, 5, 5)),
    ("Conv2d", (16, 14, 1, 0), (14, 5, 5)),
    ("bare Conv2d", (14, 14, 3, 0), (14, 3, 3)),
    ("AdaptiveAvgPool2d", (1,), (14, 1, 1)),
    ("Flatten", (), (14,)),
    ("Linear", (14, 10), (10,)),
]


def describe(step: Step) -> tuple[str, tuple[Any, ...], tuple[int, ...]]:
    layer = step.layer
    numbers: tuple[Any, ...] = ()
    match layer:
        case nn.Conv2d():
            assert layer.bias is None
            (kernel,), (padding,) = set(layer.kernel_size), {*map(int, layer.padding)}
            numbers = (layer.in_channels, layer.out_channels, kernel, padding)
        case nn.MaxPool2d():
            numbers = (layer.kernel_size,)
        case nn.AdaptiveAvgPool2d():
            numbers = (layer.output_size,)
        case nn.Linear():
            numbers = (layer.in_features, layer.out_features)
        case nn.Dropout2d():
            numbers = (layer.p,)
    return type(layer).__name__, numbers, tuple(step.after.shape[1:])


def test_source_is_the_reference_layer_by_layer() -> None:
    expected: list[tuple[str, tuple[Any, ...], tuple[int, ...]]] = []
    for kind, numbers, shape in SOURCE:
        expected.append((kind.removeprefix("bare "), numbers, shape))
        if kind == "Conv2d":
            expected += [("ReLU", (), shape), ("BatchNorm2d", (), shape)]
            expected.append(("Dropout2d", (0.069,), shape))
    assert [describe(step) for step in execute(models.mnist_12k_source())] == expected


def test_source_has_12_734_parameters() -> None:
    assert parameters_run(execute(models.mnist_12k_source())) == 12_734
    assert sum(p.numel() for p in models.mnist_12k_source().parameters()) == 12_734


def test_source_sees_what_the_reference_says() -> None:
    steps = execute(models.mnist_12k_source())
    assert [size_seen(part) for part in before_pools(steps)] == [5, 14]
    ends = [i + 1 for i, kind in enumerate(kinds(steps)) if kind is nn.Conv2d]
    assert [size_seen(steps[:end]) for end in ends] == [3, 5, 10, 14, 24, 24, 32]


@pytest.mark.parametrize("network", NETWORKS)
def test_networks_learn_and_follow_the_seed(network: Any) -> None:
    torch.manual_seed(1)
    model = network()
    torch.manual_seed(1)
    assert torch.equal(vector(model), vector(network()))
    assert not torch.equal(vector(model), vector(network()))
    loss = nn.functional.cross_entropy(model(torch.randn(8, 1, 28, 28)), torch.arange(8))
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


# The registry


def test_models_are_known_by_name() -> None:
    names = models.list_models()
    assert names == sorted(names)
    assert {"mnist_12k", "mnist_12k_source"} <= set(names)
    for network in NETWORKS:
        torch.manual_seed(1)
        model = models.create_model(network.__name__)
        torch.manual_seed(1)
        assert torch.equal(vector(model), vector(network()))


@pytest.mark.parametrize(
    ("name", "hint"), [("mnist_12", "; did you mean 'mnist_12k'?"), ("zzz", ""), (12, "")]
)
def test_unknown_model_suggests_the_nearest(name: Any, hint: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        models.create_model(name)
    message = str(caught.value)
    assert message.startswith(f"model={name!r}: must be one of 'mnist_12k', 'mnist_12k_source'")
    assert message.endswith(hint) if hint else "did you mean" not in message


def test_a_name_belongs_to_one_function(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_registry, "_BUILDERS", {})

    def small() -> nn.Module:
        return nn.Linear(1, 1)

    def impostor() -> nn.Module:
        return nn.Linear(1, 2)

    assert models.register_model(small) is small
    assert models.register_model(small) is small  # as when its module is loaded again
    assert models.list_models() == ["small"]
    impostor.__name__ = "small"
    with pytest.raises(InvalidInputError, match="model 'small': another model has this name"):
        models.register_model(impostor)
    created = models.create_model("small")
    assert isinstance(created, nn.Linear)
    assert created.out_features == 1
