"""What holds of every epoch, whatever its size, its batches and its processes."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from constrained_cnn import ImageSet, TrainConfig, Trainer
from constrained_cnn.training._evaluation import Tally, evaluation_of
from constrained_cnn.training._source import Source


def numbered(count: int) -> ImageSet:
    """A set whose images say which they are."""
    images = torch.zeros(count, 1, 2, 2, dtype=torch.uint8)
    images[:, 0, 0, 0] = torch.arange(count) % 251
    images[:, 0, 0, 1] = torch.arange(count) // 251
    labels = torch.arange(count) % 3
    return ImageSet(images, labels, (0.0,), (1.0,), ("a", "b", "c"), "numbered")


def numbers_of(inputs: Tensor) -> list[int]:
    pixels = (inputs * 255).round().long()
    return (pixels[:, 0, 0, 0] + 251 * pixels[:, 0, 0, 1]).tolist()


@st.composite
def epochs(draw: st.DrawFn) -> tuple[int, int, int, int]:
    """Samples, batch size, processes, seed."""
    count = draw(st.integers(1, 90))
    batch_size = draw(st.integers(1, 30))
    return count, batch_size, draw(st.integers(1, min(batch_size, 5))), draw(st.integers(0, 2**40))


def source_of(images: ImageSet, batch_size: int, part: tuple[int, int]) -> Source:
    device = torch.device("cpu")
    return Source(
        images, batch_size=batch_size, device=device, channels_last=False, name="train", part=part
    )


@given(epochs(), st.integers(1, 50))
def test_every_sample_comes_once_in_an_epoch_whatever_the_processes(
    sizes: tuple[int, int, int, int], epoch: int
) -> None:
    count, batch_size, world, seed = sizes
    images = numbered(count).augmented()
    order: list[int] = []
    for rank in range(world):
        source = source_of(images, batch_size, (rank, world))
        batches = list(source.training_batches(seed=seed, epoch=epoch))
        assert len(batches) == -(-count // batch_size) == source.steps
        order.append([numbers_of(inputs) for inputs, _ in batches])  # type: ignore[arg-type]
        for inputs, targets in batches:
            assert targets.tolist() == [number % 3 for number in numbers_of(inputs)]
    whole = source_of(images, batch_size, (0, 1))
    met: list[int] = []
    for step, (inputs, _) in enumerate(whole.training_batches(seed=seed, epoch=epoch)):
        shares = [ranks[step] for ranks in order]  # type: ignore[index]
        assert all(share == numbers_of(inputs)[r::world] for r, share in enumerate(shares))
        met += numbers_of(inputs)
    assert sorted(met) == list(range(count))
    # The order is numpy's and torch's own, worked out here anew.
    state = np.random.SeedSequence([seed, epoch, 0]).generate_state(1, np.uint64)[0]
    generator = torch.Generator().manual_seed(int(state >> np.uint64(1)))
    assert met == torch.randperm(count, generator=generator).tolist()


@given(epochs(), st.data())
def test_an_epoch_that_begins_in_the_middle_is_the_rest_of_it(
    sizes: tuple[int, int, int, int], data: st.DataObject
) -> None:
    count, batch_size, world, seed = sizes
    images = numbered(count).augmented(rotation=30.0, shift=0.2)
    part = (data.draw(st.integers(0, world - 1)), world)
    source = source_of(images, batch_size, part)
    start = data.draw(st.integers(0, source.steps or 0))
    whole = list(source.training_batches(seed=seed, epoch=1))[start:]
    rest = list(source.training_batches(seed=seed, epoch=1, start=start))
    assert len(rest) == len(whole)
    for (inputs, targets), (expected, labels) in zip(rest, whole, strict=True):
        assert torch.equal(inputs, expected)
        assert torch.equal(targets, labels)


@given(epochs())
def test_no_sample_is_evaluated_twice_or_left_out(sizes: tuple[int, int, int, int]) -> None:
    count, batch_size, world, _ = sizes
    met = [
        number
        for rank in range(world)
        for inputs, _ in source_of(numbered(count), batch_size, (rank, world)).batches()
        for number in numbers_of(inputs)
    ]
    assert sorted(met) == list(range(count))


@given(st.lists(st.integers(1, 9), min_size=1, max_size=8), st.integers(0, 10**6))
def test_figures_are_those_of_a_plain_recomputation(sizes: list[int], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    outputs = [torch.randn(size, 5, generator=generator) for size in sizes]
    targets = [torch.randint(0, 5, (size,), generator=generator) for size in sizes]
    tally = Tally()
    for logits, labels in zip(outputs, targets, strict=True):
        loss = nn.functional.cross_entropy(logits, labels)
        tally.add(loss, (logits.argmax(1) == labels).sum(), len(labels))
    again = Tally.from_state(tally.state(), torch.device("cpu"))
    found = evaluation_of(*tally.sums())
    assert evaluation_of(*again.sums()) == found
    every, labels = torch.cat(outputs).double(), torch.cat(targets)
    expected = -(every.log_softmax(1).gather(1, labels[:, None])).mean()
    assert found.loss == pytest.approx(float(expected), rel=1e-5)
    right = int((every.argmax(1) == labels).sum())
    assert (found.samples, found.errors) == (len(labels), len(labels) - right)
    assert found.accuracy == pytest.approx(100 * right / len(labels))
    assert tally.first_bad_step() is None
    for step in reversed(range(len(sizes))):
        tally._losses[step] = torch.tensor(torch.inf)
        assert tally.first_bad_step() == step + 1


def test_an_epoch_too_small_for_its_processes_is_refused() -> None:
    with pytest.raises(ValueError, match="part=3: must be an integer from 1 to 2"):
        list(source_of(numbered(9), 2, (0, 3)).batches())


@given(st.integers(1, 40), st.integers(1, 12))
def test_what_fit_says_of_an_epoch_is_what_happened(count: int, batch_size: int) -> None:
    losses, sizes = [], []

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        value = nn.functional.cross_entropy(outputs, targets)
        losses.append(value.item())
        sizes.append(len(targets))
        return value

    config = TrainConfig(epochs=1, batch_size=batch_size, learning_rate=0.01, schedule="constant")
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
    trainer = Trainer(config, device="cpu", progress=False, loss=loss)
    history = trainer.fit(model, numbered(count))
    assert history[0].train_loss == pytest.approx(np.average(losses, weights=sizes), rel=1e-6)
    assert sum(sizes) == count
