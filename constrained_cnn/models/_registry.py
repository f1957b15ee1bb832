"""Models by name, in torchvision's manner."""

from collections.abc import Callable
from typing import Any, TypeVar

from torch import nn

from constrained_cnn.errors import InvalidInputError, check_choice

Builder = TypeVar("Builder", bound=Callable[..., nn.Module])

_BUILDERS: dict[str, Callable[..., nn.Module]] = {}


def register_model(builder: Builder) -> Builder:
    """Make ``builder`` known by its function name; used as a decorator.

    Raises:
        InvalidInputError: If another model has that name.

    Examples:
        >>> from torch import nn
        >>> @register_model
        ... def tiny() -> nn.Module:
        ...     return nn.Sequential(nn.Flatten(), nn.Linear(784, 10))
        >>> "tiny" in list_models()
        True
    """
    name = builder.__name__
    known = _BUILDERS.setdefault(name, builder)
    if (known.__module__, known.__qualname__) != (builder.__module__, builder.__qualname__):
        raise InvalidInputError(f"model {name!r}: another model has this name; choose another")
    _BUILDERS[name] = builder
    return builder


def list_models() -> list[str]:
    """Return the names of all models, sorted."""
    return sorted(_BUILDERS)


def create_model(name: str, **options: Any) -> nn.Module:
    """Return a new model by name.

    Args:
        name: One of :func:`list_models`.
        options: Passed to the model's function, such as ``weights="mnist"``.

    Raises:
        InvalidInputError: If there is no such model; the nearest name is suggested.

    Examples:
        >>> model = create_model("mnist_12k")
        >>> sum(p.numel() for p in model.parameters())
        12000
    """
    return _BUILDERS[check_choice("model", name, list_models())](**options)
