"""Where batches come from: a set that lives on the device, or any iterable of batches."""

import copy
import itertools
import signal
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol, Self, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from constrained_cnn.errors import InvalidInputError
from constrained_cnn.training._interrupt import signals_held

Batch = tuple[Tensor, Tensor]


@runtime_checkable
class ResidentSet(Protocol):
    """A data set that holds its tensors on the device and plans an epoch from (seed, epoch).

    :class:`constrained_cnn.data.ImageSet` is one. Because order and augmentation are a pure
    function of (seed, epoch), a run can go on at any batch without a sampler's state.
    """

    @property
    def classes(self) -> Sequence[str]:
        """Names of the classes."""

    def describe(self) -> dict[str, Any]:
        """Return what an epoch depends on as plain data, such as a checksum of the content."""

    def __len__(self) -> int: ...

    def to(self, device: torch.device | str) -> Self:
        """Return the set on ``device``."""

    def steps(self, batch_size: int) -> int:
        """Return the number of batches in an epoch."""

    def batches(
        self,
        batch_size: int,
        *,
        memory_format: torch.memory_format = torch.contiguous_format,
        part: tuple[int, int] = (0, 1),
    ) -> Iterator[Batch]:
        """Yield (inputs, targets) in order, as for evaluation."""

    def training_batches(
        self,
        batch_size: int,
        *,
        seed: int,
        epoch: int,
        memory_format: torch.memory_format = torch.contiguous_format,
        start: int = 0,
        part: tuple[int, int] = (0, 1),
    ) -> Iterator[Batch]:
        """Yield (inputs, targets) in the order, and with the augmentation, of this epoch.

        Args:
            batch_size: Samples in a batch, over all processes.
            seed: Seed of the run.
            epoch: Number of the epoch.
            memory_format: Layout of the inputs.
            start: Number of the first batch, from 0: a run may go on in the middle of an epoch.
            part: ``(r, n)`` for samples r, r + n, r + 2n and so on of every batch.
        """


Data = ResidentSet | Iterable[Any]


class Source:
    """One data set as the trainer reads it: batches of tensors on the device.

    Args:
        data: A :class:`ResidentSet`, or an iterable of (inputs, targets) such as a
            :class:`torch.utils.data.DataLoader`, which is iterated anew for every epoch.
        batch_size: Batch size for a resident set; an iterable brings its own.
        device: Where the batches go.
        channels_last: Whether 4-D inputs get the channels innermost.
        name: What to call it in an error.
        part: ``(r, n)``: which samples of every batch this process takes, r, r + n, r + 2n and
            so on.

    Raises:
        InvalidInputError: If it is neither, or empty.
    """

    def __init__(
        self,
        data: Data,
        *,
        batch_size: int,
        device: torch.device,
        channels_last: bool,
        name: str,
        part: tuple[int, int] = (0, 1),
    ) -> None:
        self.name = name
        self.part = part
        self.batch_size = batch_size
        self.device = device
        self.channels_last = channels_last
        self.resident: ResidentSet | None = None
        self.iterable: Iterable[Any] = ()
        if isinstance(data, ResidentSet):
            self.resident = data.to(device)
        elif isinstance(data, Iterable) and not isinstance(data, str | bytes | Tensor | dict):
            self.iterable = data
        else:
            raise InvalidInputError(
                f"{name}={type(data).__name__}: must be an ImageSet or an iterable of "
                "(inputs, targets) batches, such as a torch DataLoader"
            )
        if self.steps == 0:
            raise InvalidInputError(f"{name}: holds no batches")

    @property
    def steps(self) -> int | None:
        """Batches in an epoch; None where the iterable does not say."""
        if self.resident is not None:
            return self.resident.steps(self.batch_size)
        try:
            return len(self.iterable)  # type: ignore[arg-type]
        except TypeError:
            return None

    @property
    def classes(self) -> int | None:
        """Number of classes, where the set knows it."""
        return None if self.resident is None else len(self.resident.classes)

    def describe(self) -> dict[str, Any]:
        """Return what an epoch depends on as plain data; of an iterable only its length."""
        return {"steps": self.steps} if self.resident is None else self.resident.describe()

    def generators(self) -> list[torch.Generator]:
        """Return torch's generators that a DataLoader and its samplers keep for themselves."""
        holders = [self.iterable, getattr(self.iterable, "sampler", None)]
        batches = getattr(self.iterable, "batch_sampler", None)
        holders += [batches, getattr(batches, "sampler", None)]
        found = [one for holder in holders for one in getattr(holder, "__dict__", {}).values()]
        own = {id(one): one for one in found if isinstance(one, torch.Generator)}
        return list(own.values())

    def first_inputs(self) -> Tensor | None:
        """Return the inputs of one small batch; None for an iterable, which is not disturbed."""
        if self.resident is None:
            return None
        return next(iter(self.resident.batches(1, memory_format=self._memory_format)))[0]

    def batches(self) -> Iterator[Batch]:
        """Yield every batch in order, as for evaluation."""
        if self.resident is not None:
            return self.resident.batches(
                self.batch_size, memory_format=self._memory_format, part=self.part
            )
        return self._checked(self._begun())

    def training_batches(self, *, seed: int, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Yield the batches of a training epoch from number ``start`` on.

        The order of an iterable is its own; a shuffling DataLoader draws it from torch's global
        generator, which the trainer seeds for each epoch. Its batches before ``start`` have to be
        read and thrown away, here and at once, so that what is drawn for them is drawn before the
        caller sets the generator to where it was.
        """
        if self.resident is not None:
            return self.resident.training_batches(
                self.batch_size,
                seed=seed,
                epoch=epoch,
                memory_format=self._memory_format,
                start=start,
                part=self.part,
            )
        batches = self._begun()
        for _ in itertools.islice(batches, start):
            pass
        if self.part[1] > 1 and not start:
            # A loader draws its order with its first batch, and all processes need the same.
            batches = itertools.chain(list(itertools.islice(batches, 1)), batches)
        return self._checked(batches)

    def whole(self) -> "Source":
        """Return the same data, of which this process takes all."""
        twin = copy.copy(self)
        twin.part = (0, 1)
        return twin

    @property
    def _memory_format(self) -> torch.memory_format:
        return torch.channels_last if self.channels_last else torch.contiguous_format

    def _begun(self) -> Iterator[Any]:
        """Begin to read an iterable, whose own processes get no Ctrl-C before the step is done."""
        if not getattr(self.iterable, "num_workers", 0):
            return iter(self.iterable)
        if getattr(self.iterable, "_iterator", None) is not None:
            # Processes that persist. Torch draws a number when it begins them and not when it goes
            # on with them, so that the order of an epoch would depend on whether it is the first.
            generator = getattr(self.iterable, "generator", None)
            torch.empty((), dtype=torch.int64).random_(generator=generator)
        with signals_held(signal.SIGINT):
            return iter(self.iterable)

    def _checked(self, batches: Iterator[Any]) -> Iterator[Batch]:
        first, number = self.part
        for batch in batches:
            if not (isinstance(batch, tuple | list) and len(batch) == 2):
                raise InvalidInputError(
                    f"{self.name}: each batch must be a pair (inputs, targets), "
                    f"got {type(batch).__name__}"
                )
            inputs, targets = batch
            if not (isinstance(inputs, Tensor) and isinstance(targets, Tensor)):
                raise InvalidInputError(
                    f"{self.name}: inputs and targets must be tensors, got "
                    f"{type(inputs).__name__} and {type(targets).__name__}"
                )
            if len(inputs) != len(targets) or len(inputs) == 0:
                raise InvalidInputError(
                    f"{self.name}: a batch of {len(inputs)} inputs and {len(targets)} targets; "
                    "both must hold the same number of samples, at least one"
                )
            if number > 1:
                inputs, targets = inputs[first::number], targets[first::number]
            inputs = inputs.to(self.device, non_blocking=True)
            if self.channels_last and inputs.ndim == 4:
                inputs = inputs.contiguous(memory_format=torch.channels_last)
            yield inputs, targets.to(self.device, non_blocking=True)


def epoch_seed(seed: int, epoch: int, rank: int = 0) -> int:
    """Return the seed of torch's global generator for one epoch (dropout, a loader's order).

    Each of several processes has its own, as each drops elements of other samples.
    """
    words = [seed, epoch, rank] if rank else [seed, epoch]
    return int(np.random.SeedSequence(words).generate_state(1, np.uint64)[0] >> 1)
