"""Trainer.fit beside a training loop written by hand in plain torch: the same bits come out."""

import random
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer, lr_scheduler
from torch.utils.data import DataLoader, Dataset
from torchrun_processes import Thawing

from constrained_cnn import ImageSet, TrainConfig, Trainer
from constrained_cnn.errors import InvalidInputError

Batches = Iterable[tuple[Tensor, Tensor]]
State = dict[str, Tensor]


def make_set(count: int = 50, seed: int = 0) -> ImageSet:
    """Random 8x8 images of four classes, with a square whose place tells the class."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 100, (count, 1, 8, 8), generator=generator, dtype=torch.uint8)
    labels = torch.arange(count) % 4
    for index, label in enumerate(labels.tolist()):
        row, column = divmod(label, 2)
        images[index, 0, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4] += 100
    return ImageSet.from_arrays(images, labels)


def make_net(p_drop: float = 0.2, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, bias=False),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Dropout(p_drop),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(16, 4),
    )


def make_trainer(config: TrainConfig, **options: Any) -> Trainer:
    return Trainer(config, device="cpu", progress=False, **options)


def copied(model: nn.Module) -> State:
    return {name: value.clone() for name, value in model.state_dict().items()}


def assert_same_bits(first: State, second: State) -> None:
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


def assert_close(first: State, second: State) -> None:
    for name, value in first.items():
        torch.testing.assert_close(value, second[name], rtol=1e-4, atol=1e-5)


def seed_of(seed: int, epoch: int) -> int:
    return int(
        np.random.SeedSequence([seed, epoch]).generate_state(1, np.uint64)[0] >> np.uint64(1)
    )


def raw_loop(
    model: nn.Module,
    batches_of: Callable[[int], Batches],
    optimizer: Optimizer,
    scheduler: Any,
    loss_of: Callable[[Tensor, Tensor], Tensor],
    *,
    epochs: int,
    seed: int = 0,
    clip: float | None = None,
    decay: float | None = None,
) -> tuple[list[tuple[float, float]], State]:
    """What a person would write. Returns (loss, accuracy) per epoch, and the averaged state."""
    figures = []
    average: State = {}
    for epoch in range(1, epochs + 1):
        torch.manual_seed(seed_of(seed, epoch))
        model.train()
        total, right, samples = 0.0, 0, 0
        for inputs, targets in batches_of(epoch):
            optimizer.zero_grad()
            outputs = model(inputs)
            loss = loss_of(outputs, targets)
            loss.backward()
            if clip is not None:
                nn.utils.clip_grad_norm_(model.parameters(), clip)
            optimizer.step()
            scheduler.step()
            total += loss.item() * len(inputs)
            right += int((outputs.argmax(1) == targets).sum()) if outputs.ndim == 2 else 0
            samples += len(inputs)
            if decay is not None:
                for name, value in copied(model).items():
                    old = average.get(name, value)
                    average[name] = decay * old + (1 - decay) * value
        figures.append((total / samples, 100 * right / samples))
    return figures, average


def one_cycle(optimizer: Optimizer, rate: float, steps: int) -> lr_scheduler.LRScheduler:
    return lr_scheduler.OneCycleLR(
        optimizer, rate, total_steps=steps, pct_start=0.3, cycle_momentum=False
    )


CONFIG = TrainConfig(
    epochs=3,
    batch_size=16,
    learning_rate=0.1,
    schedule_options={"pct_start": 0.3, "cycle_momentum": False},
    seed=5,
)


def raw_image_run(train: ImageSet, **extra: Any) -> tuple[nn.Module, Any, State]:
    model = make_net()
    # The fused kernel of torch, as the Trainer takes it where there is one.
    options: dict[str, Any] = {"momentum": 0.9, "nesterov": True, "fused": True}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, **options)

    def batches_of(epoch: int) -> Batches:
        return train.training_batches(16, seed=5, epoch=epoch)

    scheduler = one_cycle(optimizer, 0.1, 3 * train.steps(16))
    loss = nn.CrossEntropyLoss()
    found = raw_loop(model, batches_of, optimizer, scheduler, loss, epochs=3, seed=5, **extra)
    return model, *found


@pytest.mark.parametrize("augmented", [False, True])
def test_fit_is_the_loop_one_would_write(augmented: bool) -> None:
    train = make_set().augmented(rotation=10.0, shift=0.1) if augmented else make_set()
    expected, figures, _ = raw_image_run(train)
    model = make_net()
    history = make_trainer(CONFIG).fit(model, train)
    assert_same_bits(model.state_dict(), expected.state_dict())
    assert [row.epoch for row in history] == [1, 2, 3]
    for row, (loss, accuracy) in zip(history, figures, strict=True):
        assert row.train_loss == pytest.approx(loss, rel=1e-6)
        assert row.train_accuracy == pytest.approx(accuracy)
        assert (row.validation_loss, row.validation_accuracy) == (None, None)
        assert row.seconds > 0
    assert history.status == "finished"


def test_autocast_is_torchs_around_the_forward_pass_alone() -> None:
    class Lowered(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = make_net()

        def forward(self, inputs: Tensor) -> Tensor:
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=self.training):
                outputs: Tensor = self.net(inputs)
            return outputs.float()

    train, config = make_set(), {**CONFIG.to_dict(), "precise_bn": 2}
    expected = Lowered()
    by_hand = make_trainer(TrainConfig.from_dict(config)).fit(expected, train, train)
    model = make_net()
    seen: dict[bool, set[torch.dtype]] = {True: set(), False: set()}
    model.register_forward_hook(lambda part, _, outputs: seen[part.training].add(outputs.dtype))
    config["autocast"] = "bfloat16"
    history = make_trainer(TrainConfig.from_dict(config)).fit(model, train, train)
    assert seen == {True: {torch.bfloat16}, False: {torch.float32}}
    assert [row.train_loss for row in history] == [row.train_loss for row in by_hand]
    for parameter, other in zip(model.parameters(), expected.parameters(), strict=True):
        assert parameter.dtype == torch.float32
        assert torch.equal(parameter, other)
    plain = make_net()
    make_trainer(CONFIG).fit(plain, train)
    assert not torch.equal(plain[0].weight, model[0].weight)  # type: ignore[index]


def test_autocast_is_refused_where_the_device_cannot(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any, **options: Any) -> Any:
        raise RuntimeError("Current CUDA Device does not support bfloat16")

    monkeypatch.setattr(torch, "autocast", refuse)
    with pytest.raises(InvalidInputError, match=r"autocast='bfloat16': device cpu .*leave it out"):
        make_trainer(TrainConfig(autocast="bfloat16"))
    make_trainer(TrainConfig())


def test_the_gradient_is_clipped_as_torch_does() -> None:
    train = make_set()
    expected, _, _ = raw_image_run(train, clip=0.05)
    unclipped, _, _ = raw_image_run(train)
    model = make_net()
    config = TrainConfig.from_dict(CONFIG.to_dict() | {"clip_gradient": 0.05})
    make_trainer(config).fit(model, train)
    assert_same_bits(model.state_dict(), expected.state_dict())
    assert not torch.equal(model[0].weight, unclipped[0].weight)  # type: ignore[index]


def test_averaged_weights_are_an_average_written_by_hand() -> None:
    train, held_out = make_set(), make_set(30, seed=1)
    last, _, average = raw_image_run(train, decay=0.8)
    model = make_net()
    trainer = make_trainer(TrainConfig.from_dict(CONFIG.to_dict() | {"weight_averaging": 0.8}))
    history = trainer.fit(model, train, held_out)
    found = copied(model)
    del found["1.num_batches_tracked"], average["1.num_batches_tracked"]
    assert_close(found, average)
    assert not torch.allclose(found["0.weight"], last.state_dict()["0.weight"], atol=1e-3)
    judged = trainer.evaluate(model, held_out)
    assert history[-1].validation_loss == pytest.approx(judged.loss)
    assert history[-1].validation_accuracy == judged.accuracy


def test_what_is_judged_after_any_epoch_is_the_averaged_net() -> None:
    histories = []
    for epochs in (1, 2):
        config = TrainConfig(
            epochs=epochs, batch_size=16, schedule="constant", weight_averaging=0.7
        )
        histories.append(make_trainer(config).fit(make_net(), make_set(), make_set(30, seed=1)))
    stopped, gone_on = histories
    assert gone_on[0].validation_loss == stopped[0].validation_loss


def test_a_run_reproduces_and_another_seed_differs() -> None:
    states, histories = [], []
    for seed in (5, 5, 6):
        model = make_net()
        torch.manual_seed(seed * 1000)  # what the caller drew before makes no difference
        config = TrainConfig.from_dict(CONFIG.to_dict() | {"seed": seed})
        history = make_trainer(config).fit(model, make_set(), make_set(20, seed=1))
        states.append(copied(model))
        histories.append([{**row, "seconds": 0} for row in history.to_dicts()])
    assert_same_bits(states[0], states[1])
    assert histories[0] == histories[1]
    assert not torch.equal(states[0]["0.weight"], states[2]["0.weight"])


def test_the_callers_random_state_is_left_alone() -> None:
    model, train = make_net(), make_set().augmented(rotation=5)
    trainer = make_trainer(CONFIG)
    before = (torch.get_rng_state(), random.getstate(), np.random.get_state())  # noqa: NPY002
    trainer.fit(model, train)
    trainer.evaluate(model, train)
    trainer.predict(model, train)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]
    np.testing.assert_equal(np.random.get_state(), before[2])  # noqa: NPY002


def test_modes_during_and_after() -> None:
    model, modes = make_net(), []

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        modes.append((torch.is_grad_enabled(), model.training, model[3].training))  # type: ignore[index]
        return nn.functional.cross_entropy(outputs, targets)

    config = TrainConfig(epochs=2, batch_size=25, schedule="constant", learning_rate=0.01)
    model.eval()
    make_trainer(config, loss=loss).fit(model, make_set(50), make_set(20))
    assert modes == [(True,) * 3, (True,) * 3, (False,) * 3] * 2
    assert not model.training


def test_layout_changes_nothing_but_rounding() -> None:
    states = []
    for layout in (True, False):
        model = make_net(p_drop=0.0)  # dropout draws in the order of memory
        model.set_submodule("2", nn.Softplus())  # rounding may tip a ReLU over, and move it a step
        config = TrainConfig.from_dict(CONFIG.to_dict() | {"channels_last": layout})
        make_trainer(config).fit(model, make_set())
        states.append(copied(model))
    assert_close(states[0], states[1])


class Squares(Dataset[tuple[Tensor, int]]):
    """A data set as a person writes one."""

    def __init__(self, count: int = 30) -> None:
        self.images = make_set(count)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.images.images[index].float() / 255, int(self.images.labels[index])


class TwoConvolutions(nn.Module):
    """A network as a person writes one."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 4, 3)
        self.second = nn.Conv2d(4, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x))
        x = nn.functional.dropout(x, 0.1, self.training)
        return self.second(x).mean((2, 3))


def test_a_shuffling_data_loader_and_a_network_of_ones_own() -> None:
    def pieces() -> tuple[nn.Module, DataLoader[Any]]:
        torch.manual_seed(0)
        return TwoConvolutions(), DataLoader(Squares(), 8, shuffle=True, num_workers=0)

    expected, loader = pieces()
    optimizer = torch.optim.AdamW(expected.parameters(), lr=0.01, fused=True)
    scheduler = lr_scheduler.ExponentialLR(optimizer, 0.9)

    def batches_of(epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        yield from loader

    loss = nn.CrossEntropyLoss(label_smoothing=0.1)
    figures, _ = raw_loop(expected, batches_of, optimizer, scheduler, loss, epochs=3)

    config = TrainConfig(
        epochs=3,
        learning_rate=0.01,
        optimizer="AdamW",
        schedule="ExponentialLR",
        schedule_options={"gamma": 0.9},
        loss_options={"label_smoothing": 0.1},
    )
    model, loader = pieces()
    history = make_trainer(config).fit(model, loader)
    assert_same_bits(model.state_dict(), expected.state_dict())
    assert [row.train_accuracy for row in history] == pytest.approx([a for _, a in figures])


def test_an_optimizer_with_groups_a_schedule_and_a_loss_of_ones_own() -> None:
    def make_optimizer(model: nn.Module) -> Optimizer:
        weights = [p for p in model.parameters() if p.ndim > 1]
        others = [p for p in model.parameters() if p.ndim == 1]
        groups = [{"params": weights, "weight_decay": 0.1}, {"params": others, "lr": 0.3}]
        return torch.optim.SGD(groups, lr=0.05)

    def make_scheduler(optimizer: Optimizer) -> lr_scheduler.LRScheduler:
        return lr_scheduler.LambdaLR(optimizer, [lambda s: 1 / (1 + s), lambda s: 0.8**s])

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs - nn.functional.one_hot(targets, 4)).square().mean()

    train, expected = make_set(), make_net()
    optimizer = make_optimizer(expected)
    raw_loop(
        expected,
        lambda epoch: train.training_batches(16, seed=0, epoch=epoch),
        optimizer,
        make_scheduler(optimizer),
        loss,
        epochs=2,
    )
    model = make_net()
    trainer = make_trainer(
        TrainConfig(epochs=2, batch_size=16),
        optimizer=make_optimizer,
        scheduler=make_scheduler,
        loss=loss,
    )
    history = trainer.fit(model, train)
    assert_same_bits(model.state_dict(), expected.state_dict())
    # The first group's rate at the first step of each epoch.
    assert [row.learning_rate for row in history] == pytest.approx([0.05, 0.05 / 5])


def test_regression_has_a_loss_and_no_accuracy() -> None:
    x = torch.linspace(-1, 1, 40).reshape(40, 1)
    batches = [(x[i : i + 8], 3 * x[i : i + 8] - 1) for i in range(0, 40, 8)]
    model = nn.Linear(1, 1)
    config = TrainConfig(epochs=40, schedule="constant", learning_rate=0.05)
    trainer = make_trainer(config, loss=nn.HuberLoss())
    history = trainer.fit(model, batches, batches)
    assert model.weight.item() == pytest.approx(3, abs=1e-2)
    assert model.bias.item() == pytest.approx(-1, abs=1e-2)
    assert history[-1].train_accuracy is None
    assert history[-1].validation_accuracy is None
    assert trainer.evaluate(model, batches).errors is None


def test_three_dimensional_convolutions_train_with_the_default_layout() -> None:
    model = nn.Sequential(nn.Conv3d(1, 2, 3), nn.Flatten(), nn.Linear(16, 2))
    batches = [(torch.randn(3, 1, 4, 4, 4), torch.tensor([0, 1, 0]))] * 3
    history = make_trainer(TrainConfig(epochs=2, schedule="constant")).fit(model, batches)
    assert len(history) == 2


@pytest.mark.parametrize("options", [{"momentum": 0.9}, {"momentum": 0.9, "dampening": 0.3}])
def test_weights_that_are_unfrozen_in_between_move_as_in_a_loop(options: dict[str, Any]) -> None:
    config = TrainConfig(
        epochs=3,
        batch_size=16,
        learning_rate=0.05,
        schedule="constant",
        optimizer_options=options,
    )
    model = Thawing(*make_net(0.0).children())
    make_trainer(config).fit(model, make_set())
    by_hand = Thawing(*make_net(0.0).children())
    optimizer = torch.optim.SGD(by_hand.parameters(), lr=0.05, **options)
    for epoch in range(1, 4):
        by_hand.train()
        for inputs, targets in make_set().training_batches(16, seed=0, epoch=epoch):
            optimizer.zero_grad()
            nn.functional.cross_entropy(by_hand(inputs), targets).backward()
            optimizer.step()
    assert_close(copied(model), copied(by_hand))
    assert not torch.equal(copied(model)["0.weight"], copied(make_net(0.0))["0.weight"])


def test_sparse_gradients_train() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(10, 4, sparse=True), nn.Flatten(), nn.Linear(8, 2))
    before = copied(model)
    config = TrainConfig(epochs=1, schedule="constant", optimizer_options={"momentum": 0.9})
    batches = [(torch.randint(0, 10, (6, 2)), torch.randint(0, 2, (6,)))]
    make_trainer(config).fit(model, batches)
    assert not torch.equal(copied(model)["0.weight"], before["0.weight"])


def test_an_average_that_looks_back_beyond_the_start_is_warned_of() -> None:
    config = TrainConfig(epochs=2, batch_size=16, schedule="constant", weight_averaging=0.999)
    with pytest.warns(UserWarning, match=r"back over 1,000 steps, and the run has 8, .* start"):
        make_trainer(config).fit(make_net(), make_set())


def test_complex_weights_are_averaged() -> None:
    class Turned(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(2, 3, dtype=torch.complex64))

        def forward(self, x: Tensor) -> Tensor:
            return (x.to(torch.complex64) @ self.weight.T).real

    batches = [(torch.ones(4, 3), torch.zeros(4, 2))]
    words: dict[str, Any] = {"loss": "MSELoss", "schedule": "constant", "learning_rate": 0.01}
    seen = []
    model = Turned()

    def look(row: Any) -> None:
        seen.append(model.weight.detach().clone())

    config = TrainConfig(epochs=2, weight_averaging=0.5, **words)
    Trainer(config, device="cpu", progress=look).fit(model, batches)
    # The weights of the first step, and the average of both after the last.
    plain = Turned()
    Trainer(TrainConfig(epochs=2, **words), device="cpu", progress=False).fit(plain, batches)
    assert torch.allclose(model.weight, (seen[0] + plain.weight) / 2)


def test_frozen_weights_stay() -> None:
    model = make_net()
    model[0].requires_grad_(False)  # type: ignore[index]
    before = copied(model)
    make_trainer(CONFIG).fit(model, make_set())
    assert torch.equal(model.state_dict()["0.weight"], before["0.weight"])
    assert not torch.equal(model.state_dict()["6.weight"], before["6.weight"])


def test_fit_works_outside_the_main_thread() -> None:
    expected, model = make_net(), make_net()
    make_trainer(CONFIG).fit(expected, make_set())
    errors: list[Exception] = []

    def work() -> None:
        try:
            make_trainer(CONFIG).fit(model, make_set())
        except Exception as error:  # noqa: BLE001 - whatever it is, the test shall show it
            errors.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert errors == []
    assert_same_bits(model.state_dict(), expected.state_dict())
