"""What several processes run in the tests of training together.

:func:`fit` is one call of ``Trainer.fit``, made in every process of a pool or in the test alone.
As a script, under torchrun, this file runs the command line and gets killed by itself.
"""

import functools
import hashlib
import os
import signal
import sys
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from small_recipe import RECIPE, register
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from constrained_cnn import ImageSet, TrainConfig, Trainer, recipes
from constrained_cnn.errors import ConstrainedCNNError, NonFiniteLossError
from constrained_cnn.recipes import Recipe
from constrained_cnn.recipes._run import load_sets as load
from constrained_cnn.training import World
from constrained_cnn.training._executor import EagerExecutor

# Pool checks: Trainer.fit.


class Double(nn.Module):
    """Layers in float64, where nothing but rounding at 1e-16 can hide."""

    def __init__(self, layers: nn.Module) -> None:
        super().__init__()
        self.layers = layers.double()

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x.double())


class Thawing(nn.Sequential):
    """Its first layer is frozen until its second epoch."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__(*layers)
        self[0].requires_grad_(False)
        self.epochs = 0

    def train(self, mode: bool = True) -> "Thawing":
        self.epochs += mode
        if self.epochs == 2:
            self[0].requires_grad_(True)
        return super().train(mode)


class Counter(nn.Module):
    """Counts the rows that it meets."""

    rows: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("rows", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.rows.add_(len(x))
        return x


def make_net(parts: Sequence[str], classes: int, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    layers: list[nn.Module] = [nn.Conv2d(1, 4, 3)]
    layers += [nn.BatchNorm2d(4)] if "norm" in parts else []
    layers += [Counter()] if "counter" in parts else []
    layers += [nn.ReLU()]
    layers += [nn.Dropout(0.3)] if "dropout" in parts else []
    layers += [nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, classes)]
    net = (Thawing if "thaw" in parts else nn.Sequential)(*layers)
    return Double(net) if "double" in parts else net


def make_set(count: int, classes: int, seed: int = 0) -> ImageSet:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (count, 1, 8, 8), generator=generator, dtype=torch.uint8)
    names = [str(number) for number in range(classes)]
    made = ImageSet.from_arrays(images, torch.arange(count) % classes, classes=names)
    return made.augmented(rotation=20.0)


class Noisy(TensorDataset):
    """Draws from torch's global generator for every sample, as transforms of torchvision do."""

    def __getitem__(self, index: int) -> Any:
        inputs, labels = self.tensors
        return inputs[index] + 0.1 * torch.randn(()), labels[index]


def make_data(kind: str, count: int, classes: int, batch: int, seed: int = 0) -> Any:
    images = make_set(count, classes, seed)
    if kind == "resident":
        return images
    inputs = torch.cat([part for part, _ in images.batches(count)])
    held = (Noisy if kind == "noisy" else TensorDataset)(inputs, images.labels)
    return DataLoader(held, batch, shuffle=True)


class Loss:
    """Cross-entropy that notes what it meets, and at one of its calls in training does more."""

    def __init__(self, at: int, what: str) -> None:
        self.at, self.what = at, what
        self.calls = 0
        self.trained: list[list[int]] = []
        self.judged: list[list[int]] = []

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        loss = nn.functional.cross_entropy(outputs, targets)
        if not outputs.requires_grad:
            self.judged.append(targets.tolist())
            return loss
        self.calls += 1
        self.trained.append(targets.tolist())
        if self.calls == self.at and self.what == "SIGTERM":
            os.kill(os.getpid(), signal.SIGTERM)
        if self.calls == self.at and self.what == "NaN":
            return loss * torch.nan
        return loss


@dataclass(frozen=True)
class Outcome:
    """What one process is left with.

    Attributes:
        weights: Weights and buffers.
        rows: The epochs, but for their seconds.
        status: "finished" or "interrupted".
        steps: Steps of the epoch that was begun.
        trained: Labels met in training, batch for batch.
        judged: Labels met in validation.
        error: What was raised.
        samples: Samples met in training, by all processes.
    """

    weights: dict[str, Tensor]
    rows: list[dict[str, Any]]
    status: str
    steps: int
    trained: list[list[int]]
    judged: list[list[int]]
    error: str = ""
    samples: int = 0

    @property
    def checksum(self) -> str:
        held = hashlib.sha256()
        for name, part in self.weights.items():
            held.update(name.encode() + part.contiguous().numpy().tobytes())
        return held.hexdigest()


def fit(
    world: World,
    *,
    parts: Sequence[str] = (),
    config: Mapping[str, Any] | None = None,
    kind: str = "resident",
    judged_kind: str = "",
    count: int = 13,
    classes: int = 4,
    batch: int = 4,
    folder: str | None = None,
    resume: bool | str = False,
    at: Mapping[int, tuple[int, str]] | None = None,
    executor: str = "auto",
) -> Outcome:
    """Train in this process, together with the others of the world.

    Args:
        world: The processes.
        parts: What the network has: "norm", "dropout", "double", "thaw", "counter".
        config: Further words for the configuration.
        kind: Kind of the training set: "resident", "loader" or "noisy".
        judged_kind: Kind of the validation set, or "" for none.
        count: Number of training images.
        classes: Number of classes; as many as there are images tell them apart.
        batch: Batch size.
        folder: Folder of the run. Each process adds its number to the name, as if it were on a
            machine of its own.
        resume: Whether to go on.
        at: What happens in which process, at which of its steps.
        executor: What runs the steps.
    """
    # Only the weights of the first process count.
    model = make_net(parts, classes, seed=100 * world.rank + 10 * bool(resume))
    words = {"epochs": 3, "batch_size": batch, "seed": 3, "learning_rate": 0.1, **(config or {})}
    loss = Loss(*(at or {}).get(world.rank, (0, "")))
    trainer = Trainer(
        TrainConfig(**words),
        device="cpu",
        progress=False,
        loss=loss,
        checkpoint_seconds=0,
        executor=executor,
    )
    judged = make_data(judged_kind, 9, classes, batch, seed=1) if judged_kind else None
    error, rows, status, steps, samples = "", [], "", 0, 0
    try:
        history = trainer.fit(
            model,
            make_data(kind, count, classes, batch),
            judged,
            folder=None if folder is None else f"{folder}-{world.rank}",
            resume=resume,
        )
        rows = [{**row, "seconds": 0} for row in history.to_dicts()]
        status, steps = history.status, history.steps_of_next
        samples = history.timings.samples if history.timings else 0
    except NonFiniteLossError as raised:
        error = f"epoch {raised.epoch}, step {raised.step}"
    except ConstrainedCNNError as raised:
        error = f"{type(raised).__name__}: {raised}"
    weights = {name: part.detach().clone() for name, part in model.state_dict().items()}
    return Outcome(weights, rows, status, steps, loss.trained, loss.judged, error, samples)


def fit_own(world: World, *, own: Sequence[Mapping[str, Any]], **words: Any) -> Outcome:
    """Train with other words in each process, which is a mistake."""
    return fit(world, **{**words, **own[world.rank]})


def drop(world: World) -> tuple[list[bool], list[bool]]:
    """Return which elements a dropout dropped in each of two epochs, of inputs that are all one."""
    dropped: list[list[bool]] = []
    model = nn.Sequential(nn.Dropout(0.5), nn.Linear(64, 1))
    model[0].register_forward_hook(
        lambda module, given, out: dropped.append((out == 0).flatten().tolist())
    )
    config = TrainConfig(epochs=2, loss="MSELoss", batch_size=world.size)
    batches = [(torch.ones(world.size, 64), torch.ones(world.size, 1))]
    Trainer(config, device="cpu", progress=False).fit(model, batches)
    first, second = dropped
    return first, second


# Pool checks: seeds that are shared out.

SHORT, LONG = timedelta(seconds=1), timedelta(minutes=4)


def soon_out_of_patience() -> Any:
    """Let an exchange wait a second, unless it is to wait for days. To meet may take minutes."""
    make_group = World._make_group

    def make_then_hurry(self: World, timeout: timedelta, patience: timedelta) -> None:
        make_group(self, LONG, max(LONG, patience))
        if patience == timeout:
            group: Any = dist.group.WORLD
            group._get_backend(self.device)._set_default_timeout(SHORT)

    return mock.patch.object(World, "_make_group", make_then_hurry)


def wait_until_there(file: Path) -> None:
    while not file.exists():
        time.sleep(0.02)


def meet_late(given_up: Path) -> str:
    """Let the first process wait for the others until it gives up."""
    with soon_out_of_patience(), World.joined("cpu") as world:
        if world.rank:
            wait_until_there(given_up)
        try:
            world.total([1.0])
        except ConstrainedCNNError as error:
            return str(error)
        finally:
            given_up.touch()
    return ""


def share_seeds_late(done: Path) -> int:
    """Share seeds of which those of the first process are done long before the others."""

    def run_all(recipe: Recipe, seeds: Sequence[int], *_: Any, quiet: bool) -> dict[int, Any]:
        if 0 in seeds:
            done.touch()
        else:
            wait_until_there(done)
            time.sleep(3 * SHORT.total_seconds())
        return {seed: f"record of {seed}" for seed in seeds}

    with (
        soon_out_of_patience(),
        mock.patch("constrained_cnn.recipes._seeds._run_all", run_all),
    ):
        return len(recipes.run_seeds(RECIPE, range(3), device="cpu", out="nowhere"))


def fit_seeds(world: World) -> list[tuple[int, str]]:
    """Return seeds and checksums of the weights that ``fit_many`` gives to every process."""
    config = TrainConfig(epochs=1, batch_size=4)
    trainer = Trainer(config, device="cpu", progress=False, threads=1)

    class Net(nn.Sequential):
        """Of no module, so that nothing but its weights can be sent."""

    def make_model() -> nn.Module:
        return Net(make_net(("norm", "dropout"), 3, 0))

    found = trainer.fit_many(make_model, [5, 1, 2], make_set(13, 3), workers=1)
    return [(one.seed, checksum(one.model)) for one in found if one.model is not None]


def fit_other_seeds(world: World) -> str:
    """Ask for other seeds in each process, which is a mistake."""
    trainer = Trainer(TrainConfig(epochs=1), device="cpu", progress=False)
    try:
        trainer.fit_many(
            functools.partial(make_net, (), 3, 0), range(2 + world.rank), make_set(13, 3)
        )
    except ConstrainedCNNError as error:
        return str(error)
    return ""


def checksum(model: nn.Module) -> str:
    content = b"".join(part.numpy().tobytes() for part in model.state_dict().values())
    return hashlib.sha256(content).hexdigest()


# The script: the command line.


def kill_in_step(number: int) -> Any:
    """Return a patch with which this process sends itself SIGKILL before its step ``number``."""
    step = EagerExecutor.step
    taken = 0

    def killed(self: EagerExecutor, inputs: Tensor, targets: Tensor, index: int) -> Any:
        nonlocal taken
        taken += 1
        if taken == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return step(self, inputs, targets, index)

    return mock.patch.object(EagerExecutor, "step", killed)


def load_and_warn(*words: Any, **named: Any) -> Any:
    warnings.warn("the data is not what it should be", stacklevel=2)
    return load(*words, **named)


def main(folder: Path, *moments: str) -> None:
    """Run the command line, without pictures, and be killed.

    Args:
        folder: Where the runs go: ``whole``, ``seeds`` and ``killed``.
        moments: In which process, and before which of its steps, each start is killed: ``1:60``.
    """
    from constrained_cnn.cli import main as command

    register(pytest.MonkeyPatch())  # for as long as this process lasts
    train = ["train", RECIPE.name, "--device", "cpu", "--checkpoint-seconds", "0"]
    rank, start = int(os.environ["RANK"]), int(os.environ["TORCHELASTIC_RESTART_COUNT"])
    with mock.patch("constrained_cnn.recipes._run._draw"):
        if start == 0:
            with mock.patch("constrained_cnn.recipes._run.load_sets", load_and_warn):
                assert command([*train, "--out", str(folder / "whole")]) == 0
            assert command([*train, "--seeds", "0-3", "--out", str(folder / "seeds")]) == 0
        elif rank == 0:
            state = torch.load(folder / "killed" / "checkpoint.pt", weights_only=True)
            print(f"start {start}: epoch {state['epoch']}, step {state['step']}", flush=True)
        victim, number = moments[start].split(":") if start < len(moments) else ("", "0")
        with kill_in_step(int(number) if str(rank) == victim else 0):
            killed = [*train, "--resume-if-begun", "--out", str(folder / "killed")]
            assert command(killed) == 0


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
