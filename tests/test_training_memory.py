"""Out of memory: the error says which batch fits, and what was trained is kept."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from constrained_cnn import ImageSet, TrainConfig, Trainer
from constrained_cnn.errors import ConstrainedCNNError, OutOfMemoryError
from constrained_cnn.training._memory import is_out_of_memory


class Hungry(nn.Module):
    """A classifier for whose training more samples than ``most`` are too many, as on a GPU."""

    def __init__(self, most: int, calls: int = 0) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(64)
        self.linear = nn.Linear(64, 4)
        self.most, self.calls, self.tried = most, calls, list[int]()

    def forward(self, inputs: Tensor) -> Tensor:
        if self.training:
            self.calls -= 1
            self.tried.append(len(inputs))
            if self.calls < 0 and len(inputs) > self.most:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9.00 GiB")
        outputs: Tensor = self.linear(self.norm(inputs.flatten(1)))
        return outputs


def make_set() -> ImageSet:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (60, 1, 8, 8), generator=generator, dtype=torch.uint8)
    return ImageSet.from_arrays(images, torch.arange(60) % 4)


def make_trainer(batch_size: int = 20, **options: Any) -> Trainer:
    config = TrainConfig(epochs=2, batch_size=batch_size, learning_rate=0.01, **options)
    return Trainer(config, device="cpu", progress=False)


@pytest.mark.parametrize(("most", "fits"), [(19, 10), (10, 10), (9, 5), (1, 1), (0, None)])
def test_the_error_says_what_fits(most: int, fits: int | None) -> None:
    # One sample alone has no variance, and torch refuses to normalise it in training.
    model = Hungry(most)
    if fits == 1:
        model.norm = nn.Identity()  # type: ignore[assignment]
    with pytest.raises(OutOfMemoryError) as caught:
        make_trainer().fit(model, make_set())
    assert (caught.value.batch_size, caught.value.fits) == (20, fits)
    message = str(caught.value)
    assert "step 1 of epoch 1, with 20 samples in the batch (CUDA out of memory" in message
    assert (f"set batch_size={fits}" if fits else "not even one sample fits") in message
    assert isinstance(caught.value, RuntimeError)
    assert isinstance(caught.value, ConstrainedCNNError)
    assert all(parameter.grad is None for parameter in model.parameters())
    if fits is not None:
        make_trainer(fits).fit(model, make_set())  # the advice is good


def test_what_fits_is_tried_in_the_precision_of_the_step() -> None:
    model = Hungry(10)
    types: dict[bool, set[torch.dtype]] = {True: set(), False: set()}
    model.register_forward_hook(lambda part, _, outputs: types[part.training].add(outputs.dtype))
    with pytest.raises(OutOfMemoryError, match="10 samples were seen to fit"):
        make_trainer(autocast="bfloat16").fit(model, make_set())
    assert types[True] == {torch.bfloat16}


def test_what_was_trained_before_is_kept_and_the_trial_leaves_no_trace(tmp_path: Path) -> None:
    model = Hungry(12, calls=4)  # the second step of the second epoch
    with pytest.raises(OutOfMemoryError, match="step 2 of epoch 2"):
        make_trainer().fit(model, make_set(), folder=tmp_path)
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert state["epoch"] == 1
    tracked = model.norm.num_batches_tracked
    assert tracked is not None
    assert int(tracked) == 4  # the trial's batches are not among them
    assert model.tried[-2:] == [20, 10]


@pytest.mark.parametrize(
    ("error", "is_one"),
    [
        (MemoryError(), True),
        (torch.OutOfMemoryError("CUDA out of memory"), True),
        (
            RuntimeError(
                "[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: not enough memory"
            ),
            True,
        ),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("not enough memory"), False),
    ],
)
def test_what_counts_as_out_of_memory(error: Exception, is_one: bool) -> None:
    assert is_out_of_memory(error) == is_one


def test_torch_says_it_in_one_of_these_ways() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**55)
    assert is_out_of_memory(caught.value)
