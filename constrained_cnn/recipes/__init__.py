"""Recipes: model, data, augmentation and training under one name, and the runs they give.

>>> from constrained_cnn import recipes
>>> recipes.list_recipes()
['mnist-12k', 'mnist-12k-bfloat16', 'mnist-12k-source']
>>> recipes.get_recipe("mnist-12k").config.epochs
19
"""

from constrained_cnn.recipes._environment import describe_environment
from constrained_cnn.recipes._folder import run_folder, seeds_folder
from constrained_cnn.recipes._recipe import (
    Recipe,
    get_recipe,
    list_recipes,
    register_recipe,
    run_name,
)
from constrained_cnn.recipes._run import run
from constrained_cnn.recipes._seeds import run_seeds

__all__ = [
    "Recipe",
    "describe_environment",
    "get_recipe",
    "list_recipes",
    "register_recipe",
    "run",
    "run_folder",
    "run_name",
    "run_seeds",
    "seeds_folder",
]
