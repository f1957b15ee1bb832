"""Design, prove and train small convolutional networks under hard constraints.

The names below are loaded on first use, so that importing the package costs nothing.
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_MODULES = (
    "blocks",
    "cli",
    "data",
    "errors",
    "graph",
    "models",
    "plots",
    "receptive_field",
    "recipes",
    "record",
    "study",
    "tracing",
    "training",
)
_NAMES = {
    "ImageSet": "data",
    "RunRecord": "record",
    "Sample": "study",
    "TrainConfig": "training",
    "Trainer": "training",
    "create_model": "models",
    "list_models": "models",
    "measure_receptive_field": "receptive_field",
    "trace": "tracing",
}

__all__ = [
    "ImageSet",
    "RunRecord",
    "Sample",
    "TrainConfig",
    "Trainer",
    "__version__",
    "blocks",
    "cli",
    "create_model",
    "data",
    "errors",
    "graph",
    "list_models",
    "measure_receptive_field",
    "models",
    "plots",
    "receptive_field",
    "recipes",
    "record",
    "study",
    "trace",
    "tracing",
    "training",
]

if TYPE_CHECKING:
    from constrained_cnn import (
        blocks,
        cli,
        data,
        errors,
        graph,
        models,
        plots,
        receptive_field,
        recipes,
        record,
        study,
        tracing,
        training,
    )
    from constrained_cnn.data import ImageSet
    from constrained_cnn.models import create_model, list_models
    from constrained_cnn.receptive_field import measure_receptive_field
    from constrained_cnn.record import RunRecord
    from constrained_cnn.study import Sample
    from constrained_cnn.tracing import trace
    from constrained_cnn.training import TrainConfig, Trainer


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"constrained_cnn.{name}")
    if name in _NAMES:
        return getattr(importlib.import_module(f"constrained_cnn.{_NAMES[name]}"), name)
    raise AttributeError(f"module 'constrained_cnn' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
