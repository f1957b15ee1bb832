"""Several runs led side by side: each gives what it gives alone."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from recorded_graph import RecordedGraph
from scipy import stats
from torch import Tensor, nn

from constrained_cnn import ImageSet, TrainConfig, Trainer
from constrained_cnn.errors import InvalidInputError, NonFiniteLossError, OutOfMemoryError
from constrained_cnn.training import Fitted, History, _side_by_side
from constrained_cnn.training._average import Average
from constrained_cnn.training._checkpoint import load_checkpoint
from constrained_cnn.training._executor import EagerExecutor, Parts
from constrained_cnn.training._graph import GraphExecutor
from constrained_cnn.training._interrupt import InterruptGuard
from constrained_cnn.training._many import FitOne
from constrained_cnn.training._optimizers import prepare_optimizer
from constrained_cnn.training._schedule import Rates
from constrained_cnn.training._side_by_side import (
    Networks,
    branches_step,
    fit_side_by_side,
)

CONFIG: dict[str, Any] = {"epochs": 2, "batch_size": 4, "learning_rate": 0.1}
STEPS = 5
EVERYTHING = {"weight_averaging": 0.7, "clip_gradient": 0.5, "precise_bn": 2}
ADAM = {"optimizer": "AdamW", "optimizer_options": {}, "learning_rate": 0.01}


def make_set(count: int = 14, seed: int = 0) -> ImageSet:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (count, 1, 8, 8), generator=generator, dtype=torch.uint8)
    return ImageSet.from_arrays(images, torch.arange(count) % 4).augmented(rotation=20.0)


class Net(nn.Sequential):
    def __init__(self, p_drop: float = 0.0) -> None:
        layers = [nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(p_drop)]
        super().__init__(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 4))


def make_trainer(**values: Any) -> Trainer:
    config = TrainConfig(**{**CONFIG, **values})
    return Trainer(config, device="cpu", progress=False)


def side_by_side(
    trainer: Trainer, seeds: list[int], folder: Path | None = None, make: Any = Net
) -> list[Fitted]:
    """On a CPU seeds go to processes; here they go the way that they go on a GPU."""
    one = FitOne(trainer, make, make_set(), make_set(9, 1), folder, False, {"judged_on": "test"})
    return fit_side_by_side(one, seeds)


def alone(trainer: Trainer, seed: int, make: Any = Net) -> tuple[nn.Module, History]:
    torch.manual_seed(seed)
    model = make()
    return model, trainer.with_seed(seed).fit(model, make_set(), make_set(9, 1), judged_on="test")


@pytest.mark.parametrize(
    "options",
    [{}, EVERYTHING, ADAM, {"autocast": "bfloat16"}],
    ids=["plain", "everything", "adam", "autocast"],
)
def test_without_dropout_each_gives_what_it_gives_alone(
    options: dict[str, Any], tmp_path: Path
) -> None:
    trainer = make_trainer(**options)
    found = side_by_side(trainer, [3, 0, 7], tmp_path)
    for one, seed in zip(found, [3, 0, 7], strict=True):
        assert one.seed == seed
        model, history = alone(trainer, seed)
        assert one.model is not None
        assert one.history is not None
        for name, value in model.state_dict().items():
            assert torch.equal(value, one.model.state_dict()[name]), (seed, name)
        pairs = zip(history.to_dicts(), one.history.to_dicts(), strict=True)
        assert all({**a, "seconds": 0} == {**b, "seconds": 0} for a, b in pairs)
        assert one.history.status == "finished"
        # Its checkpoint is that of a run alone: any of them can be read as one.
        again = Net()
        kept = trainer.with_seed(seed).fit(
            again,
            make_set(),
            make_set(9, 1),
            judged_on="test",
            folder=tmp_path / f"seed-{seed}",
            resume=True,
        )
        assert kept == one.history
        assert all(
            torch.equal(a, b) for a, b in zip(again.parameters(), model.parameters(), strict=True)
        )


def test_with_dropout_the_losses_are_spread_alike() -> None:
    def make() -> nn.Module:
        return Net(0.4)

    trainer = make_trainer()
    seeds = list(range(24))
    together = [
        one.history[-1].train_loss for one in side_by_side(trainer, seeds, make=make) if one.history
    ]
    single = [alone(trainer, seed, make)[1][-1].train_loss for seed in seeds]
    assert together != single  # other elements were dropped
    assert stats.ttest_rel(together, single).pvalue > 0.01
    assert stats.ks_2samp(together, single).pvalue > 0.01
    assert 0.5 < np.std(together) / np.std(single) < 2
    again = [
        one.history[-1].train_loss for one in side_by_side(trainer, seeds, make=make) if one.history
    ]
    assert again == together


class Sick(nn.Module):
    """Cross-entropy that is NaN for one of the networks from some step on."""

    def __init__(self, calls: int) -> None:
        super().__init__()
        self.calls = calls

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        loss = nn.functional.cross_entropy(outputs, targets)
        if outputs.requires_grad:
            self.calls -= 1
            if self.calls == 0:
                return loss * torch.nan
        return loss


def test_one_that_diverges_leaves_the_others_as_they_are() -> None:
    trainer = Trainer(
        TrainConfig(**CONFIG),
        device="cpu",
        progress=False,
        loss=Sick(5),  # the second's second
    )
    found = side_by_side(trainer, [1, 2, 3])
    assert isinstance(found[1].error, NonFiniteLossError)
    assert (found[1].error.epoch, found[1].error.step) == (1, 2)
    plain = Trainer(TrainConfig(**CONFIG), device="cpu", progress=False, loss=Sick(0))
    for one in (found[0], found[2]):
        model, _ = alone(plain, one.seed)
        assert one.model is not None
        for name, value in model.state_dict().items():
            assert torch.equal(value, one.model.state_dict()[name])


class Endless(Net):
    """Its weights are infinite for the seed 2."""

    def __init__(self) -> None:
        super().__init__()
        if torch.initial_seed() == 2:
            with torch.no_grad():
                next(self.parameters()).fill_(torch.inf)


@pytest.fixture
def recorders(monkeypatch: pytest.MonkeyPatch) -> list[RecordedGraph]:
    """Seeds side by side are led as a recorded graph; returned are what recorded them."""
    found: list[RecordedGraph] = []

    def make_executor(wanted: str, parts: Parts, device: torch.device, steps: int) -> GraphExecutor:
        found.append(RecordedGraph())
        assert prepare_optimizer(parts.optimizer, device) is None
        return GraphExecutor(parts, device, steps, recorder=found[-1])

    monkeypatch.setattr("constrained_cnn.training._side_by_side.make_executor", make_executor)
    return found


def test_one_that_diverges_leaves_the_graph_of_the_others_as_it_is(
    recorders: list[RecordedGraph],
) -> None:
    trainer = make_trainer(epochs=3)
    found = side_by_side(trainer, [1, 2, 3], make=Endless)
    assert isinstance(found[1].error, NonFiniteLossError)
    assert recorders[0].replays > 2 * STEPS - 4
    for one in (found[0], found[2]):
        assert one.history is not None
        assert one.history.made_on["executor"] == "graph"
        model, _ = alone(trainer, one.seed, make=Endless)
        assert one.model is not None
        assert not one.model.training
        for name, value in model.state_dict().items():
            assert torch.equal(value, one.model.state_dict()[name]), name


def test_graphs_are_given_back_at_the_end(recorders: list[RecordedGraph]) -> None:
    side_by_side(make_trainer(), [1, 2])
    assert [one.closed for one in recorders] == [True]
    with pytest.raises(RuntimeError, match="broken"):
        side_by_side(make_trainer(), [1, 2], make=Broken)
    assert [one.closed for one in recorders] == [True, True]


class Unsized:
    """Batches without a length."""

    def __init__(self, sizes: tuple[int, ...] = (4, 4, 4)) -> None:
        generator = torch.Generator().manual_seed(0)
        self.batches = [
            (torch.randn(size, 1, 8, 8, generator=generator), torch.arange(size) % 4)
            for size in sizes
        ]

    def __iter__(self) -> Any:
        return iter(self.batches)


def test_one_that_diverges_on_data_without_length_leaves_the_others_as_they_are() -> None:
    trainer = make_trainer(schedule="constant", schedule_options=None, epochs=3)
    one = FitOne(trainer, Endless, Unsized(), None, None, False, {"judged_on": "test"})
    found = fit_side_by_side(one, [1, 2, 3])
    assert isinstance(found[1].error, NonFiniteLossError)
    for fitted in (found[0], found[2]):
        torch.manual_seed(fitted.seed)
        model = Endless()
        trainer.with_seed(fitted.seed).fit(model, Unsized())
        assert fitted.model is not None
        for name, value in model.state_dict().items():
            assert torch.equal(value, fitted.model.state_dict()[name]), name


class Late(Net):
    """Uses one of its layers from its fourth step on."""

    def __init__(self) -> None:
        super().__init__()
        self.add_module("extra", nn.Linear(4, 4))
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += self.training
        for part in list(self)[:-1]:
            x = part(x)
        out: Tensor = self[-1](x) if self.calls > 3 else x
        return out


def test_a_checkpoint_holds_what_the_optimizer_keeps_from_a_later_step_on(tmp_path: Path) -> None:
    trainer = make_trainer(**ADAM)
    side_by_side(trainer, [1, 2], tmp_path, make=Late)
    for seed in (1, 2):
        state = load_checkpoint(tmp_path / f"seed-{seed}" / "checkpoint.pt")["optimizer"]
        assert sorted(state["state"]) == state["param_groups"][0]["params"]


class Own(torch.optim.SGD):
    """An optimizer of one's own."""


@pytest.mark.parametrize("kind", ["class", "hooks"])
def test_optimizers_that_may_not_move_several_networks_are_refused(kind: str) -> None:
    def make_optimizer(model: nn.Module) -> torch.optim.Optimizer:
        if kind == "class":
            return Own(model.parameters(), lr=0.1)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        optimizer.register_step_post_hook(lambda *_: None)
        return optimizer

    trainer = Trainer(TrainConfig(**CONFIG), device="cpu", progress=False, optimizer=make_optimizer)
    with pytest.raises(InvalidInputError, match=r"of your own.*give workers=1"):
        side_by_side(trainer, [1, 2])


def test_batches_of_other_shapes_for_each_seed_are_refused() -> None:
    class Shuffled(Unsized):
        def __iter__(self) -> Any:
            order = torch.randperm(len(self.batches)).tolist()
            return iter([self.batches[place] for place in order])

    trainer = make_trainer(schedule="constant", schedule_options=None)
    data = Shuffled((4, 3, 2, 1, 5, 6, 7, 8))
    one = FitOne(trainer, Net, data, None, None, False, {"judged_on": "test"})
    with pytest.raises(InvalidInputError, match=r"inputs of the shapes .* give workers=1"):
        fit_side_by_side(one, [1, 2, 3])


class Broken(Net):
    """Fails in its second epoch, when it is put in training mode again."""

    def __init__(self) -> None:
        super().__init__()
        self.starts = 0

    def train(self, mode: bool = True) -> "Broken":
        self.starts += mode
        if self.starts == 2:
            raise RuntimeError("broken")
        super().train(mode)
        return self


def test_a_stop_is_the_same_step_for_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The signal comes between the first run's question and the second's."""
    stopper = Stopper(after=7)
    monkeypatch.setattr(_side_by_side, "InterruptGuard", lambda: stopper)
    found = side_by_side(make_trainer(), [1, 2], tmp_path)
    histories = [one.history for one in found]
    assert [one and one.status for one in histories] == ["interrupted"] * 2
    assert len({one and one.steps_of_next for one in histories}) == 1
    for one in found:
        state = load_checkpoint(tmp_path / f"seed-{one.seed}" / "checkpoint.pt")
        assert one.model is not None
        for name, value in one.model.state_dict().items():
            assert torch.equal(value, state["model"][name]), name


class Stopper(InterruptGuard):
    """Is asked to stop once it has been asked so many times whether it is."""

    def __init__(self, after: int) -> None:
        super().__init__()
        self.left = after

    @property
    def requested(self) -> bool:
        self.left -= 1
        return self.left < 0


def test_out_of_memory_says_how_many_at_a_time(tmp_path: Path) -> None:
    def greedy(outputs: Tensor, targets: Tensor) -> Tensor:
        raise MemoryError("no more")

    trainer = Trainer(TrainConfig(**CONFIG), device="cpu", progress=False, loss=greedy)
    with pytest.raises(OutOfMemoryError, match=r"of 4 seeds side by side .* workers=2"):
        side_by_side(trainer, [1, 2, 3, 4], tmp_path)
    assert not list(tmp_path.glob("*/*"))  # refused before it learned anything


def make_parts(average: bool) -> Parts:
    """The parts of a step of three networks."""
    networks = []
    for seed in range(3):
        torch.manual_seed(seed)
        networks.append(Net(0.3))
    together = Networks(networks)
    groups = [{"params": list(one.parameters())} for one in networks]
    optimizer = torch.optim.SGD(groups, lr=0.1, momentum=0.9, nesterov=True)
    table = [[0.1 / (1 + step)] * 3 for step in range(3 * STEPS)]
    return Parts(
        together,
        nn.CrossEntropyLoss(),
        optimizer,
        Rates([0.1] * 3, table),
        Average(together, 0.8) if average else None,
        0.5,
        step=branches_step,
    )


@pytest.mark.parametrize("average", [False, True])
def test_as_a_recorded_graph_they_give_the_same_bits(average: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    sizes = [4, 4, 4, 4, 2] * 3
    batches = [
        (
            torch.randn(3, size, 1, 8, 8, generator=generator),
            torch.randint(0, 4, (3, size), generator=generator),
        )
        for size in sizes
    ]
    found = []
    for kind in ("eager", "graph"):
        parts = make_parts(average)
        prepare_optimizer(parts.optimizer, torch.device("cpu"))
        executor: Any = EagerExecutor(parts)
        if kind == "graph":
            executor = GraphExecutor(parts, torch.device("cpu"), STEPS, recorder=RecordedGraph())
        parts.model.train()
        torch.manual_seed(7)
        figures = []
        for index, (inputs, targets) in enumerate(batches):
            losses, counts = executor.step(inputs, targets, index)
            assert losses.shape == counts.shape == (3,)
            figures.append((losses.clone(), counts.clone()))
        assert executor.name == kind
        state = dict(parts.model.state_dict())
        if parts.average is not None:
            state |= {f"average.{k}": v for k, v in parts.average.module.state_dict().items()}
        found.append((figures, state))
    for (losses, counts), (others, more) in zip(found[0][0], found[1][0], strict=True):
        assert torch.equal(losses, others)
        assert torch.equal(counts, more)
    for name, value in found[0][1].items():
        assert torch.equal(value, found[1][1][name]), name
