"""Trainer.evaluate and predict beside plain torch, and that they leave the model as it was."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from constrained_cnn import ImageSet, TrainConfig, Trainer
from constrained_cnn.errors import InvalidInputError


def make_set(count: int = 23) -> ImageSet:
    images = torch.randint(0, 256, (count, 1, 8, 8), dtype=torch.uint8)
    return ImageSet.from_arrays(images, torch.arange(count) % 4).augmented(rotation=30)


def make_net() -> nn.Sequential:
    net = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.Flatten(), nn.Linear(144, 4)
    )
    net.train()(torch.randn(16, 1, 8, 8))  # running statistics that are not the first ones
    return net


def make_trainer(batch_size: int = 5, **options: Any) -> Trainer:
    return Trainer(
        TrainConfig(batch_size=batch_size, schedule="constant", **options),
        device="cpu",
        progress=False,
    )


def plain(model: nn.Module, images: ImageSet) -> tuple[Tensor, Tensor]:
    """Outputs and labels of the whole set at once, normalised as the definition says."""
    inputs = (images.images.double() / 255 - images.mean[0]) / images.std[0]
    model.eval()
    with torch.no_grad():
        return model(inputs.float()), images.labels


@settings(max_examples=20)
@given(st.integers(1, 30), st.integers(1, 40))
def test_evaluate_is_the_plain_sum_over_the_set(count: int, batch_size: int) -> None:
    torch.manual_seed(count)
    model, images = make_net(), make_set(count + 4)
    found = make_trainer(batch_size).evaluate(model, images)
    outputs, labels = plain(model, images)
    assert found.loss == pytest.approx(
        float(nn.functional.cross_entropy(outputs, labels)), rel=1e-4
    )
    wrong = int((outputs.argmax(1) != labels).sum())
    assert (found.errors, found.samples) == (wrong, len(images))
    assert found.accuracy == pytest.approx(100 * (1 - wrong / len(images)))


def test_predict_gives_outputs_in_order() -> None:
    model, images = make_net(), make_set()
    outputs, _ = plain(model, images)
    trainer = make_trainer()
    torch.testing.assert_close(trainer.predict(model, images), outputs, rtol=1e-4, atol=1e-5)
    inputs = torch.cat([part for part, _ in images.batches(7)])
    torch.testing.assert_close(trainer.predict(model, inputs), outputs, rtol=1e-4, atol=1e-5)
    loader = DataLoader(TensorDataset(inputs, images.labels), 4)
    torch.testing.assert_close(trainer.predict(model, loader), outputs, rtol=1e-4, atol=1e-5)
    found = trainer.evaluate(model, loader)
    assert found.errors == int((outputs.argmax(1) != images.labels).sum())


@pytest.mark.parametrize("what", ["evaluate", "predict"])
def test_the_model_stays_as_it_was(what: str) -> None:
    model, images = make_net(), make_set()
    model.train()
    model[1].eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    getattr(make_trainer(), what)(model, images)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert [part.training for part in model] == [True, False, True, True, True]
    assert all(parameter.grad is None for parameter in model.parameters())


def test_modes_come_back_after_an_error_too() -> None:
    model = make_net()
    model.train()
    with pytest.raises(
        InvalidInputError, match=r"batch 1 of data \(inputs \(3, 1, 5, 5\) float32\)"
    ):
        make_trainer().predict(model, torch.zeros(3, 1, 5, 5))
    assert all(part.training for part in model.modules())


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "data: holds no batches"),
        (torch.zeros(0, 1, 8, 8), "data: holds no batches"),
        (iter(()), "data: gave no batches"),
    ],
)
def test_predict_of_nothing(data: Any, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        make_trainer().predict(make_net(), data)


def test_evaluate_of_nothing() -> None:
    with pytest.raises(InvalidInputError, match="data: gave no batches"):
        make_trainer().evaluate(make_net(), iter(()))


def test_it_prints_what_one_wants_to_know() -> None:
    batches = [(torch.tensor([[9.0, 0.0], [9.0, 0.0], [0.0, 9.0]]), torch.tensor([0, 1, 1]))]
    found = make_trainer().evaluate(nn.Identity(), batches)
    assert str(found).startswith("66.67 % (1 of 3 wrong), loss 3.00")
    squares = make_trainer(loss="MSELoss").evaluate(nn.Identity(), [(torch.ones(2), torch.ones(2))])
    assert str(squares) == "loss 0.0000 over 2 samples"
