"""A copy shares nothing with the network, and what runs meanwhile leaves the process as it was."""

import copy
import functools
import random
import threading
from collections.abc import Callable
from types import MethodType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune
from torch.overrides import TorchFunctionMode

from constrained_cnn.errors import TracingError
from constrained_cnn.tracing._around import undisturbed
from constrained_cnn.tracing._copy import copied, in_double


class Holder(nn.Module):
    """Holds tensors wherever a module can."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 3)
        self.b.weight = self.a.weight
        self.register_buffer("table", torch.arange(3))
        made = self.a(torch.ones(1, 3))
        self.plain, self.made = torch.ones(2), made
        self.nested: dict[str, Any] = {"list": [made, (made * 2,)], "same": self.a.weight}
        self.later = functools.partial(torch.add, made)
        self.bound = MethodType(len, {"kept": [made + 1]})
        self.other = Settings(made)


class Settings:
    def __init__(self, made: Tensor) -> None:
        self.made = made


def everything(model: Holder) -> list[Tensor]:
    return [
        *model.parameters(),
        *model.buffers(),
        model.plain,
        model.made,
        model.nested["list"][0],
        model.nested["list"][1][0],
        model.later.args[0],
        model.bound.__self__["kept"][0],  # type: ignore[index]
        model.other.made,
    ]


def test_values_are_kept_and_nothing_is_shared() -> None:
    model = Holder()
    network = copied(model)
    assert isinstance(network, Holder)
    for one, other in zip(everything(model), everything(network), strict=True):
        assert torch.equal(one, other)
        assert one is not other
        assert one.data_ptr() != other.data_ptr()
        assert other.is_leaf
    assert network.b.weight is network.a.weight is network.nested["same"]
    assert network.made is network.nested["list"][0] is network.later.args[0]
    assert network.other.made is network.made
    assert model.made.grad_fn is not None


def test_a_stand_in_is_made_once_for_each_tensor() -> None:
    model = Holder()
    model.b.bias.requires_grad_(False)
    seen: list[int] = []

    def empty(tensor: Tensor) -> Tensor:
        seen.append(id(tensor))
        return torch.empty_like(tensor, device="meta")

    network = copied(model, empty)
    assert isinstance(network, Holder)
    assert len(seen) == len(set(seen)) == len({id(tensor) for tensor in everything(model)})
    assert all(tensor.is_meta for tensor in everything(network))
    assert network.b.weight is network.a.weight
    names = [name for name, _ in model.named_parameters(remove_duplicate=False)]
    assert [name for name, _ in network.named_parameters(remove_duplicate=False)] == names
    assert [part.requires_grad for part in network.parameters()] == [True, True, False]


def test_a_stand_in_takes_the_place_of_what_a_module_copies_in_its_own_way() -> None:
    class Rebuilt(nn.Linear):
        def __deepcopy__(self, memo: Any) -> "Rebuilt":
            made = Rebuilt(3, 3)
            made.load_state_dict(self.state_dict())
            return made

    model = nn.Sequential(Rebuilt(3, 3), nn.ReLU())
    network = copied(model, in_double)
    assert {part.dtype for part in network.parameters()} == {torch.float64}
    x = torch.randn(2, 3)
    torch.testing.assert_close(network(x.double()).float(), model(x))


def test_values_in_double_precision() -> None:
    for dtype, expected in {
        torch.float32: torch.float64,
        torch.bfloat16: torch.float64,
        torch.complex64: torch.complex128,
        torch.int32: torch.int32,
        torch.bool: torch.bool,
    }.items():
        tensor = torch.ones(2, dtype=dtype)
        assert in_double(tensor).dtype == expected
        assert in_double(tensor).tolist() == tensor.tolist()
        assert in_double(tensor.to("meta")).tolist() == [0, 0]
    weight = torch.ones(2, dtype=torch.float64, requires_grad=True)
    assert in_double(weight).data_ptr() != weight.data_ptr()
    assert not in_double(weight).requires_grad


def old(kind: str) -> nn.Module:
    layer = nn.Conv2d(2, 2, 3)
    if kind == "pruned":
        prune.l1_unstructured(layer, "weight", 0.5)
    elif kind == "weight norm":
        with pytest.warns(FutureWarning):
            nn.utils.weight_norm(layer)
    else:
        nn.utils.spectral_norm(layer)
        layer(torch.randn(1, 2, 5, 5))
    return layer


@pytest.mark.parametrize("kind", ["pruned", "weight norm", "spectral norm"])
def test_weights_with_a_history(kind: str) -> None:
    layer = old(kind).eval()
    with pytest.raises(RuntimeError):
        copy.deepcopy(layer)
    x = torch.randn(1, 2, 5, 5)
    torch.testing.assert_close(copied(layer)(x), layer(x))
    torch.testing.assert_close(copied(layer, in_double)(x.double()).float(), layer(x))


class Itself(nn.Linear):
    def __deepcopy__(self, memo: Any) -> "Itself":
        return self


class SharesWeights(nn.Linear):
    def __deepcopy__(self, memo: Any) -> "SharesWeights":
        made = SharesWeights(3, 3)
        made.weight = self.weight
        return made


class SharesBuffers(nn.BatchNorm1d):
    def __deepcopy__(self, memo: Any) -> "SharesBuffers":
        made = SharesBuffers(3)
        made.running_mean = self.running_mean
        return made


@pytest.mark.parametrize(
    ("part", "name"),
    [
        (Itself(3, 3), r"module '1\.0'"),
        (SharesWeights(3, 3), r"parameter '1\.0\.weight'"),
        (SharesBuffers(3), r"buffer '1\.0\.running_mean'"),
    ],
)
def test_what_is_handed_on_as_it_is_is_refused(part: nn.Module, name: str) -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Sequential(part))
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    for stand_in in (None, torch.zeros_like, in_double, lambda t: torch.empty_like(t).to("meta")):
        with pytest.raises(TracingError, match=rf"its copy has {name} in common"):
            copied(model, stand_in)
    assert all(torch.equal(before[key], tensor) for key, tensor in model.state_dict().items())
    with pytest.raises(TracingError, match="its copy has itself in common"):
        copied(Itself(3, 3))


class Refuses(nn.ReLU):
    def __deepcopy__(self, memo: Any) -> "Refuses":
        raise RuntimeError("not this one")


def test_what_cannot_be_copied_is_named() -> None:
    cases: list[tuple[Callable[[], Any], str]] = [
        (threading.Lock, r"it is '1\.0\.held', a lock\): cannot pickle"),
        (lambda: [{"deep": (number for number in range(2))}], r"it is '1\.0\.held', a list\)"),
    ]
    for make, message in cases:
        part = nn.ReLU()
        part.held = make()
        part.parent = [part]  # type: ignore[assignment]
        with pytest.raises(TracingError, match=message):
            copied(nn.Sequential(nn.Linear(3, 3), nn.Sequential(part)))
    with pytest.raises(TracingError, match=r"it is '1', a Refuses\): not this one"):
        copied(nn.Sequential(nn.Linear(3, 3), Refuses()))


# The process


class Counts(TorchFunctionMode):
    """Counts the operations it sees."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen += 1
        return func(*args, **(kwargs or {}))


def of_numpy() -> list[int]:
    """Return the state of numpy's global random numbers."""
    state = np.random.get_state(legacy=False)["state"]  # noqa: NPY002
    return [*state["key"].tolist(), state["pos"]]


def process() -> list[Any]:
    return [
        torch.get_rng_state().tolist(),
        of_numpy(),
        random.getstate(),
        torch.get_default_dtype(),
        torch.zeros(()).device,
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
    ]


def disturb(device: str | None) -> None:
    torch.rand(3), np.random.rand(3), random.random()  # noqa: NPY002
    torch.set_default_dtype(torch.float16)
    torch.set_default_device(device)
    torch.set_grad_enabled(not torch.is_grad_enabled())


def raise_after(action: Callable[[], None]) -> None:
    action()
    raise ZeroDivisionError


@pytest.mark.parametrize("device", [None, "meta", "cpu"])
@pytest.mark.parametrize("default", [None, "meta"])
@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_the_process_stays_as_it_was(
    default: str | None, device: str | None, mode: Callable[[], Any]
) -> None:
    torch.set_default_device(default)
    try:
        with mode(), Counts() as counts:
            before = process()
            with undisturbed():
                assert not torch.is_inference_mode_enabled()
                assert torch.zeros(()).device.type == "cpu"
                disturb(device)
            with pytest.raises(ZeroDivisionError), undisturbed():
                raise_after(lambda: disturb(device))
            assert process() == before
            seen = counts.seen
            torch.zeros(())
            assert counts.seen > seen
    finally:
        torch.set_default_device(None)
    assert torch.zeros(()).device.type == "cpu"


def test_gradients_stay_on_or_off() -> None:
    with undisturbed():
        assert torch.is_grad_enabled()
    with torch.no_grad(), undisturbed():
        assert not torch.is_grad_enabled()


def test_a_device_that_is_entered_stays_entered() -> None:
    with torch.device("meta"):
        with undisturbed():
            torch.set_default_device("cpu")
            assert torch.zeros(()).device.type == "cpu"
        assert torch.zeros(()).device.type == "meta"
    assert torch.zeros(()).device.type == "cpu"
