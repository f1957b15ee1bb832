"""A run that died goes on bitwise as if it had not, and a checkpoint is trusted only so far."""

import errno
import io
import os
import pickle
import signal
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from constrained_cnn import ImageSet, TrainConfig, Trainer
from constrained_cnn.errors import (
    CheckpointError,
    InvalidInputError,
    NonFiniteLossError,
    OutOfMemoryError,
    OutputError,
)
from constrained_cnn.training import History

EPOCHS = 3
STEPS = 4  # 14 images in batches of 4
CONFIG = TrainConfig(
    epochs=EPOCHS,
    batch_size=4,
    learning_rate=0.1,
    schedule_options={"pct_start": 0.4, "cycle_momentum": False},
    seed=3,
)
EVERYTHING = {"weight_averaging": 0.7, "clip_gradient": 1.0, "precise_bn": 2}


class PowerCutError(BaseException):
    """Nothing that handles errors sees it, as with a real one."""


class Fragile:
    """Batches of a loader, until the power fails at the start of an epoch or within it."""

    def __init__(self, loader: DataLoader[Any], good_epochs: int, good_steps: int = 2) -> None:
        self.loader, self.good_epochs, self.good_steps = loader, good_epochs, good_steps

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Any]:
        for step, batch in enumerate(self.loader):
            if self.good_epochs == 0 and step == self.good_steps:
                raise PowerCutError
            yield batch
        self.good_epochs -= 1


def make_set(seed: int = 0) -> ImageSet:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (14, 1, 8, 8), generator=generator, dtype=torch.uint8)
    return ImageSet.from_arrays(images, torch.arange(14) % 4).augmented(rotation=20.0)


def make_loader() -> DataLoader[Any]:
    inputs = torch.cat([part for part, _ in make_set().batches(14)])
    return DataLoader(TensorDataset(inputs, make_set().labels), 4, shuffle=True)


def make_net(seed: int = 0, width: int = 4) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, width, 3),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.Dropout(0.3),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(4 * width, 4),
    )


def make_trainer(config: TrainConfig = CONFIG, **options: Any) -> Trainer:
    return Trainer(config, device="cpu", progress=False, **options)


def changed(**values: Any) -> TrainConfig:
    return TrainConfig.from_dict(CONFIG.to_dict() | values)


def copied(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def assert_same_run(first: tuple[nn.Module, History], second: tuple[nn.Module, History]) -> None:
    for name, value in first[0].state_dict().items():
        assert torch.equal(value, second[0].state_dict()[name]), name
    rows = [[{**row, "seconds": 0} for row in history.to_dicts()] for _, history in (first, second)]
    assert rows[0] == rows[1]
    assert first[1].status == second[1].status == "finished"


def break_after(good_epochs: int, folder: Path, **options: Any) -> None:
    """Leave in ``folder`` what a run leaves whose power fails within the next epoch."""
    calls = 0

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        if calls > good_epochs * STEPS + 2:
            raise PowerCutError
        return nn.functional.cross_entropy(outputs, targets)

    trainer = make_trainer(**options)
    trainer._loss = loss  # the same loss, so the same run; only this one can fail
    with pytest.raises(PowerCutError):
        trainer.fit(make_net(), make_set(), folder=folder)


@pytest.mark.parametrize("good_epochs", range(EPOCHS))
@pytest.mark.parametrize("extra", [{}, EVERYTHING], ids=["plain", "everything"])
@pytest.mark.parametrize("data", ["resident", "loader"])
def test_resuming_at_any_epoch_changes_nothing(
    data: str, extra: dict[str, Any], good_epochs: int, tmp_path: Path
) -> None:
    trainer = make_trainer(changed(**extra))
    whole = make_net()
    train: Any = make_set() if data == "resident" else make_loader()
    unbroken = trainer.fit(whole, train, make_set(1) if data == "resident" else None)

    if data == "loader":
        fragile = Fragile(make_loader(), good_epochs)
        with pytest.raises(PowerCutError):
            trainer.fit(make_net(), fragile, folder=tmp_path)
        train, held_out = make_loader(), None
    else:
        with pytest.MonkeyPatch.context() as patch:
            ordinary = ImageSet.training_batches

            def until_power_cut(self: ImageSet, *words: Any, **named: Any) -> Iterator[Any]:
                for step, batch in enumerate(ordinary(self, *words, **named)):
                    if named["epoch"] == good_epochs + 1 and step == 2:
                        raise PowerCutError
                    yield batch

            patch.setattr(ImageSet, "training_batches", until_power_cut)
            with pytest.raises(PowerCutError):
                trainer.fit(make_net(), make_set(), make_set(1), folder=tmp_path)
        train, held_out = make_set(), make_set(1)

    assert len(History.load(tmp_path / "history.jsonl")) == good_epochs
    resumed = make_net(seed=99)  # its own weights must not matter
    history = trainer.fit(resumed, train, held_out, folder=tmp_path, resume=True)
    assert_same_run((resumed, history), (whole, unbroken))
    assert History.load(tmp_path / "history.jsonl") == history


@pytest.mark.parametrize("extra", [{}, EVERYTHING], ids=["plain", "everything"])
def test_resuming_a_finished_run_gives_its_result_again(
    extra: dict[str, Any], tmp_path: Path
) -> None:
    trainer = make_trainer(changed(**extra))
    whole, again = make_net(), make_net(seed=99)
    first = trainer.fit(whole, make_set(), folder=tmp_path)
    second = trainer.fit(again, make_set(), folder=tmp_path, resume=True)
    assert first == second  # the seconds too: nothing was done
    assert_same_run((again, second), (whole, first))
    assert not again.training


def test_another_configuration_is_refused_and_every_difference_listed(tmp_path: Path) -> None:
    make_trainer().fit(make_net(), make_set(), folder=tmp_path)
    other = changed(epochs=5, learning_rate=0.2)
    model = make_net(seed=99)
    before = copied(model)
    with pytest.raises(CheckpointError) as caught:
        make_trainer(other).fit(model, make_set(), folder=tmp_path, resume=True)
    message = str(caught.value)
    assert "epochs was 3 and is 5; learning_rate was 0.1 and is 0.2" in message
    assert "seed" not in message
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_configuration_from_a_file_is_the_same_one(tmp_path: Path) -> None:
    config = changed(optimizer="AdamW", optimizer_options={"betas": (0.8, 0.9)})
    make_trainer(config).fit(make_net(), make_set(), folder=tmp_path)
    again = TrainConfig.load(config.save(tmp_path / "config.json"))
    make_trainer(again).fit(make_net(), make_set(), folder=tmp_path, resume=True)


def test_of_a_finished_run_it_is_said_that_nothing_is_trained(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer = Trainer(CONFIG, device="cpu")
    trainer.fit(make_net(), make_set(), folder=tmp_path)
    assert "finished after 3 epochs" in capsys.readouterr().err
    trainer.fit(make_net(), make_set(), folder=tmp_path, resume=True)
    said = "nothing to train: the run was finished already, after 3 epochs\n"
    assert capsys.readouterr().err == said


def test_another_model_is_refused(tmp_path: Path) -> None:
    make_trainer().fit(make_net(), make_set(), folder=tmp_path)
    with pytest.raises(CheckpointError, match=r"another model: 0\.weight is .* and float32 \(5, "):
        make_trainer().fit(make_net(width=5), make_set(), folder=tmp_path, resume=True)
    longer = nn.Sequential(*make_net().children(), nn.Linear(4, 4))
    with pytest.raises(CheckpointError, match=r"7\.weight is not in the file"):
        make_trainer().fit(longer, make_set(), folder=tmp_path, resume=True)


def test_other_data_is_refused(tmp_path: Path) -> None:
    make_trainer().fit(make_net(), make_set(), folder=tmp_path)
    with pytest.raises(CheckpointError, match="a run with other data"):
        make_trainer().fit(make_net(), make_set(1), folder=tmp_path, resume=True)


def test_other_augmentation_is_other_data(tmp_path: Path) -> None:
    make_trainer().fit(make_net(), make_set(), folder=tmp_path)
    with pytest.raises(CheckpointError, match=r"other data: augmentation was .*20\.0"):
        make_trainer().fit(make_net(), make_set().augmented(), folder=tmp_path, resume=True)


def test_a_checkpoint_is_not_overwritten_by_a_run_that_starts_anew(tmp_path: Path) -> None:
    make_trainer().fit(make_net(), make_set(), folder=tmp_path)
    before = (tmp_path / "checkpoint.pt").read_bytes()
    with pytest.raises(OutputError, match="resume=True goes on"):
        make_trainer().fit(make_net(seed=1), make_set(), folder=tmp_path)
    assert (tmp_path / "checkpoint.pt").read_bytes() == before


def test_a_loss_of_ones_own_is_asked_for_again(tmp_path: Path) -> None:
    make_trainer(loss=nn.CrossEntropyLoss()).fit(make_net(), make_set(), folder=tmp_path)
    with pytest.raises(CheckpointError, match="other callables: loss was 'given' and is None"):
        make_trainer().fit(make_net(), make_set(), folder=tmp_path, resume=True)


def test_a_history_is_not_overwritten_either(tmp_path: Path) -> None:
    (tmp_path / "history.csv").write_text("precious")
    with pytest.raises(OutputError, match=r"holds the history\.csv of a run, which would be"):
        make_trainer().fit(make_net(), make_set(), folder=tmp_path)
    assert (tmp_path / "history.csv").read_text() == "precious"
    with pytest.raises(OutputError, match="must name a folder"):
        make_trainer().fit(make_net(), make_set(), folder="")


def test_an_error_in_the_first_epoch_leaves_the_folder_free(tmp_path: Path) -> None:
    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        raise MemoryError

    with pytest.raises(OutOfMemoryError):
        make_trainer(loss=loss).fit(make_net(), make_set(), folder=tmp_path)
    make_trainer().fit(make_net(), make_set(), folder=tmp_path)


def test_resuming_needs_a_folder_with_a_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="resume=True: needs the folder"):
        make_trainer().fit(make_net(), make_set(), resume=True)
    with pytest.raises(CheckpointError, match="there is nothing to resume"):
        make_trainer().fit(make_net(), make_set(), folder=tmp_path, resume=True)
    assert list(tmp_path.iterdir()) == []


class Trap:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (os.mkdir, (str(self.path),))


def damaged(kind: str, good: bytes, weight: bytes, trap: Path) -> bytes:
    if kind == "truncated":
        return good[: len(good) // 2]
    if kind == "flipped":
        bits = bytearray(good)
        bits[good.index(weight)] ^= 1  # a single bit of a single weight
        return bytes(bits)
    if kind == "empty":
        return b""
    if kind == "pickle":
        return pickle.dumps(Trap(trap))
    stream = io.BytesIO()
    torch.save({"format": 1, "model": Trap(trap)} if kind == "code" else [1, 2], stream)
    return stream.getvalue()


@pytest.mark.parametrize("kind", ["truncated", "flipped", "empty", "pickle", "code", "list"])
def test_a_damaged_or_hostile_checkpoint_is_refused_and_runs_nothing(
    kind: str, tmp_path: Path
) -> None:
    folder, trap = tmp_path / "run", tmp_path / "trap"
    trained = make_net()
    make_trainer().fit(trained, make_set(), folder=folder)
    file = folder / "checkpoint.pt"
    weight = trained.state_dict()["6.weight"].numpy().tobytes()
    content = damaged(kind, file.read_bytes(), weight, trap)
    for path in (file, folder / "checkpoint-before.pt"):
        path.write_bytes(content)
    model = make_net(seed=99)
    before = copied(model)
    with pytest.raises(CheckpointError, match=r"checkpoint\.pt' is (damaged|not a|of format 1)"):
        make_trainer().fit(model, make_set(), folder=folder, resume=True)
    assert not trap.exists()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("kind", ["truncated", "flipped", "empty", "pickle", "code", "missing"])
def test_a_damaged_checkpoint_is_put_aside_and_the_one_before_it_taken(
    kind: str, tmp_path: Path
) -> None:
    whole = make_net()
    unbroken = make_trainer().fit(whole, make_set())
    break_after(2, tmp_path)
    file, trap = tmp_path / "checkpoint.pt", tmp_path / "trap"
    good = file.read_bytes()
    weight = torch.load(file, weights_only=True)["model"]["6.weight"].numpy().tobytes()
    file.unlink() if kind == "missing" else file.write_bytes(damaged(kind, good, weight, trap))
    with pytest.warns(UserWarning, match="goes on from the checkpoint before it, after 1 epoch"):
        history = make_trainer().fit(
            resumed := make_net(seed=99), make_set(), folder=tmp_path, resume=True
        )
    assert_same_run((resumed, history), (whole, unbroken))
    assert (tmp_path / "checkpoint-damaged.pt").exists() == (kind != "missing")
    assert not trap.exists()


WELL_FORMED = {
    # what a hand could put into a file that torch reads without complaint
    "config is no table": lambda state: state.update(config=[1]),
    "no such epoch": lambda state: state.update(epoch=7),
    "epoch is text": lambda state: state.update(epoch="2"),
    "a row is text": lambda state: state["rows"].__setitem__(0, "first"),
    "a loss is text": lambda state: state["rows"][0].update(train_loss="low"),
    "a row lacks a value": lambda state: state["rows"][0].pop("seconds"),
    "epochs out of order": lambda state: state["rows"].reverse(),
    "a weight is a number": lambda state: state["model"].update({"0.bias": 1.0}),
    "momentum of another shape": lambda state: state["optimizer"]["state"][0].update(
        momentum_buffer=torch.zeros(3)
    ),
    "momentum of a parameter there is not": lambda state: state["optimizer"]["state"].update(
        {99: {}}
    ),
    "no groups": lambda state: state["optimizer"].pop("param_groups"),
    "a group of text": lambda state: state["optimizer"].update(param_groups=["all"]),
    "a setting too many": lambda state: state["optimizer"]["param_groups"][0].update(zeal=1),
    "a weight is infinite": lambda state: state["model"]["0.bias"].fill_(torch.inf),
    "a weight of another type": lambda state: state["model"].update(
        {"0.bias": torch.zeros(4, dtype=torch.int64)}
    ),
    "a step that is none": lambda state: state.update(step=-1),
    "more steps than tallied": lambda state: state.update(step=2),
    "a tally of text": lambda state: state["ranks"][0].update(tally={"losses": "low"}),
    "no tally": lambda state: state["ranks"][0].pop("tally"),
    "no random numbers": lambda state: state.update(ranks=[]),
    "random numbers of text": lambda state: state["ranks"][0].update(random={"cpu": "17"}),
    "a state of no generator": lambda state: state["ranks"][0].update(
        random={"cpu": torch.zeros(5, dtype=torch.uint8)}
    ),
    "timings of text": lambda state: state.update(timings={"training": "long"}),
    "averages that are not asked for": lambda state: state.update(average=dict(state["model"])),
}


@pytest.mark.parametrize("kind", WELL_FORMED)
def test_a_well_formed_checkpoint_with_nonsense_in_it_changes_nothing(
    kind: str, tmp_path: Path
) -> None:
    break_after(2, tmp_path)
    file = tmp_path / "checkpoint.pt"
    state = torch.load(file, weights_only=True)
    WELL_FORMED[kind](state)
    torch.save(state, file)
    (tmp_path / "checkpoint-before.pt").unlink()
    model = make_net(seed=99)
    before = copied(model)
    with pytest.raises(CheckpointError, match=r"checkpoint\.pt'"):
        make_trainer().fit(model, make_set(), folder=tmp_path, resume=True)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_tensor_marked_as_a_folder_is_not_read_as_whatever_lies_in_memory(
    tmp_path: Path,
) -> None:
    break_after(1, tmp_path)
    file = tmp_path / "checkpoint.pt"
    content = bytearray(file.read_bytes())
    entry = content.rindex(b"PK\x01\x02", 0, content.rindex(b"/data/0"))
    content[entry + 38] |= 0x10  # one bit of the directory at the end of the file
    file.write_bytes(content)
    (tmp_path / "checkpoint-before.pt").unlink()
    with pytest.raises(CheckpointError, match="does not match its checksum"):
        make_trainer().fit(make_net(), make_set(), folder=tmp_path, resume=True)


def test_a_loader_of_another_length_is_other_data(tmp_path: Path) -> None:
    make_trainer(changed(schedule="constant", schedule_options={})).fit(
        make_net(), make_loader(), folder=tmp_path
    )
    shorter = list(make_loader())[:-1]
    with pytest.raises(CheckpointError, match="steps was 4 and is 3"):
        make_trainer(changed(schedule="constant", schedule_options={})).fit(
            make_net(), shorter, folder=tmp_path, resume=True
        )


def test_a_folder_that_cannot_be_written_is_an_error_before_the_first_step(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    model = make_net()
    before = copied(model)
    with pytest.raises(OutputError, match="cannot write"):
        make_trainer().fit(model, make_set(), folder=tmp_path / "file" / "run")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("failing", ["os.replace", "os.fsync", "torch.save"])
def test_a_write_that_fails_leaves_the_previous_checkpoint(
    failing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = make_net()
    unbroken = make_trainer().fit(whole, make_set())
    break_after(1, tmp_path)
    kept = (tmp_path / "checkpoint.pt").read_bytes()
    names = sorted(path.name for path in tmp_path.iterdir())

    def fail(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(failing, fail)
        with pytest.raises((OutputError, OSError), match="No space left"):
            make_trainer().fit(make_net(), make_set(), folder=tmp_path, resume=True)
    assert (tmp_path / "checkpoint.pt").read_bytes() == kept
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    resumed = make_net(seed=99)
    history = make_trainer().fit(resumed, make_set(), folder=tmp_path, resume=True)
    assert_same_run((resumed, history), (whole, unbroken))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize(("epoch", "step"), [(1, 1), (2, 3), (3, 4)])
def test_a_loss_that_is_not_finite_is_located_and_the_last_good_epoch_kept(
    bad: float, epoch: int, step: int, tmp_path: Path
) -> None:
    calls = 0

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        right = nn.functional.cross_entropy(outputs, targets)
        # One bad value in the middle; those after it look good, as the weights hold no NaN.
        return right + right.detach() * bad if calls == (epoch - 1) * STEPS + step else right

    def good_loss(outputs: Tensor, targets: Tensor) -> Tensor:
        return nn.functional.cross_entropy(outputs, targets)

    with pytest.raises(NonFiniteLossError) as caught:
        make_trainer(loss=loss).fit(make_net(), make_set(), folder=tmp_path)
    assert (caught.value.epoch, caught.value.step) == (epoch, step)
    assert f"step {step} of epoch {epoch}; the last checkpoint, from before it, is kept" in str(
        caught.value
    )
    assert calls == epoch * STEPS  # to the end of that epoch, and no further
    assert len(History.load(tmp_path / "history.jsonl")) == epoch - 1

    whole, resumed = make_net(), make_net(seed=99)
    unbroken = make_trainer(loss=good_loss).fit(whole, make_set())
    history = make_trainer(loss=good_loss).fit(resumed, make_set(), folder=tmp_path, resume=True)
    assert_same_run((resumed, history), (whole, unbroken))


def test_a_rate_that_is_too_high_is_noticed_without_a_folder() -> None:
    config = changed(learning_rate=1e30, schedule="constant", schedule_options=None)
    with pytest.raises(NonFiniteLossError, match="lower the learning rate") as caught:
        make_trainer(config).fit(make_net(), make_set())
    assert "checkpoint" not in str(caught.value)


def stop_and_go_on(folder: Path, make: Any, **options: Any) -> History:
    """Break a run off in its second epoch, and go on to its end; it must be as if unbroken."""
    loss = options.pop("loss", nn.CrossEntropyLoss())
    trainer = Trainer(CONFIG, device="cpu", progress=False, loss=loss, **options)
    whole, model = make(), make()
    unbroken = trainer.fit(whole, make_loader())
    with pytest.raises(PowerCutError):
        trainer.fit(model, Fragile(make_loader(), 1), folder=folder)
    again = make()
    history = trainer.fit(again, make_loader(), folder=folder, resume="if-begun")
    for name, value in whole.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name
    assert [row.train_loss for row in history] == [row.train_loss for row in unbroken]
    return history


def test_what_is_not_trained_may_be_infinite(tmp_path: Path) -> None:
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.net = nn.Sequential(nn.Flatten(), nn.Linear(64, 4))
            self.register_buffer("mask", torch.tensor([0.0, -torch.inf, 0.0, 0.0]))
            self.frozen = nn.Parameter(torch.full((2,), -torch.inf), requires_grad=False)

        def forward(self, inputs: Tensor) -> Tensor:
            outputs: Tensor = self.net(inputs)
            return outputs

    assert stop_and_go_on(tmp_path, Masked).status == "finished"


def test_an_optimizer_of_ones_own_may_be_given_numpys_numbers(tmp_path: Path) -> None:
    def make() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 4))

    def optimizer(model: nn.Module) -> torch.optim.Optimizer:
        options: dict[str, Any] = {"weight_decay": np.float64(1e-3), "eps": np.float32(1e-6)}
        return torch.optim.AdamW(model.parameters(), lr=0.01, **options)

    assert stop_and_go_on(tmp_path, make, optimizer=optimizer).status == "finished"


def test_a_history_that_is_missing_or_behind_is_written_again(tmp_path: Path) -> None:
    trainer = Trainer(CONFIG, device="cpu", progress=False)
    rows = trainer.fit(make_net(), make_set(), folder=tmp_path).rows
    kept = (tmp_path / "history.csv").read_text()
    (tmp_path / "history.csv").write_text("".join(kept.splitlines(keepends=True)[:-1]))
    (tmp_path / "history.jsonl").unlink()
    trainer.fit(make_net(), make_set(), folder=tmp_path, resume=True)
    assert (tmp_path / "history.csv").read_text() == kept
    assert History.load(tmp_path / "history.jsonl").rows == rows


def test_readings_of_the_test_set_do_not_become_those_of_a_validation_set(tmp_path: Path) -> None:
    trainer = Trainer(CONFIG, device="cpu", progress=False)
    with pytest.raises(PowerCutError):
        trainer.fit(
            make_net(), Fragile(make_loader(), 1), make_set(1), judged_on="test", folder=tmp_path
        )
    with pytest.raises(CheckpointError, match="judged_on was 'test' and is 'validation'"):
        trainer.fit(make_net(), make_loader(), make_set(1), folder=tmp_path, resume=True)


def test_a_checkpoint_that_cannot_be_read_just_now_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = Trainer(CONFIG, device="cpu", progress=False)
    trainer.fit(make_net(), make_set(), folder=tmp_path)
    names = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def fail(path: Path) -> bytes:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", fail)
        with pytest.raises(CheckpointError, match=r"cannot be read: .*Input/output error"):
            trainer.fit(make_net(), make_set(), folder=tmp_path, resume=True)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == names


def test_a_process_that_was_forked_meanwhile_does_not_keep_the_folder(tmp_path: Path) -> None:
    forked: list[int] = []

    def fork(row: object) -> None:
        pid = os.fork()
        if not pid:
            time.sleep(60)
            os._exit(0)
        forked.append(pid)

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of forking beside threads
            Trainer(CONFIG, device="cpu", progress=fork).fit(
                make_net(), make_set(), folder=tmp_path
            )
        trainer = Trainer(CONFIG, device="cpu", progress=False)
        assert len(trainer.fit(make_net(), make_set(), folder=tmp_path, resume=True)) == EPOCHS
    finally:
        for pid in forked:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def test_resume_is_one_of_three_words(tmp_path: Path) -> None:
    trainer = Trainer(CONFIG, device="cpu", progress=False)
    with pytest.raises(InvalidInputError, match="resume='yes': must be True, False or 'if-begun'"):
        trainer.fit(make_net(), make_set(), folder=tmp_path, resume="yes")
    first = trainer.fit(make_net(), make_set(), folder=tmp_path, resume="if-begun")
    assert trainer.fit(make_net(), make_set(), folder=tmp_path, resume="if-begun") == first
