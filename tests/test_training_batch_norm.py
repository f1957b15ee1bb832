"""Batch-norm statistics measured anew after the last step, beside their definition."""

import pytest
import torch
from torch import nn

from constrained_cnn import ImageSet, TrainConfig, Trainer
from constrained_cnn.errors import InvalidInputError

CONFIG = TrainConfig(epochs=3, batch_size=16, learning_rate=0.1, seed=5)


def make_set() -> ImageSet:
    images = torch.randint(0, 256, (50, 1, 8, 8), dtype=torch.uint8)
    return ImageSet.from_arrays(images, torch.arange(50) % 4)


def make_net() -> nn.Sequential:
    torch.manual_seed(0)
    head = (nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 4))
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.Dropout(0.5), *head)


def make_trainer(config: TrainConfig = CONFIG) -> Trainer:
    return Trainer(config, device="cpu", progress=False)


def test_precise_batch_norm_is_the_average_over_batches_without_dropout() -> None:
    train, plain, model = make_set(), make_net(), make_net()
    make_trainer().fit(plain, train)
    config = TrainConfig.from_dict(CONFIG.to_dict() | {"precise_bn": 2})
    history = make_trainer(config).fit(model, train, train)
    means, variances = [], []
    for index, (inputs, _) in enumerate(train.training_batches(16, seed=5, epoch=3)):
        if index < 2:
            cells = model[0](inputs).detach().transpose(0, 1).flatten(1)
            means.append(cells.mean(1))
            variances.append(cells.var(1))
    found, unmeasured = model.state_dict(), plain.state_dict()
    torch.testing.assert_close(found["2.running_mean"], torch.stack(means).mean(0))
    torch.testing.assert_close(found["2.running_var"], torch.stack(variances).mean(0))
    assert not torch.allclose(found["2.running_var"], unmeasured["2.running_var"], rtol=0.05)
    for name in ("0.weight", "2.weight", "5.weight", "5.bias"):
        assert torch.equal(found[name], unmeasured[name])
    assert model[2].momentum == 0.1
    judged = make_trainer().evaluate(model, train)
    assert history[-1].validation_loss == pytest.approx(judged.loss)


def test_precise_batch_norm_of_a_generator_is_an_error() -> None:
    config = TrainConfig(epochs=1, schedule="constant", precise_bn=2)
    batches = ((torch.randn(4, 1, 8, 8), torch.arange(4)) for _ in range(3))
    with pytest.raises(InvalidInputError, match="precise_bn: train gave no batches"):
        make_trainer(config).fit(make_net(), batches)
