"""Recipe: what a named run is made of, and the recipes of the reference networks."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from constrained_cnn.constraints import Constraints, Rule
from constrained_cnn.data import Augmentation
from constrained_cnn.errors import InvalidInputError, check_choice
from constrained_cnn.training import TrainConfig


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything a run needs but the seed.

    Attributes:
        name: What it is called.
        about: One line for a list.
        model: Name of the model in the registry.
        data: Name of the data set, as :func:`constrained_cnn.data.load` takes it.
        input_shape: Shape of one image: channels, height, width.
        augmentation: What is done to training images.
        config: How to train; its seed is replaced by the run's.
        constraints: Rules that the network is to keep, as
            :func:`constrained_cnn.constraints.check` takes them; None for none. They are judged
            before the first step.
        departures: Names of rules that it is known to break; any other that is broken is an error.
    """

    name: str
    about: str
    model: str
    data: str
    input_shape: tuple[int, int, int] = (1, 28, 28)
    augmentation: Augmentation = field(default_factory=Augmentation)
    config: TrainConfig = field(default_factory=TrainConfig)
    constraints: Constraints | Rule | Sequence[Rule] | str | None = None
    departures: tuple[str, ...] = ()


def _mnist_12k() -> Recipe:
    return Recipe(
        name="mnist-12k",
        about="12,000 parameters, 19 epochs, every rule kept",
        model="mnist_12k",
        data="auto",
        augmentation=Augmentation(rotation=5.0, interpolation="bilinear"),
        config=TrainConfig(
            epochs=19,
            batch_size=128,
            optimizer="SGD",
            learning_rate=0.2,
            optimizer_options={"momentum": 0.9, "nesterov": True, "weight_decay": 5e-4},
            schedule="OneCycleLR",
            schedule_options={"pct_start": 0.2, "cycle_momentum": False},
            precise_bn=200,
        ),
        constraints="mnist-12k",
    )


def _mnist_12k_bfloat16() -> Recipe:
    recipe = _mnist_12k()
    return replace(
        recipe,
        name="mnist-12k-bfloat16",
        about="mnist-12k, its steps in bfloat16: quicker where the processor has it",
        config=replace(recipe.config, autocast="bfloat16", channels_last=True),
    )


def _mnist_12k_source() -> Recipe:
    # The source rotated by nearest neighbour, let in a background of 1 of 255, and kept its rate
    # constant: the schedule it had written belonged to an optimizer it then replaced.
    return Recipe(
        name="mnist-12k-source",
        about="the network and training the project set out from, 12,734 parameters",
        model="mnist_12k_source",
        data="auto",
        augmentation=Augmentation(rotation=5.0, interpolation="nearest", fill=1.0),
        config=TrainConfig(
            epochs=19,
            batch_size=128,
            optimizer="SGD",
            learning_rate=0.01,
            optimizer_options={"momentum": 0.9},
            schedule="constant",
        ),
        constraints="mnist-12k",
        departures=("R1 near", "R6 block", "R6 padding", "R7"),
    )


# Functions: the first optimizer that a TrainConfig tries out makes torch import for seconds.
_RECIPES: dict[str, Callable[[], Recipe]] = {
    "mnist-12k": _mnist_12k,
    "mnist-12k-bfloat16": _mnist_12k_bfloat16,
    "mnist-12k-source": _mnist_12k_source,
}


def register_recipe(recipe: Recipe) -> Recipe:
    """Make ``recipe`` known by its name, for :func:`run` and the command line.

    Raises:
        InvalidInputError: If another recipe has that name.
    """
    if _RECIPES.setdefault(recipe.name, lambda: recipe)() != recipe:
        raise InvalidInputError(f"recipe {recipe.name!r}: another recipe has this name")
    return recipe


def list_recipes() -> list[str]:
    """Return the names of all recipes, sorted."""
    return sorted(_RECIPES)


def get_recipe(name: str) -> Recipe:
    """Return a recipe by name.

    Raises:
        InvalidInputError: If there is none; the nearest name is suggested.
    """
    return _RECIPES[check_choice("recipe", name, list_recipes())]()


def run_name(recipe: Recipe, data_name: str | None = None, *, held_out: int = 0) -> str:
    """Return what runs of ``recipe`` are called: other data is in the name, and what is held out.

    Examples:
        >>> run_name(get_recipe("mnist-12k"))
        'mnist-12k'
        >>> run_name(get_recipe("mnist-12k"), "digits", held_out=200)
        'mnist-12k-digits-held-out-200'
    """
    own = data_name is None or data_name == recipe.data or recipe.name.startswith(data_name)
    name = recipe.name if own else f"{recipe.name}-{data_name}"
    return f"{name}-held-out-{held_out}" if held_out else name
