"""Strategies that draw rules of every kind, and small networks for them to be judged on."""

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from hypothesis import strategies as st
from random_networks import Does, networks
from torch import Tensor, nn

from constrained_cnn.constraints import (
    Accuracy,
    AllOf,
    AnyOf,
    Augmentation,
    BatchSize,
    BestAccuracy,
    BlockOrder,
    CleanPrediction,
    ConvsBeforePool,
    Count,
    CoversInput,
    DataSet,
    Distance,
    Dropout,
    Epochs,
    EveryNormFolds,
    FieldAtPools,
    FieldSize,
    LastEpochs,
    Macs,
    Measured,
    Memory,
    Normalisation,
    Not,
    Padding,
    Parameters,
    Rule,
    Seeds,
    TestUnseen,
    WeightBytes,
)
from constrained_cnn.record import RunRecord

KINDS_OF_LAYERS = (
    *("conv", "depthwise", "dilated", "strided", "transposed_conv", "fully_connected"),
    *("max_pool", "avg_pool", "pool", "batch_norm", "group_norm", "instance_norm", "layer_norm"),
    *("norm", "relu", "activation", "softmax", "dropout"),
)
NUMBER_LIMITS = ("at_least", "at_most", "exactly", "one_of", "near")
# Multiples of a power of two: their sums and differences are exact.
percents = st.integers(3, 400).map(lambda quarters: quarters / 4 if quarters > 3 else 0.0)


@st.composite
def limits(
    draw: st.DrawFn, numbers: st.SearchStrategy[Any], most_apart: float = 10**9
) -> dict[str, Any]:
    """Draw limits that do not contradict each other: all of them allow one number."""
    allowed = draw(numbers)
    chosen = draw(st.sets(st.sampled_from(NUMBER_LIMITS), min_size=1, max_size=3))
    chosen -= {"one_of"} if "exactly" in chosen else set()
    found: dict[str, Any] = {}
    if "at_least" in chosen:
        found["at_least"] = min(allowed, draw(numbers))
    if "at_most" in chosen:
        found["at_most"] = max(allowed, draw(numbers))
    if "exactly" in chosen:
        found["exactly"] = allowed
    if "one_of" in chosen:
        found["one_of"] = tuple(draw(st.permutations([allowed, *draw(st.lists(numbers))])))
    if "near" in chosen:
        found["near"] = draw(numbers)
        found["within"] = min(abs(found["near"] - allowed) + draw(numbers), most_apart)
    return found


@st.composite
def looser(draw: st.DrawFn, rule: Measured, numbers: st.SearchStrategy[Any]) -> Measured:
    """Draw the same rule with limits that allow all that they allowed, and perhaps more."""
    lowest = type(rule).lowest or 0
    highest = 100 if rule.unit == "%" else None
    found: dict[str, Any] = {}
    if rule.at_least is not None:
        less = max(lowest, rule.at_least - draw(numbers))
        found["at_least"] = 0 if highest and less < 1 else less  # a share is no percentage
    if rule.at_most is not None:
        more = rule.at_most + draw(numbers)
        found["at_most"] = more if highest is None else min(more, highest)
    if rule.one_of:
        found["one_of"] = (*rule.one_of, *draw(st.lists(numbers)))
    if rule.within is not None:
        more = rule.within + draw(numbers)
        found["within"] = more if highest is None else min(more, highest)
    given_up = [name for name in NUMBER_LIMITS if getattr(rule, name) not in (None, ())]
    nothing: dict[str, Any] = dict.fromkeys(NUMBER_LIMITS) | {"one_of": ()}
    for name in draw(st.sets(st.sampled_from(given_up), max_size=len(given_up) - 1)):
        found[name] = nothing[name]
        if name == "near":
            found["within"] = None
    return dataclasses.replace(rule, **found)


cells = st.one_of(st.none(), st.integers(0, 4), st.tuples(st.integers(0, 3), st.integers(0, 3)))
whether = st.one_of(st.none(), st.booleans())
names = st.one_of(
    st.just(""), st.sampled_from(["R1", "the first", "a 'b' \"c\"", "größe\n\t= [x]"])
)
words = st.sampled_from(["mnist", "digits", "fashion"])
counts = st.integers(0, 6)
sizes = st.integers(1, 30)


def measured(
    kind: Callable[..., Measured],
    numbers: st.SearchStrategy[Any],
    most_apart: float = 10**9,
    **options: st.SearchStrategy[Any],
) -> st.SearchStrategy[Measured]:
    """Rules of a kind that put limits to a number."""
    return st.builds(
        lambda limits, rest: kind(**limits, **rest),
        limits(numbers, most_apart),
        st.fixed_dictionaries({"name": names, **options}),
    )


def _of_accuracy(
    kind: Callable[..., Measured], **options: st.SearchStrategy[Any]
) -> st.SearchStrategy[Measured]:
    images = st.sampled_from(["test", "validation"])
    data = st.one_of(st.none(), words)
    return measured(kind, percents, 100, data=data, of=images, **options)


_CONVOLUTIONS = ("conv", "depthwise", "dilated")
_SLIDING = (*_CONVOLUTIONS, "strided", "transposed_conv", "max_pool", "avg_pool", "pool")


def count_of(**given: Any) -> Count:
    """Make a count with those filters that its kind of layers has."""
    layer = given["layer"]
    if layer not in _SLIDING:
        given |= {"kernel": None, "stride": None, "dilation": None}
    if layer not in (*_CONVOLUTIONS, "transposed_conv", "fully_connected"):
        given["bias"] = None
    if layer not in _CONVOLUTIONS:
        given["narrows"] = None
    return Count(**given)


NUMBERS: dict[str, st.SearchStrategy[Any]] = {
    "parameters": st.integers(0, 400),
    "macs": st.integers(0, 20_000),
    "memory": st.integers(0, 20_000),
    "weight_bytes": st.integers(0, 2_000),
    "receptive_field": sizes,
    "field_at_pools": sizes,
    "count": counts,
    "distance": counts,
    "convs_before_pool": counts,
    "epochs": st.integers(0, 40),
    "batch_size": st.integers(1, 256),
    "accuracy": percents,
    "best_accuracy": percents,
    "last_epochs": percents,
    "seeds": counts,
}
MEASURED: dict[str, st.SearchStrategy[Measured]] = {
    "parameters": measured(
        Parameters,
        NUMBERS["parameters"],
        count=st.sampled_from(["total", "trainable", "frozen", "deployed", "unused", "buffers"]),
    ),
    "macs": measured(Macs, NUMBERS["macs"]),
    "memory": measured(
        Memory,
        NUMBERS["memory"],
        accounting=st.sampled_from(
            [
                "inference peak",
                "int8 peak",
                "saved for backward",
                "float16, with the input",
                "int8, fused, depthwise in place",
            ]
        ),
    ),
    "weight_bytes": measured(
        WeightBytes,
        NUMBERS["weight_bytes"],
        stored_as=st.sampled_from(["as stored", "float32", "int8"]),
    ),
    "receptive_field": measured(FieldSize, sizes, layer=st.sampled_from([None, None, "0", "no"])),
    "field_at_pools": measured(
        FieldAtPools,
        sizes,
        counted=st.sampled_from(["stage", "image"]),
        pools=st.sampled_from(["max", "every"]),
    ),
    "count": measured(
        count_of,
        counts,
        layer=st.sampled_from([*KINDS_OF_LAYERS, "global_average_pool"]),
        kernel=cells,
        stride=cells,
        dilation=cells,
        bias=whether,
        narrows=whether,
    ),
    "distance": measured(Distance, counts, layer=st.sampled_from(KINDS_OF_LAYERS)),
    "convs_before_pool": measured(ConvsBeforePool, counts, kernel=cells),
    "epochs": measured(Epochs, NUMBERS["epochs"]),
    "batch_size": measured(BatchSize, NUMBERS["batch_size"]),
    "accuracy": _of_accuracy(Accuracy, over_seeds=st.sampled_from(["each", "mean"])),
    "best_accuracy": _of_accuracy(BestAccuracy),
    "last_epochs": _of_accuracy(LastEpochs, last=st.integers(1, 20)),
    "seeds": measured(Seeds, counts, from_zero=st.booleans()),
}
_amounts = st.sampled_from([0.0, 0.1, 5.0, 5])
_orders = st.lists(
    st.sampled_from(["relu", "activation", "batch_norm", "norm", "dropout"]), max_size=4
)
_channels = st.integers(1, 3).flatmap(
    lambda count: st.tuples(*[st.tuples(*[st.floats(0, 1)] * count)] * 2)
)
OTHERS: dict[str, st.SearchStrategy[Rule]] = {
    "covers_input": st.builds(CoversInput, layer=st.sampled_from([None, None, "0"]), name=names),
    "dropout": st.builds(
        Dropout,
        st.sampled_from([0, 0.0, 0.1, 0.25]),
        drops=st.sampled_from([None, "elementwise", "channel", "alpha"]),
        off_in_evaluation=st.booleans(),
        name=names,
    ),
    "padding": st.builds(
        Padding,
        st.one_of(st.just("same"), cells.filter(lambda value: value is not None)),
        kernel=cells,
        name=names,
    ),
    "block_order": st.builds(
        BlockOrder,
        _orders.map(lambda rest: ("conv", *rest)),
        kernel=cells,
        but_last=st.booleans(),
        name=names,
    ),
    "clean_prediction": st.builds(
        CleanPrediction,
        st.lists(st.sampled_from(KINDS_OF_LAYERS), min_size=1, max_size=3),
        name=names,
    ),
    "augmentation": st.builds(Augmentation, _amounts, _amounts, _amounts, name=names),
    "normalisation": st.builds(
        lambda numbers, **rest: Normalisation(*numbers, **rest),
        _channels,
        data=st.one_of(st.none(), words),
        within=st.floats(0, 1),
        name=names,
    ),
    "data_set": st.builds(
        DataSet,
        words,
        train_checksum=st.sampled_from([None, "71d3be42"]),
        test_checksum=st.sampled_from([None, "4718853e"]),
        name=names,
    ),
    "norms_fold": st.builds(EveryNormFolds, name=names),
    "test_unseen": st.builds(TestUnseen, name=names),
}
SIMPLE: dict[str, st.SearchStrategy[Rule]] = {**MEASURED, **OTHERS}
simple_rules = st.one_of(*SIMPLE.values())


def joined(rules: st.SearchStrategy[Rule]) -> st.SearchStrategy[Rule]:
    """Rules made of others."""
    several = st.lists(rules, min_size=1, max_size=3)
    return st.one_of(
        st.builds(AllOf, several, name=names),
        st.builds(AnyOf, several, name=names),
        st.builds(Not, rules, name=names),
    )


rules = st.recursive(simple_rules, joined, max_leaves=5)


class Twigs(nn.Module):
    """A layer that matters, beside one whose result is thrown away and one never called."""

    def __init__(self, live: nn.Module, dead: nn.Module) -> None:
        super().__init__()
        self.live, self.dead, self.idle = live, dead, nn.Dropout(0.1)

    def forward(self, x: Tensor) -> Tensor:
        self.dead(x)
        return self.live(x)


class NoisyInTraining(nn.Module):
    """Draws numbers that may or may not be a dropout."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rand_like(x) if self.training else x


class DropsAlways(nn.Module):
    """A dropout that evaluation mode does not turn off."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.dropout(x, 0.1, training=True)


# Each takes (CHANNELS, 13, 12) down to a size that the next can take.
_LAYERS: list[Callable[[], nn.Module]] = [
    *(
        lambda k=k, p=p, b=b: nn.Conv2d(2, 2, k, padding=p, bias=b)
        for k, p, b in [(3, 1, False), (3, 0, True), (1, 0, True), ((3, 1), (1, 0), False)]
    ),
    lambda: nn.Conv2d(2, 2, 3, padding=2, dilation=2, groups=2),
    lambda: nn.Sequential(nn.Conv2d(2, 4, 1), nn.ReLU(), nn.Conv2d(4, 2, 1)),
    lambda: nn.Conv2d(2, 2, 3, stride=2, padding=1),
    lambda: nn.ConvTranspose2d(2, 2, 2),
    nn.ReLU,
    nn.SiLU,
    lambda: nn.BatchNorm2d(2),
    lambda: nn.GroupNorm(1, 2),
    *(lambda p=p: nn.Dropout(p) for p in (0.0, 0.1, 0.25)),
    lambda: nn.Dropout2d(0.1),
    lambda: nn.MaxPool2d(2, padding=1),
    lambda: nn.AvgPool2d(3, 1, 1),
    lambda: nn.ZeroPad2d(1),
    lambda: nn.Softmax(1),
    NoisyInTraining,
    DropsAlways,
    lambda: Does(torch.special.bessel_j0),  # nobody has described it
    lambda: Twigs(nn.ReLU(), nn.Conv2d(2, 2, 3)),
    lambda: Twigs(nn.Conv2d(2, 2, 3, padding=1), nn.Sequential(nn.Dropout(0.1), nn.MaxPool2d(2))),
]
_HEADS: list[Callable[[], list[nn.Module]]] = [
    list,
    lambda: [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 3)],
    lambda: [
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Dropout(0.1),
        nn.Linear(2, 3),
        nn.Softmax(1),
    ],
    lambda: [nn.Conv2d(2, 1, 1), Does(lambda x: x.mean((1, 2, 3)))],
]


@st.composite
def classifiers(draw: st.DrawFn) -> nn.Sequential:
    """Draw small networks with dropout, batch norm, pools, heads, and layers that do not matter."""
    body = draw(st.lists(st.sampled_from(_LAYERS), min_size=1, max_size=7))
    return nn.Sequential(*(make() for make in body), *draw(st.sampled_from(_HEADS))())


any_network = st.one_of(classifiers(), classifiers(), networks(1))

_PARTS = {"train": {"samples": 600, "checksum": "71d3be42"}}
_READINGS = [
    (),
    ({"epoch": 3, "purpose": "after the last epoch"},),
    tuple({"epoch": epoch, "purpose": "curve"} for epoch in (1, 2, 3)),
]


@st.composite
def records(draw: st.DrawFn, parameters: int) -> RunRecord:
    """Draw the record of a run, long or short, finished or not, with much or little in it."""
    epochs = draw(st.integers(0, 5))
    read = st.just(None) if draw(st.booleans()) else st.one_of(st.none(), percents)
    errors = draw(st.integers(0, 100))
    mean = draw(st.sampled_from([[0.25], [0.5], [0.25, 0.5]]))
    images = draw(st.sampled_from(["test", "validation"]))
    figures = {f"{images}_errors": errors, f"{images}_accuracy": 100.0 - errors}
    return RunRecord(
        recipe="one",
        model="net",
        seed=draw(st.integers(0, 4)),
        status=draw(st.sampled_from(["finished", "finished", "interrupted"])),
        parameters=parameters,
        epochs=epochs,
        config=draw(st.sampled_from([{"epochs": 5, "batch_size": 128}, {"batch_size": 64}, {}])),
        data={
            "name": draw(words),
            "checksum": "71d3be42",
            "mean": mean,
            "std": [0.5] * len(mean),
            "augmentation": draw(st.sampled_from([{"rotation": 5.0, "shift": 0.1}, {}])),
            **_PARTS,
            "test": {"samples": 100, "checksum": draw(st.sampled_from(["71d3be42", "4718853e"]))},
            "held_out": draw(st.sampled_from([None, {"samples": 100, "checksum": "5"}])),
        },
        test_readings=draw(st.sampled_from(_READINGS)),
        result=draw(st.sampled_from([{}, figures])),
        history=[{"epoch": i + 1, "validation_accuracy": draw(read)} for i in range(epochs)],
    )
