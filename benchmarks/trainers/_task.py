"""What is to be trained, the same for every way; the clock that times it; whether it was done."""

import copy
import dataclasses
import math
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from constrained_cnn import data, models, recipes
from constrained_cnn.data import ImageSet
from constrained_cnn.training import TrainConfig

__all__ = ["KINDS", "Clock", "Made", "Task", "check_trained", "load_images", "loss_of", "make_task"]

Batch = tuple[Tensor, Tensor]
WHOLE_MNIST = 60_000

# What is trained, and where its batches come from.
KINDS = {
    "rotated": "the recipe's network, its images rotated as the recipe says",
    "plain": "the recipe's network, its images as they are",
    "linear": "a linear model, batches made beforehand",
    "linear-resident": "a linear model, batches drawn from a resident set",
}


@dataclass(frozen=True)
class Task:
    """A network, its data and how to train it.

    Attributes:
        kind: One of :data:`KINDS`.
        model: The network, with new weights, on the CPU.
        images: The images of an epoch, on the CPU.
        config: Epochs, batch size, optimizer, schedule, loss.
        device: Where to train.
        batches: The batches of an epoch, on the device, for a task that has them made beforehand.
    """

    kind: str
    model: nn.Module
    images: ImageSet
    config: TrainConfig
    device: torch.device
    batches: list[Batch] | None = None

    @property
    def steps(self) -> int:
        """Steps of the whole run."""
        return self.config.epochs * self.images.steps(self.config.batch_size)

    @property
    def classes(self) -> int:
        """Number of classes."""
        return len(self.images.classes)

    def arrays(self) -> Batch:
        """Return all inputs, normalised, and all labels, on the CPU."""
        return self.images.normalised(self.images.images), self.images.labels

    def loader(self) -> Iterable[Batch]:
        """Return what those iterate over who bring no data of their own: anew for every epoch."""
        if self.batches is not None:
            return Made(self.batches)
        return DataLoader(
            TensorDataset(*self.arrays()),
            batch_size=self.config.batch_size,
            shuffle=True,
            pin_memory=self.device.type == "cuda",
        )


class Made(Dataset[Batch]):
    """Batches that were made beforehand, as a loader or for one that is not to put them together.

    A plain list would be taken by some for several loaders.
    """

    def __init__(self, batches: list[Batch]) -> None:
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, index: int) -> Batch:
        return self.batches[index]

    def __iter__(self) -> Iterator[Batch]:
        return iter(self.batches)


def make_task(
    kind: str,
    *,
    recipe: str,
    epochs: int,
    steps: int,
    device: torch.device,
    data_dir: str | None = None,
) -> Task:
    """Return a task of ``epochs`` epochs of ``steps`` steps."""
    if kind.startswith("linear"):
        return _linear_task(kind, epochs, steps, device)
    chosen = recipes.get_recipe(recipe)
    # Without what comes after the last step, which no other trainer does.
    config = dataclasses.replace(chosen.config, epochs=epochs, precise_bn=None)
    images = load_images(data_dir, min(steps * config.batch_size, WHOLE_MNIST))
    how = chosen.augmentation if kind == "rotated" else None
    torch.manual_seed(config.seed)
    model = models.create_model(chosen.model)
    return Task(kind, model, images.augmented(how), config, device)


def _linear_task(kind: str, epochs: int, steps: int, device: torch.device) -> Task:
    config = TrainConfig(epochs=epochs)
    torch.manual_seed(config.seed)
    pixels = torch.randint(0, 256, (steps * config.batch_size, 1, 2, 5), dtype=torch.uint8)
    upper, lower = pixels[:, 0].long().sum(2).unbind(1)
    images = ImageSet.from_arrays(pixels, (upper > lower).long(), name="random")
    model = nn.Sequential(nn.Flatten(), nn.Linear(10, 2))
    batches = None
    if kind == "linear":
        batches = [(x.clone(), y.clone()) for x, y in images.to(device).batches(config.batch_size)]
    return Task(kind, model, images, config, device, batches)


def load_images(root: str | None, count: int) -> ImageSet:
    """Return ``count`` training images: MNIST if it is there, else the digits of scikit-learn.

    A set with fewer images is repeated.
    """
    try:
        train, _ = data.load_mnist(root, download=False)
    except data.MissingDataError:
        train, _ = data.load_digits()
    return train.subset(torch.arange(count) % len(train))


class Clock:
    """Notes the time at the end of each epoch, when the device has nothing left to do."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.times = [self._now()]

    def tick(self, *_: Any, **__: Any) -> None:
        """Note that an epoch has ended; what a callback is called with is no matter."""
        self.times.append(self._now())

    def note(self, seconds: Iterable[float]) -> None:
        """Note epochs that were timed by the way itself and have ended now."""
        ends = [self._now()]
        for taken in reversed(list(seconds)[1:]):
            ends.insert(0, ends[0] - taken)
        self.times += ends

    def epochs(self) -> list[float]:
        """Return the seconds of each epoch; the first has the start-up in it."""
        return [end - begin for begin, end in zip(self.times, self.times[1:], strict=False)]

    def since_start(self) -> float:
        """Return the seconds up to now."""
        return self._now() - self.times[0]

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()


def loss_of(model: nn.Module, task: Task) -> float:
    """Return the loss on the first images, in training mode; the model stays as it was.

    In training mode, as the running statistics of a batch norm take longer to settle than a short
    run has.
    """
    copied = copy.deepcopy(model).train()
    device = next(copied.parameters()).device
    inputs, labels = next(iter(task.images.to(device).batches(512)))
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        return float(F.cross_entropy(copied(inputs), labels))


def check_trained(model: nn.Module, task: Task, *, steps: int, before: float, after: float) -> None:
    """Raise unless the model took every step, and learned.

    Args:
        model: What was trained, or is said to have been.
        task: What was asked for.
        steps: How many steps the way says it took.
        before: Loss before training.
        after: Loss after it.

    Raises:
        RuntimeError: If it did not.
    """
    # A batch norm counts the batches that it meets in training, whoever trains it.
    counts = {
        int(part.num_batches_tracked)
        for part in model.modules()
        if isinstance(part, nn.modules.batchnorm._BatchNorm)
        if part.num_batches_tracked is not None
    }
    for found in (steps, *counts):
        if found != task.steps:
            raise RuntimeError(f"took {found} steps, and {task.steps} were asked for")
    if not (math.isfinite(after) and after < before):
        raise RuntimeError(f"learned nothing: the loss was {before:.4f} and is {after:.4f}")
