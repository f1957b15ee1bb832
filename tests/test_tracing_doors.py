"""What is asked wrongly is said so at the door; what runs beside a trace does not disturb it."""

import threading
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import pytest
import torch
import torchvision
from gradients import Does
from torch import Tensor, nn

from constrained_cnn.budget import measure_budget
from constrained_cnn.errors import InvalidInputError, TracingError
from constrained_cnn.graph import AxisRead, Read, Work
from constrained_cnn.receptive_field import measure_receptive_field
from constrained_cnn.tracing import Call, elementwise, register_op, trace


@pytest.mark.parametrize(
    ("model", "shape", "message"),
    [
        (nn.Conv2d(3, 4, 3), (1, 28, 28), "conv2d expects 3 channels, and is given 1"),
        (nn.Conv2d(4, 4, 3, groups=2), (3, 8, 8), "conv2d expects 4 channels, and is given 3"),
        (nn.ConvTranspose2d(3, 4, 3), (1, 8, 8), "conv_transpose2d expects 3 channels"),
        (nn.Conv2d(1, 4, 5, padding=1), (1, 2, 9), "conv2d, 5 x 5, is larger than what .*4 x 11"),
        (nn.Conv2d(1, 4, 3), (1, 1, 28, 28), "a shape has no batch"),
        (nn.Linear(10, 4), (1, 28), "linear expects 10 features, and is given 28"),
        (nn.ReLU, (1, 8), "model=type: must be a torch.nn.Module; call it"),
        (nn.ReLU(), (10**9, 10**9), "must have at most 1,000,000,000,000 elements"),
        (nn.ReLU(), (10**30, 8), "must have at most"),
        (nn.ReLU(), torch.zeros(1, 8, 8), "input_shape=a Tensor: must be a shape"),
    ],
)
def test_the_commonest_mistakes(model: Any, shape: Any, message: str) -> None:
    with pytest.raises((InvalidInputError, TracingError), match=message):
        trace(model, shape)


def test_what_is_compiled_is_refused_with_what_to_give() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # newer releases of torch advise against it
        scripted = torch.jit.script(nn.ReLU())
    with pytest.raises(InvalidInputError, match="is TorchScript, which cannot be looked into"):
        trace(scripted, (3,))
    with pytest.raises(InvalidInputError, match=r"module '0'=.*TorchScript"):
        trace(nn.Sequential(scripted), (3,))
    with pytest.raises(InvalidInputError, match=r"is compiled; give .*model\._orig_mod"):
        trace(cast(nn.Module, torch.compile(nn.ReLU())), (3,))


def test_an_error_names_the_module_it_came_from() -> None:
    net = nn.Sequential(nn.ReLU(), nn.Sequential(nn.Conv2d(3, 4, 3)))
    with pytest.raises(TracingError, match=r"in '1\.0': conv2d expects 3 channels"):
        trace(net, (1, 8, 8))


def test_an_error_that_says_nothing_in_its_first_line() -> None:
    def fails(x: Tensor) -> Tensor:
        raise RuntimeError("\n\n  the reason\nand more")

    with pytest.raises(TracingError, match=r"cannot take an input of shape.*: the reason$"):
        trace(Does(fails), (1, 8, 8))


def test_modules_that_lie_too_deep_in_one_another() -> None:
    net: nn.Module = nn.ReLU()
    for _ in range(2000):
        net = nn.Sequential(net)
    with pytest.raises(TracingError, match="deeper than Python's limit"):
        trace(net, (1, 8, 8))


def test_other_threads_are_not_watched() -> None:
    stop = threading.Event()
    other = nn.Sequential(nn.Linear(3, 3), nn.ReLU())

    def work() -> None:
        while not stop.is_set():
            other(torch.zeros(1, 3))

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    model = nn.Sequential(nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU()), nn.MaxPool2d(2))
    try:
        for _ in range(10):
            layers = trace(model, (1, 8, 8)).layers
            assert [layer.name for layer in layers] == [
                *("0.0: conv2d", "0.1: relu", "1: max_pool2d")
            ]
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def test_traces_in_parallel() -> None:
    model = torchvision.models.shufflenet_v2_x0_5(weights=None)
    found: list[int] = []

    def measure() -> None:
        found.append(measure_budget(model, (3, 32, 32)).macs)

    threads = [threading.Thread(target=measure) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(found)) == 1
    assert len(found) == 4


class Tries(nn.Module):
    """Goes another way where one fails."""

    def __init__(self) -> None:
        super().__init__()
        self.bad, self.good = nn.Conv2d(3, 2, 3), nn.Conv2d(1, 2, 5)

    def forward(self, x: Tensor) -> Tensor:
        try:
            return self.bad(x)
        except (RuntimeError, ValueError):
            return self.good(x)


def test_a_module_that_raised_leaves_no_trace() -> None:
    graph = trace(nn.Sequential(Tries(), nn.ReLU()), (1, 8, 8))
    assert [layer.name for layer in graph.layers] == ["0.good: conv2d", "1: relu"]
    assert set(graph.modules) == {"0.good", "0", "1", ""}


def test_a_shared_module_answers_to_each_of_its_names() -> None:
    conv = nn.Conv2d(1, 1, 3)
    net = nn.Sequential(conv, nn.ReLU(), conv)
    sizes = [measure_receptive_field(net, (1, 9, 9), layer=path).axes[0].size for path in "02"]
    assert sizes == [5, 5]  # a path means the last call
    first = measure_receptive_field(net, (1, 9, 9), layer="0: conv2d")
    assert first.axes[0].size == 3
    second = measure_receptive_field(net, (1, 9, 9), layer="0: conv2d #2")
    assert second.axes[0].size == 5


def test_a_product_from_the_right() -> None:
    def run(x: Tensor) -> Tensor:
        return x.__rmatmul__(torch.ones(5, x.shape[-2], device=x.device))

    assert measure_budget(Does(run), (2, 4, 10)).macs == 2 * 5 * 4 * 10


@dataclass(slots=True)
class Notes:
    shift: float
    scale: Tensor


class Holds(nn.Module):
    """Holds a dataclass with slots, and a list that holds itself."""

    def __init__(self) -> None:
        super().__init__()
        self.notes = Notes(1.0, torch.ones(1))
        self.loop: list[Any] = []
        self.loop.append(self.loop)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.notes.shift


def test_odd_attributes() -> None:
    assert [layer.op for layer in trace(Holds(), (1, 8, 8)).layers] == ["add"]


# Rules of one's own


def nothing(call: Call) -> Work:
    return Work()


RULES: list[tuple[str, Callable[[Call], Any], Callable[[Call], Any], str]] = [
    ("no_work", elementwise, lambda call: None, "work= of 'erfinv' gave None: must be a Work"),
    ("negative", elementwise, lambda call: Work(macs=-5), "must be a Work of integers from 0"),
    ("a half", elementwise, lambda call: Work(macs=1.5), "must be a Work"),  # type: ignore[arg-type]
    ("no_reads", lambda call: None, nothing, "reads= of 'erfinv' gave None: must be one tuple"),
    ("too few", lambda call: (), nothing, "for each of its 1 outputs"),
    ("no read", lambda call: ((3,),), nothing, r"gave \(3,\): must be one tuple"),
    ("axes", lambda call: ((Read(0, (AxisRead(0),)),),), nothing, "for each of the 4 axes"),
    ("entries", lambda call: ((Read(0, (0, 1, 2, 3)),),), nothing, "AxisRead or None"),  # type: ignore[arg-type]
    ("fails", lambda call: 1 / 0, nothing, "reads= of 'erfinv' failed: ZeroDivisionError"),
]


@pytest.mark.parametrize(
    ("reads", "work", "message"), [pytest.param(*rule[1:], id=rule[0]) for rule in RULES]
)
def test_what_a_rule_gives_is_looked_at(reads: Any, work: Any, message: str) -> None:
    register_op("erfinv", reads=reads, work=work)
    try:
        with pytest.raises(InvalidInputError, match=message):
            trace(Does(torch.erfinv), (1, 8, 8))
    finally:
        register_op("erfinv", like="tanh")
