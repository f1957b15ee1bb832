"""Design, prove and train small convolutional networks under hard constraints.

The names below are loaded on first use, so that importing the package costs nothing.
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_MODULES = (
    "blocks",
    "budget",
    "cli",
    "constraints",
    "data",
    "errors",
    "graph",
    "models",
    "plots",
    "proof",
    "receptive_field",
    "recipes",
    "record",
    "sizing",
    "study",
    "table",
    "tracing",
    "training",
)
_NAMES = {
    "Constraints": "constraints",
    "ImageSet": "data",
    "RunRecord": "record",
    "Sample": "study",
    "TrainConfig": "training",
    "Trainer": "training",
    "check": "constraints",
    "create_model": "models",
    "effective_receptive_field": "proof",
    "fit_widths": "sizing",
    "fold_bn": "budget",
    "list_models": "models",
    "measure_budget": "budget",
    "measure_receptive_field": "receptive_field",
    "register_op": "tracing",
    "trace": "tracing",
    "verify_receptive_field": "proof",
}

__all__ = [
    "Constraints",
    "ImageSet",
    "RunRecord",
    "Sample",
    "TrainConfig",
    "Trainer",
    "__version__",
    "blocks",
    "budget",
    "check",
    "cli",
    "constraints",
    "create_model",
    "data",
    "effective_receptive_field",
    "errors",
    "fit_widths",
    "fold_bn",
    "graph",
    "list_models",
    "measure_budget",
    "measure_receptive_field",
    "models",
    "plots",
    "proof",
    "receptive_field",
    "recipes",
    "record",
    "register_op",
    "sizing",
    "study",
    "table",
    "trace",
    "tracing",
    "training",
    "verify_receptive_field",
]

if TYPE_CHECKING:
    from constrained_cnn import (
        blocks,
        budget,
        cli,
        constraints,
        data,
        errors,
        graph,
        models,
        plots,
        proof,
        receptive_field,
        recipes,
        record,
        sizing,
        study,
        table,
        tracing,
        training,
    )
    from constrained_cnn.budget import fold_bn, measure_budget
    from constrained_cnn.constraints import Constraints, check
    from constrained_cnn.data import ImageSet
    from constrained_cnn.models import create_model, list_models
    from constrained_cnn.proof import effective_receptive_field, verify_receptive_field
    from constrained_cnn.receptive_field import measure_receptive_field
    from constrained_cnn.record import RunRecord
    from constrained_cnn.sizing import fit_widths
    from constrained_cnn.study import Sample
    from constrained_cnn.tracing import register_op, trace
    from constrained_cnn.training import TrainConfig, Trainer


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"constrained_cnn.{name}")
    if name in _NAMES:
        return getattr(importlib.import_module(f"constrained_cnn.{_NAMES[name]}"), name)
    raise AttributeError(f"module 'constrained_cnn' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
