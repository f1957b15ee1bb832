"""Proofs of receptive fields by finite changes of the image, which no trick of autograd hides."""

import os
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from gradients import Does
from torch import Tensor, nn

from constrained_cnn.errors import TracingError
from constrained_cnn.proof import FieldCheck, FieldProof, verify_receptive_field
from constrained_cnn.receptive_field import AxisField, ReceptiveField, measure_receptive_field

SHAPE = (2, 15, 15)
UNIT = 7


def conv(channels: int = 2, kernel: int = 3, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(channels, channels, kernel, **options)


def blur(x: Tensor) -> Tensor:
    return F.avg_pool2d(x, 5, 1, 2)


def around(does: Callable[[Tensor], Tensor], **options: Any) -> nn.Module:
    """Return two convolutions with something between them: 5 wide if it looks at one place."""
    layers = [conv(padding=1, **options) for _ in range(2)]
    return Does(lambda x, a, b: b(does(a(x))), *layers).eval()


def rows_that_move(network: nn.Module, unit: int) -> tuple[int, int]:
    """Return the first and last row of an image that move a unit, changed one by one."""
    image, rows = torch.randn(1, *SHAPE), []
    with torch.no_grad():
        before = network(image.clone())[:, :, unit]
        for row in range(SHAPE[1]):
            changed = image.clone()
            changed[:, :, row] += 9
            if not torch.equal(network(changed)[:, :, unit], before):
                rows.append(row)
    return rows[0], rows[-1]


def of_method(proof: FieldProof, method: str) -> list[FieldCheck]:
    return [check for check in proof.checks if check.method == method]


def claimed(network: nn.Module, width: int) -> ReceptiveField:
    """Return the claim that units see that many positions around their own, along both axes."""
    right = measure_receptive_field(network, SHAPE)
    span = (-(width // 2), width // 2)
    axes = tuple(replace(axis, field=AxisField((span,))) for axis in right.axes)
    return replace(right, axes=axes)


# What is hidden from the analysis and from autograd


class Straight(torch.autograd.Function):
    """Looks at its neighbours, and says that it does not; no NaN comes from them."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x + blur(torch.nan_to_num(x))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient


def by_data(x: Tensor) -> Tensor:
    x.data = blur(x)
    return x


def by_data_without_nan(x: Tensor) -> Tensor:
    x.data = x + blur(torch.nan_to_num(x))
    return x


def by_data_of_one_sign(x: Tensor) -> Tensor:
    x.data = x + F.relu(-blur(x))
    return x


def by_data_a_little(x: Tensor) -> Tensor:
    x.data = x + 1e-6 * blur(x)
    return x


def by_writing_through_data(x: Tensor) -> Tensor:
    x.data.copy_(blur(x))
    return x


def by_set(x: Tensor) -> Tensor:
    with torch.no_grad():
        x.set_(blur(x))  # type: ignore[call-overload]
    return x


def by_memory(x: Tensor) -> Tensor:
    x.untyped_storage().copy_(blur(x).detach().contiguous().untyped_storage())
    return x


def by_numpy(x: Tensor) -> Tensor:
    return torch.from_numpy(blur(x).detach().numpy()).to(x.dtype)


def by_numpy_in_place(x: Tensor) -> Tensor:
    x.detach().numpy()[...] = blur(x).detach().numpy()
    return x


def by_a_list(x: Tensor) -> Tensor:
    return torch.tensor(blur(x).tolist(), dtype=x.dtype)


def by_another_thread(x: Tensor) -> Tensor:
    thread = threading.Thread(target=by_data, args=(x,))
    thread.start()
    thread.join()
    return x


def by_operations_that_are_not_seen(x: Tensor) -> Tensor:
    with torch._C.DisableTorchFunction():
        return by_data(x)


def by_no_gradient(x: Tensor) -> Tensor:
    with torch.no_grad():
        hidden = blur(x)
    return x + hidden


HIDDEN: list[Callable[[Tensor], Tensor]] = [
    Straight.apply,
    by_data,
    by_data_without_nan,
    by_data_of_one_sign,
    by_data_a_little,
    by_writing_through_data,
    by_set,
    by_memory,
    by_numpy,
    by_numpy_in_place,
    by_a_list,
    by_another_thread,
    by_operations_that_are_not_seen,
    by_no_gradient,
]


@pytest.mark.parametrize("does", HIDDEN, ids=lambda does: getattr(does, "__name__", ""))
@pytest.mark.parametrize("weights", [True, False])
def test_what_is_hidden_is_refused_or_found(
    does: Callable[[Tensor], Tensor], weights: bool
) -> None:
    network = around(does)
    wide = (UNIT - 4, UNIT + 4)
    assert rows_that_move(network, UNIT) == wide or does is by_data_of_one_sign
    with suppress(TracingError):
        right = measure_receptive_field(network, SHAPE).axes[0].interval(UNIT) == wide
        ok = verify_receptive_field(network if weights else network.to("meta"), SHAPE).ok
        if not right:
            assert ok is False
        elif does is not by_data_of_one_sign:  # of which a gradient sees less, and no change shows
            assert ok is not False


def test_what_is_hidden_is_found_where_units_are_told_one_by_one() -> None:
    network = around(by_data, padding_mode="circular")
    with suppress(TracingError):
        field = claimed(network, 5)
        assert verify_receptive_field(network, SHAPE, field=field, units=[UNIT]).ok is False


@pytest.mark.parametrize("width", [5, 7])
def test_a_change_refutes_what_no_other_method_does(width: int) -> None:
    network = around(Straight.apply)
    proof = verify_receptive_field(network, SHAPE, field=claimed(network, width), units=[UNIT])
    assert proof.ok is False
    for check in of_method(proof, "change"):
        assert check.ok is False
        assert check.found == rows_that_move(network, UNIT) == (UNIT - 4, UNIT + 4)
        assert check.note == "with the network's own weights"
    if width == 5:  # NaN is stopped, and the gradient is a lie
        assert all(check.ok for check in proof.checks if check.method != "change")


# What is right holds


def deep() -> nn.Module:
    return nn.Sequential(*[conv(padding=1) for _ in range(40)])


HOLDS: dict[str, nn.Module] = {
    "draws as many numbers as there are negatives": Does(
        lambda x, a: F.rrelu(a(x), training=True), conv(padding=1)
    ),
    "draws a mask": Does(lambda x, a: F.dropout(a(x), 0.5, True), conv(padding=1)),
    "no value for negatives": Does(lambda x, a: a(x).log(), conv(padding=1)),
    "overflows": Does(lambda x, a: a(x).exp(), conv(padding=1)),
    "saturates": Does(lambda x, a: F.relu6(a(x)).sigmoid(), conv(padding=1)),
    "through weights of 0": nn.Upsample(scale_factor=3, mode="bilinear"),
    "deep": deep(),
}


@pytest.mark.parametrize("name", HOLDS)
def test_right_fields_hold(name: str) -> None:
    proof = verify_receptive_field(HOLDS[name].eval(), SHAPE)
    assert proof.ok is True, str(proof)


def test_a_change_shows_what_rounding_would_swallow() -> None:
    checks = of_method(verify_receptive_field(deep(), SHAPE), "change")
    assert all(check.ok for check in checks)


# What differs from call to call


class Counts(nn.Module):
    def __init__(self, does: Callable[[Tensor, int], Tensor]) -> None:
        super().__init__()
        self.calls, self.does, self.layer = 0, does, conv(padding=1)

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.does(self.layer(x), self.calls)


DIFFERS: dict[str, Callable[[Tensor, int], Tensor]] = {
    "grows": lambda x, calls: x * calls,
    "takes turns": lambda x, calls: x + calls % 2,
    "the first call": lambda x, calls: x + (calls == 1),
    "the system's random numbers": lambda x, calls: x * (1 + os.urandom(4)[0]),
}


@pytest.mark.parametrize("name", DIFFERS)
def test_a_forward_that_differs_from_call_to_call_proves_nothing(name: str) -> None:
    with suppress(TracingError):
        proof = verify_receptive_field(Counts(DIFFERS[name]), SHAPE)
        assert proof.ok is None
        assert {check.note for check in proof.checks} == {
            "the forward gives something else from call to call"
        }


# Two of three


@pytest.mark.parametrize(
    ("oks", "ok"),
    [
        ((True, True, True), True),
        ((True, None, True), True),
        ((None, True, True), True),
        ((True, True, None), True),
        ((None, True, None), None),
        ((None, None, True), None),
        ((True, True, False), False),
    ],
)
def test_two_methods_must_hold_for_each_unit(oks: tuple[bool | None, ...], ok: Any) -> None:
    methods: Any = ("nan", "gradient", "change")
    pairs = zip(methods, oks, strict=True)
    checks = tuple(FieldCheck(0, 3, method, (1, 2), (1, 2), it) for method, it in pairs)
    proved = tuple(replace(check, unit=4, ok=True) for check in checks)
    assert FieldProof("Net", "0", (*checks, *proved)).ok is ok
