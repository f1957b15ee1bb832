"""A recipe of seconds, with everything that a checkpoint has to hold."""

import pytest
from torch import nn

from constrained_cnn.data import Augmentation
from constrained_cnn.models import _registry
from constrained_cnn.recipes import Recipe, _recipe, register_recipe
from constrained_cnn.training import TrainConfig

STEPS = 45  # 1,437 digits in batches of 32; the last has 29
RECIPE = Recipe(
    name="small-digits",
    about="a small run on the digits, for tests that kill it",
    model="small_net",
    data="digits",
    augmentation=Augmentation(rotation=5.0),
    config=TrainConfig(epochs=2, batch_size=32, weight_averaging=0.9, precise_bn=2),
)


def small_net() -> nn.Module:
    """Return a network with statistics and random numbers of its own."""
    return nn.Sequential(
        nn.Conv2d(1, 4, 5, stride=3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Dropout(0.2),
        nn.AdaptiveAvgPool2d(3),
        nn.Flatten(),
        nn.Linear(36, 10),
    )


def register(patch: pytest.MonkeyPatch) -> None:
    """Make it known for as long as ``patch`` lasts: other tests list what there is."""
    patch.setitem(_registry._BUILDERS, "small_net", small_net)
    patch.setattr(_recipe, "_RECIPES", dict(_recipe._RECIPES))
    register_recipe(RECIPE)
