"""What `fit_widths` says, and what it refuses."""

import io
import itertools
import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import Tensor, nn

from constrained_cnn.constraints import Count, Macs
from constrained_cnn.errors import InvalidInputError, TracingError
from constrained_cnn.sizing import Fit, Fits, fit_widths
from constrained_cnn.sizing._costs import Factory, recover_costs
from constrained_cnn.sizing._space import as_space

IMAGE = (1, 8, 8)
RANGES = {"a": range(1, 9), "b": range(1, 9)}


def pair(a: int, b: int, kernel: int = 3) -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, a, kernel), nn.ReLU(), nn.Conv2d(a, b, kernel))


def fit(make: Callable[..., nn.Module] = pair, **changes: Any) -> Fits:
    given: dict[str, Any] = {
        "widths": RANGES,
        "input_shape": IMAGE,
        "target": {"parameters": 162},
        **changes,
    }
    return fit_widths(make, **given)


# The costs of `pair`, written down: a kernel has 9 taps, a layer a bias.
def test_the_polynomials_are_the_formulas() -> None:
    ranges = {"a": range(2, 40, 3), "b": range(5, 30)}
    factory = Factory(pair, as_space(ranges), IMAGE, None)
    costs = recover_costs(factory, ["parameters", "macs", "inference_peak"])
    for at, to in itertools.product(range(13), range(25)):
        a, b = 2 + 3 * at, 5 + to
        assert costs["parameters"]((at, to)) == 9 * a + a + 9 * a * b + b
        assert costs["macs"]((at, to)) == 36 * 9 * a + 16 * 9 * a * b
        assert costs["inference_peak"]((at, to)) == 4 * max(2 * 36 * a, 36 * a + 16 * b)
    assert factory.traces < 20


def test_a_cost_of_the_third_degree() -> None:
    def cubed(a: int, b: int) -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(64, a * b), nn.Linear(a * b, a))

    fits = fit(cubed, target={"parameters": 64 * 12 + 12 + 12 * 3 + 3})
    assert {"a": 3, "b": 4} in [one.widths for one in fits if one.distance == 0]
    for one in fits:
        a, b = one.widths.values()
        assert one.quantities["parameters"] == 65 * a * b + a * b * a + a


def test_a_width_that_is_divided() -> None:
    def squeezed(a: int, b: int) -> nn.Module:
        return nn.Sequential(nn.Conv2d(1, a, 1), nn.Conv2d(a, a // 4, 1), nn.Conv2d(a // 4, b, 1))

    coarse = {"a": range(4, 33, 4), "b": range(1, 9)}
    fits = fit(squeezed, widths=coarse)
    assert fits.best.widths["a"] % 4 == 0
    with pytest.raises(InvalidInputError) as caught:
        fit(squeezed, widths={"a": range(4, 33), "b": range(1, 9)})
    said = str(caught.value)
    assert said.startswith("make: at widths a=32, b=8 parameters should be ")
    assert "as in w // 4, take a range whose start and step are multiples of 4" in said
    assert said.endswith("look at a first")


def test_one_width_that_is_treated_otherwise_is_noticed_when_it_is_the_answer() -> None:
    def odd(a: int, b: int) -> nn.Module:
        return pair(a, b + 1) if (a, b) == (13, 28) else pair(a, b)

    goal = 10 * 13 + 9 * 13 * 28 + 28
    wide = {"a": range(1, 99), "b": range(1, 99)}
    with pytest.raises(InvalidInputError, match=f"a=13, b=28 parameters should be {goal:,}, going"):
        fit(odd, widths=wide, target={"parameters": goal}, order={"a": 13, "b": 28})


def test_a_network_that_is_another_one_at_other_widths() -> None:
    def skipping(a: int, b: int) -> nn.Module:
        return nn.Sequential(nn.Conv2d(1, a, 1), *([] if a == b else [nn.Conv2d(a, b, 1)]))

    with pytest.raises(InvalidInputError) as caught:
        fit(skipping)
    assert str(caught.value) == (
        "make=skipping: must give the same operations at all widths, and runs nothing at a=1, b=1 "
        "but 1: conv2d in its place at a=1, b=2; take ranges in which the network keeps its form"
    )
    # Also where the space begins otherwise: widths that are equal are always tried.
    with pytest.raises(InvalidInputError, match="must give the same operations at all widths"):
        fit(skipping, widths={"a": range(2, 300), "b": range(5, 310)})


def test_factories_that_fail() -> None:
    def even_only(a: int, b: int) -> nn.Module:
        if a % 2:
            raise ValueError("a must be even")
        return pair(a, b)

    with pytest.raises(InvalidInputError, match="raised ValueError at widths a=1, b=1: a must be"):
        fit(even_only)
    assert fit(even_only, widths={"a": range(2, 9, 2), "b": range(1, 9)})

    def untraceable(a: int, b: int) -> nn.Module:
        return nn.Sequential(nn.Conv2d(1, a, 9), nn.Conv2d(a, b, 1))

    with pytest.raises(TracingError, match=r"^at widths a=1, b=1: Sequential cannot take"):
        fit(untraceable)
    with pytest.raises(InvalidInputError, match=r"must give a torch\.nn\.Module, and gave a int"):
        fit(lambda a, b: a * b)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"make": 3}, "make=int: must be a function that takes the widths by name"),
        ({"make": pair(1, 1)}, "make=Sequential: must be a function"),
        ({"widths": {}}, "widths={}: must be a dict of ranges"),
        ({"widths": [3]}, "widths=[3]: must be a dict of ranges"),
        ({"widths": {3: 4}}, "widths: key 3 must be the name of a width"),
        ({"widths": {"a": range(3, 3), "b": 1}}, "widths: a=range(3, 3): is empty"),
        ({"widths": {"a": range(3), "b": 1}}, "a=range(0, 3): must hold positive widths only"),
        ({"widths": {"a": 0, "b": 1}}, "widths: a=0: must be a range, such as range(8, 65, 8), or"),
        ({"widths": {"a": [1, 2], "b": 1}}, "widths: a=[1, 2]: must be a range"),
        ({"widths": {"a": True, "b": 1}}, "widths: a=True: must be a range"),
        ({"widths": {"a": 3}}, "pair(a: int, b: int, kernel: int = 3)"),
        ({"widths": {**RANGES, "c": 3}}, "got an unexpected keyword argument 'c'"),
        ({"target": {"params": 3}}, "target: unknown key 'params'; did you mean 'parameters'?"),
        ({"target": {}}, "target={}: must be one quantity and its value"),
        ({"target": {"macs": 1, "parameters": 2}}, "what others may be goes into limits"),
        ({"target": ("macs", 1)}, "target=('macs', 1): must be one quantity and its value"),
        ({"target": {"macs": 1.5}}, "target: macs=1.5: must be an integer from 0"),
        ({"target": {"int8_peak": 9}}, "a peak can be a limit only: limits={'int8_peak': 9}"),
        ({"limits": {"mac": 3}}, "limits: unknown key 'mac'; did you mean 'macs'?"),
        ({"limits": 3}, "limits=3: must be a dict by quantity"),
        ({"limits": {"macs": (5, 4)}}, "macs=(5, 4): the least must not be more than the most"),
        ({"limits": {"macs": (None, None)}}, "must be the most, or the least and the most"),
        ({"limits": {"macs": (1, 2, 3)}}, "must be the most, or the least and the most"),
        ({"limits": {"macs": "4"}}, "limits: macs='4': must be an integer"),
        ({"order": "evn"}, "order='evn': must be one of 'even', 'fewest macs', 'most macs'; did"),
        ({"order": {"a": 3}}, "must say what every width is to be near, and lacks b"),
        ({"order": {"a": 3, "b": 3, "c": 4}}, "order: unknown key 'c'"),
        ({"order": {"a": 3, "b": 0}}, "order: b=0: must be an integer of at least 1"),
        ({"count": 0}, "count=0: must be an integer of at least 1"),
        ({"where": 3}, "where=3: must be a function, or None"),
        ({"rules": "yes"}, "constraints='yes': must be one of"),
        (
            {"limits": {"macs": 400}, "rules": Macs(at_least=401)},
            "macs must be at least 401 and at most 400: they contradict each other",
        ),
        ({"input_shape": None}, "give either the shape of one sample"),
    ],
)
def test_arguments_that_are_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        fit(**changes)
    assert said in str(caught.value)


def test_more_than_can_be_searched() -> None:
    names = [f"w{i}" for i in range(40)]

    def wide(**widths: int) -> nn.Module:
        layers: list[nn.Module] = [nn.Conv2d(1, widths["w0"], 1)]
        for one, other in itertools.pairwise(names):
            layers.append(nn.Conv2d(widths[one], widths[other], 1))
        return nn.Sequential(*layers)

    with pytest.raises(InvalidInputError, match="40 widths to choose take more than 500 traces"):
        fit(wide, widths={name: range(1, 9) for name in names})

    class Joined(nn.Module):
        def __init__(self, **widths: int) -> None:
            super().__init__()
            self.parts = nn.ModuleList(nn.Conv2d(1, width, 1) for width in widths.values())
            self.last = nn.Linear(sum(widths.values()), sum(widths.values()))

        def forward(self, x: Tensor) -> Tensor:
            return self.last(torch.cat([part(x).mean((2, 3)) for part in self.parts], dim=1))

    with pytest.raises(InvalidInputError, match="w0, w1, w2, w3 depend on one another and have"):
        fit(Joined, widths={name: range(1, 41) for name in names[:5]})


def test_answers_that_are_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("constrained_cnn.sizing._fit.MOST_BUILT", 3)
    with pytest.raises(InvalidInputError, match="after making 3 networks, of which 3 keep all"):
        fit(count=100)


def test_a_network_that_never_keeps_a_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("constrained_cnn.sizing._fit.MOST_REFUSED", 3)
    with pytest.raises(InvalidInputError, match="the best 3 networks") as raised:
        fit(rules=Count("dropout", at_least=1))
    assert "dropout, required at least 1, measured 0" in str(raised.value)
    assert "say by where= which widths may be" in str(raised.value)


def test_why_there_are_none() -> None:
    few = fit(limits={"macs": 400})
    assert len(few) == 0
    assert few.note == (
        f"No network has at most 400 MACs: the least in this space is {9 * (36 + 16)}, at a=1, b=1."
    )
    assert few.note in str(few)
    many = fit(limits={"weight_bytes": (10_000, None)})
    most = 4 * (8 * 10 + 8 * 72 + 8)
    assert many.note == (
        f"No network has at least 10,000 bytes of weights: the most in this space is {most:,}, at "
        "a=8, b=8."
    )
    both = fit(limits={"parameters": (160, 170), "macs": (4_000, 4_001)})
    assert both.note == "No network of this space meets all limits at once."
    picky = fit(where=lambda widths: widths["a"] > 9)
    assert (
        picky.note == "No network of this space meets all limits and what was asked of it at once."
    )
    with pytest.raises(
        InvalidInputError, match=r"^Networks nearest to 162 parameters, .*at most 400 MACs: "
    ):
        _ = few.best
    for said in (few._repr_html_(), few.to_markdown(), rendered(few)):
        assert "at most 400 MACs: the least in this" in " ".join(said.split())


def test_a_constant_part_of_a_peak_exceeds_its_limit() -> None:
    def falling(a: int, b: int) -> nn.Module:
        constant = [nn.Conv2d(1, 16, 1), nn.Conv2d(16, 16, 1)]
        return nn.Sequential(*constant, nn.Conv2d(16, 10 - a, 1), nn.Conv2d(10 - a, b, 1))

    two = 2 * 16 * 64 * 4  # what the first two layers give lives together
    assert fit(falling, limits={"inference_peak": two})
    fits = fit(falling, limits={"inference_peak": two - 1})
    assert fits.note == "No network of this space meets all limits at once."


def test_fewer_than_asked_for() -> None:
    fits = fit(widths={"a": range(1, 3), "b": 4}, count=5)
    assert [one.widths for one in fits] == [{"a": 2, "b": 4}, {"a": 1, "b": 4}]
    assert fits.note == "No other network of this space meets all limits."
    assert fits.traces == 2 + 2  # both of the space, and both answers


def rendered(fits: Fits) -> str:
    console = Console(file=io.StringIO(), width=120)
    console.print(fits)
    file = console.file
    assert isinstance(file, io.StringIO)
    return file.getvalue()


def test_faces() -> None:
    fits = fit(limits={"macs": (None, 9_999)}, count=2)
    # 9 a + a + 9 a b + b = 162 has no solution but nearest ones: a=8, b=1 and others.
    best = fits.best
    assert isinstance(best, Fit)
    assert best is fits[0]
    assert list(fits) == list(fits.answers)
    assert repr(fits) == (
        "Fits(Networks nearest to 162 parameters, at most 9,999 MACs; most even (least sum of "
        "squared log-ratios of one width to the next) first: 2 found)"
    )
    headings = fits.table().headings
    assert headings[:5] == ("", "a", "b", "parameters", "MACs")
    for said in (str(fits), fits.to_markdown(), fits._repr_html_(), rendered(fits)):
        assert f"{best.quantities['macs']:,}" in said
        assert f"{best.quantities['parameters']}" in said
        assert "off target" in said


def test_json() -> None:
    fits = fit(limits={"macs": 9_999}, order={"a": 2, "b": 4}, count=3)
    content = json.loads(fits.to_json())
    assert content == fits.to_dict()
    assert content["schema"] == "constrained_cnn.fits/1"
    assert content["limits"] == {"macs": [None, 9_999]}
    assert content["quantity"] == "parameters"
    assert content["answers"][0]["widths"] == fits.best.widths
    answers = tuple(Fit(**answer) for answer in content["answers"])
    limits = {name: (low, high) for name, (low, high) in content["limits"].items()}
    rest = {name: content[name] for name in ("quantity", "target", "order", "traces", "note")}
    assert Fits(**rest, limits=limits, answers=answers) == fits


def test_what_a_criterion_says() -> None:
    fewest, most = (fit(order=order, count=None) for order in ("fewest macs", "most macs"))
    assert [one.criterion for one in fewest] == [one.quantities["macs"] for one in fewest]
    assert [one.criterion for one in most] == [one.quantities["macs"] for one in most]
    assert fewest.best.criterion <= most.best.criterion
    near = fit(order={"a": 4, "b": 2}, widths={"a": 5, "b": 1})
    assert near.best.criterion == pytest.approx(1 / 16 + 1 / 4)


def test_several_inputs_and_fixed_widths() -> None:
    class Two(nn.Module):
        def __init__(self, a: int, b: int) -> None:
            super().__init__()
            self.one, self.other = nn.Conv2d(1, a, 1), nn.Conv2d(3, a, 1)
            self.last = nn.Conv2d(a, b, 1)

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return self.last(self.one(x) + self.other(y))

    fits = fit_widths(
        Two,
        {"a": range(1, 9), "b": 3},
        inputs=[(1, 8, 8), (3, 8, 8)],
        target={"parameters": 2 * 5 + 4 * 5 + 3 * 5 + 3},
    )
    assert fits.best.widths == {"a": 5, "b": 3}


def test_the_callers_random_state_stays_as_it_was() -> None:
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    fit(count=1)
    assert torch.equal(torch.rand(4), expected)


def test_why_there_are_none_that_keep_the_rules() -> None:
    few = fit(rules=Count("dropout", at_least=1), widths={"a": range(1, 3), "b": range(1, 3)})
    assert few.note.endswith("at once. The last that meets the limits breaks dropout.")


def test_an_order_far_from_the_widths_loses_no_answer() -> None:
    def flat(a: int, b: int) -> nn.Module:
        module = nn.Sequential(nn.Conv2d(1, 1, 1))
        module.register_parameter("p", nn.Parameter(torch.zeros(a + b)))
        return module

    widths = {"a": range(1000, 1300, 50), "b": range(1, 3)}
    for order in ("even", {"a": 1, "b": 1}):
        fits = fit_widths(
            flat, widths, (1, 4, 4), target={"parameters": 1202}, count=1, order=order
        )
        assert (fits.best.widths["a"], fits.best.distance) == (1200, 1)


def test_where_that_takes_widths_one_by_one_is_a_clear_error() -> None:
    with pytest.raises(InvalidInputError, match=r"where= raised TypeError: .*one mapping of"):
        fit(where=lambda a, b: a < b)
