"""Processes that train one network together, beside one process that does it alone."""

import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import world_processes as run
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from world_processes import Pool

from constrained_cnn.errors import ConstrainedCNNError, InvalidInputError
from constrained_cnn.training._synchronised_norm import synchronised_norms
from constrained_cnn.training._world import World, local_rank

SHORT = timedelta(seconds=1)
NAMES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "LOCAL_RANK")


@pytest.fixture(scope="module")
def two() -> Iterator[Pool]:
    with Pool(2) as pool:
        yield pool


@pytest.fixture(scope="module")
def three() -> Iterator[Pool]:
    with Pool(3) as pool:
        yield pool


@pytest.fixture(params=["two", "three"])
def pool(request: pytest.FixtureRequest) -> Pool:
    found: Pool = request.getfixturevalue(request.param)
    return found


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Set what torchrun sets; what is not named is not there."""
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)

    def fill(**values: object) -> None:
        for name, value in values.items():
            monkeypatch.setenv(name, str(value))

    return fill


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


def same_in_all(results: list[Any]) -> Any:
    assert all(result == results[0] for result in results)
    return results[0]


def splits(parts: int, least: int = 1) -> st.SearchStrategy[list[int]]:
    """How many samples each process has; some may have none."""
    sizes = st.lists(st.integers(0, 5), min_size=parts, max_size=parts)
    return sizes.filter(lambda given: sum(given) >= least)


# One process.


def test_a_process_on_its_own_exchanges_nothing(environment: Callable[..., None]) -> None:
    environment(MASTER_ADDR="127.0.0.1")  # what a machine may say anyway
    with World.joined("cpu") as world:
        assert world == World()
        assert not dist.is_initialized()
    assert world.is_first
    assert world.total([0.1, 2]) == [0.1, 2.0]
    assert world.lowest(3) == 3
    assert world.lowest(None) is None
    assert world.any(True, False) == (True, False)
    assert world.gathered("state") == ["state"]
    assert world.from_first(lambda: "state") == "state"
    model = nn.Sequential(nn.BatchNorm1d(2))
    before = {name: part.clone() for name, part in model.state_dict().items()}
    world.copy_from_first(model.buffers())
    world.mean_buffers(model, 0)
    with synchronised_norms(model, world) as norms, norms.standing_in():
        assert "forward" not in vars(model[0])
    assert list(model.state_dict()) == list(before)


def test_torchrun_with_one_process_makes_no_group(environment: Callable[..., None]) -> None:
    environment(RANK=0, WORLD_SIZE=1, LOCAL_RANK=0, MASTER_ADDR="127.0.0.1", MASTER_PORT=1)
    with World.joined("cpu") as world:
        assert (world.rank, world.size, local_rank()) == (0, 1, 0)
        assert not dist.is_initialized()


PLACE = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": 1}


@pytest.mark.parametrize(
    ("values", "device", "message"),
    [
        ({"RANK": 0}, "cpu", r"says RANK and not WORLD_SIZE, MASTER_ADDR, MASTER_PORT.*torchrun"),
        ({"RANK": 0, "WORLD_SIZE": 2, "MASTER_PORT": 1}, "cpu", "and not MASTER_ADDR: "),
        ({**PLACE, "RANK": "one", "WORLD_SIZE": 2}, "cpu", "RANK='one': must be an integer"),
        ({**PLACE, "RANK": -1, "WORLD_SIZE": 2}, "cpu", "RANK='-1': must be an integer"),
        ({**PLACE, "RANK": 2, "WORLD_SIZE": 2}, "cpu", "RANK=2: must be below WORLD_SIZE=2"),
        ({**PLACE, "RANK": 0, "WORLD_SIZE": 2}, "mps", "device='mps': 2 processes"),
        (
            {**PLACE, "RANK": 0, "WORLD_SIZE": 2, "LOCAL_RANK": 64},
            "cuda",
            r"device='cuda:64': there are \d+ CUDA devices for the processes",
        ),
        ({**PLACE, "RANK": 0, "WORLD_SIZE": 2, "LOCAL_RANK": "x"}, "cuda", "LOCAL_RANK='x'"),
    ],
)
def test_an_environment_that_cannot_be(
    values: dict[str, object], device: str, message: str, environment: Callable[..., None]
) -> None:
    environment(**values)
    with pytest.raises(InvalidInputError, match=message), World.joined(device):
        pass
    assert not dist.is_initialized()


@pytest.mark.parametrize("rank", [0, 1])
def test_others_that_do_not_come(rank: int, environment: Callable[..., None]) -> None:
    environment(RANK=rank, WORLD_SIZE=2, MASTER_ADDR="127.0.0.1", MASTER_PORT=free_port())
    message = rf"rank {rank} of 2 could not meet the others at 127.0.0.1:\d+ within 1 seconds: .*"
    with pytest.raises(ConstrainedCNNError, match=message), World.joined("cpu", timeout=SHORT):
        pass
    assert not dist.is_initialized()


def test_a_group_of_another_size_than_the_environment(environment: Callable[..., None]) -> None:
    store: Any = dist.HashStore()  # type: ignore[attr-defined]
    hook = sys.excepthook
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        with World.joined("cpu") as world:
            assert world.size == 1
        assert dist.is_initialized()
        environment(RANK=0, WORLD_SIZE=2)
        message = "WORLD_SIZE=2: torch.distributed was initialised with 1 processes"
        with pytest.raises(InvalidInputError, match=message), World.joined("cpu"):
            pass
        assert dist.is_initialized()
    finally:
        dist.destroy_process_group()
        sys.excepthook = hook


def test_nccl_exchanges_nothing_between_cpus(
    environment: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = {"is_initialized": True, "get_rank": 0, "get_world_size": 2, "get_backend": "nccl"}
    for name, answer in answers.items():
        monkeypatch.setattr(dist, name, lambda answer=answer: answer)
    message = "device='cpu': torch.distributed was initialised with 'nccl'"
    with pytest.raises(InvalidInputError, match=message), World.joined("cpu"):
        pass


# Several processes.


def test_numbers_are_exchanged(pool: Pool) -> None:
    pool.run(run.exchange_numbers)


def test_objects_come_together_and_go_out(pool: Pool) -> None:
    pool.run(run.exchange_objects)


def test_tensors_become_those_of_the_first_bit_by_bit(pool: Pool) -> None:
    same_in_all(pool.run(run.copy_tensors, alike=True))


def test_different_networks_are_an_error_in_every_process(three: Pool) -> None:
    results = three.run(run.copy_tensors, alike=False)
    for rank, message in enumerate(results):
        count = 8 if rank == 0 else 9
        assert f"different networks: rank {rank} has {count} tensors of " in message


@pytest.mark.parametrize("backward", [False, True])
def test_a_process_that_left_is_missed(two: Pool, backward: bool) -> None:
    message, _ = two.run(run.leave_early, device="", backward=backward)
    assert message.startswith("rank 0 of 2 lost the other processes, whose own messages say why: ")
    two.run(run.exchange_numbers)  # the next world is whole


def test_one_world_after_another(three: Pool) -> None:
    assert same_in_all(three.run(run.join_twice, device="")) == [[0.0, 3.0], [3.0, 3.0]]


def test_a_group_of_the_caller_is_used_and_stays(pool: Pool, tmp_path: Path) -> None:
    ranks = pool.run(run.join_own_group, device="", path=str(tmp_path / "meeting"))
    assert ranks == [(rank, pool.size) for rank in range(pool.size)]


# Gradients.


@settings(max_examples=30)
@given(sizes=splits(3))
def test_the_gradient_is_that_of_the_whole_batch(three: Pool, sizes: list[int]) -> None:
    same_in_all(three.run(run.exchange_gradients, sizes=sizes))


@pytest.mark.parametrize("sizes", [[3, 3], [4, 1], [0, 2], [2, 0]])
def test_the_gradient_of_two_is_that_of_the_whole_batch(two: Pool, sizes: list[int]) -> None:
    same_in_all(two.run(run.exchange_gradients, sizes=sizes))


@pytest.mark.parametrize("empty", [False, True])
def test_a_gradient_is_where_anybody_has_one(pool: Pool, empty: bool) -> None:
    same_in_all(pool.run(run.exchange_missing, empty=empty))


def test_gradients_of_many_types(pool: Pool) -> None:
    same_in_all(pool.run(run.exchange_types))


# Batch norms.


@st.composite
def norms(draw: st.DrawFn) -> dict[str, Any]:
    """What :func:`world_processes.normalise` takes, of three processes."""
    space = draw(st.lists(st.integers(1, 3), max_size=3))
    options = {
        "momentum": draw(st.sampled_from([None, 0.1, 0.5, 1.0])),
        "affine": draw(st.booleans()),
        "track_running_stats": draw(st.booleans()),
        "eps": draw(st.sampled_from([1e-5, 1e-2])),
    }
    return {
        "sizes": draw(splits(3, least=2)),
        "channels": draw(st.integers(1, 4)),
        "space": space,
        "options": options,
        "offset": draw(st.sampled_from([0.0, 10.0])),
        "last_channels": len(space) == 2 and draw(st.booleans()),
    }


@settings(max_examples=60)
@given(norm=norms())
def test_a_synchronised_norm_is_that_of_the_whole_batch(three: Pool, norm: dict[str, Any]) -> None:
    same_in_all(three.run(run.normalise, **norm))


@pytest.mark.parametrize("sizes", [[4, 4], [5, 1], [0, 3]])
def test_a_norm_synchronised_in_two(two: Pool, sizes: list[int]) -> None:
    arguments: dict[str, Any] = {
        "channels": 3,
        "space": [4, 5],
        "options": {},
        "last_channels": True,
    }
    same_in_all(two.run(run.normalise, sizes=sizes, **arguments))


def test_a_norm_takes_a_batch_without_rows(pool: Pool) -> None:
    pool.run(run.normalise_no_rows)


def test_a_variance_beside_a_large_mean_keeps_its_digits(three: Pool) -> None:
    # The mean of squares less the square of the mean is off by a tenth here.
    assert max(three.run(run.normalise_large_mean)) < 1e-5


def test_norms_of_half_precision(two: Pool) -> None:
    two.run(run.normalise_half)


def test_one_value_cannot_be_normalised(three: Pool) -> None:
    message = same_in_all(three.run(run.normalise_one_value))
    assert message.startswith("batch norm: the batch has 1 values per channel over all processes")


def test_the_network_stays_an_ordinary_one(pool: Pool) -> None:
    pool.run(run.stay_ordinary)


class Own(nn.BatchNorm2d):
    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return super().forward(input)


@pytest.mark.parametrize("kind", [Own, nn.SyncBatchNorm])
def test_a_norm_with_a_forward_of_its_own_is_refused(kind: type[nn.Module]) -> None:
    model = nn.Sequential(nn.BatchNorm2d(2), kind(2))
    message = f"1: a {kind.__name__} with a forward of its own"
    with pytest.raises(InvalidInputError, match=message), synchronised_norms(model, World(0, 2)):
        pass
    assert "forward" not in vars(model[0])


@pytest.mark.parametrize("samples", [[4, 4, 4], [5, 2, 0]])
def test_statistics_become_their_mean(three: Pool, samples: list[int]) -> None:
    same_in_all(three.run(run.average_statistics, samples=samples))


# Whole steps.


def test_training_together_is_training_alone(pool: Pool) -> None:
    # In the third step the last of three processes has no row.
    same_in_all(pool.run(run.train, batches=[8, 7, 2, 5]))


SCRIPT = """
from constrained_cnn.training._world import World, local_rank
for turn in range(3):
    with World.joined("cpu") as world:
        print(turn, world.rank, local_rank(), world.total([1.0, world.rank + 1]), flush=True)
"""


@pytest.mark.slow
def test_torchrun_starts_them(tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(SCRIPT)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    done = subprocess.run(
        [*command, "--nproc-per-node", "2", str(script)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    lines = [f"{turn} {rank} {rank} [2.0, 3.0]" for turn in range(3) for rank in range(2)]
    assert sorted(done.stdout.splitlines()) == lines


@pytest.mark.gpu
def test_training_together_on_one_gpu(two: Pool, tmp_path: Path) -> None:
    path = str(tmp_path / "meeting")
    same_in_all(two.run(run.train_over_gloo, device="", path=path, batches=[8, 7, 3]))


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="NCCL needs a GPU for each process")
def test_training_together_on_two_gpus(two: Pool) -> None:
    same_in_all(two.run(run.train, device="cuda", batches=[8, 7, 3]))
    same_in_all(two.run(run.replay_exchange, device="cuda"))
