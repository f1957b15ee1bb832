"""The processes that train one network together, each on its own rows of every batch."""

import os
import pickle
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from constrained_cnn.errors import ConstrainedCNNError, InvalidInputError, reason_of

ENVIRONMENT = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
BACKENDS = {"cpu": "gloo", "cuda": "nccl"}
TIMEOUT = timedelta(minutes=10)
PATIENCE = timedelta(days=7)
NONE = 2**63 - 1  # stands for None in an exchange of integers


@dataclass(frozen=True)
class World:
    """The processes that train one network together.

    All of them call the same methods in the same order: each call that more than one process makes
    waits for the others. A process on its own is rank 0 of 1, for which nothing is exchanged.

    Attributes:
        rank: Number of this process, from 0.
        size: Number of processes.
        device: Where this process trains.

    Examples:
        >>> with World.joined("cpu") as world:
        ...     world.total([1.5, 2.0]), world.any(False, True), world.lowest(None)
        ([1.5, 2.0], (False, True), None)
    """

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @classmethod
    @contextmanager
    def joined(
        cls, device: torch.device | str, *, timeout: timedelta = TIMEOUT, patient: bool = False
    ) -> Iterator["World"]:
        """Join the processes that ``torchrun`` started, for as long as it is entered.

        A process group that the caller has made is used and left as it is; one made here is gone
        afterwards. Without either, this process is on its own.

        Args:
            device: Where to train. ``"cuda"`` without a number is the GPU of this process's
                ``LOCAL_RANK``.
            timeout: How long to wait for the others, here and in every exchange; a group that the
                caller has made keeps its own.
            patient: Whether an exchange may take days, as between processes that do work of their
                own meanwhile.

        Raises:
            InvalidInputError: If the environment is set by half or contradicts the group, or the
                device cannot take part.
            ConstrainedCNNError: If the others are not there in time.
        """
        told = _told()
        group = (dist.get_rank(), dist.get_world_size()) if _has_group() else None
        if group and told and group[1] != told[1]:
            raise InvalidInputError(
                f"WORLD_SIZE={told[1]}: torch.distributed was initialised with {group[1]} "
                "processes; both must be the same, so unset RANK and WORLD_SIZE, or let the "
                "trainer make the group"
            )
        rank, size = group or told or (0, 1)
        world = cls(rank, size, _own(torch.device(device)) if size > 1 else torch.device(device))
        if size == 1:
            yield world
            return
        world._check_device(None if group is None else dist.get_backend())
        on_device: AbstractContextManager[Any] = nullcontext()
        if world.device.type == "cuda":
            on_device = torch.cuda.device(world.device)  # objects travel over the current one
        hook = sys.excepthook
        with on_device:
            if group is None:
                world._make_group(timeout, PATIENCE if patient else timeout)
            try:
                yield world
            finally:
                if group is None:
                    dist.destroy_process_group()
                    _HELD.clear()
                    sys.excepthook = hook  # torch puts one of its own there for every group

    @property
    def is_first(self) -> bool:
        """Whether this process writes what is written once."""
        return self.rank == 0

    def copy_from_first(self, tensors: Iterable[Tensor]) -> None:
        """Overwrite ``tensors``, in place and bit by bit, with those of rank 0.

        Raises:
            InvalidInputError: In every process, if they differ in number or size.
        """
        if self.size == 1:
            return
        parts = [part.detach() for part in tensors]
        # As bytes: one exchange for all types, and for those that a backend does not know.
        pieces = [part.reshape(-1).view(torch.uint8).to(self.device) for part in parts]
        sizes = torch.tensor([len(pieces), sum(map(len, pieces))], device=self.device)
        if bool((self.stacked(sizes) != sizes).any()):
            raise InvalidInputError(
                f"the processes hold different networks: rank {self.rank} has {int(sizes[0])} "
                f"tensors of {int(sizes[1])} bytes; build the same model in every process"
            )
        if not pieces:
            return
        flat = torch.cat(pieces)
        self._from_first(flat)
        for part, piece in zip(parts, flat.split([len(piece) for piece in pieces]), strict=True):
            part.copy_(piece.clone().view(part.dtype).view(part.shape))

    def mean_buffers(self, model: nn.Module, samples: int) -> None:
        """Make the buffers of a network the same in every process.

        Batch norms that look at the rows of their own process alone have other running statistics
        in each. These become the mean over the processes, weighed by samples: a running variance
        is a mean of the variances of batches, and stays one. Any other buffer becomes that of
        rank 0.

        Args:
            model: The network.
            samples: How many samples this process met since they were last the same.
        """
        if self.size == 1:
            return
        statistics = [
            buffer
            for norm in model.modules()
            if isinstance(norm, _NormBase)
            for buffer in (norm.running_mean, norm.running_var)
            if buffer is not None
        ]
        if statistics:
            flat = torch.cat([part.detach().double().reshape(-1) for part in statistics])
            # Not zero times what may be NaN.
            flat = flat * samples if samples else torch.zeros_like(flat)
            flat = torch.cat([flat, flat.new_full((1,), samples)])
            self.add_up(flat)
            means = (flat[:-1] / flat[-1]).split([part.numel() for part in statistics])
            for part, mean in zip(statistics, means, strict=True):
                part.detach().copy_(mean.view(part.shape))
        done = {id(part) for part in statistics}
        self.copy_from_first(part for part in model.buffers() if id(part) not in done)

    def total(self, values: Sequence[float]) -> list[float]:
        """Return the sums over the processes, in float64: exact for counts up to 2^53."""
        if self.size == 1:
            return [float(value) for value in values]
        sums = torch.tensor(values, dtype=torch.float64, device=self.device)
        self.add_up(sums)
        return sums.tolist()

    def lowest(self, value: int | None) -> int | None:
        """Return the lowest value that any process gives; None if none gives any."""
        if self.size == 1:
            return value
        given = torch.tensor([NONE if value is None else value], device=self.device)
        self._reduce(given, dist.ReduceOp.MIN)
        lowest = int(given)
        return None if lowest == NONE else lowest

    def any(self, *flags: bool) -> tuple[bool, ...]:
        """Return, for each flag, whether it is set in any process: the same answer in all."""
        if self.size == 1:
            return tuple(bool(flag) for flag in flags)
        given = torch.tensor([int(flag) for flag in flags], device=self.device)
        self._reduce(given, dist.ReduceOp.MAX)
        return tuple(bool(flag) for flag in given.tolist())

    def gathered(self, item: Any) -> list[Any]:
        """Return the items of all processes, in order, to each of them.

        Args:
            item: A tensor, which arrives on the CPU, or plain data; small, as it is pickled.
        """
        item = item.cpu() if isinstance(item, Tensor) else item
        if self.size == 1:
            return [item]
        content = self._as_bytes(item)
        lengths = self.stacked(torch.tensor([len(content)], device=self.device)).flatten().tolist()
        padded = content.new_zeros(max(lengths))
        padded[: len(content)] = content
        rows = self.stacked(padded)
        return [_from_bytes(row[:length]) for row, length in zip(rows, lengths, strict=True)]

    def from_first(self, make: Callable[[], Any]) -> Any:
        """Return to every process what rank 0 makes; the others make nothing.

        Args:
            make: Makes plain data, small, as it is pickled.
        """
        if self.size == 1:
            return make()
        content = self._as_bytes(make() if self.is_first else None)
        length = self._from_first(torch.tensor([len(content)], device=self.device))
        return _from_bytes(
            self._from_first(content if self.is_first else content.new_empty(int(length)))
        )

    def add_up(self, tensor: Tensor) -> None:
        """Make ``tensor`` its sum over the processes, in place, with nothing read on the host."""
        if self.size > 1:
            self._reduce(tensor, dist.ReduceOp.SUM)

    def stacked(self, tensor: Tensor) -> Tensor:
        """Return the tensors of all processes, which have one shape, as rows ``(size, ...)``.

        It is a sum in which each process fills its own row, and so exact: gloo has no all-gather
        for a tensor on a GPU.
        """
        rows = tensor.new_zeros((self.size, *tensor.shape))
        rows[self.rank] = tensor
        self.add_up(rows)
        return rows

    def _reduce(self, tensor: Tensor, how: Any) -> None:
        self._exchange(tensor, lambda: dist.all_reduce(tensor, how))

    def _from_first(self, tensor: Tensor) -> Tensor:
        self._exchange(tensor, lambda: dist.broadcast(tensor, 0))
        return tensor

    def _as_bytes(self, item: Any) -> Tensor:
        # From a bytearray, as torch warns of bytes, which it could write to.
        return torch.frombuffer(bytearray(pickle.dumps(item)), dtype=torch.uint8).to(self.device)

    def _exchange(self, tensor: Tensor, call: Callable[[], Any]) -> None:
        """Exchange ``tensor`` by ``call``; say that others failed where torch speaks of sockets."""
        if tensor.device.type == "cpu":
            _HELD.append(tensor)
        try:
            call()
        except RuntimeError as error:
            raise ConstrainedCNNError(
                f"rank {self.rank} of {self.size} lost the other processes, whose own messages say "
                f"why: {reason_of(error)}"
            ) from error

    def _check_device(self, backend: str | None) -> None:
        """Raise unless tensors on the device can be exchanged, by a group of this backend if any.

        Raises:
            InvalidInputError: If they cannot.
        """
        if self.device.type not in BACKENDS:
            raise InvalidInputError(
                f"device={str(self.device)!r}: {self.size} processes can train together on 'cpu' "
                "or 'cuda'"
            )
        if self.device.type == "cuda" and self.device.index >= torch.cuda.device_count():
            raise InvalidInputError(
                f"device={str(self.device)!r}: there are {torch.cuda.device_count()} CUDA devices "
                "for the processes of this machine, and each needs one of its own; start fewer "
                "(torchrun --nproc-per-node), or train on 'cpu'"
            )
        if self.device.type == "cpu" and backend == "nccl":
            raise InvalidInputError(
                "device='cpu': torch.distributed was initialised with 'nccl', which exchanges "
                "nothing between CPUs; initialise it with 'gloo', or train on 'cuda'"
            )

    def _make_group(self, timeout: timedelta, patience: timedelta) -> None:
        """Meet the other processes and make the default group of torch.

        Args:
            timeout: How long to wait for them here.
            patience: How long to wait for them in an exchange.

        Raises:
            ConstrainedCNNError: If they are not there in time.
        """
        place = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        try:
            store = _store(place, self.rank, self.size, timeout)
            store.set_timeout(timeout)
            # The store outlives a group, and the addresses of an earlier one are still in it.
            # Every process counts its groups there, so all of them come to the same number.
            number = store.add(f"constrained_cnn/groups_of_{self.rank}", 1)
            dist.init_process_group(
                BACKENDS[self.device.type],
                store=dist.PrefixStore(  # type: ignore[attr-defined]
                    f"constrained_cnn/{number}", store
                ),
                rank=self.rank,
                world_size=self.size,
                timeout=patience,
                device_id=self.device if self.device.type == "cuda" else None,
            )
        except (RuntimeError, ValueError) as error:
            raise ConstrainedCNNError(
                f"rank {self.rank} of {self.size} could not meet the others at {place} within "
                f"{timeout.total_seconds():g} seconds: {reason_of(error)}. All {self.size} "
                "processes must be started, and must reach that address"
            ) from error


# What was exchanged last. A thread of gloo may have it a little longer than the exchange does. Were
# it the last to let go, it would wait for Python, and the end of the group, in Python, for the
# thread (seen with torch 2.6).
_HELD: deque[Tensor] = deque(maxlen=8)

_STORES: dict[tuple[str, int, int], Any] = {}


def _store(place: str, rank: int, size: int, timeout: timedelta) -> Any:
    """Return where the processes find one another, made once for all groups of this process.

    Without torchrun it lives in rank 0. Were it made anew for every group, a process that is early
    could meet the one that is about to close, and wait there for nobody.
    """
    key = place, rank, size
    if key not in _STORES:
        meet: Any = dist.rendezvous  # type: ignore[attr-defined]
        _STORES[key] = next(meet("env://", rank, size, timeout=timeout))[0]
    return _STORES[key]


def _from_bytes(content: Tensor) -> Any:
    return pickle.loads(content.cpu().numpy().tobytes())


def local_rank() -> int | None:
    """Return the number of this process on its machine, which is that of its GPU; None if unsaid.

    Raises:
        InvalidInputError: If ``LOCAL_RANK`` is not a number.
    """
    return _number("LOCAL_RANK") if os.environ.get("LOCAL_RANK") else None


def _own(device: torch.device) -> torch.device:
    """Return the device of this process."""
    if device.type != "cuda" or device.index is not None:
        return device
    place = local_rank()
    if place is None:
        place = torch.cuda.current_device() if torch.cuda.is_available() else 0
    return torch.device("cuda", place)


def _has_group() -> bool:
    return dist.is_available() and dist.is_initialized()


def _told() -> tuple[int, int] | None:
    """Return rank and size as the environment says them, or None if it says nothing.

    Raises:
        InvalidInputError: If it says half of it, or something impossible.
    """
    if not (os.environ.get("RANK") or os.environ.get("WORLD_SIZE")):
        return None
    # Whoever has made a group has met the others, at whatever address.
    needed = ENVIRONMENT[:2] if _has_group() else ENVIRONMENT
    missing = [name for name in needed if not os.environ.get(name)]
    if missing:
        there = [name for name in ENVIRONMENT if name not in missing]
        raise InvalidInputError(
            f"the environment says {', '.join(there)} and not {', '.join(missing)}: processes that "
            "train together need all of them; start with torchrun, which sets them, or unset RANK "
            "and WORLD_SIZE to train in this process alone"
        )
    rank, size = _number("RANK"), _number("WORLD_SIZE")
    if rank >= size:
        raise InvalidInputError(f"RANK={rank}: must be below WORLD_SIZE={size}")
    if size > 1 and not dist.is_available():
        raise InvalidInputError(
            f"WORLD_SIZE={size}: this build of torch has no torch.distributed; train in one process"
        )
    return rank, size


def _number(name: str) -> int:
    text = os.environ[name]
    if not text.isdecimal():
        raise InvalidInputError(f"{name}={text!r}: must be an integer of at least 0")
    return int(text)
