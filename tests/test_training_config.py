"""TrainConfig: what it takes, what it refuses and in which words, and that files give it back."""

import dataclasses
import json
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from constrained_cnn import TrainConfig
from constrained_cnn.errors import InvalidInputError, OutputError
from constrained_cnn.training._schedule import rate_table

OPTIMIZERS: list[tuple[str, dict[str, Any] | None]] = [
    ("SGD", None),
    ("SGD", {}),
    ("SGD", {"momentum": 0.95, "nesterov": True, "weight_decay": 5e-4}),
    ("AdamW", {"betas": (0.9, 0.99), "amsgrad": True}),
    ("RMSprop", {"alpha": 0.9}),
]
SCHEDULES: list[tuple[str, dict[str, Any] | None]] = [
    ("OneCycleLR", None),
    ("OneCycleLR", {"pct_start": 0.1, "cycle_momentum": False}),
    ("CosineAnnealingLR", {"eta_min": 1e-4}),
    ("StepLR", {"step_size": 4, "gamma": 0.5}),
    ("MultiStepLR", {"milestones": [3, 7]}),
    ("constant", None),
]


@st.composite
def configs(draw: st.DrawFn) -> TrainConfig:
    """Any configuration that is meant to be accepted."""
    optimizer, optimizer_options = draw(st.sampled_from(OPTIMIZERS))
    schedule, schedule_options = draw(st.sampled_from(SCHEDULES))
    rates = st.floats(1e-6, 10.0)
    return TrainConfig(
        epochs=draw(st.integers(1, 10_000)),
        batch_size=draw(st.integers(1, 4096)),
        learning_rate=draw(rates),
        optimizer=optimizer,
        optimizer_options=optimizer_options,
        schedule=schedule,
        schedule_options=schedule_options,
        schedule_interval=draw(st.sampled_from(["step", "epoch"])),
        loss="CrossEntropyLoss",
        loss_options=draw(st.none() | st.fixed_dictionaries({"label_smoothing": st.floats(0, 1)})),
        weight_averaging=draw(st.none() | st.floats(0, 1, exclude_max=True)),
        clip_gradient=draw(st.none() | st.floats(0, 100, exclude_min=True)),
        precise_bn=draw(st.none() | st.integers(1, 1000)),
        channels_last=draw(st.booleans()),
        autocast=draw(st.sampled_from([None, "bfloat16"])),
        seed=draw(st.integers(0, 2**63 - 1)),
    )


@settings(max_examples=40)
@given(config=configs())
def test_text_and_plain_data_give_it_back(config: TrainConfig) -> None:
    assert TrainConfig.from_dict(config.to_dict()) == config
    assert TrainConfig.from_json(config.to_json()) == config
    assert TrainConfig.from_toml(config.to_toml()) == config
    # Another reader of JSON and TOML sees the same figures.
    for values in (json.loads(config.to_json()), tomllib.loads(config.to_toml())):
        assert values["epochs"] == config.epochs
        assert values["learning_rate"] == config.learning_rate
        assert values["seed"] == config.seed


@pytest.mark.parametrize("suffix", [".json", ".toml"])
def test_a_file_gives_it_back(suffix: str, tmp_path: Path) -> None:
    config = TrainConfig(epochs=3, optimizer="AdamW", optimizer_options={"betas": [0.8, 0.9]})
    file = config.save(tmp_path / "deep" / f"config{suffix}")
    assert TrainConfig.load(file) == config


def test_a_file_needs_only_what_differs() -> None:
    assert TrainConfig.from_toml("epochs = 4") == TrainConfig(epochs=4)
    assert TrainConfig.from_json("{}") == TrainConfig()


def test_numpy_numbers_become_plain_ones() -> None:
    given = TrainConfig(
        epochs=np.int64(3),  # type: ignore[arg-type]
        learning_rate=np.float64(0.5),
        clip_gradient=np.float32(2),  # type: ignore[arg-type]
    )
    assert [type(v) for v in (given.epochs, given.learning_rate, given.clip_gradient)] == [
        int,
        float,
        float,
    ]
    assert given == TrainConfig(epochs=3, learning_rate=0.5, clip_gradient=2)
    assert TrainConfig.from_json(given.to_json()) == given


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"epochs": 0}, "epochs=0: must be an integer of at least 1"),
    ({"epochs": True}, "epochs=True"),
    ({"optimizer_options": {"nesterov": "no", "momentum": 0.9}}, "['nesterov']='no': must be True"),
    ({"loss_options": {"size_average": False}}, "size_average=False: a training step"),
    ({"schedule": "StepLR", "schedule_options": {"step_size": 1, "gamma": -1.0}}, "rate of -0.1"),
    ({"epochs": 2.0}, "epochs=2.0"),
    ({"batch_size": 0}, "batch_size=0: must be an integer of at least 1"),
    ({"seed": -1}, "seed=-1"),
    ({"seed": 2**63}, "seed="),
    ({"learning_rate": 0}, "learning_rate=0: must be greater than 0"),
    ({"learning_rate": -0.1}, "learning_rate=-0.1"),
    ({"learning_rate": float("nan")}, "learning_rate=nan"),
    ({"learning_rate": float("inf")}, "learning_rate=inf"),
    ({"learning_rate": "0.1"}, "learning_rate='0.1'"),
    ({"optimizer": "AdmW"}, "did you mean 'AdamW'?"),
    ({"optimizer": "adam"}, "did you mean 'Adam'?"),
    ({"optimizer": torch.optim.SGD}, "goes to the Trainer"),
    ({"optimizer": "Optimizer"}, "must be the name of a class in torch.optim"),
    ({"optimizer": "LBFGS"}, "several times a step"),
    ({"optimizer_options": {"momentun": 0.9}}, "did you mean 'momentum'?"),
    ({"optimizer_options": {"momentum": -1.0}}, "SGD refuses"),
    ({"optimizer_options": {"lr": 0.1}}, "set learning_rate"),
    ({"optimizer_options": [0.9]}, "must be a mapping"),
    ({"schedule": "OneCycle"}, "did you mean 'OneCycleLR'?"),
    ({"schedule": "LRScheduler"}, "the name of a class"),
    ({"schedule": "StepLR"}, "step_size"),
    ({"schedule": "ReduceLROnPlateau"}, "depends on results"),
    ({"schedule": "constant", "schedule_options": {"gamma": 0.5}}, "takes no schedule_options"),
    ({"schedule_options": {"pct_start": 2.0}}, "OneCycleLR refuses"),
    ({"schedule_options": {"cycle_momentum": True}}, "set cycle_momentum=False"),
    ({"schedule_options": {}}, "set cycle_momentum=False"),  # torch's default is True
    ({"schedule_interval": "batch"}, "schedule_interval='batch'"),
    ({"loss": "CrosEntropyLoss"}, "did you mean 'CrossEntropyLoss'?"),
    ({"loss": "ReLU"}, "loss='ReLU'"),
    ({"loss": "MultiMarginLoss", "loss_options": {"p": 3}}, "MultiMarginLoss refuses"),
    ({"loss_options": {"reduction": "sum"}}, "need the mean"),
    ({"loss_options": {"weight": torch.ones(3)}}, "goes to the Trainer"),
    (
        {"schedule": "LambdaLR", "schedule_options": {"lr_lambda": lambda step: 1.0}},
        "goes to the Trainer",
    ),
    ({"weight_averaging": 1.5}, "weight_averaging=1.5"),
    ({"clip_gradient": -1}, "clip_gradient=-1"),
    ({"clip_gradient": 0}, "clip_gradient=0: no weight would move"),
    ({"weight_averaging": 1.0}, "the average would stay at the start"),
    ({"loss_options": {"label_smoothing": float("nan")}}, "['label_smoothing']=nan"),
    ({"schedule": "cosine"}, "must be 'constant' or the name of a class"),
    ({"precise_bn": 0}, "precise_bn=0: must be an integer of at least 1"),
    ({"channels_last": 1}, "channels_last=1"),
    ({"autocast": "float16"}, "autocast='float16'"),
    ({"autocast": True}, "autocast=True"),
]


@pytest.mark.parametrize(("values", "message"), REFUSED)
def test_what_it_refuses_and_why(values: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        TrainConfig(**values)
    assert message in str(caught.value)


def test_momentum_that_only_moves_later_is_refused_too() -> None:
    # At its first step the cycle stands at its largest momentum, 0.95: the very value given here.
    with pytest.raises(InvalidInputError, match="cycle_momentum=False"):
        TrainConfig(optimizer_options={"momentum": 0.95}, schedule_options={"cycle_momentum": True})


def test_an_unknown_key_suggests_the_nearest() -> None:
    with pytest.raises(InvalidInputError, match="unknown key 'epoch'; did you mean 'epochs'"):
        TrainConfig.from_dict({"epoch": 3})


@pytest.mark.parametrize("share", [0.1, 0.25, 0.3, 0.5])
@pytest.mark.parametrize("interval", ["step", "epoch"])
def test_every_share_of_a_warm_up_is_accepted(share: float, interval: str) -> None:
    options = {"pct_start": share, "cycle_momentum": False}
    TrainConfig(schedule_options=options, schedule_interval=interval)


def test_a_length_of_ones_own_need_not_fit_a_trial() -> None:
    TrainConfig(schedule_options={"total_steps": 6, "cycle_momentum": False})


@pytest.mark.parametrize("total", [3, 5, 10, 100])
def test_a_warm_up_of_one_step_which_torch_divides_by_zero(total: int) -> None:
    share = 1 / total
    config = TrainConfig(
        learning_rate=1.0, schedule_options={"pct_start": share, "cycle_momentum": False}
    )
    optimizer = config.make_optimizer([nn.Parameter(torch.zeros(1))])
    rates = rate_table(
        optimizer,
        lambda trial: config.make_scheduler(trial, total, 1),
        epochs=1,
        steps_per_epoch=total,
    )
    assert rates[0] == [pytest.approx(1 / 25)]  # torch's own start
    assert [rate for (rate,) in rates[1:]] == sorted((rate for (rate,) in rates[1:]), reverse=True)


def test_names_become_what_torch_means_by_them() -> None:
    config = TrainConfig(
        optimizer="AdamW",
        learning_rate=0.3,
        optimizer_options={"weight_decay": 0.5},
        schedule="CosineAnnealingLR",
        loss="MSELoss",
    )
    optimizer = config.make_optimizer([nn.Parameter(torch.zeros(1))])
    assert type(optimizer) is torch.optim.AdamW
    assert (optimizer.param_groups[0]["lr"], optimizer.param_groups[0]["weight_decay"]) == (
        0.3,
        0.5,
    )
    assert type(config.make_loss()) is nn.MSELoss
    scheduler = config.make_scheduler(optimizer, 40, 4)
    assert isinstance(scheduler, torch.optim.lr_scheduler.CosineAnnealingLR)
    assert scheduler.T_max == 40
    by_epoch = dataclasses.replace(config, schedule_interval="epoch")
    assert by_epoch.make_scheduler(optimizer, 40, 4).T_max == 4  # type: ignore[union-attr]


def test_it_is_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        TrainConfig().epochs = 3  # type: ignore[misc]


def test_it_does_not_share_the_options_it_was_given() -> None:
    options = {"momentum": 0.5}
    config = TrainConfig(optimizer_options=options)
    options["momentum"] = 0.1
    assert config.optimizer_options == {"momentum": 0.5}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("missing.json", None, "cannot read configuration"),
        ("bytes.toml", b"\xff\xfe\x00", "cannot read configuration"),
        ("garbage.json", b"{epochs", "not JSON"),
        ("garbage.toml", b"epochs = = 3", "not TOML"),
        ("list.json", b"[1, 2]", "must be a table"),
        ("text.json", b'{"epochs": "3"}', "epochs='3'"),
        ("config.yaml", b"epochs: 3", "must be one of '.json', '.toml'"),
    ],
)
def test_a_file_it_cannot_take_is_named(
    name: str, content: bytes | None, message: str, tmp_path: Path
) -> None:
    file = tmp_path / name
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(InvalidInputError, match=message.replace(".", r"\.")):
        TrainConfig.load(file)


def test_saving_where_it_cannot(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="suffix"):
        TrainConfig().save(tmp_path / "config.yaml")
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match="cannot write"):
        TrainConfig().save(tmp_path / "file" / "config.json")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
