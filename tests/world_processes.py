"""Processes that train together: a pool of them, and what they run in the tests of World.

A check runs in every process of the pool at the same time. The process works the oracle out by
itself, over the whole batch; nothing but the method under test is exchanged.
"""

import copy
import os
import pickle
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from contextlib import ExitStack, nullcontext
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any, Self

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from constrained_cnn.errors import ConstrainedCNNError
from constrained_cnn.training._gradients import GradientExchange
from constrained_cnn.training._synchronised_norm import synchronised_norms
from constrained_cnn.training._world import World

PATIENCE = 600.0  # seconds until a check counts as hanging
Store: Any = dist.TCPStore  # type: ignore[attr-defined]


class Pool:
    """Processes on this machine that find one another as under torchrun: at a store it keeps."""

    def __init__(self, size: int) -> None:
        self.size = size
        # Torch is imported once, in a server from which the processes are forked.
        context = get_context("forkserver")
        context.set_forkserver_preload(["torch", "constrained_cnn.training"])
        self._store = Store("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        self._pipes: list[Connection[Any, Any]] = []
        self._processes = []
        for rank in range(size):
            here, there = context.Pipe()
            environment = {
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": str(size),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(self._store.port),
                "TORCHELASTIC_USE_AGENT_STORE": "True",
                "GLOO_SOCKET_IFNAME": "lo",
            }
            process = context.Process(target=serve, args=(there, environment), daemon=True)
            process.start()
            self._pipes.append(here)
            self._processes.append(process)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        for pipe in self._pipes:
            pipe.close()
        for process in self._processes:
            process.join(5.0)
            if process.is_alive():
                process.kill()

    def run(self, check: Callable[..., Any], *, device: str = "cpu", **arguments: Any) -> list[Any]:
        """Return what ``check(world, **arguments)`` gives in each process.

        The world is the same for one check after another: where names are looked up slowly, meeting
        at a store can take seconds. Without a device it is ``check(**arguments)``, and joining is
        up to it.
        """
        self._send(check, device, arguments)
        answers = []
        for rank, pipe in enumerate(self._pipes):
            if not pipe.poll(PATIENCE):
                raise AssertionError(f"rank {rank} of {self.size} hangs in {check.__name__}")
            answers.append(pickle.loads(pipe.recv_bytes()))
        failed = [f"rank {rank}: {text}" for rank, (text, _) in enumerate(answers) if text]
        if failed:
            self._send(None, "", {})  # some may have left the world
        assert not failed, "\n".join(failed)
        return [result for _, result in answers]

    def _send(self, *task: Any) -> None:
        for pipe in self._pipes:
            pipe.send_bytes(pickle.dumps(task))


def serve(pipe: "Connection[Any, Any]", environment: dict[str, str]) -> None:
    """Run what comes through the pipe until it is closed."""
    os.environ.update(environment)
    torch.set_num_threads(1)
    warnings.simplefilter("error")
    joined, world, place = ExitStack(), World(), ""
    while True:
        try:
            check, device, arguments = pickle.loads(pipe.recv_bytes())
        except EOFError:
            return
        torch.manual_seed(0)
        error, result = "", None
        try:
            if device != place:
                joined.close()
                place = ""
                world = joined.enter_context(World.joined(device)) if device else World()
                place = device
            if check is None:
                continue
            result = check(world, **arguments) if device else check(**arguments)
        except Exception:  # noqa: BLE001 - it is an answer as well
            error = traceback.format_exc()
            joined.close()
            place = ""
        pipe.send_bytes(pickle.dumps((error, result)))


def own_rows(world: World, rows: Tensor, sizes: Sequence[int] | None = None) -> Tensor:
    """Return this process's rows: every ``size``-th, or as many as ``sizes`` says."""
    if sizes is None:
        return rows[world.rank :: world.size]
    return rows.split(list(sizes))[world.rank]


def close(found: Tensor | None, wanted: Tensor | None, tolerance: float = 1e-11) -> None:
    """Compare two tensors; torch.testing would load a second's worth of libraries for it."""
    if wanted is None or found is None:
        assert found is wanted
        return
    assert (found.shape, found.dtype) == (wanted.shape, wanted.dtype)
    assert torch.allclose(found, wanted, rtol=tolerance, atol=tolerance), (found, wanted)


def bits(tensors: Sequence[Tensor | None]) -> list[list[int]]:
    """Return tensors as bytes, to compare bit by bit between processes."""
    given = [part.detach().cpu() for part in tensors if part is not None]
    return [part.reshape(-1).view(torch.uint8).tolist() for part in given]


# What a World exchanges.


def exchange_numbers(world: World) -> None:
    rank, size = world.rank, world.size
    assert world.is_first == (rank == 0)
    below = size * (size - 1) / 2
    assert world.total([1, rank, 2.0**53 if rank == 0 else 0]) == [size, below, 2.0**53]
    assert world.lowest(None) is None
    assert world.lowest(rank + 4) == 4
    assert world.lowest(7 if rank == size - 1 else None) == 7
    assert world.any(False, rank == 0, rank == size - 1, True) == (False, True, True, True)
    stacked = world.stacked(torch.tensor([rank, -0.5]))
    assert stacked.tolist() == [[number, -0.5] for number in range(size)]


def exchange_objects(world: World) -> None:
    torch.manual_seed(world.rank)
    state = torch.random.get_rng_state()
    torch.rand(3)
    states = world.gathered(state)
    assert torch.equal(states[world.rank], state)
    assert not torch.equal(states[0], states[1])
    names = world.gathered({"rank": world.rank, "name": "x" * world.rank})
    assert names == [{"rank": rank, "name": "x" * rank} for rank in range(world.size)]
    made: list[int] = []

    def make() -> dict[str, int]:
        made.append(world.rank)
        return {"by": world.rank}

    assert world.from_first(make) == {"by": 0}
    assert made == [0] * world.is_first


def copy_tensors(world: World, alike: bool) -> str:
    torch.manual_seed(world.rank)
    kinds: list[Tensor] = [
        torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
        nn.Parameter(torch.randn(3)),
        torch.randn(2, 2, dtype=torch.float64).T,
        torch.randn(3).bfloat16(),
        torch.tensor(world.rank),
        torch.rand(5) > 0.5,
        torch.tensor([float("nan"), -0.0]) * (1 + world.rank),
        torch.zeros(0, 3),
    ]
    kinds += [] if alike or world.is_first else [torch.zeros(2)]
    formats = [part.stride() for part in kinds]
    try:
        world.copy_from_first(kinds)
    except ConstrainedCNNError as error:
        return str(error)
    assert [part.stride() for part in kinds] == formats
    return str(bits(kinds))


def join_twice() -> list[list[float]]:
    """Join as one does for one network after another."""
    totals = []
    for turn in range(2):
        hook = sys.excepthook
        with World.joined("cpu") as world:
            totals.append(world.total([turn, world.rank]))
        assert not dist.is_initialized()
        assert sys.excepthook is hook
    return totals


def leave_early(backward: bool) -> str:
    """Leave, but for rank 0, which waits for the others; return what it is told."""
    norm = nn.BatchNorm1d(2)
    with World.joined("cpu") as world, synchronised_norms(norm, world):
        outputs = norm(torch.randn(3, 2, requires_grad=True))
        if not world.is_first:
            return ""
        try:
            if backward:
                outputs.sum().backward()
            world.total([1.0])
        except ConstrainedCNNError as error:
            return str(error)
    raise AssertionError("nobody was missed")


def join_own_group(path: str) -> tuple[int, int]:
    """Use a group that is there already; it must be there afterwards."""
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    dist.init_process_group("gloo", init_method=f"file://{path}", rank=rank, world_size=size)
    try:
        with World.joined("cpu") as world, World.joined("cpu") as again:
            assert world == again
            assert world.total([world.rank]) == [size * (size - 1) / 2]
        assert dist.is_initialized()
        assert dist.get_rank() == world.rank
        return world.rank, world.size
    finally:
        dist.destroy_process_group()


# Gradients.


def small_net(dtype: torch.dtype = torch.float64) -> nn.Module:
    torch.manual_seed(3)
    parts = [nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(27, 4, bias=False)]
    return nn.Sequential(*parts).to(dtype)


def exchange_gradients(world: World, sizes: Sequence[int]) -> list[list[int]]:
    """Compare the mean gradient with that of the whole batch, twice, as a buffer is used again."""
    model, whole = small_net(), small_net()
    exchange = GradientExchange(world, model.parameters())
    for _ in range(2):
        inputs = torch.randn(sum(sizes), 1, 5, 5, dtype=torch.float64)
        targets = torch.randint(4, (sum(sizes),))
        whole.zero_grad()
        F.cross_entropy(whole(inputs), targets).backward()
        model.zero_grad()
        mine = own_rows(world, inputs, sizes)
        if len(mine):
            F.cross_entropy(model(mine), own_rows(world, targets, sizes)).backward()
        exchange(len(mine))
        for part, wanted in zip(model.parameters(), whole.parameters(), strict=True):
            close(part.grad, wanted.grad)
    return bits([part.grad for part in model.parameters()])


def exchange_missing(world: World, empty: bool) -> list[list[int]]:
    """Rank 0 has all gradients but one that nobody has; the last rank has no samples or no ``b``.

    ``d`` is frozen, and ``e`` is what only a process without samples has.
    """
    a, b, c, d, e = (nn.Parameter(torch.ones(2, dtype=torch.float64)) for _ in range(5))
    d.requires_grad_(False)
    exchange = GradientExchange(world, [a, b, c, d, e])
    last = world.rank == world.size - 1
    samples = (0 if empty else 2) if last else 1
    a.grad = torch.full((2,), 1.0 + world.rank, dtype=torch.float64)
    if last and empty:
        a.grad.fill_(float("nan"))
        e.grad = torch.ones_like(e)
    if not last:
        b.grad = torch.full((2,), 6.0, dtype=torch.float64)
    exchange(samples)
    others = world.size - 1  # those with one sample
    count = others + (0 if empty else 2)
    sums = others * (others + 1) / 2 + (0 if empty else 2 * world.size)
    close(a.grad, torch.full_like(a, sums / count).detach())
    close(b.grad, torch.full_like(b, 6.0 * others / count).detach())
    assert c.grad is None
    assert d.grad is None
    assert e.grad is None
    return bits([a.grad, b.grad])


def exchange_types(world: World) -> list[list[int]]:
    kinds = (torch.bfloat16, torch.float32, torch.float16, torch.float64)
    parameters = [nn.Parameter(torch.zeros(2, 3, dtype=kind)) for kind in kinds]
    for part in parameters:
        part.grad = torch.full_like(part, 1.0 + world.rank)
    GradientExchange(world, parameters)(1 + world.rank)
    weights = [1.0 + rank for rank in range(world.size)]
    mean = sum(weight * weight for weight in weights) / sum(weights)
    for part, kind in zip(parameters, kinds, strict=True):
        assert part.grad is not None
        assert part.grad.dtype == kind
        close(part.grad, torch.full_like(part, mean).detach(), torch.finfo(kind).eps)
    return bits([part.grad for part in parameters])


# Batch norms.

KINDS: dict[int, Any] = {0: nn.BatchNorm1d, 1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}


def make_norm(axes: int, channels: int, options: dict[str, Any]) -> nn.Module:
    norm: nn.Module = KINDS[axes](channels, **options).double()
    torch.manual_seed(5)
    for part in norm.parameters():
        nn.init.normal_(part, 1.0)
    return norm


def normalise(
    world: World,
    sizes: Sequence[int],
    channels: int,
    space: Sequence[int],
    options: dict[str, Any],
    offset: float = 0.0,
    last_channels: bool = False,
) -> list[list[int]]:
    """Compare one synchronised norm with torch's own over the whole batch, in three steps."""
    norm, whole = (make_norm(len(space), channels, options) for _ in range(2))
    torch.manual_seed(9)
    exchange = GradientExchange(world, norm.parameters())
    layout = torch.channels_last if last_channels else torch.contiguous_format
    count = sum(sizes)
    with synchronised_norms(norm, world) as norms:
        for _ in range(3):
            inputs = torch.randn(count, channels, *space, dtype=torch.float64) * 2 + offset
            inputs = inputs.contiguous(memory_format=layout).requires_grad_()
            weights = torch.randn_like(inputs)
            whole.zero_grad()
            outputs = whole(inputs)
            ((outputs**2 * weights).sum() / count).backward()

            norm.zero_grad()
            rows = own_rows(world, inputs.detach(), sizes)
            if len(rows):
                mine = rows.clone().requires_grad_()
                found = norm(mine)
                assert found.stride() == mine.stride()
                close(found, own_rows(world, outputs, sizes))
                slopes = own_rows(world, weights, sizes)
                ((found**2 * slopes).sum() / len(mine)).backward()
                assert mine.grad is not None
                assert inputs.grad is not None
                close(mine.grad * len(mine) / count, own_rows(world, inputs.grad, sizes), 1e-9)
            else:
                mine = (1e6 * inputs.detach()[:1]).requires_grad_()
                with norms.standing_in():
                    found = norm(mine)
                (found * float("nan")).sum().backward()
                assert mine.grad is not None
                assert not mine.grad.any()
            exchange(len(rows))
            for part, wanted in zip(norm.parameters(), whole.parameters(), strict=True):
                close(part.grad, wanted.grad, 1e-9)
            for buffer, aim in zip(norm.buffers(), whole.buffers(), strict=True):
                close(buffer, aim)
    norm.eval()
    close(norm(inputs), whole.eval()(inputs))
    return bits(list(norm.buffers()))


def normalise_no_rows(world: World) -> None:
    """A batch without rows takes part as a stand-in does."""
    norm, whole = (make_norm(2, 2, {}) for _ in range(2))
    inputs = torch.randn(3, 2, 4, 4, dtype=torch.float64)
    wanted = whole(inputs)
    with synchronised_norms(norm, world):
        mine = inputs if world.is_first else inputs[:0]
        mine = mine.clone().requires_grad_()
        found = norm(mine)
        found.square().sum().backward()
    close(found, wanted if world.is_first else wanted[:0])
    for buffer, aim in zip(norm.buffers(), whole.buffers(), strict=True):
        close(buffer, aim)


def normalise_large_mean(world: World) -> float:
    """Return the largest error of a variance of 1 beside a mean of 1000, in float32."""
    torch.manual_seed(2)
    values = torch.randn(64 * world.size, 1) + 1000.0
    norm = nn.BatchNorm1d(1, momentum=1.0)
    with synchronised_norms(norm, world):
        norm(own_rows(world, values))
    assert norm.running_var is not None
    wanted = values.double().var()
    return float((norm.running_var.double() / wanted - 1).abs())


def normalise_half(world: World) -> None:
    """A bfloat16 network: statistics in float32, everything else of the type that came in."""
    norm = nn.BatchNorm2d(3).bfloat16()
    inputs = torch.randn(4 * world.size, 3, 2, 2)
    mine = own_rows(world, inputs).bfloat16().requires_grad_()
    with synchronised_norms(norm, world):
        found = norm(mine)
        found.square().mean().backward()
    assert found.dtype == torch.bfloat16
    wanted = F.batch_norm(inputs.bfloat16().float(), None, None, training=True)
    close(found.float(), own_rows(world, wanted), 2e-2)
    for part in (mine, *norm.parameters()):
        assert part.grad is not None
        assert part.grad.dtype == torch.bfloat16


def normalise_one_value(world: World) -> str:
    norm = nn.BatchNorm1d(2)
    with synchronised_norms(norm, world) as norms:
        try:
            with norms.standing_in() if world.rank else nullcontext():
                norm(torch.ones(1, 2))
        except ConstrainedCNNError as error:
            return str(error)
    raise AssertionError("one value was normalised")


def stay_ordinary(world: World) -> None:
    """The network is what it was, during and afterwards, and so is a copy of it."""
    model: Any = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.BatchNorm2d(2))
    model[2].eval()
    keys = list(model.state_dict())
    inputs = torch.randn(4 * world.size, 1, 5, 5)
    mine = own_rows(world, inputs)
    with synchronised_norms(model, world):
        assert list(model.state_dict()) == keys
        assert [type(part) for part in model[1:]] == [nn.BatchNorm2d] * 2
        copied = pickle.loads(pickle.dumps(model.state_dict()))
        twin: Any = copy.deepcopy(model)
        twin(mine)
        assert int(twin[1].num_batches_tracked) == 1
        assert int(model[1].num_batches_tracked) == 0
        assert float(model[1].running_mean.abs().sum()) == 0.0
        frozen = model[2].running_mean.clone()
        model(mine)
        assert torch.equal(model[2].running_mean, frozen)  # in evaluation mode throughout
        model.eval()
        if world.is_first:  # evaluation meets nobody
            model(mine)
        model.train()
    assert list(copied) == keys
    for network in (model, twin):
        assert list(network.state_dict()) == keys
        if world.is_first:  # training meets nobody any more
            network(mine)
    assert "forward" not in vars(model[1])
    pickle.dumps(model)


def average_statistics(world: World, samples: Sequence[int]) -> list[list[int]]:
    model = nn.Sequential(nn.BatchNorm1d(2), nn.BatchNorm1d(2, track_running_stats=False))
    model.register_buffer("seen", torch.tensor([float("inf"), world.rank]))
    norm: Any = model[0]
    means = [torch.tensor([rank, 2.0 - rank]) for rank in range(world.size)]
    met = samples[world.rank]
    norm.running_mean.copy_(means[world.rank] if met else torch.full((2,), float("nan")))
    norm.running_var.fill_(1.0 + world.rank)
    norm.num_batches_tracked.fill_(5 - world.rank)
    world.mean_buffers(model, met)
    weights = [number / sum(samples) for number in samples]
    mean = sum(weight * part for weight, part in zip(weights, means, strict=True))
    close(norm.running_mean, torch.as_tensor(mean), 1e-6)
    variance = sum(weight * (1.0 + rank) for rank, weight in enumerate(weights))
    close(norm.running_var, torch.full((2,), variance), 1e-6)
    assert int(norm.num_batches_tracked) == 5
    assert model.get_buffer("seen").tolist() == [float("inf"), 0.0]
    return bits(list(model.buffers()))


# Whole steps.


class Viewing(nn.Module):
    """A small network that cannot take a batch without rows."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(7)
        self.body = nn.Sequential(
            nn.Conv2d(1, 4, 3, bias=False),
            nn.ReLU(),
            nn.BatchNorm2d(4),
            nn.Dropout(0.0),
            nn.MaxPool2d(2),
            nn.Conv2d(4, 4, 2),
            nn.BatchNorm2d(4, momentum=None),
            nn.ReLU(),
        )
        self.norm = nn.BatchNorm1d(16)
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(x)
        return self.head(self.norm(x.view(x.size(0), -1)))


def descend(model: nn.Module) -> None:
    """Take a step of SGD; the first of torch.optim loads seconds' worth of compiler."""
    with torch.no_grad():
        for part in model.parameters():
            assert part.grad is not None
            part.sub_(0.1 * part.grad)


def train(world: World, batches: Sequence[int], tolerance: float = 1e-9) -> list[list[int]]:
    """Compare training in all processes with training in one: weights and statistics."""
    model, whole = (Viewing().double().to(world.device) for _ in range(2))
    if not world.is_first:
        for part in model.parameters():
            nn.init.normal_(part)
    world.copy_from_first([*model.parameters(), *model.buffers()])
    torch.manual_seed(8)
    exchange = GradientExchange(world, model.parameters())
    with synchronised_norms(model, world) as norms:
        for count in batches:
            inputs = torch.randn(count, 1, 9, 9, dtype=torch.float64).to(world.device)
            targets = torch.randint(3, (count,)).to(world.device)
            whole.zero_grad()
            F.cross_entropy(whole(inputs), targets).backward()
            descend(whole)

            model.zero_grad()
            mine, aims = own_rows(world, inputs), own_rows(world, targets)
            rows = len(mine)
            if not rows:
                mine, aims = inputs[:1], targets[:1]
            with nullcontext() if rows else norms.standing_in():
                F.cross_entropy(model(mine), aims).backward()
            exchange(rows)
            descend(model)
    for name, part in whole.state_dict().items():
        close(model.state_dict()[name], part, tolerance)
    return bits(list(model.state_dict().values()))


def train_over_gloo(path: str, batches: Sequence[int]) -> list[list[int]]:
    """Train on one GPU that the processes share, which NCCL does not allow."""
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    dist.init_process_group("gloo", init_method=f"file://{path}", rank=rank, world_size=size)
    try:
        with World.joined("cuda:0") as world:
            return train(world, batches)
    finally:
        dist.destroy_process_group()


def replay_exchange(world: World) -> list[list[int]]:
    """Capture backward pass, synchronised norm and exchange in a CUDA graph, and replay it."""
    model, eager = (Viewing().to(world.device) for _ in range(2))
    exchanges = [GradientExchange(world, net.parameters()) for net in (model, eager)]
    inputs = torch.randn(4, 1, 9, 9, device=world.device)
    targets = torch.randint(3, (4,), device=world.device)

    def step(number: int) -> None:
        net = (model, eager)[number]
        net.zero_grad()
        F.cross_entropy(net(inputs), targets).backward()
        exchanges[number](len(inputs))

    with synchronised_norms(model, world), synchronised_norms(eager, world):
        side = torch.cuda.Stream(world.device)
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                step(0)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            step(0)
        inputs.copy_(torch.randn(4, 1, 9, 9) + world.rank)
        graph.replay()
        step(1)
    for part, wanted in zip(model.parameters(), eager.parameters(), strict=True):
        close(part.grad, wanted.grad, 1e-5)
    return bits([part.grad for part in model.parameters()])
