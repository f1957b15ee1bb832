"""No rule passes an operation that breaks it, wherever in a network it stands.

What an operation does is found by running it on numbers, not by asking the library: a function that
is not linear could be an activation.
"""

import functools
import warnings
from collections.abc import Callable, Iterator

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from constrained_cnn import check
from constrained_cnn.constraints import CleanPrediction, Count, Rule
from constrained_cnn.errors import ConstrainedCNNError
from constrained_cnn.graph import KINDS
from constrained_cnn.tracing.operations import BUILT_IN

Function = Callable[[Tensor], Tensor]
SHAPE = (4, 6, 6)

# What the rules call by another name than activation, and do not forbid.
ALLOWED = ("max_pool", "lp_pool", "softmax", "softmin", "attention")
# Where they sum over an axis they are no activation: attention is made of them.
PRODUCTS = ("conv", "matmul", "mm", "bmm", "baddbmm", "addmm", "addbmm")
# They only round.
CASTS = ("bfloat16", "float", "half")
# By name, for the library is what is tested: these are norms.
NORMS = ("batch_norm", "group_norm", "instance_norm", "layer_norm", "rms_norm", "response_norm")


def _first(outcome: object) -> Tensor | None:
    while isinstance(outcome, tuple | list) and outcome:
        outcome = outcome[0]
    return outcome if isinstance(outcome, Tensor) and outcome.ndim else None


def _ways(function: Callable[..., object]) -> Iterator[Function]:
    """Yield ways to call a function with one map, each to be tried."""
    arguments: list[Callable[[Tensor], tuple[object, ...]]] = [
        lambda x: (x,),
        lambda x: (x, 1),
        lambda x: (x, 0.5),
        lambda x: (x, 2),
        lambda x: (x, x),
        lambda x: (x, 0.1, 0.2),
        lambda x: (x, x, x),
        lambda x: (x, (3, 3)),
        lambda x: (x, [2]),
        lambda x: (x, x, 0.5),
        lambda x: (x, torch.ones(4, device=x.device)),
        lambda x: (x, x > 0),
        lambda x: (x > 0, x, -x),
        lambda x: (x, x > 0, 0.5),
        lambda x: (x, 1, 1),
        lambda x: (x, 1, 0, 2),
    ]
    for given_by in arguments:

        def call(x: Tensor, given_by: Callable[[Tensor], tuple[object, ...]] = given_by) -> Tensor:
            made = _first(function(*given_by(x)))
            assert made is not None
            return made.to(x.dtype)

        yield call


def _wide(function: Function) -> Function:
    """Return what a function makes of each column of channels, as many channels again."""
    return lambda x: function(x).to(x.dtype).expand_as(x)


# What wants to be called otherwise than with a map and a number.
WAYS: dict[str, Function] = {
    "amax": _wide(lambda x: x.amax(1, keepdim=True)),
    "amin": _wide(lambda x: x.amin(1, keepdim=True)),
    "argmax": _wide(lambda x: x.argmax(1, keepdim=True)),
    "bitwise_and": _wide(lambda x: (x > 0) & (x > 0.5)),
    "bitwise_not": _wide(lambda x: ~(x > 0)),
    "bitwise_or": _wide(lambda x: (x > 0) | (x > 0.5)),
    "bitwise_xor": _wide(lambda x: (x > 0) ^ (x > 0.5)),
    "batch_norm": lambda x: F.batch_norm(x, None, None, training=True),
    "baddbmm": lambda x: torch.baddbmm(x[0], x[0], x[0]).expand_as(x),
    "cat": lambda x: torch.cat([x[:, :2], x[:, :2] ** 2], 1),
    "einsum": lambda x: torch.einsum("bchw,bchw->bchw", x, x),
    "fake_quantize_per_tensor_affine": lambda x: torch.fake_quantize_per_tensor_affine(
        x, 0.1, 0, 0, 255
    ),
    "getitem": lambda x: x[:, [0, 1, 2, 3]].relu(),
    "kthvalue": _wide(lambda x: x.kthvalue(2, 1, keepdim=True).values),
    "layer_norm": lambda x: F.layer_norm(x, x.shape[1:]),
    "linalg_vector_norm": _wide(lambda x: torch.linalg.vector_norm(x, dim=1, keepdim=True)),
    "logsumexp": _wide(lambda x: x.logsumexp(1, keepdim=True)),
    "matmul": lambda x: (x[..., None, None] @ x[..., None, None])[..., 0, 0],
    "median": _wide(lambda x: x.median(1, keepdim=True).values),
    "norm": _wide(lambda x: x.norm(dim=1, keepdim=True)),
    "one_hot": lambda x: F.one_hot((x > 0).long(), 2)[..., 0].to(x.dtype),
    "prod": _wide(lambda x: x.prod(1, keepdim=True)),
    "rms_norm": lambda x: F.rms_norm(x, x.shape[1:]),
    "scaled_dot_product_attention": lambda x: F.scaled_dot_product_attention(x, x, x),
    "std": _wide(lambda x: x.std(1, keepdim=True)),
    "var": _wide(lambda x: x.var(1, keepdim=True)),
}


def _functions(op: str) -> Iterator[Function]:
    """Yield each way in which an operation of that name runs on a map."""
    if op in WAYS:
        yield WAYS[op]
    homes = (F, torch, Tensor, torch.special)
    named = [function for home in homes if (function := getattr(home, op, None)) is not None]
    named += [function] if (function := getattr(Tensor, f"__{op}__", None)) else []
    for function in named if not op.startswith("_") else ():
        yield from _ways(function)


@functools.cache
def usable() -> dict[str, list[Function]]:
    """Return ways of each operation that run with numbers and without, three of each at most."""
    found: dict[str, list[Function]] = {}
    sample = (torch.rand(2, *SHAPE) + 0.1).requires_grad_()  # or it cannot stand in training
    empty = torch.empty(2, *SHAPE, device="meta")
    for op in sorted(BUILT_IN):
        for way in _functions(op):
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    made, shape = way(sample.clone()), way(empty.clone()).shape
            except Exception:  # noqa: BLE001 - it wants to be called otherwise
                continue
            if made.shape == shape and made.ndim == 4 and len(made) == 2:
                found.setdefault(op, []).append(way)
            if len(found.get(op, ())) == 3:
                break
    return found


def is_linear(function: Function) -> bool:
    """Return whether a function is linear up to a constant, as far as some numbers tell."""
    draws = torch.Generator().manual_seed(3)
    a, b = (torch.randn(2, *SHAPE, generator=draws, dtype=torch.float64) for _ in range(2))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            origin = function(torch.zeros_like(a))
            parts = [function(x.clone()) - origin for x in (a, b, 3 * a - 2 * b)]
    except Exception:  # noqa: BLE001 - then it is not told from one that is not
        return False
    return torch.allclose(parts[2], 3 * parts[0] - 2 * parts[1], atol=1e-9)


def mixes(function: Function) -> bool:
    """Return whether an output depends on other units than that of its own place."""
    a = torch.rand(2, *SHAPE, dtype=torch.float64)
    b = a.clone()
    b[0, 0, 0, 0] += 1
    return bool((function(a) != function(b)).sum() > 1)


class Net(nn.Module):
    """A convolution, a block, a last convolution; an operation stands at one of three places."""

    def __init__(self, function: Function, place: str) -> None:
        super().__init__()
        self.function, self.place = function, place
        self.first, self.last = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        x = self._maybe(x, "block")
        if self.place == "block":  # whatever came out, a last convolution follows
            x = F.conv2d(x, torch.ones(1, x.shape[1], 1, 1, device=x.device)).expand(-1, 4, -1, -1)
        x = self.last(x)
        x = self._maybe(x, "zone")
        return self._maybe(x, "training") if self.training else x

    def _maybe(self, x: Tensor, place: str) -> Tensor:
        return self.function(x) if self.place == place else x


def verdict(function: Function, place: str, rule: Rule) -> str:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # or what warns in training mode would not run there
            return check(Net(function, place), (1, 6, 6), rule).findings[0].verdict.value
    except ConstrainedCNNError:
        return "refused"


def forbidding(op: str, place: str) -> list[Rule]:
    """Return the rules that an operation that is not linear breaks, or may break, at a place."""
    if any(word in op for word in NORMS):
        kind: list[Rule] = [Count("norm", at_most=0)]
    elif "dropout" in op:
        kind = [Count("dropout", at_most=0)]
    else:
        kind = [Count("activation", at_most=0)]
    return kind if place == "block" else [*kind, CleanPrediction()]


def look_at(op: str, number: int, place: str) -> None:
    ways = usable()[op]
    function = ways[number % len(ways)]
    sample = torch.rand(2, *SHAPE) + 0.1
    drops = "dropout" in op and not torch.equal(function(sample.clone()), sample)
    if op in CASTS or any(word in op for word in ALLOWED):
        return
    if (is_linear(function) and not drops) or (op.startswith(PRODUCTS) and mixes(function)):
        return
    if drops and place != "training":
        return  # in evaluation mode it does nothing
    for rule in forbidding(op, place):
        assert verdict(function, place, rule) != "pass", (op, place, rule)


PLACES = st.sampled_from(["zone", "block", "training"])


@settings(max_examples=300)
@given(st.data())
def test_no_rule_passes_what_it_forbids(data: st.DataObject) -> None:
    look_at(data.draw(st.sampled_from(sorted(usable()))), data.draw(st.integers(0, 9)),
            data.draw(PLACES))  # fmt: skip


@pytest.mark.slow
@settings(max_examples=3000)
@given(st.data())
def test_no_rule_passes_what_it_forbids_in_many_networks(data: st.DataObject) -> None:
    look_at(data.draw(st.sampled_from(sorted(usable()))), data.draw(st.integers(0, 9)),
            data.draw(PLACES))  # fmt: skip


def test_most_operations_of_the_table_are_tried() -> None:
    """What wants more than a map, such as a convolution, is tried by name elsewhere."""
    assert len(usable()) >= 170


def test_every_operation_has_a_kind() -> None:
    plain = {name: one.kind for name, one in BUILT_IN.items() if isinstance(one.kind, str)}
    assert set(plain.values()) <= set(KINDS)
    nothing_known = [name for name, kind in plain.items() if kind == "unknown"]
    assert all(BUILT_IN[name].stands_for is not None for name in nothing_known)
