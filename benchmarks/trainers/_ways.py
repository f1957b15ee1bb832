"""The ways to train that are compared, each in a file that is read when it is asked for."""

import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.trainers._task import Clock, Task

__all__ = ["OURS", "RAW", "WAYS", "Way", "lineup"]

# Trains the task's model in place, ticks at the end of each epoch, returns the steps it took.
Train = Callable[[Task, Clock], int]


@dataclass(frozen=True)
class Way:
    """A way to train.

    Attributes:
        title: What it is called in tables.
        place: The function, as ``module:name``.
        kinds: The kinds of task it does.
        package: Name of the package it needs on a package index; empty for none but ours.
        module: Name under which that is imported.
        needs_cuda: Whether it does not work on a CPU.
        exact: Whether it goes through batches made beforehand in their order, by the optimizer and
            schedule of the configuration: it then ends where the raw loop ends.
    """

    title: str
    place: str
    kinds: tuple[str, ...]
    package: str = ""
    module: str = ""
    needs_cuda: bool = False
    exact: bool = True

    @property
    def installed(self) -> bool:
        """Whether what it needs is there."""
        return not self.module or importlib.util.find_spec(self.module) is not None

    def load(self) -> Train:
        """Return the function that trains."""
        file, _, name = self.place.partition(":")
        return getattr(importlib.import_module(f"benchmarks.trainers.{file}"), name)


_EVERY = ("rotated", "plain", "linear", "linear-resident")
_NETWORK = ("rotated", "plain")
_RIVALS = ("plain", "linear")
RAW = "raw"
OURS = ("graph", "eager")  # the first that is there is what others are compared with

WAYS = {
    "source": Way("source's way", "_plain:source", ("rotated",)),
    RAW: Way("raw PyTorch loop", "_plain:raw", _EVERY),
    "eager": Way("Trainer, eager", "_plain:eager", _EVERY),
    "graph": Way("Trainer, graph", "_plain:graph", _EVERY, needs_cuda=True),
    "bfloat16": Way("Trainer, bfloat16, channels last", "_plain:bfloat16", _NETWORK),
    "lightning": Way(
        "Lightning", "_lightning:usual", _RIVALS, "pytorch-lightning", "pytorch_lightning"
    ),
    "lightning-barebones": Way(
        "Lightning, barebones",
        "_lightning:barebones",
        _RIVALS,
        "pytorch-lightning",
        "pytorch_lightning",
    ),
    "ignite": Way("ignite", "_ignite:train", _RIVALS, "pytorch-ignite", "ignite"),
    "skorch": Way("skorch", "_skorch:train", _RIVALS, "skorch", "skorch"),
    "keras": Way("Keras on torch", "_keras:train", _RIVALS, "keras", "keras", exact=False),
}


def lineup(kind: str, device: str) -> list[str]:
    """Return the names of the ways that do a kind of task on a type of device, in order."""
    return [
        name
        for name, way in WAYS.items()
        if kind in way.kinds and (device == "cuda" or not way.needs_cuda)
    ]
